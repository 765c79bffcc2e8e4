/* kern_kv.c - checks of the loops over k2, k3 and q4 rows of the KV cache, for tests/kern.c. */
#include "kern_test.h"
#include "kv23.h"

static const int dims[] = { 32, 48, 64, 80, 96, 128, 256 };

static float *floats(Test *t, size_t n, int wild) {
    float *x = buffer(t, n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = rnd_wild_f32(t, wild);
    return x;
}

static void check_kv_luts(Test *t) {
    int d = dims[rnd(t) % ARRAY_LEN(dims)], bits = rnd_int(t, 2, 3);
    float *x = floats(t, (size_t)d, 0), inv = ldexpf(1 + rnd_f32(t) / 2, rnd_int(t, -3, 9));
    if (rnd(t) % 4 == 0) x[rnd_int(t, 0, d - 1)] = 3e30f;
    uint8_t *a = random_buffer(t, 16 * (size_t)d), *b = random_buffer(t, 16 * (size_t)d);
    float weight[4];
    for (int i = 0; i < 4; i++)
        weight[i] = rnd(t) % 2 ? 1 : ldexpf(1 + rnd_f32(t), rnd_int(t, -4, 3));
    t->ref->kv_luts(a, x, inv, weight, d, bits);
    t->new->kv_luts(b, x, inv, weight, d, bits);
    same_bytes(t, "lut", a, b, 16 * (size_t)d);
}

static void check_kv_step(Test *t) {
    static T4Table table;
    if (!table[0][0][255]) t4_table(table);
    int n = rnd_int(t, 1, 64), half = rnd_int(t, -1, 1), beam = rnd_int(t, 1, 32), count[2];
    uint8_t *lut = random_buffer(t, 64), *from = random_buffer(t, (size_t)n);
    uint8_t *cost = random_buffer(t, (size_t)n), *s[2], *c[2];
    int most = rnd(t) % 2 ? 63 : 3; /* many ties */
    for (int i = 0; i < 64; i++) lut[i] = (uint8_t)(lut[i] % (most + 1));
    for (int i = 0; i < n && rnd(t) % 4; i++) cost[i] &= 31;
    for (int k = 0; k < 2; k++) {
        s[k] = buffer(t, 2 * (size_t)beam);
        c[k] = buffer(t, 2 * (size_t)beam);
        memset(s[k], 0, 2 * (size_t)beam);
        memset(c[k], 0, 2 * (size_t)beam);
        count[k] =
            (k ? t->new : t->ref)->kv_step(s[k], c[k], lut, from, cost, n, half, beam, table[0][0]);
    }
    if (count[0] != count[1]) differ(t, "%d survivors, expected %d", count[1], count[0]);
    same_bytes(t, "state", s[0], s[1], 2 * (size_t)beam);
    same_bytes(t, "cost", c[0], c[1], 2 * (size_t)beam);
}

/* A row type, n_pos rows of it and n_q queries. */
typedef struct Rows {
    int bits, d, n_pos, n_q, padded; /* bits 4: q4 */
    size_t stride, lds;
    uint8_t *rows;
} Rows;

static Rows random_rows(Test *t, int bits) {
    Rows r = { .bits = bits, .d = dims[rnd(t) % ARRAY_LEN(dims)] };
    r.n_pos = rnd(t) % 4 ? rnd_int(t, 1, 256) : 256;
    r.n_q = rnd_int(t, 1, 9);
    r.padded = bits == 4 ? r.n_pos : (r.n_pos + 15) / 16 * 16;
    r.stride = bits == 4 ? (size_t)(r.d / 2 + (r.d + 31) / 32 * 2) : kv_record_bytes(bits, r.d);
    r.lds = (size_t)r.padded + rnd(t) % 5;
    r.rows = random_buffer(t, (size_t)r.padded * r.stride);
    if (rnd(t) % 8 == 0) memset(r.rows, rnd(t) % 2 ? 0 : 255, (size_t)r.padded * r.stride);
    for (int p = 0; bits == 4 && p < r.n_pos; p++)
        for (int g = 0; 32 * g < r.d; g++) {
            uint16_t h = rnd_wild_f16(t, rnd(t) % 8 == 0);
            memcpy(r.rows + (size_t)p * r.stride + r.d / 2 + 2 * g, &h, 2);
        }
    return r;
}

static void check_score(Test *t, int bits) {
    Rows r = random_rows(t, bits);
    size_t d = (size_t)r.d, n_s = (size_t)(r.n_q - 1) * r.lds + (size_t)r.padded;
    int8_t *q = random_buffer(t, (size_t)r.n_q * d);
    float *scale = floats(t, (size_t)r.n_q, 1), *s[2];
    int32_t *sum = buffer(t, (size_t)r.n_q * sizeof *sum);
    for (int j = 0; j < r.n_q; j++) {
        sum[j] = 0;
        for (size_t i = 0; i < d; i++) {
            int8_t *c = &q[(size_t)j * d + i];
            if (*c == -128 || t->round % 4 == 0) *c = rnd(t) % 2 ? 127 : -127;
            sum[j] += *c;
        }
    }
    for (int k = 0; k < 2; k++) {
        const Kern *kern = k ? t->new : t->ref;
        s[k] = buffer(t, n_s * sizeof(float));
        for (size_t i = 0; i < n_s; i++) s[k][i] = 77;
        if (bits == 4)
            kern->score_q4(s[k], r.lds, q, d, scale, r.n_q, r.rows, r.stride, r.n_pos, r.d);
        else
            (bits == 2 ? kern->score_k2 : kern->score_k3)(s[k], r.lds, q, d, scale, sum, r.n_q,
                                                          r.rows, r.n_pos, r.d);
    }
    same_f32(t, "s", s[0], s[1], n_s);
}

static void check_accum(Test *t, int bits) {
    Rows r = random_rows(t, bits);
    size_t lda = (size_t)r.d + rnd(t) % 3, n_a = (size_t)(r.n_q - 1) * lda + (size_t)r.d;
    size_t n_s = (size_t)(r.n_q - 1) * r.lds + (size_t)r.n_pos;
    float *factor = floats(t, (size_t)r.n_q, 0), *s = buffer(t, n_s * sizeof *s), *acc[2];
    int kind = rnd_int(t, 0, 4);
    for (size_t i = 0; i < n_s; i++) { /* weights of a softmax: 0 to 1 */
        s[i] = fabsf(rnd_f32(t));
        if (kind == 1) s[i] = rnd(t) % 9 ? 0 : s[i];
        if (kind == 2) s[i] = 0;
        if (kind == 3) s[i] *= 1e-38f;
    }
    if (kind == 4) s[rnd(t) % n_s] = rnd(t) % 2 ? NAN : INFINITY;
    acc[0] = floats(t, n_a, rnd(t) % 8 == 0);
    acc[1] = buffer(t, n_a * sizeof(float));
    memcpy(acc[1], acc[0], n_a * sizeof(float));
    for (int k = 0; k < 2; k++) {
        const Kern *kern = k ? t->new : t->ref;
        if (bits == 4)
            kern->accum_q4(acc[k], lda, factor, s, r.lds, r.n_q, r.rows, r.stride, r.n_pos, r.d);
        else
            (bits == 2 ? kern->accum_k2 : kern->accum_k3)(acc[k], lda, factor, s, r.lds, r.n_q,
                                                          r.rows, r.n_pos, r.d);
    }
    same_f32(t, "acc", acc[0], acc[1], n_a);
}

/* One group of four queries over a cache of 32,768 positions of d = 64. */
static void bench(Test *t, int bits, int accum) {
    enum { D = 64, POS = 256, BLOCKS = 128, N = 4 };
    size_t row = bits == 4 ? D / 2 + 4 : kv_record_bytes(bits, D), block = POS * row;
    uint8_t *rows = malloc(BLOCKS * block);
    for (size_t i = 0; i < BLOCKS * block; i++) rows[i] = (uint8_t)rnd(t);
    float *s = floats(t, (size_t)N * POS, 0), *acc = floats(t, (size_t)N * D, 0);
    static const float one[N] = { 1, 1, 1, 1 };
    static const int32_t sum[N] = { 0 };
    int8_t *q = random_buffer(t, (size_t)N * D);
    for (int i = 0; i < N * POS; i++) s[i] = fabsf(s[i]);
    BENCH(t, "decode 4", BLOCKS * block, (double)N * D * POS * BLOCKS, {
        for (size_t b = 0; b < BLOCKS; b++) {
            const uint8_t *p = rows + b * block;
            if (bits == 4 && accum) k->accum_q4(acc, D, one, s, POS, N, p, row, POS, D);
            if (bits == 4 && !accum) k->score_q4(s, POS, q, D, one, N, p, row, POS, D);
            if (bits < 4 && accum)
                (bits == 2 ? k->accum_k2 : k->accum_k3)(acc, D, one, s, POS, N, p, POS, D);
            if (bits < 4 && !accum)
                (bits == 2 ? k->score_k2 : k->score_k3)(s, POS, q, D, one, sum, N, p, POS, D);
        }
    });
    free(rows);
}

#define PAIR(op, type, bits, accum)                                                                \
    static void check_##op##_##type(Test *t) {                                                     \
        check_##op(t, bits);                                                                       \
    }                                                                                              \
    static void bench_##op##_##type(Test *t) {                                                     \
        bench(t, bits, accum);                                                                     \
    }
PAIR(score, k2, 2, 0)
PAIR(score, k3, 3, 0)
PAIR(score, q4, 4, 0)
PAIR(accum, k2, 2, 1)
PAIR(accum, k3, 3, 1)
PAIR(accum, q4, 4, 1)

#define ROW(name)                                                                                  \
    { #name, offsetof(Kern, name), check_##name, bench_##name }
const Check kv_checks[] = {
    { "kv_luts", offsetof(Kern, kv_luts), check_kv_luts, NULL },
    { "kv_step", offsetof(Kern, kv_step), check_kv_step, NULL },
    ROW(score_k2),
    ROW(score_k3),
    ROW(score_q4),
    ROW(accum_k2),
    ROW(accum_k3),
    ROW(accum_q4),
};
const size_t n_kv_checks = ARRAY_LEN(kv_checks);
