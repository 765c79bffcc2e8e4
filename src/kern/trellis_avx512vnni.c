/* trellis_avx512vnni.c - products with t2 and t3 weights with AVX-512 VNNI alone (Cascade Lake). */
#include "trellis_avx512.h"

void kern_trellis_avx512vnni(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
}
