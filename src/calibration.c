/* calibration.c - calibration files, read. A value that is not finite is refused here, so that
 * those who use the sums may trust them. */
#include "calibration.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "codec.h"

void calibration_name(char *buf, size_t cap, int layer, const char *matrices, bool full) {
    const char *kind = full ? "hessian" : "diagonal";
    if (layer < 0)
        snprintf(buf, cap, "%s.%s", matrices, kind);
    else
        snprintf(buf, cap, "blk.%d.%s.%s", layer, matrices, kind);
}

/* Names, shapes and a few weights of each matrix, rounded to bf16: a file in bf16 and its copies in
 * f16 and f32 count as the same model. */
uint64_t calibration_model_hash(const Gguf *model) {
    enum { SAMPLES = 32 };
    uint64_t h = CALIBRATION_VERSION;
    for (int i = 0; i < gguf_n_tensors(model); i++) {
        const GgufTensor *t = gguf_tensor(model, i);
        const TypeInfo *type = type_info(t->type);
        if (t->n_dims < 2 || !type) continue;
        size_t cols = (size_t)t->ne[0], rows = (size_t)(t->ne[1] * t->ne[2] * t->ne[3]);
        uint16_t sample[SAMPLES] = { 0 };
        float *row = mem_alloc(NULL, cols * sizeof *row);
        if (!row) return 0;
        type->decode(row, t->data, rows, cols, rows / 2);
        for (size_t k = 0; k < MIN(cols, (size_t)SAMPLES); k++) {
            /* tiny weights are not the same in f16 */
            sample[k] = fabsf(row[k]) < 1e-4f ? 0 : f32_to_bf16(row[k]);
        }
        mem_free(NULL, row);
        h = hash64(h, t->name, strlen(t->name));
        h = hash64(h, t->ne, sizeof t->ne);
        h = hash64(h, sample, sizeof sample);
    }
    return h;
}

/* ---- opening ---- */

static bool is_string(const Gguf *g, const char *key, const char *want) {
    GgufString s;
    return gguf_get_string(g, key, &s) && s.n == strlen(want) && memcmp(s.s, want, s.n) == 0;
}

static int check_own(Calibration *c, const char *path, const Gguf *model, DibitError *err) {
    uint64_t version = 0, hash = 0, windows = 0, done = 0;
    if (!gguf_get_u64(c->file, "dibit.calibration.version", &version) ||
        version != CALIBRATION_VERSION)
        return fail(err, DIBIT_E_FORMAT, "%s: version %llu of calibration files is unknown here",
                    path, (unsigned long long)version);
    if (!gguf_get_u64(c->file, "dibit.calibration.model_hash", &hash) ||
        hash != calibration_model_hash(model))
        return fail(err, DIBIT_E_ARGUMENT,
                    "%s: was made with another model; make it with the file that is quantized",
                    path);
    if (!gguf_get_u64(c->file, "dibit.calibration.windows", &windows) ||
        !gguf_get_u64(c->file, "dibit.calibration.windows_done", &done) ||
        !gguf_get_u64(c->file, "dibit.calibration.tokens", &c->n_tokens) ||
        !gguf_get_u64(c->file, "dibit.calibration.text_hash", &c->text_hash) || c->n_tokens == 0)
        return fail(err, DIBIT_E_FORMAT, "%s: keys of a calibration file are missing", path);
    if (done != windows)
        return fail(err, DIBIT_E_ARGUMENT,
                    "%s: only %llu of %llu windows are in it; let the calibration finish", path,
                    (unsigned long long)done, (unsigned long long)windows);
    return 0;
}

int calibration_open(Calibration *c, const char *path, const Gguf *model, DibitError *err) {
    *c = (Calibration){ 0 };
    int r = gguf_open(&c->file, path, false, NULL, err);
    if (r != 0) return r;
    if (is_string(c->file, "general.type", "imatrix"))
        c->imatrix = true;
    else if (is_string(c->file, "general.type", CALIBRATION_TYPE))
        r = check_own(c, path, model, err);
    else
        r = fail(err, DIBIT_E_FORMAT,
                 "%s: is no calibration file; make one with `dibit calibrate weights`", path);
    for (int i = 0; r == 0 && i < gguf_n_tensors(c->file); i++) {
        const GgufTensor *t = gguf_tensor(c->file, i);
        c->hash = hash64(hash64(c->hash, t->name, strlen(t->name)), t->data, t->n_bytes);
    }
    if (r != 0) calibration_close(c);
    return r;
}

void calibration_close(Calibration *c) {
    gguf_close(&c->file);
    *c = (Calibration){ 0 };
}

/* ---- looking up ---- */

/* In the order of a layer's sensitivities, with the input of each. */
static const char *const layer_matrices[][2] = {
    { "attn_q.weight", "attn_qkv" },      { "attn_k.weight", "attn_qkv" },
    { "attn_v.weight", "attn_qkv" },      { "attn_output.weight", "attn_output" },
    { "ffn_gate.weight", "ffn_gate_up" }, { "ffn_up.weight", "ffn_gate_up" },
    { "ffn_down.weight", "ffn_down" },
};

/* blk.3.attn_q.weight -> layer 3, row 0 of the table; false where it is none of them. */
static bool find_matrix(const char *tensor, int *layer, size_t *row) {
    int end = 0;
    if (sscanf(tensor, "blk.%4d.%n", layer, &end) != 1 || end == 0 || *layer < 0) return false;
    for (size_t i = 0; i < ARRAY_LEN(layer_matrices); i++)
        if (strcmp(tensor + end, layer_matrices[ *row = i][0]) == 0) return true;
    return false;
}

static const char *input_of(const char *tensor, int *layer) {
    size_t row;
    if (find_matrix(tensor, layer, &row)) return layer_matrices[row][1];
    *layer = -1;
    if (strcmp(tensor, "output.weight") == 0 || strcmp(tensor, "token_embd.weight") == 0)
        return "output";
    return NULL;
}

float calibration_sensitivity(const Calibration *c, const char *tensor) {
    size_t row, n = ARRAY_LEN(layer_matrices);
    int layer;
    const GgufTensor *t = c->file ? gguf_find(c->file, CALIBRATION_SENSITIVITY) : NULL;
    if (!t || !find_matrix(tensor, &layer, &row) || t->type != T_F32 || t->ne[0] != n ||
        (uint64_t)layer >= t->ne[1])
        return -1;
    float v = ((const float *)t->data)[(size_t)layer * n + row];
    return isfinite(v) ? v : -1;
}

static int check_values(const GgufTensor *t, size_t want, size_t cols, DibitError *err) {
    if (t->type != T_F32 || t->n_bytes != want * sizeof(float))
        return fail(err, DIBIT_E_ARGUMENT,
                    "%s of the calibration file: %zu bytes do not fit a matrix of %zu columns",
                    t->name, t->n_bytes, cols);
    const float *v = (const float *)t->data;
    for (size_t i = 0; i < want; i++)
        if (!isfinite(v[i]))
            return fail(err, DIBIT_E_NUMERIC, "%s of the calibration file: value %zu is not finite",
                        t->name, i);
    return 0;
}

static int find_imatrix(const Calibration *c, const char *tensor, size_t cols,
                        CalibrationInput *out, DibitError *err) {
    char name[160];
    snprintf(name, sizeof name, "%.140s.in_sum2", tensor);
    const GgufTensor *t = gguf_find(c->file, name);
    if (!t) return 0;
    out->diagonal = (const float *)t->data;
    return check_values(t, cols, cols, err);
}

int calibration_find(const Calibration *c, const char *tensor, size_t cols, CalibrationInput *out,
                     DibitError *err) {
    char name[64];
    int layer;
    *out = (CalibrationInput){ .width = cols };
    if (c->imatrix) return find_imatrix(c, tensor, cols, out, err);
    const char *input = input_of(tensor, &layer);
    if (!input) return 0;
    /* the rows of a tied embedding are outputs too */
    calibration_name(name, sizeof name, layer, input, true);
    const GgufTensor *t = gguf_find(c->file, name);
    size_t n;
    if (t) {
        out->triangle = (const float *)t->data;
        if (!size_mul(cols, cols + 1, &n)) n = 0;
        return check_values(t, n / 2, cols, err);
    }
    calibration_name(name, sizeof name, layer, input, false);
    t = gguf_find(c->file, name);
    if (!t) return 0;
    out->diagonal = (const float *)t->data;
    return check_values(t, cols, cols, err);
}
