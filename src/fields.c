/* fields.c - structs as lines "key=value". Numbers are read here rather than by the C library: one
 * spelling everywhere, whatever the locale, and none of its surprises (hexadecimal, "nan"). */
#include "fields.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- numbers ---- */

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool parse_whole(const char *s, size_t n, int64_t *out) {
    bool minus = n && *s == '-';
    uint64_t v = 0;
    if (n && (*s == '-' || *s == '+')) s++, n--;
    if (n == 0 || n > 18) return false; /* 18 digits always fit */
    for (size_t i = 0; i < n; i++) {
        if (!is_digit(s[i])) return false;
        v = 10 * v + (uint64_t)(s[i] - '0');
    }
    *out = minus ? -(int64_t)v : (int64_t)v;
    return true;
}

bool parse_real(const char *s, size_t n, double *out) {
    bool minus = n && *s == '-';
    double v = 0;
    int64_t exponent = 0;
    int point = 0, digits = 0;
    size_t i = n && (*s == '-' || *s == '+') ? 1 : 0;
    if (n > 40) return false;
    for (bool after = false; i < n && (is_digit(s[i]) || (s[i] == '.' && !after)); i++) {
        if (s[i] == '.') {
            after = true;
            continue;
        }
        v = 10 * v + (s[i] - '0');
        point += after;
        digits++;
    }
    if (digits == 0) return false;
    if (i < n && (s[i] == 'e' || s[i] == 'E')) {
        if (!parse_whole(s + i + 1, n - i - 1, &exponent)) return false;
        i = n;
    }
    if (i != n || exponent < -99 || exponent > 99) return false;
    int shift = (int)exponent - point;
    for (; shift > 0; shift--) v *= 10;
    double divisor = 1; /* one division, so that 0.1 is the 0.1 of C */
    for (; shift < 0; shift++) divisor *= 10;
    v /= divisor;
    *out = minus ? -v : v;
    return true;
}

/* ---- lines ---- */

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r';
}

static void trim(const char **s, size_t *n) {
    while (*n && is_blank(**s)) (*s)++, (*n)--;
    while (*n && is_blank((*s)[*n - 1])) (*n)--;
}

bool fields_next(const char *text, size_t n_bytes, size_t *at, FieldLine *line) {
    if (*at == 0) line->number = 0;
    while (*at < n_bytes) {
        const char *s = text + *at, *end = memchr(s, '\n', n_bytes - *at);
        size_t n = end ? (size_t)(end - s) : n_bytes - *at;
        *at += n + (end != NULL);
        line->number++;
        trim(&s, &n);
        if (n == 0) continue;
        const char *equals = memchr(s, '=', n);
        line->key = s;
        line->n_key = equals ? (size_t)(equals - s) : n;
        line->value = equals ? equals + 1 : NULL;
        line->n_value = equals ? n - line->n_key - 1 : 0;
        trim(&line->key, &line->n_key);
        if (equals) trim(&line->value, &line->n_value);
        return true;
    }
    return false;
}

/* ---- fields ---- */

static void *place(const Field *f, void *base) {
    return (uint8_t *)base + f->at;
}

void fields_clear(const Field *t, int n, void *out) {
    for (int i = 0; i < n; i++) {
        void *p = place(&t[i], out);
        switch (t[i].kind) {
        case FIELD_TEXT:
        case FIELD_WORD:
            memset(p, 0, t[i].cap);
            break;
        case FIELD_WHOLE:
            *(int64_t *)p = -1;
            break;
        case FIELD_REAL:
            *(double *)p = -1;
            break;
        case FIELD_BOOL:
            *(int8_t *)p = -1;
            break;
        }
    }
}

static int bad_value(const Field *f, const char *value, size_t n, const char *want,
                     DibitError *err) {
    return fail(err, DIBIT_E_ARGUMENT, "%s: \"%.*s\" is not %s", f->name, (int)MIN(n, 40), value,
                want);
}

static int out_of_range(const Field *f, double v, DibitError *err) {
    return fail(err, DIBIT_E_ARGUMENT, "%s: %g is not from %g to %g", f->name, v, f->min, f->max);
}

static int set_text(const Field *f, void *p, const char *s, size_t n, DibitError *err) {
    char *out = p;
    if (n >= f->cap)
        return fail(err, DIBIT_E_ARGUMENT, "%s: %zu bytes, at most %zu are allowed", f->name, n,
                    f->cap - 1);
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if ((unsigned char)c < ' ' || c == 127)
            return fail(err, DIBIT_E_ARGUMENT, "%s: a control character in the text", f->name);
        if (f->kind == FIELD_TEXT) continue;
        bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
        if (!lower && !upper && !is_digit(c) && !strchr("_-./,", c))
            return bad_value(f, s, n, "a word of letters, digits and -_./,", err);
    }
    memset(out, 0, f->cap);
    for (size_t i = 0; i < n; i++)
        out[i] = f->kind == FIELD_WORD && s[i] >= 'A' && s[i] <= 'Z' ? (char)(s[i] + 32) : s[i];
    return 0;
}

static int set_number(const Field *f, void *p, const char *s, size_t n, DibitError *err) {
    int64_t whole;
    double real;
    if (f->kind == FIELD_REAL) {
        if (!parse_real(s, n, &real)) return bad_value(f, s, n, "a number", err);
        if (!(real >= f->min && real <= f->max)) return out_of_range(f, real, err);
        *(double *)p = real;
        return 0;
    }
    if (!parse_whole(s, n, &whole)) return bad_value(f, s, n, "a whole number", err);
    if (!((double)whole >= f->min && (double)whole <= f->max))
        return out_of_range(f, (double)whole, err);
    *(int64_t *)p = whole;
    return 0;
}

static bool same(const char *a, const char *b, size_t n) {
    return strlen(b) == n && memcmp(a, b, n) == 0;
}

static int set_bool(const Field *f, void *p, const char *s, size_t n, DibitError *err) {
    bool yes = same(s, "1", n) || same(s, "true", n), no = same(s, "0", n) || same(s, "false", n);
    if (!yes && !no) return bad_value(f, s, n, "true or false", err);
    *(int8_t *)p = yes;
    return 0;
}

int fields_set(const Field *t, int n, void *out, const char *key, size_t n_key, const char *value,
               size_t n_value, DibitError *err) {
    for (int i = 0; i < n; i++) {
        const Field *f = &t[i];
        if (!same(key, f->name, n_key)) continue;
        void *p = place(f, out);
        if (f->kind == FIELD_TEXT || f->kind == FIELD_WORD)
            return set_text(f, p, value, n_value, err);
        if (f->kind == FIELD_BOOL) return set_bool(f, p, value, n_value, err);
        return set_number(f, p, value, n_value, err);
    }
    return fail(err, DIBIT_E_ARGUMENT, "\"%.*s\" is no known key", (int)MIN(n_key, 40), key);
}

int fields_read(const Field *t, int n, void *out, const char *text, size_t n_bytes,
                DibitError *err) {
    FieldLine line;
    for (size_t at = 0; fields_next(text, n_bytes, &at, &line);) {
        if (!line.value)
            return fail(err, DIBIT_E_ARGUMENT, "line %d: \"%.*s\" is not key=value", line.number,
                        (int)MIN(line.n_key, 40), line.key);
        int r = fields_set(t, n, out, line.key, line.n_key, line.value, line.n_value, err);
        if (r != 0) return r;
    }
    return 0;
}

bool fields_value(const Field *f, const void *from, char *buf, size_t cap) {
    const void *p = (const uint8_t *)from + f->at;
    switch (f->kind) {
    case FIELD_TEXT:
    case FIELD_WORD:
        snprintf(buf, cap, "%s", (const char *)p);
        return buf[0] != 0;
    case FIELD_WHOLE:
        snprintf(buf, cap, "%lld", (long long)*(const int64_t *)p);
        return *(const int64_t *)p != -1;
    case FIELD_REAL:
        snprintf(buf, cap, "%g", *(const double *)p);
        return *(const double *)p != -1;
    case FIELD_BOOL:
        snprintf(buf, cap, "%s", *(const int8_t *)p ? "true" : "false");
        return *(const int8_t *)p != -1;
    }
    return false;
}

size_t fields_write(const Field *t, int n, const void *from, char *out, size_t cap) {
    char value[1280];
    size_t at = 0;
    if (cap) out[0] = 0;
    for (int i = 0; i < n; i++) {
        if (!fields_value(&t[i], from, value, sizeof value)) continue;
        at += (size_t)snprintf(at < cap ? out + at : NULL, at < cap ? cap - at : 0, "%s=%s\n",
                               t[i].name, value);
    }
    return at;
}

void text_put(TextOut *o, const char *fmt, ...) {
    va_list ap;
    size_t left = o->n < o->cap ? o->cap - o->n : 0;
    va_start(ap, fmt);
    o->n += (size_t)vsnprintf(left ? o->to + o->n : NULL, left, fmt, ap);
    va_end(ap);
}
