/* trellis23.c - t2 and t3: sizes, the rotation of the inputs, and the decoder, in the order of
 * docs/FORMAT.md. The encoder is in trellis_encode.c. */
#include "trellis23.h"

#include <math.h>
#include <string.h>

#include "codec.h"
#include "kv23.h"

int trellis_bits(int type) {
    return type == T_T2 ? 2 : type == T_T3 ? 3 : 0;
}

/* ---- layout ---- */

/* Bytes of a row block of `height` rows: pad, codes, signs. */
static size_t block_bytes(int type, size_t height, size_t cols) {
    size_t codes = height * (cols / 4);
    return T_PAD + codes + (type == T_T3 ? codes / 2 : 0);
}

static size_t padded_rows(size_t rows) {
    return (rows + T_UNIT - 1) / T_UNIT * T_UNIT;
}

/* Bytes of all row blocks: where the row scales begin. */
static size_t scales_at(int type, size_t rows, size_t cols) {
    size_t all = padded_rows(rows), full = all / T_ROWS;
    return full * block_bytes(type, T_ROWS, cols) +
           (all % T_ROWS ? block_bytes(type, T_UNIT, cols) : 0);
}

bool trellis_bytes(int type, uint64_t rows, uint64_t cols, size_t *n_bytes) {
    size_t all, n;
    if (cols == 0 || cols % 32 != 0 || cols > T_MAX_COLS || rows > SIZE_MAX ||
        !size_align((size_t)rows, T_UNIT, &all))
        return false;
    /* no sum below is larger than 4 bytes a weight and 64 a row */
    if (!size_mul(all, 4 * (size_t)cols + 64, &n)) return false;
    *n_bytes = scales_at(type, (size_t)rows, (size_t)cols) + 2 * all;
    return true;
}

TrellisRows trellis_rows(int type, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    size_t block = r / T_ROWS, in = r % T_ROWS;
    size_t height = MIN((size_t)T_ROWS, padded_rows(rows) - block * T_ROWS);
    const uint8_t *codes = tensor + block * block_bytes(type, T_ROWS, cols) + T_PAD;
    const uint8_t *scales = tensor + scales_at(type, rows, cols);
    return (TrellisRows){ codes + in, type == T_T3 ? codes + height * (cols / 4) + in / 2 : NULL,
                          height, (const uint16_t *)(const void *)scales + r };
}

uint32_t trellis_seed(const uint8_t *tensor) {
    return load_u32(tensor);
}

void trellis_put_scales(int type, uint8_t *tensor, size_t rows, size_t cols, const float *d) {
    uint8_t *scales = tensor + scales_at(type, rows, cols);
    for (size_t r = 0; r < padded_rows(rows); r++) {
        uint16_t h = r < rows ? f32_to_f16(d[r]) : 0;
        memcpy(scales + 2 * r, &h, 2);
    }
}

float trellis_scale(int type, double rms) {
    return (float)(rms / (type == T_T2 ? 1.42 : 2.73));
}

/* ---- rotation ---- */

static uint32_t lowbias32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

/* x[j] *= scale or -scale. */
static void signs(float *x, size_t n, uint32_t seed, float scale) {
    for (size_t j = 0; j < n; j++)
        x[j] *= lowbias32(seed + (uint32_t)j * 0x9e3779b9u) >> 31 ? -scale : scale;
}

/* Sums and differences of values `step` apart, then 2 step, .. end / 2: a Hadamard transform of
 * each set {j, j + step, .., j + end - step}. */
static void butterflies(float *x, size_t n, size_t step, size_t end) {
    for (size_t h = step; h < end; h *= 2)
        for (size_t i = 0; i < n; i += 2 * h)
            for (size_t j = i; j < i + h; j++) {
                float u = x[j], v = x[j + h];
                x[j] = u + v;
                x[j + h] = u - v;
            }
}

void trellis_rotate(float *x, size_t n, uint32_t seed, bool back) {
    size_t b = n & (~n + 1), m = n / b; /* blocks of b, the largest power of two in n */
    float scale = (float)(1 / sqrt((double)b)), scale2 = (float)(1 / sqrt((double)b / 8));
    if (back) {
        if (m > 1) {
            butterflies(x, n, 8 * m, n);
            signs(x, n, seed + 1, scale2);
        }
        butterflies(x, n, 1, b);
        signs(x, n, seed, scale);
        return;
    }
    signs(x, n, seed, scale);
    butterflies(x, n, 1, b);
    if (m == 1) return;
    signs(x, n, seed + 1, scale2);
    butterflies(x, n, 8 * m, n);
}

/* ---- decoding ---- */

void trellis_decode(int type, float *dst, const uint8_t *tensor, size_t rows, size_t cols,
                    size_t r) {
    TrellisRows at = trellis_rows(type, tensor, rows, cols, r);
    size_t quads = cols / 4;
    float d = f16_to_f32(load_u16(at.scale));
    for (size_t q = 0; q < quads; q++) {
        const uint8_t *cur = at.codes + q * at.height;
        uint32_t p = t4(cur[-1], cur[0]);
        unsigned minus = type == T_T3 ? at.signs[q * (at.height / 2)] >> 4 * (r % 2) : 0;
        for (size_t i = 0; i < 4; i++) {
            int v = (int)(p >> 8 * i & 255);
            if (type == T_T2) {
                dst[i * quads + q] = d * (float)(v - 4);
            } else {
                int u = minus >> i & 1 ? 24 - 2 * v : 2 * v + 7;
                dst[i * quads + q] = d * ((float)u - 15.5f);
            }
        }
    }
}

void decode_T2(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    trellis_decode(T_T2, dst, tensor, rows, cols, r);
    trellis_rotate(dst, cols, trellis_seed(tensor), true);
}

void decode_T3(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    trellis_decode(T_T3, dst, tensor, rows, cols, r);
    trellis_rotate(dst, cols, trellis_seed(tensor), true);
}
