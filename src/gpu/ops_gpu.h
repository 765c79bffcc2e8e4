/* ops_gpu.h - the operations of a pass on a GPU: each adds dispatches to a list that is replayed
 * token by token, or batch by batch. Kernels are the *.wgsl files, compiled once for each set of
 * constants; matrices lie in layouts of the GPU's own (docs/GPU.md). Numbers that change from token
 * to token (GPU_STEP_*) are in a buffer that the kernels read.
 *
 * A failure is kept in GpuOps and makes all later calls do nothing: check gpu_ops_error() at the
 * end of a list. */
#ifndef OPS_GPU_H
#define OPS_GPU_H
#include "gpu/gpu.h"
#include "ops.h"

typedef struct GpuShader {
    const char *name, *text;
} GpuShader;
extern const GpuShader gpu_shaders[]; /* every *.wgsl; a NULL name ends it */

enum { GPU_CONSTS = 20 };
typedef struct GpuKernel {
    const char *name;
    int n_consts;
    GpuConst consts[GPU_CONSTS];
    GpuId id;
} GpuKernel;

typedef struct GpuOps {
    Gpu *gpu;
    const GpuCaps *caps;
    DibitAllocator memory;
    GpuKernel *kernels;
    int n_kernels, cap_kernels;
    char *text;     /* of one kernel */
    size_t n_bytes; /* of all buffers made through these calls */
    size_t along;   /* for measuring: rows (t2, t3: fours of them) of a workgroup; 0: as is best */
    int r;          /* the first failure, or 0 */
    DibitError error;
} GpuOps;

int gpu_ops_create(GpuOps *o, Gpu *gpu, const DibitAllocator *memory, DibitError *err);
void gpu_ops_free(GpuOps *o); /* objects belong to the Gpu */
/* What went wrong since the call before, or 0. */
int gpu_ops_error(GpuOps *o, DibitError *err);
GpuId gpu_ops_buffer(GpuOps *o, size_t n_bytes);
/* The whole text of a kernel as it is compiled, for tests; NULL when there is no such name. It
 * belongs to o until the next call. */
const char *gpu_ops_text(GpuOps *o, const char *name);

/* ---- lists ---- */
typedef struct GpuRun {
    GpuId kernel, bind;
    uint32_t x, y;
    int spans; /* y counts the spans of attention up to this position, of at most so many; 0: y */
    int when;
    bool whole; /* for GPU_TOGETHER tokens at a time */
} GpuRun;
enum { GPU_ALWAYS, GPU_ONE_SPAN, GPU_MORE_SPANS };
/* Most tokens of a batch: a block of records, so none falls due within one; and of which a product
 * reads W once, TOKENS of batch.wgsl. */
enum { GPU_BATCH = 16, GPU_TOGETHER = 8 };
typedef struct GpuList {
    GpuRun *runs;
    int n, cap;
    int when;    /* that runs added from now on are done */
    int spans;   /* of those of them that are by span */
    size_t step; /* values from a token's vectors to the next one's in all buffers; 0: one token */
    bool batch;  /* matrices are multiplied with GPU_TOGETHER vectors at a time */
    bool whole;  /* of the runs that are added */
} GpuList;
/* Adds a kernel by name; y 0: by span. Binding i gets ranges[i]. */
void gpu_list_add(GpuOps *o, GpuList *l, const char *name, const GpuConst *consts, int n_consts,
                  const GpuRange *ranges, int n_ranges, uint32_t x, uint32_t y);
void gpu_list_free(GpuOps *o, GpuList *l); /* with its binds */
/* For n tokens from position pos on, of one block of GPU_BATCH. */
void gpu_list_run(const GpuOps *o, const GpuList *l, int pos, int n);

/* ---- matrices ---- */
enum { GPU_JOINED = 4 };
typedef struct GpuPart { /* rows of a matrix that fit the limits of one binding */
    size_t first, rows;
    GpuId buffer;
    GpuRange codes, words,
        row_scales; /* words: scales, c and z, or signs; {0} where there are none */
} GpuPart;
typedef struct GpuMatrix {
    const TypeInfo *type;
    size_t rows, cols, units; /* of a row; chunks for t2 and t3 */
    uint32_t seed;            /* of t2 and t3 */
    GpuPart *parts;
    int n_parts;
    size_t n_bytes;
} GpuMatrix;
bool gpu_has_type(int type); /* whether matrices of this type can be multiplied with */
/* Whether these can be one matrix, their rows one after another. */
bool gpu_can_join(const Weight *const *w, int n_w);
void gpu_matrix(GpuOps *o, GpuMatrix *out, const Weight *const *w, int n_w);
void gpu_matrix_free(GpuOps *o, GpuMatrix *m);

/* ---- operations ---- */
/* Where an input comes from: `a` as it is, RMSNorm of a with weights b, or SwiGLU of a and b. */
typedef struct GpuSource {
    enum { GPU_PLAIN, GPU_NORM, GPU_SWIGLU, GPU_ONE } kind;
    GpuRange a, b; /* b: {0} for GPU_PLAIN and GPU_ONE */
    float eps;
    size_t head, each; /* GPU_ONE: a holds heads of one span of attention, `each` floats apart */
} GpuSource;
/* An input of matrices, in the form they take: int8 with groups or quads, or f32. */
typedef struct GpuInput {
    size_t widest;
    GpuId q, groups, x, y; /* x: f32, and between passes of a rotation; y likewise */
    GpuRange f32;          /* of the present input, for plain types */
    size_t squares;        /* of it: sums that the factor of RMSNorm is still to be made of */
    size_t squares_at;     /* where they lie behind the groups, in bytes */
    float eps;
    GpuSource heads; /* its buffer not 0: gpu_op_matmul_norm() makes the input of this itself */
} GpuInput;
void gpu_input(GpuOps *o, GpuInput *in, size_t widest, size_t n); /* of n tokens */
void gpu_input_free(GpuOps *o, GpuInput *in);
void gpu_op_input(GpuOps *o, GpuList *l, GpuInput *in, const GpuSource *s, const GpuMatrix *m);
bool gpu_int8_input(const GpuMatrix *m);
bool gpu_same_input(const GpuMatrix *a, const GpuMatrix *b); /* whether both take one form */
/* y[at..] = W input, or += W input. gpu_op_input() for m, or for one of its form, went before. In a
 * list of batches in and y have GPU_BATCH vectors, of which more are written than there are tokens.
 */
void gpu_op_matmul(GpuOps *o, GpuList *l, GpuId y, size_t at, const GpuMatrix *m,
                   const GpuInput *in, bool add);
/* The same with what comes behind it, where gpu_can_next(): y += W in, and RMSNorm of the new y as
 * input `out` of n_next matrices; or SwiGLU of a gate and an up matrix that are one. */
bool gpu_can_read_heads(const GpuMatrix *m); /* in->heads, for gpu_op_matmul_norm() alone */
bool gpu_can_next(const GpuMatrix *m, const GpuMatrix *next, int n_next);
void gpu_op_matmul_norm(GpuOps *o, GpuList *l, GpuId y, const GpuMatrix *m, const GpuInput *in,
                        GpuId weights, float eps, GpuInput *out);
void gpu_op_matmul_glu(GpuOps *o, GpuList *l, const GpuMatrix *m, const GpuInput *in,
                       GpuInput *out);

/* Words of the step buffer, written before each pass: first position, end of the records there,
 * what gpu_step_encode() says of the last position, tokens. */
enum {
    GPU_STEP_POS,
    GPU_STEP_RECORDS,
    GPU_STEP_ENCODE,
    GPU_STEP_TOKENS,
    GPU_STEP_WORDS = GPU_STEP_TOKENS + GPU_BATCH
};
/* x = row `token` of the embedding, of a type gpu_can_embed(). */
bool gpu_can_embed(int type);
void gpu_op_embed(GpuOps *o, GpuList *l, GpuId x, const GpuMatrix *m, GpuId step);
/* best = index of the largest of n logits, 0xffffffff where one is not finite. */
void gpu_op_argmax(GpuOps *o, GpuList *l, GpuId best, GpuId logits, GpuId pairs, size_t n);

/* best = the first GPU_TOP of n logits in the order of order_first() in sample.c, Candidates; a
 * logit that is not finite comes first. pairs: two buffers of gpu_top_bytes(). */
enum { GPU_TOP = 64 };
size_t gpu_top_bytes(size_t n);
void gpu_op_top(GpuOps *o, GpuList *l, GpuId best, GpuId logits, const GpuId *pairs, size_t n);

/* Keys or values of a layer: rows as in docs/GPU.md. */
typedef struct GpuKvSide {
    int type; /* KvTypeId */
    GpuId buffer;
    size_t rows, scales, records, signs; /* rows of a head; the others in words */
    size_t n_bytes;
} GpuKvSide;
typedef struct GpuHeads { /* of attention, the same for all layers of a session */
    int n_heads, n_kv_heads, head_dim, n_ctx, n_rot, window; /* window: sliding, 0: none */
    int sinks, recent;                                       /* positions in q8 beside records */
    bool halves;
    float eps;
    GpuId step, turns, query, partial, none; /* none: bound where there is nothing */
} GpuHeads;
bool gpu_has_kv(int type, int head_dim);
/* Of GPU_BATCH tokens. */
size_t gpu_query_bytes(const GpuHeads *h);
size_t gpu_partial_bytes(const GpuHeads *h);
void gpu_kv_side(GpuOps *o, GpuKvSide *s, const GpuHeads *h, int type, bool key);
/* From projections x = (q, k, v) to a query and a row in the cache; bias likewise, norms (2,
 * head_dim), both may be 0. */
void gpu_op_heads(GpuOps *o, GpuList *l, const GpuHeads *h, GpuId x, GpuId bias, GpuId norms,
                  const GpuKvSide *k, const GpuKvSide *v);
/* unmerged: where there is a single span, out is left alone and gpu_one_span() is to be read. */
void gpu_op_attend(GpuOps *o, GpuList *l, const GpuHeads *h, GpuId out, const GpuKvSide *k,
                   const GpuKvSide *v, bool unmerged);
GpuSource gpu_one_span(const GpuHeads *h);
/* GPU_STEP_ENCODE of a token: at the end of a block of positions the block that leaves the window
 * with it is due, 1 + its first position without a record; else 0. */
uint32_t gpu_step_encode(const Cache *c, int pos);
/* The records that are due, from position GPU_STEP_ENCODE - 1 on to the end of its block: run after
 * a token where that is not 0. Nothing reads them before the next token. weights: (n_kv_heads, 4).
 * Nothing for other types. */
void gpu_op_encode(GpuOps *o, GpuList *l, const GpuHeads *h, GpuId weights, const GpuKvSide *s,
                   bool key);
#endif
