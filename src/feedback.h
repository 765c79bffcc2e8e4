/* feedback.h - coding a matrix so that its outputs change least on a calibration text: what one
 * column loses is taken into account in the columns after it (GPTQ, LDLQ). */
#ifndef FEEDBACK_H
#define FEEDBACK_H
#include "base.h"
#include "codec.h"

/* Correlations of one input, factored in the order that a type is coded in. Matrices with the same
 * input share it. */
typedef struct Feedback {
    const TypeInfo *type;
    size_t n;
    uint32_t *order; /* (n) column that is coded i-th */
    float *u;        /* (n, n) upper triangular: E[x x^T] + damping = u u^T */
} Feedback;

/* Whether a type can be coded with feedback. */
bool feedback_can(const TypeInfo *type);
/* triangle: rows of the lower triangle of the sum of x x^T over any number of tokens; finite. */
int feedback_create(Feedback *f, const TypeInfo *type, const float *triangle, size_t n, Pool *pool,
                    DibitError *err);
void feedback_free(Feedback *f);

/* Encodes w (rows, f->n), finite, into the whole tensor. loss: squared error of the outputs over
 * their squares. The bytes do not depend on the number of threads. */
int feedback_encode(const Feedback *f, uint8_t *tensor, const float *w, size_t rows, Pool *pool,
                    double *loss, DibitError *err);
#endif
