/* kv_avx512bitalg.c - the loops over k2 and k3 records with AVX-512 VNNI and BITALG: a block of 16
 * records is one vector of dwords, the code one multiply, one add and one population count. VBMI
 * puts their bytes in place. */
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kern.h"
#include "kv23.h"

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

/* Scale bytes of 16 records: bit g is bit 7 of a row, shifted in from above. */
static __m512 units(const uint8_t *block, int d, int bits) {
    const __m128i low = _mm_set1_epi8(127);
    __m128i b = _mm_setzero_si128();
    for (int g = 0; g < 8; g++) {
        const uint8_t *row = block + kv_scale_step(g, d / 4) * KV_BLOCK;
        b = _mm_ternarylogic_epi32(_mm_loadu_si128((const __m128i *)row), _mm_srli_epi16(b, 1), low,
                                   0xd8); /* low ? b >> 1 : row */
    }
    __m512i v = _mm512_cvtepu8_epi32(b);
    __m512i m = _mm512_permutexvar_epi32(v, _mm512_loadu_si512(step_bits)); /* low 4 bits choose */
    __m512i e = _mm512_sub_epi32(_mm512_srli_epi32(v, 4), _mm512_set1_epi32(8));
    __mmask16 some = _mm512_test_epi32_mask(v, v);
    __m512i rms = _mm512_maskz_add_epi32(some, m, _mm512_slli_epi32(e, 23));
    return _mm512_mul_ps(_mm512_castsi512_ps(rms),
                         _mm512_set1_ps(bits == 2 ? 1 / KV_SCALE_K2 : 0.25f / KV_SCALE_K3));
}

/* prev | cur << 8 of 16 records at step t > 0: the rows of both lie side by side. */
static inline __m512i states(const uint8_t *row) {
    const __m512i each = _mm512_add_epi32(
        _mm512_set1_epi32(0x1000),
        _mm512_mullo_epi32(_mm512_set1_epi32(0x101), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                                       10, 11, 12, 13, 14, 15)));
    __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(row - KV_BLOCK)));
    return _mm512_maskz_permutexvar_epi8(0x3333333333333333u, each, x);
}

static inline __m512i first_states(const uint8_t *row) {
    return _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)row)), 8);
}

/* p (k2) or u = 2p + 7, with its sign (k3), of one step; byte 4r + i is lane i of record r. */
static inline __m512i decode(__m512i x, const uint8_t *signs, int bits) {
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)T4_MUL));
    x = _mm512_add_epi32(x, _mm512_srli_epi32(x, 13));
    __m512i p = _mm512_popcnt_epi8(x);
    if (bits == 2) return p;
    uint64_t s;
    memcpy(&s, signs, 8);
    __m512i u = _mm512_add_epi8(_mm512_add_epi8(p, p), _mm512_set1_epi8(7));
    return _mm512_mask_sub_epi8(u, (__mmask64)s, _mm512_set1_epi8(31), u);
}

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 4 }; /* queries that share a decode */

/* Sums of products of n_q queries with B blocks side by side: queries are read once for all. */
INLINE void score_tile(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                       const int32_t *q_sum, int n_q, int B, const uint8_t *block, int d,
                       int bits) {
    const size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    const uint8_t *row = block, *signs = block + d / 4 * KV_BLOCK;
    __m512i sum[2][TILE];
    UNROLL for (int b = 0; b < B; b++) UNROLL for (int j = 0; j < TILE; j++) sum[b][j] =
        _mm512_setzero_si512();
    for (int t = 0; t < d / 4; t += 4)
        UNROLL for (int k = 0; k < 4; k++, row += KV_BLOCK, signs += 8, q += 4) {
            __m512i p[2];
            UNROLL for (int b = 0; b < B; b++) {
                const uint8_t *r = row + (size_t)b * block_bytes;
                __m512i x = t + k ? states(r) : first_states(r);
                p[b] = decode(x, signs + (size_t)b * block_bytes, bits);
            }
            UNROLL for (int j = 0; j < n_q; j++) {
                int32_t x;
                memcpy(&x, q + (size_t)j * ldq, 4);
                UNROLL for (int b = 0; b < B; b++) sum[b][j] =
                    _mm512_dpbusd_epi32(sum[b][j], p[b], _mm512_set1_epi32(x));
            }
        }
    UNROLL for (int b = 0; b < B; b++) {
        __m512 unit = units(block + (size_t)b * block_bytes, d, bits);
        UNROLL for (int j = 0; j < n_q; j++) {
            __m512i x = bits == 2 ? sum[b][j] : _mm512_add_epi32(sum[b][j], sum[b][j]);
            __m512i dot = _mm512_sub_epi32(x, _mm512_set1_epi32((bits == 2 ? 4 : 31) * q_sum[j]));
            __m512 f = _mm512_mul_ps(unit, _mm512_set1_ps(q_scale[j]));
            _mm512_storeu_ps(s + (size_t)j * lds + KV_BLOCK * b,
                             _mm512_mul_ps(f, _mm512_cvtepi32_ps(dot)));
        }
    }
}

#define SCORE_TILE(bits, B)                                                                        \
    static __attribute__((noinline)) void score_k##bits##_##B(                                     \
        float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,                   \
        const int32_t *q_sum, const uint8_t *block, int d) {                                       \
        score_tile(s, lds, q, ldq, q_scale, q_sum, TILE, B, block, d, bits);                       \
    }
SCORE_TILE(2, 1)
SCORE_TILE(2, 2)
SCORE_TILE(3, 1)
SCORE_TILE(3, 2)

static inline void score(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                         const int32_t *q_sum, int n_q, const uint8_t *blocks, int n_pos, int d,
                         int bits) {
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0, step; p < n_pos; p += step, blocks += (size_t)step / KV_BLOCK * block_bytes) {
        step = n_pos - p > KV_BLOCK ? 2 * KV_BLOCK : KV_BLOCK;
        for (int j = 0; j < n_q; j += TILE) {
            float *out = s + (size_t)j * lds + (size_t)p;
            const int8_t *qj = q + (size_t)j * ldq;
            const float *scale = q_scale + j;
            if (n_q - j < TILE) {
                for (int b = 0; b < step / KV_BLOCK; b++, out += KV_BLOCK) {
                    const uint8_t *block = blocks + (size_t)b * block_bytes;
                    const int32_t *sum = q_sum + j;
                    if (n_q - j == 3)
                        score_tile(out, lds, qj, ldq, scale, sum, 3, 1, block, d, bits);
                    if (n_q - j == 2)
                        score_tile(out, lds, qj, ldq, scale, sum, 2, 1, block, d, bits);
                    if (n_q - j == 1)
                        score_tile(out, lds, qj, ldq, scale, sum, 1, 1, block, d, bits);
                }
            } else if (step == KV_BLOCK) {
                (bits == 2 ? score_k2_1 : score_k3_1)(out, lds, qj, ldq, scale, q_sum + j, blocks,
                                                      d);
            } else {
                (bits == 2 ? score_k2_2 : score_k3_2)(out, lds, qj, ldq, scale, q_sum + j, blocks,
                                                      d);
            }
        }
    }
}

static void score_k2 SCORE_KV_ARGS {
    score(s, lds, q, ldq, q_scale, q_sum, n_q, blocks, n_pos, d, 2);
}

static void score_k3 SCORE_KV_ARGS {
    score(s, lds, q, ldq, q_scale, q_sum, n_q, blocks, n_pos, d, 3);
}

/* ---- values ---- */

enum { MAX_BLOCKS = 16, MAX_STEPS = KV_MAX_DIM / 4 };

/* Weights of one query, high and low 7 bits, those of 4 positions four times: a vector a block. */
typedef struct Weights {
    __m512i hi[MAX_BLOCKS], lo[MAX_BLOCKS];
    int32_t sum;
    float step;
} Weights;

static void round_weights(Weights *w, const float *s, const __m512 *unit, int n_pos) {
    const __m512i low = _mm512_broadcast_i32x4(_mm_set1_epi32(0x0c080400));
    const __m512i high = _mm512_add_epi8(low, _mm512_set1_epi8(1));
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
    __mmask16 some = largest < INFINITY && inv < INFINITY ? 0xffff : 0;
    for (int b = 0; b < blocks; b++) {
        __m512 x = _mm512_add_ps(_mm512_mul_ps(f[b], _mm512_set1_ps(inv)), _mm512_set1_ps(0.5f));
        __m512i n = _mm512_maskz_cvttps_epi32(some, x);
        sum = _mm512_add_epi32(sum, n);
        n = _mm512_add_epi32(n, _mm512_and_si512(n, _mm512_set1_epi32(~127))); /* in two bytes */
        w->hi[b] = _mm512_shuffle_epi8(n, high);
        w->lo[b] = _mm512_shuffle_epi8(n, low);
    }
    w->sum = _mm512_reduce_add_epi32(sum);
}

INLINE void accum_block(__m512i *hi, __m512i *lo, const Weights *w, int b, int n_q,
                        const uint8_t *row, const uint8_t *signs, bool first, int bits) {
    const __m512i by_lane =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i p = decode(first ? first_states(row) : states(row), signs, bits);
    p = _mm512_shuffle_epi8(p, by_lane); /* dword i of 128 bits: lane i of 4 positions */
    UNROLL for (int j = 0; j < n_q; j++) {
        hi[j] = _mm512_dpbusd_epi32(hi[j], p, w[j].hi[b]);
        lo[j] = _mm512_dpbusd_epi32(lo[j], p, w[j].lo[b]);
    }
}

/* Sums of the four lanes of step t over all positions: dword 4j + i is lane i of query j. */
INLINE __m512i accum_step(const Weights *w, int n_q, const uint8_t *row, const uint8_t *signs,
                          size_t block_bytes, int n_blocks, bool first, int bits) {
    __m512i hi[TILE], lo[TILE];
    int b = 0;
    UNROLL for (int j = 0; j < TILE; j++) hi[j] = lo[j] = _mm512_setzero_si512();
    for (; b + 4 <= n_blocks; b += 4)
        UNROLL for (int k = 0; k < 4; k++, row += block_bytes, signs += block_bytes)
            accum_block(hi, lo, w, b + k, n_q, row, signs, first, bits);
    for (; b < n_blocks; b++, row += block_bytes, signs += block_bytes)
        accum_block(hi, lo, w, b, n_q, row, signs, first, bits);
    UNROLL for (int j = 0; j < TILE; j++) hi[j] =
        _mm512_add_epi32(_mm512_slli_epi32(hi[j], 7), lo[j]);
    __m512i x = _mm512_add_epi32(_mm512_shuffle_i32x4(hi[0], hi[1], 0x44),
                                 _mm512_shuffle_i32x4(hi[0], hi[1], 0xee));
    __m512i y = _mm512_add_epi32(_mm512_shuffle_i32x4(hi[2], hi[3], 0x44),
                                 _mm512_shuffle_i32x4(hi[2], hi[3], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd));
}

/* Four steps of `dot`, turned to four coordinates a lane; x[j] + i * nb gets those of query j. */
static inline void store_steps(float *x, const __m512i *dot, int nb, __m512i offset, __m512 step,
                               int bits) {
    __m512i a = _mm512_unpacklo_epi32(dot[0], dot[1]), b = _mm512_unpacklo_epi32(dot[2], dot[3]);
    __m512i c = _mm512_unpackhi_epi32(dot[0], dot[1]), e = _mm512_unpackhi_epi32(dot[2], dot[3]);
    __m512i lane[4] = { _mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b),
                        _mm512_unpacklo_epi64(c, e), _mm512_unpackhi_epi64(c, e) };
    for (int i = 0; i < 4; i++, x += nb) {
        __m512i n = bits == 2 ? lane[i] : _mm512_add_epi32(lane[i], lane[i]);
        __m512 f = _mm512_mul_ps(step, _mm512_cvtepi32_ps(_mm512_sub_epi32(n, offset)));
        _mm_storeu_ps(x, _mm512_castps512_ps128(f));
        _mm_storeu_ps(x + KV_MAX_DIM, _mm512_extractf32x4_ps(f, 1));
        _mm_storeu_ps(x + 2 * KV_MAX_DIM, _mm512_extractf32x4_ps(f, 2));
        _mm_storeu_ps(x + 3 * KV_MAX_DIM, _mm512_extractf32x4_ps(f, 3));
    }
}

static inline void accum_tile(float *acc, size_t ldacc, const float *factor, const Weights *w,
                              int n_q, const uint8_t *blocks, int n_blocks, int d, int bits) {
    const int nb = d / 4;
    const size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    const uint8_t *signs = blocks + nb * KV_BLOCK;
    _Alignas(64) float x[TILE * KV_MAX_DIM], steps[16];
    _Alignas(64) int32_t offsets[16];
    for (int j = 0; j < 16; j++) {
        bool used = j / 4 < n_q;
        steps[j] = used ? w[j / 4].step : 0;
        offsets[j] = used ? (bits == 2 ? 4 : 31) * w[j / 4].sum : 0;
    }
    const __m512i offset = _mm512_load_si512(offsets);
    const __m512 step = _mm512_load_ps(steps);
    for (int t = 0; t < nb; t += 4) {
        __m512i dot[4];
        dot[0] = t ? accum_step(w, n_q, blocks + t * KV_BLOCK, signs + 8 * t, block_bytes, n_blocks,
                                false, bits)
                   : accum_step(w, n_q, blocks, signs, block_bytes, n_blocks, true, bits);
        for (int k = 1; k < 4; k++)
            dot[k] = accum_step(w, n_q, blocks + (t + k) * KV_BLOCK, signs + 8 * (t + k),
                                block_bytes, n_blocks, false, bits);
        store_steps(x + t, dot, nb, offset, step, bits);
    }
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c += 16) {
            float *a = acc + (size_t)j * ldacc + (size_t)c;
            __m512 old = _mm512_mul_ps(_mm512_loadu_ps(a), _mm512_set1_ps(factor[j]));
            _mm512_storeu_ps(a, _mm512_add_ps(old, _mm512_loadu_ps(x + j * KV_MAX_DIM + c)));
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
}
