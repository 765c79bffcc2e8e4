/* basis.c - signed Hadamard rotations. Only sums, differences and one product a value: exact order,
 * equal everywhere. */
#include "basis.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Bit j % 32 of word j / 32: whether value j changes its sign; the highest bit of
 * lowbias32(0x6b763233 + stage + j * 0x9e3779b9), see docs/FORMAT.md. */
static const uint32_t minus[2][8] = {
    { 0x672583ba, 0xca0c193c, 0x196b6c48, 0xb6f4c1a3, 0x5ceccf16, 0x7706eafd, 0xb6609b10,
      0x69960bc2 },
    { 0xc0c26b47, 0x3e882697, 0xae057eaf, 0x8c0b4893, 0x62ab241a, 0x4c87ab13, 0x4da74d5b,
      0x37533138 },
};

typedef float F4 __attribute__((vector_size(16)));

static F4 load(const float *p) {
    F4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static void store(float *p, F4 v) {
    memcpy(p, &v, sizeof v);
}

static void signs(float *x, int d, int stage) { /* d is a multiple of 4 */
    static const float of[16][4] = {
        { 1, 1, 1, 1 },   { -1, 1, 1, 1 },   { 1, -1, 1, 1 },   { -1, -1, 1, 1 },
        { 1, 1, -1, 1 },  { -1, 1, -1, 1 },  { 1, -1, -1, 1 },  { -1, -1, -1, 1 },
        { 1, 1, 1, -1 },  { -1, 1, 1, -1 },  { 1, -1, 1, -1 },  { -1, -1, 1, -1 },
        { 1, 1, -1, -1 }, { -1, 1, -1, -1 }, { 1, -1, -1, -1 }, { -1, -1, -1, -1 },
    };
    for (int j = 0; j < d; j += 4)
        store(x + j, load(x + j) * load(of[minus[stage][j / 32] >> j % 32 & 15]));
}

/* Hadamard of each block of b, a multiple of 4, scaled to be orthogonal. */
static void hadamard(float *x, int d, int b) {
    const F4 odd = { 1, -1, 1, -1 }, high = { 1, 1, -1, -1 };
    float root = (float)(1.0 / sqrt(b));
    for (int j = 0; j < d; j += 4) { /* steps of 1 and 2 */
        F4 v = load(x + j);
        v = v * odd + __builtin_shufflevector(v, v, 1, 0, 3, 2);
        v = v * high + __builtin_shufflevector(v, v, 2, 3, 0, 1);
        store(x + j, v);
    }
    for (int h = 4; h < b; h *= 2)
        for (int i = 0; i < d; i += 2 * h)
            for (int j = i; j < i + h; j += 4) {
                F4 u = load(x + j), v = load(x + j + h);
                store(x + j, u + v);
                store(x + j + h, u - v);
            }
    for (int j = 0; j < d; j += 4) store(x + j, load(x + j) * root);
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

/* Gauss-Jordan with row pivots: a becomes the unit matrix while b, which began as it, becomes the
 * inverse. */
static bool eliminate(double *a, double *b, int d, int c) {
    int pivot = c;
    for (int r = c; r < d; r++)
        if (fabs(a[r * d + c]) > fabs(a[pivot * d + c])) pivot = r;
    double p = a[pivot * d + c];
    if (!(fabs(p) > 1e-30)) return false;
    for (int j = 0; j < d; j++) {
        double x = a[pivot * d + j] / p, y = b[pivot * d + j] / p;
        a[pivot * d + j] = a[c * d + j];
        b[pivot * d + j] = b[c * d + j];
        a[c * d + j] = x;
        b[c * d + j] = y;
    }
    for (int r = 0; r < d; r++) {
        double f = a[r * d + c];
        if (r == c || f == 0) continue;
        for (int j = 0; j < d; j++) {
            a[r * d + j] -= f * a[c * d + j];
            b[r * d + j] -= f * b[c * d + j];
        }
    }
    return true;
}

bool basis_invert(double *a, double *b, int d) {
    bool finite = true;
    for (int i = 0; i < d * d; i++) b[i] = i % (d + 1) == 0;
    for (int c = 0; c < d; c++)
        if (!eliminate(a, b, d, c)) return false;
    for (int i = 0; i < d * d; i++) {
        a[i] = b[i];
        finite &= isfinite(b[i]) != 0;
    }
    return finite;
}
