/* quantize.c - a GGUF file in other tensor types. The plan comes first: what every tensor becomes
 * and how large the file is. Then the tensors are converted one by one in chunks of rows, so memory
 * stays small whatever the model. Row blocks are encoded independently: the bytes do not depend on
 * the number of threads. */
#define _POSIX_C_SOURCE 200809L
#include "quantize.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "calibration.h"
#include "codec.h"
#include "feedback.h"
#include "gguf.h"
#include "kern/kern.h"
#include "quantize_part.h"
#include "recover.h"
#include "trellis23.h"

typedef struct Plan { /* of one tensor */
    const GgufTensor *from;
    const TypeInfo *type, *to;
    size_t rows, cols, n_bytes;
    uint64_t n_weights;
    bool outer; /* embedding or output */
    const char *note;
    uint8_t *ready; /* the n_bytes of the tensor, where it was coded in the recovery */
} Plan;

typedef struct Part { /* what became of one row block */
    double error, energy;
    size_t bad; /* row * cols + column of the first weight that cannot be stored, or NONE */
    float value;
} Part;
#define NONE SIZE_MAX

enum { BLOCK = 16, CHUNK_WEIGHTS = 1 << 22 };

typedef struct Job {
    const QuantizeOptions *opt;
    Gguf *in, *kv; /* kv: the calibration of the cache that goes in, or NULL */
    GgufWriter *w;
    Pool *pool;
    Plan *plans;
    int n;
    const TypeInfo *type, *embedding;
    const TypeInfo **rule_types;
    regex_t *rules;
    int n_compiled;
    bool *used; /* rules that matched something */
    Calibration calibration;
    Kern kern;
    Feedback feedback; /* the last one, which the next matrix may share */
    const float *feedback_of;
    int stage;
    uint64_t done; /* weights */
    QuantizePart part;
    QuantizeResult result;
    /* the chunk that is being converted */
    const Plan *plan;
    size_t row0, n_rows, chunk_rows, src_size;
    uint8_t *out, *scales;
    float *src; /* per thread: a row block and one decoded row */
    Part *parts;
    float *whole;      /* (rows, cols) of the matrix, where it is coded at once */
    float *importance; /* (cols) or NULL */
} Job;

typedef struct Error { /* of one tensor */
    double rel_mse, loss;
} Error;

/* ---- options ---- */

static int find_type(const TypeInfo **out, const char *name, DibitError *err) {
    *out = type_by_name(name);
    if (!*out)
        return fail(err, DIBIT_E_ARGUMENT,
                    "unknown tensor type \"%.40s\"; known are t2, t3, s2, s3, q4, q8, f16, bf16, "
                    "f32",
                    name ? name : "");
    if (!(*out)->encode && !trellis_bits((*out)->id))
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "type %s can be read but not written; choose t2, t3, s2, s3, q4, q8, f16, bf16 "
                    "or f32",
                    (*out)->name);
    return 0;
}

static bool is_wide(const TypeInfo *t) {
    return t->id == T_F32 || t->id == T_F16 || t->id == T_BF16;
}

static int read_rules(Job *j, DibitError *err) {
    size_t n = (size_t)MAX(j->opt->n_rules, 0);
    j->rules = mem_calloc(NULL, n, sizeof *j->rules);
    j->rule_types = mem_calloc(NULL, n, sizeof *j->rule_types);
    j->used = mem_calloc(NULL, n, sizeof *j->used);
    if (!j->rules || !j->rule_types || !j->used) return fail(err, DIBIT_E_MEMORY, "no memory");
    for (size_t i = 0; i < n; i++) {
        const QuantizeRule *rule = &j->opt->rules[i];
        int r = find_type(&j->rule_types[i], rule->type, err);
        if (r != 0) return r;
        int code = regcomp(&j->rules[i], rule->regex, REG_EXTENDED | REG_NOSUB);
        if (code != 0) {
            char why[80];
            regerror(code, &j->rules[i], why, sizeof why);
            return fail(err, DIBIT_E_ARGUMENT, "tensor rule \"%.80s\": %s", rule->regex, why);
        }
        j->n_compiled++;
    }
    return 0;
}

static int read_options(Job *j, DibitError *err) {
    int r = find_type(&j->type, j->opt->type, err);
    if (r != 0) return r;
    if (j->opt->embedding_type)
        r = find_type(&j->embedding, j->opt->embedding_type, err);
    else
        j->embedding = is_wide(j->type) ? j->type : type_info(T_Q8_0);
    return r ? r : read_rules(j, err);
}

/* ---- the plan ---- */

static bool is_norm(const char *name) {
    return strstr(name, "_norm.") != NULL;
}

static bool is_outer(const char *name) {
    return strcmp(name, "token_embd.weight") == 0 || strcmp(name, "output.weight") == 0;
}

/* A tensor of the cache's calibration: docs/FORMAT.md, "Calibrated bases". */
static bool is_kv(const char *name) {
    return strstr(name, ".kv_k.") || strstr(name, ".kv_v.");
}

static const TypeInfo *choose_type(Job *j, const Plan *p) {
    const char *name = p->from->name;
    if (is_kv(name)) return p->type;
    if (p->from->n_dims < 2 || is_norm(name)) return type_info(T_F32);
    const TypeInfo *type = p->outer ? j->embedding : j->type;
    for (int i = 0; i < j->n_compiled; i++) {
        if (regexec(&j->rules[i], name, 0, NULL, 0) != 0) continue;
        type = j->rule_types[i];
        j->used[i] = true;
    }
    return type;
}

static int plan_tensor(Job *j, Plan *p, DibitError *err) {
    const GgufTensor *t = p->from;
    p->type = type_info(t->type);
    p->outer = is_outer(t->name);
    p->cols = t->ne[0];
    if (!p->type) return fail(err, DIBIT_E_UNSUPPORTED, "%s: tensor type %d", t->name, t->type);
    if (!size_mul(t->ne[1], t->ne[2], &p->rows) || !size_mul(p->rows, t->ne[3], &p->rows))
        return fail(err, DIBIT_E_FORMAT, "%s: its dimensions are too large", t->name);
    p->n_weights = (uint64_t)p->rows * p->cols;
    p->to = choose_type(j, p);
    bool whole_blocks = p->to->block_bytes || trellis_bits(p->to->id);
    if (whole_blocks && p->cols % (size_t)p->to->block_len) {
        p->note = "columns are no multiple of 32: f16 instead";
        p->to = type_info(T_F16);
    } else if (!is_wide(p->type) && p->type != p->to) {
        p->note = "was quantized before: quality suffers twice";
    }
    if (!type_bytes(p->to, p->rows, p->cols, &p->n_bytes))
        return fail(err, DIBIT_E_FORMAT, "%s: its dimensions are too large", t->name);
    return 0;
}

static int plan_all(Job *j, DibitError *err) {
    uint64_t block_bytes = 0, block_weights = 0;
    int n_in = gguf_n_tensors(j->in), n_kv = j->kv ? gguf_n_tensors(j->kv) : 0;
    j->plans = mem_calloc(NULL, (size_t)n_in + (size_t)n_kv, sizeof *j->plans);
    if (!j->plans) return fail(err, DIBIT_E_MEMORY, "no memory for %d tensors", n_in + n_kv);
    for (int i = 0; i < n_in + n_kv; i++) {
        Plan *p = &j->plans[j->n];
        p->from = i < n_in ? gguf_tensor(j->in, i) : gguf_tensor(j->kv, i - n_in);
        if (i < n_in && j->kv && is_kv(p->from->name)) continue; /* an earlier calibration */
        j->n++;
        int r = plan_tensor(j, p, err);
        if (r != 0) return r;
        j->result.n_weights += p->n_weights;
        j->result.tensor_bytes += p->n_bytes;
        block_weights += p->outer ? 0 : p->n_weights;
        block_bytes += p->outer ? 0 : p->n_bytes;
    }
    for (int i = 0; i < j->n_compiled; i++)
        if (!j->used[i])
            return fail(err, DIBIT_E_ARGUMENT, "tensor rule \"%.80s\" matches no matrix",
                        j->opt->rules[i].regex);
    if (j->result.n_weights)
        j->result.bits = 8.0 * (double)j->result.tensor_bytes / (double)j->result.n_weights;
    if (block_weights) j->result.bits_blocks = 8.0 * (double)block_bytes / (double)block_weights;
    return 0;
}

/* ---- metadata ---- */

/* general.file_type as other programs number it; our own types have their GGUF ids. */
static uint32_t file_type(const TypeInfo *t) {
    switch (t->id) {
    case T_F32:
        return 0;
    case T_F16:
        return 1;
    case T_Q4_0:
        return 2;
    case T_Q8_0:
        return 7;
    case T_BF16:
        return 32;
    default:
        return (uint32_t)t->id;
    }
}

static bool starts_with(GgufString s, const char *prefix) {
    return s.n >= strlen(prefix) && memcmp(s.s, prefix, strlen(prefix)) == 0;
}

static void put_kv(Job *j) {
    for (int i = 0; i < gguf_n_values(j->kv); i++)
        if (starts_with(gguf_value(j->kv, i)->key, "dibit.kv."))
            gguf_put_value(j->w, gguf_value(j->kv, i));
}

static int put_rules(Job *j, DibitError *err) {
    if (j->n_compiled == 0) return 0;
    Arena arena = { 0 };
    GgufString *list = arena_alloc(&arena, (size_t)j->n_compiled * sizeof *list);
    for (int i = 0; list && i < j->n_compiled; i++) {
        size_t n = strlen(j->opt->rules[i].regex) + strlen(j->rule_types[i]->name) + 1;
        char *s = arena_alloc(&arena, n + 1);
        if (!s) list = NULL;
        if (s) snprintf(s, n + 1, "%s=%s", j->opt->rules[i].regex, j->rule_types[i]->name);
        if (s) list[i] = (GgufString){ s, n };
    }
    if (list) gguf_put_strings(j->w, "dibit.quantize.rules", list, (uint64_t)j->n_compiled);
    arena_free(&arena);
    return list ? 0 : fail(err, DIBIT_E_MEMORY, "no memory for the metadata");
}

/* Everything is copied but what speaks of shards and of an earlier quantization. */
static int put_metadata(Job *j, DibitError *err) {
    for (int i = 0; i < gguf_n_values(j->in); i++) {
        const GgufValue *v = gguf_value(j->in, i);
        if (starts_with(v->key, "split.") || starts_with(v->key, "dibit.quantize.")) continue;
        if (j->kv && starts_with(v->key, "dibit.kv.")) continue;
        gguf_put_value(j->w, v);
    }
    if (j->kv) put_kv(j);
    const char *type = j->type->name, *embedding = j->embedding->name;
    gguf_put_u32(j->w, "general.quantization_version", 2);
    gguf_put_u32(j->w, "general.file_type", file_type(j->type));
    gguf_put_string(j->w, "dibit.version", DIBIT_VERSION, strlen(DIBIT_VERSION));
    gguf_put_string(j->w, "dibit.quantize.type", type, strlen(type));
    gguf_put_u32(j->w, "dibit.quantize.seed", j->opt->seed);
    gguf_put_string(j->w, "dibit.quantize.embedding_type", embedding, strlen(embedding));
    if (j->calibration.file) {
        gguf_put_u64(j->w, "dibit.quantize.calibration_hash", j->calibration.hash);
        gguf_put_u64(j->w, "dibit.quantize.calibration_text_hash", j->calibration.text_hash);
        gguf_put_u64(j->w, "dibit.quantize.calibration_tokens", j->calibration.n_tokens);
    }
    if (j->opt->n_recover) {
        uint64_t tokens = j->opt->recover_tokens ? j->opt->recover_tokens : j->opt->n_recover;
        gguf_put_u64(j->w, "dibit.quantize.recover_text_hash", j->opt->recover_hash);
        gguf_put_u64(j->w, "dibit.quantize.recover_tokens", MIN(tokens, j->opt->n_recover));
        gguf_put_u64(j->w, MODEL_NORMS_HASH, model_norms_hash(j->in));
    }
    for (int i = 0; i < j->n; i++) {
        const Plan *p = &j->plans[i];
        gguf_put_tensor(j->w, p->from->name, p->to->id, p->from->n_dims, p->from->ne, p->n_bytes);
    }
    return put_rules(j, err);
}

/* ---- converting ---- */

/* The first weight of a row that is not finite, or too large for the f16 in most types. */
static void find_bad(Part *part, const Job *j, const float *row, size_t r) {
    float most = j->plan->to->id == T_F32 || j->plan->to->id == T_BF16 ? 3.4e38f : 65504.0f;
    for (size_t i = 0; i < j->plan->cols; i++) {
        if (fabsf(row[i]) <= most) continue;
        part->bad = r * j->plan->cols + i;
        part->value = row[i];
        return;
    }
}

static void add_error(Part *part, const float *row, const float *decoded, size_t cols) {
    for (size_t i = 0; i < cols; i++) {
        double e = (double)decoded[i] - (double)row[i];
        part->error += e * e;
        part->energy += (double)row[i] * (double)row[i];
    }
}

/* One block of 16 rows of the chunk. */
static void convert_block(void *arg, int item, int thread) {
    Job *j = arg;
    const Plan *p = j->plan;
    Part *part = &j->parts[item];
    size_t r0 = (size_t)item * BLOCK, n = MIN((size_t)BLOCK, j->n_rows - r0);
    float *src = j->src + (size_t)thread * j->src_size, *decoded = src + BLOCK * p->cols;
    *part = (Part){ .bad = NONE };
    for (size_t r = 0; r < n && part->bad == NONE; r++) {
        float *row = src + r * p->cols;
        p->type->decode(row, p->from->data, p->rows, p->cols, j->row0 + r0 + r);
        find_bad(part, j, row, j->row0 + r0 + r);
    }
    if (part->bad != NONE || p->type == p->to) return;
    p->to->encode(j->out, j->n_rows, p->cols, r0, n, src, j->importance);
    for (size_t r = 0; r < n; r++) {
        p->to->decode(decoded, j->out, j->n_rows, p->cols, r0 + r);
        add_error(part, src + r * p->cols, decoded, p->cols);
    }
}

static int report_bad(const Plan *p, const Part *part, DibitError *err) {
    size_t row = part->bad / p->cols, col = part->bad % p->cols;
    if (isfinite(part->value))
        return fail(err, DIBIT_E_NUMERIC,
                    "%s: the weight at row %zu, column %zu is %g, too large for type %s",
                    p->from->name, row, col, (double)part->value, p->to->name);
    return fail(err, DIBIT_E_NUMERIC, "%s: the weight at row %zu, column %zu is %s", p->from->name,
                row, col, isnan(part->value) ? "NaN" : "infinite");
}

static int write_chunk(Job *j, DibitError *err) {
    const Plan *p = j->plan;
    size_t n_bytes = 0, scale_bytes = 0;
    if (p->type == p->to) return 0;                        /* copied at the end */
    (void)type_bytes(p->to, j->n_rows, p->cols, &n_bytes); /* less than the whole tensor's */
    if (p->to->block_bytes == 0) {                         /* the row scales come last */
        scale_bytes = (j->n_rows + S_ROWS - 1) / S_ROWS * S_ROWS * 2;
        memcpy(j->scales + 2 * j->row0, s_row_scales(p->to->id, j->out, j->n_rows, p->cols),
               scale_bytes);
    }
    return gguf_write(j->w, j->out, n_bytes - scale_bytes, err);
}

/* Buffers for chunks of rows, or for the whole matrix and its rows as f32. */
static int alloc_tensor(Job *j, const Plan *p, bool whole, DibitError *err) {
    size_t threads = (size_t)pool_size(j->pool), out = 0, n;
    j->chunk_rows = MAX((size_t)CHUNK_WEIGHTS / MAX(p->cols, 1), 1) / BLOCK * BLOCK;
    j->chunk_rows = whole ? p->rows : MIN(MAX(j->chunk_rows, (size_t)BLOCK), p->rows);
    bool ok = size_mul(p->cols, BLOCK + 1, &j->src_size) && size_mul(j->src_size, threads, &n) &&
              size_mul(n, sizeof(float), &n) && type_bytes(p->to, j->chunk_rows, p->cols, &out);
    if (ok) {
        j->src = mem_alloc(NULL, n);
        j->out = mem_alloc(NULL, out);
        j->parts = mem_alloc(NULL, (j->chunk_rows / BLOCK + 1) * sizeof *j->parts);
        j->scales = mem_alloc(NULL, (p->rows + S_ROWS) * 2);
    }
    if (ok && whole) {
        j->whole = mem_alloc(NULL, p->rows * p->cols * sizeof(float));
        ok = j->whole != NULL;
    }
    if (ok && j->src && j->out && j->parts && j->scales) return 0;
    return fail(err, DIBIT_E_MEMORY, "%s: no memory to convert it", p->from->name);
}

static void free_tensor(Job *j) {
    mem_free(NULL, j->src);
    mem_free(NULL, j->out);
    mem_free(NULL, j->parts);
    mem_free(NULL, j->scales);
    mem_free(NULL, j->whole);
    mem_free(NULL, j->importance);
    j->src = j->whole = j->importance = NULL;
    j->out = j->scales = NULL;
    j->parts = NULL;
}

/* The sums of the row blocks of a chunk, or the first weight that cannot be stored. */
static int add_parts(const Job *j, const Plan *p, int n_blocks, double *error, double *energy,
                     DibitError *err) {
    for (int i = 0; i < n_blocks; i++) {
        if (j->parts[i].bad != NONE) return report_bad(p, &j->parts[i], err);
        *error += j->parts[i].error;
        *energy += j->parts[i].energy;
    }
    return 0;
}

static int convert_chunks(Job *j, const Plan *p, Error *e, DibitError *err) {
    double error = 0, energy = 0;
    for (j->row0 = 0; j->row0 < p->rows; j->row0 += j->n_rows) {
        j->n_rows = MIN(j->chunk_rows, p->rows - j->row0);
        int n_blocks = (int)((j->n_rows + BLOCK - 1) / BLOCK);
        pool_run(j->pool, convert_block, j, n_blocks);
        int r = add_parts(j, p, n_blocks, &error, &energy, err);
        if (r == 0) r = write_chunk(j, err);
        if (r != 0) return r;
    }
    e->rel_mse = energy > 0 ? error / energy : 0;
    if (p->type == p->to) return gguf_write(j->w, p->from->data, p->n_bytes, err);
    if (p->to->block_bytes) return 0;
    return gguf_write(j->w, j->scales, (p->rows + S_ROWS - 1) / S_ROWS * S_ROWS * 2, err);
}

/* ---- converting a matrix at once: t2 and t3, or with a calibration ---- */

static void load_block(void *arg, int item, int thread) {
    (void)thread;
    Job *j = arg;
    const Plan *p = j->plan;
    Part *part = &j->parts[item];
    size_t r0 = (size_t)item * BLOCK;
    *part = (Part){ .bad = NONE };
    for (size_t r = r0; r < MIN(p->rows, r0 + BLOCK) && part->bad == NONE; r++) {
        p->type->decode(j->whole + r * p->cols, p->from->data, p->rows, p->cols, r);
        find_bad(part, j, j->whole + r * p->cols, r);
    }
}

static void measure_block(void *arg, int item, int thread) {
    Job *j = arg;
    const Plan *p = j->plan;
    size_t r0 = (size_t)item * BLOCK;
    float *decoded = j->src + (size_t)thread * j->src_size;
    for (size_t r = r0; r < MIN(p->rows, r0 + BLOCK); r++) {
        if (trellis_bits(p->to->id)) /* `whole` is rotated; squares sum up to the same */
            trellis_decode(p->to->id, decoded, j->out, p->rows, p->cols, r);
        else
            p->to->decode(decoded, j->out, p->rows, p->cols, r);
        add_error(&j->parts[item], j->whole + r * p->cols, decoded, p->cols);
    }
}

static int make_feedback(Job *j, const Plan *p, const CalibrationInput *in, DibitError *err) {
    if (j->feedback_of == in->triangle && j->feedback.type == p->to) return 0;
    feedback_free(&j->feedback);
    j->feedback_of = in->triangle;
    return feedback_create(&j->feedback, p->to, j->opt->seed, in->triangle, p->cols, j->pool, err);
}

static const uint8_t *find_part(const Job *j, const Plan *p, Error *e) {
    double results[2];
    const uint8_t *data = quantize_part_find(&j->part, p->from->name, p->n_bytes, results);
    if (data) *e = (Error){ results[0], results[1] };
    return data;
}

static int keep_part(Job *j, const Plan *p, const uint8_t *data, const Error *e, DibitError *err) {
    const double results[2] = { e->rel_mse, e->loss };
    return quantize_part_add(&j->part, p->from->name, data, p->n_bytes, results, err);
}

static int convert_whole(Job *j, const Plan *p, const CalibrationInput *in, Error *e,
                         DibitError *err) {
    int n_blocks = (int)((p->rows + BLOCK - 1) / BLOCK);
    double error = 0, energy = 0;
    pool_run(j->pool, load_block, j, n_blocks);
    int r = add_parts(j, p, n_blocks, &error, &energy, err);
    int effort = j->opt->effort ? j->opt->effort : 2;
    if (r == 0 && in->triangle && feedback_can(p->to)) {
        r = make_feedback(j, p, in, err);
        if (r == 0)
            r = feedback_encode(&j->feedback, j->out, j->whole, p->rows, effort, &j->kern, j->pool,
                                &e->loss, err);
    } else if (r == 0) {
        r = trellis_encode(p->to->id, j->out, j->whole, p->rows, p->cols, j->opt->seed, effort,
                           &j->kern, j->pool, err);
    }
    if (r != 0) return r;
    pool_run(j->pool, measure_block, j, n_blocks);
    r = add_parts(j, p, n_blocks, &error, &energy, err);
    e->rel_mse = energy > 0 ? error / energy : 0;
    if (r == 0) r = keep_part(j, p, j->out, e, err);
    return r ? r : gguf_write(j->w, j->out, p->n_bytes, err);
}

/* The weights of squared errors from what the calibration knows; NULL where it knows nothing. */
static int make_importance(Job *j, const Plan *p, const CalibrationInput *in, DibitError *err) {
    double sum = 0;
    if (!in->triangle && !in->diagonal) return 0;
    j->importance = mem_alloc(NULL, p->cols * sizeof *j->importance);
    if (!j->importance) return fail(err, DIBIT_E_MEMORY, "no memory for the importance of inputs");
    for (size_t i = 0; i < p->cols; i++) {
        float v = in->diagonal ? in->diagonal[i] : in->triangle[i * (i + 1) / 2 + i];
        j->importance[i] = v;
        sum += v;
    }
    float floor = (float)(0.01 * sum / (double)p->cols), scale = sum > 0 ? 1 / floor : 0;
    for (size_t i = 0; i < p->cols; i++) j->importance[i] = 1 + scale * MAX(j->importance[i], 0);
    return 0;
}

static int convert(Job *j, const Plan *p, Error *e, DibitError *err) {
    CalibrationInput in = { 0 };
    j->plan = p;
    if (p->ready) return gguf_write(j->w, p->ready, p->n_bytes, err);
    int r = 0;
    if (j->calibration.file && p->from->n_dims >= 2)
        r = calibration_find(&j->calibration, p->from->name, p->cols, &in, err);
    bool whole = (in.triangle && feedback_can(p->to)) || trellis_bits(p->to->id);
    whole &= p->type != p->to;
    const uint8_t *done = whole ? find_part(j, p, e) : NULL;
    if (r == 0 && done) return gguf_write(j->w, done, p->n_bytes, err);
    if (r == 0) r = alloc_tensor(j, p, whole, err);
    if (r == 0 && !whole) r = make_importance(j, p, &in, err);
    if (r == 0) r = whole ? convert_whole(j, p, &in, e, err) : convert_chunks(j, p, e, err);
    free_tensor(j);
    return r;
}

/* Block matrices alone: what embedding and output lose is little beside. */
static void add_prediction(Job *j, const Plan *p, const Error *e) {
    double *sum = &j->result.predicted_kld;
    float s = calibration_sensitivity(&j->calibration, p->from->name);
    if (p->from->n_dims < 2 || p->outer || is_kv(p->from->name) || *sum < 0) return;
    *sum = s < 0 || (e->loss <= 0 && e->rel_mse > 0) ? -1 : *sum + (double)s * e->loss;
}

static int tell(Job *j, int i, const Error *e, DibitError *err) {
    const Plan *p = &j->plans[i];
    j->done += p->n_weights;
    add_prediction(j, p, e);
    QuantizeTensor t = { .name = p->from->name,
                         .from = p->type->name,
                         .to = p->to->name,
                         .note = p->note,
                         .index = i,
                         .n_tensors = j->n,
                         .n_dims = p->from->n_dims,
                         .n_weights = p->n_weights,
                         .n_bytes = p->n_bytes,
                         .rel_mse = e->rel_mse,
                         .loss = e->loss,
                         .weights_done = j->done,
                         .weights_total = j->result.n_weights };
    memcpy(t.shape, p->from->ne, sizeof t.shape);
    if (j->opt->progress && j->opt->progress(j->opt->user, &t) != 0)
        return fail(err, DIBIT_E_CANCELLED, "quantizing was cancelled");
    return 0;
}

static int convert_all(Job *j, DibitError *err) {
    for (int i = 0; i < j->n; i++) {
        Error e = { 0, 0 };
        int r = j->opt->dry_run ? 0 : convert(j, &j->plans[i], &e, err);
        if (r == 0 && !j->plans[i].ready) r = tell(j, i, &e, err);
        if (r != 0) return r;
    }
    return 0;
}

/* ---- recovery: block matrices, layer by layer ---- */

static void decode_block(void *arg, int item, int thread) {
    (void)thread;
    Job *j = arg;
    const Plan *p = j->plan;
    size_t r0 = (size_t)item * BLOCK;
    for (size_t r = r0; r < MIN(p->rows, r0 + BLOCK); r++)
        p->to->decode(j->whole + r * p->cols, p->ready, p->rows, p->cols, r);
}

/* Types without feedback take the weights as they are. */
static void code_plain(const Plan *p, float *w) {
    if (p->type == p->to) {
        memcpy(p->ready, p->from->data, p->n_bytes);
        return;
    }
    for (size_t r = 0; r < p->rows; r++)
        p->type->decode(w + r * p->cols, p->from->data, p->rows, p->cols, r);
    for (size_t r = 0; r < p->rows; r += BLOCK)
        p->to->encode(p->ready, p->rows, p->cols, r, MIN((size_t)BLOCK, p->rows - r),
                      w + r * p->cols, NULL);
}

static int code_with_feedback(Job *j, const Plan *p, int stage, float *target,
                              const float *triangle, Error *e, DibitError *err) {
    int r = 0;
    if (stage != j->stage || j->feedback.type != p->to) {
        feedback_free(&j->feedback);
        r = feedback_create(&j->feedback, p->to, j->opt->seed, triangle, p->cols, j->pool, err);
    }
    j->stage = stage;
    int effort = j->opt->effort ? j->opt->effort : 2;
    if (r == 0)
        r = feedback_encode(&j->feedback, p->ready, target, p->rows, effort, &j->kern, j->pool,
                            &e->loss, err);
    return r ? r : keep_part(j, p, p->ready, e, err);
}

static Plan *find_plan(Job *j, const char *name) {
    for (int i = 0; i < j->n; i++)
        if (strcmp(j->plans[i].from->name, name) == 0) return &j->plans[i];
    return NULL;
}

static int code_matrix(void *user, const char *name, int stage, float *target, size_t rows,
                       size_t cols, const float *triangle, float *decoded, DibitError *err) {
    Job *j = user;
    Plan *p = find_plan(j, name);
    Error e = { 0, 0 };
    int r = 0;
    if (!p || p->rows != rows || p->cols != cols)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: recovery needs it as one matrix", name);
    p->ready = mem_alloc(NULL, p->n_bytes);
    if (!p->ready) return fail(err, DIBIT_E_MEMORY, "%s: no memory to convert it", name);
    const uint8_t *done = feedback_can(p->to) ? find_part(j, p, &e) : NULL;
    if (done)
        memcpy(p->ready, done, p->n_bytes);
    else if (feedback_can(p->to))
        r = code_with_feedback(j, p, stage, target, triangle, &e, err);
    else
        code_plain(p, target);
    if (r != 0) return r;
    j->plan = p;
    j->whole = decoded;
    pool_run(j->pool, decode_block, j, (int)((rows + BLOCK - 1) / BLOCK));
    j->whole = NULL;
    return tell(j, (int)(p - j->plans), &e, err);
}

static int keep_norm(void *user, const char *name, const float *weights, size_t n,
                     DibitError *err) {
    Job *j = user;
    Plan *p = find_plan(j, name);
    if (!p || p->to->id != T_F32 || p->n_weights != n)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: recovery needs it as one vector", name);
    p->ready = mem_alloc(NULL, p->n_bytes);
    if (!p->ready) return fail(err, DIBIT_E_MEMORY, "%s: no memory to convert it", name);
    memcpy(p->ready, weights, p->n_bytes);
    return tell(j, (int)(p - j->plans), &(Error){ 0, 0 }, err);
}

static void check_block(void *arg, int item, int thread) {
    Job *j = arg;
    const Plan *p = j->plan;
    Part *part = &j->parts[item];
    size_t r0 = (size_t)item * BLOCK;
    float *row = j->src + (size_t)thread * j->src_size;
    *part = (Part){ .bad = NONE };
    for (size_t r = r0; r < MIN(p->rows, r0 + BLOCK) && part->bad == NONE; r++) {
        p->type->decode(row, p->from->data, p->rows, p->cols, r);
        find_bad(part, j, row, r);
    }
}

/* Names a weight that cannot be stored before activations are spoilt by it. */
static int check_all(Job *j, DibitError *err) {
    int r = 0;
    double unused[2];
    for (int i = 0; i < j->n && r == 0; i++) {
        const Plan *p = j->plan = &j->plans[i];
        int n_blocks = (int)((p->rows + BLOCK - 1) / BLOCK);
        r = alloc_tensor(j, p, false, err);
        mem_free(NULL, j->parts);
        j->parts = mem_alloc(NULL, (size_t)n_blocks * sizeof *j->parts);
        if (r == 0 && !j->parts) r = fail(err, DIBIT_E_MEMORY, "no memory to check the weights");
        if (r == 0) pool_run(j->pool, check_block, j, n_blocks);
        if (r == 0) r = add_parts(j, p, n_blocks, &unused[0], &unused[1], err);
        free_tensor(j);
    }
    return r;
}

static const float *find_prior(void *user, const char *name, size_t cols, uint64_t *n_tokens) {
    Job *j = user;
    CalibrationInput in = { 0 };
    *n_tokens = j->calibration.n_tokens;
    if (!j->calibration.file || j->calibration.imatrix) return NULL;
    return calibration_find(&j->calibration, name, cols, &in, NULL) == 0 ? in.triangle : NULL;
}

static int recover(Job *j, DibitError *err) {
    Model m = { 0 };
    RecoverOptions o = {
        j->opt->recover,        j->opt->n_recover, j->opt->bos, j->opt->recover_window,
        j->opt->recover_tokens, find_prior,        keep_norm
    };
    int r = check_all(j, err);
    if (r == 0) r = model_open(&m, j->in, &j->kern, j->pool, REPACK_NOT, NULL, err);
    if (r != 0) return r;
    r = recover_model(&m, &j->kern, j->pool, &o, code_matrix, j, err);
    feedback_free(&j->feedback);
    j->feedback_of = NULL;
    model_close(&m);
    return r;
}

/* ---- files ---- */

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Whether `out` is the input or one of its shards (NAME-00001-of-00003.gguf). */
static bool is_input(const char *in, const char *out) {
    size_t n = strlen(in), tail = strlen("-00001-of-00003.gguf");
    unsigned first, count;
    int end = 0;
    if (same_file(in, out)) return true;
    if (n < tail || sscanf(in + n - tail, "-%5u-of-%5u.gguf%n", &first, &count, &end) != 2 ||
        (size_t)end != tail)
        return false;
    char *name = mem_alloc(NULL, n + 32);
    bool same = false;
    for (unsigned i = 1; name && i <= count && !same; i++) {
        snprintf(name, n + 32, "%.*s-%05u-of-%05u.gguf", (int)(n - tail), in, i, count);
        same = same_file(name, out);
    }
    mem_free(NULL, name);
    return same;
}

static int open_kv(Job *j, DibitError *err) {
    if (!j->opt->kv_calibration) return 0;
    return model_open_kv(&j->kv, j->opt->kv_calibration, j->in, false, NULL, err);
}

/* What the bytes of the output depend on. */
static uint64_t work_key(const Job *j) {
    const QuantizeOptions *o = j->opt;
    uint64_t h = hash64(0, DIBIT_VERSION, strlen(DIBIT_VERSION));
    const uint64_t numbers[] = {
        (uint64_t)o->effort, o->seed,          o->n_recover,
        o->recover_tokens,   (uint64_t)o->bos, (uint64_t)o->recover_window
    };
    h = hash64(h, numbers, sizeof numbers);
    if (o->n_recover) h = hash64(h, o->recover, o->n_recover * sizeof *o->recover);
    for (int i = 0; i < j->n; i++) {
        const GgufTensor *t = j->plans[i].from;
        const uint64_t ids[] = { (uint64_t)t->type, (uint64_t)j->plans[i].to->id };
        h = hash64(h, ids, sizeof ids);
        h = hash64(h, t->name, strlen(t->name));
        h = hash64(h, t->data, t->n_bytes);
    }
    return j->calibration.file ? hash64(h, &j->calibration.hash, 8) : h;
}

static int run(Job *j, const char *in_path, const char *out_path, DibitError *err) {
    int r = read_options(j, err);
    if (r == 0 && !j->opt->dry_run && is_input(in_path, out_path))
        r = fail(err, DIBIT_E_ARGUMENT, "%s: the output is the input; give another name", out_path);
    if (r == 0) r = gguf_open(&j->in, in_path, j->opt->no_mmap, NULL, err);
    if (r == 0) r = open_kv(j, err);
    if (r == 0) r = plan_all(j, err);
    if (r == 0 && j->opt->calibration)
        r = calibration_open(&j->calibration, j->opt->calibration, j->in, err);
    if (r == 0) r = gguf_writer_create(&j->w, err);
    if (r == 0) r = put_metadata(j, err);
    if (r != 0) return r;
    j->result.file_bytes = gguf_writer_size(j->w);
    if (j->opt->dry_run) return convert_all(j, err);
    kern_init(&j->kern, isa_detect());
    r = pool_create(&j->pool, j->opt->n_threads, NULL, err);
    if (r == 0) r = quantize_part_open(&j->part, out_path, work_key(j), err);
    if (r == 0 && j->opt->n_recover) r = recover(j, err);
    if (r == 0) r = gguf_begin(j->w, out_path, err);
    if (r == 0) r = convert_all(j, err);
    return r ? r : gguf_finish(j->w, err);
}

int quantize_file(const char *in_path, const char *out_path, const QuantizeOptions *opt,
                  QuantizeResult *result, DibitError *err) {
    Job j = { .opt = opt, .part = { .fd = -1 } };
    int r = run(&j, in_path, out_path, err);
    if (result) *result = j.result;
    gguf_writer_free(&j.w);
    gguf_close(&j.in);
    calibration_close(&j.calibration);
    feedback_free(&j.feedback);
    gguf_close(&j.kv);
    quantize_part_close(&j.part, r == DIBIT_E_CANCELLED);
    pool_free(&j.pool);
    for (int i = 0; i < j.n_compiled; i++) regfree(&j.rules[i]);
    mem_free(NULL, j.rules);
    mem_free(NULL, j.rule_types);
    mem_free(NULL, j.used);
    for (int i = 0; j.plans && i < j.n; i++) mem_free(NULL, j.plans[i].ready);
    mem_free(NULL, j.plans);
    return r;
}
