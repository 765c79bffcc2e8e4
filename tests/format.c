/* format.c - docs/FORMAT.md against the code: the examples of encoding and of cache rows are read
 * out of the text, and saved sessions are taken apart in the text's terms alone. */
#define _GNU_SOURCE
#include "tiny.h"

#include <unistd.h>

#include "dibit.h"
#include "kern/kern.h"

static FileMap text;

/* Numbers of the lines "NAME first: ..." in FORMAT.md, each stored at its index. */
static int numbers(const char *name, int base, double *out, int cap) {
    const char *line = (const char *)text.data, *end = line + text.size;
    size_t n_name = strlen(name);
    int n = 0;
    while (line < end) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        next = next ? next + 1 : end;
        char copy[256] = { 0 }, *p = copy + n_name, *after;
        memcpy(copy, line, MIN((size_t)(next - line), sizeof copy - 1));
        line = next;
        if (strncmp(copy, name, n_name) != 0 || *p != ' ') continue;
        long at = strtol(p, &after, 10);
        if (*after != ':') continue;
        for (p = after + 1;; p = after, at++, n++) {
            double v = base == 16 ? (double)strtol(p, &after, 16) : strtod(p, &after);
            if (after == p) break;
            assert_true(at >= 0 && at < cap);
            out[at] = v;
        }
    }
    return n;
}

static void read_floats(const char *name, float *x, int n) {
    double v[64] = { 0 };
    assert_true(n <= 64);
    assert_int_equal(numbers(name, 10, v, n), n);
    for (int i = 0; i < n; i++) x[i] = (float)v[i];
}

static double squared_error(const float *x, const float *y, int n) {
    double e = 0;
    for (int i = 0; i < n; i++) e += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return e;
}

/* ---- s2 and s3 ---- */

/* sum a * w by the integer formula of the text, a_k = 37 k mod 255 - 127 with scale 1/64. */
static double integer_product(int type, const uint8_t *b) {
    int c = b[0] & 15, z = b[0] >> 4, levels = type == T_S3 ? 8 : 4, sum_aq = 0, sum_a = 0;
    for (int k = 0; k < 32; k++) {
        int a = 37 * k % 255 - 127, q = b[16 + 64 * (k / 16) + k % 4] >> (2 * (k / 4 % 4)) & 3;
        if (type == T_S3) q += 4 * (b[144 + k % 4] >> (k / 4) & 1);
        sum_a += a;
        sum_aq += a * q;
    }
    double d = (double)f16_to_f32(load_u16(b + s_group_bytes(type)));
    return d / 8 * (c + 4) * (8 * sum_aq + (z - 8 - 4 * (levels - 1)) * sum_a) / 64;
}

static void encoded_row(void **state) {
    const TypeInfo *t = type_by_name(*state);
    char name[32];
    double bytes[240] = { 0 }, sum = 0;
    uint8_t tensor[240], ours[240];
    float x[32], want[32], y[32], product;
    size_t n_bytes;
    assert_true(type_bytes(t, 1, 32, &n_bytes));
    assert_int_equal(n_bytes, s_group_bytes(t->id) + 32);
    read_floats("weights", x, 32);
    snprintf(name, sizeof name, "%s value", t->name);
    read_floats(name, want, 32);
    snprintf(name, sizeof name, "%s product", t->name);
    read_floats(name, &product, 1);
    snprintf(name, sizeof name, "%s byte", t->name);
    assert_true(numbers(name, 16, bytes, (int)n_bytes) >= 11);
    for (size_t i = 0; i < n_bytes; i++) tensor[i] = (uint8_t)bytes[i];
    t->decode(y, tensor, 1, 32, 0);
    for (int k = 0; k < 32; k++) {
        assert_true(y[k] == want[k]);
        sum += (37 * k % 255 - 127) / 64.0 * (double)y[k];
    }
    assert_true(fabs(sum - (double)product) < 1e-6);
    assert_true(fabs(integer_product(t->id, tensor) - (double)product) < 1e-6);
    t->encode(ours, 1, 32, 0, 1, x, NULL);
    t->decode(y, ours, 1, 32, 0);
    assert_true(squared_error(x, y, 32) <= squared_error(x, want, 32) * (1 + 1e-9));
}

/* ---- rows of the KV cache ---- */

static void expect_row(const char *name, const uint8_t *row, int n) {
    double want[32];
    assert_int_equal(numbers(name, 16, want, n), n);
    for (int i = 0; i < n; i++) assert_int_equal(row[i], (int)want[i]);
}

static void cache_rows(void **state) {
    (void)state;
    enum { D = 8 };
    Kern kern;
    uint8_t row[64];
    float x[D], want[D], scale;
    kern_init(&kern, 0);
    read_floats("row value", x, D);
    kern.kv_put_f16(row, x, D);
    expect_row("f16 row", row, 2 * D);
    for (int i = 0; i < D; i++) assert_true(f16_to_f32(load_u16(row + 2 * i)) == x[i]);
    kern.kv_put_q8(row, x, D);
    expect_row("q8 row", row, D + 2);
    read_floats("q8 read", want, D);
    scale = f16_to_f32(load_u16(row + D));
    for (int i = 0; i < D; i++) assert_true(scale * (float)(int8_t)row[i] == want[i]);
    kern.kv_put_q4(row, x, D);
    expect_row("q4 row", row, D / 2 + 2);
    read_floats("q4 read", want, D);
    scale = f16_to_f32(load_u16(row + D / 2));
    for (int i = 0; i < D; i++) {
        int code = i < D / 2 ? row[i] & 15 : row[i - D / 2] >> 4;
        assert_true(scale * (float)(code - 8) == want[i]);
    }
    x[3] = INFINITY;
    kern.kv_put_q8(row, x, D);
    assert_int_equal(load_u16(row + D), 0x7e00);
}

/* ---- saved sessions ---- */

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t h(uint64_t seed, const uint8_t *p, size_t n) {
    uint64_t x = mix(seed ^ 0x9e3779b97f4a7c15u ^ n), rest = 0;
    for (; n >= 8; n -= 8, p += 8) x = mix(x ^ load_u64(p)) * 0x9e3779b97f4a7c15u;
    while (n-- > 0) rest = rest << 8 | p[n];
    return mix(x ^ rest);
}

typedef struct Case {
    const char *k, *v;
    int code[2], bits[2]; /* in the hash of the types; of a record, or 0 */
    size_t row[2];        /* head dimension 64 */
    size_t n, sinks, window;
} Case;

/* Walks the rows of one side as the text has them; returns where they end. */
static size_t walk_side(const Case *c, const uint8_t *file, int side, size_t at, uint64_t *sum) {
    size_t rows = c->n;
    if (c->bits[side]) {
        if (c->window) rows = (c->n - 1) / 16 * 16 + 16;
        if (c->window) rows = rows < c->window ? 0 : rows - c->window;
        rows = (rows + 15) / 16 * 16;
    }
    for (size_t p = 0; p < rows; p += 256) {
        size_t n_bytes = MIN(rows - p, (size_t)256) * c->row[side];
        *sum = h(*sum, file + at, n_bytes);
        at += n_bytes;
    }
    size_t recent = c->bits[side] ? (c->sinks + c->window) * 66 : 0;
    if (recent) *sum = h(*sum, file + at, recent);
    return at + recent;
}

static void check_file(const Case *c, const uint8_t *f, size_t size, const int32_t *ids) {
    const uint32_t shape[] = { TINY_LAYERS, TINY_KV, TINY_HEAD, TINY_VOCAB };
    uint8_t names[16] = { 0 }, types[2 * TINY_LAYERS];
    memcpy(names, c->k, strlen(c->k));
    memcpy(names + 8, c->v, strlen(c->v));
    for (int i = 0; i < 2 * TINY_LAYERS; i++) types[i] = (uint8_t)c->code[i % 2];
    assert_memory_equal(f, "DIBITSES", 8);
    assert_int_equal(load_u32(f + 8), 2);
    assert_int_equal(load_u32(f + 12), 96);
    for (int i = 0; i < 4; i++) assert_int_equal(load_u32(f + 24 + 4 * i), shape[i]);
    assert_memory_equal(f + 40, names, 16);
    assert_true(load_u64(f + 56) == h(0, types, sizeof types));
    bool records = c->bits[0] || c->bits[1];
    if (records) assert_int_equal(load_u32(f + 64), c->sinks);
    if (records) assert_int_equal(load_u32(f + 68), c->window);
    size_t from = records && c->window && c->n > c->window ? c->n - c->window : 0;
    assert_int_equal(load_u32(f + 76), from);
    assert_int_equal(load_u32(f + 80), c->n);
    assert_int_equal(load_u32(f + 84), c->n);
    assert_memory_equal(f + 96, ids, 4 * c->n);
    size_t rows = 96 + 4 * c->n, at = rows;
    uint64_t sum = h(h(0, f, 96), f + 96, 4 * c->n);
    for (int i = 0; i < TINY_LAYERS * 2 * TINY_KV; i++)
        at = walk_side(c, f, i / TINY_KV % 2, at, &sum);
    assert_true(load_u64(f + 88) == at - rows);
    assert_int_equal(size, at + 8);
    assert_true(load_u64(f + at) == sum);
}

static void saved_sessions(void **state) {
    (void)state;
    static const Case cases[] = {
        { "f16", "q8", { 0, 1 }, { 0, 0 }, { 128, 66 }, 300, 0, 0 },
        { "q4", "f16", { 2, 0 }, { 0, 0 }, { 36, 128 }, 7, 0, 0 },
        { "k3", "k2", { 3, 4 }, { 3, 2 }, { 24, 16 }, 150, 4, 64 },
        { "q8", "k2", { 1, 4 }, { 0, 2 }, { 66, 16 }, 40, 4, 64 },
    };
    char path[] = "/tmp/dibit-format-XXXXXX";
    DibitEngine *engine;
    DibitError err = { 0 };
    size_t size;
    int32_t ids[300];
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S3 }, &size);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < 300; i++) ids[i] = 3 + i * 31 % (TINY_VOCAB - 3);
    if (dibit_open_memory(&engine, image, size, NULL, &err) != 0) die("%s", err.text);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const Case *c = &cases[i];
        DibitSession *s;
        DibitSessionOptions opt = { .n_ctx = 512, .cache_k = c->k, .cache_v = c->v };
        FileMap f;
        if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
        assert_int_equal(dibit_sync(s, ids, c->n, &err), c->n);
        if (dibit_save(s, path, &err) != 0) die("%s", err.text);
        assert_int_equal(file_map(&f, path, true, NULL, &err), 0);
        check_file(c, f.data, f.size, ids);
        file_unmap(&f);
        dibit_session_free(&s);
    }
    unlink(path);
    dibit_close(&engine);
    mem_free(NULL, image);
}

static int set_up(void **state) {
    (void)state;
    return file_map(&text, SOURCE_DIR "/docs/FORMAT.md", true, NULL, NULL);
}

static int tear_down(void **state) {
    (void)state;
    file_unmap(&text);
    return 0;
}

int main(void) {
    static char s2[] = "s2", s3[] = "s3";
    const struct CMUnitTest tests[] = {
        { "an encoded row, s2", encoded_row, NULL, NULL, s2 },
        { "an encoded row, s3", encoded_row, NULL, NULL, s3 },
        cmocka_unit_test(cache_rows),
        cmocka_unit_test(saved_sessions),
    };
    return cmocka_run_group_tests_name("format", tests, set_up, tear_down);
}
