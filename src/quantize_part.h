/* quantize_part.h - tensors that an earlier, interrupted run of quantize_file() has finished. */
#ifndef QUANTIZE_PART_H
#define QUANTIZE_PART_H
#include "base.h"

/* The file OUT.part: a header with the key of the work, then finished tensors one after another,
 * each with a checksum. A record that is damaged or cut off ends it. */
typedef struct QuantizePart {
    char *path;
    uint64_t key; /* of input, options and version: what the bytes depend on */
    FileMap old;
    size_t n_old; /* bytes of it that are whole */
    int fd;       /* -1: nothing has been added yet */
} QuantizePart;

/* Reads what there is of the same work; another one's file counts as none. */
int quantize_part_open(QuantizePart *p, const char *out_path, uint64_t key, DibitError *err);
/* The finished bytes of a tensor, or NULL; results: two figures that were kept with it. */
const uint8_t *quantize_part_find(const QuantizePart *p, const char *name, size_t n_bytes,
                                  double results[2]);
int quantize_part_add(QuantizePart *p, const char *name, const uint8_t *data, size_t n_bytes,
                      const double results[2], DibitError *err);
/* Forgets the file, or leaves it for the next run. */
void quantize_part_close(QuantizePart *p, bool keep);
#endif
