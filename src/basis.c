/* basis.c - signed Hadamard rotations. Only sums, differences and one product a value: exact order,
 * equal everywhere. */
#include "basis.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SEED = 0x6b763233 };

static uint32_t lowbias32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

static void signs(float *x, int d, int stage) {
    for (int j = 0; j < d; j++)
        if (lowbias32(SEED + (uint32_t)stage + (uint32_t)j * 0x9e3779b9u) >> 31) x[j] = -x[j];
}

/* Hadamard of each block of b, scaled to be orthogonal. */
static void hadamard(float *x, int d, int b) {
    for (int h = 1; h < b; h *= 2)
        for (int i = 0; i < d; i += 2 * h)
            for (int j = i; j < i + h; j++) {
                float u = x[j], v = x[j + h];
                x[j] = u + v;
                x[j + h] = u - v;
            }
    float scale = (float)(1.0 / sqrt(b));
    for (int j = 0; j < d; j++) x[j] *= scale;
}

/* Deals the values of m blocks out: value j goes to j % b * m + j / b, or comes back. */
static void deal(float *x, int d, int b, bool back) {
    float y[256];
    int m = d / b;
    memcpy(y, x, (size_t)d * sizeof *x);
    for (int j = 0; j < d; j++) {
        int to = j % b * m + j / b;
        x[back ? j : to] = y[back ? to : j];
    }
}

void basis_rotate(float *x, int d, bool back) {
    int b = d & -d;
    if (back) {
        if (b != d) {
            hadamard(x, d, b);
            signs(x, d, 1);
            deal(x, d, b, true);
        }
        hadamard(x, d, b);
        signs(x, d, 0);
        return;
    }
    signs(x, d, 0);
    hadamard(x, d, b);
    if (b == d) return;
    deal(x, d, b, false);
    signs(x, d, 1);
    hadamard(x, d, b);
}
