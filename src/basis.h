/* basis.h - the rotation of head vectors before they are quantised: signs, then a Hadamard
 * transform, so that every coordinate looks alike. Orthogonal; docs/FORMAT.md has it to the bit. */
#ifndef BASIS_H
#define BASIS_H
#include <stdbool.h>

/* x (d values, d a multiple of 8 up to 256) in place, forth or back. Where d is no power of two:
 * blocks of the largest power of two that divides it, twice, with the values dealt out between. */
void basis_rotate(float *x, int d, bool back);

/* Replaces the matrix a (d, d) by its inverse; b is room for as much. False when it has none, or
 * one with a number that is not finite. */
bool basis_invert(double *a, double *b, int d);
#endif
