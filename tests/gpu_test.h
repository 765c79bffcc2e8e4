/* gpu_test.h - a GPU for tests: the one of the environment, else a software one where it is
 * installed; and the lists of one operation. */
#ifndef GPU_TEST_H
#define GPU_TEST_H
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#undef fail /* base.h has its own */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/ops_gpu.h"

#define SKIPPED      77
#define TEST_LIBRARY BUILD_DIR "/npm/node_modules/bun-webgpu-linux-x64/libwebgpu_wrapper.so"
#define SOFTWARE_ICD "/usr/lib/chromium/vk_swiftshader_icd.json"

/* The library of the environment or of tools/deps.sh; DIBIT_GPU_REAL=1: the machine's own GPU. */
static inline GpuOptions test_gpu_options(void) {
    const char *real = getenv("DIBIT_GPU_REAL");
    GpuOptions opt = { 0 };
    if (!getenv("DIBIT_WEBGPU_LIB") && access(TEST_LIBRARY, R_OK) == 0) opt.library = TEST_LIBRARY;
    if (!(real && *real == '1') && access(SOFTWARE_ICD, R_OK) == 0)
        setenv("VK_ICD_FILENAMES", SOFTWARE_ICD, 0);
    return opt;
}

/* NULL, with the reason on stdout, where there is no library or no adapter. */
static inline Gpu *test_gpu(bool floor) {
    Gpu *g;
    DibitError err;
    GpuOptions opt = test_gpu_options();
    opt.floor = floor;
    if (gpu_open(&g, &opt, &err) == 0) return g;
    printf("skipped: %s\n", err.text);
    return NULL;
}

/* usage of such a program: [PATTERN of test names]. False, with the reason, without an adapter. */
#ifndef __wasm__
static inline bool test_gpu_begin(int n, char **arg) {
    Gpu *g = test_gpu(false);
    if (!g) return false;
    gpu_close(&g);
    if (n > 1) cmocka_set_test_filter(arg[1]);
    return true;
}
#endif

static inline double test_random(void) { /* -1..1, splitmix64 */
    static uint64_t test_state = 1;
    uint64_t x = test_state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (double)(int64_t)(x ^ (x >> 31)) * 0x1p-63;
}

/* Nearly normal, of variance 1. */
static inline void test_fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (float)((test_random() + test_random() + test_random()));
}

static inline void must(GpuOps *o) {
    DibitError err;
    if (gpu_ops_error(o, &err) == 0) return;
    print_error("%s\n", err.text);
    assert_true(false);
}

static inline GpuId test_upload(GpuOps *o, const void *data, size_t n_bytes) {
    uint8_t *padded = calloc(1, (n_bytes + 255) / 256 * 256);
    memcpy(padded, data, n_bytes);
    GpuId id = gpu_ops_buffer(o, n_bytes);
    must(o);
    gpu_write(o->gpu, id, 0, padded, (n_bytes + 255) / 256 * 256);
    free(padded);
    return id;
}

static inline void test_read(GpuOps *o, GpuId buffer, void *out, size_t n_bytes) {
    DibitError err;
    int r = gpu_read_start(o->gpu, buffer, 0, n_bytes, &err);
    if (r == 0) r = gpu_read_ready(o->gpu, out, true, &err);
    if (r != 1) print_error("%s\n", err.text);
    assert_int_equal(r, 1);
}

static inline void test_run(GpuOps *o, GpuList *l, int pos) {
    must(o);
    gpu_list_run(o, l, pos, 1);
}
#endif
