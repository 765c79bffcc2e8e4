/* pretok.c - splits text into the words that byte-level BPE merges inside of: the regular
 * expressions of GPT-2, Llama 3 and Qwen 2 as functions that read forward only. Each alternative of
 * an expression is one step, in its order; bytes that are not UTF-8 count as characters of class
 * OTHER. */
#include <string.h>
#include "vocab.h"
#include "unicode.h"

typedef struct Text {
    const uint8_t *s;
    size_t n;
} Text;

typedef struct Char {
    uint32_t c;      // code point; UINT32_MAX at the end and for an invalid byte
    CharClass class; // OTHER there
    size_t end;      // where the next one starts; at the end: the end
} Char;

static Char char_at(Text t, size_t pos) {
    Char ch = { UINT32_MAX, CHAR_OTHER, pos };
    if (pos >= t.n) return ch;
    int len = utf8_scan(t.s + pos, t.n - pos, &ch.c);
    if (len > 0) {
        ch.class = unicode_class(ch.c);
        ch.end = pos + (size_t)len;
    } else {
        ch.c = UINT32_MAX;
        ch.end = pos + 1;
    }
    return ch;
}

static bool is_class(Text t, size_t pos, CharClass class) {
    return pos < t.n && char_at(t, pos).class == class;
}

static size_t skip_class(Text t, size_t pos, CharClass class) {
    while (pos < t.n) {
        Char ch = char_at(t, pos);
        if (ch.class != class) break;
        pos = ch.end;
    }
    return pos;
}

static bool is_newline(Text t, size_t pos) {
    return pos < t.n && (t.s[pos] == '\r' || t.s[pos] == '\n');
}

/* The lower-case letter that a case-insensitive match takes this for. U+017F (long s) folds to s;
 * no other character folds to one of the letters asked for. */
static uint32_t fold(uint32_t c, bool any_case) {
    if (!any_case) return c;
    if (c == 0x17f) return 's';
    return c >= 'A' && c <= 'Z' ? c | 32 : c;
}

/* 's|'t|'re|'ve|'m|'ll|'d : the end of the contraction at pos, or pos. */
static size_t skip_contraction(Text t, size_t pos, bool any_case) {
    if (t.s[pos] != '\'') return pos;
    Char a = char_at(t, pos + 1);
    uint32_t x = fold(a.c, any_case);
    if (x == 's' || x == 't' || x == 'm' || x == 'd') return a.end;
    if (x != 'r' && x != 'v' && x != 'l') return pos;
    Char b = char_at(t, a.end);
    return fold(b.c, any_case) == (x == 'l' ? 'l' : 'e') ? b.end : pos;
}

/* \s+(?!\S)|\s+ on a run of white space that ends at `end`: all of it at the end of the text, else
 * all but the last character, which may belong to the next word. */
static size_t skip_space(Text t, size_t pos, size_t end, bool at_end) {
    if (at_end) return end;
    size_t last = pos;
    for (size_t p = pos; p < end; p = char_at(t, p).end) last = p;
    return last > pos ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * With single_digits each number character is cut out first and the text between them is split on
 * its own, so that to a run of white space a number is the end of the text. */
static size_t split_gpt2_form(Text t, size_t pos, bool single_digits) {
    size_t end = skip_contraction(t, pos, false);
    if (end > pos) return end;
    Char first = char_at(t, pos);
    if (single_digits && first.class == CHAR_NUMBER) return first.end;
    size_t start = first.c == ' ' && first.end < t.n ? first.end : pos; // behind the optional space
    CharClass class = char_at(t, start).class;
    if (class != CHAR_SPACE && !(single_digits && class == CHAR_NUMBER))
        return skip_class(t, start, class);
    end = skip_class(t, pos, CHAR_SPACE);
    return skip_space(t, pos, end, end == t.n || (single_digits && is_class(t, end, CHAR_NUMBER)));
}

static size_t split_gpt2(const uint8_t *s, size_t n, size_t pos) {
    return split_gpt2_form((Text){ s, n }, pos, false);
}

static size_t split_smollm(const uint8_t *s, size_t n, size_t pos) {
    return split_gpt2_form((Text){ s, n }, pos, true);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|
 * ?[^\s\p{L}\p{N}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t split_llama3_form(Text t, size_t pos, int max_digits) {
    size_t end = skip_contraction(t, pos, true);
    if (end > pos) return end;
    Char first = char_at(t, pos);
    if (first.class == CHAR_LETTER) return skip_class(t, pos, CHAR_LETTER);
    if (first.class == CHAR_NUMBER) {
        end = first.end;
        for (int i = 1; i < max_digits && is_class(t, end, CHAR_NUMBER); i++)
            end = char_at(t, end).end;
        return end;
    }
    if (!is_newline(t, pos) && is_class(t, first.end, CHAR_LETTER))
        return skip_class(t, first.end, CHAR_LETTER);
    size_t start = first.c == ' ' ? first.end : pos;
    if (is_class(t, start, CHAR_OTHER)) {
        end = skip_class(t, start, CHAR_OTHER);
        while (is_newline(t, end)) end++;
        return end;
    }
    size_t newline = pos; // behind the last newline of the run
    for (end = pos; is_class(t, end, CHAR_SPACE); end = char_at(t, end).end)
        if (is_newline(t, end)) newline = end + 1;
    return newline > pos ? newline : skip_space(t, pos, end, end == t.n);
}

static size_t split_llama3(const uint8_t *s, size_t n, size_t pos) {
    return split_llama3_form((Text){ s, n }, pos, 3);
}

static size_t split_qwen2(const uint8_t *s, size_t n, size_t pos) {
    return split_llama3_form((Text){ s, n }, pos, 1);
}

/* Only names whose expression, merging rule and BOS default are the row's. "default" and a missing
 * name stand for plain byte-level BPE, which is GPT-2's. */
static const PreTokenizer pretokenizers[] = {
    { "gpt-2", split_gpt2, false, false },
    { "default", split_gpt2, false, false },
    { "phi-2", split_gpt2, false, false },
    { "mpt", split_gpt2, false, false },
    { "olmo", split_gpt2, false, false },
    { "llama-bpe", split_llama3, true, true },
    { "llama3", split_llama3, true, true },
    { "llama-v3", split_llama3, true, true },
    { "falcon3", split_llama3, true, true },
    { "dbrx", split_llama3, false, false },
    { "smaug-bpe", split_llama3, false, false },
    { "qwen2", split_qwen2, false, false },
    { "deepseek-r1-qwen", split_qwen2, false, false },
    { "stablelm2", split_qwen2, false, false },
    { "megrez", split_qwen2, false, false },
    { "smollm", split_smollm, false, false },
    { "starcoder", split_smollm, false, false },
    { "refact", split_smollm, false, false },
    { "command-r", split_smollm, false, false },
};

const PreTokenizer *pretokenizer_find(const char *name, size_t n) {
    for (size_t i = 0; i < ARRAY_LEN(pretokenizers); i++) {
        const PreTokenizer *p = &pretokenizers[i];
        if (strlen(p->name) == n && memcmp(p->name, name, n) == 0) return p;
    }
    return NULL;
}
