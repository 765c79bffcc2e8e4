/* context.c - `dibit context`: which context fits, by type of the KV cache, and with --verify the
 * proof of it. Counting and searching is src/context.c; here are words and tables. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "context.h"
#include "shape.h"

enum { MAX_ROWS = 25, BAR = 32 };

typedef struct Args {
    CliModel model; /* path: a file, or the name of a known model */
    const char *kv, *type, *head;
    int64_t budget_mb;
    CliKv recent; /* sinks, window, layers */
    int base;
    bool keep_all, list, verify, json;
} Args;

typedef struct Row {
    char name[16]; /* "k2", "k3/k2" */
    ContextTypes types;
    ContextRow plan;
    int kept; /* positions when sliding windows are not made use of; -1: nothing slides */
    bool filled;
    ContextFill fill;
    int fits; /* positions that were filled in no more memory than the system gave f16; 0: not known
               */
} Row;

typedef struct Report {
    const Args *a;
    ContextModel model, kept; /* kept: without sliding windows */
    char name[128], source[128];
    bool named;
    ContextOptions options;
    Row rows[MAX_ROWS];
    int n_rows;
    ContextFill f16; /* of --verify: the base context */
} Report;

/* ---- the model ---- */

/* Whether `name` can only be meant as a file. */
static bool is_path(const char *name) {
    size_t n = strlen(name);
    return strchr(name, '/') || access(name, F_OK) == 0 ||
           (n > 5 && strcmp(name + n - 5, ".gguf") == 0);
}

static int unknown_model(const char *name) {
    const char *names[64];
    char lower[64];
    int n = 0;
    for (; n < 64 && shape_at(n); n++) names[n] = shape_at(n)->name;
    snprintf(lower, sizeof lower, "%s", name);
    for (char *c = lower; *c; c++) *c = *c >= 'A' && *c <= 'Z' ? (char)(*c + 32) : *c;
    const char *near = cli_suggest(lower, names, n);
    return cli_error("--model: \"%.60s\" is neither a file nor a known model; %s%s%s", name,
                     near ? "did you mean " : "`dibit context --list` names them", near ? near : "",
                     near ? "?" : "");
}

static int open_file(Report *r) {
    DibitEngine *e;
    DibitModelInfo info;
    char path[2048];
    const char *given = cli_model_path(r->a->model.path, path, sizeof path);
    int code = given ? cli_open(&e, &r->a->model) : 1;
    if (code != 0) return code;
    dibit_model_info(e, &info);
    context_opened(&r->model, &info);
    const char *slash = strrchr(given, '/');
    snprintf(r->source, sizeof r->source, "%s", slash ? slash + 1 : given);
    snprintf(r->name, sizeof r->name, "%s", info.name[0] ? info.name : r->source);
    r->options.n_threads = info.n_threads;
    r->model.name = r->name;
    r->model.source = r->source;
    r->kept = r->model;
    r->kept.parts[0].window = info.sliding_window; /* for the words alone */
    dibit_close(&e);
    return 0;
}

static int open_model(Report *r) {
    const Args *a = r->a;
    DibitError err = { 0 };
    const char *name = a->model.path;
    r->named = name && shape_find(name);
    if (name && !r->named && !is_path(name)) return unknown_model(name);
    if (!r->named) return open_file(r);
    if (a->verify)
        return cli_misuse("context", "--verify needs a model file (-m FILE), not a name");
    if (context_named(&r->model, name, a->type, a->head, &err) < 0) return cli_fail(&err);
    r->options.n_threads = a->model.n_threads ? a->model.n_threads : cpu_count();
    r->kept = r->model;
    for (int i = 0; i < r->kept.n_parts; i++) r->kept.parts[i].window = 0;
    if (a->keep_all) r->model = r->kept;
    return 0;
}

/* The window that slides in the model, whether or not it is counted on. */
static int sliding(const Report *r) {
    return r->named ? shape_find(r->model.name)->window : r->kept.parts[0].window;
}

/* ---- the plan ---- */

static int plan_row(Report *r, const char *text, size_t n) {
    DibitError err = { 0 };
    if (r->n_rows == MAX_ROWS) return cli_misuse("context", "--kv: at most %d types", MAX_ROWS);
    Row *row = &r->rows[r->n_rows++];
    *row = (Row){ .kept = -1 };
    snprintf(row->name, sizeof row->name, "%.*s", (int)n, text);
    if (context_types(&row->types, &r->model, text, n, r->a->recent.layers, &err) < 0)
        return cli_misuse("context", "%s", err.text);
    int code = context_plan(&r->model, &r->options, &row->types, &row->plan, &err);
    if (code == DIBIT_E_UNSUPPORTED && strcmp(r->a->kv, "all") == 0) { /* all that it can have */
        r->n_rows--;
        fprintf(stderr, "dibit: warning: no %s: %s\n", row->name, err.text);
        return 0;
    }
    if (code < 0) return cli_fail(&err);
    if (r->named && !r->a->keep_all && sliding(r)) {
        ContextRow kept;
        if (context_plan(&r->kept, &r->options, &row->types, &kept, &err) < 0)
            return cli_fail(&err);
        row->kept = kept.extended;
    }
    return 0;
}

static int plan(Report *r) {
    const Args *a = r->a;
    size_t budget = 0;
    if (a->budget_mb && !size_mul((size_t)a->budget_mb, (size_t)1 << 20, &budget))
        return cli_misuse("context", "--budget-mb %lld is too large", (long long)a->budget_mb);
    r->options.budget = budget;
    r->options.base = a->base ? a->base : MIN(4096, r->model.n_ctx_train);
    r->options.sinks = a->recent.sinks;
    r->options.window = a->recent.window;
    const char *list = strcmp(a->kv, "all") == 0 ? "f16,q8,q4,k3,k2" : a->kv;
    int code = 0, positions = 0;
    for (const char *p = list; code == 0; p++) {
        size_t n = strcspn(p, ",");
        code = plan_row(r, p, n);
        p += n;
        if (!*p) break;
    }
    if (code == 0 && r->n_rows == 0)
        return cli_error("no cache type fits the heads of %s", r->model.name);
    for (int i = 0; i < r->n_rows; i++) positions = MAX(positions, r->rows[i].plan.extended);
    if (code == 0 && positions == 0)
        return cli_error("a budget of %zu bytes holds no position: the weights of %s take %zu, a "
                         "session's scratch comes on top",
                         budget, r->model.name, r->model.weights);
    return code;
}

/* ---- --verify ---- */

static int show_progress(void *user, int done, int total) {
    cli_progress(user, "filling the cache, positions", (uint64_t)done, (uint64_t)total);
    return cli_interrupted();
}

static int fill(const Report *r, const ContextTypes *t, int n_ctx, ContextFill *out) {
    DibitError err = { 0 };
    CliProgress progress = { 0 };
    int code = context_fill(&r->model, &r->options, t, n_ctx, show_progress, &progress, out, &err);
    cli_progress_clear(&progress);
    return code ? cli_fail(&err) : 0;
}

/* The longest context found to take no more of the system's memory than f16's base did: the
 * promised one, or less where pages and what is beside the rows cost a little more. */
static int find_fit(const Report *r, Row *row) {
    ContextFill f = row->fill;
    while (f.system > r->f16.system) {
        size_t excess = (f.system - r->f16.system) / row->plan.per_token + 16; /* positions */
        int n = f.n_ctx - (int)MIN(excess, (size_t)f.n_ctx);
        if (n < 1) return 0;
        int code = fill(r, &row->types, n, &f);
        if (code != 0) return code;
    }
    if (f.system && f.system <= r->f16.system) row->fits = f.n_ctx;
    return 0;
}

/* Whether f16's own row asks for what was filled already. */
static bool is_base(const Report *r, const Row *row) {
    return strcmp(row->name, "f16") == 0 && !row->types.mixed && row->plan.extended == r->f16.n_ctx;
}

static int verify(Report *r) {
    const ContextTypes f16 = { .mixed = false };
    int code = 0;
    if (!r->a->verify) return 0;
    int base = r->rows[0].plan.base;
    cli_catch_interrupt(NULL);
    if (base) code = fill(r, &f16, base, &r->f16);
    for (int i = 0; i < r->n_rows && code == 0; i++) {
        Row *row = &r->rows[i];
        if (row->plan.extended == 0) continue;
        if (is_base(r, row))
            row->fill = r->f16;
        else
            code = fill(r, &row->types, row->plan.extended, &row->fill);
        row->filled = code == 0;
        if (code == 0 && base && r->f16.system && row->fill.system) code = find_fit(r, row);
    }
    return code;
}

/* ---- text ---- */

/* 1342177280 -> "1,342,177,280"; the last 16 results stay valid. */
static const char *commas(uint64_t n) {
    static char texts[16][32];
    static int next;
    char *end = texts[next++ % 16] + 31, *p = end;
    *p = 0;
    for (int i = 0; n || i == 0; n /= 10, i++) {
        if (i && i % 3 == 0) *--p = ',';
        *--p = (char)('0' + n % 10);
    }
    return p;
}

static double saved(uint64_t n, uint64_t f16) { /* percent */
    return f16 ? 100 * (1 - (double)n / (double)f16) : 0;
}

static void print_head(const Report *r) {
    const ContextModel *m = &r->model;
    const ContextPart *p = &m->parts[0];
    printf("%s (%s): %d layers, %d KV heads of %d; trained for %s positions\n", m->name, m->source,
           p->n_layers, p->n_kv_heads, p->head_dim, commas((uint64_t)m->n_ctx_train));
    if (r->named)
        printf("weights        %s bytes: %s in %s, embedding in %s\n", commas(m->weights),
               commas(m->n_params), r->a->type, r->a->head);
    else
        printf("weights        %s bytes as used here\n", commas(m->weights));
    if (r->options.budget)
        printf("budget         %s bytes for weights, scratch and KV together\n",
               commas(r->options.budget));
    else
        printf("KV budget      what f16 takes for %s positions; weights and scratch come on top\n",
               commas((uint64_t)r->options.base));
    if (p->causal)
        printf("in q8          the first %d and the last %d positions, beside k3 and k2\n",
               r->options.sinks, r->options.window);
    if (r->a->recent.layers) printf("layers         %s in every row\n", r->a->recent.layers);
    printf("scratch        of one session with %d threads\n\n", r->options.n_threads);
}

static void print_bar(double ratio, double most) {
    int n = (int)(ratio / MAX(most, 1) * BAR + 0.5);
    for (int i = 0; i < n; i++) putchar('#');
}

static void print_rows(const Report *r) {
    double highest = 0;
    bool beyond = false;
    for (int i = 0; i < r->n_rows; i++) highest = MAX(highest, r->rows[i].plan.ratio);
    printf("%-7s %12s %8s %13s %16s %14s %14s %8s\n", "kv", "bytes/token", "saved", "q8 rows",
           "KV bytes", "scratch", "positions", "x f16");
    for (int i = 0; i < r->n_rows; i++) {
        const ContextRow *p = &r->rows[i].plan;
        bool more = p->extended > r->model.n_ctx_train;
        beyond |= more;
        printf("%-7s %12s %6.2f %% %13s %16s %14s %13s%c", r->rows[i].name, commas(p->per_token),
               saved(p->per_token, p->f16_per_token), commas(p->sinks + p->window), commas(p->kv),
               commas(p->scratch), commas((uint64_t)p->extended), more ? '*' : ' ');
        if (p->base) printf(" %8.3f ", p->ratio);
        print_bar(p->ratio, highest);
        putchar('\n');
    }
    if (beyond && !r->model.learned)
        printf("* more than the %s positions the model was trained for: they fit in memory, but "
               "the text\n  may get worse there\n",
               commas((uint64_t)r->model.n_ctx_train));
    if (beyond && r->model.learned)
        printf("* more than the model can have: its positions are a table of %s; what is saved "
               "goes to more\n  sessions at once\n",
               commas((uint64_t)r->model.n_ctx_train));
}

static void print_notes(const Report *r) {
    const ContextPart *last = &r->model.parts[r->model.n_parts - 1];
    int window = sliding(r);
    if (r->rows[0].plan.fixed)
        printf("\nOf each KV figure the cross-attention's %d positions are a fixed part (f16: %s "
               "bytes), written once\nfor each piece of sound; the encoder's own attention keeps "
               "nothing.\n",
               last->fixed, commas(r->rows[0].plan.fixed));
    if (r->model.encoder)
        printf("\nAn encoder sees all positions in one pass and keeps nothing after it; counted "
               "are the keys and\nvalues of all layers, of which it needs one at a time.\n");
    if (r->rows[0].kept >= 0) {
        printf("\nAll layers slide over %s positions and are counted with no more; dibit's cache "
               "keeps all positions\n(--keep-all), which would be",
               commas((uint64_t)window));
        for (int i = 0; i < r->n_rows; i++)
            printf("%s %s %s", i ? "," : "", commas((uint64_t)r->rows[i].kept), r->rows[i].name);
        printf("\n");
    } else if (window && window < r->model.n_ctx_train) {
        printf("\nAll layers slide over %s positions; counted is what dibit's cache takes, which "
               "keeps all.\n",
               commas((uint64_t)window));
    }
}

static void print_verify(const Report *r) {
    printf("\nfilled to the last position with random vectors, in bytes\n");
    printf("%-7s %12s %14s %14s %14s %9s %14s %8s\n", "kv", "positions", "promised", "allocated",
           "from system", "seconds", "fit in f16's", "x f16");
    if (r->f16.n_ctx)
        printf("%-7s %12s %14s %14s %14s %9.2f\n", "f16", commas((uint64_t)r->f16.n_ctx),
               commas(r->f16.promised), commas(r->f16.allocated), commas(r->f16.system),
               (double)r->f16.ns * 1e-9);
    for (int i = 0; i < r->n_rows; i++) {
        const Row *row = &r->rows[i];
        if (!row->filled || is_base(r, row)) continue;
        printf("%-7s %12s %14s %14s %14s %9.2f", row->name, commas((uint64_t)row->fill.n_ctx),
               commas(row->fill.promised), commas(row->fill.allocated), commas(row->fill.system),
               (double)row->fill.ns * 1e-9);
        if (row->fits)
            printf(" %14s %8.3f", commas((uint64_t)row->fits), (double)row->fits / r->f16.n_ctx);
        putchar('\n');
    }
    printf("from system: memory of the process after filling, less that before; every allocation "
           "of the cache\non pages of its own, all that is beside its rows included. The last "
           "columns: the longest context\nthat was filled in no more than f16's base took.\n");
}

/* ---- JSON ---- */

static json_t *fill_json(const ContextFill *f, double fits, double base) {
    json_t *o = json_pack("{s:i,s:I,s:I,s:I,s:f,s:I,s:I}", "positions", f->n_ctx, "promised",
                          (json_int_t)f->promised, "allocated", (json_int_t)f->allocated, "system",
                          (json_int_t)f->system, "seconds", (double)f->ns * 1e-9, "zero_records",
                          (json_int_t)f->n_zero, "saturated_records", (json_int_t)f->n_saturated);
    if (o && fits > 0) {
        json_object_set_new(o, "fits", json_integer((json_int_t)fits));
        json_object_set_new(o, "fits_ratio", json_real(fits / base));
    }
    return o;
}

static json_t *row_json(const Report *r, const Row *row) {
    const ContextRow *p = &row->plan;
    json_t *o = json_pack(
        "{s:s,s:i,s:i,s:o,s:I,s:f,s:o,s:b,s:b}", "kv", row->name, "max_context", p->base,
        "extended_context", p->extended, "improvement_ratio",
        p->base ? json_real(p->ratio) : json_null(), "bytes_per_token", (json_int_t)p->per_token,
        "reduction", saved(p->per_token, p->f16_per_token), "reduction_all_in",
        p->extended && p->kv_f16 != SIZE_MAX ? json_real(saved(p->kv, p->kv_f16)) : json_null(),
        "beyond_training", p->extended > r->model.n_ctx_train, "unbounded", p->unbounded);
    json_t *more = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "kv_bytes", (json_int_t)p->kv,
                             "scratch_bytes", (json_int_t)p->scratch, "total_bytes",
                             (json_int_t)(r->model.weights + p->kv + p->scratch), "sink_bytes",
                             (json_int_t)p->sinks, "window_bytes", (json_int_t)p->window,
                             "fixed_bytes", (json_int_t)p->fixed);
    json_object_update(o, more);
    json_decref(more);
    if (row->kept >= 0)
        json_object_set_new(o, "extended_context_keep_all", json_integer(row->kept));
    if (row->filled)
        json_object_set_new(o, "verify", fill_json(&row->fill, row->fits, r->f16.n_ctx));
    return o;
}

static int print_json(const Report *r) {
    const ContextModel *m = &r->model;
    const ContextPart *p = &m->parts[0];
    json_t *rows = json_array();
    for (int i = 0; i < r->n_rows; i++)
        if (json_array_append_new(rows, row_json(r, &r->rows[i])) != 0)
            return cli_error("no memory for the report");
    json_t *o = json_pack(
        "{s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:I,s:I,s:o,s:i,s:i,s:i,s:i}", "model", m->name, "source",
        m->source, "layers", p->n_layers, "kv_heads", p->n_kv_heads, "head_dim", p->head_dim,
        "context_train", m->n_ctx_train, "sliding_window", sliding(r), "parameters",
        (json_int_t)m->n_params, "weights", (json_int_t)m->weights, "budget",
        r->options.budget ? json_integer((json_int_t)r->options.budget) : json_null(),
        "base_context", r->rows[0].plan.base, "sinks", r->options.sinks, "window",
        r->options.window, "threads", r->options.n_threads);
    if (!o) return cli_error("no memory for the report");
    if (r->named) {
        json_object_set_new(o, "weight_type", json_string(r->a->type));
        json_object_set_new(o, "embedding_type", json_string(r->a->head));
    }
    if (r->a->recent.layers) json_object_set_new(o, "kv_layers", json_string(r->a->recent.layers));
    if (r->f16.n_ctx) json_object_set_new(o, "verify_base", fill_json(&r->f16, 0, 1));
    json_object_set_new(o, "rows", rows);
    return cli_print_json(o, true);
}

/* ---- --list ---- */

static int list_json(void) {
    json_t *list = json_array();
    for (int i = 0; shape_at(i); i++) {
        const Shape *s = shape_at(i);
        json_array_append_new(list, json_pack("{s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:i}", "model", s->name,
                                              "source", s->source, "layers", s->n_layers,
                                              "kv_heads", s->n_kv_heads, "head_dim", s->head_dim,
                                              "context_train", s->n_ctx, "sliding_window",
                                              s->window, "cross_attention", s->n_audio));
    }
    return cli_print_json(list, true);
}

static int list_models(bool json) {
    if (json) return list_json();
    printf("%-24s %7s %9s %5s %9s %8s  %s\n", "model", "layers", "KV heads", "of", "context",
           "window", "facts from");
    for (int i = 0; shape_at(i); i++) {
        const Shape *s = shape_at(i);
        printf("%-24s %7d %9d %5d %9s %8s  %s\n", s->name, s->n_layers, s->n_kv_heads, s->head_dim,
               commas((uint64_t)s->n_ctx), s->window ? commas((uint64_t)s->window) : "", s->source);
    }
    return 0;
}

/* ---- the command ---- */

static int run(const Args *a) {
    Report r = { .a = a };
    int code = open_model(&r);
    if (code == 0) code = plan(&r);
    if (code == 0) code = verify(&r);
    if (code != 0) return code;
    if (a->json) return print_json(&r);
    print_head(&r);
    print_rows(&r);
    print_notes(&r);
    if (a->verify) print_verify(&r);
    return 0;
}

int cmd_context(int argc, char **argv) {
    Args a = { .kv = "all", .type = "q4", .head = "q8", .recent = CLI_KV_DEFAULT };
    char names[1024] = "";
    for (int i = 0; shape_at(i); i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", i ? " " : "", shape_at(i)->name);
    }
    const CliOption options[] = {
        { "model", "m", CLI_FILE, &a.model.path, "MODEL",
          "a file in GGUF form, or a name that --list shows (default: dibit-34m.gguf in models/)",
          0, 0, names },
        { "budget-mb", NULL, CLI_INT64, &a.budget_mb, "N",
          "memory for weights, scratch and KV together, in MiB (default: KV as much as f16 takes "
          "for the base context)",
          1, 1e12, NULL },
        { "base-context", NULL, CLI_INT, &a.base, "N",
          "positions that f16 would have, without --budget-mb (default: 4096, or the model's own "
          "where that is less)",
          1, CONTEXT_LIMIT, NULL },
        { "kv", NULL, CLI_TEXT, &a.kv, "TYPES",
          "cache types, comma-separated; K/V where they differ, as k3/k2", 0, 0, NULL },
        CLI_KV_MORE_ROWS(&a.recent),
        { "type", NULL, CLI_TEXT, &a.type, "TYPE", "weights of a model by name", 0, 0, NULL },
        { "head", NULL, CLI_TEXT, &a.head, "TYPE", "embedding and output of a model by name", 0, 0,
          NULL },
        { "keep-all", NULL, CLI_FLAG, &a.keep_all, NULL,
          "count sliding-window layers with every position, as dibit's cache holds them", 0, 0,
          NULL },
        { "verify", NULL, CLI_FLAG, &a.verify, NULL,
          "fill a cache of each type to the promised length and measure what the system gave", 0, 0,
          NULL },
        { "list", NULL, CLI_FLAG, &a.list, NULL, "print the models known by name", 0, 0, NULL },
        CLI_ENGINE_ROWS(&a.model),
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "context",
        "[-m FILE | --model NAME] [--budget-mb N] [options]",
        "Says how many positions fit for each type of the KV cache. Without --budget-mb the KV "
        "cache gets\nthe bytes that f16 takes for the base context, and weights and scratch come "
        "on top; with it,\nweights, scratch and KV must fit together.",
        options,
        NULL,
        0,
        0,
        "  dibit context --model llama-2-70b\n"
        "  dibit context --model qwen3-4b --type s3 --budget-mb 4096\n"
        "  dibit context -m model.gguf --kv k2,k3/k2 --verify"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (a.list) return list_models(a.json);
    if ((code = cli_kv_check("context", &a.recent)) != 0) return code;
    return run(&a);
}
