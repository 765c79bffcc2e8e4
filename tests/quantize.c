/* quantize.c - quantize_file: plan, bytes, metadata, refusals; shape_make: models that run. */
#define _GNU_SOURCE
#include "quantize.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "dibit.h"
#include "shape.h"
#include "tiny.h"

static char folder[] = "/tmp/dibit-test-XXXXXX";

static const char *path(const char *name) { /* the last 64 results stay valid */
    static char paths[64][96];
    static int next;
    char *p = paths[next++ % 64];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static void write_tiny(const char *to, const Tiny *spec) {
    size_t n;
    FileOut f;
    uint8_t *image = tiny_image(spec, &n);
    assert_int_equal(file_create(&f, to, NULL), 0);
    assert_int_equal(file_write(&f, image, n, NULL), 0);
    assert_int_equal(file_commit(&f, NULL), 0);
    mem_free(NULL, image);
}

static Gguf *open_file(const char *name) {
    Gguf *g;
    DibitError err;
    if (gguf_open(&g, name, false, NULL, &err) != 0) die("%s", err.text);
    return g;
}

static QuantizeResult quantize(const char *in, const char *out, const QuantizeOptions *opt) {
    QuantizeResult result;
    DibitError err;
    if (quantize_file(in, out, opt, &result, &err) != 0) die("%s", err.text);
    return result;
}

/* Nothing appears and the text names what was wrong. */
static void refused(const char *in, const QuantizeOptions *opt, int code, const char *text) {
    DibitError err = { 0 };
    const char *out = path("refused.gguf");
    char tmp[160];
    assert_int_equal(quantize_file(in, out, opt, NULL, &err), code);
    if (!strstr(err.text, text)) die("\"%s\" does not say \"%s\"", err.text, text);
    snprintf(tmp, sizeof tmp, "%s.tmp-%ld", out, (long)getpid());
    assert_int_not_equal(access(out, F_OK), 0);
    assert_int_not_equal(access(tmp, F_OK), 0);
}

static int type_of(const Gguf *g, const char *name) {
    const GgufTensor *t = gguf_find(g, name);
    assert_non_null(t);
    return t->type;
}

/* ---- what becomes of a model ---- */

static void rules_and_metadata(void **state) {
    (void)state;
    const QuantizeRule rules[] = { { "ffn_(up|down)", "Q4_0" }, { "^blk\\.1\\.ffn_down", "bf16" } };
    const QuantizeOptions opt = { .type = "s2", .rules = rules, .n_rules = 2 };
    const char *in = path("in.gguf"), *out = path("out.gguf");
    write_tiny(in, &(Tiny){ .type = T_F16 });
    QuantizeResult q = quantize(in, out, &opt);
    Gguf *a = open_file(in), *b = open_file(out);
    assert_int_equal(type_of(b, "token_embd.weight"), T_Q8_0);
    assert_int_equal(type_of(b, "blk.0.attn_q.weight"), T_S2);
    assert_int_equal(type_of(b, "blk.0.ffn_down.weight"), T_Q4_0);
    assert_int_equal(type_of(b, "blk.1.ffn_up.weight"), T_Q4_0);
    assert_int_equal(type_of(b, "blk.1.ffn_down.weight"), T_BF16);
    assert_int_equal(type_of(b, "blk.1.ffn_norm.weight"), T_F32);
    assert_int_equal(gguf_n_tensors(b), gguf_n_tensors(a));
    assert_int_equal(gguf_file_bytes(b), q.file_bytes);
    uint64_t bytes = 0, weights = 0, version = 0;
    for (int i = 0; i < gguf_n_tensors(b); i++) {
        const GgufTensor *t = gguf_tensor(b, i);
        bytes += t->n_bytes;
        weights += t->ne[0] * t->ne[1];
        assert_string_equal(t->name, gguf_tensor(a, i)->name);
    }
    assert_int_equal(bytes, q.tensor_bytes);
    assert_int_equal(weights, q.n_weights);
    for (int i = 0; i < gguf_n_values(a); i++) {
        char key[128];
        const GgufValue *v = gguf_value(a, i);
        snprintf(key, sizeof key, "%.*s", (int)v->key.n, v->key.s);
        const GgufValue *w = gguf_get(b, key);
        assert_non_null(w);
        assert_int_equal(w->n_bytes, v->n_bytes);
        assert_memory_equal(w->data, v->data, v->n_bytes);
    }
    GgufString s;
    assert_true(gguf_get_string(b, "dibit.quantize.type", &s) && s.n == 2 && s.s[1] == '2');
    assert_true(gguf_get_u64(b, "general.quantization_version", &version) && version == 2);
    const GgufValue *list = gguf_get(b, "dibit.quantize.rules");
    assert_true(list && list->n == 2);
    size_t cursor = 0;
    s = gguf_next_string(list, &cursor);
    assert_true(s.n == 16 && memcmp(s.s, "ffn_(up|down)=q4", 16) == 0);
    gguf_close(&a);
    gguf_close(&b);
}

static FileMap bytes_of(const char *name) {
    FileMap f;
    DibitError err;
    if (file_map(&f, name, true, NULL, &err) != 0) die("%s", err.text);
    return f;
}

static void same_bytes(const char *a, const char *b) {
    FileMap x = bytes_of(a), y = bytes_of(b);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_unmap(&x);
    file_unmap(&y);
}

/* Seed and effort change the bytes; what was t2 before is copied, and decodes to what it was. */
static void trellis(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *a = path("one.gguf"), *b = path("many.gguf");
    write_tiny(in, &(Tiny){ .type = T_F32 });
    quantize(in, a, &(QuantizeOptions){ .type = "t2", .effort = 1, .seed = 5 });
    quantize(a, b, &(QuantizeOptions){ .type = "t2" });
    Gguf *x = open_file(a), *y = open_file(b);
    uint64_t seed = 0;
    assert_true(gguf_get_u64(x, "dibit.quantize.seed", &seed) && seed == 5);
    for (int i = 0; i < gguf_n_tensors(x); i++) {
        const GgufTensor *t = gguf_tensor(x, i), *u = gguf_tensor(y, i);
        if (t->type == T_T2) assert_int_equal(trellis_seed(t->data), 5);
        if (t->type == T_T2) assert_memory_equal(t->data, u->data, t->n_bytes);
    }
    gguf_close(&y);
    quantize(in, b, &(QuantizeOptions){ .type = "t2", .seed = 5 });
    y = open_file(b);
    const GgufTensor *t = gguf_find(x, "blk.0.ffn_up.weight"),
                     *u = gguf_find(y, "blk.0.ffn_up.weight");
    assert_memory_not_equal(t->data, u->data, t->n_bytes);
    gguf_close(&x);
    gguf_close(&y);
}

enum { N_IDS = 5 };

static float *logits_of(const char *name) {
    DibitEngine *e = NULL;
    DibitSession *s = NULL;
    DibitError err;
    float *logits = malloc(N_IDS * TINY_VOCAB * sizeof *logits);
    if (dibit_open(&e, name, NULL, &err) != 0 ||
        dibit_session_create(&s, e, &(DibitSessionOptions){ .n_ctx = 16 }, &err) != 0 ||
        dibit_forward(s, (const int32_t[N_IDS]){ 1, 70, 200, 13, 299 }, N_IDS, logits, &err) != 0)
        die("%s", err.text);
    dibit_session_free(&s);
    dibit_close(&e);
    return logits;
}

/* Matrices with the same input in types that want it in three forms, rotated, int8 and float,
 * against the same weights in f32. */
static void mixed_types_run(void **state) {
    (void)state;
    static const QuantizeRule rules[] = { { "attn_q", "t2" },    { "attn_k", "q8" },
                                          { "attn_v", "t3" },    { "attn_output", "t3" },
                                          { "ffn_gate", "f16" }, { "token_embd", "t3" } };
    const char *in = path("in.gguf"), *mixed = path("one.gguf"), *plain = path("many.gguf");
    double error = 0, size = 0;
    write_tiny(in, &(Tiny){ .type = T_F32 });
    quantize(in, mixed,
             &(QuantizeOptions){ .type = "t2", .rules = rules, .n_rules = (int)ARRAY_LEN(rules) });
    quantize(mixed, plain, &(QuantizeOptions){ .type = "f32" });
    Gguf *g = open_file(mixed);
    assert_int_equal(type_of(g, "token_embd.weight"), T_T3);
    assert_int_equal(type_of(g, "blk.1.attn_k.weight"), T_Q8_0);
    assert_int_equal(type_of(g, "blk.1.ffn_down.weight"), T_T2);
    gguf_close(&g);
    float *got = logits_of(mixed), *want = logits_of(plain);
    for (int i = 0; i < N_IDS * TINY_VOCAB; i++) {
        error += pow((double)got[i] - (double)want[i], 2);
        size += pow((double)want[i], 2);
    }
    print_message("error %.3f of the logits' norm\n", sqrt(error / size));
    assert_true(size > 0 && error < 0.05 * 0.05 * size);
    free(got);
    free(want);
}

static void any_thread_count(void **state) {
    (void)state;
    static const char *const types[] = { "t2", "t3", "s2", "s3", "q4", "q8", "f16", "bf16" };
    const char *in = path("in.gguf"), *one = path("one.gguf"), *many = path("many.gguf");
    write_tiny(in, &(Tiny){ .type = T_F32 });
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        QuantizeOptions opt = { .type = types[i], .n_threads = 1 };
        quantize(in, one, &opt);
        opt.n_threads = 5;
        opt.no_mmap = true;
        quantize(in, many, &opt);
        same_bytes(one, many);
    }
}

/* A matrix of several chunks: its bytes are those of the encoder given all rows at once. Most rows
 * are zeros, which takes no time. */
static void chunks(void **state) {
    (void)state;
    enum { ROWS = 300, COLS = 16384 }; /* chunks have 256 rows */
    const uint64_t ne[] = { COLS, ROWS };
    GgufWriter *w;
    const char *in = path("wide.gguf"), *out = path("out.gguf");
    float *x = calloc(ROWS * COLS, sizeof *x);
    for (size_t i = 0; i < COLS; i++) x[255 * COLS + i] = x[299 * COLS + i] = sinf((float)(i * i));
    for (size_t i = 0; i < COLS; i++) x[256 * COLS + i] = cosf((float)(i * i));
    gguf_writer_create(&w, NULL);
    gguf_put_tensor(w, "blk.0.ffn_up.weight", T_F32, 2, ne, ROWS * COLS * sizeof *x);
    assert_int_equal(gguf_begin(w, in, NULL), 0);
    assert_int_equal(gguf_write(w, x, ROWS * COLS * sizeof *x, NULL), 0);
    assert_int_equal(gguf_finish(w, NULL), 0);
    gguf_writer_free(&w);
    static const char *const types[] = { "s3", "q8" };
    for (int i = 0; i < 2; i++) {
        const TypeInfo *t = type_by_name(types[i]);
        size_t n;
        assert_true(type_bytes(t, ROWS, COLS, &n));
        uint8_t *want = malloc(n);
        for (size_t r = 0; r < ROWS; r += 16)
            t->encode(want, ROWS, COLS, r, MIN(ROWS - r, 16), x + r * COLS, NULL);
        quantize(in, out, &(QuantizeOptions){ .type = types[i], .n_threads = 2 });
        Gguf *g = open_file(out);
        assert_int_equal(gguf_tensor(g, 0)->n_bytes, n);
        assert_memory_equal(gguf_tensor(g, 0)->data, want, n);
        gguf_close(&g);
        free(want);
    }
    free(x);
}

/* Shards are joined: the same file as from the whole model. */
static void split_input(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *whole = path("whole.gguf"), *joined = path("joined.gguf");
    char name[48];
    write_tiny(in, &(Tiny){ .type = T_F16 });
    Gguf *g = open_file(in);
    int n = gguf_n_tensors(g), half = n / 2;
    for (int no = 0; no < 2; no++) {
        GgufWriter *w;
        gguf_writer_create(&w, NULL);
        for (int i = 0; no == 0 && i < gguf_n_values(g); i++) gguf_put_value(w, gguf_value(g, i));
        gguf_put_u32(w, "split.no", (uint32_t)no);
        gguf_put_u32(w, "split.count", 2);
        gguf_put_u32(w, "split.tensors.count", (uint32_t)n);
        int first = no ? half : 0, end = no ? n : half;
        for (int i = first; i < end; i++) {
            const GgufTensor *t = gguf_tensor(g, i);
            gguf_put_tensor(w, t->name, t->type, t->n_dims, t->ne, t->n_bytes);
        }
        snprintf(name, sizeof name, "part-%05d-of-00002.gguf", no + 1);
        assert_int_equal(gguf_begin(w, path(name), NULL), 0);
        for (int i = first; i < end; i++)
            gguf_write(w, gguf_tensor(g, i)->data, gguf_tensor(g, i)->n_bytes, NULL);
        assert_int_equal(gguf_finish(w, NULL), 0);
        gguf_writer_free(&w);
    }
    gguf_close(&g);
    const QuantizeOptions opt = { .type = "s3" };
    DibitError err;
    quantize(in, whole, &opt);
    quantize(path("part-00001-of-00002.gguf"), joined, &opt);
    same_bytes(whole, joined);
    assert_int_equal(quantize_file(path("part-00001-of-00002.gguf"),
                                   path("part-00002-of-00002.gguf"), &opt, NULL, &err),
                     DIBIT_E_ARGUMENT);
    assert_non_null(strstr(err.text, "the output is the input"));
}

/* ---- telling ---- */

typedef struct Seen {
    int n, notes, stop_at;
    char note[80];
    uint64_t bytes, done, total;
    double worst;
} Seen;

static int see(void *user, const QuantizeTensor *t) {
    Seen *s = user;
    assert_int_equal(t->index, s->n);
    s->n++;
    s->bytes += t->n_bytes;
    s->done = t->weights_done;
    s->total = t->weights_total;
    s->worst = fmax(s->worst, t->rel_mse);
    if (t->note) snprintf(s->note, sizeof s->note, "%s", t->note);
    s->notes += t->note != NULL;
    return s->n == s->stop_at;
}

static void plan_and_notes(void **state) {
    (void)state;
    Seen s = { 0 };
    QuantizeOptions opt = { .type = "s2", .dry_run = true, .progress = see, .user = &s };
    const char *in = path("in.gguf"), *out = path("dry.gguf");
    write_tiny(in, &(Tiny){ .type = T_F16 });
    QuantizeResult dry = quantize(in, NULL, &opt);
    assert_int_equal(s.bytes, dry.tensor_bytes);
    assert_int_equal(s.done, s.total);
    assert_int_equal(s.notes, 0);
    s = (Seen){ 0 };
    opt.dry_run = false;
    QuantizeResult real = quantize(in, out, &opt);
    assert_memory_equal(&dry, &real, sizeof dry);
    assert_true(s.worst > 0.05 && s.worst < 0.12); /* uniform weights */
    s = (Seen){ 0 };
    opt.type = "q4";
    quantize(out, path("again.gguf"), &opt); /* the s2 matrices are mentioned, q8 stays */
    assert_int_equal(s.notes, 7 * TINY_LAYERS);
    assert_non_null(strstr(s.note, "quantized before"));
    s = (Seen){ .stop_at = 3 };
    refused(in, &opt, DIBIT_E_CANCELLED, "cancelled");
    assert_int_equal(s.n, 3);
}

/* One matrix of 40 columns and 3 rows. */
static void write_matrix(const char *to, float at_1_2) {
    float x[120];
    GgufWriter *w;
    for (int i = 0; i < 120; i++) x[i] = (float)(i % 7) - 3;
    x[42] = at_1_2;
    gguf_writer_create(&w, NULL);
    gguf_put_tensor(w, "blk.0.odd.weight", T_F32, 2, (uint64_t[]){ 40, 3 }, sizeof x);
    assert_int_equal(gguf_begin(w, to, NULL), 0);
    assert_int_equal(gguf_write(w, x, sizeof x, NULL), 0);
    assert_int_equal(gguf_finish(w, NULL), 0);
    gguf_writer_free(&w);
}

static void odd_columns(void **state) {
    (void)state;
    Seen s = { 0 };
    const char *in = path("odd.gguf"), *out = path("out.gguf");
    write_matrix(in, 1);
    quantize(in, out, &(QuantizeOptions){ .type = "q4", .progress = see, .user = &s });
    Gguf *g = open_file(out);
    assert_int_equal(gguf_tensor(g, 0)->type, T_F16);
    assert_non_null(strstr(s.note, "f16 instead"));
    gguf_close(&g);
    quantize(in, out, &(QuantizeOptions){ .type = "t2" });
    g = open_file(out);
    assert_int_equal(gguf_tensor(g, 0)->type, T_F16);
    gguf_close(&g);
    quantize(in, out, &(QuantizeOptions){ .type = "s3" });
    g = open_file(out);
    assert_int_equal(gguf_tensor(g, 0)->type, T_S3); /* padded */
    gguf_close(&g);
}

static void refusals(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *odd = path("odd.gguf");
    DibitError err;
    write_tiny(in, &(Tiny){ .type = T_F16 });
    refused(in, &(QuantizeOptions){ .type = "s5" }, DIBIT_E_ARGUMENT, "\"s5\"");
    refused(in, &(QuantizeOptions){ .type = "Q4_K" }, DIBIT_E_UNSUPPORTED, "q4_k");
    const QuantizeRule none = { "atn_q", "q8" }, broken = { "(", "q8" }, norm = { "_norm", "q8" };
    refused(in, &(QuantizeOptions){ .type = "s2", .rules = &none, .n_rules = 1 }, DIBIT_E_ARGUMENT,
            "\"atn_q\" matches no matrix");
    refused(in, &(QuantizeOptions){ .type = "s2", .rules = &norm, .n_rules = 1 }, DIBIT_E_ARGUMENT,
            "\"_norm\" matches no matrix");
    refused(in, &(QuantizeOptions){ .type = "s2", .rules = &broken, .n_rules = 1 },
            DIBIT_E_ARGUMENT, "\"(\"");
    refused(path("none.gguf"), &(QuantizeOptions){ .type = "s2" }, DIBIT_E_IO, "none.gguf");
    assert_int_equal(quantize_file(in, in, &(QuantizeOptions){ .type = "s2" }, NULL, &err),
                     DIBIT_E_ARGUMENT);
    write_matrix(odd, NAN);
    refused(odd, &(QuantizeOptions){ .type = "s2" }, DIBIT_E_NUMERIC,
            "blk.0.odd.weight: the weight at row 1, column 2 is NaN");
    refused(odd, &(QuantizeOptions){ .type = "f32" }, DIBIT_E_NUMERIC, "NaN"); /* copied */
    write_tiny(in, &(Tiny){ .type = T_F32, .nan = "blk.1.ffn_up.weight" });
    refused(in, &(QuantizeOptions){ .type = "t3" }, DIBIT_E_NUMERIC,
            "blk.1.ffn_up.weight: the weight at row 1, column 3 is NaN");
    write_matrix(odd, -INFINITY);
    refused(odd, &(QuantizeOptions){ .type = "bf16" }, DIBIT_E_NUMERIC, "column 2 is infinite");
    write_matrix(odd, 70000);
    refused(odd, &(QuantizeOptions){ .type = "f16" }, DIBIT_E_NUMERIC, "too large");
    quantize(odd, path("out.gguf"), &(QuantizeOptions){ .type = "bf16" });
}

/* ---- shapes ---- */

/* A file that may not grow: plain rounding, and the trellis, whose finished tensors are kept for a
 * next run otherwise. */
static void full_disk(void **state) {
    (void)state;
    const char *in = path("in.gguf"), *types[] = { "q8", "t2" };
    struct rlimit old, small;
    write_tiny(in, &(Tiny){ .type = T_F16 });
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){ 100000, old.rlim_max };
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        setrlimit(RLIMIT_FSIZE, &small);
        refused(in, &(QuantizeOptions){ .type = types[i] }, DIBIT_E_IO, "cannot write");
        setrlimit(RLIMIT_FSIZE, &old);
        char part[160];
        snprintf(part, sizeof part, "%s.part", path("refused.gguf"));
        assert_int_not_equal(access(part, F_OK), 0);
    }
}

static void shapes_run(void **state) {
    (void)state;
    static const char *const types[] = { "s2", "s3", "t2", "t3", "q4", "q8", "f16" };
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        uint8_t *image;
        size_t size;
        DibitEngine *e = NULL;
        DibitSession *s = NULL;
        DibitError err;
        DibitTensorInfo t;
        const DibitOptions opt = { .n_threads = 1 };
        const DibitSessionOptions so = { .n_ctx = 16 };
        if (shape_make(&image, &size, "base-34m", types[i], "q8", 1001, &err) != 0 ||
            dibit_open_memory(&e, image, size, &opt, &err) != 0 ||
            dibit_session_create(&s, e, &so, &err) != 0)
            die("%s", err.text);
        assert_int_equal(dibit_tensor_info(e, 2, &t), 8 * 9 + 2);
        assert_string_equal(t.name, "blk.0.attn_q.weight");
        assert_string_equal(t.type, types[i]);
        float *logits = malloc(2 * 1001 * sizeof *logits);
        if (dibit_forward(s, (const int32_t[]){ 1, 1000 }, 2, logits, &err) != 0)
            die("%s", err.text);
        double energy = 0;
        for (int k = 0; k < 2 * 1001; k++) energy += (double)logits[k] * (double)logits[k];
        assert_true(energy / 2002 > 0.1 && energy / 2002 < 10);
        free(logits);
        dibit_session_free(&s);
        dibit_close(&e);
        mem_free(NULL, image);
    }
}

static void shapes_refuse(void **state) {
    (void)state;
    uint8_t *image;
    size_t size;
    DibitError err;
    assert_int_equal(shape_make(&image, &size, "base-35m", "s2", "q8", 0, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(shape_make(&image, &size, "base-34m", "x2", "q8", 0, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(shape_make(&image, &size, "base-34m", "s2", "q8", -1, &err), DIBIT_E_ARGUMENT);
    assert_int_equal(shape_make(&image, &size, "base-34m", "q4_k", "q8", 0, &err),
                     DIBIT_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "q4_k"));
    assert_null(image);
}

static int set_up(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    static const char *const files[] = { "in.gguf",
                                         "out.gguf",
                                         "one.gguf",
                                         "many.gguf",
                                         "wide.gguf",
                                         "whole.gguf",
                                         "joined.gguf",
                                         "dry.gguf",
                                         "again.gguf",
                                         "odd.gguf",
                                         "part-00001-of-00002.gguf",
                                         "part-00002-of-00002.gguf" };
    for (size_t i = 0; i < ARRAY_LEN(files); i++) unlink(path(files[i]));
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_and_metadata),
        cmocka_unit_test(trellis),
        cmocka_unit_test(mixed_types_run),
        cmocka_unit_test(any_thread_count),
        cmocka_unit_test(chunks),
        cmocka_unit_test(split_input),
        cmocka_unit_test(plan_and_notes),
        cmocka_unit_test(odd_columns),
        cmocka_unit_test(refusals),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(shapes_run),
        cmocka_unit_test(shapes_refuse),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
