/* Hugging Face folders of a quantization run: read back they mean what the GGUF file of the same run means, they are
 * whole or absent, and what they cannot hold is refused before any work. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "core/file.h"
#include "core/mem.h"
#include "engine/jobs.h"
#include "engine/model.h"
#include "types/type.h"

#define LLAMA LLMQ_TEST_DATA "/goldens/llama"
#define TIED LLMQ_TEST_DATA "/goldens/llama-tied"
#define QWEN2 LLMQ_TEST_DATA "/goldens/qwen2"
#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"
#define ROOT LLMQ_TEST_TMP "/outputs"
#define OUT ROOT "/out"

static int fresh(void **state) {
    (void)state;
    mkdir(LLMQ_TEST_TMP, 0777);
    return system("rm -rf " ROOT " && mkdir " ROOT);
}

static llmq_quant_params params_of(const char *emit) {
    return (llmq_quant_params){.method = "rtn", .emit = emit, .group = 32, .act_order = -1, .damp = -1, .calib_tokens = 512, .calib_ctx = 64,
                               .n_threads = 1, .out = OUT};
}

static void quantize_ok(const char *model, const llmq_quant_params *p) {
    llmq_quant_result r;
    llmq_err err = {0};
    if (job_quantize(model, p, &r, &err) != LLMQ_OK) fail_msg("%s: %s", p->emit, err.msg);
    mem_free(r.rows);
    assert_false(file_exists(OUT ".tmp"));
    assert_false(file_exists(OUT ".journal"));
}

static void quantize_fails(const char *model, const llmq_quant_params *p, llmq_status status, const char *says) {
    llmq_quant_result r;
    llmq_err err = {0};
    llmq_status got = job_quantize(model, p, &r, &err);
    if (got != status || !strstr(err.msg, says)) fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, err.msg, status, says);
    assert_false(file_exists(OUT ".tmp"));
}

static llmq_model *open_model(const char *path) {
    llmq_model *m;
    llmq_err err = {0};
    llmq_model_params params = {.n_threads = 1, .no_weights = true};
    if (model_open(path, &params, &m, &err) != LLMQ_OK) fail_msg("%s: %s", path, err.msg);
    return m;
}

/* Values of a role's tensor, rows as Hugging Face orders them. */
static float *values(llmq_model *m, int layer, llmq_role role, int64_t *n_out) {
    const llmq_tensor *t = layer < 0 ? m->by_role[role] : m->layer_tensors[layer].by_role[role];
    if (!t) return NULL;
    int64_t rows = tensor_rows(t), cols = tensor_cols(t), row_bytes = type_row_bytes(t->type, cols);
    assert_int_equal(source_load(m->source, t, true, NULL), LLMQ_OK);
    float *x = mem_alloc((size_t)(rows * cols), sizeof *x);
    const llmq_arch_rule *rule = arch_rule(m->arch, role);
    int64_t heads = m->rope_neox ? 0 : rule->permute == 1 ? m->hp.n_head : rule->permute == 2 ? m->hp.n_head_kv : 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t from = r, dim = heads ? rows / heads : 1, i = r % dim;
        if (heads && rows > 1) from = r - i + (i < dim / 2 ? 2 * i : 2 * (i - dim / 2) + 1);
        type_to_f32(t->type, (const uint8_t *)t->data + from * row_bytes, x + r * cols, cols);
    }
    *n_out = rows * cols;
    return x;
}

/* Every matrix inside the layers is bit for bit the same; tolerance for Q4_1's minimum. */
static void assert_same_layers(const char *a, const char *b, float tolerance) {
    llmq_model *x = open_model(a), *y = open_model(b);
    assert_int_equal(x->hp.n_layer, y->hp.n_layer);
    for (int layer = 0; layer < (int)x->hp.n_layer; layer++)
        for (int role = ROLE_ATTN_NORM; role < ROLE_COUNT; role++) {
            int64_t n = 0, m = 0;
            float *u = values(x, layer, (llmq_role)role, &n), *v = values(y, layer, (llmq_role)role, &m);
            assert_int_equal(n, m);
            for (int64_t i = 0; i < n; i++)
                if (!(fabsf(u[i] - v[i]) <= tolerance))
                    fail_msg("%s and %s: layer %d role %d: value %d is %g and %g", a, b, layer, role, (int)i, (double)u[i], (double)v[i]);
            mem_free(u);
            mem_free(v);
        }
    model_close(x);
    model_close(y);
}

static json_t *read_json(const char *path) {
    json_error_t e;
    json_t *root = json_load_file(path, 0, &e);
    if (!root) fail_msg("%s: %s", path, e.text);
    return root;
}

static const char *gguf_of(const char *dir) {
    static char path[512];
    FILE *f = popen("ls " OUT "/gguf/*.gguf", "r");
    (void)dir;
    assert_non_null(fgets(path, sizeof path, f));
    pclose(f);
    path[strcspn(path, "\n")] = 0;
    return path;
}

/* One run, one grid: every container has the same weights bit for bit. */
static void all_containers_mean_the_same(void **state) {
    (void)state;
    static const char *const models[] = {LLAMA, TIED, QWEN2};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (int bits = 4; bits <= 8; bits += 4) {
            llmq_quant_params p = params_of(bits == 4 ? "gguf,gptq,ct,awq" : "gguf,gptq,ct");
            p.bits = bits;
            assert_int_equal(fresh(NULL), 0);
            quantize_ok(models[i], &p);
            assert_same_layers(gguf_of(OUT), OUT "/gptq", 0);
            assert_same_layers(OUT "/gptq", OUT "/ct", 0);
            if (bits == 4) assert_same_layers(OUT "/gptq", OUT "/awq", 0);
        }
}

/* GPTQ too, with the passes going on from quantized weights, for any number of threads. */
static void solved_folders_are_the_same_bytes(void **state) {
    (void)state;
    llmq_quant_params p = params_of("ct,bnb");
    p.method = "gptq";
    p.tokenizer = STORIES_TOK;
    p.group = -1; /* rows of 172 */
    for (int n = 1; n <= 3; n++) {
        p.n_threads = n;
        p.out = n == 1 ? ROOT "/one" : n == 2 ? ROOT "/two" : ROOT "/three";
        llmq_quant_result r;
        llmq_err err = {0};
        llmq_status status = job_quantize(STORIES, &p, &r, &err);
        if (status != LLMQ_OK) fail_msg("%s", err.msg);
        assert_true(r.mean_error > 0 && r.mean_error < r.mean_rtn_error);
        mem_free(r.rows);
    }
    assert_int_equal(system("diff -r " ROOT "/one " ROOT "/two && diff -r " ROOT "/one " ROOT "/three"), 0);
}

static void asymmetric_grids_agree(void **state) {
    (void)state;
    llmq_quant_params p = params_of("gguf,awq,ct,gptq");
    p.asym = true;
    quantize_ok(LLAMA, &p);
    assert_same_layers(OUT "/awq", OUT "/ct", 2e-3f); /* both are read as Q4_1, whose minimum is F16 */
    assert_same_layers(OUT "/awq", gguf_of(OUT), 2e-3f);
    json_t *config = read_json(OUT "/gptq/quantize_config.json");
    assert_string_equal(json_string_value(json_object_get(config, "checkpoint_format")), "gptq_v2");
    json_decref(config);
}

/* Where neither is asked for, groups have zero points at 2 bits only. */
static void two_bits_are_asymmetric(void **state) {
    static const struct {
        int bits, asym;
        bool sym_out;
    } cases[] = {{2, -1, false}, {2, 0, true}, {3, -1, true}, {0, -1, true}, {3, 1, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        llmq_quant_params p = params_of("gptq");
        p.bits = cases[i].bits;
        p.asym = cases[i].asym;
        p.force = i > 0;
        quantize_ok(LLAMA, &p);
        json_t *config = read_json(OUT "/quantize_config.json"), *sym = json_object_get(config, "sym");
        assert_true(json_is_boolean(sym));
        if (json_is_true(sym) != cases[i].sym_out) fail_msg("bits %d, asym %d", cases[i].bits, cases[i].asym);
        json_decref(config);
    }
}

static void folders_say_what_they_are(void **state) {
    (void)state;
    llmq_quant_params p = params_of("gptq,awq,ct,bnb");
    static const char *const methods[][2] = {{"gptq", "gptq"}, {"awq", "awq"}, {"ct", "compressed-tensors"}, {"bnb", "bitsandbytes"}};
    quantize_ok(TIED, &p);
    for (int i = 0; i < 4; i++) {
        char path[256];
        snprintf(path, sizeof path, OUT "/%s/config.json", methods[i][0]);
        json_t *config = read_json(path), *quant = json_object_get(config, "quantization_config");
        assert_string_equal(json_string_value(json_object_get(quant, "quant_method")), methods[i][1]);
        assert_true(json_is_true(json_object_get(config, "tie_word_embeddings")));
        const char *dtype = json_string_value(json_object_get(config, "dtype"));
        assert_string_equal(dtype ? dtype : json_string_value(json_object_get(config, "torch_dtype")), "float16");
        json_decref(config);
        snprintf(path, sizeof path, OUT "/%s", methods[i][0]);
        llmq_model *m = open_model(path);
        assert_null(m->by_role[ROLE_OUTPUT]); /* tied stays tied */
        assert_int_equal(m->by_role[ROLE_TOKEN_EMBD]->type, LLMQ_TYPE_F16);
        model_close(m);
    }
}

/* From a .bin, whose rows are interleaved and which has neither config.json nor tokenizer.json. */
static void a_bin_becomes_a_folder(void **state) {
    (void)state;
    llmq_quant_params p = params_of("ct");
    p.tokenizer = STORIES_TOK;
    p.group = -1; /* rows of 172 */
    llmq_quant_result r;
    llmq_err err = {0};
    if (job_quantize(STORIES, &p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    mem_free(r.rows);
    llmq_model *bin = open_model(STORIES), *folder = open_model(OUT);
    int64_t n, m;
    float *a = values(bin, 0, ROLE_Q, &n), *b = values(folder, 0, ROLE_Q, &m);
    double error = 0, size = 0;
    assert_int_equal(n, m);
    for (int64_t i = 0; i < n; i++) {
        error += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
        size += (double)a[i] * (double)a[i];
    }
    assert_true(error < 0.03 * size); /* other rows would be more than twice the size away */
    mem_free(a);
    mem_free(b);
    /* The tokenizer says the same from tokenizer.json as from tokenizer.bin. */
    const char *text = "Once upon a time, there was a little girl named Lily. She said: \xc3\xa9!";
    const llmq_tokenizer *tok;
    int32_t *x, *y;
    size_t n_x, n_y;
    assert_int_equal(model_tokenizer(folder, &tok, NULL), LLMQ_OK);
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), 1, &y, &n_y, NULL), LLMQ_OK);
    model_close(bin);
    llmq_model_params params = {.n_threads = 1, .no_weights = true, .tokenizer = STORIES_TOK};
    assert_int_equal(model_open(STORIES, &params, &bin, NULL), LLMQ_OK);
    assert_int_equal(model_tokenizer(bin, &tok, NULL), LLMQ_OK);
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), 1, &x, &n_x, NULL), LLMQ_OK);
    assert_int_equal(n_x, n_y);
    assert_memory_equal(x, y, n_x * sizeof *x);
    mem_free(x);
    mem_free(y);
    model_close(bin);
    model_close(folder);
}

/* Each matrix names the one that a token meets next (core/backend.h). */
static void matrices_know_what_comes_after(void **state) {
    (void)state;
    llmq_model *m;
    llmq_model_params params = {.n_threads = 1, .tokenizer = STORIES_TOK};
    assert_int_equal(model_open(STORIES, &params, &m, NULL), LLMQ_OK);
    const llmq_weight *w = &m->head;
    for (int64_t l = 0; l < m->hp.n_layer; l++) {
        const llmq_layer *layer = &m->layers[l];
        const llmq_weight *way[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                    &layer->gate, &layer->up, &layer->down};
        for (size_t i = 0; i < sizeof way / sizeof *way; i++) assert_ptr_equal(w = w->after, way[i]);
    }
    assert_ptr_equal(w->after, &m->head);
    model_close(m);
}

static void shards_hold_the_same(void **state) {
    (void)state;
    llmq_quant_params p = params_of("ct");
    quantize_ok(LLAMA, &p);
    p.out = ROOT "/sharded";
    p.shard_bytes = 20000;
    quantize_ok(LLAMA, &p);
    assert_true(file_exists(ROOT "/sharded/model.safetensors.index.json"));
    assert_false(file_exists(ROOT "/sharded/model.safetensors"));
    assert_same_layers(OUT, ROOT "/sharded", 0);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    llmq_quant_params p = params_of("gptq,nonsense");
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "'nonsense' is not known");
    p.emit = "gptq,gptq";
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "gptq is there twice");
    p.emit = "";
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "--emit");
    p.emit = "gguf";
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "--group 32");
    p.group = 0;
    p.asym = true;
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "--asym");
    p = params_of("gptq,gguf");
    p.type = "iq4_nl";
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "which is q4_0");
    p.type = NULL;
    p.bits = 3;
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "no GGUF type holds");
    p = params_of("ct");
    p.group = 128;
    quantize_fails(LLAMA, &p, LLMQ_E_UNSUPPORTED, "groups that fit: 64, 32"); /* names what fits */
    p.emit = "awq";
    quantize_fails(LLAMA, &p, LLMQ_E_UNSUPPORTED, "groups that fit");
    const char *keep[] = {"blk.0.*=f16"};
    p = params_of("gguf,gptq");
    p.keep = keep;
    p.n_keep = 1;
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "on one grid");
    p = params_of("gptq");
    p.double_quant = true;
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "--double-quant");
    p = params_of("gguf,bnb");
    p.group = 0;
    p.method = "nf4";
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "--nf4");
    assert_false(file_exists(OUT));
}

static void folders_of_others_stay(void **state) {
    (void)state;
    llmq_quant_params p = params_of("ct");
    quantize_ok(LLAMA, &p);
    quantize_fails(LLAMA, &p, LLMQ_E_EXISTS, "--force");
    p.force = true;
    p.emit = "gptq,ct";
    quantize_ok(LLAMA, &p); /* takes the place of the other */
    assert_true(file_exists(OUT "/ct/config.json"));
    assert_false(file_exists(OUT "/config.json"));
    /* A model that is not quantized is nobody's output, though its files have the names of one. */
    assert_int_equal(system("rm -rf " OUT " && cp -r " LLAMA " " OUT), 0);
    quantize_fails(LLAMA, &p, LLMQ_E_EXISTS, "is in the way");
    assert_true(file_exists(OUT "/model.safetensors"));
    p.out = LLAMA;
    quantize_fails(LLAMA, &p, LLMQ_E_ARG, "belongs to the source");
    /* Nor is a folder that the source lies in. */
    p = params_of("ct");
    assert_int_equal(system("rm -rf " OUT), 0);
    quantize_ok(LLAMA, &p);
    p.force = true;
    p.out = ROOT "/again";
    quantize_ok(OUT, &p); /* a quantized source: fine, elsewhere */
    p.out = OUT;
    quantize_fails(OUT, &p, LLMQ_E_ARG, "belongs to the source");
}

static llmq_status convert(const char *from, const char *to, const char *emit, llmq_err *err) {
    llmq_convert_params p = {.emit = emit, .n_threads = 1};
    llmq_convert_result r;
    return job_convert(from, to, &p, &r, err);
}

static llmq_status to_floats(const char *from, const char *to, const char *type, bool force, llmq_convert_result *r, llmq_err *err) {
    llmq_convert_params p = {.emit = "hf", .type = type, .tokenizer = !strcmp(from, STORIES) ? STORIES_TOK : NULL, .force = force, .n_threads = 2};
    return job_convert(from, to, &p, r, err);
}

/* convert --emit hf: any container becomes a folder of floats with the same values, and from there a GGUF file again. */
static void floats_become_a_folder(void **state) {
    (void)state;
    static const char *const models[] = {STORIES, LLAMA, TIED, QWEN2};
    llmq_convert_result r;
    llmq_err err = {0};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        assert_int_equal(fresh(NULL), 0);
        if (to_floats(models[i], OUT, "f32", false, &r, &err) != LLMQ_OK) fail_msg("%s: %s", models[i], err.msg);
        assert_int_equal(r.n_inexact, 0);
        assert_same_layers(models[i], OUT, 0);
        if (convert(OUT, ROOT "/again.gguf", "gguf", &err) != LLMQ_OK) fail_msg("%s: %s", models[i], err.msg);
        assert_same_layers(models[i], ROOT "/again.gguf", 0);
        /* In 16 bits every value is off by no more than half a unit of the last of its 8 bits. */
        if (to_floats(models[i], ROOT "/bf16", "bf16", false, &r, &err) != LLMQ_OK) fail_msg("%s: %s", models[i], err.msg);
        assert_same_layers(OUT, ROOT "/bf16", 0x1p-7f);
    }
}

static void floats_of_quantized_weights(void **state) {
    (void)state;
    llmq_convert_result r;
    llmq_err err = {0};
    llmq_quant_params p = params_of("gptq");
    quantize_ok(LLAMA, &p);
    if (to_floats(OUT, ROOT "/floats", "f32", false, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_same_layers(OUT, ROOT "/floats", 0);
    json_t *config = read_json(ROOT "/floats/config.json");
    assert_null(json_object_get(config, "quantization_config"));
    const char *dtype = json_string_value(json_object_get(config, json_object_get(config, "dtype") ? "dtype" : "torch_dtype"));
    assert_string_equal(dtype, "float32");
    json_decref(config);
    assert_int_equal(to_floats(OUT, ROOT "/floats", NULL, false, &r, &err), LLMQ_E_EXISTS);
    if (to_floats(OUT, ROOT "/floats", NULL, true, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg); /* its own may go */
    llmq_model *m = open_model(ROOT "/floats");
    assert_int_equal(m->by_role[ROLE_TOKEN_EMBD]->type, LLMQ_TYPE_BF16);
    model_close(m);
    assert_int_equal(to_floats(OUT, ROOT "/x", "q8_0", false, &r, &err), LLMQ_E_ARG);
    assert_int_equal(to_floats(LLAMA, LLAMA, "f32", true, &r, &err), LLMQ_E_ARG);
    assert_int_equal(system("cp -r " LLAMA " " ROOT "/theirs"), 0);
    assert_int_equal(to_floats(OUT, ROOT "/theirs", "f32", true, &r, &err), LLMQ_E_EXISTS); /* someone's original */
}

/* From one container to another nothing is rounded: the weights of a folder are the bytes that the run itself wrote. */
static void containers_become_each_other(void **state) {
    (void)state;
    llmq_err err = {0};
    llmq_quant_params p = params_of("gptq,ct,awq,gguf");
    quantize_ok(LLAMA, &p);
    if (convert(OUT "/gptq", ROOT "/ct", "ct", &err) != LLMQ_OK) fail_msg("%s", err.msg);
    if (convert(OUT "/ct", ROOT "/awq", "awq", &err) != LLMQ_OK) fail_msg("%s", err.msg);
    if (convert(OUT "/awq", ROOT "/gptq", "gptq", &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"ct", "awq", "gptq"};
        char command[512];
        snprintf(command, sizeof command, "cmp " ROOT "/%s/model.safetensors " OUT "/%s/model.safetensors", names[i], names[i]);
        assert_int_equal(system(command), 0);
    }
    if (convert(gguf_of(OUT), ROOT "/both", "gptq,ct", &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_same_layers(gguf_of(OUT), ROOT "/both/gptq", 0);
    assert_same_layers(gguf_of(OUT), ROOT "/both/ct", 0);
    /* Groups that do not divide the rows become shorter ones of the same scale. */
    p.group = 64;
    p.emit = "gptq";
    p.out = ROOT "/long";
    llmq_quant_result r;
    if (job_quantize(QWEN2, &p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    mem_free(r.rows);
    if (convert(ROOT "/long", ROOT "/again", "gptq", &err) != LLMQ_OK) fail_msg("%s", err.msg);
    json_t *config = read_json(ROOT "/again/quantize_config.json");
    int64_t group = json_integer_value(json_object_get(config, "group_size"));
    assert_int_equal(group, 32); /* rows of 96 end in half a group of 64, which is one of 32 in blocks */
    json_decref(config);
    assert_same_layers(ROOT "/long", ROOT "/again", 0);
}

static void what_would_be_rounded_is_not_converted(void **state) {
    (void)state;
    llmq_err err = {0};
    assert_int_equal(convert(LLAMA, OUT, "gptq", &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "cannot hold exactly"));
    llmq_quant_params p = params_of("gguf");
    p.group = 0;
    p.type = "q4_0"; /* blocks of negative scale, which say -8 to the largest weight */
    p.out = ROOT "/x.gguf";
    quantize_ok(LLAMA, &p);
    assert_int_equal(convert(ROOT "/x.gguf", OUT, "gptq", &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "negative scale"));
    assert_int_equal(convert(ROOT "/x.gguf", OUT, "bnb", &err), LLMQ_E_ARG);
    assert_false(file_exists(OUT) || file_exists(OUT ".tmp"));
}

/* ---- INT8 ---- */

#define TINY LLMQ_TEST_DATA "/../../data/tiny"

static llmq_quant_params int8_params(llmq_int8 kind) {
    llmq_quant_params p = params_of("gguf,ct");
    p.group = 0;
    p.int8 = kind;
    p.calib_tokens = 256;
    return p;
}

static void int8_quantize(const llmq_quant_params *p, llmq_quant_result *r) {
    llmq_err err = {0};
    if (job_quantize(TINY, p, r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
}

/* The last of the logits after a few tokens; the matrices of layers must be run on 8-bit inputs. */
static float *int8_logits(const char *path, const char *activations, const llmq_act_range **ranges) {
    llmq_model *m;
    llmq_session *s;
    llmq_err err = {0};
    const int32_t tokens[] = {5, 700, 31, 1200, 9, 44, 1999, 2};
    llmq_model_params params = {.n_threads = 1};
    llmq_session_params session;
    llmq_session_params_default(&session);
    session.n_threads = 1;
    session.kv_type = LLMQ_KV_F32;
    if (model_open(path, &params, &m, &err) != LLMQ_OK) fail_msg("%s: %s", path, err.msg);
    assert_string_equal(m->info.activations, activations);
    for (int l = 0; l < (int)m->hp.n_layer; l++) {
        const llmq_layer *y = &m->layers[l];
        const llmq_weight *w[] = {&y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down};
        for (int i = 0; i < 7; i++) assert_int_equal(w[i]->act, ACT_INT8);
    }
    float *x = mem_alloc((size_t)m->hp.n_vocab, sizeof *x);
    llmq_act_range *copy = mem_alloc((size_t)m->hp.n_layer * SITE_COUNT, sizeof *copy);
    memcpy(copy, m->int8_inputs, (size_t)m->hp.n_layer * SITE_COUNT * sizeof *copy);
    *ranges = copy;
    assert_int_equal(llmq_session_create(m, &session, &s, &err), LLMQ_OK);
    assert_int_equal(llmq_session_append(s, tokens, 8, &err), LLMQ_OK);
    memcpy(x, llmq_session_logits(s), (size_t)m->hp.n_vocab * sizeof *x);
    llmq_session_destroy(s);
    model_close(m);
    return x;
}

static double apart(const float *a, const float *b, int n) {
    double e = 0, all = 0;
    for (int i = 0; i < n; i++) e += (double)(a[i] - b[i]) * (double)(a[i] - b[i]), all += (double)a[i] * (double)a[i];
    return e / all;
}

/* The file and the folder are the same model, dynamic and static, and close to what they were made from. */
static void int8_models_run_alike(void **state) {
    (void)state;
    enum { VOCAB = 2048, N = 4 * SITE_COUNT };
    llmq_convert_result converted;
    llmq_err err = {0};
    float *last = NULL;
    for (int kind = LLMQ_INT8_DYNAMIC; kind <= LLMQ_INT8_STATIC; kind++)
        for (int plain = 0; plain < 2; plain++) {
            const char *name = kind == LLMQ_INT8_STATIC ? "static" : "dynamic";
            const llmq_act_range *a, *b, *c;
            llmq_quant_result r;
            llmq_quant_params p = int8_params((llmq_int8)kind);
            p.no_smooth = plain;
            assert_int_equal(fresh(NULL), 0);
            int8_quantize(&p, &r);
            assert_same_layers(gguf_of(OUT), OUT "/ct", plain ? 0 : 2e-3f); /* smoothed norms: F32 and F16 */
            float *file = int8_logits(gguf_of(OUT), name, &a), *folder = int8_logits(OUT "/ct", name, &b);
            assert_memory_equal(a, b, N * sizeof *a);
            assert_true(apart(file, folder, VOCAB) < 3e-3); /* the embedding is Q8_0 in the one and F16 in the other */
            assert_true(!last || apart(file, last, VOCAB) < 0.06); /* any tokens: some leave the fixed ranges */
            llmq_convert_params to_gguf = {.n_threads = 1};
            assert_int_equal(job_convert(OUT "/ct", ROOT "/again.gguf", &to_gguf, &converted, &err), LLMQ_OK);
            float *again = int8_logits(ROOT "/again.gguf", name, &c);
            assert_true(apart(again, folder, VOCAB) < 1e-3); /* rows in another order: other sums */
            assert_memory_equal(a, c, N * sizeof *a);
            assert_int_equal(r.n_inputs, kind == LLMQ_INT8_STATIC || !plain ? N : 0);
            for (size_t i = 0; i < r.n_inputs; i++) {
                assert_true(r.inputs[i].error < 0.02 && r.inputs[i].error <= r.inputs[i].plain_error * 1.0001);
                assert_true(plain ? r.inputs[i].alpha == 0 : r.inputs[i].alpha >= 0);
                assert_true(r.inputs[i].kept || (a[i].scale > 0) == (kind == LLMQ_INT8_STATIC));
                assert_true(a[i].scale == r.inputs[i].scale || r.inputs[i].kept);
            }
            mem_free((void *)(uintptr_t)a), mem_free((void *)(uintptr_t)b), mem_free((void *)(uintptr_t)c);
            mem_free(folder), mem_free(again), mem_free(last);
            last = file;
            llmq_quant_result_clear(&r);
        }
    mem_free(last);
}

/* What compressed-tensors reads: the groups, and a scale beside each matrix whose inputs have a fixed range. */
static void int8_folders_say_what_they_are(void **state) {
    (void)state;
    llmq_quant_result r;
    llmq_quant_params p = int8_params(LLMQ_INT8_STATIC);
    p.emit = "ct";
    int8_quantize(&p, &r);
    json_t *config = read_json(OUT "/config.json"), *quant = json_object_get(config, "quantization_config"),
           *inputs = json_object_get(json_object_get(json_object_get(quant, "config_groups"), "group_0"), "input_activations");
    assert_string_equal(json_string_value(json_object_get(quant, "format")), "int-quantized");
    assert_string_equal(json_string_value(json_object_get(inputs, "strategy")), "tensor");
    assert_true(json_is_false(json_object_get(inputs, "dynamic")));
    json_decref(config);
    char *text;
    size_t len;
    assert_int_equal(file_read(OUT "/model.safetensors", 1 << 24, &text, &len, NULL), LLMQ_OK);
    text[20000] = 0;
    assert_non_null(strstr(text + 8, "model.layers.0.self_attn.q_proj.input_scale"));
    mem_free(text);
    llmq_quant_result_clear(&r);
}

/* GPTQ's error feedback on rows with one scale: less error than rounding, and the same bytes for any number of threads. */
static void int8_rows_are_solved(void **state) {
    (void)state;
    for (int kind = LLMQ_INT8_DYNAMIC; kind <= LLMQ_INT8_STATIC; kind++)
        for (int n = 1; n <= 2; n++) {
            llmq_quant_result r;
            llmq_quant_params p = int8_params((llmq_int8)kind);
            p.method = "gptq";
            p.emit = "gguf";
            p.n_threads = n;
            p.force = true;
            p.out = n == 1 ? ROOT "/one.gguf" : ROOT "/two.gguf";
            int8_quantize(&p, &r);
            assert_true(r.mean_error > 0 && r.mean_error < r.mean_rtn_error);
            llmq_quant_result_clear(&r);
            if (n == 2) assert_int_equal(system("cmp " ROOT "/one.gguf " ROOT "/two.gguf"), 0);
        }
}

static void int8_refusals(void **state) {
    (void)state;
    static const char *const keep[] = {"blk.0.*=q4_0"};
    const struct {
        const char *says, *emit, *type;
        int bits, group;
        bool asym, awq, keep;
        llmq_int8 kind;
    } cases[] = {{"only gguf and ct", "gptq,gguf", NULL, 0, 0, 0, 0, 0, LLMQ_INT8_DYNAMIC},
                 {"stored as q8_0", "gguf", "q4_0", 0, 0, 0, 0, 0, LLMQ_INT8_DYNAMIC},
                 {"leave out --bits", "gguf", NULL, 4, 0, 0, 0, 0, LLMQ_INT8_DYNAMIC},
                 {"leave out --group", "ct", NULL, 0, 64, 0, 0, 0, LLMQ_INT8_STATIC},
                 {"leave out --asym", "ct", NULL, 0, 0, 1, 0, 0, LLMQ_INT8_STATIC},
                 {"leave out --awq", "gguf", NULL, 0, 0, 0, 1, 0, LLMQ_INT8_STATIC},
                 {"only as floats", "gguf", NULL, 0, 0, 0, 0, 1, LLMQ_INT8_DYNAMIC}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        llmq_quant_params p = int8_params(cases[i].kind);
        p.emit = cases[i].emit, p.type = cases[i].type, p.bits = cases[i].bits, p.group = cases[i].group;
        p.asym = cases[i].asym, p.awq = cases[i].awq, p.keep = keep, p.n_keep = cases[i].keep;
        llmq_quant_result r;
        llmq_err err = {0};
        llmq_status status = job_quantize(TINY, &p, &r, &err);
        if (status != LLMQ_E_ARG || !strstr(err.msg, cases[i].says)) fail_msg("%zu: status %d, %s", i, status, err.msg);
    }
}

static bool stop_early(void *user, double done, double total, const char *what, double left) {
    (void)total, (void)what, (void)left;
    int *calls = user;
    return done == 0 || ++*calls < 10;
}

static void stopping_leaves_no_folder(void **state) {
    (void)state;
    int calls = 0;
    llmq_quant_result r;
    llmq_err err = {0};
    llmq_quant_params p = params_of("gguf,gptq,ct,bnb");
    p.progress = stop_early;
    p.user = &calls;
    assert_int_equal(job_quantize(LLAMA, &p, &r, &err), LLMQ_E_INTERRUPTED);
    assert_false(file_exists(OUT));
    p.progress = NULL;
    quantize_ok(LLAMA, &p);
}

static void running_out_of_memory_leaves_nothing(void **state) {
    (void)state;
    llmq_quant_params p = params_of("gguf,gptq,bnb");
    for (long n = 1; n < 4000; n += 37) {
        llmq_quant_result r;
        llmq_err err = {0};
        p.no_resume = true;
        mem_fail_after(n);
        llmq_status status = job_quantize(LLAMA, &p, &r, &err);
        mem_fail_after(0);
        if (status == LLMQ_OK) {
            mem_free(r.rows);
            assert_true(n > 200);
            return;
        }
        if (status != LLMQ_E_MEMORY) fail_msg("allocation %ld: status %d: %s", n, status, err.msg);
        assert_false(file_exists(OUT));
    }
    fail_msg("never finished");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(all_containers_mean_the_same, fresh),
        cmocka_unit_test_setup(solved_folders_are_the_same_bytes, fresh),
        cmocka_unit_test_setup(asymmetric_grids_agree, fresh),
        cmocka_unit_test_setup(two_bits_are_asymmetric, fresh),
        cmocka_unit_test_setup(folders_say_what_they_are, fresh),
        cmocka_unit_test_setup(a_bin_becomes_a_folder, fresh),
        cmocka_unit_test_setup(matrices_know_what_comes_after, fresh),
        cmocka_unit_test_setup(shards_hold_the_same, fresh),
        cmocka_unit_test_setup(what_does_not_fit_is_refused, fresh),
        cmocka_unit_test_setup(folders_of_others_stay, fresh),
        cmocka_unit_test_setup(containers_become_each_other, fresh),
        cmocka_unit_test_setup(floats_become_a_folder, fresh),
        cmocka_unit_test_setup(floats_of_quantized_weights, fresh),
        cmocka_unit_test_setup(what_would_be_rounded_is_not_converted, fresh),
        cmocka_unit_test_setup(int8_models_run_alike, fresh),
        cmocka_unit_test_setup(int8_folders_say_what_they_are, fresh),
        cmocka_unit_test_setup(int8_rows_are_solved, fresh),
        cmocka_unit_test_setup(int8_refusals, fresh),
        cmocka_unit_test_setup(stopping_leaves_no_folder, fresh),
        cmocka_unit_test_setup(running_out_of_memory_leaves_nothing, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
