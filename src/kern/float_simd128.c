/* float_simd128.c - the float loops in vectors of WebAssembly; the loops are in float_lanes.inc.
 * f16 becomes float by three operations where it is finite, by eleven where it need not be; so rows
 * are looked over first, and those with NaN or infinity go the scalar way. */
#include "kern.h"

#include <math.h>
#include <string.h>

#include "codec.h"
#include "simd128.h"
#undef INLINE
#undef UNROLL

#define W      4
#define PARTS  4
#define TOKENS 2
#define COLS   4
#define EXPS   4

typedef v128_t V;

static inline float f16_bits(uint16_t h) {
    return f16_to_f32(h);
}
static inline V v_zero(void) {
    return wasm_f32x4_const_splat(0);
}
static inline V v_set1(float f) {
    return wasm_f32x4_splat(f);
}
static inline V v_load(const float *p) {
    return wasm_v128_load(p);
}
static inline void v_store(float *p, V a) {
    wasm_v128_store(p, a);
}
static inline V v_add(V a, V b) {
    return wasm_f32x4_add(a, b);
}
static inline V v_sub(V a, V b) {
    return wasm_f32x4_sub(a, b);
}
static inline V v_mul(V a, V b) {
    return wasm_f32x4_mul(a, b);
}
static inline V v_div(V a, V b) {
    return wasm_f32x4_div(a, b);
}
static inline V v_abs(V a) {
    return wasm_f32x4_abs(a);
}
static inline V v_max(V x, V m) {
    return wasm_f32x4_pmax(m, x); /* m < x ? x : m: f32x4.max would take a NaN */
}
static inline float v_top(V a) {
    a = wasm_f32x4_pmax(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
    a = wasm_f32x4_pmax(a, wasm_i32x4_shuffle(a, a, 1, 0, 3, 2));
    return wasm_f32x4_extract_lane(a, 0);
}
static inline V v_pick(V a, V b, V x, V y) {
    return wasm_v128_bitselect(x, y, wasm_f32x4_lt(a, b));
}
static inline V v_f16(const uint8_t *p) {
    return finite_halves(p);
}
static inline V v_bf16(const uint8_t *p) {
    return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16);
}
static inline V v_i8(const uint8_t *p) {
    v128_t wide = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p));
    return wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wide));
}
static inline void v_to_f16(uint8_t *p, V a) {
    float f[4];
    wasm_v128_store(f, a);
    for (int i = 0; i < 4; i++) {
        uint16_t h = f32_to_f16(f[i]);
        memcpy(p + 2 * i, &h, sizeof h);
    }
}
/* k + KERN_ROUND as bits, less those of KERN_ROUND: the integer k. */
static inline v128_t integer(V t) {
    return wasm_i32x4_sub(t, wasm_f32x4_const_splat(KERN_ROUND));
}
static inline void v_to_i8(uint8_t *p, V t) {
    v128_t k = wasm_i16x8_narrow_i32x4(integer(t), integer(t));
    wasm_v128_store32_lane(p, wasm_i8x16_narrow_i16x8(k, k), 0);
}
static inline V v_pow2(V t) {
    return wasm_i32x4_shl(wasm_i32x4_add(integer(t), wasm_i32x4_const_splat(127)), 23);
}
static inline void v_pairs(const float *x, V *a, V *b) {
    V lo = v_load(x), hi = v_load(x + 4);
    *a = wasm_i32x4_shuffle(lo, hi, 0, 2, 4, 6);
    *b = wasm_i32x4_shuffle(lo, hi, 1, 3, 5, 7);
}
static inline void v_unpairs(float *x, V a, V b) {
    v_store(x, wasm_i32x4_shuffle(a, b, 0, 4, 1, 5));
    v_store(x + 4, wasm_i32x4_shuffle(a, b, 2, 6, 3, 7));
}

/* Lanes j and j+8, then j and j+4. */
static inline V fold4(const V *s) {
    return v_add(v_add(s[0], s[2]), v_add(s[1], s[3]));
}
static inline float v_tree(const V *s) {
    V a = fold4(s);
    a = v_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
    return wasm_f32x4_extract_lane(a, 0) + wasm_f32x4_extract_lane(a, 1);
}
static inline V halves(V a, V b) { /* a0 a1 b0 b1, lanes j and j+2 added */
    return v_add(wasm_i32x4_shuffle(a, b, 0, 1, 4, 5), wasm_i32x4_shuffle(a, b, 2, 3, 6, 7));
}
static inline void v_tree4(float *y, const V *s0, const V *s1, const V *s2, const V *s3) {
    V a = halves(fold4(s0), fold4(s1)), b = halves(fold4(s2), fold4(s3));
    v_store(y, v_add(wasm_i32x4_shuffle(a, b, 0, 2, 4, 6), wasm_i32x4_shuffle(a, b, 1, 3, 5, 7)));
}

static inline void dot4_q8(int32_t *dot, const int8_t *q, const uint8_t *k, size_t k_stride,
                           int d) {
    v128_t s[4];
    for (size_t r = 0; r < 4; r++) s[r] = wasm_i32x4_const_splat(0);
    for (int i = 0; i < d; i += 8) {
        v128_t x = wasm_i16x8_load8x8(q + i);
        for (size_t r = 0; r < 4; r++) {
            v128_t y = wasm_i16x8_load8x8(k + r * k_stride + (size_t)i);
            s[r] = wasm_i32x4_add(s[r], wasm_i32x4_dot_i16x8(x, y));
        }
    }
    for (size_t r = 0; r < 4; r++) dot[r] = sum_i32(s[r]);
}

#include "float_lanes.inc"

static int finite_rows(const uint8_t *row, size_t stride, int n_rows, int n) {
    v128_t top = wasm_i16x8_const_splat(0);
    for (; n_rows; n_rows--, row += stride) {
        int i = 0;
        for (; i + 8 <= n; i += 8)
            top = wasm_i16x8_max(
                top, wasm_v128_and(wasm_v128_load(row + 2 * i), wasm_i16x8_const_splat(0x7fff)));
        for (; i < n; i++)
            top = wasm_i16x8_max(top, wasm_i16x8_splat(load_u16(row + 2 * i) & 0x7fff));
    }
    return !wasm_v128_any_true(wasm_i16x8_ge(top, wasm_i16x8_const_splat(0x7c00)));
}

/* The slot of this file, or the scalar one. */
static const Kern *for_rows(Kern *k, const uint8_t *row, size_t stride, int n_rows, int n) {
    if (finite_rows(row, stride, n_rows, n))
        fill_float(k);
    else
        kern_float_scalar(k);
    return k;
}

static void mul_f16_rows MULF_ARGS {
    Kern k;
    for_rows(&k, w, row_bytes, n_rows, n)
        ->mul_f16(y, ldy, w, row_bytes, n_rows, x, ldx, n_tokens, n);
}

static void score_f16_rows(float *s, size_t lds, const float *q, size_t ldq, int n_q,
                           const uint8_t *k, size_t k_stride, int n_pos, int d) {
    Kern kern;
    for_rows(&kern, k, k_stride, n_pos, d)->score_f16(s, lds, q, ldq, n_q, k, k_stride, n_pos, d);
}

static void accum_f16_rows(float *acc, size_t ldacc, const float *factor, const float *s,
                           size_t lds, int n_q, const uint8_t *v, size_t v_stride, int n_pos,
                           int d) {
    Kern k;
    for_rows(&k, v, v_stride, n_pos, d)
        ->accum_f16(acc, ldacc, factor, s, lds, n_q, v, v_stride, n_pos, d);
}

void kern_float_simd128(Kern *k) {
    fill_float(k);
    k->mul_f16 = mul_f16_rows;
    k->score_f16 = score_f16_rows;
    k->accum_f16 = accum_f16_rows;
}
