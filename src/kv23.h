/* kv23.h - the k2 and k3 records: one head vector in exactly 2 or 3 bits per value, scale included.
 * The bits are normative in docs/FORMAT.md; the scalar encoder and decoder here follow that text.
 *
 * A record of head dimension d has nb = d / 4 code bytes and, for k3, d / 8 sign bytes behind them.
 * In a cache 16 records stand side by side as a block: code byte t of record r at t * 16 + r; for
 * k3 then, for each t, 8 bytes whose bit 4r + i is the sign of coordinate i * nb + t of record r.
 */
#ifndef KV23_H
#define KV23_H
#include "base.h"

struct Kern;

#define KV_BLOCK    16 /* records of a block */
#define KV_MAX_DIM  256
#define KV_SCALE_K2 1.40f /* records are coded in units of rms / KV_SCALE */
#define KV_SCALE_K3 1.38f
#define T4_MUL      0xD664883Du

/* The code: 4 small integers 0..8 from two consecutive code bytes, byte i of the result being lane
 * i. */
static inline uint32_t t4(uint8_t prev, uint8_t cur) {
    uint32_t x = (uint32_t)(prev | cur << 8) * T4_MUL;
    x += x >> 13;
    x = x - ((x >> 1) & 0x55555555u); /* population count of each byte */
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    return (x + (x >> 4)) & 0x0F0F0F0Fu;
}

/* t4() of all states, for encoders: lane i of (prev, cur) at [prev][i][cur]. */
typedef uint8_t T4Table[256][4][256];
void t4_table(T4Table table);

/* Scale byte b = 1..255 stands for the root mean square 2^((b - 128) / 16), 0 for the zero vector.
 */
float kv_rms(int b);
int kv_scale_byte(float rms); /* nearest; 0 below the range, 255 above it */
/* The step whose code byte holds bit g of the scale byte as its bit 7. */
static inline int kv_scale_step(int g, int nb) {
    return (2 * g + 1) * nb / 16;
}

/* Bytes of one record; bits is 2 or 3, d a multiple of 16 from 32 to KV_MAX_DIM. */
static inline size_t kv_record_bytes(int bits, int d) {
    return (size_t)d * (size_t)bits / 8;
}

/* What an encoder did, so that nothing passes silently. */
typedef struct KvCount {
    uint64_t n_zero;      /* rms below the scale's range: stored as zero */
    uint64_t n_saturated; /* rms above it: stored with the largest scale */
} KvCount;

typedef struct KvEncoder {
    int bits, beam; /* survivors a step, 8 to 64 */
    int tries; /* scale bytes around the nearest, 1 or 3, of which the one that errs least is kept
                */
    float weight[4]; /* of the squared errors of the four lanes: coordinates i * d / 4 and up */
    const T4Table *table;
    const struct Kern *kern;
} KvEncoder;

/* Encodes x (d values, finite) as record r of a block. */
void kv23_encode(const KvEncoder *e, uint8_t *block, int r, const float *x, int d, KvCount *count);
/* Decodes record r of a block to d values. */
void kv23_decode(float *x, const uint8_t *block, int bits, int r, int d);
/* The scale byte of record r. */
int kv23_scale(const uint8_t *block, int r, int d);
#endif
