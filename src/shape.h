/* shape.h - models known by name: the facts of their published config.json, what their weights
 * take, and for benchmarks models of such a shape with random weights, made in memory. */
#ifndef SHAPE_H
#define SHAPE_H
#include "base.h"

typedef enum ShapeFamily {
    SHAPE_LLAMA,
    SHAPE_QWEN2,
    SHAPE_QWEN3,
    SHAPE_PHI3,
    SHAPE_BERT,
    SHAPE_WHISPER
} ShapeFamily;

typedef struct Shape {
    const char *name, *source; /* source: the Hugging Face repository of the config.json */
    ShapeFamily family;
    int n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
    int n_ctx;    /* positions the model was trained for */
    int window;   /* sliding window of every layer, 0: none */
    int n_encode; /* Whisper: layers of the encoder (n_layers are the decoder's) */
    int n_audio;  /* Whisper: positions of the encoder, which the decoder's cross-attention reads */
    int n_mels;
    float rope_base, eps; /* rope_base 0: positions are a learned table, none beyond n_ctx */
    bool tied;
} Shape;

const Shape *shape_at(int index);          /* 0.. until NULL */
const Shape *shape_find(const char *name); /* its name or source, any case; NULL if unknown */
/* Number of weights, and bytes of all tensors with the matrices in type `type`, embedding and
 * output in `head`, vectors and tables of positions in f32, convolutions in f16. */
int shape_weights(const Shape *s, const char *type, const char *head, uint64_t *n_params,
                  size_t *n_bytes, DibitError *err);

/* The same with a type for each kind of matrix. n_packed may be NULL: bytes of the interleaved
 * copies of q4 and q8 matrices that opening such a model makes, the embedding's where it is the
 * output. */
typedef struct ShapeTypes {
    const struct TypeInfo *attention, *feed_forward, *embedding, *output;
} ShapeTypes;
int shape_bytes(const Shape *s, const ShapeTypes *types, uint64_t *n_params, size_t *n_bytes,
                size_t *n_packed, DibitError *err);

/* A GGUF image without a tokenizer of a shape of SHAPE_LLAMA without a window: block matrices in
 * `type`, embedding and output in head_type (tied where the shape ties them), vocabulary n_vocab
 * (0: 32000). *image is freed with mem_free(NULL, *image). */
int shape_make(uint8_t **image, size_t *size, const char *shape, const char *type,
               const char *head_type, int n_vocab, DibitError *err);
bool shape_can_make(const Shape *s);
#endif
