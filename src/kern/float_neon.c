/* float_neon.c - the float loops in NEON: vectors of 4; the loops are in float_lanes.inc. */
#include "kern.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "codec.h"

#define W      4
#define PARTS  4
#define TOKENS 4
#define COLS   4
#define EXPS   4

typedef float32x4_t V;

static inline float f16_bits(uint16_t h) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}
static inline V v_zero(void) {
    return vdupq_n_f32(0);
}
static inline V v_set1(float f) {
    return vdupq_n_f32(f);
}
static inline V v_load(const float *p) {
    return vld1q_f32(p);
}
static inline void v_store(float *p, V a) {
    vst1q_f32(p, a);
}
static inline V v_add(V a, V b) {
    return vaddq_f32(a, b);
}
static inline V v_sub(V a, V b) {
    return vsubq_f32(a, b);
}
static inline V v_mul(V a, V b) {
    return vmulq_f32(a, b);
}
static inline V v_div(V a, V b) {
    return vdivq_f32(a, b);
}
static inline V v_abs(V a) {
    return vabsq_f32(a);
}
static inline V v_max(V x, V m) {
    return vbslq_f32(vcgtq_f32(x, m), x, m); /* vmaxq would take a NaN */
}
static inline float v_top(V a) {
    return vmaxvq_f32(a);
}
static inline V v_pick(V a, V b, V x, V y) {
    return vbslq_f32(vcltq_f32(a, b), x, y);
}
static inline V v_f16(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
static inline V v_bf16(const uint8_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
static inline V v_i8(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
static inline void v_to_f16(uint8_t *p, V a) {
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(a)));
}
/* k + KERN_ROUND as bits, less those of KERN_ROUND: the integer k. */
static inline int32x4_t integer(V t) {
    return vsubq_s32(vreinterpretq_s32_f32(t), vreinterpretq_s32_f32(vdupq_n_f32(KERN_ROUND)));
}
static inline void v_to_i8(uint8_t *p, V t) {
    int16x4_t k = vmovn_s32(integer(t));
    uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(k, k))), 0);
    memcpy(p, &four, sizeof four);
}
static inline V v_pow2(V t) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(integer(t), vdupq_n_s32(127)), 23));
}
static inline void v_pairs(const float *x, V *a, V *b) {
    float32x4x2_t p = vld2q_f32(x);
    *a = p.val[0];
    *b = p.val[1];
}
static inline void v_unpairs(float *x, V a, V b) {
    float32x4x2_t p = { { a, b } };
    vst2q_f32(x, p);
}

/* Lanes j and j+8, then j and j+4. */
static inline V fold4(const V *s) {
    return vaddq_f32(vaddq_f32(s[0], s[2]), vaddq_f32(s[1], s[3]));
}
static inline float v_tree(const V *s) {
    V a = fold4(s);
    return vpadds_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a)));
}
static inline float32x4_t halves(V a, V b) { /* a0 a1 b0 b1, lanes j and j+2 added */
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                     vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}
static inline void v_tree4(float *y, const V *s0, const V *s1, const V *s2, const V *s3) {
    vst1q_f32(y, vpaddq_f32(halves(fold4(s0), fold4(s1)), halves(fold4(s2), fold4(s3))));
}

static inline void dot4_q8(int32_t *dot, const int8_t *q, const uint8_t *k, size_t k_stride,
                           int d) {
    int32x4_t s[4];
    for (size_t r = 0; r < 4; r++) s[r] = vdupq_n_s32(0);
    for (int i = 0; i < d; i += 8) {
        int8x8_t x = vld1_s8(q + i);
        for (size_t r = 0; r < 4; r++) {
            int8x8_t y = vreinterpret_s8_u8(vld1_u8(k + r * k_stride + (size_t)i));
            s[r] = vpadalq_s16(s[r], vmull_s8(x, y));
        }
    }
    for (size_t r = 0; r < 4; r++) dot[r] = vaddvq_s32(s[r]);
}

#include "float_lanes.inc"

void kern_float_neon(Kern *k) {
    fill_float(k);
}
