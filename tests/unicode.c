/* unicode.c - classes of code points, strict UTF-8 and its streaming, and the words that the
 * pre-tokenizers split text into. */
#include "unicode.h"
#include "vocab.h"
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

/* ---- classes ---- */

static void classes(void **state) {
    (void)state;
    static const struct {
        uint32_t first, last;
        CharClass class;
    } rows[] = {
        { 0, 8, CHAR_OTHER },
        { 9, 13, CHAR_SPACE },
        { 14, 31, CHAR_OTHER },
        { ' ', ' ', CHAR_SPACE },
        { '!', '/', CHAR_OTHER },
        { '0', '9', CHAR_NUMBER },
        { ':', '@', CHAR_OTHER },
        { 'A', 'Z', CHAR_LETTER },
        { '[', '`', CHAR_OTHER },
        { 'a', 'z', CHAR_LETTER },
        { '{', 0x84, CHAR_OTHER },
        { 0x85, 0x85, CHAR_SPACE },
        { 0xa0, 0xa0, CHAR_SPACE },
        { 0xaa, 0xaa, CHAR_LETTER },
        { 0xb2, 0xb3, CHAR_NUMBER },
        { 0xb5, 0xb5, CHAR_LETTER },
        { 0xbc, 0xbe, CHAR_NUMBER },
        { 0xd7, 0xd7, CHAR_OTHER },
        { 0x300, 0x36f, CHAR_OTHER },
        { 0x660, 0x669, CHAR_NUMBER },
        { 0x1680, 0x1680, CHAR_SPACE },
        { 0x180e, 0x180e, CHAR_OTHER },
        { 0x2000, 0x200a, CHAR_SPACE },
        { 0x200b, 0x200d, CHAR_OTHER },
        { 0x2028, 0x2029, CHAR_SPACE },
        { 0x2160, 0x2182, CHAR_NUMBER },
        { 0x3000, 0x3000, CHAR_SPACE },
        { 0x3400, 0x4dbf, CHAR_LETTER },
        { 0x4e00, 0x9fff, CHAR_LETTER },
        { 0xac00, 0xd7a3, CHAR_LETTER },
        { 0xd7a4, 0xd7af, CHAR_OTHER },
        { 0xe000, 0xf8ff, CHAR_OTHER },
        { 0xfeff, 0xfeff, CHAR_OTHER },
        { 0x1d7ce, 0x1d7ff, CHAR_NUMBER },
        { 0x20000, 0x2a6df, CHAR_LETTER },
        { 0x10ffff, 0x10ffff, CHAR_OTHER },
        { 0x110000, 0x110010, CHAR_OTHER },
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        for (uint32_t c = rows[i].first; c <= rows[i].last; c++)
            if (unicode_class(c) != rows[i].class)
                fail_msg("U+%04X is class %d, not %d", c, unicode_class(c), rows[i].class);
}

/* ---- UTF-8 ---- */

#define R "\xef\xbf\xbd"
static const struct {
    const char *in, *out; // out: with one U+FFFD for each maximal ill-formed part
} streams[] = {
    { "plain", "plain" },
    { "\xc2\x80 \xdf\xbf", "\xc2\x80 \xdf\xbf" },
    { "\xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf",
      "\xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf" },
    { "\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf", "\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf" },
    { "\x80", R },                   // continuation alone
    { "\xbf\x80x", R R "x" },        //
    { "\xc0\x80", R R },             // overlong, two bytes
    { "\xc1\xbf", R R },             //
    { "\xe0\x80\x80", R R R },       // overlong, three
    { "\xe0\x9f\xbf", R R R },       //
    { "\xf0\x80\x80\x80", R R R R }, // overlong, four
    { "\xf0\x8f\xbf\xbf", R R R R }, //
    { "\xed\xa0\x80", R R R },       // surrogates
    { "\xed\xbf\xbf", R R R },       //
    { "\xf4\x90\x80\x80", R R R R }, // above U+10FFFF
    { "\xf5\x80\x80\x80", R R R R }, //
    { "\xff\xfe", R R },             //
    { "\xc3", R },                   // cut short, at the end and inside
    { "\xc3x", R "x" },              //
    { "\xe2\x82", R },               // one part, one mark
    { "\xe2\x82x", R "x" },          //
    { "\xf0\x9f\xa6", R },           //
    { "\xf0\x9f\xa6x", R "x" },      //
    { "\xf0\x9f\xa6\xf0\x9f\xa6\x99", R "\xf0\x9f\xa6\x99" },
    { "\xe2\xe2\x82\xac", R "\xe2\x82\xac" },                //
    { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", R R R R "A" }, // Unicode's own example
};

/* Feeds `step` bytes at a time; in between nothing but whole characters may come out. */
static void stream_in_steps(size_t row, size_t step) {
    Utf8Stream s = { .n_hold = 0 };
    const char *in = streams[row].in;
    char out[256], all[256];
    size_t n = strlen(in), len = 0;
    for (size_t i = 0; i <= n; i += step) {
        bool last = i + step > n;
        size_t k = utf8_stream(&s, in + i, last ? n - i : step, last, out);
        for (size_t j = 0; j < k;) {
            uint32_t c;
            int whole = utf8_scan((const uint8_t *)out + j, k - j, &c);
            assert_true(whole > 0);
            j += (size_t)whole;
        }
        memcpy(all + len, out, k);
        len += k;
        if (last) break;
    }
    assert_int_equal(s.n_hold, 0);
    if (len != strlen(streams[row].out) || memcmp(all, streams[row].out, len) != 0)
        fail_msg("row %zu in steps of %zu", row, step);
}

static void streaming(void **state) {
    (void)state;
    for (size_t row = 0; row < ARRAY_LEN(streams); row++)
        for (size_t step = 1; step < 12; step++) stream_in_steps(row, step);
}

/* Every code point, and what is held back while it is incomplete. */
static void every_character(void **state) {
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        char b[4], out[64];
        int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        for (int i = n - 1; i > 0; i--) b[i] = (char)(0x80 | ((c >> 6 * (n - 1 - i)) & 0x3f));
        b[0] = (char)(n == 1 ? c : (0xf00u >> n & 0xff) | c >> 6 * (n - 1));
        uint32_t got;
        assert_int_equal(utf8_scan((const uint8_t *)b, (size_t)n, &got), n);
        assert_int_equal(got, c);
        Utf8Stream s = { .n_hold = 0 };
        for (int i = 0; i < n - 1; i++) assert_int_equal(utf8_stream(&s, b + i, 1, false, out), 0);
        assert_int_equal(utf8_stream(&s, b + n - 1, 1, false, out), n);
        assert_memory_equal(out, b, (size_t)n);
    }
}

/* ---- words ---- */

static const struct {
    const char *pre, *words; // words parted by |
} splits[] = {
    { "gpt-2", "Hello| world|!| 123| it|'s| don|'t|'|S" },
    { "gpt-2", "a|  | b|\t|c|\n\n" },
    { "gpt-2", "a|\n|\n|b| |\xc2\xa0|x" },
    { "gpt-2", " 1234|abc|\xd9\xa3\xc2\xbd| \xe4\xb8\xad\xe6\x96\x87|\xef\xbc\x81" },
    { "gpt-2", "e|\xcc\x81|x| \xf0\x9f\xa6\x99|a|\xff\xc3| " },
    { "default", "x| 12" },
    { "smollm", "a| |1|2|  |3| b|  | c" },
    { "smollm", "it|'s|1|'t| !?" },
    { "llama-bpe", "Hello| world|!| |123|456|7| it|'S|'t|'RE|'Ll|'x" },
    { "llama-bpe", "I|'\xc5\xbf|o|'d" }, // long s folds to s
    { "llama-bpe", "a|\n\n| | b|   \n\n|  | c|\t| d" },
    { "llama-bpe", "(a|)\n\r\n|b|\r\n|  " },
    { "llama-bpe", "\xc2\xa0xe|\xcc\x81x| ??|1|a|.b|\xffz" },
    { "llama-bpe", "x|   | y|   | |1" },
    { "qwen2", "1|2|3|a| |1|'ve" },
    { "qwen2", "end|.\n\n|  \n|   | x" },
};

static void words(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(splits); i++) {
        char text[256], got[512];
        size_t n = 0, n_got = 0;
        const char *w = splits[i].words;
        for (const char *p = w; *p; p++)
            if (*p != '|') text[n++] = *p;
        const PreTokenizer *pre = pretokenizer_find(splits[i].pre, strlen(splits[i].pre));
        for (size_t pos = 0; pos < n;) {
            size_t end = pre->split((const uint8_t *)text, n, pos);
            assert_true(end > pos && end <= n);
            if (pos) got[n_got++] = '|';
            memcpy(got + n_got, text + pos, end - pos);
            n_got += end - pos;
            pos = end;
        }
        got[n_got] = 0;
        if (strcmp(got, w) != 0) fail_msg("%s: want %s\n got %s", splits[i].pre, w, got);
    }
    assert_null(pretokenizer_find("gpt-", 4));
    assert_null(pretokenizer_find("tekken", 6));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes),
        cmocka_unit_test(streaming),
        cmocka_unit_test(every_character),
        cmocka_unit_test(words),
    };
    return cmocka_run_group_tests_name("unicode", tests, NULL, NULL);
}
