/* mutants.c - damaged files of saved sessions: flipped bytes, cut ends, header fields at their
 * limits, and whole files of other lengths, most of them with a checksum that is right, so that
 * they go deep. Each is refused and leaves the session as it was, or loads and can be worked with.
 * `make mutants` makes 100,000. usage: test_mutants [NUMBER [SEED]] */
#define _GNU_SOURCE
#include "tiny.h"

#include <sys/mman.h>
#include <unistd.h>

#include "session.h"

enum { N_CTX = 150, SAVED_CTX = 130, N_IDS = 150, MAX_FILE = 1 << 20 };
enum { AT_SINKS = 64, AT_WINDOW = 68, AT_E = 72, AT_F = 76, AT_N = 80, AT_M = 84, AT_BYTES = 88 };
enum { HEADER = 96 };

typedef struct Setting {
    const char *k, *v, *layers;
    int sinks, window;
    DibitSession *s; /* gets the files */
    uint8_t *good;   /* a file of it */
    size_t n_good;
} Setting;
static Setting settings[] = {
    { .k = "k2", .v = "k2" },
    { .k = "f16", .v = "q8" },
    { .k = "k3", .v = "k2", .layers = "1=q4/k3", .sinks = 9, .window = 32 },
    { .k = "k2", .v = "k3", .sinks = -1, .window = -1 },
    { .k = "k3", .v = "q4", .window = 128 },
};

static DibitEngine *engine;
static uint8_t *image;
static uint64_t random_state = 1;
static int fd;
static char path[40];
static DibitError err;

static uint32_t below(uint32_t n) {
    random_state = hash64(random_state, &n, sizeof n);
    return (uint32_t)(random_state % n);
}

static void put_u32(uint8_t *p, uint32_t v) {
    memcpy(p, &v, sizeof v);
}

/* ---- files that are right but for what was asked for ---- */

typedef struct Sum {
    const uint8_t *at, *end;
    uint64_t hash;
    size_t n_bytes;
} Sum;

static int sum_run(void *arg, uint8_t *run, size_t n) {
    Sum *s = arg;
    (void)run;
    s->n_bytes += n;
    if (s->at && n <= (size_t)(s->end - s->at)) s->hash = hash64(s->hash, s->at, n), s->at += n;
    return 0;
}

static bool fits(const Setting *t, uint32_t n, uint32_t m, uint32_t e, uint32_t f) {
    return n <= N_CTX && m <= n && e <= f && f <= m &&
           cache_can_restore(&t->s->cache, (int)m, (int)e, (int)f);
}

/* The checksum of a file whose header may be wrong: by its own lengths where they can be. */
static void put_checksum(const Setting *t, uint8_t *file, size_t size) {
    uint32_t n = load_u32(file + AT_N), m = load_u32(file + AT_M), f = load_u32(file + AT_F);
    if (!fits(t, n, m, 0, f) || HEADER + 4 * (size_t)n + 8 > size) {
        n = load_u32(t->good + AT_N);
        m = load_u32(t->good + AT_M);
        f = load_u32(t->good + AT_F);
    }
    if (HEADER + 4 * (size_t)n + 8 > size) return;
    Sum s = { .at = file + HEADER + 4 * (size_t)n, .end = file + size - 8 };
    s.hash = hash64(hash64(0, file, HEADER), file + HEADER, 4 * (size_t)n);
    cache_each_run(&t->s->cache, (int)m, (int)f, sum_run, &s);
    memcpy(file + size - 8, &s.hash, 8);
}

/* A whole file for these lengths, its rows taken from the good one or random. */
static size_t make_file(const Setting *t, uint8_t *file, uint32_t n, uint32_t m, uint32_t e,
                        uint32_t f) {
    Sum s = { 0 };
    size_t size = HEADER + 4 * (size_t)n;
    cache_each_run(&t->s->cache, (int)m, (int)f, sum_run, &s);
    memcpy(file, t->good, HEADER);
    put_u32(file + AT_E, e);
    put_u32(file + AT_F, f);
    put_u32(file + AT_N, n);
    put_u32(file + AT_M, m);
    uint64_t bytes = s.n_bytes;
    memcpy(file + AT_BYTES, &bytes, 8);
    for (uint32_t i = 0; i < n; i++) put_u32(file + HEADER + 4 * i, below(TINY_VOCAB));
    size_t have = t->n_good - 8 - HEADER - 4 * load_u32(t->good + AT_N);
    const uint8_t *rows = t->good + t->n_good - 8 - have;
    bool wild = below(4) == 0;
    for (size_t i = 0; i < s.n_bytes; i++)
        file[size + i] = wild && below(64) == 0 ? (uint8_t)below(256) : rows[i % have];
    size += s.n_bytes + 8;
    put_checksum(t, file, size);
    return size;
}

/* ---- mutations; each says what must become of its file ---- */

typedef enum Fate { ANY, REFUSED, LOADED } Fate;

static uint32_t limit_value(uint32_t now) {
    static const uint32_t values[] = { 0,   1,       2,         15,        16,        17,
                                       63,  64,      65,        127,       128,       129,
                                       255, N_CTX,   N_CTX + 1, N_CTX - 1, SAVED_CTX, 0x7fffffff,
                                       256, 1 << 24, 1u << 31,  ~0u,       ~0u - 1,   0x01000000 };
    uint32_t k = below(ARRAY_LEN(values) + 4);
    return k < ARRAY_LEN(values) ? values[k] : now + k - ARRAY_LEN(values) - 2;
}

static Fate flip(const Setting *t, uint8_t *file, size_t *size) {
    memcpy(file, t->good, *size = t->n_good);
    for (uint32_t k = 1 + below(4); k > 0; k--)
        file[below(2) ? below((uint32_t)*size) : below(HEADER)] ^= (uint8_t)(1 << below(8));
    return memcmp(file, t->good, *size) == 0 ? LOADED : REFUSED;
}

static Fate resize(const Setting *t, uint8_t *file, size_t *size) {
    memcpy(file, t->good, t->n_good);
    memset(file + t->n_good, 0, 64);
    *size = below(2) ? below((uint32_t)t->n_good) : t->n_good - 8 + below(24);
    if (*size == t->n_good) return LOADED;
    if (*size >= HEADER + 8 && below(2)) put_checksum(t, file, *size);
    return REFUSED;
}

static Fate header_fields(const Setting *t, uint8_t *file, size_t *size) {
    memcpy(file, t->good, *size = t->n_good);
    for (uint32_t k = 1 + below(3); k > 0; k--) {
        uint8_t *at = file + 8 + 4 * below((HEADER - 8) / 4);
        put_u32(at, limit_value(load_u32(at)));
    }
    put_checksum(t, file, *size);
    return ANY;
}

static Fate other_lengths(const Setting *t, uint8_t *file, size_t *size) {
    uint32_t n = below(2) ? below(N_CTX + 1) : limit_value(load_u32(t->good + AT_N));
    uint32_t m = below(2) ? n : below(2) ? n - 1 : limit_value(load_u32(t->good + AT_M));
    uint32_t f = below(2) ? m - (uint32_t)t->s->cache.shape.window : limit_value(m);
    uint32_t e = below(2) ? f : below(2) ? 0 : limit_value(f);
    if (!fits(t, n, m, e, f)) { /* the same in a file of the old length */
        header_fields(t, file, size);
        put_u32(file + AT_N, n);
        put_u32(file + AT_M, m);
        put_u32(file + AT_E, e);
        put_u32(file + AT_F, f);
        put_checksum(t, file, *size);
        return REFUSED;
    }
    *size = make_file(t, file, n, m, e, f);
    return LOADED;
}

static Fate rows(const Setting *t, uint8_t *file, size_t *size) {
    memcpy(file, t->good, *size = t->n_good);
    uint32_t first = HEADER + 4 * load_u32(t->good + AT_N), n = (uint32_t)*size - 8 - first;
    for (uint32_t k = 1 + below(200); k > 0; k--) file[first + below(n)] = (uint8_t)below(256);
    if (below(8) == 0) memset(file + first, 0xff, n); /* NaN wherever a scale is */
    put_checksum(t, file, *size);
    return LOADED;
}

static Fate tokens(const Setting *t, uint8_t *file, size_t *size) {
    memcpy(file, t->good, *size = t->n_good);
    uint8_t *at = file + HEADER + 4 * below(load_u32(t->good + AT_N));
    put_u32(at, limit_value(TINY_VOCAB));
    bool known = load_u32(at) < TINY_VOCAB;
    put_checksum(t, file, *size);
    return known ? LOADED : REFUSED;
}

/* ---- what must hold ---- */

static uint64_t state_of(DibitSession *s) {
    const Cache *c = &s->cache;
    const int ints[] = { c->n_past, c->q8_from, c->ring_from, c->n_records, s->n_tokens };
    uint64_t h = hash64(hash64(0, ints, sizeof ints), s->tokens, (size_t)s->n_tokens * 4);
    if (s->has_logits) h = hash64(h, s->scratch.logits, TINY_VOCAB * 4);
    for (int page = 0; page < c->n_pages; page++) h = hash64(h, &c->pages[page], sizeof(void *));
    return h;
}

static int hash_run(void *arg, uint8_t *run, size_t n) {
    uint64_t *h = arg;
    *h = hash64(*h, run, n);
    return 0;
}

static uint64_t rows_of(DibitSession *s) {
    uint64_t h = 0;
    cache_each_run(&s->cache, s->cache.n_past, s->cache.ring_from, hash_run, &h);
    return h;
}

/* Any error will do, as long as it is one. */
static void check(int64_t r) {
    if (r < 0 && (r != err.code || !err.text[0])) die("%lld without a text", (long long)r);
}

static void work_with(DibitSession *s) {
    DibitPiece piece;
    const int32_t *ids;
    int32_t text[N_CTX + 8];
    size_t n = dibit_tokens(s, &ids);
    assert_true(n <= N_CTX);
    memcpy(text, ids, n * sizeof *text);
    if (below(4) == 0) {
        DibitSession *f;
        check(dibit_fork(&f, s, &err));
        check(dibit_next(f, &piece, &err));
        dibit_session_free(&f);
    }
    if (n > 0) check(dibit_next(s, &piece, &err));
    for (int i = 0; i < 8; i++) text[n + (size_t)i] = (int32_t)below(TINY_VOCAB);
    if (below(2)) check(dibit_forward(s, text, 1 + below(4), NULL, &err));
    if (below(2)) check(dibit_sync(s, text, n - MIN(n, below(20)), &err));
    if (below(2)) check(dibit_sync(s, text, MIN(n + below(8), N_CTX), &err));
    if (below(8) == 0) { /* what was loaded can be saved and loaded */
        char out[] = "/tmp/dibit-mutant-XXXXXX";
        int file = mkstemp(out);
        assert_true(file >= 0 && close(file) == 0);
        if (dibit_save(s, out, &err) != 0 || dibit_restore(s, out, &err) != 0) die("%s", err.text);
        unlink(out);
    }
}

static void try_one(Setting *t, Fate (*mutate)(const Setting *, uint8_t *, size_t *), uint8_t *file,
                    long counts[2]) {
    size_t size = 0;
    Fate fate = mutate(t, file, &size);
    assert_true(size <= MAX_FILE);
    assert_true(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, file, size, 0) == (ssize_t)size);
    uint64_t state = state_of(t->s), held = rows_of(t->s);
    err = (DibitError){ 0 };
    int r = dibit_restore(t->s, path, &err);
    check(r);
    counts[r == 0]++;
    if (fate != ANY && (r == 0) != (fate == LOADED))
        die("%s/%s: %s, but %d %s", t->k, t->v, fate == LOADED ? "to be loaded" : "to be refused",
            r, err.text);
    if (r == 0)
        work_with(t->s);
    else
        assert_true(state_of(t->s) == state && rows_of(t->s) == held);
}

static long n_mutants = SLOWNESS > 1 ? 1500 : 6000;

static void mutants(void **state) {
    (void)state;
    static const struct {
        const char *name;
        Fate (*mutate)(const Setting *, uint8_t *, size_t *);
    } kinds[] = { { "bytes flipped", flip },
                  { "cut or longer", resize },
                  { "header fields", header_fields },
                  { "other lengths", other_lengths },
                  { "rows", rows },
                  { "tokens", tokens } };
    uint8_t *file = malloc(MAX_FILE);
    long counts[ARRAY_LEN(kinds)][2] = { { 0 } };
    for (long i = 0; i < n_mutants; i++) {
        size_t k = (size_t)i % ARRAY_LEN(kinds);
        Setting *t = &settings[(size_t)i / ARRAY_LEN(kinds) % ARRAY_LEN(settings)];
        try_one(t, kinds[k].mutate, file, counts[k]);
    }
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        print_message("%-14s %6ld refused, %6ld loaded\n", kinds[k].name, counts[k][0],
                      counts[k][1]);
        if (k != 1) assert_true(counts[k][0] > 0 || k == 4);
        if (k > 1) assert_true(counts[k][1] > 0);
    }
    free(file);
}

static DibitSession *session(const Setting *t, int n_ctx) {
    DibitSession *s;
    DibitSessionOptions opt = { .n_ctx = n_ctx, .n_batch = 40, .cache_k = t->k, .cache_v = t->v };
    opt.cache_layers = t->layers;
    opt.cache_sinks = t->sinks;
    opt.cache_window = t->window;
    if (dibit_session_create(&s, engine, &opt, &err) != 0) die("%s", err.text);
    return s;
}

static int set_up(void **state) {
    (void)state;
    size_t size;
    image = tiny_image(&(Tiny){ .type = T_Q4_0 }, &size);
    fd = memfd_create("mutant", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fd < 0) return -1;
    if (dibit_open_memory(&engine, image, size, &(DibitOptions){ .n_threads = 1 }, &err) != 0)
        die("%s", err.text);
    for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
        Setting *t = &settings[i];
        char out[] = "/tmp/dibit-mutant-XXXXXX";
        int file = mkstemp(out);
        FileMap f;
        int32_t ids[N_IDS];
        for (int k = 0; k < N_IDS; k++) ids[k] = (int32_t)below(TINY_VOCAB);
        DibitSession *s = session(t, SAVED_CTX);
        t->s = session(t, N_CTX);
        if (file < 0 || close(file) != 0) return -1;
        if (dibit_sync(s, ids, 110, &err) < 0) die("%s", err.text);
        if (dibit_save(s, out, &err) != 0 || file_map(&f, out, true, NULL, &err) != 0)
            die("%s", err.text);
        t->good = malloc(f.size);
        memcpy(t->good, f.data, t->n_good = f.size);
        file_unmap(&f);
        unlink(out);
        dibit_session_free(&s);
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
        dibit_session_free(&settings[i].s);
        free(settings[i].good);
    }
    dibit_close(&engine);
    mem_free(NULL, image);
    return close(fd);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(mutants) };
    if (argc > 1) n_mutants = atol(argv[1]);
    if (argc > 2) random_state = (uint64_t)atol(argv[2]);
    return cmocka_run_group_tests_name("mutants", tests, set_up, tear_down);
}
