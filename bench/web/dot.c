/* dot.c - the rates that kernels are held against: the relaxed byte dot on 4 KiB that stay in the
 * first cache, into four sums or into one, nothing else. */
#include <stdint.h>
#include <wasm_simd128.h>

static int8_t a[4096];
static uint8_t w[4096];

static inline __attribute__((always_inline)) int dots(int rounds, const int n) {
    v128_t s[4], sum;
    for (int i = 0; i < 4; i++) s[i] = wasm_i32x4_const_splat(0);
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < 4096; i += 64)
            for (int j = 0; j < 4; j++)
                s[j % n] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(
                    wasm_v128_load(a + i + 16 * j), wasm_v128_load(w + i + 16 * j), s[j % n]);
    sum = wasm_i32x4_add(wasm_i32x4_add(s[0], s[1]), wasm_i32x4_add(s[2], s[3]));
    return wasm_i32x4_extract_lane(sum, 0) + wasm_i32x4_extract_lane(sum, 3);
}

__attribute__((export_name("dot"))) int dot(int rounds);
int dot(int rounds) {
    return dots(rounds, 4);
}
__attribute__((export_name("dot_chain"))) int dot_chain(int rounds);
int dot_chain(int rounds) {
    return dots(rounds, 1);
}
