/* step.c - models on a GPU. A session's pass is a list of dispatches that is made once, when the
 * session is, and replayed for each token with four numbers changed; so a token allocates nothing.
 * The order is that of pass() in model.c, with neighbouring operations in one kernel: a layer is
 * six dispatches (more for long texts, and where t2 and t3 turn their inputs: docs/GPU.md). Prompts
 * have a list of their own, which does GPU_BATCH tokens at once.
 *
 * While a result is awaited the next token's commands are recorded already. */
#include "gpu/step.h"

#include <math.h>
#include <string.h>

#include "backend.h"
#include "gpu/ops_gpu.h"

typedef struct GpuLayer {
    GpuMatrix qkv[3], gate_up[2], o, down;
    int n_qkv, n_gate_up; /* 1 where they are joined */
    GpuId attn_norm, ffn_norm, bias, norms, weights[2];
} GpuLayer;

typedef struct Backend {
    DibitBackend api;
    Gpu *gpu;
    GpuOps ops;
    const Model *m;
    GpuLayer *layers;
    GpuMatrix output;
    GpuId output_norm;
    const struct Session *recorded; /* whose next pass is recorded, or NULL */
    GpuOptions opt;
    int epoch; /* how often the device was taken anew */
    struct {   /* the pass whose result is under way; session NULL: none */
        const struct Session *session;
        int pos, what, n;
        int32_t ids[GPU_BATCH];
        size_t n_bytes;
    } flight;
} Backend;

enum { PIECES = GPU_CUTS + 1 };
_Static_assert((int)GPU_TOP == (int)TOP_CANDIDATES && sizeof(Candidate) == 8,
               "what topk.wgsl leaves");

typedef struct Session {
    Backend *b;
    int epoch; /* that its objects are of */
    const Cache *c;
    GpuHeads h;
    GpuInput in, normed, gated; /* normed, gated: as the product before left them */
    GpuId x, qkv, att, ff, logits, best, pairs, top, tops[2];
    size_t up_at; /* floats from gate to up in ff */
    GpuKvSide (*kv)[2];
    GpuList body[PIECES]; /* embedding and layers */
    bool is_normed;       /* that the lists so far leave the next RMSNorm of x in normed */
    GpuList head, pick, candidates; /* logits; the likeliest; the likeliest ones */
    GpuList tail;                   /* records */
    GpuList batch;                  /* embedding and layers of several tokens */
    size_t step;                    /* values between their vectors */
    float *row;                     /* of the embedding, where it is read here; else NULL */
    int recorded_pos, recorded_what, n_unread;
} Session;

enum { UNREAD = 64 }; /* tokens under way before one is waited for */

/* ---- weights ---- */

static GpuId upload(GpuOps *o, const float *data, size_t n) {
    GpuId id = gpu_ops_buffer(o, n * sizeof *data);
    if (id && o->r == 0) gpu_write(o->gpu, id, 0, data, n * sizeof *data);
    return id;
}

/* As one matrix where possible. Returns how many they are. */
static int join(GpuOps *o, GpuMatrix *out, const Weight *const *w, int n, bool may) {
    if (may && gpu_can_join(w, n)) {
        gpu_matrix(o, out, w, n);
        return 1;
    }
    for (int i = 0; i < n; i++) gpu_matrix(o, &out[i], &w[i], 1);
    return n;
}

static void put_vector(GpuOps *o, GpuId to, size_t at, const float *v, size_t n) {
    if (v && o->r == 0) gpu_write(o->gpu, to, at * sizeof *v, v, n * sizeof *v);
}

static void load_small(Backend *b, GpuLayer *g, const Layer *w, int layer) {
    static const float ones[4] = { 1, 1, 1, 1 };
    GpuOps *o = &b->ops;
    const Hparams *h = &b->m->hp;
    size_t d = (size_t)h->head_dim, kv = (size_t)h->n_kv_heads, q = (size_t)h->n_heads;
    g->attn_norm = upload(o, w->attn_norm, (size_t)h->n_embd);
    g->ffn_norm = upload(o, w->ffn_norm, (size_t)h->n_embd);
    if (w->q_bias || w->k_bias || w->v_bias) {
        g->bias = gpu_ops_buffer(o, (q + 2 * kv) * d * sizeof(float));
        put_vector(o, g->bias, 0, w->q_bias, q * d);
        put_vector(o, g->bias, q * d, w->k_bias, kv * d);
        put_vector(o, g->bias, (q + kv) * d, w->v_bias, kv * d);
    }
    if (w->q_norm) {
        g->norms = gpu_ops_buffer(o, 2 * d * sizeof(float));
        put_vector(o, g->norms, 0, w->q_norm, d);
        put_vector(o, g->norms, d, w->k_norm, d);
    }
    for (size_t side = 0; side < 2; side++) {
        g->weights[side] = gpu_ops_buffer(o, kv * sizeof ones);
        for (size_t i = 0; i < kv; i++) {
            size_t at = (2 * (size_t)layer + side) * kv + i;
            put_vector(o, g->weights[side], 4 * i, b->m->kv_weights ? b->m->kv_weights[at] : ones,
                       4);
        }
    }
}

static void load_layer(Backend *b, int layer) {
    GpuOps *o = &b->ops;
    GpuLayer *g = &b->layers[layer];
    const Layer *w = &b->m->layers[layer];
    const Weight *qkv[] = { &w->q, &w->k, &w->v }, *gate_up[] = { &w->gate, &w->up };
    const Weight *out = &w->o, *down = &w->down;
    g->n_qkv = join(o, g->qkv, qkv, 3, true);
    g->n_gate_up = join(o, g->gate_up, gate_up, 2, b->m->hp.n_ff % 64 == 0);
    gpu_matrix(o, &g->o, &out, 1);
    gpu_matrix(o, &g->down, &down, 1);
    load_small(b, g, w, layer);
}

static int upload_model(Backend *b, DibitError *err) {
    const Model *m = b->m;
    const Weight *out = &m->output;
    b->layers = mem_calloc(&b->ops.memory, (size_t)m->hp.n_layers, sizeof *b->layers);
    if (!b->layers) return fail(err, DIBIT_E_MEMORY, "no memory for %d layers", m->hp.n_layers);
    for (int l = 0; l < m->hp.n_layers && b->ops.r == 0; l++) load_layer(b, l);
    gpu_matrix(&b->ops, &b->output, &out, 1);
    b->output_norm = upload(&b->ops, m->output_norm, (size_t)m->hp.n_embd);
    int r = gpu_ops_error(&b->ops, err);
    return r ? r : gpu_submit(b->gpu, err); /* says whether uploads were refused */
}

static int load(DibitBackend *api, const Model *m, DibitError *err) {
    Backend *b = (Backend *)api;
    if (b->m) return fail(err, DIBIT_E_ARGUMENT, "a GPU backend serves one engine");
    b->m = m;
    return upload_model(b, err);
}

/* ---- the lists of a session ---- */

/* Bytes of n floats, whole vectors. */
static size_t vector_bytes(size_t n) {
    return (n + 3) / 4 * 4 * sizeof(float);
}

static GpuSource normed(GpuId x, GpuId weights, const Hparams *h) {
    size_t n = vector_bytes((size_t)h->n_embd);
    return (GpuSource){ .kind = GPU_NORM, .a = { x, 0, 0 }, .b = { weights, 0, n }, .eps = h->eps };
}

/* Products of several matrices with one input, RMSNorm of x with these weights where from is NULL;
 * their results begin at at[i] in y. */
static void project(Session *s, GpuList *l, const GpuSource *from, GpuId norm, const GpuMatrix *m,
                    int n, GpuId y, const size_t *at) {
    GpuOps *o = &s->b->ops;
    const GpuSource normal = normed(s->x, norm, &s->b->m->hp);
    bool ready = !from && s->is_normed;
    for (int i = 0; i < n; i++) {
        if (!ready && (i == 0 || !gpu_same_input(&m[i], &m[i - 1])))
            gpu_op_input(o, l, &s->in, from ? from : &normal, &m[i]);
        gpu_op_matmul(o, l, y, at[i], &m[i], ready ? &s->normed : &s->in, false);
    }
}

/* x += m in; where it can be, what n matrices take after the norm with these weights is made by the
 * same dispatch. */
static void add_to_stream(Session *s, GpuList *l, const GpuMatrix *m, const GpuInput *in,
                          GpuId norm, const GpuMatrix *next, int n) {
    GpuOps *o = &s->b->ops;
    s->is_normed = gpu_can_next(m, next, n);
    if (s->is_normed)
        gpu_op_matmul_norm(o, l, s->x, m, in, norm, s->b->m->hp.eps, &s->normed);
    else
        gpu_op_matmul(o, l, s->x, 0, m, in, true);
}

/* x += output matrix times attention, which is turned into its input on the way. */
static void list_output(Session *s, GpuList *l, const GpuLayer *g, const GpuSource *att) {
    bool here = gpu_can_read_heads(&g->o) && gpu_can_next(&g->o, g->gate_up, g->n_gate_up);
    if (!here) gpu_op_input(&s->b->ops, l, &s->in, att, &g->o);
    s->in.heads = here ? *att : (GpuSource){ .kind = GPU_PLAIN };
    add_to_stream(s, l, &g->o, &s->in, g->ffn_norm, g->gate_up, g->n_gate_up);
    s->in.heads = (GpuSource){ .kind = GPU_PLAIN };
}

/* Attention and the output matrix. A single span needs no merging: the input is read from where the
 * span left it, if it is not to be turned back. */
static void list_attend(Session *s, GpuList *l, const GpuLayer *g, const GpuKvSide *kv) {
    const GpuSource att = { .kind = GPU_PLAIN, .a = { s->att, 0, 0 } }, one = gpu_one_span(&s->h);
    bool unmerged = !kv_type(kv[1].type)->rotate && gpu_int8_input(&g->o);
    gpu_op_attend(&s->b->ops, l, &s->h, s->att, &kv[0], &kv[1], unmerged);
    l->when = unmerged ? GPU_MORE_SPANS : GPU_ALWAYS;
    list_output(s, l, g, &att);
    l->when = GPU_ONE_SPAN;
    if (unmerged) list_output(s, l, g, &one);
    l->when = GPU_ALWAYS;
}

/* The first layer is a piece of its own: the sooner the GPU has something to do. */
static int piece_of(int layer, int n_layers) {
    return layer == 0 ? 0 : 1 + (layer - 1) * (PIECES - 1) / (n_layers - 1);
}

/* Gate and up, and their SwiGLU as the input of down. */
static void list_gated(Session *s, GpuList *l, const GpuLayer *g) {
    const GpuSource gated = { .kind = GPU_SWIGLU,
                              .a = { s->ff, 0, 0 },
                              .b = { s->ff, s->up_at * sizeof(float), 0 } };
    project(s, l, NULL, g->ffn_norm, g->gate_up, g->n_gate_up, s->ff,
            (const size_t[]){ 0, s->up_at });
    gpu_op_input(&s->b->ops, l, &s->in, &gated, &g->down);
}

static void list_ffn(Session *s, GpuList *l, int layer) {
    const GpuLayer *g = &s->b->layers[layer];
    bool last = layer + 1 == s->b->m->hp.n_layers,
         glu = g->n_gate_up == 1 && s->is_normed && gpu_can_next(g->gate_up, &g->down, 1);
    if (glu)
        gpu_op_matmul_glu(&s->b->ops, l, g->gate_up, &s->normed, &s->gated);
    else
        list_gated(s, l, g);
    const GpuInput *in = glu ? &s->gated : &s->in;
    if (last)
        add_to_stream(s, l, &g->down, in, s->b->output_norm, &s->b->output, 1);
    else
        add_to_stream(s, l, &g->down, in, g[1].attn_norm, g[1].qkv, g[1].n_qkv);
}

/* Up to the rows of the cache. */
static void list_heads(Session *s, GpuList *l, const GpuLayer *g, const GpuKvSide *kv) {
    const Hparams *h = &s->b->m->hp;
    size_t q = (size_t)h->n_heads * (size_t)h->head_dim;
    size_t k = (size_t)h->n_kv_heads * (size_t)h->head_dim;
    project(s, l, NULL, g->attn_norm, g->qkv, g->n_qkv, s->qkv, (const size_t[]){ 0, q, q + k });
    gpu_op_heads(&s->b->ops, l, &s->h, s->qkv, g->bias, g->norms, &kv[0], &kv[1]);
}

static void list_layer(Session *s, int layer) {
    GpuOps *o = &s->b->ops;
    GpuList *l = &s->body[piece_of(layer, s->b->m->hp.n_layers)];
    const GpuLayer *g = &s->b->layers[layer];
    const GpuKvSide *kv = s->kv[layer];
    list_heads(s, l, g, kv);
    list_attend(s, l, g, kv);
    list_ffn(s, l, layer);
    gpu_op_encode(o, &s->tail, &s->h, g->weights[0], &kv[0], true);
    gpu_op_encode(o, &s->tail, &s->h, g->weights[1], &kv[1], false);
}

/* Of several tokens, for their rows in the cache alone: the last layer ends with them. Nothing is
 * joined with what comes behind it; a batch's dispatches cost little beside its work. */
static void list_batch(Session *s) {
    GpuOps *o = &s->b->ops;
    GpuList *l = &s->batch;
    const GpuSource att = { .kind = GPU_PLAIN, .a = { s->att, 0, 0 } };
    int n_layers = s->b->m->hp.n_layers;
    l->batch = true;
    s->is_normed = false;
    if (!s->row) gpu_op_embed(o, l, s->x, &s->b->output, s->h.step);
    for (int i = 0; i < n_layers && o->r == 0; i++) {
        const GpuLayer *g = &s->b->layers[i];
        list_heads(s, l, g, s->kv[i]);
        if (i + 1 == n_layers) break;
        gpu_op_attend(o, l, &s->h, s->att, &s->kv[i][0], &s->kv[i][1], false);
        gpu_op_input(o, l, &s->in, &att, &g->o);
        gpu_op_matmul(o, l, s->x, 0, &g->o, &s->in, true);
        list_gated(s, l, g);
        gpu_op_matmul(o, l, s->x, 0, &g->down, &s->in, true);
    }
}

static void list_all(Session *s) {
    Backend *b = s->b;
    const Hparams *h = &b->m->hp;
    GpuList *const lists[] = { &s->head, &s->pick, &s->candidates, &s->tail, &s->batch };
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) lists[i]->step = s->step;
    for (int i = 0; i < PIECES; i++) s->body[i].step = s->step;
    if (!s->row) gpu_op_embed(&b->ops, &s->body[0], s->x, &b->output, s->h.step);
    for (int l = 0; l < h->n_layers && b->ops.r == 0; l++) list_layer(s, l);
    project(s, &s->head, NULL, b->output_norm, &b->output, 1, s->logits, (const size_t[]){ 0 });
    gpu_op_argmax(&b->ops, &s->pick, s->best, s->logits, s->pairs, (size_t)h->n_vocab);
    gpu_op_top(&b->ops, &s->candidates, s->top, s->logits, s->tops, (size_t)h->n_vocab);
    list_batch(s);
}

/* ---- sessions ---- */

static void make_buffers(Session *s, const float *turns) {
    const Hparams *h = &s->b->m->hp;
    GpuOps *o = &s->b->ops;
    size_t q = (size_t)h->n_heads * (size_t)h->head_dim, n_ctx = (size_t)s->h.n_ctx;
    size_t kv = (size_t)h->n_kv_heads * (size_t)h->head_dim, e = (size_t)h->n_embd;
    size_t ff = (size_t)h->n_ff, vocab = (size_t)h->n_vocab;
    s->up_at = (ff + 63) / 64 * 64;
    s->step = (MAX(MAX(e, 2 * s->up_at), q + 2 * kv) + 127) / 128 * 128;
    s->x = gpu_ops_buffer(o, GPU_BATCH * s->step * sizeof(float));
    s->qkv = gpu_ops_buffer(o, GPU_BATCH * s->step * sizeof(float));
    s->att = gpu_ops_buffer(o, GPU_BATCH * s->step * sizeof(float));
    s->ff = gpu_ops_buffer(o, GPU_BATCH * s->step * sizeof(float));
    s->logits = gpu_ops_buffer(o, vocab * sizeof(float));
    s->best = gpu_ops_buffer(o, 4);
    s->pairs = gpu_ops_buffer(o, (vocab / 1024 + 1) * 8);
    s->top = gpu_ops_buffer(o, sizeof(Candidate[GPU_TOP]));
    for (int i = 0; i < 2; i++) s->tops[i] = gpu_ops_buffer(o, gpu_top_bytes(vocab));
    s->h.step = gpu_ops_buffer(o, 4 * GPU_STEP_WORDS);
    s->h.none = gpu_ops_buffer(o, 256);
    s->h.turns = upload(o, turns, n_ctx * (size_t)h->n_rot);
    s->h.query = gpu_ops_buffer(o, gpu_query_bytes(&s->h));
    s->h.partial = gpu_ops_buffer(o, gpu_partial_bytes(&s->h));
    gpu_input(o, &s->in, s->step, GPU_BATCH);
    gpu_input(o, &s->normed, e, 1);
    gpu_input(o, &s->gated, ff, 1);
    for (int l = 0; l < h->n_layers; l++)
        for (int side = 0; side < 2; side++)
            gpu_kv_side(o, &s->kv[l][side], &s->h, cache_type(s->c, l, side), side == 0);
}

static void set_heads(Session *s) {
    const Model *m = s->b->m;
    const Hparams *h = &m->hp;
    s->h = (GpuHeads){ .n_heads = h->n_heads, .n_kv_heads = h->n_kv_heads };
    s->h.head_dim = h->head_dim;
    s->h.n_ctx = s->c->shape.n_ctx;
    s->h.n_rot = h->n_rot;
    s->h.window = h->window;
    s->h.sinks = s->c->shape.sinks;
    s->h.recent = s->c->shape.window;
    s->h.halves = (m->arch->flags & ARCH_ROPE_HALVES) != 0;
    s->h.eps = h->eps;
}

static int can_hold(const DibitBackend *api, const Cache *c, DibitError *err) {
    const Backend *b = (const Backend *)api;
    const Hparams *h = &b->m->hp;
    for (int i = 0; i < 2 * h->n_layers; i++) {
        int type = cache_type(c, i / 2, i % 2);
        const Layer *w = &b->m->layers[i / 2];
        if (!gpu_has_kv(type, h->head_dim))
            return fail(err, DIBIT_E_UNSUPPORTED,
                        "a cache of type %s with heads of %d does not run on the GPU; f16, q8, k3 "
                        "and k2 do",
                        kv_type(type)->name, h->head_dim);
        if (kv_type(type)->bits && c->shape.window == 0)
            return fail(err, DIBIT_E_UNSUPPORTED,
                        "k2 and k3 without a window do not run on the GPU; leave --kv-window");
        if (kv_type(type)->rotate && (w->k_in.m || w->v_in.m))
            return fail(err, DIBIT_E_UNSUPPORTED,
                        "calibrated bases of the cache do not run on the GPU yet");
    }
    return 0;
}

static void forget_recorded(Backend *b) {
    if (b->recorded) gpu_drop(b->gpu);
    b->recorded = NULL;
}

static void free_list(GpuOps *o, GpuList *l, bool here) {
    for (int i = 0; !here && i < l->n; i++) l->runs[i].bind = 0;
    gpu_list_free(o, l);
}

/* Objects of the GPU; those of a device that was given up are gone with it. */
static void free_objects(Session *s) {
    Backend *b = s->b;
    GpuOps *o = &b->ops;
    if (b->recorded == s) forget_recorded(b);
    if (b->flight.session == s) b->flight.n = 0; /* awaited by nobody, but to be read */
    const GpuId ids[] = { s->x,      s->qkv,    s->att,     s->ff,      s->logits,
                          s->best,   s->pairs,  s->top,     s->tops[0], s->tops[1],
                          s->h.step, s->h.none, s->h.turns, s->h.query, s->h.partial };
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) gpu_free(b->gpu, ids[i]);
    gpu_input_free(o, &s->in);
    gpu_input_free(o, &s->normed);
    gpu_input_free(o, &s->gated);
    for (int i = 0; s->kv && i < 2 * b->m->hp.n_layers; i++)
        gpu_free(b->gpu, s->kv[i / 2][i % 2].buffer);
}

static void session_close(void **session) {
    Session *s = *session;
    if (!s) return;
    GpuOps *o = &s->b->ops;
    bool here = s->epoch == s->b->epoch;
    if (here) free_objects(s);
    for (int i = 0; i < PIECES; i++) free_list(o, &s->body[i], here);
    free_list(o, &s->head, here);
    free_list(o, &s->pick, here);
    free_list(o, &s->candidates, here);
    free_list(o, &s->tail, here);
    free_list(o, &s->batch, here);
    mem_free(&o->memory, s->kv);
    mem_free(&o->memory, s->row);
    mem_free(&o->memory, s);
    *session = NULL;
}

static int session_open(void **out, DibitBackend *api, const Cache *c, const float *turns,
                        DibitError *err) {
    Backend *b = (Backend *)api;
    const Hparams *h = &b->m->hp;
    *out = NULL;
    int r = can_hold(api, c, err);
    if (r != 0) return r;
    Session *s = mem_calloc(&b->ops.memory, 1, sizeof *s);
    if (!s) return fail(err, DIBIT_E_MEMORY, "no memory for a session");
    s->b = b;
    s->epoch = b->epoch;
    s->c = c;
    s->recorded_pos = -1;
    s->kv = mem_calloc(&b->ops.memory, (size_t)h->n_layers, sizeof *s->kv);
    bool here = !b->m->tied || !gpu_can_embed(b->m->embed.type->id);
    if (here) s->row = mem_alloc(&b->ops.memory, (size_t)h->n_embd * sizeof *s->row);
    set_heads(s);
    if (!s->kv || (here && !s->row)) {
        r = fail(err, DIBIT_E_MEMORY, "no memory for a session");
    } else {
        make_buffers(s, turns);
        if (b->ops.r == 0) list_all(s);
        r = gpu_ops_error(&b->ops, err);
    }
    *out = s;
    if (r != 0) session_close(out);
    return r;
}

static size_t session_bytes(const void *session) {
    const Session *s = session;
    size_t n = 0;
    for (int i = 0; i < 2 * s->b->m->hp.n_layers; i++) n += s->kv[i / 2][i % 2].n_bytes;
    return n;
}

/* ---- a token ---- */

static void record(Session *s, int pos, int what) {
    Backend *b = s->b;
    if (b->recorded == s && s->recorded_pos == pos && s->recorded_what == what) {
        b->recorded = NULL;
        return;
    }
    forget_recorded(b);
    for (int i = 0; i < PIECES; i++) { /* the GPU begins while the others are handed over */
        gpu_list_run(&b->ops, &s->body[i], pos, 1);
        if (i + 1 < PIECES) gpu_cut(b->gpu);
    }
    if (what != PASS_CACHE) gpu_list_run(&b->ops, &s->head, pos, 1);
    if (what == PASS_GREEDY) gpu_list_run(&b->ops, &s->pick, pos, 1);
    if (what == PASS_TOP) gpu_list_run(&b->ops, &s->candidates, pos, 1);
    if (gpu_step_encode(s->c, pos) != 0) gpu_list_run(&b->ops, &s->tail, pos, 1);
}

static void record_batch(Session *s, int pos, int n) {
    forget_recorded(s->b);
    gpu_list_run(&s->b->ops, &s->batch, pos, n);
    if (gpu_step_encode(s->c, pos + n - 1) != 0) gpu_list_run(&s->b->ops, &s->tail, pos, 1);
}

static void record_next(Session *s, int pos, int what) {
    if (pos >= s->c->shape.n_ctx) return;
    record(s, pos, what);
    s->recorded_pos = pos;
    s->recorded_what = what;
    s->b->recorded = s;
}

static void write_step(Session *s, const int32_t *ids, int n, int pos) {
    const Cache *c = s->c;
    uint32_t step[GPU_STEP_WORDS] = { (uint32_t)pos };
    for (int l = 0; c->has_records && l < c->shape.n_layers;
         l++) /* the same in all that have any */
        step[GPU_STEP_RECORDS] =
            MAX(step[GPU_STEP_RECORDS], (uint32_t)cache_records_end(c, l, pos));
    step[GPU_STEP_ENCODE] = gpu_step_encode(c, pos + n - 1);
    memcpy(&step[GPU_STEP_TOKENS], ids, (size_t)n * sizeof *ids);
    gpu_write(s->b->gpu, s->h.step, 0, step, sizeof step);
    const Weight *e = &s->b->m->embed;
    for (int i = 0; s->row && i < n; i++) {
        e->type->decode(s->row, e->data, e->rows, e->cols, (size_t)ids[i]);
        gpu_write(s->b->gpu, s->x, (size_t)i * s->step * sizeof *s->row, s->row,
                  e->cols * sizeof *s->row);
    }
}

/* Ends a read that nobody awaits any more. */
static int let_go(Backend *b, DibitError *err) {
    if (!b->flight.session) return 0;
    void *ignored = mem_alloc(&b->ops.memory, b->flight.n_bytes);
    if (!ignored) return fail(err, DIBIT_E_MEMORY, "no memory for a result");
    int r = gpu_read_ready(b->gpu, ignored, !b->opt.no_wait, err);
    mem_free(&b->ops.memory, ignored);
    if (r == 0) return DIBIT_WAIT;
    b->flight.session = NULL;
    return MIN(r, 0);
}

/* Where a pass leaves what is wanted of it, and how many bytes that is. */
static GpuId result_of(const Session *s, int what, size_t *n_bytes) {
    *n_bytes = what == PASS_LOGITS ? (size_t)s->b->m->hp.n_vocab * sizeof(float)
               : what == PASS_TOP  ? sizeof(Candidate[GPU_TOP])
                                   : 4;
    return what == PASS_LOGITS ? s->logits : what == PASS_TOP ? s->top : s->best;
}

static int start(Session *s, const int32_t *ids, int n, int what, DibitError *err) {
    Backend *b = s->b;
    int pos = s->c->n_past, r = let_go(b, err);
    if (r != 0) return r;
    size_t n_bytes;
    GpuId result = result_of(s, what, &n_bytes);
    if (n > 1)
        record_batch(s, pos, n);
    else
        record(s, pos, what);
    write_step(s, ids, n, pos);
    s->n_unread += n;
    if (what == PASS_CACHE && s->n_unread < UNREAD) return gpu_submit(b->gpu, err);
    s->n_unread = 0;
    if ((r = gpu_read_start(b->gpu, result, 0, n_bytes, err)) != 0) return r;
    b->flight.session = s;
    b->flight.pos = pos;
    b->flight.what = what;
    b->flight.n = n;
    memcpy(b->flight.ids, ids, (size_t)n * sizeof *ids);
    b->flight.n_bytes = n_bytes;
    if (what != PASS_CACHE) record_next(s, pos + 1, what);
    return 0;
}

/* Whether what is under way is this pass. */
static bool in_flight(const Session *s, const int32_t *ids, int n, int what) {
    const Backend *b = s->b;
    return b->flight.session == s && b->flight.pos == s->c->n_past && b->flight.what == what &&
           b->flight.n == n && memcmp(b->flight.ids, ids, (size_t)n * sizeof *ids) == 0;
}

static int session_pass(void *session, const int32_t *ids, int n, int what, void *out,
                        DibitError *err) {
    Session *s = session;
    Backend *b = s->b;
    uint32_t ignored;
    if (s->epoch != b->epoch) return fail(err, DIBIT_E_DEVICE, "the GPU failed before");
    if (!in_flight(s, ids, n, what)) {
        int r = start(s, ids, n, what, err);
        if (r != 0 || !b->flight.session) return r;
    }
    int r = gpu_read_ready(b->gpu, what == PASS_CACHE ? &ignored : out, !b->opt.no_wait, err);
    if (r == 0) return DIBIT_WAIT;
    b->flight.session = NULL;
    return MIN(r, 0);
}

/* ---- filling ---- */

static int session_fill(void *session, int n, DibitError *err) {
    enum { PIECE = 1 << 20 }; /* words */
    Session *s = session;
    GpuOps *o = &s->b->ops;
    if (s->epoch != s->b->epoch) return fail(err, DIBIT_E_DEVICE, "the GPU failed before");
    uint32_t *words = mem_alloc(&o->memory, PIECE * sizeof *words);
    (void)n;
    if (!words) return fail(err, DIBIT_E_MEMORY, "no memory for random rows");
    forget_recorded(s->b);
    for (int i = 0; i < 2 * s->c->shape.n_layers; i++) {
        const GpuKvSide *kv = &s->kv[i / 2][i % 2];
        uint64_t x = (uint64_t)i + 1;
        for (size_t k = 0; k < PIECE; k++) { /* small numbers as f16 */
            x = x * 6364136223846793005u + 1442695040888963407u;
            words[k] = (uint32_t)(x >> 32) & (kv->type == KV_F16 ? 0xbbffbbffu : 0xffffffffu);
        }
        for (size_t at = 0; at < kv->n_bytes; at += PIECE * sizeof *words)
            gpu_write(o->gpu, kv->buffer, at, words, MIN(PIECE * sizeof *words, kv->n_bytes - at));
        size_t n_scales = kv->type == KV_F16 ? 0 : (size_t)s->h.n_kv_heads * kv->rows;
        for (size_t k = 0; k < PIECE; k++) words[k] = 0x3c800000; /* 1/64 */
        for (size_t at = 0; at < n_scales; at += PIECE)
            gpu_write(o->gpu, kv->buffer, (kv->scales + at) * 4, words,
                      MIN((size_t)PIECE, n_scales - at) * 4);
    }
    mem_free(&o->memory, words);
    return gpu_submit(o->gpu, err);
}

/* ---- the backend ---- */

static void free_layer(Backend *b, GpuLayer *g) {
    GpuOps *o = &b->ops;
    for (int i = 0; i < 3; i++) gpu_matrix_free(o, &g->qkv[i]);
    for (int i = 0; i < 2; i++) gpu_matrix_free(o, &g->gate_up[i]);
    gpu_matrix_free(o, &g->o);
    gpu_matrix_free(o, &g->down);
}

/* Everything of the device, which is lost then. */
static void unload(Backend *b) {
    forget_recorded(b);
    b->flight.session = NULL;
    for (int l = 0; b->layers && l < b->m->hp.n_layers; l++) free_layer(b, &b->layers[l]);
    mem_free(&b->ops.memory, b->layers);
    b->layers = NULL;
    gpu_matrix_free(&b->ops, &b->output);
    gpu_ops_free(&b->ops);
    b->ops.memory = b->opt.memory; /* of sessions that are still to be closed */
    gpu_close(&b->gpu);
}

static void backend_free(DibitBackend *api) {
    Backend *b = (Backend *)api;
    if (!b) return;
    unload(b);
    mem_free(NULL, b);
}

void gpu_backend_free(struct DibitBackend **b) {
    backend_free(*b);
    *b = NULL;
}

static int take_device(Backend *b, DibitError *err) {
    int r = gpu_open(&b->gpu, &b->opt, err);
    return r ? r : gpu_ops_create(&b->ops, b->gpu, &b->opt.memory, err);
}

static bool is_lost(const DibitBackend *api) {
    const Backend *b = (const Backend *)api;
    return !b->gpu || gpu_lost(b->gpu);
}

static int renew(DibitBackend *api, bool plain, DibitError *err) {
    Backend *b = (Backend *)api;
    if (plain && b->opt.floor)
        return fail(err, DIBIT_E_UNSUPPORTED, "nothing special of the GPU is in use");
    b->opt.floor |= plain;
    unload(b);
    b->epoch++;
    int r = take_device(b, err);
    if (r == 0) r = upload_model(b, err);
    if (r != 0) unload(b);
    return r;
}

Gpu *gpu_of_backend(struct DibitBackend *b) {
    return ((Backend *)b)->gpu;
}

int gpu_backend(struct DibitBackend **out, const GpuOptions *opt, GpuCaps *caps, DibitError *err) {
    *out = NULL;
    Backend *b = mem_calloc(NULL, 1, sizeof *b);
    if (!b) return fail(err, DIBIT_E_MEMORY, "no memory for a GPU backend");
    if (opt) b->opt = *opt;
    b->api = (DibitBackend){ .name = "webgpu",
                             .optional = b->opt.optional,
                             .n_batch = GPU_BATCH,
                             .load = load,
                             .can_hold = can_hold,
                             .open = session_open,
                             .close = session_close,
                             .pass = session_pass,
                             .fill = session_fill,
                             .bytes = session_bytes,
                             .is_lost = is_lost,
                             .renew = b->opt.no_wait ? NULL : renew,
                             .free = backend_free };
    int r = take_device(b, err);
    if (r != 0) {
        backend_free(&b->api);
        return r;
    }
    if (caps) *caps = *gpu_caps(b->gpu);
    *out = &b->api;
    return 0;
}
