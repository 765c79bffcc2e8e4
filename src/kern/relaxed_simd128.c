/* relaxed_simd128.c - int8 products with the byte dots of relaxed SIMD: all four inputs of each of
 * 4 rows at once. Their second operand must lie within 0..127, which codes do; of q8 it is the
 * activations' size that does, and their signs go to the weights. Exact as everything here, and so
 * the two forms of the sums give the same: in 32 bits, or (narrow) in 16 where those are enough,
 * which old x86 is faster with. */
#ifdef __wasm_relaxed_simd__
#include "kern.h"

#include "codec.h"
#include "simd128.h"

enum { TILE = 4 }; /* tokens that share the unpacked weights */
enum Type { Q4, Q8, S2, S3, KQ };
static const size_t group_bytes[] = { Q4X_BYTES, Q8X_BYTES, 144, 208, sizeof(KqGroup) };

/* The activations of one group: those of token t at q + t * ld. Of q8 their sizes, and at minus +
 * t * ld -1 for those below 0. */
typedef struct Group {
    const int8_t *q, *minus;
    size_t ld;
} Group;

/* ---- sums ---- */

/* Whether 32 products of a type fit 16 bits by pairs: at most 16 * 15 * 127. */
INLINE int fits16(enum Type type) {
    return type == Q4 || type == S2 || type == S3;
}

INLINE v128_t step(enum Type type, int narrow, v128_t s, v128_t a, v128_t w) {
    if (!narrow) return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(a, w, s);
    v128_t pairs = wasm_i16x8_relaxed_dot_i8x16_i7x16(a, w);
    return fits16(type) ? wasm_i16x8_add(s, pairs)
                        : wasm_i32x4_add(s, wasm_i32x4_extadd_pairwise_i16x8(pairs));
}

INLINE v128_t total(enum Type type, int narrow, v128_t s) {
    return narrow && fits16(type) ? wasm_i32x4_extadd_pairwise_i16x8(s) : s;
}

/* Codes of rows 4j..4j+3 and quad v of the group at p. */
INLINE v128_t codes(enum Type type, const uint8_t *p, int j, int v) {
    p += 16 * j;
    if (type == KQ) return wasm_v128_load(p + offsetof(KqGroup, code) + 64 * v);
    if (type == Q8) return wasm_v128_load(p + 32 + 64 * v);
    if (type == Q4) {
        v128_t x = wasm_v128_load(p + 32 + 64 * (v / 2));
        if (v & 1) x = wasm_u16x8_shr(x, 4);
        return wasm_v128_and(x, wasm_i8x16_const_splat(15));
    }
    v128_t x = wasm_v128_load(p + 16 + 64 * (v / 4));
    if (v % 4) x = wasm_u16x8_shr(x, (uint32_t)(2 * (v % 4)));
    x = wasm_v128_and(x, wasm_i8x16_const_splat(3));
    if (type == S3) {
        v128_t top = wasm_v128_load(p + 144);
        if (v < 2) top = wasm_i16x8_shl(top, (uint32_t)(2 - v));
        if (v > 2) top = wasm_u16x8_shr(top, (uint32_t)(v - 2));
        x = wasm_v128_or(x, wasm_v128_and(top, wasm_i8x16_const_splat(4)));
    }
    return x;
}

/* s[t]: sums of quads v0..v1-1 for rows 4j..+3 and n tokens. */
INLINE void dots(enum Type type, int narrow, v128_t *s, const int n, const uint8_t *p, int j,
                 int v0, int v1, const Group *g) {
    for (int t = 0; t < n; t++) s[t] = wasm_i32x4_const_splat(0);
    UNROLL for (int v = v0; v < v1; v++) {
        v128_t w = codes(type, p, j, v);
        for (int t = 0; t < n; t++) {
            size_t at = (size_t)t * g->ld + 4 * (size_t)v;
            v128_t x = wasm_v128_load32_splat(g->q + at), y = w;
            if (type == Q8) y = wasm_v128_xor(w, wasm_v128_load32_splat(g->minus + at));
            s[t] = type == Q8 ? step(type, narrow, s[t], y, x) : step(type, narrow, s[t], x, w);
        }
    }
    for (int t = 0; t < n; t++) s[t] = total(type, narrow, s[t]);
}

INLINE v128_t plus(enum Type type, int narrow, v128_t a, v128_t b) {
    __asm__("" : "+r"(b)); /* compilers like chains better than trees, which are faster here */
    return narrow && fits16(type) ? wasm_i16x8_add(a, b) : wasm_i32x4_add(a, b);
}

/* s / 4^k of a multiple of that. */
INLINE v128_t quarter(int narrow, v128_t s, uint32_t k) {
    return narrow ? wasm_i16x8_shr(s, 2 * k) : wasm_i32x4_shr(s, 2 * k);
}

/* The whole group for rows 4j..+3 and one token, x[v] being the activations of quad v: the sums of
 * quads v and v + 4 apart, so that no operation waits for seven others. Of s2 codes of v % 4 = 1
 * and 2 stay where they are, times 4 and 16: at most 2 * 2 * 127 * 48. */
INLINE v128_t dot_one(enum Type type, int narrow, const uint8_t *p, int j, const v128_t x[8],
                      const v128_t minus[8]) {
    v128_t s[4];
    UNROLL for (int v = 0; v < 8; v++) {
        v128_t w, zero = wasm_i32x4_const_splat(0);
        int k = v % 4;
        if (type == S2 && k % 3)
            w = wasm_v128_and(wasm_v128_load(p + 16 + 64 * (v / 4) + 16 * j),
                              wasm_i8x16_splat((int8_t)(3 << 2 * k)));
        else
            w = codes(type, p, j, v);
        v128_t so_far = v < 4 ? zero : s[k];
        s[k] = type == Q8 ? step(type, narrow, so_far, wasm_v128_xor(w, minus[v]), x[v])
                          : step(type, narrow, so_far, x[v], w);
    }
    if (type == S2) {
        s[1] = quarter(narrow, s[1], 1);
        s[2] = quarter(narrow, s[2], 2);
    }
    s[0] = plus(type, narrow, s[0], s[1]);
    s[2] = plus(type, narrow, s[2], s[3]);
    return total(type, narrow, plus(type, narrow, s[0], s[2]));
}

/* Sums of a whole group: for one token of all 16 rows, else of rows 4j..+3. */
INLINE void group_dots(enum Type type, int narrow, v128_t *s, const int n, const uint8_t *p,
                       const int j, const Group *g) {
    if (n > 1) {
        dots(type, narrow, s, n, p, j, 0, 8, g);
        return;
    }
    v128_t x[8], minus[8];
    for (int v = 0; v < 8; v++) {
        x[v] = wasm_v128_load32_splat(g->q + 4 * v);
        if (type == Q8) minus[v] = wasm_v128_load32_splat(g->minus + 4 * v);
    }
    UNROLL for (int i = 0; i < 4; i++) s[i] = dot_one(type, narrow, p, j + i, x, minus);
}

/* ---- the parts of a group that are not sums ---- */

INLINE v128_t plus_times(v128_t acc, v128_t scale, v128_t sum) {
    return wasm_f32x4_add(acc, wasm_f32x4_mul(scale, wasm_f32x4_convert_i32x4(sum)));
}

/* Sizes and signs of q8's activations; the products of complements, -w - 1, lack what `correct`
 * gets: the sum of the sizes of those below 0. */
typedef struct Signs {
    int8_t size[TILE * 32], minus[TILE * 32];
    v128_t correct[TILE];
} Signs;

INLINE void split_signs(Signs *to, const int8_t *q, size_t ld, const int n) {
    for (int t = 0; t < n; t++, q += ld) {
        v128_t below[2];
        for (int h = 0; h < 2; h++) {
            v128_t a = wasm_v128_load(q + 16 * h), size = wasm_i8x16_abs(a);
            v128_t minus = wasm_i8x16_lt(a, wasm_i8x16_const_splat(0));
            wasm_v128_store(to->size + 32 * t + 16 * h, size);
            wasm_v128_store(to->minus + 32 * t + 16 * h, minus);
            below[h] = wasm_v128_and(size, minus);
        }
        v128_t c = wasm_i32x4_extadd_pairwise_i16x8(
            wasm_u16x8_extadd_pairwise_u8x16(wasm_i8x16_add(below[0], below[1])));
        c = wasm_i32x4_add(c, wasm_i32x4_shuffle(c, c, 2, 3, 0, 1));
        to->correct[t] = wasm_i32x4_add(c, wasm_i32x4_shuffle(c, c, 1, 0, 3, 2));
    }
}

INLINE void group_q(enum Type type, int narrow, v128_t *acc, const int n, const uint8_t *p,
                    const int8_t *q, size_t ld, const int32_t *sum, const float *scale) {
    const int nj = n == 1 ? 4 : 1;
    Group g = { q, NULL, ld };
    Signs signs;
    if (type == Q8) {
        split_signs(&signs, q, ld, n);
        g = (Group){ signs.size, signs.minus, 32 };
    }
    for (int j = 0; j < 4; j += nj) {
        v128_t s[TILE]; /* of tokens, or of one token's four row vectors */
        group_dots(type, narrow, s, n, p, j, &g);
        for (int i = 0; i < nj; i++) {
            v128_t f = finite_halves(p + 8 * (j + i));
            for (int t = 0; t < n; t++) {
                const int32_t *a = sum + (size_t)t * (ld / 16);
                v128_t dot =
                    type == Q8 ? wasm_i32x4_add(s[i * n + t], signs.correct[t])
                               : wasm_i32x4_sub(s[i * n + t], wasm_i32x4_splat(8 * (a[0] + a[1])));
                v128_t by = wasm_f32x4_mul(f, wasm_f32x4_splat(scale[(size_t)t * (ld / 32)]));
                acc[4 * t + j + i] = plus_times(acc[4 * t + j + i], by, dot);
            }
        }
    }
}

/* (c + 4) * (8 s + z' sum) as one product of pairs: 8 (c + 4) with s, z' (c + 4) with sum; s is at
 * most 7 * 127 * 32 and the sum 127 * 32, so all fit 16 bits. */
INLINE void group_s(enum Type type, int narrow, v128_t *acc, const int n, const uint8_t *p,
                    const int8_t *q, size_t ld, const int32_t *sum, const float *scale) {
    const int nj = n == 1 ? 4 : 1;
    const Group g = { q, NULL, ld };
    v128_t cz = wasm_v128_load(p), by[4];
    v128_t c =
        wasm_i8x16_add(wasm_v128_and(cz, wasm_i8x16_const_splat(15)), wasm_i8x16_const_splat(4));
    v128_t z = wasm_i8x16_sub(wasm_v128_and(wasm_u16x8_shr(cz, 4), wasm_i8x16_const_splat(15)),
                              wasm_i8x16_splat(type == S2 ? 20 : 36));
    for (int h = 0; h < 2; h++) {
        v128_t c16 = h ? wasm_i16x8_extend_high_i8x16(c) : wasm_i16x8_extend_low_i8x16(c);
        v128_t z16 = h ? wasm_i16x8_extend_high_i8x16(z) : wasm_i16x8_extend_low_i8x16(z);
        z16 = wasm_i16x8_mul(z16, c16);
        c16 = wasm_i16x8_shl(c16, 3);
        by[2 * h] = wasm_i16x8_shuffle(z16, c16, 0, 8, 1, 9, 2, 10, 3, 11);
        by[2 * h + 1] = wasm_i16x8_shuffle(z16, c16, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int j = 0; j < 4; j += nj) {
        v128_t s[TILE]; /* of tokens, or of one token's four row vectors */
        group_dots(type, narrow, s, n, p, j, &g);
        for (int i = 0; i < nj; i++)
            for (int t = 0; t < n; t++) {
                const int32_t *a = sum + (size_t)t * (ld / 16);
                v128_t both = wasm_v128_or(wasm_i32x4_shl(s[i * n + t], 16),
                                           wasm_i32x4_splat((a[0] + a[1]) & 0xffff));
                acc[4 * t + j + i] =
                    plus_times(acc[4 * t + j + i], wasm_f32x4_splat(scale[(size_t)t * (ld / 32)]),
                               wasm_i32x4_dot_i16x8(both, by[j + i]));
            }
    }
}

INLINE void group_kq(int narrow, v128_t *acc, const int n, const uint8_t *p, const int8_t *q,
                     size_t ld, const int32_t *sum, const float *scale) {
    const KqGroup *k = (const KqGroup *)p;
    const Group g = { q, NULL, ld };
    for (int j = 0; j < 4; j++) {
        v128_t s0[TILE], s1[TILE];
        dots(KQ, narrow, s0, n, p, j, 0, 4, &g);
        dots(KQ, narrow, s1, n, p, j, 4, 8, &g);
        for (int t = 0; t < n; t++) {
            size_t at = (size_t)t * (ld / 32);
            acc[4 * t + j] = kq_add(acc[4 * t + j], k, j, s0[t], s1[t], sum + 2 * at, scale[at]);
        }
    }
}

/* ---- row blocks ---- */

/* All groups of one row block for n <= TILE tokens starting at t0. */
INLINE void tile(enum Type type, int narrow, float *y, size_t ldy, const uint8_t *block,
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
        if (type == KQ) group_kq(narrow, acc, n, block, q, a->ld, sum, scale);
        if (type == S2 || type == S3) group_s(type, narrow, acc, n, block, q, a->ld, sum, scale);
        if (type == Q4 || type == Q8) group_q(type, narrow, acc, n, block, q, a->ld, sum, scale);
    }
    for (int i = 0; i < 4 * n; i++) {
        if (type == S2 || type == S3) {
            v128_t by = half_floats(row_scale + 4 * (i % 4));
            acc[i] = wasm_f32x4_mul(acc[i], wasm_f32x4_mul(by, wasm_f32x4_const_splat(0.125f)));
        }
        wasm_v128_store(y + (size_t)(i / 4) * ldy + 4 * (i % 4), acc[i]);
    }
}

#define MUL(name, type, narrow)                                                                    \
    static void mul_##name MUL_ARGS {                                                              \
        int t = 0;                                                                                 \
        if ((type == Q4 || type == Q8) && !finite_scales(block, group_bytes[type], n_groups)) {    \
            Kern k;                                                                                \
            kern_scalar(&k);                                                                       \
            (type == Q4 ? k.mul_q4 : k.mul_q8)(y, ldy, block, row_scale, n_groups, a, n_tokens);   \
            return;                                                                                \
        }                                                                                          \
        for (; t + TILE <= n_tokens; t += TILE)                                                    \
            tile(type, narrow, y, ldy, block, row_scale, n_groups, a, t, TILE);                    \
        for (; t < n_tokens; t++) tile(type, narrow, y, ldy, block, row_scale, n_groups, a, t, 1); \
    }
MUL(q4, Q4, 0)
MUL(q8, Q8, 0)
MUL(s2, S2, 0)
MUL(s3, S3, 0)
MUL(kq, KQ, 0)
MUL(q4_narrow, Q4, 1)
MUL(q8_narrow, Q8, 1)
MUL(s2_narrow, S2, 1)
MUL(s3_narrow, S3, 1)
MUL(kq_narrow, KQ, 1)

void kern_relaxed(Kern *k) {
    int narrow = old_x86();
    k->mul_q4 = narrow ? mul_q4_narrow : mul_q4;
    k->mul_q8 = narrow ? mul_q8_narrow : mul_q8;
    k->mul_s2 = narrow ? mul_s2_narrow : mul_s2;
    k->mul_s3 = narrow ? mul_s3_narrow : mul_s3;
    k->mul_kq = narrow ? mul_kq_narrow : mul_kq;
}
#endif
