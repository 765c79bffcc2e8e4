/* trellis_avx2.c - products with t2 and t3 weights and the rotation of their inputs with AVX2.
 * Dword j of vector i of a unit of 32 rows belongs to row 4j + i: the states of these rows are the
 * halves of the dwords at two addresses, so that no byte has to be moved. One token decodes and
 * multiplies at once; more share tiles that are decoded to bytes. */
#include "kern.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "codec.h"
#include "kv23.h"

#define INLINE static inline __attribute__((always_inline))
/* Sums in this order, not all products first: they would not fit the registers. */
#define KEEP(x) __asm__("" : "+x"(x))

enum {
    UNIT = 32,   /* rows decoded together: 4 vectors */
    CHUNK = 112, /* quads that many tokens share: 14 KiB of bytes; a multiple of both runs */
    PAIR = 2     /* tokens that share a vector of weights */
};

INLINE __m256i load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE void store(void *p, __m256i x) {
    _mm256_storeu_si256((__m256i *)p, x);
}

/* Quads whose int16 sums cannot overflow: 16 * 2 * 8 * 127 and 7 * 2 * 17 * 127. */
INLINE int run_of(int bits) {
    return bits == 2 ? 16 : 7;
}

/* ---- decode ---- */

/* The sums of quads of two 4-bit counts; t3: twice that. */
INLINE __m256i counts(__m256i x, int bits) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1,
                                    2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    if (bits == 3) ones = _mm256_add_epi8(ones, ones);
    __m256i a = _mm256_shuffle_epi8(ones, _mm256_and_si256(x, low));
    __m256i b = _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
    return _mm256_add_epi8(a, b);
}

/* One tile of 32 rows: p (t2), or 2p and with the sign 17 - 2p (t3), which is twice the count of
 * the complement, and one. */
INLINE void decode(__m256i w[4], const uint8_t *codes, const uint8_t *signs, int bits) {
    const __m256i low = _mm256_set1_epi32(0xffff), mul = _mm256_set1_epi32((int)T4_MUL);
    __m256i even = load(codes - 1), odd = load(codes), spread[2];
    w[0] = _mm256_and_si256(even, low);
    w[1] = _mm256_and_si256(odd, low);
    w[2] = _mm256_srli_epi32(even, 16);
    w[3] = _mm256_srli_epi32(odd, 16);
    if (bits == 3) { /* rows 4j, 4j + 1 have byte 2j, the next two 2j + 1 */
        const __m256i first =
            _mm256_setr_epi8(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6, 8, 8, 8, 8, 10, 10, 10,
                             10, 12, 12, 12, 12, 14, 14, 14, 14);
        __m256i s = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)signs));
        spread[0] = _mm256_shuffle_epi8(s, first);
        spread[1] = _mm256_shuffle_epi8(s, _mm256_add_epi8(first, _mm256_set1_epi8(1)));
    }
    for (int i = 0; i < 4; i++) {
        __m256i x = _mm256_mullo_epi32(w[i], mul);
        x = _mm256_add_epi32(x, _mm256_srli_epi32(x, 13));
        if (bits == 3) {
            const __m256i bit = _mm256_set1_epi32(i & 1 ? (int)0x80402010u : 0x08040201);
            __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(spread[i / 2], bit), bit);
            w[i] = _mm256_sub_epi8(counts(_mm256_xor_si256(x, minus), 3), minus);
        } else {
            w[i] = counts(x, 2);
        }
    }
}

/* ---- sums ---- */

INLINE __m256i quad(const int8_t *a) { /* 4 activations, for every row */
    return _mm256_set1_epi32((int)load_u32(a));
}

INLINE void add_pairs(__m256i *sum, __m256i x) {
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
}

/* y of 32 rows from their sums, in the order of the vectors: S = sum - 4 sum a (t2), 2 sum - 17 sum
 * a (t3). */
INLINE void finish(float *y, const __m256i s[4], const uint16_t *row_scale, int32_t a_sum,
                   float a_scale, int bits) {
    __m256i x[4], r[4];
    for (int i = 0; i < 4; i++) {
        x[i] = bits == 2 ? s[i] : _mm256_add_epi32(s[i], s[i]);
        x[i] = _mm256_sub_epi32(x[i], _mm256_set1_epi32((bits == 2 ? 4 : 17) * a_sum));
    }
    for (int i = 0; i < 2; i++) {
        __m256i a = i ? _mm256_unpackhi_epi32(x[0], x[1]) : _mm256_unpacklo_epi32(x[0], x[1]);
        __m256i b = i ? _mm256_unpackhi_epi32(x[2], x[3]) : _mm256_unpacklo_epi32(x[2], x[3]);
        __m256i c = _mm256_unpacklo_epi64(a, b), d = _mm256_unpackhi_epi64(a, b);
        r[i] = _mm256_permute2x128_si256(c, d, 0x20);
        r[i + 2] = _mm256_permute2x128_si256(c, d, 0x31);
    }
    for (int i = 0; i < 4; i++) {
        __m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row_scale + 8 * i)));
        if (bits == 3) d = _mm256_mul_ps(d, _mm256_set1_ps(0.5f));
        d = _mm256_mul_ps(_mm256_set1_ps(a_scale), d);
        _mm256_storeu_ps(y + 8 * i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(r[i])));
    }
}

/* One token: weights come from memory once, and asking for them ahead, across pages and into the
 * next row block, gains a little. A prefetch never faults. */
INLINE void one_token(float *y, const uint8_t *codes, const uint8_t *signs, int height, int n_rows,
                      const uint16_t *row_scale, int n_quads, const A8 *a, int bits) {
    enum { AHEAD = 4096 };
    const int run = run_of(bits), units = n_rows / UNIT;
    __m256i sum[4][4];
    memset(sum, 0, sizeof sum);
    for (int q0 = 0; q0 < n_quads; q0 += run)
        for (int u = 0; u < units; u++) {
            const uint8_t *c = codes + (size_t)q0 * (size_t)height + UNIT * u;
            const uint8_t *s =
                bits == 3 ? signs + (size_t)q0 * (size_t)height / 2 + UNIT / 2 * u : NULL;
            __m256i part[4];
            for (int i = 0; i < 4; i++) part[i] = _mm256_setzero_si256();
            for (int q = q0; q < MIN(n_quads, q0 + run); q++, c += height) {
                __m256i w[4], x = quad(a->q + 4 * q);
                if (u % 2 == 0) _mm_prefetch((const char *)((uintptr_t)c + AHEAD), _MM_HINT_T0);
                decode(w, c, s, bits);
                for (int i = 0; i < 4; i++) {
                    part[i] = _mm256_add_epi16(part[i], _mm256_maddubs_epi16(w[i], x));
                    KEEP(part[i]);
                }
                if (bits == 3) s += height / 2;
            }
            for (int i = 0; i < 4; i++) add_pairs(&sum[u][i], part[i]);
        }
    for (int u = 0; u < units; u++)
        finish(y + UNIT * u, sum[u], row_scale + UNIT * u, a->sum[0], a->scale[0], bits);
}

/* Adds `n` decoded tiles of 32 rows times the activations of n_t tokens to their sums in y. */
INLINE void add_tiles(float *y, size_t ldy, const uint8_t *w, int n, const int8_t *a, size_t ld,
                      int n_t, int bits, int first) {
    __m256i sum[4 * PAIR], part[4 * PAIR];
    for (int t = 0; t < n_t; t++)
        for (int i = 0; i < 4; i++)
            sum[4 * t + i] = first ? _mm256_setzero_si256() : load(y + (size_t)t * ldy + 8 * i);
    const int run = run_of(bits);
    for (int q0 = 0; q0 < n; q0 += run) {
        for (int i = 0; i < 4 * n_t; i++) part[i] = _mm256_setzero_si256();
        for (int q = q0; q < MIN(n, q0 + run); q++) {
            __m256i x[PAIR];
            for (int t = 0; t < n_t; t++) x[t] = quad(a + (size_t)t * ld + 4 * q);
            for (int i = 0; i < 4; i++) {
                __m256i v = load(w + 128 * q + 32 * i);
                for (int t = 0; t < n_t; t++) {
                    __m256i *p = &part[4 * t + i];
                    *p = _mm256_add_epi16(*p, _mm256_maddubs_epi16(v, x[t]));
                    KEEP(*p);
                }
            }
        }
        for (int i = 0; i < 4 * n_t; i++) add_pairs(&sum[i], part[i]);
    }
    for (int t = 0; t < n_t; t++)
        for (int i = 0; i < 4; i++) store(y + (size_t)t * ldy + 8 * i, sum[4 * t + i]);
}

/* Tokens by pairs over chunks of decoded tiles; until the end the sums lie in y as integers. */
INLINE void many_tokens(float *y, size_t ldy, const uint8_t *codes, const uint8_t *signs,
                        int height, const uint16_t *row_scale, int n_quads, const A8 *a,
                        int n_tokens, int bits) {
    _Alignas(32) uint8_t w[CHUNK * 128];
    for (int q0 = 0; q0 < n_quads; q0 += CHUNK) {
        int n = MIN(CHUNK, n_quads - q0), t = 0;
        for (int q = 0; q < n; q++) {
            __m256i v[4];
            size_t at = (size_t)(q0 + q) * (size_t)height;
            decode(v, codes + at, bits == 3 ? signs + at / 2 : NULL, bits);
            for (int i = 0; i < 4; i++) store(w + 128 * q + 32 * i, v[i]);
        }
        const int8_t *x = a->q + 4 * q0;
        for (; t + PAIR <= n_tokens; t += PAIR)
            add_tiles(y + (size_t)t * ldy, ldy, w, n, x + (size_t)t * a->ld, a->ld, PAIR, bits,
                      q0 == 0);
        if (t < n_tokens)
            add_tiles(y + (size_t)t * ldy, ldy, w, n, x + (size_t)t * a->ld, a->ld, 1, bits,
                      q0 == 0);
    }
    for (int t = 0; t < n_tokens; t++) {
        float *to = y + (size_t)t * ldy;
        __m256i s[4] = { load(to), load(to + 8), load(to + 16), load(to + 24) };
        finish(to, s, row_scale, a->sum[(size_t)t * (a->ld / 16)],
               a->scale[(size_t)t * (a->ld / 32)], bits);
    }
}

#define MUL_T(name, bits)                                                                          \
    static void name MUL_T_ARGS {                                                                  \
        if (n_tokens == 1) {                                                                       \
            one_token(y, codes, signs, height, n_rows, row_scale, n_quads, a, bits);               \
            return;                                                                                \
        }                                                                                          \
        for (int r = 0; r < n_rows; r += UNIT)                                                     \
            many_tokens(y + r, ldy, codes + r, bits == 3 ? signs + r / 2 : NULL, height,           \
                        row_scale + r, n_quads, a, n_tokens, bits);                                \
    }
MUL_T(mul_t2_avx2, 2)
MUL_T(mul_t3_avx2, 3)

/* ---- inputs ---- */

/* x[j..j+7] * scale with the signs of trellis23.h; `at` is seed + j * 0x9e3779b9 and so on. */
INLINE __m256 with_signs(__m256 x, __m256i at, float scale) {
    at = _mm256_xor_si256(at, _mm256_srli_epi32(at, 16));
    at = _mm256_mullo_epi32(at, _mm256_set1_epi32(0x7feb352d));
    at = _mm256_xor_si256(at, _mm256_srli_epi32(at, 15));
    at = _mm256_mullo_epi32(at, _mm256_set1_epi32((int)0x846ca68bu)); /* the top bit is final */
    __m256 minus = _mm256_and_ps(_mm256_castsi256_ps(at), _mm256_set1_ps(-0.0f));
    return _mm256_xor_ps(_mm256_mul_ps(x, _mm256_set1_ps(scale)), minus);
}

INLINE __m256i sign_index(uint32_t seed) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_add_epi32(_mm256_set1_epi32((int)seed),
                            _mm256_mullo_epi32(lane, _mm256_set1_epi32((int)0x9e3779b9u)));
}

/* Sums and differences of v[k] and v[k + step], for step 1, 2, .. n / 2. */
INLINE void butterflies(__m256 *v, const int n) {
    for (int h = 1; h < n; h *= 2)
        for (int k = 0; k < n; k++)
            if (!(k & h)) {
                __m256 a = v[k], b = v[k + h];
                v[k] = _mm256_add_ps(a, b);
                v[k + h] = _mm256_sub_ps(a, b);
            }
}

/* The same between the values of one vector: sum, or first less second in the second's place. The
 * fused product is by 1 or -1, so nothing is rounded twice or not at all. */
INLINE __m256 butterflies_within(__m256 x) {
    const __m256 a = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    const __m256 b = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const __m256 c = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    x = _mm256_fmadd_ps(x, a, _mm256_permute_ps(x, 0xb1));
    x = _mm256_fmadd_ps(x, b, _mm256_permute_ps(x, 0x4e));
    return _mm256_fmadd_ps(x, c, _mm256_permute2f128_ps(x, x, 0x01));
}

/* Of values `step` (a multiple of 8), 2 step, .. n_v / 2 * step apart. */
INLINE void pass(float *x, size_t n, size_t step, const int n_v) {
    for (size_t i = 0; i < n; i += (size_t)n_v * step)
        for (size_t j = i; j < i + step; j += 8) {
            __m256 v[8];
            for (int k = 0; k < n_v; k++) v[k] = _mm256_loadu_ps(x + j + (size_t)k * step);
            butterflies(v, n_v);
            for (int k = 0; k < n_v; k++) _mm256_storeu_ps(x + j + (size_t)k * step, v[k]);
        }
}

/* Of values step, 2 step, .. end / 2 apart, three distances at a time. */
static void passes(float *x, size_t n, size_t step, size_t end) {
    for (; 8 * step <= end; step *= 8) pass(x, n, step, 8);
    if (4 * step == end) pass(x, n, step, 4);
    if (2 * step == end) pass(x, n, step, 2);
}

static void rotate_avx2(float *dst, const float *x, int count, uint32_t seed) {
    size_t n = (size_t)count, b = n & (~n + 1), m = n / b;
    float scale = (float)(1 / sqrt((double)b)), scale2 = (float)(1 / sqrt((double)b / 8));
    const __m256i step = _mm256_set1_epi32((int)(8 * 0x9e3779b9u));
    __m256i at = sign_index(seed);
    for (size_t i = 0; i < n; i += 32) { /* distances 1 to 16 */
        __m256 v[4];
        for (int k = 0; k < 4; k++) {
            v[k] = with_signs(_mm256_loadu_ps(x + i + 8 * (size_t)k), at, scale);
            v[k] = butterflies_within(v[k]);
            at = _mm256_add_epi32(at, step);
        }
        butterflies(v, 4);
        for (int k = 0; k < 4; k++) _mm256_storeu_ps(dst + i + 8 * (size_t)k, v[k]);
    }
    passes(dst, n, 32, b);
    if (m == 1) return;
    at = sign_index(seed + 1);
    for (size_t i = 0; i < n; i += 8, at = _mm256_add_epi32(at, step))
        _mm256_storeu_ps(dst + i, with_signs(_mm256_loadu_ps(dst + i), at, scale2));
    passes(dst, n, 8 * m, n);
}

static void quantize_t_avx2(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    const __m256i by_quad = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i top = _mm256_setzero_si256(), total = top; /* NaN is above infinity */
    for (int i = 0; i < n; i += 8)
        top = _mm256_max_epi32(top, _mm256_and_si256(load(x + i), _mm256_set1_epi32(0x7fffffff)));
    int32_t lanes[8], bits = 0;
    store(lanes, top);
    for (int i = 0; i < 8; i++) bits = MAX(bits, lanes[i]);
    float amax;
    memcpy(&amax, &bits, 4);
    int finite = bits < 0x7f800000;
    float inv = finite && amax > 0 ? MIN(127.0f / amax, 0x1.fffffep127f) : 0;
    *scale = finite ? amax / 127.0f : NAN;
    for (int k = 0; k < n / 4; k += 8) {
        __m256i c[4];
        for (int i = 0; i < 4; i++) {
            __m256 v = _mm256_loadu_ps(x + (size_t)i * (size_t)(n / 4) + k);
            c[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(inv)));
            if (!finite) c[i] = _mm256_setzero_si256();
            total = _mm256_add_epi32(total, c[i]);
        }
        __m256i p =
            _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
        store(q + 4 * (size_t)k, _mm256_shuffle_epi8(p, by_quad));
    }
    store(lanes, total);
    *sum = 0;
    for (int i = 0; i < 8; i++) *sum += lanes[i];
}

void kern_trellis_avx2(Kern *k) {
    k->rotate = rotate_avx2;
    k->quantize_t = quantize_t_avx2;
    k->mul_t2 = mul_t2_avx2;
    k->mul_t3 = mul_t3_avx2;
}
