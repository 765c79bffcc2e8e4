/* plan.c - fuzz target: a device, a request and the first bytes of a model, with a zero byte
 * between them, as a page could give them; and the whole as a record of features. What is taken
 * gives a plan within its limits, and texts that are read again as the same. */
#include <stdlib.h>
#include <string.h>

#include "feature.h"
#include "plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok) {
    if (!ok) abort();
}

static void check_device(const DeviceInfo *d) {
    DeviceInfo again;
    char once[8192], twice[8192];
    size_t n = device_write(d, once, sizeof once);
    must(n < sizeof once && device_read(&again, once, n, NULL) == 0);
    must(device_write(&again, twice, sizeof twice) == n && memcmp(once, twice, n) == 0);
}

static void check_plan(const DeviceInfo *d, const PlanModel *m, const PlanRequest *q) {
    static Plan p;
    static char text[1 << 15];
    DibitError err = { 0 };
    if (plan_make(&p, d, m, q, &err) != 0) {
        must(err.text[0] != 0);
        return;
    }
    must(p.n_threads >= 1 && p.bits >= 2 && p.bits <= 4 && p.n_lines < PLAN_MAX_LINES);
    must(!m || !p.fits || p.need.total + p.staging <= p.budget);
    must(plan_write(&p, text, sizeof text) < sizeof text);
}

static void check_features(const uint8_t *data, size_t size) {
    Features f, g;
    char text[1 << 14];
    must(features_init(&f, "dibit 1", NULL, NULL) == 0 &&
         features_init(&g, "dibit 1", NULL, NULL) == 0);
    if (!features_load(&f, (const char *)data, size)) return;
    size_t n = features_text(&f, text, sizeof text);
    must(n < sizeof text && features_load(&g, text, n));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    DeviceInfo d;
    PlanRequest q;
    PlanModel m;
    const uint8_t *one = size ? memchr(data, 0, size) : NULL, *end = data + size;
    const uint8_t *two = one ? memchr(one + 1, 0, (size_t)(end - one) - 1) : NULL;
    check_features(data, size);
    if (device_read(&d, (const char *)data, one ? (size_t)(one - data) : size, NULL) != 0) return 0;
    check_device(&d);
    size_t n = one ? (size_t)((two ? two : end) - one) - 1 : 0;
    if (plan_request_read(&q, one ? (const char *)one + 1 : "", n, NULL) != 0) return 0;
    check_plan(&d, NULL, &q);
    size_t n_head = two ? (size_t)(end - two) - 1 : 0;
    if (n_head == 0) return 0;
    uint8_t *head = aligned_alloc(16, (n_head + 15) & ~(size_t)15);
    memcpy(head, two + 1, n_head);
    PlanPart part = { .data = head,
                      .present = n_head,
                      .total = n_head + (q.n_ctx > 0 ? (uint64_t)q.n_ctx : 0) };
    if (plan_peek(&m, &part, 1, NULL) == 0) check_plan(&d, &m, &q);
    free(head);
    return 0;
}
