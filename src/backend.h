/* backend.h - another place than the CPU where passes are done, as engine.c and session.c see it.
 * It keeps the weights of one engine and the rows of its sessions' caches; what positions there
 * are, the session's Cache counts. */
#ifndef BACKEND_H
#define BACKEND_H
#include "model.h"
#include "sample.h"

typedef struct DibitBackend DibitBackend;
/* What is wanted of a pass besides its rows. */
enum { PASS_CACHE, PASS_LOGITS, PASS_GREEDY, PASS_TOP };
enum { TOP_CANDIDATES = 64 }; /* of PASS_TOP */
struct DibitBackend {
    const char *name; /* "webgpu" */
    bool optional;    /* sessions that it cannot hold run on the CPU; else they are refused */
    /* Takes a model's weights, once; the model must outlive it. */
    int (*load)(DibitBackend *b, const Model *m, DibitError *err);
    /* 0 where a session with this cache can be opened, or DIBIT_E_UNSUPPORTED with the reason. */
    int (*can_hold)(const DibitBackend *b, const Cache *c, DibitError *err);
    /* A session whose cache counts positions elsewhere; turns: (n_ctx, n_rot) as Scratch.rope. Both
     * must outlive it. */
    int (*open)(void **session, DibitBackend *b, const Cache *c, const float *turns,
                DibitError *err);
    void (*close)(void **session);
    int n_batch; /* most tokens of a pass; none goes across a multiple of this many positions */
    /* Tokens ids[0..n-1] from position c->n_past on, of which only PASS_CACHE takes more than one.
     * PASS_LOGITS: out is logits (n_vocab), there when it returns; PASS_GREEDY: the likeliest
     * token, an int32_t, -1 where a logit is not finite; PASS_TOP: the TOP_CANDIDATES largest
     * logits in the sampler's order, the first of which is NaN where one is not finite (Candidate,
     * ids of -1 where there are fewer tokens). DIBIT_WAIT: under way; the same call again goes on
     * with it, any other one lets it go. */
    int (*pass)(void *session, const int32_t *ids, int n, int what, void *out, DibitError *err);
    /* Random keys and values of positions 0..n-1. */
    int (*fill)(void *session, int n, DibitError *err);
    size_t (*bytes)(const void *session); /* of the rows */
    /* Whether the device can no longer be used: all calls end with DIBIT_E_DEVICE then. */
    bool (*is_lost)(const DibitBackend *b);
    /* Takes the device anew and loads the model again; `plain`: with no more than what every device
     * has, DIBIT_E_UNSUPPORTED where it was so already. The sessions from before only fail, with
     * DIBIT_E_DEVICE, and can be closed. After a failure it is lost. NULL: its host sees to all
     * this, and errors are the host's. */
    int (*renew)(DibitBackend *b, bool plain, DibitError *err);
    void (*free)(DibitBackend *b);
};
#endif
