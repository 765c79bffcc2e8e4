/* float_scalar.c - the float loops in plain C: the reference that every faster version must equal
 * bit for bit. Order of operations: kern.h. */
#include "kern.h"

#include <math.h>
#include <string.h>

#include "codec.h"

/* ---- 16 lanes -------------------------------------------------------------------------------- */

static float tree16(float *lane) {
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

typedef float Load(const uint8_t *row, int i);

static float load_f32(const uint8_t *row, int i) {
    float f;
    memcpy(&f, row + 4 * (size_t)i, sizeof f);
    return f;
}

static float load_f16(const uint8_t *row, int i) {
    return f16_to_f32(load_u16(row + 2 * (size_t)i));
}

static float load_bf16(const uint8_t *row, int i) {
    return bf16_to_f32(load_u16(row + 2 * (size_t)i));
}

static inline void mul(Load *load, float *y, size_t ldy, const uint8_t *w, size_t row_bytes,
                       int n_rows, const float *x, size_t ldx, int n_tokens, int n) {
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < n_rows; r++) {
            float lane[16] = { 0 };
            for (int i = 0; i < n; i++)
                lane[i % 16] += load(w + (size_t)r * row_bytes, i) * x[(size_t)t * ldx + (size_t)i];
            y[(size_t)t * ldy + (size_t)r] = tree16(lane);
        }
}

static void mul_f32 MULF_ARGS {
    mul(load_f32, y, ldy, w, row_bytes, n_rows, x, ldx, n_tokens, n);
}

static void mul_f16 MULF_ARGS {
    mul(load_f16, y, ldy, w, row_bytes, n_rows, x, ldx, n_tokens, n);
}

static void mul_bf16 MULF_ARGS {
    mul(load_bf16, y, ldy, w, row_bytes, n_rows, x, ldx, n_tokens, n);
}

/* ---- row by row ------------------------------------------------------------------------------ */

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float exp_f32(float x) {
    float t = x * KERN_LOG2E + KERN_ROUND, k = t - KERN_ROUND;
    float r = x - k * KERN_LN2_HI;
    r = r - k * KERN_LN2_LO;
    float p = KERN_EXP_6;
    p = p * r + KERN_EXP_5;
    p = p * r + KERN_EXP_4;
    p = p * r + KERN_EXP_3;
    p = p * r + KERN_EXP_2;
    p = p * r + KERN_EXP_1;
    p = p * (r * r) + r;
    p = p + 1.0f;
    p = p * from_bits((bits_of(t) - bits_of(KERN_ROUND) + 127) << 23);
    if (x < KERN_EXP_MIN) p = 0;
    if (x > KERN_EXP_MAX) p = INFINITY;
    return p;
}

static void rmsnorm(float *dst, const float *x, const float *w, int n, float eps) {
    float lane[16] = { 0 };
    for (int i = 0; i < n; i++) lane[i % 16] += x[i] * x[i];
    float r = 1.0f / sqrtf(tree16(lane) / (float)n + eps);
    for (int i = 0; i < n; i++) dst[i] = x[i] * r * w[i];
}

static void rope(float *x, const float *cs, int n_rot, int halves) {
    int n = n_rot / 2;
    for (int p = 0; p < n; p++) {
        float *a = halves ? x + p : x + 2 * p, *b = halves ? x + n + p : x + 2 * p + 1;
        float c = cs[p], s = cs[n + p], u = *a, v = *b;
        *a = u * c - v * s;
        *b = u * s + v * c;
    }
}

static void swiglu(float *dst, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) dst[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

static void add(float *x, const float *y, int n) {
    for (int i = 0; i < n; i++) x[i] += y[i];
}

/* ---- attention ------------------------------------------------------------------------------- */

static void score_f16(float *s, size_t lds, const float *q, size_t ldq, int n_q, const uint8_t *k,
                      size_t k_stride, int n_pos, int d) {
    mul_f16(s, lds, k, k_stride, n_pos, q, ldq, n_q, d);
}

static void score_q8(float *s, size_t lds, const int8_t *q, size_t ldq, const float *q_scale,
                     int n_q, const uint8_t *k, size_t k_stride, int n_pos, int d) {
    for (int j = 0; j < n_q; j++)
        for (int p = 0; p < n_pos; p++) {
            const uint8_t *row = k + (size_t)p * k_stride;
            int32_t dot = 0;
            for (int i = 0; i < d; i++) dot += q[(size_t)j * ldq + (size_t)i] * (int8_t)row[i];
            float scale = q_scale[j] * f16_to_f32(load_u16(row + d));
            s[(size_t)j * lds + (size_t)p] = scale * (float)dot;
        }
}

static float softmax(float *s, int n_pos, float *max, float *total) {
    float m = *max, lane[16] = { 0 };
    for (int p = 0; p < n_pos; p++)
        if (s[p] > m) m = s[p];
    float from = m == -INFINITY ? 0 : m, factor = exp_f32(*max - from);
    for (int p = 0; p < n_pos; p++) {
        s[p] = exp_f32(s[p] - from);
        lane[p % 16] += s[p];
    }
    *max = m;
    *total = *total * factor + tree16(lane);
    return factor;
}

static void accum_f16(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                      int n_q, const uint8_t *v, size_t v_stride, int n_pos, int d) {
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c++) {
            float a = acc[(size_t)j * ldacc + (size_t)c] * factor[j];
            for (int p = 0; p < n_pos; p++)
                a += s[(size_t)j * lds + (size_t)p] * load_f16(v + (size_t)p * v_stride, c);
            acc[(size_t)j * ldacc + (size_t)c] = a;
        }
}

static void accum_q8(float *acc, size_t ldacc, const float *factor, const float *s, size_t lds,
                     int n_q, const uint8_t *v, size_t v_stride, int n_pos, int d) {
    for (int j = 0; j < n_q; j++)
        for (int c = 0; c < d; c++) {
            float a = acc[(size_t)j * ldacc + (size_t)c] * factor[j];
            for (int p = 0; p < n_pos; p++) {
                const uint8_t *row = v + (size_t)p * v_stride;
                float w = s[(size_t)j * lds + (size_t)p] * f16_to_f32(load_u16(row + d));
                a += w * (float)(int8_t)row[c];
            }
            acc[(size_t)j * ldacc + (size_t)c] = a;
        }
}

static void kv_put_f16(uint8_t *row, const float *x, int d) {
    for (int i = 0; i < d; i++) {
        uint16_t h = fabsf(x[i]) > KERN_F16_MAX ? 0x7e00 : f32_to_f16(x[i]);
        memcpy(row + 2 * (size_t)i, &h, sizeof h);
    }
}

static void kv_put_q8(uint8_t *row, const float *x, int d) {
    float max = 0, bad = 0;
    for (int i = 0; i < d; i++) {
        if (fabsf(x[i]) > max) max = fabsf(x[i]);
        bad += x[i] - x[i];
    }
    uint16_t h = f32_to_f16(max / 127.0f);
    if (f16_to_f32(h) * 127.0f < max) h++;
    bool finite = bad == 0 && h < 0x7c00;
    float inverse = finite && h ? 1.0f / f16_to_f32(h) : 0;
    for (int i = 0; i < d; i++)
        row[i] = finite ? (uint8_t)(bits_of(x[i] * inverse + KERN_ROUND) & 255) : 0;
    if (!finite) h = 0x7e00;
    memcpy(row + d, &h, sizeof h);
}

void kern_float_scalar(Kern *k) {
    k->mul_f32 = mul_f32;
    k->mul_f16 = mul_f16;
    k->mul_bf16 = mul_bf16;
    k->rmsnorm = rmsnorm;
    k->rope = rope;
    k->swiglu = swiglu;
    k->add = add;
    k->score_f16 = score_f16;
    k->score_q8 = score_q8;
    k->softmax = softmax;
    k->accum_f16 = accum_f16;
    k->accum_q8 = accum_q8;
    k->kv_put_f16 = kv_put_f16;
    k->kv_put_q8 = kv_put_q8;
}
