/* session.c - one conversation: a token history, the cache that follows it, and the sampler.
 * The rule it keeps: the cache holds tokens[0 .. n_past), where n_past is n_tokens, or one less
 * when the last token came from the sampler and has not been computed yet. So text is handed out
 * before the pass that its successor needs, and nothing is computed that nobody asks for. */
#define _POSIX_C_SOURCE 200809L
#include "session.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- how much memory there is ---- */

static size_t read_number(const char *path, const char *after, size_t otherwise) {
    char buf[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) return otherwise;
    buf[n] = 0;
    const char *p = strstr(buf, after);
    char *end;
    if (!p) return otherwise;
    p += strlen(after);
    unsigned long long v = strtoull(p, &end, 10);
    return end == p ? otherwise : (size_t)MIN(v, (unsigned long long)SIZE_MAX);
}

/* Bytes this process may still take: what the system calls available, within the limit of its
 * control group. SIZE_MAX where neither is known. */
static size_t memory_available(void) {
    size_t kb = read_number("/proc/meminfo", "MemAvailable:", SIZE_MAX), free_bytes;
    if (!size_mul(kb, 1024, &free_bytes)) free_bytes = SIZE_MAX;
    size_t limit = read_number("/sys/fs/cgroup/memory.max", "", SIZE_MAX);
    size_t used = read_number("/sys/fs/cgroup/memory.current", "", 0);
    size_t cache = read_number("/sys/fs/cgroup/memory.stat", "inactive_file ", 0);
    used -= MIN(used, cache); /* file pages leave when memory is wanted */
    return limit == SIZE_MAX ? free_bytes : MIN(free_bytes, limit - MIN(limit, used));
}

/* ---- create and free ---- */

typedef uint8_t LayerTypes[KV_MAX_LAYERS][2];

static int read_type(const char *name, int *type, DibitError *err) {
    *type = name ? kv_type_by_name(name) : KV_F16;
    if (*type >= 0) return 0;
    return fail(err, DIBIT_E_ARGUMENT,
                "cache type \"%.40s\" is unknown; known are f16, q8, q4, k3 and k2", name);
}

/* Fills in the types of all layers, which the shape then refers to. */
static int read_layers(const char *text, CacheShape *shape, LayerTypes types, DibitError *err) {
    if (!text || !*text || shape->n_layers > KV_MAX_LAYERS) return 0; /* refused by the cache */
    for (int l = 0; l < shape->n_layers; l++) {
        types[l][0] = (uint8_t)shape->type_k;
        types[l][1] = (uint8_t)shape->type_v;
    }
    shape->layer_types = (const uint8_t(*)[2])types;
    return cache_read_layers(text, shape->n_layers, types, err);
}

/* The choice of the calibration where the text is "auto". Its entries are checked as a user's. */
static int calibrated_layers(const DibitEngine *e, CacheShape *shape, LayerTypes types,
                             DibitError *err) {
    GgufString s = { NULL, 0 };
    char *text;
    if (!gguf_get_string(e->kv_file ? e->kv_file : e->file, "dibit.kv.layers", &s))
        return fail(err, DIBIT_E_ARGUMENT,
                    "cache_layers: auto, but no choice was calibrated; run `dibit calibrate kv` "
                    "with --budget");
    if (!(text = mem_alloc(NULL, s.n + 1))) return fail(err, DIBIT_E_MEMORY, "no memory");
    memcpy(text, s.s, s.n);
    text[s.n] = 0;
    int r = read_layers(text, shape, types, err);
    mem_free(NULL, text);
    return r;
}

/* The window and the sinks of records. */
static int read_recent(const DibitSessionOptions *opt, CacheShape *shape, DibitError *err) {
    enum { MAX_WINDOW = 1 << 24 };
    int sinks = opt->cache_sinks, window = opt->cache_window;
    if (sinks < -1 || sinks > KV_PAGE)
        return fail(err, DIBIT_E_ARGUMENT, "cache_sinks: %d is not 0 to %d, or -1 for none", sinks,
                    KV_PAGE);
    if (window < -1 || window > MAX_WINDOW || (window > 0 && window % KV_BLOCK != 0))
        return fail(err, DIBIT_E_ARGUMENT,
                    "cache_window: %d is not a multiple of %d from 0 to %d, or -1 for none", window,
                    KV_BLOCK, MAX_WINDOW);
    shape->sinks = sinks < 0 ? 0 : sinks ? sinks : KV_SINKS;
    shape->window = window < 0 ? 0 : window ? window : KV_WINDOW;
    return 0;
}

/* The shape refers to `types` where layers differ. */
static int read_options(DibitSession *s, const DibitSessionOptions *opt, CacheShape *shape,
                        LayerTypes types, DibitError *err) {
    const Hparams *h = &s->engine->model.hp;
    if (opt->n_ctx < 0 || opt->n_ctx > 1 << 30)
        return fail(err, DIBIT_E_ARGUMENT, "n_ctx: %d is not 0 to %d", opt->n_ctx, 1 << 30);
    if (opt->n_batch < 0 || opt->n_batch > 1 << 16)
        return fail(err, DIBIT_E_ARGUMENT, "n_batch: %d is not 0 to %d", opt->n_batch, 1 << 16);
    s->n_ctx = opt->n_ctx ? opt->n_ctx : h->n_ctx_train;
    s->n_batch = s->engine->backend ? 1 : MIN(opt->n_batch ? opt->n_batch : 256, s->n_ctx);
    if (s->n_ctx > h->n_ctx_train)
        engine_log(s->engine, DIBIT_LOG_WARN,
                   "a context of %d positions is more than the %d the model was trained with",
                   s->n_ctx, h->n_ctx_train);
    *shape = (CacheShape){ .n_layers = h->n_layers, .n_kv_heads = h->n_kv_heads };
    shape->head_dim = h->head_dim;
    shape->n_ctx = s->n_ctx;
    shape->n_batch = s->n_batch;
    shape->elsewhere = s->engine->backend != NULL;
    shape->weights = (const float(*)[4])s->engine->model.kv_weights;
    int r = read_recent(opt, shape, err);
    if (r == 0) r = read_type(opt->cache_k, &shape->type_k, err);
    if (r == 0) r = read_type(opt->cache_v, &shape->type_v, err);
    if (r == 0 && opt->cache_layers && strcmp(opt->cache_layers, "auto") == 0)
        return calibrated_layers(s->engine, shape, types, err);
    return r ? r : read_layers(opt->cache_layers, shape, types, err);
}

/* The error for a context that does not fit; available is SIZE_MAX when an allocation failed. */
static int too_large(const DibitSession *s, size_t need, size_t available, DibitError *err) {
    if (available == SIZE_MAX)
        return fail(err, DIBIT_E_MEMORY,
                    "a context of %d positions needs %zu bytes, which could not be had; ask for a "
                    "smaller one",
                    s->n_ctx, need);
    size_t each = MAX((size_t)1, need / (size_t)s->n_ctx);
    return fail(err, DIBIT_E_MEMORY,
                "a context of %d positions needs %zu bytes, but %zu are available; about %zu "
                "positions would fit",
                s->n_ctx, need, available, available / each);
}

int session_fits(const DibitSession *s, size_t need, DibitError *err) {
    size_t available = s->engine->memory.alloc ? SIZE_MAX : memory_available();
    return need > available ? too_large(s, need, available, err) : 0;
}

static size_t text_bytes(const DibitEngine *e) {
    return 3 * (e->max_token_bytes + 8);
}

/* With a cache of its own, or one that is forked from another session's. */
static int create_parts(DibitSession *s, const CacheShape *shape, const DibitSampling *sampling,
                        const Cache *fork_of, DibitError *err) {
    DibitEngine *e = s->engine;
    const DibitAllocator *memory = &e->memory;
    size_t kv, rest, need;
    int n_threads = pool_size(e->pool);
    if (!cache_bytes(shape, &kv) ||
        !scratch_total(&e->model, n_threads, s->n_batch, s->n_ctx, &rest) ||
        !size_add(kv, rest, &need))
        return fail(err, DIBIT_E_MEMORY, "a context of %d positions is too large", s->n_ctx);
    if (shape->elsewhere) need = rest;
    if (fork_of) need -= cache_forkable(fork_of);
    int r = sampler_create(&s->sampler, e->model.hp.n_vocab, sampling, memory, err);
    if (r == 0) r = session_fits(s, need, err);
    if (r != 0) return r;
    s->tokens = mem_calloc(memory, (size_t)s->n_ctx, sizeof *s->tokens);
    s->text_bytes = text_bytes(e);
    s->text = mem_alloc(memory, s->text_bytes);
    if (!s->tokens || !s->text) return too_large(s, need, SIZE_MAX, err);
    r = fork_of ? cache_fork(&s->cache, fork_of, err) : cache_create(&s->cache, shape, memory, err);
    if (r == DIBIT_E_MEMORY) return too_large(s, need, SIZE_MAX, err);
    if (r == 0)
        r = scratch_create(&s->scratch, &e->model, &e->kern, e->pool, s->n_batch, s->n_ctx, memory,
                           err);
    s->scratch.ops.cancel = &s->cancel;
    return r == 0 && shape->elsewhere ? remote_open(s, err) : r;
}

int dibit_session_create(DibitSession **out, DibitEngine *engine, const DibitSessionOptions *opt,
                         DibitError *err) {
    static const DibitSessionOptions defaults = { 0 };
    CacheShape shape;
    LayerTypes types; /* the cache makes its own copy */
    *out = NULL;
    if (!opt) opt = &defaults;
    DibitSession *s = mem_calloc(&engine->memory, 1, sizeof *s);
    if (!s) return fail(err, DIBIT_E_MEMORY, "no memory for a session");
    s->engine = engine;
    int r = read_options(s, opt, &shape, types, err);
    if (r == 0) r = create_parts(s, &shape, &opt->sampling, NULL, err);
    if (r != 0)
        dibit_session_free(&s);
    else
        *out = s;
    return r;
}

int dibit_fork(DibitSession **out, DibitSession *src, DibitError *err) {
    DibitEngine *e = src->engine;
    size_t n_vocab = (size_t)e->model.hp.n_vocab;
    *out = NULL;
    DibitSession *s = mem_calloc(&e->memory, 1, sizeof *s);
    if (!s) return fail(err, DIBIT_E_MEMORY, "no memory for a session");
    s->engine = e;
    s->n_ctx = src->n_ctx;
    s->n_batch = src->n_batch;
    const CacheShape *shape = &src->cache.shape; /* rows elsewhere are computed anew when needed */
    int r = create_parts(s, shape, &src->sampler.cfg, shape->elsewhere ? NULL : &src->cache, err);
    if (r != 0) {
        dibit_session_free(&s);
        return r;
    }
    s->sampler.state = src->sampler.state;
    s->n_tokens = src->n_tokens;
    memcpy(s->tokens, src->tokens, (size_t)s->n_tokens * sizeof *s->tokens);
    s->has_logits = src->has_logits;
    if (s->has_logits) memcpy(s->scratch.logits, src->scratch.logits, n_vocab * sizeof(float));
    s->finish = src->finish;
    s->utf8 = src->utf8;
    atomic_store(&s->sync_done, atomic_load(&src->sync_done));
    atomic_store(&s->sync_total, atomic_load(&src->sync_total));
    *out = s;
    return 0;
}

void dibit_session_free(DibitSession **session) {
    DibitSession *s = session ? *session : NULL;
    if (!s) return;
    const DibitAllocator *memory = &s->engine->memory;
    remote_close(s);
    cache_free(&s->cache);
    scratch_free(&s->scratch);
    sampler_free(&s->sampler);
    mem_free(memory, s->tokens);
    mem_free(memory, s->text);
    mem_free(memory, s);
    *session = NULL;
}

int dibit_set_sampling(DibitSession *s, const DibitSampling *sampling, DibitError *err) {
    return sampler_set(&s->sampler, sampling, err);
}

/* ---- the token path ---- */

void dibit_cancel(DibitSession *s) {
    atomic_store(&s->cancel, 1);
}

/* Whether there is a request to stop; uses it up. */
static int take_cancel(DibitSession *s, DibitError *err) {
    if (!atomic_exchange(&s->cancel, 0)) return 0;
    return fail(err, DIBIT_E_CANCELLED, "cancelled");
}

static int run(DibitSession *s, const int32_t *ids, int n, float *logits, bool all,
               DibitError *err) {
    uint64_t start = ops_start(&s->scratch.ops);
    int r = s->remote ? remote_pass(s, ids, n, logits ? PASS_LOGITS : PASS_CACHE,
                                    logits == s->scratch.logits ? NULL : logits, err)
                      : model_forward(&s->engine->model, &s->scratch, &s->cache, ids, n, logits,
                                      all, err);
    if (start) {
        s->profile.total_ns += clock_ns() - start;
        if (r != DIBIT_WAIT) s->profile.n_tokens += (uint64_t)n;
    }
    if (r == DIBIT_E_CANCELLED) atomic_store(&s->cancel, 0);
    return r;
}

/* Of n tokens, how many the next pass takes. */
static int n_of_pass(const DibitSession *s, int n) {
    return s->remote ? remote_batch(s, n) : MIN(s->n_batch, n);
}

static int check_ids(const DibitSession *s, const int32_t *ids, size_t n, DibitError *err) {
    int n_vocab = s->engine->model.hp.n_vocab;
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return fail(err, DIBIT_E_ARGUMENT, "token %zu is %ld, the vocabulary has ids 0 to %d",
                        i, (long)ids[i], n_vocab - 1);
    return 0;
}

/* Forgets all but the first n tokens. The cache may have to go back further: see cache_truncate().
 */
static void cut(DibitSession *s, int n) {
    s->n_tokens = n;
    cache_truncate(&s->cache, MIN(n, s->cache.n_past));
    s->has_logits = false;
}

/* Computes the tokens that the cache does not hold yet, with logits of the last one where wanted.
 */
static int catch_up(DibitSession *s, bool want_logits, DibitError *err) {
    while (s->cache.n_past < s->n_tokens) {
        int n = n_of_pass(s, s->n_tokens - s->cache.n_past);
        bool last = want_logits && s->cache.n_past + n == s->n_tokens;
        int r = run(s, s->tokens + s->cache.n_past, n, last ? s->scratch.logits : NULL, false, err);
        if (r != 0) return r;
        s->has_logits = last;
    }
    return 0;
}

/* What of a backend's logits the sampler needs. */
static int wanted(const Sampler *s) {
    int top = sampler_top(s);
    if (sampler_is_greedy(s)) return PASS_GREEDY;
    return top > 0 && top <= TOP_CANDIDATES ? PASS_TOP : PASS_LOGITS;
}

/* The same of a backend where less than all logits will do: the next token, or -1 where logits are
 * there after all. */
static int remote_next(DibitSession *s, int what, int32_t *id, DibitError *err) {
    Candidate top[TOP_CANDIDATES];
    int r = 0;
    while (r == 0 && s->cache.n_past < s->n_tokens) {
        int p = s->cache.n_past, n = n_of_pass(s, s->n_tokens - p);
        bool last = p + n == s->n_tokens;
        if (!s->remote) return catch_up(s, true, err); /* the CPU took over on the way */
        r = remote_pass(s, s->tokens + p, n, last ? what : PASS_CACHE,
                        what == PASS_GREEDY ? (void *)id : top, err);
    }
    if (r == DIBIT_E_CANCELLED) atomic_store(&s->cancel, 0);
    if (r == 0 && what == PASS_TOP && !s->has_logits)
        *id = sampler_next_of(&s->sampler, top, MIN((int)TOP_CANDIDATES, s->sampler.n_vocab));
    return r;
}

/* What was said about the end of the text no longer holds. */
static void reopen(DibitSession *s) {
    s->finish = NULL;
    s->utf8 = (Utf8Stream){ 0 };
}

/* Computes ids[from .. n) after the first `from` tokens, with logits of the last one. */
static int prefill(DibitSession *s, const int32_t *ids, int from, int n, DibitError *err) {
    cut(s, from);
    for (int i = s->cache.n_past; i < n;) {
        int k = n_of_pass(s, n - i);
        int r = run(s, ids + i, k, i + k == n ? s->scratch.logits : NULL, false, err);
        if (r != 0) return r;
        memmove(s->tokens + i, ids + i, (size_t)k * sizeof *ids); /* ids may be s->tokens */
        i += k;
        s->n_tokens = i;
        atomic_store(&s->sync_done, (size_t)i);
    }
    s->has_logits = true;
    return 0;
}

int64_t dibit_sync(DibitSession *s, const int32_t *ids, size_t n, DibitError *err) {
    int r = take_cancel(s, err), from = 0;
    s->n_forwarded = 0;
    if (r != 0) return r;
    if (n > (size_t)s->n_ctx)
        return fail(err, DIBIT_E_CONTEXT, "a text of %zu tokens does not fit a context of %d", n,
                    s->n_ctx);
    if ((r = check_ids(s, ids, n, err)) != 0) return r;
    while (from < s->n_tokens && from < (int)n && s->tokens[from] == ids[from]) from++;
    reopen(s);
    if (n == 0) {
        cut(s, 0);
    } else if (from < (int)n || from < s->n_tokens || !s->has_logits) {
        from = MIN(from, MIN(s->cache.n_past, (int)n - 1)); /* the last one gives the logits */
        atomic_store(&s->sync_done, (size_t)from);
        atomic_store(&s->sync_total, n);
        r = prefill(s, ids, from, (int)n, err);
        return r ? r : (int)n - from;
    }
    atomic_store(&s->sync_done, n);
    atomic_store(&s->sync_total, n);
    return 0;
}

void dibit_sync_progress(const DibitSession *s, size_t *done, size_t *total) {
    *done = atomic_load(&s->sync_done);
    *total = atomic_load(&s->sync_total);
}

static int finish(DibitSession *s, DibitPiece *piece, int32_t id, const char *reason) {
    s->finish = reason;
    piece->id = id;
    piece->finish = reason;
    piece->n_bytes = utf8_stream(&s->utf8, "", 0, true, s->text);
    return 0;
}

int dibit_next(DibitSession *s, DibitPiece *piece, DibitError *err) {
    *piece = (DibitPiece){ .text = s->text, .id = -1 };
    int r = take_cancel(s, err);
    s->n_forwarded = 0;
    if (r != 0) return r;
    if (s->n_tokens == 0)
        return fail(err, DIBIT_E_ARGUMENT, "the prompt is empty: there is nothing to continue");
    if (s->finish) return finish(s, piece, -1, s->finish);
    if (s->n_tokens == s->n_ctx) return finish(s, piece, -1, "length");
    int32_t id = -1;
    if (!s->has_logits) { /* of the token sampled last, or of one whose logits nobody wanted */
        cache_truncate(&s->cache, MIN(s->cache.n_past, s->n_tokens - 1));
        int what = wanted(&s->sampler);
        r = s->remote && what != PASS_LOGITS ? remote_next(s, what, &id, err)
                                             : catch_up(s, true, err);
        if (r != 0) return r;
    }
    if (id < 0) id = sampler_next(&s->sampler, s->scratch.logits, s->tokens, (size_t)s->n_tokens);
    if (dibit_is_end(s->engine, id)) return finish(s, piece, id, "stop");
    s->tokens[s->n_tokens++] = id;
    s->has_logits = false;
    const char *bytes;
    int n = dibit_token_bytes(s->engine, id, 0, &bytes);
    piece->id = id;
    piece->n_bytes = utf8_stream(&s->utf8, bytes, (size_t)MAX(n, 0), false, s->text);
    return 1;
}

int dibit_forward(DibitSession *s, const int32_t *ids, size_t n, float *out, DibitError *err) {
    size_t n_vocab = (size_t)s->engine->model.hp.n_vocab, i = s->n_forwarded;
    int r = take_cancel(s, err);
    s->n_forwarded = 0;
    if (r != 0) return r;
    if (n > (size_t)(s->n_ctx - s->n_tokens) + i)
        return fail(err, DIBIT_E_CONTEXT, "%zu tokens after %d do not fit a context of %d", n,
                    s->n_tokens, s->n_ctx);
    if ((r = check_ids(s, ids, n, err)) != 0 || n == 0) return r;
    if ((r = catch_up(s, false, err)) != 0) return r; /* the token sampled last */
    reopen(s);
    s->has_logits = false;
    while (i < n) {
        int k = s->remote && out ? 1 : n_of_pass(s, (int)(n - i));
        r = run(s, ids + i, k, out ? out + i * n_vocab : NULL, true, err);
        if (r == DIBIT_WAIT) s->n_forwarded = i;
        if (r != 0) return r;
        memmove(s->tokens + s->n_tokens, ids + i, (size_t)k * sizeof *ids);
        s->n_tokens += k;
        i += (size_t)k;
    }
    if (out) {
        memcpy(s->scratch.logits, out + (n - 1) * n_vocab, n_vocab * sizeof *out);
        s->has_logits = true;
    }
    return 0;
}

int dibit_fill(DibitSession *s, const int32_t *ids, size_t n, DibitError *err) {
    int r = check_ids(s, ids, n, err);
    if (r != 0) return r;
    if (n > (size_t)s->n_ctx)
        return fail(err, DIBIT_E_CONTEXT, "%zu tokens do not fit a context of %d", n, s->n_ctx);
    reopen(s);
    cut(s, 0);
    if (s->remote && n > 0) {
        if ((r = s->home->fill(s->remote, (int)n, err)) != 0) return r;
        cache_advance(&s->cache, (int)n);
        memcpy(s->tokens, ids, n * sizeof *ids);
        s->n_tokens = (int)n;
    }
    while (s->n_tokens < (int)n) {
        int k = MIN(s->n_batch, (int)n - s->n_tokens);
        r = take_cancel(s, err);
        if (r == 0) r = model_fill(&s->engine->model, &s->scratch, &s->cache, k, err);
        if (r != 0) return r;
        memcpy(s->tokens + s->n_tokens, ids + s->n_tokens, (size_t)k * sizeof *ids);
        s->n_tokens += k;
    }
    return 0;
}

void dibit_profile(DibitSession *s, int on, DibitProfile *out) {
    Ops *o = &s->scratch.ops;
    s->profile.matmul_ns = o->ns[OPS_MATMUL];
    s->profile.attend_ns = o->ns[OPS_ATTEND];
    s->profile.cache_ns = o->ns[OPS_PUT];
    if (out) *out = s->profile;
    s->profile = (DibitProfile){ 0 };
    memset(o->ns, 0, sizeof o->ns);
    o->timed = on != 0;
}

/* ---- views ---- */

const float *dibit_last_logits(const DibitSession *s) {
    return s->has_logits ? s->scratch.logits : NULL;
}

size_t dibit_tokens(const DibitSession *s, const int32_t **ids) {
    if (ids) *ids = s->tokens;
    return (size_t)s->n_tokens;
}

/* Token history, candidates of the sampler and text of a piece. */
static size_t other_bytes(const DibitSession *s) {
    return (size_t)s->n_ctx * sizeof *s->tokens +
           (size_t)s->engine->model.hp.n_vocab * sizeof *s->sampler.cand + s->text_bytes;
}

void dibit_memory(const DibitSession *s, DibitMemory *out) {
    const Model *m = &s->engine->model;
    *out = (DibitMemory){ .weights = m->file_bytes + m->packed_bytes,
                          .kv = cache_allocated(&s->cache),
                          .kv_shared = cache_shared(&s->cache),
                          .n_ctx = s->n_ctx,
                          .n_past = s->n_tokens,
                          .kv_zero = (uint64_t)atomic_load(&s->cache.n_zero),
                          .kv_saturated = (uint64_t)atomic_load(&s->cache.n_saturated) };
    if (s->remote) out->kv = s->home->bytes(s->remote);
    out->scratch = scratch_bytes(&s->scratch) + other_bytes(s);
}

int dibit_session_memory(const DibitEngine *engine, const DibitSessionOptions *opt,
                         DibitMemory *out, DibitError *err) {
    const DibitSessionOptions defaults = { 0 };
    DibitSession s = { .engine = (DibitEngine *)(uintptr_t)engine };
    const Model *m = &engine->model;
    CacheShape shape;
    LayerTypes types;
    *out = (DibitMemory){ .weights = m->file_bytes + m->packed_bytes };
    int r = read_options(&s, opt ? opt : &defaults, &shape, types, err);
    if (r != 0) return r;
    s.text_bytes = text_bytes(engine);
    out->n_ctx = s.n_ctx;
    if (!cache_bytes(&shape, &out->kv) ||
        !scratch_total(m, pool_size(engine->pool), s.n_batch, s.n_ctx, &out->scratch) ||
        !size_add(out->scratch, other_bytes(&s), &out->scratch))
        return fail(err, DIBIT_E_MEMORY, "a context of %d positions is too large", s.n_ctx);
    return 0;
}
