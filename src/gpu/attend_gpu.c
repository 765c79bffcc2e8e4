/* attend_gpu.c - the cache on a GPU and attention over it: where rows and records lie, and the runs
 * of heads.wgsl, attend.wgsl, merge.wgsl and encode.wgsl. */
#include <math.h>

#include "gpu/ops_gpu.h"

enum { SPAN = 256 };

static GpuRange all(GpuId buffer) {
    return (GpuRange){ buffer, 0, 0 };
}

static bool is_record(int type) {
    return type == KV_K3 || type == KV_K2;
}

bool gpu_has_kv(int type, int head_dim) {
    if (head_dim > KV_MAX_DIM) return false;
    if (type == KV_F16) return head_dim % 8 == 0;
    if (type == KV_Q8) return head_dim % 16 == 0;
    return is_record(type) && head_dim % 32 == 0;
}

/* Query heads of a workgroup: a power of two that divides the group, of at most MOST_HEADS. */
static int heads_of_workgroup(const GpuHeads *h) {
    int group = h->n_heads / h->n_kv_heads, n = 4;
    while (group % n != 0) n /= 2;
    return n;
}

/* Most spans of a head: enough for 2048 workgroups, which fill any GPU and leave merge.wgsl little
 * to do. */
static size_t n_spans(const GpuHeads *h) {
    int most = MAX(2048 * heads_of_workgroup(h) / h->n_heads, 16);
    return MIN((size_t)most, (size_t)h->n_ctx / SPAN + 1);
}

size_t gpu_query_bytes(const GpuHeads *h) {
    return (size_t)GPU_BATCH * (size_t)h->n_heads * ((size_t)h->head_dim + 4) * 4;
}

size_t gpu_partial_bytes(const GpuHeads *h) {
    return GPU_BATCH * n_spans(h) * (size_t)h->n_heads * ((size_t)h->head_dim + 4) * sizeof(float);
}

/* Records of a head, whole blocks. */
static size_t context(const GpuHeads *h) {
    return ((size_t)h->n_ctx + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
}

/* Rows of f16 or q8 and the scales of the latter; with records the rows are the recent ones. */
void gpu_kv_side(GpuOps *o, GpuKvSide *s, const GpuHeads *h, int type, bool key) {
    size_t d = (size_t)h->head_dim, heads = (size_t)h->n_kv_heads, n_ctx = context(h);
    size_t rows = is_record(type) ? (size_t)(h->sinks + h->recent) : n_ctx, words;
    *s = (GpuKvSide){ .type = type, .rows = (rows + 15) / 16 * 16 };
    words = heads * s->rows * (type == KV_F16 ? d / 2 : d / 4);
    s->scales = words;
    if (type != KV_F16) words += heads * s->rows;
    if (is_record(type)) {
        words = (words + 3) / 4 * 4;
        s->records = words;
        words += heads * n_ctx * (key ? (d + 63) / 64 * 4 : d / 16);
        s->signs = words;
        if (type == KV_K3) words += heads * n_ctx * (d / 32);
    }
    s->n_bytes = words * 4;
    if (o->r == 0 && s->n_bytes > o->caps->max_binding)
        o->r = fail(&o->error, DIBIT_E_MEMORY,
                    "a layer's keys take %zu bytes, the GPU binds %llu at once; lower -c",
                    s->n_bytes, (unsigned long long)o->caps->max_binding);
    s->buffer = gpu_ops_buffer(o, s->n_bytes);
}

static double root_of(int d) {
    return (double)(float)(1.0 / sqrt((double)(d & -d)));
}

void gpu_op_heads(GpuOps *o, GpuList *l, const GpuHeads *h, GpuId x, GpuId bias, GpuId norms,
                  const GpuKvSide *k, const GpuKvSide *v) {
    const GpuConst consts[] = {
        { "D", h->head_dim },
        { "ROOT", root_of(h->head_dim) },
        { "HEADS", h->n_heads },
        { "KV_HEADS", h->n_kv_heads },
        { "ROT", h->n_rot },
        { "HALVES", h->halves },
        { "BIAS", bias != 0 },
        { "NORM", norms != 0 },
        { "EPS", (double)h->eps },
        { "SCALE", (double)(float)(1.0 / sqrt(h->head_dim)) },
        { "K_TYPE", k->type },
        { "V_TYPE", v->type },
        { "K_ROWS", (double)k->rows },
        { "V_ROWS", (double)v->rows },
        { "K_SCALES", (double)k->scales },
        { "V_SCALES", (double)v->scales },
        { "SINKS", h->sinks },
        { "WINDOW", MAX(h->recent, 1) },
    };
    const GpuRange ranges[] = { all(h->step),
                                all(x),
                                all(bias ? bias : h->none),
                                all(norms ? norms : h->none),
                                all(h->turns),
                                all(h->query),
                                all(k->buffer),
                                all(v->buffer) };
    gpu_list_add(o, l, "heads", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                 (uint32_t)(h->n_heads + 2 * h->n_kv_heads), 1);
}

void gpu_op_attend(GpuOps *o, GpuList *l, const GpuHeads *h, GpuId out, const GpuKvSide *k,
                   const GpuKvSide *v, bool unmerged) {
    if (o->r != 0) return;
    int per = heads_of_workgroup(h);
    const GpuConst consts[] = {
        { "D", h->head_dim },
        { "GROUP", h->n_heads / h->n_kv_heads },
        { "HEADS_WG", per },
        { "SPANS", (double)n_spans(h) },
        { "VISIBLE", h->window },
        { "SINKS", h->sinks },
        { "WINDOW", MAX(h->recent, 1) },
        { "CONTEXT", (double)context(h) },
        { "K_TYPE", k->type },
        { "K_ROWS", (double)k->rows },
        { "K_SCALES", (double)k->scales },
        { "K_RECORDS", (double)k->records },
        { "K_SIGNS", (double)k->signs },
        { "V_TYPE", v->type },
        { "V_ROWS", (double)v->rows },
        { "V_SCALES", (double)v->scales },
        { "V_RECORDS", (double)v->records },
        { "V_SIGNS", (double)v->signs },
    };
    const GpuRange ranges[] = { all(h->step),   all(h->query),  all(k->buffer), all(k->buffer),
                                all(v->buffer), all(v->buffer), all(h->partial) };
    l->spans = (int)n_spans(h);
    gpu_list_add(o, l, "attend", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                 (uint32_t)(h->n_heads / per), 0);
    const GpuConst merge[] = { { "D", h->head_dim },
                               { "ROOT", root_of(h->head_dim) },
                               { "SPANS", (double)n_spans(h) },
                               { "ROTATED", is_record(v->type) },
                               { "FIRST", h->window } };
    const GpuRange merged[] = { all(h->step), all(h->partial), all(out) };
    l->when = unmerged ? GPU_MORE_SPANS : GPU_ALWAYS;
    gpu_list_add(o, l, "merge", merge, ARRAY_LEN(merge), merged, ARRAY_LEN(merged),
                 (uint32_t)h->n_heads, 1);
    l->when = GPU_ALWAYS;
}

GpuSource gpu_one_span(const GpuHeads *h) {
    size_t d = (size_t)h->head_dim;
    return (GpuSource){
        .kind = GPU_ONE, .a = all(h->partial), .head = d, .each = n_spans(h) * (d + 4)
    };
}

uint32_t gpu_step_encode(const Cache *c, int pos) {
    int end = pos + 1 - c->shape.window + KV_BLOCK; /* of the records that there are then */
    int first = MAX(end - KV_BLOCK, c->q8_from);
    return c->has_records && end % KV_BLOCK == 0 && first >= 0 && first < end ? (uint32_t)first + 1
                                                                              : 0;
}

void gpu_op_encode(GpuOps *o, GpuList *l, const GpuHeads *h, GpuId weights, const GpuKvSide *s,
                   bool key) {
    if (!is_record(s->type)) return;
    const GpuConst consts[] = {
        { "D", h->head_dim },
        { "KIND", s->type },
        { "KEYS", key },
        { "ROWS", (double)s->rows },
        { "SCALES", (double)s->scales },
        { "RECORDS", (double)s->records },
        { "SIGNS", (double)s->signs },
        { "CONTEXT", (double)context(h) },
        { "SINKS", h->sinks },
        { "WINDOW", MAX(h->recent, 1) },
    };
    const GpuRange ranges[] = { all(h->step), all(weights), all(s->buffer) };
    gpu_list_add(o, l, "encode", consts, ARRAY_LEN(consts), ranges, ARRAY_LEN(ranges),
                 (uint32_t)h->n_kv_heads, KV_BLOCK);
}
