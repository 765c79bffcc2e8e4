/* calibrate_basis.h - the mathematics of calibrated bases: from second moments to a matrix in which
 * the errors of k2 and k3 records hurt least. */
#ifndef CALIBRATE_BASIS_H
#define CALIBRATE_BASIS_H
#include <stdbool.h>

/* Second moments of one head, (d, d) each: cov of the vectors that are stored (about their mean),
 * metric of what an error e costs (e' metric e: queries for keys, the output matrix for values).
 * Writes the basis (d, d), row by row, the weights of the four lanes, and the expected cost against
 * that of a plain Hadamard rotation of the vectors with their mean, `energy` their mean square
 * length. work: 6 d d values. */
typedef struct KvMoments {
    const double *cov, *metric;
    double energy;
    int d;
} KvMoments;
void kv_basis(double *basis, float weight[4], double *gain, const KvMoments *m, double *work);
#endif
