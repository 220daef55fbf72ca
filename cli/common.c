#define _POSIX_C_SOURCE 200809L
#include "cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const opt_def common_defs[] = {
    OPT_ROW_HEAD("common options"),
    OPT_ROW_INT("--threads", "-t", "N", common_opts, threads, 0, LLMQ_THREADS_MAX,
                "threads to compute with (default: physical cores)"),
    OPT_ROW_TEXT("--device", NULL, "cpu|auto|cuda[:N]", common_opts, device,
                 "where to compute (default auto, which is the CPU; cuda is experimental: docs/cuda.md)"),
    OPT_ROW_INT("--gpu-layers", NULL, "N", common_opts, gpu_layers, 0, 100000,
                "with --device cuda: run the last N layers on the GPU, the others on the CPU (default: as many as fit; "
                "not for quantize, which gives the GPU one matrix after the other)"),
    OPT_ROW_TEXT("--tokenizer", NULL, "FILE", common_opts, tokenizer,
                 "take the tokenizer from a tokenizer.bin, tokenizer.json or GGUF instead of the model's own"),
    OPT_ROW_FLAG("--quiet", "-q", common_opts, quiet, 1, "no progress, no statistics, no warnings"),
    OPT_ROW_FLAG("--verbose", "-v", common_opts, verbose, 1, "say more about what is being done"),
    OPT_ROW_END,
};

/* ---- messages */

static const char *program = "llmq";

void cli_set_program(const char *argv0) {
    if (argv0 && *argv0) program = argv0;
}

const char *cli_program(void) {
    return program;
}

static void print_line(const char *fmt, va_list args) {
    cli_progress_hide();
    fflush(stdout);
    fputs("llmq: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
}

int cli_fail(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    print_line(fmt, args);
    va_end(args);
    return EXIT_FAILED;
}

void cli_note(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    print_line(fmt, args);
    va_end(args);
}

int cli_fail_err(const llmq_err *err) {
    cli_fail("%s", err->msg[0] ? err->msg : llmq_status_name(err->status));
    if (err->status == LLMQ_E_INTERRUPTED) return EXIT_INTERRUPTED;
    return err->status == LLMQ_E_ARG ? EXIT_USAGE : EXIT_FAILED;
}

llmq_status cli_set_err(llmq_err *err, llmq_status status, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, args);
    va_end(args);
    err->status = status;
    return status;
}

static void receive_log(void *user, llmq_log_level level, const char *line) {
    const common_opts *common = user;
    llmq_log_level least = common->quiet ? LLMQ_LOG_ERROR : common->verbose ? LLMQ_LOG_INFO : LLMQ_LOG_NOTE;
    if (level < least) return;
    cli_progress_hide();
    fprintf(stderr, "llmq: %s%s\n", level == LLMQ_LOG_WARN ? "warning: " : "", line);
}

/* What was asked for is done, with a word about it: workers meet at barriers many times a token, and with more of them
 * than processors each meeting waits for the scheduler. */
static void note_crowd(const common_opts *common) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (processors < 1 || common->threads <= processors || common->quiet) return;
    cli_note("--threads %lld: this machine has %ld processors; more threads than that only wait for each other",
             (long long)common->threads, processors);
}

int cli_start(const cli_command *cmd, common_opts *common) {
    llmq_err err;
    const char *device = common->device;
    bool cuda = device && strncmp(device, "cuda", 4) == 0;
    if (!cmd->gpu && cuda)
        return opt_bad(cmd, "--device %s: %s computes on the CPU only; leave the option out", device, cmd->name);
    if (common->gpu_layers && !cuda)
        return opt_bad(cmd, "--gpu-layers means something with --device cuda only; give both or neither");
    if (llmq_device_check(device, &err) != LLMQ_OK)
        return err.status == LLMQ_E_ARG ? opt_bad(cmd, "%s", err.msg) : cli_fail_err(&err);
    note_crowd(common);
    llmq_log_set(receive_log, common);
    return CLI_GO_ON;
}

/* ---- interrupts */

static volatile sig_atomic_t interrupt_count, prompting;

static void on_interrupt(int signo) {
    (void)signo;
    if (prompting || interrupt_count) {
        ssize_t ignored = write(STDERR_FILENO, "\n", 1);
        (void)ignored;
        _exit(EXIT_INTERRUPTED);
    }
    interrupt_count = 1;
}

void cli_interrupts_init(void) {
    /* No SA_RESTART: a blocking read of stdin ends, so that the loop around it sees the flag. */
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool cli_interrupted(void) {
    return interrupt_count != 0;
}
void cli_interrupts_clear(void) {
    interrupt_count = 0;
}
void cli_interrupts_at_prompt(bool at_prompt) {
    prompting = at_prompt;
}

/* ---- models and files */

llmq_status cli_open(const char *path, const common_opts *common, llmq_model **out, llmq_err *err) {
    llmq_model_params params;
    llmq_model_params_default(&params);
    params.tokenizer = common->tokenizer;
    params.n_threads = (int)common->threads;
    params.device = common->device;
    params.gpu_layers = common->gpu_layers;
    params.n_ctx = common->ctx;
    return llmq_model_open(path, &params, out, err);
}

llmq_status cli_read_file(const char *path, char **out, size_t *len_out, llmq_err *err) {
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *f = is_stdin ? stdin : fopen(path, "rb");
    if (!f) return cli_set_err(err, LLMQ_E_IO, "%s: %s", path, strerror(errno));
    size_t len = 0, cap = 1 << 16;
    char *text = malloc(cap);
    llmq_status status = LLMQ_OK;
    while (text) {
        errno = 0;
        len += fread(text + len, 1, cap - 1 - len, f);
        if (len < cap - 1) break;
        cap *= 2;
        char *grown = realloc(text, cap);
        if (!grown) free(text);
        text = grown;
    }
    if (!text) {
        status = cli_set_err(err, LLMQ_E_MEMORY, "%s: out of memory while reading", path);
    } else if (ferror(f)) {
        if (cli_interrupted())
            status = cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted");
        else
            status = cli_set_err(err, LLMQ_E_IO, "%s: %s", is_stdin ? "stdin" : path, strerror(errno));
        free(text);
    } else {
        text[len] = '\0';
        *out = text;
        *len_out = len;
    }
    if (!is_stdin) fclose(f);
    return status;
}

/* ---- numbers for people */

double cli_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *cli_bytes(double bytes, char buf[32]) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    int u = 0;
    while (u < 4 && (bytes >= 999.5 || bytes <= -999.5)) {
        bytes /= 1000;
        u++;
    }
    snprintf(buf, 32, u == 0 ? "%.0f %s" : bytes < 9.995 ? "%.2f %s" : "%.1f %s", bytes, units[u]);
    return buf;
}

const char *cli_clock(double seconds, char buf[32]) {
    int64_t s = seconds > 0 && seconds < 1e9 ? (int64_t)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(buf, 32, "%d:%02d:%02d", (int)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
    else
        snprintf(buf, 32, "%d:%02d", (int)(s / 60), (int)(s % 60));
    return buf;
}

const char *cli_count(int64_t n, char buf[32]) {
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n), o = 0;
    for (int i = 0; i < len; i++) {
        buf[o++] = digits[i];
        int left = len - 1 - i;
        if (left && left % 3 == 0 && digits[i] != '-') buf[o++] = ',';
    }
    buf[o] = '\0';
    return buf;
}

const char *cli_quote(const char *path, char *buf, size_t cap) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./+:=@%,";
    if (*path && strspn(path, plain) == strlen(path)) {
        snprintf(buf, cap, "%s", path);
        return buf;
    }
    size_t o = 0;
    if (cap < 3) return path;
    buf[o++] = '\'';
    for (const char *p = path; *p && o + 6 < cap; p++) {
        if (*p == '\'') {
            memcpy(buf + o, "'\\''", 4);
            o += 4;
        } else {
            buf[o++] = *p;
        }
    }
    buf[o++] = '\'';
    buf[o] = '\0';
    return buf;
}

static void print_memory_row(const char *name, double weights, double kv, const char *kv_name) {
    char a[32], b[32], c[32], cache[48];
    snprintf(cache, sizeof cache, "%s (%s)", cli_bytes(kv, b), kv_name);
    printf("%-18s %12s %22s %12s\n", name, cli_bytes(weights, a), cache, cli_bytes(weights + kv, c));
}

void cli_print_memory(int64_t n_params, int64_t kv_bytes_per_token, int64_t n_ctx, int64_t file_bytes) {
    llmq_memory_row rows[LLMQ_MEMORY_ROWS];
    char label[48];
    snprintf(label, sizeof label, "KV cache at %lld", (long long)n_ctx);
    printf("%-18s %12s %22s %12s\n", "memory", "weights", label, "both");
    llmq_memory_table(n_params, kv_bytes_per_token, n_ctx, rows);
    for (int i = 0; i < LLMQ_MEMORY_ROWS; i++) {
        char name[32];
        snprintf(name, sizeof name, rows[i].bits < 16 ? "%s (%.4g bits)" : "%s", rows[i].name, rows[i].bits);
        print_memory_row(name, (double)rows[i].weights, (double)rows[i].kv, rows[i].kv_name);
    }
    print_memory_row("this file", (double)file_bytes, (double)kv_bytes_per_token * (double)n_ctx, "f16");
}
