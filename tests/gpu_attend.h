/* gpu_attend.h - of tests/gpu.c: attention, token after token. */
#ifndef GPU_ATTEND_H
#define GPU_ATTEND_H
#include "gpu_test.h"

void gpu_attend_cases(GpuOps *o, Ops *cpu, bool few);
#endif
