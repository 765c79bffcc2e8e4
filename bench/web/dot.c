/* dot.c - the rate that kernels are held against: the relaxed byte dot on 4 KiB that stay in the first
 * cache, four sums at a time, nothing else. */
#include <stdint.h>
#include <wasm_simd128.h>

__attribute__((export_name("dot"))) int dot(int rounds);
int dot(int rounds) {
    static int8_t a[4096];
    static uint8_t w[4096];
    v128_t s[4];
    for (int i = 0; i < 4; i++) s[i] = wasm_i32x4_const_splat(0);
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < 4096; i += 64)
            for (int j = 0; j < 4; j++)
                s[j] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_v128_load(a + i + 16 * j),
                                                              wasm_v128_load(w + i + 16 * j), s[j]);
    v128_t t = wasm_i32x4_add(wasm_i32x4_add(s[0], s[1]), wasm_i32x4_add(s[2], s[3]));
    return wasm_i32x4_extract_lane(t, 0) + wasm_i32x4_extract_lane(t, 3);
}
