/* cache.c - the KV cache: page arithmetic, bounds, what rows hold, which bytes a save covers, and
 * failing allocations. */
#include "codec.h" /* before cmocka.h, which has a macro fail() */
#include "cache.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static const CacheShape small = { 3, 2, 16, 600, KV_F16, KV_Q8, .layer_types = NULL };
enum { K_ROW = 32, V_ROW = 18 };

/* Counts what is given out; fails the allocation number fail_at. */
typedef struct Counter {
    int n_alloc, n_free, fail_at;
    size_t n_bytes;
} Counter;

static void *count_alloc(void *user, size_t n_bytes, size_t align) {
    Counter *c = user;
    if (++c->n_alloc == c->fail_at) return NULL;
    c->n_bytes += n_bytes;
    return aligned_alloc(align, n_bytes);
}

static void count_release(void *user, void *ptr, size_t n_bytes) {
    Counter *c = user;
    c->n_free++;
    c->n_bytes -= n_bytes;
    free(ptr);
}

static void test_types(void **state) {
    (void)state;
    for (int i = 0; i < KV_N_TYPES; i++) assert_int_equal(kv_type_by_name(kv_type(i)->name), i);
    assert_int_equal(kv_type_by_name("q9"), -1);
    assert_int_equal(kv_type_by_name(""), -1);
    assert_int_equal(kv_type(KV_F16)->row_bytes(64), 128);
    assert_int_equal(kv_type(KV_Q8)->row_bytes(64), 66);
    assert_int_equal(kv_type(KV_Q8)->row_bytes(128), 130);
}

static void test_bytes(void **state) {
    (void)state;
    static const int ctx[] = { 1, 255, 256, 257, 600, 1 << 20 };
    for (size_t i = 0; i < ARRAY_LEN(ctx); i++) {
        CacheShape s = small;
        size_t n = 0, want = (size_t)ctx[i] * 3 * 2 * (16 * 2 + 16 + 2);
        s.n_ctx = ctx[i];
        assert_true(cache_bytes(&s, &n));
        assert_int_equal(n, want);
    }
    CacheShape huge = { 1024, INT32_MAX, 256, INT32_MAX, KV_F16, KV_F16, .n_batch = 0 };
    size_t n;
    assert_false(cache_bytes(&huge, &n));
}

/* The row of a position in a cache without records, and how many lie from there one after another.
 */
static uint8_t *rows_of(const Cache *c, int side, int layer, int head, int pos, int *n) {
    *n = MIN(KV_PAGE - pos % KV_PAGE, c->shape.n_ctx - pos);
    return (uint8_t *)cache_view(c, layer, side, head, pos, pos, 0).rows;
}

static void test_shapes_refused(void **state) {
    (void)state;
    CacheShape bad[] = { small, small, small, small, small, small, small, small };
    bad[0].n_layers = 0;
    bad[1].n_kv_heads = -1;
    bad[2].head_dim = 12;
    bad[3].head_dim = 264;
    bad[4].n_ctx = 0;
    bad[5].type_k = KV_N_TYPES;
    bad[6].type_v = -1;
    bad[7] = (CacheShape){ 1024, INT32_MAX, 256, INT32_MAX, KV_F16, KV_F16, .n_batch = 0 };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Cache c;
        DibitError err = { 0 };
        int want = i == 7 ? DIBIT_E_MEMORY : DIBIT_E_UNSUPPORTED;
        assert_int_equal(cache_create(&c, &bad[i], NULL, &err), want);
        assert_int_equal(err.code, want);
        assert_int_equal(cache_allocated(&c), 0);
        cache_free(&c);
    }
}

static void test_allocation(void **state) {
    (void)state;
    Counter n = { 0 };
    DibitAllocator memory = { .alloc = count_alloc, .release = count_release, .user = &n };
    Cache c;
    size_t want;
    assert_int_equal(cache_create(&c, &small, &memory, NULL), 0);
    assert_true(cache_bytes(&small, &want));
    assert_int_equal(cache_allocated(&c), want);
    assert_true(n.n_bytes >= want && n.n_bytes <= want + 2048); /* headers, the page table */
    int n_alloc = n.n_alloc;
    assert_int_equal(cache_reserve(&c, 600, NULL), 0);
    assert_int_equal(n.n_alloc, n_alloc);
    cache_free(&c);
    cache_free(&c);
    assert_int_equal(n.n_free, n_alloc);
    for (int i = 1; i <= n_alloc; i++) {
        DibitError err = { 0 };
        n = (Counter){ .fail_at = i };
        assert_int_equal(cache_create(&c, &small, &memory, &err), DIBIT_E_MEMORY);
        assert_true(strlen(err.text) > 10);
        assert_int_equal(n.n_free, n.n_alloc - 1);
        assert_int_equal(n.n_bytes, 0);
    }
}

static void test_context(void **state) {
    (void)state;
    Cache c;
    DibitError err = { 0 };
    assert_int_equal(cache_create(&c, &small, NULL, NULL), 0);
    c.n_past = 590;
    assert_int_equal(cache_reserve(&c, 10, &err), 0);
    assert_int_equal(cache_reserve(&c, 11, &err), DIBIT_E_CONTEXT);
    assert_non_null(strstr(err.text, "590"));
    assert_int_equal(cache_reserve(&c, INT32_MAX, &err), DIBIT_E_CONTEXT);
    cache_truncate(&c, 100);
    assert_int_equal(c.n_past, 100);
    assert_int_equal(cache_reserve(&c, 500, &err), 0);
    cache_free(&c);
}

/* Every row lies apart from every other, and as many lie one after another as is said. */
static void test_rows(void **state) {
    (void)state;
    Cache c;
    assert_int_equal(cache_create(&c, &small, NULL, NULL), 0);
    for (int pass = 0; pass < 2; pass++)
        for (int layer = 0; layer < 3; layer++)
            for (int head = 0; head < 2; head++)
                for (int pos = 0, n_k, n_v; pos < 600; pos++) {
                    uint8_t *k = rows_of(&c, 0, layer, head, pos, &n_k);
                    uint8_t *v = rows_of(&c, 1, layer, head, pos, &n_v);
                    int tag = pos + 1000 * (2 * layer + head), tag_v = ~tag, got;
                    assert_int_equal(n_k, MIN(256 - pos % 256, 600 - pos));
                    assert_int_equal(n_v, n_k);
                    if (pass == 0) {
                        memset(k, 0, 32);
                        memset(v, 0, 18);
                        memcpy(k, &tag, sizeof tag);
                        memcpy(v, &tag_v, sizeof tag);
                        continue;
                    }
                    for (int i = 0; i < n_k; i++) {
                        memcpy(&got, k + i * 32, sizeof got);
                        assert_int_equal(got, tag + i);
                        memcpy(&got, v + i * 18, sizeof got);
                        assert_int_equal(got, ~(tag + i));
                    }
                }
    cache_free(&c);
}

static float value_of(int pos, int i) {
    return sinf((float)(pos * 37 + i));
}

/* cache_put in batches, by several threads: rows decode to what was put. */
static void test_put(void **state) {
    (void)state;
    enum { N = 600, WIDTH = 32 };
    Kern kern;
    Pool *pool;
    Cache c;
    float *k = malloc(sizeof(float) * N * WIDTH), *v = malloc(sizeof(float) * N * WIDTH);
    kern_init(&kern, ~0u);
    assert_true(k && v);
    assert_int_equal(pool_create(&pool, 3, NULL, NULL), 0);
    assert_int_equal(cache_create(&c, &small, NULL, NULL), 0);
    for (int i = 0; i < N * WIDTH; i++) {
        k[i] = value_of(i / WIDTH, i % WIDTH);
        v[i] = 3 * value_of(i / WIDTH, i % WIDTH + 500);
    }
    for (int pos = 0, n = 1; pos < N; pos += n, n = MIN(n * 3, N - pos))
        cache_put(&c, &kern, pool, 1, pos, n, k + pos * WIDTH, v + pos * WIDTH);
    for (int pos = 0, n; pos < N; pos++)
        for (int h = 0; h < 2; h++) {
            const uint8_t *kr = rows_of(&c, 0, 1, h, pos, &n), *vr = rows_of(&c, 1, 1, h, pos, &n);
            float scale = f16_to_f32(load_u16(vr + 16));
            for (int i = 0; i < 16; i++) {
                float want_k = k[pos * WIDTH + h * 16 + i], want_v = v[pos * WIDTH + h * 16 + i];
                assert_true(f16_to_f32(load_u16(kr + 2 * i)) == f16_to_f32(f32_to_f16(want_k)));
                assert_true(fabsf((float)(int8_t)vr[i] * scale - want_v) <= 0.501f * scale);
                assert_true(scale < 3 / 126.0f);
            }
        }
    cache_free(&c);
    pool_free(&pool);
    free(k);
    free(v);
}

typedef struct Runs {
    size_t n_bytes;
    int n_runs, stop_at;
} Runs;

static int mark_run(void *arg, uint8_t *run, size_t n) {
    Runs *r = arg;
    for (size_t i = 0; i < n; i++) run[i]++; /* a byte that is named twice shows */
    r->n_bytes += n;
    return ++r->n_runs == r->stop_at ? -7 : 0;
}

static void test_runs(void **state) {
    (void)state;
    static const int lengths[] = { 0, 1, 255, 256, 257, 512, 600 };
    Cache c;
    assert_int_equal(cache_create(&c, &small, NULL, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        int n_past = lengths[i], n;
        Runs r = { 0 };
        for (int layer = 0; layer < 3; layer++)
            for (int head = 0; head < 2; head++)
                for (int pos = 0; pos < 600; pos++) {
                    memset(rows_of(&c, 0, layer, head, pos, &n), 0, K_ROW);
                    memset(rows_of(&c, 1, layer, head, pos, &n), 0, V_ROW);
                }
        assert_int_equal(cache_each_run(&c, n_past, 0, mark_run, &r), 0);
        assert_int_equal(r.n_bytes, (size_t)n_past * 3 * 2 * (K_ROW + V_ROW));
        for (int layer = 0; layer < 3; layer++)
            for (int head = 0; head < 2; head++)
                for (int pos = 0; pos < 600; pos++) {
                    const uint8_t *k = rows_of(&c, 0, layer, head, pos, &n);
                    const uint8_t *v = rows_of(&c, 1, layer, head, pos, &n);
                    for (size_t j = 0; j < K_ROW; j++) assert_int_equal(k[j], pos < n_past);
                    for (size_t j = 0; j < V_ROW; j++) assert_int_equal(v[j], pos < n_past);
                }
    }
    Runs stop = { .stop_at = 2 };
    assert_int_equal(cache_each_run(&c, 600, 0, mark_run, &stop), -7);
    assert_int_equal(stop.n_runs, 2);
    cache_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_shapes_refused),
        cmocka_unit_test(test_allocation),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_put),
        cmocka_unit_test(test_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
