/* in_place.c - an engine that interleaves q4 and q8 rows where they lie in the caller's image
 * computes what one with copies does, takes no memory for them, and names what is not finite. */
#include "tiny.h"

#include "dibit.h"
#include "ops.h"

enum { N_IDS = 40 };

/* Logits of ids from all row blocks, (N_IDS, TINY_VOCAB). */
static int run(float *out, const uint8_t *image, size_t size, DibitOptions opt, size_t *weights,
               DibitError *err) {
    DibitEngine *e = NULL;
    DibitSession *s = NULL;
    DibitMemory memory = { 0 };
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * 37 + 3) % TINY_VOCAB; /* 260 and more too */
    int r = dibit_open_memory(&e, image, size, &opt, err);
    if (r == 0) r = dibit_session_create(&s, e, NULL, err);
    if (r == 0) dibit_memory(s, &memory);
    if (r == 0) r = dibit_forward(s, ids, N_IDS, out, err);
    *weights = memory.weights;
    dibit_session_free(&s);
    dibit_close(&e);
    return r;
}

static void same_numbers_without_a_copy(void **state) {
    (void)state;
    static float want[N_IDS * TINY_VOCAB], got[N_IDS * TINY_VOCAB];
    static const int types[] = { T_Q4_0, T_Q8_0, T_S2 };
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (int threads = 1; threads <= 3; threads++) {
            Tiny spec = { .type = types[i] };
            size_t size, copied, in_place;
            uint8_t *image = tiny_image(&spec, &size);
            DibitOptions opt = { .n_threads = threads };
            DibitError err = { 0 };
            if (run(want, image, size, opt, &copied, &err) != 0) die("%s", err.text);
            opt.repack_in_place = 1;
            if (run(got, image, size, opt, &in_place, &err) != 0) die("%s", err.text);
            assert_memory_equal(got, want, sizeof want);
            assert_true(in_place < size);
            if (types[i] != T_S2) assert_true(copied > 19 * in_place / 10);
            mem_free(NULL, image);
        }
}

/* An infinite scale, once in a whole row block and once in the rows that do not fill one. */
static void what_is_not_finite_has_its_name(void **state) {
    (void)state;
    static float out[N_IDS * TINY_VOCAB];
    const Tiny spec = { .type = T_Q4_0 };
    for (size_t row = 5; row < TINY_VOCAB; row += 292) {
        size_t size, weights;
        uint8_t *image = tiny_image(&spec, &size);
        Gguf *g = NULL;
        assert_int_equal(gguf_open_memory(&g, image, size, NULL, NULL), 0);
        const GgufTensor *t = gguf_find(g, "token_embd.weight");
        size_t at = (size_t)(t->data - image) + row * (TINY_EMBD / 32 * 18) + 18;
        gguf_close(&g);
        image[at] = 0;
        image[at + 1] = 0x7c;
        DibitError err = { 0 };
        DibitOptions opt = { .n_threads = 1, .repack_in_place = 1 };
        assert_int_equal(run(out, image, size, opt, &weights, &err), DIBIT_E_NUMERIC);
        if (!strstr(err.text, "token_embd.weight")) die("%s", err.text);
        mem_free(NULL, image);
    }
}

static void files_stay_as_they_are(void **state) {
    (void)state;
    DibitEngine *e = NULL;
    DibitOptions opt = { .repack_in_place = 1 };
    DibitError err = { 0 };
    assert_int_equal(dibit_open(&e, "model.gguf", &opt, &err), DIBIT_E_ARGUMENT);
    assert_null(e);
    assert_true(strstr(err.text, "repack_in_place") != NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_numbers_without_a_copy),
        cmocka_unit_test(what_is_not_finite_has_its_name),
        cmocka_unit_test(files_stay_as_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
