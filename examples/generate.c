/* generate.c - continues a text: generate MODEL.gguf "Once upon a time" */
#include <dibit.h>
#include <stdio.h>
#include <string.h>

static int failed(const DibitError *err) {
    fprintf(stderr, "generate: %s\n", err->text);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: generate MODEL.gguf TEXT\n"), 2;
    DibitEngine *engine;
    DibitSession *session;
    DibitError err;
    DibitSessionOptions options = { .n_ctx = 1024 };
    options.sampling = (DibitSampling){ .temperature = 0.8f, .top_p = 0.95f, .seed = 1 };
    if (dibit_open(&engine, argv[1], NULL, &err) != 0) return failed(&err);
    if (dibit_session_create(&session, engine, &options, &err) != 0) return failed(&err);

    int32_t ids[512];
    int64_t n = dibit_tokenize(engine, argv[2], strlen(argv[2]), DIBIT_ADD_BOS, ids, 512, &err);
    if (n < 0) return failed(&err);
    if (n > 512) return fprintf(stderr, "generate: the text is too long\n"), 1;
    if (dibit_sync(session, ids, (size_t)n, &err) < 0) return failed(&err);

    DibitPiece piece;
    int more;
    do {
        more = dibit_next(session, &piece, &err);
        if (more < 0) return failed(&err);
        fwrite(piece.text, 1, piece.n_bytes, stdout);
        fflush(stdout);
    } while (more);
    printf("\n[%s]\n", piece.finish);
    dibit_session_free(&session);
    dibit_close(&engine);
    return 0;
}
