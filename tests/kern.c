/* kern.c - every kernel against the scalar one, for each instruction set of this machine.
 * For each set, weakest first, each slot that it fills anew gets random shapes, tails and extreme
 * values; results must be equal (==, NaN equal to NaN). Buffers lie flush against unreadable pages,
 * so a load one byte past an argument is a failure that names the slot.
 *
 * usage: test_kern [-s SEED] [-n ROUNDS] [-k PREFIX] [-i ISA] [-b]
 *   -k only slots whose name begins with PREFIX   -i only this instruction set (avx2, neon, ...)
 *   -b also times: median of 31, ratio to scalar  -n rounds per slot, default 300
 *
 * Static, to be carried to another machine (x86-64; needs nothing but gcc):
 *   tests/kern_static.sh test_kern [CC]
 * The same for aarch64, and its run under qemu: tests/neon.sh. */
#define _GNU_SOURCE
#include "kern_test.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- harness --------------------------------------------------------------------------------- */

enum { AREAS = 16, AREA_BYTES = 1 << 23 };
static uint8_t *areas[AREAS]; /* each between two unreadable pages */
static sigjmp_buf on_fault;

uint32_t rnd(Test *t) { /* splitmix64, upper half */
    uint64_t x = t->rng += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ (x >> 31)) >> 32);
}

int rnd_int(Test *t, int lo, int hi) {
    return lo + (int)(rnd(t) % (uint32_t)(hi - lo + 1));
}

float rnd_f32(Test *t) {
    return ((float)rnd(t) - 0x1p31f) * 0x1p-31f;
}

/* One in 16: zero, denormal, huge, infinity or NaN where `wild`, else a number within +-1. */
float rnd_wild_f32(Test *t, int wild) {
    static const float special[] = { 0, -0.0f, 1e-42f, -1e-39f, 3e38f, -3e38f, 1, INFINITY, NAN };
    if (wild && rnd(t) % 16 == 0) return special[rnd(t) % ARRAY_LEN(special)];
    return rnd_f32(t);
}

uint16_t rnd_wild_f16(Test *t, int wild) {
    static const uint16_t special[] = { 0, 0x8000, 1, 0x83ff, 0x7bff, 0xfbff, 0x7c00, 0x7e00 };
    if (wild && rnd(t) % 16 == 0) return special[rnd(t) % ARRAY_LEN(special)];
    return f32_to_f16(rnd_f32(t));
}

void *buffer(Test *t, size_t n_bytes) {
    assert(n_bytes <= AREA_BYTES && t->n_used < AREAS);
    uint8_t *p = areas[t->n_used++];
    int front = rnd(t) % 8 == 0; /* mostly the end is guarded, at times the beginning */
    return front ? p : p + AREA_BYTES - n_bytes;
}

void *random_buffer(Test *t, size_t n_bytes) {
    uint8_t *p = buffer(t, n_bytes);
    for (size_t i = 0; i < n_bytes; i++) p[i] = (uint8_t)(rnd(t) >> 8);
    return p;
}

void differ(Test *t, const char *fmt, ...) {
    if (t->n_differ++ >= 3) return;
    va_list ap;
    va_start(ap, fmt);
    printf("     ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
}

void same_f32(Test *t, const char *what, const float *want, const float *got, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(want[i] == got[i]) && !(isnan(want[i]) && isnan(got[i])))
            differ(t, "%s[%zu]: %.9g, expected %.9g", what, i, got[i], want[i]);
}

void same_bytes(Test *t, const char *what, const void *want, const void *got, size_t n) {
    const uint8_t *w = want, *g = got;
    for (size_t i = 0; i < n; i++)
        if (w[i] != g[i]) differ(t, "%s byte %zu: %d, expected %d", what, i, g[i], w[i]);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static void fault(int sig) {
    siglongjmp(on_fault, sig);
}

static void setup(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < AREAS; i++) {
        uint8_t *p =
            mmap(NULL, AREA_BYTES + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p + page, AREA_BYTES, PROT_READ | PROT_WRITE)) abort();
        areas[i] = p + page;
    }
    struct sigaction sa = { .sa_handler = fault, .sa_flags = SA_NODEFER };
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGBUS, &sa, NULL);
    sigaction(SIGILL, &sa, NULL);
}

/* ---- products -------------------------------------------------------------------------------- */

enum { Q4, Q8, S2, S3, KQ };
static const size_t group_bytes[] = { Q4X_BYTES, Q8X_BYTES, 144, 208, sizeof(KqGroup) };

typedef void MulFn MUL_ARGS;
static MulFn *mul_of(const Kern *k, int type) {
    MulFn *f[] = { k->mul_q4, k->mul_q8, k->mul_s2, k->mul_s3, k->mul_kq };
    return f[type];
}

/* Activations as quantize() makes them; extreme: all codes +127 or -127. */
static A8 random_a8(Test *t, int n_groups, int n_tokens, int wild) {
    size_t n = (size_t)n_tokens * (size_t)n_groups;
    A8 a = { random_buffer(t, 32 * n), buffer(t, n * sizeof(float)),
             buffer(t, 2 * n * sizeof(int32_t)), 32 * (size_t)n_groups };
    int mode = rnd_int(t, 0, 5);
    for (size_t i = 0; i < 32 * n; i++) {
        if (a.q[i] == -128) a.q[i] = -127;
        if (mode < 2) a.q[i] = mode ? 127 : -127;
        if (mode == 2) a.q[i] = a.q[i] < 0 ? -127 : 127;
    }
    for (size_t i = 0; i < n; i++) a.scale[i] = rnd_wild_f32(t, wild);
    for (size_t i = 0; i < 2 * n; i++) {
        a.sum[i] = 0;
        for (size_t j = 0; j < 16; j++) a.sum[i] += a.q[16 * i + j];
    }
    return a;
}

static void random_kq(Test *t, KqGroup *g, int wild) {
    int extreme = rnd(t) % 4 == 0, sign = rnd(t) & 1;
    for (int r = 0; r < 16; r++) {
        g->d[r] = rnd_wild_f32(t, wild);
        g->dm[r] = rnd_wild_f32(t, wild);
        for (int h = 0; h < 2; h++) {
            g->sc[r][h] = (int16_t)(extreme ? (sign ? -128 : 127) : rnd_int(t, -128, 127));
            g->mn[r][h] = (int16_t)(extreme ? (sign ? -4096 : 4064) : rnd_int(t, -4096, 4064));
        }
    }
    for (int i = 0; i < 512; i++) g->code[i] = extreme ? 63 : rnd(t) >> 8 & 63;
}

/* n_groups groups of one row block. */
static uint8_t *random_block(Test *t, int type, int n_groups, int wild) {
    static const uint8_t fill[] = { 0, 0xff, 0x80, 0x7f };
    size_t n_bytes = (size_t)n_groups * group_bytes[type];
    uint8_t *w = random_buffer(t, n_bytes);
    if (rnd(t) % 4 == 0) memset(w, fill[rnd(t) % 4], n_bytes);
    for (int g = 0; g < n_groups; g++) {
        uint8_t *p = w + (size_t)g * group_bytes[type];
        if (type == KQ) random_kq(t, (KqGroup *)p, wild);
        for (int r = 0; r < 16 && type <= Q8; r++) {
            uint16_t h = rnd_wild_f16(t, wild);
            memcpy(p + 2 * r, &h, 2);
        }
    }
    return w;
}

static void check_mul(Test *t, int type) {
    int n_groups = rnd_int(t, 1, rnd(t) % 4 ? 9 : 150), n_tokens = rnd_int(t, 1, 20);
    int wild = rnd(t) % 2;
    A8 a = random_a8(t, n_groups, n_tokens, wild);
    const uint8_t *w = random_block(t, type, n_groups, wild);
    uint16_t *row_scale = NULL;
    if (type == S2 || type == S3) {
        row_scale = buffer(t, 32);
        for (int r = 0; r < 16; r++) row_scale[r] = rnd_wild_f16(t, wild);
    }
    size_t ldy = 16 + (size_t)rnd_int(t, 0, 3), n_y = (size_t)(n_tokens - 1) * ldy + 16;
    float *want = buffer(t, n_y * sizeof(float)), *got = buffer(t, n_y * sizeof(float));
    for (size_t i = 0; i < n_y; i++) want[i] = got[i] = rnd_f32(t);
    mul_of(t->ref, type)(want, ldy, w, row_scale, n_groups, &a, n_tokens);
    mul_of(t->new, type)(got, ldy, w, row_scale, n_groups, &a, n_tokens);
    same_f32(t, "y", want, got, n_y);
}

/* Decode, one token: row blocks in the cache, and a matrix larger than it. Prefill: 64 tokens. */
static void bench_mul(Test *t, int type) {
    enum { GROUPS = 64, TOKENS = 64, MATRIX_BYTES = 192 << 20 };
    size_t block_bytes = GROUPS * group_bytes[type], n_blocks = MATRIX_BYTES / block_bytes;
    const uint8_t *block = random_block(t, type, GROUPS, 0);
    uint8_t *w = malloc(n_blocks * block_bytes);
    A8 a = random_a8(t, GROUPS, TOKENS, 0);
    uint16_t row_scale[16] = { 0 };
    float *y = buffer(t, sizeof(float) * 16 * TOKENS);
    if (!w) abort();
    for (size_t b = 0; b < n_blocks; b++) memcpy(w + b * block_bytes, block, block_bytes);
    double macs = 16.0 * 32 * GROUPS, ns;
    BENCH(t, "prefill", block_bytes, macs * TOKENS,
          { mul_of(k, type)(y, 16, w, row_scale, GROUPS, &a, TOKENS); });
    BENCH(t, "decode", block_bytes, macs, { mul_of(k, type)(y, 16, w, row_scale, GROUPS, &a, 1); });
    TIME(ns, 31, {
        for (size_t b = 0; b < n_blocks; b++)
            mul_of(t->new, type)(y, 16, w + b * block_bytes, row_scale, GROUPS, &a, 1);
    });
    double bytes = (double)(n_blocks * block_bytes);
    printf("     %-8s %12.1f ns %8.2f GB/s %8.2f GMAC/s %6.0f %% of read bandwidth\n", "memory", ns,
           bytes / ns, macs * (double)n_blocks / ns, 100 * bytes / ns / t->bandwidth);
    free(w);
}

#define MUL_CHECK(name, type)                                                                      \
    static void check_mul_##name(Test *t) {                                                        \
        check_mul(t, type);                                                                        \
    }                                                                                              \
    static void bench_mul_##name(Test *t) {                                                        \
        bench_mul(t, type);                                                                        \
    }
MUL_CHECK(q4, Q4)
MUL_CHECK(q8, Q8)
MUL_CHECK(s2, S2)
MUL_CHECK(s3, S3)
MUL_CHECK(kq, KQ)

/* ---- packing --------------------------------------------------------------------------------- */

typedef void PackFn PACK_ARGS;
typedef struct PackType {
    size_t slot;        /* offset in Kern */
    int groups;         /* of 32 inputs in a block */
    size_t block_bytes; /* of a row */
    int type;           /* of the result */
} PackType;

static PackFn *pack_of(const Kern *k, size_t slot) {
    PackFn *f;
    memcpy(&f, (const char *)k + slot, sizeof f);
    return f;
}

static void same_packed(Test *t, int type, const uint8_t *want, const uint8_t *got, int n_groups) {
    if (type != KQ) {
        same_bytes(t, "packed", want, got, (size_t)n_groups * group_bytes[type]);
        return;
    }
    for (int g = 0; g < n_groups; g++) {
        const KqGroup *a = (const KqGroup *)want + g, *b = (const KqGroup *)got + g;
        same_f32(t, "d", a->d, b->d, 32); /* d and dm */
        same_bytes(t, "sc, mn, code", a->sc, b->sc, sizeof *a - offsetof(KqGroup, sc));
    }
}

static void check_pack(Test *t, PackType p) {
    int n_blocks = rnd_int(t, 1, p.groups == 1 ? 20 : 3), n_rows = rnd_int(t, 1, 16);
    if (rnd(t) % 2) n_rows = 16;
    int n_groups = n_blocks * p.groups;
    size_t used = (size_t)n_blocks * p.block_bytes, row_bytes = used + (size_t)rnd_int(t, 0, 3);
    const uint8_t *rows = random_buffer(t, (size_t)(n_rows - 1) * row_bytes + used);
    size_t out_bytes = (size_t)n_groups * group_bytes[p.type];
    uint8_t *want = random_buffer(t, out_bytes), *got = random_buffer(t, out_bytes);
    pack_of(t->ref, p.slot)(want, rows, row_bytes, n_rows, n_groups);
    pack_of(t->new, p.slot)(got, rows, row_bytes, n_rows, n_groups);
    same_packed(t, p.type, want, got, n_groups);
}

static void bench_pack(Test *t, PackType p) {
    enum { GROUPS = 64 };
    size_t row_bytes = GROUPS / (size_t)p.groups * p.block_bytes;
    const uint8_t *rows = random_buffer(t, 16 * row_bytes);
    uint8_t *dst = buffer(t, GROUPS * group_bytes[p.type]);
    BENCH(t, "", 16.0 * (double)row_bytes, 16.0 * 32 * GROUPS,
          { pack_of(k, p.slot)(dst, rows, row_bytes, 16, GROUPS); });
}

#define PACK_CHECK(name, groups, block_bytes, type)                                                \
    static void check_##name(Test *t) {                                                            \
        check_pack(t, (PackType){ offsetof(Kern, name), groups, block_bytes, type });              \
    }                                                                                              \
    static void bench_##name(Test *t) {                                                            \
        bench_pack(t, (PackType){ offsetof(Kern, name), groups, block_bytes, type });              \
    }
PACK_CHECK(pack_q4, 1, 18, Q4)
PACK_CHECK(pack_q8, 1, 34, Q8)
PACK_CHECK(pack_q2_k, 8, 84, KQ)
PACK_CHECK(pack_q3_k, 8, 110, KQ)
PACK_CHECK(pack_q4_k, 8, 144, KQ)
PACK_CHECK(pack_q5_k, 8, 176, KQ)
PACK_CHECK(pack_q6_k, 8, 210, KQ)
PACK_CHECK(pack_tq2_0, 8, 66, KQ)

/* ---- values: what a product means, by the decoders of codec.h ---------------------------------
 */

typedef struct ValueType {
    int id;           /* TypeId */
    size_t half[2];   /* where f16 scales lie in a block (the same twice: one); s2, s3: none */
    int type;         /* of the row block */
    size_t pack, mul; /* slots; pack 0: laid out in row blocks already */
} ValueType;

/* A random tensor of n_rows <= 16 rows whose scales are numbers. */
static uint8_t *random_tensor(Test *t, const TypeInfo *info, const ValueType *v, size_t n_rows,
                              size_t cols) {
    size_t n_bytes;
    if (!type_bytes(info, n_rows, cols, &n_bytes)) abort();
    uint8_t *w = random_buffer(t, n_bytes);
    size_t step = info->block_bytes ? (size_t)info->block_bytes : 2, from = 0;
    if (!info->block_bytes) from = n_bytes - 2 * S_ROWS;
    for (size_t at = from; at < n_bytes; at += step)
        for (int i = 0; i < 2; i++) {
            uint16_t h = f32_to_f16(rnd_f32(t));
            memcpy(w + at + v->half[i], &h, 2);
        }
    return w;
}

static void check_value(Test *t, ValueType v) {
    const TypeInfo *info = type_info(v.id);
    int n_rows = rnd_int(t, 1, 16);
    size_t cols = (size_t)(info->block_len * rnd_int(t, 1, info->block_len == 32 ? 9 : 2));
    if (!info->block_bytes) cols -= rnd(t) % 32; /* padded to whole groups */
    size_t n_groups = (cols + 31) / 32;
    uint8_t *w = random_tensor(t, info, &v, (size_t)n_rows, cols), *block = w;
    float *x = buffer(t, cols * sizeof(float)), *row = buffer(t, cols * sizeof(float)),
          y[16] = { 0 };
    for (size_t i = 0; i < cols; i++) x[i] = rnd_f32(t);
    A8 a = { buffer(t, 32 * n_groups), buffer(t, n_groups * sizeof(float)),
             buffer(t, 2 * n_groups * sizeof(int32_t)), 32 * n_groups };
    t->new->quantize(a.q, a.scale, a.sum, x, (int)cols);
    for (size_t i = 0; i < cols; i++)
        if (!(fabsf(x[i] - (float)a.q[i] * a.scale[i / 32]) <= 0.50005f * a.scale[i / 32]))
            differ(t, "x[%zu]: %.9g became %d * %.9g", i, x[i], a.q[i], a.scale[i / 32]);
    const uint16_t *row_scale = NULL;
    if (v.pack) {
        block = buffer(t, n_groups * group_bytes[v.type]);
        pack_of(t->new, v.pack)(block, w,
                                cols / (size_t)info->block_len * (size_t)info->block_bytes, n_rows,
                                (int)n_groups);
    } else {
        row_scale = (const uint16_t *)s_row_scales(v.id, w, (size_t)n_rows, cols);
    }
    mul_of(t->new, v.type)(y, 16, block, row_scale, (int)n_groups, &a, 1);
    for (int r = 0; r < n_rows; r++) {
        double want = 0, size = 0;
        info->decode(row, w, (size_t)n_rows, cols, (size_t)r);
        for (size_t i = 0; i < cols; i++) {
            double p = (double)row[i] * a.q[i] * a.scale[i / 32];
            want += p;
            size += fabs(p);
        }
        if (!(fabs(y[r] - want) <= 4e-6 * size))
            differ(t, "%s row %d: %.9g, decoded %.9g", info->name, r, (double)y[r], want);
    }
}

#define VALUE_CHECK(name, ID, h0, h1, type, pack, mul)                                             \
    static void check_value_##name(Test *t) {                                                      \
        check_value(t, (ValueType){ T_##ID, { h0, h1 }, type, pack, offsetof(Kern, mul) });        \
    }
VALUE_CHECK(q4, Q4_0, 0, 0, Q4, offsetof(Kern, pack_q4), mul_q4)
VALUE_CHECK(q8, Q8_0, 0, 0, Q8, offsetof(Kern, pack_q8), mul_q8)
VALUE_CHECK(s2, S2, 0, 0, S2, 0, mul_s2)
VALUE_CHECK(s3, S3, 0, 0, S3, 0, mul_s3)
VALUE_CHECK(q2_k, Q2_K, 80, 82, KQ, offsetof(Kern, pack_q2_k), mul_kq)
VALUE_CHECK(q3_k, Q3_K, 108, 108, KQ, offsetof(Kern, pack_q3_k), mul_kq)
VALUE_CHECK(q4_k, Q4_K, 0, 2, KQ, offsetof(Kern, pack_q4_k), mul_kq)
VALUE_CHECK(q5_k, Q5_K, 0, 2, KQ, offsetof(Kern, pack_q5_k), mul_kq)
VALUE_CHECK(q6_k, Q6_K, 208, 208, KQ, offsetof(Kern, pack_q6_k), mul_kq)
VALUE_CHECK(tq2_0, TQ2_0, 64, 64, KQ, offsetof(Kern, pack_tq2_0), mul_kq)

/* ---- activations ----------------------------------------------------------------------------- */

static void check_quantize(Test *t) {
    int n = rnd_int(t, 1, 300), wild = rnd(t) % 3;
    size_t n_groups = ((size_t)n + 31) / 32;
    float *x = buffer(t, (size_t)n * sizeof(float));
    float size = ldexpf(1, rnd(t) % 4 ? rnd_int(t, -8, 8) : rnd_int(t, -149, 127));
    for (int i = 0; i < n; i++) {
        x[i] = wild == 1 ? rnd_wild_f32(t, rnd(t) % 8 == 0) : rnd_f32(t) * size;
        if (wild == 2) x[i] = (float)rnd_int(t, -254, 254) * 0.5f; /* ties */
    }
    if (wild == 2) x[0] = 127;
    int8_t *q[2];
    float *scale[2];
    int32_t *sum[2];
    for (int i = 0; i < 2; i++) {
        q[i] = random_buffer(t, 32 * n_groups);
        scale[i] = random_buffer(t, n_groups * sizeof(float));
        sum[i] = random_buffer(t, 2 * n_groups * sizeof(int32_t));
        (i ? t->new : t->ref)->quantize(q[i], scale[i], sum[i], x, n);
    }
    same_bytes(t, "q", q[0], q[1], 32 * n_groups);
    same_f32(t, "scale", scale[0], scale[1], n_groups);
    same_bytes(t, "sum", sum[0], sum[1], 2 * n_groups * sizeof(int32_t));
}

static void bench_quantize(Test *t) {
    enum { N = 4096 };
    float *x = buffer(t, N * sizeof(float)), *scale = buffer(t, N / 32 * sizeof(float));
    int8_t *q = buffer(t, N);
    int32_t *sum = buffer(t, N / 16 * sizeof(int32_t));
    for (int i = 0; i < N; i++) x[i] = rnd_f32(t);
    BENCH(t, "", sizeof(float) * N, N, { k->quantize(q, scale, sum, x, N); });
}

/* ---- the table: one row a slot --------------------------------------------------------------- */

#define ROW(name)                                                                                  \
    { #name, offsetof(Kern, name), check_##name, bench_##name }
static const Check checks[] = {
    ROW(mul_q4),    ROW(mul_q8),    ROW(mul_s2),     ROW(mul_s3),    ROW(mul_kq),
    ROW(pack_q4),   ROW(pack_q8),   ROW(pack_q2_k),  ROW(pack_q3_k), ROW(pack_q4_k),
    ROW(pack_q5_k), ROW(pack_q6_k), ROW(pack_tq2_0), ROW(quantize),
};

/* By the decoders; scalar is checked too. */
#define VALUE(name, slot)                                                                          \
    { "value_" #name, offsetof(Kern, slot), check_value_##name, NULL }
static const Check values[] = {
    VALUE(q4, mul_q4),        VALUE(q8, mul_q8),      VALUE(s2, mul_s2),
    VALUE(s3, mul_s3),        VALUE(q2_k, pack_q2_k), VALUE(q3_k, pack_q3_k),
    VALUE(q4_k, pack_q4_k),   VALUE(q5_k, pack_q5_k), VALUE(q6_k, pack_q6_k),
    VALUE(tq2_0, pack_tq2_0),
};

static int filled_anew(const Check *c, const Kern *a, const Kern *b) {
    return memcmp((const char *)a + c->slot, (const char *)b + c->slot, sizeof(void (*)(void))) !=
           0;
}

/* Returns 0 when the slot agrees. */
static int run_check(Test *t, const Check *c, int rounds) {
    int sig = sigsetjmp(on_fault, 1);
    if (sig) {
        printf("FAIL %s %s: %s\n", c->name, t->isa,
               sig == SIGILL ? "illegal instruction" : "read or wrote out of bounds");
        return 1;
    }
    t->n_differ = 0;
    for (t->round = 0; t->round < rounds && !t->n_differ; t->round++) {
        t->n_used = 0;
        c->check(t);
    }
    if (t->n_differ) {
        printf("FAIL %s %s: differs in round %d\n", c->name, t->isa, t->round - 1);
        return 1;
    }
    printf("ok   %s %s\n", c->name, t->isa);
    t->n_used = 0;
    if (t->bench && c->bench) c->bench(t);
    return 0;
}

static double read_bandwidth(void) {
    enum { N = 192 << 20, STREAMS = 8 };
    uint64_t *p = malloc(N), sum[STREAMS] = { 0 };
    double ns;
    if (!p) abort();
    memset(p, 1, N);
    TIME(ns, 31, {
        for (size_t j = 0; j < N / 8; j += STREAMS)
            for (int i = 0; i < STREAMS; i++) sum[i] += p[j + (size_t)i];
    });
    volatile uint64_t keep = 0; /* so that the loop is not optimised away */
    for (int i = 0; i < STREAMS; i++) keep += sum[i];
    (void)keep;
    free(p);
    return N / ns;
}

typedef struct Options {
    uint64_t seed;
    int rounds;
    const char *prefix, *only; /* slots, instruction set (NULL: all) */
    int n_ok, n_failed;
} Options;

/* Runs the rows that match; all of them, or those that `better` fills anew. */
static void run_table(Test *t, Options *o, const Check *c, size_t n, const Kern *weaker) {
    for (; n > 0; n--, c++) {
        if (strncmp(c->name, o->prefix, strlen(o->prefix))) continue;
        if (o->only && strcmp(o->only, t->isa)) continue;
        if (weaker && !filled_anew(c, weaker, t->new)) continue;
        t->rng = o->seed ^ hash64(0, c->name, strlen(c->name));
        int bad = run_check(t, c, o->rounds);
        o->n_failed += bad;
        o->n_ok += !bad;
    }
}

int main(int argc, char **argv) {
    static const unsigned isas[] = { DIBIT_ISA_SCALAR,       DIBIT_ISA_AVX2, DIBIT_ISA_AVX512VNNI,
                                     DIBIT_ISA_AVX512BITALG, DIBIT_ISA_NEON, DIBIT_ISA_NEONDOT,
                                     DIBIT_ISA_SIMD128 };
    Options o = { clock_ns(), 300, "", NULL, 0, 0 };
    Test t = { 0 };
    int opt;
    while ((opt = getopt(argc, argv, "s:n:k:i:b")) != -1) {
        if (opt == 's') o.seed = strtoull(optarg, NULL, 0);
        if (opt == 'n') o.rounds = atoi(optarg);
        if (opt == 'k') o.prefix = optarg;
        if (opt == 'i') o.only = optarg;
        if (opt == 'b') t.bench = 1;
        if (opt == '?') return 2;
    }
    printf("seed %llu\n", (unsigned long long)o.seed);
    setup();
    if (t.bench) {
        t.bandwidth = read_bandwidth();
        printf("read bandwidth of one core: %.1f GB/s\n", t.bandwidth);
    }
    Kern ref, weaker, better;
    kern_init(&ref, DIBIT_ISA_SCALAR);
    unsigned mask = 0;
    for (size_t i = 0; i < ARRAY_LEN(isas); i++) {
        if (!(isa_detect() & isas[i])) continue;
        kern_init(&weaker, mask);
        kern_init(&better, mask |= isas[i]);
        t.ref = &ref;
        t.new = &better;
        t.isa = isa_name(isas[i]);
        if (i > 0) {
            run_table(&t, &o, checks, ARRAY_LEN(checks), &weaker);
            run_table(&t, &o, float_checks, n_float_checks, &weaker);
            run_table(&t, &o, kv_checks, n_kv_checks, &weaker);
            run_table(&t, &o, trellis_checks, n_trellis_checks, &weaker);
            run_table(&t, &o, encode_checks, n_encode_checks, &weaker);
        }
        run_table(&t, &o, values, ARRAY_LEN(values), NULL);
    }
    printf("kern: %d passed, %d failed\n", o.n_ok, o.n_failed);
    return o.n_failed != 0;
}
