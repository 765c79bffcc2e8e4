/* vocab.c - the vocabulary out of a GGUF file's tokenizer.ggml.* keys. The file is not trusted:
 * every kind, length and id is checked here, once. Token texts stay in the file. */
#include <stdlib.h>
#include <string.h>
#include "vocab.h"
#include "unicode.h"

enum {
    MAX_TEXT = 65536, // bytes; real ones have at most a few hundred
    MAX_SPECIAL = 256,
    MAX_PROBES = 256 // of a table at most half full; more is a set of texts made to collide
};

#define KEY "tokenizer.ggml."

static int no_memory(DibitError *err) {
    return fail(err, DIBIT_E_MEMORY, "no memory for the tokenizer's tables");
}

/* ---- text to id ---- */

/* The slot that holds this text, or the free one where it would go; NULL after too many probes. */
static uint32_t *token_slot(const Tokenizer *t, const char *text, size_t n) {
    size_t at = (size_t)hash64(0, text, n);
    for (int i = 0; i < MAX_PROBES; i++, at++) {
        uint32_t *slot = &t->slots[at & t->slot_mask];
        if (*slot == 0) return slot;
        const Token *k = &t->tokens[*slot - 1];
        if (k->n_text == n && memcmp(k->text, text, n) == 0) return slot;
    }
    return NULL;
}

int32_t vocab_find(const Tokenizer *t, const char *text, size_t n) {
    const uint32_t *slot = token_slot(t, text, n);
    return slot && *slot ? (int32_t)(*slot - 1) : -1;
}

/* A table of at least twice n entries, a power of two. */
static uint32_t *slots_create(Tokenizer *t, size_t n, size_t *mask) {
    size_t size = 16, n_bytes;
    while (size / 2 < n) size *= 2;
    *mask = size - 1;
    return size_mul(size, sizeof(uint32_t), &n_bytes) ? arena_alloc(&t->arena, n_bytes) : NULL;
}

/* Of tokens with the same text the last one is found, as other GGUF readers do. */
static int index_tokens(Tokenizer *t, DibitError *err) {
    t->slots = slots_create(t, (size_t)t->n_vocab, &t->slot_mask);
    if (!t->slots) return no_memory(err);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        const Token *k = &t->tokens[id];
        if (k->n_text == 0) continue;
        uint32_t *slot = token_slot(t, k->text, k->n_text);
        if (!slot)
            return fail(err, DIBIT_E_TOKENIZER,
                        KEY "tokens: the texts of %d tokens collide in the look-up table; the file "
                            "is damaged or forged",
                        MAX_PROBES);
        *slot = (uint32_t)id + 1;
    }
    return 0;
}

/* ---- tokens, kinds, scores ---- */

static bool is_integer(GgufKind k) {
    return k <= GGUF_I32 || k == GGUF_U64 || k == GGUF_I64;
}

/* The array at `key` with one entry a token, or NULL; a value that is anything else is an error. */
static int token_array(const Tokenizer *t, const Gguf *file, const char *key, bool integers,
                       const GgufValue **out, DibitError *err) {
    const GgufValue *v = gguf_get(file, key);
    *out = v;
    if (!v) return 0;
    bool right = v->kind == GGUF_ARRAY &&
                 (integers ? is_integer(v->item) : v->item == GGUF_F32 || v->item == GGUF_F64);
    if (!right || v->n != (uint64_t)t->n_vocab)
        return fail(err, DIBIT_E_TOKENIZER, "%s: should be an array of %d %s, one for each token",
                    key, (int)t->n_vocab, integers ? "integers" : "floats");
    return 0;
}

static int load_tokens(Tokenizer *t, const Gguf *file, DibitError *err) {
    const GgufValue *v = gguf_get(file, KEY "tokens");
    if (!v || v->kind != GGUF_ARRAY || v->item != GGUF_STRING)
        return fail(err, DIBIT_E_TOKENIZER, KEY "tokens: %s",
                    v ? "should be an array of strings" : "is missing");
    size_t n_bytes;
    if (v->n == 0 || v->n > INT32_MAX)
        return fail(err, DIBIT_E_TOKENIZER,
                    KEY "tokens: a vocabulary of %llu tokens cannot be used",
                    (unsigned long long)v->n);
    t->n_vocab = (int32_t)v->n;
    if (size_mul((size_t)v->n, sizeof(Token), &n_bytes))
        t->tokens = arena_alloc(&t->arena, n_bytes);
    if (!t->tokens) return no_memory(err);
    size_t cursor = 0;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        GgufString s = gguf_next_string(v, &cursor);
        if (s.n > MAX_TEXT)
            return fail(err, DIBIT_E_TOKENIZER,
                        KEY "tokens: token %d has %zu bytes, at most %d are "
                            "supported",
                        (int)id, s.n, MAX_TEXT);
        t->tokens[id] = (Token){ s.s, s.s, (uint32_t)s.n, (uint32_t)s.n, TOKEN_NORMAL, false };
        t->max_text = MAX(t->max_text, (uint32_t)s.n);
    }
    const GgufValue *kinds;
    int rc = token_array(t, file, KEY "token_type", true, &kinds, err);
    for (int32_t id = 0; rc == 0 && kinds && id < t->n_vocab; id++) {
        int64_t kind = gguf_item_i64(kinds, (uint64_t)id);
        if (kind > TOKEN_NORMAL && kind <= TOKEN_BYTE) t->tokens[id].kind = (uint8_t)kind;
    }
    return rc;
}

/* Scores as keys: the best score is the least key. Floats of one sign sort like their bits. */
static int load_scores(Tokenizer *t, const Gguf *file, DibitError *err) {
    const GgufValue *v;
    int rc = token_array(t, file, KEY "scores", false, &v, err);
    if (rc < 0) return rc;
    if (!v) return fail(err, DIBIT_E_TOKENIZER, KEY "scores: is missing");
    t->order = arena_alloc(&t->arena, (size_t)t->n_vocab * sizeof(uint32_t));
    if (!t->order) return no_memory(err);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        float score = (float)gguf_item_f64(v, (uint64_t)id) + 0.0f; // -0 becomes 0
        uint32_t bits;
        if (score != score)
            return fail(err, DIBIT_E_TOKENIZER, KEY "scores: token %d has no number", (int)id);
        memcpy(&bits, &score, sizeof bits);
        t->order[id] = bits & 0x80000000u ? bits : 0x7fffffffu - bits;
    }
    return 0;
}

/* ---- special tokens ---- */

static int special_order(const void *a, const void *b) {
    const Token *x = *(const Token *const *)a, *y = *(const Token *const *)b;
    int order = memcmp(x->text, y->text, MIN(x->n_text, y->n_text));
    return order ? order : x->n_text < y->n_text ? -1 : x->n_text > y->n_text;
}

/* Tokens that are looked for in the text before it is split. */
static int load_special(Tokenizer *t, DibitError *err) {
    size_t n = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && !(t->special = arena_alloc(&t->arena, n * sizeof *t->special)))
            return no_memory(err);
        n = 0;
        for (int32_t id = 0; id < t->n_vocab; id++) {
            const Token *k = &t->tokens[id];
            if (k->kind < TOKEN_UNKNOWN || k->kind > TOKEN_USER_DEFINED || k->n_text == 0) continue;
            if (k->n_text > MAX_SPECIAL)
                return fail(err, DIBIT_E_TOKENIZER,
                            KEY "tokens: special token %d has %u bytes, at "
                                "most %d are supported",
                            (int)id, (unsigned)k->n_text, MAX_SPECIAL);
            if (vocab_find(t, k->text, k->n_text) != id) continue; // a later one has its text
            if (pass == 1) t->special[n] = k;
            t->has_user_defined |= k->kind == TOKEN_USER_DEFINED;
            n++;
        }
    }
    qsort(t->special, n, sizeof *t->special, special_order);
    size_t i = 0;
    for (int byte = 0; byte <= 256; byte++) {
        while (i < n && (uint8_t)t->special[i]->text[0] < byte) i++;
        t->special_first[byte] = (uint32_t)i;
    }
    return 0;
}

static int load_id(const Tokenizer *t, const Gguf *file, const char *key, int32_t *id,
                   DibitError *err) {
    const GgufValue *v = gguf_get(file, key);
    if (!v) return 0;
    uint64_t n;
    if (!gguf_get_u64(file, key, &n) || n >= (uint64_t)t->n_vocab)
        return fail(err, DIBIT_E_TOKENIZER, "%s: is not a token id below %d", key, (int)t->n_vocab);
    *id = (int32_t)n;
    return 0;
}

/* Texts of the tokens that end an answer, whatever the file's eos is. */
static const char *const end_texts[] = {
    "<|endoftext|>", "<|im_end|>",    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>",
    "<|end|>",       "<end_of_turn>", "<eos>",      "<EOT>",      "[EOS]",
};

static int load_ends(Tokenizer *t, const Gguf *file, DibitError *err) {
    bool spm = !t->pre; // Llama's fixed ids, where the file names none
    int32_t eot = -1, eom = -1;
    t->unknown = spm ? 0 : -1;
    t->bos = spm && t->n_vocab > 1 ? 1 : -1;
    t->eos = spm && t->n_vocab > 2 ? 2 : -1;
    int rc = load_id(t, file, KEY "bos_token_id", &t->bos, err);
    if (rc == 0) rc = load_id(t, file, KEY "eos_token_id", &t->eos, err);
    if (rc == 0) rc = load_id(t, file, KEY "unknown_token_id", &t->unknown, err);
    if (rc == 0) rc = load_id(t, file, KEY "eot_token_id", &eot, err);
    if (rc == 0) rc = load_id(t, file, KEY "eom_token_id", &eom, err);
    if (rc < 0) return rc;
    int32_t named[] = { t->eos, eot, eom };
    for (size_t i = 0; i < ARRAY_LEN(named); i++)
        if (named[i] >= 0) t->tokens[named[i]].is_end = true;
    for (size_t i = 0; i < ARRAY_LEN(end_texts); i++) {
        int32_t id = vocab_find(t, end_texts[i], strlen(end_texts[i]));
        if (id < 0) continue;
        uint8_t kind = t->tokens[id].kind;
        if (kind == TOKEN_CONTROL || kind == TOKEN_USER_DEFINED) t->tokens[id].is_end = true;
    }
    t->add_bos = spm || t->pre->add_bos;
    bool asked = gguf_get_bool(file, KEY "add_bos_token", &t->add_bos) && t->add_bos;
    if (asked && t->bos < 0)
        return fail(err, DIBIT_E_TOKENIZER,
                    KEY "add_bos_token is set, but there is no bos_token_id");
    return 0;
}

/* ---- byte-level BPE ---- */

/* The byte that a character of the byte-level alphabet stands for: printable Latin-1 is itself, the
 * other 68 bytes are U+0100 and up in their order. -1: not of the alphabet. */
static int alphabet_byte(uint32_t c) {
    if ((c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xff && c != 0xad)) return (int)c;
    if (c < 0x100 || c >= 0x100 + 68) return -1;
    c -= 0x100;
    return (int)(c < 33 ? c : c < 33 + 34 ? c - 33 + 0x7f : 0xad);
}

/* Decodes into out. False, and nothing is decoded, when a character is not of the alphabet. */
static bool decode_alphabet(const Token *k, char *out, uint32_t *n_out) {
    uint32_t c, n = 0;
    for (uint32_t i = 0; i < k->n_text;) {
        int len = utf8_scan((const uint8_t *)k->text + i, k->n_text - i, &c);
        int byte = len > 0 ? alphabet_byte(c) : -1;
        if (byte < 0) return false;
        out[n++] = (char)byte;
        i += (uint32_t)len;
    }
    *n_out = n;
    return true;
}

/* As token_slot, for the merge of a pair. */
static uint32_t *pair_slot(const Tokenizer *t, int32_t left, int32_t right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    size_t at = (size_t)(h ^ h >> 32);
    for (int i = 0; i < MAX_PROBES; i++, at++) {
        uint32_t *slot = &t->merge_slots[at & t->merge_mask];
        if (*slot == 0) return slot;
        const Merge *m = &t->merges[*slot - 1];
        if (m->left == left && m->right == right) return slot;
    }
    return NULL;
}

int32_t vocab_merge(const Tokenizer *t, int32_t left, int32_t right, uint32_t *rank) {
    const uint32_t *slot = pair_slot(t, left, right);
    if (!slot || *slot == 0) return -1;
    *rank = *slot - 1;
    return t->merges[*rank].id;
}

/* "left right", where left may start with a space. buf has room for the longest token. */
static bool read_merge(const Tokenizer *t, GgufString s, char *buf, Merge *m) {
    if (s.n < 3 || s.n - 1 > t->max_text) return false;
    const char *space = memchr(s.s + 1, ' ', s.n - 1);
    if (!space) return false;
    size_t n_left = (size_t)(space - s.s), n_right = s.n - n_left - 1;
    memcpy(buf, s.s, n_left);
    memcpy(buf + n_left, space + 1, n_right);
    m->left = vocab_find(t, s.s, n_left);
    m->right = vocab_find(t, space + 1, n_right);
    m->id = vocab_find(t, buf, n_left + n_right);
    return m->left >= 0 && m->right >= 0 && m->id >= 0;
}

static int load_merges(Tokenizer *t, const Gguf *file, DibitError *err) {
    const GgufValue *v = gguf_get(file, KEY "merges");
    if (!v || v->kind != GGUF_ARRAY || v->item != GGUF_STRING || v->n > INT32_MAX)
        return fail(err, DIBIT_E_TOKENIZER, KEY "merges: %s",
                    v ? "should be an array of strings" : "is missing");
    size_t n_bytes, cursor = 0;
    char *buf = arena_alloc(&t->arena, t->max_text);
    t->merge_slots = slots_create(t, (size_t)v->n, &t->merge_mask);
    if (size_mul((size_t)v->n, sizeof(Merge), &n_bytes))
        t->merges = arena_alloc(&t->arena, n_bytes);
    if (!buf || !t->merge_slots || !t->merges) return no_memory(err);
    for (uint32_t rank = 0; rank < v->n; rank++) {
        GgufString s = gguf_next_string(v, &cursor);
        Merge *m = &t->merges[rank];
        if (!read_merge(t, s, buf, m))
            return fail(err, DIBIT_E_TOKENIZER,
                        KEY "merges: merge %u ('%.*s') is not two tokens that "
                            "form a third",
                        (unsigned)rank, (int)MIN(s.n, (size_t)64), s.s);
        uint32_t *slot = pair_slot(t, m->left, m->right);
        if (!slot)
            return fail(err, DIBIT_E_TOKENIZER,
                        KEY "merges: %d merges collide in the look-up table; the file is damaged "
                            "or forged",
                        MAX_PROBES);
        if (*slot == 0) *slot = rank + 1; // of the same pair the first one counts
    }
    return 0;
}

static int load_bpe(Tokenizer *t, const Gguf *file, char *bytes, DibitError *err) {
    for (int32_t id = 0; id < t->n_vocab; id++) {
        Token *k = &t->tokens[id];
        if (k->kind != TOKEN_NORMAL && k->kind != TOKEN_UNUSED) continue;
        if (!decode_alphabet(k, bytes, &k->n_bytes)) continue; // then its text is what it means
        k->bytes = bytes;
        bytes += k->n_bytes;
        if (k->n_bytes == 1 && vocab_find(t, k->text, k->n_text) == id)
            t->byte_id[(uint8_t)k->bytes[0]] = id;
    }
    return load_merges(t, file, err);
}

/* ---- SPM ---- */

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte of "<0xXX>", or -1. */
static int byte_token(const Token *k) {
    if (k->n_text != 6 || memcmp(k->text, "<0x", 3) != 0 || k->text[5] != '>') return -1;
    int high = hex_digit(k->text[3]), low = hex_digit(k->text[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* U+2581 to space. Clears space_starts where one stands behind something else. */
static void decode_spm(Tokenizer *t, Token *k, char *bytes) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < k->n_text;) {
        bool space = k->n_text - i >= 3 && memcmp(k->text + i, "\xe2\x96\x81", 3) == 0;
        if (space && n > 0 && bytes[n - 1] != ' ') t->space_starts = false;
        bytes[n++] = space ? ' ' : k->text[i];
        i += space ? 3 : 1;
    }
    k->bytes = bytes;
    k->n_bytes = n;
}

static int load_spm(Tokenizer *t, const Gguf *file, char *bytes, DibitError *err) {
    t->space_starts = true;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        Token *k = &t->tokens[id];
        int byte = byte_token(k);
        if (k->kind == TOKEN_BYTE && byte < 0)
            return fail(err, DIBIT_E_TOKENIZER,
                        KEY "tokens: byte token %d ('%.*s') is not <0x00> to "
                            "<0xFF>",
                        (int)id, (int)MIN(k->n_text, 16u), k->text);
        if (k->kind == TOKEN_BYTE) {
            *bytes = (char)byte;
            k->bytes = bytes;
            k->n_bytes = 1;
        } else if (k->kind == TOKEN_NORMAL || k->kind == TOKEN_UNUSED) {
            decode_spm(t, k, bytes);
        } else {
            continue;
        }
        if (byte >= 0 && t->byte_id[byte] < 0) t->byte_id[byte] = id;
        bytes += k->n_bytes;
    }
    for (int b = 0; b < 256; b++) { // without byte tokens: the character itself
        char text = (char)b;
        if (t->byte_id[b] < 0) t->byte_id[b] = vocab_find(t, &text, 1);
    }
    t->add_space_prefix = true;
    gguf_get_bool(file, KEY "add_space_prefix", &t->add_space_prefix);
    return load_scores(t, file, err);
}

/* ---- all of it ---- */

static int load_model(Tokenizer *t, const Gguf *file, DibitError *err) {
    GgufString model, pre = { "default", 7 };
    if (!gguf_get(file, KEY "model"))
        return fail(err, DIBIT_E_TOKENIZER,
                    "the model file has no tokenizer (" KEY "model): only token ids can be used");
    if (!gguf_get_string(file, KEY "model", &model))
        return fail(err, DIBIT_E_TOKENIZER, KEY "model: should be a string");
    if (model.n == 5 && memcmp(model.s, "llama", 5) == 0) return 0;
    if (model.n != 4 || memcmp(model.s, "gpt2", 4) != 0)
        return fail(err, DIBIT_E_TOKENIZER,
                    KEY "model: '%.*s' is not supported (gpt2 and llama are)",
                    (int)MIN(model.n, (size_t)64), model.s);
    if (gguf_get(file, KEY "pre") && !gguf_get_string(file, KEY "pre", &pre))
        return fail(err, DIBIT_E_TOKENIZER, KEY "pre: should be a string");
    t->pre = pretokenizer_find(pre.s, pre.n);
    if (!t->pre)
        return fail(err, DIBIT_E_TOKENIZER,
                    KEY "pre: '%.*s' is not supported (gpt-2, llama-bpe, "
                        "qwen2 and their relatives are)",
                    (int)MIN(pre.n, (size_t)64), pre.s);
    return 0;
}

int vocab_load(Tokenizer *t, const Gguf *file, DibitError *err) {
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    int rc = load_model(t, file, err);
    if (rc == 0) rc = load_tokens(t, file, err);
    if (rc == 0) rc = index_tokens(t, err);
    if (rc < 0) return rc;
    size_t n_bytes = 0; // decoded tokens are no longer than their texts, which all lie in the file
    for (int32_t id = 0; id < t->n_vocab; id++) n_bytes += t->tokens[id].n_text;
    char *bytes = arena_alloc(&t->arena, n_bytes);
    if (!bytes) return no_memory(err);
    rc = t->pre ? load_bpe(t, file, bytes, err) : load_spm(t, file, bytes, err);
    if (rc == 0) rc = load_special(t, err);
    if (rc == 0) rc = load_ends(t, file, err);
    return rc;
}
