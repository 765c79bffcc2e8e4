/* calibrate.c - sums of x x^T over a text, for every distinct input x of the model's matrices. The
 * sums grow window by window in the order of the text; between windows they are a complete state,
 * which is what the file holds, finished or not. Then each matrix's sensitivity is measured. */
#define _POSIX_C_SOURCE 200809L
#include "calibrate.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "calibrate_sensitivity.h"
#include "calibration.h"
#include "dense.h"
#include "model.h"

enum { BATCH = 256, WINDOW_DEFAULT = 2048, WIDTH_DEFAULT = 4096 };
#define SAVE_NS 120000000000u /* between saves of the work so far */
enum { SENSITIVITY_TOKENS = 512 };

typedef struct Input { /* one distinct input */
    char name[64];     /* of its tensor in the file */
    ModelTap tap;
    int layer;
    size_t width;
    bool full;
    float *sum; /* (width, width) lower triangle, or (width) */
} Input;

typedef struct Work {
    const CalibrateOptions *opt;
    const int32_t *ids;
    size_t n_ids;
    Gguf *file;
    Model model;
    Kern kern;
    Pool *pool;
    Cache cache;
    Scratch scratch;
    Input *inputs;
    int n_inputs, window, n_windows, done;
    float *sensitivity; /* (n_layers, 7); negative: not measured yet */
    int32_t *tokens;    /* (window) */
    char *part;         /* path of the work so far */
    uint64_t saved;     /* when it was written */
    uint64_t model_hash;
    float *packed; /* (widest triangle) */
    DibitError *tap_err;
    int tap_result;
} Work;

/* ---- the inputs ---- */

static const struct {
    ModelTap tap;
    const char *matrices;
} taps[] = { { TAP_QKV, "attn_qkv" },
             { TAP_O, "attn_output" },
             { TAP_GATE_UP, "ffn_gate_up" },
             { TAP_DOWN, "ffn_down" } };

static size_t tap_width(const Hparams *h, ModelTap tap) {
    if (tap == TAP_O) return (size_t)h->n_heads * (size_t)h->head_dim;
    return (size_t)(tap == TAP_DOWN ? h->n_ff : h->n_embd);
}

static size_t sum_floats(const Input *in) {
    return in->full ? in->width * in->width : in->width;
}

static int add_input(Work *w, ModelTap tap, int layer, const char *matrices, DibitError *err) {
    Input *in = &w->inputs[w->n_inputs++];
    size_t limit = (size_t)(w->opt->max_width > 0 ? w->opt->max_width : WIDTH_DEFAULT);
    *in = (Input){ .tap = tap, .layer = layer, .width = tap_width(&w->model.hp, tap) };
    in->full = in->width <= limit;
    calibration_name(in->name, sizeof in->name, layer < w->model.hp.n_layers ? layer : -1, matrices,
                     in->full);
    in->sum = mem_calloc(NULL, sum_floats(in), sizeof *in->sum);
    if (in->sum) return 0;
    return fail(err, DIBIT_E_MEMORY,
                "no memory for the %zu x %zu sums of %s; a smaller --max-width keeps only the "
                "diagonal of wide inputs",
                in->width, in->full ? in->width : 1, in->name);
}

static int n_matrices(const Work *w) {
    return w->model.hp.n_layers * SENSITIVITY_MATRICES;
}

static int make_inputs(Work *w, DibitError *err) {
    int n_layers = w->model.hp.n_layers, r = 0;
    size_t widest = 0;
    w->inputs = mem_calloc(NULL, (size_t)n_layers * ARRAY_LEN(taps) + 1, sizeof *w->inputs);
    if (!w->inputs) return fail(err, DIBIT_E_MEMORY, "no memory for the list of inputs");
    for (int l = 0; l < n_layers && r == 0; l++)
        for (size_t i = 0; i < ARRAY_LEN(taps) && r == 0; i++)
            r = add_input(w, taps[i].tap, l, taps[i].matrices, err);
    if (r == 0) r = add_input(w, TAP_OUTPUT, n_layers, "output", err);
    for (int i = 0; i < w->n_inputs; i++) widest = MAX(widest, w->inputs[i].width);
    w->sensitivity = mem_alloc(NULL, (size_t)n_matrices(w) * sizeof *w->sensitivity);
    if (r == 0 && !w->sensitivity)
        r = fail(err, DIBIT_E_MEMORY, "no memory for the list of inputs");
    for (int i = 0; r == 0 && i < n_matrices(w); i++) w->sensitivity[i] = -1;
    if (r == 0) w->packed = mem_alloc(NULL, widest * (widest + 1) / 2 * sizeof *w->packed);
    if (r == 0 && !w->packed) r = fail(err, DIBIT_E_MEMORY, "no memory to write the sums");
    return r;
}

/* ---- the model ---- */

static int open_model(Work *w, const char *path, DibitError *err) {
    int r = gguf_open(&w->file, path, w->opt->no_mmap, NULL, err);
    if (r == 0) r = pool_create(&w->pool, w->opt->n_threads, NULL, err);
    if (r != 0) return r;
    kern_init(&w->kern, ~0u);
    r = model_open(&w->model, w->file, &w->kern, w->pool, REPACK_COPY, NULL, err);
    if (r != 0) return r;
    w->model_hash = calibration_model_hash(w->file);
    w->window = w->opt->window ? w->opt->window : MIN(WINDOW_DEFAULT, w->model.hp.n_ctx_train);
    return 0;
}

static int make_session(Work *w, DibitError *err) {
    const Hparams *h = &w->model.hp;
    CacheShape shape = { .n_layers = h->n_layers,
                         .n_kv_heads = h->n_kv_heads,
                         .head_dim = h->head_dim,
                         .n_ctx = w->window,
                         .type_k = KV_F16,
                         .type_v = KV_F16,
                         .n_batch = BATCH };
    int r = cache_create(&w->cache, &shape, NULL, err);
    if (r == 0)
        r = scratch_create(&w->scratch, &w->model, &w->kern, w->pool, MIN(BATCH, w->window),
                           w->window, NULL, err);
    w->tokens = mem_alloc(NULL, (size_t)w->window * sizeof *w->tokens);
    if (r == 0 && !w->tokens) r = fail(err, DIBIT_E_MEMORY, "no memory for a window");
    return r;
}

static void note(const Work *w, const char *text) {
    if (w->opt->note) w->opt->note(w->opt->user, text);
}

/* How many windows there will be, and what is little: before any long work. */
static int plan(Work *w, DibitError *err) {
    char text[240];
    size_t n_vocab = (size_t)w->model.hp.n_vocab, count = w->n_ids;
    if (w->window < 2) return fail(err, DIBIT_E_ARGUMENT, "a window has at least 2 tokens");
    for (size_t i = 0; i < w->n_ids; i++)
        if (w->ids[i] < 0 || (size_t)w->ids[i] >= n_vocab)
            return fail(err, DIBIT_E_ARGUMENT, "token %zu is %d, outside the vocabulary of %zu", i,
                        w->ids[i], n_vocab);
    if (w->opt->max_tokens) count = (size_t)MIN((uint64_t)count, w->opt->max_tokens);
    if (count / (size_t)w->window == 0)
        return fail(err, DIBIT_E_ARGUMENT,
                    "the text has %zu tokens, %zu would be used, fewer than one window of %d: give "
                    "a longer text, or a smaller -c",
                    w->n_ids, count, w->window);
    w->n_windows = (int)MIN(count / (size_t)w->window, (size_t)INT_MAX);
    uint64_t tokens = (uint64_t)w->n_windows * (uint64_t)w->window;
    int little = 0, diagonal = 0;
    const Input *first = NULL, *wide = NULL;
    for (int i = 0; i < w->n_inputs; i++) {
        const Input *in = &w->inputs[i];
        if (!in->full && diagonal++ == 0) wide = in;
        if (in->full && tokens < in->width && little++ == 0) first = in;
    }
    if (little) {
        snprintf(text, sizeof text,
                 "%s and %d more: %llu tokens are fewer than the %zu inputs; its correlations will "
                 "be poor, give a longer text",
                 first->name, little - 1, (unsigned long long)tokens, first->width);
        note(w, text);
    }
    if (diagonal) {
        snprintf(text, sizeof text, "%s and %d more: only the diagonal, since %zu inputs are many",
                 wide->name, diagonal - 1, wide->width);
        note(w, text);
    }
    return 0;
}

/* ---- the file, finished or not ---- */

/* Rows of the lower triangle one after another. */
static size_t pack_sum(const Input *in, float *dst) {
    if (!in->full) {
        memcpy(dst, in->sum, in->width * sizeof *dst);
        return in->width;
    }
    size_t n = 0;
    for (size_t i = 0; i < in->width; n += ++i)
        memcpy(dst + n, in->sum + i * in->width, (i + 1) * sizeof *dst);
    return n;
}

static void unpack_sum(const Input *in, const float *src) {
    if (!in->full) {
        memcpy(in->sum, src, in->width * sizeof *src);
        return;
    }
    for (size_t i = 0; i < in->width; src += ++i)
        memcpy(in->sum + i * in->width, src, (i + 1) * sizeof *src);
}

static size_t packed_floats(const Input *in) {
    return in->full ? in->width * (in->width + 1) / 2 : in->width;
}

static int write_tensors(Work *w, GgufWriter *g, DibitError *err) {
    int r = 0;
    for (int i = 0; i < w->n_inputs && r == 0; i++) {
        const Input *in = &w->inputs[i];
        size_t n = pack_sum(in, w->packed);
        for (size_t k = 0; k < n; k++)
            if (!isfinite(w->packed[k]))
                return fail(err, DIBIT_E_NUMERIC,
                            "%s: an activation is NaN or infinite; the model is damaged", in->name);
        r = gguf_write(g, w->packed, n * sizeof *w->packed, err);
    }
    if (r == 0)
        r = gguf_write(g, w->sensitivity, (size_t)n_matrices(w) * sizeof *w->sensitivity, err);
    return r;
}

static int write_file(Work *w, const char *path, uint64_t *n_bytes, DibitError *err) {
    GgufWriter *g;
    int r = gguf_writer_create(&g, err);
    if (r != 0) return r;
    gguf_put_string(g, "general.type", CALIBRATION_TYPE, strlen(CALIBRATION_TYPE));
    gguf_put_u32(g, "dibit.calibration.version", CALIBRATION_VERSION);
    gguf_put_u64(g, "dibit.calibration.model_hash", w->model_hash);
    gguf_put_u64(g, "dibit.calibration.text_hash", w->opt->text_hash);
    gguf_put_u32(g, "dibit.calibration.window", (uint32_t)w->window);
    gguf_put_u32(g, "dibit.calibration.windows", (uint32_t)w->n_windows);
    gguf_put_u32(g, "dibit.calibration.windows_done", (uint32_t)w->done);
    gguf_put_u64(g, "dibit.calibration.tokens", (uint64_t)w->done * (uint64_t)w->window);
    for (int i = 0; i < w->n_inputs; i++) {
        uint64_t n = packed_floats(&w->inputs[i]);
        gguf_put_tensor(g, w->inputs[i].name, T_F32, 1, &n, (size_t)n * sizeof(float));
    }
    const uint64_t ne[] = { SENSITIVITY_MATRICES, (uint64_t)w->model.hp.n_layers };
    gguf_put_tensor(g, CALIBRATION_SENSITIVITY, T_F32, 2, ne,
                    (size_t)n_matrices(w) * sizeof *w->sensitivity);
    *n_bytes = gguf_writer_size(g);
    r = gguf_begin(g, path, err);
    if (r == 0) r = write_tensors(w, g, err);
    if (r == 0) r = gguf_finish(g, err);
    gguf_writer_free(&g);
    return r;
}

static bool has_u64(const Gguf *g, const char *key, uint64_t want) {
    uint64_t v;
    return gguf_get_u64(g, key, &v) && v == want;
}

/* Takes up the work of an earlier call that had the same model, text and options. */
static void resume(Work *w) {
    Gguf *g;
    uint64_t done;
    if (gguf_open(&g, w->part, false, NULL, NULL) != 0) return;
    bool same = has_u64(g, "dibit.calibration.version", CALIBRATION_VERSION) &&
                has_u64(g, "dibit.calibration.model_hash", w->model_hash) &&
                has_u64(g, "dibit.calibration.text_hash", w->opt->text_hash) &&
                has_u64(g, "dibit.calibration.window", (uint64_t)w->window) &&
                has_u64(g, "dibit.calibration.windows", (uint64_t)w->n_windows) &&
                gguf_get_u64(g, "dibit.calibration.windows_done", &done) &&
                done <= (uint64_t)w->n_windows;
    const GgufTensor *s = gguf_find(g, CALIBRATION_SENSITIVITY);
    same &= s && s->type == T_F32 && s->n_bytes == (size_t)n_matrices(w) * sizeof(float);
    for (int i = 0; i < w->n_inputs && same; i++) {
        const GgufTensor *t = gguf_find(g, w->inputs[i].name);
        same = t && t->type == T_F32 && t->n_bytes == packed_floats(&w->inputs[i]) * sizeof(float);
    }
    for (int i = 0; i < w->n_inputs && same; i++)
        unpack_sum(&w->inputs[i], (const float *)gguf_find(g, w->inputs[i].name)->data);
    if (same) memcpy(w->sensitivity, s->data, s->n_bytes);
    if (same) w->done = (int)done;
    gguf_close(&g);
    if (same && w->done) note(w, "going on where an earlier run stopped");
}

/* ---- the work ---- */

static void add_rows(void *user, ModelTap what, int layer, const float *x, int n) {
    Work *w = user;
    for (int i = 0; i < w->n_inputs; i++) {
        const Input *in = &w->inputs[i];
        if (in->tap != what || in->layer != layer || w->tap_result != 0) continue;
        if (!in->full) {
            for (int t = 0; t < n; t++)
                for (size_t k = 0; k < in->width; k++) {
                    float v = x[(size_t)t * in->width + k];
                    in->sum[k] += v * v;
                }
            return;
        }
        DenseProduct p = { .c = in->sum,
                           .ldc = in->width,
                           .m = in->width,
                           .n = in->width,
                           .k = (size_t)n,
                           .a = { x, 1, in->width },
                           .b = { x, in->width, 1 },
                           .scale = 1,
                           .lower = true };
        w->tap_result = dense_multiply(&p, w->pool, w->tap_err);
    }
}

static void load_window(Work *w, int index) {
    size_t all = w->n_ids / (size_t)w->window, at = (size_t)index * all / (size_t)w->n_windows;
    const int32_t *ids = w->ids + at * (size_t)w->window;
    int head = w->opt->bos >= 0 ? 1 : 0;
    w->tokens[0] = head ? w->opt->bos : ids[0];
    memcpy(w->tokens + head, ids, (size_t)(w->window - head) * sizeof *ids);
}

static int run_window(Work *w, int index, DibitError *err) {
    load_window(w, index);
    cache_truncate(&w->cache, 0);
    w->scratch.tap = add_rows;
    w->scratch.tap_user = w;
    w->tap_err = err;
    for (int start = 0; start < w->window; start += BATCH) {
        int n = MIN(BATCH, w->window - start);
        int r =
            model_forward(&w->model, &w->scratch, &w->cache, w->tokens + start, n, NULL, true, err);
        if (r == 0) r = w->tap_result;
        if (r != 0) return r;
    }
    w->scratch.tap = NULL;
    return 0;
}

/* After each piece of work: tells how far it is, and keeps it now and then. */
static int step(Work *w, int n_measured, DibitError *err) {
    uint64_t window = (uint64_t)w->window, one = MIN(window, SENSITIVITY_TOKENS), size;
    uint64_t done = (uint64_t)w->done * window + (uint64_t)n_measured * one;
    uint64_t total = (uint64_t)w->n_windows * window + (uint64_t)n_matrices(w) * one;
    bool stop = w->opt->progress && w->opt->progress(w->opt->user, done, total) != 0;
    if (done == total || (!stop && clock_ns() - w->saved < SAVE_NS)) return 0;
    int r = write_file(w, w->part, &size, err);
    w->saved = clock_ns();
    if (r != 0 || !stop) return r;
    return fail(err, DIBIT_E_CANCELLED,
                "calibration was stopped after %d of %d windows, %d of %d matrices; the same "
                "command goes on",
                w->done, w->n_windows, n_measured, n_matrices(w));
}

static int run_windows(Work *w, DibitError *err) {
    int r = 0;
    w->saved = clock_ns();
    while (w->done < w->n_windows && r == 0) {
        r = run_window(w, w->done, err);
        if (r != 0) return r;
        w->done++;
        r = step(w, 0, err);
    }
    return r;
}

/* The sums that a matrix's input has; the upper triangle gets its values too. */
static const Input *complete_input(Work *w, int layer, int matrix) {
    static const ModelTap of[SENSITIVITY_MATRICES] = { TAP_QKV,     TAP_QKV,     TAP_QKV, TAP_O,
                                                       TAP_GATE_UP, TAP_GATE_UP, TAP_DOWN };
    const Input *in = w->inputs;
    while (in->layer != layer || in->tap != of[matrix]) in++;
    for (size_t i = 0; in->full && i < in->width; i++)
        for (size_t j = 0; j < i; j++) in->sum[j * in->width + i] = in->sum[i * in->width + j];
    return in;
}

static int run_sensitivity(Work *w, DibitError *err) {
    Sensitivity t = { .m = &w->model,
                      .s = &w->scratch,
                      .c = &w->cache,
                      .pool = w->pool,
                      .ids = w->tokens,
                      .n = MIN(w->window, SENSITIVITY_TOKENS),
                      .batch = MIN(w->window, BATCH) };
    load_window(w, w->n_windows / 2);
    int r = sensitivity_create(&t, err);
    for (int k = 0; k < n_matrices(w) && r == 0; k++) {
        int layer = k / SENSITIVITY_MATRICES, i = k % SENSITIVITY_MATRICES;
        if (w->sensitivity[k] >= 0) continue;
        const Input *in = complete_input(w, layer, i);
        r = sensitivity_measure(&t, layer, i, in->sum, in->full, &w->sensitivity[k], err);
        if (r == 0) r = step(w, k + 1, err);
    }
    sensitivity_free(&t);
    return r;
}

static int run(Work *w, const char *model, const char *out, CalibrateResult *result,
               DibitError *err) {
    int r = open_model(w, model, err);
    if (r == 0) r = make_inputs(w, err);
    if (r == 0) r = plan(w, err);
    if (r == 0) r = make_session(w, err);
    if (r != 0) return r;
    size_t n = strlen(out) + sizeof ".part";
    w->part = mem_alloc(NULL, n);
    if (!w->part) return fail(err, DIBIT_E_MEMORY, "no memory for a path");
    snprintf(w->part, n, "%s.part", out);
    resume(w);
    r = run_windows(w, err);
    if (r == 0) r = run_sensitivity(w, err);
    if (r == 0) r = write_file(w, out, &result->file_bytes, err);
    if (r != 0) return r;
    unlink(w->part);
    result->n_tokens = (uint64_t)w->n_windows * (uint64_t)w->window;
    result->n_inputs = w->n_inputs;
    for (int i = 0; i < w->n_inputs; i++) result->n_full += w->inputs[i].full;
    return 0;
}

int calibrate_weights(const char *model_path, const int32_t *ids, size_t n,
                      const CalibrateOptions *opt, const char *out_path, CalibrateResult *result,
                      DibitError *err) {
    Work w = { .opt = opt, .ids = ids, .n_ids = n };
    *result = (CalibrateResult){ 0 };
    int r = run(&w, model_path, out_path, result, err);
    scratch_free(&w.scratch);
    cache_free(&w.cache);
    model_close(&w.model);
    pool_free(&w.pool);
    gguf_close(&w.file);
    for (int i = 0; i < w.n_inputs; i++) mem_free(NULL, w.inputs[i].sum);
    mem_free(NULL, w.inputs);
    mem_free(NULL, w.packed);
    mem_free(NULL, w.sensitivity);
    mem_free(NULL, w.tokens);
    mem_free(NULL, w.part);
    return r;
}
