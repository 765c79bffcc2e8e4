/* cli.c - the option parser, errors, progress, reading, JSON and Ctrl-C of all subcommands. Owns
 * what the user sees when something is wrong: one line on stderr that says what to do. */
#define _GNU_SOURCE
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- errors ---- */

int cli_error(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fputs("dibit: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return 1;
}

int cli_fail(const DibitError *err) {
    if (cli_interrupted() || err->code == DIBIT_E_CANCELLED) {
        cli_error("interrupted");
        return 130;
    }
    return cli_error("%s", err->text[0] ? err->text : "unknown error");
}

int cli_misuse(const char *command, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fprintf(stderr, "dibit %s: ", command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n(`dibit help %s` lists the options)\n", command);
    va_end(ap);
    return 2;
}

/* Levenshtein distance, at most 31 characters of each. */
static int distance(const char *a, const char *b) {
    size_t na = MIN(strlen(a), 31), nb = MIN(strlen(b), 31);
    int row[32];
    for (size_t j = 0; j <= nb; j++) row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(replace, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[nb];
}

const char *cli_suggest(const char *wrong, const char *const *names, int n) {
    const char *best = NULL;
    int best_distance = (int)strlen(wrong) / 3 + 2; /* farther is no likeness */
    for (int i = 0; i < n; i++) {
        int d = distance(wrong, names[i]);
        if (strlen(wrong) >= 3 && strncmp(wrong, names[i], strlen(wrong)) == 0) d = 1;
        if (d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    return best;
}

/* ---- the option parser ---- */

typedef struct Visit { /* set while cli_describe() runs a command */
    void (*call)(void *user, const CliCommand *cmd);
    void *user;
} Visit;
static Visit visiting;

void cli_describe(CliMain *command, const char *name,
                  void (*visit)(void *user, const CliCommand *cmd), void *user) {
    char *argv[] = { (char *)(uintptr_t)name, NULL };
    visiting = (Visit){ visit, user };
    command(1, argv);
    visiting = (Visit){ 0 };
}

static bool has_word(const char *words, const char *word, size_t n) {
    for (const char *w = words; *w;) {
        size_t len = strcspn(w, " ");
        if (len == n && memcmp(w, word, n) == 0) return true;
        w += len + (w[len] == ' ');
    }
    return false;
}

static bool check_choices(const CliOption *o, const char *value) {
    for (const char *p = value;;) {
        size_t n = o->kind == CLI_CHOICES ? strcspn(p, ",") : strlen(p);
        if (!has_word(o->choices, p, n)) return false;
        if (!p[n]) return true;
        p += n + 1;
    }
}

/* The default numbers of a row: what the help text shows. */
static void number_text(const CliOption *o, char *buf, size_t cap) {
    buf[0] = 0;
    if (o->kind == CLI_INT && *(int *)o->target)
        snprintf(buf, cap, "%d", *(int *)o->target);
    else if (o->kind == CLI_FLOAT)
        snprintf(buf, cap, "%g", *(float *)o->target);
    else if ((o->kind == CLI_CHOICE || o->kind == CLI_CHOICES || o->kind == CLI_TEXT) &&
             *(const char **)o->target)
        snprintf(buf, cap, "%s", *(const char **)o->target);
}

static bool parse_number(const CliOption *o, const char *s) {
    char *end;
    errno = 0;
    double d = strtod(s, &end);
    if (end == s || *end || errno == ERANGE || !isfinite(d)) return false;
    if ((o->min != 0 || o->max != 0) && (d < o->min || d > o->max)) return false;
    if (o->kind == CLI_FLOAT) {
        *(float *)o->target = (float)d;
        return true;
    }
    long long i = strtoll(s, &end, 10);
    if (errno || *end) return false; /* 1.5 and 1e3 are no counts */
    if (o->kind == CLI_INT && (i < INT32_MIN || i > INT32_MAX)) return false;
    if (o->kind == CLI_INT)
        *(int *)o->target = (int)i;
    else
        *(int64_t *)o->target = i;
    return true;
}

/* Sets one option; `shown` is how the user named it. Returns 0 or the exit code. */
static int set_option(const CliCommand *cmd, const CliOption *o, const char *shown,
                      const char *value) {
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->target = true;
        return 0;
    case CLI_INT:
    case CLI_INT64:
    case CLI_FLOAT:
        if (parse_number(o, value)) return 0;
        const char *what = o->kind == CLI_FLOAT ? "a number" : "a whole number";
        if (o->min != 0 || (o->max != 0 && o->max < 1e8))
            return cli_misuse(cmd->name, "%s needs %s from %.10g to %.10g, not \"%s\"", shown, what,
                              o->min, o->max, value);
        return cli_misuse(cmd->name, "%s needs %s%s, not \"%s\"", shown, what,
                          o->max != 0 ? " of at least 0" : "", value);
    case CLI_TEXT:
    case CLI_FILE:
        *(const char **)o->target = value;
        return 0;
    case CLI_CHOICE:
    case CLI_CHOICES:
        if (!check_choices(o, value))
            return cli_misuse(cmd->name, "%s: \"%s\" is not one of: %s", shown, value, o->choices);
        *(const char **)o->target = value;
        return 0;
    case CLI_TEXTS: {
        CliTexts *t = o->target;
        if (t->n == CLI_MAX_TEXTS)
            return cli_misuse(cmd->name, "%s may be given at most %d times", shown, CLI_MAX_TEXTS);
        t->at[t->n++] = value;
        return 0;
    }
    }
    return 0;
}

/* "top-k" -> "DIBIT_TOP_K" */
static void environment_name(const CliOption *o, char *buf, size_t cap) {
    snprintf(buf, cap, "DIBIT_%s", o->name);
    for (char *c = buf; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

static int from_environment(const CliCommand *cmd) {
    for (const CliOption *o = cmd->options; o->name; o++) {
        char name[64];
        environment_name(o, name, sizeof name);
        const char *value = getenv(name);
        if (!value || !*value) continue;
        if (o->kind == CLI_FLAG) {
            if (!has_word("0 1 false true no yes", value, strlen(value)))
                return cli_misuse(cmd->name, "environment variable %s must be 0 or 1, not \"%s\"",
                                  name, value);
            *(bool *)o->target = strchr("1ty", value[0]) != NULL;
            continue;
        }
        char shown[96];
        snprintf(shown, sizeof shown, "environment variable %s", name);
        int rc = set_option(cmd, o, shown, value);
        if (rc) return rc;
    }
    return 0;
}

/* Finds the row of "--name", "--name=value" or "-letters"; *value is what follows the "=". */
static const CliOption *find_option(const CliCommand *cmd, const char *arg, const char **value) {
    bool is_long = arg[1] == '-';
    const char *name = arg + 1 + is_long;
    size_t n = is_long ? strcspn(name, "=") : strlen(name);
    for (const CliOption *o = cmd->options; o->name; o++) {
        const char *own = is_long ? o->name : o->letters;
        if (own && strlen(own) == n && memcmp(own, name, n) == 0) {
            if (name[n] == '=') *value = name + n + 1;
            return o;
        }
    }
    return NULL;
}

static int unknown_option(const CliCommand *cmd, const char *arg) {
    const char *names[128];
    int n = 0;
    for (const CliOption *o = cmd->options; o->name && n < 126; o++) {
        names[n++] = o->name;
        if (o->letters) names[n++] = o->letters;
    }
    char wrong[64];
    snprintf(wrong, sizeof wrong, "%.*s", (int)strcspn(arg + strspn(arg, "-"), "="),
             arg + strspn(arg, "-"));
    const char *near = cli_suggest(wrong, names, n);
    if (!near) return cli_misuse(cmd->name, "unknown option %s", arg);
    bool is_name = false;
    for (const CliOption *o = cmd->options; o->name; o++) is_name |= o->name == near;
    return cli_misuse(cmd->name, "unknown option %s; did you mean %s%s?", arg, is_name ? "--" : "-",
                      near);
}

static void wrap(const char *text, int indent) {
    int column = indent;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > indent && column + 1 + n > 99) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        fwrite(text, 1, (size_t)n, stdout);
        column += n;
        text += n;
        text += strspn(text, " ");
    }
}

static void print_option(const CliOption *o, const char *default_text) {
    char left[96], right[600];
    snprintf(left, sizeof left, "  %s%s%s--%s%s%s", o->letters ? "-" : "",
             o->letters ? o->letters : "", o->letters ? ", " : "", o->name, o->value ? " " : "",
             o->value ? o->value : "");
    const char *choices = o->choices && o->kind != CLI_FILE ? o->choices : NULL;
    snprintf(right, sizeof right, "%s%s%s%s%s%s%s%s", o->help, choices ? ": " : "",
             choices ? choices : "", o->kind == CLI_TEXTS ? " (several)" : "",
             o->kind == CLI_CHOICES ? " (comma-separated)" : "", *default_text ? " (default " : "",
             default_text, *default_text ? ")" : "");
    if (strlen(left) > 26)
        printf("%s\n%28s", left, "");
    else
        printf("%-28s", left);
    wrap(right, 28);
    putchar('\n');
}

static void print_help(const CliCommand *cmd) {
    printf("usage: dibit %s %s\n\n%s\n\noptions:\n", cmd->name, cmd->usage, cmd->about);
    for (const CliOption *o = cmd->options; o->name; o++) {
        char text[64];
        number_text(o, text, sizeof text);
        print_option(o, text);
    }
    printf("  --help                    print this\n");
    if (cmd->options->name)
        printf(
            "\n"
            "Each option is also an environment variable: --cache-type-k is DIBIT_CACHE_TYPE_K.\n");
    if (cmd->examples) printf("\nexamples:\n%s\n", cmd->examples);
}

static bool wants_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

static int parse_arguments(const CliCommand *cmd, int argc, char **argv) {
    bool options_end = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = NULL;
        if (!options_end && strcmp(arg, "--") == 0) {
            options_end = true;
            continue;
        }
        if (options_end || arg[0] != '-' || !arg[1]) {
            if (!cmd->args || cmd->args->n >= cmd->max_args)
                return cli_misuse(cmd->name, "unexpected argument \"%s\"", arg);
            cmd->args->at[cmd->args->n++] = arg;
            continue;
        }
        const CliOption *o = find_option(cmd, arg, &value);
        if (!o) return unknown_option(cmd, arg);
        if (o->kind == CLI_FLAG && value)
            return cli_misuse(cmd->name, "--%s takes no value", o->name);
        if (o->kind != CLI_FLAG && !value) {
            if (i + 1 >= argc) return cli_misuse(cmd->name, "%s needs a value (%s)", arg, o->value);
            value = argv[++i];
        }
        char shown[80];
        snprintf(shown, sizeof shown, "%.*s", (int)strcspn(arg, "="), arg);
        int rc = set_option(cmd, o, shown, value);
        if (rc) return rc;
    }
    if (cmd->args && cmd->args->n < cmd->min_args)
        return cli_misuse(cmd->name, "an argument is missing: dibit %s %s", cmd->name, cmd->usage);
    return 0;
}

bool cli_parse(const CliCommand *cmd, int argc, char **argv, int *exit_code) {
    *exit_code = 0;
    if (visiting.call) {
        visiting.call(visiting.user, cmd);
        return false;
    }
    if (wants_help(argc, argv)) {
        print_help(cmd);
        return false;
    }
    *exit_code = from_environment(cmd);
    if (*exit_code == 0) *exit_code = parse_arguments(cmd, argc, argv);
    return *exit_code == 0;
}

/* ---- the model ---- */

const char *cli_model_path(const char *given, char *buf, size_t cap) {
    if (given) return given;
    char self[1024];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash) *slash = 0;
    /* In the current folder, beside the program, and above it (build/dibit in the source tree). */
    const char *folders[] = { ".", self, "..", "../..", "../share/dibit" };
    for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
        bool relative = i >= 2;
        if (i > 0 && !self[0]) break;
        snprintf(buf, cap, "%s%s%s/models/dibit-34m.gguf", relative ? self : "",
                 relative ? "/" : "", folders[i]);
        if (access(buf, R_OK) == 0) return buf;
    }
    cli_error("no model given and models/dibit-34m.gguf is neither in this folder nor beside the "
              "program: name one with -m FILE or DIBIT_MODEL");
    return NULL;
}

static unsigned isa_mask(const char *isa) {
    static const struct {
        const char *name;
        unsigned mask;
    } rows[] = {
        { "scalar", DIBIT_ISA_SCALAR },
        { "avx2", DIBIT_ISA_SCALAR | DIBIT_ISA_AVX2 },
        { "avx512vnni", DIBIT_ISA_SCALAR | DIBIT_ISA_AVX2 | DIBIT_ISA_AVX512VNNI },
        { "avx512bitalg",
          DIBIT_ISA_SCALAR | DIBIT_ISA_AVX2 | DIBIT_ISA_AVX512VNNI | DIBIT_ISA_AVX512BITALG },
        { "neon", DIBIT_ISA_SCALAR | DIBIT_ISA_NEON },
        { "neondot", DIBIT_ISA_SCALAR | DIBIT_ISA_NEON | DIBIT_ISA_NEONDOT },
    };
    for (size_t i = 0; isa && i < ARRAY_LEN(rows); i++)
        if (strcmp(isa, rows[i].name) == 0) return rows[i].mask;
    return 0;
}

void cli_engine_options(const CliModel *m, DibitOptions *opt) {
    *opt = (DibitOptions){ .n_threads = m->n_threads,
                           .no_mmap = m->no_mmap,
                           .no_repack = m->no_repack,
                           .isa_mask = isa_mask(m->isa),
                           .kv_calibration = m->kv_calibration };
    opt->logger.log = cli_log;
}

void cli_log(void *user, int level, const char *text) {
    (void)user;
    if (level == DIBIT_LOG_WARN) fprintf(stderr, "dibit: warning: %s\n", text);
}

int cli_open(DibitEngine **out, const CliModel *m) {
    char buf[2048];
    const char *path = cli_model_path(m->path, buf, sizeof buf);
    if (!path) return 1;
    return cli_open_engine(out, m, path, NULL, 0);
}

int cli_kv_check(const char *command, const CliKv *kv) {
    if (kv->window % 16 != 0)
        return cli_misuse(command, "--kv-window needs a multiple of 16, not %d", kv->window);
    return 0;
}

void cli_kv_text(const CliKv *kv, char *buf, size_t cap) {
    const char *layers = kv->layers ? kv->layers : "";
    char recent[48] = "";
    if (kv->k[0] == 'k' || kv->v[0] == 'k' || strchr(layers, 'k')) /* records */
        snprintf(recent, sizeof recent, ", sinks %d, window %d", kv->sinks, kv->window);
    snprintf(buf, cap, "%s/%s%s%s%s", kv->k, kv->v, recent, *layers ? ", layers " : "", layers);
}

void cli_kv_warn(uint64_t n_saturated) {
    if (n_saturated)
        cli_error("warning: %llu head vectors were too large for k2 and k3 and lost their size; "
                  "use q8 or f16 for those layers (--kv-layers)",
                  (unsigned long long)n_saturated);
}

void cli_kv_options(const CliKv *kv, DibitSessionOptions *opt) {
    opt->cache_k = kv->k;
    opt->cache_v = kv->v;
    opt->cache_layers = kv->layers;
    opt->cache_sinks = kv->sinks ? kv->sinks : -1; /* there 0 means the default */
    opt->cache_window = kv->window ? kv->window : -1;
}

void cli_seed(CliSampling *c, bool quiet) {
    if (c->seed < 0) {
        uint64_t now[2] = { clock_ns(), (uint64_t)time(NULL) ^ ((uint64_t)getpid() << 32) };
        c->seed = (int64_t)(hash64(0, now, sizeof now) >> 33); /* short enough to type */
    }
    c->s.seed = (uint64_t)c->seed;
    if (!quiet && c->s.temperature > 0) fprintf(stderr, "seed: %lld\n", (long long)c->seed);
}

/* ---- text and tokens ---- */

char *cli_read(const char *path, size_t *n_bytes) {
    bool is_stdin = !path || strcmp(path, "-") == 0;
    const char *name = is_stdin ? "standard input" : path;
    FILE *f = is_stdin ? stdin : fopen(path, "rb");
    if (!f) {
        cli_error("%s: %s", name, strerror(errno));
        return NULL;
    }
    size_t n = 0, cap = 0;
    char *text = NULL;
    for (;;) {
        if (n + 1 >= cap) {
            char *more = realloc(text, cap = cap ? 2 * cap : 1 << 16);
            if (!more) {
                cli_error("%s: too large for the memory there is", name);
                goto error;
            }
            text = more;
        }
        errno = 0;
        size_t got = fread(text + n, 1, cap - n - 1, f);
        n += got;
        if (got == 0) break;
    }
    if (ferror(f)) {
        cli_error("%s: %s", name, errno ? strerror(errno) : "reading failed");
        goto error;
    }
    if (!is_stdin) fclose(f);
    text[n] = 0;
    *n_bytes = n;
    return text;
error:
    if (!is_stdin) fclose(f);
    free(text);
    return NULL;
}

int32_t *cli_tokenize(const DibitEngine *e, const char *text, size_t n_bytes, int flags,
                      size_t *n) {
    DibitError err = { 0 };
    size_t cap = n_bytes / 3 + 16;
    for (;;) {
        int32_t *ids = malloc(cap * sizeof *ids);
        if (!ids) {
            cli_error("no memory for %zu tokens", cap);
            return NULL;
        }
        int64_t got = dibit_tokenize(e, text, n_bytes, flags, ids, cap, &err);
        if (got >= 0 && (size_t)got <= cap) {
            *n = (size_t)got;
            return ids;
        }
        free(ids);
        if (got < 0) {
            cli_fail(&err);
            return NULL;
        }
        cap = (size_t)got;
    }
}

int32_t *cli_parse_ids(const char *text, size_t *n) {
    size_t cap = strlen(text) / 2 + 1;
    int32_t *ids = malloc(cap * sizeof *ids);
    *n = 0;
    for (const char *p = text; ids;) {
        p += strspn(p, ", \t\r\n[]");
        if (!*p) return ids;
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX) {
            cli_error("token ids are whole numbers with commas between them, not \"%.20s\"", p);
            free(ids);
            return NULL;
        }
        ids[(*n)++] = (int32_t)v;
        p = end;
    }
    cli_error("no memory for %zu ids", cap);
    return NULL;
}

/* ---- output ---- */

int cli_print_json(json_t *value, bool pretty) {
    if (!value) return cli_error("no memory for the JSON output");
    size_t flags = JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY;
    int rc = json_dumpf(value, stdout, flags | (pretty ? JSON_INDENT(2) : JSON_COMPACT));
    json_decref(value);
    putchar('\n');
    if (rc != 0 || fflush(stdout) != 0)
        return cli_error("writing the output failed: %s", strerror(errno));
    return 0;
}

json_t *cli_number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

static void time_text(double s, char *buf, size_t cap) {
    if (s < 60)
        snprintf(buf, cap, "%.0f s", s);
    else if (s < 3600)
        snprintf(buf, cap, "%d m %02d s", (int)s / 60, (int)s % 60);
    else
        snprintf(buf, cap, "%d h %02d m", (int)s / 3600, (int)s / 60 % 60);
}

void cli_progress(CliProgress *p, const char *what, uint64_t done, uint64_t total) {
    if (!isatty(STDERR_FILENO)) return;
    uint64_t now = clock_ns();
    if (!p->start_ns) p->start_ns = now;
    if (p->shown && done < total && now - p->last_ns < 100000000) return;
    p->last_ns = now;
    p->shown = true;
    char left[40] = "?";
    double elapsed = (double)(now - p->start_ns) * 1e-9;
    if (done > 0) time_text(elapsed * (double)(total - done) / (double)done, left, sizeof left);
    fprintf(stderr, "\r\033[K%s: %llu of %llu, %.0f %%, %s left", what, (unsigned long long)done,
            (unsigned long long)total, total ? 100.0 * (double)done / (double)total : 0.0, left);
    fflush(stderr);
}

void cli_progress_clear(CliProgress *p) {
    if (p->shown) fputs("\r\033[K", stderr);
    *p = (CliProgress){ 0 };
}

/* ---- Ctrl-C ---- */

static volatile sig_atomic_t interrupted;
static DibitSession *volatile interrupt_session;

static void on_interrupt(int sig) {
    (void)sig;
    if (interrupted) _exit(130); /* asked twice: it did not stop soon enough */
    interrupted = 1;
    if (interrupt_session) dibit_cancel(interrupt_session);
}

void cli_catch_interrupt(DibitSession *session) {
    interrupt_session = session;
    struct sigaction sa = { .sa_handler = on_interrupt }; /* no SA_RESTART: reads return */
    sigaction(SIGINT, &sa, NULL);
}

bool cli_interrupted(void) {
    return interrupted != 0;
}

void cli_interrupt_clear(void) {
    interrupted = 0;
}
