/* scalar23.c - s2 and s3: 2- and 3-bit codes in groups of 32 inputs with a 4-bit scale c and a
 * 4-bit shift z each, one f16 scale d a row. The decoder follows docs/FORMAT.md line by line; the
 * encoder searches all 256 (c, z) of each group for the least squared error. */
#include "codec.h"

#include <math.h>
#include <string.h>

typedef struct Layout {
    size_t rows16, n_groups, group_bytes;
} Layout;

static Layout layout(int type, size_t rows, size_t cols) {
    return (Layout){ (rows + S_ROWS - 1) / S_ROWS * S_ROWS, (cols + S_GROUP - 1) / S_GROUP,
                     s_group_bytes(type) };
}

static uint8_t *group_at(const Layout *l, const uint8_t *tensor, size_t r, size_t g) {
    return (uint8_t *)tensor + (r / S_ROWS * l->n_groups + g) * l->group_bytes;
}

const uint8_t *s_row_scales(int type, const uint8_t *tensor, size_t rows, size_t cols) {
    Layout l = layout(type, rows, cols);
    return tensor + l.rows16 / S_ROWS * l.n_groups * l.group_bytes;
}

/* ---- decoding ---- */

static int get_code(int type, const uint8_t *group, size_t r, int input) {
    int h = input / 16, f = input / 4 % 4, i = input % 4, k = input / 4;
    int q = group[16 + 64 * h + 4 * (int)r + i] >> (2 * f) & 3;
    if (type == T_S3) q |= (group[144 + 4 * (int)r + i] >> k & 1) << 2;
    return q;
}

static void decode_row(int type, float *dst, const uint8_t *tensor, size_t rows, size_t cols,
                       size_t r) {
    Layout l = layout(type, rows, cols);
    int levels = type == T_S3 ? 8 : 4;
    float d = f16_to_f32(load_u16(s_row_scales(type, tensor, rows, cols) + 2 * r));
    for (size_t g = 0; g < l.n_groups; g++) {
        const uint8_t *group = group_at(&l, tensor, r, g);
        int c = group[r % S_ROWS] & 15, z = group[r % S_ROWS] >> 4;
        for (int i = 0; i < S_GROUP && g * S_GROUP + (size_t)i < cols; i++) {
            int q = get_code(type, group, r % S_ROWS, i);
            int eighths = (c + 4) * (8 * q - 4 * (levels - 1) + z - 8);
            dst[g * S_GROUP + (size_t)i] = d * 0.125f * (float)eighths; /* exact */
        }
    }
}

void decode_S2(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    decode_row(T_S2, dst, tensor, rows, cols, r);
}

void decode_S3(float *dst, const uint8_t *tensor, size_t rows, size_t cols, size_t r) {
    decode_row(T_S3, dst, tensor, rows, cols, r);
}

/* ---- encoding ---- */

/* One group of one row: weights in units of the row scale, and the weights of their squared errors
 * (0 past the matrix). */
typedef struct Source {
    float x[S_GROUP], w[S_GROUP];
} Source;

/* Rounds to the nearest integer in lo..hi; NaN gives lo. */
static inline float nearest_code(float t, float hi) {
    t = t > 0 ? t : 0;
    t = t < hi ? t : hi;
    return (t + 12582912.0f) - 12582912.0f;
}

/* Adds the squared errors of inputs i0..i1-1 for all 16 shifts at scale c, in units of (c + 4)^2: t
 * is the weight on the code axis of shift z. Sums run over inputs in order, lanes are shifts. */
static void add_errors(float *restrict error, const Source *s, int i0, int i1, float inv,
                       float hi) {
    float e[16];
    memcpy(e, error, sizeof e);
    for (int i = i0; i < i1; i++) {
        float t0 = s->x[i] * inv + hi * 0.5f + 1.0f, w = s->w[i];
        for (int z = 0; z < 16; z++) {
            float t = t0 - 0.125f * (float)z;
            float diff = t - nearest_code(t, hi);
            e[z] += w * diff * diff;
        }
    }
    memcpy(error, e, sizeof e);
}

static float smallest(const float *error) {
    float m = error[0];
    for (int z = 1; z < 16; z++) m = error[z] < m ? error[z] : m;
    return m;
}

/* The (c, z) with the least error; among equals the smallest c, then z. A scale is given up when
 * its partial sums, which only grow, have passed the least error: starting at a likely scale saves
 * time and changes nothing. */
static uint8_t best_cz(const Source *s, float hi, int likely, float *least) {
    int best = 0;
    *least = INFINITY;
    for (int k = 0; k < 16; k++) {
        int c = (likely + (k & 1 ? 16 - (k + 1) / 2 : k / 2)) % 16;
        float error[16] = { 0 }, step = (float)(c + 4), square = step * step;
        for (int i = 0; i < S_GROUP; i += 8) {
            add_errors(error, s, i, i + 8, 1.0f / step, hi);
            if (smallest(error) * square > *least) break;
        }
        for (int z = 0; z < 16; z++) {
            float e = error[z] * square;
            if (e < *least || (e == *least && (c << 4 | z) < best)) *least = e, best = c << 4 | z;
        }
    }
    return (uint8_t)(best >> 4 | best << 4);
}

static void load_source(Source *s, const float *row, const float *importance, size_t cols, size_t g,
                        float inv_d) {
    for (int i = 0; i < S_GROUP; i++) {
        size_t k = g * S_GROUP + (size_t)i;
        s->x[i] = k < cols ? row[k] * inv_d : 0;
        s->w[i] = k >= cols ? 0 : importance ? importance[k] : 1;
    }
}

static void put_code(int type, uint8_t *group, size_t r, int i, int q) {
    group[16 + 64 * (i / 16) + 4 * (int)r + i % 4] |= (uint8_t)((q & 3) << (2 * (i / 4 % 4)));
    if (type == T_S3) group[144 + 4 * (int)r + i % 4] |= (uint8_t)((q >> 2) << (i / 4));
}

static void put_codes(int type, uint8_t *group, size_t r, const Source *s, int cz) {
    float hi = type == T_S3 ? 7 : 3, inv = 1.0f / (float)((cz & 15) + 4);
    for (int i = 0; i < S_GROUP; i++) {
        float t0 = s->x[i] * inv + hi * 0.5f + 1.0f;
        put_code(type, group, r, i, (int)nearest_code(t0 - 0.125f * (float)(cz >> 4), hi));
    }
}

void s_put_group(int type, uint8_t *tensor, size_t cols, size_t r, size_t group, int cz,
                 const uint8_t *code) {
    Layout l = layout(type, r + 1, cols); /* where a row lies does not depend on those after it */
    uint8_t *at = group_at(&l, tensor, r, group);
    at[r % S_ROWS] = (uint8_t)cz;
    for (int i = 0; i < S_GROUP; i++) put_code(type, at, r % S_ROWS, i, code[i]);
}

static const float trials[] = { 1.0f, 0.85f, 1.2f };

/* Row scale d near rms * factor: the one of the trials with the least error over the row. The (c,
 * z) of trial t wait in byte t of the row's own code bytes. */
static void encode_row(int type, const Layout *l, uint8_t *tensor, uint8_t *scale, size_t r,
                       const float *row, size_t cols, const float *importance) {
    float hi = type == T_S3 ? 7 : 3, factor = (type == T_S3 ? 0.55f : 0.95f) / 11.5f;
    double sum = 0, least = INFINITY;
    for (size_t i = 0; i < cols; i++) sum += (double)row[i] * row[i];
    float rms = (float)sqrt(sum / (double)cols);
    uint16_t d = 0;
    int best = -1;
    Source s;
    for (int t = 0; t < (int)ARRAY_LEN(trials); t++) {
        uint16_t h = f32_to_f16(fminf(rms * factor * trials[t], 65504));
        if (h == 0) continue;
        double total = 0;
        int likely = 7;
        for (size_t g = 0; g < l->n_groups; g++) {
            float e, df = f16_to_f32(h);
            load_source(&s, row, importance, cols, g, 1.0f / df);
            uint8_t cz = best_cz(&s, hi, likely, &e);
            group_at(l, tensor, r, g)[16 + 4 * (r % S_ROWS) + (size_t)t] = cz;
            likely = cz & 15;
            total += (double)e * df * df;
        }
        if (total < least) least = total, d = h, best = t;
    }
    memcpy(scale, &d, 2);
    for (size_t g = 0; g < l->n_groups; g++) {
        uint8_t *group = group_at(l, tensor, r, g), *code = group + 16 + 4 * (r % S_ROWS);
        uint8_t cz = best < 0 ? 0 : code[best];
        memset(code, 0, 4);
        if (best < 0) continue;
        group[r % S_ROWS] = cz;
        load_source(&s, row, importance, cols, g, 1.0f / f16_to_f32(d));
        put_codes(type, group, r % S_ROWS, &s, cz);
    }
}

static void encode_rows(int type, uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n,
                        const float *src, const float *importance) {
    Layout l = layout(type, rows, cols);
    uint8_t *scales = (uint8_t *)s_row_scales(type, tensor, rows, cols);
    memset(group_at(&l, tensor, r0, 0), 0, l.n_groups * l.group_bytes);
    memset(scales + 2 * r0, 0, 2 * S_ROWS);
    for (size_t r = 0; r < n; r++)
        encode_row(type, &l, tensor, scales + 2 * (r0 + r), r0 + r, src + r * cols, cols,
                   importance);
}

void encode_S2(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
               const float *importance) {
    encode_rows(T_S2, tensor, rows, cols, r0, n, src, importance);
}

void encode_S3(uint8_t *tensor, size_t rows, size_t cols, size_t r0, size_t n, const float *src,
               const float *importance) {
    encode_rows(T_S3, tensor, rows, cols, r0, n, src, importance);
}
