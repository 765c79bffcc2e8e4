/* quantize_history.c - what quantize_file() wrote into a file about itself, for people. */
#include "fields.h"
#include "gguf.h"
#include "quantize.h"

/* "131072 tokens of text 0123456789abcdef" after `what`. */
static void add_text(TextOut *t, const Gguf *g, const char *what, const char *tokens_key,
                     const char *hash_key) {
    uint64_t tokens, hash;
    if (!gguf_get_u64(g, tokens_key, &tokens) || !gguf_get_u64(g, hash_key, &hash)) return;
    text_put(t, "%s    %llu tokens of text %016llx\n", what, (unsigned long long)tokens,
             (unsigned long long)hash);
}

static void put_measure(GgufWriter *w, const void *user) {
    const QuantizeMeasure *m = user;
    gguf_put_f32(w, "dibit.quantize.kld", (float)m->kld);
    gguf_put_f32(w, "dibit.quantize.kld_se", (float)m->kld_se);
    gguf_put_f32(w, "dibit.quantize.ppl_ratio", (float)m->ppl_ratio);
    gguf_put_f32(w, "dibit.quantize.top1_agreement", (float)m->top1_agreement);
    gguf_put_u64(w, "dibit.quantize.kld_text_hash", m->text_hash);
    gguf_put_u64(w, "dibit.quantize.kld_tokens", m->n_tokens);
    gguf_put_u64(w, "dibit.quantize.kld_windows", m->n_windows);
}

int quantize_record(const char *path, const QuantizeMeasure *measure, DibitError *err) {
    return gguf_rewrite(path, put_measure, measure, err);
}

static void add_measure(TextOut *t, const Gguf *g) {
    double kld, se, ratio, agreement;
    if (!gguf_get_f64(g, "dibit.quantize.kld", &kld) ||
        !gguf_get_f64(g, "dibit.quantize.kld_se", &se) ||
        !gguf_get_f64(g, "dibit.quantize.ppl_ratio", &ratio) ||
        !gguf_get_f64(g, "dibit.quantize.top1_agreement", &agreement))
        return;
    text_put(
        t,
        "  measured     KLD %.4f ± %.4f, perplexity %.4f times, same first choice %.1f %%, against "
        "its source\n",
        kld, se, ratio, 100 * agreement);
    add_text(t, g, "  with       ", "dibit.quantize.kld_tokens", "dibit.quantize.kld_text_hash");
}

int quantize_history(const char *path, char *buf, size_t cap, DibitError *err) {
    TextOut t = { buf, cap, 0 };
    GgufString type = { "", 0 }, embedding = { "", 0 }, version = { "", 0 };
    uint64_t seed = 0, hash;
    Gguf *g;
    buf[0] = 0;
    int r = gguf_open(&g, path, false, NULL, err);
    if (r != 0) return r;
    if (gguf_get_string(g, "dibit.quantize.type", &type)) {
        gguf_get_string(g, "dibit.quantize.embedding_type", &embedding);
        gguf_get_string(g, "dibit.version", &version);
        gguf_get_u64(g, "dibit.quantize.seed", &seed);
        text_put(&t, "quantized      %.*s, embedding %.*s, seed %llu, by dibit %.*s\n", (int)type.n,
                 type.s, (int)embedding.n, embedding.s, (unsigned long long)seed, (int)version.n,
                 version.s);
        const GgufValue *rules = gguf_get(g, "dibit.quantize.rules");
        size_t cursor = 0;
        for (uint64_t i = 0; rules && rules->item == GGUF_STRING && i < rules->n; i++) {
            GgufString s = gguf_next_string(rules, &cursor);
            text_put(&t, "  where        %.*s\n", (int)s.n, s.s);
        }
        add_text(&t, g, "  calibration", "dibit.quantize.calibration_tokens",
                 "dibit.quantize.calibration_text_hash");
        if (gguf_get_u64(g, "dibit.quantize.calibration_hash", &hash))
            text_put(&t, "  its file     %016llx\n", (unsigned long long)hash);
        add_text(&t, g, "  recovery   ", "dibit.quantize.recover_tokens",
                 "dibit.quantize.recover_text_hash");
        add_measure(&t, g);
    }
    gguf_close(&g);
    return 0;
}
