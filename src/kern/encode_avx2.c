/* encode_avx2.c - the inner loops of the encoder of t2 and t3 with AVX2: 32 next states at a time.
 * States are tried in the order of their cost; where no state that is left could lower one of the
 * 32, the rest is skipped, which changes nothing. */
#include "kern.h"

#include <immintrin.h>
#include <string.h>

enum { CLASS = 2, CLASSES = 24, CHUNK = 8 };

/* States in classes of rising cost, CLASS wide and a last one, costs spread to four bytes, and at
 * each the cost that no state from there on is below. */
typedef struct Order {
    uint32_t cost[256 + CHUNK], entry[256 + CHUNK];
    uint8_t floor[256 + CHUNK + 1];
    int n;
} Order;

static inline __m256i load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline uint32_t up_to(__m256i x, __m256i limit) {
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(x, limit), x));
}

static int limit_of(const __m256i *x, int beam) {
    int below = -1; /* at most this: too few */
    for (int bit = 128; bit; bit /= 2) {
        int count = 0;
        __m256i limit = _mm256_set1_epi8((char)(below + bit));
        for (int v = 0; v < 8; v++) count += __builtin_popcount(up_to(x[v], limit));
        below += count < beam ? bit : 0;
    }
    return below + 1;
}

static void sort(Order *o, const uint8_t *from, int beam) {
    __m256i x[8];
    uint32_t done[8] = { 0 };
    for (int v = 0; v < 8; v++) x[v] = load(from + 32 * v);
    int limit = beam >= 256 ? 255 : limit_of(x, beam), n = 0;
    for (int k = 0, lo = 0; k <= CLASSES && lo <= limit; k++, lo += CLASS) {
        int hi = k == CLASSES || lo + CLASS - 1 > limit ? limit : lo + CLASS - 1, first = n;
        for (int v = 0; v < 8; v++) {
            uint32_t in = up_to(x[v], _mm256_set1_epi8((char)hi));
            uint32_t bits = in & ~done[v];
            done[v] = in;
            for (; bits; bits &= bits - 1) {
                uint32_t a = (uint32_t)(32 * v) + (uint32_t)__builtin_ctz(bits);
                o->entry[n] = a * TRELLIS_ENTRY;
                o->cost[n++] = from[a] * 0x01010101u;
            }
        }
        memset(o->floor + first, lo, (size_t)(n - first));
    }
    for (int k = 0; k < CHUNK; k++) { /* the last chunk is filled up with what changes nothing */
        o->entry[n + k] = o->entry[0];
        o->cost[n + k] = UINT32_MAX;
    }
    memset(o->floor + n, 255, CHUNK + 1);
    o->n = n;
}

static inline __m256i cost(const __m256i lut[4], const uint8_t *entry) {
    __m256i a = _mm256_shuffle_epi8(lut[0], load(entry));
    __m256i b = _mm256_shuffle_epi8(lut[1], load(entry + 32));
    __m256i c = _mm256_shuffle_epi8(lut[2], load(entry + 64));
    __m256i d = _mm256_shuffle_epi8(lut[3], load(entry + 96));
    return _mm256_adds_epu8(_mm256_adds_epu8(a, b), _mm256_adds_epu8(c, d));
}

static inline void load_lut(__m256i l[4], const uint8_t *lut) {
    for (int i = 0; i < 4; i++)
        l[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(lut + 16 * i)));
}

/* 32 next states. */
static inline __m256i group(const Order *o, const uint8_t *lut, const uint8_t *table) {
    __m256i l[4], m = _mm256_set1_epi8(-1);
    load_lut(l, lut);
    for (int k = 0; k < o->n; k += CHUNK) {
        for (int i = 0; i < CHUNK; i++)
            m = _mm256_min_epu8(m, _mm256_adds_epu8(cost(l, table + o->entry[k + i]),
                                                    _mm256_set1_epi32((int)o->cost[k + i])));
        __m256i floor = _mm256_set1_epi8((char)o->floor[k + CHUNK]);
        if (up_to(m, floor) == UINT32_MAX) break;
    }
    return m;
}

static void subtract_least(uint8_t *to) {
    __m256i m = load(to);
    for (int v = 1; v < 8; v++) m = _mm256_min_epu8(m, load(to + 32 * v));
    __m128i x = _mm_min_epu8(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    x = _mm_minpos_epu16(_mm_min_epu16(_mm_unpacklo_epi8(x, _mm_setzero_si128()),
                                       _mm_unpackhi_epi8(x, _mm_setzero_si128())));
    m = _mm256_set1_epi8((char)_mm_extract_epi8(x, 0));
    for (int v = 0; v < 8; v++)
        _mm256_storeu_si256((__m256i *)(to + 32 * v), _mm256_sub_epi8(load(to + 32 * v), m));
}

static void trellis_step TRELLIS_STEP_ARGS {
    enum { MOST = 8 };
    Order order[MOST];
    for (; n > 0; n -= MOST, to += MOST * stride, from += MOST * stride, lut += MOST * 64) {
        int many = n < MOST ? n : MOST;
        for (int k = 0; k < many; k++) sort(&order[k], from + (size_t)k * stride, beam);
        for (int g = 0; g < 8; g++) /* a part of the table stays in the cache for all searches */
            for (int k = 0; k < many; k++)
                _mm256_storeu_si256(
                    (__m256i *)(to + (size_t)k * stride + 32 * g),
                    group(&order[k], lut + 64 * k, table + (size_t)g * 256 * TRELLIS_ENTRY));
        for (int k = 0; k < many; k++) subtract_least(to + (size_t)k * stride);
    }
}

static int trellis_back(const uint8_t *from, const uint8_t *lut, const uint8_t *table) {
    __m256i l[4], c[8], m = _mm256_set1_epi8(-1);
    load_lut(l, lut);
    for (int v = 0; v < 8; v++) {
        c[v] = _mm256_adds_epu8(cost(l, table + v * TRELLIS_ENTRY), load(from + 32 * v));
        m = _mm256_min_epu8(m, c[v]);
    }
    __m128i x = _mm_min_epu8(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    x = _mm_minpos_epu16(_mm_min_epu16(_mm_unpacklo_epi8(x, _mm_setzero_si128()),
                                       _mm_unpackhi_epi8(x, _mm_setzero_si128())));
    m = _mm256_set1_epi8((char)_mm_extract_epi8(x, 0));
    for (int v = 0; v < 8; v++) {
        uint32_t bits = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(c[v], m));
        if (bits) return 32 * v + __builtin_ctz(bits);
    }
    return 0;
}

void kern_encode_avx2(Kern *k) {
    k->trellis_step = trellis_step;
    k->trellis_back = trellis_back;
}
