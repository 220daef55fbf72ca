/* Scales folded into the op before: the model computes what it computed, for every architecture and any scales; and the
 * job that finds scales, on a tiny model. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/jobs.h"
#include "engine/outputs.h"
#include "engine/session.h"
#include "engine/transform.h"

static const char *const names[] = {"llama", "llama-tied",  "llama-bias", "llama3", "linear",
                                    "yarn",  "yarn-factor", "mistral",    "qwen2",  "qwen3"};
#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"
#define OUT LLMQ_TEST_TMP "/transform.gguf"
enum { N_TOKENS = 24, MAX_VOCAB = 512 };

static uint64_t rng_state = 3;
static float uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(rng_state >> 40) / 16777216.0f;
}

static llmq_model *open_model(const char *path) {
    llmq_err err = {0};
    llmq_model *model = NULL;
    llmq_model_params params = {.tokenizer = strstr(path, "stories") ? STORIES_TOK : NULL};
    if (model_open(path, &params, &model, &err) != LLMQ_OK) fail_msg("%s: %s", path, err.msg);
    return model;
}

static void last_logits(llmq_model *model, float *out) {
    llmq_session_params params;
    llmq_session *s;
    int32_t tokens[N_TOKENS];
    llmq_session_params_default(&params);
    params.n_threads = 1;
    params.kv_type = LLMQ_KV_F32;
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)((i * 37 + 11) % model->hp.n_vocab);
    assert_int_equal(llmq_session_create(model, &params, &s, NULL), LLMQ_OK);
    assert_int_equal(llmq_session_append(s, tokens, N_TOKENS, NULL), LLMQ_OK);
    memcpy(out, llmq_session_logits(s), (size_t)model->hp.n_vocab * sizeof *out);
    llmq_session_destroy(s);
}

static double logits_distance(const char *a_path, const char *b_path) {
    float a[MAX_VOCAB], b[MAX_VOCAB];
    double worst = 0, largest = 0;
    llmq_model *x = open_model(a_path), *y = open_model(b_path);
    assert_in_range(x->hp.n_vocab, 2, MAX_VOCAB);
    last_logits(x, a);
    last_logits(y, b);
    for (int64_t v = 0; v < x->hp.n_vocab; v++) {
        worst = fmax(worst, fabs((double)a[v] - (double)b[v]));
        largest = fmax(largest, fabs((double)a[v]));
    }
    model_close(x);
    model_close(y);
    return worst / largest;
}

/* The model as f32, with scales from 0.1 to 10 on the sites whose bit is set. Returns how many tensors changed. */
static int write_scaled(const char *path, unsigned sites) {
    llmq_export *ex;
    llmq_outputs *outputs;
    llmq_outputs_spec spec = {.out = OUT, .force = true};
    llmq_model *model = open_model(path);
    llmq_team *team;
    llmq_layer_scales scales = {{NULL}};
    int layer = -1, changed = 0;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    assert_int_equal(export_create(model, &ex, NULL), LLMQ_OK);
    for (size_t i = 0; i < ex->n; i++) assert_int_equal(export_set_type(ex, i, LLMQ_TYPE_F32, NULL), LLMQ_OK);
    assert_int_equal(export_seal(ex, NULL), LLMQ_OK);
    assert_int_equal(outputs_open(&spec, ex, &outputs, NULL), LLMQ_OK);
    for (size_t i = 0; i < ex->n; i++) {
        const llmq_export_entry *entry = &ex->entries[i];
        const llmq_tensor *src = entry->src;
        bool exact;
        if (entry->layer != layer) {
            layer = entry->layer;
            for (int site = 0; site < SITE_COUNT; site++) {
                int64_t n;
                int32_t *channel;
                mem_free(scales.s[site]);
                scales.s[site] = NULL;
                if (!(sites >> site & 1)) continue;
                assert_int_equal(scales_channels(model, (llmq_site_id)site, &n, &channel, NULL), LLMQ_OK);
                mem_free(channel);
                scales.s[site] = mem_alloc((size_t)n, sizeof(float));
                for (int64_t k = 0; k < n; k++) scales.s[site][k] = powf(10, 2 * uniform() - 1);
            }
        }
        float *values = src && layer >= 0 ? mem_alloc((size_t)tensor_numel(src), sizeof *values) : NULL;
        if (values) {
            type_to_f32(src->type, src->data, values, tensor_numel(src));
            scales_apply(model, &scales, entry->role, tensor_rows(src), tensor_cols(src), values);
            changed += scales_touch(model, &scales, entry->role);
        }
        assert_int_equal(outputs_put_plain(outputs, i, values, team, &exact, NULL, NULL, NULL), LLMQ_OK);
        mem_free(values);
    }
    for (int site = 0; site < SITE_COUNT; site++) mem_free(scales.s[site]);
    int64_t bytes;
    assert_int_equal(outputs_finish(outputs, &bytes, NULL), LLMQ_OK);
    export_destroy(ex);
    team_destroy(team);
    model_close(model);
    return changed;
}

static void folded_scales_change_nothing(void **state) {
    (void)state;
    for (size_t m = 0; m <= sizeof names / sizeof *names; m++) {
        char path[512];
        if (m < sizeof names / sizeof *names)
            snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, names[m]);
        else
            snprintf(path, sizeof path, "%s", STORIES);
        assert_int_equal(write_scaled(path, 0), 0);
        assert_int_equal(rename(OUT, LLMQ_TEST_TMP "/unscaled.gguf"), 0);
        for (unsigned sites = 1; sites < 1u << SITE_COUNT; sites = sites == 8 ? 15 : sites * 2) {
            assert_true(write_scaled(path, sites) > 0);
            double e = logits_distance(LLMQ_TEST_TMP "/unscaled.gguf", OUT);
            if (!(e < 2e-5)) fail_msg("%s: sites %u: logits differ by %.3g of the largest", path, sites, e);
        }
    }
}

static llmq_quant_params awq_params(const char *method) {
    return (llmq_quant_params){.method = method,
                               .awq = true,
                               .type = "q4_0",
                               .act_order = -1,
                               .damp = -1,
                               .calib_tokens = 512,
                               .calib_ctx = 64,
                               .out = OUT,
                               .force = true,
                               .n_threads = 1,
                               .tokenizer = STORIES_TOK};
}

static void quantize_ok(const llmq_quant_params *p, llmq_quant_result *r) {
    llmq_err err = {0};
    if (job_quantize(STORIES, p, r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
}

static void the_job_finds_scales(void **state) {
    (void)state;
    for (int m = 0; m < 2; m++) {
        char *first = NULL, *again;
        size_t len, len_again;
        llmq_quant_params p = awq_params(m ? "gptq" : "rtn");
        for (int n = 1; n <= 3; n += 2) {
            llmq_quant_result r;
            int scaled = 0;
            p.n_threads = n;
            quantize_ok(&p, &r);
            for (size_t i = 0; i < r.n_rows; i++) {
                const llmq_quant_row *row = &r.rows[i];
                bool matrix = row->to == LLMQ_TYPE_Q4_0;
                if (matrix) assert_string_equal(row->method, m ? "gptq" : "awq");
                if (!matrix && !strstr(row->name, "ffn_down")) assert_true(row->awq_alpha == -1);
                if (!matrix) continue;
                assert_true(row->awq_ratio > 0 && row->awq_ratio <= 1);
                assert_true(row->error > 0 && row->error < 0.1);
                scaled += row->awq_ratio < 1;
            }
            assert_true(scaled > 15);
            assert_int_equal(r.calib_tokens, 512);
            mem_free(r.rows);
            assert_int_equal(file_read(OUT, (size_t)1 << 30, &again, &len_again, NULL), LLMQ_OK);
            if (n > 1) {
                assert_int_equal(len, len_again);
                assert_memory_equal(first, again, len);
                mem_free(again);
            } else {
                first = again, len = len_again;
            }
        }
        mem_free(first);
        double e = logits_distance(STORIES, OUT);
        if (!(e < 0.25)) fail_msg("%s: logits differ by %.3g of the largest", p.method, e);
    }
}

static double gain(const char *path, const char *name, int64_t k) {
    llmq_model *model = open_model(path);
    const llmq_tensor *t = source_find(model->source, name);
    assert_non_null(t);
    float x[512];
    assert_in_range(tensor_numel(t), k + 1, 512);
    type_to_f32(t->type, t->data, x, tensor_numel(t));
    model_close(model);
    return (double)x[k];
}

/* Only k, the output, the gates and nothing else is rounded, to eight bits: every other tensor is scaled as it is. */
static void kept_matrices_are_scaled_too(void **state) {
    (void)state;
    static const char *const keep[] = {"*attn_k*=q8_0", "*attn_output*=q8_0", "*ffn_gate*=q8_0", "blk.*=f32"};
    llmq_quant_params p = awq_params("rtn");
    llmq_quant_result r;
    p.type = "q8_0";
    p.keep = keep;
    p.n_keep = 4;
    quantize_ok(&p, &r);
    mem_free(r.rows);
    int changed = 0;
    double e = logits_distance(STORIES, OUT);
    if (!(e < 0.02)) fail_msg("logits differ by %.3g of the largest", e);
    p.awq = false;
    p.out = LLMQ_TEST_TMP "/unscaled.gguf";
    quantize_ok(&p, &r);
    mem_free(r.rows);
    for (int k = 0; k < 64; k++)
        changed += gain(OUT, "blk.1.attn_norm.weight", k) != gain(p.out, "blk.1.attn_norm.weight", k);
    assert_true(changed > 32);
}

/* What is quantized already and copied must not be rounded once more because of a scale. */
static void copies_of_quantized_matrices_stay(void **state) {
    (void)state;
    llmq_quant_params p = awq_params("rtn");
    llmq_quant_result r;
    llmq_err err = {0};
    llmq_convert_params convert = {.force = true, .type = "q8_0", .tokenizer = STORIES_TOK};
    llmq_convert_result converted;
    assert_int_equal(job_convert(STORIES, LLMQ_TEST_TMP "/q8.gguf", &convert, &converted, &err), LLMQ_OK);
    static const char *const keep[] = {"*attn_q*=q8_0"};
    p.keep = keep;
    p.n_keep = 1;
    if (job_quantize(LLMQ_TEST_TMP "/q8.gguf", &p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (size_t i = 0; i < r.n_rows; i++) {
        if (strstr(r.rows[i].name, "attn_k")) assert_true(r.rows[i].awq_alpha == -1);
        if (strstr(r.rows[i].name, "ffn_gate")) assert_true(r.rows[i].awq_alpha >= 0);
    }
    mem_free(r.rows);
    llmq_model *a = open_model(LLMQ_TEST_TMP "/q8.gguf"), *b = open_model(OUT);
    const llmq_tensor *x = source_find(a->source, "blk.2.attn_q.weight"),
                      *y = source_find(b->source, "blk.2.attn_q.weight");
    assert_int_equal(x->bytes, y->bytes);
    assert_memory_equal(x->data, y->data, (size_t)x->bytes);
    model_close(a);
    model_close(b);
}

static bool stop_later(void *user, double done, double total, const char *what, double left) {
    (void)total, (void)what, (void)left;
    double *until = user;
    return done < *until;
}

static void the_job_can_be_stopped_and_run_out_of_memory(void **state) {
    (void)state;
    llmq_quant_params p = awq_params("rtn");
    llmq_quant_result r;
    llmq_err err = {0};
    double until = 0;
    p.progress = stop_later;
    p.user = &until;
    for (until = 1; until < 1e9; until *= 30) {
        llmq_status status = job_quantize(STORIES, &p, &r, &err);
        if (status == LLMQ_OK) break;
        assert_int_equal(status, LLMQ_E_INTERRUPTED);
    }
    mem_free(r.rows);
    p.progress = NULL;
    p.calib_tokens = p.calib_ctx = 32;
    for (long n = 1;; n += 1 + n / 2) {
        mem_fail_after(n);
        llmq_status status = job_quantize(STORIES, &p, &r, &err);
        mem_fail_after(0);
        if (status == LLMQ_OK) break;
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
    mem_free(r.rows);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folded_scales_change_nothing),
        cmocka_unit_test(the_job_finds_scales),
        cmocka_unit_test(kept_matrices_are_scaled_too),
        cmocka_unit_test(copies_of_quantized_matrices_stay),
        cmocka_unit_test(the_job_can_be_stopped_and_run_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
