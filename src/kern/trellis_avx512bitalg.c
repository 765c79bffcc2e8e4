/* trellis_avx512bitalg.c - products with t2 and t3 weights with AVX-512 VNNI, BITALG and VBMI (Ice
 * Lake, Zen 4 and after). */
#include "trellis_avx512.h"

void kern_trellis_avx512bitalg(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
}
