/* avx512vnni.c - the int8 products with one 512-bit vector for the 16 rows of a row block and
 * vpdpbusd, which adds four products of unsigned codes and signed activations to 32 bits; up to
 * TILE tokens share the unpacked weights. The float steps are those of kern.h. */
#include "kern.h"

#include <immintrin.h>

#include "codec.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 8, CHUNK = 64 }; /* tokens; groups whose activation sums are prepared at once */
enum Type { Q4, Q8, S2, S3, KQ };
static const size_t group_bytes[] = { Q4X_BYTES, Q8X_BYTES, 144, 208, sizeof(KqGroup) };

INLINE __m512i load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}

/* Codes, without sign, of inputs 4v..4v+3 of the group at p. */
INLINE __m512i codes(enum Type type, const uint8_t *p, int v) {
    if (type == Q4) {
        __m512i x = load(p + 32 + 64 * (v / 2));
        return _mm512_and_si512(v & 1 ? _mm512_srli_epi16(x, 4) : x, _mm512_set1_epi8(15));
    }
    if (type == Q8) /* code + 128 */
        return _mm512_xor_si512(load(p + 32 + 64 * v), _mm512_set1_epi8((char)0x80));
    if (type == KQ) return load(p + offsetof(KqGroup, code) + 64 * v);
    __m512i x = load(p + 16 + 64 * (v / 4));
    x = _mm512_and_si512(_mm512_srli_epi16(x, (unsigned)(2 * (v % 4))), _mm512_set1_epi8(3));
    if (type == S2) return x;
    __m512i top = load(p + 144); /* bit v goes to bit 2 */
    top = v < 2 ? _mm512_slli_epi16(top, (unsigned)(2 - v))
                : _mm512_srli_epi16(top, (unsigned)(v - 2));
    return _mm512_ternarylogic_epi32(x, top, _mm512_set1_epi8(4), 0xf8); /* x | (top & 4) */
}

INLINE __m512i dword(int32_t x) {
    return _mm512_set1_epi32(x);
}

/* What the group's activation sums contribute, as a dword for all rows: -8 * sum (Q4), -128 * sum
 * (Q8); the sum in the upper half (S2, S3); both sums as 16 bits (KQ). */
INLINE void prepare(enum Type type, int32_t *dst, const int32_t *sum, int n_groups) {
    for (int g = 0; g < n_groups; g++) {
        int32_t lo = sum[2 * g], hi = sum[2 * g + 1];
        if (type == Q4) dst[g] = -8 * (lo + hi);
        if (type == Q8) dst[g] = -128 * (lo + hi);
        if (type == S2 || type == S3) dst[g] = (int32_t)((uint32_t)(lo + hi) << 16);
        if (type == KQ) dst[g] = (int32_t)((uint32_t)(lo & 0xffff) | (uint32_t)hi << 16);
    }
}

INLINE __m512 times(__m512 a, __m512i b) {
    return _mm512_mul_ps(a, _mm512_cvtepi32_ps(b));
}

INLINE __m512 half_floats(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* s[t] += codes v0..v1-1 * activations of token t */
INLINE void dots(enum Type type, __m512i *s, int n, const uint8_t *p, int v0, int v1,
                 const int8_t *a, size_t ld) {
    __m512i odd = _mm512_setzero_si512(); /* one token alone is two chains of sums */
#pragma GCC unroll 8
    for (int v = v0; v < v1; v++) {
        __m512i w = codes(type, p, v);
        if (n == 1 && v & 1) {
            odd = _mm512_dpbusd_epi32(odd, w, dword((int)load_u32(a + 4 * v)));
            continue;
        }
        for (int t = 0; t < n; t++)
            s[t] = _mm512_dpbusd_epi32(s[t], w, dword((int)load_u32(a + (size_t)t * ld + 4 * v)));
    }
    if (n == 1) s[0] = _mm512_add_epi32(s[0], odd);
}

/* Adds one group to acc[t] of n tokens; token t's activations are at a + t * ld. */
INLINE void group(enum Type type, __m512 *acc, int n, const uint8_t *p, const int8_t *a, size_t ld,
                  const int32_t *prepared, const float *scale) {
    __m512i s[TILE];
    for (int t = 0; t < n; t++)
        s[t] = type == Q4 || type == Q8 ? dword(prepared[t * CHUNK]) : _mm512_setzero_si512();
    if (type == Q4 || type == Q8) {
        dots(type, s, n, p, 0, 8, a, ld);
        __m512 d = half_floats(p);
        for (int t = 0; t < n; t++) {
            __m512 f = _mm512_mul_ps(d, _mm512_set1_ps(scale[(size_t)t * (ld / 32)]));
            acc[t] = _mm512_add_ps(acc[t], times(f, s[t]));
        }
    } else if (type == KQ) {
        const KqGroup *g = (const KqGroup *)p;
        __m512i s1[TILE];
        for (int t = 0; t < n; t++) s1[t] = _mm512_setzero_si512();
        dots(type, s, n, p, 0, 4, a, ld);
        dots(type, s1, n, p, 4, 8, a, ld);
        __m512i mn = _mm512_loadu_si512(g->mn), sc = _mm512_loadu_si512(g->sc);
        __m512i sc0 = _mm512_srai_epi32(_mm512_slli_epi32(sc, 16), 16);
        __m512i sc1 = _mm512_srai_epi32(sc, 16);
        __m512 d = _mm512_loadu_ps(g->d), dm = _mm512_loadu_ps(g->dm);
        for (int t = 0; t < n; t++) {
            __m512i m = _mm512_madd_epi16(mn, dword(prepared[t * CHUNK]));
            __m512i x =
                _mm512_add_epi32(_mm512_mullo_epi32(sc0, s[t]), _mm512_mullo_epi32(sc1, s1[t]));
            __m512 as = _mm512_set1_ps(scale[(size_t)t * (ld / 32)]);
            __m512 f = times(_mm512_mul_ps(d, as), x);
            f = _mm512_sub_ps(f, times(_mm512_mul_ps(dm, as), m));
            acc[t] = _mm512_add_ps(acc[t], f);
        }
    } else {
        /* (c + 4) * G = 8 (c + 4) * dot + (c + 4) (z - 8 - 4 (L - 1)) * sum, a product of pairs of
         * 16 bits: |dot| <= 32 * 7 * 127 = 28448, |sum| <= 4064 */
        dots(type, s, n, p, 0, 8, a, ld);
        __m512i cz = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
        __m512i c = _mm512_add_epi32(_mm512_and_si512(cz, dword(15)), dword(4));
        __m512i z = _mm512_sub_epi32(_mm512_srli_epi32(cz, 4), dword(type == S2 ? 20 : 36));
        z = _mm512_slli_epi32(_mm512_mullo_epi16(c, z), 16); /* drops the upper half */
        c = _mm512_or_si512(_mm512_slli_epi32(c, 3), z);
        for (int t = 0; t < n; t++) {
            __m512i x = _mm512_ternarylogic_epi32(s[t], dword(0xffff), dword(prepared[t * CHUNK]),
                                                  0xea); /* (dot & 0xffff) | sum << 16 */
            x = _mm512_madd_epi16(c, x);
            __m512 as = _mm512_set1_ps(scale[(size_t)t * (ld / 32)]);
            acc[t] = _mm512_add_ps(acc[t], times(as, x));
        }
    }
}

/* With one token the weights come from memory once: asking for them ahead, across pages and into
 * the next row block, gains up to a third. A prefetch never faults. */
INLINE void prefetch(const uint8_t *p, size_t n_bytes) {
    enum { AHEAD = 2048 };
    for (size_t i = 0; i < n_bytes; i += 64)
        _mm_prefetch((const char *)((uintptr_t)p + AHEAD + i), _MM_HINT_T0);
}

/* All groups of one row block for n <= TILE tokens starting at t0. */
INLINE void tile(enum Type type, float *y, size_t ldy, const uint8_t *block,
                 const uint16_t *row_scale, int n_groups, const A8 *a, int t0, const int n) {
    const int8_t *q = a->q + (size_t)t0 * a->ld;
    const float *scale = a->scale + (size_t)t0 * (a->ld / 32);
    const int32_t *sum = a->sum + (size_t)t0 * (a->ld / 16);
    int32_t prepared[TILE * CHUNK];
    __m512 acc[TILE];
    y += (size_t)t0 * ldy;
    for (int t = 0; t < n; t++)
        acc[t] = type == KQ ? _mm512_loadu_ps(y + (size_t)t * ldy) : _mm512_setzero_ps();
    for (int g0 = 0; g0 < n_groups; g0 += CHUNK) {
        int g1 = MIN(n_groups, g0 + CHUNK);
        for (int t = 0; t < n; t++)
            prepare(type, prepared + t * CHUNK, sum + (size_t)t * (a->ld / 16) + 2 * g0, g1 - g0);
        for (int g = g0; g < g1; g++) {
            const uint8_t *p = block + (size_t)g * group_bytes[type];
            if (n == 1) prefetch(p, group_bytes[type]);
            group(type, acc, n, p, q + 32 * (size_t)g, a->ld, prepared + g - g0, scale + g);
        }
    }
    for (int t = 0; t < n; t++) {
        if (type == S2 || type == S3)
            acc[t] = _mm512_mul_ps(acc[t],
                                   _mm512_mul_ps(half_floats(row_scale), _mm512_set1_ps(0.125f)));
        _mm512_storeu_ps(y + (size_t)t * ldy, acc[t]);
    }
}

#define MUL(name, type)                                                                            \
    static void mul_##name##_avx512vnni(float *y, size_t ldy, const uint8_t *block,                \
                                        const uint16_t *row_scale, int n_groups, const A8 *a,      \
                                        int n_tokens) {                                            \
        int t = 0;                                                                                 \
        for (; t + 8 <= n_tokens; t += 8) tile(type, y, ldy, block, row_scale, n_groups, a, t, 8); \
        if (t + 4 <= n_tokens) {                                                                   \
            tile(type, y, ldy, block, row_scale, n_groups, a, t, 4);                               \
            t += 4;                                                                                \
        }                                                                                          \
        if (t + 2 <= n_tokens) {                                                                   \
            tile(type, y, ldy, block, row_scale, n_groups, a, t, 2);                               \
            t += 2;                                                                                \
        }                                                                                          \
        if (t < n_tokens) tile(type, y, ldy, block, row_scale, n_groups, a, t, 1);                 \
    }
MUL(q4, Q4)
MUL(q8, Q8)
MUL(s2, S2)
MUL(s3, S3)
MUL(kq, KQ)

void kern_avx512vnni(Kern *k) {
    k->mul_q4 = mul_q4_avx512vnni;
    k->mul_q8 = mul_q8_avx512vnni;
    k->mul_s2 = mul_s2_avx512vnni;
    k->mul_s3 = mul_s3_avx512vnni;
    k->mul_kq = mul_kq_avx512vnni;
}
