/* kern_encode.c - checks of the inner loops of the encoder of t2 and t3, for tests/kern.c. Tables
 * are random: a kernel must not rely on the code function. */
#include "kern_test.h"

enum { MOST = 11, STRIDE = 256 + 32 };

static uint8_t *random_table(Test *t, size_t n) {
    uint8_t *table = random_buffer(t, n);
    for (size_t i = 0; i < n; i++) table[i] %= 9;
    return table;
}

/* Costs that look like those of a search: many small ones, 0 among them, or anything. */
static void random_costs(Test *t, uint8_t *from) {
    int kind = rnd_int(t, 0, 3), most = rnd_int(t, 1, 60);
    for (int a = 0; a < 256; a++) {
        from[a] = (uint8_t)rnd(t);
        if (kind == 0) from[a] = (uint8_t)(from[a] % most);
        if (kind == 1) from[a] = 255;
    }
    from[rnd(t) % 256] = 0;
}

static void random_lut(Test *t, uint8_t *lut) {
    int most = rnd(t) % 3 ? rnd_int(t, 1, 40) : 255;
    for (int i = 0; i < 64; i++) lut[i] = (uint8_t)(rnd(t) % (unsigned)(most + 1));
}

static void check_trellis_step(Test *t) {
    int n = rnd(t) % 8 ? rnd_int(t, 1, 4) : rnd_int(t, 1, MOST);
    int beam = rnd(t) % 2 ? 256 : rnd_int(t, 1, 256);
    uint8_t *table = random_table(t, TRELLIS_TABLE), *lut = buffer(t, 64 * (size_t)n), *to[2];
    size_t used = STRIDE * (size_t)(n - 1) + 256;
    uint8_t *from = random_buffer(t, used);
    for (int k = 0; k < n; k++) {
        random_costs(t, from + STRIDE * k);
        random_lut(t, lut + 64 * k);
    }
    for (int k = 0; k < 2; k++) {
        to[k] = buffer(t, used);
        memset(to[k], 77, used);
        (k ? t->new : t->ref)->trellis_step(to[k], from, STRIDE, lut, n, beam, table);
    }
    same_bytes(t, "to", to[0], to[1], used);
}

static void check_trellis_back(Test *t) {
    uint8_t *table = random_table(t, 8 * TRELLIS_ENTRY), *lut = buffer(t, 64);
    uint8_t *from = buffer(t, 256);
    random_costs(t, from);
    random_lut(t, lut);
    if (rnd(t) % 8 == 0) memset(from, 255, 256);
    int want = t->ref->trellis_back(from, lut, table), got = t->new->trellis_back(from, lut, table);
    if (want != got) differ(t, "state %d, expected %d", got, want);
}

/* One row of 4 row blocks: 16 weights. Costs as they are in the middle of a search. */
static void bench_trellis_step(Test *t) {
    uint8_t *table = random_table(t, TRELLIS_TABLE), *cost = buffer(t, 4 * 256),
            *to = buffer(t, 4 * 256), *lut = buffer(t, 4 * 64);
    for (int i = 0; i < 4 * 64; i++) {
        int e = 5 * (i % 16 - 4) + rnd_int(t, -2, 2);
        lut[i] = (uint8_t)MIN(e * e / 3, 255);
    }
    memset(cost, 0, 4 * 256);
    for (int r = 0; r < 4; r++) {
        t->new->trellis_step(to, cost, 256, lut, 4, 256, table);
        memcpy(cost, to, 4 * 256);
    }
    BENCH(t, "16 w", TRELLIS_TABLE, 4.0 * 65536,
          { k->trellis_step(to, cost, 256, lut, 4, 256, table); });
}

const Check encode_checks[] = {
    { "trellis_step", offsetof(Kern, trellis_step), check_trellis_step, bench_trellis_step },
    { "trellis_back", offsetof(Kern, trellis_back), check_trellis_back, NULL },
};
const size_t n_encode_checks = ARRAY_LEN(encode_checks);
