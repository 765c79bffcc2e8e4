/* cache.h - keys and values of one session. Owns the rows; others append and view.
 * A row is one head of one token of one side; rows of a layer and head lie in pages of KV_PAGE
 * positions, so that the cache grows without moving. K and V have types of their own. */
#ifndef CACHE_H
#define CACHE_H
#include "base.h"
#include "kern/kern.h"

#define KV_PAGE 256 /* positions */

typedef enum KvTypeId { KV_F16, KV_Q8, KV_N_TYPES } KvTypeId;

/* Row formats: f16: d halves. q8: d int8 codes, then one f16 scale (d + 2 bytes). */
typedef struct KvType {
    const char *name;
    size_t (*row_bytes)(int head_dim);
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
    int n_pages;         /* allocated so far */
    uint8_t *
        *pages; /* page p: (n_layers, 2, n_kv_heads, KV_PAGE, row bytes): K side, then V side */
    const DibitAllocator *memory;
} Cache;

/* Bytes a cache of n_ctx positions will take, page rounding included. False when that wraps. */
bool cache_bytes(const CacheShape *s, size_t *n_bytes);
int cache_create(Cache *c, const CacheShape *s, const DibitAllocator *memory, DibitError *err);
void cache_free(Cache *c);
/* Makes room for n more positions, all of it allocated up front when cache_create was given n_ctx.
 * Fails with DIBIT_E_CONTEXT naming the position when they do not fit. */
int cache_reserve(Cache *c, int n, DibitError *err);
void cache_truncate(Cache *c, int n_past);
/* Rows of one layer and head from position pos on: the pointer, and in *n how many lie one after
 * another (row bytes apart). */
uint8_t *cache_k(const Cache *c, int layer, int head, int pos, int *n);
uint8_t *cache_v(const Cache *c, int layer, int head, int pos, int *n);
/* Encodes n tokens' keys and values, (n, n_kv_heads, head_dim) each, at positions pos.. of a layer.
 */
void cache_put(Cache *c, const Kern *kern, Pool *pool, int layer, int pos, int n, const float *k,
               const float *v);
size_t cache_allocated(const Cache *c);
/* All bytes of the filled positions in a fixed order, for save and restore: calls fn for each run
 * of rows. */
int cache_each_run(const Cache *c, int n_past, int (*fn)(void *arg, uint8_t *run, size_t n_bytes),
                   void *arg);
#endif
