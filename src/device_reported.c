/* device_reported.c - what public data says of a browser by name, version and system: MDN's
 * browser-compat-data and WebAssembly's feature table, August 2026. For planning without the
 * browser alone: in one that is there everything is probed. */
#include <string.h>

#include "plan.h"

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

enum { NEVER = 1000000 };
typedef struct Reported { /* first versions of the engine, NEVER: none so far */
    const char *engine;
    int simd, relaxed, threads, memory64, jspi, bulk;
    int shared; /* SharedArrayBuffer on isolated pages */
    int opfs;
} Reported;
static const Reported table[] = {
    { "blink", 91, 114, 74, 133, 137, 75, 92, 109 },
    { "gecko", 89, 145, 79, 134, 153, 79, 79, 111 },
    { "webkit", 17, NEVER, 16, NEVER, 27, 16, 16, 16 }, /* 16.4, 15.2, 15: rounded up */
};

/* WebGPU by default, first versions. */
static int first_webgpu(const DeviceInfo *d) {
    if (is(d->engine, "webkit")) return is(d->os, "linux") ? NEVER : 26;
    if (is(d->engine, "gecko"))
        return is(d->os, "windows") ? 141 : is(d->os, "macos") ? 147 : NEVER;
    if (!is(d->engine, "blink")) return NEVER;
    if (is(d->browser, "webview")) return NEVER; /* not reported */
    return is(d->os, "android") ? 121 : is(d->os, "linux") ? 144 : 113;
}

static void assume(int8_t *probe, bool value) {
    if (*probe < 0) *probe = value;
}

void device_reported(DeviceInfo *d) {
    const Reported *row = NULL;
    int64_t v = d->engine_version;
    for (size_t i = 0; i < ARRAY_LEN(table); i++)
        if (is(d->engine, table[i].engine)) row = &table[i];
    if (!row || v < 0) return;
    bool gpu = v >= first_webgpu(d), blink = is(d->engine, "blink"),
         webkit = is(d->engine, "webkit");
    assume(&d->wasm_simd, v >= row->simd);
    assume(&d->wasm_relaxed_dot, v >= row->relaxed);
    assume(&d->wasm_relaxed_madd, v >= row->relaxed);
    assume(&d->wasm_threads, v >= row->threads);
    assume(&d->wasm_memory64, v >= row->memory64);
    assume(&d->wasm_bulk, v >= row->bulk);
    assume(&d->jspi, v >= row->jspi);
    assume(&d->shared_memory, v >= row->shared);
    assume(&d->isolated, true); /* that is the page's doing */
    assume(&d->opfs, v >= row->opfs && !(webkit && is(d->os, "linux")));
    assume(&d->webgpu, gpu);
    assume(&d->gpu_fallback, false);
    assume(&d->gpu_f16, gpu && (webkit || (blink && v >= 120)));
    assume(&d->gpu_subgroups, gpu && blink && v >= 134);
    assume(&d->gpu_packed_dot, gpu && (blink ? v >= 123 : true));
}
