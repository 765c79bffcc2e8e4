/* calibrate_sensitivity.c - one matrix at a time with noise in its weights, and what becomes of the
 * logits. The noise depends on the place of a weight alone: every run gives the same figures. */
#include "calibrate_sensitivity.h"

#include <math.h>
#include <string.h>

#include "dense.h"

#define NOISE 0.1f /* of a row's root mean square */

static float *floats(size_t a, size_t b) {
    size_t n;
    return size_mul(a, b, &n) && size_mul(n, sizeof(float), &n) ? mem_alloc(NULL, n) : NULL;
}

static Weight *matrix(Layer *l, int i) {
    Weight *const all[SENSITIVITY_MATRICES] = { &l->q,    &l->k,  &l->v,   &l->o,
                                                &l->gate, &l->up, &l->down };
    return all[i];
}

/* Logits become log-probabilities. */
static void normalize(float *x, size_t n) {
    double sum = 0;
    float most = x[0];
    for (size_t i = 1; i < n; i++) most = MAX(most, x[i]);
    for (size_t i = 0; i < n; i++) sum += exp((double)(x[i] - most));
    float log_sum = most + (float)log(sum);
    for (size_t i = 0; i < n; i++) x[i] -= log_sum;
}

static double divergence(const float *p, const float *q, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += exp((double)p[i]) * ((double)p[i] - (double)q[i]);
    return sum;
}

/* The window through the model: log-probabilities to t->base, or their mean KLD to it. */
static int pass(Sensitivity *t, double *kld, DibitError *err) {
    size_t n_vocab = (size_t)t->m->hp.n_vocab;
    double sum = 0;
    cache_truncate(t->c, 0);
    for (int at = 0; at < t->n; at += t->batch) {
        int n = MIN(t->batch, t->n - at);
        float *base = t->base + (size_t)at * n_vocab, *to = kld ? t->logits : base;
        int r = model_forward(t->m, t->s, t->c, t->ids + at, n, to, true, err);
        if (r != 0) return r;
        for (size_t i = 0; i < (size_t)n * n_vocab; i += n_vocab) {
            normalize(to + i, n_vocab);
            if (kld) sum += divergence(base + i, to + i, n_vocab);
        }
    }
    if (kld) *kld = MAX(sum / t->n, 0);
    return 0;
}

int sensitivity_create(Sensitivity *t, DibitError *err) {
    size_t n_vocab = (size_t)t->m->hp.n_vocab, rows = 0, cols = 0;
    for (int i = 0; i < SENSITIVITY_MATRICES; i++) {
        rows = MAX(rows, matrix(&t->m->layers[0], i)->rows);
        cols = MAX(cols, matrix(&t->m->layers[0], i)->cols);
    }
    t->base = floats((size_t)t->n, n_vocab);
    t->logits = floats((size_t)t->batch, n_vocab);
    t->noisy = floats(rows, cols);
    t->product = floats(rows, cols);
    if (!t->base || !t->logits || !t->noisy || !t->product)
        return fail(err, DIBIT_E_MEMORY, "no memory to measure sensitivities with %d tokens", t->n);
    return pass(t, NULL, err);
}

void sensitivity_free(Sensitivity *t) {
    mem_free(NULL, t->base);
    mem_free(NULL, t->logits);
    mem_free(NULL, t->noisy);
    mem_free(NULL, t->product);
    t->base = t->logits = t->noisy = t->product = NULL;
}

/* Uniform in -1..1. */
static float noise_at(uint64_t i) {
    i = (i + 1) * 0x9e3779b97f4a7c15u; /* splitmix64 */
    i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9u;
    i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
    return (float)((i ^ (i >> 31)) >> 40) * 0x1p-23f - 1;
}

/* t->noisy: the weights, or with `noise` only what is added to them. */
static void fill(Sensitivity *t, const Weight *w, bool weights, bool noise) {
    for (size_t r = 0; r < w->rows; r++) {
        float *row = t->noisy + r * w->cols;
        double energy = 0;
        w->type->decode(row, w->data, w->rows, w->cols, r);
        for (size_t k = 0; k < w->cols; k++) energy += (double)row[k] * (double)row[k];
        /* a uniform number has a variance of 1/3 */
        float scale = NOISE * (float)sqrt(3 * energy / (double)w->cols);
        for (size_t k = 0; k < w->cols; k++)
            row[k] = (weights ? row[k] : 0) + (noise ? scale * noise_at(r * w->cols + k) : 0);
    }
}

/* tr(A H A^T) of A = t->noisy. */
static int output_energy(Sensitivity *t, const Weight *w, const float *h, bool full, double *out,
                         DibitError *err) {
    size_t rows = w->rows, cols = w->cols;
    const float *a = t->noisy;
    double sum = 0;
    if (full) {
        memset(t->product, 0, rows * cols * sizeof *t->product);
        DenseProduct p = { t->product,     cols,           rows, cols, cols,
                           { a, cols, 1 }, { h, cols, 1 }, 1,    false };
        int r = dense_multiply(&p, t->pool, err);
        if (r != 0) return r;
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < cols; k++) {
            size_t at = r * cols + k;
            sum += (double)a[at] * (double)(full ? t->product[at] : a[at] * h[k]);
        }
    *out = sum;
    return 0;
}

int sensitivity_measure(Sensitivity *t, int layer, int i, const float *h, bool full, float *out,
                        DibitError *err) {
    Weight *w = matrix(&t->m->layers[layer], i), kept = *w;
    double all = 0, part = 0, kld = 0;
    fill(t, &kept, true, false);
    int r = output_energy(t, &kept, h, full, &all, err);
    fill(t, &kept, false, true);
    if (r == 0) r = output_energy(t, &kept, h, full, &part, err);
    if (r != 0) return r;
    fill(t, &kept, true, true);
    *w = (Weight){ .type = type_info(T_F32),
                   .rows = kept.rows,
                   .cols = kept.cols,
                   .data = (const uint8_t *)t->noisy,
                   .n_bytes = kept.rows * kept.cols * sizeof(float) };
    r = pass(t, &kld, err);
    *w = kept;
    *out = all > 0 && part > 0 ? (float)(kld * all / part) : 0;
    return r;
}
