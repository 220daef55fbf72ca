/* llmq convert: any container to GGUF. */
#include <string.h>

#include "cli/cli.h"
#include "llmq_quant.h"

typedef struct convert_opts {
    const char *out, *type, *emit;
    int force;
    int64_t shard_bytes;
} convert_opts;

static const opt_def convert_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_TEXT("--output", "-o", "OUT", convert_opts, out, "the GGUF file to write, or with --emit the folder"),
    OPT_ROW_TEXT("--type", NULL, "T", convert_opts, type,
                 "storage type of all matrices: f32, f16, bf16, q8_0, q4_0, ... (default: as they are)"),
    OPT_ROW_FLAG("--force", NULL, convert_opts, force, 1, "replace OUT if it exists"),
    OPT_ROW_TEXT(
        "--emit", NULL, "LIST", convert_opts, emit,
        "gguf (the default); hf: a Hugging Face folder of plain floats, --type f32, f16 or bf16 (default: as they are, "
        "bf16 for a quantized model); or gptq, awq, ct: a quantized model as a Hugging Face folder, where the grid is "
        "the same and nothing has to be rounded"),
    {.kind = OPT_SIZE,
     .name = "--shard-size",
     .arg = "SIZE",
     .offset = offsetof(convert_opts, shard_bytes),
     .min = 1,
     .max = 9e18,
     .help = "safetensors files become no larger, as in 500MB, 4.2GiB (default 5GB)"},
    OPT_ROW_END,
};

static int run(const cli_command *cmd, int argc, char **argv) {
    convert_opts opts = {0};
    common_opts common = {0};
    const opt_set sets[] = {{convert_defs, &opts}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    if (!opts.out) return opt_bad(cmd, "the output is missing: -o OUT.gguf");
    if (opts.type && llmq_type_from_name(opts.type) == LLMQ_TYPE_NONE)
        return opt_bad(cmd, "--type '%s': no such storage type; f32, f16, bf16, q8_0, q4_0 are some", opts.type);
    llmq_err err = {0};
    cli_progress progress;
    cli_progress_init(&progress, "bytes", common.quiet);
    llmq_convert_params params;
    llmq_convert_params_default(&params);
    params.type = opts.type;
    params.tokenizer = common.tokenizer;
    params.emit = opts.emit;
    if (opts.shard_bytes) params.shard_bytes = opts.shard_bytes;
    params.force = opts.force;
    params.n_threads = (int)common.threads;
    params.progress = cli_progress_update;
    params.user = &progress;
    llmq_convert_result result = {0};
    llmq_status status = llmq_convert(path, opts.out, &params, &result, &err);
    cli_progress_finish(&progress);
    if (status == LLMQ_E_INTERRUPTED) return cli_fail("interrupted: nothing was written"), EXIT_INTERRUPTED;
    if (status) return cli_fail_err(&err);
    char bytes[32];
    printf("%s: %s, %lld tensors exact, %lld rounded\n", opts.out, cli_bytes((double)result.out_bytes, bytes),
           (long long)result.n_exact, (long long)result.n_inexact);
    if (result.quantization[0]) printf("%s: from %s\n", opts.out, result.quantization);
    return EXIT_OK;
}

const cli_command cmd_convert = {
    .name = "convert",
    .usage = "MODEL -o OUT [--type T] [--emit LIST]",
    .summary = "a model in another container or storage type",
    .about =
        "Writes a model as a GGUF file that llama.cpp reads too, tokenizer included. Values stay exactly as they "
        "are unless "
        "--type asks for fewer bits; the output says how many tensors had to be rounded. Folders that were quantized "
        "by GPTQ, AWQ, compressed-tensors or bitsandbytes are repacked: symmetric 4 bits become q4_0 exactly. For 4 "
        "bits with "
        "calibration see "
        "llmq quantize. With --emit a model that is quantized already (Q4_0, Q8_0, or a gptq, awq or ct folder) "
        "goes to another of these formats bit for bit, or not at all; --emit hf writes any model as the folder of "
        "floats "
        "that transformers loads without further packages.",
    .examples = "  llmq convert ./SmolLM2-135M-Instruct -o smollm2-f16.gguf --type f16\n"
                "  llmq convert stories260K.bin --tokenizer tok512.bin -o stories260K.gguf\n"
                "  llmq convert model-q8_0.gguf --emit hf --type f16 -o model-folder\n",
    .run = run,
};
