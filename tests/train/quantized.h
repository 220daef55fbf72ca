/* Small models quantized and compared with their source, for the tests of training. */
#ifndef LLMQ_TESTS_TRAIN_QUANTIZED_H
#define LLMQ_TESTS_TRAIN_QUANTIZED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmq_quant.h"

#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"
#define OUT LLMQ_TEST_TMP "/tune.gguf"

static inline llmq_quant_params params(const char *set) {
    llmq_quant_params p;
    llmq_quant_params_default(&p);
    p.type = "q4_0";
    p.calib_tokens = 1536;
    p.calib_ctx = 96;
    p.out = OUT;
    p.force = true;
    p.tokenizer = STORIES_TOK;
    p.tune = true;
    p.tune_settings = set;
    p.n_threads = 1;
    return p;
}

static inline llmq_quant_result quantize(const char *model, const llmq_quant_params *p) {
    llmq_quant_result r;
    llmq_err err = {0};
    if (llmq_quantize(model, p, &r, &err) != LLMQ_OK) fail_msg("%s: %s", model, err.msg);
    return r;
}

/* KL divergence of a quantized model from its source on a text that neither calibration nor tuning saw. */
static inline double divergence_on(const char *text, const char *quantized, const char *source, const char *tokenizer,
                                   int64_t ctx, int64_t chunks) {
    llmq_model_params mp;
    llmq_model *model = NULL, *base = NULL;
    llmq_ppl_params pp;
    llmq_ppl_result r;
    llmq_err err = {0};
    llmq_model_params_default(&mp);
    mp.tokenizer = tokenizer;
    assert_int_equal(llmq_model_open(quantized, &mp, &model, &err), LLMQ_OK);
    assert_int_equal(llmq_model_open(source, &mp, &base, &err), LLMQ_OK);
    llmq_ppl_params_default(&pp);
    pp.n_ctx = ctx;
    pp.n_chunks = chunks;
    if (llmq_perplexity(model, base, text, strlen(text), &pp, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    llmq_model_close(model);
    llmq_model_close(base);
    return r.kl_mean;
}

#endif
