/* quantize.c - `dibit quantize`: a GGUF file to fewer bits, or the plan of it. */
#define _POSIX_C_SOURCE 200809L
#include "quantize.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "evaluate.h"

enum { MAX_NOTES = 8, MEASURE_WINDOWS = 8 };

typedef struct Report {
    CliProgress progress;
    const char *recover, *measure; /* files of texts */
    char *text;                    /* of measure */
    size_t n_text;
    QuantizeMeasure measured;
    bool json, dry_run;
    json_t *tensors;
    double seconds;
    struct {
        const char *text;
        char first[80]; /* tensor */
        int n;
    } notes[MAX_NOTES];
} Report;

static double bits(uint64_t n_bytes, uint64_t n_weights) {
    return n_weights ? 8.0 * (double)n_bytes / (double)n_weights : 0;
}

static void shape_text(char *buf, size_t cap, const QuantizeTensor *t) {
    size_t n = 0;
    buf[0] = 0;
    for (int i = 0; i < t->n_dims && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s%llu", i ? " x " : "",
                              (unsigned long long)t->shape[i]);
}

static void add_note(Report *r, const QuantizeTensor *t) {
    for (int i = 0; i < MAX_NOTES; i++) {
        if (!r->notes[i].n) {
            r->notes[i].text = t->note;
            snprintf(r->notes[i].first, sizeof r->notes[i].first, "%s", t->name);
        }
        if (strcmp(r->notes[i].text, t->note) != 0) continue;
        r->notes[i].n++;
        return;
    }
}

static json_t *tensor_json(const QuantizeTensor *t, bool dry_run) {
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    json_t *o = json_pack("{s:s,s:s,s:s,s:o,s:I,s:I,s:f}", "name", t->name, "from", t->from, "to",
                          t->to, "shape", shape, "weights", (json_int_t)t->n_weights, "bytes",
                          (json_int_t)t->n_bytes, "bits", bits(t->n_bytes, t->n_weights));
    if (!dry_run) json_object_set_new(o, "rel_mse", cli_number(t->rel_mse));
    if (t->loss > 0) json_object_set_new(o, "loss", cli_number(t->loss));
    if (t->note) json_object_set_new(o, "note", json_string(t->note));
    return o;
}

static int show(void *user, const QuantizeTensor *t) {
    Report *r = user;
    char shape[96];
    if (t->note) add_note(r, t);
    if (r->json) {
        json_array_append_new(r->tensors, tensor_json(t, r->dry_run));
    } else if (r->dry_run) {
        shape_text(shape, sizeof shape, t);
        printf("%-32s %-16s %-5s -> %-5s %12llu bytes %7.3f bits\n", t->name, shape, t->from, t->to,
               (unsigned long long)t->n_bytes, bits(t->n_bytes, t->n_weights));
    }
    if (!r->dry_run) cli_progress(&r->progress, "weights", t->weights_done, t->weights_total);
    return cli_interrupted();
}

static void print_notes(const Report *r) {
    for (int i = 0; i < MAX_NOTES && r->notes[i].n; i++) {
        if (r->notes[i].n == 1)
            fprintf(stderr, "dibit: %s: %s\n", r->notes[i].first, r->notes[i].text);
        else
            fprintf(stderr, "dibit: %s and %d more: %s\n", r->notes[i].first, r->notes[i].n - 1,
                    r->notes[i].text);
    }
}

static json_t *result_json(Report *r, const QuantizeResult *q) {
    json_t *o = json_pack("{s:I,s:I,s:I,s:f,s:f,s:f,s:b,s:o}", "weights", (json_int_t)q->n_weights,
                          "tensor_bytes", (json_int_t)q->tensor_bytes, "file_bytes",
                          (json_int_t)q->file_bytes, "bits", q->bits, "bits_blocks", q->bits_blocks,
                          "seconds", r->seconds, "dry_run", r->dry_run, "tensors", r->tensors);
    if (q->predicted_kld > 0) json_object_set_new(o, "predicted_kld", cli_number(q->predicted_kld));
    if (r->measured.n_tokens)
        json_object_set_new(
            o, "measured",
            json_pack(
                "{s:o,s:o,s:o,s:o,s:I,s:I}", "kld_mean", cli_number(r->measured.kld), "kld_mean_se",
                cli_number(r->measured.kld_se), "ppl_ratio", cli_number(r->measured.ppl_ratio),
                "top1_agreement", cli_number(r->measured.top1_agreement), "windows",
                (json_int_t)r->measured.n_windows, "tokens", (json_int_t)r->measured.n_tokens));
    return o;
}

static int print_result(Report *r, const char *out, const QuantizeResult *q) {
    const QuantizeMeasure *m = &r->measured;
    if (r->json) return cli_print_json(result_json(r, q), true);
    fprintf(r->dry_run ? stdout : stderr,
            "%s%s%llu weights, %llu bytes; %.3f bits all-in, %.3f without embedding and output\n",
            r->dry_run ? "" : out, r->dry_run ? "" : ": ", (unsigned long long)q->n_weights,
            (unsigned long long)q->file_bytes, q->bits, q->bits_blocks);
    if (!r->dry_run && r->seconds > 0)
        fprintf(stderr, "%.1f s, %.2f million weights a second\n", r->seconds,
                (double)q->n_weights / r->seconds / 1e6);
    if (q->predicted_kld > 0)
        fprintf(stderr, "predicted from the calibration: KLD %.4f\n", q->predicted_kld);
    if (m->n_tokens)
        fprintf(stderr,
                "measured: KLD %.4f ± %.4f, perplexity %.4f times the source's, same first choice "
                "%.1f %%\n",
                m->kld, m->kld_se, m->ppl_ratio, 100 * m->top1_agreement);
    return 0;
}

/* "REGEX=TYPE", cut at the last "=". */
static int parse_rule(QuantizeRule *rule, char *text) {
    char *cut = strrchr(text, '=');
    if (!cut || cut == text || !cut[1])
        return cli_misuse("quantize", "--tensor-type %s: not of the form REGEX=TYPE", text);
    *cut = 0;
    *rule = (QuantizeRule){ text, cut + 1 };
    return 0;
}

/* The tokens of the recovery's text; false after the error was printed. */
static bool read_text(const char *model, const char *path, QuantizeOptions *opt) {
    CliModel m = { .path = model, .n_threads = opt->n_threads, .no_mmap = opt->no_mmap };
    DibitModelInfo info;
    DibitEngine *e;
    size_t n_text;
    char *text = cli_read(path, &n_text);
    if (!text || cli_open(&e, &m) != 0) {
        free(text);
        return false;
    }
    dibit_model_info(e, &info);
    opt->bos = info.bos_id >= 0 ? info.bos_id : info.eos_id;
    opt->recover_hash = hash64(0, text, n_text);
    opt->recover = cli_tokenize(e, text, n_text, 0, &opt->n_recover);
    dibit_close(&e);
    free(text);
    return opt->recover != NULL;
}

/* ---- measuring ---- */

static int show_windows(void *user, int done, int total) {
    cli_progress(user, "measure, windows", (uint64_t)done, (uint64_t)total);
    return cli_interrupted();
}

static int compare(Report *r, DibitEngine *model, DibitEngine *base, DibitError *err) {
    EvalOptions opt = { .max_windows = MEASURE_WINDOWS,
                        .progress = show_windows,
                        .user = &r->progress };
    DibitModelInfo info;
    EvalResult e;
    size_t n;
    dibit_model_info(base, &info);
    opt.window = MIN(2048, info.n_ctx_train);
    int32_t *ids = cli_tokenize(base, r->text, r->n_text, 0, &n);
    if (!ids) return 1;
    int code = evaluate_text(model, base, ids, n, &opt, &e, err) < 0 ? cli_fail(err) : 0;
    cli_progress_clear(&r->progress);
    free(ids);
    if (code == 0)
        r->measured = (QuantizeMeasure){ e.kld_mean.mean,
                                         e.kld_mean.se,
                                         e.ppl_ratio.mean,
                                         e.top1_agreement.mean,
                                         hash64(0, r->text, r->n_text),
                                         e.n_tokens,
                                         e.n_windows };
    return code;
}

/* Runs the new model beside its source and writes what it lost into its file, which is whole
 * whatever happens here. */
static int measure(const char *in, const char *out, const QuantizeOptions *opt, Report *r) {
    CliModel source = { .path = in, .n_threads = opt->n_threads, .no_mmap = opt->no_mmap };
    CliModel made = source;
    DibitEngine *base = NULL, *model = NULL;
    DibitError err = { 0 };
    made.path = out;
    int code = cli_open(&base, &source);
    if (code == 0) code = cli_open(&model, &made);
    if (code == 0) code = compare(r, model, base, &err);
    dibit_close(&model);
    dibit_close(&base);
    if (code == 0 && quantize_record(out, &r->measured, &err) != 0) code = cli_fail(&err);
    if (code != 0) fprintf(stderr, "dibit: %s was written, without a measure\n", out);
    return code;
}

static int run(const char *in, const char *out, QuantizeOptions *opt, Report *report) {
    DibitError err = { 0 };
    QuantizeResult result;
    if (report->recover && !opt->dry_run && !read_text(in, report->recover, opt)) return 1;
    if (report->measure && !(report->text = cli_read(report->measure, &report->n_text))) return 1;
    report->dry_run = opt->dry_run;
    report->tensors = json_array();
    opt->progress = show;
    opt->user = report;
    cli_catch_interrupt(NULL);
    uint64_t start = clock_ns();
    int r = quantize_file(in, out, opt, &result, &err);
    report->seconds = (double)(clock_ns() - start) / 1e9;
    cli_progress_clear(&report->progress);
    if (r == 0) print_notes(report);
    int code = r ? cli_fail(&err) : 0;
    if (r == 0 && report->measure && !opt->dry_run) code = measure(in, out, opt, report);
    if (code == 0) code = print_result(report, out, &result);
    if (code != 0 || !report->json) json_decref(report->tensors);
    return code;
}

int cmd_quantize(int argc, char **argv) {
    const char *in = NULL, *out = NULL;
    int64_t recover_tokens = 32768;
    CliTexts rules = { .n = 0 };
    QuantizeOptions opt = { 0 };
    int seed = 0;
    Report report = { .json = false };
    const CliOption options[] = {
        { "model", "m", CLI_FILE, &in, "FILE", "GGUF file to read (the first of its shards)", 0, 0,
          NULL },
        { "output", "o", CLI_FILE, &out, "FILE", "GGUF file to write", 0, 0, NULL },
        { "type", NULL, CLI_CHOICE, &opt.type, "TYPE", "type of the layers' matrices", 0, 0,
          "t2 t3 s2 s3 q4 q8 f16 bf16 f32" },
        { "tensor-type", NULL, CLI_TEXTS, &rules, "REGEX=TYPE",
          "type of the matrices whose name the expression finds; the last match wins", 0, 0, NULL },
        { "embedding-type", NULL, CLI_CHOICE, &opt.embedding_type, "TYPE",
          "type of the embedding and the output matrix (default: q8, or TYPE where that is wider)",
          0, 0, "t2 t3 s2 s3 q4 q8 f16 bf16 f32" },
        { "calibration", NULL, CLI_FILE, &opt.calibration, "FILE",
          "made by `dibit calibrate weights` from the same model, or a GGUF imatrix: less is lost",
          0, 0, NULL },
        { "recover", NULL, CLI_FILE, &report.recover, "TEXT",
          "code layer by layer for the outputs that the base has on this text: loses least", 0, 0,
          NULL },
        { "recover-tokens", NULL, CLI_INT64, &recover_tokens, "N",
          "use at most N tokens of it (default: 32768); 0: all", 0, 1e15, NULL },
        { "measure", NULL, CLI_FILE, &report.measure, "TEXT",
          "then compare with IN on 8 windows of this text and write what was lost into the file's "
          "metadata",
          0, 0, NULL },
        { "effort", NULL, CLI_INT, &opt.effort, "N",
          "for t2 and t3: 1 quick search, 2 the best codes (default)", 1, 2, NULL },
        { "seed", NULL, CLI_INT, &seed, "N", "of the rotation of t2 and t3 (default 0)", 0,
          INT32_MAX, NULL },
        { "kv-calibration", NULL, CLI_FILE, &opt.kv_calibration, "FILE",
          "put the bases for a k2 or k3 cache into the model: a file of `dibit calibrate kv`", 0, 0,
          NULL },
        CLI_THREADS_ROW(&opt.n_threads),
        { "no-mmap", NULL, CLI_FLAG, &opt.no_mmap, NULL, "read the file instead of mapping it", 0,
          0, NULL },
        { "dry-run", NULL, CLI_FLAG, &opt.dry_run, NULL,
          "print what each tensor would become, write nothing", 0, 0, NULL },
        CLI_JSON_ROW(&report.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "quantize",
        "-m IN -o OUT --type TYPE [options]",
        "Writes a model with its matrices in fewer bits. Vectors and norms stay f32. t2 and t3 "
        "are\n"
        "dibit's own types of 2.0 and 3.0 bits, s2 and s3 of 2.25 and 3.25 bits, which are made\n"
        "faster; q4 and q8 are what other programs call Q4_0 and Q8_0. Start from f16 or bf16: a\n"
        "file that was quantized before loses quality twice.",
        options,
        NULL,
        0,
        0,
        "  dibit quantize -m model-bf16.gguf -o model-t3.gguf --type t3\n"
        "  dibit quantize -m model-bf16.gguf -o mixed.gguf --type s2 --tensor-type 'ffn_down=s3'\n"
        "  dibit quantize -m model-bf16.gguf --type s2 --dry-run"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (!in) return cli_misuse("quantize", "-m FILE is missing");
    if (!out && !opt.dry_run) return cli_misuse("quantize", "-o FILE is missing");
    if (!opt.type) return cli_misuse("quantize", "--type TYPE is missing");
    QuantizeRule list[CLI_MAX_TEXTS];
    char *texts[CLI_MAX_TEXTS];
    for (int i = 0; i < rules.n && code == 0; i++) {
        texts[i] = strdup(rules.at[i]);
        code = texts[i] ? parse_rule(&list[i], texts[i]) : cli_error("no memory");
        opt.n_rules = i + 1;
    }
    opt.rules = list;
    opt.recover_tokens = (uint64_t)recover_tokens;
    opt.seed = (uint32_t)seed;
    if (code == 0) code = run(in, out, &opt, &report);
    for (int i = 0; i < opt.n_rules; i++) free(texts[i]);
    free((int32_t *)(uintptr_t)opt.recover);
    free(report.text);
    return code;
}
