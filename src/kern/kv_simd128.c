/* kv_simd128.c - the loops over k2 and k3 records with the 128-bit vectors of WebAssembly: a vector
 * holds 4 records, byte 4r + i being lane i of record r, and is summed as 16-bit pairs, lanes 0 and
 * 2 and lanes 1 and 3 apart (simd128.c says why). q4 rows: rows_simd128.c. */
#include <math.h>
#include <string.h>

#include "kern.h"
#include "kv23.h"
#include "simd128.h"

enum { TILE = 4, MAX_POS = 256 }; /* queries that share a decode; positions of one call */

/* ---- decode ---- */

/* States of 8 of the 16 records of a step: prev | cur << 8. */
INLINE v128_t states(v128_t prev, v128_t cur, int half) {
    return half ? wasm_i8x16_shuffle(prev, cur, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                     30, 15, 31)
                : wasm_i8x16_shuffle(prev, cur, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                     23);
}

/* All bits of byte 4r + i that has its sign set; record 4m + r has bits 4r.. of byte 2m on. */
INLINE v128_t minus(v128_t signs, int m) {
    const v128_t bit = wasm_i8x16_const(1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128);
    v128_t at = wasm_i8x16_add(wasm_i8x16_splat((int8_t)(2 * m)),
                               wasm_i8x16_const(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
    return wasm_i8x16_eq(wasm_v128_and(wasm_i8x16_swizzle(signs, at), bit), bit);
}

/* What one step holds for 16 records: p - 4 (k2), or 4p - 17 with its sign (k3), -17..17. */
INLINE void decode(v128_t x[4], v128_t prev, v128_t cur, const uint8_t *signs, int bits) {
    v128_t sign = bits == 3 ? wasm_v128_load64_zero(signs) : cur;
    for (int m = 0; m < 4; m++) {
        v128_t s = states(prev, cur, m / 2);
        v128_t y = m & 1 ? wasm_u32x4_extend_high_u16x8(s) : wasm_u32x4_extend_low_u16x8(s);
        y = wasm_i32x4_mul(y, wasm_i32x4_const_splat((int32_t)T4_MUL));
        y = wasm_i8x16_popcnt(wasm_i32x4_add(y, wasm_u32x4_shr(y, 13)));
        if (bits == 2) {
            x[m] = wasm_i8x16_sub(y, wasm_i8x16_const_splat(4));
        } else {
            v128_t neg = minus(sign, m); /* -x is ~x + 1 */
            y = wasm_i8x16_sub(wasm_i16x8_shl(y, 2), wasm_i8x16_const_splat(17));
            x[m] = wasm_i8x16_sub(wasm_v128_xor(y, neg), neg);
        }
    }
}

INLINE v128_t row_before(const uint8_t *row, int t) {
    return t ? wasm_v128_load(row - KV_BLOCK) : wasm_i8x16_const_splat(0);
}

/* Units of the 16 records of a block. */
static void units(float unit[KV_BLOCK], const uint8_t *block, int d, int bits) {
    static const uint32_t steps[16] = { /* floats 2^(k/16) */
                                        0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3,
                                        0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
                                        0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c,
                                        0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d
    };
    uint8_t scale[KV_BLOCK] = { 0 };
    uint32_t rms[KV_BLOCK];
    for (int g = 0; g < 8; g++) {
        const uint8_t *row = block + kv_scale_step(g, d / 4) * KV_BLOCK;
        for (int r = 0; r < KV_BLOCK; r++) scale[r] |= (uint8_t)(row[r] >> 7 << g);
    }
    for (int r = 0; r < KV_BLOCK; r++)
        rms[r] =
            scale[r] ? steps[scale[r] & 15] + ((uint32_t)(scale[r] >> 4) << 23) - (8u << 23) : 0;
    memcpy(unit, rms, sizeof rms);
    for (int r = 0; r < KV_BLOCK; r++) unit[r] *= bits == 2 ? 1 / KV_SCALE_K2 : 0.25f / KV_SCALE_K3;
}

/* ---- scores ---- */

/* Codes in the upper half of each lane, so sums are times 256: 256 * 127 * 17 * 256 fits. */
INLINE void score_block(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                        const int n_q, const uint8_t *block, int d, int bits) {
    const int nb = d / 4;
    float unit[KV_BLOCK];
    v128_t sum[TILE][4], prev = wasm_i8x16_const_splat(0);
    units(unit, block, d, bits);
    for (int j = 0; j < n_q; j++)
        for (int m = 0; m < 4; m++) sum[j][m] = prev;
    for (int t = 0; t < nb; t++) {
        v128_t cur = wasm_v128_load(block + t * KV_BLOCK), x[4];
        decode(x, prev, cur, block + nb * KV_BLOCK + 8 * t, bits);
        prev = cur;
        for (int j = 0; j < n_q; j++) {
            v128_t a = wasm_v128_load32_splat(q + (size_t)j * ldq + 4 * t);
            v128_t even = wasm_i16x8_shr(wasm_i16x8_shl(a, 8), 8), odd = wasm_i16x8_shr(a, 8);
            for (int m = 0; m < 4; m++) {
                v128_t high = wasm_v128_and(x[m], wasm_i16x8_const_splat((int16_t)0xff00));
                v128_t dot = wasm_i32x4_add(wasm_i32x4_dot_i16x8(wasm_i16x8_shl(x[m], 8), even),
                                            wasm_i32x4_dot_i16x8(high, odd));
                sum[j][m] = wasm_i32x4_add(sum[j][m], dot);
            }
        }
    }
    for (int j = 0; j < n_q; j++)
        for (int m = 0; m < 4; m++) {
            v128_t f = wasm_f32x4_mul(wasm_v128_load(unit + 4 * m), wasm_f32x4_splat(q_scale[j]));
            v128_t dot = wasm_f32x4_convert_i32x4(wasm_i32x4_shr(sum[j][m], 8));
            wasm_v128_store(s + (size_t)j * lds + 4 * m, wasm_f32x4_mul(f, dot));
        }
}

INLINE void score(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale, int n_q,
                  const uint8_t *blocks, int n_pos, int d, int bits) {
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0; p < n_pos; p += KV_BLOCK, s += KV_BLOCK, blocks += block_bytes) {
        int j = 0;
        for (; n_q - j >= TILE; j += TILE)
            score_block(s + (size_t)j * lds, lds, q + (size_t)j * ldq, ldq, q_scale + j, TILE,
                        blocks, d, bits);
        for (; j < n_q; j++)
            score_block(s + (size_t)j * lds, lds, q + (size_t)j * ldq, ldq, q_scale + j, 1, blocks,
                        d, bits);
    }
}

/* ---- values ---- */

typedef struct Weights { /* of one query, as integers of 14 bits */
    int16_t w[MAX_POS];
    float step;
} Weights;

INLINE void round_weights(Weights *w, const float *s, const float *unit, int n_pos) {
    float f[MAX_POS], largest;
    int padded = (n_pos + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    v128_t top = wasm_i32x4_const_splat(0);
    memcpy(f, s, (size_t)n_pos * sizeof *f);
    memset(f + n_pos, 0, (size_t)(padded - n_pos) * sizeof *f);
    for (int p = 0; p < padded; p += 4) {
        v128_t v = wasm_f32x4_mul(wasm_v128_load(f + p), wasm_v128_load(unit + p));
        wasm_v128_store(f + p, v);
        /* as integers positive floats keep their order, and infinity and NaN come last */
        top = wasm_u32x4_max(top, wasm_v128_and(v, wasm_i32x4_const_splat(0x7fffffff)));
    }
    uint32_t top_bits = top_u32(top);
    memcpy(&largest, &top_bits, 4);
    float inv = 16383.0f / largest;
    w->step = !(largest < INFINITY) ? NAN : inv < INFINITY ? largest * (1.0f / 16383.0f) : 0;
    int some = largest < INFINITY && inv < INFINITY;
    for (int p = 0; p < padded; p += 8) {
        v128_t n[2] = { wasm_i32x4_const_splat(0), wasm_i32x4_const_splat(0) };
        for (int i = 0; some && i < 2; i++) {
            v128_t v = wasm_f32x4_mul(wasm_v128_load(f + p + 4 * i), wasm_f32x4_splat(inv));
            n[i] = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_add(v, wasm_f32x4_const_splat(0.5f)));
        }
        wasm_v128_store(w->w + p, wasm_i16x8_narrow_i32x4(n[0], n[1]));
    }
}

INLINE void accum_tile(float *acc, size_t ldacc, const float *factor, const Weights *w,
                       const int n_q, const uint8_t *blocks, int n_pos, int d, int bits) {
    const int nb = d / 4;
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    int32_t dot[TILE][KV_MAX_DIM];
    for (int t = 0; t < nb; t++) {
        v128_t sum[TILE];
        const uint8_t *block = blocks;
        for (int j = 0; j < n_q; j++) sum[j] = wasm_i32x4_const_splat(0);
        for (int p = 0; p < n_pos; p += KV_BLOCK, block += block_bytes) {
            const uint8_t *row = block + t * KV_BLOCK;
            v128_t x[4];
            decode(x, row_before(row, t), wasm_v128_load(row), block + nb * KV_BLOCK + 8 * t, bits);
            for (int m = 0; m < 4; m++) { /* dword i becomes lane i of two positions */
                v128_t y = wasm_i8x16_shuffle(x[m], x[m], 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10,
                                              14, 11, 15);
                v128_t a = wasm_i16x8_extend_low_i8x16(y), b = wasm_i16x8_extend_high_i8x16(y);
                for (int j = 0; j < n_q; j++) {
                    const int16_t *f = w[j].w + p + 4 * m;
                    v128_t one = wasm_i32x4_dot_i16x8(a, wasm_v128_load32_splat(f));
                    v128_t two = wasm_i32x4_dot_i16x8(b, wasm_v128_load32_splat(f + 2));
                    sum[j] = wasm_i32x4_add(sum[j], wasm_i32x4_add(one, two));
                }
            }
        }
        for (int j = 0; j < n_q; j++) {
            int32_t lanes[4];
            wasm_v128_store(lanes, sum[j]);
            for (int i = 0; i < 4; i++) dot[j][i * nb + t] = lanes[i];
        }
    }
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c++) {
            float *a = &acc[(size_t)j * ldacc + (size_t)c];
            *a = *a * factor[j] + w[j].step * (float)dot[j][c];
        }
}

INLINE void accum(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                  int n_q, const uint8_t *blocks, int n_pos, int d, int bits) {
    float unit[MAX_POS];
    Weights w[TILE];
    size_t block_bytes = KV_BLOCK * kv_record_bytes(bits, d);
    for (int p = 0; p < n_pos; p += KV_BLOCK)
        units(unit + p, blocks + (size_t)(p / KV_BLOCK) * block_bytes, d, bits);
    for (int j = 0; j < n_q;) {
        int n = n_q - j >= TILE ? TILE : 1;
        for (int i = 0; i < n; i++) round_weights(&w[i], s + (size_t)(j + i) * lds, unit, n_pos);
        float *a = acc + (size_t)j * ldacc;
        if (n == TILE)
            accum_tile(a, ldacc, factor + j, w, TILE, blocks, n_pos, d, bits);
        else
            accum_tile(a, ldacc, factor + j, w, 1, blocks, n_pos, d, bits);
        j += n;
    }
}

#include "kv_records.inc"

/* ---- the encoder's search ---- */

enum { VECTORS = 16 }; /* of the costs of all 256 bytes */

INLINE uint32_t up_to(v128_t c, int limit) { /* a bit for each cost that does not pass the limit */
    return wasm_i8x16_bitmask(wasm_u8x16_le(c, wasm_i8x16_splat((int8_t)limit)));
}

static int select_best(uint8_t *state, uint8_t *cost, v128_t *c, int half, int beam) {
    int lo = half == 1 ? VECTORS / 2 : 0, hi = half == 0 ? VECTORS / 2 : VECTORS, below = -1, n = 0;
    uint8_t bytes[256];
    v128_t m = c[lo];
    for (int v = lo + 1; v < hi; v++) m = wasm_u8x16_min(m, c[v]);
    wasm_v128_store(bytes, m);
    for (int i = 1; i < 16; i++) bytes[0] = MIN(bytes[0], bytes[i]);
    v128_t least = wasm_i8x16_splat((int8_t)bytes[0]);
    for (int v = lo; v < hi; v++) {
        c[v] = wasm_i8x16_sub(c[v], least);
        wasm_v128_store(bytes + 16 * v, c[v]);
    }
    for (int step = 32; step; step /= 2) { /* the least limit in 0..63 that `beam` do not pass */
        int count = 0;
        for (int v = lo; v < hi; v++) count += __builtin_popcount(up_to(c[v], below + step));
        if (count < beam) below += step;
    }
    int limit = MIN(below + 1, 63);
    for (int v = lo; v < hi; v++)
        for (uint32_t in = up_to(c[v], limit); in && n < 2 * beam; in &= in - 1) {
            state[n] = (uint8_t)(16 * v + __builtin_ctz(in));
            cost[n] = bytes[state[n]];
            n++;
        }
    return n;
}

static int kv_step(uint8_t *state, uint8_t *cost, const uint8_t *lut, const uint8_t *from,
                   const uint8_t *from_cost, int n, int half, int beam, const uint8_t *table) {
    v128_t l[4], least[VECTORS];
    for (int i = 0; i < 4; i++) l[i] = wasm_v128_load(lut + 16 * i);
    int lo = half == 1 ? VECTORS / 2 : 0, hi = half == 0 ? VECTORS / 2 : VECTORS;
    for (int v = lo; v < hi; v++) {
        v128_t m = wasm_i8x16_const_splat(-1);
        for (int k = 0; k < n; k++) {
            const uint8_t *row = table + 1024 * from[k] + 16 * v;
            v128_t a = wasm_i8x16_swizzle(l[0], wasm_v128_load(row));
            v128_t b = wasm_i8x16_swizzle(l[1], wasm_v128_load(row + 256));
            v128_t c = wasm_i8x16_swizzle(l[2], wasm_v128_load(row + 512));
            v128_t d = wasm_i8x16_swizzle(l[3], wasm_v128_load(row + 768));
            a = wasm_i8x16_add(wasm_i8x16_add(a, b), wasm_i8x16_add(c, d)); /* at most 252 */
            m = wasm_u8x16_min(m, wasm_u8x16_add_sat(a, wasm_i8x16_splat((int8_t)from_cost[k])));
        }
        least[v] = m;
    }
    return select_best(state, cost, least, half, beam);
}

void kern_kv_simd128(Kern *k) {
    k->score_k2 = score_k2;
    k->score_k3 = score_k3;
    k->accum_k2 = accum_k2;
    k->accum_k3 = accum_k3;
    k->kv_step = kv_step;
}
