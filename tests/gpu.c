/* gpu.c - each operation of the GPU against the CPU's in plain C, on random shapes with tails.
 * Bounds are stated at the comparisons. Runs on a software adapter; skipped where there is none. */
#include "gpu_attend.h"

#include "codec.h"
#include "trellis23.h"

typedef struct Context {
    GpuOps o;
    Ops cpu;
    Kern kern;
    GpuInput in;
    bool few; /* of the cases */
} Context;
enum { WIDEST = 11008 };

/* |a - b| <= share * the largest |b| */
static void assert_close(const char *what, const float *a, const float *b, size_t n, double share) {
    double top = 1e-30, worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs((double)b[i]));
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - (double)b[i]);
        if (!(e <= worst)) worst = e, at = i;
    }
    if (worst <= share * top) return;
    print_error("%s: value %zu of %zu is %g, should be %g; %g of the largest, allowed %g\n", what,
                at, n, (double)a[at], (double)b[at], worst / top, share);
    assert_true(false);
}

/* ---- matrices ---- */

static uint8_t *random_matrix(const TypeInfo *t, size_t rows, size_t cols, uint32_t seed) {
    size_t n;
    assert_true(type_bytes(t, rows, cols, &n));
    uint8_t *data = calloc(1, n + 4);
    float *src = malloc(16 * cols * sizeof *src), *d = malloc(rows * sizeof *d);
    if (trellis_bits(t->id)) {
        for (size_t i = 0; i < n; i++) data[i] = (uint8_t)(int)(test_random() * 128);
        for (size_t r = 0; r < rows; r++) d[r] = (float)(0.1 + 0.05 * test_random());
        trellis_put_scales(t->id, data, rows, cols, d);
        for (size_t r = 0; r < rows; r += T_ROWS) {
            uint8_t *pad = (uint8_t *)trellis_rows(t->id, data, rows, cols, r).codes - T_PAD;
            memset(pad, 0, T_PAD);
            memcpy(pad, &seed, sizeof seed);
        }
    }
    for (size_t r = 0; r < rows && t->encode; r += 16) {
        size_t k = MIN((size_t)16, rows - r);
        test_fill(src, k * cols);
        t->encode(data, rows, cols, r, k, src, NULL);
    }
    free(src);
    free(d);
    return data;
}

static Weight random_weight(int type, size_t rows, size_t cols) {
    Weight w = { .type = type_info(type), .rows = rows, .cols = cols };
    w.data = random_matrix(w.type, rows, cols, 5);
    type_bytes(w.type, rows, cols, &w.n_bytes);
    return w;
}

/* Float sums go in another order: 1e-5 of the largest result; t2 and t3 sum integers, what is left
 * is the scale of the input. */
static void check_matmul(Context *c, int type, size_t rows, size_t cols, int add) {
    const TypeInfo *t = type_info(type);
    uint8_t *data = random_matrix(t, rows, cols, 5);
    Weight w = { .type = t, .rows = rows, .cols = cols, .data = data };
    const Weight *ws[] = { &w };
    type_bytes(t, rows, cols, &w.n_bytes);
    float *x = calloc(cols + 8, 4), *y = malloc(rows * 4), *want = malloc(rows * 4);
    GpuMatrix m;
    GpuList l = { 0 };
    char what[80];
    snprintf(what, sizeof what, "%s %zu x %zu", t->name, rows, cols);
    test_fill(x, cols);
    test_fill(y, rows);
    op_matmul(&c->cpu, want, rows, &w, x, 1);
    for (size_t r = 0; add && r < rows; r++) want[r] += y[r];
    GpuId gx = test_upload(&c->o, x, (cols + 8) * 4), gy = test_upload(&c->o, y, rows * 4);
    gpu_matrix(&c->o, &m, ws, 1);
    GpuSource s = { .kind = GPU_PLAIN, .a = { gx, 0, 0 } };
    gpu_op_input(&c->o, &l, &c->in, &s, &m);
    gpu_op_matmul(&c->o, &l, gy, 0, &m, &c->in, add != 0);
    test_run(&c->o, &l, 0);
    test_read(&c->o, gy, y, rows * 4);
    assert_close(what, y, want, rows, trellis_bits(type) ? 2e-6 : 1e-5);
    gpu_list_free(&c->o, &l);
    gpu_matrix_free(&c->o, &m);
    gpu_free(c->o.gpu, gx);
    gpu_free(c->o.gpu, gy);
    free(x);
    free(y);
    free(want);
    free(data);
}

/* A batch: n inputs from sources of all kinds, `step` apart. Bounds as above; behind RMSNorm and
 * SwiGLU few codes may be 1 off, 2e-3 of the largest. */
static void check_batch(Context *c, int type, size_t rows, size_t cols, int kind, int n) {
    Weight w = random_weight(type, rows, cols);
    const Weight *ws[] = { &w };
    size_t step = (MAX(rows, cols) + 127) / 128 * 128, all = GPU_BATCH * step;
    float *a = malloc(all * 4), *b = malloc(all * 4), *x = malloc(all * 4);
    float *y = malloc(all * 4), *want = malloc(all * 4);
    GpuMatrix m;
    GpuInput in;
    GpuList l = { .step = step, .batch = true };
    char what[80];
    test_fill(a, all);
    test_fill(b, all);
    test_fill(y, all);
    for (int t = 0; t < n; t++) {
        float *to = x + (size_t)t * cols, *of = a + (size_t)t * step;
        memcpy(to, of, cols * 4);
        if (kind == GPU_NORM) c->kern.rmsnorm(to, of, b, (int)cols, 1e-5f);
        if (kind == GPU_SWIGLU) c->kern.swiglu(to, of, b + (size_t)t * step, (int)cols);
    }
    op_matmul(&c->cpu, want, step, &w, x, n);
    for (int t = 0; kind == GPU_PLAIN && t < n; t++)
        for (size_t r = 0; r < rows; r++) want[(size_t)t * step + r] += y[(size_t)t * step + r];
    GpuId ga = test_upload(&c->o, a, all * 4), gb = test_upload(&c->o, b, all * 4);
    GpuId gy = test_upload(&c->o, y, all * 4);
    gpu_matrix(&c->o, &m, ws, 1);
    gpu_input(&c->o, &in, step, GPU_BATCH);
    const GpuSource s = { .kind = kind, .a = { ga, 0, 0 }, .b = { gb, 0, 0 }, .eps = 1e-5f };
    gpu_op_input(&c->o, &l, &in, &s, &m);
    gpu_op_matmul(&c->o, &l, gy, 0, &m, &in, kind == GPU_PLAIN);
    must(&c->o);
    gpu_list_run(&c->o, &l, 0, n);
    test_read(&c->o, gy, y, all * 4);
    for (int t = 0; t < n; t++) {
        snprintf(what, sizeof what, "%s %zu x %zu, source %d, token %d of %d", w.type->name, rows,
                 cols, kind, t, n);
        assert_close(what, y + (size_t)t * step, want + (size_t)t * step, rows,
                     kind == GPU_PLAIN ? 1e-5 : 2e-3);
    }
    gpu_list_free(&c->o, &l);
    gpu_matrix_free(&c->o, &m);
    gpu_input_free(&c->o, &in);
    gpu_free(c->o.gpu, ga);
    gpu_free(c->o.gpu, gb);
    gpu_free(c->o.gpu, gy);
    void *const mine[] = { a, b, x, y, want, (void *)(uintptr_t)w.data };
    for (size_t i = 0; i < ARRAY_LEN(mine); i++) free(mine[i]);
}

static void test_batch(void **state) {
    static const int types[] = { T_F16, T_Q4_0, T_S2, T_T2, T_F32, T_BF16, T_Q8_0, T_S3, T_T3 };
    static const size_t rows[] = { 64, 5, 200, 100 }, cols[] = { 160, 96, 512, 1120 };
    const Context *c = *state;
    for (size_t i = 0; i < (c->few ? 4 : ARRAY_LEN(types)); i++)
        for (size_t k = 0; k < (c->few ? 1 : 3); k++)
            check_batch(*state, types[i], rows[(i + k) % 4], cols[(3 * i + k) % 4], (int)k,
                        k == 1 ? 5 : 16);
    if (c->few) return;
    check_batch(*state, T_T2, 70, 8192, GPU_PLAIN, 3); /* turned in several passes */
    check_batch(*state, T_T2, 70, 5120, GPU_SWIGLU, 7);
    check_batch(*state, T_T3, 64, 11008, GPU_PLAIN, 2);
}

static void test_matmul(void **state) {
    static const int types[] = { T_F32, T_F16, T_BF16, T_Q4_0, T_Q8_0, T_S2, T_S3, T_T2, T_T3 };
    static const size_t rows[] = { 5, 64, 100, 128, 200, 330 },
                        cols[] = { 32, 64, 96, 160, 512, 1120 };
    const Context *c = *state;
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (int k = 0; k < (c->few ? 2 : 6); k++)
            check_matmul(*state, types[i], rows[(k + (int)i) % 6], cols[k], k % 2);
    if (c->few) return;
    check_matmul(*state, T_T2, 70, 8192, 0);
    check_matmul(*state, T_T3, 64, 11008, 0);
    check_matmul(*state, T_S3, 7, 45, 0);
    check_matmul(*state, T_F16, 33, 77, 0);
}

/* Three matrices as one, their rows one after another. */
static void test_joined(void **state) {
    Context *c = *state;
    static const int types[] = { T_Q4_0, T_S2, T_T3 };
    enum { COLS = 160, ROWS = 256 + 128 + 40 };
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        Weight w[3];
        const Weight *ws[3];
        float x[COLS], y[ROWS] = { 0 }, want[ROWS];
        GpuMatrix m;
        GpuList l = { 0 };
        test_fill(x, COLS);
        for (int k = 0, at = 0; k < 3; k++) {
            size_t rows = k == 0 ? 256 : k == 1 ? 128 : 40;
            const TypeInfo *t = type_info(types[i]);
            w[k] = (Weight){ .type = t, .rows = rows, .cols = COLS };
            w[k].data = random_matrix(t, rows, COLS, 9);
            ws[k] = &w[k];
            op_matmul(&c->cpu, want + at, rows, &w[k], x, 1);
            at += (int)rows;
        }
        assert_true(gpu_can_join(ws, 3));
        GpuId gx = test_upload(&c->o, x, sizeof x), gy = test_upload(&c->o, y, sizeof y);
        gpu_matrix(&c->o, &m, ws, 3);
        GpuSource s = { .kind = GPU_PLAIN, .a = { gx, 0, 0 } };
        gpu_op_input(&c->o, &l, &c->in, &s, &m);
        gpu_op_matmul(&c->o, &l, gy, 0, &m, &c->in, false);
        test_run(&c->o, &l, 0);
        test_read(&c->o, gy, y, sizeof y);
        assert_close("joined", y, want, ROWS, 1e-5);
        gpu_list_free(&c->o, &l);
        gpu_matrix_free(&c->o, &m);
        gpu_free(c->o.gpu, gx);
        gpu_free(c->o.gpu, gy);
        for (int k = 0; k < 3; k++) free((void *)(uintptr_t)w[k].data);
    }
}

/* ---- inputs ---- */

/* Codes are those of the CPU where the input is plain; behind RMSNorm and SwiGLU, whose floats
 * differ in the last bits, one in a thousand may be 1 off. */
static void compare_codes(const char *what, const int8_t *a, const int8_t *b, size_t n,
                          bool exact) {
    size_t off = 0;
    for (size_t i = 0; i < n; i++) {
        if (abs(a[i] - b[i]) > 1) print_error("%s: code %zu is %d, not %d\n", what, i, a[i], b[i]);
        assert_true(abs(a[i] - b[i]) <= 1);
        off += a[i] != b[i];
    }
    if (off > (exact ? 0 : 2 + n / 1000))
        print_error("%s: %zu of %zu codes differ\n", what, off, n);
    assert_true(off <= (exact ? 0 : 2 + n / 1000));
}

static void check_input(Context *c, int kind, size_t n, bool rotated) {
    size_t padded = (n + 127) / 128 * 128;
    float *a = malloc(n * 4), *b = malloc(n * 4), *x = malloc(n * 4);
    int8_t *q = calloc(1, padded), *want = calloc(1, padded);
    float *scale = malloc(padded / 32 * 4);
    int32_t *sum = malloc(padded / 16 * 4);
    uint32_t *groups = malloc(padded / 32 * 8);
    GpuMatrix m = { .type = type_info(rotated ? T_T2 : T_S2), .cols = n, .seed = 77 };
    GpuList l = { 0 };
    char what[80];
    snprintf(what, sizeof what, "source %d, %zu inputs, rotated %d", kind, n, rotated);
    test_fill(a, n);
    test_fill(b, n);
    memcpy(x, a, n * 4);
    if (kind == GPU_NORM) c->kern.rmsnorm(x, a, b, (int)n, 1e-5f);
    if (kind == GPU_SWIGLU) c->kern.swiglu(x, a, b, (int)n);
    if (rotated) {
        c->kern.rotate(x, x, (int)n, m.seed);
        c->kern.quantize_t(want, scale, sum, x, (int)n);
    } else {
        c->kern.quantize(want, scale, sum, x, (int)n);
    }
    GpuId ga = test_upload(&c->o, a, n * 4), gb = test_upload(&c->o, b, n * 4);
    GpuSource s = { .kind = kind, .a = { ga, 0, n * 4 }, .b = { gb, 0, n * 4 }, .eps = 1e-5f };
    gpu_op_input(&c->o, &l, &c->in, &s, &m);
    test_run(&c->o, &l, 0);
    test_read(&c->o, c->in.q, q, padded);
    gpu_list_run(&c->o, &l, 0, 1);
    test_read(&c->o, c->in.groups, groups, padded / 32 * 8);
    compare_codes(what, q, want, n, kind == GPU_PLAIN);
    for (size_t g = 0; g < (rotated ? 1 : (n + 31) / 32); g++) {
        float got;
        int32_t total = 0;
        memcpy(&got, &groups[2 * g], 4);
        assert_close("scale", &got, &scale[g], 1, 2e-6);
        for (size_t i = 0; i < (rotated ? n : 32); i++) total += q[32 * g + i];
        assert_int_equal((int32_t)groups[2 * g + 1], total);
    }
    gpu_list_free(&c->o, &l);
    gpu_free(c->o.gpu, ga);
    gpu_free(c->o.gpu, gb);
    free(a);
    free(b);
    free(x);
    free(q);
    free(want);
    free(scale);
    free(sum);
    free(groups);
}

static void test_inputs(void **state) {
    static const size_t plain[] = { 20, 32, 512, 1000, 1536, 5632 };
    static const size_t rotated[] = { 32, 96, 512, 1536, 2560, 4096, 8192, 11008, 5120 };
    const Context *c = *state;
    for (size_t i = 0; i < ARRAY_LEN(plain); i++) check_input(*state, GPU_PLAIN, plain[i], false);
    for (size_t i = 0; i < ARRAY_LEN(rotated); i++)
        check_input(*state, GPU_PLAIN, rotated[i], true);
    for (int kind = GPU_NORM; kind <= GPU_SWIGLU && !c->few; kind++) {
        check_input(*state, kind, 1000, false);
        check_input(*state, kind, 512, true);
        check_input(*state, kind, 11008, true);
    }
}

/* ---- products with what comes behind them ---- */

/* x -> y += W1 x -> RMSNorm -> W2 (a gate and an up matrix) -> SwiGLU -> codes, two dispatches on
 * the GPU. Sums go in another order and codes are those of y * weight, not of y / rms * weight, so
 * few of them may be 1 off: 2e-3 of the largest gate. */
static void check_next(Context *c, int type, size_t cols, size_t rows, size_t ff) {
    Weight w[3] = { random_weight(type, rows, cols), random_weight(type, ff, rows),
                    random_weight(type, ff, rows) };
    const Weight *first = &w[0], *both[] = { &w[1], &w[2] };
    size_t padded = (ff + 127) / 128 * 128;
    float *x = calloc(cols + 8, 4), *y = malloc(rows * 4), *norm = malloc(rows * 4);
    float *want = malloc(rows * 4), *gate = malloc(2 * ff * 4), *got = malloc(2 * ff * 4);
    float *scale = malloc(padded / 32 * 4);
    int32_t *sum = malloc(padded / 16 * 4);
    int8_t *q = calloc(1, padded), *q_want = calloc(1, padded);
    GpuMatrix m[2];
    GpuInput normed, gated;
    GpuList l = { 0 };
    test_fill(x, cols);
    test_fill(y, rows);
    test_fill(norm, rows);
    GpuId gx = test_upload(&c->o, x, (cols + 8) * 4), gy = test_upload(&c->o, y, rows * 4);
    GpuId gy2 = test_upload(&c->o, y, rows * 4);
    GpuId gn = test_upload(&c->o, norm, rows * 4), gg = gpu_ops_buffer(&c->o, 2 * ff * 4);
    gpu_matrix(&c->o, &m[0], &first, 1);
    gpu_matrix(&c->o, &m[1], both, 2);
    gpu_input(&c->o, &normed, rows, 1);
    gpu_input(&c->o, &gated, ff, 1);
    assert_true(gpu_can_next(&m[0], &m[1], 1) && gpu_can_next(&m[1], &m[0], 1));
    const GpuSource s = { .kind = GPU_PLAIN, .a = { gx, 0, 0 } };
    gpu_op_input(&c->o, &l, &c->in, &s, &m[0]);
    gpu_op_matmul_norm(&c->o, &l, gy, &m[0], &c->in, gn, 1e-5f, &normed);
    if (gpu_can_read_heads(&m[0])) c->in.heads = s; /* again, the codes of x made on the way */
    gpu_op_matmul_norm(&c->o, &l, gy2, &m[0], &c->in, gn, 1e-5f, &normed);
    c->in.heads = (GpuSource){ .kind = GPU_PLAIN };
    gpu_op_matmul(&c->o, &l, gg, 0, &m[1], &normed, false);
    gpu_op_matmul_glu(&c->o, &l, &m[1], &normed, &gated);
    test_run(&c->o, &l, 0);
    op_matmul(&c->cpu, want, rows, &w[0], x, 1);
    for (size_t r = 0; r < rows; r++) want[r] += y[r];
    test_read(&c->o, gy, y, rows * 4);
    assert_close("the stream", y, want, rows, 1e-5);
    test_read(&c->o, gy2, y, rows * 4);
    assert_close("the stream, input made there", y, want, rows, 1e-5);
    c->kern.rmsnorm(want, want, norm, (int)rows, 1e-5f);
    op_matmul(&c->cpu, gate, ff, &w[1], want, 1);
    op_matmul(&c->cpu, gate + ff, ff, &w[2], want, 1);
    test_read(&c->o, gg, got, 2 * ff * 4);
    assert_close("gate and up", got, gate, 2 * ff, 2e-3);
    c->kern.swiglu(got, got, got + ff, (int)ff); /* from the GPU's own: its codes alone */
    c->kern.quantize(q_want, scale, sum, got, (int)ff);
    test_read(&c->o, gated.q, q, padded);
    compare_codes("SwiGLU", q, q_want, padded, false);
    uint32_t *groups = malloc(padded / 32 * 8);
    test_read(&c->o, gated.groups, groups, padded / 32 * 8);
    for (size_t g = 0; g < ff / 32; g++) {
        float of;
        int32_t total = 0;
        memcpy(&of, &groups[2 * g], 4);
        assert_close("scale", &of, &scale[g], 1, 2e-5);
        for (size_t i = 0; i < 32; i++) total += q[32 * g + i];
        assert_int_equal((int32_t)groups[2 * g + 1], total);
    }
    const GpuId ids[] = { gx, gy, gy2, gn, gg };
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) gpu_free(c->o.gpu, ids[i]);
    gpu_list_free(&c->o, &l);
    for (int i = 0; i < 2; i++) gpu_matrix_free(&c->o, &m[i]);
    gpu_input_free(&c->o, &normed);
    gpu_input_free(&c->o, &gated);
    for (int i = 0; i < 3; i++) free((void *)(uintptr_t)w[i].data);
    void *all[] = { x, y, norm, want, gate, got, scale, sum, q, q_want, groups };
    for (size_t i = 0; i < ARRAY_LEN(all); i++) free(all[i]);
}

static void test_next(void **state) {
    check_next(*state, T_S2, 160, 192, 352);
    check_next(*state, T_Q4_0, 96, 64, 64);
    if (((Context *)*state)->few) return;
    check_next(*state, T_S3, 640, 256, 128);
    check_next(*state, T_Q8_0, 32, 576, 160);
}

/* NaN and infinity do not pass unseen. */
static void test_nonfinite(void **state) {
    Context *c = *state;
    static const int types[] = { T_Q4_0, T_S2, T_T2, T_F16 };
    enum { COLS = 128, ROWS = 20 };
    for (size_t i = 0; i < 2 * ARRAY_LEN(types); i++) {
        const TypeInfo *t = type_info(types[i / 2]);
        Weight w = { .type = t, .rows = ROWS, .cols = COLS };
        const Weight *ws[] = { &w };
        float x[COLS], y[ROWS] = { 0 };
        GpuMatrix m;
        GpuList l = { 0 };
        test_fill(x, COLS);
        x[40] = i % 2 ? NAN : INFINITY;
        w.data = random_matrix(t, ROWS, COLS, 3);
        GpuId gx = test_upload(&c->o, x, sizeof x), gy = test_upload(&c->o, y, sizeof y);
        GpuId best = gpu_ops_buffer(&c->o, 4), pairs = gpu_ops_buffer(&c->o, 64);
        gpu_matrix(&c->o, &m, ws, 1);
        GpuSource s = { .kind = GPU_PLAIN, .a = { gx, 0, 0 } };
        gpu_op_input(&c->o, &l, &c->in, &s, &m);
        gpu_op_matmul(&c->o, &l, gy, 0, &m, &c->in, false);
        gpu_op_argmax(&c->o, &l, best, gy, pairs, ROWS);
        test_run(&c->o, &l, 0);
        uint32_t id;
        test_read(&c->o, best, &id, 4);
        assert_int_equal(id, 0xffffffffu);
        gpu_list_free(&c->o, &l);
        gpu_matrix_free(&c->o, &m);
        gpu_free(c->o.gpu, gx);
        gpu_free(c->o.gpu, gy);
        gpu_free(c->o.gpu, best);
        gpu_free(c->o.gpu, pairs);
        free((void *)(uintptr_t)w.data);
    }
}

/* ---- tokens ---- */

/* Values of a row: one product, so equal but for the rounding of s2 and s3's row scale. */
static void test_embed(void **state) {
    Context *c = *state;
    static const int types[] = { T_F32, T_F16, T_BF16, T_Q4_0, T_Q8_0, T_S2, T_S3 };
    enum { ROWS = 150, COLS = 416 };
    GpuId x = gpu_ops_buffer(&c->o, COLS * 4), step = gpu_ops_buffer(&c->o, 4 * GPU_STEP_WORDS);
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        const TypeInfo *t = type_info(types[i]);
        Weight w = { .type = t, .rows = ROWS, .cols = COLS };
        const Weight *ws[] = { &w };
        float got[COLS], want[COLS];
        GpuMatrix m;
        GpuList l = { 0 };
        w.data = random_matrix(t, ROWS, COLS, 3);
        gpu_matrix(&c->o, &m, ws, 1);
        gpu_op_embed(&c->o, &l, x, &m, step);
        for (uint32_t id = 0; id < ROWS; id += 37) {
            gpu_write(c->o.gpu, step, 4 * GPU_STEP_TOKENS, &id, 4);
            test_run(&c->o, &l, 0);
            test_read(&c->o, x, got, sizeof got);
            t->decode(want, w.data, ROWS, COLS, id);
            assert_close(t->name, got, want, COLS, 1e-6);
        }
        gpu_list_free(&c->o, &l);
        gpu_matrix_free(&c->o, &m);
        free((void *)(uintptr_t)w.data);
    }
    gpu_free(c->o.gpu, x);
    gpu_free(c->o.gpu, step);
}

static void test_argmax(void **state) {
    Context *c = *state;
    static const size_t sizes[] = { 1, 300, 1024, 5000, 70001 };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        size_t n = sizes[i], best = 0;
        float *x = malloc(n * 4);
        uint32_t id;
        GpuList l = { 0 };
        test_fill(x, n);
        for (size_t k = 0; k < n; k++) x[k] = i % 2 ? x[k] : -fabsf(x[k]);
        for (size_t k = 0; k < n; k++)
            if (x[k] > x[best]) best = k;
        if (best + 1 < n) x[n - 1] = x[best]; /* of equals the first one */
        if (i == 1) {                         /* zeros are equal, whatever their sign */
            for (size_t k = 0; k < n; k++) x[k] = k < 7 ? -1.0f : k % 2 ? -0.0f : 0.0f;
            best = 7;
        }
        GpuId gx = test_upload(&c->o, x, n * 4), gb = gpu_ops_buffer(&c->o, 4);
        GpuId pairs = gpu_ops_buffer(&c->o, (n / 1024 + 1) * 8);
        gpu_op_argmax(&c->o, &l, gb, gx, pairs, n);
        test_run(&c->o, &l, 0);
        test_read(&c->o, gb, &id, 4);
        assert_int_equal(id, best);
        gpu_list_free(&c->o, &l);
        gpu_free(c->o.gpu, gx);
        gpu_free(c->o.gpu, gb);
        gpu_free(c->o.gpu, pairs);
        free(x);
    }
}

static const float *sorted_by;
static int by_logit(const void *a, const void *b) { /* larger first, of equals the lower id */
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sorted_by[i] != sorted_by[j]) return sorted_by[i] > sorted_by[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

/* The same candidates. */
static void test_top(void **state) {
    Context *c = *state;
    static const size_t sizes[] = { 1, 40, 64, 1000, 5000, 70001, 152064 };
    struct {
        float logit;
        int32_t id;
    } got[GPU_TOP];
    for (size_t k = 0; k < (c->few ? 5 : ARRAY_LEN(sizes)); k++) {
        size_t n = sizes[k];
        float *x = malloc(n * 4);
        int32_t *order = malloc(n * 4);
        GpuList l = { 0 };
        test_fill(x, n);
        for (size_t i = 0; i < n; i++) {
            if (k % 2) x[i] = (float)(int)(x[i] * 8); /* many are equal */
            order[i] = (int32_t)i;
        }
        sorted_by = x;
        qsort(order, n, 4, by_logit);
        GpuId gx = test_upload(&c->o, x, n * 4), best = gpu_ops_buffer(&c->o, sizeof got);
        GpuId pairs[2];
        for (int i = 0; i < 2; i++) pairs[i] = gpu_ops_buffer(&c->o, gpu_top_bytes(n));
        gpu_op_top(&c->o, &l, best, gx, pairs, n);
        test_run(&c->o, &l, 0);
        test_read(&c->o, best, got, sizeof got);
        for (size_t i = 0; i < GPU_TOP; i++) {
            assert_int_equal(got[i].id, i < n ? order[i] : -1);
            if (i < n) assert_true(got[i].logit == x[order[i]]);
        }
        x[n / 2] = k % 2 ? NAN : -INFINITY; /* is not passed over */
        gpu_write(c->o.gpu, gx, 0, x, n * 4);
        gpu_list_run(&c->o, &l, 0, 1);
        test_read(&c->o, best, got, sizeof got);
        assert_true(isnan(got[0].logit));
        gpu_list_free(&c->o, &l);
        gpu_free(c->o.gpu, gx);
        gpu_free(c->o.gpu, best);
        for (int i = 0; i < 2; i++) gpu_free(c->o.gpu, pairs[i]);
        free(x);
        free(order);
    }
}

static void test_attend(void **state) {
    Context *c = *state;
    gpu_attend_cases(&c->o, &c->cpu, c->few);
}

/* ---- the seam: a browser says later what has failed ---- */
#ifndef __wasm__

static void test_seam(void **state) {
    Context *c = *state;
    DibitError err;
    assert_int_equal(gpu_kernel(c->o.gpu, "wrong", "fn main( {", NULL, 0, &err), 0);
    assert_int_equal(err.code, DIBIT_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "wrong"));
    assert_null(gpu_lost(c->o.gpu));
    GpuOptions opt = { .library = "/nowhere/libwebgpu.so" };
    Gpu *g;
    assert_int_equal(gpu_open(&g, &opt, &err), DIBIT_E_UNSUPPORTED);
    assert_null(g);
    assert_non_null(strstr(err.text, "npm package"));
    assert_int_equal(gpu_buffer(c->o.gpu, (size_t)1 << 50, &err), 0);
    assert_int_equal(err.code, DIBIT_E_MEMORY);
}

static void test_lost(void **state) {
    (void)state;
    DibitError err;
    Gpu *g = test_gpu(false);
    GpuId b = gpu_buffer(g, 64, &err);
    uint32_t x[16];
    assert_int_equal(gpu_read_start(g, b, 0, 64, &err), 0);
    gpu_lose(g);
    assert_non_null(gpu_lost(g));
    assert_int_equal(gpu_read_ready(g, x, true, &err), DIBIT_E_DEVICE);
    assert_int_equal(gpu_buffer(g, 64, &err), 0);
    assert_int_equal(gpu_submit(g, &err), DIBIT_E_DEVICE);
    gpu_write(g, b, 0, x, 4);
    gpu_close(&g);
    assert_null(g);
}
#endif

static int run_all(bool floor, bool few) {
    Context c = { .few = few };
    DibitError err;
    Gpu *g = test_gpu(floor);
    if (!g) return SKIPPED;
    kern_init(&c.kern, DIBIT_ISA_SCALAR);
    const GpuCaps *caps = gpu_caps(g);
    printf("%s: %s; bindings of %llu bytes, %u of them; dot4 %d, subgroups %d\n",
           floor ? "floor" : "all that the adapter has", caps->name,
           (unsigned long long)caps->max_binding, caps->storage_buffers, caps->dot4,
           caps->subgroups);
    if (gpu_ops_create(&c.o, g, NULL, &err) != 0 ||
        ops_create(&c.cpu, &c.kern, NULL, NULL, GPU_BATCH, WIDEST, 256, 8, 1, 1024, &err) != 0)
        return 1;
    GpuCaps tested = *caps;
#ifndef __wasm__ /* workgroups are shaped as for a real GPU; in Chromium that would take half an   \
                    hour */
    tested.software = false;
#endif
    if (floor) tested.dot4 = false;
    c.o.caps = &tested;
    gpu_input(&c.o, &c.in, WIDEST, 1);
    const struct CMUnitTest tests[] = {
#ifndef __wasm__
        cmocka_unit_test_prestate(test_seam, &c),   cmocka_unit_test_prestate(test_lost, &c),
#endif
        cmocka_unit_test_prestate(test_inputs, &c), cmocka_unit_test_prestate(test_matmul, &c),
        cmocka_unit_test_prestate(test_joined, &c), cmocka_unit_test_prestate(test_embed, &c),
        cmocka_unit_test_prestate(test_argmax, &c), cmocka_unit_test_prestate(test_nonfinite, &c),
        cmocka_unit_test_prestate(test_attend, &c), cmocka_unit_test_prestate(test_next, &c),
        cmocka_unit_test_prestate(test_batch, &c),  cmocka_unit_test_prestate(test_top, &c),
    };
    int r = cmocka_run_group_tests_name(floor ? "gpu at the floor" : "gpu", tests, NULL, NULL);
    gpu_input_free(&c.o, &c.in);
    gpu_ops_free(&c.o);
    ops_free(&c.cpu);
    gpu_close(&g);
    return r;
}

#ifdef __wasm__
/* In a browser (tests/web/gpu-ops.js): the host has a device, and says whether it is as every one
 * is, and how many cases are wanted. usage: "floor|special few|all" */
int main(int n, char **arg) {
    assert_int_equal(n, 3);
    return run_all(strcmp(arg[1], "floor") == 0, strcmp(arg[2], "few") == 0);
}
#else
/* usage: test_gpu [PATTERN of test names] */
int main(int n, char **arg) {
    if (n > 1) cmocka_set_test_filter(arg[1]);
    int r = run_all(false, false);
    return r ? r : run_all(true, true);
}
#endif
