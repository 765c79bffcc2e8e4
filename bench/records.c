/* records.c - what the k2 and k3 records do to Gaussian head vectors, as the cache encodes them:
 * mean squared error in units of the variance, microseconds a vector of one thread. CSV. usage:
 * bench_records [VECTORS] (default 1000000) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cache.h"

enum { PER_ITEM = 1000 };

typedef struct Bench {
    int bits, d;
    const T4Table *table;
    const Kern *kern;
    double *sums;          /* of each item: squared error, square */
    uint64_t *nanoseconds; /* of each item's encoding */
} Bench;

static float gauss(uint64_t at) {
    uint64_t x = hash64(2, &at, sizeof at);
    double u = ((double)(x >> 32) + 0.5) * 0x1p-32, v = (double)(uint32_t)x * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static void item(void *arg, int item, int thread) {
    const Bench *b = arg;
    const KvEncoder e = { b->bits, KV_BEAM, KV_TRIES, { 1, 1, 1, 1 }, b->table, b->kern };
    KvCount count = { 0 };
    double error = 0, energy = 0;
    (void)thread;
    for (int i = 0; i < PER_ITEM; i++) {
        float x[KV_MAX_DIM], y[KV_MAX_DIM];
        uint8_t block[KV_BLOCK * KV_MAX_DIM * 3 / 8] = { 0 };
        uint64_t at = ((uint64_t)item * PER_ITEM + (uint64_t)i) * (uint64_t)b->d;
        for (int c = 0; c < b->d; c++) x[c] = gauss(at + (uint64_t)c);
        uint64_t start = clock_ns();
        kv23_encode(&e, block, 0, x, b->d, &count);
        b->nanoseconds[item] += clock_ns() - start;
        kv23_decode(y, block, b->bits, 0, b->d);
        for (int c = 0; c < b->d; c++) {
            error += (double)(y[c] - x[c]) * (double)(y[c] - x[c]);
            energy += (double)x[c] * (double)x[c];
        }
    }
    b->sums[2 * item] = error;
    b->sums[2 * item + 1] = energy;
}

int main(int argc, char **argv) {
    static T4Table table;
    int n = (argc > 1 ? atoi(argv[1]) : 1000000) / PER_ITEM;
    Kern kern;
    Pool *pool;
    if (n < 1 || pool_create(&pool, 0, NULL, NULL) != 0) return 1;
    kern_init(&kern, ~0u);
    t4_table(table);
    printf("record,head_dim,bits,vectors,mse,us_a_vector\n");
    for (int bits = 2; bits <= 3; bits++)
        for (int d = 64; d <= 128; d *= 2) {
            Bench b = { bits, d, (const T4Table *)&table, &kern, NULL, NULL };
            double error = 0, energy = 0, ns = 0;
            b.sums = calloc((size_t)n, 2 * sizeof *b.sums);
            b.nanoseconds = calloc((size_t)n, sizeof *b.nanoseconds);
            if (!b.sums || !b.nanoseconds) return 1;
            pool_run(pool, item, &b, n);
            for (int i = 0; i < n; i++) {
                error += b.sums[2 * i];
                energy += b.sums[2 * i + 1];
                ns += (double)b.nanoseconds[i];
            }
            printf("k%d,%d,%.1f,%d,%.5f,%.2f\n", bits, d,
                   8.0 * (double)kv_record_bytes(bits, d) / d, n * PER_ITEM, error / energy,
                   ns / 1e3 / n / PER_ITEM);
            fflush(stdout);
            free(b.sums);
            free(b.nanoseconds);
        }
    pool_free(&pool);
    return 0;
}
