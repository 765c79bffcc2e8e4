/* chat.c - `dibit chat`: a conversation. The whole conversation is written in the model's chat form
 * and synced each turn, so the session keeps the cache of everything that was said before. */
#define _GNU_SOURCE
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef HAVE_EDIT
#include <histedit.h>
#endif

#include "cli.h"

typedef struct Args {
    CliModel model;
    CliSampling sampling;
    const char *system, *style;
    CliKv kv;
    int n, n_ctx;
} Args;

typedef struct Chat {
    const Args *a;
    DibitEngine *engine;
    DibitSession *session;
    json_t *messages; /* [{"role","content"}...]: the conversation */
} Chat;

/* ---- reading lines ---- */

typedef struct Input {
    bool terminal;
    char *line; /* of getline */
    size_t cap;
#ifdef HAVE_EDIT
    EditLine *edit;
    History *history;
#endif
} Input;

#ifdef HAVE_EDIT
static char *prompt_text(EditLine *e) {
    (void)e;
    static char text[] = "> ";
    return text;
}

static void input_open(Input *in) {
    HistEvent event;
    in->terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (!in->terminal) return;
    setlocale(LC_CTYPE, "");
    in->edit = el_init("dibit", stdin, stdout, stderr);
    in->history = history_init();
    if (!in->edit || !in->history) return;
    history(in->history, &event, H_SETSIZE, 500);
    el_set(in->edit, EL_PROMPT, prompt_text);
    el_set(in->edit, EL_EDITOR, "emacs");
    el_set(in->edit, EL_HIST, history, in->history);
    el_source(in->edit, NULL); /* ~/.editrc */
}

static void input_close(Input *in) {
    if (in->history) history_end(in->history);
    if (in->edit) el_end(in->edit);
    free(in->line);
}

static const char *edit_line(Input *in) {
    HistEvent event;
    int n = 0;
    const char *line = el_gets(in->edit, &n);
    if (line && n > 1) history(in->history, &event, H_ENTER, line);
    return line;
}
#else
static void input_open(Input *in) {
    in->terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

static void input_close(Input *in) {
    free(in->line);
}
#endif

/* The next line with its newline, or NULL at the end or on Ctrl-C (then cli_interrupted()). */
static const char *input_line(Input *in) {
#ifdef HAVE_EDIT
    if (in->edit && in->history) return edit_line(in);
#endif
    if (in->terminal) {
        fputs("> ", stdout);
        fflush(stdout);
    }
    ssize_t n = getline(&in->line, &in->cap, stdin);
    if (n < 0 && cli_interrupted()) clearerr(stdin);
    return n < 0 ? NULL : in->line;
}

/* ---- the conversation ---- */

static int add_message(Chat *c, const char *role, const char *text, size_t n) {
    json_t *m = json_pack("{s:s,s:s%}", "role", role, "content", text, n);
    if (!m || json_array_append_new(c->messages, m) != 0)
        return cli_error("the message is not valid UTF-8");
    return 0;
}

static void drop_last(Chat *c) {
    json_array_remove(c->messages, json_array_size(c->messages) - 1);
}

static int reset(Chat *c) {
    json_array_clear(c->messages);
    if (!c->a->system) return 0;
    return add_message(c, "system", c->a->system, strlen(c->a->system));
}

/* The conversation's tokens up to where the reply begins, or NULL after the error was printed. */
static int32_t *conversation_ids(const Chat *c, size_t *n_ids) {
    size_t n = json_array_size(c->messages);
    DibitMessage *messages = calloc(n, sizeof *messages);
    char *text = NULL;
    int32_t *ids = NULL;
    DibitError err = { 0 };
    int64_t need = 0;
    for (size_t i = 0; messages && i < n; i++) {
        const json_t *m = json_array_get(c->messages, i);
        messages[i].role = json_string_value(json_object_get(m, "role"));
        messages[i].content = json_string_value(json_object_get(m, "content"));
    }
    if (messages) need = dibit_chat_text(c->engine, c->a->style, messages, n, 1, NULL, 0, &err);
    if (need > 0) text = malloc((size_t)need + 1);
    if (text) {
        dibit_chat_text(c->engine, c->a->style, messages, n, 1, text, (size_t)need + 1, &err);
        ids =
            cli_tokenize(c->engine, text, (size_t)need, DIBIT_ADD_BOS | DIBIT_PARSE_SPECIAL, n_ids);
    } else if (need < 0) {
        cli_fail(&err);
    } else {
        cli_error("no memory for the conversation");
    }
    free(text);
    free(messages);
    return ids;
}

typedef struct Reply {
    char *text;
    size_t n, cap;
} Reply;

static int reply_add(Reply *r, const DibitPiece *p) {
    if (r->n + p->n_bytes > r->cap) {
        size_t cap = 2 * (r->n + p->n_bytes) + 256;
        char *more = realloc(r->text, cap);
        if (!more) return cli_error("no memory for the reply");
        r->text = more;
        r->cap = cap;
    }
    if (p->n_bytes) memcpy(r->text + r->n, p->text, p->n_bytes);
    r->n += p->n_bytes;
    fwrite(p->text, 1, p->n_bytes, stdout);
    if (fflush(stdout) != 0) return cli_error("writing the output failed: %s", strerror(errno));
    return 0;
}

/* Prefills what is new and streams the reply. Returns 0 also when Ctrl-C ended it early. */
static int stream_reply(Chat *c, const int32_t *ids, size_t n, Reply *r) {
    DibitError err = { 0 };
    DibitPiece p;
    int64_t got = dibit_sync(c->session, ids, n, &err);
    for (int i = 0; got >= 0 && (c->a->n < 0 || i < c->a->n); i++) {
        got = dibit_next(c->session, &p, &err);
        if (got >= 0 && reply_add(r, &p) != 0) return 1;
        if (got != 0) continue;
        if (strcmp(p.finish, "length") == 0)
            fputs("\n[the context is full: /reset starts anew]", stderr);
        break;
    }
    if (cli_interrupted()) {
        fputs(" [interrupted]", stderr);
        return 0;
    }
    if (got >= 0) return 0;
    if (err.code == DIBIT_E_CONTEXT)
        return cli_error("%s: /reset starts anew, or start with a larger -c", err.text);
    return cli_fail(&err);
}

/* One turn. A turn that fails leaves the conversation as it was. */
static int answer(Chat *c, const char *text, size_t n_text) {
    Reply r = { 0 };
    size_t n = 0;
    int rc = add_message(c, "user", text, n_text);
    if (rc != 0) return rc;
    int32_t *ids = conversation_ids(c, &n);
    cli_interrupt_clear();
    cli_catch_interrupt(c->session);
    rc = ids ? stream_reply(c, ids, n, &r) : 1;
    cli_catch_interrupt(NULL);
    if (r.n > 0) putchar('\n');
    fflush(stdout);
    if (cli_interrupted()) fputc('\n', stderr);
    if (rc != 0 || add_message(c, "assistant", r.n ? r.text : "", r.n) != 0) drop_last(c);
    cli_interrupt_clear();
    free(ids);
    free(r.text);
    return rc;
}

/* ---- slash commands ---- */

static const char help_text[] =
    "/save FILE   write the session: its cache to FILE, its messages to FILE.json\n"
    "/load FILE   go on with a saved session\n"
    "/reset       forget the conversation\n"
    "/help        this list\n"
    "/quit        leave (as Ctrl-D); Ctrl-C stops an answer; a line that ends in \\ goes on\n";

static int save(Chat *c, const char *path) {
    DibitError err = { 0 };
    char *json_path = NULL;
    int rc = 0;
    if (asprintf(&json_path, "%s.json", path) < 0) return cli_error("no memory");
    if (dibit_save(c->session, path, &err) < 0)
        rc = cli_fail(&err);
    else if (json_dump_file(c->messages, json_path, JSON_INDENT(1)) != 0)
        rc = cli_error("%s: %s", json_path, strerror(errno));
    else
        fprintf(stderr, "saved %s and %s\n", path, json_path);
    free(json_path);
    return rc;
}

static bool are_messages(const json_t *messages) {
    size_t i;
    const json_t *m;
    json_array_foreach((json_t *)(uintptr_t)messages, i, m) {
        if (!json_is_string(json_object_get(m, "role"))) return false;
        if (!json_is_string(json_object_get(m, "content"))) return false;
    }
    return json_is_array(messages);
}

static int load(Chat *c, const char *path) {
    DibitError err = { 0 };
    json_error_t json_err;
    char *json_path = NULL;
    int rc = 0;
    if (asprintf(&json_path, "%s.json", path) < 0) return cli_error("no memory");
    json_t *messages = json_load_file(json_path, 0, &json_err);
    if (!messages)
        rc = cli_error("%s: %s", json_path, json_err.text);
    else if (!are_messages(messages))
        rc = cli_error("%s: not a list of messages", json_path);
    else if (dibit_restore(c->session, path, &err) < 0)
        rc = cli_fail(&err);
    if (rc == 0) {
        json_decref(c->messages);
        c->messages = json_incref(messages);
        fprintf(stderr, "loaded %s: %zu messages\n", path, json_array_size(messages));
    }
    json_decref(messages);
    free(json_path);
    return rc;
}

/* Runs "/name argument". Returns its exit code, or -1 to leave. */
static int command(Chat *c, char *line) {
    char *argument = line + strcspn(line, " \t");
    if (*argument) *argument++ = 0;
    argument += strspn(argument, " \t");
    bool named = *argument != 0;
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return -1;
    if (strcmp(line, "/reset") == 0) return reset(c);
    if (strcmp(line, "/save") == 0 && named) return save(c, argument);
    if (strcmp(line, "/load") == 0 && named) return load(c, argument);
    if (strcmp(line, "/help") == 0) {
        fputs(help_text, stderr);
        return 0;
    }
    if (strcmp(line, "/save") == 0 || strcmp(line, "/load") == 0)
        return cli_error("%s needs a file name", line);
    static const char *const names[] = { "/save", "/load", "/reset", "/help", "/quit" };
    const char *near = cli_suggest(line, names, ARRAY_LEN(names));
    return cli_error("unknown command %s; did you mean %s?", line, near ? near : "/help");
}

/* Reads a turn: lines that end in a backslash go on. Returns false at the end of the input. */
static bool read_turn(Input *in, char **text, size_t *n) {
    *text = NULL;
    *n = 0;
    for (;;) {
        const char *line = input_line(in);
        if (!line) return false;
        size_t len = strcspn(line, "\r\n");
        char *more = realloc(*text, *n + len + 2);
        if (!more) return false;
        *text = more;
        memcpy(more + *n, line, len);
        *n += len;
        bool goes_on = len > 0 && line[len - 1] == '\\';
        if (goes_on) more[*n - 1] = '\n';
        more[*n] = 0;
        if (!goes_on) return true;
    }
}

static int converse(Chat *c) {
    Input in = { 0 };
    int code = 0, rc = 0;
    input_open(&in);
    cli_catch_interrupt(NULL);
    if (in.terminal) fputs("/help lists the commands; Ctrl-D leaves\n", stderr);
    while (rc >= 0) {
        char *text;
        size_t n;
        bool more = read_turn(&in, &text, &n);
        if (!more && cli_interrupted() && in.terminal) {
            cli_interrupt_clear();
            fputs("\n(Ctrl-D or /quit leaves)\n", stderr);
        } else if (!more) {
            rc = -1;
        } else if (text[0] == '/') {
            rc = command(c, text);
        } else if (n > 0) {
            rc = answer(c, text, n);
        }
        free(text);
        if (rc > 0) code = rc;
    }
    if (in.terminal) putchar('\n');
    bool interrupted = cli_interrupted();
    bool terminal = in.terminal;
    input_close(&in);
    if (interrupted) return 130;
    return terminal ? 0 : code; /* a person saw the errors; a script needs the exit code */
}

static int chat_with(const Args *a, DibitEngine *e) {
    Chat c = { .a = a, .engine = e, .messages = json_array() };
    DibitModelInfo info;
    DibitError err = { 0 };
    int code;
    dibit_model_info(e, &info);
    DibitSessionOptions so = { .n_ctx = a->n_ctx, .sampling = a->sampling.s };
    cli_kv_options(&a->kv, &so);
    if (!c.messages)
        code = cli_error("no memory");
    else if (!info.has_tokenizer)
        code = cli_error("the model file has no tokenizer: `dibit chat` needs one");
    else if (!a->style && !info.chat_template[0])
        code = cli_error("the model names no chat template this program knows: choose one with "
                         "--chat-template");
    else if (dibit_session_create(&c.session, e, &so, &err) < 0)
        code = cli_fail(&err);
    else if ((code = reset(&c)) == 0)
        code = converse(&c);
    dibit_session_free(&c.session);
    json_decref(c.messages);
    return code;
}

int cmd_chat(int argc, char **argv) {
    Args a = { .sampling = CLI_SAMPLING_DEFAULT, .kv = CLI_KV_DEFAULT, .n = -1 };
    const CliOption options[] = {
        CLI_MODEL_ROWS(&a.model),
        CLI_BACKEND_ROW(&a.model),
        { "system", NULL, CLI_TEXT, &a.system, "TEXT", "system message", 0, 0, NULL },
        { "chat-template", NULL, CLI_TEXT, &a.style, "NAME",
          "chat form to use: chatml, llama2, llama3, mistral (default: the model's own)", 0, 0,
          NULL },
        { "predict", "n", CLI_INT, &a.n, "N", "tokens of an answer at most; -1: no limit", -1, 1e9,
          NULL },
        { "ctx-size", "c", CLI_INT, &a.n_ctx, "N", "context in tokens; 0: the model's own", 0,
          1 << 24, NULL },
        CLI_SAMPLING_ROWS(&a.sampling),
        CLI_KV_ROWS(&a.kv),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "chat",
        "[-m FILE] [options]",
        "Talks with a model. Each line is a message; the answers go to stdout. "
        "In the conversation:\n\n"
        "/save FILE, /load FILE, /reset, /help, /quit. Ctrl-C stops an answer, "
        "Ctrl-D leaves.",
        options,
        NULL,
        0,
        0,
        "  dibit chat --system \"You are a patient teacher.\""
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if ((code = cli_kv_check("chat", &a.kv)) != 0) return code;
    DibitEngine *e = NULL;
    code = cli_open(&e, &a.model);
    if (code == 0) {
        cli_seed(&a.sampling, false);
        code = chat_with(&a, e);
    }
    dibit_close(&e);
    return code;
}
