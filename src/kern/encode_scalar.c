/* encode_scalar.c - the inner loops of the encoder of t2 and t3 in plain C. */
#include "kern.h"

#include <string.h>

static int cost(const uint8_t *lut, const uint8_t *entry, int j) {
    int c = 0;
    for (int i = 0; i < 4; i++) c += lut[16 * i + entry[32 * i + j]];
    return c;
}

/* The lowest limit that at least `beam` costs do not pass. */
static int limit_of(const uint8_t *from, int beam) {
    int limit = -1, count = 0;
    while (count < beam) {
        limit++;
        for (int a = 0; a < 256; a++) count += from[a] == limit;
    }
    return limit;
}

static void step(uint8_t *to, const uint8_t *from, const uint8_t *lut, int beam,
                 const uint8_t *table) {
    int limit = limit_of(from, beam), least = 255;
    memset(to, 255, 256);
    for (int b = 0; b < 256; b++)
        for (int a = 0; a < 256; a++) {
            if (from[a] > limit || from[a] >= to[b]) continue;
            int c = from[a] + cost(lut, table + (b / 32 * 256 + a) * TRELLIS_ENTRY, b % 32);
            if (c < to[b]) to[b] = (uint8_t)c;
        }
    for (int b = 0; b < 256; b++) least = to[b] < least ? to[b] : least;
    for (int b = 0; b < 256; b++) to[b] = (uint8_t)(to[b] - least);
}

static void trellis_step TRELLIS_STEP_ARGS {
    for (int k = 0; k < n; k++)
        step(to + (size_t)k * stride, from + (size_t)k * stride, lut + 64 * k, beam, table);
}

static int trellis_back(const uint8_t *from, const uint8_t *lut, const uint8_t *table) {
    int least = 1 << 16, best = 0;
    for (int a = 0; a < 256; a++) {
        int c = from[a] + cost(lut, table + a / 32 * TRELLIS_ENTRY, a % 32);
        c = c < 255 ? c : 255;
        if (c < least) {
            least = c;
            best = a;
        }
    }
    return best;
}

void kern_encode_scalar(Kern *k) {
    k->trellis_step = trellis_step;
    k->trellis_back = trellis_back;
}
