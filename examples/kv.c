/* kv.c - the KV cache without a model: 1000 positions at 2 bits, and attention over them. */
#include <dibit.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { KV_HEADS = 2, HEADS = 8, DIM = 64, N = 1000 };

static void fill(float *x, int n) { /* stands for what a model computes */
    for (int i = 0; i < n; i++) x[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
}

int main(void) {
    static float k[KV_HEADS * DIM], v[KV_HEADS * DIM], q[HEADS * DIM], out[HEADS * DIM];
    const int one_kv[4] = { 1, KV_HEADS, 1, DIM }, one_q[4] = { 1, HEADS, 1, DIM };
    DibitKvOptions options = { .n_kv_heads = KV_HEADS, .n_heads = HEADS, .head_dim = DIM };
    options.max_positions = N;
    options.type_k = options.type_v = "k2";
    DibitKv *kv;
    DibitError err;
    if (dibit_kv_create(&kv, &options, &err) != 0) return fprintf(stderr, "%s\n", err.text), 1;
    for (int i = 0; i < N; i++) { /* a token: its key and value go in, then its queries look back */
        fill(k, KV_HEADS * DIM);
        fill(v, KV_HEADS * DIM);
        fill(q, HEADS * DIM);
        if (dibit_kv_append(kv, 0, one_kv, k, v, NULL, &err) < 0 ||
            dibit_kv_attend(kv, 0, one_q, q, NULL, 0, out, &err) < 0)
            return fprintf(stderr, "%s\n", err.text), 1;
    }
    float length = 0;
    for (int i = 0; i < HEADS * DIM; i++) length += out[i] * out[i];
    DibitKvBytes bytes;
    dibit_kv_bytes(kv, &bytes);
    printf("%d positions in %zu bytes, of f16 %d; length of the last output %.9g\n", N, bytes.rows,
           2 * 2 * KV_HEADS * DIM * N, (double)sqrtf(length));
    dibit_kv_free(&kv);
    return !(length > 0);
}
