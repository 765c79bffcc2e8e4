/* simd128.h - small things that the kernels for WebAssembly share. */
#ifndef SIMD128_H
#define SIMD128_H
#include <stdint.h>
#include <wasm_simd128.h>

#include "codec.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("unroll")

/* Four f16 in 32-bit lanes as floats, exactly; the product makes subnormals normal. */
INLINE v128_t wide_f16(v128_t h) {
    v128_t size = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_const_splat(0x7fff)), 13);
    v128_t sign = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_const_splat(0x8000)), 16);
    v128_t infinite = wasm_i32x4_gt(size, wasm_i32x4_const_splat(0x0f7fffff));
    v128_t f = wasm_f32x4_mul(size, wasm_f32x4_const_splat(0x1p112f));
    f = wasm_v128_or(f, wasm_v128_and(infinite, wasm_i32x4_const_splat(0x7f800000)));
    f = wasm_v128_or(f, wasm_v128_and(infinite, size));
    return wasm_v128_or(f, sign);
}
INLINE v128_t half_floats(const void *p) {
    return wide_f16(wasm_u32x4_load16x4(p));
}
/* The same of finite ones. */
INLINE v128_t finite_halves(const void *p) {
    v128_t h = wasm_i32x4_shl(wasm_i32x4_load16x4(p), 13);
    return wasm_f32x4_mul(wasm_v128_and(h, wasm_i32x4_const_splat((int32_t)0x8fffe000)),
                          wasm_f32x4_const_splat(0x1p112f));
}
/* Whether the scales (16 f16) that groups begin with are finite. */
INLINE int finite_scales(const uint8_t *block, size_t bytes, int n_groups) {
    v128_t top = wasm_i16x8_const_splat(0);
    for (int g = 0; g < n_groups; g++, block += bytes)
        for (int h = 0; h < 2; h++)
            top = wasm_i16x8_max(
                top, wasm_v128_and(wasm_v128_load(block + 16 * h), wasm_i16x8_const_splat(0x7fff)));
    return !wasm_v128_any_true(wasm_i16x8_ge(top, wasm_i16x8_const_splat(0x7c00)));
}

INLINE uint32_t top_u32(v128_t m) {
    m = wasm_u32x4_max(m, wasm_i32x4_shuffle(m, m, 2, 3, 0, 1));
    m = wasm_u32x4_max(m, wasm_i32x4_shuffle(m, m, 1, 0, 3, 2));
    return (uint32_t)wasm_i32x4_extract_lane(m, 0);
}
INLINE int32_t sum_i32(v128_t s) {
    s = wasm_i32x4_add(s, wasm_i32x4_shuffle(s, s, 2, 3, 0, 1));
    s = wasm_i32x4_add(s, wasm_i32x4_shuffle(s, s, 1, 0, 3, 2));
    return wasm_i32x4_extract_lane(s, 0);
}
/* acc plus rows 4j..+3 of a K-quant group, s0 and s1 being their dots with its two halves of an
 * input whose sums are sum[0] and sum[1]. Sums of 16 activations fit 16 bits, and so the minima are
 * one product of pairs. */
INLINE v128_t kq_add(v128_t acc, const KqGroup *g, int j, v128_t s0, v128_t s1, const int32_t *sum,
                     float scale) {
    v128_t sc = wasm_v128_load(g->sc[4 * j]), mn = wasm_v128_load(g->mn[4 * j]);
    v128_t sc0 = wasm_i32x4_shr(wasm_i32x4_shl(sc, 16), 16), sc1 = wasm_i32x4_shr(sc, 16);
    v128_t by = wasm_f32x4_splat(scale);
    v128_t both = wasm_i32x4_splat((int32_t)((uint32_t)sum[1] << 16 | (uint16_t)sum[0]));
    v128_t s = wasm_i32x4_add(wasm_i32x4_mul(s0, sc0), wasm_i32x4_mul(s1, sc1));
    v128_t m = wasm_i32x4_dot_i16x8(mn, both);
    v128_t f = wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(g->d + 4 * j), by),
                              wasm_f32x4_convert_i32x4(s));
    v128_t e = wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(g->dm + 4 * j), by),
                              wasm_f32x4_convert_i32x4(m));
    return wasm_f32x4_add(acc, wasm_f32x4_sub(f, e));
}

#ifdef __wasm_relaxed_simd__
/* x86 before AVX-VNNI has no byte dot into 32 bits, but one into 16 that takes a single
 * instruction; other machines are the other way round. Where the one into 32 is made of that into
 * 16 it saturates, which the operands of the kernels cannot bring about. Only speed hangs on the
 * answer. */
INLINE int old_x86(void) {
#ifdef DIBIT_DOT32 /* a test of what others take */
    return 0;
#endif
    volatile int8_t most[2] = { 127, -1 };
    v128_t s = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(
        wasm_i8x16_splat(most[0]), wasm_i8x16_splat(most[1]), wasm_i32x4_const_splat(0));
    return wasm_i32x4_extract_lane(s, 0) == 2 * 32767;
}
#endif
#endif
