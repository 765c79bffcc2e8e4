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
    Arena arena;
};

struct DibitSession {
    DibitEngine *engine;
    Cache cache;
    Scratch scratch;
    void *remote; /* of the engine's backend, or NULL */
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

void engine_log(const DibitEngine *e, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#endif
