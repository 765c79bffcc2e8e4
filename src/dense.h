/* dense.h - f32 matrix algebra of the offline side: products, Cholesky factors, solving. All sums
 * have a fixed order: results depend neither on the number of threads nor on the machine. */
#ifndef DENSE_H
#define DENSE_H
#include "base.h"

/* A matrix as strided data: element (i, j) is at[i * si + j * sj]. */
typedef struct Strided {
    const float *at;
    size_t si, sj;
} Strided;

/* c (m, n), rows ldc apart, gets c + scale * a b, where a is (m, k) and b (k, n). Tiles that lie
 * wholly above the diagonal are left alone where lower is set. */
typedef struct DenseProduct {
    float *c;
    size_t ldc, m, n, k;
    Strided a, b;
    float scale;
    bool lower;
} DenseProduct;
int dense_multiply(const DenseProduct *p, Pool *pool, DibitError *err);

/* a (n, n), symmetric, of which the lower triangle is read, becomes its Cholesky factor: lower
 * triangular l with a = l l^T, zeros above. False when a is not positive definite; a is then
 * spoilt.
 */
int dense_cholesky(float *a, size_t n, Pool *pool, bool *ok, DibitError *err);

/* b (rows, n) becomes x with x (l l^T) = b. */
int dense_solve(float *b, size_t rows, const float *l, size_t n, Pool *pool, DibitError *err);
#endif
