/* unicode.h - code points: their class for the pre-tokenizers, and UTF-8. */
#ifndef UNICODE_H
#define UNICODE_H
#include "base.h"

/* OTHER is everything else, unassigned code points and invalid bytes included. */
typedef enum CharClass { CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE } CharClass;
CharClass unicode_class(uint32_t code_point);

/* Generated: runs of code points of one class, code point << 2 | class, in order from 0. */
extern const uint32_t unicode_runs[];
extern const size_t unicode_n_runs;

/* Reads one character from n >= 1 bytes. Returns its length and sets *code_point; -k when the first
 * k bytes are a maximal ill-formed part (one U+FFFD); 0 when the n bytes could still become a
 * character. */
int utf8_scan(const uint8_t *s, size_t n, uint32_t *code_point);
#endif
