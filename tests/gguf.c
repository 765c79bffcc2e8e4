/* gguf.c - the GGUF reader and writer: what is written is read, in one file or in shards; what is
 * damaged is refused with a sentence; nothing is left behind when writing fails. */
#define _GNU_SOURCE
#include "codec.h" /* before cmocka.h, which has a macro fail() */
#include "gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- images made by hand ---- */

typedef struct Image {
    uint8_t *p; /* 64 KiB, from malloc: aligned */
    size_t n;
} Image;

static void raw(Image *m, const void *data, size_t n) {
    if (!m->p) m->p = calloc(1, 1 << 16);
    assert_true(m->n + n <= 1 << 16);
    memcpy(m->p + m->n, data, n);
    m->n += n;
}

static void raw8(Image *m, uint8_t v) {
    raw(m, &v, 1);
}

static void raw32(Image *m, uint32_t v) {
    raw(m, &v, 4);
}

static void raw64(Image *m, uint64_t v) {
    raw(m, &v, 8);
}

static void raw_text(Image *m, const char *s) {
    raw64(m, strlen(s));
    raw(m, s, strlen(s));
}

static void head(Image *m, uint64_t n_tensors, uint64_t n_values) {
    raw(m, "GGUF", 4);
    raw32(m, 3);
    raw64(m, n_tensors);
    raw64(m, n_values);
}

static void tensor(Image *m, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
                   uint64_t offset) {
    raw_text(m, name);
    raw32(m, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) raw64(m, ne[i]);
    raw32(m, type);
    raw64(m, offset);
}

static void data(Image *m, size_t n) {
    while (m->n % 32) raw8(m, 0);
    for (size_t i = 0; i < n; i++) raw8(m, (uint8_t)i);
}

/* Opens the image, which must fail with this code and a text that holds `says`; frees it. */
static void refused(Image *m, int code, const char *says) {
    Gguf *g;
    DibitError err = { 0 };
    assert_int_equal(gguf_open_memory(&g, m->p, m->n, NULL, &err), code);
    assert_null(g);
    assert_int_equal(err.code, code);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
    free(m->p);
    *m = (Image){ 0 };
}

static void accepted(Image *m, int n_values, int n_tensors) {
    Gguf *g;
    DibitError err = { 0 };
    if (gguf_open_memory(&g, m->p, m->n, NULL, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(gguf_n_values(g), n_values);
    assert_int_equal(gguf_n_tensors(g), n_tensors);
    gguf_close(&g);
    assert_null(g);
    free(m->p);
    *m = (Image){ 0 };
}

static void heads_are_checked(void **state) {
    (void)state;
    Image m = { 0 };
    raw(&m, "GGU", 3);
    refused(&m, DIBIT_E_FORMAT, "not a GGUF file");
    raw(&m, "ggml", 4);
    refused(&m, DIBIT_E_FORMAT, "not a GGUF file");
    raw(&m, "GGUF\3\0\0\0", 8);
    refused(&m, DIBIT_E_FORMAT, "truncated");
    raw(&m, "GGUF\0\0\0\3", 8);
    refused(&m, DIBIT_E_UNSUPPORTED, "big-endian");
    raw(&m, "GGUF\1\0\0\0", 8);
    refused(&m, DIBIT_E_UNSUPPORTED, "version 1");
    raw(&m, "GGUF\4\0\0\0", 8);
    refused(&m, DIBIT_E_UNSUPPORTED, "version 4");
    raw(&m, "GGUF\2\0\0\0", 8); /* the same bytes as version 3 */
    raw64(&m, 0);
    raw64(&m, 0);
    accepted(&m, 0, 0);
    head(&m, 0, UINT64_MAX);
    refused(&m, DIBIT_E_FORMAT, "cannot be in");
    head(&m, 1u << 31, 0);
    refused(&m, DIBIT_E_FORMAT, "cannot be in");
}

static void values_are_checked(void **state) {
    (void)state;
    Image m = { 0 };
    head(&m, 0, 2);
    for (int i = 0; i < 2; i++) {
        raw_text(&m, "a.b");
        raw32(&m, GGUF_U8);
        raw8(&m, 1);
    }
    refused(&m, DIBIT_E_FORMAT, "the key a.b is there twice");
    head(&m, 0, 1);
    raw_text(&m, "a");
    raw32(&m, GGUF_ARRAY);
    raw32(&m, GGUF_ARRAY);
    raw64(&m, 0);
    refused(&m, DIBIT_E_FORMAT, "element type 9");
    head(&m, 0, 1);
    raw_text(&m, "flag");
    raw32(&m, GGUF_BOOL);
    raw8(&m, 2);
    refused(&m, DIBIT_E_FORMAT, "flag: a bool is 2");
    head(&m, 0, 1);
    raw_text(&m, "k");
    raw32(&m, 13);
    raw64(&m, 0);
    refused(&m, DIBIT_E_FORMAT, "k: unknown value type 13");
    head(&m, 0, 1);
    raw_text(&m, "a key");
    raw32(&m, GGUF_U64);
    raw64(&m, 0);
    refused(&m, DIBIT_E_FORMAT, "metadata key");
    const uint64_t counts[] = { 100, UINT64_MAX, UINT64_MAX / 8 + 1, (uint64_t)1 << 61 };
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        for (uint32_t kind = GGUF_U8; kind <= GGUF_F64; kind++) {
            if (kind == GGUF_ARRAY) continue;
            head(&m, 0, 1);
            raw_text(&m, "list");
            raw32(&m, GGUF_ARRAY);
            raw32(&m, kind);
            raw64(&m, counts[i]);
            raw64(&m, 0);
            refused(&m, DIBIT_E_FORMAT, "truncated");
        }
}

static void alignment_is_checked(void **state) {
    (void)state;
    Image m = { 0 };
    const uint32_t bad[] = { 0, 1, 4, 24, 1u << 21, 1u << 31, UINT32_MAX };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        head(&m, 0, 1);
        raw_text(&m, "general.alignment");
        raw32(&m, GGUF_U32);
        raw32(&m, bad[i]);
        refused(&m, DIBIT_E_FORMAT, "general.alignment");
    }
    head(&m, 0, 1);
    raw_text(&m, "general.alignment");
    raw32(&m, GGUF_U64);
    raw64(&m, 32);
    refused(&m, DIBIT_E_FORMAT, "general.alignment");
    const uint64_t ne[] = { 8 };
    head(&m, 1, 1);
    raw_text(&m, "general.alignment");
    raw32(&m, GGUF_U32);
    raw32(&m, 1u << 20); /* the data would begin at 1 MiB */
    tensor(&m, "a", 1, ne, T_F32, 0);
    data(&m, 32);
    refused(&m, DIBIT_E_FORMAT, "truncated");
}

static void tensors_are_checked(void **state) {
    (void)state;
    Image m = { 0 };
    const uint64_t ne[] = { 8, 2, 1, 1, 1 }, zero[] = { 8, 0 }, q[] = { 33 };
    const uint64_t huge[] = { (uint64_t)1 << 32, (uint64_t)1 << 32, 2, 1 };
    const struct {
        const char *name;
        uint32_t n_dims;
        const uint64_t *ne;
        uint32_t type;
        uint64_t offset;
        int code;
        const char *says;
    } bad[] = {
        { "blk.0.x", 2, ne, 77, 0, DIBIT_E_UNSUPPORTED, "blk.0.x: tensor type 77" },
        { "blk.0.x", 2, ne, 0xffffffff, 0, DIBIT_E_UNSUPPORTED, "tensor type 4294967295" },
        { "a", 0, ne, T_F32, 0, DIBIT_E_FORMAT, "a: 0 dimensions" },
        { "a", 5, ne, T_F32, 0, DIBIT_E_FORMAT, "a: 5 dimensions" },
        { "a", 2, zero, T_F32, 0, DIBIT_E_FORMAT, "dimension 1 is zero" },
        { "a", 4, huge, T_F32, 0, DIBIT_E_FORMAT, "a: " },
        { "a", 1, q, T_Q8_0, 0, DIBIT_E_FORMAT, "do not fit type q8" },
        { "a", 2, ne, T_F32, 32, DIBIT_E_FORMAT, "a: data at offset 32" },
        { "", 2, ne, T_F32, 0, DIBIT_E_FORMAT, "the name of tensor 0" },
        { "12345678901234567890123456789012345678901234567890123456789012345", 2, ne, T_F32, 0,
          DIBIT_E_FORMAT, "the name of tensor 0" },
        { "a\nb", 2, ne, T_F32, 0, DIBIT_E_FORMAT, "the name of tensor 0" },
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        head(&m, 1, 0);
        tensor(&m, bad[i].name, bad[i].n_dims, bad[i].ne, bad[i].type, bad[i].offset);
        data(&m, 64);
        refused(&m, bad[i].code, bad[i].says);
    }
    head(&m, 1, 0);
    tensor(&m, "1234567890123456789012345678901234567890123456789012345678901234", 2, ne, T_F32, 0);
    data(&m, 64);
    accepted(&m, 0, 1);
    const uint64_t second[] = { 0, 32, 96 }; /* the same bytes, overlapping, a hole */
    for (size_t i = 0; i < ARRAY_LEN(second); i++) {
        head(&m, 2, 0);
        tensor(&m, "a", 2, ne, T_F32, 0);
        tensor(&m, "b", 2, ne, T_F32, second[i]);
        data(&m, 256);
        refused(&m, DIBIT_E_FORMAT, "b: data at offset");
    }
    head(&m, 2, 0);
    tensor(&m, "a", 2, ne, T_F32, 0);
    tensor(&m, "a", 2, ne, T_F32, 64);
    data(&m, 128);
    refused(&m, DIBIT_E_FORMAT, "the tensor a is there twice");
    head(&m, 1, 0);
    tensor(&m, "a", 2, ne, T_F32, 0);
    data(&m, 65);
    refused(&m, DIBIT_E_FORMAT, "1 bytes follow the last tensor");
}

/* ---- what is written is read ---- */

static GgufWriter *writer(void) {
    GgufWriter *w;
    assert_int_equal(gguf_writer_create(&w, NULL), 0);
    return w;
}

static void put_everything(GgufWriter *w) {
    static const GgufString words[] = { { "one", 3 }, { "", 0 }, { "th\0ree", 6 } };
    static const int64_t numbers[] = { -1, 0, 1, INT64_MIN, INT64_MAX };
    static const double floats[] = { -0.5, 1e300 };
    gguf_put_string(w, "general.architecture", "llama", 5);
    gguf_put_u32(w, "u32", 1);
    gguf_put_u32(w, "u32", UINT32_MAX); /* replaces */
    gguf_put_u64(w, "u64", UINT64_MAX);
    gguf_put_f32(w, "f32", 1.5f);
    gguf_put_bool(w, "yes", true);
    gguf_put_bool(w, "no", false);
    gguf_put_string(w, "empty", "", 0);
    gguf_put_strings(w, "words", words, ARRAY_LEN(words));
    for (int kind = GGUF_U8; kind <= GGUF_I64; kind++) {
        char key[32];
        snprintf(key, sizeof key, "array.%d", kind);
        bool scalar = kind != GGUF_STRING && kind != GGUF_ARRAY && kind != GGUF_BOOL;
        if (scalar) gguf_put_array(w, key, (GgufKind)kind, numbers, 5);
    }
    gguf_put_array(w, "doubles", GGUF_F64, floats, 2);
    gguf_put_array(w, "nothing", GGUF_I32, NULL, 0);
}

static void check_everything(const Gguf *g) {
    uint64_t u = 0;
    double d = 0;
    bool b = true;
    GgufString s;
    size_t cursor = 0;
    assert_true(gguf_get_u64(g, "u32", &u) && u == UINT32_MAX);
    assert_true(gguf_get_u64(g, "u64", &u) && u == UINT64_MAX);
    assert_false(gguf_get_u64(g, "f32", &u));
    assert_false(gguf_get_u64(g, "words", &u));
    assert_false(gguf_get_u64(g, "absent", &u));
    assert_true(gguf_get_f64(g, "f32", &d) && d == 1.5);
    assert_true(gguf_get_f64(g, "u32", &d) && d == 4294967295.0);
    assert_false(gguf_get_f64(g, "yes", &d));
    assert_true(gguf_get_bool(g, "no", &b) && !b);
    assert_true(gguf_get_bool(g, "yes", &b) && b);
    assert_false(gguf_get_bool(g, "u32", &b));
    assert_true(gguf_get_string(g, "empty", &s) && s.n == 0);
    assert_true(gguf_get_string(g, "general.architecture", &s) && s.n == 5);
    assert_memory_equal(s.s, "llama", 5);
    assert_false(gguf_get_string(g, "words", &s));
    const GgufValue *v = gguf_get(g, "words");
    assert_true(v && v->kind == GGUF_ARRAY && v->item == GGUF_STRING && v->n == 3);
    assert_int_equal(gguf_next_string(v, &cursor).n, 3);
    assert_int_equal(gguf_next_string(v, &cursor).n, 0);
    s = gguf_next_string(v, &cursor);
    assert_int_equal(s.n, 6);
    assert_memory_equal(s.s, "th\0ree", 6);
    assert_int_equal(gguf_next_string(v, &cursor).n, 0); /* past the end: empty */
    v = gguf_get(g, "array.11");
    assert_true(v && v->item == GGUF_I64 && v->n == 5);
    assert_true(gguf_item_i64(v, 0) == -1 && gguf_item_i64(v, 3) == INT64_MIN);
    v = gguf_get(g, "array.1"); /* the bytes of -1 */
    assert_true(v && v->item == GGUF_I8 && gguf_item_i64(v, 4) == -1);
    v = gguf_get(g, "array.2");
    assert_true(v && v->item == GGUF_U16 && gguf_item_i64(v, 0) == 65535);
    v = gguf_get(g, "doubles");
    assert_true(v && gguf_item_f64(v, 1) == 1e300 && gguf_item_i64(v, 1) == 0);
    v = gguf_get(g, "nothing");
    assert_true(v && v->n == 0 && v->n_bytes == 0);
}

static const struct {
    const char *name;
    int type, n_dims;
    uint64_t ne[4];
    size_t n_bytes;
} made[] = {
    { "token_embd.weight", T_F32, 2, { 5, 3 }, 60 },
    { "one", T_F16, 1, { 1 }, 2 },
    { "q", T_Q8_0, 3, { 64, 3, 2 }, 408 },
    { "b", T_BF16, 4, { 2, 2, 2, 2 }, 32 },
};

static void declare(GgufWriter *w) {
    for (size_t i = 0; i < ARRAY_LEN(made); i++)
        gguf_put_tensor(w, made[i].name, made[i].type, made[i].n_dims, made[i].ne, made[i].n_bytes);
}

static void check_tensors(const Gguf *g, uint8_t first) {
    uint8_t byte = first;
    assert_int_equal(gguf_n_tensors(g), ARRAY_LEN(made));
    for (size_t i = 0; i < ARRAY_LEN(made); i++) {
        const GgufTensor *t = gguf_tensor(g, (int)i);
        assert_string_equal(t->name, made[i].name);
        assert_ptr_equal(gguf_find(g, made[i].name), t);
        assert_int_equal(t->type, made[i].type);
        assert_int_equal(t->n_dims, made[i].n_dims);
        assert_int_equal(t->n_bytes, made[i].n_bytes);
        for (int d = 0; d < 4; d++) assert_int_equal(t->ne[d], d < t->n_dims ? made[i].ne[d] : 1);
        for (size_t k = 0; k < t->n_bytes; k++) assert_int_equal(t->data[k], byte++);
    }
    assert_null(gguf_find(g, "absent"));
}

/* 502 bytes, in pieces that do not respect the tensors' bounds. */
static int stream(GgufWriter *w, DibitError *err) {
    uint8_t piece[37];
    uint8_t byte = 0;
    for (size_t left = 502; left;) {
        size_t n = MIN(left, sizeof piece);
        for (size_t i = 0; i < n; i++) piece[i] = byte++;
        int r = gguf_write(w, piece, n, err);
        if (r != 0) return r;
        left -= n;
    }
    return 0;
}

static void round_trip(uint32_t align) {
    GgufWriter *w = writer();
    uint8_t *image;
    size_t size;
    Gguf *g;
    DibitError err = { 0 };
    put_everything(w);
    if (align) gguf_put_u32(w, "general.alignment", align);
    declare(w);
    uint64_t expected = gguf_writer_size(w);
    assert_int_equal(gguf_begin_memory(w, &err), 0);
    assert_int_equal(stream(w, &err), 0);
    assert_int_equal(gguf_write(w, "x", 1, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(gguf_finish_memory(w, &image, &size, &err), 0);
    gguf_writer_free(&w);
    assert_int_equal(size, expected);
    if (gguf_open_memory(&g, image, size, NULL, &err) != 0) fail_msg("%s", err.text);
    check_everything(g);
    check_tensors(g, 0);
    for (int i = 0; i < gguf_n_tensors(g); i++)
        assert_int_equal((size_t)(gguf_tensor(g, i)->data - image) % (align ? align : 32), 0);

    w = writer(); /* a copy value by value is the same file */
    for (int i = 0; i < gguf_n_values(g); i++) gguf_put_value(w, gguf_value(g, i));
    declare(w);
    uint8_t *copy;
    size_t copy_size;
    assert_int_equal(gguf_begin_memory(w, &err), 0);
    assert_int_equal(stream(w, &err), 0);
    assert_int_equal(gguf_finish_memory(w, &copy, &copy_size, &err), 0);
    gguf_writer_free(&w);
    assert_int_equal(copy_size, size);
    assert_memory_equal(copy, image, size);
    mem_free(NULL, copy);
    gguf_close(&g);
    mem_free(NULL, image);
}

static void what_is_written_is_read(void **state) {
    (void)state;
    round_trip(0);
    round_trip(8);
    round_trip(4096);
}

static void every_prefix_is_refused(void **state) {
    (void)state;
    GgufWriter *w = writer();
    uint8_t *image;
    size_t size;
    put_everything(w);
    declare(w);
    assert_int_equal(gguf_begin_memory(w, NULL), 0);
    assert_int_equal(stream(w, NULL), 0);
    assert_int_equal(gguf_finish_memory(w, &image, &size, NULL), 0);
    gguf_writer_free(&w);
    size_t padding = 0; /* after the last tensor, which ends at byte 32 of its 32 */
    for (size_t n = 0; n < size - padding; n++) {
        Gguf *g;
        DibitError err = { 0 };
        uint8_t *part = malloc(MAX(n, 1)); /* of its own, so that a sanitizer sees a step too far */
        memcpy(part, image, n);
        int r = gguf_open_memory(&g, part, n, NULL, &err);
        assert_true(r == DIBIT_E_FORMAT && err.text[0]);
        free(part);
    }
    Gguf *g;
    uint8_t *odd = malloc(size + 1);
    memcpy(odd + 1, image, size);
    assert_int_equal(gguf_open_memory(&g, odd + 1, size, NULL, NULL), DIBIT_E_ARGUMENT);
    free(odd);
    mem_free(NULL, image);
}

static void many_names_are_found(void **state) {
    (void)state;
    enum { N = 3000 };
    GgufWriter *w = writer();
    uint8_t *image;
    size_t size;
    Gguf *g;
    char name[32];
    for (int i = 0; i < N; i++) {
        const uint64_t ne[] = { 8 };
        snprintf(name, sizeof name, "key.%d", i);
        gguf_put_u32(w, name, (uint32_t)i);
        snprintf(name, sizeof name, "tensor.%d", i);
        gguf_put_tensor(w, name, T_F32, 1, ne, 32);
    }
    assert_int_equal(gguf_begin_memory(w, NULL), 0);
    for (int i = 0; i < N; i++) {
        float values[8] = { (float)i };
        assert_int_equal(gguf_write(w, values, sizeof values, NULL), 0);
    }
    assert_int_equal(gguf_finish_memory(w, &image, &size, NULL), 0);
    gguf_writer_free(&w);
    assert_int_equal(gguf_open_memory(&g, image, size, NULL, NULL), 0);
    for (int i = 0; i < N; i++) {
        uint64_t u;
        float f;
        snprintf(name, sizeof name, "key.%d", i);
        assert_true(gguf_get_u64(g, name, &u) && u == (uint64_t)i);
        snprintf(name, sizeof name, "tensor.%d", i);
        memcpy(&f, gguf_find(g, name)->data, 4);
        assert_true(f == (float)i);
    }
    gguf_close(&g);
    mem_free(NULL, image);
}

/* ---- memory ---- */

typedef struct Meter {
    size_t now, peak, limit;
    long fail_at; /* the allocation that fails, counted from 1; 0: none */
    long count;
} Meter;

static void *meter_alloc(void *user, size_t size, size_t align) {
    Meter *m = user;
    if (++m->count == m->fail_at || m->now + size > m->limit) return NULL;
    m->now += size;
    m->peak = MAX(m->peak, m->now);
    return aligned_alloc(align, size);
}

static void meter_release(void *user, void *ptr, size_t size) {
    ((Meter *)user)->now -= size;
    free(ptr);
}

static void failing_allocations_are_clean(void **state) {
    (void)state;
    GgufWriter *w = writer();
    uint8_t *image;
    size_t size;
    put_everything(w);
    declare(w);
    assert_int_equal(gguf_begin_memory(w, NULL), 0);
    assert_int_equal(stream(w, NULL), 0);
    assert_int_equal(gguf_finish_memory(w, &image, &size, NULL), 0);
    gguf_writer_free(&w);
    for (long n = 1;; n++) {
        Meter m = { .limit = SIZE_MAX, .fail_at = n };
        DibitAllocator a = { meter_alloc, meter_release, &m };
        DibitError err = { 0 };
        Gguf *g;
        int r = gguf_open_memory(&g, image, size, &a, &err);
        if (r == 0) gguf_close(&g);
        assert_int_equal(m.now, 0);
        if (r == 0) break;
        assert_int_equal(r, DIBIT_E_MEMORY);
        assert_true(err.text[0] && n < 100);
    }
    mem_free(NULL, image);
}

/* The largest tables that a file can ask for. */
static void hostile_counts_cost_little(void **state) {
    (void)state;
    const uint64_t n = 1 << 18;
    const size_t entry = 8 + 64 + 4 + 8 + 4 + 8;
    size_t head_bytes = 24 + n * entry, size = head_bytes + n * 32;
    uint8_t *p = calloc(1, size);
    memcpy(p, "GGUF\3\0\0", 8);
    memcpy(p + 8, &n, 8);
    for (uint64_t i = 0; i < n; i++) {
        uint8_t *e = p + 24 + i * entry;
        const uint64_t length = 64, ne = 1, offset = i * 32;
        const uint32_t dims = 1, type = T_F32;
        char name[65];
        snprintf(name, sizeof name, "%064u", (unsigned)i);
        memcpy(e, &length, 8);
        memcpy(e + 8, name, 64);
        memcpy(e + 72, &dims, 4);
        memcpy(e + 76, &ne, 8);
        memcpy(e + 84, &type, 4);
        memcpy(e + 88, &offset, 8);
    }
    Meter m = { .limit = (size_t)64 << 20 };
    DibitAllocator a = { meter_alloc, meter_release, &m };
    DibitError err = { 0 };
    Gguf *g;
    uint64_t start = clock_ns();
    int r = gguf_open_memory(&g, p, size, &a, &err);
    assert_true(clock_ns() - start < SLOWNESS * 1000000000ull);
    if (r == 0) gguf_close(&g);
    if (r != 0 && r != DIBIT_E_FORMAT) fail_msg("%d %s", r, err.text);
    assert_int_equal(m.now, 0);
    assert_true(m.peak > (size_t)20 << 20);
    free(p);
}

/* ---- files ---- */

static char folder[] = "/tmp/dibit-gguf-XXXXXX";

static int count_files(void) {
    int n = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static const char *in_folder(const char *name) {
    static char path[4][512];
    static int k;
    k = (k + 1) % 4;
    snprintf(path[k], sizeof path[k], "%s/%s", folder, name);
    return path[k];
}

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/dibit-gguf-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') unlink(in_folder(e->d_name));
    if (d) closedir(d);
    return rmdir(folder);
}

static void write_file(const char *path) {
    DibitError err = { 0 };
    GgufWriter *w = writer();
    put_everything(w);
    declare(w);
    int r = gguf_begin(w, path, &err);
    if (r == 0) r = stream(w, &err);
    if (r == 0) r = gguf_finish(w, &err);
    if (r != 0) fail_msg("%s", err.text);
    gguf_writer_free(&w);
}

static void files_are_mapped_or_read(void **state) {
    (void)state;
    const char *path = in_folder("a.gguf");
    write_file(path);
    assert_int_equal(count_files(), 1);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        Gguf *g;
        DibitError err = { 0 };
        if (gguf_open(&g, path, no_mmap, NULL, &err) != 0) fail_msg("%s", err.text);
        check_everything(g);
        check_tensors(g, 0);
        struct stat st;
        stat(path, &st);
        assert_int_equal(gguf_file_bytes(g), st.st_size);
        gguf_close(&g);
    }
}

static void unreadable_files_are_named(void **state) {
    (void)state;
    Gguf *g;
    DibitError err = { 0 };
    assert_int_equal(gguf_open(&g, in_folder("none.gguf"), false, NULL, &err), DIBIT_E_IO);
    assert_non_null(strstr(err.text, "none.gguf"));
    assert_int_equal(gguf_open(&g, folder, false, NULL, &err), DIBIT_E_IO);
    assert_non_null(strstr(err.text, folder));
    const char *path = in_folder("cut.gguf");
    write_file(path);
    assert_int_equal(truncate(path, 900), 0);
    assert_int_equal(gguf_open(&g, path, false, NULL, &err), DIBIT_E_FORMAT);
    assert_true(strstr(err.text, "cut.gguf") && strstr(err.text, "truncated"));
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(gguf_open(&g, path, false, NULL, &err), DIBIT_E_FORMAT);
    assert_non_null(strstr(err.text, "empty"));
    if (geteuid() == 0) return; /* who may read everything */
    write_file(path);
    assert_int_equal(chmod(path, 0), 0);
    assert_int_equal(gguf_open(&g, path, false, NULL, &err), DIBIT_E_IO);
}

static void failed_writes_leave_nothing(void **state) {
    (void)state;
    DibitError err = { 0 };
    struct rlimit old, small;
    GgufWriter *w = writer();
    const uint64_t ne[] = { 1 << 20 };
    float *zeros = calloc(1 << 20, sizeof *zeros);
    gguf_put_tensor(w, "large", T_F32, 1, ne, 4 << 20);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1 << 20; /* as a disk with one MiB left */
    setrlimit(RLIMIT_FSIZE, &small);
    int r = gguf_begin(w, in_folder("full.gguf"), &err);
    if (r == 0) r = gguf_write(w, zeros, 4 << 20, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(r, DIBIT_E_IO);
    assert_true(strstr(err.text, "full.gguf") && strstr(err.text, "cannot write"));
    gguf_writer_free(&w);
    assert_int_equal(count_files(), 0);

    w = writer();
    gguf_put_tensor(w, "large", T_F32, 1, ne, 4 << 20);
    assert_int_equal(gguf_begin(w, in_folder("part.gguf"), &err), 0);
    assert_int_equal(gguf_write(w, zeros, 1000, &err), 0);
    assert_int_equal(gguf_finish(w, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "large: only 1000 of 4194304 bytes"));
    gguf_writer_free(&w);
    assert_int_equal(count_files(), 0);

    w = writer();
    assert_int_equal(gguf_begin(w, in_folder("no/such/folder.gguf"), &err), DIBIT_E_IO);
    gguf_writer_free(&w);
    free(zeros);
}

/* ---- shards ---- */

static const char *shard(int i, int n) {
    char name[64];
    snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", i, n);
    return in_folder(name);
}

/* Tensor i of `made` goes into shard i % 3 when told to; the keys of the split are as given. */
static void write_shard(int i, int n, uint32_t no, uint32_t count, uint32_t total) {
    DibitError err = { 0 };
    GgufWriter *w = writer();
    if (i == 1) put_everything(w);
    gguf_put_u32(w, "split.no", no);
    gguf_put_u32(w, "split.count", count);
    gguf_put_u32(w, "split.tensors.count", total);
    int from = i == 1 ? 0 : i == 2 ? 1 : 3, to = i == 1 ? 1 : i == 2 ? 3 : 4;
    uint8_t byte = 0, bytes[512];
    for (int k = 0; k < to; k++) {
        if (k < from) {
            byte = (uint8_t)(byte + made[k].n_bytes);
            continue;
        }
        gguf_put_tensor(w, made[k].name, made[k].type, made[k].n_dims, made[k].ne, made[k].n_bytes);
    }
    if (gguf_begin(w, shard(i, n), &err) != 0) fail_msg("%s", err.text);
    for (int k = from; k < to; k++) {
        for (size_t b = 0; b < made[k].n_bytes; b++) bytes[b] = byte++;
        assert_int_equal(gguf_write(w, bytes, made[k].n_bytes, &err), 0);
    }
    assert_int_equal(gguf_finish(w, &err), 0);
    gguf_writer_free(&w);
}

static void shards_are_joined(void **state) {
    (void)state;
    for (int i = 1; i <= 3; i++) write_shard(i, 3, (uint32_t)i - 1, 3, 4);
    for (int i = 1; i <= 3; i++) { /* any of them may be named */
        Gguf *g;
        DibitError err = { 0 };
        if (gguf_open(&g, shard(i, 3), i == 2, NULL, &err) != 0) fail_msg("%s", err.text);
        check_everything(g);
        check_tensors(g, 0);
        gguf_close(&g);
    }
    for (long n = 1;; n++) {
        Meter m = { .limit = SIZE_MAX, .fail_at = n };
        DibitAllocator a = { meter_alloc, meter_release, &m };
        Gguf *g;
        int r = gguf_open(&g, shard(2, 3), true, &a, NULL);
        if (r == 0) gguf_close(&g);
        assert_int_equal(m.now, 0);
        if (r == 0) break;
        assert_true(r == DIBIT_E_MEMORY && n < 100);
    }
}

static void bad_images(const DibitImage *images, size_t n, int code, const char *says) {
    Gguf *g;
    DibitError err = { 0 };
    assert_int_equal(gguf_open_images(&g, images, n, NULL, &err), code);
    assert_null(g);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void shards_are_joined_in_memory(void **state) {
    (void)state;
    FileMap maps[3];
    DibitImage images[3], swapped[3];
    Gguf *g;
    DibitError err = { 0 };
    for (int i = 0; i < 3; i++) {
        write_shard(i + 1, 3, (uint32_t)i, 3, 4);
        assert_int_equal(file_map(&maps[i], shard(i + 1, 3), true, NULL, &err), 0);
        images[i] = swapped[2 - i] = (DibitImage){ maps[i].data, maps[i].size };
    }
    if (gguf_open_images(&g, images, 3, NULL, &err) != 0) fail_msg("%s", err.text);
    check_everything(g);
    check_tensors(g, 0);
    assert_int_equal(gguf_file_bytes(g), images[0].size + images[1].size + images[2].size);
    gguf_close(&g);
    bad_images(images, 0, DIBIT_E_ARGUMENT, "no GGUF image");
    bad_images(images, 1, DIBIT_E_FORMAT, "one of 3 shards, of which 1 are given");
    bad_images(images, 2, DIBIT_E_FORMAT, "one of 3 shards, of which 2 are given");
    bad_images(images + 1, 2, DIBIT_E_FORMAT, "one of 3 shards");
    bad_images(swapped, 3, DIBIT_E_FORMAT, "split.no is 2, 0 was expected");
    images[2].size = 40;
    bad_images(images, 3, DIBIT_E_FORMAT, "GGUF image 3: 3 keys and 1 tensors cannot be");
    for (int i = 0; i < 3; i++) file_unmap(&maps[i]);
}

/* A stream does not say how long it is: the header does. */
static void headers_tell_the_size(void **state) {
    (void)state;
    FileMap map;
    Gguf *g = NULL;
    size_t present = 8, need = 0;
    DibitError err = { 0 };
    write_shard(1, 1, 0, 1, 1);
    assert_int_equal(file_map(&map, shard(1, 1), true, NULL, &err), 0);
    DibitImage image = { map.data, 0 };
    while (gguf_peek(&g, &image, &present, 1, &need, NULL, &err) == 1) {
        assert_true(need > present && present < map.size);
        present = MIN(need, map.size);
    }
    if (!g) fail_msg("%s", err.text);
    assert_int_equal(gguf_file_bytes(g), map.size);
    assert_null(gguf_tensor(g, 0)->data);
    gguf_close(&g);
    file_unmap(&map);
}

static void bad_shard(const char *path, int code, const char *says) {
    Gguf *g;
    DibitError err = { 0 };
    assert_int_equal(gguf_open(&g, path, false, NULL, &err), code);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void shards_are_checked(void **state) {
    (void)state;
    for (int i = 1; i <= 3; i++) write_shard(i, 3, (uint32_t)i - 1, 3, 4);
    unlink(shard(2, 3));
    bad_shard(shard(1, 3), DIBIT_E_IO, "m-00002-of-00003.gguf");
    write_shard(2, 3, 2, 3, 4);
    bad_shard(shard(3, 3), DIBIT_E_FORMAT, "split.no is 2, 1 was expected");
    write_shard(2, 3, 1, 4, 4);
    bad_shard(shard(1, 3), DIBIT_E_FORMAT, "split.count is 4");
    write_shard(2, 3, 1, 3, 4);
    write_shard(1, 3, 0, 3, 5);
    bad_shard(shard(1, 3), DIBIT_E_FORMAT, "split.tensors.count");
    write_shard(1, 3, 0, 3, 4);
    assert_int_equal(rename(shard(1, 3), in_folder("other.gguf")), 0);
    bad_shard(in_folder("other.gguf"), DIBIT_E_FORMAT, "one of 3 shards");
    bad_shard(shard(2, 3), DIBIT_E_IO, "m-00001-of-00003.gguf");
    write_shard(1, 3, 0, 4000000000u, 4);
    bad_shard(shard(1, 3), DIBIT_E_UNSUPPORTED, "more than 1024 shards");
}

static void known_vocabularies_open(void **state) {
    (void)state;
    static const struct {
        const char *file;
        uint64_t n_tokens;
    } files[] = { { "gpt-2", 50257 }, { "llama-spm", 32000 }, { "phi-3", 32064 } };
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        char path[512];
        Gguf *g;
        DibitError err = { 0 };
        snprintf(path, sizeof path, SOURCE_DIR "/../shared/vocab/ggml-vocab-%s.gguf",
                 files[i].file);
        if (access(path, R_OK) != 0) skip();
        if (gguf_open(&g, path, false, NULL, &err) != 0) fail_msg("%s", err.text);
        const GgufValue *v = gguf_get(g, "tokenizer.ggml.tokens");
        assert_true(v && v->item == GGUF_STRING && v->n == files[i].n_tokens);
        size_t cursor = 0;
        for (uint64_t k = 0; k < v->n; k++) assert_true(gguf_next_string(v, &cursor).n > 0);
        assert_int_equal(cursor, v->n_bytes);
        gguf_close(&g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_are_checked),
        cmocka_unit_test(values_are_checked),
        cmocka_unit_test(alignment_is_checked),
        cmocka_unit_test(tensors_are_checked),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(many_names_are_found),
        cmocka_unit_test(failing_allocations_are_clean),
        cmocka_unit_test(hostile_counts_cost_little),
        cmocka_unit_test_setup_teardown(files_are_mapped_or_read, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(unreadable_files_are_named, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(failed_writes_leave_nothing, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(shards_are_joined, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(shards_are_joined_in_memory, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(headers_tell_the_size, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(shards_are_checked, make_folder, remove_folder),
        cmocka_unit_test(known_vocabularies_open),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
