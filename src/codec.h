/* codec.h - tensor types: their sizes, and the scalar encode and decode that define them.
 * The bits are normative in docs/FORMAT.md; the decoders follow that text. types.def has one row a
 * type. */
#ifndef CODEC_H
#define CODEC_H
#include "base.h"

typedef enum TypeId {
#define X(NAME, ID, name, len, bytes, family) T_##NAME = ID,
#include "types.def"
#undef X
} TypeId;

typedef struct TypeInfo {
    int id; /* GGUF type id */
    const char *name;
    int block_len; /* inputs that share a scale; columns are padded to it where block_bytes is 0 */
    int block_bytes; /* 0: laid out by tensor, `bytes` gives the size */
    bool (*bytes)(int id, uint64_t rows, uint64_t cols, size_t *n_bytes);
    /* Decodes row r of a (rows, cols) tensor to cols floats: the weights that the model multiplies
     * its activations with, for t2 and t3 rotated back. */
    void (*decode)(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r);
    /* Encodes rows r0..r0+n-1 (r0 a multiple of 16; n 16, or less at the end) from src (n, cols)
     * into the tensor. `importance`, cols weights of the squared error, may be NULL. NULL function:
     * read only, or written by an encoder of its own (trellis23.h). */
    void (*encode)(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
                   const float *importance);
} TypeInfo;

const TypeInfo *type_info(int id); /* NULL if unknown */
const TypeInfo *
type_by_name(const char *name); /* NULL if unknown; also the usual GGUF spellings, any case */
/* Walks all rows of types.def: index 0.. until NULL. */
const TypeInfo *type_at(int index);

/* Bytes of a tensor with `rows` rows (all higher dimensions multiplied) of `cols`. False when the
 * size wraps or cols is not a multiple of the block of a row-wise type. */
bool type_bytes(const TypeInfo *t, uint64_t rows, uint64_t cols, size_t *n_bytes);

/* s2 and s3: blocks of 16 rows, then one f16 scale a row. */
#define S_ROWS  16
#define S_GROUP 32
size_t s_group_bytes(int type); /* 144 (s2), 208 (s3): one group of one row block */
const uint8_t *s_row_scales(int type, const uint8_t *tensor, size_t rows,
                            size_t cols); /* f16[rows16] */

bool s_bytes(int type, uint64_t rows, uint64_t cols, size_t *n_bytes);
bool trellis_bytes(int type, uint64_t rows, uint64_t cols, size_t *n_bytes); /* trellis23.c */
/* For encoders outside the families: one group of 32 codes of one row, into a cleared tensor. The
 * scale of s2 and s3 comes with the row: cz is c | z << 4 of FORMAT.md. */
void s_put_group(int type, uint8_t *tensor, size_t cols, size_t r, size_t group, int cz,
                 const uint8_t *code);
void q4_put_group(uint8_t *tensor, size_t cols, size_t r, size_t group, float scale,
                  const uint8_t *code); /* value = scale * (code - 8) */

/* decode and encode of each family file (see types.def for who owns what) */
#define X(NAME, ID, name, len, bytes, family)                                                      \
    void decode_##NAME(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r);
#include "types.def"
#undef X
void encode_F32(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
void encode_F16(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
void encode_BF16(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
void encode_Q4_0(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
void encode_Q8_0(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
void encode_S2(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
void encode_S3(uint8_t *, size_t, size_t, size_t, size_t, const float *, const float *);
#endif
