/* plain.c - the simple row-wise types: f32, f16, bf16 and GGUF's Q8_0 and Q4_0. A row is its blocks
 * one after another; docs/FORMAT.md has the bits. Encoding Q8_0 and Q4_0 chooses each block's scale
 * for the least (weighted) squared error instead of taking it from the largest weight. */
#include "codec.h"

#include <math.h>
#include <string.h>

enum { QK = 32, Q8_BYTES = 34, Q4_BYTES = 18 };

void decode_F32(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    (void)rows;
    memcpy(dst, tensor + r * cols * 4, cols * 4);
}

void decode_F16(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    (void)rows;
    const uint8_t *p = tensor + r * cols * 2;
    for (size_t i = 0; i < cols; i++) dst[i] = f16_to_f32(load_u16(p + 2 * i));
}

void decode_BF16(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    (void)rows;
    const uint8_t *p = tensor + r * cols * 2;
    for (size_t i = 0; i < cols; i++) dst[i] = bf16_to_f32(load_u16(p + 2 * i));
}

void decode_Q8_0(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    (void)rows;
    const uint8_t *b = tensor + r * (cols / QK) * Q8_BYTES;
    for (size_t g = 0; g < cols / QK; g++, b += Q8_BYTES, dst += QK) {
        float d = f16_to_f32(load_u16(b));
        for (int i = 0; i < QK; i++) dst[i] = d * (float)(int8_t)b[2 + i];
    }
}

void decode_Q4_0(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    (void)rows;
    const uint8_t *b = tensor + r * (cols / QK) * Q4_BYTES;
    for (size_t g = 0; g < cols / QK; g++, b += Q4_BYTES, dst += QK) {
        float d = f16_to_f32(load_u16(b));
        for (int i = 0; i < QK / 2; i++) {
            dst[i] = d * (float)((b[2 + i] & 15) - 8);
            dst[i + QK / 2] = d * (float)((b[2 + i] >> 4) - 8);
        }
    }
}

void encode_F32(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
                const float *importance) {
    (void)rows, (void)importance;
    memcpy(tensor + r0 * cols * 4, src, n * cols * 4);
}

void encode_F16(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
                const float *importance) {
    (void)rows, (void)importance;
    for (size_t i = 0; i < n * cols; i++) {
        uint16_t h = f32_to_f16(src[i]);
        memcpy(tensor + (r0 * cols + i) * 2, &h, 2);
    }
}

void encode_BF16(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
                 const float *importance) {
    (void)rows, (void)importance;
    for (size_t i = 0; i < n * cols; i++) {
        uint16_t h = f32_to_bf16(src[i]);
        memcpy(tensor + (r0 * cols + i) * 2, &h, 2);
    }
}

/* ---- Q8_0 and Q4_0: codes lo..hi, value = d * code ---- */

/* The nearest integer, halves to even, for |t| < 2^22: the adder rounds. NaN gives lo. */
static float nearest_code(float t, float lo, float hi) {
    t = t > lo ? t : lo;
    t = t < hi ? t : hi;
    return (t + 12582912.0f) - 12582912.0f;
}

/* Codes x at scale d (already f16). Returns the weighted squared error; *refit gets the scale that
 * is best for these codes. */
static float try_scale(float *code, const float *x, const float *w, float d, float lo, float hi,
                       float *refit) {
    float inv = 1.0f / d, error = 0, xv = 0, vv = 0;
    for (int i = 0; i < QK; i++) code[i] = nearest_code(x[i] * inv, lo, hi);
    for (int i = 0; i < QK; i++) {
        float e = x[i] - d * code[i];
        error += w[i] * e * e;
        xv += w[i] * x[i] * code[i];
        vv += w[i] * code[i] * code[i];
    }
    *refit = vv > 0 ? xv / vv : d;
    return error;
}

typedef struct BestScale {
    uint16_t d;
    float error;
    float code[QK];
} BestScale;

/* Tries one scale and twice the refitted one. */
static void search_from(BestScale *best, const float *x, const float *w, float d, float lo,
                        float hi) {
    for (int round = 0; round < 3; round++) {
        float code[QK], refit;
        uint16_t h = f32_to_f16(d);
        float df = f16_to_f32(h);
        if (df == 0 || !isfinite(1.0f / df) || !isfinite(df)) return;
        float error = try_scale(code, x, w, df, lo, hi, &refit);
        if (error < best->error) {
            best->error = error;
            best->d = h;
            memcpy(best->code, code, sizeof code);
        } else if (round > 0) {
            return;
        }
        d = refit;
    }
}

/* The largest |x| of the block, with its sign. */
static float extreme(const float *x) {
    float m = 0;
    for (int i = 0; i < QK; i++)
        if (fabsf(x[i]) > fabsf(m)) m = x[i];
    return m;
}

/* Weights of the squared error of group g: the caller's, or ones. */
static const float *group_weights(const float *importance, size_t g, float *ones) {
    if (importance) return importance + g * QK;
    for (int i = 0; i < QK; i++) ones[i] = 1;
    return ones;
}

static void encode_q8_block(uint8_t *b, const float *x, const float *w) {
    float m = fabsf(extreme(x));
    BestScale best = { 0, INFINITY, { 0 } };
    for (int k = 0; k < 8; k++)
        search_from(&best, x, w, m / (127.0f + 0.125f * (float)k), -127, 127);
    memcpy(b, &best.d, 2);
    for (int i = 0; i < QK; i++) b[2 + i] = (uint8_t)(int8_t)best.code[i];
}

void encode_Q8_0(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
                 const float *importance) {
    (void)rows;
    float ones[QK];
    uint8_t *b = tensor + r0 * (cols / QK) * Q8_BYTES;
    for (size_t r = 0; r < n; r++)
        for (size_t g = 0; g < cols / QK; g++, b += Q8_BYTES)
            encode_q8_block(b, src + r * cols + g * QK, group_weights(importance, g, ones));
}

/* The codes reach -8 on one side and 7 on the other, so both signs of the scale are tried, each
 * with the extreme weight at code 5.5 to 9 (past 8 it is clipped). */
static void encode_q4_block(uint8_t *b, const float *x, const float *w) {
    float m = extreme(x);
    BestScale best = { 0, INFINITY, { 0 } };
    for (int k = 0; k < 15; k++) {
        float reach = 5.5f + 0.25f * (float)k;
        search_from(&best, x, w, -m / reach, -8, 7);
        search_from(&best, x, w, m / reach, -8, 7);
    }
    memcpy(b, &best.d, 2);
    for (int i = 0; i < QK / 2; i++)
        b[2 + i] = (uint8_t)(((int)best.code[i] + 8) | ((int)best.code[i + QK / 2] + 8) << 4);
}

void encode_Q4_0(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
                 const float *importance) {
    (void)rows;
    float ones[QK];
    uint8_t *b = tensor + r0 * (cols / QK) * Q4_BYTES;
    for (size_t r = 0; r < n; r++)
        for (size_t g = 0; g < cols / QK; g++, b += Q4_BYTES)
            encode_q4_block(b, src + r * cols + g * QK, group_weights(importance, g, ones));
}

void q4_put_group(uint8_t *tensor, size_t cols, size_t r, size_t group, float scale,
                  const uint8_t *code) {
    uint8_t *b = tensor + (r * (cols / QK) + group) * Q4_BYTES;
    uint16_t d = f32_to_f16(scale);
    memcpy(b, &d, 2);
    for (int i = 0; i < QK / 2; i++) b[2 + i] = (uint8_t)(code[i] | code[i + QK / 2] << 4);
}
