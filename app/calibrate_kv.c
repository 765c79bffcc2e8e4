/* calibrate_kv.c - `dibit calibrate kv`: bases for the records of a KV cache, and types for its
 * layers. */
#include <stdlib.h>
#include <string.h>

#include "calibrate_kv.h"
#include "cli.h"

typedef struct Args {
    CliModel model;
    const char *file, *out;
    int64_t tokens;
    int window;
    float budget;
    bool json;
} Args;

typedef struct Text {
    int32_t *ids;
    size_t n;
} Text;

static int show(void *user, const char *step, uint64_t done, uint64_t total) {
    char what[80];
    snprintf(what, sizeof what, "calibrate kv, %s", step);
    cli_progress(user, what, done, total);
    return cli_interrupted();
}

/* Opens the model, so that its tokenizer reads the text. Returns the exit code. */
static int read_text(const Args *a, DibitEngine **engine, Text *text, KvCalibrateOptions *opt) {
    DibitModelInfo info;
    size_t n_bytes;
    char *bytes = cli_read(a->file, &n_bytes);
    if (!bytes) return 1;
    int code = cli_open(engine, &a->model);
    if (code == 0) {
        dibit_model_info(*engine, &info);
        opt->bos = info.bos_id >= 0 ? info.bos_id : info.eos_id;
        opt->text_hash = hash64(0, bytes, n_bytes);
        text->ids = cli_tokenize(*engine, bytes, n_bytes, 0, &text->n);
        if (!text->ids) code = 1;
    }
    free(bytes);
    return code;
}

static int print_json(const Args *a, const KvCalibrateResult *r) {
    json_t *o = json_pack("{s:s,s:I,s:I,s:f,s:f}", "file", a->out, "tokens",
                          (json_int_t)r->n_tokens, "file_bytes", (json_int_t)r->file_bytes,
                          "noise_k", r->gain_k, "noise_v", r->gain_v);
    if (o && r->layers) {
        json_t *costs = json_array();
        for (int i = 0; i < 2 * r->n_layers; i++)
            json_array_append_new(costs, json_pack("{s:i,s:s,s:f,s:f}", "layer", i / 2, "side",
                                                   i % 2 ? "v" : "k", "kld_k2", r->costs[i].kld[0],
                                                   "kld_k3", r->costs[i].kld[1]));
        json_object_set_new(o, "costs", costs);
        json_object_set_new(o, "layers", json_string(r->layers));
        json_object_set_new(o, "bits", json_real(r->bits));
        json_object_set_new(o, "kld", cli_number(r->kld));
        json_object_set_new(o, "kld_k2", cli_number(r->kld_k2));
        json_object_set_new(o, "kld_k3", cli_number(r->kld_k3));
    }
    return cli_print_json(o, true);
}

/* A bar of up to 30 characters. */
static const char *bar(double x, double most) {
    static const char full[] = "##############################";
    int n = most > 0 ? (int)(30 * x / most + 0.5) : 0;
    return full + 30 - MAX(0, MIN(n, 30));
}

static void print_costs(const KvCalibrateResult *r) {
    double most = 0;
    for (int i = 0; i < 2 * r->n_layers; i++) most = MAX(most, r->costs[i].kld[0]);
    printf("layer  side  KLD k2    KLD k3\n");
    for (int i = 0; i < 2 * r->n_layers; i++)
        printf("%5d  %c     %.6f  %.6f  %s\n", i / 2, i % 2 ? 'v' : 'k', r->costs[i].kld[0],
               r->costs[i].kld[1], bar(r->costs[i].kld[0], most));
    printf("%.2f bits: KLD %.6f (k2 alone %.6f, k3 alone %.6f) with\n  --kv-layers \"%s\"\n",
           r->bits, r->kld, r->kld_k2, r->kld_k3, r->layers);
}

static int print_result(const Args *a, const KvCalibrateResult *r) {
    if (a->json) return print_json(a, r);
    if (r->layers) print_costs(r);
    fprintf(stderr,
            "%s: %llu tokens, %llu bytes; noise of scores %.2f and of values %.2f of what they are "
            "without it\n",
            a->out, (unsigned long long)r->n_tokens, (unsigned long long)r->file_bytes, r->gain_k,
            r->gain_v);
    return 0;
}

/* The types of the layers, with an engine that has the calibration. Returns the exit code. */
static int choose_types(Args *a, const Text *text, const KvCalibrateOptions *opt,
                        KvCalibrateResult *result) {
    DibitEngine *engine = NULL;
    DibitError err = { 0 };
    a->model.kv_calibration = a->out;
    int code = cli_open(&engine, &a->model);
    if (code != 0) return code;
    int r = calibrate_kv_types(engine, text->ids, text->n, opt, result, &err);
    dibit_close(&engine);
    if (r == 0) r = calibrate_kv_add_types(a->out, result, &err);
    return r ? cli_fail(&err) : 0;
}

static int calibrate(Args *a) {
    char buf[512];
    CliProgress progress = { 0 };
    KvCalibrateOptions opt = { .max_tokens = (uint64_t)a->tokens,
                               .window = a->window,
                               .budget = (double)a->budget,
                               .n_threads = a->model.n_threads,
                               .no_mmap = a->model.no_mmap,
                               .progress = show,
                               .user = &progress };
    KvCalibrateResult result = { 0 };
    DibitError err = { 0 };
    DibitEngine *engine = NULL;
    Text text = { 0 };
    a->model.path = cli_model_path(a->model.path, buf, sizeof buf);
    if (!a->model.path) return 1;
    int code = read_text(a, &engine, &text, &opt);
    dibit_close(&engine);
    cli_catch_interrupt(NULL);
    if (code == 0) {
        int r = calibrate_kv(a->model.path, text.ids, text.n, &opt, a->out, &result, &err);
        cli_progress_clear(&progress);
        if (r != 0) code = cli_fail(&err);
    }
    if (code == 0 && a->budget > 0) code = choose_types(a, &text, &opt, &result);
    cli_progress_clear(&progress);
    if (code == 0) code = print_result(a, &result);
    mem_free(NULL, result.costs);
    mem_free(NULL, result.layers);
    free(text.ids);
    return code;
}

int calibrate_kv_command(int argc, char **argv) {
    Args a = { .tokens = 16384 };
    CliTexts what = { .n = 0 };
    const CliOption options[] = {
        CLI_MODEL_ROW(&a.model),
        { "file", "f", CLI_FILE, &a.file, "FILE", "the text", 0, 0, NULL },
        { "output", "o", CLI_FILE, &a.out, "FILE", "the file to write", 0, 0, NULL },
        { "tokens", NULL, CLI_INT64, &a.tokens, "N",
          "use about N tokens, in windows spread over the text (default: 16384)", 1, 1e15, NULL },
        { "ctx-size", "c", CLI_INT, &a.window, "W",
          "tokens of a window (default: 2048, or fewer where the model takes fewer)", 0, 1 << 24,
          NULL },
        { "budget", NULL, CLI_FLOAT, &a.budget, "BITS",
          "choose k2 or k3 for each layer's keys and values, BITS (2 to 3) per value on average", 0,
          3, NULL },
        CLI_THREADS_ROW(&a.model.n_threads),
        { "no-mmap", NULL, CLI_FLAG, &a.model.no_mmap, NULL, "read the file instead of mapping it",
          0, 0, NULL },
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "calibrate",
        "kv -m MODEL -f TEXT -o FILE [options]",
        "Finds the bases in which a KV cache of two or three bits loses least, for --kv-calibration"
        "\nof the other commands and of `dibit quantize`. It serves the model in any weight types.",
        options,
        &what,
        1,
        1,
        "  dibit calibrate kv -m model.gguf -f calibration.txt -o model.kvcal\n"
        "  dibit run -m model.gguf -ctk k2 -ctv k2 --kv-calibration model.kvcal -p \"Once\"\n"
        "  dibit calibrate kv -m model.gguf -f calibration.txt -o model.kvcal --budget 2.5\n"
        "  dibit run -m model.gguf --kv-layers auto --kv-calibration model.kvcal -p \"Once\""
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (!a.file) return cli_misuse("calibrate", "-f TEXT is missing");
    if (!a.out) return cli_misuse("calibrate", "-o FILE is missing");
    if (a.budget != 0 && a.budget < 2)
        return cli_misuse("calibrate", "--budget %g: not between 2 and 3", (double)a.budget);
    return calibrate(&a);
}
