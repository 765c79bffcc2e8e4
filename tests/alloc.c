/* alloc.c - memory: every allocation may fail, one after another, without crash or leak; a step of
 * generation allocates nothing. */
#define _GNU_SOURCE
#include "tiny.h"

#include <stdatomic.h>

#include "dibit.h"

typedef struct Counter { /* the pool's threads release too */
    atomic_long n_calls, n_live, fail_at;
    atomic_size_t n_bytes;
} Counter;

static void *counting_alloc(void *user, size_t size, size_t align) {
    Counter *c = user;
    if (atomic_fetch_add(&c->n_calls, 1) == atomic_load(&c->fail_at)) return NULL;
    void *p = aligned_alloc(align, size);
    if (!p) return NULL;
    atomic_fetch_add(&c->n_live, 1);
    atomic_fetch_add(&c->n_bytes, size);
    return p;
}

static void counting_release(void *user, void *ptr, size_t size) {
    Counter *c = user;
    atomic_fetch_sub(&c->n_live, 1);
    atomic_fetch_sub(&c->n_bytes, size);
    free(ptr);
}

/* Open, session, prefill, three steps, and everything freed. Returns the first error. */
static int whole_run(const DibitOptions *opt, const char *path, const char *kv, DibitError *err) {
    DibitEngine *e = NULL;
    DibitSession *s = NULL;
    DibitSessionOptions session = { .n_ctx = 300, .n_batch = 16, .cache_k = kv, .cache_v = kv };
    DibitPiece piece;
    int32_t ids[40];
    int64_t n = 0;
    for (int i = 0; i < 40; i++) ids[i] = 3 + i;
    int r = dibit_open(&e, path, opt, err);
    if (r != 0) assert_null(e);
    if (r == 0) r = dibit_session_create(&s, e, &session, err);
    if (r != 0) assert_null(s);
    if (r == 0) n = dibit_sync(s, ids, 40, err);
    if (n < 0) r = (int)n;
    for (int i = 0; i < 3 && r == 0; i++) {
        int more = dibit_next(s, &piece, err);
        if (more < 0) r = more;
    }
    dibit_session_free(&s);
    dibit_close(&e);
    return r;
}

static char path[] = "/tmp/dibit-alloc-XXXXXX";

static void every_failure_is_a_clean_error(void **state) {
    (void)state;
    static const char *const kv[] = { "f16", "q8" };
    for (int k = 0; k < 4; k++) {
        Counter c = { .fail_at = -1 };
        DibitOptions opt = { .n_threads = 1 + k % 2, .no_mmap = k / 2, .no_repack = k == 3 };
        opt.memory = (DibitAllocator){ counting_alloc, counting_release, &c };
        DibitError err = { 0 };
        if (whole_run(&opt, path, kv[k % 2], &err) != 0) die("%s", err.text);
        assert_int_equal(atomic_load(&c.n_live), 0);
        long n = atomic_load(&c.n_calls);
        assert_true(n > 10);
        for (long i = 0; i < n; i++) {
            err = (DibitError){ 0 };
            atomic_store(&c.n_calls, 0);
            atomic_store(&c.fail_at, i);
            int r = whole_run(&opt, path, kv[k % 2], &err);
            if (r != DIBIT_E_MEMORY || err.code != r || !err.text[0])
                die("allocation %ld of %ld failed: %d \"%s\"", i, n, r, err.text);
            if (atomic_load(&c.n_live) != 0) die("allocation %ld of %ld: a leak", i, n);
        }
        print_message("each of %ld allocations failed once\n", n);
        assert_int_equal(atomic_load(&c.n_bytes), 0);
    }
}

static void a_step_allocates_nothing(void **state) {
    (void)state;
    Counter c = { .fail_at = -1 };
    DibitOptions opt = { .n_threads = 2, .memory = { counting_alloc, counting_release, &c } };
    DibitEngine *e;
    DibitSession *s;
    DibitError err = { 0 };
    DibitPiece piece;
    DibitMemory memory;
    DibitSessionOptions session = { .n_ctx = 200 };
    session.sampling = (DibitSampling){ .top_k = 20, .repeat_penalty = 1.1f };
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = 3 + i;
    if (dibit_open(&e, path, &opt, &err) != 0) die("%s", err.text);
    size_t before = atomic_load(&c.n_bytes);
    if (dibit_session_create(&s, e, &session, &err) != 0) die("%s", err.text);
    size_t created = atomic_load(&c.n_bytes) - before;
    long calls = atomic_load(&c.n_calls);
    if (dibit_sync(s, ids, 40, &err) != 40) die("%s", err.text);
    for (int i = 0; i < 100; i++) /* an end token is not added: then the next call draws again */
        if (dibit_next(s, &piece, &err) != 1) die("step %d: %s %s", i, err.text, piece.finish);
    assert_int_equal(atomic_load(&c.n_calls), calls);
    dibit_memory(s, &memory); /* what is reported is what was asked for */
    print_message("session: %zu bytes, of them %zu reported\n", created,
                  memory.kv + memory.scratch);
    assert_true(memory.kv + memory.scratch <= created);
    assert_true(memory.kv + memory.scratch + 8192 >= created);
    dibit_session_free(&s);
    dibit_close(&e);
    assert_int_equal(atomic_load(&c.n_live), 0);
}

static int set_up(void **state) {
    (void)state;
    size_t size;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_Q4_0 }, &size);
    int fd = mkstemp(path);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    int bad = !f || fwrite(image, 1, size, f) != size || fclose(f) != 0;
    mem_free(NULL, image);
    return bad;
}

static int tear_down(void **state) {
    (void)state;
    return remove(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failure_is_a_clean_error),
        cmocka_unit_test(a_step_allocates_nothing),
    };
    return cmocka_run_group_tests_name("alloc", tests, set_up, tear_down);
}
