/* feature.c - counts attempts and failures. The text of a state ends with a hash of what comes
 * before, so that one which was cut short or changed is known by it. */
#include "feature.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fields.h"

#define HEAD "dibit-features 1\n"
#define SUM  "sum="

enum { LEAST_ATTEMPTS = 3, MANY = 1000000000 };

static bool good_name(const char *s, size_t n) {
    if (n == 0 || n >= FEATURES_NAME) return false;
    for (size_t i = 0; i < n; i++) {
        bool letter = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z');
        if (!letter && !(s[i] >= '0' && s[i] <= '9') && s[i] != '_' && s[i] != '-' && s[i] != '.')
            return false;
    }
    return true;
}

static void say(const Features *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(const Features *f, const char *fmt, ...) {
    char text[240];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (f->logger.log) f->logger.log(f->logger.user, DIBIT_LOG_WARN, text);
}

int features_init(Features *f, const char *stamp, const DibitLogger *logger, DibitError *err) {
    size_t n = strlen(stamp);
    memset(f, 0, sizeof *f);
    if (logger) f->logger = *logger;
    if (n == 0 || n >= sizeof f->stamp)
        return fail(err, DIBIT_E_ARGUMENT, "a stamp of %zu bytes: 1 to %zu", n,
                    sizeof f->stamp - 1);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)stamp[i] < ' ' || stamp[i] == 127)
            return fail(err, DIBIT_E_ARGUMENT, "a control character in the stamp");
    memcpy(f->stamp, stamp, n);
    return 0;
}

/* ---- what happened ---- */

static FeatureState *find(const Features *f, const char *name) {
    for (int i = 0; i < f->n_features; i++)
        if (strcmp(f->feature[i].name, name) == 0) return (FeatureState *)(uintptr_t)&f->feature[i];
    return NULL;
}

bool features_enabled(const Features *f, const char *name) {
    const FeatureState *s = find(f, name);
    return !s || s->enabled;
}

bool features_worked(const Features *f, const char *name) {
    const FeatureState *s = find(f, name);
    return s && s->attempts > s->failures;
}

/* A place for one more, or NULL. */
static FeatureState *add_feature(Features *f) {
    int i = 0;
    if (f->n_features == FEATURES_MAX) {
        while (i < FEATURES_MAX && !f->feature[i].enabled) i++;
        if (i == FEATURES_MAX) return NULL;
        f->n_features--;
        memmove(&f->feature[i], &f->feature[i + 1],
                (size_t)(f->n_features - i) * sizeof *f->feature);
    }
    FeatureState *s = &f->feature[f->n_features++];
    *s = (FeatureState){ .enabled = true };
    return s;
}

static bool fails_too_often(const FeatureState *s) {
    return s->attempts >= LEAST_ATTEMPTS && 2 * s->failures > s->attempts;
}

int features_result(Features *f, const char *name, bool ok, DibitError *err) {
    FeatureState *s = find(f, name);
    if (!s) {
        if (!good_name(name, strlen(name)))
            return fail(err, DIBIT_E_ARGUMENT, "\"%.40s\" is no name of a feature", name);
        if (!(s = add_feature(f)))
            return fail(err, DIBIT_E_ARGUMENT, "more than %d features that fail", FEATURES_MAX);
        memcpy(s->name, name, strlen(name));
    }
    if (s->attempts < MANY) {
        s->attempts++;
        s->failures += !ok;
    }
    if (!s->enabled || !fails_too_often(s)) return 0;
    s->enabled = false;
    say(f, "%s is off on this device from now on: %lld of %lld attempts failed", s->name,
        (long long)s->failures, (long long)s->attempts);
    return 1;
}

static void push(FeatureOp *op, double ms) {
    if (op->n == FEATURES_HISTORY) {
        memmove(op->ms, op->ms + 1, (FEATURES_HISTORY - 1) * sizeof *op->ms);
        op->n--;
    }
    op->ms[op->n++] = ms;
}

int features_time(Features *f, const char *name, double ms, DibitError *err) {
    if (!(ms >= 0 && ms <= 1e12))
        return fail(err, DIBIT_E_ARGUMENT, "%.40s: %g milliseconds", name, ms);
    for (int i = 0; i < f->n_ops; i++) {
        if (strcmp(f->op[i].name, name) != 0) continue;
        push(&f->op[i], ms);
        return 0;
    }
    if (!good_name(name, strlen(name)))
        return fail(err, DIBIT_E_ARGUMENT, "\"%.40s\" is no name of an operation", name);
    if (f->n_ops == FEATURES_OPS) {
        f->n_ops--;
        memmove(f->op, f->op + 1, (size_t)f->n_ops * sizeof *f->op);
    }
    FeatureOp *op = &f->op[f->n_ops++];
    memset(op, 0, sizeof *op);
    memcpy(op->name, name, strlen(name));
    push(op, ms);
    return 0;
}

double features_last_ms(const Features *f, const char *name) {
    for (int i = 0; i < f->n_ops; i++)
        if (strcmp(f->op[i].name, name) == 0) return f->op[i].ms[f->op[i].n - 1];
    return -1;
}

/* ---- text ---- */

size_t features_disabled(const Features *f, char *out, size_t cap) {
    TextOut o = { out, cap, 0 };
    if (cap) out[0] = 0;
    for (int i = 0; i < f->n_features; i++)
        if (!f->feature[i].enabled) text_put(&o, "%s%s", o.n ? "," : "", f->feature[i].name);
    return o.n;
}

static void put_state(TextOut *o, const Features *f) {
    text_put(o, HEAD "stamp=%s\n", f->stamp);
    for (int i = 0; i < f->n_features; i++) {
        const FeatureState *s = &f->feature[i];
        text_put(o, "feature=%s %s %lld %lld\n", s->name, s->enabled ? "on" : "off",
                 (long long)s->attempts, (long long)s->failures);
    }
    for (int i = 0; i < f->n_ops; i++) {
        text_put(o, "time=%s", f->op[i].name);
        for (int k = 0; k < f->op[i].n; k++) text_put(o, " %.6g", f->op[i].ms[k]);
        text_put(o, "\n");
    }
}

enum {
    STATE_BYTES = 1 << 14
}; /* more than any state has: 32 x (32 + 12 x 10) twice, and the head */

size_t features_text(const Features *f, char *out, size_t cap) {
    char *text = mem_alloc(NULL, STATE_BYTES);
    TextOut o = { text, STATE_BYTES, 0 };
    if (cap) out[0] = 0;
    if (!text) return 0;
    put_state(&o, f);
    uint64_t sum = hash64(0, text, o.n);
    text_put(&o, SUM "%08x%08x\n", (unsigned)(sum >> 32), (unsigned)sum);
    if (cap) memcpy(out, text, MIN(o.n, cap - 1));
    if (cap) out[MIN(o.n, cap - 1)] = 0;
    mem_free(NULL, text);
    return o.n;
}

/* ---- reading a state ---- */

/* The next word of a line's value; false at the end. */
static bool word(const char **s, size_t *n, const char **at, size_t *len) {
    while (*n && **s == ' ') (*s)++, (*n)--;
    *at = *s;
    while (*n && **s != ' ') (*s)++, (*n)--;
    *len = (size_t)(*s - *at);
    return *len > 0;
}

static bool read_feature(Features *f, const char *s, size_t n) {
    const char *at;
    size_t len;
    if (f->n_features == FEATURES_MAX || !word(&s, &n, &at, &len) || !good_name(at, len))
        return false;
    FeatureState *state = &f->feature[f->n_features++];
    *state = (FeatureState){ .enabled = false };
    memcpy(state->name, at, len);
    if (!word(&s, &n, &at, &len)) return false;
    state->enabled = len == 2 && memcmp(at, "on", 2) == 0;
    if (!state->enabled && !(len == 3 && memcmp(at, "off", 3) == 0)) return false;
    if (!word(&s, &n, &at, &len) || !parse_whole(at, len, &state->attempts)) return false;
    if (!word(&s, &n, &at, &len) || !parse_whole(at, len, &state->failures)) return false;
    return state->failures >= 0 && state->attempts >= state->failures && state->attempts <= MANY &&
           !word(&s, &n, &at, &len) && find(f, state->name) == state;
}

static bool read_op(Features *f, const char *s, size_t n) {
    const char *at;
    size_t len;
    if (f->n_ops == FEATURES_OPS || !word(&s, &n, &at, &len) || !good_name(at, len)) return false;
    FeatureOp *op = &f->op[f->n_ops++];
    memset(op, 0, sizeof *op);
    memcpy(op->name, at, len);
    while (word(&s, &n, &at, &len)) {
        double ms;
        if (op->n == FEATURES_HISTORY || !parse_real(at, len, &ms) || !(ms >= 0 && ms <= 1e12))
            return false;
        op->ms[op->n++] = ms;
    }
    for (int i = 0; i < f->n_ops - 1; i++)
        if (strcmp(f->op[i].name, op->name) == 0) return false;
    return op->n > 0;
}

/* The text without its last line, if that is the hash of the rest. */
static bool check_sum(const char *text, size_t *n) {
    const size_t line = sizeof SUM - 1 + 16 + 1;
    char want[64];
    if (*n < line + sizeof HEAD - 1 || memcmp(text, HEAD, sizeof HEAD - 1) != 0) return false;
    *n -= line;
    uint64_t sum = hash64(0, text, *n);
    snprintf(want, sizeof want, SUM "%08x%08x\n", (unsigned)(sum >> 32), (unsigned)sum);
    return memcmp(text + *n, want, line) == 0;
}

static bool is_key(const FieldLine *l, const char *key) {
    return l->value && strlen(key) == l->n_key && memcmp(l->key, key, l->n_key) == 0;
}

/* Fills in `to`; *same: whether the stamp is to's. */
static bool read_state(Features *to, const char *text, size_t n, bool *same) {
    FieldLine line;
    bool stamped = false;
    if (!check_sum(text, &n)) return false;
    for (size_t at = sizeof HEAD - 1; fields_next(text, n, &at, &line);) {
        if (is_key(&line, "stamp")) {
            stamped = true;
            *same = strlen(to->stamp) == line.n_value &&
                    memcmp(to->stamp, line.value, line.n_value) == 0;
        } else if (is_key(&line, "feature")) {
            if (!read_feature(to, line.value, line.n_value)) return false;
        } else if (!is_key(&line, "time") || !read_op(to, line.value, line.n_value)) {
            return false;
        }
    }
    return stamped;
}

bool features_load(Features *f, const char *text, size_t n) {
    Features read = { .n_ops = 0 };
    bool same = false;
    memcpy(read.stamp, f->stamp, sizeof read.stamp);
    f->note[0] = 0;
    if (n == 0) return false;
    if (!read_state(&read, text, n, &same))
        snprintf(f->note, sizeof f->note,
                 "the record of what fails here is damaged: it begins anew");
    else if (!same)
        snprintf(f->note, sizeof f->note,
                 "the record of what fails here is of another version: it begins anew");
    if (f->note[0]) {
        say(f, "%s", f->note);
        return false;
    }
    read.logger = f->logger;
    *f = read;
    return true;
}
