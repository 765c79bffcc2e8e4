/* logits.c - `dibit logits`: the model's logits for given token ids, for comparing with others. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { CHUNK = 64, BEST = 10 };

typedef struct Args {
    CliModel model;
    const char *ids;
    CliKv kv;
    bool all, json;
} Args;

static int argmax(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void print_row(const float *x, int n) {
    for (int i = 0; i < n; i++) printf("%s%.9g", i ? "," : "[", (double)x[i]);
    putchar(']');
}

/* Runs the ids in chunks; rows are printed as they come, so that --all needs little memory. */
static int run_ids(DibitSession *s, const Args *a, const int32_t *ids, size_t n, int n_vocab,
                   float *logits, int *best) {
    DibitError err = { 0 };
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t k = MIN((size_t)CHUNK, n - i);
        if (dibit_forward(s, ids + i, k, logits, &err) < 0) return cli_fail(&err);
        for (size_t j = 0; j < k; j++) {
            const float *row = logits + j * (size_t)n_vocab;
            best[i + j] = argmax(row, n_vocab);
            if (!a->all) continue;
            fputs(!a->json ? "" : i + j ? "," : "{\"logits\":[", stdout);
            print_row(row, n_vocab);
            if (!a->json) putchar('\n');
        }
    }
    if (a->all && a->json) putchar(']');
    return 0;
}

static void print_json(const Args *a, const float *last, int n_vocab, const int *best, size_t n) {
    fputs(a->all ? ",\"logits_last\":" : "{\"logits_last\":", stdout);
    print_row(last, n_vocab);
    for (size_t i = 0; i < n; i++) printf("%s%d", i ? "," : ",\"argmax\":[", best[i]);
    puts("]}");
}

static void print_table(const float *last, int n_vocab, const int *best, const int32_t *ids,
                        size_t n) {
    printf("%8s %8s %8s\n", "position", "id", "argmax");
    for (size_t i = 0; i < n; i++) printf("%8zu %8d %8d\n", i, ids[i], best[i]);
    int top[BEST], n_top = 0; /* of the last position, by insertion */
    for (int i = 0; i < n_vocab; i++) {
        int at = n_top;
        while (at > 0 && last[i] > last[top[at - 1]]) at--;
        if (at == BEST) continue;
        if (n_top < BEST) n_top++;
        memmove(top + at + 1, top + at, (size_t)(n_top - at - 1) * sizeof *top);
        top[at] = i;
    }
    printf("\n%8s %12s   (after the last id)\n", "id", "logit");
    for (int i = 0; i < n_top; i++) printf("%8d %12.5f\n", top[i], (double)last[top[i]]);
}

static int logits_of(DibitEngine *e, const Args *a, const int32_t *ids, size_t n) {
    DibitModelInfo info;
    DibitError err = { 0 };
    DibitSession *s = NULL;
    dibit_model_info(e, &info);
    DibitSessionOptions so = { .n_ctx = (int)n };
    cli_kv_options(&a->kv, &so);
    float *logits = mem_calloc(NULL, CHUNK * (size_t)info.n_vocab, sizeof *logits);
    int *best = mem_calloc(NULL, n, sizeof *best), rc = 1;
    if (!logits || !best)
        cli_error("no memory for %d rows of logits", CHUNK);
    else if (dibit_session_create(&s, e, &so, &err) < 0)
        rc = cli_fail(&err);
    else
        rc = run_ids(s, a, ids, n, info.n_vocab, logits, best);
    if (rc == 0) {
        const float *last = logits + (n - 1) % CHUNK * (size_t)info.n_vocab;
        if (a->json)
            print_json(a, last, info.n_vocab, best, n);
        else if (!a->all)
            print_table(last, info.n_vocab, best, ids, n);
    }
    dibit_session_free(&s);
    mem_free(NULL, logits);
    mem_free(NULL, best);
    return rc;
}

int cmd_logits(int argc, char **argv) {
    Args a = { .kv = CLI_KV_DEFAULT };
    const CliOption options[] = {
        CLI_MODEL_ROWS(&a.model),
        { "ids", NULL, CLI_TEXT, &a.ids, "LIST", "token ids, comma-separated; taken as they are", 0,
          0, NULL },
        { "all", NULL, CLI_FLAG, &a.all, NULL, "print every position's logits, a line each", 0, 0,
          NULL },
        CLI_KV_ROWS(&a.kv),
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "logits",
        "[-m FILE] --ids LIST [options]",
        "Prints the model's best token at each position and the best logits of the last. With\n"
        "--json: {\"logits_last\":[...],\"argmax\":[...]}, and with --all also \"logits\", a list "
        "a "
        "position.",
        options,
        NULL,
        0,
        0,
        "  dibit logits -m model.gguf --ids 1,450,4996 --json"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if ((code = cli_kv_check("logits", &a.kv)) != 0) return code;
    if (!a.ids) return cli_misuse("logits", "--ids is missing");
    size_t n;
    int32_t *ids = cli_parse_ids(a.ids, &n);
    if (!ids) return 2;
    DibitEngine *e = NULL;
    if (n == 0)
        code = cli_misuse("logits", "--ids: the list is empty");
    else if ((code = cli_open(&e, &a.model)) == 0)
        code = logits_of(e, &a, ids, n);
    dibit_close(&e);
    free(ids);
    return code;
}
