/* step.h - models on a GPU: the backend that the program gives to dibit_open(). */
#ifndef STEP_H
#define STEP_H
#include "gpu/gpu.h"

/* Opens a GPU. On success *out is for DibitOptions.backend, which takes it over; caps may be NULL.
 * opt->library must stay: a device that is lost is asked for anew. */
int gpu_backend(struct DibitBackend **out, const GpuOptions *opt, GpuCaps *caps, DibitError *err);
void gpu_backend_free(struct DibitBackend **b); /* one that no engine took over */
/* The GPU behind it, for tests. */
Gpu *gpu_of_backend(struct DibitBackend *b);
#endif
