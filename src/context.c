/* context.c - which context fits in given bytes. All figures come from the functions that size
 * what a session allocates: cache_bytes() and scratch_total(). They grow with the number of
 * positions, so the most that fit is found by bisection; what wraps does not fit. */
#include "context.h"

#include <assert.h>
#include <string.h>

#include "model.h"
#include "sample.h"

/* ---- models ---- */

void context_opened(ContextModel *m, const DibitModelInfo *info) {
    *m = (ContextModel){ .name = info->name, .source = "a file", .n_parts = 1 };
    m->n_ctx_train = info->n_ctx_train;
    m->parts[0] = (ContextPart){ .n_layers = info->n_layers,
                                 .n_kv_heads = info->n_kv_heads,
                                 .head_dim = info->head_dim,
                                 .causal = true };
    m->n_embd = info->n_embd;
    m->n_ff = info->n_ff;
    m->n_heads = info->n_heads;
    m->n_vocab = info->n_vocab;
    m->n_params = info->n_params;
    m->weights = info->weight_bytes;
}

/* ---- bytes ---- */

static const ContextTypes f16 = { .mixed = false };

int context_types(ContextTypes *t, const ContextModel *m, const char *text, size_t n,
                  const char *layers, DibitError *err) {
    _Static_assert(CONTEXT_MAX_LAYERS == KV_MAX_LAYERS, "as many as a cache has");
    int types[2], n_layers = m->parts[0].n_layers;
    *t = (ContextTypes){ .mixed = layers && *layers };
    if (!cache_read_types(text, n, types))
        return fail(err, DIBIT_E_ARGUMENT,
                    "cache type \"%.*s\" is unknown; known are &f16, q8, q4, k3 and k2",
                    (int)MIN(n, 40), text);
    t->k = types[0];
    t->v = types[1];
    for (int l = 0; l < MIN(n_layers, KV_MAX_LAYERS); l++) {
        t->layers[l][0] = (uint8_t)types[0];
        t->layers[l][1] = (uint8_t)types[1];
    }
    if (!t->mixed || n_layers > KV_MAX_LAYERS) return 0; /* the latter is refused by the cache */
    return cache_read_layers(layers, n_layers, t->layers, err);
}

/* The type of a side, 0: K, 1: V. */
static const KvType *type_at_layer(const ContextTypes *t, int layer, int side) {
    return kv_type(t->mixed ? t->layers[layer][side] : side ? t->v : t->k);
}

static CacheShape cache_shape(const ContextPart *p, const ContextOptions *o, const ContextTypes *t,
                              int n_ctx) {
    int n = p->fixed ? p->fixed : p->window ? MIN(p->window, n_ctx) : n_ctx;
    return (CacheShape){ .n_layers = p->n_layers,
                         .n_kv_heads = p->n_kv_heads,
                         .head_dim = p->head_dim,
                         .n_ctx = n,
                         .type_k = t->k,
                         .type_v = t->v,
                         .layer_types = t->mixed ? t->layers : NULL,
                         .sinks = p->causal ? o->sinks : 0,
                         .window = p->causal ? o->window : 0 };
}

bool context_kv_bytes(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                      int n_ctx, size_t *n_bytes) {
    size_t total = 0, n;
    for (int i = 0; i < m->n_parts; i++) {
        CacheShape s = cache_shape(&m->parts[i], o, t, n_ctx);
        if (!cache_bytes(&s, &n) || !size_add(total, n, &total)) return false;
    }
    *n_bytes = total;
    return true;
}

enum { BATCH = 256 }; /* tokens of a prefill pass, as in a session that asks for nothing else */

/* What a cache has besides rows: it depends on whether there are records, not on how many positions
 * or layers. */
static bool cache_rest(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                       int n_batch, size_t *n_bytes) {
    Cache c;
    CacheShape s = cache_shape(&m->parts[0], o, t, 1);
    bool records = false;
    for (int i = 0; i < 2 * s.n_layers; i++) records |= type_at_layer(t, i / 2, i % 2)->bits != 0;
    s.type_k = s.type_v = records ? KV_K2 : KV_F16;
    s.layer_types = NULL;
    s.n_layers = 1;
    s.n_batch = n_batch;
    if (cache_create(&c, &s, NULL, NULL) != 0) return false;
    *n_bytes = c.scratch_bytes;
    cache_free(&c);
    return true;
}

static bool session_scratch(const ContextModel *m, const ContextOptions *o, int n_ctx,
                            size_t *n_bytes) {
    const ContextPart *p = &m->parts[0];
    Model model = { .tied = false };
    Hparams *h = &model.hp;
    *h = (Hparams){ .n_vocab = m->n_vocab,
                    .n_embd = m->n_embd,
                    .n_layers = p->n_layers,
                    .n_heads = m->n_heads,
                    .n_kv_heads = p->n_kv_heads,
                    .head_dim = p->head_dim,
                    .n_ff = m->n_ff,
                    .n_rot = m->learned ? 0 : p->head_dim };
    size_t total, tokens, candidates;
    return scratch_total(&model, o->n_threads, MIN(BATCH, n_ctx), n_ctx, &total) &&
           size_mul((size_t)n_ctx, sizeof(int32_t), &tokens) &&
           size_mul((size_t)m->n_vocab, sizeof(Candidate), &candidates) &&
           size_add(total, tokens, &total) && size_add(total, candidates, n_bytes);
}

bool context_scratch_bytes(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                           int n_ctx, size_t *n_bytes) {
    size_t rest, n;
    if (!cache_rest(m, o, t, MIN(BATCH, n_ctx), &rest) || !session_scratch(m, o, n_ctx, &n))
        return false;
    return size_add(n, rest, n_bytes);
}

/* ---- the search ---- */

typedef struct Search {
    const ContextModel *m;
    const ContextOptions *o;
    const ContextTypes *t;
    size_t limit;
    size_t rest; /* cache_rest() of a whole batch */
} Search;

static bool fits(const Search *s, int n_ctx) {
    size_t total, scratch, rest = s->rest;
    if (!context_kv_bytes(s->m, s->o, s->t, n_ctx, &total)) return false;
    if (!s->o->budget) return total <= s->limit;
    if (n_ctx < BATCH && !cache_rest(s->m, s->o, s->t, n_ctx, &rest)) return false;
    return session_scratch(s->m, s->o, n_ctx, &scratch) && size_add(total, scratch, &total) &&
           size_add(total, rest, &total) && size_add(total, s->m->weights, &total) &&
           total <= s->limit;
}

/* The most positions that fit, 0 to CONTEXT_LIMIT. */
static int most(const Search *s) {
    int low = 0, high = CONTEXT_LIMIT;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        if (fits(s, middle))
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static int search(const ContextModel *m, const ContextOptions *o, const ContextTypes *t, int *n,
                  DibitError *err) {
    Search s = { m, o, t, o->budget, 0 };
    if (o->budget && !cache_rest(m, o, t, BATCH, &s.rest))
        return fail(err, DIBIT_E_MEMORY, "no memory to plan with");
    if (!o->budget && !context_kv_bytes(m, o, &f16, o->base, &s.limit))
        return fail(err, DIBIT_E_MEMORY, "f16 cannot have %d positions of %s", o->base, m->name);
    *n = most(&s);
    return 0;
}

/* ---- the plan ---- */

/* The error of a shape that no cache can have, which cache_create() words best. */
static int check_shape(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                       DibitError *err) {
    size_t n;
    if (context_kv_bytes(m, o, t, 1, &n)) return 0;
    for (int i = 0; i < m->n_parts; i++) {
        Cache c;
        CacheShape s = cache_shape(&m->parts[i], o, t, 1);
        int r = cache_create(&c, &s, NULL, err);
        cache_free(&c);
        if (r != 0) return r;
    }
    return fail(err, DIBIT_E_MEMORY, "the KV cache of %s is too large", m->name);
}

static void count_part(const ContextPart *p, const ContextOptions *o, const ContextTypes *t,
                       ContextRow *row) {
    CacheShape s = cache_shape(p, o, t, 1);
    size_t heads = (size_t)p->n_kv_heads, q8 = heads * kv_type(KV_Q8)->row_bytes(p->head_dim), n;
    if (p->fixed && cache_bytes(&s, &n)) row->fixed += n;
    for (int i = 0; i < 2 * p->n_layers; i++) {
        const KvType *type = type_at_layer(t, i / 2, i % 2);
        if (type->bits) {
            row->sinks += q8 * (size_t)s.sinks;
            row->window += q8 * (size_t)s.window;
        }
        if (p->fixed) continue;
        row->per_token += heads * type->row_bytes(p->head_dim);
        row->f16_per_token += heads * kv_type(KV_F16)->row_bytes(p->head_dim);
    }
}

static bool bounded(const ContextModel *m) {
    for (int i = 0; i < m->n_parts; i++)
        if (!m->parts[i].fixed && !m->parts[i].window) return true;
    return false;
}

int context_plan(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                 ContextRow *row, DibitError *err) {
    assert(o->budget || o->base > 0);
    *row = (ContextRow){ .base = 0 };
    int r = check_shape(m, o, t, err);
    if (r == 0) r = search(m, o, &f16, &row->base, err);
    if (r == 0) r = search(m, o, t, &row->extended, err);
    if (r != 0) return r;
    if (row->extended == CONTEXT_LIMIT && !bounded(m)) {
        row->unbounded = true;
        row->extended = m->n_ctx_train;
        row->base = MIN(row->base, m->n_ctx_train);
    }
    for (int i = 0; i < m->n_parts; i++) count_part(&m->parts[i], o, t, row);
    row->ratio = row->base ? (double)row->extended / row->base : 0;
    if (row->extended == 0) return 0;
    if (!context_kv_bytes(m, o, &f16, row->extended, &row->kv_f16)) row->kv_f16 = SIZE_MAX;
    if (!context_kv_bytes(m, o, t, row->extended, &row->kv) ||
        !context_scratch_bytes(m, o, t, row->extended, &row->scratch))
        return fail(err, DIBIT_E_MEMORY, "%d positions of %s are too large for this machine",
                    row->extended, m->name);
    return 0;
}
