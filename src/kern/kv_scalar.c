/* kv_scalar.c - the loops over k2 and k3 records in plain C: the reference for every faster
 * version. */
#include <math.h>
#include <string.h>

#include "kern.h"
#include "kv23.h"
#include "kv_q4.inc"

static void kv_luts(uint8_t *lut, const float *x, float inv, const float *weight, int d, int bits) {
    int nb = d / 4;
    for (int k = 0; k < d; k++, lut += 16) { /* k = 4 t + lane */
        float w = x[k % 4 * nb + k / 4] * inv, f[9], least = 1e9f;
        w = bits == 2 ? w : fabsf(w);
        w = w > 16 ? 16 : w < -16 ? -16 : w; /* all codes beyond are as far off */
        for (int p = 0; p < 9; p++) {
            float e = bits == 2 ? w - (float)(p - 4) : w - fabsf((float)p - 4.25f);
            f[p] = e * e;
            if (f[p] < least) least = f[p];
        }
        memset(lut, 63, 16);
        for (int p = 0; p < 9; p++) {
            float c = (f[p] - least) * ((bits == 2 ? 8.0f : 16.0f) * weight[k % 4]);
            if (c < 63) lut[p] = (uint8_t)(c + 0.5f);
        }
    }
}

static int add_sat(int a, int b) {
    return a + b > 255 ? 255 : a + b;
}

static int select_best(uint8_t *state, uint8_t *cost, const uint8_t *c, int half, int beam) {
    int lo = half == 1 ? 128 : 0, hi = half == 0 ? 128 : 256, limit = 0, n = 0, n_at[256] = { 0 };
    uint8_t least = 255;
    for (int i = lo; i < hi; i++) least = MIN(least, c[i]);
    for (int i = lo; i < hi; i++) n_at[c[i] - least]++;
    for (int below = n_at[0]; below < beam && limit < 63;) below += n_at[++limit];
    for (int i = lo; i < hi && n < 2 * beam; i++) {
        if (c[i] - least > limit) continue;
        state[n] = (uint8_t)i;
        cost[n++] = (uint8_t)(c[i] - least);
    }
    return n;
}

static int kv_step(uint8_t *state, uint8_t *cost, const uint8_t *lut, const uint8_t *from,
                   const uint8_t *from_cost, int n, int half, int beam, const uint8_t *table) {
    uint8_t least[256];
    memset(least, 255, sizeof least);
    for (int k = 0; k < n; k++) {
        const uint8_t *row = table + 1024 * from[k];
        for (int c = 0; c < 256; c++) {
            int a = lut[row[c]] + lut[16 + row[256 + c]],
                b = lut[32 + row[512 + c]] + lut[48 + row[768 + c]];
            int sum = add_sat(a + b, from_cost[k]);
            if (sum < least[c]) least[c] = (uint8_t)sum;
        }
    }
    return select_best(state, cost, least, half, beam);
}

/* What step t holds for record r: twice the value of lane i of k2, four times that of k3, as
 * integers. */
static int value_x(const uint8_t *block, int bits, int r, int t, int i, int nb) {
    uint32_t p = t4(t ? block[(t - 1) * KV_BLOCK + r] : 0, block[t * KV_BLOCK + r]);
    int v = (int)(p >> (8 * i) & 255), bit = 4 * r + i;
    if (bits == 2) return v - 4;
    int u = 2 * v + 7;
    if (block[nb * KV_BLOCK + 8 * t + bit / 8] >> (bit % 8) & 1) u = 31 - u;
    return 2 * u - 31;
}

static float unit_of(const uint8_t *block, int bits, int r, int d) {
    float rms = kv_rms(kv23_scale(block, r, d));
    return bits == 2 ? rms * (1 / KV_SCALE_K2) : rms * (0.25f / KV_SCALE_K3);
}

static void score(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale, int n_q,
                  const uint8_t *blocks, int n_pos, int d, int bits) {
    int nb = d / 4, padded = (n_pos + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    for (int p = 0; p < padded; p++) {
        const uint8_t *block =
            blocks + (size_t)(p / KV_BLOCK) * KV_BLOCK * kv_record_bytes(bits, d);
        int r = p % KV_BLOCK;
        float unit = unit_of(block, bits, r, d);
        for (int j = 0; j < n_q; j++) {
            int32_t dot = 0;
            for (int k = 0; k < d; k++)
                dot += q[(size_t)j * ldq + (size_t)k] * value_x(block, bits, r, k / 4, k % 4, nb);
            s[(size_t)j * lds + (size_t)p] = unit * q_scale[j] * (float)dot;
        }
    }
}

/* Rounds the weights of one query to 14 bits; returns the step, NaN when a weight is not finite. */
static float round_weights(int32_t *w, const float *s, const uint8_t *blocks, int n_pos, int d,
                           int bits) {
    float f[256], largest = 0;
    for (int p = 0; p < n_pos; p++) {
        const uint8_t *block =
            blocks + (size_t)(p / KV_BLOCK) * KV_BLOCK * kv_record_bytes(bits, d);
        f[p] = s[p] * unit_of(block, bits, p % KV_BLOCK, d);
        if (!(f[p] <= largest)) largest = f[p];
        if (isnan(largest)) break;
    }
    memset(w, 0, sizeof(int32_t) * (size_t)n_pos);
    if (!(largest < INFINITY)) return NAN;
    if (!(largest > 0)) return 0;
    float inv = 16383.0f / largest;
    if (!(inv < INFINITY)) return 0; /* weights too small to matter: below 2^-114 */
    for (int p = 0; p < n_pos; p++) w[p] = (int32_t)(f[p] * inv + 0.5f);
    return largest * (1.0f / 16383.0f);
}

static void accum(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                  int n_q, const uint8_t *blocks, int n_pos, int d, int bits) {
    int nb = d / 4;
    int32_t w[256];
    for (int j = 0; j < n_q; j++) {
        float step = round_weights(w, s + (size_t)j * lds, blocks, n_pos, d, bits);
        for (int k = 0; k < d; k++) {
            float *a = &acc[(size_t)j * ldacc + (size_t)(k % 4 * nb + k / 4)];
            int32_t dot = 0;
            for (int p = 0; p < n_pos; p++)
                dot += w[p] * value_x(blocks + (size_t)(p / KV_BLOCK) * KV_BLOCK *
                                                   kv_record_bytes(bits, d),
                                      bits, p % KV_BLOCK, k / 4, k % 4, nb);
            *a = *a * factor[j] + step * (float)dot;
        }
    }
}

#include "kv_records.inc"

/* Codes of one group for a scale, and their squared error. */
static float q4_try(uint8_t *code, const float *x, int n, float scale) {
    float inv = scale != 0 ? 1 / scale : 0, sum = 0;
    for (int i = 0; i < n; i++) {
        float c = x[i] * inv + 8.5f;
        code[i] = (uint8_t)(c < 0 ? 0 : c > 15 ? 15 : c);
        float e = x[i] - scale * (float)(code[i] - 8);
        sum += e * e;
    }
    return sum;
}

static void kv_put_q4(uint8_t *row, const float *x, int d) {
    for (int g = 0; 32 * g < d; g++, x += 32) {
        int n = q4_group(d, g), best = 0;
        uint8_t code[2][32], *out = row + 16 * g;
        float top = 0, bad = 0, least = INFINITY;
        for (int i = 0; i < n; i++) {
            if (fabsf(x[i]) > fabsf(top)) top = x[i];
            bad += x[i] - x[i];
        }
        uint16_t scale = 0;
        memset(code, 8, sizeof code);
        for (int k = 0; k < 6 && bad == 0; k++) {
            uint16_t h = f32_to_f16(top / ((float)k * 0.5f - 8));
            float e = q4_try(code[!best], x, n, f16_to_f32(h));
            if (e < least) least = e, best = !best, scale = h;
        }
        if (!(least < INFINITY)) scale = 0x7e00; /* NaN, infinity, or too large for f16 */
        for (int i = 0; i < n / 2; i++)
            out[i] = (uint8_t)(code[best][i] | code[best][n / 2 + i] << 4);
        memcpy(row + d / 2 + 2 * g, &scale, sizeof scale);
    }
}

void kern_kv_scalar(Kern *k) {
    k->score_q4 = score_q4;
    k->accum_q4 = accum_q4;
    k->kv_put_q4 = kv_put_q4;
    k->kv_luts = kv_luts;
    k->kv_step = kv_step;
    k->score_k2 = score_k2;
    k->score_k3 = score_k3;
    k->accum_k2 = accum_k2;
    k->accum_k3 = accum_k3;
}
