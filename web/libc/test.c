/* test.c - the calls of test.h, and the entry of a test program. */
#include "test.h"

__attribute__((import_module("dibit"), import_name("write"))) void
dibit_host_write(const char *text, size_t n);

int vprintf(const char *restrict fmt, va_list ap) {
    char line[1000];
    int n = vsnprintf(line, sizeof line, fmt, ap);
    dibit_host_write(line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
    return n;
}

int printf(const char *restrict fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vprintf(fmt, ap);
    va_end(ap);
    return n;
}

/* Options one by one, a value as the next argument. */
char *optarg;
int getopt(int argc, char *const argv[], const char *options) {
    static int at = 1;
    if (at >= argc || argv[at][0] != '-') return -1;
    const char *option = strchr(options, argv[at++][1]);
    if (!option) return '?';
    if (option[1] == ':' && at < argc) optarg = argv[at++];
    return *option;
}

void *test_mmap(size_t n) {
    void *p = malloc(n);
    return p ? p : MAP_FAILED;
}

/* clang calls main() by another name where it takes arguments. */
int run_main(int argc, char **argv) __asm__("__main_argc_argv");

/* line: words with one space between them, the program's arguments; it is changed. */
__attribute__((export_name("run"))) int run(char *line);
int run(char *line) {
    static char name[] = "test";
    char *argv[16] = { name };
    int argc = 1;
    while (line && *line && argc < 15) {
        argv[argc++] = line;
        line = strchr(line, ' ');
        if (line) *line++ = 0;
    }
    return run_main(argc, argv);
}
