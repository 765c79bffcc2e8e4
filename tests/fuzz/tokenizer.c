/* tokenizer.c - fuzz target: the bytes build a vocabulary, wrong ones included, and a text for it.
 * What opens must count and write the same ids, each of the vocabulary; where the vocabulary has
 * every byte and no special token, the tokens' bytes must be the text again. Memory stays under 64
 * MB. */
#include "gguf.h"
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LIMIT = 64 << 20, MAX_TOKENS = 1024, MAX_MERGES = 1024 };

static void must(bool ok) {
    if (!ok) abort();
}

static void *limited_alloc(void *user, size_t size, size_t align) {
    size_t *used = user;
    if (size > LIMIT - *used) return NULL;
    void *p = aligned_alloc(align, size);
    if (p) *used += size;
    return p;
}

static void limited_release(void *user, void *ptr, size_t size) {
    *(size_t *)user -= size;
    free(ptr);
}

/* ---- the input, byte by byte ---- */

typedef struct Input {
    const uint8_t *p;
    size_t n;
} Input;

static unsigned take(Input *in) {
    if (in->n == 0) return 0;
    in->n--;
    return *in->p++;
}

static GgufString take_string(Input *in, size_t n) {
    GgufString s = { (const char *)in->p, MIN(n, in->n) };
    in->p += s.n;
    in->n -= s.n;
    return s;
}

/* ---- the vocabulary ---- */

typedef struct Vocabulary {
    GgufString tokens[MAX_TOKENS], merges[MAX_MERGES];
    uint8_t kinds[MAX_TOKENS];
    float scores[MAX_TOKENS];
    size_t n, n_merges;
    char bytes[256][8], text[1 << 18]; // what the strings point to
    size_t n_text;
    bool spm, every_byte, plain; // plain: no token is special
} Vocabulary;

static void add_bytes(Vocabulary *v) {
    int extra = 0;
    for (int b = 0; b < 256; b++) {
        bool same = (b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad);
        int c = same ? b : 256 + extra++;
        char *s = v->bytes[b];
        static const char hex[] = "0123456789ABCDEF";
        size_t n = 0;
        if (v->spm) {
            memcpy(s, "<0x00>", n = 6);
            s[3] = hex[b >> 4];
            s[4] = hex[b & 15];
        } else if (c < 0x80) {
            s[n++] = (char)c;
        } else {
            s[n++] = (char)(0xc0 | c >> 6);
            s[n++] = (char)(0x80 | (c & 0x3f));
        }
        v->kinds[v->n] = v->spm ? 6 : 1;
        v->tokens[v->n++] = (GgufString){ s, n };
    }
}

/* The texts of two tokens with `between` in the middle; empty when there is no more room. */
static GgufString joined(Vocabulary *v, unsigned a, unsigned b, const char *between) {
    GgufString x = v->tokens[a % v->n], y = v->tokens[b % v->n];
    size_t k = strlen(between), n = x.n + k + y.n;
    char *s = v->text + v->n_text;
    if (n > sizeof v->text - v->n_text) return (GgufString){ "", 0 };
    memcpy(s, x.s, x.n);
    memcpy(s + x.n, between, k);
    memcpy(s + x.n + k, y.s, y.n);
    v->n_text += n;
    return (GgufString){ s, n };
}

static unsigned take_index(Input *in) {
    unsigned high = take(in);
    return high << 8 | take(in);
}

static void add_tokens(Vocabulary *v, Input *in) {
    for (unsigned n = take(in); n > 0 && v->n < MAX_TOKENS && in->n; n--) {
        unsigned how = take(in), a = 0, b = 0;
        size_t id = v->n;
        v->kinds[id] = how & 8 ? (uint8_t)take(in) : 1;
        v->plain &= v->kinds[id] <= 1 || v->kinds[id] == 5 || v->kinds[id] > 6;
        if (how & 1 && v->n > 0) { // a token that two others form, and mostly the merge for it
            a = take_index(in);
            b = take_index(in);
            v->tokens[id] = joined(v, a, b, "");
            if (!(how & 2) && v->n_merges < MAX_MERGES)
                v->merges[v->n_merges++] = joined(v, a, b, " ");
        } else {
            v->tokens[id] = take_string(in, how >> 4);
        }
        uint32_t bits = (uint32_t)take(in) << 24 | (how & 4 ? take(in) << 16 : 0);
        memcpy(&v->scores[id], &bits, sizeof bits);
        v->n++;
    }
    for (unsigned n = take(in) & 7; n > 0 && v->n_merges < MAX_MERGES; n--)
        v->merges[v->n_merges++] = take_string(in, take(in) & 15);
}

static const char *const pres[] = { "gpt-2", "llama-bpe", "qwen2", "smollm" };
static const char *const id_keys[] = { "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                                       "tokenizer.ggml.unknown_token_id",
                                       "tokenizer.ggml.eot_token_id" };

static GgufWriter *build(Vocabulary *v, Input *in, unsigned flags) {
    GgufWriter *w;
    unsigned with = take(in);
    v->spm = flags & 1;
    v->plain = true;
    v->every_byte = flags & 2;
    if (v->every_byte) add_bytes(v);
    add_tokens(v, in);
    must(gguf_writer_create(&w, NULL) == 0);
    const char *pre = pres[with & 3];
    gguf_put_string(w, "tokenizer.ggml.model", v->spm ? "llama" : "gpt2", v->spm ? 5 : 4);
    gguf_put_string(w, "tokenizer.ggml.pre", pre, strlen(pre));
    gguf_put_strings(w, "tokenizer.ggml.tokens", v->tokens, v->n);
    if (!(with & 4) || v->every_byte)
        gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_U8, v->kinds, v->n);
    gguf_put_array(w, "tokenizer.ggml.scores", GGUF_F32, v->scores, v->n);
    gguf_put_strings(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    if (with & 8) gguf_put_bool(w, "tokenizer.ggml.add_bos_token", with & 16);
    if (with & 32) gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", with & 64);
    if (with & 128) gguf_put_u32(w, id_keys[take(in) & 3], take_index(in));
    must(gguf_begin_memory(w, NULL) == 0);
    return w;
}

/* ---- checks ---- */

/* SPM: U+2581 and space are one. Returns the new length. */
static size_t unmark(char *s, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < n; k++) {
        bool mark = n - i >= 3 && memcmp(s + i, "\xe2\x96\x81", 3) == 0;
        s[k] = mark ? ' ' : s[i];
        i += mark ? 3 : 1;
    }
    return k;
}

static void bytes_are_the_text(const Vocabulary *v, const Tokenizer *t, const int32_t *ids,
                               size_t n_ids, const uint8_t *text, size_t n) {
    static char got[1 << 22], want[1 << 20];
    if (n + 1 > sizeof want) return;
    size_t n_got = 0, n_want = 0;
    if (v->spm && n > 0 && tokenizer_adds_space(t)) want[n_want++] = ' ';
    memcpy(want + n_want, text, n);
    n_want += n;
    for (size_t i = 0; i < n_ids; i++) {
        const char *bytes;
        size_t k = (size_t)tokenizer_bytes(t, ids[i], true, &bytes);
        must(k <= sizeof got - n_got);
        memcpy(got + n_got, bytes, k);
        n_got += k;
    }
    if (v->spm) {
        n_got = unmark(got, n_got);
        n_want = unmark(want, n_want);
    }
    must(n_got == n_want && memcmp(got, want, n_got) == 0);
}

static void encode(const Vocabulary *v, const Tokenizer *t, Input text, int flags) {
    DibitError err = { 0 };
    const char *s = (const char *)text.p;
    int64_t n = tokenizer_encode(t, s, text.n, flags, NULL, 0, &err);
    must(n >= 0 || (n == DIBIT_E_MEMORY && err.text[0]));
    if (n < 0) return;
    int32_t *ids = malloc(((size_t)n + 1) * sizeof *ids);
    ids[n] = -5;
    must(tokenizer_encode(t, s, text.n, flags, ids, (size_t)n, &err) == n && ids[n] == -5);
    for (int64_t i = 0; i < n; i++) {
        const char *bytes;
        must(ids[i] >= 0 && ids[i] < tokenizer_n_vocab(t));
        must(tokenizer_bytes(t, ids[i], true, &bytes) >= 0);
        tokenizer_is_end(t, ids[i]);
    }
    if (v->every_byte && v->plain && !(flags & DIBIT_ADD_BOS))
        bytes_are_the_text(v, t, ids, (size_t)n, text.p, text.n);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Vocabulary v;
    v.n = v.n_merges = v.n_text = 0;
    memset(v.scores, 0, sizeof v.scores);
    Input in = { data, size };
    unsigned flags = take(&in);
    GgufWriter *w = build(&v, &in, flags);
    uint8_t *image;
    size_t n_image, used = 0;
    DibitAllocator memory = { limited_alloc, limited_release, &used };
    DibitError err = { 0 };
    Gguf *g;
    Tokenizer *t;
    must(gguf_finish_memory(w, &image, &n_image, NULL) == 0);
    gguf_writer_free(&w);
    must(gguf_open_memory(&g, image, n_image, &memory, &err) == 0);
    if (tokenizer_open(&t, g, &memory, &err) == 0)
        encode(&v, t, in, flags >> 2 & 3);
    else
        must(!t && err.text[0]);
    tokenizer_close(&t);
    gguf_close(&g);
    must(used == 0);
    mem_free(NULL, image);
    return 0;
}
