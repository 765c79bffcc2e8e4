/* libc.h - the part of the C library that src/ uses, for WebAssembly without a system. Every
 * standard header is this one (web/CMakeLists.txt makes them); what is missing here does not
 * compile. There are no files: open() fails, and so do all calls that would need one. */
#ifndef DIBIT_LIBC_H
#define DIBIT_LIBC_H
#include <float.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef long ssize_t, off_t, pid_t, mode_t;

/* ---- assert.h, errno.h ---- */
#define assert(x) ((x) ? (void)0 : __builtin_trap())
extern int errno;
enum { ENOENT = 2, EINTR = 4, EAGAIN = 11, EINVAL = 22 };

/* ---- string.h, ctype.h ---- */
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
void *memchr(const void *p, int byte, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
char *strchr(const char *s, int c);
char *strrchr(const char *s, int c);
char *strstr(const char *s, const char *part);
size_t strcspn(const char *s, const char *stop);
char *strncpy(char *restrict to, const char *restrict from, size_t n);
char *strdup(const char *s);
char *strerror(int error);
int tolower(int c);

/* ---- stdlib.h ---- */
void *malloc(size_t n);
void *aligned_alloc(size_t align, size_t n); /* align at most 64 */
void free(void *p);
void qsort(void *base, size_t n, size_t size, int (*order)(const void *, const void *));
unsigned long long strtoull(const char *s, char **end, int base);
int atoi(const char *s);
_Noreturn void abort(void);

/* ---- stdio.h: %d %i %u %x %c %s %f %g %%, the lengths l, ll and z, width, precision, - and 0 ----
 */
int vsnprintf(char *restrict buf, size_t cap, const char *restrict fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));
int snprintf(char *restrict buf, size_t cap, const char *restrict fmt, ...)
    __attribute__((format(printf, 3, 4)));
int sscanf(const char *restrict s, const char *restrict fmt, ...); /* %d and %n */

/* ---- math.h: single instructions through the compiler, the rest in math.c ---- */
#define INFINITY    __builtin_inff()
#define NAN         __builtin_nanf("")
#define isnan(x)    __builtin_isnan(x)
#define isinf(x)    __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)
#define sqrt(x)     __builtin_sqrt(x)
#define sqrtf(x)    __builtin_sqrtf(x)
#define fabs(x)     __builtin_fabs(x)
#define fabsf(x)    __builtin_fabsf(x)
#define floor(x)    __builtin_floor(x)
double sin(double x);
double cos(double x);
double exp(double x);
double log(double x); /* of normal numbers above 0 */
double pow(double x, double y);
float ldexpf(float x, int e);
double ldexp(double x, int e);
float frexpf(float x, int *e);
static inline float fminf(float a, float b) {
    return a < b || isnan(b) ? a : b;
}

/* ---- time.h, unistd.h, fcntl.h, sys/mman.h, sys/stat.h, sched.h ---- */
struct timespec {
    long tv_sec, tv_nsec;
};
enum { CLOCK_MONOTONIC = 1 };
int clock_gettime(int clock, struct timespec *t);
enum { _SC_NPROCESSORS_ONLN = 1, _SC_PAGESIZE, _SC_PHYS_PAGES, _SC_AVPHYS_PAGES };
long sysconf(int name);
enum { O_RDONLY = 0, O_WRONLY = 1, O_CREAT = 2, O_TRUNC = 4, O_CLOEXEC = 8 };
enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 1, MAP_ANONYMOUS = 2 };
#define MAP_FAILED ((void *)-1)
struct stat {
    int st_mode;
    off_t st_size;
};
#define S_ISREG(mode) ((void)(mode), 0)
int open(const char *path, int flags, ...);
ssize_t read(int fd, void *buf, size_t n);
ssize_t write(int fd, const void *buf, size_t n);
int close(int fd);
int fsync(int fd);
int fstat(int fd, struct stat *st);
int rename(const char *from, const char *to);
int unlink(const char *path);
pid_t getpid(void);
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);
int munmap(void *p, size_t n);
typedef int cpu_set_t;
#define CPU_COUNT(set) (*(set))
int sched_getaffinity(pid_t pid, size_t n, cpu_set_t *set);
int sched_yield(void);

/* ---- pthread.h ---- */
typedef struct DibitThread *pthread_t;
typedef struct {
    _Atomic int locked; /* 2: somebody waits */
} pthread_mutex_t;
typedef struct {
    _Atomic int turn;
} pthread_cond_t;
int pthread_create(pthread_t *out, const void *attributes, void *(*fn)(void *), void *arg);
int pthread_join(pthread_t thread, void **result);
int pthread_mutex_init(pthread_mutex_t *m, const void *attributes);
int pthread_mutex_destroy(pthread_mutex_t *m);
int pthread_mutex_lock(pthread_mutex_t *m);
int pthread_mutex_unlock(pthread_mutex_t *m);
int pthread_cond_init(pthread_cond_t *c, const void *attributes);
int pthread_cond_destroy(pthread_cond_t *c);
int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int pthread_cond_broadcast(pthread_cond_t *c);
#endif
