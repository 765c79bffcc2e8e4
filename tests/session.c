/* session.c - sessions: reuse of the common prefix, cancel, streaming, save and restore, and the
 * errors a user can run into, each with a sentence that names the cause. */
#define _GNU_SOURCE
#include "tiny.h"

#include <pthread.h>
#include <unistd.h>

#include "dibit.h"

static DibitEngine *engine;
static uint8_t *image;
static char work_dir[] = "/tmp/dibit-test-XXXXXX";

static DibitSession *session(int n_ctx, int n_batch) {
    DibitSession *s;
    DibitError err;
    DibitSessionOptions opt = { .n_ctx = n_ctx, .n_batch = n_batch };
    if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
    return s;
}

static void some_ids(int32_t *ids, int n, int seed) {
    for (int i = 0; i < n; i++) ids[i] = 3 + (i * 31 + seed * 7) % (TINY_VOCAB - 3);
}

static void expect_sync(DibitSession *s, const int32_t *ids, size_t n, int64_t computed) {
    DibitError err = { 0 };
    int64_t r = dibit_sync(s, ids, n, &err);
    if (r != computed) die("%lld tokens computed: %s", (long long)r, err.text);
}

/* The logits of s are those of a session that computed the same tokens at one go. */
static void expect_fresh(DibitSession *s) {
    const int32_t *ids;
    size_t n = dibit_tokens(s, &ids);
    DibitSession *fresh = session(128, 128);
    expect_sync(fresh, ids, n, (int64_t)n);
    assert_non_null(dibit_last_logits(s));
    assert_memory_equal(dibit_last_logits(s), dibit_last_logits(fresh), TINY_VOCAB * sizeof(float));
    dibit_session_free(&fresh);
}

static void sync_reuses_the_common_prefix(void **state) {
    (void)state;
    DibitSession *s = session(128, 16);
    int32_t a[100], b[100];
    size_t done, total;
    some_ids(a, 100, 1);
    some_ids(b, 100, 1);
    b[60]++;
    expect_sync(s, a, 50, 50);
    expect_fresh(s);
    expect_sync(s, a, 100, 50); /* longer */
    expect_fresh(s);
    expect_sync(s, a, 100, 0);  /* the same */
    expect_sync(s, b, 100, 40); /* another end */
    expect_fresh(s);
    dibit_sync_progress(s, &done, &total);
    assert_true(done == 100 && total == 100);
    expect_sync(s, b, 30, 1); /* shorter: the last token again, for its logits */
    expect_fresh(s);
    expect_sync(s, a, 0, 0);
    assert_int_equal(dibit_tokens(s, NULL), 0);
    assert_null(dibit_last_logits(s));
    expect_sync(s, a, 5, 5);
    expect_fresh(s);
    dibit_session_free(&s);
}

static void next_forward_and_sync_mix(void **state) {
    (void)state;
    DibitSession *s = session(128, 16);
    DibitError err = { 0 };
    DibitPiece piece;
    int32_t a[40];
    const int32_t *ids;
    float *logits = malloc(2 * TINY_VOCAB * sizeof *logits);
    some_ids(a, 40, 2);
    expect_sync(s, a, 40, 40);
    for (int i = 0; i < 5; i++) assert_int_equal(dibit_next(s, &piece, &err), 1);
    size_t n = dibit_tokens(s, &ids);
    assert_int_equal(n, 45);
    assert_int_equal(ids[44], piece.id);
    assert_int_equal(dibit_forward(s, a, 2, logits, &err), 0); /* after a sampled token */
    expect_fresh(s);
    assert_memory_equal(logits + TINY_VOCAB, dibit_last_logits(s), TINY_VOCAB * sizeof *logits);
    assert_int_equal(dibit_forward(s, a + 2, 3, NULL, &err), 0);
    assert_null(dibit_last_logits(s));
    assert_int_equal(dibit_next(s, &piece, &err), 1); /* computes what it needs */
    n = dibit_tokens(s, &ids);
    expect_sync(s, ids, n, 1);
    expect_fresh(s);
    free(logits);
    dibit_session_free(&s);
}

static void text_comes_in_whole_characters(void **state) {
    (void)state;
    DibitSession *s = session(128, 0);
    DibitSampling sampling = { .temperature = 3, .seed = 5 };
    DibitError err = { 0 };
    DibitPiece piece;
    int32_t a[] = { 1, 100 };
    expect_sync(s, a, 2, 2);
    assert_int_equal(dibit_set_sampling(s, &sampling, &err), 0);
    int more, pieces = 0;
    do {
        more = dibit_next(s, &piece, &err);
        assert_true(more >= 0 && ++pieces < 200);
        for (size_t i = 0; i < piece.n_bytes;) { /* every character is complete and valid */
            uint8_t c = (uint8_t)piece.text[i];
            size_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
            assert_true(c < 0x80 || c >= 0xc2);
            assert_true(i + n <= piece.n_bytes);
            for (size_t k = 1; k < n; k++)
                assert_int_equal((uint8_t)piece.text[i + k] & 0xc0, 0x80);
            i += n;
        }
    } while (more);
    assert_true(pieces > 3);
    assert_true(strcmp(piece.finish, "stop") == 0 || strcmp(piece.finish, "length") == 0);
    dibit_session_free(&s);
}

static void generation_ends(void **state) {
    (void)state;
    DibitSession *s = session(16, 0);
    DibitError err = { 0 };
    DibitPiece piece = { 0 };
    int32_t a[10];
    int n = 0;
    some_ids(a, 10, 3);
    expect_sync(s, a, 10, 10);
    while (dibit_next(s, &piece, &err) == 1) n++;
    assert_int_equal(n, 6); /* greedy on these weights meets no end token */
    assert_string_equal(piece.finish, "length");
    assert_int_equal(dibit_next(s, &piece, &err), 0);
    assert_string_equal(piece.finish, "length");
    assert_int_equal(dibit_tokens(s, NULL), 16);
    dibit_session_free(&s);
    s = session(512, 0); /* hot enough to draw </s> within the context */
    DibitSampling sampling = { .temperature = 1000, .seed = 1 };
    dibit_set_sampling(s, &sampling, &err);
    expect_sync(s, a, 10, 10);
    for (n = 0; dibit_next(s, &piece, &err) == 1;) n++;
    assert_string_equal(piece.finish, "stop");
    assert_int_equal(piece.id, 2);
    assert_int_equal(dibit_tokens(s, NULL), 10 + n); /* the end token is not added */
    dibit_session_free(&s);
}

static void *cancel_soon(void *arg) {
    usleep(20000);
    dibit_cancel(arg);
    return NULL;
}

static void cancel_stops_and_leaves_a_usable_session(void **state) {
    (void)state;
    DibitSession *s = session(512, 64);
    DibitError err = { 0 };
    DibitPiece piece;
    int32_t a[400], b[400];
    some_ids(a, 400, 4);
    some_ids(b, 400, 5);
    dibit_cancel(s);
    assert_int_equal(dibit_sync(s, a, 20, &err), DIBIT_E_CANCELLED);
    assert_int_equal(err.code, DIBIT_E_CANCELLED);
    expect_sync(s, a, 20, 20); /* the request was used up */
    expect_fresh(s);
    dibit_cancel(s);
    assert_int_equal(dibit_next(s, &piece, &err), DIBIT_E_CANCELLED);
    assert_int_equal(dibit_next(s, &piece, &err), 1);
    expect_sync(s, a, 20, 1); /* the sampled token out: the request may come before any work */
    pthread_t thread;
    int64_t r = 0;
    uint64_t asked = clock_ns() + 20000000u;
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, s), 0);
    while (r >= 0 && clock_ns() < asked + 5000000000u) { /* until it strikes */
        r = dibit_sync(s, a, 400, &err);
        if (r >= 0) r = dibit_sync(s, b, 400, &err);
    }
    pthread_join(thread, NULL);
    assert_int_equal(r, DIBIT_E_CANCELLED);
    const int32_t *ids;
    size_t n = dibit_tokens(s, &ids); /* what is there is right */
    assert_true(n < 400);
    assert_true(n == 0 || memcmp(ids, a, n * 4) == 0 || memcmp(ids, b, n * 4) == 0);
    assert_true(dibit_sync(s, a, 100, &err) > 0);
    expect_fresh(s);
    dibit_session_free(&s);
}

/* ---- save and restore ---- */

static const char *path_of(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", work_dir, name);
    return path;
}

static uint8_t *read_file(const char *path, size_t *n) {
    FileMap f;
    assert_int_equal(file_map(&f, path, true, NULL, NULL), 0);
    *n = f.size;
    return (uint8_t *)f.data;
}

static void write_file(const char *path, const uint8_t *data, size_t n) {
    FileOut f;
    assert_int_equal(file_create(&f, path, NULL), 0);
    assert_int_equal(file_write(&f, data, n, NULL), 0);
    assert_int_equal(file_commit(&f, NULL), 0);
}

static void restored_sessions_go_on_alike(void **state) {
    (void)state;
    static const char *const types[][2] = {
        { "f16", "q8" }, { "q8", "f16" }, { "k3", "k2" }, { "k2", "f16" }, { "q4", "k3" },
    };
    for (size_t t = 0; t < ARRAY_LEN(types); t++) {
        DibitSessionOptions opt = { .n_ctx = 300, .cache_k = types[t][0], .cache_v = types[t][1] };
        DibitSession *s, *other;
        DibitError err = { 0 };
        DibitPiece piece, piece2;
        int32_t a[260];
        some_ids(a, 260, 6);
        if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
        if (dibit_session_create(&other, engine, &opt, &err) != 0) die("%s", err.text);
        expect_sync(s, a, 260, 260);
        for (int i = 0; i < 3; i++) assert_int_equal(dibit_next(s, &piece, &err), 1);
        if (dibit_save(s, path_of("a"), &err) != 0) die("%s", err.text);
        expect_sync(other, a + 1, 20, 20); /* something else in it */
        if (dibit_restore(other, path_of("a"), &err) != 0) die("%s", err.text);
        assert_int_equal(dibit_tokens(other, NULL), 263);
        for (int i = 0; i < 10; i++) {
            assert_int_equal(dibit_next(s, &piece, &err), 1);
            assert_int_equal(dibit_next(other, &piece2, &err), 1);
            assert_int_equal(piece.id, piece2.id);
        }
        unlink(path_of("a"));
        dibit_session_free(&s);
        dibit_session_free(&other);
    }
}

/* A session that filled its context goes on in a larger one as if it had been there all along:
 * records that the small context had no room for are made from the window. */
static void restored_in_a_larger_context(void **state) {
    (void)state;
    for (int n = 60; n <= 128; n += n < 110 ? 7 : 1) {
        DibitSessionOptions opt = { .n_ctx = 128, .cache_k = "k3", .cache_v = "k2" };
        DibitSession *small, *large, *restored;
        DibitError err = { 0 };
        DibitPiece piece, piece2;
        int32_t a[128];
        some_ids(a, 128, 9);
        if (dibit_session_create(&small, engine, &opt, &err) != 0) die("%s", err.text);
        opt.n_ctx = 256;
        opt.sampling.temperature = 0.9f;
        if (dibit_session_create(&large, engine, &opt, &err) != 0) die("%s", err.text);
        if (dibit_session_create(&restored, engine, &opt, &err) != 0) die("%s", err.text);
        expect_sync(small, a, (size_t)n, n);
        expect_sync(large, a, (size_t)n, n);
        if (dibit_save(small, path_of("d"), &err) != 0) die("%s", err.text);
        if (dibit_restore(restored, path_of("d"), &err) != 0) die("%s", err.text);
        for (int i = 0; i < 90; i++) {
            int r = dibit_next(large, &piece, &err);
            assert_int_equal(dibit_next(restored, &piece2, &err), r);
            assert_int_equal(piece.id, piece2.id);
            if (r != 1) break;
        }
        unlink(path_of("d"));
        dibit_session_free(&small);
        dibit_session_free(&large);
        dibit_session_free(&restored);
    }
}

/* Types of single layers are the types: in bytes, in results, and a saved session knows them. */
static void layers_have_their_own_types(void **state) {
    (void)state;
    static const struct {
        const char *k, *v, *layers, *same_k, *same_v;
    } cases[] = {
        { "q8", "f16", "0-1=k3/k2", "k3", "k2" },
        { "k2", "k2", "1,0=q4", "q4", "q4" },
        { "k2", "q8", "0-1=f16;0=q8;1=q8", "q8", "q8" },
        { "q8", "k3", "", "q8", "k3" },
    };
    float *logits[2] = { malloc(200 * TINY_VOCAB * 4), malloc(200 * TINY_VOCAB * 4) };
    int32_t a[200];
    some_ids(a, 200, 3);
    for (size_t t = 0; t < ARRAY_LEN(cases); t++) {
        DibitMemory m[2];
        for (int i = 0; i < 2; i++) {
            DibitSession *s;
            DibitError err = { 0 };
            DibitSessionOptions opt = { .n_ctx = 200 };
            opt.cache_k = i ? cases[t].same_k : cases[t].k;
            opt.cache_v = i ? cases[t].same_v : cases[t].v;
            opt.cache_layers = i ? NULL : cases[t].layers;
            if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
            if (dibit_forward(s, a, 200, logits[i], &err) != 0) die("%s", err.text);
            dibit_memory(s, &m[i]);
            dibit_session_free(&s);
        }
        assert_int_equal(m[0].kv, m[1].kv);
        assert_memory_equal(logits[0], logits[1], 200 * TINY_VOCAB * sizeof(float));
    }
    free(logits[0]);
    free(logits[1]);
}

static void saved_layers_are_checked(void **state) {
    (void)state;
    static const char *const others[] = { NULL, "1=q4", "1=k3/k2", "0=q8", "1=k2/k3;0=q8" };
    DibitSessionOptions opt = { .n_ctx = 64, .cache_k = "k2", .cache_v = "k2" };
    DibitSession *s, *other;
    DibitError err = { 0 };
    int32_t a[40];
    some_ids(a, 40, 7);
    opt.cache_layers = "1=k2/k3";
    if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
    expect_sync(s, a, 40, 40);
    assert_int_equal(dibit_save(s, path_of("e"), &err), 0);
    for (size_t i = 0; i <= ARRAY_LEN(others); i++) {
        bool same = i == ARRAY_LEN(others);
        opt.cache_layers = same ? "0-1=q8;1=k2/k3;0=k2" : others[i];
        if (dibit_session_create(&other, engine, &opt, &err) != 0) die("%s", err.text);
        int r = dibit_restore(other, path_of("e"), &err);
        if (r != (same ? 0 : DIBIT_E_FORMAT)) die("%zu: %d %s", i, r, err.text);
        if (!same) assert_non_null(strstr(err.text, "types"));
        dibit_session_free(&other);
    }
    static const int recent[][2] = { { 5, 0 }, { -1, 0 }, { 0, 32 }, { 0, -1 } };
    for (size_t i = 0; i < ARRAY_LEN(recent); i++) {
        opt.cache_layers = "1=k2/k3";
        opt.cache_sinks = recent[i][0];
        opt.cache_window = recent[i][1];
        if (dibit_session_create(&other, engine, &opt, &err) != 0) die("%s", err.text);
        assert_int_equal(dibit_restore(other, path_of("e"), &err), DIBIT_E_FORMAT);
        assert_non_null(strstr(err.text, "4 sinks and a window of 64"));
        dibit_session_free(&other);
    }
    unlink(path_of("e"));
    dibit_session_free(&s);
}

static void damaged_sessions_are_refused(void **state) {
    (void)state;
    DibitSession *s = session(64, 0);
    DibitError err = { 0 };
    int32_t a[40];
    size_t n;
    some_ids(a, 40, 7);
    expect_sync(s, a, 40, 40);
    assert_int_equal(dibit_save(s, path_of("b"), &err), 0);
    uint8_t *good = read_file(path_of("b"), &n), *bad = malloc(n + 1);
    expect_sync(s, a, 12, 1);
    for (size_t i = 0; i < n; i += i < 400 ? 1 : 997) { /* every byte of the header and the ids */
        memcpy(bad, good, n);
        bad[i] ^= 0x41;
        write_file(path_of("c"), bad, n);
        int r = dibit_restore(s, path_of("c"), &err);
        if (r >= 0) die("byte %zu may be anything", i);
    }
    for (size_t i = 1; i <= n + 1; i += 1 + n / 50) { /* cut short, or one byte too long */
        memcpy(bad, good, n);
        write_file(path_of("c"), bad, n + 1 - i);
        assert_true(i == 1 || dibit_restore(s, path_of("c"), &err) < 0);
    }
    bad[n] = 0;
    write_file(path_of("c"), bad, n + 1);
    assert_true(dibit_restore(s, path_of("c"), &err) < 0);
    assert_int_equal(dibit_tokens(s, NULL), 12); /* unchanged by all that */
    expect_fresh(s);
    DibitSession *small = session(32, 0);
    assert_int_equal(dibit_restore(small, path_of("b"), &err), DIBIT_E_CONTEXT);
    DibitSession *q8;
    DibitSessionOptions opt = { .n_ctx = 64, .cache_k = "q8" };
    assert_int_equal(dibit_session_create(&q8, engine, &opt, &err), 0);
    assert_int_equal(dibit_restore(q8, path_of("b"), &err), DIBIT_E_FORMAT);
    assert_non_null(strstr(err.text, "f16"));
    assert_int_equal(dibit_restore(s, path_of("nothing"), &err), DIBIT_E_IO);
    assert_int_equal(dibit_save(s, path_of("no/such/folder"), &err), DIBIT_E_IO);
    unlink(path_of("b"));
    unlink(path_of("c"));
    mem_free(NULL, good);
    free(bad);
    dibit_session_free(&s);
    dibit_session_free(&small);
    dibit_session_free(&q8);
}

static void another_model_is_refused(void **state) {
    (void)state;
    DibitSession *s = session(64, 0), *theirs;
    DibitEngine *other;
    DibitError err = { 0 };
    size_t size;
    int32_t a[8];
    uint8_t *image2 = tiny_image(&(Tiny){ .type = T_Q4_0, .gain = 2 }, &size);
    some_ids(a, 8, 8);
    expect_sync(s, a, 8, 8);
    assert_int_equal(dibit_save(s, path_of("d"), &err), 0);
    assert_int_equal(dibit_open_memory(&other, image2, size, NULL, &err), 0);
    assert_int_equal(dibit_session_create(&theirs, other, NULL, &err), 0);
    assert_int_equal(dibit_restore(theirs, path_of("d"), &err), DIBIT_E_FORMAT);
    assert_non_null(strstr(err.text, "another model"));
    unlink(path_of("d"));
    dibit_session_free(&s);
    dibit_session_free(&theirs);
    dibit_close(&other);
    mem_free(NULL, image2);
}

/* ---- errors ---- */

static void expect_open_error(const Tiny *spec, int code, const char *text) {
    DibitEngine *e;
    DibitError err = { 0 };
    size_t size;
    uint8_t *bytes = tiny_image(spec, &size);
    int r = dibit_open_memory(&e, bytes, size, NULL, &err);
    if (r != code || err.code != code || !strstr(err.text, text))
        die("%d \"%s\" instead of %d with \"%s\"", r, err.text, code, text);
    assert_null(e);
    mem_free(NULL, bytes);
}

static void bad_models_are_refused(void **state) {
    (void)state;
    const struct {
        Tiny spec;
        int code;
        const char *text;
    } cases[] = {
        { { .arch = "mamba" }, DIBIT_E_UNSUPPORTED, "\"mamba\" is not supported; known are llama" },
        { { .retype = "blk.1.ffn_up.weight" }, DIBIT_E_UNSUPPORTED, "blk.1.ffn_up.weight" },
        { { .skip = "blk.1.attn_k.weight" }, DIBIT_E_FORMAT, "blk.1.attn_k.weight: the tensor is" },
        { { .arch = "qwen2", .skip = "blk.0.attn_v.bias" }, DIBIT_E_FORMAT, "attn_v.bias" },
        { { .arch = "qwen3", .skip = "blk.0.attn_q_norm.weight" }, DIBIT_E_FORMAT, "q_norm" },
        { { .reshape = "blk.0.ffn_down.weight" }, DIBIT_E_FORMAT, "ffn_down.weight: the shape is" },
        { { .extra = "blk.0.ffn_gate_inp.weight" }, DIBIT_E_UNSUPPORTED, "ffn_gate_inp" },
        { { .extra = "blk.9.attn_norm.weight" }, DIBIT_E_UNSUPPORTED, "blk.9.attn_norm.weight" },
        { { .extra = "blk.1.attn_output.bias" }, DIBIT_E_UNSUPPORTED, "blk.1.attn_output.bias" },
        { { .extra = "blk.0.ffn_down.bias" }, DIBIT_E_UNSUPPORTED, "blk.0.ffn_down.bias" },
        { { .extra = "output.bias" }, DIBIT_E_UNSUPPORTED, "output.bias" },
        { { .key = "llama.block_count", .value = 3 }, DIBIT_E_FORMAT, "blk.2.attn_norm.weight" },
        { { .key = "llama.block_count", .value = 0 }, DIBIT_E_FORMAT, "llama.block_count" },
        { { .key = "llama.block_count", .value = ~0u }, DIBIT_E_FORMAT, "llama.block_count" },
        { { .key = "llama.context_length", .value = 0 }, DIBIT_E_FORMAT, "context_length" },
        { { .key = "llama.attention.head_count", .value = 3 }, DIBIT_E_FORMAT, "heads" },
        { { .key = "llama.attention.head_count_kv", .value = 3 }, DIBIT_E_FORMAT, "KV heads" },
        { { .key = "llama.attention.key_length", .value = 65 }, DIBIT_E_UNSUPPORTED, "heads of" },
        { { .key = "llama.attention.value_length", .value = 32 }, DIBIT_E_UNSUPPORTED, "values" },
        { { .key = "llama.embedding_length", .value = 512 }, DIBIT_E_FORMAT, "token_embd.weight" },
        { { .key = "llama.expert_count", .value = 8 }, DIBIT_E_UNSUPPORTED, "experts" },
        { { .key = "llama.rope.dimension_count", .value = 63 }, DIBIT_E_FORMAT, "odd" },
        { { .key = "llama.rope.dimension_count", .value = 128 }, DIBIT_E_FORMAT, "dimension_cou" },
        { { .key = "llama.vocab_size", .value = 299 }, DIBIT_E_FORMAT, "vocab_size" },
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        expect_open_error(&cases[i].spec, cases[i].code, cases[i].text);
    DibitEngine *e;
    DibitError err = { 0 };
    assert_int_equal(dibit_open(&e, path_of("nothing"), NULL, &err), DIBIT_E_IO);
    assert_non_null(strstr(err.text, "nothing"));
}

static void a_nan_weight_is_named(void **state) {
    (void)state;
    DibitEngine *e;
    DibitSession *s;
    DibitError err = { 0 };
    size_t size;
    int32_t a[10];
    some_ids(a, 10, 1);
    uint8_t *bytes = tiny_image(&(Tiny){ .nan = "blk.1.ffn_down.weight" }, &size);
    assert_int_equal(dibit_open_memory(&e, bytes, size, NULL, &err), 0);
    assert_int_equal(dibit_session_create(&s, e, NULL, &err), 0);
    assert_int_equal(dibit_sync(s, a, 10, &err), DIBIT_E_NUMERIC);
    assert_non_null(strstr(err.text, "blk.1.ffn_down.weight"));
    dibit_session_free(&s);
    dibit_close(&e);
    mem_free(NULL, bytes);
    bytes = tiny_image(&(Tiny){ .gain = 1e15f }, &size);
    assert_int_equal(dibit_open_memory(&e, bytes, size, NULL, &err), 0);
    assert_int_equal(dibit_session_create(&s, e, NULL, &err), 0);
    assert_int_equal(dibit_sync(s, a, 10, &err), DIBIT_E_NUMERIC);
    assert_non_null(strstr(err.text, "overflowed"));
    dibit_session_free(&s);
    dibit_close(&e);
    mem_free(NULL, bytes);
}

static void without_tokenizer_ids_still_work(void **state) {
    (void)state;
    DibitEngine *e;
    DibitSession *s;
    DibitError err = { 0 };
    DibitPiece piece;
    size_t size;
    int32_t a[10];
    some_ids(a, 10, 1);
    uint8_t *bytes = tiny_image(&(Tiny){ .no_tokenizer = 1 }, &size);
    assert_int_equal(dibit_open_memory(&e, bytes, size, NULL, &err), 0);
    DibitModelInfo info;
    dibit_model_info(e, &info);
    assert_int_equal(info.has_tokenizer, 0);
    assert_int_equal(info.bos_id, -1);
    assert_int_equal(dibit_tokenize(e, "a", 1, 0, a, 10, &err), DIBIT_E_TOKENIZER);
    assert_true(strlen(err.text) > 10);
    assert_int_equal(dibit_session_create(&s, e, NULL, &err), 0);
    expect_sync(s, a, 10, 10);
    assert_int_equal(dibit_next(s, &piece, &err), 1);
    assert_int_equal(piece.n_bytes, 0);
    dibit_session_free(&s);
    dibit_close(&e);
    mem_free(NULL, bytes);
}

static void expect_create_error(const DibitSessionOptions *opt, int code, const char *text) {
    DibitSession *s;
    DibitError err = { 0 };
    int r = dibit_session_create(&s, engine, opt, &err);
    if (r != code || err.code != code || !strstr(err.text, text))
        die("%d \"%s\" instead of %d with \"%s\"", r, err.text, code, text);
    assert_null(s);
}

static void bad_requests_are_refused(void **state) {
    (void)state;
    const struct {
        DibitSessionOptions opt;
        int code;
        const char *text;
    } cases[] = {
        { { .n_ctx = -1 }, DIBIT_E_ARGUMENT, "n_ctx" },
        { { .n_ctx = (1 << 30) + 1 }, DIBIT_E_ARGUMENT, "n_ctx" },
        { { .n_batch = -1 }, DIBIT_E_ARGUMENT, "n_batch" },
        { { .cache_k = "q5" }, DIBIT_E_ARGUMENT, "\"q5\"" },
        { { .cache_v = "" }, DIBIT_E_ARGUMENT, "known are" },
        { { .cache_sinks = 257 }, DIBIT_E_ARGUMENT, "cache_sinks: 257" },
        { { .cache_sinks = -2 }, DIBIT_E_ARGUMENT, "cache_sinks: -2" },
        { { .cache_window = 40 }, DIBIT_E_ARGUMENT, "cache_window: 40 is not a multiple of 16" },
        { { .cache_window = INT32_MAX - 15 }, DIBIT_E_ARGUMENT, "cache_window" },
        { { .cache_layers = "q4" }, DIBIT_E_ARGUMENT, "\"q4\" is not layers=type" },
        { { .cache_layers = "0=q4;" }, DIBIT_E_ARGUMENT, "\"\" is not layers=type" },
        { { .cache_layers = "0=q5" }, DIBIT_E_ARGUMENT, "\"0=q5\" names an unknown type" },
        { { .cache_layers = "0=k2/" }, DIBIT_E_ARGUMENT, "\"0=k2/\" names an unknown type" },
        { { .cache_layers = "0=k2/k3/q4" }, DIBIT_E_ARGUMENT, "unknown type" },
        { { .cache_layers = "=q4" }, DIBIT_E_ARGUMENT, "\"\" is not a layer" },
        { { .cache_layers = "0,2=q4" }, DIBIT_E_ARGUMENT, "\"2\" is not a layer or a range of" },
        { { .cache_layers = "0-=q4" }, DIBIT_E_ARGUMENT, "\"0-\" is not a layer" },
        { { .cache_layers = "1-0=q4" }, DIBIT_E_ARGUMENT, "layers 0 to 1" },
        { { .cache_layers = "0=q4;0-99999999999=q8" }, DIBIT_E_ARGUMENT, "\"0-99999999999\"" },
        { { .cache_layers = "0 =q4" }, DIBIT_E_ARGUMENT, "\"0 \"" },
        { { .sampling = { .temperature = -1 } }, DIBIT_E_ARGUMENT, "temperature" },
        { { .sampling = { .temperature = NAN } }, DIBIT_E_ARGUMENT, "temperature" },
        { { .sampling = { .top_k = -1 } }, DIBIT_E_ARGUMENT, "top_k" },
        { { .sampling = { .top_p = 1.5f } }, DIBIT_E_ARGUMENT, "top_p" },
        { { .sampling = { .min_p = -1 } }, DIBIT_E_ARGUMENT, "min_p" },
        { { .sampling = { .repeat_penalty = -1 } }, DIBIT_E_ARGUMENT, "repeat_penalty" },
        { { .sampling = { .repeat_last_n = -1 } }, DIBIT_E_ARGUMENT, "repeat_last_n" },
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        expect_create_error(&cases[i].opt, cases[i].code, cases[i].text);
    DibitSession *s = session(16, 0);
    DibitError err = { 0 };
    DibitPiece piece;
    int32_t a[32];
    some_ids(a, 32, 1);
    assert_int_equal(dibit_next(s, &piece, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "prompt is empty"));
    assert_int_equal(dibit_sync(s, a, 17, &err), DIBIT_E_CONTEXT);
    assert_non_null(strstr(err.text, "17 tokens does not fit a context of 16"));
    expect_sync(s, a, 10, 10);
    assert_int_equal(dibit_forward(s, a, 7, NULL, &err), DIBIT_E_CONTEXT);
    a[20] = TINY_VOCAB;
    a[21] = -1;
    assert_int_equal(dibit_sync(s, a + 20, 1, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(dibit_forward(s, a + 21, 1, NULL, &err), DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "0 to 299"));
    assert_int_equal(dibit_tokens(s, NULL), 10); /* and it can go on */
    expect_fresh(s);
    dibit_session_free(&s);
}

/* A terabyte. */
static void a_context_larger_than_memory(void **state) {
    (void)state;
    expect_create_error(&(DibitSessionOptions){ .n_ctx = 1 << 30 }, DIBIT_E_MEMORY,
                        "positions would fit");
}

static int set_up(void **state) {
    (void)state;
    size_t size;
    DibitError err;
    image = tiny_image(&(Tiny){ .type = T_Q4_0 }, &size);
    if (dibit_open_memory(&engine, image, size, &(DibitOptions){ .n_threads = 2 }, &err) != 0)
        die("%s", err.text);
    return mkdtemp(work_dir) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    dibit_close(&engine);
    mem_free(NULL, image);
    return rmdir(work_dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sync_reuses_the_common_prefix),
        cmocka_unit_test(next_forward_and_sync_mix),
        cmocka_unit_test(text_comes_in_whole_characters),
        cmocka_unit_test(generation_ends),
        cmocka_unit_test(cancel_stops_and_leaves_a_usable_session),
        cmocka_unit_test(restored_sessions_go_on_alike),
        cmocka_unit_test(restored_in_a_larger_context),
        cmocka_unit_test(layers_have_their_own_types),
        cmocka_unit_test(saved_layers_are_checked),
        cmocka_unit_test(damaged_sessions_are_refused),
        cmocka_unit_test(another_model_is_refused),
        cmocka_unit_test(bad_models_are_refused),
        cmocka_unit_test(a_nan_weight_is_named),
        cmocka_unit_test(without_tokenizer_ids_still_work),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(a_context_larger_than_memory),
    };
    return cmocka_run_group_tests_name("session", tests, set_up, tear_down);
}
