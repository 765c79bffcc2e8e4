/* calibrate_sensitivity.h - how much the model's output suffers from an error in each matrix's
 * outputs. */
#ifndef CALIBRATE_SENSITIVITY_H
#define CALIBRATE_SENSITIVITY_H
#include "model.h"

enum {
    SENSITIVITY_MATRICES = 7
}; /* of a layer: attn_q, attn_k, attn_v, attn_output, ffn_gate,
      ffn_up, ffn_down */

typedef struct Sensitivity {
    Model *m;
    Scratch *s;
    Cache *c; /* at least n positions; emptied */
    Pool *pool;
    const int32_t *ids;
    int n, batch; /* tokens of the window, tokens of a pass */
    float *base,
        *logits; /* (n, n_vocab) log-probabilities of the model as it is; (batch, n_vocab) */
    float *noisy, *product; /* (rows, cols) of the largest matrix */
} Sensitivity;

/* Runs the model as it is over n ids (n at most the scratch's and the cache's window). */
int sensitivity_create(Sensitivity *t, DibitError *err);
void sensitivity_free(Sensitivity *t);

/* KLD per relative error of the outputs, of matrix i of a layer: its weights get noise of a
 * hundredth of each row's energy, the same at every call; *out = mean KLD / (tr(N H N^T) /
 * tr(W H W^T)), where H (cols, cols) has the sums of x x^T of its inputs (its diagonal (cols) where
 * `full` is not set). KLD grows with the square of an error while the error is small, so the sum of
 * *out times the relative output error over all matrices predicts a quantized model's KLD. */
int sensitivity_measure(Sensitivity *t, int layer, int i, const float *h, bool full, float *out,
                        DibitError *err);
#endif
