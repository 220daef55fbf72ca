#define _POSIX_C_SOURCE 200809L
#include "cli/cli.h"

#include <errno.h>
#include <locale.h>
#include <string.h>

static const cli_command *const commands[] = {&cmd_quantize, &cmd_chat,    &cmd_run,   &cmd_bench,    &cmd_perplexity,
                                              &cmd_inspect,  &cmd_convert, &cmd_train, &cmd_tokenize, &cmd_score};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static const char *const later_commands[] = {"template", "serve"};

static void print_help(void) {
    printf("llmq: quantizes language models to 4 bits and runs them on CPUs\n\n"
           "usage: llmq COMMAND [options]\n\ncommands:\n");
    for (int i = 0; i < N_COMMANDS; i++) printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
    printf(
        "\nllmq COMMAND --help explains a command; llmq --version prints the version.\n\n"
        "MODEL is a GGUF file, a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a llama2.c .bin.\n"
        "Exit status: 0 success, 1 failed, 2 bad usage, 130 interrupted. Data goes to stdout, the rest to stderr.\n"
        "Environment: LLMQ_ISA=c|avx2|avxvnni|avx512|avx512bf16|amx (on ARM c|neon|dotprod) limits the CPU kernels;\n"
        "LLMQ_CUDA_ACTS=f16|q8 chooses the activations of decode steps on a GPU (docs/cuda.md); NO_COLOR turns colors\n"
        "off.\n");
}

static const cli_command *find_command(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static int unknown_command(const char *name) {
    for (size_t i = 0; i < sizeof later_commands / sizeof *later_commands; i++)
        if (strcmp(name, later_commands[i]) == 0) {
            fprintf(stderr, "llmq: '%s' is not in this version (see llmq --help)\n", name);
            return EXIT_USAGE;
        }
    const char *best = NULL;
    int best_distance = opt_close(name);
    for (int i = 0; i < N_COMMANDS; i++) {
        int distance = opt_distance(name, commands[i]->name);
        if (distance < best_distance) {
            best = commands[i]->name;
            best_distance = distance;
        }
    }
    if (best)
        fprintf(stderr, "llmq: unknown command '%s'; did you mean %s? (see llmq --help)\n", name, best);
    else
        fprintf(stderr, "llmq: unknown command '%s' (see llmq --help)\n", name);
    return EXIT_USAGE;
}

static int dispatch(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "llmq: a command is missing: quantize, chat, run, bench, ... (see llmq --help)\n");
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    bool help = strcmp(name, "help") == 0;
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        printf("llmq %s, cpu kernels: %s\n", llmq_version(), llmq_cpu_isa());
        return EXIT_OK;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || (help && argc == 2)) {
        print_help();
        return EXIT_OK;
    }
    if (help) name = argv[2];
    if (!help && name[0] == '-') {
        fprintf(stderr, "llmq: unknown option %s; a command comes first (see llmq --help)\n", name);
        return EXIT_USAGE;
    }
    const cli_command *cmd = find_command(name);
    if (!cmd) return unknown_command(name);
    char *help_argv[] = {argv[0], "--help", NULL};
    return help ? cmd->run(cmd, 2, help_argv) : cmd->run(cmd, argc - 1, argv + 1);
}

int main(int argc, char **argv) {
    setlocale(LC_CTYPE, ""); /* line editing of UTF-8; numbers stay in the C locale */
    cli_set_program(argc ? argv[0] : NULL);
    cli_interrupts_init();
    int rc = dispatch(argc, argv);
    if (fflush(stdout) || ferror(stdout)) {
        int failed = cli_fail("stdout: cannot write the result: %s", errno ? strerror(errno) : "write error");
        if (rc == EXIT_OK) rc = failed;
    }
    return rc;
}
