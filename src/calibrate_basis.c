/* calibrate_basis.c - see docs/FORMAT.md, "Calibrated bases", for what the result is used for.
 *
 * A record's error is alike in all directions of the stored basis, in proportion to the vector's
 * length. With z = A x the cost is tr(A cov A') tr(A'^-1 metric A^-1) / d; the least is reached
 * where A'A = S = cov^-1/2 (cov^1/2 metric cov^1/2)^1/2 cov^-1/2 (the geometric mean of cov^-1 and
 * metric; Pusz and Woronowicz 1975). In the principal axes of that basis vectors and costs have the
 * same moments mu. The axes go to the four lanes in order of mu, so that each code byte holds a
 * value of each lane, and the encoder, told that errors of a lane cost more, spends the byte's bits
 * where they matter: reverse water-filling within a byte, at no bit of the record. Within a lane a
 * Hadamard rotation makes all coordinates alike. */
#include "calibrate_basis.h"

#include <math.h>
#include <string.h>

#include "basis.h"

/* Lane l is stored in units of mu_l^-LANE_POWER: a bit less than equal variance (1/2) is best, as
 * the code's outer values then serve the lanes that matter. Measured: docs/MEASUREMENTS.md. */
#define LANE_POWER 0.38
#define FLOOR      1e-4 /* of the mean moment: no direction counts for nothing */

static void multiply(double *out, const double *a, const double *b, int d) {
    for (int i = 0; i < d; i++) {
        double *o = out + i * d;
        memset(o, 0, (size_t)d * sizeof *o);
        for (int k = 0; k < d; k++)
            for (int j = 0; j < d; j++) o[j] += a[i * d + k] * b[k * d + j];
    }
}

/* Cyclic Jacobi: a (symmetric) becomes diagonal, the rows of v its axes. */
static void eigen(double *a, double *v, int d) {
    for (int i = 0; i < d * d; i++) v[i] = i % (d + 1) == 0;
    for (int sweep = 0; sweep < 40; sweep++) {
        double off = 0, total = 0;
        for (int i = 0; i < d * d; i++) *(i % (d + 1) ? &off : &total) += a[i] * a[i];
        if (!(off > 1e-24 * total)) return;
        for (int p = 0; p < d; p++)
            for (int q = p + 1; q < d; q++) {
                double apq = a[p * d + q];
                if (fabs(apq) < 1e-300) continue;
                double theta = (a[q * d + q] - a[p * d + p]) / (2 * apq);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < d; k++) {
                    double x = a[k * d + p], y = a[k * d + q];
                    a[k * d + p] = c * x - s * y;
                    a[k * d + q] = s * x + c * y;
                }
                for (int k = 0; k < d; k++) {
                    double x = a[p * d + k], y = a[q * d + k];
                    a[p * d + k] = c * x - s * y;
                    a[q * d + k] = s * x + c * y;
                    x = v[p * d + k], y = v[q * d + k];
                    v[p * d + k] = c * x - s * y;
                    v[q * d + k] = s * x + c * y;
                }
            }
    }
}

/* out = the power of a symmetric matrix; a is destroyed, v is room for another. */
static void power(double *out, double *a, double *v, int d, double exponent) {
    eigen(a, v, d);
    memset(out, 0, (size_t)(d * d) * sizeof *out);
    for (int k = 0; k < d; k++) {
        double w = pow(fmax(a[k * d + k], 1e-30), exponent);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) out[i * d + j] += w * v[k * d + i] * v[k * d + j];
    }
}

static void copy_floored(double *out, const double *a, int d) {
    double trace = 0;
    for (int i = 0; i < d; i++) trace += a[i * (d + 1)];
    memcpy(out, a, (size_t)(d * d) * sizeof *out);
    for (int i = 0; i < d; i++) out[i * (d + 1)] += FLOOR * trace / d + 1e-20;
}

/* Rows of a sorted by falling mu; mu on the diagonal of m. */
static void sort_axes(double *a, double *mu, int d) {
    for (int i = 0; i < d; i++) {
        int best = i;
        for (int j = i + 1; j < d; j++)
            if (mu[j] > mu[best]) best = j;
        double t = mu[i];
        mu[i] = mu[best];
        mu[best] = t;
        for (int j = 0; j < d; j++) {
            t = a[i * d + j];
            a[i * d + j] = a[best * d + j];
            a[best * d + j] = t;
        }
    }
}

/* The axes a (d, d), their moments mu: mixed within lanes, each lane in its unit. */
static void make_lanes(double *basis, float weight[4], const double *a, const double *mu, int d) {
    int nb = d / 4;
    double mean[4] = { 0 }, unit[4], variance = 0, sum = 0, w[4];
    for (int i = 0; i < d; i++) mean[i / nb] += mu[i] / nb;
    for (int l = 0; l < 4; l++) {
        unit[l] = pow(fmax(mean[l], 1e-30), -LANE_POWER);
        variance += mean[l] * unit[l] * unit[l] / 4;
        w[l] = mean[l] / (unit[l] * unit[l]);
        sum += w[l] / 4;
    }
    for (int l = 0; l < 4; l++) weight[l] = (float)(w[l] / sum);
    for (int j = 0; j < d; j++)
        for (int l = 0; l < 4; l++) {
            float x[64];
            for (int i = 0; i < nb; i++) x[i] = (float)a[(l * nb + i) * d + j];
            basis_rotate(x, nb, false);
            for (int i = 0; i < nb; i++)
                basis[(l * nb + i) * d + j] = (double)x[i] * unit[l] / sqrt(variance);
        }
}

void kv_basis(double *basis, float weight[4], double *gain, const KvMoments *m, double *work) {
    int d = m->d, dd = d * d;
    double *root = work, *t = work + dd, *u = work + 2 * dd, *v = work + 3 * dd;
    double *s = work + 4 * dd, *metric = work + 5 * dd, mu[256], lanes = 0, cost = 0;
    copy_floored(metric, m->metric, d);
    copy_floored(t, m->cov, d);
    power(root, t, v, d, 0.5);
    multiply(t, metric, root, d);
    multiply(u, root, t, d);
    power(s, u, v, d, 0.5); /* (cov^1/2 metric cov^1/2)^1/2 */
    memcpy(t, root, (size_t)dd * sizeof *t);
    power(u, t, v, d, -1);
    multiply(t, s, u, d);
    multiply(s, u, t, d); /* S */
    power(root, s, v, d, 0.5);
    copy_floored(t, m->cov, d);
    multiply(u, t, root, d);
    multiply(s, root, u, d); /* moments in the basis S^1/2 */
    eigen(s, v, d);
    for (int i = 0; i < d; i++) mu[i] = fmax(s[i * (d + 1)], 0);
    multiply(t, v, root, d);
    sort_axes(t, mu, d);
    make_lanes(basis, weight, t, mu, d);
    for (int l = 0; l < 4; l++) {
        double mean = 0;
        for (int i = 0; i < d / 4; i++) mean += mu[l * (d / 4) + i] / (d / 4);
        lanes += 2 * log(fmax(mean, 1e-30)) / 4;
    }
    for (int i = 0; i < d; i++) cost += m->metric[i * (d + 1)];
    *gain = cost > 0 && m->energy > 0 ? d * exp(lanes) / (m->energy * cost / d) : 1;
}
