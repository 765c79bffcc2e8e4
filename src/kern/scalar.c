/* scalar.c - the int8 products in plain C: the reference that every faster version must equal bit
 * for bit. Order of float operations: kern.h. */
#include "kern.h"

#include <math.h>
#include <string.h>

#include "codec.h"

/* ---- products -------------------------------------------------------------------------------- */

/* Code of input i (0..31) of row r in one group. */
static int code_q4(const uint8_t *g, int r, int i) {
    int b = g[32 + 64 * (i / 8) + 4 * r + i % 4];
    return (i & 4) ? b >> 4 : b & 15;
}

static int code_q8(const uint8_t *g, int r, int i) {
    return (int8_t)g[32 + 64 * (i / 4) + 4 * r + i % 4];
}

static int code_s2(const uint8_t *g, int r, int i) {
    return g[16 + 64 * (i / 16) + 4 * r + i % 4] >> (2 * (i / 4 % 4)) & 3;
}

static int code_s3(const uint8_t *g, int r, int i) {
    return code_s2(g, r, i) | (g[144 + 4 * r + i % 4] >> (i / 4) & 1) << 2;
}

/* Sum of code * activation of inputs first..first+n-1 of a group. */
static int32_t dot(int (*code)(const uint8_t *, int, int), const uint8_t *g, int r, const int8_t *a,
                   int first, int n) {
    int32_t s = 0;
    for (int i = first; i < first + n; i++) s += code(g, r, i) * a[i];
    return s;
}

static void mul_q4(float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale,
                   int n_groups, const A8 *a, int n_tokens) {
    (void)row_scale;
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < 16; r++) {
            const int8_t *q = a->q + (size_t)t * a->ld;
            const float *scale = a->scale + (size_t)t * (a->ld / 32);
            const int32_t *sum = a->sum + (size_t)t * (a->ld / 16);
            float acc = 0;
            for (int g = 0; g < n_groups; g++) {
                const uint8_t *w = block + (size_t)g * Q4X_BYTES;
                int32_t s = dot(code_q4, w, r, q + 32 * (size_t)g, 0, 32);
                s -= 8 * (sum[2 * g] + sum[2 * g + 1]);
                acc += f16_to_f32(load_u16(w + 2 * r)) * scale[g] * (float)s;
            }
            y[(size_t)t * ldy + r] = acc;
        }
}

static void mul_q8(float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale,
                   int n_groups, const A8 *a, int n_tokens) {
    (void)row_scale;
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < 16; r++) {
            const int8_t *q = a->q + (size_t)t * a->ld;
            const float *scale = a->scale + (size_t)t * (a->ld / 32);
            float acc = 0;
            for (int g = 0; g < n_groups; g++) {
                const uint8_t *w = block + (size_t)g * Q8X_BYTES;
                int32_t s = dot(code_q8, w, r, q + 32 * (size_t)g, 0, 32);
                acc += f16_to_f32(load_u16(w + 2 * r)) * scale[g] * (float)s;
            }
            y[(size_t)t * ldy + r] = acc;
        }
}

/* levels: 4 (s2) or 8 (s3) */
static void mul_s(float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale,
                  int n_groups, const A8 *a, int n_tokens, int levels) {
    size_t group_bytes = levels == 4 ? 144 : 208;
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < 16; r++) {
            const int8_t *q = a->q + (size_t)t * a->ld;
            const float *scale = a->scale + (size_t)t * (a->ld / 32);
            const int32_t *sum = a->sum + (size_t)t * (a->ld / 16);
            float acc = 0;
            for (int g = 0; g < n_groups; g++) {
                const uint8_t *w = block + (size_t)g * group_bytes;
                int c = w[r] & 15, z = w[r] >> 4;
                int32_t s = dot(levels == 4 ? code_s2 : code_s3, w, r, q + 32 * (size_t)g, 0, 32);
                int32_t G = 8 * s + (z - 8 - 4 * (levels - 1)) * (sum[2 * g] + sum[2 * g + 1]);
                acc += scale[g] * (float)((c + 4) * G);
            }
            y[(size_t)t * ldy + r] = acc * (f16_to_f32(row_scale[r]) * 0.125f);
        }
}

static void mul_s2(float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale,
                   int n_groups, const A8 *a, int n_tokens) {
    mul_s(y, ldy, block, row_scale, n_groups, a, n_tokens, 4);
}

static void mul_s3(float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale,
                   int n_groups, const A8 *a, int n_tokens) {
    mul_s(y, ldy, block, row_scale, n_groups, a, n_tokens, 8);
}

static int code_kq(const uint8_t *g, int r, int i) {
    return g[64 * (i / 4) + 4 * r + i % 4];
}

static void mul_kq(float *y, size_t ldy, const uint8_t *block, const uint16_t *row_scale,
                   int n_groups, const A8 *a, int n_tokens) {
    (void)row_scale;
    const KqGroup *w = (const KqGroup *)block;
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < 16; r++) {
            const int8_t *q = a->q + (size_t)t * a->ld;
            const float *scale = a->scale + (size_t)t * (a->ld / 32);
            const int32_t *sum = a->sum + (size_t)t * (a->ld / 16);
            float acc = y[(size_t)t * ldy + r];
            for (int g = 0; g < n_groups; g++) {
                int32_t s = 0, m = 0;
                for (int h = 0; h < 2; h++) {
                    s += w[g].sc[r][h] * dot(code_kq, w[g].code, r, q + 32 * (size_t)g, 16 * h, 16);
                    m += w[g].mn[r][h] * sum[2 * g + h];
                }
                acc += w[g].d[r] * scale[g] * (float)s - w[g].dm[r] * scale[g] * (float)m;
            }
            y[(size_t)t * ldy + r] = acc;
        }
}

/* ---- interleaving of q4 and q8 rows ---------------------------------------------------------- */

static void pack_q4(uint8_t *dst, const uint8_t *rows, size_t row_bytes, int n_rows, int n_groups) {
    memset(dst, 0, (size_t)n_groups * Q4X_BYTES);
    for (int r = 0; r < n_rows; r++)
        for (int g = 0; g < n_groups; g++) {
            const uint8_t *b = rows + (size_t)r * row_bytes + (size_t)g * 18;
            uint8_t *d = dst + (size_t)g * Q4X_BYTES;
            memcpy(d + 2 * r, b, 2);
            /* input i is the low half of byte i, input 16 + i the high half; 4 at a time */
            for (int h = 0; h < 2; h++) {
                uint32_t x = load_u32(b + 2 + 8 * h), y = load_u32(b + 6 + 8 * h);
                uint32_t low = (x & 0x0f0f0f0f) | (y << 4 & 0xf0f0f0f0);
                uint32_t high = (x >> 4 & 0x0f0f0f0f) | (y & 0xf0f0f0f0);
                memcpy(d + 32 + 64 * h + 4 * r, &low, 4);
                memcpy(d + 32 + 64 * (h + 2) + 4 * r, &high, 4);
            }
        }
}

static void pack_q8(uint8_t *dst, const uint8_t *rows, size_t row_bytes, int n_rows, int n_groups) {
    memset(dst, 0, (size_t)n_groups * Q8X_BYTES);
    for (int r = 0; r < n_rows; r++)
        for (int g = 0; g < n_groups; g++) {
            const uint8_t *b = rows + (size_t)r * row_bytes + (size_t)g * 34;
            uint8_t *d = dst + (size_t)g * Q8X_BYTES;
            memcpy(d + 2 * r, b, 2);
            for (int v = 0; v < 8; v++) memcpy(d + 32 + 64 * v + 4 * r, b + 2 + 4 * v, 4);
        }
}

/* ---- unpacking of the K types ---------------------------------------------------------------- */

/* 256 inputs of one row: input i is d * sc[i / 16] * code[i] - dm * mn[i / 16]. */
typedef struct KBlock {
    float d, dm;
    int16_t sc[16], mn[16];
    uint8_t code[256];
} KBlock;

/* Two bits each: inputs 128n + 32j + l (j 0..3) are bits 2j of byte 32n + l. */
static void codes_2bit(uint8_t *code, const uint8_t *q) {
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) code[32 * j + i] = q[j / 4 * 32 + i] >> (2 * (j % 4)) & 3;
}

/* code |= bit j of 32 bytes << place for the inputs of group j */
static void add_bit(uint8_t *code, const uint8_t *q, int place) {
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) code[32 * j + i] |= (uint8_t)((q[i] >> j & 1) << place);
}

static void unpack_q2_k(KBlock *b, const uint8_t *p) {
    b->d = f16_to_f32(load_u16(p + 80));
    b->dm = f16_to_f32(load_u16(p + 82));
    for (int j = 0; j < 16; j++) {
        b->sc[j] = p[j] & 15;
        b->mn[j] = p[j] >> 4;
    }
    codes_2bit(b->code, p + 16);
}

static void unpack_q3_k(KBlock *b, const uint8_t *p) {
    b->d = b->dm = f16_to_f32(load_u16(p + 108));
    const uint8_t *s = p + 96;
    for (int j = 0; j < 16; j++) {
        int lo = j < 8 ? s[j] & 15 : s[j - 8] >> 4, hi = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        b->sc[j] = (int16_t)((lo | hi << 4) - 32);
        b->mn[j] = (int16_t)(4 * b->sc[j]);
    }
    codes_2bit(b->code, p + 32);
    add_bit(b->code, p, 2);
}

/* Eight 6-bit scales and mins in 12 bytes (q4_K, q5_K), one pair for 32 inputs. */
static void scales_6bit(KBlock *b, const uint8_t *s) {
    for (int j = 0; j < 8; j++) {
        int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        int mn = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
        b->sc[2 * j] = b->sc[2 * j + 1] = (int16_t)sc;
        b->mn[2 * j] = b->mn[2 * j + 1] = (int16_t)mn;
    }
}

/* Four bits each: inputs 64n + l are the low, 64n + 32 + l the high halves of byte 32n + l. */
static void codes_4bit(uint8_t *code, const uint8_t *q) {
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) code[32 * j + i] = q[j / 2 * 32 + i] >> (4 * (j % 2)) & 15;
}

static void unpack_q4_k(KBlock *b, const uint8_t *p) {
    b->d = f16_to_f32(load_u16(p));
    b->dm = f16_to_f32(load_u16(p + 2));
    scales_6bit(b, p + 4);
    codes_4bit(b->code, p + 16);
}

static void unpack_q5_k(KBlock *b, const uint8_t *p) {
    b->d = f16_to_f32(load_u16(p));
    b->dm = f16_to_f32(load_u16(p + 2));
    scales_6bit(b, p + 4);
    codes_4bit(b->code, p + 48);
    add_bit(b->code, p + 16, 4);
}

static void unpack_q6_k(KBlock *b, const uint8_t *p) {
    b->d = b->dm = f16_to_f32(load_u16(p + 208));
    for (int j = 0; j < 16; j++) {
        b->sc[j] = (int8_t)p[192 + j];
        b->mn[j] = (int16_t)(32 * b->sc[j]);
    }
    /* 128 inputs: the low halves of 64 bytes, then their high halves */
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) {
            int lo = p[j / 4 * 64 + j % 2 * 32 + i] >> (4 * (j / 2 % 2)) & 15;
            int hi = p[128 + j / 4 * 32 + i] >> (2 * (j % 4)) & 3;
            b->code[32 * j + i] = (uint8_t)(lo | hi << 4);
        }
}

static void unpack_tq2_0(KBlock *b, const uint8_t *p) {
    b->d = b->dm = f16_to_f32(load_u16(p + 64));
    for (int j = 0; j < 16; j++) b->sc[j] = b->mn[j] = 1;
    codes_2bit(b->code, p);
}

static void pack_k(uint8_t *dst, const uint8_t *rows, size_t row_bytes, int n_rows, int n_groups,
                   void (*unpack)(KBlock *, const uint8_t *), size_t block_bytes) {
    memset(dst, 0, (size_t)n_groups * sizeof(KqGroup));
    for (int r = 0; r < n_rows; r++)
        for (int g = 0; g < n_groups; g += 8) {
            KBlock b;
            unpack(&b, rows + (size_t)r * row_bytes + (size_t)(g / 8) * block_bytes);
            for (int j = 0; j < 8; j++) {
                KqGroup *d = (KqGroup *)dst + g + j;
                d->d[r] = b.d;
                d->dm[r] = b.dm;
                for (int h = 0; h < 2; h++) {
                    d->sc[r][h] = b.sc[2 * j + h];
                    d->mn[r][h] = b.mn[2 * j + h];
                }
                for (int v = 0; v < 8; v++)
                    memcpy(d->code + 64 * v + 4 * r, b.code + 32 * j + 4 * v, 4);
            }
        }
}

#define PACK_K(type, block_bytes)                                                                  \
    static void pack_##type(uint8_t *dst, const uint8_t *rows, size_t row_bytes, int n_rows,       \
                            int n_groups) {                                                        \
        pack_k(dst, rows, row_bytes, n_rows, n_groups, unpack_##type, block_bytes);                \
    }
PACK_K(q2_k, 84)
PACK_K(q3_k, 110)
PACK_K(q4_k, 144)
PACK_K(q5_k, 176)
PACK_K(q6_k, 210)
PACK_K(tq2_0, 66)

/* ---- activations ----------------------------------------------------------------------------- */

static void quantize(int8_t *q, float *scale, int32_t *sum, const float *x, int n) {
    for (int g = 0; 32 * g < n; g++) {
        int len = MIN(32, n - 32 * g);
        uint32_t max_bits = 0; /* of |x|: NaN above infinity above every number */
        for (int i = 0; i < len; i++) {
            uint32_t bits = load_u32(x + 32 * g + i) & 0x7fffffff;
            max_bits = MAX(max_bits, bits);
        }
        float amax, inverse = 0;
        memcpy(&amax, &max_bits, 4);
        int finite = max_bits < 0x7f800000;
        if (finite) inverse = MIN(127.0f / amax, 0x1.fffffep127f); /* amax tiny: codes get small */
        for (int i = 0; i < 32; i++) {
            float v = finite && i < len ? x[32 * g + i] * inverse : 0;
            v = (v + 0x1.8p23f) - 0x1.8p23f; /* to nearest even */
            q[32 * g + i] = (int8_t)v;
        }
        scale[g] = finite ? amax / 127.0f : NAN;
        for (int h = 0; h < 2; h++) {
            sum[2 * g + h] = 0;
            for (int i = 0; i < 16; i++) sum[2 * g + h] += q[32 * g + 16 * h + i];
        }
    }
}

void kern_scalar(Kern *k) {
    k->mul_q4 = mul_q4;
    k->mul_q8 = mul_q8;
    k->mul_s2 = mul_s2;
    k->mul_s3 = mul_s3;
    k->mul_kq = mul_kq;
    k->pack_q4 = pack_q4;
    k->pack_q8 = pack_q8;
    k->pack_q2_k = pack_q2_k;
    k->pack_q3_k = pack_q3_k;
    k->pack_q4_k = pack_q4_k;
    k->pack_q5_k = pack_q5_k;
    k->pack_q6_k = pack_q6_k;
    k->pack_tq2_0 = pack_tq2_0;
    k->quantize = quantize;
}
