/* longrun.c - a long conversation in one session that is cut back again and again, once undisturbed
 * and once with forks, saves and restores in between: the same tokens, and memory that does not
 * grow. Without arguments on a small random model; `make longrun` runs it at length:
 * test_longrun MODEL TOKENS CONTEXT K-TYPE V-TYPE */
#define _GNU_SOURCE
#include "tiny.h"

#include <stdatomic.h>
#include <unistd.h>

#include "dibit.h"

enum { STRIDE = SLOWNESS > 1 ? 3 : 1 }; /* of the settings */
static atomic_long n_bytes;
static char path[] = "/tmp/dibit-longrun-XXXXXX";
static DibitError err;

static void *count_alloc(void *user, size_t size, size_t align) {
    (void)user;
    void *p = aligned_alloc(align, size);
    if (p) atomic_fetch_add(&n_bytes, (long)size);
    return p;
}

static void count_release(void *user, void *ptr, size_t size) {
    (void)user;
    atomic_fetch_sub(&n_bytes, (long)size);
    free(ptr);
}

static double rss_mib(void) {
    FILE *f = fopen("/proc/self/statm", "r");
    long total = 0, resident = 0;
    if (!f) return 0;
    if (fscanf(f, "%ld %ld", &total, &resident) != 2) resident = 0;
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1048576;
}

static void ok(int64_t r) {
    if (r < 0) die("%s", err.text);
}

typedef struct Run {
    DibitEngine *engine;
    DibitSessionOptions opt;
    DibitSession *plain, *other; /* undisturbed; disturbed */
    int n_ctx;
    long n_tokens, n_forks, n_saves, n_cuts, n_ends;
    uint64_t random;
} Run;

static int below(Run *r, int n) { /* 0..n-1 */
    r->random = hash64(r->random, &n, sizeof n);
    return (int)(r->random % (uint64_t)n);
}

static DibitSession *open_session(const Run *r) {
    DibitSession *s;
    ok(dibit_session_create(&s, r->engine, &r->opt, &err));
    return s;
}

static void step(DibitSession *s, DibitPiece *p, int id_after_end) {
    int more = dibit_next(s, p, &err);
    ok(more);
    if (!more) ok(dibit_forward(s, &id_after_end, 1, NULL, &err));
}

/* The text goes on after a cut: to its first part, or with its oldest part left out. */
static void cut(const Run *r, DibitSession *s, int kind) {
    const int32_t *ids;
    size_t n = dibit_tokens(s, &ids), keep = n / 4;
    int32_t *text = malloc(n * sizeof *text);
    memcpy(text, ids, n * sizeof *text);
    if (kind == 0) { /* the first quarter, then the last */
        memmove(text + keep, text + n - keep, keep * sizeof *text);
        ok(dibit_sync(s, text, 2 * keep, &err));
    } else { /* back by some tokens, or by many */
        ok(dibit_sync(s, text, kind == 1 ? n - MIN(n / 2, 20) : MIN(n, (size_t)r->n_ctx / 3),
                      &err));
    }
    free(text);
}

/* The disturbed session is replaced by what should be the same one. */
static void disturb(Run *r) {
    DibitSession *f;
    DibitPiece p;
    int kind = below(r, 5), n = below(r, 30);
    if (kind < 3) {
        ok(dibit_fork(&f, r->other, &err));
        r->n_forks++;
        DibitSession *leaves = kind == 0 ? r->other : f;
        if (kind == 0) r->other = f;
        if (kind == 2) cut(r, leaves, below(r, 3));
        while (n-- > 0 && (int)dibit_tokens(leaves, NULL) < r->n_ctx) step(leaves, &p, 5);
        dibit_session_free(&leaves);
        return;
    }
    ok(dibit_save(r->other, path, &err));
    r->n_saves++;
    if (kind == 3) { /* into a new session */
        dibit_session_free(&r->other);
        r->other = open_session(r);
    } else { /* into the same one, which went elsewhere */
        cut(r, r->other, below(r, 3));
        while (n-- > 0 && (int)dibit_tokens(r->other, NULL) < r->n_ctx) step(r->other, &p, 5);
    }
    ok(dibit_restore(r->other, path, &err));
}

static void expect_same(const Run *r) {
    const int32_t *a, *b;
    size_t n = dibit_tokens(r->plain, &a);
    assert_int_equal(dibit_tokens(r->other, &b), n);
    if (memcmp(a, b, n * sizeof *a) != 0) die("the tokens differ near token %ld", r->n_tokens);
}

static void go(Run *r, long n_tokens, bool talk) {
    long bytes = 0, next = 0;
    double rss = 0, most[2] = { 0 }; /* in the first half, in the second */
    uint64_t start = clock_ns();
    r->plain = open_session(r);
    r->other = open_session(r);
    int32_t prompt[32];
    for (int i = 0; i < 32; i++) prompt[i] = 20 + (int)(hash64(7, &i, sizeof i) % 200);
    ok(dibit_sync(r->plain, prompt, 32, &err));
    ok(dibit_sync(r->other, prompt, 32, &err));
    while (r->n_tokens < n_tokens) {
        DibitPiece p, q;
        if (r->n_tokens == next) { /* both get a new seed, which a saved session does not hold */
            DibitSampling sampling = r->opt.sampling;
            disturb(r);
            sampling.seed = (uint64_t)r->n_tokens;
            ok(dibit_set_sampling(r->plain, &sampling, &err));
            ok(dibit_set_sampling(r->other, &sampling, &err));
            next += 1 + below(r, r->n_ctx / 4);
        }
        int more = dibit_next(r->plain, &p, &err);
        ok(more);
        assert_int_equal(dibit_next(r->other, &q, &err), more);
        if (p.id != q.id) die("token %ld is %d, undisturbed %d", r->n_tokens, q.id, p.id);
        r->n_tokens++;
        if (!more && strcmp(p.finish, "stop") == 0) {
            r->n_ends++;
            ok(dibit_forward(r->plain, &prompt[0], 1, NULL, &err));
            ok(dibit_forward(r->other, &prompt[0], 1, NULL, &err));
        }
        if ((int)dibit_tokens(r->plain, NULL) < r->n_ctx) continue;
        int kind = below(r, 3);
        expect_same(r);
        cut(r, r->plain, kind);
        cut(r, r->other, kind);
        r->n_cuts++;
        DibitMemory m;
        dibit_memory(r->other, &m);
        rss = rss_mib();
        double *half = &most[r->n_tokens > n_tokens / 2];
        *half = MAX(*half, rss);
        if (!bytes) bytes = atomic_load(&n_bytes); /* all that there will be is there */
        assert_int_equal(atomic_load(&n_bytes), bytes);
        assert_int_equal(m.kv_shared, 0);
        if (talk)
            print_message(
                "%ld tokens, %ld cuts, %ld ends, %ld forks, %ld saves; RSS %.1f MiB, %.0f s\n",
                r->n_tokens, r->n_cuts, r->n_ends, r->n_forks, r->n_saves, rss,
                (double)(clock_ns() - start) * 1e-9);
    }
    expect_same(r);
    print_message("%s/%s: %ld tokens, %ld cuts, %ld forks, %ld saves; RSS at most %.1f MiB in the "
                  "first half, %.1f in the second\n",
                  r->opt.cache_k, r->opt.cache_v, r->n_tokens, r->n_cuts, r->n_forks, r->n_saves,
                  most[0], most[1]);
    assert_true(r->n_cuts > 2 && r->n_forks > 2 && r->n_saves > 2);
    if (SLOWNESS == 1) assert_true(most[1] < most[0] + 4); /* sanitizers keep freed memory */
    dibit_session_free(&r->plain);
    dibit_session_free(&r->other);
    unlink(path);
}

static DibitOptions engine_options(void) {
    return (DibitOptions){ .memory = { count_alloc, count_release, NULL } };
}

static void small_runs(void **state) {
    (void)state;
    static const char *const types[][3] = { { "k2", "k2", NULL },
                                            { "k3", "k2", "1=q4/f16" },
                                            { "q8", "q4", NULL },
                                            { "f16", "f16", NULL },
                                            { "k3", "k3", NULL } };
    DibitEngine *e;
    size_t size;
    DibitOptions opt = engine_options();
    uint8_t *image = tiny_image(&(Tiny){ .type = T_Q4_0, .n_ctx = 400 }, &size);
    ok(dibit_open_memory(&e, image, size, &opt, &err));
    for (size_t t = 0; t < ARRAY_LEN(types); t += STRIDE) {
        Run r = { .engine = e, .n_ctx = 400, .random = t };
        r.opt = (DibitSessionOptions){ .n_ctx = 400, .cache_k = types[t][0], .n_batch = 50 };
        r.opt.cache_v = types[t][1];
        r.opt.cache_layers = types[t][2];
        if (t == 4) r.opt.cache_sinks = r.opt.cache_window = -1;
        r.opt.sampling = (DibitSampling){ .temperature = 0.8f, .top_k = 40 };
        go(&r, SLOWNESS > 1 ? 1200 : 3000, false);
    }
    dibit_close(&e);
    mem_free(NULL, image);
    assert_int_equal(atomic_load(&n_bytes), 0);
}

static char **arguments;
static void long_run(void **state) {
    (void)state;
    DibitEngine *e;
    DibitOptions opt = engine_options();
    ok(dibit_open(&e, arguments[1], &opt, &err));
    Run r = { .engine = e, .n_ctx = atoi(arguments[3]) };
    r.opt = (DibitSessionOptions){ .n_ctx = r.n_ctx, .cache_k = arguments[4] };
    r.opt.cache_v = arguments[5];
    r.opt.sampling = (DibitSampling){ .temperature = 0.8f, .top_k = 40 };
    go(&r, atol(arguments[2]), true);
    dibit_close(&e);
    assert_int_equal(atomic_load(&n_bytes), 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest small[] = { cmocka_unit_test(small_runs) };
    const struct CMUnitTest large[] = { cmocka_unit_test(long_run) };
    int fd = mkstemp(path);
    if (fd < 0 || close(fd) != 0) return 1;
    arguments = argv;
    if (argc == 6) return cmocka_run_group_tests_name("longrun", large, NULL, NULL);
    return cmocka_run_group_tests_name("longrun", small, NULL, NULL);
}
