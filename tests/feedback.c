/* feedback.c - matrix algebra and error feedback: right results, less loss, the same bytes at any
 * thread count. */
#include "feedback.h"

#include "dense.h"
#include "tiny.h"
#include "trellis23.h"

static double uniform(TinyState *s) {
    return tiny_random(s);
}

static Pool *make_pool(int n) {
    Pool *p;
    DibitError err;
    if (pool_create(&p, n, NULL, &err) != 0) die("%s", err.text);
    return p;
}

/* Sums of x x^T of 2 n tokens whose neighbours are correlated. */
static float *correlations(TinyState *s, size_t n) {
    float *h = calloc(n * n, sizeof *h), *x = calloc(n, sizeof *x);
    for (size_t t = 0; t < 2 * n; t++) {
        double state = 0;
        for (size_t i = 0; i < n; i++) {
            state = 0.9 * state + uniform(s);
            x[i] = (float)(state * (1 + (double)(i % 7)));
        }
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) h[i * n + j] += x[i] * x[j];
    }
    free(x);
    return h;
}

static float *triangle_of(const float *h, size_t n) {
    float *t = malloc(n * (n + 1) / 2 * sizeof *t), *at = t;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) *at++ = h[i * n + j];
    return t;
}

/* e H e^T over w H w^T, summed over rows. */
static double output_loss(const float *h, const float *w, const float *q, size_t rows, size_t n) {
    double loss = 0, energy = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++) {
            double he = 0, hw = 0;
            for (size_t j = 0; j < n; j++) {
                he += (double)h[i * n + j] * ((double)w[r * n + j] - (double)q[r * n + j]);
                hw += (double)h[i * n + j] * (double)w[r * n + j];
            }
            loss += he * ((double)w[r * n + i] - (double)q[r * n + i]);
            energy += hw * (double)w[r * n + i];
        }
    return loss / energy;
}

static void products(void **state) {
    (void)state;
    enum { M = 101, N = 130, K = 300 };
    TinyState s = { .rng = 7 };
    static float a[M * K], b[K * N], c[2][M * N];
    for (size_t i = 0; i < ARRAY_LEN(a); i++) a[i] = (float)uniform(&s);
    for (size_t i = 0; i < ARRAY_LEN(b); i++) b[i] = (float)uniform(&s);
    for (size_t i = 0; i < M * N; i++) c[0][i] = c[1][i] = (float)i;
    for (int k = 0; k < 2; k++) {
        Pool *pool = make_pool(k ? 5 : 1);
        DenseProduct p = { c[k], N, M, N, K, { a, K, 1 }, { b, N, 1 }, 2, false };
        assert_int_equal(dense_multiply(&p, pool, NULL), 0);
        pool_free(&pool);
    }
    assert_memory_equal(c[0], c[1], sizeof c[0]);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            double want = (double)(i * N + j);
            for (size_t k = 0; k < K; k++)
                want += 2.0 * (double)a[i * K + k] * (double)b[k * N + j];
            if (fabs(want - (double)c[0][i * N + j]) > 0.02) die("(%zu, %zu)", i, j);
        }
}

static void cholesky(void **state) {
    (void)state;
    enum { N = 150, ROWS = 3 };
    TinyState s = { .rng = 8 };
    float *h = correlations(&s, N), *l = malloc(N * N * sizeof *l), x[ROWS * N], b[ROWS * N];
    bool ok;
    for (size_t i = 0; i < N; i++) h[i * N + i] *= 1.01f;
    memcpy(l, h, N * N * sizeof *l);
    assert_int_equal(dense_cholesky(l, N, NULL, &ok, NULL), 0);
    assert_true(ok);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = 0;
            for (size_t k = 0; k <= j; k++) sum += (double)l[i * N + k] * (double)l[j * N + k];
            double bound = 1e-5 * sqrt((double)h[i * N + i] * (double)h[j * N + j]);
            if (fabs(sum - (double)h[i * N + j]) > bound) die("l l^T at (%zu, %zu)", i, j);
        }
    for (size_t i = 0; i < ROWS * N; i++) b[i] = x[i] = (float)uniform(&s) * 1000;
    assert_int_equal(dense_solve(x, ROWS, l, N, NULL, NULL), 0);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < N; j++) {
            double sum = 0;
            for (size_t k = 0; k < N; k++) sum += (double)x[r * N + k] * (double)h[k * N + j];
            if (fabs(sum - (double)b[r * N + j]) > 0.5) die("row %zu: %g", r, sum - b[r * N + j]);
        }
    memcpy(l, h, N * N * sizeof *l);
    l[77 * N + 77] = -1;
    assert_int_equal(dense_cholesky(l, N, NULL, &ok, NULL), 0);
    assert_false(ok);
    free(h);
    free(l);
}

/* t2 and t3 without feedback. */
static void encode_trellis(uint8_t *dst, const TypeInfo *type, const float *w, size_t rows,
                           size_t cols) {
    TrellisEncoder *e;
    Kern kern;
    float *x = malloc(rows * cols * sizeof *x), *d = malloc(rows * sizeof *d);
    kern_init(&kern, isa_detect());
    memcpy(x, w, rows * cols * sizeof *x);
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t i = 0; i < cols; i++) sum += (double)w[r * cols + i] * (double)w[r * cols + i];
        d[r] = trellis_scale(type->id, sqrt(sum / (double)cols));
        trellis_rotate(x + r * cols, cols, 5, false);
    }
    assert_int_equal(
        trellis_encoder_create(&e, type->id, dst, rows, cols, 5, d, 2, &kern, NULL, NULL), 0);
    trellis_encode_all(e, x);
    trellis_encoder_free(&e);
    free(x);
    free(d);
}

/* Feedback loses far less than the plain encoder with the same bits, its own figure of the loss is
 * right, and neither threads nor zero rows disturb it. */
static void less_loss(const TypeInfo *type, size_t cols, double factor) {
    enum { ROWS = 40 };
    TinyState s = { .rng = 9 };
    size_t n_bytes;
    float *h = correlations(&s, cols), *tri = triangle_of(h, cols);
    float *w = calloc(ROWS * cols, sizeof *w), *q = calloc(ROWS * cols, sizeof *q);
    for (size_t i = cols; i < ROWS * cols; i++)
        w[i] = (float)(uniform(&s) + uniform(&s) + uniform(&s)); /* row 0 is zeros */
    assert_true(type_bytes(type, ROWS, cols, &n_bytes));
    Kern kern;
    kern_init(&kern, isa_detect());
    uint8_t *plain = calloc(1, n_bytes), *fed[2] = { malloc(n_bytes), malloc(n_bytes) };
    double loss[2], figure = 0;
    for (size_t r = 0; r < ROWS && type->encode; r += 16)
        type->encode(plain, ROWS, cols, r, MIN((size_t)16, ROWS - r), w + r * cols, NULL);
    if (!type->encode) encode_trellis(plain, type, w, ROWS, cols);
    for (size_t r = 0; r < ROWS; r++) type->decode(q + r * cols, plain, ROWS, cols, r);
    loss[0] = output_loss(h, w, q, ROWS, cols);
    for (int k = 0; k < 2; k++) {
        Pool *pool = make_pool(k ? 4 : 1);
        Feedback f;
        float *copy = malloc(ROWS * cols * sizeof *copy);
        memcpy(copy, w, ROWS * cols * sizeof *copy);
        assert_int_equal(feedback_create(&f, type, 5, tri, cols, pool, NULL), 0);
        assert_int_equal(feedback_encode(&f, fed[k], copy, ROWS, 2, &kern, pool, &figure, NULL), 0);
        feedback_free(&f);
        free(copy);
        pool_free(&pool);
    }
    assert_memory_equal(fed[0], fed[1], n_bytes);
    for (size_t r = 0; r < ROWS; r++) type->decode(q + r * cols, fed[0], ROWS, cols, r);
    for (size_t i = 0; i < cols; i++) assert_true(q[i] == 0);
    loss[1] = output_loss(h, w, q, ROWS, cols);
    if (!(loss[1] < loss[0] * factor))
        die("%s, %zu columns: loss %g, plain %g", type->name, cols, loss[1], loss[0]);
    /* the figure counts the damping, a hundredth of the mean power, too */
    if (!(figure > 0.9 * loss[1] && figure < 3 * loss[1]))
        die("%s: loss %g, said to be %g", type->name, loss[1], figure);
    free(h);
    free(tri);
    free(w);
    free(q);
    free(plain);
    free(fed[0]);
    free(fed[1]);
}

static void all_types(void **state) {
    (void)state;
    int n = 0;
    for (int i = 0; type_at(i); i++) {
        if (!feedback_can(type_at(i))) continue;
        less_loss(type_at(i), 256, 0.45);
        n++;
    }
    assert_true(n >= 5);
    less_loss(type_by_name("s2"), 80, 0.6); /* the last group is not full */
    less_loss(type_by_name("s3"), 40, 0.7);
}

/* An input that is always zero leaves nothing to fit, and is no error. */
static void silent_input(void **state) {
    (void)state;
    enum { N = 64 };
    static float tri[N * (N + 1) / 2], w[N];
    uint8_t out[4096];
    double loss;
    Feedback f;
    for (size_t i = 0; i < N; i++) w[i] = (float)i;
    assert_int_equal(feedback_create(&f, type_by_name("s3"), 0, tri, N, NULL, NULL), 0);
    assert_int_equal(feedback_encode(&f, out, w, 1, 0, NULL, NULL, &loss, NULL), 0);
    assert_true(loss < 0.1);
    feedback_free(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products),
        cmocka_unit_test(cholesky),
        cmocka_unit_test(all_types),
        cmocka_unit_test(silent_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
