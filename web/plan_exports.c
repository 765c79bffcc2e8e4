/* plan_exports.c - the policy for hosts: text in, text out, so that JavaScript needs no structs.
 * Texts are UTF-8 with a length; results are written to `out` (at most cap bytes, terminated when
 * cap > 0) and their full length is returned, or a negative DIBIT_E_* code with err filled in. */
#include <stdio.h>
#include <string.h>

#include "feature.h"
#include "plan.h"

#define EXPORT(name) __attribute__((export_name(#name)))

/* What a model takes, from the first bytes of its file, or of all its shards: heads[i] of totals[i]
 * bytes (0: nobody knows). `request` has lines of n_ctx, n_threads, cache_type_k, cache_type_v,
 * repack=0 or 1, all of them optional. The result has lines "key\tvalue"; where more of a header is
 * needed there is one alone, "need\tBYTES\tPART": bytes from that part's start that are worth
 * trying. */
EXPORT(dibit_peek)
int64_t dibit_peek(const DibitImage *heads, const double *totals, size_t n_parts,
                   const char *request, size_t n_request, char *out, size_t cap, DibitError *err);

/* The plan (docs/PLAN.md) for a device, described by lines "key=value" (plan.h, web/src/detect.js),
 * and a model, by its heads as above; n_parts 0: none yet. `request` has lines of PlanRequest. The
 * result has lines "key\tvalue\treason", or "need\tBYTES\tPART" alone. */
EXPORT(dibit_plan_text)
int64_t dibit_plan_text(const char *device, size_t n_device, const DibitImage *heads,
                        const double *totals, size_t n_parts, const char *request, size_t n_request,
                        char *out, size_t cap, DibitError *err);

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

/* As plan_peek(), which gets the parts that are asked about. */
static int peek_parts(PlanModel *m, PlanPart *parts, const DibitImage *heads, const double *totals,
                      size_t n, DibitError *err) {
    for (size_t i = 0; i < n; i++) {
        if (!(totals[i] >= 0 && totals[i] <= 0x1p53))
            return fail(err, DIBIT_E_ARGUMENT, "%g is no file's size", totals[i]);
        parts[i] = (PlanPart){ .data = heads[i].data, .present = heads[i].size };
        parts[i].total = (uint64_t)totals[i];
    }
    return plan_peek(m, parts, n, err);
}

/* The request and the model. Returns 1 where a part is too short, of which `out` then says how much
 * is needed, *n bytes long. */
static int read_model(PlanModel *m, PlanRequest *q, const DibitImage *heads, const double *totals,
                      size_t n_parts, const char *request, size_t n_request, char *out, size_t cap,
                      int64_t *n, DibitError *err) {
    int r = plan_request_read(q, request, n_request, err);
    if (r != 0 || n_parts == 0) return r;
    PlanPart *parts = mem_calloc(NULL, n_parts, sizeof *parts);
    if (!parts) return fail(err, DIBIT_E_MEMORY, "no memory for %zu parts", n_parts);
    r = peek_parts(m, parts, heads, totals, n_parts, err);
    for (size_t i = 0; r > 0 && i < n_parts; i++)
        if (parts[i].need)
            *n = snprintf(out, cap, "need\t%llu\t%zu\n", (unsigned long long)parts[i].need, i);
    mem_free(NULL, parts);
    return r;
}

int64_t dibit_peek(const DibitImage *heads, const double *totals, size_t n_parts,
                   const char *request, size_t n_request, char *out, size_t cap, DibitError *err) {
    PlanModel m;
    PlanRequest q;
    PlanNeed need;
    int64_t n = 0;
    if (n_parts == 0) return fail(err, DIBIT_E_ARGUMENT, "no part of the model is given");
    int r = read_model(&m, &q, heads, totals, n_parts, request, n_request, out, cap, &n, err);
    if (r > 0) return n;
    if (r == 0) r = plan_need(&need, &m, &q, err);
    return r ? r : print_need(&m, &need, out, cap);
}

int64_t dibit_plan_text(const char *device, size_t n_device, const DibitImage *heads,
                        const double *totals, size_t n_parts, const char *request, size_t n_request,
                        char *out, size_t cap, DibitError *err) {
    DeviceInfo d;
    PlanModel m;
    PlanRequest q;
    int64_t n = 0;
    int r = device_read(&d, device, n_device, err);
    if (r == 0)
        r = read_model(&m, &q, heads, totals, n_parts, request, n_request, out, cap, &n, err);
    if (r > 0) return n;
    Plan *p = r ? NULL : mem_alloc(NULL, sizeof *p);
    if (r == 0 && !p) r = fail(err, DIBIT_E_MEMORY, "no memory for a plan");
    if (r == 0) r = plan_make(p, &d, n_parts ? &m : NULL, &q, err);
    n = r ? r : (int64_t)plan_write(p, out, cap);
    mem_free(NULL, p);
    return n;
}

/* ---- features: what has failed on this device (feature.h) ---- */

/* Where a line of the log goes: the host's console. */
__attribute__((import_module("dibit"), import_name("write"))) void
dibit_host_write(const char *text, size_t n);

static void log_line(void *user, int level, const char *text) {
    (void)user;
    (void)level;
    dibit_host_write(text, strlen(text));
}

/* A record for this stamp, "chrome 151", from the text that dibit_features_text() gave the last
 * time; n_state 0: none. A text that is damaged or of another stamp is left aside, see the note.
 * NULL: the stamp is no text, or there is no memory. Names and the stamp are terminated. */
EXPORT(dibit_features_open)
Features *dibit_features_open(const char *stamp, const char *state, size_t n_state,
                              DibitError *err);
EXPORT(dibit_features_close) void dibit_features_close(Features *f); /* NULL is fine */
/* Why the text was left aside, or "". */
EXPORT(dibit_features_note) const char *dibit_features_note(const Features *f);
EXPORT(dibit_features_enabled) int dibit_features_enabled(const Features *f, const char *name);
/* After an attempt: 1 when this failure turned the feature off, which is also logged. */
EXPORT(dibit_features_result)
int dibit_features_result(Features *f, const char *name, int ok, DibitError *err);
EXPORT(dibit_features_time)
int dibit_features_time(Features *f, const char *operation, double ms, DibitError *err);
/* "webgpu,wasm_relaxed": what is off, for the request's `disabled`. */
EXPORT(dibit_features_disabled)
int64_t dibit_features_disabled(const Features *f, char *out, size_t cap);
EXPORT(dibit_features_text) int64_t dibit_features_text(const Features *f, char *out, size_t cap);

Features *dibit_features_open(const char *stamp, const char *state, size_t n_state,
                              DibitError *err) {
    const DibitLogger logger = { log_line, NULL };
    Features *f = mem_alloc(NULL, sizeof *f);
    if (!f) {
        fail(err, DIBIT_E_MEMORY, "no memory for the record of features");
        return NULL;
    }
    if (features_init(f, stamp, &logger, err) != 0) {
        mem_free(NULL, f);
        return NULL;
    }
    features_load(f, state, n_state);
    return f;
}

void dibit_features_close(Features *f) {
    mem_free(NULL, f);
}

const char *dibit_features_note(const Features *f) {
    return f->note;
}

int dibit_features_enabled(const Features *f, const char *name) {
    return features_enabled(f, name);
}

int dibit_features_result(Features *f, const char *name, int ok, DibitError *err) {
    return features_result(f, name, ok != 0, err);
}

int dibit_features_time(Features *f, const char *operation, double ms, DibitError *err) {
    return features_time(f, operation, ms, err);
}

int64_t dibit_features_disabled(const Features *f, char *out, size_t cap) {
    return (int64_t)features_disabled(f, out, cap);
}

int64_t dibit_features_text(const Features *f, char *out, size_t cap) {
    return (int64_t)features_text(f, out, cap);
}
