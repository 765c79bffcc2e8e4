/* convert.c - `dibit convert`: hyper-parameters and tensors of a Hugging Face checkpoint in the
 * names, order and row layout that GGUF readers expect. Each tensor that a model of its kind has
 * must be there with the right shape, and no other may be left over: a checkpoint that is not
 * understood whole is refused, since a part of it would only look like a model. */
#include "convert.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "codec.h"
#include "safetensors.h"

enum { MAX_PATH = 4096, MAX_JSON = 64 << 20, MAX_JSON_VALUES = 4 << 20, MAX_DIM = 1 << 24 };

/* ---- config.json ---- */

enum { PERMUTE = 1, WINDOW = 2, QKV_BIAS = 4, QK_NORM = 8 };
typedef struct Kind {
    const char *model_type, *arch;
    unsigned flags;
} Kind;
static const Kind kinds[] = {
    { "llama", "llama", PERMUTE },
    { "mistral", "llama", PERMUTE | WINDOW }, /* readers know mistral under llama's name */
    { "qwen2", "qwen2", QKV_BIAS },
    { "qwen3", "qwen3", QK_NORM },
};

typedef struct Config {
    const Kind *kind;
    json_t *json;
    uint64_t n_vocab, n_embd, n_ff, n_layers, n_heads, n_kv, head_dim, n_ctx, window;
    double eps, rope_base, linear_factor; /* linear_factor 0: none */
    bool tied, bias, mlp_bias;
    float *rope_factors; /* (head_dim / 2) of llama3 scaling, or NULL */
} Config;

int convert_json(json_t **out, const char *dir, const char *name, DibitError *err) {
    char path[MAX_PATH];
    *out = NULL;
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (n < 0 || n >= MAX_PATH) return fail(err, DIBIT_E_ARGUMENT, "the path is too long");
    FILE *f = fopen(path, "rb");
    if (!f && errno == ENOENT) return 0;
    if (f) fclose(f);
    int r = json_read(out, path, MAX_JSON, MAX_JSON_VALUES, err);
    if (r == 0 && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        r = fail(err, DIBIT_E_FORMAT, "%s: not a JSON object", path);
    }
    return r;
}

/* An integer in 1..max. Absent or null gives `otherwise`; with that 0, it must be there. */
static int get_count(const json_t *j, const char *key, uint64_t otherwise, uint64_t max,
                     uint64_t *out, DibitError *err) {
    const json_t *v = json_object_get(j, key);
    *out = otherwise;
    if ((!v || json_is_null(v)) && otherwise) return 0;
    json_int_t x = json_integer_value(v);
    if (!json_is_integer(v) || x < 1 || (uint64_t)x > max)
        return fail(err, DIBIT_E_FORMAT,
                    "config.json: %s is missing or not a number from 1 to %llu", key,
                    (unsigned long long)max);
    *out = (uint64_t)x;
    return 0;
}

static int get_positive(const json_t *j, const char *key, double otherwise, double *out,
                        DibitError *err) {
    const json_t *v = json_object_get(j, key);
    *out = otherwise;
    if (!v || json_is_null(v)) {
        if (otherwise > 0) return 0;
        return fail(err, DIBIT_E_FORMAT, "config.json: %s is missing", key);
    }
    *out = json_number_value(v);
    if (!json_is_number(v) || !(*out > 0) || !isfinite(*out))
        return fail(err, DIBIT_E_FORMAT, "config.json: %s is not a number above 0", key);
    return 0;
}

static bool is_true(const json_t *j, const char *key) {
    return json_is_true(json_object_get(j, key));
}

/* Divisors of the frequencies, as Llama 3.1 defines them: long waves are stretched by the factor,
 * short ones kept, those between blended. */
static int llama3_factors(Config *c, const json_t *rope, DibitError *err) {
    double factor, low, high, old;
    int r = get_positive(rope, "factor", 0, &factor, err);
    if (r == 0) r = get_positive(rope, "low_freq_factor", 1, &low, err);
    if (r == 0) r = get_positive(rope, "high_freq_factor", 4, &high, err);
    if (r == 0) r = get_positive(rope, "original_max_position_embeddings", 8192, &old, err);
    if (r != 0) return r;
    if (high <= low)
        return fail(err, DIBIT_E_FORMAT,
                    "config.json: high_freq_factor is not above low_freq_factor");
    size_t n = (size_t)c->head_dim / 2;
    c->rope_factors = calloc(n, sizeof *c->rope_factors);
    if (!c->rope_factors) return fail(err, DIBIT_E_MEMORY, "no memory for the rope factors");
    for (size_t i = 0; i < n; i++) {
        double freq = pow(c->rope_base, -2.0 * (double)i / (double)c->head_dim);
        double wave = 6.283185307179586 / freq;
        double blend = (old / wave - low) / (high - low);
        if (wave < old / high)
            c->rope_factors[i] = 1;
        else if (wave > old / low)
            c->rope_factors[i] = (float)factor;
        else
            c->rope_factors[i] = (float)(1 / ((1 - blend) / factor + blend));
    }
    return 0;
}

/* rope_theta is at the top level in older files and in rope_parameters in newer ones; scaling in
 * rope_scaling or rope_parameters. */
static int read_rope(Config *c, DibitError *err) {
    const json_t *rope = json_object_get(c->json, "rope_parameters");
    if (!json_is_object(rope)) rope = json_object_get(c->json, "rope_scaling");
    const json_t *holder = json_object_get(rope, "rope_theta") ? rope : c->json;
    double partial;
    int r = get_positive(holder, "rope_theta", 10000, &c->rope_base, err);
    holder = json_object_get(rope, "partial_rotary_factor") ? rope : c->json;
    if (r == 0) r = get_positive(holder, "partial_rotary_factor", 1, &partial, err);
    if (r != 0) return r;
    if (partial != 1)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "config.json: partial_rotary_factor is not supported");
    const char *type = json_string_value(json_object_get(rope, "rope_type"));
    if (!type) type = json_string_value(json_object_get(rope, "type"));
    if (!type || strcmp(type, "default") == 0) return 0;
    if (strcmp(type, "linear") == 0) return get_positive(rope, "factor", 0, &c->linear_factor, err);
    if (strcmp(type, "llama3") == 0 && strcmp(c->kind->arch, "llama") == 0)
        return llama3_factors(c, rope, err);
    return fail(err, DIBIT_E_UNSUPPORTED,
                "config.json: rope scaling of type %.40s is not supported "
                "for %s",
                type, c->kind->model_type);
}

/* One window for all layers or none; models that mix both cannot be said in these keys. */
static int read_window(Config *c, DibitError *err) {
    const json_t *types = json_object_get(c->json, "layer_types"), *v;
    uint64_t n_sliding = 0, from;
    size_t i;
    if (json_is_null(json_object_get(c->json, "sliding_window")) ||
        !json_object_get(c->json, "sliding_window"))
        return 0;
    if (!(c->kind->flags & WINDOW) && !is_true(c->json, "use_sliding_window")) return 0;
    int r = get_count(c->json, "sliding_window", 0, INT32_MAX, &c->window, err);
    if (r != 0) return r;
    if (json_is_array(types)) {
        json_array_foreach(types, i, v) {
            const char *s = json_string_value(v);
            if (s && strcmp(s, "sliding_attention") == 0) n_sliding++;
        }
    } else if (c->kind->flags & WINDOW) {
        n_sliding = c->n_layers;
    } else {
        const json_t *max = json_object_get(c->json, "max_window_layers");
        from = json_is_integer(max) ? (uint64_t)MAX(json_integer_value(max), 0) : 0;
        n_sliding = from < c->n_layers ? c->n_layers - from : 0;
    }
    if (n_sliding == 0)
        c->window = 0;
    else if (n_sliding != c->n_layers)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "config.json: a sliding window in %llu of %llu layers is not supported",
                    (unsigned long long)n_sliding, (unsigned long long)c->n_layers);
    return 0;
}

static int read_sizes(Config *c, DibitError *err) {
    const json_t *j = c->json;
    int r = get_count(j, "vocab_size", 0, MAX_DIM, &c->n_vocab, err);
    if (r == 0) r = get_count(j, "hidden_size", 0, MAX_DIM, &c->n_embd, err);
    if (r == 0) r = get_count(j, "intermediate_size", 0, MAX_DIM, &c->n_ff, err);
    if (r == 0) r = get_count(j, "num_hidden_layers", 0, 4096, &c->n_layers, err);
    if (r == 0) r = get_count(j, "num_attention_heads", 0, 65536, &c->n_heads, err);
    if (r == 0) r = get_count(j, "num_key_value_heads", c->n_heads, 65536, &c->n_kv, err);
    if (r == 0)
        r = get_count(j, "head_dim", MAX(c->n_embd / c->n_heads, 1), 65536, &c->head_dim, err);
    if (r == 0) r = get_count(j, "max_position_embeddings", 2048, INT32_MAX, &c->n_ctx, err);
    if (r == 0) r = get_positive(j, "rms_norm_eps", 1e-6, &c->eps, err);
    if (r != 0) return r;
    if (c->n_heads % c->n_kv || c->head_dim % 2 ||
        (!json_is_integer(json_object_get(j, "head_dim")) && c->n_embd % c->n_heads))
        return fail(err, DIBIT_E_FORMAT,
                    "config.json: %llu heads, %llu KV heads and head size %llu do not fit together",
                    (unsigned long long)c->n_heads, (unsigned long long)c->n_kv,
                    (unsigned long long)c->head_dim);
    return 0;
}

static int read_config(Config *c, DibitError *err) {
    const char *type = json_string_value(json_object_get(c->json, "model_type"));
    const char *act = json_string_value(json_object_get(c->json, "hidden_act"));
    for (size_t i = 0; type && i < ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].model_type, type) == 0) c->kind = &kinds[i];
    if (!c->kind)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "config.json: model_type %.60s is not supported (llama, mistral, qwen2 and "
                    "qwen3 are)",
                    type ? type : "(none)");
    if (act && strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return fail(err, DIBIT_E_UNSUPPORTED, "config.json: hidden_act %.40s is not supported",
                    act);
    if (json_is_object(json_object_get(c->json, "quantization_config")))
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "config.json: the checkpoint is quantized; convert the original one");
    c->tied = is_true(c->json, "tie_word_embeddings");
    c->bias = is_true(c->json, "attention_bias");
    c->mlp_bias = is_true(c->json, "mlp_bias");
    int r = read_sizes(c, err);
    if (r == 0) r = read_rope(c, err);
    if (r == 0) r = read_window(c, err);
    return r;
}

/* ---- metadata ---- */

static void put_text(GgufWriter *w, const char *key, const char *text) {
    gguf_put_string(w, key, text, strlen(text));
}

static const char *arch_key(char buf[80], const Config *c, const char *key) {
    snprintf(buf, 80, "%s.%s", c->kind->arch, key);
    return buf;
}

/* The model's name: that of its folder. */
static void put_name(GgufWriter *w, const char *dir, const char *otherwise) {
    size_t n = strlen(dir);
    while (n && dir[n - 1] == '/') n--;
    size_t from = n;
    while (from && dir[from - 1] != '/') from--;
    if (n - from == 0 || dir[from] == '.')
        put_text(w, "general.name", otherwise);
    else
        gguf_put_string(w, "general.name", dir + from, n - from);
}

static void put_general(GgufWriter *w, const ConvertOptions *opt, const char *arch) {
    static const struct {
        const char *type;
        uint32_t file_type; /* numbers that GGUF files share */
    } types[] = { { "f32", 0 }, { "f16", 1 }, { "q4", 2 }, { "q8", 7 }, { "bf16", 32 } };
    put_text(w, "general.architecture", arch);
    put_text(w, "general.type", "model");
    put_name(w, opt->dir, arch);
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (strcmp(types[i].type, opt->type) == 0)
            gguf_put_u32(w, "general.file_type", types[i].file_type);
    gguf_put_u32(w, "general.quantization_version", 2);
}

static void put_config(GgufWriter *w, const Config *c) {
    char key[80];
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        { "vocab_size", c->n_vocab },
        { "context_length", c->n_ctx },
        { "embedding_length", c->n_embd },
        { "block_count", c->n_layers },
        { "feed_forward_length", c->n_ff },
        { "rope.dimension_count", c->head_dim },
        { "attention.head_count", c->n_heads },
        { "attention.head_count_kv", c->n_kv },
        { "attention.key_length", c->head_dim },
        { "attention.value_length", c->head_dim },
        { "attention.sliding_window", c->window },
    };
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        if (counts[i].value)
            gguf_put_u32(w, arch_key(key, c, counts[i].key), (uint32_t)counts[i].value);
    gguf_put_f32(w, arch_key(key, c, "attention.layer_norm_rms_epsilon"), (float)c->eps);
    gguf_put_f32(w, arch_key(key, c, "rope.freq_base"), (float)c->rope_base);
    if (c->linear_factor > 0) {
        put_text(w, arch_key(key, c, "rope.scaling.type"), "linear");
        gguf_put_f32(w, arch_key(key, c, "rope.scaling.factor"), (float)c->linear_factor);
    }
}

/* ---- tensors ---- */

/* One tensor on its way: from the checkpoint (or `values`) to a row-wise type. */
typedef struct Item {
    char name[64];
    const StTensor *from;
    const float *values; /* instead of `from` */
    const TypeInfo *type;
    uint64_t rows, cols; /* rows 1 for vectors */
    int n_dims;
    uint64_t heads; /* permute the rows of so many heads; 0: as they are */
} Item;

typedef struct Plan {
    const ConvertOptions *opt;
    const Config *c;
    const SafeTensors *st;
    bool *used; /* (tensors of st) */
    Item *items;
    int n, cap;
} Plan;

static const TypeInfo *pick_type(const Plan *p, const Item *t, bool head) {
    const char *name = p->opt->type;
    if (t->n_dims == 1) return type_info(T_F32);
    if (head && strcmp(name, "q4") == 0) name = "q8"; /* 4 bits there cost more than they save */
    const TypeInfo *type = type_by_name(name);
    return type && t->cols % (uint64_t)type->block_len ? type_info(T_F16) : type;
}

static int add_item(Plan *p, const char *hf, const char *name, uint64_t rows, uint64_t cols,
                    uint64_t heads, DibitError *err) {
    if (p->n == p->cap) {
        int cap = p->cap ? p->cap * 2 : 256;
        Item *more = realloc(p->items, (size_t)cap * sizeof *more);
        if (!more) return fail(err, DIBIT_E_MEMORY, "no memory for the tensor list");
        p->items = more;
        p->cap = cap;
    }
    const StTensor *from = safetensors_find(p->st, hf);
    int n_dims = rows ? 2 : 1;
    if (!from) return fail(err, DIBIT_E_FORMAT, "the checkpoint has no tensor %s", hf);
    if (from->n_dims != n_dims || from->shape[0] != (rows ? rows : cols) ||
        from->shape[1] != (rows ? cols : 1))
        return fail(err, DIBIT_E_FORMAT, "%s: shape (%llu, %llu), expected (%llu, %llu)", hf,
                    (unsigned long long)from->shape[0], (unsigned long long)from->shape[1],
                    (unsigned long long)(rows ? rows : cols),
                    (unsigned long long)(rows ? cols : 1));
    Item *t = &p->items[p->n++];
    *t = (Item){
        .from = from, .rows = rows ? rows : 1, .cols = cols, .n_dims = n_dims, .heads = heads
    };
    if (!rows && heads) { /* a bias is a column of one value a row */
        t->rows = cols;
        t->cols = 1;
    }
    snprintf(t->name, sizeof t->name, "%s", name);
    bool head = strncmp(name, "token_embd", 10) == 0 || strncmp(name, "output.", 7) == 0;
    t->type = pick_type(p, t, head);
    p->used[from - safetensors_tensor(p->st, 0)] = true;
    return 0;
}

/* The parts of a layer: rows and columns by name of a size, 0 rows for a vector. */
typedef struct Part {
    const char *hf, *gguf;
    uint64_t rows, cols, heads;
    bool biased;
} Part;

static int add_layer(Plan *p, int layer, DibitError *err) {
    const Config *c = p->c;
    bool permute = c->kind->flags & PERMUTE, qkv = c->bias || (c->kind->flags & QKV_BIAS);
    uint64_t nq = c->n_heads * c->head_dim, nk = c->n_kv * c->head_dim;
    const Part parts[] = {
        { "input_layernorm", "attn_norm", 0, c->n_embd, 0, false },
        { "self_attn.q_proj", "attn_q", nq, c->n_embd, permute ? c->n_heads : 0, qkv },
        { "self_attn.k_proj", "attn_k", nk, c->n_embd, permute ? c->n_kv : 0, qkv },
        { "self_attn.v_proj", "attn_v", nk, c->n_embd, 0, qkv },
        { "self_attn.q_norm", "attn_q_norm", 0, c->head_dim, 0, false },
        { "self_attn.k_norm", "attn_k_norm", 0, c->head_dim, 0, false },
        { "self_attn.o_proj", "attn_output", c->n_embd, nq, 0, c->bias },
        { "post_attention_layernorm", "ffn_norm", 0, c->n_embd, 0, false },
        { "mlp.gate_proj", "ffn_gate", c->n_ff, c->n_embd, 0, c->mlp_bias },
        { "mlp.up_proj", "ffn_up", c->n_ff, c->n_embd, 0, c->mlp_bias },
        { "mlp.down_proj", "ffn_down", c->n_embd, c->n_ff, 0, c->mlp_bias },
    };
    char hf[160], name[64];
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        const Part *part = &parts[i];
        if (strstr(part->hf, "k_norm") || strstr(part->hf, "q_norm"))
            if (!(c->kind->flags & QK_NORM)) continue;
        for (int bias = 0; bias <= part->biased; bias++) {
            const char *what = bias ? "bias" : "weight";
            snprintf(hf, sizeof hf, "model.layers.%d.%s.%s", layer, part->hf, what);
            snprintf(name, sizeof name, "blk.%d.%s.%s", layer, part->gguf, what);
            int r = add_item(p, hf, name, bias ? 0 : part->rows, bias ? part->rows : part->cols,
                             part->heads, err);
            if (r != 0) return r;
        }
    }
    return 0;
}

static int add_rope_factors(Plan *p) {
    Item *t = &p->items[p->n++]; /* there is room: the embedding made it */
    *t = (Item){ .name = "rope_freqs.weight",
                 .values = p->c->rope_factors,
                 .rows = 1,
                 .cols = p->c->head_dim / 2,
                 .n_dims = 1,
                 .type = type_info(T_F32) };
    return 0;
}

static int make_plan(Plan *p, DibitError *err) {
    const Config *c = p->c;
    p->used = calloc((size_t)safetensors_count(p->st) + 1, sizeof *p->used);
    if (!p->used) return fail(err, DIBIT_E_MEMORY, "no memory for the tensor list");
    int r = add_item(p, "model.embed_tokens.weight", "token_embd.weight", c->n_vocab, c->n_embd, 0,
                     err);
    if (r == 0 && c->rope_factors) r = add_rope_factors(p);
    for (int l = 0; r == 0 && l < (int)c->n_layers; l++) r = add_layer(p, l, err);
    if (r == 0) r = add_item(p, "model.norm.weight", "output_norm.weight", 0, c->n_embd, 0, err);
    if (r == 0 && !c->tied)
        r = add_item(p, "lm_head.weight", "output.weight", c->n_vocab, c->n_embd, 0, err);
    for (int i = 0; r == 0 && i < safetensors_count(p->st); i++) {
        const char *name = safetensors_tensor(p->st, i)->name;
        if (!p->used[i] && !strstr(name, "rotary_emb.inv_freq") &&
            !(c->tied && strcmp(name, "lm_head.weight") == 0))
            r = fail(err, DIBIT_E_UNSUPPORTED, "the tensor %.100s has no place in a %s model", name,
                     c->kind->model_type);
    }
    return r;
}

/* Where row r of the GGUF tensor comes from: GGUF turns neighbouring rows of a head as a pair,
 * the checkpoint rows that lie half a head apart. */
static size_t source_row(const Item *t, size_t r) {
    if (!t->heads) return r;
    size_t dim = (size_t)(t->rows / t->heads), in = r % dim;
    return r - in + in % 2 * (dim / 2) + in / 2;
}

enum { GROUP = 16, GROUPS = 64 }; /* rows of one encode call; at most so many calls in a chunk */

typedef struct Chunk {
    const Item *t;
    size_t first, n; /* rows */
    float *src;      /* (n, cols) */
    uint8_t *dst;
    size_t row_bytes;
    int bad[GROUPS]; /* 1: not finite, 2: too large for f16 */
} Chunk;

static void encode_group(void *arg, int item, int thread) {
    Chunk *k = arg;
    (void)thread;
    size_t from = (size_t)item * GROUP, n = MIN(GROUP, k->n - from), cols = (size_t)k->t->cols;
    float *src = k->src + from * cols;
    float limit = k->t->type->id == T_F32 || k->t->type->id == T_BF16 ? INFINITY : 65504.0f;
    for (size_t i = 0; i < n; i++) {
        size_t row = source_row(k->t, k->first + from + i);
        if (k->t->values)
            memcpy(src + i * cols, k->t->values + row * cols, cols * sizeof *src);
        else
            safetensors_read(k->t->from, row * cols, cols, src + i * cols);
    }
    for (size_t i = 0; i < n * cols; i++)
        if (!isfinite(src[i]))
            k->bad[item] = 1;
        else if (fabsf(src[i]) > limit && !k->bad[item])
            k->bad[item] = 2;
    if (!k->bad[item]) /* row-wise types: these rows are a tensor of their own */
        k->t->type->encode(k->dst + from * k->row_bytes, n, cols, 0, n, src, NULL);
}

static int write_item(GgufWriter *w, const Item *t, Pool *pool, DibitError *err) {
    Chunk k = { .t = t };
    size_t cols = (size_t)t->cols, rows = (size_t)t->rows;
    size_t fit = MAX(((size_t)16 << 20) / (cols * sizeof(float)) / GROUP, 1);
    size_t step = MIN(MIN(fit, (size_t)GROUPS) * GROUP, rows);
    if (!type_bytes(t->type, 1, cols, &k.row_bytes))
        return fail(err, DIBIT_E_FORMAT, "%s: does not fit type %s", t->name, t->type->name);
    k.src = malloc(step * cols * sizeof *k.src);
    k.dst = malloc(step * k.row_bytes);
    int r = k.src && k.dst ? 0 : fail(err, DIBIT_E_MEMORY, "%s: no memory to convert it", t->name);
    for (; r == 0 && k.first < rows; k.first += k.n) {
        k.n = MIN(step, rows - k.first);
        int groups = (int)((k.n + GROUP - 1) / GROUP);
        memset(k.bad, 0, sizeof k.bad);
        pool_run(pool, encode_group, &k, groups);
        for (int i = 0; r == 0 && i < groups; i++)
            if (k.bad[i])
                r = fail(err, DIBIT_E_NUMERIC, "%s: %s", t->name,
                         k.bad[i] == 1 ? "a weight is NaN or infinite; the checkpoint is damaged"
                                       : "a weight is too large for f16; use --type bf16");
        if (r == 0) r = gguf_write(w, k.dst, k.n * k.row_bytes, err);
    }
    free(k.src);
    free(k.dst);
    return r;
}

static int declare(GgufWriter *w, const Plan *p, ConvertResult *result, DibitError *err) {
    for (int i = 0; i < p->n; i++) {
        const Item *t = &p->items[i];
        const uint64_t ne[2] = { t->n_dims == 2 ? t->cols : t->rows * t->cols, t->rows };
        size_t bytes;
        if (!type_bytes(t->type, t->rows, t->cols, &bytes))
            return fail(err, DIBIT_E_FORMAT, "%s: does not fit type %s", t->name, t->type->name);
        gguf_put_tensor(w, t->name, t->type->id, t->n_dims, ne, bytes);
        result->n_weights += t->rows * t->cols;
    }
    result->n_tensors = p->n;
    return 0;
}

static int write_tensors(GgufWriter *w, const Plan *p, DibitError *err) {
    Pool *pool = NULL;
    uint64_t done = 0, total = 0;
    int n = p->opt->n_threads ? p->opt->n_threads : cpu_count();
    int r = pool_create(&pool, n, NULL, err);
    for (int i = 0; i < p->n; i++) total += p->items[i].rows * p->items[i].cols;
    for (int i = 0; r == 0 && i < p->n; i++) {
        const Item *t = &p->items[i];
        if (p->opt->progress) p->opt->progress(p->opt->user, t->name, done, total);
        r = write_item(w, t, pool, err);
        done += t->rows * t->cols;
    }
    pool_free(&pool);
    return r;
}

/* ---- the whole ---- */

static int load_config(Config *c, const ConvertOptions *opt, DibitError *err) {
    int r = convert_json(&c->json, opt->dir, "config.json", err);
    if (r != 0) return r;
    if (c->json) return read_config(c, err);
    if (opt->vocab_only) return 0;
    return fail(err, DIBIT_E_IO, "%s: no config.json in it; give a folder with a model", opt->dir);
}

int convert_model(const ConvertOptions *opt, ConvertResult *result, DibitError *err) {
    Config c = { 0 };
    Plan p = { .opt = opt, .c = &c };
    SafeTensors *st = NULL;
    GgufWriter *w = NULL;
    uint64_t n_tokens = 0;
    *result = (ConvertResult){ 0 };
    int r = load_config(&c, opt, err);
    if (r == 0) r = gguf_writer_create(&w, err);
    if (r == 0) {
        put_general(w, opt, c.kind ? c.kind->arch : "llama");
        if (c.kind) put_config(w, &c);
        if (!opt->no_vocab) r = convert_vocab(w, opt->dir, c.json, c.n_vocab, &n_tokens, err);
    }
    if (r == 0 && !c.kind) gguf_put_u32(w, "llama.vocab_size", (uint32_t)n_tokens);
    if (r == 0 && !opt->vocab_only) {
        r = safetensors_open(&st, opt->dir, err);
        p.st = st;
        if (r == 0) r = make_plan(&p, err);
        if (r == 0) r = declare(w, &p, result, err);
    }
    if (r == 0) {
        result->file_bytes = gguf_writer_size(w);
        r = gguf_begin(w, opt->out, err);
    }
    if (r == 0) r = write_tensors(w, &p, err);
    if (r == 0) r = gguf_finish(w, err);
    gguf_writer_free(&w);
    safetensors_close(&st);
    free(p.items);
    free(p.used);
    free(c.rope_factors);
    json_decref(c.json);
    return r;
}

/* ---- the command ---- */

static void show_progress(void *user, const char *name, uint64_t done, uint64_t total) {
    cli_progress(user, name, done, total);
}

CliMain cmd_convert;
int cmd_convert(int argc, char **argv) {
    CliProgress progress = { 0 };
    CliTexts args = { 0 };
    ConvertOptions opt = { .type = "bf16", .progress = show_progress, .user = &progress };
    const CliOption options[] = {
        { "output", "o", CLI_FILE, &opt.out, "FILE", "GGUF file to write", 0, 0, NULL },
        { "type", NULL, CLI_CHOICE, &opt.type, "TYPE", "type of the matrices (default: bf16)", 0, 0,
          "f16 bf16 f32 q8 q4" },
        { "vocab-only", NULL, CLI_FLAG, &opt.vocab_only, NULL, "write the tokenizer, no tensors", 0,
          0, NULL },
        { "no-vocab", NULL, CLI_FLAG, &opt.no_vocab, NULL,
          "write no tokenizer: only token ids can be used", 0, 0, NULL },
        CLI_THREADS_ROW(&opt.n_threads),
        { 0 },
    };
    const CliCommand cmd = {
        "convert",
        "DIR -o FILE [--type TYPE]",
        "Turns a Hugging Face model folder (config.json, model.safetensors or its shards,\n"
        "tokenizer.json) of llama, mistral, qwen2 or qwen3 into one GGUF file. In q4 the "
        "embedding\n"
        "and the output matrix are q8; norms and biases are always f32.",
        options,
        &args,
        1,
        1,
        NULL
    };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (!opt.out) return cli_misuse("convert", "-o FILE is missing");
    if (opt.vocab_only && opt.no_vocab)
        return cli_misuse("convert", "--vocab-only and --no-vocab leave nothing to write");
    opt.dir = args.at[0];
    DibitError err = { 0 };
    ConvertResult result;
    int r = convert_model(&opt, &result, &err);
    cli_progress_clear(&progress);
    if (r != 0) return cli_fail(&err);
    fprintf(stderr, "%s: %d tensors, %llu weights, %llu bytes\n", opt.out, result.n_tensors,
            (unsigned long long)result.n_weights, (unsigned long long)result.file_bytes);
    return 0;
}
