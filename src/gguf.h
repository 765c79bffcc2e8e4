/* gguf.h - GGUF version 3: a file (or its shards) as named tensors and metadata, and a writer.
 * Everything is checked when the file is opened; afterwards views may be trusted. */
#ifndef GGUF_H
#define GGUF_H
#include "base.h"

typedef enum GgufKind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
} GgufKind;

typedef struct GgufString {
    const char *s; /* not terminated */
    size_t n;
} GgufString;

/* A metadata value as it lies in the file. For arrays kind is GGUF_ARRAY, item its element kind
 * (never GGUF_ARRAY: nested arrays are refused), n the element count, data the first element; else
 * item is kind and n is 1. Strings are led by their length, 8 bytes: use the calls below. */
typedef struct GgufValue {
    GgufString key;
    GgufKind kind, item;
    uint64_t n;
    const uint8_t *data;
    size_t n_bytes;
} GgufValue;

typedef struct GgufTensor {
    const char *name; /* terminated; belongs to the Gguf */
    int type;         /* GGUF type id, one of types.def */
    int n_dims;
    uint64_t ne[4]; /* fastest first; unused ones are 1 */
    const uint8_t *data;
    size_t n_bytes;
} GgufTensor;

typedef struct Gguf Gguf;
/* Opens PATH; where it is a shard (-0000I-of-0000N.gguf) all shards are opened and their tensors
 * joined. */
int gguf_open(Gguf **out, const char *path, bool no_mmap, const DibitAllocator *memory,
              DibitError *err);
/* From an image in memory; from those of all shards in their order. */
int gguf_open_memory(Gguf **out, const void *data, size_t size, const DibitAllocator *memory,
                     DibitError *err);
int gguf_open_images(Gguf **out, const DibitImage *images, size_t n, const DibitAllocator *memory,
                     DibitError *err);
/* Opens what the first bytes of images say, present[i] of images[i].size: all but the tensors'
 * data, which is NULL for an image that is not all there. A size of 0 is unknown: it becomes what
 * the tensors take. Returns 1 and *out NULL where a header is longer: the need[i] that is not 0 is
 * worth trying. */
int gguf_peek(Gguf **out, const DibitImage *images, const size_t *present, size_t n, size_t *need,
              const DibitAllocator *memory, DibitError *err);
void gguf_close(Gguf **g);

int gguf_n_tensors(const Gguf *g);
const GgufTensor *gguf_tensor(const Gguf *g, int i);
const GgufTensor *gguf_find(const Gguf *g, const char *name); /* NULL if there is none; hashed */
size_t gguf_file_bytes(const Gguf *g);                        /* of all shards */
size_t gguf_data_start(const Gguf *g); /* where tensors begin in the first shard */

int gguf_n_values(const Gguf *g);
const GgufValue *gguf_value(const Gguf *g, int i);
const GgufValue *gguf_get(const Gguf *g, const char *key); /* NULL if there is none */
/* Typed look-ups: true and *out set when the key is there, of any integer (float) kind, and in
 * range. */
bool gguf_get_u64(const Gguf *g, const char *key, uint64_t *out);
bool gguf_get_f64(const Gguf *g, const char *key, double *out); /* integers too */
bool gguf_get_bool(const Gguf *g, const char *key, bool *out);
bool gguf_get_string(const Gguf *g, const char *key, GgufString *out);
/* Element i of an array of scalars (any integer or float kind), as double / int64. */
int64_t gguf_item_i64(const GgufValue *v, uint64_t i);
double gguf_item_f64(const GgufValue *v, uint64_t i);
/* Walks an array of strings: start with cursor 0; call n times. */
GgufString gguf_next_string(const GgufValue *v, size_t *cursor);

/* ---- writer: put metadata and declare tensors, then begin, then write each tensor's bytes in
 * order ---- */
typedef struct GgufWriter GgufWriter;
int gguf_writer_create(GgufWriter **out, DibitError *err);
void gguf_writer_free(GgufWriter **w); /* also removes an unfinished file */
/* A put replaces an earlier value of the same key. Out of memory is remembered and reported by
 * begin. */
void gguf_put_u32(GgufWriter *w, const char *key, uint32_t v);
void gguf_put_u64(GgufWriter *w, const char *key, uint64_t v);
void gguf_put_f32(GgufWriter *w, const char *key, float v);
void gguf_put_bool(GgufWriter *w, const char *key, bool v);
void gguf_put_string(GgufWriter *w, const char *key, const char *s, size_t n);
void gguf_put_strings(GgufWriter *w, const char *key, const GgufString *v, uint64_t n);
void gguf_put_array(GgufWriter *w, const char *key, GgufKind item, const void *data,
                    uint64_t n);                        /* scalars */
void gguf_put_value(GgufWriter *w, const GgufValue *v); /* a copy of another file's value */
void gguf_put_tensor(GgufWriter *w, const char *name, int type, int n_dims, const uint64_t *ne,
                     size_t n_bytes);
uint64_t gguf_writer_size(const GgufWriter *w); /* bytes of the finished file */
int gguf_begin(GgufWriter *w, const char *path,
               DibitError *err); /* creates the file, writes the header */
int gguf_write(GgufWriter *w, const void *data, size_t n,
               DibitError *err);                 /* tensor bytes; padding is added */
int gguf_finish(GgufWriter *w, DibitError *err); /* all bytes there? then the file appears */
/* Writes the file anew, atomically, with the values that `change` adds or replaces. */
int gguf_rewrite(const char *path, void (*change)(GgufWriter *w, const void *user),
                 const void *user, DibitError *err);
/* Begin and finish into memory instead of a file: *out gets the image, to be freed with
 * mem_free(NULL,
 * ...). */
int gguf_begin_memory(GgufWriter *w, DibitError *err);
int gguf_finish_memory(GgufWriter *w, uint8_t **out, size_t *size, DibitError *err);
#endif
