/* cli.h - what the subcommands share: the option parser, errors, progress, reading, JSON, signals.
 *
 * A command is `int cmd_NAME(int argc, char **argv)` with a row in main.c; argv[0] is its name and
 * it returns the exit code: 0 done, 1 failed, 2 used wrongly. Its options are rows of one table,
 * which drives parsing, range checks, `--help`, shell completion and the environment twins: option
 * --top-k is also DIBIT_TOP_K, and the command line wins. Text goes to stdout, all else to stderr.
 */
#ifndef CLI_H
#define CLI_H
#include <jansson.h>
#include <stdio.h>

#include "base.h"

/* ---- the table of a command's options ---- */
typedef enum CliKind {
    CLI_FLAG,    /* bool: no value */
    CLI_INT,     /* int */
    CLI_INT64,   /* int64_t */
    CLI_FLOAT,   /* float */
    CLI_TEXT,    /* const char *: any text, points into argv or the environment */
    CLI_FILE,    /* the same, a file's or folder's name */
    CLI_CHOICE,  /* const char *: one of `choices` */
    CLI_CHOICES, /* const char *: a comma-separated list of them */
    CLI_TEXTS    /* CliTexts: may be given several times */
} CliKind;

enum { CLI_MAX_TEXTS = 256 };
typedef struct CliTexts {
    const char *at[CLI_MAX_TEXTS];
    int n;
} CliTexts;

typedef struct CliOption {
    const char *name;    /* without dashes: "top-k"; NULL ends the table */
    const char *letters; /* "n" for -n, "ctk" for -ctk, or NULL */
    CliKind kind;
    void *target;        /* holds the default before parsing */
    const char *value;   /* the value's name in the help text: "N", "FILE" */
    const char *help;    /* one sentence without a full stop */
    double min, max;     /* of numbers; both 0: no limit */
    const char *choices; /* "f16 q8"; of CLI_FILE: words that are no files, for completion alone */
} CliOption;

typedef struct CliCommand {
    const char *name, *usage, *about; /* about: what it does and prints, a few lines */
    const CliOption *options;
    CliTexts *args; /* the arguments that are no options; NULL: none are allowed */
    int min_args, max_args;
    const char *examples; /* lines shown at the end of the help text, or NULL */
} CliCommand;

/* Parses argv into the options' targets. Returns true to go on; false when there is nothing more to
 * do (--help, or an error that was printed), and the command returns *exit_code. */
bool cli_parse(const CliCommand *cmd, int argc, char **argv, int *exit_code);

/* Runs `command` only as far as its table, which `visit` gets. For completion. */
typedef int CliMain(int argc, char **argv);
CliMain cmd_run, cmd_chat, cmd_eval, cmd_logits, cmd_tokenize, cmd_detokenize, cmd_bench,
    cmd_convert, cmd_quantize, cmd_calibrate, cmd_info, cmd_context, cmd_detect,
    cmd_plan; /* a file each, or two */
void cli_describe(CliMain *command, const char *name,
                  void (*visit)(void *user, const CliCommand *cmd), void *user);

typedef struct CliRow {
    const char *name;
    CliMain *run;
    const char *about; /* one line */
} CliRow;

/* The name out of n names that is nearest to a misspelt one, or NULL if none is near. */
const char *cli_suggest(const char *wrong, const char *const *names, int n);

/* ---- options several commands have ---- */
typedef struct CliModel {
    const char *path;
    int n_threads;
    bool no_mmap, no_repack;
    const char *isa, *kv_calibration;
    const char *backend; /* "cpu" (NULL), "gpu" or "auto" */
} CliModel;
#define CLI_MODEL_ROW(m)                                                                           \
    {                                                                                              \
        "model", "m", CLI_FILE, &(m)->path, "FILE",                                                \
            "model in GGUF form (default: dibit-34m.gguf in "                                      \
            "models/)",                                                                            \
            0, 0, NULL                                                                             \
    }
#define CLI_THREADS_ROW(t)                                                                         \
    { "threads", "t", CLI_INT, t, "N", "threads (default: one for each core)", 0, 1024, NULL }
#define CLI_JSON_ROW(j)                                                                            \
    { "json", NULL, CLI_FLAG, j, NULL, "print JSON", 0, 0, NULL }
#define CLI_ENGINE_ROWS(m)                                                                         \
    CLI_THREADS_ROW(&(m)->n_threads),                                                              \
        { "kv-calibration",                                                                        \
          NULL,                                                                                    \
          CLI_FILE,                                                                                \
          &(m)->kv_calibration,                                                                    \
          "FILE",                                                                                  \
          "bases for a k2 or k3 cache, of `dibit calibrate kv`",                                   \
          0,                                                                                       \
          0,                                                                                       \
          NULL },                                                                                  \
        { "no-mmap", NULL, CLI_FLAG, &(m)->no_mmap, NULL, "read the file instead of mapping it",   \
          0,         0,    NULL },                                                                 \
        { "no-repack", NULL,                                                                       \
          CLI_FLAG,    &(m)->no_repack,                                                            \
          NULL,        "keep the weights as they are in the file: less memory, slower",            \
          0,           0,                                                                          \
          NULL },                                                                                  \
    {                                                                                              \
        "isa", NULL, CLI_CHOICE, &(m)->isa, "NAME", "use no better instruction set than this", 0,  \
            0, "scalar avx2 avx512vnni avx512bitalg neon neondot"                                  \
    }
#define CLI_MODEL_ROWS(m) CLI_MODEL_ROW(m), CLI_ENGINE_ROWS(m)
#define CLI_BACKEND_ROW(m)                                                                         \
    {                                                                                              \
        "backend", NULL, CLI_CHOICE, &(m)->backend, "NAME",                                        \
            "where the model runs: cpu, gpu (WebGPU), or auto: the faster one of both", 0, 0,      \
            "cpu gpu auto"                                                                         \
    }

/* What dibit_open() gets from these options; warnings go to stderr. */
void cli_engine_options(const CliModel *m, DibitOptions *opt);
void cli_log(void *user, int level, const char *text);

/* Opens the model (looking for the default one where path is NULL); on failure prints the error and
 * returns the exit code, else 0. */
int cli_open(DibitEngine **out, const CliModel *m);
/* The same of a file, or with path NULL of an image in memory. */
int cli_open_engine(DibitEngine **out, const CliModel *m, const char *path, const void *image,
                    size_t size);
/* The same without opening: the path to use, or NULL after the error was printed. */
const char *cli_model_path(const char *given, char *buf, size_t cap);

typedef struct CliSampling {
    DibitSampling s;
    int64_t seed; /* -1: choose one */
} CliSampling;
#define CLI_SAMPLING_DEFAULT                                                                       \
    { { 0.8f, 40, 0.95f, 0.05f, 1.0f, 64, 0 }, -1 }
#define CLI_SAMPLING_ROWS(c)                                                                       \
    {                                                                                              \
        "temp",    NULL,                                                                           \
        CLI_FLOAT, &(c)->s.temperature,                                                            \
        "F",       "temperature; 0 takes the likeliest token",                                     \
        0,         100,                                                                            \
        NULL                                                                                       \
    },                                                                                             \
        { "top-k", NULL, CLI_INT, &(c)->s.top_k, "N", "sample from the N likeliest; 0: off",       \
          0,       1e9,  NULL },                                                                   \
        { "top-p",   NULL,                                                                         \
          CLI_FLOAT, &(c)->s.top_p,                                                                \
          "F",       "sample from the likeliest that add up to F; 1: off",                         \
          0,         1,                                                                            \
          NULL },                                                                                  \
        { "min-p",   NULL,                                                                         \
          CLI_FLOAT, &(c)->s.min_p,                                                                \
          "F",       "leave out tokens less likely than F times the likeliest; 0: off",            \
          0,         1,                                                                            \
          NULL },                                                                                  \
        { "repeat-penalty",                                                                        \
          NULL,                                                                                    \
          CLI_FLOAT,                                                                               \
          &(c)->s.repeat_penalty,                                                                  \
          "F",                                                                                     \
          "make repeated tokens less likely; 1: off",                                              \
          0,                                                                                       \
          100,                                                                                     \
          NULL },                                                                                  \
        { "repeat-last-n",                                                                         \
          NULL,                                                                                    \
          CLI_INT,                                                                                 \
          &(c)->s.repeat_last_n,                                                                   \
          "N",                                                                                     \
          "tokens the penalty looks back at",                                                      \
          0,                                                                                       \
          1e9,                                                                                     \
          NULL },                                                                                  \
    {                                                                                              \
        "seed", "s", CLI_INT64, &(c)->seed, "N",                                                   \
            "the same seed gives the same text; -1: choose one and say it", -1, 9e18, NULL         \
    }
/* Chooses the seed where it is -1; then says it on stderr, unless quiet. */
void cli_seed(CliSampling *c, bool quiet);

/* The KV cache of a session. */
typedef struct CliKv {
    const char *k, *v, *layers; /* layers: of single layers, or NULL */
    int sinks, window;          /* 0: none */
} CliKv;
#define CLI_KV_DEFAULT                                                                             \
    { "f16", "f16", NULL, 4, 64 }
#define CLI_KV_TYPES "f16 q8 q4 k3 k2"
#define CLI_KV_MORE_ROWS(c)                                                                        \
    { "kv-sinks",  NULL, CLI_INT,                                                                  \
      &(c)->sinks, "N",  "first positions that k3 and k2 keep in q8; 0: none",                     \
      0,           256,  NULL },                                                                   \
        { "kv-window", NULL,                                                                       \
          CLI_INT,     &(c)->window,                                                               \
          "N",         "recent positions that they keep in q8, a multiple of 16; 0: none",         \
          0,           1 << 24,                                                                    \
          NULL },                                                                                  \
    {                                                                                              \
        "kv-layers", NULL, CLI_TEXT, &(c)->layers, "LIST",                                         \
            "types of single layers, counted from 0: \"0,1=q4;5-7=k3/k2\" (keys/values); auto: "   \
            "as calibrated",                                                                       \
            0, 0, NULL                                                                             \
    }
#define CLI_KV_ROWS(c)                                                                             \
    { "cache-type-k", "ctk", CLI_CHOICE, &(c)->k, "TYPE", "type of the cache's keys", 0, 0,        \
      CLI_KV_TYPES },                                                                              \
        { "cache-type-v", "ctv", CLI_CHOICE, &(c)->v, "TYPE", "type of the cache's values", 0, 0,  \
          CLI_KV_TYPES },                                                                          \
        CLI_KV_MORE_ROWS(c)
int calibrate_kv_command(int argc, char **argv); /* `dibit calibrate kv` */
/* Checks what the table cannot. Returns 0 or the exit code. */
int cli_kv_check(const char *command, const CliKv *kv);
/* "k3/k2, sinks 4, window 64, layers 0=q4" */
void cli_kv_text(const CliKv *kv, char *buf, size_t cap);
/* A line on stderr where records were saturated. */
void cli_kv_warn(uint64_t n_saturated);
/* Sets the fields of the cache. */
void cli_kv_options(const CliKv *kv, DibitSessionOptions *opt);

/* ---- errors; each prints one line on stderr and returns the exit code ---- */
int cli_error(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* 1 */
int cli_fail(const DibitError *err); /* 1, or 130 when the user interrupted */
int cli_misuse(const char *command, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))); /* 2, and points to `dibit help COMMAND` */

/* ---- text and tokens; on failure print the error and return NULL; free() the result ---- */
char *cli_read(const char *path, size_t *n_bytes); /* NULL or "-": stdin; terminated */
int32_t *cli_tokenize(const DibitEngine *e, const char *text, size_t n_bytes, int flags, size_t *n);
/* Ids from "1,2,3" (commas or blanks). */
int32_t *cli_parse_ids(const char *text, size_t *n);

/* ---- output ---- */
int cli_print_json(json_t *value, bool pretty); /* to stdout, takes the reference; exit code */
json_t *cli_number(double x); /* null where x is NaN or infinite, which JSON cannot say */

/* One line on stderr with the time left; nothing where stderr is no terminal. Zeros to start. */
typedef struct CliProgress {
    uint64_t start_ns, last_ns;
    bool shown;
} CliProgress;
void cli_progress(CliProgress *p, const char *what, uint64_t done, uint64_t total);
void cli_progress_clear(CliProgress *p);

/* ---- Ctrl-C: sets a flag and cancels the session's running call, a second one ends the program */
void cli_catch_interrupt(DibitSession *session); /* NULL: only the flag */
bool cli_interrupted(void);
void cli_interrupt_clear(void);
#endif
