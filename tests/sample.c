/* sample.c - the sampler: which tokens may be drawn, how often, and that a seed means one text. */
#include "tiny.h"

#include "sample.h"

enum { N = 64 };

static Sampler sampler_of(DibitSampling cfg) {
    Sampler s;
    DibitError err;
    if (sampler_create(&s, N, &cfg, NULL, &err) != 0) die("%s", err.text);
    return s;
}

/* Logits whose softmax at temperature 1 is 1/2, 1/4, 1/8, ... for ids 5, 6, 7, ...; 0 to 4 last. */
static void halves(float *logits) {
    for (int i = 0; i < N; i++) logits[i] = (float)(-log(2) * ((i + N - 5) % N));
}

/* Draws often and returns how many different ids came; counts gets how often each. */
static int draw(Sampler *s, const float *logits, int times, int *counts) {
    int different = 0;
    memset(counts, 0, N * sizeof *counts);
    for (int i = 0; i < times; i++) {
        int32_t id = sampler_next(s, logits, NULL, 0);
        assert_in_range(id, 0, N - 1);
        different += counts[id]++ == 0;
    }
    return different;
}

static void greedy_takes_the_first_best(void **state) {
    (void)state;
    Sampler s = sampler_of((DibitSampling){ 0 });
    float logits[N] = { 0 };
    assert_int_equal(sampler_next(&s, logits, NULL, 0), 0);
    logits[9] = logits[30] = 2;
    assert_int_equal(sampler_next(&s, logits, NULL, 0), 9);
    logits[40] = 2.5f;
    logits[3] = NAN;
    assert_int_equal(sampler_next(&s, logits, NULL, 0), 40);
    logits[50] = INFINITY;
    assert_int_equal(sampler_next(&s, logits, NULL, 0), 50);
    for (int i = 0; i < N; i++) logits[i] = NAN;
    assert_int_equal(sampler_next(&s, logits, NULL, 0), 0);
    sampler_free(&s);
}

static void filters_keep_the_front(void **state) {
    (void)state;
    const struct {
        DibitSampling cfg;
        int different;
    } cases[] = {
        { { .temperature = 1, .top_k = 1 }, 1 },
        { { .temperature = 1, .top_k = 3 }, 3 },
        { { .temperature = 1, .top_p = 0.49f }, 1 },
        { { .temperature = 1, .top_p = 0.74f }, 2 },
        { { .temperature = 1, .top_p = 0.76f }, 3 },
        { { .temperature = 1, .min_p = 0.24f }, 3 },
        { { .temperature = 1, .min_p = 0.26f }, 2 },
        { { .temperature = 1, .min_p = 1 }, 1 },
        { { .temperature = 100, .top_k = 7, .top_p = 0.9f }, 4 }, /* the temperature comes last */
        { { .temperature = 1, .top_k = 2, .top_p = 0.6f }, 1 },   /* of what top-k left: 2/3, 1/3 */
        { { .temperature = 1, .top_k = 2, .top_p = 0.7f }, 2 },
        { { .temperature = 1000 }, N },
        { { .temperature = 1000, .top_k = N }, N },
        { { .temperature = 1000, .top_k = 10 * N, .top_p = 1 }, N },
        { { .temperature = 1e-6f }, 1 },
    };
    float logits[N];
    int counts[N];
    halves(logits);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Sampler s = sampler_of(cases[i].cfg);
        int n = draw(&s, logits, 4000, counts);
        if (n != cases[i].different) die("case %zu: %d tokens", i, n);
        for (int k = 0; k < n && n < N; k++) assert_true(counts[5 + k] > 0);
        sampler_free(&s);
    }
}

static void draws_follow_the_probabilities(void **state) {
    (void)state;
    static const DibitSampling ways[] = { { .temperature = 1, .seed = 3 },
                                          { .temperature = 1, .seed = 4, .top_k = 40 },
                                          { .temperature = 1, .seed = 5, .min_p = 1e-6f },
                                          { .temperature = 1, .seed = 6, .top_p = 0.9999f } };
    enum { TIMES = 100000 };
    float logits[N];
    int counts[N];
    halves(logits);
    for (size_t w = 0; w < ARRAY_LEN(ways); w++) {
        Sampler s = sampler_of(ways[w]);
        draw(&s, logits, TIMES, counts);
        for (int k = 0; k < 8; k++) {
            double p = pow(0.5, k + 1), sigma = sqrt(TIMES * p * (1 - p));
            assert_true(fabs(counts[5 + k] - TIMES * p) < 5 * sigma);
        }
        sampler_free(&s);
    }
}

static void the_penalty_counts_once(void **state) {
    (void)state;
    Sampler s = sampler_of((DibitSampling){ .repeat_penalty = 2, .repeat_last_n = 3 });
    float logits[N];
    for (int i = 0; i < N; i++) logits[i] = -8;
    logits[10] = 6; /* 3 when repeated, however often */
    logits[11] = 2;
    const int32_t often[] = { 10, 10, 10 }, old[] = { 10, 1, 2, 3 }, wild[] = { -1, N, 10 };
    assert_int_equal(sampler_next(&s, logits, often, 3), 10);
    logits[11] = 4;
    assert_int_equal(sampler_next(&s, logits, often, 3), 11);
    assert_int_equal(sampler_next(&s, logits, old, 4), 10); /* out of the window */
    assert_int_equal(sampler_next(&s, logits, wild, 3), 11);
    for (int i = 0; i < N; i++) logits[i] = -8;
    logits[10] = -1; /* -2 when repeated */
    logits[11] = -1.5f;
    assert_int_equal(sampler_next(&s, logits, often, 1), 11);
    sampler_free(&s);
}

/* The same numbers on every machine: nothing here comes from the C library's exp or rand. */
static void a_seed_is_a_text(void **state) {
    (void)state;
    static const int32_t golden[] = { /* worked out apart */ 3,
                                      57,
                                      31,
                                      50,
                                      19,
                                      8,
                                      12,
                                      60,
                                      50,
                                      55,
                                      12,
                                      43,
                                      62,
                                      62,
                                      10,
                                      12 };
    float logits[N];
    for (int i = 0; i < N; i++) logits[i] = (float)((i * 37) % 64) / 16;
    DibitSampling cfg = { .temperature = 0.9f, .top_p = 0.95f, .top_k = 50, .seed = 42 };
    Sampler s = sampler_of(cfg);
    for (size_t i = 0; i < ARRAY_LEN(golden); i++) {
        int32_t id = sampler_next(&s, logits, NULL, 0);
        if (id != golden[i]) die("draw %zu: %d", i, id);
    }
    assert_int_equal(sampler_set(&s, &cfg, NULL), 0); /* starts again */
    assert_int_equal(sampler_next(&s, logits, NULL, 0), golden[0]);
    sampler_free(&s);
}

static int by_logit(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* From the largest logits alone the same token is drawn, whatever cuts them. */
static void the_largest_are_enough(void **state) {
    (void)state;
    static const DibitSampling ways[] = { { .temperature = 1, .top_k = 40 },
                                          { .temperature = 0.7f, .top_k = 1 },
                                          { .temperature = 2, .top_k = 40, .top_p = 0.9f },
                                          { .temperature = 1, .top_k = 12, .min_p = 0.2f },
                                          { .temperature = 1, .top_k = 1000, .top_p = 0.8f } };
    for (size_t w = 0; w < ARRAY_LEN(ways); w++) {
        Sampler all = sampler_of(ways[w]), some = sampler_of(ways[w]);
        int top = sampler_top(&all);
        assert_int_equal(top, MIN(ways[w].top_k, N));
        for (int draw = 0; draw < 200; draw++) {
            float logits[N];
            Candidate c[N];
            for (int i = 0; i < N; i++) {
                logits[i] = (float)((i * 37 + draw * draw) % 23) / 4; /* many are equal */
                c[i] = (Candidate){ logits[i], i };
            }
            qsort(c, N, sizeof *c, by_logit);
            int32_t id = sampler_next(&all, logits, NULL, 0);
            assert_int_equal(sampler_next_of(&some, c, MIN(top + draw % 3, N)), id);
        }
        sampler_free(&all);
        sampler_free(&some);
    }
    static const DibitSampling others[] = { { .temperature = 1 },
                                            { .temperature = 0, .top_k = 5 },
                                            { 1, 40, 0, 0, 1.1f, 0, 0 } };
    for (size_t w = 0; w < ARRAY_LEN(others); w++) {
        Sampler s = sampler_of(others[w]);
        assert_int_equal(sampler_top(&s), 0);
        sampler_free(&s);
    }
}

static void nan_is_never_drawn(void **state) {
    (void)state;
    static const DibitSampling ways[] = { { .temperature = 1 },
                                          { .temperature = 1, .top_k = 5 },
                                          { .temperature = 1, .top_p = 0.99f, .min_p = 0.01f } };
    float logits[N];
    int counts[N];
    for (size_t w = 0; w < ARRAY_LEN(ways); w++) {
        Sampler s = sampler_of(ways[w]);
        halves(logits);
        logits[5] = NAN;
        logits[6] = -INFINITY;
        draw(&s, logits, 2000, counts);
        assert_true(counts[5] == 0 && counts[6] == 0 && counts[7] > 800);
        logits[8] = INFINITY;
        draw(&s, logits, 100, counts);
        assert_int_equal(counts[8], 100);
        for (int i = 0; i < N; i++) logits[i] = NAN;
        draw(&s, logits, 100, counts); /* something, and no crash */
        sampler_free(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_first_best),
        cmocka_unit_test(filters_keep_the_front),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(the_penalty_counts_once),
        cmocka_unit_test(a_seed_is_a_text),
        cmocka_unit_test(the_largest_are_enough),
        cmocka_unit_test(nan_is_never_drawn),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
