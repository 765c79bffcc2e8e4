/* trellis_avx512vnni.c - products with t2 and t3 weights with AVX-512 VNNI alone (Cascade Lake),
 * and the rotation of their inputs. */
#include "trellis_avx512.h"

#include <math.h>

/* x[j..j+15] * scale with the signs of trellis23.h; `at` is seed + j * 0x9e3779b9 and so on. */
INLINE __m512 with_hash_signs(__m512 x, __m512i at, float scale) {
    at = _mm512_xor_si512(at, _mm512_srli_epi32(at, 16));
    at = _mm512_mullo_epi32(at, _mm512_set1_epi32(0x7feb352d));
    at = _mm512_xor_si512(at, _mm512_srli_epi32(at, 15));
    at = _mm512_mullo_epi32(at, _mm512_set1_epi32((int)0x846ca68bu)); /* the top bit is final */
    x = _mm512_mul_ps(x, _mm512_set1_ps(scale));
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(x), at, _mm512_set1_epi32(INT32_MIN), 0x78)); /* x ^ (at & top) */
}

INLINE __m512i sign_index(uint32_t seed) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32((int)seed),
                            _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)0x9e3779b9u)));
}

/* Sums and differences of v[k] and v[k + step], for step 1, 2, .. n / 2. */
INLINE void butterflies(__m512 *v, const int n) {
    for (int h = 1; h < n; h *= 2)
        for (int k = 0; k < n; k++)
            if (!(k & h)) {
                __m512 a = v[k], b = v[k + h];
                v[k] = _mm512_add_ps(a, b);
                v[k + h] = _mm512_sub_ps(a, b);
            }
}

/* The same between the values of one vector: sum, or first less second in the second's place. The
 * fused product is by 1 or -1, so nothing is rounded twice or not at all. */
INLINE __m512 butterflies_within(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), m = _mm512_set1_ps(-1);
    x = _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xaaaa, m), _mm512_permute_ps(x, 0xb1));
    x = _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xcccc, m), _mm512_permute_ps(x, 0x4e));
    x = _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xf0f0, m), _mm512_shuffle_f32x4(x, x, 0xb1));
    return _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, 0xff00, m), _mm512_shuffle_f32x4(x, x, 0x4e));
}

/* Of values `step` (a multiple of 8), 2 step, .. n_v / 2 * step apart. */
INLINE void pass(float *x, size_t n, size_t step, const int n_v) {
    for (size_t i = 0; i < n; i += (size_t)n_v * step)
        for (size_t j = i; j < i + step; j += 16) {
            __mmask16 m = i + step - j < 16 ? 0xff : 0xffff;
            __m512 v[8];
            for (int k = 0; k < n_v; k++) v[k] = _mm512_maskz_loadu_ps(m, x + j + (size_t)k * step);
            butterflies(v, n_v);
            for (int k = 0; k < n_v; k++) _mm512_mask_storeu_ps(x + j + (size_t)k * step, m, v[k]);
        }
}

/* Of values step, 2 step, .. end / 2 apart, three distances at a time. */
static void passes(float *x, size_t n, size_t step, size_t end) {
    for (; 8 * step <= end; step *= 8) pass(x, n, step, 8);
    if (4 * step == end) pass(x, n, step, 4);
    if (2 * step == end) pass(x, n, step, 2);
}

static void rotate(float *dst, const float *x, int count, uint32_t seed) {
    size_t n = (size_t)count, b = n & (~n + 1), m = n / b;
    float scale = (float)(1 / sqrt((double)b)), scale2 = (float)(1 / sqrt((double)b / 8));
    const __m512i step = _mm512_set1_epi32((int)(16 * 0x9e3779b9u));
    __m512i at = sign_index(seed);
    for (size_t i = 0; i < n; i += 32) { /* distances 1 to 16 */
        __m512 v[2];
        for (int k = 0; k < 2; k++) {
            v[k] = with_hash_signs(_mm512_loadu_ps(x + i + 16 * (size_t)k), at, scale);
            v[k] = butterflies_within(v[k]);
            at = _mm512_add_epi32(at, step);
        }
        butterflies(v, 2);
        for (int k = 0; k < 2; k++) _mm512_storeu_ps(dst + i + 16 * (size_t)k, v[k]);
    }
    passes(dst, n, 32, b);
    if (m == 1) return;
    at = sign_index(seed + 1);
    for (size_t i = 0; i < n; i += 16, at = _mm512_add_epi32(at, step))
        _mm512_storeu_ps(dst + i, with_hash_signs(_mm512_loadu_ps(dst + i), at, scale2));
    passes(dst, n, 8 * m, n);
}

void kern_trellis_avx512vnni(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
    k->rotate = rotate;
}
