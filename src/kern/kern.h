/* kern.h - the hot loops. One table of function pointers, filled with the scalar versions and then
 * overwritten by each better instruction set (cpu.c). Everything about kernels is derived from
 * KERN_LIST.
 *
 * Every kernel is exact: integer sums in int32, float products and sums rounded separately (no
 * fused multiply-add; the build sets -ffp-contract=off) in the order stated here. So all
 * instruction sets, all thread counts and all batch sizes give the same bits, and tests/kern.c
 * compares with ==. Sums over inputs of float kernels go in 16 lanes: lane j takes inputs j, j+16,
 * ... in order, then lanes are added as a tree (j and j+8, j and j+4, j and j+2, 0 and 1). Missing
 * inputs of the last 16 count as products of 0.
 *
 * Kernels may read only what their arguments name: no load past the end. */
#ifndef KERN_H
#define KERN_H
#include <stddef.h>
#include <stdint.h>

/* Activations quantised to int8. Inputs are padded with zeros to a multiple of 32. */
typedef struct A8 {
    int8_t *q;    /* (n_tokens, ld), values -127..127 */
    float *scale; /* (n_tokens, ld / 32): x = q * scale; NaN where the group had NaN or infinity */
    int32_t *sum; /* (n_tokens, ld / 16): sums of 16 codes */
    size_t ld;    /* inputs, a multiple of 32 */
} A8;

/* Weights for 16 rows side by side ("lanes are rows"), in groups of 32 inputs; what the mul_*
 * kernels read. Byte 4r+i of a 64-byte vector belongs to row r. Rows past the matrix are zeros.
 *
 * q4 (288 bytes a group): 16 f16 scales; 4 vectors: low nibble of byte 4r+i of vector v is the code
 *   of input 8v+i, high nibble that of input 8v+4+i. w = scale * (code - 8).
 * q8 (544 bytes): 16 f16 scales; 8 vectors: byte 4r+i of vector v is input 4v+i, signed.
 *   w = scale * code.
 * s2, s3 (144, 208 bytes): as in docs/FORMAT.md, with an f16 scale per row outside.
 * kq (a KqGroup, aligned like a float): any of the K types unpacked. w = d * sc[h] * code - dm *
 *   mn[h], h = input / 16; |sc| <= 128, |mn| <= 4096. */
#define Q4X_BYTES 288
#define Q8X_BYTES 544
typedef struct KqGroup {
    float d[16], dm[16];
    int16_t sc[16][2], mn[16][2]; /* (row, h) */
    uint8_t code[512];            /* vector v (64 bytes), byte 4r+i: input 4v+i; 0..63 */
} KqGroup;

/* y[t * ldy + r] for the 16 rows of one row block and tokens 0..n_tokens-1. Per row and token, over
 * groups in order:
 *
 * q4, q8: acc += (w_scale * a_scale) * (float)dot
 *
 * s2, s3: acc += a_scale * (float)((c + 4) * G); y = acc * (row_scale * 0.125f); G: FORMAT.md
 *
 * kq: acc += (d * a_scale) * (float)S - (dm * a_scale) * (float)M, where
 * S = sum_h sc[h] dot[h] and M = sum_h mn[h] asum[h]
 *
 * acc starts at 0, for kq at y (so that a long row can be unpacked in pieces; a then starts at the
 * piece). row_scale is f16[16], NULL for q4, q8, kq. */
#define MUL_ARGS                                                                                   \
    (float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale, int n_groups,          \
     const A8 *a, int n_tokens)
/* y[t * ldy + r] = sum_i w[r][i] * x[t * ldx + i], rows of row_bytes bytes each; 16 lanes. */
#define MULF_ARGS                                                                                  \
    (float *y, size_t ldy, const uint8_t *w, size_t row_bytes, int n_rows, const float *x,         \
     size_t ldx, int n_tokens, int n)
/* t2 and t3 (trellis23.h): y[t * ldy + r] of n_rows rows, 64 or 128, of one row block. codes and
 * signs are TrellisRows of the first row, a multiple of 64: the code byte of row r in tile q is
 * codes[q * height + r], height 64 or 128, and codes[-1] may be read; signs is NULL for t2. a is
 * what quantize_t made: one scale a token, at scale[t * (ld / 32)], and the sum of its codes at
 * sum[t * (ld / 16)]; n_quads = inputs / 4, a multiple of 8.
 *
 * y = (a_scale * row_scale) * (float)S, S = sum a (p - 4) (t2)
 *
 * y = (a_scale * (row_scale * 0.5f)) * (float)S, S = sum a (2u - 31) (t3)
 *
 * S fits 32 bits, and so do sum a p and sum a u. */
#define MUL_T_ARGS                                                                                 \
    (float *y, size_t ldy, const uint8_t *codes, const uint8_t *signs, int height, int n_rows,     \
     const uint16_t *row_scale, int n_quads, const A8 *a, int n_tokens)
/* ---- the encoder of t2 and t3 (trellis_encode.c) ---- */

/* Tables hold the integers p = 0..8 of 32 pairs of states, 128 bytes: lane 0 of all, lane 1, .. For
 * trellis_step entry g * 256 + a has the pairs (a, 32g + j), for trellis_back entry b * 8 + g the
 * pairs (32g + j, b). A step from state a to state b costs the sum over the lanes i of
 * lut[16 * i + p_i]. */
#define TRELLIS_ENTRY 128
#define TRELLIS_TABLE (65536 * 4)
#define TRELLIS_STEP_ARGS                                                                          \
    (uint8_t * to, const uint8_t *from, size_t stride, const uint8_t *lut, int n, int beam,        \
     const uint8_t *table)

/* exp(x), the same operations in every instruction set: t = x * LOG2E + ROUND, k = t - ROUND
 * (nearest integer), r = (x - k * LN2_HI) - k * LN2_LO, p = EXP_6, then p = p * r + EXP_5 .. EXP_1,
 * p = (p * (r * r) + r) + 1, times 2^k by its bits; 0 below EXP_MIN, infinity above EXP_MAX, NaN
 * for NaN. Within 2 ulp. */
#define KERN_LOG2E 1.44269504f
#define KERN_ROUND                                                                                 \
    12582912.0f /* 1.5 * 2^23: adding it rounds to the nearest integer, ties to even */
#define KERN_LN2_HI  0.693359375f
#define KERN_LN2_LO  -2.12194440e-4f
#define KERN_EXP_6   1.9875691500e-4f
#define KERN_EXP_5   1.3981999507e-3f
#define KERN_EXP_4   8.3334519073e-3f
#define KERN_EXP_3   4.1665795894e-2f
#define KERN_EXP_2   1.6666665459e-1f
#define KERN_EXP_1   5.0000001201e-1f
#define KERN_EXP_MIN -87.33654f
#define KERN_EXP_MAX 88.37f
#define KERN_F16_MAX 65519.996f /* the largest number that f16 rounds to a finite one */

/* Interleaves up to 16 rows (starting at `rows`, row_bytes apart) into the form above; n_groups
 * groups. */
#define PACK_ARGS (uint8_t * dst, const uint8_t *rows, size_t row_bytes, int n_rows, int n_groups)

#define SCORE_KV_ARGS                                                                              \
    (float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,                      \
     const int32_t *q_sum, int n_q, const uint8_t *blocks, int n_pos, int d)
#define ACCUM_KV_ARGS                                                                              \
    (float *acc, size_t ldacc, const float *factor, const float *s, size_t lds, int n_q,           \
     const uint8_t *blocks, int n_pos, int d)

// clang-format off
#define KERN_LIST(X) \
    X(mul_q4, void, MUL_ARGS) \
    X(mul_q8, void, MUL_ARGS) \
    X(mul_s2, void, MUL_ARGS) \
    X(mul_s3, void, MUL_ARGS) \
    X(mul_kq, void, MUL_ARGS) \
    X(pack_q4, void, PACK_ARGS) \
    X(pack_q8, void, PACK_ARGS) \
    X(pack_q2_k, void, PACK_ARGS) /* the K types: n_groups counts groups of 32, a multiple of 8 */ \
    X(pack_q3_k, void, PACK_ARGS) \
    X(pack_q4_k, void, PACK_ARGS) \
    X(pack_q5_k, void, PACK_ARGS) \
    X(pack_q6_k, void, PACK_ARGS) \
    X(pack_tq2_0, void, PACK_ARGS) \
    /* one A8 row. Per group of 32, amax its largest |x|: scale = amax / 127, q = x * min(127 / \
     * amax, FLT_MAX) to nearest even; with NaN or infinity in it, scale = NaN and q = 0 */ \
    X(quantize, void, (int8_t * q, float *scale, int32_t *sum, const float *x, int n)) \
    X(mul_t2, void, MUL_T_ARGS) \
    X(mul_t3, void, MUL_T_ARGS) \
    /* S x of trellis23.h: for n = b m inputs, b the largest power of two in n, at least 32: x times \
     * +-1 / sqrt(b); sums and differences of values 1, 2, 4 .. b / 2 apart within blocks of b; if \
     * m > 1, times +-1 / sqrt(b / 8); sums and differences of values 8m, 16m .. n / 2 apart */ \
    X(rotate, void, (float *dst, const float *x, int n, uint32_t seed)) \
    /* one row for mul_t2 and mul_t3, n a multiple of 32: amax, scale and rounding as in quantize, \
     * one scale and sum for all inputs; byte 4k + i of q is the code of x[i * n / 4 + k] */ \
    X(quantize_t, void, (int8_t * q, float *scale, int32_t *sum, const float *x, int n)) \
    /* one step of n searches, search k from from + k * stride to to + k * stride with lut + 64 * k: \
     * to[b] = the least of from[a] + cost(a, b), less the least of all. Only those a are tried that \
     * cost no more than the lowest limit which at least `beam` of them keep. All sums saturate at \
     * 255; 0 occurs in `from` */ \
    X(trellis_step, void, TRELLIS_STEP_ARGS) \
    /* the a, the lowest of several, with the least from[a] + cost(a, b); `table` starts at the \
     * entries of b */ \
    X(trellis_back, int, (const uint8_t *from, const uint8_t *lut, const uint8_t *table)) \
    X(mul_f32, void, MULF_ARGS) \
    X(mul_f16, void, MULF_ARGS) \
    X(mul_bf16, void, MULF_ARGS) \
    /* dst[i] = (x[i] * (1 / sqrt(sum(x^2) / n + eps))) * w[i]; dst may be x */ \
    X(rmsnorm, void, (float *dst, const float *x, const float *w, int n, float eps)) \
    /* rotates the first n_rot of a head: pair p is (x[2p], x[2p+1]), or with halves \
     * (x[p], x[p+n_rot/2]); cs holds n_rot/2 cosines, then n_rot/2 sines */ \
    X(rope, void, (float *x, const float *cs, int n_rot, int halves)) \
    /* dst = gate / (1 + exp(-gate)) * up */ \
    X(swiglu, void, (float *dst, const float *gate, const float *up, int n)) \
    X(add, void, (float *x, const float *y, int n)) /* x += y */ \
    /* ---- attention over rows of one KV head; see cache.h for the row formats ---- */ \
    /* s[j * lds + p] = q[j] . k[p] for n_q queries and n_pos rows, k_stride bytes apart. f16: by 16 \
     * lanes, as mul_f16. q8: (q_scale * k_scale) * (float)dot, q within -127..127 */ \
    X(score_f16, void, \
      (float *s, size_t lds, const float *q, size_t ldq, int n_q, const uint8_t *k, \
       size_t k_stride, int n_pos, int d)) \
    X(score_q8, void, \
      (float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale, int n_q, \
       const uint8_t *k, size_t k_stride, int n_pos, int d)) \
    /* Online softmax over one block: *max is raised to the largest s (a NaN is not looked at), s \
     * becomes exp(s - *max), *total = *total * factor + their sum by 16 lanes; returns factor = \
     * exp(old - *max), by which earlier results must be multiplied. While all are -infinity, s and \
     * factor are 0. A NaN makes *total NaN. */ \
    X(softmax, float, (float *s, int n_pos, float *max, float *total)) \
    /* acc[j * ldacc + c] = acc * factor[j], then += s[j * lds + p] * v[p][c], p in order; q8: += (s \
     * * v_scale) * code */ \
    X(accum_f16, void, \
      (float *acc, size_t ldacc, const float *factor, const float *s, size_t lds, int n_q, \
       const uint8_t *v, size_t v_stride, int n_pos, int d)) \
    X(accum_q8, void, \
      (float *acc, size_t ldacc, const float *factor, const float *s, size_t lds, int n_q, \
       const uint8_t *v, size_t v_stride, int n_pos, int d)) \
    /* nearest even; what would become infinity becomes NaN, which no score can hide */ \
    X(kv_put_f16, void, (uint8_t * row, const float *x, int d)) \
    /* scale = the f16 nearest to max|x| / 127, or the next one where 127 of it are less than \
     * max|x|; codes = x * (1 / scale) to the nearest even. NaN, infinity or a scale that overflows: \
     * codes 0, scale NaN */ \
    X(kv_put_q8, void, (uint8_t * row, const float *x, int d)) \
    /* ---- k2 and k3 records in blocks of 16 positions (kv23.h) ---- */ \
    /* cost tables of a head vector: for step t and lane i 16 bytes, entry p the cost of coding \
     * w = x[i * nb + t] * inv as p, less the least, times weight[i], in 1/8 (k2) or 1/16 (k3), at \
     * most 63 */ \
    X(kv_luts, void, \
      (uint8_t * lut, const float *x, float inv, const float *weight, int d, int bits)) \
    /* one step of the beam search: the cost of each next byte is the least over the n survivors; \
     * those of half 0 (0..127), 1 (128..255) or -1 (all) survive whose cost, less the least, does \
     * not pass the least limit 0..63 that gives at least `beam` of them (else 63), in order of \
     * their byte, at most 2 * beam. Sums saturate at 255. Returns their number */ \
    X(kv_step, int, \
      (uint8_t * state, uint8_t *cost, const uint8_t *lut, const uint8_t *from, \
       const uint8_t *from_cost, int n, int half, int beam, const uint8_t *table)) \
    /* s[j * lds + p] = q[j] . k[p]: (unit[p] * q_scale[j]) * (float)dot. q[j] is int8 in lanes: \
     * byte 4t+i is coordinate i * nb + t; q_sum its sum. Writes n_pos rounded up to 16 */ \
    X(score_k2, void, SCORE_KV_ARGS) \
    X(score_k3, void, SCORE_KV_ARGS) \
    /* acc[j * ldacc + c] = acc * factor[j] + step_j * (float)dot, dot = sum_p w[p] v[p][c] in \
     * integers: the weights s[p] * unit[p] of a query are rounded to multiples of step_j, 1/16383 \
     * of the largest. n_pos at most 256 */ \
    X(accum_k2, void, ACCUM_KV_ARGS) \
    X(accum_k3, void, ACCUM_KV_ARGS) \
    /* q4 rows (kv_q4.inc). score: groups in order, sum += (q_scale[j] * scale) * (float)dot; \
     * accum: as accum_q8 with v[p][c] = scale * (code - 8) rounded first */ \
    X(score_q4, void, \
      (float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale, int n_q, \
       const uint8_t *k, size_t k_stride, int n_pos, int d)) \
    X(accum_q4, void, \
      (float *acc, size_t ldacc, const float *factor, const float *s, size_t lds, int n_q, \
       const uint8_t *v, size_t v_stride, int n_pos, int d)) \
    /* each group's scale is the largest value over -8, -7.5, ... or -5.5, whichever errs least; \
     * NaN where there is NaN or infinity */ \
    X(kv_put_q4, void, (uint8_t * row, const float *x, int d))

// clang-format on
typedef struct Kern {
#define X(name, ret, args) ret(*name) args;
    KERN_LIST(X)
#undef X
} Kern;

unsigned isa_detect(void);              /* DIBIT_ISA_* bits of this machine; scalar always */
const char *isa_name(unsigned mask);    /* of the best one in mask */
void kern_init(Kern *k, unsigned mask); /* the best of `mask`; every slot is filled */
/* One a file, int8 products and float loops apart; each overwrites the slots it does better. */
void kern_scalar(Kern *k);
void kern_float_scalar(Kern *k);
void kern_avx2(Kern *k);
void kern_float_avx2(Kern *k);
void kern_avx512vnni(Kern *k);
void kern_float_avx512(Kern *k);
void kern_neon(Kern *k);
void kern_neondot(Kern *k);
void kern_float_neon(Kern *k);
void kern_trellis_scalar(Kern *k);
void kern_trellis_avx2(Kern *k);
void kern_encode_scalar(Kern *k);
void kern_encode_avx2(Kern *k);
void kern_trellis_avx512vnni(Kern *k);
void kern_trellis_avx512bitalg(Kern *k);
void kern_encode_neon(Kern *k);
void kern_trellis_neon(Kern *k);
void kern_trellis_neondot(Kern *k);
void kern_kv_scalar(Kern *k);
void kern_kv_avx2(Kern *k);
void kern_kv_avx512bitalg(Kern *k);
void kern_kv_neon(Kern *k);
void kern_kv_neondot(Kern *k);
void kern_simd128(Kern *k); /* one file each for WebAssembly, with or without relaxed SIMD */
void kern_float_simd128(Kern *k);
void kern_kv_simd128(Kern *k);
void kern_rows_simd128(Kern *k);
void kern_trellis_simd128(Kern *k);
void kern_relaxed(Kern *k); /* by kern_simd128(), where there is relaxed SIMD */
#endif
