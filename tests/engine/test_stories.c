/* A real trained model (tests/data/stories260K) through the public API: text, tokenizer choice, perplexity. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/session.h"

#define MODEL LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define TOKENIZER LLMQ_TEST_DATA "/stories260K/tok512.bin"

static const char opening[] = "Once upon a time";
static const char story[] = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
                            "She wanted to play with it, but it was too high.";

static llmq_model *open_stories(const char *path) {
    llmq_model *model = NULL;
    llmq_err err = {0};
    if (llmq_model_open(path, &(llmq_model_params){.tokenizer = TOKENIZER}, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return model;
}

/* Up to n tokens after the opening, as text (freed by the caller). */
static char *generate(llmq_model *model, int n, int n_threads, llmq_kv_type kv_type, const llmq_sampler_params *sampler) {
    llmq_session *s = NULL;
    llmq_stream *stream = NULL;
    int32_t *ids = NULL;
    size_t n_ids = 0, len = 0;
    char *text = calloc(1, 4096);
    assert_int_equal(llmq_session_create(model, &(llmq_session_params){.n_threads = n_threads, .kv_type = kv_type}, &s, NULL), LLMQ_OK);
    assert_int_equal(llmq_stream_create(model, &stream, NULL), LLMQ_OK);
    assert_int_equal(llmq_encode(model, opening, strlen(opening), LLMQ_TOK_BOS, &ids, &n_ids, NULL), LLMQ_OK);
    llmq_session_set_sampler(s, sampler);
    assert_int_equal(llmq_session_sync(s, ids, n_ids, NULL), LLMQ_OK);
    for (int i = 0; i < n; i++) {
        int32_t token;
        const char *piece;
        size_t piece_len;
        assert_int_equal(llmq_session_sample(s, &token, NULL), LLMQ_OK);
        if (llmq_model_is_end(model, token)) break;
        llmq_stream_put(stream, token, &piece, &piece_len);
        assert_true(len + piece_len < 4096);
        memcpy(text + len, piece, piece_len);
        len += piece_len;
        assert_int_equal(llmq_session_append(s, &token, 1, NULL), LLMQ_OK);
    }
    llmq_free(ids);
    llmq_stream_destroy(stream);
    llmq_session_destroy(s);
    return text;
}

static void test_story(void **state) {
    (void)state;
    llmq_model *model = open_stories(MODEL);
    llmq_model_info info;
    llmq_model_get_info(model, &info);
    assert_string_equal(info.container, "llama2c");
    assert_string_equal(info.arch, "llama");
    assert_int_equal(info.n_vocab, 512);
    assert_int_equal(info.n_layer, 5);
    assert_true(llmq_model_is_end(model, 1)); /* llama2.c ends a text at BOS */
    for (int threads = 1; threads <= 2; threads++)
        for (int kv = LLMQ_KV_F16; kv <= LLMQ_KV_F32; kv += LLMQ_KV_F32) {
            char *text = generate(model, 80, threads, (llmq_kv_type)kv, &(llmq_sampler_params){.temperature = 0});
            if (strncmp(text, story, strlen(story)) != 0) fail_msg("%d threads: %s", threads, text);
            free(text);
        }
    llmq_model_close(model);
}

static void test_same_seed_same_text(void **state) {
    (void)state;
    llmq_model *model = open_stories(MODEL);
    llmq_sampler_params p;
    llmq_sampler_params_default(&p);
    p.temperature = 1;
    p.seed = 3;
    char *one = generate(model, 60, 1, LLMQ_KV_F16, &p), *three = generate(model, 60, 3, LLMQ_KV_F16, &p);
    p.seed = 4;
    char *other = generate(model, 60, 1, LLMQ_KV_F16, &p);
    assert_string_equal(one, three);
    assert_string_not_equal(one, other);
    free(one);
    free(three);
    free(other);
    llmq_model_close(model);
}

static void test_tokenizer_missing_or_wrong(void **state) {
    (void)state;
    llmq_model *model = NULL;
    llmq_err err = {0};
    assert_int_equal(llmq_model_open(MODEL, &(llmq_model_params){.tokenizer = LLMQ_TEST_TMP "/nothing.bin"}, &model, &err), LLMQ_E_IO);
    assert_non_null(strstr(err.msg, "nothing.bin"));
    assert_int_equal(llmq_model_open(MODEL, &(llmq_model_params){.tokenizer = MODEL}, &model, &err), LLMQ_E_FORMAT);
    assert_null(model);
    /* No tokenizer.bin beside it: it opens, and says what is missing when text comes. */
    assert_int_equal(llmq_model_open(MODEL, NULL, &model, &err), LLMQ_OK);
    llmq_stream *stream = NULL;
    assert_int_equal(llmq_stream_create(model, &stream, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "--tokenizer"));
    assert_false(llmq_model_is_end(model, 1));
    llmq_model_close(model);
}

static void test_vocab_only(void **state) {
    (void)state;
    llmq_model *model = NULL;
    llmq_err err = {0};
    llmq_model_params p = {.tokenizer = TOKENIZER, .vocab_only = true};
    assert_int_equal(llmq_model_open(MODEL, &p, &model, &err), LLMQ_OK);
    int32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(llmq_encode(model, opening, strlen(opening), 0, &ids, &n, &err), LLMQ_OK);
    assert_true(n > 2);
    char *text = NULL;
    size_t len = 0;
    assert_int_equal(llmq_decode(model, ids, n, 0, &text, &len, &err), LLMQ_OK);
    assert_string_equal(text, opening);
    llmq_free(text);
    llmq_free(ids);
    llmq_model_close(model);
}

static void test_metadata_and_tensors(void **state) {
    (void)state;
    llmq_model *model = open_stories(MODEL);
    const char *key, *value;
    bool layers = false, tokens = false;
    size_t n = 0;
    for (; llmq_model_meta(model, n, &key, &value); n++) {
        if (strcmp(key, "llama.block_count") == 0) layers = strcmp(value, "5") == 0;
        if (strcmp(key, "tokenizer.ggml.tokens") == 0) tokens = strncmp(value, "string[512]: \"", 14) == 0;
    }
    assert_true(layers);
    assert_true(tokens);
    llmq_tensor_info t;
    int64_t params = 0;
    for (size_t i = 0; i < llmq_model_n_tensors(model); i++) {
        assert_int_equal(llmq_model_tensor(model, i, &t), LLMQ_OK);
        params += t.dims[0] * t.dims[1] * t.dims[2] * t.dims[3];
    }
    assert_int_equal(llmq_model_tensor(model, llmq_model_n_tensors(model), &t), LLMQ_E_ARG);
    llmq_model_info info;
    llmq_model_get_info(model, &info);
    assert_int_equal(params, info.n_params);
    llmq_model_close(model);
}

/* ---- perplexity ---- */

/* The same model with weights rounded to 6 bits of mantissa, as GGUF: something to compare with. */
static void write_rounded(const char *path) {
    llmq_model *model = open_stories(MODEL);
    const llmq_source *src = model->source;
    llmq_gguf_writer *w = NULL;
    llmq_err err = {0};
    if (gguf_writer_open(path, true, model->meta, src->tensors, src->n_tensors, &w, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (size_t i = 0; i < src->n_tensors; i++) {
        const llmq_tensor *t = &src->tensors[i];
        assert_int_equal(t->type, LLMQ_TYPE_F32);
        uint32_t *x = malloc((size_t)t->bytes);
        memcpy(x, t->data, (size_t)t->bytes);
        for (int64_t j = 0; j < tensor_numel(t); j++) x[j] = (x[j] + 0x10000u) & ~0x1ffffu;
        assert_int_equal(gguf_writer_put(w, i, x, (size_t)t->bytes, 0, &err), LLMQ_OK);
        free(x);
    }
    if (gguf_writer_finish(w, NULL, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    llmq_model_close(model);
}

/* Log-probabilities of all positions of one window, by the definition, in double. */
typedef struct window_logprobs {
    double (*out)[512];
} window_logprobs;

static void keep_logprobs(void *user, size_t pos, const float *l) {
    double max = -INFINITY, sum = 0, *out = ((window_logprobs *)user)->out[pos];
    for (int i = 0; i < 512; i++) max = fmax(max, (double)l[i]);
    for (int i = 0; i < 512; i++) sum += exp((double)l[i] - max);
    for (int i = 0; i < 512; i++) out[i] = (double)l[i] - max - log(sum);
}

static void window_of(llmq_model *model, const int32_t *window, int n, double (*out)[512]) {
    llmq_session *s = NULL;
    assert_int_equal(llmq_session_create(model, NULL, &s, NULL), LLMQ_OK);
    assert_int_equal(llmq_session_append_all(s, window, (size_t)n, 0, keep_logprobs, &(window_logprobs){out}, NULL), LLMQ_OK);
    llmq_session_destroy(s);
}

static int argmax512(const double *x) {
    int best = 0;
    for (int i = 1; i < 512; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static bool stop_soon(void *user, double done, double total, const char *what, double left) {
    (void)what;
    (void)left;
    assert_true(done <= total);
    return ++*(int *)user < 2;
}

enum { CTX = 24 };

static void test_perplexity_by_definition(void **state) {
    (void)state;
    write_rounded(LLMQ_TEST_TMP "/engine_rounded.gguf");
    llmq_model *base = open_stories(MODEL), *model = open_stories(LLMQ_TEST_TMP "/engine_rounded.gguf");
    char text[512];
    snprintf(text, sizeof text, "%s%s", opening, story);
    int32_t *ids = NULL;
    size_t n_ids = 0;
    assert_int_equal(llmq_encode(model, text, strlen(text), LLMQ_TOK_BOS, &ids, &n_ids, NULL), LLMQ_OK);
    assert_true(n_ids >= 2 * CTX);
    int chunks = (int)(n_ids / CTX);
    static double q[CTX][512], p[CTX][512];
    for (int full = 0; full < 2; full++) {
        double nll = 0, nll2 = 0, base_nll = 0, kl = 0, kl_max = 0;
        int n = 0, same = 0;
        for (int c = 0; c < chunks; c++) {
            int32_t window[CTX];
            memcpy(window, ids + c * CTX, sizeof window);
            window[0] = 1;
            window_of(model, window, CTX, q);
            window_of(base, window, CTX, p);
            for (int i = full ? 0 : CTX / 2; i < CTX - 1; i++, n++) {
                double x = -q[i][window[i + 1]], d = 0;
                nll += x;
                nll2 += x * x;
                base_nll -= p[i][window[i + 1]];
                for (int v = 0; v < 512; v++) d += exp(p[i][v]) * (p[i][v] - q[i][v]);
                kl += d;
                kl_max = fmax(kl_max, d);
                same += argmax512(p[i]) == argmax512(q[i]);
            }
        }
        nll /= n;
        double stderr_want = exp(nll) * sqrt((nll2 / n - nll * nll) / (n - 1));
        llmq_ppl_result r;
        llmq_ppl_params params = {.n_ctx = CTX, .full = full, .n_threads = 1 + full};
        assert_int_equal(llmq_perplexity(model, base, text, strlen(text), &params, &r, NULL), LLMQ_OK);
        assert_int_equal(r.tokens, n);
        assert_int_equal(r.chunks, chunks);
        assert_float_equal(r.ppl, exp(nll), 1e-4 * exp(nll));
        assert_float_equal(r.ppl_stderr, stderr_want, 1e-3 * stderr_want);
        assert_true(r.has_base);
        assert_float_equal(r.base_ppl, exp(base_nll / n), 1e-4 * exp(base_nll / n));
        assert_true(fabs(r.dppl - (r.ppl - r.base_ppl)) < 1e-9);
        assert_float_equal(r.kl_mean, kl / n, 1e-6 + 0.01 * kl / n);
        assert_true(r.kl_mean > 1e-6);
        assert_true(r.kl_p99 <= kl_max + 1e-5 && r.kl_p99 >= r.kl_mean);
        assert_float_equal(r.top1, (double)same / n, 1e-9);
        assert_true(r.dppl_ci95 > 0 && r.dppl_ci95 < r.ppl_stderr);
    }
    free(ids);
    llmq_model_close(model);
    llmq_model_close(base);
}

static void test_perplexity_of_itself_and_refusals(void **state) {
    (void)state;
    llmq_model *model = open_stories(MODEL);
    llmq_ppl_result r;
    llmq_err err = {0};
    llmq_ppl_params p = {.n_ctx = 16, .n_chunks = 2, .n_threads = 1};
    assert_int_equal(llmq_perplexity(model, model, story, strlen(story), &p, &r, &err), LLMQ_OK);
    assert_int_equal(r.chunks, 2);
    assert_float_equal(r.dppl, 0, 0);
    assert_float_equal(r.dppl_ci95, 0, 0);
    assert_float_equal(r.top1, 1, 0);
    assert_float_equal(r.kl_mean, 0, 1e-7);
    assert_int_equal(llmq_perplexity(model, NULL, story, strlen(story), &p, &r, &err), LLMQ_OK);
    assert_false(r.has_base);
    int calls = 0;
    p.progress = stop_soon;
    p.user = &calls;
    p.n_chunks = 0;
    assert_int_equal(llmq_perplexity(model, NULL, story, strlen(story), &p, &r, &err), LLMQ_E_INTERRUPTED);
    assert_int_equal(calls, 2);
    p = (llmq_ppl_params){.n_ctx = 512};
    assert_int_equal(llmq_perplexity(model, NULL, story, strlen(story), &p, &r, &err), LLMQ_E_ARG); /* not one window */
    p.n_ctx = 1;
    assert_int_equal(llmq_perplexity(model, NULL, story, strlen(story), &p, &r, &err), LLMQ_E_ARG);
    llmq_model *other = NULL;
    assert_int_equal(llmq_model_open(LLMQ_TEST_DATA "/goldens/llama", NULL, &other, &err), LLMQ_OK);
    p.n_ctx = 16;
    assert_int_equal(llmq_perplexity(model, other, story, strlen(story), &p, &r, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "vocabulary"));
    llmq_model_close(other);
    llmq_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_story), cmocka_unit_test(test_same_seed_same_text), cmocka_unit_test(test_tokenizer_missing_or_wrong),
        cmocka_unit_test(test_vocab_only), cmocka_unit_test(test_metadata_and_tensors), cmocka_unit_test(test_perplexity_by_definition),
        cmocka_unit_test(test_perplexity_of_itself_and_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
