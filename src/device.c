/* device.c - what a device says of itself: its text form, and what can be read from a user agent.
 * A user agent is a label and no more: what a browser can do is probed (web/src/detect.js). */
#include <string.h>

#include "fields.h"
#include "plan.h"

/* ---- the fields ---- */

#define ROW(kind, field, cap, min, max)                                                            \
    { #field, kind, offsetof(DeviceInfo, field), cap, min, max }
#define TEXT(field)            ROW(FIELD_TEXT, field, sizeof((DeviceInfo *)NULL)->field, 0, 0)
#define WORD(field)            ROW(FIELD_WORD, field, sizeof((DeviceInfo *)NULL)->field, 0, 0)
#define WHOLE(field, min, max) ROW(FIELD_WHOLE, field, 0, min, max)
#define REAL(field, min, max)  ROW(FIELD_REAL, field, 0, min, max)
#define BOOL(field)            ROW(FIELD_BOOL, field, 0, 0, 0)
#define MANY                   1e15

static const Field rows[] = {
    TEXT(user_agent),
    WORD(browser),
    WORD(engine),
    WORD(os),
    WHOLE(version, 0, 1e6),
    WHOLE(engine_version, 0, 1e6),
    BOOL(mobile),
    WHOLE(touch_points, 0, 1e6),
    WHOLE(memory_mb, 1, 1 << 24),
    WHOLE(memory_free_mb, 0, 1 << 24),
    WHOLE(cores, 1, 4096),
    WHOLE(screen_width, 0, 1e6),
    WHOLE(screen_height, 0, 1e6),
    REAL(pixel_ratio, 0, 1000),
    REAL(battery_level, 0, 1),
    BOOL(battery_charging),
    TEXT(cpu),
    WORD(isa),
    TEXT(vulkan),
    BOOL(wasm_simd),
    BOOL(wasm_relaxed_dot),
    BOOL(wasm_relaxed_madd),
    BOOL(wasm_threads),
    BOOL(wasm_memory64),
    BOOL(wasm_bulk),
    BOOL(jspi),
    BOOL(isolated),
    BOOL(shared_memory),
    BOOL(webgpu),
    BOOL(gpu_fallback),
    TEXT(gpu_vendor),
    TEXT(gpu_architecture),
    TEXT(gpu_description),
    BOOL(gpu_f16),
    BOOL(gpu_subgroups),
    BOOL(gpu_packed_dot),
    BOOL(gpu_timestamps),
    WHOLE(gpu_max_buffer, 0, MANY),
    WHOLE(gpu_max_binding, 0, MANY),
    WHOLE(gpu_workgroup_storage, 0, MANY),
    WHOLE(gpu_invocations, 0, MANY),
    WHOLE(gpu_storage_buffers, 0, MANY),
    BOOL(opfs),
    WHOLE(storage_quota_mb, 0, MANY),
    WHOLE(storage_used_mb, 0, MANY),
    REAL(speed_q4, 0, MANY),
    REAL(speed_s3, 0, MANY),
    REAL(speed_s2, 0, MANY),
    REAL(speed_t3, 0, MANY),
    REAL(speed_t2, 0, MANY),
};

void device_clear(DeviceInfo *d) {
    fields_clear(rows, ARRAY_LEN(rows), d);
}

int device_set(DeviceInfo *d, const char *key, const char *value, DibitError *err) {
    return fields_set(rows, ARRAY_LEN(rows), d, key, strlen(key), value, strlen(value), err);
}

int device_read(DeviceInfo *d, const char *text, size_t n, DibitError *err) {
    device_clear(d);
    int r = fields_read(rows, ARRAY_LEN(rows), d, text, n, err);
    if (r == 0) device_complete(d);
    return r;
}

size_t device_write(const DeviceInfo *d, char *out, size_t cap) {
    return fields_write(rows, ARRAY_LEN(rows), d, out, cap);
}

bool device_field(const DeviceInfo *d, int index, const char **name, char *value, size_t cap) {
    *name = index >= 0 && index < (int)ARRAY_LEN(rows) ? rows[index].name : NULL;
    return *name && fields_value(&rows[index], d, value, cap);
}

bool device_field_is_text(int index) {
    return rows[index].kind == FIELD_TEXT || rows[index].kind == FIELD_WORD;
}

/* ---- user agents ---- */

/* The whole number after a token as "Chrome/", or 0. */
static int64_t number_after(const char *ua, const char *token) {
    const char *p = strstr(ua, token);
    int64_t v = 0;
    if (!p) return 0;
    for (p += strlen(token); *p >= '0' && *p <= '9' && v < 100000; p++) v = 10 * v + (*p - '0');
    return v;
}

static bool has(const char *ua, const char *text) {
    return strstr(ua, text) != NULL;
}

static const char *system_of(const char *ua) {
    static const char *const rows_[][2] = {
        { "iPad", "ipados" },     { "iPhone", "ios" },     { "iPod", "ios" },
        { "Android", "android" }, { "CrOS", "chromeos" },  { "Windows", "windows" },
        { "Macintosh", "macos" }, { "Mac OS X", "macos" }, { "Linux", "linux" },
        { "X11", "linux" },
    };
    for (size_t i = 0; i < ARRAY_LEN(rows_); i++)
        if (has(ua, rows_[i][0])) return rows_[i][1];
    return "other";
}

/* Which browser a token names; the first row that is found counts, so those that also carry the
 * tokens of others come first. A NULL engine is WebKit on Apple's phones and tablets, else Blink.
 */
typedef struct Brand {
    const char *token, *browser, *engine;
} Brand;
static const Brand brands[] = {
    { "CriOS/", "chrome", "webkit" },
    { "FxiOS/", "firefox", "webkit" },
    { "EdgiOS/", "edge", "webkit" },
    { "OPiOS/", "opera", "webkit" },
    { "OPT/", "opera", NULL },
    { "OPX/", "opera", NULL },
    { "Seamonkey/", "other", "gecko" },
    { "SeaMonkey/", "other", "gecko" },
    { "Firefox/", "firefox", "gecko" },
    { "EdgA/", "edge", "blink" },
    { "Edg/", "edge", "blink" },
    { "Edge/", "edge", "other" }, /* EdgeHTML */
    { "OPR/", "opera", "blink" },
    { "Opera/", "opera", "other" }, /* Presto */
    { "SamsungBrowser/", "samsung", "blink" },
    { "DuckDuckGo/", "duckduckgo", NULL },
    { "Ddg/", "duckduckgo", NULL },
    { "YaBrowser/", "yandex", NULL },
    { "Vivaldi/", "vivaldi", "blink" },
    { "UCBrowser/", "other", NULL },
    { "Electron/", "electron", "blink" },
    { "FBAV/", "webview", NULL },
    { "Instagram ", "webview", NULL },
    { "GSA/", "webview", NULL },
    { "; wv)", "webview", "blink" },
    { "HeadlessChrome/", "chrome", "blink" },
};

static void set(char *to, size_t cap, const char *word) {
    size_t n = strlen(word);
    memset(to, 0, cap);
    memcpy(to, word, MIN(n, cap - 1));
}

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

static bool apple_mobile(const char *os) {
    return is(os, "ios") || is(os, "ipados");
}

/* Those that no token of the table names. */
static Brand plain_brand(const char *ua, const char *os) {
    if (has(ua, "Chrome/"))
        return (Brand){ "Chrome/",
                        is(os, "android") && has(ua, "Version/4.0") ? "webview" : "chrome",
                        "blink" };
    if (has(ua, "Chromium/")) return (Brand){ "Chromium/", "chrome", "blink" };
    if (!has(ua, "AppleWebKit/")) return (Brand){ "", "other", "other" };
    if (has(ua, "Epiphany/")) return (Brand){ "Version/", "epiphany", "webkit" };
    if (has(ua, "Version/") && has(ua, "Safari/"))
        return (Brand){ "Version/",
                        is(os, "linux")     ? "webkitgtk"
                        : is(os, "android") ? "other"
                                            : "safari",
                        "webkit" };
    return (Brand){ "Version/", "webview", "webkit" };
}

static Brand brand_of(const char *ua, const char *os) {
    for (size_t i = 0; i < ARRAY_LEN(brands); i++) {
        if (!has(ua, brands[i].token)) continue;
        Brand b = brands[i];
        if (!b.engine) b.engine = apple_mobile(os) || !has(ua, "Chrome/") ? "webkit" : "blink";
        if (is(b.browser, "webview")) b.token = apple_mobile(os) ? "Version/" : "Chrome/";
        return b;
    }
    return plain_brand(ua, os);
}

/* Safari's number of a WebKit: apps on Apple's phones have the system's, which is the same. */
static int64_t webkit_version(const char *ua) {
    return MAX(MAX(number_after(ua, "Version/"), number_after(ua, " OS ")),
               number_after(ua, "iOS "));
}

void device_user_agent(DeviceInfo *d, const char *ua) {
    const char *os = system_of(ua);
    Brand b = brand_of(ua, os);
    bool ios_brand = is(b.engine, "webkit") && (has(ua, "iOS/") || apple_mobile(os));
    if (ios_brand && is(os, "macos")) os = "ipados"; /* an app that asks for the desktop's page */
    set(d->browser, sizeof d->browser, b.browser);
    set(d->engine, sizeof d->engine, b.engine);
    set(d->os, sizeof d->os, os);
    d->mobile = apple_mobile(os) || is(os, "android") || has(ua, "Mobile");
    d->engine_version =
        is(b.engine, "webkit")  ? webkit_version(ua)
        : is(b.engine, "blink") ? MAX(number_after(ua, "Chrome/"), number_after(ua, "Chromium/"))
        : is(b.engine, "gecko") ? MAX(number_after(ua, "Firefox/"), number_after(ua, "rv:"))
                                : 0;
    d->version = b.token[0] ? number_after(ua, b.token) : 0;
    if (d->engine_version == 0) d->engine_version = -1; /* unknown */
    if (d->version == 0) d->version = d->engine_version;
}

/* Takes over from `from` what d does not know. */
static void fill_label(DeviceInfo *d, const DeviceInfo *from) {
    if (!d->browser[0]) memcpy(d->browser, from->browser, sizeof d->browser);
    if (!d->engine[0]) memcpy(d->engine, from->engine, sizeof d->engine);
    if (!d->os[0]) memcpy(d->os, from->os, sizeof d->os);
    if (d->version < 0) d->version = from->version;
    if (d->engine_version < 0) d->engine_version = from->engine_version;
    if (d->mobile < 0) d->mobile = from->mobile;
}

/* The engine that a browser has, where only its name is known. */
static const char *engine_of(const DeviceInfo *d) {
    if (is(d->browser, "native")) return "native";
    if (apple_mobile(d->os)) return "webkit";
    if (is(d->browser, "firefox")) return "gecko";
    if (is(d->browser, "safari") || is(d->browser, "epiphany") || is(d->browser, "webkitgtk"))
        return "webkit";
    static const char *const blink[] = { "chrome", "edge",    "opera",    "samsung",
                                         "yandex", "vivaldi", "electron", "webview" };
    for (size_t i = 0; i < ARRAY_LEN(blink); i++)
        if (is(d->browser, blink[i])) return "blink";
    return "other";
}

void device_complete(DeviceInfo *d) {
    /* iPadOS asks for desktop pages: a Mac has no touch screen */
    if (d->user_agent[0]) {
        DeviceInfo said;
        device_clear(&said);
        device_user_agent(&said, d->user_agent);
        if (d->touch_points > 1 && is(said.os, "macos") && is(said.engine, "webkit")) {
            set(said.os, sizeof said.os, "ipados");
            said.mobile = 1;
            d->mobile = 1;
        }
        fill_label(d, &said);
    }
    if (d->browser[0] && !d->engine[0]) set(d->engine, sizeof d->engine, engine_of(d));
    bool own = is(d->browser, "samsung") || is(d->browser, "opera"); /* numbers of their own */
    if (!d->user_agent[0] && d->version >= 0 && d->engine_version < 0 && !own)
        d->engine_version = d->version;
}
