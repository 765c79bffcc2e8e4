/* feedback.h - coding a matrix so that its outputs change least on a calibration text: what one
 * column loses is taken into account in the columns after it (GPTQ, LDLQ). */
#ifndef FEEDBACK_H
#define FEEDBACK_H
#include "base.h"
#include "codec.h"
#include "kern/kern.h"

/* Correlations of one input, factored in the order that a type is coded in. Matrices with the same
 * input share it. */
typedef struct Feedback {
    const TypeInfo *type;
    uint32_t seed; /* of the rotation of t2 and t3 */
    size_t n;
    uint32_t *order; /* (n) column that is coded i-th */
    float *u;        /* (n, n) upper triangular: E[x x^T] + damping = u u^T, x rotated for t2, t3 */
} Feedback;

/* Whether a type can be coded with feedback. */
bool feedback_can(const TypeInfo *type);
/* triangle: rows of the lower triangle of the sum of x x^T over any number of tokens; finite. */
int feedback_create(Feedback *f, const TypeInfo *type, uint32_t seed, const float *triangle,
                    size_t n, Pool *pool, DibitError *err);
void feedback_free(Feedback *f);

/* Encodes w (rows, f->n), finite, into the whole tensor; effort is that of t2 and t3,
 * which leave w rotated. loss: squared
 * error of the outputs over their squares. The bytes do not depend on the number of threads. */
int feedback_encode(const Feedback *f, uint8_t *tensor, float *w, size_t rows, int effort,
                    const Kern *kern, Pool *pool, double *loss, DibitError *err);
#endif
