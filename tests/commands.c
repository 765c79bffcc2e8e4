/* commands.c - what the subcommands print, on a small random model; and the base model's perplexity
 * where ../shared is there. */
#define _GNU_SOURCE
#include "program.h"

#include <jansson.h>

static const char *tiny;

static int setup(void **state) {
    if (open_work_folder(state) != 0) return -1;
    tiny = strdup(write_tiny("tiny.gguf", &(Tiny){ .type = T_F16, .gain = 2 }));
    return 0;
}

static int teardown(void **state) {
    free((char *)(uintptr_t)tiny);
    return close_work_folder(state);
}

static json_t *parse(const char *text) {
    json_error_t err;
    json_t *o = json_loads(text, 0, &err);
    if (!o) die("not JSON: %s in %.200s", err.text, text);
    return o;
}

static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) die("\"%s\" is not a number", key);
    return json_number_value(v);
}

/* ---- run ---- */

static void run_prints_the_text_alone(void **state) {
    (void)state;
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "40", "--temp", "0"), 0, "finish: ");
    assert_non_null(strstr(last.err, "generated: "));
    assert_non_null(strstr(last.err, "tokens/s"));
    char *first = strdup(last.out);
    if (!first[0]) die("no text");
    expect(run("Once\n", "run", "-m", tiny, "-n", "40", "--temp", "0"), 0, NULL);
    assert_string_equal(last.out, first);
    const char *file = write_file("prompt.txt", "Once\n", 5);
    expect(run(NULL, "run", "-m", tiny, "-f", file, "-n", "40", "--temp", "0", "--no-mmap"), 0,
           NULL);
    assert_string_equal(last.out, first);
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "40", "--temp", "0", "--echo"), 0,
           NULL);
    assert_memory_equal(last.out, "Once", 4);
    assert_string_equal(last.out + 4, first);
    free(first);
}

static void a_seed_gives_one_text(void **state) {
    (void)state;
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "40", "-s", "11", "-t", "1"), 0,
           "seed: 11");
    char *first = strdup(last.out);
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "40", "-s", "11", "-t", "3"), 0, NULL);
    assert_string_equal(last.out, first);
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "40"), 0, "seed: ");
    const char *said = strstr(last.err, "seed: ") + 6;
    char seed[32], *text = strdup(last.out);
    snprintf(seed, sizeof seed, "%.*s", (int)strcspn(said, "\n"), said);
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "40", "-s", seed), 0, NULL);
    assert_string_equal(last.out, text); /* the seed that was chosen repeats the run */
    free(first);
    free(text);
}

static void run_says_why_it_ended(void **state) {
    (void)state;
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "3", "--temp", "0"), 0,
           "finish: length (as many tokens as -n asks for)");
    assert_non_null(strstr(last.err, "generated: 3 tokens"));
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "-1", "-c", "20", "--temp", "0"), 0,
           "finish: ");
    if (!strstr(last.err, "the context is full") && !strstr(last.err, "an end token"))
        die("%s", last.err);
}

/* Stops at each printable pair of characters that the text has, and never prints a part of it. */
static void stop_texts(void **state) {
    (void)state;
    int tried = 0;
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "60", "-s", "3"), 0, NULL);
    char *whole = strdup(last.out);
    for (size_t i = 1; whole[i] && whole[i + 1] && tried < 3; i++) {
        char stop[3] = { whole[i], whole[i + 1], 0 };
        if ((signed char)stop[0] <= ' ' || (signed char)stop[1] <= ' ') continue;
        size_t at = (size_t)(strstr(whole, stop) - whole);
        expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "60", "-s", "3", "--stop",
                   "\x01never", "--stop", stop),
               0, "finish: stop (a stop text)");
        assert_int_equal(strlen(last.out), at);
        assert_memory_equal(last.out, whole, at);
        tried++;
    }
    free(whole);
    if (tried == 0) skip(); /* the random model wrote no two printable characters in a row */
}

static void run_json(void **state) {
    (void)state;
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "30", "-s", "5"), 0, NULL);
    char *whole = strdup(last.out), *text = calloc(1, strlen(whole) + 1), *save = NULL;
    expect(run(NULL, "run", "-m", tiny, "-p", "Once", "-n", "30", "-s", "5", "--json"), 0, NULL);
    assert_string_equal(last.err, "");
    int n = 0;
    bool finished = false;
    for (char *line = strtok_r(last.out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *o = parse(line);
        const json_t *t = json_object_get(o, "timings");
        if (t) {
            assert_true(finished);
            assert_true(number(t, "predicted_n") == n && number(t, "prompt_n") > 1);
            assert_true(number(t, "prompt_ms") > 0 && number(t, "predicted_ms") > 0);
            assert_true(number(t, "predicted_per_second") > 0 && number(t, "ttft_ms") > 0);
            assert_true(number(o, "kv_bytes") > 0 && number(o, "weight_bytes") > 0);
        } else {
            assert_false(finished);
            strcat(text, json_string_value(json_object_get(o, "token")));
            assert_true(json_is_integer(json_object_get(o, "token_id")));
            finished = json_is_true(json_object_get(o, "finished"));
            n = (int)number(o, "tokens_generated");
        }
        json_decref(o);
    }
    assert_true(finished);
    assert_string_equal(text, whole);
    free(whole);
    free(text);
}

static void ctrl_c_stops_run(void **state) {
    (void)state;
    const char *big = write_tiny("big.gguf", &(Tiny){ .type = T_F16, .n_ctx = 1 << 20 });
    char *argv[] = { "dibit", "run", "-m", (char *)(uintptr_t)big,
                     "-p",    "a",   "-n", "-1",
                     "-s",    "1",   "-c", "1000000",
                     NULL };
    char out[512], err[512];
    snprintf(out, sizeof out, "%s", work_path("stdout"));
    snprintf(err, sizeof err, "%s", work_path("stderr"));
    write_file("stdout", "", 0);
    pid_t pid = start(argv, "/dev/null", out, err);
    for (int i = 0; i < 1000; i++) { /* until text comes */
        char *text = read_text(out);
        bool some = text[0] != 0;
        free(text);
        if (some) break;
        usleep(20000);
    }
    kill(pid, SIGINT);
    int code = exit_code(pid);
    char *text = read_text(err);
    bool ended = strstr(text, "an end token") != NULL; /* the random model got there first */
    if (!ended && (code != 130 || !strstr(text, "finish: cancelled (interrupted)")))
        die("exit %d: %s", code, text);
    free(text);
    if (ended) skip();
}

/* ---- chat ---- */

static void chat_from_a_pipe(void **state) {
    (void)state;
    char saved[512], input[2000];
    snprintf(saved, sizeof saved, "%s", work_path("session"));
    snprintf(input, sizeof input, "Hello\n/save %s\n", saved);
    expect(run(input, "chat", "-m", tiny, "--chat-template", "chatml", "-n", "8", "-s", "1",
               "--temp", "0"),
           0, "saved ");
    char *first = strdup(last.out);
    assert_int_equal(first[strlen(first) - 1], '\n');
    char *messages_text = read_text(work_path("session.json"));
    json_t *messages = parse(messages_text);
    assert_int_equal(json_array_size(messages), 2);
    json_decref(messages);
    free(messages_text);

    /* Loaded and gone on with, it answers as the conversation in one piece does. */
    expect(run("Hello\nAgain\n", "chat", "-m", tiny, "--chat-template", "chatml", "-n", "8", "-s",
               "1", "--temp", "0"),
           0, NULL);
    char *both = strdup(last.out);
    snprintf(input, sizeof input, "/load %s\nAgain\n/quit\nnever read\n", saved);
    expect(run(input, "chat", "-m", tiny, "--chat-template", "chatml", "-n", "8", "-s", "1",
               "--temp", "0"),
           0, "loaded ");
    if (strlen(both) != strlen(first) + strlen(last.out) ||
        strcmp(both + strlen(first), last.out) != 0)
        die("the loaded conversation answers differently: \"%s\" after \"%s\", in one piece \"%s\"",
            last.out, first, both);
    /* /reset forgets: the same question gets the first answer again. */
    expect(run("Hello\n/reset\nHello\n", "chat", "-m", tiny, "--chat-template", "chatml", "-n", "8",
               "-s", "1", "--temp", "0"),
           0, NULL);
    assert_int_equal(strlen(last.out), 2 * strlen(first));
    assert_memory_equal(last.out, last.out + strlen(first), strlen(first));
    free(first);
    free(both);
}

static void chat_reports_errors(void **state) {
    (void)state;
    expect(run("/sav x\n", "chat", "-m", tiny, "--chat-template", "chatml"), 1,
           "did you mean /save?");
    expect(run("/load /nonexistent\n", "chat", "-m", tiny, "--chat-template", "chatml"), 1,
           "/nonexistent.json");
    expect(run("/save\n", "chat", "-m", tiny, "--chat-template", "chatml"), 1, "needs a file name");
    expect(run("A question that is longer than this\n", "chat", "-m", tiny, "--chat-template",
               "chatml", "-c", "16"),
           1, "/reset starts anew");
    expect(run("/help\n", "chat", "-m", tiny, "--chat-template", "chatml"), 0, "/load FILE");
}

/* ---- eval, logits, bench ---- */

static void eval_json(void **state) {
    (void)state;
    char text[3000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + hash64(1, &i, sizeof i) % 26);
    const char *file = write_file("text.txt", text, sizeof text);
    const char *q4 = write_tiny("q4.gguf", &(Tiny){ .type = T_Q4_0, .gain = 2 });
    expect(run(NULL, "eval", "-m", q4, "-f", file, "-c", "256", "--json"), 0, NULL);
    json_t *o = parse(last.out);
    static const char *const keys[] = { "ppl", "ppl_se", "top1_accuracy", "top1_accuracy_se" };
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) number(o, keys[i]);
    assert_true(number(o, "tokens") == 256 * number(o, "windows") && number(o, "windows") >= 11);
    assert_true(number(o, "ppl") > 1);
    assert_null(json_object_get(o, "kld_mean"));
    double ppl = number(o, "ppl");
    json_decref(o);

    expect(run(NULL, "eval", "-m", q4, "--base", tiny, "-f", file, "-c", "256", "--skip", "16",
               "--chunks", "2", "-ctk", "f16,q8", "-ctv", "f16", "--json"),
           0, NULL);
    o = parse(last.out);
    assert_int_equal(json_array_size(o), 2);
    static const char *const more[] = {
        "ppl_base", "kld_mean",       "kld_mean_se",        "kld_median", "kld_p99",
        "kld_p999", "top1_agreement", "top1_accuracy_base", "degradation"
    };
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < ARRAY_LEN(more); k++) {
            const json_t *v = json_object_get(json_array_get(o, i), more[k]);
            /* a random model may be right nowhere: then the degradation has no value */
            if (!v || (!json_is_number(v) && strcmp(more[k], "degradation") != 0))
                die("no \"%s\"", more[k]);
        }
    assert_true(number(json_array_get(o, 0), "tokens") == 2 * 240);
    assert_true(number(json_array_get(o, 0), "kld_mean") > 0);
    assert_string_equal(json_string_value(json_object_get(json_array_get(o, 1), "cache_type_k")),
                        "q8");
    json_decref(o);

    char want[40];
    expect(run(NULL, "eval", "-m", q4, "-f", file, "-c", "256"), 0, NULL);
    snprintf(want, sizeof want, "perplexity%20.4f", ppl);
    if (!strstr(last.out, want)) die("no \"%s\" in %s", want, last.out);
}

/* Every command that has a cache takes its options: layers given one by one are the types. */
static void kv_options(void **state) {
    (void)state;
    char text[3000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + hash64(1, &i, sizeof i) % 26);
    const char *file = write_file("kv.txt", text, sizeof text);
    expect(run(NULL, "eval", "-m", tiny, "-f", file, "-c", "256", "--json", "-ctk", "q8", "-ctv",
               "q4", "--kv-sinks", "0", "--kv-window", "32", "--kv-layers", "0=k3;1=k2/q4"),
           0, NULL);
    json_t *o = parse(last.out);
    assert_true(number(o, "kv_sinks") == 0 && number(o, "kv_window") == 32);
    assert_string_equal(json_string_value(json_object_get(o, "kv_layers")), "0=k3;1=k2/q4");
    assert_string_equal(json_string_value(json_object_get(o, "cache_type_k")), "q8");
    double ppl = number(o, "ppl");
    json_decref(o);
    expect(run(NULL, "eval", "-m", tiny, "-f", file, "-c", "256", "-ctk", "k3", "-ctv", "k3",
               "--kv-sinks", "0", "--kv-window", "32", "--kv-layers", "1=k2/q4"),
           0, NULL);
    if (!strstr(last.out, "KV cache k3/k3, sinks 0, window 32, layers 1=k2/q4\n"))
        die("%s", last.out);
    char want[40];
    snprintf(want, sizeof want, "perplexity%20.4f", ppl);
    if (!strstr(last.out, want)) die("no \"%s\" in %s", want, last.out);
    expect(run(NULL, "eval", "-m", tiny, "-f", file, "-c", "256", "--json", "-ctk", "k3", "-ctv",
               "k3", "--kv-window", "0", "--kv-layers", "1=k2/q4"),
           0, NULL);
    o = parse(last.out);
    assert_true(number(o, "ppl") != ppl); /* sinks and window matter */
    json_decref(o);

    expect(run(NULL, "eval", "-m", tiny, "-f", file, "--kv-layers", "2=q4"), 1,
           "cache_layers: \"2\" is not a layer or a range of them; the model has layers 0 to 1");
    const char *base[] = { "-m", tiny, "-ctk", "k2", "-ctv", "k2", "--kv-window", "0" };
    expect(run("Hello\n", "chat", base[0], base[1], base[2], base[3], base[4], base[5], base[6],
               base[7], "--kv-layers", "0=q9", "--chat-template", "chatml"),
           1, "cache_layers: \"0=q9\" names an unknown type");
    expect(run(NULL, "run", base[0], base[1], base[2], base[3], base[4], base[5], base[6], base[7],
               "--kv-sinks", "0", "-p", "Once", "-n", "3", "--json", "--kv-layers", "1=q8", "-c",
               "160"),
           0, NULL);
    const char *kv = strstr(last.out, "\"kv_bytes\"");
    assert_non_null(kv); /* of a head vector 16 bytes a record, 66 a q8 row */
    assert_int_equal(atoi(kv + strcspn(kv, "0123456789")), 160 * TINY_KV * 2 * (16 + 66));
    expect(
        run(NULL, "logits", "-m", tiny, "--ids", "1,20,30", "--json", "-ctk", "q8", "-ctv", "q4"),
        0, NULL);
    char *first = strdup(last.out);
    expect(
        run(NULL, "logits", "-m", tiny, "--ids", "1,20,30", "--json", "--kv-layers", "0-1=q8/q4"),
        0, NULL);
    assert_string_equal(last.out, first);
    free(first);
}

/* Vectors beyond the records' scale are counted and warned of, and only they. */
static void kv_counts(void **state) {
    (void)state;
    char text[1001];
    for (size_t i = 0; i < 1000; i++) text[i] = (char)('a' + hash64(1, &i, sizeof i) % 26);
    text[1000] = 0;
    const char *file = write_file("counts.txt", text, 1000);
    for (int i = 0; i < 3; i++) { /* of normal size, large, small */
        Tiny spec = { .type = T_F16, .gain = i == 0 ? 1 : i == 1 ? 1000 : 1e-4f };
        const char *m = write_tiny("counts.gguf", &spec),
                   *warning = i == 1 ? "too large for k2" : "";
        const char *kv = i == 2 ? "k2" : "k3";
        expect(
            run(NULL, "eval", "-m", m, "-f", file, "-c", "256", "-ctk", kv, "-ctv", kv, "--json"),
            0, NULL);
        json_t *o = parse(last.out);
        double written = number(o, "windows") * (256 - 64) * TINY_LAYERS * TINY_KV * 2;
        assert_true(number(o, "kv_saturated") == (i == 1 ? written : 0));
        assert_true(number(o, "kv_zero") == (i == 2 ? written : 0));
        json_decref(o);
        expect(run(NULL, "eval", "-m", m, "-f", file, "-c", "256", "-ctk", kv, "-ctv", kv), 0,
               warning);
        assert_true(i == 1 || !last.err[0]);
        expect(run(NULL, "run", "-m", m, "-p", text + 800, "-n", "3", "-ctk", kv), 0, warning);
        assert_true(i == 1 || !strstr(last.err, "warning"));
        expect(run(NULL, "run", "-m", m, "-p", text + 800, "-n", "3", "-ctk", kv, "--json"), 0,
               NULL);
        const char *counts = strstr(last.out, i == 1 ? "\"kv_saturated\"" : "\"kv_zero\"");
        assert_non_null(counts);
        assert_true((atoi(counts + strcspn(counts, "0123456789")) > 0) == (i > 0));
        expect(run(NULL, "bench", "-m", m, "-p", "100", "-n", "0", "-r", "1", "-ctv", kv), 0,
               warning);
        expect(run(NULL, "bench", "-m", m, "-p", "100", "-n", "0", "-r", "1", "-ctv", kv, "--json"),
               0, NULL);
        json_t *list = parse(last.out);
        const json_t *pp = json_array_get(list, 0);
        assert_true((number(pp, "kv_saturated") > 0) == (i == 1));
        assert_true((number(pp, "kv_zero") > 0) == (i == 2));
        json_decref(list);
    }
}

static void eval_choices(void **state) {
    (void)state;
    static const char lines[] =
        "{\"query\": \"Question: a?\", \"choices\": [\"b\", \"cc\"], \"gold\": 1}\n"
        "{\"query\": \"Question: d?\", \"choices\": [\"e\", \"ff\", \"g\"], \"gold\": 0}\n";
    const char *file = write_file("q.jsonl", lines, sizeof lines - 1);
    expect(run(NULL, "eval", "-m", tiny, "--choices", file, "--json"), 0, NULL);
    json_t *o = parse(last.out);
    assert_true(number(o, "items") == 2);
    assert_true(number(o, "acc_sum") >= 0 && number(o, "acc_norm") <= 1);
    number(o, "acc_sum_se");
    json_decref(o);
}

static void logits_json(void **state) {
    (void)state;
    expect(run(NULL, "logits", "-m", tiny, "--ids", "1,20,30", "--json"), 0, NULL);
    json_t *o = parse(last.out);
    assert_int_equal(json_array_size(json_object_get(o, "logits_last")), TINY_VOCAB);
    assert_int_equal(json_array_size(json_object_get(o, "argmax")), 3);
    expect(run(NULL, "logits", "-m", tiny, "--ids", "1,20,30", "--json", "--all"), 0, NULL);
    json_t *all = parse(last.out);
    const json_t *rows = json_object_get(all, "logits");
    assert_int_equal(json_array_size(rows), 3);
    assert_true(json_equal(json_array_get(rows, 2), json_object_get(o, "logits_last")));
    for (size_t i = 0; i < 3; i++) { /* argmax is that of the row */
        size_t best = 0, k;
        const json_t *row = json_array_get(rows, i), *x;
        json_array_foreach((json_t *)(uintptr_t)row, k, x) {
            if (json_number_value(x) > json_number_value(json_array_get(row, best))) best = k;
        }
        assert_int_equal(json_integer_value(json_array_get(json_object_get(o, "argmax"), i)), best);
    }
    json_decref(o);
    json_decref(all);
    expect(run(NULL, "logits", "-m", tiny, "--ids", "1,20,30"), 0, NULL);
    assert_non_null(strstr(last.out, "argmax"));
}

static void bench_json(void **state) {
    (void)state;
    expect(run(NULL, "bench", "-m", tiny, "-p", "8", "-n", "4", "-d", "16", "-r", "2", "-t", "1",
               "--json"),
           0, NULL);
    assert_string_equal(last.err, "");
    json_t *list = parse(last.out);
    assert_int_equal(json_array_size(list), 2);
    const json_t *tg = json_array_get(list, 1);
    assert_string_equal(json_string_value(json_object_get(tg, "test")), "tg4 @ d16");
    assert_string_equal(json_string_value(json_object_get(tg, "type")), "f16");
    assert_int_equal(json_array_size(json_object_get(tg, "tokens_per_second")), 2);
    /* f16 matrices of both layers and the tied embedding, f32 norms; 16 + 2.5 positions of K, V */
    double d = TINY_HEAD, e = TINY_EMBD, layer = 2 * e * e + 2 * TINY_KV * d * e + 3 * e * TINY_FF;
    double weights = 2 * (TINY_LAYERS * layer + TINY_VOCAB * e) + 4 * (2 * TINY_LAYERS + 1) * e;
    double kv = 18.5 * TINY_LAYERS * TINY_KV * 2 * 2 * d;
    assert_true(number(tg, "bytes_per_token") == weights + kv);
    double share = number(tg, "bytes_per_token") * number(tg, "median") / number(tg, "bandwidth");
    assert_true(fabs(number(tg, "bandwidth_share") - share) < 1e-6 * share);
    assert_true(number(tg, "bandwidth") > 1e8);
    json_decref(list);
    expect(run(NULL, "bench", "-m", tiny, "-p", "0", "-n", "4", "-d", "16", "-r", "1", "-t", "1",
               "-ctk", "k2", "-ctv", "k3", "--kv-layers", "1=q4/q8", "--json"),
           0, NULL);
    assert_string_equal(last.err, "");
    list = parse(last.out);
    tg = json_array_get(list, 0);
    assert_string_equal(json_string_value(json_object_get(tg, "kv_layers")), "1=q4/q8");
    assert_true(number(tg, "kv_sinks") == 4 && number(tg, "kv_window") == 64);
    assert_true(number(tg, "bytes_per_token") ==
                floor(weights + 18.5 * TINY_KV * (16 + 24 + 36 + 66)));
    json_decref(list);
    expect(run(NULL, "bench", "-m", tiny, "-p", "0", "-n", "4", "-d", "0,256", "-r", "1", "-t", "1",
               "-ctk", "f16,k2", "-ctv", "q8", "--profile", "--json"),
           0, NULL);
    assert_string_equal(last.err, "");
    list = parse(last.out);
    assert_int_equal(json_array_size(list), 4); /* both types at both depths */
    for (size_t i = 0; i < 4; i++) {
        tg = json_array_get(list, i);
        assert_true(number(tg, "n_depth") == (i & 1 ? 256 : 0));
        assert_string_equal(json_string_value(json_object_get(tg, "cache_type_k")),
                            i < 2 ? "f16" : "k2");
        const json_t *ms = json_object_get(tg, "profile_ms");
        double parts = number(ms, "matmul") + number(ms, "attention") + number(ms, "cache");
        assert_true(number(ms, "attention") > 0 && number(ms, "cache") > 0);
        assert_true(fabs(parts + number(ms, "rest") - number(ms, "total")) < 1e-9);
        assert_true(number(ms, "total") <= 1000 / number(tg, "median"));
    }
    json_decref(list);
}

/* ---- the base model ---- */

static void base_perplexity(void **state) {
    (void)state;
    const char *base = SOURCE_DIR "/../shared/models/base-34m";
    const char *text = SOURCE_DIR "/../shared/text/wikitext2-valid.txt";
    char golden_path[600], model[512];
    snprintf(golden_path, sizeof golden_path, "%s/golden/perplexity.json", base);
    snprintf(model, sizeof model, "%s", work_path("base.gguf"));
    if (access(golden_path, R_OK) != 0 || access(text, R_OK) != 0) skip();
    char *golden_text = read_text(golden_path);
    json_t *golden = parse(golden_text);
    const json_t *first8 =
        json_object_get(json_object_get(golden, "wikitext2-valid.txt"), "window_2048_first8");
    int windows = SLOWNESS > 1 ? 1 : 8; /* under sanitizers */
    double want = number(first8, "ppl");
    if (windows == 1)
        want = exp(json_number_value(json_array_get(json_object_get(first8, "nll_per_window"), 0)));
    json_decref(golden);
    free(golden_text);
    expect(run(NULL, "convert", base, "-o", model, "--type", "bf16"), 0, NULL);
    expect(
        run(NULL, "eval", "-m", model, "-f", text, "--chunks", windows == 1 ? "1" : "8", "--json"),
        0, NULL);
    json_t *o = parse(last.out);
    double ppl = number(o, "ppl");
    assert_true(number(o, "tokens") == windows * 2048);
    json_decref(o);
    if (fabs(ppl / want - 1) > 0.003)
        die("perplexity %.4f, expected %.4f within 0.3 %%", ppl, want);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_prints_the_text_alone),
        cmocka_unit_test(a_seed_gives_one_text),
        cmocka_unit_test(run_says_why_it_ended),
        cmocka_unit_test(stop_texts),
        cmocka_unit_test(run_json),
        cmocka_unit_test(ctrl_c_stops_run),
        cmocka_unit_test(chat_from_a_pipe),
        cmocka_unit_test(chat_reports_errors),
        cmocka_unit_test(eval_json),
        cmocka_unit_test(kv_options),
        cmocka_unit_test(kv_counts),
        cmocka_unit_test(eval_choices),
        cmocka_unit_test(logits_json),
        cmocka_unit_test(bench_json),
        cmocka_unit_test(base_perplexity),
    };
    return cmocka_run_group_tests_name("commands", tests, setup, teardown);
}
