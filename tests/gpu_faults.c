/* gpu_faults.c - what happens when a GPU fails: lost at any call, without memory, with kernels that
 * are refused or wrong. The linker puts the functions of this file before those of gpu.h that the
 * backend calls. The text must be the CPU's each time. Skipped without an adapter. */
#define _POSIX_C_SOURCE 200809L
#include "tiny.h"

#include <sys/stat.h>
#include <unistd.h>

#include "../app/cli.h"
#include "feature.h"
#include "gpu/step.h"
#include "gpu_test.h"

enum { POINTS = 20, PROMPT = 3, TEXT = 6 };

/* ---- faults ---- */

static struct {
    int n_opens, n_calls, n_buffers, n_kernels; /* so far */
    int lose_at;                                /* the device is lost at this call, */
    int lose_each;                              /* and this many calls later again, and so on */
    int no_buffer;                              /* this buffer is not to be had */
    enum { RIGHT, REFUSED, WRONG } kernels;     /* all of a device, */
    bool only_special;                          /* but not of one that is open as floor */
    bool is_floor;
    bool hardware; /* a software adapter is said to be none */
} fault;

static void count_call(Gpu *g) {
    fault.n_calls++;
    if (fault.n_calls != fault.lose_at) return;
    gpu_lose(g);
    if (fault.lose_each) fault.lose_at += fault.lose_each;
}

/* Declared here since nothing else calls them by this name. */
#define WRAP(type, name, ...)                                                                      \
    type __real_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__)

WRAP(int, gpu_open, Gpu **out, const GpuOptions *opt, DibitError *err) {
    fault.n_opens++;
    fault.is_floor = opt && opt->floor;
    return __real_gpu_open(out, opt, err);
}

WRAP(const GpuCaps *, gpu_caps, const Gpu *g) {
    static GpuCaps caps;
    caps = *__real_gpu_caps(g);
    caps.software = caps.software && !fault.hardware;
    return &caps;
}

WRAP(GpuId, gpu_buffer, Gpu *g, size_t n_bytes, DibitError *err) {
    count_call(g);
    if (++fault.n_buffers != fault.no_buffer) return __real_gpu_buffer(g, n_bytes, err);
    fail(err, DIBIT_E_MEMORY, "no GPU memory: a test");
    return 0;
}

WRAP(void, gpu_write, Gpu *g, GpuId buffer, size_t at, const void *data, size_t n_bytes) {
    count_call(g);
    __real_gpu_write(g, buffer, at, data, n_bytes);
}

/* A wrong kernel takes another small number for the one in RMSNorm. */
WRAP(GpuId, gpu_kernel, Gpu *g, const char *label, const char *wgsl, const GpuConst *consts,
     int n_consts, DibitError *err) {
    GpuConst own[GPU_CONSTS];
    count_call(g);
    fault.n_kernels++;
    bool hit = !(fault.only_special && fault.is_floor);
    if (fault.kernels == REFUSED && hit) {
        fail(err, DIBIT_E_UNSUPPORTED, "GPU kernel %s: refused by a test", label);
        return 0;
    }
    memcpy(own, consts, (size_t)n_consts * sizeof *own);
    for (int i = 0; i < n_consts; i++)
        if (fault.kernels == WRONG && hit && strcmp(own[i].name, "EPS") == 0) own[i].value = 10;
    return __real_gpu_kernel(g, label, wgsl, own, n_consts, err);
}

WRAP(GpuId, gpu_bind, Gpu *g, GpuId kernel, const GpuRange *ranges, int n, DibitError *err) {
    count_call(g);
    return __real_gpu_bind(g, kernel, ranges, n, err);
}

WRAP(int, gpu_submit, Gpu *g, DibitError *err) {
    count_call(g);
    return __real_gpu_submit(g, err);
}

WRAP(int, gpu_read_start, Gpu *g, GpuId buffer, size_t at, size_t n_bytes, DibitError *err) {
    count_call(g);
    return __real_gpu_read_start(g, buffer, at, n_bytes, err);
}

WRAP(int, gpu_read_ready, Gpu *g, void *dst, bool wait, DibitError *err) {
    count_call(g);
    return __real_gpu_read_ready(g, dst, wait, err);
}

/* ---- a text ---- */

static uint8_t *image;
static size_t image_bytes;
static int32_t expected[TEXT];
static int n_warnings;
static DibitSampling sampling; /* temperature 0 but where a test sets it */

static void count_warning(void *user, int level, const char *text) {
    (void)user;
    if (level == DIBIT_LOG_WARN) n_warnings++;
    if (getenv("VERBOSE")) print_message("%s\n", text);
}

static DibitEngine *open_engine(bool gpu, bool optional) {
    DibitEngine *e;
    DibitError err;
    GpuOptions go = test_gpu_options();
    DibitOptions opt = { .n_threads = 1, .logger = { .log = count_warning } };
    go.optional = optional;
    if (gpu && gpu_backend(&opt.backend, &go, NULL, &err) != 0) die("%s", err.text);
    if (dibit_open_memory(&e, image, image_bytes, &opt, &err) != 0) die("%s", err.text);
    return e;
}

static DibitSession *open_session(DibitEngine *e, const char *cache) {
    DibitSession *s;
    DibitError err;
    DibitSessionOptions opt = { .n_ctx = 64, .cache_k = cache, .cache_v = cache };
    opt.sampling = sampling;
    if (dibit_session_create(&s, e, &opt, &err) != 0) die("%s", err.text);
    return s;
}

/* Tokens n..TEXT-1 after those that are there. */
static void go_on(DibitSession *s, int n, int32_t *out) {
    DibitError err;
    DibitPiece piece;
    for (int i = n; i < TEXT; i++) {
        if (dibit_next(s, &piece, &err) != 1) die("token %d: %s", i, err.text);
        out[i] = piece.id;
    }
}

static void write_text(DibitSession *s, int32_t *out) {
    DibitError err;
    int32_t ids[PROMPT];
    for (int i = 0; i < PROMPT; i++) ids[i] = 3 + 37 * i;
    if (dibit_sync(s, ids, PROMPT, &err) != PROMPT) die("%s", err.text);
    go_on(s, 0, out);
}

static void is_expected(const int32_t *text) {
    assert_memory_equal(text, expected, sizeof expected);
}

static const char *where(const DibitEngine *e) {
    DibitModelInfo info;
    dibit_model_info(e, &info);
    return strcmp(info.isa, "webgpu") == 0 ? "gpu" : "cpu";
}

/* The whole of it with the fault that is set. Returns where it ended. */
static const char *whole_text(void) {
    int32_t text[TEXT];
    n_warnings = 0;
    DibitEngine *e = open_engine(true, false);
    DibitSession *s = open_session(e, "f16");
    write_text(s, text);
    is_expected(text);
    const char *at = where(e);
    dibit_session_free(&s);
    dibit_close(&e);
    return at;
}

static int start(void **state) {
    (void)state;
    memset(&fault, 0, sizeof fault);
    return 0;
}

/* ---- tests ---- */

static int make_model(void **state) {
    (void)state;
    image = tiny_image(&(Tiny){ .type = T_F32, .n_ctx = 64 }, &image_bytes);
    DibitEngine *e = open_engine(false, false);
    DibitSession *s = open_session(e, "f16");
    write_text(s, expected);
    dibit_session_free(&s);
    dibit_close(&e);
    return 0;
}

static int free_model(void **state) {
    (void)state;
    mem_free(NULL, image);
    return 0;
}

static void test_lost(void **state) {
    (void)state;
    assert_string_equal(whole_text(), "gpu");
    assert_int_equal(n_warnings, 0);
    int n = fault.n_calls;
    assert_true(n > 5 * POINTS);
    for (int i = 0; i < POINTS; i++) {
        start(NULL);
        fault.lose_at = 1 + i * (n - 1) / (POINTS - 1);
        assert_string_equal(whole_text(), "gpu");
        assert_int_equal(fault.n_opens, i == POINTS - 1 ? fault.n_opens : 2);
    }
}

/* Again and again: after the third time the CPU takes over. */
static void test_lost_for_good(void **state) {
    (void)state;
    fault.lose_at = 40;
    fault.lose_each = 40;
    assert_string_equal(whole_text(), "cpu");
    assert_int_equal(fault.n_opens, 4);
    start(NULL);
    assert_string_equal(whole_text(), "gpu");
    int n = fault.n_calls;
    start(NULL);
    fault.lose_at = n - 10; /* and while what was lost is computed again */
    fault.lose_each = n;
    assert_string_equal(whole_text(), "gpu");
    assert_true(fault.n_opens > 1);
}

/* Tokens that are drawn, of which the largest logits come back; and a fork, whose rows are to be
 * computed when the CPU has to take over. */
static void test_lost_drawn(void **state) {
    (void)state;
    int32_t greedy[TEXT], text[TEXT];
    DibitError err;
    DibitSession *s, *t;
    memcpy(greedy, expected, sizeof greedy);
    sampling = (DibitSampling){ .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .seed = 5 };
    DibitEngine *e = open_engine(false, false);
    s = open_session(e, "f16");
    write_text(s, expected);
    assert_memory_not_equal(greedy, expected, sizeof greedy);
    dibit_session_free(&s);
    dibit_close(&e);
    assert_string_equal(whole_text(), "gpu");
    int n = fault.n_calls;
    for (int i = 1; i < 4; i++) {
        start(NULL);
        fault.lose_at = n - 12 * i;
        assert_string_equal(whole_text(), "gpu");
        assert_int_equal(fault.n_opens, 2);
    }
    start(NULL);
    e = open_engine(true, false);
    s = open_session(e, "f16");
    write_text(s, text);
    assert_int_equal(dibit_fork(&t, s, &err), 0);
    fault.lose_at = fault.n_calls + 1;
    fault.lose_each = 1;
    DibitPiece piece;
    assert_int_equal(dibit_next(t, &piece, &err), 1);
    assert_string_equal(where(e), "cpu");
    int32_t id = piece.id;
    assert_int_equal(dibit_next(s, &piece, &err), 1);
    assert_int_equal(piece.id, id);
    dibit_session_free(&s);
    dibit_session_free(&t);
    dibit_close(&e);
    memcpy(expected, greedy, sizeof greedy);
    sampling = (DibitSampling){ 0 };
}

/* What is not on a GPU any more goes on as it was: two sessions, one of them saved, and a fork. */
static void test_sessions(void **state) {
    (void)state;
    char path[] = "/tmp/gpu_faults_XXXXXX";
    int32_t a[TEXT], b[TEXT], c[TEXT], d[TEXT];
    DibitError err;
    DibitPiece piece;
    DibitEngine *e = open_engine(true, false);
    DibitSession *s = open_session(e, "f16"), *t = open_session(e, "f16"), *u, *v;
    close(mkstemp(path));
    write_text(s, a);
    is_expected(a);
    for (int i = 0; i < PROMPT; i++) a[i] = 3 + 37 * i;
    assert_int_equal(dibit_sync(t, a, PROMPT, &err), PROMPT);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(dibit_next(t, &piece, &err), 1);
        b[i] = c[i] = d[i] = piece.id;
    }
    assert_int_equal(dibit_fork(&u, t, &err), 0);
    assert_int_equal(dibit_save(t, path, &err), 0);
    fault.lose_at = fault.n_calls + 2;
    go_on(t, 4, b);
    is_expected(b);
    go_on(u, 4, c);
    is_expected(c);
    v = open_session(e, "f16");
    assert_int_equal(dibit_restore(v, path, &err), 0);
    go_on(v, 4, d);
    is_expected(d);
    assert_string_equal(where(e), "gpu");
    assert_int_equal(fault.n_opens, 2);
    assert_int_equal(dibit_next(s, &piece, &err), 1); /* of the device that is gone */
    dibit_session_free(&u);
    dibit_session_free(&v);
    dibit_session_free(&t);
    dibit_session_free(&s);
    dibit_close(&e);
    unlink(path);
}

static void test_memory(void **state) {
    (void)state;
    int32_t text[TEXT];
    DibitEngine *e = open_engine(true, false);
    int n = fault.n_buffers;
    dibit_close(&e);
    start(NULL);
    fault.no_buffer = n / 2; /* of the weights */
    assert_string_equal(whole_text(), "cpu");
    assert_true(n_warnings > 0);
    for (int k = 1; k <= 16; k += 5) { /* of a session; the next one finds room */
        start(NULL);
        fault.no_buffer = n + k;
        e = open_engine(true, false);
        DibitSession *s = open_session(e, "f16"), *t = open_session(e, "f16");
        assert_string_equal(where(e), "gpu");
        DibitMemory cpu, gpu;
        dibit_memory(s, &cpu);
        dibit_memory(t, &gpu);
        assert_true(cpu.scratch > gpu.scratch); /* of a batch, not of a token */
        write_text(s, text);
        is_expected(text);
        write_text(t, text);
        is_expected(text);
        dibit_session_free(&s);
        dibit_session_free(&t);
        dibit_close(&e);
    }
}

static void test_kernels(void **state) {
    (void)state;
    fault.kernels = REFUSED;
    fault.only_special = true;
    assert_string_equal(whole_text(), "gpu");
    assert_int_equal(n_warnings, 1);
    assert_int_equal(fault.n_opens, 2);
    start(NULL);
    fault.kernels = REFUSED;
    assert_string_equal(whole_text(), "cpu");
    assert_int_equal(fault.n_opens, 2);
}

/* A cache that does not run on the GPU: an error, or with `optional` the CPU. */
static void test_optional(void **state) {
    (void)state;
    int32_t text[TEXT], other[TEXT];
    DibitSession *s;
    DibitError err;
    DibitSessionOptions opt = { .n_ctx = 64, .cache_k = "q4", .cache_v = "q4" };
    DibitEngine *e = open_engine(true, false);
    assert_int_equal(dibit_session_create(&s, e, &opt, &err), DIBIT_E_UNSUPPORTED);
    assert_null(s);
    dibit_close(&e);
    e = open_engine(false, false);
    s = open_session(e, "q4");
    write_text(s, text);
    dibit_session_free(&s);
    dibit_close(&e);
    e = open_engine(true, true);
    s = open_session(e, "q4");
    write_text(s, other);
    assert_memory_equal(text, other, sizeof text);
    DibitSession *fork;
    assert_int_equal(dibit_fork(&fork, s, &err), 0);
    dibit_session_free(&s);
    dibit_session_free(&fork);
    s = open_session(e, "f16");
    write_text(s, text);
    is_expected(text);
    dibit_session_free(&s);
    dibit_close(&e);
}

/* ---- --backend ---- */

static char folder[32], model[64];

static int make_folder(void **state) {
    strcpy(folder, "/tmp/gpu_faults_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    setenv("XDG_CACHE_HOME", folder, 1);
    if (access(TEST_LIBRARY, R_OK) == 0) setenv("DIBIT_WEBGPU_LIB", TEST_LIBRARY, 0);
    snprintf(model, sizeof model, "%s/model.gguf", folder);
    FILE *f = fopen(model, "wb");
    if (!f || fwrite(image, 1, image_bytes, f) != image_bytes || fclose(f) != 0) return -1;
    return start(state);
}

static int remove_folder(void **state) {
    char command[160];
    (void)state;
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static const char *backend_of(const char *name) {
    DibitEngine *e = NULL;
    const CliModel m = { .backend = name, .n_threads = 1 };
    if (cli_open_engine(&e, &m, model, NULL, 0) != 0) return "error";
    const char *at = where(e);
    dibit_close(&e);
    return at;
}

static Features recorded(void) {
    Features f;
    DibitError err;
    assert_int_equal(features_open(&f, NULL, "dibit " DIBIT_VERSION, NULL, &err), 0);
    return f;
}

static void test_backend(void **state) {
    (void)state;
    assert_string_equal(backend_of("cpu"), "cpu");
    assert_int_equal(fault.n_opens, 0);
    assert_string_equal(backend_of("gpu"), "gpu");
    Features f = recorded();
    assert_int_equal(f.n_features, 1);
    assert_true(f.feature[0].attempts == 1 && f.feature[0].failures == 0);
    assert_string_equal(backend_of("gpu"), "gpu"); /* no check any more */
    f = recorded();
    assert_int_equal(f.feature[0].attempts, 1);
    assert_int_equal(f.n_ops, 0);
}

/* `auto` times both once, and from then on takes the faster one without trying the other. */
static void test_auto(void **state) {
    (void)state;
    DibitError err;
    fault.hardware = true;
    const char *first = backend_of("auto");
    Features f = recorded();
    assert_int_equal(f.n_ops, 2);
    double gpu = features_last_ms(&f, f.op[0].name), cpu = features_last_ms(&f, f.op[1].name);
    assert_memory_equal(f.op[0].name, "gpu-", 4);
    assert_memory_equal(f.op[1].name, "cpu-", 4);
    assert_string_equal(first, gpu > cpu ? "cpu" : "gpu");
    for (int slow = 0; slow < 2; slow++) {
        assert_int_equal(features_time(&f, f.op[0].name, slow ? 1e6 : 0, &err), 0);
        assert_int_equal(features_save(&f, NULL, &err), 0);
        fault.n_buffers = 0;
        assert_string_equal(backend_of("auto"), slow ? "cpu" : "gpu");
        assert_int_equal(fault.n_buffers == 0, slow);
    }
    fault.hardware = false;
    assert_string_equal(backend_of("auto"), "cpu");
}

/* What computes something else is not used: first with all special features, then at all. */
static void test_wrong(void **state) {
    (void)state;
    fault.kernels = WRONG;
    fault.only_special = true;
    for (int i = 0; i < 4; i++) { /* from the third time on it is not even tried */
        assert_string_equal(backend_of("gpu"), "gpu");
        assert_true(fault.is_floor);
    }
    Features f = recorded();
    assert_int_equal(f.n_features, 2);
    assert_true(f.feature[0].attempts == 3 && f.feature[0].failures == 3);
    assert_false(f.feature[0].enabled);
    assert_true(f.feature[1].attempts == 1 && f.feature[1].failures == 0);
}

static void test_all_wrong(void **state) {
    (void)state;
    fault.kernels = WRONG;
    assert_string_equal(backend_of("gpu"), "error");
    fault.hardware = true;
    assert_string_equal(backend_of("auto"), "cpu");
}

int main(int n, char **arg) {
    if (!test_gpu_begin(n, arg)) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_lost, start),
        cmocka_unit_test_setup(test_lost_drawn, start),
        cmocka_unit_test_setup(test_lost_for_good, start),
        cmocka_unit_test_setup(test_sessions, start),
        cmocka_unit_test_setup(test_memory, start),
        cmocka_unit_test_setup(test_kernels, start),
        cmocka_unit_test_setup(test_optional, start),
        cmocka_unit_test_setup_teardown(test_backend, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_auto, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_wrong, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_all_wrong, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, make_model, free_model);
}
