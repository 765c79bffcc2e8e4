/* merge.c - one word to tokens: its bytes (BPE) or characters (SPM) are symbols in a linked list,
 * and a heap says which neighbours become one next. Byte-level BPE takes the pair of the lowest
 * rank, SPM the pair whose token has the best score, both the leftmost of equals. */
#include <string.h>
#include "vocab.h"
#include "unicode.h"

static void heap_push(MergeWork *w, uint64_t v) {
    size_t i = w->n_heap++;
    for (; i > 0 && v < w->heap[(i - 1) / 2]; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = v;
}

static uint64_t heap_pop(MergeWork *w) {
    uint64_t top = w->heap[0], v = w->heap[--w->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->n_heap) break;
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child]) child++;
        if (v <= w->heap[child]) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = v;
    return top;
}

static void free_symbols(MergeWork *w) {
    mem_free(w->memory, w->symbols);
    mem_free(w->memory, w->heap);
    w->symbols = NULL;
    w->heap = NULL;
    w->cap = 0;
}

/* Room for n symbols. The heap holds at most 2n entries: n - 1 at the start, and a merge takes one
 * and adds two. */
static int reserve(MergeWork *w, size_t n, DibitError *err) {
    if (n <= w->cap) return 0;
    size_t cap = MAX(n, (size_t)256), n_symbols, n_heap;
    free_symbols(w);
    if (size_mul(cap, sizeof(Symbol), &n_symbols) && size_mul(cap, 2 * sizeof(uint64_t), &n_heap)) {
        w->symbols = mem_alloc(w->memory, n_symbols);
        w->heap = mem_alloc(w->memory, n_heap);
    }
    if (!w->symbols || !w->heap) {
        free_symbols(w);
        return fail(err, DIBIT_E_MEMORY, "no memory to tokenize a word of %zu bytes", n);
    }
    w->cap = cap;
    return 0;
}

void merge_free(MergeWork *w) {
    free_symbols(w);
    mem_free(w->memory, w->text);
    w->text = NULL;
}

/* A token that merging may form: the others stand for something that is not text. */
static int32_t find_text(const Tokenizer *t, const char *s, size_t n) {
    int32_t id = n <= t->max_text ? vocab_find(t, s, n) : -1;
    if (id < 0) return -1;
    uint8_t kind = t->tokens[id].kind;
    return kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN || kind == TOKEN_BYTE ? -1 : id;
}

static size_t symbol_end(const MergeWork *w, int32_t i, size_t n) {
    int32_t next = w->symbols[i].next;
    return next < 0 ? n : w->symbols[next].start;
}

/* Looks up what symbol i and its right neighbour form. */
static void set_pair(const Tokenizer *t, MergeWork *w, const char *word, size_t n, int32_t i) {
    Symbol *s = &w->symbols[i];
    s->pair = -1;
    if (s->next < 0) return;
    if (t->pre) {
        s->pair = vocab_merge(t, s->id, w->symbols[s->next].id, &s->key);
    } else {
        s->pair = find_text(t, word + s->start, symbol_end(w, s->next, n) - s->start);
        if (s->pair >= 0) s->key = t->order[s->pair];
    }
    if (s->pair >= 0) heap_push(w, (uint64_t)s->key << 32 | (uint32_t)i);
}

static int32_t first_symbols(const Tokenizer *t, MergeWork *w, const char *word, size_t n) {
    int32_t count = 0;
    for (size_t i = 0; i < n; count++) {
        const uint8_t *p = (const uint8_t *)word + i;
        uint32_t c;
        int len = t->pre ? 1 : utf8_scan(p, n - i, &c);
        if (len < 1) len = 1; // an invalid byte stands alone
        int32_t id = t->pre ? t->byte_id[*p] : find_text(t, word + i, (size_t)len);
        w->symbols[count] = (Symbol){ (uint32_t)i, count - 1, count + 1, id, -1, 0 };
        i += (size_t)len;
    }
    w->symbols[count - 1].next = -1;
    return count;
}

static void join(MergeWork *w, int32_t i) {
    Symbol *s = &w->symbols[i], *gone = &w->symbols[s->next];
    s->id = s->pair;
    s->next = gone->next;
    gone->pair = -1;
    if (s->next >= 0) w->symbols[s->next].prev = i;
}

/* A symbol that is no token comes out byte by byte; bytes that have none either become the unknown
 * token, where there is one. */
static void push_symbol(const Tokenizer *t, const char *word, size_t start, size_t end, int32_t id,
                        IdList *out) {
    if (id >= 0) {
        id_push(out, id);
        return;
    }
    for (size_t i = start; i < end; i++) {
        id = t->byte_id[(uint8_t)word[i]];
        if (id < 0) id = t->unknown;
        if (id >= 0) id_push(out, id);
    }
}

/* The token that is the whole word, byte-level alphabet: -1 if none. */
static int whole_word(const Tokenizer *t, MergeWork *w, const char *word, size_t n, int32_t *id,
                      DibitError *err) {
    *id = -1;
    if (n > t->max_text) return 0;
    if (!w->text) w->text = mem_alloc(w->memory, t->max_text);
    if (!w->text) return fail(err, DIBIT_E_MEMORY, "no memory to tokenize");
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t b = t->byte_id[(uint8_t)word[i]];
        if (b < 0 || t->tokens[b].n_text > t->max_text - len) return 0;
        memcpy(w->text + len, t->tokens[b].text, t->tokens[b].n_text);
        len += t->tokens[b].n_text;
    }
    *id = find_text(t, w->text, len);
    return 0;
}

int merge_word(const Tokenizer *t, MergeWork *w, const char *word, size_t n, IdList *out,
               DibitError *err) {
    if (n == 0) return 0;
    if (n > INT32_MAX) return fail(err, DIBIT_E_ARGUMENT, "a word of %zu bytes is too long", n);
    if (t->pre && t->pre->whole_words) {
        int32_t id;
        int rc = whole_word(t, w, word, n, &id, err);
        if (rc < 0) return rc;
        if (id >= 0) {
            id_push(out, id);
            return 0;
        }
    }
    int rc = reserve(w, n, err);
    if (rc < 0) return rc;
    w->n_heap = 0;
    int32_t count = first_symbols(t, w, word, n);
    for (int32_t i = 0; i + 1 < count; i++) set_pair(t, w, word, n, i);
    while (w->n_heap > 0) {
        uint64_t top = heap_pop(w);
        int32_t i = (int32_t)(uint32_t)top;
        Symbol *s = &w->symbols[i];
        if (s->pair < 0 || s->key != top >> 32) continue; // merged or changed since
        join(w, i);
        if (s->prev >= 0) set_pair(t, w, word, n, s->prev);
        set_pair(t, w, word, n, i);
    }
    for (int32_t i = 0; i >= 0; i = w->symbols[i].next)
        push_symbol(t, word, w->symbols[i].start, symbol_end(w, i, n), w->symbols[i].id, out);
    return 0;
}
