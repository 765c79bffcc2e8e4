/* shape_table.c - the models known by name, and how many weights each has. The rows are facts of
 * the config.json that the model's publishers wrote; tests/context.c checks the sums of weights
 * against the published counts. */
#include "shape.h"

#include <ctype.h>
#include <string.h>

#include "codec.h"

/* name, source, family, layers, width, heads, KV heads, head dimension, feed-forward, vocabulary,
 * context, window, (Whisper: encoder's layers, its positions, mel bands,) RoPE base, eps, tied */
#define LLAMA(name, source, l, e, h, kv, d, ff, v, ctx, window, base, eps, tied)                   \
    { name, source, SHAPE_LLAMA, l, e, h, kv, d, ff, v, ctx, window, 0, 0, 0, base, eps, tied }
#define QWEN2(name, source, l, e, h, kv, d, ff, v, ctx, tied)                                      \
    { name, source, SHAPE_QWEN2, l, e, h, kv, d, ff, v, ctx, 0, 0, 0, 0, 1e6f, 1e-6f, tied }
#define QWEN3(name, source, l, e, h, kv, ff, tied)                                                 \
    {                                                                                              \
        name, source, SHAPE_QWEN3, l, e, h, kv, 128, ff, 151936, 40960, 0, 0, 0, 0, 1e6f, 1e-6f,   \
            tied                                                                                   \
    }
#define PHI3(name, source, ctx, window)                                                            \
    {                                                                                              \
        name, source, SHAPE_PHI3, 32, 3072, 32, 32, 96, 8192, 32064, ctx, window, 0, 0, 0, 10000,  \
            1e-5f, false                                                                           \
    }
#define WHISPER(name, source, l, e, h, v, encode, mels)                                            \
    {                                                                                              \
        name, source, SHAPE_WHISPER, l, e, h, h, 64, 4 * (e), v, 448, 0, encode, 1500, mels, 0,    \
            1e-5f, true                                                                            \
    }

static const Shape shapes[] = {
    LLAMA("base-34m", "the base of models/ here", 8, 512, 8, 4, 64, 1536, 16384, 4096, 0, 1e5f,
          1e-5f, true),
    LLAMA("llama-2-7b", "meta-llama/Llama-2-7b-hf", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 0,
          1e4f, 1e-5f, false),
    LLAMA("llama-2-13b", "meta-llama/Llama-2-13b-hf", 40, 5120, 40, 40, 128, 13824, 32000, 4096, 0,
          1e4f, 1e-5f, false),
    LLAMA("llama-2-70b", "meta-llama/Llama-2-70b-hf", 80, 8192, 64, 8, 128, 28672, 32000, 4096, 0,
          1e4f, 1e-5f, false),
    LLAMA("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256, 8192, 0,
          5e5f, 1e-5f, false),
    LLAMA("llama-3-70b", "meta-llama/Meta-Llama-3-70B", 80, 8192, 64, 8, 128, 28672, 128256, 8192,
          0, 5e5f, 1e-5f, false),
    LLAMA("llama-3.1-8b", "meta-llama/Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 0,
          5e5f, 1e-5f, false),
    LLAMA("llama-3.2-1b", "meta-llama/Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 0,
          5e5f, 1e-5f, true),
    LLAMA("llama-3.2-3b", "meta-llama/Llama-3.2-3B", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 0,
          5e5f, 1e-5f, true),
    LLAMA("mistral-7b", "mistralai/Mistral-7B-v0.1", 32, 4096, 32, 8, 128, 14336, 32000, 32768,
          4096, 1e4f, 1e-5f, false),
    LLAMA("mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3", 32, 4096, 32, 8, 128, 14336, 32768, 32768,
          0, 1e6f, 1e-5f, false),
    LLAMA("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152, 8192, 0,
          1e5f, 1e-5f, true),
    LLAMA("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 32, 960, 15, 5, 64, 2560, 49152, 8192, 0,
          1e5f, 1e-5f, true),
    LLAMA("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", 24, 2048, 32, 32, 64, 8192, 49152, 8192, 0,
          130000, 1e-5f, true),
    QWEN2("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 24, 896, 14, 2, 64, 4864, 151936, 32768, true),
    QWEN2("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", 28, 1536, 12, 2, 128, 8960, 151936, 131072, true),
    QWEN2("qwen2.5-3b", "Qwen/Qwen2.5-3B", 36, 2048, 16, 2, 128, 11008, 151936, 32768, true),
    QWEN2("qwen2.5-7b", "Qwen/Qwen2.5-7B", 28, 3584, 28, 4, 128, 18944, 152064, 131072, false),
    QWEN3("qwen3-0.6b", "Qwen/Qwen3-0.6B", 28, 1024, 16, 8, 3072, true),
    QWEN3("qwen3-1.7b", "Qwen/Qwen3-1.7B", 28, 2048, 16, 8, 6144, true),
    QWEN3("qwen3-4b", "Qwen/Qwen3-4B", 36, 2560, 32, 8, 9728, true),
    QWEN3("qwen3-8b", "Qwen/Qwen3-8B", 36, 4096, 32, 8, 12288, false),
    PHI3("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", 4096, 2047),
    PHI3("phi-3-mini-128k", "microsoft/Phi-3-mini-128k-instruct", 131072, 262144),
    { "bert-base", "google-bert/bert-base-uncased", SHAPE_BERT, 12, 768, 12, 12, 64, 3072, 30522,
      512, 0, 0, 0, 0, 0, 1e-12f, true },
    WHISPER("whisper-tiny", "openai/whisper-tiny", 4, 384, 6, 51865, 4, 80),
    WHISPER("whisper-base", "openai/whisper-base", 6, 512, 8, 51865, 6, 80),
    WHISPER("whisper-small", "openai/whisper-small", 12, 768, 12, 51865, 12, 80),
    WHISPER("whisper-medium", "openai/whisper-medium", 24, 1024, 16, 51865, 24, 80),
    WHISPER("whisper-large", "openai/whisper-large-v2", 32, 1280, 20, 51865, 32, 80),
    WHISPER("whisper-large-v3", "openai/whisper-large-v3", 32, 1280, 20, 51866, 32, 128),
    WHISPER("whisper-large-v3-turbo", "openai/whisper-large-v3-turbo", 4, 1280, 20, 51866, 32, 128),
};

const Shape *shape_at(int index) {
    return index >= 0 && index < (int)ARRAY_LEN(shapes) ? &shapes[index] : NULL;
}

static bool same(const char *a, const char *b) {
    while (*a && tolower((unsigned char)*a) == tolower((unsigned char)*b)) a++, b++;
    return !*a && !*b;
}

const Shape *shape_find(const char *name) {
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        if (same(name, shapes[i].name) || same(name, shapes[i].source)) return &shapes[i];
    return NULL;
}

bool shape_can_make(const Shape *s) {
    return s->family == SHAPE_LLAMA && s->window == 0;
}

/* ---- weights ---- */

typedef struct Tally {
    const ShapeTypes *types;
    uint64_t n_params;
    size_t n_bytes, n_packed;
    size_t odd_cols; /* columns that do not fit the type, or 0 */
    const TypeInfo *odd;
    bool wrapped;
} Tally;

/* `times` tensors of rows x cols. */
static void add(Tally *t, const TypeInfo *type, int times, int rows, int cols) {
    size_t n;
    uint64_t r = (uint64_t)rows, c = (uint64_t)cols;
    if (!type_bytes(type, r, c, &n)) {
        t->odd_cols = c;
        t->odd = type;
        return;
    }
    t->n_params += (uint64_t)times * r * c;
    if (!size_mul(n, (size_t)times, &n) || !size_add(t->n_bytes, n, &t->n_bytes)) t->wrapped = true;
}

/* The same of matrices that tokens are multiplied with. */
static void add_matrix(Tally *t, const TypeInfo *type, int times, int rows, int cols) {
    size_t n = 0;
    add(t, type, times, rows, cols);
    if (type->id != T_Q4_0 && type->id != T_Q8_0) return;
    if (!type_bytes(type, ((uint64_t)rows + 15) / 16 * 16, (uint64_t)cols, &n) ||
        !size_mul(n, (size_t)times, &n) || !size_add(t->n_packed, n, &t->n_packed))
        t->wrapped = true;
}

static void add_vector(Tally *t, int times, int n) {
    add(t, type_info(T_F32), times, 1, n);
}

/* Decoders of the llama kind. */
static void tally_decoder(Tally *t, const Shape *s) {
    int l = s->n_layers, e = s->n_embd, q = s->n_heads * s->head_dim;
    int kv = s->n_kv_heads * s->head_dim;
    const ShapeTypes *y = t->types;
    if (!s->tied) add(t, y->embedding, 1, s->n_vocab, e);
    add_matrix(t, s->tied ? y->embedding : y->output, 1, s->n_vocab, e);
    add_matrix(t, y->attention, l, q, e);
    add_matrix(t, y->attention, 2 * l, kv, e);
    add_matrix(t, y->attention, l, e, q);
    add_matrix(t, y->feed_forward, 2 * l, s->n_ff, e);
    add_matrix(t, y->feed_forward, l, e, s->n_ff);
    add_vector(t, 2 * l + 1, e);
    if (s->family == SHAPE_QWEN2) add_vector(t, l, q + 2 * kv);
    if (s->family == SHAPE_QWEN3) add_vector(t, 2 * l, s->head_dim);
}

/* n layers of attention (times: once, or twice with cross-attention) and feed-forward with biases
 * and LayerNorm, as BERT and Whisper have them; key_bias: Whisper has none. */
static void tally_layers(Tally *t, const Shape *s, int n, int times, bool key_bias) {
    int e = s->n_embd;
    add(t, t->types->attention, 4 * times * n, e, e);
    add_vector(t, (key_bias ? 4 : 3) * times * n, e);
    add(t, t->types->feed_forward, n, s->n_ff, e);
    add(t, t->types->feed_forward, n, e, s->n_ff);
    add_vector(t, n, s->n_ff + e);
    add_vector(t, 2 * (times + 1) * n, e);
}

static void tally_bert(Tally *t, const Shape *s) {
    int e = s->n_embd;
    add(t, t->types->embedding, 1, s->n_vocab, e);
    add_vector(t, s->n_ctx + 2, e); /* positions, two segments */
    add_vector(t, 2, e);
    tally_layers(t, s, s->n_layers, 1, true);
    add(t, t->types->attention, 1, e, e); /* pooler */
    add_vector(t, 1, e);
}

static void tally_whisper(Tally *t, const Shape *s) {
    int e = s->n_embd;
    add(t, type_info(T_F16), 1, e, 3 * s->n_mels); /* convolutions of width 3 */
    add(t, type_info(T_F16), 1, e, 3 * e);
    add_vector(t, 2, e);
    add_vector(t, s->n_audio + s->n_ctx, e);
    add(t, t->types->embedding, 1, s->n_vocab, e);
    tally_layers(t, s, s->n_encode, 1, false);
    tally_layers(t, s, s->n_layers, 2, false);
    add_vector(t, 4, e); /* LayerNorm after the encoder and after the decoder */
}

int shape_bytes(const Shape *s, const ShapeTypes *types, uint64_t *n_params, size_t *n_bytes,
                size_t *n_packed, DibitError *err) {
    Tally t = { .types = types };
    if (s->family == SHAPE_BERT)
        tally_bert(&t, s);
    else if (s->family == SHAPE_WHISPER)
        tally_whisper(&t, s);
    else
        tally_decoder(&t, s);
    if (t.odd_cols)
        return fail(err, DIBIT_E_ARGUMENT, "%s has matrices of %zu columns, which do not fit %s",
                    s->name, t.odd_cols, t.odd->name);
    if (t.wrapped) return fail(err, DIBIT_E_MEMORY, "%s is too large for this machine", s->name);
    *n_params = t.n_params;
    *n_bytes = t.n_bytes;
    if (n_packed) *n_packed = t.n_packed;
    return 0;
}

int shape_weights(const Shape *s, const char *type, const char *head, uint64_t *n_params,
                  size_t *n_bytes, DibitError *err) {
    const TypeInfo *body = type_by_name(type), *ends = type_by_name(head);
    if (!body || !ends)
        return fail(err, DIBIT_E_ARGUMENT, "unknown tensor type \"%.40s\"", body ? head : type);
    return shape_bytes(s, &(ShapeTypes){ body, body, ends, ends }, n_params, n_bytes, NULL, err);
}
