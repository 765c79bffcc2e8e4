/* safetensors.h - the tensors of a .safetensors file, or of a model folder with its shards.
 * Everything is checked when the file is opened; afterwards views may be trusted. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H
#include <jansson.h>

#include "base.h"

typedef enum StType { ST_F32, ST_F16, ST_BF16 } StType;
enum { ST_DIMS = 4 };

typedef struct StTensor {
    const char *name; /* terminated; belongs to the SafeTensors, as the data does */
    StType type;
    int n_dims;
    uint64_t shape[ST_DIMS]; /* slowest first: rows, columns; unused ones are 1 */
    const uint8_t *data;     /* not aligned */
    size_t n_bytes;
} StTensor;

typedef struct SafeTensors SafeTensors;
/* Opens DIR/model.safetensors, or the shards that DIR/model.safetensors.index.json names. */
int safetensors_open(SafeTensors **out, const char *dir, DibitError *err);
int safetensors_open_memory(SafeTensors **out, const void *data, size_t size, DibitError *err);
void safetensors_close(SafeTensors **st); /* NULL is fine; sets *st to NULL */

int safetensors_count(const SafeTensors *st);
const StTensor *safetensors_tensor(const SafeTensors *st, int i);          /* sorted by name */
const StTensor *safetensors_find(const SafeTensors *st, const char *name); /* NULL: not there */
/* Reads n values from element `start` on. */
void safetensors_read(const StTensor *t, size_t start, size_t n, float *dst);

/* Reads a whole JSON file of at most max_bytes and max_values values; the caller decrefs *out. */
int json_read(json_t **out, const char *path, size_t max_bytes, size_t max_values, DibitError *err);
#endif
