/* safetensors.c - fuzz target: any bytes as a .safetensors image. What opens must be sound: the
 * tensors are sorted by name, fill the file to its end, and every value can be read. */
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok) {
    if (!ok) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    SafeTensors *st;
    DibitError err = { 0 };
    size_t total = 0;
    if (safetensors_open_memory(&st, data, size, &err) != 0) {
        must(!st && err.text[0]);
        return 0;
    }
    for (int i = 0; i < safetensors_count(st); i++) {
        const StTensor *t = safetensors_tensor(st, i);
        size_t n = 1;
        must(i == 0 || strcmp(safetensors_tensor(st, i - 1)->name, t->name) < 0);
        must(safetensors_find(st, t->name) == t);
        must(t->data >= data && t->data + t->n_bytes <= data + size);
        for (int d = 0; d < ST_DIMS; d++) n *= (size_t)t->shape[d];
        for (size_t k = 0; k < n; k += 64) {
            float v[64];
            safetensors_read(t, k, MIN(n - k, 64), v);
        }
        total += t->n_bytes;
    }
    must(total == size - 8 - (size_t)load_u64(data));
    safetensors_close(&st);
    return 0;
}
