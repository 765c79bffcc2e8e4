/* tokenizer.c - token vectors of real vocabularies, own small ones built in memory, hostile
 * metadata, failing memory and the time that long words take. */
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
#include <time.h>

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
        assert_true(k >= 0 && (size_t)k < n + 64 - len);
        if (k > 0) memcpy(joined + len, bytes, (size_t)k);
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

/* ---- own small vocabularies ---- */

/* Byte-level: ids 0..255 are the bytes, then what merges form, then the special ones. */
enum { AA = 256, AAAA, HE, LL, HELL, SP_W, END, TOOL, TOOL2, BOS, N_BPE };

static void byte_text(int byte, char *out) {
    int extra = 0;
    for (int b = 0; b < 256; b++) {
        bool same = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xff && b != 0xad);
        int c = same ? b : 256 + extra++;
        if (b != byte) continue;
        sprintf(out, c < 0x80 ? "%c" : "%c%c", c < 0x80 ? c : 0xc0 | c >> 6, 0x80 | (c & 0x3f));
    }
}

static GgufWriter *small_bpe(const char *pre) {
    static char bytes[256][4];
    const char *text[N_BPE];
    int32_t kind[N_BPE];
    for (int b = 0; b < 256; b++) {
        byte_text(b, bytes[b]);
        text[b] = bytes[b];
    }
    static const char *const more[] = { "aa",        "aaaa",       "he",     "ll",      "hell",
                                        "\xc4\xa0w", "<|im_end|>", "<tool>", "<tool>x", "<s>" };
    memcpy(text + 256, more, sizeof more);
    for (int i = 0; i < N_BPE; i++) kind[i] = TOKEN_NORMAL;
    kind[END] = kind[BOS] = TOKEN_CONTROL;
    kind[TOOL] = kind[TOOL2] = TOKEN_USER_DEFINED;
    const char *const merges[] = { "a a", "aa aa", "h e", "l l", "he ll", "\xc4\xa0 w", "h e" };
    GgufWriter *w = writer("gpt2", pre);
    put_list(w, "tokenizer.ggml.tokens", text, N_BPE);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, kind, N_BPE);
    put_list(w, "tokenizer.ggml.merges", merges, ARRAY_LEN(merges));
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", BOS);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 0);
    return w;
}

static void bpe_small(void **state) {
    (void)state;
    Model m;
    DibitError err = { 0 };
    const int all = DIBIT_ADD_BOS | DIBIT_PARSE_SPECIAL;
    if (model_from_writer(&m, small_bpe("gpt-2"), &err) < 0) fail_msg("%s", err.text);
    const Tokenizer *t = m.t;
    assert_int_equal(tokenizer_n_vocab(t), N_BPE);
    EXPECT(t, "hello", 0, HELL, 'o');
    EXPECT(t, "aaa", 0, AA, 'a');
    EXPECT(t, "aaaaaaa", 0, AAAA, AA, 'a');
    EXPECT(t, "a w", 0, 'a', SP_W);
    EXPECT(t, "\xff\xc3(", 0, 0xff, 0xc3, '(');
    EXPECT(t, "he<|im_end|>", 0, HE, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    EXPECT(t, "he<|im_end|>ll", DIBIT_PARSE_SPECIAL, HE, END, LL);
    EXPECT(t, "<|im_end|><|im_end", DIBIT_PARSE_SPECIAL, END, '<', '|', 'i', 'm', '_', 'e', 'n',
           'd');
    EXPECT(t, "<tool>a<tool>x<tool", 0, TOOL, 'a', TOOL2, '<', 't', 'o', 'o', 'l'); // the longest
    EXPECT(t, "a", DIBIT_ADD_BOS, 'a'); // this pre-tokenizer has no BOS unless the file says so
    assert_int_equal(tokenizer_encode(t, NULL, 0, 0, NULL, 0, NULL), 0);
    assert_int_equal(tokenizer_encode(t, "\0a", 2, 0, NULL, 0, NULL), 2);
    assert_int_equal(tokenizer_bos(t), BOS);
    assert_int_equal(tokenizer_eos(t), 0);
    assert_true(tokenizer_is_end(t, 0) && tokenizer_is_end(t, END));
    assert_false(tokenizer_is_end(t, TOOL) || tokenizer_is_end(t, N_BPE));
    assert_int_equal(tokenizer_find(t, "hell", 4), HELL);
    assert_int_equal(tokenizer_find(t, "hel", 3), -1);
    model_close(&m);

    GgufWriter *w = small_bpe("llama-bpe"); // adds BOS by itself
    assert_int_equal(model_from_writer(&m, w, &err), 0);
    EXPECT(m.t, "he", DIBIT_ADD_BOS, BOS, HE);
    EXPECT(m.t, "he", 0, HE);
    EXPECT(m.t, "", DIBIT_ADD_BOS, BOS);
    EXPECT(m.t, "<s>he", all, BOS, HE); // not twice
    EXPECT(m.t, "<s>", DIBIT_ADD_BOS, BOS, '<', 's', '>');
    model_close(&m);
    w = small_bpe("llama-bpe");
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    assert_int_equal(model_from_writer(&m, w, &err), 0);
    EXPECT(m.t, "he", DIBIT_ADD_BOS, HE);
    model_close(&m);
}

static void bytes_of_tokens(void **state) {
    (void)state;
    Model m;
    const char *s;
    assert_int_equal(model_from_writer(&m, small_bpe("gpt-2"), NULL), 0);
    for (int b = 0; b < 256; b++) {
        assert_int_equal(tokenizer_bytes(m.t, b, false, &s), 1);
        assert_int_equal((uint8_t)s[0], b);
    }
    assert_int_equal(tokenizer_bytes(m.t, SP_W, false, &s), 2);
    assert_memory_equal(s, " w", 2);
    assert_int_equal(tokenizer_bytes(m.t, END, false, &s), 0);
    assert_int_equal(tokenizer_bytes(m.t, END, true, &s), 10);
    assert_memory_equal(s, "<|im_end|>", 10);
    assert_int_equal(tokenizer_bytes(m.t, TOOL, false, &s), 6);
    assert_int_equal(tokenizer_bytes(m.t, -1, true, &s), DIBIT_E_ARGUMENT);
    assert_int_equal(tokenizer_bytes(m.t, N_BPE, true, &s), DIBIT_E_ARGUMENT);
    assert_int_equal(tokenizer_bytes(m.t, INT32_MIN, true, &s), DIBIT_E_ARGUMENT);
    model_close(&m);
}

/* A word that is a token stays whole in Llama 3's rule, though no merge leads to it. */
static void whole_words(void **state) {
    (void)state;
    for (int llama = 0; llama < 2; llama++) {
        GgufWriter *w = small_bpe(llama ? "llama-bpe" : "gpt-2");
        const char *const merges[] = { "a a", "aa aa" };
        put_list(w, "tokenizer.ggml.merges", merges, 2);
        Model m;
        assert_int_equal(model_from_writer(&m, w, NULL), 0);
        if (llama)
            EXPECT(m.t, "hell hell w", 0, HELL, ' ', 'h', 'e', 'l', 'l', SP_W);
        else
            EXPECT(m.t, "hell w", 0, 'h', 'e', 'l', 'l', ' ', 'w');
        model_close(&m);
    }
}

/* What the text has is counted in full; only cap ids are written. */
static void capacity(void **state) {
    (void)state;
    Model m;
    int32_t ids[4] = { -7, -7, -7, -7 };
    DibitError err = { 0 };
    assert_int_equal(model_from_writer(&m, small_bpe("gpt-2"), NULL), 0);
    assert_int_equal(tokenizer_encode(m.t, "xyz", 3, 0, ids, 2, NULL), 3);
    assert_true(ids[0] == 'x' && ids[1] == 'y' && ids[2] == -7);
    assert_int_equal(tokenizer_encode(m.t, "xyz", 3, 0, NULL, 0, NULL), 3);
    assert_int_equal(tokenizer_encode(m.t, "xyz", 3, 0, NULL, 1, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(tokenizer_encode(m.t, NULL, 3, 0, ids, 1, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(tokenizer_encode(m.t, "xyz", (size_t)1 << 31, 0, ids, 1, &err),
                     DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "2147483648 bytes is too long"));
    model_close(&m);
}

enum { SPM_BYTE = 3, SP = 259, A, B, AB, SP_AB, SP_A, SP_SP, SPM_TOOL, N_SPM };

static GgufWriter *small_spm(void) {
    static char bytes[256][8];
    const char *text[N_SPM] = { "<unk>", "<s>", "</s>" };
    int32_t kind[N_SPM] = { TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_CONTROL };
    float score[N_SPM] = { 0 };
    for (int b = 0; b < 256; b++) {
        sprintf(bytes[b], "<0x%02X>", (unsigned)b);
        text[SPM_BYTE + b] = bytes[b];
        kind[SPM_BYTE + b] = TOKEN_BYTE;
    }
    static const char *const more[] = { "\xe2\x96\x81",
                                        "a",
                                        "b",
                                        "ab",
                                        "\xe2\x96\x81"
                                        "ab",
                                        "\xe2\x96\x81"
                                        "a",
                                        "\xe2\x96\x81\xe2\x96\x81",
                                        "<tool>" };
    static const float scores[] = { -9, -9, -9, -1, -3, -2, -4, 0 };
    for (int i = SP; i < N_SPM; i++) {
        text[i] = more[i - SP];
        kind[i] = i == SPM_TOOL ? TOKEN_USER_DEFINED : TOKEN_NORMAL;
        score[i] = scores[i - SP];
    }
    GgufWriter *w = writer("llama", NULL);
    put_list(w, "tokenizer.ggml.tokens", text, N_SPM);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, kind, N_SPM);
    gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, score, N_SPM);
    return w;
}

static void spm_small(void **state) {
    (void)state;
    Model m;
    DibitError err = { 0 };
    const char *s;
    if (model_from_writer(&m, small_spm(), &err) < 0) fail_msg("%s", err.text);
    EXPECT(m.t, "ab", DIBIT_ADD_BOS, 1, SP_AB);
    EXPECT(m.t, "", DIBIT_ADD_BOS, 1);
    EXPECT(m.t, "aab", 0, SP_A, AB); // the best score first, not the leftmost
    EXPECT(m.t, "aa b", 0, SP_A, A, SP, B);
    EXPECT(m.t, "  ab", 0, SP_SP, SP_AB);
    EXPECT(m.t, "a   b", 0, SP_A, SP_SP, SP, B);
    EXPECT(m.t,
           "\xe2\x96\x81"
           "ab",
           0, SP, SP_AB); // U+2581 in the text is a space
    EXPECT(m.t,
           "\xc3\xa9"
           "b",
           0, SP, SPM_BYTE + 0xc3, SPM_BYTE + 0xa9, B);
    EXPECT(m.t,
           "\xe2"
           "b",
           0, SP, SPM_BYTE + 0xe2, B); // an invalid byte takes nothing with it
    EXPECT(m.t, "a</s>b", DIBIT_PARSE_SPECIAL, SP_A, 2, SP, B);
    EXPECT(m.t, "<s>b", DIBIT_PARSE_SPECIAL | DIBIT_ADD_BOS, 1, SP, B);
    EXPECT(m.t, "<tool>a", 0, SPM_TOOL, SP_A);
    EXPECT(m.t, "<0x41>", 0, SP, SPM_BYTE + '<', SPM_BYTE + '0', SPM_BYTE + 'x', SPM_BYTE + '4',
           SPM_BYTE + '1', SPM_BYTE + '>');
    assert_true(tokenizer_is_end(m.t, 2) && !tokenizer_is_end(m.t, 1));
    assert_int_equal(tokenizer_bytes(m.t, SP_AB, false, &s), 3);
    assert_memory_equal(s, " ab", 3);
    assert_int_equal(tokenizer_bytes(m.t, SPM_BYTE + 0xe2, false, &s), 1);
    assert_memory_equal(s, "\xe2", 1);
    assert_int_equal(tokenizer_bytes(m.t, 0, false, &s), 0);
    assert_true(tokenizer_adds_space(m.t));
    model_close(&m);

    GgufWriter *w = small_spm();
    gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", false);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    assert_int_equal(model_from_writer(&m, w, &err), 0);
    EXPECT(m.t, "ab ab", DIBIT_ADD_BOS, AB, SP_AB);
    model_close(&m);
}

/* A token with a space inside: words must not be cut there. */
static void spm_space_inside(void **state) {
    (void)state;
    static const char *const text[] = { "<unk>",
                                        "<s>",
                                        "</s>",
                                        "\xe2\x96\x81",
                                        "a",
                                        "b",
                                        "a\xe2\x96\x81",
                                        "a\xe2\x96\x81"
                                        "b" };
    static const float score[] = { 0, 0, 0, -5, -5, -5, -1, -2 };
    static const uint8_t kind[] = { 2, 3, 3, 1, 1, 1, 1, 1 };
    GgufWriter *w = writer("llama", NULL);
    put_list(w, "tokenizer.ggml.tokens", text, 8);
    gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, score, 8);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_U8, kind, 8);
    Model m;
    assert_int_equal(model_from_writer(&m, w, NULL), 0);
    EXPECT(m.t, "a b", 0, 3, 7);
    EXPECT(m.t, "z", 0, 3, 0); // no byte token for it: unknown
    model_close(&m);
}

/* ---- files that are wrong ---- */

static void refuse(GgufWriter *w, const char *because) {
    Model m;
    DibitError err = { 0 };
    int rc = model_from_writer(&m, w, &err);
    if (rc != DIBIT_E_TOKENIZER || !strstr(err.text, because))
        fail_msg("want '%s', got %d '%s'", because, rc, err.text);
    assert_int_equal(err.code, rc);
    assert_null(m.t);
    model_close(&m);
}

#define K "tokenizer.ggml."
static void wrong_files(void **state) {
    (void)state;
    GgufWriter *w;
    assert_int_equal(gguf_writer_create(&w, NULL), 0);
    refuse(w, "has no tokenizer");
    w = small_bpe("gpt-2");
    gguf_put_u32(w, K "model", 3);
    refuse(w, "model: should be a string");
    refuse(writer("bert", NULL), "'bert' is not supported");
    refuse(writer("gpt2", "tekken"), "'tekken' is not supported");
    w = small_bpe("gpt-2");
    gguf_put_u32(w, K "pre", 3);
    refuse(w, "pre: should be a string");
    refuse(writer("gpt2", "gpt-2"), "tokens: is missing");
    w = small_bpe("gpt-2");
    gguf_put_u32(w, K "tokens", 3);
    refuse(w, "tokens: should be an array of strings");
    w = small_bpe("gpt-2");
    put_list(w, K "tokens", NULL, 0);
    refuse(w, "a vocabulary of 0 tokens");
    char *huge = calloc(1, 100001);
    memset(huge, 'x', 100000);
    w = small_spm();
    put_list(w, K "tokens", (const char *const *)&huge, 1);
    refuse(w, "token 0 has 100000 bytes");
    int32_t kinds[N_BPE] = { 0 };
    w = small_bpe("gpt-2");
    gguf_put_array(w, K "token_type", GGUF_I32, kinds, N_BPE - 1);
    refuse(w, "token_type: should be an array of 266 integers");
    w = small_bpe("gpt-2");
    gguf_put_array(w, K "token_type", GGUF_F32, kinds, N_BPE);
    refuse(w, "token_type: should be");
    huge[300] = 0;
    w = writer("gpt2", NULL);
    put_list(w, K "tokens", (const char *const *)&huge, 1);
    kinds[0] = TOKEN_CONTROL;
    gguf_put_array(w, K "token_type", GGUF_I32, kinds, 1);
    put_list(w, K "merges", NULL, 0);
    refuse(w, "special token 0 has 300 bytes");
    free(huge);

    static const char *const merges[] = { "a", "a ", " a", "a  a", "a zz", "zz a", "h w", "" };
    for (size_t i = 0; i < ARRAY_LEN(merges); i++) {
        w = small_bpe("gpt-2");
        put_list(w, K "merges", &merges[i], 1);
        refuse(w, "merges: merge 0");
    }
    w = small_bpe("gpt-2");
    gguf_put_u32(w, K "merges", 3);
    refuse(w, "merges: should be an array of strings");

    static const char *const ids[] = { "bos", "eos", "unknown", "eot", "eom" };
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        char key[64];
        sprintf(key, K "%s_token_id", ids[i]);
        w = small_bpe("gpt-2");
        gguf_put_u32(w, key, N_BPE);
        refuse(w, "is not a token id below 266");
        w = small_bpe("gpt-2");
        gguf_put_u64(w, key, UINT64_MAX);
        refuse(w, "is not a token id below 266");
        w = small_bpe("gpt-2");
        gguf_put_f32(w, key, 1);
        refuse(w, "is not a token id below 266");
    }
    static const char *const byte_tokens[] = { "<0x-1>", "<0x1>", "<0x100>", "<0xG0>", "x", "" };
    for (size_t i = 0; i < ARRAY_LEN(byte_tokens); i++) {
        float score = 0;
        kinds[0] = TOKEN_BYTE;
        w = writer("llama", NULL);
        put_list(w, K "tokens", &byte_tokens[i], 1);
        gguf_put_array(w, K "token_type", GGUF_I32, kinds, 1);
        gguf_put_array(w, K "scores", GGUF_F32, &score, 1);
        refuse(w, "is not <0x00> to <0xFF>");
    }
    float scores[N_SPM] = { 0 };
    w = small_spm();
    gguf_put_array(w, K "scores", GGUF_F32, scores, 5);
    refuse(w, "scores: should be an array of 267 floats");
    memset(&scores[7], 0xff, sizeof scores[7]);
    w = small_spm();
    gguf_put_array(w, K "scores", GGUF_F32, scores, N_SPM);
    refuse(w, "token 7 has no number");
    const char *const one[] = { "a" };
    w = writer("llama", NULL);
    put_list(w, K "tokens", one, 1);
    refuse(w, "scores: is missing");
    w = writer("gpt2", NULL);
    put_list(w, K "tokens", one, 1);
    refuse(w, "merges: is missing");
    w = writer("gpt2", NULL);
    put_list(w, K "tokens", one, 1);
    put_list(w, K "merges", NULL, 0);
    gguf_put_bool(w, K "add_bos_token", true);
    refuse(w, "no bos_token_id");
}
#undef K

/* ---- memory and time ---- */

typedef struct Failing {
    int left, live; // allocations until one fails; blocks not released
} Failing;

static void *failing_alloc(void *user, size_t size, size_t align) {
    Failing *f = user;
    if (f->left-- == 0) return NULL;
    f->live++;
    return aligned_alloc(align, size);
}

static void failing_release(void *user, void *ptr, size_t size) {
    (void)size;
    ((Failing *)user)->live--;
    free(ptr);
}

/* Fails the n-th allocation for every n until all of it works. */
static void failing_memory(void **state) {
    (void)state;
    for (int spm = 0; spm < 2; spm++) {
        Model m;
        assert_int_equal(model_from_writer(&m, spm ? small_spm() : small_bpe("llama-bpe"), NULL),
                         0);
        int n = 0;
        for (bool done = false; !done; n++) {
            Failing f = { n, 0 };
            DibitAllocator memory = { failing_alloc, failing_release, &f };
            DibitError err = { 0 };
            Tokenizer *t = NULL;
            int64_t rc = tokenizer_open(&t, m.file, &memory, &err);
            if (rc == 0) rc = tokenizer_encode(t, "hello w ab", 10, 3, NULL, 0, &err);
            done = rc > 0;
            if (!done) assert_true(rc == DIBIT_E_MEMORY && err.code == DIBIT_E_MEMORY);
            tokenizer_close(&t);
            assert_int_equal(f.live, 0);
        }
        assert_true(n > 4);
        model_close(&m);
    }
}

static double encode_seconds(const Tokenizer *t, const char *text, size_t n, int64_t *n_ids) {
    clock_t start = clock();
    *n_ids = tokenizer_encode(t, text, n, DIBIT_PARSE_SPECIAL, NULL, 0, NULL);
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

/* A megabyte that is one word. With quadratic time these would take an hour; the bound leaves room
 * for sanitizers. */
static void long_words(void **state) {
    (void)state;
    const size_t n = 1000000;
    char *text = malloc(n);
    for (int spm = 0; spm < 2; spm++) {
        Model m;
        assert_int_equal(model_from_writer(&m, spm ? small_spm() : small_bpe("qwen2"), NULL), 0);
        static const char *const fill[] = { "a", "ab", " ",    "\n",          "<",
                                            "'", "1",  "\xff", "\xe4\xb8\xad" };
        for (size_t k = 0; k < ARRAY_LEN(fill); k++) {
            for (size_t i = 0, len = strlen(fill[k]); i < n; i++) text[i] = fill[k][i % len];
            int64_t n_ids;
            double s = encode_seconds(m.t, text, n, &n_ids);
            if (s > 10)
                fail_msg("%s: a megabyte of '%s' took %.1f s", spm ? "spm" : "bpe", fill[k], s);
            assert_true(n_ids > 0 && n_ids <= (int64_t)n + 1);
            if (!spm && k == 0) assert_int_equal(n_ids, n / 4);
        }
        model_close(&m);
    }
    free(text);
}

/* n texts of 9 bytes, no merges. With a mask, its bits are set in the hashes of all. */
static GgufWriter *numbered(size_t n, uint64_t mask) {
    char(*text)[10] = malloc(n * sizeof *text);
    const char **list = malloc(n * sizeof *list);
    unsigned number = 0;
    for (size_t i = 0; i < n; i++) {
        do snprintf(text[i], sizeof text[i], "%09u", number++);
        while ((hash64(0, text[i], 9) & mask) != mask);
        list[i] = text[i];
    }
    GgufWriter *w = writer("gpt2", "gpt-2");
    put_list(w, "tokenizer.ggml.tokens", list, n);
    put_list(w, "tokenizer.ggml.merges", NULL, 0);
    free(list);
    free(text);
    return w;
}

/* Token k is k + 1 letters, so every two short ones merge: n pairs whose hashes have the mask's
 * bits set. */
static GgufWriter *colliding_merges(size_t n, uint64_t mask) {
    enum { TOKENS = 800 };
    static char letters[TOKENS + 1];
    memset(letters, 'a', TOKENS);
    GgufString tokens[TOKENS], *merges = malloc(n * sizeof *merges);
    char *text = malloc(n * (TOKENS + 2)), *at = text;
    size_t k = 0;
    for (int i = 0; i < TOKENS; i++) tokens[i] = (GgufString){ letters, (size_t)i + 1 };
    for (uint64_t i = 0; i < TOKENS; i++)
        for (uint64_t j = 0; i + j + 2 <= TOKENS && k < n; j++) {
            uint64_t h = (i << 32 | j) * 0x9e3779b97f4a7c15u;
            if (((h ^ h >> 32) & mask) != mask) continue;
            size_t length = (size_t)(i + j + 3);
            memset(at, 'a', length);
            at[i + 1] = ' ';
            merges[k++] = (GgufString){ at, length };
            at += length;
        }
    assert_int_equal(k, n);
    GgufWriter *w = writer("gpt2", "gpt-2");
    gguf_put_strings(w, "tokenizer.ggml.tokens", tokens, TOKENS);
    gguf_put_strings(w, "tokenizer.ggml.merges", merges, n);
    free(merges);
    free(text);
    return w;
}

static void accept(GgufWriter *w) {
    Model m;
    DibitError err = { 0 };
    if (model_from_writer(&m, w, &err) < 0) fail_msg("%s", err.text);
    model_close(&m);
}

/* Opening takes linear time whatever the texts and pairs are: 256 may share one slot of the tables,
 * which have 1024 slots here, and one more is refused. */
static void forged_vocabularies(void **state) {
    (void)state;
    accept(numbered(256, 1023));
    refuse(numbered(257, 1023), "tokens: the texts of 256 tokens collide");
    accept(colliding_merges(256, 1023));
    refuse(colliding_merges(257, 1023), "merges: 256 merges collide");
    enum { MANY = 200000 };
    Model m;
    Tokenizer *t;
    assert_int_equal(model_from_writer(&m, numbered(MANY, 0), NULL), 0);
    clock_t start = clock();
    assert_int_equal(tokenizer_open(&t, m.file, NULL, NULL), 0);
    double s = (double)(clock() - start) / CLOCKS_PER_SEC;
    print_message("%d tokens opened in %.3f s\n", MANY, s);
    assert_true(s < 1);
    tokenizer_close(&t);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_gpt2),      cmocka_unit_test(vectors_spm),
        cmocka_unit_test(vectors_phi3),      cmocka_unit_test(vectors_qwen2),
        cmocka_unit_test(vectors_llama_bpe), cmocka_unit_test(vectors_base),
        cmocka_unit_test(bpe_small),         cmocka_unit_test(bytes_of_tokens),
        cmocka_unit_test(whole_words),       cmocka_unit_test(capacity),
        cmocka_unit_test(spm_small),         cmocka_unit_test(spm_space_inside),
        cmocka_unit_test(wrong_files),       cmocka_unit_test(failing_memory),
        cmocka_unit_test(long_words),        cmocka_unit_test(forged_vocabularies),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
