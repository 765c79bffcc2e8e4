/* gguf_write.c - writes GGUF version 3: metadata and tensor descriptions are collected, then the
 * header is written at once and the tensors' bytes are streamed behind it. A file appears under
 * its name only when it is complete. */
#include "gguf.h"

#include <assert.h>
#include <string.h>

/* A growing byte string; once memory has run out it stays as it is and says so. */
typedef struct Bytes {
    uint8_t *p;
    size_t n, cap;
    bool failed;
} Bytes;

typedef struct Entry {
    char *key;
    Bytes value; /* kind, and what follows it in the file */
} Entry;

typedef struct OutTensor {
    char *name;
    int type, n_dims;
    uint64_t ne[4];
    size_t n_bytes;
} OutTensor;

struct GgufWriter {
    Arena arena; /* keys and names */
    Entry *entries;
    OutTensor *tensors;
    int n_entries, cap_entries, n_tensors, cap_tensors;
    bool failed; /* out of memory in a put */
    size_t align;
    FileOut file;
    Bytes image;    /* the sink when it is memory */
    bool in_memory; /* which of the two */
    int at;         /* tensor that is being written */
    size_t done;    /* its bytes so far */
};

static void append(Bytes *b, const void *data, size_t n) {
    size_t need, cap = MAX(b->cap, 64);
    if (b->failed || !size_add(b->n, n, &need)) {
        b->failed = true;
        return;
    }
    if (need > b->cap) {
        while (cap < need)
            if (!size_mul(cap, 2, &cap)) cap = need;
        uint8_t *p = mem_alloc(NULL, cap);
        if (!p) {
            b->failed = true;
            return;
        }
        if (b->n) memcpy(p, b->p, b->n);
        mem_free(NULL, b->p);
        b->p = p;
        b->cap = cap;
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n = need;
}

static void append_u32(Bytes *b, uint32_t v) {
    append(b, &v, sizeof v);
}

static void append_u64(Bytes *b, uint64_t v) {
    append(b, &v, sizeof v);
}

static void append_string(Bytes *b, const char *s, size_t n) {
    append_u64(b, n);
    append(b, s, n);
}

static void append_zeros(Bytes *b, size_t n) {
    static const uint8_t zeros[64];
    for (; n > sizeof zeros; n -= sizeof zeros) append(b, zeros, sizeof zeros);
    append(b, zeros, n);
}

int gguf_writer_create(GgufWriter **out, DibitError *err) {
    *out = mem_calloc(NULL, 1, sizeof **out);
    if (!*out) return fail(err, DIBIT_E_MEMORY, "no memory for a GGUF writer");
    (*out)->file.fd = -1;
    (*out)->align = 32;
    return 0;
}

void gguf_writer_free(GgufWriter **wp) {
    GgufWriter *w = *wp;
    *wp = NULL;
    if (!w) return;
    file_abort(&w->file);
    for (int i = 0; i < w->n_entries; i++) mem_free(NULL, w->entries[i].value.p);
    mem_free(NULL, w->entries);
    mem_free(NULL, w->tensors);
    mem_free(NULL, w->image.p);
    arena_free(&w->arena);
    mem_free(NULL, w);
}

/* ---- metadata ---- */

/* Room for one more element of `size` bytes in a list. */
static bool grow(void **list, int n, int *cap, size_t size) {
    if (n < *cap) return true;
    int more = *cap ? *cap * 2 : 64;
    void *p = mem_calloc(NULL, (size_t)more, size);
    if (!p) return false;
    if (n) memcpy(p, *list, (size_t)n * size);
    mem_free(NULL, *list);
    *list = p;
    *cap = more;
    return true;
}

/* The value's bytes of this key, empty, with its kind in front; NULL when memory has run out. */
static Bytes *put(GgufWriter *w, const char *key, size_t key_n, GgufKind kind) {
    Entry *e = NULL;
    for (int i = 0; i < w->n_entries && !e; i++)
        if (strlen(w->entries[i].key) == key_n && memcmp(w->entries[i].key, key, key_n) == 0)
            e = &w->entries[i];
    if (!e) {
        void *list = w->entries;
        char *copy = arena_string(&w->arena, key, key_n);
        if (!copy || !grow(&list, w->n_entries, &w->cap_entries, sizeof *w->entries)) {
            w->failed = true;
            return NULL;
        }
        w->entries = list;
        e = &w->entries[w->n_entries++];
        *e = (Entry){ .key = copy };
    }
    e->value.n = 0;
    append_u32(&e->value, kind);
    return &e->value;
}

static void put_scalar(GgufWriter *w, const char *key, GgufKind kind, const void *v, size_t n) {
    Bytes *b = put(w, key, strlen(key), kind);
    if (b) append(b, v, n);
}

void gguf_put_u32(GgufWriter *w, const char *key, uint32_t v) {
    put_scalar(w, key, GGUF_U32, &v, sizeof v);
    if (strcmp(key, "general.alignment") == 0) {
        assert(v >= 8 && (v & (v - 1)) == 0);
        w->align = v;
    }
}

void gguf_put_u64(GgufWriter *w, const char *key, uint64_t v) {
    put_scalar(w, key, GGUF_U64, &v, sizeof v);
}

void gguf_put_f32(GgufWriter *w, const char *key, float v) {
    put_scalar(w, key, GGUF_F32, &v, sizeof v);
}

void gguf_put_bool(GgufWriter *w, const char *key, bool v) {
    uint8_t byte = v;
    put_scalar(w, key, GGUF_BOOL, &byte, 1);
}

void gguf_put_string(GgufWriter *w, const char *key, const char *s, size_t n) {
    Bytes *b = put(w, key, strlen(key), GGUF_STRING);
    if (b) append_string(b, s, n);
}

void gguf_put_strings(GgufWriter *w, const char *key, const GgufString *v, uint64_t n) {
    Bytes *b = put(w, key, strlen(key), GGUF_ARRAY);
    if (!b) return;
    append_u32(b, GGUF_STRING);
    append_u64(b, n);
    for (uint64_t i = 0; i < n; i++) append_string(b, v[i].s, v[i].n);
}

void gguf_put_array(GgufWriter *w, const char *key, GgufKind item, const void *data, uint64_t n) {
    static const uint8_t size[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    assert(size[item]);
    Bytes *b = put(w, key, strlen(key), GGUF_ARRAY);
    if (!b) return;
    append_u32(b, item);
    append_u64(b, n);
    append(b, data, (size_t)n * size[item]);
}

void gguf_put_value(GgufWriter *w, const GgufValue *v) {
    Bytes *b = put(w, v->key.s, v->key.n, v->kind);
    if (!b) return;
    if (v->kind == GGUF_ARRAY) {
        append_u32(b, v->item);
        append_u64(b, v->n);
    }
    append(b, v->data, v->n_bytes);
    if (v->kind == GGUF_U32 && v->key.n == 17 && memcmp(v->key.s, "general.alignment", 17) == 0)
        w->align = load_u32(v->data);
}

void gguf_put_tensor(GgufWriter *w, const char *name, int type, int n_dims, const uint64_t *ne,
                     size_t n_bytes) {
    void *list = w->tensors;
    char *copy = arena_string(&w->arena, name, strlen(name));
    assert(n_dims >= 1 && n_dims <= 4);
    if (!copy || !grow(&list, w->n_tensors, &w->cap_tensors, sizeof *w->tensors)) {
        w->failed = true;
        return;
    }
    w->tensors = list;
    OutTensor *t = &w->tensors[w->n_tensors++];
    *t = (OutTensor){ copy, type, n_dims, { 1, 1, 1, 1 }, n_bytes };
    memcpy(t->ne, ne, (size_t)n_dims * sizeof *ne);
}

/* ---- the file ---- */

static uint64_t pad(const GgufWriter *w, uint64_t n) {
    return (n + w->align - 1) / w->align * w->align;
}

static void append_header(Bytes *b, const GgufWriter *w) {
    append(b, "GGUF", 4);
    append_u32(b, 3);
    append_u64(b, (uint64_t)w->n_tensors);
    append_u64(b, (uint64_t)w->n_entries);
    for (int i = 0; i < w->n_entries; i++) {
        append_string(b, w->entries[i].key, strlen(w->entries[i].key));
        append(b, w->entries[i].value.p, w->entries[i].value.n);
    }
    uint64_t offset = 0;
    for (int i = 0; i < w->n_tensors; i++) {
        const OutTensor *t = &w->tensors[i];
        append_string(b, t->name, strlen(t->name));
        append_u32(b, (uint32_t)t->n_dims);
        append(b, t->ne, (size_t)t->n_dims * sizeof *t->ne);
        append_u32(b, (uint32_t)t->type);
        append_u64(b, offset);
        offset += pad(w, t->n_bytes);
    }
    append_zeros(b, (size_t)(pad(w, b->n) - b->n));
}

uint64_t gguf_writer_size(const GgufWriter *w) {
    uint64_t n = 24;
    for (int i = 0; i < w->n_entries; i++)
        n += 8 + strlen(w->entries[i].key) + w->entries[i].value.n;
    for (int i = 0; i < w->n_tensors; i++)
        n += 8 + strlen(w->tensors[i].name) + 4 + 8 * (uint64_t)w->tensors[i].n_dims + 4 + 8;
    n = pad(w, n);
    for (int i = 0; i < w->n_tensors; i++) n += pad(w, w->tensors[i].n_bytes);
    return n;
}

static int build_header(GgufWriter *w, Bytes *header, DibitError *err) {
    for (int i = 0; i < w->n_entries; i++) w->failed |= w->entries[i].value.failed;
    if (!w->failed) append_header(header, w);
    w->failed |= header->failed;
    w->at = 0;
    w->done = 0;
    return w->failed ? fail(err, DIBIT_E_MEMORY, "no memory for the GGUF header") : 0;
}

int gguf_begin(GgufWriter *w, const char *path, DibitError *err) {
    Bytes header = { 0 };
    int r = build_header(w, &header, err);
    if (r == 0) r = file_create(&w->file, path, err);
    if (r == 0) r = file_write(&w->file, header.p, header.n, err);
    mem_free(NULL, header.p);
    w->in_memory = false;
    return r;
}

int gguf_begin_memory(GgufWriter *w, DibitError *err) {
    uint64_t size = gguf_writer_size(w);
    if (size > SIZE_MAX / 2) return fail(err, DIBIT_E_MEMORY, "the model does not fit in memory");
    mem_free(NULL, w->image.p);
    w->image = (Bytes){ .p = mem_alloc(NULL, (size_t)size), .cap = (size_t)size };
    if (!w->image.p)
        return fail(err, DIBIT_E_MEMORY, "no memory for a model of %llu bytes",
                    (unsigned long long)size);
    w->in_memory = true;
    return build_header(w, &w->image, err);
}

static int emit(GgufWriter *w, const void *data, size_t n, DibitError *err) {
    if (!w->in_memory) return file_write(&w->file, data, n, err);
    append(&w->image, data, n); /* within the capacity reserved at begin */
    return w->image.failed ? fail(err, DIBIT_E_MEMORY, "no memory for the model") : 0;
}

int gguf_write(GgufWriter *w, const void *data, size_t n, DibitError *err) {
    static const uint8_t zeros[64];
    const uint8_t *p = data;
    while (n) {
        if (w->at == w->n_tensors)
            return fail(err, DIBIT_E_ARGUMENT, "%zu bytes more than the tensors declare", n);
        const OutTensor *t = &w->tensors[w->at];
        size_t part = MIN(n, t->n_bytes - w->done);
        int r = emit(w, p, part, err);
        p += part;
        n -= part;
        w->done += part;
        if (r == 0 && w->done == t->n_bytes) {
            size_t gap = (size_t)(pad(w, t->n_bytes) - t->n_bytes);
            for (; r == 0 && gap; gap -= MIN(gap, sizeof zeros))
                r = emit(w, zeros, MIN(gap, sizeof zeros), err);
            w->at++;
            w->done = 0;
        }
        if (r != 0) return r;
    }
    return 0;
}

static int check_complete(const GgufWriter *w, DibitError *err) {
    if (w->at == w->n_tensors) return 0;
    return fail(err, DIBIT_E_ARGUMENT, "%s: only %zu of %zu bytes were written",
                w->tensors[w->at].name, w->done, w->tensors[w->at].n_bytes);
}

int gguf_finish(GgufWriter *w, DibitError *err) {
    int r = check_complete(w, err);
    if (r != 0)
        file_abort(&w->file);
    else
        r = file_commit(&w->file, err);
    return r;
}

int gguf_finish_memory(GgufWriter *w, uint8_t **out, size_t *size, DibitError *err) {
    *out = NULL;
    int r = check_complete(w, err);
    if (r != 0) return r;
    *out = w->image.p;
    *size = w->image.n;
    w->image = (Bytes){ 0 };
    return 0;
}

int gguf_rewrite(const char *path, void (*change)(GgufWriter *w, const void *user),
                 const void *user, DibitError *err) {
    Gguf *in = NULL;
    GgufWriter *w = NULL;
    int r = gguf_open(&in, path, true, NULL, err);
    if (r == 0) r = gguf_writer_create(&w, err);
    for (int i = 0; r == 0 && i < gguf_n_values(in); i++) gguf_put_value(w, gguf_value(in, i));
    if (r == 0) change(w, user);
    for (int i = 0; r == 0 && i < gguf_n_tensors(in); i++) {
        const GgufTensor *t = gguf_tensor(in, i);
        gguf_put_tensor(w, t->name, t->type, t->n_dims, t->ne, t->n_bytes);
    }
    if (r == 0) r = gguf_begin(w, path, err);
    for (int i = 0; r == 0 && i < gguf_n_tensors(in); i++)
        r = gguf_write(w, gguf_tensor(in, i)->data, gguf_tensor(in, i)->n_bytes, err);
    if (r == 0) r = gguf_finish(w, err);
    gguf_writer_free(&w);
    gguf_close(&in);
    return r;
}
