/* convert.h - a Hugging Face model folder into one GGUF file. */
#ifndef CONVERT_H
#define CONVERT_H
#include <jansson.h>

#include "gguf.h"

typedef struct ConvertOptions {
    const char *dir, *out;
    const char *type; /* "f16", "bf16", "f32", "q8" or "q4" */
    bool vocab_only;  /* no tensors */
    bool no_vocab;    /* no tokenizer */
    int n_threads;    /* 0: all */
    /* Called before each tensor; may be NULL. */
    void (*progress)(void *user, const char *name, uint64_t done, uint64_t total);
    void *user;
} ConvertOptions;

typedef struct ConvertResult {
    int n_tensors;
    uint64_t n_weights, file_bytes;
} ConvertResult;

/* Writes opt->out atomically; nothing is left when it fails. */
int convert_model(const ConvertOptions *opt, ConvertResult *result, DibitError *err);

/* The tokenizer's share (convert_vocab.c): reads tokenizer.json and what belongs to it in dir and
 * puts the tokenizer.* keys. config is config.json, NULL where there is none. n_vocab: rows of the
 * embedding, 0 if unknown; shorter vocabularies are padded to it. *n_tokens is what was written. */
int convert_vocab(GgufWriter *w, const char *dir, const json_t *config, uint64_t n_vocab,
                  uint64_t *n_tokens, DibitError *err);

/* Reads DIR/NAME as JSON; *out is NULL, without an error, where the file does not exist. */
int convert_json(json_t **out, const char *dir, const char *name, DibitError *err);
#endif
