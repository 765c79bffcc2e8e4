/* detect.c - `dibit detect`: what this machine can do, or what a user agent says; and devices as
 * JSON, for `dibit plan` too. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "feature.h"
#include "gpu/gpu.h"

/* ---- JSON ---- */

json_t *device_json(const DeviceInfo *d) {
    json_t *o = json_object();
    char value[1280];
    const char *name;
    for (int i = 0; device_field(d, i, &name, value, sizeof value) || name; i++) {
        if (!device_field(d, i, &name, value, sizeof value)) continue;
        json_t *v =
            device_field_is_text(i) ? json_string(value) : json_loads(value, JSON_DECODE_ANY, NULL);
        if (json_object_set_new(o, name, v) != 0) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

/* A value as device_set() takes it; false for lists, objects and null. */
static bool value_text(const json_t *v, char *buf, size_t cap) {
    buf[0] = 0;
    if (json_is_boolean(v))
        snprintf(buf, cap, "%s", json_is_true(v) ? "true" : "false");
    else if (json_is_integer(v))
        snprintf(buf, cap, "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(buf, cap, "%.12g", json_real_value(v));
    else if (json_is_string(v) && json_string_length(v) < cap)
        snprintf(buf, cap, "%s", json_string_value(v));
    else
        return false;
    return true;
}

int device_from_json(DeviceInfo *d, const char *path) {
    char value[2048];
    size_t n;
    DibitError err = { 0 };
    json_error_t where;
    char *text = cli_read(path, &n);
    if (!text) return 1;
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, &where);
    free(text);
    if (!json_is_object(o)) {
        const char *why = o ? "it is something else" : where.text;
        json_decref(o);
        return cli_error("%s: not a JSON object of a device: %s", path, why);
    }
    int r = 0;
    const char *key;
    json_t *v;
    device_clear(d);
    json_object_foreach(o, key, v) {
        if (r != 0 || json_is_null(v)) continue; /* null: unknown */
        if (!value_text(v, value, sizeof value))
            r = cli_error("%s: %.40s: a text, a number, true or false of up to %zu bytes", path,
                          key, sizeof value - 1);
        else if (device_set(d, key, value, &err) != 0)
            r = cli_error("%s: %s", path, err.text);
    }
    json_decref(o);
    if (r == 0) device_complete(d);
    return r;
}

/* ---- this machine ---- */

static void find_vulkan(DeviceInfo *d) {
    void *loader = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!loader) {
        snprintf(d->vulkan, sizeof d->vulkan, "no loader (libvulkan.so.1)");
        return;
    }
    union { /* a function's address through void * */
        void *p;
        int (*f)(uint32_t *);
    } version = { dlsym(loader, "vkEnumerateInstanceVersion") };
    uint32_t v = 0;
    if (version.p && version.f(&v) == 0)
        snprintf(d->vulkan, sizeof d->vulkan, "loader %u.%u.%u", v >> 22 & 0x7f, v >> 12 & 0x3ff,
                 v & 0xfff);
    else
        snprintf(d->vulkan, sizeof d->vulkan, "loader");
    dlclose(loader);
}

/* What --backend gpu would take; err: why there is none. */
static void find_gpu(DeviceInfo *d, DibitError *err) {
    Gpu *gpu;
    const GpuOptions opt = { .library = NULL };
    d->webgpu = gpu_open(&gpu, &opt, err) == 0;
    if (!d->webgpu) return;
    const GpuCaps *c = gpu_caps(gpu);
    d->gpu_fallback = c->software;
    d->gpu_f16 = c->f16;
    d->gpu_subgroups = c->subgroups;
    d->gpu_packed_dot = c->dot4;
    d->gpu_max_buffer = (int64_t)MIN(c->max_buffer, (uint64_t)1 << 49);
    d->gpu_max_binding = (int64_t)MIN(c->max_binding, (uint64_t)1 << 49);
    d->gpu_workgroup_storage = c->workgroup_bytes;
    d->gpu_invocations = c->invocations;
    d->gpu_storage_buffers = c->storage_buffers;
    snprintf(d->gpu_vendor, sizeof d->gpu_vendor, "%s", c->vendor);
    snprintf(d->gpu_description, sizeof d->gpu_description, "%s", c->name);
    gpu_close(&gpu);
}

void device_here(DeviceInfo *d, DibitError *no_gpu) {
    device_native(d);
    find_vulkan(d);
    find_gpu(d, no_gpu);
}

/* ---- text ---- */

static void row(const char *name, const char *text) {
    if (text[0]) printf("%-12s%s\n", name, text);
}

static void print_label(const DeviceInfo *d) {
    char text[160] = "";
    if (d->version >= 0) snprintf(text, sizeof text, "%s %lld", d->browser, (long long)d->version);
    row("browser", text[0] ? text : d->browser);
    text[0] = 0;
    if (d->engine_version >= 0)
        snprintf(text, sizeof text, "%s %lld", d->engine, (long long)d->engine_version);
    row("engine", text[0] ? text : d->engine);
    row("system", d->os);
    row("mobile", d->mobile < 0 ? "not known" : d->mobile ? "yes" : "no");
}

static void print_native(const DeviceInfo *d, const DibitError *no_gpu) {
    char text[300];
    row("system", d->os);
    row("processor", d->cpu);
    row("kernels", d->isa);
    snprintf(text, sizeof text, "%lld", (long long)d->cores);
    row("cores", text);
    snprintf(text, sizeof text, "%lld MiB, of which %lld are free", (long long)d->memory_mb,
             (long long)d->memory_free_mb);
    row("memory", text);
    if (d->battery_level >= 0) {
        snprintf(text, sizeof text, "%.0f %%, %s", d->battery_level * 100,
                 d->battery_charging ? "charging or full" : "discharging");
        row("battery", text);
    }
    row("vulkan", d->vulkan);
    snprintf(text, sizeof text, "%s%s", d->webgpu == 1 ? d->gpu_description : no_gpu->text,
             d->gpu_fallback == 1 ? ", software" : "");
    row("gpu", text);
}

/* What earlier runs found to fail here. */
static void print_features(void) {
    Features f;
    char off[512];
    DibitError err = { 0 };
    if (features_open(&f, NULL, "dibit " DIBIT_VERSION, NULL, &err) != 0)
        snprintf(off, sizeof off, "%s", err.text);
    else if (f.note[0])
        snprintf(off, sizeof off, "%s", f.note);
    else if (features_disabled(&f, off, sizeof off) == 0)
        snprintf(off, sizeof off, "none has failed");
    row("features", off);
}

/* ---- the command ---- */

int cmd_detect(int argc, char **argv) {
    const char *ua = NULL;
    bool json = false;
    DeviceInfo d;
    DibitError no_gpu = { 0 };
    const CliOption options[] = {
        { "user-agent", NULL, CLI_TEXT, &ua, "UA",
          "say what this user agent says, and not what this machine is", 0, 0, NULL },
        CLI_JSON_ROW(&json),
        { .name = NULL },
    };
    const CliCommand cmd = {
        "detect",
        "[--user-agent UA]",
        "Says what this machine can do: processor, memory, cores, instruction set. With a user "
        "agent\n"
        "what that says: browser, version, engine, system, phone or not; a label and no more, "
        "since\n"
        "what a browser can do is probed in it. --json prints what `dibit plan --device` reads.",
        options,
        NULL,
        0,
        0,
        "  dibit detect\n"
        "  dibit detect --json > here.json; dibit plan --model qwen3-4b --device here.json\n"
        "  dibit detect --user-agent \"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 "
        "Firefox/128.0\""
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (ua) {
        DibitError err = { 0 };
        device_clear(&d);
        if (device_set(&d, "user_agent", ua, &err) != 0)
            return cli_misuse("detect", "--%s", err.text);
        device_complete(&d);
    } else {
        device_here(&d, &no_gpu);
    }
    if (json) {
        json_t *o = device_json(&d);
        return o ? cli_print_json(o, true) : cli_error("no memory for the report");
    }
    if (ua)
        print_label(&d);
    else
        print_native(&d, &no_gpu), print_features();
    return 0;
}
