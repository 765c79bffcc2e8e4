/* device.h - what `dibit detect` and `dibit plan` share: a device from options or from JSON. */
#ifndef APP_DEVICE_H
#define APP_DEVICE_H
#include "cli.h"
#include "plan.h"

/* From a file (or "-") with a JSON object of DeviceInfo's fields. 0, or the exit code after the
 * error was printed. */
int device_from_json(DeviceInfo *d, const char *path);
/* This machine, its GPU included; no_gpu says why there is none. */
void device_here(DeviceInfo *d, DibitError *no_gpu);
json_t *device_json(const DeviceInfo *d); /* NULL: no memory */
#endif
