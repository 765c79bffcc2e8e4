/* boundary.c - files with extreme numbers: every count, offset, dimension, length, alignment and
 * type of a small valid model is replaced by the numbers where arithmetic breaks, alone and in
 * pairs. Each file must be refused with a sentence or be sound, within a second and 64 MB. */
#define _GNU_SOURCE
#include "codec.h" /* before cmocka.h, which has a macro fail() */
#include "gguf.h"
#include "safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const uint64_t table[] = { 0,
                                  1,
                                  (1u << 31) - 1,
                                  1u << 31,
                                  UINT32_MAX,
                                  (uint64_t)1 << 32,
                                  INT64_MAX,
                                  (uint64_t)1 << 63,
                                  UINT64_MAX };
enum { LIMIT = 64 << 20, ROOM = 1 << 16 };

/* ---- a valid model whose numbers are known by place ---- */

typedef struct Field {
    size_t at, width;
} Field;

typedef struct Image {
    uint8_t *p;
    size_t n;
    Field fields[512];
    int n_fields;
} Image;

static void raw(Image *m, const void *data, size_t n) {
    assert_true(m->n + n <= ROOM);
    memcpy(m->p + m->n, data, n);
    m->n += n;
}

static void number(Image *m, uint64_t v, size_t width) {
    assert_true(m->n_fields < (int)ARRAY_LEN(m->fields));
    m->fields[m->n_fields++] = (Field){ m->n, width };
    raw(m, &v, width);
}

static void text(Image *m, const char *s) {
    number(m, strlen(s), 8);
    raw(m, s, strlen(s));
}

static void key(Image *m, const char *name, uint32_t kind) {
    text(m, name);
    number(m, kind, 4);
}

static void put_values(Image *m) {
    static const struct {
        const char *key;
        uint32_t value;
    } counts[] = { { "general.alignment", 32 },
                   { "llama.context_length", 64 },
                   { "llama.embedding_length", 32 },
                   { "llama.block_count", 1 },
                   { "llama.feed_forward_length", 64 },
                   { "llama.attention.head_count", 2 },
                   { "llama.attention.head_count_kv", 1 },
                   { "llama.rope.dimension_count", 16 },
                   { "llama.attention.key_length", 16 },
                   { "llama.attention.value_length", 16 },
                   { "llama.vocab_size", 6 },
                   { "llama.attention.sliding_window", 0 },
                   { "tokenizer.ggml.bos_token_id", 0 },
                   { "tokenizer.ggml.eos_token_id", 5 } };
    static const char *const tokens[] = { "<s>", "a", "b", "ab", "c", "</s>" };
    const float eps = 1e-5f, base = 10000, scale = 2;
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        key(m, counts[i].key, GGUF_U32);
        number(m, counts[i].value, 4);
    }
    key(m, "general.architecture", GGUF_STRING);
    text(m, "llama");
    key(m, "llama.attention.layer_norm_rms_epsilon", GGUF_F32);
    raw(m, &eps, 4);
    key(m, "llama.rope.freq_base", GGUF_F32);
    raw(m, &base, 4);
    key(m, "llama.rope.scaling.type", GGUF_STRING);
    text(m, "linear");
    key(m, "llama.rope.scaling.factor", GGUF_F32);
    raw(m, &scale, 4);
    key(m, "tokenizer.ggml.model", GGUF_STRING);
    text(m, "gpt2");
    key(m, "tokenizer.ggml.pre", GGUF_STRING);
    text(m, "gpt-2");
    key(m, "tokenizer.ggml.tokens", GGUF_ARRAY);
    number(m, GGUF_STRING, 4);
    number(m, ARRAY_LEN(tokens), 8);
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++) text(m, tokens[i]);
    key(m, "tokenizer.ggml.token_type", GGUF_ARRAY);
    number(m, GGUF_I32, 4);
    number(m, ARRAY_LEN(tokens), 8);
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++) number(m, tokens[i][0] == '<' ? 3 : 1, 4);
    key(m, "tokenizer.ggml.merges", GGUF_ARRAY);
    number(m, GGUF_STRING, 4);
    number(m, 1, 8);
    text(m, "a b");
    key(m, "tokenizer.ggml.add_bos_token", GGUF_BOOL);
    raw(m, "\1", 1);
}
enum { N_VALUES = 14 + 11 };

static const struct {
    const char *name;
    int type;
    uint64_t cols, rows; /* rows 0: a vector */
} tensors[] = {
    { "token_embd.weight", T_Q8_0, 32, 6 },    { "blk.0.attn_norm.weight", T_F32, 32, 0 },
    { "blk.0.attn_q.weight", T_T2, 32, 32 },   { "blk.0.attn_k.weight", T_F16, 32, 16 },
    { "blk.0.attn_v.weight", T_BF16, 32, 16 }, { "blk.0.attn_output.weight", T_T3, 32, 32 },
    { "blk.0.ffn_norm.weight", T_F32, 32, 0 }, { "blk.0.ffn_gate.weight", T_S2, 32, 64 },
    { "blk.0.ffn_up.weight", T_S3, 32, 64 },   { "blk.0.ffn_down.weight", T_Q4_0, 64, 32 },
    { "output_norm.weight", T_F32, 32, 0 },
};

static size_t tensor_bytes(size_t i) {
    size_t n;
    assert_true(
        type_bytes(type_info(tensors[i].type), MAX(tensors[i].rows, 1), tensors[i].cols, &n));
    return n;
}

static void put_tensors(Image *m) {
    size_t offset = 0;
    for (size_t i = 0; i < ARRAY_LEN(tensors); i++) {
        text(m, tensors[i].name);
        number(m, tensors[i].rows ? 2 : 1, 4);
        number(m, tensors[i].cols, 8);
        if (tensors[i].rows) number(m, tensors[i].rows, 8);
        number(m, (uint32_t)tensors[i].type, 4);
        number(m, offset, 8);
        offset += (tensor_bytes(i) + 31) / 32 * 32;
    }
    uint32_t state = 1;
    for (size_t i = 0; i < ARRAY_LEN(tensors); i++) {
        float src[64 * 64];
        size_t rows = (size_t)MAX(tensors[i].rows, 1), cols = (size_t)tensors[i].cols;
        m->n = (m->n + 31) / 32 * 32;
        for (size_t k = 0; k < rows * cols; k++) {
            state = state * 1664525u + 1013904223u;
            src[k] = (float)(int32_t)state * 0x1p-31f;
        }
        bool trellis = !type_info(tensors[i].type)->encode; /* zeros are codes as well */
        for (size_t r = 0; r < rows && !trellis; r += 16)
            type_info(tensors[i].type)
                ->encode(m->p + m->n, rows, cols, r, MIN(rows - r, 16), src + r * cols, NULL);
        m->n += tensor_bytes(i);
        assert_true(m->n < ROOM);
    }
    m->n = (m->n + 31) / 32 * 32;
}

static void make_model(Image *m) {
    *m = (Image){ .p = calloc(1, ROOM) };
    raw(m, "GGUF", 4);
    number(m, 3, 4);
    number(m, ARRAY_LEN(tensors), 8);
    number(m, N_VALUES, 8);
    put_values(m);
    put_tensors(m);
}

/* ---- what each file has to stand ---- */

typedef struct Meter {
    size_t now, peak;
} Meter;

static void *meter_alloc(void *user, size_t size, size_t align) {
    Meter *m = user;
    m->peak = MAX(m->peak, m->now + MIN(size, SIZE_MAX - m->now)); /* what is asked for counts */
    if (size > LIMIT - m->now) return NULL;
    m->now += size;
    return aligned_alloc(align, size);
}

static void meter_release(void *user, void *ptr, size_t size) {
    ((Meter *)user)->now -= size;
    free(ptr);
}

typedef struct Tally {
    int files, opened, engines;
    uint64_t slowest_ns;
    size_t peak;
} Tally;

static void finish(Tally *t, const Meter *m, uint64_t start) {
    uint64_t ns = clock_ns() - start;
    t->slowest_ns = MAX(t->slowest_ns, ns);
    t->peak = MAX(t->peak, m->peak);
    assert_int_equal(m->now, 0);
    assert_true(m->peak <= LIMIT);
    assert_true(ns < SLOWNESS * 1000000000ull);
}

static void touch(const Gguf *g) {
    volatile uint64_t sink = 0;
    for (int i = 0; i < gguf_n_tensors(g); i++) {
        const GgufTensor *t = gguf_tensor(g, i);
        assert_ptr_equal(gguf_find(g, t->name), t);
        for (size_t k = 0; k < t->n_bytes; k++) sink += t->data[k];
    }
    for (int i = 0; i < gguf_n_values(g); i++) {
        const GgufValue *v = gguf_value(g, i);
        size_t cursor = 0;
        for (size_t k = 0; k < v->n_bytes; k++) sink += v->data[k];
        if (v->item != GGUF_STRING) continue;
        for (uint64_t k = 0; k < v->n; k++) sink += gguf_next_string(v, &cursor).n;
        assert_int_equal(cursor, v->n_bytes);
    }
    (void)sink;
}

static int try_reader(const uint8_t *p, size_t n, Tally *t) {
    Meter m = { 0 };
    DibitAllocator a = { meter_alloc, meter_release, &m };
    DibitError err = { 0 };
    Gguf *g;
    uint64_t start = clock_ns();
    int r = gguf_open_memory(&g, p, n, &a, &err);
    if (r == 0) {
        touch(g);
        gguf_close(&g);
        t->opened++;
    } else {
        assert_true(r < 0 && err.code == r && err.text[0]);
    }
    finish(t, &m, start);
    return r;
}

static void try_engine(const uint8_t *p, size_t n, Tally *t) {
    Meter m = { 0 };
    DibitOptions opt = { .n_threads = 1, .memory = { meter_alloc, meter_release, &m } };
    DibitSessionOptions small = { .n_ctx = 8, .n_batch = 4 };
    DibitError err = { 0 };
    DibitEngine *e;
    DibitSession *s;
    const int32_t ids[] = { 0, 1, 2 };
    uint64_t start = clock_ns();
    if (dibit_open_memory(&e, p, n, &opt, &err) == 0) {
        t->engines++;
        dibit_tokenize(e, "abc<s>", 6, DIBIT_PARSE_SPECIAL, NULL, 0, &err);
        if (dibit_session_create(&s, e, &small, &err) == 0) {
            int r = dibit_forward(s, ids, 3, NULL, &err);
            assert_true(r == 0 || (r < 0 && err.text[0]));
            dibit_session_free(&s);
        }
        dibit_close(&e);
    } else {
        assert_true(err.text[0]);
    }
    finish(t, &m, start);
}

/* The same from a file, mapped and read. */
static void try_file(const uint8_t *p, size_t n, int expected) {
    static const char *const name = "/tmp/dibit-boundary.gguf";
    char path[64];
    snprintf(path, sizeof path, "%s-%ld", name, (long)getpid());
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        Gguf *g;
        DibitError err = { 0 };
        int r = gguf_open(&g, path, no_mmap, NULL, &err);
        assert_int_equal(r, expected);
        if (r == 0) {
            touch(g);
            gguf_close(&g);
        }
    }
    unlink(path);
}

static void try_model(Image *m, Tally *t) {
    int r = try_reader(m->p, m->n, t);
    if (r == 0) try_engine(m->p, m->n, t);
    if (t->files++ % 97 == 0) try_file(m->p, m->n, r);
}

static void gguf_numbers(void **state) {
    (void)state;
    Image m;
    Tally t = { 0 };
    make_model(&m);
    try_model(&m, &t);
    assert_true(t.opened == 1 && t.engines == 1); /* what is changed below was valid */
    for (int i = 0; i < m.n_fields; i++) {
        for (size_t a = 0; a < ARRAY_LEN(table); a++) {
            uint64_t old[3];
            Field one = m.fields[i];
            memcpy(&old[0], m.p + one.at, one.width);
            memcpy(m.p + one.at, &table[a], one.width);
            try_model(&m, &t);
            for (int k = 1; k <= 2 && i + k < m.n_fields; k++) { /* and a neighbour with it */
                Field two = m.fields[i + k];
                memcpy(&old[k], m.p + two.at, two.width);
                for (size_t b = 0; b < ARRAY_LEN(table); b++) {
                    memcpy(m.p + two.at, &table[b], two.width);
                    try_model(&m, &t);
                }
                memcpy(m.p + two.at, &old[k], two.width);
            }
            memcpy(m.p + one.at, &old[0], one.width);
        }
    }
    print_message("%d GGUF files of %d numbers: %d opened, %d engines; slowest %.1f ms, peak %zu "
                  "bytes\n",
                  t.files, m.n_fields, t.opened, t.engines, (double)t.slowest_ns / 1e6, t.peak);
    assert_true(t.files >= 10000 && t.engines > 10 && t.opened < t.files / 2);
    free(m.p);
}

/* ---- safetensors ---- */

static Meter json_meter;

static void *json_alloc(size_t n) {
    size_t *p = malloc(n + 16);
    json_meter.now += n;
    json_meter.peak = MAX(json_meter.peak, json_meter.now);
    if (p) *p = n;
    return p ? p + 2 : NULL;
}

static void json_free(void *q) {
    if (!q) return;
    size_t *p = (size_t *)q - 2;
    json_meter.now -= *p;
    free(p);
}

enum { N_ST = 5, ST_FIELDS = N_ST * 4 + 1 };

/* The last field is the header's length, taken as it must be where it is UINT64_MAX - 1. */
static size_t st_image(uint8_t *p, const uint64_t *v) {
    static const char *const types[] = { "F32", "F16", "BF16" };
    char *text_at = (char *)p + 8;
    size_t n = 0, room = 4096;
    n += (size_t)snprintf(text_at, room, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < N_ST; i++, v += 4)
        n += (size_t)snprintf(text_at + n, room - n,
                              ",\"t%d\":{\"dtype\":\"%s\",\"shape\":[%" PRIu64 ",%" PRIu64
                              "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                              i, types[i % 3], v[0], v[1], v[2], v[3]);
    n += (size_t)snprintf(text_at + n, room - n, "}");
    assert_true(n < room);
    uint64_t length = *v == UINT64_MAX - 1 ? n : *v;
    memcpy(p, &length, 8);
    return 8 + n;
}

static int try_safetensors(const uint64_t *v, size_t n_data, Tally *t) {
    uint8_t *p = calloc(1, 8192), *exact;
    size_t n = st_image(p, v) + n_data;
    SafeTensors *st;
    DibitError err = { 0 };
    exact = malloc(n); /* of its own, so that a sanitizer sees a step too far */
    memcpy(exact, p, n);
    json_meter = (Meter){ 0 };
    uint64_t start = clock_ns();
    int r = safetensors_open_memory(&st, exact, n, &err);
    if (r == 0) {
        for (int i = 0; i < safetensors_count(st); i++) {
            const StTensor *x = safetensors_tensor(st, i);
            float *values = calloc((size_t)(x->shape[0] * x->shape[1]), sizeof *values);
            safetensors_read(x, 0, (size_t)(x->shape[0] * x->shape[1]), values);
            free(values);
        }
        t->opened += safetensors_count(st) == N_ST;
        safetensors_close(&st);
    } else {
        assert_true(r < 0 && err.text[0]);
    }
    t->files++;
    finish(t, &json_meter, start);
    free(exact);
    free(p);
    return r;
}

static void safetensors_numbers(void **state) {
    (void)state;
    uint64_t v[ST_FIELDS];
    size_t at = 0;
    Tally t = { 0 };
    for (uint64_t i = 0; i < N_ST; i++) {
        size_t bytes = (size_t)(i + 1) * 3 * (i % 3 ? 2 : 4);
        memcpy(&v[i * 4], (uint64_t[]){ i + 1, 3, at, at + bytes }, 4 * sizeof *v);
        at += bytes;
    }
    v[ST_FIELDS - 1] = UINT64_MAX - 1;
    json_set_alloc_funcs(json_alloc, json_free);
    assert_int_equal(try_safetensors(v, at, &t), 0);
    for (int i = 0; i < ST_FIELDS; i++)
        for (size_t a = 0; a < ARRAY_LEN(table); a++) {
            uint64_t old = v[i];
            v[i] = table[a];
            try_safetensors(v, at, &t);
            for (int k = i + 1; k < ST_FIELDS; k++)
                for (size_t b = 0; b < ARRAY_LEN(table); b++) {
                    uint64_t other = v[k];
                    v[k] = table[b];
                    try_safetensors(v, at, &t);
                    v[k] = other;
                }
            v[i] = old;
        }
    json_set_alloc_funcs(malloc, free);
    print_message(
        "%d safetensors files: %d opened; slowest %.1f ms, peak of the header %zu bytes\n", t.files,
        t.opened, (double)t.slowest_ns / 1e6, t.peak);
    assert_true(t.files > 5000 && t.opened >= 1 && t.opened < t.files / 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_numbers),
        cmocka_unit_test(safetensors_numbers),
    };
    return cmocka_run_group_tests_name("boundary", tests, NULL, NULL);
}
