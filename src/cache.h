/* cache.h - keys and values of one session. Owns the rows; others append and view.
 * A row is one head of one token of one side (K or V); rows of a layer and head lie in pages of
 * KV_PAGE positions. All memory is there from cache_create on, so a step allocates nothing.
 *
 * The types k2 and k3 are records (kv23.h). Of them the first `sinks` positions and a window of
 * recent ones are kept in q8 besides: query i reads key j in q8 if j < sinks or i / B - j / B <
 * window / B (whole numbers, B = KV_BLOCK), else its record. The rule depends on positions alone,
 * so prefill in any batches, decode and evaluation give the same results. A record is made from
 * the q8 row, B positions before a query needs it. */
#ifndef CACHE_H
#define CACHE_H
#include <stdatomic.h>

#include "base.h"
#include "kern/kern.h"
#include "kv23.h"

#define KV_PAGE       256 /* positions */
#define KV_MAX_LAYERS 1024
#define KV_SINKS      4 /* what dibit.h's zeros mean */
#define KV_WINDOW     64
enum { KV_BEAM = 8, KV_TRIES = 1 }; /* of the encoder of records, see KvEncoder */
#define KV_ROW_Q(d)                                                                                \
    (((size_t)(d) + 2 + 15) & ~(size_t)15) /* bytes of one int8 query, see KvQuery */

/* Queries of one KV head as the score kernels take them: row j from f32 + j * ld, and for the types
 * that multiply integers the same as int8 with a scale each. */
typedef struct KvQuery {
    const float *f32;
    const int8_t *q8;    /* KV_ROW_Q(d) bytes apart */
    const int8_t *lanes; /* the same codes in the order of records: byte 4t + i is i * d / 4 + t */
    const float *scale;
    const int32_t *sum; /* of the codes */
    size_t ld;
    int n;
} KvQuery;

typedef enum KvTypeId { KV_F16, KV_Q8, KV_Q4, KV_K3, KV_K2, KV_N_TYPES } KvTypeId;

/* Row formats: docs/FORMAT.md. A new type is a row in the table of cache.c and its three kernels.
 */
typedef struct KvType {
    const char *name;
    int bits;        /* of a record, or 0: a row for each position */
    bool int8_query; /* score reads q8 and scale, else f32 */
    bool rotate;     /* rows are in the basis of basis.h */
    size_t (*row_bytes)(int head_dim);
    void (*put)(const Kern *kern, uint8_t *row, const float *x, int d); /* NULL for records */
    bool (*finite)(const uint8_t *row, int d); /* what put wrote; NULL likewise */
    /* as score_* and accum_* of kern.h: s[j * lds + p], acc[j * d + c] */
    void (*score)(const Kern *kern, float *s, size_t lds, const KvQuery *q, const uint8_t *k,
                  size_t k_row, int n_pos, int d);
    void (*accum)(const Kern *kern, float *acc, const float *factor, const float *s, size_t lds,
                  int n_q, const uint8_t *v, size_t v_row, int n_pos, int d);
} KvType;
const KvType *kv_type(int id);
int kv_type_by_name(const char *name); /* -1 if unknown */
/* Types of K and V from n characters, "k3" or "k3/k2". False if unknown. */
bool cache_read_types(const char *text, size_t n, int types[2]);
/* Changes types, (n_layers, K and V), of the layers that a text as "0,1=q4;5-7=k3/k2" names. */
int cache_read_layers(const char *text, int n_layers, uint8_t (*types)[2], DibitError *err);

typedef struct CacheShape {
    int n_layers, n_kv_heads, head_dim, n_ctx;
    int type_k, type_v;              /* of all layers but those of: */
    const uint8_t (*layer_types)[2]; /* (n_layers) K and V types, or NULL; copied */
    const float (*weights)[4]; /* (n_layers, K and V, n_kv_heads) KvEncoder.weight, or NULL: ones;
                                  not copied */
    int sinks, window;         /* positions in q8 beside records; window a multiple of KV_BLOCK */
    int n_batch;               /* most positions of one cache_put; 0: 256 */
    bool elsewhere; /* the rows are on a GPU: here positions are counted and nothing else */
    const struct Cache *scratch_of; /* borrows the scratch of that cache, which has this shape; for
                                       caches that are put and attended in turn. NULL: its own */
} CacheShape;

typedef struct CachePage CachePage;

typedef struct Cache {
    CacheShape shape;
    uint8_t *types;   /* (n_layers, 2) */
    bool has_records; /* in any layer */
    int n_past;       /* positions that are filled, in every layer */
    int q8_from;      /* q8 rows of earlier positions are gone: their records are read */
    int ring_from;    /* the window holds q8 rows from here on */
    int n_records;    /* records there are after a restore; INT_MAX: all that are due */
    int n_pages;
    CachePage **pages; /* page p: (n_layers, K then V, n_kv_heads, positions, row bytes) */
    size_t *before[2]; /* (2 n_layers) row bytes of the sides before, records and rows apart */
    int *q8_before;    /* (2 n_layers) sides with records before */
    uint8_t *recent;   /* (sides with records, n_kv_heads, sinks + window, q8 row) */
    uint8_t *fresh;    /* of the layer in hand: (2, n_kv_heads, fresh_len, q8 row) */
    int fresh_from, fresh_len;
    size_t page_total, recent_bytes, scratch_bytes;
    T4Table *table;
    atomic_int nonfinite; /* a row came in with NaN, infinity or more than its type can hold */
    atomic_long n_zero, n_saturated; /* as KvCount */
    const DibitAllocator *memory;
} Cache;

/* Bytes that the rows of n_ctx positions take, window and sinks counted: what cache_allocated()
 * says after cache_create. False when the shape is out of range or that wraps. */
bool cache_bytes(const CacheShape *s, size_t *n_bytes);
/* On failure the cache is empty and cache_free() is fine. */
int cache_create(Cache *c, const CacheShape *s, const DibitAllocator *memory, DibitError *err);
/* A cache like src and with its content; whole pages are shared until one of the two writes there.
 */
int cache_fork(Cache *c, const Cache *src, DibitError *err);
/* Bytes of pages that a fork would share, and of those that are shared. */
size_t cache_forkable(const Cache *c);
size_t cache_shared(const Cache *c);
/* Makes the pages of the first n positions its own. */
int cache_own(Cache *c, int n, DibitError *err);
void cache_free(Cache *c);
/* Whether n more positions fit: DIBIT_E_CONTEXT naming the position when they do not. Makes the
 * pages that they will write its own. */
int cache_reserve(Cache *c, int n, DibitError *err);
/* Keeps the first n positions; returns how many it could keep: fewer where the q8 rows that the
 * next position must read are gone, at most window + B fewer. Those tokens must be computed again.
 */
int cache_truncate(Cache *c, int n_past);
/* After a pass that did not finish: as cache_truncate(c, c->n_past) when its rows may be damaged.
 */
void cache_recover(Cache *c);

/* Rows of one side, of one type and one after another. */
typedef struct KvView {
    const KvType *type;
    const uint8_t *rows;
    size_t row;
} KvView;
int cache_type(const Cache *c, int layer, int side);
/* Where the records that query i reads end; 0 if the layer has none. */
int cache_records_end(const Cache *c, int layer, int i);
/* The rows that hold position p of a side (0: K, 1: V), from position `start` on: p itself, or
 * where p is read as a record (sinks <= p < records_end) the first one of its block of KV_BLOCK.
 * They end with their page and with their kind: sinks, records, window. */
KvView cache_view(const Cache *c, int layer, int side, int head, int p, int start, int records_end);
/* Encodes n tokens' keys and values, (n, n_kv_heads, head_dim) each, at positions pos.. of a layer.
 * The caller raises n_past when all layers are done; op_attend of the layer must come before the
 * next cache_put. */
void cache_put(Cache *c, const Kern *kern, Pool *pool, int layer, int pos, int n, const float *k,
               const float *v);
/* Writes position p < n_past of a layer anew, k and v (n_kv_heads, head_dim): from then on the
 * cache is what it would be had they come in the first place. in_hand: the layer was that of the
 * last cache_put or cache_refresh. Pages must be the cache's own. */
void cache_replace(Cache *c, const Kern *kern, int layer, int p, const float *k, const float *v,
                   bool in_hand);
/* Queries of a layer that no cache_put went before: cache_refresh() makes it the layer in hand for
 * positions i..n_past-1, where i is not below cache_first_query(), whose q8 rows are still there.
 */
int cache_first_query(const Cache *c);
void cache_refresh(Cache *c, int layer, int i);
size_t cache_allocated(const Cache *c);
/* Ends a pass: n more positions are filled. */
void cache_advance(Cache *c, int n);
/* Whether a saved state (the fields of these names) can be one of a cache like this. */
bool cache_can_restore(const Cache *c, int n_past, int q8_from, int ring_from);
/* Takes over the state whose rows cache_each_run() has written. */
void cache_restored(Cache *c, int n_past, int q8_from, int ring_from);
/* All bytes of the first n_past positions in a fixed order, for save and restore: calls fn for each
 * run of rows; a result other than 0 ends it and is returned. */
int cache_each_run(const Cache *c, int n_past, int ring_from,
                   int (*fn)(void *arg, uint8_t *run, size_t n_bytes), void *arg);
#endif
