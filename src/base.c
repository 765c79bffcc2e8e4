/* base.c - errors, checked sizes, memory, clock and the small conversions. */
#define _POSIX_C_SOURCE 200809L
#include "base.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int fail(DibitError *err, int code, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return code;
}

bool size_add(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

bool size_mul(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

bool size_align(size_t a, size_t align, size_t *out) {
    size_t r;
    if (!size_add(a, align - 1, &r)) return false;
    *out = r & ~(align - 1);
    return true;
}

/* ---- memory: each block is led by 64 bytes that hold its size, so that release() can be told it
 * ---- */

enum { LEAD = 64 };

void *mem_alloc(const DibitAllocator *a, size_t n_bytes) {
    size_t total;
    if (!size_add(n_bytes, LEAD, &total) || !size_align(total, LEAD, &total)) return NULL;
    uint8_t *p = a && a->alloc ? a->alloc(a->user, total, LEAD) : aligned_alloc(LEAD, total);
    if (!p) return NULL;
    memcpy(p, &total, sizeof total);
    return p + LEAD;
}

void *mem_calloc(const DibitAllocator *a, size_t n, size_t size) {
    size_t total;
    if (!size_mul(n, size, &total)) return NULL;
    void *p = mem_alloc(a, total);
    if (p) memset(p, 0, total);
    return p;
}

void mem_free(const DibitAllocator *a, void *ptr) {
    if (!ptr) return;
    uint8_t *p = (uint8_t *)ptr - LEAD;
    size_t total;
    memcpy(&total, p, sizeof total);
    if (a && a->alloc) {
        if (a->release) a->release(a->user, p, total);
    } else {
        free(p);
    }
}

struct ArenaChunk {
    struct ArenaChunk *prev;
    size_t used, size; /* bytes behind this header */
};
enum { CHUNK = 16384, CHUNK_HEAD = 64 };

void *arena_alloc(Arena *a, size_t n_bytes) {
    size_t n;
    if (!size_align(MAX(n_bytes, 1), 16, &n)) return NULL;
    if (!a->last || a->last->size - a->last->used < n) {
        size_t size = MAX(n, (size_t)CHUNK), total;
        if (!size_add(size, CHUNK_HEAD, &total)) return NULL;
        struct ArenaChunk *c = mem_alloc(a->memory, total);
        if (!c) return NULL;
        *c = (struct ArenaChunk){ a->last, 0, size };
        a->last = c;
    }
    uint8_t *p = (uint8_t *)a->last + CHUNK_HEAD + a->last->used;
    a->last->used += n;
    return memset(p, 0, n);
}

char *arena_string(Arena *a, const char *s, size_t n) {
    size_t total;
    char *p = size_add(n, 1, &total) ? arena_alloc(a, total) : NULL;
    if (p && n) memcpy(p, s, n);
    return p;
}

void arena_free(Arena *a) {
    while (a->last) {
        struct ArenaChunk *c = a->last;
        a->last = c->prev;
        mem_free(a->memory, c);
    }
}

uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- small ---- */

static uint64_t mix64(uint64_t x) { /* the finaliser of splitmix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t hash64(uint64_t seed, const void *data, size_t n) {
    const uint8_t *p = data;
    uint64_t h = mix64(seed ^ 0x9e3779b97f4a7c15u ^ (uint64_t)n);
    for (; n >= 8; n -= 8, p += 8) h = mix64(h ^ load_u64(p)) * 0x9e3779b97f4a7c15u;
    uint64_t tail = 0;
    for (size_t i = 0; i < n; i++) tail |= (uint64_t)p[i] << (8 * i);
    return mix64(h ^ tail);
}

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
    union {
        uint32_t u;
        float f;
    } v;
    if (e == 0) { /* zero and subnormal: m * 2^-24 is exact */
        v.f = (float)m * 0x1p-24f;
        v.u |= sign;
    } else {
        v.u = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13;
    }
    return v.f;
}

uint16_t f32_to_f16(float f) {
    union {
        float f;
        uint32_t u;
    } v = { f };
    uint32_t sign = (v.u >> 16) & 0x8000, a = v.u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((a >> 13) & 0x3ff)); /* NaN stays NaN */
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds past 65504 */
    if (a < 0x38800000) { /* below 2^-14: the float adder rounds to a multiple of 2^-24 */
        union {
            float f;
            uint32_t u;
        } t = { .u = a };
        t.f += 0.5f;
        return (uint16_t)(sign | (t.u - 0x3f000000u));
    }
    a += 0xfff + ((a >> 13) & 1); /* nearest even */
    return (uint16_t)(sign | ((a - 0x38000000) >> 13));
}

uint16_t f32_to_bf16(float f) {
    union {
        float f;
        uint32_t u;
    } v = { f };
    if ((v.u & 0x7fffffff) > 0x7f800000) return (uint16_t)(v.u >> 16 | 64);
    return (uint16_t)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}
