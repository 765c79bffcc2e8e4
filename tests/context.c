/* context.c - which context fits: figures worked out by hand for each family of models, the search
 * against a count one by one, budgets at their edges, and `dibit context` as a user runs it. */
#define _GNU_SOURCE
#include "program.h"

#include <jansson.h>

#include "cache.h"
#include "context.h"
#include "shape.h"

static const ContextTypes all_types[] = {
    { .k = KV_F16, .v = KV_F16 }, { .k = KV_Q8, .v = KV_Q8 }, { .k = KV_Q4, .v = KV_Q4 },
    { .k = KV_K3, .v = KV_K3 },   { .k = KV_K2, .v = KV_K2 }, { .k = KV_K3, .v = KV_K2 }
};
static const ContextOptions base4096 = { 0, 4096, 4, 64, 2 };

static ContextModel named(const char *name) {
    ContextModel m;
    DibitError err = { 0 };
    if (context_named(&m, name, "q4", "q8", &err) != 0) die("%s: %s", name, err.text);
    return m;
}

static ContextRow planned(const ContextModel *m, const ContextOptions *o, int k, int v) {
    ContextRow row;
    DibitError err = { 0 };
    if (context_plan(m, o, &(ContextTypes){ .k = k, .v = v }, &row, &err) != 0)
        die("%s: %s", m->name, err.text);
    return row;
}

/* ---- facts ---- */

/* Sums of weights as published with the models (the sizes of their files), embeddings included. */
static void weights_are_the_published_ones(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint64_t n;
    } rows[] = {
        { "base-34m", 33563136 },           { "llama-2-7b", 6738415616 },
        { "llama-2-13b", 13015864320 },     { "llama-2-70b", 68976648192 },
        { "llama-3-8b", 8030261248 },       { "llama-3-70b", 70553706496 },
        { "llama-3.1-8b", 8030261248 },     { "llama-3.2-1b", 1235814400 },
        { "llama-3.2-3b", 3212749824 },     { "mistral-7b", 7241732096 },
        { "mistral-7b-v0.3", 7248023552 },  { "smollm2-135m", 134515008 },
        { "smollm2-360m", 361821120 },      { "smollm2-1.7b", 1711376384 },
        { "qwen2.5-0.5b", 494032768 },      { "qwen2.5-1.5b", 1543714304 },
        { "qwen2.5-3b", 3085938688 },       { "qwen2.5-7b", 7615616512 },
        { "qwen3-0.6b", 596049920 },        { "qwen3-1.7b", 1720574976 },
        { "qwen3-4b", 4022468096 },         { "qwen3-8b", 8190735360 },
        { "phi-3-mini", 3821079552 },       { "phi-3-mini-128k", 3821079552 },
        { "bert-base", 109482240 },         { "whisper-tiny", 37760640 },
        { "whisper-base", 72593920 },       { "whisper-small", 241734912 },
        { "whisper-medium", 763857920 },    { "whisper-large", 1543304960 },
        { "whisper-large-v3", 1543490560 }, { "whisper-large-v3-turbo", 808878080 },
    };
    int n = 0;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        ContextModel m = named(rows[i].name);
        if (m.n_params != rows[i].n)
            die("%s: %llu weights, published are %llu", m.name, (unsigned long long)m.n_params,
                (unsigned long long)rows[i].n);
    }
    for (; shape_at(n); n++) { /* each row once, and a shape that holds together */
        const Shape *s = shape_at(n);
        assert_ptr_equal(shape_find(s->name), s);
        assert_ptr_equal(shape_find(s->source), s);
        assert_int_equal(s->n_heads % s->n_kv_heads, 0);
        if (s->family != SHAPE_QWEN3) assert_int_equal(s->n_heads * s->head_dim, s->n_embd);
    }
    assert_int_equal(n, ARRAY_LEN(rows));
    assert_ptr_equal(shape_find("Meta-Llama/llama-2-70B-HF"), shape_find("llama-2-70b"));
    assert_null(shape_find("llama-2-70"));
}

/* q4 has 18 bytes and q8 34 for 32 weights, vectors are f32. */
static void weight_bytes_by_hand(void **state) {
    (void)state;
    ContextModel m = named("llama-2-7b");
    uint64_t head = 2ull * 32000 * 4096, norms = 65ull * 4096, body = m.n_params - head - norms;
    assert_int_equal(m.weights, body / 32 * 18 + head / 32 * 34 + norms * 4);
    DibitError err = { 0 };
    assert_int_equal(context_named(&m, "smollm2-135m", "q4_k", "q8", &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "576 columns"));
    assert_int_equal(context_named(&m, "llama-2-7b", "q5", "q8", &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "\"q5\""));
}

/* Layers x KV heads x (K and V) x bytes of a row: f16 2d, q8 d + 2, q4 d / 2 + 2 for each 32, k3
 * 3d / 8, k2 d / 4. */
static void bytes_per_token_by_hand(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t f16, q8, q4, k3, k2;
    } rows[] = {
        { "llama-2-7b", 524288, 266240, 147456, 98304, 65536 },
        { "llama-2-70b", 327680, 166400, 92160, 61440, 40960 },
        { "llama-3.2-1b", 32768, 16896, 9216, 6144, 4096 },
        { "mistral-7b", 131072, 66560, 36864, 24576, 16384 },
        { "qwen2.5-0.5b", 12288, 6336, 3456, 2304, 1536 },
        { "qwen3-0.6b", 114688, 58240, 32256, 21504, 14336 },
        { "smollm2-135m", 23040, 11880, 6480, 4320, 2880 },
        { "phi-3-mini", 393216, 200704, 110592, 73728, 49152 }, /* d = 96 */
        { "bert-base", 36864, 19008, 10368, 6912, 4608 },
        { "whisper-tiny", 6144, 3168, 1728, 1152, 768 },
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        ContextModel m = named(rows[i].name);
        const size_t want[] = { rows[i].f16, rows[i].q8, rows[i].q4, rows[i].k3, rows[i].k2 };
        for (size_t t = 0; t < 5; t++) {
            ContextRow r = planned(&m, &base4096, all_types[t].k, all_types[t].v);
            if (r.per_token != want[t] || r.f16_per_token != want[0])
                die("%s, type %zu: %zu bytes", m.name, t, r.per_token);
        }
    }
}

/* docs/CONTEXT.md has this arithmetic in words. f16: 4096 x 327,680 bytes. In q8: 80 layers x 8
 * heads x 2 sides x 68 rows of 130 bytes. The rest goes to records, in blocks of 16; 64 more
 * positions are in the window alone. */
static void llama_2_70b_by_hand(void **state) {
    (void)state;
    ContextModel m = named("llama-2-70b");
    const size_t budget = (size_t)4096 * 327680, recent = (size_t)80 * 8 * 2 * 68 * 130;
    ContextRow f16 = planned(&m, &base4096, KV_F16, KV_F16);
    assert_int_equal(f16.extended, 4096);
    assert_int_equal(f16.kv, budget);
    assert_true(f16.ratio == 1);
    for (int bits = 2; bits <= 3; bits++) {
        size_t record = bits == 2 ? 40960 : 61440;
        int want = (int)((budget - recent) / record / 16 * 16) + 64;
        assert_int_equal(want, bits == 2 ? 32544 : 21712);
        ContextRow r = planned(&m, &base4096, bits == 2 ? KV_K2 : KV_K3, bits == 2 ? KV_K2 : KV_K3);
        assert_int_equal(r.extended, want);
        assert_int_equal(r.base, 4096);
        assert_int_equal(r.sinks + r.window, recent);
        assert_int_equal(r.sinks, recent / 68 * 4);
        assert_int_equal(r.kv, (size_t)(want - 64) * record + recent);
        assert_true(r.ratio >= (bits == 2 ? 7.9 : 5.3)); /* the bar */
        assert_true(fabs(r.ratio - (bits == 2 ? 7.9453125 : 5.30078125)) < 1e-12);
        assert_false(r.unbounded);
    }
    ContextOptions bare = base4096; /* without sinks and window: the records' own ratio */
    bare.sinks = bare.window = 0;
    assert_true(planned(&m, &bare, KV_K2, KV_K2).ratio == 8);
    assert_int_equal(planned(&m, &bare, KV_K3, KV_K3).extended, 4096 * 16 / 3 / 16 * 16);
}

/* ---- windows, encoders ---- */

static void sliding_windows_stop_growing(void **state) {
    (void)state;
    ContextModel m = named("mistral-7b");
    size_t at, beyond;
    const ContextTypes *f16 = &all_types[0], *k2 = &all_types[4];
    assert_true(context_kv_bytes(&m, &base4096, f16, 4096, &at));
    assert_true(context_kv_bytes(&m, &base4096, f16, 32768, &beyond));
    assert_int_equal(at, (size_t)4096 * 131072);
    assert_int_equal(beyond, at);
    assert_true(context_kv_bytes(&m, &base4096, k2, 1 << 30, &beyond));
    assert_int_equal(beyond, (size_t)(4096 - 64) * 16384 + (size_t)32 * 8 * 2 * 68 * 130);
    ContextRow r = planned(&m, &base4096, KV_K2, KV_K2);
    assert_true(r.unbounded);
    assert_int_equal(r.extended, 32768);
    assert_int_equal(r.base, 32768);
    ContextOptions less = base4096; /* than a window: f16 has its 1000, k2 all */
    less.base = 1000;
    r = planned(&m, &less, KV_K2, KV_K2);
    assert_int_equal(r.base, 1000);
    assert_true(r.unbounded);
    m.parts[0].window = 0;
    r = planned(&m, &base4096, KV_K2, KV_K2);
    assert_false(r.unbounded);
    assert_int_equal(r.extended, 32544);
    assert_int_equal(named("mistral-7b-v0.3").parts[0].window, 0);
}

static void whisper_has_two_parts(void **state) {
    (void)state;
    ContextModel m = named("whisper-large-v3");
    ContextOptions o = base4096;
    o.base = m.n_ctx_train;
    assert_int_equal(m.n_ctx_train, 448);
    assert_true(m.learned);
    assert_false(m.encoder);
    ContextRow r = planned(&m, &o, KV_F16, KV_F16);
    assert_int_equal(r.kv, (size_t)(448 + 1500) * 32 * 20 * 2 * 128);
    assert_int_equal(r.fixed, (size_t)1500 * 32 * 20 * 2 * 128);
    assert_int_equal(r.extended, 448);
    r = planned(&m, &o, KV_K2, KV_K2);
    assert_int_equal(r.fixed, (size_t)1504 * 32 * 20 * 2 * 16); /* no window: whole blocks */
    assert_int_equal(r.sinks + r.window, (size_t)32 * 20 * 2 * 68 * 66);
    m = named("bert-base"); /* sees all positions at once: no window */
    o.base = 512;
    r = planned(&m, &o, KV_K2, KV_K2);
    assert_true(m.encoder && m.learned);
    assert_int_equal(r.sinks + r.window, 0);
    assert_int_equal(r.extended, 4096);
}

/* ---- the search ---- */

static void the_plan_is_what_the_cache_takes(void **state) {
    (void)state;
    ContextModel m = { .name = "small", .n_parts = 1, .n_ctx_train = 512 };
    m.parts[0] = (ContextPart){ 2, 2, 64, 0, 0, true };
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++)
        for (int base = 300; base < 316; base += 5) {
            ContextOptions o = { 0, base, 4, 64, 1 };
            size_t budget, more;
            ContextRow r = planned(&m, &o, all_types[i].k, all_types[i].v);
            CacheShape s = { .n_layers = 2,
                             .n_kv_heads = 2,
                             .head_dim = 64,
                             .n_ctx = r.extended,
                             .type_k = all_types[i].k,
                             .type_v = all_types[i].v,
                             .sinks = 4,
                             .window = 64 };
            Cache c;
            assert_true(context_kv_bytes(&m, &o, &all_types[0], base, &budget));
            assert_int_equal(cache_create(&c, &s, NULL, NULL), 0);
            assert_int_equal(cache_allocated(&c), r.kv);
            assert_true(r.kv <= budget);
            cache_free(&c);
            assert_true(context_kv_bytes(&m, &o, &all_types[i], r.extended + 1, &more));
            assert_true(more > budget);
        }
}

/* Weights, scratch and cache of n positions, or SIZE_MAX. */
static size_t total_at(const ContextModel *m, const ContextOptions *o, const ContextTypes *types,
                       int n) {
    size_t kv, scratch;
    if (!context_kv_bytes(m, o, types, n, &kv) || !context_scratch_bytes(m, o, types, n, &scratch))
        return SIZE_MAX;
    return m->weights + kv + scratch;
}

static void the_longest_that_fits(void **state) {
    (void)state;
    ContextModel m = named("smollm2-135m");
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        int before = 0;
        for (size_t mb = 90; mb < 3000; mb += mb < 100 ? 1 : mb / 3) { /* few positions, and many */
            ContextOptions o = { mb << 20, 0, 4, 64, 3 };
            ContextRow r = planned(&m, &o, all_types[i].k, all_types[i].v);
            ContextRow f16 = planned(&m, &o, KV_F16, KV_F16);
            assert_true(r.extended >= before); /* more memory, never less context */
            assert_true(r.extended >= f16.extended);
            assert_int_equal(r.base, f16.extended);
            before = r.extended;
            if (r.extended == 0) continue;
            assert_int_equal(m.weights + r.kv + r.scratch,
                             total_at(&m, &o, &all_types[i], r.extended));
            assert_true(m.weights + r.kv + r.scratch <= o.budget);
            assert_true(total_at(&m, &o, &all_types[i], r.extended + 1) > o.budget);
        }
        assert_true(before > 100000);
    }
}

static void budgets_at_their_edges(void **state) {
    (void)state;
    ContextModel m = named("llama-3.2-1b");
    const ContextTypes *f16 = &all_types[0];
    ContextOptions o = { 1, 0, 4, 64, 2 };
    ContextRow r = planned(&m, &o, KV_K2, KV_K2);
    assert_int_equal(r.extended, 0);
    assert_int_equal(r.base, 0);
    assert_true(r.ratio == 0);
    o.budget = m.weights;
    assert_int_equal(planned(&m, &o, KV_F16, KV_F16).extended, 0);
    o.budget = total_at(&m, &o, f16, 1000); /* exactly 1000, and a byte less */
    assert_int_equal(planned(&m, &o, KV_F16, KV_F16).extended, 1000);
    o.budget--;
    assert_int_equal(planned(&m, &o, KV_F16, KV_F16).extended, 999);
    o.budget = SIZE_MAX; /* all that a session can have, and nothing wraps */
    assert_int_equal(planned(&m, &o, KV_K2, KV_K2).extended, CONTEXT_LIMIT);
    assert_int_equal(planned(&m, &o, KV_F16, KV_F16).base, CONTEXT_LIMIT);
    o = base4096;
    o.base = CONTEXT_LIMIT; /* of f16: k2 would have more than the limit */
    r = planned(&m, &o, KV_K2, KV_K2);
    assert_int_equal(r.extended, CONTEXT_LIMIT);
    assert_false(r.unbounded);
    m.parts[0] = (ContextPart){ 1024, INT32_MAX, 256, 0, 0, true }; /* bytes wrap */
    DibitError err = { 0 };
    assert_int_equal(context_plan(&m, &o, f16, &r, &err), DIBIT_E_MEMORY);
    o.base = 1;
    size_t n;
    assert_false(context_kv_bytes(&m, &o, f16, INT32_MAX, &n));
}

static void shapes_that_no_cache_has(void **state) {
    (void)state;
    ContextModel m = { .name = "odd", .n_parts = 1, .n_ctx_train = 512 };
    ContextOptions o = base4096;
    ContextRow r;
    DibitError err = { 0 };
    m.parts[0] = (ContextPart){ 2, 2, 40, 0, 0, true }; /* no record of 40 values */
    assert_int_equal(context_plan(&m, &o, &all_types[4], &r, &err), DIBIT_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "multiple of 16"));
    assert_int_equal(context_plan(&m, &o, &all_types[1], &r, &err), 0);
    o.window = 40;
    assert_int_equal(context_plan(&m, &o, &all_types[1], &r, &err), DIBIT_E_UNSUPPORTED);
    ContextTypes t;
    assert_int_equal(context_types(&t, &m, "k3/k2", 5, NULL, NULL), 0);
    assert_true(t.k == KV_K3 && t.v == KV_K2 && !t.mixed);
    assert_int_equal(context_types(&t, &m, "q8,rest", 2, "", NULL), 0);
    assert_true(t.k == KV_Q8 && t.v == KV_Q8);
    static const char *const bad[] = { "", "/", "k2/", "/k2", "k2/k3/q4", "k4", "a long name" };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(context_types(&t, &m, bad[i], strlen(bad[i]), NULL, &err),
                         DIBIT_E_ARGUMENT);
    assert_int_equal(context_types(&t, &m, "k2", 2, "2=q4", &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "layers 0 to 1"));
}

/* Llama 3.2 1B, 16 layers of 8 heads of 64, two of them in q4 and one with V in f16: by hand. */
static void single_layers(void **state) {
    (void)state;
    ContextModel m = named("llama-3.2-1b");
    ContextTypes t;
    ContextRow r;
    assert_int_equal(context_types(&t, &m, "k2", 2, "0,15=q4;7=k3/f16", NULL), 0);
    assert_int_equal(context_plan(&m, &base4096, &t, &r, NULL), 0);
    size_t records = 8 * (13 * 2 * 16 + 24), rows = 8 * (2 * 2 * 36 + 128), sides = 13 * 2 + 1;
    assert_int_equal(r.per_token, records + rows);
    assert_int_equal(r.sinks + r.window, sides * 8 * 68 * 66);
    CacheShape s = { .n_layers = 16, .n_kv_heads = 8, .head_dim = 64, .n_ctx = r.extended };
    s.layer_types = t.layers;
    s.sinks = 4;
    s.window = 64;
    size_t n, budget = (size_t)4096 * 32768;
    assert_true(cache_bytes(&s, &n));
    assert_int_equal(n, r.kv);
    assert_true(n <= budget);
    s.n_ctx++;
    assert_true(cache_bytes(&s, &n) && n > budget);
    /* all layers named: as that type */
    assert_int_equal(context_types(&t, &m, "f16", 3, "0-15=k2", NULL), 0);
    assert_int_equal(context_plan(&m, &base4096, &t, &r, NULL), 0);
    assert_int_equal(r.extended, planned(&m, &base4096, KV_K2, KV_K2).extended);
}

/* ---- against a session ---- */

static void scratch_is_what_a_session_has(void **state) {
    (void)state;
    size_t n_bytes;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_Q8_0, .n_ctx = 4096 }, &n_bytes);
    DibitEngine *e;
    DibitModelInfo info;
    ContextModel m;
    assert_int_equal(dibit_open_memory(&e, image, n_bytes, &(DibitOptions){ .n_threads = 2 }, NULL),
                     0);
    dibit_model_info(e, &info);
    context_opened(&m, &info);
    static const char *const names[] = { "f16", "q8", "q4", "k3", "k2" };
    static const int ctx[] = { 1, 100, 256, 1000, 4096 };
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        for (size_t k = 0; k < ARRAY_LEN(ctx); k++) {
            DibitSessionOptions so = { .n_ctx = ctx[k], .cache_k = names[i], .cache_v = names[i] };
            DibitSession *s;
            DibitMemory memory, said;
            size_t kv, scratch;
            ContextOptions o = { 0, 4096, 4, 64, 2 };
            assert_int_equal(dibit_session_create(&s, e, &so, NULL), 0);
            dibit_memory(s, &memory);
            assert_int_equal(dibit_session_memory(e, &so, &said, NULL), 0);
            assert_memory_equal(&said, &memory, sizeof said);
            dibit_session_free(&s);
            assert_true(context_kv_bytes(&m, &o, &all_types[i], ctx[k], &kv));
            assert_true(context_scratch_bytes(&m, &o, &all_types[i], ctx[k], &scratch));
            assert_int_equal(kv, memory.kv);
            assert_int_equal(m.weights, memory.weights);
            if (i < 3) { /* without the few bytes of a piece's text */
                assert_true(scratch <= memory.scratch && scratch + 256 >= memory.scratch);
            } else { /* rows in hand and the table of codes, which a session does not report */
                assert_true(scratch >= memory.scratch + sizeof(T4Table));
            }
        }
    dibit_close(&e);
    mem_free(NULL, image);
}

static void a_promise_is_filled(void **state) {
    (void)state;
    ContextModel m = { .name = "small", .n_parts = 1, .n_ctx_train = 512 };
    ContextOptions o = { 0, 512, 4, 64, 2 };
    m.parts[0] = (ContextPart){ 2, 2, 64, 0, 0, true };
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        ContextFill f;
        DibitError err = { 0 };
        ContextRow r = planned(&m, &o, all_types[i].k, all_types[i].v);
        if (context_fill(&m, &o, &all_types[i], r.extended, NULL, NULL, &f, &err) != 0)
            die("%s", err.text);
        assert_int_equal(f.n_ctx, r.extended);
        assert_int_equal(f.promised, r.kv);
        assert_int_equal(f.allocated, r.kv);
        assert_int_equal(f.n_zero + f.n_saturated, 0);
        assert_true(f.ns > 0);
    }
}

static int stop_at_once(void *user, int done, int total) {
    (void)user;
    (void)done;
    return total > 0;
}

static void a_fill_can_be_refused(void **state) {
    (void)state;
    ContextModel m = { .name = "huge", .n_parts = 1, .n_ctx_train = 512 };
    ContextFill f;
    DibitError err = { 0 };
    m.parts[0] = (ContextPart){ 2, 2, 64, 0, 0, true };
    assert_int_equal(context_fill(&m, &base4096, &all_types[0], 512, stop_at_once, NULL, &f, &err),
                     DIBIT_E_CANCELLED);
    m.parts[0] = (ContextPart){ 1024, 1024, 256, 0, 0, true };
    assert_int_equal(context_fill(&m, &base4096, &all_types[0], 1 << 30, NULL, NULL, &f, &err),
                     DIBIT_E_MEMORY);
    assert_true(strlen(err.text) > 10);
}

/* ---- the program ---- */

static json_t *context_json(const char *const *args) {
    const char *argv[24] = { "context", "--json" };
    json_error_t err;
    for (int i = 0; args[i]; i++) argv[i + 2] = args[i];
    expect(run_argv(NULL, NULL, argv), 0, NULL);
    assert_string_equal(last.err, "");
    json_t *o = json_loads(last.out, 0, &err);
    if (!o) die("not JSON: %s in %.200s", err.text, last.out);
    return o;
}
#define context_json(...) context_json((const char *const[]){ __VA_ARGS__, NULL })

static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) die("\"%s\" is not a number", key);
    return json_number_value(v);
}

static const json_t *row_of(const json_t *o, const char *kv) {
    const json_t *rows = json_object_get(o, "rows");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        if (strcmp(json_string_value(json_object_get(row, "kv")), kv) == 0) return row;
    }
    die("no row of %s", kv);
    return NULL;
}

static void json_has_what_it_says(void **state) {
    (void)state;
    json_t *o = context_json("--model", "llama-2-70b");
    static const char *const head[] = { "weights",       "parameters",    "layers",
                                        "kv_heads",      "head_dim",      "sinks",
                                        "window",        "threads",       "base_context",
                                        "context_train", "sliding_window" };
    static const char *const row_keys[] = {
        "max_context", "extended_context", "improvement_ratio", "bytes_per_token",
        "reduction",   "kv_bytes",         "scratch_bytes",     "total_bytes",
        "sink_bytes",  "window_bytes",     "fixed_bytes",       "reduction_all_in",
    };
    for (size_t i = 0; i < ARRAY_LEN(head); i++) number(o, head[i]);
    assert_true(json_is_null(json_object_get(o, "budget")));
    assert_string_equal(json_string_value(json_object_get(o, "model")), "llama-2-70b");
    assert_string_equal(json_string_value(json_object_get(o, "weight_type")), "q4");
    assert_int_equal(json_array_size(json_object_get(o, "rows")), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *row = json_array_get(json_object_get(o, "rows"), i);
        for (size_t k = 0; k < ARRAY_LEN(row_keys); k++) number(row, row_keys[k]);
        assert_true(number(row, "max_context") == 4096);
        double ratio = number(row, "extended_context") / number(row, "max_context");
        assert_true(fabs(number(row, "improvement_ratio") - ratio) < 1e-6);
        assert_true(number(row, "kv_bytes") <= 4096. * 327680);
        assert_true(number(row, "total_bytes") ==
                    number(o, "weights") + number(row, "kv_bytes") + number(row, "scratch_bytes"));
    }
    assert_true(number(row_of(o, "k2"), "extended_context") == 32544);
    assert_true(number(row_of(o, "k2"), "reduction") == 87.5);
    assert_true(number(row_of(o, "k3"), "extended_context") == 21712);
    assert_true(number(row_of(o, "k3"), "reduction") == 81.25);
    assert_true(json_is_true(json_object_get(row_of(o, "k2"), "beyond_training")));
    assert_true(json_is_false(json_object_get(row_of(o, "f16"), "beyond_training")));
    json_decref(o);

    o = context_json("--model", "llama-2-70b", "--kv", "k3/k2,q8", "--kv-sinks", "0", "--kv-window",
                     "0", "--base-context", "8192");
    assert_int_equal(json_array_size(json_object_get(o, "rows")), 2);
    assert_true(number(row_of(o, "k3/k2"), "bytes_per_token") == 51200);
    assert_true(number(row_of(o, "k3/k2"), "sink_bytes") == 0);
    assert_true(number(row_of(o, "q8"), "max_context") == 8192);
    json_decref(o);
}

static void a_budget_holds_everything(void **state) {
    (void)state;
    json_t *o =
        context_json("--model", "qwen3-4b", "--budget-mb", "4096", "--type", "s3", "-t", "4");
    assert_true(number(o, "budget") == 4096. * 1048576);
    assert_true(number(o, "threads") == 4);
    double before = 0, base = number(row_of(o, "f16"), "extended_context");
    for (size_t i = 0; i < 5; i++) {
        const json_t *row = json_array_get(json_object_get(o, "rows"), i);
        assert_true(number(row, "total_bytes") <= 4096. * 1048576);
        assert_true(number(row, "max_context") == base);
        assert_true(number(row, "extended_context") > before);
        before = number(row, "extended_context");
    }
    json_decref(o);
    /* 9 MiB short of f16's first position but not of the others': no ratio */
    expect_error(run(NULL, "context", "--model", "llama-2-7b", "--budget-mb", "1000"),
                 "holds no position");
}

static void windows_both_ways(void **state) {
    (void)state;
    json_t *o = context_json("--model", "mistral-7b", "--kv", "k2");
    const json_t *row = row_of(o, "k2");
    assert_true(json_is_true(json_object_get(row, "unbounded")));
    assert_true(number(row, "extended_context") == 32768);
    assert_true(number(row, "extended_context_keep_all") == 32544);
    assert_true(number(o, "sliding_window") == 4096);
    json_decref(o);
    o = context_json("--model", "llama-3.2-1b", "--kv", "k2", "--kv-layers", "0,1=q4");
    assert_true(number(row_of(o, "k2"), "bytes_per_token") == 8 * 2 * (14 * 16 + 2 * 36));
    assert_string_equal(json_string_value(json_object_get(o, "kv_layers")), "0,1=q4");
    json_decref(o);
    o = context_json("--model", "mistral-7b", "--kv", "k2", "--keep-all");
    assert_true(number(row_of(o, "k2"), "extended_context") == 32544);
    json_decref(o);
}

static void tables_for_people(void **state) {
    (void)state;
    expect(run(NULL, "context", "--model", "Llama-2-70B"), 0, NULL);
    static const char *const texts[] = {
        "32,544*", "21,712*", "7.945", "5.301", "87.50 %", "81.25 %", "trained for 4,096 positions",
        "####"
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (!strstr(last.out, texts[i])) die("no \"%s\" in %s", texts[i], last.out);
    expect(run(NULL, "context", "--model", "whisper-tiny"), 0, NULL);
    if (!strstr(last.out, "9,216,000") || !strstr(last.out, "a table of 448")) die("%s", last.out);
    expect(run(NULL, "context", "--model", "bert-base"), 0, NULL);
    if (!strstr(last.out, "keeps nothing after it")) die("%s", last.out);
    expect(run(NULL, "context", "--model", "mistral-7b"), 0, NULL);
    if (!strstr(last.out, "slide over 4,096 positions")) die("%s", last.out);
    expect(run(NULL, "context", "--list"), 0, NULL);
    for (int i = 0; shape_at(i); i++)
        if (!strstr(last.out, shape_at(i)->name)) die("--list lacks %s", shape_at(i)->name);
    expect(run(NULL, "context", "--list", "--json"), 0, NULL);
    json_t *list = json_loads(last.out, 0, NULL);
    int n = 0;
    while (shape_at(n)) n++;
    assert_int_equal(json_array_size(list), n);
    json_decref(list);
}

static void mistakes_are_named(void **state) {
    (void)state;
    expect_error(run(NULL, "context", "--model", "lama-3-8b"), "did you mean llama-3-8b?");
    expect_error(run(NULL, "context", "--model", "xyzzyxyzzy"), "--list");
    expect_error(run(NULL, "context", "-m", "no-such-file.gguf"), "no-such-file.gguf");
    expect_error(run(NULL, "context", "--model", "smollm2-135m", "--type", "q4_k"), "576 columns");
    expect_error(run(NULL, "context", "--model", "smollm2-135m", "--head", "q9"), "\"q9\"");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--kv", "k2,k9"), 2, "\"k9\"");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--kv", "k2,"), 2, "unknown");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--kv-layers", "40=k2"), 2, "0 to 31");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--kv-window", "40"), 2, "multiple of 16");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--budget-mb", "0"), 2, "--budget-mb");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--budget-mb", "-5"), 2, "--budget-mb");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--verify"), 2, "model file");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--base-context", "0"), 2, "base-context");
    expect(run(NULL, "context", "--model", "llama-2-7b", "--budget-mb", "999999999999"), 0, NULL);
}

static void a_file_is_measured(void **state) {
    (void)state;
    const char *tiny = write_tiny("tiny.gguf", &(Tiny){ .type = T_F16 });
    json_t *o = context_json("-m", tiny, "--verify", "--base-context", "2048", "-t", "2");
    assert_true(number(o, "base_context") == 2048);
    for (size_t i = 0; i < 5; i++) {
        const json_t *row = json_array_get(json_object_get(o, "rows"), i);
        const json_t *v = json_object_get(row, "verify");
        assert_true(number(v, "positions") == number(row, "extended_context"));
        assert_true(number(v, "promised") == number(row, "kv_bytes"));
        assert_true(number(v, "allocated") == number(row, "kv_bytes"));
        assert_true(number(v, "saturated_records") == 0);
        if (number(v, "system") != 0) assert_true(number(v, "system") >= number(v, "allocated"));
    }
    json_decref(o);
    expect(run(NULL, "context", "-m", tiny, "--verify", "--kv", "q4"), 0, NULL);
    if (!strstr(last.out, "from system")) die("%s", last.out);
    expect_error(run(NULL, "context", "-m", tiny, "--budget-mb", "900000000", "--verify"),
                 "lower the budget");
}

static void names_are_completed(void **state) {
    (void)state;
    if (system("command -v bash >/dev/null 2>&1") != 0) skip();
    char command[900];
    expect(run(NULL, "completion", "bash"), 0, NULL);
    snprintf(
        command, sizeof command,
        "cd %s && bash -c 'source %s; COMP_WORDS=(dibit context --model llama-2); COMP_CWORD=3; "
        "_dibit; echo ${COMPREPLY[@]}' > %s",
        work_folder, write_file("script", last.out, strlen(last.out)), work_path("words"));
    assert_int_equal(system(command), 0);
    char *words = read_text(work_path("words"));
    assert_string_equal(words, "llama-2-7b llama-2-13b llama-2-70b\n");
    free(words);
}

/* Heads of 16, which records cannot have, and a window that dibit's cache makes no use of. */
static void types_that_do_not_fit_are_left_out(void **state) {
    (void)state;
    const char *folder = SOURCE_DIR "/../shared/models/tiny/mistral";
    char model[512];
    if (access(folder, R_OK) != 0) skip();
    snprintf(model, sizeof model, "%s", work_path("mistral.gguf"));
    expect(run(NULL, "convert", "--no-vocab", folder, "-o", model, "--type", "f32"), 0, NULL);
    expect(run(NULL, "context", "-m", model), 0, "warning: no k3: ");
    if (!strstr(last.out, "\nq4 ") || strstr(last.out, "\nk2 ")) die("%s", last.out);
    if (!strstr(last.out, "slide over 16 positions; counted is what")) die("%s", last.out);
    expect_error(run(NULL, "context", "-m", model, "--kv", "k2"), "multiple of 16, at least 32");
}

/* The bar: in the memory that the system gives f16 for 4096 positions, k2 has 7.5 times as many,
 * filled to the last. */
static void the_model_here_has_7_5_times_the_context(void **state) {
    (void)state;
    const char *model = SOURCE_DIR "/models/dibit-34m.gguf";
    if (access(model, R_OK) != 0 || SLOWNESS > 1) skip(); /* sanitizers take memory of their own */
    json_t *o = context_json("-m", model, "--verify", "--kv", "k2");
    const json_t *v = json_object_get(row_of(o, "k2"), "verify");
    if (number(v, "system") == 0) skip();
    assert_true(number(json_object_get(o, "verify_base"), "positions") == 4096);
    if (number(v, "fits_ratio") < 7.5) die("only %.3f times", number(v, "fits_ratio"));
    assert_true(number(v, "fits") >= 7.5 * 4096);
    json_decref(o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_the_published_ones),
        cmocka_unit_test(weight_bytes_by_hand),
        cmocka_unit_test(bytes_per_token_by_hand),
        cmocka_unit_test(llama_2_70b_by_hand),
        cmocka_unit_test(sliding_windows_stop_growing),
        cmocka_unit_test(whisper_has_two_parts),
        cmocka_unit_test(the_plan_is_what_the_cache_takes),
        cmocka_unit_test(the_longest_that_fits),
        cmocka_unit_test(budgets_at_their_edges),
        cmocka_unit_test(shapes_that_no_cache_has),
        cmocka_unit_test(single_layers),
        cmocka_unit_test(scratch_is_what_a_session_has),
        cmocka_unit_test(a_promise_is_filled),
        cmocka_unit_test(a_fill_can_be_refused),
        cmocka_unit_test(json_has_what_it_says),
        cmocka_unit_test(a_budget_holds_everything),
        cmocka_unit_test(windows_both_ways),
        cmocka_unit_test(tables_for_people),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(names_are_completed),
        cmocka_unit_test(types_that_do_not_fit_are_left_out),
        cmocka_unit_test(a_file_is_measured),
        cmocka_unit_test(the_model_here_has_7_5_times_the_context),
    };
    return cmocka_run_group_tests_name("context", tests, open_work_folder, close_work_folder);
}
