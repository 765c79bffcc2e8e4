/* attend.c - op_attend against a naive reference in double precision, for random shapes, types and
 * windows; and the rule that results are equal, bit for bit, for every batch, number of threads and
 * instruction set. */
#include "codec.h" /* before cmocka.h, which has a macro fail() */
#include "ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

typedef struct Case {
    CacheShape shape;
    int n_heads, n, window; /* n positions are filled and attended */
    float *q, *k, *v, *out; /* (n, heads, head_dim) */
    float scale;
    int nonfinite; /* whether the cache saw NaN or infinity */
} Case;

static uint64_t rng;

static uint32_t rnd(void) {
    uint64_t x = rng += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ (x >> 31)) >> 32);
}

static int rnd_int(int lo, int hi) {
    return lo + (int)(rnd() % (uint32_t)(hi - lo + 1));
}

static float *random_f32(size_t n) {
    float *p = malloc(n * sizeof *p);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) p[i] = ((float)rnd() - 0x1p31f) * 0x1p-30f;
    return p;
}

static size_t q_floats(const Case *c) {
    return (size_t)c->n * (size_t)c->n_heads * (size_t)c->shape.head_dim;
}

static Case make_case(CacheShape shape, int group, int n, int window) {
    Case c = { .shape = shape, .n_heads = group * shape.n_kv_heads, .n = n, .window = window };
    size_t kv = (size_t)n * (size_t)shape.n_kv_heads * (size_t)shape.head_dim;
    c.shape.n_ctx = n + rnd_int(0, 300);
    c.q = random_f32(q_floats(&c));
    c.k = random_f32(kv);
    c.v = random_f32(kv);
    c.out = random_f32(q_floats(&c));
    c.scale = 1.0f / sqrtf((float)shape.head_dim);
    return c;
}

static void free_case(Case *c) {
    free(c->q);
    free(c->k);
    free(c->v);
    free(c->out);
}

/* Decode or prefill: puts and attends the positions in batches of the given size, or of random
 * ones (batch 0); only from position `from` on are queries run. */
static void run(Case *c, unsigned isa, int threads, int batch, int from) {
    Kern kern;
    Pool *pool;
    Cache cache;
    Ops ops = { .kern = &kern };
    kern_init(&kern, isa);
    assert_int_equal(pool_create(&pool, threads, NULL, NULL), 0);
    assert_int_equal(cache_create(&cache, &c->shape, NULL, NULL), 0);
    ops.pool = pool;
    ops.attend_bytes =
        (attend_scratch(c->shape.head_dim, c->n_heads, c->shape.n_kv_heads, c->shape.n_ctx) + 63) /
        64 * 64;
    ops.attend = mem_alloc(NULL, ops.attend_bytes * (size_t)threads);
    assert_non_null(ops.attend);
    memset(ops.attend, 0xff, ops.attend_bytes * (size_t)threads); /* NaN: nothing may be read */
    size_t q_width = (size_t)c->n_heads * (size_t)c->shape.head_dim;
    size_t kv_width = (size_t)c->shape.n_kv_heads * (size_t)c->shape.head_dim;
    for (int l = 0; l < c->shape.n_layers; l++)
        for (int pos = 0, n; pos < c->n; pos += n) {
            n = pos < from ? from - pos : batch ? batch : rnd_int(1, 90);
            n = MIN(n, c->n - pos);
            const float *k = c->k + (size_t)pos * kv_width, *v = c->v + (size_t)pos * kv_width;
            cache_put(&cache, &kern, pool, l, pos, n, k, v);
            if (pos < from) continue;
            op_attend(&ops, c->out + (size_t)pos * q_width, c->q + (size_t)pos * q_width, &cache, l,
                      pos, n, c->n_heads, c->scale, c->window);
        }
    c->nonfinite = atomic_load(&cache.nonfinite);
    mem_free(NULL, ops.attend);
    cache_free(&cache);
    pool_free(&pool);
}

/* One query by the definition, in double, over the rows as given. */
static void naive(const Case *c, int pos, int head, double *out) {
    int d = c->shape.head_dim, n_kv = c->shape.n_kv_heads, kv = head / (c->n_heads / n_kv);
    int first = c->window ? MAX(0, pos + 1 - c->window) : 0;
    const float *q = c->q + ((size_t)pos * (size_t)c->n_heads + (size_t)head) * (size_t)d;
    double *s = malloc((size_t)(pos + 1) * sizeof *s), max = -INFINITY, total = 0;
    assert_non_null(s);
    for (int p = first; p <= pos; p++) {
        const float *k = c->k + ((size_t)p * (size_t)n_kv + (size_t)kv) * (size_t)d;
        s[p] = 0;
        for (int i = 0; i < d; i++) s[p] += (double)q[i] * k[i];
        s[p] *= c->scale;
        max = MAX(max, s[p]);
    }
    for (int i = 0; i < d; i++) out[i] = 0;
    for (int p = first; p <= pos; p++) {
        const float *v = c->v + ((size_t)p * (size_t)n_kv + (size_t)kv) * (size_t)d;
        double w = exp(s[p] - max);
        total += w;
        for (int i = 0; i < d; i++) out[i] += w * v[i];
    }
    for (int i = 0; i < d; i++) out[i] /= total;
    free(s);
}

/* Values are within +-2 and scores within about +-4, so an output is off by at most the error of a
 * row's number and of a weight: f16 2^-11 relative, q8 half a step of 2/127 on each of q, k, v. Of
 * the coarser types only the mean square is bounded, against that of the outputs. */
static double bound(const Case *c) {
    return (c->shape.type_k == KV_Q8 ? 0.03 : 0.003) + (c->shape.type_v == KV_Q8 ? 0.009 : 0.001);
}

static void expect_naive(const Case *c, int from) {
    static const double share[KV_N_TYPES] = { [KV_Q4] = 0.06, [KV_K3] = 0.4, [KV_K2] = 0.7 };
    int d = c->shape.head_dim, coarse = MAX(c->shape.type_k, c->shape.type_v) > KV_Q8;
    double want[KV_MAX_DIM], sum = 0, of = 0;
    for (int i = 0; i < (coarse ? 60 : 12); i++) {
        int pos = i == 0 ? c->n - 1 : rnd_int(from, c->n - 1), head = rnd_int(0, c->n_heads - 1);
        const float *got = c->out + ((size_t)pos * (size_t)c->n_heads + (size_t)head) * (size_t)d;
        naive(c, pos, head, want);
        for (int j = 0; j < d; j++) {
            sum += (got[j] - want[j]) * (got[j] - want[j]);
            of += want[j] * want[j];
            if (!coarse && !(fabs(got[j] - want[j]) <= bound(c)))
                fail_msg("position %d head %d [%d]: %g, expected %g (d %d, window %d)", pos, head,
                         j, (double)got[j], want[j], d, c->window);
        }
    }
    if (coarse && !(sum <= of * (share[c->shape.type_k] + share[c->shape.type_v])))
        fail_msg("types %d %d sinks %d window %d heads %d/%d: error %g of %g (d %d, %d positions, "
                 "window %d)",
                 c->shape.type_k, c->shape.type_v, c->shape.sinks, c->shape.window, c->n_heads,
                 c->shape.n_kv_heads, sum, of, d, c->n, c->window);
}

static void expect_same(const Case *c, const float *want, int from, const char *what) {
    size_t width = (size_t)c->n_heads * (size_t)c->shape.head_dim;
    for (size_t i = (size_t)from * width; i < q_floats(c); i++)
        if (!(c->out[i] == want[i]))
            fail_msg("%s: position %d: %.9g, not %.9g", what, (int)(i / width), (double)c->out[i],
                     (double)want[i]);
}

static CacheShape random_shape(void) {
    static const int dims[] = { 8, 16, 24, 32, 64, 72, 80, 96, 128, 256 };
    CacheShape s = { 1, rnd_int(1, 3), dims[rnd() % ARRAY_LEN(dims)], 0, 0, 0, .n_batch = 700 };
    int n_types = s.head_dim % 16 == 0 && s.head_dim >= 32 ? KV_N_TYPES : KV_K3;
    s.type_k = rnd_int(0, n_types - 1);
    s.type_v = rnd_int(0, n_types - 1);
    s.sinks = rnd_int(0, 20);
    s.window = 16 * rnd_int(0, 5);
    return s;
}

static void test_naive(void **state) {
    (void)state;
    for (int i = 0; i < 60; i++) {
        static const int lengths[] = { 1, 2, 40, 255, 256, 257, 511, 513, 700 };
        int n = lengths[rnd() % ARRAY_LEN(lengths)], window = rnd() % 2 ? 0 : rnd_int(1, n + 20);
        Case c = make_case(random_shape(), rnd_int(1, 5), n, window);
        run(&c, ~0u, rnd_int(1, 3), 0, 0);
        expect_naive(&c, 0);
        free_case(&c);
    }
}

/* Long enough for several spans, which threads share when there is one token. */
static void test_naive_long(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        int from = 2600, n = from + 8, window = i % 2 ? 1500 : 0;
        Case c =
            make_case((CacheShape){ 1, 2, 64, 0, i / 2, i / 2, .n_batch = 3000 }, 4, n, window);
        run(&c, ~0u, 2, 1, from);
        expect_naive(&c, from);
        free_case(&c);
    }
}

static void expect_equal_everywhere(Case *c, int from) {
    run(c, DIBIT_ISA_SCALAR, 1, c->n, from);
    float *want = malloc(q_floats(c) * sizeof *want);
    assert_non_null(want);
    memcpy(want, c->out, q_floats(c) * sizeof *want);
    for (int bit = 0; bit < 32; bit++) {
        unsigned isa = (2u << bit) - 1;
        if (!(isa_detect() & 1u << bit)) continue;
        for (int threads = 1; threads <= 4; threads++)
            for (int batch = 0; batch < 2; batch++) { /* random ones, token by token */
                run(c, isa, threads, batch, from);
                expect_same(c, want, from, isa_name(isa));
            }
        run(c, isa, 2, c->n, from);
        expect_same(c, want, from, isa_name(isa));
    }
    free(want);
}

static void test_equal(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        int n = rnd_int(1, 300);
        Case c = make_case(random_shape(), rnd_int(1, 4), n, i % 2 ? 0 : rnd_int(1, n));
        expect_equal_everywhere(&c, 0);
        free_case(&c);
    }
    Case wide = make_case((CacheShape){ 1, 1, 16, 0, KV_F16, KV_Q8, .n_batch = 0 }, 40, 70, 0);
    expect_equal_everywhere(&wide, 0);
    free_case(&wide);
}

static void test_equal_long(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        int from = 2040, n = from + 20;
        Case c = make_case((CacheShape){ 1, 2, 32, 0, 3 * i, 4 * i, .window = 64, .n_batch = 3000 },
                           2, n, i ? 1023 : 0);
        expect_equal_everywhere(&c, from);
        free_case(&c);
    }
}

/* What is not a number must not vanish: not in a key, not in a value, not in a query. */
static void test_nan(void **state) {
    enum { D = 32 };
    (void)state;
    for (int type = 0; type < KV_N_TYPES; type++)
        for (int where = 0; where < 3; where++)
            for (int value = 0; value < 2; value++) {
                Case c = make_case((CacheShape){ 1, 1, D, 0, type, type, .n_batch = 40 }, 1, 40, 0);
                float *p = where == 0 ? c.q : where == 1 ? c.k : c.v;
                p[37 * D + 3] = value == 0 ? NAN : INFINITY;
                run(&c, ~0u, 1, value ? 1 : 40, 0);
                int bad = 0;
                for (int i = 0; i < D; i++) bad += !isfinite(c.out[37 * D + i]);
                assert_true(bad > 0 || c.nonfinite);
                for (int i = 0; i < 37 * D; i++) assert_true(isfinite(c.out[i]) || where == 2);
                free_case(&c);
            }
}

int main(int argc, char **argv) {
    rng = argc > 1 ? strtoull(argv[1], NULL, 0) : clock_ns();
    print_message("seed %llu\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_naive), cmocka_unit_test(test_naive_long),
        cmocka_unit_test(test_equal), cmocka_unit_test(test_equal_long),
        cmocka_unit_test(test_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
