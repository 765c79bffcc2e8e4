/* plan_command.c - `dibit detect` and `dibit plan` as a user runs them. */
#define _GNU_SOURCE
#include "program.h"

#include <jansson.h>

#include "plan.h"
#include "shape.h"

static json_t *parse(const char *text) {
    json_error_t err;
    json_t *o = json_loads(text, 0, &err);
    if (!o) die("not JSON: %s in %.200s", err.text, text);
    return o;
}

static json_t *json_of(const char *const *args) {
    expect(run_argv(NULL, NULL, args), 0, NULL);
    assert_string_equal(last.err, "");
    return parse(last.out);
}
#define get(...) json_of((const char *const[]){ __VA_ARGS__, NULL })

static const json_t *choice(const json_t *o, const char *key) {
    const json_t *c = json_object_get(json_object_get(o, "plan"), key);
    if (!json_string_length(json_object_get(c, "reason"))) die("%s has no reason", key);
    return json_object_get(c, "value");
}

static void value_is(const json_t *o, const char *key, const char *want) {
    const char *have = json_string_value(choice(o, key));
    if (!have || strcmp(have, want) != 0)
        die("%s is %s, expected %s", key, have ? have : "no text", want);
}

static const char *tiny(void) {
    return write_tiny("tiny.gguf", &(Tiny){ .type = T_S2, .n_ctx = 4096 });
}

/* ---- detect ---- */

static void detect_this_machine(void **state) {
    (void)state;
    expect(run(NULL, "detect"), 0, NULL);
    static const char *const rows[] = {
        "system", "kernels", "cores", "memory", "vulkan", "features"
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        if (!strstr(last.out, rows[i])) die("no line %s: %s", rows[i], last.out);
    json_t *o = get("detect", "--json");
    assert_true(json_integer_value(json_object_get(o, "cores")) >= 1);
    assert_true(json_integer_value(json_object_get(o, "memory_mb")) >= 64);
    assert_string_equal(json_string_value(json_object_get(o, "browser")), "native");
    assert_true(json_is_false(json_object_get(o, "mobile")));
    json_decref(o);
}

static void detect_a_user_agent(void **state) {
    (void)state;
    static const char ua[] =
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 "
        "(KHTML, like Gecko) CriOS/124.0.6367.88 Mobile/15E148 Safari/604.1";
    expect(run(NULL, "detect", "--user-agent", ua), 0, NULL);
    assert_non_null(strstr(last.out, "chrome 124"));
    assert_non_null(strstr(last.out, "webkit 17"));
    assert_non_null(strstr(last.out, "ios"));
    json_t *o = get("detect", "--user-agent", ua, "--json");
    assert_string_equal(json_string_value(json_object_get(o, "user_agent")), ua);
    assert_string_equal(json_string_value(json_object_get(o, "engine")), "webkit");
    assert_int_equal(json_integer_value(json_object_get(o, "version")), 124);
    assert_true(json_is_true(json_object_get(o, "mobile")));
    assert_null(json_object_get(o, "memory_mb")); /* not known is not there */
    json_decref(o);
    char longest[2000];
    memset(longest, 'x', sizeof longest);
    longest[1999] = 0;
    expect(run(NULL, "detect", "--user-agent", longest), 2, "user_agent");
    expect(run(NULL, "detect", "--user-agent", "a\nb"), 2, "control character");
    expect(run(NULL, "detect", "--user-agent", ""), 0, NULL);
}

/* ---- plan ---- */

static void plan_for_this_machine(void **state) {
    (void)state;
    const char *model = tiny();
    expect(run(NULL, "plan", "-m", model), 0, NULL);
    assert_non_null(strstr(last.out, "native, instruction set"));
    assert_non_null(strstr(last.out, "as the file has it"));
    json_t *o = get("plan", "-m", model, "--json", "-t", "3"),
           *info = get("info", "-m", model, "--json");
    value_is(o, "backend", "cpu");
    value_is(o, "attention", "s2");
    assert_int_equal(json_integer_value(choice(o, "n_threads")), 3);
    assert_true(json_is_true(json_object_get(o, "fits")));
    json_int_t weights = json_integer_value(choice(o, "weights"));
    assert_int_equal(json_integer_value(choice(o, "total")),
                     weights + json_integer_value(choice(o, "kv")) +
                         json_integer_value(choice(o, "scratch")));
    assert_int_equal(weights, json_integer_value(json_object_get(info, "tensor_bytes")) +
                                  json_integer_value(json_object_get(info, "repacked_bytes")));
    json_decref(o);
    json_decref(info);
    /* as `dibit detect --json | dibit plan --device -` */
    expect(run(NULL, "detect", "--json"), 0, NULL);
    char *here = strdup(last.out);
    expect(run(here, "plan", "-m", model, "--device", "-", "--json"), 0, NULL);
    o = parse(last.out);
    value_is(o, "backend", "cpu");
    json_decref(o);
    free(here);
}

static void plan_for_a_browser(void **state) {
    (void)state;
    json_t *o = get("plan", "--model", "llama-3.2-1b", "--browser", "chrome", "--version", "151",
                    "--memory", "8192", "--json");
    value_is(o, "backend", "webgpu");
    value_is(o, "attention", "s3");
    assert_string_equal(json_string_value(json_object_get(o, "features_from")), "reported");
    json_decref(o);
    o = get("plan", "--model", "llama-3.2-1b", "--browser", "safari", "--version", "17", "--mobile",
            "--json");
    value_is(o, "backend", "wasm");
    value_is(o, "attention", "s3");
    value_is(o, "feed_forward", "s2");
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "device"), "os")),
                        "ios");
    json_decref(o);
    o = get("plan", "--model", "llama-3.2-1b", "--browser", "chrome", "--version", "151",
            "--mobile", "--memory", "1024", "--json");
    value_is(o, "attention", "s2");
    json_decref(o);
    expect(run(NULL, "plan", "--model", "llama-3.2-1b", "--browser", "chrome", "--version", "151",
               "--mobile"),
           0, NULL);
    assert_non_null(strstr(last.out, "dibit quantize -m BASE.gguf"));
    assert_non_null(strstr(last.out, "not probed"));
    for (int i = 0; shape_at(i); i++) { /* every model by name, some far too large */
        const Output *r = run(NULL, "plan", "--model", shape_at(i)->name, "--browser", "firefox",
                              "--version", "150", "--json");
        if (r->code != 0 && r->code != 1)
            die("%s: exit %d: %s", shape_at(i)->name, r->code, r->err);
        json_decref(parse(r->out));
    }
}

/* The command that is printed makes what was planned: tried without a base, for its words alone. */
static void plan_of_a_named_model_counts_its_bytes(void **state) {
    (void)state;
    static const char neon[] = "{\"engine\":\"native\",\"isa\":\"neon\",\"memory_mb\":1500}";
    json_t *o = get("plan", "--model", "base-34m", "--device",
                    write_file("d.json", neon, strlen(neon)), "--json");
    value_is(o, "attention", "s3");
    value_is(o, "embedding", "q8");
    json_t *c = get("context", "--model", "base-34m", "--type", "s3", "--head", "q8", "--json");
    /* the copy of the embedding is what `dibit info` says of the model in models/ */
    assert_int_equal(json_integer_value(choice(o, "weights")),
                     json_integer_value(json_object_get(c, "weights")) + 8912896);
    json_decref(o);
    json_decref(c);
}

static void plan_says_when_it_does_not_fit(void **state) {
    (void)state;
    const Output *o = run(NULL, "plan", "--model", "llama-3-70b", "--browser", "chrome",
                          "--version", "151", "--json");
    assert_int_equal(o->code, 1);
    assert_non_null(strstr(o->out, "the model is too large here"));
    o = run(NULL, "plan", "-m", tiny(), "--budget-mb", "3", "-c", "4096", "--json");
    assert_int_equal(o->code, 1);
    json_t *p = parse(o->out);
    assert_true(json_is_false(json_object_get(p, "fits")));
    json_decref(p);
    o = run(NULL, "plan", "-m", tiny(), "--device", write_file("none.json", "{}", 2));
    assert_int_equal(o->code, 1); /* a browser that has nothing */
    assert_non_null(strstr(o->out, "128-bit SIMD"));
}

static void bad_device(const char *json, const char *says) {
    expect_error(run(json, "plan", "-m", tiny(), "--device", "-"), says);
}

static void plan_refuses_what_is_wrong(void **state) {
    (void)state;
    char *m = strdup(tiny()); /* paths are valid for a while only */
    expect(run(NULL, "plan", "-m", m, "--browser", "netscape", "--version", "4"), 2, "netscape");
    expect(run(NULL, "plan", "-m", m, "--browser", "chrome"), 2, "--version");
    expect(run(NULL, "plan", "-m", m, "--version", "5"), 2, "--browser");
    expect(run(NULL, "plan", "-m", m, "--mobile"), 2, "--browser");
    expect(run(NULL, "plan", "-m", m, "--device", "-", "--browser", "chrome", "--version", "5"), 2,
           "--device");
    expect(run(NULL, "plan", "-m", m, "--memory", "0"), 2, "memory");
    expect(run(NULL, "plan", "-m", m, "-c", "-5"), 2, "-c");
    expect(run(NULL, "plan", "-m", m, "-ctk", "q5"), 2, "q5");
    expect(run(NULL, "plan", "extra"), 2, "extra");
    expect_error(run(NULL, "plan", "--model", "llama-9"), "neither a file nor a known model");
    expect_error(run(NULL, "plan", "-m", work_path("none.gguf")), "none.gguf");
    expect_error(run(NULL, "plan", "-m", write_file("x.gguf", "GGUFx", 5)), "truncated");
    expect_error(run(NULL, "plan", "-m", m, "--device", work_path("absent.json")), "absent.json");
    bad_device("", "not a JSON object");
    bad_device("[1]", "not a JSON object");
    bad_device("{\"cores\":2", "not a JSON object");
    bad_device("{\"cores\":2,\"cores\":3}", "not a JSON object");
    bad_device("{\"kernels\":2}", "no known key");
    bad_device("{\"cores\":0}", "cores");
    bad_device("{\"cores\":2.5}", "cores");
    bad_device("{\"cores\":\"many\"}", "cores");
    bad_device("{\"cores\":[2]}", "cores");
    bad_device("{\"webgpu\":\"perhaps\"}", "webgpu");
    bad_device("{\"battery_level\":1.5}", "battery_level");
    bad_device("{\"memory_mb\":1e300}", "memory_mb");
    bad_device("{\"memory_mb\":99999999999999999999999}", "too big");
    expect(run("{\"cores\":null,\"engine\":\"native\",\"isa\":\"avx2\"}", "plan", "-m", m,
               "--device", "-"),
           0, NULL);
    free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(detect_this_machine),
        cmocka_unit_test(detect_a_user_agent),
        cmocka_unit_test(plan_for_this_machine),
        cmocka_unit_test(plan_for_a_browser),
        cmocka_unit_test(plan_of_a_named_model_counts_its_bytes),
        cmocka_unit_test(plan_says_when_it_does_not_fit),
        cmocka_unit_test(plan_refuses_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, open_work_folder, close_work_folder);
}
