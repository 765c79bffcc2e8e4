/* gpu.c - how fast a GPU multiplies matrices of each type with a vector, beside a plain read of the
 * same run; what a dispatch costs. CSV on stdout. usage: bench_gpu [MEGABYTES of a matrix [COLUMNS
 * [TYPE ..]]] | layer TYPE CACHE POSITION | shapes TYPE | batch TYPE | attend KV_HEADS */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/ops_gpu.h"
#include "trellis23.h"

enum { REPEATS = 20, ROUNDS = 7, OUTPUTS = 4 };

static const char read_text[] =
    "override N: u32; override STEP: u32;\n"
    "@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;\n"
    "@group(0) @binding(1) var<storage, read_write> y: array<u32>;\n"
    "@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3u) {\n"
    "  var s = vec4<u32>();\n"
    "  for (var i = id.x; i < N; i += STEP) { s ^= x[i]; }\n"
    "  if ((s.x ^ s.y ^ s.z ^ s.w) == 0x12345u) { y[id.x & 63u] = s.x; }\n"
    "}\n";
static const char empty_text[] =
    "@group(0) @binding(0) var<storage, read_write> y: array<u32>;\n"
    "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {\n"
    "  y[id.x] = y[id.x] + 1u;\n"
    "}\n";

static GpuOps ops;

static void check(void) {
    DibitError err;
    if (gpu_ops_error(&ops, &err) == 0) return;
    fprintf(stderr, "bench_gpu: %s\n", err.text);
    exit(1);
}

static void finish(GpuId buffer) {
    uint32_t x;
    DibitError err;
    if (gpu_read_start(ops.gpu, buffer, 0, 4, &err) == 0 &&
        gpu_read_ready(ops.gpu, &x, true, &err) == 1)
        return;
    fprintf(stderr, "bench_gpu: %s\n", err.text);
    exit(1);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one of the `per_list` runs of the list, after half a second of the same; longer
 * where the GPU had nothing to do before (an H100 falls from 1980 to 345 MHz in a second then, and
 * half a second did not always bring it back). */
static uint64_t warm_ns = 500000000;

static double time_list(const GpuList *l, int repeats, int per_list, int pos, GpuId wait) {
    double t[ROUNDS];
    uint64_t warm = clock_ns() + warm_ns;
    for (int r = -1; r < ROUNDS; r += r >= 0 || clock_ns() > warm) {
        uint64_t start = clock_ns();
        for (int i = 0; i < repeats; i++) gpu_list_run(&ops, l, pos, l->batch ? GPU_BATCH : 1);
        finish(wait);
        if (r >= 0) t[r] = (double)(clock_ns() - start) * 1e-9 / (repeats * per_list);
    }
    qsort(t, ROUNDS, sizeof *t, compare);
    return t[ROUNDS / 2];
}

/* Bytes a second of a read of a buffer. */
static double read_rate(GpuId x, size_t n_bytes) {
    DibitError err;
    GpuId y = gpu_ops_buffer(&ops, 256);
    double best = 0;
    check();
    n_bytes = n_bytes / 16 * 16;
    for (uint32_t groups = 528; groups <= 4224; groups *= 2) {
        const GpuConst c[] = { { "N", (double)(n_bytes / 16) }, { "STEP", groups * 256.0 } };
        const GpuRange ranges[] = { { x, 0, 0 }, { y, 0, 0 } };
        GpuId k = gpu_kernel(ops.gpu, "read", read_text, c, 2, &err);
        GpuRun run = { k, k ? gpu_bind(ops.gpu, k, ranges, 2, &err) : 0, groups, 1, 0, 0, false };
        if (!run.bind) fprintf(stderr, "bench_gpu: %s\n", err.text), exit(1);
        GpuList l = { .runs = &run, .n = 1, .cap = 1 };
        double rate = (double)n_bytes / time_list(&l, REPEATS, 1, 0, y);
        best = MAX(best, rate);
        gpu_free(ops.gpu, run.bind);
        gpu_free(ops.gpu, k);
    }
    gpu_free(ops.gpu, y);
    return best;
}

static uint8_t *random_bytes(size_t n) {
    uint8_t *data = malloc(n + 8);
    uint64_t x = 1;
    for (size_t i = 0; data && i < n; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(data + i, &x, 8);
    }
    if (!data) exit(1);
    return data;
}

static void time_matrix(int type, size_t megabytes, size_t cols, double rate) {
    const TypeInfo *t = type_info(type);
    size_t row, n;
    type_bytes(t, 1024, cols, &row);
    size_t rows = MAX(megabytes * 1000000 / row, (size_t)1) * 1024;
    if (!type_bytes(t, rows, cols, &n)) exit(1);
    uint8_t *data = random_bytes(n);
    Weight w = { .type = t, .rows = rows, .cols = cols, .data = data, .n_bytes = n };
    const Weight *ws[] = { &w };
    GpuMatrix m;
    GpuInput in;
    GpuList l = { 0 };
    gpu_matrix(&ops, &m, ws, 1);
    gpu_input(&ops, &in, cols, 1);
    in.f32 = (GpuRange){ in.x, 0, 0 };
    GpuId y[OUTPUTS]; /* in turn, so that runs need not wait for each other */
    for (int i = 0; i < OUTPUTS; i++) {
        y[i] = gpu_ops_buffer(&ops, rows * sizeof(float));
        gpu_op_matmul(&ops, &l, y[i], 0, &m, &in, false);
    }
    check();
    warm_ns *= 4;
    double s = time_list(&l, REPEATS / OUTPUTS, OUTPUTS, 0, y[0]);
    warm_ns /= 4;
    double own = read_rate(m.parts[0].buffer, m.parts[0].words.buffer ? m.parts[0].words.at
                                                                      : m.parts[0].codes.n_bytes);
    printf("%s,%zu,%zu,%.1f,%.1f,%.0f,%.1f,%.0f\n", t->name, rows, cols, (double)n * 1e-6, s * 1e6,
           (double)n / s * 1e-9, 100 * (double)n / s / rate, own * 1e-9);
    fflush(stdout);
    gpu_list_free(&ops, &l);
    gpu_matrix_free(&ops, &m);
    gpu_input_free(&ops, &in);
    for (int i = 0; i < OUTPUTS; i++) gpu_free(ops.gpu, y[i]);
    free(data);
}

static void time_dispatch(void) {
    enum { N = 500 };
    DibitError err;
    GpuId y = gpu_ops_buffer(&ops, 256);
    GpuId k = gpu_kernel(ops.gpu, "empty", empty_text, NULL, 0, &err);
    GpuRun runs[N];
    for (int i = 0; i < N; i++)
        runs[i] =
            (GpuRun){ k, gpu_bind(ops.gpu, k, &(GpuRange){ y, 0, 0 }, 1, &err), 1, 1, 0, 0, false };
    GpuList l = { .runs = runs, .n = N, .cap = N };
    printf("# dependent dispatch: %.2f us\n", 1e6 * time_list(&l, 1, N, 0, y));
    static const int layers[] = { 6, 7, 11, 12 }; /* dispatches: s2, q4 .. and t2, t3 in step.c */
    for (size_t c = 0; c < ARRAY_LEN(layers); c++) {
        double t[10 * ROUNDS];
        for (size_t r = 0; r < ARRAY_LEN(t); r++) {
            uint32_t step[GPU_STEP_WORDS] = { 0 };
            uint64_t start = clock_ns();
            l.n = layers[c] * 32 / (GPU_CUTS + 1);
            for (int i = 0; i <= GPU_CUTS; i++) {
                gpu_list_run(&ops, &l, 0, 1);
                if (i < GPU_CUTS) gpu_cut(ops.gpu);
            }
            gpu_write(ops.gpu, y, 0, step, sizeof step);
            finish(y);
            t[r] = (double)(clock_ns() - start) * 1e-6;
        }
        qsort(t, ARRAY_LEN(t), sizeof *t, compare);
        printf("# a token of empty kernels, 32 layers of %d: %.2f ms\n", layers[c],
               t[ARRAY_LEN(t) / 2]);
    }
}

/* ---- the dispatches of a layer of 7B ---- */

enum { E = 4096, FF = 11008, HEADS = 32, D = 128 };

static GpuMatrix layer_matrix(const TypeInfo *t, size_t rows, size_t cols) {
    Weight w = { .type = t, .rows = rows, .cols = cols };
    const Weight *ws[] = { &w };
    GpuMatrix m;
    type_bytes(t, rows, cols, &w.n_bytes);
    w.data = random_bytes(w.n_bytes);
    gpu_matrix(&ops, &m, ws, 1);
    check();
    free((void *)(uintptr_t)w.data);
    return m;
}

static void time_op(const char *name, GpuList *l, int pos, GpuId wait) {
    check();
    printf("%s,%d,%.2f\n", name, l->n, 1e6 * time_list(l, 100, 1, pos, wait));
    fflush(stdout);
    gpu_list_free(&ops, l);
}

static GpuRange floats(GpuId buffer, size_t at, size_t n) {
    return (GpuRange){ buffer, at * sizeof(float), n * sizeof(float) };
}

typedef struct Attention {
    GpuHeads h;
    GpuKvSide k, v;
    GpuId x, out, weights;
} Attention;

static void make_attention(Attention *a, const char *cache, int pos, int n_kv_heads) {
    GpuHeads *h = &a->h;
    *h = (GpuHeads){ .n_heads = HEADS, .n_kv_heads = n_kv_heads, .head_dim = D, .n_rot = D };
    h->n_ctx = pos + 128;
    h->sinks = KV_SINKS;
    h->recent = KV_WINDOW;
    a->x = gpu_ops_buffer(&ops, 3 * E * sizeof(float));
    a->out = gpu_ops_buffer(&ops, E * sizeof(float));
    a->weights = gpu_ops_buffer(&ops, HEADS * 16);
    uint32_t step[GPU_STEP_WORDS] = { (uint32_t)pos };
    step[GPU_STEP_RECORDS] = (uint32_t)MAX(0, pos / 16 * 16 - KV_WINDOW + 16);
    step[GPU_STEP_ENCODE] = (uint32_t)MAX(0, pos / 16 * 16 - KV_WINDOW + 1);
    h->step = gpu_ops_buffer(&ops, sizeof step);
    h->turns = gpu_ops_buffer(&ops, (size_t)h->n_ctx * D * sizeof(float));
    h->query = gpu_ops_buffer(&ops, gpu_query_bytes(h));
    h->partial = gpu_ops_buffer(&ops, gpu_partial_bytes(h));
    h->none = gpu_ops_buffer(&ops, 256);
    gpu_kv_side(&ops, &a->k, h, kv_type_by_name(cache), true);
    gpu_kv_side(&ops, &a->v, h, kv_type_by_name(cache), false);
    check();
    gpu_write(ops.gpu, h->step, 0, step, sizeof step);
}

static void free_attention(Attention *a) {
    const GpuId ids[] = { a->h.step, a->h.turns, a->h.query, a->h.partial, a->h.none,
                          a->x,      a->out,     a->weights, a->k.buffer,  a->v.buffer };
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) gpu_free(ops.gpu, ids[i]);
}

static void time_attention(const char *cache, int pos) {
    Attention a;
    GpuList l = { 0 };
    make_attention(&a, cache, pos, HEADS);
    gpu_op_heads(&ops, &l, &a.h, a.x, 0, 0, &a.k, &a.v);
    time_op("heads", &l, pos, a.out);
    gpu_op_attend(&ops, &l, &a.h, a.out, &a.k, &a.v, false);
    time_op("attend and merge", &l, pos, a.out);
    gpu_op_encode(&ops, &l, &a.h, a.weights, &a.k, true);
    if (l.n) time_op("16 records of each head's keys", &l, pos, a.out);
    free_attention(&a);
}

/* Attention of 7B with that many KV heads at several positions. */
static void time_caches(int n_kv_heads) {
    static const char *const caches[] = { "f16", "q8", "k3", "k2" };
    static const int positions[] = { 64, 2000, 8000, 32000 };
    printf("cache,KV heads,position,attention us,GB/s,with merge us\n");
    for (size_t p = 0; p < ARRAY_LEN(positions); p++)
        for (size_t c = 0; c < ARRAY_LEN(caches); c++) {
            Attention a;
            GpuList l = { 0 };
            make_attention(&a, caches[c], positions[p], n_kv_heads);
            gpu_op_attend(&ops, &l, &a.h, a.out, &a.k, &a.v, false);
            check();
            double both = time_list(&l, 50, 1, positions[p], a.out);
            GpuList alone = { .runs = l.runs, .n = 1 };
            double s = time_list(&alone, 50, 1, positions[p], a.out);
            printf("%s,%d,%d,%.1f,%.0f,%.1f\n", caches[c], n_kv_heads, positions[p], s * 1e6,
                   (double)(a.k.n_bytes + a.v.n_bytes) / s * 1e-9, both * 1e6);
            fflush(stdout);
            gpu_list_free(&ops, &l);
            free_attention(&a);
        }
}

static void time_layer(const char *type, const char *cache, int pos) {
    const TypeInfo *t = type_by_name(type);
    if (!t) exit(2);
    GpuMatrix qkv = layer_matrix(t, 3 * E, E), o = layer_matrix(t, E, E),
              gate_up = layer_matrix(t, 2 * FF, E), down = layer_matrix(t, E, FF);
    GpuInput in, next;
    GpuList l = { 0 };
    GpuId x = gpu_ops_buffer(&ops, E * sizeof(float)), w = gpu_ops_buffer(&ops, E * sizeof(float));
    GpuId y = gpu_ops_buffer(&ops, 2 * FF * sizeof(float));
    gpu_input(&ops, &in, FF, 1);
    const GpuSource plain = { .kind = GPU_PLAIN, .a = floats(x, 0, E) };
    const GpuSource normed = { GPU_NORM, floats(x, 0, E), floats(w, 0, E), 1e-5f, 0, 0 };
    const GpuSource gated = { GPU_SWIGLU, floats(y, 0, FF), floats(y, FF, FF), 0, 0, 0 };
    printf("dispatch of a layer (%s, cache %s, position %d),runs,us\n", type, cache, pos);
    gpu_op_input(&ops, &l, &in, &normed, &qkv);
    time_op("input: norm", &l, 0, x);
    gpu_op_matmul(&ops, &l, y, 0, &qkv, &in, false);
    time_op("q k v", &l, 0, x);
    time_attention(cache, pos);
    gpu_op_input(&ops, &l, &in, &plain, &o);
    time_op("input: plain", &l, 0, x);
    gpu_op_matmul(&ops, &l, x, 0, &o, &in, true);
    time_op("o", &l, 0, x);
    gpu_op_matmul(&ops, &l, y, 0, &gate_up, &in, false);
    time_op("gate up", &l, 0, x);
    gpu_op_input(&ops, &l, &in, &gated, &down);
    time_op("input: swiglu", &l, 0, x);
    gpu_op_matmul(&ops, &l, x, 0, &down, &in, true);
    time_op("down", &l, 0, x);
    if (!gpu_can_next(&o, &gate_up, 1)) return;
    gpu_input(&ops, &next, FF, 1);
    gpu_op_matmul_norm(&ops, &l, x, &o, &in, w, 1e-5f, &next);
    time_op("o and norm", &l, 0, x);
    in.heads = (GpuSource){ .kind = GPU_PLAIN, .a = floats(y, 0, E) };
    gpu_op_matmul_norm(&ops, &l, x, &o, &in, w, 1e-5f, &next);
    time_op("o, its input and norm", &l, 0, x);
    in.heads = (GpuSource){ .kind = GPU_PLAIN };
    gpu_op_matmul(&ops, &l, y, 0, &qkv, &next, false);
    time_op("q k v, factor of norm", &l, 0, x);
    gpu_op_matmul_glu(&ops, &l, &gate_up, &next, &in);
    time_op("gate up, swiglu", &l, 0, x);
    gpu_op_matmul_norm(&ops, &l, x, &down, &in, w, 1e-5f, &next);
    time_op("down and norm", &l, 0, x);
}

/* The same matrices with workgroups of 2 to 32 rows (t2, t3: of fours of rows), times one vector or
 * those of a batch. */
static void time_shapes(const char *type, bool batch) {
    static const struct {
        const char *name;
        size_t rows, cols;
    } of[] = { { "q k v", 3 * E, E }, { "o", E, E }, { "gate up", 2 * FF, E }, { "down", E, FF } };
    GpuInput in;
    gpu_input(&ops, &in, 2 * FF, GPU_BATCH);
    GpuId y = gpu_ops_buffer(&ops, GPU_BATCH * 2 * FF * sizeof(float));
    printf("matrix (%s),rows of a workgroup,us\n", type);
    for (size_t i = 0; i < ARRAY_LEN(of); i++) {
        GpuMatrix m = layer_matrix(type_by_name(type), of[i].rows, of[i].cols);
        for (size_t along = 0; along <= 32; along = along ? 2 * along : 2) {
            GpuList l = { .step = 2 * FF, .batch = batch };
            char name[64];
            ops.along = along;
            snprintf(name, sizeof name, "%s,%zu", of[i].name, along);
            gpu_op_matmul(&ops, &l, y, 0, &m, &in, false);
            time_op(name, &l, 0, y);
        }
        gpu_matrix_free(&ops, &m);
    }
    ops.along = 0;
}

int main(int n, char **arg) {
    static const int types[] = { T_F16, T_Q8_0, T_Q4_0, T_S3, T_S2, T_T3, T_T2 };
    bool layer = n == 5 && strcmp(arg[1], "layer") == 0;
    size_t megabytes = n > 1 && !layer ? strtoul(arg[1], NULL, 10) : 1000;
    size_t cols = n > 2 && !layer ? strtoul(arg[2], NULL, 10) : 8192;
    DibitError err;
    Gpu *g;
    if (gpu_open(&g, NULL, &err) != 0 || gpu_ops_create(&ops, g, NULL, &err) != 0) {
        fprintf(stderr, "bench_gpu: %s\n", err.text);
        return 1;
    }
    printf("# %s, %s\n", gpu_caps(g)->name, gpu_caps(g)->driver);
    if (n == 3 && (strcmp(arg[1], "shapes") == 0 || strcmp(arg[1], "batch") == 0)) {
        time_shapes(arg[2], strcmp(arg[1], "batch") == 0);
    } else if (n == 3 && strcmp(arg[1], "attend") == 0) {
        time_caches((int)strtol(arg[2], NULL, 10));
    } else if (layer) {
        time_layer(arg[2], arg[3], (int)strtol(arg[4], NULL, 10));
    } else {
        size_t n_bytes = megabytes * 1000000 / 4096 * 4096;
        GpuId x = gpu_ops_buffer(&ops, n_bytes);
        double rate = read_rate(x, n_bytes);
        gpu_free(g, x);
        printf("# read %.0f GB/s\n", rate * 1e-9);
        time_dispatch();
        printf("type,rows,cols,MB,us,GB/s,share of read in %%,read of its own memory\n");
        for (size_t i = 0; n <= 3 && i < ARRAY_LEN(types); i++)
            time_matrix(types[i], megabytes, cols, rate);
        for (int i = 3; i < n; i++) {
            const TypeInfo *t = type_by_name(arg[i]);
            if (!t) exit(2);
            time_matrix(t->id, megabytes, cols, rate);
        }
    }
    gpu_ops_free(&ops);
    gpu_close(&g);
    return 0;
}
