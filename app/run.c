/* run.c - `dibit run`: continues a text. Only the text (or --json's objects) goes to stdout. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

typedef struct Args {
    CliModel model;
    CliSampling sampling;
    const char *prompt, *file, *system, *style;
    CliKv kv;
    int n, n_ctx, n_batch;
    bool echo, special, profile, json;
    CliTexts stops;
} Args;

typedef struct Run {
    const Args *a;
    DibitEngine *engine;
    DibitSession *session;
    char *held; /* text that may be the beginning of a stop text: not printed yet */
    size_t n_held, cap_held;
    int n_generated;
    const char *finish, *finish_detail;
    size_t n_prompt;
    int64_t n_computed; /* of the prompt */
    uint64_t start_ns, prompt_ns, first_ns, end_ns;
} Run;

/* ---- the prompt ---- */

/* The prompt's text: -p, -f, or stdin, less one newline at the end of a file. */
static char *read_prompt(const Args *a, size_t *n) {
    if (a->prompt) {
        *n = strlen(a->prompt);
        return strdup(a->prompt);
    }
    if (!a->file && isatty(STDIN_FILENO))
        fputs("dibit: reading the prompt from the terminal; end it with Ctrl-D\n", stderr);
    char *text = cli_read(a->file, n);
    if (text && *n > 0 && text[*n - 1] == '\n') text[--*n] = 0;
    return text;
}

/* With --system: the prompt as a user's message in the model's chat form. */
static char *chat_form(const Args *a, const DibitEngine *e, const char *prompt, size_t *n) {
    DibitMessage messages[] = { { "system", a->system }, { "user", prompt } };
    size_t skip = a->system[0] == 0; /* --system "" means the chat form without a system message */
    DibitError err = { 0 };
    int64_t need = dibit_chat_text(e, a->style, messages + skip, 2 - skip, 1, NULL, 0, &err);
    char *text = need < 0 ? NULL : malloc((size_t)need + 1);
    if (need < 0 || !text) {
        need < 0 ? cli_fail(&err) : cli_error("no memory for the prompt");
        return NULL;
    }
    dibit_chat_text(e, a->style, messages + skip, 2 - skip, 1, text, (size_t)need + 1, &err);
    *n = (size_t)need;
    return text;
}

static int32_t *prompt_ids(const Args *a, const DibitEngine *e, size_t *n_ids) {
    DibitModelInfo info;
    size_t n = 0;
    dibit_model_info(e, &info);
    if (!info.has_tokenizer) { /* said before a prompt is typed */
        cli_error("the model file has no tokenizer: `dibit run` needs one (convert the model with "
                  "its tokenizer; `dibit logits --ids` works without)");
        return NULL;
    }
    char *text = read_prompt(a, &n);
    if (text && n == 0) {
        cli_error("the prompt is empty: give one with -p TEXT, -f FILE or on standard input");
        free(text);
        return NULL;
    }
    if (text && a->echo && !a->json) {
        fwrite(text, 1, n, stdout);
        fflush(stdout);
    }
    int flags = DIBIT_ADD_BOS | (a->special || a->system ? DIBIT_PARSE_SPECIAL : 0);
    if (text && a->system) {
        char *chat = chat_form(a, e, text, &n);
        free(text);
        text = chat;
    }
    int32_t *ids = text ? cli_tokenize(e, text, n, flags, n_ids) : NULL;
    free(text);
    return ids;
}

/* ---- stop texts ---- */

/* Of the held text: how much may be printed now. *stopped when a stop text begins there. */
static size_t printable(const Run *r, bool *stopped) {
    size_t first = r->n_held;
    *stopped = false;
    for (size_t i = 0; i < r->n_held && !*stopped; i++) {
        for (int k = 0; k < r->a->stops.n; k++) {
            const char *stop = r->a->stops.at[k];
            size_t len = strlen(stop), n = MIN(len, r->n_held - i);
            if (memcmp(r->held + i, stop, n) != 0) continue;
            if (n == len) *stopped = true;
            first = MIN(first, i); /* a whole one, or the beginning of one */
        }
        if (*stopped) return i;
    }
    return first;
}

static int hold(Run *r, const char *text, size_t n) {
    if (n == 0) return 0;
    if (n > r->cap_held - r->n_held) {
        size_t cap = 2 * (r->n_held + n) + 64;
        char *more = realloc(r->held, cap);
        if (!more) return cli_error("no memory for %zu bytes of text", cap);
        r->held = more;
        r->cap_held = cap;
    }
    memcpy(r->held + r->n_held, text, n);
    r->n_held += n;
    return 0;
}

/* ---- output ---- */

static int write_json(const Run *r, const char *text, size_t n, int32_t id, bool finished) {
    json_t *o = json_pack("{s:s%,s:i,s:i,s:b}", "token", n ? text : "", n, "token_id", (int)id,
                          "tokens_generated", r->n_generated, "finished", finished);
    return cli_print_json(o, false);
}

/* Prints what may be printed of the held text; with `last`, all of it up to a stop text. */
static int emit(Run *r, int32_t id, bool *last) {
    bool stopped;
    size_t n = printable(r, &stopped);
    if (stopped) {
        r->finish = "stop";
        r->finish_detail = "a stop text";
    } else if (*last) {
        n = r->n_held;
    }
    *last |= stopped;
    if (n > 0 && !r->first_ns) r->first_ns = clock_ns();
    int rc = 0;
    if (r->a->json) {
        rc = write_json(r, r->held, n, id, *last);
    } else if (n > 0 && (fwrite(r->held, 1, n, stdout) != n || fflush(stdout) != 0)) {
        rc = errno == EPIPE ? 1 : cli_error("writing the output failed: %s", strerror(errno));
    }
    if (n > 0) memmove(r->held, r->held + n, r->n_held - n);
    r->n_held -= n;
    return rc;
}

static double ms(uint64_t from, uint64_t to) {
    return to > from ? (double)(to - from) * 1e-6 : 0;
}

static double per_second(int64_t n, double milliseconds) {
    return milliseconds > 0 ? 1000.0 * (double)n / milliseconds : 0;
}

/* Milliseconds of a generated token. */
static json_t *profile_json(const DibitProfile *p) {
    double n = (double)MAX(p->n_tokens, (uint64_t)1) * 1e6;
    uint64_t parts = p->matmul_ns + p->attend_ns + p->cache_ns;
    return json_pack("{s:f,s:f,s:f,s:f,s:f}", "matmul", (double)p->matmul_ns / n, "attention",
                     (double)p->attend_ns / n, "cache", (double)p->cache_ns / n, "rest",
                     (double)(p->total_ns - parts) / n, "total", (double)p->total_ns / n);
}

static int report(const Run *r) {
    DibitMemory m;
    DibitProfile p;
    dibit_profile(r->session, 0, &p);
    dibit_memory(r->session, &m);
    double prompt = ms(r->start_ns, r->prompt_ns), predicted = ms(r->prompt_ns, r->end_ns);
    double ttft = ms(r->start_ns, r->first_ns ? r->first_ns : r->end_ns);
    double speed = per_second(r->n_generated, predicted);
    if (r->a->json) {
        json_t *t = json_pack("{s:i,s:f,s:i,s:f,s:f,s:f}", "prompt_n", (int)r->n_prompt,
                              "prompt_ms", prompt, "predicted_n", r->n_generated, "predicted_ms",
                              predicted, "predicted_per_second", speed, "ttft_ms", ttft);
        json_t *profile = r->a->profile ? profile_json(&p) : NULL;
        return cli_print_json(json_pack("{s:o,s:I,s:I,s:I,s:I,s:s,s:I,s:o*}", "timings", t,
                                        "kv_bytes", (json_int_t)m.kv, "kv_zero",
                                        (json_int_t)m.kv_zero, "kv_saturated",
                                        (json_int_t)m.kv_saturated, "weight_bytes",
                                        (json_int_t)m.weights, "finish_reason", r->finish, "seed",
                                        (json_int_t)r->a->sampling.seed, "profile_ms", profile),
                              false);
    }
    if (isatty(STDOUT_FILENO)) putchar('\n');
    fflush(stdout);
    fprintf(stderr,
            "%sprompt: %zu tokens in %.1f ms (%.1f tokens/s), first text after %.1f ms\n"
            "generated: %d tokens in %.1f ms (%.1f tokens/s)\n"
            "memory: weights %.1f MiB, KV cache %.2f MiB, scratch %.1f MiB; %d of %d positions\n"
            "finish: %s (%s)\n",
            isatty(STDERR_FILENO) ? "\n" : "", r->n_prompt, prompt,
            per_second(r->n_computed, prompt), ttft, r->n_generated, predicted, speed,
            (double)m.weights / 1048576, (double)m.kv / 1048576, (double)m.scratch / 1048576,
            m.n_past, m.n_ctx, r->finish, r->finish_detail);
    cli_kv_warn(m.kv_saturated);
    double n = (double)MAX(p.n_tokens, (uint64_t)1) * 1e6;
    if (r->a->profile)
        fprintf(stderr,
                "a generated token: matmul %.3f ms, attention %.3f ms, cache %.3f ms, total %.3f "
                "ms\n",
                (double)p.matmul_ns / n, (double)p.attend_ns / n, (double)p.cache_ns / n,
                (double)p.total_ns / n);
    return 0;
}

/* ---- generation ---- */

/* One token. Returns true to go on; else *code is set and r->finish says why it ended. */
static bool step(Run *r, int *code) {
    DibitPiece p;
    DibitError err = { 0 };
    int got = dibit_next(r->session, &p, &err);
    if (got < 0 && (err.code == DIBIT_E_CANCELLED || cli_interrupted())) {
        r->finish = "cancelled";
        r->finish_detail = "interrupted";
        *code = 130;
        return false;
    }
    if (got < 0) {
        *code = cli_fail(&err);
        return false;
    }
    bool last = got == 0;
    if (last) {
        bool full = strcmp(p.finish, "length") == 0;
        r->finish = p.finish;
        r->finish_detail = full ? "the context is full" : "an end token";
    } else if (++r->n_generated == r->a->n) {
        last = true;
        r->finish = "length";
        r->finish_detail = "as many tokens as -n asks for";
    }
    *code = hold(r, p.text, p.n_bytes);
    if (*code == 0) *code = emit(r, p.id, &last);
    return *code == 0 && !last;
}

static int generate(Run *r, const int32_t *ids) {
    DibitError err = { 0 };
    int code = 0;
    r->start_ns = clock_ns();
    r->n_computed = dibit_sync(r->session, ids, r->n_prompt, &err);
    r->prompt_ns = r->end_ns = clock_ns();
    dibit_profile(r->session, r->a->profile, NULL);
    if (r->n_computed < 0) return cli_fail(&err);
    if (r->a->n == 0) {
        r->finish = "length";
        r->finish_detail = "-n 0 asks for no token";
    } else {
        while (step(r, &code)) {
        }
    }
    r->end_ns = clock_ns();
    if (!r->finish) return code;
    int rc = report(r);
    return code ? code : rc;
}

static int run_model(const Args *a, DibitEngine *e) {
    Run r = { .a = a, .engine = e };
    DibitError err = { 0 };
    int code = 1;
    int32_t *ids = prompt_ids(a, e, &r.n_prompt);
    if (!ids) return 1;
    DibitSessionOptions so = { .n_ctx = a->n_ctx,
                               .n_batch = a->n_batch,
                               .sampling = a->sampling.s };
    cli_kv_options(&a->kv, &so);
    if (dibit_session_create(&r.session, e, &so, &err) < 0) {
        code = cli_fail(&err);
    } else {
        cli_catch_interrupt(r.session);
        code = generate(&r, ids);
        cli_catch_interrupt(NULL);
    }
    dibit_session_free(&r.session);
    free(r.held);
    free(ids);
    return code;
}

int cmd_run(int argc, char **argv) {
    Args a = { .sampling = CLI_SAMPLING_DEFAULT, .kv = CLI_KV_DEFAULT, .n = 256 };
    const CliOption options[] = {
        CLI_MODEL_ROWS(&a.model),
        CLI_BACKEND_ROW(&a.model),
        { "prompt", "p", CLI_TEXT, &a.prompt, "TEXT", "the text to continue", 0, 0, NULL },
        { "file", "f", CLI_FILE, &a.file, "FILE", "read it from a file; -: standard input", 0, 0,
          NULL },
        { "predict", "n", CLI_INT, &a.n, "N", "tokens at most; -1: until the end or a full context",
          -1, 1e9, NULL },
        { "ctx-size", "c", CLI_INT, &a.n_ctx, "N", "context in tokens; 0: the model's own", 0,
          1 << 24, NULL },
        { "batch-size", "b", CLI_INT, &a.n_batch, "N", "tokens of one prefill pass; 0: 256", 0,
          65536, NULL },
        CLI_SAMPLING_ROWS(&a.sampling),
        { "stop", NULL, CLI_TEXTS, &a.stops, "TEXT", "end before this text; it is not printed", 0,
          0, NULL },
        { "system", NULL, CLI_TEXT, &a.system, "TEXT",
          "use the chat form: this as system message (may be empty), the prompt as user's", 0, 0,
          NULL },
        { "chat-template", NULL, CLI_TEXT, &a.style, "NAME",
          "chat form to use: chatml, llama2, llama3, mistral (default: the model's own)", 0, 0,
          NULL },
        { "special", NULL, CLI_FLAG, &a.special, NULL,
          "take special tokens' names in the prompt as the tokens", 0, 0, NULL },
        { "echo", NULL, CLI_FLAG, &a.echo, NULL, "print the prompt in front of its continuation", 0,
          0, NULL },
        { "profile", NULL, CLI_FLAG, &a.profile, NULL,
          "with the timings, those of matrix products, attention and KV cache", 0, 0, NULL },
        CLI_KV_ROWS(&a.kv),
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "run",
        "[-m FILE] [-p TEXT | -f FILE] [options]",
        "Continues a text. The continuation goes to stdout as it comes and nothing else does; "
        "timings,\nthe seed and the reason of the end go to stderr. Without -p and -f the prompt "
        "is read from\nstandard input. With --json: an object a token, then one with the timings.",
        options,
        NULL,
        0,
        0,
        "  dibit run -p \"Once upon a time\" -n 100 -s 7\n"
        "  dibit run --system \"Answer briefly.\" -p \"What is a volcano?\""
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (a.prompt && a.file) return cli_misuse("run", "-p and -f exclude each other");
    if (a.style && !a.system) a.system = "";
    if ((code = cli_kv_check("run", &a.kv)) != 0) return code;
    for (int i = 0; i < a.stops.n; i++)
        if (!a.stops.at[i][0]) return cli_misuse("run", "--stop: the text is empty");
    DibitEngine *e = NULL;
    code = cli_open(&e, &a.model);
    if (code == 0) {
        cli_seed(&a.sampling, a.json);
        code = run_model(&a, e);
    }
    dibit_close(&e);
    return code;
}
