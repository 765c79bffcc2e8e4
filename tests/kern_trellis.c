/* kern_trellis.c - checks of the products with t2 and t3 weights and of the rotation and rounding
 * of their inputs, for tests/kern.c. */
#include "kern_test.h"

/* Any bytes are codes. One row block of `height` rows, of which n_rows from row r0 on are used. */
typedef struct Tiles {
    int height, r0, n_rows, n_quads;
    uint8_t *codes, *signs; /* of row r0; signs NULL for t2 */
    uint16_t *scale;
} Tiles;

static Tiles random_tiles(Test *t, int bits, int n_quads, int wild) {
    Tiles w = { .height = rnd(t) % 2 ? 128 : 64, .n_quads = n_quads };
    w.n_rows = rnd(t) % 2 ? w.height : 64;
    w.r0 = w.height - w.n_rows;
    size_t n = (size_t)n_quads * (size_t)w.height;
    w.codes = random_buffer(t, n + 1);
    if (rnd(t) % 4 == 0) memset(w.codes, rnd(t) % 2 ? 0 : 255, n + 1);
    w.codes += 1 + w.r0;
    if (bits == 3) {
        w.signs = random_buffer(t, n / 2);
        if (rnd(t) % 4 == 0) memset(w.signs, rnd(t) % 2 ? 0 : 255, n / 2);
        w.signs += w.r0 / 2;
    }
    w.scale = buffer(t, (size_t)w.n_rows * sizeof *w.scale);
    for (int r = 0; r < w.n_rows; r++) w.scale[r] = rnd_wild_f16(t, wild);
    return w;
}

/* Activations in quads; extreme: all codes 127 or -127, or their signs random. Only the first scale
 * and sum of a token are read. */
static A8 random_a8(Test *t, int n_quads, int n_tokens, int wild) {
    size_t ld = 4 * (size_t)n_quads, n = (size_t)n_tokens * ld;
    A8 a = { random_buffer(t, n), buffer(t, n / 32 * sizeof(float)),
             buffer(t, n / 16 * sizeof(int32_t)), ld };
    int mode = rnd_int(t, 0, 5);
    for (size_t i = 0; i < n; i++) {
        if (a.q[i] == -128) a.q[i] = -127;
        if (mode < 2) a.q[i] = mode ? 127 : -127;
        if (mode == 2) a.q[i] = a.q[i] < 0 ? -127 : 127;
    }
    for (size_t i = 0; i < n / 32; i++) a.scale[i] = rnd_wild_f32(t, wild);
    for (size_t i = 0; i < n / 16; i++) a.sum[i] = (int32_t)rnd(t);
    for (size_t k = 0; k < (size_t)n_tokens; k++) {
        int32_t *sum = &a.sum[k * (ld / 16)];
        *sum = 0;
        for (size_t i = 0; i < ld; i++) *sum += a.q[k * ld + i];
    }
    return a;
}

typedef void MulTFn MUL_T_ARGS;
static MulTFn *mul_of(const Kern *k, int bits) {
    return bits == 2 ? k->mul_t2 : k->mul_t3;
}

static void check_mul_t(Test *t, int bits) {
    int n_quads = 8 * rnd_int(t, 1, rnd(t) % 4 ? 9 : 60), wild = rnd(t) % 2;
    int n_tokens = rnd(t) % 3 ? rnd_int(t, 1, 20) : 1;
    Tiles w = random_tiles(t, bits, n_quads, wild);
    A8 a = random_a8(t, n_quads, n_tokens, wild);
    size_t rows = (size_t)w.n_rows, ldy = rows + (size_t)rnd_int(t, 0, 3);
    size_t n_y = (size_t)(n_tokens - 1) * ldy + rows;
    float *want = buffer(t, n_y * sizeof(float)), *got = buffer(t, n_y * sizeof(float));
    for (size_t i = 0; i < n_y; i++) want[i] = got[i] = rnd_f32(t);
    mul_of(t->ref, bits)(want, ldy, w.codes, w.signs, w.height, w.n_rows, w.scale, n_quads, &a,
                         n_tokens);
    mul_of(t->new, bits)(got, ldy, w.codes, w.signs, w.height, w.n_rows, w.scale, n_quads, &a,
                         n_tokens);
    same_f32(t, "y", want, got, n_y);
}

/* Decode, one token: a row block in the cache, and a matrix larger than it. Prefill: 64 tokens. */
static void bench_mul_t(Test *t, int bits) {
    enum { QUADS = 512, TOKENS = 64, H = 128, MATRIX_BYTES = 192 << 20 };
    size_t n_codes = (size_t)H * QUADS, block_bytes = n_codes / 2 * (size_t)bits;
    size_t n_blocks = MATRIX_BYTES / block_bytes;
    uint8_t *m = malloc(n_blocks * block_bytes + 16);
    A8 a = random_a8(t, QUADS, TOKENS, 0);
    uint16_t scale[H] = { 0 };
    float *y = buffer(t, sizeof(float) * H * TOKENS);
    if (!m) abort();
    for (size_t i = 0; i < n_blocks * block_bytes + 16; i += 4) {
        uint32_t r = rnd(t);
        memcpy(m + i, &r, 4);
    }
    uint8_t *w = m + 16;
    double macs = 4.0 * (double)n_codes, ns;
    BENCH(t, "prefill", block_bytes, macs * TOKENS,
          { mul_of(k, bits)(y, H, w, w + n_codes, H, H, scale, QUADS, &a, TOKENS); });
    BENCH(t, "decode", block_bytes, macs,
          { mul_of(k, bits)(y, H, w, w + n_codes, H, H, scale, QUADS, &a, 1); });
    TIME(ns, 31, {
        for (size_t b = 0; b < n_blocks; b++) {
            const uint8_t *c = w + b * block_bytes;
            mul_of(t->new, bits)(y, H, c, c + n_codes, H, H, scale, QUADS, &a, 1);
        }
    });
    double bytes = (double)(n_blocks * block_bytes);
    printf("     %-8s %12.1f ns %8.2f GB/s %8.2f GMAC/s %6.0f %% of read bandwidth\n", "memory", ns,
           bytes / ns, macs * (double)n_blocks / ns, 100 * bytes / ns / t->bandwidth);
    free(m);
}

static void check_mul_t2(Test *t) {
    check_mul_t(t, 2);
}
static void check_mul_t3(Test *t) {
    check_mul_t(t, 3);
}
static void bench_mul_t2(Test *t) {
    bench_mul_t(t, 2);
}
static void bench_mul_t3(Test *t) {
    bench_mul_t(t, 3);
}

/* ---- inputs ---- */

static int random_width(Test *t) { /* a multiple of 32 */
    return rnd(t) % 2 ? 32 * rnd_int(t, 1, 70) : 32 << rnd(t) % 8;
}

static void check_rotate(Test *t) {
    size_t n = (size_t)random_width(t);
    uint32_t seed = rnd(t);
    float *x = buffer(t, n * sizeof *x), *y[2];
    int wild = rnd(t) % 8 == 0, size = rnd(t) % 4 ? 0 : rnd_int(t, -130, 100);
    for (size_t i = 0; i < n; i++) x[i] = ldexpf(rnd_wild_f32(t, wild), size);
    for (int k = 0; k < 2; k++) {
        y[k] = random_buffer(t, n * sizeof(float));
        (k ? t->new : t->ref)->rotate(y[k], x, (int)n, seed);
    }
    same_f32(t, "dst", y[0], y[1], n);
}

static void bench_rotate(Test *t) {
    static const int widths[] = { 2048, 8192, 1536 };
    for (size_t i = 0; i < ARRAY_LEN(widths); i++) {
        int n = widths[i];
        float *x = buffer(t, (size_t)n * sizeof *x), *y = buffer(t, (size_t)n * sizeof *y);
        char what[16];
        for (int j = 0; j < n; j++) x[j] = rnd_f32(t);
        snprintf(what, sizeof what, "n %d", n);
        BENCH(t, what, sizeof(float) * (size_t)n, n, { k->rotate(y, x, n, 1); });
    }
}

static void check_quantize_t(Test *t) {
    size_t n = (size_t)random_width(t);
    float *x = buffer(t, n * sizeof *x), scale[2];
    int8_t *q[2];
    int32_t sum[2];
    int wild = rnd(t) % 3, size = rnd(t) % 4 ? rnd_int(t, -8, 8) : rnd_int(t, -149, 127);
    for (size_t i = 0; i < n; i++) {
        x[i] = wild == 1 ? rnd_wild_f32(t, rnd(t) % 64 == 0) : ldexpf(rnd_f32(t), size);
        if (wild == 2) x[i] = (float)rnd_int(t, -254, 254) * 0.5f; /* ties */
    }
    if (wild == 2) x[0] = 127;
    if (rnd(t) % 16 == 0) memset(x, 0, n * sizeof *x);
    for (int k = 0; k < 2; k++) {
        q[k] = random_buffer(t, n);
        (k ? t->new : t->ref)->quantize_t(q[k], &scale[k], &sum[k], x, (int)n);
    }
    same_bytes(t, "q", q[0], q[1], n);
    same_f32(t, "scale", &scale[0], &scale[1], 1);
    same_bytes(t, "sum", &sum[0], &sum[1], sizeof sum[0]);
}

static void bench_quantize_t(Test *t) {
    enum { N = 4096 };
    float *x = buffer(t, N * sizeof *x), scale;
    int8_t *q = buffer(t, N);
    int32_t sum;
    for (int i = 0; i < N; i++) x[i] = rnd_f32(t);
    BENCH(t, "", sizeof(float) * N, N, { k->quantize_t(q, &scale, &sum, x, N); });
}

#define ROW(name)                                                                                  \
    { #name, offsetof(Kern, name), check_##name, bench_##name }
const Check trellis_checks[] = {
    ROW(mul_t2),
    ROW(mul_t3),
    ROW(rotate),
    ROW(quantize_t),
};
const size_t n_trellis_checks = ARRAY_LEN(trellis_checks);
