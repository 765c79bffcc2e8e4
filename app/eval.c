/* eval.c - `dibit eval`: perplexity, KL divergence and accuracy on a text, or accuracy on questions
 * with choices. The definitions are in evaluate.h. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "evaluate.h"

enum { MAX_SETTINGS = 16 };

typedef struct Args {
    CliModel model;
    const char *base, *file, *choices;
    CliKv kv; /* types: lists of them */
    int window, chunks, skip;
    bool json;
} Args;

typedef struct Settings { /* of the KV cache, paired */
    const char *k[MAX_SETTINGS], *v[MAX_SETTINGS], *layers[MAX_SETTINGS];
    int n;
    char *text[2]; /* what the pointers point into */
} Settings;

/* ---- options ---- */

static int split(char *text, const char **out) {
    int n = 0;
    for (char *save = NULL, *p = strtok_r(text, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        if (n == MAX_SETTINGS) return -1;
        out[n++] = p;
    }
    return n;
}

/* "f16,q8" and "f16,q8" are two settings; a single value goes with each of the other list. */
static int pair_settings(const Args *a, Settings *s) {
    s->text[0] = strdup(a->kv.k);
    s->text[1] = strdup(a->kv.v);
    if (!s->text[0] || !s->text[1]) return cli_error("no memory");
    int nk = split(s->text[0], s->k), nv = split(s->text[1], s->v);
    if (nk < 1 || nv < 1)
        return cli_misuse("eval", "-ctk and -ctv take 1 to %d types", MAX_SETTINGS);
    if (nk != nv && nk != 1 && nv != 1)
        return cli_misuse("eval", "-ctk has %d types and -ctv %d: give as many, or one", nk, nv);
    s->n = MAX(nk, nv);
    if (a->choices && s->n > 1)
        return cli_misuse("eval", "--choices takes one type with -ctk and -ctv");
    for (int i = nk; i < s->n; i++) s->k[i] = s->k[0];
    for (int i = nv; i < s->n; i++) s->v[i] = s->v[0];
    return 0;
}

typedef struct Display {
    CliProgress progress;
    const char *what;
} Display;

static int show(void *user, int done, int total) {
    Display *d = user;
    cli_progress(&d->progress, d->what, (uint64_t)done, (uint64_t)total);
    return cli_interrupted();
}

/* ---- a text ---- */

static int set(json_t *o, const char *name, EvalValue v) {
    char se[40];
    snprintf(se, sizeof se, "%s_se", name);
    return json_object_set_new(o, name, cli_number(v.mean)) |
           json_object_set_new(o, se, cli_number(v.se));
}

static CliKv setting(const Args *a, const char *k, const char *v) {
    CliKv kv = a->kv;
    kv.k = k;
    kv.v = v;
    return kv;
}

static int set_kv(json_t *o, const CliKv *kv) {
    json_t *fields =
        json_pack("{s:s,s:s,s:i,s:i,s:s*}", "cache_type_k", kv->k, "cache_type_v", kv->v,
                  "kv_sinks", kv->sinks, "kv_window", kv->window, "kv_layers", kv->layers);
    int rc = fields ? json_object_update(o, fields) : -1;
    json_decref(fields);
    return rc;
}

static json_t *result_json(const Args *a, const EvalResult *r, double seconds) {
    json_t *o = json_pack("{s:s,s:i,s:i,s:I,s:I,s:I,s:I,s:f}", "text", a->file, "window", a->window,
                          "skip", a->skip, "windows", (json_int_t)r->n_windows, "tokens",
                          (json_int_t)r->n_tokens, "kv_zero", (json_int_t)r->kv_zero,
                          "kv_saturated", (json_int_t)r->kv_saturated, "seconds", seconds);
    if (!o) return NULL;
    CliKv kv = setting(a, r->cache_k, r->cache_v);
    int rc = set_kv(o, &kv) | set(o, "ppl", r->ppl) | set(o, "top1_accuracy", r->top1_accuracy);
    if (r->has_base) {
        rc |= set(o, "ppl_base", r->ppl_base) | set(o, "ppl_ratio", r->ppl_ratio);
        rc |= set(o, "kld_mean", r->kld_mean);
        rc |= json_object_set_new(o, "kld_median", cli_number(r->kld_median));
        rc |= json_object_set_new(o, "kld_p99", cli_number(r->kld_p99));
        rc |= json_object_set_new(o, "kld_p999", cli_number(r->kld_p999));
        rc |= set(o, "top1_agreement", r->top1_agreement);
        rc |= set(o, "top1_accuracy_base", r->top1_accuracy_base);
        rc |= set(o, "degradation", r->degradation);
    }
    if (rc == 0) return o;
    json_decref(o);
    return NULL;
}

/* One setting: an object. Several: a list of them. */
static int print_json(const Args *a, const EvalResult *r, int n, double seconds) {
    if (n == 1) return cli_print_json(result_json(a, r, seconds), true);
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        if (json_array_append_new(list, result_json(a, &r[i], seconds)) != 0)
            return cli_error("no memory for the result");
    return cli_print_json(list, true);
}

static void print_table(const Args *a, const EvalResult *r, int n, double seconds) {
    printf("%s: %llu windows of %d, %llu positions", a->file, (unsigned long long)r->n_windows,
           a->window, (unsigned long long)r->n_tokens);
    if (a->skip) printf(" (the first %d of each window left out)", a->skip);
    printf(", %.0f s\n", seconds);
    for (int i = 0; i < n; i++) {
        const EvalResult *p = &r[i];
        CliKv kv = setting(a, p->cache_k, p->cache_v);
        char text[120];
        cli_kv_text(&kv, text, sizeof text);
        printf("\nKV cache %s\n", text);
        cli_kv_warn(p->kv_saturated);
        printf("  perplexity          %10.4f +- %.4f\n", p->ppl.mean, p->ppl.se);
        printf("  top-1 accuracy      %10.4f +- %.4f\n", p->top1_accuracy.mean,
               p->top1_accuracy.se);
        if (!p->has_base) continue;
        printf("  perplexity of base  %10.4f +- %.4f\n", p->ppl_base.mean, p->ppl_base.se);
        printf("  perplexity ratio    %10.5f +- %.5f\n", p->ppl_ratio.mean, p->ppl_ratio.se);
        printf("  KLD mean            %10.6f +- %.6f\n", p->kld_mean.mean, p->kld_mean.se);
        printf("  KLD median          %10.6f   99 %% %.6f   99.9 %% %.6f\n", p->kld_median,
               p->kld_p99, p->kld_p999);
        printf("  top-1 agreement     %10.4f +- %.4f\n", p->top1_agreement.mean,
               p->top1_agreement.se);
        printf("  top-1 acc. of base  %10.4f +- %.4f\n", p->top1_accuracy_base.mean,
               p->top1_accuracy_base.se);
        printf("  degradation, %%      %10.3f +- %.3f\n", p->degradation.mean, p->degradation.se);
    }
}

/* Settings and progress of both kinds of evaluation. */
static EvalOptions options_of(const Args *a, Settings *s, Display *d) {
    DibitSessionOptions so;
    cli_kv_options(&a->kv, &so);
    for (int i = 0; i < s->n; i++) s->layers[i] = so.cache_layers;
    return (EvalOptions){ .cache_k = (const char **)(uintptr_t)s->k,
                          .cache_v = (const char **)(uintptr_t)s->v,
                          .n_settings = s->n,
                          .cache_sinks = so.cache_sinks,
                          .cache_window = so.cache_window,
                          .cache_layers = s->layers,
                          .progress = show,
                          .user = d };
}

static int eval_ids(const Args *a, DibitEngine *e, DibitEngine *base, const int32_t *ids, size_t n,
                    Settings *s) {
    Display d = { .what = "eval, windows" };
    EvalOptions opt = options_of(a, s, &d);
    opt.window = a->window;
    opt.max_windows = a->chunks;
    opt.skip = a->skip;
    EvalResult results[MAX_SETTINGS];
    DibitError err = { 0 };
    cli_catch_interrupt(NULL);
    uint64_t start = clock_ns();
    int rc = evaluate_text(e, base, ids, n, &opt, results, &err);
    double seconds = (double)(clock_ns() - start) * 1e-9;
    cli_progress_clear(&d.progress);
    if (rc < 0) return cli_fail(&err);
    if (a->json) return print_json(a, results, s->n, seconds);
    print_table(a, results, s->n, seconds);
    return 0;
}

static int eval_text(const Args *a, DibitEngine *e, Settings *s) {
    DibitEngine *base = NULL;
    size_t n_text = 0, n = 0;
    int code = 0;
    bool same = a->base && a->model.path && strcmp(a->base, a->model.path) == 0;
    CliModel base_model = a->model;
    base_model.path = a->base;
    base_model.backend = NULL; /* the base is what the CPU makes of it */
    if (a->base && !same) code = cli_open(&base, &base_model);
    if (code != 0) return code;
    char *text = cli_read(a->file, &n_text);
    int32_t *ids = text ? cli_tokenize(e, text, n_text, 0, &n) : NULL;
    code = ids ? eval_ids(a, e, same ? e : base, ids, n, s) : 1;
    free(ids);
    free(text);
    dibit_close(&base);
    return code;
}

/* ---- choices ---- */

typedef struct Questions {
    json_t *lines; /* a list of the file's objects; owns the strings */
    ChoiceItem *items;
    const char **choices; /* of all items */
    int n;
} Questions;

static const char *line_fault(const json_t *o) {
    const json_t *choices = json_object_get(o, "choices"), *gold = json_object_get(o, "gold");
    if (!json_is_string(json_object_get(o, "query"))) return "\"query\" is not a text";
    if (json_array_size(choices) < 1) return "\"choices\" is not a list of texts";
    for (size_t i = 0; i < json_array_size(choices); i++)
        if (!json_is_string(json_array_get(choices, i)))
            return "\"choices\" is not a list of texts";
    if (!json_is_integer(gold) || json_integer_value(gold) < 0 ||
        (size_t)json_integer_value(gold) >= json_array_size(choices))
        return "\"gold\" is not the number of a choice, counted from 0";
    return NULL;
}

/* Parses the lines into q->lines; returns the number of choices in all, or -1. */
static int64_t parse_lines(const char *path, char *text, Questions *q) {
    int64_t n_choices = 0;
    int number = 0;
    q->lines = json_array();
    for (char *line = text, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        number++;
        if (line[strspn(line, " \t\r")] == 0) continue;
        json_error_t err;
        json_t *o = json_loads(line, 0, &err);
        const char *fault = o ? line_fault(o) : err.text;
        if (fault)
            cli_error("%s, line %d: %s", path, number, fault);
        else
            n_choices += (int64_t)json_array_size(json_object_get(o, "choices"));
        if (json_array_append_new(q->lines, o) != 0 || fault) return -1;
    }
    if (n_choices == 0) cli_error("%s: no questions in it", path);
    return n_choices == 0 ? -1 : n_choices;
}

static int read_questions(const Args *a, Questions *q) {
    size_t n_text;
    char *text = cli_read(a->choices, &n_text);
    if (!text) return 1;
    int64_t n_choices = parse_lines(a->choices, text, q);
    free(text);
    if (n_choices < 0) return 1;
    size_t n = json_array_size(q->lines);
    if (a->chunks > 0) n = MIN(n, (size_t)a->chunks);
    q->items = calloc(n, sizeof *q->items);
    q->choices = calloc((size_t)n_choices, sizeof *q->choices);
    if (!q->items || !q->choices) return cli_error("no memory for the questions");
    const char **at = q->choices;
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(q->lines, i), *choices = json_object_get(o, "choices");
        q->items[i] = (ChoiceItem){ json_string_value(json_object_get(o, "query")), at,
                                    (int)json_array_size(choices),
                                    (int)json_integer_value(json_object_get(o, "gold")) };
        for (size_t k = 0; k < json_array_size(choices); k++)
            *at++ = json_string_value(json_array_get(choices, k));
    }
    q->n = (int)n;
    return 0;
}

static int eval_choices(const Args *a, DibitEngine *e, Settings *s) {
    Questions q = { 0 };
    Display d = { .what = "eval, questions" };
    EvalOptions opt = options_of(a, s, &d);
    CliKv kv = setting(a, s->k[0], s->v[0]);
    ChoiceResult r;
    DibitError err = { 0 };
    int code = read_questions(a, &q);
    cli_catch_interrupt(NULL);
    if (code == 0 && evaluate_choices(e, q.items, q.n, &opt, &r, &err) < 0) {
        cli_progress_clear(&d.progress);
        code = cli_fail(&err);
    } else if (code == 0) {
        cli_progress_clear(&d.progress);
        if (a->json) {
            json_t *o = json_pack("{s:s,s:i}", "choices", a->choices, "items", r.n_items);
            if (o) set_kv(o, &kv);
            if (o) set(o, "acc_sum", r.acc_sum);
            if (o) set(o, "acc_norm", r.acc_norm);
            code = cli_print_json(o, true);
        } else {
            char text[120];
            cli_kv_text(&kv, text, sizeof text);
            printf("%s: %d questions, KV cache %s\n", a->choices, r.n_items, text);
            printf("  accuracy by summed log-likelihood    %.4f +- %.4f\n", r.acc_sum.mean,
                   r.acc_sum.se);
            printf("  accuracy by log-likelihood per byte  %.4f +- %.4f\n", r.acc_norm.mean,
                   r.acc_norm.se);
        }
    }
    free(q.items);
    free(q.choices);
    json_decref(q.lines);
    return code;
}

/* ---- the command ---- */

static int check(const Args *a) {
    if (!a->file && !a->choices)
        return cli_misuse("eval", "name a text with -f FILE, or questions with --choices FILE");
    if (a->file && a->choices) return cli_misuse("eval", "-f and --choices exclude each other");
    if (a->choices && a->base) return cli_misuse("eval", "--base needs a text (-f)");
    if (a->skip >= a->window)
        return cli_misuse("eval", "--skip %d leaves nothing of a window of %d", a->skip, a->window);
    return cli_kv_check("eval", &a->kv);
}

int cmd_eval(int argc, char **argv) {
    Args a = { .window = 2048, .kv = CLI_KV_DEFAULT };
    const CliOption options[] = {
        CLI_MODEL_ROWS(&a.model),
        CLI_BACKEND_ROW(&a.model),
        { "file", "f", CLI_FILE, &a.file, "FILE", "the text", 0, 0, NULL },
        { "ctx-size", "c", CLI_INT, &a.window, "W", "tokens of a window", 2, 1 << 24, NULL },
        { "chunks", NULL, CLI_INT, &a.chunks, "N", "use the first N windows (or questions); 0: all",
          0, 1e9, NULL },
        { "skip", NULL, CLI_INT, &a.skip, "K", "leave the first K positions of each window out", 0,
          1 << 24, NULL },
        { "base", NULL, CLI_FILE, &a.base, "FILE", "compare with this model (its KV cache is f16)",
          0, 0, NULL },
        { "choices", NULL, CLI_FILE, &a.choices, "FILE",
          "questions instead of a text: lines of {\"query\", \"choices\", \"gold\"}", 0, 0, NULL },
        { "cache-type-k", "ctk", CLI_CHOICES, &a.kv.k, "TYPES", "types of the cache's keys", 0, 0,
          CLI_KV_TYPES },
        { "cache-type-v", "ctv", CLI_CHOICES, &a.kv.v, "TYPES",
          "and values; several are evaluated against one pass of the base", 0, 0, CLI_KV_TYPES },
        CLI_KV_MORE_ROWS(&a.kv),
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "eval",
        "[-m FILE] -f TEXT [--base FILE] [options] | --choices FILE.jsonl",
        "Perplexity and top-1 accuracy on a text, and with --base the KL divergence from that "
        "model,\nwith standard errors. A window is BOS and W - 1 tokens, all W positions count; an "
        "incomplete\nlast window is dropped. A question is asked as QUERY, a newline, \"Answer:\"; "
        "a choice's\nlog-likelihood is that of a blank and the choice after it.",
        options,
        NULL,
        0,
        0,
        "  dibit eval -m model-s3.gguf --base model-bf16.gguf -f wikitext2-test.txt --json\n"
        "  dibit eval -m model.gguf --choices arc_easy.jsonl"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if ((code = check(&a)) != 0) return code;
    Settings s = { 0 };
    DibitEngine *e = NULL;
    code = pair_settings(&a, &s);
    if (code == 0) code = cli_open(&e, &a.model);
    if (code == 0) code = a.choices ? eval_choices(&a, e, &s) : eval_text(&a, e, &s);
    dibit_close(&e);
    free(s.text[0]);
    free(s.text[1]);
    return code;
}
