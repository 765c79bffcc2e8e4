/* trellis23.h - t2 and t3: weights of exactly 2 or 3 bits as paths through a trellis, in a rotated
 * basis, one scale a row. The bits are normative in docs/FORMAT.md; the decoder here follows that
 * text.
 *
 * A tensor holds the rows of W S^T, S the signed block-Hadamard rotation that trellis_rotate()
 * does: y = W x is computed as (W S^T)(S x). "Stored values" are in the rotated basis; decode_T2()
 * and decode_T3() of codec.h rotate back and give the weights of W. Four inputs q, q + cols / 4,
 * q + cols / 2 and q + 3 cols / 4 are one quad; the codes of quad q of all rows of a row block are
 * a tile. */
#ifndef TRELLIS23_H
#define TRELLIS23_H
#include "base.h"

struct Kern;

enum {
    T_ROWS = 128,        /* rows of a row block; the last one may have 64 */
    T_UNIT = 64,         /* rows are padded to a multiple of it */
    T_PAD = 16,          /* bytes before the codes of a row block: the seed, zeros */
    T_MAX_COLS = 1 << 19 /* so that sums of products fit 32 bits */
};

/* 2 or 3; 0 for types that are not of this family. */
int trellis_bits(int type);

/* Where row r and those after it in its row block lie. */
typedef struct TrellisRows {
    const uint8_t *codes;  /* byte of row r in tile 0; the byte before it is part of its state */
    const uint8_t *signs;  /* t3: byte of rows r and r + 1 (r even) in tile 0; t2: NULL */
    size_t height;         /* bytes of a tile of codes; of signs half of it */
    const uint16_t *scale; /* f16 of row r */
} TrellisRows;
TrellisRows trellis_rows(int type, const uint8_t *tensor, size_t rows, size_t cols, size_t r);

/* Rotates x (n values, a multiple of 32) in place: S x, or S^T x with back. */
void trellis_rotate(float *x, size_t n, uint32_t seed, bool back);
uint32_t trellis_seed(const uint8_t *tensor);
/* The stored values of row r: in the rotated basis. */
void trellis_decode(int type, float *dst, const uint8_t *tensor, size_t rows, size_t cols,
                    size_t r);
/* Writes the row scales d (rows), rounded to f16, and zeros for padding rows. */
void trellis_put_scales(int type, uint8_t *tensor, size_t rows, size_t cols, const float *d);
/* The scale to code a row of this root mean square with. */
float trellis_scale(int type, double rms);

/* ---- encoding: quad by quad in order, so that the error of one can be taken into account in the
 * next ---- */
typedef struct TrellisEncoder TrellisEncoder;

/* Clears `tensor` (type_bytes() of it), which stays the caller's, and writes seed and row scales d
 * (rows; finite). effort: 1 fast, 2 exact search. Work is spread over the pool (may be NULL); the
 * bytes do not depend on the number of threads or the instruction set. */
int trellis_encoder_create(TrellisEncoder **out, int type, uint8_t *tensor, size_t rows,
                           size_t cols, uint32_t seed, const float *d, int effort,
                           const struct Kern *kern, Pool *pool, DibitError *err);
/* Encodes quad q = 0, 1, .. cols / 4 - 1: target (rows, 4), lane i being the weight of input
 * q + i * cols / 4 in the rotated basis, finite. decoded (rows, 4) gets the stored values. */
void trellis_encode_quad(TrellisEncoder *e, size_t q, const float (*target)[4],
                         float (*decoded)[4]);
/* All quads of w (rows, cols) in the rotated basis, without feedback. */
void trellis_encode_all(TrellisEncoder *e, const float *w);
void trellis_encoder_free(TrellisEncoder **e);

/* Encodes w (rows, cols), finite, without feedback: each row at its own scale, which is fitted to
 * the codes in the end. w is left rotated. */
int trellis_encode(int type, uint8_t *tensor, float *w, size_t rows, size_t cols, uint32_t seed,
                   int effort, const struct Kern *kern, Pool *pool, DibitError *err);
#endif
