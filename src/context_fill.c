/* context_fill.c - a promise of context.c put to the test: a cache of the promised length, filled
 * to its last position, and what the operating system gave for it. */
#define _DEFAULT_SOURCE
#include "context.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache.h"

enum { BATCH = 256 };

/* ---- what the system says ---- */

/* The number of kilobytes after `key` in a file of /proc, in bytes; 0 where it is not there. */
static size_t read_kb(const char *path, const char *key) {
    char buf[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf - 1);
    if (fd >= 0) close(fd);
    buf[MAX(n, 0)] = 0;
    const char *at = strstr(buf, key);
    size_t bytes;
    if (!at || !size_mul(strtoull(at + strlen(key), NULL, 10), 1024, &bytes)) return 0;
    return bytes;
}

/* Anonymous pages of this process that are in memory, counted by the kernel page by page. */
static size_t anonymous_bytes(void) {
    return read_kb("/proc/self/smaps_rollup", "\nAnonymous:");
}

/* Every allocation on pages of its own, fresh from the system and given back at once: what the
 * process had and freed before cannot serve a second time unseen. */
static void *map_alloc(void *user, size_t n_bytes, size_t align) {
    (void)user;
    (void)align; /* at most a page */
    void *p =
        mmap(NULL, MAX(n_bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void map_release(void *user, void *ptr, size_t n_bytes) {
    (void)user;
    if (ptr) munmap(ptr, MAX(n_bytes, 1));
}

/* ---- filling ---- */

typedef struct Filler {
    Kern kern;
    Pool *pool;
    float *x[2]; /* (BATCH, n_kv_heads, head_dim) keys and values */
    size_t n;    /* values of each */
    uint64_t seed;
} Filler;

static void random_item(void *arg, int item, int thread) {
    Filler *f = arg;
    (void)thread;
    uint64_t r = f->seed + (uint64_t)item;
    r = hash64(r, &r, sizeof r);
    float *x = f->x[item % 2] + (size_t)(item / 2) * f->n / BATCH;
    for (size_t i = 0; i < f->n / BATCH; i++) { /* nearly normal: the sum of four bytes */
        r = r * 6364136223846793005u + 1442695040888963407u;
        uint32_t u = (uint32_t)(r >> 32);
        x[i] = ((float)((u & 255) + (u >> 8 & 255) + (u >> 16 & 255) + (u >> 24)) - 510) / 148;
    }
}

static int fill(Cache *c, Filler *f, int (*progress)(void *user, int done, int total), void *user,
                DibitError *err) {
    const CacheShape *s = &c->shape;
    int r = 0;
    while (c->n_past < s->n_ctx) {
        int n = MIN(BATCH, s->n_ctx - c->n_past);
        if (progress && progress(user, c->n_past, s->n_ctx) != 0)
            return fail(err, DIBIT_E_CANCELLED, "cancelled");
        if ((r = cache_reserve(c, n, err)) != 0) return r;
        for (int l = 0; l < s->n_layers; l++) {
            f->seed += 2 * BATCH;
            pool_run(f->pool, random_item, f, 2 * BATCH);
            cache_put(c, &f->kern, f->pool, l, c->n_past, n, f->x[0], f->x[1]);
        }
        cache_advance(c, n);
    }
    if (atomic_load(&c->nonfinite)) return fail(err, DIBIT_E_NUMERIC, "the cache is not finite");
    if (cache_reserve(c, 1, NULL) != DIBIT_E_CONTEXT)
        return fail(err, DIBIT_E_NUMERIC, "a cache of %d positions takes more", s->n_ctx);
    return 0;
}

static int prepare(Filler *f, const CacheShape *s, int n_threads, DibitError *err) {
    size_t n = (size_t)BATCH * (size_t)s->n_kv_heads * (size_t)s->head_dim,
           bytes = n * sizeof(float);
    kern_init(&f->kern, ~0u);
    f->n = n;
    f->x[0] = mem_alloc(NULL, bytes);
    f->x[1] = mem_alloc(NULL, bytes);
    if (!f->x[0] || !f->x[1]) return fail(err, DIBIT_E_MEMORY, "no memory for random vectors");
    int r = pool_create(&f->pool, n_threads, NULL, err);
    if (r == 0) pool_run(f->pool, random_item, f, 2 * BATCH); /* all of x is in memory from here */
    return r;
}

int context_fill(const ContextModel *m, const ContextOptions *o, const ContextTypes *t, int n_ctx,
                 int (*progress)(void *user, int done, int total), void *user, ContextFill *out,
                 DibitError *err) {
    const ContextPart *p = &m->parts[0];
    assert(m->n_parts == 1 && !p->window && !p->fixed);
    CacheShape s = { .n_layers = p->n_layers,
                     .n_kv_heads = p->n_kv_heads,
                     .head_dim = p->head_dim,
                     .n_ctx = n_ctx,
                     .type_k = t->k,
                     .type_v = t->v,
                     .layer_types = t->mixed ? t->layers : NULL,
                     .sinks = o->sinks,
                     .window = o->window,
                     .n_batch = BATCH };
    const DibitAllocator memory = { map_alloc, map_release, NULL };
    Filler f = { .seed = 1 };
    Cache c = { .n_past = 0 };
    *out = (ContextFill){ .n_ctx = n_ctx };
    if (!context_kv_bytes(m, o, t, n_ctx, &out->promised))
        return fail(err, DIBIT_E_MEMORY, "%d positions are too many", n_ctx);
    size_t available = read_kb("/proc/meminfo", "MemAvailable:");
    if (available && out->promised > available)
        return fail(err, DIBIT_E_MEMORY,
                    "%d positions take %zu bytes, but the system has %zu; lower the budget", n_ctx,
                    out->promised, available);
    int r = prepare(&f, &s, o->n_threads, err);
    size_t before = anonymous_bytes();
    uint64_t start = clock_ns();
    if (r == 0) r = cache_create(&c, &s, &memory, err);
    if (r == 0) r = fill(&c, &f, progress, user, err);
    if (r == 0) {
        size_t after = anonymous_bytes();
        out->ns = clock_ns() - start;
        out->allocated = cache_allocated(&c);
        out->system = before && after > before ? after - before : 0;
        out->n_zero = (uint64_t)atomic_load(&c.n_zero);
        out->n_saturated = (uint64_t)atomic_load(&c.n_saturated);
    }
    cache_free(&c);
    pool_free(&f.pool);
    mem_free(NULL, f.x[0]);
    mem_free(NULL, f.x[1]);
    return r;
}
