/* rows_simd128.c - the loops over q8 and q4 rows of the KV cache with the vectors of WebAssembly
 * (the sums of q8 values and everything of f16 are in float_simd128.c). Four rows go side by side,
 * so that what follows the integer sums is done for four at once. */
#include "kern.h"

#include <string.h>

#include "codec.h"
#include "simd128.h"

enum { MAX_DIM = 256, PAIR = 2 }; /* PAIR: queries that share what is unpacked */

/* How products of bytes are summed: by 16-bit pairs, or with byte dots into 32 bits or 16. */
enum Sums { PAIRS, DOT32, DOT16 };

/* The f16 at p of four rows as floats. */
INLINE v128_t four_scales(const uint8_t *const row[4], size_t at) {
    v128_t h = wasm_i32x4_const_splat(0);
    h = wasm_v128_load16_lane(row[0] + at, h, 0);
    h = wasm_v128_load16_lane(row[1] + at, h, 2);
    h = wasm_v128_load16_lane(row[2] + at, h, 4);
    return wide_f16(wasm_v128_load16_lane(row[3] + at, h, 6));
}

/* The sums of four vectors, one a lane. */
INLINE v128_t four_sums(const v128_t s[4]) {
    v128_t a = wasm_i32x4_add(wasm_i32x4_shuffle(s[0], s[1], 0, 4, 1, 5),
                              wasm_i32x4_shuffle(s[0], s[1], 2, 6, 3, 7));
    v128_t b = wasm_i32x4_add(wasm_i32x4_shuffle(s[2], s[3], 0, 4, 1, 5),
                              wasm_i32x4_shuffle(s[2], s[3], 2, 6, 3, 7));
    return wasm_i32x4_add(wasm_i32x4_shuffle(a, b, 0, 1, 4, 5),
                          wasm_i32x4_shuffle(a, b, 2, 3, 6, 7));
}

/* Rows p..p+3; past the end the last one again. */
INLINE void four_rows(const uint8_t *row[4], const uint8_t *k, size_t stride, int p, int n_pos) {
    for (int r = 0; r < 4; r++) row[r] = k + (size_t)(p + r < n_pos ? p + r : n_pos - 1) * stride;
}

INLINE void put_scores(float *s, v128_t x, int n) {
    float lane[4];
    if (n >= 4) {
        wasm_v128_store(s, x);
        return;
    }
    wasm_v128_store(lane, x);
    memcpy(s, lane, (size_t)n * sizeof *s);
}

/* s + products of 16 signed bytes with 16 codes below 16. */
INLINE v128_t plus_dot(enum Sums sums, v128_t s, v128_t a, v128_t code) {
#ifdef __wasm_relaxed_simd__
    if (sums == DOT32) return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(a, code, s);
    if (sums == DOT16)
        return wasm_i32x4_add(
            s, wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_relaxed_dot_i8x16_i7x16(a, code)));
#endif
    (void)sums;
    v128_t even = wasm_i32x4_dot_i16x8(wasm_i16x8_shr(wasm_i16x8_shl(a, 8), 8),
                                       wasm_v128_and(code, wasm_i16x8_const_splat(0xff)));
    v128_t odd = wasm_i32x4_dot_i16x8(wasm_i16x8_shr(a, 8), wasm_u16x8_shr(code, 8));
    return wasm_i32x4_add(s, wasm_i32x4_add(even, odd));
}

INLINE void score_q4_few(enum Sums sums, float *s, size_t lds, const int8_t *q, size_t ldq,
                         const float *q_scale, const int n, const uint8_t *k, size_t k_stride,
                         int n_pos, int d) {
    const v128_t low = wasm_i8x16_const_splat(15);
    int32_t less[PAIR][MAX_DIM / 32]; /* 8 times a group's sum, for codes count from -8 */
    for (int t = 0; t < n; t++)
        for (int i = 0; i < d; i++) {
            if (i % 32 == 0) less[t][i / 32] = 0;
            less[t][i / 32] += 8 * q[(size_t)t * ldq + (size_t)i];
        }
    for (int p = 0; p < n_pos; p += 4) {
        const uint8_t *row[4];
        v128_t score[PAIR];
        four_rows(row, k, k_stride, p, n_pos);
        for (int t = 0; t < n; t++) score[t] = wasm_f32x4_const_splat(0);
        for (int g = 0; 32 * g < d; g++) {
            v128_t sum[PAIR][4], scale = four_scales(row, (size_t)(d / 2 + 2 * g));
            for (int r = 0; r < 4; r++) {
                v128_t x = wasm_v128_load(row[r] + 16 * g), zero = wasm_i32x4_const_splat(0);
                v128_t a = wasm_v128_and(x, low), b = wasm_v128_and(wasm_u16x8_shr(x, 4), low);
                for (int t = 0; t < n; t++) {
                    const int8_t *at = q + (size_t)t * ldq + 32 * g;
                    sum[t][r] = plus_dot(sums, plus_dot(sums, zero, wasm_v128_load(at), a),
                                         wasm_v128_load(at + 16), b);
                }
            }
            for (int t = 0; t < n; t++) {
                v128_t dot = wasm_i32x4_sub(four_sums(sum[t]), wasm_i32x4_splat(less[t][g]));
                v128_t f = wasm_f32x4_mul(wasm_f32x4_splat(q_scale[t]), scale);
                score[t] =
                    wasm_f32x4_add(score[t], wasm_f32x4_mul(f, wasm_f32x4_convert_i32x4(dot)));
            }
        }
        for (int t = 0; t < n; t++) put_scores(s + (size_t)t * lds + p, score[t], n_pos - p);
    }
}

/* 16 columns, the low or the high halves of a group's bytes, of all rows for n queries. */
INLINE void accum_q4_columns(float *acc, size_t ldacc, const float *factor, const float *s,
                             size_t lds, const int n, const uint8_t *code, const uint8_t *scale,
                             size_t stride, int n_pos, const int high) {
    v128_t sum[PAIR][4];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < 4; i++)
            sum[t][i] = wasm_f32x4_mul(wasm_v128_load(acc + (size_t)t * ldacc + 4 * i),
                                       wasm_f32x4_splat(factor[t]));
    for (int p = 0; p < n_pos; p++, code += stride, scale += stride) {
        v128_t x = wasm_v128_load(code), f = wasm_f32x4_splat(f16_to_f32(load_u16(scale)));
        if (high) x = wasm_u16x8_shr(x, 4);
        x = wasm_i8x16_sub(wasm_v128_and(x, wasm_i8x16_const_splat(15)), wasm_i8x16_const_splat(8));
        v128_t a = wasm_i16x8_extend_low_i8x16(x), b = wasm_i16x8_extend_high_i8x16(x);
        const v128_t wide[4] = { wasm_i32x4_extend_low_i16x8(a), wasm_i32x4_extend_high_i16x8(a),
                                 wasm_i32x4_extend_low_i16x8(b), wasm_i32x4_extend_high_i16x8(b) };
        for (int i = 0; i < 4; i++) {
            v128_t v = wasm_f32x4_mul(f, wasm_f32x4_convert_i32x4(wide[i]));
            for (int t = 0; t < n; t++)
                sum[t][i] = wasm_f32x4_add(
                    sum[t][i], wasm_f32x4_mul(wasm_v128_load32_splat(s + (size_t)t * lds + p), v));
        }
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < 4; i++) wasm_v128_store(acc + (size_t)t * ldacc + 4 * i, sum[t][i]);
}

INLINE void accum_q4_few(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                         const int n, const uint8_t *v, size_t v_stride, int n_pos, int d) {
    for (int g = 0; 32 * g < d; g++) {
        const uint8_t *code = v + 16 * g, *scale = v + d / 2 + 2 * g;
        accum_q4_columns(acc + 32 * g, ldacc, factor, s, lds, n, code, scale, v_stride, n_pos, 0);
        accum_q4_columns(acc + 32 * g + 16, ldacc, factor, s, lds, n, code, scale, v_stride, n_pos,
                         1);
    }
}

INLINE void score_q4(enum Sums sums, float *s, size_t lds, const int8_t *q, size_t ldq,
                     const float *q_scale, int n_q, const uint8_t *k, size_t k_stride, int n_pos,
                     int d) {
    Kern scalar;
    if (d % 32 || d > MAX_DIM) {
        kern_kv_scalar(&scalar);
        scalar.score_q4(s, lds, q, ldq, q_scale, n_q, k, k_stride, n_pos, d);
        return;
    }
    for (; n_q >= PAIR; n_q -= PAIR, s += PAIR * lds, q += PAIR * ldq, q_scale += PAIR)
        score_q4_few(sums, s, lds, q, ldq, q_scale, PAIR, k, k_stride, n_pos, d);
    if (n_q) score_q4_few(sums, s, lds, q, ldq, q_scale, 1, k, k_stride, n_pos, d);
}

#define SCORE(name, sums)                                                                          \
    static void name(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,      \
                     int n_q, const uint8_t *k, size_t k_stride, int n_pos, int d) {               \
        score_q4(sums, s, lds, q, ldq, q_scale, n_q, k, k_stride, n_pos, d);                       \
    }
#ifdef __wasm_relaxed_simd__
SCORE(score_q4_dot32, DOT32)
SCORE(score_q4_dot16, DOT16)
#else
SCORE(score_q4_pairs, PAIRS)
#endif

static void accum_q4(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_stride, int n_pos, int d) {
    Kern scalar;
    if (d % 32) {
        kern_kv_scalar(&scalar);
        scalar.accum_q4(acc, ldacc, factor, s, lds, n_q, v, v_stride, n_pos, d);
        return;
    }
    for (; n_q >= PAIR; n_q -= PAIR, acc += PAIR * ldacc, factor += PAIR, s += PAIR * lds)
        accum_q4_few(acc, ldacc, factor, s, lds, PAIR, v, v_stride, n_pos, d);
    if (n_q) accum_q4_few(acc, ldacc, factor, s, lds, 1, v, v_stride, n_pos, d);
}

void kern_rows_simd128(Kern *k) {
    k->accum_q4 = accum_q4;
#ifdef __wasm_relaxed_simd__
    k->score_q4 = old_x86() ? score_q4_dot16 : score_q4_dot32;
#else
    k->score_q4 = score_q4_pairs;
#endif
}
