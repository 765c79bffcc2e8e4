/* kern_float.c - checks of the float, attention and cache row slots; part of tests/kern.c. Besides
 * equality with scalar, values: exp within 2 ulp, what rows of the cache decode to. */
#include "kern_test.h"

static float *random_f32(Test *t, size_t n, int wild) {
    float *x = buffer(t, n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = rnd_wild_f32(t, wild);
    return x;
}

/* Two buffers with the same random content. */
static void twins(Test *t, float **a, float **b, size_t n, int wild) {
    *a = random_f32(t, n, wild);
    *b = buffer(t, n * sizeof **b);
    memcpy(*b, *a, n * sizeof **b);
}

static float *copy_f32(Test *t, const float *x, size_t n) {
    float *c = buffer(t, n * sizeof *c);
    memcpy(c, x, n * sizeof *c);
    return c;
}

/* ---- products -------------------------------------------------------------------------------- */

enum { F32, F16, BF16 };
typedef void MulfFn MULF_ARGS;
static MulfFn *mulf_of(const Kern *k, int type) {
    return type == F32 ? k->mul_f32 : type == F16 ? k->mul_f16 : k->mul_bf16;
}

/* n numbers of a type; every bit pattern may come when wild. */
static void fill_numbers(Test *t, uint8_t *p, int type, size_t n, int wild) {
    for (size_t i = 0; i < n; i++) {
        float f = rnd_wild_f32(t, wild);
        uint16_t h = type == F16 ? rnd_wild_f16(t, wild) : f32_to_bf16(f);
        if (wild == 2) h = (uint16_t)rnd(t);
        if (type == F32) memcpy(p + 4 * i, &f, 4);
        if (type != F32) memcpy(p + 2 * i, &h, 2);
    }
}

static void check_mulf(Test *t, int type) {
    int n = rnd_int(t, 1, rnd(t) % 4 ? 70 : 700), n_rows = rnd_int(t, 1, 17);
    int n_tokens = rnd_int(t, 1, 12), wild = rnd_int(t, 0, 2);
    size_t row = (size_t)n * (type == F32 ? 4 : 2), stride = row + 4 * (size_t)rnd_int(t, 0, 2);
    size_t ldx = (size_t)n + (size_t)rnd_int(t, 0, 3), ldy = (size_t)n_rows + rnd(t) % 3;
    size_t n_w = (size_t)(n_rows - 1) * stride + row;
    uint8_t *w = random_buffer(t, n_w);
    for (int r = 0; r < n_rows; r++) fill_numbers(t, w + (size_t)r * stride, type, (size_t)n, wild);
    float *x = random_f32(t, (size_t)(n_tokens - 1) * ldx + (size_t)n, wild), *y[2];
    size_t n_y = (size_t)(n_tokens - 1) * ldy + (size_t)n_rows;
    twins(t, &y[0], &y[1], n_y, 0);
    mulf_of(t->ref, type)(y[0], ldy, w, stride, n_rows, x, ldx, n_tokens, n);
    mulf_of(t->new, type)(y[1], ldy, w, stride, n_rows, x, ldx, n_tokens, n);
    same_f32(t, "y", y[0], y[1], n_y);
}

static void bench_mulf(Test *t, int type) {
    enum { N = 2048, BLOCKS = 512, TOKENS = 64 };
    size_t row = N * (type == F32 ? 4u : 2u), block = 16 * row;
    uint8_t *w = malloc(BLOCKS * block);
    float *x = random_f32(t, (size_t)TOKENS * N, 0), *y = buffer(t, sizeof(float) * 16 * TOKENS);
    if (!w) abort();
    fill_numbers(t, w, type, 16 * N, 0);
    for (size_t b = 1; b < BLOCKS; b++) memcpy(w + b * block, w, block);
    BENCH(t, "decode", (double)BLOCKS * (double)block, 16.0 * N * BLOCKS, {
        for (size_t b = 0; b < BLOCKS; b++)
            mulf_of(k, type)(y, 16, w + b * block, row, 16, x, N, 1, N);
    });
    BENCH(t, "prefill", block, 16.0 * N * TOKENS,
          { mulf_of(k, type)(y, 16, w, row, 16, x, N, TOKENS, N); });
    free(w);
}

#define MULF_CHECK(name, type)                                                                     \
    static void check_##name(Test *t) {                                                            \
        check_mulf(t, type);                                                                       \
    }                                                                                              \
    static void bench_##name(Test *t) {                                                            \
        bench_mulf(t, type);                                                                       \
    }
MULF_CHECK(mul_f32, F32)
MULF_CHECK(mul_f16, F16)
MULF_CHECK(mul_bf16, BF16)

/* ---- row by row ------------------------------------------------------------------------------ */

static void check_rmsnorm(Test *t) {
    int n = rnd_int(t, 1, 200), wild = rnd(t) % 4 == 0, in_place = rnd(t) % 2;
    float *x = random_f32(t, (size_t)n, wild), *w = random_f32(t, (size_t)n, 0), *y[2];
    for (int i = 0; i < 2; i++) {
        y[i] = copy_f32(t, x, (size_t)n);
        (i ? t->new : t->ref)->rmsnorm(y[i], in_place ? y[i] : x, w, n, 1e-5f);
    }
    same_f32(t, "y", y[0], y[1], (size_t)n);
}

static void check_rope(Test *t) {
    int n_rot = 2 * rnd_int(t, 1, 70), halves = rnd(t) & 1;
    float *cs = random_f32(t, (size_t)n_rot, 0), *x[2];
    twins(t, &x[0], &x[1], (size_t)n_rot, rnd(t) % 4 == 0);
    t->ref->rope(x[0], cs, n_rot, halves);
    t->new->rope(x[1], cs, n_rot, halves);
    same_f32(t, halves ? "halves" : "pairs", x[0], x[1], (size_t)n_rot);
}

static void check_swiglu(Test *t) {
    int n = rnd_int(t, 1, 70), wild = rnd(t) % 2;
    float *gate = random_f32(t, (size_t)n, wild), *up = random_f32(t, (size_t)n, wild), *y[2];
    for (int i = 0; i < n; i++) gate[i] *= ldexpf(1, rnd_int(t, -10, 7));
    for (int i = 0; i < 2; i++) {
        y[i] = buffer(t, (size_t)n * sizeof(float));
        (i ? t->new : t->ref)->swiglu(y[i], gate, up, n);
    }
    same_f32(t, "y", y[0], y[1], (size_t)n);
    for (int i = 0; i < n; i++) { /* where exp(-gate) is not denormal and nothing is special */
        double want = gate[i] / (1 + exp(-(double)gate[i])) * up[i];
        if (fabsf(gate[i]) < 80 && fabsf(gate[i]) > 1e-30f && fabs(want) > 1e-36 &&
            fabs(want) < 3e38 && !(fabs(y[1][i] - want) <= 5e-7 * fabs(want)))
            differ(t, "swiglu of %.9g, %.9g: %.9g", gate[i], up[i], y[1][i]);
    }
}

static void check_add(Test *t) {
    int n = rnd_int(t, 1, 70);
    float *y = random_f32(t, (size_t)n, 1), *x[2];
    twins(t, &x[0], &x[1], (size_t)n, 1);
    t->ref->add(x[0], y, n);
    t->new->add(x[1], y, n);
    same_f32(t, "x", x[0], x[1], (size_t)n);
}

static void bench_rows(Test *t, int which) {
    enum { N = 4096 };
    float *a = random_f32(t, N, 0), *b = random_f32(t, N, 0), *y = random_f32(t, N, 0);
    float max = 0, total = 0;
    BENCH(t, "", 12.0 * N, N, {
        if (which == 0) k->rmsnorm(y, a, b, N, 1e-5f);
        if (which == 1) k->rope(y, a, 128, 0);
        if (which == 2) k->swiglu(y, a, b, N);
        if (which == 3) k->add(y, a, N);
        if (which == 4) k->softmax(y, 256, &max, &total);
    });
}
static void bench_rmsnorm(Test *t) {
    bench_rows(t, 0);
}
static void bench_rope(Test *t) {
    bench_rows(t, 1);
}
static void bench_swiglu(Test *t) {
    bench_rows(t, 2);
}
static void bench_add(Test *t) {
    bench_rows(t, 3);
}
static void bench_softmax(Test *t) {
    bench_rows(t, 4);
}

/* ---- attention ------------------------------------------------------------------------------- */

static void check_softmax(Test *t) {
    static const float special[] = { -INFINITY, INFINITY, NAN, -3e38f, 3e38f };
    int n = rnd_int(t, 1, 300), mode = rnd_int(t, 0, 5);
    float *s[2], max[2], total[2], factor[2];
    s[0] = random_f32(t, (size_t)n, 0);
    for (int i = 0; i < n; i++) {
        s[0][i] *= ldexpf(1, rnd_int(t, -8, 8));
        if (mode == 1 && rnd(t) % 8 == 0) s[0][i] = special[rnd(t) % ARRAY_LEN(special)];
        if (mode == 2) s[0][i] = -INFINITY;
    }
    s[1] = copy_f32(t, s[0], (size_t)n);
    float *x = copy_f32(t, s[0], (size_t)n);
    float old_max = rnd(t) % 2 ? -INFINITY : rnd_f32(t) * 8, old = isinf(old_max) ? 0 : 2;
    for (int i = 0; i < 2; i++) {
        max[i] = old_max;
        total[i] = old;
        factor[i] = (i ? t->new : t->ref)->softmax(s[i], n, &max[i], &total[i]);
    }
    same_f32(t, "s", s[0], s[1], (size_t)n);
    same_f32(t, "max", &max[0], &max[1], 1);
    same_f32(t, "total", &total[0], &total[1], 1);
    same_f32(t, "factor", &factor[0], &factor[1], 1);
    double sum = old * exp((double)old_max - max[1]);
    for (int i = 0; i < n && mode != 1 && mode != 2; i++) {
        double want = exp((double)(x[i] - max[1]));
        sum += want;
        if (want > 1.2e-38 && !(fabs(s[1][i] - want) <= 2.4e-7 * want))
            differ(t, "exp(%.9g): %.9g", x[i] - max[1], s[1][i]);
    }
    if (mode == 2 && isinf(old_max) && (total[1] != 0 || factor[1] != 0))
        differ(t, "all -infinity: total %g, factor %g", total[1], factor[1]);
    if (mode > 2 && !(fabs(total[1] - sum) <= 1e-5 * sum)) differ(t, "total %.9g", total[1]);
    for (int i = 0; i < n; i++)
        if (isnan(x[i]) && !isnan(total[1])) differ(t, "a NaN was lost");
}

static uint8_t *random_rows(Test *t, int q8, int n_pos, int d, size_t stride, int wild) {
    size_t row = q8 ? (size_t)d + 2 : 2 * (size_t)d;
    uint8_t *k = random_buffer(t, (size_t)(n_pos - 1) * stride + row);
    for (int p = 0; p < n_pos; p++) {
        uint8_t *r = k + (size_t)p * stride;
        uint16_t h = rnd_wild_f16(t, wild);
        if (q8) memcpy(r + d, &h, 2);
        if (!q8) fill_numbers(t, r, F16, (size_t)d, wild);
    }
    return k;
}

typedef struct Shape {
    int n_pos, n_q, d, wild;
    size_t stride, lds;
} Shape;

static Shape random_shape(Test *t, int q8) {
    static const int dims[] = { 8, 16, 24, 32, 40, 64, 72, 80, 96, 120, 128, 256 };
    Shape s = { rnd_int(t, 1, rnd(t) % 4 ? 20 : 300),
                rnd_int(t, 1, 10),
                dims[rnd(t) % ARRAY_LEN(dims)],
                rnd(t) % 3 == 0,
                0,
                0 };
    s.stride = (q8 ? (size_t)s.d + 2 : 2 * (size_t)s.d) + 2 * (size_t)rnd_int(t, 0, 1);
    s.lds = (size_t)s.n_pos + (size_t)rnd_int(t, 0, 3);
    return s;
}

static void check_score_f16(Test *t) {
    Shape h = random_shape(t, 0);
    const uint8_t *k = random_rows(t, 0, h.n_pos, h.d, h.stride, h.wild);
    size_t ldq = (size_t)h.d + rnd(t) % 3, n_s = (size_t)(h.n_q - 1) * h.lds + (size_t)h.n_pos;
    float *q = random_f32(t, (size_t)(h.n_q - 1) * ldq + (size_t)h.d, h.wild), *s[2];
    twins(t, &s[0], &s[1], n_s, 0);
    t->ref->score_f16(s[0], h.lds, q, ldq, h.n_q, k, h.stride, h.n_pos, h.d);
    t->new->score_f16(s[1], h.lds, q, ldq, h.n_q, k, h.stride, h.n_pos, h.d);
    same_f32(t, "s", s[0], s[1], n_s);
}

static void check_score_q8(Test *t) {
    Shape h = random_shape(t, 1);
    const uint8_t *k = random_rows(t, 1, h.n_pos, h.d, h.stride, h.wild);
    size_t ldq = (size_t)h.d + rnd(t) % 3, n_s = (size_t)(h.n_q - 1) * h.lds + (size_t)h.n_pos;
    size_t n_q8 = (size_t)(h.n_q - 1) * ldq + (size_t)h.d;
    int8_t *q = random_buffer(t, n_q8);
    int extreme = rnd(t) % 4 == 0;
    for (size_t i = 0; i < n_q8; i++)
        if (q[i] == -128 || extreme) q[i] = rnd(t) % 8 ? 127 : -127;
    if (extreme)
        for (int p = 0; p < h.n_pos; p++)
            memset((uint8_t *)(uintptr_t)k + (size_t)p * h.stride, rnd(t) % 2 ? 0x80 : 0x7f,
                   (size_t)h.d);
    float *scale = random_f32(t, (size_t)h.n_q, h.wild), *s[2];
    twins(t, &s[0], &s[1], n_s, 0);
    t->ref->score_q8(s[0], h.lds, q, ldq, scale, h.n_q, k, h.stride, h.n_pos, h.d);
    t->new->score_q8(s[1], h.lds, q, ldq, scale, h.n_q, k, h.stride, h.n_pos, h.d);
    same_f32(t, "s", s[0], s[1], n_s);
}

static void check_accum(Test *t, int q8) {
    Shape h = random_shape(t, q8);
    const uint8_t *v = random_rows(t, q8, h.n_pos, h.d, h.stride, h.wild);
    size_t lda = (size_t)h.d + rnd(t) % 3, n_a = (size_t)(h.n_q - 1) * lda + (size_t)h.d;
    float *factor = random_f32(t, (size_t)h.n_q, h.wild), *acc[2];
    float *s = random_f32(t, (size_t)(h.n_q - 1) * h.lds + (size_t)h.n_pos, h.wild);
    twins(t, &acc[0], &acc[1], n_a, h.wild);
    for (int i = 0; i < 2; i++) {
        const Kern *k = i ? t->new : t->ref;
        (q8 ? k->accum_q8 : k->accum_f16)(acc[i], lda, factor, s, h.lds, h.n_q, v, h.stride,
                                          h.n_pos, h.d);
    }
    same_f32(t, "acc", acc[0], acc[1], n_a);
}
static void check_accum_f16(Test *t) {
    check_accum(t, 0);
}
static void check_accum_q8(Test *t) {
    check_accum(t, 1);
}

/* Four queries (one group) over a cache larger than the processor's caches; 32 over one block. */
static void bench_attend(Test *t, int q8, int accum) {
    enum { D = 64, POS = 256, BLOCKS = 512, QUERIES = 32 };
    size_t row = q8 ? D + 2 : 2 * D, block = POS * row;
    uint8_t *rows = malloc(BLOCKS * block);
    const uint8_t *first = random_rows(t, q8, POS, D, row, 0);
    float *s = random_f32(t, (size_t)QUERIES * POS, 0), *q = random_f32(t, (size_t)QUERIES * D, 0);
    float *acc = random_f32(t, (size_t)QUERIES * D, 0), one[QUERIES];
    int8_t *codes = random_buffer(t, (size_t)QUERIES * D);
    if (!rows) abort();
    for (int i = 0; i < QUERIES; i++) one[i] = 1;
    for (size_t b = 0; b < BLOCKS; b++) memcpy(rows + b * block, first, block);
#define RUN(p, n)                                                                                  \
    do {                                                                                           \
        if (accum && q8) k->accum_q8(acc, D, one, s, POS, n, p, row, POS, D);                      \
        if (accum && !q8) k->accum_f16(acc, D, one, s, POS, n, p, row, POS, D);                    \
        if (!accum && q8) k->score_q8(s, POS, codes, D, one, n, p, row, POS, D);                   \
        if (!accum && !q8) k->score_f16(s, POS, q, D, n, p, row, POS, D);                          \
    } while (0)
    for (int n = 1; n <= 4; n *= 4)
        BENCH(t, n == 1 ? "decode 1" : "decode 4", BLOCKS * (double)block,
              (double)n * D * POS * BLOCKS, {
                  for (size_t b = 0; b < BLOCKS; b++) RUN(rows + b * block, n);
              });
    BENCH(t, "prefill", block, (double)QUERIES * D * POS, { RUN(rows, QUERIES); });
#undef RUN
    free(rows);
}
static void bench_score_f16(Test *t) {
    bench_attend(t, 0, 0);
}
static void bench_score_q8(Test *t) {
    bench_attend(t, 1, 0);
}
static void bench_accum_f16(Test *t) {
    bench_attend(t, 0, 1);
}
static void bench_accum_q8(Test *t) {
    bench_attend(t, 1, 1);
}

/* ---- rows of the cache ----------------------------------------------------------------------- */

static void check_kv_put_f16(Test *t) {
    int d = 8 * rnd_int(t, 1, 32);
    float *x = random_f32(t, (size_t)d, 1), got[256], want[256];
    for (int i = 0; i < d; i++) x[i] *= ldexpf(1, rnd_int(t, -30, 20));
    uint8_t *row[2];
    for (int i = 0; i < 2; i++) {
        row[i] = random_buffer(t, 2 * (size_t)d);
        (i ? t->new : t->ref)->kv_put_f16(row[i], x, d);
    }
    for (int i = 0; i < d; i++) {
        want[i] = f16_to_f32(load_u16(row[0] + 2 * i));
        got[i] = f16_to_f32(load_u16(row[1] + 2 * i));
    }
    same_f32(t, "row", want, got, (size_t)d);
}

static void check_kv_put_q8(Test *t) {
    int d = 8 * rnd_int(t, 1, 32), mode = rnd_int(t, 0, 3), finite = 1;
    float *x = random_f32(t, (size_t)d, mode == 0), max = 0;
    float size = ldexpf(1, mode == 1 ? rnd_int(t, -40, 24) : 0);
    for (int i = 0; i < d; i++) {
        x[i] *= size;
        if (mode == 2) x[i] = (float)rnd_int(t, -254, 254) * 0.5f; /* ties */
        finite &= isfinite(x[i]);
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    }
    uint8_t *row[2];
    for (int i = 0; i < 2; i++) {
        row[i] = random_buffer(t, (size_t)d + 2);
        (i ? t->new : t->ref)->kv_put_q8(row[i], x, d);
    }
    same_bytes(t, "row", row[0], row[1], (size_t)d + 2);
    float scale = f16_to_f32(load_u16(row[1] + d));
    if (isnan(scale) != (!finite || max > 127 * 65504.0f))
        differ(t, "scale %g, max %g", scale, max);
    for (int i = 0; i < d && !isnan(scale); i++) {
        int code = (int8_t)row[1][i];
        if (code < -127 || !(fabsf(x[i] - (float)code * scale) <= 0.50005f * scale))
            differ(t, "%.9g became %d * %.9g", x[i], code, scale);
    }
}

static void bench_kv_put(Test *t, int q8) {
    enum { D = 128 };
    float *x = random_f32(t, D, 0);
    uint8_t *row = buffer(t, 2 * D);
    BENCH(t, "", 4.0 * D, D, { (q8 ? k->kv_put_q8 : k->kv_put_f16)(row, x, D); });
}
static void bench_kv_put_f16(Test *t) {
    bench_kv_put(t, 0);
}
static void bench_kv_put_q8(Test *t) {
    bench_kv_put(t, 1);
}

#define ROW(name)                                                                                  \
    { #name, offsetof(Kern, name), check_##name, bench_##name }
const Check float_checks[] = {
    ROW(mul_f32),   ROW(mul_f16),  ROW(mul_bf16),   ROW(rmsnorm),   ROW(rope),
    ROW(swiglu),    ROW(add),      ROW(softmax),    ROW(score_f16), ROW(score_q8),
    ROW(accum_f16), ROW(accum_q8), ROW(kv_put_f16), ROW(kv_put_q8),
};
const size_t n_float_checks = ARRAY_LEN(float_checks);
