/* calibration.h - calibration files as quantize_file() reads them: those of calibrate_weights() and
 * importance matrices (imatrix) of llama.cpp in GGUF form. */
#ifndef CALIBRATION_H
#define CALIBRATION_H
#include "gguf.h"

#define CALIBRATION_TYPE        "dibit-calibration"
#define CALIBRATION_SENSITIVITY "sensitivity"
enum { CALIBRATION_VERSION = 1 };

/* The name of an input's tensor: "blk.3.attn_qkv.hessian", or ".diagonal"; layer -1: none. */
void calibration_name(char *buf, size_t cap, int layer, const char *matrices, bool full);
/* The same for the same weights in f32, f16 or bf16. */
uint64_t calibration_model_hash(const Gguf *model);

typedef struct Calibration {
    Gguf *file;
    bool imatrix;
    uint64_t text_hash, n_tokens, hash; /* hash: of all its tensors */
} Calibration;

/* What is known of one matrix's input: the sums over n_tokens of x x^T (rows of the lower triangle)
 * or of x^2. */
typedef struct CalibrationInput {
    const float *triangle, *diagonal; /* one of the two, or neither */
    size_t width;
} CalibrationInput;

/* Opens a file and checks that it is of this model: hash, names and widths. */
int calibration_open(Calibration *c, const char *path, const Gguf *model, DibitError *err);
void calibration_close(Calibration *c);
/* The input of a matrix with `cols` columns; neither pointer is set where the file has none. */
int calibration_find(const Calibration *c, const char *tensor, size_t cols, CalibrationInput *out,
                     DibitError *err);
/* KLD per relative error of a matrix's outputs (calibrate_sensitivity.h); negative: not known. */
float calibration_sensitivity(const Calibration *c, const char *tensor);
#endif
