/* ops.h - the operations forward() is written in; ops_cpu.c does them over the kernels and the
 * thread pool. Matrices of activations are (n_tokens, width) row by row. All scratch lives in Ops,
 * sized at create: a step allocates nothing. Results do not depend on the number of threads or on
 * how tokens are batched. */
#ifndef OPS_H
#define OPS_H
#include <stdatomic.h>

#include "base.h"
#include "cache.h"
#include "codec.h"
#include "kern/kern.h"

/* A weight matrix as the operations use it. */
typedef struct Weight {
    const TypeInfo *type;
    size_t rows, cols;
    const uint8_t *data; /* as in the file, n_bytes */
    size_t n_bytes;
    uint8_t *packed; /* q4, q8 interleaved at open (owned), or NULL */
    size_t packed_bytes;
    bool in_place; /* packed is data: the whole row blocks are interleaved there, the rest is not */
} Weight;

typedef struct Ops {
    const Kern *kern;
    Pool *pool;
    const DibitAllocator *memory;
    int max_tokens;  /* of one call */
    size_t max_cols; /* widest input of a matmul */
    A8 a8;           /* the quantised input of the current matmul */
    uint8_t *tile;   /* per thread, tile_bytes each: one unpacked row block, then the results of
                        one tail block (max_tokens, 16) */
    size_t tile_bytes, tail_at;
    float *attend; /* per thread scratch of op_attend: thread i has the attend_bytes from
                      (uint8_t *)attend + i * attend_bytes */
    size_t attend_bytes, n_bytes; /* n_bytes: of all of the above */
    const atomic_int *cancel; /* may be NULL; once set, operations may leave their work undone */
    bool timed;               /* whether operations add their time to ns */
    uint64_t ns[3];           /* by OPS_MATMUL, ... */
} Ops;
enum { OPS_MATMUL, OPS_ATTEND, OPS_PUT };

/* Around an operation: t = ops_start(o); ...; ops_stop(o, OPS_MATMUL, t). */
static inline uint64_t ops_start(const Ops *o) {
    return o->timed ? clock_ns() : 0;
}
static inline void ops_stop(Ops *o, int kind, uint64_t start) {
    if (o->timed) o->ns[kind] += clock_ns() - start;
}

/* Bytes of scratch that one thread of op_attend needs (attend.c); ops_create rounds them up to a
 * multiple of 64. */
size_t attend_scratch(int head_dim, int n_heads, int n_kv_heads, int n_ctx);

int ops_create(Ops *o, const Kern *kern, Pool *pool, const DibitAllocator *memory, int max_tokens,
               size_t max_cols, int head_dim, int n_heads, int n_kv_heads, int n_ctx,
               DibitError *err);
/* Bytes that ops_create() will ask for with a pool of n_threads. False when that wraps. */
bool ops_size(int n_threads, int max_tokens, size_t max_cols, int head_dim, int n_heads,
              int n_kv_heads, int n_ctx, size_t *n_bytes);
void ops_free(Ops *o);
size_t ops_bytes(const Ops *o);

/* Bytes of the interleaved copy of a q4 or q8 matrix, 0 for other types. False when that wraps. */
bool weight_pack_size(const Weight *w, const Kern *kern, size_t *n_bytes);
/* Makes it, or with in_place interleaves the data themselves, which must be writable then. */
int weight_pack(Weight *w, const Kern *kern, Pool *pool, bool in_place,
                const DibitAllocator *memory, DibitError *err);
/* Row r as numbers; tmp: bytes of a row. */
void weight_row(float *dst, const Weight *w, size_t r, uint8_t *tmp);
size_t weight_row_bytes(const Weight *w); /* of types whose rows lie by themselves in the file */

/* y (n, ldy) gets W x: y[t * ldy + r]. */
void op_matmul(Ops *o, float *y, size_t ldy, const Weight *w, const float *x, int n);
/* Up to OPS_MANY matrices with the same input and number of columns, one pass over the pool: y[i]
 * (n, ldy[i]). The input is quantised once for all weights that take it in the same form: as it is
 * (f32, f16, bf16), int8, or int8 rotated by the same seed (t2, t3). */
enum { OPS_MANY = 4 };
void op_matmul_many(Ops *o, int n_w, float *const *y, const size_t *ldy, const Weight *const *w,
                    const float *x, int n);
void op_rows(Ops *o, float *dst, const Weight *w, const int32_t *ids,
             int n); /* embedding look-up, (n, cols) */
void op_norm(Ops *o, float *dst, const float *x, const float *w, int n, int width, float eps);
/* Rotates heads: x is (n, n_heads, head_dim); token t has position pos + t; table (n_ctx, n_rot):
 * row p holds n_rot/2 cosines, then n_rot/2 sines. */
void op_rope(Ops *o, float *x, int n, int n_heads, int head_dim, int pos, const float *table,
             int n_rot, int halves);
/* Rotates n head vectors (n, head_dim) in place, forth or back: basis.h. */
void op_rotate(Ops *o, float *x, int n, int head_dim, bool back);
/* cache_put() with the kernels and threads of o. */
void op_put(Ops *o, Cache *c, int layer, int pos, int n, const float *k, const float *v);
/* A calibrated basis: y = M x + bias for a head vector x, a matrix for each KV head. */
typedef struct HeadMap {
    const uint8_t *m;  /* (n_kv_heads, head_dim, head_dim), or NULL: there is none */
    const float *bias; /* (n_kv_heads, head_dim), or NULL: 0 */
    bool f16;          /* m's type; else f32 */
} HeadMap;
/* Maps x (n, n_heads, head_dim) in place; KV head h has the heads h * n_heads / n_kv_heads.. */
void op_head_map(Ops *o, float *x, int n, int n_heads, int n_kv_heads, int head_dim,
                 const HeadMap *map);
/* Attention of n new tokens, already in the cache at positions pos..pos+n-1, over everything before
 * and including each: out and q are (n, n_heads, head_dim). window > 0: only the last `window`
 * positions. The cache is walked in blocks of KV_PAGE positions with online softmax, blocks in
 * order. */
void op_attend(Ops *o, float *out, const float *q, const Cache *c, int layer, int pos, int n,
               int n_heads, float scale, int window);
void op_swiglu(Ops *o, float *dst, const float *gate, const float *up, int n, int width);
void op_add(Ops *o, float *x, const float *y, int n, int width);
void op_add_bias(Ops *o, float *x, const float *bias, int n,
                 int width); /* bias (width) on every row */
#endif
