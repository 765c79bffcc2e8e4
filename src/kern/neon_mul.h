/* neon_mul.h - the int8 products with 128-bit vectors of 4 rows, for neon.c and neondot.c. They
 * differ in the inner sum alone: sdot where the compiler may use it, else products in 16 bits that
 * are summed as far as they cannot overflow. The float steps are those of kern.h. */
#ifndef NEON_MUL_H
#define NEON_MUL_H
#include "kern.h"

#include <arm_neon.h>

#include "codec.h"

#define INLINE static inline __attribute__((always_inline))

#ifdef __ARM_FEATURE_DOTPROD
enum { TILE = 4 }; /* tokens that share the unpacked weights */
#else
enum { TILE = 2 };
#endif
enum Type { Q4, Q8, S2, S3, KQ };
static const size_t group_bytes[] = { Q4X_BYTES, Q8X_BYTES, 144, 208, sizeof(KqGroup) };

/* Codes (q4: less 8) of rows 4j..4j+3 and inputs 4v..4v+3 of the group at p. */
INLINE int8x16_t codes(enum Type type, const uint8_t *p, int j, int v) {
    p += 16 * j;
    if (type == Q8) return vreinterpretq_s8_u8(vld1q_u8(p + 32 + 64 * v));
    if (type == KQ) return vreinterpretq_s8_u8(vld1q_u8(p + offsetof(KqGroup, code) + 64 * v));
    if (type == Q4) {
        uint8x16_t x = vld1q_u8(p + 32 + 64 * (v / 2));
        x = v & 1 ? vshrq_n_u8(x, 4) : vandq_u8(x, vdupq_n_u8(15));
        return vsubq_s8(vreinterpretq_s8_u8(x), vdupq_n_s8(8));
    }
    uint8x16_t x = vld1q_u8(p + 16 + 64 * (v / 4));
    x = vandq_u8(vshlq_u8(x, vdupq_n_s8((int8_t)(-2 * (v % 4)))), vdupq_n_u8(3));
    if (type == S3) { /* bit v of the third vector goes to bit 2 */
        uint8x16_t top = vshlq_u8(vld1q_u8(p + 144), vdupq_n_s8((int8_t)(2 - v)));
        x = vorrq_u8(x, vandq_u8(top, vdupq_n_u8(4)));
    }
    return vreinterpretq_s8_u8(x);
}

/* s[4 t + j] = sum of codes v0..v1-1 * activations, rows 4j..4j+3, token t at a + t * ld. */
#ifdef __ARM_FEATURE_DOTPROD
INLINE void dots(enum Type type, int32x4_t *s, int n, const uint8_t *p, int v0, int v1,
                 const int8_t *a, size_t ld) {
    for (int i = 0; i < 4 * n; i++) s[i] = vdupq_n_s32(0);
    for (int v = v0; v < v1; v += 4) {
        int8x16_t q[TILE];
        for (int t = 0; t < n; t++) q[t] = vld1q_s8(a + (size_t)t * ld + 4 * v);
#define LANE(i)                                                                                    \
    for (int j = 0; j < 4; j++) {                                                                  \
        int8x16_t w = codes(type, p, j, v + i);                                                    \
        for (int t = 0; t < n; t++) s[4 * t + j] = vdotq_laneq_s32(s[4 * t + j], w, q[t], i);      \
    }
        LANE(0)
        LANE(1)
        LANE(2)
        LANE(3)
#undef LANE
    }
}
#else
INLINE void dots(enum Type type, int32x4_t *s, int n, const uint8_t *p, int v0, int v1,
                 const int8_t *a, size_t ld) {
    /* products that fit 16 bits: 2 * 128 * 127 = 32512 (q8), 4 * 63 * 127 = 32004 (kq), else small
     */
    const int span = type == Q8 ? 2 : 4;
    int32x4_t lo[4 * TILE], hi[4 * TILE];
    for (int i = 0; i < 4 * n; i++) lo[i] = hi[i] = vdupq_n_s32(0);
    for (int v = v0; v < v1; v += span)
        for (int j = 0; j < 4; j++) {
            int16x8_t x[TILE], y[TILE]; /* 2 rows each */
            for (int t = 0; t < n; t++) x[t] = y[t] = vdupq_n_s16(0);
            for (int i = v; i < v + span; i++) {
                int8x16_t w = codes(type, p, j, i);
                for (int t = 0; t < n; t++) {
                    int32x4_t quad = vdupq_n_s32((int)load_u32(a + (size_t)t * ld + 4 * i));
                    int8x16_t q = vreinterpretq_s8_s32(quad);
                    x[t] = vmlal_s8(x[t], vget_low_s8(w), vget_low_s8(q));
                    y[t] = vmlal_high_s8(y[t], w, q);
                }
            }
            for (int t = 0; t < n; t++) {
                lo[4 * t + j] = vpadalq_s16(lo[4 * t + j], x[t]);
                hi[4 * t + j] = vpadalq_s16(hi[4 * t + j], y[t]);
            }
        }
    for (int i = 0; i < 4 * n; i++) s[i] = vpaddq_s32(lo[i], hi[i]);
}
#endif

INLINE float32x4_t half_floats(const void *p) {
    uint16x4_t h;
    __builtin_memcpy(&h, p, sizeof h);
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
}

INLINE float32x4_t times(float32x4_t a, int32x4_t b) {
    return vmulq_f32(a, vcvtq_f32_s32(b));
}

INLINE void group_kq(float32x4_t *acc, int n, const uint8_t *p, const int8_t *a, size_t ld,
                     const int32_t *sum, const float *scale) {
    const KqGroup *g = (const KqGroup *)p;
    int32x4_t s0[4 * TILE], s1[4 * TILE];
    dots(KQ, s0, n, p, 0, 4, a, ld);
    dots(KQ, s1, n, p, 4, 8, a, ld);
    for (int t = 0; t < n; t++, sum += ld / 16, scale += ld / 32)
        for (int j = 0; j < 4; j++) {
            int16x4x2_t sc = vld2_s16(g->sc[4 * j]), mn = vld2_s16(g->mn[4 * j]);
            int32x4_t s = vmulq_s32(s0[4 * t + j], vmovl_s16(sc.val[0]));
            s = vmlaq_s32(s, s1[4 * t + j], vmovl_s16(sc.val[1]));
            int32x4_t m = vmulq_n_s32(vmovl_s16(mn.val[0]), sum[0]);
            m = vmlaq_n_s32(m, vmovl_s16(mn.val[1]), sum[1]);
            float32x4_t f = times(vmulq_n_f32(vld1q_f32(g->d + 4 * j), *scale), s);
            float32x4_t e = times(vmulq_n_f32(vld1q_f32(g->dm + 4 * j), *scale), m);
            acc[4 * t + j] = vaddq_f32(acc[4 * t + j], vsubq_f32(f, e));
        }
}

INLINE void group_s(enum Type type, float32x4_t *acc, int n, const uint8_t *p, const int8_t *a,
                    size_t ld, const int32_t *sum, const float *scale) {
    int32x4_t s[4 * TILE], c[4], z[4];
    dots(type, s, n, p, 0, 8, a, ld);
    uint8x16_t cz = vld1q_u8(p);
    uint8x16_t c8 = vaddq_u8(vandq_u8(cz, vdupq_n_u8(15)), vdupq_n_u8(4));
    int8x16_t z8 =
        vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(cz, 4)), vdupq_n_s8(type == S2 ? 20 : 36));
    int16x8_t z_lo = vmovl_s8(vget_low_s8(z8)), z_hi = vmovl_high_s8(z8);
    int16x8_t c_lo = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(c8)));
    int16x8_t c_hi = vreinterpretq_s16_u16(vmovl_high_u8(c8));
    for (int j = 0; j < 4; j++) {
        c[j] = j & 1 ? vmovl_high_s16(j < 2 ? c_lo : c_hi)
                     : vmovl_s16(vget_low_s16(j < 2 ? c_lo : c_hi));
        z[j] = j & 1 ? vmovl_high_s16(j < 2 ? z_lo : z_hi)
                     : vmovl_s16(vget_low_s16(j < 2 ? z_lo : z_hi));
    }
    for (int t = 0; t < n; t++, sum += ld / 16, scale += ld / 32)
        for (int j = 0; j < 4; j++) {
            int32x4_t G = vmulq_n_s32(z[j], sum[0] + sum[1]);
            G = vmulq_s32(vaddq_s32(G, vshlq_n_s32(s[4 * t + j], 3)), c[j]);
            acc[4 * t + j] = vaddq_f32(acc[4 * t + j], times(vdupq_n_f32(*scale), G));
        }
}

INLINE void group_q(enum Type type, float32x4_t *acc, int n, const uint8_t *p, const int8_t *a,
                    size_t ld, const float *scale) {
    int32x4_t s[4 * TILE];
    dots(type, s, n, p, 0, 8, a, ld);
    for (int t = 0; t < n; t++, scale += ld / 32)
        for (int j = 0; j < 4; j++) {
            float32x4_t f = vmulq_n_f32(half_floats(p + 8 * j), *scale);
            acc[4 * t + j] = vaddq_f32(acc[4 * t + j], times(f, s[4 * t + j]));
        }
}

/* All groups of one row block for n <= TILE tokens starting at t0. */
INLINE void tile(enum Type type, float *y, size_t ldy, const uint8_t *block,
                 const uint16_t *row_scale, int n_groups, const A8 *a, int t0, const int n) {
    const int8_t *q = a->q + (size_t)t0 * a->ld;
    const float *scale = a->scale + (size_t)t0 * (a->ld / 32);
    const int32_t *sum = a->sum + (size_t)t0 * (a->ld / 16);
    float32x4_t acc[4 * TILE];
    y += (size_t)t0 * ldy;
    for (int i = 0; i < 4 * n; i++)
        acc[i] = type == KQ ? vld1q_f32(y + (size_t)(i / 4) * ldy + 4 * (i % 4)) : vdupq_n_f32(0);
    for (int g = 0; g < n_groups; g++, q += 32, scale++, sum += 2, block += group_bytes[type]) {
        if (type == KQ) group_kq(acc, n, block, q, a->ld, sum, scale);
        if (type == S2 || type == S3) group_s(type, acc, n, block, q, a->ld, sum, scale);
        if (type == Q4 || type == Q8) group_q(type, acc, n, block, q, a->ld, scale);
    }
    for (int i = 0; i < 4 * n; i++) {
        if (type == S2 || type == S3)
            acc[i] = vmulq_f32(acc[i], vmulq_n_f32(half_floats(row_scale + 4 * (i % 4)), 0.125f));
        vst1q_f32(y + (size_t)(i / 4) * ldy + 4 * (i % 4), acc[i]);
    }
}

#define MUL(name, type)                                                                            \
    static void mul_##name##_neon(float *y, size_t ldy, const uint8_t *block,                      \
                                  const uint16_t *row_scale, int n_groups, const A8 *a,            \
                                  int n_tokens) {                                                  \
        int t = 0;                                                                                 \
        for (; t + TILE <= n_tokens; t += TILE)                                                    \
            tile(type, y, ldy, block, row_scale, n_groups, a, t, TILE);                            \
        for (; t < n_tokens; t++) tile(type, y, ldy, block, row_scale, n_groups, a, t, 1);         \
    }
MUL(q4, Q4)
MUL(q8, Q8)
MUL(s2, S2)
MUL(s3, S3)
MUL(kq, KQ)

static void fill_mul(Kern *k) {
    k->mul_q4 = mul_q4_neon;
    k->mul_q8 = mul_q8_neon;
    k->mul_s2 = mul_s2_neon;
    k->mul_s3 = mul_s3_neon;
    k->mul_kq = mul_kq_neon;
}
#endif
