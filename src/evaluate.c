/* evaluate.c - perplexity, KL divergence, agreement and choice accuracy, on top of dibit.h alone.
 *
 * The model's (and the base's) logits of a chunk of positions exist at a time, never those of a
 * window. Every position's statistics are computed on their own, in double precision, and summed in
 * the order of the text, so the figures do not depend on the number of threads. */
#define _POSIX_C_SOURCE 200809L
#include "evaluate.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW_DEFAULT = 2048,
    CHUNK_MAX = 256,        /* positions whose logits are kept */
    CHUNK_FLOATS = 8 << 20, /* and a bound of their memory for large vocabularies */
    CHOICE_CONTEXT_MAX = 4096
};

/* ---- one row of logits ---- */

/* The two loops below are plain C that compilers turn into vectors; on x86 they are also built for
 * AVX2. Rounding is the same in both, since products and sums are never fused. */
#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_WIDE  1
#define WIDE       __attribute__((target("avx2")))
#define HAS_WIDE() __builtin_cpu_supports("avx2")
#endif
#define INLINE static inline __attribute__((always_inline))
enum { BLOCK = 64, LANES = 8 };

/* exp of values from -700 to 0 (smaller ones count as -700), relative error below 1e-11: the
 * argument is split into k * ln 2 + r with |r| <= ln 2 / 2, exp(r) is a polynomial, 2^k goes into
 * the exponent. */
INLINE double exp_one(double x) {
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to a whole number */
    x = x > -700.0 ? x : -700.0;
    double shifted = x * 1.4426950408889634 + magic, k = shifted - magic;
    double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
    double p = 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits; /* the low bits of `shifted` hold k */
    double scale;
    memcpy(&bits, &shifted, 8);
    bits = (bits + 1023) << 52;
    memcpy(&scale, &bits, 8);
    return p * scale;
}

INLINE double sum_lanes(const double *x) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

typedef struct RowStats {
    double log_z; /* log of the sum of exp(logit) */
    int argmax;
} RowStats;

INLINE int argmax_body(const float *x, int n) {
    int best = 0, i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float m[LANES];
        for (int j = 0; j < LANES; j++) m[j] = x[i + j];
        for (int k = LANES; k < BLOCK; k += LANES)
            for (int j = 0; j < LANES; j++) m[j] = x[i + k + j] > m[j] ? x[i + k + j] : m[j];
        bool better = false;
        for (int j = 0; j < LANES; j++) better |= m[j] > x[best];
        for (int k = i; better && k < i + BLOCK; k++)
            if (x[k] > x[best]) best = k;
    }
    for (; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

INLINE void row_stats_body(const float *x, int n, RowStats *out) {
    int best = argmax_body(x, n), i = 0;
    double m = x[best], sum[LANES] = { 0 }, e[BLOCK];
    for (; i + BLOCK <= n; i += BLOCK) {
        for (int j = 0; j < BLOCK; j++) e[j] = exp_one((double)x[i + j] - m);
        for (int k = 0; k < BLOCK; k += LANES)
            for (int j = 0; j < LANES; j++) sum[j] += e[k + j];
    }
    double total = sum_lanes(sum);
    for (; i < n; i++) total += exp_one((double)x[i] - m);
    *out = (RowStats){ m + log(total), best };
}

/* KL(base || q) of two rows whose log_z are known. */
INLINE double row_kld_body(const float *base, double base_z, const float *q, double q_z, int n) {
    double sum[LANES] = { 0 }, e[BLOCK];
    int i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        for (int j = 0; j < BLOCK; j++) {
            double log_p = (double)base[i + j] - base_z, log_q = (double)q[i + j] - q_z;
            e[j] = exp_one(log_p) * (log_p - log_q);
        }
        for (int k = 0; k < BLOCK; k += LANES)
            for (int j = 0; j < LANES; j++) sum[j] += e[k + j];
    }
    double total = sum_lanes(sum);
    for (; i < n; i++) {
        double log_p = (double)base[i] - base_z, log_q = (double)q[i] - q_z;
        total += exp_one(log_p) * (log_p - log_q);
    }
    return MAX(total, 0.0); /* rounding may leave -1e-17 */
}

#ifdef HAVE_WIDE
WIDE static void row_stats_wide(const float *x, int n, RowStats *out) {
    row_stats_body(x, n, out);
}
WIDE static double row_kld_wide(const float *base, double base_z, const float *q, double q_z,
                                int n) {
    return row_kld_body(base, base_z, q, q_z, n);
}
#endif

static void row_stats(const float *x, int n, RowStats *out) {
#ifdef HAVE_WIDE
    if (HAS_WIDE()) {
        row_stats_wide(x, n, out);
        return;
    }
#endif
    row_stats_body(x, n, out);
}

static double row_kld(const float *base, double base_z, const float *q, double q_z, int n) {
#ifdef HAVE_WIDE
    if (HAS_WIDE()) return row_kld_wide(base, base_z, q, q_z, n);
#endif
    return row_kld_body(base, base_z, q, q_z, n);
}

/* ---- sums ---- */

/* Sums of what a position gives: l is the negative log-likelihood, a 1 where the argmax is the
 * text's token, s where it is the base's argmax. */
typedef struct Sums {
    uint64_t n;
    double l, ll, a, lb, lblb, ab, aab, d, dd, k, kk, s;
} Sums;

typedef struct Position { /* one position of a chunk, for one setting */
    double nll, nll_base, kld;
    bool hit, hit_base, same, finite;
} Position;

static void sums_add(Sums *s, const Position *p) {
    double d = p->nll - p->nll_base;
    s->n++;
    s->l += p->nll;
    s->ll += p->nll * p->nll;
    s->a += p->hit;
    s->lb += p->nll_base;
    s->lblb += p->nll_base * p->nll_base;
    s->ab += p->hit_base;
    s->aab += p->hit && p->hit_base;
    s->d += d;
    s->dd += d * d;
    s->k += p->kld;
    s->kk += p->kld * p->kld;
    s->s += p->same;
}

/* Mean and its standard error from a sum and a sum of squares of independent values. */
static EvalValue mean_of(double sum, double squares, double n) {
    EvalValue v = { sum / n, 0 };
    if (n > 1) v.se = sqrt(MAX(squares / n - v.mean * v.mean, 0.0) / (n - 1));
    return v;
}

static EvalValue exp_of(EvalValue v) { /* the error to first order */
    double e = exp(v.mean);
    return (EvalValue){ e, e * v.se };
}

/* 100 * (base - model) / base of two paired accuracies, by the delta method. */
static EvalValue degradation_of(const Sums *s) {
    double n = (double)s->n, a = s->a / n, b = s->ab / n;
    if (b == 0) return (EvalValue){ NAN, NAN };
    double ratio = a / b, covariance = s->aab / n - a * b;
    double variance = a * (1 - a) - 2 * ratio * covariance + ratio * ratio * b * (1 - b);
    EvalValue v = { 100 * (1 - ratio), 0 };
    if (n > 1) v.se = 100 * sqrt(MAX(variance, 0.0) / (n - 1)) / b;
    return v;
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(const float *sorted, uint64_t n, double p) {
    double at = p * (double)(n - 1);
    uint64_t i = (uint64_t)at;
    uint64_t next = MIN(i + 1, n - 1);
    return sorted[i] + (at - (double)i) * ((double)sorted[next] - sorted[i]);
}

static void finish(EvalResult *r, const Sums *s, float *klds, bool has_base) {
    double n = (double)s->n;
    r->n_tokens = s->n;
    r->ppl = exp_of(mean_of(s->l, s->ll, n));
    r->top1_accuracy = mean_of(s->a, s->a, n);
    r->has_base = has_base;
    if (!has_base) return;
    r->ppl_base = exp_of(mean_of(s->lb, s->lblb, n));
    r->top1_accuracy_base = mean_of(s->ab, s->ab, n);
    r->ppl_ratio = exp_of(mean_of(s->d, s->dd, n));
    r->kld_mean = mean_of(s->k, s->kk, n);
    r->top1_agreement = mean_of(s->s, s->s, n);
    r->degradation = degradation_of(s);
    qsort(klds, s->n, sizeof *klds, compare_floats);
    r->kld_median = percentile(klds, s->n, 0.5);
    r->kld_p99 = percentile(klds, s->n, 0.99);
    r->kld_p999 = percentile(klds, s->n, 0.999);
}

/* ---- windows ---- */

typedef struct Eval {
    DibitEngine *model;
    const int32_t *ids;
    int window, n_windows, skip, n_settings, chunk, n_vocab;
    int32_t bos;
    Pool *pool;
    DibitSession *base, **sessions;
    float *base_logits, *logits; /* (chunk, n_vocab) */
    RowStats *base_stats;        /* (chunk) */
    Position *positions;         /* (chunk) */
    int32_t *input;              /* (window) */
    Sums *sums;                  /* (n_settings) */
    float *klds;                 /* (n_settings, n_windows * (window - skip)) */
} Eval;

typedef struct ChunkJob {
    Eval *e;
    const int32_t *targets;
} ChunkJob;

static void base_position(void *arg, int item, int thread) {
    (void)thread;
    Eval *e = ((ChunkJob *)arg)->e;
    row_stats(e->base_logits + (size_t)item * (size_t)e->n_vocab, e->n_vocab, &e->base_stats[item]);
}

static void model_position(void *arg, int item, int thread) {
    (void)thread;
    ChunkJob *job = arg;
    Eval *e = job->e;
    const float *q = e->logits + (size_t)item * (size_t)e->n_vocab;
    int32_t target = job->targets[item];
    Position *p = &e->positions[item];
    RowStats s;
    row_stats(q, e->n_vocab, &s);
    *p = (Position){ .nll = s.log_z - (double)q[target], .hit = s.argmax == target };
    if (e->base) {
        const float *b = e->base_logits + (size_t)item * (size_t)e->n_vocab;
        const RowStats *bs = &e->base_stats[item];
        p->nll_base = bs->log_z - (double)b[target];
        p->hit_base = bs->argmax == target;
        p->same = bs->argmax == s.argmax;
        p->kld = row_kld(b, bs->log_z, q, s.log_z, e->n_vocab);
    }
    p->finite = isfinite(p->nll) && isfinite(p->nll_base) && isfinite(p->kld);
}

static int eval_chunk(Eval *e, int window, int start, int n, DibitError *err) {
    ChunkJob job = { e, e->ids + (size_t)window * (size_t)e->window + start };
    size_t count = (size_t)n;
    if (e->base) {
        int r = dibit_forward(e->base, e->input + start, count, e->base_logits, err);
        if (r < 0) return r;
        pool_run(e->pool, base_position, &job, n);
    }
    size_t per_setting = (size_t)e->n_windows * (size_t)(e->window - e->skip);
    for (int k = 0; k < e->n_settings; k++) {
        int r = dibit_forward(e->sessions[k], e->input + start, count, e->logits, err);
        if (r < 0) return r;
        pool_run(e->pool, model_position, &job, n);
        for (int i = 0; i < n; i++) {
            if (!e->positions[i].finite)
                return fail(err, DIBIT_E_NUMERIC, "window %d, position %d: logits are not finite",
                            window, start + i);
            if (start + i < e->skip) continue;
            if (e->klds)
                e->klds[(size_t)k * per_setting + e->sums[k].n] = (float)e->positions[i].kld;
            sums_add(&e->sums[k], &e->positions[i]);
        }
    }
    return 0;
}

static int eval_window(Eval *e, int window, DibitError *err) {
    int64_t r = e->base ? dibit_sync(e->base, NULL, 0, err) : 0;
    for (int k = 0; k < e->n_settings && r >= 0; k++) r = dibit_sync(e->sessions[k], NULL, 0, err);
    if (r < 0) return (int)r;
    size_t first = (size_t)window * (size_t)e->window;
    e->input[0] = e->bos;
    memcpy(e->input + 1, e->ids + first, (size_t)(e->window - 1) * sizeof *e->input);
    for (int start = 0; start < e->window; start += e->chunk) {
        int rc = eval_chunk(e, window, start, MIN(e->chunk, e->window - start), err);
        if (rc < 0) return rc;
    }
    return 0;
}

static int32_t first_token(const DibitModelInfo *info) { /* a model without BOS starts with EOS */
    return info->bos_id >= 0 ? info->bos_id : info->eos_id;
}

static int check_input(Eval *e, DibitEngine *base, size_t n, const EvalOptions *opt,
                       DibitError *err) {
    DibitModelInfo info, base_info;
    dibit_model_info(e->model, &info);
    e->window = opt->window ? opt->window : WINDOW_DEFAULT;
    e->skip = opt->skip;
    e->n_settings = MAX(opt->n_settings, 1);
    e->n_vocab = info.n_vocab;
    e->bos = first_token(&info);
    if (e->window < 2) return fail(err, DIBIT_E_ARGUMENT, "a window has at least 2 tokens");
    if (e->skip < 0 || e->skip >= e->window)
        return fail(err, DIBIT_E_ARGUMENT, "skipping %d of %d positions leaves none", e->skip,
                    e->window);
    if (e->bos < 0)
        return fail(err, DIBIT_E_TOKENIZER, "the model names neither a first nor an end token");
    if (n / (size_t)e->window == 0)
        return fail(err, DIBIT_E_ARGUMENT,
                    "the text has %zu tokens, fewer than one window of %d: use a smaller -c", n,
                    e->window);
    for (size_t i = 0; i < n; i++)
        if (e->ids[i] < 0 || e->ids[i] >= e->n_vocab)
            return fail(err, DIBIT_E_ARGUMENT, "token %zu is %d, outside the vocabulary of %d", i,
                        e->ids[i], e->n_vocab);
    e->n_windows = (int)MIN(n / (size_t)e->window, (size_t)INT_MAX);
    if (opt->max_windows > 0) e->n_windows = MIN(e->n_windows, opt->max_windows);
    e->chunk = MAX(16, MIN(CHUNK_MAX, CHUNK_FLOATS / MAX(e->n_vocab, 1)));
    if (!base) return 0;
    dibit_model_info(base, &base_info);
    if (base_info.n_vocab != e->n_vocab)
        return fail(err, DIBIT_E_ARGUMENT, "vocabularies differ: %d tokens, base %d", e->n_vocab,
                    base_info.n_vocab);
    return 0;
}

static int make_buffers(Eval *e, bool has_base, DibitError *err) {
    size_t rows = (size_t)e->chunk, vocab = (size_t)e->n_vocab, settings = (size_t)e->n_settings;
    size_t counted = (size_t)(e->window - e->skip), n_klds;
    if (!size_mul(counted, (size_t)e->n_windows, &n_klds) || !size_mul(n_klds, settings, &n_klds))
        return fail(err, DIBIT_E_MEMORY, "too many positions");
    e->logits = mem_calloc(NULL, rows * vocab, sizeof(float));
    e->positions = mem_calloc(NULL, rows, sizeof *e->positions);
    e->input = mem_calloc(NULL, (size_t)e->window, sizeof *e->input);
    e->sums = mem_calloc(NULL, settings, sizeof *e->sums);
    e->sessions = mem_calloc(NULL, settings, sizeof(DibitSession *));
    bool ok = e->logits && e->positions && e->input && e->sums && e->sessions;
    if (has_base) {
        e->base_logits = mem_calloc(NULL, rows * vocab, sizeof(float));
        e->base_stats = mem_calloc(NULL, rows, sizeof *e->base_stats);
        e->klds = mem_calloc(NULL, n_klds, sizeof *e->klds);
        ok = ok && e->base_logits && e->base_stats && e->klds;
    }
    return ok ? 0 : fail(err, DIBIT_E_MEMORY, "no memory for the logits of %d positions", e->chunk);
}

/* The KV setting number k. */
static void set_cache(DibitSessionOptions *so, const EvalOptions *opt, int k) {
    so->cache_k = opt->n_settings && opt->cache_k ? opt->cache_k[k] : NULL;
    so->cache_v = opt->n_settings && opt->cache_v ? opt->cache_v[k] : NULL;
    so->cache_sinks = opt->cache_sinks;
    so->cache_window = opt->cache_window;
    so->cache_layers = opt->n_settings && opt->cache_layers ? opt->cache_layers[k] : NULL;
}

static int make_sessions(Eval *e, DibitEngine *base, const EvalOptions *opt, DibitError *err) {
    DibitModelInfo info;
    dibit_model_info(e->model, &info);
    DibitSessionOptions so = { .n_ctx = e->window, .n_batch = e->chunk };
    int r = pool_create(&e->pool, info.n_threads, NULL, err);
    if (r == 0 && base) r = dibit_session_create(&e->base, base, &so, err);
    for (int k = 0; k < e->n_settings && r == 0; k++) {
        set_cache(&so, opt, k);
        r = dibit_session_create(&e->sessions[k], e->model, &so, err);
    }
    return r;
}

static void free_eval(Eval *e) {
    for (int k = 0; e->sessions && k < e->n_settings; k++) dibit_session_free(&e->sessions[k]);
    dibit_session_free(&e->base);
    pool_free(&e->pool);
    mem_free(NULL, e->sessions);
    mem_free(NULL, e->sums);
    mem_free(NULL, e->input);
    mem_free(NULL, e->positions);
    mem_free(NULL, e->logits);
    mem_free(NULL, e->base_logits);
    mem_free(NULL, e->base_stats);
    mem_free(NULL, e->klds);
}

int evaluate_text(DibitEngine *model, DibitEngine *base, const int32_t *ids, size_t n,
                  const EvalOptions *opt, EvalResult *results, DibitError *err) {
    Eval e = { .model = model, .ids = ids };
    int r = check_input(&e, base, n, opt, err);
    if (r == 0) r = make_buffers(&e, base != NULL, err);
    if (r == 0) r = make_sessions(&e, base, opt, err);
    for (int w = 0; w < e.n_windows && r == 0; w++) {
        if (opt->progress && opt->progress(opt->user, w, e.n_windows))
            r = fail(err, DIBIT_E_CANCELLED, "stopped after %d of %d windows", w, e.n_windows);
        else
            r = eval_window(&e, w, err);
    }
    for (int k = 0; k < e.n_settings && r == 0; k++) {
        size_t per_setting = (size_t)e.n_windows * (size_t)(e.window - e.skip);
        results[k] = (EvalResult){ .n_windows = (uint64_t)e.n_windows };
        results[k].cache_k = opt->n_settings && opt->cache_k ? opt->cache_k[k] : "f16";
        results[k].cache_v = opt->n_settings && opt->cache_v ? opt->cache_v[k] : "f16";
        DibitMemory m;
        dibit_memory(e.sessions[k], &m);
        results[k].kv_zero = m.kv_zero;
        results[k].kv_saturated = m.kv_saturated;
        finish(&results[k], &e.sums[k], e.klds ? e.klds + (size_t)k * per_setting : NULL,
               base != NULL);
    }
    free_eval(&e);
    return r;
}

/* ---- choices ---- */

typedef struct Choices {
    DibitEngine *engine;
    DibitSession *session;
    int n_vocab, n_ctx;
    int32_t *prefix, *whole; /* (n_ctx) */
    float *logits;           /* (n_ctx_rows, n_vocab), grown as needed */
    size_t n_logits;
    char *text;
    size_t text_cap;
} Choices;

static int tokenize_joined(Choices *c, int item, const char *query, const char *choice,
                           int32_t *ids, size_t *n, DibitError *err) {
    static const char between[] = "\nAnswer:";
    size_t need = strlen(query) + sizeof between + (choice ? strlen(choice) + 1 : 0) + 1;
    if (need > c->text_cap) {
        mem_free(NULL, c->text);
        c->text_cap = 0;
        c->text = mem_alloc(NULL, 2 * need);
        if (!c->text) return fail(err, DIBIT_E_MEMORY, "no memory for item %d", item);
        c->text_cap = 2 * need;
    }
    char *p = c->text;
    p = stpcpy(stpcpy(p, query), between);
    if (choice) p = stpcpy(stpcpy(p, " "), choice);
    int64_t got = dibit_tokenize(c->engine, c->text, (size_t)(p - c->text), DIBIT_ADD_BOS, ids,
                                 (size_t)c->n_ctx, err);
    if (got < 0) return (int)got;
    if (got > c->n_ctx)
        return fail(err, DIBIT_E_CONTEXT, "item %d has %lld tokens, the context %d", item,
                    (long long)got, c->n_ctx);
    *n = (size_t)got;
    return 0;
}

/* Log-likelihood of a choice after the prefix: the tokens of query and choice together, from where
 * they leave the prefix's own tokens. */
static int score_choice(Choices *c, int item, const ChoiceItem *it, int choice, size_t n_prefix,
                        double *out, DibitError *err) {
    size_t n, same = 0;
    int r = tokenize_joined(c, item, it->query, it->choices[choice], c->whole, &n, err);
    if (r < 0) return r;
    while (same < n_prefix && same + 1 < n && c->prefix[same] == c->whole[same]) same++;
    if (same == 0) return fail(err, DIBIT_E_ARGUMENT, "item %d: nothing precedes the choice", item);
    size_t rows = n - same;
    if (rows > c->n_logits) {
        mem_free(NULL, c->logits);
        c->n_logits = 0;
        c->logits = mem_calloc(NULL, rows * (size_t)c->n_vocab, sizeof(float));
        if (!c->logits) return fail(err, DIBIT_E_MEMORY, "no memory for %zu rows", rows);
        c->n_logits = rows;
    }
    int64_t done = dibit_sync(c->session, c->whole, same - 1, err); /* keeps the shared prefix */
    if (done < 0) return (int)done;
    r = dibit_forward(c->session, c->whole + same - 1, rows, c->logits, err);
    if (r < 0) return r;
    *out = 0;
    for (size_t i = 0; i < rows; i++) {
        const float *x = c->logits + i * (size_t)c->n_vocab;
        RowStats s;
        row_stats(x, c->n_vocab, &s);
        *out += (double)x[c->whole[same + i]] - s.log_z;
    }
    return isfinite(*out) ? 0 : fail(err, DIBIT_E_NUMERIC, "item %d: logits are not finite", item);
}

static int score_item(Choices *c, int item, const ChoiceItem *it, int hits[2], DibitError *err) {
    if (it->n_choices < 1 || it->gold < 0 || it->gold >= it->n_choices)
        return fail(err, DIBIT_E_ARGUMENT, "item %d: gold %d of %d choices", item, it->gold,
                    it->n_choices);
    size_t n_prefix;
    int r = tokenize_joined(c, item, it->query, NULL, c->prefix, &n_prefix, err);
    int best_sum = 0, best_norm = 0;
    double max_sum = -INFINITY, max_norm = -INFINITY;
    for (int k = 0; k < it->n_choices && r == 0; k++) {
        double sum = 0, bytes = (double)MAX(strlen(it->choices[k]), 1u);
        r = score_choice(c, item, it, k, n_prefix, &sum, err);
        if (r != 0) break;
        if (sum > max_sum) {
            max_sum = sum;
            best_sum = k;
        }
        if (sum / bytes > max_norm) {
            max_norm = sum / bytes;
            best_norm = k;
        }
    }
    hits[0] += best_sum == it->gold;
    hits[1] += best_norm == it->gold;
    return r;
}

int evaluate_choices(DibitEngine *model, const ChoiceItem *items, int n_items,
                     const EvalOptions *opt, ChoiceResult *out, DibitError *err) {
    DibitModelInfo info;
    dibit_model_info(model, &info);
    Choices c = { .engine = model, .n_vocab = info.n_vocab };
    c.n_ctx = info.n_ctx_train > 0 ? MIN(info.n_ctx_train, CHOICE_CONTEXT_MAX) : CHOICE_CONTEXT_MAX;
    DibitSessionOptions so = { .n_ctx = c.n_ctx };
    set_cache(&so, opt, 0);
    c.prefix = mem_calloc(NULL, (size_t)c.n_ctx, sizeof *c.prefix);
    c.whole = mem_calloc(NULL, (size_t)c.n_ctx, sizeof *c.whole);
    int hits[2] = { 0 };
    int r = c.prefix && c.whole ? 0 : fail(err, DIBIT_E_MEMORY, "no memory for %d ids", c.n_ctx);
    if (r == 0 && n_items < 1) r = fail(err, DIBIT_E_ARGUMENT, "there are no items");
    if (r == 0) r = dibit_session_create(&c.session, model, &so, err);
    for (int i = 0; i < n_items && r == 0; i++) {
        if (opt->progress && opt->progress(opt->user, i, n_items))
            r = fail(err, DIBIT_E_CANCELLED, "stopped after %d of %d items", i, n_items);
        else
            r = score_item(&c, i, &items[i], hits, err);
    }
    if (r == 0)
        *out = (ChoiceResult){ n_items, mean_of(hits[0], hits[0], n_items),
                               mean_of(hits[1], hits[1], n_items) };
    dibit_session_free(&c.session);
    mem_free(NULL, c.prefix);
    mem_free(NULL, c.whole);
    mem_free(NULL, c.logits);
    mem_free(NULL, c.text);
    return r;
}
