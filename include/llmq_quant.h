/* llmq: quantization and conversion jobs. */
#ifndef LLMQ_QUANT_H
#define LLMQ_QUANT_H

#include "llmq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Matrices inside the layers with 8-bit rows of one scale each, run on 8-bit inputs. */
typedef enum llmq_int8 {
    LLMQ_INT8_OFF,
    LLMQ_INT8_DYNAMIC, /* each token's inputs are quantized as they come: one scale a token */
    LLMQ_INT8_STATIC   /* in ranges that the calibration text gave */
} llmq_int8;

typedef struct llmq_quant_params {
    const char *method; /* "gptq", "rtn" */
    bool awq; /* before the method: scale each matrix's inputs by AWQ, the op before takes the scales up. With "rtn"
                 this is AWQ itself */
    llmq_int8 int8;    /* with emit "gguf" and "ct"; bits, type, group and asym are then not given */
    int bits;          /* 2, 3, 4, 8: picks the default type when type is NULL; 0: 4 */
    const char *type;  /* "q4_0", ...: every matrix inside the layers; NULL: the best measured one of `bits` whose block
                          divides the rows */
    const char *emit;  /* what is written, a list of "gguf", "gptq", "awq", "ct", "bnb"; NULL: gguf. One: OUT is that
                          file or  Hugging Face folder; several: OUT is a folder with one folder for each. gptq, awq and
                          ct share  one integer grid, and a GGUF file among them has the same codes */
    int group;         /* weights that share a scale in gptq, awq and ct: 32, 64, 128, -1 the whole row; 0: 128 */
    int asym;          /* zero points in gptq, awq and ct: 1 yes, 0 no, -1: where they gain, at 2 bits */
    bool double_quant; /* bnb: the scales are quantized too */
    int64_t shard_bytes;     /* safetensors files become no larger; 0: one file. Default 5 GB */
    const char *const *keep; /* n_keep of "PATTERN=TYPE": glob on GGUF tensor names, the first that matches decides */
    size_t n_keep;
    const char *policy; /* file of rules "PATTERN TYPE", read after keep; NULL: none */
    double target_bpw;  /* choose the types by measured errors: at most so many bits a weight over all tensors; 0: no */
    int64_t target_bytes;     /* the same: the file at most so large; 0: no */
    int act_order;            /* 1 on, 0 off, -1 the method's default (on for gptq) */
    double damp;              /* fraction of the mean diagonal; < 0: default */
    const char *solver;       /* pieces of gptq to switch, "sweeps=0,refit=0,..." (docs/quantization.md); NULL: those
                                 that were found to help */
    const char *const *calib; /* n_calib of "FILE" or "FILE:WEIGHT", text or .jsonl of chat messages, "self":
                                 the model writes the text (from seed; slow), or "default": the
                                 text that ships with llmq, as where there are none */
    size_t n_calib;
    int64_t calib_tokens; /* default 65536 */
    int64_t calib_ctx;    /* default 512 */
    uint64_t seed;        /* for what is drawn at random: the text of calib "self" */
    const char *out; /* NULL: STEM-METHOD-TYPE.gguf (or -gptq, ...) beside the source; METHOD is awq or awq-METHOD with
                        awq */
    bool force;      /* overwrite OUT */
    bool no_smooth;  /* with int8: do not look for scales that take outliers from inputs into weights */
    bool tune; /* after the method: train scales and norms to follow the full-precision model (KL divergence over the
                  calibration text); codes stay */
    bool tune_codes;           /* with tune: codes too, by straight-through estimation; quantization-aware training */
    double tune_minutes;       /* for that, at most; 0: as many steps as settings say */
    const char *tune_settings; /* of it, "steps=30,batch=3,lr=0.0015,..." (docs/tuning.md); NULL: those that were found
                                  to help */
    int64_t max_ram;           /* bytes of memory besides mapped files; 0: as much as it takes */
    bool no_resume;            /* start anew even if an earlier run of the same job was stopped half-way */
    bool plan_only;            /* fill result's plan, write nothing but report_json */
    int n_threads;
    const char *device;      /* as in llmq_model_params: with a GPU Gram matrices, their factors and gptq's rounding of
                                columns are done there, the rest here; NULL: the CPU alone */
    const char *report_json; /* per-tensor report; NULL: none */
    const char *report;      /* the same as one HTML page; NULL: none */
    const char *command;     /* what the user typed, for the report; NULL: not told */
    const char *tokenizer;   /* as in llmq_model_params */
    llmq_progress_fn *progress;
    void *user;
} llmq_quant_params;
LLMQ_API void llmq_quant_params_default(llmq_quant_params *params);

typedef struct llmq_quant_row { /* one tensor of the plan and, after the job, of the report */
    char name[64];
    llmq_type from, to;  /* to is LLMQ_TYPE_NONE where the first output has no GGUF type for it: */
    const char *to_name; /* "q4_0", "int4-g128-sym", ...: the name in any case. Static */
    const char *method;  /* "gptq", "rtn", "awq", "copy" */
    int64_t rows, cols, bytes;
    double error, rtn_error; /* relative: tr(E H E') / tr(W H W'), method's and plain rounding's; -1: not measured */
    double awq_alpha, awq_ratio; /* of the inputs' scales: exponent, and the error of plain rounding (before GPTQ what
                                    feedback leaves of it) with them over that without, on the rows that were sampled;
                                    -1: no scales */
    bool fallback;               /* the type or method is not the one asked for; note says why */
    char note[120];
    int layer;          /* -1: of the model */
    const char *role;   /* "attn_q", "ffn_norm", "token_embd", ...: the name without layer and ".weight". Static */
    const char *site;   /* "qkv", "o", "gate_up", "down": what a matrix inside a layer reads; NULL: none. Static */
    bool fixed;         /* its type is from keep or the policy file */
    double expected_kl; /* what the choice of types expects of it: nats a token; -1: its type was not chosen so */
    int64_t n_tokens;   /* calibration tokens that counted for it; 0: no calibration */
} llmq_quant_row;

/* The input of matrices of a layer in an INT8 model. Errors are those of the matrices' outputs on a sample of the
 * calibration text, rounding of weights included: a mean of squares over the squares of the outputs; for o and down
 * over those of the residual stream that they are added to. */
typedef struct llmq_quant_input {
    int layer;
    const char *site; /* "qkv", "o", "gate_up", "down". Static */
    bool kept;        /* in higher precision: a scale for each token, or floats; note says why */
    float min, max;   /* seen, after smoothing; 0 lies between them */
    float scale;      /* x = scale * (q - zero), q from -128 to 127 */
    int zero;
    const char *observer; /* whose range is used: "min-max", "percentile", "mse", "entropy", "channels" (the most that
                           * any reaches where it is best cut off, or a part of that); NULL: none. Static */
    double alpha;         /* exponent of smoothing; 0: none */
    double error;         /* in the range, or where there is none (scale 0) with a scale for each token */
    double plain_error;   /* the same without smoothing */
    double token_error;   /* with a scale for each token, and smoothed for that */
    double token_alpha;   /* the exponent of that smoothing; 0: none */
    int64_t macs;         /* multiply-adds for a token */
    char note[120];
} llmq_quant_input;

/* What a job spends its time on. */
typedef enum llmq_quant_stage {
    LLMQ_STAGE_OPEN,        /* reading the model's directory, planning */
    LLMQ_STAGE_CHOOSE,      /* measuring layers and choosing types (target_bpw, target_bytes) */
    LLMQ_STAGE_CALIBRATION, /* the calibration tokens through the model */
    LLMQ_STAGE_GRAM,        /* sums of their products */
    LLMQ_STAGE_SOLVE,       /* scales, grids and codes */
    LLMQ_STAGE_WRITE,       /* packing and writing */
    LLMQ_STAGE_TUNE,        /* training scales and norms */
    LLMQ_STAGE_COUNT
} llmq_quant_stage;
LLMQ_API const char *llmq_quant_stage_name(llmq_quant_stage stage); /* "calibration". Static string */

typedef struct llmq_quant_result {
    char out[1024];      /* path written */
    char main_out[1400]; /* of the first output: out itself unless there are several */
    size_t n_outputs;
    llmq_quant_row *rows; /* n_rows */
    size_t n_rows;
    llmq_quant_input *inputs; /* n_inputs: LLMQ_INT8_STATIC, or with smoothing; after the job */
    size_t n_inputs;
    int64_t f32_bytes, f16_bytes;  /* the whole model at 32 and 16 bits */
    int64_t in_bytes, out_bytes;   /* files */
    int64_t kv_bytes_per_token;    /* of an f16 cache: for llmq_memory_table, */
    int64_t memory_ctx;            /* at this context */
    double bits_per_weight;        /* all tensors of the written file */
    double matrix_bits_per_weight; /* matrices inside the layers */
    double mean_error, mean_rtn_error;
    int64_t calib_tokens, dropped_tokens;
    double seconds;
    int64_t peak_bytes; /* peak anonymous memory of this process */
    int64_t n_fallback;
    double planned_seconds; /* the forecasts: seconds, by a short measurement on this machine; */
    int64_t planned_peak_bytes, planned_disk_bytes; /* peak_bytes; the most that all files take at once */
    int64_t n_layers, resumed_layers;               /* of the model; of them taken over from a run that was stopped */
    bool kept;                      /* the job failed, and OUT.tmp and OUT.journal let the same job go on: */
    int64_t kept_layers;            /* after so many layers (0: as many as were there before) */
    int64_t tune_steps;             /* steps of training done; 0: none */
    double tune_before, tune_after; /* KL divergence on held-out windows, nats a token; -1: not measured */
    char tune_how[240];             /* how the tuning goes, and why; "": none */
    int64_t tune_blocks;            /* layers that were trained one after the other, by so many steps; 0: none */
    int64_t block_steps;
    double block_before,
        block_after; /* mean error of a layer's outputs on held-out windows, relative to their square */
    double stage_seconds[LLMQ_STAGE_COUNT];
} llmq_quant_result;

/* Quantizes the model at path. On success *result is filled; free it with llmq_quant_result_clear. OUT appears only
 * when it is whole (OUT.tmp, fsync, rename). A job that is stopped, runs out of disk or memory, or is killed leaves
 * OUT.tmp and OUT.journal once it has some layers, and the same job goes on with them: the result has the same bytes as
 * that of a job in one piece. */
LLMQ_API llmq_status llmq_quantize(const char *path, const llmq_quant_params *params, llmq_quant_result *result,
                                   llmq_err *err);
LLMQ_API void llmq_quant_result_clear(llmq_quant_result *result);

typedef struct llmq_convert_params {
    const char *type; /* storage type of all matrices; NULL: as they are (BF16/F16/F32 kept, quantized blocks copied) */
    const char *emit; /* NULL or "gguf": GGUF. "hf": a Hugging Face folder of plain floats, all tensors of `type`
                         ("f32", "f16", "bf16"; NULL: as most weights are, bf16 for quantized ones). "gptq", "awq", "ct"
                         (or a list): Hugging Face folders of a model that is quantized already on a grid that they hold
                         exactly; anything else is LLMQ_E_UNSUPPORTED */
    int64_t shard_bytes; /* of safetensors files; 0: one file. Default 5 GB */
    const char *tokenizer;
    bool force;
    int n_threads;
    llmq_progress_fn *progress;
    void *user;
} llmq_convert_params;
LLMQ_API void llmq_convert_params_default(llmq_convert_params *params);
typedef struct llmq_convert_result {
    int64_t out_bytes;
    int64_t n_exact, n_inexact; /* tensors whose values are the same as before; that had to be rounded */
    char quantization[96];      /* of the source, as in llmq_model_info; "" for none */
} llmq_convert_result;
/* Writes the model at path to out, as GGUF unless params->emit says otherwise. */
LLMQ_API llmq_status llmq_convert(const char *path, const char *out, const llmq_convert_params *params,
                                  llmq_convert_result *result, llmq_err *err);

#ifdef __cplusplus
}
#endif
#endif
