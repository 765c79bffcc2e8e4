/* cache.h - keys and values of one session. Owns the rows; others append and view.
 * A row is one head of one token of one side; rows of a layer and head lie in pages of KV_PAGE
 * positions. K and V have types of their own. All pages are there from cache_create on, so a step
 * allocates nothing. */
#ifndef CACHE_H
#define CACHE_H
#include "base.h"
#include "kern/kern.h"

#define KV_PAGE    256 /* positions */
#define KV_MAX_DIM 256 /* head_dim: a multiple of 8 up to this */
#define KV_ROW_Q(d)                                                                                \
    (((size_t)(d) + 2 + 15) & ~(size_t)15) /* bytes of one int8 query, see KvQuery */

/* Queries of one KV head as the score kernels take them: row j from f32 + j * ld, and for the types
 * that multiply integers the same as int8 with a scale each. */
typedef struct KvQuery {
    const float *f32;
    const int8_t *q8; /* KV_ROW_Q(d) bytes apart */
    const float *scale;
    size_t ld;
    int n;
} KvQuery;

typedef enum KvTypeId { KV_F16, KV_Q8, KV_N_TYPES } KvTypeId;

/* Row formats: f16: d halves. q8: d int8 codes, then one f16 scale (d + 2 bytes).
 * A new type is a row in the table of cache.c and its three kernels. */
typedef struct KvType {
    const char *name;
    bool int8_query; /* score reads q8 and scale, else f32 */
    size_t (*row_bytes)(int head_dim);
    void (*put)(const Kern *kern, uint8_t *row, const float *x, int d);
    /* as score_* and accum_* of kern.h: s[j * lds + p], acc[j * d + c] */
    void (*score)(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                  size_t k_row, int n_pos, int d);
    void (*accum)(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                  int n_q, const uint8_t *v, size_t v_row, int n_pos, int d);
} KvType;
const KvType *kv_type(int id);
int kv_type_by_name(const char *name); /* -1 if unknown */

typedef struct CacheShape {
    int n_layers, n_kv_heads, head_dim, n_ctx;
    int type_k, type_v;
} CacheShape;

typedef struct Cache {
    CacheShape shape;
    size_t k_row, v_row; /* bytes */
    int n_past;          /* positions that are filled, in every layer */
    int n_pages;
    size_t page_bytes;
    /* page p: (n_layers, K then V, n_kv_heads, KV_PAGE, row bytes) */
    uint8_t **pages;
    const DibitAllocator *memory;
} Cache;

/* Bytes the rows of n_ctx positions will take, page rounding included: what cache_allocated() says
 * after cache_create. False when the shape is out of range or that wraps. */
bool cache_bytes(const CacheShape *s, size_t *n_bytes);
/* On failure the cache is empty and cache_free() is fine. */
int cache_create(Cache *c, const CacheShape *s, const DibitAllocator *memory, DibitError *err);
void cache_free(Cache *c);
/* Whether n more positions fit: DIBIT_E_CONTEXT naming the position when they do not. */
int cache_reserve(const Cache *c, int n, DibitError *err);
void cache_truncate(Cache *c, int n_past);
/* Rows of one layer and head from position pos on: the pointer, and in *n how many lie one after
 * another (row bytes apart). */
uint8_t *cache_k(const Cache *c, int layer, int head, int pos, int *n);
uint8_t *cache_v(const Cache *c, int layer, int head, int pos, int *n);
/* Encodes n tokens' keys and values, (n, n_kv_heads, head_dim) each, at positions pos.. of a layer.
 * The caller raises n_past when all layers are done. */
void cache_put(Cache *c, const Kern *kern, Pool *pool, int layer, int pos, int n, const float *k,
               const float *v);
size_t cache_allocated(const Cache *c);
/* All bytes of the first n_past positions in a fixed order, for save and restore: calls fn for each
 * run of rows; a result other than 0 ends it and is returned. */
int cache_each_run(const Cache *c, int n_past, int (*fn)(void *arg, uint8_t *run, size_t n_bytes),
                   void *arg);
#endif
