/* plan.h - what a device can do, what a model takes, and what follows: the policy of docs/PLAN.md,
 * the same for browsers and for the native program. */
#ifndef PLAN_H
#define PLAN_H
#include "base.h"
#include "codec.h"
#include "context.h"

/* ---- a model, before it is there: plan_model.c ---- */

typedef enum PlanGroup { /* tensors that a policy treats alike */
                         GROUP_EMBEDDING,
                         GROUP_ATTENTION,
                         GROUP_FEED_FORWARD,
                         GROUP_AUDIO, /* convolutions of sound */
                         GROUP_NORMS, /* and all other vectors */
                         GROUP_OUTPUT,
                         N_GROUPS
} PlanGroup;
extern const char *const plan_group_names[N_GROUPS]; /* "embedding", "attention", ... */

typedef struct PlanModel {
    ContextModel context; /* weights: bytes of the tensors in the file */
    char name[64], architecture[32];
    uint64_t file_bytes; /* 0: a model by name */
    size_t header_bytes; /* before the first tensor's data */
    size_t repacked;     /* bytes of the copies that opening makes, unless told not to */
    bool kv_calibrated;  /* its k2, k3 and q4 caches have calibrated bases */
    bool tied;           /* the output matrix is the embedding */
    int type[N_GROUPS];  /* the type that most of a group's bytes have, -1: it has no tensors */
    size_t bytes[N_GROUPS];
} PlanModel;

typedef struct PlanPart { /* the first bytes of a file, or of one shard of several */
    const void *data;     /* at a multiple of 8 bytes */
    size_t present, need; /* need: set where plan_peek() returns 1 and this part has too little */
    uint64_t total;
} PlanPart;

/* From the first bytes of all n parts of a GGUF. Returns 1 where they are not enough: the part
 * whose `need` is not 0 should have so many from its start. The tensors' data is never looked at.
 */
int plan_peek(PlanModel *m, PlanPart *parts, size_t n, DibitError *err);

/* ---- what is asked for ---- */

typedef struct PlanRequest { /* fields.h: text as lines "key=value"; -1 and "" are unknown */
    int64_t budget_mb;       /* memory for everything together */
    int64_t n_ctx, n_threads;
    char cache_type_k[8], cache_type_v[8];
    int8_t repack;
} PlanRequest;
int plan_request_read(PlanRequest *q, const char *text, size_t n, DibitError *err);

/* What a session takes: bytes of the cache and of the scratch, for positions, types and threads.
 * Unknown types are f16, unknown positions the model's own number. */
typedef struct PlanNeed {
    int n_ctx, n_threads;
    ContextTypes kv_types;
    size_t weights, kv, scratch, total; /* weights: repacked copies included where they are made */
} PlanNeed;
int plan_need(PlanNeed *out, const PlanModel *m, const PlanRequest *q, DibitError *err);
#endif
