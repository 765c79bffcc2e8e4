/* check.c - forced decoding on two engines, and their pace. */
#include "gpu/check.h"

#include <math.h>

static const double max_kld = 1e-3, max_margin = 1e-2;
enum { ROWS = 8, CONTEXT = 64 };

/* Tokens of a text, and where there are none any ids. */
static void choose_ids(const DibitEngine *e, int n_vocab, int32_t ids[GPU_CHECKED]) {
    static const char text[] =
        "The history of the city begins with a small harbour at the mouth of "
        "the river, where ships from the north came with salt and timber.";
    int32_t more[GPU_CHECKED * 2];
    DibitError ignored;
    int64_t n =
        dibit_tokenize(e, text, sizeof text - 1, DIBIT_ADD_BOS, more, ARRAY_LEN(more), &ignored);
    for (int i = 0; i < GPU_CHECKED; i++)
        ids[i] = i < n ? more[i] : (int32_t)(1 + (i * 7919 + 40) % MAX(n_vocab - 1, 1)) % n_vocab;
}

static int likeliest(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static double margin(const float *x, int n, int best) {
    double second = -INFINITY;
    for (int i = 0; i < n; i++)
        if (i != best && (double)x[i] > second) second = (double)x[i];
    return (double)x[best] - second;
}

/* Adds the sum of p log(p / q) of two rows of logits, and what their largest say. */
static void compare_row(GpuCheck *c, const float *p, const float *q, int n) {
    int a = likeliest(p, n), b = likeliest(q, n);
    double sp = 0, sq = 0, d = 0;
    for (int i = 0; i < n; i++) {
        double e = exp((double)p[i] - (double)p[a]);
        sp += e;
        sq += exp((double)q[i] - (double)q[b]);
        d += e * ((double)p[i] - (double)q[i]);
    }
    c->n++;
    c->kld += d / sp - (double)p[a] + (double)q[b] - log(sp / sq);
    if (a == b) return;
    c->n_other++;
    double apart = margin(p, n, a);
    c->margin = MAX(c->margin, apart);
}

static int compare(DibitSession *gpu, DibitSession *cpu, const int32_t *ids, int n_vocab,
                   double limit_ms, GpuCheck *c, DibitError *err) {
    size_t n = (size_t)ROWS * (size_t)n_vocab;
    float *rows = mem_calloc(NULL, 2 * n, sizeof *rows);
    uint64_t start = clock_ns();
    int r = rows ? 0 : fail(err, DIBIT_E_MEMORY, "no memory to check the GPU");
    for (int i = 0; i < GPU_CHECKED && r == 0; i += ROWS) {
        if (i > 0 && (double)(clock_ns() - start) / 1e6 > limit_ms) break;
        r = dibit_forward(cpu, ids + i, ROWS, rows, err);
        if (r == 0) r = dibit_forward(gpu, ids + i, ROWS, rows + n, err);
        for (size_t k = 0; k < n && r == 0; k += (size_t)n_vocab)
            compare_row(c, rows + k, rows + n + k, n_vocab);
    }
    mem_free(NULL, rows);
    c->kld /= MAX(c->n, 1);
    if (r != 0 || (c->kld < max_kld && c->n_other <= 1 && c->margin < max_margin)) return r;
    return fail(
        err, DIBIT_E_NUMERIC,
        "the GPU computes something else than the CPU: of %d positions a mean divergence of "
        "%.3g, %d other tokens",
        c->n, c->kld, c->n_other);
}

static int create(DibitSession **s, DibitEngine *e, DibitError *err) {
    DibitModelInfo info;
    DibitSessionOptions opt = { 0 };
    dibit_model_info(e, &info);
    opt.n_ctx = MIN(CONTEXT, info.n_ctx_train);
    if (opt.n_ctx <= GPU_CHECKED)
        return fail(err, DIBIT_E_UNSUPPORTED, "a context of %d is too short to check the GPU with",
                    opt.n_ctx);
    return dibit_session_create(s, e, &opt, err);
}

int gpu_check(DibitEngine *gpu, DibitEngine *cpu, double limit_ms, GpuCheck *out, DibitError *err) {
    DibitModelInfo info;
    DibitSession *a = NULL, *b = NULL;
    int32_t ids[GPU_CHECKED];
    *out = (GpuCheck){ 0 };
    dibit_model_info(cpu, &info);
    choose_ids(cpu, info.n_vocab, ids);
    int r = create(&a, gpu, err);
    if (r == 0) r = create(&b, cpu, err);
    if (r == 0) r = compare(a, b, ids, info.n_vocab, limit_ms, out, err);
    dibit_session_free(&a);
    dibit_session_free(&b);
    return r;
}

int gpu_pace(DibitEngine *e, double *ms, DibitError *err) {
    enum { PROMPT = 4, TOKENS = 16, LIMIT_MS = 450 };
    DibitModelInfo info;
    DibitSession *s = NULL;
    DibitPiece piece;
    int32_t ids[GPU_CHECKED];
    uint64_t start = 0;
    int n = -2; /* the first comes from the prompt, the second one warms up */
    dibit_model_info(e, &info);
    choose_ids(e, info.n_vocab, ids);
    int r = create(&s, e, err);
    if (r == 0) r = (int)MIN(dibit_sync(s, ids, PROMPT, err), 0);
    for (*ms = 0; r >= 0 && n < TOKENS && *ms < LIMIT_MS;
         *ms = (double)(clock_ns() - start) / 1e6) {
        if ((r = dibit_next(s, &piece, err)) <= 0) break;
        if (++n == 0 || n == -1) start = clock_ns();
    }
    dibit_session_free(&s);
    if (r < 0) return r;
    if (n < 1) return fail(err, DIBIT_E_UNSUPPORTED, "the text ends too soon to be timed");
    *ms /= n;
    return 0;
}
