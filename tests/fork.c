/* fork.c - forked sessions: whatever both sides do, each goes on bit for bit as a session that was
 * never forked; pages are shared, copied and freed in any order; memory is counted; no allocation
 * that fails, and no thread on the other side, disturbs one. */
#define _GNU_SOURCE
#include "tiny.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "dibit.h"

enum { N_CTX = 800, N_IDS = 800, STRIDE = SLOWNESS > 1 ? 4 : 1 }; /* of the settings */

static atomic_long n_live, n_bytes, fail_after; /* allocations; fail_after < 0: none fails */

static void *test_alloc(void *user, size_t size, size_t align) {
    (void)user;
    if (atomic_load(&fail_after) >= 0 && atomic_fetch_sub(&fail_after, 1) == 0) return NULL;
    void *p = aligned_alloc(align, (size + align - 1) / align * align);
    if (!p) return NULL;
    atomic_fetch_add(&n_live, 1);
    atomic_fetch_add(&n_bytes, (long)size);
    return p;
}

static void test_release(void *user, void *ptr, size_t size) {
    (void)user;
    atomic_fetch_sub(&n_live, 1);
    atomic_fetch_sub(&n_bytes, (long)size);
    free(ptr);
}

static DibitEngine *engine;
static uint8_t *image;
static int32_t ids[4][N_IDS]; /* texts that have the first 100 tokens in common */
static char work_dir[] = "/tmp/dibit-test-XXXXXX";

typedef struct Setting {
    const char *k, *v, *layers;
    int sinks, window, n; /* tokens at the fork */
} Setting;
static const Setting settings[] = {
    { "f16", "f16", NULL, 0, 0, 300 },  { "q8", "q8", NULL, 0, 0, 256 },
    { "q4", "q4", NULL, 0, 0, 511 },    { "k3", "k3", NULL, 0, 0, 300 },
    { "k2", "k2", NULL, 0, 0, 600 },    { "k3", "k2", NULL, -1, -1, 257 },
    { "k2", "k2", NULL, 7, 32, 330 },   { "k2", "k3", NULL, 0, 512, 520 },
    { "k2", "q4", "1=f16", 0, 0, 140 }, { "q8", "k3", "0=k2/q8", 16, 16, 335 },
    { "k2", "k2", NULL, 0, 0, 20 },     { "k3", "k3", NULL, 2, -1, 259 },
};

static DibitSession *session(const Setting *t) {
    DibitSession *s;
    DibitError err;
    DibitSessionOptions opt = { .n_ctx = N_CTX, .n_batch = 64, .cache_k = t->k, .cache_v = t->v };
    opt.cache_layers = t->layers;
    opt.cache_sinks = t->sinks;
    opt.cache_window = t->window;
    opt.sampling = (DibitSampling){ .temperature = 0.9f, .repeat_penalty = 1.1f, .seed = 3 };
    if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
    return s;
}

static DibitSession *fork_of(DibitSession *s) {
    DibitSession *f;
    DibitError err = { 0 };
    if (dibit_fork(&f, s, &err) != 0) die("%s", err.text);
    return f;
}

static void sync_to(DibitSession *s, int text, int n) {
    DibitError err = { 0 };
    if (dibit_sync(s, ids[text], (size_t)n, &err) < 0) die("%s", err.text);
}

static void generate(DibitSession *s, int n) {
    DibitError err = { 0 };
    DibitPiece piece;
    for (int i = 0; i < n; i++) /* an end token may come, which is not added */
        if (dibit_next(s, &piece, &err) < 0) die("%s", err.text);
}

/* Same tokens and same logits, where there are any. */
static void expect_same(const DibitSession *a, const DibitSession *b) {
    const int32_t *x, *y;
    size_t n = dibit_tokens(a, &x);
    assert_int_equal(dibit_tokens(b, &y), n);
    assert_memory_equal(x, y, n * sizeof *x);
    const float *p = dibit_last_logits(a), *q = dibit_last_logits(b);
    assert_true(!p == !q);
    if (p) assert_memory_equal(p, q, TINY_VOCAB * sizeof *p);
}

/* What a session does after the fork, in steps that can be told apart. */
static void go_on(DibitSession *s, int side, int n, int step) {
    switch (step) {
    case 0:
        generate(s, side ? 5 : 9);
        return;
    case 1:
        sync_to(s, 1 + side, n + 40);
        return; /* from token 100 on a text of its own */
    case 2:
        generate(s, 4);
        return; /* which is still there */
    case 3:
        sync_to(s, 0, side ? 90 : n - 5);
        return; /* cut back */
    case 4:
        generate(s, side ? 70 : 33);
        return;
    case 5:
        sync_to(s, side, side ? 20 : N_CTX - 3);
        return;
    default:
        sync_to(s, 3, side ? 620 : 250);
        return;
    }
}
enum { N_STEPS = 7 };

static void both_sides_go_on_unforked(void **state) {
    (void)state;
    for (size_t t = 0; t < ARRAY_LEN(settings); t += STRIDE) {
        DibitSession *s[2], *want[2];
        int n = settings[t].n, first = (int)t % 2; /* who writes first, and is freed first */
        for (int i = 0; i < 2; i++) {
            want[i] = session(&settings[t]);
            sync_to(want[i], 0, n);
            generate(want[i], 2);
        }
        s[0] = session(&settings[t]);
        sync_to(s[0], 0, n);
        generate(s[0], 2);
        s[1] = fork_of(s[0]);
        for (int i = 0; i < 2; i++) expect_same(s[i], want[i]);
        for (int step = 0; step < N_STEPS; step++)
            for (int k = 0; k < 2; k++) {
                int side = k ^ first;
                go_on(s[side], side, n, step);
                go_on(want[side], side, n, step);
                for (int i = 0; i < 2; i++) expect_same(s[i], want[i]);
            }
        dibit_session_free(&s[first]);
        go_on(s[!first], 0, n, 1);
        go_on(want[!first], 0, n, 1);
        expect_same(s[!first], want[!first]);
        dibit_session_free(&s[!first]);
        for (int i = 0; i < 2; i++) dibit_session_free(&want[i]);
    }
}

/* A family of forks of forks at different lengths, freed in every order. */
static void families(void **state) {
    (void)state;
    static const int orders[][4] = {
        { 0, 1, 2, 3 }, { 3, 2, 1, 0 }, { 1, 3, 0, 2 }, { 2, 0, 3, 1 }
    };
    static const Setting *const some[] = { &settings[0], &settings[6], &settings[7] };
    long live = atomic_load(&n_live);
    for (size_t t = 0; t < ARRAY_LEN(some); t++)
        for (size_t o = 0; o < ARRAY_LEN(orders); o += STRIDE) {
            DibitSession *s[4], *want;
            s[0] = session(some[t]);
            sync_to(s[0], 0, 300);
            s[1] = fork_of(s[0]);
            sync_to(s[1], 0, 530);
            s[2] = fork_of(s[1]);
            sync_to(s[0], 0, 290);
            s[3] = fork_of(s[2]);
            sync_to(s[3], 3, 540);
            for (int i = 0; i < 4; i++) {
                dibit_session_free(&s[orders[o][i]]);
                for (int j = 0; j < 4; j++)
                    if (s[j] && some[t]->k[0] == 'f') { /* without records: as if computed afresh */
                        want = session(some[t]);
                        sync_to(s[j], j, 531 + i);
                        sync_to(want, j, 531 + i);
                        expect_same(s[j], want);
                        dibit_session_free(&want);
                    } else if (s[j]) {
                        sync_to(s[j], j, 531 + i);
                    }
            }
            assert_int_equal(atomic_load(&n_live), live);
        }
}

static DibitMemory memory_of(const DibitSession *s) {
    DibitMemory m;
    dibit_memory(s, &m);
    return m;
}

static void memory_is_counted(void **state) {
    (void)state;
    for (size_t t = 0; t < ARRAY_LEN(settings); t += STRIDE) {
        long before = atomic_load(&n_bytes);
        DibitSession *s = session(&settings[t]), *f;
        long one = atomic_load(&n_bytes) - before;
        sync_to(s, 0, settings[t].n);
        size_t kv = memory_of(s).kv;
        assert_int_equal(memory_of(s).kv_shared, 0);
        f = fork_of(s);
        size_t shared = memory_of(s).kv_shared;
        assert_true(shared > 0 && shared <= kv);
        assert_int_equal(memory_of(f).kv, kv);
        assert_int_equal(memory_of(f).kv_shared, shared);
        assert_int_equal(memory_of(f).scratch, memory_of(s).scratch);
        long two = atomic_load(&n_bytes) - before; /* less the pages' heads */
        assert_true(two <= 2 * one - (long)shared && two >= 2 * one - (long)shared - 3 * 3 * 64);
        sync_to(f, 0, settings[t].n + 1);
        size_t less = memory_of(s).kv_shared;
        assert_int_equal(memory_of(f).kv_shared, less);
        assert_true(less < shared || settings[t].n == 256 || settings[t].n == 512);
        sync_to(f, 1, 30); /* from its first position on */
        sync_to(f, 2, 700);
        assert_int_equal(memory_of(s).kv_shared, 0);
        assert_int_equal(memory_of(f).kv_shared, 0);
        assert_int_equal(atomic_load(&n_bytes) - before, 2 * one);
        dibit_session_free(&f);
        f = fork_of(s);
        assert_true(memory_of(s).kv_shared == shared);
        dibit_session_free(&s);
        assert_true(memory_of(f).kv_shared == 0);
        dibit_session_free(&f);
        assert_int_equal(atomic_load(&n_bytes), before);
    }
}

/* Each allocation of a fork fails once, then each copy of a page. */
static void failing_allocations(void **state) {
    (void)state;
    for (size_t t = 0; t < ARRAY_LEN(settings); t += 2 * STRIDE) {
        DibitSession *s = session(&settings[t]), *want = session(&settings[t]), *f = NULL;
        DibitError err = { 0 };
        int n = settings[t].n, n_failed = 0;
        sync_to(s, 0, n);
        sync_to(want, 0, n);
        long live = atomic_load(&n_live), bytes = atomic_load(&n_bytes);
        for (int r = DIBIT_E_MEMORY; r != 0; n_failed++) {
            err = (DibitError){ 0 };
            atomic_store(&fail_after, n_failed);
            r = dibit_fork(&f, s, &err);
            atomic_store(&fail_after, -1);
            if (r == 0) break;
            assert_true(r == DIBIT_E_MEMORY && err.code == r && err.text[0] && !f);
            assert_int_equal(atomic_load(&n_live), live);
            assert_int_equal(atomic_load(&n_bytes), bytes);
        }
        assert_true(n_failed > 8);
        expect_same(s, want);
        expect_same(f, want);
        for (int i = 0; i < 3; i++) { /* pages to copy: the first ones can still be had */
            int32_t other = 2;
            atomic_store(&fail_after, i);
            int64_t r = dibit_sync(f, ids[2], 90, &err); /* all texts have these */
            assert_int_equal(r < 0 ? r : 0, i == 0 ? DIBIT_E_MEMORY : 0);
            atomic_store(&fail_after, i);
            r = dibit_forward(f, &other, 1, NULL, &err);
            atomic_store(&fail_after, -1);
            if (r != 0) assert_int_equal(r, DIBIT_E_MEMORY);
            expect_same(s, want);
            dibit_session_free(&f);
            f = fork_of(s);
        }
        sync_to(f, 2, n + 30); /* and it goes on as if nothing had been */
        DibitSession *g = session(&settings[t]);
        sync_to(g, 0, n);
        sync_to(g, 2, n + 30);
        expect_same(f, g);
        dibit_session_free(&g);
        dibit_session_free(&f);
        generate(s, 20);
        generate(want, 20);
        expect_same(s, want);
        dibit_session_free(&s);
        dibit_session_free(&want);
    }
}

/* A file is read into a fork: the other one does not notice. */
static void restore_into_a_fork(void **state) {
    (void)state;
    for (size_t t = 0; t < ARRAY_LEN(settings); t += STRIDE) {
        char path[64];
        DibitError err = { 0 };
        snprintf(path, sizeof path, "%s/a", work_dir);
        DibitSession *s = session(&settings[t]), *want = session(&settings[t]), *f;
        DibitSession *saved = session(&settings[t]);
        sync_to(saved, 3, 540);
        if (dibit_save(saved, path, &err) != 0) die("%s", err.text);
        sync_to(s, 0, settings[t].n);
        sync_to(want, 0, settings[t].n);
        f = fork_of(s);
        int failed = 0;
        for (int r = DIBIT_E_MEMORY; r != 0; failed++) {
            atomic_store(&fail_after, failed);
            r = dibit_restore(f, path, &err);
            atomic_store(&fail_after, -1);
            if (r == 0) break;
            assert_int_equal(r, DIBIT_E_MEMORY);
            expect_same(f, want);
        }
        assert_true(failed > 0);
        generate(f, 20);
        if (dibit_restore(saved, path, &err) != 0) die("%s", err.text);
        dibit_set_sampling(
            saved, &(DibitSampling){ .temperature = .9f, .repeat_penalty = 1.1f, .seed = 3 }, &err);
        generate(saved, 20);
        expect_same(f, saved);
        if (dibit_save(f, path, &err) != 0) die("%s", err.text);
        generate(s, 20);
        generate(want, 20);
        expect_same(s, want);
        unlink(path);
        dibit_session_free(&s);
        dibit_session_free(&f);
        dibit_session_free(&saved);
        dibit_session_free(&want);
    }
}

typedef struct Thread {
    DibitSession *s;
    int side, n;
} Thread;

static void *run_thread(void *arg) {
    Thread *t = arg;
    for (int step = 0; step < N_STEPS; step++) go_on(t->s, t->side, t->n, step);
    if (t->side == 2) dibit_session_free(&t->s); /* while the others still run */
    return NULL;
}

static void a_thread_on_each_side(void **state) {
    (void)state;
    for (size_t t = 0; t < ARRAY_LEN(settings); t += STRIDE) {
        pthread_t threads[3];
        Thread job[3];
        DibitSession *want[2];
        int n = settings[t].n;
        job[0] = (Thread){ session(&settings[t]), 0, n };
        sync_to(job[0].s, 0, n);
        for (int i = 1; i < 3; i++) job[i] = (Thread){ fork_of(job[0].s), i, n };
        for (int i = 0; i < 3; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, run_thread, &job[i]), 0);
        for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < 2; i++) {
            want[i] = session(&settings[t]);
            sync_to(want[i], 0, n);
            for (int step = 0; step < N_STEPS; step++) go_on(want[i], i, n, step);
            expect_same(job[i].s, want[i]);
            dibit_session_free(&job[i].s);
            dibit_session_free(&want[i]);
        }
    }
}

/* The rest of the state: the end that was reached, and half a character. */
static void the_end_is_forked_too(void **state) {
    (void)state;
    DibitSession *s = session(&settings[0]), *f;
    DibitError err = { 0 };
    DibitPiece a, b;
    f = fork_of(s); /* an empty one */
    assert_int_equal(dibit_next(f, &a, &err), DIBIT_E_ARGUMENT);
    dibit_session_free(&f);
    sync_to(s, 0, N_CTX - 100);
    for (int i = 0, more = 1; more; i++) {
        f = fork_of(s);
        more = dibit_next(s, &a, &err);
        assert_int_equal(dibit_next(f, &b, &err), more);
        assert_true(a.id == b.id && a.n_bytes == b.n_bytes);
        assert_memory_equal(a.text, b.text, a.n_bytes);
        if (!more) assert_string_equal(a.finish, b.finish);
        dibit_session_free(&f);
    }
    f = fork_of(s);
    assert_int_equal(dibit_next(f, &b, &err), 0);
    assert_string_equal(a.finish, b.finish);
    dibit_session_free(&f);
    dibit_session_free(&s);
}

static int set_up(void **state) {
    (void)state;
    size_t size;
    DibitError err;
    DibitOptions opt = { .n_threads = 2, .memory = { test_alloc, test_release, NULL } };
    atomic_store(&fail_after, -1);
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < N_IDS; i++) {
            int key = i < 100 ? i : i + 1000 * t;
            ids[t][i] = 3 + (int32_t)(hash64(9, &key, sizeof key) % (TINY_VOCAB - 3));
        }
    image = tiny_image(&(Tiny){ .type = T_Q4_0, .n_ctx = N_CTX }, &size);
    if (dibit_open_memory(&engine, image, size, &opt, &err) != 0) die("%s", err.text);
    return mkdtemp(work_dir) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    dibit_close(&engine);
    mem_free(NULL, image);
    return rmdir(work_dir) != 0 || atomic_load(&n_live) != 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_go_on_unforked), cmocka_unit_test(families),
        cmocka_unit_test(memory_is_counted),         cmocka_unit_test(failing_allocations),
        cmocka_unit_test(restore_into_a_fork),       cmocka_unit_test(a_thread_on_each_side),
        cmocka_unit_test(the_end_is_forked_too),
    };
    return cmocka_run_group_tests_name("fork", tests, set_up, tear_down);
}
