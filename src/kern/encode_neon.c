/* encode_neon.c - the inner loops of the encoder of t2 and t3 for every aarch64: 32 next states at
 * a time, in two vectors. */
#include "kern.h"

#include <arm_neon.h>

/* The states that are tried. */
static int list_states(uint8_t state[256], const uint8_t *from, int beam) {
    int count[256] = { 0 }, limit = 0, n = 0;
    for (int a = 0; a < 256; a++) count[from[a]]++;
    for (int k = count[0]; k < beam; k += count[limit]) limit++;
    for (int a = 0; a < 256; a++)
        if (from[a] <= limit) state[n++] = (uint8_t)a;
    return n;
}

/* Costs of 16 of the 32 pairs of an entry. */
static inline uint8x16_t cost(const uint8x16_t lut[4], const uint8_t *entry) {
    uint8x16_t a = vqtbl1q_u8(lut[0], vld1q_u8(entry));
    uint8x16_t b = vqtbl1q_u8(lut[1], vld1q_u8(entry + 32));
    uint8x16_t c = vqtbl1q_u8(lut[2], vld1q_u8(entry + 64));
    uint8x16_t d = vqtbl1q_u8(lut[3], vld1q_u8(entry + 96));
    return vqaddq_u8(vqaddq_u8(a, b), vqaddq_u8(c, d));
}

static inline void load_lut(uint8x16_t l[4], const uint8_t *lut) {
    for (int i = 0; i < 4; i++) l[i] = vld1q_u8(lut + 16 * i);
}

static void group(uint8_t *to, const uint8_t *from, const uint8_t *state, int n, const uint8_t *lut,
                  const uint8_t *table) {
    uint8x16_t l[4], m = vdupq_n_u8(255), m2 = m;
    load_lut(l, lut);
    for (int k = 0; k < n; k++) {
        const uint8_t *entry = table + TRELLIS_ENTRY * state[k];
        uint8x16_t before = vdupq_n_u8(from[state[k]]);
        m = vminq_u8(m, vqaddq_u8(cost(l, entry), before));
        m2 = vminq_u8(m2, vqaddq_u8(cost(l, entry + 16), before));
    }
    vst1q_u8(to, m);
    vst1q_u8(to + 16, m2);
}

static void subtract_least(uint8_t *to) {
    uint8x16_t m = vld1q_u8(to);
    for (int v = 1; v < 16; v++) m = vminq_u8(m, vld1q_u8(to + 16 * v));
    m = vdupq_n_u8(vminvq_u8(m));
    for (int v = 0; v < 16; v++) vst1q_u8(to + 16 * v, vsubq_u8(vld1q_u8(to + 16 * v), m));
}

static void trellis_step TRELLIS_STEP_ARGS {
    for (; n > 0; n--, to += stride, from += stride, lut += 64) {
        uint8_t state[256];
        int n_states = list_states(state, from, beam);
        for (int g = 0; g < 8; g++)
            group(to + 32 * g, from, state, n_states, lut, table + g * 256 * TRELLIS_ENTRY);
        subtract_least(to);
    }
}

static int trellis_back(const uint8_t *from, const uint8_t *lut, const uint8_t *table) {
    uint8x16_t l[4], m = vdupq_n_u8(255);
    uint8_t c[256];
    load_lut(l, lut);
    for (int v = 0; v < 16; v++) {
        const uint8_t *entry = table + v / 2 * TRELLIS_ENTRY + v % 2 * 16;
        uint8x16_t x = vqaddq_u8(cost(l, entry), vld1q_u8(from + 16 * v));
        vst1q_u8(c + 16 * v, x);
        m = vminq_u8(m, x);
    }
    int least = vminvq_u8(m), a = 0;
    while (c[a] != least) a++;
    return a;
}

void kern_encode_neon(Kern *k) {
    k->trellis_step = trellis_step;
    k->trellis_back = trellis_back;
}
