/* float_avx512.c - the float loops in AVX-512: vectors of 16; the loops are in float_lanes.inc. */
#include "kern.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "codec.h"

#define W          16
#define PARTS      1
#define TOKENS     5
#define COLS       4
#define EXPS       4
#define SCORE_ROWS 4

typedef __m512 V;

static inline float f16_bits(uint16_t h) {
    return _cvtsh_ss(h);
}
static inline V v_zero(void) {
    return _mm512_setzero_ps();
}
static inline V v_set1(float f) {
    return _mm512_set1_ps(f);
}
static inline V v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, V a) {
    _mm512_storeu_ps(p, a);
}
static inline V v_add(V a, V b) {
    return _mm512_add_ps(a, b);
}
static inline V v_sub(V a, V b) {
    return _mm512_sub_ps(a, b);
}
static inline V v_mul(V a, V b) {
    return _mm512_mul_ps(a, b);
}
static inline V v_div(V a, V b) {
    return _mm512_div_ps(a, b);
}
static inline V v_abs(V a) {
    return _mm512_abs_ps(a);
}
static inline V v_max(V x, V m) {
    return _mm512_max_ps(x, m); /* the second one when either is NaN */
}
static inline float v_top(V a) {
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static inline V v_pick(V a, V b, V x, V y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
static inline V v_f16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline V v_bf16(const uint8_t *p) {
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}
static inline V v_i8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline void v_to_f16(uint8_t *p, V a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline void v_to_i8(uint8_t *p, V t) {
    __m512i round = _mm512_castps_si512(_mm512_set1_ps(KERN_ROUND));
    __m512i k = _mm512_sub_epi32(_mm512_castps_si512(t), round);
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(k));
}
static inline V v_pow2(V t) {
    __m512i round = _mm512_castps_si512(_mm512_set1_ps(KERN_ROUND));
    __m512i k = _mm512_sub_epi32(_mm512_castps_si512(t), round);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(k, _mm512_set1_epi32(127)), 23));
}
static inline void v_pairs(const float *x, V *a, V *b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    V u = v_load(x), v = v_load(x + 16);
    *a = _mm512_permutex2var_ps(u, even, v);
    *b = _mm512_permutex2var_ps(u, odd, v);
}
static inline void v_unpairs(float *x, V a, V b) {
    const __m512i lo = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i hi = _mm512_add_epi32(lo, _mm512_set1_epi32(8));
    v_store(x, _mm512_permutex2var_ps(a, lo, b));
    v_store(x + 16, _mm512_permutex2var_ps(a, hi, b));
}

/* Lanes j and j+8, then j and j+4. */
static inline __m128 fold4(const V *s) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(*s), _mm512_extractf32x8_ps(*s, 1));
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

/* Lanes j and j+8, j and j+4, j and j+2, 0 and 1 of four rows and four queries side by side. */
static inline void v_tree_rows(float *s, size_t lds, V sum[SCORE_ROWS][4]) {
    V g[SCORE_ROWS];
    for (int r = 0; r < SCORE_ROWS; r++) {
        V *q = sum[r];
        V a = _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x44),
                            _mm512_shuffle_f32x4(q[0], q[1], 0xee));
        V b = _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x44),
                            _mm512_shuffle_f32x4(q[2], q[3], 0xee));
        g[r] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    V h = _mm512_add_ps(_mm512_shuffle_ps(g[0], g[1], 0x44), _mm512_shuffle_ps(g[0], g[1], 0xee));
    V k = _mm512_add_ps(_mm512_shuffle_ps(g[2], g[3], 0x44), _mm512_shuffle_ps(g[2], g[3], 0xee));
    V y = _mm512_add_ps(_mm512_shuffle_ps(h, k, 0x88), _mm512_shuffle_ps(h, k, 0xdd));
    _mm_storeu_ps(s, _mm512_castps512_ps128(y));
    _mm_storeu_ps(s + lds, _mm512_extractf32x4_ps(y, 1));
    _mm_storeu_ps(s + 2 * lds, _mm512_extractf32x4_ps(y, 2));
    _mm_storeu_ps(s + 3 * lds, _mm512_extractf32x4_ps(y, 3));
}

static inline int32_t sum_i32(__m512i s) {
    __m256i a = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
/* |k| times q with the sign of k. */
static inline __m512i dot_q8(__m512i sum, __m512i q, __m512i k) {
    __m512i x = _mm512_mask_sub_epi8(q, _mm512_movepi8_mask(k), _mm512_setzero_si512(), q);
    return _mm512_dpbusd_epi32(sum, _mm512_abs_epi8(k), x);
}
static inline void dot4_q8(int32_t *dot, const int8_t *q, const uint8_t *k, size_t k_stride,
                           int d) {
    __m512i s[4];
    for (size_t r = 0; r < 4; r++) s[r] = _mm512_setzero_si512();
    int i = 0;
    for (; i + 64 <= d; i += 64) {
        __m512i x = _mm512_loadu_si512(q + i);
        for (size_t r = 0; r < 4; r++)
            s[r] = dot_q8(s[r], x, _mm512_loadu_si512(k + r * k_stride + i));
    }
    if (i < d) {
        __mmask64 m = ~(__mmask64)0 >> (64 - (d - i));
        __m512i x = _mm512_maskz_loadu_epi8(m, q + i);
        for (size_t r = 0; r < 4; r++)
            s[r] = dot_q8(s[r], x, _mm512_maskz_loadu_epi8(m, k + r * k_stride + i));
    }
    for (size_t r = 0; r < 4; r++) dot[r] = sum_i32(s[r]);
}

/* Sums of four rows and four queries: dword 4j + r. */
static inline __m512i tree_i32(__m512i sum[4][4]) {
    __m512i g[4];
    for (int r = 0; r < 4; r++) {
        __m512i *q = sum[r];
        __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(q[0], q[1], 0x44),
                                     _mm512_shuffle_i32x4(q[0], q[1], 0xee));
        __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(q[2], q[3], 0x44),
                                     _mm512_shuffle_i32x4(q[2], q[3], 0xee));
        g[r] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    }
    __m512i h = _mm512_add_epi32(_mm512_unpacklo_epi32(g[0], g[1]),
                                 _mm512_unpackhi_epi32(g[0], g[1])); /* r0 r1 r0 r1 */
    __m512i k =
        _mm512_add_epi32(_mm512_unpacklo_epi32(g[2], g[3]), _mm512_unpackhi_epi32(g[2], g[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(h, k), _mm512_unpackhi_epi64(h, k));
}

static inline __mmask64 first_bytes(int n) {
    return n >= 64 ? ~(__mmask64)0 : ~(__mmask64)0 >> (64 - n);
}

/* Rows become unsigned by adding 128; 128 times the query's sum is taken off again. */
#define SCORE_Q8
static int score4_q8(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                     const uint8_t *k, size_t k_stride, int n_pos, int d) {
    const __m512i flip = _mm512_set1_epi8((char)128);
    _Alignas(64) int32_t excess[16];
    _Alignas(64) float scale[16];
    for (int j = 0; j < 4; j++) {
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < d; i += 64)
            sum = _mm512_dpbusd_epi32(
                sum, flip, _mm512_maskz_loadu_epi8(first_bytes(d - i), q + (size_t)j * ldq + i));
        int32_t of = sum_i32(sum);
        for (int r = 0; r < 4; r++) excess[4 * j + r] = of, scale[4 * j + r] = q_scale[j];
    }
    int p = 0;
    for (; p + 4 <= n_pos; p += 4, k += 4 * k_stride) {
        __m512i sum[4][4];
        uint64_t halves = 0;
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_si512();
        for (int i = 0; i < d; i += 64) {
            __mmask64 m = first_bytes(d - i);
            __m512i x[4];
            for (size_t j = 0; j < 4; j++) x[j] = _mm512_maskz_loadu_epi8(m, q + j * ldq + i);
            for (size_t r = 0; r < 4; r++) {
                __m512i row = _mm512_maskz_loadu_epi8(m, k + r * k_stride + i);
                row = _mm512_xor_si512(row, flip);
                for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], row, x[j]);
            }
        }
        for (size_t r = 0; r < 4; r++)
            halves |= (uint64_t)load_u16(k + r * k_stride + d) << (16 * r);
        V rows = _mm512_broadcast_f32x4(_mm_cvtph_ps(_mm_cvtsi64_si128((long long)halves)));
        V f = _mm512_mul_ps(_mm512_load_ps(scale), rows);
        __m512i dot = _mm512_sub_epi32(tree_i32(sum), _mm512_load_si512(excess));
        f = _mm512_mul_ps(f, _mm512_cvtepi32_ps(dot));
        _mm_storeu_ps(s + p, _mm512_castps512_ps128(f));
        _mm_storeu_ps(s + lds + p, _mm512_extractf32x4_ps(f, 1));
        _mm_storeu_ps(s + 2 * lds + p, _mm512_extractf32x4_ps(f, 2));
        _mm_storeu_ps(s + 3 * lds + p, _mm512_extractf32x4_ps(f, 3));
    }
    return p;
}

#include "float_lanes.inc"

void kern_float_avx512(Kern *k) {
    fill_float(k);
}
