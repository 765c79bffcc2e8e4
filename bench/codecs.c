/* codecs.c - what each type that can be written does to Gaussian weights: bits all-in, mean squared
 * error in units of the variance, weights a second of all cores. CSV.
 * usage: bench_codecs [ROWS COLS] (default 4096 4096) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "kern/kern.h"
#include "trellis23.h"

typedef struct Bench {
    const TypeInfo *type;
    size_t rows, cols;
    float *w;     /* (rows, cols) */
    float *work;  /* the same, for an encoder that changes it */
    double *sums; /* per row: squared error, square */
    uint8_t *tensor;
} Bench;

static void fill_row(void *arg, int item, int thread) {
    const Bench *b = arg;
    (void)thread;
    for (size_t i = 0; i < b->cols; i++) {
        uint64_t at = (uint64_t)item * b->cols + i, x = hash64(1, &at, sizeof at);
        double u = ((double)(x >> 32) + 0.5) * 0x1p-32, v = (double)(uint32_t)x * 0x1p-32;
        b->w[at] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
    }
}

static void encode_block(void *arg, int item, int thread) {
    const Bench *b = arg;
    size_t r = 16 * (size_t)item;
    (void)thread;
    b->type->encode(b->tensor, b->rows, b->cols, r, MIN((size_t)16, b->rows - r),
                    b->w + r * b->cols, NULL);
}

static void measure_row(void *arg, int item, int thread) {
    const Bench *b = arg;
    float *y = malloc(b->cols * sizeof *y);
    double *sum = b->sums + 2 * (size_t)item;
    (void)thread;
    if (!y) abort();
    b->type->decode(y, b->tensor, b->rows, b->cols, (size_t)item);
    sum[0] = sum[1] = 0;
    for (size_t i = 0; i < b->cols; i++) {
        double w = b->w[(size_t)item * b->cols + i], e = (double)y[i] - w;
        sum[0] += e * e;
        sum[1] += w * w;
    }
    free(y);
}

static void run(Bench *b, const char *name, const Kern *kern, Pool *pool) {
    size_t n_bytes;
    double n = (double)(b->rows * b->cols), error = 0, energy = 0;
    b->type = type_by_name(name);
    if (!type_bytes(b->type, b->rows, b->cols, &n_bytes)) {
        fprintf(stderr, "%s cannot have %zu columns\n", name, b->cols);
        return;
    }
    b->tensor = malloc(n_bytes);
    if (!b->tensor) abort();
    memcpy(b->work, b->w, b->rows * b->cols * sizeof *b->w);
    uint64_t start = clock_ns();
    if (b->type->encode)
        pool_run(pool, encode_block, b, (int)((b->rows + 15) / 16));
    else if (trellis_encode(b->type->id, b->tensor, b->work, b->rows, b->cols, 0, 2, kern, pool,
                            NULL) != 0)
        abort();
    double seconds = (double)(clock_ns() - start) / 1e9;
    pool_run(pool, measure_row, b, (int)b->rows);
    for (size_t r = 0; r < b->rows; r++) {
        error += b->sums[2 * r];
        energy += b->sums[2 * r + 1];
    }
    printf("%s,%zu,%zu,%.4f,%.6f,%.2f\n", name, b->rows, b->cols, 8 * (double)n_bytes / n,
           error / energy, n / seconds / 1e6);
    fflush(stdout);
    free(b->tensor);
}

int main(int argc, char **argv) {
    static const char *const names[] = { "t2", "s2", "t3", "s3", "q4", "q8" };
    Bench b = { .rows = argc > 2 ? strtoul(argv[1], NULL, 10) : 4096,
                .cols = argc > 2 ? strtoul(argv[2], NULL, 10) : 4096 };
    Kern kern;
    Pool *pool;
    DibitError err;
    if (pool_create(&pool, 0, NULL, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    kern_init(&kern, isa_detect());
    b.w = malloc(b.rows * b.cols * sizeof *b.w);
    b.work = malloc(b.rows * b.cols * sizeof *b.work);
    b.sums = malloc(2 * b.rows * sizeof *b.sums);
    if (!b.w || !b.work || !b.sums) abort();
    pool_run(pool, fill_row, &b, (int)b.rows);
    puts("type,rows,cols,bits,mse,Mweights/s");
    for (size_t i = 0; i < ARRAY_LEN(names); i++) run(&b, names[i], &kern, pool);
    free(b.w);
    free(b.work);
    free(b.sums);
    pool_free(&pool);
    return 0;
}
