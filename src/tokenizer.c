/* tokenizer.c - text to token ids and back: cuts special tokens out of the text, splits the rest
 * into words and has them merged. An open tokenizer is never written to, so any thread may use it.
 */
#include <string.h>
#include "vocab.h"
#include "unicode.h"

int tokenizer_open(Tokenizer **out, const Gguf *file, const DibitAllocator *memory,
                   DibitError *err) {
    *out = NULL;
    Tokenizer *t = mem_calloc(memory, 1, sizeof *t);
    if (!t) return fail(err, DIBIT_E_MEMORY, "no memory for the tokenizer");
    t->memory = memory;
    t->arena.memory = memory;
    int rc = vocab_load(t, file, err);
    if (rc < 0) tokenizer_close(&t);
    *out = t;
    return rc;
}

void tokenizer_close(Tokenizer **t) {
    if (!*t) return;
    arena_free(&(*t)->arena);
    mem_free((*t)->memory, *t);
    *t = NULL;
}

int tokenizer_n_vocab(const Tokenizer *t) {
    return t->n_vocab;
}

int32_t tokenizer_bos(const Tokenizer *t) {
    return t->bos;
}

int32_t tokenizer_eos(const Tokenizer *t) {
    return t->eos;
}

bool tokenizer_is_end(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->n_vocab && t->tokens[id].is_end;
}

bool tokenizer_adds_space(const Tokenizer *t) {
    return t->add_space_prefix;
}

int32_t tokenizer_find(const Tokenizer *t, const char *text, size_t n) {
    return vocab_find(t, text, n);
}

int tokenizer_bytes(const Tokenizer *t, int32_t id, bool special, const char **bytes) {
    if (id < 0 || id >= t->n_vocab) return DIBIT_E_ARGUMENT;
    const Token *k = &t->tokens[id];
    *bytes = k->bytes;
    bool hidden = k->kind == TOKEN_CONTROL || k->kind == TOKEN_UNKNOWN;
    return hidden && !special ? 0 : (int)k->n_bytes;
}

/* ---- special tokens in the text ---- */

/* Byte d of a token's text, -1 behind its end. */
static int byte_at(const Token *k, uint32_t d) {
    return d < k->n_text ? (uint8_t)k->text[d] : -1;
}

/* The first of special[lo, hi), which agree before byte d, whose byte d is at least c. */
static uint32_t lower_bound(const Tokenizer *t, uint32_t lo, uint32_t hi, uint32_t d, int c) {
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (byte_at(t->special[mid], d) < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest special token that the text starts with; NULL: none. */
static const Token *match_special(const Tokenizer *t, const uint8_t *s, size_t n, bool parse) {
    uint32_t lo = t->special_first[s[0]], hi = t->special_first[s[0] + 1];
    const Token *best = NULL;
    for (uint32_t d = 0; lo < hi && d < n; d++) {
        if (byte_at(t->special[lo], d) < s[d]) lo = lower_bound(t, lo, hi, d, s[d]);
        if (lo < hi && byte_at(t->special[hi - 1], d) > s[d])
            hi = lower_bound(t, lo, hi, d, s[d] + 1);
        if (lo < hi && t->special[lo]->n_text == d + 1 &&
            (parse || t->special[lo]->kind == TOKEN_USER_DEFINED))
            best = t->special[lo];
    }
    return best;
}

/* ---- text between special tokens ---- */

typedef struct Encoder {
    const Tokenizer *t;
    MergeWork work;
    IdList out;
    char *escaped; // SPM: the fragment with spaces as U+2581
    size_t n_escaped;
    DibitError *err;
} Encoder;

static int encode_bpe(Encoder *e, const char *text, size_t n) {
    int rc = 0;
    for (size_t pos = 0, end; rc == 0 && pos < n; pos = end) {
        end = e->t->pre->split((const uint8_t *)text, n, pos);
        rc = merge_word(e->t, &e->work, text + pos, end - pos, &e->out, e->err);
    }
    return rc;
}

static bool is_spm_space(const char *s, size_t n) {
    return n >= 3 && memcmp(s, "\xe2\x96\x81", 3) == 0;
}

/* The end of the word at pos: what no token of the vocabulary can reach across. */
static size_t spm_word_end(const Encoder *e, size_t pos) {
    const char *s = e->escaped;
    size_t n = e->n_escaped;
    if (!e->t->space_starts) return n;
    while (is_spm_space(s + pos, n - pos)) pos += 3;
    while (pos < n && !is_spm_space(s + pos, n - pos)) pos++;
    return pos;
}

/* Every fragment stands at the start or behind a special token: there a space goes in front. */
static int encode_spm(Encoder *e, const char *text, size_t n) {
    const size_t prefix = e->t->add_space_prefix;
    size_t spaces = prefix, size;
    for (size_t i = 0; i < n; i++) spaces += text[i] == ' ';
    if (!size_mul(spaces, 3, &size) || !size_add(size, n, &size))
        return fail(e->err, DIBIT_E_MEMORY, "a text of %zu bytes is too long", n);
    e->escaped = mem_alloc(e->t->memory, size);
    if (!e->escaped) return fail(e->err, DIBIT_E_MEMORY, "no memory to tokenize %zu bytes", n);
    size_t k = 0;
    for (size_t i = 0; i < n + prefix; i++) {
        char c = i < prefix ? ' ' : text[i - prefix];
        if (c == ' ') {
            memcpy(e->escaped + k, "\xe2\x96\x81", 3);
            k += 3;
        } else {
            e->escaped[k++] = c;
        }
    }
    e->n_escaped = k;
    int rc = 0;
    for (size_t pos = 0, end; rc == 0 && pos < k; pos = end) {
        end = spm_word_end(e, pos);
        rc = merge_word(e->t, &e->work, e->escaped + pos, end - pos, &e->out, e->err);
    }
    mem_free(e->t->memory, e->escaped);
    e->escaped = NULL;
    return rc;
}

static int encode_text(Encoder *e, const char *text, size_t n) {
    if (n == 0) return 0;
    return e->t->pre ? encode_bpe(e, text, n) : encode_spm(e, text, n);
}

static int encode_all(Encoder *e, const char *text, size_t n, bool parse) {
    const Tokenizer *t = e->t;
    bool search = parse || t->has_user_defined;
    size_t start = 0;
    for (size_t pos = 0; search && pos < n;) {
        const Token *k = match_special(t, (const uint8_t *)text + pos, n - pos, parse);
        if (!k) {
            pos++;
            continue;
        }
        int rc = encode_text(e, text + start, pos - start);
        if (rc < 0) return rc;
        id_push(&e->out, (int32_t)(k - t->tokens));
        start = pos += k->n_text;
    }
    return encode_text(e, text + start, n - start);
}

int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t n_bytes, int flags,
                         int32_t *ids, size_t cap, DibitError *err) {
    if (n_bytes > INT32_MAX)
        return fail(err, DIBIT_E_ARGUMENT, "a text of %zu bytes is too long: at most %d at a time",
                    n_bytes, INT32_MAX);
    if ((!text && n_bytes > 0) || (!ids && cap > 0))
        return fail(err, DIBIT_E_ARGUMENT, "%s is NULL", text ? "ids" : "text");
    Encoder e = { .t = t, .work.memory = t->memory, .out = { ids, cap, 0 }, .err = err };
    bool parse = flags & DIBIT_PARSE_SPECIAL;
    if ((flags & DIBIT_ADD_BOS) && t->add_bos && t->bos >= 0) {
        // A text that already begins with the parsed BOS (chat templates write it) gets no second.
        const Token *k =
            parse && n_bytes ? match_special(t, (const uint8_t *)text, n_bytes, parse) : NULL;
        if (!k || k - t->tokens != t->bos) id_push(&e.out, t->bos);
    }
    int rc = encode_all(&e, text, n_bytes, parse);
    merge_free(&e.work);
    return rc < 0 ? rc : (int64_t)e.out.n;
}
