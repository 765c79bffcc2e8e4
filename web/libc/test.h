/* test.h - what tests/kern.c and tests/gpu.c want besides libc.h: output, options, memory without
 * guards, the part of cmocka that is used. Faults end the whole program there, so there is nothing
 * to jump back to. */
#ifndef DIBIT_TEST_H
#define DIBIT_TEST_H
#include "libc.h"

int printf(const char *restrict fmt, ...) __attribute__((format(printf, 1, 2)));
int vprintf(const char *restrict fmt, va_list ap) __attribute__((format(printf, 1, 0)));
int getopt(int argc, char *const argv[], const char *options);
extern char *optarg;

typedef int sigjmp_buf[1];
#define sigsetjmp(buf, mask)   ((void)(buf), 0)
#define siglongjmp(buf, value) ((void)(buf), (void)(value), abort())
struct sigaction {
    void (*sa_handler)(int);
    int sa_flags;
};
enum { SIGSEGV = 11, SIGBUS = 7, SIGILL = 4, SA_NODEFER = 1 };
static inline int sigaction(int sig, const struct sigaction *act, void *old) {
    (void)sig, (void)act, (void)old;
    return 0;
}
static inline int mprotect(void *p, size_t n, int prot) {
    (void)p, (void)n, (void)prot;
    return 0;
}
#define mmap(at, n, prot, flags, fd, offset) test_mmap(n)
void *test_mmap(size_t n);

/* ---- stdlib.h, math.h, unistd.h; an environment of nothing ---- */
#define abs(x)     __builtin_abs(x)
#define fmax(a, b) MAX((double)(a), (double)(b))
#define BUILD_DIR  "."
static inline void *calloc(size_t n, size_t size) {
    void *p = malloc(n * size);
    return p ? memset(p, 0, n * size) : NULL;
}
enum { R_OK = 4 };
static inline char *getenv(const char *name) {
    (void)name;
    return NULL;
}
static inline int setenv(const char *name, const char *value, int over) {
    (void)name, (void)value, (void)over;
    return 0;
}
static inline int access(const char *path, int mode) {
    (void)path, (void)mode;
    return -1;
}

/* ---- cmocka.h: the first failure ends the program ---- */
struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
    void *state;
};
#define cmocka_unit_test_prestate(f, s)                                                            \
    { #f, f, s }
#define print_error                                        printf
#define print_message                                      printf
#define assert_true(x)                                     ((x) ? (void)0 : (printf("%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))
#define assert_int_equal(a, b)                             assert_true((a) == (b))
#define cmocka_run_group_tests_name(name, tests, up, down) run_tests(name, tests, ARRAY_LEN(tests))
static inline int run_tests(const char *name, const struct CMUnitTest *t, size_t n) {
    for (size_t i = 0; i < n; i++) {
        void *state = t[i].state;
        t[i].run(&state);
        printf("%s: %s\n", name, t[i].name);
    }
    return 0;
}
#endif
