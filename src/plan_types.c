/* plan_types.c - the policy for weights: how many bits, which of our types has them, and what a
 * browser changes in a configuration. The rules are rows of one table; docs/PLAN.md has them in
 * words, with the measurements behind those that are our own. */
#include <stdio.h>
#include <string.h>

#include "fields.h"
#include "plan.h"

#define GIB ((uint64_t)1 << 30)

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

/* ---- types and speed ---- */

int plan_type_bits(int type) {
    size_t n;
    const TypeInfo *t = type_info(type);
    if (!t || !type_bytes(t, 1024, 1024, &n)) return 0;
    return (int)(n >> 17); /* all-in, rounded down: 2^20 weights, 8 bits a byte */
}

/* Decode, a model of 1.2 billion weights on CPUs, the products of one of 34 million in WebAssembly:
 * docs/performance.md, docs/PLAN.md. */
typedef struct Speed {
    const char *isa;
    double s2, s3, t2, t3; /* q4 is 1 */
} Speed;
static const Speed measured[] = {
    { "avx512bitalg", 1.59, 1.09, 1.72, 1.24 }, { "avx512vnni", 1.59, 1.09, 1.08, 0.87 },
    { "avx2", 1.32, 1.05, 0.76, 0.54 },         { "relaxed", 0.96, 0.63, 0.45, 0.24 },
    { "simd128", 0.98, 0.59, 0.61, 0.33 },
};

static const char *isa_of(const Plan *p, const DeviceInfo *d) {
    if (p->backend == BACKEND_CPU) return d->isa;
    if (p->backend != BACKEND_WASM) return "";
    return p->feature[FEATURE_WASM_RELAXED] ? "relaxed" : "simd128";
}

#define PROBED "probed here"

double plan_speed(const Plan *p, const DeviceInfo *d, int type, const char **source) {
    const double probe[] = { d->speed_s2, d->speed_s3, d->speed_t2, d->speed_t3 };
    int i = type == T_S2 ? 0 : type == T_S3 ? 1 : type == T_T2 ? 2 : type == T_T3 ? 3 : -1;
    *source = PROBED;
    if (type == T_Q4_0) return 1;
    if (i < 0) return 0;
    if (d->speed_q4 > 0 && probe[i] > 0) return probe[i] / d->speed_q4;
    for (size_t k = 0; k < ARRAY_LEN(measured); k++) {
        const Speed *s = &measured[k];
        if (!is(s->isa, isa_of(p, d))) continue;
        *source = "measured for its instruction set";
        return i == 0 ? s->s2 : i == 1 ? s->s3 : i == 2 ? s->t2 : s->t3;
    }
    *source = "not measured";
    return 0;
}

/* Two runs differ by about a tenth: less than that is not slower. */
#define NOT_SLOWER 0.9

/* Of the two types with so many bits the one with the smaller divergence, t2 or t3, unless it is
 * slower here. */
int plan_type_of_bits(const Plan *p, const DeviceInfo *d, int bits) {
    const char *source;
    int s = bits <= 2 ? T_S2 : T_S3, t = bits <= 2 ? T_T2 : T_T3;
    if (bits > 16) return T_F32;
    if (bits > 8) return T_F16;
    if (bits > 4) return T_Q8_0;
    if (bits == 4) return T_Q4_0;
    double vs = plan_speed(p, d, s, &source), vt = plan_speed(p, d, t, &source);
    return vt > 0 && vt >= NOT_SLOWER * vs ? t : s;
}

/* ---- how many bits ---- */

/* Whether the model with 4 bits takes at most three quarters of the budget; without a model whether
 * there are 4 GiB. */
static bool memory_allows_4(const Plan *p, const PlanModel *m) {
    if (!m) return p->memory >= 4 * GIB;
    double weights = (double)m->context.n_params * 4.5 / 8;
    return weights + (double)p->staging <= 0.75 * (double)p->budget;
}

/* 3 bits, or 4 where memory allows and they are not slower. */
static int three_or_four(const Plan *p, const DeviceInfo *d, const PlanModel *m, const char **why) {
    const char *source;
    double v = plan_speed(p, d, plan_type_of_bits(p, d, 3), &source); /* of 3 bits, beside 4 */
    *why = p->backend == BACKEND_WASM ? "WebAssembly with SIMD, no WebGPU" : "2 GiB or more";
    if (!memory_allows_4(p, m)) return 3;
    *why = "memory would allow 4, but whether they are slower is not known";
    if (v <= 0) return 3;
    *why = "memory would allow 4, which are slower here";
    if (1 < NOT_SLOWER * v) return 3;
    *why = strcmp(source, PROBED) == 0
               ? "memory allows it, and 4 bits are not slower as probed here"
               : "memory allows it, and 4 bits are not slower as measured";
    return 4;
}

static void choose_bits(Plan *p, const DeviceInfo *d, const PlanModel *m) {
    bool plain_c = p->backend == BACKEND_CPU && is(d->isa, "scalar");
    const char *why;
    char buf[32];
    if (p->memory < GIB) {
        p->bits = 2;
        why = "below 1 GiB of memory";
    } else if (plain_c || p->backend == BACKEND_NONE) {
        p->bits = 4;
        why = "without vector instructions 4-bit codes are the quickest to unpack";
    } else if (d->mobile == 1) {
        p->bits = 2;
        why = "a phone or tablet: half the bytes to fetch and to read";
    } else if (p->memory < 2 * GIB) {
        p->bits = 3;
        why = "below 2 GiB of memory";
    } else {
        p->bits = three_or_four(p, d, m, &why);
    }
    snprintf(buf, sizeof buf, "%d", p->bits);
    plan_add(p, "bits", buf, "%s", why);
}

/* ---- what a browser changes ---- */

typedef struct Case {
    const Plan *p;
    const DeviceInfo *d;
} Case;
typedef bool Applies(const Case *c);

static bool safari(const Case *c) {
    return is(c->d->engine, "webkit");
}
static bool safari_17(const Case *c) {
    return safari(c) && c->d->engine_version >= 17;
}
static bool firefox_compute(const Case *c) {
    return is(c->d->engine, "gecko") && c->p->feature[FEATURE_COMPUTE_SHADERS];
}
static bool wasm(const Case *c) {
    return c->p->backend == BACKEND_WASM;
}
static bool wasm_below_2(const Case *c) {
    return wasm(c) && c->p->memory < 2 * GIB;
}
static bool mobile(const Case *c) {
    return c->d->mobile == 1;
}
static bool mobile_below_2(const Case *c) {
    return mobile(c) && c->p->memory < 2 * GIB;
}
static bool mobile_below_1(const Case *c) {
    return mobile(c) && c->p->memory < GIB;
}

enum {
    EMBEDDING = 1 << GROUP_EMBEDDING,
    ATTENTION = 1 << GROUP_ATTENTION,
    FEED_FORWARD = 1 << GROUP_FEED_FORWARD,
    AUDIO = 1 << GROUP_AUDIO,
    OUTPUT = 1 << GROUP_OUTPUT,
    MATRICES = EMBEDDING | ATTENTION | FEED_FORWARD | AUDIO | OUTPUT
};
typedef struct Rule {
    Applies *applies;
    int groups, at_least, at_most; /* bits */
    const char *why;
} Rule;
/* In order: a later one wins. */
static const Rule rules[] = {
    { safari, MATRICES, 3, 32, "Safari: at least 3 bits" },
    { safari_17, FEED_FORWARD, 2, 2, "Safari 17 and later: feed-forward at 2 bits" },
    { firefox_compute, ATTENTION | AUDIO, 2, 2, "Firefox with compute shaders: 2 bits" },
    { wasm, MATRICES, 3, 32, "WebAssembly: at least 3 bits" },
    { wasm_below_2, FEED_FORWARD, 2, 2, "WebAssembly below 2 GiB: feed-forward at 2 bits" },
    { mobile, FEED_FORWARD, 2, 2, "phone or tablet: feed-forward at 2 bits" },
    { mobile_below_2, ATTENTION | FEED_FORWARD | AUDIO, 2, 2,
      "phone or tablet below 2 GiB: 2 bits" },
    { mobile_below_1, EMBEDDING | OUTPUT, 4, 4, "phone or tablet below 1 GiB: 4 bits" },
};

/* The configuration that is adapted: asked for, or the model's, or what choose_bits() said. */
static void start_types(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q,
                        const char *why[N_GROUPS]) {
    for (int g = 0; g < N_GROUPS; g++) {
        int64_t bits = g == GROUP_NORMS                            ? 32
                       : g == GROUP_EMBEDDING || g == GROUP_OUTPUT ? 8
                                                                   : p->bits;
        const TypeInfo *t = q->type[g][0] ? type_by_name(q->type[g]) : NULL;
        bool asked = q->type[g][0] != 0, in_file = m && !m->weigh && q->n_variants == 0;
        why[g] = asked ? "as asked for" : "as recommended";
        if (asked && !t) parse_whole(q->type[g], strlen(q->type[g]), &bits);
        p->type[g] = t ? t->id : plan_type_of_bits(p, d, (int)bits);
        if (in_file && !asked && m->type[g] >= 0) {
            why[g] = "as the file has it";
            p->type[g] = m->type[g];
        }
        p->group_bits[g] = plan_type_bits(p->type[g]);
    }
}

/* Measured (docs/PLAN.md): attention with fewer bits than feed-forward costs more divergence for a
 * byte saved than anything else, so no rule lowers it alone. */
static void keep_attention(Plan *p, const DeviceInfo *d, int before, const char *why[N_GROUPS]) {
    int *bits = p->group_bits, least = MIN(before, bits[GROUP_FEED_FORWARD]);
    if (bits[GROUP_ATTENTION] >= least) return;
    bits[GROUP_ATTENTION] = least;
    p->type[GROUP_ATTENTION] = plan_type_of_bits(p, d, least);
    why[GROUP_ATTENTION] = "the rule for this browser is 2 bits, but measured that costs twice the "
                           "divergence for 4 % of the bytes while feed-forward has more";
}

static void adapt(Plan *p, const DeviceInfo *d, const char *why[N_GROUPS]) {
    const Case c = { p, d };
    int before = p->group_bits[GROUP_ATTENTION];
    for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
        const Rule *r = &rules[i];
        if (!r->applies(&c)) continue;
        for (int g = 0; g < N_GROUPS; g++) {
            int bits = p->group_bits[g];
            if (!(r->groups & 1 << g) || (bits >= r->at_least && bits <= r->at_most)) continue;
            p->group_bits[g] = bits < r->at_least ? r->at_least : r->at_most;
            p->type[g] = plan_type_of_bits(p, d, p->group_bits[g]);
            why[g] = r->why;
        }
    }
    keep_attention(p, d, before, why);
}

static void add_types(Plan *p, const PlanModel *m, const PlanRequest *q,
                      const char *const why[N_GROUPS]) {
    const PlanVariant *v = p->variant >= 0 ? &q->variants[p->variant] : NULL;
    bool in_file = m && !m->weigh && q->n_variants == 0;
    for (int g = 0; g < N_GROUPS; g++) {
        int have = v ? v->type[g] : in_file ? m->type[g] : p->type[g];
        const char *key = plan_group_names[g], *type = type_info(p->type[g])->name;
        if ((m && m->type[g] < 0) || have < 0) continue; /* it has none, or none is known */
        if (have != p->type[g])
            plan_add(p, key, type_info(have)->name, "as the file has it; here it should be %s: %s",
                     type, why[g]);
        else if (g == GROUP_NORMS)
            plan_add(p, key, type, "vectors stay as they are: a thousandth of the bytes");
        else
            plan_add(p, key, type, "%s", why[g]);
        p->type[g] = have;
    }
}

void plan_choose_types(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q) {
    const char *why[N_GROUPS], *variant = "";
    choose_bits(p, d, m);
    start_types(p, d, m, q, why);
    adapt(p, d, why);
    p->variant = plan_pick_variant(p, m, q, &variant);
    if (q->n_variants)
        plan_add(p, "variant", p->variant < 0 ? "" : q->variants[p->variant].name, "%s", variant);
    add_types(p, m, q, why);
}
