/* plan_exports.c - the policy for hosts: text in, text out, so that JavaScript needs no structs.
 * Texts are UTF-8 with a length; results are written to `out` (at most cap bytes, terminated when
 * cap > 0) and their full length is returned, or a negative DIBIT_E_* code with err filled in. */
#include <stdio.h>
#include <string.h>

#include "plan.h"

#define EXPORT(name) __attribute__((export_name(#name)))

/* What a model takes, from the first n_have bytes of its file of n_total. `request` has lines of
 * n_ctx, n_threads, cache_type_k, cache_type_v, repack=0 or 1, all of them optional. The result has
 * lines "key\tvalue"; where more of the header is needed there is one alone, "need\tBYTES": bytes
 * from the file's start that are worth trying. */
EXPORT(dibit_peek)
int64_t dibit_peek(const void *header, size_t n_have, double n_total, const char *request,
                   size_t n_request, char *out, size_t cap, DibitError *err);

static int64_t print_need(const PlanModel *m, const PlanNeed *n, char *out, size_t cap) {
    const ContextPart *p = &m->context.parts[0];
    return snprintf(out, cap,
                    "name\t%s\narchitecture\t%s\nn_params\t%llu\nn_layers\t%d\nn_ctx_train\t%d\n"
                    "kv_calibrated\t%d\nheader\t%llu\nfile\t%llu\ntensors\t%llu\nrepacked\t%llu\n"
                    "n_ctx\t%d\nweights\t%llu\nkv\t%llu\nscratch\t%llu\ntotal\t%llu\n",
                    m->name, m->architecture, (unsigned long long)m->context.n_params, p->n_layers,
                    m->context.n_ctx_train, m->kv_calibrated, (unsigned long long)m->header_bytes,
                    (unsigned long long)m->file_bytes, (unsigned long long)m->context.weights,
                    (unsigned long long)m->repacked, n->n_ctx, (unsigned long long)n->weights,
                    (unsigned long long)n->kv, (unsigned long long)n->scratch,
                    (unsigned long long)n->total);
}

int64_t dibit_peek(const void *header, size_t n_have, double n_total, const char *request,
                   size_t n_request, char *out, size_t cap, DibitError *err) {
    PlanModel m;
    PlanRequest q;
    PlanNeed need;
    PlanPart part = { .data = header, .present = n_have };
    if (!(n_total >= 0 && n_total <= 0x1p53))
        return fail(err, DIBIT_E_ARGUMENT, "%g is no file's size", n_total);
    part.total = (uint64_t)n_total;
    int r = plan_request_read(&q, request, n_request, err);
    if (r == 0) r = plan_peek(&m, &part, 1, err);
    if (r > 0) return snprintf(out, cap, "need\t%llu\n", (unsigned long long)part.need);
    if (r == 0) r = plan_need(&need, &m, &q, err);
    return r ? r : print_need(&m, &need, out, cap);
}
