/* kv_avx2.c - the loops over k2 and k3 records with AVX2. A half block of 8 records is one vector
 * of dwords: dword r holds a state of record r, and after t4 the four lanes of its step. */
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kern.h"
#include "kv23.h"
#include "kv_q4.inc"

/* ---- encoder ---- */

static void kv_luts(uint8_t *lut, const float *x, float inv, const float *weight, int d, int bits) {
    int nb = d / 4;
    const __m256 first =
        bits == 2 ? _mm256_setr_ps(-4, -3, -2, -1, 0, 1, 2, 3)
                  : _mm256_setr_ps(4.25f, 3.25f, 2.25f, 1.25f, 0.25f, 0.75f, 1.75f, 2.75f);
    const __m256 last =
        _mm256_setr_ps(bits == 2 ? 4 : 3.75f, 1e9f, 1e9f, 1e9f, 1e9f, 1e9f, 1e9f, 1e9f);
    const __m256 most = _mm256_set1_ps(63), half = _mm256_set1_ps(0.5f);
    for (int k = 0; k < d; k++, lut += 16) {
        float w = x[k % 4 * nb + k / 4] * inv, near;
        w = bits == 2 ? w : fabsf(w);
        w = w > 16 ? 16 : w < -16 ? -16 : w;
        if (bits == 2) {
            near = rintf(w);
            near = near > 4 ? 4 : near < -4 ? -4 : near;
        } else {
            near = rintf((w - 0.25f) * 2);
            near = (near > 8 ? 8 : near < 0 ? 0 : near) * 0.5f + 0.25f;
        }
        __m256 gain = _mm256_set1_ps((bits == 2 ? 8.0f : 16.0f) * weight[k % 4]);
        __m256 v = _mm256_set1_ps(w), least = _mm256_set1_ps((w - near) * (w - near));
        __m256 a = _mm256_sub_ps(v, first), b = _mm256_sub_ps(v, last);
        a = _mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(a, a), least), gain);
        b = _mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(b, b), least), gain);
        __m256i ia = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_min_ps(a, most), half));
        __m256i ib = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_min_ps(b, most), half));
        __m256i w16 = _mm256_permute4x64_epi64(_mm256_packs_epi32(ia, ib), 0xd8);
        __m128i w8 =
            _mm_packus_epi16(_mm256_castsi256_si128(w16), _mm256_extracti128_si256(w16, 1));
        _mm_storeu_si128((__m128i *)lut, w8);
    }
}

/* The 64 bytes 2v, 2v + 1 of c that do not pass the limit, as bits. */
static inline uint64_t up_to(const __m256i *c, __m256i limit, int v) {
    __m256i a = _mm256_cmpeq_epi8(_mm256_min_epu8(c[2 * v], limit), c[2 * v]);
    __m256i b = _mm256_cmpeq_epi8(_mm256_min_epu8(c[2 * v + 1], limit), c[2 * v + 1]);
    return (uint32_t)_mm256_movemask_epi8(a) | (uint64_t)(uint32_t)_mm256_movemask_epi8(b) << 32;
}

static int select_best(uint8_t *state, uint8_t *cost, __m256i *c, int half, int beam) {
    int lo = half == 1 ? 2 : 0, hi = half == 0 ? 2 : 4, below = -1, n = 0;
    uint8_t bytes[256];
    __m256i m = _mm256_min_epu8(c[2 * lo], c[2 * hi - 1]);
    for (int v = 2 * lo + 1; v < 2 * hi - 1; v++) m = _mm256_min_epu8(m, c[v]);
    __m128i x = _mm_min_epu8(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    x = _mm_minpos_epu16(_mm_min_epu8(_mm_unpacklo_epi8(x, _mm_setzero_si128()),
                                      _mm_unpackhi_epi8(x, _mm_setzero_si128())));
    __m256i least = _mm256_set1_epi8((char)_mm_extract_epi8(x, 0));
    for (int v = 2 * lo; v < 2 * hi; v++) {
        c[v] = _mm256_sub_epi8(c[v], least);
        _mm256_storeu_si256((__m256i *)bytes + v, c[v]);
    }
    for (int step = 32; step;
         step /= 2) { /* the least limit in 0..63 that `beam` costs do not pass */
        int count = 0;
        for (int v = lo; v < hi; v++)
            count += __builtin_popcountll(up_to(c, _mm256_set1_epi8((char)(below + step)), v));
        below += count < beam ? step : 0;
    }
    __m256i limit = _mm256_set1_epi8((char)MIN(below + 1, 63));
    for (int v = lo; v < hi; v++)
        for (uint64_t bits = up_to(c, limit, v); bits && n < 2 * beam; bits &= bits - 1) {
            state[n] = (uint8_t)(64 * v + __builtin_ctzll(bits));
            cost[n] = bytes[state[n]];
            n++;
        }
    return n;
}

static int kv_step(uint8_t *state, uint8_t *cost, const uint8_t *lut, const uint8_t *from,
                   const uint8_t *from_cost, int n, int half, int beam, const uint8_t *table) {
    __m256i l[4], least[8];
    for (int i = 0; i < 4; i++)
        l[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(lut + 16 * i)));
    int lo = half == 1 ? 4 : 0, hi = half == 0 ? 4 : 8;
    for (int v = lo; v < hi; v++) {
        __m256i m = _mm256_set1_epi8(-1);
        for (int k = 0; k < n; k++) {
            const uint8_t *row = table + 1024 * from[k] + 32 * v;
            __m256i a = _mm256_shuffle_epi8(l[0], _mm256_loadu_si256((const __m256i *)row));
            __m256i b = _mm256_shuffle_epi8(l[1], _mm256_loadu_si256((const __m256i *)(row + 256)));
            __m256i c = _mm256_shuffle_epi8(l[2], _mm256_loadu_si256((const __m256i *)(row + 512)));
            __m256i d = _mm256_shuffle_epi8(l[3], _mm256_loadu_si256((const __m256i *)(row + 768)));
            a = _mm256_add_epi8(_mm256_add_epi8(a, b), _mm256_add_epi8(c, d)); /* at most 252 */
            m = _mm256_min_epu8(m, _mm256_adds_epu8(a, _mm256_set1_epi8((char)from_cost[k])));
        }
        least[v] = m;
    }
    return select_best(state, cost, least, half, beam);
}

/* ---- decode ---- */

static const int32_t step_bits[16] = { /* floats 2^(k/16) */
                                       0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3,
                                       0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
                                       0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c,
                                       0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d
};

/* Units of 8 records: bit g of a scale byte is bit 7 of a row, shifted in from above. */
static __m256 units(const uint8_t *half_block, int d, int bits) {
    const __m128i top = _mm_set1_epi8((char)128), rest = _mm_set1_epi8(127);
    __m128i b = _mm_setzero_si128();
    for (int g = 0; g < 8; g++) {
        __m128i row =
            _mm_loadl_epi64((const __m128i *)(half_block + kv_scale_step(g, d / 4) * KV_BLOCK));
        b = _mm_and_si128(_mm_srli_epi16(b, 1), rest);
        b = _mm_or_si128(b, _mm_and_si128(row, top));
    }
    __m256i v = _mm256_cvtepu8_epi32(b);
    __m256 lo = _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)step_bits));
    __m256 hi = _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)(step_bits + 8)));
    lo = _mm256_permutevar8x32_ps(lo, v); /* the low 3 bits choose, bit 3 which half */
    hi = _mm256_permutevar8x32_ps(hi, v);
    __m256i m = _mm256_castps_si256(
        _mm256_blendv_ps(lo, hi, _mm256_castsi256_ps(_mm256_slli_epi32(v, 28))));
    __m256i e = _mm256_sub_epi32(_mm256_srli_epi32(v, 4), _mm256_set1_epi32(8));
    __m256i rms = _mm256_add_epi32(m, _mm256_slli_epi32(e, 23));
    rms = _mm256_andnot_si256(_mm256_cmpeq_epi32(v, _mm256_setzero_si256()), rms);
    return _mm256_mul_ps(_mm256_castsi256_ps(rms),
                         _mm256_set1_ps(bits == 2 ? 1 / KV_SCALE_K2 : 0.25f / KV_SCALE_K3));
}

/* prev | cur << 8 of 8 records at step t. */
static inline __m256i states(const uint8_t *row, int t) {
    __m128i cur = _mm_loadl_epi64((const __m128i *)row), prev = _mm_setzero_si128();
    if (t) prev = _mm_loadl_epi64((const __m128i *)(row - KV_BLOCK));
    return _mm256_cvtepu16_epi32(_mm_unpacklo_epi8(prev, cur));
}

/* p (k2) or u = 2p + 7, with its sign (k3), of one step; byte 4r + i is lane i of record r. */
static inline __m256i decode(__m256i x, const uint8_t *signs, int bits) {
    const __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1,
                                          2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    x = _mm256_mullo_epi32(x, _mm256_set1_epi32((int)T4_MUL));
    x = _mm256_add_epi32(x, _mm256_srli_epi32(x, 13));
    __m256i a = _mm256_shuffle_epi8(ones, _mm256_and_si256(x, low));
    __m256i b = _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
    __m256i p = _mm256_add_epi8(a, b);
    if (bits == 2) return p;
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                            2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    int32_t s;
    memcpy(&s, signs, 4);
    __m256i m = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(s), spread), bit);
    __m256i u = _mm256_add_epi8(_mm256_add_epi8(p, p), _mm256_set1_epi8(7));
    /* 31 - u is u ^ 31 */
    return _mm256_xor_si256(u, _mm256_and_si256(_mm256_cmpeq_epi8(m, bit), _mm256_set1_epi8(31)));
}

enum { TILE = 4 }; /* queries that share a decode */

static inline void score_half(float *s, size_t lds, const int8_t *q, size_t ldq,
                              const float *q_scale, const int32_t *q_sum, int n_q,
                              const uint8_t *half, const uint8_t *signs, int d, int bits) {
    const int nb = d / 4, run = bits == 2 ? 16 : 4; /* steps whose int16 sums cannot overflow */
    const __m256i one = _mm256_set1_epi16(1);
    __m256i prev = _mm256_setzero_si256(), sum[TILE];
    for (int j = 0; j < n_q; j++) sum[j] = _mm256_setzero_si256();
    for (int t0 = 0; t0 < nb; t0 += run) {
        __m256i part[TILE];
        for (int j = 0; j < n_q; j++) part[j] = _mm256_setzero_si256();
        for (int t = t0; t < MIN(nb, t0 + run); t++) {
            const __m128i *row = (const __m128i *)(half + t * KV_BLOCK);
            __m256i cur = _mm256_cvtepu8_epi32(_mm_loadl_epi64(row));
            __m256i x = _mm256_or_si256(prev, _mm256_slli_epi32(cur, 8));
            __m256i p = decode(x, signs + 8 * t, bits);
            prev = cur;
            for (int j = 0; j < n_q; j++) {
                int32_t a;
                memcpy(&a, q + (size_t)j * ldq + 4 * (size_t)t, 4);
                part[j] = _mm256_add_epi16(part[j], _mm256_maddubs_epi16(p, _mm256_set1_epi32(a)));
            }
        }
        for (int j = 0; j < n_q; j++)
            sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(part[j], one));
    }
    __m256 unit = units(half, d, bits);
    for (int j = 0; j < n_q; j++) {
        __m256i dot = bits == 2 ? _mm256_sub_epi32(sum[j], _mm256_set1_epi32(4 * q_sum[j]))
                                : _mm256_sub_epi32(_mm256_add_epi32(sum[j], sum[j]),
                                                   _mm256_set1_epi32(31 * q_sum[j]));
        __m256 f = _mm256_mul_ps(unit, _mm256_set1_ps(q_scale[j]));
        _mm256_storeu_ps(s + (size_t)j * lds, _mm256_mul_ps(f, _mm256_cvtepi32_ps(dot)));
    }
}

static inline void score(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                         const int32_t *q_sum, int n_q, const uint8_t *blocks, int n_pos, int d,
                         int bits) {
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0; p < n_pos; p += KV_BLOCK, blocks += block_bytes)
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < n_q; j += TILE) {
                float *out = s + (size_t)j * lds + (size_t)(p + 8 * h);
                const int8_t *qj = q + (size_t)j * ldq;
                const uint8_t *half = blocks + 8 * h, *signs = blocks + d / 4 * KV_BLOCK + 4 * h;
                if (n_q - j >= TILE)
                    score_half(out, lds, qj, ldq, q_scale + j, q_sum + j, TILE, half, signs, d,
                               bits);
                else
                    score_half(out, lds, qj, ldq, q_scale + j, q_sum + j, n_q - j, half, signs, d,
                               bits);
            }
}

static void score_k2 SCORE_KV_ARGS {
    score(s, lds, q, ldq, q_scale, q_sum, n_q, blocks, n_pos, d, 2);
}

static void score_k3 SCORE_KV_ARGS {
    score(s, lds, q, ldq, q_scale, q_sum, n_q, blocks, n_pos, d, 3);
}

/* ---- values ---- */

enum { MAX_HALVES = 32 };

/* Weights of one query in 16 bits, those of 4 positions twice: a vector a half block. */
typedef struct Weights {
    __m256i w[MAX_HALVES];
    int32_t sum;
    float step;
} Weights;

static void round_weights(Weights *w, const float *s, const __m256 *unit, int n_pos) {
    int halves = (n_pos + 7) / 8;
    __m256 f[MAX_HALVES];
    __m256i top = _mm256_setzero_si256(), sum = _mm256_setzero_si256();
    for (int h = 0; h < halves; h++) {
        float last[8] = { 0 };
        const float *from = s + 8 * h;
        if (n_pos - 8 * h < 8) from = memcpy(last, from, sizeof *s * (size_t)(n_pos - 8 * h));
        f[h] = _mm256_mul_ps(_mm256_loadu_ps(from), unit[h]);
        /* as integers positive floats keep their order, and infinity and NaN come last */
        __m256i b = _mm256_and_si256(_mm256_castps_si256(f[h]), _mm256_set1_epi32(0x7fffffff));
        top = _mm256_max_epi32(top, b);
    }
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    float largest = _mm_cvtss_f32(_mm_castsi128_ps(most)), inv = 16383.0f / largest;
    w->step = !(largest < INFINITY) ? NAN : inv < INFINITY ? largest * (1.0f / 16383.0f) : 0;
    bool some = largest < INFINITY && inv < INFINITY;
    for (int h = 0; h < halves; h++) {
        __m256i n = _mm256_setzero_si256();
        __m256 x = _mm256_mul_ps(f[h], _mm256_set1_ps(inv));
        if (some) n = _mm256_cvttps_epi32(_mm256_add_ps(x, _mm256_set1_ps(0.5f)));
        sum = _mm256_add_epi32(sum, n);
        w->w[h] = _mm256_packs_epi32(n, n);
    }
    __m128i all = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    all = _mm_add_epi32(all, _mm_shuffle_epi32(all, 0x4e));
    w->sum = _mm_cvtsi128_si32(_mm_add_epi32(all, _mm_shuffle_epi32(all, 0xb1)));
}

/* Sums of the four lanes of step t over all positions, for up to TILE queries. */
static inline void accum_step(__m128i dot[TILE], const Weights *w, int n_q, const uint8_t *blocks,
                              int halves, int t, int d, int bits) {
    const __m256i by_lane = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
                                             0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i zero = _mm256_setzero_si256();
    const size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    __m256i lo[TILE], hi[TILE]; /* lanes 0 and 1, 2 and 3: two sums each in 128 bits */
    for (int j = 0; j < n_q; j++) lo[j] = hi[j] = zero;
    for (int h = 0; h < halves; h++) {
        const uint8_t *block = blocks + (size_t)(h / 2) * block_bytes;
        __m256i p = decode(states(block + t * KV_BLOCK + h % 2 * 8, t),
                           block + d / 4 * KV_BLOCK + 8 * t + h % 2 * 4, bits);
        p = _mm256_shuffle_epi8(p, by_lane); /* dword i: lane i of 4 positions */
        __m256i a = _mm256_unpacklo_epi8(p, zero), b = _mm256_unpackhi_epi8(p, zero);
        for (int j = 0; j < n_q; j++) {
            lo[j] = _mm256_add_epi32(lo[j], _mm256_madd_epi16(a, w[j].w[h]));
            hi[j] = _mm256_add_epi32(hi[j], _mm256_madd_epi16(b, w[j].w[h]));
        }
    }
    for (int j = 0; j < n_q; j++) {
        __m256i v = _mm256_hadd_epi32(lo[j], hi[j]);
        dot[j] = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    }
}

/* Four steps of one query, turned to four coordinates of each lane; x gets its share of acc. */
static inline void store_steps(float *x, __m128i a, __m128i b, __m128i c, __m128i e, int nb,
                               const Weights *w, int bits) {
    __m128i ab = _mm_unpacklo_epi32(a, b), ce = _mm_unpacklo_epi32(c, e);
    __m128i ab2 = _mm_unpackhi_epi32(a, b), ce2 = _mm_unpackhi_epi32(c, e);
    __m128i lane[4] = { _mm_unpacklo_epi64(ab, ce), _mm_unpackhi_epi64(ab, ce),
                        _mm_unpacklo_epi64(ab2, ce2), _mm_unpackhi_epi64(ab2, ce2) };
    __m128i offset = _mm_set1_epi32((bits == 2 ? 4 : 31) * w->sum);
    for (int i = 0; i < 4; i++) {
        __m128i n = bits == 2 ? lane[i] : _mm_add_epi32(lane[i], lane[i]);
        __m128 f = _mm_cvtepi32_ps(_mm_sub_epi32(n, offset));
        _mm_storeu_ps(x + i * nb, _mm_mul_ps(_mm_set1_ps(w->step), f));
    }
}

static inline void accum_tile(float *acc, size_t ldacc, const float *factor, const Weights *w,
                              int n_q, const uint8_t *blocks, int halves, int d, int bits) {
    int nb = d / 4;
    float x[TILE][KV_MAX_DIM];
    for (int t = 0; t < nb; t += 4) {
        __m128i dot[4][TILE];
        for (int k = 0; k < 4; k++) accum_step(dot[k], w, n_q, blocks, halves, t + k, d, bits);
        for (int j = 0; j < n_q; j++)
            store_steps(x[j] + t, dot[0][j], dot[1][j], dot[2][j], dot[3][j], nb, &w[j], bits);
    }
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c += 8) {
            float *a = acc + (size_t)j * ldacc + (size_t)c;
            __m256 old = _mm256_mul_ps(_mm256_loadu_ps(a), _mm256_set1_ps(factor[j]));
            _mm256_storeu_ps(a, _mm256_add_ps(old, _mm256_loadu_ps(x[j] + c)));
        }
}

static inline void accum(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                         int n_q, const uint8_t *blocks, int n_pos, int d, int bits) {
    __m256 unit[MAX_HALVES];
    Weights w[TILE];
    int halves = (n_pos + 7) / 8;
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int h = 0; h < halves; h++)
        unit[h] = units(blocks + (size_t)(h / 2) * block_bytes + h % 2 * 8, d, bits);
    for (int j = 0; j < n_q; j += TILE) {
        int n = MIN((int)TILE, n_q - j);
        for (int i = 0; i < n; i++) round_weights(&w[i], s + (size_t)(j + i) * lds, unit, n_pos);
        if (n == TILE)
            accum_tile(acc + (size_t)j * ldacc, ldacc, factor + j, w, TILE, blocks, halves, d,
                       bits);
        else
            accum_tile(acc + (size_t)j * ldacc, ldacc, factor + j, w, n, blocks, halves, d, bits);
    }
}

static void accum_k2 ACCUM_KV_ARGS {
    accum(acc, ldacc, factor, s, lds, n_q, blocks, n_pos, d, 2);
}

static void accum_k3 ACCUM_KV_ARGS {
    accum(acc, ldacc, factor, s, lds, n_q, blocks, n_pos, d, 3);
}

/* ---- q4 rows in whole groups of 32 values; else the loops of kv_q4.inc ---- */

/* Products of four queries with the codes of one group: a dword each. */
static inline __m128i dot_q4(__m256i codes, const int8_t *q, size_t ldq) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i sum[4];
    for (size_t j = 0; j < 4; j++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(q + j * ldq));
        sum[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), one);
    }
    __m256i v =
        _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

/* Scores of one row for four queries; excess: 8 times the sum of each query's group. */
static inline __m128 score_row_q4(const uint8_t *row, const int8_t *q, size_t ldq, __m128 q_scale,
                                  const __m128i *excess, int d) {
    const __m128i low = _mm_set1_epi8(15);
    __m128 sum = _mm_setzero_ps();
    for (int g = 0; 32 * g < d; g++) {
        __m128i c = _mm_loadu_si128((const __m128i *)(row + 16 * g));
        __m256i codes =
            _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(c, 4), low), _mm_and_si128(c, low));
        __m128i dot = _mm_sub_epi32(dot_q4(codes, q + 32 * g, ldq), excess[g]);
        __m128 scale = _mm_set1_ps(_cvtsh_ss(load_u16(row + d / 2 + 2 * g)));
        sum = _mm_add_ps(sum, _mm_mul_ps(_mm_mul_ps(q_scale, scale), _mm_cvtepi32_ps(dot)));
    }
    return sum;
}

/* Four queries, of which n are stored. */
static void score4_q4(float *s, size_t lds, const int8_t *q, size_t ldq, __m128 scale, int n,
                      const uint8_t *k, size_t k_stride, int n_pos, int d) {
    __m128i excess[KV_MAX_DIM / 32];
    for (int g = 0; 32 * g < d; g++) excess[g] = dot_q4(_mm256_set1_epi8(8), q + 32 * g, ldq);
    for (int p = 0; p < n_pos; p += 4) {
        __m128 x[4];
        int rows = MIN(4, n_pos - p);
        for (int r = 0; r < 4; r++) /* the last row stands in for missing ones */
            x[r] = score_row_q4(k + (size_t)(p + MIN(r, rows - 1)) * k_stride, q, ldq, scale,
                                excess, d);
        _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
        for (int t = 0; t < n; t++) {
            float four[4], *out = s + (size_t)t * lds + p;
            _mm_storeu_ps(rows == 4 ? out : four, x[t]);
            if (rows < 4) memcpy(out, four, (size_t)rows * sizeof *out);
        }
    }
}

static void score_q4_avx2(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                          int n_q, const uint8_t *k, size_t k_stride, int n_pos, int d) {
    if (d % 32) {
        score_q4(s, lds, q, ldq, q_scale, n_q, k, k_stride, n_pos, d);
        return;
    }
    for (; n_q >= 4; n_q -= 4, q += 4 * ldq, s += 4 * lds, q_scale += 4)
        score4_q4(s, lds, q, ldq, _mm_loadu_ps(q_scale), 4, k, k_stride, n_pos, d);
    if (n_q == 0) return;
    int8_t rest[4 * KV_MAX_DIM] = { 0 };
    float scale[4] = { 0 };
    for (int j = 0; j < n_q; j++) {
        memcpy(rest + j * KV_MAX_DIM, q + (size_t)j * ldq, (size_t)d);
        scale[j] = q_scale[j];
    }
    score4_q4(s, lds, rest, KV_MAX_DIM, _mm_loadu_ps(scale), n_q, k, k_stride, n_pos, d);
}

static inline void unpack_row_q4(float *x, const uint8_t *row, int d) {
    const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    for (int g = 0; 32 * g < d; g++, x += 32) {
        __m128i c = _mm_loadu_si128((const __m128i *)(row + 16 * g));
        __m256 scale = _mm256_set1_ps(_cvtsh_ss(load_u16(row + d / 2 + 2 * g)));
        __m128i codes[2] = { _mm_sub_epi8(_mm_and_si128(c, low), eight),
                             _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(c, 4), low), eight) };
        for (int i = 0; i < 4; i++) {
            __m128i part = i % 2 ? _mm_unpackhi_epi64(codes[i / 2], codes[i / 2]) : codes[i / 2];
            __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(part));
            _mm256_storeu_ps(x + 8 * i, _mm256_mul_ps(scale, v));
        }
    }
}

enum { Q4_ROWS = 16 }; /* unpacked at a time */

/* 16 columns of T queries over n unpacked rows. */
static inline __attribute__((always_inline)) void add_rows(int T, float *acc, size_t ldacc,
                                                           const float *s, size_t lds,
                                                           float (*x)[KV_MAX_DIM], int n, int c) {
    __m256 a[4][2];
    for (int j = 0; j < T; j++)
        for (int i = 0; i < 2; i++) a[j][i] = _mm256_loadu_ps(acc + (size_t)j * ldacc + 8 * i);
    for (int p = 0; p < n; p++) {
        __m256 u = _mm256_loadu_ps(x[p] + c), v = _mm256_loadu_ps(x[p] + c + 8);
        for (int j = 0; j < T; j++) {
            __m256 w = _mm256_set1_ps(s[(size_t)j * lds + (size_t)p]);
            a[j][0] = _mm256_add_ps(a[j][0], _mm256_mul_ps(w, u));
            a[j][1] = _mm256_add_ps(a[j][1], _mm256_mul_ps(w, v));
        }
    }
    for (int j = 0; j < T; j++)
        for (int i = 0; i < 2; i++) _mm256_storeu_ps(acc + (size_t)j * ldacc + 8 * i, a[j][i]);
}

static void accum_q4_avx2(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                          int n_q, const uint8_t *v, size_t v_stride, int n_pos, int d) {
    if (d % 32) {
        accum_q4(acc, ldacc, factor, s, lds, n_q, v, v_stride, n_pos, d);
        return;
    }
    float x[Q4_ROWS][KV_MAX_DIM];
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c++) acc[(size_t)j * ldacc + (size_t)c] *= factor[j];
    for (int p = 0; p < n_pos; p += Q4_ROWS) {
        int n = MIN((int)Q4_ROWS, n_pos - p);
        for (int r = 0; r < n; r++) unpack_row_q4(x[r], v + (size_t)(p + r) * v_stride, d);
        for (int j = 0; j < n_q; j += 4)
            for (int c = 0; c < d; c += 16) {
                float *a = acc + (size_t)j * ldacc + c;
                const float *w = s + (size_t)j * lds + p;
                if (n_q - j >= 4) add_rows(4, a, ldacc, w, lds, x, n, c);
                if (n_q - j == 3) add_rows(3, a, ldacc, w, lds, x, n, c);
                if (n_q - j == 2) add_rows(2, a, ldacc, w, lds, x, n, c);
                if (n_q - j == 1) add_rows(1, a, ldacc, w, lds, x, n, c);
            }
    }
}

void kern_kv_avx2(Kern *k) {
    k->kv_luts = kv_luts;
    k->kv_step = kv_step;
    k->score_k2 = score_k2;
    k->score_k3 = score_k3;
    k->accum_k2 = accum_k2;
    k->accum_k3 = accum_k3;
    k->score_q4 = score_q4_avx2;
    k->accum_q4 = accum_q4_avx2;
}
