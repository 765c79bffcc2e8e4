/* cli.c - the program from outside: options, exit codes, clear errors, help and completion. What
 * the commands compute is tested in commands.c. */
#define _GNU_SOURCE
#include "program.h"

static const char *tiny; /* a model with a tokenizer */

static int setup(void **state) {
    if (open_work_folder(state) != 0) return -1;
    tiny = strdup(write_tiny("tiny.gguf", &(Tiny){ .type = T_F16 }));
    return 0;
}

static int teardown(void **state) {
    free((char *)(uintptr_t)tiny);
    return close_work_folder(state);
}

static void version_and_help(void **state) {
    (void)state;
    expect(run(NULL, "--version"), 0, NULL);
    assert_string_equal(last.out, "dibit " DIBIT_VERSION "\n");
    expect(run_argv(NULL, NULL, (const char *const[]){ NULL }), 2, "usage: dibit");
    assert_string_equal(last.out, "");
    expect(run(NULL, "help"), 0, NULL);
    assert_string_equal(last.err, "");
    assert_non_null(strstr(last.out, "\n  run "));
    expect(run(NULL, "hlep"), 2, "did you mean help?");
    expect(run(NULL, "help", "rnu"), 2, "did you mean run?");
}

/* Every command in the list describes itself, both ways, and every option has its help. */
static void every_command_has_help(void **state) {
    (void)state;
    expect(run(NULL, "help"), 0, NULL);
    char *list = strdup(last.out), *save = NULL;
    int n = 0;
    for (char *line = strtok_r(list, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char name[32];
        if (strncmp(line, "  ", 2) != 0 || sscanf(line, " %31[a-z-]", name) != 1) continue;
        expect(run(NULL, "help", name), 0, NULL);
        char *first = strdup(last.out);
        expect(run(NULL, name, "--help"), 0, NULL);
        assert_string_equal(first, last.out);
        assert_string_equal(last.err, "");
        assert_non_null(strstr(last.out, "usage: dibit"));
        free(first);
        n++;
    }
    free(list);
    if (n < 6) die("the list has only %d commands", n);
}

static void wrong_options_are_explained(void **state) {
    (void)state;
    static const struct {
        const char *args[10], *says;
    } cases[] = {
        { { "run", "--tmep", "1" }, "did you mean --temp?" },
        { { "run", "--mode=x" }, "did you mean --model?" },
        { { "run", "-ctx", "5" }, "did you mean --ctx-size?" },
        { { "run", "--zzzzzzzz" }, "unknown option --zzzzzzzz" },
        { { "run", "-n" }, "-n needs a value" },
        { { "run", "-n", "many" }, "-n needs a whole number" },
        { { "run", "-n", "1.5" }, "-n needs a whole number" },
        { { "run", "-n", "99999999999999999999" }, "-n needs a whole number" },
        { { "run", "--top-p", "1.5" }, "--top-p needs a number from 0 to 1, not \"1.5\"" },
        { { "run", "--temp", "nan" }, "--temp needs a number" },
        { { "run", "--top-k=-3" }, "--top-k needs" },
        { { "run", "-t", "5000" }, "from 0 to 1024" },
        { { "run", "-ctk", "q5" }, "-ctk: \"q5\" is not one of: f16 q8" },
        { { "run", "--json=yes" }, "--json takes no value" },
        { { "run", "stray" }, "unexpected argument \"stray\"" },
        { { "run", "-p", "a", "-f", "b" }, "exclude each other" },
        { { "run", "--stop", "" }, "--stop: the text is empty" },
        { { "eval", "-m", "x" }, "name a text with -f FILE" },
        { { "eval", "-f", "x", "--skip", "50", "-c", "50" }, "leaves nothing" },
        { { "eval", "-f", "x", "-ctk", "f16,q8,f16", "-ctv", "q8,q8" }, "give as many, or one" },
        { { "eval", "--choices", "x", "-ctk", "f16,q8" }, "--choices takes one type" },
        { { "run", "--kv-sinks", "257" }, "--kv-sinks needs a whole number from 0 to 256" },
        { { "run", "--kv-sinks", "-1" }, "--kv-sinks needs" },
        { { "run", "--kv-window", "40" }, "--kv-window needs a multiple of 16, not 40" },
        { { "chat", "--kv-window", "1" }, "multiple of 16" },
        { { "eval", "-f", "x", "--kv-window", "17" }, "multiple of 16" },
        { { "bench", "--kv-window", "17" }, "multiple of 16" },
        { { "logits", "--ids", "1", "--kv-window", "17" }, "multiple of 16" },
        { { "logits" }, "--ids is missing" },
        { { "bench", "--shape", "lama-2-7b" }, "did you mean llama-2-7b?" },
        { { "completion", "ksh" }, "is not one of: bash zsh fish" },
        { { "completion" }, "an argument is missing" },
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const Output *o = run_argv(NULL, NULL, cases[i].args);
        expect(o, 2, cases[i].says);
        if (o->out[0]) die("%s: stdout is not empty", cases[i].says);
    }
}

static void environment_twins(void **state) {
    (void)state;
    setenv("DIBIT_TOP_P", "7", 1);
    expect(run(NULL, "run", "-m", tiny, "-p", "a"), 2, "environment variable DIBIT_TOP_P needs");
    setenv("DIBIT_TOP_P", "0.5", 1);
    setenv("DIBIT_MODEL", "/nonexistent/model.gguf", 1);
    expect_error(run(NULL, "run", "-p", "a"), "/nonexistent/model.gguf");
    setenv("DIBIT_MODEL", tiny, 1);
    setenv("DIBIT_JSON", "1", 1);
    expect(run(NULL, "logits", "--ids", "1,2"), 0, NULL);
    assert_int_equal(last.out[0], '{');
    setenv("DIBIT_JSON", "maybe", 1);
    expect(run(NULL, "logits", "--ids", "1,2"), 2, "must be 0 or 1");
    setenv("DIBIT_MODEL", "/nonexistent/model.gguf", 1);
    setenv("DIBIT_JSON", "0", 1);
    expect(run(NULL, "logits", "-m", tiny, "--ids", "1,2"), 0, NULL); /* the option wins */
    unsetenv("DIBIT_TOP_P");
    unsetenv("DIBIT_MODEL");
    unsetenv("DIBIT_JSON");
}

static void bad_models_are_named(void **state) {
    (void)state;
    static const struct {
        Tiny spec;
        const char *says;
    } cases[] = {
        { { .arch = "falcon" }, "falcon" },
        { { .retype = "blk.1.ffn_up.weight" }, "blk.1.ffn_up.weight" },
        { { .skip = "blk.1.attn_q.weight" }, "blk.1.attn_q.weight" },
        { { .reshape = "blk.0.ffn_down.weight" }, "blk.0.ffn_down.weight" },
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *path = write_tiny("bad.gguf", &cases[i].spec);
        expect_error(run(NULL, "run", "-m", path, "-p", "a"), cases[i].says);
        expect_error(run(NULL, "logits", "-m", path, "--ids", "1"), cases[i].says);
    }
    const char *path = write_tiny("nan.gguf", &(Tiny){ .nan = "token_embd.weight" });
    expect_error(run(NULL, "logits", "-m", path, "--ids", "1,2,3"), NULL);
    char *whole = read_text(tiny);
    expect_error(run(NULL, "run", "-m", write_file("cut.gguf", whole, 60000), "-p", "a"),
                 "cut.gguf");
    expect_error(run(NULL, "run", "-m", write_file("junk.gguf", "GGUFjunk", 8), "-p", "a"),
                 "junk.gguf");
    expect_error(run(NULL, "run", "-m", write_file("empty.gguf", "", 0), "-p", "a"), "empty.gguf");
    free(whole);
    expect_error(run(NULL, "run", "-m", "/nonexistent.gguf", "-p", "a"), "/nonexistent.gguf");
    expect_error(run(NULL, "run", "-m", work_folder, "-p", "a"), work_folder);
}

static void bad_requests_are_explained(void **state) {
    (void)state;
    const char *bare = write_tiny("bare.gguf", &(Tiny){ .type = T_F16, .no_tokenizer = 1 });
    expect_error(run(NULL, "run", "-m", bare, "-p", "a"), "tokenizer");
    expect_error(run(NULL, "chat", "-m", bare), "tokenizer");
    expect(run(NULL, "logits", "-m", bare, "--ids", "1,2"), 0, NULL);
    expect_error(run(NULL, "run", "-m", tiny, "-p", ""), "the prompt is empty");
    expect_error(run("", "run", "-m", tiny), "the prompt is empty");
    expect_error(run(NULL, "run", "-m", tiny, "-f", "/nonexistent.txt"), "/nonexistent.txt");
    expect_error(run(NULL, "run", "-m", tiny, "-p", "much longer than this", "-c", "8"),
                 "context of 8");
    expect_error(run(NULL, "run", "-m", tiny, "-p", "a", "--system", "b"), "chat");
    expect_error(run(NULL, "chat", "-m", tiny), "--chat-template");
    expect_error(run(NULL, "logits", "-m", tiny, "--ids", "1,999"), "999");
    expect(run(NULL, "logits", "-m", tiny, "--ids", "1,x"), 2, "token ids are whole numbers");
    expect(run(NULL, "logits", "-m", tiny, "--ids", ","), 2, "the list is empty");
    const char *text = write_file("short.txt", "short", 5);
    expect_error(run(NULL, "eval", "-m", tiny, "-f", text), "fewer than one window of 2048");
    const char *lines =
        write_file("bad.jsonl", "{\"query\":\"a\",\"choices\":[\"b\"],\"gold\":1}\n", 39);
    expect_error(run(NULL, "eval", "-m", tiny, "--choices", lines), "line 1: \"gold\"");
    lines = write_file("worse.jsonl", "\n{nonsense\n", 11);
    expect_error(run(NULL, "eval", "-m", tiny, "--choices", lines), "line 2");
}

static void full_output_is_an_error(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) skip();
    const char *const args[] = { "run", "-m", tiny, "-p", "a", "-n", "4", NULL };
    expect(run_argv(NULL, "/dev/full", args), 1, "No space left");
    const char *const help[] = { "help", NULL };
    expect(run_argv(NULL, "/dev/full", help), 1, "No space left");
    const char *const json[] = { "logits", "-m", tiny, "--ids", "1", "--json", NULL };
    expect(run_argv(NULL, "/dev/full", json), 1, "No space left");
}

static bool have(const char *program) {
    char command[100];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
    return system(command) == 0;
}

static void completion_scripts(void **state) {
    (void)state;
    static const char *const shells[] = { "bash", "zsh", "fish" };
    for (size_t i = 0; i < ARRAY_LEN(shells); i++) {
        expect(run(NULL, "completion", shells[i]), 0, NULL);
        assert_non_null(strstr(last.out, "cache-type-k"));
        assert_non_null(strstr(last.out, "bench"));
        if (!have(shells[i])) continue;
        char command[600];
        snprintf(command, sizeof command, "%s -n %s", shells[i],
                 write_file("script", last.out, strlen(last.out)));
        assert_int_equal(system(command), 0);
    }
    if (!have("bash")) return;
    run(NULL, "completion", "bash");
    char command[900];
    snprintf(command, sizeof command,
             "bash -c 'source %s; COMP_WORDS=(dibit run --to); COMP_CWORD=2; _dibit; "
             "echo ${COMPREPLY[@]}' > %s",
             write_file("script", last.out, strlen(last.out)), work_path("words"));
    assert_int_equal(system(command), 0);
    char *words = read_text(work_path("words"));
    assert_string_equal(words, "--top-k --top-p\n");
    free(words);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_and_help),
        cmocka_unit_test(every_command_has_help),
        cmocka_unit_test(wrong_options_are_explained),
        cmocka_unit_test(environment_twins),
        cmocka_unit_test(bad_models_are_named),
        cmocka_unit_test(bad_requests_are_explained),
        cmocka_unit_test(full_output_is_an_error),
        cmocka_unit_test(completion_scripts),
    };
    return cmocka_run_group_tests_name("cli", tests, setup, teardown);
}
