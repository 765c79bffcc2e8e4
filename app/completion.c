/* completion.c - completion scripts for bash, zsh and fish from the commands' own option tables. */
#include "completion.h"

#include <string.h>

static bool is_file(const CliOption *o) {
    return o->kind == CLI_FILE || (o->kind == CLI_TEXTS && strcmp(o->value, "FILE") == 0);
}

/* What follows an option: files, one of some words, either, or anything. */
static void bash_option(const CliOption *o) {
    if (o->kind == CLI_FLAG) return;
    printf("        --%s", o->name);
    if (o->letters) printf("|-%s", o->letters);
    if (is_file(o) && o->choices)
        printf(") COMPREPLY=($(compgen -f -W \"%s\" -- \"$cur\")); return;;\n", o->choices);
    else if (is_file(o))
        printf(") COMPREPLY=($(compgen -f -- \"$cur\")); return;;\n");
    else
        printf(") COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")); return;;\n",
               o->choices ? o->choices : "");
}

static void bash_command(void *user, const CliCommand *cmd) {
    (void)user;
    printf("    %s)\n      case $prev in\n", cmd->name);
    for (const CliOption *o = cmd->options; o->name; o++) bash_option(o);
    printf("      esac\n      words=\"");
    for (const CliOption *o = cmd->options; o->name; o++) {
        printf("--%s ", o->name);
        if (o->letters) printf("-%s ", o->letters);
    }
    printf("--help\";;\n");
}

static void bash(const CliRow *rows) {
    printf("_dibit() {\n"
           "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=\n"
           "  if ((COMP_CWORD == 1)); then\n    COMPREPLY=($(compgen -W \"");
    for (const CliRow *r = rows; r->name; r++)
        if (r->run) printf("%s ", r->name);
    printf("--version --help\" -- \"$cur\"))\n    return\n  fi\n  case ${COMP_WORDS[1]} in\n");
    for (const CliRow *r = rows; r->name; r++)
        if (r->run) cli_describe(r->run, r->name, bash_command, NULL);
    printf("  esac\n  if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
           "  else COMPREPLY=($(compgen -f -- \"$cur\")); fi\n"
           "}\ncomplete -o filenames -F _dibit dibit\n");
}

/* Text inside single quotes of zsh's _arguments and of fish. */
static void quoted(const char *s, const char *escape) {
    for (; *s; s++) {
        if (*s == '\'')
            printf("'\\''");
        else {
            if (strchr(escape, *s)) putchar('\\');
            putchar(*s);
        }
    }
}

static void zsh_spec(const CliOption *o, const char *dashes, const char *name) {
    printf(" \\\n      '%s%s%s[", o->kind == CLI_TEXTS ? "*" : "", dashes, name);
    quoted(o->help, "[]:");
    printf("]");
    if (is_file(o) && o->choices)
        printf(":%s:{ _files; compadd %s }", o->value, o->choices);
    else if (is_file(o))
        printf(":%s:_files", o->value);
    else if (o->choices)
        printf(":%s:(%s)", o->value, o->choices);
    else if (o->kind != CLI_FLAG)
        printf(":%s:", o->value);
    printf("'");
}

static void zsh_command(void *user, const CliCommand *cmd) {
    (void)user;
    printf("    %s) _arguments", cmd->name);
    for (const CliOption *o = cmd->options; o->name; o++) {
        zsh_spec(o, "--", o->name);
        if (o->letters) zsh_spec(o, "-", o->letters);
    }
    printf(" \\\n      '--help[print the options]' '*:file:_files';;\n");
}

static void zsh(const CliRow *rows) {
    printf("#compdef dibit\n_dibit() {\n  if ((CURRENT == 2)); then\n    local -a commands=(");
    for (const CliRow *r = rows; r->name; r++) {
        if (!r->run) continue;
        printf("\n      '%s:", r->name);
        quoted(r->about, ":");
        printf("'");
    }
    printf(")\n    _describe command commands\n    return\n  fi\n"
           "  local name=$words[2]\n  shift words; ((CURRENT--))\n  case $name in\n");
    for (const CliRow *r = rows; r->name; r++)
        if (r->run) cli_describe(r->run, r->name, zsh_command, NULL);
    printf("  esac\n}\ncompdef _dibit dibit\n");
}

static void fish_command(void *user, const CliCommand *cmd) {
    (void)user;
    for (const CliOption *o = cmd->options; o->name; o++) {
        printf("complete -c dibit -n '__fish_seen_subcommand_from %s' -l %s", cmd->name, o->name);
        if (o->letters) printf(strlen(o->letters) == 1 ? " -s %s" : " -o %s", o->letters);
        if (is_file(o) && o->choices)
            printf(" -r -F -a '%s'", o->choices);
        else if (is_file(o))
            printf(" -r -F");
        else if (o->choices)
            printf(" -x -a '%s'", o->choices);
        else if (o->kind != CLI_FLAG)
            printf(" -x");
        printf(" -d '");
        quoted(o->help, "");
        printf("'\n");
    }
}

static void fish(const CliRow *rows) {
    for (const CliRow *r = rows; r->name; r++) {
        if (!r->run) continue;
        printf("complete -c dibit -n __fish_use_subcommand -f -a %s -d '", r->name);
        quoted(r->about, "");
        printf("'\n");
    }
    for (const CliRow *r = rows; r->name; r++)
        if (r->run) cli_describe(r->run, r->name, fish_command, NULL);
}

int completion_print(const CliRow *rows, const char *shell) {
    static const struct {
        const char *name;
        void (*print)(const CliRow *rows);
    } shells[] = { { "bash", bash }, { "zsh", zsh }, { "fish", fish } };
    for (size_t i = 0; i < ARRAY_LEN(shells); i++) {
        if (strcmp(shells[i].name, shell) != 0) continue;
        shells[i].print(rows);
        return 0;
    }
    return cli_misuse("completion", "\"%s\" is not one of: bash zsh fish", shell);
}
