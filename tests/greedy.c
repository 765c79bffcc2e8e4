/* greedy.c - every cache type on every instruction set of this machine, in decode and in prefill:
 * the greedy tokens and the logits' bits of plain C. Also a program of its own, without cmocka, so
 * that tests/greedy.sh can build it for another machine.
 * usage: test_greedy [all] | MODEL PROMPTS TOKENS [ISA]; without a model on the base model of
 * ../shared, or on the one in models/; without "all" few prompts, and plain C a part of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "dibit.h"

enum { MAX_PROMPTS = 32, MAX_TOKENS = 64, N_CTX = 192 };

static const struct {
    unsigned mask;
    const char *name;
} isas[] = {
    { DIBIT_ISA_AVX2, "avx2" },
    { DIBIT_ISA_AVX2 | DIBIT_ISA_AVX512VNNI, "avx512vnni" },
    { DIBIT_ISA_AVX2 | DIBIT_ISA_AVX512VNNI | DIBIT_ISA_AVX512BITALG, "avx512bitalg" },
    { DIBIT_ISA_NEON, "neon" },
    { DIBIT_ISA_NEON | DIBIT_ISA_NEONDOT, "neondot" },
    { DIBIT_ISA_SCALAR, "scalar" },
};

/* Few sinks and no window, or a short one, so that short texts read records. */
static const struct {
    const char *k, *v;
    int sinks, window;
} settings[] = {
    { "f16", "f16", 0, 0 }, { "q8", "q8", 0, 0 },   { "q4", "q4", 0, 0 },
    { "k3", "k3", -1, -1 }, { "k2", "k2", -1, -1 }, { "k3", "k2", 2, 16 },
};

typedef struct Prompt {
    char text[200];
    int32_t ids[N_CTX];
    size_t n_prompt, n; /* tokens: of the prompt, with the continuation */
} Prompt;

static Prompt prompts[MAX_PROMPTS];
static int n_prompts = 0, n_tokens = 16;
static DibitError err;

static void ok(int64_t r) {
    if (r >= 0) return;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

/* The strings of a JSON list, which have no escapes. */
static void read_prompts(const char *path) {
    static const char *const own[] = { "Once upon a time", "The history of the Roman Empire",
                                       "A volcano is", "In 1969, two astronauts" };
    FILE *f = fopen(path, "r");
    char line[400];
    while (f && n_prompts < MAX_PROMPTS && fgets(line, sizeof line, f)) {
        const char *first = strchr(line, '"'), *last = strrchr(line, '"');
        if (!first || last == first) continue;
        snprintf(prompts[n_prompts++].text, sizeof prompts[0].text, "%.*s", (int)(last - first - 1),
                 first + 1);
    }
    if (f) fclose(f);
    for (size_t i = 0; n_prompts == 0 || (!f && i < ARRAY_LEN(own)); i++)
        snprintf(prompts[n_prompts++].text, sizeof prompts[0].text, "%s", own[i]);
}

static DibitSession *open_session(DibitEngine *e, int setting) {
    DibitSession *s;
    DibitSessionOptions opt = { .n_ctx = N_CTX, .cache_k = settings[setting].k };
    opt.cache_v = settings[setting].v;
    opt.cache_sinks = settings[setting].sinks;
    opt.cache_window = settings[setting].window;
    ok(dibit_session_create(&s, e, &opt, &err));
    return s;
}

static bool wrong(const char *isa, int setting, const Prompt *p, const char *how, size_t at) {
    printf("FAIL %s, %s/%s, \"%s\": %s differs at token %zu\n", isa, settings[setting].k,
           settings[setting].v, p->text, how, at);
    return false;
}

/* Token by token: fills in the continuation, or compares with it. */
static bool decode(DibitEngine *e, const char *isa, int setting, Prompt *p, bool first) {
    DibitSession *s = open_session(e, setting);
    DibitPiece piece;
    size_t n = p->n_prompt;
    bool good = true;
    ok(dibit_sync(s, p->ids, n, &err));
    while (good && n < p->n_prompt + (size_t)n_tokens) {
        int more = dibit_next(s, &piece, &err);
        ok(more);
        if (first)
            p->ids[n] = piece.id;
        else if (p->ids[n] != piece.id)
            good = wrong(isa, setting, p, "decode", n);
        n++;
        if (!more) break;
    }
    if (first) p->n = n;
    dibit_session_free(&s);
    return good;
}

/* All tokens at one go: the best ones are the continuation. Adds the logits to *hash. */
static bool prefill(DibitEngine *e, const char *isa, int setting, const Prompt *p, int n_vocab,
                    uint64_t *hash) {
    DibitSession *s = open_session(e, setting);
    float *logits = malloc(p->n * (size_t)n_vocab * sizeof *logits);
    bool good = logits != NULL;
    if (good) ok(dibit_forward(s, p->ids, p->n - 1, logits, &err));
    for (size_t i = p->n_prompt; good && i < p->n; i++) {
        const float *x = logits + (i - 1) * (size_t)n_vocab;
        int best = 0;
        for (int k = 1; k < n_vocab; k++)
            if (x[k] > x[best]) best = k;
        if (best != p->ids[i]) good = wrong(isa, setting, p, "prefill", i);
    }
    if (good) *hash = hash64(*hash, logits, (p->n - 1) * (size_t)n_vocab * sizeof *logits);
    free(logits);
    dibit_session_free(&s);
    return good;
}

typedef struct Part { /* of the prompts */
    int first, n, n_decode;
} Part;

/* The part of the prompts that one setting has in plain C: all settings together have them all. */
static Part part_of(int setting, bool slow) {
    if (!slow) return (Part){ 0, n_prompts, n_prompts };
    int n = (n_prompts + (int)ARRAY_LEN(settings) - 1) / (int)ARRAY_LEN(settings);
    int first = setting * n < n_prompts ? setting * n : 0;
    return (Part){ first, n < n_prompts - first ? n : n_prompts - first, 1 };
}

static Prompt texts[ARRAY_LEN(settings)][MAX_PROMPTS]; /* with what the first set wrote */
static uint64_t hashes[ARRAY_LEN(settings)][MAX_PROMPTS];

static bool run_prompt(DibitEngine *e, int setting, int k, bool decodes, bool first,
                       uint64_t *all) {
    DibitModelInfo info;
    Prompt *p = &texts[setting][k];
    uint64_t hash = 0;
    dibit_model_info(e, &info);
    if (first) {
        *p = prompts[k];
        int64_t n = dibit_tokenize(e, p->text, strlen(p->text), DIBIT_ADD_BOS, p->ids,
                                   N_CTX - MAX_TOKENS, &err);
        ok(n);
        p->n_prompt = (size_t)n;
    }
    if (decodes && !decode(e, info.isa, setting, p, first)) return false;
    if (!prefill(e, info.isa, setting, p, info.n_vocab, &hash)) return false;
    if (first) hashes[setting][k] = hash;
    *all = hash64(*all, &hash, sizeof hash);
    return hashes[setting][k] == hash || wrong(info.isa, setting, p, "a logit", 0);
}

static bool run_isa(DibitEngine *e, const char *isa, bool slow, bool first) {
    uint64_t start = clock_ns();
    for (int t = 0; t < (int)ARRAY_LEN(settings); t++) {
        Part part = part_of(t, slow);
        uint64_t all = 0;
        for (int k = 0; k < part.n; k++)
            if (!run_prompt(e, t, part.first + k, k < part.n_decode, first, &all)) return false;
        printf("%s %s/%s, %d prompts, %d of them token by token: logits %016llx\n", isa,
               settings[t].k, settings[t].v, part.n, part.n_decode, (unsigned long long)all);
    }
    fprintf(stderr, "%s: %.1f s\n", isa, (double)(clock_ns() - start) * 1e-9);
    return true;
}

/* On all instruction sets that are there, or one, which may be the "first". */
static bool run(const char *model, bool all_in_c, const char *only) {
    int n = 0;
    bool good = true;
    for (size_t i = 0; i < ARRAY_LEN(isas) && good; i++) {
        DibitEngine *e;
        DibitModelInfo info;
        DibitOptions opt = { .isa_mask = isas[i].mask };
        bool any = !only || (strcmp(only, "first") == 0 && n == 0);
        if (!any && strcmp(only, isas[i].name) != 0) continue;
        ok(dibit_open(&e, model, &opt, &err));
        dibit_model_info(e, &info);
        bool slow = isas[i].mask == DIBIT_ISA_SCALAR && n > 0 && !all_in_c;
        if (strcmp(info.isa, isas[i].name) == 0) good = run_isa(e, info.isa, slow, n++ == 0);
        dibit_close(&e);
    }
    return good && n > 0;
}

int main(int argc, char **argv) {
    if (argc == 4 || argc == 5) {
        read_prompts("");
        n_prompts = MIN(n_prompts, atoi(argv[2]));
        n_tokens = MIN(atoi(argv[3]), MAX_TOKENS);
        return run(argv[1], true, argc == 5 ? argv[4] : NULL) ? 0 : 1;
    }
#ifdef PROGRAM
    const char *base = SOURCE_DIR "/../shared/models/base-34m";
    char command[2000], model[600];
    FILE *config = fopen(SOURCE_DIR "/../shared/models/base-34m/config.json", "r");
    read_prompts(SOURCE_DIR "/../shared/text/prompts.json");
    snprintf(model, sizeof model, "%s", SOURCE_DIR "/models/dibit-34m.gguf");
    if (config) {
        fclose(config);
        snprintf(model, sizeof model, "%s/greedy-base.gguf", BUILD_DIR);
        snprintf(command, sizeof command, "'%s' convert '%s' -o '%s' --type bf16 2>&1", PROGRAM,
                 base, model);
        if (system(command) != 0) return 1;
    }
    bool all = argc == 2 && strcmp(argv[1], "all") == 0;
    if (!all) n_prompts = MIN(n_prompts, SLOWNESS > 1 ? 1 : 12), n_tokens = SLOWNESS > 1 ? 4 : 8;
    bool good = run(model, all, NULL);
    if (config) remove(model);
    return good ? 0 : 1;
#else
    fprintf(stderr, "usage: %s MODEL PROMPTS TOKENS [ISA]\n", argv[0]);
    return 2;
#endif
}
