/* feedback.c - error feedback. With H = E[x x^T] = U U^T, U upper triangular, and E the error of
 * the weights in the order of coding, the error of the outputs is |E U|^2. Column j of E U holds
 * the errors of columns 0..j alone, so its target is w_j + (sum over i < j of E_i U_ij) / U_jj and
 * its loss the squared distance from it times U_jj^2. Columns are coded in panels of 32: one matrix
 * product brings what earlier panels lost, the rest happens inside the panel. */
#include "feedback.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dense.h"
#include "trellis23.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_WIDE  1
#define WIDE       __attribute__((target("avx2")))
#define HAS_WIDE() __builtin_cpu_supports("avx2")
#endif
#define INLINE static inline __attribute__((always_inline))

enum { PANEL = 32, LANES = 16, ROWS = 16, QUAD = 4 };
#define DAMPING 0.01 /* of the mean of H's diagonal */
typedef float Vec __attribute__((vector_size(32), aligned(4), may_alias));

bool feedback_can(const TypeInfo *type) {
    return type->id == T_S2 || type->id == T_S3 || type->id == T_Q4_0 || trellis_bits(type->id);
}

/* ---- the factor ---- */

static float at(const float *triangle, size_t i, size_t j) {
    return i >= j ? triangle[i * (i + 1) / 2 + j] : triangle[j * (j + 1) / 2 + i];
}

typedef struct Ranked {
    float power;
    uint32_t first;
} Ranked;

static int by_power(const void *a, const void *b) { /* falling; then as in the file */
    const Ranked *x = a, *y = b;
    if (x->power != y->power) return x->power < y->power ? 1 : -1;
    return x->first < y->first ? -1 : 1;
}

/* Groups with the strongest inputs first, and inside a group the same: what they lose is then taken
 * up by the most columns. */
static int make_order(Feedback *f, const float *triangle, DibitError *err) {
    if (trellis_bits(f->type->id)) { /* quads one after another */
        for (size_t i = 0; i < f->n; i++)
            f->order[i] = (uint32_t)(i % QUAD * (f->n / QUAD) + i / QUAD);
        return 0;
    }
    size_t n_panels = (f->n + PANEL - 1) / PANEL, k = 0;
    Ranked *r = mem_calloc(NULL, n_panels, sizeof *r);
    if (!r) return fail(err, DIBIT_E_MEMORY, "no memory for the order of columns");
    for (size_t p = 0; p < n_panels; p++) {
        r[p].first = (uint32_t)(p * PANEL);
        for (size_t i = p * PANEL; i < MIN(f->n, (p + 1) * PANEL); i++)
            r[p].power += at(triangle, i, i);
    }
    /* a panel that is not full stays the last one */
    qsort(r, f->n / PANEL, sizeof *r, by_power);
    for (size_t p = 0; p < n_panels; p++) {
        Ranked in[PANEL];
        size_t n = MIN(f->n - r[p].first, (size_t)PANEL);
        for (size_t i = 0; i < n; i++)
            in[i] =
                (Ranked){ at(triangle, r[p].first + i, r[p].first + i), r[p].first + (uint32_t)i };
        qsort(in, n, sizeof *in, by_power);
        for (size_t i = 0; i < n; i++) f->order[k++] = in[i].first;
    }
    mem_free(NULL, r);
    return 0;
}

/* H as a dense matrix, in the basis of the type. */
typedef struct Basis {
    const Feedback *f;
    float *h;
} Basis;

static void rotate_row(void *arg, int item, int thread) {
    (void)thread;
    const Basis *b = arg;
    trellis_rotate(b->h + (size_t)item * b->f->n, b->f->n, b->f->seed, false);
}

static void load_dense(const Feedback *f, float *h, const float *triangle, Pool *pool) {
    Basis b = { f, h };
    size_t n = f->n;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) h[i * n + j] = at(triangle, i, j);
    if (!trellis_bits(f->type->id)) return;
    pool_run(pool, rotate_row, &b, (int)n); /* H S^T, which is transposed to S H */
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) {
            float v = h[i * n + j];
            h[i * n + j] = h[j * n + i];
            h[j * n + i] = v;
        }
    pool_run(pool, rotate_row, &b, (int)n);
}

/* The lower Cholesky factor of H with rows and columns in reverse, turned around, is U. */
static int factor(Feedback *f, const float *h, Pool *pool, DibitError *err) {
    double mean = 0, damping = DAMPING;
    size_t n = f->n;
    for (size_t i = 0; i < n; i++) mean += (double)h[i * n + i] / (double)n;
    if (!(mean > 0)) mean = 1; /* an input that is always zero: any code will do */
    for (int tries = 0; tries < 8; tries++, damping *= 4) {
        bool ok;
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j <= i; j++) {
                float v = h[f->order[n - 1 - i] * n + f->order[n - 1 - j]];
                f->u[i * n + j] = (float)((double)v / mean + (i == j ? damping : 0));
            }
        int r = dense_cholesky(f->u, n, pool, &ok, err);
        if (r != 0) return r;
        if (!ok) continue;
        for (size_t i = 0, k = n * n - 1; i < k; i++, k--) {
            float v = f->u[i];
            f->u[i] = f->u[k];
            f->u[k] = v;
        }
        return 0;
    }
    return fail(err, DIBIT_E_NUMERIC, "correlations of the calibration are not positive");
}

int feedback_create(Feedback *f, const TypeInfo *type, uint32_t seed, const float *triangle,
                    size_t n, Pool *pool, DibitError *err) {
    size_t n_bytes;
    *f = (Feedback){ .type = type, .seed = seed, .n = n };
    bool ok = size_mul(n, n, &n_bytes) && size_mul(n_bytes, sizeof(float), &n_bytes);
    float *h = ok ? mem_alloc(NULL, n_bytes) : NULL;
    f->order = mem_alloc(NULL, n * sizeof *f->order);
    f->u = ok ? mem_alloc(NULL, n_bytes) : NULL;
    int r = h && f->order && f->u
                ? make_order(f, triangle, err)
                : fail(err, DIBIT_E_MEMORY, "no memory for the correlations of %zu inputs", n);
    if (r == 0) load_dense(f, h, triangle, pool);
    if (r == 0) r = factor(f, h, pool, err);
    mem_free(NULL, h);
    return r;
}

void feedback_free(Feedback *f) {
    mem_free(NULL, f->order);
    mem_free(NULL, f->u);
    *f = (Feedback){ 0 };
}

/* ---- groups: 16 ways to code one at a time ---- */

typedef struct Panel { /* a diagonal block of U */
    size_t n;
    float u[PANEL][PANEL], diag[PANEL], inv[PANEL];
} Panel;

typedef struct Ways { /* lane l has the values scale * (q + shift), q = 0..hi */
    float scale[LANES], inv[LANES], shift[LANES], hi;
    float loss[LANES];
    float error[PANEL][LANES];
    uint8_t code[PANEL][LANES];
} Ways;

static float smallest(const float *x) {
    float m = x[0];
    for (int l = 1; l < LANES; l++) m = x[l] < m ? x[l] : m;
    return m;
}

/* Codes w with feedback inside the panel in all ways; x holds the targets as far as earlier panels
 * make them. Stops when no way can be better than `least` any more. */
INLINE void try_ways_body(Ways *k, const Panel *p, const float *w, const float *x, float least) {
    memset(k->loss, 0, sizeof k->loss);
    for (size_t j = 0; j < p->n; j++) {
        Vec f[2] = { { 0 } };
        float fed[LANES];
        for (size_t i = 0; i < j; i++) {
            f[0] += p->u[i][j] * *(const Vec *)k->error[i];
            f[1] += p->u[i][j] * *(const Vec *)(k->error[i] + 8);
        }
        memcpy(fed, f, sizeof fed);
        float square = p->diag[j] * p->diag[j];
        for (int l = 0; l < LANES; l++) {
            float t = x[j] + fed[l] * p->inv[j];
            float q = t * k->inv[l] - k->shift[l];
            q = q > 0 ? q : 0;
            q = q < k->hi ? q : k->hi;
            q = (q + 12582912.0f) - 12582912.0f;
            float v = k->scale[l] * (q + k->shift[l]);
            k->code[j][l] = (uint8_t)q;
            k->error[j][l] = w[j] - v;
            k->loss[l] += (t - v) * (t - v) * square;
        }
        if (j % 8 == 7 && smallest(k->loss) > least) return;
    }
}

#ifdef HAVE_WIDE
WIDE static void try_ways_wide(Ways *k, const Panel *p, const float *w, const float *x,
                               float least) {
    try_ways_body(k, p, w, x, least);
}
#endif

static void try_ways(Ways *k, const Panel *p, const float *w, const float *x, float least) {
#ifdef HAVE_WIDE
    if (HAS_WIDE()) {
        try_ways_wide(k, p, w, x, least);
        return;
    }
#endif
    try_ways_body(k, p, w, x, least);
}

typedef struct Best {
    float loss, scale;
    int way; /* 16 * set + lane */
    float error[PANEL];
    uint8_t code[PANEL];
} Best;

static void keep_best(Best *b, const Ways *k, size_t n, int set) {
    for (int l = 0; l < LANES; l++) {
        if (!(k->loss[l] < b->loss)) continue;
        *b = (Best){ .loss = k->loss[l], .scale = k->scale[l], .way = LANES * set + l };
        for (size_t j = 0; j < n; j++) {
            b->error[j] = k->error[j][l];
            b->code[j] = k->code[j][l];
        }
    }
}

/* s2 and s3: all scales c and shifts z at row scale d. */
static void code_s(Best *b, const Panel *p, const float *w, const float *x, float hi, float d) {
    Ways k = { .hi = hi };
    for (int c = 0; c < 16; c++) {
        for (int l = 0; l < LANES; l++) {
            k.scale[l] = d * (float)(c + 4);
            k.inv[l] = 1.0f / k.scale[l];
            k.shift[l] = -0.5f * hi + 0.125f * (float)(l - 8);
        }
        try_ways(&k, p, w, x, b->loss);
        keep_best(b, &k, p->n, c);
    }
}

/* q4: scales around those that make the largest weight -8 or 7. */
static void code_q4(Best *b, const Panel *p, const float *w, const float *x) {
    float most = 0;
    for (size_t j = 0; j < p->n; j++) most = MAX(most, fabsf(x[j]));
    for (int set = 0; set < 2; set++) {
        Ways k = { .hi = 15 };
        for (int l = 0; l < LANES; l++) {
            float d = most / -8 * (0.75f + 0.05f * (float)l) * (set ? -1 : 1);
            k.scale[l] = f16_to_f32(f32_to_f16(MAX(-65504, MIN(65504, d))));
            k.inv[l] = k.scale[l] != 0 ? 1.0f / k.scale[l] : 0;
            k.shift[l] = -8;
        }
        try_ways(&k, p, w, x, b->loss);
        keep_best(b, &k, p->n, set);
    }
}

/* ---- a matrix ---- */

typedef struct Encode {
    const Feedback *f;
    uint8_t *tensor;
    const float *w;
    size_t rows, first; /* first: of the panel in hand, in the order of coding */
    Panel panel;
    float *x;     /* (rows, PANEL) what earlier panels lost, then the targets */
    float *e;     /* (rows, n) errors in the order of coding */
    float *scale; /* (rows) */
    TrellisEncoder *encoder;
    float (*target)[QUAD], (*decoded)[QUAD]; /* (rows) */
} Encode;

static void load_panel(Encode *c) {
    const Feedback *f = c->f;
    Panel *p = &c->panel;
    p->n = MIN(f->n - c->first, (size_t)PANEL);
    for (size_t i = 0; i < p->n; i++) {
        memcpy(p->u[i], f->u + (c->first + i) * f->n + c->first, p->n * sizeof(float));
        p->diag[i] = p->u[i][i];
        p->inv[i] = 1.0f / p->diag[i];
    }
}

/* The panel of 16 rows. */
static void code_rows(void *arg, int item, int thread) {
    (void)thread;
    Encode *c = arg;
    const Feedback *f = c->f;
    const Panel *p = &c->panel;
    size_t r0 = (size_t)item * ROWS, r1 = MIN(c->rows, r0 + ROWS);
    const uint32_t *order = f->order + c->first;
    size_t group = order[0] / PANEL;
    int id = f->type->id;
    for (size_t r = r0; r < r1; r++) {
        float w[PANEL], *x = c->x + r * PANEL;
        uint8_t code[PANEL] = { 0 };
        Best b = { .loss = INFINITY };
        for (size_t j = 0; j < p->n; j++) {
            w[j] = c->w[r * f->n + order[j]];
            x[j] = w[j] + x[j] * p->inv[j];
        }
        if (id == T_Q4_0)
            code_q4(&b, p, w, x);
        else if (c->scale[r] > 0)
            code_s(&b, p, w, x, id == T_S3 ? 7 : 3, c->scale[r]);
        memcpy(c->e + r * f->n + c->first, b.loss < INFINITY ? b.error : w, p->n * sizeof(float));
        for (size_t j = 0; j < p->n; j++) code[order[j] % PANEL] = b.code[j];
        if (id == T_Q4_0)
            q4_put_group(c->tensor, f->n, r, group, b.scale, code);
        else
            s_put_group(id, c->tensor, f->n, r, group, b.way >> 4 | (b.way & 15) << 4, code);
    }
}

/* Row scales of s2, s3, t2 and t3, rounded to f16. */
static void first_scales(Encode *c) {
    int id = c->f->type->id;
    float factor = (id == T_S3 ? 0.55f : 0.95f) / 11.5f;
    for (size_t r = 0; r < c->rows; r++) {
        const float *w = c->w + r * c->f->n;
        double sum = 0;
        for (size_t i = 0; i < c->f->n; i++) sum += (double)w[i] * w[i];
        double rms = sqrt(sum / (double)c->f->n);
        float d = trellis_bits(id) ? trellis_scale(id, rms) : (float)rms * factor;
        c->scale[r] = f16_to_f32(f32_to_f16(MIN(d, 65504.0f)));
    }
}

/* The quads of a panel of t2 or t3, all rows at once. */
static void code_quads(Encode *c) {
    const Feedback *f = c->f;
    const Panel *p = &c->panel;
    for (size_t j0 = 0; j0 < p->n; j0 += QUAD) {
        const uint32_t *order = f->order + c->first + j0;
        for (size_t r = 0; r < c->rows; r++) { /* y U_qq = x, then w + y */
            float y[QUAD], *x = c->x + r * PANEL + j0;
            for (size_t i = 0; i < QUAD; i++) {
                float s = x[i];
                for (size_t k = 0; k < i; k++) s -= y[k] * p->u[j0 + k][j0 + i];
                y[i] = s * p->inv[j0 + i];
                c->target[r][i] = c->w[r * f->n + order[i]] + y[i];
            }
        }
        trellis_encode_quad(c->encoder, (c->first + j0) / QUAD, (const float(*)[4])c->target,
                            c->decoded);
        for (size_t r = 0; r < c->rows; r++) {
            float *e = c->e + r * f->n + c->first + j0, *x = c->x + r * PANEL;
            for (size_t i = 0; i < QUAD; i++) {
                e[i] = c->w[r * f->n + order[i]] - c->decoded[r][i];
                for (size_t k = j0 + QUAD; k < p->n; k++) x[k] += e[i] * p->u[j0 + i][k];
            }
        }
    }
}

static int code_panels(Encode *c, Pool *pool, DibitError *err) {
    size_t n = c->f->n;
    for (c->first = 0; c->first < n; c->first += PANEL) {
        load_panel(c);
        memset(c->x, 0, c->rows * PANEL * sizeof *c->x);
        DenseProduct p = { .c = c->x,
                           .ldc = PANEL,
                           .m = c->rows,
                           .n = c->panel.n,
                           .k = c->first,
                           .a = { c->e, n, 1 },
                           .b = { c->f->u + c->first, n, 1 },
                           .scale = 1 };
        int r = dense_multiply(&p, pool, err);
        if (r != 0) return r;
        if (c->encoder)
            code_quads(c);
        else
            pool_run(pool, code_rows, c, (int)((c->rows + ROWS - 1) / ROWS));
    }
    return 0;
}

/* a (rows, n) U, where the order of a's columns is that of coding. */
static int times_u(const Feedback *f, float *dst, const float *a, size_t rows, Pool *pool,
                   DibitError *err) {
    DenseProduct p = { .c = dst,
                       .ldc = f->n,
                       .m = rows,
                       .n = f->n,
                       .k = f->n,
                       .a = { a, f->n, 1 },
                       .b = { f->u, f->n, 1 },
                       .scale = 1 };
    memset(dst, 0, rows * f->n * sizeof *dst);
    return dense_multiply(&p, pool, err);
}

static void put_scales(const Encode *c) {
    int id = c->f->type->id;
    if (trellis_bits(id)) {
        trellis_put_scales(id, c->tensor, c->rows, c->f->n, c->scale);
        return;
    }
    uint8_t *dst = (uint8_t *)(uintptr_t)s_row_scales(id, c->tensor, c->rows, c->f->n);
    for (size_t r = 0; r < c->rows; r++) {
        uint16_t h = f32_to_f16(c->scale[r]);
        memcpy(dst + 2 * r, &h, 2);
    }
}

/* One row: a = W U, e = E U, so Q U = a - e. The best factor of its scale is (a q) / (q q). */
static void refit_row(Encode *c, size_t r, const float *a, const float *e, double *total,
                      double *energy) {
    double aa = 0, ae = 0, ee = 0, factor = 1;
    for (size_t j = 0; j < c->f->n; j++) {
        aa += (double)a[j] * a[j];
        ae += (double)a[j] * e[j];
        ee += (double)e[j] * e[j];
    }
    double aq = aa - ae, qq = aa - 2 * ae + ee;
    if (c->f->type->block_bytes == 0 && c->scale[r] > 0 && qq > 0) {
        float d = f16_to_f32(f32_to_f16((float)MIN(c->scale[r] * (aq / qq), 65504.0)));
        factor = (double)d / (double)c->scale[r];
        c->scale[r] = d;
    }
    *total += aa - 2 * factor * aq + factor * factor * qq;
    *energy += aa;
}

/* Row scales for the least error of the outputs, the codes being what they are. */
static int refit(Encode *c, Pool *pool, double *loss, DibitError *err) {
    size_t n = c->f->n;
    double total = 0, energy = 0;
    float *a = mem_alloc(NULL, c->rows * n * sizeof *a);
    float *b = mem_alloc(NULL, c->rows * n * sizeof *b);
    int r = a && b ? 0 : fail(err, DIBIT_E_MEMORY, "no memory to fit row scales");
    for (size_t i = 0; r == 0 && i < c->rows; i++)
        for (size_t j = 0; j < n; j++) b[i * n + j] = c->w[i * n + c->f->order[j]];
    if (r == 0) r = times_u(c->f, a, b, c->rows, pool, err);
    if (r == 0) r = times_u(c->f, b, c->e, c->rows, pool, err);
    for (size_t i = 0; r == 0 && i < c->rows; i++)
        refit_row(c, i, a + i * n, b + i * n, &total, &energy);
    if (r == 0 && c->f->type->block_bytes == 0) put_scales(c);
    *loss = energy > 0 ? total / energy : 0;
    mem_free(NULL, a);
    mem_free(NULL, b);
    return r;
}

typedef struct Rotate {
    float *w;
    const Feedback *f;
} Rotate;

static void rotate_weights(void *arg, int item, int thread) {
    (void)thread;
    const Rotate *j = arg;
    trellis_rotate(j->w + (size_t)item * j->f->n, j->f->n, j->f->seed, false);
}

static int start_trellis(Encode *c, float *w, int effort, const Kern *kern, Pool *pool,
                         DibitError *err) {
    const Feedback *f = c->f;
    c->target = mem_alloc(NULL, c->rows * sizeof *c->target);
    c->decoded = mem_alloc(NULL, c->rows * sizeof *c->decoded);
    if (!c->target || !c->decoded) return fail(err, DIBIT_E_MEMORY, "no memory for feedback");
    pool_run(pool, rotate_weights, &(Rotate){ w, f }, (int)c->rows);
    first_scales(c);
    return trellis_encoder_create(&c->encoder, f->type->id, c->tensor, c->rows, f->n, f->seed,
                                  c->scale, effort, kern, pool, err);
}

int feedback_encode(const Feedback *f, uint8_t *tensor, float *w, size_t rows, int effort,
                    const Kern *kern, Pool *pool, double *loss, DibitError *err) {
    Encode c = { .f = f, .tensor = tensor, .w = w, .rows = rows };
    size_t n_bytes = 0;
    bool ok = type_bytes(f->type, rows, f->n, &n_bytes);
    c.x = mem_alloc(NULL, rows * PANEL * sizeof *c.x);
    c.e = mem_calloc(NULL, rows * f->n, sizeof *c.e);
    c.scale = mem_calloc(NULL, rows, sizeof *c.scale);
    int r = ok && c.x && c.e && c.scale ? 0 : fail(err, DIBIT_E_MEMORY, "no memory for feedback");
    if (r == 0) memset(tensor, 0, n_bytes);
    if (r == 0 && trellis_bits(f->type->id))
        r = start_trellis(&c, w, effort, kern, pool, err);
    else if (r == 0)
        first_scales(&c);
    if (r == 0) r = code_panels(&c, pool, err);
    if (r == 0) r = refit(&c, pool, loss, err);
    trellis_encoder_free(&c.encoder);
    mem_free(NULL, c.target);
    mem_free(NULL, c.decoded);
    mem_free(NULL, c.x);
    mem_free(NULL, c.e);
    mem_free(NULL, c.scale);
    return r;
}
