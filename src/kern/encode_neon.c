/* encode_neon.c - the inner loops of the encoder of t2 and t3 for every aarch64: 32 next states at
 * a time, in two vectors. As in encode_avx2.c, states are tried in the order of their cost until no
 * state that is left could lower one of the 32. */
#include "kern.h"

#include <arm_neon.h>
#include <string.h>

enum { CLASS = 2, CLASSES = 24, CHUNK = 8 };

typedef struct Order { /* states in classes of rising cost */
    uint8_t state[256 + CHUNK], cost[256 + CHUNK];
    uint8_t floor[256 + CHUNK + 1]; /* no state from there on costs less */
    int n;
} Order;

static int limit_of(const int *count, int beam) {
    int limit = 0;
    for (int n = count[0]; n < beam; n += count[limit]) limit++;
    return limit;
}

static void sort(Order *o, const uint8_t *from, int beam) {
    int count[256] = { 0 }, at[CLASSES + 1] = { 0 }, n = 0;
    for (int a = 0; a < 256; a++) count[from[a]]++;
    int limit = limit_of(count, beam);
    for (int c = 0; c <= limit; c++) {
        int class = c / CLASS < CLASSES ? c / CLASS : CLASSES;
        memset(o->floor + n, class * CLASS, (size_t)count[c]);
        n += count[c];
        if (class < CLASSES) at[class + 1] = n;
    }
    for (int k = 1; k <= CLASSES; k++) at[k] = at[k] > at[k - 1] ? at[k] : at[k - 1];
    for (int a = 0; a < 256; a++) {
        if (from[a] > limit) continue;
        int class = from[a] / CLASS < CLASSES ? from[a] / CLASS : CLASSES;
        o->state[at[class]] = (uint8_t)a;
        o->cost[at[class]++] = from[a];
    }
    memset(o->state + n, o->state[0], CHUNK); /* the last chunk is filled up */
    memset(o->cost + n, 255, CHUNK);
    memset(o->floor + n, 255, CHUNK + 1);
    o->n = n;
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

static void group(uint8_t *to, const Order *o, const uint8_t *lut, const uint8_t *table) {
    uint8x16_t l[4], m = vdupq_n_u8(255), m2 = m;
    load_lut(l, lut);
    for (int k = 0; k < o->n; k += CHUNK) {
        for (int i = k; i < k + CHUNK; i++) {
            const uint8_t *entry = table + TRELLIS_ENTRY * o->state[i];
            uint8x16_t c = vdupq_n_u8(o->cost[i]);
            m = vminq_u8(m, vqaddq_u8(cost(l, entry), c));
            m2 = vminq_u8(m2, vqaddq_u8(cost(l, entry + 16), c));
        }
        if (vmaxvq_u8(vmaxq_u8(m, m2)) <= o->floor[k + CHUNK]) break;
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
    enum { MOST = 8 };
    Order order[MOST];
    for (; n > 0; n -= MOST, to += MOST * stride, from += MOST * stride, lut += MOST * 64) {
        int many = n < MOST ? n : MOST;
        for (int k = 0; k < many; k++) sort(&order[k], from + (size_t)k * stride, beam);
        for (int g = 0; g < 8; g++) /* a part of the table stays in the cache for all searches */
            for (int k = 0; k < many; k++)
                group(to + (size_t)k * stride + 32 * g, &order[k], lut + 64 * k,
                      table + (size_t)g * 256 * TRELLIS_ENTRY);
        for (int k = 0; k < many; k++) subtract_least(to + (size_t)k * stride);
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
