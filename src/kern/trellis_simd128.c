/* trellis_simd128.c - products with t2 and t3 weights, and the rotation and rounding of their
 * inputs, with the vectors of WebAssembly. Dword j of vector i of a unit of 16 rows belongs to row
 * 4j + i, as in trellis_avx2.c: the states are the halves of the dwords at two addresses. One token
 * decodes and multiplies at once; more share tiles decoded to bytes. */
#include "kern.h"

#include <math.h>
#include <string.h>

#include "codec.h"
#include "kv23.h"
#include "simd128.h"

enum {
    UNIT = 16,      /* rows decoded together: 4 vectors */
    MAX_UNITS = 8,  /* 128 rows */
    MAX_CHUNK = 64, /* quads that many tokens share: 4 KiB of bytes */
    TILE = 2        /* tokens that share a vector of weights */
};
/* How four products are summed: in 16 bits, or with byte dots into 32 bits or 16. */
enum Sums { PAIRS, DOT32, DOT16 };

/* Quads whose sums fit 16 bits: 16 * 2 * 8 * 127 and 7 * 2 * 17 * 127. */
INLINE int run_of(int bits) {
    return bits == 2 ? 16 : 7;
}
INLINE int chunk_of(int bits) {
    return bits == 2 ? 64 : 63;
}

/* ---- decode ---- */

/* The number of bits of each byte, for t3 twice that: x86 has no instruction for it, so V8 looks
 * both halves up in tables, and a table may as well hold the double. */
INLINE v128_t count(enum Sums sums, v128_t x, int bits) {
#ifdef __wasm_relaxed_simd__
    if (sums == DOT16 && bits == 3) {
        const v128_t low = wasm_i8x16_const_splat(15);
        const v128_t twice = wasm_i8x16_const(0, 2, 2, 4, 2, 4, 4, 6, 2, 4, 4, 6, 4, 6, 6, 8);
        v128_t high = wasm_v128_and(wasm_u16x8_shr(x, 4), low);
        return wasm_i8x16_add(wasm_i8x16_relaxed_swizzle(twice, wasm_v128_and(x, low)),
                              wasm_i8x16_relaxed_swizzle(twice, high));
    }
#endif
    (void)sums;
    x = wasm_i8x16_popcnt(x);
    return bits == 3 ? wasm_i8x16_add(x, x) : x;
}

/* One tile of 16 rows: p (t2), or 2p and with the sign 17 - 2p (t3). */
INLINE void decode(enum Sums sums, v128_t w[4], const uint8_t *codes, const uint8_t *signs,
                   int bits) {
    const v128_t low = wasm_i32x4_const_splat(0xffff);
    v128_t even = wasm_v128_load(codes - 1), odd = wasm_v128_load(codes);
    const v128_t state[4] = { wasm_v128_and(even, low), wasm_v128_and(odd, low),
                              wasm_u32x4_shr(even, 16), wasm_u32x4_shr(odd, 16) };
    v128_t spread[2];
    if (bits == 3) { /* rows 4j, 4j + 1 have byte 2j, the next two 2j + 1 */
        v128_t s = wasm_v128_load64_zero(signs);
        spread[0] = wasm_i8x16_shuffle(s, s, 0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
        spread[1] = wasm_i8x16_shuffle(s, s, 1, 1, 1, 1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7);
    }
    for (int i = 0; i < 4; i++) {
        v128_t x = wasm_i32x4_mul(state[i], wasm_i32x4_const_splat((int32_t)T4_MUL));
        v128_t p = count(sums, wasm_i32x4_add(x, wasm_u32x4_shr(x, 13)), bits);
        if (bits == 3) {
            v128_t bit = wasm_i32x4_splat((int32_t)(i & 1 ? 0x80402010u : 0x08040201u));
            v128_t minus = wasm_i8x16_eq(wasm_v128_and(spread[i / 2], bit), bit);
            v128_t more = wasm_v128_and(minus, wasm_i8x16_const_splat(18));
            p = wasm_i8x16_add(wasm_v128_xor(p, minus), more); /* 17 - x is 18 + ~x */
        }
        w[i] = p;
    }
}

/* ---- sums ---- */

typedef struct Quad { /* four activations, for every row: inputs 0, 2 and 1, 3, or all bytes */
    v128_t even, odd;
} Quad;

INLINE Quad quad(enum Sums sums, const int8_t *a) {
    v128_t x = wasm_v128_load32_splat(a);
    if (sums != PAIRS) return (Quad){ x, x };
    return (Quad){ wasm_i16x8_shr(wasm_i16x8_shl(x, 8), 8), wasm_i16x8_shr(x, 8) };
}

INLINE v128_t step(enum Sums sums, v128_t s, v128_t w, const Quad *x) {
#ifdef __wasm_relaxed_simd__
    if (sums == DOT32) return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(x->even, w, s);
    if (sums == DOT16) return wasm_i16x8_add(s, wasm_i16x8_relaxed_dot_i8x16_i7x16(x->even, w));
#endif
    v128_t even = wasm_v128_and(w, wasm_i16x8_const_splat(0xff)), odd = wasm_u16x8_shr(w, 8);
    (void)sums;
    return wasm_i16x8_add(
        s, wasm_i16x8_add(wasm_i16x8_mul(even, x->even), wasm_i16x8_mul(odd, x->odd)));
}

INLINE v128_t total(enum Sums sums, v128_t s) {
    return sums == DOT32 ? s : wasm_i32x4_extadd_pairwise_i16x8(s);
}

/* y of 16 rows from their sums: S = sum - 4 sum a (t2), 2 sum - 17 sum a (t3). */
INLINE void finish(float *y, const v128_t sum[4], const uint16_t *row_scale, int32_t a_sum,
                   float a_scale, int bits) {
    v128_t s[4];
    for (int i = 0; i < 4; i++) {
        s[i] = bits == 2 ? sum[i] : wasm_i32x4_add(sum[i], sum[i]);
        s[i] = wasm_i32x4_sub(s[i], wasm_i32x4_splat((bits == 2 ? 4 : 17) * a_sum));
    }
    v128_t a = wasm_i32x4_shuffle(s[0], s[2], 0, 4, 1, 5);
    v128_t b = wasm_i32x4_shuffle(s[1], s[3], 0, 4, 1, 5);
    v128_t c = wasm_i32x4_shuffle(s[0], s[2], 2, 6, 3, 7);
    v128_t d = wasm_i32x4_shuffle(s[1], s[3], 2, 6, 3, 7);
    s[0] = wasm_i32x4_shuffle(a, b, 0, 4, 1, 5); /* rows 0..3 */
    s[1] = wasm_i32x4_shuffle(a, b, 2, 6, 3, 7);
    s[2] = wasm_i32x4_shuffle(c, d, 0, 4, 1, 5);
    s[3] = wasm_i32x4_shuffle(c, d, 2, 6, 3, 7);
    for (int i = 0; i < 4; i++) {
        v128_t f = half_floats(row_scale + 4 * i);
        if (bits == 3) f = wasm_f32x4_mul(f, wasm_f32x4_const_splat(0.5f));
        f = wasm_f32x4_mul(f, wasm_f32x4_splat(a_scale));
        wasm_v128_store(y + 4 * i, wasm_f32x4_mul(f, wasm_f32x4_convert_i32x4(s[i])));
    }
}

INLINE void one_token(enum Sums sums, float *y, const uint8_t *codes, const uint8_t *signs,
                      int height, int n_rows, const uint16_t *row_scale, int n_quads, const A8 *a,
                      int bits) {
    const int run = run_of(bits);
    v128_t sum[MAX_UNITS][4];
    for (int u = 0; u < MAX_UNITS; u++)
        for (int i = 0; i < 4; i++) sum[u][i] = wasm_i32x4_const_splat(0);
    for (int q0 = 0; q0 < n_quads; q0 += run)
        for (int r = 0; r < n_rows; r += UNIT) {
            v128_t part[4];
            for (int i = 0; i < 4; i++) part[i] = wasm_i32x4_const_splat(0);
            size_t at = (size_t)q0 * (size_t)height + (size_t)r;
            _Pragma("clang loop unroll_count(2)") for (int q = q0; q < MIN(n_quads, q0 + run);
                                                       q++, at += (size_t)height) {
                v128_t w[4];
                Quad x = quad(sums, a->q + 4 * (size_t)q);
                decode(sums, w, codes + at, bits == 3 ? signs + at / 2 : NULL, bits);
                for (int i = 0; i < 4; i++) part[i] = step(sums, part[i], w[i], &x);
            }
            v128_t *s = sum[r / UNIT];
            for (int i = 0; i < 4; i++) s[i] = wasm_i32x4_add(s[i], total(sums, part[i]));
        }
    for (int r = 0; r < n_rows; r += UNIT)
        finish(y + r, sum[r / UNIT], row_scale + r, a->sum[0], a->scale[0], bits);
}

/* Adds n decoded tiles of 16 rows times the activations of n_t tokens to their sums in y. */
INLINE void add_tiles(enum Sums sums, float *y, size_t ldy, const int8_t *w, int n, const int8_t *a,
                      size_t ld, const int n_t, int bits, int first) {
    const int run = run_of(bits);
    for (int q0 = 0; q0 < n; q0 += run, first = 0) {
        v128_t part[4 * TILE];
        for (int i = 0; i < 4 * n_t; i++) part[i] = wasm_i32x4_const_splat(0);
        for (int q = q0; q < MIN(n, q0 + run); q++) {
            v128_t v[4];
            for (int i = 0; i < 4; i++) v[i] = wasm_v128_load(w + 64 * q + 16 * i);
            for (int t = 0; t < n_t; t++) {
                Quad x = quad(sums, a + (size_t)t * ld + 4 * q);
                for (int i = 0; i < 4; i++) part[4 * t + i] = step(sums, part[4 * t + i], v[i], &x);
            }
        }
        for (int i = 0; i < 4 * n_t; i++) {
            float *to = y + (size_t)(i / 4) * ldy + 4 * (i % 4);
            v128_t s = total(sums, part[i]);
            if (!first) s = wasm_i32x4_add(s, wasm_v128_load(to));
            wasm_v128_store(to, s);
        }
    }
}

/* Tokens by tiles over chunks of decoded tiles; until the end the sums lie in y as integers. */
INLINE void many_tokens(enum Sums sums, float *y, size_t ldy, const uint8_t *codes,
                        const uint8_t *signs, int height, const uint16_t *row_scale, int n_quads,
                        const A8 *a, int n_tokens, int bits) {
    int8_t w[MAX_CHUNK * 64];
    for (int q0 = 0; q0 < n_quads; q0 += chunk_of(bits)) {
        int n = MIN(chunk_of(bits), n_quads - q0), t = 0;
        for (int q = 0; q < n; q++) {
            v128_t v[4];
            size_t at = (size_t)(q0 + q) * (size_t)height;
            decode(sums, v, codes + at, bits == 3 ? signs + at / 2 : NULL, bits);
            for (int i = 0; i < 4; i++) wasm_v128_store(w + 64 * q + 16 * i, v[i]);
        }
        const int8_t *x = a->q + 4 * (size_t)q0;
        for (; t + TILE <= n_tokens; t += TILE)
            add_tiles(sums, y + (size_t)t * ldy, ldy, w, n, x + (size_t)t * a->ld, a->ld, TILE,
                      bits, q0 == 0);
        for (; t < n_tokens; t++)
            add_tiles(sums, y + (size_t)t * ldy, ldy, w, n, x + (size_t)t * a->ld, a->ld, 1, bits,
                      q0 == 0);
    }
    for (int t = 0; t < n_tokens; t++) {
        float *to = y + (size_t)t * ldy;
        v128_t s[4];
        for (int i = 0; i < 4; i++) s[i] = wasm_v128_load(to + 4 * i);
        finish(to, s, row_scale, a->sum[(size_t)t * (a->ld / 16)],
               a->scale[(size_t)t * (a->ld / 32)], bits);
    }
}

#define MUL_T(name, sums, bits)                                                                    \
    static void name MUL_T_ARGS {                                                                  \
        if (n_tokens == 1) {                                                                       \
            one_token(sums, y, codes, signs, height, n_rows, row_scale, n_quads, a, bits);         \
            return;                                                                                \
        }                                                                                          \
        for (int r = 0; r < n_rows; r += UNIT)                                                     \
            many_tokens(sums, y + r, ldy, codes + r, bits == 3 ? signs + r / 2 : NULL, height,     \
                        row_scale + r, n_quads, a, n_tokens, bits);                                \
    }
#ifdef __wasm_relaxed_simd__
MUL_T(mul_t2, DOT32, 2)
MUL_T(mul_t3, DOT32, 3)
MUL_T(mul_t2_narrow, DOT16, 2)
MUL_T(mul_t3_narrow, DOT16, 3)
#else
MUL_T(mul_t2, PAIRS, 2)
MUL_T(mul_t3, PAIRS, 3)
#endif

/* ---- rotation ---- */

/* x[j..j+3] * scale with the signs of trellis23.h; `at` is seed + j * 0x9e3779b9 and so on. */
INLINE v128_t with_signs(v128_t x, v128_t at, float scale) {
    at = wasm_v128_xor(at, wasm_u32x4_shr(at, 16));
    at = wasm_i32x4_mul(at, wasm_i32x4_const_splat(0x7feb352d));
    at = wasm_v128_xor(at, wasm_u32x4_shr(at, 15));
    at =
        wasm_i32x4_mul(at, wasm_i32x4_const_splat((int32_t)0x846ca68bu)); /* the top bit is final */
    v128_t minus = wasm_v128_and(at, wasm_i32x4_const_splat((int32_t)0x80000000u));
    return wasm_v128_xor(wasm_f32x4_mul(x, wasm_f32x4_splat(scale)), minus);
}

INLINE v128_t sign_index(uint32_t seed) {
    const uint32_t m = 0x9e3779b9u;
    return wasm_i32x4_make((int32_t)seed, (int32_t)(seed + m), (int32_t)(seed + 2 * m),
                           (int32_t)(seed + 3 * m));
}

/* Sums and differences of v[k] and v[k + step], for step 1, 2, .. n / 2. */
INLINE void butterflies(v128_t *v, const int n) {
    for (int h = 1; h < n; h *= 2)
        for (int k = 0; k < n; k++)
            if (!(k & h)) {
                v128_t a = v[k], b = v[k + h];
                v[k] = wasm_f32x4_add(a, b);
                v[k + h] = wasm_f32x4_sub(a, b);
            }
}

/* The same between the values of one vector: sum, or first less second in the second's place.
 * Products by 1 and -1 round nothing. */
INLINE v128_t butterflies_within(v128_t x) {
    x = wasm_f32x4_add(wasm_i32x4_shuffle(x, x, 1, 0, 3, 2),
                       wasm_f32x4_mul(x, wasm_f32x4_const(1, -1, 1, -1)));
    return wasm_f32x4_add(wasm_i32x4_shuffle(x, x, 2, 3, 0, 1),
                          wasm_f32x4_mul(x, wasm_f32x4_const(1, 1, -1, -1)));
}

/* Of values `step` (a multiple of 4), 2 step, .. n_v / 2 * step apart. */
INLINE void pass(float *x, size_t n, size_t by, const int n_v) {
    for (size_t i = 0; i < n; i += (size_t)n_v * by)
        for (size_t j = i; j < i + by; j += 4) {
            v128_t v[8];
            for (int k = 0; k < n_v; k++) v[k] = wasm_v128_load(x + j + (size_t)k * by);
            butterflies(v, n_v);
            for (int k = 0; k < n_v; k++) wasm_v128_store(x + j + (size_t)k * by, v[k]);
        }
}

/* Of values step, 2 step, .. end / 2 apart, three distances at a time. */
static void passes(float *x, size_t n, size_t by, size_t end) {
    for (; 8 * by <= end; by *= 8) pass(x, n, by, 8);
    if (4 * by == end) pass(x, n, by, 4);
    if (2 * by == end) pass(x, n, by, 2);
}

static void rotate(float *dst, const float *x, int count, uint32_t seed) {
    size_t n = (size_t)count, b = n & (~n + 1), m = n / b;
    float scale = (float)(1 / sqrt((double)b)), scale2 = (float)(1 / sqrt((double)b / 8));
    const v128_t ahead = wasm_i32x4_splat((int32_t)(4 * 0x9e3779b9u));
    v128_t at = sign_index(seed);
    for (size_t i = 0; i < n; i += 32) { /* distances 1 to 16 */
        v128_t v[8];
        for (int k = 0; k < 8; k++) {
            v[k] = with_signs(wasm_v128_load(x + i + 4 * (size_t)k), at, scale);
            v[k] = butterflies_within(v[k]);
            at = wasm_i32x4_add(at, ahead);
        }
        butterflies(v, 8);
        for (int k = 0; k < 8; k++) wasm_v128_store(dst + i + 4 * (size_t)k, v[k]);
    }
    passes(dst, n, 32, b);
    if (m == 1) return;
    at = sign_index(seed + 1);
    for (size_t i = 0; i < n; i += 4, at = wasm_i32x4_add(at, ahead))
        wasm_v128_store(dst + i, with_signs(wasm_v128_load(dst + i), at, scale2));
    passes(dst, n, 8 * m, n);
}

static void quantize_t(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    const v128_t size = wasm_i32x4_const_splat(0x7fffffff), byte = wasm_i32x4_const_splat(255),
                 magic = wasm_f32x4_const_splat(KERN_ROUND);
    v128_t top = wasm_i32x4_const_splat(0), all = top; /* NaN is above infinity */
    for (int i = 0; i < n; i += 4)
        top = wasm_u32x4_max(top, wasm_v128_and(wasm_v128_load(x + i), size));
    uint32_t bits = top_u32(top);
    float amax;
    memcpy(&amax, &bits, 4);
    int finite = bits < 0x7f800000;
    v128_t inv = wasm_f32x4_splat(finite && amax > 0 ? MIN(127.0f / amax, 0x1.fffffep127f) : 0);
    *scale = finite ? amax / 127.0f : NAN;
    for (int k = 0; k < n / 4; k += 4) {
        v128_t c[4];
        for (int i = 0; i < 4; i++) {
            v128_t f = wasm_v128_load(x + (size_t)i * (size_t)(n / 4) + k);
            f = wasm_f32x4_add(wasm_f32x4_mul(f, inv), magic);
            c[i] = finite ? wasm_i32x4_sub(f, magic) : wasm_i32x4_const_splat(0);
            all = wasm_i32x4_add(all, c[i]);
        }
        c[0] =
            wasm_v128_or(wasm_v128_and(c[0], byte), wasm_i32x4_shl(wasm_v128_and(c[1], byte), 8));
        c[2] =
            wasm_v128_or(wasm_i32x4_shl(wasm_v128_and(c[2], byte), 16), wasm_i32x4_shl(c[3], 24));
        wasm_v128_store(q + 4 * (size_t)k, wasm_v128_or(c[0], c[2]));
    }
    *sum = sum_i32(all);
}

void kern_trellis_simd128(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
#ifdef __wasm_relaxed_simd__
    if (old_x86()) {
        k->mul_t2 = mul_t2_narrow;
        k->mul_t3 = mul_t3_narrow;
    }
#endif
    k->rotate = rotate;
    k->quantize_t = quantize_t;
}
