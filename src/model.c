/* model.c - all architectures: a table of rows, the binding of weights, one forward pass.
 * Every hyper-parameter and tensor is checked here once, so that the operations may trust them. */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "basis.h"

static const Arch archs[] = {
    { "llama", 0 }, /* mistral too: the same tensors, and a sliding window where the file has one */
    { "qwen2", ARCH_ROPE_HALVES | ARCH_QKV_BIAS },
    { "qwen3", ARCH_ROPE_HALVES | ARCH_QK_NORM },
};
#define ARCH_NAMES "llama, qwen2, qwen3"

const Arch *arch_find(const char *name, size_t n) {
    for (size_t i = 0; i < ARRAY_LEN(archs); i++)
        if (strlen(archs[i].name) == n && memcmp(archs[i].name, name, n) == 0) return &archs[i];
    return NULL;
}

/* ---- hyper-parameters ---- */

/* "llama" and "block_count" to "llama.block_count". */
static const char *full_key(char *buf, size_t cap, const Model *m, const char *key) {
    snprintf(buf, cap, "%s.%s", m->arch->name, key);
    return buf;
}

enum { REQUIRED = -1 };

/* A whole number between lo and hi; `otherwise` when the file has none. */
static int get_int(const Model *m, const char *key, int lo, int hi, int otherwise, int *out,
                   DibitError *err) {
    char buf[96];
    uint64_t v;
    full_key(buf, sizeof buf, m, key);
    if (!gguf_get(m->file, buf)) {
        if (otherwise == REQUIRED) return fail(err, DIBIT_E_FORMAT, "%s: the key is missing", buf);
        *out = otherwise;
        return 0;
    }
    if (!gguf_get_u64(m->file, buf, &v) || v < (uint64_t)lo || v > (uint64_t)hi)
        return fail(err, DIBIT_E_FORMAT, "%s: not one whole number from %d to %d", buf, lo, hi);
    *out = (int)v;
    return 0;
}

static int get_float(const Model *m, const char *key, double lo, double hi, double otherwise,
                     float *out, DibitError *err) {
    char buf[96];
    double v = otherwise;
    full_key(buf, sizeof buf, m, key);
    if (gguf_get(m->file, buf) && !gguf_get_f64(m->file, buf, &v)) v = NAN;
    if (!(v >= lo && v <= hi))
        return fail(err, DIBIT_E_FORMAT, "%s: missing, or not a number from %g to %g", buf, lo, hi);
    *out = (float)v;
    return 0;
}

static int read_arch(Model *m, DibitError *err) {
    GgufString s;
    if (!gguf_get_string(m->file, "general.architecture", &s))
        return fail(err, DIBIT_E_FORMAT, "general.architecture: the key is missing");
    m->arch = arch_find(s.s, s.n);
    if (!m->arch)
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "architecture \"%.*s\" is not supported; known are " ARCH_NAMES,
                    (int)MIN(s.n, (size_t)40), s.s);
    return 0;
}

/* Which stretching of positions the file asks for. The scaling of llama3 needs no key: it comes as
 * a tensor of divisors, rope_freqs.weight. */
static int read_rope(Model *m, DibitError *err) {
    Hparams *h = &m->hp;
    char buf[96];
    GgufString s = { "linear", 6 };
    gguf_get_string(m->file, full_key(buf, sizeof buf, m, "rope.scaling.type"), &s);
    int r = get_int(m, "rope.dimension_count", 2, h->head_dim, h->head_dim, &h->n_rot, err);
    if (r == 0) r = get_float(m, "rope.freq_base", 1, 1e12, 10000, &h->rope_base, err);
    if (r == 0) r = get_float(m, "rope.scale_linear", 0, 1e6, 1, &h->rope_factor, err);
    if (r == 0)
        r = get_float(m, "rope.scaling.factor", 0, 1e6, h->rope_factor, &h->rope_factor, err);
    if (r != 0) return r;
    if (h->n_rot % 2) return fail(err, DIBIT_E_FORMAT, "rope.dimension_count: %d is odd", h->n_rot);
    bool linear = s.n == 6 && memcmp(s.s, "linear", 6) == 0;
    if (!linear && !(s.n == 4 && memcmp(s.s, "none", 4) == 0))
        return fail(err, DIBIT_E_UNSUPPORTED,
                    "rope scaling \"%.*s\" is not supported; known are none, linear and llama3",
                    (int)MIN(s.n, (size_t)40), s.s);
    if (!linear || h->rope_factor == 0) h->rope_factor = 1;
    h->rope_scaling = h->rope_factor != 1;
    return 0;
}

static int read_hparams(Model *m, DibitError *err) {
    Hparams *h = &m->hp;
    int value_length = 0, experts = 0, r;
    const struct {
        const char *key;
        int lo, hi, otherwise, *out;
    } ints[] = {
        { "expert_count", 0, 1 << 16, 0, &experts },
        { "block_count", 1, 1024, REQUIRED, &h->n_layers },
        { "context_length", 1, 1 << 30, REQUIRED, &h->n_ctx_train },
        { "embedding_length", 8, 1 << 16, REQUIRED, &h->n_embd },
        { "feed_forward_length", 8, 1 << 20, REQUIRED, &h->n_ff },
        { "attention.head_count", 1, 1024, REQUIRED, &h->n_heads },
        { "attention.head_count_kv", 1, 1024, 0, &h->n_kv_heads },
        { "attention.key_length", 8, 256, 0, &h->head_dim },
        { "attention.value_length", 8, 256, 0, &value_length },
        { "attention.sliding_window", 0, 1 << 24, 0, &h->window },
    };
    for (size_t i = 0; i < ARRAY_LEN(ints); i++)
        if ((r = get_int(m, ints[i].key, ints[i].lo, ints[i].hi, ints[i].otherwise, ints[i].out,
                         err)) != 0)
            return r;
    if (experts) return fail(err, DIBIT_E_UNSUPPORTED, "mixtures of experts are not supported");
    if (h->n_kv_heads == 0) h->n_kv_heads = h->n_heads;
    if (h->n_heads % h->n_kv_heads)
        return fail(err, DIBIT_E_FORMAT, "%d heads do not divide among %d KV heads", h->n_heads,
                    h->n_kv_heads);
    if (h->head_dim == 0 && h->n_embd % h->n_heads)
        return fail(err, DIBIT_E_FORMAT, "embedding_length %d does not divide among %d heads",
                    h->n_embd, h->n_heads);
    if (h->head_dim == 0) h->head_dim = h->n_embd / h->n_heads;
    if (value_length && value_length != h->head_dim)
        return fail(err, DIBIT_E_UNSUPPORTED, "values of %d and keys of %d per head: not supported",
                    value_length, h->head_dim);
    if (h->head_dim % 8 || h->head_dim < 8 || h->head_dim > 256)
        return fail(err, DIBIT_E_UNSUPPORTED, "heads of %d: only multiples of 8 up to 256",
                    h->head_dim);
    r = get_float(m, "attention.layer_norm_rms_epsilon", 0, 1, -1, &h->eps, err);
    return r ? r : read_rope(m, err);
}

/* ---- tensors ---- */

static int find_tensor(const Gguf *file, const GgufTensor **out, const char *name, uint64_t rows,
                       uint64_t cols, DibitError *err) {
    const GgufTensor *t = gguf_find(file, name);
    if (!t) return fail(err, DIBIT_E_FORMAT, "%s: the tensor is missing", name);
    if (t->ne[0] != cols || (rows && t->ne[1] != rows) || t->ne[2] != 1 || t->ne[3] != 1)
        return fail(err, DIBIT_E_FORMAT,
                    "%s: the shape is %llu x %llu x %llu x %llu, expected %llu x %llu", name,
                    (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                    (unsigned long long)t->ne[2], (unsigned long long)t->ne[3],
                    (unsigned long long)cols, (unsigned long long)rows);
    const TypeInfo *type = type_info(t->type);
    if (!type)
        return fail(err, DIBIT_E_UNSUPPORTED, "%s: tensor type %d is not supported", name, t->type);
    size_t n_bytes;
    if (!type_bytes(type, t->ne[1], t->ne[0], &n_bytes) || n_bytes != t->n_bytes)
        return fail(err, DIBIT_E_FORMAT, "%s: %zu bytes are not %llu x %llu of type %s", name,
                    t->n_bytes, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                    type->name);
    *out = t;
    return 0;
}

/* rows == 0: any number of them. */
static int bind(Model *m, Weight *w, const char *name, int rows, int cols, DibitError *err) {
    const GgufTensor *t = NULL;
    int r = find_tensor(m->file, &t, name, (uint64_t)rows, (uint64_t)cols, err);
    if (r != 0) return r;
    *w = (Weight){ .type = type_info(t->type), .rows = t->ne[1], .cols = t->ne[0] };
    w->data = t->data;
    w->n_bytes = t->n_bytes;
    return 0;
}

/* A vector, converted to f32. */
static int bind_vector(Model *m, const Gguf *file, const float **out, const char *name, int n,
                       DibitError *err) {
    const GgufTensor *t = NULL;
    int r = find_tensor(file, &t, name, 1, (uint64_t)n, err);
    if (r != 0 || m->peeks) return r;
    float *v = arena_alloc(&m->arena, (size_t)n * sizeof *v);
    if (!v) return fail(err, DIBIT_E_MEMORY, "%s: no memory", name);
    type_info(t->type)->decode(v, t->data, 1, (size_t)n, 0);
    *out = v;
    return 0;
}

enum { VECTOR, MATRIX };
typedef struct Slot { /* one tensor of a layer: "blk.N." name, and where it goes */
    const char *name;
    int kind, optional;
    size_t offset; /* in Layer */
    int rows, cols;
} Slot;
enum { N_SLOTS = 14 };

static void layer_slots(const Model *m, Slot s[N_SLOTS]) {
    const Hparams *h = &m->hp;
    int q = h->n_heads * h->head_dim, kv = h->n_kv_heads * h->head_dim, e = h->n_embd;
    int bias = !(m->arch->flags & ARCH_QKV_BIAS); /* optional: some llama models have it too */
#define AT(field) offsetof(Layer, field)
    const Slot slots[N_SLOTS] = {
        { "attn_norm.weight", VECTOR, 0, AT(attn_norm), 1, e },
        { "ffn_norm.weight", VECTOR, 0, AT(ffn_norm), 1, e },
        { "attn_q.bias", VECTOR, bias, AT(q_bias), 1, q },
        { "attn_k.bias", VECTOR, bias, AT(k_bias), 1, kv },
        { "attn_v.bias", VECTOR, bias, AT(v_bias), 1, kv },
        { "attn_q.weight", MATRIX, 0, AT(q), q, e },
        { "attn_k.weight", MATRIX, 0, AT(k), kv, e },
        { "attn_v.weight", MATRIX, 0, AT(v), kv, e },
        { "attn_output.weight", MATRIX, 0, AT(o), e, q },
        { "ffn_gate.weight", MATRIX, 0, AT(gate), h->n_ff, e },
        { "ffn_up.weight", MATRIX, 0, AT(up), h->n_ff, e },
        { "ffn_down.weight", MATRIX, 0, AT(down), e, h->n_ff },
        { "attn_q_norm.weight", VECTOR, 0, AT(q_norm), 1, h->head_dim },
        { "attn_k_norm.weight", VECTOR, 0, AT(k_norm), 1, h->head_dim },
    };
#undef AT
    memcpy(s, slots, sizeof slots);
}

/* The last two slots are for architectures with a norm on q and k. */
static int n_slots(const Model *m) {
    return m->arch->flags & ARCH_QK_NORM ? N_SLOTS : N_SLOTS - 2;
}

static int bind_layer(Model *m, int l, const Slot *slots, DibitError *err) {
    char name[64];
    for (int i = 0; i < n_slots(m); i++) {
        const Slot *s = &slots[i];
        uint8_t *at = (uint8_t *)&m->layers[l] + s->offset;
        snprintf(name, sizeof name, "blk.%d.%s", l, s->name);
        if (s->optional && !gguf_find(m->file, name)) continue;
        int r = s->kind == VECTOR
                    ? bind_vector(m, m->file, (const float **)(void *)at, name, s->cols, err)
                    : bind(m, (Weight *)(void *)at, name, s->rows, s->cols, err);
        if (r != 0) return r;
    }
    return 0;
}

/* ---- the calibrated basis of the cache: docs/FORMAT.md, "Calibrated bases" ---- */

static const char *const kv_names[2][3] = { { "kv_k.basis", "kv_k.mean", "kv_k.weight" },
                                            { "kv_v.basis", "kv_v.mean", "kv_v.weight" } };
typedef struct KvBasis {        /* of one side of a layer: z = basis (x - mean) is stored */
    const uint8_t *basis;       /* f16 (n_kv_heads, head_dim, head_dim) */
    const float *mean, *weight; /* (n_kv_heads, head_dim), (n_kv_heads, 4) */
    float *bias, *inverse;      /* -basis mean, of each head; of the basis, transposed for keys */
} KvBasis;

static int invert_head(const Model *m, const KvBasis *b, int side, int head, const char *name,
                       DibitError *err) {
    int d = m->hp.head_dim;
    size_t dd = (size_t)d * (size_t)d, at = (size_t)head * dd;
    double *a = mem_alloc(m->memory, 2 * dd * sizeof *a);
    if (!a) return fail(err, DIBIT_E_MEMORY, "%s: no memory", name);
    for (size_t i = 0; i < dd; i++) a[i] = (double)f16_to_f32(load_u16(b->basis + 2 * (at + i)));
    for (int r = 0; r < d; r++) {
        double sum = 0;
        for (int c = 0; c < d; c++) sum += a[r * d + c] * (double)b->mean[head * d + c];
        b->bias[head * d + r] = (float)-sum;
    }
    bool ok = basis_invert(a, a + dd, d);
    for (int r = 0; ok && r < d; r++)
        for (int c = 0; c < d; c++)
            b->inverse[at + (size_t)(r * d + c)] = (float)a[side ? r * d + c : c * d + r];
    mem_free(m->memory, a);
    return ok ? 0 : fail(err, DIBIT_E_FORMAT, "%s: head %d has no inverse", name, head);
}

static int check_range(const float *x, int n, float lo, float hi, const char *name,
                       DibitError *err) {
    for (int i = 0; i < n; i++)
        if (!(x[i] >= lo && x[i] <= hi))
            return fail(err, DIBIT_E_FORMAT, "%s: value %d is %g", name, i, (double)x[i]);
    return 0;
}

uint64_t model_norms_hash(const Gguf *file) {
    uint64_t hash = 1, before;
    if (gguf_get_u64(file, MODEL_NORMS_HASH, &before)) return before;
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        const GgufTensor *t = gguf_tensor(file, i);
        const TypeInfo *type = type_info(t->type);
        if (!strstr(t->name, "_norm.weight") || !type || t->n_dims != 1) continue;
        float *x = mem_alloc(NULL, (size_t)t->ne[0] * sizeof *x);
        if (!x) return 0;
        type->decode(x, t->data, 1, (size_t)t->ne[0], 0);
        hash = hash64(hash, t->name, strlen(t->name));
        hash = hash64(hash, x, (size_t)t->ne[0] * sizeof *x);
        mem_free(NULL, x);
    }
    return hash;
}

int model_open_kv(Gguf **out, const char *path, const Gguf *model, bool no_mmap,
                  const DibitAllocator *memory, DibitError *err) {
    GgufString type = { "", 0 };
    uint64_t hash = 0, own = model_norms_hash(model);
    int r = gguf_open(out, path, no_mmap, memory, err);
    if (r != 0) return r;
    gguf_get_string(*out, "general.type", &type);
    gguf_get_u64(*out, "dibit.kv.model_hash", &hash);
    if (type.n != strlen(KV_CALIBRATION_TYPE) || memcmp(type.s, KV_CALIBRATION_TYPE, type.n) != 0)
        r = fail(err, DIBIT_E_FORMAT, "%s: not a file of `dibit calibrate kv`", path);
    else if (own == 0)
        r = fail(err, DIBIT_E_MEMORY, "%s: no memory to compare it with the model", path);
    else if (hash != own)
        r = fail(err, DIBIT_E_ARGUMENT,
                 "%s: made with another model; run `dibit calibrate kv` with this one", path);
    if (r != 0) gguf_close(out);
    return r;
}

static int bind_kv_basis(Model *m, const Gguf *file, KvBasis *b, int l, int side, DibitError *err) {
    const Hparams *h = &m->hp;
    int n = h->n_kv_heads * h->head_dim, r;
    char name[3][64];
    const GgufTensor *t = NULL;
    for (int i = 0; i < 3; i++)
        snprintf(name[i], sizeof name[i], "blk.%d.%s", l, kv_names[side][i]);
    r = find_tensor(file, &t, name[0], (uint64_t)n, (uint64_t)h->head_dim, err);
    if (r == 0 && t->type != T_F16) r = fail(err, DIBIT_E_FORMAT, "%s: not of type f16", name[0]);
    if (r == 0) r = bind_vector(m, file, &b->mean, name[1], n, err);
    if (r == 0) r = bind_vector(m, file, &b->weight, name[2], 4 * h->n_kv_heads, err);
    size_t inverse = (size_t)n * (size_t)h->head_dim * sizeof(float);
    m->packed_bytes += inverse;
    if (m->peeks) return r;
    if (r == 0) r = check_range(b->mean, n, -1e6f, 1e6f, name[1], err);
    if (r == 0) r = check_range(b->weight, 4 * h->n_kv_heads, 0, 16, name[2], err);
    if (r != 0) return r;
    b->basis = t->data;
    b->bias = arena_alloc(&m->arena, (size_t)n * sizeof(float));
    b->inverse = arena_alloc(&m->arena, inverse);
    if (!b->bias || !b->inverse) return fail(err, DIBIT_E_MEMORY, "%s: no memory", name[0]);
    for (int head = 0; head < h->n_kv_heads && r == 0; head++)
        r = invert_head(m, b, side, head, name[0], err);
    return r;
}

int model_bind_kv(Model *m, const Gguf *file, DibitError *err) {
    const Hparams *h = &m->hp;
    size_t n_heads = (size_t)h->n_kv_heads;
    m->kv_weights = arena_alloc(&m->arena, 2 * (size_t)h->n_layers * n_heads * sizeof(float[4]));
    if (!m->kv_weights) return fail(err, DIBIT_E_MEMORY, "no memory for the weights of the lanes");
    for (int l = 0; l < h->n_layers; l++) {
        Layer *w = &m->layers[l];
        for (int side = 0; side < 2; side++) {
            KvBasis b = { 0 };
            int r = bind_kv_basis(m, file, &b, l, side, err);
            if (r != 0) return r;
            if (m->peeks) continue;
            memcpy(m->kv_weights[(size_t)(2 * l + side) * n_heads], b.weight,
                   n_heads * sizeof(float[4]));
            HeadMap in = { b.basis, b.bias, true };
            HeadMap back = { (const uint8_t *)b.inverse, side ? b.mean : NULL, false };
            *(side ? &w->v_in : &w->k_in) = in;
            *(side ? &w->v_out : &w->q_in) = back;
        }
    }
    return 0;
}

static bool is_known(const Model *m, const Slot *slots, const char *name) {
    static const char *const top[] = { "token_embd.weight", "output.weight", "output_norm.weight",
                                       "rope_freqs.weight" };
    for (size_t i = 0; i < ARRAY_LEN(top); i++)
        if (strcmp(name, top[i]) == 0) return true;
    char buf[64];
    int layer = -1;
    if (sscanf(name, "blk.%4d.", &layer) != 1 || layer < 0 || layer >= m->hp.n_layers) return false;
    for (int i = 0; i < n_slots(m); i++) {
        snprintf(buf, sizeof buf, "blk.%d.%s", layer, slots[i].name);
        if (strcmp(name, buf) == 0) return true;
    }
    for (int i = 0; i < 6; i++) {
        snprintf(buf, sizeof buf, "blk.%d.%s", layer, kv_names[i / 3][i % 3]);
        if (strcmp(name, buf) == 0) return m->kv_weights != NULL;
    }
    return false;
}

static int check_vocab(Model *m, DibitError *err) {
    int n = 0;
    if (m->embed.rows > 1 << 24)
        return fail(err, DIBIT_E_FORMAT, "token_embd.weight: %zu rows are too many", m->embed.rows);
    m->hp.n_vocab = (int)m->embed.rows;
    int r = get_int(m, "vocab_size", 1, 1 << 24, m->hp.n_vocab, &n, err);
    if (r == 0 && n != m->hp.n_vocab)
        r = fail(err, DIBIT_E_FORMAT, "vocab_size is %d, but token_embd.weight has %d rows", n,
                 m->hp.n_vocab);
    return r;
}

static int bind_rope_factors(Model *m, DibitError *err) {
    int n = m->hp.n_rot / 2, r;
    if (!gguf_find(m->file, "rope_freqs.weight")) return 0;
    if ((r = bind_vector(m, m->file, &m->rope_factors, "rope_freqs.weight", n, err)) != 0) return r;
    for (int i = 0; i < n && !m->peeks; i++)
        if (!(m->rope_factors[i] > 0 && m->rope_factors[i] <= 1e9f))
            return fail(err, DIBIT_E_FORMAT, "rope_freqs.weight: value %d is %g", i,
                        (double)m->rope_factors[i]);
    return 0;
}

static int bind_all(Model *m, DibitError *err) {
    Hparams *h = &m->hp;
    int r = bind(m, &m->embed, "token_embd.weight", 0, h->n_embd, err);
    if (r == 0) r = check_vocab(m, err);
    if (r != 0) return r;
    m->output = m->embed;
    m->tied = !gguf_find(m->file, "output.weight");
    if (!m->tied) r = bind(m, &m->output, "output.weight", h->n_vocab, h->n_embd, err);
    if (r == 0) r = bind_vector(m, m->file, &m->output_norm, "output_norm.weight", h->n_embd, err);
    if (r == 0) r = bind_rope_factors(m, err);
    if (r != 0) return r;
    m->layers = arena_alloc(&m->arena, (size_t)h->n_layers * sizeof *m->layers);
    if (!m->layers) return fail(err, DIBIT_E_MEMORY, "no memory for %d layers", h->n_layers);
    Slot slots[N_SLOTS];
    layer_slots(m, slots);
    for (int l = 0; l < h->n_layers; l++)
        if ((r = bind_layer(m, l, slots, err)) != 0) return r;
    if (gguf_find(m->file, "blk.0.kv_k.basis") && (r = model_bind_kv(m, m->file, err)) != 0)
        return r;
    for (int i = 0; i < gguf_n_tensors(m->file); i++) {
        const GgufTensor *t = gguf_tensor(m->file, i);
        if (!is_known(m, slots, t->name)) /* to leave it out would be to run another model */
            return fail(err, DIBIT_E_UNSUPPORTED, "%s: architecture %s has no use for this tensor",
                        t->name, m->arch->name);
        m->file_bytes += t->n_bytes;
        m->n_params += t->ne[0] * t->ne[1];
    }
    return 0;
}

static Weight *layer_weight(Layer *l, int i) {
    Weight *const w[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
    return i < (int)ARRAY_LEN(w) ? w[i] : NULL;
}

static int pack_all(Model *m, const Kern *kern, Pool *pool, bool in_place, DibitError *err) {
    int r = weight_pack(&m->output, kern, pool, in_place, m->memory, err);
    m->packed_bytes += m->output.packed_bytes;
    if (m->tied && in_place) m->embed = m->output;
    for (int l = 0; l < m->hp.n_layers && r == 0; l++) {
        Weight *w;
        for (int i = 0; r == 0 && (w = layer_weight(&m->layers[l], i)); i++) {
            r = weight_pack(w, kern, pool, in_place, m->memory, err);
            m->packed_bytes += w->packed_bytes;
        }
    }
    return r;
}

/* What pack_all() would allocate. */
static int count_packed(Model *m, const Kern *kern, DibitError *err) {
    size_t n = 0;
    bool ok =
        weight_pack_size(&m->output, kern, &n) && size_add(m->packed_bytes, n, &m->packed_bytes);
    for (int l = 0; l < m->hp.n_layers; l++) {
        const Weight *w;
        for (int i = 0; ok && (w = layer_weight(&m->layers[l], i)); i++)
            ok = weight_pack_size(w, kern, &n) && size_add(m->packed_bytes, n, &m->packed_bytes);
    }
    return ok ? 0 : fail(err, DIBIT_E_MEMORY, "the model is too large for this machine");
}

/* All but packing. */
static int read_model(Model *m, const Gguf *file, bool peeks, const DibitAllocator *memory,
                      DibitError *err) {
    *m = (Model){ .file = file, .peeks = peeks, .memory = memory, .arena = { .memory = memory } };
    int r = read_arch(m, err);
    if (r == 0) r = read_hparams(m, err);
    return r ? r : bind_all(m, err);
}

int model_open(Model *m, const Gguf *file, const Kern *kern, Pool *pool, Repack repack,
               const DibitAllocator *memory, DibitError *err) {
    int r = read_model(m, file, false, memory, err);
    if (r == 0 && repack != REPACK_NOT) r = pack_all(m, kern, pool, repack == REPACK_IN_PLACE, err);
    if (r != 0) model_close(m);
    return r;
}

int model_peek(Model *m, const Gguf *file, const Kern *kern, bool no_repack,
               const DibitAllocator *memory, DibitError *err) {
    int r = read_model(m, file, true, memory, err);
    if (r == 0 && !no_repack) r = count_packed(m, kern, err);
    if (r != 0) model_close(m);
    return r;
}

void model_close(Model *m) {
    if (!m->output.in_place) mem_free(m->memory, m->output.packed);
    for (int l = 0; m->layers && l < m->hp.n_layers; l++) {
        Weight *w;
        for (int i = 0; (w = layer_weight(&m->layers[l], i)); i++)
            if (!w->in_place) mem_free(m->memory, w->packed);
    }
    arena_free(&m->arena);
    *m = (Model){ 0 };
}

bool all_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &x[i], 4);
        bad |= (u & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

/* The tensor's weight where that is interleaved in place, else as it is in the file. */
static Weight weight_of(const Model *m, const GgufTensor *t) {
    const Weight *w = m->output.data == t->data ? &m->output : NULL;
    for (int l = 0; l < m->hp.n_layers && !w; l++)
        for (int i = 0; !w && layer_weight(&m->layers[l], i); i++)
            if (layer_weight(&m->layers[l], i)->data == t->data) w = layer_weight(&m->layers[l], i);
    if (w && w->in_place) return *w;
    return (
        Weight){ .type = type_info(t->type), .rows = t->ne[1], .cols = t->ne[0], .data = t->data };
}

const char *model_find_nonfinite(const Model *m) {
    const char *name = NULL;
    for (int i = 0; i < gguf_n_tensors(m->file) && !name; i++) {
        const GgufTensor *t = gguf_tensor(m->file, i);
        Weight w = weight_of(m, t);
        uint8_t *tmp = w.in_place ? mem_alloc(m->memory, weight_row_bytes(&w)) : NULL;
        float *row = mem_calloc(m->memory, w.cols, sizeof *row);
        bool ok = row && (tmp || !w.in_place);
        for (size_t r = 0; ok && r < w.rows && !name; r++) {
            weight_row(row, &w, r, tmp);
            if (!all_finite(row, w.cols)) name = t->name;
        }
        mem_free(m->memory, row);
        mem_free(m->memory, tmp);
        if (!ok) break;
    }
    return name;
}

/* ---- scratch ---- */

typedef struct RopeJob {
    const Model *m;
    float *table;
    int n_ctx;
} RopeJob;
enum { ROPE_ITEM = 256 };

static void rope_table_item(void *arg, int item, int thread) {
    (void)thread;
    const RopeJob *j = arg;
    const Hparams *h = &j->m->hp;
    int half = h->n_rot / 2, end = MIN(j->n_ctx, (item + 1) * ROPE_ITEM);
    for (int i = 0; i < half; i++) {
        double freq = pow((double)h->rope_base, -2.0 * i / h->n_rot) / (double)h->rope_factor;
        if (j->m->rope_factors) freq /= (double)j->m->rope_factors[i];
        for (int p = item * ROPE_ITEM; p < end; p++) {
            float *row = j->table + (size_t)p * (size_t)h->n_rot;
            row[i] = (float)cos(p * freq);
            row[half + i] = (float)sin(p * freq);
        }
    }
}

typedef struct ScratchPart {
    float **at;
    size_t rows, width;
} ScratchPart;
enum { N_PARTS = 10 };

static void scratch_parts(Scratch *s, const Model *m, int max_tokens, int n_ctx,
                          ScratchPart out[N_PARTS]) {
    const Hparams *h = &m->hp;
    size_t q = (size_t)h->n_heads * (size_t)h->head_dim, n = (size_t)max_tokens;
    size_t kv = (size_t)h->n_kv_heads * (size_t)h->head_dim, e = (size_t)h->n_embd;
    const ScratchPart parts[N_PARTS] = {
        { &s->x, n, e },
        { &s->t, n, e },
        { &s->q, n, q },
        { &s->k, n, kv },
        { &s->v, n, kv },
        { &s->att, n, q },
        { &s->gate, n, (size_t)h->n_ff },
        { &s->up, n, (size_t)h->n_ff },
        { &s->logits, 1, (size_t)h->n_vocab },
        { &s->rope, (size_t)n_ctx, (size_t)h->n_rot },
    };
    memcpy(out, parts, sizeof parts);
}

static bool part_bytes(const ScratchPart *p, size_t *n_bytes) {
    return size_mul(p->rows, p->width, n_bytes) && size_mul(*n_bytes, sizeof(float), n_bytes) &&
           size_align(*n_bytes, 64, n_bytes);
}

bool scratch_size(const Model *m, int max_tokens, int n_ctx, size_t *n_bytes) {
    Scratch s;
    ScratchPart parts[N_PARTS];
    size_t total = 0, n;
    scratch_parts(&s, m, max_tokens, n_ctx, parts);
    for (int i = 0; i < N_PARTS; i++)
        if (!part_bytes(&parts[i], &n) || !size_add(total, n, &total)) return false;
    *n_bytes = total;
    return true;
}

static size_t widest_input(const Hparams *h) {
    return (size_t)MAX(MAX(h->n_embd, h->n_ff), h->n_heads * h->head_dim);
}

bool scratch_total(const Model *m, int n_threads, int max_tokens, int n_ctx, size_t *n_bytes) {
    const Hparams *h = &m->hp;
    size_t total, ops;
    return scratch_size(m, max_tokens, n_ctx, &total) &&
           ops_size(n_threads, max_tokens, widest_input(h), h->head_dim, h->n_heads, h->n_kv_heads,
                    n_ctx, &ops) &&
           size_add(total, ops, n_bytes);
}

int scratch_create(Scratch *s, const Model *m, const Kern *kern, Pool *pool, int max_tokens,
                   int n_ctx, const DibitAllocator *memory, DibitError *err) {
    *s = (Scratch){ .max_tokens = max_tokens, .memory = memory };
    const Hparams *h = &m->hp;
    ScratchPart parts[N_PARTS];
    uint8_t *base = NULL;
    if (scratch_size(m, max_tokens, n_ctx, &s->n_bytes)) base = mem_alloc(memory, s->n_bytes);
    if (!base)
        return fail(err, DIBIT_E_MEMORY, "no memory for the activations of %d tokens", max_tokens);
    scratch_parts(s, m, max_tokens, n_ctx, parts);
    for (int i = 0; i < N_PARTS; i++) {
        size_t n = 0;
        part_bytes(&parts[i], &n);
        *parts[i].at = (float *)base;
        base += n;
    }
    int r = ops_create(&s->ops, kern, pool, memory, max_tokens, widest_input(h), h->head_dim,
                       h->n_heads, h->n_kv_heads, n_ctx, err);
    if (r != 0) {
        scratch_free(s);
        return r;
    }
    RopeJob j = { m, s->rope, n_ctx };
    pool_run(pool, rope_table_item, &j, (n_ctx + ROPE_ITEM - 1) / ROPE_ITEM);
    return 0;
}

void scratch_free(Scratch *s) {
    ops_free(&s->ops);
    mem_free(s->memory, s->x); /* the first part: where the allocation begins */
    *s = (Scratch){ 0 };
}

size_t scratch_bytes(const Scratch *s) {
    return s->n_bytes + ops_bytes(&s->ops);
}

/* ---- the pass ---- */

static void tap(const Scratch *s, ModelTap what, int layer, const float *x, int n) {
    if (s->tap) s->tap(s->tap_user, what, layer, x, n);
}

void model_project_qkv(const Model *m, Scratch *s, const Layer *w, int n, int pos) {
    const Hparams *h = &m->hp;
    Ops *o = &s->ops;
    size_t q = (size_t)h->n_heads * (size_t)h->head_dim;
    size_t kv = (size_t)h->n_kv_heads * (size_t)h->head_dim;
    int halves = (m->arch->flags & ARCH_ROPE_HALVES) != 0;
    op_matmul_many(o, 3, (float *[]){ s->q, s->k, s->v }, (size_t[]){ q, kv, kv },
                   (const Weight *[]){ &w->q, &w->k, &w->v }, s->t, n);
    if (w->q_bias) op_add_bias(o, s->q, w->q_bias, n, (int)q);
    if (w->k_bias) op_add_bias(o, s->k, w->k_bias, n, (int)kv);
    if (w->v_bias) op_add_bias(o, s->v, w->v_bias, n, (int)kv);
    if (w->q_norm) {
        op_norm(o, s->q, s->q, w->q_norm, n * h->n_heads, h->head_dim, h->eps);
        op_norm(o, s->k, s->k, w->k_norm, n * h->n_kv_heads, h->head_dim, h->eps);
    }
    op_rope(o, s->q, n, h->n_heads, h->head_dim, pos, s->rope, h->n_rot, halves);
    op_rope(o, s->k, n, h->n_kv_heads, h->head_dim, pos, s->rope, h->n_rot, halves);
}

int model_not_finite(const Model *m, DibitError *err) {
    const char *name = model_find_nonfinite(m);
    if (name)
        return fail(err, DIBIT_E_NUMERIC, "%s: a weight is NaN or infinite; the file is damaged",
                    name);
    return fail(err, DIBIT_E_NUMERIC,
                "the activations overflowed: they are not finite although every weight is");
}

static bool cancelled(const Ops *o) {
    return o->cancel && atomic_load_explicit(o->cancel, memory_order_relaxed);
}

/* Keys, queries and values into the basis that the layer's types are stored in: that of its
 * calibration for records of a model that has one, else that of basis.h. */
static void rotate_in(Scratch *s, const Hparams *h, const Layer *w, const Cache *c, int layer,
                      int n) {
    const KvType *k = kv_type(cache_type(c, layer, 0)), *v = kv_type(cache_type(c, layer, 1));
    Ops *o = &s->ops;
    int d = h->head_dim, n_kv = h->n_kv_heads;
    if (k->rotate && w->k_in.m) {
        op_head_map(o, s->q, n, h->n_heads, n_kv, d, &w->q_in);
        op_head_map(o, s->k, n, n_kv, n_kv, d, &w->k_in);
    } else if (k->rotate) {
        op_rotate(o, s->q, n * h->n_heads, d, false);
        op_rotate(o, s->k, n * n_kv, d, false);
    }
    if (v->rotate && w->v_in.m)
        op_head_map(o, s->v, n, n_kv, n_kv, d, &w->v_in);
    else if (v->rotate)
        op_rotate(o, s->v, n * n_kv, d, false);
}

static void rotate_out(Scratch *s, const Hparams *h, const Layer *w, const Cache *c, int layer,
                       int n) {
    const KvType *v = kv_type(cache_type(c, layer, 1));
    if (v->rotate && w->v_out.m)
        op_head_map(&s->ops, s->att, n, h->n_heads, h->n_kv_heads, h->head_dim, &w->v_out);
    else if (v->rotate)
        op_rotate(&s->ops, s->att, n * h->n_heads, h->head_dim, true);
}

static int pass(const Model *m, Scratch *s, Cache *c, const int32_t *ids, int n, float *logits,
                bool all, DibitError *err) {
    const Hparams *h = &m->hp;
    Ops *o = &s->ops;
    size_t e = (size_t)h->n_embd, q_width = (size_t)h->n_heads * (size_t)h->head_dim;
    size_t ff = (size_t)h->n_ff;
    int pos = c->n_past;
    float *x = s->x, *q = s->q, scale = (float)(1.0 / sqrt(h->head_dim));
    op_rows(o, x, &m->embed, ids, n);
    for (int l = 0; l < h->n_layers; l++) {
        const Layer *w = &m->layers[l];
        op_norm(o, s->t, x, w->attn_norm, n, h->n_embd, h->eps);
        tap(s, TAP_QKV, l, s->t, n);
        model_project_qkv(m, s, w, n, pos);
        tap(s, TAP_Q, l, s->q, n);
        tap(s, TAP_K, l, s->k, n);
        tap(s, TAP_V, l, s->v, n);
        rotate_in(s, h, w, c, l, n);
        op_put(o, c, l, pos, n, s->k, s->v);
        if (l == h->n_layers - 1 && !all) { /* the rest serves only the logits */
            int keep = logits ? 1 : 0, skip = n - keep;
            x += (size_t)skip * e;
            q += (size_t)skip * q_width;
            pos += skip;
            n = keep;
            if (n == 0) break;
        }
        op_attend(o, s->att, q, c, l, pos, n, h->n_heads, scale, h->window);
        rotate_out(s, h, w, c, l, n);
        tap(s, TAP_O, l, s->att, n);
        op_matmul(o, s->t, e, &w->o, s->att, n);
        op_add(o, x, s->t, n, h->n_embd);
        op_norm(o, s->t, x, w->ffn_norm, n, h->n_embd, h->eps);
        tap(s, TAP_GATE_UP, l, s->t, n);
        op_matmul_many(o, 2, (float *[]){ s->gate, s->up }, (size_t[]){ ff, ff },
                       (const Weight *[]){ &w->gate, &w->up }, s->t, n);
        op_swiglu(o, s->gate, s->gate, s->up, n, h->n_ff);
        tap(s, TAP_DOWN, l, s->gate, n);
        op_matmul(o, s->t, e, &w->down, s->gate, n);
        op_add(o, x, s->t, n, h->n_embd);
        if (cancelled(o)) break;
    }
    if ((logits || all) && !cancelled(o)) {
        op_norm(o, s->t, x, m->output_norm, n, h->n_embd, h->eps);
        tap(s, TAP_OUTPUT, h->n_layers, s->t, n);
        if (logits) op_matmul(o, logits, (size_t)h->n_vocab, &m->output, s->t, n);
    }
    if (cancelled(o)) return fail(err, DIBIT_E_CANCELLED, "cancelled");
    if (logits && !all_finite(logits, (size_t)n * (size_t)h->n_vocab))
        return model_not_finite(m, err);
    return atomic_load(&c->nonfinite) ? model_not_finite(m, err) : 0;
}

int model_forward(const Model *m, Scratch *s, Cache *c, const int32_t *ids, int n, float *logits,
                  bool all, DibitError *err) {
    int r = cache_reserve(c, n, err);
    if (r != 0) return r;
    r = pass(m, s, c, ids, n, logits, all, err);
    if (r == 0)
        cache_advance(c, n);
    else
        cache_recover(c);
    return r;
}

/* Uniform with variance 1. */
static void fill_random(float *x, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = ((float)(seed >> 40) * 0x1p-23f - 1) * 1.7320508f;
    }
}

int model_fill(const Model *m, Scratch *s, Cache *c, int n, DibitError *err) {
    const Hparams *h = &m->hp;
    size_t values = (size_t)n * (size_t)h->n_kv_heads * (size_t)h->head_dim;
    int r = cache_reserve(c, n, err);
    if (r != 0) return r;
    fill_random(s->k, values, 2 * (uint64_t)c->n_past);
    fill_random(s->v, values, 2 * (uint64_t)c->n_past + 1);
    for (int l = 0; l < h->n_layers; l++) op_put(&s->ops, c, l, c->n_past, n, s->k, s->v);
    cache_advance(c, n);
    return 0;
}
