/* session.h - what engine.c, session.c and saved.c share: the two objects behind dibit.h. */
#ifndef SESSION_H
#define SESSION_H
#include <stdatomic.h>

#include "backend.h"
#include "model.h"
#include "sample.h"
#include "tokenizer.h"

struct DibitEngine {
    DibitAllocator memory;
    DibitLogger logger;
    Kern kern;
    Pool *pool;
    Gguf *file, *kv_file; /* kv_file: a calibration apart, or NULL */
    Model model;
    Tokenizer *tokenizer;     /* NULL: the file has none, and */
    DibitError why_none;      /* this says why */
    const char *name, *style; /* never NULL */
    size_t max_token_bytes;   /* of one token's text */
    const char *isa;
    DibitBackend *backend; /* or NULL: the CPU */
    DibitBackend *left;    /* one that was given up, for its sessions, or NULL */
    int n_losses;          /* of the backend's device */
    Arena arena;
};

struct DibitSession {
    DibitEngine *engine;
    Cache cache;
    Scratch scratch;
    void *remote;       /* of a backend, or NULL: this session is on the CPU */
    DibitBackend *home; /* that backend */
    Sampler sampler;
    int32_t *tokens; /* (n_ctx); the cache holds all of them, or all but the last */
    int n_tokens, n_ctx, n_batch;
    size_t n_forwarded; /* of a dibit_forward() that returned DIBIT_WAIT, how many are in tokens */
    bool has_logits;    /* scratch.logits are those after the last token */
    const char *finish;
    Utf8Stream utf8;
    char *text; /* of one piece */
    size_t text_bytes;
    atomic_int cancel;
    atomic_size_t sync_done, sync_total;
    DibitProfile profile; /* what the operations do not count themselves: tokens, whole passes */
};

/* session.c - whether so many bytes can be had, else DIBIT_E_MEMORY. */
int session_fits(const DibitSession *s, size_t need, DibitError *err);

/* remote.c - what a backend does for an engine and its sessions. Where it fails, passes go on as
 * they can, at last on the CPU, and a warning is logged. */
int remote_load(DibitEngine *e, DibitError *err);
int remote_open(DibitSession *s, DibitError *err);
void remote_close(DibitSession *s); /* one that is not open is fine */
/* n tokens: their rows, and of one token what DibitBackend.pass() gives; out of PASS_LOGITS NULL:
 * in s->scratch. Where the CPU had to take over logits are there instead: see has_logits. */
int remote_pass(DibitSession *s, const int32_t *ids, int n, int what, void *out, DibitError *err);
/* Of n tokens that are to be computed, how many one such pass takes. The last one goes alone: what
 * is wanted besides its rows is wanted of one token. */
int remote_batch(const DibitSession *s, int n);

void engine_log(const DibitEngine *e, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#endif
