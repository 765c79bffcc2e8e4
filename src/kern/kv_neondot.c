/* kv_neondot.c - the loops over records and q4 rows for aarch64 with the dot product. */
#include "kv_neon.h"

void kern_kv_neondot(Kern *k) {
    fill_kv(k);
}
