/* plan_peek.c - what a model takes, from the first bytes of its file: the figures are those of the
 * opened model, each cut asks for more until it is enough, and damaged headers are errors. */
#define _GNU_SOURCE
#include "plan_test.h"

#include "gguf.h"

static int peek(PlanModel *m, const void *data, size_t present, uint64_t total, size_t *need,
                DibitError *err) {
    PlanPart part = { .data = data, .present = present, .total = total };
    int r = plan_peek(m, &part, 1, err);
    *need = part.need;
    return r;
}

static PlanNeed needed(const PlanModel *m, const char *request) {
    PlanRequest q;
    PlanNeed need;
    DibitError err = { 0 };
    if (plan_request_read(&q, request, strlen(request), &err) != 0) die("%s", err.text);
    if (plan_need(&need, m, &q, &err) != 0) die("%s", err.text);
    return need;
}

/* Against an engine and a session of the same image. */
static void same_as_opened(const uint8_t *image, size_t size, const PlanModel *m, int no_repack,
                           const char *k, const char *v, int n_ctx) {
    DibitEngine *e;
    DibitModelInfo info;
    DibitMemory memory;
    DibitError err = { 0 };
    char request[160];
    DibitOptions opt = { .n_threads = 2, .no_repack = no_repack };
    DibitSessionOptions session = { .n_ctx = n_ctx, .cache_k = k, .cache_v = v };
    if (dibit_open_memory(&e, image, size, &opt, &err) != 0) die("%s", err.text);
    if (dibit_session_memory(e, &session, &memory, &err) != 0) die("%s", err.text);
    dibit_model_info(e, &info);
    snprintf(request, sizeof request,
             "n_threads=2\ncache_type_k=%s\ncache_type_v=%s\nn_ctx=%d\nrepack=%d\n", k, v, n_ctx,
             !no_repack);
    PlanNeed need = needed(m, request);
    assert_int_equal(need.weights, info.weight_bytes);
    assert_int_equal(need.kv, memory.kv);
    assert_int_equal(m->context.n_params, info.n_params);
    /* to a few hundred bytes; that of records is not in a session's own figure: tests/context.c */
    if (need.scratch + 256 < memory.scratch ||
        (strcmp(k, "f16") == 0 && need.scratch > memory.scratch))
        die("scratch %zu, a session has %zu", need.scratch, memory.scratch);
    dibit_close(&e);
}

void peek_counts_what_opening_takes(void **state) {
    (void)state;
    static const int types[] = { T_F16, T_Q4_0, T_Q8_0, T_S2, T_T3 };
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        size_t size, need;
        uint8_t *image = tiny_image(&(Tiny){ .type = types[i] }, &size);
        PlanModel m;
        DibitError err = { 0 };
        assert_int_equal(peek(&m, image, size, size, &need, &err), 0);
        assert_int_equal(m.file_bytes, size);
        assert_int_equal(m.type[GROUP_ATTENTION], types[i]);
        assert_int_equal(m.type[GROUP_AUDIO], -1);
        for (int packed = 0; packed < 2; packed++) {
            same_as_opened(image, size, &m, packed, "f16", "f16", 512);
            same_as_opened(image, size, &m, packed, "k3", "k2", 300);
        }
        mem_free(NULL, image);
    }
}

/* From every length, by the bytes that it asks for, in few steps and never past the file. The copy
 * has exactly those bytes, so that a read behind them is found (make asan). */
void peek_asks_for_what_is_missing(void **state) {
    (void)state;
    size_t size, need;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S2 }, &size);
    PlanModel whole, m;
    DibitError err = { 0 };
    assert_int_equal(peek(&whole, image, size, size, &need, &err), 0);
    assert_true(whole.header_bytes > 100 && whole.header_bytes < size / 2);
    for (size_t present = 0; present < whole.header_bytes + 50; present += present < 64 ? 1 : 97) {
        size_t n = present;
        int steps = 0, r;
        do {
            uint8_t *part = malloc(n ? n : 8);
            memcpy(part, image, n);
            r = peek(&m, part, n, size, &need, &err);
            free(part);
            if (r < 0) die("at %zu of %zu: %s", n, size, err.text);
            assert_true(r == 0 || (need > n && need <= size));
            if (r == 1) n = need;
        } while (r == 1 && ++steps < 40);
        assert_int_equal(r, 0);
        assert_true(steps <= 20 && n <= 4 * whole.header_bytes);
        assert_memory_equal(&m.bytes, &whole.bytes, sizeof m.bytes);
        assert_int_equal(m.header_bytes, whole.header_bytes);
    }
    mem_free(NULL, image);
}

void peek_refuses_what_open_refuses(void **state) {
    (void)state;
    size_t size, need;
    static const Tiny bad[] = {
        { .type = T_S2, .skip = "blk.1.ffn_up.weight" },
        { .type = T_S2, .reshape = "blk.0.attn_q.weight" },
        { .type = T_S2, .retype = "blk.0.attn_q.weight" },
        { .type = T_S2, .extra = "blk.0.other.weight" },
        { .type = T_S2, .arch = "gpt2" },
        { .type = T_S2, .key = "llama.block_count", .value = 3 },
    };
    PlanModel m;
    DibitError err, opened;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        DibitEngine *e;
        uint8_t *image = tiny_image(&bad[i], &size);
        int code = dibit_open_memory(&e, image, size, NULL, &opened);
        assert_true(code < 0);
        assert_int_equal(peek(&m, image, size, size, &need, &err), code);
        assert_string_equal(err.text, opened.text);
        /* and from the header alone */
        assert_int_equal(peek(&m, image, size / 2, size, &need, &err), code);
        mem_free(NULL, image);
    }
}

/* Sizes from outside: a total smaller than what is there, or than the tensors; or beyond belief. */
void peek_checks_the_size(void **state) {
    (void)state;
    size_t size, need;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S2 }, &size);
    PlanModel m;
    DibitError err = { 0 };
    assert_int_equal(peek(&m, image, size, size - 1, &need, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(peek(&m, image, size / 2, size - 4096, &need, &err), DIBIT_E_FORMAT);
    assert_non_null(strstr(err.text, "truncated"));
    assert_int_equal(peek(&m, image, size / 2, size + 4096, &need, &err), DIBIT_E_FORMAT);
    assert_non_null(strstr(err.text, "follow the last tensor"));
    assert_int_equal(peek(&m, image, size / 2, UINT64_MAX, &need, &err), DIBIT_E_MEMORY);
    assert_int_equal(peek(&m, image, 0, 0, &need, &err), 1); /* 0: nobody knows it */
    assert_int_equal(peek(&m, image, size, 0, &need, &err), 0);
    assert_int_equal(m.file_bytes, size);
    assert_int_equal(peek(&m, NULL, 0, 100, &need, &err), DIBIT_E_ARGUMENT);
    mem_free(NULL, image);
}

/* Headers with random bytes changed: an error, a wish for more within the file, or a result. */
void peek_survives_damage(void **state) {
    (void)state;
    size_t size, need;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S2 }, &size), *copy = malloc(size);
    uint64_t rng = 7;
    PlanModel m;
    DibitError err = { 0 };
    assert_int_equal(peek(&m, image, size, size, &need, &err), 0);
    size_t header = m.header_bytes;
    int n[3] = { 0 };
    for (int i = 0; i < 3000; i++) {
        memcpy(copy, image, header);
        for (int k = 0; k <= i % 3; k++) {
            rng = rng * 6364136223846793005u + 1442695040888963407u;
            copy[(rng >> 33) % header] = (uint8_t)(i % 5 ? rng >> 24 : 255);
        }
        int r = peek(&m, copy, header, size, &need, &err);
        n[r < 0 ? 0 : r + 1]++;
        if (r == 1) assert_true(need > header && need <= size);
    }
    if (n[0] < 300 || n[1] < 300) die("refused %d, opened %d, more %d", n[0], n[1], n[2]);
    free(copy);
    mem_free(NULL, image);
}

void requests_are_checked(void **state) {
    (void)state;
    PlanRequest q;
    DibitError err = { 0 };
    static const char *const bad[] = { "n_ctx=0",
                                       "n_ctx=2000000000",
                                       "n_ctx=12a",
                                       "n_ctx=",
                                       "n_ctx",
                                       "ctx=5",
                                       "n_threads=-3",
                                       "repack=yes",
                                       "cache_type_k=far too long",
                                       "budget_mb=1e3",
                                       "budget_mb=99999999999999999999" };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (plan_request_read(&q, bad[i], strlen(bad[i]), &err) != DIBIT_E_ARGUMENT || !err.text[0])
            die("\"%s\" is taken", bad[i]);
    const char *good = "\n  n_ctx = 77 \r\n\nrepack=true\ncache_type_v=K3";
    assert_int_equal(plan_request_read(&q, good, strlen(good), &err), 0);
    assert_true(q.n_ctx == 77 && q.n_threads == -1 && q.repack == 1 && q.budget_mb == -1);
    assert_string_equal(q.cache_type_v, "k3");
}
