/* utf8.c - reading UTF-8 strictly (no surrogates, no overlong forms, nothing above U+10FFFF) and
 * streaming it: what leaves utf8_stream() is whole, well-formed characters. */
#include <string.h>
#include "tokenizer.h"
#include "unicode.h"

int utf8_scan(const uint8_t *s, size_t n, uint32_t *code_point) {
    uint8_t b = s[0];
    if (b < 0x80) {
        *code_point = b;
        return 1;
    }
    if (b < 0xc2 || b > 0xf4) return -1;
    int len = b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4;
    // The second byte's range rules out overlong forms, surrogates and what is above U+10FFFF.
    uint8_t lo = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
    uint8_t hi = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
    uint32_t c = b & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) return 0;
        if (s[i] < lo || s[i] > hi) return -i;
        c = c << 6 | (s[i] & 0x3fu);
        lo = 0x80;
        hi = 0xbf;
    }
    *code_point = c;
    return len;
}

static size_t put_replacement(char *out) {
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}

size_t utf8_stream(Utf8Stream *s, const char *bytes, size_t n, bool flush, char *out) {
    size_t written = 0;
    for (size_t i = 0; i < n; i++) {
        s->hold[s->n_hold++] = (uint8_t)bytes[i];
        while (s->n_hold > 0) {
            uint32_t c;
            int len = utf8_scan(s->hold, (size_t)s->n_hold, &c);
            if (len == 0) break;
            if (len > 0) {
                memcpy(out + written, s->hold, (size_t)len);
                written += (size_t)len;
            } else {
                written += put_replacement(out + written);
                len = -len;
            }
            s->n_hold -= len;
            memmove(s->hold, s->hold + len, (size_t)s->n_hold);
        }
    }
    if (flush && s->n_hold > 0) { // what is held is the start of one character
        written += put_replacement(out + written);
        s->n_hold = 0;
    }
    return written;
}
