/* trellis_neon.h - products with t2 and t3 weights with NEON, for trellis_neon.c and
 * trellis_neondot.c; they differ in the inner sum alone. Dword j of vector i of a unit of 16 rows
 * belongs to row 4j + i, as in trellis_avx2.c: the states are the halves of the dwords at two
 * addresses. One token decodes and multiplies at once; more share tiles decoded to bytes. */
#ifndef TRELLIS_NEON_H
#define TRELLIS_NEON_H
#include "kern.h"

#include <arm_neon.h>

#include "codec.h"
#include "kv23.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    UNIT = 16,      /* rows decoded together: 4 vectors */
    MAX_UNITS = 8,  /* 128 rows */
    MAX_CHUNK = 64, /* quads that many tokens share: 4 KiB of bytes */
#ifdef __ARM_FEATURE_DOTPROD
    TILE = 4 /* tokens that share a vector of weights */
#else
    TILE = 2
#endif
};

/* Quads whose sums fit 16 bits, 32 * 8 * 127 and 15 * 17 * 127; and two or four times that. */
INLINE int run_of(int bits) {
    return bits == 2 ? 32 : 15;
}

INLINE int chunk_of(int bits) {
    return bits == 2 ? 64 : 60;
}

/* ---- decode ---- */

/* One tile of 16 rows: p (t2), or 2p and with the sign 17 - 2p (t3). */
INLINE void decode(int8x16_t w[4], const uint8_t *codes, const uint8_t *signs, int bits) {
    static const uint8_t first[16] = { 0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6 };
    const uint32x4_t low = vdupq_n_u32(0xffff);
    uint32x4_t even = vreinterpretq_u32_u8(vld1q_u8(codes - 1));
    uint32x4_t odd = vreinterpretq_u32_u8(vld1q_u8(codes));
    uint32x4_t state[4] = { vandq_u32(even, low), vandq_u32(odd, low), vshrq_n_u32(even, 16),
                            vshrq_n_u32(odd, 16) };
    uint8x16_t spread[2];
    if (bits == 3) { /* rows 4j, 4j + 1 have byte 2j, the next two 2j + 1 */
        uint8x8_t s = vld1_u8(signs);
        uint8x16_t at = vld1q_u8(first);
        spread[0] = vqtbl1q_u8(vcombine_u8(s, s), at);
        spread[1] = vqtbl1q_u8(vcombine_u8(s, s), vaddq_u8(at, vdupq_n_u8(1)));
    }
    for (int i = 0; i < 4; i++) {
        uint32x4_t x = vmulq_n_u32(state[i], T4_MUL);
        uint8x16_t p = vcntq_u8(vreinterpretq_u8_u32(vsraq_n_u32(x, x, 13)));
        if (bits == 3) {
            uint8x16_t bit = vreinterpretq_u8_u32(vdupq_n_u32(i & 1 ? 0x80402010u : 0x08040201u));
            p = vaddq_u8(p, p);
            p = vbslq_u8(vtstq_u8(spread[i / 2], bit), vsubq_u8(vdupq_n_u8(17), p), p);
        }
        w[i] = vreinterpretq_s8_u8(p);
    }
}

/* ---- sums ---- */

#ifdef __ARM_FEATURE_DOTPROD
typedef int32x4_t Sums; /* of 4 rows, over one run */

INLINE void clear(Sums *s) {
    *s = vdupq_n_s32(0);
}

INLINE void add(Sums *s, int8x16_t w, int8x16_t a) {
    *s = vdotq_s32(*s, w, a);
}

INLINE int32x4_t total(const Sums *s) {
    return *s;
}
#else
typedef struct Sums { /* in 16 bits: of 2 rows each, a lane each */
    int16x8_t lo, hi;
} Sums;

INLINE void clear(Sums *s) {
    s->lo = s->hi = vdupq_n_s16(0);
}

INLINE void add(Sums *s, int8x16_t w, int8x16_t a) {
    s->lo = vmlal_s8(s->lo, vget_low_s8(w), vget_low_s8(a));
    s->hi = vmlal_high_s8(s->hi, w, a);
}

INLINE int32x4_t total(const Sums *s) {
    return vpaddq_s32(vpaddlq_s16(s->lo), vpaddlq_s16(s->hi));
}
#endif

INLINE int8x16_t quad(const int8_t *a) { /* 4 activations, for every row */
    return vreinterpretq_s8_u32(vdupq_n_u32(load_u32(a)));
}

/* y of 16 rows from their sums: S = sum - 4 sum a (t2), 2 sum - 17 sum a (t3). */
INLINE void finish(float *y, const int32x4_t sum[4], const uint16_t *row_scale, int32_t a_sum,
                   float a_scale, int bits) {
    int32x4_t s[4];
    for (int i = 0; i < 4; i++) {
        s[i] = bits == 2 ? sum[i] : vaddq_s32(sum[i], sum[i]);
        s[i] = vsubq_s32(s[i], vdupq_n_s32((bits == 2 ? 4 : 17) * a_sum));
    }
    int32x4_t a = vzip1q_s32(s[0], s[2]), b = vzip1q_s32(s[1], s[3]);
    int32x4_t c = vzip2q_s32(s[0], s[2]), d = vzip2q_s32(s[1], s[3]);
    s[0] = vzip1q_s32(a, b); /* rows 0..3 */
    s[1] = vzip2q_s32(a, b);
    s[2] = vzip1q_s32(c, d);
    s[3] = vzip2q_s32(c, d);
    for (int i = 0; i < 4; i++) {
        uint16x4_t h;
        __builtin_memcpy(&h, row_scale + 4 * i, sizeof h);
        float32x4_t f = vcvt_f32_f16(vreinterpret_f16_u16(h));
        if (bits == 3) f = vmulq_n_f32(f, 0.5f);
        f = vmulq_n_f32(f, a_scale);
        vst1q_f32(y + 4 * i, vmulq_f32(f, vcvtq_f32_s32(s[i])));
    }
}

INLINE void one_token(float *y, const uint8_t *codes, const uint8_t *signs, int height, int n_rows,
                      const uint16_t *row_scale, int n_quads, const A8 *a, int bits) {
    const int run = run_of(bits);
    int32x4_t sum[MAX_UNITS][4];
    for (int u = 0; u < MAX_UNITS; u++)
        for (int i = 0; i < 4; i++) sum[u][i] = vdupq_n_s32(0);
    for (int q0 = 0; q0 < n_quads; q0 += run)
        for (int r = 0; r < n_rows; r += UNIT) {
            Sums part[4];
            for (int i = 0; i < 4; i++) clear(&part[i]);
            for (int q = q0; q < MIN(n_quads, q0 + run); q++) {
                int8x16_t w[4], x = quad(a->q + 4 * (size_t)q);
                size_t at = (size_t)q * (size_t)height + (size_t)r;
                decode(w, codes + at, bits == 3 ? signs + at / 2 : NULL, bits);
                for (int i = 0; i < 4; i++) add(&part[i], w[i], x);
            }
            int32x4_t *s = sum[r / UNIT];
            for (int i = 0; i < 4; i++) s[i] = vaddq_s32(s[i], total(&part[i]));
        }
    for (int r = 0; r < n_rows; r += UNIT)
        finish(y + r, sum[r / UNIT], row_scale + r, a->sum[0], a->scale[0], bits);
}

/* Adds n decoded tiles of 16 rows times the activations of n_t tokens to their sums in y. */
INLINE void add_tiles(float *y, size_t ldy, const int8_t *w, int n, const int8_t *a, size_t ld,
                      const int n_t, int bits, int first) {
    const int run = run_of(bits);
    for (int q0 = 0; q0 < n; q0 += run, first = 0) {
        Sums part[4 * TILE];
        for (int i = 0; i < 4 * n_t; i++) clear(&part[i]);
        for (int q = q0; q < MIN(n, q0 + run); q++) {
            int8x16_t v[4];
            for (int i = 0; i < 4; i++) v[i] = vld1q_s8(w + 64 * q + 16 * i);
            for (int t = 0; t < n_t; t++) {
                int8x16_t x = quad(a + (size_t)t * ld + 4 * q);
                for (int i = 0; i < 4; i++) add(&part[4 * t + i], v[i], x);
            }
        }
        for (int i = 0; i < 4 * n_t; i++) {
            float *to = y + (size_t)(i / 4) * ldy + 4 * (i % 4);
            int32x4_t s = total(&part[i]);
            if (!first) s = vaddq_s32(s, vreinterpretq_s32_f32(vld1q_f32(to)));
            vst1q_f32(to, vreinterpretq_f32_s32(s));
        }
    }
}

/* Tokens by tiles over chunks of decoded tiles; until the end the sums lie in y as integers. */
INLINE void many_tokens(float *y, size_t ldy, const uint8_t *codes, const uint8_t *signs,
                        int height, const uint16_t *row_scale, int n_quads, const A8 *a,
                        int n_tokens, int bits) {
    int8_t w[MAX_CHUNK * 64];
    for (int q0 = 0; q0 < n_quads; q0 += chunk_of(bits)) {
        int n = MIN(chunk_of(bits), n_quads - q0), t = 0;
        for (int q = 0; q < n; q++) {
            int8x16_t v[4];
            size_t at = (size_t)(q0 + q) * (size_t)height;
            decode(v, codes + at, bits == 3 ? signs + at / 2 : NULL, bits);
            for (int i = 0; i < 4; i++) vst1q_s8(w + 64 * q + 16 * i, v[i]);
        }
        const int8_t *x = a->q + 4 * (size_t)q0;
        for (; t + TILE <= n_tokens; t += TILE)
            add_tiles(y + (size_t)t * ldy, ldy, w, n, x + (size_t)t * a->ld, a->ld, TILE, bits,
                      q0 == 0);
        for (; t < n_tokens; t++)
            add_tiles(y + (size_t)t * ldy, ldy, w, n, x + (size_t)t * a->ld, a->ld, 1, bits,
                      q0 == 0);
    }
    for (int t = 0; t < n_tokens; t++) {
        float *to = y + (size_t)t * ldy;
        int32x4_t s[4];
        for (int i = 0; i < 4; i++) s[i] = vreinterpretq_s32_f32(vld1q_f32(to + 4 * i));
        finish(to, s, row_scale, a->sum[(size_t)t * (a->ld / 16)],
               a->scale[(size_t)t * (a->ld / 32)], bits);
    }
}

#define MUL_T(name, bits)                                                                          \
    static void name MUL_T_ARGS {                                                                  \
        if (n_tokens == 1) {                                                                       \
            one_token(y, codes, signs, height, n_rows, row_scale, n_quads, a, bits);               \
            return;                                                                                \
        }                                                                                          \
        for (int r = 0; r < n_rows; r += UNIT)                                                     \
            many_tokens(y + r, ldy, codes + r, bits == 3 ? signs + r / 2 : NULL, height,           \
                        row_scale + r, n_quads, a, n_tokens, bits);                                \
    }
MUL_T(mul_t2, 2)
MUL_T(mul_t3, 3)
#endif
