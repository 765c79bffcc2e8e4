/* device_native.c - this machine as a DeviceInfo: from the processor, and from what the system says
 * in files. A container's limits count: they are what the process may use. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kern/kern.h"
#include "plan.h"

/* The beginning of a file as text; false where there is none. */
static bool read_start(const char *path, char *buf, size_t cap) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, cap - 1);
    if (fd >= 0) close(fd);
    buf[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* The text after "name:" and blanks up to the line's end. */
static bool line_value(const char *text, const char *name, char *out, size_t cap) {
    const char *p = strstr(text, name);
    if (!p) return false;
    p += strlen(name);
    p += strspn(p, " \t:");
    snprintf(out, cap, "%.*s", (int)MIN(strcspn(p, "\n"), cap - 1), p);
    return out[0] != 0;
}

static uint64_t number_in(const char *path) { /* UINT64_MAX: none, as in "max" */
    char text[64];
    if (!read_start(path, text, sizeof text) || text[0] < '0' || text[0] > '9') return UINT64_MAX;
    return strtoull(text, NULL, 10);
}

static void read_memory(DeviceInfo *d) {
    char text[4096], value[64];
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t total = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0, free_bytes = 0;
    uint64_t limit = MIN(number_in("/sys/fs/cgroup/memory.max"),
                         number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    uint64_t used = number_in("/sys/fs/cgroup/memory.current");
    if (read_start("/proc/meminfo", text, sizeof text) &&
        line_value(text, "MemAvailable", value, sizeof value))
        free_bytes = strtoull(value, NULL, 10) << 10;
    if (total && limit < total) {
        total = limit;
        free_bytes = MIN(free_bytes, used < limit ? limit - used : limit);
    }
    if (total >> 20) d->memory_mb = (int64_t)(total >> 20);
    if (free_bytes >> 20) d->memory_free_mb = (int64_t)(free_bytes >> 20);
}

/* Cores of the process, or as many as its share of their time amounts to. */
static void read_cores(DeviceInfo *d) {
    char text[128];
    d->cores = cpu_count();
    if (!read_start("/sys/fs/cgroup/cpu.max", text, sizeof text)) return;
    char *end;
    uint64_t quota = strtoull(text, &end, 10), period = strtoull(end, NULL, 10);
    if (end == text || quota == 0 || period == 0) return; /* "max" */
    d->cores = MAX(1, MIN(d->cores, (int64_t)((quota + period - 1) / period)));
}

static void read_battery(DeviceInfo *d) {
    char path[96], text[64];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/sys/class/power_supply/BAT%d/capacity", i);
        uint64_t percent = number_in(path);
        if (percent > 100) continue;
        snprintf(path, sizeof path, "/sys/class/power_supply/BAT%d/status", i);
        if (!read_start(path, text, sizeof text)) continue;
        d->battery_level = (double)percent / 100;
        d->battery_charging = strncmp(text, "Discharging", 11) != 0;
        return;
    }
}

void device_native(DeviceInfo *d) {
    char text[4096];
    device_clear(d);
    strcpy(d->browser, "native");
    strcpy(d->engine, "native");
    d->mobile = 0;
#if defined(__ANDROID__)
    strcpy(d->os, "android");
    d->mobile = 1;
#elif defined(__linux__)
    strcpy(d->os, "linux");
#elif defined(__APPLE__)
    strcpy(d->os, "macos");
#else
    strcpy(d->os, "other");
#endif
    if (read_start("/proc/cpuinfo", text, sizeof text))
        line_value(text, "model name", d->cpu, sizeof d->cpu);
    snprintf(d->isa, sizeof d->isa, "%s", isa_name(isa_detect()));
    read_memory(d);
    read_cores(d);
    read_battery(d);
}
