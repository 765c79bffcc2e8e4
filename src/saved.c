/* saved.c - a session written to a file and read back: docs/FORMAT.md, "Saved sessions".
 * The file is checked as a whole before anything of the session changes. */
#include <string.h>

#include "session.h"

static const char magic[8] = "DIBITSES";
enum { VERSION = 2 };

typedef struct SavedHeader { /* little-endian, no padding */
    char magic[8];
    uint32_t version, n_bytes; /* n_bytes: of this header */
    uint64_t model;
    uint32_t n_layers, n_kv_heads, head_dim, n_vocab;
    char type_k[8], type_v[8]; /* of layer 0, padded with zeros */
    uint64_t types;            /* hash of the types of all layers */
    uint32_t sinks, window, q8_from, ring_from;
    uint32_t n_tokens, n_past;
    uint64_t cache_bytes;
} SavedHeader;
_Static_assert(sizeof(SavedHeader) == 96, "the header has no padding");

static uint64_t hash_u64(uint64_t seed, uint64_t v) {
    return hash64(seed, &v, sizeof v);
}

static uint64_t hash_tensor(uint64_t h, const GgufTensor *t) {
    enum { SAMPLES = 16, BYTES = 64 };
    h = hash64(h, t->name, strlen(t->name));
    h = hash_u64(h, (uint64_t)t->type);
    for (int i = 0; i < 4; i++) h = hash_u64(h, t->ne[i]);
    size_t step = t->n_bytes / SAMPLES;
    if (step < BYTES) return hash64(h, t->data, MIN(t->n_bytes, (size_t)SAMPLES * BYTES));
    for (int i = 0; i < SAMPLES; i++) h = hash64(h, t->data + (size_t)i * step, BYTES);
    return h;
}

static uint64_t hash_tensors(uint64_t h, const Gguf *file) {
    for (int i = 0; i < gguf_n_tensors(file); i++) h = hash_tensor(h, gguf_tensor(file, i));
    return h;
}

/* Of the model and of the calibration that its cache's rows were made with. */
static uint64_t model_hash(const DibitEngine *e) {
    const Model *m = &e->model;
    const Hparams *hp = &m->hp;
    const int ints[] = { hp->n_vocab,    hp->n_ctx_train, hp->n_embd, hp->n_layers, hp->n_heads,
                         hp->n_kv_heads, hp->head_dim,    hp->n_ff,   hp->n_rot,    hp->window };
    const float floats[] = { hp->eps, hp->rope_base, hp->rope_factor };
    uint64_t h = hash64(VERSION, m->arch->name, strlen(m->arch->name));
    h = hash64(h, ints, sizeof ints);
    h = hash64(h, floats, sizeof floats);
    h = hash_tensors(h, m->file);
    return e->kv_file ? hash_tensors(h, e->kv_file) : h;
}

static int count_run(void *arg, uint8_t *run, size_t n) {
    (void)run;
    *(uint64_t *)arg += n;
    return 0;
}

static SavedHeader make_header(const DibitSession *s, int n_tokens, int n_past, int q8_from,
                               int ring_from) {
    const CacheShape *c = &s->cache.shape;
    SavedHeader h = { .version = VERSION, .n_bytes = sizeof h };
    memcpy(h.magic, magic, sizeof magic);
    h.model = model_hash(s->engine);
    h.n_layers = (uint32_t)c->n_layers;
    h.n_kv_heads = (uint32_t)c->n_kv_heads;
    h.head_dim = (uint32_t)c->head_dim;
    h.n_vocab = (uint32_t)s->engine->model.hp.n_vocab;
    strncpy(h.type_k, kv_type(cache_type(&s->cache, 0, 0))->name, sizeof h.type_k - 1);
    strncpy(h.type_v, kv_type(cache_type(&s->cache, 0, 1))->name, sizeof h.type_v - 1);
    h.types = hash64(0, s->cache.types, 2 * (size_t)c->n_layers);
    h.sinks = (uint32_t)c->sinks;
    h.window = (uint32_t)c->window;
    h.q8_from = (uint32_t)q8_from;
    h.ring_from = (uint32_t)ring_from;
    h.n_tokens = (uint32_t)n_tokens;
    h.n_past = (uint32_t)n_past;
    cache_each_run(&s->cache, n_past, ring_from, count_run, &h.cache_bytes);
    return h;
}

/* ---- save ---- */

typedef struct Writing {
    FileOut file;
    uint64_t hash;
    DibitError *err;
} Writing;

static int put(Writing *w, const void *data, size_t n) {
    w->hash = hash64(w->hash, data, n);
    return file_write(&w->file, data, n, w->err);
}

static int put_run(void *arg, uint8_t *run, size_t n) {
    return put(arg, run, n);
}

/* What is written of rows that are elsewhere: the space of the window, of which nothing is used. */
static int put_zeros(void *arg, uint8_t *run, size_t n) {
    static const uint8_t zeros[4096];
    int r = 0;
    (void)run;
    for (size_t k; n > 0 && r == 0; n -= k) {
        k = MIN(n, sizeof zeros);
        r = put(arg, zeros, k);
    }
    return r;
}

/* A session of a backend is saved as its tokens, and its rows are computed anew. */
int dibit_save(const DibitSession *s, const char *path, DibitError *err) {
    Writing w = { .err = err };
    const Cache *c = &s->cache;
    SavedHeader h = s->remote ? make_header(s, s->n_tokens, 0, 0, 0)
                              : make_header(s, s->n_tokens, c->n_past, c->q8_from, c->ring_from);
    int r = file_create(&w.file, path, err);
    if (r != 0) return r;
    r = put(&w, &h, sizeof h);
    if (r == 0) r = put(&w, s->tokens, (size_t)s->n_tokens * sizeof *s->tokens);
    if (r == 0)
        r = cache_each_run(c, (int)h.n_past, (int)h.ring_from, s->remote ? put_zeros : put_run, &w);
    if (r == 0) r = file_write(&w.file, &w.hash, sizeof w.hash, err);
    if (r == 0) return file_commit(&w.file, err);
    file_abort(&w.file);
    return r;
}

/* ---- restore ---- */

typedef struct Reading {
    const uint8_t *at;
    uint64_t hash;
} Reading;

static int hash_run(void *arg, uint8_t *run, size_t n) {
    Reading *r = arg;
    (void)run;
    r->hash = hash64(r->hash, r->at, n);
    r->at += n;
    return 0;
}

static int copy_run(void *arg, uint8_t *run, size_t n) {
    Reading *r = arg;
    memcpy(run, r->at, n);
    r->at += n;
    return 0;
}

static int check_header(const DibitSession *s, const FileMap *f, SavedHeader *h, const char *path,
                        DibitError *err) {
    if (f->size < sizeof *h || memcmp(f->data, magic, sizeof magic) != 0)
        return fail(err, DIBIT_E_FORMAT, "%s: not a saved session", path);
    memcpy(h, f->data, sizeof *h);
    if (h->version != VERSION || h->n_bytes != sizeof *h)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: version %u of saved sessions is not supported",
                    path, h->version);
    if (h->n_tokens > (uint32_t)s->n_ctx)
        return fail(err, DIBIT_E_CONTEXT, "%s: %u tokens do not fit a context of %d", path,
                    h->n_tokens, s->n_ctx);
    if (h->n_past > h->n_tokens || h->q8_from > h->ring_from || h->ring_from > h->n_past ||
        !cache_can_restore(&s->cache, (int)h->n_past, (int)h->q8_from, (int)h->ring_from))
        return fail(err, DIBIT_E_FORMAT, "%s: %u tokens with a cache of %u", path, h->n_tokens,
                    h->n_past);
    SavedHeader want =
        make_header(s, (int)h->n_tokens, (int)h->n_past, (int)h->q8_from, (int)h->ring_from);
    if (h->model != want.model)
        return fail(err, DIBIT_E_FORMAT, "%s: it was saved with another model or calibration",
                    path);
    if (memcmp(h->type_k, want.type_k, 8) != 0 || memcmp(h->type_v, want.type_v, 8) != 0)
        return fail(err, DIBIT_E_FORMAT, "%s: its cache types are %.7s and %.7s, not %s and %s",
                    path, h->type_k, h->type_v, want.type_k, want.type_v);
    if (h->types != want.types || h->sinks != want.sinks || h->window != want.window)
        return fail(err, DIBIT_E_FORMAT,
                    "%s: its cache has other types in some layers, or %u sinks and a window of %u",
                    path, h->sinks, h->window);
    size_t total = sizeof *h + (size_t)h->n_tokens * sizeof(int32_t) + 8;
    if (memcmp(h, &want, sizeof *h) != 0 || !size_add(total, want.cache_bytes, &total) ||
        f->size != total)
        return fail(err, DIBIT_E_FORMAT, "%s: the file is damaged", path);
    return 0;
}

static int check_content(const DibitSession *s, const FileMap *f, const SavedHeader *h,
                         const char *path, DibitError *err) {
    const uint8_t *ids = f->data + sizeof *h;
    size_t n = (size_t)h->n_tokens * sizeof(int32_t);
    Reading r = { ids + n, hash64(hash64(0, h, sizeof *h), ids, n) };
    cache_each_run(&s->cache, (int)h->n_past, (int)h->ring_from, hash_run, &r);
    if (load_u64(r.at) != r.hash)
        return fail(err, DIBIT_E_FORMAT, "%s: the checksum is wrong; the file is damaged", path);
    for (uint32_t i = 0; i < h->n_tokens; i++)
        if (load_u32(ids + 4 * (size_t)i) >= h->n_vocab)
            return fail(err, DIBIT_E_FORMAT, "%s: token %u is not in the vocabulary", path, i);
    return 0;
}

int dibit_restore(DibitSession *s, const char *path, DibitError *err) {
    FileMap f;
    SavedHeader h;
    int r = file_map(&f, path, false, &s->engine->memory, err);
    if (r != 0) return r;
    r = check_header(s, &f, &h, path, err);
    if (r == 0) r = check_content(s, &f, &h, path, err);
    if (r == 0) r = cache_own(&s->cache, (int)h.n_past, err);
    if (r == 0) {
        const uint8_t *ids = f.data + sizeof h;
        size_t n = (size_t)h.n_tokens * sizeof(int32_t);
        Reading read = { .at = ids + n };
        memcpy(s->tokens, ids, n);
        s->n_tokens = (int)h.n_tokens;
        if (s->remote) {
            cache_truncate(&s->cache, 0);
        } else {
            cache_each_run(&s->cache, (int)h.n_past, (int)h.ring_from, copy_run, &read);
            cache_restored(&s->cache, (int)h.n_past, (int)h.q8_from, (int)h.ring_from);
        }
        s->has_logits = false;
        s->finish = NULL;
        s->utf8 = (Utf8Stream){ 0 };
    }
    file_unmap(&f);
    return r;
}
