/* self_test.c - whether this host computes what the engine's kernels mean: each slot that the
 * module fills is run beside the scalar one on the same small random input, in a few milliseconds.
 * Hosts had wrong relaxed dots; one that fails should load a lesser module, or at last set isa_mask
 * to DIBIT_ISA_SCALAR. Right after loading that tries what the host's quick compiler made of them;
 * once more after the first answer, what its optimizing one did. tests/kern.c is the thorough
 * check; here it is one shape of each. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "kern/kern.h"
#include "kv23.h"

enum {
    N = 96,      /* inputs: three groups of 32 */
    TOKENS = 5,  /* a tile of tokens and one more */
    ROWS = 64,   /* of t2 and t3; row blocks have 16 */
    D = 64,      /* of a head */
    POS = 37,    /* rows of the cache, not a multiple of anything */
    LDS = 48,    /* POS rounded up to 16 */
    OUT = 40000, /* bytes of all results together */
    SLOTS = 48
};

typedef struct Inputs {
    uint8_t bytes[16384], q4[3 * Q4X_BYTES], q8[3 * Q8X_BYTES];
    uint8_t halves[ROWS * N * 2]; /* finite f16 or bf16 */
    uint8_t rows_q8[POS * (D + 2)], rows_q4[POS * (D / 2 + 4)];
    KqGroup kq[3];
    float x[TOKENS * N], w[TOKENS * N], weights[TOKENS * LDS], scale[TOKENS * (N / 32)];
    int8_t q[TOKENS * N];
    int32_t sum[TOKENS * (N / 16)], whole[TOKENS * (N / 16)]; /* whole: a token's, at its first */
    uint8_t table[256 * 4 * 256];                             /* a T4Table */
} Inputs;

/* Results one after another; end[i] is where those of names[i] end. */
typedef struct Results {
    int n;
    size_t used, end[SLOTS];
    const char *names[SLOTS];
    uint8_t bytes[OUT];
} Results;

static uint32_t next(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

static float number(uint64_t *seed) { /* -1..1 */
    return (float)((int32_t)(next(seed) % 65537) - 32768) / 32768;
}

static void fill(uint8_t *p, size_t n, uint64_t *seed) {
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(next(seed) >> 8);
}

/* n random f16 (or bf16) below 2. */
static void finite(uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) p[2 * i + 1] &= 0xbf;
}

static void make_activations(Inputs *in, uint64_t *seed) {
    memset(in->sum, 0, sizeof in->sum);
    memset(in->whole, 0, sizeof in->whole);
    for (int i = 0; i < TOKENS * N; i++) { /* half of them as large as can be */
        int q = (int)(next(seed) % 255) - 127;
        in->q[i] = (int8_t)(next(seed) & 1 ? q : q < 0 ? -127 : 127);
        in->sum[i / 16] += in->q[i];
        in->whole[i / N * (N / 16)] += in->q[i];
        in->x[i] = 3 * number(seed);
        in->w[i] = number(seed);
    }
    for (int i = 0; i < TOKENS * (N / 32); i++) in->scale[i] = 0.01f + fabsf(number(seed));
    for (int i = 0; i < TOKENS * LDS; i++) in->weights[i] = fabsf(number(seed));
}

static void make_weights(Inputs *in, uint64_t *seed) {
    fill(in->bytes, sizeof in->bytes, seed);
    fill(in->q4, sizeof in->q4, seed);
    fill(in->q8, sizeof in->q8, seed);
    fill(in->halves, sizeof in->halves, seed);
    fill(in->rows_q8, sizeof in->rows_q8, seed);
    fill(in->rows_q4, sizeof in->rows_q4, seed);
    finite(in->halves, sizeof in->halves / 2);
    for (size_t g = 0; g < 3; g++) {
        finite(in->q4 + g * Q4X_BYTES, 16);
        finite(in->q8 + g * Q8X_BYTES, 16);
        for (int r = 0; r < 16; r++) {
            in->kq[g].d[r] = number(seed);
            in->kq[g].dm[r] = number(seed);
            for (int h = 0; h < 2; h++) {
                in->kq[g].sc[r][h] = (int16_t)((int)(next(seed) % 257) - 128);
                in->kq[g].mn[r][h] = (int16_t)((int)(next(seed) % 8193) - 4096);
            }
        }
        for (int i = 0; i < 512; i++) in->kq[g].code[i] = (uint8_t)(next(seed) % 64);
    }
    for (size_t p = 0; p < POS; p++) {
        finite(in->rows_q8 + p * (D + 2) + D, 1);
        finite(in->rows_q4 + p * (D / 2 + 4) + D / 2, 2);
    }
    t4_table((void *)in->table);
}

/* Room for the results of `name`, zeros. */
static void *room(Results *r, const char *name, size_t n_bytes) {
    if (r->n == SLOTS || n_bytes > OUT - r->used) abort();
    void *p = r->bytes + r->used;
    r->used += (n_bytes + 15) & ~(size_t)15;
    r->names[r->n] = name;
    r->end[r->n++] = r->used;
    return memset(p, 0, n_bytes);
}
#define FLOATS(slot, n) ((float *)room(r, #slot, (n) * sizeof(float)))

static void products(const Kern *k, Inputs *in, Results *r) {
    const A8 a = { in->q, in->scale, in->sum, N }, rotated = { in->q, in->scale, in->whole, N };
    const uint16_t *rows = (const uint16_t *)in->halves;
    const uint8_t *kq = (const uint8_t *)in->kq, *codes = in->bytes + 64;
    const uint8_t *signs = in->bytes + 8192;
    k->mul_q4(FLOATS(mul_q4, TOKENS * 16), 16, in->q4, NULL, 3, &a, TOKENS);
    k->mul_q8(FLOATS(mul_q8, TOKENS * 16), 16, in->q8, NULL, 3, &a, TOKENS);
    k->mul_s2(FLOATS(mul_s2, TOKENS * 16), 16, in->bytes, rows, 3, &a, TOKENS);
    k->mul_s3(FLOATS(mul_s3, TOKENS * 16), 16, in->bytes, rows, 3, &a, TOKENS);
    k->mul_kq(FLOATS(mul_kq, TOKENS * 16), 16, kq, NULL, 3, &a, TOKENS);
    for (int n = 1; n <= TOKENS; n += TOKENS - 1) { /* one token has code of its own */
        float *y2 = FLOATS(mul_t2, TOKENS * ROWS), *y3 = FLOATS(mul_t3, TOKENS * ROWS);
        k->mul_t2(y2, ROWS, codes, NULL, ROWS, ROWS, rows, N / 4, &rotated, n);
        k->mul_t3(y3, ROWS, codes, signs, ROWS, ROWS, rows, N / 4, &rotated, n);
    }
    const uint8_t *f32 = (const uint8_t *)in->w;
    k->mul_f32(FLOATS(mul_f32, TOKENS * 5), 5, f32, 4 * N, 5, in->x, N, TOKENS, N);
    k->mul_f16(FLOATS(mul_f16, TOKENS * 5), 5, in->halves, 2 * N, 5, in->x, N, TOKENS, N - 3);
    k->mul_bf16(FLOATS(mul_bf16, TOKENS * 5), 5, in->halves, 2 * N, 5, in->x, N, TOKENS, N);
}

static void vectors(const Kern *k, Inputs *in, Results *r) {
    int32_t *sum = room(r, "quantize", 64);
    k->quantize(room(r, "quantize", N), FLOATS(quantize, 4), sum, in->x, N);
    sum = room(r, "quantize_t", 64);
    k->quantize_t(room(r, "quantize_t", N), FLOATS(quantize_t, 4), sum, in->x, N);
    k->rotate(FLOATS(rotate, N), in->x, N, 12345);
    k->rmsnorm(FLOATS(rmsnorm, N), in->x, in->w, N - 1, 1e-5f);
    k->rope(memcpy(FLOATS(rope, D), in->x, D * sizeof(float)), in->w, D, 0);
    k->rope(memcpy(FLOATS(rope, D), in->x, D * sizeof(float)), in->w, D, 1);
    k->swiglu(FLOATS(swiglu, N), in->x, in->w, N - 1);
    k->add(memcpy(FLOATS(add, N), in->x, N * sizeof(float)), in->w, N - 1);
}

static void attention(const Kern *k, Inputs *in, Results *r) {
    const size_t q8 = D + 2, q4 = D / 2 + 4;
    const float *s = in->weights, *f = in->scale;
    int32_t sums[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        sums[t] = 0;
        for (int i = 0; i < D; i++) sums[t] += in->q[t * D + i];
    }
    k->score_f16(FLOATS(score_f16, TOKENS * LDS), LDS, in->x, D, TOKENS, in->halves, 2 * D, POS, D);
    k->score_q8(FLOATS(score_q8, TOKENS * LDS), LDS, in->q, D, f, TOKENS, in->rows_q8, q8, POS, D);
    k->score_q4(FLOATS(score_q4, TOKENS * LDS), LDS, in->q, D, f, TOKENS, in->rows_q4, q4, POS, D);
    k->score_k2(FLOATS(score_k2, TOKENS * LDS), LDS, in->q, D, f, sums, TOKENS, in->bytes, POS, D);
    k->score_k3(FLOATS(score_k3, TOKENS * LDS), LDS, in->q, D, f, sums, TOKENS, in->bytes, POS, D);
    float *p = FLOATS(softmax, LDS);
    memcpy(p, in->x, LDS * sizeof *p);
    p[POS + 1] = -1; /* the largest so far, and a sum */
    p[POS + 2] = k->softmax(p, POS, p + POS + 1, p + POS + 3);
    k->accum_f16(FLOATS(accum_f16, TOKENS * D), D, f, s, LDS, TOKENS, in->halves, 2 * D, POS, D);
    k->accum_q8(FLOATS(accum_q8, TOKENS * D), D, f, s, LDS, TOKENS, in->rows_q8, q8, POS, D);
    k->accum_q4(FLOATS(accum_q4, TOKENS * D), D, f, s, LDS, TOKENS, in->rows_q4, q4, POS, D);
    k->accum_k2(FLOATS(accum_k2, TOKENS * D), D, f, s, LDS, TOKENS, in->bytes, POS, D);
    k->accum_k3(FLOATS(accum_k3, TOKENS * D), D, f, s, LDS, TOKENS, in->bytes, POS, D);
    k->kv_put_f16(room(r, "kv_put_f16", 2 * D), in->x, D);
    k->kv_put_q8(room(r, "kv_put_q8", D + 2), in->x, D);
    k->kv_put_q4(room(r, "kv_put_q4", q4), in->x, D);
    uint8_t *lut = room(r, "kv_luts", 16 * D), *to = room(r, "kv_step", 128);
    k->kv_luts(lut, in->x, 2, in->scale, D, 2);
    k->kv_step(to, to + 64, lut, in->bytes, in->bytes + 300, 32, -1, 16, in->table);
}

static void run_all(const Kern *k, Inputs *in, Results *r) {
    r->n = 0;
    r->used = 0;
    memset(r->bytes, 0, sizeof r->bytes);
    products(k, in, r);
    vectors(k, in, r);
    attention(k, in, r);
}

/* Number of results that differ; their slots' names go to `wrong` with a space behind each, as many
 * as fit. */
static int compare(const Results *a, const Results *b, char *wrong, size_t cap) {
    size_t from = 0, used = 0;
    int n = 0;
    for (int i = 0; i < a->n; from = a->end[i++]) {
        if (memcmp(a->bytes + from, b->bytes + from, a->end[i] - from) == 0) continue;
        size_t length = strlen(a->names[i]);
        if (used + length + 2 <= cap) {
            memcpy(wrong + used, a->names[i], length);
            wrong[used + length] = ' ';
            used += length + 1;
        }
        n++;
    }
    if (cap) wrong[used] = 0;
    return n;
}

/* Returns 0, or how many results are wrong, or DIBIT_E_MEMORY. */
__attribute__((export_name("dibit_self_test"))) int dibit_self_test(uint32_t seed, char *wrong,
                                                                    size_t cap);
int dibit_self_test(uint32_t seed, char *wrong, size_t cap) {
    Inputs *in = mem_calloc(NULL, 1, sizeof *in);
    Results *r = mem_calloc(NULL, 2, sizeof *r);
    int n = DIBIT_E_MEMORY;
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    if (in && r) {
        Kern scalar, all;
        kern_init(&scalar, DIBIT_ISA_SCALAR);
        kern_init(&all, ~0u);
        make_activations(in, &state);
        make_weights(in, &state);
        run_all(&scalar, in, &r[0]);
        run_all(&all, in, &r[1]);
        n = compare(&r[0], &r[1], wrong, cap);
    }
    mem_free(NULL, in);
    mem_free(NULL, r);
    return n;
}
