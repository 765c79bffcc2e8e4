/* ops_cpu.c - the operations of ops.h over the kernels and the thread pool (attention: attend.c).
 * The rule it keeps: an item of work computes whole outputs, each by one kernel call that does not
 * know how many tokens or items there are, so neither threads nor batches change a bit. */
#include "basis.h"
#include "ops.h"
#include "trellis23.h"

#include <assert.h>
#include <string.h>

enum {
    BLOCK = 16,          /* rows of one row block */
    PIECE = 32,          /* groups of a K type that are unpacked at a time: 24 KiB, stays in L1 */
    ITEM_MIN = 16 << 10, /* bytes of weights times tokens of one item of work: about 1.5 us */
    ITEM_MAX = 128 << 10 /* about 12 us */
};

/* How a weight type is multiplied: by float kernels straight from the file, in units of 64 rows
 * (t2, t3), or in row blocks that are already there (s2, s3, packed q4 and q8) or come from `pack`.
 */
typedef struct Route {
    void(*mulf) MULF_ARGS;
    void(*mult) MUL_T_ARGS;
    void(*mul) MUL_ARGS;
    void(*pack) PACK_ARGS;
    size_t group_bytes; /* of a row block, per group */
} Route;

static Route route(const Kern *k, int type) {
    switch (type) {
    case T_F32:
        return (Route){ .mulf = k->mul_f32 };
    case T_F16:
        return (Route){ .mulf = k->mul_f16 };
    case T_BF16:
        return (Route){ .mulf = k->mul_bf16 };
    case T_Q4_0:
        return (Route){ NULL, NULL, k->mul_q4, k->pack_q4, Q4X_BYTES };
    case T_Q8_0:
        return (Route){ NULL, NULL, k->mul_q8, k->pack_q8, Q8X_BYTES };
    case T_Q2_K:
        return (Route){ NULL, NULL, k->mul_kq, k->pack_q2_k, sizeof(KqGroup) };
    case T_Q3_K:
        return (Route){ NULL, NULL, k->mul_kq, k->pack_q3_k, sizeof(KqGroup) };
    case T_Q4_K:
        return (Route){ NULL, NULL, k->mul_kq, k->pack_q4_k, sizeof(KqGroup) };
    case T_Q5_K:
        return (Route){ NULL, NULL, k->mul_kq, k->pack_q5_k, sizeof(KqGroup) };
    case T_Q6_K:
        return (Route){ NULL, NULL, k->mul_kq, k->pack_q6_k, sizeof(KqGroup) };
    case T_TQ2_0:
        return (Route){ NULL, NULL, k->mul_kq, k->pack_tq2_0, sizeof(KqGroup) };
    case T_T2:
        return (Route){ .mult = k->mul_t2 };
    case T_T3:
        return (Route){ .mult = k->mul_t3 };
    case T_S2:
        return (Route){ .mul = k->mul_s2, .group_bytes = s_group_bytes(T_S2) };
    default:
        assert(type == T_S3);
        return (Route){ .mul = k->mul_s3, .group_bytes = s_group_bytes(T_S3) };
    }
}

size_t weight_row_bytes(const Weight *w) {
    return w->cols / (size_t)w->type->block_len * (size_t)w->type->block_bytes;
}

/* ---- scratch ---- */

/* Where each part of Ops lies in its one allocation; total is SIZE_MAX when that wraps. */
typedef struct OpsLayout {
    size_t scale, sum, tile, attend, total;
} OpsLayout;

static bool part(size_t *at, size_t *total, size_t count, size_t n_bytes) {
    *at = *total;
    return size_mul(count, n_bytes, &n_bytes) && size_align(n_bytes, 64, &n_bytes) &&
           size_add(*total, n_bytes, total);
}

static bool layout(Ops *o, OpsLayout *l, size_t threads, int head_dim, int n_heads, int n_kv_heads,
                   int n_ctx) {
    size_t ld, tokens = (size_t)o->max_tokens, tail, q;
    if (!size_align(o->max_cols, 32, &ld)) return false;
    if (!size_mul(ld / 32, Q8X_BYTES, &o->tail_at)) return false;
    o->tail_at = MAX(o->tail_at, PIECE * sizeof(KqGroup));
    if (!size_mul(tokens, T_ROWS * sizeof(float), &tail)) return false;
    if (!size_add(o->tail_at, tail, &o->tile_bytes)) return false;
    if (!size_align(o->tile_bytes, 64, &o->tile_bytes)) return false;
    if (!size_align(attend_scratch(head_dim, n_heads, n_kv_heads, n_ctx), 64, &o->attend_bytes))
        return false;
    l->total = 0;
    return part(&q, &l->total, tokens, ld) && /* q starts at 0 */
           part(&l->scale, &l->total, tokens, ld / 32 * sizeof(float)) &&
           part(&l->sum, &l->total, tokens, ld / 16 * sizeof(int32_t)) &&
           part(&l->tile, &l->total, threads, o->tile_bytes) &&
           part(&l->attend, &l->total, threads, o->attend_bytes);
}

bool ops_size(int n_threads, int max_tokens, size_t max_cols, int head_dim, int n_heads,
              int n_kv_heads, int n_ctx, size_t *n_bytes) {
    Ops o = { .max_tokens = max_tokens, .max_cols = max_cols };
    OpsLayout l;
    if (!layout(&o, &l, (size_t)n_threads, head_dim, n_heads, n_kv_heads, n_ctx)) return false;
    *n_bytes = l.total;
    return true;
}

int ops_create(Ops *o, const Kern *kern, Pool *pool, const DibitAllocator *memory, int max_tokens,
               size_t max_cols, int head_dim, int n_heads, int n_kv_heads, int n_ctx,
               DibitError *err) {
    *o = (Ops){ .kern = kern, .pool = pool, .memory = memory };
    o->max_tokens = max_tokens;
    o->max_cols = max_cols;
    OpsLayout l;
    uint8_t *base = NULL;
    if (layout(o, &l, (size_t)pool_size(pool), head_dim, n_heads, n_kv_heads, n_ctx))
        base = mem_alloc(memory, l.total);
    if (!base)
        return fail(err, DIBIT_E_MEMORY, "no memory for the scratch of %d tokens", max_tokens);
    o->a8.q = (int8_t *)base;
    o->a8.scale = (float *)(base + l.scale);
    o->a8.sum = (int32_t *)(base + l.sum);
    o->tile = base + l.tile;
    o->attend = (float *)(base + l.attend);
    o->n_bytes = l.total;
    return 0;
}

void ops_free(Ops *o) {
    mem_free(o->memory, o->a8.q);
    *o = (Ops){ 0 };
}

size_t ops_bytes(const Ops *o) {
    return o->n_bytes;
}

/* ---- packing at open ---- */

typedef struct PackJob {
    Weight *w;
    Route route;
    size_t block_bytes;
    uint8_t *tmp; /* a row block for each thread, where the data lie in the way; else NULL */
} PackJob;

static void pack_item(void *arg, int item, int thread) {
    const PackJob *j = arg;
    size_t r = (size_t)item * BLOCK, rb = weight_row_bytes(j->w);
    uint8_t *to = j->w->packed + (size_t)item * j->block_bytes;
    uint8_t *by = j->tmp ? j->tmp + (size_t)thread * j->block_bytes : to;
    j->route.pack(by, j->w->data + r * rb, rb, (int)MIN((size_t)BLOCK, j->w->rows - r),
                  (int)(j->w->cols / 32));
    if (j->tmp) memcpy(to, by, j->block_bytes);
}

bool weight_pack_size(const Weight *w, const Kern *kern, size_t *n_bytes) {
    *n_bytes = 0;
    if (w->type->id != T_Q4_0 && w->type->id != T_Q8_0) return true;
    size_t blocks = (w->rows + BLOCK - 1) / BLOCK;
    return size_mul(w->cols / 32, route(kern, w->type->id).group_bytes, n_bytes) &&
           size_mul(blocks, *n_bytes, n_bytes);
}

int weight_pack(Weight *w, const Kern *kern, Pool *pool, bool in_place,
                const DibitAllocator *memory, DibitError *err) {
    if (w->type->id != T_Q4_0 && w->type->id != T_Q8_0) return 0;
    PackJob j = { .w = w, .route = route(kern, w->type->id) };
    size_t n_bytes, tmp_bytes;
    j.block_bytes = w->cols / 32 * j.route.group_bytes;
    bool fits = weight_pack_size(w, kern, &n_bytes) &&
                size_mul(j.block_bytes, (size_t)pool_size(pool), &tmp_bytes);
    uint8_t *p = fits ? mem_alloc(memory, in_place ? tmp_bytes : n_bytes) : NULL;
    if (!p)
        return fail(err, DIBIT_E_MEMORY,
                    "no memory for the interleaved copy of a %zu x %zu matrix; no_repack avoids it",
                    w->rows, w->cols);
    w->packed = in_place ? (uint8_t *)w->data : p;
    w->packed_bytes = in_place ? 0 : n_bytes;
    w->in_place = in_place;
    j.tmp = in_place ? p : NULL;
    pool_run(pool, pack_item, &j, (int)((w->rows + (in_place ? 0 : BLOCK - 1)) / BLOCK));
    if (in_place) mem_free(memory, p);
    return 0;
}

/* Whether row block b is interleaved; the last one has no room for that in place. */
static bool is_packed(const Weight *w, size_t b) {
    return w->packed && (!w->in_place || (b + 1) * BLOCK <= w->rows);
}

/* One row out of an interleaved row block as it was in the file: pack_q4 and pack_q8 backwards. */
static void unpack_row(uint8_t *dst, const Weight *w, size_t r) {
    bool q8 = w->type->id == T_Q8_0;
    size_t group = q8 ? Q8X_BYTES : Q4X_BYTES, n = w->cols / 32, lane = r % BLOCK;
    const uint8_t *p = w->packed + r / BLOCK * n * group;
    for (; n; n--, p += group, dst += w->type->block_bytes) {
        memcpy(dst, p + 2 * lane, 2);
        for (size_t v = 0; q8 && v < 8; v++) memcpy(dst + 2 + 4 * v, p + 32 + 64 * v + 4 * lane, 4);
        for (size_t h = 0; !q8 && h < 2; h++) {
            uint32_t low = load_u32(p + 32 + 64 * h + 4 * lane);
            uint32_t high = load_u32(p + 160 + 64 * h + 4 * lane);
            uint32_t x = (low & 0x0f0f0f0f) | (high << 4 & 0xf0f0f0f0);
            uint32_t y = (low >> 4 & 0x0f0f0f0f) | (high & 0xf0f0f0f0);
            memcpy(dst + 2 + 8 * h, &x, 4);
            memcpy(dst + 6 + 8 * h, &y, 4);
        }
    }
}

void weight_row(float *dst, const Weight *w, size_t r, uint8_t *tmp) {
    if (!w->in_place || !is_packed(w, r / BLOCK)) {
        w->type->decode(dst, w->data, w->rows, w->cols, r);
        return;
    }
    unpack_row(tmp, w, r);
    w->type->decode(dst, tmp, 1, w->cols, 0);
}

/* ---- matrix products ---- */

typedef struct Part {
    const Weight *w;
    Route route;
    float *y;
    size_t ldy, height, n_blocks; /* rows of a block: BLOCK, T_UNIT or T_ROWS */
} Part;

typedef struct MatmulJob {
    Ops *o;
    const float *x;
    int n, n_parts;
    size_t n_blocks, per_item; /* row blocks of all parts; of one item of work */
    Part parts[OPS_MANY];
} MatmulJob;

static A8 a8_from(const A8 *a, size_t input) {
    return (A8){ a->q + input, a->scale + input / 32, a->sum + input / 16, a->ld };
}

/* One row block of a K type: unpacked piece by piece, each used for all tokens. */
static void mul_pieces(const MatmulJob *j, const Part *p, const uint8_t *rows, int n_rows, float *y,
                       size_t ldy, uint8_t *tile) {
    for (int t = 0; t < j->n; t++) memset(y + (size_t)t * ldy, 0, BLOCK * sizeof *y);
    int n_groups = (int)(p->w->cols / 32);
    for (int g = 0; g < n_groups; g += PIECE) {
        int n = MIN(PIECE, n_groups - g);
        size_t skip = (size_t)g * 32 / (size_t)p->w->type->block_len;
        p->route.pack(tile, rows + skip * (size_t)p->w->type->block_bytes, weight_row_bytes(p->w),
                      n_rows, n);
        A8 a = a8_from(&j->o->a8, (size_t)g * 32);
        p->route.mul(y, ldy, tile, NULL, n, &a, j->n);
    }
}

/* y (n, ldy) of the 16 rows of row block b. */
static void mul_block(const MatmulJob *j, const Part *p, size_t b, float *y, size_t ldy,
                      uint8_t *tile) {
    const Weight *w = p->w;
    int n_groups = (int)((w->cols + 31) / 32);
    size_t block_bytes = (size_t)n_groups * p->route.group_bytes;
    if (!p->route.pack) {
        const uint16_t *scales =
            (const uint16_t *)s_row_scales(w->type->id, w->data, w->rows, w->cols) + b * BLOCK;
        p->route.mul(y, ldy, w->data + b * block_bytes, scales, n_groups, &j->o->a8, j->n);
    } else if (is_packed(w, b)) {
        p->route.mul(y, ldy, w->packed + b * block_bytes, NULL, n_groups, &j->o->a8, j->n);
    } else {
        int n_rows = (int)MIN((size_t)BLOCK, w->rows - b * BLOCK);
        const uint8_t *rows = w->data + b * BLOCK * weight_row_bytes(w);
        if (p->route.group_bytes == sizeof(KqGroup)) {
            mul_pieces(j, p, rows, n_rows, y, ldy, tile);
        } else {
            p->route.pack(tile, rows, weight_row_bytes(w), n_rows, n_groups);
            p->route.mul(y, ldy, tile, NULL, n_groups, &j->o->a8, j->n);
        }
    }
}

static void run_block(const MatmulJob *j, const Part *p, size_t b, uint8_t *tile) {
    const Weight *w = p->w;
    size_t r = b * p->height, n_rows = MIN(p->height, w->rows - r), height = p->height;
    float *y = p->y + r, *tail = (float *)(tile + j->o->tail_at);
    if (p->route.mulf) {
        p->route.mulf(y, p->ldy, w->data + r * weight_row_bytes(w), weight_row_bytes(w),
                      (int)n_rows, j->x, w->cols, j->n, (int)w->cols);
        return;
    }
    TrellisRows at;
    if (p->route.mult) {
        at = trellis_rows(w->type->id, w->data, w->rows, w->cols, r);
        height = MIN(height, at.height); /* the last row block may have 64 rows */
    }
    bool whole = n_rows == height; /* kernels write all rows: the last go through a copy */
    float *to = whole ? y : tail;
    size_t ld = whole ? p->ldy : height;
    if (p->route.mult)
        p->route.mult(to, ld, at.codes, at.signs, (int)at.height, (int)height, at.scale,
                      (int)(w->cols / 4), &j->o->a8, j->n);
    else
        mul_block(j, p, b, to, ld, tile);
    for (int t = 0; !whole && t < j->n; t++)
        memcpy(y + (size_t)t * p->ldy, tail + (size_t)t * height, n_rows * sizeof *y);
}

static void matmul_item(void *arg, int item, int thread) {
    const MatmulJob *j = arg;
    const Ops *o = j->o;
    if (o->cancel && atomic_load_explicit(o->cancel, memory_order_relaxed)) return;
    uint8_t *tile = o->tile + (size_t)thread * o->tile_bytes;
    size_t b = (size_t)item * j->per_item, end = MIN(b + j->per_item, j->n_blocks);
    const Part *p = j->parts;
    while (b >= p->n_blocks) {
        b -= p->n_blocks;
        end -= p->n_blocks;
        p++;
    }
    for (; b < end; b++) {
        if (b == p->n_blocks) {
            end -= b;
            b = 0;
            p++;
        }
        run_block(j, p, b, tile);
    }
}

typedef struct RowsJob { /* work per token */
    Ops *o;
    float *dst;
    const float *a, *b;
    const Weight *w;
    const int32_t *ids;
    int n, per_item, width, n_heads, n_rot, halves, pos;
    uint32_t seed;
    float eps;
} RowsJob;

static void quantize_item(void *arg, int item, int thread) {
    (void)thread;
    const RowsJob *j = arg;
    const A8 *a = &j->o->a8;
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++)
        j->o->kern->quantize(a->q + (size_t)t * a->ld, a->scale + (size_t)t * (a->ld / 32),
                             a->sum + (size_t)t * (a->ld / 16), j->a + (size_t)t * (size_t)j->width,
                             j->width);
}

/* The same for t2 and t3: rotated first. */
static void rotate_quantize_item(void *arg, int item, int thread) {
    const RowsJob *j = arg;
    const A8 *a = &j->o->a8;
    float *x = (float *)(j->o->tile + (size_t)thread * j->o->tile_bytes);
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++) {
        j->o->kern->rotate(x, j->a + (size_t)t * (size_t)j->width, j->width, j->seed);
        j->o->kern->quantize_t(a->q + (size_t)t * a->ld, a->scale + (size_t)t * (a->ld / 32),
                               a->sum + (size_t)t * (a->ld / 16), x, j->width);
    }
}

/* Runs fn over n tokens of `width` values; in the calling thread when a dispatch would cost more.
 */
static void run_rows(PoolFn *fn, RowsJob *j, int n, int width) {
    enum { SERIAL = 16384 };
    j->n = n;
    j->width = width;
    j->per_item = MAX(1, SERIAL / 2 / MAX(1, width));
    if ((int64_t)n * width <= SERIAL) j->per_item = n;
    if (n > 0) pool_run(j->o->pool, fn, j, (n + j->per_item - 1) / j->per_item);
}

/* Row blocks of one item: items small enough that threads finish together, large enough that
 * handing them out costs nothing. */
static size_t blocks_per_item(const MatmulJob *j, size_t weight_bytes) {
    size_t n = (size_t)j->n,
           cost = weight_bytes / 4 > SIZE_MAX / (n + 3) ? SIZE_MAX : weight_bytes / 4 * (n + 3);
    size_t items = MIN(cost / ITEM_MIN, 4 * (size_t)pool_size(j->o->pool));
    items = MAX(items, cost / ITEM_MAX);
    items = MAX((size_t)1, MIN(items, j->n_blocks));
    return (j->n_blocks + items - 1) / items;
}

/* What a weight's input must be turned into: float as it is, int8, or int8 rotated by a seed. */
typedef struct Form {
    enum { FORM_FLOAT, FORM_INT8, FORM_ROTATED } kind;
    uint32_t seed;
} Form;

static Form form_of(const Weight *w) {
    if (trellis_bits(w->type->id)) return (Form){ FORM_ROTATED, trellis_seed(w->data) };
    bool wide = w->type->id == T_F32 || w->type->id == T_F16 || w->type->id == T_BF16;
    return (Form){ wide ? FORM_FLOAT : FORM_INT8, 0 };
}

static void add_part(MatmulJob *j, float *y, size_t ldy, const Weight *w) {
    Part *p = &j->parts[j->n_parts++];
    *p = (Part){ w, route(j->o->kern, w->type->id), y, ldy, 0, 0 };
    /* t2, t3: whole row blocks stream best, halves of them keep more threads busy */
    bool tall = w->rows >= 2 * T_ROWS * (size_t)pool_size(j->o->pool);
    p->height = !p->route.mult ? BLOCK : tall ? T_ROWS : T_UNIT;
    p->n_blocks = (w->rows + p->height - 1) / p->height;
    j->n_blocks += p->n_blocks;
}

void op_matmul_many(Ops *o, int n_w, float *const *y, const size_t *ldy, const Weight *const *w,
                    const float *x, int n) {
    assert(n_w <= OPS_MANY && n <= o->max_tokens && w[0]->cols <= o->max_cols);
    uint64_t start = ops_start(o);
    int cols = (int)w[0]->cols;
    unsigned left = (1u << n_w) - 1; /* matrices; a pass for each form of the input */
    for (int first = 0; first < n_w; first++) {
        if (!(left >> first & 1)) continue;
        MatmulJob j = { .o = o, .x = x, .n = n };
        Form form = form_of(w[first]);
        size_t bytes = 0;
        for (int i = first; i < n_w; i++) {
            Form f = form_of(w[i]);
            if (!(left >> i & 1) || f.kind != form.kind || f.seed != form.seed) continue;
            left &= ~(1u << i);
            add_part(&j, y[i], ldy[i], w[i]);
            bytes += w[i]->n_bytes;
        }
        RowsJob q = { .o = o, .a = x, .seed = form.seed };
        o->a8.ld = (w[0]->cols + 31) / 32 * 32;
        if (form.kind == FORM_INT8) run_rows(quantize_item, &q, n, cols);
        if (form.kind == FORM_ROTATED) run_rows(rotate_quantize_item, &q, n, cols);
        j.per_item = blocks_per_item(&j, bytes);
        pool_run(o->pool, matmul_item, &j, (int)((j.n_blocks + j.per_item - 1) / j.per_item));
    }
    ops_stop(o, OPS_MATMUL, start);
}

void op_matmul(Ops *o, float *y, size_t ldy, const Weight *w, const float *x, int n) {
    op_matmul_many(o, 1, &y, &ldy, &w, x, n);
}

/* ---- row by row ---- */

static void rows_item(void *arg, int item, int thread) {
    const RowsJob *j = arg;
    uint8_t *tmp = j->o->tile + (size_t)thread * j->o->tile_bytes;
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++)
        weight_row(j->dst + (size_t)t * j->w->cols, j->w, (size_t)j->ids[t], tmp);
}

void op_rows(Ops *o, float *dst, const Weight *w, const int32_t *ids, int n) {
    RowsJob j = { .o = o, .dst = dst, .w = w, .ids = ids };
    run_rows(rows_item, &j, n, (int)w->cols);
}

static void norm_item(void *arg, int item, int thread) {
    (void)thread;
    const RowsJob *j = arg;
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++) {
        size_t at = (size_t)t * (size_t)j->width;
        j->o->kern->rmsnorm(j->dst + at, j->a + at, j->b, j->width, j->eps);
    }
}

void op_norm(Ops *o, float *dst, const float *x, const float *w, int n, int width, float eps) {
    RowsJob j = { .o = o, .dst = dst, .a = x, .b = w, .eps = eps };
    run_rows(norm_item, &j, n, width);
}

static void rope_item(void *arg, int item, int thread) {
    (void)thread;
    const RowsJob *j = arg;
    int head_dim = j->width / j->n_heads;
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++) {
        const float *cs = j->b + (size_t)(j->pos + t) * (size_t)j->n_rot;
        float *x = j->dst + (size_t)t * (size_t)j->width;
        for (int h = 0; h < j->n_heads; h++)
            j->o->kern->rope(x + (size_t)h * (size_t)head_dim, cs, j->n_rot, j->halves);
    }
}

void op_rope(Ops *o, float *x, int n, int n_heads, int head_dim, int pos, const float *table,
             int n_rot, int halves) {
    RowsJob j = { .o = o, .dst = x, .b = table, .n_heads = n_heads, .n_rot = n_rot };
    j.pos = pos;
    j.halves = halves;
    run_rows(rope_item, &j, n, n_heads * head_dim);
}

static void swiglu_item(void *arg, int item, int thread) {
    (void)thread;
    const RowsJob *j = arg;
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++) {
        size_t at = (size_t)t * (size_t)j->width;
        j->o->kern->swiglu(j->dst + at, j->a + at, j->b + at, j->width);
    }
}

void op_swiglu(Ops *o, float *dst, const float *gate, const float *up, int n, int width) {
    RowsJob j = { .o = o, .dst = dst, .a = gate, .b = up };
    run_rows(swiglu_item, &j, n, width);
}

static void add_item(void *arg, int item, int thread) {
    (void)thread;
    const RowsJob *j = arg;
    for (int t = item * j->per_item; t < MIN(j->n, (item + 1) * j->per_item); t++) {
        size_t at = (size_t)t * (size_t)j->width;
        j->o->kern->add(j->dst + at, j->a + at, j->width);
    }
}

void op_add(Ops *o, float *x, const float *y, int n, int width) {
    RowsJob j = { .o = o, .dst = x, .a = y };
    run_rows(add_item, &j, n, width);
}

void op_add_bias(Ops *o, float *x, const float *bias, int n, int width) {
    for (int t = 0; t < n; t++) o->kern->add(x + (size_t)t * (size_t)width, bias, width);
}

void op_put(Ops *o, Cache *c, int layer, int pos, int n, const float *k, const float *v) {
    uint64_t start = ops_start(o);
    cache_put(c, o->kern, o->pool, layer, pos, n, k, v);
    ops_stop(o, OPS_PUT, start);
}

typedef struct RotateJob {
    float *x;
    int n, head_dim;
    bool back;
} RotateJob;

enum { ROTATE_ITEM = 64 }; /* vectors */

static void rotate_item(void *arg, int item, int thread) {
    const RotateJob *j = arg;
    (void)thread;
    for (int i = item * ROTATE_ITEM; i < MIN(j->n, (item + 1) * ROTATE_ITEM); i++)
        basis_rotate(j->x + (size_t)i * (size_t)j->head_dim, j->head_dim, j->back);
}

void op_rotate(Ops *o, float *x, int n, int head_dim, bool back) {
    RotateJob j = { x, n, head_dim, back };
    pool_run(o->pool, rotate_item, &j, (n + ROTATE_ITEM - 1) / ROTATE_ITEM);
}

typedef struct MapJob {
    const Ops *o;
    float *x;
    int n, n_heads, group, d;
    const HeadMap *map;
} MapJob;

enum { MAP_TOKENS = 16, MAP_ALONE = 1 << 16 }; /* products that are not worth a thread */

/* One head of some tokens. */
static void map_item(void *arg, int item, int thread) {
    const MapJob *j = arg;
    (void)thread;
    int head = item % j->n_heads, first = item / j->n_heads * MAP_TOKENS, d = j->d;
    int n = MIN(MAP_TOKENS, j->n - first), kv = head / j->group;
    size_t ldx = (size_t)j->n_heads * (size_t)d, row = (size_t)d * (j->map->f16 ? 2 : 4);
    float y[MAP_TOKENS * KV_MAX_DIM], *x = j->x + (size_t)first * ldx + (size_t)head * (size_t)d;
    const uint8_t *m = j->map->m + (size_t)kv * (size_t)d * row;
    if (j->map->f16)
        j->o->kern->mul_f16(y, (size_t)d, m, row, d, x, ldx, n, d);
    else
        j->o->kern->mul_f32(y, (size_t)d, m, row, d, x, ldx, n, d);
    for (int t = 0; t < n; t++) {
        if (j->map->bias) j->o->kern->add(y + t * d, j->map->bias + (size_t)kv * (size_t)d, d);
        memcpy(x + (size_t)t * ldx, y + t * d, (size_t)d * sizeof *x);
    }
}

void op_head_map(Ops *o, float *x, int n, int n_heads, int n_kv_heads, int head_dim,
                 const HeadMap *map) {
    MapJob j = { o, x, n, n_heads, n_heads / n_kv_heads, head_dim, map };
    int n_items = n_heads * ((n + MAP_TOKENS - 1) / MAP_TOKENS);
    bool alone = (int64_t)n * n_heads * head_dim * head_dim <= MAP_ALONE;
    pool_run(alone ? NULL : o->pool, map_item, &j, n_items);
}
