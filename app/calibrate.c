/* calibrate.c - `dibit calibrate`: statistics that other commands use to lose less. */
#include "calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { TEXT_TOKENS = 131072, OWN_TOKENS = 16384 }; /* where --tokens says nothing */

typedef struct WeightsArgs {
    CliModel model;
    const char *file, *out;
    int64_t tokens;
    int window, max_width;
    bool json;
} WeightsArgs;

static void print_note(void *user, const char *text) {
    (void)user;
    fprintf(stderr, "dibit: %s\n", text);
}

static int show(void *user, uint64_t done, uint64_t total) {
    cli_progress(user, "calibrate, tokens", done, total);
    return cli_interrupted();
}

static int32_t first_token(const DibitModelInfo *info) { /* a model without BOS starts with EOS */
    return info->bos_id >= 0 ? info->bos_id : info->eos_id;
}

/* The model's own text, as it comes at temperature 1: n tokens, each text as long as it gets or a
 * window at most. The same at every run. */
static int generate(DibitSession *s, int32_t *ids, size_t n, int32_t bos, CliProgress *progress) {
    DibitError err = { 0 };
    DibitPiece piece;
    size_t at = 0;
    while (at < n) {
        int64_t r = dibit_sync(s, NULL, 0, &err);
        if (r >= 0) r = dibit_sync(s, &bos, 1, &err);
        if (r >= 0) r = 1;
        while (r == 1 && at < n) {
            if ((r = dibit_next(s, &piece, &err)) == 1) ids[at++] = piece.id;
            cli_progress(progress, "calibrate, tokens of the model's own text", at, n);
            if (cli_interrupted()) return cli_error("stopped while the text was made");
        }
        if (r < 0) return cli_fail(&err);
        if (at < n) ids[at++] = bos;
    }
    cli_progress_clear(progress);
    return 0;
}

static int32_t *own_tokens(WeightsArgs *a, size_t *n, CalibrateOptions *opt) {
    DibitEngine *e;
    DibitSession *s = NULL;
    DibitModelInfo info;
    DibitError err = { 0 };
    if (cli_open(&e, &a->model) != 0) return NULL;
    dibit_model_info(e, &info);
    DibitSessionOptions so = { .n_ctx = a->window ? a->window : MIN(2048, info.n_ctx_train),
                               .sampling = { .temperature = 1, .seed = 1 } };
    opt->bos = first_token(&info);
    *n = a->tokens > 0 ? (size_t)a->tokens : OWN_TOKENS;
    int32_t *ids = calloc(*n, sizeof *ids);
    int code = ids ? 0 : cli_error("no memory for %zu tokens", *n);
    if (code == 0 && opt->bos < 0) code = cli_error("the model has no first token; give a text");
    if (code == 0 && dibit_session_create(&s, e, &so, &err) != 0) code = cli_fail(&err);
    if (code == 0) code = generate(s, ids, *n, opt->bos, opt->user);
    if (code == 0) opt->text_hash = hash64(0, ids, *n * sizeof *ids);
    dibit_session_free(&s);
    dibit_close(&e);
    if (code == 0) return ids;
    free(ids);
    return NULL;
}

/* The text's tokens and its hash; NULL after the error was printed. */
static int32_t *read_tokens(WeightsArgs *a, size_t *n, CalibrateOptions *opt) {
    DibitEngine *e;
    DibitModelInfo info;
    size_t n_text;
    char *text = cli_read(a->file, &n_text);
    if (!text) return NULL;
    if (cli_open(&e, &a->model) != 0) {
        free(text);
        return NULL;
    }
    dibit_model_info(e, &info);
    opt->bos = first_token(&info);
    opt->text_hash = hash64(0, text, n_text);
    int32_t *ids = cli_tokenize(e, text, n_text, 0, n);
    dibit_close(&e);
    free(text);
    return ids;
}

static int calibrate(WeightsArgs *a) {
    char buf[512];
    CliProgress progress = { 0 };
    uint64_t most = a->tokens < 0 ? TEXT_TOKENS : (uint64_t)a->tokens;
    CalibrateOptions opt = { .max_tokens = most,
                             .window = a->window,
                             .max_width = a->max_width,
                             .n_threads = a->model.n_threads,
                             .no_mmap = a->model.no_mmap,
                             .note = print_note,
                             .progress = show,
                             .user = &progress };
    CalibrateResult result;
    DibitError err = { 0 };
    size_t n = 0;
    const char *model = cli_model_path(a->model.path, buf, sizeof buf);
    cli_catch_interrupt(NULL);
    int32_t *ids = !model ? NULL : a->file ? read_tokens(a, &n, &opt) : own_tokens(a, &n, &opt);
    if (!ids) return 1;
    int r = calibrate_weights(model, ids, n, &opt, a->out, &result, &err);
    cli_progress_clear(&progress);
    free(ids);
    if (r != 0) return cli_fail(&err);
    if (a->json)
        return cli_print_json(json_pack("{s:I,s:I,s:i,s:i}", "tokens", (json_int_t)result.n_tokens,
                                        "file_bytes", (json_int_t)result.file_bytes, "inputs",
                                        result.n_inputs, "full", result.n_full),
                              true);
    fprintf(stderr, "%s: %llu tokens, %d inputs, %d of them with all correlations, %llu bytes\n",
            a->out, (unsigned long long)result.n_tokens, result.n_inputs, result.n_full,
            (unsigned long long)result.file_bytes);
    return 0;
}

int cmd_calibrate(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "kv") == 0) return calibrate_kv_command(argc, argv);
    WeightsArgs a = { .tokens = -1 };
    CliTexts what = { .n = 0 };
    const CliOption options[] = {
        CLI_MODEL_ROW(&a.model),
        { "file", "f", CLI_FILE, &a.file, "FILE", "the text; without one the model makes its own",
          0, 0, NULL },
        { "output", "o", CLI_FILE, &a.out, "FILE", "the file to write", 0, 0, NULL },
        { "tokens", NULL, CLI_INT64, &a.tokens, "N",
          "use at most N tokens, in windows spread over the text (default: 131072; of the model's "
          "own "
          "text 16384); 0: all",
          0, 1e15, NULL },
        { "ctx-size", "c", CLI_INT, &a.window, "W",
          "tokens of a window (default: 2048, or fewer where the model takes fewer)", 0, 1 << 24,
          NULL },
        { "max-width", NULL, CLI_INT, &a.max_width, "N",
          "inputs wider than N (default: 4096) get their diagonal alone: less memory and time", 0,
          1 << 24, NULL },
        CLI_THREADS_ROW(&a.model.n_threads),
        { "no-mmap", NULL, CLI_FLAG, &a.model.no_mmap, NULL, "read the file instead of mapping it",
          0, 0, NULL },
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "calibrate",
        "weights|kv -m MODEL [-f TEXT] -o FILE [options]",
        "Runs a text through a model and keeps the correlations of what its matrices get as input,"
        "\nfor `dibit quantize --calibration FILE`. The text should resemble what the model will "
        "read.\nAn interrupted run goes on when it is started again."
        "\n`dibit calibrate kv --help` has what calibrates a KV cache.",
        options,
        &what,
        1,
        1,
        "  dibit calibrate weights -m model-bf16.gguf -f calibration.txt -o model.calibration"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (strcmp(what.at[0], "weights") != 0)
        return cli_misuse("calibrate", "\"%s\" cannot be calibrated; known are weights and kv",
                          what.at[0]);
    if (!a.out) return cli_misuse("calibrate", "-o FILE is missing");
    return calibrate(&a);
}
