/* quality.c - what each type costs the base model on one window of WikiText-2. (Its perplexity
 * against the figure of the program it was trained with: commands.c.) */
#define _GNU_SOURCE
#include "tiny.h"

#include <jansson.h>
#include <unistd.h>

#include "convert.h"
#include "dibit.h"
#include "evaluate.h"
#include "quantize.h"

#define SHARED SOURCE_DIR "/../shared/"
static char work_dir[] = "/tmp/dibit-test-XXXXXX";
static char base[64], other[64];

static EvalResult evaluate(const char *path, const char *base_path, int windows) {
    FileMap text;
    DibitEngine *e, *b = NULL;
    DibitError err = { 0 };
    EvalResult result;
    EvalOptions opt = { .window = 2048, .max_windows = windows };
    size_t n = 2048 * (size_t)windows, n_bytes = n * 16; /* more than enough text */
    int32_t *ids = malloc(n_bytes * sizeof *ids);
    if (file_map(&text, SHARED "text/wikitext2-valid.txt", false, NULL, &err) != 0)
        die("%s", err.text);
    if (dibit_open(&e, path, NULL, &err) != 0) die("%s", err.text);
    if (base_path && dibit_open(&b, base_path, NULL, &err) != 0) die("%s", err.text);
    int64_t have =
        dibit_tokenize(e, (const char *)text.data, MIN(n_bytes, text.size), 0, ids, n_bytes, &err);
    assert_true(have >= (int64_t)n);
    if (evaluate_text(e, b, ids, n, &opt, &result, &err) != 0) die("%s", err.text);
    assert_int_equal(result.n_windows, windows);
    dibit_close(&e);
    dibit_close(&b);
    file_unmap(&text);
    free(ids);
    return result;
}

/* Wide bounds: a broken codec or kernel lies far outside of them. */
static void types_cost_what_they_should(void **state) {
    (void)state;
    static const struct {
        const char *type;
        double max_ratio, max_kld, min_agreement;
    } types[] = { { "q8", 1.01, 0.003, 0.95 },
                  { "q4", 1.15, 0.10, 0.80 },
                  { "s3", 1.4, 0.35, 0.70 },
                  { "s2", 6, 2, 0.35 } };
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        DibitError err = { 0 };
        QuantizeResult q;
        QuantizeOptions opt = { .type = types[i].type };
        if (quantize_file(base, other, &opt, &q, &err) != 0) die("%s", err.text);
        EvalResult r = evaluate(other, base, 1);
        print_message("%s: %.3f bits, ppl %.2f (base %.2f), KLD %.4f, agreement %.3f\n",
                      types[i].type, q.bits_blocks, r.ppl.mean, r.ppl_base.mean, r.kld_mean.mean,
                      r.top1_agreement.mean);
        assert_true(r.ppl.mean < types[i].max_ratio * r.ppl_base.mean);
        assert_true(r.kld_mean.mean < types[i].max_kld);
        assert_true(r.top1_agreement.mean > types[i].min_agreement);
        unlink(other);
    }
}

static int set_up(void **state) {
    (void)state;
    DibitError err;
    ConvertResult result;
    if (!mkdtemp(work_dir)) return -1;
    snprintf(base, sizeof base, "%s/base.gguf", work_dir);
    snprintf(other, sizeof other, "%s/other.gguf", work_dir);
    ConvertOptions opt = { .dir = SHARED "models/base-34m", .out = base, .type = "bf16" };
    if (convert_model(&opt, &result, &err) != 0) die("%s", err.text);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    unlink(base);
    return rmdir(work_dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_cost_what_they_should),
    };
    if (access(SHARED "models/base-34m/config.json", R_OK) != 0) {
        printf("../shared is not there: nothing to measure\n");
        return 0;
    }
    if (SLOWNESS > 1) {
        printf("skipped: takes too long under sanitizers\n");
        return 77;
    }
    return cmocka_run_group_tests_name("quality", tests, set_up, tear_down);
}
