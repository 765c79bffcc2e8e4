/* calibrate_kv.c - `dibit calibrate kv`: second moments of the heads' keys, queries and values
 * while a text runs through the model, then a basis for each head (calibrate_basis.h), written as a
 * GGUF file of its own. */
#include "calibrate_kv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "codec.h"
#include "calibrate_basis.h"
#include "model.h"

enum { TOKENS_DEFAULT = 16384, WINDOW_DEFAULT = 2048, BATCH = 256 };

typedef struct Moments { /* of one KV head: lower triangles of sums of products, and sums */
    double *kk, *qq, *vv, *k, *v;
    uint64_t n, n_q;
} Moments;

typedef struct Work {
    const KvCalibrateOptions *opt;
    Gguf *file;
    Kern kern;
    Pool *pool;
    Model model;
    Cache cache;
    Scratch scratch;
    int32_t *tokens;
    int window;
    uint64_t n_windows;
    Moments *heads; /* (n_layers, n_kv_heads) */
    double *sums;   /* what they point into */
    /* results: (n_layers, K and V, n_kv_heads) bases, means and weights */
    uint16_t *basis;
    float *mean;
    float (*weight)[4];
    double *gain;
    bool failed; /* no memory in a thread */
} Work;

/* ---- moments ---- */

typedef struct TapJob {
    Work *w;
    ModelTap what;
    int layer, n;
    const float *x;
} TapJob;

static void add_products(double *sum, const float *x, int d) {
    double y[KV_MAX_DIM];
    for (int i = 0; i < d; i++) y[i] = (double)x[i];
    for (int i = 0; i < d; i++) {
        double a = y[i], *row = sum + i * d;
        for (int j = 0; j <= i; j++) row[j] += a * y[j];
    }
}

static void tap_item(void *arg, int head, int thread) {
    const TapJob *j = arg;
    const Hparams *h = &j->w->model.hp;
    int d = h->head_dim, n_heads = j->what == TAP_Q ? h->n_heads : h->n_kv_heads;
    int group = n_heads / h->n_kv_heads;
    Moments *m = &j->w->heads[j->layer * h->n_kv_heads + head];
    double *products = j->what == TAP_Q ? m->qq : j->what == TAP_K ? m->kk : m->vv;
    double *sums = j->what == TAP_K ? m->k : m->v;
    (void)thread;
    for (int t = 0; t < j->n; t++)
        for (int g = 0; g < group; g++) {
            const float *x =
                j->x + ((size_t)t * (size_t)n_heads + (size_t)(head * group + g)) * (size_t)d;
            add_products(products, x, d);
            for (int i = 0; j->what != TAP_Q && i < d; i++) sums[i] += (double)x[i];
        }
    if (j->what == TAP_Q) m->n_q += (uint64_t)(j->n * group);
    if (j->what == TAP_K) m->n += (uint64_t)j->n;
}

static void tap(void *user, ModelTap what, int layer, const float *x, int n) {
    TapJob j = { user, what, layer, n, x };
    if (what == TAP_Q || what == TAP_K || what == TAP_V)
        pool_run(j.w->pool, tap_item, &j, j.w->model.hp.n_kv_heads);
}

static int make_moments(Work *w, DibitError *err) {
    const Hparams *h = &w->model.hp;
    size_t n = (size_t)h->n_layers * (size_t)h->n_kv_heads, d = (size_t)h->head_dim;
    size_t each = 3 * d * d + 2 * d;
    w->heads = mem_calloc(NULL, n, sizeof *w->heads);
    w->sums = mem_calloc(NULL, n, each * sizeof *w->sums);
    w->basis = mem_calloc(NULL, 2 * n, d * d * sizeof *w->basis);
    w->mean = mem_calloc(NULL, 2 * n, d * sizeof *w->mean);
    w->weight = mem_calloc(NULL, 2 * n, sizeof *w->weight);
    w->gain = mem_calloc(NULL, 2 * n, sizeof *w->gain);
    if (!w->heads || !w->sums || !w->basis || !w->mean || !w->weight || !w->gain)
        return fail(err, DIBIT_E_MEMORY, "no memory for the moments of %zu heads", n);
    for (size_t i = 0; i < n; i++) {
        double *s = w->sums + i * each;
        w->heads[i] =
            (Moments){ s, s + d * d, s + 2 * d * d, s + 3 * d * d, s + 3 * d * d + d, 0, 0 };
    }
    return 0;
}

static int run_window(Work *w, const int32_t *ids, DibitError *err) {
    int n = 0, r = 0;
    if (w->opt->bos >= 0) w->tokens[n++] = w->opt->bos;
    for (; n < w->window; n++) w->tokens[n] = *ids++;
    cache_truncate(&w->cache, 0);
    for (int at = 0; at < w->window && r == 0; at += BATCH)
        r = model_forward(&w->model, &w->scratch, &w->cache, w->tokens + at,
                          MIN(BATCH, w->window - at), NULL, false, err);
    return r;
}

static int tell(const Work *w, const char *step, uint64_t done, uint64_t total, DibitError *err) {
    if (!w->opt->progress || w->opt->progress(w->opt->user, step, done, total) == 0) return 0;
    return fail(err, DIBIT_E_CANCELLED, "the calibration was cancelled");
}

static int collect(Work *w, const int32_t *ids, size_t n, DibitError *err) {
    size_t use = (size_t)w->window - (w->opt->bos >= 0), most = n / use;
    uint64_t want = w->opt->max_tokens ? w->opt->max_tokens : TOKENS_DEFAULT;
    if (most == 0)
        return fail(err, DIBIT_E_ARGUMENT,
                    "the text has %zu tokens; a window needs %zu: give more text or a smaller -c",
                    n, use);
    w->n_windows = MIN((uint64_t)most, MAX(want / (uint64_t)w->window, 1));
    for (uint64_t i = 0; i < w->n_windows; i++) {
        int r = run_window(w, ids + i * most / w->n_windows * use, err);
        if (r == 0) r = tell(w, "moments", i + 1, w->n_windows, err);
        if (r != 0) return r;
    }
    return 0;
}

/* ---- bases ---- */

/* Covariance about the mean, from the lower triangle of sums of products. */
static double covariance(double *cov, float *mean, const double *products, const double *sums,
                         uint64_t n, int d) {
    double energy = 0, count = (double)n;
    for (int i = 0; i < d; i++) {
        energy += products[i * (d + 1)] / count;
        mean[i] = sums ? (float)(sums[i] / count) : 0;
        for (int j = 0; j <= i; j++) {
            double m = sums ? sums[i] * sums[j] / count : 0;
            cov[i * d + j] = cov[j * d + i] = (products[i * d + j] - m) / count;
        }
    }
    return energy;
}

/* What an error of a value costs: the output matrix's columns of the heads that read it. */
static void output_metric(double *metric, const Work *w, int layer, int head, float *row) {
    const Hparams *h = &w->model.hp;
    const Weight *o = &w->model.layers[layer].o;
    int d = h->head_dim, group = h->n_heads / h->n_kv_heads;
    memset(metric, 0, (size_t)(d * d) * sizeof *metric);
    for (size_t r = 0; r < o->rows; r++) {
        o->type->decode(row, o->data, o->rows, o->cols, r);
        for (int g = 0; g < group; g++) add_products(metric, row + (head * group + g) * d, d);
    }
    for (int i = 0; i < d; i++)
        for (int j = 0; j < i; j++) metric[j * d + i] = metric[i * d + j];
}

static void store_basis(Work *w, int at, const double *basis) {
    int dd = w->model.hp.head_dim * w->model.hp.head_dim;
    for (int i = 0; i < dd; i++)
        w->basis[(size_t)at * (size_t)dd + (size_t)i] = f32_to_f16((float)basis[i]);
}

/* Both sides of one head. */
static void basis_item(void *arg, int item, int thread) {
    Work *w = arg;
    const Hparams *h = &w->model.hp;
    int d = h->head_dim, dd = d * d, layer = item / h->n_kv_heads, head = item % h->n_kv_heads;
    const Moments *m = &w->heads[item];
    double *work = mem_alloc(NULL, (size_t)(9 * dd) * sizeof *work);
    float *row = mem_alloc(NULL, w->model.layers[layer].o.cols * sizeof *row), unused[KV_MAX_DIM];
    (void)thread;
    if (!work || !row) w->failed = true;
    for (int side = 0; side < 2 && work && row; side++) {
        int at = (2 * layer + side) * h->n_kv_heads + head;
        double *cov = work, *metric = work + dd, *basis = work + 2 * dd;
        KvMoments moments = { cov, metric, 0, d };
        moments.energy =
            covariance(cov, w->mean + at * d, side ? m->vv : m->kk, side ? m->v : m->k, m->n, d);
        if (side)
            output_metric(metric, w, layer, head, row);
        else
            covariance(metric, unused, m->qq, NULL, m->n_q, d);
        kv_basis(basis, w->weight[at], &w->gain[at], &moments, work + 3 * dd);
        store_basis(w, at, basis);
    }
    mem_free(NULL, work);
    mem_free(NULL, row);
}

static int make_bases(Work *w, KvCalibrateResult *result, DibitError *err) {
    const Hparams *h = &w->model.hp;
    int n = h->n_layers * h->n_kv_heads;
    pool_run(w->pool, basis_item, w, n);
    if (w->failed) return fail(err, DIBIT_E_MEMORY, "no memory for the bases");
    double sum[2] = { 0 };
    for (int i = 0; i < 2 * n; i++) sum[i / h->n_kv_heads % 2] += log(w->gain[i]) / n;
    result->gain_k = exp(sum[0]);
    result->gain_v = exp(sum[1]);
    size_t dd = (size_t)h->head_dim * (size_t)h->head_dim;
    for (size_t i = 0; i < 2 * (size_t)n * dd; i++)
        if ((w->basis[i] & 0x7c00) == 0x7c00)
            return fail(err, DIBIT_E_NUMERIC,
                        "the bases are not finite: the activations are broken");
    return 0;
}

/* ---- the file ---- */

static void put_tensors(Work *w, GgufWriter *g) {
    const Hparams *h = &w->model.hp;
    uint64_t d = (uint64_t)h->head_dim, n = d * (uint64_t)h->n_kv_heads;
    char name[64];
    for (int i = 0; i < 2 * h->n_layers; i++) {
        char side = i % 2 ? 'v' : 'k';
        snprintf(name, sizeof name, "blk.%d.kv_%c.basis", i / 2, side);
        gguf_put_tensor(g, name, T_F16, 2, (uint64_t[]){ d, n }, d * n * 2);
        snprintf(name, sizeof name, "blk.%d.kv_%c.mean", i / 2, side);
        gguf_put_tensor(g, name, T_F32, 1, (uint64_t[]){ n }, n * 4);
        snprintf(name, sizeof name, "blk.%d.kv_%c.weight", i / 2, side);
        gguf_put_tensor(g, name, T_F32, 1, (uint64_t[]){ 4 * (uint64_t)h->n_kv_heads },
                        16 * (size_t)h->n_kv_heads);
    }
}

static int write_tensors(Work *w, GgufWriter *g, DibitError *err) {
    const Hparams *h = &w->model.hp;
    size_t d = (size_t)h->head_dim, heads = (size_t)h->n_kv_heads, n = d * heads;
    int r = 0;
    for (size_t i = 0; i < 2 * (size_t)h->n_layers && r == 0; i++) {
        r = gguf_write(g, w->basis + i * n * d, n * d * sizeof *w->basis, err);
        if (r == 0) r = gguf_write(g, w->mean + i * n, n * sizeof *w->mean, err);
        if (r == 0) r = gguf_write(g, w->weight + i * heads, heads * sizeof *w->weight, err);
    }
    return r;
}

static int write_file(Work *w, const char *path, KvCalibrateResult *result, DibitError *err) {
    const Arch *arch = w->model.arch;
    GgufWriter *g;
    int r = gguf_writer_create(&g, err);
    if (r != 0) return r;
    gguf_put_string(g, "general.architecture", arch->name, strlen(arch->name));
    gguf_put_string(g, "general.type", KV_CALIBRATION_TYPE, strlen(KV_CALIBRATION_TYPE));
    gguf_put_string(g, "dibit.version", DIBIT_VERSION, strlen(DIBIT_VERSION));
    gguf_put_u64(g, "dibit.kv.model_hash", model_norms_hash(w->file));
    gguf_put_u64(g, "dibit.kv.text_hash", w->opt->text_hash);
    gguf_put_u64(g, "dibit.kv.tokens", result->n_tokens);
    put_tensors(w, g);
    result->file_bytes = gguf_writer_size(g);
    r = gguf_begin(g, path, err);
    if (r == 0) r = write_tensors(w, g, err);
    if (r == 0) r = gguf_finish(g, err);
    gguf_writer_free(&g);
    return r;
}

/* ---- all of it ---- */

static int open_all(Work *w, const char *path, DibitError *err) {
    int r = gguf_open(&w->file, path, w->opt->no_mmap, NULL, err);
    if (r == 0) r = pool_create(&w->pool, w->opt->n_threads, NULL, err);
    if (r != 0) return r;
    kern_init(&w->kern, ~0u);
    r = model_open(&w->model, w->file, &w->kern, w->pool, REPACK_COPY, NULL, err);
    if (r != 0) return r;
    const Hparams *h = &w->model.hp;
    if (h->head_dim % 16 || h->head_dim < 32)
        return fail(err, DIBIT_E_UNSUPPORTED, "heads of %d values have no k2 and k3 records",
                    h->head_dim);
    w->window = w->opt->window ? w->opt->window : MIN(WINDOW_DEFAULT, h->n_ctx_train);
    if (w->window < 16)
        return fail(err, DIBIT_E_ARGUMENT, "a window of %d is too short", w->window);
    CacheShape shape = { .n_layers = h->n_layers, .n_kv_heads = h->n_kv_heads };
    shape.head_dim = h->head_dim;
    shape.n_ctx = w->window;
    shape.n_batch = BATCH;
    r = cache_create(&w->cache, &shape, NULL, err);
    if (r == 0)
        r = scratch_create(&w->scratch, &w->model, &w->kern, w->pool, MIN(BATCH, w->window),
                           w->window, NULL, err);
    w->tokens = mem_alloc(NULL, (size_t)w->window * sizeof *w->tokens);
    if (r == 0 && !w->tokens) r = fail(err, DIBIT_E_MEMORY, "no memory for a window");
    w->scratch.tap = tap;
    w->scratch.tap_user = w;
    return r;
}

static void close_all(Work *w) {
    scratch_free(&w->scratch);
    cache_free(&w->cache);
    model_close(&w->model);
    pool_free(&w->pool);
    gguf_close(&w->file);
    mem_free(NULL, w->tokens);
    mem_free(NULL, w->heads);
    mem_free(NULL, w->sums);
    mem_free(NULL, w->basis);
    mem_free(NULL, w->mean);
    mem_free(NULL, w->weight);
    mem_free(NULL, w->gain);
}

int calibrate_kv(const char *model_path, const int32_t *ids, size_t n,
                 const KvCalibrateOptions *opt, const char *out_path, KvCalibrateResult *result,
                 DibitError *err) {
    Work w = { .opt = opt };
    *result = (KvCalibrateResult){ 0 };
    int r = open_all(&w, model_path, err);
    if (r == 0) r = make_moments(&w, err);
    if (r == 0) r = collect(&w, ids, n, err);
    if (r == 0) r = make_bases(&w, result, err);
    result->n_tokens = w.n_windows * (uint64_t)w.window;
    result->n_layers = w.model.hp.n_layers;
    result->n_kv_heads = w.model.hp.n_kv_heads;
    if (r == 0) r = write_file(&w, out_path, result, err);
    close_all(&w);
    return r;
}

static void put_types(GgufWriter *w, const void *user) {
    const KvCalibrateResult *r = user;
    gguf_put_string(w, "dibit.kv.layers", r->layers, strlen(r->layers));
    gguf_put_f32(w, "dibit.kv.layers_kld", (float)r->kld);
}

int calibrate_kv_add_types(const char *path, const KvCalibrateResult *result, DibitError *err) {
    return gguf_rewrite(path, put_types, result, err);
}
