/* basis.h - the rotation of head vectors before they are quantised: signs, then a Hadamard
 * transform, so that every coordinate looks alike. Orthogonal; docs/FORMAT.md has it to the bit. */
#ifndef BASIS_H
#define BASIS_H
#include <stdbool.h>

/* x (d values, d a multiple of 8 up to 256) in place, forth or back. Where d is no power of two:
 * blocks of the largest power of two that divides it, twice, with the values dealt out between. */
void basis_rotate(float *x, int d, bool back);
#endif
