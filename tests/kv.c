/* kv.c - the KV cache by itself (dibit_kv_*): attention against a plain one in double precision
 * over the vectors that went in, or for the coarse types over those that `read` gives; the rules of
 * positions; every error; every allocation failing once. */
#include "base.h" /* before cmocka.h, which has a macro fail() */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t rng;

static uint32_t rnd(void) {
    uint64_t x = rng += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ (x >> 31)) >> 32);
}

static int rnd_int(int lo, int hi) {
    return lo + (int)(rnd() % (uint32_t)(hi - lo + 1));
}

static float *floats(size_t n) { /* -2..2 */
    float *p = malloc((n + 1) * sizeof *p);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) p[i] = ((float)rnd() - 0x1p31f) * 0x1p-30f;
    return p;
}

/* Keys, values and queries of n positions for a cache of these options. */
typedef struct Case {
    DibitKvOptions o;
    int n;
    float *k, *v, *q, *out;
} Case;

static size_t kv_floats(const Case *c, int n) {
    return (size_t)c->o.batch * (size_t)c->o.n_kv_heads * (size_t)n * (size_t)c->o.head_dim;
}

static size_t q_floats(const Case *c, int n) {
    return (size_t)c->o.batch * (size_t)c->o.n_heads * (size_t)n * (size_t)c->o.head_dim;
}

static Case make_case(const char *type_k, const char *type_v, int n) {
    static const int dims[] = { 32, 48, 64, 80, 96, 128, 256 };
    Case c = { .n = n };
    c.o.batch = rnd_int(1, 3);
    c.o.n_kv_heads = rnd_int(1, 3);
    c.o.n_heads = c.o.n_kv_heads * rnd_int(1, 4);
    c.o.head_dim = dims[rnd() % ARRAY_LEN(dims)];
    c.o.max_positions = n + rnd_int(0, 40);
    c.o.n_batch = n;
    c.o.type_k = type_k;
    c.o.type_v = type_v;
    c.o.n_threads = rnd_int(1, 2);
    c.k = floats(kv_floats(&c, n));
    c.v = floats(kv_floats(&c, n));
    c.q = floats(q_floats(&c, n));
    c.out = floats(q_floats(&c, n));
    return c;
}

static void free_case(Case *c) {
    free(c->k);
    free(c->v);
    free(c->q);
    free(c->out);
}

static DibitKv *create(const DibitKvOptions *o) {
    DibitKv *kv;
    DibitError err = { 0 };
    if (dibit_kv_create(&kv, o, &err) != 0) fail_msg("create: %s", err.text);
    return kv;
}

/* Positions from..from+m-1 of [rows, n, d] by themselves. */
static float *part(const Case *c, const float *x, int heads, int from, int m) {
    size_t d = (size_t)c->o.head_dim, rows = (size_t)(c->o.batch * heads);
    float *p = floats(rows * (size_t)m * d);
    for (size_t r = 0; r < rows; r++)
        memcpy(p + r * (size_t)m * d, x + (r * (size_t)c->n + (size_t)from) * d,
               (size_t)m * d * sizeof *p);
    return p;
}

static void put_back(const Case *c, float *x, const float *p, int heads, int from, int m) {
    size_t d = (size_t)c->o.head_dim;
    for (size_t r = 0; r < (size_t)(c->o.batch * heads); r++)
        memcpy(x + (r * (size_t)c->n + (size_t)from) * d, p + r * (size_t)m * d,
               (size_t)m * d * sizeof *p);
}

static void append(const Case *c, DibitKv *kv, int layer, int from, int m) {
    const int shape[4] = { c->o.batch, c->o.n_kv_heads, m, c->o.head_dim };
    float *k = part(c, c->k, c->o.n_kv_heads, from, m),
          *v = part(c, c->v, c->o.n_kv_heads, from, m);
    DibitError err = { 0 };
    int32_t *positions = malloc(((size_t)m + 1) * sizeof *positions);
    for (int i = 0; i < m; i++) positions[i] = from + i;
    int r = dibit_kv_append(kv, layer, shape, k, v, rnd() % 2 ? positions : NULL, &err);
    if (r != from + m) fail_msg("append %d at %d: %d %s", m, from, r, err.text);
    free(positions);
    free(k);
    free(v);
}

/* Attention of positions from..from+m-1 into c->out. */
static void attend(const Case *c, DibitKv *kv, int layer, int from, int m, float scale) {
    const int shape[4] = { c->o.batch, c->o.n_heads, m, c->o.head_dim };
    float *q = part(c, c->q, c->o.n_heads, from, m);
    DibitError err = { 0 };
    int32_t *positions = malloc(((size_t)m + 1) * sizeof *positions);
    for (int i = 0; i < m; i++) positions[i] = from + i;
    if (dibit_kv_attend(kv, layer, shape, q, positions, scale, q, &err) != 0)
        fail_msg("attend %d at %d: %s", m, from, err.text);
    put_back(c, c->out, q, c->o.n_heads, from, m);
    free(positions);
    free(q);
}

/* What query head h of sequence b at position pos should give, in double, over k and v (.., n, d).
 */
static void naive(const Case *c, const float *k, const float *v, int b, int h, int pos, float scale,
                  double *out) {
    int d = c->o.head_dim, n_kv = c->o.n_kv_heads, kv = h / (c->o.n_heads / n_kv);
    size_t head = ((size_t)b * (size_t)n_kv + (size_t)kv) * (size_t)c->n * (size_t)d;
    const float *q =
        c->q +
        (((size_t)b * (size_t)c->o.n_heads + (size_t)h) * (size_t)c->n + (size_t)pos) * (size_t)d;
    double total = 0;
    memset(out, 0, (size_t)d * sizeof *out);
    for (int p = 0; p <= pos; p++) {
        double s = 0;
        for (int i = 0; i < d; i++) s += (double)q[i] * k[head + (size_t)p * (size_t)d + (size_t)i];
        double w = exp(s * (double)scale);
        total += w;
        for (int i = 0; i < d; i++) out[i] += w * v[head + (size_t)p * (size_t)d + (size_t)i];
    }
    for (int i = 0; i < d; i++) out[i] /= total;
}

/* Compares some positions from `from` on; returns the largest difference, and their mean square. */
static double distance(const Case *c, const float *k, const float *v, int from, float scale,
                       double *square) {
    double want[256], most = 0, sum = 0;
    for (int i = 0; i < 30; i++) {
        int pos = i == 0 ? c->n - 1 : rnd_int(from, c->n - 1);
        int b = rnd_int(0, c->o.batch - 1), h = rnd_int(0, c->o.n_heads - 1);
        naive(c, k, v, b, h, pos, scale, want);
        const float *got =
            c->out + (((size_t)b * (size_t)c->o.n_heads + (size_t)h) * (size_t)c->n + (size_t)pos) *
                         (size_t)c->o.head_dim;
        for (int j = 0; j < c->o.head_dim; j++) {
            double e = fabs((double)got[j] - want[j]);
            if (!(e <= most)) most = e;
            sum += e * e;
        }
    }
    *square = sum / (30 * c->o.head_dim);
    return most;
}

static void read_all(const Case *c, DibitKv *kv, float *k, float *v) {
    const int shape[4] = { c->o.batch, c->o.n_kv_heads, c->n, c->o.head_dim };
    DibitError err = { 0 };
    if (dibit_kv_read(kv, 0, shape, k, v, NULL, &err) != 0) fail_msg("read: %s", err.text);
}

static const char *const names[] = { "f16", "q8", "q4", "k3", "k2" };
static const int lengths[] = { 1, 3, 40, 96, 257, 300 };

/* Values are within +-2 and scores within about +-4: f16 errs 2^-11 relative, q8 half a step of
 * 2/127 on each of q, k and v. */
static void plain_types_match_plain_attention(void **state) {
    (void)state;
    for (int i = 0; i < 40; i++) {
        int type_k = i % 2, type_v = i / 2 % 2;
        Case c = make_case(names[type_k], names[type_v], lengths[rnd() % ARRAY_LEN(lengths)]);
        float scale = (0.5f + (float)rnd_int(0, 2) / 4) / sqrtf((float)c.o.head_dim);
        DibitKv *kv = create(&c.o);
        append(&c, kv, 0, 0, c.n);
        attend(&c, kv, 0, 0, c.n, scale);
        double bound = (type_k ? 0.07 : 0.003) + (type_v ? 0.009 : 0.001);
        double square, e = distance(&c, c.k, c.v, 0, scale, &square);
        if (!(e <= bound))
            fail_msg("%s %s d %d: off by %g", names[type_k], names[type_v], c.o.head_dim, e);
        dibit_kv_free(&kv);
        assert_null(kv);
        free_case(&c);
    }
}

/* Queries of the last position's block read all rows as `read` gives them; what is left is the
 * rounding of queries to int8 (as for q8 above) and of weights to 14 bits. */
static void coarse_types_match_what_read_gives(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        Case c = make_case(names[i % 5], names[i / 5 % 5], lengths[rnd() % ARRAY_LEN(lengths)]);
        c.o.sinks = rnd_int(-1, 20);
        c.o.window = rnd() % 3 ? 16 * rnd_int(0, 5) : -1;
        float scale = 1 / sqrtf((float)c.o.head_dim);
        float *k = floats(kv_floats(&c, c.n)), *v = floats(kv_floats(&c, c.n));
        DibitKv *kv = create(&c.o);
        append(&c, kv, 0, 0, c.n);
        int from = c.o.window == -1 ? c.n - 1 : (c.n - 1) / 16 * 16;
        attend(&c, kv, 0, from, c.n - from, 0);
        read_all(&c, kv, k, v);
        double square, e = distance(&c, k, v, from, scale, &square);
        if (!(e <= 0.1 && square <= 4e-4))
            fail_msg("%s %s d %d n %d sinks %d window %d: off by %g, mean square %g", c.o.type_k,
                     c.o.type_v, c.o.head_dim, c.n, c.o.sinks, c.o.window, e, square);
        dibit_kv_free(&kv);
        free(k);
        free(v);
        free_case(&c);
    }
}

/* `read` gives back what went in, up to the type's error: mean square, relative. */
static void read_gives_the_vectors(void **state) {
    static const double most[] = { 1e-7, 5e-5, 0.015, 0.07, 0.18 };
    (void)state;
    for (int i = 0; i < 10; i++)
        for (size_t type = 0; type < ARRAY_LEN(names); type++) {
            Case c = make_case(names[type], names[type], 40);
            c.o.sinks = c.o.window = -1;
            float *x[2] = { floats(kv_floats(&c, c.n)), floats(kv_floats(&c, c.n)) };
            DibitKv *kv = create(&c.o);
            append(&c, kv, 0, 0, c.n);
            read_all(&c, kv, x[0], NULL);
            read_all(&c, kv, NULL, x[1]);
            for (int side = 0; side < 2; side++) {
                const float *in = side ? c.v : c.k;
                double e = 0, of = 0;
                for (size_t j = 0; j < kv_floats(&c, c.n); j++) {
                    e += pow((double)in[j] - (double)x[side][j], 2);
                    of += pow((double)in[j], 2);
                }
                if (!(e <= of * most[type]))
                    fail_msg("%s d %d: error %g", names[type], c.o.head_dim, e / of);
                free(x[side]);
            }
            dibit_kv_free(&kv);
            free_case(&c);
        }
}

static void expect_same(const float *want, const float *got, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (!(want[i] == got[i]))
            fail_msg("%s: [%zu] is %.9g, not %.9g", what, i, (double)got[i], (double)want[i]);
}

static Case coarse_case(int n) {
    Case c = make_case(names[rnd() % 5], names[rnd() % 5], n);
    c.o.sinks = rnd_int(-1, 20);
    c.o.window = rnd() % 3 ? 16 * rnd_int(0, 3) : -1;
    return c;
}

/* Everything in one call each. Returns the outputs. */
static float *reference(Case *c) {
    DibitKvOptions o = c->o;
    o.n_batch = c->n;
    o.n_threads = 1;
    o.n_layers = 1;
    DibitKv *kv = create(&o);
    append(c, kv, 0, 0, c->n);
    attend(c, kv, 0, 0, c->n, 0);
    dibit_kv_free(&kv);
    float *want = floats(q_floats(c, c->n));
    memcpy(want, c->out, q_floats(c, c->n) * sizeof *want);
    return want;
}

/* Pieces of any length, one or two threads, layers in turn: the same bits. */
static void pieces_threads_and_layers_change_nothing(void **state) {
    (void)state;
    for (int i = 0; i < 24; i++) {
        Case c = coarse_case(rnd_int(1, 200));
        float *want = reference(&c);
        c.o.n_threads = 1 + i % 2;
        c.o.n_layers = i % 3;
        c.o.n_batch = rnd_int(1, 40);
        DibitKv *kv = create(&c.o);
        memset(c.out, 0, q_floats(&c, c.n) * sizeof *c.out);
        for (int p = 0, m; p < c.n; p += m) {
            m = rnd_int(1, MIN(c.n - p, c.o.n_batch));
            for (int layer = 0; layer < MAX(1, c.o.n_layers); layer++) {
                append(&c, kv, layer, p, m);
                attend(&c, kv, layer, p, m, 0);
            }
            if (c.o.n_layers == 2 && p > 0) /* the other layer's scratch is in the way now */
                attend(&c, kv, 0, p + m - 1, 1, 0);
        }
        expect_same(want, c.out, q_floats(&c, c.n), "pieces");
        dibit_kv_free(&kv);
        free(want);
        free_case(&c);
    }
}

/* One position from the second half of the case's arrays, for one that is there already. */
static void overwrite(const Case *c, DibitKv *kv, int p) {
    const int shape[4] = { c->o.batch, c->o.n_kv_heads, 1, c->o.head_dim };
    float *k = part(c, c->k, c->o.n_kv_heads, p, 1), *v = part(c, c->v, c->o.n_kv_heads, p, 1);
    DibitError err = { 0 };
    int32_t position = p;
    int r = dibit_kv_append(kv, 0, shape, k, v, &position, &err);
    if (r < 0) fail_msg("overwrite %d: %s", p, err.text);
    free(k);
    free(v);
}

static void overwriting_equals_a_fresh_cache(void **state) {
    (void)state;
    for (int i = 0; i < 24; i++) {
        Case c = coarse_case(rnd_int(2, 200));
        int n = c.n, last = c.o.window == -1 ? n - 1 : (n - 1) / 16 * 16;
        float *k = c.k, *v = c.v;
        DibitKv *kv = create(&c.o);
        append(&c, kv, 0, 0, rnd_int(1, n - 1));
        c.k = floats(kv_floats(&c, n));
        c.v = floats(kv_floats(&c, n));
        DibitError err = { 0 };
        const int shape[4] = { c.o.batch, c.o.n_kv_heads, n, c.o.head_dim };
        if (i % 2) { /* all that are there and the rest, in one call */
            int32_t *all = malloc((size_t)n * sizeof *all);
            for (int p = 0; p < n; p++) all[p] = p;
            int r = dibit_kv_append(kv, 0, shape, c.k, c.v, all, &err);
            if (r != n) fail_msg("overwrite all: %d %s", r, err.text);
            free(all);
        } else { /* the old ones first, and then in any order */
            DibitKv *old = kv;
            kv = create(&c.o);
            dibit_kv_free(&old);
            Case was = c;
            was.k = k;
            was.v = v;
            append(&was, kv, 0, 0, n);
            for (int p = 0; p < n; p++) overwrite(&c, kv, rnd_int(0, n - 1));
            for (int p = n - 1; p >= 0; p--) overwrite(&c, kv, p);
        }
        attend(&c, kv, 0, last, n - last, 0);
        float *got = part(&c, c.out, c.o.n_heads, last, n - last), *all = reference(&c);
        float *want = part(&c, all, c.o.n_heads, last, n - last);
        expect_same(want, got, q_floats(&c, n - last), "overwritten");
        dibit_kv_free(&kv);
        free(want);
        free(all);
        free(got);
        free(k);
        free(v);
        free_case(&c);
    }
}

/* After cutting back, what is appended again gives the results of a cache that never went further:
 * from the position on that was asked for. */
static void truncated_equals_a_fresh_cache(void **state) {
    (void)state;
    int fewer = 0;
    for (int i = 0; i < 40; i++) {
        Case c = coarse_case(rnd_int(20, 200));
        int keep = rnd_int(0, c.n), window = c.o.window == 0 ? 64 : c.o.window;
        DibitKv *kv = create(&c.o);
        DibitError err = { 0 };
        append(&c, kv, 0, 0, c.n);
        int kept = dibit_kv_truncate(kv, keep, &err);
        if (kept < 0 || kept > keep || kept < keep - MAX(window, 0) - 16)
            fail_msg("kept %d of %d (window %d): %s", kept, keep, window, err.text);
        fewer += kept < keep;
        float *want = reference(&c);
        if (kept < keep) append(&c, kv, 0, kept, keep - kept);
        for (int p = keep, m; p < c.n; p += m) {
            m = rnd_int(1, MIN(c.n - p, 60));
            append(&c, kv, 0, p, m);
            attend(&c, kv, 0, p, m, 0);
        }
        expect_same(want, c.out, q_floats(&c, c.n), "truncated");
        dibit_kv_reset(kv);
        append(&c, kv, 0, 0, c.n);
        attend(&c, kv, 0, 0, c.n, 0);
        expect_same(want, c.out, q_floats(&c, c.n), "reset");
        dibit_kv_free(&kv);
        free(want);
        free_case(&c);
    }
    assert_true(fewer > 0);
}

/* Appending, overwriting and cutting back in any order: the next position always sees what a fresh
 * cache of the same vectors would show it. */
static void any_order_equals_a_fresh_cache(void **state) {
    (void)state;
    for (int i = 0; i < 12; i++) {
        Case c = coarse_case(300);
        DibitKv *kv = create(&c.o);
        DibitError err = { 0 };
        for (int step = 0, n = 0; step < 20; step++) {
            int back = rnd_int(0, rnd() % 2 ? 100 : c.n), to = MAX(0, n - back);
            int p = n ? rnd_int(0, n - 1) : 0;
            if (to < n) {
                int kept = dibit_kv_truncate(kv, to, &err);
                if (kept < 0) fail_msg("truncate: %s", err.text);
                append(&c, kv, 0, kept, to - kept);
                n = to;
            } else if (n > 0 && rnd() % 2) {
                float *x = floats(kv_floats(&c, 1));
                put_back(&c, rnd() % 2 ? c.k : c.v, x, c.o.n_kv_heads, p, 1);
                overwrite(&c, kv, p);
                free(x);
            }
            int m = rnd() % 2 ? 1 : rnd_int(1, MIN(c.n - n, 100));
            append(&c, kv, 0, n, m);
            n += m;
            attend(&c, kv, 0, n - 1, 1, 0);
            float *got = part(&c, c.out, c.o.n_heads, n - 1, 1);
            DibitKv *fresh = create(&c.o);
            append(&c, fresh, 0, 0, n);
            attend(&c, fresh, 0, n - 1, 1, 0);
            float *want = part(&c, c.out, c.o.n_heads, n - 1, 1);
            expect_same(want, got, q_floats(&c, 1), "any order");
            dibit_kv_free(&fresh);
            free(want);
            free(got);
            if (n == c.n) n = dibit_kv_truncate(kv, 0, &err);
        }
        dibit_kv_free(&kv);
        free_case(&c);
    }
}

/* ---- errors ---- */

static void expect_error(int got, int want, const DibitError *err, const char *text) {
    if (got != want || err->code != want || !strstr(err->text, text))
        fail_msg("%d (%d) \"%s\", expected %d \"%s\"", got, err->code, err->text, want, text);
}

static void options_are_checked(void **state) {
    static const DibitKvOptions good = { .n_kv_heads = 2, .head_dim = 64, .max_positions = 100 };
    static const struct {
        size_t at;
        int value;
        const char *text;
    } rows[] = {
        { offsetof(DibitKvOptions, batch), -1, "batch: -1" },
        { offsetof(DibitKvOptions, batch), 1 << 15 | 1, "batch x n_heads" },
        { offsetof(DibitKvOptions, n_kv_heads), 0, "n_kv_heads: 0" },
        { offsetof(DibitKvOptions, n_kv_heads), INT32_MAX, "n_kv_heads: 2147483647" },
        { offsetof(DibitKvOptions, n_heads), 3, "n_heads: 3 is not a multiple of n_kv_heads, 2" },
        { offsetof(DibitKvOptions, n_heads), -2, "n_heads: -2" },
        { offsetof(DibitKvOptions, head_dim), 0, "head_dim: 0" },
        { offsetof(DibitKvOptions, head_dim), 264, "head_dim: 264" },
        { offsetof(DibitKvOptions, head_dim), 60, "multiple of 8" },
        { offsetof(DibitKvOptions, max_positions), 0, "max_positions: 0" },
        { offsetof(DibitKvOptions, max_positions), INT32_MAX, "max_positions: 2147483647" },
        { offsetof(DibitKvOptions, n_layers), -1, "n_layers: -1" },
        { offsetof(DibitKvOptions, n_batch), -1, "n_batch: -1" },
        { offsetof(DibitKvOptions, sinks), 257, "sinks: 257" },
        { offsetof(DibitKvOptions, window), 24, "window: 24" },
        { offsetof(DibitKvOptions, window), INT32_MIN, "window: -2147483648" },
        { offsetof(DibitKvOptions, n_threads), -1, "n_threads: -1" },
    };
    (void)state;
    DibitKv *kv;
    DibitError err;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        DibitKvOptions o = good;
        memcpy((char *)&o + rows[i].at, &rows[i].value, sizeof rows[i].value);
        kv = (DibitKv *)&o;
        expect_error(dibit_kv_create(&kv, &o, &err), DIBIT_E_ARGUMENT, &err, rows[i].text);
        assert_null(kv);
    }
    DibitKvOptions o = good;
    o.type_v = "k4";
    expect_error(dibit_kv_create(&kv, &o, &err), DIBIT_E_ARGUMENT, &err, "type_v: 'k4'");
    o.type_v = "k2";
    o.head_dim = 24;
    expect_error(dibit_kv_create(&kv, &o, &err), DIBIT_E_ARGUMENT, &err, "multiple of 16");
    expect_error(dibit_kv_create(&kv, NULL, &err), DIBIT_E_ARGUMENT, &err, "no options");
    assert_int_equal(dibit_kv_create(&kv, NULL, NULL), DIBIT_E_ARGUMENT);
}

enum { B = 2, KV = 2, H = 4, D = 32, ROOM = 12 };

static void expect_shape_error(DibitKv *kv, const float *x, float *out, int at, int value) {
    int kv_shape[4] = { B, KV, 1, D }, q_shape[4] = { B, H, 1, D };
    char shape[80];
    DibitError err;
    kv_shape[at] = q_shape[at] = value;
    snprintf(shape, sizeof shape, "[%d, %d, %d, %d]", kv_shape[0], kv_shape[1], kv_shape[2],
             kv_shape[3]);
    expect_error(dibit_kv_append(kv, 0, kv_shape, x, x, NULL, &err), DIBIT_E_ARGUMENT, &err, shape);
    assert_non_null(strstr(err.text, "[2, 2, n, 32]"));
    expect_error(dibit_kv_read(kv, 0, kv_shape, out, out, NULL, &err), DIBIT_E_ARGUMENT, &err,
                 shape);
    expect_error(dibit_kv_attend(kv, 0, q_shape, x, NULL, 0, out, &err), DIBIT_E_ARGUMENT, &err,
                 "[2, 4, n, 32]");
}

static void calls_are_checked(void **state) {
    static const int one[4] = { B, KV, 1, D }, two[4] = { B, KV, 2, D }, q1[4] = { B, H, 1, D };
    static const int none[4] = { B, KV, 0, D }, many[4] = { B, KV, ROOM + 1, D };
    const DibitKvOptions o = { B, KV, H, D, ROOM, .type_k = "k3", .n_threads = 1 };
    (void)state;
    DibitKv *kv = create(&o);
    float *x = floats(B * H * D * (ROOM + 1)), out[B * H * D];
    DibitError e;
    int32_t p[2] = { ROOM, 0 };
    expect_error(dibit_kv_append(kv, 0, one, x, x, p, &e), DIBIT_E_CONTEXT, &e,
                 "position 12 is outside the cache, which takes 0..11");
    p[0] = -1;
    expect_error(dibit_kv_append(kv, 0, one, x, x, p, &e), DIBIT_E_CONTEXT, &e, "position -1");
    p[0] = 1;
    expect_error(dibit_kv_append(kv, 0, one, x, x, p, &e), DIBIT_E_ARGUMENT, &e,
                 "position 1 leaves a gap: the next one is 0");
    p[0] = 0, p[1] = 2;
    expect_error(dibit_kv_append(kv, 0, two, x, x, p, &e), DIBIT_E_ARGUMENT, &e, "gap");
    expect_error(dibit_kv_append(kv, 0, many, x, x, NULL, &e), DIBIT_E_CONTEXT, &e, "position 12");
    expect_error(dibit_kv_append(kv, 1, one, x, x, NULL, &e), DIBIT_E_ARGUMENT, &e, "layer 1");
    expect_error(dibit_kv_append(kv, 0, one, NULL, x, NULL, &e), DIBIT_E_ARGUMENT, &e, "the key");
    expect_error(dibit_kv_append(kv, 0, one, x, NULL, NULL, &e), DIBIT_E_ARGUMENT, &e, "the value");
    expect_error(dibit_kv_append(kv, 0, NULL, x, x, NULL, &e), DIBIT_E_ARGUMENT, &e, "no shape");
    for (int at = 0; at < 4; at++) expect_shape_error(kv, x, out, at, at == 2 ? -1 : 3);
    expect_error(dibit_kv_attend(kv, 0, q1, x, NULL, 0, out, &e), DIBIT_E_ARGUMENT, &e, "holds 0");
    assert_int_equal(dibit_kv_append(kv, 0, one, x, x, NULL, &e), 1);
    assert_int_equal(dibit_kv_append(kv, 0, none, NULL, NULL, NULL, &e), 1);
    p[0] = 1;
    expect_error(dibit_kv_attend(kv, 0, q1, x, p, 0, out, &e), DIBIT_E_ARGUMENT, &e,
                 "position 1 is empty: the layer holds 1 positions");
    expect_error(dibit_kv_read(kv, 0, one, out, out, p, &e), DIBIT_E_ARGUMENT, &e, "position 1");
    expect_error(dibit_kv_read(kv, 0, two, x, x, NULL, &e), DIBIT_E_ARGUMENT, &e, "2 positions");
    expect_error(dibit_kv_attend(kv, -1, q1, x, p, 0, out, &e), DIBIT_E_ARGUMENT, &e, "layer -1");
    expect_error(dibit_kv_attend(kv, 0, q1, NULL, NULL, 0, out, &e), DIBIT_E_ARGUMENT, &e, "array");
    expect_error(dibit_kv_truncate(kv, 2, &e), DIBIT_E_ARGUMENT, &e, "layer 0 holds 1");
    expect_error(dibit_kv_truncate(kv, -1, &e), DIBIT_E_ARGUMENT, &e, "-1 positions");
    assert_int_equal(dibit_kv_truncate(kv, 1, &e), 1);
    dibit_kv_free(&kv);
    dibit_kv_free(&kv);
    dibit_kv_free(NULL);
    free(x);
}

/* Far behind the window a query's q8 rows are gone: an error that says where there are any. */
static void queries_too_far_back_are_named(void **state) {
    const DibitKvOptions o = { 1, 1, 1, 32, 200, .type_v = "k2", .n_batch = 10, .n_threads = 1 };
    const int shape[4] = { 1, 1, 150, 32 }, one[4] = { 1, 1, 1, 32 };
    (void)state;
    DibitKv *kv = create(&o);
    float *x = floats(150 * 32), out[32];
    DibitError err;
    assert_int_equal(dibit_kv_append(kv, 0, shape, x, x, NULL, &err), 150);
    for (int32_t p = 0; p < 150; p++) { /* the last pass was 140..149, 144 begins the last block */
        int r = dibit_kv_attend(kv, 0, one, x, &p, 0, out, &err);
        if (p < 140)
            expect_error(r, DIBIT_E_ARGUMENT, &err, "from 144 on");
        else
            assert_int_equal(r, 0);
    }
    dibit_kv_free(&kv);
    free(x);
}

/* What is not finite, or too large for the type, is named and changes nothing. */
static void bad_numbers_leave_the_cache_as_it_was(void **state) {
    static const float large[] = { 7e4f, 9e6f, 6e5f, 9e6f, 9e6f };
    static const int shape[4] = { B, KV, 2, D }, q_shape[4] = { B, H, 1, D };
    (void)state;
    for (int i = 0; i < 5 * 4 * 2; i++) {
        int type = i % 5, kind = i / 5 % 4, side = i / 20;
        const DibitKvOptions o = {
            B, KV, H, D, ROOM, .n_threads = 1, .type_k = names[type], .type_v = names[type]
        };
        DibitKv *kv = create(&o);
        float *x[2] = { floats(B * KV * 2 * D), floats(B * KV * 2 * D) }, *q = floats(B * H * D);
        float want[B * H * D], got[B * H * D];
        DibitError err;
        const int32_t positions[2] = { 1, 2 };
        assert_int_equal(dibit_kv_append(kv, 0, shape, x[0], x[1], NULL, &err), 2);
        assert_int_equal(dibit_kv_attend(kv, 0, q_shape, q, NULL, 0, want, &err), 0);
        /* batch 1, head 0, the second of two positions, value 5 */
        x[side][((1 * KV + 0) * 2 + 1) * D + 5] = kind == 0   ? NAN
                                                  : kind == 1 ? INFINITY
                                                  : kind == 2 ? -INFINITY
                                                              : large[type];
        int r = dibit_kv_append(kv, 0, shape, x[0], x[1], positions, &err);
        expect_error(r, DIBIT_E_NUMERIC, &err, "at batch 1, head 0, position 2");
        assert_non_null(strstr(err.text, side ? "the value " : "the key "));
        assert_non_null(strstr(err.text, kind == 0  ? "is NaN"
                                         : kind < 3 ? "is infinite"
                                                    : "holds up to"));
        if (kind < 3) assert_non_null(strstr(err.text, "value 5"));
        assert_int_equal(dibit_kv_attend(kv, 0, q_shape, q, NULL, 0, got, &err), 0);
        expect_same(want, got, B * H * D, "after an error");
        assert_int_equal(dibit_kv_append(kv, 0, shape, x[side], x[side], NULL, &err),
                         DIBIT_E_NUMERIC);
        q[D + 3] = kind == 0 ? NAN : INFINITY; /* head 1 of batch 0 */
        expect_error(dibit_kv_attend(kv, 0, q_shape, q, NULL, 0, got, &err), DIBIT_E_NUMERIC, &err,
                     "batch 0, head 1, position 1");
        dibit_kv_free(&kv);
        free(x[0]);
        free(x[1]);
        free(q);
    }
}

/* The largest vectors that pass are held: one value with all of the length, and all alike. */
static void the_largest_numbers_are_held(void **state) {
    static const float large[] = { 65504, 8.3e6f, 5.2e5f, 8.3e6f, 8.3e6f };
    static const int shape[4] = { 1, 1, 40, 64 };
    (void)state;
    for (int type = 0; type < 5; type++) {
        DibitKvOptions o = { .n_kv_heads = 1, .head_dim = 64, .max_positions = 40, .n_threads = 1 };
        o.type_k = o.type_v = names[type];
        o.sinks = o.window = -1;
        DibitKv *kv = create(&o);
        DibitError err = { 0 };
        static float x[40 * 64], got[40 * 64];
        for (int i = 0; i < 40 * 64; i++) {
            int p = i / 64, one = p < 20 ? i % 64 == p * 3 : 1;
            float size = p < 20 || type < 2 ? 1 : 0.1249f; /* 1 / sqrt(64), a little less */
            x[i] = one ? (rnd() % 2 ? -large[type] : large[type]) * size : 0;
        }
        if (dibit_kv_append(kv, 0, shape, x, x, NULL, &err) != 40)
            fail_msg("%s: %s", names[type], err.text);
        assert_int_equal(dibit_kv_read(kv, 0, shape, got, NULL, NULL, &err), 0);
        for (int i = 0; i < 40 * 64; i++) { /* records saturate */
            assert_true(isfinite(got[i]));
            if (type < 3)
                assert_true(fabsf(got[i] - x[i]) <= large[type] * (type < 2 ? 0.01f : 0.2f));
        }
        dibit_kv_free(&kv);
    }
}

/* ---- memory ---- */

typedef struct Counter { /* the pool's threads release too */
    atomic_long n_calls, n_live;
    atomic_size_t n_bytes;
    long fail_at;
    size_t most;
} Counter;

static void *counting_alloc(void *user, size_t size, size_t align) {
    Counter *c = user;
    if (atomic_fetch_add(&c->n_calls, 1) == c->fail_at) return NULL;
    if (size > c->most - atomic_load(&c->n_bytes)) return NULL;
    atomic_fetch_add(&c->n_live, 1);
    atomic_fetch_add(&c->n_bytes, size);
    return aligned_alloc(align, size);
}

static void counting_release(void *user, void *ptr, size_t size) {
    Counter *c = user;
    atomic_fetch_sub(&c->n_live, 1);
    atomic_fetch_sub(&c->n_bytes, size);
    free(ptr);
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    Counter c = { .fail_at = -1, .most = SIZE_MAX };
    DibitKvOptions o = { 2, 2, 4, 64, 600, .n_layers = 3, .type_k = "k3", .n_threads = 2 };
    o.memory = (DibitAllocator){ counting_alloc, counting_release, &c };
    DibitKv *kv = create(&o);
    DibitKvBytes bytes;
    dibit_kv_bytes(kv, &bytes);
    size_t allocated = atomic_load(&c.n_bytes);
    print_message("%zu bytes allocated, %zu + %zu reported\n", allocated, bytes.rows,
                  bytes.scratch);
    assert_true(bytes.rows + bytes.scratch <= allocated);
    assert_true(bytes.rows + bytes.scratch + 8192 >= allocated);
    long n = atomic_load(&c.n_calls);
    float *x = floats(2 * 4 * 600 * 64);
    const int all[4] = { 2, 2, 600, 64 }, q[4] = { 2, 4, 1, 64 };
    DibitError err = { 0 };
    assert_int_equal(dibit_kv_append(kv, 1, all, x, x, NULL, &err), 600);
    assert_int_equal(dibit_kv_attend(kv, 1, q, x, NULL, 0, x, &err), 0);
    assert_int_equal(atomic_load(&c.n_calls), n); /* no call but create allocates */
    dibit_kv_free(&kv);
    assert_int_equal(atomic_load(&c.n_live), 0);
    assert_int_equal(atomic_load(&c.n_bytes), 0);
    assert_true(n > 15);
    for (long i = 0; i < n; i++) {
        atomic_store(&c.n_calls, 0);
        c.fail_at = i;
        err = (DibitError){ 0 };
        int r = dibit_kv_create(&kv, &o, &err);
        if (r != DIBIT_E_MEMORY || err.code != r || !err.text[0] || kv ||
            atomic_load(&c.n_live) != 0)
            fail_msg("allocation %ld of %ld: %d \"%s\", %ld live", i, n, r, err.text,
                     atomic_load(&c.n_live));
    }
    print_message("each of %ld allocations failed once\n", n);
    free(x);
}

/* Sizes that wrap, or that nobody has. */
static void huge_caches_are_refused(void **state) {
    (void)state;
    for (int type = 0; type < 5; type++) {
        Counter c = { .fail_at = -1, .most = 64 << 20 };
        DibitKvOptions o = { 256,
                             256,
                             256,
                             256,
                             1 << 24,
                             .n_layers = 1024,
                             .n_batch = 1 << 16,
                             .type_k = names[type],
                             .window = 1 << 16 };
        o.memory = (DibitAllocator){ counting_alloc, counting_release, &c };
        DibitKv *kv;
        DibitError err;
        expect_error(dibit_kv_create(&kv, &o, &err), DIBIT_E_MEMORY, &err, "no memory for a KV");
        assert_null(kv);
        assert_int_equal(atomic_load(&c.n_live), 0);
    }
}

/* Exactly 2 and 3 bits a value, and q8 beside for sinks and window; odd vectors are counted. */
static void bytes_and_counts(void **state) {
    static const size_t bits[] = { 16, 0, 0, 3, 2 };
    (void)state;
    for (int type = 0; type < 5; type++) {
        DibitKvOptions o = { 1, 2, 2, 64, 512, .type_k = names[type], .type_v = names[type] };
        o.sinks = o.window = -1;
        o.n_threads = 1;
        DibitKv *kv = create(&o);
        DibitKvBytes bytes;
        dibit_kv_bytes(kv, &bytes);
        if (bits[type]) assert_int_equal(bytes.rows, 2 * 2 * 512 * 64 * bits[type] / 8);
        const int shape[4] = { 1, 2, 2, 64 };
        float *x = floats(2 * 2 * 64);
        DibitError err;
        memset(x, 0, 64 * sizeof *x);                 /* all zero: nothing is lost */
        for (int i = 64; i < 128; i++) x[i] *= 1e-6f; /* too small */
        for (int i = 128; i < 192; i++) x[i] *= 2000; /* too large */
        assert_int_equal(dibit_kv_append(kv, 0, shape, x, x, NULL, &err), 2);
        dibit_kv_bytes(kv, &bytes);
        int records = type >= 3;
        assert_int_equal(bytes.n_zero, 2 * records);
        assert_int_equal(bytes.n_saturated, 2 * records);
        float got[2 * 2 * 64];
        assert_int_equal(dibit_kv_read(kv, 0, shape, got, NULL, NULL, &err), 0);
        for (int i = 0; i < 64; i++) assert_true(got[i] == 0);
        for (int i = 64; i < 128; i++) assert_true(!records || got[i] == 0);
        dibit_kv_reset(kv);
        dibit_kv_bytes(kv, &bytes);
        assert_true(bytes.n_zero == 0 && bytes.n_saturated == 0);
        dibit_kv_free(&kv);
        free(x);
    }
}

int main(int argc, char **argv) {
    rng = argc > 1 ? strtoull(argv[1], NULL, 0) : clock_ns();
    print_message("seed %llu\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_types_match_plain_attention),
        cmocka_unit_test(coarse_types_match_what_read_gives),
        cmocka_unit_test(read_gives_the_vectors),
        cmocka_unit_test(pieces_threads_and_layers_change_nothing),
        cmocka_unit_test(overwriting_equals_a_fresh_cache),
        cmocka_unit_test(truncated_equals_a_fresh_cache),
        cmocka_unit_test(any_order_equals_a_fresh_cache),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(calls_are_checked),
        cmocka_unit_test(queries_too_far_back_are_named),
        cmocka_unit_test(bad_numbers_leave_the_cache_as_it_was),
        cmocka_unit_test(the_largest_numbers_are_held),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(huge_caches_are_refused),
        cmocka_unit_test(bytes_and_counts),
    };
    return cmocka_run_group_tests_name("kv", tests, NULL, NULL);
}
