/* cache.c - keys and values of one session: the table of row types and the pages. Owns the rows;
 * rule: a row is written once per position and never moves. */
#include "cache.h"

#include <assert.h>
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

static const KvType types[KV_N_TYPES] = {
    [KV_F16] = { "f16", false, row_f16, put_f16, score_f16, accum_f16 },
    [KV_Q8] = { "q8", true, row_q8, put_q8, score_q8, accum_q8 },
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

/* ---- pages ----------------------------------------------------------------------------------- */

static bool shape_ok(const CacheShape *s) {
    return s->n_layers > 0 && s->n_kv_heads > 0 && s->head_dim > 0 && s->head_dim <= KV_MAX_DIM &&
           s->head_dim % 8 == 0 && s->n_ctx > 0 && s->type_k >= 0 && s->type_k < KV_N_TYPES &&
           s->type_v >= 0 && s->type_v < KV_N_TYPES;
}

static int count_pages(int n_positions) {
    return n_positions / KV_PAGE + (n_positions % KV_PAGE != 0);
}

static bool count_page_bytes(const CacheShape *s, size_t *n_bytes) {
    size_t n =
        kv_type(s->type_k)->row_bytes(s->head_dim) + kv_type(s->type_v)->row_bytes(s->head_dim);
    if (!size_mul(n * KV_PAGE, (size_t)s->n_kv_heads, &n)) return false;
    return size_mul(n, (size_t)s->n_layers, n_bytes);
}

bool cache_bytes(const CacheShape *s, size_t *n_bytes) {
    size_t page;
    return shape_ok(s) && count_page_bytes(s, &page) &&
           size_mul(page, (size_t)count_pages(s->n_ctx), n_bytes);
}

int cache_create(Cache *c, const CacheShape *s, const DibitAllocator *memory, DibitError *err) {
    *c = (Cache){ .shape = *s, .memory = memory };
    size_t total;
    if (!shape_ok(s))
        return fail(
            err, DIBIT_E_UNSUPPORTED,
            "a KV cache of %d layers, %d heads of %d and %d positions: all must be above 0, "
            "the head a multiple of 8 up to %d",
            s->n_layers, s->n_kv_heads, s->head_dim, s->n_ctx, KV_MAX_DIM);
    if (!cache_bytes(s, &total) || !count_page_bytes(s, &c->page_bytes))
        return fail(err, DIBIT_E_MEMORY, "no memory for a KV cache of %d positions; lower -c",
                    s->n_ctx);
    c->k_row = kv_type(s->type_k)->row_bytes(s->head_dim);
    c->v_row = kv_type(s->type_v)->row_bytes(s->head_dim);
    int n = count_pages(s->n_ctx);
    c->pages = mem_calloc(memory, (size_t)n, sizeof *c->pages);
    while (c->pages && c->n_pages < n && (c->pages[c->n_pages] = mem_alloc(memory, c->page_bytes)))
        c->n_pages++;
    if (c->n_pages == n) return 0;
    cache_free(c);
    return fail(err, DIBIT_E_MEMORY,
                "no memory for a KV cache of %zu bytes (%d positions); lower -c or use -ctk q8 "
                "-ctv q8",
                total, s->n_ctx);
}

void cache_free(Cache *c) {
    for (int p = 0; p < c->n_pages; p++) mem_free(c->memory, c->pages[p]);
    mem_free(c->memory, c->pages);
    *c = (Cache){ 0 };
}

int cache_reserve(const Cache *c, int n, DibitError *err) {
    assert(n >= 0);
    if (n <= c->shape.n_ctx - c->n_past) return 0;
    return fail(
        err, DIBIT_E_CONTEXT,
        "%d tokens at position %d do not fit the context of %d; shorten the text or raise -c", n,
        c->n_past, c->shape.n_ctx);
}

void cache_truncate(Cache *c, int n_past) {
    assert(n_past >= 0 && n_past <= c->n_past);
    c->n_past = n_past;
}

size_t cache_allocated(const Cache *c) {
    return (size_t)c->n_pages * c->page_bytes;
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* side 0: K, 1: V */
static uint8_t *row_at(const Cache *c, int side, int layer, int head, int pos) {
    const CacheShape *s = &c->shape;
    assert(layer >= 0 && layer < s->n_layers && head >= 0 && head < s->n_kv_heads);
    assert(pos >= 0 && pos < s->n_ctx);
    size_t k_side = (size_t)s->n_kv_heads * KV_PAGE * c->k_row;
    size_t v_side = (size_t)s->n_kv_heads * KV_PAGE * c->v_row;
    size_t row = (size_t)head * KV_PAGE + (size_t)(pos % KV_PAGE);
    uint8_t *p = c->pages[pos / KV_PAGE] + (size_t)layer * (k_side + v_side);
    return side == 0 ? p + row * c->k_row : p + k_side + row * c->v_row;
}

static int rows_from(const Cache *c, int pos) {
    return MIN(KV_PAGE - pos % KV_PAGE, c->shape.n_ctx - pos);
}

uint8_t *cache_k(const Cache *c, int layer, int head, int pos, int *n) {
    *n = rows_from(c, pos);
    return row_at(c, 0, layer, head, pos);
}

uint8_t *cache_v(const Cache *c, int layer, int head, int pos, int *n) {
    *n = rows_from(c, pos);
    return row_at(c, 1, layer, head, pos);
}

typedef struct PutJob {
    const Cache *c;
    const Kern *kern;
    int layer, pos, n, per_item;
    const float *k, *v;
} PutJob;

static void put_item(void *arg, int item, int thread) {
    (void)thread;
    const PutJob *j = arg;
    const CacheShape *s = &j->c->shape;
    int first = item * j->per_item, end = MIN(j->n, first + j->per_item), d = s->head_dim;
    for (int h = 0; h < s->n_kv_heads; h++)
        for (int t = first; t < end; t++) {
            size_t at = ((size_t)t * (size_t)s->n_kv_heads + (size_t)h) * (size_t)d;
            uint8_t *k = row_at(j->c, 0, j->layer, h, j->pos + t);
            uint8_t *v = row_at(j->c, 1, j->layer, h, j->pos + t);
            kv_type(s->type_k)->put(j->kern, k, j->k + at, d);
            kv_type(s->type_v)->put(j->kern, v, j->v + at, d);
        }
}

void cache_put(Cache *c, const Kern *kern, Pool *pool, int layer, int pos, int n, const float *k,
               const float *v) {
    enum { PER_ITEM = 16 }; /* tokens; fewer are not worth a second thread */
    PutJob j = { c, kern, layer, pos, n, PER_ITEM, k, v };
    assert(pos >= 0 && n >= 0 && n <= c->shape.n_ctx - pos);
    pool_run(pool, put_item, &j, (n + PER_ITEM - 1) / PER_ITEM);
}

int cache_each_run(const Cache *c, int n_past, int (*fn)(void *arg, uint8_t *run, size_t n_bytes),
                   void *arg) {
    assert(n_past >= 0 && n_past <= c->shape.n_ctx);
    for (int layer = 0; layer < c->shape.n_layers; layer++)
        for (int side = 0; side < 2; side++)
            for (int head = 0; head < c->shape.n_kv_heads; head++)
                for (int pos = 0; pos < n_past; pos += KV_PAGE) {
                    size_t n = (size_t)MIN(KV_PAGE, n_past - pos);
                    int r = fn(arg, row_at(c, side, layer, head, pos),
                               n * (side == 0 ? c->k_row : c->v_row));
                    if (r != 0) return r;
                }
    return 0;
}
