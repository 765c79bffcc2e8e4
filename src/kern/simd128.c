/* simd128.c - int8 products and quantisation with the 128-bit vectors of WebAssembly. A vector of
 * codes holds 4 inputs each of 4 rows; as 16-bit lanes these are pairs, so inputs 0 and 2 of each
 * four, and 1 and 3, are multiplied apart. Sums of q4, s2 and s3 over a group fit 16 bits and stay
 * there: ARM needs one instruction for 16-bit products and three for i32x4.dot_i16x8, which the
 * other types take, one product of pairs a row. Packing is left to scalar.c; with relaxed SIMD the
 * products are those of relaxed_simd128.c. */
#include "kern.h"

#include <math.h>
#include <string.h>

#include "codec.h"
#include "simd128.h"

#ifndef __wasm_relaxed_simd__
enum { TILE = 4 }; /* tokens that share the unpacked weights */
enum Type { Q4, Q8, S2, S3, KQ };
static const size_t group_bytes[] = { Q4X_BYTES, Q8X_BYTES, 144, 208, sizeof(KqGroup) };

/* dots() gives the sum times 1 << scale_of(type). */
INLINE int scale_of(enum Type type) {
    return type == Q8 ? 8 : 0;
}
/* Whether 32 products fit 16 bits: at most 16 * 15 * 127 in each half of a row's lane. */
INLINE int fits16(enum Type type) {
    return type == Q4 || type == S2 || type == S3;
}

/* Activations of one group, those of quad v for every row, as two 16-bit pairs. */
typedef struct Quads {
    v128_t even[8], odd[8];
} Quads;

INLINE void copies(v128_t to[4], v128_t x) {
    to[0] = wasm_i32x4_shuffle(x, x, 0, 0, 0, 0);
    to[1] = wasm_i32x4_shuffle(x, x, 1, 1, 1, 1);
    to[2] = wasm_i32x4_shuffle(x, x, 2, 2, 2, 2);
    to[3] = wasm_i32x4_shuffle(x, x, 3, 3, 3, 3);
}

INLINE void spread(Quads *x, const int8_t *q) {
    for (int h = 0; h < 2; h++) {
        v128_t a = wasm_v128_load(q + 16 * h);
        copies(x->even + 4 * h, wasm_i16x8_shr(wasm_i16x8_shl(a, 8), 8));
        copies(x->odd + 4 * h, wasm_i16x8_shr(a, 8));
    }
}

/* x >> by, or << -by, of 16-bit lanes, and the bits of `mask`. */
INLINE v128_t bits(v128_t x, int by, int mask) {
    if (by > 0) x = wasm_u16x8_shr(x, (uint32_t)by);
    if (by < 0) x = wasm_i16x8_shl(x, (uint32_t)-by);
    return by > 0 && 0xffff >> by <= mask ? x : wasm_v128_and(x, wasm_i16x8_splat((int16_t)mask));
}

/* Codes of rows 4j..4j+3 and quad v of the group at p, one input in each 16-bit lane: inputs 0 and
 * 2, or (odd) 1 and 3. Those of q8 are times 256. */
INLINE v128_t pairs(enum Type type, const uint8_t *p, int j, int v, int odd) {
    p += 16 * j;
    if (type == KQ)
        return bits(wasm_v128_load(p + offsetof(KqGroup, code) + 64 * v), 8 * odd, 0xff);
    if (type == Q8) {
        v128_t x = wasm_v128_load(p + 32 + 64 * v);
        return odd ? wasm_v128_and(x, wasm_i16x8_const_splat((int16_t)0xff00))
                   : wasm_i16x8_shl(x, 8);
    }
    if (type == Q4) return bits(wasm_v128_load(p + 32 + 64 * (v / 2)), 4 * (v & 1) + 8 * odd, 15);
    v128_t x = bits(wasm_v128_load(p + 16 + 64 * (v / 4)), 2 * (v % 4) + 8 * odd, 3);
    if (type == S3) /* bit v of the third vector goes on top of the two bits */
        x = wasm_v128_or(x, bits(wasm_v128_load(p + 144), v + 8 * odd - 2, 4));
    return x;
}

INLINE v128_t plus_product(enum Type type, v128_t s, v128_t w, v128_t x) {
    return fits16(type) ? wasm_i16x8_add(s, wasm_i16x8_mul(w, x))
                        : wasm_i32x4_add(s, wasm_i32x4_dot_i16x8(w, x));
}

/* s[t]: sums of codes times activations of quads v0..v1-1, rows 4j..4j+3, of n tokens. */
INLINE void dots(enum Type type, v128_t *s, const int n, const uint8_t *p, int j, int v0, int v1,
                 const Quads *x) {
    v128_t other[TILE];
    for (int t = 0; t < n; t++) s[t] = other[t] = wasm_i32x4_const_splat(0);
    UNROLL for (int v = v0; v < v1; v++) {
        v128_t even = pairs(type, p, j, v, 0), odd = pairs(type, p, j, v, 1);
        for (int t = 0; t < n; t++) {
            s[t] = plus_product(type, s[t], even, x[t].even[v]);
            other[t] = plus_product(type, other[t], odd, x[t].odd[v]);
        }
    }
    for (int t = 0; t < n; t++)
        s[t] = fits16(type) ? wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_add(s[t], other[t]))
                            : wasm_i32x4_add(s[t], other[t]);
}

INLINE v128_t plus_times(v128_t acc, v128_t scale, v128_t sum) {
    return wasm_f32x4_add(acc, wasm_f32x4_mul(scale, wasm_f32x4_convert_i32x4(sum)));
}

INLINE void group_kq(v128_t *acc, const int n, const uint8_t *p, const Quads *x, size_t ld,
                     const int32_t *sum, const float *scale) {
    const KqGroup *g = (const KqGroup *)p;
    for (int j = 0; j < 4; j++) {
        v128_t s0[TILE], s1[TILE];
        dots(KQ, s0, n, p, j, 0, 4, x);
        dots(KQ, s1, n, p, j, 4, 8, x);
        for (int t = 0; t < n; t++) {
            size_t at = (size_t)t * (ld / 32);
            acc[4 * t + j] = kq_add(acc[4 * t + j], g, j, s0[t], s1[t], sum + 2 * at, scale[at]);
        }
    }
}

/* (c + 4) * (8 s + z' sum) as one product of pairs: 8 (c + 4) with s, z' (c + 4) with sum; s is at
 * most 7 * 127 * 32 and the sum 127 * 32, so all fit 16 bits. */
INLINE void group_s(enum Type type, v128_t *acc, const int n, const uint8_t *p, const Quads *x,
                    size_t ld, const int32_t *sum, const float *scale) {
    v128_t cz = wasm_v128_load(p), by[4];
    v128_t c =
        wasm_i8x16_add(wasm_v128_and(cz, wasm_i8x16_const_splat(15)), wasm_i8x16_const_splat(4));
    v128_t z = wasm_i8x16_sub(wasm_u8x16_shr(cz, 4), wasm_i8x16_splat(type == S2 ? 20 : 36));
    for (int h = 0; h < 2; h++) {
        v128_t c16 = h ? wasm_i16x8_extend_high_i8x16(c) : wasm_i16x8_extend_low_i8x16(c);
        v128_t z16 = h ? wasm_i16x8_extend_high_i8x16(z) : wasm_i16x8_extend_low_i8x16(z);
        z16 = wasm_i16x8_mul(z16, c16);
        c16 = wasm_i16x8_shl(c16, 3);
        by[2 * h] = wasm_i16x8_shuffle(z16, c16, 0, 8, 1, 9, 2, 10, 3, 11);
        by[2 * h + 1] = wasm_i16x8_shuffle(z16, c16, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int j = 0; j < 4; j++) {
        v128_t s[TILE];
        dots(type, s, n, p, j, 0, 8, x);
        for (int t = 0; t < n; t++) {
            const int32_t *a = sum + (size_t)t * (ld / 16);
            v128_t low = wasm_i32x4_splat((a[0] + a[1]) & 0xffff);
            v128_t both = wasm_v128_or(wasm_i32x4_shl(s[t], (uint32_t)(16 - scale_of(type))), low);
            acc[4 * t + j] =
                plus_times(acc[4 * t + j], wasm_f32x4_splat(scale[(size_t)t * (ld / 32)]),
                           wasm_i32x4_dot_i16x8(both, by[j]));
        }
    }
}

INLINE void group_q(enum Type type, v128_t *acc, const int n, const uint8_t *p, const Quads *x,
                    size_t ld, const int32_t *sum, const float *scale) {
    for (int j = 0; j < 4; j++) {
        v128_t s[TILE], f = finite_halves(p + 8 * j);
        dots(type, s, n, p, j, 0, 8, x);
        for (int t = 0; t < n; t++) {
            const int32_t *a = sum + (size_t)t * (ld / 16);
            v128_t dot = wasm_i32x4_shr(s[t], (uint32_t)scale_of(type));
            if (type == Q4) dot = wasm_i32x4_sub(dot, wasm_i32x4_splat(8 * (a[0] + a[1])));
            v128_t by = wasm_f32x4_mul(f, wasm_f32x4_splat(scale[(size_t)t * (ld / 32)]));
            acc[4 * t + j] = plus_times(acc[4 * t + j], by, dot);
        }
    }
}

/* All groups of one row block for n <= TILE tokens starting at t0. */
INLINE void tile(enum Type type, float *y, size_t ldy, const uint8_t *block,
                 const uint16_t *row_scale, int n_groups, const A8 *a, int t0, const int n) {
    const int8_t *q = a->q + (size_t)t0 * a->ld;
    const float *scale = a->scale + (size_t)t0 * (a->ld / 32);
    const int32_t *sum = a->sum + (size_t)t0 * (a->ld / 16);
    v128_t acc[4 * TILE];
    y += (size_t)t0 * ldy;
    for (int i = 0; i < 4 * n; i++)
        acc[i] = type == KQ ? wasm_v128_load(y + (size_t)(i / 4) * ldy + 4 * (i % 4))
                            : wasm_f32x4_const_splat(0);
    for (int g = 0; g < n_groups; g++, q += 32, scale++, sum += 2, block += group_bytes[type]) {
        Quads x[TILE];
        for (int t = 0; t < n; t++) spread(&x[t], q + (size_t)t * a->ld);
        if (type == KQ) group_kq(acc, n, block, x, a->ld, sum, scale);
        if (type == S2 || type == S3) group_s(type, acc, n, block, x, a->ld, sum, scale);
        if (type == Q4 || type == Q8) group_q(type, acc, n, block, x, a->ld, sum, scale);
    }
    for (int i = 0; i < 4 * n; i++) {
        if (type == S2 || type == S3) {
            v128_t by = half_floats(row_scale + 4 * (i % 4));
            acc[i] = wasm_f32x4_mul(acc[i], wasm_f32x4_mul(by, wasm_f32x4_const_splat(0.125f)));
        }
        wasm_v128_store(y + (size_t)(i / 4) * ldy + 4 * (i % 4), acc[i]);
    }
}

#define MUL(name, type)                                                                            \
    static void mul_##name MUL_ARGS {                                                              \
        int t = 0;                                                                                 \
        if ((type == Q4 || type == Q8) && !finite_scales(block, group_bytes[type], n_groups)) {    \
            Kern k;                                                                                \
            kern_scalar(&k);                                                                       \
            (type == Q4 ? k.mul_q4 : k.mul_q8)(y, ldy, block, row_scale, n_groups, a, n_tokens);   \
            return;                                                                                \
        }                                                                                          \
        for (; t + TILE <= n_tokens; t += TILE)                                                    \
            tile(type, y, ldy, block, row_scale, n_groups, a, t, TILE);                            \
        for (; t < n_tokens; t++) tile(type, y, ldy, block, row_scale, n_groups, a, t, 1);         \
    }
MUL(q4, Q4)
MUL(q8, Q8)
MUL(s2, S2)
MUL(s3, S3)
MUL(kq, KQ)
#endif

static void quantize(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    const v128_t size = wasm_i32x4_const_splat(0x7fffffff),
                 magic = wasm_f32x4_const_splat(KERN_ROUND);
    for (int g = 0; 32 * g < n; g++) {
        float last[32] = { 0 };
        const float *p = x + 32 * (size_t)g;
        if (n - 32 * g < 32) p = memcpy(last, p, (size_t)(n - 32 * g) * sizeof(float));
        v128_t m = wasm_i32x4_const_splat(0);
        for (int i = 0; i < 8; i++) /* NaN is above infinity */
            m = wasm_u32x4_max(m, wasm_v128_and(wasm_v128_load(p + 4 * i), size));
        uint32_t max_bits = top_u32(m);
        float amax;
        memcpy(&amax, &max_bits, 4);
        int finite = max_bits < 0x7f800000;
        v128_t inverse = wasm_f32x4_splat(MIN(127.0f / amax, 0x1.fffffep127f));
        for (int h = 0; h < 2; h++, p += 16, q += 16) {
            v128_t v[4], total = wasm_i32x4_const_splat(0);
            for (int i = 0; i < 4; i++) {
                v128_t f =
                    wasm_f32x4_add(wasm_f32x4_mul(wasm_v128_load(p + 4 * i), inverse), magic);
                v[i] = finite ? wasm_i32x4_sub(f, magic) : wasm_i32x4_const_splat(0);
                total = wasm_i32x4_add(total, v[i]);
            }
            wasm_v128_store(q, wasm_i8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(v[0], v[1]),
                                                       wasm_i16x8_narrow_i32x4(v[2], v[3])));
            sum[2 * g + h] = sum_i32(total);
        }
        scale[g] = finite ? amax / 127.0f : NAN;
    }
}

void kern_simd128(Kern *k) {
    k->quantize = quantize;
#ifdef __wasm_relaxed_simd__
    kern_relaxed(k);
#else
    k->mul_q4 = mul_q4;
    k->mul_q8 = mul_q8;
    k->mul_s2 = mul_s2;
    k->mul_s3 = mul_s3;
    k->mul_kq = mul_kq;
#endif
}
