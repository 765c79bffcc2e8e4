/* kquant.c - GGUF's K types and TQ2_0, read only: a row is blocks of 256 weights. Each decoder
 * follows the layout of docs/FORMAT.md: 16 or 32 weights share a small integer scale (and minimum),
 * the block has one or two f16 factors for them. */
#include "codec.h"

enum { QK = 256 };

static float f16_at(const uint8_t *p) {
    return f16_to_f32(load_u16(p));
}

/* Q2_K: 16 bytes scale | min << 4; 64 bytes of 2-bit codes; f16 d, dmin. */
static void q2_k_block(float *dst, const uint8_t *b) {
    const uint8_t *scales = b, *codes = b + 16;
    float d = f16_at(b + 80), dmin = f16_at(b + 82);
    for (int i = 0; i < QK; i++) {
        int half = i / 128, shift = 2 * (i / 32 % 4), sc = scales[i / 16];
        int q = codes[32 * half + i % 32] >> shift & 3;
        dst[i] = d * (float)(sc & 15) * (float)q - dmin * (float)(sc >> 4);
    }
}

/* Q3_K: 32 bytes of third bits (set: no -4); 64 bytes of 2-bit codes; 16 6-bit scales in 12 bytes;
 * f16 d. */
static void q3_k_block(float *dst, const uint8_t *b) {
    const uint8_t *high = b, *codes = b + 32, *packed = b + 96;
    float d = f16_at(b + 108);
    for (int i = 0; i < QK; i++) {
        int j = i / 16, half = i / 128, shift = 2 * (i / 32 % 4);
        int low4 = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
        int scale = (low4 | (packed[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
        int q = (codes[32 * half + i % 32] >> shift & 3) - (high[i % 32] >> (i / 32) & 1 ? 0 : 4);
        dst[i] = d * (float)scale * (float)q;
    }
}

/* The 6-bit scale and minimum of 32-weight group j (0..7) of Q4_K and Q5_K, from 12 bytes. */
static void scale_min(const uint8_t *p, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = p[j] & 63;
        *min = p[j + 4] & 63;
    } else {
        *scale = (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
        *min = p[j + 4] >> 4 | p[j] >> 6 << 4;
    }
}

/* Q4_K: f16 d, dmin; scales and minima; 128 bytes: group pair k has its 32 bytes, low nibbles
 * first. */
static void q4_k_block(float *dst, const uint8_t *b) {
    float d = f16_at(b), dmin = f16_at(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(b + 4, j, &scale, &min);
        const uint8_t *codes = b + 16 + 32 * (j / 2);
        for (int i = 0; i < 32; i++)
            dst[32 * j + i] =
                d * (float)scale * (float)(codes[i] >> (4 * (j & 1)) & 15) - dmin * (float)min;
    }
}

/* Q5_K: as Q4_K, with 32 bytes between: bit j of byte i is the fifth bit of weight i of group j. */
static void q5_k_block(float *dst, const uint8_t *b) {
    float d = f16_at(b), dmin = f16_at(b + 2);
    const uint8_t *high = b + 16;
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(b + 4, j, &scale, &min);
        const uint8_t *codes = b + 48 + 32 * (j / 2);
        for (int i = 0; i < 32; i++) {
            int q = (codes[i] >> (4 * (j & 1)) & 15) | (high[i] >> j & 1) << 4;
            dst[32 * j + i] = d * (float)scale * (float)q - dmin * (float)min;
        }
    }
}

/* Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed byte scales, f16 d. */
static void q6_k_block(float *dst, const uint8_t *b) {
    const uint8_t *low = b, *high = b + 128;
    const int8_t *scales = (const int8_t *)b + 192;
    float d = f16_at(b + 208);
    for (int i = 0; i < QK; i++) {
        int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        int nibble = low[64 * half + 32 * (quarter & 1) + l] >> (quarter & 2 ? 4 : 0) & 15;
        int q = (nibble | (high[32 * half + l] >> (2 * quarter) & 3) << 4) - 32;
        dst[i] = d * (float)scales[i / 16] * (float)q;
    }
}

/* TQ2_0: 64 bytes of 2-bit codes, f16 d; value d * (code - 1). */
static void tq2_0_block(float *dst, const uint8_t *b) {
    float d = f16_at(b + 64);
    for (int i = 0; i < QK; i++) {
        int half = i / 128, shift = 2 * (i / 32 % 4);
        dst[i] = d * (float)((b[32 * half + i % 32] >> shift & 3) - 1);
    }
}

static void decode_row(float *dst, const uint8_t *tensor, size_t cols, size_t r, size_t bytes,
                       void (*block)(float *, const uint8_t *)) {
    const uint8_t *b = tensor + r * (cols / QK) * bytes;
    for (size_t i = 0; i + QK <= cols; i += QK, b += bytes) block(dst + i, b);
}

#define DECODE(NAME, bytes, block)                                                                 \
    void decode_##NAME(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {    \
        (void)rows;                                                                                \
        decode_row(dst, tensor, cols, r, bytes, block);                                            \
    }
DECODE(Q2_K, 84, q2_k_block)
DECODE(Q3_K, 110, q3_k_block)
DECODE(Q4_K, 144, q4_k_block)
DECODE(Q5_K, 176, q5_k_block)
DECODE(Q6_K, 210, q6_k_block)
DECODE(TQ2_0, 66, tq2_0_block)
