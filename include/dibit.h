/* dibit.h - the whole public interface of dibit: open a model, talk to it, watch it token by token.
 *
 * Rules that hold for every call:
 *  - Option structs filled with zeros mean defaults: `DibitOptions opt = { 0 };`.
 *  - A function that can fail returns 0 (or a non-negative result) on success and a negative
 * DIBIT_E_* code on failure; with a DibitError (may be NULL) it also says in one sentence what was
 * wrong.
 *  - What a call creates the caller frees with the matching call, which sets the pointer to NULL.
 *  - An engine may be shared by any number of threads; a session is used by one thread at a time.
 *  - Text is UTF-8. Token ids are int32_t. Sizes are bytes unless the name says otherwise.
 */
#ifndef DIBIT_H
#define DIBIT_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) && !defined(DIBIT_STATIC)
#define DIBIT_API __attribute__((visibility("default")))
#else
#define DIBIT_API
#endif

#define DIBIT_VERSION "0.1.0"

/* Error codes: stable numbers. */
enum {
    DIBIT_OK = 0,
    DIBIT_E_ARGUMENT = -1,    /* a parameter is out of range; the text names it */
    DIBIT_E_MEMORY = -2,      /* an allocation failed or would pass the memory that is there */
    DIBIT_E_IO = -3,          /* reading or writing a file failed */
    DIBIT_E_FORMAT = -4,      /* a file is damaged or not what it should be */
    DIBIT_E_UNSUPPORTED = -5, /* architecture, tensor type or feature this build does not have */
    DIBIT_E_CONTEXT = -6,     /* the text does not fit the session's context */
    DIBIT_E_NUMERIC = -7,     /* NaN or infinity in weights, activations or logits */
    DIBIT_E_CANCELLED = -8,   /* dibit_cancel() was called */
    DIBIT_E_TOKENIZER = -9,   /* the model file has no tokenizer, or one this build cannot use */
    DIBIT_E_DEVICE = -10      /* the GPU was lost or refused what it was asked */
};

/* Of dibit_sync(), dibit_next() and dibit_forward() with a backend that must not block, as in a
 * browser, and never else: a result is under way. Call again with the same arguments once the
 * backend's host has it: what was computed is kept. Above every count that these return. */
enum { DIBIT_WAIT = 1 << 30 };

typedef struct DibitError {
    int code;
    char text[240];
} DibitError;

/* Where memory comes from. alloc returns `size` bytes aligned to `align` (a power of two, at most
 * 64) or NULL; release gets the same size again and may come from threads of the library. Both
 * NULL: the C library. */
typedef struct DibitAllocator {
    void *(*alloc)(void *user, size_t size, size_t align);
    void (*release)(void *user, void *ptr, size_t size);
    void *user;
} DibitAllocator;

enum { DIBIT_LOG_WARN = 1, DIBIT_LOG_INFO = 2 };
typedef struct DibitLogger {
    void (*log)(void *user, int level, const char *text); /* one line, without a newline */
    void *user;
} DibitLogger;

struct DibitBackend; /* another place than the CPU to run a model, made by who brings it */
typedef struct DibitEngine DibitEngine;   /* an opened model: weights, tokenizer, threads */
typedef struct DibitSession DibitSession; /* one conversation: tokens, KV cache, sampler */

typedef struct DibitOptions {
    int n_threads;     /* 0: one for each core the process may use */
    int no_mmap;       /* read the file into memory instead of mapping it */
    int no_repack;     /* keep q4 and q8 rows as they are in the file: less memory, slower */
    unsigned isa_mask; /* 0: use every instruction set found; else only these DIBIT_ISA_* bits */
    DibitAllocator memory;      /* zeros: malloc */
    DibitLogger logger;         /* zeros: silent */
    const char *kv_calibration; /* file of `dibit calibrate kv` for the model, in place of what the
                                   model's file may hold; NULL: none */
    int repack_in_place; /* images in memory only, which the engine may then change: q4 and q8 rows
                            are interleaved where they lie, without a copy. Afterwards, and after
                            an error too, the image is no model any more */
    struct DibitBackend *backend; /* NULL: the CPU. Taken over by the engine, also when opening
                                     fails. Forked, saved and restored sessions of it compute
                                     their rows anew when they are needed */
} DibitOptions;

enum {
    DIBIT_ISA_SCALAR = 1, /* plain C, always there */
    DIBIT_ISA_AVX2 = 2,
    DIBIT_ISA_AVX512VNNI = 4,
    DIBIT_ISA_NEON = 8,
    DIBIT_ISA_NEONDOT = 16,
    DIBIT_ISA_AVX512BITALG = 32,
    DIBIT_ISA_SIMD128 = 64 /* WebAssembly; with relaxed SIMD where it was built so */
};

/* Opens a GGUF file (the first of its shards where it is split). On success the caller owns *out
 * and frees it with dibit_close(); on failure *out is NULL and err says which tensor or key was
 * wrong. */
DIBIT_API int dibit_open(DibitEngine **out, const char *path, const DibitOptions *opt,
                         DibitError *err);

/* The same from a GGUF image in memory, which must stay there unchanged until dibit_close(). With
 * opt.repack_in_place the engine changes it. */
DIBIT_API int dibit_open_memory(DibitEngine **out, const void *data, size_t size,
                                const DibitOptions *opt, DibitError *err);

/* The same from the n shards of a split model, in their order. */
typedef struct DibitImage {
    const void *data;
    size_t size;
} DibitImage;
DIBIT_API int dibit_open_images(DibitEngine **out, const DibitImage *images, size_t n,
                                const DibitOptions *opt, DibitError *err);

/* Frees an engine. All of its sessions must be freed before. NULL is fine; sets *engine to NULL. */
DIBIT_API void dibit_close(DibitEngine **engine);

typedef struct DibitModelInfo {
    const char *architecture, *name; /* "llama", "qwen2", ...; name may be "" */
    const char *chat_template; /* "chatml", "llama2", "llama3", "mistral", "mistral-v3" or "" */
    int n_vocab, n_ctx_train, n_embd, n_layers, n_heads, n_kv_heads, head_dim, n_ff;
    int sliding_window; /* positions, 0 if none */
    int has_tokenizer;  /* 0: only token ids can be used */
    int bos_id, eos_id; /* -1 if the model names none */
    uint64_t n_params;
    size_t weight_bytes;               /* tensors as they are used, repacked copies included */
    size_t file_bytes, repacked_bytes; /* tensors in the file; copies made at open */
    size_t disk_bytes;                 /* the whole file, or all of its shards */
    const char
        *isa; /* the instruction set in use: "scalar", "avx2", ..., or the backend: "webgpu" */
    int n_threads;
} DibitModelInfo;
/* Fills *out; its strings belong to the engine. */
DIBIT_API void dibit_model_info(const DibitEngine *engine, DibitModelInfo *out);

typedef struct DibitTensorInfo {
    const char *name, *type; /* "blk.0.attn_q.weight", "s3" */
    int n_dims;
    uint64_t shape[4]; /* fastest first, as in GGUF: columns, rows */
    uint64_t n_bytes;
} DibitTensorInfo;
/* Describes tensor `index`. Returns the number of tensors (index out of range: *out is left alone).
 */
DIBIT_API int dibit_tensor_info(const DibitEngine *engine, int index, DibitTensorInfo *out);

/* ---- text and tokens
 * ------------------------------------------------------------------------------- */

enum {
    DIBIT_ADD_BOS = 1,      /* put BOS in front if the model asks for one */
    DIBIT_PARSE_SPECIAL = 2 /* "<|im_end|>" in the text is the special token, not its characters */
};

/* Turns `n_bytes` of text into at most `cap` ids. Returns the number of ids the text has, which may
 * be more than cap (then call again with more room; ids may be NULL when cap is 0). Invalid UTF-8
 * is encoded byte by byte, never refused. Needs no lock. */
DIBIT_API int64_t dibit_tokenize(const DibitEngine *engine, const char *text, size_t n_bytes,
                                 int flags, int32_t *ids, size_t cap, DibitError *err);

/* The bytes of one token, not terminated; they may be part of a UTF-8 character. With special == 0
 * control tokens have no bytes. Returns the length, or DIBIT_E_ARGUMENT if id is not in the
 * vocabulary. The bytes belong to the engine. */
DIBIT_API int dibit_token_bytes(const DibitEngine *engine, int32_t id, int special,
                                const char **bytes);

/* Whether generation ends at this token (any of the end ids the model names). */
DIBIT_API int dibit_is_end(const DibitEngine *engine, int32_t id);

typedef struct DibitMessage {
    const char *role, *content; /* role: "system", "user" or "assistant" */
} DibitMessage;

/* Writes the model's chat form of `n` messages into buf (at most cap bytes, terminated when cap >
 * 0) and returns its full length without the terminator. With add_reply the text ends where the
 * assistant's reply begins. `style` names a template and overrides the model's own; NULL: the
 * model's. Tokenize the result with DIBIT_PARSE_SPECIAL. */
DIBIT_API int64_t dibit_chat_text(const DibitEngine *engine, const char *style,
                                  const DibitMessage *messages, size_t n, int add_reply, char *buf,
                                  size_t cap, DibitError *err);

/* ---- sessions
 * -------------------------------------------------------------------------------------- */

typedef struct DibitSampling {
    float temperature;    /* 0: greedy */
    int top_k;            /* 0: off */
    float top_p;          /* 0 or 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 0 or 1: off; else divides (multiplies) positive (negative) logits */
    int repeat_last_n;    /* tokens looked back at; 0: 64 */
    uint64_t seed;        /* the same seed gives the same text at any thread count */
} DibitSampling;

typedef struct DibitSessionOptions {
    int n_ctx;           /* positions; 0: the model's own limit */
    int n_batch;         /* tokens of one prefill pass; 0: 256 */
    const char *cache_k; /* "f16" (default when NULL), "q8", "q4", "k3" or "k2" */
    const char *cache_v;
    int cache_sinks;  /* positions that k2 and k3 keep in q8: the first ones (0: 4, -1: none) */
    int cache_window; /* and the most recent ones, a multiple of 16 (0: 64, -1: none) */
    /* Types of single layers, which are counted from 0: "0,1=q4;5-7=k3/k2" gives layers 0 and 1
     * both sides in q4, layers 5 to 7 keys in k3 and values in k2. NULL or "": none. Of several
     * entries for a layer the last one counts. "auto": as the calibration of the cache chose. */
    const char *cache_layers;
    DibitSampling sampling;
} DibitSessionOptions;

DIBIT_API int dibit_session_create(DibitSession **out, DibitEngine *engine,
                                   const DibitSessionOptions *opt, DibitError *err);
DIBIT_API void dibit_session_free(DibitSession **session); /* NULL is fine; sets *session to NULL */

/* A second session that goes on where this one is: the same tokens, cache, logits, sampler and its
 * random state, so that both give the same text until they are told otherwise. Whole pages of 256
 * positions of the cache are shared until one of the two writes there, which makes a copy and may
 * fail with DIBIT_E_MEMORY; the rest is the fork's own. Either may be freed first, and each may be
 * used by a thread of its own. */
DIBIT_API int dibit_fork(DibitSession **out, DibitSession *session, DibitError *err);

/* Makes the cache hold exactly these n tokens: keeps the common prefix, prefills the rest. Returns
 * the number of tokens that were computed. n == 0 empties the session. After an error or a cancel
 * the session holds the tokens that were finished; sync again to go on. */
DIBIT_API int64_t dibit_sync(DibitSession *session, const int32_t *ids, size_t n, DibitError *err);

/* How far the running dibit_sync() is, for a progress display in another thread or between calls.
 */
DIBIT_API void dibit_sync_progress(const DibitSession *session, size_t *done, size_t *total);

typedef struct DibitPiece {
    const char *text; /* whole UTF-8 characters, not terminated; belongs to the session until the
                         next call */
    size_t n_bytes;   /* may be 0 while a character is incomplete */
    int32_t id;       /* the token that was sampled */
    const char
        *finish; /* NULL while going on; at the end "stop" (end token) or "length" (context full) */
} DibitPiece;

/* Samples one token after the synced ones, adds it to the session and yields its text. Returns 1
 * with a piece, 0 when finished (the piece then holds remaining text and the reason; an end token
 * is not added to the session), or a negative code. Invalid bytes come out as U+FFFD. */
DIBIT_API int dibit_next(DibitSession *session, DibitPiece *piece, DibitError *err);

/* Changes the sampler; also restarts its random state from the seed. */
DIBIT_API int dibit_set_sampling(DibitSession *session, const DibitSampling *sampling,
                                 DibitError *err);

/* Appends n tokens and writes their logits to out, (n, n_vocab) row by row; with out NULL only the
 * cache is filled. For evaluation. */
DIBIT_API int dibit_forward(DibitSession *session, const int32_t *ids, size_t n, float *out,
                            DibitError *err);

/* The logits after the last token, n_vocab of them, or NULL while they are not computed: a token
 * that dibit_next() sampled is computed by the next call. They belong to the session until then. */
DIBIT_API const float *dibit_last_logits(const DibitSession *session);

/* The tokens the cache holds. They belong to the session until the next call. */
DIBIT_API size_t dibit_tokens(const DibitSession *session, const int32_t **ids);

/* Asks a running dibit_sync/next/forward to stop soon with DIBIT_E_CANCELLED; safe from any thread
 * and from a signal handler. The request is used up by the call that it stops, or by the next one.
 */
DIBIT_API void dibit_cancel(DibitSession *session);

typedef struct DibitMemory {
    size_t weights;   /* of the engine, shared by its sessions */
    size_t kv;        /* the cache's bytes as they were allocated */
    size_t kv_shared; /* of these, what forks share at present: each of them counts it */
    size_t scratch;   /* activations, logits, token history */
    int n_ctx, n_past;
    /* Head vectors that became k2 or k3 records since the session began and whose root mean square
     * is outside the scale's range, 2^(-127/16) to 2^(127/16) (0.004 to 245): below it they are
     * stored as zero (zeros themselves do not count), above it with the largest scale, which costs
     * quality. */
    uint64_t kv_zero, kv_saturated;
} DibitMemory;
DIBIT_API void dibit_memory(const DibitSession *session, DibitMemory *out);

/* What a session with these options would take, without creating it; opt may be NULL. */
DIBIT_API int dibit_session_memory(const DibitEngine *engine, const DibitSessionOptions *opt,
                                   DibitMemory *out, DibitError *err);

/* For measuring speed at a depth without computing what leads there: the session holds these n
 * tokens as after dibit_sync(), but with random keys and values. What it goes on with is nonsense.
 */
DIBIT_API int dibit_fill(DibitSession *session, const int32_t *ids, size_t n, DibitError *err);

/* Where the time went: nanoseconds of the calling thread. */
typedef struct DibitProfile {
    uint64_t n_tokens, total_ns;             /* of whole passes through the model; of it: */
    uint64_t matmul_ns, attend_ns, cache_ns; /* matrix products, attention, encoding K and V */
} DibitProfile;
/* Writes to out (may be NULL) what was measured since the call before, and measures from now on if
 * `on`. A session starts without: each operation reads the clock twice. */
DIBIT_API void dibit_profile(DibitSession *session, int on, DibitProfile *out);

/* Writes the session (tokens and cache) to a file, atomically; restores it from one. Restoring
 * checks the model's hash, the cache types and a checksum and leaves the session unchanged when
 * anything is wrong. */
DIBIT_API int dibit_save(const DibitSession *session, const char *path, DibitError *err);
DIBIT_API int dibit_restore(DibitSession *session, const char *path, DibitError *err);

/* ---- a KV cache by itself
 * --------------------------------------------------------------------------
 * For those who have an engine of their own: keys and values of a batch of sequences, kept at 2 to
 * 16 bits a value, and attention over them without unpacking. No model is needed. examples/kv.c is
 * a whole program.
 *
 * Arrays are float, row-major [batch, heads, n, head_dim]; `shape` names these four numbers and
 * must fit the cache, n being free. They belong to the caller and are only looked at during the
 * call. Keys come as attention uses them (after RoPE and the like). k2, k3 and q4 are kept in a
 * rotated basis; keys, queries and results are turned to and fro inside.
 *
 * `positions` are n numbers, the same for every sequence of the batch; NULL has the meaning that
 * each call states. Position p is in the cache once position p - 1 is. */
typedef struct DibitKv DibitKv; /* used by one thread at a time */

typedef struct DibitKvOptions {
    int batch;      /* sequences, all of one length; 0: 1 */
    int n_kv_heads; /* heads of keys and values; must be given */
    int n_heads;    /* query heads, a multiple of n_kv_heads: head h reads KV head h /
                       (n_heads / n_kv_heads); 0: n_kv_heads */
    int head_dim;   /* a multiple of 8 up to 256; for k2 and k3 of 16, at least 32. Must be given */
    int max_positions; /* must be given; at most 16777216 */
    int n_layers;      /* caches of this shape that share threads and scratch; 0: 1 */
    int n_batch;       /* positions that one pass encodes, see dibit_kv_attend(); 0: 256 */
    const char *type_k, *type_v; /* "f16" (NULL), "q8", "q4", "k3" or "k2" */
    int sinks;                   /* positions that k2 and k3 keep in q8: the first ones (0: 4, -1:
                                    none; at most 256) */
    int window;    /* and the most recent ones, a multiple of 16 (0: 64, -1: none; at most 65536) */
    int n_threads; /* 0: one for each core the process may use */
    DibitAllocator memory; /* zeros: malloc */
} DibitKvOptions;

/* Takes all memory that the cache will ever use. On success the caller owns *out and frees it with
 * dibit_kv_free(); on failure *out is NULL. */
DIBIT_API int dibit_kv_create(DibitKv **out, const DibitKvOptions *opt, DibitError *err);
DIBIT_API void dibit_kv_free(DibitKv **kv); /* NULL is fine; sets *kv to NULL */

/* Puts the keys and values [batch, n_kv_heads, n, head_dim] of n positions into a layer and returns
 * how many positions the layer then holds. Positions NULL: the next n. Else they are taken in turn:
 * one that is there is overwritten, the next one is added, one after that is an error (a gap), and
 * so is one outside 0..max_positions-1.
 *
 * k2 and k3: what a position's record holds is made from its q8 row, so a position far back can be
 * overwritten too: its record is encoded anew, and the cache is what it would be had the new vector
 * come in the first place. (The record is all that is left of it: a later read gives that.)
 *
 * NaN, infinity, and numbers too large for the type are an error that says where (f16: a value
 * above 65504; q8: above 8.3e6; the others: a vector longer than 5.2e5 for q4, 8.3e6 for k2 and
 * k3). After any error the cache is as it was. Results do not depend on how positions are split
 * into calls, nor on the number of threads. */
DIBIT_API int dibit_kv_append(DibitKv *kv, int layer, const int shape[4], const float *k,
                              const float *v, const int32_t *positions, DibitError *err);

/* Attention: out [batch, n_heads, n, head_dim] = softmax(scale q k) v for queries of that shape
 * (out may be q). A query at position i, which must be in the cache, sees the positions 0..i;
 * positions NULL: the last n. Queries that shall see everything all have the last position. Scale 0
 * means 1 / sqrt(head_dim). Queries that are not finite are an error.
 *
 * Of k2 and k3 query i reads position j in q8 if j < sinks or floor(i / 16) - floor(j / 16) <
 * window / 16, else its record. Recent rows are kept for the last `window` positions, and for those
 * that queries of the last append to any layer need. So either attend after each append of at most
 * n_batch positions, or ask for positions among the last few (within the last 16 and with the same
 * i / 16 as the last): an earlier one is an error that names the first possible. The other types
 * have no such limit. */
DIBIT_API int dibit_kv_attend(DibitKv *kv, int layer, const int shape[4], const float *q,
                              const int32_t *positions, float scale, float *out, DibitError *err);

/* Decodes positions (NULL: the first n) as a query at the last position reads them, in the caller's
 * basis, for debugging: k and v [batch, n_kv_heads, n, head_dim], either may be NULL. */
DIBIT_API int dibit_kv_read(DibitKv *kv, int layer, const int shape[4], float *k, float *v,
                            const int32_t *positions, DibitError *err);

/* Keeps the first n positions of every layer and returns how many it could keep: with k2 and k3 and
 * a window that may be up to `window` fewer, where q8 rows that position n will read are gone.
 * Append those again; results from position n on are then by the rule above (those of the positions
 * appended again read records where the q8 rows are gone). An error when a layer holds fewer than
 * n. */
DIBIT_API int dibit_kv_truncate(DibitKv *kv, int n, DibitError *err);
DIBIT_API void dibit_kv_reset(DibitKv *kv); /* empties all layers and the counts below */

typedef struct DibitKvBytes {
    size_t rows;          /* what was allocated for keys and values, sinks and window counted */
    size_t scratch;       /* and besides */
    uint64_t n_zero;      /* k2 and k3 vectors too small for a record's scale: stored as zero */
    uint64_t n_saturated; /* and too large: stored with the largest scale (rms 245) */
} DibitKvBytes;
DIBIT_API void dibit_kv_bytes(const DibitKv *kv, DibitKvBytes *out);

/* The library's version: DIBIT_VERSION of the build. */
DIBIT_API const char *dibit_version(void);

#ifdef __cplusplus
}
#endif
#endif
