/* completion.h - completion scripts for shells, made from the option tables. */
#ifndef COMPLETION_H
#define COMPLETION_H
#include "cli.h"

/* Prints the script for "bash", "zsh" or "fish"; rows end with a NULL name. Returns the exit code.
 */
int completion_print(const CliRow *rows, const char *shell);
#endif
