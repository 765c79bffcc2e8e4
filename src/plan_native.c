/* plan_native.c - models as the native program has them: files, and those of shape.h by name, whose
 * types are still free. */
#include <string.h>

#include "gguf.h"
#include "plan.h"
#include "shape.h"

static int weigh(PlanModel *m, const int type[N_GROUPS], DibitError *err) {
    const Shape *s = shape_find(m->name);
    ShapeTypes t = { .attention = type_info(type[GROUP_ATTENTION]),
                     .feed_forward = type_info(type[GROUP_FEED_FORWARD]),
                     .embedding = type_info(type[GROUP_EMBEDDING]),
                     .output = type_info(type[GROUP_OUTPUT]) };
    if (m->tied) t.output = t.embedding;
    memcpy(m->type, type, sizeof m->type);
    if (m->tied) m->type[GROUP_OUTPUT] = -1;
    if (!s->n_mels) m->type[GROUP_AUDIO] = -1;
    return shape_bytes(s, &t, &m->context.n_params, &m->context.weights, &m->repacked, err);
}

int plan_named(PlanModel *m, const char *name, DibitError *err) {
    static const int start[N_GROUPS] = { T_Q8_0, T_S3, T_S3, T_F16, T_F32, T_Q8_0 };
    const Shape *s = shape_find(name);
    *m = (PlanModel){ .weigh = weigh };
    int r = context_named(&m->context, name, "s3", "q8", err);
    if (r != 0) return r;
    strncpy(m->name, s->name, sizeof m->name - 1);
    m->tied = s->tied;
    return weigh(m, start, err);
}

int plan_file(PlanModel *m, const char *path, DibitError *err) {
    Gguf *file;
    int r = gguf_open(&file, path, false, NULL, err);
    if (r != 0) return r;
    r = plan_take(m, file, err);
    gguf_close(&file);
    return r;
}
