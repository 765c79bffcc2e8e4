/* matrix_gpu.c - matrices in the layouts that the mul_*.wgsl kernels read (docs/GPU.md), made at
 * upload from the file's own bytes: the same codes and scales in another order. A matrix that is
 * larger than one binding is cut into parts by rows. */
#include <string.h>

#include "gpu/ops_gpu.h"
#include "trellis23.h"

enum { VEC = 16, STAGE = 4 << 20 };

/* A unit of one row: `inputs` of them, in `vectors` of 16 bytes and `words` of 4. */
typedef struct Layout {
    int type;
    size_t inputs, vectors, words, rows; /* rows: of a block */
    bool row_scales;
} Layout;

static const Layout layouts[] = {
    { T_F32, 4, 1, 0, 16, false },   { T_F16, 8, 1, 0, 16, false },
    { T_BF16, 8, 1, 0, 16, false },  { T_Q4_0, 64, 2, 1, 16, false },
    { T_Q8_0, 64, 4, 1, 16, false }, { T_S2, 128, 2, 1, 16, true },
    { T_S3, 128, 3, 1, 16, true },   { T_T2, 16, 32, 0, 128, true },
    { T_T3, 16, 32, 64, 128, true }, /* t2, t3: a chunk of four tiles of a whole row block */
};

static const Layout *layout_of(int type) {
    for (size_t i = 0; i < ARRAY_LEN(layouts); i++)
        if (layouts[i].type == type) return &layouts[i];
    return NULL;
}

bool gpu_has_type(int type) {
    return layout_of(type) != NULL;
}

bool gpu_can_join(const Weight *const *w, int n_w) {
    for (int i = 0; i < n_w; i++) {
        const Layout *l = layout_of(w[i]->type->id);
        if (!l || w[i]->type != w[0]->type || w[i]->cols != w[0]->cols) return false;
        if (i + 1 < n_w && w[i]->rows % l->rows != 0) return false;
        if (trellis_bits(l->type) && trellis_seed(w[i]->data) != trellis_seed(w[0]->data))
            return false;
    }
    return true;
}

/* ---- one row block ---- */

typedef struct Block {
    const Layout *l;
    const Weight *w;
    size_t first, units; /* its first row; units of a row */
    uint8_t *codes, *words;
    float *scales;
} Block;

/* Vector v of unit u of row r of the block. */
static uint8_t *vector(const Block *b, size_t u, size_t v, size_t r) {
    return b->codes + ((u * b->l->vectors + v) * 16 + r) * VEC;
}

static uint8_t *word(const Block *b, size_t u, size_t r) {
    return b->words + (u * 16 + r) * 4;
}

static void fill_plain(const Block *b, size_t r, const uint8_t *row, size_t n_bytes) {
    for (size_t u = 0; u * VEC < n_bytes; u++)
        memcpy(vector(b, u, 0, r), row + u * VEC, MIN((size_t)VEC, n_bytes - u * VEC));
}

static void fill_q4(const Block *b, size_t r, const uint8_t *row, size_t groups) {
    for (size_t g = 0; g < groups; g++, row += 18) {
        memcpy(word(b, g / 2, r) + 2 * (g % 2), row, 2);
        uint8_t *to = vector(b, g / 2, g % 2, r);
        for (size_t h = 0; h < 2; h++) { /* as pack_q4() of kern/scalar.c */
            uint32_t x = load_u32(row + 2 + 8 * h), y = load_u32(row + 6 + 8 * h);
            uint32_t low = (x & 0x0f0f0f0f) | (y << 4 & 0xf0f0f0f0);
            uint32_t high = (x >> 4 & 0x0f0f0f0f) | (y & 0xf0f0f0f0);
            memcpy(to + 4 * h, &low, 4);
            memcpy(to + 4 * (h + 2), &high, 4);
        }
    }
}

static void fill_q8(const Block *b, size_t r, const uint8_t *row, size_t groups) {
    for (size_t g = 0; g < groups; g++, row += 34) {
        memcpy(word(b, g / 2, r) + 2 * (g % 2), row, 2);
        for (size_t v = 0; v < 2; v++)
            memcpy(vector(b, g / 2, 2 * (g % 2) + v, r), row + 2 + 16 * v, 16);
    }
}

static void fill_s(const Block *b, size_t r) {
    const Weight *w = b->w;
    size_t groups = (w->cols + 31) / 32, n = s_group_bytes(w->type->id);
    const uint8_t *g = w->data + b->first / 16 * groups * n;
    for (size_t k = 0; k < groups; k++, g += n) {
        size_t u = k / 4, in = k % 4;
        word(b, u, r)[in] = g[r];
        for (size_t h = 0; h < 2; h++)
            memcpy(vector(b, u, in / 2, r) + in % 2 * 8 + 4 * h, g + 16 + 64 * h + 4 * r, 4);
        if (b->l->type == T_S3) memcpy(vector(b, u, 2, r) + 4 * in, g + 144 + 4 * r, 4);
    }
    const uint8_t *d = s_row_scales(w->type->id, w->data, w->rows, w->cols);
    b->scales[r] = f16_to_f32(load_u16(d + 2 * (b->first + r)));
}

/* Four tiles side by side: word j of a vector has 4 rows of tile j. Rows of a last block of 64
 * stay zeros. */
static void fill_t(const Block *b) {
    const Weight *w = b->w;
    TrellisRows at = trellis_rows(w->type->id, w->data, w->rows, w->cols, b->first);
    for (size_t tile = 0; tile < w->cols / 4; tile++) {
        const uint8_t *codes = at.codes + tile * at.height;
        for (size_t g = 0; g < at.height / 4; g++)
            memcpy(b->codes + (tile / 4 * 32 + g) * VEC + tile % 4 * 4, codes + 4 * g, 4);
        if (!at.signs) continue;
        const uint8_t *signs = at.signs + tile * (at.height / 2);
        for (size_t g = 0; g < at.height / 4; g++)
            memcpy(b->words + (tile / 4 * 32 + g) * 8 + tile % 4 * 2, signs + 2 * g, 2);
    }
    for (size_t r = 0; r < at.height; r++) b->scales[r] = f16_to_f32(load_u16(at.scale + r));
}

static void fill(const Block *b) {
    const Weight *w = b->w;
    if (trellis_bits(b->l->type)) {
        fill_t(b);
        return;
    }
    for (size_t r = 0; r < MIN((size_t)16, w->rows - b->first); r++) {
        size_t row_bytes = w->cols / (size_t)w->type->block_len * (size_t)w->type->block_bytes;
        const uint8_t *row = w->data + (b->first + r) * row_bytes;
        if (b->l->type == T_Q4_0)
            fill_q4(b, r, row, w->cols / 32);
        else if (b->l->type == T_Q8_0)
            fill_q8(b, r, row, w->cols / 32);
        else if (b->l->row_scales)
            fill_s(b, r);
        else
            fill_plain(b, r, row, row_bytes);
    }
}

/* ---- parts ---- */

typedef struct Upload {
    GpuOps *o;
    const Layout *l;
    const Weight *const *w;
    GpuMatrix *m;
    size_t code_bytes, word_bytes; /* of a row block */
    uint8_t *stage;                /* of `blocks` row blocks: codes, words, row scales */
    size_t blocks;
} Upload;

static size_t to_256(size_t n) {
    return (n + 255) & ~(size_t)255;
}

/* The matrix that holds row r of the joined ones; r becomes its own row. */
static const Weight *weight_at(const Upload *u, size_t *r) {
    const Weight *const *w = u->w;
    while (*r >= (*w)->rows && *r - (*w)->rows < u->m->rows) *r -= (*w++)->rows;
    return *w;
}

static void upload_part(const Upload *u, GpuPart *p) {
    size_t n = (p->rows + u->l->rows - 1) / u->l->rows, scale_bytes = u->l->rows * sizeof(float);
    size_t words_at = to_256(n * u->code_bytes), scales_at = to_256(words_at + n * u->word_bytes);
    size_t total = scales_at + (u->l->row_scales ? to_256(n * scale_bytes) : 0);
    p->buffer = gpu_ops_buffer(u->o, MAX(total, (size_t)256));
    if (u->o->r != 0) return;
    p->codes = (GpuRange){ p->buffer, 0, n * u->code_bytes };
    if (u->word_bytes) p->words = (GpuRange){ p->buffer, words_at, n * u->word_bytes };
    if (u->l->row_scales) p->row_scales = (GpuRange){ p->buffer, scales_at, n * scale_bytes };
    for (size_t b = 0; b < n; b += u->blocks) {
        size_t k = MIN(u->blocks, n - b);
        uint8_t *words = u->stage + k * u->code_bytes, *scales = words + k * u->word_bytes;
        memset(u->stage, 0, k * (u->code_bytes + u->word_bytes + scale_bytes));
        for (size_t i = 0; i < k; i++) {
            size_t first = p->first + (b + i) * u->l->rows;
            const Weight *w = weight_at(u, &first);
            const Block block = { u->l,
                                  w,
                                  first,
                                  u->m->units,
                                  u->stage + i * u->code_bytes,
                                  words + i * u->word_bytes,
                                  (float *)(void *)(scales + i * scale_bytes) };
            fill(&block);
        }
        gpu_write(u->o->gpu, p->buffer, b * u->code_bytes, u->stage, k * u->code_bytes);
        gpu_write(u->o->gpu, p->buffer, words_at + b * u->word_bytes, words, k * u->word_bytes);
        if (u->l->row_scales)
            gpu_write(u->o->gpu, p->buffer, scales_at + b * scale_bytes, scales, k * scale_bytes);
    }
    u->m->n_bytes += total;
}

static void cut(Upload *u) {
    GpuOps *o = u->o;
    GpuMatrix *m = u->m;
    size_t most = (size_t)MIN(o->caps->max_binding, o->caps->max_buffer / 2);
    size_t per = most / MAX(u->code_bytes, (size_t)1) * u->l->rows / 128 * 128;
    if (per == 0) {
        o->r = fail(&o->error, DIBIT_E_UNSUPPORTED, "rows of %zu inputs are too long for the GPU",
                    m->cols);
        return;
    }
    m->n_parts = (int)((m->rows + per - 1) / per);
    m->parts = mem_calloc(&o->memory, (size_t)m->n_parts, sizeof *m->parts);
    if (!m->parts) {
        m->n_parts = 0;
        o->r = fail(&o->error, DIBIT_E_MEMORY, "no memory for a matrix");
        return;
    }
    for (int i = 0; i < m->n_parts; i++) {
        m->parts[i].first = (size_t)i * per;
        m->parts[i].rows = MIN(per, m->rows - (size_t)i * per);
    }
}

void gpu_matrix(GpuOps *o, GpuMatrix *out, const Weight *const *w, int n_w) {
    const Layout *l = layout_of(w[0]->type->id);
    *out = (GpuMatrix){ .type = w[0]->type, .cols = w[0]->cols };
    if (o->r != 0) return;
    if (!l) {
        o->r = fail(&o->error, DIBIT_E_UNSUPPORTED, "type %s does not run on the GPU",
                    w[0]->type->name);
        return;
    }
    for (int i = 0; i < n_w; i++) out->rows += w[i]->rows;
    out->units = (out->cols + l->inputs - 1) / l->inputs;
    if (trellis_bits(l->type)) out->seed = trellis_seed(w[0]->data);
    size_t rows = l->rows == 128 ? 1 : 16; /* of vectors and words: a block of 128 counts as one */
    Upload u = { .o = o, .l = l, .w = w, .m = out };
    u.code_bytes = out->units * l->vectors * VEC * rows;
    u.word_bytes = out->units * l->words * 4 * rows;
    size_t each = u.code_bytes + u.word_bytes + l->rows * sizeof(float);
    u.blocks = MAX((size_t)STAGE / each, (size_t)1);
    u.stage = mem_alloc(&o->memory, u.blocks * each);
    if (!u.stage)
        o->r = fail(&o->error, DIBIT_E_MEMORY, "no memory to upload a matrix");
    else
        cut(&u);
    for (int i = 0; i < out->n_parts && o->r == 0; i++) upload_part(&u, &out->parts[i]);
    mem_free(&o->memory, u.stage);
}

void gpu_matrix_free(GpuOps *o, GpuMatrix *m) {
    for (int i = 0; i < m->n_parts; i++) gpu_free(o->gpu, m->parts[i].buffer);
    mem_free(&o->memory, m->parts);
    *m = (GpuMatrix){ 0 };
}
