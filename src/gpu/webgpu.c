/* webgpu.c - gpu.h on the standard webgpu.h C API, as Dawn of mid-2025 exports it. The library is
 * loaded when a GPU is asked for and never else; its version is told by a symbol that later ones
 * renamed. Only what is used here is declared; sizes and offsets are checked against that header's.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu.h"

/* ---- declarations: every descriptor begins with `next` ---- */

typedef struct WgStr {
    const char *p;
    size_t n; /* SIZE_MAX: terminated by a zero; with p NULL: none */
} WgStr;
typedef struct WgChain {
    struct WgChain *next;
    uint32_t type;
} WgChain;
typedef void (*WgFn)(void);
typedef struct WgCb { /* passed by value */
    void *next;
    uint32_t mode; /* WG_WAIT_ONLY, .. */
    WgFn fn;
    void *user, *user2;
} WgCb;
typedef struct WgErrorCb {
    void *next;
    WgFn fn;
    void *user, *user2;
} WgErrorCb;
typedef struct WgFuture {
    uint64_t id;
} WgFuture;
typedef struct WgWait {
    WgFuture future;
    uint32_t done;
} WgWait;
typedef struct WgInstanceDesc {
    void *next;
    struct {
        void *next;
        uint32_t timed_wait;
        size_t timed_wait_max;
    } caps;
} WgInstanceDesc;
typedef struct WgAdapterOptions {
    void *next;
    uint32_t level, power, fallback, backend;
    void *surface;
} WgAdapterOptions;
typedef struct WgInfo {
    void *next;
    WgStr vendor, arch, device, description;
    uint32_t backend, type, vendor_id, device_id, subgroup_min, subgroup_max;
} WgInfo;
typedef struct WgLimits {
    void *next;
    uint32_t textures[4], bind_groups, groups_and_buffers, bindings_per_group, dynamic_uniform,
        dynamic_storage, sampled, samplers, storage_buffers, storage_textures, uniform_buffers;
    uint64_t uniform_binding, storage_binding;
    uint32_t uniform_align, storage_align, vertex_buffers;
    uint64_t buffer_size;
    uint32_t vertex_attributes, vertex_stride, inter_stage, color_attachments, color_bytes,
        workgroup_storage, workgroup_invocations, workgroup_x, workgroup_y, workgroup_z, workgroups,
        stage_limits[4];
} WgLimits;
typedef struct WgLabel { /* descriptors of queue, encoder, command buffer, shader module */
    void *next;
    WgStr label;
} WgLabel;
typedef struct WgDeviceDesc {
    void *next;
    WgStr label;
    size_t n_features;
    const uint32_t *features;
    const WgLimits *limits;
    WgLabel queue;
    WgCb lost;
    WgErrorCb error;
} WgDeviceDesc;
typedef struct WgBufferDesc {
    void *next;
    WgStr label;
    uint64_t usage, size;
    uint32_t mapped;
} WgBufferDesc;
typedef struct WgSource {
    WgChain chain;
    WgStr code;
} WgSource;
typedef struct WgConst {
    void *next;
    WgStr key;
    double value;
} WgConst;
typedef struct WgPipelineDesc {
    void *next;
    WgStr label;
    void *layout;
    struct {
        void *next, *module;
        WgStr entry;
        size_t n_consts;
        const WgConst *consts;
    } compute;
} WgPipelineDesc;
typedef struct WgEntry {
    void *next;
    uint32_t binding;
    void *buffer;
    uint64_t at, size;
    void *sampler, *view;
} WgEntry;
typedef struct WgGroupDesc {
    void *next;
    WgStr label;
    void *layout;
    size_t n;
    const WgEntry *entries;
} WgGroupDesc;
_Static_assert(sizeof(void *) != 8 || (sizeof(WgCb) == 40 && sizeof(WgInstanceDesc) == 32 &&
                                       sizeof(WgAdapterOptions) == 32 && sizeof(WgInfo) == 96 &&
                                       sizeof(WgLimits) == 168 && sizeof(WgDeviceDesc) == 144 &&
                                       sizeof(WgBufferDesc) == 48 && sizeof(WgSource) == 32 &&
                                       sizeof(WgConst) == 32 && sizeof(WgPipelineDesc) == 80 &&
                                       sizeof(WgEntry) == 56 && sizeof(WgGroupDesc) == 48),
               "sizes as in webgpu.h");

enum { WG_OK = 1, WG_WAIT_ONLY = 1, WG_SPONTANEOUS = 3, WG_SOURCE_WGSL = 2 };
enum { WG_LEVEL_CORE = 2, WG_POWER_HIGH = 2, WG_TYPE_CPU = 3, WG_BACKEND_NULL = 1 };
enum { WG_F16 = 0xa, WG_SUBGROUPS = 0x11, WG_LANGUAGE_DOT4 = 2 };
enum { WG_MAP_READ = 1, WG_COPY_SRC = 4, WG_COPY_DST = 8, WG_STORAGE = 0x80 };
enum { WG_VALIDATION = 1, WG_OUT_OF_MEMORY = 2 }; /* error filters */
enum { WG_NO_ERROR = 1 };                         /* error type */

// clang-format off
#define WG_LIST(X) \
    X(void *, CreateInstance, (const WgInstanceDesc *)) \
    X(uint32_t, InstanceHasWGSLLanguageFeature, (void *, uint32_t)) \
    X(WgFuture, InstanceRequestAdapter, (void *, const WgAdapterOptions *, WgCb)) \
    X(uint32_t, InstanceWaitAny, (void *, size_t, WgWait *, uint64_t)) \
    X(void, InstanceProcessEvents, (void *)) \
    X(uint32_t, AdapterGetInfo, (void *, WgInfo *)) \
    X(void, AdapterInfoFreeMembers, (WgInfo)) \
    X(uint32_t, AdapterGetLimits, (void *, WgLimits *)) \
    X(uint32_t, AdapterHasFeature, (void *, uint32_t)) \
    X(WgFuture, AdapterRequestDevice, (void *, const WgDeviceDesc *, WgCb)) \
    X(uint32_t, DeviceGetLimits, (void *, WgLimits *)) \
    X(void *, DeviceGetQueue, (void *)) \
    X(void *, DeviceCreateBuffer, (void *, const WgBufferDesc *)) \
    X(void *, DeviceCreateShaderModule, (void *, const WgLabel *)) \
    X(void *, DeviceCreateComputePipeline, (void *, const WgPipelineDesc *)) \
    X(void *, ComputePipelineGetBindGroupLayout, (void *, uint32_t)) \
    X(void *, DeviceCreateBindGroup, (void *, const WgGroupDesc *)) \
    X(void *, DeviceCreateCommandEncoder, (void *, const WgLabel *)) \
    X(void, DevicePushErrorScope, (void *, uint32_t)) \
    X(WgFuture, DevicePopErrorScope, (void *, WgCb)) \
    X(void, DeviceDestroy, (void *)) \
    X(void *, CommandEncoderBeginComputePass, (void *, const void *)) \
    X(void, CommandEncoderCopyBufferToBuffer, \
      (void *, void *, uint64_t, void *, uint64_t, uint64_t)) \
    X(void *, CommandEncoderFinish, (void *, const WgLabel *)) \
    X(void, ComputePassEncoderSetPipeline, (void *, void *)) \
    X(void, ComputePassEncoderSetBindGroup, (void *, uint32_t, void *, size_t, const uint32_t *)) \
    X(void, ComputePassEncoderDispatchWorkgroups, (void *, uint32_t, uint32_t, uint32_t)) \
    X(void, ComputePassEncoderEnd, (void *)) \
    X(void, QueueSubmit, (void *, size_t, void *const *)) \
    X(void, QueueWriteBuffer, (void *, void *, uint64_t, const void *, size_t)) \
    X(WgFuture, BufferMapAsync, (void *, uint64_t, size_t, size_t, WgCb)) \
    X(const void *, BufferGetConstMappedRange, (void *, size_t, size_t)) \
    X(void, BufferUnmap, (void *)) \
    X(void, BufferDestroy, (void *)) \
    X(void, BufferRelease, (void *)) \
    X(void, ComputePipelineRelease, (void *)) \
    X(void, BindGroupRelease, (void *)) \
    X(void, BindGroupLayoutRelease, (void *)) \
    X(void, ShaderModuleRelease, (void *)) \
    X(void, CommandEncoderRelease, (void *)) \
    X(void, CommandBufferRelease, (void *)) \
    X(void, ComputePassEncoderRelease, (void *)) \
    X(void, QueueRelease, (void *)) \
    X(void, DeviceRelease, (void *)) \
    X(void, AdapterRelease, (void *)) \
    X(void, InstanceRelease, (void *))
// clang-format on

typedef struct Wg {
#define X(ret, name, args) ret(*name) args;
    WG_LIST(X)
#undef X
} Wg;

typedef enum Kind { FREE, BUFFER, KERNEL, BIND } Kind;
typedef struct Slot {
    Kind kind;
    void *object;
    size_t n_bytes; /* of a buffer */
} Slot;

struct Gpu {
    Wg wg;
    DibitAllocator memory;
    GpuCaps caps;
    void *library, *instance, *adapter, *device, *queue;
    void *cuts[GPU_CUTS]; /* command buffers before what is recorded */
    int n_cuts;
    void *encoder, *pass; /* what is recorded, or NULL */
    void *kernel_set;     /* pipeline that the pass has */
    void *staging;        /* of reads */
    size_t staging_bytes, read_bytes;
    bool reading;
    WgFuture read_future;
    uint32_t read_status; /* 0 while it is under way */
    Slot *slots;
    int n_slots, cap_slots;
    bool closing;
    char lost[200]; /* "" while all is well */
};

static const WgStr none = { NULL, SIZE_MAX };

static WgStr text(const char *s) {
    return (WgStr){ s, SIZE_MAX };
}

/* First line's worth of a message, for an error's 240 characters. */
static void copy_text(char *dst, size_t cap, WgStr s) {
    size_t n = !s.p ? 0 : s.n == SIZE_MAX ? strlen(s.p) : s.n;
    n = MIN(n, cap - 1);
    if (n) memcpy(dst, s.p, n);
    dst[n] = 0;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)dst[i] < 32) dst[i] = ' ';
}

/* ---- the library ---- */

#ifdef __APPLE__
#define LIBRARY "libwebgpu_wrapper.dylib"
#else
#define LIBRARY "libwebgpu_wrapper.so"
#endif
#define HOW_TO_GET                                                                                 \
    "npm package bun-webgpu-linux-x64 0.1.7 (or -darwin-arm64, ..) has it; name it by "            \
    "DIBIT_WEBGPU_LIB"

static void *beside_program(void) {
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof LIBRARY - 1);
    if (n <= 0) return NULL;
    path[n] = 0;
    char *slash = strrchr(path, '/');
    if (!slash) return NULL;
    memcpy(slash + 1, LIBRARY, sizeof LIBRARY);
    return access(path, R_OK) == 0 ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static int load(Gpu *g, const char *path, DibitError *err) {
    if (!path) path = getenv("DIBIT_WEBGPU_LIB");
    if (path && *path)
        g->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    else if (!(g->library = beside_program()))
        g->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!g->library)
        return fail(err, DIBIT_E_UNSUPPORTED, "no WebGPU library: %.90s; " HOW_TO_GET, dlerror());
    if (!dlsym(g->library, "wgpuComputePassEncoderSetImmediateData"))
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "the WebGPU library has another version of webgpu.h; " HOW_TO_GET);
    static const struct {
        const char *name;
        size_t at;
    } functions[] = {
#define X(ret, name, args) { "wgpu" #name, offsetof(Wg, name) },
        WG_LIST(X)
#undef X
    };
    for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
        void *f = dlsym(g->library, functions[i].name);
        if (!f)
            return fail(err, DIBIT_E_UNSUPPORTED, "the WebGPU library has no %s; " HOW_TO_GET,
                        functions[i].name);
        memcpy((char *)&g->wg + functions[i].at, &f, sizeof f);
    }
    return 0;
}

/* ---- waiting ---- */

static void wait_for(Gpu *g, WgFuture f) {
    WgWait w = { f, 0 };
    g->wg.InstanceWaitAny(g->instance, 1, &w, UINT64_MAX);
}

typedef struct Answer {
    uint32_t status;
    void *object;
    char text[200];
} Answer;

static void on_object(uint32_t status, void *object, WgStr message, void *user, void *unused) {
    Answer *a = user;
    (void)unused;
    a->status = status;
    a->object = object;
    copy_text(a->text, sizeof a->text, message);
}

static void on_scope(uint32_t status, uint32_t type, WgStr message, void *user, void *unused) {
    Answer *a = user;
    (void)unused;
    a->status = status == WG_OK && type == WG_NO_ERROR ? WG_OK : 0;
    copy_text(a->text, sizeof a->text, message);
}

static void on_lost(void *const *device, uint32_t reason, WgStr message, void *user, void *unused) {
    Gpu *g = user;
    (void)device;
    (void)reason;
    (void)unused;
    if (g->closing || g->lost[0]) return;
    copy_text(g->lost, sizeof g->lost, message);
    if (!g->lost[0]) memcpy(g->lost, "device lost", 12);
}

static void on_error(void *const *device, uint32_t type, WgStr message, void *user, void *unused) {
    Gpu *g = user;
    (void)device;
    (void)type;
    (void)unused;
    if (!g->closing && !g->lost[0]) copy_text(g->lost, sizeof g->lost, message);
}

static WgCb callback(void *fn_as_object, uint32_t mode, void *user) {
    WgCb cb = { NULL, mode, NULL, user, NULL };
    memcpy(&cb.fn, &fn_as_object, sizeof cb.fn);
    return cb;
}
#define CALLBACK(fn, mode, user) callback((void *)(uintptr_t)(fn), mode, user)

static void scope_begin(Gpu *g, uint32_t filter) {
    g->wg.DevicePushErrorScope(g->device, filter);
}

/* Whether nothing went wrong since scope_begin(). */
static bool scope_end(Gpu *g, Answer *a) {
    *a = (Answer){ 0 };
    wait_for(g, g->wg.DevicePopErrorScope(g->device, CALLBACK(on_scope, WG_WAIT_ONLY, a)));
    return a->status == WG_OK;
}

/* ---- open and close ---- */

static void read_caps(Gpu *g, bool with_floor) {
    const Wg *w = &g->wg;
    WgInfo info = { 0 };
    WgLimits lim = { 0 };
    w->AdapterGetInfo(g->adapter, &info);
    w->DeviceGetLimits(g->device, &lim);
    GpuCaps *c = &g->caps;
    copy_text(c->name, sizeof c->name, info.device);
    copy_text(c->vendor, sizeof c->vendor, info.vendor);
    copy_text(c->driver, sizeof c->driver, info.description);
    c->software = info.type == WG_TYPE_CPU;
    c->subgroup_min = info.subgroup_min;
    c->subgroup_max = info.subgroup_max;
    w->AdapterInfoFreeMembers(info);
    c->dot4 = w->InstanceHasWGSLLanguageFeature(g->instance, WG_LANGUAGE_DOT4) != 0;
    c->subgroups = !with_floor && w->AdapterHasFeature(g->adapter, WG_SUBGROUPS) != 0;
    c->f16 = !with_floor && w->AdapterHasFeature(g->adapter, WG_F16) != 0;
    c->max_buffer = lim.buffer_size;
    c->max_binding = lim.storage_binding;
    c->storage_buffers = lim.storage_buffers;
    c->invocations = lim.workgroup_invocations;
    c->workgroup_bytes = lim.workgroup_storage;
    c->workgroups = lim.workgroups;
    c->offset_align = lim.storage_align;
}

static int open_device(Gpu *g, const GpuOptions *opt, DibitError *err) {
    const Wg *w = &g->wg;
    WgInstanceDesc id = { NULL, { NULL, 1, 8 } };
    if (!(g->instance = w->CreateInstance(&id)))
        return fail(err, DIBIT_E_UNSUPPORTED, "the WebGPU library gives no instance");
    WgAdapterOptions ao = { .level = WG_LEVEL_CORE, .power = WG_POWER_HIGH };
    Answer a = { 0 };
    wait_for(g, w->InstanceRequestAdapter(g->instance, &ao, CALLBACK(on_object, WG_WAIT_ONLY, &a)));
    if (!(g->adapter = a.object))
        return fail(err, DIBIT_E_UNSUPPORTED, "no GPU adapter: %.180s",
                    a.text[0] ? a.text : "none is there");
    WgInfo info = { 0 };
    w->AdapterGetInfo(g->adapter, &info);
    w->AdapterInfoFreeMembers(info);
    if (info.backend ==
        WG_BACKEND_NULL) /* what is left where no driver works; it computes nothing */
        return fail(err, DIBIT_E_UNSUPPORTED, "no GPU adapter: no driver was found");
    WgLimits lim = { 0 };
    w->AdapterGetLimits(g->adapter, &lim);
    uint32_t features[2];
    WgDeviceDesc d = { .label = none, .features = features, .queue = { NULL, none } };
    if (!opt->floor) {
        d.limits = &lim;
        if (w->AdapterHasFeature(g->adapter, WG_SUBGROUPS)) features[d.n_features++] = WG_SUBGROUPS;
        if (w->AdapterHasFeature(g->adapter, WG_F16)) features[d.n_features++] = WG_F16;
    }
    d.lost = CALLBACK(on_lost, WG_SPONTANEOUS, g);
    d.error = (WgErrorCb){ NULL, CALLBACK(on_error, 0, NULL).fn, g, NULL };
    a = (Answer){ 0 };
    wait_for(g, w->AdapterRequestDevice(g->adapter, &d, CALLBACK(on_object, WG_WAIT_ONLY, &a)));
    if (!(g->device = a.object))
        return fail(err, DIBIT_E_UNSUPPORTED, "no GPU device: %.180s", a.text);
    g->queue = w->DeviceGetQueue(g->device);
    read_caps(g, opt->floor);
    return 0;
}

int gpu_open(Gpu **out, const GpuOptions *options, DibitError *err) {
    GpuOptions opt = options ? *options : (GpuOptions){ 0 };
    *out = NULL;
    Gpu *g = mem_calloc(&opt.memory, 1, sizeof *g);
    if (!g) return fail(err, DIBIT_E_MEMORY, "no memory for a GPU");
    g->memory = opt.memory;
    int r = load(g, opt.library, err);
    if (r == 0) r = open_device(g, &opt, err);
    if (r != 0)
        gpu_close(&g);
    else
        *out = g;
    return r;
}

static void release_slot(Gpu *g, Slot *s) {
    if (s->kind == BUFFER) {
        g->wg.BufferDestroy(s->object);
        g->wg.BufferRelease(s->object);
    } else if (s->kind == KERNEL) {
        g->wg.ComputePipelineRelease(s->object);
    } else if (s->kind == BIND) {
        g->wg.BindGroupRelease(s->object);
    }
    *s = (Slot){ FREE, NULL, 0 };
}

/* The first instance stays too, so that the driver does: an H100's that was unloaded was not always
 * found again (VK_ERROR_INCOMPATIBLE_DRIVER), which a device that is taken anew must be. */
static bool keep_first(void *instance) {
    static _Atomic(void *) first;
    void *none_yet = NULL;
    return atomic_compare_exchange_strong(&first, &none_yet, instance);
}

void gpu_close(Gpu **gpu) {
    Gpu *g = gpu ? *gpu : NULL;
    if (!g) return;
    g->closing = true;
    if (g->device) gpu_drop(g);
    for (int i = 0; i < g->n_slots; i++) release_slot(g, &g->slots[i]);
    mem_free(&g->memory, g->slots);
    if (g->staging) {
        g->wg.BufferDestroy(g->staging);
        g->wg.BufferRelease(g->staging);
    }
    if (g->queue) g->wg.QueueRelease(g->queue);
    if (g->device) {
        g->wg.DeviceDestroy(g->device);
        g->wg.InstanceProcessEvents(g->instance); /* the end of a read that nobody waited for */
        g->wg.DeviceRelease(g->device);
    }
    if (g->adapter) g->wg.AdapterRelease(g->adapter);
    if (g->instance && !keep_first(g->instance)) g->wg.InstanceRelease(g->instance);
    /* The library stays: threads of the driver may still be in it. */
    DibitAllocator memory = g->memory;
    mem_free(&memory, g);
    *gpu = NULL;
}

const GpuCaps *gpu_caps(const Gpu *g) {
    return &g->caps;
}

const char *gpu_lost(const Gpu *g) {
    return g->lost[0] ? g->lost : NULL;
}

void gpu_lose(Gpu *g) {
    gpu_drop(g);
    if (g->lost[0]) return;
    memcpy(g->lost, "the device was given up", 24);
    g->wg.DeviceDestroy(g->device);
}

static int check_lost(const Gpu *g, DibitError *err) {
    return g->lost[0] ? fail(err, DIBIT_E_DEVICE, "the GPU failed: %s", g->lost) : 0;
}

/* ---- objects ---- */

static GpuId add_slot(Gpu *g, Kind kind, void *object, size_t n_bytes) {
    int i = 0;
    while (i < g->n_slots && g->slots[i].kind != FREE) i++;
    if (i == g->cap_slots) {
        int cap = 2 * g->cap_slots + 64;
        Slot *more = mem_calloc(&g->memory, (size_t)cap, sizeof *more);
        if (!more) return 0;
        if (i) memcpy(more, g->slots, (size_t)i * sizeof *more);
        mem_free(&g->memory, g->slots);
        g->slots = more;
        g->cap_slots = cap;
    }
    g->n_slots = MAX(g->n_slots, i + 1);
    g->slots[i] = (Slot){ kind, object, n_bytes };
    return i + 1;
}

static GpuId keep(Gpu *g, Kind kind, void *object, size_t n_bytes, DibitError *err) {
    GpuId id = add_slot(g, kind, object, n_bytes);
    if (id) return id;
    Slot s = { kind, object, n_bytes };
    release_slot(g, &s);
    fail(err, DIBIT_E_MEMORY, "no memory for a GPU object");
    return 0;
}

static Slot *slot(const Gpu *g, GpuId id, Kind kind) {
    assert(id > 0 && id <= g->n_slots && g->slots[id - 1].kind == kind);
    (void)kind;
    return &g->slots[id - 1];
}

void gpu_free(Gpu *g, GpuId id) {
    if (id) release_slot(g, &g->slots[id - 1]);
}

static void *create_buffer(Gpu *g, size_t n_bytes, uint64_t usage, DibitError *err) {
    if (check_lost(g, err) != 0) return NULL;
    if (n_bytes > g->caps.max_buffer) {
        fail(err, DIBIT_E_MEMORY, "a GPU buffer of %zu bytes; this device allows %llu", n_bytes,
             (unsigned long long)g->caps.max_buffer);
        return NULL;
    }
    WgBufferDesc d = { NULL, none, usage, n_bytes, 0 };
    Answer a;
    scope_begin(g, WG_OUT_OF_MEMORY);
    void *b = g->wg.DeviceCreateBuffer(g->device, &d);
    if (scope_end(g, &a) && b) return b;
    if (b) g->wg.BufferRelease(b);
    fail(err, DIBIT_E_MEMORY, "no GPU memory for %zu bytes: %.120s", n_bytes, a.text);
    return NULL;
}

GpuId gpu_buffer(Gpu *g, size_t n_bytes, DibitError *err) {
    assert(n_bytes % 4 == 0);
    void *b = create_buffer(g, MAX(n_bytes, 4), WG_STORAGE | WG_COPY_SRC | WG_COPY_DST, err);
    return b ? keep(g, BUFFER, b, n_bytes, err) : 0;
}

void gpu_write(Gpu *g, GpuId buffer, size_t at, const void *data, size_t n_bytes) {
    Slot *s = slot(g, buffer, BUFFER);
    assert(at % 4 == 0 && n_bytes % 4 == 0 && at + n_bytes <= s->n_bytes);
    if (!g->lost[0] && n_bytes) g->wg.QueueWriteBuffer(g->queue, s->object, at, data, n_bytes);
}

GpuId gpu_kernel(Gpu *g, const char *label, const char *wgsl, const GpuConst *consts, int n_consts,
                 DibitError *err) {
    enum { MAX_CONSTS = 32 };
    WgConst c[MAX_CONSTS];
    assert(n_consts <= MAX_CONSTS);
    if (check_lost(g, err) != 0) return 0;
    for (int i = 0; i < n_consts; i++)
        c[i] = (WgConst){ NULL, text(consts[i].name), consts[i].value };
    WgSource source = { { NULL, WG_SOURCE_WGSL }, text(wgsl) };
    WgLabel ml = { &source, text(label) };
    Answer a;
    scope_begin(g, WG_VALIDATION);
    void *module = g->wg.DeviceCreateShaderModule(g->device, &ml);
    WgPipelineDesc d = {
        NULL, text(label), NULL, { NULL, module, text("main"), (size_t)n_consts, c }
    };
    void *pipeline = g->wg.DeviceCreateComputePipeline(g->device, &d);
    bool ok = scope_end(g, &a) && pipeline;
    if (module) g->wg.ShaderModuleRelease(module);
    if (ok) return keep(g, KERNEL, pipeline, 0, err);
    if (pipeline) g->wg.ComputePipelineRelease(pipeline);
    fail(err, DIBIT_E_UNSUPPORTED, "GPU kernel %s: %.190s", label, a.text);
    return 0;
}

GpuId gpu_bind(Gpu *g, GpuId kernel, const GpuRange *ranges, int n, DibitError *err) {
    enum { MAX_BINDINGS = 16 };
    WgEntry e[MAX_BINDINGS];
    assert(n <= MAX_BINDINGS);
    if (check_lost(g, err) != 0) return 0;
    for (int i = 0; i < n; i++) {
        const Slot *b = slot(g, ranges[i].buffer, BUFFER);
        size_t size = ranges[i].n_bytes ? ranges[i].n_bytes : b->n_bytes - ranges[i].at;
        e[i] = (WgEntry){ NULL, (uint32_t)i, b->object, ranges[i].at, size, NULL, NULL };
    }
    Answer a;
    scope_begin(g, WG_VALIDATION);
    void *layout = g->wg.ComputePipelineGetBindGroupLayout(slot(g, kernel, KERNEL)->object, 0);
    WgGroupDesc d = { NULL, none, layout, (size_t)n, e };
    void *group = g->wg.DeviceCreateBindGroup(g->device, &d);
    bool ok = scope_end(g, &a) && group;
    if (layout) g->wg.BindGroupLayoutRelease(layout);
    if (ok) return keep(g, BIND, group, 0, err);
    if (group) g->wg.BindGroupRelease(group);
    fail(err, DIBIT_E_UNSUPPORTED, "GPU bindings: %.200s", a.text);
    return 0;
}

/* ---- work ---- */

static void end_pass(Gpu *g) {
    if (!g->pass) return;
    g->wg.ComputePassEncoderEnd(g->pass);
    g->wg.ComputePassEncoderRelease(g->pass);
    g->pass = g->kernel_set = NULL;
}

void gpu_run(Gpu *g, GpuId kernel, GpuId bind, uint32_t x, uint32_t y, uint32_t z) {
    if (g->lost[0]) return;
    if (!g->encoder) g->encoder = g->wg.DeviceCreateCommandEncoder(g->device, NULL);
    if (!g->pass) g->pass = g->wg.CommandEncoderBeginComputePass(g->encoder, NULL);
    void *pipeline = slot(g, kernel, KERNEL)->object;
    if (pipeline != g->kernel_set) g->wg.ComputePassEncoderSetPipeline(g->pass, pipeline);
    g->kernel_set = pipeline;
    g->wg.ComputePassEncoderSetBindGroup(g->pass, 0, slot(g, bind, BIND)->object, 0, NULL);
    g->wg.ComputePassEncoderDispatchWorkgroups(g->pass, x, y, z);
}

static void *finish(Gpu *g) {
    end_pass(g);
    void *commands = g->wg.CommandEncoderFinish(g->encoder, NULL);
    g->wg.CommandEncoderRelease(g->encoder);
    g->encoder = NULL;
    return commands;
}

void gpu_cut(Gpu *g) {
    if (g->encoder && g->n_cuts < GPU_CUTS) g->cuts[g->n_cuts++] = finish(g);
}

int gpu_submit(Gpu *g, DibitError *err) {
    int r = check_lost(g, err);
    if (r != 0) return r;
    void *last = g->encoder ? finish(g) : NULL;
    for (int i = 0; i <= g->n_cuts; i++) {
        void *commands = i < g->n_cuts ? g->cuts[i] : last;
        if (!commands) continue;
        g->wg.QueueSubmit(g->queue, 1, &commands);
        g->wg.CommandBufferRelease(commands);
    }
    g->n_cuts = 0;
    return check_lost(g, err);
}

void gpu_drop(Gpu *g) {
    for (int i = 0; i < g->n_cuts; i++) g->wg.CommandBufferRelease(g->cuts[i]);
    g->n_cuts = 0;
    if (!g->encoder) return;
    end_pass(g);
    g->wg.CommandEncoderRelease(g->encoder);
    g->encoder = NULL;
}

static void on_mapped(uint32_t status, WgStr message, void *user, void *unused) {
    Gpu *g = user;
    (void)message;
    (void)unused;
    g->read_status = status;
}

int gpu_read_start(Gpu *g, GpuId buffer, size_t at, size_t n_bytes, DibitError *err) {
    int r = check_lost(g, err);
    if (r != 0) return r;
    const Slot *s = slot(g, buffer, BUFFER);
    assert(!g->reading && n_bytes > 0 && at + n_bytes <= s->n_bytes);
    if (n_bytes > g->staging_bytes) {
        if (g->staging) g->wg.BufferRelease(g->staging);
        g->staging_bytes = 0;
        if (!(g->staging = create_buffer(g, n_bytes, WG_MAP_READ | WG_COPY_DST, err)))
            return DIBIT_E_MEMORY;
        g->staging_bytes = n_bytes;
    }
    if (!g->encoder) g->encoder = g->wg.DeviceCreateCommandEncoder(g->device, NULL);
    end_pass(g);
    g->wg.CommandEncoderCopyBufferToBuffer(g->encoder, s->object, at, g->staging, 0, n_bytes);
    if ((r = gpu_submit(g, err)) != 0) return r;
    g->reading = true;
    g->read_bytes = n_bytes;
    g->read_status = 0;
    g->read_future = g->wg.BufferMapAsync(g->staging, WG_MAP_READ, 0, n_bytes,
                                          CALLBACK(on_mapped, WG_WAIT_ONLY, g));
    return 0;
}

int gpu_read_ready(Gpu *g, void *dst, bool wait, DibitError *err) {
    assert(g->reading);
    WgWait w = { g->read_future, 0 };
    g->wg.InstanceWaitAny(g->instance, 1, &w, wait ? UINT64_MAX : 0);
    if (g->read_status == 0 && !wait && !g->lost[0]) return 0;
    g->reading = false;
    if (g->read_status != WG_OK || g->lost[0])
        return fail(err, DIBIT_E_DEVICE, "the GPU failed: %s",
                    g->lost[0] ? g->lost : "a read was not answered");
    memcpy(dst, g->wg.BufferGetConstMappedRange(g->staging, 0, g->read_bytes), g->read_bytes);
    g->wg.BufferUnmap(g->staging);
    return 1;
}
