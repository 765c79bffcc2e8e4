/* tokenizer.c - token vectors of real vocabularies, own small ones built in memory, hostile
 * metadata, word splits, UTF-8 streaming and the time that long words take. */
#include "unicode.h"
#include "vocab.h"
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARED SOURCE_DIR "/../shared/"

/* ---- opening vocabularies ---- */

typedef struct Model {
    uint8_t *image;
    size_t size;
    Gguf *file;
    Tokenizer *t;
} Model;

static void model_close(Model *m) {
    tokenizer_close(&m->t);
    gguf_close(&m->file);
    mem_free(NULL, m->image);
    *m = (Model){ 0 };
}

/* Takes the writer. Returns tokenizer_open()'s code. */
static int model_from_writer(Model *m, GgufWriter *w, DibitError *err) {
    *m = (Model){ 0 };
    assert_int_equal(gguf_begin_memory(w, err), 0);
    assert_int_equal(gguf_finish_memory(w, &m->image, &m->size, err), 0);
    gguf_writer_free(&w);
    assert_int_equal(gguf_open_memory(&m->file, m->image, m->size, NULL, err), 0);
    return tokenizer_open(&m->t, m->file, NULL, err);
}

static GgufWriter *writer(const char *model, const char *pre) {
    GgufWriter *w;
    assert_int_equal(gguf_writer_create(&w, NULL), 0);
    gguf_put_string(w, "general.architecture", "llama", 5);
    gguf_put_string(w, "tokenizer.ggml.model", model, strlen(model));
    if (pre) gguf_put_string(w, "tokenizer.ggml.pre", pre, strlen(pre));
    return w;
}

static void put_list(GgufWriter *w, const char *key, const char *const *list, size_t n) {
    GgufString *s = calloc(n + 1, sizeof *s);
    for (size_t i = 0; i < n; i++) s[i] = (GgufString){ list[i], strlen(list[i]) };
    gguf_put_strings(w, key, s, n);
    free(s);
}

/* The vocabulary of a Hugging Face tokenizer.json, byte-level BPE. */
static bool model_from_json(Model *m, const char *path, const char *pre) {
    json_t *root = json_load_file(path, 0, NULL);
    if (!root) return false;
    json_t *model = json_object_get(root, "model"), *item, *vocab = json_object_get(model, "vocab");
    json_t *added = json_object_get(root, "added_tokens"),
           *merges = json_object_get(model, "merges");
    size_t n = json_object_size(vocab), i, n_merges = json_array_size(merges);
    const char **text = calloc(n + json_array_size(added), sizeof *text), *key;
    int32_t *kind = calloc(n + json_array_size(added), sizeof *kind);
    json_object_foreach(vocab, key, item) {
        text[json_integer_value(item)] = key;
        kind[json_integer_value(item)] = TOKEN_NORMAL;
    }
    json_array_foreach(added, i, item) {
        size_t id = (size_t)json_integer_value(json_object_get(item, "id"));
        text[id] = json_string_value(json_object_get(item, "content"));
        kind[id] = TOKEN_CONTROL;
        if (id >= n) n = id + 1;
    }
    GgufWriter *w = writer("gpt2", pre);
    put_list(w, "tokenizer.ggml.tokens", text, n);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, kind, n);
    char **joined = calloc(n_merges, sizeof *joined);
    json_array_foreach(merges, i, item) {
        const char *one = json_string_value(item);
        const char *a = one ? one : json_string_value(json_array_get(item, 0));
        const char *b = one ? "" : json_string_value(json_array_get(item, 1));
        joined[i] = malloc(strlen(a) + strlen(b) + 2);
        sprintf(joined[i], one ? "%s%s" : "%s %s", a, b);
    }
    put_list(w, "tokenizer.ggml.merges", (const char *const *)joined, n_merges);
    for (i = 0; i < n_merges; i++) free(joined[i]);
    free(joined);
    free(text);
    free(kind);
    DibitError err = { 0 };
    if (model_from_writer(m, w, &err) < 0) fail_msg("%s: %s", path, err.text);
    json_decref(root);
    return true;
}

static bool model_from_gguf(Model *m, const char *path) {
    *m = (Model){ 0 };
    DibitError err = { 0 };
    if (gguf_open(&m->file, path, false, NULL, &err) < 0) return false;
    if (tokenizer_open(&m->t, m->file, NULL, &err) < 0) fail_msg("%s: %s", path, err.text);
    return true;
}

static char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *s = malloc(1 << 22);
    *n = fread(s, 1, (1 << 22) - 1, f);
    s[*n] = 0;
    fclose(f);
    return s;
}

/* ---- checks ---- */

static void expect_ids(const Tokenizer *t, const char *text, size_t n, int flags,
                       const int32_t *want, size_t n_want) {
    int32_t ids[4096];
    DibitError err = { 0 };
    int64_t got = tokenizer_encode(t, text, n, flags, ids, ARRAY_LEN(ids), &err);
    bool same = got == (int64_t)n_want && memcmp(ids, want, n_want * sizeof *ids) == 0;
    if (same) return;
    print_error("text '%.*s'\n  want", (int)n, text);
    for (size_t i = 0; i < n_want; i++) print_error(" %d", want[i]);
    print_error("\n  got ");
    for (int64_t i = 0; i < got; i++) print_error(" %d", ids[i]);
    fail_msg("%s", got < 0 ? err.text : "ids differ");
}

#define EXPECT(t, text, flags, ...)                                                                \
    do {                                                                                           \
        int32_t want_[] = { __VA_ARGS__ };                                                         \
        expect_ids(t, text, strlen(text), flags, want_, ARRAY_LEN(want_));                         \
    } while (0)

/* The bytes of the tokens in a row must be the text again. */
static void expect_bytes(const Tokenizer *t, const char *text, size_t n, size_t n_added) {
    static int32_t ids[65536];
    int64_t count = tokenizer_encode(t, text, n, 0, ids, ARRAY_LEN(ids), NULL);
    char *joined = malloc(n + 64);
    size_t len = 0;
    for (int64_t i = 0; i < count; i++) {
        const char *bytes;
        int k = tokenizer_bytes(t, ids[i], false, &bytes);
        assert_true(k >= 0 && len + (size_t)k < n + 64);
        memcpy(joined + len, bytes, (size_t)k);
        len += (size_t)k;
    }
    assert_int_equal(len, n + n_added);
    assert_memory_equal(joined + n_added, text, n);
    free(joined);
}

static int count_vectors(const Tokenizer *t, const char *name, size_t n_added,
                         void (*check)(const Tokenizer *, const char *, size_t, const int32_t *,
                                       size_t)) {
    char path[512];
    const char *mark = "\n__ggml_vocab_test__\n";
    size_t n_in, n_out;
    snprintf(path, sizeof path, SHARED "vocab/ggml-vocab-%s.gguf.inp", name);
    char *in = read_file(path, &n_in);
    snprintf(path, sizeof path, SHARED "vocab/ggml-vocab-%s.gguf.out", name);
    char *out = read_file(path, &n_out);
    if (!in || !out) return 0;
    int n_cases = 0;
    for (char *text = in, *line = out; *line; n_cases++) {
        char *end = strstr(text, mark), *stop = strchr(line, '\n');
        size_t n = end ? (size_t)(end - text) : strlen(text);
        int32_t want[1024];
        size_t n_want = 0;
        for (char *p = line, *q; p < stop; p = q) {
            want[n_want] = (int32_t)strtol(p, &q, 10);
            if (q == p || q > stop) break;
            n_want++;
        }
        check(t, text, n, want, n_want);
        if (t && n > 0) expect_bytes(t, text, n, n_added);
        line = stop + 1;
        text = end ? end + strlen(mark) : text + n;
    }
    free(in);
    free(out);
    return n_cases;
}

static void check_ids(const Tokenizer *t, const char *text, size_t n, const int32_t *want,
                      size_t n_want) {
    expect_ids(t, text, n, 0, want, n_want);
}

static void vectors_of(const char *name, bool opened, Model *m, size_t n_added) {
    if (!opened) skip();
    int n = count_vectors(m->t, name, n_added, check_ids);
    print_message("%s: %d cases\n", name, n);
    assert_true(n > 40);
    model_close(m);
}

static void vectors_gpt2(void **state) {
    (void)state;
    Model m;
    vectors_of("gpt-2", model_from_gguf(&m, SHARED "vocab/ggml-vocab-gpt-2.gguf"), &m, 0);
}

static void vectors_spm(void **state) {
    (void)state;
    Model m;
    vectors_of("llama-spm", model_from_gguf(&m, SHARED "vocab/ggml-vocab-llama-spm.gguf"), &m, 1);
}

static void vectors_phi3(void **state) {
    (void)state;
    Model m;
    vectors_of("phi-3", model_from_gguf(&m, SHARED "vocab/ggml-vocab-phi-3.gguf"), &m, 1);
}

static void vectors_qwen2(void **state) {
    (void)state;
    Model m;
    vectors_of("qwen2", model_from_json(&m, SHARED "vocab/qwen2/tokenizer.json", "qwen2"), &m, 0);
}

/* Without a vocabulary: no word may reach across tokens, so there are at most as many words. */
static void check_words(const Tokenizer *t, const char *text, size_t n, const int32_t *want,
                        size_t n_want) {
    (void)t;
    (void)want;
    const PreTokenizer *pre = pretokenizer_find("llama-bpe", 9);
    size_t words = 0;
    for (size_t pos = 0; pos < n; words++) {
        size_t end = pre->split((const uint8_t *)text, n, pos);
        assert_true(end > pos && end <= n);
        pos = end;
    }
    if (words > n_want) fail_msg("%zu words but %zu tokens: '%.*s'", words, n_want, (int)n, text);
}

static void vectors_llama_bpe(void **state) {
    (void)state;
    if (!count_vectors(NULL, "llama-bpe", 0, check_words)) skip();
}

static void base_lines(const Tokenizer *t, const char *path) {
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char line[8192];
    int n_cases = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *o = json_loads(line, 0, NULL), *ids = json_object_get(o, "ids"), *item;
        int32_t want[1024];
        size_t i;
        json_array_foreach(ids, i, item) want[i] = (int32_t)json_integer_value(item);
        json_t *text = json_object_get(o, "text");
        expect_ids(t, json_string_value(text), json_string_length(text), DIBIT_PARSE_SPECIAL, want,
                   json_array_size(ids));
        json_decref(o);
        n_cases++;
    }
    fclose(f);
    print_message("%s: %d cases\n", path, n_cases);
    assert_true(n_cases > 20);
}

static void vectors_base(void **state) {
    (void)state;
    Model m;
    bool found = model_from_gguf(&m, SOURCE_DIR "/models/dibit-34m.gguf") ||
                 model_from_json(&m, SHARED "models/base-34m/tokenizer.json", "gpt-2");
    if (!found) skip();
    base_lines(m.t, SOURCE_DIR "/tests/data/tokens.jsonl");
    assert_true(tokenizer_is_end(m.t, 0) && tokenizer_is_end(m.t, 2));
    assert_false(tokenizer_is_end(m.t, 1) || tokenizer_is_end(m.t, -1));
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_gpt2),      cmocka_unit_test(vectors_spm),
        cmocka_unit_test(vectors_phi3),      cmocka_unit_test(vectors_qwen2),
        cmocka_unit_test(vectors_llama_bpe), cmocka_unit_test(vectors_base),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
