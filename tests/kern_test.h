/* kern_test.h - the harness that the checks of tests/kern.c share. A check is one row of the table
 * there: it makes random arguments, calls the slot in t->ref (scalar) and t->new, and compares. */
#ifndef KERN_TEST_H
#define KERN_TEST_H
#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "kern/kern.h"

typedef struct Test {
    const Kern *ref, *new;
    const char *isa;
    uint64_t rng;
    int round;    /* 0.. of this check */
    int n_used;   /* buffers handed out in this round */
    int n_differ; /* differences found; the first few are printed */
    int bench;
    double bandwidth; /* bytes a ns that one core reads from memory, when benching */
} Test;

typedef struct Check {
    const char *name;
    size_t slot; /* offset in Kern */
    void (*check)(Test *t);
    void (*bench)(Test *t);
} Check;

extern const Check float_checks[]; /* kern_float.c */
extern const size_t n_float_checks;
extern const Check kv_checks[]; /* kern_kv.c */
extern const size_t n_kv_checks;
extern const Check encode_checks[]; /* kern_encode.c */
extern const size_t n_encode_checks;
extern const Check trellis_checks[]; /* kern_trellis.c */
extern const size_t n_trellis_checks;

uint32_t rnd(Test *t);
int rnd_int(Test *t, int lo, int hi); /* lo..hi, both included */
float rnd_f32(Test *t);               /* -1..1 */
float rnd_wild_f32(Test *t, int wild);
uint16_t rnd_wild_f16(Test *t, int wild);

/* A buffer that ends (at times: begins) at an unreadable page; at most 16 a round. */
void *buffer(Test *t, size_t n_bytes);
void *random_buffer(Test *t, size_t n_bytes);

void differ(Test *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void same_f32(Test *t, const char *what, const float *want, const float *got, size_t n);
void same_bytes(Test *t, const char *what, const void *want, const void *got, size_t n);

double median(double *v, int n); /* sorts v */

/* ns = median time of the statement, over n timings of at least 0.2 ms. */
#define TIME(ns, n, ...)                                                                           \
    do {                                                                                           \
        double times_[31];                                                                         \
        int reps_ = 1;                                                                             \
        uint64_t start_ = clock_ns();                                                              \
        __VA_ARGS__;                                                                               \
        uint64_t once_ = clock_ns() - start_;                                                      \
        if (once_ < 200000) reps_ = (int)(200000 / (once_ + 1)) + 1;                               \
        for (int i_ = 0; i_ < (n); i_++) {                                                         \
            start_ = clock_ns();                                                                   \
            for (int j_ = 0; j_ < reps_; j_++) __VA_ARGS__;                                        \
            times_[i_] = (double)(clock_ns() - start_) / reps_;                                    \
        }                                                                                          \
        ns = median(times_, n);                                                                    \
    } while (0)

/* Times the statement, which uses `k`, with both tables. bytes and macs: of one execution. */
#define BENCH(t, what, bytes, macs, ...)                                                           \
    do {                                                                                           \
        double ref_, new_;                                                                         \
        const Kern *k = (t)->ref;                                                                  \
        TIME(ref_, 3, __VA_ARGS__);                                                                \
        k = (t)->new;                                                                              \
        TIME(new_, 31, __VA_ARGS__);                                                               \
        printf("     %-8s %12.1f ns %8.2f GB/s %8.2f GMAC/s %7.2fx\n", what, new_,                 \
               (double)(bytes) / new_, (double)(macs) / new_, ref_ / new_);                        \
    } while (0)
#endif
