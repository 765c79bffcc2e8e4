/* kv_neon.h - the loops over k2 and k3 records with 128-bit vectors, for kv_neon.c and
 * kv_neondot.c: a vector holds 4 records, byte 4r + i being lane i of record r. The two files
 * differ in the inner sums alone: sdot where the compiler may use it, else products in 16 and 32
 * bits. */
#ifndef KV_NEON_H
#define KV_NEON_H
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kern.h"
#include "kv23.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 4, MAX_POS = 256 }; /* queries that share a decode; positions of one call */

/* ---- decode ---- */

/* What one step holds for 8 records, of half h of a block: p - 4 (k2), or 4p - 17 with its sign
 * (k3), -17..17. prev and cur: their code bytes; signs: the step's 8 sign bytes. */
INLINE void decode(int8x16_t x[2], uint8x8_t prev, uint8x8_t cur, const uint8_t *signs, int h,
                   int bits) {
    uint16x8_t state = vsliq_n_u16(vmovl_u8(prev), vmovl_u8(cur), 8);
    uint8x16_t minus = vdupq_n_u8(0);
    if (bits == 3) minus = vreinterpretq_u8_u32(vdupq_n_u32(load_u32(signs + 4 * h)));
    uint32x4_t y[2] = { vmovl_u16(vget_low_u16(state)), vmovl_high_u16(state) };
    for (int i = 0; i < 2; i++) {
        y[i] = vmulq_n_u32(y[i], T4_MUL);
        y[i] = vsraq_n_u32(y[i], y[i], 13);
        x[i] = vreinterpretq_s8_u8(vcntq_u8(vreinterpretq_u8_u32(y[i])));
        if (bits == 2) {
            x[i] = vsubq_s8(x[i], vdupq_n_s8(4));
            continue;
        }
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
        const uint8x16_t at =
            vcombine_u8(vdup_n_u8((uint8_t)(2 * i)), vdup_n_u8((uint8_t)(2 * i + 1)));
        uint8x16_t m = vtstq_u8(vqtbl1q_u8(minus, at), bit);
        x[i] = vsubq_s8(vshlq_n_s8(x[i], 2), vdupq_n_s8(17));
        x[i] = veorq_s8(x[i], vreinterpretq_s8_u8(m)); /* -x is ~x + 1 */
        x[i] = vsubq_s8(x[i], vreinterpretq_s8_u8(m));
    }
}

/* Units of the 16 records of a block. */
INLINE void units(float32x4_t unit[4], const uint8_t *block, int d, int bits) {
    static const uint32_t steps[16] = { /* floats 2^(k/16) */
                                        0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3,
                                        0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
                                        0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c,
                                        0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d
    };
    uint8x16_t b = vdupq_n_u8(0);
    uint8_t scale[KV_BLOCK];
    uint32_t rms[KV_BLOCK];
    for (int g = 0; g < 8; g++) {
        uint8x16_t row = vld1q_u8(block + kv_scale_step(g, d / 4) * KV_BLOCK);
        b = vorrq_u8(b, vshlq_u8(vshrq_n_u8(row, 7), vdupq_n_s8((int8_t)g)));
    }
    vst1q_u8(scale, b);
    for (int r = 0; r < KV_BLOCK; r++)
        rms[r] =
            scale[r] ? steps[scale[r] & 15] + ((uint32_t)(scale[r] >> 4) << 23) - (8u << 23) : 0;
    for (int i = 0; i < 4; i++)
        unit[i] = vmulq_n_f32(vreinterpretq_f32_u32(vld1q_u32(rms + 4 * i)),
                              bits == 2 ? 1 / KV_SCALE_K2 : 0.25f / KV_SCALE_K3);
}

/* ---- scores ---- */

/* Dots of 8 records with n_q queries: sum[2j], sum[2j + 1]. */
#ifdef __ARM_FEATURE_DOTPROD
INLINE void dots(int32x4_t *sum, const int8_t *q, size_t ldq, int n_q, const uint8_t *block, int h,
                 int d, int bits) {
    const int nb = d / 4;
    const uint8_t *row = block + 8 * h, *signs = block + nb * KV_BLOCK;
    uint8x8_t prev = vdup_n_u8(0);
    for (int j = 0; j < 2 * n_q; j++) sum[j] = vdupq_n_s32(0);
    for (int t = 0; t < nb; t += 4) { /* d is a multiple of 16 */
        int8x16_t a[TILE];
        for (int j = 0; j < n_q; j++) a[j] = vld1q_s8(q + (size_t)j * ldq + 4 * t);
#define LANE(i)                                                                                    \
    {                                                                                              \
        uint8x8_t cur = vld1_u8(row + (t + i) * KV_BLOCK);                                         \
        int8x16_t x[2];                                                                            \
        decode(x, prev, cur, signs + 8 * (t + i), h, bits);                                        \
        prev = cur;                                                                                \
        for (int j = 0; j < 2 * n_q; j++) sum[j] = vdotq_laneq_s32(sum[j], x[j % 2], a[j / 2], i); \
    }
        LANE(0)
        LANE(1)
        LANE(2)
        LANE(3)
#undef LANE
    }
}
#else
/* Four bytes of a query, four times. */
INLINE int8x16_t four(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(x));
}

INLINE void dots(int32x4_t *sum, const int8_t *q, size_t ldq, int n_q, const uint8_t *block, int h,
                 int d, int bits) {
    const int nb = d / 4, run = bits == 2 ? 64 : 12; /* steps whose 16-bit sums cannot overflow */
    const uint8_t *row = block + 8 * h, *signs = block + nb * KV_BLOCK;
    uint8x8_t prev = vdup_n_u8(0);
    for (int j = 0; j < 2 * n_q; j++) sum[j] = vdupq_n_s32(0);
    for (int t0 = 0; t0 < nb; t0 += run) {
        int16x8_t part[4 * TILE]; /* of each query: 2 records each */
        for (int j = 0; j < 4 * n_q; j++) part[j] = vdupq_n_s16(0);
        for (int t = t0; t < MIN(nb, t0 + run); t++) {
            uint8x8_t cur = vld1_u8(row + t * KV_BLOCK);
            int8x16_t x[2];
            decode(x, prev, cur, signs + 8 * t, h, bits);
            prev = cur;
            for (int j = 0; j < n_q; j++) {
                int8x16_t a = four(q + (size_t)j * ldq + 4 * t);
                for (int i = 0; i < 2; i++) {
                    int16x8_t *p = &part[4 * j + 2 * i];
                    p[0] = vmlal_s8(p[0], vget_low_s8(x[i]), vget_low_s8(a));
                    p[1] = vmlal_high_s8(p[1], x[i], a);
                }
            }
        }
        for (int j = 0; j < 2 * n_q; j++)
            sum[j] = vaddq_s32(sum[j],
                               vpaddq_s32(vpaddlq_s16(part[2 * j]), vpaddlq_s16(part[2 * j + 1])));
    }
}
#endif

INLINE void score_block(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                        int n_q, const uint8_t *block, int d, int bits) {
    float32x4_t unit[4];
    units(unit, block, d, bits);
    for (int h = 0; h < 2; h++) {
        int32x4_t sum[2 * TILE];
        dots(sum, q, ldq, n_q, block, h, d, bits);
        for (int j = 0; j < 2 * n_q; j++) {
            float32x4_t f = vmulq_n_f32(unit[2 * h + j % 2], q_scale[j / 2]);
            vst1q_f32(s + (size_t)(j / 2) * lds + 8 * h + 4 * (j % 2),
                      vmulq_f32(f, vcvtq_f32_s32(sum[j])));
        }
    }
}

INLINE void score(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale, int n_q,
                  const uint8_t *blocks, int n_pos, int d, int bits) {
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0; p < n_pos; p += KV_BLOCK, s += KV_BLOCK, blocks += block_bytes) {
        int j = 0;
        for (; n_q - j >= TILE; j += TILE)
            score_block(s + (size_t)j * lds, lds, q + (size_t)j * ldq, ldq, q_scale + j, TILE,
                        blocks, d, bits);
        for (; j < n_q; j++)
            score_block(s + (size_t)j * lds, lds, q + (size_t)j * ldq, ldq, q_scale + j, 1, blocks,
                        d, bits);
    }
}

/* ---- values ---- */

/* Weights of one query, as integers of 14 bits; with sdot in two halves of 7. */
typedef struct Weights {
#ifdef __ARM_FEATURE_DOTPROD
    int8_t hi[MAX_POS], lo[MAX_POS];
#else
    int16_t w[MAX_POS];
#endif
    float step;
} Weights;

INLINE void round_weights(Weights *w, const float *s, const float *unit, int n_pos) {
    float f[MAX_POS], largest;
    int padded = (n_pos + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    uint32x4_t top = vdupq_n_u32(0);
    memcpy(f, s, (size_t)n_pos * sizeof *f);
    memset(f + n_pos, 0, (size_t)(padded - n_pos) * sizeof *f);
    for (int p = 0; p < padded; p += 4) {
        float32x4_t v = vmulq_f32(vld1q_f32(f + p), vld1q_f32(unit + p));
        vst1q_f32(f + p, v);
        /* as integers positive floats keep their order, and infinity and NaN come last */
        top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7fffffff)));
    }
    uint32_t top_bits = vmaxvq_u32(top);
    memcpy(&largest, &top_bits, 4);
    float inv = 16383.0f / largest;
    w->step = !(largest < INFINITY) ? NAN : inv < INFINITY ? largest * (1.0f / 16383.0f) : 0;
    int some = largest < INFINITY && inv < INFINITY;
    for (int p = 0; p < padded; p += 8) {
        int16x4_t n[2] = { vdup_n_s16(0), vdup_n_s16(0) };
        for (int i = 0; some && i < 2; i++)
            n[i] = vmovn_s32(vcvtq_s32_f32(
                vaddq_f32(vmulq_n_f32(vld1q_f32(f + p + 4 * i), inv), vdupq_n_f32(0.5f))));
        int16x8_t both = vcombine_s16(n[0], n[1]);
#ifdef __ARM_FEATURE_DOTPROD
        vst1_s8(w->hi + p, vshrn_n_s16(both, 7));
        vst1_s8(w->lo + p, vand_s8(vmovn_s16(both), vdup_n_s8(127)));
#else
        vst1q_s16(w->w + p, both);
#endif
    }
}

/* Adds what step t of half h of a block gives to the four lanes' sums of n_q queries. */
#ifdef __ARM_FEATURE_DOTPROD
INLINE void add_half(int32x4_t *hi, int32x4_t *lo, const Weights *w, int n_q, int p,
                     const int8x16_t x[2]) {
    const uint8x16_t by_lane = { 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15 };
    int8x16_t a = vqtbl1q_s8(x[0], by_lane), b = vqtbl1q_s8(x[1], by_lane);
    for (int j = 0; j < n_q; j++) { /* dword i of a and b: lane i of 4 positions */
        int8x8_t wh = vld1_s8(w[j].hi + p), wl = vld1_s8(w[j].lo + p);
        hi[j] = vdotq_lane_s32(vdotq_lane_s32(hi[j], a, wh, 0), b, wh, 1);
        lo[j] = vdotq_lane_s32(vdotq_lane_s32(lo[j], a, wl, 0), b, wl, 1);
    }
}
#else
INLINE void add_half(int32x4_t *hi, int32x4_t *lo, const Weights *w, int n_q, int p,
                     const int8x16_t x[2]) {
    (void)hi; /* lo has the whole weight */
    int16x8_t a = vmovl_s8(vget_low_s8(x[0])), b = vmovl_high_s8(x[0]);
    int16x8_t c = vmovl_s8(vget_low_s8(x[1])), d = vmovl_high_s8(x[1]);
    for (int j = 0; j < n_q; j++) {
        int16x8_t y = vld1q_s16(w[j].w + p);
        int32x4_t sum = vmlal_laneq_s16(lo[j], vget_low_s16(a), y, 0);
        sum = vmlal_high_laneq_s16(sum, a, y, 1);
        sum = vmlal_laneq_s16(sum, vget_low_s16(b), y, 2);
        sum = vmlal_high_laneq_s16(sum, b, y, 3);
        sum = vmlal_laneq_s16(sum, vget_low_s16(c), y, 4);
        sum = vmlal_high_laneq_s16(sum, c, y, 5);
        sum = vmlal_laneq_s16(sum, vget_low_s16(d), y, 6);
        lo[j] = vmlal_high_laneq_s16(sum, d, y, 7);
    }
}
#endif

INLINE void accum_tile(float *acc, size_t ldacc, const float *factor, const Weights *w, int n_q,
                       const uint8_t *blocks, int n_pos, int d, int bits) {
    const int nb = d / 4;
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    int32_t dot[TILE][KV_MAX_DIM];
    for (int t = 0; t < nb; t++) {
        int32x4_t hi[TILE], lo[TILE];
        for (int j = 0; j < n_q; j++) hi[j] = lo[j] = vdupq_n_s32(0);
        for (int p = 0; p < n_pos; p += 8) {
            const uint8_t *block = blocks + (size_t)(p / KV_BLOCK) * block_bytes;
            const uint8_t *row = block + t * KV_BLOCK + p % KV_BLOCK;
            uint8x8_t prev = t ? vld1_u8(row - KV_BLOCK) : vdup_n_u8(0);
            int8x16_t x[2];
            decode(x, prev, vld1_u8(row), block + nb * KV_BLOCK + 8 * t, p / 8 % 2, bits);
            add_half(hi, lo, w, n_q, p, x);
        }
        for (int j = 0; j < n_q; j++) {
            int32_t lanes[4];
            vst1q_s32(lanes, vaddq_s32(vshlq_n_s32(hi[j], 7), lo[j]));
            for (int i = 0; i < 4; i++) dot[j][i * nb + t] = lanes[i];
        }
    }
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c++) {
            float *a = &acc[(size_t)j * ldacc + (size_t)c];
            *a = *a * factor[j] + w[j].step * (float)dot[j][c];
        }
}

INLINE void accum(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                  int n_q, const uint8_t *blocks, int n_pos, int d, int bits) {
    float unit[MAX_POS];
    Weights w[TILE];
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0; p < n_pos; p += KV_BLOCK) {
        float32x4_t u[4];
        units(u, blocks + (size_t)(p / KV_BLOCK) * block_bytes, d, bits);
        for (int i = 0; i < 4; i++) vst1q_f32(unit + p + 4 * i, u[i]);
    }
    for (int j = 0; j < n_q;) {
        int n = n_q - j >= TILE ? TILE : 1;
        for (int i = 0; i < n; i++) round_weights(&w[i], s + (size_t)(j + i) * lds, unit, n_pos);
        float *a = acc + (size_t)j * ldacc;
        if (n == TILE)
            accum_tile(a, ldacc, factor + j, w, TILE, blocks, n_pos, d, bits);
        else
            accum_tile(a, ldacc, factor + j, w, 1, blocks, n_pos, d, bits);
        j += n;
    }
}

#include "kv_records.inc"

/* ---- q4 rows: docs/FORMAT.md ---- */

/* Codes less 8 of one group of n values, zeros behind them. */
INLINE void unpack_q4(int8x16_t x[2], const uint8_t *codes, int n) {
    const int8x16_t eight = vdupq_n_s8(8);
    if (n == 32) {
        uint8x16_t c = vld1q_u8(codes);
        x[0] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(15))), eight);
        x[1] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(c, 4)), eight);
        return;
    }
    int8_t tail[32] = { 0 };
    for (int i = 0; i < n / 2; i++) {
        tail[i] = (int8_t)((codes[i] & 15) - 8);
        tail[n / 2 + i] = (int8_t)((codes[i] >> 4) - 8);
    }
    x[0] = vld1q_s8(tail);
    x[1] = vld1q_s8(tail + 16);
}

INLINE int32_t dot_q4(const int8x16_t x[2], const int8_t *q, int n) {
    int8_t tail[32] = { 0 };
    if (n < 32) q = memcpy(tail, q, (size_t)n);
    int8x16_t a = vld1q_s8(q), b = vld1q_s8(q + 16);
#ifdef __ARM_FEATURE_DOTPROD
    return vaddvq_s32(vdotq_s32(vdotq_s32(vdupq_n_s32(0), x[0], a), x[1], b));
#else
    int16x8_t sum = vmull_s8(vget_low_s8(x[0]), vget_low_s8(a)); /* 4 products of 8 * 127 */
    sum = vmlal_high_s8(sum, x[0], a);
    sum = vmlal_s8(sum, vget_low_s8(x[1]), vget_low_s8(b));
    return vaddlvq_s16(vmlal_high_s8(sum, x[1], b));
#endif
}

INLINE float scale_q4(const uint8_t *row, int d, int g) {
    return f16_to_f32(load_u16(row + d / 2 + 2 * g));
}

static void score_q4(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                     int n_q, const uint8_t *k, size_t k_stride, int n_pos, int d) {
    for (int p = 0; p < n_pos; p++, k += k_stride)
        for (int g = 0; 32 * g < d; g++) {
            int n = MIN(32, d - 32 * g);
            int8x16_t x[2];
            float scale = scale_q4(k, d, g);
            unpack_q4(x, k + 16 * g, n);
            for (int j = 0; j < n_q; j++) {
                float *sum = &s[(size_t)j * lds + (size_t)p];
                int32_t dot = dot_q4(x, q + (size_t)j * ldq + 32 * g, n);
                *sum = (g ? *sum : 0) + q_scale[j] * scale * (float)dot;
            }
        }
}

/* One group of n values of up to 2 queries: their sums stay in registers for all positions. */
INLINE void accum_group(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                        int n_q, const uint8_t *v, size_t v_stride, int n_pos, int d, int g,
                        int n) {
    float32x4_t sum[2][8];
    float tail[2][32] = { { 0 } };
    for (int j = 0; j < n_q; j++) {
        if (n < 32) memcpy(tail[j], acc + (size_t)j * ldacc, (size_t)n * sizeof(float));
        const float *from = n < 32 ? tail[j] : acc + (size_t)j * ldacc;
        for (int i = 0; i < 8; i++) sum[j][i] = vmulq_n_f32(vld1q_f32(from + 4 * i), factor[j]);
    }
    for (int p = 0; p < n_pos; p++, v += v_stride) {
        int8x16_t x[2];
        float scale = scale_q4(v, d, g);
        unpack_q4(x, v + 16 * g, n);
        for (int i = 0; i < 8; i++) {
            int16x8_t wide = i & 2 ? vmovl_high_s8(x[i / 4]) : vmovl_s8(vget_low_s8(x[i / 4]));
            int32x4_t code = i & 1 ? vmovl_high_s16(wide) : vmovl_s16(vget_low_s16(wide));
            float32x4_t value = vmulq_n_f32(vcvtq_f32_s32(code), scale);
            for (int j = 0; j < n_q; j++)
                sum[j][i] =
                    vaddq_f32(sum[j][i], vmulq_n_f32(value, s[(size_t)j * lds + (size_t)p]));
        }
    }
    for (int j = 0; j < n_q; j++) {
        float *to = n < 32 ? tail[j] : acc + (size_t)j * ldacc;
        for (int i = 0; i < 8; i++) vst1q_f32(to + 4 * i, sum[j][i]);
        if (n < 32) memcpy(acc + (size_t)j * ldacc, to, (size_t)n * sizeof(float));
    }
}

static void accum_q4(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_stride, int n_pos, int d) {
    for (int j = 0; j < n_q; j += 2, acc += 2 * ldacc, factor += 2, s += 2 * lds)
        for (int g = 0; 32 * g < d; g++) {
            int n = MIN(32, d - 32 * g);
            if (n_q - j >= 2 && n == 32)
                accum_group(acc + 32 * g, ldacc, factor, s, lds, 2, v, v_stride, n_pos, d, g, 32);
            else
                accum_group(acc + 32 * g, ldacc, factor, s, lds, MIN(2, n_q - j), v, v_stride,
                            n_pos, d, g, n);
        }
}

static void fill_kv(Kern *k) {
    k->score_k2 = score_k2;
    k->score_k3 = score_k3;
    k->accum_k2 = accum_k2;
    k->accum_k3 = accum_k3;
    k->score_q4 = score_q4;
    k->accum_q4 = accum_q4;
}
#endif
