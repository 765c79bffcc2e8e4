/* shape.h - models of a named shape with random weights, made in memory, for benchmarks of speed.
 */
#ifndef SHAPE_H
#define SHAPE_H
#include "base.h"

/* Names of the shapes, NULL-terminated: "llama-3.2-1b", "llama-2-7b", "base-34m". */
const char *const *shape_names(void);
/* A GGUF image without a tokenizer: block matrices in `type`, embedding and output in head_type
 * (tied where the shape ties them), vocabulary n_vocab (0: 32000). *image is freed with
 * mem_free(NULL, *image). */
int shape_make(uint8_t **image, size_t *size, const char *shape, const char *type,
               const char *head_type, int n_vocab, DibitError *err);
#endif
