/* gpu.c - --backend: engines on a GPU, or on the CPU where `auto` finds no better. A GPU is taken
 * once it has computed what the CPU does; that it has, and how fast both were, is remembered for
 * this adapter and a model of these tensors. What was taken is said on stderr. */
#include "gpu/gpu.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "feature.h"
#include "gguf.h"
#include "gpu/check.h"
#include "gpu/step.h"

#define TOO_SLOW "%s took %.3g ms a token, the CPU %.3g"

typedef struct Opening {
    const CliModel *m;
    const char *path; /* or NULL: an image in memory, which is made up and neither checked nor
                         timed */
    const void *image;
    size_t size;
    bool automatic, floor;
    GpuCaps caps;
    Features features;
    char key[FEATURES_NAME], cpu_key[FEATURES_NAME]; /* names of what is remembered */
    char told[96];                                   /* of the comparison, or "" */
} Opening;

static int open_with(const Opening *o, DibitEngine **out, struct DibitBackend *b, DibitError *err) {
    DibitOptions opt;
    cli_engine_options(o->m, &opt);
    opt.backend = b;
    return o->path ? dibit_open(out, o->path, &opt, err)
                   : dibit_open_memory(out, o->image, o->size, &opt, err);
}

/* Whether it runs on the GPU: one that fails is left. */
static bool is_there(const DibitEngine *e) {
    DibitModelInfo info;
    dibit_model_info(e, &info);
    return strcmp(info.isa, "webgpu") == 0;
}

/* ---- what is remembered ---- */

static uint64_t hash_text(uint64_t h, const char *s) {
    return hash64(h, s, strlen(s));
}

/* Sets the names under which this model on this GPU is remembered. */
static int set_keys(Opening *o, DibitError *err) {
    Gguf *file;
    uint64_t h = hash_text(hash_text(1, o->caps.name), o->caps.driver);
    int r = gguf_open(&file, o->path, false, NULL, err);
    if (r != 0) return r;
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        const GgufTensor *t = gguf_tensor(file, i);
        h = hash64(hash_text(h, t->name), &t->type, sizeof t->type);
        h = hash64(h, t->ne, sizeof t->ne);
    }
    gguf_close(&file);
    snprintf(o->key, sizeof o->key, "gpu-%08x%s", (unsigned)h, o->floor ? ".floor" : "");
    h = hash64(h, &o->m->n_threads, sizeof o->m->n_threads);
    snprintf(o->cpu_key, sizeof o->cpu_key, "cpu-%08x", (unsigned)h);
    return 0;
}

/* A record that cannot be kept costs a check at the next start. */
static void remember(Opening *o) {
    DibitError err;
    if (features_save(&o->features, NULL, &err) != 0) cli_log(NULL, DIBIT_LOG_WARN, err.text);
}

/* ---- is it right, is it faster ---- */

static int check(Opening *o, DibitEngine *gpu, DibitEngine *cpu, DibitError *err) {
    enum { SOFTWARE_MS = 3000, NO_LIMIT = 1000000 };
    GpuCheck c;
    if (features_worked(&o->features, o->key)) return 0;
    fprintf(stderr, "dibit: this model is new to this GPU: comparing it with the CPU\n");
    int r = gpu_check(gpu, cpu, o->caps.software ? SOFTWARE_MS : NO_LIMIT, &c, err);
    if (r != 0 && r != DIBIT_E_NUMERIC) return r == DIBIT_E_UNSUPPORTED ? 0 : r; /* untested */
    features_result(&o->features, o->key, r == 0, NULL);
    remember(o);
    if (r == 0)
        snprintf(o->told, sizeof o->told, "; as the CPU at %d positions, mean divergence %.1e", c.n,
                 c.kld);
    return r;
}

/* Milliseconds of a token of both; false where they are not known. */
static bool known_pace(const Opening *o, double *gpu, double *cpu) {
    *gpu = features_last_ms(&o->features, o->key);
    *cpu = features_last_ms(&o->features, o->cpu_key);
    return *gpu >= 0 && *cpu >= 0;
}

static void time_both(Opening *o, DibitEngine *gpu, DibitEngine *cpu) {
    DibitError err;
    double a, b;
    if (gpu_pace(gpu, &a, &err) != 0 || gpu_pace(cpu, &b, &err) != 0) return;
    features_time(&o->features, o->key, a, NULL);
    features_time(&o->features, o->cpu_key, b, NULL);
    remember(o);
}

/* What is not known yet of *out, which is on the GPU; where it is slower it gives way to one on the
 * CPU. */
static int examine(Opening *o, DibitEngine **out, DibitError *err) {
    DibitEngine *cpu = NULL;
    double a, b;
    bool timed = !o->automatic || known_pace(o, &a, &b);
    if (timed && features_worked(&o->features, o->key)) return 0;
    int r = open_with(o, &cpu, NULL, err);
    if (r == 0) r = check(o, *out, cpu, err);
    if (r == 0 && !timed) time_both(o, *out, cpu);
    if (r == 0 && o->automatic && known_pace(o, &a, &b) && a > b) {
        DibitEngine *slower = *out;
        *out = cpu;
        cpu = slower;
    }
    dibit_close(&cpu);
    return r;
}

/* Whether this GPU need not be tried. */
static int refuse(Opening *o, DibitError *err) {
    double gpu, cpu;
    if (o->automatic && o->caps.software) /* slower than the CPU it runs on */
        return fail(err, DIBIT_E_UNSUPPORTED, "the only adapter is %s, software", o->caps.name);
    int r = o->path ? set_keys(o, err) : 0;
    if (r != 0 || !o->path) return r;
    if (!features_enabled(&o->features, o->key))
        return fail(err, DIBIT_E_NUMERIC,
                    "%s failed the comparison with the CPU too often with this model",
                    o->caps.name);
    if (o->automatic && known_pace(o, &gpu, &cpu) && gpu > cpu)
        return fail(err, DIBIT_E_UNSUPPORTED, TOO_SLOW, o->caps.name, gpu, cpu);
    return 0;
}

/* On the GPU, with all that it has or as floor. */
static int open_there(Opening *o, DibitEngine **out, DibitError *err) {
    GpuOptions opt = { .floor = o->floor, .optional = o->automatic };
    struct DibitBackend *b;
    *out = NULL;
    int r = gpu_backend(&b, &opt, &o->caps, err);
    if (r != 0) return r;
    if ((r = refuse(o, err)) != 0) {
        gpu_backend_free(&b);
        return r;
    }
    r = open_with(o, out, b, err);
    if (r == 0 && o->path && is_there(*out)) r = examine(o, out, err);
    if (r != 0) dibit_close(out);
    return r;
}

static void tell(const Opening *o, const DibitEngine *e) {
    double gpu, cpu;
    bool timed = o->automatic && known_pace(o, &gpu, &cpu);
    if (!is_there(e)) {
        if (timed) fprintf(stderr, "dibit: on the CPU: " TOO_SLOW "\n", o->caps.name, gpu, cpu);
        return; /* else a warning has said why */
    }
    fprintf(stderr, "dibit: on the GPU %s (%s)%s%s", o->caps.name, o->caps.driver,
            o->floor ? ", without its special features" : "", o->told);
    if (timed) fprintf(stderr, "; %.3g ms a token, the CPU %.3g", gpu, cpu);
    fprintf(stderr, "\n");
}

int cli_open_engine(DibitEngine **out, const CliModel *m, const char *path, const void *image,
                    size_t size) {
    Opening o = { .m = m, .path = path, .image = image, .size = size };
    DibitError err = { 0 };
    const char *backend = m->backend ? m->backend : "cpu";
    const DibitLogger logger = { .log = cli_log };
    o.automatic = strcmp(backend, "auto") == 0;
    if (!o.automatic && strcmp(backend, "gpu") != 0)
        return open_with(&o, out, NULL, &err) < 0 ? cli_fail(&err) : 0;
    if (features_open(&o.features, NULL, "dibit " DIBIT_VERSION, &logger, &err) != 0)
        cli_log(NULL, DIBIT_LOG_WARN, err.text); /* and begin a new one */
    int r = open_there(&o, out, &err);
    if (r == DIBIT_E_NUMERIC) {
        cli_log(NULL, DIBIT_LOG_WARN, err.text);
        o.floor = true;
        r = open_there(&o, out, &err);
    }
    if (r < 0 && o.automatic) {
        fprintf(stderr, "dibit: on the CPU: %s\n", err.text);
        return open_with(&o, out, NULL, &err) < 0 ? cli_fail(&err) : 0;
    }
    if (r < 0) return cli_fail(&err);
    tell(&o, *out);
    return 0;
}
