/* selftest.h - whether the kernels of this machine give what plain C gives, on a small case each. */
#ifndef SELFTEST_H
#define SELFTEST_H
#include "kern/kern.h"

/* The name of the first slot of `kern` that differs from scalar's result, or NULL. About a
 * millisecond. */
const char *selftest(const Kern *kern);
#endif
