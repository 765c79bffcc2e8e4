/* tokenize.c - `dibit tokenize` and `dibit detokenize`. They read the vocabulary alone, so a file
 * without weights or of another architecture will do. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "tokenizer.h"

CliMain cmd_tokenize, cmd_detokenize; // rows of main.c

typedef struct Vocabulary {
    Gguf *file;
    Tokenizer *t;
} Vocabulary;

static void vocabulary_close(Vocabulary *v) {
    tokenizer_close(&v->t);
    gguf_close(&v->file);
}

/* Prints the error and returns false on failure. */
static bool vocabulary_open(Vocabulary *v, const char *given) {
    char buf[2048];
    DibitError err = { 0 };
    *v = (Vocabulary){ 0 };
    const char *path = cli_model_path(given, buf, sizeof buf);
    if (!path) return false;
    if (gguf_open(&v->file, path, false, NULL, &err) == 0 &&
        tokenizer_open(&v->t, v->file, NULL, &err) == 0)
        return true;
    cli_fail(&err);
    vocabulary_close(v);
    return false;
}

/* The text given as an argument, else the file's or standard input's. */
static char *input_text(const CliTexts *args, const char *path, size_t *n) {
    if (args->n == 0) return cli_read(path, n);
    char *text = malloc((*n = strlen(args->at[0])) + 1);
    if (!text) {
        cli_error("no memory for the text");
        return NULL;
    }
    return memcpy(text, args->at[0], *n + 1);
}

/* ---- tokenize ---- */

static int32_t *encode(const Tokenizer *t, const char *text, size_t n, int flags, size_t *n_ids) {
    DibitError err = { 0 };
    size_t cap = n / 3 + 16; // a second round with the exact number where that is too few
    for (int round = 0; round < 2; round++) {
        int32_t *ids = malloc(cap * sizeof *ids);
        if (!ids) {
            cli_error("no memory for %zu tokens", cap);
            return NULL;
        }
        int64_t got = tokenizer_encode(t, text, n, flags, ids, cap, &err);
        if (got >= 0 && (size_t)got <= cap) {
            *n_ids = (size_t)got;
            return ids;
        }
        free(ids);
        if (got < 0) break;
        cap = (size_t)got;
    }
    cli_fail(&err);
    return NULL;
}

/* 'piece', on one line whatever its bytes are. */
static void print_piece(const char *s, size_t n) {
    putchar('\'');
    for (size_t i = 0; i < n; i++) {
        uint32_t c = (uint8_t)s[i];
        json_t *valid = NULL; // whole characters are printed, other bytes as \xNN
        size_t len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        if (c == '\n' || c == '\r' || c == '\t') {
            printf("\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        } else if (c == '\'' || c == '\\') {
            printf("\\%c", (int)c);
        } else if (c >= 0x20 && c != 0x7f && len <= n - i && (valid = json_stringn(s + i, len))) {
            fwrite(s + i, 1, len, stdout);
            i += len - 1;
        } else {
            printf("\\x%02X", (unsigned)c);
        }
        json_decref(valid);
    }
    putchar('\'');
}

/* A string, or the list of its bytes where they are not UTF-8. */
static json_t *piece_json(const char *s, size_t n) {
    json_t *piece = json_stringn(s, n);
    if (piece) return piece;
    piece = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(piece, json_integer((uint8_t)s[i]));
    return piece;
}

static int print_tokens_json(const Tokenizer *t, const int32_t *ids, size_t n, bool ids_only) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        const char *bytes = "";
        int len = tokenizer_bytes(t, ids[i], true, &bytes);
        json_t *id = json_integer(ids[i]);
        json_array_append_new(list, ids_only ? id
                                             : json_pack("{so so}", "id", id, "piece",
                                                         piece_json(bytes, (size_t)MAX(len, 0))));
    }
    return cli_print_json(json_pack("{so}", "tokens", list), false);
}

static int print_tokens(const Tokenizer *t, const int32_t *ids, size_t n, bool ids_only) {
    for (size_t i = 0; i < n; i++) {
        const char *bytes = "";
        int len = tokenizer_bytes(t, ids[i], true, &bytes);
        printf("%s%d", i == 0 ? "" : ids_only ? " " : "  ", (int)ids[i]);
        if (ids_only) continue;
        putchar(' ');
        print_piece(bytes, (size_t)MAX(len, 0));
    }
    putchar('\n');
    return fflush(stdout) == 0 ? 0 : cli_error("writing the output failed");
}

int cmd_tokenize(int argc, char **argv) {
    const char *model = NULL, *file = NULL;
    bool ids_only = false, no_bos = false, special = false, json = false;
    CliTexts args = { .n = 0 };
    const CliOption options[] = {
        { "model", "m", CLI_FILE, &model, "FILE", "model in GGUF form, weights not needed", 0, 0,
          NULL },
        { "file", "f", CLI_FILE, &file, "FILE", "read the text from a file", 0, 0, NULL },
        { "ids", NULL, CLI_FLAG, &ids_only, NULL, "print ids without their pieces", 0, 0, NULL },
        { "no-bos", NULL, CLI_FLAG, &no_bos, NULL, "never put BOS in front", 0, 0, NULL },
        { "special", NULL, CLI_FLAG, &special, NULL,
          "\"<|im_end|>\" in the text is the special token, not its characters", 0, 0, NULL },
        CLI_JSON_ROW(&json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "tokenize",
        "[options] [TEXT]",
        "Prints the tokens of TEXT, of a file or of standard input on one line, each as its id "
        "and\n"
        "its piece of text; with --ids the ids alone. BOS comes first if the model asks for it.",
        options,
        &args,
        0,
        1,
        "dibit tokenize \"Hello, world!\"\n"
        "dibit tokenize --ids --no-bos -f text.txt > ids.txt",
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (args.n && file) return cli_misuse("tokenize", "give TEXT or -f FILE, not both");
    Vocabulary v;
    if (!vocabulary_open(&v, model)) return 1;
    size_t n, n_ids = 0;
    char *text = input_text(&args, file, &n);
    int flags = (no_bos ? 0 : DIBIT_ADD_BOS) | (special ? DIBIT_PARSE_SPECIAL : 0);
    int32_t *ids = text ? encode(v.t, text, n, flags, &n_ids) : NULL;
    code = 1;
    if (ids)
        code = json ? print_tokens_json(v.t, ids, n_ids, ids_only)
                    : print_tokens(v.t, ids, n_ids, ids_only);
    free(ids);
    free(text);
    vocabulary_close(&v);
    return code;
}

/* ---- detokenize ---- */

/* The text of the ids, or NULL after the error was printed. */
static char *decode(const Tokenizer *t, const int32_t *ids, size_t n, bool special, size_t *n_out) {
    size_t total = 0, len = 0;
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        int k = tokenizer_bytes(t, ids[i], special, &bytes);
        if (k < 0) {
            cli_error("token %d is not in the vocabulary (0 to %d)", (int)ids[i],
                      tokenizer_n_vocab(t) - 1);
            return NULL;
        }
        total += (size_t)k;
    }
    char *text = malloc(total + 1);
    if (!text) {
        cli_error("no memory for %zu bytes of text", total);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t k = (size_t)tokenizer_bytes(t, ids[i], special, &bytes);
        memcpy(text + len, bytes, k);
        len += k;
    }
    if (len > 0 && text[0] == ' ' && tokenizer_adds_space(t)) memmove(text, text + 1, --len);
    *n_out = len;
    return text;
}

static int print_text(const char *text, size_t n, bool json) {
    if (!json) {
        bool written = fwrite(text, 1, n, stdout) == n;
        if (isatty(STDOUT_FILENO)) putchar('\n');
        return written && fflush(stdout) == 0 ? 0 : cli_error("writing the output failed");
    }
    Utf8Stream s = { .n_hold = 0 };
    char *whole = malloc(3 * (n + 4));
    if (!whole) return cli_error("no memory for %zu bytes of text", n);
    size_t len = utf8_stream(&s, text, n, true, whole);
    int code = cli_print_json(json_pack("{ss%}", "content", whole, len), false);
    free(whole);
    return code;
}

static char *join(const CliTexts *args, const char *path) {
    size_t n = 1;
    if (args->n == 0) return cli_read(path, &n);
    for (int i = 0; i < args->n; i++) n += strlen(args->at[i]) + 1;
    char *all = malloc(n), *p = all;
    if (!all) {
        cli_error("no memory for the ids");
        return NULL;
    }
    for (int i = 0; i < args->n; i++) {
        size_t len = strlen(args->at[i]);
        memcpy(p, args->at[i], len);
        p[len] = ' ';
        p += len + 1;
    }
    *p = 0;
    return all;
}

int cmd_detokenize(int argc, char **argv) {
    const char *model = NULL, *file = NULL;
    bool special = false, json = false;
    CliTexts args = { .n = 0 };
    const CliOption options[] = {
        { "model", "m", CLI_FILE, &model, "FILE", "model in GGUF form, weights not needed", 0, 0,
          NULL },
        { "file", "f", CLI_FILE, &file, "FILE", "read the ids from a file", 0, 0, NULL },
        { "special", NULL, CLI_FLAG, &special, NULL, "print control tokens, too", 0, 0, NULL },
        CLI_JSON_ROW(&json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "detokenize",
        "[options] [ID]...",
        "Prints the text of token ids given as arguments, in a file or on standard input, with\n"
        "blanks or commas between them. Control tokens have no text unless --special is given.",
        options,
        &args,
        0,
        CLI_MAX_TEXTS,
        "dibit detokenize 13253 14 935 3\n"
        "dibit tokenize --ids -f text.txt | dibit detokenize",
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (args.n && file) return cli_misuse("detokenize", "give ids or -f FILE, not both");
    Vocabulary v;
    if (!vocabulary_open(&v, model)) return 1;
    size_t n_ids = 0, n = 0;
    char *list = join(&args, file), *text = NULL;
    int32_t *ids = list ? cli_parse_ids(list, &n_ids) : NULL;
    if (ids) text = decode(v.t, ids, n_ids, special, &n);
    code = text ? print_text(text, n, json) : 1;
    free(text);
    free(ids);
    free(list);
    vocabulary_close(&v);
    return code;
}
