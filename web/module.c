/* module.c - what a host needs besides dibit.h, whose calls are exported as they are: where the
 * fields of its structs lie. */
#include "dibit.h"

typedef struct Field {
    const char *name; /* "DibitOptions.n_threads"; "DibitOptions" alone has the size */
    size_t at;
} Field;

#define SIZE(type)                                                                                 \
    { #type, sizeof(type) }
#define FIELD(type, at)                                                                            \
    { #type "." #at, offsetof(type, at) }

/* Ends with a NULL name. */
__attribute__((export_name("dibit_layout"))) const Field *dibit_layout(void);
const Field *dibit_layout(void) {
    static const Field fields[] = {
        SIZE(DibitError),
        FIELD(DibitError, code),
        FIELD(DibitError, text),
        SIZE(DibitOptions),
        FIELD(DibitOptions, n_threads),
        FIELD(DibitOptions, no_repack),
        FIELD(DibitOptions, isa_mask),
        FIELD(DibitOptions, repack_in_place),
        FIELD(DibitOptions, backend),
        SIZE(DibitImage),
        FIELD(DibitImage, data),
        FIELD(DibitImage, size),
        SIZE(DibitModelInfo),
        FIELD(DibitModelInfo, architecture),
        FIELD(DibitModelInfo, name),
        FIELD(DibitModelInfo, chat_template),
        FIELD(DibitModelInfo, n_vocab),
        FIELD(DibitModelInfo, n_ctx_train),
        FIELD(DibitModelInfo, n_layers),
        FIELD(DibitModelInfo, n_params),
        FIELD(DibitModelInfo, weight_bytes),
        FIELD(DibitModelInfo, isa),
        FIELD(DibitModelInfo, n_threads),
        SIZE(DibitSampling),
        FIELD(DibitSampling, temperature),
        FIELD(DibitSampling, top_k),
        FIELD(DibitSampling, top_p),
        FIELD(DibitSampling, min_p),
        FIELD(DibitSampling, repeat_penalty),
        FIELD(DibitSampling, repeat_last_n),
        FIELD(DibitSampling, seed),
        SIZE(DibitSessionOptions),
        FIELD(DibitSessionOptions, n_ctx),
        FIELD(DibitSessionOptions, n_batch),
        FIELD(DibitSessionOptions, cache_k),
        FIELD(DibitSessionOptions, cache_v),
        FIELD(DibitSessionOptions, cache_layers),
        FIELD(DibitSessionOptions, sampling),
        SIZE(DibitMessage),
        FIELD(DibitMessage, role),
        FIELD(DibitMessage, content),
        SIZE(DibitPiece),
        FIELD(DibitPiece, text),
        FIELD(DibitPiece, n_bytes),
        FIELD(DibitPiece, id),
        FIELD(DibitPiece, finish),
        SIZE(DibitMemory),
        FIELD(DibitMemory, weights),
        FIELD(DibitMemory, kv),
        FIELD(DibitMemory, scratch),
        FIELD(DibitMemory, n_ctx),
        FIELD(DibitMemory, n_past),
        SIZE(DibitProfile),
        FIELD(DibitProfile, n_tokens),
        FIELD(DibitProfile, total_ns),
        FIELD(DibitProfile, matmul_ns),
        FIELD(DibitProfile, attend_ns),
        SIZE(DibitTensorInfo),
        FIELD(DibitTensorInfo, name),
        FIELD(DibitTensorInfo, type),
        FIELD(DibitTensorInfo, shape),
        { NULL, 0 },
    };
    return fields;
}
