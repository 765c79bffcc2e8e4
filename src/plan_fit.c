/* plan_fit.c - the policy for memory: which file of several, which types of the cache, how many
 * positions. Every byte is counted by the functions that allocate it. */
#include <stdio.h>
#include <string.h>

#include "cache.h"
#include "plan.h"

enum { WANTED_CTX = 4096, LEAST_CTX = 256 };

/* In the order in which they are tried: the first that fits has the least loss. q4 is not among
 * them: k3 takes two thirds of its bytes and loses less. WebAssembly begins with q8, which
 * loses next to nothing and whose attention takes 0.58 of f16's time (docs/PLAN.md). */
static const struct {
    int k, v;
    const char *why;
} caches[] = {
    { KV_F16, KV_F16, "nothing is lost, and it fits" },
    { KV_Q8, KV_Q8, "f16 does not fit; q8 loses next to nothing" },
    { KV_K3, KV_K3, "q8 does not fit; k3 loses least of what does" },
    { KV_K3, KV_K2, "k3 for both does not fit" },
    { KV_K2, KV_K2, "the smallest there is" },
};

enum { Q8_ROW = 1 };

typedef struct Fit {
    Plan *p;
    const PlanRequest *q;
    PlanModel m;     /* with the weights in the types in hand */
    int first, last; /* rows of caches that may be taken */
    int given[2];    /* types asked for, or -1 */
    int wanted;      /* positions */
    bool in_place;   /* q4 and q8 are interleaved without a copy */
} Fit;

static int wanted_ctx(const PlanModel *m, const PlanRequest *q) {
    return q->n_ctx > 0 ? (int)q->n_ctx : MIN(m->context.n_ctx_train, WANTED_CTX);
}

/* Whether all of it fits with row i of caches; *n has the figures if they can be counted. */
static bool fits(const Fit *f, int i, int n_ctx, bool repack, PlanNeed *n) {
    *n = (PlanNeed){ .n_ctx = n_ctx, .n_threads = f->p->n_threads };
    n->kv_types.k = f->given[0] >= 0 ? f->given[0] : caches[i].k;
    n->kv_types.v = f->given[1] >= 0 ? f->given[1] : caches[i].v;
    size_t total;
    return plan_count(n, &f->m, repack && !f->in_place, NULL) == 0 &&
           size_add(n->total, f->p->staging, &total) && total <= f->p->budget;
}

static bool find_cache(Fit *f, int n_ctx, int *row, bool *repack) {
    for (int packed = f->q->repack != 0; packed >= (f->q->repack == 1); packed--) {
        for (int i = f->first; i <= f->last; i++) {
            if (!fits(f, i, n_ctx, packed, &f->p->need)) continue;
            *row = i;
            *repack = packed;
            return true;
        }
    }
    return false;
}

/* ---- models by name: fewer bits, until it fits ---- */

/* In the order of divergence for a byte saved, as measured: docs/PLAN.md. */
static const struct {
    int groups[2], bits;
    const char *why;
} steps[] = {
    { { GROUP_EMBEDDING, GROUP_OUTPUT }, 4, "4 bits, so that it fits" },
    { { GROUP_FEED_FORWARD, GROUP_FEED_FORWARD }, 2, "2 bits, so that it fits" },
    { { GROUP_ATTENTION, GROUP_AUDIO }, 2, "2 bits, so that it fits" },
};

static void lower(Plan *p, int g, int type, const char *why) {
    if (plan_type_bits(p->type[g]) < plan_type_bits(type) || p->type[g] == type) return;
    p->type[g] = type;
    p->group_bits[g] = plan_type_bits(type);
    for (int i = 0; i < p->n_lines; i++) {
        PlanLine *l = &p->lines[i];
        if (strcmp(l->key, plan_group_names[g]) != 0) continue;
        snprintf(l->value, sizeof l->value, "%s", type_info(type)->name);
        snprintf(l->reason, sizeof l->reason, "%s", why);
    }
}

static int weigh(Fit *f, DibitError *err) {
    return f->m.weigh ? f->m.weigh(&f->m, f->p->type, err) : 0;
}

/* Takes the steps one by one; then our trellis types, which have no scales beside the rows'. */
static int lower_until_it_fits(Fit *f, const DeviceInfo *d, int *row, bool *repack, bool *found,
                               DibitError *err) {
    int r = weigh(f, err), n_steps = (int)ARRAY_LEN(steps);
    *found = r == 0 && find_cache(f, f->wanted, row, repack);
    if (!f->m.weigh) return r;
    for (int i = 0; r == 0 && !*found && i <= n_steps; i++) {
        for (int k = 0; k < 2 && i < n_steps; k++)
            lower(f->p, steps[i].groups[k],
                  steps[i].bits == 2 ? plan_type_of_bits(f->p, d, 2) : T_Q4_0, steps[i].why);
        for (int g = 0; g < N_GROUPS && i == n_steps; g++)
            if (f->p->type[g] == T_S2) lower(f->p, g, T_T2, "smaller than s2, so that it fits");
        r = weigh(f, err);
        *found = r == 0 && find_cache(f, f->wanted, row, repack);
    }
    return r;
}

/* ---- positions ---- */

/* The most positions from `least` to `most` that fit, 0: not even the least. */
static int most_positions(const Fit *f, int i, bool repack, int least, int most) {
    PlanNeed n;
    if (least > most || !fits(f, i, least, repack, &n)) return 0;
    while (least < most) {
        int middle = least + (most - least + 1) / 2;
        if (fits(f, i, middle, repack, &n))
            least = middle;
        else
            most = middle - 1;
    }
    return least;
}

static void mib(char buf[32], uint64_t n) {
    snprintf(buf, 32, "%.1f MiB", (double)n / 1048576);
}

/* Nothing holds the wanted positions: fewer, unless they were asked for. */
static void fewer_positions(Fit *f, int *row, bool *repack) {
    Plan *p = f->p;
    char need[32], have[32], text[16];
    *row = f->last;
    *repack = f->q->repack == 1 || (f->q->repack != 0 && f->in_place);
    int n = most_positions(f, *row, *repack, MIN(LEAST_CTX, f->wanted), f->wanted);
    p->fits = n > 0 && f->q->n_ctx <= 0;
    fits(f, *row, p->fits ? n : f->wanted, *repack, &p->need);
    snprintf(text, sizeof text, "%d", p->need.n_ctx);
    mib(need, p->need.total + p->staging);
    mib(have, p->budget);
    if (p->fits)
        plan_add(p, "n_ctx", text, "as many as fit; %d were wanted", f->wanted);
    else if (n > 0)
        plan_add(p, "n_ctx", text, "asked for; %s are needed, the budget is %s; %d would fit", need,
                 have, n);
    else
        plan_add(p, "n_ctx", text, "%s are needed, the budget is %s: the model is too large here",
                 need, have);
}

static void add_ctx(Fit *f) {
    char text[16];
    snprintf(text, sizeof text, "%d", f->wanted);
    if (f->q->n_ctx > 0)
        plan_add(f->p, "n_ctx", text, "as asked for");
    else if (f->wanted == WANTED_CTX)
        plan_add(f->p, "n_ctx", text, "enough for a long conversation; the model can have %d",
                 f->m.context.n_ctx_train);
    else
        plan_add(f->p, "n_ctx", text, "all that the model was trained for");
}

/* ---- lines ---- */

static void add_cache(Fit *f, int row) {
    Plan *p = f->p;
    const char *keys[] = { "cache_type_k", "cache_type_v" };
    int types[] = { p->need.kv_types.k, p->need.kv_types.v };
    const char *why = caches[row].why;
    if (row == Q8_ROW && f->first == Q8_ROW)
        why = "measured in WebAssembly: next to nothing lost, attention 1.7 times as fast as over "
              "f16";
    for (int side = 0; side < 2; side++) {
        const char *name = kv_type(types[side])->name;
        if (f->given[side] >= 0)
            plan_add(p, keys[side], name, "as asked for");
        else
            plan_add(p, keys[side], name, "%s%s", why,
                     kv_type(types[side])->bits == 0 ? ""
                     : f->m.kv_calibrated            ? " (the model has a calibration for it)"
                                          : " (`dibit calibrate kv` would halve its loss)");
    }
    p->kv_k = types[0];
    p->kv_v = types[1];
}

static void add_bytes(Fit *f) {
    Plan *p = f->p;
    const struct {
        const char *key;
        uint64_t n;
        const char *why;
    } rows[] = {
        { "weights", p->need.weights,
          p->repack && !f->in_place ? "with the copies made at opening"
          : f->m.weigh              ? "in the types above"
                                    : "as in the file" },
        { "kv", p->need.kv, "keys and values" },
        { "scratch", p->need.scratch, "activations, logits, tables" },
        { "staging", p->staging,
          p->staging ? "for loading, and what the page has beside" : "none: the file is mapped" },
        { "total", (uint64_t)p->need.total + p->staging, "of the budget" },
    };
    char text[32], have[32];
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        snprintf(text, sizeof text, "%llu", (unsigned long long)rows[i].n);
        plan_add(p, rows[i].key, text, "%s", rows[i].why);
    }
    mib(text, p->need.total + p->staging);
    mib(have, p->budget);
    plan_add(p, "fits", p->fits ? "yes" : "no", "%s of %s", text, have);
}

static void add_repack(Fit *f, bool repack) {
    bool gpu = f->p->backend == BACKEND_WEBGPU, any = f->m.repacked > 0;
    f->p->repack = repack && any && !gpu;
    plan_add(f->p, "repack", f->p->repack ? "on" : "off",
             gpu                 ? "a GPU has layouts of its own"
             : !any              ? "there are no q4 and q8 matrices to interleave"
             : f->q->repack == 0 ? "as asked for"
             : f->in_place ? "q4 and q8 matrices are interleaved where they lie, to run faster"
             : repack      ? "copies of q4 and q8 matrices that run faster fit too"
                           : "the faster copies of q4 and q8 matrices do not fit");
}

/* ---- variants ---- */

/* At most the bits that the device should have, where they are known. */
static bool suits(const Plan *p, const PlanVariant *v) {
    static const int groups[] = { GROUP_ATTENTION, GROUP_FEED_FORWARD };
    for (size_t i = 0; i < ARRAY_LEN(groups); i++)
        if (v->type[groups[i]] >= 0 &&
            plan_type_bits(v->type[groups[i]]) > p->group_bits[groups[i]])
            return false;
    return true;
}

static bool variant_fits(const Plan *p, const PlanModel *m, const PlanRequest *q,
                         const PlanVariant *v) {
    Plan copy = *p;
    int row;
    bool repack;
    if (v->bytes > p->budget) return false;
    if (!m) return v->bytes + p->staging + v->bytes / 8 <= p->budget; /* an eighth for the rest */
    Fit f = {
        &copy, q, *m, Q8_ROW, (int)ARRAY_LEN(caches) - 1, { -1, -1 }, wanted_ctx(m, q), true
    };
    f.m.context.weights = (size_t)v->bytes;
    f.m.repacked = 0;
    return find_cache(&f, f.wanted, &row, &repack);
}

/* Whether a is the better one: known divergences count, else more bytes have less of it. */
static bool better(const PlanVariant *a, const PlanVariant *b) {
    return a->kld >= 0 && b->kld >= 0 ? a->kld < b->kld : a->bytes > b->bytes;
}

int plan_pick_variant(const Plan *p, const PlanModel *m, const PlanRequest *q, const char **why) {
    int best = -1, smallest = -1;
    for (int i = 0; i < q->n_variants; i++) {
        const PlanVariant *v = &q->variants[i];
        if (!variant_fits(p, m, q, v)) continue;
        if (smallest < 0 || v->bytes < q->variants[smallest].bytes) smallest = i;
        if (suits(p, v) && (best < 0 || better(v, &q->variants[best]))) best = i;
    }
    *why = best >= 0       ? "the least loss of those that fit and have no more bits than suit here"
           : smallest >= 0 ? "the smallest; all have more bits than suit here"
                           : "none fits into the budget";
    return best >= 0 ? best : smallest;
}

/* ---- all of it ---- */

static int read_given(Fit *f, DibitError *err) {
    const char *names[] = { f->q->cache_type_k, f->q->cache_type_v };
    for (int side = 0; side < 2; side++) {
        f->given[side] = -1;
        if (!names[side][0]) continue;
        int r = plan_cache_type(names[side], &f->given[side], side ? "v" : "k", err);
        if (r != 0) return r;
    }
    bool both = f->given[0] >= 0 && f->given[1] >= 0;
    f->first = !both && f->p->backend == BACKEND_WASM ? Q8_ROW : 0;
    f->last = both ? 0 : (int)ARRAY_LEN(caches) - 1;
    return 0;
}

/* Types that the heads of this model cannot have are not tried. */
static int check_heads(Fit *f, DibitError *err) {
    PlanNeed n;
    while (f->last > 0) {
        fits(f, f->last, 1, false, &n);
        if (plan_count(&n, &f->m, false, err) == 0) return 0;
        f->last--;
    }
    fits(f, 0, 1, false, &n);
    return plan_count(&n, &f->m, false, err);
}

int plan_fit(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q,
             DibitError *err) {
    bool repack = false, found = false, native = strcmp(d->engine, "native") == 0;
    int row = 0;
    if (!m) return 0;
    Fit f = { .p = p, .q = q, .m = *m, .wanted = wanted_ctx(m, q) };
    if (p->variant >= 0) {
        f.m.context.weights = (size_t)q->variants[p->variant].bytes;
    }
    f.in_place = !native || p->backend == BACKEND_WEBGPU; /* or not done at all */
    int r = read_given(&f, err);
    if (r == 0) r = check_heads(&f, err);
    if (r == 0) r = lower_until_it_fits(&f, d, &row, &repack, &found, err);
    if (r != 0) return r;
    if (found)
        add_ctx(&f);
    else
        fewer_positions(&f, &row, &repack);
    if (q->n_variants && p->variant < 0) p->fits = false;
    p->n_ctx = p->need.n_ctx;
    add_cache(&f, row);
    add_repack(&f, repack);
    add_bytes(&f);
    return 0;
}
