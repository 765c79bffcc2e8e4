/* cache.c - keys and values of one session: the table of row types, the pages, and beside records
 * the q8 rows of sinks and window. Rule: pages never move; what a query reads depends on positions
 * alone. */
#include "cache.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <string.h>

/* ---- types ----------------------------------------------------------------------------------- */

static size_t row_f16(int d) {
    return 2 * (size_t)d;
}

static size_t row_q8(int d) {
    return (size_t)d + 2;
}

static void put_f16(const Kern *kern, uint8_t *row, const float *x, int d) {
    kern->kv_put_f16(row, x, d);
}

static void put_q8(const Kern *kern, uint8_t *row, const float *x, int d) {
    kern->kv_put_q8(row, x, d);
}

static void score_f16(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                      size_t k_row, int n_pos, int d) {
    kern->score_f16(s, lds, q->f32, q->ld, q->n, k, k_row, n_pos, d);
}

static void score_q8(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                     size_t k_row, int n_pos, int d) {
    kern->score_q8(s, lds, q->q8, KV_ROW_Q(d), q->scale, q->n, k, k_row, n_pos, d);
}

static void accum_f16(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                      int n_q, const uint8_t *v, size_t v_row, int n_pos, int d) {
    kern->accum_f16(acc, (size_t)d, factor, s, lds, n_q, v, v_row, n_pos, d);
}

static void accum_q8(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_row, int n_pos, int d) {
    kern->accum_q8(acc, (size_t)d, factor, s, lds, n_q, v, v_row, n_pos, d);
}

static size_t row_q4(int d) { /* a scale for each 32, the last group may be shorter */
    return (size_t)d / 2 + 2 * (size_t)((d + 31) / 32);
}

static size_t row_k2(int d) {
    return kv_record_bytes(2, d);
}

static size_t row_k3(int d) {
    return kv_record_bytes(3, d);
}

static void put_q4(const Kern *kern, uint8_t *row, const float *x, int d) {
    kern->kv_put_q4(row, x, d);
}

static void score_q4(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                     size_t k_row, int n_pos, int d) {
    kern->score_q4(s, lds, q->q8, KV_ROW_Q(d), q->scale, q->n, k, k_row, n_pos, d);
}

static void score_k2(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                     size_t k_row, int n_pos, int d) {
    (void)k_row;
    kern->score_k2(s, lds, q->lanes, (size_t)d, q->scale, q->sum, q->n, k, n_pos, d);
}

static void score_k3(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                     size_t k_row, int n_pos, int d) {
    (void)k_row;
    kern->score_k3(s, lds, q->lanes, (size_t)d, q->scale, q->sum, q->n, k, n_pos, d);
}

static void accum_q4(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_row, int n_pos, int d) {
    kern->accum_q4(acc, (size_t)d, factor, s, lds, n_q, v, v_row, n_pos, d);
}

static void accum_k2(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_row, int n_pos, int d) {
    (void)v_row;
    kern->accum_k2(acc, (size_t)d, factor, s, lds, n_q, v, n_pos, d);
}

static void accum_k3(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_row, int n_pos, int d) {
    (void)v_row;
    kern->accum_k3(acc, (size_t)d, factor, s, lds, n_q, v, n_pos, d);
}

/* Rows say themselves what they could not hold: such halves are NaN. */
static bool halves_finite(const uint8_t *p, int n) {
    bool bad = false;
    for (int i = 0; i < n; i++) bad |= (load_u16(p + 2 * i) & 0x7c00) == 0x7c00;
    return !bad;
}

static bool finite_f16(const uint8_t *row, int d) {
    return halves_finite(row, d);
}

static bool finite_q8(const uint8_t *row, int d) {
    return halves_finite(row + d, 1);
}

static bool finite_q4(const uint8_t *row, int d) {
    return halves_finite(row + d / 2, (d + 31) / 32);
}

static const KvType types[KV_N_TYPES] = {
    [KV_F16] = { "f16", 0, false, false, row_f16, put_f16, finite_f16, score_f16, accum_f16 },
    [KV_Q8] = { "q8", 0, true, false, row_q8, put_q8, finite_q8, score_q8, accum_q8 },
    [KV_Q4] = { "q4", 0, true, true, row_q4, put_q4, finite_q4, score_q4, accum_q4 },
    [KV_K3] = { "k3", 3, true, true, row_k3, NULL, NULL, score_k3, accum_k3 },
    [KV_K2] = { "k2", 2, true, true, row_k2, NULL, NULL, score_k2, accum_k2 },
};

const KvType *kv_type(int id) {
    assert(id >= 0 && id < KV_N_TYPES);
    return &types[id];
}

int kv_type_by_name(const char *name) {
    for (int i = 0; i < KV_N_TYPES; i++)
        if (strcmp(types[i].name, name) == 0) return i;
    return -1;
}

/* ---- shape ----------------------------------------------------------------------------------- */

struct CachePage {
    atomic_int refs;
};
enum { PAGE_HEAD = 64 };

static uint8_t *page_data(const CachePage *p) {
    return (uint8_t *)p + PAGE_HEAD;
}

static int side_type(const CacheShape *s, int layer, int side) {
    if (s->layer_types) return s->layer_types[layer][side];
    return side == 0 ? s->type_k : s->type_v;
}

static const char *shape_fault(const CacheShape *s) {
    if (s->n_layers <= 0 || s->n_kv_heads <= 0 || s->n_ctx <= 0 || s->n_batch < 0)
        return "layers, heads and positions must be above 0";
    if (s->n_layers > KV_MAX_LAYERS) return "at most 1024 layers are supported";
    if (s->head_dim <= 0 || s->head_dim > KV_MAX_DIM || s->head_dim % 8 != 0)
        return "the head dimension must be a multiple of 8 up to 256";
    if (s->sinks < 0 || s->sinks > KV_PAGE || s->window < 0 || s->window % KV_BLOCK != 0)
        return "sinks must be 0 to 256, the window a multiple of 16";
    for (int i = 0; i < 2 * s->n_layers; i++) {
        int t = side_type(s, i / 2, i % 2);
        if (t < 0 || t >= KV_N_TYPES) return "unknown type";
        if (types[t].bits &&
            (s->head_dim % 16 != 0 || s->head_dim < 32)) /* 8 steps for the scale */
            return "k2 and k3 need a head dimension that is a multiple of 16, at least 32";
    }
    return NULL;
}

static int up_to_block(int n) {
    return n > INT_MAX - KV_BLOCK ? INT_MAX / KV_BLOCK * KV_BLOCK
                                  : (n + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
}

/* Positions that have a record: the last `window` never leave it. */
static int record_positions(const CacheShape *s) {
    return MAX(0, up_to_block(s->n_ctx) - s->window);
}

static int count_pages(int n_positions) {
    return n_positions / KV_PAGE + (n_positions % KV_PAGE != 0);
}

static int page_len(int n_positions, int page) {
    return MIN(KV_PAGE, MAX(0, n_positions - page * KV_PAGE));
}

/* Row bytes of all sides: of records, of rows; and the number of sides with records. */
static void sum_sides(const CacheShape *s, size_t sum[2], size_t *n_records) {
    sum[0] = sum[1] = *n_records = 0;
    for (int i = 0; i < 2 * s->n_layers; i++) {
        const KvType *t = &types[side_type(s, i / 2, i % 2)];
        sum[t->bits ? 0 : 1] += t->row_bytes(s->head_dim);
        *n_records += t->bits != 0;
    }
}

static bool count_bytes(const CacheShape *s, size_t *pages, size_t *recent) {
    size_t sum[2], sides, a, b, heads = (size_t)s->n_kv_heads;
    sum_sides(s, sum, &sides);
    return size_mul(sum[0], (size_t)record_positions(s), &a) &&
           size_mul(sum[1], (size_t)s->n_ctx, &b) && size_add(a, b, &a) &&
           size_mul(a, heads, pages) &&
           size_mul(sides * ((size_t)s->sinks + (size_t)s->window), row_q8(s->head_dim), &a) &&
           size_mul(a, heads, recent);
}

bool cache_bytes(const CacheShape *s, size_t *n_bytes) {
    size_t pages, recent;
    return !shape_fault(s) && count_bytes(s, &pages, &recent) && size_add(pages, recent, n_bytes);
}

int cache_type(const Cache *c, int layer, int side) {
    return c->types[2 * layer + side];
}

/* ---- create, fork, free ------------------------------------------------------------------------
 */

static size_t page_bytes(const Cache *c, int page) {
    size_t sum[2], sides;
    sum_sides(&c->shape, sum, &sides);
    return (size_t)c->shape.n_kv_heads *
           (sum[0] * (size_t)page_len(record_positions(&c->shape), page) +
            sum[1] * (size_t)page_len(c->shape.n_ctx, page));
}

static CachePage *page_create(const Cache *c, int page) {
    size_t n;
    CachePage *p = size_add(page_bytes(c, page), PAGE_HEAD, &n) ? mem_alloc(c->memory, n) : NULL;
    if (p) atomic_init(&p->refs, 1);
    return p;
}

static void page_release(const Cache *c, CachePage *p) {
    if (p && atomic_fetch_sub(&p->refs, 1) == 1) mem_free(c->memory, p);
}

/* Everything but the pages. */
static bool create_frame(Cache *c) {
    const CacheShape *s = &c->shape;
    size_t n = 2 * (size_t)s->n_layers, fresh;
    c->n_pages = s->elsewhere ? 0 : count_pages(s->n_ctx);
    c->pages = mem_calloc(c->memory, (size_t)c->n_pages, sizeof(CachePage *));
    c->types = mem_alloc(c->memory, n);
    c->before[0] = mem_calloc(c->memory, n, sizeof(size_t));
    c->before[1] = mem_calloc(c->memory, n, sizeof(size_t));
    c->q8_before = mem_calloc(c->memory, n, sizeof(int));
    if (!c->pages || !c->types || !c->before[0] || !c->before[1] || !c->q8_before) return false;
    for (size_t i = 0; i < n; i++) c->types[i] = (uint8_t)side_type(s, (int)i / 2, (int)i % 2);
    for (size_t i = 0; i < n; i++) {
        const KvType *t = &types[c->types[i]];
        size_t row = t->row_bytes(s->head_dim);
        c->has_records |= t->bits != 0;
        if (i + 1 == n) break;
        c->before[0][i + 1] = c->before[0][i] + (t->bits ? row : 0);
        c->before[1][i + 1] = c->before[1][i] + (t->bits ? 0 : row);
        c->q8_before[i + 1] = c->q8_before[i] + (t->bits != 0);
    }
    c->shape.layer_types = (const uint8_t(*)[2])c->types;
    if (!c->has_records || s->elsewhere) return true;
    c->fresh_len = s->window + KV_BLOCK + (s->n_batch ? s->n_batch : 256);
    if (!size_mul((size_t)c->fresh_len * 2, (size_t)s->n_kv_heads, &fresh) ||
        !size_mul(fresh, row_q8(s->head_dim), &fresh))
        return false;
    c->recent = mem_calloc(c->memory, c->recent_bytes, 1);
    if (s->scratch_of) {
        c->fresh = s->scratch_of->fresh;
        c->table = s->scratch_of->table;
        return c->recent != NULL;
    }
    c->fresh = mem_alloc(c->memory, fresh);
    c->table = mem_alloc(c->memory, sizeof *c->table);
    c->scratch_bytes = fresh + sizeof *c->table;
    if (c->table) t4_table(*c->table);
    return c->recent && c->fresh && c->table;
}

int cache_create(Cache *c, const CacheShape *s, const DibitAllocator *memory, DibitError *err) {
    *c = (Cache){ .shape = *s, .memory = memory, .n_records = INT_MAX };
    const char *fault = shape_fault(s);
    if (fault)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "a KV cache of %d layers, %d heads of %d and %d positions: %s", s->n_layers,
                    s->n_kv_heads, s->head_dim, s->n_ctx, fault);
    if (!count_bytes(s, &c->page_total, &c->recent_bytes))
        return fail(err, DIBIT_E_MEMORY, "no memory for a KV cache of %d positions; lower -c",
                    s->n_ctx);
    if (s->elsewhere) c->page_total = c->recent_bytes = 0;
    bool ok = create_frame(c);
    for (int p = 0; ok && p < c->n_pages; p++) ok = (c->pages[p] = page_create(c, p)) != NULL;
    if (ok) return 0;
    size_t total = c->page_total + c->recent_bytes;
    cache_free(c);
    return fail(
        err, DIBIT_E_MEMORY,
        "no memory for a KV cache of %zu bytes (%d positions); lower -c or use smaller types "
        "(-ctk k3 -ctv k2)",
        total, s->n_ctx);
}

static int pages_in_use(const Cache *c) {
    return count_pages(c->n_past);
}

int cache_fork(Cache *c, const Cache *src, DibitError *err) {
    *c = (Cache){ .shape = src->shape, .memory = src->memory };
    c->shape.scratch_of = NULL;
    c->page_total = src->page_total;
    c->recent_bytes = src->recent_bytes;
    bool ok = create_frame(c);
    for (int p = 0; ok && p < c->n_pages; p++) {
        if (p < pages_in_use(src)) {
            c->pages[p] = src->pages[p];
            atomic_fetch_add(&c->pages[p]->refs, 1);
        } else {
            ok = (c->pages[p] = page_create(c, p)) != NULL;
        }
    }
    if (!ok) {
        cache_free(c);
        return fail(err, DIBIT_E_MEMORY, "no memory for a copy of the KV cache");
    }
    if (c->recent) memcpy(c->recent, src->recent, c->recent_bytes);
    c->n_past = src->n_past;
    c->q8_from = src->q8_from;
    c->ring_from = src->ring_from;
    c->n_records = src->n_records;
    atomic_store(&c->n_zero, atomic_load(&src->n_zero));
    atomic_store(&c->n_saturated, atomic_load(&src->n_saturated));
    return 0;
}

size_t cache_forkable(const Cache *c) {
    size_t n = 0;
    for (int p = 0; p < MIN(pages_in_use(c), c->n_pages); p++) n += page_bytes(c, p);
    return n;
}

size_t cache_shared(const Cache *c) {
    size_t n = 0;
    for (int p = 0; p < c->n_pages; p++)
        if (atomic_load(&c->pages[p]->refs) > 1) n += page_bytes(c, p);
    return n;
}

void cache_free(Cache *c) {
    for (int p = 0; c->pages && p < c->n_pages; p++) page_release(c, c->pages[p]);
    mem_free(c->memory, c->pages);
    mem_free(c->memory, c->types);
    mem_free(c->memory, c->before[0]);
    mem_free(c->memory, c->before[1]);
    mem_free(c->memory, c->q8_before);
    mem_free(c->memory, c->recent);
    if (!c->shape.scratch_of) {
        mem_free(c->memory, c->fresh);
        mem_free(c->memory, c->table);
    }
    *c = (Cache){ 0 };
}

size_t cache_allocated(const Cache *c) {
    return c->page_total + c->recent_bytes;
}

/* ---- positions ------------------------------------------------------------------------------- */

/* The first position that query i reads in q8 for its closeness. */
static int window_start(const Cache *c, int i) {
    int w = c->shape.window;
    return w ? MAX(0, (i / KV_BLOCK - w / KV_BLOCK + 1) * KV_BLOCK) : i;
}

/* Records that exist when n positions are filled: the next block of the window has them already. */
static int records_done(const Cache *c, int n) {
    int w = c->shape.window;
    return MIN(record_positions(&c->shape), w ? MAX(0, n - w + KV_BLOCK) : n);
}

static bool layer_has_records(const Cache *c, int layer) {
    return types[cache_type(c, layer, 0)].bits || types[cache_type(c, layer, 1)].bits;
}

/* Records that a saved cache of n positions has: what its last query could read, and those of q8
 * rows that are gone. The others can be made from the window. */
static int records_saved(const Cache *c, int n, int ring_from) {
    return n == 0 ? 0 : c->shape.window ? MAX(window_start(c, n - 1), ring_from) : n;
}

int cache_records_end(const Cache *c, int layer, int i) {
    if (!layer_has_records(c, layer)) return 0;
    if (!c->shape.window) return i + 1;
    return MIN(i + 1, MAX(window_start(c, i), c->q8_from));
}

/* Makes pages first..end-1 its own. A page with one owner cannot get another but from this thread.
 */
static int own_pages(Cache *c, int first, int end, DibitError *err) {
    for (int p = first; p < MIN(end, c->n_pages); p++) {
        CachePage *old = c->pages[p];
        if (atomic_load(&old->refs) == 1) continue;
        CachePage *own = page_create(c, p);
        if (!own) return fail(err, DIBIT_E_MEMORY, "no memory for a page of the KV cache");
        memcpy(page_data(own), page_data(old), page_bytes(c, p));
        c->pages[p] = own;
        page_release(c, old);
    }
    return 0;
}

int cache_own(Cache *c, int n, DibitError *err) {
    return own_pages(c, 0, count_pages(n), err);
}

int cache_reserve(Cache *c, int n, DibitError *err) {
    assert(n >= 0);
    if (n > c->shape.n_ctx - c->n_past)
        return fail(err, DIBIT_E_CONTEXT,
                    "%d tokens at position %d do not fit the context of %d; shorten the text or "
                    "raise -c",
                    n, c->n_past, c->shape.n_ctx);
    int first = MIN(c->n_past, MIN(records_done(c, c->n_past), c->n_records)) / KV_PAGE;
    return n > 0 ? own_pages(c, first, count_pages(c->n_past + n), err) : 0;
}

int cache_truncate(Cache *c, int n) {
    assert(n >= 0 && n <= c->n_past);
    int from = window_start(c, n); /* what position n reads in q8, none of which may be gone */
    bool kept = n == c->n_past || !c->has_records || !c->shape.window ||
                from >= MAX(c->q8_from, c->ring_from);
    c->n_past = kept ? n : from;
    c->q8_from = kept ? MIN(c->q8_from, n) : from;
    c->ring_from = kept ? MIN(c->ring_from, n) : from;
    return c->n_past;
}

void cache_recover(Cache *c) {
    atomic_store(&c->nonfinite, 0);
    if (!c->has_records || !c->shape.window) return;
    c->n_past = MAX(window_start(c, c->n_past), MIN(c->q8_from, c->n_past));
    c->n_past = MIN(c->n_past, c->n_records);
    c->q8_from = c->ring_from = c->n_past;
}

void cache_advance(Cache *c, int n) {
    c->n_past += n;
    c->n_records = INT_MAX;
    if (c->has_records && c->shape.window)
        c->ring_from = MAX(c->ring_from, c->n_past - c->shape.window);
}

bool cache_can_restore(const Cache *c, int n_past, int q8_from, int ring_from) {
    return q8_from >= 0 && q8_from <= ring_from && ring_from <= n_past &&
           n_past <= c->shape.n_ctx &&
           (!c->has_records || records_saved(c, n_past, ring_from) <= record_positions(&c->shape));
}

void cache_restored(Cache *c, int n_past, int q8_from, int ring_from) {
    c->n_past = n_past;
    c->q8_from = q8_from;
    c->ring_from = ring_from;
    c->n_records = records_saved(c, n_past, ring_from);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* Row of a side without records; of one with, the block when pos is a multiple of KV_BLOCK. */
static uint8_t *row_at(const Cache *c, int side, int layer, int head, int pos) {
    const CacheShape *s = &c->shape;
    assert(layer >= 0 && layer < s->n_layers && head >= 0 && head < s->n_kv_heads);
    int i = 2 * layer + side, page = pos / KV_PAGE;
    const KvType *t = &types[c->types[i]];
    int n_records = record_positions(s), n = t->bits ? n_records : s->n_ctx;
    assert(pos >= 0 && pos < n);
    size_t at = c->before[0][i] * (size_t)page_len(n_records, page) +
                c->before[1][i] * (size_t)page_len(s->n_ctx, page);
    size_t row = (size_t)head * (size_t)page_len(n, page) + (size_t)(pos % KV_PAGE);
    return page_data(c->pages[page]) + at * (size_t)s->n_kv_heads + row * t->row_bytes(s->head_dim);
}

/* q8 rows of a side with records: its sinks, then the window as a ring. */
static uint8_t *recent_at(const Cache *c, int side, int layer, int head) {
    const CacheShape *s = &c->shape;
    size_t i = (size_t)c->q8_before[2 * layer + side] * (size_t)s->n_kv_heads + (size_t)head;
    return c->recent + i * (size_t)(s->sinks + s->window) * row_q8(s->head_dim);
}

static uint8_t *fresh_at(const Cache *c, int side, int head, int pos) {
    size_t i = (size_t)(side * c->shape.n_kv_heads + head) * (size_t)c->fresh_len;
    assert(pos >= c->fresh_from && pos - c->fresh_from < c->fresh_len);
    return c->fresh + (i + (size_t)(pos - c->fresh_from)) * row_q8(c->shape.head_dim);
}

KvView cache_view(const Cache *c, int layer, int side, int head, int p, int start,
                  int records_end) {
    int d = c->shape.head_dim;
    const KvType *t = &types[cache_type(c, layer, side)];
    if (!t->bits) return (KvView){ t, row_at(c, side, layer, head, start), t->row_bytes(d) };
    const KvType *q8 = &types[KV_Q8];
    if (p < MIN(c->shape.sinks, records_end))
        return (KvView){ q8, recent_at(c, side, layer, head) + (size_t)p * row_q8(d), row_q8(d) };
    if (p < records_end) return (KvView){ t, row_at(c, side, layer, head, start), t->row_bytes(d) };
    return (KvView){ q8, fresh_at(c, side, head, p), row_q8(d) };
}

typedef struct PutJob {
    Cache *c;
    const Kern *kern;
    int layer, pos, n, n_chunks;
    const float *x[2];
} PutJob;

enum { CHUNK = 16 }; /* positions of one item */

static const float *input(const PutJob *j, int side, int head, int t) {
    const CacheShape *s = &j->c->shape;
    return j->x[side] + ((size_t)t * (size_t)s->n_kv_heads + (size_t)head) * (size_t)s->head_dim;
}

static void put_row(Cache *c, const Kern *kern, int type, uint8_t *row, const float *x) {
    types[type].put(kern, row, x, c->shape.head_dim);
    if (!types[type].finite(row, c->shape.head_dim)) atomic_store(&c->nonfinite, 1);
}

/* The window before pos and the new rows, in order, and what of them the window keeps. */
static void put_recent(const PutJob *j, int side, int head) {
    Cache *c = j->c;
    int w = c->shape.window, end = j->pos + j->n;
    size_t row = row_q8(c->shape.head_dim);
    uint8_t *sinks = recent_at(c, side, j->layer, head),
            *ring = sinks + (size_t)c->shape.sinks * row;
    for (int p = MAX(c->fresh_from, c->q8_from); p < j->pos; p++)
        memcpy(fresh_at(c, side, head, p), ring + (size_t)(p % w) * row, row);
    for (int p = j->pos; p < end; p++) {
        uint8_t *r = fresh_at(c, side, head, p);
        put_row(c, j->kern, KV_Q8, r, input(j, side, head, p - j->pos));
        if (p < c->shape.sinks) memcpy(sinks + (size_t)p * row, r, row);
    }
    for (int p = MAX(j->pos, end - w); p < end; p++)
        memcpy(ring + (size_t)(p % w) * row, fresh_at(c, side, head, p), row);
}

/* The record of position p from its q8 row. */
static void put_record(Cache *c, const Kern *kern, int layer, int side, int head, int p,
                       const uint8_t *row, KvCount *count) {
    int d = c->shape.head_dim, bits = types[cache_type(c, layer, side)].bits;
    uint8_t *block = row_at(c, side, layer, head, p - p % KV_BLOCK);
    float x[KV_MAX_DIM], scale = f16_to_f32(load_u16(row + d));
    if (!isfinite(scale)) {
        atomic_store(&c->nonfinite, 1);
        scale = 0;
    }
    for (int i = 0; i < d; i++) x[i] = (float)(int8_t)row[i] * scale;
    KvEncoder e = { bits, KV_BEAM, KV_TRIES, { 1, 1, 1, 1 }, c->table, kern };
    if (c->shape.weights)
        memcpy(e.weight, c->shape.weights[(2 * layer + side) * c->shape.n_kv_heads + head],
               sizeof e.weight);
    kv23_encode(&e, block, p % KV_BLOCK, x, d, count);
}

/* The next record of a side; the first of a block clears it, since all 16 are read. */
static void add_record(const PutJob *j, int side, int head, int p, KvCount *count) {
    Cache *c = j->c;
    int bits = types[cache_type(c, j->layer, side)].bits;
    if (p % KV_BLOCK == 0)
        memset(row_at(c, side, j->layer, head, p), 0,
               KV_BLOCK * kv_record_bytes(bits, c->shape.head_dim));
    put_record(c, j->kern, j->layer, side, head, p, fresh_at(c, side, head, p), count);
}

static void count_records(Cache *c, const KvCount *count) {
    if (count->n_zero) atomic_fetch_add(&c->n_zero, (long)count->n_zero);
    if (count->n_saturated) atomic_fetch_add(&c->n_saturated, (long)count->n_saturated);
}

static void recent_item(void *arg, int item, int thread) {
    const PutJob *j = arg;
    int side = item % 2, head = item / 2;
    (void)thread;
    if (types[cache_type(j->c, j->layer, side)].bits) put_recent(j, side, head);
}

static void put_item(void *arg, int item, int thread) {
    const PutJob *j = arg;
    Cache *c = j->c;
    int side = item % 2, head = item / 2 / j->n_chunks, chunk = item / 2 % j->n_chunks;
    int type = cache_type(c, j->layer, side), first = j->pos, end = j->pos + j->n;
    bool records = types[type].bits != 0;
    KvCount count = { 0 };
    (void)thread;
    if (records) {
        first = MAX(MIN(records_done(c, j->pos), c->n_records), c->q8_from);
        end = records_done(c, end);
    }
    int block = first / CHUNK + chunk; /* a block of records belongs to one item */
    first = MAX(first, block * CHUNK);
    end = MIN(end, (block + 1) * CHUNK);
    for (int p = first; p < end; p++) {
        if (records)
            add_record(j, side, head, p, &count);
        else
            put_row(c, j->kern, type, row_at(c, side, j->layer, head, p),
                    input(j, side, head, p - j->pos));
    }
    count_records(c, &count);
}

void cache_put(Cache *c, const Kern *kern, Pool *pool, int layer, int pos, int n, const float *k,
               const float *v) {
    PutJob j = { c, kern, layer, pos, n, (n + CHUNK - 1) / CHUNK + 2, { k, v } };
    assert(pos >= 0 && n >= 0 && n <= c->shape.n_ctx - pos);
    int heads = c->shape.n_kv_heads;
    if (layer_has_records(c, layer)) {
        c->fresh_from = MIN(window_start(c, pos), c->n_records);
        assert(pos + n - c->fresh_from <= c->fresh_len);
        pool_run(n < CHUNK ? NULL : pool, recent_item, &j, 2 * heads);
    }
    pool_run(n < CHUNK && !c->has_records ? NULL : pool, put_item, &j, 2 * heads * j.n_chunks);
}

/* A side with records: the new q8 row wherever there is one of this position, and the record. */
static void replace_recent(Cache *c, const Kern *kern, int layer, int side, int head, int p,
                           const float *x, bool in_hand) {
    uint8_t q8[KV_MAX_DIM + 2], *sinks = recent_at(c, side, layer, head);
    size_t row = row_q8(c->shape.head_dim);
    int n_sinks = c->shape.sinks, w = c->shape.window;
    KvCount count = { 0 };
    put_row(c, kern, KV_Q8, q8, x);
    if (p < n_sinks) memcpy(sinks + (size_t)p * row, q8, row);
    if (w && p >= c->ring_from) memcpy(sinks + (size_t)(n_sinks + p % w) * row, q8, row);
    if (in_hand && p >= c->fresh_from) memcpy(fresh_at(c, side, head, p), q8, row);
    if (p < MAX(records_done(c, c->n_past), c->q8_from))
        put_record(c, kern, layer, side, head, p, q8, &count);
    count_records(c, &count);
}

void cache_replace(Cache *c, const Kern *kern, int layer, int p, const float *k, const float *v,
                   bool in_hand) {
    const PutJob j = { c, kern, layer, p, 1, 1, { k, v } };
    assert(p >= 0 && p < c->n_past);
    for (int i = 0; i < 2 * c->shape.n_kv_heads; i++) {
        int side = i % 2, head = i / 2;
        int type = cache_type(c, layer, side);
        const float *x = input(&j, side, head, 0);
        if (types[type].bits)
            replace_recent(c, kern, layer, side, head, p, x, in_hand);
        else
            put_row(c, kern, type, row_at(c, side, layer, head, p), x);
    }
}

int cache_first_query(const Cache *c) {
    int w = c->shape.window;
    if (!c->has_records || w == 0 || c->q8_from >= c->ring_from) return 0;
    return up_to_block(c->ring_from) + w - KV_BLOCK;
}

void cache_refresh(Cache *c, int layer, int i) {
    if (!layer_has_records(c, layer) || c->shape.window == 0) return;
    size_t row = row_q8(c->shape.head_dim);
    assert(i >= cache_first_query(c));
    c->fresh_from = MAX(window_start(c, i), c->q8_from);
    for (int h = 0; h < 2 * c->shape.n_kv_heads; h++) {
        int side = h % 2, head = h / 2;
        if (!types[cache_type(c, layer, side)].bits) continue;
        const uint8_t *ring = recent_at(c, side, layer, head) + (size_t)c->shape.sinks * row;
        for (int p = c->fresh_from; p < c->n_past; p++)
            memcpy(fresh_at(c, side, head, p), ring + (size_t)(p % c->shape.window) * row, row);
    }
}

int cache_each_run(const Cache *c, int n_past, int ring_from,
                   int (*fn)(void *arg, uint8_t *run, size_t n_bytes), void *arg) {
    const CacheShape *s = &c->shape;
    assert(n_past >= 0 && n_past <= s->n_ctx);
    for (int i = 0; i < 2 * s->n_layers; i++)
        for (int head = 0; head < s->n_kv_heads; head++) {
            const KvType *t = &types[c->types[i]];
            int n = t->bits ? up_to_block(records_saved(c, n_past, ring_from)) : n_past, r = 0;
            size_t row = t->row_bytes(s->head_dim);
            for (int p = 0; p < n && r == 0; p += KV_PAGE)
                r = fn(arg, s->elsewhere ? NULL : row_at(c, i % 2, i / 2, head, p),
                       (size_t)MIN(KV_PAGE, n - p) * row);
            if (r == 0 && t->bits && s->sinks + s->window > 0)
                r = fn(arg, s->elsewhere ? NULL : recent_at(c, i % 2, i / 2, head),
                       (size_t)(s->sinks + s->window) * row_q8(s->head_dim));
            if (r != 0) return r;
        }
    return 0;
}
