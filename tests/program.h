/* program.h - runs the program as a user would and keeps what it printed. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include "tiny.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Output {
    int code;        /* exit code, or 1000 + the signal that ended it */
    char *out, *err; /* stdout and stderr, terminated */
} Output;

static char work_folder[256]; /* of the running test program */

static inline char *read_text(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) die("%s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *text = malloc((size_t)n + 1);
    assert_int_equal(fread(text, 1, (size_t)n, f), n);
    text[n] = 0;
    fclose(f);
    return text;
}

static inline const char *work_path(const char *name) { /* the last 64 results stay valid */
    static char paths[64][512];
    static int next;
    char *p = paths[next++ % 64];
    snprintf(p, sizeof paths[0], "%s/%s", work_folder, name);
    return p;
}

static inline const char *write_file(const char *name, const void *data, size_t n) {
    const char *path = work_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f) != 0) die("%s: %s", path, strerror(errno));
    return path;
}

static inline const char *write_tiny(const char *name, const Tiny *spec) {
    size_t n;
    uint8_t *image = tiny_image(spec, &n);
    const char *path = write_file(name, image, n);
    mem_free(NULL, image);
    return path;
}

/* Starts the program; stdin, stdout and stderr are files. The caller waits for the result. */
static inline pid_t start(char *const argv[], const char *in, const char *out, const char *err) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    int fd[3] = { open(in, O_RDONLY), open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600),
                  open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600) };
    for (int i = 0; i < 3; i++)
        if (fd[i] < 0 || dup2(fd[i], i) < 0) _exit(126);
    execv(PROGRAM, argv);
    _exit(127);
}

static inline int exit_code(pid_t pid) {
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static Output last; /* of run(): valid until the next one */

/* Runs the program with `input` on stdin (NULL: empty) and arguments that end with NULL. */
static inline const Output *run_argv(const char *input, const char *stdout_path,
                                     const char *const *args) {
    char *argv[48] = { (char *)(uintptr_t) "dibit" };
    for (int i = 0; args[i]; i++) {
        assert_true(i < 46);
        argv[i + 1] = (char *)(uintptr_t)args[i];
    }
    char in[512], out[512], err[512];
    snprintf(in, sizeof in, "%s",
             write_file("stdin", input ? input : "", input ? strlen(input) : 0));
    snprintf(out, sizeof out, "%s", stdout_path ? stdout_path : work_path("stdout"));
    snprintf(err, sizeof err, "%s", work_path("stderr"));
    free(last.out);
    free(last.err);
    last.code = exit_code(start(argv, in, out, err));
    last.out = stdout_path ? strdup("") : read_text(out);
    last.err = read_text(err);
    return &last;
}
#define run(input, ...) run_argv(input, NULL, (const char *const[]){ __VA_ARGS__, NULL })

/* The exit code, and that stderr has this text (NULL: any). */
static inline void expect(const Output *o, int code, const char *err_has) {
    if (o->code != code) die("exit %d, expected %d; stderr: %s", o->code, code, o->err);
    if (err_has && !strstr(o->err, err_has)) die("stderr lacks \"%s\": %s", err_has, o->err);
}

/* An error as a user should see it: exit code 1, nothing on stdout, one line on stderr. */
static inline void expect_error(const Output *o, const char *err_has) {
    expect(o, 1, err_has);
    if (o->out[0]) die("stdout is not empty: %.80s", o->out);
    const char *line = o->err;
    while (strncmp(line, "dibit: warning", 14) == 0 || strncmp(line, "seed:", 5) == 0)
        line = strchr(line, '\n') + 1;
    if (strncmp(line, "dibit: ", 7) != 0 || strchr(line, '\n') != line + strlen(line) - 1)
        die("not one line of error: %s", o->err);
}

static inline int open_work_folder(void **state) {
    (void)state;
    extern char **environ;
    const char *tmp = getenv("TMPDIR");
    snprintf(work_folder, sizeof work_folder, "%s/dibit-test-XXXXXX", tmp ? tmp : "/tmp");
    for (int i = 0; environ[i];) { /* the options' twins of whoever runs the tests */
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(environ[i], "="), environ[i]);
        if (strncmp(name, "DIBIT_", 6) != 0 || unsetenv(name) != 0) i++;
    }
    return mkdtemp(work_folder) ? 0 : -1;
}

static inline int close_work_folder(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", work_folder);
    free(last.out);
    free(last.err);
    return system(command) == 0 ? 0 : -1;
}
#endif
