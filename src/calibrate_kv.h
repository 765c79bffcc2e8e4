/* calibrate_kv.h - bases for the k2 and k3 records of a model's KV cache, from what a text's keys,
 * queries and values look like; types for each layer, from what they cost. */
#ifndef CALIBRATE_KV_H
#define CALIBRATE_KV_H
#include "base.h"

typedef struct KvCalibrateOptions {
    uint64_t max_tokens; /* windows spread over the text; 0: 16384 */
    int window;          /* 0: 2048, or what the model takes at most */
    int bos;             /* id that begins each window, or -1 */
    uint64_t text_hash;  /* says in the file which text it was */
    double budget;       /* of calibrate_kv_types(): bits per value, 2 to 3, records alone */
    int n_threads;       /* 0: all */
    bool no_mmap;
    /* After each window of each step; non-zero stops with DIBIT_E_CANCELLED. */
    int (*progress)(void *user, const char *step, uint64_t done, uint64_t total);
    void *user;
} KvCalibrateOptions;

/* One layer's side as measured: KL divergence of the logits when it alone is in k2 or k3. */
typedef struct KvCost {
    double kld[2]; /* k2, k3 */
} KvCost;

typedef struct KvCalibrateResult {
    uint64_t n_tokens, file_bytes;
    int n_layers, n_kv_heads;
    double gain_k, gain_v; /* expected noise of keys' scores and of values: geometric mean over the
                              heads of calibrated / Hadamard */
    /* of calibrate_kv_types(); free the pointers with mem_free(NULL, ...) */
    KvCost *costs;                    /* (n_layers, K and V) */
    char *layers;                     /* the choice, as --kv-layers takes it */
    double bits, kld, kld_k2, kld_k3; /* of the choice; KLD with it, with k2 and with k3 alone */
} KvCalibrateResult;

/* Writes out_path atomically: a GGUF of the tensors that docs/FORMAT.md names, for
 * DibitOptions.kv_calibration and quantize_file(). Fills in the first half of *result. */
int calibrate_kv(const char *model_path, const int32_t *ids, size_t n,
                 const KvCalibrateOptions *opt, const char *out_path, KvCalibrateResult *result,
                 DibitError *err);

/* Chooses k2 or k3 for the keys and values of each layer, so that the KL divergence is least with
 * at most opt->budget bits per value: from one window of the text for each of them. The engine is
 * one with the calibration. Fills in the second half of *result, also when it fails. */
int calibrate_kv_types(DibitEngine *engine, const int32_t *ids, size_t n,
                       const KvCalibrateOptions *opt, KvCalibrateResult *result, DibitError *err);
/* Puts the choice into the calibration file at `path`, atomically. */
int calibrate_kv_add_types(const char *path, const KvCalibrateResult *result, DibitError *err);
#endif
