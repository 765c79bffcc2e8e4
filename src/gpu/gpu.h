/* gpu.h - the seam to a GPU: buffers, kernels and one queue. webgpu.c stands behind it natively
 * (the standard webgpu.h C API, loaded at run time); everything above knows only these calls, so
 * each operation is written once.
 *
 * Rules: one thread at a time uses a Gpu. Work is recorded by gpu_run() and starts at gpu_submit()
 * or gpu_read_start(), in order; a run sees what those before it wrote. Nothing is allocated by
 * gpu_run, gpu_write (of small data), gpu_submit and gpu_read_* once they have been used. */
#ifndef GPU_H
#define GPU_H
#include "base.h"

typedef struct Gpu Gpu;
typedef int GpuId; /* a buffer, a kernel or a bind; 0 is none */

typedef struct GpuCaps {
    char name[96], vendor[32], driver[128];
    bool software;  /* a CPU plays the GPU: for tests */
    bool dot4;      /* WGSL has dot4I8Packed */
    bool subgroups; /* "subgroups" can be enabled; of sizes subgroup_min..subgroup_max */
    bool f16;       /* "f16" can be enabled */
    uint32_t subgroup_min, subgroup_max;
    uint64_t max_buffer, max_binding; /* bytes */
    uint32_t storage_buffers;         /* of one kernel */
    uint32_t invocations;             /* of one workgroup */
    uint32_t workgroup_bytes;
    uint32_t workgroups;   /* of one dimension of a run */
    uint32_t offset_align; /* of bound ranges, bytes */
} GpuCaps;

typedef struct GpuOptions {
    const char *library; /* path of the WebGPU library; NULL: $DIBIT_WEBGPU_LIB, then beside the
                            program, then where the system looks */
    bool floor;          /* ask for no more than every WebGPU device has */
    bool no_wait;        /* a backend's passes return DIBIT_WAIT where they would wait */
    bool optional;       /* a backend's sessions run on the CPU where they cannot on the GPU */
    DibitAllocator memory;
} GpuOptions;

/* On success the caller owns *out and frees it with gpu_close(), which frees all objects with it.
 */
int gpu_open(Gpu **out, const GpuOptions *opt, DibitError *err);
void gpu_close(Gpu **gpu); /* NULL is fine */
const GpuCaps *gpu_caps(const Gpu *g);
/* Why the device can no longer be used, or what the first failed call said; NULL while all is well.
 */
const char *gpu_lost(const Gpu *g);
/* For tests: the device is given up. */
void gpu_lose(Gpu *g);

/* n_bytes of zeros, a multiple of 4. 0 on failure. */
GpuId gpu_buffer(Gpu *g, size_t n_bytes, DibitError *err);
/* at and n_bytes are multiples of 4. The data are copied before this returns. */
void gpu_write(Gpu *g, GpuId buffer, size_t at, const void *data, size_t n_bytes);

typedef struct GpuConst {
    const char *name; /* of an override constant of the text */
    double value;
} GpuConst;
/* Compiles a WGSL text; its entry point is main. Errors carry the compiler's words. 0 on failure.
 */
GpuId gpu_kernel(Gpu *g, const char *label, const char *wgsl, const GpuConst *consts, int n_consts,
                 DibitError *err);

typedef struct GpuRange {
    GpuId buffer;
    size_t at, n_bytes; /* at: a multiple of offset_align; n_bytes 0: to the end */
} GpuRange;
/* Binding i of group 0 gets ranges[i]. 0 on failure. */
GpuId gpu_bind(Gpu *g, GpuId kernel, const GpuRange *ranges, int n, DibitError *err);

/* Records kernel over (x, y, z) workgroups. */
void gpu_run(Gpu *g, GpuId kernel, GpuId bind, uint32_t x, uint32_t y, uint32_t z);
/* A hint: what was recorded so far is handed over by itself, so that the GPU can begin while the
 * rest is. At most GPU_CUTS of them before a submit, more do nothing. */
enum { GPU_CUTS = 7 };
void gpu_cut(Gpu *g);
int gpu_submit(Gpu *g, DibitError *err);
void gpu_drop(Gpu *g); /* forgets what was recorded and not yet submitted */
/* Submits, with a copy of a range for reading at the end. One read may be under way. */
int gpu_read_start(Gpu *g, GpuId buffer, size_t at, size_t n_bytes, DibitError *err);
/* 1: dst (what was asked for) is filled; 0: not there yet, never with `wait`; negative: failed. */
int gpu_read_ready(Gpu *g, void *dst, bool wait, DibitError *err);

void gpu_free(Gpu *g, GpuId id); /* 0 is fine */
#endif
