/* file.c - files read whole or mapped, and files that appear only when they are complete. */
#define _GNU_SOURCE
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int read_all(int fd, uint8_t *dst, size_t n) {
    while (n) {
        ssize_t got = read(fd, dst, MIN(n, (size_t)1 << 30));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return -1;
        dst += got;
        n -= (size_t)got;
    }
    return 0;
}

static int map_fd(FileMap *out, int fd, const char *path, bool no_mmap, DibitError *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) return fail(err, DIBIT_E_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return fail(err, DIBIT_E_IO, "%s: not a regular file", path);
    if (st.st_size <= 0) return fail(err, DIBIT_E_FORMAT, "%s: the file is empty", path);
    out->size = (size_t)st.st_size;
    if (!no_mmap) {
        void *p = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            return fail(err, DIBIT_E_IO, "%s: cannot map: %s", path, strerror(errno));
        out->data = p;
        out->mapped = true;
        return 0;
    }
    uint8_t *buf = mem_alloc(out->memory, out->size);
    if (!buf) return fail(err, DIBIT_E_MEMORY, "%s: no memory for %zu bytes", path, out->size);
    if (read_all(fd, buf, out->size) != 0) {
        mem_free(out->memory, buf);
        return fail(err, DIBIT_E_IO, "%s: cannot read all of it", path);
    }
    out->data = buf;
    return 0;
}

int file_map(FileMap *out, const char *path, bool no_mmap, const DibitAllocator *memory,
             DibitError *err) {
    *out = (FileMap){ .memory = memory };
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail(err, DIBIT_E_IO, "%s: %s", path, strerror(errno));
    int r = map_fd(out, fd, path, no_mmap, err);
    close(fd);
    if (r != 0) *out = (FileMap){ 0 };
    return r;
}

void file_unmap(FileMap *f) {
    if (f->mapped)
        munmap((void *)f->data, f->size);
    else
        mem_free(f->memory, (void *)f->data);
    *f = (FileMap){ 0 };
}

enum { OUT_BUFFER = 1 << 16 };

int file_create(FileOut *out, const char *path, DibitError *err) {
    *out = (FileOut){ .fd = -1 };
    size_t n = strlen(path) + 32;
    out->path = strdup(path);
    out->tmp = malloc(n);
    out->buf = malloc(OUT_BUFFER);
    if (!out->path || !out->tmp || !out->buf) {
        file_abort(out);
        return fail(err, DIBIT_E_MEMORY, "%s: no memory to write it", path);
    }
    snprintf(out->tmp, n, "%s.tmp-%ld", path, (long)getpid());
    out->fd = open(out->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (out->fd < 0) {
        fail(err, DIBIT_E_IO, "%s: cannot create: %s", path, strerror(errno));
        file_abort(out);
        return DIBIT_E_IO;
    }
    return 0;
}

static int write_fd(FileOut *f, const uint8_t *p, size_t n, DibitError *err) {
    while (n) {
        ssize_t put = write(f->fd, p, MIN(n, (size_t)1 << 30));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            return fail(err, DIBIT_E_IO, "%s: cannot write: %s", f->path,
                        put ? strerror(errno) : "no space");
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

static int flush(FileOut *f, DibitError *err) {
    size_t n = f->n_buf;
    f->n_buf = 0;
    return write_fd(f, f->buf, n, err);
}

int file_write(FileOut *f, const void *data, size_t n, DibitError *err) {
    f->n_bytes += n;
    if (n > OUT_BUFFER - f->n_buf) {
        int r = flush(f, err);
        if (r != 0) return r;
    }
    if (n >= OUT_BUFFER) return write_fd(f, data, n, err);
    if (n) memcpy(f->buf + f->n_buf, data, n);
    f->n_buf += n;
    return 0;
}

int file_commit(FileOut *f, DibitError *err) {
    int r = flush(f, err);
    if (r == 0 && fsync(f->fd) != 0 && errno != EINVAL) /* EINVAL: a device or pipe */
        r = fail(err, DIBIT_E_IO, "%s: cannot write: %s", f->path, strerror(errno));
    int fd = f->fd;
    f->fd = -1;
    if (close(fd) != 0 && r == 0)
        r = fail(err, DIBIT_E_IO, "%s: cannot write: %s", f->path, strerror(errno));
    if (r == 0 && rename(f->tmp, f->path) != 0)
        r = fail(err, DIBIT_E_IO, "%s: cannot rename: %s", f->path, strerror(errno));
    if (r == 0) f->tmp[0] = 0;
    file_abort(f);
    return r;
}

void file_abort(FileOut *f) {
    if (f->fd >= 0) close(f->fd);
    if (f->tmp && f->tmp[0]) unlink(f->tmp);
    free(f->path);
    free(f->tmp);
    free(f->buf);
    *f = (FileOut){ .fd = -1 };
}
