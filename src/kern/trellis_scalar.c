/* trellis_scalar.c - products with t2 and t3 weights and the rotation and rounding of their inputs
 * in plain C: the reference that every faster version must equal bit for bit. */
#include "kern.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "codec.h"
#include "kv23.h"
#include "trellis23.h"

/* Twice the value of lane i in units of the row scale (t3), or the value itself (t2). */
static inline int32_t value(uint32_t p, int i, unsigned minus, int bits) {
    int32_t v = (int32_t)(p >> (8 * i) & 255);
    if (bits == 2) return v - 4;
    v = 4 * v - 17;
    return minus >> i & 1 ? -v : v;
}

enum { TOKENS = 64 }; /* that share a decoded quad */

static void mul_row(float *y, size_t ldy, const uint8_t *codes, const uint8_t *signs, int odd,
                    int height, float scale, int n_quads, const A8 *a, int t0, int n_tokens) {
    int32_t sum[TOKENS] = { 0 };
    int bits = signs ? 3 : 2;
    for (int q = 0; q < n_quads; q++, codes += height) {
        uint32_t p = t4(codes[-1], codes[0]);
        unsigned minus = signs ? signs[(size_t)q * (size_t)height / 2] >> (4 * odd) : 0;
        int32_t v[4];
        for (int i = 0; i < 4; i++) v[i] = value(p, i, minus, bits);
        for (int t = 0; t < n_tokens; t++) {
            const int8_t *x = a->q + (size_t)(t0 + t) * a->ld + 4 * (size_t)q;
            for (int i = 0; i < 4; i++) sum[t] += v[i] * x[i];
        }
    }
    for (int t = 0; t < n_tokens; t++)
        y[(size_t)(t0 + t) * ldy] =
            a->scale[(size_t)(t0 + t) * (a->ld / 32)] * scale * (float)sum[t];
}

static void mul(float *y, size_t ldy, const uint8_t *codes, const uint8_t *signs, int height,
                int n_rows, const uint16_t *row_scale, int n_quads, const A8 *a, int n_tokens,
                int bits) {
    for (int t = 0; t < n_tokens; t += TOKENS)
        for (int r = 0; r < n_rows; r++) {
            float scale = f16_to_f32(load_u16(row_scale + r)) * (bits == 3 ? 0.5f : 1.0f);
            mul_row(y + r, ldy, codes + r, bits == 3 ? signs + r / 2 : NULL, r & 1, height, scale,
                    n_quads, a, t, n_tokens - t < TOKENS ? n_tokens - t : TOKENS);
        }
}

static void mul_t2 MUL_T_ARGS {
    mul(y, ldy, codes, signs, height, n_rows, row_scale, n_quads, a, n_tokens, 2);
}

static void mul_t3 MUL_T_ARGS {
    mul(y, ldy, codes, signs, height, n_rows, row_scale, n_quads, a, n_tokens, 3);
}

static void rotate(float *dst, const float *x, int n, uint32_t seed) {
    memcpy(dst, x, (size_t)n * sizeof *dst);
    trellis_rotate(dst, (size_t)n, seed, false);
}

static void quantize_t(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    float amax = 0;
    int finite = 1;
    for (int i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    float inv = finite && amax > 0 ? fminf(127.0f / amax, FLT_MAX) : 0;
    *scale = finite ? amax / 127.0f : NAN;
    *sum = 0;
    for (int i = 0; i < n; i++) {
        int c = finite ? (int)((x[i] * inv + 12582912.0f) - 12582912.0f) : 0;
        q[4 * (i % (n / 4)) + i / (n / 4)] = (int8_t)c;
        *sum += c;
    }
}

void kern_trellis_scalar(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
    k->rotate = rotate;
    k->quantize_t = quantize_t;
}
