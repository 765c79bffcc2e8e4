/* convert_vocab.c - tokenizer.json and its companions into the tokenizer keys of GGUF.
 * GGUF names a tokenizer's behaviour by a word (gpt-2, llama-bpe, qwen2, or SPM) and not by its
 * rules; so the rules are compared with those words, and a tokenizer that matches none is refused:
 * it would load and give wrong ids. */
#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 1 << 21, MAX_TEMPLATE = 1 << 20, MAX_PATH = 4096, MAX_ENDS = 16 };
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };
#define SPACE "\xe2\x96\x81" /* U+2581, how SPM writes a blank */

typedef struct Vocab {
    json_t *json, *config;     /* tokenizer.json, tokenizer_config.json (or NULL) */
    const json_t *model, *ids; /* ids: text -> id */
    Arena arena;
    GgufString *tokens;
    int32_t *types;
    float *scores; /* SPM only */
    size_t n;
    const char *pre; /* NULL: SPM */
    bool space_prefix;
} Vocab;

static const char *get_text(const json_t *j, const char *key) {
    return json_string_value(json_object_get(j, key));
}

static bool has_text(const json_t *j, const char *key, const char *want) {
    const char *s = get_text(j, key);
    return s && strcmp(s, want) == 0;
}

static int bad_vocab(DibitError *err, const char *what) {
    return fail(err, DIBIT_E_FORMAT, "tokenizer.json: %s", what);
}

/* ---- recognising the rules ---- */

/* Splitting expressions that GGUF has a word for, as tokenizer.json spells them. */
static const struct {
    const char *pre, *regex;
} regexes[] = {
    { "gpt-2",
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" },
    { "qwen2", "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
               "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" },
    { "llama-bpe", "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
                   "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" },
};

static bool is_byte_level(const json_t *p, bool regex) {
    const json_t *use = json_object_get(p, "use_regex");
    return has_text(p, "type", "ByteLevel") &&
           !json_is_true(json_object_get(p, "add_prefix_space")) &&
           (use ? json_is_true(use) : true) == regex;
}

static int recognise_split(Vocab *v, const json_t *split, DibitError *err) {
    const char *regex = get_text(json_object_get(split, "pattern"), "Regex");
    bool inverted = json_is_true(json_object_get(split, "invert"));
    bool keeps = has_text(split, "behavior", inverted ? "Removed" : "Isolated");
    for (size_t i = 0; regex && keeps && i < ARRAY_LEN(regexes); i++)
        if (strcmp(regexes[i].regex, regex) == 0) v->pre = regexes[i].pre;
    if (v->pre) return 0;
    return fail(
        err, DIBIT_E_UNSUPPORTED,
        "tokenizer.json: pre-tokenizer of kind %.20s with the expression %.120s is not known",
        get_text(split, "type") ? get_text(split, "type") : "(none)", regex ? regex : "(none)");
}

static int recognise_bytes(Vocab *v, DibitError *err) {
    const json_t *pre = json_object_get(v->json, "pre_tokenizer");
    const json_t *norm = json_object_get(v->json, "normalizer");
    const json_t *list = json_object_get(pre, "pretokenizers");
    /* NFC is qwen's: GGUF readers leave it out, which matters only for text that is not NFC */
    if (norm && !json_is_null(norm) && !has_text(norm, "type", "NFC"))
        return fail(err, DIBIT_E_UNSUPPORTED, "tokenizer.json: normalizer %.40s is not supported",
                    get_text(norm, "type") ? get_text(norm, "type") : "(none)");
    if (is_byte_level(pre, true)) {
        v->pre = "gpt-2";
    } else if (has_text(pre, "type", "Sequence") && json_array_size(list) == 2 &&
               is_byte_level(json_array_get(list, 1), false)) {
        int r = recognise_split(v, json_array_get(list, 0), err);
        if (r != 0) return r;
    } else {
        const char *type = get_text(json_array_get(list, 0), "type");
        if (!type) type = get_text(pre, "type");
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "tokenizer.json: pre-tokenizer %.40s in this form is not supported",
                    type ? type : "(none)");
    }
    if (json_is_true(json_object_get(v->model, "ignore_merges")) &&
        strcmp(v->pre, "llama-bpe") != 0)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "tokenizer.json: ignore_merges with pre-tokenizer %s is not supported", v->pre);
    return 0;
}

static bool is_space_replace(const json_t *n) {
    return has_text(n, "type", "Replace") && has_text(n, "content", SPACE) &&
           has_text(json_object_get(n, "pattern"), "String", " ");
}

/* SPM: blanks become U+2581, one may be put in front, and nothing splits the text. */
static int recognise_spm(Vocab *v, DibitError *err) {
    const json_t *pre = json_object_get(v->json, "pre_tokenizer");
    const json_t *norm = json_object_get(v->json, "normalizer");
    const json_t *list = json_object_get(norm, "normalizers");
    bool no_pre = !pre || json_is_null(pre), no_norm = !norm || json_is_null(norm);
    if (no_pre && is_space_replace(norm)) {
        v->space_prefix = false;
        return 0;
    }
    if (no_pre && json_array_size(list) == 2 &&
        has_text(json_array_get(list, 0), "type", "Prepend") &&
        has_text(json_array_get(list, 0), "prepend", SPACE) &&
        is_space_replace(json_array_get(list, 1))) {
        v->space_prefix = true;
        return 0;
    }
    if (no_norm && has_text(pre, "type", "Metaspace") && has_text(pre, "replacement", SPACE) &&
        json_is_false(json_object_get(pre, "split"))) {
        const char *scheme = get_text(pre, "prepend_scheme");
        v->space_prefix = scheme ? strcmp(scheme, "never") != 0
                                 : !json_is_false(json_object_get(pre, "add_prefix_space"));
        return 0;
    }
    return fail(err, DIBIT_E_UNSUPPORTED,
                "tokenizer.json: BPE with byte_fallback, but not with the rules of SentencePiece");
}

/* ---- tokens ---- */

static int set_token(Vocab *v, json_int_t id, const char *text, size_t n, int type,
                     DibitError *err) {
    GgufString *t = &v->tokens[id];
    if (t->s && (t->n != n || memcmp(t->s, text, n) != 0))
        return fail(err, DIBIT_E_FORMAT, "tokenizer.json: id %lld stands for two tokens",
                    (long long)id);
    *t = (GgufString){ text, n };
    v->types[id] = type;
    return 0;
}

static int count_tokens(Vocab *v, uint64_t n_vocab, DibitError *err) {
    const json_t *added = json_object_get(v->json, "added_tokens"), *id;
    const char *text;
    json_t *value;
    size_t i;
    json_int_t last = -1;
    json_object_foreach((json_t *)v->ids, text, value) {
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return bad_vocab(err, "an id in the vocabulary is not a number from 0 on");
        last = MAX(last, json_integer_value(value));
    }
    json_array_foreach(added, i, value) {
        id = json_object_get(value, "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || !get_text(value, "content"))
            return bad_vocab(err, "an added token has no id or no content");
        last = MAX(last, json_integer_value(id));
    }
    if (last < 0) return bad_vocab(err, "the vocabulary is empty");
    if (last >= MAX_TOKENS) return bad_vocab(err, "an id is too large");
    if (n_vocab && (uint64_t)last >= n_vocab)
        return fail(err, DIBIT_E_FORMAT,
                    "tokenizer.json: id %lld is not in the model's vocabulary of %llu",
                    (long long)last, (unsigned long long)n_vocab);
    v->n = MAX((size_t)last + 1, (size_t)n_vocab);
    v->tokens = arena_alloc(&v->arena, v->n * sizeof *v->tokens);
    v->types = arena_alloc(&v->arena, v->n * sizeof *v->types);
    v->scores = arena_alloc(&v->arena, v->n * sizeof *v->scores);
    if (!v->tokens || !v->types || !v->scores)
        return fail(err, DIBIT_E_MEMORY, "no memory for the vocabulary");
    return 0;
}

static bool is_byte_token(const char *s, size_t n) {
    return n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' &&
           strspn(s + 3, "0123456789ABCDEFabcdef") == 2;
}

static int fill_tokens(Vocab *v, DibitError *err) {
    const json_t *added = json_object_get(v->json, "added_tokens");
    const char *text, *unk = get_text(v->model, "unk_token");
    json_t *value;
    size_t i;
    int r = 0;
    json_object_foreach((json_t *)v->ids, text, value) {
        size_t n = strlen(text);
        int type = NORMAL;
        if (!v->pre && is_byte_token(text, n)) type = BYTE;
        if (!v->pre && unk && strcmp(text, unk) == 0) type = UNKNOWN;
        if (r == 0) r = set_token(v, json_integer_value(value), text, n, type, err);
    }
    json_array_foreach(added, i, value) {
        json_int_t id = json_integer_value(json_object_get(value, "id"));
        text = get_text(value, "content");
        size_t n = strlen(text);
        /* some vendors leave the mark away that others set: <|name|> is never meant as text */
        bool marked = n > 4 && strncmp(text, "<|", 2) == 0 && strcmp(text + n - 2, "|>") == 0;
        int type =
            marked || json_is_true(json_object_get(value, "special")) ? CONTROL : USER_DEFINED;
        if (v->types[id] == UNKNOWN) type = UNKNOWN;
        if (r == 0) r = set_token(v, id, text, n, type, err);
    }
    for (i = 0; r == 0 && i < v->n; i++) {
        char pad[32];
        if (v->tokens[i].s) continue;
        snprintf(pad, sizeof pad, "[PAD%zu]", i);
        char *copy = arena_string(&v->arena, pad, strlen(pad));
        if (!copy) return fail(err, DIBIT_E_MEMORY, "no memory for the vocabulary");
        v->tokens[i] = (GgufString){ copy, strlen(pad) };
        v->types[i] = UNUSED;
    }
    return r;
}

/* ---- merges ---- */

/* The two parts of a merge, which is "a b" or ["a", "b"]. */
static bool merge_parts(const json_t *m, GgufString *a, GgufString *b) {
    if (json_is_array(m) && json_array_size(m) == 2) {
        const json_t *x = json_array_get(m, 0), *y = json_array_get(m, 1);
        if (!json_is_string(x) || !json_is_string(y)) return false;
        *a = (GgufString){ json_string_value(x), json_string_length(x) };
        *b = (GgufString){ json_string_value(y), json_string_length(y) };
    } else {
        const char *s = json_string_value(m), *blank = s ? strchr(s, ' ') : NULL;
        if (!blank) return false;
        *a = (GgufString){ s, (size_t)(blank - s) };
        *b = (GgufString){ blank + 1, strlen(blank + 1) };
    }
    return a->n && b->n && !memchr(a->s, ' ', a->n) && !memchr(b->s, ' ', b->n);
}

static char *join_parts(Arena *arena, GgufString a, GgufString b, const char *between) {
    size_t n = strlen(between);
    char *s = arena_alloc(arena, a.n + n + b.n + 1);
    if (!s) return NULL;
    memcpy(s, a.s, a.n);
    memcpy(s + a.n, between, n);
    memcpy(s + a.n + n, b.s, b.n);
    return s;
}

static json_int_t token_id(const Vocab *v, const char *text, size_t n) {
    const json_t *id = json_object_getn(v->ids, text, n);
    return id ? json_integer_value(id) : -1;
}

static int put_merges(GgufWriter *w, Vocab *v, DibitError *err) {
    const json_t *merges = json_object_get(v->model, "merges");
    size_t n = json_array_size(merges);
    GgufString *list = arena_alloc(&v->arena, n * sizeof *list), a, b;
    if (!json_is_array(merges)) return bad_vocab(err, "no merges");
    if (!list) return fail(err, DIBIT_E_MEMORY, "no memory for the merges");
    for (size_t i = 0; i < n; i++) {
        if (!merge_parts(json_array_get(merges, i), &a, &b))
            return fail(err, DIBIT_E_FORMAT, "tokenizer.json: merge %zu is not two tokens", i);
        char *s = join_parts(&v->arena, a, b, " ");
        if (!s) return fail(err, DIBIT_E_MEMORY, "no memory for the merges");
        list[i] = (GgufString){ s, a.n + 1 + b.n };
        if (token_id(v, a.s, a.n) < 0 || token_id(v, b.s, b.n) < 0)
            return fail(err, DIBIT_E_FORMAT, "tokenizer.json: merge %zu is of unknown tokens", i);
    }
    gguf_put_strings(w, "tokenizer.ggml.merges", list, n);
    return 0;
}

/* How many ways there are to cut a token into two others: SPM would use each of them. */
static size_t count_cuts(const Vocab *v, GgufString t) {
    size_t cuts = 0;
    for (size_t k = 1; k < t.n; k++)
        if ((t.s[k] & 0xc0) != 0x80 && token_id(v, t.s, k) >= 0 &&
            token_id(v, t.s + k, t.n - k) >= 0)
            cuts++;
    return cuts;
}

/* The token that a merge makes, or a negative code. */
static json_int_t merged_token(Vocab *v, size_t i, DibitError *err) {
    const json_t *merges = json_object_get(v->model, "merges");
    GgufString a, b;
    if (!merge_parts(json_array_get(merges, i), &a, &b))
        return fail(err, DIBIT_E_FORMAT, "tokenizer.json: merge %zu is not two tokens", i);
    char *s = join_parts(&v->arena, a, b, "");
    if (!s) return fail(err, DIBIT_E_MEMORY, "no memory for the merges");
    json_int_t id = token_id(v, s, a.n + b.n);
    if (id < 0 || token_id(v, a.s, a.n) < 0 || token_id(v, b.s, b.n) < 0)
        return fail(err, DIBIT_E_FORMAT, "tokenizer.json: merge %zu is of unknown tokens", i);
    return id;
}

static bool is_blank_run(GgufString t) {
    for (size_t i = 0; i < t.n; i += 3)
        if (t.n % 3 || memcmp(t.s + i, SPACE, 3) != 0) return false;
    return true;
}

static int other_merges(DibitError *err) {
    return fail(err, DIBIT_E_UNSUPPORTED,
                "tokenizer.json: its merges are not those of a SentencePiece vocabulary");
}

/* SPM merges by the score of the result, BPE by the rank of the pair. They give the same ids when
 * all merges with one result stand together and every cut of every token is a merge. Runs of
 * blanks, which share the lowest score and so may be mixed at the end, give the same ids too. */
static int score_tokens(Vocab *v, DibitError *err) {
    const json_t *merges = json_object_get(v->model, "merges");
    size_t n = json_array_size(merges);
    size_t *cuts = arena_alloc(&v->arena, v->n * sizeof *cuts);
    json_int_t last = -1;
    int rank = 0, blanks = -1, mixed = -1; /* ranks where runs of blanks begin, and are mixed */
    if (!json_is_array(merges)) return bad_vocab(err, "no merges");
    if (!cuts) return fail(err, DIBIT_E_MEMORY, "no memory for the merges");
    for (size_t i = 0; i < n; i++) {
        json_int_t id = merged_token(v, i, err);
        if (id < 0) return (int)id;
        bool blank = is_blank_run(v->tokens[id]);
        blanks = !blank ? -1 : blanks < 0 ? rank : blanks;
        if (id != last && cuts[id]) {
            if (!blank || v->scores[id] > (float)-blanks) return other_merges(err);
            mixed = blanks;
        } else if (id != last) {
            v->scores[id] = (float)-rank++;
        }
        cuts[id]++;
        last = id;
    }
    if (mixed >= 0 && mixed != blanks) return other_merges(err);
    for (size_t i = 0; i < v->n; i++) {
        if (v->types[i] != NORMAL) continue;
        if (cuts[i] != count_cuts(v, v->tokens[i])) return other_merges(err);
        if (!cuts[i]) v->scores[i] = (float)-rank; /* single characters */
        if (mixed >= 0 && v->scores[i] < (float)-mixed && cuts[i]) v->scores[i] = (float)-mixed;
    }
    return 0;
}

/* ---- special tokens ---- */

static int64_t find_token(const Vocab *v, const char *text) {
    size_t n = text ? strlen(text) : 0;
    for (size_t i = 0; text && i < v->n; i++)
        if (v->types[i] != UNUSED && v->tokens[i].n == n && memcmp(v->tokens[i].s, text, n) == 0)
            return (int64_t)i;
    return -1;
}

/* tokenizer_config.json: "bos_token" is a text or an object that holds it. */
static const char *special_text(const Vocab *v, const char *key) {
    const json_t *t = json_object_get(v->config, key);
    return json_is_object(t) ? get_text(t, "content") : json_string_value(t);
}

static int64_t id_of(const Vocab *v, const json_t *x) {
    json_int_t id = json_is_integer(x) ? json_integer_value(x) : -1;
    return id >= 0 && (uint64_t)id < v->n ? id : -1;
}

/* Appends the ids of "eos_token_id", a number or a list, to ends. */
static void add_ends(const Vocab *v, const json_t *j, int64_t *ends, int *n) {
    const json_t *eos = json_object_get(j, "eos_token_id");
    size_t count = json_is_array(eos) ? json_array_size(eos) : 1;
    for (size_t i = 0; i < count && *n < MAX_ENDS; i++) {
        int64_t id = id_of(v, json_is_array(eos) ? json_array_get(eos, i) : eos);
        bool known = id < 0;
        for (int k = 0; k < *n; k++) known |= ends[k] == id;
        if (!known) ends[(*n)++] = id;
    }
}

static void put_id(GgufWriter *w, const char *key, int64_t id) {
    if (id >= 0) gguf_put_u32(w, key, (uint32_t)id);
}

/* Whether the tokenizer's template begins with BOS (tokenizers of newer models say it there). */
static bool template_adds_bos(const json_t *post, int64_t bos, const Vocab *v) {
    const json_t *list = json_object_get(post, "processors"), *one;
    size_t i;
    json_array_foreach(list, i, one) {
        if (template_adds_bos(one, bos, v)) return true;
    }
    const json_t *first = json_array_get(json_object_get(post, "single"), 0);
    const char *text = get_text(json_object_get(first, "SpecialToken"), "id");
    return has_text(post, "type", "TemplateProcessing") && bos >= 0 && find_token(v, text) == bos;
}

static int put_specials(GgufWriter *w, const Vocab *v, const json_t *config, const char *dir,
                        DibitError *err) {
    static const char *const end_keys[] = { "tokenizer.ggml.eos_token_id",
                                            "tokenizer.ggml.eot_token_id",
                                            "tokenizer.ggml.eom_token_id" };
    json_t *gen;
    int64_t ends[MAX_ENDS + 1];
    int n = 0;
    int r = convert_json(&gen, dir, "generation_config.json", err);
    if (r != 0) return r;
    ends[0] = find_token(v, special_text(v, "eos_token"));
    if (ends[0] >= 0) n = 1;
    add_ends(v, gen, ends, &n);
    add_ends(v, config, ends, &n);
    for (int i = 0; i < n && i < (int)ARRAY_LEN(end_keys); i++) put_id(w, end_keys[i], ends[i]);
    if (n > (int)ARRAY_LEN(end_keys)) {
        r = fail(err, DIBIT_E_UNSUPPORTED, "the model names %d end tokens, GGUF has keys for %d", n,
                 (int)ARRAY_LEN(end_keys));
    }
    int64_t bos = find_token(v, special_text(v, "bos_token"));
    if (bos < 0) bos = id_of(v, json_object_get(config, "bos_token_id"));
    if (bos < 0) bos = id_of(v, json_object_get(gen, "bos_token_id"));
    int64_t pad = find_token(v, special_text(v, "pad_token"));
    int64_t unk = find_token(v, special_text(v, "unk_token"));
    if (unk < 0) unk = find_token(v, get_text(v->model, "unk_token"));
    put_id(w, "tokenizer.ggml.bos_token_id", bos);
    put_id(w, "tokenizer.ggml.unknown_token_id", unk);
    put_id(w, "tokenizer.ggml.padding_token_id", pad);
    const json_t *add = json_object_get(v->config, "add_bos_token");
    const json_t *post = json_object_get(v->json, "post_processor");
    bool adds = json_is_boolean(add) ? json_is_true(add) : template_adds_bos(post, bos, v);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", adds && bos >= 0);
    if (json_is_true(json_object_get(v->config, "add_eos_token")))
        gguf_put_bool(w, "tokenizer.ggml.add_eos_token", true);
    json_decref(gen);
    return r;
}

/* chat_template: a text, a list of named ones (the default one counts), or a file of its own. */
static int put_template(GgufWriter *w, const Vocab *v, const char *dir, DibitError *err) {
    static const char *const key = "tokenizer.chat_template";
    char path[MAX_PATH];
    FileMap map;
    const json_t *t = json_object_get(v->config, "chat_template"), *one;
    const char *text = json_string_value(t);
    size_t i;
    json_array_foreach(t, i, one) {
        if (has_text(one, "name", "default")) text = get_text(one, "template");
    }
    if (text && strlen(text) <= MAX_TEMPLATE) gguf_put_string(w, key, text, strlen(text));
    if (text) return 0;
    int n = snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    FILE *f = n > 0 && n < MAX_PATH ? fopen(path, "rb") : NULL;
    if (!f) return 0;
    fclose(f);
    int r = file_map(&map, path, false, NULL, err);
    if (r != 0) return r;
    if (map.size <= MAX_TEMPLATE) gguf_put_string(w, key, (const char *)map.data, map.size);
    file_unmap(&map);
    return 0;
}

/* ---- the whole ---- */

static int load(Vocab *v, const char *dir, DibitError *err) {
    int r = convert_json(&v->json, dir, "tokenizer.json", err);
    if (r == 0) r = convert_json(&v->config, dir, "tokenizer_config.json", err);
    if (r != 0) return r;
    if (!v->json)
        return fail(err, DIBIT_E_TOKENIZER,
                    "%s: no tokenizer.json in it; --no-vocab converts without a tokenizer", dir);
    v->model = json_object_get(v->json, "model");
    v->ids = json_object_get(v->model, "vocab");
    const char *type = get_text(v->model, "type");
    if (type && strcmp(type, "BPE") != 0)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "tokenizer.json: model %.40s is not supported, BPE is", type);
    if (!json_is_object(v->ids)) return bad_vocab(err, "no vocabulary");
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    for (size_t i = 0; i < ARRAY_LEN(affixes); i++) {
        const char *s = get_text(v->model, affixes[i]);
        if (s && s[0])
            return fail(err, DIBIT_E_UNSUPPORTED, "tokenizer.json: %s is not supported",
                        affixes[i]);
    }
    if (json_is_true(json_object_get(v->model, "byte_fallback"))) return recognise_spm(v, err);
    return recognise_bytes(v, err);
}

static int put_vocab(GgufWriter *w, Vocab *v, uint64_t n_vocab, DibitError *err) {
    const char *model = v->pre ? "gpt2" : "llama", *pre = v->pre ? v->pre : "default";
    int r = count_tokens(v, n_vocab, err);
    if (r == 0) r = fill_tokens(v, err);
    if (r != 0) return r;
    gguf_put_string(w, "tokenizer.ggml.model", model, strlen(model));
    gguf_put_string(w, "tokenizer.ggml.pre", pre, strlen(pre));
    gguf_put_strings(w, "tokenizer.ggml.tokens", v->tokens, v->n);
    if (v->pre) {
        r = put_merges(w, v, err);
    } else {
        r = score_tokens(v, err);
        gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, v->scores, v->n);
        gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->space_prefix);
    }
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, v->types, v->n);
    return r;
}

int convert_vocab(GgufWriter *w, const char *dir, const json_t *config, uint64_t n_vocab,
                  uint64_t *n_tokens, DibitError *err) {
    Vocab v = { 0 };
    int r = load(&v, dir, err);
    if (r == 0) r = put_vocab(w, &v, n_vocab, err);
    if (r == 0) r = put_specials(w, &v, config, dir, err);
    if (r == 0) r = put_template(w, &v, dir, err);
    *n_tokens = v.n;
    arena_free(&v.arena);
    json_decref(v.json);
    json_decref(v.config);
    return r;
}
