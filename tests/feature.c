/* feature.c - the record of what fails on a device: every transition, its text, its expiry, damaged
 * texts and files. */
#define _GNU_SOURCE
#include "program.h"

#include <sys/stat.h>

#include "feature.h"

static char logged[8][240];
static int n_logged;

static void keep_line(void *user, int level, const char *text) {
    (void)user;
    assert_int_equal(level, DIBIT_LOG_WARN);
    snprintf(logged[n_logged++ % 8], sizeof logged[0], "%s", text);
}

static const DibitLogger logger = { keep_line, NULL };

static Features fresh(const char *stamp) {
    Features f;
    DibitError err = { 0 };
    n_logged = 0;
    if (features_init(&f, stamp, &logger, &err) != 0) die("%s", err.text);
    return f;
}

/* 'o' worked, 'x' failed; returns how many attempts went by until it was disabled, 0: it was not.
 */
static int attempts(Features *f, const char *name, const char *results) {
    int at = 0;
    for (int i = 0; results[i]; i++) {
        int r = features_result(f, name, results[i] == 'o', NULL);
        assert_true(r == 0 || r == 1);
        if (r == 1) {
            assert_int_equal(at, 0); /* once only */
            at = i + 1;
        }
    }
    return at;
}

/* Above half of at least three attempts. */
static void a_feature_goes_off(void **state) {
    (void)state;
    static const struct {
        const char *results;
        int at;
    } rows[] = {
        { "", 0 },           { "o", 0 },          { "x", 0 },        { "xx", 0 },
        { "xxx", 3 },        { "xxo", 3 },        { "xox", 3 },      { "oxx", 3 },
        { "oox", 0 },        { "xoo", 0 },        { "ooxx", 0 },     { "ooxxx", 5 },
        { "xoox", 0 },       { "xooxx", 5 },      { "ooooxxxx", 0 }, { "ooooxxxxx", 9 },
        { "xxxooooooo", 3 }, { "oooooooooo", 0 },
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        Features f = fresh("chrome 151");
        assert_true(features_enabled(&f, "webgpu"));
        int at = attempts(&f, "webgpu", rows[i].results);
        if (at != rows[i].at) die("%s: off after %d, expected %d", rows[i].results, at, rows[i].at);
        assert_int_equal(features_enabled(&f, "webgpu"), at == 0);
        assert_int_equal(n_logged, at != 0);
        if (at) assert_non_null(strstr(logged[0], "webgpu is off on this device"));
        assert_true(features_enabled(&f, "other"));
        int n = (int)strlen(rows[i].results);
        if (n) assert_int_equal(f.feature[0].attempts, n); /* successes count as attempts */
    }
}

static void off_stays_off(void **state) {
    (void)state;
    Features f = fresh("chrome 151");
    char names[64];
    attempts(&f, "webgpu", "xxxoooooooooooooooo");
    attempts(&f, "wasm_relaxed", "oxxx");
    attempts(&f, "gpu_f16", "ooo");
    assert_false(features_enabled(&f, "webgpu"));
    assert_int_equal(features_disabled(&f, names, sizeof names), strlen("webgpu,wasm_relaxed"));
    assert_string_equal(names, "webgpu,wasm_relaxed");
    assert_int_equal(features_disabled(&f, names, 5), strlen("webgpu,wasm_relaxed"));
    assert_string_equal(names, "webg");
}

static void the_last_ten_times_are_kept(void **state) {
    (void)state;
    Features f = fresh("chrome 151");
    DibitError err;
    for (int i = 1; i <= 23; i++) assert_int_equal(features_time(&f, "decode", i * 0.5, &err), 0);
    assert_int_equal(features_time(&f, "prefill", 7, &err), 0);
    assert_int_equal(f.n_ops, 2);
    assert_int_equal(f.op[0].n, 10);
    for (int i = 0; i < 10; i++) assert_true(f.op[0].ms[i] == (14 + i) * 0.5);
    assert_int_equal(f.op[1].n, 1);
    assert_int_equal(features_time(&f, "decode", -1, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(features_time(&f, "decode", NAN, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(features_time(&f, "decode", INFINITY, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(f.op[0].n, 10);
}

static void names_are_checked(void **state) {
    (void)state;
    Features f = fresh("chrome 151");
    DibitError err;
    static const char *const bad[] = {
        "", "a b", "a\n", "a=b", "a,b", "\xc3\xa4", "a_name_of_more_than_thirty_one_bytes"
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(features_result(&f, bad[i], true, &err), DIBIT_E_ARGUMENT);
        assert_int_equal(features_time(&f, bad[i], 1, &err), DIBIT_E_ARGUMENT);
    }
    assert_true(f.n_features == 0 && f.n_ops == 0);
    static const char *const stamps[] = {
        "", "a\nb",
        ("a stamp of far more than the ninety-five bytes that there is room for, which is an "
         "error and nothing else")
    };
    for (size_t i = 0; i < ARRAY_LEN(stamps); i++)
        assert_int_equal(features_init(&f, stamps[i], NULL, &err), DIBIT_E_ARGUMENT);
}

/* ---- text ---- */

static Features sample(void) {
    Features f = fresh("chrome 151");
    attempts(&f, "webgpu", "xxx");
    attempts(&f, "wasm_relaxed", "oox");
    for (int i = 0; i < 12; i++) features_time(&f, "decode", 10.0 / 3 + i, NULL);
    features_time(&f, "self-test", 0, NULL);
    n_logged = 0;
    return f;
}

static void same_state(const Features *a, const Features *b) {
    assert_int_equal(a->n_features, b->n_features);
    for (int i = 0; i < a->n_features; i++) {
        assert_string_equal(a->feature[i].name, b->feature[i].name);
        assert_int_equal(a->feature[i].enabled, b->feature[i].enabled);
        assert_int_equal(a->feature[i].attempts, b->feature[i].attempts);
        assert_int_equal(a->feature[i].failures, b->feature[i].failures);
    }
    assert_int_equal(a->n_ops, b->n_ops);
    for (int i = 0; i < a->n_ops; i++) {
        assert_string_equal(a->op[i].name, b->op[i].name);
        assert_int_equal(a->op[i].n, b->op[i].n);
        for (int k = 0; k < a->op[i].n; k++)
            assert_true(fabs(a->op[i].ms[k] - b->op[i].ms[k]) <= 1e-5 * a->op[i].ms[k]);
    }
}

static void a_state_survives(void **state) {
    (void)state;
    Features f = sample(), g = fresh("chrome 151");
    char text[4096], again[4096];
    size_t n = features_text(&f, text, sizeof text);
    assert_true(n < sizeof text && strlen(text) == n);
    assert_true(features_load(&g, text, n));
    assert_string_equal(g.note, "");
    same_state(&f, &g);
    assert_false(features_enabled(&g, "webgpu"));
    assert_int_equal(features_text(&g, again, sizeof again), n);
    assert_string_equal(again, text);
    assert_int_equal(features_text(&f, again, 10), n);
    assert_int_equal(strlen(again), 9);
    assert_int_equal(features_text(&f, NULL, 0), n);
    attempts(&g, "wasm_relaxed", "xx"); /* goes on counting: 3 of 5 */
    assert_false(features_enabled(&g, "wasm_relaxed"));
    assert_int_equal(n_logged, 1);
}

/* Where there is no room the oldest goes, but nothing that is off. */
static void the_oldest_is_forgotten(void **state) {
    (void)state;
    Features f = fresh("chrome 151");
    DibitError err;
    char name[16];
    for (int i = 0; i < 3; i++) features_result(&f, "broken", false, &err);
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "feature%d", i);
        assert_int_equal(features_result(&f, name, true, &err), 0);
        assert_int_equal(features_time(&f, name, i, &err), 0);
    }
    assert_int_equal(f.n_features, FEATURES_MAX);
    assert_false(features_enabled(&f, "broken"));
    assert_false(features_worked(&f, "broken"));
    assert_false(features_worked(&f, "feature8"));
    assert_true(features_worked(&f, "feature9"));
    assert_true(features_worked(&f, "feature39"));
    assert_true(features_last_ms(&f, "feature7") == -1);
    assert_true(features_last_ms(&f, "feature8") == 8);
    for (int i = 0; i < FEATURES_MAX; i++) f.feature[i].enabled = false;
    assert_int_equal(features_result(&f, "more", true, &err), DIBIT_E_ARGUMENT);
}

static void the_largest_state_survives(void **state) {
    (void)state;
    Features f = fresh(
                 "a browser whose name and version take a lot of room, but not too much of it 151"),
             g = f;
    char text[1 << 14];
    for (int i = 0; i < FEATURES_MAX; i++) {
        char name[FEATURES_NAME];
        snprintf(name, sizeof name, "a_name_that_is_rather_long____%d", i % 10);
        name[29] = (char)('a' + i / 10);
        assert_int_equal(features_result(&f, name, false, NULL), 0);
        f.feature[i].attempts = f.feature[i].failures = 1000000000;
        for (int k = 0; k < FEATURES_HISTORY; k++) features_time(&f, name, 1234567891.25, NULL);
    }
    size_t n = features_text(&f, text, sizeof text);
    assert_true(n < sizeof text);
    assert_true(features_load(&g, text, n));
    same_state(&f, &g);
}

static void another_version_begins_anew(void **state) {
    (void)state;
    Features f = sample();
    char text[4096];
    size_t n = features_text(&f, text, sizeof text);
    static const char *const others[] = { "chrome 152", "chrome 15", "chrome 1511", "edge 151" };
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        Features g = fresh(others[i]);
        assert_false(features_load(&g, text, n));
        assert_non_null(strstr(g.note, "another version"));
        assert_int_equal(n_logged, 1);
        assert_true(g.n_features == 0 && features_enabled(&g, "webgpu"));
    }
}

/* Cut at every byte, each byte changed, and texts of other kinds: never taken, never fatal. */
static void damaged_texts_begin_anew(void **state) {
    (void)state;
    Features f = sample();
    char text[4096], copy[4097];
    size_t n = features_text(&f, text, sizeof text);
    for (size_t i = 1; i < 2 * n; i++) {
        Features g = fresh("chrome 151");
        memcpy(copy, text, n);
        if (i >= n) copy[i - n] ^= (char)(1 + i % 255);
        if (i >= n && copy[i - n] == text[i - n]) continue;
        assert_false(features_load(&g, copy, i < n ? i : n));
        assert_non_null(strstr(g.note, "damaged"));
        assert_true(g.n_features == 0 && g.n_ops == 0);
        assert_int_equal(features_result(&g, "webgpu", false, NULL), 0); /* and it goes on */
    }
    memcpy(copy, text, n);
    copy[n] = 'x';
    Features g = fresh("chrome 151");
    assert_false(features_load(&g, copy, n + 1));
    assert_false(features_load(&g, "", 0));
    assert_string_equal(g.note, ""); /* none is no damage */
}

static void load_signed(const char *body, bool good) {
    char text[2048];
    Features g = fresh("chrome 151");
    int n = snprintf(text, sizeof text, "dibit-features 1\n%s", body);
    uint64_t sum = hash64(0, text, (size_t)n);
    n += snprintf(text + n, sizeof text - (size_t)n, "sum=%08x%08x\n", (unsigned)(sum >> 32),
                  (unsigned)sum);
    if (features_load(&g, text, (size_t)n) != good) die("%s: %s", body, good ? g.note : "taken");
}

/* With the right sum, so that every value is looked at. */
static void every_value_is_checked(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",
        "feature=a on 1 1\n",
        "stamp=chrome 151\nfeature=a on 1\n",
        "stamp=chrome 151\nfeature=a on 1 2\n",
        "stamp=chrome 151\nfeature=a on -1 -1\n",
        "stamp=chrome 151\nfeature=a on 1 0 0\n",
        "stamp=chrome 151\nfeature=a maybe 1 0\n",
        "stamp=chrome 151\nfeature=a on 1e3 0\n",
        "stamp=chrome 151\nfeature=a on 99999999999 0\n",
        "stamp=chrome 151\nfeature=a on 1 0\nfeature=a on 1 0\n",
        "stamp=chrome 151\nfeature=a,b on 1 0\n",
        "stamp=chrome 151\nfeature=\n",
        "stamp=chrome 151\ntime=decode\n",
        "stamp=chrome 151\ntime=decode nan\n",
        "stamp=chrome 151\ntime=decode -3\n",
        "stamp=chrome 151\ntime=decode 1e99\n",
        "stamp=chrome 151\ntime=d 1 2 3 4 5 6 7 8 9 10 11\n",
        "stamp=chrome 151\ntime=d 1\ntime=d 1\n",
        "stamp=chrome 151\nother=1\n",
        "stamp=chrome 151\nword\n",
        "stamp=chrome 151\nfeature=a_name_of_more_than_thirty_one_bytes on 1 0\n",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) load_signed(bad[i], false);
    load_signed("stamp=chrome 151\n", true);
    load_signed("stamp=chrome 151\nfeature=a on 3 1\ntime=d 1 2.5 1e-3\n", true);
}

/* ---- files ---- */

static void files(void **state) {
    (void)state;
    Features f = sample(), g;
    DibitError err = { 0 };
    const char *path = work_path("new/folders/features");
    assert_int_equal(features_open(&g, path, "chrome 151", &logger, &err), 0); /* not there: new */
    assert_int_equal(g.n_features, 0);
    if (features_save(&f, path, &err) != 0) die("%s", err.text);
    assert_int_equal(features_open(&g, path, "chrome 151", &logger, &err), 0);
    same_state(&f, &g);
    attempts(&g, "gpu_f16", "oo");
    if (features_save(&g, path, &err) != 0) die("%s", err.text); /* over the old one */
    assert_int_equal(features_open(&f, path, "chrome 151", &logger, &err), 0);
    same_state(&f, &g);
    assert_int_equal(features_open(&f, path, "chrome 152", &logger, &err), 0);
    assert_true(f.n_features == 0 && strstr(f.note, "another version"));

    path = write_file("damaged", "dibit-features 1\nstamp=chrome 151\n", 34);
    assert_int_equal(features_open(&f, path, "chrome 151", &logger, &err), 0);
    assert_true(f.n_features == 0 && strstr(f.note, "damaged"));
    assert_int_equal(features_open(&f, work_path("."), "chrome 151", &logger, &err), DIBIT_E_IO);
    path = write_file("plain", "x", 1);
    char below[600];
    snprintf(below, sizeof below, "%s/features", path); /* a file where a folder should be */
    assert_int_equal(features_save(&g, below, &err), DIBIT_E_IO);
    assert_int_equal(features_open(&f, below, "chrome 151", &logger, &err), 0);
}

static void the_cache_folder(void **state) {
    (void)state;
    Features f = sample(), g;
    DibitError err = { 0 };
    struct stat st;
    setenv("HOME", work_folder, 1);
    unsetenv("XDG_CACHE_HOME");
    if (features_save(&f, NULL, &err) != 0) die("%s", err.text);
    assert_int_equal(stat(work_path(".cache/dibit/features"), &st), 0);
    setenv("XDG_CACHE_HOME", work_path("xdg"), 1);
    assert_int_equal(features_open(&g, NULL, "chrome 151", NULL, &err), 0);
    assert_int_equal(g.n_features, 0);
    if (features_save(&f, NULL, &err) != 0) die("%s", err.text);
    assert_int_equal(stat(work_path("xdg/dibit/features"), &st), 0);
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", "", 1);
    assert_int_equal(features_save(&f, NULL, &err), DIBIT_E_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_feature_goes_off),
        cmocka_unit_test(off_stays_off),
        cmocka_unit_test(the_last_ten_times_are_kept),
        cmocka_unit_test(names_are_checked),
        cmocka_unit_test(a_state_survives),
        cmocka_unit_test(the_oldest_is_forgotten),
        cmocka_unit_test(the_largest_state_survives),
        cmocka_unit_test(another_version_begins_anew),
        cmocka_unit_test(damaged_texts_begin_anew),
        cmocka_unit_test(every_value_is_checked),
        cmocka_unit_test(files),
        cmocka_unit_test(the_cache_folder),
    };
    return cmocka_run_group_tests(tests, open_work_folder, close_work_folder);
}
