/* codec.c - tensor types: the examples of docs/FORMAT.md, blocks that ggml wrote, encoders against
 * search by brute force and against their known errors, sizes. */
#define _POSIX_C_SOURCE 200809L
#include "tiny.h"

#include <inttypes.h>

static char *read_all(const char *path) {
    FileMap f;
    DibitError err;
    if (file_map(&f, path, true, NULL, &err) != 0) die("%s", err.text);
    char *text = malloc(f.size + 1);
    memcpy(text, f.data, f.size);
    text[f.size] = 0;
    file_unmap(&f);
    return text;
}

/* Unit Gaussian, the same on every machine but for the last bit of log and cos. */
static void fill_normal(float *x, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        uint64_t a = hash64(seed, &i, sizeof i), b = hash64(seed + 1, &i, sizeof i);
        double u = ((double)(a >> 12) + 0.5) * 0x1p-52, v = (double)(b >> 12) * 0x1p-52;
        x[i] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
    }
}

/* Encodes into a fresh tensor with the bytes behind it guarded by the sanitizers. */
static uint8_t *encode(const TypeInfo *t, const float *x, size_t rows, size_t cols,
                       const float *importance, size_t *n_bytes) {
    assert_true(type_bytes(t, rows, cols, n_bytes));
    uint8_t *tensor = malloc(*n_bytes);
    memset(tensor, 0xa5, *n_bytes);
    for (size_t r = 0; r < rows; r += 16)
        t->encode(tensor, rows, cols, r, MIN(rows - r, 16), x + r * cols, importance);
    return tensor;
}

static double error_of(const TypeInfo *t, const uint8_t *tensor, const float *x, size_t rows,
                       size_t cols, const float *importance) {
    float *y = malloc(cols * sizeof *y);
    double error = 0, energy = 0;
    for (size_t r = 0; r < rows; r++) {
        t->decode(y, tensor, rows, cols, r);
        for (size_t i = 0; i < cols; i++) {
            double e = (double)y[i] - (double)x[r * cols + i], w = importance ? importance[i] : 1;
            error += w * e * e;
            energy += w * x[r * cols + i] * x[r * cols + i];
        }
    }
    free(y);
    return error / energy;
}

/* ---- layouts ---- */

/* "s3 at 16: 50 0f ..." are bytes, "s3 row 1 input 8: -1.5 ..." are values. */
static void document_example(void **state) {
    const TypeInfo *t = type_by_name(*state);
    char *text = read_all(SOURCE_DIR "/docs/FORMAT.md"), *line = text, name[8], *end;
    uint8_t tensor[240] = { 0 };
    int n_bytes = 0, n_values = 0;
    for (; line; line = strchr(line, '\n')) {
        unsigned at, row;
        int used = 0;
        line += *line == '\n';
        if (sscanf(line, "%7s at %u:%n", name, &at, &used) == 2 && used && !strcmp(name, t->name)) {
            assert_true(at + 8 <= sizeof tensor);
            end = line + used;
            for (int i = 0; i < 8; i++) tensor[at + (unsigned)i] = (uint8_t)strtoul(end, &end, 16);
            n_bytes += 8;
        }
        if (sscanf(line, "%7s row %u input %u:%n", name, &row, &at, &used) == 3 && used &&
            !strcmp(name, t->name)) {
            float y[32];
            t->decode(y, tensor, 2, 32, row);
            end = line + used;
            for (unsigned i = 0; i < 8; i++, n_values++)
                assert_true(y[at + i] == (float)strtod(end, &end));
        }
    }
    free(text);
    assert_true(n_bytes >= 32);
    assert_int_equal(n_values, 64);
}

static void ggml_blocks(void **state) {
    (void)state;
    char *text = read_all(SOURCE_DIR "/tests/data/ggml-blocks.txt"), *save, name[8], hex[1024];
    int n_types = 0;
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        unsigned n, first, middle, last;
        uint64_t hash;
        if (l[0] == '#') continue;
        assert_int_equal(sscanf(l, "%7s %u %1023s %" SCNx64 " %x %x %x", name, &n, hex, &hash,
                                &first, &middle, &last),
                         7);
        const TypeInfo *t = type_by_name(name);
        uint8_t tensor[512];
        float y[512];
        size_t n_bytes = strlen(hex) / 2, want = 0;
        assert_true(n <= 512 && type_bytes(t, 1, n, &want));
        assert_int_equal(n_bytes, want);
        for (size_t i = 0; i < n_bytes; i++) {
            const char digits[3] = { hex[2 * i], hex[2 * i + 1], 0 };
            tensor[i] = (uint8_t)strtoul(digits, NULL, 16);
        }
        t->decode(y, tensor, 1, n, 0);
        assert_int_equal(load_u32(&y[0]), first);
        assert_int_equal(load_u32(&y[n > 100 ? 99 : 33]), middle);
        assert_int_equal(load_u32(&y[n - 1]), last);
        assert_true(hash64(1, y, n * sizeof *y) == hash);
        n_types++;
    }
    free(text);
    assert_int_equal(n_types, 8);
}

/* ---- encoders ---- */

/* Bounds a few percent above what FORMAT.md states. */
static void gaussian_error(void **state) {
    (void)state;
    static const struct {
        int id;
        double lo, hi;
    } types[] = { { T_F32, 0, 0 },          { T_F16, 0, 1e-7 },         { T_BF16, 1e-7, 3e-6 },
                  { T_Q8_0, 2e-5, 2.9e-5 }, { T_Q4_0, 0.0060, 0.0068 }, { T_S2, 0.086, 0.0905 },
                  { T_S3, 0.0210, 0.0224 } };
    enum { ROWS = 32, COLS = 2048 };
    float *x = malloc(ROWS * COLS * sizeof *x);
    fill_normal(x, ROWS * COLS, 1);
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        const TypeInfo *t = type_info(types[i].id);
        size_t n;
        uint8_t *tensor = encode(t, x, ROWS, COLS, NULL, &n);
        double e = error_of(t, tensor, x, ROWS, COLS, NULL);
        print_message("%s: %.6f\n", t->name, e);
        assert_true(e >= types[i].lo && e <= types[i].hi);
        free(tensor);
    }
    free(x);
}

/* Least error over all codes for one (d, c, z), each code tried. */
static double brute_error(int levels, const float *x, const float *w, double d, int cz) {
    double total = 0;
    for (int i = 0; i < 32; i++) {
        double best = INFINITY;
        for (int q = 0; q < levels; q++) {
            double v = d / 8 * ((cz & 15) + 4) * (8 * q - 4 * (levels - 1) + (cz >> 4) - 8);
            best = fmin(best, w[i] * (x[i] - v) * (x[i] - v));
        }
        total += best;
    }
    return total;
}

/* What the encoder stored is as good as the best of all 256 (c, z) with its own row scale. */
static void groups_are_optimal(void **state) {
    int type = *(const int *)*state, levels = type == T_S3 ? 8 : 4;
    enum { ROWS = 16, COLS = 96 };
    float x[ROWS * COLS], w[COLS], y[COLS];
    size_t n;
    fill_normal(x, ROWS * COLS, 7);
    for (int i = 0; i < COLS; i++) w[i] = 0.25f + (float)(i * 7 % 11);
    uint8_t *tensor = encode(type_info(type), x, ROWS, COLS, w, &n);
    for (size_t r = 0; r < ROWS; r++) {
        double d = f16_to_f32(load_u16(s_row_scales(type, tensor, ROWS, COLS) + 2 * r));
        type_info(type)->decode(y, tensor, ROWS, COLS, r);
        for (size_t g = 0; g < COLS / 32; g++) {
            const float *p = x + r * COLS + g * 32;
            double best = INFINITY, got = 0;
            for (int cz = 0; cz < 256; cz++)
                best = fmin(best, brute_error(levels, p, w + g * 32, d, cz));
            for (size_t i = 0; i < 32; i++) {
                double e = (double)y[g * 32 + i] - (double)p[i];
                got += w[g * 32 + i] * e * e;
            }
            assert_true(got <= best * 1.00001);
        }
    }
    free(tensor);
}

/* q4 and q8 are at least as good as the usual scale from the largest weight, block by block. */
static void better_than_the_maximum(void **state) {
    (void)state;
    enum { N = 512 };
    float x[N * 32], y[N * 32];
    size_t n;
    fill_normal(x, N * 32, 3);
    for (int k = 0; k < 2; k++) {
        const TypeInfo *t = type_info(k ? T_Q8_0 : T_Q4_0);
        uint8_t *tensor = encode(t, x, 16, N * 2, NULL, &n);
        for (size_t r = 0; r < 16; r++) t->decode(y + r * N * 2, tensor, 16, N * 2, r);
        for (int b = 0; b < N; b++) {
            double usual = 0, ours = 0;
            float m = 0;
            for (int i = 0; i < 32; i++)
                if (fabsf(x[b * 32 + i]) > fabsf(m)) m = x[b * 32 + i];
            float d = f16_to_f32(f32_to_f16(k ? fabsf(m) / 127 : m / -8));
            for (int i = 0; i < 32; i++) {
                float v = x[b * 32 + i], q = roundf(v / d);
                q = k ? fminf(fmaxf(q, -127), 127) : fminf(fmaxf(q, -8), 7);
                usual += (double)(v - q * d) * (double)(v - q * d);
                ours += (double)(v - y[b * 32 + i]) * (double)(v - y[b * 32 + i]);
            }
            assert_true(ours <= usual * 1.0001);
        }
        free(tensor);
    }
}

/* Odd shapes and values: zero rows, one huge weight, tiny weights, padding in both directions. */
static void corners(void **state) {
    (void)state;
    enum { ROWS = 19, COLS = 96 };
    float x[ROWS * COLS], y[COLS];
    fill_normal(x, ROWS * COLS, 5);
    for (int i = 0; i < COLS; i++) {
        x[i] = 0;
        x[COLS + i] *= 1e-12f;
        x[2 * COLS + i] = i == 40 ? 60000 : x[2 * COLS + i];
        x[3 * COLS + i] *= 1e-6f;
    }
    for (int k = 0; type_at(k); k++) {
        const TypeInfo *t = type_at(k);
        if (!t->encode) continue;
        size_t n, cols = t->block_bytes && t->block_len > 1 ? COLS : COLS - 13;
        uint8_t *tensor = encode(t, x, ROWS, cols, NULL, &n);
        for (size_t r = 0; r < ROWS; r++) {
            t->decode(y, tensor, ROWS, cols, r);
            for (size_t i = 0; i < cols; i++) {
                assert_true(isfinite(y[i]));
                if (r == 0 && t->block_len == 1) assert_true(y[i] == x[i]);
            }
        }
        free(tensor);
    }
}

/* The same bytes in whatever order row blocks are encoded, and padding rows have scale 0. */
static void padding(void **state) {
    (void)state;
    enum { ROWS = 19, COLS = 40 };
    float x[ROWS * COLS];
    size_t n;
    fill_normal(x, ROWS * COLS, 9);
    for (int type = T_S2; type <= T_S3; type++) {
        uint8_t *a = encode(type_info(type), x, ROWS, COLS, NULL, &n), *b = malloc(n);
        assert_int_equal(n, 2 * 2 * s_group_bytes(type) + 64);
        memset(b, 0x11, n);
        type_info(type)->encode(b, ROWS, COLS, 16, 3, x + 16 * COLS, NULL);
        type_info(type)->encode(b, ROWS, COLS, 0, 16, x, NULL);
        assert_memory_equal(a, b, n);
        for (int r = ROWS; r < 32; r++)
            assert_int_equal(load_u16(s_row_scales(type, a, ROWS, COLS) + 2 * r), 0);
        free(a);
        free(b);
    }
}

/* ---- the table ---- */

static void sizes(void **state) {
    (void)state;
    size_t n = 77;
    for (int i = 0; type_at(i); i++) {
        const TypeInfo *t = type_at(i);
        assert_ptr_equal(type_info(t->id), t);
        assert_ptr_equal(type_by_name(t->name), t);
        assert_false(type_bytes(t, UINT64_MAX, UINT64_MAX / 256 * 256, &n));
        assert_false(type_bytes(t, (uint64_t)1 << 40, (uint64_t)1 << 40, &n));
        if (t->block_bytes && t->block_len > 1)
            assert_false(type_bytes(t, 4, (uint64_t)t->block_len + 1, &n));
        assert_int_equal(n, 77);
    }
    assert_null(type_at(-1));
    assert_null(type_info(3));
    assert_null(type_by_name("q4_"));
    assert_null(type_by_name(NULL));
    assert_ptr_equal(type_by_name("Q4_K"), type_info(T_Q4_K));
    assert_ptr_equal(type_by_name("q8_0"), type_info(T_Q8_0));
    assert_true(type_bytes(type_info(T_S2), 4096, 4096, &n));
    assert_int_equal(n, 4096 * 4096 / 32 * 9 + 4096 * 2);
    assert_true(type_bytes(type_info(T_Q6_K), 3, 512, &n));
    assert_int_equal(n, 3 * 2 * 210);
}

int main(void) {
    static const int s2 = T_S2, s3 = T_S3;
    static char name2[] = "s2", name3[] = "s3";
    const struct CMUnitTest tests[] = {
        { "example of FORMAT.md, s2", document_example, NULL, NULL, name2 },
        { "example of FORMAT.md, s3", document_example, NULL, NULL, name3 },
        cmocka_unit_test(ggml_blocks),
        cmocka_unit_test(gaussian_error),
        { "groups are optimal, s2", groups_are_optimal, NULL, NULL, (void *)(uintptr_t)&s2 },
        { "groups are optimal, s3", groups_are_optimal, NULL, NULL, (void *)(uintptr_t)&s3 },
        cmocka_unit_test(better_than_the_maximum),
        cmocka_unit_test(corners),
        cmocka_unit_test(padding),
        cmocka_unit_test(sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
