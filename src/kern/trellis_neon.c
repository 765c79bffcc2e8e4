/* trellis_neon.c - products with t2 and t3 weights, and the rotation and rounding of their inputs,
 * for every aarch64. */
#include "trellis_neon.h"

#include <math.h>
#include <string.h>

/* x[j..j+3] * scale with the signs of trellis23.h; `at` is seed + j * 0x9e3779b9 and so on. */
INLINE float32x4_t with_signs(float32x4_t x, uint32x4_t at, float scale) {
    at = veorq_u32(at, vshrq_n_u32(at, 16));
    at = vmulq_n_u32(at, 0x7feb352du);
    at = veorq_u32(at, vshrq_n_u32(at, 15));
    at = vmulq_n_u32(at, 0x846ca68bu); /* the top bit is final */
    uint32x4_t minus = vandq_u32(at, vdupq_n_u32(0x80000000u));
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(vmulq_n_f32(x, scale)), minus));
}

INLINE uint32x4_t sign_index(uint32_t seed) {
    static const uint32_t lane[4] = { 0, 1, 2, 3 };
    return vmlaq_n_u32(vdupq_n_u32(seed), vld1q_u32(lane), 0x9e3779b9u);
}

/* Sums and differences of v[k] and v[k + step], for step 1, 2, .. n / 2. */
INLINE void butterflies(float32x4_t *v, const int n) {
    for (int h = 1; h < n; h *= 2)
        for (int k = 0; k < n; k++)
            if (!(k & h)) {
                float32x4_t a = v[k], b = v[k + h];
                v[k] = vaddq_f32(a, b);
                v[k + h] = vsubq_f32(a, b);
            }
}

/* The same between the values of one vector: sum, or first less second in the second's place. The
 * fused product is by 1 or -1, so nothing is rounded twice or not at all. */
INLINE float32x4_t butterflies_within(float32x4_t x) {
    static const float a[4] = { 1, -1, 1, -1 }, b[4] = { 1, 1, -1, -1 };
    x = vfmaq_f32(vrev64q_f32(x), x, vld1q_f32(a));
    return vfmaq_f32(vextq_f32(x, x, 2), x, vld1q_f32(b));
}

/* Of values `step` (a multiple of 4), 2 step, .. n_v / 2 * step apart. */
INLINE void pass(float *x, size_t n, size_t step, const int n_v) {
    for (size_t i = 0; i < n; i += (size_t)n_v * step)
        for (size_t j = i; j < i + step; j += 4) {
            float32x4_t v[8];
            for (int k = 0; k < n_v; k++) v[k] = vld1q_f32(x + j + (size_t)k * step);
            butterflies(v, n_v);
            for (int k = 0; k < n_v; k++) vst1q_f32(x + j + (size_t)k * step, v[k]);
        }
}

/* Of values step, 2 step, .. end / 2 apart, three distances at a time. */
static void passes(float *x, size_t n, size_t step, size_t end) {
    for (; 8 * step <= end; step *= 8) pass(x, n, step, 8);
    if (4 * step == end) pass(x, n, step, 4);
    if (2 * step == end) pass(x, n, step, 2);
}

static void rotate_neon(float *dst, const float *x, int count, uint32_t seed) {
    size_t n = (size_t)count, b = n & (~n + 1), m = n / b;
    float scale = (float)(1 / sqrt((double)b)), scale2 = (float)(1 / sqrt((double)b / 8));
    const uint32x4_t step = vdupq_n_u32(4 * 0x9e3779b9u);
    uint32x4_t at = sign_index(seed);
    for (size_t i = 0; i < n; i += 32) { /* distances 1 to 16 */
        float32x4_t v[8];
        for (int k = 0; k < 8; k++) {
            v[k] = with_signs(vld1q_f32(x + i + 4 * (size_t)k), at, scale);
            v[k] = butterflies_within(v[k]);
            at = vaddq_u32(at, step);
        }
        butterflies(v, 8);
        for (int k = 0; k < 8; k++) vst1q_f32(dst + i + 4 * (size_t)k, v[k]);
    }
    passes(dst, n, 32, b);
    if (m == 1) return;
    at = sign_index(seed + 1);
    for (size_t i = 0; i < n; i += 4, at = vaddq_u32(at, step))
        vst1q_f32(dst + i, with_signs(vld1q_f32(dst + i), at, scale2));
    passes(dst, n, 8 * m, n);
}

static void quantize_t_neon(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    uint32x4_t top = vdupq_n_u32(0); /* NaN is above infinity */
    for (int i = 0; i < n; i += 4)
        top = vmaxq_u32(
            top, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), vdupq_n_u32(0x7fffffff)));
    uint32_t bits = vmaxvq_u32(top);
    float amax;
    memcpy(&amax, &bits, 4);
    int finite = bits < 0x7f800000;
    float inv = finite && amax > 0 ? MIN(127.0f / amax, 0x1.fffffep127f) : 0;
    int32x4_t total = vdupq_n_s32(0);
    *scale = finite ? amax / 127.0f : NAN;
    for (int k = 0; k < n / 4; k += 8) {
        int8x8x4_t c;
        for (int i = 0; i < 4; i++) {
            const float *p = x + (size_t)i * (size_t)(n / 4) + k;
            int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(p), inv));
            int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(p + 4), inv));
            if (!finite) a = b = vdupq_n_s32(0);
            total = vaddq_s32(total, vaddq_s32(a, b));
            c.val[i] = vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
        }
        vst4_s8(q + 4 * (size_t)k, c);
    }
    *sum = vaddvq_s32(total);
}

void kern_trellis_neon(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
    k->rotate = rotate_neon;
    k->quantize_t = quantize_t_neon;
}
