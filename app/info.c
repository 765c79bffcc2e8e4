/* info.c - `dibit info`: what is in a model file and the memory it needs. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "quantize.h"

typedef struct Total { /* of one type */
    const char *type;
    int n;
    uint64_t weights, bytes;
} Total;
enum { MAX_TYPES = 64 };

typedef struct Args {
    CliModel model;
    int n_ctx;
    bool json;
} Args;

typedef struct Info {
    DibitModelInfo model;
    DibitMemory f16, q8;
    Total totals[MAX_TYPES], all, blocks; /* blocks: without embedding and output */
    int n_totals;
    char history[2048]; /* lines on how the file was quantized */
} Info;

static uint64_t n_weights(const DibitTensorInfo *t) {
    return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
}

static double bits(uint64_t n_bytes, uint64_t weights) {
    return weights ? 8.0 * (double)n_bytes / (double)weights : 0;
}

static void add(Total *total, const DibitTensorInfo *t) {
    total->n++;
    total->weights += n_weights(t);
    total->bytes += t->n_bytes;
}

static void count(Info *info, const DibitEngine *e) {
    DibitTensorInfo t;
    int n = dibit_tensor_info(e, -1, &t);
    for (int i = 0; i < n; i++) {
        dibit_tensor_info(e, i, &t);
        int k = 0;
        while (k < info->n_totals && strcmp(info->totals[k].type, t.type) != 0) k++;
        if (k == MAX_TYPES) continue;
        if (k == info->n_totals) info->totals[info->n_totals++].type = t.type;
        add(&info->totals[k], &t);
        add(&info->all, &t);
        if (strcmp(t.name, "token_embd.weight") != 0 && strcmp(t.name, "output.weight") != 0)
            add(&info->blocks, &t);
    }
}

static int memory_of(const DibitEngine *e, int n_ctx, const char *type, DibitMemory *out) {
    DibitError err = { 0 };
    DibitSessionOptions opt = { .n_ctx = n_ctx, .cache_k = type, .cache_v = type };
    return dibit_session_memory(e, &opt, out, &err) == 0 ? 0 : cli_fail(&err);
}

/* ---- text ---- */

static double mib(uint64_t n) {
    return (double)n / 1048576;
}

static void print_memory(const DibitMemory *m, const char *type) {
    printf("  with %s cache  %10.1f MiB: weights %.1f, cache %.1f, scratch %.1f\n", type,
           mib((uint64_t)m->weights + m->kv + m->scratch), mib(m->weights), mib(m->kv),
           mib(m->scratch));
}

static void print_model(const DibitModelInfo *m) {
    printf("architecture   %s%s%s\n", m->architecture, m->name[0] ? ", " : "", m->name);
    printf("weights        %llu\n", (unsigned long long)m->n_params);
    printf("layers         %d of width %d, feed-forward %d\n", m->n_layers, m->n_embd, m->n_ff);
    printf("heads          %d of %d, %d for keys and values\n", m->n_heads, m->head_dim,
           m->n_kv_heads);
    printf("vocabulary     %d%s\n", m->n_vocab, m->has_tokenizer ? "" : ", no tokenizer");
    printf("context        %d", m->n_ctx_train);
    if (m->sliding_window) printf(", sliding window %d", m->sliding_window);
    printf("\nchat template  %s\n", m->chat_template[0] ? m->chat_template : "not known");
}

static void print_text(const Info *info, const DibitEngine *e) {
    DibitTensorInfo t;
    print_model(&info->model);
    fputs(info->history, stdout);
    printf("\n%-32s %-16s %-6s %12s %8s\n", "tensor", "shape", "type", "bytes", "bits");
    for (int i = 0, n = dibit_tensor_info(e, -1, &t); i < n; i++) {
        char shape[96] = "";
        dibit_tensor_info(e, i, &t);
        for (int d = 0, at = 0; d < t.n_dims; d++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%llu", d ? " x " : "",
                           (unsigned long long)t.shape[d]);
        printf("%-32s %-16s %-6s %12llu %8.3f\n", t.name, shape, t.type,
               (unsigned long long)t.n_bytes, bits(t.n_bytes, n_weights(&t)));
    }
    printf("\n%-6s %8s %14s %14s %8s\n", "type", "tensors", "weights", "bytes", "bits");
    for (int i = 0; i < info->n_totals; i++) {
        const Total *x = &info->totals[i];
        printf("%-6s %8d %14llu %14llu %8.3f\n", x->type, x->n, (unsigned long long)x->weights,
               (unsigned long long)x->bytes, bits(x->bytes, x->weights));
    }
    printf("%-6s %8d %14llu %14llu %8.3f\n", "all", info->all.n,
           (unsigned long long)info->all.weights, (unsigned long long)info->all.bytes,
           bits(info->all.bytes, info->all.weights));
    printf("without embedding and output: %.3f bits\nfile: %zu bytes\n",
           bits(info->blocks.bytes, info->blocks.weights), info->model.disk_bytes);
    printf("\nmemory at a context of %d\n", info->f16.n_ctx);
    print_memory(&info->f16, "f16");
    print_memory(&info->q8, "q8 ");
}

/* ---- JSON ---- */

static json_t *total_json(const Total *t) {
    return json_pack("{s:s?,s:i,s:I,s:I,s:f}", "type", t->type, "tensors", t->n, "weights",
                     (json_int_t)t->weights, "bytes", (json_int_t)t->bytes, "bits",
                     bits(t->bytes, t->weights));
}

static json_t *memory_json(const DibitMemory *m, const char *type) {
    return json_pack("{s:s,s:I,s:I,s:I,s:I}", "cache_type", type, "weights", (json_int_t)m->weights,
                     "kv", (json_int_t)m->kv, "scratch", (json_int_t)m->scratch, "total",
                     (json_int_t)(m->weights + m->kv + m->scratch));
}

static json_t *model_json(const DibitModelInfo *m) {
    return json_pack("{s:s,s:s,s:s,s:I,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:b,s:i,s:i}",
                     "architecture", m->architecture, "name", m->name, "chat_template",
                     m->chat_template, "weights", (json_int_t)m->n_params, "vocabulary", m->n_vocab,
                     "context", m->n_ctx_train, "width", m->n_embd, "layers", m->n_layers, "heads",
                     m->n_heads, "kv_heads", m->n_kv_heads, "head_dim", m->head_dim, "feed_forward",
                     m->n_ff, "sliding_window", m->sliding_window, "has_tokenizer",
                     m->has_tokenizer, "bos_id", m->bos_id, "eos_id", m->eos_id);
}

static json_t *tensors_json(const DibitEngine *e) {
    DibitTensorInfo t;
    json_t *list = json_array();
    for (int i = 0, n = dibit_tensor_info(e, -1, &t); i < n; i++) {
        dibit_tensor_info(e, i, &t);
        json_t *shape = json_array();
        for (int d = 0; d < t.n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)t.shape[d]));
        json_array_append_new(list,
                              json_pack("{s:s,s:s,s:o,s:I,s:f}", "name", t.name, "type", t.type,
                                        "shape", shape, "bytes", (json_int_t)t.n_bytes, "bits",
                                        bits(t.n_bytes, n_weights(&t))));
    }
    return list;
}

static int print_json(const Info *info, const DibitEngine *e) {
    json_t *types = json_array();
    for (int i = 0; i < info->n_totals; i++)
        json_array_append_new(types, total_json(&info->totals[i]));
    return cli_print_json(
        json_pack("{s:o,s:s,s:o,s:o,s:I,s:I,s:f,s:f,s:I,s:i,s:[o,o]}", "model",
                  model_json(&info->model), "history", info->history, "tensors", tensors_json(e),
                  "types", types, "file_bytes", (json_int_t)info->model.disk_bytes, "tensor_bytes",
                  (json_int_t)info->all.bytes, "bits", bits(info->all.bytes, info->all.weights),
                  "bits_blocks", bits(info->blocks.bytes, info->blocks.weights), "repacked_bytes",
                  (json_int_t)info->model.repacked_bytes, "context", info->f16.n_ctx, "memory",
                  memory_json(&info->f16, "f16"), memory_json(&info->q8, "q8")),
        true);
}

static int run(const Args *a) {
    DibitEngine *e;
    int code = cli_open(&e, &a->model);
    if (code != 0) return code;
    Info info = { .n_totals = 0 };
    dibit_model_info(e, &info.model);
    count(&info, e);
    char buf[512];
    const char *path = cli_model_path(a->model.path, buf, sizeof buf);
    DibitError err;
    if (path && quantize_history(path, info.history, sizeof info.history, &err) != 0)
        code = cli_fail(&err);
    if (code == 0) code = memory_of(e, a->n_ctx, "f16", &info.f16);
    if (code == 0) code = memory_of(e, a->n_ctx, "q8", &info.q8);
    if (code == 0 && a->json) code = print_json(&info, e);
    if (code == 0 && !a->json) print_text(&info, e);
    dibit_close(&e);
    return code;
}

int cmd_info(int argc, char **argv) {
    Args a = { .n_ctx = 0 };
    const CliOption options[] = {
        CLI_MODEL_ROWS(&a.model),
        { "ctx-size", "c", CLI_INT, &a.n_ctx, "N",
          "context for the memory (default: the model's own)", 0, 1 << 24, NULL },
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "info",
        "[-m FILE] [-c N] [options]",
        "Prints a model's hyper-parameters, its tensors with types, bytes and bits per weight "
        "(all\n"
        "bytes of the tensor over its weights), totals, and the memory a session needs.",
        options,
        NULL,
        0,
        0,
        NULL
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    return run(&a);
}
