/* attend.c - attention over the cache. The positions of a query are walked in spans of SPAN, each
 * in blocks of KV_PAGE with online softmax; spans start at absolute positions, begin afresh and are
 * merged in order. So one query's arithmetic depends on its position alone: a tile of many queries,
 * or threads that take a span each, give the same bits.
 *
 * Work: a tile is up to TILE_ROWS query rows of one KV head: all heads of its group for some
 * consecutive tokens, so that a row of the cache is converted once for all of them. A single token
 * over several spans is split by runs of spans, and the partial states are merged after. */
#include "ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { TILE_ROWS = 32, SPAN = 4 * KV_PAGE, RUNS_PER_THREAD = 12, FETCH = 4096 };

/* Online softmax of n_q rows: what is known of each query so far. */
typedef struct State {
    float *acc, *max, *total; /* (n_q, d), (n_q), (n_q) */
} State;

typedef struct Tile {
    float *q, *s, *factor, *scale; /* (rows, d), (rows, KV_PAGE), (rows), (rows) */
    int8_t *q8, *lanes;            /* (rows, KV_ROW_Q(d)), (rows, d) */
    int32_t *sum;                  /* (rows) */
    State now, span;
} Tile;

typedef struct AttendJob {
    Ops *o;
    float *out;
    const float *q;
    const Cache *c;
    int layer, pos, n, n_heads, group, window, tokens_per_tile, n_tiles, first_span, n_spans;
    int n_runs; /* of spans, the items that a KV head is split into */
    float scale;
    float *partials; /* (n_kv_heads, n_spans) states of `group` rows, when split by span */
} AttendJob;

/* ---- scratch: a tile, then the partial states of a split ---- */

static size_t tile_rows(int group) {
    return (size_t)MAX(TILE_ROWS, group);
}

static size_t state_floats(size_t rows, int d) {
    return rows * ((size_t)d + 2);
}

static size_t tile_floats(size_t rows, int d) {
    size_t q8 = rows * (KV_ROW_Q(d) + (size_t)d) / sizeof(float);
    return rows * ((size_t)d + KV_PAGE + 3) + q8 + 2 * state_floats(rows, d);
}

static State state_at(float *p, size_t rows, int d) {
    return (State){ p, p + rows * (size_t)d, p + rows * (size_t)(d + 1) };
}

static Tile tile_at(float *p, size_t rows, int d) {
    Tile t = { .q = p, .s = p + rows * (size_t)d };
    t.q8 = (int8_t *)(t.s + rows * KV_PAGE);
    t.lanes = t.q8 + rows * KV_ROW_Q(d);
    t.sum = (int32_t *)(t.lanes + rows * (size_t)d);
    t.factor = (float *)(t.sum + rows);
    t.scale = t.factor + rows;
    t.now = state_at(t.scale + rows, rows, d);
    t.span = state_at(t.scale + rows + state_floats(rows, d), rows, d);
    return t;
}

size_t attend_scratch(int head_dim, int n_heads, int n_kv_heads, int n_ctx) {
    size_t n_spans = (size_t)n_ctx / SPAN + 1, n;
    size_t tile = tile_floats(tile_rows(n_heads / n_kv_heads), head_dim);
    if (!size_mul(n_spans, state_floats((size_t)n_heads, head_dim), &n) || !size_add(n, tile, &n) ||
        !size_mul(n, sizeof(float), &n))
        return SIZE_MAX;
    return n;
}

static float *scratch_of(const Ops *o, int thread) {
    return (float *)((uint8_t *)o->attend + (size_t)thread * o->attend_bytes);
}

/* ---- one tile ---- */

/* Query rows of tokens first..first+n-1 for one KV head, scaled. */
static void load_queries(const AttendJob *j, Tile *t, int kv_head, int first, int n, bool int8) {
    int d = j->c->shape.head_dim;
    size_t width = (size_t)j->n_heads * (size_t)d, rows = (size_t)j->group * (size_t)d;
    for (int i = 0; i < n; i++) {
        const float *q = j->q + (size_t)(first + i) * width + (size_t)kv_head * rows;
        for (size_t c = 0; c < rows; c++) t->q[(size_t)i * rows + c] = q[c] * j->scale;
    }
    for (int r = 0; int8 && r < n * j->group; r++) {
        int8_t *row = t->q8 + (size_t)r * KV_ROW_Q(d), *lanes = t->lanes + (size_t)r * (size_t)d;
        j->o->kern->kv_put_q8((uint8_t *)row, t->q + (size_t)r * (size_t)d, d);
        t->scale[r] = f16_to_f32(load_u16(row + d));
        int32_t sum = 0;
        for (int c = 0; c < d; c++) sum += row[c];
        t->sum[r] = sum;
        for (int c = 0, nb = d / 4; c < nb; c++) {
            const int8_t of[4] = { row[c], row[nb + c], row[2 * nb + c], row[3 * nb + c] };
            memcpy(lanes + 4 * c, of, sizeof of);
        }
    }
}

static void state_reset(State *s, int rows, int d) {
    memset(s->acc, 0, (size_t)rows * (size_t)d * sizeof *s->acc);
    for (int r = 0; r < rows; r++) {
        s->max[r] = -INFINITY;
        s->total[r] = 0;
    }
}

static int first_visible(const AttendJob *j, int token) {
    return j->window > 0 ? MAX(0, j->pos + token + 1 - j->window) : 0;
}

/* Asks for bytes from..to-1 of a view of n_pos rows. The kernels ask for what is FETCH bytes on. */
static void fetch(const KvView *view, int n_pos, size_t from, size_t to) {
    to = MIN((size_t)n_pos * view->row, to);
    for (; from < to; from += 64) __builtin_prefetch(view->rows + from);
}

/* Scores of p0..p1-1 become weights: of each row only its visible positions from `from` on, else 0.
 */
static void weigh(const AttendJob *j, Tile *t, State *st, int first, int n, int p0, int from,
                  int p1, const KvView *v) {
    for (int i = 0; i < n; i++) {
        int a = MIN(MAX(first_visible(j, first + i), from), p1) - p0;
        int b = MAX(MIN(j->pos + first + i + 1, p1) - p0, a);
        for (int r = i * j->group; r < (i + 1) * j->group; r++) {
            float *s = t->s + (size_t)r * KV_PAGE;
            size_t at = FETCH + (size_t)r * (FETCH / 2); /* memory is idle now */
            fetch(v, p1 - p0, at, at + FETCH / 2);
            memset(s, 0, (size_t)a * sizeof *s);
            memset(s + b, 0, (size_t)(p1 - p0 - b) * sizeof *s);
            t->factor[r] = 1;
            if (b > a) t->factor[r] = j->o->kern->softmax(s + a, b - a, &st->max[r], &st->total[r]);
        }
    }
}

/* Positions p..end-1, all of one span, into a state that was reset: in pieces that end with their
 * page, and where the layer has records with the sinks and with the records. */
static void attend_span(const AttendJob *j, Tile *t, State *st, int kv_head, int first, int n,
                        int p, int end) {
    const Cache *c = j->c;
    const Kern *kern = j->o->kern;
    int d = c->shape.head_dim, rows = n * j->group;
    int records = cache_records_end(c, j->layer, j->pos + first + n - 1);
    const KvQuery q = { t->q, t->q8, t->lanes, t->scale, t->sum, (size_t)d, rows };
    while (p < end) {
        int to = MIN(end, (p / KV_PAGE + 1) * KV_PAGE), p0 = p;
        if (p < MIN(c->shape.sinks, records))
            to = MIN(to, MIN(c->shape.sinks, records));
        else if (p < records)
            to = MIN(to, records), p0 = p - p % KV_BLOCK;
        KvView k = cache_view(c, j->layer, 0, kv_head, p, p0, records);
        KvView v = cache_view(c, j->layer, 1, kv_head, p, p0, records);
        fetch(&v, to - p0, 0, FETCH);
        k.type->score(kern, t->s, KV_PAGE, &q, k.rows, k.row, to - p0, d);
        weigh(j, t, st, first, n, p0, p, to, &v);
        if (to % KV_PAGE == 0 && to < end) { /* the next page, as what it most likely is */
            KvView next = cache_view(c, j->layer, 0, kv_head, to, to, records);
            fetch(&next, end - to, 0, FETCH);
        }
        v.type->accum(kern, st->acc, t->factor, t->s, KV_PAGE, rows, v.rows, v.row, to - p0, d);
        p = to;
    }
}

static void state_merge(const AttendJob *j, State *to, const State *from, int rows) {
    int d = j->c->shape.head_dim;
    for (int r = 0; r < rows; r++) {
        float w = from->max[r], unused = 0, *a = to->acc + (size_t)r * (size_t)d;
        const float *b = from->acc + (size_t)r * (size_t)d;
        float f = j->o->kern->softmax(&w, 1, &to->max[r], &unused);
        to->total[r] = to->total[r] * f + from->total[r] * w;
        for (int i = 0; i < d; i++) a[i] = a[i] * f + b[i] * w;
    }
}

static void store(const AttendJob *j, const State *s, int kv_head, int first, int n) {
    int d = j->c->shape.head_dim;
    size_t width = (size_t)j->n_heads * (size_t)d, rows = (size_t)j->group * (size_t)d;
    for (int r = 0; r < n * j->group; r++) {
        float *out = j->out + (size_t)(first + r / j->group) * width + (size_t)kv_head * rows +
                     (size_t)(r % j->group) * (size_t)d;
        float inverse = 1.0f / s->total[r];
        for (int i = 0; i < d; i++) out[i] = s->acc[(size_t)r * (size_t)d + (size_t)i] * inverse;
    }
}

static bool stopped(const Ops *o) {
    return o->cancel && atomic_load_explicit(o->cancel, memory_order_relaxed);
}

static void tile_item(void *arg, int item, int thread) {
    const AttendJob *j = arg;
    int n_kv = j->c->shape.n_kv_heads, d = j->c->shape.head_dim, kv_head = item % n_kv;
    int tile =
        j->pos / j->tokens_per_tile + j->n_tiles - 1 - item / n_kv; /* the longest come first */
    int first = MAX(tile * j->tokens_per_tile, j->pos) - j->pos;
    int n = MIN((tile + 1) * j->tokens_per_tile - j->pos, j->n) - first, rows = n * j->group;
    int p = first_visible(j, first), end = j->pos + first + n;
    Tile t = tile_at(scratch_of(j->o, thread), tile_rows(j->group), d);
    load_queries(j, &t, kv_head, first, n, kv_type(cache_type(j->c, j->layer, 0))->int8_query);
    state_reset(&t.now, rows, d);
    while (p < end && !stopped(j->o)) {
        int span_end = MIN(end, (p / SPAN + 1) * SPAN);
        state_reset(&t.span, rows, d);
        attend_span(j, &t, &t.span, kv_head, first, n, p, span_end);
        state_merge(j, &t.now, &t.span, rows);
        p = span_end;
    }
    store(j, &t.now, kv_head, first, n);
}

/* ---- one token, split by span ---- */

static State partial(const AttendJob *j, int kv_head, int span) {
    size_t i = (size_t)kv_head * (size_t)j->n_spans + (size_t)span, group = (size_t)j->group;
    int d = j->c->shape.head_dim;
    return state_at(j->partials + i * state_floats(group, d), group, d);
}

/* A run of spans: the queries are loaded once for all. */
static void run_item(void *arg, int item, int thread) {
    const AttendJob *j = arg;
    int kv_head = item / j->n_runs, run = item % j->n_runs, d = j->c->shape.head_dim;
    int span = run * j->n_spans / j->n_runs, last = (run + 1) * j->n_spans / j->n_runs;
    Tile t = tile_at(scratch_of(j->o, thread), tile_rows(j->group), d);
    load_queries(j, &t, kv_head, 0, 1, kv_type(cache_type(j->c, j->layer, 0))->int8_query);
    for (; span < last; span++) {
        int p = MAX(first_visible(j, 0), (j->first_span + span) * SPAN);
        int end = MIN(j->pos + 1, (j->first_span + span + 1) * SPAN);
        State st = partial(j, kv_head, span);
        state_reset(&st, j->group, d);
        attend_span(j, &t, &st, kv_head, 0, 1, p, end);
    }
}

static void merge_item(void *arg, int item, int thread) {
    const AttendJob *j = arg;
    int d = j->c->shape.head_dim;
    Tile t = tile_at(scratch_of(j->o, thread), tile_rows(j->group), d);
    state_reset(&t.now, j->group, d);
    for (int s = 0; s < j->n_spans; s++) {
        State st = partial(j, item, s);
        state_merge(j, &t.now, &st, j->group);
    }
    store(j, &t.now, item, 0, 1);
}

void op_attend(Ops *o, float *out, const float *q, const Cache *c, int layer, int pos, int n,
               int n_heads, float scale, int window) {
    int n_kv = c->shape.n_kv_heads;
    assert(n_heads % n_kv == 0 && pos >= 0 && n >= 0 && n <= c->shape.n_ctx - pos);
    AttendJob j = { .o = o, .out = out, .q = q, .c = c, .layer = layer, .pos = pos, .n = n };
    j.n_heads = n_heads;
    j.group = n_heads / n_kv;
    j.window = window;
    j.scale = scale;
    j.first_span = first_visible(&j, 0) / SPAN;
    j.n_spans = pos / SPAN - j.first_span + 1;
    assert(o->attend_bytes >= attend_scratch(c->shape.head_dim, n_heads, n_kv, pos + n));
    uint64_t start = ops_start(o);
    if (n == 1 && j.n_spans > 1 && pool_size(o->pool) > 1) {
        j.partials = o->attend + tile_floats(tile_rows(j.group), c->shape.head_dim);
        int runs = (RUNS_PER_THREAD * pool_size(o->pool) + n_kv - 1) / n_kv;
        j.n_runs = MIN(runs, j.n_spans);
        pool_run(o->pool, run_item, &j, n_kv * j.n_runs);
        pool_run(o->pool, merge_item, &j, n_kv);
        ops_stop(o, OPS_ATTEND, start);
        return;
    }
    /* tiles begin at multiples of their length and so lie within a block of positions, whose
     * queries read the same records */
    j.tokens_per_tile = KV_BLOCK;
    while (j.tokens_per_tile > 1 && j.tokens_per_tile * j.group > TILE_ROWS) j.tokens_per_tile /= 2;
    j.n_tiles = n ? (pos + n - 1) / j.tokens_per_tile - pos / j.tokens_per_tile + 1 : 0;
    pool_run(o->pool, tile_item, &j, j.n_tiles * n_kv);
    ops_stop(o, OPS_ATTEND, start);
}
