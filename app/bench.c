/* bench.c - `dibit bench`: tokens per second of prefill (pp) and decode (tg), as llama-bench means
 * them: one warm-up, random tokens, tokenizing and sampling left out. The repetitions of all models
 * alternate, with the memory's bandwidth measured between them, so that ratios within one run hold
 * on a machine whose speed drifts. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bandwidth.h"
#include "cli.h"
#include "shape.h"

enum { MAX_MODELS = 16, MAX_REPETITIONS = 1000, MAX_TESTS = 2 * MAX_MODELS };

typedef struct Args {
    CliTexts models;
    CliModel common;
    const char *shape, *types, *head;
    CliKv kv;
    int n_vocab, n_prompt, n_gen, n_depth, n_batch, repetitions;
    bool json;
} Args;

typedef struct Subject { /* one model */
    const char *name;
    char *type; /* of most of its weights */
    uint8_t *image;
    DibitEngine *engine;
    DibitSession *session;
    DibitModelInfo info;
    int32_t *ids;             /* (depth + the longer test): random tokens */
    uint64_t weight_read;     /* bytes a token reads */
    uint64_t kv_per_position; /* bytes of all layers' keys and values of one position */
} Subject;

typedef struct Test {
    Subject *of;
    bool decode;
    int n;
    char name[32]; /* "tg64" or "tg64 @ d4096" */
    double *speed; /* (repetitions) tokens per second */
} Test;

typedef struct Bench {
    const Args *a;
    Subject subjects[MAX_MODELS];
    Test tests[MAX_TESTS];
    int n_subjects, n_tests, n_measured;
    Bandwidth memory;
    double *bandwidth[BANDWIDTH_KINDS]; /* (repetitions + 1) */
    char *type_list;
} Bench;

/* ---- what a token reads ---- */

/* Every matrix once; of an embedding that is not also the output matrix, one row. */
static void count_weights(Subject *s) {
    DibitTensorInfo t;
    uint64_t embedding = 0, row = 0, most = 0;
    bool has_output = false;
    int n = dibit_tensor_info(s->engine, -1, &t);
    for (int i = 0; i < n; i++) {
        dibit_tensor_info(s->engine, i, &t);
        s->weight_read += t.n_bytes;
        if (strcmp(t.name, "output.weight") == 0) has_output = true;
        if (strcmp(t.name, "token_embd.weight") != 0) continue;
        embedding = t.n_bytes;
        row = t.n_bytes / MAX(t.shape[1], 1u);
    }
    if (has_output) s->weight_read -= embedding - row;
    for (int i = 0; i < n; i++) { /* the type that most bytes of the block matrices have */
        uint64_t bytes = 0;
        DibitTensorInfo u;
        dibit_tensor_info(s->engine, i, &t);
        if (strncmp(t.name, "blk.", 4) != 0) continue;
        for (int k = 0; k < n; k++) {
            dibit_tensor_info(s->engine, k, &u);
            if (strncmp(u.name, "blk.", 4) == 0 && strcmp(u.type, t.type) == 0) bytes += u.n_bytes;
        }
        if (bytes <= most) continue;
        most = bytes;
        free(s->type);
        s->type = strdup(t.type);
    }
}

/* What a block of 16 positions more takes in the cache; its window in q8 is left out. */
static int count_kv(const Args *a, Subject *s) {
    DibitMemory less, more;
    DibitError err = { 0 };
    DibitSessionOptions so = { .n_ctx = a->kv.window + 16 };
    cli_kv_options(&a->kv, &so);
    if (dibit_session_memory(s->engine, &so, &less, &err) < 0) return cli_fail(&err);
    so.n_ctx += 16;
    if (dibit_session_memory(s->engine, &so, &more, &err) < 0) return cli_fail(&err);
    s->kv_per_position = (more.kv - less.kv) / 16;
    return 0;
}

/* Mean over the tokens of a test. */
static double bytes_per_token(const Args *a, const Test *t) {
    double positions = (double)a->n_depth + (double)(t->n + 1) / 2;
    if (t->of->info.sliding_window > 0)
        positions = MIN(positions, (double)t->of->info.sliding_window);
    return (double)t->of->weight_read + positions * (double)t->of->kv_per_position;
}

/* ---- opening ---- */

static int open_image(const Args *a, Subject *s, const char *type) {
    DibitOptions opt;
    DibitError err = { 0 };
    size_t size;
    cli_engine_options(&a->common, &opt);
    s->name = a->shape;
    if (shape_make(&s->image, &size, a->shape, type, a->head, a->n_vocab, &err) < 0 ||
        dibit_open_memory(&s->engine, s->image, size, &opt, &err) < 0)
        return cli_fail(&err);
    return 0;
}

static int open_file(const Args *a, Subject *s, const char *path) {
    CliModel m = a->common;
    m.path = path;
    s->name = path ? path : "dibit-34m.gguf";
    return cli_open(&s->engine, &m);
}

static int prepare(const Args *a, Subject *s) {
    DibitError err = { 0 };
    int n_ctx = a->n_depth + MAX(MAX(a->n_prompt, a->n_gen), 1);
    DibitSessionOptions so = { .n_ctx = n_ctx, .n_batch = a->n_batch };
    cli_kv_options(&a->kv, &so);
    dibit_model_info(s->engine, &s->info);
    count_weights(s);
    if (count_kv(a, s) != 0) return 1;
    if (dibit_session_create(&s->session, s->engine, &so, &err) < 0) return cli_fail(&err);
    s->ids = malloc((size_t)n_ctx * sizeof *s->ids);
    if (!s->ids || !s->type) return cli_error("no memory for the benchmark's tokens");
    for (int i = 0; i < n_ctx; i++)
        s->ids[i] = (int32_t)(hash64(1, &i, sizeof i) % (uint64_t)s->info.n_vocab);
    return 0;
}

static int open_subjects(Bench *b) {
    const Args *a = b->a;
    int code = 0;
    if (a->shape) {
        b->type_list = strdup(a->types);
        if (!b->type_list) return cli_error("no memory");
        for (char *save = NULL, *t = strtok_r(b->type_list, ",", &save); t && code == 0;
             t = strtok_r(NULL, ",", &save)) {
            if (b->n_subjects == MAX_MODELS)
                return cli_misuse("bench", "at most %d types", MAX_MODELS);
            code = open_image(a, &b->subjects[b->n_subjects++], t);
        }
    } else {
        for (int i = 0; i < MAX(a->models.n, 1) && code == 0; i++) {
            if (i == MAX_MODELS) return cli_misuse("bench", "at most %d models", MAX_MODELS);
            code =
                open_file(a, &b->subjects[b->n_subjects++], a->models.n ? a->models.at[i] : NULL);
        }
    }
    for (int i = 0; i < b->n_subjects && code == 0; i++) code = prepare(a, &b->subjects[i]);
    return code;
}

static int add_test(Bench *b, Subject *s, bool decode, int n) {
    if (n == 0) return 0;
    Test *t = &b->tests[b->n_tests++];
    *t = (Test){ .of = s, .decode = decode, .n = n };
    int len = snprintf(t->name, sizeof t->name, "%s%d", decode ? "tg" : "pp", n);
    if (b->a->n_depth)
        snprintf(t->name + len, sizeof t->name - (size_t)len, " @ d%d", b->a->n_depth);
    t->speed = calloc((size_t)b->a->repetitions, sizeof *t->speed);
    return t->speed ? 0 : cli_error("no memory for the timings");
}

/* ---- measuring ---- */

/* Runs n tokens of a test after the depth's tokens, which stay in the cache from run to run. */
static int run_test(const Bench *b, const Test *t, int n, double *tokens_per_second) {
    DibitError err = { 0 };
    DibitSession *s = t->of->session;
    const int32_t *ids = t->of->ids;
    size_t depth = (size_t)b->a->n_depth;
    int64_t r = dibit_sync(s, ids, depth, &err);
    uint64_t start = clock_ns();
    if (!t->decode && r >= 0) r = dibit_sync(s, ids, depth + (size_t)n, &err);
    for (int i = 1; t->decode && i <= n && r >= 0; i++)
        r = dibit_sync(s, ids, depth + (size_t)i, &err);
    uint64_t ns = clock_ns() - start;
    if (r < 0) return cli_fail(&err);
    *tokens_per_second = n * 1e9 / (double)MAX(ns, 1u);
    return 0;
}

static void measure_bandwidth(Bench *b) {
    for (int k = 0; k < BANDWIDTH_KINDS; k++)
        b->bandwidth[k][b->n_measured] = bandwidth_measure(&b->memory, k);
    b->n_measured++;
}

static int run_all(Bench *b) {
    CliProgress progress = { 0 };
    int reps = b->a->repetitions, code = 0;
    uint64_t done = 0, total = (uint64_t)b->n_tests * (uint64_t)(reps + 1);
    double ignored;
    cli_catch_interrupt(NULL);
    for (int i = -1; i < reps && code == 0; i++) {
        if (i >= 0) measure_bandwidth(b);
        for (int k = 0; k < b->n_tests && code == 0; k++) {
            Test *t = &b->tests[k];
            cli_progress(&progress, "bench, runs", done++, total);
            cli_catch_interrupt(t->of->session);
            if (i < 0)
                code = run_test(b, t, t->decode ? 1 : t->n, &ignored); /* warm-up */
            else
                code = run_test(b, t, t->n, &t->speed[i]);
        }
    }
    cli_catch_interrupt(NULL);
    if (code == 0) measure_bandwidth(b);
    cli_progress_clear(&progress);
    return code;
}

/* ---- reporting ---- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n) {
    double sorted[MAX_REPETITIONS + 1];
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static double deviation(const double *values, int n) {
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += values[i] / n;
    for (int i = 0; i < n; i++) squares += (values[i] - mean) * (values[i] - mean);
    return n > 1 ? sqrt(squares / (n - 1)) : 0;
}

/* The kind of memory the weights lie in: a mapped file has small pages. */
static int memory_kind(const Bench *b, const Subject *s) {
    bool mapped = !s->image && !b->a->common.no_mmap && s->info.repacked_bytes == 0;
    return mapped ? BANDWIDTH_SMALL_PAGES : BANDWIDTH_AS_ALLOCATED;
}

static json_t *numbers(const double *values, int n) {
    json_t *list = json_array();
    for (int i = 0; list && i < n; i++) json_array_append_new(list, json_real(values[i]));
    return list;
}

static json_t *test_json(const Bench *b, const Test *t) {
    const Subject *s = t->of;
    const Args *a = b->a;
    int reps = a->repetitions, kind = memory_kind(b, s);
    double speed = median(t->speed, reps), limit = median(b->bandwidth[kind], b->n_measured);
    double bytes = bytes_per_token(a, t);
    json_t *o = json_pack("{s:s,s:s,s:s,s:o,s:f,s:f}", "test", t->name, "type", s->type, "model",
                          s->name, "tokens_per_second", numbers(t->speed, reps), "median", speed,
                          "stddev", deviation(t->speed, reps));
    if (!o) return NULL;
    /* Prefill shares each read of the weights among many tokens: no bytes per token to speak of. */
    json_object_set_new(o, "bytes_per_token", t->decode ? json_real(floor(bytes)) : json_null());
    json_object_set_new(o, "bandwidth_share",
                        t->decode ? json_real(bytes * speed / limit) : json_null());
    json_object_set_new(o, "bandwidth", json_real(limit));
    json_object_set_new(o, "bandwidth_runs", numbers(b->bandwidth[kind], b->n_measured));
    json_object_set_new(o, "bandwidth_4k_pages",
                        json_real(median(b->bandwidth[BANDWIDTH_SMALL_PAGES], b->n_measured)));
    DibitMemory m;
    dibit_memory(s->session, &m);
    json_t *more = json_pack(
        "{s:i,s:i,s:i,s:i,s:i,s:s,s:s,s:i,s:i,s:s*,s:I,s:I,s:s,s:I,s:I,s:I,s:s}", "n_prompt",
        t->decode ? 0 : t->n, "n_gen", t->decode ? t->n : 0, "n_depth", a->n_depth, "n_threads",
        s->info.n_threads, "repetitions", reps, "cache_type_k", a->kv.k, "cache_type_v", a->kv.v,
        "kv_sinks", a->kv.sinks, "kv_window", a->kv.window, "kv_layers", a->kv.layers, "kv_zero",
        (json_int_t)m.kv_zero, "kv_saturated", (json_int_t)m.kv_saturated, "isa", s->info.isa,
        "n_params", (json_int_t)s->info.n_params, "weight_bytes", (json_int_t)s->info.weight_bytes,
        "repacked_bytes", (json_int_t)s->info.repacked_bytes, "version", dibit_version());
    json_object_update(o, more);
    json_decref(more);
    return o;
}

static int report(const Bench *b) {
    if (b->a->json) {
        json_t *list = json_array();
        for (int i = 0; i < b->n_tests; i++)
            if (json_array_append_new(list, test_json(b, &b->tests[i])) != 0)
                return cli_error("no memory for the report");
        return cli_print_json(list, true);
    }
    const Subject *first = &b->subjects[0];
    char kv[120];
    cli_kv_text(&b->a->kv, kv, sizeof kv);
    printf("%d threads, %s, KV cache %s; read bandwidth %.1f GB/s (4 KiB pages %.1f), medians\n",
           first->info.n_threads, first->info.isa, kv,
           median(b->bandwidth[BANDWIDTH_AS_ALLOCATED], b->n_measured) * 1e-9,
           median(b->bandwidth[BANDWIDTH_SMALL_PAGES], b->n_measured) * 1e-9);
    printf("%-24s %-6s %9s %-14s %10s %8s %10s %7s\n", "model", "type", "MiB", "test", "tokens/s",
           "+-", "MB/token", "share");
    for (int i = 0; i < b->n_tests; i++) {
        const Test *t = &b->tests[i];
        const Subject *s = t->of;
        int reps = b->a->repetitions;
        double speed = median(t->speed, reps), bytes = bytes_per_token(b->a, t);
        const char *slash = strrchr(s->name, '/');
        printf("%-24s %-6s %9.1f %-14s %10.2f %8.2f", slash ? slash + 1 : s->name, s->type,
               (double)s->info.weight_bytes / 1048576, t->name, speed, deviation(t->speed, reps));
        if (t->decode)
            printf(" %10.1f %5.1f %%", bytes * 1e-6,
                   100 * bytes * speed / median(b->bandwidth[memory_kind(b, s)], b->n_measured));
        putchar('\n');
    }
    for (int i = 0; i < b->n_subjects; i++) {
        DibitMemory m;
        dibit_memory(b->subjects[i].session, &m);
        cli_kv_warn(m.kv_saturated);
    }
    return 0;
}

/* ---- the command ---- */

static void close_bench(Bench *b) {
    for (int i = 0; i < b->n_subjects; i++) {
        Subject *s = &b->subjects[i];
        dibit_session_free(&s->session);
        dibit_close(&s->engine);
        mem_free(NULL, s->image);
        free(s->ids);
        free(s->type);
    }
    for (int i = 0; i < b->n_tests; i++) free(b->tests[i].speed);
    for (int k = 0; k < BANDWIDTH_KINDS; k++) free(b->bandwidth[k]);
    free(b->type_list);
    bandwidth_close(&b->memory);
}

static int bench(const Args *a) {
    Bench b = { .a = a };
    DibitError err = { 0 };
    int code = open_subjects(&b);
    for (int k = 0; k < BANDWIDTH_KINDS && code == 0; k++) {
        b.bandwidth[k] = calloc((size_t)a->repetitions + 1, sizeof(double));
        if (!b.bandwidth[k]) code = cli_error("no memory for the timings");
    }
    for (int i = 0; i < b.n_subjects && code == 0; i++) {
        code = add_test(&b, &b.subjects[i], false, a->n_prompt);
        if (code == 0) code = add_test(&b, &b.subjects[i], true, a->n_gen);
    }
    if (code == 0 && bandwidth_open(&b.memory, b.subjects[0].info.n_threads, &err) < 0)
        code = cli_fail(&err);
    if (code == 0) code = run_all(&b);
    if (code == 0) code = report(&b);
    close_bench(&b);
    return code;
}

static int check(const Args *a) {
    if (a->shape && a->models.n) return cli_misuse("bench", "-m and --shape exclude each other");
    if (a->n_prompt + a->n_gen == 0) return cli_misuse("bench", "-p 0 and -n 0 leave no test");
    int code = cli_kv_check("bench", &a->kv);
    if (code != 0) return code;
    if (!a->shape) return 0;
    const char *names[32];
    int n = 0;
    for (const char *const *s = shape_names(); *s && n < 32; s++) {
        if (strcmp(*s, a->shape) == 0) return 0;
        names[n++] = *s;
    }
    const char *near = cli_suggest(a->shape, names, n);
    return cli_misuse("bench", "--shape: unknown shape \"%s\"; did you mean %s?", a->shape,
                      near ? near : names[0]);
}

int cmd_bench(int argc, char **argv) {
    Args a = { .types = "q4",
               .head = "q8",
               .kv = CLI_KV_DEFAULT,
               .n_prompt = 512,
               .n_gen = 64,
               .repetitions = 5 };
    const CliOption options[] = {
        { "model", "m", CLI_TEXTS, &a.models, "FILE", "model in GGUF form", 0, 0, NULL },
        { "shape", NULL, CLI_TEXT, &a.shape, "NAME",
          "instead of a file, a model of this shape with random weights: llama-3.2-1b, "
          "llama-2-7b, base-34m",
          0, 0, NULL },
        { "type", NULL, CLI_TEXT, &a.types, "TYPES",
          "types of its block matrices, comma-separated: compared in one run", 0, 0, NULL },
        { "head", NULL, CLI_TEXT, &a.head, "TYPE", "type of its embedding and output", 0, 0, NULL },
        { "vocab", NULL, CLI_INT, &a.n_vocab, "N", "its vocabulary; 0: 32000", 0, 1 << 24, NULL },
        { "n-prompt", "p", CLI_INT, &a.n_prompt, "N", "tokens of the prefill test; 0: none", 0,
          1 << 24, NULL },
        { "n-gen", "n", CLI_INT, &a.n_gen, "N", "tokens of the decode test; 0: none", 0, 1 << 24,
          NULL },
        { "n-depth", "d", CLI_INT, &a.n_depth, "N", "tokens in the cache before a test", 0, 1 << 24,
          NULL },
        { "batch-size", "b", CLI_INT, &a.n_batch, "N", "tokens of one prefill pass; 0: 256", 0,
          65536, NULL },
        { "repetitions", "r", CLI_INT, &a.repetitions, "N", "repetitions of each test", 1,
          MAX_REPETITIONS, NULL },
        CLI_ENGINE_ROWS(&a.common),
        CLI_KV_ROWS(&a.kv),
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "bench",
        "[-m FILE... | --shape NAME --type TYPES] [options]",
        "Measures prefill (ppN) and decode (tgN) in tokens/s: one warm-up, then the repetitions; "
        "the\nmedian counts. The read bandwidth of the same threads is measured between the "
        "repetitions;\nshare is bytes read per token (each matrix once, and the KV cache) x "
        "tokens/s / bandwidth.",
        options,
        NULL,
        0,
        0,
        "  dibit bench -m model.gguf -p 512 -n 64 -t 2\n"
        "  dibit bench --shape llama-3.2-1b --type q4,s2 -t 2 --json"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if ((code = check(&a)) != 0) return code;
    return bench(&a);
}
