/* kv23.c - the k2 and k3 records: the example of docs/FORMAT.md, sizes, scales, extreme vectors,
 * error on Gaussian ones. */
#define _GNU_SOURCE
#include <stddef.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#include "basis.h"
#include "kern/kern.h"
#include "kv23.h"

#include <cmocka.h>

static T4Table table;
static Kern kern;
static uint64_t rng = 7;

static double uniform(void) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return ((double)(rng >> 33) + 0.5) / 2147483648.0;
}

static float gauss(void) {
    return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

static KvCount encode(uint8_t *block, int bits, int r, const float *x, int d) {
    KvCount count = { 0 };
    kv23_encode(&(KvEncoder){ bits, 8, 1, { 1, 1, 1, 1 }, &table, &kern }, block, r, x, d, &count);
    return count;
}

/* Numbers behind "NAME:" in docs/FORMAT.md. */
static int numbers(const char *name, int base, double *out, int cap) {
    FILE *f = fopen(SOURCE_DIR "/docs/FORMAT.md", "r");
    char line[1000];
    int n = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, name, strlen(name)) != 0) continue;
        char *p = line + strlen(name), *end;
        for (; n < cap; n++, p = end) {
            out[n] = base == 16 ? (double)strtol(p, &end, 16) : strtod(p, &end);
            if (end == p) break;
        }
    }
    fclose(f);
    return n;
}

static void test_example(void **state) {
    (void)state;
    for (int bits = 2; bits <= 3; bits++) {
        const char *names[][3] = { { "k2 codes:", "", "k2 values:" },
                                   { "k3 codes:", "k3 signs:", "k3 values:" } };
        const char **name = names[bits - 2];
        uint8_t block[16 * 24] = { 0 };
        double code[16], sign[16], value[8];
        float x[64];
        assert_int_equal(numbers(name[0], 16, code, 16), 16);
        assert_int_equal(numbers(name[2], 10, value, 8), 8);
        for (int t = 0; t < 16; t++) block[16 * t + 5] = (uint8_t)code[t];
        if (bits == 3) {
            assert_int_equal(numbers(name[1], 16, sign, 16), 16);
            for (int t = 0; t < 16; t++) block[256 + 8 * t + 2] = (uint8_t)((int)sign[t] << 4);
        }
        assert_int_equal(kv23_scale(block, 5, 64), 131);
        kv23_decode(x, block, bits, 5, 64);
        for (int i = 0; i < 8; i++) assert_true(fabs(x[i] - value[i]) < 1e-6);
    }
}

static void test_code(void **state) {
    (void)state;
    uint32_t h = 0;
    for (uint32_t s = 0; s < 65536; s++) {
        uint32_t p = t4((uint8_t)(s >> 8), (uint8_t)s);
        h = h * 31 + (p & 255) + 9 * (p >> 8 & 255) + 81 * (p >> 16 & 255) + 729 * (p >> 24);
    }
    assert_int_equal(h, 0x7818550B);
    assert_int_equal(kv_record_bytes(2, 64), 16);
    assert_int_equal(kv_record_bytes(3, 64), 24);
    assert_int_equal(kv_record_bytes(2, 128), 32);
    assert_int_equal(kv_record_bytes(3, 128), 48);
}

static const int dims[] = { 32, 48, 64, 80, 96, 128, 256 };

/* Every scale byte that is written is read back, whatever the head dimension. */
static void test_scales(void **state) {
    (void)state;
    for (size_t k = 0; k < ARRAY_LEN(dims); k++)
        for (int b = 0; b < 256; b++)
            for (int bits = 2; bits <= 3; bits++) {
                float x[256], y[256], rms = kv_rms(b);
                uint8_t block[16 * 96] = { 0 };
                for (int i = 0; i < dims[k]; i++) x[i] = i & 1 ? rms : -rms;
                encode(block, bits, b % 16, x, dims[k]);
                assert_int_equal(kv23_scale(block, b % 16, dims[k]), b);
                kv23_decode(y, block, bits, b % 16, dims[k]);
                for (int i = 0; b == 0 && i < dims[k]; i++) assert_true(y[i] == 0);
            }
}

static double relative_error(const float *x, const float *y, int d) {
    double e = 0, n = 0;
    for (int i = 0; i < d; i++) {
        e += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        n += (double)x[i] * x[i];
    }
    return e / n;
}

static void test_extremes(void **state) {
    (void)state;
    for (int bits = 2; bits <= 3; bits++) {
        float x[64], y[64];
        uint8_t block[16 * 24] = { 0 };
        for (int i = 0; i < 64; i++) x[i] = 1e-40f * (float)(i - 30); /* denormal */
        assert_int_equal(encode(block, bits, 1, x, 64).n_zero, 1);
        kv23_decode(y, block, bits, 1, 64);
        for (int i = 0; i < 64; i++) assert_true(y[i] == 0);
        for (int i = 0; i < 64; i++) x[i] = i & 1 ? 3e38f : -3e38f;
        assert_int_equal(encode(block, bits, 1, x, 64).n_saturated, 1);
        assert_int_equal(kv23_scale(block, 1, 64), 255);
        for (int i = 0; i < 64; i++) x[i] = 0;
        KvCount zero = encode(block, bits, 1, x, 64);
        assert_int_equal(zero.n_zero + zero.n_saturated, 0);
        for (int i = 0; i < 64; i++) x[i] = 1;
        encode(block, bits, 1, x, 64);
        kv23_decode(y, block, bits, 1, 64);
        assert_true(relative_error(x, y, 64) < 0.2);
        for (int i = 0; i < 64; i++) x[i] = i == 9 ? 20 : gauss(); /* rotated first in a cache */
        basis_rotate(x, 64, false);
        encode(block, bits, 1, x, 64);
        kv23_decode(y, block, bits, 1, 64);
        assert_true(relative_error(x, y, 64) < 0.25);
    }
}

static void test_gaussian(void **state) {
    (void)state;
    static const struct {
        int bits, d;
        double most;
    } bars[] = { { 2, 128, 0.094 }, { 3, 128, 0.0265 }, { 2, 64, 0.103 }, { 3, 64, 0.029 } };
    for (size_t k = 0; k < ARRAY_LEN(bars); k++) {
        double error = 0, of = 0;
        int n = SLOWNESS > 1 ? 300 : 3000, d = bars[k].d;
        for (int v = 0; v < n; v++) {
            float x[128], y[128];
            uint8_t block[16 * 48];
            for (int i = 0; i < d; i++) x[i] = gauss();
            encode(block, bars[k].bits, v % 16, x, d);
            kv23_decode(y, block, bars[k].bits, v % 16, d);
            for (int i = 0; i < d; i++) {
                error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
                of += (double)x[i] * x[i];
            }
        }
        print_message("k%d d=%d: error %.4f of the variance\n", bars[k].bits, d, error / of);
        assert_true(error / of < bars[k].most * (SLOWNESS > 1 ? 1.05 : 1));
    }
}

static void test_rotation(void **state) {
    (void)state;
    for (size_t k = 0; k < ARRAY_LEN(dims); k++) {
        float x[256], y[256];
        double before = 0, after = 0;
        for (int i = 0; i < dims[k]; i++) {
            y[i] = x[i] = gauss();
            before += (double)x[i] * x[i];
        }
        basis_rotate(y, dims[k], false);
        for (int i = 0; i < dims[k]; i++) after += (double)y[i] * y[i];
        assert_true(fabs(after / before - 1) < 1e-5);
        assert_true(relative_error(x, y, dims[k]) > 0.5);
        basis_rotate(y, dims[k], true);
        assert_true(relative_error(x, y, dims[k]) < 1e-10);
    }
}

static double sign_of(int stage, int j) { /* docs/FORMAT.md */
    uint32_t x = 0x6b763233 + (uint32_t)stage + (uint32_t)j * 0x9e3779b9u;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return (x ^ x >> 16) >> 31 ? -1 : 1;
}

/* The rotation as a matrix product, in double. */
static void test_rotation_defined(void **state) {
    (void)state;
    for (size_t k = 0; k < ARRAY_LEN(dims); k++) {
        int d = dims[k], b = d & -d;
        float x[256];
        double u[256], v[256];
        for (int i = 0; i < d; i++) u[i] = x[i] = gauss();
        basis_rotate(x, d, false);
        for (int stage = 0; stage < (b == d ? 1 : 2); stage++) {
            for (int i = 0; i < d; i++) {
                double sum = 0;
                for (int j = i / b * b; j < i / b * b + b; j++)
                    sum += sign_of(stage, j) * u[j] *
                           (__builtin_popcount((unsigned)(i & j & (b - 1))) & 1 ? -1 : 1);
                v[stage || b == d ? i : i % b * (d / b) + i / b] = sum / sqrt(b);
            }
            memcpy(u, v, sizeof u);
        }
        for (int i = 0; i < d; i++) assert_true(fabs(u[i] - x[i]) < 1e-5);
    }
}

/* All instruction sets make the same records. */
static void test_equal(void **state) {
    (void)state;
    for (int bit = 1; bit < 32; bit++) {
        if (!(isa_detect() & 1u << bit)) continue;
        Kern fast;
        kern_init(&fast, (2u << bit) - 1);
        for (int round = 0; round < 60; round++) {
            int d = dims[round % (int)ARRAY_LEN(dims)], bits = 2 + round % 2;
            float x[256], gain = ldexpf(1, round % 9 - 4);
            uint8_t a[16 * 96] = { 0 }, b[16 * 96] = { 0 };
            KvCount count;
            for (int i = 0; i < d; i++) x[i] = gauss() * (i == round ? 12 : gain);
            KvEncoder e = { bits, 8 + round % 9, 1 + round / 2 % 2 * 2, { 0 }, &table, &kern };
            for (int i = 0; i < 4; i++)
                e.weight[i] = round % 3 ? 1 : ldexpf(1.3f, rng >> 8 * i & 3);
            kv23_encode(&e, a, round % 16, x, d, &count);
            e.kern = &fast;
            kv23_encode(&e, b, round % 16, x, d, &count);
            assert_memory_equal(a, b, sizeof a);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_example),          cmocka_unit_test(test_code),
        cmocka_unit_test(test_scales),           cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_gaussian),         cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_rotation_defined), cmocka_unit_test(test_equal),
    };
    t4_table(table);
    kern_init(&kern, DIBIT_ISA_SCALAR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
