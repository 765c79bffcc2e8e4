/* gguf.c - opens GGUF files: owns the mapped bytes and the tables of values and tensors.
 * Every count, length, type, offset and size is checked here, before it is used and before memory
 * is asked for; what a Gguf hands out afterwards may be trusted. The layout is that of version 3
 * (version 2 has the same bytes), little-endian. */
#include "gguf.h"
#include "codec.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_VALUES = 1 << 16,  /* with MAX_TENSORS: bounds the memory of a hostile file to 64 MB */
    MAX_TENSORS = 1 << 18, /* in all shards together */
    MAX_SHARDS = 1024,
    MAX_KEY = 65535,
    MAX_ALIGN = 1 << 20, /* a copy of the file pads its tensors to it */
    MAX_NAME = 64,
    MAX_PROBES = 128, /* a table a quarter full needs about 20; more is a forged set of names */
    MIN_VALUE_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
    TAIL = 64 /* of a shard's name */
};

/* Open addressing: slot = element + 1, 0 is free. */
typedef struct Index {
    uint32_t *slots;
    size_t mask;
} Index;

typedef struct Values {
    GgufValue *v;
    int n;
    Index index;
} Values;

typedef struct Shard {
    FileMap map;      /* data NULL: the image belongs to the caller */
    const uint8_t *p; /* the file's bytes, or the first of them */
    size_t size, pos; /* size: of the file; pos: of the next byte to parse */
    size_t present;   /* bytes that are there; less than size: tensors have no data */
    size_t need;      /* where present bytes were too few: so many, at least */
    bool endless;     /* nobody knows the size, until the tensors' descriptions say it */
    const char *name; /* for errors */
    uint64_t n_values, n_tensors;
    size_t align;
} Shard;

struct Gguf {
    const DibitAllocator *memory;
    Arena arena; /* names */
    Shard *shards;
    int n_shards;
    Values values;
    GgufTensor *tensors;
    int n_tensors;
    Index index;
};

/* ---- reading bytes ---- */

static int truncated(const Shard *s, DibitError *err) {
    if (s->need) return fail(err, DIBIT_E_FORMAT, "%s: more of its header is needed", s->name);
    return fail(err, DIBIT_E_FORMAT, "%s: the file ends inside its header: it is truncated",
                s->name);
}

static bool take(Shard *s, size_t n, const uint8_t **out) {
    if (n > s->size - s->pos) return false;
    if (n > s->present - s->pos) {
        s->need = s->pos + n;
        return false;
    }
    *out = s->p + s->pos;
    s->pos += n;
    return true;
}

static bool take_u32(Shard *s, uint32_t *out) {
    const uint8_t *p;
    if (!take(s, 4, &p)) return false;
    *out = load_u32(p);
    return true;
}

static bool take_u64(Shard *s, uint64_t *out) {
    const uint8_t *p;
    if (!take(s, 8, &p)) return false;
    *out = load_u64(p);
    return true;
}

static bool take_string(Shard *s, GgufString *out) {
    uint64_t n;
    const uint8_t *p;
    if (!take_u64(s, &n) || n > s->size - s->pos || !take(s, (size_t)n, &p)) return false;
    *out = (GgufString){ (const char *)p, (size_t)n };
    return true;
}

/* Printable ASCII without blanks, so that names can be shown and compared as they are. */
static bool plain_name(GgufString s, size_t max) {
    if (s.n == 0 || s.n > max) return false;
    for (size_t i = 0; i < s.n; i++)
        if (s.s[i] <= ' ' || s.s[i] > '~') return false;
    return true;
}

/* ---- hashed look-up ---- */

static int index_create(Index *x, size_t n, const DibitAllocator *memory) {
    size_t size = 8;
    while (size < 4 * n) size *= 2;
    x->slots = mem_calloc(memory, size, sizeof *x->slots);
    x->mask = size - 1;
    return x->slots ? 0 : DIBIT_E_MEMORY;
}

static const char *value_name(const void *list, uint32_t i, size_t *n) {
    const GgufValue *v = (const GgufValue *)list + i;
    *n = v->key.n;
    return v->key.s;
}

static const char *tensor_name(const void *list, uint32_t i, size_t *n) {
    const GgufTensor *t = (const GgufTensor *)list + i;
    *n = strlen(t->name);
    return t->name;
}

typedef const char *NameFn(const void *list, uint32_t i, size_t *n);

/* The slot that holds this name, or the free one where it would go; NULL after too many probes. */
static uint32_t *index_slot(const Index *x, const void *list, NameFn *name_of, const char *s,
                            size_t n) {
    size_t at = (size_t)hash64(0, s, n);
    for (int i = 0; i < MAX_PROBES; i++, at++) {
        uint32_t *slot = &x->slots[at & x->mask];
        if (*slot == 0) return slot;
        size_t have_n;
        const char *have = name_of(list, *slot - 1, &have_n);
        if (have_n == n && memcmp(have, s, n) == 0) return slot;
    }
    return NULL;
}

/* ---- metadata ---- */

static size_t kind_bytes(uint32_t kind) {
    static const uint8_t size[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    return size[kind];
}

static int parse_elements(Shard *s, GgufValue *v, GgufKind item, DibitError *err) {
    size_t size = kind_bytes(item), start = s->pos, total;
    const uint8_t *p;
    if (item == GGUF_STRING) {
        GgufString text;
        if (v->n > (s->size - s->pos) / 8) return truncated(s, err);
        v->data = s->p + s->pos;
        for (uint64_t i = 0; i < v->n; i++)
            if (!take_string(s, &text)) return truncated(s, err);
        v->n_bytes = s->pos - start;
        return 0;
    }
    if (v->n > s->size || !size_mul((size_t)v->n, size, &total) || !take(s, total, &p))
        return truncated(s, err);
    v->data = p;
    v->n_bytes = total;
    if (item == GGUF_BOOL)
        for (size_t i = 0; i < total; i++)
            if (p[i] > 1)
                return fail(err, DIBIT_E_FORMAT, "%s: %.*s: a bool is %d, it can be 0 or 1 only",
                            s->name, (int)MIN(v->key.n, 80), v->key.s, p[i]);
    return 0;
}

static int parse_value(Shard *s, GgufValue *v, DibitError *err) {
    uint32_t kind, item;
    if (!take_string(s, &v->key)) return truncated(s, err);
    if (!plain_name(v->key, MAX_KEY))
        return fail(err, DIBIT_E_FORMAT, "%s: a metadata key is empty, too long or not plain ASCII",
                    s->name);
    if (!take_u32(s, &kind)) return truncated(s, err);
    int n = (int)MIN(v->key.n, 80);
    if (kind > GGUF_F64)
        return fail(err, DIBIT_E_FORMAT, "%s: %.*s: unknown value type %u", s->name, n, v->key.s,
                    kind);
    v->kind = v->item = (GgufKind)kind;
    v->n = 1;
    if (kind == GGUF_ARRAY) {
        if (!take_u32(s, &item) || !take_u64(s, &v->n)) return truncated(s, err);
        if (item > GGUF_F64 || item == GGUF_ARRAY)
            return fail(err, DIBIT_E_FORMAT, "%s: %.*s: an array of element type %u is not allowed",
                        s->name, n, v->key.s, item);
        v->item = (GgufKind)item;
    }
    return parse_elements(s, v, v->item, err);
}

static int parse_head(Shard *s, DibitError *err) {
    const uint8_t *magic;
    uint32_t version;
    if (!take(s, 4, &magic) || memcmp(magic, "GGUF", 4) != 0)
        return fail(err, DIBIT_E_FORMAT, "%s: not a GGUF file", s->name);
    if (!take_u32(s, &version)) return truncated(s, err);
    if (version && (version & 0xffff) == 0)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "%s: a big-endian GGUF file; convert the model again as little-endian",
                    s->name);
    if (version != 2 && version != 3)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "%s: GGUF version %u is not supported (2 and 3 are); convert the model again",
                    s->name, version);
    if (!take_u64(s, &s->n_tensors) || !take_u64(s, &s->n_values)) return truncated(s, err);
    size_t room = s->size - s->pos;
    if (s->n_values > room / MIN_VALUE_BYTES || s->n_tensors > room / MIN_TENSOR_BYTES)
        return fail(err, DIBIT_E_FORMAT,
                    "%s: %llu keys and %llu tensors cannot be in %zu bytes: truncated or damaged",
                    s->name, (unsigned long long)s->n_values, (unsigned long long)s->n_tensors,
                    s->size);
    if (s->n_values > MAX_VALUES || s->n_tensors > MAX_TENSORS)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: more than %d keys or %d tensors", s->name,
                    MAX_VALUES, MAX_TENSORS);
    return 0;
}

static int parse_values(Shard *s, Values *out, const DibitAllocator *memory, DibitError *err) {
    out->v = mem_calloc(memory, MAX((size_t)s->n_values, 1), sizeof *out->v);
    if (!out->v || index_create(&out->index, (size_t)s->n_values, memory) != 0)
        return fail(err, DIBIT_E_MEMORY, "%s: no memory for the metadata", s->name);
    for (uint64_t i = 0; i < s->n_values; i++) {
        GgufValue *v = &out->v[i];
        int r = parse_value(s, v, err);
        if (r != 0) return r;
        uint32_t *slot = index_slot(&out->index, out->v, value_name, v->key.s, v->key.n);
        if (!slot || *slot)
            return fail(err, DIBIT_E_FORMAT, "%s: the key %.*s is there twice", s->name,
                        (int)MIN(v->key.n, 80), v->key.s);
        *slot = (uint32_t)i + 1;
        out->n++;
    }
    return 0;
}

static void values_free(Values *v, const DibitAllocator *memory) {
    mem_free(memory, v->v);
    mem_free(memory, v->index.slots);
    *v = (Values){ 0 };
}

static const GgufValue *values_get(const Values *v, const char *key) {
    uint32_t *slot = index_slot(&v->index, v->v, value_name, key, strlen(key));
    return slot && *slot ? &v->v[*slot - 1] : NULL;
}

static bool value_u64(const GgufValue *v, uint64_t *out) {
    if (!v) return false;
    switch (v->kind) {
    case GGUF_U64:
        *out = load_u64(v->data);
        return true;
    case GGUF_U8:
    case GGUF_I8:
    case GGUF_U16:
    case GGUF_I16:
    case GGUF_U32:
    case GGUF_I32:
    case GGUF_I64: {
        int64_t x = gguf_item_i64(v, 0);
        if (x < 0) return false;
        *out = (uint64_t)x;
        return true;
    }
    default:
        return false;
    }
}

static int find_alignment(Shard *s, const Values *values, DibitError *err) {
    const GgufValue *v = values_get(values, "general.alignment");
    s->align = 32;
    if (!v) return 0;
    uint32_t a = v->kind == GGUF_U32 ? load_u32(v->data) : 0;
    if (a < 8 || a > MAX_ALIGN || (a & (a - 1)))
        return fail(err, DIBIT_E_FORMAT,
                    "%s: general.alignment must be a u32 power of two from 8 to %d", s->name,
                    MAX_ALIGN);
    s->align = a;
    return 0;
}

/* ---- tensors ---- */

static int tensor_size(const Shard *s, GgufTensor *t, uint32_t type, DibitError *err) {
    const TypeInfo *info = type <= INT32_MAX ? type_info((int)type) : NULL;
    if (!info)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "%s: %s: tensor type %u is not known here; convert or quantize the model to "
                    "another type",
                    s->name, t->name, type);
    size_t rows = 1;
    for (int d = 0; d < 4; d++) {
        if (t->ne[d] == 0 || t->ne[d] > SIZE_MAX / 2 ||
            (d > 0 && !size_mul(rows, (size_t)t->ne[d], &rows)))
            return fail(err, DIBIT_E_FORMAT, "%s: %s: dimension %d is zero or too large", s->name,
                        t->name, d);
    }
    t->type = (int)type;
    if (!type_bytes(info, rows, t->ne[0], &t->n_bytes) || t->n_bytes == 0)
        return fail(err, DIBIT_E_FORMAT, "%s: %s: %llu columns and %zu rows do not fit type %s",
                    s->name, t->name, (unsigned long long)t->ne[0], rows, info->name);
    return 0;
}

/* `next` is where the data must lie, relative to the data section: tensors follow each other
 * without holes, in the order of their descriptions, as all writers store them. */
static int parse_tensor(Gguf *g, Shard *s, size_t *next, DibitError *err) {
    GgufTensor *t = &g->tensors[g->n_tensors];
    GgufString name;
    uint32_t n_dims, type;
    uint64_t offset;
    if (!take_string(s, &name)) return truncated(s, err);
    if (!plain_name(name, MAX_NAME))
        return fail(err, DIBIT_E_FORMAT,
                    "%s: the name of tensor %d is empty, longer than %d bytes or not plain ASCII",
                    s->name, g->n_tensors, MAX_NAME);
    t->name = arena_string(&g->arena, name.s, name.n);
    if (!t->name) return fail(err, DIBIT_E_MEMORY, "%s: no memory for tensor names", s->name);
    if (!take_u32(s, &n_dims)) return truncated(s, err);
    if (n_dims < 1 || n_dims > 4)
        return fail(err, DIBIT_E_FORMAT, "%s: %s: %u dimensions, 1 to 4 are allowed", s->name,
                    t->name, n_dims);
    t->n_dims = (int)n_dims;
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d < n_dims && !take_u64(s, &t->ne[d])) return truncated(s, err);
    }
    if (!take_u32(s, &type) || !take_u64(s, &offset)) return truncated(s, err);
    int r = tensor_size(s, t, type, err);
    if (r != 0) return r;
    if (offset != *next)
        return fail(err, DIBIT_E_FORMAT, "%s: %s: data at offset %llu, expected %zu", s->name,
                    t->name, (unsigned long long)offset, *next);
    if (!size_add(*next, t->n_bytes, next) || !size_align(*next, s->align, next))
        return fail(err, DIBIT_E_FORMAT, "%s: %s: too large", s->name, t->name);
    uint32_t *slot = index_slot(&g->index, g->tensors, tensor_name, t->name, name.n);
    if (!slot || *slot)
        return fail(err, DIBIT_E_FORMAT, "%s: the tensor %s is there twice", s->name, t->name);
    *slot = (uint32_t)++g->n_tensors;
    return 0;
}

static int parse_tensors(Gguf *g, Shard *s, DibitError *err) {
    int first = g->n_tensors;
    size_t padded = 0, start, end;
    bool here = s->present == s->size;
    for (uint64_t i = 0; i < s->n_tensors; i++) {
        int r = parse_tensor(g, s, &padded, err);
        if (r != 0) return r;
    }
    if (!size_align(s->pos, s->align, &start) || !size_add(start, padded, &end))
        return fail(err, DIBIT_E_FORMAT, "%s: the tensors are too large", s->name);
    size_t at = 0;
    for (int i = first; i < g->n_tensors; i++) {
        GgufTensor *t = &g->tensors[i];
        size_t last = 0;
        if (!size_add(start, at, &at) || !size_add(at, t->n_bytes, &last) || last > s->size)
            return fail(err, DIBIT_E_FORMAT,
                        "%s: %s: its data ends at byte %zu of %zu: the file is truncated", s->name,
                        t->name, last, s->size);
        t->data = here ? s->p + at : NULL;
        at = last - start;
        if (!size_align(at, s->align, &at)) return truncated(s, err);
    }
    if (s->endless)
        s->size = end;
    else if (s->size > end) /* the last padding may be missing, nothing may follow it */
        return fail(err, DIBIT_E_FORMAT, "%s: %zu bytes follow the last tensor", s->name,
                    s->size - end);
    return 0;
}

static int tensors_create(Gguf *g, uint64_t n, DibitError *err) {
    if (n > MAX_TENSORS)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: more than %d tensors", g->shards[0].name,
                    MAX_TENSORS);
    g->tensors = mem_calloc(g->memory, MAX((size_t)n, 1), sizeof *g->tensors);
    if (!g->tensors || index_create(&g->index, (size_t)n, g->memory) != 0)
        return fail(err, DIBIT_E_MEMORY, "%s: no memory for the tensor table", g->shards[0].name);
    return 0;
}

/* ---- shards ---- */

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool shard_numbers(const char *path, int *no, int *count, size_t *stem) {
    const char *form = "-00000-of-00000.gguf";
    size_t n = strlen(path), m = strlen(form);
    if (n < m) return false;
    const char *p = path + n - m;
    for (size_t i = 0; i < m; i++)
        if (form[i] == '0' ? p[i] < '0' || p[i] > '9' : p[i] != form[i]) return false;
    *no = *count = 0;
    for (int i = 1; i <= 5; i++) *no = *no * 10 + (p[i] - '0');
    for (int i = 10; i <= 14; i++) *count = *count * 10 + (p[i] - '0');
    *stem = n - m;
    return true;
}

/* Checks a shard's split keys; *count is set by the first shard and compared by the others. */
static int check_split(const Shard *s, const Values *values, uint64_t no, uint64_t *count,
                       DibitError *err) {
    uint64_t have_no, have_count;
    if (!value_u64(values_get(values, "split.count"), &have_count))
        return fail(err, DIBIT_E_FORMAT, "%s: the key split.count is missing", s->name);
    if (!value_u64(values_get(values, "split.no"), &have_no))
        return fail(err, DIBIT_E_FORMAT, "%s: the key split.no is missing", s->name);
    if (*count && have_count != *count)
        return fail(err, DIBIT_E_FORMAT, "%s: split.count is %llu, the first shard says %llu",
                    s->name, (unsigned long long)have_count, (unsigned long long)*count);
    if (have_no != no)
        return fail(err, DIBIT_E_FORMAT, "%s: split.no is %llu, %llu was expected", s->name,
                    (unsigned long long)have_no, (unsigned long long)no);
    *count = have_count;
    return 0;
}

/* Where a model comes from: images in memory, or files. */
typedef struct Origin {
    const DibitImage *images; /* NULL: files */
    size_t n_images;
    const size_t *present; /* bytes that are there of each; NULL: all */
    size_t *need;          /* and gets what is missing */
    const char *path;      /* of the first file */
    bool no_mmap;
} Origin;

static int shard_image(Gguf *g, Shard *s, const Origin *o, int i, DibitError *err) {
    const DibitImage *image = &o->images[i];
    char name[TAIL];
    int n = snprintf(name, sizeof name, i ? "GGUF image %d" : "GGUF image", i + 1);
    if (!image->data || (uintptr_t)image->data % 8)
        return fail(err, DIBIT_E_ARGUMENT, "%s must lie at a multiple of 8 bytes", name);
    s->p = image->data;
    s->size = image->size;
    s->present = o->present ? o->present[i] : image->size;
    s->endless = o->present && image->size == 0;
    if (s->endless) s->size = SIZE_MAX;
    s->name = arena_string(&g->arena, name, (size_t)n);
    return s->name ? parse_head(s, err) : fail(err, DIBIT_E_MEMORY, "no memory to open %s", name);
}

/* Maps shard i, whose file is `path`, or takes its image, and reads its head. */
static int shard_open(Gguf *g, const Origin *o, const char *path, int i, DibitError *err) {
    Shard *s = &g->shards[i];
    g->n_shards = i + 1;
    if (o->images) return shard_image(g, s, o, i, err);
    int r = file_map(&s->map, path, o->no_mmap, g->memory, err);
    if (r != 0) return r;
    s->p = s->map.data;
    s->size = s->present = s->map.size;
    s->name = arena_string(&g->arena, last_part(path), strlen(last_part(path)));
    if (!s->name) return fail(err, DIBIT_E_MEMORY, "%s: no memory to open it", path);
    return parse_head(s, err);
}

/* Opens shards 2..count beside the first one, which is g->shards[0], and joins their tensors. */
static int open_shards(Gguf *g, const Origin *o, size_t stem, uint64_t count, DibitError *err) {
    uint64_t total, sum;
    char *name = arena_alloc(&g->arena, stem + TAIL);
    Shard *shards = mem_calloc(g->memory, (size_t)count, sizeof *shards);
    if (!shards || !name) {
        mem_free(g->memory, shards);
        return fail(err, DIBIT_E_MEMORY, "%s: no memory to open its shards", g->shards[0].name);
    }
    shards[0] = g->shards[0];
    mem_free(g->memory, g->shards);
    g->shards = shards;
    int r = find_alignment(&shards[0], &g->values, err);
    if (r != 0) return r;
    sum = shards[0].n_tensors;
    if (stem) memcpy(name, o->path, stem);
    for (uint64_t i = 1; i < count; i++) {
        Values values = { 0 };
        snprintf(name + stem, TAIL, "-%05d-of-%05d.gguf", (int)i + 1, (int)count);
        r = shard_open(g, o, name, (int)i, err);
        if (r == 0) r = parse_values(&shards[i], &values, g->memory, err);
        if (r == 0) r = check_split(&shards[i], &values, i, &count, err);
        if (r == 0) r = find_alignment(&shards[i], &values, err);
        values_free(&values, g->memory);
        if (r != 0) return r;
        sum += shards[i].n_tensors;
    }
    if (!gguf_get_u64(g, "split.tensors.count", &total) || total != sum)
        return fail(err, DIBIT_E_FORMAT,
                    "%s: split.tensors.count is missing or not the %llu tensors of the shards",
                    shards[0].name, (unsigned long long)sum);
    r = tensors_create(g, sum, err);
    for (uint64_t i = 0; r == 0 && i < count; i++) r = parse_tensors(g, &shards[i], err);
    return r;
}

/* ---- opening ---- */

static int open_single(Gguf *g, DibitError *err) {
    int r = find_alignment(&g->shards[0], &g->values, err);
    if (r == 0) r = tensors_create(g, g->shards[0].n_tensors, err);
    if (r == 0) r = parse_tensors(g, &g->shards[0], err);
    return r;
}

static Gguf *gguf_create(const DibitAllocator *memory) {
    Gguf *g = mem_calloc(memory, 1, sizeof *g);
    if (!g) return NULL;
    g->memory = memory;
    g->arena.memory = memory;
    g->shards = mem_calloc(memory, 1, sizeof *g->shards);
    if (!g->shards) gguf_close(&g);
    return g;
}

/* Whether what is given can be the `count` shards that the first one speaks of. */
static int check_count(const Gguf *g, const Origin *o, uint64_t count, size_t *stem,
                       DibitError *err) {
    const char *name = g->shards[0].name;
    int no, n;
    *stem = 0;
    if (count > MAX_SHARDS)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: more than %d shards", name, MAX_SHARDS);
    if (o->images && o->n_images != count)
        return fail(err, DIBIT_E_FORMAT, "%s: one of %d shards, of which %zu are given", name,
                    (int)count, o->n_images);
    if (!o->images && (!shard_numbers(o->path, &no, &n, stem) || (uint64_t)n != count || no != 1))
        return fail(err, DIBIT_E_FORMAT,
                    "%s: one of %d shards; its name must end in -0000I-of-%05d.gguf", name,
                    (int)count, (int)count);
    return 0;
}

static int open_origin(Gguf *g, const Origin *o, DibitError *err) {
    Shard *s = &g->shards[0];
    int r = shard_open(g, o, o->path, 0, err);
    if (r == 0) r = parse_values(s, &g->values, g->memory, err);
    if (r != 0) return r;
    uint64_t count = 1, named = 0;
    size_t stem;
    gguf_get_u64(g, "split.count", &count);
    if (count <= 1 && o->n_images <= 1) return open_single(g, err);
    r = check_count(g, o, count, &stem, err);
    if (r == 0) r = check_split(s, &g->values, 0, &named, err);
    return r != 0 ? r : open_shards(g, o, stem, count, err);
}

/* *first: the path of the first shard, to be freed, where `path` names another one; else NULL. */
static int first_shard(char **first, const char *path, const DibitAllocator *memory,
                       DibitError *err) {
    int no, n;
    size_t stem;
    *first = NULL;
    if (!shard_numbers(path, &no, &n, &stem) || no <= 1 || no > n) return 0;
    *first = mem_alloc(memory, stem + TAIL);
    if (!*first) return fail(err, DIBIT_E_MEMORY, "%s: no memory to open it", path);
    memcpy(*first, path, stem);
    snprintf(*first + stem, TAIL, "-00001-of-%05d.gguf", n);
    return 0;
}

static int open_gguf(Gguf **out, const Origin *o, const DibitAllocator *memory, DibitError *err) {
    *out = NULL;
    Gguf *g = gguf_create(memory);
    if (!g) return fail(err, DIBIT_E_MEMORY, "no memory to open the model");
    int r = open_origin(g, o, err);
    for (int i = 0; o->need && i < g->n_shards; i++) o->need[i] = g->shards[i].need;
    if (r != 0)
        gguf_close(&g);
    else
        *out = g;
    return r;
}

int gguf_open(Gguf **out, const char *path, bool no_mmap, const DibitAllocator *memory,
              DibitError *err) {
    char *first;
    *out = NULL;
    int r = first_shard(&first, path, memory, err);
    if (r != 0) return r;
    r = open_gguf(out, &(Origin){ .path = first ? first : path, .no_mmap = no_mmap }, memory, err);
    mem_free(memory, first);
    return r;
}

int gguf_open_memory(Gguf **out, const void *data, size_t size, const DibitAllocator *memory,
                     DibitError *err) {
    return gguf_open_images(out, &(DibitImage){ data, size }, 1, memory, err);
}

int gguf_open_images(Gguf **out, const DibitImage *images, size_t n, const DibitAllocator *memory,
                     DibitError *err) {
    *out = NULL;
    if (n == 0) return fail(err, DIBIT_E_ARGUMENT, "no GGUF image is given");
    return open_gguf(out, &(Origin){ .images = images, .n_images = n }, memory, err);
}

int gguf_peek(Gguf **out, const DibitImage *images, const size_t *present, size_t n, size_t *need,
              const DibitAllocator *memory, DibitError *err) {
    Origin o = { .images = images, .n_images = n, .present = present, .need = need };
    *out = NULL;
    for (size_t i = 0; i < n; i++) {
        need[i] = 0;
        if (images[i].size && present[i] > images[i].size)
            return fail(err, DIBIT_E_ARGUMENT, "%zu bytes of a file of %zu", present[i],
                        images[i].size);
    }
    if (n == 0) return fail(err, DIBIT_E_ARGUMENT, "no GGUF image is given");
    int r = open_gguf(out, &o, memory, err);
    for (size_t i = 0; r != 0 && i < n; i++) {
        if (need[i] == 0) continue;
        size_t size = images[i].size ? images[i].size : SIZE_MAX,
               twice = present[i] > size / 2 ? size : 2 * present[i];
        need[i] = MAX(need[i], twice); /* so that few steps reach the end */
        return 1;
    }
    return r;
}

void gguf_close(Gguf **gp) {
    Gguf *g = *gp;
    *gp = NULL;
    if (!g) return;
    const DibitAllocator *memory = g->memory;
    for (int i = 0; i < g->n_shards; i++)
        if (g->shards[i].map.data) file_unmap(&g->shards[i].map);
    values_free(&g->values, memory);
    mem_free(memory, g->shards);
    mem_free(memory, g->tensors);
    mem_free(memory, g->index.slots);
    arena_free(&g->arena);
    mem_free(memory, g);
}

/* ---- looking ---- */

int gguf_n_tensors(const Gguf *g) {
    return g->n_tensors;
}

const GgufTensor *gguf_tensor(const Gguf *g, int i) {
    return &g->tensors[i];
}

const GgufTensor *gguf_find(const Gguf *g, const char *name) {
    uint32_t *slot = index_slot(&g->index, g->tensors, tensor_name, name, strlen(name));
    return slot && *slot ? &g->tensors[*slot - 1] : NULL;
}

size_t gguf_file_bytes(const Gguf *g) {
    size_t n = 0;
    for (int i = 0; i < g->n_shards; i++) n += g->shards[i].size;
    return n;
}

size_t gguf_data_start(const Gguf *g) {
    size_t start = 0;
    size_align(g->shards[0].pos, g->shards[0].align, &start);
    return start;
}

int gguf_n_values(const Gguf *g) {
    return g->values.n;
}

const GgufValue *gguf_value(const Gguf *g, int i) {
    return &g->values.v[i];
}

const GgufValue *gguf_get(const Gguf *g, const char *key) {
    return values_get(&g->values, key);
}

bool gguf_get_u64(const Gguf *g, const char *key, uint64_t *out) {
    return value_u64(gguf_get(g, key), out);
}

bool gguf_get_f64(const Gguf *g, const char *key, double *out) {
    const GgufValue *v = gguf_get(g, key);
    if (!v || v->kind == GGUF_ARRAY || v->kind == GGUF_STRING || v->kind == GGUF_BOOL) return false;
    *out = gguf_item_f64(v, 0);
    return true;
}

bool gguf_get_bool(const Gguf *g, const char *key, bool *out) {
    const GgufValue *v = gguf_get(g, key);
    if (!v || v->kind != GGUF_BOOL) return false;
    *out = v->data[0] != 0;
    return true;
}

bool gguf_get_string(const Gguf *g, const char *key, GgufString *out) {
    const GgufValue *v = gguf_get(g, key);
    if (!v || v->kind != GGUF_STRING) return false;
    *out = (GgufString){ (const char *)v->data + 8, v->n_bytes - 8 };
    return true;
}

int64_t gguf_item_i64(const GgufValue *v, uint64_t i) {
    const uint8_t *p = v->data + i * kind_bytes(v->item);
    switch (v->item) {
    case GGUF_U8:
    case GGUF_BOOL:
        return p[0];
    case GGUF_I8:
        return (int8_t)p[0];
    case GGUF_U16:
        return load_u16(p);
    case GGUF_I16:
        return (int16_t)load_u16(p);
    case GGUF_U32:
        return load_u32(p);
    case GGUF_I32:
        return (int32_t)load_u32(p);
    case GGUF_U64:
    case GGUF_I64:
        return (int64_t)load_u64(p);
    default: { /* floats: cut to the range, so that the conversion is defined */
        double x = gguf_item_f64(v, i);
        return x >= -0x1p62 && x <= 0x1p62 ? (int64_t)x : 0;
    }
    }
}

double gguf_item_f64(const GgufValue *v, uint64_t i) {
    const uint8_t *p = v->data + i * kind_bytes(v->item);
    if (v->item == GGUF_F32) {
        float f;
        memcpy(&f, p, 4);
        return f;
    }
    if (v->item == GGUF_F64) {
        double f;
        memcpy(&f, p, 8);
        return f;
    }
    if (v->item == GGUF_U64) return (double)load_u64(p);
    return v->item == GGUF_STRING ? 0 : (double)gguf_item_i64(v, i);
}

GgufString gguf_next_string(const GgufValue *v, size_t *cursor) {
    if (v->item != GGUF_STRING || *cursor >= v->n_bytes) return (GgufString){ "", 0 };
    size_t n = (size_t)load_u64(v->data + *cursor);
    GgufString s = { (const char *)v->data + *cursor + 8, n };
    *cursor += 8 + n;
    return s;
}
