/* kv_neon.c - the loops over records and q4 rows for every aarch64, and the encoder's two. */
#include "kv_neon.h"

static void kv_luts(uint8_t *lut, const float *x, float inv, const float *weight, int d, int bits) {
    static const float codes[2][9] = { { -4, -3, -2, -1, 0, 1, 2, 3, 4 },
                                       { 4.25f, 3.25f, 2.25f, 1.25f, 0.25f, 0.75f, 1.75f, 2.75f,
                                         3.75f } };
    const float32x4_t first = vld1q_f32(codes[bits - 2]), second = vld1q_f32(codes[bits - 2] + 4);
    const float32x4_t most = vdupq_n_f32(63), half = vdupq_n_f32(0.5f);
    int nb = d / 4;
    for (int k = 0; k < d; k++, lut += 16) { /* k = 4 t + lane */
        float w = x[k % 4 * nb + k / 4] * inv, gain = (bits == 2 ? 8.0f : 16.0f) * weight[k % 4];
        w = bits == 2 ? w : fabsf(w);
        w = w > 16 ? 16 : w < -16 ? -16 : w;
        float32x4_t v = vdupq_n_f32(w), f[3] = { vsubq_f32(v, first), vsubq_f32(v, second),
                                                 vdupq_n_f32(w - codes[bits - 2][8]) };
        for (int i = 0; i < 3; i++) f[i] = vmulq_f32(f[i], f[i]);
        float32x4_t least = vdupq_n_f32(vminvq_f32(vminq_f32(vminq_f32(f[0], f[1]), f[2])));
        uint16x4_t c[3];
        for (int i = 0; i < 3; i++) {
            f[i] = vminq_f32(vmulq_n_f32(vsubq_f32(f[i], least), gain), most);
            c[i] = vmovn_u32(vcvtq_u32_f32(vaddq_f32(f[i], half)));
        }
        vst1_u8(lut, vmovn_u16(vcombine_u16(c[0], c[1])));
        vst1_u8(lut + 8, vdup_n_u8(63));
        lut[8] = (uint8_t)vget_lane_u16(c[2], 0);
    }
}

enum { VECTORS = 16 }; /* of the costs of all 256 bytes */

/* How many of the costs lo..hi-1 (in vectors) do not pass the limit. */
static inline int count_up_to(const uint8x16_t *c, int lo, int hi, int limit) {
    uint8x16_t n = vdupq_n_u8(0);
    for (int v = lo; v < hi; v++) n = vsubq_u8(n, vcleq_u8(c[v], vdupq_n_u8((uint8_t)limit)));
    return vaddlvq_u8(n);
}

static int select_best(uint8_t *state, uint8_t *cost, uint8x16_t *c, int half, int beam) {
    int lo = half == 1 ? VECTORS / 2 : 0, hi = half == 0 ? VECTORS / 2 : VECTORS, below = -1, n = 0;
    uint8_t bytes[256];
    uint8x16_t m = c[lo];
    for (int v = lo + 1; v < hi; v++) m = vminq_u8(m, c[v]);
    uint8x16_t least = vdupq_n_u8(vminvq_u8(m));
    for (int v = lo; v < hi; v++) {
        c[v] = vsubq_u8(c[v], least);
        vst1q_u8(bytes + 16 * v, c[v]);
    }
    for (int step = 32; step;
         step /= 2) /* the least limit in 0..63 that `beam` costs do not pass */
        below += count_up_to(c, lo, hi, below + step) < beam ? step : 0;
    uint8x16_t limit = vdupq_n_u8((uint8_t)MIN(below + 1, 63));
    for (int v = lo; v < hi; v++) {
        uint16x8_t in = vreinterpretq_u16_u8(vcleq_u8(c[v], limit)); /* then 4 bits a byte */
        uint64_t bits = vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(in, 4)), 0);
        for (bits &= 0x1111111111111111u; bits && n < 2 * beam; bits &= bits - 1) {
            state[n] = (uint8_t)(16 * v + __builtin_ctzll(bits) / 4);
            cost[n] = bytes[state[n]];
            n++;
        }
    }
    return n;
}

static int kv_step(uint8_t *state, uint8_t *cost, const uint8_t *lut, const uint8_t *from,
                   const uint8_t *from_cost, int n, int half, int beam, const uint8_t *table) {
    uint8x16_t l[4], least[VECTORS];
    for (int i = 0; i < 4; i++) l[i] = vld1q_u8(lut + 16 * i);
    int lo = half == 1 ? VECTORS / 2 : 0, hi = half == 0 ? VECTORS / 2 : VECTORS;
    for (int v = lo; v < hi; v++) {
        uint8x16_t m = vdupq_n_u8(255);
        for (int k = 0; k < n; k++) {
            const uint8_t *row = table + 1024 * from[k] + 16 * v;
            uint8x16_t a = vqtbl1q_u8(l[0], vld1q_u8(row));
            uint8x16_t b = vqtbl1q_u8(l[1], vld1q_u8(row + 256));
            uint8x16_t c = vqtbl1q_u8(l[2], vld1q_u8(row + 512));
            uint8x16_t d = vqtbl1q_u8(l[3], vld1q_u8(row + 768));
            a = vaddq_u8(vaddq_u8(a, b), vaddq_u8(c, d)); /* at most 252 */
            m = vminq_u8(m, vqaddq_u8(a, vdupq_n_u8(from_cost[k])));
        }
        least[v] = m;
    }
    return select_best(state, cost, least, half, beam);
}

void kern_kv_neon(Kern *k) {
    fill_kv(k);
    k->kv_luts = kv_luts;
    k->kv_step = kv_step;
}
