/* safetensors.c - reads .safetensors files: owns the mapped bytes and one table of tensors, sorted
 * by name. The header is walked entry by entry, so that its size alone bounds the memory it costs;
 * the tensors' bytes must fill the file from the header's end to its last byte without holes. */
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_HEADER = 16 << 20,
    MAX_TENSORS = 1 << 16,
    MAX_ENTRY = 4096,      /* bytes of one tensor's description */
    MAX_COMMENT = 1 << 18, /* bytes of __metadata__, which nobody reads here */
    MAX_FILES = 4096,
    MAX_PATH = 4096
};

typedef struct File {
    char *name;
    FileMap map;
} File;

struct SafeTensors {
    Arena arena; /* names */
    File *files;
    int n_files;
    StTensor *tensors;
    int n_tensors, cap_tensors;
};

/* ---- JSON ---- */

/* An upper bound of the number of values in the text: what opens or separates one. */
static size_t count_values(const uint8_t *p, size_t n) {
    size_t values = 1;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        if (quoted) {
            if (p[i] == '\\')
                i++;
            else if (p[i] == '"')
                quoted = false;
        } else if (p[i] == '"') {
            quoted = true;
        } else if (p[i] == ',' || p[i] == '[' || p[i] == '{') {
            values++;
        }
    }
    return values;
}

int json_read(json_t **out, const char *path, size_t max_bytes, size_t max_values,
              DibitError *err) {
    FileMap map;
    json_error_t je;
    *out = NULL;
    int r = file_map(&map, path, false, NULL, err);
    if (r != 0) return r;
    if (map.size > max_bytes || count_values(map.data, map.size) > max_values)
        r = fail(err, DIBIT_E_UNSUPPORTED, "%s: more than %zu bytes or %zu values", path, max_bytes,
                 max_values);
    if (r == 0) {
        *out = json_loadb((const char *)map.data, map.size, JSON_REJECT_DUPLICATES, &je);
        if (!*out) r = fail(err, DIBIT_E_FORMAT, "%s: line %d: %s", path, je.line, je.text);
    }
    file_unmap(&map);
    return r;
}

typedef struct Cursor {
    const char *name; /* of the file, for errors */
    const char *p, *end;
} Cursor;

static char next_char(Cursor *c) { /* skips blanks; 0 at the end */
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r'))
        c->p++;
    return c->p < c->end ? *c->p : 0;
}

/* Parses one JSON value of at most `max` bytes and moves behind it; NULL: err is set. */
static json_t *next_value(Cursor *c, size_t max, DibitError *err) {
    json_error_t je;
    size_t room = (size_t)(c->end - c->p);
    json_t *v = json_loadb(c->p, MIN(room, max),
                           JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK, &je);
    if (v)
        c->p += je.position;
    else if (room > max && json_error_code(&je) == json_error_premature_end_of_input)
        fail(err, DIBIT_E_UNSUPPORTED, "%s: an entry of the header is longer than %zu bytes",
             c->name, max);
    else
        fail(err, DIBIT_E_FORMAT, "%s: the header is not valid JSON: %s", c->name, je.text);
    return v;
}

/* ---- tensors ---- */

static int shape_of(Cursor *c, StTensor *t, const json_t *shape, size_t *n, DibitError *err) {
    size_t dims = json_array_size(shape);
    if (!json_is_array(shape) || dims > ST_DIMS)
        return fail(err, DIBIT_E_FORMAT, "%s: %s: the shape must be a list of at most %d numbers",
                    c->name, t->name, ST_DIMS);
    *n = 1;
    t->n_dims = (int)dims;
    for (size_t d = 0; d < ST_DIMS; d++) {
        const json_t *v = json_array_get(shape, d);
        json_int_t x = d < dims ? json_integer_value(v) : 1;
        if (x <= 0 || (uint64_t)x > SIZE_MAX || !size_mul(*n, (size_t)x, n))
            return fail(err, DIBIT_E_FORMAT, "%s: %s: dimension %zu is zero or too large", c->name,
                        t->name, d);
        t->shape[d] = (uint64_t)x;
    }
    return 0;
}

static int describe(Cursor *c, StTensor *t, const json_t *v, const uint8_t *data, size_t n_data,
                    DibitError *err) {
    static const struct {
        const char *name;
        size_t bytes;
    } types[] = { { "F32", 4 }, { "F16", 2 }, { "BF16", 2 } };
    const char *type = json_string_value(json_object_get(v, "dtype"));
    const json_t *offsets = json_object_get(v, "data_offsets");
    size_t n = 0, want = 0, k = 0;
    if (!type || json_array_size(offsets) != 2)
        return fail(err, DIBIT_E_FORMAT, "%s: %s: dtype or data_offsets is missing", c->name,
                    t->name);
    while (k < ARRAY_LEN(types) && strcmp(type, types[k].name) != 0) k++;
    if (k == ARRAY_LEN(types))
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "%s: %s: dtype %.20s is not supported, only F32, F16 and BF16 are", c->name,
                    t->name, type);
    t->type = (StType)k;
    int r = shape_of(c, t, json_object_get(v, "shape"), &n, err);
    if (r != 0) return r;
    const json_t *j0 = json_array_get(offsets, 0), *j1 = json_array_get(offsets, 1);
    json_int_t from = json_integer_value(j0), to = json_integer_value(j1);
    if (!json_is_integer(j0) || !json_is_integer(j1) || from < 0 || to < from ||
        (uint64_t)to > n_data)
        return fail(
            err, DIBIT_E_FORMAT,
            "%s: %s: its bytes %lld to %lld are not in the file: it is truncated or damaged",
            c->name, t->name, (long long)from, (long long)to);
    t->n_bytes = (size_t)(to - from);
    t->data = data + from;
    if (!size_mul(n, types[k].bytes, &want) || want != t->n_bytes)
        return fail(err, DIBIT_E_FORMAT, "%s: %s: %zu bytes, its shape and type need %zu", c->name,
                    t->name, t->n_bytes, want);
    return 0;
}

static StTensor *add_tensor(SafeTensors *st) {
    if (st->n_tensors == st->cap_tensors) {
        int cap = st->cap_tensors ? st->cap_tensors * 2 : 256;
        StTensor *more = realloc(st->tensors, (size_t)cap * sizeof *more);
        if (!more) return NULL;
        st->tensors = more;
        st->cap_tensors = cap;
    }
    StTensor *t = &st->tensors[st->n_tensors++];
    *t = (StTensor){ 0 };
    return t;
}

/* One `"name": {...}` of the header. */
static int parse_entry(SafeTensors *st, Cursor *c, const uint8_t *data, size_t n_data,
                       DibitError *err) {
    if (next_char(c) != '"')
        return fail(err, DIBIT_E_FORMAT, "%s: the header is not valid JSON: a name is expected",
                    c->name);
    json_t *key = next_value(c, MAX_ENTRY, err);
    if (!key) return DIBIT_E_FORMAT;
    const char *name = json_string_value(key);
    bool comment = strcmp(name, "__metadata__") == 0;
    int r = 0;
    json_t *v = NULL;
    if (next_char(c) != ':') {
        r = fail(err, DIBIT_E_FORMAT, "%s: the header is not valid JSON: a colon is expected",
                 c->name);
    } else {
        c->p++;
        v = next_value(c, comment ? MAX_COMMENT : MAX_ENTRY, err);
        if (!v) r = DIBIT_E_FORMAT;
    }
    if (r == 0 && !comment) {
        StTensor *t = st->n_tensors < MAX_TENSORS ? add_tensor(st) : NULL;
        if (t) t->name = arena_string(&st->arena, name, strlen(name));
        if (!t || !t->name)
            r = fail(err, DIBIT_E_MEMORY, "%s: more than %d tensors, or no memory for them",
                     c->name, MAX_TENSORS);
        else
            r = describe(c, t, v, data, n_data, err);
    }
    json_decref(v);
    json_decref(key);
    return r;
}

static int by_data(const void *a, const void *b) {
    const StTensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

static int parse_header(SafeTensors *st, Cursor *c, const uint8_t *data, size_t n_data,
                        DibitError *err) {
    if (next_char(c) != '{')
        return fail(err, DIBIT_E_FORMAT, "%s: the header is not a JSON object", c->name);
    c->p++;
    if (next_char(c) == '}') {
        c->p++;
    } else {
        for (;;) {
            int r = parse_entry(st, c, data, n_data, err);
            if (r != 0) return r;
            char sep = next_char(c);
            if (sep != ',' && sep != '}')
                return fail(err, DIBIT_E_FORMAT, "%s: the header is not valid JSON", c->name);
            c->p++;
            if (sep == '}') break;
        }
    }
    if (next_char(c) != 0 || c->p != c->end)
        return fail(err, DIBIT_E_FORMAT, "%s: text follows the header's JSON", c->name);
    return 0;
}

static int add_image(SafeTensors *st, const char *name, const uint8_t *p, size_t size,
                     DibitError *err) {
    if (size < 8) return fail(err, DIBIT_E_FORMAT, "%s: not a safetensors file", name);
    uint64_t n = load_u64(p);
    if (n > size - 8)
        return fail(err, DIBIT_E_FORMAT,
                    "%s: not a safetensors file, or truncated: a header of %llu bytes", name,
                    (unsigned long long)n);
    if (n > MAX_HEADER)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: the header is larger than %d bytes", name,
                    MAX_HEADER);
    const uint8_t *data = p + 8 + n, *at = data;
    size_t n_data = size - 8 - (size_t)n;
    int first = st->n_tensors;
    Cursor c = { name, (const char *)p + 8, (const char *)data };
    int r = parse_header(st, &c, data, n_data, err);
    if (r != 0) return r;
    size_t count = (size_t)(st->n_tensors - first);
    if (count) qsort(st->tensors + first, count, sizeof *st->tensors, by_data);
    for (int i = first; i < st->n_tensors; i++) {
        if (st->tensors[i].data != at)
            return fail(err, DIBIT_E_FORMAT, "%s: %s: a hole or an overlap before its data", name,
                        st->tensors[i].name);
        at += st->tensors[i].n_bytes;
    }
    if (at != data + n_data)
        return fail(err, DIBIT_E_FORMAT, "%s: %zu bytes follow the last tensor", name,
                    (size_t)(data + n_data - at));
    return 0;
}

static int sort_names(SafeTensors *st, DibitError *err) {
    if (st->n_tensors) qsort(st->tensors, (size_t)st->n_tensors, sizeof *st->tensors, by_name);
    for (int i = 1; i < st->n_tensors; i++)
        if (by_name(&st->tensors[i - 1], &st->tensors[i]) == 0)
            return fail(err, DIBIT_E_FORMAT, "the tensor %s is there twice", st->tensors[i].name);
    return 0;
}

/* ---- files ---- */

static int join(char *out, const char *dir, const char *name, DibitError *err) {
    int n = snprintf(out, MAX_PATH, "%s/%s", dir, name);
    if (n < 0 || n >= MAX_PATH) return fail(err, DIBIT_E_ARGUMENT, "the path is too long");
    return 0;
}

static File *find_file(SafeTensors *st, const char *name) {
    for (int i = 0; i < st->n_files; i++)
        if (strcmp(st->files[i].name, name) == 0) return &st->files[i];
    return NULL;
}

static int add_file(SafeTensors *st, const char *dir, const char *name, DibitError *err) {
    char path[MAX_PATH];
    if (st->n_files == MAX_FILES)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: more than %d files", dir, MAX_FILES);
    File *more = realloc(st->files, (size_t)(st->n_files + 1) * sizeof *more);
    if (more) st->files = more;
    char *copy = arena_string(&st->arena, name, strlen(name));
    if (!more || !copy) return fail(err, DIBIT_E_MEMORY, "%s: no memory to open it", name);
    File *f = &more[st->n_files];
    *f = (File){ .name = copy };
    int r = join(path, dir, name, err);
    if (r == 0) r = file_map(&f->map, path, false, NULL, err);
    if (r != 0) return r;
    st->n_files++;
    return add_image(st, copy, f->map.data, f->map.size, err);
}

static bool plain_file_name(const char *s) {
    return s[0] && s[0] != '.' && !strchr(s, '/') && !strchr(s, '\\');
}

static int open_index(SafeTensors *st, const char *dir, const char *path, DibitError *err) {
    json_t *index, *map, *v;
    const char *name;
    int r = json_read(&index, path, MAX_HEADER, 4 * MAX_TENSORS, err);
    if (r != 0) return r;
    map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) r = fail(err, DIBIT_E_FORMAT, "%s: no weight_map", path);
    json_object_foreach(map, name, v) {
        const char *file = json_string_value(v);
        if (r == 0 && (!file || !plain_file_name(file)))
            r = fail(err, DIBIT_E_FORMAT, "%s: %.64s: its file is not a plain file name", path,
                     name);
        if (r == 0 && !find_file(st, file)) r = add_file(st, dir, file, err);
        if (r != 0) break;
    }
    if (r == 0) r = sort_names(st, err);
    if (r == 0) json_object_foreach(map, name, v) {
            const StTensor *t = safetensors_find(st, name);
            const File *f = find_file(st, json_string_value(v));
            if (!t || t->data < f->map.data || t->data > f->map.data + f->map.size) {
                r = fail(err, DIBIT_E_FORMAT, "%s: the tensor %.64s is not in %s", path, name,
                         f->name);
                break;
            }
        }
    json_decref(index);
    return r;
}

int safetensors_open(SafeTensors **out, const char *dir, DibitError *err) {
    char path[MAX_PATH];
    *out = NULL;
    int r = join(path, dir, "model.safetensors.index.json", err);
    if (r != 0) return r;
    SafeTensors *st = calloc(1, sizeof *st);
    if (!st) return fail(err, DIBIT_E_MEMORY, "%s: no memory to open it", dir);
    FILE *index = fopen(path, "rb");
    if (index) {
        fclose(index);
        r = open_index(st, dir, path, err);
    } else {
        r = add_file(st, dir, "model.safetensors", err);
        if (r == 0) r = sort_names(st, err);
    }
    if (r != 0) {
        safetensors_close(&st);
        return r;
    }
    *out = st;
    return 0;
}

int safetensors_open_memory(SafeTensors **out, const void *data, size_t size, DibitError *err) {
    *out = NULL;
    SafeTensors *st = calloc(1, sizeof *st);
    if (!st) return fail(err, DIBIT_E_MEMORY, "no memory to open the safetensors image");
    int r = add_image(st, "safetensors image", data, size, err);
    if (r == 0) r = sort_names(st, err);
    if (r != 0) {
        safetensors_close(&st);
        return r;
    }
    *out = st;
    return 0;
}

void safetensors_close(SafeTensors **sp) {
    SafeTensors *st = *sp;
    *sp = NULL;
    if (!st) return;
    for (int i = 0; i < st->n_files; i++) file_unmap(&st->files[i].map);
    free(st->files);
    free(st->tensors);
    arena_free(&st->arena);
    free(st);
}

/* ---- looking ---- */

int safetensors_count(const SafeTensors *st) {
    return st->n_tensors;
}

const StTensor *safetensors_tensor(const SafeTensors *st, int i) {
    return &st->tensors[i];
}

const StTensor *safetensors_find(const SafeTensors *st, const char *name) {
    StTensor key = { .name = name };
    if (!st->n_tensors) return NULL;
    return bsearch(&key, st->tensors, (size_t)st->n_tensors, sizeof key, by_name);
}

void safetensors_read(const StTensor *t, size_t start, size_t n, float *dst) {
    if (t->type == ST_F32) {
        memcpy(dst, t->data + start * 4, n * 4);
        return;
    }
    const uint8_t *p = t->data + start * 2;
    if (t->type == ST_F16)
        for (size_t i = 0; i < n; i++) dst[i] = f16_to_f32(load_u16(p + i * 2));
    else
        for (size_t i = 0; i < n; i++) dst[i] = bf16_to_f32(load_u16(p + i * 2));
}
