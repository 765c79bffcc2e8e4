/* model.c - the forward pass: golden logits and greedy texts of known models, and for every tensor
 * type the same bits for any batch, thread count, instruction set and form of the rows. */
#define _GNU_SOURCE
#include "tiny.h"

#include <jansson.h>
#include <unistd.h>

#include "convert.h"
#include "dibit.h"
#include "kern/kern.h"

#define SHARED SOURCE_DIR "/../shared/"
static char work_dir[] = "/tmp/dibit-test-XXXXXX";

static json_t *load(const char *path) {
    json_t *j = json_load_file(path, 0, NULL);
    if (!j) die("%s: cannot be read", path);
    return j;
}

static size_t get_ids(const json_t *array, int32_t *ids, size_t cap) {
    size_t n = json_array_size(array);
    assert_true(n <= cap);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return n;
}

static DibitEngine *engine_of(const char *path, const DibitOptions *opt) {
    DibitEngine *e;
    DibitError err;
    if (dibit_open(&e, path, opt, &err) != 0) die("%s: %s", path, err.text);
    return e;
}

static DibitSession *session_of(DibitEngine *e, int n_ctx, int n_batch) {
    DibitSession *s;
    DibitError err;
    DibitSessionOptions opt = { .n_ctx = n_ctx, .n_batch = n_batch };
    if (dibit_session_create(&s, e, &opt, &err) != 0) die("%s", err.text);
    return s;
}

static int argmax(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Whether `want` is our best token, or so near to it that either may win; says so then. */
static int is_best(const float *logits, int n_vocab, int want, const char *what, size_t at) {
    int got = argmax(logits, n_vocab);
    if (got == want) return 1;
    if (logits[got] - logits[want] >= 1e-3f) return 0;
    print_message("%s: position %zu is a near tie (%d and %d, %g apart)\n", what, at, got, want,
                  (double)(logits[got] - logits[want]));
    return 1;
}

static void check_golden(const char *gguf, const char *golden, int n_batch) {
    DibitEngine *e = engine_of(gguf, NULL);
    DibitSession *s = session_of(e, 512, n_batch);
    DibitModelInfo info;
    DibitError err = { 0 };
    json_t *j = load(golden);
    int32_t ids[256];
    size_t n = get_ids(json_object_get(j, "input_ids"), ids, ARRAY_LEN(ids));
    const json_t *last = json_object_get(j, "logits_last"), *best = json_object_get(j, "argmax");
    dibit_model_info(e, &info);
    float *logits = malloc(n * (size_t)info.n_vocab * sizeof *logits);
    if (dibit_forward(s, ids, n, logits, &err) != 0) die("%s: %s", gguf, err.text);
    assert_int_equal(json_array_size(best), n);
    assert_int_equal(json_array_size(last), info.n_vocab);
    for (size_t t = 0; t < n; t++)
        assert_true(is_best(logits + t * (size_t)info.n_vocab, info.n_vocab,
                            (int)json_integer_value(json_array_get(best, t)), golden, t));
    double worst = 0, largest = 0;
    for (int i = 0; i < info.n_vocab; i++) {
        double want = json_number_value(json_array_get(last, (size_t)i));
        double got = (double)logits[(n - 1) * (size_t)info.n_vocab + (size_t)i];
        worst = fmax(worst, fabs(got - want));
        largest = fmax(largest, fabs(want));
    }
    print_message("%s: %zu positions, largest error %.2g of the largest logit\n", golden, n,
                  worst / largest);
    assert_true(worst <= 2e-3 * largest);
    free(logits);
    json_decref(j);
    dibit_session_free(&s);
    dibit_close(&e);
}

static void golden_of_architectures(void **state) {
    (void)state;
    static const char *const names[] = { "llama", "mistral", "qwen2", "qwen3" };
    char gguf[256], golden[256];
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(gguf, sizeof gguf, SOURCE_DIR "/tests/data/%s.gguf", names[i]);
        snprintf(golden, sizeof golden, SOURCE_DIR "/tests/data/%s.json", names[i]);
        check_golden(gguf, golden, 0);
        check_golden(gguf, golden, 5);
    }
}

/* Converts a checkpoint of ../shared into the work directory. */
static const char *convert(const char *dir, const char *type, int no_vocab) {
    static char out[256];
    char in[256];
    DibitError err;
    ConvertResult result;
    snprintf(in, sizeof in, SHARED "models/%s", dir);
    snprintf(out, sizeof out, "%s/%s.gguf", work_dir, type);
    ConvertOptions opt = { .dir = in, .out = out, .type = type, .no_vocab = no_vocab };
    if (convert_model(&opt, &result, &err) != 0) die("%s: %s", dir, err.text);
    return out;
}

static void need_shared(void) {
    if (access(SHARED "models/base-34m/config.json", R_OK) != 0) {
        print_message("../shared is not there\n");
        skip();
    }
}

static void golden_of_checkpoints(void **state) {
    (void)state;
    need_shared();
    static const char *const names[] = { "llama",   "llama3-rope", "llama-linear-rope",
                                         "mistral", "qwen2",       "qwen3" };
    char dir[64], golden[256];
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(dir, sizeof dir, "tiny/%s", names[i]);
        snprintf(golden, sizeof golden, SHARED "models/%s/golden.json", dir);
        const char *gguf = convert(dir, "f32", 1);
        check_golden(gguf, golden, 0);
        unlink(gguf);
    }
}

/* 64 greedy tokens of three prompts. A near tie ends the comparison of its prompt. */
static void check_greedy(const char *gguf) {
    DibitEngine *e = engine_of(gguf, NULL);
    DibitSession *s = session_of(e, 512, 0);
    DibitModelInfo info;
    DibitError err = { 0 };
    json_t *all = load(SHARED "models/base-34m/golden/greedy.json");
    dibit_model_info(e, &info);
    for (size_t p = 0; p < json_array_size(all); p++) {
        const json_t *j = json_array_get(all, p);
        int32_t ids[64], want[64];
        size_t n = get_ids(json_object_get(j, "ids"), ids, ARRAY_LEN(ids));
        size_t n_want = get_ids(json_object_get(j, "greedy"), want, ARRAY_LEN(want));
        assert_true(n_want > 0);
        if (dibit_sync(s, ids, n, &err) < 0) die("%s", err.text);
        for (size_t i = 0; i < n_want; i++) {
            DibitPiece piece;
            const float *logits = dibit_last_logits(s);
            int more = dibit_next(s, &piece, &err);
            if (more < 0) die("%s", err.text);
            if (piece.id != want[i]) {
                const int32_t *so_far;
                size_t n_so_far = dibit_tokens(s, &so_far);
                assert_non_null(so_far);
                if (more) n_so_far--; /* the logits that chose it */
                if (!logits) assert_true(dibit_sync(s, so_far, n_so_far, &err) >= 0);
                logits = dibit_last_logits(s);
                assert_non_null(logits);
                if (!is_best(logits, info.n_vocab, want[i], "greedy", i))
                    die("prompt %zu, token %zu: %d instead of %d", p, i, piece.id, want[i]);
                break;
            }
            if (!more) break; /* the end token was the expected one */
        }
    }
    json_decref(all);
    dibit_session_free(&s);
    dibit_close(&e);
}

static void golden_of_base(void **state) {
    (void)state;
    need_shared();
    static const char *const types[] = { "bf16", "f16" };
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        const char *gguf = convert("base-34m", types[i], 0);
        check_golden(gguf, SHARED "models/base-34m/golden/golden.json", 0);
        check_greedy(gguf);
        unlink(gguf);
    }
}

/* ---- every type, on small random models ---- */

enum { N_IDS = 40 };

/* Logits of all positions of one fixed text, in batches. */
static float *logits_of(const uint8_t *image, size_t size, const DibitOptions *opt, int n_batch) {
    DibitEngine *e;
    DibitError err = { 0 };
    if (dibit_open_memory(&e, image, size, opt, &err) != 0) die("%s", err.text);
    DibitSession *s = session_of(e, 64, n_batch);
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * 37 + 5) % TINY_VOCAB;
    float *logits = malloc(N_IDS * TINY_VOCAB * sizeof *logits);
    if (dibit_forward(s, ids, N_IDS, logits, &err) != 0) die("%s", err.text);
    dibit_session_free(&s);
    dibit_close(&e);
    return logits;
}

static void expect_same(const char *type, const char *how, float *got, const float *want) {
    for (int i = 0; i < N_IDS * TINY_VOCAB; i++)
        if (memcmp(&got[i], &want[i], 4) != 0)
            die("%s, %s: logit %d of position %d is %.9g, not %.9g", type, how, i % TINY_VOCAB,
                i / TINY_VOCAB, (double)got[i], (double)want[i]);
    free(got);
}

static void any_way_the_same_bits(void **state) {
    (void)state;
    char how[64];
    const TypeInfo *t;
    for (int k = 0; (t = type_at(k)); k++) {
        size_t size;
        uint8_t *image = tiny_image(&(Tiny){ .type = t->id }, &size);
        float *want = logits_of(image, size, &(DibitOptions){ .n_threads = 1 }, 64);
        for (int threads = 1; threads <= 4; threads++)
            for (int batch = 1; batch <= 64; batch = batch * 4 + 3) {
                DibitOptions opt = { .n_threads = threads, .no_repack = batch == 7 };
                snprintf(how, sizeof how, "%d threads, batches of %d", threads, batch);
                expect_same(t->name, how, logits_of(image, size, &opt, batch), want);
            }
        for (unsigned isa = 1; isa <= DIBIT_ISA_NEONDOT; isa *= 2) {
            if (!(isa & isa_detect())) continue;
            DibitOptions opt = { .n_threads = 2, .isa_mask = isa };
            snprintf(how, sizeof how, "instruction set %u", isa);
            expect_same(t->name, how, logits_of(image, size, &opt, 64), want);
        }
        expect_same(t->name, "no_repack",
                    logits_of(image, size, &(DibitOptions){ .n_threads = 1, .no_repack = 1 }, 64),
                    want);
        free(want);
        mem_free(NULL, image);
    }
}

/* Each type against its own weights as f32; what differs is the rounding of the activations. */
static void types_agree_with_f32(void **state) {
    (void)state;
    const TypeInfo *t;
    for (int k = 0; (t = type_at(k)); k++) {
        size_t size, size32;
        uint8_t *image = tiny_image(&(Tiny){ .type = t->id }, &size);
        uint8_t *image32 = tiny_image(&(Tiny){ .type = t->id, .f32_of = 1 }, &size32);
        float *got = logits_of(image, size, NULL, 64), *want = logits_of(image32, size32, NULL, 64);
        double error = 0, power = 0;
        for (int i = 0; i < N_IDS * TINY_VOCAB; i++) {
            error += pow((double)got[i] - (double)want[i], 2);
            power += pow((double)want[i], 2);
        }
        print_message("%s: error %.2g of the logits' norm\n", t->name, sqrt(error / power));
        /* one scale for all inputs of a token rounds more coarsely than one for 32 */
        double most = t->block_len == 1 ? 1e-6 : trellis_bits(t->id) ? 0.05 : 0.03;
        assert_true(power > 0 && sqrt(error / power) < most);
        free(got);
        free(want);
        mem_free(NULL, image);
        mem_free(NULL, image32);
    }
}

static int set_up(void **state) {
    (void)state;
    return mkdtemp(work_dir) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    return rmdir(work_dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_of_architectures), cmocka_unit_test(golden_of_checkpoints),
        cmocka_unit_test(golden_of_base),          cmocka_unit_test(any_way_the_same_bits),
        cmocka_unit_test(types_agree_with_f32),
    };
    return cmocka_run_group_tests_name("model", tests, set_up, tear_down);
}
