/* plan.c - `dibit plan`: what to run on a device, with the reason of every choice. Choosing is
 * src/plan.h; here are words and tables. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "feature.h"
#include "shape.h"

typedef struct Args {
    const char *model, *device, *browser, *cache_k, *cache_v;
    int version, n_ctx, n_threads;
    int64_t memory_mb, budget_mb;
    bool mobile, json;
} Args;

typedef struct Report {
    const Args *a;
    DeviceInfo device;
    PlanModel model;
    bool has_model;
    Plan plan;
} Report;

/* ---- the device ---- */

/* One that is not here: desktops are taken as Windows (Safari: macOS), phones as Android (iOS). */
static void name_device(DeviceInfo *d, const Args *a) {
    bool safari = strcmp(a->browser, "safari") == 0,
         gtk = !strcmp(a->browser, "webkitgtk") || !strcmp(a->browser, "epiphany");
    device_clear(d);
    snprintf(d->browser, sizeof d->browser, "%s", a->browser);
    snprintf(d->os, sizeof d->os, "%s",
             a->mobile ? (safari ? "ios" : "android")
             : safari  ? "macos"
             : gtk     ? "linux"
                       : "windows");
    d->mobile = a->mobile;
    if (a->version > 0) d->version = a->version;
    device_complete(d);
    if (d->engine_version < 0) d->engine_version = d->version; /* Opera and Samsung: as Chrome's */
    device_reported(d);
}

static int find_device(Report *r) {
    const Args *a = r->a;
    DeviceInfo *d = &r->device;
    DibitError no_gpu;
    if (a->device && (a->browser || a->mobile || a->version))
        return cli_misuse("plan", "--device is instead of --browser, --version and --mobile");
    if (!a->browser && (a->mobile || a->version))
        return cli_misuse("plan", "--version and --mobile need --browser");
    if (a->browser && !a->version) return cli_misuse("plan", "--browser needs --version");
    if (a->device) {
        int code = device_from_json(d, a->device);
        if (code != 0) return code;
    } else if (a->browser) {
        name_device(d, a);
    } else {
        device_here(d, &no_gpu);
    }
    if (a->memory_mb) {
        d->memory_mb = a->memory_mb;
        d->memory_free_mb = -1;
    }
    return 0;
}

/* ---- the model ---- */

static int find_model(Report *r) {
    const char *name = r->a->model;
    char path[2048];
    DibitError err = { 0 };
    r->has_model = true;
    if (name && shape_find(name)) return plan_named(&r->model, name, &err) < 0 ? cli_fail(&err) : 0;
    size_t n = name ? strlen(name) : 0;
    bool file = n > 5 && strcmp(name + n - 5, ".gguf") == 0;
    if (name && !file && !strchr(name, '/') && access(name, F_OK) != 0)
        return cli_error("--model: \"%.60s\" is neither a file nor a known model (`dibit context "
                         "--list` names them)",
                         name);
    name = cli_model_path(name, path, sizeof path);
    if (!name) return 1;
    return plan_file(&r->model, name, &err) < 0 ? cli_fail(&err) : 0;
}

static int make(Report *r) {
    const Args *a = r->a;
    PlanRequest q;
    Features f;
    DibitError err = { 0 };
    plan_request_read(&q, "", 0, &err);
    if (a->budget_mb) q.budget_mb = a->budget_mb;
    if (!a->device && !a->browser &&
        features_open(&f, NULL, "dibit " DIBIT_VERSION, NULL, NULL) == 0)
        features_disabled(&f, q.disabled, sizeof q.disabled);
    if (a->n_ctx) q.n_ctx = a->n_ctx;
    if (a->n_threads) q.n_threads = a->n_threads;
    if (a->cache_k) snprintf(q.cache_type_k, sizeof q.cache_type_k, "%s", a->cache_k);
    if (a->cache_v) snprintf(q.cache_type_v, sizeof q.cache_type_v, "%s", a->cache_v);
    return plan_make(&r->plan, &r->device, &r->model, &q, &err) < 0 ? cli_fail(&err) : 0;
}

/* ---- text ---- */

static const char *commas(const char *digits, char buf[64]) {
    size_t n = strlen(digits), at = 0;
    if (strspn(digits, "0123456789") != n || n > 20 || n < 5) return digits;
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = 0;
    return buf;
}

enum { KEY = 20, VALUE = 21, WIDTH = 100 };

/* The reason beside the value, and on lines of its own below where it is long. */
static void print_line(const PlanLine *l) {
    char buf[64];
    printf("  %-*s%-*s", KEY, l->key, VALUE, commas(l->value, buf));
    const char *p = l->reason;
    for (size_t room = WIDTH - 2 - KEY - VALUE; *p;) {
        size_t n = strlen(p);
        if (n > room)
            for (n = room; n && p[n] != ' '; n--) {
            }
        if (n == 0) n = strlen(p);
        printf("%.*s\n", (int)n, p);
        p += n + (p[n] == ' ');
        if (*p) printf("  %-*s%-*s", KEY, "", VALUE, "");
    }
}

static void print_part(const Plan *p, const char *title, const char *keys) {
    char key[64];
    printf("\n%s\n", title);
    for (; *keys; keys += *keys == ' ') {
        size_t n = strcspn(keys, " ");
        snprintf(key, sizeof key, "%.*s", (int)n, keys);
        keys += n;
        const PlanLine *l = plan_line(p, key);
        if (l) print_line(l);
    }
}

static void print_head(const Report *r) {
    const DeviceInfo *d = &r->device;
    const PlanModel *m = &r->model;
    char version[32] = "", params[32], buf[64];
    if (d->version >= 0) snprintf(version, sizeof version, " %lld", (long long)d->version);
    printf("device  %s%s%s%s%s%s%s\n", d->browser[0] ? d->browser : "not named", version,
           d->os[0] ? " on " : "", d->os, d->mobile == 1 ? ", a phone or tablet" : "",
           d->cpu[0] ? ", " : "", d->cpu);
    if (r->a->browser) printf("        features as public data reports them, not probed\n");
    snprintf(params, sizeof params, "%llu", (unsigned long long)m->context.n_params);
    printf("model   %s, %s weights\n", m->name[0] ? m->name : m->architecture, commas(params, buf));
}

/* Makes the file that the plan has in mind. */
static void print_command(const Report *r) {
    const Plan *p = &r->plan;
    const int *t = p->type;
    const char *ff = type_info(t[GROUP_FEED_FORWARD])->name,
               *attention = type_info(t[GROUP_ATTENTION])->name;
    if (!r->model.weigh) return;
    printf("\nto make it: dibit quantize -m BASE.gguf -o %s.gguf --type %s", r->model.name, ff);
    if (strcmp(ff, attention) != 0) printf(" --tensor-type 'attn_.*=%s'", attention);
    printf(" --embedding-type %s\n", type_info(t[GROUP_EMBEDDING])->name);
}

static void print_text(const Report *r) {
    const Plan *p = &r->plan;
    print_head(r);
    print_part(p, "how it runs", "backend module n_threads sleep_ms");
    print_part(p, "weights", "bits embedding attention feed_forward audio norms output repack");
    print_part(p, "cache", "cache_type_k cache_type_v n_ctx");
    print_part(p, "bytes", "memory budget weights kv scratch staging total fits");
    printf("\nfeatures\n");
    for (int i = 0; i < N_FEATURES; i++) {
        const PlanLine *l = plan_line(p, plan_feature_names[i]);
        if (l) print_line(l);
    }
    print_command(r);
}

/* ---- JSON ---- */

static json_t *line_value(const PlanLine *l) {
    if (strcmp(l->value, "on") == 0 || strcmp(l->value, "yes") == 0) return json_true();
    if (strcmp(l->value, "off") == 0 || strcmp(l->value, "no") == 0) return json_false();
    if (l->value[0] && l->value[strspn(l->value, "0123456789")] == 0 && strlen(l->value) < 19)
        return json_loads(l->value, JSON_DECODE_ANY, NULL);
    return json_string(l->value);
}

static int print_json(const Report *r) {
    const Plan *p = &r->plan;
    json_t *o = json_object(), *choices = json_object();
    int bad = 0;
    for (int i = 0; i < p->n_lines; i++) {
        const PlanLine *l = &p->lines[i];
        bad |= json_object_set_new(
            choices, l->key, json_pack("{s:o,s:s}", "value", line_value(l), "reason", l->reason));
    }
    bad |= json_object_set_new(o, "model", json_string(r->model.name));
    bad |=
        json_object_set_new(o, "parameters", json_integer((json_int_t)r->model.context.n_params));
    bad |= json_object_set_new(o, "device", device_json(&r->device));
    bad |=
        json_object_set_new(o, "features_from", json_string(r->a->browser ? "reported" : "probed"));
    bad |= json_object_set_new(o, "fits", json_boolean(p->fits));
    bad |= json_object_set_new(o, "plan", choices);
    return bad ? cli_error("no memory for the report") : cli_print_json(o, true);
}

/* ---- the command ---- */

int cmd_plan(int argc, char **argv) {
    Args a = { .json = false };
    const CliOption options[] = {
        { "model", "m", CLI_FILE, &a.model, "MODEL",
          "a file in GGUF form, or a name that `dibit context --list` shows (default: "
          "dibit-34m.gguf in models/)",
          0, 0, NULL },
        { "device", NULL, CLI_FILE, &a.device, "FILE",
          "plan for a device of which this is the JSON, as `dibit detect --json` prints (-: stdin)",
          0, 0, NULL },
        { "browser", NULL, CLI_CHOICE, &a.browser, "NAME",
          "plan for this browser, from what public data says of it", 0, 0,
          "chrome edge firefox safari opera samsung webview epiphany webkitgtk" },
        { "version", NULL, CLI_INT, &a.version, "V", "of the browser", 1, 100000, NULL },
        { "mobile", NULL, CLI_FLAG, &a.mobile, NULL, "it is on a phone or tablet", 0, 0, NULL },
        { "memory", NULL, CLI_INT64, &a.memory_mb, "MB", "memory of the device in MiB", 1, 1 << 24,
          NULL },
        { "budget-mb", NULL, CLI_INT64, &a.budget_mb, "N",
          "memory for weights, scratch and KV together, in MiB (default: a share of the memory)", 1,
          1 << 24, NULL },
        { "ctx-size", "c", CLI_INT, &a.n_ctx, "N", "positions (default: 4096, or fewer)", 1,
          CONTEXT_LIMIT, NULL },
        { "cache-type-k", "ctk", CLI_CHOICE, &a.cache_k, "TYPE", "type of the cache's keys", 0, 0,
          CLI_KV_TYPES },
        { "cache-type-v", "ctv", CLI_CHOICE, &a.cache_v, "TYPE", "type of the cache's values", 0, 0,
          CLI_KV_TYPES },
        CLI_THREADS_ROW(&a.n_threads),
        CLI_JSON_ROW(&a.json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "plan",
        "[-m FILE | --model NAME] [--device FILE | --browser NAME --version V] [options]",
        "Says how a model should run on a device and why: backend, types of the weights, types of "
        "the\n"
        "KV cache, context, threads, bytes. Without --device and --browser the device is this "
        "machine.\n"
        "The types of a file are as they are; those of a model by name are chosen. The rules are "
        "in\n"
        "docs/PLAN.md. Exit code 1 when the model does not fit.",
        options,
        NULL,
        0,
        0,
        "  dibit plan -m models/dibit-34m.gguf\n"
        "  dibit plan --model qwen3-4b --browser chrome --version 151 --memory 8192\n"
        "  dibit plan --model llama-3.2-1b --browser safari --version 26 --mobile -c 8192\n"
        "  dibit detect --json | dibit plan --model qwen3-8b --device -"
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    Report r = { .a = &a };
    code = find_device(&r);
    if (code == 0) code = find_model(&r);
    if (code == 0) code = make(&r);
    if (code != 0) return code;
    if (a.json)
        code = print_json(&r);
    else
        print_text(&r);
    return code ? code : r.plan.fits && r.plan.backend != BACKEND_NONE ? 0 : 1;
}
