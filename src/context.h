/* context.h - which context fits: positions that a KV cache of each type holds in given bytes,
 * found by search over cache_bytes(), so that a plan is what the cache will allocate; and the
 * proof, a cache filled to the promised length. */
#ifndef CONTEXT_H
#define CONTEXT_H
#include "base.h"

enum { CONTEXT_LIMIT = 1 << 30 }; /* positions that a session can have */

typedef struct ContextPart { /* layers whose caches are alike */
    int n_layers, n_kv_heads, head_dim;
    int fixed;   /* positions they hold whatever the context, 0: those of the context */
    int window;  /* the most positions they need, 0: no limit */
    bool causal; /* written one after another: k2 and k3 keep sinks and a window in q8 */
} ContextPart;

enum { CONTEXT_MAX_PARTS = 2 };
typedef struct ContextModel {
    const char *name, *source; /* source: where the facts are from */
    int n_ctx_train;
    bool learned; /* positions are a learned table: none beyond n_ctx_train */
    bool encoder; /* nothing is kept between passes */
    int n_parts;
    ContextPart parts[CONTEXT_MAX_PARTS];
    int n_embd, n_ff, n_heads, n_vocab; /* for the scratch */
    uint64_t n_params;
    size_t weights; /* bytes */
} ContextModel;

/* A model of shape.h with matrices in `type`, embedding and output in `head`. */
int context_named(ContextModel *m, const char *name, const char *type, const char *head,
                  DibitError *err);
/* An opened one. Its layers hold every position, as Cache does, also where a window slides. */
void context_opened(ContextModel *m, const DibitModelInfo *info);

typedef struct ContextOptions {
    size_t budget; /* bytes of weights, scratch and KV together; 0: KV alone, what f16 takes for */
    int base;      /* so many positions */
    int sinks, window, n_threads;
} ContextOptions;

enum { CONTEXT_MAX_LAYERS = 1024 };
typedef struct ContextTypes { /* zeros: f16 */
    int k, v;
    bool mixed;                            /* layers differ: */
    uint8_t layers[CONTEXT_MAX_LAYERS][2]; /* their types */
} ContextTypes;

/* From n characters, "k3" or "k3/k2", and text for single layers of m as DibitSessionOptions'
 * cache_layers, or NULL. */
int context_types(ContextTypes *t, const ContextModel *m, const char *text, size_t n,
                  const char *layers, DibitError *err);

/* Bytes of the cache, and of all else that a session of n_ctx positions allocates but a few
 * hundred. False when they wrap or the shape is not supported. */
bool context_kv_bytes(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                      int n_ctx, size_t *n_bytes);
bool context_scratch_bytes(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                           int n_ctx, size_t *n_bytes);

typedef struct ContextRow {
    int base;           /* positions that f16 has in the budget */
    int extended;       /* positions that these types have */
    bool unbounded;     /* sliding windows: as many as the model was trained for, at least */
    double ratio;       /* extended / base; 0 where base is */
    size_t kv, scratch; /* bytes at `extended` */
    size_t kv_f16;      /* bytes that f16 would take there; SIZE_MAX: too many */
    size_t per_token, f16_per_token; /* bytes of one more position, before any window is full */
    size_t sinks, window;            /* bytes of the rows in q8 beside records; part of kv */
    size_t fixed;                    /* bytes of the parts that do not grow; part of kv */
} ContextRow;

/* One row of the plan. A budget that is too small for a single position gives 0 positions. */
int context_plan(const ContextModel *m, const ContextOptions *o, const ContextTypes *t,
                 ContextRow *row, DibitError *err);

typedef struct ContextFill {
    int n_ctx;
    size_t promised;  /* context_kv_bytes() */
    size_t allocated; /* cache_allocated() */
    size_t system;    /* anonymous memory of the process after filling minus before creating the
                         cache; 0: the system does not say */
    uint64_t n_zero, n_saturated; /* records outside the scale's range */
    uint64_t ns;                  /* to create and fill */
} ContextFill;

/* Makes a cache of n_ctx positions, fills all of them with pseudo-random vectors and sees that not
 * one more fits. For a model of one part that does not slide. progress may be NULL; non-zero stops
 * it. */
int context_fill(const ContextModel *m, const ContextOptions *o, const ContextTypes *t, int n_ctx,
                 int (*progress)(void *user, int done, int total), void *user, ContextFill *out,
                 DibitError *err);
#endif
