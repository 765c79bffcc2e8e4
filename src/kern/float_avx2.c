/* float_avx2.c - the float loops in AVX2: vectors of 8; the loops are in float_lanes.inc. */
#include "kern.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "codec.h"

#define W          8
#define PARTS      2
#define TOKENS     3
#define COLS       2
#define EXPS       4
#define SCORE_ROWS 2

typedef __m256 V;

static inline float f16_bits(uint16_t h) {
    return _cvtsh_ss(h);
}
static inline V v_zero(void) {
    return _mm256_setzero_ps();
}
static inline V v_set1(float f) {
    return _mm256_set1_ps(f);
}
static inline V v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void v_store(float *p, V a) {
    _mm256_storeu_ps(p, a);
}
static inline V v_add(V a, V b) {
    return _mm256_add_ps(a, b);
}
static inline V v_sub(V a, V b) {
    return _mm256_sub_ps(a, b);
}
static inline V v_mul(V a, V b) {
    return _mm256_mul_ps(a, b);
}
static inline V v_div(V a, V b) {
    return _mm256_div_ps(a, b);
}
static inline V v_abs(V a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline V v_max(V x, V m) {
    return _mm256_max_ps(x, m); /* the second one when either is NaN */
}
static inline float v_top(V a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static inline V v_pick(V a, V b, V x, V y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline V v_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline V v_bf16(const uint8_t *p) {
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}
static inline V v_i8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline void v_to_f16(uint8_t *p, V a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline void v_to_i8(uint8_t *p, V t) {
    __m256i i =
        _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(_mm256_set1_ps(KERN_ROUND)));
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(h, h));
}
static inline V v_pow2(V t) {
    __m256i round = _mm256_castps_si256(_mm256_set1_ps(KERN_ROUND));
    __m256i k = _mm256_sub_epi32(_mm256_castps_si256(t), round);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}
static inline void v_pairs(const float *x, V *a, V *b) {
    V u = v_load(x), v = v_load(x + 8);
    V lo = _mm256_permute2f128_ps(u, v, 0x20), hi = _mm256_permute2f128_ps(u, v, 0x31);
    *a = _mm256_shuffle_ps(lo, hi, 0x88);
    *b = _mm256_shuffle_ps(lo, hi, 0xdd);
}
static inline void v_unpairs(float *x, V a, V b) {
    V lo = _mm256_unpacklo_ps(a, b), hi = _mm256_unpackhi_ps(a, b);
    v_store(x, _mm256_permute2f128_ps(lo, hi, 0x20));
    v_store(x + 8, _mm256_permute2f128_ps(lo, hi, 0x31));
}

/* Lanes j and j+8, then j and j+4. */
static inline __m128 fold4(const V *s) {
    V a = _mm256_add_ps(s[0], s[1]);
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
static inline float v_tree(const V *s) {
    __m128 a = fold4(s);
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
static inline void v_tree4(float *y, const V *s0, const V *s1, const V *s2, const V *s3) {
    __m128 a = fold4(s0), b = fold4(s1), c = fold4(s2), d = fold4(s3);
    __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)); /* a0 a1 b0 b1 */
    __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
    _mm_storeu_ps(y, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}

/* Lanes j and j+4, j and j+2, 0 and 1 of two rows and four queries side by side. */
static inline void v_tree_rows(float *s, size_t lds, V sum[SCORE_ROWS][4]) {
    V h[2];
    for (int t = 0; t < 4; t += 2) {
        V g[SCORE_ROWS];
        for (int r = 0; r < SCORE_ROWS; r++)
            g[r] = _mm256_add_ps(_mm256_permute2f128_ps(sum[r][t], sum[r][t + 1], 0x20),
                                 _mm256_permute2f128_ps(sum[r][t], sum[r][t + 1], 0x31));
        h[t / 2] =
            _mm256_add_ps(_mm256_shuffle_ps(g[0], g[1], 0x44), _mm256_shuffle_ps(g[0], g[1], 0xee));
    }
    V y = _mm256_add_ps(_mm256_shuffle_ps(h[0], h[1], 0x88), _mm256_shuffle_ps(h[0], h[1], 0xdd));
    __m128 even = _mm256_castps256_ps128(y), odd = _mm256_extractf128_ps(y, 1); /* queries */
    _mm_storel_pi((__m64 *)(void *)s, even);
    _mm_storel_pi((__m64 *)(void *)(s + lds), odd);
    _mm_storeh_pi((__m64 *)(void *)(s + 2 * lds), even);
    _mm_storeh_pi((__m64 *)(void *)(s + 3 * lds), odd);
}

/* |k| times q with the sign of k: pairs of products are at most 2 * 128 * 127 and fit 16 bits. */
static inline __m256i dot_q8(__m256i sum, __m256i q, __m256i k) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(k), _mm256_sign_epi8(q, k));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline __m256i load_part(const void *p, int n) {
    uint8_t part[32] = { 0 };
    memcpy(part, p, (size_t)n);
    return _mm256_loadu_si256((const __m256i *)part);
}
static inline void dot4_q8(int32_t *dot, const int8_t *q, const uint8_t *k, size_t k_stride,
                           int d) {
    __m256i s[4] = { 0 };
    int i = 0;
    for (; i + 32 <= d; i += 32) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(q + i));
        for (size_t r = 0; r < 4; r++)
            s[r] = dot_q8(s[r], x, _mm256_loadu_si256((const __m256i *)(k + r * k_stride + i)));
    }
    if (i < d) {
        __m256i x = load_part(q + i, d - i);
        for (size_t r = 0; r < 4; r++)
            s[r] = dot_q8(s[r], x, load_part(k + r * k_stride + i, d - i));
    }
    __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    _mm_storeu_si128((__m128i *)dot,
                     _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}

/* One row and four queries in 16 bits, `ld` apart: a dword each. */
static inline __m128i dot_row_q8(const uint8_t *row, const int16_t *q, size_t ld, int d) {
    __m256i sum[4];
    for (int j = 0; j < 4; j++) sum[j] = _mm256_setzero_si256();
    for (int i = 0; i < d; i += 16) {
        __m256i k = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + i)));
        for (size_t j = 0; j < 4; j++) {
            __m256i x = _mm256_loadu_si256((const __m256i *)(q + j * ld + i));
            sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(k, x));
        }
    }
    __m256i v =
        _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

#define SCORE_Q8
static int score4_q8(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                     const uint8_t *k, size_t k_stride, int n_pos, int d) {
    enum { MOST = 256 };
    if (d % 16 || d > MOST) return 0;
    int16_t wide[4 * MOST];
    for (size_t j = 0; j < 4; j++)
        for (size_t i = 0; i < (size_t)d; i++) wide[j * MOST + i] = q[j * ldq + i];
    __m128 scale = _mm_loadu_ps(q_scale);
    int p = 0;
    for (; p + 4 <= n_pos; p += 4) {
        __m128 x[4];
        for (int r = 0; r < 4; r++, k += k_stride) {
            __m128 f = _mm_mul_ps(scale, _mm_set1_ps(f16_bits(load_u16(k + d))));
            x[r] = _mm_mul_ps(f, _mm_cvtepi32_ps(dot_row_q8(k, wide, MOST, d)));
        }
        _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
        for (size_t t = 0; t < 4; t++) _mm_storeu_ps(s + t * lds + p, x[t]);
    }
    return p;
}

#include "float_lanes.inc"

void kern_float_avx2(Kern *k) {
    fill_float(k);
}
