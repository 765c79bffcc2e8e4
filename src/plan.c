/* plan.c - the policy: memory, backend, threads, features; types and the fit into memory are
 * plan_types.c and plan_fit.c. Normative text: docs/PLAN.md. Every choice leaves a line with its
 * reason. */
#include "plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MIB ((uint64_t)1 << 20)

const char *const plan_feature_names[N_FEATURES] = {
    "webgpu",
    "compute_shaders",
    "gpu_f16",
    "gpu_subgroups",
    "gpu_packed_dot",
    "wasm_simd",
    "wasm_relaxed",
    "wasm_threads",
    "progressive_loading",
    "memory_constrained",
    "memory_severe",
    "mobile",
    "battery_saver",
};

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

static bool yes(int8_t v) { /* unknown is no */
    return v == 1;
}

static bool is_native(const DeviceInfo *d) {
    return is(d->engine, "native");
}

/* ---- lines ---- */

void plan_add(Plan *p, const char *key, const char *value, const char *reason, ...) {
    if (p->n_lines == PLAN_MAX_LINES) return;
    PlanLine *l = &p->lines[p->n_lines++];
    va_list ap;
    l->key = key;
    snprintf(l->value, sizeof l->value, "%s", value);
    va_start(ap, reason);
    vsnprintf(l->reason, sizeof l->reason, reason, ap);
    va_end(ap);
}

const PlanLine *plan_line(const Plan *p, const char *key) {
    for (int i = 0; i < p->n_lines; i++)
        if (is(p->lines[i].key, key)) return &p->lines[i];
    return NULL;
}

size_t plan_write(const Plan *p, char *out, size_t cap) {
    size_t at = 0;
    if (cap) out[0] = 0;
    for (int i = 0; i < p->n_lines; i++) {
        const PlanLine *l = &p->lines[i];
        at += (size_t)snprintf(at < cap ? out + at : NULL, at < cap ? cap - at : 0, "%s\t%s\t%s\n",
                               l->key, l->value, l->reason);
    }
    return at;
}

static const char *whole(char buf[32], uint64_t v) {
    snprintf(buf, 32, "%llu", (unsigned long long)v);
    return buf;
}

/* ---- memory ---- */

enum { MOBILE_MB = 2048, DESKTOP_MB = 8192, OTHER_MB = 4096 };

static void choose_memory(Plan *p, const DeviceInfo *d, const PlanRequest *q) {
    char buf[32], why[128];
    int64_t mb = d->memory_mb;
    bool native = is_native(d), large = is(d->os, "macos") || is(d->os, "windows");
    if (mb >= 0) {
        snprintf(why, sizeof why, native ? "what this process may use" : "deviceMemory");
    } else if (q->budget_mb >= 0) {
        mb = q->budget_mb;
        snprintf(why, sizeof why,
                 "the caller's budget; the browser does not say how much there is");
    } else {
        mb = yes(d->mobile) ? MOBILE_MB : large ? DESKTOP_MB : OTHER_MB;
        snprintf(why, sizeof why, "assumed for %s: the browser does not say how much there is",
                 yes(d->mobile) ? "a phone or tablet"
                 : large        ? "Windows and macOS"
                                : "this system");
    }
    if (q->budget_mb >= 0 && q->budget_mb < mb) {
        snprintf(why, sizeof why, "the caller's budget, which is below the device's %lld MiB",
                 (long long)mb);
        mb = q->budget_mb;
    }
    p->memory = (uint64_t)mb * MIB;
    plan_add(p, "memory", whole(buf, p->memory), "%s", why);
}

/* What a browser gives one page, whatever the device has; wasm32 addresses 4 GiB. */
enum { IOS_MB = 1024, ANDROID_MB = 1228, WASM_MB = 3584, WASM_LIMIT_MB = 4095, STAGING_MB = 16 };

static void choose_budget(Plan *p, const DeviceInfo *d, const PlanRequest *q) {
    char buf[32];
    bool native = is_native(d), ios = is(d->engine, "webkit") && yes(d->mobile);
    int64_t mb = (int64_t)(p->memory / MIB), most = ios              ? IOS_MB
                                                    : yes(d->mobile) ? ANDROID_MB
                                                                     : WASM_MB;
    const char *why = "half of the memory";
    if (q->budget_mb >= 0) {
        mb = q->budget_mb;
        why = "the caller's";
        if (!native && mb > WASM_LIMIT_MB) {
            mb = WASM_LIMIT_MB;
            why = "a module's memory ends at 4 GiB";
        }
    } else if (native) {
        mb = mb / 4 * 3;
        why = "three quarters of the memory";
        if (d->memory_free_mb >= 0 && d->memory_free_mb < mb) {
            mb = d->memory_free_mb;
            why = "the memory that is free at present";
        }
    } else if ((mb /= 2) > most) {
        mb = most;
        why = ios              ? "more than that a page on iOS may not survive"
              : yes(d->mobile) ? "more than that a page on Android may not survive"
                               : "a module's memory ends at 4 GiB, and the page needs some";
    }
    p->budget = (uint64_t)MAX(mb, 1) * MIB;
    p->staging = native ? 0 : STAGING_MB * MIB;
    plan_add(p, "budget", whole(buf, p->budget), "for the model: %s", why);
}

/* ---- backend ---- */

/* Models below this many weights decode faster without the round trips to a GPU. */
#define GPU_MIN_PARAMS 100000000u

static bool failed_here(const PlanRequest *q, const char *feature) {
    size_t n = strlen(feature);
    for (const char *p = q->disabled; *p; p += *p == ',') {
        size_t len = strcspn(p, ",");
        if (len == n && memcmp(p, feature, n) == 0) return true;
        p += len;
    }
    return false;
}

/* Why WebGPU is not used, or NULL. */
static const char *against_webgpu(const DeviceInfo *d, const PlanModel *m, const PlanRequest *q) {
    bool asked = is(q->backend, "webgpu");
    if (is(q->backend, "wasm")) return "WebAssembly was asked for";
    if (d->webgpu < 0) return "whether there is WebGPU was not probed";
    if (!yes(d->webgpu)) return "WebGPU has no adapter here";
    if (failed_here(q, "webgpu") && !asked) return "WebGPU has failed on this device";
    if (yes(d->gpu_fallback) && !asked)
        return "the WebGPU adapter is software, slower than WebAssembly";
    if (m && m->context.n_params < GPU_MIN_PARAMS && !asked)
        return "a model below 100 million weights is faster without the GPU's round trips";
    return NULL;
}

static int choose_backend(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q,
                          DibitError *err) {
    const char *against = against_webgpu(d, m, q);
    const char *name = d->gpu_description[0] ? d->gpu_description : d->gpu_vendor;
    if (against && is(q->backend, "webgpu"))
        return fail(err, DIBIT_E_UNSUPPORTED, "WebGPU was asked for: %s", against);
    if (!against) {
        p->backend = BACKEND_WEBGPU;
        plan_add(p, "backend", "webgpu", "there is an adapter%s%s", name[0] ? ": " : "", name);
    } else if (is_native(d)) {
        p->backend = BACKEND_CPU;
        plan_add(p, "backend", "cpu", "native, instruction set %s; %s",
                 d->isa[0] ? d->isa : "unknown", against);
    } else if (yes(d->wasm_simd)) {
        p->backend = BACKEND_WASM;
        plan_add(p, "backend", "wasm", "%s", against);
    } else {
        plan_add(p, "backend", "none", "%s, and the modules need WebAssembly with 128-bit SIMD",
                 against);
    }
    return 0;
}

/* ---- features ---- */

static void add_feature(Plan *p, PlanFeature f, bool on, const char *why) {
    p->feature[f] = on;
    plan_add(p, plan_feature_names[f], on ? "on" : "off", "%s", why);
}

/* A probed feature, which may have failed before. */
static void add_probed(Plan *p, const PlanRequest *q, PlanFeature f, int8_t probe, bool used) {
    if (probe < 0)
        add_feature(p, f, false, "not probed");
    else if (!probe)
        add_feature(p, f, false, "not there");
    else if (!used)
        add_feature(p, f, false, "WebGPU is not used");
    else if (failed_here(q, plan_feature_names[f]))
        add_feature(p, f, false, "it has failed on this device");
    else
        add_feature(p, f, true, "it is there");
}

static int8_t both(int8_t a, int8_t b) {
    return a == 0 || b == 0 ? 0 : a < 0 || b < 0 ? -1 : 1;
}

static void choose_web_features(Plan *p, const DeviceInfo *d, const PlanRequest *q) {
    bool gpu = p->backend == BACKEND_WEBGPU;
    int8_t relaxed = both(d->wasm_relaxed_dot, d->wasm_relaxed_madd);
    int8_t threads = both(d->wasm_threads, both(d->isolated, d->shared_memory));
    add_feature(p, FEATURE_WEBGPU, gpu, gpu ? "the backend" : "not the backend");
    add_probed(p, q, FEATURE_COMPUTE_SHADERS, d->webgpu, gpu);
    add_probed(p, q, FEATURE_GPU_F16, d->gpu_f16, gpu);
    add_probed(p, q, FEATURE_GPU_SUBGROUPS, d->gpu_subgroups, gpu);
    add_probed(p, q, FEATURE_GPU_PACKED_DOT, d->gpu_packed_dot, gpu);
    if (is_native(d)) return;
    add_probed(p, q, FEATURE_WASM_SIMD, d->wasm_simd, true);
    add_probed(p, q, FEATURE_WASM_RELAXED, relaxed, true);
    add_probed(p, q, FEATURE_WASM_THREADS, threads, true);
}

static void choose_features(Plan *p, const DeviceInfo *d, const PlanRequest *q) {
    bool browser = !is_native(d);
    choose_web_features(p, d, q);
    add_feature(p, FEATURE_PROGRESSIVE_LOADING, browser,
                browser
                    ? "tensors go where they stay as they arrive: the file is never twice in memory"
                    : "the file is mapped");
    add_feature(p, FEATURE_MEMORY_CONSTRAINED, p->memory < 2048 * MIB, "below 2 GiB of memory");
    add_feature(p, FEATURE_MEMORY_SEVERE, p->memory < 1024 * MIB, "below 1 GiB of memory");
    add_feature(p, FEATURE_MOBILE, yes(d->mobile),

                d->mobile < 0 ? "not known"
                : d->mobile   ? "a phone or tablet"
                              : "no phone or tablet");
}

/* ---- threads and the battery ---- */

enum { MAX_WEB_THREADS = 8, MAX_MOBILE_THREADS = 4, MAX_WEBKIT_THREADS = 4 };

static void choose_sleep(Plan *p, const DeviceInfo *d) {
    double level = d->battery_level;
    bool low = d->battery_charging == 0 && level >= 0 && level < 0.2, very = low && level < 0.1;
    char buf[32];
    p->feature[FEATURE_BATTERY] = low;
    if (low) {
        p->n_threads = very ? 1 : MAX(1, p->n_threads / 2);
        p->sleep_ms = very ? 20 : 8;
    }
    const char *key = plan_feature_names[FEATURE_BATTERY], *state = low ? "discharging" : "enough";
    if (level < 0)
        plan_add(p, key, "off", "there is no battery that tells");
    else
        plan_add(p, key, low ? "on" : "off", "%.0f %%, %s", level * 100,
                 d->battery_charging == 1 ? "charging" : state);
    plan_add(p, "sleep_ms", whole(buf, (uint64_t)p->sleep_ms),
             low ? "a pause after each token" : "no pause between tokens");
}

static void choose_threads(Plan *p, const DeviceInfo *d, const PlanRequest *q) {
    bool native = is_native(d);
    int64_t n = MAX(d->cores, 1);
    const char *why = "one for each core";
    char buf[32], text[128];
    if (!native && p->backend == BACKEND_WEBGPU) {
        n = 1;
        why = "the GPU computes";
    } else if (!native && !p->feature[FEATURE_WASM_THREADS]) {
        n = 1;
        why = d->isolated == 0 ? "the page is not cross-origin isolated (COOP and COEP headers)"
                               : "threads are not to be had: see wasm_threads";
    } else if (yes(d->mobile)) { /* cores of two speeds: the slow ones hold the fast ones up */
        n = MAX(1, MIN(n / 2, MAX_MOBILE_THREADS));
        why = "half of a phone's cores, the fast ones";
    } else if (is(d->engine, "webkit") && n > MAX_WEBKIT_THREADS) {
        n = MAX_WEBKIT_THREADS;
        why = "WebKit tells 4 or 8 whatever the machine has";
    } else if (!native && n > MAX_WEB_THREADS) {
        n = MAX_WEB_THREADS;
        why = "the browser names more cores; beyond 8 threads wait for each other";
    }
    if (d->cores < 0 && n == 1 && p->backend != BACKEND_WEBGPU &&
        (native || p->feature[FEATURE_WASM_THREADS]))
        why = "the number of cores is not known";
    p->n_threads = (int)n;
    choose_sleep(p, d);
    if (p->feature[FEATURE_BATTERY] && p->n_threads < n) why = "fewer, to spare the battery";
    bool can = native || (p->feature[FEATURE_WASM_THREADS] && p->backend != BACKEND_WEBGPU);
    if (q->n_threads >= 0 && (can || q->n_threads == 1)) {
        p->n_threads = (int)q->n_threads;
        why = "as asked for";
    }
    snprintf(text, sizeof text, "%s", why);
    plan_add(p, "n_threads", whole(buf, (uint64_t)p->n_threads), "%s", text);
}

/* ---- which module ---- */

static void choose_module(Plan *p, const DeviceInfo *d) {
    bool relaxed = p->feature[FEATURE_WASM_RELAXED], threads = p->feature[FEATURE_WASM_THREADS];
    if (is_native(d) || p->backend == BACKEND_NONE) return;
    if (p->backend == BACKEND_WEBGPU) {
        plan_add(p, "module", "dibit-gpu.wasm", "the one that works on a GPU");
        return;
    }
    if (threads)
        plan_add(p, "module", relaxed ? "dibit-relaxed.wasm" : "dibit-threads.wasm",
                 "with threads, %s relaxed SIMD", relaxed ? "and" : "without");
    else
        plan_add(p, "module", relaxed ? "dibit-relaxed1.wasm" : "dibit-simd.wasm",
                 "one thread, %s relaxed SIMD", relaxed ? "with" : "without");
}

/* ---- the plan ---- */

int plan_make(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q,
              DibitError *err) {
    *p = (Plan){ .variant = -1, .has_model = m != NULL, .fits = true };
    choose_memory(p, d, q);
    choose_budget(p, d, q);
    int r = choose_backend(p, d, m, q, err);
    if (r != 0) return r;
    choose_features(p, d, q);
    choose_module(p, d);
    choose_threads(p, d, q);
    plan_choose_types(p, d, m, q);
    return plan_fit(p, d, m, q, err);
}
