/* gpu.c - --backend: engines on a GPU, or on the CPU where `auto` finds no better. What was taken
 * is said on stderr. */
#include <string.h>

#include "cli.h"
#include "gpu/gpu.h"
#include "gpu/step.h"

static int open_here(DibitEngine **out, const char *path, const void *image, size_t size,
                     const DibitOptions *opt, DibitError *err) {
    return path ? dibit_open(out, path, opt, err) : dibit_open_memory(out, image, size, opt, err);
}

int cli_open_engine(DibitEngine **out, const CliModel *m, const char *path, const void *image,
                    size_t size) {
    DibitOptions opt;
    DibitError err = { 0 };
    GpuCaps caps = { 0 };
    cli_engine_options(m, &opt);
    const char *backend = m->backend ? m->backend : "cpu";
    bool gpu = strcmp(backend, "gpu") == 0, automatic = strcmp(backend, "auto") == 0;
    int r = gpu || automatic ? gpu_backend(&opt.backend, NULL, &caps, &err) : 0;
    if (r < 0 && gpu) return cli_fail(&err);
    if (opt.backend && automatic && caps.software) { /* slower than the CPU it runs on */
        gpu_backend_free(&opt.backend);
        r = fail(&err, DIBIT_E_UNSUPPORTED, "the only adapter is %s, software", caps.name);
    }
    if (opt.backend) r = open_here(out, path, image, size, &opt, &err);
    if (r == 0 && opt.backend) {
        fprintf(stderr, "dibit: on the GPU %s (%s)\n", caps.name, caps.driver);
        return 0;
    }
    if (r < 0 && gpu) return cli_fail(&err);
    if (automatic) fprintf(stderr, "dibit: on the CPU: %s\n", err.text);
    opt.backend = NULL;
    return open_here(out, path, image, size, &opt, &err) < 0 ? cli_fail(&err) : 0;
}
