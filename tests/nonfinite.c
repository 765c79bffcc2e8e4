/* nonfinite.c - NaN, infinity and numbers that a row cannot hold never pass silently: with every
 * cache type and instruction set the pass that meets one ends in an error, whether it computes
 * logits or not, and the session can be used after it. */
#include "tiny.h"

#include "dibit.h"
#include "session.h"

static DibitEngine *engine;
static uint8_t *image;
static DibitError err;

static const struct {
    const char *k, *v;
    int sinks, window;
} settings[] = {
    { "f16", "f16", 0, 0 }, { "q8", "q8", 0, 0 }, { "q4", "q4", 0, 0 },
    { "k3", "k3", -1, -1 }, { "k2", "k2", 0, 0 },
};

typedef struct Poison { /* what a tap does to the first activations of its kind */
    ModelTap what;
    int layer, token, at;
    float value;
} Poison;

static void poison(void *user, ModelTap what, int layer, const float *x, int n) {
    const Poison *p = user;
    static const int width[] = { [TAP_QKV] = TINY_EMBD,
                                 [TAP_Q] = TINY_HEADS * TINY_HEAD,
                                 [TAP_K] = TINY_KV * TINY_HEAD,
                                 [TAP_V] = TINY_KV * TINY_HEAD,
                                 [TAP_O] = TINY_HEADS * TINY_HEAD,
                                 [TAP_GATE_UP] = TINY_EMBD,
                                 [TAP_DOWN] = TINY_FF,
                                 [TAP_OUTPUT] = TINY_EMBD };
    if (what != p->what || layer != p->layer) return;
    int token = p->token < n ? p->token : n - 1;
    ((float *)(uintptr_t)x)[token * width[what] + p->at] = p->value;
}

static DibitSession *session(DibitEngine *e, size_t t) {
    DibitSession *s;
    DibitSessionOptions opt = { .n_ctx = 200, .n_batch = 32, .cache_k = settings[t].k };
    opt.cache_v = settings[t].v;
    opt.cache_sinks = settings[t].sinks;
    opt.cache_window = settings[t].window;
    if (dibit_session_create(&s, e, &opt, &err) != 0) die("%s", err.text);
    return s;
}

static void some_ids(int32_t *ids, int n) {
    for (int i = 0; i < n; i++) ids[i] = 3 + (int32_t)(hash64(4, &i, sizeof i) % (TINY_VOCAB - 3));
}

/* n tokens after 12, which end in an error; after it all is as if they had not been. */
static void expect_error(DibitEngine *e, size_t t, Poison p, size_t n, bool logits) {
    DibitSession *s = session(e, t);
    int32_t ids[100];
    float *out = malloc(100 * TINY_VOCAB * sizeof *out);
    some_ids(ids, 100);
    if (dibit_sync(s, ids, 12, &err) != 12) die("%s", err.text);
    s->scratch.tap = poison;
    s->scratch.tap_user = &p;
    err = (DibitError){ 0 };
    int r = dibit_forward(s, ids + 12, n, logits ? out : NULL, &err);
    if (r != DIBIT_E_NUMERIC || err.code != r || !strstr(err.text, "not finite"))
        die("%s/%s, kind %d, %g in layer %d, token %d of %zu, logits %d: %d %s", settings[t].k,
            settings[t].v, p.what, (double)p.value, p.layer, p.token, n, logits, r, err.text);
    s->scratch.tap = NULL;
    assert_true(dibit_tokens(s, NULL) == 12);
    if (dibit_sync(s, ids, 20, &err) < 0) die("%s", err.text);
    if (settings[t].k[0] != 'k') { /* records near the error may have been made anew from records */
        DibitSession *fresh = session(e, t);
        if (dibit_sync(fresh, ids, 20, &err) < 0) die("%s", err.text);
        assert_memory_equal(dibit_last_logits(s), dibit_last_logits(fresh),
                            TINY_VOCAB * sizeof(float));
        dibit_session_free(&fresh);
    }
    free(out);
    dibit_session_free(&s);
}

static void keys_and_values(void **state) {
    (void)state;
    static const float values[] = { NAN, INFINITY, -INFINITY, 1e30f, -3e9f };
    for (size_t t = 0; t < ARRAY_LEN(settings); t++)
        for (size_t i = 0; i < ARRAY_LEN(values); i++)
            for (int k = 0; k < 4; k++) {
                Poison p = { k % 2 ? TAP_V : TAP_K, k / 2, (int)i * 7, 13 * (int)i, values[i] };
                if (k % 3 == 0) expect_error(engine, t, p, 1, true);
                if (k % 3 == 1) expect_error(engine, t, p, 33, false);
                if (i % 2 == 0) expect_error(engine, t, p, 1, false); /* nothing reads it yet */
            }
    Poison half = { TAP_V, 1, 3, 5, 70000 }; /* more than f16 holds, not more than q8 */
    expect_error(engine, 0, half, 20, false);
}

static void activations(void **state) {
    (void)state;
    static const unsigned masks[] = { DIBIT_ISA_SCALAR,
                                      DIBIT_ISA_AVX2,
                                      DIBIT_ISA_AVX2 | DIBIT_ISA_AVX512VNNI,
                                      DIBIT_ISA_AVX2 | DIBIT_ISA_AVX512VNNI |
                                          DIBIT_ISA_AVX512BITALG,
                                      DIBIT_ISA_NEON,
                                      DIBIT_ISA_NEON | DIBIT_ISA_NEONDOT };
    for (size_t i = 0; i < ARRAY_LEN(masks); i++) {
        DibitEngine *e;
        size_t size;
        DibitOptions opt = { .n_threads = 1, .isa_mask = masks[i] };
        uint8_t *model = tiny_image(&(Tiny){ .type = i % 2 ? T_S3 : T_Q4_0 }, &size);
        if (dibit_open_memory(&e, model, size, &opt, &err) != 0) die("%s", err.text);
        DibitModelInfo info;
        dibit_model_info(e, &info);
        bool there = i == 0 || strcmp(info.isa, "scalar") != 0;
        for (size_t t = 0; t < ARRAY_LEN(settings) && there; t++)
            for (int what = TAP_QKV; what <= TAP_OUTPUT; what++) {
                Poison p = { (ModelTap)what, what == TAP_OUTPUT ? TINY_LAYERS : 0, 99, 50, NAN };
                expect_error(e, t, p, 9, true);
                p.value = INFINITY;
                expect_error(e, t, p, 1, true);
                p.layer = TINY_LAYERS - (what != TAP_OUTPUT);
                expect_error(e, t, p, 2, true);
            }
        dibit_close(&e);
        mem_free(NULL, model);
    }
}

/* Rows that a file brought in: what reads one ends in an error. */
static void rows_of_a_file(void **state) {
    (void)state;
    for (size_t t = 0; t < ARRAY_LEN(settings); t++)
        for (int side = 0; side < 2; side++) {
            DibitSession *s = session(engine, t);
            int32_t ids[60];
            some_ids(ids, 60);
            if (dibit_sync(s, ids, 40, &err) != 40) die("%s", err.text);
            if (settings[t].k[0] != 'k') {
                KvView v = cache_view(&s->cache, 1, side, 1, 20, 20, 0);
                memset((uint8_t *)(uintptr_t)v.rows, 0xff, v.row);
            } else if (settings[t].window == 0) { /* records cannot hold NaN, the window can */
                size_t at =
                    (size_t)(s->cache.q8_before[2 + side] * TINY_KV + 1) * (4 + 64) + 4 + 20;
                memset(s->cache.recent + at * (TINY_HEAD + 2), 0xff, TINY_HEAD + 2);
            } else {
                dibit_session_free(&s);
                continue;
            }
            int r = dibit_forward(s, ids + 40, 1, NULL, &err);
            float *out = malloc(TINY_VOCAB * sizeof *out);
            if (r == 0) r = dibit_forward(s, ids + 41, 1, out, &err);
            if (r != DIBIT_E_NUMERIC) die("%s, side %d: %d", settings[t].k, side, r);
            free(out);
            dibit_session_free(&s);
        }
}

static int set_up(void **state) {
    (void)state;
    size_t size;
    image = tiny_image(&(Tiny){ .type = T_Q4_0 }, &size);
    if (dibit_open_memory(&engine, image, size, &(DibitOptions){ .n_threads = 2 }, &err) != 0)
        die("%s", err.text);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    dibit_close(&engine);
    mem_free(NULL, image);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_and_values),
        cmocka_unit_test(activations),
        cmocka_unit_test(rows_of_a_file),
    };
    return cmocka_run_group_tests_name("nonfinite", tests, set_up, tear_down);
}
