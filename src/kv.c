/* kv.c - the KV cache by itself, of dibit.h: a Cache for each layer, in which the sequences of a
 * batch are more heads, with threads and scratch that the layers share. The rule it keeps: every
 * argument is checked before anything is written. */
#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "basis.h"
#include "ops.h"

enum { MAX_POSITIONS = 1 << 24, MAX_HEADS = 1 << 16, MAX_WINDOW = 1 << 16, MAX_BATCH = 1 << 16 };

struct DibitKv {
    DibitAllocator memory;
    Kern kern;
    Pool *pool;
    Ops ops;
    Cache *layers;
    int n_layers, batch, n_kv_heads, n_heads, head_dim;
    int n_put, n_attend; /* positions of one pass */
    float *buf[2]; /* (n_put, batch, n_kv_heads, head_dim) or (n_attend, batch, n_heads, ..) */
    int in_hand;   /* the layer that the caches' scratch belongs to, or -1; */
    int from;      /* its queries from this position on can be answered with it */
    size_t rows, scratch;
};

/* ---- create, free ---- */

static int check_number(const char *name, int x, int least, int most, DibitError *err) {
    if (x >= least && x <= most) return 0;
    return fail(err, DIBIT_E_ARGUMENT, "%s: %d is not within %d..%d", name, x, least, most);
}

static int check_options(const DibitKvOptions *o, DibitError *err) {
    int r;
    if ((r = check_number("batch", o->batch, 1, MAX_HEADS, err)) != 0 ||
        (r = check_number("n_kv_heads", o->n_kv_heads, 1, MAX_HEADS, err)) != 0 ||
        (r = check_number("n_heads", o->n_heads, 1, MAX_HEADS, err)) != 0 ||
        (r = check_number("head_dim", o->head_dim, 8, KV_MAX_DIM, err)) != 0 ||
        (r = check_number("max_positions", o->max_positions, 1, MAX_POSITIONS, err)) != 0 ||
        (r = check_number("n_layers", o->n_layers, 1, 1024, err)) != 0 ||
        (r = check_number("n_batch", o->n_batch, 1, MAX_BATCH, err)) != 0 ||
        (r = check_number("sinks", o->sinks, 0, KV_PAGE, err)) != 0 ||
        (r = check_number("window", o->window, 0, MAX_WINDOW, err)) != 0 ||
        (r = check_number("n_threads", o->n_threads, 0, 1 << 16, err)) != 0)
        return r;
    if (o->n_heads % o->n_kv_heads != 0)
        return fail(err, DIBIT_E_ARGUMENT, "n_heads: %d is not a multiple of n_kv_heads, %d",
                    o->n_heads, o->n_kv_heads);
    if (o->n_heads > MAX_HEADS / o->batch)
        return fail(err, DIBIT_E_ARGUMENT, "batch x n_heads: %d x %d is over %d", o->batch,
                    o->n_heads, MAX_HEADS);
    if (o->window % KV_BLOCK != 0)
        return fail(err, DIBIT_E_ARGUMENT, "window: %d is not a multiple of %d", o->window,
                    KV_BLOCK);
    return 0;
}

static int find_type(const char *option, const char *name, int *type, DibitError *err) {
    *type = name ? kv_type_by_name(name) : KV_F16;
    if (*type >= 0) return 0;
    return fail(err, DIBIT_E_ARGUMENT, "%s: '%.20s' is not one of f16, q8, q4, k3, k2", option,
                name);
}

static DibitKvOptions with_defaults(const DibitKvOptions *opt) {
    DibitKvOptions o = *opt;
    o.batch += o.batch == 0;
    o.n_layers += o.n_layers == 0;
    if (o.n_heads == 0) o.n_heads = o.n_kv_heads;
    if (o.n_batch == 0) o.n_batch = 256;
    o.n_batch = MIN(o.n_batch, MAX(o.max_positions, 1));
    o.sinks = o.sinks == -1 ? 0 : o.sinks == 0 ? KV_SINKS : o.sinks;
    o.window = o.window == -1 ? 0 : o.window == 0 ? KV_WINDOW : o.window;
    return o;
}

static int no_memory(const DibitKvOptions *o, DibitError *err) {
    return fail(err, DIBIT_E_MEMORY,
                "no memory for a KV cache of %d layers, batch %d, %d heads of %d and %d positions",
                o->n_layers, o->batch, o->n_kv_heads, o->head_dim, o->max_positions);
}

static int create_layers(DibitKv *kv, const DibitKvOptions *o, CacheShape *shape, DibitError *err) {
    size_t n_bytes;
    DibitError why;
    kv->layers = mem_calloc(&kv->memory, (size_t)o->n_layers, sizeof *kv->layers);
    if (!kv->layers) return no_memory(o, err);
    for (int i = 0; i < o->n_layers; i++) {
        Cache *c = &kv->layers[i];
        int r = cache_create(c, shape, &kv->memory, &why);
        if (r == DIBIT_E_MEMORY) return no_memory(o, err);
        if (r != 0) return fail(err, DIBIT_E_ARGUMENT, "%s", why.text);
        kv->n_layers = i + 1;
        shape->scratch_of = &kv->layers[0];
        n_bytes = cache_allocated(c);
        if (!size_add(kv->rows, n_bytes, &kv->rows)) return no_memory(o, err);
        kv->scratch += c->scratch_bytes + sizeof *c;
    }
    return 0;
}

static int create_scratch(DibitKv *kv, const DibitKvOptions *o, DibitError *err) {
    size_t put, attend, n;
    kv->n_put = o->n_batch;
    kv->n_attend = MAX(1, o->n_batch / (o->n_heads / o->n_kv_heads));
    int heads = o->batch * o->n_heads;
    if (!size_mul((size_t)kv->n_put, (size_t)(o->batch * o->n_kv_heads), &put) ||
        !size_mul((size_t)kv->n_attend, (size_t)heads, &attend) ||
        !size_mul(MAX(put, attend), (size_t)o->head_dim * sizeof(float), &n))
        return no_memory(o, err);
    for (int i = 0; i < 2; i++)
        if (!(kv->buf[i] = mem_alloc(&kv->memory, n))) return no_memory(o, err);
    if (ops_create(&kv->ops, &kv->kern, kv->pool, &kv->memory, 1, 32, o->head_dim, heads,
                   o->batch * o->n_kv_heads, o->max_positions, NULL) != 0)
        return no_memory(o, err);
    kv->scratch += 2 * n + ops_bytes(&kv->ops) + sizeof *kv;
    return 0;
}

int dibit_kv_create(DibitKv **out, const DibitKvOptions *opt, DibitError *err) {
    *out = NULL;
    if (!opt) return fail(err, DIBIT_E_ARGUMENT, "no options given");
    const DibitKvOptions o = with_defaults(opt);
    CacheShape shape = { .n_layers = 1 };
    int r = check_options(&o, err);
    if (r == 0) r = find_type("type_k", o.type_k, &shape.type_k, err);
    if (r == 0) r = find_type("type_v", o.type_v, &shape.type_v, err);
    if (r != 0) return r;
    shape.n_kv_heads = o.batch * o.n_kv_heads;
    shape.head_dim = o.head_dim;
    shape.n_ctx = o.max_positions;
    shape.sinks = o.sinks;
    shape.window = o.window;
    shape.n_batch = o.n_batch;
    DibitKv *kv = mem_calloc(&o.memory, 1, sizeof *kv);
    if (!kv) return no_memory(&o, err);
    kv->memory = o.memory;
    kv->batch = o.batch;
    kv->n_kv_heads = o.n_kv_heads;
    kv->n_heads = o.n_heads;
    kv->head_dim = o.head_dim;
    kv->in_hand = -1;
    kern_init(&kv->kern, ~0u);
    r = pool_create(&kv->pool, o.n_threads, &kv->memory, err);
    if (r == 0) r = create_layers(kv, &o, &shape, err);
    if (r == 0) r = create_scratch(kv, &o, err);
    if (r != 0)
        dibit_kv_free(&kv);
    else
        *out = kv;
    return r;
}

void dibit_kv_free(DibitKv **p) {
    DibitKv *kv = p ? *p : NULL;
    if (!kv) return;
    *p = NULL;
    ops_free(&kv->ops);
    mem_free(&kv->memory, kv->buf[0]);
    mem_free(&kv->memory, kv->buf[1]);
    for (int i = kv->n_layers - 1; i >= 0; i--) cache_free(&kv->layers[i]);
    mem_free(&kv->memory, kv->layers);
    pool_free(&kv->pool);
    DibitAllocator memory = kv->memory;
    mem_free(&memory, kv);
}

/* ---- arguments ---- */

/* n arrays [batch, heads, n, head_dim] as a call names them. */
typedef struct Request {
    DibitKv *kv;
    Cache *c;
    int layer, heads, n; /* heads of one sequence */
    const int32_t *positions;
    int first; /* without positions: first, first + 1, ... */
} Request;

static int position(const Request *r, int t) {
    return r->positions ? r->positions[t] : r->first + t;
}

/* How many positions from the t-th on follow each other, at most `most`. */
static int run_length(const Request *r, int t, int most) {
    int m = 1;
    most = MIN(most, r->n - t);
    while (m < most && position(r, t + m) == position(r, t) + m) m++;
    return m;
}

static int check_request(Request *r, const char *what, const int shape[4], DibitError *err) {
    const DibitKv *kv = r->kv;
    if (r->layer < 0 || r->layer >= kv->n_layers)
        return fail(err, DIBIT_E_ARGUMENT, "layer %d: the cache has layers 0..%d", r->layer,
                    kv->n_layers - 1);
    if (!shape)
        return fail(err, DIBIT_E_ARGUMENT, "%s have no shape; give [batch, heads, n, head_dim]",
                    what);
    if (shape[0] != kv->batch || shape[1] != r->heads || shape[2] < 0 || shape[3] != kv->head_dim)
        return fail(err, DIBIT_E_ARGUMENT,
                    "%s of [%d, %d, %d, %d] do not fit; the cache takes [%d, %d, n, %d]", what,
                    shape[0], shape[1], shape[2], shape[3], kv->batch, r->heads, kv->head_dim);
    r->n = shape[2];
    r->c = &kv->layers[r->layer];
    return 0;
}

static int check_position(const Request *r, int64_t p, DibitError *err) {
    int n = r->c->shape.n_ctx;
    if (p >= 0 && p < n) return 0;
    return fail(err, DIBIT_E_CONTEXT, "position %lld is outside the cache, which takes 0..%d",
                (long long)p, n - 1);
}

/* Positions that must be filled already; *least gets the first of them. */
static int check_filled(const Request *r, int *least, DibitError *err) {
    int n_past = r->c->n_past, e;
    *least = n_past;
    if (!r->positions && r->n > n_past)
        return fail(err, DIBIT_E_ARGUMENT, "%d positions are asked for, the layer holds %d", r->n,
                    n_past);
    for (int t = 0; t < r->n; t++) {
        int p = position(r, t);
        if ((e = check_position(r, p, err)) != 0) return e;
        if (p >= n_past)
            return fail(err, DIBIT_E_ARGUMENT, "position %d is empty: the layer holds %d positions",
                        p, n_past);
        *least = MIN(*least, p);
    }
    return 0;
}

/* What a head vector of a type may hold: its largest value or, in the rotated basis where all of it
 * may come together, its length. */
static float largest(int type) {
    return type == KV_F16 ? 65504.0f : type == KV_Q4 ? 5.2e5f : 8.3e6f;
}

static int check_vector(const Request *r, const char *what, const float *x, int i, int t, int type,
                        DibitError *err) {
    int d = r->kv->head_dim;
    float top = 0;
    double sum = 0;
    for (int c = 0; c < d; c++) {
        top = fabsf(x[c]) > top ? fabsf(x[c]) : top;
        sum += (double)x[c] * x[c];
    }
    double size = kv_type(type)->rotate ? sqrt(sum) : (double)top;
    if (size <= (double)largest(type) && sum <= DBL_MAX) return 0;
    for (int c = 0; c < d; c++)
        if (!(fabsf(x[c]) <= FLT_MAX))
            return fail(
                err, DIBIT_E_NUMERIC, "%s is %s at batch %d, head %d, position %d, value %d", what,
                isnan(x[c]) ? "NaN" : "infinite", i / r->heads, i % r->heads, position(r, t), c);
    return fail(err, DIBIT_E_NUMERIC,
                "%s at batch %d, head %d, position %d has the %s %g; %s holds up to %g", what,
                i / r->heads, i % r->heads, position(r, t),
                kv_type(type)->rotate ? "length" : "value", size, kv_type(type)->name,
                (double)largest(type));
}

static int check_values(const Request *r, const char *what, const float *x, int type,
                        DibitError *err) {
    int d = r->kv->head_dim, e;
    if (!x) return fail(err, DIBIT_E_ARGUMENT, "%s: no array given", what);
    for (int i = 0; i < r->kv->batch * r->heads; i++)
        for (int t = 0; t < r->n; t++, x += d)
            if ((e = check_vector(r, what, x, i, t, type, err)) != 0) return e;
    return 0;
}

/* ---- between [batch, heads, n, head_dim] and (n, batch * heads, head_dim) ---- */

static void gather(const Request *r, float *dst, const float *x, int t, int m) {
    size_t d = (size_t)r->kv->head_dim, n = (size_t)r->n, heads;
    heads = (size_t)(r->kv->batch * r->heads);
    for (size_t i = 0; i < (size_t)m; i++)
        for (size_t h = 0; h < heads; h++)
            memcpy(dst + (i * heads + h) * d, x + (h * n + (size_t)t + i) * d, d * sizeof *x);
}

static void scatter(const Request *r, float *x, const float *src, int t, int m) {
    size_t d = (size_t)r->kv->head_dim, n = (size_t)r->n, heads;
    heads = (size_t)(r->kv->batch * r->heads);
    for (size_t i = 0; i < (size_t)m; i++)
        for (size_t h = 0; h < heads; h++)
            memcpy(x + (h * n + (size_t)t + i) * d, src + (i * heads + h) * d, d * sizeof *x);
}

static bool rotated(const Request *r, int side) {
    return kv_type(cache_type(r->c, 0, side))->rotate;
}

static void turn(const Request *r, float *x, int m, bool back) {
    op_rotate(&r->kv->ops, x, m * r->kv->batch * r->heads, r->kv->head_dim, back);
}

/* ---- append ---- */

static int check_order(const Request *r, DibitError *err) {
    int next = r->c->n_past, e;
    if (!r->positions) return check_position(r, (int64_t)next + r->n - 1, err);
    for (int t = 0; t < r->n; t++) {
        int p = r->positions[t];
        if ((e = check_position(r, p, err)) != 0) return e;
        if (p > next)
            return fail(err, DIBIT_E_ARGUMENT, "position %d leaves a gap: the next one is %d", p,
                        next);
        next += p == next;
    }
    return 0;
}

static void put(const Request *r, const float *k, const float *v) {
    DibitKv *kv = r->kv;
    const float *x[2] = { k, v };
    for (int t = 0, m; t < r->n; t += m) {
        int p = position(r, t);
        bool add = p == r->c->n_past;
        m = run_length(r, t, add ? kv->n_put : 1);
        for (int side = 0; side < 2; side++) {
            gather(r, kv->buf[side], x[side], t, m);
            if (rotated(r, side)) turn(r, kv->buf[side], m, false);
        }
        if (!add) {
            cache_replace(r->c, &kv->kern, 0, p, kv->buf[0], kv->buf[1], kv->in_hand == r->layer);
            continue;
        }
        cache_put(r->c, &kv->kern, kv->pool, 0, p, m, kv->buf[0], kv->buf[1]);
        cache_advance(r->c, m);
        kv->in_hand = r->layer;
        kv->from = p;
    }
    assert(!atomic_load(&r->c->nonfinite));
}

int dibit_kv_append(DibitKv *kv, int layer, const int shape[4], const float *k, const float *v,
                    const int32_t *positions, DibitError *err) {
    Request r = { .kv = kv, .layer = layer, .heads = kv->n_kv_heads, .positions = positions };
    int e = check_request(&r, "keys and values", shape, err);
    if (e != 0) return e;
    r.first = r.c->n_past;
    if (r.n == 0) return r.first;
    if ((e = check_order(&r, err)) != 0 ||
        (e = check_values(&r, "the key", k, cache_type(r.c, 0, 0), err)) != 0 ||
        (e = check_values(&r, "the value", v, cache_type(r.c, 0, 1), err)) != 0)
        return e;
    put(&r, k, v);
    return r.c->n_past;
}

/* ---- attend, read ---- */

/* Makes the layer the one in hand for queries from position i on. */
static int take_in_hand(const Request *r, int i, DibitError *err) {
    DibitKv *kv = r->kv;
    int first = cache_first_query(r->c);
    if (!r->c->has_records || (kv->in_hand == r->layer && i >= kv->from)) return 0;
    if (i < first)
        return fail(err, DIBIT_E_ARGUMENT,
                    "a query at position %d reads rows in q8 that are gone; ask for positions from "
                    "%d on, or attend after each append",
                    i, first);
    cache_refresh(r->c, 0, i);
    kv->in_hand = r->layer;
    kv->from = i;
    return 0;
}

static int check_finite(const Request *r, const float *x, int t, int m, DibitError *err) {
    int heads = r->kv->batch * r->heads, d = r->kv->head_dim;
    for (int i = 0; i < m * heads; i++)
        for (int c = 0; c < d; c++, x++)
            if (!(fabsf(*x) <= FLT_MAX))
                return fail(err, DIBIT_E_NUMERIC,
                            "the result of batch %d, head %d, position %d is not finite: its query "
                            "is not, or is too large",
                            i % heads / r->heads, i % r->heads, position(r, t + i / heads));
    return 0;
}

int dibit_kv_attend(DibitKv *kv, int layer, const int shape[4], const float *q,
                    const int32_t *positions, float scale, float *out, DibitError *err) {
    Request r = { .kv = kv, .layer = layer, .heads = kv->n_heads, .positions = positions };
    int least, e = check_request(&r, "queries", shape, err);
    if (e != 0) return e;
    r.first = MAX(0, r.c->n_past - r.n);
    if ((e = check_filled(&r, &least, err)) != 0) return e;
    if (r.n == 0) return 0;
    if (!q || !out) return fail(err, DIBIT_E_ARGUMENT, "queries: no array given");
    if ((e = take_in_hand(&r, least, err)) != 0) return e;
    if (scale == 0) scale = 1 / sqrtf((float)kv->head_dim);
    for (int t = 0, m; t < r.n; t += m) {
        m = run_length(&r, t, kv->n_attend);
        gather(&r, kv->buf[0], q, t, m);
        if (rotated(&r, 0)) turn(&r, kv->buf[0], m, false);
        op_attend(&kv->ops, kv->buf[1], kv->buf[0], r.c, 0, position(&r, t), m,
                  kv->batch * kv->n_heads, scale, 0);
        if ((e = check_finite(&r, kv->buf[1], t, m, err)) != 0) return e;
        if (rotated(&r, 1)) turn(&r, kv->buf[1], m, true);
        scatter(&r, out, kv->buf[1], t, m);
    }
    return 0;
}

/* One head vector as a query at the last position reads it. */
static void decode(const Request *r, float *x, int side, int head, int p) {
    int d = r->kv->head_dim, end = cache_records_end(r->c, 0, r->c->n_past - 1);
    int start = p >= r->c->shape.sinks && p < end ? p - p % KV_BLOCK : p;
    KvView view = cache_view(r->c, 0, side, head, p, start, end);
    if (view.type->bits) {
        kv23_decode(x, view.rows, view.type->bits, p - start, d);
    } else { /* as the only value of a sum */
        const float one = 1;
        memset(x, 0, (size_t)d * sizeof *x);
        view.type->accum(&r->kv->kern, x, &one, &one, 1, 1,
                         view.rows + (size_t)(p - start) * view.row, view.row, 1, d);
    }
    if (rotated(r, side)) basis_rotate(x, d, true);
}

int dibit_kv_read(DibitKv *kv, int layer, const int shape[4], float *k, float *v,
                  const int32_t *positions, DibitError *err) {
    Request r = { .kv = kv, .layer = layer, .heads = kv->n_kv_heads, .positions = positions };
    float *x[2] = { k, v };
    int least, e = check_request(&r, "keys and values", shape, err);
    if (e != 0 || (e = check_filled(&r, &least, err)) != 0) return e;
    if (r.n == 0) return 0;
    if ((e = take_in_hand(&r, r.c->n_past - 1, err)) != 0) return e;
    for (int side = 0; side < 2; side++)
        for (int i = 0; x[side] && i < kv->batch * kv->n_kv_heads; i++)
            for (int t = 0; t < r.n; t++, x[side] += kv->head_dim)
                decode(&r, x[side], side, i, position(&r, t));
    return 0;
}

/* ---- truncate, reset, bytes ---- */

int dibit_kv_truncate(DibitKv *kv, int n, DibitError *err) {
    for (int i = 0; i < kv->n_layers; i++)
        if (n < 0 || n > kv->layers[i].n_past)
            return fail(err, DIBIT_E_ARGUMENT,
                        "%d positions cannot be kept: layer %d holds %d positions", n, i,
                        kv->layers[i].n_past);
    kv->in_hand = -1;
    for (int before = -1; before != n;) { /* until all layers can keep as many */
        before = n;
        for (int i = 0; i < kv->n_layers; i++) n = cache_truncate(&kv->layers[i], n);
    }
    return n;
}

void dibit_kv_reset(DibitKv *kv) {
    kv->in_hand = -1;
    for (int i = 0; i < kv->n_layers; i++) {
        cache_truncate(&kv->layers[i], 0);
        atomic_store(&kv->layers[i].n_zero, 0);
        atomic_store(&kv->layers[i].n_saturated, 0);
    }
}

void dibit_kv_bytes(const DibitKv *kv, DibitKvBytes *out) {
    *out = (DibitKvBytes){ .rows = kv->rows, .scratch = kv->scratch };
    for (int i = 0; i < kv->n_layers; i++) {
        out->n_zero += (uint64_t)atomic_load(&kv->layers[i].n_zero);
        out->n_saturated += (uint64_t)atomic_load(&kv->layers[i].n_saturated);
    }
}
