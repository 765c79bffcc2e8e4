/* vocab.h - the inside of the tokenizer: the loaded vocabulary (vocab.c), the splitting of text
 * into words (pretok.c) and the merging of a word's symbols into tokens (merge.c). For these files
 * and tokenizer.c alone; read-only once open. */
#ifndef VOCAB_H
#define VOCAB_H
#include "tokenizer.h"

/* As in tokenizer.ggml.token_type. */
typedef enum TokenKind {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN,
    TOKEN_CONTROL,
    TOKEN_USER_DEFINED,
    TOKEN_UNUSED,
    TOKEN_BYTE
} TokenKind;

typedef struct Token {
    const char *text;  // as in the file, not terminated
    const char *bytes; // what it stands for: byte-level alphabet, U+2581 and <0xXX> decoded
    uint32_t n_text, n_bytes;
    uint8_t kind; // TokenKind
    bool is_end;  // generation ends here
} Token;

typedef struct Merge {
    int32_t left, right, id; // id: the token they form; its rank is the index
} Merge;

/* The end of the word that starts at pos < n. */
typedef size_t SplitFn(const uint8_t *text, size_t n, size_t pos);
typedef struct PreTokenizer {
    const char *name; // a value of tokenizer.ggml.pre
    SplitFn *split;
    bool whole_words; // a word that is a token stays whole, whatever the merges say
    bool add_bos;     // unless tokenizer.ggml.add_bos_token says otherwise
} PreTokenizer;
const PreTokenizer *pretokenizer_find(const char *name, size_t n); // NULL if unknown

struct Tokenizer {
    const DibitAllocator *memory;
    Arena arena;
    Token *tokens;
    int32_t n_vocab, bos, eos, unknown; // ids; -1: none
    uint32_t max_text;                  // the longest token's text
    bool add_bos;

    uint32_t *slots; // text -> id + 1, open addressing; 0: empty
    size_t slot_mask;

    const Token **special; // control, user-defined and unknown tokens in the order of their bytes
    uint32_t special_first[257]; // the first one at or after this first byte
    bool has_user_defined;

    int32_t byte_id[256];    // the token of a byte that nothing else covers; -1: none
    const PreTokenizer *pre; // byte-level BPE; NULL: SPM
    Merge *merges;
    uint32_t *merge_slots; // (left, right) -> rank + 1
    size_t merge_mask;

    uint32_t *order;       // SPM: the score of each token, turned into a key that sorts best first
    bool add_space_prefix; // SPM
    bool space_starts;     // SPM: no token has U+2581 behind something else, so words part there
};

int vocab_load(Tokenizer *t, const Gguf *file, DibitError *err);
int32_t vocab_find(const Tokenizer *t, const char *text, size_t n); // -1: none
int32_t vocab_merge(const Tokenizer *t, int32_t left, int32_t right, uint32_t *rank);

/* Where ids go: counted in full, stored up to cap. */
typedef struct IdList {
    int32_t *ids;
    size_t cap, n;
} IdList;
static inline void id_push(IdList *out, int32_t id) {
    if (out->n < out->cap) out->ids[out->n] = id;
    out->n++;
}

typedef struct Symbol {
    uint32_t start;     // first byte in the word
    int32_t prev, next; // -1 at the ends
    int32_t id;         // its token; -1: none
    int32_t pair;       // the token it would form with the next one; -1: none
    uint32_t key;       // the least goes first; of pair
} Symbol;
typedef struct MergeWork {
    const DibitAllocator *memory;
    Symbol *symbols;
    uint64_t
        *heap; // key << 32 | symbol, of every pair that may merge and of some that no longer do
    size_t cap, n_heap;
    char *text; // a word in the byte-level alphabet, max_text bytes
} MergeWork;
/* Appends a word's tokens to out. Time is O(n log n) in its bytes. */
int merge_word(const Tokenizer *t, MergeWork *w, const char *word, size_t n, IdList *out,
               DibitError *err);
void merge_free(MergeWork *w);
#endif
