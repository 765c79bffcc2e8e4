/* plan.h - what a device can do, what a model takes, and what follows: the policy of docs/PLAN.md,
 * the same for browsers and for the native program. */
#ifndef PLAN_H
#define PLAN_H
#include "base.h"
#include "codec.h"
#include "context.h"

/* ---- a device: device.c ---- */

/* Text: lines "key=value" with these names as keys (fields.h); JSON objects have the same. What
 * nobody told is unknown: "" and -1. Sizes are MiB where the name says mb, else bytes. */
typedef struct DeviceInfo {
    char user_agent[1024];
    char browser[16]; /* "chrome", "edge", "firefox", "safari", "opera", "samsung", "webview",
                         "epiphany", "webkitgtk", "native", ... or "other" */
    char engine[16];  /* "blink", "gecko", "webkit", "native" or "other" */
    char
        os[16]; /* "windows", "macos", "linux", "chromeos", "android", "ios", "ipados" or "other" */
    int64_t version, engine_version; /* engine: Chrome's, Firefox's, Safari's number */
    int8_t mobile;
    int64_t touch_points;
    int64_t memory_mb;      /* navigator.deviceMemory; natively what the process may use */
    int64_t memory_free_mb; /* natively */
    int64_t cores;          /* navigator.hardwareConcurrency; natively cores of the process */
    int64_t screen_width, screen_height;
    double pixel_ratio;
    double battery_level; /* 0 to 1 */
    int8_t battery_charging;
    char cpu[96], isa[24]; /* natively */
    char vulkan[96];       /* natively: what was found */
    int8_t wasm_simd, wasm_relaxed_dot, wasm_relaxed_madd, wasm_threads, wasm_memory64, wasm_bulk;
    int8_t jspi, isolated, shared_memory; /* crossOriginIsolated, SharedArrayBuffer */
    int8_t webgpu;                        /* there is an adapter, */
    int8_t gpu_fallback;                  /* which is software */
    char gpu_vendor[64], gpu_architecture[64], gpu_description[128];
    int8_t gpu_f16, gpu_subgroups, gpu_packed_dot, gpu_timestamps;
    int64_t gpu_max_buffer, gpu_max_binding, gpu_workgroup_storage, gpu_invocations;
    int64_t gpu_storage_buffers;
    int8_t opfs;
    int64_t storage_quota_mb, storage_used_mb;
    /* measured on the device, in any one unit: products a second with weights of a type */
    double speed_q4, speed_s3, speed_s2, speed_t3, speed_t2;
} DeviceInfo;

void device_clear(DeviceInfo *d); /* everything unknown */
/* Reads a description; what it leaves unknown and the user agent says is filled in. */
int device_read(DeviceInfo *d, const char *text, size_t n, DibitError *err);
int device_set(DeviceInfo *d, const char *key, const char *value, DibitError *err);
void device_complete(DeviceInfo *d); /* the second half of device_read() */
size_t device_write(const DeviceInfo *d, char *out, size_t cap); /* as fields_write() */
/* Field `index` by name and as text, false where it is unknown or *name is NULL: no such index. */
bool device_field(const DeviceInfo *d, int index, const char **name, char *value, size_t cap);
/* Whether its values are numbers or true and false, for JSON; else text. */
bool device_field_is_text(int index);

/* What a user agent says: names of browser, engine and system, versions, phone or tablet. */
void device_user_agent(DeviceInfo *d, const char *user_agent);
void device_native(DeviceInfo *d); /* device_native.c: this machine */
/* device_reported.c: what public data says of a browser of this name, version and system, for
 * planning without it: fills in what is unknown. */
void device_reported(DeviceInfo *d);

/* ---- a model, before it is there: plan_model.c ---- */

typedef enum PlanGroup { /* tensors that a policy treats alike */
                         GROUP_EMBEDDING,
                         GROUP_ATTENTION,
                         GROUP_FEED_FORWARD,
                         GROUP_AUDIO, /* convolutions of sound */
                         GROUP_NORMS, /* and all other vectors */
                         GROUP_OUTPUT,
                         N_GROUPS
} PlanGroup;
extern const char *const plan_group_names[N_GROUPS]; /* "embedding", "attention", ... */

typedef struct PlanModel {
    ContextModel context; /* weights: bytes of the tensors in the file */
    char name[64], architecture[32];
    uint64_t file_bytes; /* 0: a model by name */
    size_t header_bytes; /* before the first tensor's data */
    size_t repacked;    /* bytes of the interleaved copies that opening makes, unless told not to or
                           to do it in place */
    size_t bases;       /* and of what it always makes: inverses of the cache's bases */
    bool kv_calibrated; /* its k2, k3 and q4 caches have calibrated bases */
    bool tied;          /* the output matrix is the embedding */
    int type[N_GROUPS]; /* the type that most of a group's bytes have, -1: it has no tensors */
    size_t bytes[N_GROUPS];
    /* A model by name has no file yet: puts in the types of the groups, sets the bytes. Else NULL.
     */
    int (*weigh)(struct PlanModel *m, const int type[N_GROUPS], DibitError *err);
} PlanModel;

typedef struct PlanPart { /* the first bytes of a file, or of one shard of several */
    const void *data;     /* at a multiple of 8 bytes */
    size_t present, need; /* need: set where plan_peek() returns 1 and this part has too little */
    uint64_t total;
} PlanPart;

/* From the first bytes of all n parts of a GGUF. Returns 1 where they are not enough: the part
 * whose `need` is not 0 should have so many from its start. The tensors' data is never looked at.
 */
int plan_peek(PlanModel *m, PlanPart *parts, size_t n, DibitError *err);

struct Gguf;
int plan_take(PlanModel *m, const struct Gguf *file, DibitError *err); /* of an opened one */
/* plan_native.c: a file, or the first of its shards; a model of shape.h by name. */
int plan_file(PlanModel *m, const char *path, DibitError *err);
int plan_named(PlanModel *m, const char *name, DibitError *err);

/* ---- what is asked for: plan_request.c ---- */

typedef struct PlanVariant { /* one file of several of the same model */
    char name[128];
    uint64_t bytes;
    double kld;         /* mean divergence from the base; -1: unknown */
    int type[N_GROUPS]; /* -1: unknown */
} PlanVariant;

enum { PLAN_MAX_VARIANTS = 32 };
typedef struct PlanRequest { /* fields.h: text as lines "key=value"; -1 and "" are unknown */
    int64_t budget_mb;       /* memory for everything together */
    int64_t n_ctx, n_threads;
    char cache_type_k[8], cache_type_v[8];
    char backend[8]; /* "auto", "webgpu" or "wasm" */
    int8_t repack;
    /* The configuration that is adapted, of each group: a type's name, or bits as "3". */
    char type[N_GROUPS][8];
    char disabled[256]; /* comma-separated: features that have failed on this device */
    /* lines "variant=NAME bytes=N kld=X attention=t2 feed_forward=t2 embedding=q8 ..." */
    PlanVariant variants[PLAN_MAX_VARIANTS];
    int n_variants;
} PlanRequest;
int plan_request_read(PlanRequest *q, const char *text, size_t n, DibitError *err);

/* ---- what a session takes: plan_model.c ---- */

/* Bytes of the cache and of the scratch, for positions, types and threads. Unknown types are f16,
 * unknown positions the model's own number. */
typedef struct PlanNeed {
    int n_ctx, n_threads;
    ContextTypes kv_types;
    size_t weights, kv, scratch, total; /* weights: with what opening makes of them */
} PlanNeed;
int plan_need(PlanNeed *out, const PlanModel *m, const PlanRequest *q, DibitError *err);
/* The same for the positions, types and threads that *n has. */
int plan_count(PlanNeed *n, const PlanModel *m, bool repack, DibitError *err);
/* A type of the cache by name, "" being f16; which: "k" or "v", for the error. */
int plan_cache_type(const char *name, int *type, const char *which, DibitError *err);

/* ---- the plan: plan.c, plan_types.c, plan_fit.c ---- */

typedef enum PlanBackend { BACKEND_NONE, BACKEND_CPU, BACKEND_WASM, BACKEND_WEBGPU } PlanBackend;

typedef enum PlanFeature {
    FEATURE_WEBGPU, /* used at all */
    FEATURE_COMPUTE_SHADERS,
    FEATURE_GPU_F16,
    FEATURE_GPU_SUBGROUPS,
    FEATURE_GPU_PACKED_DOT,
    FEATURE_WASM_SIMD,
    FEATURE_WASM_RELAXED,
    FEATURE_WASM_THREADS,
    FEATURE_PROGRESSIVE_LOADING, /* tensors go where they stay as they arrive */
    FEATURE_MEMORY_CONSTRAINED,  /* below 2 GiB */
    FEATURE_MEMORY_SEVERE,       /* below 1 GiB */
    FEATURE_MOBILE,
    FEATURE_BATTERY, /* fewer threads, sleep between tokens */
    N_FEATURES
} PlanFeature;
extern const char *const plan_feature_names[N_FEATURES]; /* "webgpu", "compute_shaders", ... */

typedef struct PlanLine {
    const char *key;
    char value[128], reason[256];
} PlanLine;

enum { PLAN_MAX_LINES = 48 };
typedef struct Plan {
    PlanBackend backend;
    uint64_t memory, budget; /* bytes: of the device, as the rules count it; for the model */
    size_t staging;          /* of the budget: what loading and the host's own memory take */
    int bits;                /* of the matrices of layers, 2, 3 or 4 */
    int group_bits[N_GROUPS], type[N_GROUPS]; /* TypeId */
    int variant;                              /* index, -1: none was given or fits */
    int kv_k, kv_v, n_ctx, n_threads, sleep_ms;
    bool repack;
    bool has_model, fits;
    PlanNeed need; /* of a model */
    bool feature[N_FEATURES];
    PlanLine lines[PLAN_MAX_LINES];
    int n_lines;
} Plan;

/* What to do on this device, with a model or without (NULL). A model that does not fit is no error:
 * `fits` is false and the reasons say by how much. */
int plan_make(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q,
              DibitError *err);
const PlanLine *plan_line(const Plan *p, const char *key); /* NULL if there is none */
/* Lines "key\tvalue\treason", terminated when cap > 0. Returns the full length. */
size_t plan_write(const Plan *p, char *out, size_t cap);

/* Inside: the parts of plan_make(), in order, and a line of its result. */
void plan_add(Plan *p, const char *key, const char *value, const char *reason, ...)
    __attribute__((format(printf, 4, 5)));
void plan_choose_types(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q);
int plan_fit(Plan *p, const DeviceInfo *d, const PlanModel *m, const PlanRequest *q,
             DibitError *err);
/* The variant to take, -1: none fits or was given; *why says why that one. */
int plan_pick_variant(const Plan *p, const PlanModel *m, const PlanRequest *q, const char **why);
/* How fast weights of a type run beside q4 on this device, and where that is from; 0: not known. */
double plan_speed(const Plan *p, const DeviceInfo *d, int type, const char **source);
int plan_type_of_bits(const Plan *p, const DeviceInfo *d, int bits); /* TypeId for matrices */
int plan_type_bits(int type); /* 2 for s2, t2 and other types of 2 to 3 bits all-in, and so on */
#endif
