/* neondot.c - the int8 products with the sdot of ARMv8.2. */
#include "neon_mul.h"

void kern_neondot(Kern *k) {
    fill_mul(k);
}
