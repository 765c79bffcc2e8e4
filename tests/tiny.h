/* tiny.h - small models with random weights, made in memory: any tensor type, with a tokenizer of
 * bytes, and damaged on request. The same spec gives the same bytes on every machine. */
#ifndef TINY_H
#define TINY_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#undef fail /* base.h has its own */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "gguf.h"
#include "trellis23.h"

#define die(...) (print_error(__VA_ARGS__), print_error("\n"), _fail(__FILE__, __LINE__))

typedef struct Tiny {
    const char *arch; /* NULL: llama */
    int type;         /* of the matrices, GGUF id */
    int no_tokenizer;
    int n_ctx;           /* 0: 512 */
    const char *skip;    /* tensors: left out, */
    const char *nan;     /* f32 tensor with a NaN, */
    const char *reshape; /* with a row too many, */
    const char *retype;  /* of a type nobody knows, */
    const char *extra;   /* one more, that the architecture does not have */
    const char *key;     /* a key that gets a wrong value: */
    uint32_t value;
    float gain; /* of all matrices; 0: 1 */
    int f32_of; /* 1: what `type` decodes to, as f32 */
} Tiny;

enum { TINY_EMBD = 256, TINY_FF = 512, TINY_LAYERS = 2, TINY_HEADS = 4, TINY_KV = 2 };
enum { TINY_HEAD = 64, TINY_VOCAB = 300 }; /* 300: the last row block is not full */

typedef struct TinyState {
    const Tiny *spec;
    GgufWriter *w;
    uint64_t rng;
    int writing;
} TinyState;

static inline double tiny_random(TinyState *s) { /* -1..1, splitmix64 */
    uint64_t x = s->rng += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (double)(int64_t)(x ^ (x >> 31)) * 0x1p-63;
}

/* Random codes and a random seed of the rotation. */
static inline void tiny_trellis(TinyState *s, int type, uint8_t *dst, size_t rows, size_t cols) {
    float *d = malloc(rows * sizeof *d), gain = s->spec->gain ? s->spec->gain : 1;
    for (size_t r = 0; r < rows; r++)
        d[r] = gain * 0.04f * (float)(1.5 + tiny_random(s)) / (float)(trellis_bits(type) - 1);
    trellis_put_scales(type, dst, rows, cols, d);
    uint32_t seed = load_u32(dst);
    for (size_t r = 0; r < rows; r += T_ROWS) {
        uint8_t *pad = (uint8_t *)trellis_rows(type, dst, rows, cols, r).codes - T_PAD;
        memset(pad, 0, T_PAD);
        memcpy(pad, &seed, sizeof seed);
    }
    free(d);
}

/* Random blocks of a type that is only read, with scales that give weights of about 1/16. */
static inline void tiny_blocks(TinyState *s, const TypeInfo *t, uint8_t *dst, size_t n_bytes) {
    static const struct {
        int id, at, n;
        float scale;
    } scales[] = {
        { T_Q2_K, 80, 2, 0.004f }, { T_Q3_K, 108, 1, 0.001f }, { T_Q4_K, 0, 2, 2e-4f },
        { T_Q5_K, 0, 2, 1e-4f },   { T_Q6_K, 208, 1, 4e-5f },  { T_TQ2_0, 64, 1, .06f }
    };
    for (size_t i = 0; i < n_bytes; i++) dst[i] = (uint8_t)(int)(tiny_random(s) * 128);
    for (size_t k = 0; k < ARRAY_LEN(scales); k++) {
        if (scales[k].id != t->id) continue;
        for (size_t b = 0; b < n_bytes; b += (size_t)t->block_bytes)
            for (int i = 0; i < scales[k].n; i++) {
                uint16_t h = f32_to_f16(scales[k].scale * (float)(1.2 + tiny_random(s)));
                memcpy(dst + b + scales[k].at + 2 * i, &h, 2);
            }
    }
    if (t->id == T_TQ2_0) /* the fourth code does not occur */
        for (size_t i = 0; i < n_bytes; i++)
            if (i % 66 < 64) dst[i] &= (uint8_t) ~((dst[i] & 0x55) << 1);
}

static inline void tiny_encode(TinyState *s, const TypeInfo *t, uint8_t *dst, size_t rows,
                               size_t cols, size_t n_bytes) {
    float *src = malloc(16 * cols * sizeof *src), gain = s->spec->gain ? s->spec->gain : 1;
    memset(dst, 0, n_bytes);
    if (!t->encode) {
        tiny_blocks(s, t, dst, n_bytes);
        if (trellis_bits(t->id)) tiny_trellis(s, t->id, dst, rows, cols);
        free(src);
        return;
    }
    for (size_t r = 0; r < rows; r += 16) {
        size_t n = MIN((size_t)16, rows - r);
        for (size_t i = 0; i < n * cols; i++) src[i] = gain * (float)(tiny_random(s) / 9);
        t->encode(dst, rows, cols, r, n, src, NULL);
    }
    free(src);
}

static inline void tiny_tensor(TinyState *s, const char *name, int type, uint64_t rows,
                               uint64_t cols) {
    const Tiny *spec = s->spec;
    if (spec->skip && strcmp(name, spec->skip) == 0) return;
    if (spec->reshape && strcmp(name, spec->reshape) == 0) rows++;
    const TypeInfo *t = type_info(type), *out = t;
    size_t n_bytes, out_bytes;
    int n_dims = rows == 1 ? 1 : 2;
    assert_true(type_bytes(t, rows, cols, &n_bytes));
    if (spec->f32_of) out = type_info(T_F32);
    assert_true(type_bytes(out, rows, cols, &out_bytes));
    if (!s->writing) {
        int id = spec->retype && strcmp(name, spec->retype) == 0 ? 999 : out->id;
        gguf_put_tensor(s->w, name, id, n_dims, (uint64_t[]){ cols, rows }, out_bytes);
        return;
    }
    uint8_t *bytes = malloc(n_bytes), *all = malloc(out_bytes);
    if (n_dims == 1 && !strstr(name, "bias"))
        for (uint64_t i = 0; i < cols; i++)
            ((float *)(void *)bytes)[i] = (float)(1 + tiny_random(s) / 10);
    else
        tiny_encode(s, t, bytes, rows, cols, n_bytes);
    for (uint64_t r = 0; spec->f32_of && r < rows; r++)
        t->decode((float *)(void *)all + r * cols, bytes, rows, cols, r);
    if (!spec->f32_of) memcpy(all, bytes, n_bytes);
    if (spec->nan && strcmp(name, spec->nan) == 0) ((float *)(void *)all)[cols + 3] = NAN;
    assert_int_equal(gguf_write(s->w, all, out_bytes, NULL), 0);
    free(bytes);
    free(all);
}

static inline void tiny_tensors(TinyState *s) {
    const char *arch = s->spec->arch ? s->spec->arch : "llama";
    uint64_t e = TINY_EMBD, ff = TINY_FF, q = TINY_HEADS * TINY_HEAD, kv = TINY_KV * TINY_HEAD;
    int type = s->spec->type;
    const struct {
        const char *name, *arch;
        int type;
        uint64_t rows, cols;
    } rows[] = {
        { "attn_norm.weight", NULL, T_F32, 1, e },
        { "ffn_norm.weight", NULL, T_F32, 1, e },
        { "attn_q.weight", NULL, type, q, e },
        { "attn_k.weight", NULL, type, kv, e },
        { "attn_v.weight", NULL, type, kv, e },
        { "attn_output.weight", NULL, type, e, q },
        { "ffn_gate.weight", NULL, type, ff, e },
        { "ffn_up.weight", NULL, type, ff, e },
        { "ffn_down.weight", NULL, type, e, ff },
        { "attn_q.bias", "qwen2", T_F32, 1, q },
        { "attn_k.bias", "qwen2", T_F32, 1, kv },
        { "attn_v.bias", "qwen2", T_F32, 1, kv },
        { "attn_q_norm.weight", "qwen3", T_F32, 1, TINY_HEAD },
        { "attn_k_norm.weight", "qwen3", T_F32, 1, TINY_HEAD },
    };
    char name[64];
    s->rng = 11;
    tiny_tensor(s, "token_embd.weight", type, TINY_VOCAB, e);
    tiny_tensor(s, "output_norm.weight", T_F32, 1, e);
    for (int l = 0; l < TINY_LAYERS; l++)
        for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
            if (rows[i].arch && strcmp(rows[i].arch, arch) != 0) continue;
            snprintf(name, sizeof name, "blk.%d.%s", l, rows[i].name);
            tiny_tensor(s, name, rows[i].type, rows[i].rows, rows[i].cols);
        }
    if (s->spec->extra) tiny_tensor(s, s->spec->extra, T_F32, 1, e);
}

/* SPM: unknown, <s>, </s>, the 256 bytes, and words nobody writes. */
static inline void tiny_tokenizer(GgufWriter *w) {
    char text[TINY_VOCAB][16];
    GgufString tokens[TINY_VOCAB];
    float scores[TINY_VOCAB];
    int32_t kinds[TINY_VOCAB];
    for (int i = 0; i < TINY_VOCAB; i++) {
        static const char *const first[] = { "<unk>", "<s>", "</s>" };
        bool byte = i >= 3 && i < 259;
        if (i < 3)
            strcpy(text[i], first[i]);
        else
            snprintf(text[i], sizeof text[i], byte ? "<0x%02X>" : "(%d)", byte ? i - 3 : i);
        tokens[i] = (GgufString){ text[i], strlen(text[i]) };
        scores[i] = (float)-i;
        kinds[i] = i == 0 ? 2 : i < 3 ? 3 : byte ? 6 : 1;
    }
    gguf_put_string(w, "tokenizer.ggml.model", "llama", 5);
    gguf_put_strings(w, "tokenizer.ggml.tokens", tokens, TINY_VOCAB);
    gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, TINY_VOCAB);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, kinds, TINY_VOCAB);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
}

/* The GGUF image, to be freed with mem_free(NULL, ...). */
static inline uint8_t *tiny_image(const Tiny *spec, size_t *size) {
    TinyState s = { .spec = spec };
    const char *arch = spec->arch ? spec->arch : "llama";
    char key[96];
    assert_int_equal(gguf_writer_create(&s.w, NULL), 0);
    gguf_put_string(s.w, "general.architecture", arch, strlen(arch));
    const struct {
        const char *key;
        uint32_t value;
    } ints[] = {
        { "block_count", TINY_LAYERS },
        { "context_length", spec->n_ctx ? (uint32_t)spec->n_ctx : 512 },
        { "embedding_length", TINY_EMBD },
        { "feed_forward_length", TINY_FF },
        { "attention.head_count", TINY_HEADS },
        { "attention.head_count_kv", TINY_KV },
    };
    for (size_t i = 0; i < ARRAY_LEN(ints); i++) {
        snprintf(key, sizeof key, "%s.%s", arch, ints[i].key);
        gguf_put_u32(s.w, key, ints[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_put_f32(s.w, key, 1e-5f);
    if (!spec->no_tokenizer) tiny_tokenizer(s.w);
    if (spec->key) gguf_put_u32(s.w, spec->key, spec->value);
    tiny_tensors(&s);
    s.writing = 1;
    uint8_t *image = NULL;
    assert_int_equal(gguf_begin_memory(s.w, NULL), 0);
    tiny_tensors(&s);
    assert_int_equal(gguf_finish_memory(s.w, &image, size, NULL), 0);
    gguf_writer_free(&s.w);
    return image;
}
#endif
