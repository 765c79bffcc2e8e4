/* context_named.c - the models of shape.h as context.h plans them. */
#include "context.h"
#include "shape.h"

int context_named(ContextModel *m, const char *name, const char *type, const char *head,
                  DibitError *err) {
    const Shape *s = shape_find(name);
    *m = (ContextModel){ .name = name };
    if (!s) return fail(err, DIBIT_E_ARGUMENT, "no model is known as \"%.60s\"", name);
    m->name = s->name;
    m->source = s->source;
    m->n_ctx_train = s->n_ctx;
    m->learned = s->rope_base == 0;
    m->encoder = s->family == SHAPE_BERT;
    m->parts[m->n_parts++] = (ContextPart){ .n_layers = s->n_layers,
                                            .n_kv_heads = s->n_kv_heads,
                                            .head_dim = s->head_dim,
                                            .window = s->window,
                                            .causal = !m->encoder };
    if (s->n_audio) /* cross-attention: written once for each piece of sound */
        m->parts[m->n_parts++] = (ContextPart){ .n_layers = s->n_layers,
                                                .n_kv_heads = s->n_kv_heads,
                                                .head_dim = s->head_dim,
                                                .fixed = s->n_audio };
    m->n_embd = s->n_embd;
    m->n_ff = s->n_ff;
    m->n_heads = s->n_heads;
    m->n_vocab = s->n_vocab;
    return shape_weights(s, type, head, &m->n_params, &m->weights, err);
}
