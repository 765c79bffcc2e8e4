/* gguf.c - fuzz target: any bytes as a GGUF image. What opens must be sound: every byte of every
 * tensor and value can be read, and a copy of its metadata reads the same. Then the engine gets it.
 * All memory together stays under 64 MB more than the input. */
#include "codec.h"
#include "gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LIMIT = 64 << 20 };

static void *limited_alloc(void *user, size_t size, size_t align) {
    size_t *used = user;
    if (size > LIMIT - *used) return NULL;
    void *p = aligned_alloc(align, size);
    if (p) *used += size;
    return p;
}

static void limited_release(void *user, void *ptr, size_t size) {
    *(size_t *)user -= size;
    free(ptr);
}

static uint64_t sum(const uint8_t *p, size_t n) {
    uint64_t s = 0;
    for (size_t i = 0; i < n; i++) s += p[i];
    return s;
}

static void must(bool ok) {
    if (!ok) abort();
}

static void touch(const Gguf *g) {
    volatile uint64_t sink = 0;
    for (int i = 0; i < gguf_n_tensors(g); i++) {
        const GgufTensor *t = gguf_tensor(g, i);
        must(gguf_find(g, t->name) == t && type_info(t->type) && t->n_bytes > 0);
        sink += sum(t->data, t->n_bytes);
    }
    for (int i = 0; i < gguf_n_values(g); i++) {
        const GgufValue *v = gguf_value(g, i);
        size_t cursor = 0;
        sink += sum(v->data, v->n_bytes);
        for (uint64_t k = 0; k < v->n; k++) {
            GgufString s = gguf_next_string(v, &cursor);
            sink += sum((const uint8_t *)s.s, s.n);
            if (v->item != GGUF_STRING) sink += (uint64_t)gguf_item_i64(v, k);
        }
    }
    (void)sink;
}

static void copy_reads_the_same(const Gguf *g) {
    GgufWriter *w;
    uint8_t *image;
    size_t size = 0;
    Gguf *copy;
    must(gguf_writer_create(&w, NULL) == 0);
    for (int i = 0; i < gguf_n_values(g); i++) gguf_put_value(w, gguf_value(g, i));
    must(gguf_begin_memory(w, NULL) == 0 && gguf_finish_memory(w, &image, &size, NULL) == 0);
    gguf_writer_free(&w);
    must(gguf_open_memory(&copy, image, size, NULL, NULL) == 0);
    must(gguf_n_values(copy) == gguf_n_values(g));
    for (int i = 0; i < gguf_n_values(g); i++) {
        const GgufValue *a = gguf_value(g, i), *b = gguf_value(copy, i);
        must(a->kind == b->kind && a->item == b->item && a->n == b->n && a->n_bytes == b->n_bytes &&
             memcmp(a->data, b->data, a->n_bytes) == 0);
    }
    gguf_close(&copy);
    mem_free(NULL, image);
}

static void run_engine(const uint8_t *data, size_t size, const DibitAllocator *memory) {
    DibitOptions opt = { .n_threads = 1, .memory = *memory };
    DibitSessionOptions small = { .n_ctx = 8, .n_batch = 4 };
    DibitEngine *e;
    DibitSession *s;
    DibitError err = { 0 };
    const int32_t ids[] = { 0, 0, 0 };
    if (dibit_open_memory(&e, data, size, &opt, &err) != 0) {
        must(err.text[0] != 0);
        return;
    }
    if (dibit_session_create(&s, e, &small, &err) == 0) {
        must(dibit_forward(s, ids, 3, NULL, &err) == 0 || err.text[0]);
        dibit_session_free(&s);
    }
    dibit_close(&e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t used = 0;
    DibitAllocator memory = { limited_alloc, limited_release, &used };
    DibitError err = { 0 };
    Gguf *g;
    if (gguf_open_memory(&g, data, size, &memory, &err) != 0) {
        must(!g && err.text[0] && used == 0);
        return 0;
    }
    touch(g);
    uint64_t count;
    if (!gguf_get_u64(g, "split.count", &count) || count <= 1) copy_reads_the_same(g);
    gguf_close(&g);
    must(used == 0);
    run_engine(data, size, &memory);
    must(used == 0);
    return 0;
}
