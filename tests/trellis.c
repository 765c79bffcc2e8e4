/* trellis.c - t2 and t3: the code function, the examples of docs/FORMAT.md and the golden vectors,
 * the rotation against its formula, sizes, and the encoder against its known errors, against search
 * by brute force, and against itself with other threads and instruction sets. */
#define _POSIX_C_SOURCE 200809L
#include "trellis23.h"
#include "kern/kern.h"
#include "kv23.h"
#include "tiny.h"

#include <jansson.h>

static const int types[] = { T_T2, T_T3 };

static void fill_normal(float *x, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        uint64_t a = hash64(seed, &i, sizeof i), b = hash64(seed + 1, &i, sizeof i);
        double u = ((double)(a >> 12) + 0.5) * 0x1p-52, v = (double)(b >> 12) * 0x1p-52;
        x[i] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
    }
}

static Kern kernels(unsigned mask) {
    Kern k;
    kern_init(&k, mask);
    return k;
}

/* ---- the code and its layout ---- */

static void code_function(void **state) {
    (void)state;
    uint32_t h = 0;
    for (int s = 0; s < 65536; s++) {
        uint32_t p = t4((uint8_t)(s >> 8), (uint8_t)s);
        h = h * 31 + (p & 255) + 9 * (p >> 8 & 255) + 81 * (p >> 16 & 255) + 729 * (p >> 24);
    }
    assert_int_equal(h, 0x7818550B);
}

static void read_example(const char *text, const TypeInfo *t, uint8_t *tensor, size_t size) {
    char name[8], *end;
    unsigned at;
    for (const char *line = text; line; line = strchr(line, '\n')) {
        int used = 0;
        line += *line == '\n';
        if (sscanf(line, "%7s at %u:%n", name, &at, &used) != 2 || !used || strcmp(name, t->name))
            continue;
        assert_true(at + 8 <= size);
        end = (char *)line + used;
        for (unsigned i = 0; i < 8; i++) tensor[at + i] = (uint8_t)strtoul(end, &end, 16);
    }
}

/* "t2 stored row 1 input 8: ..." are stored values, "t2 row 0 input 8: ..." weights. */
static void document_example(void **state) {
    (void)state;
    FileMap f;
    assert_int_equal(file_map(&f, SOURCE_DIR "/docs/FORMAT.md", true, NULL, NULL), 0);
    char *text = strndup((const char *)f.data, f.size), name[8], *end;
    file_unmap(&f);
    for (int k = 0; k < 2; k++) {
        const TypeInfo *t = type_info(types[k]);
        uint8_t tensor[912] = { 0 };
        unsigned row, at;
        int n_stored = 0, n_weights = 0;
        read_example(text, t, tensor, k ? 912 : 656);
        for (const char *line = text; line; line = strchr(line, '\n')) {
            int used = 0;
            float y[32];
            line += *line == '\n';
            bool stored =
                sscanf(line, "%7s stored row %u input %u:%n", name, &row, &at, &used) == 3;
            if (!stored) sscanf(line, "%7s row %u input %u:%n", name, &row, &at, &used);
            if (!used || strcmp(name, t->name) != 0) continue;
            if (stored)
                trellis_decode(t->id, y, tensor, 3, 32, row);
            else
                t->decode(y, tensor, 3, 32, row);
            end = (char *)line + used;
            for (unsigned i = 0; i < 8; i++) {
                double v = strtod(end, &end);
                assert_true(fabs(y[at + i] - v) <= (stored ? 0 : 1e-5));
            }
            *(stored ? &n_stored : &n_weights) += 8;
        }
        assert_int_equal(n_stored, 96);
        assert_int_equal(n_weights, 32);
    }
    free(text);
}

/* One quad of 8 rows, in the first row block of a tensor. */
static void golden_vectors(void **state) {
    (void)state;
    json_t *all = json_load_file(SOURCE_DIR "/../shared/research/codec-vectors.json", 0, NULL);
    json_t *rows = json_object_get(all, "t2_t3_rows_first_prev_0"), *r;
    size_t i;
    if (!all) skip();
    assert_int_equal(json_array_size(rows), 8);
    for (int k = 0; k < 2; k++) {
        uint8_t *tensor = calloc(1, 1024);
        float d[64], y[32];
        for (int j = 0; j < 64; j++) d[j] = 1;
        trellis_put_scales(types[k], tensor, 64, 32, d);
        json_array_foreach(rows, i, r) {
            tensor[T_PAD + i] = (uint8_t)json_integer_value(json_object_get(r, "cur"));
            int s = (int)json_integer_value(json_object_get(r, "sign_nibble"));
            if (k) tensor[T_PAD + 64 * 8 + i / 2] |= (uint8_t)(s << 4 * (i % 2));
        }
        json_array_foreach(rows, i, r) {
            trellis_decode(types[k], y, tensor, 64, 32, i);
            json_t *want = json_object_get(r, k ? "t3_times2" : "t2");
            for (size_t j = 0; j < 4; j++)
                assert_true(y[8 * j] == json_number_value(json_array_get(want, j)));
        }
        free(tensor);
    }
    json_decref(all);
}

static void sizes(void **state) {
    (void)state;
    static const struct {
        size_t rows, cols, t2, t3;
    } want[] = { { 1, 32, 16 + 512 + 128, 16 + 768 + 128 },
                 { 64, 96, 16 + 1536 + 128, 16 + 2304 + 128 },
                 { 65, 32, 16 + 1024 + 256, 16 + 1536 + 256 },
                 { 129, 32, 32 + 1536 + 384, 32 + 2304 + 384 } };
    size_t n;
    for (size_t i = 0; i < ARRAY_LEN(want); i++)
        for (int k = 0; k < 2; k++) {
            assert_true(type_bytes(type_info(types[k]), want[i].rows, want[i].cols, &n));
            assert_int_equal(n, k ? want[i].t3 : want[i].t2);
            TrellisRows last = trellis_rows(types[k], NULL, want[i].rows, want[i].cols, 0);
            assert_true((uintptr_t)last.codes == T_PAD && (uintptr_t)last.scale % 2 == 0);
        }
    for (int k = 0; k < 2; k++) {
        const TypeInfo *t = type_info(types[k]);
        assert_true(type_bytes(t, 4096, 4096, &n));
        assert_true(8.0 * (double)n / (4096.0 * 4096.0) < 2.01 + k);
        assert_true(type_bytes(t, 1, T_MAX_COLS, &n));
        assert_false(type_bytes(t, 1, T_MAX_COLS + 32, &n));
        assert_false(type_bytes(t, 64, 48, &n));
        assert_false(type_bytes(t, 64, 0, &n));
        assert_false(type_bytes(t, SIZE_MAX - 3, 32, &n));
        assert_false(type_bytes(t, SIZE_MAX / 16, 1024, &n));
    }
}

/* ---- rotation ---- */

static double sign_of(uint32_t seed, uint32_t k, uint32_t j) {
    uint32_t x = seed + k + j * 0x9e3779b9u;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    return x >> 31 ? -1 : 1;
}

/* Entry (i, j) of a Hadamard matrix in the natural order. */
static int hadamard(size_t i, size_t j) {
    return __builtin_popcountll(i & j) % 2 ? -1 : 1;
}

/* Section 3.8 as sums. */
static void rotate_plainly(double *y, const float *x, size_t n, uint32_t seed) {
    size_t b = 1;
    while (n % (2 * b) == 0) b *= 2;
    size_t m = n / b, far = 8 * m;
    double *t = calloc(n, sizeof *t);
    for (size_t i = 0; i < n; i++)
        for (size_t j = i / b * b; j < i / b * b + b; j++)
            t[i] += hadamard(i % b, j % b) * x[j] * sign_of(seed, 0, (uint32_t)j) / sqrt((double)b);
    for (size_t i = 0; i < n; i++) {
        y[i] = m == 1 ? t[i] : 0;
        for (size_t k = 0; m > 1 && k < b / 8; k++) {
            size_t j = i % far + k * far;
            y[i] +=
                hadamard(i / far, k) * t[j] * sign_of(seed, 1, (uint32_t)j) / sqrt((double)b / 8);
        }
    }
    free(t);
}

static void rotation(void **state) {
    (void)state;
    static const size_t widths[] = { 32, 64, 96, 160, 224, 512, 576, 1056, 1536, 2048 };
    Kern kern = kernels(~0u);
    for (size_t w = 0; w < ARRAY_LEN(widths); w++) {
        size_t n = widths[w];
        uint32_t seed = 17u + (uint32_t)w;
        float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
        double *want = malloc(n * sizeof *want), size = 0;
        fill_normal(x, n, w);
        rotate_plainly(want, x, n, seed);
        kern.rotate(y, x, (int)n, seed);
        for (size_t i = 0; i < n; i++) assert_true(fabs(y[i] - want[i]) < 1e-5);
        for (size_t i = 0; i < n; i++) size += want[i] * want[i] - (double)x[i] * x[i];
        assert_true(fabs(size) < 1e-3);
        trellis_rotate(y, n, seed, true);
        for (size_t i = 0; i < n; i++) assert_true(fabsf(y[i] - x[i]) < 1e-5f);
        free(x);
        free(y);
        free(want);
    }
}

/* ---- the encoder ---- */

typedef struct Matrix {
    size_t rows, cols;
    float *w; /* in the rotated basis */
    float *d;
} Matrix;

static Matrix gaussian(int type, size_t rows, size_t cols) {
    Matrix m = { rows, cols, malloc(rows * cols * sizeof(float)), malloc(rows * sizeof(float)) };
    fill_normal(m.w, rows * cols, 1);
    for (size_t r = 0; r < rows; r++) m.d[r] = trellis_scale(type, 1);
    return m;
}

static void free_matrix(Matrix *m) {
    free(m->w);
    free(m->d);
}

/* All at once, or with `decoded` (rows, cols) quad by quad. */
static uint8_t *encode(int type, const Matrix *m, int effort, int threads, unsigned isa,
                       float *decoded, size_t *n_bytes) {
    Kern kern = kernels(isa);
    Pool *pool;
    TrellisEncoder *e;
    size_t quads = m->cols / 4;
    assert_true(type_bytes(type_info(type), m->rows, m->cols, n_bytes));
    uint8_t *tensor = malloc(*n_bytes);
    memset(tensor, 0xa5, *n_bytes);
    assert_int_equal(pool_create(&pool, threads, NULL, NULL), 0);
    assert_int_equal(trellis_encoder_create(&e, type, tensor, m->rows, m->cols, 9, m->d, effort,
                                            &kern, pool, NULL),
                     0);
    float(*target)[4] = malloc(m->rows * sizeof *target), (*got)[4] = malloc(m->rows * sizeof *got);
    for (size_t q = 0; decoded && q < quads; q++) {
        for (size_t r = 0; r < m->rows; r++)
            for (size_t i = 0; i < 4; i++) target[r][i] = m->w[r * m->cols + i * quads + q];
        trellis_encode_quad(e, q, (const float(*)[4])target, got);
        for (size_t r = 0; r < m->rows; r++)
            for (size_t i = 0; i < 4; i++) decoded[r * m->cols + i * quads + q] = got[r][i];
    }
    if (!decoded) trellis_encode_all(e, m->w);
    free(target);
    free(got);
    trellis_encoder_free(&e);
    pool_free(&pool);
    return tensor;
}

static double error_of(int type, const uint8_t *tensor, const Matrix *m) {
    float *y = malloc(m->cols * sizeof *y);
    double e = 0;
    for (size_t r = 0; r < m->rows; r++) {
        trellis_decode(type, y, tensor, m->rows, m->cols, r);
        for (size_t i = 0; i < m->cols; i++) e += pow((double)y[i] - m->w[r * m->cols + i], 2);
    }
    free(y);
    return e / (double)(m->rows * m->cols);
}

/* Mean squared errors, the exact search within 2 % of what the code can do. */
static void gaussian_error(void **state) {
    (void)state;
    static const struct {
        int type, effort;
        double lo, hi;
    } want[] = { { T_T2, 2, 0.0722, 0.0737 },
                 { T_T3, 2, 0.0197, 0.0203 },
                 { T_T2, 1, 0.0722, 0.0757 },
                 { T_T3, 1, 0.0197, 0.0212 } };
    for (size_t k = 0; k < ARRAY_LEN(want); k++) {
        Matrix m = gaussian(want[k].type, 1024, 256);
        size_t n;
        uint8_t *tensor = encode(want[k].type, &m, want[k].effort, 2, ~0u, NULL, &n);
        double e = error_of(want[k].type, tensor, &m);
        print_message("%s, effort %d: %.5f\n", type_info(want[k].type)->name, want[k].effort, e);
        assert_true(e >= want[k].lo && e <= want[k].hi);
        free(tensor);
        free_matrix(&m);
    }
}

/* Values that lane i of the state can stand for, nearest to w. */
static double distance(int type, uint8_t prev, uint8_t cur, const float w[4]) {
    double e = 0;
    uint32_t p = t4(prev, cur);
    for (int i = 0; i < 4; i++) {
        double v = (double)(p >> (8 * i) & 255);
        v = type == T_T2 ? v - 4 : fabs(v - 4.25);
        e += pow((type == T_T2 ? (double)w[i] : fabs((double)w[i])) - v, 2);
    }
    return e;
}

/* Three rows, all 2^24 paths through the first tile. */
static void best_path(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        int type = types[k];
        Matrix m = gaussian(type, 3, 32);
        size_t n;
        float x[3][4], d = f16_to_f32(f32_to_f16(m.d[0]));
        for (size_t r = 0; r < 3; r++)
            for (size_t i = 0; i < 4; i++)
                x[r][i] = m.w[r * 32 + 8 * i] / d * (type == T_T2 ? 1.0f : 0.5f);
        uint8_t *tensor = encode(type, &m, 2, 1, ~0u, NULL, &n), *code = tensor + T_PAD;
        double to[2][256], least = INFINITY;
        for (int b = 0; b < 256; b++) to[0][b] = distance(type, 0, (uint8_t)b, x[0]);
        for (int r = 1; r < 3; r++)
            for (int b = 0; b < 256; b++) {
                to[r % 2][b] = INFINITY;
                for (int a = 0; a < 256; a++) {
                    double e = to[(r + 1) % 2][a] + distance(type, (uint8_t)a, (uint8_t)b, x[r]);
                    to[r % 2][b] = fmin(to[r % 2][b], e);
                }
            }
        for (int b = 0; b < 256; b++) least = fmin(least, to[0][b]);
        double ours = distance(type, 0, code[0], x[0]) + distance(type, code[0], code[1], x[1]) +
                      distance(type, code[1], code[2], x[2]);
        double unit = type == T_T2 ? 12 : 40; /* costs are rounded: 12 of them, half a unit each */
        assert_true(ours >= least - 1e-9 && ours <= least + 2 * 6 / unit);
        free(tensor);
        free_matrix(&m);
    }
}

/* Quad by quad gives the bytes of all at once, and says what they stand for. */
static void quads(void **state) {
    (void)state;
    static const size_t rows[] = { 1, 63, 64, 65, 128, 200, 300 };
    for (size_t k = 0; k < 2 * ARRAY_LEN(rows); k++) {
        int type = types[k % 2];
        Matrix m = gaussian(type, rows[k / 2], 64);
        float *decoded = malloc(m.rows * m.cols * sizeof *decoded), y[64];
        size_t n;
        m.d[0] = 0;
        if (m.rows > 2) m.d[1] *= -1;
        uint8_t *all = encode(type, &m, 2, 2, ~0u, NULL, &n);
        uint8_t *ones = encode(type, &m, 2, 2, ~0u, decoded, &n);
        assert_memory_equal(all, ones, n);
        assert_int_equal(trellis_seed(all), 9);
        for (size_t r = 0; r < m.rows; r++) {
            trellis_decode(type, y, all, m.rows, m.cols, r);
            for (size_t i = 0; i < m.cols; i++) assert_true(y[i] == decoded[r * m.cols + i]);
        }
        for (size_t r = m.rows; r < (m.rows + 63) / 64 * 64; r++)
            assert_int_equal(*(trellis_rows(type, all, m.rows, 64, 0).scale + r), 0);
        free(all);
        free(ones);
        free(decoded);
        free_matrix(&m);
    }
}

static void same_bytes_anywhere(void **state) {
    (void)state;
    for (int k = 0; k < 4; k++) {
        int type = types[k % 2], effort = 1 + k / 2;
        Matrix m = gaussian(type, 530, 32);
        size_t n;
        uint8_t *want = encode(type, &m, effort, 1, DIBIT_ISA_SCALAR, NULL, &n);
        for (int threads = 1; threads <= 5; threads++) {
            uint8_t *got = encode(type, &m, effort, threads, ~0u, NULL, &n);
            assert_memory_equal(got, want, n);
            free(got);
        }
        free(want);
        free_matrix(&m);
    }
}

/* trellis_encode(): decode gives the weights back; zeros, tiny and huge values. */
static void corners(void **state) {
    (void)state;
    enum { ROWS = 70, COLS = 96 };
    Kern kern = kernels(~0u);
    for (int k = 0; k < 2; k++) {
        const TypeInfo *t = type_info(types[k]);
        float w[ROWS * COLS], x[ROWS * COLS], y[COLS];
        size_t n;
        fill_normal(w, ROWS * COLS, 5);
        for (int i = 0; i < COLS; i++) {
            w[i] = 0;
            w[COLS + i] *= 1e-12f;
            w[2 * COLS + i] *= 1e4f;
            w[3 * COLS + i] = i == 40 ? 65000.0f : w[3 * COLS + i];
            w[4 * COLS + i] *= 1e-6f;
        }
        memcpy(x, w, sizeof w);
        assert_true(type_bytes(t, ROWS, COLS, &n));
        uint8_t *tensor = malloc(n);
        assert_int_equal(trellis_encode(t->id, tensor, x, ROWS, COLS, 3, 2, &kern, NULL, NULL), 0);
        for (size_t r = 0; r < ROWS; r++) {
            double e = 0, size = 0;
            t->decode(y, tensor, ROWS, COLS, r);
            for (size_t i = 0; i < COLS; i++) {
                assert_true(isfinite(y[i]) && (r > 0 || y[i] == 0));
                e += pow((double)y[i] - w[r * COLS + i], 2);
                size += pow(w[r * COLS + i], 2);
            }
            if (r == 1 || r == 4) continue; /* at or below the smallest f16 */
            assert_true(e <= (k ? 0.06 : 0.2) * size);
        }
        free(tensor);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code_function),
        cmocka_unit_test(document_example),
        cmocka_unit_test(golden_vectors),
        cmocka_unit_test(sizes),
        cmocka_unit_test(rotation),
        cmocka_unit_test(gaussian_error),
        cmocka_unit_test(best_path),
        cmocka_unit_test(quads),
        cmocka_unit_test(same_bytes_anywhere),
        cmocka_unit_test(corners),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
