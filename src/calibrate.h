/* calibrate.h - what a text's activations look like, kept in a GGUF file of its own for
 * quantize_file(): for every distinct input x of the matrices the sum of x x^T, or its diagonal. */
#ifndef CALIBRATE_H
#define CALIBRATE_H
#include "base.h"

typedef struct CalibrateOptions {
    uint64_t max_tokens; /* windows spread over the text; 0: all of it */
    int window;          /* 0: 2048, or what the model takes at most */
    int bos;             /* id that begins each window, or -1 */
    uint64_t text_hash;  /* says in the file which text it was */
    int max_width;       /* wider inputs get the diagonal alone; 0: 4096 */
    int n_threads;       /* 0: all */
    bool no_mmap;
    /* What the user should know, said before the long work; may be NULL. */
    void (*note)(void *user, const char *text);
    /* After each window; non-zero stops with DIBIT_E_CANCELLED, and the work so far is kept. */
    int (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} CalibrateOptions;

typedef struct CalibrateResult {
    uint64_t n_tokens, file_bytes;
    int n_inputs, n_full; /* distinct inputs; of which with the whole matrix */
} CalibrateResult;

/* Writes out_path atomically. Stopped or failed work lies in out_path.part; the same call goes on
 * from there, to the same bytes. The bytes do not depend on the number of threads. */
int calibrate_weights(const char *model_path, const int32_t *ids, size_t n,
                      const CalibrateOptions *opt, const char *out_path, CalibrateResult *result,
                      DibitError *err);
#endif
