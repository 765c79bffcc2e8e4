/* gpu_model.c - whole models on a GPU beside the CPU: logits of small random models of every
 * architecture, types and caches, the repository's model token by token, and what goes wrong. Runs
 * on a software adapter; skipped where there is none. */
#define _POSIX_C_SOURCE 200809L
#include "tiny.h"

#include <time.h>

#include "backend.h"
#include "gpu/step.h"
#include "gpu_test.h"

static bool no_wait;

static struct DibitBackend *test_backend(void) {
    struct DibitBackend *b;
    DibitError err;
    GpuOptions opt = test_gpu_options();
    opt.no_wait = no_wait;
    if (gpu_backend(&b, &opt, NULL, &err) == 0) return b;
    print_error("%s\n", err.text);
    return NULL;
}

typedef struct Pair { /* the same model on the CPU and on the GPU */
    uint8_t *image;
    DibitEngine *cpu, *gpu;
    DibitSession *a, *b;
    struct DibitBackend *backend;
    int n_vocab;
} Pair;

static void open_pair(Pair *p, const Tiny *spec, const char *path, const DibitSessionOptions *so) {
    DibitError err = { 0 };
    DibitOptions opt = { .n_threads = 1, .isa_mask = DIBIT_ISA_SCALAR };
    DibitModelInfo info;
    size_t size;
    *p = (Pair){ 0 };
    if (path) {
        opt.isa_mask = 0;
        assert_int_equal(dibit_open(&p->cpu, path, &opt, &err), 0);
        opt.backend = p->backend = test_backend();
        if (dibit_open(&p->gpu, path, &opt, &err) != 0) die("%s", err.text);
    } else {
        p->image = tiny_image(spec, &size);
        assert_int_equal(dibit_open_memory(&p->cpu, p->image, size, &opt, &err), 0);
        opt.backend = p->backend = test_backend();
        if (dibit_open_memory(&p->gpu, p->image, size, &opt, &err) != 0) die("%s", err.text);
    }
    dibit_model_info(p->gpu, &info);
    assert_string_equal(info.isa, "webgpu");
    p->n_vocab = info.n_vocab;
    assert_int_equal(dibit_session_create(&p->a, p->cpu, so, &err), 0);
    if (dibit_session_create(&p->b, p->gpu, so, &err) != 0) die("%s", err.text);
}

static void close_pair(Pair *p) {
    dibit_session_free(&p->a);
    dibit_session_free(&p->b);
    dibit_close(&p->cpu);
    dibit_close(&p->gpu);
    mem_free(NULL, p->image);
}

/* Root mean square of the difference of the logits, as a share of their spread. */
static double logits_error(const Pair *p, const float *a, const float *b) {
    double mean = 0, spread = 0, error = 0;
    for (int i = 0; i < p->n_vocab; i++) mean += (double)a[i] / p->n_vocab;
    for (int i = 0; i < p->n_vocab; i++) {
        spread += ((double)a[i] - mean) * ((double)a[i] - mean);
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    }
    return sqrt(error / spread);
}

/* Bounds: float sums in another order move some int8 codes of activations by one: 2 % of the
 * spread; f32 and f16 have no codes: 2e-4. Where a key differs by one code its record may be
 * another one, as good but not the same: 10 %. */
static void compare(const Tiny *spec, const char *cache, int n, double bound) {
    Pair p;
    DibitError err;
    DibitSessionOptions so = { .n_ctx = 128, .cache_k = cache, .cache_v = cache };
    so.cache_window = 16;
    open_pair(&p, spec, NULL, &so);
    int32_t ids[128];
    for (int i = 0; i < n; i++) ids[i] = 3 + (i * 37 + i * i) % 250;
    for (int i = 3; i <= n; i += i < 8 ? 1 : 11) {
        assert_true(dibit_sync(p.a, ids, (size_t)i, &err) > 0);
        if (dibit_sync(p.b, ids, (size_t)i, &err) <= 0) die("%s", err.text);
        double e = logits_error(&p, dibit_last_logits(p.a), dibit_last_logits(p.b));
        if (getenv("VERBOSE")) printf("%s %s %d: %g\n", type_info(spec->type)->name, cache, i, e);
        if (!(e <= bound))
            print_error("%s %s, cache %s, %d tokens: error %g\n", spec->arch ? spec->arch : "llama",
                        type_info(spec->type)->name, cache, i, e);
        assert_true(e <= bound);
    }
    /* back to a shorter text, then on again */
    ids[n - 4] = 9;
    assert_true(dibit_sync(p.a, ids, (size_t)n, &err) > 0);
    assert_true(dibit_sync(p.b, ids, (size_t)n, &err) > 0);
    double e = logits_error(&p, dibit_last_logits(p.a), dibit_last_logits(p.b));
    if (!(e <= bound)) print_error("after a cut: error %g\n", e);
    assert_true(e <= bound);
    close_pair(&p);
}

static void test_models(void **state) {
    (void)state;
    compare(&(Tiny){ .type = T_F16 }, "f16", 20, 2e-4);
    compare(&(Tiny){ .type = T_F32, .arch = "qwen2" }, "f16", 20, 2e-4);
    compare(&(Tiny){ .type = T_Q4_0, .arch = "qwen3" }, "q8", 20, 0.02);
    compare(&(Tiny){ .type = T_S2 }, "k2", 70, 0.1);
    compare(&(Tiny){ .type = T_S3, .arch = "qwen2" }, "k3", 50, 0.1);
    compare(&(Tiny){ .type = T_T2 }, "f16", 20, 0.02);
    compare(&(Tiny){ .type = T_T3, .arch = "qwen3" }, "f16", 20, 0.02);
}

/* Distance of the two largest. */
static double margin(const float *x, int n) {
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < n; i++)
        if (x[i] > first)
            second = first, first = x[i];
        else if (x[i] > second)
            second = x[i];
    return (double)first - (double)second;
}

/* 64 greedy tokens of the repository's model are the CPU's; where one is not, the CPU's two best
 * logits must lie within 1e-3, and the comparison ends. */
static void test_greedy(void **state) {
    (void)state;
    Pair p;
    DibitError err;
    DibitPiece a, b;
    static const char prompt[] = "The history of the city begins";
    DibitSessionOptions so = { .n_ctx = 128 };
    int32_t ids[32];
    open_pair(&p, NULL, SOURCE_DIR "/models/dibit-34m.gguf", &so);
    int64_t n = dibit_tokenize(p.cpu, prompt, sizeof prompt - 1, DIBIT_ADD_BOS, ids, 32, &err);
    assert_true(dibit_sync(p.a, ids, (size_t)n, &err) == n);
    assert_true(dibit_sync(p.b, ids, (size_t)n, &err) == n);
    int same = 0;
    float *logits = malloc((size_t)p.n_vocab * sizeof *logits);
    for (int more = 1; same < 64 && more; same++) {
        const int32_t *past;
        size_t held = dibit_tokens(p.a, &past);
        if (same > 0) /* the logits that the next token is taken from */
            assert_true(dibit_sync(p.a, past, held, &err) >= 0);
        memcpy(logits, dibit_last_logits(p.a), (size_t)p.n_vocab * sizeof *logits);
        more = dibit_next(p.a, &a, &err);
        assert_int_equal(more, dibit_next(p.b, &b, &err));
        if (a.id == b.id) continue;
        print_message(
            "token %d is %d on the GPU, %d on the CPU, whose two best logits are %g apart\n", same,
            (int)b.id, (int)a.id, margin(logits, p.n_vocab));
        assert_true(margin(logits, p.n_vocab) < 1e-3);
        break;
    }
    print_message("%d tokens are the same\n", same);
    free(logits);
    close_pair(&p);
}

static void test_refusals(void **state) {
    (void)state;
    Pair p;
    DibitError err;
    DibitSessionOptions so = { .n_ctx = 64 };
    open_pair(&p, &(Tiny){ .type = T_Q8_0 }, NULL, &so);
    DibitSession *other;
    const int32_t ids[3] = { 1, 40, 41 };
    so.cache_k = "q4";
    assert_int_equal(dibit_session_create(&other, p.gpu, &so, &err), DIBIT_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "q4"));
    /* a cancelled pass leaves what was there, and the next one goes on */
    assert_true(dibit_sync(p.b, ids, 2, &err) == 2);
    dibit_cancel(p.b);
    assert_int_equal(dibit_sync(p.b, ids, 3, &err), DIBIT_E_CANCELLED);
    assert_int_equal(dibit_tokens(p.b, NULL), 2);
    assert_true(dibit_sync(p.b, ids, 3, &err) == 1);
    close_pair(&p);
}

/* Polling without a pause would take the core that a software GPU computes on. */
static void pause_for(int64_t *waits) {
    nanosleep(&(struct timespec){ .tv_nsec = 500000 }, NULL);
    ++*waits;
}

/* A backend of a host says that its device is gone, again and again, and everything can be freed.
 */
static void test_lost(void **state) {
    (void)state;
    Pair p;
    DibitError err;
    DibitPiece piece;
    int r;
    const int32_t ids[3] = { 1, 40, 41 };
    DibitSessionOptions so = { .n_ctx = 64 };
    no_wait = true;
    open_pair(&p, &(Tiny){ .type = T_Q8_0 }, NULL, &so);
    no_wait = false;
    int64_t waits = 0;
    while ((r = (int)dibit_sync(p.b, ids, 3, &err)) == DIBIT_WAIT) pause_for(&waits);
    assert_true(r >= 0);
    gpu_lose(gpu_of_backend(p.backend));
    assert_int_equal(dibit_next(p.b, &piece, &err), 1); /* logits are there */
    assert_int_equal(dibit_next(p.b, &piece, &err), DIBIT_E_DEVICE);
    assert_int_equal(dibit_next(p.b, &piece, &err), DIBIT_E_DEVICE);
    assert_int_equal(dibit_tokens(p.b, NULL), 4);
    close_pair(&p);
}

/* A backend that does not block: every call is made until it is done, with no token computed twice
 * or lost; a result that nobody awaits any more is let go. */
static void test_no_wait(void **state) {
    (void)state;
    Pair p;
    DibitError err;
    DibitPiece a, b;
    int64_t r, waits = 0;
    int32_t ids[70];
    DibitSessionOptions so = { .n_ctx = 128 };
    no_wait = true;
    open_pair(&p, &(Tiny){ .type = T_F32 }, NULL, &so);
    no_wait = false;
    for (int i = 0; i < 70; i++) ids[i] = 3 + (i * 37 + i * i) % 250;
    assert_int_equal(dibit_forward(p.a, ids, 66, NULL, &err), 0);
    while ((r = dibit_forward(p.b, ids, 66, NULL, &err)) == DIBIT_WAIT) pause_for(&waits);
    assert_int_equal(r, 0);
    assert_true(waits > 0); /* not more passes than that are under way */
    assert_int_equal(dibit_tokens(p.b, NULL), 66);
    ids[69] = 7;
    assert_int_equal(dibit_sync(p.b, ids, 70, &err), DIBIT_WAIT); /* and then something else */
    ids[69] = 8;
    while ((r = dibit_sync(p.b, ids, 70, &err)) == DIBIT_WAIT) pause_for(&waits);
    assert_true(r >= 0);
    assert_int_equal(dibit_sync(p.a, ids, 70, &err), 4);
    assert_true(logits_error(&p, dibit_last_logits(p.a), dibit_last_logits(p.b)) < 2e-4);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(dibit_next(p.a, &a, &err), 1);
        while ((r = dibit_next(p.b, &b, &err)) == DIBIT_WAIT) pause_for(&waits);
        assert_int_equal(r, 1);
        assert_int_equal(a.id, b.id);
    }
    assert_int_equal(dibit_tokens(p.b, NULL), 76);
    assert_int_equal(dibit_next(p.b, &b, &err), DIBIT_WAIT);
    close_pair(&p); /* with a pass under way */
}

/* Tokens drawn from the largest logits are those that are drawn from all of them, which come back
 * after dibit_sync(). */
static void test_drawn(void **state) {
    (void)state;
    int64_t waits = 0;
    Pair p;
    DibitError err;
    DibitPiece a, b;
    DibitSession *all;
    const int32_t ids[3] = { 1, 40, 41 }, *past;
    DibitSessionOptions so = { .n_ctx = 64, .sampling = { 0.9f, 40, 0.95f, 0.01f, 0, 0, 11 } };
    int more, r;
    no_wait = true;
    open_pair(&p, &(Tiny){ .type = T_S2 }, NULL, &so);
    no_wait = false;
    assert_int_equal(dibit_session_create(&all, p.gpu, &so, &err), 0);
    while ((r = (int)dibit_sync(p.b, ids, 3, &err)) == DIBIT_WAIT) pause_for(&waits);
    assert_true(r > 0);
    while ((r = (int)dibit_sync(all, ids, 3, &err)) == DIBIT_WAIT) pause_for(&waits);
    assert_true(r > 0);
    for (int i = 0; i < 40; i++) {
        while ((more = dibit_next(p.b, &b, &err)) == DIBIT_WAIT) pause_for(&waits);
        size_t n = dibit_tokens(all, &past);
        while ((r = (int)dibit_sync(all, past, n, &err)) == DIBIT_WAIT) pause_for(&waits);
        assert_true(r >= 0);
        assert_non_null(dibit_last_logits(all));
        assert_int_equal(dibit_next(all, &a, &err), more);
        assert_int_equal(a.id, b.id);
        assert_null(dibit_last_logits(p.b)); /* none came back */
        if (more != 1) break;
    }
    dibit_session_free(&all);
    close_pair(&p);
}

/* A NaN in a weight is an error that names the tensor, with logits and without. */
static void test_nonfinite(void **state) {
    (void)state;
    Pair p;
    DibitError err;
    DibitSessionOptions so = { .n_ctx = 64 };
    const int32_t ids[2] = { 1, 40 };
    open_pair(&p, &(Tiny){ .type = T_F32, .nan = "blk.1.ffn_up.weight" }, NULL, &so);
    assert_int_equal(dibit_sync(p.b, ids, 2, &err), DIBIT_E_NUMERIC);
    assert_non_null(strstr(err.text, "blk.1.ffn_up.weight"));
    close_pair(&p);
}

int main(int n, char **arg) {
    if (!test_gpu_begin(n, arg)) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_lost),    cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_no_wait), cmocka_unit_test(test_drawn),
        cmocka_unit_test(test_greedy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
