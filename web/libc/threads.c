/* threads.c - pthreads where there is one thread: locks are free, and no thread can be started. */
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
long sysconf(int name) {
    if (name == _SC_PAGESIZE) return 65536;
    return name == _SC_NPROCESSORS_ONLN ? 1 : -1;
}
