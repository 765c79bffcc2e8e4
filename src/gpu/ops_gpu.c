/* ops_gpu.c - kernels by name and constants, lists of dispatches, and the operations but for the
 * layout of matrices (matrix_gpu.c) and attention (attend_gpu.c). */
#include "gpu/ops_gpu.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "trellis23.h"

enum { TEXT_BYTES = 48 << 10 };

static uint32_t pieces(size_t n, size_t each) {
    return (uint32_t)((n + each - 1) / each);
}

/* ---- kernels ---- */

int gpu_ops_create(GpuOps *o, Gpu *gpu, const DibitAllocator *memory, DibitError *err) {
    *o = (GpuOps){ .gpu = gpu, .caps = gpu_caps(gpu) };
    if (memory) o->memory = *memory;
    o->text = mem_alloc(&o->memory, TEXT_BYTES);
    return o->text ? 0 : fail(err, DIBIT_E_MEMORY, "no memory for GPU kernels");
}

void gpu_ops_free(GpuOps *o) {
    for (int i = 0; i < o->n_kernels; i++) gpu_free(o->gpu, o->kernels[i].id);
    mem_free(&o->memory, o->kernels);
    mem_free(&o->memory, o->text);
    *o = (GpuOps){ 0 };
}

int gpu_ops_error(GpuOps *o, DibitError *err) {
    int r = o->r;
    if (r != 0 && err) *err = o->error;
    o->r = 0;
    return r;
}

static void failed(GpuOps *o) {
    o->r = o->error.code;
}

GpuId gpu_ops_buffer(GpuOps *o, size_t n_bytes) {
    if (o->r != 0) return 0;
    n_bytes = (n_bytes + 255) & ~(size_t)255; /* kernels may read whole vectors */
    GpuId id = gpu_buffer(o->gpu, n_bytes, &o->error);
    if (!id) failed(o);
    o->n_bytes += id ? n_bytes : 0;
    return id;
}

/* Which files make up a kernel, in order; common.wgsl comes before all. */
static const struct {
    const char *name, *parts[5];
} kernels[] = {
    { "norm", { "source", "norm" } },
    { "quant", { "source", "quant" } },
    { "rotate", { "source", "rotate" } },
    { "quant_t", { "quant_t" } },
    { "turn_quant", { "turn_quant" } },
    { "mul_q4", { "mul_int8", "mul_q4", "mul", "mul_y" } },
    { "mul_q8", { "mul_int8", "mul_q8", "mul", "mul_y" } },
    { "mul_s", { "mul_int8", "mul_s", "mul", "mul_y" } },
    { "mul_f", { "mul_f", "mul", "mul_y" } },
    { "next_q4", { "mul_int8", "mul_q4", "mul", "mul_next" } },
    { "next_q8", { "mul_int8", "mul_q8", "mul", "mul_next" } },
    { "next_s", { "mul_int8", "mul_s", "mul", "mul_next" } },
    { "heads_q4", { "mul_heads", "mul_q4", "mul", "mul_next" } },
    { "heads_q8", { "mul_heads", "mul_q8", "mul", "mul_next" } },
    { "heads_s", { "mul_heads", "mul_s", "mul", "mul_next" } },
    { "mul_t", { "tiles", "mul_t" } },
    { "batch_q4", { "mul_int8", "mul_q4", "batch" } },
    { "batch_q8", { "mul_int8", "mul_q8", "batch" } },
    { "batch_s", { "mul_int8", "mul_s", "batch" } },
    { "batch_f", { "mul_f", "batch" } },
    { "batch_t", { "tiles", "batch_t" } },
    { "heads", { "basis", "heads" } },
    { "attend", { "records", "attend_k", "attend_v", "attend" } },
    { "merge", { "basis", "merge" } },
    { "encode", { "records", "encode" } },
    { "embed", { "embed" } },
    { "argmax", { "order", "argmax" } },
    { "topk", { "order", "topk" } },
};

static const char *shader(const char *name) {
    const GpuShader *s = gpu_shaders;
    while (s->name && strcmp(s->name, name) != 0) s++;
    return s->text;
}

/* The sum of four products of signed bytes, where the language has it and where not. */
static const char dot_native[] = "fn idot(a:u32,b:u32)->i32{return dot4I8Packed(a,b);}\n";
static const char dot_plain[] =
    "fn idot(a:u32,b:u32)->i32{\n"
    "let x=bitcast<vec4<i32>>(vec4<u32>(a<<24u,a<<16u,a<<8u,a))>>vec4<u32>(24u);\n"
    "let y=bitcast<vec4<i32>>(vec4<u32>(b<<24u,b<<16u,b<<8u,b))>>vec4<u32>(24u);\n"
    "return dot(x,y);}\n";

const char *gpu_ops_text(GpuOps *o, const char *name) {
    for (size_t i = 0; i < ARRAY_LEN(kernels); i++) {
        if (strcmp(kernels[i].name, name) != 0) continue;
        int n = snprintf(o->text, TEXT_BYTES, "%s%s", o->caps->dot4 ? dot_native : dot_plain,
                         shader("common"));
        for (const char *const *p = kernels[i].parts; *p && n < TEXT_BYTES; p++)
            n += snprintf(o->text + n, (size_t)(TEXT_BYTES - n), "%s", shader(*p));
        return n < TEXT_BYTES ? o->text : NULL;
    }
    return NULL;
}

typedef struct Consts {
    GpuConst at[GPU_CONSTS];
    int n;
} Consts;

static bool same_consts(const GpuKernel *k, const GpuConst *c, int n) {
    if (k->n_consts != n) return false;
    for (int i = 0; i < n; i++)
        if (k->consts[i].value != c[i].value || strcmp(k->consts[i].name, c[i].name) != 0)
            return false;
    return true;
}

static GpuId kernel(GpuOps *o, const char *name, const GpuConst *c, int n) {
    for (int i = 0; i < o->n_kernels; i++)
        if (strcmp(o->kernels[i].name, name) == 0 && same_consts(&o->kernels[i], c, n))
            return o->kernels[i].id;
    if (o->n_kernels == o->cap_kernels) {
        int cap = 2 * o->cap_kernels + 32;
        GpuKernel *more = mem_calloc(&o->memory, (size_t)cap, sizeof *more);
        if (!more) {
            fail(&o->error, DIBIT_E_MEMORY, "no memory for GPU kernels");
            return 0;
        }
        if (o->n_kernels) memcpy(more, o->kernels, (size_t)o->n_kernels * sizeof *more);
        mem_free(&o->memory, o->kernels);
        o->kernels = more;
        o->cap_kernels = cap;
    }
    GpuKernel *k = &o->kernels[o->n_kernels];
    *k = (GpuKernel){ .name = name, .n_consts = n };
    memcpy(k->consts, c, (size_t)n * sizeof *c);
    k->id = gpu_kernel(o->gpu, name, gpu_ops_text(o, name), c, n, &o->error);
    if (k->id) o->n_kernels++;
    return k->id;
}

/* ---- lists ---- */

void gpu_list_free(GpuOps *o, GpuList *l) {
    for (int i = 0; i < l->n; i++) gpu_free(o->gpu, l->runs[i].bind);
    mem_free(&o->memory, l->runs);
    *l = (GpuList){ 0 };
}

void gpu_list_run(const GpuOps *o, const GpuList *l, int pos, int n) {
    uint32_t tile = (uint32_t)pos / 256;
    int other = tile == 0 ? GPU_MORE_SPANS : GPU_ONE_SPAN;
    for (const GpuRun *r = l->runs; r < l->runs + l->n; r++) {
        if (r->when == other) continue;
        /* tokens side by side where one reads what the next one does */
        if (r->whole)
            gpu_run(o->gpu, r->kernel, r->bind, pieces((size_t)n, GPU_TOGETHER), r->x, 1);
        else if (r->spans)
            gpu_run(o->gpu, r->kernel, r->bind, (uint32_t)n,
                    tile / (tile / (uint32_t)r->spans + 1) + 1, r->x);
        else
            gpu_run(o->gpu, r->kernel, r->bind, r->x, r->y, (uint32_t)n);
    }
}

static bool grow(GpuOps *o, GpuList *l) {
    if (l->n < l->cap) return true;
    int cap = 2 * l->cap + 64;
    GpuRun *more = mem_calloc(&o->memory, (size_t)cap, sizeof *more);
    if (!more) return false;
    if (l->n) memcpy(more, l->runs, (size_t)l->n * sizeof *more);
    mem_free(&o->memory, l->runs);
    l->runs = more;
    l->cap = cap;
    return true;
}

void gpu_list_add(GpuOps *o, GpuList *l, const char *name, const GpuConst *consts, int n_consts,
                  const GpuRange *ranges, int n_ranges, uint32_t x, uint32_t y) {
    if (o->r != 0) return;
    GpuConst c[GPU_CONSTS];
    memcpy(c, consts, (size_t)n_consts * sizeof *c);
    if (l->step) c[n_consts++] = (GpuConst){ "STEP", (double)l->step };
    GpuId k = kernel(o, name, c, n_consts);
    GpuId bind = k ? gpu_bind(o->gpu, k, ranges, n_ranges, &o->error) : 0;
    if (bind && !grow(o, l)) {
        gpu_free(o->gpu, bind);
        fail(&o->error, DIBIT_E_MEMORY, "no memory for a list of GPU work");
        bind = 0;
    }
    if (!bind) {
        failed(o);
        return;
    }
    l->runs[l->n++] = (GpuRun){ k, bind, x, y, y == 0 ? l->spans : 0, l->when, l->whole };
}

/* ---- inputs of matrices ---- */

static bool is_float(int type) {
    return type == T_F32 || type == T_F16 || type == T_BF16;
}

static GpuRange all(GpuId buffer) {
    return (GpuRange){ buffer, 0, 0 };
}

void gpu_input(GpuOps *o, GpuInput *in, size_t widest, size_t n) {
    size_t padded = (widest + 127) / 128 * 128;
    *in = (GpuInput){ .widest = widest };
    in->squares_at = n * padded / 32 * 8;
    in->q = gpu_ops_buffer(o, n * padded);
    in->groups = gpu_ops_buffer(o, in->squares_at + padded / 32 * sizeof(float));
    in->x = gpu_ops_buffer(o, n * padded * sizeof(float));
    in->y = gpu_ops_buffer(o, n * padded * sizeof(float));
}

void gpu_input_free(GpuOps *o, GpuInput *in) {
    gpu_free(o->gpu, in->q);
    gpu_free(o->gpu, in->groups);
    gpu_free(o->gpu, in->x);
    gpu_free(o->gpu, in->y);
    *in = (GpuInput){ 0 };
}

static GpuRange second_of(const GpuSource *s) {
    return s->b.buffer ? s->b : s->a;
}

static double one_or(size_t n) {
    return n ? (double)n : 1;
}

enum { TILE = 4096, BLOCK = 1024 };

/* One pass of the rotation; from: what is read, NULL: the other buffer. */
typedef struct Turn {
    size_t n, size, stride; /* sets of `size` values, `stride` apart */
    bool sign, quant;
    uint32_t seed;
    double factor;
} Turn;

static void add_turn(GpuOps *o, GpuList *l, const GpuInput *in, const GpuSource *s, GpuId to,
                     const Turn *t) {
    const GpuConst consts[] = {
        { "N", (double)t->n },           { "SRC", s->kind },          { "EPS", (double)s->eps },
        { "HEAD", one_or(s->head) },     { "EACH", one_or(s->each) }, { "SET", (double)t->size },
        { "STRIDE", (double)t->stride }, { "SIGN", t->sign },         { "SEED", t->seed },
        { "FACTOR", t->factor },         { "QUANT", t->quant },
    };
    const GpuRange ranges[] = { s->a, second_of(s), all(to), all(in->q), all(in->groups) };
    gpu_list_add(o, l, "rotate", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                 pieces(t->n, TILE), 1);
}

/* Whether turn_quant.wgsl does the last pass: 8 m sets of b / 8 values. */
static bool turned_in_registers(size_t b, size_t m) {
    return b >= 32 && b <= 512 && 8 * m * (b / 32) <= 4096;
}

static void add_last_turn(GpuOps *o, GpuList *l, const GpuInput *in, GpuRange from, size_t m,
                          size_t fours, uint32_t seed) {
    const GpuConst consts[] = { { "SETS", (double)(8 * m) },
                                { "FOURS", (double)fours },
                                { "SEED", seed },
                                { "FACTOR", (double)(float)(1 / sqrt((double)(4 * fours))) } };
    const GpuRange ranges[] = { from, all(in->q), all(in->groups) };
    gpu_list_add(o, l, "turn_quant", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges), 1, 1);
}

/* trellis_rotate(), then quantize_t(). */
static void input_rotated(GpuOps *o, GpuList *l, GpuInput *in, const GpuSource *s, size_t n,
                          uint32_t seed) {
    size_t b = n & (~n + 1), m = n / b;
    Turn t = { n,
               MIN(b, (size_t)TILE),
               1,
               true,
               b == n && b <= TILE,
               seed,
               (double)(float)(1 / sqrt((double)b)) };
    GpuSource from = *s;
    GpuId to = in->x;
    for (;;) {
        add_turn(o, l, in, &from, to, &t);
        if (t.quant) return;
        from = (GpuSource){ .kind = GPU_PLAIN, .a = all(to) };
        to = to == in->x ? in->y : in->x;
        if (t.stride == 1 && b > TILE)
            t = (Turn){ n, b / TILE, TILE, false, false, 0, 1 };
        else if (m > 1 && t.stride != 8 * m && turned_in_registers(b, m)) {
            add_last_turn(o, l, in, from.a, m, b / 32, seed + 1);
            return;
        } else if (t.stride != 8 * m && m > 1)
            t = (Turn){
                n, b / 8, 8 * m, true, false, seed + 1, (double)(float)(1 / sqrt((double)b / 8))
            };
        else
            break;
    }
    const GpuConst consts[] = { { "N", (double)n } };
    const GpuRange ranges[] = { from.a, all(in->q), all(in->groups) };
    gpu_list_add(o, l, "quant_t", consts, 1, ranges, ARRAY_LEN(ranges), 1, 1);
}

static void input_int8(GpuOps *o, GpuList *l, GpuInput *in, const GpuSource *s, size_t n) {
    size_t padded = (n + 127) / 128 * 128;
    const GpuConst consts[] = {
        { "N", (double)n },          { "SRC", s->kind },          { "EPS", (double)s->eps },
        { "HEAD", one_or(s->head) }, { "EACH", one_or(s->each) }, { "PAD", (double)padded },
    };
    const GpuRange ranges[] = { s->a, second_of(s), all(in->q), all(in->groups) };
    gpu_list_add(o, l, "quant", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                 pieces(padded, BLOCK), 1);
}

static void input_float(GpuOps *o, GpuList *l, GpuInput *in, const GpuSource *s, size_t n) {
    in->f32 = s->a;
    if (s->kind == GPU_PLAIN) return;
    in->f32 = all(in->x);
    const GpuConst consts[] = { { "N", (double)n }, { "SRC", s->kind }, { "EPS", (double)s->eps } };
    const GpuRange ranges[] = { s->a, s->b, all(in->x) };
    gpu_list_add(o, l, "norm", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                 pieces(n, BLOCK), 1);
}

void gpu_op_input(GpuOps *o, GpuList *l, GpuInput *in, const GpuSource *s, const GpuMatrix *m) {
    if (o->r != 0) return;
    in->squares = 0;
    in->heads = (GpuSource){ .kind = GPU_PLAIN };
    if (is_float(m->type->id))
        input_float(o, l, in, s, m->cols);
    else if (trellis_bits(m->type->id))
        input_rotated(o, l, in, s, m->cols, m->seed);
    else
        input_int8(o, l, in, s, m->cols);
}

/* ---- products ---- */

/* Rows and slices of a workgroup: few rows where the matrix is small, so that all of the GPU has
 * work, and no more slices than a row has units. */
static void shape_workgroup(const GpuOps *o, size_t rows, size_t row_step, size_t most,
                            size_t units, size_t *along, size_t *slices) {
    enum { WORKGROUPS = 512, INVOCATIONS = 256 };
    *along = most;
    while (*along > 4 && rows / (*along * row_step) < WORKGROUPS && units * *along > INVOCATIONS)
        *along /= 2;
    if (o->along) *along = o->along;
    *slices = INVOCATIONS / *along;
    while (*slices > 1 && *slices / 2 >= units) *slices /= 2;
    if (o->caps->software) *along = most;
}

/* The same for batches: rows of a workgroup's invocations, tried with the matrices of 7B on an H200
 * (docs/performance.md). */
static void shape_batch(const GpuOps *o, int type, size_t units, size_t *along, size_t *slices) {
    *along = type == T_S2 || type == T_S3 ? 32 : trellis_bits(type) ? 8 : 16;
    if (o->along) *along = o->along;
    *slices = 256 / *along;
    while (*slices > 1 && *slices / 2 >= units) *slices /= 2;
    if (o->caps->software) *slices = 1;
}

/* Invocations of a row: one a slice. Where a CPU plays the GPU one takes all slices in turn, with
 * the same sums: it plays invocations one after another, and a barrier between them is dear. A
 * token of a small model that takes SwiftShader 1 s by slices takes 40 ms so. */
static double lanes(const GpuOps *o, size_t slices) {
    return o->caps->software ? 1 : (double)slices;
}

enum { MUL_Y, MUL_BATCH, MUL_NEXT, MUL_HEADS };

static const char *mul_name(int type, int kind) {
    static const char *const names[4][4] = { { "mul_s", "mul_q4", "mul_q8", "mul_f" },
                                             { "batch_s", "batch_q4", "batch_q8", "batch_f" },
                                             { "next_s", "next_q4", "next_q8" },
                                             { "heads_s", "heads_q4", "heads_q8" } };
    return names[kind][is_float(type) ? 3 : type == T_Q4_0 ? 1 : type == T_Q8_0 ? 2 : 0];
}

/* Constants and bindings that mul_y.wgsl and mul_next.wgsl have in common, of matrices with int8
 * inputs; a range of words reaches to the end of the row scales. */
static int mul_consts(GpuConst *c, const GpuMatrix *m, const GpuPart *p, const GpuInput *in,
                      size_t along, size_t slices) {
    int n = 0, type = m->type->id;
    c[n++] = (GpuConst){ "UNITS", (double)m->units };
    c[n++] = (GpuConst){ "ROWS_WG", (double)along };
    c[n++] = (GpuConst){ "SLICES", (double)slices };
    if (is_float(type)) return n;
    if (in->heads.a.buffer) {
        c[n++] = (GpuConst){ "INPUTS", (double)m->cols };
        c[n++] = (GpuConst){ "ONE", in->heads.kind == GPU_ONE };
        c[n++] = (GpuConst){ "HEAD", one_or(in->heads.head) };
        c[n++] = (GpuConst){ "EACH", one_or(in->heads.each) };
    } else if (in->squares) {
        c[n++] = (GpuConst){ "SQUARES", (double)in->squares };
        c[n++] = (GpuConst){ "SQUARES_AT", (double)in->squares_at / 8 };
        c[n++] = (GpuConst){ "INPUTS", (double)m->cols };
        c[n++] = (GpuConst){ "EPS", (double)in->eps };
    }
    if (type != T_S2 && type != T_S3) return n;
    c[n++] = (GpuConst){ "LEVELS", type == T_S2 ? 4 : 8 };
    c[n++] = (GpuConst){ "ROW_SCALES", (double)(p->row_scales.at - p->words.at) / 4 };
    return n;
}

static GpuRange words_and_scales(const GpuPart *p) {
    GpuRange r = p->words;
    if (p->row_scales.buffer) r.n_bytes = p->row_scales.at + p->row_scales.n_bytes - r.at;
    return r;
}

static void add_mul(GpuOps *o, GpuList *l, GpuId y, size_t at, const GpuMatrix *m, const GpuPart *p,
                    const GpuInput *in, bool add) {
    size_t along, slices;
    int type = m->type->id;
    if (l->batch)
        shape_batch(o, type, m->units, &along, &slices);
    else
        shape_workgroup(o, p->rows, 1, 16, m->units, &along, &slices);
    GpuConst c[GPU_CONSTS];
    int n = mul_consts(c, m, p, in, along, slices);
    if (!l->batch) c[n++] = (GpuConst){ "LANES", lanes(o, slices) };
    c[n++] = (GpuConst){ "ROWS", (double)p->rows };
    c[n++] = (GpuConst){ "ADD", add };
    c[n++] = (GpuConst){ "AT", (double)(at + p->first) };
    GpuRange ranges[] = { all(y), p->codes, words_and_scales(p), all(in->q), all(in->groups) };
    if (is_float(type)) {
        ranges[2] = in->f32;
        c[n++] = (GpuConst){ "KIND", type == T_F32 ? 0 : type == T_F16 ? 1 : 2 };
    }
    gpu_list_add(o, l, mul_name(type, l->batch ? MUL_BATCH : MUL_Y), c, n, ranges,
                 is_float(type) ? 3 : 5, pieces(p->rows, l->batch ? 2 * along : along), 1);
}

static bool is_grouped(int type) {
    return !is_float(type) && !trellis_bits(type);
}

bool gpu_can_next(const GpuMatrix *m, const GpuMatrix *next, int n_next) {
    if (!is_grouped(m->type->id) || m->n_parts != 1 || m->rows % 32 != 0) return false;
    for (int i = 0; i < n_next; i++)
        if (!is_grouped(next[i].type->id)) return false;
    return true;
}

/* As many slices as rows have units and workgroups may have invocations, up to `most` of these. */
static void add_next(GpuOps *o, GpuList *l, GpuId y, const GpuMatrix *m, const GpuInput *in,
                     GpuId weights, GpuInput *out, size_t along, size_t most) {
    if (o->r != 0) return;
    const GpuPart *p = &m->parts[0];
    size_t slices = MIN((size_t)o->caps->invocations, most) / along, n_out = m->rows;
    while (slices > 1 && slices / 2 >= m->units) slices /= 2;
    if (!weights) n_out /= 2;
    GpuConst c[GPU_CONSTS];
    int n = mul_consts(c, m, p, in, along, slices);
    c[n++] = (GpuConst){ "LANES", lanes(o, slices) };
    c[n++] = (GpuConst){ "GLU", weights ? 0 : (double)n_out };
    c[n++] = (GpuConst){ "OUT_AT", (double)out->squares_at / 4 };
    const bool heads = in->heads.a.buffer != 0;
    const GpuRange ranges[] = { all(y),
                                p->codes,
                                words_and_scales(p),
                                heads ? in->heads.a : all(in->q),
                                heads ? in->heads.a : all(in->groups),
                                all(out->q),
                                all(out->groups),
                                all(weights ? weights : p->buffer) };
    gpu_list_add(o, l, mul_name(m->type->id, heads ? MUL_HEADS : MUL_NEXT), c, n, ranges,
                 ARRAY_LEN(ranges), (uint32_t)(n_out / 32), 1);
}

bool gpu_can_read_heads(const GpuMatrix *m) {
    return is_grouped(m->type->id) && m->cols % 32 == 0 && m->cols <= 8192;
}

void gpu_op_matmul_norm(GpuOps *o, GpuList *l, GpuId y, const GpuMatrix *m, const GpuInput *in,
                        GpuId weights, float eps, GpuInput *out) {
    add_next(o, l, y, m, in, weights, out, 32, 1024);
    out->squares = m->rows / 32;
    out->eps = eps;
}

void gpu_op_matmul_glu(GpuOps *o, GpuList *l, const GpuMatrix *m, const GpuInput *in,
                       GpuInput *out) {
    add_next(o, l, out->x, m, in, 0, out, 64, 512);
    out->squares = 0;
}

static void add_mul_t(GpuOps *o, GpuList *l, GpuId y, size_t at, const GpuMatrix *m,
                      const GpuPart *p, const GpuInput *in, bool add) {
    size_t along, slices;
    if (l->batch)
        shape_batch(o, m->type->id, m->units, &along, &slices);
    else
        shape_workgroup(o, p->rows, 4, 32, m->units, &along, &slices);
    const GpuConst consts[] = { { "ROWS", (double)p->rows },
                                { "CHUNKS", (double)m->units },
                                { "GROUPS_WG", (double)along },
                                { "SLICES", lanes(o, slices) }, /* sums of integers */
                                { "ADD", add },
                                { "AT", (double)(at + p->first) },
                                { "BITS", trellis_bits(m->type->id) } };
    const GpuRange ranges[] = { all(y),     p->codes,        p->words.buffer ? p->words : p->codes,
                                all(in->q), all(in->groups), p->row_scales };
    gpu_list_add(o, l, l->batch ? "batch_t" : "mul_t", consts, ARRAY_LEN(consts), ranges,
                 ARRAY_LEN(ranges), pieces(p->rows, 4 * along), 1);
}

bool gpu_int8_input(const GpuMatrix *m) {
    return !is_float(m->type->id);
}

bool gpu_same_input(const GpuMatrix *a, const GpuMatrix *b) {
    int x = a->type->id, y = b->type->id;
    if (a->cols != b->cols || is_float(x) != is_float(y)) return false;
    if (!trellis_bits(x) && !trellis_bits(y)) return true;
    return trellis_bits(x) && trellis_bits(y) && a->seed == b->seed;
}

void gpu_op_matmul(GpuOps *o, GpuList *l, GpuId y, size_t at, const GpuMatrix *m,
                   const GpuInput *in, bool add) {
    l->whole = l->batch;
    for (int i = 0; i < m->n_parts && o->r == 0; i++) {
        if (trellis_bits(m->type->id))
            add_mul_t(o, l, y, at, m, &m->parts[i], in, add);
        else
            add_mul(o, l, y, at, m, &m->parts[i], in, add);
    }
    l->whole = false;
}

/* ---- tokens ---- */

static int embed_type(int type) {
    static const int types[] = { T_F32, T_F16, T_BF16, T_Q4_0, T_Q8_0, T_S2, T_S3 };
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (types[i] == type) return (int)i;
    return -1;
}

bool gpu_can_embed(int type) {
    return embed_type(type) >= 0;
}

void gpu_op_embed(GpuOps *o, GpuList *l, GpuId x, const GpuMatrix *m, GpuId step) {
    if (o->r != 0) return;
    for (int i = 0; i < m->n_parts; i++) {
        const GpuPart *p = &m->parts[i];
        const GpuConst consts[] = { { "N", (double)m->cols },
                                    { "TYPE", embed_type(m->type->id) },
                                    { "UNITS", (double)m->units },
                                    { "FIRST", (double)p->first },
                                    { "ROWS", (double)p->rows } };
        const GpuRange ranges[] = { all(step), p->codes, p->words.buffer ? p->words : p->codes,
                                    p->row_scales.buffer ? p->row_scales : p->codes, all(x) };
        gpu_list_add(o, l, "embed", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                     pieces(m->cols, 256), 1);
    }
}

void gpu_op_argmax(GpuOps *o, GpuList *l, GpuId best, GpuId logits, GpuId pairs, size_t n) {
    const GpuRange ranges[] = { all(logits), all(pairs), all(best) };
    for (int second = 0; second < 2; second++) {
        const GpuConst consts[] = { { "N", (double)n }, { "SECOND", second } };
        gpu_list_add(o, l, "argmax", consts, 2, ranges, ARRAY_LEN(ranges),
                     second ? 1 : pieces(n, BLOCK), 1);
    }
}

size_t gpu_top_bytes(size_t n) {
    return pieces(n, BLOCK) * (size_t)GPU_TOP * 8;
}

void gpu_op_top(GpuOps *o, GpuList *l, GpuId best, GpuId logits, const GpuId *pairs, size_t n) {
    bool first = true, last = false;
    for (int i = 0; !last && o->r == 0; i++, first = false) {
        uint32_t groups = pieces(n, BLOCK);
        last = groups == 1;
        const GpuConst consts[] = { { "N", (double)n }, { "FIRST", first }, { "LAST", last } };
        const GpuRange ranges[] = { all(logits), all(pairs[(i + 1) % 2]),
                                    all(last ? best : pairs[i % 2]) };
        gpu_list_add(o, l, "topk", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges), groups, 1);
        n = groups * (size_t)GPU_TOP;
    }
}
