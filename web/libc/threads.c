/* threads.c - pthreads. In a module with one thread locks are free and no thread can be started. In
 * one with threads pthread_create() only hands its work to a thread that the host has started
 * before, so nothing here waits for the host.
 *
 * What the host does, in the worker that runs the engine, before it opens one:
 *   memory = new WebAssembly.Memory({ initial: 64, maximum: M, shared: true }), M at most 65536
 *   the instance gets imports dibit.now, dibit.write and env.memory = memory
 *   for each thread besides its own: stack = exports.dibit_thread_stack() (0: no memory, or 63
 *   threads are announced), and a worker gets the compiled module, the memory and the stack
 * What that worker does, in a module whose import it makes with the same memory:
 *   exports.__stack_pointer.value = stack; exports.dibit_thread_main(), which does not return
 * There is no thread-local data and so no __wasm_init_tls. A thread may arrive late or never: its
 * share is done by others meanwhile. Threads wait for work in memory.atomic.wait32, where
 * terminate() ends them; end them all and drop the memory when one died at work. An engine takes
 * n_threads - 1 of them until it is closed (n_threads 0: all). */
#include "libc.h"

int pthread_mutex_init(pthread_mutex_t *m, const void *attributes) {
    (void)attributes;
    __c11_atomic_init(&m->locked, 0);
    return 0;
}
int pthread_mutex_destroy(pthread_mutex_t *m) {
    (void)m;
    return 0;
}
int pthread_cond_init(pthread_cond_t *c, const void *attributes) {
    (void)attributes;
    __c11_atomic_init(&c->turn, 0);
    return 0;
}
int pthread_cond_destroy(pthread_cond_t *c) {
    (void)c;
    return 0;
}

#ifdef __wasm_atomics__
#define LOAD(p)        __c11_atomic_load(p, __ATOMIC_SEQ_CST)
#define STORE(p, v)    __c11_atomic_store(p, v, __ATOMIC_SEQ_CST)
#define ADD(p, v)      __c11_atomic_fetch_add(p, v, __ATOMIC_SEQ_CST)
#define EXCHANGE(p, v) __c11_atomic_exchange(p, v, __ATOMIC_SEQ_CST)

static int replace(_Atomic int *p, int from, int to) {
    return __c11_atomic_compare_exchange_strong(p, &from, to, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
/* Not inlined: V8 (11.3, node 20) may lose the caller's variables over the instruction. A lock was
 * then taken at address 0 instead of its own: in 7 of 183 runs of eight engines each, in none of as
 * many since; one in some hundred stood still over it. */
__attribute__((noinline)) static void wait_while(_Atomic int *p, int value) {
    __builtin_wasm_memory_atomic_wait32((int *)p, value, -1);
}
static void wake(_Atomic int *p, unsigned n) {
    __builtin_wasm_memory_atomic_notify((int *)p, n);
}

int pthread_mutex_lock(pthread_mutex_t *m) {
    if (replace(&m->locked, 0, 1)) return 0;
    while (EXCHANGE(&m->locked, 2)) wait_while(&m->locked, 2);
    return 0;
}
int pthread_mutex_unlock(pthread_mutex_t *m) {
    if (EXCHANGE(&m->locked, 0) == 2) wake(&m->locked, 1);
    return 0;
}
int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m) {
    int turn = LOAD(&c->turn);
    pthread_mutex_unlock(m);
    wait_while(&c->turn, turn);
    return pthread_mutex_lock(m);
}
int pthread_cond_broadcast(pthread_cond_t *c) {
    ADD(&c->turn, 1);
    wake(&c->turn, 0xffffffff);
    return 0;
}

/* ---- threads: each announced one has a piece of work, which any of them may take ---- */

enum { MAX_THREADS = 63, STACK = 128 << 10 };
enum { NONE, FILLING, READY, RUNNING, DONE };
struct DibitThread {
    _Atomic int state;
    void *(*fn)(void *);
    void *arg;
};
static struct DibitThread works[MAX_THREADS];
static _Atomic int n_announced, n_handed_out; /* n_handed_out: ever, what idle threads look at */

__attribute__((export_name("dibit_thread_stack"))) void *dibit_thread_stack(void);
void *dibit_thread_stack(void) {
    if (LOAD(&n_announced) == MAX_THREADS) return NULL;
    char *stack = malloc(STACK);
    if (!stack) return NULL;
    ADD(&n_announced, 1);
    return stack + STACK;
}

static int run_if_ready(struct DibitThread *t) {
    if (!replace(&t->state, READY, RUNNING)) return 0;
    t->fn(t->arg);
    STORE(&t->state, DONE);
    wake(&t->state, 1);
    return 1;
}

__attribute__((export_name("dibit_thread_main"))) _Noreturn void dibit_thread_main(void);
void dibit_thread_main(void) {
    /* Memory that grew while this thread was on its way: V8 may hold on to the size before, and end
     * the thread over a copy that is beyond it, once in some hundred starts. Growing by nothing
     * brings its own size up to date. */
    __builtin_wasm_memory_grow(0, 0);
    for (;;) {
        int seen = LOAD(&n_handed_out), any = 0;
        for (int i = 0; i < MAX_THREADS; i++) any |= run_if_ready(&works[i]);
        if (!any) wait_while(&n_handed_out, seen);
    }
}

int pthread_create(pthread_t *out, const void *attributes, void *(*fn)(void *), void *arg) {
    (void)attributes;
    for (int i = 0; i < LOAD(&n_announced); i++) {
        struct DibitThread *t = &works[i];
        if (!replace(&t->state, NONE, FILLING)) continue;
        t->fn = fn;
        t->arg = arg;
        STORE(&t->state, READY);
        ADD(&n_handed_out, 1);
        wake(&n_handed_out, 0xffffffff);
        *out = t;
        return 0;
    }
    return EAGAIN;
}

/* What no thread has begun yet is done here. */
int pthread_join(pthread_t t, void **result) {
    (void)result;
    run_if_ready(t);
    for (int state; (state = LOAD(&t->state)) != DONE;) wait_while(&t->state, state);
    STORE(&t->state, NONE);
    return 0;
}

/* A nap of 20 us, or what the host makes of that. */
int sched_yield(void) {
    static _Atomic int nobody_wakes;
    __builtin_wasm_memory_atomic_wait32((int *)&nobody_wakes, 0, 20000);
    return 0;
}

long sysconf(int name) {
    if (name == _SC_PAGESIZE) return 65536;
    return name == _SC_NPROCESSORS_ONLN ? LOAD(&n_announced) + 1 : -1;
}
#else
int pthread_mutex_lock(pthread_mutex_t *m) {
    (void)m;
    return 0;
}
int pthread_mutex_unlock(pthread_mutex_t *m) {
    (void)m;
    return 0;
}
int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m) {
    (void)c, (void)m;
    abort(); /* nobody could wake it */
}
int pthread_cond_broadcast(pthread_cond_t *c) {
    (void)c;
    return 0;
}
int pthread_create(pthread_t *out, const void *attributes, void *(*fn)(void *), void *arg) {
    (void)out, (void)attributes, (void)fn, (void)arg;
    return EAGAIN;
}
int pthread_join(pthread_t t, void **result) {
    (void)t, (void)result;
    return 0;
}
int sched_yield(void) {
    return 0;
}
long sysconf(int name) {
    if (name == _SC_PAGESIZE) return 65536;
    return name == _SC_NPROCESSORS_ONLN ? 1 : -1;
}
#endif
