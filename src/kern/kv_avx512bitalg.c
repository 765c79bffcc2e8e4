/* kv_avx512bitalg.c - the loops over k2 and k3 records with AVX-512 VNNI and BITALG: a block of 16
 * records is one vector of dwords, the code one multiply, one add and one population count. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kern.h"
#include "kv23.h"
#include "kv_q4.inc"

/* ---- encoder ---- */

static int select_best(uint8_t *state, uint8_t *cost, __m512i *c, int half, int beam) {
    int lo = half == 1 ? 2 : 0, hi = half == 0 ? 2 : 4, below = -1, n = 0;
    uint8_t bytes[256];
    __m512i m = _mm512_min_epu8(c[lo], c[lo + 1]);
    if (hi - lo == 4) m = _mm512_min_epu8(m, _mm512_min_epu8(c[2], c[3]));
    __m256i y = _mm256_min_epu8(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
    __m128i x = _mm_min_epu8(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    x = _mm_minpos_epu16(_mm_min_epu8(_mm_unpacklo_epi8(x, _mm_setzero_si128()),
                                      _mm_unpackhi_epi8(x, _mm_setzero_si128())));
    __m512i least = _mm512_set1_epi8((char)_mm_extract_epi8(x, 0));
    for (int v = lo; v < hi; v++) {
        c[v] = _mm512_sub_epi8(c[v], least);
        _mm512_storeu_si512(bytes + 64 * v, c[v]);
    }
    for (int step = 32; step;
         step /= 2) { /* the least limit in 0..63 that `beam` costs do not pass */
        __m512i limit = _mm512_set1_epi8((char)(below + step));
        int count = 0;
        for (int v = lo; v < hi; v++)
            count += __builtin_popcountll(_mm512_cmple_epu8_mask(c[v], limit));
        below += count < beam ? step : 0;
    }
    __m512i limit = _mm512_set1_epi8((char)MIN(below + 1, 63));
    for (int v = lo; v < hi; v++)
        for (uint64_t bits = _mm512_cmple_epu8_mask(c[v], limit); bits && n < 2 * beam;
             bits &= bits - 1) {
            state[n] = (uint8_t)(64 * v + __builtin_ctzll(bits));
            cost[n] = bytes[state[n]];
            n++;
        }
    return n;
}

static int kv_step(uint8_t *state, uint8_t *cost, const uint8_t *lut, const uint8_t *from,
                   const uint8_t *from_cost, int n, int half, int beam, const uint8_t *table) {
    __m512i l[4], least[4];
    for (int i = 0; i < 4; i++)
        l[i] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(lut + 16 * i)));
    for (int v = 0; v < 4; v++) {
        least[v] = _mm512_set1_epi8(-1);
        if (half >= 0 && half != v / 2) continue;
        for (int k = 0; k < n; k++) {
            const uint8_t *row = table + 1024 * from[k] + 64 * v;
            __m512i a = _mm512_shuffle_epi8(l[0], _mm512_loadu_si512(row));
            __m512i b = _mm512_shuffle_epi8(l[1], _mm512_loadu_si512(row + 256));
            __m512i c = _mm512_shuffle_epi8(l[2], _mm512_loadu_si512(row + 512));
            __m512i d = _mm512_shuffle_epi8(l[3], _mm512_loadu_si512(row + 768));
            a = _mm512_add_epi8(_mm512_add_epi8(a, b), _mm512_add_epi8(c, d));
            a = _mm512_adds_epu8(a, _mm512_set1_epi8((char)from_cost[k]));
            least[v] = _mm512_min_epu8(least[v], a);
        }
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

static __m512 units(const uint8_t *block, int d, int bits) {
    uint64_t b[2] = { 0, 0 }, row[2];
    for (int g = 0; g < 8; g++) {
        memcpy(row, block + kv_scale_step(g, d / 4) * KV_BLOCK, 16);
        b[0] |= (row[0] >> 7 & 0x0101010101010101u) << g;
        b[1] |= (row[1] >> 7 & 0x0101010101010101u) << g;
    }
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)b));
    __m512i m = _mm512_permutexvar_epi32(v, _mm512_loadu_si512(step_bits)); /* low 4 bits choose */
    __m512i e = _mm512_sub_epi32(_mm512_srli_epi32(v, 4), _mm512_set1_epi32(8));
    __mmask16 some = _mm512_test_epi32_mask(v, v);
    __m512i rms = _mm512_maskz_add_epi32(some, m, _mm512_slli_epi32(e, 23));
    return _mm512_mul_ps(_mm512_castsi512_ps(rms),
                         _mm512_set1_ps(bits == 2 ? 1 / KV_SCALE_K2 : 0.25f / KV_SCALE_K3));
}

static inline __m512i load16(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

/* p (k2) or u = 2p + 7, with its sign (k3), of one step; byte 4r + i is lane i of record r. */
static inline __m512i decode(__m512i prev, __m512i cur, const uint8_t *signs, int bits) {
    __m512i x = _mm512_or_si512(prev, _mm512_slli_epi32(cur, 8));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)T4_MUL));
    x = _mm512_add_epi32(x, _mm512_srli_epi32(x, 13));
    __m512i p = _mm512_popcnt_epi8(x);
    if (bits == 2) return p;
    uint64_t s;
    memcpy(&s, signs, 8);
    __m512i u = _mm512_add_epi8(_mm512_add_epi8(p, p), _mm512_set1_epi8(7));
    return _mm512_mask_sub_epi8(u, (__mmask64)s, _mm512_set1_epi8(31), u);
}

enum { TILE = 4 }; /* queries that share a decode */

static inline void score_block(float *s, size_t lds, const int8_t *q, size_t ldq,
                               const float *q_scale, const int32_t *q_sum, int n_q,
                               const uint8_t *block, int d, int bits) {
    const int nb = d / 4;
    const uint8_t *signs = block + nb * KV_BLOCK;
    __m512i prev = _mm512_setzero_si512(), sum[TILE];
    for (int j = 0; j < n_q; j++) sum[j] = _mm512_setzero_si512();
    for (int t = 0; t < nb; t++) {
        __m512i cur = load16(block + t * KV_BLOCK), p = decode(prev, cur, signs + 8 * t, bits);
        prev = cur;
        for (int j = 0; j < n_q; j++) {
            int32_t a;
            memcpy(&a, q + (size_t)j * ldq + 4 * (size_t)t, 4);
            sum[j] = _mm512_dpbusd_epi32(sum[j], p, _mm512_set1_epi32(a));
        }
    }
    __m512 unit = units(block, d, bits);
    for (int j = 0; j < n_q; j++) {
        __m512i dot = bits == 2 ? _mm512_sub_epi32(sum[j], _mm512_set1_epi32(4 * q_sum[j]))
                                : _mm512_sub_epi32(_mm512_add_epi32(sum[j], sum[j]),
                                                   _mm512_set1_epi32(31 * q_sum[j]));
        __m512 f = _mm512_mul_ps(unit, _mm512_set1_ps(q_scale[j]));
        _mm512_storeu_ps(s + (size_t)j * lds, _mm512_mul_ps(f, _mm512_cvtepi32_ps(dot)));
    }
}

static inline void score(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                         const int32_t *q_sum, int n_q, const uint8_t *blocks, int n_pos, int d,
                         int bits) {
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0; p < n_pos; p += KV_BLOCK, blocks += block_bytes)
        for (int j = 0; j < n_q; j += TILE) {
            float *out = s + (size_t)j * lds + (size_t)p;
            const int8_t *qj = q + (size_t)j * ldq;
            if (n_q - j >= TILE)
                score_block(out, lds, qj, ldq, q_scale + j, q_sum + j, TILE, blocks, d, bits);
            else
                score_block(out, lds, qj, ldq, q_scale + j, q_sum + j, n_q - j, blocks, d, bits);
        }
}

static void score_k2 SCORE_KV_ARGS {
    score(s, lds, q, ldq, q_scale, q_sum, n_q, blocks, n_pos, d, 2);
}

static void score_k3 SCORE_KV_ARGS {
    score(s, lds, q, ldq, q_scale, q_sum, n_q, blocks, n_pos, d, 3);
}

/* ---- values ---- */

enum { MAX_BLOCKS = 16 };

/* Weights of one query, high and low 7 bits, each dword (4 positions) four times: a vector a block.
 */
typedef struct Weights {
    __m512i hi[MAX_BLOCKS], lo[MAX_BLOCKS];
    int32_t sum;
    float step;
} Weights;

static void round_weights(Weights *w, const float *s, const __m512 *unit, int n_pos) {
    int blocks = (n_pos + 15) / 16;
    __m512 f[MAX_BLOCKS];
    __m512i top = _mm512_setzero_si512(), sum = _mm512_setzero_si512();
    for (int b = 0; b < blocks; b++) {
        int left = n_pos - 16 * b;
        __mmask16 m = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        f[b] = _mm512_maskz_mul_ps(m, _mm512_maskz_loadu_ps(m, s + 16 * b), unit[b]);
        /* as integers positive floats keep their order, and infinity and NaN come last */
        top = _mm512_max_epi32(
            top, _mm512_and_si512(_mm512_castps_si512(f[b]), _mm512_set1_epi32(0x7fffffff)));
    }
    int32_t bits = _mm512_reduce_max_epi32(top);
    float largest, inv;
    memcpy(&largest, &bits, 4);
    inv = 16383.0f / largest;
    w->step = !(largest < INFINITY) ? NAN : inv < INFINITY ? largest * (1.0f / 16383.0f) : 0;
    int none = !(largest < INFINITY) || !(inv < INFINITY);
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    for (int b = 0; b < blocks; b++) {
        __m512i n = _mm512_setzero_si512();
        if (!none)
            n = _mm512_cvttps_epi32(
                _mm512_add_ps(_mm512_mul_ps(f[b], _mm512_set1_ps(inv)), _mm512_set1_ps(0.5f)));
        sum = _mm512_add_epi32(sum, n);
        __m128i hi = _mm512_cvtepi32_epi8(_mm512_srli_epi32(n, 7));
        __m128i lo = _mm512_cvtepi32_epi8(_mm512_and_si512(n, _mm512_set1_epi32(127)));
        w->hi[b] = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(hi));
        w->lo[b] = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(lo));
    }
    w->sum = _mm512_reduce_add_epi32(sum);
}

/* Sums of the four lanes of step t over all positions, for up to TILE queries. */
static inline void accum_step(int32_t dot[TILE][4], const Weights *w, int n_q,
                              const uint8_t *blocks, int n_blocks, int t, int d, int bits) {
    const __m512i by_lane =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const int nb = d / 4;
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    __m512i hi[TILE], lo[TILE];
    for (int j = 0; j < n_q; j++) hi[j] = lo[j] = _mm512_setzero_si512();
    for (int b = 0; b < n_blocks; b++) {
        const uint8_t *block = blocks + (size_t)b * block_bytes, *row = block + t * KV_BLOCK;
        __m512i prev = t ? load16(row - KV_BLOCK) : _mm512_setzero_si512();
        __m512i p = decode(prev, load16(row), block + nb * KV_BLOCK + 8 * t, bits);
        p = _mm512_shuffle_epi8(p, by_lane); /* dword i of 128 bits: lane i of 4 positions */
        for (int j = 0; j < n_q; j++) {
            hi[j] = _mm512_dpbusd_epi32(hi[j], p, w[j].hi[b]);
            lo[j] = _mm512_dpbusd_epi32(lo[j], p, w[j].lo[b]);
        }
    }
    for (int j = 0; j < n_q; j++) {
        __m512i v = _mm512_add_epi32(_mm512_slli_epi32(hi[j], 7), lo[j]);
        __m256i x = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
        __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        _mm_storeu_si128((__m128i *)dot[j], y);
    }
}

static inline void accum_tile(float *acc, size_t ldacc, const float *factor, const Weights *w,
                              int n_q, const uint8_t *blocks, int n_blocks, int d, int bits) {
    int nb = d / 4;
    for (int t = 0; t < nb; t++) {
        int32_t dot[TILE][4];
        accum_step(dot, w, n_q, blocks, n_blocks, t, d, bits);
        for (int j = 0; j < n_q; j++)
            for (int i = 0; i < 4; i++) {
                float *a = &acc[(size_t)j * ldacc + (size_t)(i * nb + t)];
                int32_t x = bits == 2 ? dot[j][i] - 4 * w[j].sum : 2 * dot[j][i] - 31 * w[j].sum;
                *a = *a * factor[j] + w[j].step * (float)x;
            }
    }
}

static inline void accum(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                         int n_q, const uint8_t *blocks, int n_pos, int d, int bits) {
    __m512 unit[MAX_BLOCKS];
    Weights w[TILE];
    int n_blocks = (n_pos + 15) / 16;
    for (int b = 0; b < n_blocks; b++)
        unit[b] = units(blocks + (size_t)b * KV_BLOCK * kv_record_bytes(bits, d), d, bits);
    for (int j = 0; j < n_q; j += TILE) {
        int n = MIN((int)TILE, n_q - j);
        for (int i = 0; i < n; i++) round_weights(&w[i], s + (size_t)(j + i) * lds, unit, n_pos);
        if (n == TILE)
            accum_tile(acc + (size_t)j * ldacc, ldacc, factor + j, w, TILE, blocks, n_blocks, d,
                       bits);
        else
            accum_tile(acc + (size_t)j * ldacc, ldacc, factor + j, w, n, blocks, n_blocks, d, bits);
    }
}

static void accum_k2 ACCUM_KV_ARGS {
    accum(acc, ldacc, factor, s, lds, n_q, blocks, n_pos, d, 2);
}

static void accum_k3 ACCUM_KV_ARGS {
    accum(acc, ldacc, factor, s, lds, n_q, blocks, n_pos, d, 3);
}

void kern_kv_avx512bitalg(Kern *k) { /* kv_luts stays AVX2's: a table is 16 bytes */
    k->kv_step = kv_step;
    k->score_k2 = score_k2;
    k->score_k3 = score_k3;
    k->accum_k2 = accum_k2;
    k->accum_k3 = accum_k3;
    k->score_q4 = score_q4;
    k->accum_q4 = accum_q4;
}
