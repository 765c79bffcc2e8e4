/* calibrate_types.c - which layers get three bits: the KL divergence that each layer's keys and
 * values cost in k2 and in k3 while all else is f16, then the best use of a budget. */
#include <stdio.h>
#include <string.h>

#include "calibrate_kv.h"
#include "evaluate.h"

enum { SETTINGS = 8, LIST_MAX = 1024 * 24 }; /* evaluated at a time; bytes of a list of layers */

typedef struct Measure {
    const KvCalibrateOptions *opt;
    DibitEngine *engine;
    const int32_t *ids;
    size_t n;
    uint64_t done, total; /* windows */
} Measure;

static int tell(void *user, int window, int n_windows) {
    Measure *m = user;
    (void)window, (void)n_windows;
    if (!m->opt->progress) return 0;
    return m->opt->progress(m->opt->user, "types", m->done++, m->total);
}

/* KLD of `n` settings against an f16 cache; k and v are the types of all layers not in `layers`. */
static int measure(Measure *m, int n, const char **types, const char **layers, double *kld,
                   DibitError *err) {
    EvalResult results[SETTINGS];
    EvalOptions e = { .window = m->opt->window, .max_windows = 1, .cache_k = types };
    e.cache_v = types;
    e.cache_layers = layers;
    e.n_settings = n;
    e.progress = tell;
    e.user = m;
    int r = evaluate_text(m->engine, m->engine, m->ids, m->n, &e, results, err);
    for (int i = 0; i < n && r == 0; i++) kld[i] = results[i].kld_mean.mean;
    return r;
}

/* One side of one layer in k2 or k3: setting 4 l + 2 side + type. */
static int measure_each(Measure *m, int n_layers, KvCost *costs, DibitError *err) {
    static const char *const forms[] = { "%d=k2/f16", "%d=k3/f16", "%d=f16/k2", "%d=f16/k3" };
    for (int at = 0; at < 4 * n_layers; at += SETTINGS) {
        char text[SETTINGS][32];
        const char *layers[SETTINGS], *types[SETTINGS];
        double kld[SETTINGS];
        int n = MIN(SETTINGS, 4 * n_layers - at);
        for (int i = 0; i < n; i++) {
            snprintf(text[i], sizeof text[i], forms[(at + i) % 4], (at + i) / 4);
            layers[i] = text[i];
            types[i] = "f16";
        }
        int r = measure(m, n, types, layers, kld, err);
        if (r != 0) return r;
        for (int i = 0; i < n; i++) costs[(at + i) / 2].kld[(at + i) % 2] = kld[i];
    }
    return 0;
}

/* All sides begin in k2; those that gain most by a third bit get one while the budget lasts. */
static double choose(const KvCost *costs, int n_sides, double budget, uint8_t *three) {
    int n = 0, most = (int)((budget - 2) * n_sides + 1e-6);
    memset(three, 0, (size_t)n_sides);
    for (; n < MIN(most, n_sides); n++) {
        int best = -1;
        double gain = -1;
        for (int i = 0; i < n_sides; i++) {
            double g = costs[i].kld[0] - costs[i].kld[1];
            if (!three[i] && (best < 0 || g > gain)) best = i, gain = g;
        }
        three[best] = 1;
    }
    return 2 + (double)n / n_sides;
}

static void write_list(char *list, const uint8_t *three, int n_layers) {
    size_t n = 0;
    for (int l = 0; l < n_layers && n < LIST_MAX; l++)
        n += (size_t)snprintf(list + n, LIST_MAX - n, "%s%d=k%d/k%d", l ? ";" : "", l,
                              2 + three[2 * l], 2 + three[2 * l + 1]);
}

int calibrate_kv_types(DibitEngine *engine, const int32_t *ids, size_t n,
                       const KvCalibrateOptions *opt, KvCalibrateResult *result, DibitError *err) {
    DibitModelInfo info;
    dibit_model_info(engine, &info);
    int n_sides = 2 * info.n_layers, r = 0;
    Measure m = { opt, engine, ids, n, 0, 0 };
    m.total = (uint64_t)(2 * n_sides + SETTINGS - 1) / SETTINGS + 1;
    if (!(opt->budget >= 2 && opt->budget <= 3))
        return fail(err, DIBIT_E_ARGUMENT, "a budget of %g bits is not between 2 and 3",
                    opt->budget);
    result->costs = mem_calloc(NULL, (size_t)n_sides, sizeof *result->costs);
    result->layers = mem_calloc(NULL, LIST_MAX, 1);
    uint8_t *three = mem_calloc(NULL, (size_t)n_sides, 1);
    if (!result->costs || !result->layers || !three)
        r = fail(err, DIBIT_E_MEMORY, "no memory for the costs of %d layers", info.n_layers);
    if (r == 0) r = measure_each(&m, info.n_layers, result->costs, err);
    if (r == 0) {
        const char *types[] = { "k2", "k3", "k2" }, *layers[] = { NULL, NULL, result->layers };
        double kld[3];
        result->bits = choose(result->costs, n_sides, opt->budget, three);
        write_list(result->layers, three, info.n_layers);
        r = measure(&m, 3, types, layers, kld, err);
        result->kld_k2 = kld[0];
        result->kld_k3 = kld[1];
        result->kld = kld[2];
    }
    mem_free(NULL, three);
    return r;
}
