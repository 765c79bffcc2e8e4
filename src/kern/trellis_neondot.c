/* trellis_neondot.c - products with t2 and t3 weights with the sdot of ARMv8.2. */
#include "trellis_neon.h"

void kern_trellis_neondot(Kern *k) {
    k->mul_t2 = mul_t2;
    k->mul_t3 = mul_t3;
}
