/* sample.c - from logits to a token, in the order penalty, top-k, top-p, min-p, temperature.
 * Every step is defined to the bit: candidates are ordered by logit, then by id; sums are doubles
 * in that order; exp and the random generator are ours. A logit that is NaN is never chosen. */
#include "sample.h"

#include <float.h>
#include <math.h>
#include <string.h>

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* exp(x) for x <= 0, from operations that IEEE 754 rounds the same way everywhere. */
static double exp_neg(double x) {
    if (!(x > -700)) return 0;
    double k = floor(x * 1.4426950408889634 + 0.5);
    double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10, y = 1;
    for (int i = 13; i > 0; i--) y = 1 + y * r / i;
    union {
        uint64_t u;
        double f;
    } scale = { (uint64_t)((int64_t)k + 1023) << 52 };
    return y * scale.f;
}

int sampler_set(Sampler *s, const DibitSampling *cfg, DibitError *err) {
    DibitSampling c = cfg ? *cfg : (DibitSampling){ 0 };
    if (!(c.temperature >= 0 && c.temperature <= 1000))
        return fail(err, DIBIT_E_ARGUMENT, "temperature must be 0 to 1000");
    if (c.top_k < 0) return fail(err, DIBIT_E_ARGUMENT, "top_k must not be negative");
    if (!(c.top_p >= 0 && c.top_p <= 1)) return fail(err, DIBIT_E_ARGUMENT, "top_p must be 0 to 1");
    if (!(c.min_p >= 0 && c.min_p <= 1)) return fail(err, DIBIT_E_ARGUMENT, "min_p must be 0 to 1");
    if (!(c.repeat_penalty >= 0 && c.repeat_penalty <= 1000))
        return fail(err, DIBIT_E_ARGUMENT, "repeat_penalty must be 0 to 1000");
    if (c.repeat_last_n < 0)
        return fail(err, DIBIT_E_ARGUMENT, "repeat_last_n must not be negative");
    if (c.repeat_last_n == 0) c.repeat_last_n = 64;
    s->cfg = c;
    s->state = c.seed;
    return 0;
}

int sampler_create(Sampler *s, int n_vocab, const DibitSampling *cfg, const DibitAllocator *memory,
                   DibitError *err) {
    *s = (Sampler){ .n_vocab = n_vocab, .memory = memory };
    int r = sampler_set(s, cfg, err);
    if (r != 0) return r;
    s->cand = mem_calloc(memory, (size_t)n_vocab, sizeof *s->cand);
    if (!s->cand) return fail(err, DIBIT_E_MEMORY, "no memory for %d candidates", n_vocab);
    return 0;
}

void sampler_free(Sampler *s) {
    mem_free(s->memory, s->cand);
    *s = (Sampler){ 0 };
}

/* Fills the candidates in order of ids; NaN and -infinity become the least float, +infinity the
 * greatest. */
static void fill(Sampler *s, const float *logits, const int32_t *history, size_t n_history) {
    const DibitSampling *c = &s->cfg;
    for (int i = 0; i < s->n_vocab; i++) {
        float l = logits[i] > -FLT_MAX ? MIN(logits[i], FLT_MAX) : -FLT_MAX;
        s->cand[i] = (Candidate){ l, i };
    }
    if (c->repeat_penalty == 0 || c->repeat_penalty == 1) return;
    size_t n = MIN(n_history, (size_t)c->repeat_last_n);
    for (size_t i = n_history - n; i < n_history; i++) {
        int32_t id = history[i]; /* from the logit itself, so that a second time changes nothing */
        if (id < 0 || id >= s->n_vocab || !(fabsf(logits[id]) <= FLT_MAX)) continue;
        float l = logits[id] > 0 ? logits[id] / c->repeat_penalty : logits[id] * c->repeat_penalty;
        s->cand[id].logit = MAX(MIN(l, FLT_MAX), -FLT_MAX);
    }
}

static bool before(const Candidate *a, const Candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void swap(Candidate *a, Candidate *b) {
    Candidate t = *a;
    *a = *b;
    *b = t;
}

/* A heap whose root is the last in order. */
static void sift_down(Candidate *h, size_t n, size_t i) {
    for (;;) {
        size_t worst = i, l = 2 * i + 1;
        if (l < n && before(&h[worst], &h[l])) worst = l;
        if (l + 1 < n && before(&h[worst], &h[l + 1])) worst = l + 1;
        if (worst == i) return;
        swap(&h[i], &h[worst]);
        i = worst;
    }
}

/* Puts the first k candidates in order at the front; the others follow in any order. */
static void order_first(Candidate *c, size_t n, size_t k) {
    for (size_t i = k / 2; i-- > 0;) sift_down(c, k, i);
    for (size_t i = k; i < n; i++) {
        if (!before(&c[i], &c[0])) continue;
        swap(&c[i], &c[0]);
        sift_down(c, k, 0);
    }
    for (size_t i = k; i-- > 1;) {
        swap(&c[0], &c[i]);
        sift_down(c, i, 0);
    }
}

static double weight(const Candidate *c, double max) {
    return c->logit == -FLT_MAX ? 0 : exp_neg((double)c->logit - max);
}

/* Orders as many of n candidates, the first `done` of which are in order, as top-k, top-p and min-p
 * leave, and returns their number. Each of the three keeps a front part of the order, so the
 * shortest decides. */
static size_t keep(Sampler *s, size_t n, size_t done) {
    const DibitSampling *cfg = &s->cfg;
    Candidate *c = s->cand;
    size_t limit = cfg->top_k ? MIN((size_t)cfg->top_k, n) : n;
    bool top_p = cfg->top_p > 0 && cfg->top_p < 1;
    double max = -FLT_MAX, total = 0, sum = 0;
    for (size_t i = 0; i < n; i++) max = MAX(max, (double)c[i].logit);
    if (done >= limit) {
        done = limit;
    } else if (limit < n) {
        order_first(c, n, limit);
        done = limit;
    } else if (!top_p && cfg->min_p == 0) {
        return n; /* everything stays, in order of ids */
    }
    if (top_p) /* over what top-k left */
        for (size_t i = 0; i < limit; i++) total += weight(&c[i], max);
    for (size_t i = 0; i < limit; i++) {
        if (i == done) { /* order some more, ever more of them */
            size_t more = MIN(limit - done, MAX((size_t)256, 7 * done));
            order_first(c + done, limit - done, more);
            done += more;
        }
        double w = weight(&c[i], max);
        if (i > 0 && w < (double)cfg->min_p) return i;
        sum += w;
        if (top_p && sum >= (double)cfg->top_p * total) return i + 1;
    }
    return limit;
}

bool sampler_is_greedy(const Sampler *s) {
    float penalty = s->cfg.repeat_penalty;
    return s->cfg.temperature == 0 && (penalty == 0 || penalty == 1);
}

int sampler_top(const Sampler *s) {
    float penalty = s->cfg.repeat_penalty;
    return s->cfg.temperature > 0 && (penalty == 0 || penalty == 1) ? MIN(s->cfg.top_k, s->n_vocab)
                                                                    : 0;
}

/* One of the first n candidates, by their weights. */
static int32_t draw(Sampler *s, size_t n) {
    const Candidate *c = s->cand;
    double max = -FLT_MAX, total = 0, sum = 0, t = (double)s->cfg.temperature;
    for (size_t i = 0; i < n; i++) max = MAX(max, (double)c[i].logit);
    for (size_t i = 0; i < n; i++)
        if (c[i].logit != -FLT_MAX) total += exp_neg(((double)c[i].logit - max) / t);
    double u = (double)(next_random(&s->state) >> 11) * 0x1p-53 * total;
    int32_t last = c[0].id;
    for (size_t i = 0; i < n; i++) {
        if (c[i].logit == -FLT_MAX) continue;
        sum += exp_neg(((double)c[i].logit - max) / t);
        last = c[i].id;
        if (u < sum) break;
    }
    return last;
}

int32_t sampler_next_of(Sampler *s, const Candidate *largest, int n) {
    memcpy(s->cand, largest, (size_t)n * sizeof *largest);
    return draw(s, keep(s, (size_t)n, (size_t)n));
}

int32_t sampler_next(Sampler *s, const float *logits, const int32_t *history, size_t n_history) {
    Candidate *c = s->cand;
    size_t n = (size_t)s->n_vocab, best = 0;
    fill(s, logits, history, n_history);
    if (s->cfg.temperature > 0) return draw(s, keep(s, n, 0));
    for (size_t i = 1; i < n; i++)
        if (c[i].logit > c[best].logit) best = i;
    return c[best].id;
}
