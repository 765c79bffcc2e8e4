/* cache_layers.c - types of a cache from text: "k3", "k3/k2", and of single layers
 * "0,1=q4;5-7=k3/k2".
 */
#include <string.h>

#include "cache.h"

static int type_of(const char *name, size_t n) {
    char text[8];
    if (n >= sizeof text) return -1;
    memcpy(text, name, n);
    text[n] = 0;
    return kv_type_by_name(text);
}

bool cache_read_types(const char *text, size_t n, int types[2]) {
    const char *slash = memchr(text, '/', n), *end = text + n, *v = slash ? slash + 1 : text;
    types[0] = type_of(text, (size_t)((slash ? slash : end) - text));
    types[1] = type_of(v, (size_t)(end - v));
    return types[0] >= 0 && types[1] >= 0;
}

/* A layer's number at *p, which moves behind it; -1 if there is none. */
static int read_layer(const char **p) {
    int n = 0;
    if (**p < '0' || **p > '9') return -1;
    for (; **p >= '0' && **p <= '9'; ++*p) n = MIN(10 * n + **p - '0', KV_MAX_LAYERS);
    return n;
}

/* One entry, as "5-7,9=k3/k2". */
static int read_entry(const char *entry, int length, int n_layers, uint8_t (*types)[2],
                      DibitError *err) {
    const char *end = entry + length, *p = memchr(entry, '=', (size_t)length);
    int t[2];
    if (!p)
        return fail(err, DIBIT_E_ARGUMENT,
                    "cache_layers: \"%.*s\" is not layers=type, as in 0,1=q4 or 5-7=k3/k2",
                    MIN(length, 60), entry);
    if (!cache_read_types(p + 1, (size_t)(end - p - 1), t))
        return fail(err, DIBIT_E_ARGUMENT,
                    "cache_layers: \"%.*s\" names an unknown type; known are f16, q8, q4, k3 and "
                    "k2, or two with a slash between",
                    MIN(length, 60), entry);
    for (p = entry;; p++) {
        const char *from = p;
        int first = read_layer(&p), last = first;
        if (first >= 0 && *p == '-') p++, last = read_layer(&p);
        if (first < 0 || last < first || last >= n_layers || (*p != ',' && *p != '='))
            return fail(err, DIBIT_E_ARGUMENT,
                        "cache_layers: \"%.*s\" is not a layer or a range of them; the model has "
                        "layers 0 to %d",
                        (int)MIN(strcspn(from, ",="), 60u), from, n_layers - 1);
        for (int l = first; l <= last; l++) {
            types[l][0] = (uint8_t)t[0];
            types[l][1] = (uint8_t)t[1];
        }
        if (*p == '=') return 0;
    }
}

int cache_read_layers(const char *text, int n_layers, uint8_t (*types)[2], DibitError *err) {
    for (;;) {
        size_t n = strcspn(text, ";");
        if (n > 4096)
            return fail(err, DIBIT_E_ARGUMENT, "cache_layers: an entry of %zu characters", n);
        int r = read_entry(text, (int)n, n_layers, types, err);
        if (r != 0 || !text[n]) return r;
        text += n + 1;
    }
}
