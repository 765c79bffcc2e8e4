/* bandwidth.c - measures read bandwidth as matrix rows are read: each thread takes pieces of a
 * large buffer and reads several rows of a piece side by side, with the widest loads there are. One
 * stream a thread would leave a quarter of the bandwidth unused with 4 KiB pages, where the
 * hardware's prefetch stops at each page's end. */
#define _GNU_SOURCE
#include "bandwidth.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PIECE = 2 << 20, STREAMS = 4, PAGE = 4096 };
static const size_t BUFFER_MIN = (size_t)512 << 20, BUFFER_MAX = (size_t)1 << 30;

/* Two accumulators a stream, so that no load waits for an addition. */
#define READ_FUNCTION(name, bytes)                                                                 \
    static uint64_t name(const uint8_t *p) {                                                       \
        typedef uint64_t Wide __attribute__((vector_size(bytes)));                                 \
        Wide sum[2 * STREAMS] = { { 0 } };                                                         \
        for (size_t i = 0; i < PIECE / STREAMS; i += 2 * (bytes))                                  \
            for (int s = 0; s < STREAMS; s++) {                                                    \
                const uint8_t *q = p + (size_t)s * (PIECE / STREAMS) + i;                          \
                sum[2 * s] += *(const Wide *)q;                                                    \
                sum[2 * s + 1] += *(const Wide *)(q + (bytes));                                    \
            }                                                                                      \
        uint64_t total = 0;                                                                        \
        for (int s = 0; s < 2 * STREAMS; s++)                                                      \
            for (size_t j = 0; j < (bytes) / 8; j++) total += sum[s][j];                           \
        return total;                                                                              \
    }

READ_FUNCTION(read_16, 16)
#if defined(__x86_64__)
__attribute__((target("avx2"))) READ_FUNCTION(read_32, 32) __attribute__((target("avx512f")))
READ_FUNCTION(read_64, 64)
#endif

    typedef struct ReadJob {
    const uint8_t *data;
    uint64_t (*read)(const uint8_t *p);
    uint64_t sums[64]; /* kept, so that the compiler must read */
} ReadJob;

static void read_piece(void *arg, int item, int thread) {
    ReadJob *job = arg;
    job->sums[thread % 64] += job->read(job->data + (size_t)item * PIECE);
}

static void fill_piece(void *arg, int item, int thread) { /* by the threads that will read */
    (void)thread;
    memset((uint8_t *)arg + (size_t)item * PIECE, item % 255 + 1, PIECE);
}

int bandwidth_open(Bandwidth *b, int n_threads, DibitError *err) {
    *b = (Bandwidth){ .n_bytes = BUFFER_MIN };
    long cache = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    while (cache > 0 && b->n_bytes < 8 * (size_t)cache && b->n_bytes < BUFFER_MAX) b->n_bytes *= 2;
    int r = pool_create(&b->pool, n_threads, NULL, err);
    for (int k = 0; k < BANDWIDTH_KINDS && r == 0; k++) {
        uint8_t *p = b->data[k] = mem_alloc(NULL, b->n_bytes);
        if (!p) {
            r = fail(err, DIBIT_E_MEMORY, "no memory for %zu bytes to measure bandwidth with",
                     b->n_bytes);
            break;
        }
        uint8_t *page = (uint8_t *)(((uintptr_t)p + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
        if (k == BANDWIDTH_SMALL_PAGES) madvise(page, b->n_bytes - PAGE, MADV_NOHUGEPAGE);
        pool_run(b->pool, fill_piece, p, (int)(b->n_bytes / PIECE));
    }
    if (r != 0) bandwidth_close(b);
    return r;
}

void bandwidth_close(Bandwidth *b) {
    for (int k = 0; k < BANDWIDTH_KINDS; k++) mem_free(NULL, b->data[k]);
    pool_free(&b->pool);
}

double bandwidth_measure(Bandwidth *b, int kind) {
    ReadJob job = { .data = b->data[kind], .read = read_16 };
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) job.read = read_32;
    if (__builtin_cpu_supports("avx512f")) job.read = read_64;
#endif
    double best = 0;
    for (int i = 0; i < 2; i++) {
        uint64_t start = clock_ns();
        pool_run(b->pool, read_piece, &job, (int)(b->n_bytes / PIECE));
        uint64_t t = clock_ns() - start;
        best = MAX(best, (double)b->n_bytes * 1e9 / (double)MAX(t, 1u));
    }
    volatile uint64_t keep = job.sums[0]; /* all threads' sums are stored by the pool's barrier */
    (void)keep;
    return best;
}
