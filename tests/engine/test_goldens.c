/* Tiny models with random weights against what transformers computes from the same files (scripts/make_goldens.py). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "engine/session.h"
#include "llmq_quant.h"
#include "tests/isas.h"

static const char *const names[] = {"llama", "llama-tied", "llama-bias", "llama3", "linear", "yarn", "yarn-factor", "mistral", "qwen2", "qwen3"};
enum { N_NAMES = sizeof names / sizeof *names, MAX_TOKENS = 128, MAX_VOCAB = 512 };

typedef struct golden {
    int32_t tokens[MAX_TOKENS], greedy[MAX_TOKENS];
    size_t n_tokens, n_greedy, n_vocab;
    double logits[MAX_VOCAB], logprobs[MAX_TOKENS];
} golden;

static size_t read_numbers(const json_t *doc, const char *key, double *out, size_t cap) {
    const json_t *array = json_object_get(doc, key);
    size_t n = json_array_size(array);
    assert_in_range(n, 1, cap);
    for (size_t i = 0; i < n; i++) out[i] = json_number_value(json_array_get(array, i));
    return n;
}

static void read_golden(const char *name, golden *g) {
    char path[512];
    double x[MAX_VOCAB];
    snprintf(path, sizeof path, "%s/goldens/%s/golden.json", LLMQ_TEST_DATA, name);
    json_t *doc = json_load_file(path, 0, NULL);
    assert_non_null(doc);
    g->n_tokens = read_numbers(doc, "tokens", x, MAX_TOKENS);
    for (size_t i = 0; i < g->n_tokens; i++) g->tokens[i] = (int32_t)x[i];
    g->n_greedy = read_numbers(doc, "greedy", x, MAX_TOKENS);
    for (size_t i = 0; i < g->n_greedy; i++) g->greedy[i] = (int32_t)x[i];
    g->n_vocab = read_numbers(doc, "last_logits", g->logits, MAX_VOCAB);
    assert_int_equal(read_numbers(doc, "next_logprobs", g->logprobs, MAX_TOKENS), g->n_tokens - 1);
    json_decref(doc);
}

static llmq_model *open_model(const char *name, const char *isa) {
    char path[512];
    llmq_err err = {0};
    llmq_model *model = NULL;
    snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, name);
    if (model_open_with(path, NULL, backend_cpu_isa(isa), &model, &err) != LLMQ_OK) fail_msg("%s: %s", name, err.msg);
    return model;
}

static llmq_session *open_session(llmq_model *model, llmq_session_params params) {
    llmq_err err = {0};
    llmq_session *s = NULL;
    if (llmq_session_create(model, &params, &s, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return s;
}

/* Largest difference as a fraction of the largest logit. */
static double logit_error(const golden *g, const float *logits) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < g->n_vocab; i++) {
        worst = fmax(worst, fabs((double)logits[i] - g->logits[i]));
        largest = fmax(largest, fabs(g->logits[i]));
    }
    return worst / largest;
}

static void check_logits(const golden *g, const char *name, const char *what, const llmq_session *s, double limit) {
    const float *logits = llmq_session_logits(s);
    assert_non_null(logits);
    double e = logit_error(g, logits);
    if (!(e <= limit)) fail_msg("%s, %s: logits differ by %.3g of the largest", name, what, e);
}

/* Greedy continuation one token at a time: exercises passes of one token. */
static void check_greedy(const golden *g, const char *name, llmq_session *s) {
    llmq_sampler_params greedy;
    llmq_sampler_params_default(&greedy);
    greedy.temperature = 0;
    llmq_session_set_sampler(s, &greedy);
    for (size_t i = 0; i < g->n_greedy; i++) {
        int32_t token = -1;
        assert_int_equal(llmq_session_sample(s, &token, NULL), LLMQ_OK);
        if (token != g->greedy[i]) fail_msg("%s: greedy token %zu is %d, not %d", name, i, token, g->greedy[i]);
        assert_int_equal(llmq_session_append(s, &token, 1, NULL), LLMQ_OK);
    }
}

typedef struct logprob_check {
    const golden *g;
    const char *name;
    size_t next;
} logprob_check;

static void check_logprob(void *user, size_t pos, const float *logits) {
    logprob_check *c = user;
    assert_int_equal(pos, c->next++);
    if (pos + 1 == c->g->n_tokens) return;
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < c->g->n_vocab; i++) max = fmax(max, (double)logits[i]);
    for (size_t i = 0; i < c->g->n_vocab; i++) sum += exp((double)logits[i] - max);
    double lp = (double)logits[c->g->tokens[pos + 1]] - max - log(sum);
    if (!(fabs(lp - c->g->logprobs[pos]) < 5e-3 + 1e-3 * fabs(c->g->logprobs[pos])))
        fail_msg("%s: logprob after position %zu is %g, not %g", c->name, pos, lp, c->g->logprobs[pos]);
}

static void run_one(const char *name, const char *isa) {
    golden g;
    read_golden(name, &g);
    llmq_model *model = open_model(name, isa);
    assert_int_equal(model->hp.n_vocab, g.n_vocab);
    static const struct { int threads, alone; } workers[] = {{1, -1}, {2, -1}, {2, 0}};
    for (size_t i = 0; i < sizeof workers / sizeof *workers; i++)
        for (int chunked = 0; chunked < 2; chunked++) {
            char what[64];
            const int threads = workers[i].threads;
            snprintf(what, sizeof what, "%s, %d threads%s, n_batch %d", isa, threads, workers[i].alone ? "" : " that share all",
                     chunked ? 7 : 512);
            forward_set_alone(workers[i].alone);
            llmq_session *s = open_session(model, (llmq_session_params){.n_threads = threads, .n_batch = chunked ? 7 : 0, .kv_type = LLMQ_KV_F32});
            assert_int_equal(llmq_session_sync(s, g.tokens, g.n_tokens, NULL), LLMQ_OK);
            check_logits(&g, name, what, s, 1e-4);
            check_greedy(&g, name, s);
            /* The cache holds prompt and continuation: the prompt is its prefix, and only its last token is run again. */
            assert_int_equal(llmq_session_sync(s, g.tokens, g.n_tokens, NULL), LLMQ_OK);
            check_logits(&g, name, "prefix reuse", s, 1e-4);
            llmq_session_truncate(s, 20);
            assert_int_equal(llmq_session_append(s, g.tokens + 20, g.n_tokens - 20, NULL), LLMQ_OK);
            check_logits(&g, name, "truncate and append", s, 1e-4);
            llmq_session_truncate(s, 0);
            logprob_check check = {&g, name, 0};
            assert_int_equal(llmq_session_append_all(s, g.tokens, g.n_tokens, 0, check_logprob, &check, NULL), LLMQ_OK);
            assert_int_equal(check.next, g.n_tokens);
            check_logits(&g, name, "append_all", s, 1e-4);
            llmq_session_destroy(s);
        }
    forward_set_alone(-1);
    model_close(model);
}

static void test_against_transformers(void **state) {
    (void)state;
    for (int isa = 0; isa < N_ISAS; isa++) {
        if (!backend_cpu_isa(all_isas[isa])) continue;
        for (int i = 0; i < N_NAMES; i++) run_one(names[i], all_isas[isa]);
    }
}

/* Rounded caches are near, and not the same. With AVX-512 BF16 prompts that meet them are multiplied as bf16. */
static void test_rounded_caches(void **state) {
    (void)state;
    golden g;
    read_golden("qwen3", &g);
    for (int isa = 0; isa < N_ISAS; isa++) {
        if (!backend_cpu_isa(all_isas[isa])) continue;
        bool in_bf16 = !strcmp(all_isas[isa], "avx512bf16");
        llmq_model *model = open_model("qwen3", all_isas[isa]);
        llmq_session *f16 = open_session(model, (llmq_session_params){.n_threads = 1});
        llmq_session *q8 = open_session(model, (llmq_session_params){.n_threads = 2, .kv_type = LLMQ_KV_Q8_0});
        assert_true(llmq_session_kv_bytes(q8) * 10 < llmq_session_kv_bytes(f16) * 6);
        assert_int_equal(llmq_session_sync(q8, g.tokens, g.n_tokens, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_sync(f16, g.tokens, g.n_tokens, NULL), LLMQ_OK);
        double e8 = logit_error(&g, llmq_session_logits(q8)), e16 = logit_error(&g, llmq_session_logits(f16));
        assert_true(e8 < 0.05);
        assert_true(e16 < (in_bf16 ? 0.01 : 0.005));
        assert_true(e8 > (in_bf16 ? 1.2 : 2) * e16);
        assert_true(e16 > 1e-5);
        llmq_session_destroy(f16);
        llmq_session_destroy(q8);
        model_close(model);
    }
}

/* A GGUF made from the folder gives the same logits: row order, RoPE settings, biases, window and tied head all survive. */
static void test_after_conversion(void **state) {
    (void)state;
    const char out[] = LLMQ_TEST_TMP "/engine_golden.gguf";
    for (int i = 0; i < N_NAMES; i++) {
        char path[512];
        golden g;
        llmq_err err = {0};
        llmq_convert_params params;
        llmq_convert_result result;
        llmq_model *model = NULL;
        read_golden(names[i], &g);
        snprintf(path, sizeof path, "%s/goldens/%s", LLMQ_TEST_DATA, names[i]);
        llmq_convert_params_default(&params);
        params.force = true;
        if (llmq_convert(path, out, &params, &result, &err) != LLMQ_OK) fail_msg("%s: %s", names[i], err.msg);
        if (llmq_model_open(out, NULL, &model, &err) != LLMQ_OK) fail_msg("%s: %s", names[i], err.msg);
        llmq_session *s = open_session(model, (llmq_session_params){.kv_type = LLMQ_KV_F32});
        assert_int_equal(llmq_session_sync(s, g.tokens, g.n_tokens, NULL), LLMQ_OK);
        check_logits(&g, names[i], "as GGUF", s, 1e-4);
        llmq_session_destroy(s);
        llmq_model_close(model);
    }
}

/* Every position's logits are bitwise the same on any number of threads. */
static void test_threads_do_not_matter(void **state) {
    (void)state;
    golden g;
    read_golden("llama", &g);
    llmq_model *model = open_model("llama", backend_cpu()->isa);
    llmq_session *one = open_session(model, (llmq_session_params){.n_threads = 1});
    llmq_session *three = open_session(model, (llmq_session_params){.n_threads = 3});
    forward_set_alone(0);
    llmq_session *sharing = open_session(model, (llmq_session_params){.n_threads = 3});
    forward_set_alone(-1);
    for (size_t n = 1; n <= g.n_tokens; n += 11) {
        assert_int_equal(llmq_session_sync(one, g.tokens, n, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_sync(three, g.tokens, n, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_sync(sharing, g.tokens, n, NULL), LLMQ_OK);
        assert_memory_equal(llmq_session_logits(one), llmq_session_logits(three), g.n_vocab * sizeof(float));
        assert_memory_equal(llmq_session_logits(one), llmq_session_logits(sharing), g.n_vocab * sizeof(float));
    }
    llmq_session_destroy(one);
    llmq_session_destroy(three);
    llmq_session_destroy(sharing);
    model_close(model);
}

static int as_usual(void **state) {
    (void)state;
    forward_set_alone(-1);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_against_transformers, as_usual),
        cmocka_unit_test(test_after_conversion),
        cmocka_unit_test(test_rounded_caches),
        cmocka_unit_test(test_threads_do_not_matter),
    };
    isas_say();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
