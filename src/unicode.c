/* unicode.c - the class of a code point, by binary search in the generated runs. */
#include "unicode.h"

CharClass unicode_class(uint32_t c) {
    if (c < 128) {
        uint32_t lower = c | 32;
        if (lower >= 'a' && lower <= 'z') return CHAR_LETTER;
        if (c >= '0' && c <= '9') return CHAR_NUMBER;
        return c == ' ' || (c >= 9 && c <= 13) ? CHAR_SPACE : CHAR_OTHER;
    }
    if (c > 0x10ffff) return CHAR_OTHER;
    size_t lo = 0, hi = unicode_n_runs; // the last run that starts at or before c is in [lo, hi)
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (unicode_runs[mid] >> 2 <= c)
            lo = mid;
        else
            hi = mid;
    }
    return (CharClass)(unicode_runs[lo] & 3);
}
