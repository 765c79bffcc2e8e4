/* chat.c - what the templates of the models give, written out by hand from their published Jinja,
 * and how a template is recognised. */
#include "chat.h"
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const DibitMessage talk[] = {
    { "system", "Be brief." }, { "user", " Hi \n" },       { "assistant", "\tHello! " },
    { "user", "Bye" },         { "assistant", "Bye bye" }, { "user", "\xc2\xa0Wait\xe3\x80\x80" },
};

#define EXPECT(style, from, n, reply, want)                                                        \
    expect_text(style, talk + (from), n, reply, want, __LINE__)

static void expect_text(const char *style, const DibitMessage *m, size_t n, int reply,
                        const char *want, int line) {
    char buf[2048];
    DibitError err = { 0 };
    int64_t got = chat_text(style, m, n, reply, buf, sizeof buf, &err);
    if (got < 0) fail_msg("line %d: %s", line, err.text);
    if (strcmp(buf, want) != 0) fail_msg("line %d: want\n%s\ngot\n%s", line, want, buf);
    assert_int_equal(got, strlen(want));
}

static void chatml(void **state) {
    (void)state;
    EXPECT("chatml", 0, 4, 1,
           "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n"
           "<|im_start|>assistant\n\tHello! <|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
           "<|im_start|>assistant\n");
    EXPECT("chatml", 3, 1, 0, "<|im_start|>user\nBye<|im_end|>\n");
    EXPECT("chatml", 2, 1, 0, "<|im_start|>assistant\n\tHello! <|im_end|>\n");
    const DibitMessage late[] = { { "user", "" }, { "system", "x" } };
    expect_text("chatml", late, 2, 0,
                "<|im_start|>user\n<|im_end|>\n<|im_start|>system\nx<|im_end|>\n", __LINE__);
}

static void llama3(void **state) {
    (void)state;
    EXPECT("llama3", 0, 4, 1,
           "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
           "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
           "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
           "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
           "<|start_header_id|>assistant<|end_header_id|>\n\n");
    EXPECT("llama3", 5, 1, 0, "<|start_header_id|>user<|end_header_id|>\n\nWait<|eot_id|>");
}

static void llama2(void **state) {
    (void)state;
    EXPECT("llama2", 0, 2, 1, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST]");
    EXPECT("llama2", 0, 6, 1,
           "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello! </s>"
           "<s>[INST] Bye [/INST] Bye bye </s><s>[INST] Wait [/INST]");
    EXPECT("llama2", 1, 2, 0, "[INST] Hi [/INST] Hello! </s>");
    // System text and content are stripped as one text.
    const DibitMessage empty[] = { { "system", " S " }, { "user", " \n" } };
    expect_text("llama2", empty, 2, 1, "[INST] <<SYS>>\n S \n<</SYS>> [/INST]", __LINE__);
    expect_text("llama2", empty + 1, 1, 1, "[INST]  [/INST]", __LINE__);
}

static void mistral(void **state) {
    (void)state;
    EXPECT("mistral", 0, 4, 1,
           " [INST] Be brief.\n\n Hi \n [/INST] \tHello! </s> [INST] Bye [/INST]");
    EXPECT("mistral", 1, 2, 0, " [INST]  Hi \n [/INST] \tHello! </s>");
    EXPECT("mistral-v3", 0, 4, 1, "[INST]  Hi \n[/INST] Hello!</s>[INST] Be brief.\n\nBye[/INST]");
    EXPECT("mistral-v3", 0, 2, 1, "[INST] Be brief.\n\n Hi \n[/INST]");
    EXPECT("mistral-v3", 0, 3, 0, "[INST]  Hi \n[/INST] Hello!</s>"); // as its template has it
}

/* snprintf's rule: the full length is returned, what fits is written and terminated. */
static void capacity(void **state) {
    (void)state;
    const char *want = "<|im_start|>user\nBye<|im_end|>\n";
    const size_t n = strlen(want);
    for (size_t cap = 0; cap <= n + 2; cap++) {
        char *buf = malloc(cap + 1); // one more, to see that it stays
        buf[cap] = '~';
        assert_int_equal(chat_text("chatml", talk + 3, 1, 0, cap ? buf : NULL, cap, NULL), n);
        assert_int_equal(buf[cap], '~');
        if (cap) {
            size_t k = cap - 1 < n ? cap - 1 : n;
            assert_memory_equal(buf, want, k);
            assert_int_equal(buf[k], 0);
        }
        free(buf);
    }
}

static void refuse(const char *style, const DibitMessage *m, size_t n, const char *because) {
    char buf[64];
    DibitError err = { 0 };
    assert_int_equal(chat_text(style, m, n, 1, buf, sizeof buf, &err), DIBIT_E_ARGUMENT);
    if (!strstr(err.text, because)) fail_msg("want '%s' in '%s'", because, err.text);
}

static void wrong_use(void **state) {
    (void)state;
    const DibitMessage role[] = { { "user", "x" }, { "tool", "x" } };
    const DibitMessage no_role = { NULL, "x" }, no_content = { "user", NULL };
    const DibitMessage late[] = { { "user", "x" }, { "system", "x" } };
    refuse("vicuna", talk, 1, "'vicuna' is not one of chatml");
    refuse(NULL, talk, 1, "'NULL' is not one of");
    refuse("chatml", talk, 0, "no messages");
    refuse("chatml", NULL, 1, "no messages");
    refuse("chatml", role, 2, "message 1: role 'tool' is not");
    refuse("chatml", &no_role, 1, "message 0: role 'NULL'");
    refuse("llama3", &no_content, 1, "message 0: content is NULL");
    refuse("llama2", late, 2, "message 1: in llama2 a system message can only be the first");
    refuse("mistral", talk, 1, "needs a user message");
    refuse("mistral", talk + 2, 2, "message 0: in mistral user and assistant take turns");
    const DibitMessage twice[] = { { "system", "s" }, { "user", "x" }, { "user", "y" } };
    refuse("llama2", twice, 3, "message 2: in llama2 user and assistant take turns");
    DibitError err = { 0 };
    assert_int_equal(chat_text("chatml", talk, 1, 1, NULL, 8, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(chat_text("chatml", talk, 0, 1, NULL, 0, NULL), DIBIT_E_ARGUMENT);
}

/* The parts of published templates that tell them apart. */
static const struct {
    const char *jinja, *style;
} marks[] = {
    { "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor "
      "%}",
      "chatml" },
    { "{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + "
      "message['content'] + '<|im_end|>'}}{% endfor %}",
      NULL }, // Phi 4
    { "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}: "
      "<end_of_utterance>\n{% endfor %}",
      NULL }, // SmolVLM
    { "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
      "message['content'] | trim + '<|eot_id|>' %}",
      "llama3" },
    { "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% set content = '<<SYS>>\\n' + "
      "system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}",
      "llama2" },
    { "{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}",
      "mistral" },
    { "{{ '[INST] ' + message['content'] + ' [/INST]' }}", "mistral" },
    { "{{- \"[AVAILABLE_TOOLS] [\" }}{{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}",
      "mistral-v3" },
    { "{{- \"[AVAILABLE_TOOLS][\" }}{{- \"[INST]\" + message[\"content\"] + \"[/INST]\" }}", NULL },
    { "{{- '[SYSTEM_PROMPT] ' + system_message + '[/SYSTEM_PROMPT]' }}[INST] x [/INST]", NULL },
    { "{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}", NULL },
    { "", NULL },
    { "<|im_start|", NULL },
};

static void recognised(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(marks); i++) {
        size_t n = strlen(marks[i].jinja);
        char *exact = malloc(n ? n : 1); // not terminated
        memcpy(exact, marks[i].jinja, n);
        const char *got = chat_style(exact, n);
        free(exact);
        if (!got || !marks[i].style)
            assert_ptr_equal(got, marks[i].style);
        else
            assert_string_equal(got, marks[i].style);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chatml),     cmocka_unit_test(llama3),   cmocka_unit_test(llama2),
        cmocka_unit_test(mistral),    cmocka_unit_test(capacity), cmocka_unit_test(wrong_use),
        cmocka_unit_test(recognised),
    };
    return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
