/* types.c - the table of tensor types, made from types.def, and the size of a tensor of each type.
 */
#include "codec.h"

#include <ctype.h>

/* Who can encode is decided by the family: the K types are read only, t2
 * and t3 have an encoder of their own. */
#define ENCODE_plain(NAME)     encode_##NAME
#define ENCODE_scalar23(NAME)  encode_##NAME
#define ENCODE_kquant(NAME)    NULL
#define ENCODE_trellis23(NAME) NULL
/* How large a tensor is: NULL where rows are whole blocks. */
#define BYTES_plain     NULL
#define BYTES_kquant    NULL
#define BYTES_scalar23  s_bytes
#define BYTES_trellis23 trellis_bytes

static const TypeInfo types[] = {
#define X(NAME, ID, name, len, bytes, family)                                                      \
    { ID, name, len, bytes, BYTES_##family, decode_##NAME, ENCODE_##family(NAME) },
#include "types.def"
#undef X
};

static const char *const gguf_names[] = {
/* the spelling of other programs: "Q4_0" for "q4" */
#define X(NAME, ID, name, len, bytes, family) #NAME,
#include "types.def"
#undef X
};

const TypeInfo *type_at(int index) {
    return index >= 0 && (size_t)index < ARRAY_LEN(types) ? &types[index] : NULL;
}

const TypeInfo *type_info(int id) {
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (types[i].id == id) return &types[i];
    return NULL;
}

static bool same_word(const char *a, const char *b) {
    for (; *a && *b; a++, b++)
        if (tolower((unsigned char)*a) != tolower((unsigned char)*b)) return false;
    return *a == *b;
}

const TypeInfo *type_by_name(const char *name) {
    for (size_t i = 0; name && i < ARRAY_LEN(types); i++)
        if (same_word(name, types[i].name) || same_word(name, gguf_names[i])) return &types[i];
    return NULL;
}

size_t s_group_bytes(int type) {
    return type == T_S3 ? 208 : 144;
}

/* Row blocks of whole groups, then the row scales. */
bool s_bytes(int type, uint64_t rows, uint64_t cols, size_t *n_bytes) {
    size_t rows16, cols32, n;
    if (rows > SIZE_MAX || cols > SIZE_MAX) return false;
    if (!size_align((size_t)rows, S_ROWS, &rows16) || !size_align((size_t)cols, S_GROUP, &cols32))
        return false;
    if (!size_mul(rows16 / S_ROWS, cols32 / S_GROUP, &n) || !size_mul(n, s_group_bytes(type), &n) ||
        rows16 > SIZE_MAX / 2)
        return false;
    return size_add(n, rows16 * 2, n_bytes);
}

bool type_bytes(const TypeInfo *t, uint64_t rows, uint64_t cols, size_t *n_bytes) {
    size_t n;
    if (t->bytes) return t->bytes(t->id, rows, cols, n_bytes);
    if (rows > SIZE_MAX || cols > SIZE_MAX || cols % (uint64_t)t->block_len != 0) return false;
    return size_mul((size_t)cols / (size_t)t->block_len, (size_t)t->block_bytes, &n) &&
           size_mul(n, (size_t)rows, n_bytes);
}
