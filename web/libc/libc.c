/* libc.c - strings, conversions and the calls of a system that is not there. Built without the
 * compiler's knowledge of these names, or its loops would call themselves. */
#include "libc.h"

int errno;

/* ---- strings ---- */

void *memmove(void *to, const void *from, size_t n) {
    char *d = to;
    const char *s = from;
    if ((uintptr_t)d - (uintptr_t)s >= n)
        for (size_t i = 0; i < n; i++) d[i] = s[i];
    else
        while (n--) d[n] = s[n];
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    return __builtin_memcpy(to, from, n); /* an instruction: bulk memory */
}

void *memset(void *to, int byte, size_t n) {
    return __builtin_memset(to, byte, n);
}

int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i]) return x[i] - y[i];
    return 0;
}

void *memchr(const void *p, int byte, size_t n) {
    const unsigned char *x = p;
    for (size_t i = 0; i < n; i++)
        if (x[i] == (unsigned char)byte) return (void *)(x + i);
    return NULL;
}

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

int strncmp(const char *a, const char *b, size_t n) {
    for (; n; n--, a++, b++)
        if (*a != *b || !*a) return (unsigned char)*a - (unsigned char)*b;
    return 0;
}

int strcmp(const char *a, const char *b) {
    return strncmp(a, b, SIZE_MAX);
}

char *strchr(const char *s, int c) {
    for (;; s++) {
        if (*s == (char)c) return (char *)s;
        if (!*s) return NULL;
    }
}

char *strrchr(const char *s, int c) {
    const char *found = NULL;
    for (;; s++) {
        if (*s == (char)c) found = s;
        if (!*s) return (char *)found;
    }
}

char *strstr(const char *s, const char *part) {
    size_t n = strlen(part);
    for (;; s++) {
        if (!strncmp(s, part, n)) return (char *)s;
        if (!*s) return NULL;
    }
}

size_t strcspn(const char *s, const char *stop) {
    size_t n = 0;
    while (s[n] && !strchr(stop, s[n])) n++;
    return n;
}

char *strncpy(char *restrict to, const char *restrict from, size_t n) {
    size_t i = 0;
    for (; i < n && from[i]; i++) to[i] = from[i];
    for (; i < n; i++) to[i] = 0;
    return to;
}

char *strdup(const char *s) {
    size_t n = strlen(s) + 1;
    char *p = malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

char *strerror(int error) {
    return error == ENOENT ? (char *)"there are no files here" : (char *)"failed";
}

int tolower(int c) {
    return c >= 'A' && c <= 'Z' ? c + 32 : c;
}

/* ---- stdlib.h ---- */

_Noreturn void abort(void) {
    __builtin_trap();
}

static void swap(char *a, char *b, size_t size) {
    for (size_t i = 0; i < size; i++) {
        char c = a[i];
        a[i] = b[i];
        b[i] = c;
    }
}

/* Heap sort: no recursion, no memory, n log n always. */
void qsort(void *base, size_t n, size_t size, int (*order)(const void *, const void *)) {
    char *a = base;
    for (size_t start = n / 2, end = n; end > 1;) {
        if (start > 0)
            start--;
        else
            swap(a, a + --end * size, size);
        for (size_t i = start, child; (child = 2 * i + 1) < end; i = child) {
            if (child + 1 < end && order(a + child * size, a + (child + 1) * size) < 0) child++;
            if (order(a + i * size, a + child * size) >= 0) break;
            swap(a + i * size, a + child * size, size);
        }
    }
}

static int digit(int c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = tolower(c);
    return c >= 'a' && c <= 'z' ? c - 'a' + 10 : 99;
}

/* No sign; too large gives ULLONG_MAX. */
unsigned long long strtoull(const char *s, char **end, int base) {
    unsigned long long v = 0;
    const char *p = s;
    while (*p == ' ' || (*p >= '\t' && *p <= '\r')) p++;
    if ((base == 0 || base == 16) && p[0] == '0' && tolower(p[1]) == 'x' && digit(p[2]) < 16) {
        p += 2;
        base = 16;
    }
    if (base == 0) base = *p == '0' ? 8 : 10;
    const char *first = p;
    for (; digit(*p) < base; p++)
        v = v > (ULLONG_MAX - (unsigned)digit(*p)) / (unsigned)base
                ? ULLONG_MAX
                : v * (unsigned)base + (unsigned)digit(*p);
    if (end) *end = (char *)(p == first ? s : p);
    return v;
}

int atoi(const char *s) {
    return *s == '-' ? -(int)strtoull(s + 1, NULL, 10) : (int)strtoull(s, NULL, 10);
}

/* ---- printf and scanf ---- */

typedef struct Out {
    char *buf;
    size_t cap, n;
} Out;

static void put(Out *o, char c) {
    if (o->n + 1 < o->cap) o->buf[o->n] = c;
    o->n++;
}

/* The digits of v before buf + at; returns where they begin. */
static int digits(char *buf, int at, uint64_t v, unsigned base, int least) {
    for (; v || least > 0; v /= base, least--) buf[--at] = "0123456789abcdef"[v % base];
    return at;
}

/* v >= 0 with `places` decimals into buf; returns the length. Numbers above 2^53 lose digits. */
static int fixed(char *buf, double v, int places) {
    double unit = 1;
    int zeros = 0;
    for (int i = 0; i < places; i++) unit *= 10;
    for (; v >= 1e18; v /= 10) zeros++;
    uint64_t whole = (uint64_t)v, part = (uint64_t)((v - (double)whole) * unit + 0.5);
    if ((double)part >= unit) {
        whole++;
        part -= (uint64_t)unit;
    }
    char text[48];
    int at = 48;
    if (places > 0) {
        at = digits(text, at, part, 10, places);
        text[--at] = '.';
    }
    int n = 0, first = digits(text, at, whole, 10, 1);
    for (int i = first; i < at; i++) buf[n++] = text[i];
    for (; zeros; zeros--) buf[n++] = '0';
    for (int i = at; i < 48; i++) buf[n++] = text[i];
    return n;
}

/* %g: `precision` significant digits without zeros at the end. */
static int general(char *buf, double v, int precision) {
    int e = 0, n;
    double m = v;
    if (precision == 0) precision = 1;
    if (v > 0) {
        for (; m >= 10; e++) m /= 10;
        for (; m < 1; e--) m *= 10;
    }
    int plain = e >= -5 && e < precision;
    int places = plain ? precision - 1 - e : precision - 1;
    n = fixed(buf, plain ? v : m, places < 17 ? places : 17);
    if (places > 0) {
        while (buf[n - 1] == '0') n--;
        if (buf[n - 1] == '.') n--;
    }
    if (plain) return n;
    buf[n++] = 'e';
    buf[n++] = e < 0 ? '-' : '+';
    char text[8];
    for (int i = digits(text, 8, (uint64_t)(e < 0 ? -e : e), 10, 2); i < 8; i++) buf[n++] = text[i];
    return n;
}

static int real(char *buf, double v, char form, int precision) {
    int n = 0;
    if (v < 0 || (v == 0 && 1 / v < 0)) {
        buf[n++] = '-';
        v = -v;
    }
    if (v - v == 0)
        return n + (form == 'f' ? fixed(buf + n, v, precision < 0 ? 6 : precision)
                                : general(buf + n, v, precision < 0 ? 6 : precision));
    const char *name = isnan(v) ? "nan" : "inf";
    for (int i = 0; i < 3; i++) buf[n++] = name[i];
    return n;
}

int vsnprintf(char *restrict to, size_t cap, const char *restrict fmt, va_list ap) {
    Out o = { to, cap, 0 };
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put(&o, *fmt);
            continue;
        }
        int left = 0, zero = 0, width = 0, precision = -1, size = 0;
        for (fmt++; *fmt == '-' || *fmt == '0'; fmt++) *fmt == '-' ? (left = 1) : (zero = 1);
        for (; digit(*fmt) < 10; fmt++) width = 10 * width + digit(*fmt);
        if (*fmt == '.') {
            precision = 0;
            if (*++fmt == '*') {
                precision = va_arg(ap, int);
                fmt++;
            }
            for (; digit(*fmt) < 10; fmt++) precision = 10 * precision + digit(*fmt);
        }
        for (; *fmt == 'l' || *fmt == 'z'; fmt++) size += *fmt == 'l';
        char buf[400];
        const char *text = buf;
        int n = 0, at = 400;
        switch (*fmt) {
        case 'd':
        case 'i': {
            int64_t v = size > 1 ? va_arg(ap, long long) : va_arg(ap, int);
            at = digits(buf, at, v < 0 ? -(uint64_t)v : (uint64_t)v, 10, 1);
            if (v < 0) buf[--at] = '-';
            break;
        }
        case 'u':
        case 'x': {
            uint64_t v = size > 1 ? va_arg(ap, unsigned long long) : va_arg(ap, unsigned);
            at = digits(buf, at, v, *fmt == 'x' ? 16 : 10, 1);
            break;
        }
        case 'c':
            buf[n++] = (char)va_arg(ap, int);
            break;
        case 's':
            text = va_arg(ap, const char *);
            while ((precision < 0 || n < precision) && text[n]) n++;
            break;
        case 'f':
        case 'g':
            n = real(buf, va_arg(ap, double), *fmt, precision);
            break;
        case '%':
            buf[n++] = '%';
            break;
        default:
            abort();
        }
        if (at < 400) {
            text = buf + at;
            n = 400 - at;
        }
        if (zero && n && *text == '-') {
            put(&o, '-');
            text++, n--, width--;
        }
        for (int i = n; !left && i < width; i++) put(&o, zero ? '0' : ' ');
        for (int i = 0; i < n; i++) put(&o, text[i]);
        for (int i = n; left && i < width; i++) put(&o, ' ');
    }
    if (cap) to[o.n < cap ? o.n : cap - 1] = 0;
    return (int)o.n;
}

int snprintf(char *restrict buf, size_t cap, const char *restrict fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(buf, cap, fmt, ap);
    va_end(ap);
    return n;
}

int sscanf(const char *restrict s, const char *restrict fmt, ...) {
    const char *p = s;
    int n = 0;
    va_list ap;
    va_start(ap, fmt);
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            if (*p++ != *fmt) break;
            continue;
        }
        int width = 0;
        for (fmt++; digit(*fmt) < 10; fmt++) width = 10 * width + digit(*fmt);
        if (*fmt == 'n') {
            *va_arg(ap, int *) = (int)(p - s);
            continue;
        }
        if (*fmt != 'd') abort();
        int minus = *p == '-', v = 0, any = 0;
        if (minus) p++;
        for (width -= minus; digit(*p) < 10 && (width > 0 || !any); p++, width--, any = 1)
            v = 10 * v + digit(*p);
        if (!any) break;
        *va_arg(ap, int *) = minus ? -v : v;
        n++;
    }
    va_end(ap);
    return n;
}

/* ---- the system ---- */

__attribute__((import_module("dibit"), import_name("now"))) double dibit_host_now(void);

int clock_gettime(int clock, struct timespec *t) {
    double ms = clock == CLOCK_MONOTONIC ? dibit_host_now() : 0;
    int64_t ns = (int64_t)(ms * 1e6);
    t->tv_sec = (long)(ns / 1000000000);
    t->tv_nsec = (long)(ns % 1000000000);
    return 0;
}

int open(const char *path, int flags, ...) {
    (void)path, (void)flags;
    errno = ENOENT;
    return -1;
}
/* Of a file that cannot be open. */
ssize_t read(int fd, void *buf, size_t n) {
    (void)fd, (void)buf, (void)n;
    return -1;
}
ssize_t write(int fd, const void *buf, size_t n) {
    (void)fd, (void)buf, (void)n;
    return -1;
}
int close(int fd) {
    (void)fd;
    return -1;
}
int fsync(int fd) {
    (void)fd;
    return -1;
}
int fstat(int fd, struct stat *st) {
    (void)fd, (void)st;
    return -1;
}
int rename(const char *from, const char *to) {
    (void)from, (void)to;
    return -1;
}
int unlink(const char *path) {
    (void)path;
    return -1;
}
pid_t getpid(void) {
    return 1;
}
void *(mmap)(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    (void)at, (void)n, (void)prot, (void)flags, (void)fd, (void)offset;
    return MAP_FAILED;
}
int munmap(void *p, size_t n) {
    (void)p, (void)n;
    return -1;
}
int sched_getaffinity(pid_t pid, size_t n, cpu_set_t *set) {
    (void)pid, (void)n, (void)set;
    return -1;
}
