/* trellis_avx512.h - products with t2 and t3 weights with AVX-512, for trellis_avx512vnni.c and
 * trellis_avx512bitalg.c. They differ in the decoding of a tile: with VBMI one permutation makes
 * the states of 16 rows in order, and BITALG counts bits; else dword j of vector i belongs to row
 * 4j + i, as in trellis_avx2.c. One token decodes and multiplies at once; more share tiles that are
 * decoded to bytes. */
#ifndef TRELLIS_AVX512_H
#define TRELLIS_AVX512_H
#include "kern.h"

#include <immintrin.h>

#include "codec.h"
#include "kv23.h"

#define INLINE  static inline __attribute__((always_inline))
#define KEEP(x) __asm__("" : "+v"(x))

enum {
    UNIT = 64,  /* rows decoded together: 4 vectors */
    CHUNK = 64, /* quads that many tokens share: 16 KiB of bytes */
    TILE = 4    /* tokens that share a vector of weights */
};

INLINE __m512i load(const void *p) {
    return _mm512_loadu_si512(p);
}

/* ---- decode: p (t2), or 2p and with the sign 17 - 2p (t3) ---- */

INLINE __m512i mix(__m512i state) {
    __m512i x = _mm512_mullo_epi32(state, _mm512_set1_epi32((int)T4_MUL));
    return _mm512_add_epi32(x, _mm512_srli_epi32(x, 13));
}

INLINE __m512i with_signs(__m512i p, __mmask64 minus) {
    p = _mm512_add_epi8(p, p);
    return _mm512_mask_sub_epi8(p, minus, _mm512_set1_epi8(17), p);
}

#if defined(__AVX512VBMI__) && defined(__AVX512BITALG__)
#define IN_ORDER 1
/* One tile of 64 rows; vector i has rows 16i..16i+15. */
INLINE void decode(__m512i w[4], const uint8_t *codes, const uint8_t *signs, int bits) {
    const __m512i pairs =
        _mm512_set_epi32(0x0000100f, 0x00000f0e, 0x00000e0d, 0x00000d0c, 0x00000c0b, 0x00000b0a,
                         0x00000a09, 0x00000908, 0x00000807, 0x00000706, 0x00000605, 0x00000504,
                         0x00000403, 0x00000302, 0x00000201, 0x00000100);
    const __mmask64 two = 0x3333333333333333u;
    __m512i lo = load(codes - 1), hi = load(codes);
    KEEP(lo); /* one load across two cache lines, not three as operands of vpermb */
    for (int i = 0; i < 4; i++) { /* the last rows begin at byte 47 of hi */
        __m512i at = _mm512_add_epi8(pairs, _mm512_set1_epi8((char)(i < 3 ? 16 * i : 47)));
        __m512i x = mix(_mm512_maskz_permutexvar_epi8(two, at, i < 3 ? lo : hi));
        w[i] = _mm512_popcnt_epi8(x);
        if (bits == 3) {
            uint64_t minus;
            __builtin_memcpy(&minus, signs + 8 * i, 8);
            w[i] = with_signs(w[i], _cvtu64_mask64(minus));
        }
    }
}
#else
#define IN_ORDER 0
INLINE __m512i count(__m512i x) {
    const __m512i ones =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_set1_epi8(15);
    __m512i a = _mm512_shuffle_epi8(ones, _mm512_and_si512(x, low));
    __m512i b = _mm512_shuffle_epi8(ones, _mm512_and_si512(_mm512_srli_epi16(x, 4), low));
    return _mm512_add_epi8(a, b);
}

/* One tile of 64 rows; vector i has rows i, 4 + i, .. 60 + i. */
INLINE void decode(__m512i w[4], const uint8_t *codes, const uint8_t *signs, int bits) {
    const __m512i low = _mm512_set1_epi32(0xffff);
    __m512i even = load(codes - 1), odd = load(codes), spread[2];
    w[0] = _mm512_and_si512(even, low);
    w[1] = _mm512_and_si512(odd, low);
    w[2] = _mm512_srli_epi32(even, 16);
    w[3] = _mm512_srli_epi32(odd, 16);
    if (bits == 3) { /* rows 4j, 4j + 1 have byte 0 of word j, the next two byte 1 */
        const __m512i first = _mm512_broadcast_i32x4(
            _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
        __m512i s = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)signs));
        spread[0] = _mm512_shuffle_epi8(s, first);
        spread[1] = _mm512_shuffle_epi8(s, _mm512_add_epi8(first, _mm512_set1_epi8(1)));
    }
    for (int i = 0; i < 4; i++) {
        const __m512i bit = _mm512_set1_epi32(i & 1 ? (int)0x80402010u : 0x08040201);
        w[i] = count(mix(w[i]));
        if (bits == 3) w[i] = with_signs(w[i], _mm512_test_epi8_mask(spread[i / 2], bit));
    }
}
#endif

/* ---- sums ---- */

INLINE __m512i quad(const int8_t *a) { /* 4 activations, for every row */
    return _mm512_set1_epi32((int)load_u32(a));
}

/* Rows of 64 sums in order. */
INLINE void in_order(__m512i s[4]) {
    __m512i r[4];
    for (int i = 0; i < 2; i++) { /* 128 bits k of r[i]: rows 16k + 4i.. */
        __m512i a = i ? _mm512_unpackhi_epi32(s[0], s[1]) : _mm512_unpacklo_epi32(s[0], s[1]);
        __m512i b = i ? _mm512_unpackhi_epi32(s[2], s[3]) : _mm512_unpacklo_epi32(s[2], s[3]);
        r[2 * i] = _mm512_unpacklo_epi64(a, b);
        r[2 * i + 1] = _mm512_unpackhi_epi64(a, b);
    }
    __m512i a = _mm512_shuffle_i32x4(r[0], r[1], 0x88), b = _mm512_shuffle_i32x4(r[2], r[3], 0x88);
    __m512i c = _mm512_shuffle_i32x4(r[0], r[1], 0xdd), d = _mm512_shuffle_i32x4(r[2], r[3], 0xdd);
    s[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    s[1] = _mm512_shuffle_i32x4(c, d, 0x88);
    s[2] = _mm512_shuffle_i32x4(a, b, 0xdd);
    s[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* y of 64 rows from their sums: S = sum - 4 sum a (t2), 2 sum - 17 sum a (t3). */
INLINE void finish(float *y, const __m512i sum[4], const uint16_t *row_scale, int32_t a_sum,
                   float a_scale, int bits) {
    __m512i s[4] = { sum[0], sum[1], sum[2], sum[3] };
    if (!IN_ORDER) in_order(s);
    for (int i = 0; i < 4; i++) {
        __m512i x = bits == 2 ? s[i] : _mm512_add_epi32(s[i], s[i]);
        x = _mm512_sub_epi32(x, _mm512_set1_epi32((bits == 2 ? 4 : 17) * a_sum));
        __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row_scale + 16 * i)));
        if (bits == 3) d = _mm512_mul_ps(d, _mm512_set1_ps(0.5f));
        d = _mm512_mul_ps(_mm512_set1_ps(a_scale), d);
        _mm512_storeu_ps(y + 16 * i, _mm512_mul_ps(d, _mm512_cvtepi32_ps(x)));
    }
}

/* One token, one or two units of rows: weights come from memory once, and asking for them ahead,
 * across pages and into the next row block, gains a little. A prefetch never faults. */
INLINE void one_token(float *y, const uint8_t *codes, const uint8_t *signs, int height,
                      const int units, const uint16_t *row_scale, int n_quads, const A8 *a,
                      int bits) {
    enum { AHEAD = 4096 };
    __m512i sum[2][4];
    for (int i = 0; i < 4; i++) sum[0][i] = sum[1][i] = _mm512_setzero_si512();
    for (int q = 0; q < n_quads; q++, codes += height) {
        __m512i x = quad(a->q + 4 * (size_t)q);
        for (int u = 0; u < units; u++) {
            __m512i w[4];
            _mm_prefetch((const char *)((uintptr_t)codes + AHEAD + UNIT * (size_t)u), _MM_HINT_T0);
            decode(w, codes + UNIT * u, bits == 3 ? signs + UNIT / 2 * u : NULL, bits);
            for (int i = 0; i < 4; i++) sum[u][i] = _mm512_dpbusd_epi32(sum[u][i], w[i], x);
        }
        if (bits == 3) {
            _mm_prefetch((const char *)((uintptr_t)signs + AHEAD), _MM_HINT_T0);
            signs += height / 2;
        }
    }
    for (int u = 0; u < units; u++)
        finish(y + UNIT * u, sum[u], row_scale + UNIT * u, a->sum[0], a->scale[0], bits);
}

/* Adds n decoded tiles of 64 rows times the activations of n_t tokens to their sums in y. */
INLINE void add_tiles(float *y, size_t ldy, const uint8_t *w, int n, const int8_t *a, size_t ld,
                      const int n_t, int first) {
    __m512i sum[4 * TILE];
    for (int t = 0; t < n_t; t++)
        for (int i = 0; i < 4; i++)
            sum[4 * t + i] = first ? _mm512_setzero_si512() : load(y + (size_t)t * ldy + 16 * i);
    for (int q = 0; q < n; q++, w += 256, a += 4) {
        __m512i v[4];
        for (int i = 0; i < 4; i++) v[i] = load(w + 64 * i);
        for (int t = 0; t < n_t; t++) {
            __m512i x = quad(a + (size_t)t * ld);
            for (int i = 0; i < 4; i++)
                sum[4 * t + i] = _mm512_dpbusd_epi32(sum[4 * t + i], v[i], x);
        }
    }
    for (int t = 0; t < n_t; t++)
        for (int i = 0; i < 4; i++)
            _mm512_storeu_si512(y + (size_t)t * ldy + 16 * i, sum[4 * t + i]);
}

/* Tokens by tiles of four over chunks of decoded tiles of 64 rows; until the end the sums lie in y
 * as integers. */
INLINE void many_tokens(float *y, size_t ldy, const uint8_t *codes, const uint8_t *signs,
                        int height, const uint16_t *row_scale, int n_quads, const A8 *a,
                        int n_tokens, int bits) {
    _Alignas(64) uint8_t w[CHUNK * 256];
    for (int q0 = 0; q0 < n_quads; q0 += CHUNK) {
        int n = MIN((int)CHUNK, n_quads - q0), t = 0, first = q0 == 0;
        for (int q = 0; q < n; q++) {
            __m512i v[4];
            size_t at = (size_t)(q0 + q) * (size_t)height;
            decode(v, codes + at, bits == 3 ? signs + at / 2 : NULL, bits);
            for (int i = 0; i < 4; i++) _mm512_store_si512(w + 256 * q + 64 * i, v[i]);
        }
#define TOKENS(n_t)                                                                                \
    add_tiles(y + (size_t)t * ldy, ldy, w, n, a->q + 4 * (size_t)q0 + (size_t)t * a->ld, a->ld,    \
              n_t, first)
        for (; t + TILE <= n_tokens; t += TILE) TOKENS(TILE);
        if (n_tokens - t == 1) TOKENS(1);
        if (n_tokens - t == 2) TOKENS(2);
        if (n_tokens - t == 3) TOKENS(3);
#undef TOKENS
    }
    for (int t = 0; t < n_tokens; t++) {
        float *to = y + (size_t)t * ldy;
        __m512i s[4] = { load(to), load(to + 16), load(to + 32), load(to + 48) };
        finish(to, s, row_scale, a->sum[(size_t)t * (a->ld / 16)],
               a->scale[(size_t)t * (a->ld / 32)], bits);
    }
}

#define MUL_T(name, bits)                                                                          \
    static void name MUL_T_ARGS {                                                                  \
        if (n_tokens == 1 && n_rows == UNIT) {                                                     \
            one_token(y, codes, signs, height, 1, row_scale, n_quads, a, bits);                    \
        } else if (n_tokens == 1) {                                                                \
            one_token(y, codes, signs, height, 2, row_scale, n_quads, a, bits);                    \
        } else {                                                                                   \
            for (int r = 0; r < n_rows; r += UNIT)                                                 \
                many_tokens(y + r, ldy, codes + r, bits == 3 ? signs + r / 2 : NULL, height,       \
                            row_scale + r, n_quads, a, n_tokens, bits);                            \
        }                                                                                          \
    }
MUL_T(mul_t2, 2)
MUL_T(mul_t3, 3)
#endif
