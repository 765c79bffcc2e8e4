/* remote.c - sessions whose passes a backend does, and what takes over where it cannot go on: the
 * device asked for anew, the same device without its special features, at last the CPU. The tokens
 * are here, so nothing of a text is lost: the rows of the cache are computed again. */
#include <math.h>
#include <string.h>

#include "session.h"

enum { MAX_LOSSES = 3 }; /* of the device, before the CPU takes over */
enum { MIN_BATCH = 4 };  /* tokens: fewer take less time one by one */

/* Whether somebody else, as a browser's script, sees to a backend that fails. */
static bool is_hosted(const DibitBackend *b) {
    return !b->renew;
}

/* From now on the engine's sessions run on the CPU. The backend stays for those that must still be
 * closed there. */
static void leave(DibitEngine *e, const DibitError *why) {
    engine_log(e, DIBIT_LOG_WARN, "%s; going on on the CPU", why->text);
    e->left = e->backend;
    e->backend = NULL;
}

/* After a call failed with DIBIT_E_DEVICE: the backend works again, or there is none any more. */
static void renew(DibitEngine *e, const DibitError *why) {
    DibitBackend *b = e->backend;
    DibitError err = *why;
    int r = 0;
    while (b && b->is_lost(b) && (r == 0 || r == DIBIT_E_DEVICE) && ++e->n_losses <= MAX_LOSSES) {
        engine_log(e, DIBIT_LOG_WARN, "%s; the device is asked for anew", err.text);
        r = b->renew(b, false, &err);
    }
    if (b && b->is_lost(b)) leave(e, &err);
}

/* After kernels failed. What they cannot do with all that the device offers, they may with what
 * every device has. */
static void renew_plain(DibitEngine *e, const DibitError *why) {
    DibitError err = *why;
    int r = e->backend->renew(e->backend, true, &err);
    if (r == 0)
        engine_log(e, DIBIT_LOG_WARN, "%s; going on without the GPU's special features", why->text);
    else
        leave(e, &err);
}

int remote_load(DibitEngine *e, DibitError *err) {
    DibitError why = { 0 };
    int r = e->backend->load(e->backend, &e->model, &why);
    if (r == DIBIT_E_DEVICE && !is_hosted(e->backend)) {
        renew(e, &why);
    } else if (r == DIBIT_E_MEMORY && !is_hosted(e->backend)) {
        leave(e, &why);
    } else if (r != 0) {
        if (err) *err = why;
        return r;
    }
    return 0;
}

void remote_close(DibitSession *s) {
    if (s->remote) s->home->close(&s->remote);
    s->home = NULL;
}

/* A cache, empty, and activations of its own in place of what a session of a backend needs. */
static int to_cpu(DibitSession *s, DibitError *err) {
    DibitEngine *e = s->engine;
    CacheShape shape = s->cache.shape;
    Cache cache;
    Scratch scratch;
    shape.elsewhere = false;
    shape.n_batch = MIN(256, s->n_ctx);
    size_t need;
    if (!cache_bytes(&shape, &need)) need = SIZE_MAX;
    int r = session_fits(s, need, err);
    if (r == 0) r = cache_create(&cache, &shape, &e->memory, err);
    if (r != 0) return r;
    r = scratch_create(&scratch, &e->model, &e->kern, e->pool, shape.n_batch, s->n_ctx, &e->memory,
                       err);
    if (r != 0) {
        cache_free(&cache);
        return r;
    }
    memcpy(scratch.logits, s->scratch.logits, (size_t)e->model.hp.n_vocab * sizeof(float));
    scratch.ops.cancel = &s->cancel;
    scratch.ops.timed = s->scratch.ops.timed;
    remote_close(s);
    cache_free(&s->cache);
    scratch_free(&s->scratch);
    s->cache = cache;
    s->scratch = scratch;
    s->n_batch = shape.n_batch;
    return 0;
}

int remote_open(DibitSession *s, DibitError *err) {
    DibitEngine *e = s->engine;
    while (e->backend) {
        DibitBackend *b = e->backend;
        DibitError why = { 0 };
        int held = b->can_hold(b, &s->cache, &why), r = held;
        if (r == 0) r = b->open(&s->remote, b, &s->cache, s->scratch.rope, &why);
        if (r == 0) {
            s->home = b;
            return 0;
        }
        if (is_hosted(b) || (held != 0 && !b->optional)) {
            if (err) *err = why;
            return r;
        }
        if (r == DIBIT_E_DEVICE) {
            renew(e, &why);
        } else if (r == DIBIT_E_UNSUPPORTED && held == 0) {
            renew_plain(e, &why);
        } else {
            engine_log(e, DIBIT_LOG_WARN, "%s; this session runs on the CPU", why.text);
            break;
        }
    }
    return to_cpu(s, err);
}

/* ---- passes ---- */

static bool may_move(const DibitSession *s, int r) {
    return s->remote && !is_hosted(s->home) && (r == DIBIT_E_DEVICE || r == DIBIT_E_MEMORY);
}

int remote_batch(const DibitSession *s, int n) {
    int most = s->home->n_batch, k = MIN(n - 1, most - s->cache.n_past % most);
    return k < MIN_BATCH ? 1 : k;
}

/* Rows of the first n tokens again. */
static int recompute(DibitSession *s, int n, DibitError *err) {
    int r = 0;
    while (r == 0 && s->cache.n_past < n) {
        const int32_t *ids = s->tokens + s->cache.n_past;
        int k = n - s->cache.n_past;
        k = s->remote ? remote_batch(s, k) : MIN(s->n_batch, k);
        if (atomic_load(&s->cancel)) return fail(err, DIBIT_E_CANCELLED, "cancelled");
        if (!s->remote) {
            r = model_forward(&s->engine->model, &s->scratch, &s->cache, ids, k, NULL, false, err);
            continue;
        }
        r = s->home->pass(s->remote, ids, k, PASS_CACHE, NULL, err);
        if (r == 0) cache_advance(&s->cache, k);
    }
    return r;
}

/* After a pass failed as r and why say: the session is where it was, on whatever works. */
static int move(DibitSession *s, int r, DibitError *why) {
    DibitEngine *e = s->engine;
    int n = s->cache.n_past;
    while (may_move(s, r)) {
        cache_truncate(&s->cache, 0);
        if (r == DIBIT_E_MEMORY) {
            engine_log(e, DIBIT_LOG_WARN, "%s; this session runs on the CPU", why->text);
            r = to_cpu(s, why);
        } else {
            remote_close(s);
            renew(e, why);
            r = remote_open(s, why);
        }
        if (r == 0) r = recompute(s, n, why);
    }
    return r;
}

/* Whether what came back is of finite logits. */
static bool is_finite(const Model *m, int what, const void *out) {
    if (what == PASS_GREEDY) return *(const int32_t *)out >= 0;
    if (what == PASS_TOP) return isfinite(((const Candidate *)out)->logit);
    return what == PASS_CACHE || all_finite(out, (size_t)m->hp.n_vocab);
}

int remote_pass(DibitSession *s, const int32_t *ids, int n, int what, void *out, DibitError *err) {
    const Model *m = &s->engine->model;
    if (atomic_load(&s->cancel)) return fail(err, DIBIT_E_CANCELLED, "cancelled");
    int r = cache_reserve(&s->cache, n, err);
    if (r != 0) return r;
    bool own = what == PASS_LOGITS && !out; /* which a move replaces */
    DibitError why = { 0 };
    r = s->home->pass(s->remote, ids, n, what, own ? s->scratch.logits : out, &why);
    while (may_move(s, r)) {
        if ((r = move(s, r, &why)) != 0) break;
        float *logits = what == PASS_LOGITS && out ? out : s->scratch.logits;
        if (s->remote) {
            r = s->home->pass(s->remote, ids, n, what, own ? logits : out, &why);
            continue;
        }
        r = model_forward(m, &s->scratch, &s->cache, ids, n, what == PASS_CACHE ? NULL : logits,
                          false, &why);
        s->has_logits = r == 0 && what != PASS_CACHE && logits == s->scratch.logits;
    }
    if (r != 0 && err) *err = why;
    if (r != 0 || !s->remote) return r; /* the CPU's pass has seen to the rest */
    if (!is_finite(m, what, own ? s->scratch.logits : out)) return model_not_finite(m, err);
    cache_advance(&s->cache, n);
    return 0;
}
