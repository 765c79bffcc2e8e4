/* math.c - the functions of math.h that are no instruction, in double with errors of a few units of
 * the last place, which the engine rounds to float. */
#include "libc.h"

/* 1/0!, 1/1!, .. */
static const double inverse_factorial[] = {
    1,
    1,
    1.0 / 2,
    1.0 / 6,
    1.0 / 24,
    1.0 / 120,
    1.0 / 720,
    1.0 / 5040,
    1.0 / 40320,
    1.0 / 362880,
    1.0 / 3628800,
    1.0 / 39916800,
    1.0 / 479001600,
    1.0 / 6227020800,
    1.0 / 87178291200,
    1.0 / 1307674368000,
    1.0 / 20922789888000,
    1.0 / 355687428096000,
    1.0 / 6402373705728000,
};

/* Taylor series of sine or cosine for |x| <= pi / 4: terms first, first + 2, .. */
static double series(double x, int first) {
    double sum = 0, square = -x * x;
    for (int i = 17 + (first ^ 1); i >= first; i -= 2) sum = sum * square + inverse_factorial[i];
    return first ? sum * x : sum;
}

/* sin(x + quarters * pi / 2), |x| below 2^30: pi / 2 in three parts, of which products with the
 * number of quarters are exact but for the last. */
static double sine(double x, int quarters) {
    double k = __builtin_nearbyint(x * 0.63661977236758134308);
    double r = x - k * 0x1.921fb544p0;
    double hi = r - k * 0x1.0b4611a6p-34, low = (r - hi) - k * 0x1.0b4611a6p-34;
    low -= k * 0x1.3198a2e037073p-69;
    r = hi + low;
    low = (hi - r) + low;
    quarters += (int)((int64_t)k & 3);
    double slope = series(r, quarters & 1 ? 1 : 0); /* of the other function, times the rest */
    double y = series(r, quarters & 1 ? 0 : 1) + (quarters & 1 ? -slope : slope) * low;
    return quarters & 2 ? -y : y;
}

double sin(double x) {
    return sine(x, 0);
}

double cos(double x) {
    return sine(x, 1);
}

double ldexp(double x, int e) {
    union {
        uint64_t u;
        double f;
    } scale;
    for (; e > 1000; e -= 1000) x *= 0x1p1000;
    for (; e < -1000; e += 1000) x *= 0x1p-1000;
    scale.u = (uint64_t)(e + 1023) << 52;
    return x * scale.f;
}

float ldexpf(float x, int e) {
    return (float)ldexp((double)x, e); /* one rounding: the double is exact */
}

float frexpf(float x, int *e) {
    union {
        float f;
        uint32_t u;
    } v = { x };
    *e = 0;
    if (x == 0 || (v.u & 0x7f800000) == 0x7f800000) return x;
    if (!(v.u & 0x7f800000)) {
        v.f *= 0x1p32f;
        *e = -32;
    }
    *e += (int)(v.u >> 23 & 255) - 126;
    v.u = (v.u & 0x807fffff) | 126u << 23;
    return v.f;
}

/* exp(x + low), |low| tiny. */
static double exp_sum(double x, double low) {
    if (!(x < 709.8)) return x > 0 ? (double)INFINITY : x;
    if (x < -745.2) return 0;
    double k = __builtin_nearbyint(x * 1.44269504088896340736);
    double r = x - k * 0x1.62e42fefp-1;
    r = r - (k * 0x1.473de6af278edp-34 - low);
    double sum = 0;
    for (int i = 14; i >= 0; i--) sum = sum * r + inverse_factorial[i];
    return ldexp(sum, (int)k);
}

double exp(double x) {
    return exp_sum(x, 0);
}

/* log(x) = result + *low. x = 2^k m with m near 1; log(m) = 2 atanh(s), s = (m - 1) / (m + 1). */
static double log_sum(double x, double *low) {
    union {
        double f;
        uint64_t u;
    } v = { x };
    double k = (double)((int)(v.u >> 52) - 1023), sum = 0;
    v.u = (v.u & 0xfffffffffffff) | 0x3ff0000000000000;
    if (v.f > 1.4142135623730951) {
        v.f *= 0.5;
        k += 1;
    }
    double f = v.f - 1, s = f / (2 + f), z = s * s, half = 0.5 * f * f;
    for (int i = 21; i >= 3; i -= 2) sum = (sum + 1.0 / i) * z;
    /* log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + 2 sum)); then k log 2, its high part exact */
    double hi = k * 0x1.62e42fefp-1, rest = s * (half + 2 * sum) + k * 0x1.473de6af278edp-34;
    double a = hi + f, a_low = f - (a - hi), b = a - half, b_low = (a - b) - half;
    double y = b + (rest + a_low + b_low);
    *low = (b - y) + (rest + a_low + b_low);
    return y;
}

double log(double x) {
    double low;
    return log_sum(x, &low);
}

/* x above 0; otherwise NaN, and 1 where y is 0. */
double pow(double x, double y) {
    double low;
    if (y == 0 || x == 1) return 1;
    if (!(x > 0) || !isfinite(x) || !isfinite(y)) return (double)NAN;
    double l = log_sum(x, &low), p = y * l;
    /* the product's rounding error, by halves of 27 bits */
    double c = y * 134217729.0, y1 = c - (c - y), y2 = y - y1;
    c = l * 134217729.0;
    double l1 = c - (c - l), l2 = l - l1;
    double error = ((y1 * l1 - p) + y1 * l2 + y2 * l1) + y2 * l2;
    return exp_sum(p, error + y * low);
}
