/* bench.c - `dibit bench`: tokens per second of prefill (pp) and decode (tg), as llama-bench means
 * them: one warm-up, random tokens, tokenizing and sampling left out. The repetitions of all
 * models, cache types and depths alternate, with the memory's bandwidth measured between them, so
 * that ratios within one run hold on a machine whose speed drifts. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bandwidth.h"
#include "cli.h"
#include "shape.h"

enum { MAX_MODELS = 16, MAX_REPETITIONS = 1000, MAX_CASES = 64 };
enum { MATMUL, ATTEND, CACHE, REST, TOTAL, N_PARTS }; /* of a token's time */
static const char *const part_names[N_PARTS] = { "matmul", "attention", "cache", "rest", "total" };

typedef struct Args {
    CliTexts models;
    CliModel common;
    const char *shape, *types, *head, *depths;
    CliKv kv; /* types: lists of them */
    int n_vocab, n_prompt, n_gen, n_batch, repetitions;
    bool profile, json;
} Args;

typedef struct Subject { /* one model */
    const char *name;
    char *type; /* of most of its weights */
    uint8_t *image;
    DibitEngine *engine;
    DibitModelInfo info;
    int32_t *ids;         /* (the largest depth + the longer test): random tokens */
    uint64_t weight_read; /* bytes a token reads */
} Subject;

typedef struct Case { /* a model with a cache of some type and depth */
    Subject *of;
    CliKv kv;
    int depth;
    DibitSession *session;
    uint64_t kv_per_position; /* bytes of all layers' keys and values of one position */
} Case;

typedef struct Test {
    Case *of;
    bool decode;
    int n;
    char name[32];          /* "tg64" or "tg64 @ d4096" */
    double *speed;          /* (repetitions) tokens per second */
    double *parts[N_PARTS]; /* (repetitions) ms of a token, with --profile */
} Test;

typedef struct Bench {
    const Args *a;
    Subject subjects[MAX_MODELS];
    Case cases[MAX_CASES];
    Test tests[2 * MAX_CASES];
    int n_subjects, n_cases, n_tests, n_measured;
    Bandwidth memory;
    double *bandwidth[BANDWIDTH_KINDS]; /* (repetitions + 1) */
    char *lists[4];                     /* of types, depths, the cache's types: cut into pieces */
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
static int count_kv(Case *c) {
    DibitMemory less, more;
    DibitError err = { 0 };
    DibitSessionOptions so = { .n_ctx = c->kv.window + 16 };
    cli_kv_options(&c->kv, &so);
    if (dibit_session_memory(c->of->engine, &so, &less, &err) < 0) return cli_fail(&err);
    so.n_ctx += 16;
    if (dibit_session_memory(c->of->engine, &so, &more, &err) < 0) return cli_fail(&err);
    c->kv_per_position = (more.kv - less.kv) / 16;
    return 0;
}

/* Mean over the tokens of a test. */
static double kv_bytes_per_token(const Test *t) {
    const Case *c = t->of;
    double positions = (double)c->depth + (double)(t->n + 1) / 2;
    if (c->of->info.sliding_window > 0)
        positions = MIN(positions, (double)c->of->info.sliding_window);
    return positions * (double)c->kv_per_position;
}

static double bytes_per_token(const Test *t) {
    return (double)t->of->of->weight_read + kv_bytes_per_token(t);
}

/* ---- opening ---- */

static int open_image(const Args *a, Subject *s, const char *type) {
    DibitError err = { 0 };
    size_t size;
    s->name = a->shape;
    if (shape_make(&s->image, &size, a->shape, type, a->head, a->n_vocab, &err) < 0)
        return cli_fail(&err);
    return cli_open_engine(&s->engine, &a->common, NULL, s->image, size);
}

static int open_file(const Args *a, Subject *s, const char *path) {
    CliModel m = a->common;
    m.path = path;
    s->name = path ? path : "dibit-34m.gguf";
    return cli_open(&s->engine, &m);
}

static int prepare(Subject *s, int n_ids) {
    dibit_model_info(s->engine, &s->info);
    count_weights(s);
    s->ids = malloc((size_t)n_ids * sizeof *s->ids);
    if (!s->ids || !s->type) return cli_error("no memory for the benchmark's tokens");
    for (int i = 0; i < n_ids; i++)
        s->ids[i] = (int32_t)(hash64(1, &i, sizeof i) % (uint64_t)s->info.n_vocab);
    return 0;
}

static int tokens_of_test(const Args *a) {
    return MAX(MAX(a->n_prompt, a->n_gen), 1);
}

static int open_case(const Args *a, Case *c) {
    DibitError err = { 0 };
    DibitSessionOptions so = { .n_batch = a->n_batch };
    /* room for the window besides: records are made only of positions that can leave it */
    bool records = c->kv.k[0] == 'k' || c->kv.v[0] == 'k';
    so.n_ctx = c->depth + tokens_of_test(a) + (records ? c->kv.window : 0);
    cli_kv_options(&c->kv, &so);
    if (count_kv(c) != 0) return 1;
    return dibit_session_create(&c->session, c->of->engine, &so, &err) < 0 ? cli_fail(&err) : 0;
}

/* Pieces of a comma-separated text, or -1 when there are more than cap; *copy owns them. */
static int split(char **copy, const char *text, const char **out, int cap) {
    int n = 0;
    *copy = strdup(text);
    for (char *save = NULL, *t = *copy ? strtok_r(*copy, ",", &save) : NULL; t;
         t = strtok_r(NULL, ",", &save)) {
        if (n == cap) return -1;
        out[n++] = t;
    }
    return n;
}

static int open_subjects(Bench *b) {
    const Args *a = b->a;
    int code = 0;
    if (a->shape) {
        const char *types[MAX_MODELS];
        int n = split(&b->lists[0], a->types, types, MAX_MODELS);
        if (n < 0) return cli_misuse("bench", "at most %d types", MAX_MODELS);
        for (int i = 0; i < n && code == 0; i++)
            code = open_image(a, &b->subjects[b->n_subjects++], types[i]);
    } else {
        for (int i = 0; i < MAX(a->models.n, 1) && code == 0; i++) {
            if (i == MAX_MODELS) return cli_misuse("bench", "at most %d models", MAX_MODELS);
            code =
                open_file(a, &b->subjects[b->n_subjects++], a->models.n ? a->models.at[i] : NULL);
        }
    }
    return code;
}

static int add_test(Bench *b, Case *s, bool decode, int n) {
    if (n == 0) return 0;
    Test *t = &b->tests[b->n_tests++];
    *t = (Test){ .of = s, .decode = decode, .n = n };
    int len = snprintf(t->name, sizeof t->name, "%s%d", decode ? "tg" : "pp", n);
    if (s->depth) snprintf(t->name + len, sizeof t->name - (size_t)len, " @ d%d", s->depth);
    size_t reps = (size_t)b->a->repetitions;
    t->speed = calloc(reps * (1 + N_PARTS), sizeof *t->speed);
    for (size_t i = 0; t->speed && i < N_PARTS; i++) t->parts[i] = t->speed + (i + 1) * reps;
    return t->speed ? 0 : cli_error("no memory for the timings");
}

static int add_case(Bench *b, Subject *s, const char *k, const char *v, int depth) {
    const Args *a = b->a;
    if (b->n_cases == MAX_CASES)
        return cli_misuse("bench", "at most %d of models, cache types and depths", MAX_CASES);
    Case *c = &b->cases[b->n_cases++];
    *c = (Case){ .of = s, .kv = a->kv, .depth = depth };
    c->kv.k = k;
    c->kv.v = v;
    int code = open_case(a, c);
    if (code == 0) code = add_test(b, c, false, a->n_prompt);
    return code ? code : add_test(b, c, true, a->n_gen);
}

/* Every model with every pair of cache types (a single one goes with each of the other side's) at
 * every depth. */
static int add_cases(Bench *b) {
    const Args *a = b->a;
    const char *depth[MAX_CASES], *k[MAX_CASES], *v[MAX_CASES];
    int n_d = split(&b->lists[1], a->depths, depth, MAX_CASES), depths[MAX_CASES], code = 0;
    int n_k = split(&b->lists[2], a->kv.k, k, MAX_CASES), most = 0;
    int n_v = split(&b->lists[3], a->kv.v, v, MAX_CASES);
    if (n_d < 1 || n_k < 1 || n_v < 1) return cli_misuse("bench", "at most %d cases", MAX_CASES);
    if (n_k != n_v && n_k > 1 && n_v > 1)
        return cli_misuse("bench", "-ctk has %d types and -ctv %d", n_k, n_v);
    for (int i = 0; i < n_d; i++) {
        char *end;
        long d = strtol(depth[i], &end, 10);
        if (end == depth[i] || *end || d < 0 || d > 1 << 24)
            return cli_misuse("bench", "-d: \"%s\" is not a number of 0 to %d", depth[i], 1 << 24);
        depths[i] = (int)d;
        most = MAX(most, depths[i]);
    }
    for (int i = 0; i < b->n_subjects && code == 0; i++) {
        code = prepare(&b->subjects[i], most + tokens_of_test(a));
        for (int p = 0; p < MAX(n_k, n_v) && code == 0; p++)
            for (int d = 0; d < n_d && code == 0; d++)
                code =
                    add_case(b, &b->subjects[i], k[n_k > 1 ? p : 0], v[n_v > 1 ? p : 0], depths[d]);
    }
    return code;
}

/* ---- measuring ---- */

/* Runs n tokens of a test after the depth's tokens, which stay in the cache from run to run; their
 * keys and values are random at first. */
static int run_test(const Bench *b, const Test *t, int n, double *tokens_per_second,
                    DibitProfile *profile) {
    DibitError err = { 0 };
    DibitSession *s = t->of->session;
    const int32_t *ids = t->of->of->ids;
    size_t depth = (size_t)t->of->depth;
    int64_t r = 0;
    if (dibit_tokens(s, NULL) < depth) r = dibit_fill(s, ids, depth, &err);
    if (r >= 0) r = dibit_sync(s, ids, depth, &err);
    dibit_profile(s, b->a->profile, NULL);
    uint64_t start = clock_ns();
    if (!t->decode && r >= 0) r = dibit_sync(s, ids, depth + (size_t)n, &err);
    for (int i = 1; t->decode && i <= n && r >= 0; i++)
        r = dibit_sync(s, ids, depth + (size_t)i, &err);
    uint64_t ns = clock_ns() - start;
    dibit_profile(s, 0, profile);
    if (r < 0) return cli_fail(&err);
    *tokens_per_second = n * 1e9 / (double)MAX(ns, 1u);
    return 0;
}

static void add_profile(Test *t, int i, const DibitProfile *p) {
    const uint64_t parts[] = { p->matmul_ns, p->attend_ns, p->cache_ns,
                               p->total_ns - p->matmul_ns - p->attend_ns - p->cache_ns,
                               p->total_ns };
    for (int k = 0; k < N_PARTS; k++)
        t->parts[k][i] = (double)parts[k] * 1e-6 / (double)MAX(p->n_tokens, (uint64_t)1);
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
    DibitProfile profile;
    cli_catch_interrupt(NULL);
    for (int i = -1; i < reps && code == 0; i++) {
        if (i >= 0) measure_bandwidth(b);
        for (int k = 0; k < b->n_tests && code == 0; k++) {
            Test *t = &b->tests[k];
            cli_progress(&progress, "bench, runs", done++, total);
            cli_catch_interrupt(t->of->session);
            if (i < 0)
                code = run_test(b, t, t->decode ? 1 : t->n, &ignored, &profile); /* warm-up */
            else
                code = run_test(b, t, t->n, &t->speed[i], &profile);
            if (i >= 0) add_profile(t, i, &profile);
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

/* Milliseconds of a token. */
static json_t *profile_json(const Bench *b, const Test *t) {
    json_t *o = json_object();
    for (int k = 0; o && k < N_PARTS; k++)
        json_object_set_new(o, part_names[k], json_real(median(t->parts[k], b->a->repetitions)));
    return o;
}

/* How fast attention reads the cache, beside the memory's bandwidth. */
static void print_profile(const Bench *b, const Test *t) {
    printf("%*s", 42, "");
    for (int k = 0; k < N_PARTS; k++)
        printf("%s %.3f ms%s", part_names[k], median(t->parts[k], b->a->repetitions),
               k + 1 < N_PARTS ? ", " : "");
    double ms = median(t->parts[ATTEND], b->a->repetitions);
    double limit = median(b->bandwidth[BANDWIDTH_AS_ALLOCATED], b->n_measured);
    if (t->decode && t->of->depth && ms > 0)
        printf("; attention reads %.1f GB/s, %.1f %%", kv_bytes_per_token(t) / ms * 1e-6,
               100 * kv_bytes_per_token(t) / ms * 1e3 / limit);
    putchar('\n');
}

static json_t *test_json(const Bench *b, const Test *t) {
    const Case *c = t->of;
    const Subject *s = c->of;
    const Args *a = b->a;
    int reps = a->repetitions, kind = memory_kind(b, s);
    double speed = median(t->speed, reps), limit = median(b->bandwidth[kind], b->n_measured);
    double bytes = bytes_per_token(t);
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
    dibit_memory(c->session, &m);
    json_t *more = json_pack(
        "{s:i,s:i,s:i,s:i,s:i,s:s,s:s,s:i,s:i,s:s*,s:I,s:I,s:s,s:I,s:I,s:I,s:s}", "n_prompt",
        t->decode ? 0 : t->n, "n_gen", t->decode ? t->n : 0, "n_depth", c->depth, "n_threads",
        s->info.n_threads, "repetitions", reps, "cache_type_k", c->kv.k, "cache_type_v", c->kv.v,
        "kv_sinks", a->kv.sinks, "kv_window", a->kv.window, "kv_layers", a->kv.layers, "kv_zero",
        (json_int_t)m.kv_zero, "kv_saturated", (json_int_t)m.kv_saturated, "isa", s->info.isa,
        "n_params", (json_int_t)s->info.n_params, "weight_bytes", (json_int_t)s->info.weight_bytes,
        "repacked_bytes", (json_int_t)s->info.repacked_bytes, "version", dibit_version());
    json_object_update(o, more);
    json_decref(more);
    if (a->profile) json_object_set_new(o, "profile_ms", profile_json(b, t));
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
    printf("%d threads, %s; read bandwidth %.1f GB/s (4 KiB pages %.1f), medians\n",
           first->info.n_threads, first->info.isa,
           median(b->bandwidth[BANDWIDTH_AS_ALLOCATED], b->n_measured) * 1e-9,
           median(b->bandwidth[BANDWIDTH_SMALL_PAGES], b->n_measured) * 1e-9);
    printf("%-24s %-6s %9s %-9s %-14s %10s %8s %10s %7s\n", "model", "type", "MiB", "KV cache",
           "test", "tokens/s", "+-", "MB/token", "share");
    for (int i = 0; i < b->n_tests; i++) {
        const Test *t = &b->tests[i];
        const Subject *s = t->of->of;
        int reps = b->a->repetitions;
        double speed = median(t->speed, reps), bytes = bytes_per_token(t);
        const char *slash = strrchr(s->name, '/');
        char kv[20];
        snprintf(kv, sizeof kv, "%s/%s", t->of->kv.k, t->of->kv.v);
        printf("%-24s %-6s %9.1f %-9s %-14s %10.2f %8.2f", slash ? slash + 1 : s->name, s->type,
               (double)s->info.weight_bytes / 1048576, kv, t->name, speed,
               deviation(t->speed, reps));
        if (t->decode)
            printf(" %10.1f %5.1f %%", bytes * 1e-6,
                   100 * bytes * speed / median(b->bandwidth[memory_kind(b, s)], b->n_measured));
        putchar('\n');
        if (b->a->profile) print_profile(b, t);
    }
    for (int i = 0; i < b->n_cases; i++) {
        DibitMemory m;
        dibit_memory(b->cases[i].session, &m);
        cli_kv_warn(m.kv_saturated);
    }
    return 0;
}

/* ---- the command ---- */

static void close_bench(Bench *b) {
    for (int i = 0; i < b->n_cases; i++) dibit_session_free(&b->cases[i].session);
    for (int i = 0; i < b->n_subjects; i++) {
        Subject *s = &b->subjects[i];
        dibit_close(&s->engine);
        mem_free(NULL, s->image);
        free(s->ids);
        free(s->type);
    }
    for (int i = 0; i < b->n_tests; i++) free(b->tests[i].speed);
    for (int k = 0; k < BANDWIDTH_KINDS; k++) free(b->bandwidth[k]);
    for (size_t i = 0; i < ARRAY_LEN(b->lists); i++) free(b->lists[i]);
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
    if (code == 0) code = add_cases(&b);
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
    const char *names[64];
    int n = 0;
    for (int i = 0; n < 64 && shape_at(i); i++)
        if (shape_can_make(shape_at(i))) names[n++] = shape_at(i)->name;
    const Shape *s = shape_find(a->shape);
    if (s && shape_can_make(s)) return 0;
    if (s) return cli_misuse("bench", "--shape: models in the shape of %s are not made", s->name);
    const char *near = cli_suggest(a->shape, names, n);
    return cli_misuse("bench", "--shape: unknown shape \"%s\"; did you mean %s?", a->shape,
                      near ? near : names[0]);
}

int cmd_bench(int argc, char **argv) {
    Args a = { .types = "q4",
               .head = "q8",
               .depths = "0",
               .kv = CLI_KV_DEFAULT,
               .n_prompt = 512,
               .n_gen = 64,
               .repetitions = 5 };
    const CliOption options[] = {
        { "model", "m", CLI_TEXTS, &a.models, "FILE", "model in GGUF form", 0, 0, NULL },
        { "shape", NULL, CLI_TEXT, &a.shape, "NAME",
          "instead of a file, a model of this shape with random weights: llama-3.2-1b, "
          "llama-2-7b, base-34m and others that `dibit context --list` names",
          0, 0, NULL },
        { "type", NULL, CLI_TEXT, &a.types, "TYPES",
          "types of its block matrices, comma-separated: compared in one run", 0, 0, NULL },
        { "head", NULL, CLI_TEXT, &a.head, "TYPE", "type of its embedding and output", 0, 0, NULL },
        { "vocab", NULL, CLI_INT, &a.n_vocab, "N", "its vocabulary; 0: 32000", 0, 1 << 24, NULL },
        { "n-prompt", "p", CLI_INT, &a.n_prompt, "N", "tokens of the prefill test; 0: none", 0,
          1 << 24, NULL },
        { "n-gen", "n", CLI_INT, &a.n_gen, "N", "tokens of the decode test; 0: none", 0, 1 << 24,
          NULL },
        { "n-depth", "d", CLI_TEXT, &a.depths, "N,...",
          "tokens in the cache before a test; their keys and values are random, not computed", 0, 0,
          NULL },
        { "batch-size", "b", CLI_INT, &a.n_batch, "N", "tokens of one prefill pass; 0: 256", 0,
          65536, NULL },
        { "repetitions", "r", CLI_INT, &a.repetitions, "N", "repetitions of each test", 1,
          MAX_REPETITIONS, NULL },
        { "profile", NULL, CLI_FLAG, &a.profile, NULL,
          "print the milliseconds a token spends in matrix products, attention, encoding the KV "
          "cache and the rest",
          0, 0, NULL },
        CLI_ENGINE_ROWS(&a.common),
        CLI_BACKEND_ROW(&a.common),
        { "cache-type-k", "ctk", CLI_CHOICES, &a.kv.k, "TYPES", "types of the cache's keys", 0, 0,
          CLI_KV_TYPES },
        { "cache-type-v", "ctv", CLI_CHOICES, &a.kv.v, "TYPES",
          "and values, in pairs with them: compared in one run", 0, 0, CLI_KV_TYPES },
        CLI_KV_MORE_ROWS(&a.kv),
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
        "  dibit bench --shape llama-3.2-1b --type q4,s2 -t 2 --json\n"
        "  dibit bench --shape llama-3.2-1b --type s2 -ctk f16,k2 -ctv f16,k2 -d 0,8192 --profile"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if ((code = check(&a)) != 0) return code;
    return bench(&a);
}
