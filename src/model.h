/* model.h - all architectures: a table of rows, the binding of weights, one forward pass. */
#ifndef MODEL_H
#define MODEL_H
#include "cache.h"
#include "gguf.h"
#include "ops.h"

enum {
    ARCH_ROPE_HALVES =
        1, /* rotate (x[p], x[p + n/2]); else neighbours, as GGUF's llama rows are ordered */
    ARCH_QKV_BIAS = 2,
    ARCH_QK_NORM = 4
};
typedef struct Arch {
    const char *name; /* general.architecture */
    unsigned flags;
} Arch;
const Arch *arch_find(const char *name, size_t n); /* NULL if unknown */

typedef struct Hparams {
    int n_vocab, n_ctx_train, n_embd, n_layers, n_heads, n_kv_heads, head_dim, n_ff, n_rot;
    int window; /* sliding window in positions, 0: none */
    float eps, rope_base;
    int rope_scaling; /* 0 none, 1 linear; llama3 comes as factors in the file */
    float rope_factor;
} Hparams;

typedef struct Layer {
    const float *attn_norm, *ffn_norm; /* (n_embd) */
    const float *q_norm, *k_norm;      /* (head_dim), or NULL */
    const float *q_bias, *k_bias, *v_bias;
    Weight q, k, v, o;     /* (heads * head_dim, n_embd), o (n_embd, heads * head_dim) */
    Weight gate, up, down; /* (n_ff, n_embd), down (n_embd, n_ff) */
    /* into the calibrated basis of k2 and k3 records, and out of it; all or none of a side */
    HeadMap q_in, k_in, v_in, v_out;
} Layer;

typedef struct Model {
    const Gguf *file;
    bool peeks; /* the tensors' data is not looked at */
    const Arch *arch;
    Hparams hp;
    Weight embed, output; /* (n_vocab, n_embd); output may share embed's data */
    bool tied;
    const float *output_norm;
    const float *rope_factors; /* (n_rot / 2) divisors of the frequencies, or NULL */
    Layer *layers;
    float (*kv_weights)[4]; /* (n_layers, K and V, n_kv_heads) for CacheShape, or NULL */
    uint64_t n_params;
    size_t file_bytes, packed_bytes;
    Arena arena; /* layers, vectors converted to f32 */
    const DibitAllocator *memory;
} Model;

/* Reads hyper-parameters, checks every tensor's presence, type and shape, packs q4 and q8. `file`
 * must outlive the model; to repack in place is to write to it. */
typedef enum Repack { REPACK_COPY, REPACK_NOT, REPACK_IN_PLACE } Repack;
int model_open(Model *m, const Gguf *file, const Kern *kern, Pool *pool, Repack repack,
               const DibitAllocator *memory, DibitError *err);
/* The same from a header alone (gguf_peek): checks what can be checked without the tensors' data
 * and counts what model_open would take. Nothing can be computed with such a model. */
int model_peek(Model *m, const Gguf *file, const Kern *kern, bool no_repack,
               const DibitAllocator *memory, DibitError *err);
/* Takes the calibrated bases of the KV cache from a file (docs/FORMAT.md, "Calibrated bases"), one
 * for both sides of every layer; `file` must outlive the model. model_open does so where the
 * model's own file has them. */
#define KV_CALIBRATION_TYPE "dibit-kv-calibration" /* general.type of a file of bases alone */
int model_bind_kv(Model *m, const Gguf *file, DibitError *err);
/* Opens a calibration file that was made for `model` in any types, or says why it is not one. */
int model_open_kv(Gguf **out, const char *path, const Gguf *model, bool no_mmap,
                  const DibitAllocator *memory, DibitError *err);
/* Of the norms, which quantizing keeps (where its recovery fits them it writes what this was before
 * into the file): says whose calibration a file is. 0 when there is no memory. */
#define MODEL_NORMS_HASH "dibit.norms_hash"
uint64_t model_norms_hash(const Gguf *file);
void model_close(Model *m);
/* Names the first tensor with a NaN or infinity, for the error text; NULL if all are finite. Slow.
 */
const char *model_find_nonfinite(const Model *m);

/* What a pass shows to those who calibrate: rows of activations as they are about to be used. */
typedef enum ModelTap {
    TAP_QKV, /* (n, n_embd): input of attn_q, attn_k and attn_v */
    TAP_Q,   /* (n, n_heads, head_dim), after RoPE, before any rotation for the cache */
    TAP_K,   /* (n, n_kv_heads, head_dim), likewise */
    TAP_V,
    TAP_O,       /* (n, n_heads, head_dim): input of attn_output */
    TAP_GATE_UP, /* (n, n_embd): input of ffn_gate and ffn_up */
    TAP_DOWN,    /* (n, n_ff): input of ffn_down */
    TAP_OUTPUT   /* (n, n_embd): input of the output matrix; layer is n_layers */
} ModelTap;

/* Activations of one session, allocated once. */
typedef struct Scratch {
    Ops ops;
    void (*tap)(void *user, ModelTap what, int layer, const float *x, int n); /* or NULL */
    void *tap_user;
    float *x, *t, *q, *k, *v, *att, *gate, *up; /* (max_tokens, widths) */
    float *logits;                              /* (n_vocab) of the last token */
    float *rope;                                /* (n_ctx, n_rot) cosines and sines */
    int max_tokens;
    size_t n_bytes; /* of the parts above */
    const DibitAllocator *memory;
} Scratch;
/* Bytes scratch_create() will ask for, besides those of Ops. False when that wraps. */
bool scratch_size(const Model *m, int max_tokens, int n_ctx, size_t *n_bytes);
/* The same with those of Ops for a pool of n_threads: what scratch_bytes() says after. */
bool scratch_total(const Model *m, int n_threads, int max_tokens, int n_ctx, size_t *n_bytes);
int scratch_create(Scratch *s, const Model *m, const Kern *kern, Pool *pool, int max_tokens,
                   int n_ctx, const DibitAllocator *memory, DibitError *err);
void scratch_free(Scratch *s);
size_t scratch_bytes(const Scratch *s);

/* One pass over n <= max_tokens tokens at positions c->n_past..; the cache grows by n. logits: (n,
 * n_vocab) of all tokens when all is true, else (n_vocab) of the last one; NULL: none are computed;
 * with `all` the rest still is, for those who tap. DIBIT_E_NUMERIC when a logit is not finite,
 * DIBIT_E_CANCELLED when *s->ops.cancel was set; the cache then holds what it held. */
int model_forward(const Model *m, Scratch *s, Cache *c, const int32_t *ids, int n, float *logits,
                  bool all, DibitError *err);
/* The error for a pass whose logits are not finite: it names the tensor that is damaged, if one is.
 */
int model_not_finite(const Model *m, DibitError *err);
bool all_finite(const float *x, size_t n);
/* In place of a pass, for measuring speed: n <= max_tokens random keys and values in every layer.
 */
int model_fill(const Model *m, Scratch *s, Cache *c, int n, DibitError *err);
/* A piece of it: s->q, s->k and s->v of n tokens at positions pos.. from the normed s->t. */
void model_project_qkv(const Model *m, Scratch *s, const Layer *w, int n, int pos);
#endif
