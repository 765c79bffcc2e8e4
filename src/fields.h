/* fields.h - structs as text: lines "key=value", read and written by a table of their fields. Every
 * value is checked against its row; what no row names is an error. */
#ifndef FIELDS_H
#define FIELDS_H
#include "base.h"

typedef enum FieldKind {
    FIELD_TEXT,  /* char[cap]: UTF-8 without control characters; "" is unknown */
    FIELD_WORD,  /* the same of letters, digits and "_-.,/"; capitals become small letters */
    FIELD_WHOLE, /* int64_t from min to max; -1 is unknown */
    FIELD_REAL,  /* double from min to max; -1 is unknown */
    FIELD_BOOL   /* int8_t 0 or 1; -1 is unknown */
} FieldKind;

typedef struct Field {
    const char *name;
    FieldKind kind;
    size_t at, cap; /* offset in the struct; of texts */
    double min, max;
} Field;

/* Sets every field to unknown. */
void fields_clear(const Field *t, int n, void *out);
/* Sets the field `key` from a value as the text has it. */
int fields_set(const Field *t, int n, void *out, const char *key, size_t n_key, const char *value,
               size_t n_value, DibitError *err);
/* Sets a field for each line. Empty lines, and blanks at the ends of a line, do not count. */
int fields_read(const Field *t, int n, void *out, const char *text, size_t n_bytes,
                DibitError *err);
/* The value of one field as text; false where it is unknown. */
bool fields_value(const Field *f, const void *from, char *buf, size_t cap);
/* Lines for all fields that are known, terminated when cap > 0. Returns the full length. */
size_t fields_write(const Field *t, int n, const void *from, char *out, size_t cap);

/* A text that grows: what does not fit is left out, n counts it all the same. */
typedef struct TextOut {
    char *to;
    size_t cap, n; /* to[n] is its end while n < cap */
} TextOut;
void text_put(TextOut *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Walks lines "key=value" without the blanks around both: false at the end. A line without '=' has
 * a value of NULL. */
typedef struct FieldLine {
    const char *key, *value;
    size_t n_key, n_value;
    int number; /* from 1 */
} FieldLine;
bool fields_next(const char *text, size_t n_bytes, size_t *at, FieldLine *line);

/* Whole decimal numbers, a sign allowed; false for anything else. */
bool parse_whole(const char *s, size_t n, int64_t *out);
bool parse_real(const char *s, size_t n, double *out); /* as 12.5 or 1e-3; never NaN or infinite */
#endif
