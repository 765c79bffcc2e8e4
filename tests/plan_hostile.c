/* plan_hostile.c - descriptions and requests from outside: anything may stand in them. Each ends in
 * a result within its limits or in an error with words. */
#define _GNU_SOURCE
#include "plan_test.h"

#include "fields.h"

static uint64_t rng = 11;
static uint32_t rnd(void) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33);
}

/* A copy of exactly these bytes, so that a read behind them is found (make asan). */
static int read_device(DeviceInfo *d, const char *text, size_t n) {
    DibitError err = { 0 };
    char *copy = malloc(n ? n : 1);
    memcpy(copy, text, n);
    int r = device_read(d, copy, n, &err);
    free(copy);
    if (r != 0 && (r != DIBIT_E_ARGUMENT || !err.text[0])) die("%d \"%s\"", r, err.text);
    return r;
}

/* Plans for what was read, whatever it says; the figures stay within their limits. */
static void plan_it(const DeviceInfo *d, const PlanModel *m) {
    static const char *const requests[] = { "",
                                            "budget_mb=1",
                                            "budget_mb=16777216",
                                            "n_ctx=1073741824",
                                            "backend=wasm\nn_threads=1024",
                                            "cache_type_k=k2\nrepack=1" };
    const char *request = requests[rnd() % ARRAY_LEN(requests)];
    Plan p;
    PlanRequest q;
    DibitError err = { 0 };
    assert_int_equal(plan_request_read(&q, request, strlen(request), &err), 0);
    int r = plan_make(&p, d, m, &q, &err);
    if (r != 0) {
        assert_true(err.text[0] && r < 0);
        return;
    }
    assert_true(p.n_threads >= 1 && p.n_threads <= 4096);
    assert_true(p.bits >= 2 && p.bits <= 4);
    assert_true(p.n_lines > 10 && p.n_lines < PLAN_MAX_LINES);
    assert_true(!m || !p.fits || p.need.total + p.staging <= p.budget);
}

static const char *const keys[] = { "user_agent",
                                    "browser",
                                    "engine",
                                    "os",
                                    "version",
                                    "mobile",
                                    "memory_mb",
                                    "memory_free_mb",
                                    "cores",
                                    "battery_level",
                                    "battery_charging",
                                    "wasm_simd",
                                    "webgpu",
                                    "gpu_fallback",
                                    "speed_q4",
                                    "speed_s3",
                                    "speed_t2",
                                    "isolated",
                                    "gpu_vendor",
                                    "nonsense",
                                    "" };
static const char *const values[] = {
    "",
    "0",
    "1",
    "-1",
    "true",
    "false",
    "NaN",
    "nan",
    "inf",
    "1e308",
    "1e99999",
    "-0.0",
    "0.1",
    "18446744073709551616",
    "99999999999999999999999999",
    "9007199254740993",
    "4096",
    "native",
    "webkit",
    "chrome",
    "ios",
    "\xff\xfe",
    "a=b",
    "0x10",
    "1,5",
    "+5",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 999999999999_4 like Mac OS X)",
    "Chrome/",
    "Chrome/99999999999999999999"
};

void device_texts_of_any_kind(void **state) {
    (void)state;
    size_t size;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S2 }, &size);
    PlanModel m;
    PlanPart part = { .data = image, .present = size, .total = size };
    assert_int_equal(plan_peek(&m, &part, 1, NULL), 0);
    int good = 0, bad = 0;
    for (int i = 0; i < 30000; i++) {
        char text[4000];
        size_t n = 0;
        int lines = (int)(rnd() % 6);
        for (int l = 0; l < lines; l++)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%s%s%s",
                                  keys[rnd() % ARRAY_LEN(keys)], rnd() % 20 ? "=" : "",
                                  values[rnd() % ARRAY_LEN(values)], rnd() % 9 ? "\n" : "\r\n");
        for (int k = (int)(rnd() % 4); k > 1 && n; k--) text[rnd() % n] = (char)rnd();
        DeviceInfo d;
        int r = read_device(&d, text, n);
        good += r == 0;
        bad += r != 0;
        if (r == 0) plan_it(&d, rnd() % 2 ? &m : NULL);
    }
    if (good < 3000 || bad < 3000) die("%d taken, %d refused", good, bad);
    for (int i = 0; i < 3000; i++) { /* bytes without any form */
        char text[200];
        size_t n = rnd() % sizeof text;
        for (size_t k = 0; k < n; k++) text[k] = (char)rnd();
        DeviceInfo d;
        if (read_device(&d, text, n) == 0) plan_it(&d, NULL);
    }
    mem_free(NULL, image);
}

void lines_of_a_megabyte(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    char *text = malloc(N);
    DeviceInfo d;
    PlanRequest q;
    static const char *const starts[] = { "user_agent=", "memory_mb=", "battery_level=",
                                          "browser=",    "",           "variant=a bytes=" };
    static const char fills[] = "x0 =\t";
    for (size_t i = 0; i < ARRAY_LEN(starts); i++)
        for (size_t k = 0; k + 1 < sizeof fills; k++) {
            memset(text, fills[k], N);
            memcpy(text, starts[i], strlen(starts[i]));
            int r = read_device(&d, text, N);
            bool blank = fills[k] == ' ' || fills[k] == '\t';
            if (r == 0 && !blank) die("%s and a megabyte of %c is taken", starts[i], fills[k]);
            DibitError err = { 0 };
            if (plan_request_read(&q, text, N, &err) != 0) assert_true(err.text[0] != 0);
        }
    memset(text, '\n', N); /* a million empty lines */
    assert_int_equal(read_device(&d, text, N), 0);
    free(text);
}

/* What is written is read again as the same. */
void device_texts_round_trip(void **state) {
    (void)state;
    static const char *const texts[] = {
        "user_agent=Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 "
        "Firefox/153.0\ncores=4\nmemory_mb=4096\n",
        "browser=native\nengine=native\nos=linux\nmobile=false\ncpu=A \xc3\xa9 CPU = "
        "fast\nisa=avx2\nbattery_level=0.25\nspeed_q4=12.5\n",
        "gpu_max_buffer=1099511627776\nwebgpu=true\npixel_ratio=1.333\nopfs=false\n",
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        DeviceInfo a, b;
        char once[4096], twice[4096];
        assert_int_equal(read_device(&a, texts[i], strlen(texts[i])), 0);
        size_t n = device_write(&a, once, sizeof once);
        assert_int_equal(read_device(&b, once, n), 0);
        assert_int_equal(device_write(&b, twice, sizeof twice), n);
        assert_string_equal(once, twice);
        char cut[64];
        memset(cut, 7, sizeof cut);
        assert_int_equal(device_write(&a, cut, 20), n);
        assert_true(strlen(cut) == 19 && cut[20] == 7);
    }
}

void numbers_are_read_exactly(void **state) {
    (void)state;
    static const struct {
        const char *s;
        double v;
    } good[] = { { "0", 0 },      { "0.1", 0.1 },       { "12.5", 12.5 },
                 { "1e3", 1000 }, { "1.5e-3", 1.5e-3 }, { "-2.25", -2.25 },
                 { "+.5", .5 },   { "5.", 5 },          { "1E2", 100 } };
    static const char *const bad[] = { "",    ".",   "-",   "1e",  "e5",   "1e1000", "0x1",
                                       "1 2", "nan", "inf", "1,5", "1..2", "--1",    "1e+-2" };
    double v;
    int64_t w;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        if (!parse_real(good[i].s, strlen(good[i].s), &v) || v != good[i].v)
            die("%s is %.17g", good[i].s, v);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (parse_real(bad[i], strlen(bad[i]), &v)) die("\"%s\" is %g", bad[i], v);
    assert_true(parse_whole("-999999999999999999", 19, &w) && w == -999999999999999999);
    assert_false(parse_whole("1234567890123456789", 19, &w));
    assert_false(parse_whole("1.0", 3, &w));
}
