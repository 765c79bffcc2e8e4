/* evaluate.c - perplexity, KL divergence, agreement and choices against the plain formulas in long
 * double over logits of whole windows, on small random models. */
#include "tiny.h"

#include "evaluate.h"

enum { N_TEXT = 700, WINDOW = 150, SKIP = 20 };

static DibitEngine *engine_of(int type, uint8_t **image) {
    Tiny spec = { .type = type };
    DibitOptions opt = { .n_threads = 2 };
    DibitError err = { 0 };
    DibitEngine *e = NULL;
    size_t size;
    *image = tiny_image(&spec, &size);
    if (dibit_open_memory(&e, *image, size, &opt, &err) < 0) die("%s", err.text);
    return e;
}

static int32_t text_id(int i) {
    return (int32_t)(hash64(5, &i, sizeof i) % TINY_VOCAB);
}

/* Logits of one window, (WINDOW, TINY_VOCAB), in one call. */
static void window_logits(DibitEngine *e, const char *kv, const int32_t *ids, float *out) {
    DibitSessionOptions so = { .n_ctx = WINDOW, .cache_k = kv, .cache_v = kv };
    DibitSession *s = NULL;
    int32_t input[WINDOW];
    input[0] = 1; /* BOS */
    memcpy(input + 1, ids, (WINDOW - 1) * sizeof *input);
    assert_int_equal(dibit_session_create(&s, e, &so, NULL), 0);
    assert_int_equal(dibit_forward(s, input, WINDOW, out, NULL), 0);
    dibit_session_free(&s);
}

static long double log_z(const float *x) {
    long double z = 0;
    for (int i = 0; i < TINY_VOCAB; i++) z += expl((long double)x[i]);
    return logl(z);
}

static int best_of(const float *x) {
    int best = 0;
    for (int i = 1; i < TINY_VOCAB; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

typedef struct Plain {
    long double nll, nll2, nll_base, kld;
    int hits, hits_base, same, n;
    double klds[N_TEXT];
} Plain;

static void plain_window(Plain *p, const float *q, const float *b, const int32_t *targets) {
    for (int i = SKIP; i < WINDOW; i++) {
        const float *x = q + i * TINY_VOCAB, *y = b + i * TINY_VOCAB;
        long double zx = log_z(x), zy = log_z(y), kld = 0;
        for (int k = 0; k < TINY_VOCAB; k++) kld += expl(y[k] - zy) * ((y[k] - zy) - (x[k] - zx));
        long double nll = zx - x[targets[i]];
        p->nll += nll;
        p->nll2 += nll * nll;
        p->nll_base += zy - y[targets[i]];
        p->kld += kld;
        p->klds[p->n++] = (double)kld;
        p->hits += best_of(x) == targets[i];
        p->hits_base += best_of(y) == targets[i];
        p->same += best_of(x) == best_of(y);
    }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void assert_near(double got, double want, double bound, const char *what) {
    if (!(fabs(got - want) <= bound)) die("%s: %.12g, expected %.12g", what, got, want);
}

static void compare(const EvalResult *r, Plain *p, int n_windows) {
    double n = p->n, mean = (double)p->nll / n, mean_base = (double)p->nll_base / n;
    double acc = p->hits / n, acc_base = p->hits_base / n;
    double sd = sqrt((double)(p->nll2 / p->n) - mean * mean);
    assert_int_equal(r->n_tokens, p->n);
    assert_int_equal(r->n_windows, n_windows);
    assert_near(r->ppl.mean, exp(mean), 1e-6 * exp(mean), "ppl");
    assert_near(r->ppl.se, exp(mean) * sd / sqrt(n - 1), 1e-5, "ppl error");
    assert_near(r->top1_accuracy.mean, acc, 1e-12, "top-1 accuracy");
    assert_near(r->top1_accuracy.se, sqrt(acc * (1 - acc) / (n - 1)), 1e-12, "accuracy error");
    if (!r->has_base) return;
    assert_near(r->ppl_base.mean, exp(mean_base), 1e-6 * exp(mean_base), "ppl of base");
    assert_near(r->ppl_ratio.mean, exp(mean - mean_base), 1e-7, "ppl ratio");
    assert_near(r->kld_mean.mean, (double)p->kld / n, 1e-9, "mean KLD");
    assert_near(r->top1_agreement.mean, p->same / n, 1e-12, "agreement");
    assert_near(r->top1_accuracy_base.mean, acc_base, 1e-12, "accuracy of base");
    if (acc_base > 0)
        assert_near(r->degradation.mean, 100 * (acc_base - acc) / acc_base, 1e-9, "degradation");
    qsort(p->klds, (size_t)p->n, sizeof *p->klds, by_size);
    double middle = (p->klds[(p->n - 1) / 2] + p->klds[p->n / 2]) / 2;
    assert_near(r->kld_median, middle, 1e-6 * middle, "median KLD");
    if (r->kld_p99 < r->kld_median || r->kld_p999 < r->kld_p99 ||
        r->kld_p999 > p->klds[p->n - 1] * 1.000001)
        die("percentiles out of order: %g %g %g", r->kld_median, r->kld_p99, r->kld_p999);
}

static void figures_agree_with_the_formulas(void **state) {
    (void)state;
    uint8_t *image, *base_image;
    DibitEngine *e = engine_of(T_Q4_0, &image), *base = engine_of(T_F16, &base_image);
    int32_t ids[N_TEXT];
    float *q = malloc(sizeof(float) * WINDOW * TINY_VOCAB),
          *b = malloc(sizeof(float) * WINDOW * TINY_VOCAB);
    const char *kv[] = { "f16", "q8" };
    EvalOptions opt = {
        .window = WINDOW, .skip = SKIP, .cache_k = kv, .cache_v = kv, .n_settings = 2
    };
    EvalResult r[2], alone;
    DibitError err = { 0 };
    for (int i = 0; i < N_TEXT; i++) ids[i] = text_id(i);
    if (evaluate_text(e, base, ids, N_TEXT, &opt, r, &err) < 0) die("%s", err.text);
    for (int k = 0; k < 2; k++) {
        Plain *p = calloc(1, sizeof *p);
        int n_windows = N_TEXT / WINDOW;
        for (int w = 0; w < n_windows; w++) {
            window_logits(e, kv[k], ids + w * WINDOW, q);
            window_logits(base, "f16", ids + w * WINDOW, b);
            plain_window(p, q, b, ids + w * WINDOW);
        }
        compare(&r[k], p, n_windows);
        assert_string_equal(r[k].cache_k, kv[k]);
        free(p);
    }
    if (!(r[0].kld_mean.mean > 1e-6)) die("4 bits cannot have a KLD of %g", r[0].kld_mean.mean);
    opt = (EvalOptions){ .window = WINDOW, .skip = SKIP, .max_windows = 2 };
    assert_int_equal(evaluate_text(e, NULL, ids, N_TEXT, &opt, &alone, NULL), 0);
    assert_int_equal(alone.n_tokens, 2 * (WINDOW - SKIP));
    assert_false(alone.has_base);
    free(q);
    free(b);
    dibit_close(&e);
    dibit_close(&base);
    mem_free(NULL, image);
    mem_free(NULL, base_image);
}

static void a_model_agrees_with_itself(void **state) {
    (void)state;
    uint8_t *image;
    DibitEngine *e = engine_of(T_F16, &image);
    int32_t ids[N_TEXT];
    EvalOptions opt = { .window = WINDOW };
    EvalResult r;
    for (int i = 0; i < N_TEXT; i++) ids[i] = text_id(i);
    assert_int_equal(evaluate_text(e, e, ids, N_TEXT, &opt, &r, NULL), 0);
    assert_near(r.kld_mean.mean, 0, 1e-12, "KLD to itself");
    assert_near(r.top1_agreement.mean, 1, 0, "agreement with itself");
    assert_near(r.ppl_ratio.mean, 1, 0, "ppl ratio to itself");
    dibit_close(&e);
    mem_free(NULL, image);
}

static int stop_at_two(void *user, int window, int n_windows) {
    (void)n_windows;
    *(int *)user = window;
    return window == 2;
}

static void bad_input_is_refused(void **state) {
    (void)state;
    uint8_t *image;
    DibitEngine *e = engine_of(T_F16, &image);
    int32_t ids[N_TEXT] = { 0 };
    EvalOptions opt = { .window = WINDOW };
    EvalResult r;
    DibitError err = { 0 };
    assert_int_equal(evaluate_text(e, NULL, ids, WINDOW - 1, &opt, &r, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "fewer than one window"));
    opt.skip = WINDOW;
    assert_int_equal(evaluate_text(e, NULL, ids, N_TEXT, &opt, &r, &err), DIBIT_E_ARGUMENT);
    opt.skip = 0;
    ids[30] = TINY_VOCAB;
    assert_int_equal(evaluate_text(e, NULL, ids, N_TEXT, &opt, &r, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "token 30"));
    ids[30] = 0;
    int last = -1;
    opt.progress = stop_at_two;
    opt.user = &last;
    assert_int_equal(evaluate_text(e, NULL, ids, N_TEXT, &opt, &r, &err), DIBIT_E_CANCELLED);
    assert_int_equal(last, 2);
    dibit_close(&e);
    mem_free(NULL, image);
}

/* Log-likelihood of `choice` after "QUERY\nAnswer:", every token in a session of its own. */
static double plain_choice(DibitEngine *e, const char *query, const char *choice) {
    char prefix[128], whole[256];
    int32_t a[256], b[256];
    snprintf(prefix, sizeof prefix, "%s\nAnswer:", query);
    snprintf(whole, sizeof whole, "%s %s", prefix, choice);
    int64_t na = dibit_tokenize(e, prefix, strlen(prefix), DIBIT_ADD_BOS, a, 256, NULL);
    int64_t nb = dibit_tokenize(e, whole, strlen(whole), DIBIT_ADD_BOS, b, 256, NULL), same = 0;
    assert_true(na > 1 && nb > na && nb <= 256);
    while (same < na && a[same] == b[same]) same++;
    double sum = 0;
    for (int64_t i = same; i < nb; i++) {
        DibitSession *s = NULL;
        DibitSessionOptions so = { .n_ctx = 256 };
        assert_int_equal(dibit_session_create(&s, e, &so, NULL), 0);
        assert_true(dibit_sync(s, b, (size_t)i, NULL) > 0);
        const float *x = dibit_last_logits(s);
        sum += (double)(x[b[i]] - log_z(x));
        dibit_session_free(&s);
    }
    return sum;
}

static void choices_agree_with_the_formulas(void **state) {
    (void)state;
    static const char *const words[] = { "red", "a much longer answer", "blue", "ox", "seven" };
    static const char *const queries[] = {
        "Question: Which?", "Question: Why so?", "Q", "What", "Question: How many of them?", "Who"
    };
    uint8_t *image;
    DibitEngine *e = engine_of(T_F16, &image);
    ChoiceItem items[ARRAY_LEN(queries)];
    ChoiceResult r;
    DibitError err = { 0 };
    int n = ARRAY_LEN(queries), hits_sum = 0, hits_norm = 0;
    for (int i = 0; i < n; i++) {
        items[i] = (ChoiceItem){ queries[i], words + i % 2, 4, i % 4 };
        int best_sum = 0, best_norm = 0;
        double sum[4], norm[4];
        for (int k = 0; k < 4; k++) {
            sum[k] = plain_choice(e, queries[i], words[i % 2 + k]);
            norm[k] = sum[k] / (double)strlen(words[i % 2 + k]);
            if (sum[k] > sum[best_sum]) best_sum = k;
            if (norm[k] > norm[best_norm]) best_norm = k;
        }
        if (i < 3) items[i].gold = i == 1 ? best_norm : best_sum; /* so that some are right */
        hits_sum += best_sum == items[i].gold;
        hits_norm += best_norm == items[i].gold;
    }
    if (evaluate_choices(e, items, n, &(EvalOptions){ 0 }, &r, &err) < 0) die("%s", err.text);
    assert_int_equal(r.n_items, n);
    assert_near(r.acc_sum.mean, (double)hits_sum / n, 1e-12, "accuracy by sum");
    assert_near(r.acc_norm.mean, (double)hits_norm / n, 1e-12, "accuracy by length");
    items[2].gold = 4;
    assert_int_equal(evaluate_choices(e, items, n, &(EvalOptions){ 0 }, &r, &err),
                     DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "item 2"));
    dibit_close(&e);
    mem_free(NULL, image);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_agree_with_the_formulas),
        cmocka_unit_test(a_model_agrees_with_itself),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(choices_agree_with_the_formulas),
    };
    return cmocka_run_group_tests_name("evaluate", tests, NULL, NULL);
}
