/* test.h - what tests/kern.c wants besides libc.h: output, options, memory without guards. Faults
 * end the whole program there, so there is nothing to jump back to. */
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
#endif
