/* plan_agents.c - the list of real user agents in tests/data/user-agents.tsv: the label of each,
 * and the policy that follows from it with what public data says of such a browser. */
#define _GNU_SOURCE
#include "plan_test.h"

enum { COLUMNS = 14, LEAST = 40 };

static int split(char *line, char *out[COLUMNS]) {
    int n = 0;
    for (char *p = line; p && n < COLUMNS; n++) {
        out[n] = p;
        p = strchr(p, '\t');
        if (p) *p++ = 0;
    }
    return n;
}

static int64_t number_or(const char *s, int64_t none) {
    return strcmp(s, "-") == 0 ? none : atoll(s);
}

static void check_number(const char *ua, const char *what, int64_t got, const char *want) {
    if (got != number_or(want, -1))
        die("%s: %s is %lld, expected %s", ua, what, (long long)got, want);
}

static void check_word(const char *ua, const char *what, const char *got, const char *want) {
    if (strcmp(got, want) != 0) die("%s: %s is %s, expected %s", ua, what, got, want);
}

static Plan plan_with(const DeviceInfo *d, const char *request) {
    Plan p;
    PlanRequest q;
    DibitError err = { 0 };
    if (plan_request_read(&q, request, strlen(request), &err) != 0) die("%s", err.text);
    if (plan_make(&p, d, NULL, &q, &err) != 0) die("%s", err.text);
    return p;
}

static void check_row(char *c[COLUMNS]) {
    DeviceInfo d;
    DibitError err = { 0 };
    char text[1200];
    int n = snprintf(text, sizeof text, "user_agent=%s\n", c[0]);
    if (device_read(&d, text, (size_t)n, &err) != 0) die("%s: %s", c[0], err.text);
    check_word(c[0], "browser", d.browser, c[1]);
    check_number(c[0], "version", d.version, c[2]);
    check_word(c[0], "engine", d.engine, c[3]);
    check_number(c[0], "engine's version", d.engine_version, c[4]);
    check_word(c[0], "system", d.os, c[5]);
    check_number(c[0], "mobile", d.mobile, c[6]);
    device_reported(&d);
    Plan p = plan_with(&d, ""), small = plan_with(&d, "budget_mb=900");
    check_word(c[0], "backend", plan_line(&p, "backend")->value, c[7]);
    check_number(c[0], "bits", p.bits, c[8]);
    check_number(c[0], "attention", p.group_bits[GROUP_ATTENTION], c[9]);
    check_number(c[0], "feed-forward", p.group_bits[GROUP_FEED_FORWARD], c[10]);
    check_number(c[0], "attention in 900 MiB", small.group_bits[GROUP_ATTENTION], c[11]);
    check_number(c[0], "feed-forward in 900 MiB", small.group_bits[GROUP_FEED_FORWARD], c[12]);
    check_number(c[0], "embedding in 900 MiB", small.group_bits[GROUP_EMBEDDING], c[13]);
}

void user_agents(void **state) {
    (void)state;
    char *text = read_text(SOURCE_DIR "/tests/data/user-agents.tsv"), *save = NULL, *c[COLUMNS];
    int n = 0;
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        if (l[0] == '#') continue;
        if (split(l, c) != COLUMNS) die("%s: not %d columns", l, COLUMNS);
        check_row(c);
        n++;
    }
    if (n < LEAST) die("%d user agents, at least %d are wanted", n, LEAST);
    free(text);
}

/* iPadOS says it is a Mac; a Mac has no touch screen. */
void ipads_are_known_by_touch(void **state) {
    (void)state;
    static const char mac[] =
        "user_agent=Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) "
        "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 Safari/605.1.15\n";
    char text[400];
    DeviceInfo d;
    for (int touch = 0; touch <= 5; touch += 5) {
        int n = snprintf(text, sizeof text, "%stouch_points=%d\n", mac, touch);
        assert_int_equal(device_read(&d, text, (size_t)n, NULL), 0);
        check_word(text, "system", d.os, touch ? "ipados" : "macos");
        assert_int_equal(d.mobile, touch != 0);
        assert_int_equal(d.engine_version, 18);
    }
}

/* What is told counts for more than what the user agent says. */
void probes_win_over_the_label(void **state) {
    (void)state;
    static const char text[] =
        "browser=brave\nmobile=true\nuser_agent=Mozilla/5.0 (X11; Linux x86_64) "
        "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0 Safari/537.36";
    DeviceInfo d;
    assert_int_equal(device_read(&d, text, sizeof text - 1, NULL), 0);
    check_word("brave", "browser", d.browser, "brave");
    check_word("brave", "engine", d.engine, "blink");
    assert_int_equal(d.mobile, 1);
    assert_int_equal(d.engine_version, 151);
}
