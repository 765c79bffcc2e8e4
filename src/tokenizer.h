/* tokenizer.h - text to token ids and back, from GGUF metadata: byte-level BPE and SPM with byte
 * fallback. */
#ifndef TOKENIZER_H
#define TOKENIZER_H
#include "gguf.h"

typedef struct Tokenizer Tokenizer;
/* DIBIT_E_TOKENIZER when the file has none (or one this build does not know, named in the text).
 * Strings stay in the file, which must outlive the tokenizer. */
int tokenizer_open(Tokenizer **out, const Gguf *file, const DibitAllocator *memory,
                   DibitError *err);
void tokenizer_close(Tokenizer **t);
int tokenizer_n_vocab(const Tokenizer *t);
int32_t tokenizer_bos(const Tokenizer *t); /* -1: none */
int32_t tokenizer_eos(const Tokenizer *t);
bool tokenizer_is_end(const Tokenizer *t, int32_t id);

/* SPM: text gets a space in front, so the first one of decoded text is not the text's. */
bool tokenizer_adds_space(const Tokenizer *t);

/* As dibit_tokenize(). With DIBIT_ADD_BOS a text that itself begins with the parsed BOS gets no
 * second one. */
int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t n_bytes, int flags,
                         int32_t *ids, size_t cap, DibitError *err);
/* As dibit_token_bytes(). */
int tokenizer_bytes(const Tokenizer *t, int32_t id, bool special, const char **bytes);
/* The token with exactly this text, or -1. */
int32_t tokenizer_find(const Tokenizer *t, const char *text, size_t n);

/* Holds back incomplete UTF-8 between pieces. */
typedef struct Utf8Stream {
    uint8_t hold[4];
    int n_hold;
} Utf8Stream;
/* Appends n bytes; writes whole characters to out (room for 3 * (n + 4) bytes), invalid ones as
 * U+FFFD. Returns the number of bytes written. With flush what is held back comes out as U+FFFD. */
size_t utf8_stream(Utf8Stream *s, const char *bytes, size_t n, bool flush, char *out);
#endif
