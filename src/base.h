/* base.h - what everything else stands on: errors, checked sizes, memory, files, threads, clock. */
#ifndef BASE_H
#define BASE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dibit.h"

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)    ((a) < (b) ? (a) : (b))
#define MAX(a, b)    ((a) > (b) ? (a) : (b))

/* ---- errors: `return fail(err, DIBIT_E_FORMAT, "%s: ...", name);`
 * ------------------------------------ */
int fail(DibitError *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ---- sizes: true when the result fits; *out is untouched otherwise
 * ---------------------------------- */
bool size_add(size_t a, size_t b, size_t *out);
bool size_mul(size_t a, size_t b, size_t *out);
bool size_align(size_t a, size_t align,
                size_t *out); /* up to a multiple of align, a power of two */

/* ---- memory: from the user's allocator, 64-byte aligned. `a` may be NULL (the C library)
 * ------------- */
void *mem_alloc(const DibitAllocator *a,
                size_t n_bytes); /* not cleared; NULL on failure; 0 bytes give a pointer */
void *mem_calloc(const DibitAllocator *a, size_t n,
                 size_t size);                     /* cleared; NULL too when n * size wraps */
void mem_free(const DibitAllocator *a, void *ptr); /* NULL is fine */

/* Many small pieces that live and die together (names, tables). */
typedef struct Arena {
    const DibitAllocator *memory;
    struct ArenaChunk *last;
} Arena;
void *arena_alloc(Arena *a, size_t n_bytes); /* 16-byte aligned, cleared; NULL on failure */
char *arena_string(Arena *a, const char *s, size_t n); /* a terminated copy */
void arena_free(Arena *a);

/* ---- files
 * ------------------------------------------------------------------------------------------ */
typedef struct FileMap {
    const uint8_t *data;
    size_t size;
    bool mapped; /* else allocated, from `memory` */
    const DibitAllocator *memory;
} FileMap;
/* Maps a file for reading, or reads it whole with no_mmap. A directory or an unreadable file is an
 * error. */
int file_map(FileMap *out, const char *path, bool no_mmap, const DibitAllocator *memory,
             DibitError *err);
void file_unmap(FileMap *f);

/* Writes to PATH.tmp-PID and renames at commit, so that PATH is either old or complete. */
typedef struct FileOut {
    int fd;
    uint64_t n_bytes; /* written so far */
    char *path, *tmp;
    uint8_t *buf;
    size_t n_buf;
} FileOut;
int file_create(FileOut *out, const char *path, DibitError *err);
int file_write(FileOut *f, const void *data, size_t n, DibitError *err);
int file_commit(FileOut *f,
                DibitError *err); /* flush, sync, rename; on failure the temporary file is gone */
void file_abort(FileOut *f);      /* removes the temporary file; fine after commit */

/* ---- threads
 * ---------------------------------------------------------------------------------------- */
typedef struct Pool Pool;
typedef void PoolFn(void *arg, int item,
                    int thread); /* thread: 0..pool_size-1, for per-thread scratch */
int pool_create(Pool **out, int n_threads, const DibitAllocator *memory, DibitError *err);
void pool_free(Pool **pool);
int pool_size(const Pool *pool);
/* Runs fn for items 0..n_items-1 on all threads, the caller's included, and returns when all are
 * done. Items are handed out one by one, so results must not depend on which thread runs which.
 * Callers from different threads take turns. A NULL pool runs everything in the calling thread. */
void pool_run(Pool *pool, PoolFn *fn, void *arg, int n_items);
int cpu_count(void); /* cores this process may use */

uint64_t clock_ns(void); /* monotonic */

/* ---- small
 * ------------------------------------------------------------------------------------------ */
uint64_t hash64(uint64_t seed, const void *data,
                size_t n); /* not cryptographic; the same on every machine */
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f); /* nearest even; overflow gives infinity */
static inline float bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = { (uint32_t)h << 16 };
    return v.f;
}
uint16_t f32_to_bf16(float f); /* nearest even */
static inline uint16_t load_u16(const void *p) {
    uint16_t v;
    __builtin_memcpy(&v, p, 2);
    return v;
}
static inline uint32_t load_u32(const void *p) {
    uint32_t v;
    __builtin_memcpy(&v, p, 4);
    return v;
}
static inline uint64_t load_u64(const void *p) {
    uint64_t v;
    __builtin_memcpy(&v, p, 8);
    return v;
}
#endif
