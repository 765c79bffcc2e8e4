/* gpu.c - gpu.h on what the host imports, for the module dibit-gpu: web/src/gpu.js stands behind
 * it. Nothing here waits. Kernels are compiled and buffers had after the calls that ask for them
 * have returned, so the host awaits them all before the first pass, and says itself what failed. */
#include <string.h>

#include "gpu/step.h"

#define IMPORT(name) __attribute__((import_module("gpu"), import_name(#name)))
#define EXPORT(name) __attribute__((export_name(#name)))

enum { TEXT_NAME, TEXT_VENDOR, TEXT_DRIVER, TEXT_LOST };
IMPORT(text) void host_text(int which, char *out, size_t cap); /* terminated */
IMPORT(cap) double host_cap(int which);                        /* in the order of read_caps() */
IMPORT(buffer) GpuId host_buffer(size_t n_bytes);
IMPORT(write) void host_write(GpuId buffer, size_t at, const void *data, size_t n_bytes);
IMPORT(kernel)
GpuId host_kernel(const char *label, const char *wgsl, const GpuConst *consts, int n_consts);
IMPORT(bind) GpuId host_bind(GpuId kernel, const GpuRange *ranges, int n);
IMPORT(run) void host_run(GpuId kernel, GpuId bind, uint32_t x, uint32_t y, uint32_t z);
IMPORT(submit) void host_submit(void);
IMPORT(drop) void host_drop(void);
IMPORT(read_start) void host_read_start(GpuId buffer, size_t at, size_t n_bytes);
IMPORT(read_ready) int host_read_ready(void *dst);
IMPORT(free) void host_free(GpuId id);
IMPORT(close) void host_close(void);

_Static_assert(sizeof(GpuConst) == 16 && sizeof(GpuRange) == 12, "as gpu.js reads them");

struct Gpu {
    DibitAllocator memory;
    GpuCaps caps;
    char lost[200];
};

/* Makes a backend on the host's GPU, for DibitOptions.backend. */
EXPORT(dibit_gpu_backend) int dibit_gpu_backend(struct DibitBackend **out, DibitError *err);
int dibit_gpu_backend(struct DibitBackend **out, DibitError *err) {
    const GpuOptions opt = { .no_wait = true };
    return gpu_backend(out, &opt, NULL, err);
}

static void read_caps(GpuCaps *c) {
    host_text(TEXT_NAME, c->name, sizeof c->name);
    host_text(TEXT_VENDOR, c->vendor, sizeof c->vendor);
    host_text(TEXT_DRIVER, c->driver, sizeof c->driver);
    c->software = host_cap(0) != 0;
    c->dot4 = host_cap(1) != 0;
    c->subgroups = host_cap(2) != 0;
    c->f16 = host_cap(3) != 0;
    c->subgroup_min = (uint32_t)host_cap(4);
    c->subgroup_max = (uint32_t)host_cap(5);
    c->max_buffer = (uint64_t)host_cap(6);
    c->max_binding = (uint64_t)host_cap(7);
    c->storage_buffers = (uint32_t)host_cap(8);
    c->invocations = (uint32_t)host_cap(9);
    c->workgroup_bytes = (uint32_t)host_cap(10);
    c->workgroups = (uint32_t)host_cap(11);
    c->offset_align = (uint32_t)host_cap(12);
}

int gpu_open(Gpu **out, const GpuOptions *opt, DibitError *err) {
    *out = mem_calloc(&opt->memory, 1, sizeof **out);
    if (!*out) return fail(err, DIBIT_E_MEMORY, "no memory for a GPU");
    (*out)->memory = opt->memory;
    read_caps(&(*out)->caps);
    return 0;
}

void gpu_close(Gpu **gpu) {
    Gpu *g = gpu ? *gpu : NULL;
    if (!g) return;
    host_close();
    DibitAllocator memory = g->memory;
    mem_free(&memory, g);
    *gpu = NULL;
}

const GpuCaps *gpu_caps(const Gpu *g) {
    return &g->caps;
}

const char *gpu_lost(const Gpu *g) {
    host_text(TEXT_LOST, (char *)(uintptr_t)g->lost, sizeof g->lost);
    return g->lost[0] ? g->lost : NULL;
}

static int check_lost(const Gpu *g, DibitError *err) {
    const char *why = gpu_lost(g);
    return why ? fail(err, DIBIT_E_DEVICE, "the GPU failed: %s", why) : 0;
}

GpuId gpu_buffer(Gpu *g, size_t n_bytes, DibitError *err) {
    if (check_lost(g, err) != 0) return 0;
    if (n_bytes > g->caps.max_buffer) {
        fail(err, DIBIT_E_MEMORY, "a GPU buffer of %zu bytes; this device allows %llu", n_bytes,
             (unsigned long long)g->caps.max_buffer);
        return 0;
    }
    GpuId id = host_buffer(MAX(n_bytes, (size_t)4));
    if (!id) fail(err, DIBIT_E_MEMORY, "no GPU memory for %zu bytes", n_bytes);
    return id;
}

void gpu_write(Gpu *g, GpuId buffer, size_t at, const void *data, size_t n_bytes) {
    (void)g;
    if (n_bytes) host_write(buffer, at, data, n_bytes);
}

GpuId gpu_kernel(Gpu *g, const char *label, const char *wgsl, const GpuConst *consts, int n_consts,
                 DibitError *err) {
    return check_lost(g, err) ? 0 : host_kernel(label, wgsl, consts, n_consts);
}

GpuId gpu_bind(Gpu *g, GpuId kernel, const GpuRange *ranges, int n, DibitError *err) {
    return check_lost(g, err) ? 0 : host_bind(kernel, ranges, n);
}

void gpu_run(Gpu *g, GpuId kernel, GpuId bind, uint32_t x, uint32_t y, uint32_t z) {
    (void)g;
    host_run(kernel, bind, x, y, z);
}

void gpu_cut(Gpu *g) {
    (void)g; /* the browser's own process works while this one records */
}

int gpu_submit(Gpu *g, DibitError *err) {
    host_submit();
    return check_lost(g, err);
}

void gpu_drop(Gpu *g) {
    (void)g;
    host_drop();
}

int gpu_read_start(Gpu *g, GpuId buffer, size_t at, size_t n_bytes, DibitError *err) {
    int r = check_lost(g, err);
    if (r != 0) return r;
    host_read_start(buffer, at, n_bytes);
    return check_lost(g, err);
}

int gpu_read_ready(Gpu *g, void *dst, bool wait, DibitError *err) {
    int r = check_lost(g, err);
    if (r != 0) return r;
    do r = host_read_ready(dst);
    while (r == 0 &&
           wait); /* never in the package: there the host must have its turn. That of tests waits */
    return r < 0 ? check_lost(g, err) : r;
}

void gpu_free(Gpu *g, GpuId id) {
    (void)g;
    if (id) host_free(id);
}
