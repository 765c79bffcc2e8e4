/* dense.c - f32 matrix algebra of the offline side. One product does all the work: tiles of c are
 * independent items, each summed over k in order by a small kernel on packed panels; the others are
 * written in blocks around it. */
#include "dense.h"

#include <math.h>
#include <string.h>

/* Plain C that compilers turn into vectors; on x86 it is also built for AVX2. Products and sums
 * are never fused, so both give the same bits. */
#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_WIDE  1
#define WIDE       __attribute__((target("avx2")))
#define HAS_WIDE() __builtin_cpu_supports("avx2")
#endif
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 96, DEPTH = 256, MR = 4, NR = 16, BLOCK = 64 };
typedef float Vec __attribute__((vector_size(32), aligned(4), may_alias));

/* ---- the product ---- */

typedef struct Product {
    DenseProduct p;
    size_t n_tiles; /* in a row of c */
    float *pack;    /* per thread: panels of a and b */
} Product;
enum { PACK = 2 * TILE * DEPTH };

/* c (MR, NR) += scale * a b: a is packed (k, MR), b (k, NR). */
INLINE void kernel_body(float *c, size_t ldc, const float *a, const float *b, size_t k,
                        float scale) {
    Vec s[MR][2] = { { { 0 } } };
    for (size_t i = 0; i < k; i++, a += MR, b += NR) {
        Vec b0 = *(const Vec *)b, b1 = *(const Vec *)(b + 8);
        for (int r = 0; r < MR; r++) {
            s[r][0] += a[r] * b0;
            s[r][1] += a[r] * b1;
        }
    }
    for (int r = 0; r < MR; r++) {
        Vec *dst = (Vec *)(c + (size_t)r * ldc);
        dst[0] += scale * s[r][0];
        dst[1] += scale * s[r][1];
    }
}

/* Packs rows i0.. of a matrix (m, k), `width` at a time and zeros past its end. */
static void pack(float *dst, Strided x, size_t i0, size_t m, size_t k0, size_t k, size_t width) {
    for (size_t i = 0; i < m; i += width) {
        size_t n = MIN(width, m - i);
        const float *src = x.at + (i0 + i) * x.si + k0 * x.sj;
        for (size_t d = 0; d < k; d++, dst += width, src += x.sj) {
            if (n == width && x.si == 1) {
                memcpy(dst, src, width * sizeof *dst);
                continue;
            }
            for (size_t r = 0; r < n; r++) dst[r] = src[r * x.si];
            for (size_t r = n; r < width; r++) dst[r] = 0;
        }
    }
}

INLINE void tile_body(const Product *job, size_t item, float *panels) {
    const DenseProduct *p = &job->p;
    size_t i0 = item / job->n_tiles * TILE, j0 = item % job->n_tiles * TILE;
    size_t m = MIN(p->m - i0, (size_t)TILE), n = MIN(p->n - j0, (size_t)TILE);
    float *pa = panels, *pb = panels + TILE * DEPTH, edge[MR * NR];
    if (p->lower && j0 >= i0 + TILE) return;
    Strided bt = { p->b.at, p->b.sj, p->b.si };
    for (size_t k0 = 0; k0 < p->k; k0 += DEPTH) {
        size_t k = MIN(p->k - k0, (size_t)DEPTH);
        pack(pa, p->a, i0, m, k0, k, MR);
        pack(pb, bt, j0, n, k0, k, NR);
        for (size_t j = 0; j < n; j += NR)
            for (size_t i = 0; i < m; i += MR) {
                float *c = p->c + (i0 + i) * p->ldc + j0 + j;
                size_t mr = MIN(m - i, (size_t)MR), nr = MIN(n - j, (size_t)NR);
                if (mr == MR && nr == NR) {
                    kernel_body(c, p->ldc, pa + i * k, pb + j * k, k, p->scale);
                    continue;
                }
                memset(edge, 0, sizeof edge);
                kernel_body(edge, NR, pa + i * k, pb + j * k, k, p->scale);
                for (size_t r = 0; r < mr; r++)
                    for (size_t q = 0; q < nr; q++) c[r * p->ldc + q] += edge[r * NR + q];
            }
    }
}

#ifdef HAVE_WIDE
WIDE static void tile_wide(const Product *job, size_t item, float *panels) {
    tile_body(job, item, panels);
}
#endif

static void tile(void *arg, int item, int thread) {
    const Product *job = arg;
    float *panels = job->pack + (size_t)thread * PACK;
#ifdef HAVE_WIDE
    if (HAS_WIDE()) {
        tile_wide(job, (size_t)item, panels);
        return;
    }
#endif
    tile_body(job, (size_t)item, panels);
}

int dense_multiply(const DenseProduct *p, Pool *pool, DibitError *err) {
    if (p->m == 0 || p->n == 0 || p->k == 0) return 0;
    Product job = { *p, (p->n + TILE - 1) / TILE, NULL };
    job.pack = mem_alloc(NULL, (size_t)pool_size(pool) * PACK * sizeof(float));
    if (!job.pack) return fail(err, DIBIT_E_MEMORY, "no memory for a matrix product");
    pool_run(pool, tile, &job, (int)((p->m + TILE - 1) / TILE * job.n_tiles));
    mem_free(NULL, job.pack);
    return 0;
}

/* ---- Cholesky ---- */

typedef struct Below { /* rows under a factored diagonal block */
    float *a;
    size_t n, k0, k1;
} Below;

static bool factor_block(float *a, size_t n, size_t k0, size_t k1) {
    for (size_t j = k0; j < k1; j++) {
        float *row = a + j * n;
        double d = row[j];
        for (size_t k = k0; k < j; k++) d -= (double)row[k] * row[k];
        if (!(d > 0) || !isfinite(d)) return false;
        float root = (float)sqrt(d);
        row[j] = root;
        for (size_t i = j + 1; i < k1; i++) {
            double s = a[i * n + j];
            for (size_t k = k0; k < j; k++) s -= (double)a[i * n + k] * row[k];
            a[i * n + j] = (float)(s / root);
        }
    }
    return true;
}

static void row_below(void *arg, int item, int thread) {
    (void)thread;
    const Below *b = arg;
    float *row = b->a + (b->k1 + (size_t)item) * b->n;
    for (size_t j = b->k0; j < b->k1; j++) {
        const float *l = b->a + j * b->n;
        float s = row[j];
        for (size_t k = b->k0; k < j; k++) s -= row[k] * l[k];
        row[j] = s / l[j];
    }
}

int dense_cholesky(float *a, size_t n, Pool *pool, bool *ok, DibitError *err) {
    *ok = false;
    for (size_t k0 = 0; k0 < n; k0 += BLOCK) {
        size_t k1 = MIN(n, k0 + BLOCK);
        if (!factor_block(a, n, k0, k1)) return 0;
        Below below = { a, n, k0, k1 };
        pool_run(pool, row_below, &below, (int)(n - k1));
        const float *l = a + k1 * n + k0;
        DenseProduct p = { .c = a + k1 * n + k1,
                           .ldc = n,
                           .m = n - k1,
                           .n = n - k1,
                           .k = k1 - k0,
                           .a = { l, n, 1 },
                           .b = { l, 1, n },
                           .scale = -1,
                           .lower = true };
        int r = dense_multiply(&p, pool, err);
        if (r != 0) return r;
    }
    for (size_t i = 0; i < n; i++) memset(a + i * n + i + 1, 0, (n - i - 1) * sizeof *a);
    *ok = true;
    return 0;
}

/* ---- solving ---- */

typedef struct Solve {
    float *b;
    size_t rows, n, k0, k1;
    const float *l;
} Solve;

/* x l^T = b within columns k0..k1-1. */
static void solve_down(void *arg, int item, int thread) {
    (void)thread;
    const Solve *s = arg;
    float *b = s->b + (size_t)item * s->n;
    for (size_t j = s->k0; j < s->k1; j++) {
        const float *l = s->l + j * s->n;
        float v = b[j];
        for (size_t k = s->k0; k < j; k++) v -= b[k] * l[k];
        b[j] = v / l[j];
    }
}

/* x l = b within columns k0..k1-1. */
static void solve_up(void *arg, int item, int thread) {
    (void)thread;
    const Solve *s = arg;
    float *b = s->b + (size_t)item * s->n;
    for (size_t j = s->k1; j-- > s->k0;) {
        const float *l = s->l + j * s->n;
        float v = b[j] / l[j];
        b[j] = v;
        for (size_t k = s->k0; k < j; k++) b[k] -= v * l[k];
    }
}

int dense_solve(float *b, size_t rows, const float *l, size_t n, Pool *pool, DibitError *err) {
    DenseProduct p = { .ldc = n, .m = rows, .scale = -1 };
    for (size_t k0 = 0; k0 < n; k0 += BLOCK) { /* y l^T = b */
        Solve s = { b, rows, n, k0, MIN(n, k0 + BLOCK), l };
        pool_run(pool, solve_down, &s, (int)rows);
        p.c = b + s.k1;
        p.n = n - s.k1;
        p.k = s.k1 - k0;
        p.a = (Strided){ b + k0, n, 1 };
        p.b = (Strided){ l + s.k1 * n + k0, 1, n };
        int r = dense_multiply(&p, pool, err);
        if (r != 0) return r;
    }
    for (size_t k1 = n; k1 > 0;) { /* x l = y */
        size_t k0 = (k1 - 1) / BLOCK * BLOCK;
        Solve s = { b, rows, n, k0, k1, l };
        pool_run(pool, solve_up, &s, (int)rows);
        p.c = b;
        p.n = k0;
        p.k = k1 - k0;
        p.a = (Strided){ b + k0, n, 1 };
        p.b = (Strided){ l + k0 * n, n, 1 };
        int r = dense_multiply(&p, pool, err);
        if (r != 0) return r;
        k1 = k0;
    }
    return 0;
}
