/* memory.c - malloc. The heap is one run of blocks from the end of the data to the end of memory;
 * each is led by 16 bytes (its size and that of the block before it) and lies so that what follows
 * them is aligned to 64. Free neighbours are joined at once; of the free blocks the smallest that
 * is large enough is taken. One lock guards it all. */
#include "libc.h"

typedef struct Block {
    uint32_t size, before; /* bytes with this header; of the block before it, 0: first */
    uint32_t used, pad;
    struct Block *next, *prev; /* in the list, while it is free */
} Block;

enum { HEAD = 16, UNIT = 64, PAGE = 65536 };
extern unsigned char __heap_base;
static Block *free_blocks, *last; /* last: the one that ends the heap */
static uintptr_t heap_end;
static size_t live; /* bytes of used blocks */
static pthread_mutex_t lock;

static Block *after(const Block *b) {
    return b == last ? NULL : (Block *)((uintptr_t)b + b->size);
}

static void put_in(Block *b) {
    b->used = 0;
    b->prev = NULL;
    b->next = free_blocks;
    if (free_blocks) free_blocks->prev = b;
    free_blocks = b;
}

static void take_out(Block *b) {
    if (b->prev)
        b->prev->next = b->next;
    else
        free_blocks = b->next;
    if (b->next) b->next->prev = b->prev;
}

/* b, which is in no list, becomes free, joined with its neighbours. */
static void give_back(Block *b) {
    Block *next = after(b), *prev = b->before ? (Block *)((uintptr_t)b - b->before) : NULL;
    if (next && !next->used) {
        take_out(next);
        if (next == last) last = b;
        b->size += next->size;
    }
    if (prev && !prev->used) {
        take_out(prev);
        if (b == last) last = prev;
        prev->size += b->size;
        b = prev;
    }
    if (after(b)) after(b)->before = b->size;
    put_in(b);
}

/* Memory grows so that the heap ends in a free block of at least `size` bytes. */
static int grow(size_t size) {
    uintptr_t start = heap_end;
    if (!last) /* the first block: its payload is aligned */
        start = (((uintptr_t)&__heap_base + HEAD + UNIT - 1) & ~(uintptr_t)(UNIT - 1)) - HEAD;
    size_t there = last && !last->used ? last->size : 0;
    uint64_t end = (uint64_t)start + (size - there);
    uint64_t pages = (end + PAGE - 1) / PAGE, have = __builtin_wasm_memory_size(0);
    if (pages > 65535) return -1;
    if (pages > have && __builtin_wasm_memory_grow(0, (size_t)(pages - have)) == (size_t)-1)
        return -1;
    if (have > pages) pages = have;
    uint32_t n = (uint32_t)(pages * PAGE - start) / UNIT * UNIT;
    Block *b = (Block *)start;
    b->size = n;
    b->before = last ? last->size : 0;
    heap_end = start + n;
    last = b;
    give_back(b);
    return 0;
}

static Block *best(size_t size) {
    Block *found = NULL;
    for (Block *b = free_blocks; b; b = b->next)
        if (b->size >= size && (!found || b->size < found->size)) found = b;
    return found;
}

void *malloc(size_t n) {
    if (n > 0xfff00000u) return NULL;
    size_t size = (n + HEAD + UNIT - 1) & ~(size_t)(UNIT - 1);
    pthread_mutex_lock(&lock);
    Block *b = best(size);
    if (!b && grow(size) == 0) b = best(size);
    if (b) {
        take_out(b);
        b->used = 1;
        if (b->size > size) { /* the rest becomes a block */
            Block *rest = (Block *)((uintptr_t)b + size);
            rest->size = b->size - (uint32_t)size;
            rest->before = (uint32_t)size;
            if (b == last) last = rest;
            b->size = (uint32_t)size;
            if (after(rest)) after(rest)->before = rest->size;
            put_in(rest);
        }
        live += b->size;
    }
    pthread_mutex_unlock(&lock);
    return b ? (void *)((uintptr_t)b + HEAD) : NULL;
}

void *aligned_alloc(size_t align, size_t n) {
    return align <= UNIT ? malloc(n) : NULL;
}

void free(void *p) {
    if (!p) return;
    pthread_mutex_lock(&lock);
    Block *b = (Block *)((uintptr_t)p - HEAD);
    live -= b->size;
    give_back(b);
    pthread_mutex_unlock(&lock);
}

/* What malloc() has given out and not got back, for hosts that count. */
__attribute__((export_name("dibit_heap_bytes"))) size_t dibit_heap_bytes(void);
size_t dibit_heap_bytes(void) {
    return live;
}
