/* calibrate.c - calibrate_weights and what quantize_file makes of it: right sums, the same bytes at
 * any thread count and after a stop, refusals that say what to do. */
#define _GNU_SOURCE
#include "calibrate.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "calibration.h"
#include "model.h"
#include "quantize.h"
#include "tiny.h"

enum { N_IDS = 1000, WINDOW = 64 };
static char folder[] = "/tmp/dibit-test-XXXXXX";
static int32_t ids[N_IDS];

static const char *path(const char *name) { /* the last 64 results stay valid */
    static char paths[64][96];
    static int next;
    char *p = paths[next++ % 64];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static const char *write_tiny(const char *name, const Tiny *spec) {
    size_t n;
    FileOut f;
    const char *to = path(name);
    uint8_t *image = tiny_image(spec, &n);
    assert_int_equal(file_create(&f, to, NULL), 0);
    assert_int_equal(file_write(&f, image, n, NULL), 0);
    assert_int_equal(file_commit(&f, NULL), 0);
    mem_free(NULL, image);
    return to;
}

typedef struct Seen {
    char notes[512];
    int calls, stop_at;
    uint64_t total;
} Seen;

static void hear(void *user, const char *text) {
    Seen *s = user;
    size_t n = strlen(s->notes);
    assert_int_equal(s->calls, 0); /* all is said before the work */
    snprintf(s->notes + n, sizeof s->notes - n, "%s\n", text);
}

static int count(void *user, uint64_t done, uint64_t total) {
    Seen *s = user;
    s->total = total;
    assert_true(done <= total);
    return ++s->calls == s->stop_at;
}

static CalibrateOptions options(Seen *s) {
    *s = (Seen){ 0 };
    return (CalibrateOptions){ .window = WINDOW,
                               .bos = 1,
                               .text_hash = 5,
                               .n_threads = 2,
                               .note = hear,
                               .progress = count,
                               .user = s };
}

static CalibrateResult calibrate(const char *model, const CalibrateOptions *opt, const char *out) {
    CalibrateResult result;
    DibitError err;
    if (calibrate_weights(model, ids, N_IDS, opt, out, &result, &err) != 0) die("%s", err.text);
    return result;
}

static void refused(int code, const char *text, const char *model, size_t n,
                    const CalibrateOptions *opt) {
    CalibrateResult result;
    DibitError err = { 0 };
    const char *out = path("refused.cal");
    assert_int_equal(calibrate_weights(model, ids, n, opt, out, &result, &err), code);
    if (!strstr(err.text, text)) die("\"%s\" does not say \"%s\"", err.text, text);
    assert_int_not_equal(access(out, F_OK), 0);
}

static void same_bytes(const char *a, const char *b) {
    FileMap x, y;
    assert_int_equal(file_map(&x, a, true, NULL, NULL), 0);
    assert_int_equal(file_map(&y, b, true, NULL, NULL), 0);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_unmap(&x);
    file_unmap(&y);
}

/* ---- the sums ---- */

typedef struct Sum {
    ModelTap tap;
    int layer;
    size_t width;
    double *sum; /* (width, width) */
} Sum;

static void add(void *user, ModelTap what, int layer, const float *x, int n) {
    Sum *s = user;
    if (what != s->tap || layer != s->layer) return;
    for (int t = 0; t < n; t++, x += s->width)
        for (size_t i = 0; i < s->width; i++)
            for (size_t j = 0; j <= i; j++) s->sum[i * s->width + j] += (double)x[i] * (double)x[j];
}

/* The same tokens through the model, summed in double. */
static double *sums_of(const char *model, ModelTap tap, int layer, size_t width) {
    Gguf *g;
    Kern kern;
    Model m;
    Cache cache;
    Scratch scratch;
    Sum sum = { tap, layer, width, calloc(width * width, sizeof *sum.sum) };
    const CacheShape shape = {
        .n_layers = TINY_LAYERS, .n_kv_heads = TINY_KV, .head_dim = TINY_HEAD, .n_ctx = WINDOW
    };
    kern_init(&kern, ~0u);
    assert_int_equal(gguf_open(&g, model, false, NULL, NULL), 0);
    assert_int_equal(model_open(&m, g, &kern, NULL, REPACK_COPY, NULL, NULL), 0);
    assert_int_equal(cache_create(&cache, &shape, NULL, NULL), 0);
    assert_int_equal(scratch_create(&scratch, &m, &kern, NULL, WINDOW, WINDOW, NULL, NULL), 0);
    scratch.tap = add;
    scratch.tap_user = &sum;
    for (size_t at = 0; at + WINDOW <= N_IDS; at += WINDOW) {
        int32_t window[WINDOW] = { 1 };
        memcpy(window + 1, ids + at, (WINDOW - 1) * sizeof *ids);
        cache_truncate(&cache, 0);
        assert_int_equal(model_forward(&m, &scratch, &cache, window, WINDOW, NULL, true, NULL), 0);
    }
    scratch_free(&scratch);
    cache_free(&cache);
    model_close(&m);
    gguf_close(&g);
    return sum.sum;
}

static void right_sums(void **state) {
    (void)state;
    Seen seen;
    CalibrateOptions opt = options(&seen);
    const char *model = write_tiny("in.gguf", &(Tiny){ .type = T_F16 });
    const char *out = path("a.cal"), *again = path("b.cal");
    CalibrateResult r = calibrate(model, &opt, out);
    assert_int_equal(r.n_tokens, N_IDS / WINDOW * WINDOW);
    assert_int_equal(r.n_inputs, 4 * TINY_LAYERS + 1);
    assert_int_equal(r.n_full, r.n_inputs);
    assert_int_equal(seen.calls, N_IDS / WINDOW + 7 * TINY_LAYERS); /* each matrix's sensitivity */
    assert_string_equal(seen.notes, "");
    const struct {
        ModelTap tap;
        int layer;
        size_t width;
        const char *matrix;
    } cases[] = { { TAP_QKV, 1, TINY_EMBD, "blk.1.attn_k.weight" },
                  { TAP_O, 0, TINY_HEADS * TINY_HEAD, "blk.0.attn_output.weight" },
                  { TAP_GATE_UP, 0, TINY_EMBD, "blk.0.ffn_up.weight" },
                  { TAP_DOWN, 1, TINY_FF, "blk.1.ffn_down.weight" },
                  { TAP_OUTPUT, TINY_LAYERS, TINY_EMBD, "output.weight" } };
    Gguf *g;
    Calibration c;
    assert_int_equal(gguf_open(&g, model, false, NULL, NULL), 0);
    assert_int_equal(calibration_open(&c, out, g, NULL), 0);
    assert_int_equal(c.n_tokens, r.n_tokens);
    for (size_t k = 0; k < ARRAY_LEN(cases); k++) {
        size_t n = cases[k].width;
        CalibrationInput in;
        double *want = sums_of(model, cases[k].tap, cases[k].layer, n);
        assert_int_equal(calibration_find(&c, cases[k].matrix, n, &in, NULL), 0);
        const float *at = in.triangle;
        assert_non_null(at);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j <= i; j++, at++) {
                double bound = 1e-5 * sqrt(want[i * n + i] * want[j * n + j]);
                if (fabs((double)*at - want[i * n + j]) > bound)
                    die("%s (%zu, %zu)", cases[k].matrix, i, j);
            }
        free(want);
        assert_int_equal(calibration_find(&c, cases[k].matrix, n + 32, &in, NULL),
                         DIBIT_E_ARGUMENT);
    }
    calibration_close(&c);
    gguf_close(&g);
    opt.n_threads = 5;
    seen = (Seen){ 0 };
    calibrate(model, &opt, again);
    same_bytes(out, again);
}

/* A stop leaves no result but the work so far, and the next call goes on to the same bytes. */
static void stop_and_go_on(void **state) {
    (void)state;
    Seen seen;
    CalibrateOptions opt = options(&seen);
    CalibrateResult r;
    DibitError err;
    const char *model = path("in.gguf"), *out = path("c.cal"), *part = path("c.cal.part");
    seen.stop_at = 6;
    assert_int_equal(calibrate_weights(model, ids, N_IDS, &opt, out, &r, &err), DIBIT_E_CANCELLED);
    assert_non_null(strstr(err.text, "6 of 15 windows"));
    assert_int_not_equal(access(out, F_OK), 0);
    assert_int_equal(access(part, F_OK), 0);
    seen = (Seen){ 0 };
    calibrate(model, &opt, out);
    assert_int_equal(seen.calls, 9 + 7 * TINY_LAYERS);
    assert_non_null(strstr(seen.notes, "going on"));
    assert_int_not_equal(access(part, F_OK), 0);
    same_bytes(out, path("a.cal"));
    /* the same among the sensitivities */
    unlink(out);
    seen = (Seen){ .stop_at = 20 };
    assert_int_equal(calibrate_weights(model, ids, N_IDS, &opt, out, &r, &err), DIBIT_E_CANCELLED);
    assert_non_null(strstr(err.text, "15 of 15 windows, 5 of 14 matrices"));
    assert_int_not_equal(access(out, F_OK), 0);
    seen = (Seen){ 0 };
    calibrate(model, &opt, out);
    assert_int_equal(seen.calls, 9);
    same_bytes(out, path("a.cal"));
    /* the work of another text is not taken up */
    seen = (Seen){ .stop_at = 6 };
    assert_int_equal(calibrate_weights(model, ids, N_IDS, &opt, out, &r, NULL), DIBIT_E_CANCELLED);
    opt.text_hash++;
    seen = (Seen){ 0 };
    calibrate(model, &opt, out);
    assert_int_equal(seen.calls, 15 + 7 * TINY_LAYERS);
}

static void little_and_wide(void **state) {
    (void)state;
    Seen seen;
    CalibrateOptions opt = options(&seen);
    const char *out = path("little.cal");
    opt.max_tokens = 300;
    CalibrateResult r = calibrate(path("in.gguf"), &opt, out);
    assert_int_equal(r.n_tokens, 256);
    assert_non_null(strstr(seen.notes, "blk.0.ffn_down.hessian and 1 more: 256 tokens"));
    seen = (Seen){ 0 };
    opt.max_width = TINY_EMBD;
    r = calibrate(path("in.gguf"), &opt, out);
    assert_int_equal(r.n_full, r.n_inputs - TINY_LAYERS);
    assert_non_null(strstr(seen.notes, "blk.0.ffn_down.diagonal and 1 more: only the diagonal"));
}

static void refusals(void **state) {
    (void)state;
    Seen seen;
    CalibrateOptions opt = options(&seen);
    const char *model = path("in.gguf");
    refused(DIBIT_E_ARGUMENT, "the text has 63 tokens", model, WINDOW - 1, &opt);
    refused(DIBIT_E_IO, "none.gguf", path("none.gguf"), N_IDS, &opt);
    opt.max_tokens = 10;
    refused(DIBIT_E_ARGUMENT, "10 would be used, fewer than one window", model, N_IDS, &opt);
    opt.max_tokens = 0;
    ids[7] = TINY_VOCAB;
    refused(DIBIT_E_ARGUMENT, "token 7 is 300", model, N_IDS, &opt);
    ids[7] = 7;
    const char *bad =
        write_tiny("nan.gguf", &(Tiny){ .type = T_F32, .nan = "blk.1.ffn_down.weight" });
    refused(DIBIT_E_NUMERIC, "NaN", bad, N_IDS, &opt);
    /* a file that may not grow: a full disk */
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){ 100000, old.rlim_max };
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    seen = (Seen){ 0 };
    refused(DIBIT_E_IO, "cannot write", model, N_IDS, &opt);
    setrlimit(RLIMIT_FSIZE, &old);
}

/* ---- quantizing with it ---- */

static void quantize(const char *in, const char *out, const QuantizeOptions *opt) {
    DibitError err;
    if (quantize_file(in, out, opt, NULL, &err) != 0) die("%s", err.text);
}

static void quantize_refused(int code, const char *text, const char *in,
                             const QuantizeOptions *opt) {
    DibitError err = { 0 };
    const char *out = path("refused.gguf");
    assert_int_equal(quantize_file(in, out, opt, NULL, &err), code);
    if (!strstr(err.text, text)) die("\"%s\" does not say \"%s\"", err.text, text);
    assert_int_not_equal(access(out, F_OK), 0);
}

static void any_thread_count(void **state) {
    (void)state;
    static const char *const types[] = { "s2", "s3", "q4", "t2", "t3" };
    const char *in = path("in.gguf"), *one = path("one.gguf"), *many = path("many.gguf");
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        QuantizeOptions opt = {
            .type = types[i], .calibration = path("a.cal"), .n_threads = 1, .effort = 1
        };
        quantize(in, one, &opt);
        opt.n_threads = 5;
        quantize(in, many, &opt);
        same_bytes(one, many);
    }
}

/* An importance matrix of another program: sums of squares by matrix. */
static void write_imatrix(const char *to, uint64_t cols) {
    GgufWriter *w;
    float sums[TINY_EMBD + 32];
    for (size_t i = 0; i < ARRAY_LEN(sums); i++) sums[i] = i % 3 ? 1 : 100;
    gguf_writer_create(&w, NULL);
    gguf_put_string(w, "general.type", "imatrix", 7);
    gguf_put_tensor(w, "blk.0.attn_q.weight.in_sum2", T_F32, 1, &cols, cols * 4);
    assert_int_equal(gguf_begin(w, to, NULL), 0);
    assert_int_equal(gguf_write(w, sums, cols * 4, NULL), 0);
    assert_int_equal(gguf_finish(w, NULL), 0);
    gguf_writer_free(&w);
}

static void imatrix(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *one = path("one.gguf"), *many = path("many.gguf");
    Gguf *a, *b;
    write_imatrix(path("imatrix.gguf"), TINY_EMBD);
    quantize(in, one, &(QuantizeOptions){ .type = "s3" });
    quantize(in, many, &(QuantizeOptions){ .type = "s3", .calibration = path("imatrix.gguf") });
    assert_int_equal(gguf_open(&a, one, true, NULL, NULL), 0);
    assert_int_equal(gguf_open(&b, many, true, NULL, NULL), 0);
    int n = 0;
    for (int i = 0; i < gguf_n_tensors(a); i++) {
        const GgufTensor *x = gguf_tensor(a, i), *y = gguf_tensor(b, i);
        if (memcmp(x->data, y->data, x->n_bytes) == 0) continue;
        assert_string_equal(x->name, "blk.0.attn_q.weight");
        n++;
    }
    assert_int_equal(n, 1);
    gguf_close(&a);
    gguf_close(&b);
}

static void quantize_refusals(void **state) {
    (void)state;
    Seen seen;
    CalibrateOptions opt = options(&seen);
    CalibrateResult r;
    const char *in = path("in.gguf");
    const char *other = write_tiny("other.gguf", &(Tiny){ .type = T_F16, .gain = 2 });
    QuantizeOptions q = { .type = "s2", .calibration = path("a.cal") };
    quantize_refused(DIBIT_E_ARGUMENT, "another model", other, &q);
    q.calibration = in;
    quantize_refused(DIBIT_E_FORMAT, "is no calibration file", in, &q);
    q.calibration = path("none.cal");
    quantize_refused(DIBIT_E_IO, "none.cal", in, &q);
    write_imatrix(path("imatrix.gguf"), TINY_EMBD + 32);
    q.calibration = path("imatrix.gguf");
    quantize_refused(DIBIT_E_ARGUMENT, "do not fit a matrix of 256 columns", in, &q);
    seen.stop_at = 2;
    calibrate_weights(in, ids, N_IDS, &opt, path("c.cal"), &r, NULL);
    q.calibration = path("c.cal.part");
    quantize_refused(DIBIT_E_ARGUMENT, "only 2 of 15 windows", in, &q);
}

/* ---- recovery and going on ---- */

/* Mean squared difference of the logits of two models on the first windows of the text. */
static double difference(const char *a, const char *b) {
    const char *files[] = { a, b };
    float *logits[2];
    double sum = 0;
    for (int k = 0; k < 2; k++) {
        DibitEngine *e;
        DibitSession *s;
        DibitError err;
        const DibitOptions opt = { .n_threads = 2 };
        const DibitSessionOptions so = { .n_ctx = WINDOW };
        if (dibit_open(&e, files[k], &opt, &err) != 0) die("%s", err.text);
        if (dibit_session_create(&s, e, &so, &err) != 0) die("%s", err.text);
        logits[k] = malloc(WINDOW * TINY_VOCAB * sizeof **logits);
        assert_int_equal(dibit_forward(s, ids, WINDOW, logits[k], NULL), 0);
        dibit_session_free(&s);
        dibit_close(&e);
    }
    for (size_t i = 0; i < WINDOW * TINY_VOCAB; i++) {
        double d = (double)logits[0][i] - (double)logits[1][i];
        sum += d * d;
    }
    free(logits[0]);
    free(logits[1]);
    return sum / (WINDOW * TINY_VOCAB);
}

static QuantizeOptions recovering(const char *type) {
    return (QuantizeOptions){ .type = type,
                              .embedding_type = "f16",
                              .recover = ids,
                              .n_recover = N_IDS,
                              .recover_window = WINDOW,
                              .bos = 1,
                              .effort = 1,
                              .n_threads = 2 };
}

/* Norms differ from the source's, not by much, and the file still says whose they were. */
static void fitted_norms(const char *in, const char *out) {
    Gguf *a, *b;
    assert_int_equal(gguf_open(&a, in, false, NULL, NULL), 0);
    assert_int_equal(gguf_open(&b, out, false, NULL, NULL), 0);
    assert_true(model_norms_hash(a) != 0 && model_norms_hash(a) == model_norms_hash(b));
    const float *x = (const float *)gguf_find(a, "blk.1.ffn_norm.weight")->data;
    const float *y = (const float *)gguf_find(b, "blk.1.ffn_norm.weight")->data;
    int changed = 0;
    for (int i = 0; i < TINY_EMBD; i++) {
        changed += x[i] != y[i];
        if (!(fabsf(x[i] - y[i]) < 0.1f * fabsf(x[i]) + 0.02f)) die("norm %d: %g", i, (double)y[i]);
    }
    assert_true(changed > TINY_EMBD / 2);
    gguf_close(&a);
    gguf_close(&b);
}

static void recovery(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *plain = path("plain.gguf"), *fed = path("fed.gguf");
    const char *one = path("one.gguf"), *many = path("many.gguf");
    QuantizeOptions opt = { .type = "s3", .embedding_type = "f16" };
    quantize(in, plain, &opt);
    opt.calibration = path("a.cal");
    quantize(in, fed, &opt);
    opt = recovering("s3");
    quantize(in, one, &opt);
    opt.n_threads = 3;
    quantize(in, many, &opt);
    same_bytes(one, many);
    double p = difference(in, plain), f = difference(in, fed), r = difference(in, one);
    if (!(r < 0.9 * f && f < p)) die("plain %g, feedback %g, recovery %g", p, f, r);
    opt = recovering("q8"); /* without feedback: the norms alone */
    quantize(in, many, &opt);
    quantize(in, one, &(QuantizeOptions){ .type = "q8", .embedding_type = "f16" });
    p = difference(in, one);
    r = difference(in, many);
    if (!(r < 1.05 * p)) die("q8: plain %g, recovery %g", p, r);
    fitted_norms(in, many);
    opt.n_recover = WINDOW - 1;
    quantize_refused(DIBIT_E_ARGUMENT, "fewer than one window", in, &opt);
    opt = recovering("s3");
    const char *bad = path("nan.gguf");
    quantize_refused(DIBIT_E_NUMERIC, "blk.1.ffn_down.weight: the weight at row 1, column 3 is NaN",
                     bad, &opt);
}

static int stop_early(void *user, const QuantizeTensor *t) {
    (void)t;
    return --*(int *)user == 0;
}

/* Slow tensors that were done before a stop are not done again; damage to them is noticed. */
static void quantize_goes_on(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *whole = path("one.gguf"), *out = path("many.gguf");
    const char *part = path("many.gguf.part");
    for (int k = 0; k < 3; k++) {
        QuantizeOptions opt = recovering("t2");
        if (k == 2) opt = (QuantizeOptions){ .type = "s2", .calibration = path("a.cal") };
        unlink(out);
        quantize(in, whole, &opt);
        int left = 7;
        opt.progress = stop_early;
        opt.user = &left;
        assert_int_equal(quantize_file(in, out, &opt, NULL, NULL), DIBIT_E_CANCELLED);
        assert_int_not_equal(access(out, F_OK), 0);
        assert_int_equal(access(part, F_OK), 0);
        if (k == 1) { /* a bit of the third tensor is wrong, and the last one is cut off */
            FILE *f = fopen(part, "r+b");
            fseek(f, 3 * 16384, SEEK_SET);
            int c = fgetc(f);
            fseek(f, 3 * 16384, SEEK_SET);
            fputc(c ^ 1, f);
            fseek(f, 0, SEEK_END);
            long n = ftell(f);
            fclose(f);
            assert_int_equal(truncate(part, n - 5), 0);
        }
        opt.progress = NULL;
        opt.n_threads = 1;
        quantize(in, out, &opt);
        assert_int_not_equal(access(part, F_OK), 0);
        same_bytes(whole, out);
    }
}

/* What was done is in the file. */
static void metadata(void **state) {
    (void)state;
    uint64_t v;
    Gguf *g;
    QuantizeOptions opt = recovering("s2");
    opt.calibration = path("a.cal");
    opt.recover_hash = 77;
    quantize(path("in.gguf"), path("one.gguf"), &opt);
    assert_int_equal(gguf_open(&g, path("one.gguf"), false, NULL, NULL), 0);
    assert_true(gguf_get_u64(g, "dibit.quantize.calibration_text_hash", &v) && v == 5);
    assert_true(gguf_get_u64(g, "dibit.quantize.calibration_tokens", &v) && v == 960);
    assert_true(gguf_get_u64(g, "dibit.quantize.recover_text_hash", &v) && v == 77);
    assert_true(gguf_get_u64(g, "dibit.quantize.recover_tokens", &v) && v == N_IDS);
    gguf_close(&g);
    char text[1024], cut[20];
    assert_int_equal(quantize_history(path("one.gguf"), text, sizeof text, NULL), 0);
    assert_non_null(strstr(text, "s2, embedding f16, seed 0"));
    assert_non_null(strstr(text, "960 tokens of text 0000000000000005"));
    assert_non_null(strstr(text, "1000 tokens of text 000000000000004d"));
    assert_int_equal(quantize_history(path("one.gguf"), cut, sizeof cut, NULL), 0);
    assert_int_equal(strlen(cut), sizeof cut - 1);
    assert_int_equal(quantize_history(path("in.gguf"), text, sizeof text, NULL), 0);
    assert_string_equal(text, "");
}

static int set_up(void **state) {
    (void)state;
    TinyState s = { .rng = 3 };
    for (int i = 0; i < N_IDS; i++) ids[i] = (int32_t)((tiny_random(&s) + 1) * TINY_VOCAB / 2.01);
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command) != 0;
}

void calibrate_command(void **state); /* calibrate_command.c */

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_sums),        cmocka_unit_test(stop_and_go_on),
        cmocka_unit_test(little_and_wide),   cmocka_unit_test(refusals),
        cmocka_unit_test(any_thread_count),  cmocka_unit_test(imatrix),
        cmocka_unit_test(quantize_refusals), cmocka_unit_test(recovery),
        cmocka_unit_test(quantize_goes_on),  cmocka_unit_test(metadata),
        cmocka_unit_test(calibrate_command),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
