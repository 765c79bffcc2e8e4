/* quantize_part.c - the work so far of quantize_file(), in a file beside the output. */
#define _POSIX_C_SOURCE 200809L
#include "quantize_part.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct Header {
    char magic[8];
    uint64_t key;
} Header;

typedef struct Record { /* before a tensor's bytes, which are padded to 8 */
    uint64_t name, n_bytes, sum;
    double results[2];
} Record;

static const char magic[8] = "DIBITQP1";

static uint64_t name_hash(const char *name) {
    return hash64(1, name, strlen(name));
}

static uint64_t record_sum(const Record *r, const uint8_t *data) {
    uint64_t h = hash64(r->name, &r->n_bytes, sizeof r->n_bytes);
    h = hash64(h, r->results, sizeof r->results);
    return hash64(h, data, (size_t)r->n_bytes);
}

/* The record at `at` and where the next one begins; false when it is not whole. */
static bool read_record(const QuantizePart *p, size_t at, Record *r, size_t *next) {
    size_t end = p->old.size, padded;
    if (end - at < sizeof *r) return false;
    memcpy(r, p->old.data + at, sizeof *r);
    if (r->n_bytes > end - at - sizeof *r || !size_align((size_t)r->n_bytes, 8, &padded) ||
        padded > end - at - sizeof *r)
        return false;
    *next = at + sizeof *r + padded;
    return true;
}

int quantize_part_open(QuantizePart *p, const char *out_path, uint64_t key, DibitError *err) {
    size_t n = strlen(out_path) + sizeof ".part", next;
    Record r;
    *p = (QuantizePart){ .path = mem_alloc(NULL, n), .key = key, .fd = -1 };
    if (!p->path) return fail(err, DIBIT_E_MEMORY, "no memory for a path");
    snprintf(p->path, n, "%s.part", out_path);
    if (file_map(&p->old, p->path, true, NULL, NULL) != 0) return 0;
    const Header want = { .key = key };
    Header h;
    if (p->old.size < sizeof h) return 0;
    memcpy(&h, p->old.data, sizeof h);
    if (memcmp(h.magic, magic, sizeof magic) != 0 || h.key != want.key) return 0;
    p->n_old = sizeof h;
    while (read_record(p, p->n_old, &r, &next) &&
           record_sum(&r, p->old.data + p->n_old + sizeof r) == r.sum)
        p->n_old = next;
    return 0;
}

const uint8_t *quantize_part_find(const QuantizePart *p, const char *name, size_t n_bytes,
                                  double results[2]) {
    uint64_t want = name_hash(name);
    Record r;
    for (size_t at = sizeof(Header), next; at < p->n_old; at = next) {
        if (!read_record(p, at, &r, &next)) return NULL;
        if (r.name != want || r.n_bytes != n_bytes) continue;
        memcpy(results, r.results, sizeof r.results);
        return p->old.data + at + sizeof r;
    }
    return NULL;
}

static int put(QuantizePart *p, const void *data, size_t n, DibitError *err) {
    for (const uint8_t *at = data; n;) {
        ssize_t done = write(p->fd, at, MIN(n, (size_t)1 << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0)
            return fail(err, DIBIT_E_IO, "%s: cannot write: %s", p->path,
                        done ? strerror(errno) : "no space");
        at += done;
        n -= (size_t)done;
    }
    return 0;
}

/* Opens the file after its last whole record, or anew. */
static int start(QuantizePart *p, DibitError *err) {
    Header h = { .key = p->key };
    memcpy(h.magic, magic, sizeof magic);
    p->fd = open(p->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (p->fd < 0) return fail(err, DIBIT_E_IO, "%s: cannot create: %s", p->path, strerror(errno));
    if (ftruncate(p->fd, (off_t)p->n_old) != 0 || lseek(p->fd, 0, SEEK_END) < 0)
        return fail(err, DIBIT_E_IO, "%s: cannot write: %s", p->path, strerror(errno));
    return p->n_old ? 0 : put(p, &h, sizeof h, err);
}

int quantize_part_add(QuantizePart *p, const char *name, const uint8_t *data, size_t n_bytes,
                      const double results[2], DibitError *err) {
    static const uint8_t zeros[8];
    Record r = { .name = name_hash(name), .n_bytes = n_bytes };
    memcpy(r.results, results, sizeof r.results);
    r.sum = record_sum(&r, data);
    int rc = p->fd < 0 ? start(p, err) : 0;
    if (rc == 0) rc = put(p, &r, sizeof r, err);
    if (rc == 0) rc = put(p, data, n_bytes, err);
    return rc ? rc : put(p, zeros, (8 - n_bytes % 8) % 8, err);
}

void quantize_part_close(QuantizePart *p, bool keep) {
    if (p->fd >= 0) close(p->fd);
    if (p->path && !keep && (p->fd >= 0 || p->n_old)) unlink(p->path);
    file_unmap(&p->old);
    mem_free(NULL, p->path);
    *p = (QuantizePart){ .fd = -1 };
}
