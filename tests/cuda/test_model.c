/* Whole models through the CUDA backend under the emulator: every architecture and RoPE scaling (tests/data/goldens)
 * and quantized files against the CPU's plain C backend, which has been held against transformers; and a story. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#define TINY_WIDE
#include "../engine/tiny.h"
#include "gpu.h"

#include <jansson.h>

#include "cuda/cuda.h"
#include "cuda/model.h"
#include "cuda/work.h"
#include "engine/sampler.h"
#include "engine/speculate.h"
#include "llmq_quant.h"

static const char *const names[] = {"llama", "llama-tied",  "llama-bias", "llama3", "linear",
                                    "yarn",  "yarn-factor", "mistral",    "qwen2",  "qwen3"};
enum { N_NAMES = sizeof names / sizeof *names, N_TOKENS = 21 };

/* The first n tokens that the golden model was made for. */
static void read_tokens(const char *name, int32_t *out, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/goldens/%s/golden.json", LLMQ_TEST_DATA, name);
    json_t *doc = json_load_file(path, 0, NULL);
    assert_non_null(doc);
    const json_t *list = json_object_get(doc, "tokens");
    assert_true(json_array_size(list) >= n);
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)json_number_value(json_array_get(list, i));
    json_decref(doc);
}

enum { ON_CPU = -1, ON_GPU = 0 }; /* or the number of layers on the GPU */

static llmq_model *open_model(const char *path, const char *tokenizer, int gpu_layers) {
    llmq_err err = {0};
    llmq_model *model = NULL;
    llmq_model_params params = {.tokenizer = tokenizer, .n_threads = 1, .gpu_layers = gpu_layers > 0 ? gpu_layers : 0};
    llmq_status status = gpu_layers >= 0 ? model_open_on(path, &params, &cuda_device_ops, &model, &err)
                                         : model_open_with(path, &params, backend_cpu_isa("c"), &model, &err);
    if (status != LLMQ_OK) fail_msg("%s: %s", path, err.msg);
    return model;
}

static llmq_session *open_session(llmq_model *model) {
    llmq_err err = {0};
    llmq_session *s = NULL;
    if (llmq_session_create(model, &(llmq_session_params){.n_threads = 1}, &s, &err) != LLMQ_OK)
        fail_msg("%s", err.msg);
    return s;
}

static void append(llmq_session *s, const int32_t *tokens, size_t n) {
    llmq_err err = {0};
    if (llmq_session_append(s, tokens, n, &err) != LLMQ_OK) fail_msg("%s", err.msg);
}

/* Logits of every position. */
typedef struct rows {
    float *logits;
    size_t n_vocab, n;
} rows;

static void keep_row(void *user, size_t index, const float *logits) {
    rows *r = user;
    memcpy(r->logits + index * r->n_vocab, logits, r->n_vocab * sizeof *logits);
    r->n++;
}

static rows all_rows(llmq_session *s, const int32_t *tokens, size_t n) {
    size_t n_vocab = (size_t)s->model->hp.n_vocab;
    rows r = {malloc(n * n_vocab * sizeof(float)), n_vocab, 0};
    llmq_err err = {0};
    if (llmq_session_append_all(s, tokens, n, 0, keep_row, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(r.n, n);
    return r;
}

/* Largest difference as a fraction of the position's largest logit. */
static double row_error(const float *a, const float *b, size_t n) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return worst == worst ? worst / largest : INFINITY;
}

/* The text of n tokens that each gives by itself, always the likeliest next. */
static void same_text(llmq_session *a, llmq_session *b, size_t n, const char *what) {
    llmq_session_set_sampler(a, &(llmq_sampler_params){.temperature = 0});
    llmq_session_set_sampler(b, &(llmq_sampler_params){.temperature = 0});
    for (size_t i = 0; i < n; i++) {
        int32_t from_a, from_b;
        assert_int_equal(llmq_session_next(a, &from_a, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_next(b, &from_b, NULL), LLMQ_OK);
        if (from_a != from_b) fail_msg("%s: token %zu of the text is %d, the CPU's is %d", what, i, from_a, from_b);
    }
}

static int32_t likeliest(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

/* Over n tokens of the CPU's text both find the same next token the likeliest, but where the CPU's logits are closer
 * than tol: random models have many such ties. */
static void same_choices(llmq_session *gpu, llmq_session *cpu, size_t n, double tol, const char *what) {
    const size_t n_vocab = (size_t)cpu->model->hp.n_vocab;
    for (size_t i = 0; i < n; i++) {
        const float *want = llmq_session_logits(cpu), *got = llmq_session_logits(gpu);
        const int32_t next = likeliest(want, n_vocab), other = likeliest(got, n_vocab);
        const double error = row_error(got, want, n_vocab), tie = fabs((double)want[next] - (double)want[other]);
        if (!(error <= tol)) fail_msg("%s: %zu tokens on, logits differ by %.3g of the largest", what, i, error);
        if (!(tie <= 2 * tol * fabs((double)want[next])))
            fail_msg("%s: token %zu of the text is %d, the CPU's is %d", what, i, other, next);
        append(gpu, &next, 1), append(cpu, &next, 1);
    }
}

/* The same model on both: the largest difference of any of n positions, and n_text tokens of text that follow. */
static double compare(const char *path, int gpu_layers, const int32_t *tokens, size_t n, size_t n_text) {
    llmq_model *on_gpu = open_model(path, NULL, gpu_layers), *on_cpu = open_model(path, NULL, ON_CPU);
    llmq_session *gpu = open_session(on_gpu), *cpu = open_session(on_cpu);
    rows a = all_rows(gpu, tokens, n), b = all_rows(cpu, tokens, n);
    double worst = 0;
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, row_error(a.logits + i * a.n_vocab, b.logits + i * b.n_vocab, a.n_vocab));
    free(a.logits), free(b.logits);
    same_text(gpu, cpu, n_text, path);
    llmq_session_destroy(gpu), llmq_session_destroy(cpu);
    llmq_model_close(on_gpu), llmq_model_close(on_cpu);
    return worst;
}

/* The sanitizers make the emulator six times slower: fewer models there, and shorter texts. */
#if defined(__SANITIZE_ADDRESS__)
enum { STEP = 3, N_TEXT = 2 };
#else
enum { STEP = 1, N_TEXT = 12 };
#endif

/* Weights in F32 are f16 on the GPU, and so are the activations that meet them. */
static void test_architectures(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i += STEP) {
        int32_t tokens[N_TOKENS];
        char path[512];
        snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, names[i]);
        read_tokens(names[i], tokens, N_TOKENS);
        emu_set_order((emu_order)(i % EMU_ORDERS), 17);
        double error = compare(path, ON_GPU, tokens, N_TOKENS, N_TEXT);
        if (!(error <= 5e-3)) fail_msg("%s: logits differ by %.3g of the largest", names[i], error);
    }
    emu_set_order(EMU_FORWARD, 0);
}

static void convert(const char *from, const char *to, const char *type) {
    llmq_convert_params params;
    llmq_err err = {0};
    llmq_convert_params_default(&params);
    params.type = type;
    params.force = true;
    if (llmq_convert(from, to, &params, NULL, &err) != LLMQ_OK) fail_msg("%s: %s", type, err.msg);
}

enum { N_PROMPT = 37 };

/* Two files of the same weights: the largest difference of any of 8 positions of a step, and of a prompt's last one. */
static void compare_forms(const char *gpu_path, const char *cpu_path, const int32_t *tokens, double errors[2]) {
    llmq_model *models[2] = {open_model(gpu_path, NULL, ON_GPU), open_model(cpu_path, NULL, ON_CPU)};
    llmq_session *s[2];
    rows r[2];
    errors[0] = 0;
    for (int m = 0; m < 2; m++) {
        s[m] = open_session(models[m]);
        append(s[m], tokens, N_PROMPT);
    }
    errors[1] = row_error(llmq_session_logits(s[0]), llmq_session_logits(s[1]), TINY_VOCAB);
    for (int m = 0; m < 2; m++) {
        llmq_session_truncate(s[m], 0);
        r[m] = all_rows(s[m], tokens, 8);
    }
    for (size_t i = 0; i < 8; i++)
        errors[0] = fmax(errors[0], row_error(r[0].logits + i * TINY_VOCAB, r[1].logits + i * TINY_VOCAB, TINY_VOCAB));
    same_choices(s[0], s[1], N_TEXT / 2, 3e-3, gpu_path);
    for (int m = 0; m < 2; m++) free(r[m].logits), llmq_session_destroy(s[m]), llmq_model_close(models[m]);
}

/* Activations are f16, so quantized weights are held against the CPU with the same weights in F32. The first seven
 * types have layouts of their own. */
static void test_quantized(void **state) {
    (void)state;
    static const char *const types[] = {"q4_0",   "q4_1", "iq4_nl", "q8_0", "q4_k", "q6_k",
                                        "iq4_xs", "q5_1", "q3_k",   "bf16", "f16"};
    const char *from = LLMQ_TEST_TMP "/cuda-wide.gguf", *quantized = LLMQ_TEST_TMP "/cuda-quantized.gguf",
               *values = LLMQ_TEST_TMP "/cuda-values.gguf";
    tiny_model wide;
    int32_t tokens[N_PROMPT];
    tiny_init(&wide);
    tiny_write(&wide, from, 0);
    for (int i = 0; i < N_PROMPT; i++) tokens[i] = (i * 7 + 3) % TINY_VOCAB;
    for (size_t i = 0; i < sizeof types / sizeof *types; i += STEP) {
        double errors[2];
        convert(from, quantized, types[i]);
        convert(quantized, values, "f32");
        compare_forms(quantized, values, tokens, errors);
        if (!(errors[0] <= 3e-3)) fail_msg("%s: logits of a step differ by %.3g of the largest", types[i], errors[0]);
        if (!(errors[1] <= 2e-3)) fail_msg("%s: logits of a prompt differ by %.3g of the largest", types[i], errors[1]);
    }
    remove(from), remove(quantized), remove(values);
}

static void count_warnings(void *user, llmq_log_level level, const char *line) {
    if (level == LLMQ_LOG_WARN && strstr(line, "LLMQ_CUDA_ACTS")) (*(int *)user)++;
}

/* Steps with 8-bit activations, where the environment asks for them: the CPU's are of the same 8 bits; but now and then
 * one is rounded the other way, and the CPU keeps outliers apart, and these random models make much of it. A value that
 * is not known is warned of, and changes nothing. */
static void test_acts_of_8_bits(void **state) {
    (void)state;
    static const char *const types[] = {"q4_0", "q4_k", "q6_k"};
    const char *from = LLMQ_TEST_TMP "/cuda-wide.gguf", *to = LLMQ_TEST_TMP "/cuda-model.gguf";
    tiny_model wide;
    int32_t tokens[8];
    tiny_init(&wide);
    tiny_write(&wide, from, 0);
    for (int i = 0; i < 8; i++) tokens[i] = (i * 7 + 3) % TINY_VOCAB;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        convert(from, to, types[i]);
        setenv("LLMQ_CUDA_ACTS", "q8", 1);
        double error = compare(to, ON_GPU, tokens, 8, N_TEXT / 2);
        unsetenv("LLMQ_CUDA_ACTS");
        if (!(error <= 5e-2)) fail_msg("%s: logits differ by %.3g of the largest", types[i], error);
    }
    llmq_model *model = open_model(to, NULL, ON_GPU);
    rows got[4];
    int warnings = 0;
    llmq_log_set(count_warnings, &warnings);
    for (int i = 0; i < 4; i++) {
        static const char *const values[] = {"", "f16", "f8", "q8"};
        setenv("LLMQ_CUDA_ACTS", values[i], 1);
        llmq_session *s = open_session(model);
        got[i] = all_rows(s, tokens, 8);
        llmq_session_destroy(s);
        assert_int_equal(warnings, i >= 2);
        assert_int_equal(memcmp(got[i].logits, got[0].logits, 8 * TINY_VOCAB * sizeof(float)) == 0, i < 3);
    }
    unsetenv("LLMQ_CUDA_ACTS");
    llmq_log_set(NULL, NULL);
    for (int i = 0; i < 4; i++) free(got[i].logits);
    llmq_model_close(model);
    remove(from), remove(to);
}

/* A prompt in one run on both, and the text that follows. */
static void check_prompt(const char *path, size_t n) {
    const llmq_session_params params = {.n_threads = 1};
    llmq_model *models[2] = {open_model(path, NULL, ON_GPU), open_model(path, NULL, ON_CPU)};
    llmq_session *s[2];
    int32_t tokens[300];
    assert_true(n <= 300);
    for (size_t t = 0; t < n; t++) tokens[t] = (int32_t)((t * 29 + t * t) % 190);
    for (int m = 0; m < 2; m++) {
        assert_int_equal(llmq_session_create(models[m], &params, &s[m], NULL), LLMQ_OK);
        append(s[m], tokens, n);
    }
    same_choices(s[0], s[1], N_TEXT, 5e-3, path);
    for (int m = 0; m < 2; m++) llmq_session_destroy(s[m]), llmq_model_close(models[m]);
}

/* Prompts of 9 tokens and more go through the layers at once. */
static void test_prompts(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t n;
    } prompts[] = {{"llama", 9}, {"mistral", 33}, {"qwen3", 70}, {"llama-bias", 130}, {"qwen2", 16}};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i += STEP) {
        char path[512];
        snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, prompts[i].name);
        emu_set_order((emu_order)(i % EMU_ORDERS), 17);
        check_prompt(path, prompts[i].n);
    }
    emu_set_order(EMU_FORWARD, 0);
    check_prompt(LLMQ_TEST_DATA "/stories260K/stories260K.bin", 300); /* more tokens than gemm takes: cuBLAS */
}

/* data/tiny as a folder. */
static void quantize_tiny(llmq_quant_params *params, const char *folder) {
    llmq_quant_result result = {0};
    llmq_err err = {0};
    params->out = folder;
    params->force = true;
    params->n_threads = 1;
    if (llmq_quantize(LLMQ_TEST_DATA "/../../data/tiny", params, &result, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    llmq_quant_result_clear(&result);
}

/* A folder of NF4, whose levels are f16 on the GPU and 16 bits on the CPU; activations f16 and 16 bits. */
static void test_nf4(void **state) {
    (void)state;
    const char *folder = LLMQ_TEST_TMP "/cuda-nf4";
    int32_t tokens[N_TOKENS];
    llmq_quant_params params;
    llmq_quant_params_default(&params);
    params.method = "nf4";
    params.emit = "bnb";
    quantize_tiny(&params, folder);
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = i * 97 + 3;
    double error = compare(folder, ON_GPU, tokens, N_TOKENS, N_TEXT);
    if (!(error <= 1e-2)) fail_msg("NF4: logits differ by %.3g of the largest", error);
}

/* ---- groups with one scale */

static void quantize_groups(const char *folder, int asym) {
    llmq_quant_params params;
    llmq_quant_params_default(&params);
    params.method = "rtn";
    params.emit = "gptq";
    params.group = 128;
    params.asym = asym;
    quantize_tiny(&params, folder);
}

/* Matrices of a layer that are packed with one scale for 128 columns. */
static int in_groups(const gpu_layer *l) {
    const cuda_matrix *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) n += all[i]->group == 128;
    return n;
}

/* Loaded by three workers: how many matrices of the first layer are in groups. */
static int groups_of_first(const char *path) {
    llmq_err err = {0};
    llmq_model *model = NULL;
    if (model_open_on(path, &(llmq_model_params){.n_threads = 3}, &cuda_device_ops, &model, &err) != LLMQ_OK)
        fail_msg("%s: %s", path, err.msg);
    const int n = in_groups(&model->on_device->layers[0]);
    llmq_model_close(model);
    return n;
}

/* The model on the GPU, all of whose layers' matrices but `others` of the first layer are in groups of 128: its bytes
 * there. What it says is what the CPU says. */
static size_t check_groups(const char *path, int others) {
    llmq_model *on_gpu = open_model(path, NULL, ON_GPU), *on_cpu = open_model(path, NULL, ON_CPU);
    const size_t bytes = emu_memory_used();
    for (int64_t l = 0; l < on_gpu->hp.n_layer; l++)
        assert_int_equal(in_groups(&on_gpu->on_device->layers[l]), l == 0 ? 7 - others : 7);
    llmq_session *gpu = open_session(on_gpu), *cpu = open_session(on_cpu);
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = i * 97 + 3;
    append(gpu, tokens, N_TOKENS), append(cpu, tokens, N_TOKENS);
    same_choices(gpu, cpu, N_TEXT, 3e-2, path);
    llmq_session_destroy(gpu), llmq_session_destroy(cpu);
    llmq_model_close(on_gpu), llmq_model_close(on_cpu);
    return bytes;
}

/* What the container says of groups is counted before rows are read. */
static void check_counted(const char *folder, size_t bytes_a_tile) {
    llmq_model *model = open_model(folder, NULL, ON_CPU);
    static const llmq_role roles[] = {ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN};
    for (int i = 0; i < 7; i++) {
        const llmq_tensor *t = model->layer_tensors[1].by_role[roles[i]];
        assert_int_equal(
            gpu_matrix_bytes(t),
            size_align((size_t)tensor_rows(t) / 16 * (size_t)tensor_cols(t) / 128 * bytes_a_tile, GPU_ALIGN));
    }
    llmq_model_close(model);
}

/* The sixth block of a row of the first layer's down gets another scale, or its own again. Bytes that its matrix then
 * needs more. */
static size_t break_group(const char *gguf, int64_t row) {
    llmq_model *model = open_model(gguf, NULL, ON_CPU);
    const llmq_tensor *down = model->layer_tensors[0].by_role[ROLE_DOWN];
    const long at = (long)((const uint8_t *)down->data - model->source->maps[0].data) +
                    row * type_row_bytes(down->type, tensor_cols(down)) + 5 * 18;
    const size_t in_groups = (size_t)tensor_rows(down) / 16 * (size_t)tensor_cols(down) / 128 * 1056;
    const size_t more = gpu_matrix_bytes(down) - size_align(in_groups, GPU_ALIGN);
    assert_int_equal(down->type, LLMQ_TYPE_Q4_0);
    llmq_model_close(model);
    FILE *f = fopen(gguf, "r+b");
    uint8_t scale[2];
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fread(scale, 1, 2, f), 2);
    scale[0] ^= 1;
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fwrite(scale, 1, 2, f), 2);
    fclose(f);
    return more;
}

/* A folder with groups of 128, and the same blocks as GGUF, whose reader knows of no groups, take the same memory; one
 * block with another scale takes its matrix back to the type's own layout. With zero points blocks are Q5_0, of which
 * only groups have a layout. */
static void test_groups(void **state) {
    (void)state;
    const char *folder = LLMQ_TEST_TMP "/cuda-groups", *gguf = LLMQ_TEST_TMP "/cuda-groups.gguf";
    quantize_groups(folder, 0);
    check_counted(folder, 1056);
    const size_t bytes = check_groups(folder, 0);
    if (STEP > 1) return; /* the rest is the same code with other numbers */
    convert(folder, gguf, NULL);
    assert_int_equal(check_groups(gguf, 0), bytes);
    const size_t more = break_group(gguf, 0), broken = check_groups(gguf, 1);
    if (emu_here()) assert_int_equal(broken, bytes + more);
    break_group(gguf, 0);
    assert_int_equal(groups_of_first(gguf), 7);
    for (int64_t row = 70; row < 128; row += 57) { /* the second worker's, and the last one's last */
        break_group(gguf, row);
        assert_int_equal(groups_of_first(gguf), 6);
        break_group(gguf, row);
    }
    remove(gguf);
    quantize_groups(folder, 1);
    check_counted(folder, 1088);
    check_groups(folder, 0);
}

/* Where memory is short, passes are: 256 tokens (the context), 128 and so on to the steps of 8, so that a whole cache
 * fits beside them. All give the same but for roundings. Where the shortest leave no room either, passes are long again
 * and a cache may fail to grow; with less memory there is no session. */
static void test_short_passes(void **state) {
    (void)state;
    if (!emu_here()) skip(); /* there, memory is what it is */
    enum { N = 75, SIZES = 6 };
    const char *path = LLMQ_TEST_DATA "/goldens/llama";
    int32_t tokens[N];
    for (int i = 0; i < N; i++) tokens[i] = (i * 31 + 5) % 190;
    llmq_model *on_gpu = open_model(path, NULL, ON_GPU), *on_cpu = open_model(path, NULL, ON_CPU);
    llmq_session *cpu = open_session(on_cpu), *gpu = NULL;
    rows want = all_rows(cpu, tokens, N);
    const size_t weights = emu_memory_used();
    int sizes = 0;
    llmq_err err = {0};
    size_t last = 0;
    for (;; sizes++) {
        gpu = open_session(on_gpu);
        const size_t used = emu_memory_used();
        if (last > 0 && used >= last) break; /* none leaves room: as long as there is memory for */
        last = used;
        rows got = all_rows(gpu, tokens, N);
        for (size_t i = 0; i < N; i++) {
            double error = row_error(got.logits + i * got.n_vocab, want.logits + i * got.n_vocab, got.n_vocab);
            if (!(error <= 5e-3)) fail_msg("size %d, position %zu: %.3g of the largest", sizes, i, error);
        }
        free(got.logits);
        llmq_session_truncate(cpu, N - 1);
        append(cpu, tokens + N - 1, 1);
        same_choices(gpu, cpu, 3, 5e-3, "short passes");
        emu_set_memory(used + (size_t)llmq_session_kv_bytes(gpu) - 1); /* of the next one */
        llmq_session_destroy(gpu);
        assert_int_equal(emu_memory_used(), weights);
    }
    assert_int_equal(sizes, SIZES);
    emu_set_memory(emu_memory_used() + 100);
    assert_int_equal(llmq_session_append(gpu, tokens, N, &err), LLMQ_E_MEMORY);
    assert_non_null(strstr(err.msg, "--ctx"));
    assert_true(emu_memory_used() >= last);
    emu_set_memory(last - 1);
    llmq_session_destroy(gpu);
    assert_int_equal(llmq_session_create(on_gpu, &(llmq_session_params){.n_threads = 1}, &gpu, &err), LLMQ_E_MEMORY);
    assert_int_equal(emu_memory_used(), weights);
    emu_set_memory(0);
    free(want.logits);
    llmq_session_destroy(cpu);
    llmq_model_close(on_gpu), llmq_model_close(on_cpu);
}

static const char story[] = ", there was a little girl named Lily. She loved to play outside in the park.";

/* The story from its first n_given characters behind "Once upon a time" on. */
static void check_story(size_t n_given) {
    llmq_model *model =
        open_model(LLMQ_TEST_DATA "/stories260K/stories260K.bin", LLMQ_TEST_DATA "/stories260K/tok512.bin", ON_GPU);
    llmq_session *s = open_session(model);
    llmq_stream *stream = NULL;
    int32_t *ids = NULL;
    size_t n_ids = 0, len = n_given;
    char text[256];
    snprintf(text, sizeof text, "Once upon a time%.*s", (int)n_given, story);
    assert_int_equal(llmq_stream_create(model, &stream, NULL), LLMQ_OK);
    assert_int_equal(llmq_encode(model, text, strlen(text), LLMQ_TOK_BOS, &ids, &n_ids, NULL), LLMQ_OK);
    llmq_session_set_sampler(s, &(llmq_sampler_params){.temperature = 0});
    assert_true(n_given == 0 ? n_ids <= 8 : n_ids > 8); /* a step, a pass */
    append(s, ids, n_ids);
    memcpy(text, story, n_given);
    while (len < sizeof story - 1) {
        int32_t token;
        const char *piece;
        size_t piece_len;
        assert_int_equal(llmq_session_next(s, &token, NULL), LLMQ_OK);
        llmq_stream_put(stream, token, &piece, &piece_len);
        assert_true(len + piece_len < sizeof text);
        memcpy(text + len, piece, piece_len);
        len += piece_len;
    }
    if (strncmp(text, story, sizeof story - 1) != 0) fail_msg("%s", text);
    llmq_free(ids);
    llmq_stream_destroy(stream);
    llmq_session_destroy(s);
    llmq_model_close(model);
}

static void test_story(void **state) {
    (void)state;
    check_story(0);
    check_story(sizeof ", there was a little girl named Lily." - 1);
}

/* Tokens taken back and run again one by one, and the logits of every position. */
static void test_sessions(void **state) {
    (void)state;
    int32_t tokens[N_TOKENS];
    read_tokens("mistral", tokens, N_TOKENS);
    llmq_model *model = open_model(LLMQ_TEST_DATA "/goldens/mistral", NULL, ON_GPU);
    llmq_session *s = open_session(model);
    rows first = all_rows(s, tokens, N_TOKENS);
    const float *last = first.logits + (N_TOKENS - 1) * first.n_vocab;
    int64_t replays = emu_replays();
    llmq_session_truncate(s, 5);
    for (size_t i = 5; i < N_TOKENS; i++) append(s, tokens + i, 1);
    /* Other kernels than a prompt's: where a sum differs in its last bit, an activation may become another f16. */
    assert_true(row_error(llmq_session_logits(s), last, first.n_vocab) <= 1e-3);
    if (emu_here())
        assert_int_equal(emu_replays() - replays, N_TOKENS - 5 - 1); /* the first step is run before one is recorded */
    llmq_session_truncate(s, 0);
    append(s, tokens, N_TOKENS);
    assert_true(row_error(llmq_session_logits(s), last, first.n_vocab) <= 1e-3); /* the head of one position */
    assert_true(llmq_session_kv_bytes(s) > 0);
    float *same = malloc(first.n_vocab * sizeof *same);
    memcpy(same, llmq_session_logits(s), first.n_vocab * sizeof *same);
    llmq_session_truncate(s, 0);
    append(s, tokens, N_TOKENS);
    assert_memory_equal(llmq_session_logits(s), same, first.n_vocab * sizeof *same);
    free(same);

    /* Greedy tokens are chosen over there; the logits come when they are asked for, and are what they are otherwise. */
    int32_t next[2];
    llmq_session_set_sampler(s, &(llmq_sampler_params){.temperature = 0});
    for (int i = 0; i < 2; i++) assert_int_equal(llmq_session_next(s, &next[i], NULL), LLMQ_OK);
    assert_true(s->unread);
    const float *there = llmq_session_logits(s);
    assert_non_null(there);
    for (size_t i = 0; i < first.n_vocab; i++) assert_true(there[i] <= there[next[1]]);
    memcpy(first.logits, there, first.n_vocab * sizeof *there);
    int32_t again;
    assert_int_equal(llmq_session_sample(s, &again, NULL), LLMQ_OK);
    assert_int_equal(again, next[1]);
    llmq_session_truncate(s, N_TOKENS);
    assert_null(llmq_session_logits(s));
    append(s, next, 1);
    assert_memory_equal(llmq_session_logits(s), first.logits, first.n_vocab * sizeof *there);
    free(first.logits);
    llmq_session_destroy(s);
    llmq_model_close(model);
}

/* A cache of 8 bits on both; the wide model has heads of 64 dimensions. */
static void test_q8_cache(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/cuda-q8.gguf";
    const llmq_session_params params = {.n_threads = 1, .kv_type = LLMQ_KV_Q8_0};
    tiny_model wide;
    int32_t tokens[12];
    tiny_init(&wide);
    tiny_write(&wide, path, 0);
    for (int i = 0; i < 12; i++) tokens[i] = (i * 5 + 1) % TINY_VOCAB;
    for (int layers = 1; layers <= 2; layers++) {
        llmq_model *models[2] = {open_model(path, NULL, layers), open_model(path, NULL, ON_CPU)};
        llmq_session *s[2];
        for (int m = 0; m < 2; m++) {
            assert_int_equal(llmq_session_create(models[m], &params, &s[m], NULL), LLMQ_OK);
            append(s[m], tokens, 12);
        }
        assert_true(llmq_session_kv_bytes(s[0]) > 0 && llmq_session_kv_bytes(s[0]) <= llmq_session_kv_bytes(s[1]));
        double error = row_error(llmq_session_logits(s[0]), llmq_session_logits(s[1]), TINY_VOCAB);
        if (!(error <= 1e-2)) fail_msg("%d layers: logits differ by %.3g of the largest", layers, error);
        same_text(s[0], s[1], 6, "q8 cache");
        for (int m = 0; m < 2; m++) llmq_session_destroy(s[m]), llmq_model_close(models[m]);
    }
    remove(path);
}

/* A batch's sessions, which start alike, take each other's prefixes and go apart, get the bits that a session alone
 * gets: in one step, of which the later ones are replays of a recording, and in two where there are more than 8. */
static void check_batch(llmq_model *model, const int32_t *tokens, size_t n_sessions, size_t n_steps) {
    llmq_err err = {0};
    llmq_batch *batch = NULL;
    if (llmq_batch_create(model, (int64_t)n_sessions, &(llmq_session_params){.n_threads = 1}, &batch, &err) != LLMQ_OK)
        fail_msg("%s", err.msg);
    llmq_session *all[9], *alone = open_session(model);
    const size_t bytes = (size_t)model->hp.n_vocab * sizeof(float);
    float *got = malloc(n_steps * n_sessions * bytes);
    for (size_t i = 0; i < n_sessions; i++) {
        all[i] = llmq_batch_session(batch, (int64_t)i);
        assert_int_equal(llmq_session_sync(all[i], tokens, 10 + i % 3, NULL), LLMQ_OK);
    }
    int64_t replays = emu_replays();
    for (size_t step = 0; step < n_steps; step++) {
        int32_t next[9];
        for (size_t i = 0; i < n_sessions; i++) next[i] = tokens[(10 + i + step) % N_TOKENS];
        assert_int_equal(llmq_batch_append(batch, all, next, n_sessions, NULL), LLMQ_OK);
        for (size_t i = 0; i < n_sessions; i++)
            memcpy((char *)got + (step * n_sessions + i) * bytes, llmq_session_logits(all[i]), bytes);
    }
    if (emu_here()) assert_int_equal(emu_replays() - replays, n_sessions > 8 ? 0 : n_steps - 1);
    for (size_t i = 0; i < n_sessions; i++) {
        llmq_session_truncate(alone, 0);
        append(alone, tokens, 10); /* a pass; what is behind a shared prefix comes in steps */
        if (i > 0 && i % 3 == 0) llmq_session_truncate(alone, 9), append(alone, tokens + 9, 1);
        for (size_t t = 10; t < 10 + i % 3; t++) append(alone, tokens + t, 1);
        for (size_t step = 0; step < n_steps; step++) {
            append(alone, &tokens[(10 + i + step) % N_TOKENS], 1);
            assert_memory_equal((char *)got + (step * n_sessions + i) * bytes, llmq_session_logits(alone), bytes);
        }
    }
    free(got);
    llmq_session_destroy(alone);
    llmq_batch_destroy(batch);
}

static void test_batch(void **state) {
    (void)state;
    int32_t tokens[N_TOKENS];
    read_tokens("llama", tokens, N_TOKENS);
    llmq_model *model = open_model(LLMQ_TEST_DATA "/goldens/llama", NULL, ON_GPU);
    check_batch(model, tokens, 2, 4);
    check_batch(model, tokens, 5, 3);
    llmq_model_close(model);

    /* With rows of 256 a prompt's kernels would sum otherwise than those of a step: the head must not take 9 at once.
     */
    const char *path = LLMQ_TEST_TMP "/cuda-batch.gguf";
    tiny_model wide;
    tiny_init(&wide);
    tiny_write(&wide, path, 0);
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (i * 7 + 3) % TINY_VOCAB;
    model = open_model(path, NULL, ON_GPU);
    check_batch(model, tokens, 9, 2);
    llmq_model_close(model);
    remove(path);
    assert_int_equal(emu_memory_used(), 0);
}

/* ---- sampling: the CPU's sampler, on the logits of the GPU, is what drawing there has to give */

static const llmq_sampler_params samplers[] = {
    {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1, .seed = 11},
    {.temperature = 0.8f, .top_p = 0.9f, .repeat_penalty = 1.3f, .repeat_last_n = 8, .seed = 12},
    {.temperature = 0, .repeat_penalty = 2, .repeat_last_n = 64},
    {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 13}, /* all of the vocabulary */
};
enum { N_SAMPLERS = sizeof samplers / sizeof *samplers };

/* Text by llmq_session_next; returns how many tokens were drawn on the device. */
static int follow_cpu(llmq_model *model, const llmq_sampler_params *params, const llmq_speculation_params *guesses,
                      size_t n) {
    llmq_session *there = open_session(model), *here = open_session(model);
    const int32_t prompt[] = {1, 5, 9, 5, 9, 5, 9, 5, 9, 30};
    llmq_sampler cpu;
    int drawn = 0;
    assert_int_equal(sampler_create(model->hp.n_vocab, &cpu, NULL), LLMQ_OK);
    sampler_set(&cpu, params);
    llmq_session_set_sampler(there, params);
    assert_int_equal(llmq_session_set_speculation(there, guesses, NULL), LLMQ_OK);
    if (there->spec) there->spec->always = true;
    append(there, prompt, 10), append(here, prompt, 10);
    for (size_t i = 0; i < n; i++) {
        int32_t token, want;
        assert_int_equal(llmq_session_next(there, &token, NULL), LLMQ_OK);
        drawn += there->unread;
        const float *logits = llmq_session_logits(here);
        assert_int_equal(sampler_sample(&cpu, logits, here->tokens, here->n_past, &want, NULL), LLMQ_OK);
        if (token != want) fail_msg("token %zu is %d, the CPU's is %d", i, token, want);
        append(here, &want, 1);
    }
    if (there->spec && there->spec->draft && n >= 12) /* itself: what it drew is what is drawn */
        assert_true(there->spec->stats.guessed > 0 &&
                    3 * there->spec->stats.accepted >= 2 * there->spec->stats.guessed);
    assert_memory_equal(cpu.rng, there->sampler.rng, sizeof cpu.rng);
    sampler_destroy(&cpu);
    llmq_session_destroy(there), llmq_session_destroy(here);
    return drawn;
}

static void test_sampling(void **state) {
    (void)state;
    llmq_model *model = open_model(LLMQ_TEST_DATA "/goldens/llama", NULL, ON_GPU);
    for (size_t i = 0; i < N_SAMPLERS; i += STEP) {
        emu_set_order((emu_order)(i % EMU_ORDERS), 17);
        assert_int_equal(follow_cpu(model, &samplers[i], NULL, N_TEXT), N_TEXT - 1); /* a prompt's logits come here */
    }
    emu_set_order(EMU_FORWARD, 0);
    follow_cpu(model, &samplers[0], &(llmq_speculation_params){.lookup = true}, N_TEXT);
    follow_cpu(model, &samplers[1], &(llmq_speculation_params){.draft = model, .n_guess = 3}, N_TEXT);
    llmq_model_close(model);
    model = open_model(LLMQ_TEST_DATA "/../../data/tiny", NULL, ON_GPU);
    assert_true(model->hp.n_vocab > 1024);
    assert_int_equal(follow_cpu(model, &samplers[0], NULL, 3), 2);
    assert_int_equal(follow_cpu(model, &samplers[3], NULL, 3), 0); /* more than a device sorts: it is not asked */
    llmq_model_close(model);
    assert_int_equal(emu_memory_used(), 0);
}

/* Sessions of a batch that come and go: each has the tokens and, whenever they are asked for, the logits that it has
 * alone. */
static void test_batch_next(void **state) {
    (void)state;
    enum { N = 9, N_STEPS = STEP > 1 ? 2 : 4 };
    llmq_model *model = open_model(LLMQ_TEST_DATA "/goldens/llama", NULL, ON_GPU);
    const size_t bytes = (size_t)model->hp.n_vocab * sizeof(float);
    llmq_batch *batch = NULL;
    llmq_session *alone[N], *some[N];
    int32_t prompt[N + 8], tokens[N], want; /* no two sessions begin alike: who takes over runs its prompt otherwise */
    for (int i = 0; i < N + 8; i++) prompt[i] = i * 13 % 60;
    assert_int_equal(llmq_batch_create(model, N, &(llmq_session_params){.n_threads = 1}, &batch, NULL), LLMQ_OK);
    for (int i = 0; i < N; i++) {
        llmq_session *s = llmq_batch_session(batch, i);
        alone[i] = open_session(model);
        llmq_session_set_sampler(s, &samplers[i % N_SAMPLERS]);
        llmq_session_set_sampler(alone[i], &samplers[i % N_SAMPLERS]);
        assert_int_equal(llmq_session_sync(s, prompt + i, 9, NULL), LLMQ_OK);
        append(alone[i], prompt + i, 9);
    }
    for (int step = 0; step < N_STEPS; step++) {
        int at[N];
        size_t n = 0;
        for (int i = 0; i < N; i++)
            if (step < 2 || (step + i) % 3) at[n] = i, some[n++] = llmq_batch_session(batch, i);
        assert_int_equal(llmq_batch_next(batch, some, tokens, n, NULL), LLMQ_OK);
        for (size_t k = 0; k < n; k++) {
            assert_int_equal(llmq_session_next(alone[at[k]], &want, NULL), LLMQ_OK);
            assert_int_equal(tokens[k], want);
            assert_true(step == 0 ? some[k]->last != NULL : some[k]->unread);
        }
        for (int i = 0; i < N && step > 1; i += 2) /* the others are asked later, if they wait */
            assert_memory_equal(llmq_session_logits(llmq_batch_session(batch, i)), llmq_session_logits(alone[i]),
                                bytes);
    }
    assert_int_equal(llmq_session_next(llmq_batch_session(batch, 1), tokens, NULL), LLMQ_OK); /* one by itself */
    assert_int_equal(llmq_session_next(alone[1], &want, NULL), LLMQ_OK);
    assert_int_equal(tokens[0], want);
    for (int i = 0; i < N; i++) {
        assert_memory_equal(llmq_session_logits(llmq_batch_session(batch, i)), llmq_session_logits(alone[i]), bytes);
        llmq_session_destroy(alone[i]);
    }
    llmq_batch_destroy(batch);
    llmq_model_close(model);
    assert_int_equal(emu_memory_used(), 0);
}

/* ---- pages */

static const char *const stories = LLMQ_TEST_DATA "/stories260K/stories260K.bin";
enum { CTX = 1024, PAGE = 128, LONG = 300 };

/* Of the stories' model, both heads of keys and values of all layers. */
static size_t page_bytes(const llmq_model *m) {
    return (size_t)(m->hp.n_layer * 2 * m->hp.n_head_kv * m->hp.head_dim * PAGE) * 2;
}

static void spread(int32_t *tokens, size_t n, int by) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)((i * 29 + i * i + (size_t)by * 77) % 500) + 3;
}

static void append_steps(llmq_session *s, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) append(s, tokens + i, 1);
}

static void assert_logits(llmq_session *a, const float *want, const char *what) {
    if (memcmp(llmq_session_logits(a), want, (size_t)a->model->hp.n_vocab * sizeof *want) != 0)
        fail_msg("%s: other logits", what);
}

/* Three sessions of a batch: one has 300 tokens, the others take 256 and 250 of them, also instead of a few that one of
 * them had computed, and all go on with tokens of their own, one into its next page. Then the first one takes back what
 * is shared and writes something else there. Each has the logits of a session that shares nothing, to the bit. */
static void test_shared_pages(void **state) {
    (void)state;
    enum { STEPS = 3, OTHERS = 4 };
    static const size_t common[] = {LONG, 256, 250};
    llmq_model *model = open_model(stories, NULL, ON_GPU);
    const size_t weights = emu_memory_used(), page = page_bytes(model), n_vocab = (size_t)model->hp.n_vocab;
    const llmq_session_params params = {.n_threads = 1, .n_ctx = CTX};
    llmq_batch *batch = NULL;
    llmq_session *s[3], *alone = NULL;
    int32_t text[3][LONG + OTHERS], step[3][2 * STEPS], again[10];
    float *got = malloc((3 * 2 + 1) * n_vocab * sizeof *got);
    assert_int_equal(llmq_batch_create(model, 3, &params, &batch, NULL), LLMQ_OK);
    const size_t empty = emu_memory_used();
    static const size_t pages[] = {4, 4, 5}; /* with one of 6 tokens; the second of 250 is a copy */
    spread(again, 10, 9), spread(text[0], 6, 0);
    assert_int_equal(llmq_session_sync(llmq_batch_session(batch, 1), text[0], 6, NULL), LLMQ_OK); /* too few to share */
    for (int i = 0; i < 3; i++) {
        spread(text[i], LONG, 0), spread(text[i] + common[i], LONG + OTHERS - common[i], i);
        spread(step[i], 2 * STEPS, 5 + i);
        s[i] = llmq_batch_session(batch, i);
        assert_int_equal(llmq_session_sync(s[i], text[i], common[i] + (i ? OTHERS : 0), NULL), LLMQ_OK);
        if (emu_here()) assert_int_equal(emu_memory_used() - empty, pages[i] * page);
    }
    for (int half = 0; half < 2; half++) {
        for (int k = half * STEPS; k < (half + 1) * STEPS; k++)
            assert_int_equal(llmq_batch_append(batch, s, (int32_t[]){step[0][k], step[1][k], step[2][k]}, 3, NULL),
                             LLMQ_OK);
        for (int i = 0; i < 3; i++)
            memcpy(got + (size_t)(half * 3 + i) * n_vocab, llmq_session_logits(s[i]), n_vocab * sizeof *got);
        if (half) break;
        llmq_session_truncate(s[0], 100);
        append(s[0], again, 10); /* a page of its own, and the others given back */
        memcpy(got + 6 * n_vocab, llmq_session_logits(s[0]), n_vocab * sizeof *got);
        if (emu_here()) assert_int_equal(emu_memory_used() - empty, 6 * page);
    }

    assert_int_equal(llmq_session_create(model, &params, &alone, NULL), LLMQ_OK);
    append(alone, text[0], LONG);
    for (int i = 0; i < 3; i++) {
        llmq_session_truncate(alone, (int64_t)common[i]);
        append_steps(alone, text[i] + common[i], i ? OTHERS : 0);
        append_steps(alone, step[i], STEPS);
        assert_logits(alone, got + (size_t)i * n_vocab, "apart");
        if (i) append_steps(alone, step[i] + STEPS, STEPS), assert_logits(alone, got + (size_t)(3 + i) * n_vocab, "on");
    }
    llmq_session_truncate(alone, 100);
    append(alone, again, 10);
    assert_logits(alone, got + 6 * n_vocab, "rewritten");
    append_steps(alone, step[0] + STEPS, STEPS);
    assert_logits(alone, got + 3 * n_vocab, "rewritten, and on");
    free(got);
    llmq_session_destroy(alone);
    llmq_batch_destroy(batch);
    assert_int_equal(emu_memory_used(), weights);
    llmq_model_close(model);
}

/* Memory that is gone in the middle of a text: an error with its cure, after which the session has what it had and goes
 * on as far as its pages reach; and further when there is memory again. */
static void test_full_memory(void **state) {
    (void)state;
    if (!emu_here()) skip();
    llmq_model *model = open_model(stories, NULL, ON_GPU);
    const llmq_session_params params = {.n_threads = 1, .n_ctx = CTX};
    llmq_session *s[2];
    int32_t text[2 * PAGE + 4];
    llmq_err err = {0};
    const size_t weights = emu_memory_used();
    spread(text, 2 * PAGE + 4, 1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(llmq_session_create(model, &params, &s[i], NULL), LLMQ_OK);
        append(s[i], text, PAGE - 8);
        if (i == 0) {
            emu_set_memory(emu_memory_used() + page_bytes(model) - 1);
            assert_int_equal(llmq_session_append(s[i], text + PAGE - 8, 20, &err), LLMQ_E_MEMORY);
            assert_non_null(strstr(err.msg, "--ctx"));
            assert_non_null(strstr(err.msg, "--kv-type q8_0"));
            assert_int_equal(llmq_session_n_past(s[i]), PAGE - 8);
        }
        append(s[i], text + PAGE - 8, 8);
        if (i == 0) {
            assert_int_equal(llmq_session_append(s[i], text + PAGE, 1, &err), LLMQ_E_MEMORY);
            emu_set_memory(emu_memory_used() + 2 * page_bytes(model) - 1); /* one of two pages */
            assert_int_equal(llmq_session_append(s[i], text + PAGE, PAGE + 4, &err), LLMQ_E_MEMORY);
        }
        append(s[i], text + PAGE, 12);
        emu_set_memory(0);
    }
    assert_logits(s[0], llmq_session_logits(s[1]), "after an error");
    for (int i = 0; i < 2; i++) llmq_session_destroy(s[i]);
    assert_int_equal(emu_memory_used(), weights);
    llmq_model_close(model);
}

/* Sessions of a long context take what they hold. */
static void test_long_contexts(void **state) {
    (void)state;
    if (!emu_here()) skip();
    enum { N = 5, LONGER = 8192 };
    llmq_model *model = open_model(stories, NULL, ON_GPU);
    llmq_batch *batch = NULL;
    int32_t text[9];
    spread(text, 9, 2);
    assert_int_equal(llmq_batch_create(model, N, &(llmq_session_params){.n_threads = 1, .n_ctx = LONGER}, &batch, NULL),
                     LLMQ_OK);
    const size_t empty = emu_memory_used(), piece = LONGER / PAGE / 8 * page_bytes(model);
    for (int i = 0; i < N; i++) {
        assert_int_equal(llmq_session_kv_bytes(llmq_batch_session(batch, i)), LONGER / PAGE * page_bytes(model));
        assert_int_equal(llmq_session_sync(llmq_batch_session(batch, i), text + i, 2, NULL), LLMQ_OK);
        assert_int_equal(emu_memory_used(), empty + piece);
    }
    llmq_batch_destroy(batch);
    llmq_model_close(model);
    assert_int_equal(emu_memory_used(), 0);
}

/* ---- models of which a part is on the GPU */

/* Of the largest logit. AMX and AVX-512 take attention of prompts in bf16, AVX-512 also what meets BF16 rows, which
 * random models feel (docs/numerics.md). */
static double alike(void) {
    const char *isa = backend_cpu()->isa;
    return strcmp(isa, "avx512bf16") == 0 ? 4e-2 : strcmp(isa, "amx") == 0 ? 2e-2 : 5e-3;
}

/* The same batch, of two sessions that go apart, on both: the first layers' rows run on the CPU together. */
static void same_batch(llmq_model *a, llmq_model *b, const int32_t *tokens) {
    llmq_model *models[2] = {a, b};
    llmq_batch *batches[2];
    const int32_t next[2] = {tokens[10], tokens[15]};
    llmq_session *s[2][2];
    for (int m = 0; m < 2; m++) {
        assert_int_equal(llmq_batch_create(models[m], 2, &(llmq_session_params){.n_threads = 1}, &batches[m], NULL),
                         LLMQ_OK);
        for (int i = 0; i < 2; i++) {
            s[m][i] = llmq_batch_session(batches[m], i);
            assert_int_equal(llmq_session_sync(s[m][i], tokens, 10, NULL), LLMQ_OK);
        }
        assert_int_equal(llmq_batch_append(batches[m], s[m], next, 2, NULL), LLMQ_OK);
    }
    for (int i = 0; i < 2; i++)
        assert_true(row_error(llmq_session_logits(s[0][i]), llmq_session_logits(s[1][i]), (size_t)a->hp.n_vocab) <=
                    alike());
    for (int m = 0; m < 2; m++) llmq_batch_destroy(batches[m]);
}

static void test_some_layers(void **state) {
    (void)state;
    static const char *const some[] = {"llama-tied", "llama-bias", "qwen3"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        int32_t tokens[N_TOKENS];
        char path[512];
        snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, some[i]);
        read_tokens(some[i], tokens, N_TOKENS);
        double error = compare(path, 1, tokens, N_TOKENS, N_TEXT);
        if (!(error <= alike())) fail_msg("%s: logits differ by %.3g of the largest", some[i], error);
        llmq_model *part = open_model(path, NULL, 1), *cpu = open_model(path, NULL, ON_CPU);
        llmq_model_info info;
        llmq_model_get_info(part, &info);
        assert_int_equal(info.n_device_layers, 1);
        assert_true(info.n_layer > 1);
        same_batch(part, cpu, tokens);
        llmq_model_close(part), llmq_model_close(cpu);
    }
    llmq_model *all = open_model(LLMQ_TEST_DATA "/goldens/llama", NULL, 99); /* more than it has */
    assert_int_equal(all->n_on_device, all->hp.n_layer);
    llmq_model_close(all);
    assert_int_equal(emu_memory_used(), 0);
}

/* As many layers as fit into what is free, which is measured here by what each number of layers takes with a session;
 * then a session fits beside them. */
static void test_memory(void **state) {
    (void)state;
    if (!emu_here()) skip(); /* there, memory is what it is */
    const char *path = LLMQ_TEST_DATA "/goldens/qwen3";
    llmq_err err = {0};
    llmq_model *model = NULL;
    llmq_session *s;
    size_t need[2];
    for (int n = 1; n <= 2; n++) {
        model = open_model(path, NULL, n);
        assert_int_equal(model->hp.n_layer, 2);
        s = open_session(model);
        need[n - 1] = emu_memory_used() + (s->cache.bytes - s->cache.block_bytes);
        llmq_session_destroy(s);
        llmq_model_close(model);
    }
    for (int n = 0; n <= 2; n++) {
        llmq_model_params params = {.n_threads = 1};
        emu_set_memory(n == 0 ? need[0] / 2 : need[n - 1] + need[n - 1] / 8); /* a sixteenth stays free */
        llmq_status status = model_open_on(path, &params, &cuda_device_ops, &model, &err);
        if (status != (n == 0 ? LLMQ_E_MEMORY : LLMQ_OK)) fail_msg("%d layers of %zu bytes: %s", n, need[0], err.msg);
        if (status != LLMQ_OK) {
            assert_non_null(strstr(err.msg, "--device cpu"));
            continue;
        }
        if (model->n_on_device != n) fail_msg("%lld layers instead of %d", (long long)model->n_on_device, n);
        s = open_session(model);
        llmq_session_destroy(s);
        llmq_model_close(model);
    }
    model = open_model(path, NULL, 2); /* what was asked for is tried, and given back where it does not fit */
    emu_set_memory(emu_memory_used() + 1000);
    assert_int_equal(llmq_session_create(model, &(llmq_session_params){.n_threads = 1}, &s, &err), LLMQ_E_MEMORY);
    assert_non_null(strstr(err.msg, "--gpu-layers"));
    llmq_model_close(model);
    emu_set_memory(1000);
    assert_int_equal(model_open_on(path, &(llmq_model_params){.gpu_layers = 1}, &cuda_device_ops, &model, &err),
                     LLMQ_E_MEMORY);
    emu_set_memory(0);
    assert_int_equal(emu_memory_used(), 0);
}

/* Logits of 8 tokens where a session only decodes, of 64 where it has prompts. */
static void test_head_bytes(void **state) {
    (void)state;
    enum { VOCAB = 65536 };
    llmq_device_desc d = {.n_embd = 64, .n_head = 1, .n_head_kv = 1, .head_dim = 64, .n_ff = 64, .n_rot = 64};
    static const int n_batch[] = {1, 8, 16, 512}, held[] = {8, 8, 16, 64};
    for (int i = 0; i < 4; i++) {
        size_t bytes[2];
        for (int k = 0; k < 2; k++) d.n_vocab = (k + 1) * VOCAB, bytes[k] = gpu_work_bytes(&d, 256, n_batch[i]);
        assert_int_equal(bytes[1] - bytes[0], (size_t)held[i] * VOCAB * sizeof(float));
    }
}

static void test_refusals(void **state) {
    (void)state;
    llmq_err err = {0};
    llmq_model *model = open_model(LLMQ_TEST_DATA "/goldens/llama", NULL, ON_GPU);
    llmq_session *s = NULL;
    llmq_session_params params = {.n_threads = 1, .kv_type = LLMQ_KV_F32};
    assert_int_equal(llmq_session_create(model, &params, &s, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "--kv-type"));
    llmq_model_close(model);
    llmq_device_model *m = NULL;
    llmq_device_desc odd = {.head_dim = 12, .n_rot = 12};
    assert_int_equal(cuda_device_ops.model_create(&odd, &m, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "--device cpu"));
    assert_null(m);
    cuda_device_ops.model_destroy(NULL);
    cuda_device_ops.cache_destroy(NULL);
    cuda_device_ops.work_destroy(NULL);
}

/* Whatever does not fit over there, nothing is left there of what did. */
static void test_little_memory(void **state) {
    (void)state;
    if (!emu_here()) skip();
    const char *path = LLMQ_TEST_DATA "/goldens/qwen3";
    llmq_err err = {0};
    int opened = 0, refused = 0;
    for (size_t limit = 20000; limit < 2000000; limit += limit / 3) {
        llmq_model *model = NULL;
        llmq_session *s = NULL;
        int32_t tokens[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
        emu_set_memory(limit);
        llmq_status status =
            model_open_on(path, &(llmq_model_params){.n_threads = 1, .gpu_layers = 2}, &cuda_device_ops, &model, &err);
        if (status == LLMQ_OK) status = llmq_session_create(model, &(llmq_session_params){.n_threads = 1}, &s, &err);
        if (status == LLMQ_OK) status = llmq_session_append(s, tokens, 12, &err);
        opened += status == LLMQ_OK;
        refused += status == LLMQ_E_MEMORY;
        assert_true(status == LLMQ_OK || status == LLMQ_E_MEMORY);
        llmq_session_destroy(s);
        llmq_model_close(model);
        assert_int_equal(emu_memory_used(), 0);
    }
    emu_set_memory(0);
    assert_true(opened > 1 && refused > 3);
}

/* Whatever allocation fails, opening and running give it back and say so. */
static void test_out_of_memory(void **state) {
    (void)state;
    bool failed = true;
    for (int n = 1; failed; n += 23) {
        llmq_err err = {0};
        llmq_model *model = NULL;
        llmq_session *s = NULL;
        mem_fail_after(n);
        llmq_status status = model_open_on(LLMQ_TEST_DATA "/goldens/llama", &(llmq_model_params){.n_threads = 1},
                                           &cuda_device_ops, &model, &err);
        if (status == LLMQ_OK) status = llmq_session_create(model, &(llmq_session_params){.n_threads = 1}, &s, &err);
        if (status == LLMQ_OK) status = llmq_session_append(s, (int32_t[]){1, 2, 3}, 3, &err);
        mem_fail_after(0);
        failed = status != LLMQ_OK;
        if (failed) assert_int_equal(status, LLMQ_E_MEMORY);
        llmq_session_destroy(s);
        llmq_model_close(model);
        assert_int_equal(emu_memory_used(), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_architectures), cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_quantized),     cmocka_unit_test(test_nf4),
        cmocka_unit_test(test_short_passes),  cmocka_unit_test(test_story),
        cmocka_unit_test(test_sessions),      cmocka_unit_test(test_batch),
        cmocka_unit_test(test_q8_cache),      cmocka_unit_test(test_shared_pages),
        cmocka_unit_test(test_full_memory),   cmocka_unit_test(test_long_contexts),
        cmocka_unit_test(test_some_layers),   cmocka_unit_test(test_memory),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_little_memory),
        cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_acts_of_8_bits),
        cmocka_unit_test(test_head_bytes),    cmocka_unit_test(test_groups),
        cmocka_unit_test(test_sampling),      cmocka_unit_test(test_batch_next),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
