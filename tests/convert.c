/* convert.c - Hugging Face folders to GGUF: keys, names, types and row order; tokenizers in both
 * forms; sentences for what is missing, damaged or not supported. Models are made here; those of
 * ../shared are converted too where they are. */
#define _GNU_SOURCE
#include "codec.h" /* before cmocka.h, which has a macro fail() */
#include "convert.h"
#include "safetensors.h"
#include "tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARED SOURCE_DIR "/../shared/"

/* ---- folders ---- */

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/dibit-convert-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static const char *in_folder(const char *name) {
    static char path[4][512];
    static int k;
    k = (k + 1) % 4;
    snprintf(path[k], sizeof path[k], "%s/%s", folder, name);
    return path[k];
}

static int remove_folder(void **state) {
    (void)state;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') unlink(in_folder(e->d_name));
    if (d) closedir(d);
    return rmdir(folder);
}

static int count_files(const char *part) {
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));) n += strstr(e->d_name, part) != NULL;
    closedir(d);
    return n;
}

static void write_bytes(const char *name, const void *p, size_t n) {
    FILE *f = fopen(in_folder(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
}

static void write_text(const char *name, const char *text) {
    write_bytes(name, text, strlen(text));
}

/* ---- a checkpoint: the value at (row, column) of tensor k is row + k / 64, so that rows can be
 * told apart after the conversion ---- */

enum { EMBD = 64, HEADS = 4, KV = 2, DIM = 16, FF = 96, VOCAB = 8 };

typedef struct Made {
    char names[64][96];
    uint64_t rows[64]; /* 0: a vector */
    uint64_t cols[64];
    int n;
} Made;

static void made(Made *m, const char *name, uint64_t rows, uint64_t cols) {
    snprintf(m->names[m->n], sizeof m->names[0], "%s", name);
    m->rows[m->n] = rows;
    m->cols[m->n++] = cols;
}

static void made_layer(Made *m, const char *name, uint64_t rows, uint64_t cols) {
    char full[96];
    snprintf(full, sizeof full, "model.layers.0.%s", name);
    made(m, full, rows, cols);
}

static void make_llama(Made *m) {
    *m = (Made){ .n = 0 };
    made(m, "model.embed_tokens.weight", VOCAB, EMBD);
    made_layer(m, "input_layernorm.weight", 0, EMBD);
    made_layer(m, "self_attn.q_proj.weight", HEADS * DIM, EMBD);
    made_layer(m, "self_attn.k_proj.weight", KV * DIM, EMBD);
    made_layer(m, "self_attn.v_proj.weight", KV * DIM, EMBD);
    made_layer(m, "self_attn.o_proj.weight", EMBD, HEADS * DIM);
    made_layer(m, "post_attention_layernorm.weight", 0, EMBD);
    made_layer(m, "mlp.gate_proj.weight", FF, EMBD);
    made_layer(m, "mlp.up_proj.weight", FF, EMBD);
    made_layer(m, "mlp.down_proj.weight", EMBD, FF);
    made(m, "model.norm.weight", 0, EMBD);
    made(m, "lm_head.weight", VOCAB, EMBD);
}

static void add_bias(Made *m, bool output) {
    made_layer(m, "self_attn.q_proj.bias", 0, HEADS * DIM);
    made_layer(m, "self_attn.k_proj.bias", 0, KV * DIM);
    made_layer(m, "self_attn.v_proj.bias", 0, KV * DIM);
    if (output) made_layer(m, "self_attn.o_proj.bias", 0, EMBD);
}

static float value_at(int k, uint64_t row) {
    return (float)row + (float)k / 64;
}

/* Tensors from..to-1 into one file. `spoil`: a weight in the last matrix is this instead. */
static void write_safetensors(const char *name, const Made *m, int from, int to, const char *type,
                              const float *spoil) {
    static uint8_t image[1 << 19];
    size_t width = strcmp(type, "F32") == 0 ? 4 : 2, n = 0, offset = 0, at;
    char *head = (char *)image + 8;
    n += (size_t)sprintf(head, "{");
    for (int k = from; k < to; k++) {
        size_t bytes = (size_t)(MAX(m->rows[k], 1) * m->cols[k]) * width;
        char shape[48];
        if (m->rows[k])
            snprintf(shape, sizeof shape, "%d,%d", (int)m->rows[k], (int)m->cols[k]);
        else
            snprintf(shape, sizeof shape, "%d", (int)m->cols[k]);
        n += (size_t)sprintf(
            head + n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
            k == from ? "" : ",", m->names[k], type, shape, offset, offset + bytes);
        offset += bytes;
    }
    head[n++] = '}';
    uint64_t length = n;
    memcpy(image, &length, 8);
    at = 8 + n;
    assert_true(at + offset < sizeof image);
    for (int k = from; k < to; k++)
        for (uint64_t r = 0; r < MAX(m->rows[k], 1); r++)
            for (uint64_t c = 0; c < m->cols[k]; c++, at += width) {
                float v = value_at(k, m->rows[k] ? r : c);
                if (spoil && k == to - 1 && r == 0 && c == 0) v = *spoil;
                uint16_t h = strcmp(type, "F16") == 0 ? f32_to_f16(v) : f32_to_bf16(v);
                memcpy(image + at, width == 4 ? (void *)&v : (void *)&h, width);
            }
    write_bytes(name, image, at);
}

static void write_config(const char *type, const char *more) {
    char text[2048];
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"vocab_size\":%d,\"hidden_size\":%d,"
             "\"intermediate_size\":%d,\"num_hidden_layers\":1,\"num_attention_heads\":%d,"
             "\"num_key_value_heads\":%d,\"max_position_embeddings\":128,\"rms_norm_eps\":1e-5,"
             "\"hidden_act\":\"silu\"%s}",
             type, VOCAB, EMBD, FF, HEADS, KV, more);
    write_text("config.json", text);
}

static int convert(const char *type, bool vocab_only, bool no_vocab, DibitError *err) {
    ConvertOptions opt = { .dir = folder,
                           .out = in_folder("out.gguf"),
                           .type = type,
                           .vocab_only = vocab_only,
                           .no_vocab = no_vocab,
                           .n_threads = 2 };
    ConvertResult result;
    return convert_model(&opt, &result, err);
}

static Gguf *converted(const char *type, bool vocab_only, bool no_vocab) {
    DibitError err = { 0 };
    Gguf *g;
    if (convert(type, vocab_only, no_vocab, &err) != 0) fail_msg("%s", err.text);
    if (gguf_open(&g, in_folder("out.gguf"), false, NULL, &err) != 0) fail_msg("%s", err.text);
    return g;
}

static void refused(bool vocab_only, bool no_vocab, int code, const char *says) {
    DibitError err = { 0 };
    assert_int_equal(convert("f16", vocab_only, no_vocab, &err), code);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
    assert_int_equal(count_files("out.gguf"), 0);
}

static void expect_u64(const Gguf *g, const char *key, uint64_t want) {
    uint64_t v = 0;
    if (!gguf_get_u64(g, key, &v)) fail_msg("no key %s", key);
    if (v != want) fail_msg("%s is %llu", key, (unsigned long long)v);
}

static void expect_f64(const Gguf *g, const char *key, double want) {
    double v = 0;
    if (!gguf_get_f64(g, key, &v) || fabs(v - want) > fabs(want) * 1e-6) fail_msg("%s: %g", key, v);
}

static void expect_text(const Gguf *g, const char *key, const char *want) {
    GgufString s;
    if (!gguf_get_string(g, key, &s) || s.n != strlen(want) || memcmp(s.s, want, s.n) != 0)
        fail_msg("%s is not %s", key, want);
}

/* Row r of the tensor holds the values of checkpoint row source(r) of tensor k. */
static void expect_rows(const Gguf *g, const char *name, int type, int k, int heads,
                        double within) {
    const GgufTensor *t = gguf_find(g, name);
    float row[256];
    if (!t) fail_msg("no tensor %s", name);
    assert_int_equal(t->type, type);
    for (uint64_t r = 0; r < t->ne[1]; r++) {
        uint64_t from = r, dim = heads ? t->ne[1] / (uint64_t)heads : 0;
        if (heads) from = r / dim * dim + r % 2 * (dim / 2) + r % dim / 2;
        type_info(type)->decode(row, t->data, t->ne[1], t->ne[0], r);
        for (uint64_t c = 0; c < t->ne[0]; c++) {
            double want = value_at(k, t->n_dims == 1 ? c : from);
            if (fabs(row[c] - want) > within) fail_msg("%s[%d]: %g", name, (int)r, row[c]);
        }
    }
}

/* ---- models ---- */

static void llama_keys_and_rows(void **state) {
    (void)state;
    static const struct {
        const char *name, *stored;
        int id, embedding;
        uint32_t file_type;
        double within; /* of values up to 100 */
    } types[] = { { "f32", "F32", T_F32, T_F32, 0, 0 },
                  { "f16", "F16", T_F16, T_F16, 1, 0.05 },
                  { "bf16", "BF16", T_BF16, T_BF16, 32, 0.5 },
                  { "q8", "F32", T_Q8_0, T_Q8_0, 7, 0.5 },
                  { "q4", "F32", T_Q4_0, T_Q8_0, 2, 8 } };
    Made m;
    make_llama(&m);
    write_config("llama", ",\"rope_theta\":50000.0");
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        double within = types[i].within;
        int id = types[i].id;
        write_safetensors("model.safetensors", &m, 0, m.n, types[i].stored, NULL);
        Gguf *g = converted(types[i].name, false, true);
        assert_int_equal(gguf_n_tensors(g), m.n);
        expect_rows(g, "token_embd.weight", types[i].embedding, 0, 0, MIN(within, 0.5));
        expect_rows(g, "output.weight", types[i].embedding, 11, 0, MIN(within, 0.5));
        expect_rows(g, "blk.0.attn_q.weight", id, 2, HEADS, within);
        expect_rows(g, "blk.0.attn_k.weight", id, 3, KV, within);
        expect_rows(g, "blk.0.attn_v.weight", id, 4, 0, within);
        expect_rows(g, "blk.0.attn_output.weight", id, 5, 0, within);
        expect_rows(g, "blk.0.ffn_down.weight", id, 9, 0, within);
        expect_rows(g, "blk.0.attn_norm.weight", T_F32, 1, 0, MIN(within, 0.5));
        expect_rows(g, "output_norm.weight", T_F32, 10, 0, MIN(within, 0.5));
        expect_u64(g, "general.file_type", types[i].file_type);
        expect_text(g, "general.architecture", "llama");
        expect_u64(g, "llama.vocab_size", VOCAB);
        expect_u64(g, "llama.block_count", 1);
        expect_u64(g, "llama.context_length", 128);
        expect_u64(g, "llama.embedding_length", EMBD);
        expect_u64(g, "llama.feed_forward_length", FF);
        expect_u64(g, "llama.attention.head_count", HEADS);
        expect_u64(g, "llama.attention.head_count_kv", KV);
        expect_u64(g, "llama.attention.key_length", DIM);
        expect_u64(g, "llama.rope.dimension_count", DIM);
        expect_f64(g, "llama.rope.freq_base", 50000);
        expect_f64(g, "llama.attention.layer_norm_rms_epsilon", 1e-5);
        assert_null(gguf_get(g, "llama.attention.sliding_window"));
        assert_null(gguf_get(g, "tokenizer.ggml.model"));
        gguf_close(&g);
    }
}

static void other_architectures(void **state) {
    (void)state;
    Made m;
    make_llama(&m);
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    write_config("mistral", ",\"sliding_window\":16,\"rope_parameters\":{\"rope_theta\":2e4,"
                            "\"rope_type\":\"default\"}");
    Gguf *g = converted("f32", false, true);
    expect_text(g, "general.architecture", "llama");
    expect_u64(g, "llama.attention.sliding_window", 16);
    expect_f64(g, "llama.rope.freq_base", 2e4);
    expect_rows(g, "blk.0.attn_q.weight", T_F32, 2, HEADS, 0);
    gguf_close(&g);

    m.n--; /* tied: no output matrix */
    add_bias(&m, false);
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    write_config("qwen2", ",\"tie_word_embeddings\":true,\"sliding_window\":16,"
                          "\"use_sliding_window\":false");
    g = converted("f32", false, true);
    expect_text(g, "general.architecture", "qwen2");
    expect_u64(g, "qwen2.attention.head_count", HEADS);
    assert_null(gguf_get(g, "qwen2.attention.sliding_window"));
    assert_null(gguf_find(g, "output.weight"));
    expect_rows(g, "blk.0.attn_q.weight", T_F32, 2, 0, 0); /* as they are */
    expect_rows(g, "blk.0.attn_q.bias", T_F32, 11, 0, 0);
    gguf_close(&g);
    write_config("qwen2", ",\"tie_word_embeddings\":true,\"sliding_window\":16,"
                          "\"use_sliding_window\":true,\"max_window_layers\":0");
    g = converted("f32", false, true);
    expect_u64(g, "qwen2.attention.sliding_window", 16);
    gguf_close(&g);

    make_llama(&m);
    made_layer(&m, "self_attn.q_norm.weight", 0, DIM);
    made_layer(&m, "self_attn.k_norm.weight", 0, DIM);
    for (int k = 0; k < m.n; k += 5) { /* in shards */
        char name[64];
        snprintf(name, sizeof name, "model-%05d-of-00003.safetensors", k / 5 + 1);
        write_safetensors(name, &m, k, MIN(k + 5, m.n), "BF16", NULL);
    }
    char index[4096];
    size_t n = (size_t)sprintf(index, "{\"metadata\":{},\"weight_map\":{");
    for (int k = 0; k < m.n; k++)
        n += (size_t)sprintf(index + n, "%s\"%s\":\"model-%05d-of-00003.safetensors\"",
                             k ? "," : "", m.names[k], k / 5 + 1);
    sprintf(index + n, "}}");
    write_text("model.safetensors.index.json", index);
    write_config("qwen3", ",\"head_dim\":16");
    g = converted("bf16", false, true);
    expect_rows(g, "blk.0.attn_k_norm.weight", T_F32, 13, 0, 0.5);
    expect_rows(g, "blk.0.attn_q.weight", T_BF16, 2, 0, 0.5);
    assert_int_equal(gguf_n_tensors(g), 14);
    gguf_close(&g);
    unlink(in_folder("out.gguf"));
    unlink(in_folder("model-00002-of-00003.safetensors"));
    refused(false, true, DIBIT_E_IO, "model-00002-of-00003.safetensors");
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":\"../x.safetensors\"}}");
    refused(false, true, DIBIT_E_FORMAT, "not a plain file name");
}

static void rope_scaling(void **state) {
    (void)state;
    Made m;
    make_llama(&m);
    add_bias(&m, true);
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    write_config("llama", ",\"attention_bias\":true,\"rope_scaling\":{\"type\":\"linear\","
                          "\"factor\":4.0}");
    Gguf *g = converted("f32", false, true);
    expect_text(g, "llama.rope.scaling.type", "linear");
    expect_f64(g, "llama.rope.scaling.factor", 4);
    expect_f64(g, "llama.rope.freq_base", 10000);
    expect_rows(g, "blk.0.attn_output.bias", T_F32, 15, 0, 0);
    const GgufTensor *bias = gguf_find(g, "blk.0.attn_k.bias"); /* permuted as the rows are */
    const float want[] = { 0, 8, 1, 9, 2, 10 };
    assert_non_null(bias);
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        float v[2];
        memcpy(v, bias->data + 4 * i, 4);
        memcpy(v + 1, bias->data + 4 * (i + DIM), 4);
        assert_true(v[0] == want[i] + 13 / 64.0f && v[1] == want[i] + DIM + 13 / 64.0f);
    }
    gguf_close(&g);

    m.n -= 4;
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    write_config("llama", ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
                          "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                          "\"original_max_position_embeddings\":64}");
    g = converted("f32", false, true);
    const GgufTensor *t = gguf_find(g, "rope_freqs.weight");
    assert_true(t && t->ne[0] == DIM / 2 && t->type == T_F32);
    const float factors[] = {
        1, 2.4422594f, 8, 8, 8, 8, 8, 8
    }; /* wave lengths 6.3, 32.4, 167, ... */
    for (size_t i = 0; i < ARRAY_LEN(factors); i++) {
        float v;
        memcpy(&v, t->data + 4 * i, 4);
        if (fabsf(v - factors[i]) > 1e-4f) fail_msg("factor %zu is %.7g", i, v);
    }
    assert_null(gguf_get(g, "llama.rope.scaling.type"));
    gguf_close(&g);
    unlink(in_folder("out.gguf"));
    write_config("llama", ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":8.0}");
    refused(false, true, DIBIT_E_UNSUPPORTED, "type yarn");
    write_config("llama", ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":\"8\"}");
    refused(false, true, DIBIT_E_FORMAT, "factor");
}

static void models_are_checked(void **state) {
    (void)state;
    Made m;
    make_llama(&m);
    refused(false, true, DIBIT_E_IO, "no config.json");
    write_text("config.json", "{\"model_type\":");
    refused(false, true, DIBIT_E_FORMAT, "config.json: line 1");
    write_text("config.json", "{\"model_type\":\"llama\",\"model_type\":\"llama\"}");
    refused(false, true, DIBIT_E_FORMAT, "duplicate");
    write_config("gemma3", "");
    refused(false, true, DIBIT_E_UNSUPPORTED, "model_type gemma3");
    write_config("llama", ",\"quantization_config\":{\"bits\":4}");
    refused(false, true, DIBIT_E_UNSUPPORTED, "quantized");
    write_config("llama", ",\"head_dim\":-1");
    refused(false, true, DIBIT_E_FORMAT, "head_dim");
    write_config("llama", "");
    refused(false, true, DIBIT_E_IO, "model.safetensors");
    write_text("model.safetensors", "12345");
    refused(false, true, DIBIT_E_FORMAT, "not a safetensors file");
    write_safetensors("model.safetensors", &m, 0, m.n - 1, "F32", NULL);
    refused(false, true, DIBIT_E_FORMAT, "no tensor lm_head.weight");
    m.cols[m.n - 1] = 32;
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    refused(false, true, DIBIT_E_FORMAT, "lm_head.weight: shape (8, 32), expected (8, 64)");
    m.cols[m.n - 1] = EMBD;
    made(&m, "model.layers.0.extra.weight", 0, 4);
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    refused(false, true, DIBIT_E_UNSUPPORTED, "model.layers.0.extra.weight has no place");
    m.n--;
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", (float[]){ NAN });
    refused(false, true, DIBIT_E_NUMERIC, "output.weight: a weight is NaN");
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", (float[]){ 1e5f });
    refused(false, true, DIBIT_E_NUMERIC, "too large for f16");
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    struct stat st;
    stat(in_folder("model.safetensors"), &st);
    assert_int_equal(truncate(in_folder("model.safetensors"), st.st_size - 1), 0);
    refused(false, true, DIBIT_E_FORMAT, "truncated");
    write_safetensors("model.safetensors", &m, 0, m.n, "F32", NULL);
    refused(false, false, DIBIT_E_TOKENIZER, "no tokenizer.json");

    struct rlimit old, small;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 16384; /* as a disk that is nearly full */
    setrlimit(RLIMIT_FSIZE, &small);
    refused(false, true, DIBIT_E_IO, "out.gguf: cannot write");
    setrlimit(RLIMIT_FSIZE, &old);
}

static void safetensors_are_checked(void **state) {
    (void)state;
    static const struct {
        const char *head;
        int code;
        const char *says;
    } bad[] = {
        { "[]", DIBIT_E_FORMAT, "not a JSON object" },
        { "{\"a\":1}", DIBIT_E_FORMAT, "a: dtype or data_offsets" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} x", DIBIT_E_FORMAT,
          "text follows" },
        { "{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", DIBIT_E_UNSUPPORTED,
          "a: dtype I64" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", DIBIT_E_FORMAT,
          "a: 4 bytes, its shape and type need 8" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", DIBIT_E_FORMAT,
          "dimension 0" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}", DIBIT_E_FORMAT,
          "its bytes 8 to 12 are not in the file" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", DIBIT_E_FORMAT,
          "hole or an overlap" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", DIBIT_E_FORMAT,
          "4 bytes follow" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
          DIBIT_E_FORMAT, "hole or an overlap" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
          "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
          DIBIT_E_FORMAT, "a is there twice" },
        { "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
          DIBIT_E_FORMAT, "duplicate" },
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint8_t image[512] = { 0 };
        uint64_t n = strlen(bad[i].head);
        SafeTensors *st;
        DibitError err = { 0 };
        memcpy(image, &n, 8);
        memcpy(image + 8, bad[i].head, n);
        assert_int_equal(safetensors_open_memory(&st, image, 16 + n, &err), bad[i].code);
        if (!strstr(err.text, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err.text, bad[i].says);
    }
}

/* ---- tokenizers ---- */

#define SPLIT(regex)                                                                               \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"        \
    "\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","          \
    "\"add_prefix_space\":false,\"use_regex\":false}]}"
#define LLAMA3                                                                                     \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "         \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define QWEN2                                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "              \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"

static void write_bpe(const char *pre, const char *merges, const char *more) {
    char text[4096];
    snprintf(text, sizeof text,
             "{\"added_tokens\":[{\"id\":4,\"content\":\"<|end|>\",\"special\":true},"
             "{\"id\":5,\"content\":\"<tool>\",\"special\":false},"
             "{\"id\":6,\"content\":\"<|odd|>\",\"special\":false}],"
             "\"normalizer\":null,\"pre_tokenizer\":%s,\"model\":{\"type\":\"BPE\","
             "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3},\"merges\":%s%s}}",
             pre, merges, more);
    write_text("tokenizer.json", text);
}

static void expect_strings(const Gguf *g, const char *key, const char *const *want, size_t n) {
    const GgufValue *v = gguf_get(g, key);
    size_t cursor = 0;
    if (!v || v->item != GGUF_STRING || v->n != n) fail_msg("%s is not %zu strings", key, n);
    for (size_t i = 0; i < n; i++) {
        GgufString s = gguf_next_string(v, &cursor);
        if (s.n != strlen(want[i]) || memcmp(s.s, want[i], s.n) != 0)
            fail_msg("%s[%zu] is %.*s", key, i, (int)s.n, s.s);
    }
}

static void byte_level_vocabularies(void **state) {
    (void)state;
    static const char *const tokens[] = { "a",       "b",      "ab",      "\xc4\xa0",
                                          "<|end|>", "<tool>", "<|odd|>", "[PAD7]" };
    static const char *const merge[] = { "a b" };
    static const int types[] = { 1, 1, 1, 1, 3, 4, 3, 5 };
    static const struct {
        const char *rule, *pre, *more;
    } rules[] = { { BYTES, "gpt-2", "" },
                  { SPLIT(QWEN2), "qwen2", "" },
                  { SPLIT(LLAMA3), "llama-bpe", ",\"ignore_merges\":true" } };
    write_config("qwen2", "");
    write_text("generation_config.json", "{\"eos_token_id\":[4,5,2]}");
    write_text("tokenizer_config.json",
               "{\"bos_token\":null,\"eos_token\":{\"content\":\"<|end|>\"},\"pad_token\":"
               "\"<|odd|>\",\"chat_template\":[{\"name\":\"tool\",\"template\":\"no\"},"
               "{\"name\":\"default\",\"template\":\"yes\"}]}");
    for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
        write_bpe(rules[i].rule, i % 2 ? "[\"a b\"]" : "[[\"a\",\"b\"]]", rules[i].more);
        Gguf *g = converted("f16", true, false);
        expect_text(g, "tokenizer.ggml.model", "gpt2");
        expect_text(g, "tokenizer.ggml.pre", rules[i].pre);
        expect_strings(g, "tokenizer.ggml.tokens", tokens, ARRAY_LEN(tokens));
        expect_strings(g, "tokenizer.ggml.merges", merge, 1);
        const GgufValue *v = gguf_get(g, "tokenizer.ggml.token_type");
        assert_true(v && v->n == VOCAB);
        for (uint64_t k = 0; k < VOCAB; k++) assert_int_equal(gguf_item_i64(v, k), types[k]);
        expect_u64(g, "tokenizer.ggml.eos_token_id", 4);
        expect_u64(g, "tokenizer.ggml.eot_token_id", 5);
        expect_u64(g, "tokenizer.ggml.eom_token_id", 2);
        expect_u64(g, "tokenizer.ggml.padding_token_id", 6);
        assert_null(gguf_get(g, "tokenizer.ggml.bos_token_id"));
        expect_text(g, "tokenizer.chat_template", "yes");
        bool add = true;
        assert_true(gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add) && !add);
        assert_int_equal(gguf_n_tensors(g), 0);
        Tokenizer *t;
        DibitError err = { 0 };
        if (tokenizer_open(&t, g, NULL, &err) != 0) fail_msg("%s", err.text);
        int32_t ids[8];
        assert_int_equal(tokenizer_encode(t, "ab ba", 5, 0, ids, 8, &err), 4);
        assert_true(ids[0] == 2 && ids[1] == 3 && ids[2] == 1 && ids[3] == 0);
        assert_true(tokenizer_is_end(t, 4) && tokenizer_is_end(t, 5) && tokenizer_is_end(t, 2));
        tokenizer_close(&t);
        gguf_close(&g);
    }
    unlink(in_folder("config.json")); /* nothing but tokenizer.json */
    unlink(in_folder("generation_config.json"));
    unlink(in_folder("tokenizer_config.json"));
    write_text("chat_template.jinja", "from a file");
    Gguf *g = converted("f16", true, false);
    expect_strings(g, "tokenizer.ggml.tokens", tokens, 7);
    expect_u64(g, "llama.vocab_size", 7);
    expect_text(g, "tokenizer.chat_template", "from a file");
    gguf_close(&g);
}

static void vocabularies_are_checked(void **state) {
    (void)state;
    write_bpe(SPLIT("\\\\d+|other"), "[]", "");
    refused(true, false, DIBIT_E_UNSUPPORTED, "\\d+|other");
    write_bpe("{\"type\":\"Whitespace\"}", "[]", "");
    refused(true, false, DIBIT_E_UNSUPPORTED, "Whitespace");
    write_bpe("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "[]", "");
    refused(true, false, DIBIT_E_UNSUPPORTED, "ByteLevel");
    write_bpe(BYTES, "[\"a\"]", "");
    refused(true, false, DIBIT_E_FORMAT, "merge 0");
    write_bpe(BYTES, "[[\"a\",\"z\"]]", "");
    refused(true, false, DIBIT_E_FORMAT, "unknown tokens");
    write_bpe(BYTES, "[[\"a\",1]]", "");
    refused(true, false, DIBIT_E_FORMAT, "merge 0");
    write_bpe(BYTES, "7", "");
    refused(true, false, DIBIT_E_FORMAT, "no merges");
    write_bpe(BYTES, "[]", ",\"end_of_word_suffix\":\"</w>\"");
    refused(true, false, DIBIT_E_UNSUPPORTED, "end_of_word_suffix");
    write_text("tokenizer.json", "{\"model\":{\"type\":\"Unigram\"}}");
    refused(true, false, DIBIT_E_UNSUPPORTED, "Unigram");
    static const struct {
        const char *vocab, *says;
    } bad[] = { { "{}", "is empty" },
                { "{\"a\":0,\"b\":0}", "two tokens" },
                { "{\"a\":-1}", "not a number" },
                { "{\"a\":\"0\"}", "not a number" },
                { "{\"a\":9000000000000000000}", "too large" } };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "{\"pre_tokenizer\":" BYTES ",\"model\":{\"type\":\"BPE\",\"vocab\":%s,"
                 "\"merges\":[]}}",
                 bad[i].vocab);
        write_text("tokenizer.json", text);
        refused(true, false, DIBIT_E_FORMAT, bad[i].says);
    }
    write_config("llama", "");
    write_text("tokenizer.json", "{\"pre_tokenizer\":" BYTES ",\"model\":{\"vocab\":{\"a\":8},"
                                 "\"merges\":[]}}");
    refused(true, false, DIBIT_E_FORMAT, "id 8 is not in the model's vocabulary of 8");
}

/* A SentencePiece vocabulary as tokenizer.json has it; b is U+2581. */
static void write_spm(const char *merges, const char *normalizer) {
    char text[4096];
    snprintf(text, sizeof text,
             "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
             "{\"id\":1,\"content\":\"<s>\",\"special\":true}],\"normalizer\":%s,"
             "\"pre_tokenizer\":null,\"post_processor\":{\"type\":\"TemplateProcessing\","
             "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":"
             "{\"id\":\"A\",\"type_id\":0}}]},\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\","
             "\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"<s>\":1,\"<0x0A>\":2,\"a\":3,"
             "\"b\":4,\"c\":5,\"ab\":6,\"bc\":7,\"abc\":8,\"\\u2581\":9,\"\\u2581\\u2581\":10,"
             "\"\\u2581\\u2581\\u2581\":11},\"merges\":%s}}",
             normalizer, merges);
    write_text("tokenizer.json", text);
}

static void sentencepiece_vocabularies(void **state) {
    (void)state;
    static const char *const prepend =
        "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]}";
    static const char *const merges =
        "[[\"b\",\"c\"],[\"a\",\"bc\"],[\"ab\",\"c\"],[\"a\",\"b\"],[\"\\u2581\\u2581\","
        "\"\\u2581\"],[\"\\u2581\",\"\\u2581\"],[\"\\u2581\",\"\\u2581\\u2581\"]]";
    static const float scores[] = { 0, 0, 0, -5, -5, -5, -2, 0, -1, -5, -3, -3 };
    static const int types[] = { 2, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    write_text("tokenizer_config.json", "{\"bos_token\":\"<s>\"}");
    write_spm(merges, prepend);
    Gguf *g = converted("f16", true, false);
    expect_text(g, "tokenizer.ggml.model", "llama");
    const GgufValue *s = gguf_get(g, "tokenizer.ggml.scores");
    const GgufValue *t = gguf_get(g, "tokenizer.ggml.token_type");
    assert_true(s && t && s->n == 12 && t->n == 12);
    for (uint64_t i = 0; i < 12; i++) {
        assert_int_equal(gguf_item_i64(t, i), types[i]);
        if (types[i] == 1 && gguf_item_f64(s, i) != scores[i])
            fail_msg("score %d is %g", (int)i, gguf_item_f64(s, i));
    }
    bool flag = false;
    assert_true(gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &flag) && flag);
    assert_true(gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &flag) && flag);
    expect_u64(g, "tokenizer.ggml.bos_token_id", 1);
    expect_u64(g, "tokenizer.ggml.unknown_token_id", 0);
    gguf_close(&g);
    unlink(in_folder("out.gguf"));

    /* merges that scores cannot say: one result in two places; a cut that is no merge */
    write_spm("[[\"a\",\"bc\"],[\"b\",\"c\"],[\"ab\",\"c\"],[\"a\",\"b\"],[\"\\u2581\","
              "\"\\u2581\"],[\"\\u2581\",\"\\u2581\\u2581\"],[\"\\u2581\\u2581\",\"\\u2581\"]]",
              prepend);
    refused(true, false, DIBIT_E_UNSUPPORTED, "SentencePiece");
    write_spm("[[\"b\",\"c\"],[\"a\",\"bc\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"\\u2581\","
              "\"\\u2581\\u2581\"],[\"\\u2581\\u2581\",\"\\u2581\"]]",
              prepend);
    refused(true, false, DIBIT_E_UNSUPPORTED, "SentencePiece");
    write_spm(merges, "{\"type\":\"Lowercase\"}");
    refused(true, false, DIBIT_E_UNSUPPORTED, "SentencePiece");
}

/* ---- what is in ../shared ---- */

static void shared_checkpoints(void **state) {
    (void)state;
    static const char *const names[] = { "llama",   "llama3-rope", "llama-linear-rope",
                                         "mistral", "qwen2",       "qwen3" };
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char dir[512];
        snprintf(dir, sizeof dir, SHARED "models/tiny/%s", names[i]);
        if (access(dir, R_OK) != 0) skip();
        ConvertOptions opt = {
            .dir = dir, .out = in_folder("out.gguf"), .type = "f32", .no_vocab = true
        };
        ConvertResult result;
        DibitError err = { 0 };
        Gguf *g;
        SafeTensors *st;
        if (convert_model(&opt, &result, &err) != 0) fail_msg("%s", err.text);
        if (gguf_open(&g, opt.out, false, NULL, &err) != 0) fail_msg("%s", err.text);
        assert_int_equal(safetensors_open(&st, dir, &err), 0);
        assert_int_equal(result.n_tensors, gguf_n_tensors(g));
        assert_int_equal(result.n_tensors,
                         safetensors_count(st) + (gguf_find(g, "rope_freqs.weight") != NULL));
        assert_int_equal(result.file_bytes, gguf_file_bytes(g));
        const StTensor *v = safetensors_find(st, "model.layers.2.self_attn.v_proj.weight");
        assert_memory_equal(v->data, gguf_find(g, "blk.2.attn_v.weight")->data, v->n_bytes);
        safetensors_close(&st);
        gguf_close(&g);
    }
}

/* The first vocabulary whose ids were made by another implementation of the same tokenizer. */
static void shared_vocabulary(void **state) {
    (void)state;
    FILE *f = fopen(SHARED "models/base-34m/golden/tokens.jsonl", "r");
    if (!f) skip();
    ConvertOptions opt = { .dir = SHARED "models/base-34m",
                           .out = in_folder("out.gguf"),
                           .type = "bf16",
                           .vocab_only = true };
    ConvertResult result;
    DibitError err = { 0 };
    Gguf *g;
    Tokenizer *t;
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    if (convert_model(&opt, &result, &err) != 0) fail_msg("%s", err.text);
    if (gguf_open(&g, opt.out, false, NULL, &err) != 0) fail_msg("%s", err.text);
    if (tokenizer_open(&t, g, NULL, &err) != 0) fail_msg("%s", err.text);
    assert_true(tokenizer_is_end(t, 0) && tokenizer_is_end(t, 2) && !tokenizer_is_end(t, 1));
    while (getline(&line, &cap, f) > 0) {
        json_t *j = json_loads(line, 0, NULL), *want = json_object_get(j, "ids");
        const char *text = json_string_value(json_object_get(j, "text"));
        int32_t ids[4096];
        int64_t got = tokenizer_encode(t, text, json_string_length(json_object_get(j, "text")),
                                       DIBIT_PARSE_SPECIAL, ids, 4096, &err);
        assert_int_equal(got, json_array_size(want));
        for (int64_t i = 0; i < got; i++)
            assert_int_equal(ids[i], json_integer_value(json_array_get(want, (size_t)i)));
        json_decref(j);
        n++;
    }
    assert_true(n > 10);
    free(line);
    fclose(f);
    tokenizer_close(&t);
    gguf_close(&g);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(llama_keys_and_rows),
        CASE(other_architectures),
        CASE(rope_scaling),
        CASE(models_are_checked),
        CASE(safetensors_are_checked),
        CASE(byte_level_vocabularies),
        CASE(vocabularies_are_checked),
        CASE(sentencepiece_vocabularies),
        CASE(shared_checkpoints),
        CASE(shared_vocabulary),
    };
    return cmocka_run_group_tests_name("convert", tests, NULL, NULL);
}
