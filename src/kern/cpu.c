/* cpu.c - which instruction sets this machine and its system offer, and the table filled from them.
 * Weakest first: each set overwrites the slots it does better. */
#include "kern.h"

#include "dibit.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* The registers the system saves on a task switch; without them a feature bit means nothing. */
static uint32_t saved_state(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

unsigned isa_detect(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };
    enum { AVX2 = 1 << 5, BMI2 = 1 << 8, VNNI = 1 << 11, BITALG = 1 << 12 | 1 << 1 }; /* and VBMI */
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    const uint32_t need = FMA | OSXSAVE | AVX | F16C;
    unsigned a, b, c, d, isa = DIBIT_ISA_SCALAR;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & need) != need) return isa;
    uint32_t saved = saved_state();
    if ((saved & 0x06) != 0x06) return isa; /* xmm, ymm */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return isa;
    if (!(b & AVX2) || !(b & BMI2)) return isa;
    isa |= DIBIT_ISA_AVX2;
    if ((saved & 0xe6) == 0xe6 && (b & avx512) == avx512 && (c & VNNI)) /* also masks, zmm */
        isa |= DIBIT_ISA_AVX512VNNI | ((c & BITALG) == BITALG ? DIBIT_ISA_AVX512BITALG : 0);
    return isa;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#endif

unsigned isa_detect(void) {
    unsigned isa = DIBIT_ISA_SCALAR | DIBIT_ISA_NEON;
#if defined(__linux__)
    if (getauxval(AT_HWCAP) & 1u << 20) isa |= DIBIT_ISA_NEONDOT; /* HWCAP_ASIMDDP */
#endif
    return isa;
}
#elif defined(__wasm_simd128__)
unsigned isa_detect(void) { /* a module with instructions that its host lacks does not load */
    return DIBIT_ISA_SCALAR | DIBIT_ISA_SIMD128;
}
#else
unsigned isa_detect(void) {
    return DIBIT_ISA_SCALAR;
}
#endif

const char *isa_name(unsigned mask) {
    if (mask & DIBIT_ISA_AVX512BITALG) return "avx512bitalg";
    if (mask & DIBIT_ISA_AVX512VNNI) return "avx512vnni";
    if (mask & DIBIT_ISA_AVX2) return "avx2";
    if (mask & DIBIT_ISA_NEONDOT) return "neondot";
    if (mask & DIBIT_ISA_NEON) return "neon";
#if defined(__wasm_relaxed_simd__)
    if (mask & DIBIT_ISA_SIMD128) return "relaxed";
#endif
    if (mask & DIBIT_ISA_SIMD128) return "simd128";
    return "scalar";
}

void kern_init(Kern *k, unsigned mask) {
    unsigned isa = isa_detect() & mask;
    kern_scalar(k);
    kern_float_scalar(k);
    kern_kv_scalar(k);
    kern_trellis_scalar(k);
    kern_encode_scalar(k);
#if defined(__x86_64__)
    if (isa & DIBIT_ISA_AVX2) {
        kern_avx2(k);
        kern_float_avx2(k);
        kern_kv_avx2(k);
        kern_trellis_avx2(k);
        kern_encode_avx2(k);
    }
    if (isa & DIBIT_ISA_AVX512VNNI) {
        kern_avx512vnni(k);
        kern_float_avx512(k);
        kern_trellis_avx512vnni(k);
    }
    if (isa & DIBIT_ISA_AVX512BITALG) {
        kern_kv_avx512bitalg(k);
        kern_trellis_avx512bitalg(k);
    }
#elif defined(__aarch64__)
    if (isa & DIBIT_ISA_NEON) {
        kern_neon(k);
        kern_float_neon(k);
        kern_kv_neon(k);
        kern_trellis_neon(k);
        kern_encode_neon(k);
    }
    if (isa & DIBIT_ISA_NEONDOT) {
        kern_neondot(k);
        kern_kv_neondot(k);
        kern_trellis_neondot(k);
    }
#elif defined(__wasm_simd128__)
    if (isa & DIBIT_ISA_SIMD128) {
        kern_simd128(k);
        kern_float_simd128(k);
        kern_kv_simd128(k);
        kern_rows_simd128(k);
        kern_trellis_simd128(k);
    }
#endif
    (void)isa;
}
