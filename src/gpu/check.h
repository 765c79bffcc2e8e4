/* check.h - whether a GPU computes what the CPU does, and how fast each is: two engines of one
 * model, of which one has a backend. */
#ifndef CHECK_H
#define CHECK_H
#include "base.h"

enum { GPU_CHECKED = 32 }; /* positions */
typedef struct GpuCheck {
    int n, n_other; /* positions compared, and those whose likeliest token is another one */
    double kld;     /* their mean divergence, nats */
    double margin;  /* the largest of the CPU's two best logits' distances where it is another */
} GpuCheck;

/* Forced decoding: both get the same tokens, and their logits are compared at GPU_CHECKED
 * positions, or at as many as take limit_ms. DIBIT_E_NUMERIC, with *out filled, where they differ
 * by more than the order of sums explains: a mean above 1e-3, more than one other token, or one at
 * a margin of 1e-2. */
int gpu_check(DibitEngine *gpu, DibitEngine *cpu, double limit_ms, GpuCheck *out, DibitError *err);

/* Milliseconds of a token, of those that less than half a second is enough for. */
int gpu_pace(DibitEngine *e, double *ms, DibitError *err);
#endif
