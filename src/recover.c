/* recover.c - the base network and the quantized one side by side, layer by layer. With a the
 * base's input of a matrix W and b that of the quantized network, the code Q should make Q b equal
 * to W a: least squares over the text gives the target W + W (sum (a - b) b^T) (sum b b^T)^-1.
 * Where the result is added to the residual stream the target also takes back the error that has
 * gathered there. The norms follow in the same way: with the codes of all matrices that read a norm
 * the factors d of its channels for which Q (d b) comes nearest to W a. */
#include "recover.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dense.h"

enum { BATCH = 256, WINDOW_DEFAULT = 2048, BASE = 0, CODED = 1 };
/* How far targets go from the weights to the least squares of this text: other texts differ. A
 * calibration holds them back by itself. */
#define DAMPING       0.1 /* of the mean of the diagonal */
#define SHARE         0.5f
#define DAMPING_PRIOR 0.01
#define DAMPING_NORM  0.02 /* of the mean of the diagonal: factors stay near 1 */

typedef struct Recover {
    const Model *m;
    const RecoverOptions *opt;
    Pool *pool;
    RecoverCode *code;
    void *user;
    Scratch s;
    Cache cache; /* of one layer */
    int window, batch, n_windows, layer, stage;
    size_t n;                        /* tokens in all */
    float *x[2], *in[2], *mid[2];    /* of both networks: (n, n_embd) residual stream and normed;
                                        (n, heads or n_ff) attention's result, activations */
    float *h, *cross, *factor;       /* (widest, widest) */
    float *triangle, *target, *gain; /* gain: what the target differs from the weights */
    float *decoded[7];               /* the coded layer's matrices: q k v o gate up down */
    float *moment, *gram, *slope;    /* normal equations of a norm: (n_embd, n_embd) sums of Q^T Q
                                        of its matrices and of one of them, (n_embd) right side */
    float share;                     /* of the gain that is taken */
    Layer coded;
} Recover;

/* ---- setting up ---- */

static size_t q_width(const Hparams *h) {
    return (size_t)h->n_heads * (size_t)h->head_dim;
}

static float *floats(size_t a, size_t b, bool *ok) {
    size_t n;
    float *p = size_mul(a, b, &n) && size_mul(n, sizeof(float), &n) ? mem_alloc(NULL, n) : NULL;
    *ok &= p != NULL;
    return p;
}

static Weight *layer_weight(Layer *l, int i) {
    Weight *const all[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
    return all[i];
}

static int allocate(Recover *r, DibitError *err) {
    const Hparams *h = &r->m->hp;
    size_t e = (size_t)h->n_embd, q = q_width(h), ff = (size_t)h->n_ff;
    size_t wide = MAX(q, ff), widest = MAX(wide, e), tallest = widest;
    bool ok = true;
    for (int k = 0; k < 2; k++) {
        r->x[k] = floats(r->n, e, &ok);
        r->in[k] = floats(r->n, e, &ok);
        r->mid[k] = floats(r->n, wide, &ok);
    }
    r->moment = floats(e, e, &ok);
    r->gram = floats(e, e, &ok);
    r->slope = floats(e, 1, &ok);
    r->h = floats(widest, widest, &ok);
    r->cross = floats(widest, widest, &ok);
    r->factor = floats(widest, widest, &ok);
    r->triangle = floats(widest, widest / 2 + 1, &ok);
    for (int i = 0; i < 7; i++) {
        const Weight *w = layer_weight(&r->m->layers[0], i);
        tallest = MAX(tallest, w->rows);
        r->decoded[i] = floats(w->rows, w->cols, &ok);
    }
    r->target = floats(tallest, widest, &ok);
    r->gain = floats(tallest, widest, &ok);
    if (ok) return 0;
    return fail(err, DIBIT_E_MEMORY, "no memory to recover with %zu tokens; use fewer", r->n);
}

static int set_up(Recover *r, const Kern *kern, DibitError *err) {
    const Hparams *h = &r->m->hp;
    const RecoverOptions *o = r->opt;
    size_t count = o->n_ids;
    r->window = o->window ? o->window : MIN(WINDOW_DEFAULT, h->n_ctx_train);
    r->batch = MIN(BATCH, r->window);
    for (size_t i = 0; i < o->n_ids; i++)
        if (o->ids[i] < 0 || o->ids[i] >= h->n_vocab)
            return fail(err, DIBIT_E_ARGUMENT, "token %zu is %d, outside the vocabulary of %d", i,
                        o->ids[i], h->n_vocab);
    if (o->max_tokens) count = (size_t)MIN((uint64_t)count, o->max_tokens);
    if (r->window < 2 || count / (size_t)r->window == 0)
        return fail(err, DIBIT_E_ARGUMENT,
                    "recovery: the text has %zu tokens, fewer than one window of %d: give a longer "
                    "text",
                    o->n_ids, r->window);
    r->n_windows = (int)MIN(count / (size_t)r->window, (size_t)(INT_MAX / r->window));
    r->n = (size_t)r->n_windows * (size_t)r->window;
    CacheShape shape = { .n_layers = 1,
                         .n_kv_heads = h->n_kv_heads,
                         .head_dim = h->head_dim,
                         .n_ctx = r->window,
                         .type_k = KV_F16,
                         .type_v = KV_F16,
                         .n_batch = r->batch };
    int rc = cache_create(&r->cache, &shape, NULL, err);
    if (rc == 0) rc = scratch_create(&r->s, r->m, kern, r->pool, r->batch, r->window, NULL, err);
    return rc ? rc : allocate(r, err);
}

/* The residual streams begin as the embedding, which both networks share. */
static void embed(Recover *r) {
    size_t e = (size_t)r->m->hp.n_embd, all = r->opt->n_ids / (size_t)r->window;
    int head = r->opt->bos >= 0;
    for (int w = 0; w < r->n_windows; w++) {
        size_t at = (size_t)w * all / (size_t)r->n_windows * (size_t)r->window;
        float *x = r->x[BASE] + (size_t)w * (size_t)r->window * e;
        if (head) op_rows(&r->s.ops, x, &r->m->embed, &r->opt->bos, 1);
        for (int i = head; i < r->window; i += r->batch)
            op_rows(&r->s.ops, x + (size_t)i * e, &r->m->embed, r->opt->ids + at + i - head,
                    MIN(r->batch, r->window - i));
    }
    memcpy(r->x[CODED], r->x[BASE], r->n * e * sizeof(float));
}

/* ---- pieces of a layer, for all tokens ---- */

static void norm(Recover *r, int net, const float *w) {
    int e = r->m->hp.n_embd;
    for (size_t i = 0; i < r->n; i += (size_t)r->batch)
        op_norm(&r->s.ops, r->in[net] + i * (size_t)e, r->x[net] + i * (size_t)e, w,
                (int)MIN((size_t)r->batch, r->n - i), e, r->m->hp.eps);
}

static void attend(Recover *r, int net, const Layer *l) {
    const Hparams *h = &r->m->hp;
    size_t e = (size_t)h->n_embd, q = q_width(h);
    float scale = (float)(1.0 / sqrt(h->head_dim));
    for (size_t i = 0; i < r->n;) {
        int pos = (int)(i % (size_t)r->window), n = MIN(r->batch, r->window - pos);
        if (pos == 0) cache_truncate(&r->cache, 0);
        memcpy(r->s.t, r->in[net] + i * e, (size_t)n * e * sizeof(float));
        model_project_qkv(r->m, &r->s, l, n, pos);
        op_put(&r->s.ops, &r->cache, 0, pos, n, r->s.k, r->s.v);
        op_attend(&r->s.ops, r->mid[net] + i * q, r->s.q, &r->cache, 0, pos, n, h->n_heads, scale,
                  h->window);
        cache_advance(&r->cache, n);
        i += (size_t)n;
    }
}

static void activate(Recover *r, int net, const Layer *l) {
    size_t e = (size_t)r->m->hp.n_embd, ff = (size_t)r->m->hp.n_ff;
    for (size_t i = 0; i < r->n; i += (size_t)r->batch) {
        int n = (int)MIN((size_t)r->batch, r->n - i);
        op_matmul_many(&r->s.ops, 2, (float *[]){ r->s.gate, r->s.up }, (size_t[]){ ff, ff },
                       (const Weight *[]){ &l->gate, &l->up }, r->in[net] + i * e, n);
        op_swiglu(&r->s.ops, r->mid[net] + i * ff, r->s.gate, r->s.up, n, (int)ff);
    }
}

/* dst (n, n_embd) += sign * W mid. */
static void add_product(Recover *r, float *dst, const Weight *w, int net, float sign) {
    size_t e = (size_t)r->m->hp.n_embd;
    for (size_t i = 0; i < r->n; i += (size_t)r->batch) {
        int n = (int)MIN((size_t)r->batch, r->n - i);
        op_matmul(&r->s.ops, r->s.t, e, w, r->mid[net] + i * w->cols, n);
        for (size_t k = 0; k < (size_t)n * e; k++) dst[i * e + k] += sign * r->s.t[k];
    }
}

/* ---- coding a matrix ---- */

static int product(Recover *r, float *c, size_t m, size_t n, const float *a, size_t lda,
                   const float *b, bool lower, DibitError *err) {
    DenseProduct p = { c, n, m, n, r->n, { a, 1, lda }, { b, n, 1 }, 1, lower };
    memset(c, 0, m * n * sizeof *c);
    return dense_multiply(&p, r->pool, err);
}

static void matrix_name(char *buf, size_t cap, int layer, int i) {
    static const char *const names[] = { "attn_q",   "attn_k", "attn_v",  "attn_output",
                                         "ffn_gate", "ffn_up", "ffn_down" };
    snprintf(buf, cap, "blk.%d.%s.weight", layer, names[i]);
}

/* Sums of b b^T of the coded network's inputs (n, cols): the whole matrix; its triangle, with
 * what a calibration has seen; and the factor of what holds targets near the weights: the same with
 * equal parts of both, damped. */
static int gather(Recover *r, int first, const float *b, size_t cols, DibitError *err) {
    double mean = 0;
    bool ok = false;
    char name[64];
    uint64_t n_prior = 0;
    int rc = product(r, r->h, cols, cols, b, cols, b, true, err);
    matrix_name(name, sizeof name, r->layer, first);
    const float *prior = r->opt->prior ? r->opt->prior(r->user, name, cols, &n_prior) : NULL;
    float *t = r->triangle, part = prior ? (float)((double)r->n / (double)n_prior) : 0;
    for (size_t i = 0; rc == 0 && i < cols; i++) {
        for (size_t j = 0; j < i; j++) r->h[j * cols + i] = r->h[i * cols + j];
        for (size_t j = 0; j <= i; j++) {
            size_t k = i * (i + 1) / 2 + j;
            t[k] = r->h[i * cols + j] + (prior ? prior[k] : 0);
            r->factor[i * cols + j] = r->h[i * cols + j] + (prior ? part * prior[k] : 0);
        }
        mean += (double)r->factor[i * cols + i] / (double)cols;
    }
    if (rc == 0 && !isfinite(mean))
        return fail(err, DIBIT_E_NUMERIC, "layer %d: activations are not finite; is a weight NaN?",
                    r->layer);
    double damping = prior ? DAMPING_PRIOR : DAMPING;
    r->share = prior ? 1 : SHARE;
    for (size_t i = 0; i < cols; i++)
        r->factor[i * cols + i] += (float)(mean > 0 ? damping * mean : 1);
    if (rc == 0) rc = dense_cholesky(r->factor, cols, r->pool, &ok, err);
    if (rc == 0 && !ok)
        rc = fail(err, DIBIT_E_NUMERIC, "layer %d: the correlations of inputs are not positive",
                  r->layer);
    r->stage++;
    return rc;
}

/* Codes matrix i of the layer for the target W + gain H^-1; gain: sums of (wanted - W b) b^T. */
static int code(Recover *r, int i, float *gain, DibitError *err) {
    const Weight *w = layer_weight(&r->m->layers[r->layer], i);
    char name[64];
    matrix_name(name, sizeof name, r->layer, i);
    for (size_t row = 0; row < w->rows; row++)
        w->type->decode(r->target + row * w->cols, w->data, w->rows, w->cols, row);
    int rc = dense_solve(gain, w->rows, r->factor, w->cols, r->pool, err);
    for (size_t k = 0; k < w->rows * w->cols; k++) r->target[k] += r->share * gain[k];
    if (rc == 0)
        rc = r->code(r->user, name, r->stage, r->target, w->rows, w->cols, r->triangle,
                     r->decoded[i], err);
    *layer_weight(&r->coded, i) = (Weight){ .type = type_info(T_F32),
                                            .rows = w->rows,
                                            .cols = w->cols,
                                            .data = (const uint8_t *)r->decoded[i],
                                            .n_bytes = w->rows * w->cols * sizeof(float) };
    return rc;
}

/* r->gain = W (sum (a - b) b^T), W to r->target. */
static int input_gain(Recover *r, const Weight *w, DibitError *err) {
    size_t e = w->cols;
    for (size_t row = 0; row < w->rows; row++)
        w->type->decode(r->target + row * e, w->data, w->rows, e, row);
    memset(r->gain, 0, w->rows * e * sizeof *r->gain);
    DenseProduct p = {
        r->gain, e, w->rows, e, e, { r->target, e, 1 }, { r->cross, e, 1 }, 1, false
    };
    return dense_multiply(&p, r->pool, err);
}

/* ---- norms ---- */

/* Adds a coded matrix Q (rows, n_embd) to the normal equations of its norm's factors. With what is
 * missing of the outputs, sum (W a - Q b) b^T = r->gain + (W - Q) H, they are
 * (Q^T Q * H) (d - 1) = diag(Q^T missing), divided by the outputs' energy so that each matrix
 * counts the same. */
static int norm_add(Recover *r, const Weight *w, const float *q, DibitError *err) {
    size_t e = w->cols;
    double energy = 0;
    int rc = input_gain(r, w, err);
    for (size_t k = 0; k < w->rows * e; k++) r->target[k] -= q[k];
    DenseProduct missing = { r->gain,        e, w->rows, e, e, { r->target, e, 1 },
                             { r->h, e, 1 }, 1, false };
    if (rc == 0) rc = dense_multiply(&missing, r->pool, err);
    memset(r->gram, 0, e * e * sizeof *r->gram);
    DenseProduct gram = { r->gram, e, e, e, w->rows, { q, 1, e }, { q, e, 1 }, 1, false };
    if (rc == 0) rc = dense_multiply(&gram, r->pool, err);
    if (rc != 0) return rc;
    for (size_t k = 0; k < e * e; k++) energy += (double)r->gram[k] * (double)r->h[k];
    float part = energy > 0 ? (float)((double)r->n / energy) : 0;
    for (size_t k = 0; k < e * e; k++) r->moment[k] += part * r->gram[k];
    for (size_t i = 0; i < e; i++) {
        double sum = 0;
        for (size_t row = 0; row < w->rows; row++)
            sum += (double)q[row * e + i] * (double)r->gain[row * e + i];
        r->slope[i] += part * (float)sum;
    }
    return 0;
}

/* Solves them, hands the norm out and brings the coded network's normed input up to date. */
static int norm_fit(Recover *r, const char *name, const float *norm, DibitError *err) {
    size_t e = (size_t)r->m->hp.n_embd;
    double mean = 0;
    bool ok = false;
    for (size_t k = 0; k < e * e; k++) r->moment[k] *= r->h[k];
    for (size_t i = 0; i < e; i++) mean += (double)r->moment[i * e + i] / (double)e;
    for (size_t i = 0; i < e; i++)
        r->moment[i * e + i] += (float)(mean > 0 ? DAMPING_NORM * mean : 1);
    int rc = dense_cholesky(r->moment, e, r->pool, &ok, err);
    if (rc == 0 && !ok)
        rc = fail(err, DIBIT_E_NUMERIC, "%s: the correlations of inputs are not positive", name);
    if (rc == 0) rc = dense_solve(r->slope, 1, r->moment, e, r->pool, err);
    if (rc != 0) return rc;
    for (size_t i = 0; i < r->n; i++)
        for (size_t k = 0; k < e; k++) r->in[CODED][i * e + k] *= 1 + r->slope[k];
    for (size_t k = 0; k < e; k++) r->slope[k] = norm[k] * (1 + r->slope[k]);
    return r->opt->norm(r->user, name, r->slope, e, err);
}

/* Matrices i0..i1-1, which share the normed input: wanted is W a. */
static int code_inner(Recover *r, int i0, int i1, const float *norm, DibitError *err) {
    size_t e = (size_t)r->m->hp.n_embd;
    char name[64];
    int rc = gather(r, i0, r->in[CODED], e, err);
    if (rc == 0) rc = product(r, r->cross, e, e, r->in[BASE], e, r->in[CODED], false, err);
    for (size_t k = 0; rc == 0 && k < e * e; k++) r->cross[k] -= r->h[k];
    memset(r->moment, 0, e * e * sizeof *r->moment);
    memset(r->slope, 0, e * sizeof *r->slope);
    for (int i = i0; i < i1 && rc == 0; i++) {
        const Weight *w = layer_weight(&r->m->layers[r->layer], i);
        rc = input_gain(r, w, err);
        if (rc == 0) rc = code(r, i, r->gain, err);
        if (rc == 0) rc = norm_add(r, w, r->decoded[i], err);
    }
    snprintf(name, sizeof name, "blk.%d.%s_norm.weight", r->layer, i0 ? "ffn" : "attn");
    return rc ? rc : norm_fit(r, name, norm, err);
}

/* Matrix i, whose result is added to the residual stream: wanted is what the base has there after
 * it, less what the coded network has before. */
static int code_outer(Recover *r, int i, DibitError *err) {
    const Weight *w = layer_weight(&r->m->layers[r->layer], i);
    size_t e = (size_t)r->m->hp.n_embd;
    float *wanted = r->in[BASE];
    int rc = gather(r, i, r->mid[CODED], w->cols, err);
    add_product(r, r->x[BASE], w, BASE, 1);
    for (size_t k = 0; k < r->n * e; k++) wanted[k] = r->x[BASE][k] - r->x[CODED][k];
    add_product(r, wanted, w, CODED, -1);
    if (rc == 0) rc = product(r, r->gain, e, w->cols, wanted, e, r->mid[CODED], false, err);
    if (rc == 0) rc = code(r, i, r->gain, err);
    if (rc == 0) add_product(r, r->x[CODED], layer_weight(&r->coded, i), CODED, 1);
    return rc;
}

static int run_layer(Recover *r, DibitError *err) {
    const Layer *base = &r->m->layers[r->layer];
    r->coded = *base;
    for (int k = 0; k < 2; k++) norm(r, k, base->attn_norm);
    int rc = code_inner(r, 0, 3, base->attn_norm, err);
    if (rc != 0) return rc;
    attend(r, BASE, base);
    attend(r, CODED, &r->coded);
    rc = code_outer(r, 3, err);
    if (rc != 0) return rc;
    for (int k = 0; k < 2; k++) norm(r, k, base->ffn_norm);
    rc = code_inner(r, 4, 6, base->ffn_norm, err);
    if (rc != 0) return rc;
    activate(r, BASE, base);
    activate(r, CODED, &r->coded);
    return code_outer(r, 6, err);
}

int recover_model(const Model *m, const Kern *kern, Pool *pool, const RecoverOptions *opt,
                  RecoverCode *code_matrix, void *user, DibitError *err) {
    Recover r = { .m = m, .opt = opt, .pool = pool, .code = code_matrix, .user = user };
    int rc = set_up(&r, kern, err);
    if (rc == 0) embed(&r);
    for (r.layer = 0; r.layer < m->hp.n_layers && rc == 0; r.layer++) rc = run_layer(&r, err);
    for (int k = 0; k < 2; k++) {
        mem_free(NULL, r.x[k]);
        mem_free(NULL, r.in[k]);
        mem_free(NULL, r.mid[k]);
    }
    float *const rest[] = { r.h,    r.cross,  r.factor, r.triangle, r.target,
                            r.gain, r.moment, r.gram,   r.slope };
    for (size_t i = 0; i < ARRAY_LEN(rest); i++) mem_free(NULL, rest[i]);
    for (int i = 0; i < 7; i++) mem_free(NULL, r.decoded[i]);
    scratch_free(&r.s);
    cache_free(&r.cache);
    return rc;
}
