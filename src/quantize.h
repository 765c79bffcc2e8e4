/* quantize.h - a model file in, a model file in other tensor types out. */
#ifndef QUANTIZE_H
#define QUANTIZE_H
#include "base.h"

struct QuantizeTensor;

typedef struct QuantizeRule {
    const char *regex; /* POSIX extended, searched in the tensor's name; matrices only */
    const char *type;
} QuantizeRule;

typedef struct QuantizeOptions {
    const char *type;           /* of the block matrices: "t2", "s2", "q4", "q8", "f16", ... */
    const char *embedding_type; /* of token_embd and output; NULL: "q8", or the type itself when it
                                   is wider */
    const QuantizeRule *rules;  /* the last match wins */
    int n_rules;                /* a rule that matches nothing is an error */
    int effort;                 /* of the search for t2 and t3: 1 fast, 2 exact; 0: 2 */
    uint32_t seed;              /* of the rotation of t2 and t3 */
    const char *kv_calibration; /* file of calibrate_kv() to put in; NULL: none */
    int n_threads;              /* 0: all */
    const char *calibration;    /* file of calibrate_weights() or an imatrix; NULL: none */
    /* Tokens of a text: the block matrices are coded layer by layer for what the quantized network
     * makes of it (recover.h). n_recover 0: not. */
    const int32_t *recover;
    size_t n_recover;
    uint64_t recover_hash;   /* of the text, for the metadata */
    uint64_t recover_tokens; /* use at most so many; 0: all */
    int recover_window, bos; /* 0: 2048; bos: -1: none */
    bool dry_run;            /* plan and count only */
    bool no_mmap;
    /* Called for each tensor when it is done (and in a dry run); return non-zero to stop
     * (DIBIT_E_CANCELLED). */
    int (*progress)(void *user, const struct QuantizeTensor *t);
    void *user;
} QuantizeOptions;

typedef struct QuantizeTensor {
    const char *name, *from, *to;
    int index, n_tensors;
    int n_dims;
    uint64_t shape[4];           /* fastest first */
    uint64_t n_weights, n_bytes; /* after */
    double rel_mse;              /* squared error / squared weight; 0 when copied */
    double loss;      /* the same of the outputs on the calibration text; 0 when not known */
    const char *note; /* why it is not as asked, or what to mind; NULL mostly */
    uint64_t weights_done, weights_total; /* for the time left */
} QuantizeTensor;

typedef struct QuantizeResult {
    uint64_t n_weights, tensor_bytes, file_bytes;
    double bits,
        bits_blocks;      /* all-in bits per weight: all tensors; without embedding and output */
    double predicted_kld; /* from the errors of the matrices' outputs and the calibration's
                             sensitivities; negative: not known */
} QuantizeResult;

/* Writes out_path atomically (unused in a dry run); nothing is left when it fails. When it is
 * stopped, slow tensors that are done lie in out_path.part, and the same call goes on from there.
 * Vectors and norms become f32, matrices what the options say. NaN or infinity in a weight is an
 * error that names the tensor and the place. The same input and options give the same bytes at any
 * thread count. */
int quantize_file(const char *in_path, const char *out_path, const QuantizeOptions *opt,
                  QuantizeResult *result, DibitError *err);

/* What a quantized model lost against the one that it was made from. */
typedef struct QuantizeMeasure {
    double kld, kld_se, ppl_ratio, top1_agreement;
    uint64_t text_hash, n_tokens, n_windows;
} QuantizeMeasure;
/* Writes it into the metadata of a file of quantize_file(), for quantize_history(). */
int quantize_record(const char *path, const QuantizeMeasure *measure, DibitError *err);

/* How a file was made by quantize_file(), as lines of text, "" when it was not; cut to fit. */
int quantize_history(const char *path, char *buf, size_t cap, DibitError *err);
#endif
