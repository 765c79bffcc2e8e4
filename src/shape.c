/* shape.c - models of a named shape with random weights. A few rows of every kind of matrix are
 * drawn and encoded, and all matrices are tiled from them: speed depends on sizes and types alone,
 * and a model of billions of weights is made in seconds. Weights are normal with variance 1 /
 * columns, so that activations stay about as large as they are. */
#include "shape.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "codec.h"
#include "gguf.h"
#include "trellis23.h"

/* ---- the rows everything is tiled from ---- */

enum { TILE_ROWS = 32, MAX_TILES = 5 };

typedef struct Tile { /* TILE_ROWS encoded rows; t2, t3: a row block, any bytes being weights */
    const TypeInfo *type;
    size_t cols, n_bytes;
    uint8_t *data;
} Tile;

typedef struct Maker {
    GgufWriter *w;
    Tile tiles[MAX_TILES];
    int n_tiles;
    uint64_t random;
} Maker;

static double uniform(Maker *m) { /* in (0, 1) */
    m->random += 0x9e3779b97f4a7c15u;
    return ((double)(hash64(1, &m->random, 8) >> 12) + 0.5) * 0x1p-52;
}

static float normal(Maker *m) {
    double radius = sqrt(-2 * log(uniform(m)));
    return (float)(radius * cos(6.283185307179586 * uniform(m)));
}

static int make_row_block(Maker *m, Tile *t, DibitError *err) {
    if (!type_bytes(t->type, T_ROWS, t->cols, &t->n_bytes))
        return fail(err, DIBIT_E_ARGUMENT, "type %s cannot have %zu columns", t->type->name,
                    t->cols);
    t->n_bytes -= T_ROWS * 2; /* row scales */
    t->data = mem_alloc(NULL, t->n_bytes);
    if (!t->data) return fail(err, DIBIT_E_MEMORY, "no memory for random weights");
    memset(t->data, 0, T_PAD);
    for (size_t i = T_PAD; i < t->n_bytes; i++) {
        m->random += 0x9e3779b97f4a7c15u;
        t->data[i] = (uint8_t)hash64(1, &m->random, 8);
    }
    return 0;
}

static int make_tile(Maker *m, Tile *t, DibitError *err) {
    if (trellis_bits(t->type->id)) return make_row_block(m, t, err);
    size_t n;
    if (!type_bytes(t->type, TILE_ROWS, t->cols, &t->n_bytes) || !size_mul(t->cols, 16 * 4, &n))
        return fail(err, DIBIT_E_ARGUMENT, "type %s cannot have %zu columns", t->type->name,
                    t->cols);
    float *src = mem_alloc(NULL, n), sigma = 1.0f / sqrtf((float)t->cols);
    t->data = mem_alloc(NULL, t->n_bytes);
    if (!src || !t->data) {
        mem_free(NULL, src);
        return fail(err, DIBIT_E_MEMORY, "no memory for random weights");
    }
    for (size_t r0 = 0; r0 < TILE_ROWS; r0 += 16) {
        for (size_t i = 0; i < 16 * t->cols; i++) src[i] = sigma * normal(m);
        t->type->encode(t->data, TILE_ROWS, t->cols, r0, 16, src, NULL);
    }
    mem_free(NULL, src);
    return 0;
}

static int find_tile(Maker *m, const Tile **out, const TypeInfo *type, size_t cols,
                     DibitError *err) {
    for (int i = 0; i < m->n_tiles; i++) {
        *out = &m->tiles[i];
        if (m->tiles[i].type == type && m->tiles[i].cols == cols) return 0;
    }
    assert(m->n_tiles < MAX_TILES);
    Tile *t = &m->tiles[m->n_tiles++];
    *t = (Tile){ .type = type, .cols = cols };
    *out = t;
    return make_tile(m, t, err);
}

/* Writes `total` bytes, `data` over and over. */
static int write_tiled(GgufWriter *w, const uint8_t *data, size_t n, size_t total,
                       DibitError *err) {
    int r = 0;
    for (; r == 0 && total; total -= MIN(n, total)) r = gguf_write(w, data, MIN(n, total), err);
    return r;
}

/* Row blocks, the last of which may have 64 rows, then the row scales. */
static int write_row_blocks(Maker *m, const Tile *t, size_t rows, DibitError *err) {
    size_t all = (rows + T_UNIT - 1) / T_UNIT * T_UNIT, half = (t->n_bytes - T_PAD) / 2 + T_PAD;
    uint16_t scale = f32_to_f16(trellis_scale(t->type->id, 1 / sqrt((double)t->cols)));
    int r = write_tiled(m->w, t->data, t->n_bytes, all / T_ROWS * t->n_bytes, err);
    if (r == 0 && all % T_ROWS) r = write_tiled(m->w, t->data, half, half, err);
    if (r == 0) r = write_tiled(m->w, (const uint8_t *)&scale, 2, rows * 2, err);
    static const uint8_t zeros[T_UNIT * 2]; /* scales of the rows that are padding */
    return r ? r : gguf_write(m->w, zeros, (all - rows) * 2, err);
}

static int write_matrix(Maker *m, const TypeInfo *type, size_t rows, size_t cols, DibitError *err) {
    const Tile *t;
    size_t total;
    int r = find_tile(m, &t, type, cols, err);
    if (r != 0) return r;
    if (!type_bytes(type, rows, cols, &total))
        return fail(err, DIBIT_E_ARGUMENT, "%zu x %zu weights are too many", cols, rows);
    if (trellis_bits(type->id)) return write_row_blocks(m, t, rows, err);
    if (type->block_bytes != 0) return write_tiled(m->w, t->data, t->n_bytes, total, err);
    size_t scales = (rows + S_ROWS - 1) / S_ROWS * S_ROWS * 2, tile_scales = TILE_ROWS * 2;
    size_t tile_blocks = t->n_bytes - tile_scales, past = scales - rows * 2;
    static const uint8_t zeros[S_ROWS * 2]; /* scales of the rows that are padding */
    r = write_tiled(m->w, t->data, tile_blocks, total - scales, err);
    if (r == 0) r = write_tiled(m->w, t->data + tile_blocks, tile_scales, rows * 2, err);
    return r ? r : gguf_write(m->w, zeros, past, err);
}

/* ---- the tensors, walked twice: declared, then written ---- */

typedef int Visit(Maker *m, const char *name, const TypeInfo *type, size_t rows, size_t cols,
                  DibitError *err); /* rows 0: a vector of ones */

static int declare(Maker *m, const char *name, const TypeInfo *type, size_t rows, size_t cols,
                   DibitError *err) {
    size_t n;
    if (!type_bytes(type, MAX(rows, 1), cols, &n))
        return fail(err, DIBIT_E_ARGUMENT, "%s: %zu columns do not fit type %s", name, cols,
                    type->name);
    gguf_put_tensor(m->w, name, type->id, rows ? 2 : 1, (const uint64_t[]){ cols, rows }, n);
    return 0;
}

static int write_tensor(Maker *m, const char *name, const TypeInfo *type, size_t rows, size_t cols,
                        DibitError *err) {
    (void)name;
    if (rows) return write_matrix(m, type, rows, cols, err);
    const float one = 1;
    return write_tiled(m->w, (const uint8_t *)&one, 4, cols * 4, err);
}

static int walk_layer(Maker *m, const Shape *s, int layer, const TypeInfo *type, Visit *visit,
                      DibitError *err) {
    size_t e = (size_t)s->n_embd, q = (size_t)s->n_heads * (size_t)s->head_dim;
    size_t kv = (size_t)s->n_kv_heads * (size_t)s->head_dim, ff = (size_t)s->n_ff;
    const struct {
        const char *name;
        size_t rows, cols;
    } tensors[] = {
        { "attn_norm", 0, e }, { "attn_q", q, e },      { "attn_k", kv, e },
        { "attn_v", kv, e },   { "attn_output", e, q }, { "ffn_norm", 0, e },
        { "ffn_gate", ff, e }, { "ffn_up", ff, e },     { "ffn_down", e, ff },
    };
    char name[64];
    int r = 0;
    for (size_t i = 0; i < ARRAY_LEN(tensors) && r == 0; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, tensors[i].name);
        r = visit(m, name, tensors[i].rows ? type : type_info(T_F32), tensors[i].rows,
                  tensors[i].cols, err);
    }
    return r;
}

static int walk(Maker *m, const Shape *s, const TypeInfo *type, const TypeInfo *head,
                size_t n_vocab, Visit *visit, DibitError *err) {
    size_t e = (size_t)s->n_embd;
    int r = visit(m, "token_embd.weight", head, n_vocab, e, err);
    for (int l = 0; l < s->n_layers && r == 0; l++) r = walk_layer(m, s, l, type, visit, err);
    if (r == 0) r = visit(m, "output_norm.weight", type_info(T_F32), 0, e, err);
    if (r == 0 && !s->tied) r = visit(m, "output.weight", head, n_vocab, e, err);
    return r;
}

static void put_hparams(GgufWriter *w, const Shape *s, int n_vocab) {
    gguf_put_string(w, "general.architecture", "llama", 5);
    gguf_put_string(w, "general.name", s->name, strlen(s->name));
    gguf_put_u32(w, "llama.block_count", (uint32_t)s->n_layers);
    gguf_put_u32(w, "llama.context_length", (uint32_t)s->n_ctx);
    gguf_put_u32(w, "llama.embedding_length", (uint32_t)s->n_embd);
    gguf_put_u32(w, "llama.feed_forward_length", (uint32_t)s->n_ff);
    gguf_put_u32(w, "llama.attention.head_count", (uint32_t)s->n_heads);
    gguf_put_u32(w, "llama.attention.head_count_kv", (uint32_t)s->n_kv_heads);
    gguf_put_u32(w, "llama.attention.key_length", (uint32_t)s->head_dim);
    gguf_put_u32(w, "llama.attention.value_length", (uint32_t)s->head_dim);
    gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", s->eps);
    gguf_put_u32(w, "llama.rope.dimension_count", (uint32_t)s->head_dim);
    gguf_put_f32(w, "llama.rope.freq_base", s->rope_base);
    gguf_put_u32(w, "llama.vocab_size", (uint32_t)n_vocab);
}

static int find_type(const TypeInfo **out, const char *name, DibitError *err) {
    *out = type_by_name(name);
    if (!*out) return fail(err, DIBIT_E_ARGUMENT, "unknown tensor type \"%.40s\"", name);
    if (!(*out)->encode && !trellis_bits((*out)->id))
        return fail(err, DIBIT_E_UNSUPPORTED, "type %s can be read but not made", (*out)->name);
    return 0;
}

int shape_make(uint8_t **image, size_t *size, const char *shape, const char *type,
               const char *head_type, int n_vocab, DibitError *err) {
    const Shape *s = shape_find(shape);
    const TypeInfo *body, *head;
    Maker m = { 0 };
    *image = NULL;
    *size = 0;
    if (!s) return fail(err, DIBIT_E_ARGUMENT, "unknown shape \"%.40s\"", shape);
    if (!shape_can_make(s))
        return fail(err, DIBIT_E_UNSUPPORTED, "models in the shape of %s are not made", s->name);
    if (n_vocab < 0 || n_vocab > 1 << 24)
        return fail(err, DIBIT_E_ARGUMENT, "a vocabulary of %d: 1 to %d", n_vocab, 1 << 24);
    if (n_vocab == 0) n_vocab = 32000;
    int r = find_type(&body, type, err);
    if (r == 0) r = find_type(&head, head_type, err);
    if (r == 0) r = gguf_writer_create(&m.w, err);
    if (r != 0) return r;
    put_hparams(m.w, s, n_vocab);
    r = walk(&m, s, body, head, (size_t)n_vocab, declare, err);
    if (r == 0) r = gguf_begin_memory(m.w, err);
    if (r == 0) r = walk(&m, s, body, head, (size_t)n_vocab, write_tensor, err);
    if (r == 0) r = gguf_finish_memory(m.w, image, size, err);
    for (int i = 0; i < m.n_tiles; i++) mem_free(NULL, m.tiles[i].data);
    gguf_writer_free(&m.w);
    return r;
}
