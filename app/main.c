/* main.c - the program: the table of subcommands, `dibit help`, `dibit --version`. A new command is
 * a file in app/ with `int cmd_NAME(int argc, char **argv)` and a row here. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "completion.h"

static CliMain cmd_help, cmd_completion;
#pragma weak cmd_tokenize
#pragma weak cmd_detokenize
#pragma weak cmd_convert
#pragma weak cmd_quantize
#pragma weak cmd_calibrate
#pragma weak cmd_info
#pragma weak cmd_run
#pragma weak cmd_chat
#pragma weak cmd_eval
#pragma weak cmd_logits
#pragma weak cmd_bench
#pragma weak cmd_context
#pragma weak cmd_detect
#pragma weak cmd_plan

static const CliRow rows[] = {
    { "run", cmd_run, "continue a text" },
    { "chat", cmd_chat, "talk with a model" },
    { "eval", cmd_eval, "perplexity, KL divergence and accuracy on a text" },
    { "logits", cmd_logits, "logits of token ids" },
    { "tokenize", cmd_tokenize, "text to token ids or pieces" },
    { "detokenize", cmd_detokenize, "token ids to text" },
    { "bench", cmd_bench, "speed and share of memory bandwidth" },
    { "convert", cmd_convert, "Hugging Face folder to GGUF" },
    { "calibrate", cmd_calibrate, "statistics of a text that help quantize" },
    { "quantize", cmd_quantize, "GGUF to fewer bits" },
    { "info", cmd_info, "what is in a model file" },
    { "context", cmd_context, "which context fits in memory, by type of the KV cache" },
    { "detect", cmd_detect, "what this machine can do, or what a user agent says" },
    { "plan", cmd_plan, "what to run on a device: backend, types, cache, context, with reasons" },
    { "completion", cmd_completion, "completion script for bash, zsh or fish" },
    { "help", cmd_help, "this list, or the options of a command" },
    { NULL, NULL, NULL },
};

static void print_commands(FILE *out) {
    fputs("usage: dibit COMMAND [options]\n\ncommands:\n", out);
    for (const CliRow *r = rows; r->name; r++)
        if (r->run) fprintf(out, "  %-12s%s\n", r->name, r->about);
    fputs("\n`dibit help COMMAND` lists a command's options; `dibit --version` says the version.\n",
          out);
}

static const CliRow *find_row(const char *name) {
    const char *names[ARRAY_LEN(rows)];
    int n = 0;
    for (const CliRow *r = rows; r->name; r++) {
        if (!r->run) continue;
        if (strcmp(r->name, name) == 0) return r;
        names[n++] = r->name;
    }
    const char *near = cli_suggest(name, names, n);
    if (near)
        fprintf(stderr, "dibit: unknown command \"%s\"; did you mean %s?\n", name, near);
    else
        fprintf(stderr, "dibit: unknown command \"%s\" (`dibit help` lists them)\n", name);
    return NULL;
}

static int cmd_help(int argc, char **argv) {
    CliTexts args = { .n = 0 };
    const CliOption options[] = { { .name = NULL } };
    const CliCommand cmd = { "help",  "[COMMAND]", "Lists the commands, or a command's options.",
                             options, &args,       0,
                             1,       NULL };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    if (args.n == 0) {
        print_commands(stdout);
        return 0;
    }
    const CliRow *r = find_row(args.at[0]);
    if (!r) return 2;
    char help[] = "--help", *help_argv[] = { (char *)(uintptr_t)r->name, help, NULL };
    return r->run(2, help_argv);
}

static int cmd_completion(int argc, char **argv) {
    CliTexts args = { .n = 0 };
    const CliOption options[] = { { .name = NULL } };
    const CliCommand cmd = { "completion",
                             "bash|zsh|fish",
                             "Prints a script that completes commands and options.",
                             options,
                             &args,
                             1,
                             1,
                             "  source <(dibit completion bash)\n"
                             "  dibit completion fish > ~/.config/fish/completions/dibit.fish" };
    int code;
    if (!cli_parse(&cmd, argc, argv, &code)) return code;
    return completion_print(rows, args.at[0]);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_commands(stderr);
        return 2;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0) {
        printf("dibit %s\n", dibit_version());
        return 0;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    const CliRow *r = find_row(name);
    if (!r) return 2;
    argv[1] = (char *)(uintptr_t)name;
    int code = r->run(argc - 1, argv + 1);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
        code = errno == EPIPE ? 1 : cli_error("writing the output failed: %s", strerror(errno));
    return code;
}
