/* recover.h - quantizing a model layer by layer while a text runs through two networks, the base
 * and what has been coded so far: each matrix is coded for the inputs that it will really get, and
 * for the outputs that the base has there. */
#ifndef RECOVER_H
#define RECOVER_H
#include "model.h"

typedef struct RecoverOptions {
    const int32_t *ids; /* the text's tokens */
    size_t n_ids;
    int bos;             /* id that begins each window, or -1 */
    int window;          /* 0: 2048, or what the model takes at most */
    uint64_t max_tokens; /* windows spread over the text; 0: all of it */
    /* What a calibration of the base knows of a matrix's input: the triangle of the sum of x x^T
     * and over how many tokens, or NULL. */
    const float *(*prior)(void *user, const char *name, size_t cols, uint64_t *n_tokens);
    /* Takes the n weights of a norm as they were fitted. */
    int (*norm)(void *user, const char *name, const float *weights, size_t n, DibitError *err);
} RecoverOptions;

/* Codes one matrix: `target` (rows, cols) are the weights to come close to, to be changed freely;
 * triangle: rows of the lower triangle of the sum of x x^T of its inputs; `decoded` (rows, cols)
 * gets the weights that the code stands for. `stage` is the same for matrices with the same input.
 */
typedef int RecoverCode(void *user, const char *name, int stage, float *target, size_t rows,
                        size_t cols, const float *triangle, float *decoded, DibitError *err);

/* The bytes that it gives depend on neither the number of threads nor the machine's memory. */
int recover_model(const Model *m, const Kern *kern, Pool *pool, const RecoverOptions *opt,
                  RecoverCode *code, void *user, DibitError *err);
#endif
