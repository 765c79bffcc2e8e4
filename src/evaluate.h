/* evaluate.h - perplexity, KL divergence and agreement over windows of a text; choice accuracy.
 * Definitions: an input window is BOS and tokens i..i+W-2, its targets tokens i..i+W-1; the next
 * starts at i+W; an incomplete last window is dropped; the first `skip` positions of each window
 * are left out of every mean. */
#ifndef EVALUATE_H
#define EVALUATE_H
#include "base.h"

typedef struct EvalOptions {
    int window;      /* W; 0: 2048 */
    int max_windows; /* 0: all */
    int skip;
    const char **cache_k, **cache_v; /* n_settings KV settings that share the base's pass */
    int n_settings;                  /* 0: one setting, f16/f16 */
    int cache_sinks, cache_window;   /* of every setting, as in DibitSessionOptions, */
    const char **cache_layers;       /* of each setting: types of single layers; NULL: none */
    int (*progress)(void *user, int window,
                    int n_windows); /* non-zero stops with DIBIT_E_CANCELLED */
    void *user;
} EvalOptions;

typedef struct EvalValue {
    double mean, se;
} EvalValue; /* and its standard error */

typedef struct EvalResult {
    const char *cache_k, *cache_v;
    uint64_t n_tokens, n_windows;   /* counted positions */
    uint64_t kv_zero, kv_saturated; /* of the model's cache, as in DibitMemory */
    EvalValue ppl, top1_accuracy;
    bool has_base; /* the rest is set only then */
    EvalValue ppl_base, top1_accuracy_base, ppl_ratio, kld_mean, top1_agreement,
        degradation; /* degradation in % */
    double kld_median, kld_p99, kld_p999;
} EvalResult;

/* Evaluates `model` (and against `base`, which may be NULL) on n tokens; results: one per setting.
 */
int evaluate_text(DibitEngine *model, DibitEngine *base, const int32_t *ids, size_t n,
                  const EvalOptions *opt, EvalResult *results, DibitError *err);

typedef struct ChoiceItem {
    const char *query;
    const char *const *choices;
    int n_choices, gold;
} ChoiceItem;
typedef struct ChoiceResult {
    int n_items;
    EvalValue acc_sum,
        acc_norm; /* by summed log-likelihood; by log-likelihood per byte of the choice */
} ChoiceResult;
/* Of the options: the first KV setting, and progress(user, item, n_items). */
int evaluate_choices(DibitEngine *model, const ChoiceItem *items, int n_items,
                     const EvalOptions *opt, ChoiceResult *out, DibitError *err);
#endif
