/* kv23.c - encoder and decoder of the k2 and k3 records, in the order of docs/FORMAT.md. The
 * encoder is a beam search through the trellis: a state is a code byte, a step tries all 256 next
 * bytes on each survivor. Costs are small integers from one table a step, so every instruction set
 * makes the same records; the two inner loops are kernels (kv_luts, kv_step). */
#include "kv23.h"

#include <math.h>
#include <string.h>

#include "kern/kern.h"

void t4_table(T4Table table) {
    for (int prev = 0; prev < 256; prev++)
        for (int cur = 0; cur < 256; cur++) {
            uint32_t p = t4((uint8_t)prev, (uint8_t)cur);
            for (int i = 0; i < 4; i++) table[prev][i][cur] = (uint8_t)(p >> (8 * i));
        }
}

/* ---- scale: 16 steps an octave ---- */

static const float steps[16] = { /* 2^(k/16) */
                                 1.0f,        1.04427378f, 1.09050773f, 1.13878863f,
                                 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
                                 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                                 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f
};
static const float borders[16] = { /* 2^((k + 1/2)/16) */
                                   1.02189715f, 1.06714040f, 1.11438674f, 1.16372486f,
                                   1.21524736f, 1.26905096f, 1.32523664f, 1.38390988f,
                                   1.44518081f, 1.50916443f, 1.57598085f, 1.64575548f,
                                   1.71861930f, 1.79470908f, 1.87416763f, 1.95714412f
};

float kv_rms(int b) {
    return b ? ldexpf(steps[b & 15], (b >> 4) - 8) : 0.0f;
}

int kv_scale_byte(float rms) {
    if (!(rms > 0)) return 0;
    int e, k = 0;
    float m = 2 * frexpf(rms, &e);
    while (k < 16 && m >= borders[k]) k++;
    int b = 16 * (e - 1) + k + 128;
    return b < 1 ? 0 : MIN(b, 255);
}

int kv23_scale(const uint8_t *block, int r, int d) {
    int b = 0;
    for (int g = 0; g < 8; g++) b |= (block[kv_scale_step(g, d / 4) * KV_BLOCK + r] >> 7) << g;
    return b;
}

/* ---- decode ---- */

void kv23_decode(float *x, const uint8_t *block, int bits, int r, int d) {
    int nb = d / 4;
    const uint8_t *signs = block + nb * KV_BLOCK;
    float rms = kv_rms(kv23_scale(block, r, d));
    float unit = bits == 2 ? rms / KV_SCALE_K2 : rms / KV_SCALE_K3;
    uint8_t prev = 0;
    for (int t = 0; t < nb; t++) {
        uint8_t cur = block[t * KV_BLOCK + r];
        uint32_t p = t4(prev, cur);
        for (int i = 0; i < 4; i++) {
            float v = (float)(p >> (8 * i) & 255);
            if (bits == 2) {
                v -= 4;
            } else {
                int bit = 4 * r + i;
                v -= 4.25f;
                if (signs[8 * t + bit / 8] >> (bit % 8) & 1) v = -v;
            }
            x[i * nb + t] = v * unit;
        }
        prev = cur;
    }
}

/* ---- encode ---- */

enum { MAX_STEPS = KV_MAX_DIM / 4, MAX_BEAM = 64 };

typedef struct Trace {
    uint8_t lut[MAX_STEPS][64];
    uint8_t state[MAX_STEPS + 1][MAX_BEAM], cost[MAX_STEPS + 1][MAX_BEAM];
    int n[MAX_STEPS + 1];
} Trace;

/* Walks back from the cheapest end state; the parent of a state is the survivor that gives its
 * cost. */
static void trace_back(uint8_t *code, const Trace *tr, int nb, const T4Table table) {
    int best = 0;
    for (int k = 1; k < tr->n[nb]; k++)
        if (tr->cost[nb][k] < tr->cost[nb][best]) best = k;
    uint8_t cur = tr->state[nb][best];
    for (int t = nb - 1; t >= 0; t--) {
        code[t] = cur;
        int least = 1 << 30;
        uint8_t from = 0;
        for (int k = 0; k < tr->n[t]; k++) {
            uint8_t a = tr->state[t][k];
            int c = tr->cost[t][k];
            for (int i = 0; i < 4; i++) c += tr->lut[t][16 * i + table[a][i][cur]];
            if (c < least) least = c, from = a;
        }
        cur = from;
    }
}

/* The cheapest code bytes for scale byte b. */
static void search(const KvEncoder *e, uint8_t *code, const float *x, int d, int b) {
    const Kern *kern = e->kern;
    int nb = d / 4, half[MAX_STEPS];
    float inv = (e->bits == 2 ? KV_SCALE_K2 : KV_SCALE_K3) / kv_rms(b);
    Trace tr;
    kern->kv_luts(tr.lut[0], x, inv, e->weight, d, e->bits);
    for (int t = 0; t < nb; t++) half[t] = -1;
    for (int g = 0; g < 8; g++) half[kv_scale_step(g, nb)] = b >> g & 1;
    tr.n[0] = 1;
    tr.state[0][0] = tr.cost[0][0] = 0;
    for (int t = 0; t < nb; t++)
        tr.n[t + 1] = kern->kv_step(tr.state[t + 1], tr.cost[t + 1], tr.lut[t], tr.state[t],
                                    tr.cost[t], tr.n[t], half[t], e->beam, (*e->table)[0][0]);
    trace_back(code, &tr, nb, *e->table);
}

/* Value of lane i of a code in units of rms / KV_SCALE, the sign chosen for x where there is one.
 */
static float value(uint32_t p, int i, int bits, float x) {
    float v = (float)(p >> (8 * i) & 255);
    if (bits == 2) return v - 4;
    v = fabsf(v - 4.25f);
    return x < 0 ? -v : v;
}

/* In double: a float's square neither overflows nor vanishes. */
static double squared_error(const KvEncoder *k, const uint8_t *code, const float *x, int d, int b) {
    int nb = d / 4, bits = k->bits;
    float unit = kv_rms(b) / (bits == 2 ? KV_SCALE_K2 : KV_SCALE_K3);
    double sum[4] = { 0 };
    for (int t = 0; t < nb; t++) {
        uint32_t p = t4(t ? code[t - 1] : 0, code[t]);
        for (int i = 0; i < 4; i++) {
            double e = x[i * nb + t] - value(p, i, bits, x[i * nb + t]) * unit;
            sum[i] += e * e * k->weight[i];
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void store(uint8_t *block, const uint8_t *code, const float *x, int d, int bits, int r) {
    int nb = d / 4;
    uint8_t *signs = block + nb * KV_BLOCK + r / 2;
    for (int t = 0; t < nb; t++) {
        block[t * KV_BLOCK + r] = code[t];
        if (bits == 2) continue;
        uint32_t p = t4(t ? code[t - 1] : 0, code[t]);
        int s = 0; /* the sign bit is set where x has the other sign than p - 4.25 */
        for (int i = 0; i < 4; i++) s |= ((x[i * nb + t] < 0) != ((p >> (8 * i) & 255) < 5)) << i;
        signs[8 * t] = (uint8_t)(r & 1 ? (signs[8 * t] & 15) | s << 4 : (signs[8 * t] & 240) | s);
    }
}

void kv23_encode(const KvEncoder *k, uint8_t *block, int r, const float *x, int d, KvCount *count) {
    uint8_t code[2][MAX_STEPS] = { { 0 } };
    double sum = 0, least = INFINITY;
    for (int i = 0; i < d; i++) sum += (double)x[i] * x[i];
    float rms = (float)sqrt(sum / d);
    int b0 = kv_scale_byte(rms), best = 0;
    if (b0 == 0) {
        count->n_zero += sum > 0;
    } else {
        count->n_saturated += rms > kv_rms(255) * 1.0219f;
        for (int b = MAX(1, b0 - k->tries / 2); b <= MIN(255, b0 + k->tries / 2); b++) {
            search(k, code[!best], x, d, b);
            double e = squared_error(k, code[!best], x, d, b);
            if (e < least) least = e, best = !best;
        }
    }
    store(block, code[best], x, d, k->bits, r);
}
