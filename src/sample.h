/* sample.h - from logits to a token: penalty, temperature, top-k, top-p, min-p; the same on every
 * machine. */
#ifndef SAMPLE_H
#define SAMPLE_H
#include "base.h"

typedef struct Candidate {
    float logit;
    int32_t id;
} Candidate;

typedef struct Sampler {
    DibitSampling cfg;
    uint64_t state;  /* random state */
    Candidate *cand; /* (n_vocab) scratch */
    int n_vocab;
    const DibitAllocator *memory;
} Sampler;

int sampler_create(Sampler *s, int n_vocab, const DibitSampling *cfg, const DibitAllocator *memory,
                   DibitError *err);
int sampler_set(Sampler *s, const DibitSampling *cfg, DibitError *err); /* checks ranges */
void sampler_free(Sampler *s);
/* Whether the next token is the one with the largest logit, whatever came before. */
bool sampler_is_greedy(const Sampler *s);
/* How many of the largest logits the next token is chosen from, whatever came before; 0: it may
 * take all of them. */
int sampler_top(const Sampler *s);
/* The same token as sampler_next() would choose, from the n largest logits, sampler_top() or more,
 * by logit and then by id. */
int32_t sampler_next_of(Sampler *s, const Candidate *largest, int n);
/* One token given its logits and the tokens before it. */
int32_t sampler_next(Sampler *s, const float *logits, const int32_t *history, size_t n_history);
#endif
