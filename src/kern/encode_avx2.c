/* encode_avx2.c - the inner loops of the encoder of t2 and t3 with AVX2: 32 next states at a time,
 * where every state is tried for two searches at once. (512 bits would not be faster: they have
 * half as many byte shuffles a cycle. Nor is leaving off, with states in the order of their cost,
 * where none can be better any more: nine of ten have been tried by then.) */
#include "kern.h"

#include <immintrin.h>

static inline __m256i load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline void store(void *p, __m256i x) {
    _mm256_storeu_si256((__m256i *)p, x);
}

static inline uint32_t up_to(__m256i x, __m256i limit) {
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(x, limit), x));
}

static int limit_of(const uint8_t *from, int beam) {
    int below = -1; /* at most this: too few */
    for (int bit = 128; bit; bit /= 2) {
        int count = 0;
        __m256i limit = _mm256_set1_epi8((char)(below + bit));
        for (int v = 0; v < 8; v++) count += __builtin_popcount(up_to(load(from + 32 * v), limit));
        below += count < beam ? bit : 0;
    }
    return below + 1;
}

/* The states that are tried. */
static int list_states(uint8_t state[256], const uint8_t *from, int beam) {
    int limit = limit_of(from, beam), n = 0;
    for (int v = 0; v < 8; v++) {
        uint32_t bits = up_to(load(from + 32 * v), _mm256_set1_epi8((char)limit));
        for (; bits; bits &= bits - 1) state[n++] = (uint8_t)(32 * v + __builtin_ctz(bits));
    }
    return n;
}

static inline void load_lut(__m256i l[4], const uint8_t *lut) {
    for (int i = 0; i < 4; i++)
        l[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(lut + 16 * i)));
}

static inline __m256i cost(const __m256i lut[4], __m256i p0, __m256i p1, __m256i p2, __m256i p3) {
    __m256i a = _mm256_adds_epu8(_mm256_shuffle_epi8(lut[0], p0), _mm256_shuffle_epi8(lut[1], p1));
    __m256i b = _mm256_adds_epu8(_mm256_shuffle_epi8(lut[2], p2), _mm256_shuffle_epi8(lut[3], p3));
    return _mm256_adds_epu8(a, b);
}

static inline __m256i entry_cost(const __m256i lut[4], const uint8_t *entry) {
    return cost(lut, load(entry), load(entry + 32), load(entry + 64), load(entry + 96));
}

/* 32 next states of one search from the states of a list. */
static void group(uint8_t *to, const uint8_t *from, const uint8_t *state, int n, const uint8_t *lut,
                  const uint8_t *table) {
    __m256i l[4], m = _mm256_set1_epi8(-1);
    load_lut(l, lut);
    for (int k = 0; k < n; k++) {
        __m256i before = _mm256_set1_epi8((char)from[state[k]]);
        m = _mm256_min_epu8(
            m, _mm256_adds_epu8(entry_cost(l, table + TRELLIS_ENTRY * state[k]), before));
    }
    store(to, m);
}

/* 32 next states of two searches from all states. */
static void group_pair(uint8_t *to, const uint8_t *from, size_t stride, const uint8_t *lut,
                       const uint8_t *table) {
    __m256i l[4], l2[4], m = _mm256_set1_epi8(-1), m2 = m;
    load_lut(l, lut);
    load_lut(l2, lut + 64);
    for (size_t a = 0; a < 256; a++, table += TRELLIS_ENTRY) {
        __m256i p0 = load(table), p1 = load(table + 32), p2 = load(table + 64),
                p3 = load(table + 96);
        __m256i before = _mm256_set1_epi8((char)from[a]);
        __m256i before2 = _mm256_set1_epi8((char)from[stride + a]);
        m = _mm256_min_epu8(m, _mm256_adds_epu8(cost(l, p0, p1, p2, p3), before));
        m2 = _mm256_min_epu8(m2, _mm256_adds_epu8(cost(l2, p0, p1, p2, p3), before2));
    }
    store(to, m);
    store(to + stride, m2);
}

/* The least of 32 bytes, in all of them. */
static __m256i least_of(__m256i m) {
    __m128i x = _mm_min_epu8(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    x = _mm_minpos_epu16(_mm_min_epu16(_mm_unpacklo_epi8(x, _mm_setzero_si128()),
                                       _mm_unpackhi_epi8(x, _mm_setzero_si128())));
    return _mm256_set1_epi8((char)_mm_extract_epi8(x, 0));
}

static void subtract_least(uint8_t *to) {
    __m256i m = load(to);
    for (int v = 1; v < 8; v++) m = _mm256_min_epu8(m, load(to + 32 * v));
    m = least_of(m);
    for (int v = 0; v < 8; v++) store(to + 32 * v, _mm256_sub_epi8(load(to + 32 * v), m));
}

static void trellis_step TRELLIS_STEP_ARGS {
    enum { GROUP = 256 * TRELLIS_ENTRY };
    for (; n > 1 && beam >= 256; n -= 2, to += 2 * stride, from += 2 * stride, lut += 2 * 64) {
        for (int g = 0; g < 8; g++) group_pair(to + 32 * g, from, stride, lut, table + GROUP * g);
        subtract_least(to);
        subtract_least(to + stride);
    }
    for (; n > 0; n--, to += stride, from += stride, lut += 64) {
        uint8_t state[256];
        int n_states = list_states(state, from, beam);
        for (int g = 0; g < 8; g++)
            group(to + 32 * g, from, state, n_states, lut, table + GROUP * g);
        subtract_least(to);
    }
}

static int trellis_back(const uint8_t *from, const uint8_t *lut, const uint8_t *table) {
    __m256i l[4], c[8], m = _mm256_set1_epi8(-1);
    load_lut(l, lut);
    for (int v = 0; v < 8; v++) {
        c[v] = _mm256_adds_epu8(entry_cost(l, table + v * TRELLIS_ENTRY), load(from + 32 * v));
        m = _mm256_min_epu8(m, c[v]);
    }
    m = least_of(m);
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
