/* bandwidth.h - what the memory can deliver: the denominator of every share of bandwidth. */
#ifndef BANDWIDTH_H
#define BANDWIDTH_H
#include "base.h"

enum { BANDWIDTH_SMALL_PAGES, BANDWIDTH_AS_ALLOCATED, BANDWIDTH_KINDS };

typedef struct Bandwidth {
    Pool *pool;
    size_t n_bytes;
    uint8_t *data[BANDWIDTH_KINDS]; /* of 4 KiB pages, and as the engine's own memory is */
} Bandwidth;
/* Threads as the engine's; buffers well past the last-level cache. */
int bandwidth_open(Bandwidth *b, int n_threads, DibitError *err);
void bandwidth_close(Bandwidth *b);
/* Reads one buffer twice with all threads and returns the better rate in bytes per second. */
double bandwidth_measure(Bandwidth *b, int kind);
#endif
