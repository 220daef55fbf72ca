/* convert and quantize on tiny models: what comes out means the same, runs the same, and never appears half-made. */
#define _XOPEN_SOURCE 700
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "core/half.h"
#include "engine/calib_run.h"
#include "engine/jobs.h"
#include "engine/session.h"
#include "types/type.h"

static const char *const names[] = {"llama", "llama-tied",  "llama-bias", "llama3", "linear",
                                    "yarn",  "yarn-factor", "mistral",    "qwen2",  "qwen3"};
enum { N_NAMES = sizeof names / sizeof *names, MAX_TOKENS = 128, MAX_VOCAB = 512 };
#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"
#define OUT LLMQ_TEST_TMP "/jobs.gguf"
#define BIG LLMQ_TEST_TMP "/big.bin"
#define REPORT LLMQ_TEST_TMP "/jobs-report.json"
#define CALIB LLMQ_TEST_TMP "/jobs-calib.txt"

static size_t read_golden(const char *name, const char *key, double *out, size_t cap) {
    char path[512];
    snprintf(path, sizeof path, "%s/goldens/%s/golden.json", LLMQ_TEST_DATA, name);
    json_t *doc = json_load_file(path, 0, NULL);
    assert_non_null(doc);
    const json_t *array = json_object_get(doc, key);
    size_t n = json_array_size(array);
    assert_in_range(n, 1, cap);
    for (size_t i = 0; i < n; i++) out[i] = json_number_value(json_array_get(array, i));
    json_decref(doc);
    return n;
}

static size_t golden_tokens(const char *name, int32_t *out) {
    double x[MAX_TOKENS];
    size_t n = read_golden(name, "tokens", x, MAX_TOKENS);
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)x[i];
    return n;
}

static llmq_model *open_model(const char *path) {
    llmq_err err = {0};
    llmq_model *model = NULL;
    if (model_open(path, NULL, &model, &err) != LLMQ_OK) fail_msg("%s: %s", path, err.msg);
    return model;
}

static char *golden_path(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, name);
    return path;
}

static double distance(const float *x, const double *y, size_t n) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)x[i] - y[i])), largest = fmax(largest, fabs(y[i]));
    return worst / largest;
}

/* ---- the calibration's own forward pass ---- */

static bool never_stop(void *user, const llmq_calib_work *done) {
    *(double *)user += done->of[CALIB_WEIGHTS] + done->of[CALIB_GRAM];
    return true;
}

static void work_is_counted_by_kinds(void **state) {
    (void)state;
    const llmq_hparams hp = {.n_embd = 8, .n_head = 4, .n_head_kv = 2, .head_dim = 3, .n_ff = 20};
    const double weights[] = {0, 8 * (12 + 6 + 6), 12 * 8, 2 * 8 * 20, 20 * 8}, cols[] = {8, 12, 8, 20};
    for (int site = 0; site <= SITE_COUNT; site++) {
        llmq_calib_work with = calib_site_work(&hp, 10, (llmq_site_id)site, site < SITE_COUNT),
                        without = calib_site_work(&hp, 10, (llmq_site_id)site, false);
        assert_true(with.of[CALIB_WEIGHTS] == weights[site] && without.of[CALIB_WEIGHTS] == weights[site]);
        assert_true(with.of[CALIB_GRAM] == (site < SITE_COUNT ? cols[site] * cols[site] / 2 : 0));
        assert_true(without.of[CALIB_GRAM] == 0 && without.of[CALIB_FLOATS] <= with.of[CALIB_FLOATS]);
        assert_true(with.of[CALIB_ATTENTION] == (site == SITE_O ? 12 * 10 : 0));
    }
}

static const llmq_role matrices[] = {ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN};
enum { N_MATRICES = 7 };

/* The inputs of a site are those that its Gram matrix, of which diagonal is left, was summed from. */
static void inputs_are_those_of(llmq_calib_run *run, llmq_site_id site, int64_t cols, const float *diagonal) {
    void *hidden, *bad;
    size_t hidden_bytes, n_tok;
    calib_run_state(run, &hidden, &hidden_bytes, &bad, &n_tok);
    float *x = mem_alloc(n_tok * (size_t)cols, sizeof *x);
    int64_t first = (int64_t)n_tok / 3; /* read in two pieces */
    calib_run_inputs(run, site, 0, first, x);
    calib_run_inputs(run, site, first, (int64_t)n_tok - first, x + first * cols);
    for (int64_t c = 0; c < cols; c++) {
        double sum = 0;
        for (size_t t = 0; t < n_tok; t++) sum += (double)x[t * (size_t)cols + (size_t)c] * x[t * (size_t)cols + (size_t)c];
        assert_true(fabs(sum - (double)diagonal[c]) <= 0.02 * (double)diagonal[c]);
    }
    mem_free(x);
}

static void run_layer(llmq_model *model, llmq_calib_run *run, int layer, llmq_team *team, float *gram) {
    llmq_weight ready[N_MATRICES];
    float diagonal[SITE_COUNT][512];
    llmq_err err = {0};
    int64_t n;
    memset(ready, 0, sizeof ready);
    assert_int_equal(calib_run_layer(run, layer, &err), LLMQ_OK);
    for (int i = 0; i < N_MATRICES; i++) {
        assert_int_equal(model->ops->weight_prepare(&ready[i], model->layer_tensors[layer].by_role[matrices[i]],
                                                    PREP_BF16, team, &err),
                         LLMQ_OK);
        calib_run_weight(run, matrices[i], &ready[i]);
    }
    for (int site = 0; site <= SITE_COUNT; site++) {
        int64_t cols = calib_site_cols(&model->hp, (llmq_site_id)site);
        assert_int_equal(calib_run_site(run, (llmq_site_id)site, site < SITE_COUNT ? gram : NULL, &n, &err), LLMQ_OK);
        for (int64_t i = 0; site < SITE_COUNT && i < cols; i++) {
            diagonal[site][i] = gram[i * cols + i];
            assert_true(diagonal[site][i] > 0 && isfinite(diagonal[site][i]));
        }
        if (site < SITE_COUNT) inputs_are_those_of(run, (llmq_site_id)site, cols, diagonal[site]);
        int64_t before = site > 0 ? calib_site_cols(&model->hp, (llmq_site_id)(site - 1)) : 0;
        if (site == SITE_GATE_UP || site == SITE_COUNT) /* still there */
            inputs_are_those_of(run, (llmq_site_id)(site - 1), before, diagonal[site - 1]);
    }
    for (int i = 0; i < N_MATRICES; i++) model->ops->weight_release(&ready[i]);
}

/* The last token's logits from the calibration run agree with transformers' within bf16's accuracy. */
static void calibration_runs_the_model(void **state) {
    (void)state;
    llmq_team *team;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    for (int m = 0; m < N_NAMES; m++) {
        llmq_model *model = open_model(golden_path(names[m]));
        int32_t tokens[2 * MAX_TOKENS];
        size_t n = golden_tokens(names[m], tokens);
        memcpy(tokens + n, tokens, n * sizeof *tokens); /* two windows: the second must not see the first */
        llmq_calib calib = {.tokens = tokens, .n_windows = 2, .ctx = (int64_t)n};
        llmq_calib_run *run;
        llmq_err err = {0};
        double macs = 0;
        if (calib_run_create(model, &calib, team, never_stop, &macs, &run, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        int64_t n_embd = model->hp.n_embd, wide = 512;
        float *gram = mem_alloc((size_t)(wide * wide), sizeof *gram);
        for (int l = 0; l < (int)model->hp.n_layer; l++) run_layer(model, run, l, team, gram);
        double golden[MAX_VOCAB];
        size_t n_vocab = read_golden(names[m], "last_logits", golden, MAX_VOCAB);
        const llmq_tensor *head =
            model->by_role[ROLE_OUTPUT] ? model->by_role[ROLE_OUTPUT] : model->by_role[ROLE_TOKEN_EMBD];
        for (size_t window = 1; window <= 2; window++) {
            const float *x = calib_run_hidden(run) + ((int64_t)(window * n) - 1) * n_embd;
            float logits[MAX_VOCAB], row[512];
            double sum = 0;
            for (int64_t c = 0; c < n_embd; c++) sum += (double)x[c] * x[c];
            for (size_t v = 0; v < n_vocab; v++) {
                double dot = 0;
                type_to_f32(head->type, (const uint8_t *)head->data + (int64_t)v * type_row_bytes(head->type, n_embd),
                            row, n_embd);
                for (int64_t c = 0; c < n_embd; c++) dot += (double)row[c] * x[c] * model->output_norm[c];
                logits[v] = (float)(dot / sqrt(sum / (double)n_embd + model->hp.eps));
            }
            double e = distance(logits, golden, n_vocab);
            if (!(e < 0.05)) fail_msg("%s: window %zu: logits differ by %.3g of the largest", names[m], window, e);
        }
        assert_int_equal(calib_run_dropped(run), 0);
        assert_true(macs > 0);
        llmq_calib_work spent = calib_run_spent(run);
        for (int k = 0; k < CALIB_KINDS; k++) assert_true(spent.of[k] > 0 && spent.of[k] < 100);
        mem_free(gram);
        calib_run_destroy(run);
        model_close(model);
    }
    team_destroy(team);
}

/* With a weight for the mean, a Gram matrix has that many times n mean mean' more. */
static void the_mean_counts_as_often_as_asked(void **state) {
    (void)state;
    const double weight = 2.5;
    llmq_model *model = open_model(golden_path("llama"));
    int32_t tokens[MAX_TOKENS];
    int64_t n = (int64_t)golden_tokens("llama", tokens), n_embd = model->hp.n_embd, counted;
    llmq_calib calib = {.tokens = tokens, .n_windows = 1, .ctx = n};
    const llmq_tensor *norm = model->layer_tensors[0].by_role[ROLE_ATTN_NORM];
    float gain[512], *grams[3]; /* without, with, with on three workers */
    double mean[512] = {0}, macs = 0;
    type_to_f32(norm->type, norm->data, gain, n_embd);
    for (int k = 0; k < 3; k++) {
        llmq_team *team;
        llmq_calib_run *run;
        llmq_err err = {0};
        assert_int_equal(team_create(k == 2 ? 3 : 1, &team, NULL), LLMQ_OK);
        grams[k] = mem_alloc((size_t)(n_embd * n_embd), sizeof **grams);
        assert_int_equal(calib_run_create(model, &calib, team, never_stop, &macs, &run, &err), LLMQ_OK);
        calib_run_statistics(run, k ? weight : 0, false);
        assert_int_equal(calib_run_layer(run, 0, &err), LLMQ_OK);
        const float *x = calib_run_hidden(run);
        for (int64_t t = 0; k == 0 && t < n; t++) {
            double sum = 0;
            for (int64_t c = 0; c < n_embd; c++) sum += (double)x[t * n_embd + c] * x[t * n_embd + c];
            double scale = 1 / sqrt(sum / (double)n_embd + model->hp.eps) / (double)n;
            for (int64_t c = 0; c < n_embd; c++) mean[c] += x[t * n_embd + c] * scale * gain[c];
        }
        assert_int_equal(calib_run_site(run, SITE_QKV, grams[k], &counted, &err), LLMQ_OK);
        assert_int_equal(counted, n);
        calib_run_destroy(run);
        team_destroy(team);
    }
    for (int64_t i = 0; i < n_embd; i++)
        for (int64_t j = 0; j <= i; j++) {
            double want = weight * (double)n * mean[i] * mean[j],
                   got = grams[1][i * n_embd + j] - grams[0][i * n_embd + j];
            double size = sqrt((double)grams[1][i * n_embd + i] * grams[1][j * n_embd + j]);
            assert_true(fabs(got - want) <= 1e-5 * size);
            assert_true(grams[1][i * n_embd + j] == grams[2][i * n_embd + j]);
        }
    for (int k = 0; k < 3; k++) mem_free(grams[k]);
    model_close(model);
}

/* A token whose embedding is not finite counts nowhere and spoils nobody. */
static void tokens_that_are_not_finite_are_dropped(void **state) {
    (void)state;
    llmq_team *team;
    llmq_err err = {0};
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    llmq_model *model = open_model(golden_path("llama"));
    llmq_tensor table = *model->by_role[ROLE_TOKEN_EMBD];
    float *rows = mem_alloc((size_t)tensor_numel(&table), sizeof *rows), *gram = mem_alloc(512 * 512, sizeof *gram);
    for (int64_t r = 0; r < tensor_rows(&table); r++)
        type_to_f32(table.type, (const uint8_t *)table.data + r * type_row_bytes(table.type, table.dims[0]),
                    rows + r * table.dims[0], table.dims[0]);
    int32_t tokens[] = {5, 6, 7, 8, 9, 10, 11, 12};
    rows[7 * table.dims[0] + 3] = NAN;
    rows[12 * table.dims[0]] = INFINITY;
    table.type = LLMQ_TYPE_F32;
    table.data = rows;
    table.bytes *= 2;
    model->by_role[ROLE_TOKEN_EMBD] = &table;
    llmq_calib calib = {.tokens = tokens, .n_windows = 1, .ctx = 8};
    llmq_calib_run *run;
    double macs = 0;
    assert_int_equal(calib_run_create(model, &calib, team, never_stop, &macs, &run, &err), LLMQ_OK);
    for (int l = 0; l < (int)model->hp.n_layer; l++) run_layer(model, run, l, team, gram);
    assert_int_equal(calib_run_dropped(run), 2);
    const float *x = calib_run_hidden(run);
    for (int t = 0; t < 8; t++)
        for (int64_t c = 0; c < model->hp.n_embd; c++)
            if (t != 2 && t != 7) assert_true(isfinite(x[t * model->hp.n_embd + c]));
    calib_run_destroy(run);
    mem_free(rows);
    mem_free(gram);
    model_close(model);
    team_destroy(team);
}

/* ---- convert ---- */

static void last_logits(llmq_model *model, const int32_t *tokens, size_t n, float *out) {
    llmq_session_params params;
    llmq_session_params_default(&params);
    params.n_threads = 1;
    llmq_session *s;
    assert_int_equal(llmq_session_create(model, &params, &s, NULL), LLMQ_OK);
    assert_int_equal(llmq_session_append(s, tokens, n, NULL), LLMQ_OK);
    memcpy(out, llmq_session_logits(s), (size_t)model->hp.n_vocab * sizeof *out);
    llmq_session_destroy(s);
}

static void converted_models_run_the_same(void **state) {
    (void)state;
    for (int m = 0; m < N_NAMES; m++) {
        int32_t tokens[MAX_TOKENS];
        float before[MAX_VOCAB], after[MAX_VOCAB];
        double expected[MAX_VOCAB];
        size_t n = golden_tokens(names[m], tokens);
        llmq_convert_params params = {.force = true};
        llmq_convert_result result;
        llmq_err err = {0};
        char path[512];
        snprintf(path, sizeof path, "%s", golden_path(names[m]));
        if (job_convert(path, OUT, &params, &result, &err) != LLMQ_OK) fail_msg("%s: %s", names[m], err.msg);
        assert_int_equal(result.n_inexact, 0);
        llmq_model *a = open_model(path), *b = open_model(OUT);
        assert_int_equal(result.n_exact, (int64_t)b->source->n_tensors);
        assert_string_equal(b->source->format->name, "gguf");
        assert_int_equal(a->info.main_type, b->info.main_type);
        assert_true((source_find(b->source, "rope_freqs.weight") != NULL) == (a->freq_factors != NULL));
        assert_null(meta_find(b->meta, "hf.model_type"));
        assert_string_equal(meta_get_str(b->meta, "general.type"), "model");
        last_logits(a, tokens, n, before);
        last_logits(b, tokens, n, after);
        for (int64_t v = 0; v < a->hp.n_vocab; v++) expected[v] = before[v];
        double e = distance(after, expected, (size_t)a->hp.n_vocab);
        if (!(e < 2e-3)) fail_msg("%s: logits of the GGUF differ by %.3g of the largest", names[m], e);
        model_close(a);
        model_close(b);
        /* Once more from the GGUF: the same bytes for every tensor. */
        if (m) continue;
        assert_int_equal(job_convert(OUT, OUT "2", &params, &result, &err), LLMQ_OK);
        a = open_model(OUT), b = open_model(OUT "2");
        assert_int_equal(a->source->n_tensors, b->source->n_tensors);
        for (size_t i = 0; i < a->source->n_tensors; i++) {
            const llmq_tensor *x = &a->source->tensors[i], *y = source_find(b->source, x->name);
            assert_non_null(y);
            assert_int_equal(x->bytes, y->bytes);
            assert_memory_equal(x->data, y->data, (size_t)x->bytes);
        }
        model_close(a);
        model_close(b);
    }
}

/* Of heads that RoPE turns only half of, only that half is interleaved. */
static void partly_turned_heads_run_the_same(void **state) {
    (void)state;
    static const char folder[] = LLMQ_TEST_TMP "/partial";
    char config[600];
    snprintf(config, sizeof config, "%s/config.json", golden_path("llama"));
    json_t *json = json_load_file(config, 0, NULL);
    assert_non_null(json);
    assert_int_equal(json_object_set_new(json, "partial_rotary_factor", json_real(0.5)), 0);
    mkdir(folder, 0777);
    assert_int_equal(json_dump_file(json, LLMQ_TEST_TMP "/partial/config.json", 0), 0);
    json_decref(json);
    char weights[600];
    snprintf(weights, sizeof weights, "%s/model.safetensors", golden_path("llama"));
    remove(LLMQ_TEST_TMP "/partial/model.safetensors");
    assert_int_equal(symlink(weights, LLMQ_TEST_TMP "/partial/model.safetensors"), 0);
    llmq_convert_params params = {.force = true};
    llmq_convert_result result;
    llmq_err err = {0};
    if (job_convert(folder, OUT, &params, &result, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    llmq_model *a = open_model(folder), *b = open_model(OUT);
    assert_int_equal(b->hp.n_rot, b->hp.head_dim / 2);
    int32_t tokens[MAX_TOKENS];
    float before[MAX_VOCAB], after[MAX_VOCAB];
    double expected[MAX_VOCAB];
    size_t n = golden_tokens("llama", tokens);
    last_logits(a, tokens, n, before);
    last_logits(b, tokens, n, after);
    for (int64_t v = 0; v < a->hp.n_vocab; v++) expected[v] = before[v];
    assert_true(distance(after, expected, (size_t)a->hp.n_vocab) < 2e-3);
    model_close(a);
    model_close(b);
}

static void convert_says_what_is_exact(void **state) {
    (void)state;
    llmq_convert_params params = {.force = true, .tokenizer = STORIES_TOK};
    llmq_convert_result result;
    llmq_err err = {0};
    assert_int_equal(job_convert(STORIES, OUT, &params, &result, &err), LLMQ_OK);
    assert_int_equal(result.n_inexact, 0);
    params.type = "q8_0";
    assert_int_equal(job_convert(STORIES, OUT, &params, &result, &err), LLMQ_OK);
    llmq_model *model = open_model(OUT);
    assert_non_null(model->tok);
    assert_int_equal(source_find(model->source, "blk.0.attn_q.weight")->type, LLMQ_TYPE_Q8_0);
    assert_int_equal(source_find(model->source, "token_embd.weight")->type, LLMQ_TYPE_Q8_0);
    assert_int_equal(source_find(model->source, "blk.0.ffn_down.weight")->type, LLMQ_TYPE_F16); /* rows of 172 */
    assert_int_equal(source_find(model->source, "blk.0.attn_norm.weight")->type, LLMQ_TYPE_F32);
    int64_t n_matrices = 1 + 7 * model->hp.n_layer;
    assert_int_equal(result.n_inexact, n_matrices);
    assert_int_equal(result.n_exact, (int64_t)model->source->n_tensors - n_matrices);
    model_close(model);
    /* f16 to f32 and back to f16 is exact */
    params.type = "f16";
    assert_int_equal(job_convert(STORIES, OUT, &params, &result, &err), LLMQ_OK);
    params.type = "f32";
    assert_int_equal(job_convert(OUT, OUT "2", &params, &result, &err), LLMQ_OK);
    assert_int_equal(result.n_inexact, 0);
    params.type = "f16";
    assert_int_equal(job_convert(OUT "2", OUT, &params, &result, &err), LLMQ_OK);
    assert_int_equal(result.n_inexact, 0);
}

static char *read_all(const char *path, size_t *len) {
    char *data;
    assert_int_equal(file_read(path, (size_t)1 << 30, &data, len, NULL), LLMQ_OK);
    return data;
}

static void convert_refuses(void **state) {
    (void)state;
    llmq_convert_params params = {.force = true};
    llmq_convert_result result;
    llmq_err err = {0};
    params.type = "q9_9";
    assert_int_equal(job_convert(STORIES, OUT, &params, &result, &err), LLMQ_E_ARG);
    params.type = NULL;
    assert_int_equal(job_convert(STORIES, OUT, &params, &result, &err), LLMQ_OK);
    assert_int_equal(job_convert(OUT, OUT, &params, &result, &err), LLMQ_E_ARG);
    params.force = false;
    assert_int_equal(job_convert(STORIES, OUT, &params, &result, &err), LLMQ_E_EXISTS);
    assert_non_null(strstr(err.msg, "--force"));
    assert_int_equal(job_convert(STORIES, LLMQ_TEST_TMP, &params, &result, &err), LLMQ_E_EXISTS);
    assert_int_equal(job_convert(LLMQ_TEST_TMP "/nothing.gguf", OUT, &params, &result, &err), LLMQ_E_IO);
    params.force = true;
    size_t len;
    char *bin = read_all(STORIES, &len);
    const float big = 1e6f;
    memcpy(bin + 28, &big, sizeof big); /* the embedding's first weight */
    FILE *f = fopen(BIG, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bin, 1, len, f), len);
    fclose(f);
    mem_free(bin);
    params.force = true, params.type = "f16";
    assert_int_equal(job_convert(BIG, OUT, &params, &result, &err), LLMQ_E_NUMERIC);
    assert_non_null(strstr(err.msg, "token_embd.weight"));
    params.type = "bf16";
    assert_int_equal(job_convert(BIG, OUT, &params, &result, &err), LLMQ_OK);
    params.force = false, params.type = NULL;
    assert_int_equal(rename(OUT, OUT ".tmp"), 0);
    assert_int_equal(job_convert(OUT ".tmp", OUT, &params, &result, &err), LLMQ_E_ARG);
    assert_true(file_exists(OUT ".tmp"));
    assert_int_equal(remove(OUT ".tmp"), 0);
    char folder[512], inside[600];
    snprintf(folder, sizeof folder, "%s", golden_path("llama"));
    for (int i = 0; i < 3; i++) {
        static const char *const parts[] = {"model.safetensors", "config.json", "./golden.json"};
        snprintf(inside, sizeof inside, "%s/%s", folder, parts[i]);
        assert_int_equal(job_convert(folder, inside, &params, &result, &err), LLMQ_E_ARG);
        assert_non_null(strstr(err.msg, "source"));
    }
}

/* ---- quantize ---- */

static llmq_quant_params quantize_params(void) {
    llmq_quant_params p = {.method = "gptq",
                           .act_order = -1,
                           .damp = -1,
                           .calib_tokens = 2048,
                           .calib_ctx = 128,
                           .out = OUT,
                           .force = true,
                           .tokenizer = STORIES_TOK};
    return p;
}

static void quantize_ok(const char *path, const llmq_quant_params *p, llmq_quant_result *r) {
    llmq_err err = {0};
    if (job_quantize(path, p, r, &err) != LLMQ_OK) fail_msg("%s: %s", path, err.msg);
}

static void quantize_stories(void **state) {
    (void)state;
    llmq_quant_params p = quantize_params();
    size_t len = 0, len_again;
    char *first = NULL;
    for (int n = 1; n <= 3; n++) {
        llmq_quant_result r;
        p.n_threads = n;
        quantize_ok(STORIES, &p, &r);
        assert_int_equal(r.n_rows, 47);
        assert_int_equal(r.n_fallback, 5); /* rows of 172 in five layers */
        assert_true(r.mean_error > 0 && r.mean_error < 0.7 * r.mean_rtn_error);
        assert_int_equal(r.calib_tokens, 2048);
        assert_int_equal(r.dropped_tokens, 0);
        assert_true(r.f32_bytes > 3 * r.out_bytes && r.bits_per_weight < 10 && r.peak_bytes > 0 && r.seconds > 0);
        char *data = read_all(OUT, &len_again);
        assert_int_equal(r.out_bytes, (int64_t)len_again);
        if (n == 1) {
            first = data, len = len_again;
        } else {
            assert_int_equal(len, len_again);
            assert_memory_equal(first, data, len);
            mem_free(data);
        }
        for (size_t i = 0; i < r.n_rows; i++) {
            const llmq_quant_row *row = &r.rows[i];
            bool matrix = strstr(row->name, "attn_") || strstr(row->name, "ffn_");
            matrix = matrix && !strstr(row->name, "norm");
            if (strstr(row->name, "ffn_down")) {
                assert_int_equal(row->to, LLMQ_TYPE_F16);
                assert_string_equal(row->method, "copy");
                assert_true(row->fallback && row->note[0]);
            } else if (matrix) {
                assert_string_equal(row->method, "gptq");
                assert_true(row->error > 0 && row->error < row->rtn_error);
            } else if (!strcmp(row->name, "token_embd.weight")) {
                assert_int_equal(row->to, LLMQ_TYPE_Q8_0);
                assert_string_equal(row->method, "rtn");
            } else {
                assert_int_equal(row->to, LLMQ_TYPE_F32);
            }
        }
        mem_free(r.rows);
    }
    mem_free(first);
    /* It still tells stories: the greedy continuation is mostly the source's. */
    llmq_model_params open = {.tokenizer = STORIES_TOK};
    llmq_model *a, *b = open_model(OUT);
    assert_int_equal(model_open(STORIES, &open, &a, NULL), LLMQ_OK);
    int32_t *ids;
    size_t n_ids;
    const char *text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
                       "One day, she saw a big, red ball.";
    assert_int_equal(tokenizer_encode(a->tok, text, strlen(text), LLMQ_TOK_BOS, &ids, &n_ids, NULL), LLMQ_OK);
    float before[MAX_VOCAB], after[MAX_VOCAB];
    last_logits(a, ids, n_ids, before);
    last_logits(b, ids, n_ids, after);
    double dot = 0, aa = 0, bb = 0;
    for (int v = 0; v < 512; v++)
        dot += (double)before[v] * after[v], aa += (double)before[v] * before[v], bb += (double)after[v] * after[v];
    assert_true(dot / sqrt(aa * bb) > 0.98);
    mem_free(ids);
    model_close(a);
    model_close(b);
}

/* Rows of q and k of a Hugging Face model come out interleaved, of either method; each row is packed as if alone. */
static void rows_are_brought_to_gguf_order(void **state) {
    (void)state;
    llmq_quant_params p = quantize_params();
    llmq_quant_result r;
    p.method = "rtn";
    p.type = "q8_0";
    p.tokenizer = NULL;
    char path[512];
    snprintf(path, sizeof path, "%s", golden_path("llama"));
    quantize_ok(path, &p, &r);
    assert_true(r.mean_error == -1 && r.calib_tokens == 0);
    llmq_model *a = open_model(path), *b = open_model(OUT);
    const llmq_tensor *x = a->layer_tensors[1].by_role[ROLE_K], *y = b->layer_tensors[1].by_role[ROLE_K];
    int64_t cols = tensor_cols(x), dim = a->hp.head_dim;
    float from[512], to[512];
    for (int64_t row = 0; row < tensor_rows(x); row++) {
        int64_t source = row / dim * dim + row % dim / 2 + (row % 2) * dim / 2;
        type_to_f32(x->type, (const uint8_t *)x->data + source * type_row_bytes(x->type, cols), from, cols);
        type_to_f32(y->type, (const uint8_t *)y->data + row * type_row_bytes(y->type, cols), to, cols);
        float largest = 0;
        for (int64_t c = 0; c < cols; c++) largest = fmaxf(largest, fabsf(from[c]));
        for (int64_t c = 0; c < cols; c++) assert_true(fabsf(from[c] - to[c]) < largest / 127);
    }
    model_close(a);
    model_close(b);
    mem_free(r.rows);
}

typedef struct stop_after {
    int calls, limit;
    double last;
} stop_after;

static bool stop(void *user, double done, double total, const char *what, double left) {
    stop_after *s = user;
    assert_true(done >= s->last && done <= total && what[0] && left >= -1);
    s->last = done;
    return ++s->calls < s->limit;
}

/* What a job that failed leaves: never OUT; work files if and only if it says that they are worth something. */
static void check_what_is_left(const llmq_quant_result *r) {
    assert_null(r->rows);
    assert_false(file_exists(OUT));
    assert_int_equal(file_exists(OUT ".tmp"), r->kept);
    assert_int_equal(file_exists(OUT ".journal"), r->kept);
    assert_true(r->kept ? r->kept_layers > 0 && r->kept_layers <= r->n_layers : r->kept_layers == 0);
}

static void stopping_leaves_no_result(void **state) {
    (void)state;
    llmq_quant_params p = quantize_params();
    llmq_quant_result r;
    llmq_err err = {0};
    stop_after all = {.limit = 1 << 30};
    p.progress = stop;
    p.user = &all;
    quantize_ok(STORIES, &p, &r);
    mem_free(r.rows);
    assert_true(all.calls > 40);
    remove(OUT);
    int kept = 0;
    p.no_resume = true;
    for (int limit = 1; limit <= all.calls; limit += 29) {
        stop_after s = {.limit = limit};
        p.user = &s;
        assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_INTERRUPTED);
        check_what_is_left(&r);
        kept += r.kept;
    }
    assert_true(kept > 0);
}

static void quantize_plans_and_refuses(void **state) {
    (void)state;
    llmq_quant_params p = quantize_params();
    llmq_quant_result r;
    llmq_err err = {0};
    remove(OUT);
    p.plan_only = true;
    p.report_json = REPORT;
    remove(REPORT);
    quantize_ok(STORIES, &p, &r);
    assert_true(file_exists(REPORT));
    p.report_json = NULL;
    assert_int_equal(r.n_rows, 47);
    assert_int_equal(r.n_fallback, 5);
    int64_t planned = r.out_bytes;
    double seconds = r.planned_seconds;
    mem_free(r.rows);
    assert_false(file_exists(OUT));
    p.plan_only = false;
    quantize_ok(STORIES, &p, &r);
    assert_int_equal(r.out_bytes, planned);
    /* Of the right size: other work on this machine may disturb the measurement as well as the job, and a slow disk may
     * take seconds that no plan knows of. */
    const double computing = r.seconds - r.stage_seconds[LLMQ_STAGE_WRITE], plans[] = {seconds, r.planned_seconds};
    for (int i = 0; i < 2; i++) assert_true(plans[i] > computing / 20 && plans[i] < 20 * r.seconds);
    assert_true(r.stage_seconds[LLMQ_STAGE_GRAM] > 0 && r.stage_seconds[LLMQ_STAGE_SOLVE] > 0);
    double sum = 0;
    for (int stage = 0; stage < LLMQ_STAGE_COUNT; stage++) sum += r.stage_seconds[stage];
    assert_true(sum > 0.5 * r.seconds && sum <= r.seconds);
    mem_free(r.rows);
    const char *const keep[] = {"blk.0.*=q8_0", "*attn_v*=q4_1"};
    p.keep = keep, p.n_keep = 2, p.plan_only = true;
    quantize_ok(STORIES, &p, &r);
    for (size_t i = 0; i < r.n_rows; i++) {
        if (!strcmp(r.rows[i].name, "blk.0.attn_v.weight")) assert_int_equal(r.rows[i].to, LLMQ_TYPE_Q8_0);
        if (!strcmp(r.rows[i].name, "blk.1.attn_v.weight")) assert_int_equal(r.rows[i].to, LLMQ_TYPE_Q4_1);
        if (!strcmp(r.rows[i].name, "blk.0.attn_norm.weight")) assert_int_equal(r.rows[i].to, LLMQ_TYPE_F32);
    }
    mem_free(r.rows);
    p.n_keep = 0, p.plan_only = false, p.force = false;
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_EXISTS);
    p.force = true;
    struct {
        llmq_quant_params p;
        const char *word;
    } bad[10];
    for (int i = 0; i < 10; i++) bad[i].p = p;
    bad[0].p.type = "q9_9", bad[0].word = "--type";
    bad[1].p.type = "f16", bad[1].word = "--type";
    bad[2].p.bits = 5, bad[2].word = "--bits";
    bad[3].p.bits = 8, bad[3].p.type = "q4_0", bad[3].word = "--bits";
    bad[4].p.keep = (const char *const[]){"blk.0"}, bad[4].p.n_keep = 1, bad[4].word = "--keep";
    bad[5].p.method = "magic", bad[5].word = "magic";
    bad[6].p.calib_tokens = 100, bad[6].word = "--tokens";
    bad[7].p.out = STORIES, bad[7].word = "source";
    bad[8].p.report_json = STORIES, bad[8].word = "source";
    bad[9].p.report_json = LLMQ_TEST_TMP "/./jobs.gguf", bad[9].word = "--report-json";
    for (int i = 0; i < 10; i++) {
        assert_int_equal(job_quantize(STORIES, &bad[i].p, &r, &err), LLMQ_E_ARG);
        if (!strstr(err.msg, bad[i].word)) fail_msg("case %d: %s", i, err.msg);
    }
    p.calib = (const char *const[]){LLMQ_TEST_TMP "/nothing.txt"}, p.n_calib = 1;
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_IO);
    p.n_calib = 0, p.tokenizer = NULL; /* gptq needs a tokenizer; rtn does not */
    char path[512];
    snprintf(path, sizeof path, "%s", golden_path("llama"));
    assert_int_equal(job_quantize(path, &p, &r, &err), LLMQ_E_UNSUPPORTED);
}

static void the_output_has_a_name_of_its_own(void **state) {
    (void)state;
    llmq_quant_params p = quantize_params();
    llmq_quant_result r;
    p.out = NULL, p.plan_only = true;
    quantize_ok(STORIES, &p, &r);
    assert_string_equal(r.out, LLMQ_TEST_DATA "/stories260K/stories260K-gptq-iq4_nl.gguf");
    mem_free(r.rows);
    p.method = "rtn", p.bits = 8, p.tokenizer = NULL;
    quantize_ok(LLMQ_TEST_DATA "/goldens/llama/", &p, &r);
    assert_string_equal(r.out, LLMQ_TEST_DATA "/goldens/llama-rtn-q8_0.gguf");
    mem_free(r.rows);
    char here[1024], expected[1024];
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(LLMQ_TEST_DATA "/goldens/qwen2"), 0);
    quantize_ok(".", &p, &r);
    assert_int_equal(chdir(here), 0);
    assert_non_null(realpath(LLMQ_TEST_DATA "/goldens", expected));
    strcat(expected, "/qwen2-rtn-q8_0.gguf");
    assert_string_equal(r.out, expected);
    mem_free(r.rows);
}

/* Short text: what there is. A weight shares the windows out. */
static void calibration_text_is_cut_into_windows(void **state) {
    (void)state;
    FILE *f = fopen(CALIB, "w");
    assert_non_null(f);
    for (int i = 0; i < 400; i++) fprintf(f, "Tom had %d red balls and a cat.\n", i);
    fclose(f);
    llmq_model_params open = {.tokenizer = STORIES_TOK, .no_weights = true};
    llmq_model *model;
    llmq_calib calib, both;
    llmq_err err = {0};
    assert_int_equal(model_open(STORIES, &open, &model, NULL), LLMQ_OK);
    const char *const files[] = {CALIB, CALIB ":2"};
    assert_int_equal(calib_load(model, files, 1, 1 << 20, 64, NULL, &calib, &err), LLMQ_OK);
    assert_in_range(calib.n_windows, 20, 400);
    for (int64_t w = 0; w < calib.n_windows; w++) {
        assert_int_equal(calib.tokens[w * 64], 1); /* this tokenizer adds BOS */
        for (int i = 1; i < 64; i++) assert_int_not_equal(calib.tokens[w * 64 + i], 1);
    }
    assert_int_equal(calib_load(model, files, 2, 64 * 12, 64, NULL, &both, &err), LLMQ_OK);
    assert_int_equal(both.n_windows, 12);
    for (int w = 0, of[2] = {0}; w < 12; w++) /* twice as many of the second, spread evenly */
        assert_memory_equal(both.tokens + w * 64, calib.tokens + of[w % 3 == 1]++ * 64, 64 * sizeof(int32_t));
    calib_clear(&calib);
    calib_clear(&both);
    /* the text that ships with llmq is there and large */
    size_t len;
    assert_non_null(calib_default_text(&len));
    assert_true(len >= 400000 && strlen(calib_default_text(&len)) == len);
    assert_int_equal(calib_load(model, NULL, 0, 64 * 1000, 64, NULL, &calib, &err), LLMQ_OK);
    assert_int_equal(calib.n_windows, 1000);
    calib_clear(&calib);
    assert_int_equal(truncate(CALIB, 5), 0);
    assert_int_equal(calib_load(model, files, 1, 4096, 64, NULL, &calib, &err), LLMQ_E_ARG);
    model_close(model);
}

/* Conversations become the text of the model's template, turn by turn, with its special tokens as tokens. */
static void conversations_go_through_the_template(void **state) {
    (void)state;
    llmq_model_params open = {.tokenizer = STORIES_TOK, .no_weights = true};
    llmq_model *model;
    llmq_calib calib;
    llmq_err err = {0};
    const char *path = LLMQ_TEST_TMP "/jobs-calib.jsonl", *const files[] = {path};
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 40; i++)
        fprintf(f,
                "%s{\"role\": \"user\", \"content\": \"Who has a cat?\"}, {\"role\": \"assistant\", \"content\": "
                "\"Lily has.\"}]%s\n",
                i % 2 ? "[" : "{\"messages\": [", i % 2 ? "" : "}\n");
    fclose(f);
    assert_int_equal(model_open(STORIES, &open, &model, NULL), LLMQ_OK);
    assert_int_equal(calib_load(model, files, 1, 256, 64, NULL, &calib, &err), LLMQ_E_UNSUPPORTED); /* no template */
    model->chat = chat_template_detect(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}");
    assert_non_null(model->chat);
    char *text;
    size_t len;
    const char *line =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"A\"}, {\"role\": \"assistant\", \"content\": \"B\"}]}\n\n";
    assert_int_equal(calib_chat_text(model, path, line, strlen(line), &text, &len, &err), LLMQ_OK);
    assert_non_null(strstr(text, "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"));
    assert_int_equal(strlen(text), len);
    mem_free(text);
    assert_int_equal(calib_load(model, files, 1, 256, 64, NULL, &calib, &err), LLMQ_OK);
    assert_int_equal(calib.n_windows, 4);
    calib_clear(&calib);
    const char *const bad[] = {"{\"messages\": []}", "[1, 2]", "{\"role\": 3}", "[{\"role\": \"user\"}]",
                               "nonsense",           "[",      "\n\n{}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(calib_chat_text(model, path, bad[i], strlen(bad[i]), &text, &len, &err), LLMQ_E_FORMAT);
        assert_non_null(strstr(err.msg, i == 6 ? "line 3" : "line 1"));
    }
    model_close(model);
}

static void running_out_of_memory_leaves_no_result(void **state) {
    (void)state;
    llmq_quant_params p = quantize_params();
    llmq_quant_result r;
    p.calib_tokens = 256;
    p.n_threads = 1;
    p.no_resume = true;
    remove(OUT);
    bool done = false;
    int failures = 0;
    for (long n = 1; n < 200000 && !done; n += 1 + n / 6) {
        llmq_err err = {0};
        mem_fail_after(n);
        llmq_status status = job_quantize(STORIES, &p, &r, &err);
        mem_fail_after(0);
        done = status == LLMQ_OK;
        if (done) break;
        if (status != LLMQ_E_MEMORY) fail_msg("allocation %ld: %s: %s", n, llmq_status_name(status), err.msg);
        assert_true(err.msg[0] != 0);
        check_what_is_left(&r);
        failures++;
    }
    assert_true(done && failures > 10);
    mem_free(r.rows);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calibration_runs_the_model),
        cmocka_unit_test(work_is_counted_by_kinds),
        cmocka_unit_test(the_mean_counts_as_often_as_asked),
        cmocka_unit_test(tokens_that_are_not_finite_are_dropped),
        cmocka_unit_test(converted_models_run_the_same),
        cmocka_unit_test(partly_turned_heads_run_the_same),
        cmocka_unit_test(convert_says_what_is_exact),
        cmocka_unit_test(convert_refuses),
        cmocka_unit_test(quantize_stories),
        cmocka_unit_test(rows_are_brought_to_gguf_order),
        cmocka_unit_test(stopping_leaves_no_result),
        cmocka_unit_test(quantize_plans_and_refuses),
        cmocka_unit_test(the_output_has_a_name_of_its_own),
        cmocka_unit_test(calibration_text_is_cut_into_windows),
        cmocka_unit_test(conversations_go_through_the_template),
        cmocka_unit_test(running_out_of_memory_leaves_no_result),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
