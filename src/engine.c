/* engine.c - the engine of dibit.h: a file opened, checked and ready to be run by sessions; text
 * and tokens. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "chat.h"
#include "session.h"

void engine_log(const DibitEngine *e, int level, const char *fmt, ...) {
    if (!e->logger.log) return;
    char text[240];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    e->logger.log(e->logger.user, level, text);
}

const char *dibit_version(void) {
    return DIBIT_VERSION;
}

static int open_tokenizer(DibitEngine *e, DibitError *err) {
    int r = tokenizer_open(&e->tokenizer, e->file, &e->memory, &e->why_none);
    if (r == DIBIT_E_TOKENIZER) return 0; /* token ids still work */
    if (r != 0) return fail(err, r, "%s", e->why_none.text);
    int n = tokenizer_n_vocab(e->tokenizer);
    if (n > e->model.hp.n_vocab)
        return fail(err, DIBIT_E_FORMAT, "the tokenizer has %d tokens, the embedding %d rows", n,
                    e->model.hp.n_vocab);
    for (int32_t id = 0; id < n; id++) {
        const char *bytes;
        int len = tokenizer_bytes(e->tokenizer, id, false, &bytes);
        if (len > 0) e->max_token_bytes = MAX(e->max_token_bytes, (size_t)len);
    }
    return 0;
}

static int read_names(DibitEngine *e, DibitError *err) {
    GgufString s = { "", 0 }, jinja = { "", 0 };
    gguf_get_string(e->file, "general.name", &s);
    gguf_get_string(e->file, "tokenizer.chat_template", &jinja);
    e->name = arena_string(&e->arena, s.s, s.n);
    if (!e->name) return fail(err, DIBIT_E_MEMORY, "no memory for the model's name");
    const char *style = jinja.n ? chat_style(jinja.s, jinja.n) : NULL;
    e->style = style ? style : "";
    return 0;
}

static int open_calibration(DibitEngine *e, const DibitOptions *opt, DibitError *err) {
    if (!opt->kv_calibration) return 0;
    int r = model_open_kv(&e->kv_file, opt->kv_calibration, e->file, opt->no_mmap != 0, &e->memory,
                          err);
    return r ? r : model_bind_kv(&e->model, e->kv_file, err);
}

static int open_rest(DibitEngine *e, const DibitOptions *opt, DibitError *err) {
    unsigned mask = opt->isa_mask ? opt->isa_mask | DIBIT_ISA_SCALAR : ~0u;
    kern_init(&e->kern, mask);
    e->isa = isa_name(isa_detect() & mask);
    if (opt->n_threads < 0)
        return fail(err, DIBIT_E_ARGUMENT, "n_threads: %d is negative", opt->n_threads);
    Repack repack = opt->no_repack || e->backend ? REPACK_NOT : REPACK_COPY;
    if (opt->repack_in_place && !e->backend) repack = REPACK_IN_PLACE;
    int r = pool_create(&e->pool, opt->n_threads, &e->memory, err);
    if (r == 0) r = model_open(&e->model, e->file, &e->kern, e->pool, repack, &e->memory, err);
    if (r == 0) r = open_calibration(e, opt, err);
    if (r == 0) r = read_names(e, err);
    if (r == 0) r = open_tokenizer(e, err);
    if (r == 0 && e->backend) r = remote_load(e, err);
    if (r != 0) return r;
    engine_log(e, DIBIT_LOG_INFO, "%s: %llu weights in %zu bytes, %zu repacked; %s, %d threads",
               e->model.arch->name, (unsigned long long)e->model.n_params, e->model.file_bytes,
               e->model.packed_bytes, e->isa, pool_size(e->pool));
    return 0;
}

/* An error before there is an engine: the backend was taken over nevertheless. */
static int refuse(const DibitOptions *opt, DibitError *err, int code, const char *why) {
    if (opt && opt->backend) opt->backend->free(opt->backend);
    return fail(err, code, "%s", why);
}

/* From the path, or from images where it is NULL. */
static int open_engine(DibitEngine **out, const char *path, const DibitImage *images, size_t n,
                       const DibitOptions *options, DibitError *err) {
    DibitOptions opt = options ? *options : (DibitOptions){ 0 };
    *out = NULL;
    if (opt.repack_in_place && (path || opt.no_repack))
        return refuse(&opt, err, DIBIT_E_ARGUMENT,
                      "repack_in_place is for images in memory, to be repacked");
    DibitEngine *e = mem_calloc(&opt.memory, 1, sizeof *e);
    if (!e) return refuse(&opt, err, DIBIT_E_MEMORY, "no memory for the engine");
    e->backend = opt.backend;
    e->memory = opt.memory;
    e->logger = opt.logger;
    e->arena.memory = &e->memory;
    int r = path ? gguf_open(&e->file, path, opt.no_mmap != 0, &e->memory, err)
                 : gguf_open_images(&e->file, images, n, &e->memory, err);
    if (r == 0) r = open_rest(e, &opt, err);
    if (r != 0)
        dibit_close(&e);
    else
        *out = e;
    return r;
}

int dibit_open(DibitEngine **out, const char *path, const DibitOptions *opt, DibitError *err) {
    if (!path) {
        *out = NULL;
        return refuse(opt, err, DIBIT_E_ARGUMENT, "no path given");
    }
    return open_engine(out, path, NULL, 0, opt, err);
}

int dibit_open_memory(DibitEngine **out, const void *data, size_t size, const DibitOptions *opt,
                      DibitError *err) {
    return open_engine(out, NULL, &(DibitImage){ data, size }, 1, opt, err);
}

int dibit_open_images(DibitEngine **out, const DibitImage *images, size_t n,
                      const DibitOptions *opt, DibitError *err) {
    return open_engine(out, NULL, images, n, opt, err);
}

void dibit_close(DibitEngine **engine) {
    DibitEngine *e = engine ? *engine : NULL;
    if (!e) return;
    tokenizer_close(&e->tokenizer);
    if (e->backend) e->backend->free(e->backend);
    if (e->left) e->left->free(e->left);
    model_close(&e->model);
    pool_free(&e->pool);
    gguf_close(&e->kv_file);
    gguf_close(&e->file);
    arena_free(&e->arena);
    DibitAllocator memory = e->memory;
    mem_free(&memory, e);
    *engine = NULL;
}

void dibit_model_info(const DibitEngine *e, DibitModelInfo *out) {
    const Model *m = &e->model;
    const Hparams *h = &m->hp;
    *out = (DibitModelInfo){
        .architecture = m->arch->name,
        .name = e->name,
        .chat_template = e->style,
        .n_vocab = h->n_vocab,
        .n_ctx_train = h->n_ctx_train,
        .n_embd = h->n_embd,
        .n_layers = h->n_layers,
        .n_heads = h->n_heads,
        .n_kv_heads = h->n_kv_heads,
        .head_dim = h->head_dim,
        .n_ff = h->n_ff,
        .sliding_window = h->window,
        .has_tokenizer = e->tokenizer != NULL,
        .bos_id = e->tokenizer ? tokenizer_bos(e->tokenizer) : -1,
        .eos_id = e->tokenizer ? tokenizer_eos(e->tokenizer) : -1,
        .n_params = m->n_params,
        .weight_bytes = m->file_bytes + m->packed_bytes,
        .file_bytes = m->file_bytes,
        .repacked_bytes = m->packed_bytes,
        .disk_bytes = gguf_file_bytes(e->file),
        .isa = e->backend ? e->backend->name : e->isa,
        .n_threads = pool_size(e->pool),
    };
}

int dibit_tensor_info(const DibitEngine *e, int index, DibitTensorInfo *out) {
    int n = gguf_n_tensors(e->file);
    if (index < 0 || index >= n) return n;
    const GgufTensor *t = gguf_tensor(e->file, index);
    *out = (DibitTensorInfo){ .name = t->name, .type = type_info(t->type)->name };
    out->n_dims = t->n_dims;
    memcpy(out->shape, t->ne, sizeof out->shape);
    out->n_bytes = t->n_bytes;
    return n;
}

/* ---- text and tokens ---- */

int64_t dibit_tokenize(const DibitEngine *e, const char *text, size_t n_bytes, int flags,
                       int32_t *ids, size_t cap, DibitError *err) {
    if (!e->tokenizer) return fail(err, DIBIT_E_TOKENIZER, "%s", e->why_none.text);
    return tokenizer_encode(e->tokenizer, text, n_bytes, flags, ids, cap, err);
}

int dibit_token_bytes(const DibitEngine *e, int32_t id, int special, const char **bytes) {
    *bytes = "";
    if (id < 0 || id >= e->model.hp.n_vocab) return DIBIT_E_ARGUMENT;
    if (!e->tokenizer || id >= tokenizer_n_vocab(e->tokenizer)) return 0; /* a row without text */
    return tokenizer_bytes(e->tokenizer, id, special != 0, bytes);
}

int dibit_is_end(const DibitEngine *e, int32_t id) {
    return e->tokenizer && tokenizer_is_end(e->tokenizer, id);
}

int64_t dibit_chat_text(const DibitEngine *e, const char *style, const DibitMessage *messages,
                        size_t n, int add_reply, char *buf, size_t cap, DibitError *err) {
    if (!style) style = e->style;
    if (!style[0])
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "the model has no chat template that is known here; name a style, as chatml");
    return chat_text(style, messages, n, add_reply, buf, cap, err);
}
