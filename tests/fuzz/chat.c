/* chat.c - fuzz target: any bytes as a Jinja template and as messages. The length returned must not
 * depend on the room, and what fits must be the beginning of the whole text. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_MESSAGES = 16 };
static const char *const styles[] = { "chatml", "llama2", "llama3", "mistral", "mistral-v3", "" };
static const char *const roles[] = { "user", "assistant", "system", "tool" };

static void must(bool ok) {
    if (!ok) abort();
}

/* Contents end at zero bytes; the first byte of each says the role. */
static size_t split(DibitMessage *m, char *text, size_t n) {
    size_t count = 0;
    for (size_t pos = 0; pos < n && count < MAX_MESSAGES; count++) {
        unsigned role = (uint8_t)text[pos];
        // Mostly in turns, so that the strict templates get further than their checks.
        const char *in_turn = roles[count % 2];
        m[count] = (DibitMessage){ role & 0x70 ? in_turn : roles[role & 3], text + pos + 1 };
        pos += strlen(text + pos + 1) + 2;
    }
    return count;
}

static void check(const char *style, const DibitMessage *m, size_t n, int reply, size_t cap) {
    DibitError err = { 0 };
    int64_t length = chat_text(style, m, n, reply, NULL, 0, &err);
    if (length < 0) {
        must(err.text[0] && err.code == (int)length);
        return;
    }
    size_t whole = (size_t)length + 1;
    char *all = malloc(whole), *some = malloc(cap + 1);
    must(chat_text(style, m, n, reply, all, whole, NULL) == length && strlen(all) == whole - 1);
    must(chat_text(style, m, n, reply, some, cap, NULL) == length);
    if (cap) {
        size_t k = MIN(cap - 1, whole - 1);
        must(memcmp(all, some, k) == 0 && some[k] == 0);
    }
    free(all);
    free(some);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    chat_style((const char *)data, size);
    if (size < 2) return 0;
    char *text = calloc(size + 2, 1);
    DibitMessage m[MAX_MESSAGES];
    memcpy(text, data + 2, size - 2);
    size_t n = split(m, text, size - 2);
    check(styles[data[0] % ARRAY_LEN(styles)], m, n, data[0] >> 7, data[1]);
    free(text);
    return 0;
}
