/* plan_rules.c - a test for each rule of docs/PLAN.md. */
#define _GNU_SOURCE
#include "plan_test.h"

#include "cache.h"

#define CHROME  "browser=chrome\nversion=151\nos=windows\nmobile=false\n"
#define SAFARI  "browser=safari\nos=macos\nmobile=false\n"
#define FIREFOX "browser=firefox\nversion=150\nos=windows\nmobile=false\n"
#define SIMD    "wasm_simd=true\n"
#define GPU     SIMD "webgpu=true\ngpu_fallback=false\n"
#define NO_GPU  SIMD "webgpu=false\n"
#define NATIVE  "browser=native\nengine=native\nos=linux\nmobile=false\ncores=4\n"

static DeviceInfo device(const char *text) {
    DeviceInfo d;
    DibitError err = { 0 };
    if (device_read(&d, text, strlen(text), &err) != 0) die("%s: %s", text, err.text);
    return d;
}

static Plan plan_of(const char *text, const PlanModel *m, const char *request) {
    Plan p;
    PlanRequest q;
    DibitError err = { 0 };
    DeviceInfo d = device(text);
    if (plan_request_read(&q, request, strlen(request), &err) != 0) die("%s", err.text);
    if (plan_make(&p, &d, m, &q, &err) != 0) die("%s", err.text);
    for (int i = 0; i < p.n_lines; i++)
        if (!p.lines[i].reason[0]) die("%s has no reason", p.lines[i].key);
    return p;
}

static Plan plan(const char *text) {
    return plan_of(text, NULL, "");
}

/* That a line has this value, and a reason with this text. */
static void says(const Plan *p, const char *key, const char *value, const char *reason) {
    const PlanLine *l = plan_line(p, key);
    if (!l) die("there is no line %s", key);
    if (value && strcmp(l->value, value) != 0)
        die("%s is %s, expected %s (%s)", key, l->value, value, l->reason);
    if (!strstr(l->reason, reason)) die("%s: \"%s\" lacks \"%s\"", key, l->reason, reason);
}

static void has_bits(const Plan *p, int attention, int feed_forward, int embedding) {
    const int *b = p->group_bits;
    if (b[GROUP_ATTENTION] != attention || b[GROUP_FEED_FORWARD] != feed_forward ||
        b[GROUP_EMBEDDING] != embedding)
        die("attention %d, feed-forward %d, embedding %d; expected %d, %d, %d", b[GROUP_ATTENTION],
            b[GROUP_FEED_FORWARD], b[GROUP_EMBEDDING], attention, feed_forward, embedding);
    assert_int_equal(b[GROUP_NORMS], 32); /* measured: they are never less */
}

/* ---- memory ---- */

static void has_memory(const char *text, const char *request, int64_t mb, const char *reason) {
    Plan p = plan_of(text, NULL, request);
    assert_int_equal(p.memory, mb << 20);
    says(&p, "memory", NULL, reason);
}

void memory_and_its_source(void **state) {
    (void)state;
    has_memory(CHROME GPU "memory_mb=16384\n", "", 16384, "deviceMemory");
    has_memory(CHROME GPU "memory_mb=2048\n", "budget_mb=900", 900, "budget, which is below");
    has_memory(CHROME GPU "memory_mb=2048\n", "budget_mb=4000", 2048, "deviceMemory");
    has_memory(SAFARI GPU, "budget_mb=1500", 1500, "the caller's budget");
    has_memory(SAFARI GPU, "budget_mb=20000", 20000, "the caller's budget");
    has_memory(SAFARI GPU, "", 8192, "assumed for Windows and macOS");
    has_memory(FIREFOX GPU, "", 8192, "assumed for Windows and macOS");
    has_memory("browser=firefox\nos=linux\n" NO_GPU, "", 4096, "assumed for this system");
    has_memory("browser=firefox\nos=chromeos\n" NO_GPU, "", 4096, "assumed for this system");
    has_memory("browser=safari\nos=ios\nmobile=true\n" GPU, "", 2048, "assumed for a phone");
    has_memory("browser=firefox\nos=android\nmobile=true\n" GPU, "", 2048, "assumed for a phone");
    has_memory(NATIVE "memory_mb=64000\n", "", 64000, "what this process may use");
}

static void has_budget(const char *text, const char *request, int64_t mb, const char *reason) {
    Plan p = plan_of(text, NULL, request);
    assert_int_equal(p.budget, mb << 20);
    says(&p, "budget", NULL, reason);
}

void budget_is_a_share_of_it(void **state) {
    (void)state;
    has_budget(CHROME GPU "memory_mb=4096\n", "", 2048, "half of the memory");
    has_budget(CHROME GPU "memory_mb=32768\n", "", 3584, "4 GiB");
    has_budget(CHROME GPU "memory_mb=32768\n", "budget_mb=8000", 4095, "4 GiB");
    has_budget(CHROME GPU "memory_mb=4096\n", "budget_mb=3000", 3000, "the caller's");
    has_budget("browser=safari\nos=ios\nmobile=true\nmemory_mb=6000\n" GPU, "", 1024, "iOS");
    has_budget("browser=chrome\nos=android\nmobile=true\nmemory_mb=8192\n" GPU, "", 1228,
               "Android");
    has_budget(NATIVE "memory_mb=16000\n", "", 12000, "three quarters");
    has_budget(NATIVE "memory_mb=16000\nmemory_free_mb=5000\n", "", 5000, "free at present");
    has_budget(NATIVE "memory_mb=16000\n", "budget_mb=100000", 100000, "the caller's");
}

/* ---- bits ---- */

static void has_bits_for(const char *text, const char *request, int bits, const char *reason) {
    Plan p = plan_of(text, NULL, request);
    if (p.bits != bits) die("%s: %d bits, expected %d", text, p.bits, bits);
    says(&p, "bits", NULL, reason);
}

void bits_by_memory_gpu_and_mobile(void **state) {
    (void)state;
    has_bits_for(CHROME GPU "memory_mb=1000\n", "", 2, "below 1 GiB");
    has_bits_for(CHROME NO_GPU, "budget_mb=1023", 2, "below 1 GiB");
    has_bits_for(CHROME GPU "memory_mb=1024\n", "", 3, "below 2 GiB");
    has_bits_for(CHROME GPU "memory_mb=2047\n", "", 3, "below 2 GiB");
    has_bits_for(CHROME GPU "memory_mb=2048\n", "", 3, "2 GiB or more");
    has_bits_for("browser=chrome\nos=android\nmobile=true\nmemory_mb=8192\n" GPU, "", 2, "phone");
    has_bits_for(CHROME NO_GPU "memory_mb=3000\n", "", 3, "WebAssembly with SIMD");
    has_bits_for(CHROME "webgpu=false\nwasm_simd=false\nmemory_mb=8192\n", "", 4, "without vector");
    has_bits_for(NATIVE "isa=scalar\nmemory_mb=8192\n", "", 4, "without vector");
}

/* Four bits where memory allows and the probe is not slower; less than a tenth is noise. */
void four_bits_if_not_slower(void **state) {
    (void)state;
    has_bits_for(CHROME GPU "memory_mb=8192\n", "", 3, "not known");
    has_bits_for(CHROME GPU "memory_mb=8192\nspeed_q4=10\nspeed_s3=10\n", "", 4, "as probed here");
    has_bits_for(CHROME GPU "memory_mb=8192\nspeed_q4=10\nspeed_s3=10.9\n", "", 4, "as probed");
    has_bits_for(CHROME GPU "memory_mb=8192\nspeed_q4=10\nspeed_s3=12\n", "", 3, "slower here");
    has_bits_for(CHROME GPU "memory_mb=3000\nspeed_q4=10\nspeed_s3=10\n", "", 3, "2 GiB or more");
    has_bits_for(NATIVE "isa=avx2\nmemory_mb=8192\n", "", 4, "as measured");
    has_bits_for(CHROME NO_GPU "memory_mb=8192\n", "", 4, "as measured"); /* s3 is slow there */
    has_bits_for(CHROME NO_GPU "memory_mb=8192\nspeed_q4=10\nspeed_s3=12\n", "", 3, "slower here");
    has_bits_for(NATIVE "isa=avx512bitalg\nmemory_mb=8192\n", "", 3, "slower here"); /* t3 */
    has_bits_for(NATIVE "isa=neondot\nmemory_mb=8192\n", "", 3, "not known");
}

/* ---- types of so many bits: by speed where it is known ---- */

static void has_types(const char *text, const char *request, int attention, int feed_forward) {
    Plan p = plan_of(text, NULL, request);
    assert_int_equal(p.type[GROUP_ATTENTION], attention);
    assert_int_equal(p.type[GROUP_FEED_FORWARD], feed_forward);
    assert_int_equal(p.type[GROUP_NORMS], T_F32);
}

void trellis_types_where_they_are_fast(void **state) {
    (void)state;
    has_types(NATIVE "isa=avx512bitalg\nmemory_mb=1500\n", "", T_T3, T_T3);
    has_types(NATIVE "isa=avx512bitalg\nmemory_mb=900\n", "", T_T2, T_T2);
    has_types(NATIVE "isa=avx2\nmemory_mb=1500\n", "", T_S3, T_S3);
    has_types(NATIVE "isa=avx2\nmemory_mb=900\n", "", T_S2, T_S2);
    has_types(NATIVE "isa=neondot\nmemory_mb=900\n", "", T_S2, T_S2); /* not measured */
    has_types(CHROME GPU "memory_mb=900\nspeed_q4=1\nspeed_s2=1\nspeed_t2=1\n", "", T_T2, T_T2);
    has_types(CHROME GPU "memory_mb=900\nspeed_q4=1\nspeed_s2=2\nspeed_t2=1\n", "", T_S2, T_S2);
    has_types(CHROME GPU, "attention=q8\nfeed_forward=t3", T_Q8_0, T_T3); /* as asked for */
}

/* ---- what a browser changes in a configuration ---- */

static void adapts(const char *text, const char *request, int attention, int ff, int embedding) {
    Plan p = plan_of(text, NULL, request);
    has_bits(&p, attention, ff, embedding);
}

#define TWO  "attention=2\nfeed_forward=2\nembedding=2\noutput=2\naudio=2\n"
#define FOUR "attention=4\nfeed_forward=4\nembedding=8\noutput=8\naudio=4\n"

void safari_has_at_least_3_bits(void **state) {
    (void)state;
    adapts(SAFARI "version=16\n" GPU, TWO, 3, 3, 3);
    adapts(SAFARI "version=16\n" GPU, FOUR, 4, 4, 8);
    adapts(SAFARI "version=17\n" GPU, TWO, 3, 2, 3);
    adapts(SAFARI "version=26\n" GPU, FOUR, 4, 2, 8);
    /* other browsers are WebKit too on Apple's phones, and on Linux */
    adapts("browser=chrome\nversion=142\nengine_version=16\nos=ios\nmobile=false\n" GPU, TWO, 3, 3,
           3);
    adapts("browser=webkitgtk\nversion=26\nos=linux\nmobile=false\n" GPU, TWO, 3, 2, 3);
    Plan p = plan(SAFARI "version=17\n" GPU "memory_mb=8192\n");
    says(&p, "feed_forward", "s2", "Safari 17");
    says(&p, "attention", "s3", "as recommended");
}

void firefox_with_compute_shaders(void **state) {
    (void)state;
    Plan p = plan_of(FIREFOX GPU "memory_mb=8192\n", NULL, FOUR);
    assert_int_equal(p.group_bits[GROUP_AUDIO], 2);
    says(&p, "audio", NULL, "Firefox");
    /* measured: attention alone is not lowered, but with feed-forward it is */
    has_bits(&p, 4, 4, 8);
    says(&p, "attention", "q4", "measured");
    adapts(FIREFOX GPU "memory_mb=8192\n", "attention=4\nfeed_forward=2", 2, 2, 8);
    adapts(FIREFOX GPU "memory_mb=8192\n", "attention=4\nfeed_forward=3", 3, 3, 8);
    adapts(FIREFOX GPU "memory_mb=8192\n", "attention=3\nfeed_forward=4", 3, 4, 8);
    /* no compute shaders: WebAssembly's rule */
    p = plan_of(FIREFOX NO_GPU "memory_mb=8192\n", NULL, FOUR);
    assert_int_equal(p.group_bits[GROUP_AUDIO], 4);
    has_bits(&p, 4, 4, 8);
}

void chrome_and_edge_are_unchanged(void **state) {
    (void)state;
    static const char *const names[] = { "chrome", "edge", "opera", "samsung" };
    char text[160];
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(text, sizeof text, "browser=%s\nversion=151\nos=windows\nmobile=false\n" GPU,
                 names[i]);
        adapts(text, TWO, 2, 2, 2);
        adapts(text, FOUR, 4, 4, 8);
    }
}

void phones_and_tablets(void **state) {
    (void)state;
    static const char phone[] = "browser=chrome\nversion=151\nos=android\nmobile=true\n" GPU;
    char text[160];
    snprintf(text, sizeof text, "%smemory_mb=4096\n", phone);
    adapts(text, FOUR, 4, 2, 8);
    adapts(text, TWO, 2, 2, 2);
    snprintf(text, sizeof text, "%smemory_mb=2047\n", phone);
    adapts(text, FOUR, 2, 2, 8);
    adapts(text, "budget_mb=1023\n" FOUR, 2, 2, 4);
    Plan p = plan_of(text, NULL, "budget_mb=1000");
    says(&p, "embedding", "q4", "below 1 GiB: 4 bits");
    says(&p, "output", "q4", "below 1 GiB: 4 bits");
    says(&p, "norms", "f32", "a thousandth of the bytes");
    assert_int_equal(p.group_bits[GROUP_OUTPUT], 4);
}

void webassembly_has_at_least_3_bits(void **state) {
    (void)state;
    adapts(CHROME NO_GPU "memory_mb=8192\n", TWO, 3, 3, 3);
    adapts(CHROME NO_GPU "memory_mb=8192\n", FOUR, 4, 4, 8);
    adapts(CHROME NO_GPU "memory_mb=2048\n", TWO, 3, 3, 3);
    adapts(CHROME NO_GPU "memory_mb=2047\n", TWO, 3, 2, 3);
    adapts(CHROME NO_GPU "memory_mb=2047\n", FOUR, 4, 2, 8);
    adapts(NATIVE "isa=avx2\nmemory_mb=900\n", TWO, 2, 2, 2); /* native: no such rule */
}

/* ---- backend, module, threads ---- */

static void runs(const char *text, const char *request, const char *backend, const char *module,
                 int threads) {
    Plan p = plan_of(text, NULL, request);
    says(&p, "backend", backend, "");
    if (module) says(&p, "module", module, "");
    if (p.n_threads != threads) die("%s: %d threads, expected %d", text, p.n_threads, threads);
}

#define RELAXED  "wasm_relaxed_dot=true\nwasm_relaxed_madd=true\n"
#define THREADS  "wasm_threads=true\nshared_memory=true\n"
#define ISOLATED "isolated=true\n"

void backend_and_module(void **state) {
    (void)state;
    runs(CHROME GPU, "", "webgpu", "dibit-gpu.wasm", 1);
    runs(CHROME GPU THREADS ISOLATED "cores=8\n", "", "webgpu", "dibit-gpu.wasm", 1);
    runs(CHROME NO_GPU, "", "wasm", "dibit-simd.wasm", 1);
    runs(CHROME NO_GPU RELAXED, "", "wasm", "dibit-relaxed1.wasm", 1);
    runs(CHROME NO_GPU RELAXED THREADS "cores=4\n", "", "wasm", "dibit-relaxed1.wasm", 1);
    runs(CHROME NO_GPU THREADS ISOLATED "cores=4\n", "", "wasm", "dibit-threads.wasm", 4);
    runs(CHROME NO_GPU RELAXED THREADS ISOLATED "cores=4\n", "", "wasm", "dibit-relaxed.wasm", 4);
    /* as WebKit has it with its option on: products, but not the dot */
    runs(SAFARI "version=26\nwasm_relaxed_madd=true\nwasm_relaxed_dot=false\n" NO_GPU, "", "wasm",
         "dibit-simd.wasm", 1);
    runs(CHROME GPU, "backend=wasm", "wasm", NULL, 1);
    runs(CHROME SIMD "webgpu=true\ngpu_fallback=true\n", "", "wasm", NULL, 1);
    runs(CHROME SIMD "webgpu=true\ngpu_fallback=true\n", "backend=webgpu", "webgpu", NULL, 1);
    runs(CHROME GPU, "disabled=gpu_f16,webgpu", "wasm", NULL, 1);
    runs(CHROME GPU, "disabled=webgpu2", "webgpu", NULL, 1);
    runs(CHROME NO_GPU RELAXED, "disabled=wasm_relaxed", "wasm", "dibit-simd.wasm", 1);
    runs(CHROME "webgpu=false\n", "", "none", NULL, 1);
    runs(NATIVE "isa=avx2\n", "", "cpu", NULL, 4);
    runs(NATIVE "isa=avx2\nwebgpu=true\ngpu_fallback=true\n", "", "cpu", NULL, 4);
    runs(NATIVE "isa=avx2\nwebgpu=true\ngpu_fallback=false\n", "", "webgpu", NULL, 4);
    DeviceInfo d = device(CHROME NO_GPU);
    PlanRequest q;
    Plan p;
    DibitError err;
    plan_request_read(&q, "backend=webgpu", 14, NULL);
    assert_int_equal(plan_make(&p, &d, NULL, &q, &err), DIBIT_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "no adapter"));
}

#define WEB CHROME NO_GPU THREADS ISOLATED
void threads_by_cores_and_battery(void **state) {
    (void)state;
    runs(WEB, "", "wasm", NULL, 1);
    runs(WEB "cores=2\n", "", "wasm", NULL, 2);
    runs(WEB "cores=64\n", "", "wasm", NULL, 8);
    runs(WEB "cores=64\n", "n_threads=16", "wasm", NULL, 16);
    runs(CHROME NO_GPU "cores=8\n", "n_threads=4", "wasm", NULL, 1); /* not isolated */
    runs(SAFARI "version=26\n" NO_GPU THREADS ISOLATED "cores=8\n", "", "wasm", NULL, 4);
    runs("browser=chrome\nos=android\nmobile=true\n" NO_GPU THREADS ISOLATED "cores=8\n", "",
         "wasm", NULL, 4);
    runs("browser=chrome\nos=android\nmobile=true\n" NO_GPU THREADS ISOLATED "cores=4\n", "",
         "wasm", NULL, 2);
    runs(NATIVE "isa=avx2\ncores=64\n", "", "cpu", NULL, 64);
    runs(WEB "cores=8\nbattery_level=0.15\nbattery_charging=false\n", "", "wasm", NULL, 4);
    runs(WEB "cores=8\nbattery_level=0.05\nbattery_charging=false\n", "", "wasm", NULL, 1);
    runs(WEB "cores=8\nbattery_level=0.05\nbattery_charging=true\n", "", "wasm", NULL, 8);
    runs(WEB "cores=8\nbattery_level=0.5\nbattery_charging=false\n", "", "wasm", NULL, 8);
    Plan full = plan(WEB), low = plan(WEB "battery_level=0.15\nbattery_charging=false\n"),
         empty = plan(WEB "battery_level=0.05\nbattery_charging=false\n");
    assert_true(full.sleep_ms == 0 && low.sleep_ms > 0 && empty.sleep_ms > low.sleep_ms);
    says(&full, "battery_saver", "off", "no battery");
    says(&low, "battery_saver", "on", "15 %, discharging");
}

/* ---- features ---- */

void features_follow_the_probes(void **state) {
    (void)state;
    Plan p = plan(CHROME GPU RELAXED THREADS ISOLATED
                  "memory_mb=8192\ngpu_f16=true\ngpu_subgroups=false\n");
    static const struct {
        PlanFeature f;
        bool on;
    } want[] = {
        { FEATURE_WEBGPU, true },
        { FEATURE_COMPUTE_SHADERS, true },
        { FEATURE_GPU_F16, true },
        { FEATURE_GPU_SUBGROUPS, false },
        { FEATURE_GPU_PACKED_DOT, false },
        { FEATURE_WASM_SIMD, true },
        { FEATURE_WASM_RELAXED, true },
        { FEATURE_WASM_THREADS, true },
        { FEATURE_PROGRESSIVE_LOADING, true },
        { FEATURE_MEMORY_CONSTRAINED, false },
        { FEATURE_MEMORY_SEVERE, false },
        { FEATURE_MOBILE, false },
        { FEATURE_BATTERY, false },
    };
    assert_int_equal(ARRAY_LEN(want), N_FEATURES);
    for (int i = 0; i < N_FEATURES; i++) {
        if (p.feature[want[i].f] != want[i].on) die("%s", plan_feature_names[want[i].f]);
        says(&p, plan_feature_names[i], p.feature[i] ? "on" : "off", "");
    }
    says(&p, "gpu_packed_dot", "off", "not probed");
    says(&p, "gpu_subgroups", "off", "not there");
    p = plan_of(CHROME GPU "gpu_f16=true\n", NULL, "disabled=gpu_f16");
    says(&p, "gpu_f16", "off", "failed on this device");
    p = plan_of(CHROME GPU "memory_mb=8192\nmobile=true\n", NULL, "budget_mb=1500");
    assert_true(p.feature[FEATURE_MEMORY_CONSTRAINED] && !p.feature[FEATURE_MEMORY_SEVERE]);
    assert_true(p.feature[FEATURE_MOBILE]);
    p = plan_of(CHROME GPU, NULL, "budget_mb=1000");
    assert_true(p.feature[FEATURE_MEMORY_CONSTRAINED] && p.feature[FEATURE_MEMORY_SEVERE]);
    p = plan(NATIVE "isa=avx2\n");
    assert_false(p.feature[FEATURE_PROGRESSIVE_LOADING]); /* mapped */
    assert_null(plan_line(&p, "wasm_simd"));
}

/* ---- the fit into memory ---- */

static PlanModel named(const char *name) {
    PlanModel m;
    DibitError err = { 0 };
    if (plan_named(&m, name, &err) != 0) die("%s", err.text);
    return m;
}

/* The plan's own sum, and that nothing that loses less would have fitted. */
void cache_types_in_the_order_of_their_loss(void **state) {
    (void)state;
    static const int order[][2] = {
        { KV_F16, KV_F16 }, { KV_Q8, KV_Q8 }, { KV_K3, KV_K3 }, { KV_K3, KV_K2 }, { KV_K2, KV_K2 }
    };
    size_t size;
    PlanModel m;
    PlanPart part;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S2, .n_ctx = 4096 }, &size);
    part = (PlanPart){ .data = image, .present = size, .total = size };
    assert_int_equal(plan_peek(&m, &part, 1, NULL), 0);
    size_t tried = 0, before = SIZE_MAX;
    for (int mb = 64; mb >= 16; mb--) {
        char request[64];
        snprintf(request, sizeof request, "backend=webgpu\nbudget_mb=%d\nrepack=false", mb);
        Plan p = plan_of(CHROME GPU, &m, request);
        size_t total = p.need.total + p.staging;
        assert_int_equal(p.need.total, p.need.weights + p.need.kv + p.need.scratch);
        if (!p.fits) break;
        assert_true(total <= p.budget && p.n_ctx <= 4096);
        if (p.n_ctx < 4096) continue;
        size_t row = 0;
        while (order[row][0] != p.kv_k || order[row][1] != p.kv_v) row++;
        assert_true(before == SIZE_MAX ||
                    row >= before); /* less memory never brings a better type */
        for (size_t better = 0; better < row; better++) {
            PlanNeed n = { .n_ctx = 4096,
                           .n_threads = 1,
                           .kv_types = { .k = order[better][0], .v = order[better][1] } };
            assert_int_equal(plan_count(&n, &m, false, NULL), 0);
            assert_true(n.total + p.staging > p.budget);
        }
        tried |= (size_t)1 << row;
        before = row;
    }
    assert_true((tried & 1) && (tried & 2) && (tried & 4));
    Plan p = plan_of(CHROME NO_GPU, &m, "budget_mb=64"); /* measured: f16 is slow there */
    assert_true(p.kv_k == KV_Q8 && p.kv_v == KV_Q8);
    says(&p, "cache_type_k", "q8", "measured in WebAssembly");
    p = plan_of(CHROME NO_GPU, &m, "budget_mb=64\ncache_type_k=f16\ncache_type_v=f16");
    assert_true(p.kv_k == KV_F16 && p.kv_v == KV_F16);
    p = plan_of(NATIVE "memory_mb=4096\n", &m, "");
    assert_true(p.kv_k == KV_F16 && p.kv_v == KV_F16);
    mem_free(NULL, image);
}

void context_is_cut_only_where_it_was_not_asked_for(void **state) {
    (void)state;
    PlanModel m = named("llama-3.2-1b");
    Plan p = plan_of(CHROME GPU "memory_mb=8192\n", &m, "");
    assert_true(p.fits && p.n_ctx == 4096);
    says(&p, "n_ctx", "4096", "131072");
    p = plan_of(CHROME GPU, &m, "budget_mb=432\n");
    assert_true(p.fits && p.n_ctx >= 256 && p.n_ctx < 4096 && p.kv_k == KV_K2);
    says(&p, "n_ctx", NULL, "as many as fit; 4096 were wanted");
    int most = p.n_ctx;
    PlanNeed n = p.need;
    n.n_ctx = most + 64;
    m.context.weights = p.need.weights;
    assert_int_equal(plan_count(&n, &m, false, NULL), 0);
    assert_true(n.total + p.staging > p.budget); /* hardly more would have fitted */
    m = named("llama-3.2-1b");
    p = plan_of(CHROME GPU, &m, "budget_mb=432\nn_ctx=4096");
    assert_false(p.fits);
    says(&p, "n_ctx", "4096", "would fit");
    p = plan_of(CHROME GPU, &m, "budget_mb=100");
    assert_false(p.fits);
    says(&p, "fits", "no", "of 100.0 MiB");
    says(&p, "n_ctx", NULL, "too large");
    p = plan_of(CHROME GPU "memory_mb=8192\n", &m, "n_ctx=32768\ncache_type_k=k3\ncache_type_v=k2");
    assert_true(p.fits && p.n_ctx == 32768 && p.kv_k == KV_K3 && p.kv_v == KV_K2);
    says(&p, "cache_type_k", "k3", "as asked for");
}

/* A model by name gives up first what loses least for a byte: embedding, feed-forward, attention.
 */
void models_by_name_are_lowered_until_they_fit(void **state) {
    (void)state;
    PlanModel m = named("llama-3.2-3b");
    int before[3] = { 99, 99, 99 };
    bool seen[3] = { false, false, false };
    for (int mb = 3000; mb >= 900; mb -= 50) {
        char text[128];
        snprintf(text, sizeof text, CHROME GPU "memory_mb=%d\n", 8192);
        char request[64];
        snprintf(request, sizeof request, "budget_mb=%d\nattention=s3\nfeed_forward=s3\nn_ctx=4096",
                 mb);
        Plan p = plan_of(text, &m, request);
        int now[3] = { p.group_bits[GROUP_EMBEDDING], p.group_bits[GROUP_FEED_FORWARD],
                       p.group_bits[GROUP_ATTENTION] };
        if (!p.fits) break;
        assert_true(now[0] == 4 || now[1] == 3);
        assert_true(now[1] == 2 || now[2] == 3);
        for (int i = 0; i < 3; i++) {
            assert_true(now[i] <= before[i]);
            seen[i] |= now[i] < (i ? 3 : 8);
            before[i] = now[i];
        }
        assert_true(p.need.total + p.staging <= p.budget);
    }
    assert_true(seen[0] && seen[1] && seen[2]);
}

void a_calibration_in_the_file_is_told(void **state) {
    (void)state;
    size_t size;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_S2, .n_ctx = 4096 }, &size);
    PlanModel m;
    PlanPart part = { .data = image, .present = size, .total = size };
    assert_int_equal(plan_peek(&m, &part, 1, NULL), 0);
    Plan p = plan_of(CHROME NO_GPU, &m, "cache_type_v=k3\nbudget_mb=24");
    if (p.kv_k == KV_K3 || p.kv_k == KV_K2) says(&p, "cache_type_k", NULL, "calibrate kv");
    m.kv_calibrated = true;
    p = plan_of(CHROME NO_GPU, &m, "budget_mb=22");
    if (p.kv_k == KV_K3 || p.kv_k == KV_K2) says(&p, "cache_type_k", NULL, "has a calibration");
    mem_free(NULL, image);
}

/* In a browser q4 and q8 are interleaved where they lie; natively a copy is made if it fits. */
void repacking(void **state) {
    (void)state;
    size_t size;
    uint8_t *image = tiny_image(&(Tiny){ .type = T_Q4_0, .n_ctx = 512 }, &size);
    PlanModel m;
    PlanPart part = { .data = image, .present = size, .total = size };
    assert_int_equal(plan_peek(&m, &part, 1, NULL), 0);
    assert_true(m.repacked > 100000 && m.bases == 0);
    Plan p = plan_of(CHROME NO_GPU, &m, "");
    says(&p, "repack", "on", "where they lie");
    assert_int_equal(p.need.weights, m.context.weights);
    p = plan_of(CHROME GPU, &m, "backend=webgpu");
    says(&p, "repack", "off", "layouts of its own");
    assert_int_equal(p.need.weights, m.context.weights);
    p = plan_of(NATIVE "memory_mb=4096\n", &m, "");
    says(&p, "repack", "on", "fit too");
    assert_int_equal(p.need.weights, m.context.weights + m.repacked);
    p = plan_of(NATIVE "memory_mb=4096\n", &m, "repack=0");
    says(&p, "repack", "off", "as asked for");
    assert_int_equal(p.need.weights, m.context.weights);
    mem_free(NULL, image);
}

/* ---- variants ---- */

static const char *picks(const char *text, const char *more) {
    static Plan p;
    char request[800];
    snprintf(request, sizeof request,
             "variant=q4 bytes=24000000 kld=0.023 attention=q4 feed_forward=q4 embedding=q8\n"
             "variant=s3 bytes=20000000 kld=0.079 attention=s3 feed_forward=s3 embedding=q8\n"
             "variant=mix bytes=17500000 kld=0.27 attention=s3 feed_forward=s2 embedding=q8\n"
             "variant=s2 bytes=16700000 kld=0.37 attention=s2 feed_forward=s2 embedding=q8\n"
             "variant=tiny bytes=12500000 kld=0.38 attention=s2 feed_forward=s2 embedding=q4\n%s",
             more);
    p = plan_of(text, NULL, request);
    const PlanLine *l = plan_line(&p, "variant");
    assert_non_null(l);
    return l->value;
}

void variants_by_fit_and_loss(void **state) {
    (void)state;
    assert_string_equal(picks(CHROME GPU "memory_mb=8192\nspeed_q4=1\nspeed_s3=1\n", ""), "q4");
    assert_string_equal(picks(CHROME GPU "memory_mb=8192\n", ""), "s3");
    assert_string_equal(picks(CHROME NO_GPU "memory_mb=1500\n", ""), "mix");
    assert_string_equal(picks(CHROME GPU "memory_mb=900\n", ""), "s2");
    assert_string_equal(picks(CHROME GPU "memory_mb=900\n", "budget_mb=33\n"), "tiny");
    assert_string_equal(picks(CHROME GPU "memory_mb=900\n", "budget_mb=5\n"), "");
    assert_string_equal(picks(SAFARI "version=26\n" GPU "memory_mb=8192\n", ""), "mix");
}

/* ---- text ---- */

void plans_as_text(void **state) {
    (void)state;
    PlanModel m = named("base-34m");
    Plan p = plan_of(CHROME GPU, &m, "");
    char text[16384], cut[100];
    size_t n = plan_write(&p, text, sizeof text), lines = 0;
    assert_true(n < sizeof text && strlen(text) == n);
    for (char *l = text; *l; l = strchr(l, '\n') + 1, lines++) {
        char *tab = strchr(l, '\t'), *second = tab ? strchr(tab + 1, '\t') : NULL,
             *end = strchr(l, '\n');
        if (!tab || !second || !end || second > end || second + 1 == end) die("%.80s", l);
    }
    assert_int_equal(lines, p.n_lines);
    assert_true(p.n_lines < PLAN_MAX_LINES); /* none was left out */
    memset(cut, 7, sizeof cut);
    assert_int_equal(plan_write(&p, cut, 50), n);
    assert_int_equal(strlen(cut), 49);
    assert_int_equal(cut[50], 7);
    assert_int_equal(plan_write(&p, NULL, 0), n);
}
