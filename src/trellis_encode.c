/* trellis_encode.c - the encoder of t2 and t3: for each tile (one quad of a row block) the cheapest
 * path through the trellis, rows being its steps and code bytes its states. A tile starts at the
 * last byte of the tile before it, its end is free. Costs are integers, so every instruction set
 * and any number of threads make the same bytes; the two inner loops are kernels (trellis_step,
 * trellis_back). */
#include "trellis23.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "codec.h"
#include "kern/kern.h"
#include "kv23.h"

enum {
    STATES = 256,
    BATCH = 4,     /* row blocks that go in step, so that entries of the table serve several */
    FAR = 255,     /* cost of states that cannot be */
    BEAM_FAST = 64 /* states a step goes on from with effort 1 */
};

/* Costs are counted in 1 / UNIT of a squared unit of p: as finely as 8 bits allow. */
#define UNIT_T2 12.0f
#define UNIT_T3 40.0f

typedef uint8_t Costs[T_ROWS + 1][STATES]; /* before the first row, after each row */

typedef struct Scratch { /* of one thread */
    Costs cost[BATCH];
    uint8_t lut[T_ROWS][BATCH][64];
} Scratch;

struct TrellisEncoder {
    int type, beam;
    uint8_t *tensor;
    size_t rows, cols, n_blocks, next_quad;
    const Kern *kern;
    Pool *pool;
    float *d;              /* (rows) row scales, as stored */
    float *inverse;        /* (rows) what makes units of p of a weight; 0 where d is 0 */
    float *weight;         /* (rows) of its errors among those of its row block */
    uint8_t *forth, *back; /* tables of trellis_step and trellis_back */
    Scratch *scratch;      /* per thread */
    /* the call */
    size_t quad;
    const float (*quad_target)[4];
    float (*decoded)[4];
    const float *matrix; /* or this: (rows, cols) */
};

/* ---- costs ---- */

static void put_entry(uint8_t *entry, int j, uint8_t prev, uint8_t cur) {
    uint32_t p = t4(prev, cur);
    for (int i = 0; i < 4; i++) entry[32 * i + j] = (uint8_t)(p >> (8 * i));
}

static void make_tables(TrellisEncoder *e) {
    for (size_t k = 0; k < STATES; k++)
        for (size_t j = 0; j < STATES; j++) {
            put_entry(e->forth + (j / 32 * STATES + k) * TRELLIS_ENTRY, (int)(j % 32), (uint8_t)k,
                      (uint8_t)j);
            put_entry(e->back + (k * 8 + j / 32) * TRELLIS_ENTRY, (int)(j % 32), (uint8_t)j,
                      (uint8_t)k);
        }
}

/* Squared distances of w (in units of p) from what p stands for, less the least of each lane. The
 * conditions are such that they need no branch. */
static void make_lut(uint8_t lut[64], int type, const float w[4], float inverse, float weight) {
    float unit = weight * (type == T_T2 ? UNIT_T2 : UNIT_T3);
    static const float t2[9] = { -4, -3, -2, -1, 0, 1, 2, 3, 4 };
    static const float t3[9] = { 4.25f, 3.25f, 2.25f, 1.25f, 0.25f, 0.75f, 1.75f, 2.75f, 3.75f };
    const float *value = type == T_T2 ? t2 : t3;
    for (int i = 0; i < 4; i++) {
        float x = w[i] * inverse, dist[9], least = 1e30f;
        x = x < -16.0f ? -16.0f : x > 16.0f ? 16.0f : x;
        if (type == T_T3) x = fabsf(x);
        for (int p = 0; p < 9; p++) {
            float e = x - value[p];
            dist[p] = e * e * unit;
            least = dist[p] < least ? dist[p] : least;
        }
        for (int p = 0; p < 9; p++) {
            float d = dist[p] - least;
            lut[16 * i + p] = (uint8_t)(int)((d < 255.0f ? d : 255.0f) + 0.5f);
        }
    }
}

/* ---- one tile ---- */

static void get_weights(const TrellisEncoder *e, float w[4], size_t r) {
    for (size_t i = 0; i < 4; i++)
        w[i] =
            e->matrix ? e->matrix[r * e->cols + i * (e->cols / 4) + e->quad] : e->quad_target[r][i];
}

/* Stores code and signs of row r and says what they stand for. */
static void put_code(const TrellisEncoder *e, size_t r, uint8_t code, const float w[4]) {
    TrellisRows at = trellis_rows(e->type, e->tensor, e->rows, e->cols, r);
    uint8_t *cur = (uint8_t *)at.codes + e->quad * at.height;
    uint32_t p = t4(cur[-1], code);
    int minus = 0;
    *cur = code;
    for (int i = 0; i < 4; i++) {
        int v = (int)(p >> (8 * i) & 255);
        float x = e->type == T_T2 ? (float)(v - 4) : 2 * (float)v - 8.5f;
        if (e->type == T_T3 && (w[i] < 0) != (x < 0)) {
            minus |= 1 << i;
            x = -x;
        }
        if (e->decoded) e->decoded[r][i] = x * e->d[r];
    }
    if (e->type == T_T3)
        ((uint8_t *)at.signs)[e->quad * (at.height / 2)] |= (uint8_t)(minus << 4 * (r % 2));
}

/* From the cheapest last state back to the first row. */
static void trace_back(const TrellisEncoder *e, const Scratch *s, int k, size_t r0, int n) {
    const Costs *cost = &s->cost[k];
    uint8_t code[T_ROWS];
    int best = 0;
    for (int b = 1; b < STATES; b++)
        if ((*cost)[n][b] < (*cost)[n][best]) best = b;
    for (int r = n - 1; r >= 0; r--) {
        code[r] = (uint8_t)best;
        best = e->kern->trellis_back((*cost)[r], s->lut[r][k],
                                     e->back + (size_t)best * 8 * TRELLIS_ENTRY);
    }
    for (int r = 0; r < n; r++) {
        float w[4];
        get_weights(e, w, r0 + (size_t)r);
        put_code(e, r0 + (size_t)r, code[r], w);
    }
}

/* The quad of row blocks b0..b0+n-1. */
static void encode_tiles(const TrellisEncoder *e, Scratch *s, size_t b0, int n) {
    int n_rows[BATCH] = { 0 };
    for (int k = 0; k < n; k++) {
        size_t r0 = (b0 + (size_t)k) * T_ROWS;
        TrellisRows at = trellis_rows(e->type, e->tensor, e->rows, e->cols, r0);
        uint8_t start = at.codes[(ptrdiff_t)(e->quad * at.height) - 1];
        n_rows[k] = (int)MIN((size_t)T_ROWS, e->rows - r0);
        for (int b = 0; b < STATES; b++) s->cost[k][0][b] = b == start ? 0 : FAR;
        for (int r = 0; r < n_rows[k]; r++) {
            float w[4];
            get_weights(e, w, r0 + (size_t)r);
            make_lut(s->lut[r][k], e->type, w, e->inverse[r0 + (size_t)r],
                     e->weight[r0 + (size_t)r]);
        }
    }
    for (int r = 0; r < n_rows[0]; r++) {
        int in_step = n - (r >= n_rows[n - 1]); /* the last block may be shorter */
        e->kern->trellis_step(s->cost[0][r + 1], s->cost[0][r], sizeof(Costs), s->lut[r][0],
                              in_step, e->beam, e->forth);
    }
    for (int k = 0; k < n; k++) trace_back(e, s, k, (b0 + (size_t)k) * T_ROWS, n_rows[k]);
}

/* ---- the encoder ---- */

/* Row blocks of one item: enough items for all threads, then as many as go in step. */
static size_t batch_of(const TrellisEncoder *e) {
    size_t threads = (size_t)pool_size(e->pool);
    return MAX((size_t)1, MIN((size_t)BATCH, e->n_blocks / threads));
}

static void quad_item(void *arg, int item, int thread) {
    const TrellisEncoder *e = arg;
    size_t batch = batch_of(e), b0 = (size_t)item * batch;
    encode_tiles(e, &e->scratch[thread], b0, (int)MIN(batch, e->n_blocks - b0));
}

static void all_item(void *arg, int item, int thread) {
    TrellisEncoder e = *(const TrellisEncoder *)arg;
    size_t batch = batch_of(&e), b0 = (size_t)item * batch;
    for (e.quad = 0; e.quad < e.cols / 4; e.quad++)
        encode_tiles(&e, &e.scratch[thread], b0, (int)MIN(batch, e.n_blocks - b0));
}

static void run(TrellisEncoder *e, PoolFn *fn) {
    size_t batch = batch_of(e);
    pool_run(e->pool, fn, e, (int)((e->n_blocks + batch - 1) / batch));
}

void trellis_encode_quad(TrellisEncoder *e, size_t q, const float (*target)[4],
                         float (*decoded)[4]) {
    assert(q == e->next_quad && q < e->cols / 4);
    e->quad = q;
    e->matrix = NULL;
    e->quad_target = target;
    e->decoded = decoded;
    run(e, quad_item);
    e->next_quad++;
}

void trellis_encode_all(TrellisEncoder *e, const float *w) {
    assert(e->next_quad == 0);
    e->matrix = w;
    e->decoded = NULL;
    run(e, all_item);
    e->next_quad = e->cols / 4;
}

/* Errors count by the square of the row scale, since they are in its units. */
static void weigh_rows(TrellisEncoder *e) {
    for (size_t b = 0; b < e->rows; b += T_ROWS) {
        double sum = 0;
        size_t n = MIN((size_t)T_ROWS, e->rows - b);
        for (size_t r = b; r < b + n; r++) sum += (double)e->d[r] * e->d[r];
        double inverse = sum > 0 ? (double)n / sum : 0;
        for (size_t r = b; r < b + n; r++) {
            float v = (float)((double)e->d[r] * e->d[r] * inverse);
            e->weight[r] = fminf(fmaxf(v, 0.125f), 4.0f); /* what 8 bits can express */
        }
    }
}

static void put_header(TrellisEncoder *e, size_t n_bytes, uint32_t seed, const float *d) {
    memset(e->tensor, 0, n_bytes);
    for (size_t r = 0; r < e->rows; r += T_ROWS) {
        const uint8_t *codes = trellis_rows(e->type, e->tensor, e->rows, e->cols, r).codes;
        memcpy((uint8_t *)codes - T_PAD, &seed, sizeof seed);
    }
    trellis_put_scales(e->type, e->tensor, e->rows, e->cols, d);
    for (size_t r = 0; r < e->rows; r++) {
        e->d[r] = f16_to_f32(f32_to_f16(d[r]));
        e->inverse[r] = e->d[r] != 0 ? (e->type == T_T2 ? 1.0f : 0.5f) / e->d[r] : 0;
    }
}

int trellis_encoder_create(TrellisEncoder **out, int type, uint8_t *tensor, size_t rows,
                           size_t cols, uint32_t seed, const float *d, int effort,
                           const struct Kern *kern, Pool *pool, DibitError *err) {
    size_t n_bytes = 0;
    TrellisEncoder *e = mem_calloc(NULL, 1, sizeof *e);
    *out = e;
    if (!e) return fail(err, DIBIT_E_MEMORY, "no memory for an encoder");
    e->type = type;
    e->beam = effort <= 1 ? BEAM_FAST : STATES;
    e->tensor = tensor;
    e->rows = rows;
    e->cols = cols;
    e->n_blocks = (rows + T_ROWS - 1) / T_ROWS;
    e->kern = kern;
    e->pool = pool;
    e->inverse = mem_calloc(NULL, rows, sizeof *e->inverse);
    e->d = mem_calloc(NULL, rows, sizeof *e->d);
    e->weight = mem_calloc(NULL, rows, sizeof *e->weight);
    e->forth = mem_alloc(NULL, TRELLIS_TABLE);
    e->back = mem_alloc(NULL, TRELLIS_TABLE);
    e->scratch = mem_calloc(NULL, (size_t)pool_size(pool), sizeof *e->scratch);
    bool ok = e->inverse && e->d && e->weight && e->forth && e->back && e->scratch;
    if (!ok || !trellis_bytes(type, rows, cols, &n_bytes)) {
        trellis_encoder_free(out);
        return fail(err, DIBIT_E_MEMORY, "no memory to encode a %zu x %zu matrix", rows, cols);
    }
    make_tables(e);
    put_header(e, n_bytes, seed, d);
    weigh_rows(e);
    return 0;
}

void trellis_encoder_free(TrellisEncoder **e) {
    if (!*e) return;
    mem_free(NULL, (*e)->inverse);
    mem_free(NULL, (*e)->d);
    mem_free(NULL, (*e)->weight);
    mem_free(NULL, (*e)->forth);
    mem_free(NULL, (*e)->back);
    mem_free(NULL, (*e)->scratch);
    mem_free(NULL, *e);
    *e = NULL;
}

/* ---- a matrix at once ---- */

typedef struct RowsJob {
    int type;
    const uint8_t *tensor;
    float *w, *d, *decoded; /* decoded: (cols) per thread */
    size_t rows, cols;
    uint32_t seed;
    const Kern *kern;
} RowsJob;

/* Rotates a row and gives it a scale. */
static void prepare_row(void *arg, int item, int thread) {
    const RowsJob *j = arg;
    float *row = j->w + (size_t)item * j->cols, *x = j->decoded + (size_t)thread * j->cols;
    double sum = 0;
    memcpy(x, row, j->cols * sizeof *x);
    j->kern->rotate(row, x, (int)j->cols, j->seed);
    for (size_t i = 0; i < j->cols; i++) sum += (double)row[i] * row[i];
    j->d[item] = trellis_scale(j->type, sqrt(sum / (double)j->cols));
}

/* The scale with the least squared error for the codes that the row has got. */
static void refit_row(void *arg, int item, int thread) {
    const RowsJob *j = arg;
    const float *row = j->w + (size_t)item * j->cols;
    float *q = j->decoded + (size_t)thread * j->cols;
    double wq = 0, qq = 0;
    trellis_decode(j->type, q, j->tensor, j->rows, j->cols, (size_t)item);
    for (size_t i = 0; i < j->cols; i++) {
        wq += (double)row[i] * q[i];
        qq += (double)q[i] * q[i];
    }
    if (qq > 0) j->d[item] = (float)(j->d[item] * (wq / qq));
}

int trellis_encode(int type, uint8_t *tensor, float *w, size_t rows, size_t cols, uint32_t seed,
                   int effort, const struct Kern *kern, Pool *pool, DibitError *err) {
    TrellisEncoder *e = NULL;
    RowsJob j = { type, tensor, w, NULL, NULL, rows, cols, seed, kern };
    int r = 0;
    j.d = mem_alloc(NULL, rows * sizeof *j.d);
    j.decoded = mem_alloc(NULL, (size_t)pool_size(pool) * cols * sizeof *j.decoded);
    if (!j.d || !j.decoded)
        r = fail(err, DIBIT_E_MEMORY, "no memory to encode a %zu x %zu matrix", rows, cols);
    if (r == 0) {
        pool_run(pool, prepare_row, &j, (int)rows);
        r = trellis_encoder_create(&e, type, tensor, rows, cols, seed, j.d, effort, kern, pool,
                                   err);
    }
    if (r == 0) {
        trellis_encode_all(e, w);
        for (size_t i = 0; i < rows; i++) j.d[i] = e->d[i]; /* as stored: what refit_row reads */
        pool_run(pool, refit_row, &j, (int)rows);
        trellis_put_scales(type, tensor, rows, cols, j.d);
    }
    trellis_encoder_free(&e);
    mem_free(NULL, j.d);
    mem_free(NULL, j.decoded);
    return r;
}
