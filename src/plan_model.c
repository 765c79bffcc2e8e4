/* plan_model.c - what a model takes, from the first bytes of its file: nothing here reads the data
 * of a tensor. All bytes come from the functions that allocate them. */
#include <stdio.h>
#include <string.h>

#include "cache.h"
#include "model.h"
#include "plan.h"

const char *const plan_group_names[N_GROUPS] = { "embedding", "attention", "feed_forward",
                                                 "audio",     "norms",     "output" };

/* ---- the model ---- */

enum { MAX_TYPES = 64 }; /* rows of types.def */

static PlanGroup group_of(const GgufTensor *t) {
    if (strcmp(t->name, "token_embd.weight") == 0) return GROUP_EMBEDDING;
    if (strcmp(t->name, "output.weight") == 0) return GROUP_OUTPUT;
    if (t->n_dims == 1 || t->ne[1] == 1 || strstr(t->name, ".kv_")) return GROUP_NORMS;
    return strstr(t->name, ".attn_") ? GROUP_ATTENTION : GROUP_FEED_FORWARD;
}

static int type_index(int id) {
    int i = 0;
    while (type_at(i)->id != id) i++; /* the file has known types alone */
    return i;
}

/* The type that most of each group's bytes have. */
static void count_groups(PlanModel *m, const Gguf *file) {
    size_t bytes[N_GROUPS][MAX_TYPES] = { { 0 } };
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        const GgufTensor *t = gguf_tensor(file, i);
        bytes[group_of(t)][type_index(t->type)] += t->n_bytes;
    }
    for (int g = 0; g < N_GROUPS; g++) {
        size_t most = 0;
        m->type[g] = -1;
        for (int i = 0; i < MAX_TYPES && type_at(i); i++) {
            m->bytes[g] += bytes[g][i];
            if (bytes[g][i] > most) m->type[g] = type_at(i)->id;
            most = MAX(most, bytes[g][i]);
        }
    }
}

static void copy_string(char *to, size_t cap, const Gguf *file, const char *key) {
    GgufString s = { "", 0 };
    gguf_get_string(file, key, &s);
    size_t n = 0;
    for (size_t i = 0; i < s.n && n + 1 < cap; i++) /* shown as it is: no control characters */
        if ((unsigned char)s.s[i] >= ' ' && s.s[i] != 127) to[n++] = s.s[i];
    to[n] = 0;
}

static void take_model(PlanModel *out, const Gguf *file, const Model *m) {
    const Hparams *h = &m->hp;
    ContextModel *c = &out->context;
    copy_string(out->name, sizeof out->name, file, "general.name");
    copy_string(out->architecture, sizeof out->architecture, file, "general.architecture");
    *c = (ContextModel){ .source = "a file", .n_parts = 1 };
    c->parts[0] = (ContextPart){ .n_layers = h->n_layers,
                                 .n_kv_heads = h->n_kv_heads,
                                 .head_dim = h->head_dim,
                                 .causal = true };
    c->n_ctx_train = h->n_ctx_train;
    c->n_embd = h->n_embd;
    c->n_ff = h->n_ff;
    c->n_heads = h->n_heads;
    c->n_vocab = h->n_vocab;
    c->n_params = m->n_params;
    c->weights = m->file_bytes;
    out->bases = m->packed_bytes;
    out->kv_calibrated = gguf_find(file, "blk.0.kv_k.basis") != NULL;
    out->tied = m->tied;
    out->file_bytes = gguf_file_bytes(file);
    out->header_bytes = gguf_data_start(file);
    count_groups(out, file);
}

static int peek_file(Gguf **out, PlanPart *parts, size_t n, DibitError *err) {
    DibitImage *images = mem_calloc(NULL, n, sizeof *images);
    size_t *sizes = mem_calloc(NULL, n, 2 * sizeof *sizes), *need = sizes ? sizes + n : NULL;
    int r = images && sizes ? 0 : fail(err, DIBIT_E_MEMORY, "no memory to look at the model");
    for (size_t i = 0; i < n && r == 0; i++) {
        if (parts[i].total >= SIZE_MAX)
            r = fail(err, DIBIT_E_MEMORY, "a model of %llu bytes is too large for this machine",
                     (unsigned long long)parts[i].total);
        images[i] = (DibitImage){ parts[i].data, (size_t)parts[i].total };
        sizes[i] = parts[i].present;
    }
    if (r == 0) r = gguf_peek(out, images, sizes, n, need, NULL, err);
    for (size_t i = 0; i < n && sizes; i++) parts[i].need = r > 0 ? need[i] : 0;
    mem_free(NULL, images);
    mem_free(NULL, sizes);
    return r;
}

int plan_take(PlanModel *m, const Gguf *file, DibitError *err) {
    Model model;
    Kern kern;
    *m = (PlanModel){ .tied = false };
    kern_init(&kern, ~0u);
    int r = model_peek(&model, file, &kern, true, NULL, err);
    if (r != 0) return r;
    take_model(m, file, &model);
    model_close(&model);
    r = model_peek(&model, file, &kern, false, NULL, err);
    if (r != 0) return r;
    m->repacked = model.packed_bytes - m->bases;
    model_close(&model);
    return 0;
}

int plan_peek(PlanModel *m, PlanPart *parts, size_t n, DibitError *err) {
    Gguf *file;
    *m = (PlanModel){ .tied = false };
    int r = peek_file(&file, parts, n, err);
    if (r != 0) return r;
    r = plan_take(m, file, err);
    gguf_close(&file);
    return r;
}

/* ---- what that takes ---- */

int plan_cache_type(const char *name, int *type, const char *which, DibitError *err) {
    *type = name[0] ? kv_type_by_name(name) : KV_F16;
    if (*type >= 0) return 0;
    return fail(err, DIBIT_E_ARGUMENT,
                "cache_type_%s: \"%s\" is unknown; known are f16, q8, q4, k3 and k2", which, name);
}

int plan_count(PlanNeed *n, const PlanModel *m, bool repack, DibitError *err) {
    ContextOptions o = { .sinks = KV_SINKS, .window = KV_WINDOW, .n_threads = n->n_threads };
    if (!size_add(m->context.weights, m->bases, &n->weights) ||
        (repack && !size_add(n->weights, m->repacked, &n->weights)))
        return fail(err, DIBIT_E_MEMORY, "the model is too large for this machine");
    if (!context_kv_bytes(&m->context, &o, &n->kv_types, n->n_ctx, &n->kv) ||
        !context_scratch_bytes(&m->context, &o, &n->kv_types, n->n_ctx, &n->scratch) ||
        !size_add(n->weights, n->kv, &n->total) || !size_add(n->total, n->scratch, &n->total))
        return fail(err, DIBIT_E_MEMORY,
                    "a cache of %d positions is too large for this machine, or its heads do not "
                    "fit the type",
                    n->n_ctx);
    return 0;
}

int plan_need(PlanNeed *out, const PlanModel *m, const PlanRequest *q, DibitError *err) {
    *out = (PlanNeed){ .n_threads = q->n_threads > 0 ? (int)q->n_threads : 1 };
    int r = plan_cache_type(q->cache_type_k, &out->kv_types.k, "k", err);
    if (r == 0) r = plan_cache_type(q->cache_type_v, &out->kv_types.v, "v", err);
    out->n_ctx = q->n_ctx > 0 ? (int)q->n_ctx : m->context.n_ctx_train;
    return r ? r : plan_count(out, m, q->repack != 0, err);
}
