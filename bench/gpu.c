/* gpu.c - how fast a GPU multiplies matrices of each type with a vector, beside a plain read of the
 * same run; what a dispatch costs. CSV on stdout. usage: bench_gpu [MEGABYTES of a matrix]
 * [COLUMNS] */
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

/* Median seconds of one of `n` runs of the list. */
static double time_list(const GpuList *l, int repeats, int per_list, GpuId wait) {
    double t[ROUNDS];
    for (int r = -2; r < ROUNDS; r++) {
        uint64_t start = clock_ns();
        for (int i = 0; i < repeats; i++) gpu_list_run(&ops, l, 0);
        finish(wait);
        if (r >= 0) t[r] = (double)(clock_ns() - start) * 1e-9 / (repeats * per_list);
    }
    qsort(t, ROUNDS, sizeof *t, compare);
    return t[ROUNDS / 2];
}

static double read_rate(size_t n_bytes) {
    DibitError err;
    GpuId x = gpu_ops_buffer(&ops, n_bytes), y = gpu_ops_buffer(&ops, 256);
    double best = 0;
    check();
    for (uint32_t groups = 528; groups <= 4224; groups *= 2) {
        const GpuConst c[] = { { "N", (double)(n_bytes / 16) }, { "STEP", groups * 256.0 } };
        const GpuRange ranges[] = { { x, 0, 0 }, { y, 0, 0 } };
        GpuId k = gpu_kernel(ops.gpu, "read", read_text, c, 2, &err);
        GpuRun run = { k, k ? gpu_bind(ops.gpu, k, ranges, 2, &err) : 0, groups, 1, false, 0 };
        if (!run.bind) fprintf(stderr, "bench_gpu: %s\n", err.text), exit(1);
        GpuList l = { &run, 1, 1, 0 };
        double rate = (double)n_bytes / time_list(&l, 4, 1, y);
        best = MAX(best, rate);
    }
    gpu_free(ops.gpu, x);
    gpu_free(ops.gpu, y);
    return best;
}

static void time_matrix(int type, size_t megabytes, size_t cols, double rate) {
    const TypeInfo *t = type_info(type);
    size_t row, n;
    type_bytes(t, 1024, cols, &row);
    size_t rows = MAX(megabytes * 1000000 / row, (size_t)1) * 1024;
    if (!type_bytes(t, rows, cols, &n)) exit(1);
    uint8_t *data = malloc(n);
    uint64_t x = 1;
    for (size_t i = 0; i + 8 <= n; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(data + i, &x, 8);
    }
    Weight w = { .type = t, .rows = rows, .cols = cols, .data = data, .n_bytes = n };
    const Weight *ws[] = { &w };
    GpuMatrix m;
    GpuInput in;
    GpuList l = { 0 };
    gpu_matrix(&ops, &m, ws, 1);
    gpu_input(&ops, &in, cols);
    in.f32 = (GpuRange){ in.x, 0, 0 };
    GpuId y[OUTPUTS]; /* in turn, so that runs need not wait for each other */
    for (int i = 0; i < OUTPUTS; i++) {
        y[i] = gpu_ops_buffer(&ops, rows * sizeof(float));
        gpu_op_matmul(&ops, &l, y[i], 0, &m, &in, false);
    }
    check();
    double s = time_list(&l, REPEATS / OUTPUTS, OUTPUTS, y[0]);
    printf("%s,%zu,%zu,%.1f,%.1f,%.0f,%.1f\n", t->name, rows, cols, (double)n * 1e-6, s * 1e6,
           (double)n / s * 1e-9, 100 * (double)n / s / rate);
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
            (GpuRun){ k, gpu_bind(ops.gpu, k, &(GpuRange){ y, 0, 0 }, 1, &err), 1, 1, false, 0 };
    GpuList l = { runs, N, N, 0 };
    printf("# dependent dispatch: %.2f us\n", 1e6 * time_list(&l, 1, N, y));
}

int main(int n, char **arg) {
    static const int types[] = { T_F16, T_Q8_0, T_Q4_0, T_S3, T_S2, T_T3, T_T2 };
    size_t megabytes = n > 1 ? strtoul(arg[1], NULL, 10) : 256;
    size_t cols = n > 2 ? strtoul(arg[2], NULL, 10) : 8192;
    DibitError err;
    Gpu *g;
    if (gpu_open(&g, NULL, &err) != 0 || gpu_ops_create(&ops, g, NULL, &err) != 0) {
        fprintf(stderr, "bench_gpu: %s\n", err.text);
        return 1;
    }
    double rate = read_rate(megabytes * 1000000 / 4096 * 4096);
    printf("# %s, %s; read %.0f GB/s\n", gpu_caps(g)->name, gpu_caps(g)->driver, rate * 1e-9);
    time_dispatch();
    printf("type,rows,cols,MB,us,GB/s,share of read in %%\n");
    for (size_t i = 0; i < ARRAY_LEN(types); i++) time_matrix(types[i], megabytes, cols, rate);
    gpu_ops_free(&ops);
    gpu_close(&g);
    return 0;
}
