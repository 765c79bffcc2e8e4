/* neon.c - int8 products and quantisation for every aarch64. Packing is left to scalar.c, which the
 * compiler turns into the same vectors. */
#include "neon_mul.h"

#include <math.h>
#include <string.h>

static void quantize_neon(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    const uint32x4_t size = vdupq_n_u32(0x7fffffff);
    for (int g = 0; 32 * g < n; g++) {
        float last[32] = { 0 };
        const float *p = x + 32 * (size_t)g;
        if (n - 32 * g < 32) p = memcpy(last, p, (size_t)(n - 32 * g) * sizeof(float));
        uint32x4_t m = vdupq_n_u32(0);
        for (int i = 0; i < 8; i++) /* NaN is above infinity */
            m = vmaxq_u32(m, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(p + 4 * i)), size));
        uint32_t max_bits = vmaxvq_u32(m);
        float amax;
        memcpy(&amax, &max_bits, 4);
        int finite = max_bits < 0x7f800000;
        float inverse = MIN(127.0f / amax, 0x1.fffffep127f);
        for (int h = 0; h < 2; h++, p += 16, q += 16) {
            int32x4_t v[4];
            for (int i = 0; i < 4; i++)
                v[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(p + 4 * i), inverse));
            int16x8_t a = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
            int16x8_t b = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
            int8x16_t c = vcombine_s8(vmovn_s16(a), vmovn_s16(b));
            if (!finite) c = vdupq_n_s8(0);
            vst1q_s8(q, c);
            sum[2 * g + h] = vaddlvq_s8(c);
        }
        scale[g] = finite ? amax / 127.0f : NAN;
    }
}

void kern_neon(Kern *k) {
    fill_mul(k);
    k->quantize = quantize_neon;
}
