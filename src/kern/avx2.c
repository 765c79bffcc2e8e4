/* avx2.c - the int8 products with 256-bit vectors: 8 rows at a time, up to TILE tokens share the
 * unpacked weights. Products of two bytes are summed in 16 bits where that cannot overflow (the
 * bound stands at each case), then in 32; the float steps are those of kern.h. */
#include "kern.h"

#include <immintrin.h>
#include <string.h>

#include "codec.h"

#define INLINE static inline __attribute__((always_inline))
/* Sums in this order, not all products first: they would not fit the registers. */
#define KEEP(x) __asm__("" : "+x"(x))

enum { TILE = 4, CHUNK = 64 }; /* tokens; groups whose activation sums are prepared at once */
enum Type { Q4, Q8, S2, S3, KQ };
static const size_t group_bytes[] = { Q4X_BYTES, Q8X_BYTES, 144, 208, sizeof(KqGroup) };

/* ---- products -------------------------------------------------------------------------------- */

INLINE __m256i load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

/* Codes of 8 rows (half 0 or 1) and inputs 4v..4v+3 of the group at p. */
INLINE __m256i codes(enum Type type, const uint8_t *p, int half, int v) {
    p += 32 * half;
    if (type == Q4) {
        __m256i x = load(p + 32 + 64 * (v / 2));
        return _mm256_and_si256(v & 1 ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
    }
    if (type == Q8) return load(p + 32 + 64 * v);
    if (type == KQ) return load(p + offsetof(KqGroup, code) + 64 * v);
    __m256i x = load(p + 16 + 64 * (v / 4));
    x = _mm256_and_si256(_mm256_srli_epi16(x, 2 * (v % 4)), _mm256_set1_epi8(3));
    if (type == S2) return x;
    __m256i top = load(p + 144); /* bit v goes to bit 2 */
    top = v < 2 ? _mm256_slli_epi16(top, 2 - v) : _mm256_srli_epi16(top, v - 2);
    return _mm256_or_si256(x, _mm256_and_si256(top, _mm256_set1_epi8(4)));
}

INLINE __m256i quad(const int8_t *a) { /* 4 activations, for every row */
    return _mm256_set1_epi32((int)load_u32(a));
}

/* s[t] = sum of code * activation of 8 rows; token t's activations are at a + t * ld. For KQ each
 * half of the group is multiplied with its sc. */
INLINE void dots(enum Type type, __m256i *s, int n, const uint8_t *p, int half, const int8_t *a,
                 size_t ld) {
    const __m256i one = _mm256_set1_epi16(1);
    if (type == Q8) { /* a pair is at most 2 * 128 * 127 = 32512 */
        for (int t = 0; t < n; t++) s[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) {
            __m256i w = codes(type, p, half, v), size = _mm256_abs_epi8(w); /* 128 for -128 */
            for (int t = 0; t < n; t++) {
                __m256i x = _mm256_sign_epi8(quad(a + (size_t)t * ld + 4 * v), w);
                x = _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), one);
                s[t] = _mm256_add_epi32(s[t], x);
                KEEP(s[t]);
            }
        }
    } else if (type == KQ) { /* two pairs are at most 2 * 2 * 63 * 127 = 32004 */
        for (int t = 0; t < n; t++) s[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int v = 0; v < 8; v += 2) {
            const KqGroup *g = (const KqGroup *)p;
            __m256i sc = load(g->sc[8 * half]); /* pairs; sc2: that of this quarter twice */
            __m256i first = _mm256_slli_epi32(sc, 16), second = _mm256_srli_epi32(sc, 16);
            __m256i sc2 =
                v < 4 ? _mm256_blend_epi16(sc, first, 0xaa) : _mm256_blend_epi16(second, sc, 0xaa);
            __m256i w0 = codes(type, p, half, v), w1 = codes(type, p, half, v + 1);
            for (int t = 0; t < n; t++) {
                const int8_t *q = a + (size_t)t * ld + 4 * v;
                __m256i x0 = _mm256_maddubs_epi16(w0, quad(q));
                __m256i x1 = _mm256_maddubs_epi16(w1, quad(q + 4));
                x0 = _mm256_madd_epi16(_mm256_add_epi16(x0, x1), sc2);
                s[t] = _mm256_add_epi32(s[t], x0);
                KEEP(s[t]);
            }
        }
    } else { /* eight pairs are at most 8 * 2 * 15 * 127 = 30480 */
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) {
            __m256i w = codes(type, p, half, v);
            for (int t = 0; t < n; t++) {
                __m256i x = _mm256_maddubs_epi16(w, quad(a + (size_t)t * ld + 4 * v));
                s[t] = v ? _mm256_add_epi16(s[t], x) : x;
                KEEP(s[t]);
            }
        }
        for (int t = 0; t < n && type == Q4; t++) s[t] = _mm256_madd_epi16(s[t], one);
    }
}

/* What the group's activation sums contribute, as a dword for all rows: -8 * sum (Q4); the sum in
 * the low half (S2, S3); both sums as 16 bits (KQ). */
INLINE void prepare(enum Type type, int32_t *dst, const int32_t *sum, int n_groups) {
    for (int g = 0; g < n_groups; g++) {
        int32_t lo = sum[2 * g], hi = sum[2 * g + 1];
        if (type == Q4) dst[g] = -8 * (lo + hi);
        if (type == S2 || type == S3) dst[g] = (lo + hi) & 0xffff;
        if (type == KQ) dst[g] = (int32_t)((uint32_t)(lo & 0xffff) | (uint32_t)hi << 16);
    }
}

INLINE __m256 times(__m256 a, __m256i b) {
    return _mm256_mul_ps(a, _mm256_cvtepi32_ps(b));
}

/* Adds one group to acc[t]; prepared and scale of token t are step_p and step_s further. */
INLINE void group(enum Type type, __m256 *acc, int n, const uint8_t *p, int half, const int8_t *a,
                  size_t ld, const int32_t *prepared, const float *scale) {
    __m256i s[TILE];
    dots(type, s, n, p, half, a, ld);
    if (type == Q4 || type == Q8) {
        __m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16 * half)));
        for (int t = 0; t < n; t++) {
            if (type == Q4) s[t] = _mm256_add_epi32(s[t], _mm256_set1_epi32(prepared[t * CHUNK]));
            __m256 f = _mm256_mul_ps(d, _mm256_set1_ps(scale[(size_t)t * (ld / 32)]));
            acc[t] = _mm256_add_ps(acc[t], times(f, s[t]));
        }
    } else if (type == KQ) {
        const KqGroup *g = (const KqGroup *)p;
        __m256 d = _mm256_loadu_ps(g->d + 8 * half), dm = _mm256_loadu_ps(g->dm + 8 * half);
        __m256i mn = load(g->mn[8 * half]);
        for (int t = 0; t < n; t++) {
            __m256i m = _mm256_madd_epi16(mn, _mm256_set1_epi32(prepared[t * CHUNK]));
            __m256 x = _mm256_set1_ps(scale[(size_t)t * (ld / 32)]);
            __m256 f = times(_mm256_mul_ps(d, x), s[t]);
            f = _mm256_sub_ps(f, times(_mm256_mul_ps(dm, x), m));
            acc[t] = _mm256_add_ps(acc[t], f);
        }
    } else { /* (c + 4) * G = 8 (c + 4) * dot + (c + 4) (z - 8 - 4 (L - 1)) * sum */
        __m256i cz = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * half)));
        __m256i c =
            _mm256_add_epi32(_mm256_and_si256(cz, _mm256_set1_epi32(15)), _mm256_set1_epi32(4));
        __m256i z =
            _mm256_sub_epi32(_mm256_srli_epi32(cz, 4), _mm256_set1_epi32(type == S2 ? 20 : 36));
        z = _mm256_mullo_epi16(c, z); /* the upper half meets zeros below */
        c = _mm256_or_si256(_mm256_slli_epi32(c, 3), _mm256_slli_epi32(c, 19));
        for (int t = 0; t < n; t++) {
            __m256i m = _mm256_madd_epi16(z, _mm256_set1_epi32(prepared[t * CHUNK]));
            m = _mm256_add_epi32(m, _mm256_madd_epi16(s[t], c));
            __m256 x = _mm256_set1_ps(scale[(size_t)t * (ld / 32)]);
            acc[t] = _mm256_add_ps(acc[t], times(x, m));
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

/* All groups of one row block for n <= TILE tokens starting at t0. With one token both halves of
 * the rows go together, so that the weights stream once; else one after the other. */
INLINE void tile(enum Type type, float *y, size_t ldy, const uint8_t *block,
                 const uint16_t *row_scale, int n_groups, const A8 *a, int t0, const int n) {
    const int8_t *q = a->q + (size_t)t0 * a->ld;
    const float *scale = a->scale + (size_t)t0 * (a->ld / 32);
    const int32_t *sum = a->sum + (size_t)t0 * (a->ld / 16);
    const int together = n == 1 ? 2 : 1;
    int32_t prepared[TILE * CHUNK];
    y += (size_t)t0 * ldy;
    for (int first = 0; first < 2; first += together) {
        __m256 acc[2 * TILE];
        for (int h = 0; h < together; h++)
            for (int t = 0; t < n; t++)
                acc[h * n + t] = type == KQ ? _mm256_loadu_ps(y + (size_t)t * ldy + 8 * (first + h))
                                            : _mm256_setzero_ps();
        for (int g0 = 0; g0 < n_groups; g0 += CHUNK) {
            int g1 = MIN(n_groups, g0 + CHUNK);
            for (int t = 0; t < n && type != Q8; t++)
                prepare(type, prepared + t * CHUNK, sum + (size_t)t * (a->ld / 16) + 2 * g0,
                        g1 - g0);
            for (int g = g0; g < g1; g++) {
                const uint8_t *p = block + (size_t)g * group_bytes[type];
                if (n == 1) prefetch(p, group_bytes[type]);
                for (int h = 0; h < together; h++)
                    group(type, acc + h * n, n, p, first + h, q + 32 * (size_t)g, a->ld,
                          prepared + g - g0, scale + g);
            }
        }
        for (int h = 0; h < together; h++)
            for (int t = 0; t < n; t++) {
                __m256 x = acc[h * n + t];
                if (type == S2 || type == S3) {
                    const void *d = row_scale + 8 * (first + h);
                    __m256 r = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)d));
                    x = _mm256_mul_ps(x, _mm256_mul_ps(r, _mm256_set1_ps(0.125f)));
                }
                _mm256_storeu_ps(y + (size_t)t * ldy + 8 * (first + h), x);
            }
    }
}

#define MUL(name, type)                                                                            \
    static void mul_##name##_avx2(float *y, size_t ldy, const uint8_t *block,                      \
                                  const uint16_t *row_scale, int n_groups, const A8 *a,            \
                                  int n_tokens) {                                                  \
        int t = 0;                                                                                 \
        for (; t + 4 <= n_tokens; t += 4) tile(type, y, ldy, block, row_scale, n_groups, a, t, 4); \
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

/* ---- interleaving ---------------------------------------------------------------------------- */

/* Rows of 32 codes to 8 vectors of 64 bytes: dword v of row r becomes dword r of vector v. */
INLINE void interleave(__m256i out[16], const __m256i *row) {
    for (int h = 0; h < 2; h++, row += 8) {
        __m256i a[8], b[8];
        for (int i = 0; i < 8; i += 2) {
            a[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);     /* dwords 0 1 | 4 5 */
            a[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]); /* 2 3 | 6 7 */
        }
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; j++) { /* four rows of dword 2j, 2j+1 | 2j+4, 2j+5 */
                b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
                b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
            }
        for (int v = 0; v < 4; v++) {
            out[2 * v + h] = _mm256_permute2x128_si256(b[v], b[v + 4], 0x20);
            out[2 * (v + 4) + h] = _mm256_permute2x128_si256(b[v], b[v + 4], 0x31);
        }
    }
}

static void pack_q4_avx2(uint8_t *dst, const uint8_t *rows, size_t row_bytes, int n_rows,
                         int n_groups) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i row[16], v[16];
    for (int r = 0; r < 16; r++) row[r] = _mm256_setzero_si256();
    for (int g = 0; g < n_groups; g++, dst += Q4X_BYTES) {
        uint16_t d[16] = { 0 };
        for (int r = 0; r < n_rows; r++) {
            const uint8_t *b = rows + (size_t)r * row_bytes + (size_t)g * 18;
            __m128i x = _mm_loadu_si128((const __m128i *)(b + 2));
            row[r] = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), low);
            d[r] = load_u16(b);
        }
        interleave(v, row);
        memcpy(dst, d, 32);
        for (int i = 0; i < 8; i++) { /* 2 halves of 4 vectors */
            int lo = i / 2 * 4 + i % 2;
            __m256i x = _mm256_or_si256(v[lo], _mm256_slli_epi16(v[lo + 2], 4));
            _mm256_storeu_si256((__m256i *)(dst + 32 + 32 * i), x);
        }
    }
}

static void pack_q8_avx2(uint8_t *dst, const uint8_t *rows, size_t row_bytes, int n_rows,
                         int n_groups) {
    __m256i row[16], v[16];
    for (int r = 0; r < 16; r++) row[r] = _mm256_setzero_si256();
    for (int g = 0; g < n_groups; g++, dst += Q8X_BYTES) {
        uint16_t d[16] = { 0 };
        for (int r = 0; r < n_rows; r++) {
            const uint8_t *b = rows + (size_t)r * row_bytes + (size_t)g * 34;
            row[r] = load(b + 2);
            d[r] = load_u16(b);
        }
        interleave(v, row);
        memcpy(dst, d, 32);
        for (int i = 0; i < 16; i++) _mm256_storeu_si256((__m256i *)(dst + 32 + 32 * i), v[i]);
    }
}

/* ---- unpacking of the K types (layouts: scalar.c) -------------------------------------------- */

/* 256 inputs of one row: code[j] those of group j; sc and mn of 16 sub-blocks. */
typedef struct KBlock {
    uint16_t d, dm; /* f16 */
    __m256i sc, mn; /* 16 int16 */
    __m256i code[8];
} KBlock;

INLINE void codes_2bit(__m256i *code, const uint8_t *q) {
    for (int j = 0; j < 8; j++)
        code[j] = _mm256_and_si256(_mm256_srli_epi16(load(q + j / 4 * 32), 2 * (j % 4)),
                                   _mm256_set1_epi8(3));
}

INLINE void codes_4bit(__m256i *code, const uint8_t *q) {
    for (int j = 0; j < 8; j++)
        code[j] = _mm256_and_si256(_mm256_srli_epi16(load(q + j / 2 * 32), 4 * (j % 2)),
                                   _mm256_set1_epi8(15));
}

/* code[j] |= bit j of the 32 bytes << place */
INLINE void add_bit(__m256i *code, const uint8_t *q, int place) {
    __m256i x = load(q);
    for (int j = 0; j < 8; j++) {
        __m256i b = j < place ? _mm256_slli_epi16(x, place - j) : _mm256_srli_epi16(x, j - place);
        b = _mm256_and_si256(b, _mm256_set1_epi8((char)(1 << place)));
        code[j] = _mm256_or_si256(code[j], b);
    }
}

INLINE void scales_6bit(KBlock *b, const uint8_t *s) {
    uint64_t lo = load_u32(s), mid = load_u32(s + 4), hi = load_u32(s + 8);
    uint64_t sc = (lo & 0x3f3f3f3f) | ((hi & 0x0f0f0f0f) | (lo >> 2 & 0x30303030)) << 32;
    uint64_t mn = (mid & 0x3f3f3f3f) | ((hi >> 4 & 0x0f0f0f0f) | (mid >> 2 & 0x30303030)) << 32;
    __m128i x = _mm_cvtsi64_si128((long long)sc), y = _mm_cvtsi64_si128((long long)mn);
    b->sc = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, x)); /* each for two sub-blocks */
    b->mn = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(y, y));
}

INLINE void unpack_q2_k(KBlock *b, const uint8_t *p) {
    b->d = load_u16(p + 80);
    b->dm = load_u16(p + 82);
    __m256i s = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    b->sc = _mm256_and_si256(s, _mm256_set1_epi16(15));
    b->mn = _mm256_srli_epi16(s, 4);
    codes_2bit(b->code, p + 16);
}

INLINE void unpack_q3_k(KBlock *b, const uint8_t *p) {
    b->d = b->dm = load_u16(p + 108);
    uint64_t low = load_u64(p + 96), top = load_u32(p + 104);
    uint64_t a =
        (low & 0x0f0f0f0f0f0f0f0f) | (top << 4 & 0x30303030) | (top << 2 & 0x30303030) << 32;
    uint64_t c =
        (low >> 4 & 0x0f0f0f0f0f0f0f0f) | (top & 0x30303030) | (top >> 2 & 0x30303030) << 32;
    __m128i s = _mm_set_epi64x((long long)c, (long long)a);
    b->sc = _mm256_sub_epi16(_mm256_cvtepu8_epi16(s), _mm256_set1_epi16(32));
    b->mn = _mm256_slli_epi16(b->sc, 2);
    codes_2bit(b->code, p + 32);
    add_bit(b->code, p, 2);
}

INLINE void unpack_q4_k(KBlock *b, const uint8_t *p) {
    b->d = load_u16(p);
    b->dm = load_u16(p + 2);
    scales_6bit(b, p + 4);
    codes_4bit(b->code, p + 16);
}

INLINE void unpack_q5_k(KBlock *b, const uint8_t *p) {
    b->d = load_u16(p);
    b->dm = load_u16(p + 2);
    scales_6bit(b, p + 4);
    codes_4bit(b->code, p + 48);
    add_bit(b->code, p + 16, 4);
}

INLINE void unpack_q6_k(KBlock *b, const uint8_t *p) {
    b->d = b->dm = load_u16(p + 208);
    b->sc = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 192)));
    b->mn = _mm256_slli_epi16(b->sc, 5);
    for (int j = 0; j < 8; j++) { /* group j: bytes 64 (j / 4) + 32 (j % 2), half j / 2 % 2 */
        __m256i lo = _mm256_srli_epi16(load(p + j / 4 * 64 + j % 2 * 32), 4 * (j / 2 % 2));
        __m256i hi = load(p + 128 + j / 4 * 32);
        int k = j % 4; /* bits 2k, 2k+1 go to bits 4, 5 */
        hi = k < 2 ? _mm256_slli_epi16(hi, 4 - 2 * k) : _mm256_srli_epi16(hi, 2 * k - 4);
        b->code[j] = _mm256_or_si256(_mm256_and_si256(lo, _mm256_set1_epi8(15)),
                                     _mm256_and_si256(hi, _mm256_set1_epi8(48)));
    }
}

INLINE void unpack_tq2_0(KBlock *b, const uint8_t *p) {
    b->d = b->dm = load_u16(p + 64);
    b->sc = b->mn = _mm256_set1_epi16(1);
    codes_2bit(b->code, p);
}

/* One super-block of 16 rows, unpacked row by row into b, to 8 groups. */
static void store_groups(KqGroup *g, const KBlock *b) {
    uint16_t d[16], dm[16];
    for (int r = 0; r < 16; r++) {
        d[r] = b[r].d;
        dm[r] = b[r].dm;
    }
    __m256i row[16], v[16], sc[16], mn[16];
    for (int r = 0; r < 16; r++) row[r] = b[r].sc;
    interleave(sc, row); /* a dword holds both halves of a group */
    for (int r = 0; r < 16; r++) row[r] = b[r].mn;
    interleave(mn, row);
    for (int j = 0; j < 8; j++, g++) {
        for (int r = 0; r < 16; r++) row[r] = b[r].code[j];
        interleave(v, row);
        for (int i = 0; i < 16; i++) _mm256_storeu_si256((__m256i *)(g->code + 32 * i), v[i]);
        for (int h = 0; h < 2; h++) {
            __m128i x = _mm_loadu_si128((const __m128i *)(d + 8 * h));
            _mm256_storeu_ps(g->d + 8 * h, _mm256_cvtph_ps(x));
            x = _mm_loadu_si128((const __m128i *)(dm + 8 * h));
            _mm256_storeu_ps(g->dm + 8 * h, _mm256_cvtph_ps(x));
            _mm256_storeu_si256((__m256i *)g->sc[8 * h], sc[2 * j + h]);
            _mm256_storeu_si256((__m256i *)g->mn[8 * h], mn[2 * j + h]);
        }
    }
}

#define PACK_K(type, block_bytes)                                                                  \
    static void pack_##type##_avx2(uint8_t *dst, const uint8_t *rows, size_t row_bytes,            \
                                   int n_rows, int n_groups) {                                     \
        KBlock b[16];                                                                              \
        memset(b, 0, sizeof b);                                                                    \
        for (int g = 0; g < n_groups; g += 8) {                                                    \
            for (int r = 0; r < n_rows; r++)                                                       \
                unpack_##type(&b[r],                                                               \
                              rows + (size_t)r * row_bytes + (size_t)(g / 8) * block_bytes);       \
            store_groups((KqGroup *)dst + g, b);                                                   \
        }                                                                                          \
    }
PACK_K(q2_k, 84)
PACK_K(q3_k, 110)
PACK_K(q4_k, 144)
PACK_K(q5_k, 176)
PACK_K(q6_k, 210)
PACK_K(tq2_0, 66)

/* ---- activations ----------------------------------------------------------------------------- */

static void quantize_avx2(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    for (int g = 0; 32 * g < n; g++, q += 32) {
        float last[32] = { 0 };
        const float *p = x + 32 * (size_t)g;
        if (n - 32 * g < 32) p = memcpy(last, p, (size_t)(n - 32 * g) * sizeof(float));
        __m256i v[4], m = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            v[i] = load(p + 8 * i);
            m = _mm256_max_epi32(m, _mm256_and_si256(v[i], size)); /* NaN is above infinity */
        }
        __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
        m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4e));
        m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xb1));
        int finite = _mm_cvtsi128_si32(m4) < 0x7f800000;
        float amax = _mm_cvtss_f32(_mm_castsi128_ps(m4));
        float inverse = MIN(127.0f / amax, 0x1.fffffep127f);
        __m256 f = _mm256_set1_ps(inverse);
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(v[i]), f));
        __m256i w0 = _mm256_packs_epi32(v[0], v[1]), w1 = _mm256_packs_epi32(v[2], v[3]);
        __m256i b = _mm256_packs_epi16(w0, w1); /* dwords of inputs 0 8 16 24 | 4 12 20 28 */
        b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        if (!finite) b = _mm256_setzero_si256();
        _mm256_storeu_si256((__m256i *)q, b);
        scale[g] = finite ? amax / 127.0f : __builtin_nanf("");
        __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), b),
                                      _mm256_set1_epi16(1)); /* sums of 4 */
        s = _mm256_hadd_epi32(s, s);
        s = _mm256_hadd_epi32(s, s);
        sum[2 * g] = _mm256_extract_epi32(s, 0);
        sum[2 * g + 1] = _mm256_extract_epi32(s, 4);
    }
}

void kern_avx2(Kern *k) {
    k->mul_q4 = mul_q4_avx2;
    k->mul_q8 = mul_q8_avx2;
    k->mul_s2 = mul_s2_avx2;
    k->mul_s3 = mul_s3_avx2;
    k->mul_kq = mul_kq_avx2;
    k->pack_q4 = pack_q4_avx2;
    k->pack_q8 = pack_q8_avx2;
    k->pack_q2_k = pack_q2_k_avx2;
    k->pack_q3_k = pack_q3_k_avx2;
    k->pack_q4_k = pack_q4_k_avx2;
    k->pack_q5_k = pack_q5_k_avx2;
    k->pack_q6_k = pack_q6_k_avx2;
    k->pack_tq2_0 = pack_tq2_0_avx2;
    k->quantize = quantize_avx2;
}
