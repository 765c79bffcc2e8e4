/* calibrate_kv.c - calibrated bases of the KV cache: their mathematics, the file, what an engine
 * makes of it, refusals, and the choice of types. */
#define _GNU_SOURCE
#include "calibrate_kv.h"

#include <math.h>
#include <unistd.h>

#include "basis.h"
#include "calibrate_basis.h"
#include "evaluate.h"
#include "kv23.h"
#include "model.h"
#include "quantize.h"
#include "tiny.h"

enum { D = 64, N_IDS = 600 };

static char folder[] = "/tmp/dibit-test-XXXXXX";
static uint64_t rng = 3;
static int32_t ids[N_IDS];

static const char *path(const char *name) { /* the last 16 results stay valid */
    static char paths[16][96];
    static int next;
    char *p = paths[next++ % 16];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static double uniform(void) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return ((double)(rng >> 33) + 0.5) / 2147483648.0;
}

static double gauss(void) {
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

/* ---- mathematics ---- */

static void inverses(void **state) {
    (void)state;
    static double a[D * D], b[D * D], room[D * D];
    for (int i = 0; i < D * D; i++) a[i] = b[i] = gauss();
    assert_true(basis_invert(b, room, D));
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) {
            double sum = 0;
            for (int k = 0; k < D; k++) sum += a[i * D + k] * b[k * D + j];
            assert_true(fabs(sum - (i == j)) < 1e-9);
        }
    for (int i = 0; i < D * D; i++) a[i] = i % D < 3 ? 1 : gauss(); /* three equal columns */
    assert_false(basis_invert(a, room, D));
    a[5] = NAN;
    assert_false(basis_invert(a, room, D));
}

/* A head whose vectors and costs lie mostly in a few directions, not the same ones. */
typedef struct Head {
    double mix[D * D], cost[D * D], cov[D * D], metric[D * D];
} Head;

static void make_head(Head *h) {
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) {
            h->mix[i * D + j] = gauss() * exp(-j / 12.0);
            h->cost[i * D + j] = gauss() * exp(-j / 20.0);
        }
    memset(h->cov, 0, sizeof h->cov);
    memset(h->metric, 0, sizeof h->metric);
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++)
            for (int k = 0; k < D; k++) {
                h->cov[i * D + j] += h->mix[i * D + k] * h->mix[j * D + k];
                h->metric[i * D + j] += h->cost[i * D + k] * h->cost[j * D + k];
            }
}

static void vector(const Head *h, double *x) {
    double g[D];
    for (int i = 0; i < D; i++) g[i] = gauss();
    for (int i = 0; i < D; i++) {
        x[i] = 0;
        for (int k = 0; k < D; k++) x[i] += h->mix[i * D + k] * g[k];
    }
}

/* The mean cost of the errors of records in a basis, with its lanes' weights. */
static double cost_of(const Head *h, const double *basis, const float *weight, int bits) {
    static T4Table table;
    static double inverse[D * D], room[D * D];
    Kern kern;
    KvCount count = { 0 };
    KvEncoder e = { bits, 8, 1, { weight[0], weight[1], weight[2], weight[3] }, NULL, &kern };
    double sum = 0;
    kern_init(&kern, ~0u);
    t4_table(table);
    e.table = (const T4Table *)&table;
    memcpy(inverse, basis, sizeof inverse);
    assert_true(basis_invert(inverse, room, D));
    for (int n = 0; n < 300; n++) {
        double x[D], error[D] = { 0 };
        float z[D], y[D];
        uint8_t block[KV_BLOCK * 3 * D / 8] = { 0 };
        vector(h, x);
        for (int i = 0; i < D; i++) {
            double s = 0;
            for (int j = 0; j < D; j++) s += basis[i * D + j] * x[j];
            z[i] = (float)s;
        }
        kv23_encode(&e, block, n % 16, z, D, &count);
        kv23_decode(y, block, bits, n % 16, D);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) error[i] += inverse[i * D + j] * (double)(y[j] - z[j]);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) sum += error[i] * h->metric[i * D + j] * error[j];
    }
    assert_int_equal(count.n_zero + count.n_saturated, 0);
    return sum;
}

static void bases_cost_less(void **state) {
    (void)state;
    static Head h;
    static double basis[D * D], plain[D * D], work[6 * D * D];
    const float ones[4] = { 1, 1, 1, 1 };
    for (int round = 0; round < 3; round++) {
        float weight[4];
        double gain, energy = 0;
        make_head(&h);
        for (int i = 0; i < D; i++) energy += h.cov[i * (D + 1)];
        for (int j = 0; j < D; j++) {
            float x[D] = { 0 };
            x[j] = 1;
            basis_rotate(x, D, false);
            for (int i = 0; i < D; i++) plain[i * D + j] = (double)x[i];
        }
        kv_basis(basis, weight, &gain, &(KvMoments){ h.cov, h.metric, energy, D }, work);
        assert_true(gain > 0 && gain < 0.6);
        for (int l = 1; l < 4; l++) assert_true(weight[l] <= weight[l - 1] && weight[l] > 0);
        for (int bits = 2; bits <= 3; bits++) {
            double a = cost_of(&h, plain, ones, bits), b = cost_of(&h, basis, weight, bits);
            print_message("k%d: cost %.3f of Hadamard's, expected %.3f\n", bits, b / a, gain);
            assert_true(b < 0.8 * a);
        }
    }
    /* a head that never moves, and one without any cost */
    memset(h.cov, 0, sizeof h.cov);
    double gain;
    float weight[4];
    kv_basis(basis, weight, &gain, &(KvMoments){ h.cov, h.metric, 0, D }, work);
    for (int i = 0; i < D * D; i++) assert_true(isfinite(basis[i]));
    assert_true(basis_invert(basis, work, D));
}

/* ---- the file ---- */

static void write_tiny(const char *to, const Tiny *spec) {
    size_t n;
    FileOut f;
    uint8_t *image = tiny_image(spec, &n);
    assert_int_equal(file_create(&f, to, NULL), 0);
    assert_int_equal(file_write(&f, image, n, NULL), 0);
    assert_int_equal(file_commit(&f, NULL), 0);
    mem_free(NULL, image);
}

static KvCalibrateResult calibrate(const char *model, const char *out, int n_threads) {
    KvCalibrateOptions opt = { .max_tokens = 512, .window = 128, .bos = 1 };
    KvCalibrateResult r;
    DibitError err;
    opt.n_threads = n_threads;
    if (calibrate_kv(model, ids, N_IDS, &opt, out, &r, &err) != 0) die("%s", err.text);
    return r;
}

static DibitEngine *open_with(const char *model, const char *calibration) {
    DibitEngine *e;
    DibitError err;
    DibitOptions opt = { .kv_calibration = calibration };
    if (dibit_open(&e, model, &opt, &err) != 0) die("%s", err.text);
    return e;
}

/* Logits of n tokens, given in batches of the size. */
static float *logits_of(DibitEngine *e, const char *k, const char *v, int n, int batch) {
    DibitSession *s;
    DibitError err;
    DibitSessionOptions opt = { .n_ctx = 256, .n_batch = batch, .cache_k = k, .cache_v = v };
    float *out = calloc((size_t)n * TINY_VOCAB, sizeof *out);
    if (dibit_session_create(&s, e, &opt, &err) != 0) die("%s", err.text);
    for (int i = 0; i < n; i += batch)
        if (dibit_forward(s, ids + i, (size_t)MIN(batch, n - i), out + (size_t)i * TINY_VOCAB,
                          &err) != 0)
            die("%s", err.text);
    dibit_session_free(&s);
    return out;
}

static double distance(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n * TINY_VOCAB; i++) sum += pow((double)(a[i] - b[i]), 2);
    return sqrt(sum / n / TINY_VOCAB);
}

static uint8_t *read_all(const char *name, size_t *n) {
    FileMap f;
    assert_int_equal(file_map(&f, name, true, NULL, NULL), 0);
    uint8_t *copy = malloc(f.size);
    memcpy(copy, f.data, f.size);
    *n = f.size;
    file_unmap(&f);
    return copy;
}

/* A session's rows are of its calibration: another engine does not take them. */
static void saved(DibitEngine *with, DibitEngine *plain, const char *name) {
    DibitSession *a, *b;
    DibitError err = { 0 };
    DibitSessionOptions opt = { .n_ctx = 256, .cache_k = "k2", .cache_v = "k2" };
    if (dibit_session_create(&a, with, &opt, &err) != 0) die("%s", err.text);
    if (dibit_session_create(&b, plain, &opt, &err) != 0) die("%s", err.text);
    if (dibit_sync(a, ids, 100, &err) < 0 || dibit_save(a, name, &err) != 0) die("%s", err.text);
    assert_int_equal(dibit_restore(b, name, &err), DIBIT_E_FORMAT);
    assert_non_null(strstr(err.text, "model"));
    if (dibit_restore(a, name, &err) != 0) die("%s", err.text);
    dibit_session_free(&a);
    dibit_session_free(&b);
}

static void files(void **state) {
    (void)state;
    enum { N = 200 };
    size_t n_a, n_b;
    write_tiny(path("m.gguf"), &(Tiny){ .type = T_F16 });
    KvCalibrateResult r = calibrate(path("m.gguf"), path("a.kvcal"), 1);
    assert_int_equal(r.n_tokens, 512);
    assert_true(r.gain_k > 0 && r.gain_k < 1 && r.gain_v > 0 && r.gain_v < 1);
    calibrate(path("m.gguf"), path("b.kvcal"), 3);
    uint8_t *a = read_all(path("a.kvcal"), &n_a), *b = read_all(path("b.kvcal"), &n_b);
    assert_int_equal(n_a, r.file_bytes);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a); /* at any number of threads */
    free(a);
    free(b);

    /* a cache without records does not know of bases; one with them is nearer to it */
    DibitEngine *plain = open_with(path("m.gguf"), NULL);
    DibitEngine *with = open_with(path("m.gguf"), path("a.kvcal"));
    float *exact = logits_of(plain, "f16", "f16", N, 64),
          *same = logits_of(with, "f16", "f16", N, 64);
    assert_memory_equal(exact, same, N * TINY_VOCAB * sizeof *exact);
    float *k2 = logits_of(plain, "k2", "k2", N, 64), *cal = logits_of(with, "k2", "k2", N, 64);
    float *one = logits_of(with, "k2", "k2", N, 1);
    assert_memory_equal(cal, one, N * TINY_VOCAB * sizeof *cal); /* in any batches */
    print_message("distance %.4f, calibrated %.4f\n", distance(k2, exact, N),
                  distance(cal, exact, N));
    assert_true(distance(cal, exact, N) < distance(k2, exact, N));

    /* put into a model, it does the same */
    QuantizeOptions opt = { .type = "f16", .kv_calibration = path("a.kvcal") };
    DibitError err;
    if (quantize_file(path("m.gguf"), path("in.gguf"), &opt, NULL, &err) != 0) die("%s", err.text);
    DibitEngine *inside = open_with(path("in.gguf"), NULL);
    float *again = logits_of(inside, "k2", "k2", N, 64);
    assert_memory_equal(cal, again, N * TINY_VOCAB * sizeof *cal);
    opt = (QuantizeOptions){ .type = "q8" }; /* and stays there */
    if (quantize_file(path("in.gguf"), path("in8.gguf"), &opt, NULL, &err) != 0)
        die("%s", err.text);
    Gguf *g;
    assert_int_equal(gguf_open(&g, path("in8.gguf"), false, NULL, NULL), 0);
    assert_int_equal(gguf_find(g, "blk.1.kv_v.basis")->type, T_F16);
    assert_non_null(gguf_get(g, "dibit.kv.text_hash"));
    gguf_close(&g);
    saved(with, plain, path("saved"));
    float *all[] = { exact, same, k2, cal, one, again };
    for (size_t i = 0; i < ARRAY_LEN(all); i++) free(all[i]);
    dibit_close(&plain);
    dibit_close(&with);
    dibit_close(&inside);
}

/* ---- refusals ---- */

static void refuse_open(const char *model, const char *calibration, int code, const char *text) {
    DibitEngine *e;
    DibitError err = { 0 };
    DibitOptions opt = { .kv_calibration = calibration };
    assert_int_equal(dibit_open(&e, model, &opt, &err), code);
    if (!strstr(err.text, text)) die("\"%s\" does not say \"%s\"", err.text, text);
}

enum { NOTHING, NO_TENSOR, SINGULAR, BAD_MEAN, BAD_WEIGHT, NOT_F16 };

/* A copy of a calibration with one thing wrong in layer 1. */
static void damage(const char *from, const char *to, int what) {
    Gguf *in;
    GgufWriter *w;
    assert_int_equal(gguf_open(&in, from, true, NULL, NULL), 0);
    assert_int_equal(gguf_writer_create(&w, NULL), 0);
    for (int i = 0; i < gguf_n_values(in); i++) gguf_put_value(w, gguf_value(in, i));
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < gguf_n_tensors(in); i++) {
            const GgufTensor *t = gguf_tensor(in, i);
            bool basis = strcmp(t->name, "blk.1.kv_v.basis") == 0;
            if (what == NO_TENSOR && basis) continue;
            if (pass == 0) {
                int type = what == NOT_F16 && basis ? T_BF16 : t->type;
                gguf_put_tensor(w, t->name, type, t->n_dims, t->ne, t->n_bytes);
                continue;
            }
            uint8_t *copy = malloc(t->n_bytes);
            memcpy(copy, t->data, t->n_bytes);
            if (what == SINGULAR && basis) memset(copy, 0, 2 * D);
            float bad = what == BAD_MEAN ? INFINITY : -1;
            if ((what == BAD_MEAN && strcmp(t->name, "blk.1.kv_k.mean") == 0) ||
                (what == BAD_WEIGHT && strcmp(t->name, "blk.1.kv_k.weight") == 0))
                memcpy(copy + 4, &bad, 4);
            assert_int_equal(gguf_write(w, copy, t->n_bytes, NULL), 0);
            free(copy);
        }
        if (pass == 0) assert_int_equal(gguf_begin(w, to, NULL), 0);
    }
    assert_int_equal(gguf_finish(w, NULL), 0);
    gguf_writer_free(&w);
    gguf_close(&in);
}

static void refusals(void **state) {
    (void)state;
    const char *m = path("m.gguf"), *cal = path("r.kvcal"), *bad = path("bad.kvcal");
    static const struct {
        int what, code;
        const char *text;
    } rows[] = { { NO_TENSOR, DIBIT_E_FORMAT, "blk.1.kv_v.basis: the tensor is missing" },
                 { SINGULAR, DIBIT_E_FORMAT, "blk.1.kv_v.basis: head 0 has no inverse" },
                 { BAD_MEAN, DIBIT_E_FORMAT, "blk.1.kv_k.mean" },
                 { BAD_WEIGHT, DIBIT_E_FORMAT, "blk.1.kv_k.weight" },
                 { NOT_F16, DIBIT_E_FORMAT, "not of type f16" } };
    write_tiny(m, &(Tiny){ .type = T_F16 });
    calibrate(m, cal, 1);
    damage(cal, bad, NOTHING);
    DibitEngine *e = open_with(m, bad);
    dibit_close(&e);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        damage(cal, bad, rows[i].what);
        refuse_open(m, bad, rows[i].code, rows[i].text);
    }
    refuse_open(m, m, DIBIT_E_FORMAT, "not a file of `dibit calibrate kv`");
    refuse_open(m, path("none"), DIBIT_E_IO, "none");
    write_tiny(path("other.gguf"), &(Tiny){ .type = T_F16, .arch = "qwen3" });
    refuse_open(path("other.gguf"), cal, DIBIT_E_ARGUMENT, "made with another model");
    QuantizeOptions q = { .type = "q8", .kv_calibration = cal };
    DibitError why = { 0 };
    assert_int_equal(quantize_file(path("other.gguf"), path("x.gguf"), &q, NULL, &why),
                     DIBIT_E_ARGUMENT);
    assert_non_null(strstr(why.text, "made with another model"));
    assert_int_not_equal(access(path("x.gguf"), F_OK), 0);

    DibitError err = { 0 };
    KvCalibrateResult r;
    KvCalibrateOptions opt = { .window = 1000, .bos = 1 };
    assert_int_equal(calibrate_kv(m, ids, N_IDS, &opt, bad, &r, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "600 tokens"));
    opt.window = 8;
    assert_int_equal(calibrate_kv(m, ids, N_IDS, &opt, bad, &r, &err), DIBIT_E_ARGUMENT);
    write_tiny(path("nan.gguf"), &(Tiny){ .type = T_F32, .nan = "blk.1.attn_k.weight" });
    opt.window = 128;
    assert_int_equal(calibrate_kv(path("nan.gguf"), ids, N_IDS, &opt, bad, &r, &err),
                     DIBIT_E_NUMERIC);
    assert_int_equal(calibrate_kv(m, ids, N_IDS, &opt, "/nowhere/x", &r, &err), DIBIT_E_IO);
}

static int stop(void *user, const char *step, uint64_t done, uint64_t total) {
    (void)user, (void)step, (void)total;
    return done == 2;
}

static void stopped(void **state) {
    (void)state;
    DibitError err = { 0 };
    KvCalibrateResult r;
    KvCalibrateOptions opt = { .window = 64, .bos = 1, .progress = stop };
    const char *m = path("m.gguf"), *out = path("stopped.kvcal");
    write_tiny(m, &(Tiny){ .type = T_F16 });
    assert_int_equal(calibrate_kv(m, ids, N_IDS, &opt, out, &r, &err), DIBIT_E_CANCELLED);
    assert_int_not_equal(access(out, F_OK), 0);
}

/* ---- types ---- */

static void types(void **state) {
    (void)state;
    const char *m = path("m.gguf"), *cal = path("t.kvcal");
    DibitError err = { 0 };
    DibitSession *s;
    DibitSessionOptions so = { .n_ctx = 256, .cache_layers = "auto" };
    KvCalibrateOptions opt = { .window = 256, .bos = 1, .budget = 2.5 };
    write_tiny(m, &(Tiny){ .type = T_F16, .gain = 3 });
    KvCalibrateResult r = calibrate(m, cal, 1);
    DibitEngine *e = open_with(m, cal);
    assert_int_equal(dibit_session_create(&s, e, &so, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "--budget"));
    if (calibrate_kv_types(e, ids, N_IDS, &opt, &r, &err) != 0) die("%s", err.text);
    int three = 0;
    for (const char *p = r.layers; *p; p++) three += *p == '3';
    assert_int_equal(three, TINY_LAYERS);
    assert_true(r.bits == 2.5 && r.kld_k3 < r.kld_k2 && r.kld < r.kld_k2);
    for (int i = 0; i < 2 * TINY_LAYERS; i++) assert_true(r.costs[i].kld[0] > r.costs[i].kld[1]);
    if (calibrate_kv_add_types(cal, &r, &err) != 0) die("%s", err.text);
    dibit_close(&e);
    e = open_with(m, cal);
    DibitMemory automatic, named;
    assert_int_equal(dibit_session_memory(e, &so, &automatic, &err), 0);
    so.cache_layers = r.layers;
    assert_int_equal(dibit_session_memory(e, &so, &named, &err), 0);
    assert_int_equal(automatic.kv, named.kv);
    opt.budget = 4;
    KvCalibrateResult unused = { 0 };
    assert_int_equal(calibrate_kv_types(e, ids, N_IDS, &opt, &unused, &err), DIBIT_E_ARGUMENT);
    dibit_close(&e);
    mem_free(NULL, r.costs);
    mem_free(NULL, r.layers);
}

/* ---- the base model ---- */

#define SHARED SOURCE_DIR "/../shared/text/"
static int64_t read_ids(const DibitEngine *e, const char *name, int32_t *out, size_t cap) {
    FileMap text;
    DibitError err = { 0 };
    if (file_map(&text, name, false, NULL, &err) != 0) return 0;
    int64_t n =
        dibit_tokenize(e, (const char *)text.data, MIN(text.size, 6 * cap), 0, out, cap, &err);
    file_unmap(&text);
    return MIN(n, (int64_t)cap);
}

/* The bases of a part of one text more than halve what two bits cost on another. */
static void quality(void **state) {
    (void)state;
    enum { N = 9000, W = 1024 };
    const char *m = SOURCE_DIR "/models/dibit-34m.gguf", *cal = path("q.kvcal");
    DibitEngine *e = open_with(m, NULL);
    int32_t *text = malloc(N * sizeof *text);
    const char *types[] = { "k2", "k3" };
    EvalOptions opt = { .window = W, .max_windows = 1, .n_settings = 2 };
    EvalResult before[2], after[2];
    DibitError err = { 0 };
    KvCalibrateResult r;
    opt.cache_k = opt.cache_v = types;
    int64_t n = read_ids(e, SHARED "calibration.txt", text, N);
    if (n == 0) {
        print_message("skipped: no ../shared/text\n");
        free(text);
        dibit_close(&e);
        skip();
    }
    KvCalibrateOptions c = { .window = W, .max_tokens = 8 * W, .bos = 0 };
    if (calibrate_kv(m, text, (size_t)n, &c, cal, &r, &err) != 0) die("%s", err.text);
    n = read_ids(e, SHARED "wikitext2-valid.txt", text, W);
    assert_int_equal(n, W);
    DibitEngine *with = open_with(m, cal);
    if (evaluate_text(e, e, text, W, &opt, before, &err) != 0) die("%s", err.text);
    if (evaluate_text(with, e, text, W, &opt, after, &err) != 0) die("%s", err.text);
    for (int i = 0; i < 2; i++)
        print_message("%s: KLD %.4f, calibrated %.4f\n", types[i], before[i].kld_mean.mean,
                      after[i].kld_mean.mean);
    assert_true(after[0].kld_mean.mean < 0.5 * before[0].kld_mean.mean);
    assert_true(after[1].kld_mean.mean < 0.8 * before[1].kld_mean.mean);
    dibit_close(&with);
    dibit_close(&e);
    free(text);
}

static int make_folder(void **state) {
    (void)state;
    for (int i = 0; i < N_IDS; i++) ids[i] = 3 + (int32_t)(uniform() * 250);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inverses), cmocka_unit_test(bases_cost_less), cmocka_unit_test(files),
        cmocka_unit_test(refusals), cmocka_unit_test(stopped),         cmocka_unit_test(types),
        cmocka_unit_test(quality),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
