/* plan_request.c - what is asked of a plan, as text. */
#include <string.h>

#include "fields.h"
#include "plan.h"

#define ROW(kind, field, cap, min, max)                                                            \
    { #field, kind, offsetof(PlanRequest, field), cap, min, max }
#define GROUP(name, index)                                                                         \
    { name, FIELD_WORD, offsetof(PlanRequest, type) + 8 * (index), 8, 0, 0 }
static const Field rows[] = {
    ROW(FIELD_WHOLE, budget_mb, 0, 1, 1 << 24),
    ROW(FIELD_WHOLE, n_ctx, 0, 1, CONTEXT_LIMIT),
    ROW(FIELD_WHOLE, n_threads, 0, 1, 1024),
    ROW(FIELD_WORD, cache_type_k, 8, 0, 0),
    ROW(FIELD_WORD, cache_type_v, 8, 0, 0),
    ROW(FIELD_WORD, backend, 8, 0, 0),
    ROW(FIELD_BOOL, repack, 0, 0, 0),
    ROW(FIELD_WORD, disabled, 256, 0, 0),
    GROUP("embedding", GROUP_EMBEDDING),
    GROUP("attention", GROUP_ATTENTION),
    GROUP("feed_forward", GROUP_FEED_FORWARD),
    GROUP("audio", GROUP_AUDIO),
    GROUP("norms", GROUP_NORMS),
    GROUP("output", GROUP_OUTPUT),
};

static bool same(const char *a, const char *b, size_t n) {
    return strlen(b) == n && memcmp(a, b, n) == 0;
}

/* ---- variants ---- */

static int set_variant_word(PlanVariant *v, const char *key, size_t n_key, const char *value,
                            size_t n_value, DibitError *err) {
    char type[16] = "";
    int64_t bytes;
    if (same(key, "bytes", n_key)) {
        if (!parse_whole(value, n_value, &bytes) || bytes <= 0)
            return fail(err, DIBIT_E_ARGUMENT, "variant: bytes \"%.*s\" is no size",
                        (int)MIN(n_value, 40), value);
        v->bytes = (uint64_t)bytes;
        return 0;
    }
    if (same(key, "kld", n_key)) {
        if (!parse_real(value, n_value, &v->kld) || v->kld < 0 || v->kld > 1e6)
            return fail(err, DIBIT_E_ARGUMENT, "variant: kld \"%.*s\" is no number from 0",
                        (int)MIN(n_value, 40), value);
        return 0;
    }
    memcpy(type, value, MIN(n_value, sizeof type - 1));
    for (int g = 0; g < N_GROUPS; g++) {
        if (!same(key, plan_group_names[g], n_key)) continue;
        const TypeInfo *t = type_by_name(type);
        if (!t) return fail(err, DIBIT_E_ARGUMENT, "variant: type \"%s\" is unknown", type);
        v->type[g] = t->id;
        return 0;
    }
    return fail(err, DIBIT_E_ARGUMENT, "variant: \"%.*s\" is no known key", (int)MIN(n_key, 40),
                key);
}

/* "NAME bytes=N kld=X attention=t2 ...": words between blanks. */
static int add_variant(PlanRequest *q, const char *s, size_t n, DibitError *err) {
    if (q->n_variants == PLAN_MAX_VARIANTS)
        return fail(err, DIBIT_E_ARGUMENT, "more than %d variants", PLAN_MAX_VARIANTS);
    PlanVariant *v = &q->variants[q->n_variants];
    *v = (PlanVariant){ .kld = -1 };
    for (int g = 0; g < N_GROUPS; g++) v->type[g] = -1;
    for (size_t at = 0, end; at < n; at = end + 1) {
        for (end = at; end < n && s[end] != ' '; end++) {
        }
        if (end == at) continue;
        const char *word = s + at, *equals = memchr(word, '=', end - at);
        if (!v->name[0]) {
            if (equals || end - at >= sizeof v->name)
                return fail(err, DIBIT_E_ARGUMENT, "variant: a name of 1 to %zu bytes comes first",
                            sizeof v->name - 1);
            memcpy(v->name, word, end - at);
            continue;
        }
        if (!equals)
            return fail(err, DIBIT_E_ARGUMENT, "variant %s: \"%.*s\" is not key=value", v->name,
                        (int)MIN(end - at, 40), word);
        int r = set_variant_word(v, word, (size_t)(equals - word), equals + 1,
                                 (size_t)(s + end - equals) - 1, err);
        if (r != 0) return r;
    }
    if (!v->name[0] || v->bytes == 0)
        return fail(err, DIBIT_E_ARGUMENT, "variant: a name and its bytes are needed");
    q->n_variants++;
    return 0;
}

/* ---- the rest ---- */

/* Types by name; bits by a number. */
static int check_types(const PlanRequest *q, DibitError *err) {
    for (int g = 0; g < N_GROUPS; g++) {
        const char *t = q->type[g];
        int64_t bits;
        if (!t[0] || type_by_name(t)) continue;
        if (parse_whole(t, strlen(t), &bits) && bits >= 2 && bits <= 32) continue;
        return fail(err, DIBIT_E_ARGUMENT, "%s: \"%s\" is no type and no number of bits, 2 to 32",
                    plan_group_names[g], t);
    }
    return 0;
}

int plan_request_read(PlanRequest *q, const char *text, size_t n, DibitError *err) {
    FieldLine line;
    fields_clear(rows, ARRAY_LEN(rows), q);
    q->n_variants = 0;
    for (size_t at = 0; fields_next(text, n, &at, &line);) {
        int r;
        if (!line.value)
            r = fail(err, DIBIT_E_ARGUMENT, "line %d: \"%.*s\" is not key=value", line.number,
                     (int)MIN(line.n_key, 40), line.key);
        else if (same(line.key, "variant", line.n_key))
            r = add_variant(q, line.value, line.n_value, err);
        else
            r = fields_set(rows, ARRAY_LEN(rows), q, line.key, line.n_key, line.value, line.n_value,
                           err);
        if (r != 0) return r;
    }
    const char *b = q->backend;
    if (b[0] && strcmp(b, "auto") != 0 && strcmp(b, "webgpu") != 0 && strcmp(b, "wasm") != 0)
        return fail(err, DIBIT_E_ARGUMENT, "backend: \"%s\" is not auto, webgpu or wasm", b);
    return check_types(q, err);
}
