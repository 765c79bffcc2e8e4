/* pool.c - the thread pool. A job is a ticket (generation, next item): threads claim items by
 * compare-and-swap on it, so a thread that wakes late finds nothing to do and nobody waits for it.
 * Idle threads spin briefly, since a token is hundreds of short jobs, and then sleep. */
#define _GNU_SOURCE
#include "base.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#if defined(__x86_64__)
#define CPU_RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define CPU_RELAX() __asm__ volatile("yield")
#else
#define CPU_RELAX() ((void)0)
#endif

/* Where a yield is a nap (WebAssembly has nothing else), it is for threads that lost their core. */
#if defined(__wasm__)
enum { YIELD_SPINS = 1 << 15 };
#else
enum { YIELD_SPINS = 256 };
#endif
enum { SPIN_NS = 30000, CLOSED = 0xffffffff };

struct Pool {
    const DibitAllocator *memory;
    pthread_t *threads;
    int n_threads; /* the caller's included */
    int n_started;
    pthread_mutex_t turn; /* held by the caller whose job runs */
    pthread_mutex_t lock; /* guards sleeping */
    pthread_cond_t wake;
    _Atomic uint64_t ticket; /* generation << 32 | next item */
    _Atomic(PoolFn *) fn;
    _Atomic(void *) arg;
    atomic_int n_items, n_done, n_sleeping, stop;
};

typedef struct Worker {
    Pool *pool;
    int thread;
} Worker;

/* Claims and runs items of generation gen until there are none left. */
static void work(Pool *p, uint32_t gen, int thread) {
    uint64_t t = atomic_load(&p->ticket);
    for (;;) {
        PoolFn *fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
        int n = atomic_load_explicit(&p->n_items, memory_order_relaxed);
        uint32_t item = (uint32_t)t;
        if (t >> 32 != gen || item == CLOSED || item >= (uint32_t)n) return;
        if (!atomic_compare_exchange_weak(&p->ticket, &t, t + 1)) continue;
        fn(arg, (int)item, thread);
        atomic_fetch_add_explicit(&p->n_done, 1, memory_order_release);
        t = atomic_load(&p->ticket);
    }
}

static bool wait_for_job(Pool *p, uint32_t seen) {
    uint64_t until = clock_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&p->ticket, memory_order_acquire) >> 32 != seen) return true;
            CPU_RELAX();
        }
        if (YIELD_SPINS == 256) sched_yield();
    } while (clock_ns() < until && !atomic_load(&p->stop));
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->n_sleeping, 1);
    while (atomic_load(&p->ticket) >> 32 == seen && !atomic_load(&p->stop))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->n_sleeping, 1);
    pthread_mutex_unlock(&p->lock);
    return !atomic_load(&p->stop);
}

static void *worker_main(void *arg) {
    Worker w = *(Worker *)arg;
    mem_free(w.pool->memory, arg);
    uint32_t seen = 0;
    while (wait_for_job(w.pool, seen)) {
        seen = (uint32_t)(atomic_load(&w.pool->ticket) >> 32);
        work(w.pool, seen, w.thread);
    }
    return NULL;
}

int cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return MAX(1, CPU_COUNT(&set));
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

static int start_worker(Pool *p, int thread, DibitError *err) {
    Worker *w = mem_alloc(p->memory, sizeof *w);
    if (!w) return fail(err, DIBIT_E_MEMORY, "no memory for a thread");
    *w = (Worker){ p, thread };
    if (pthread_create(&p->threads[thread - 1], NULL, worker_main, w) != 0) {
        mem_free(p->memory, w);
        return fail(err, DIBIT_E_MEMORY, "cannot start thread %d", thread);
    }
    p->n_started++;
    return 0;
}

int pool_create(Pool **out, int n_threads, const DibitAllocator *memory, DibitError *err) {
    *out = NULL;
    if (n_threads <= 0) n_threads = cpu_count();
    if (n_threads > 1024) return fail(err, DIBIT_E_ARGUMENT, "%d threads: at most 1024", n_threads);
    Pool *p = mem_calloc(memory, 1, sizeof *p);
    if (!p) return fail(err, DIBIT_E_MEMORY, "no memory for the thread pool");
    p->memory = memory;
    p->n_threads = n_threads;
    pthread_mutex_init(&p->turn, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    atomic_store(&p->ticket, CLOSED);
    p->threads = mem_calloc(memory, (size_t)n_threads, sizeof *p->threads);
    int r = p->threads ? 0 : fail(err, DIBIT_E_MEMORY, "no memory for the thread pool");
    for (int i = 1; i < n_threads && r == 0; i++) r = start_worker(p, i, err);
    if (r != 0) {
        pool_free(&p);
        return r;
    }
    *out = p;
    return 0;
}

void pool_free(Pool **pool) {
    Pool *p = *pool;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->turn);
    mem_free(p->memory, p->threads);
    mem_free(p->memory, p);
    *pool = NULL;
}

int pool_size(const Pool *pool) {
    return pool ? pool->n_threads : 1;
}

static void publish(Pool *p, uint32_t gen, PoolFn *fn, void *arg, int n_items) {
    atomic_store(&p->ticket,
                 (uint64_t)(gen - 1) << 32 | CLOSED); /* late claims of the old job fail now */
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&p->n_items, n_items, memory_order_relaxed);
    atomic_store_explicit(&p->n_done, 0, memory_order_relaxed);
    atomic_store(&p->ticket, (uint64_t)gen << 32);
    if (atomic_load(&p->n_sleeping) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
}

void pool_run(Pool *p, PoolFn *fn, void *arg, int n_items) {
    if (!p || p->n_threads == 1 || n_items <= 1) {
        for (int i = 0; i < n_items; i++) fn(arg, i, 0);
        return;
    }
    pthread_mutex_lock(&p->turn);
    uint32_t gen = (uint32_t)(atomic_load(&p->ticket) >> 32) + 1;
    publish(p, gen, fn, arg, n_items);
    work(p, gen, 0);
    for (int spins = 0; atomic_load_explicit(&p->n_done, memory_order_acquire) < n_items; spins++)
        if (spins % YIELD_SPINS == YIELD_SPINS - 1)
            sched_yield();
        else
            CPU_RELAX();
    pthread_mutex_unlock(&p->turn);
}
