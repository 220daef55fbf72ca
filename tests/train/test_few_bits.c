/* train: rounding, GPTQ, tuning and QAT at 2 and 3 bits: each beats the one before it. */
#include "core/file.h"
#include "core/mem.h"
#include "quantized.h"

#define FOLDER LLMQ_TEST_TMP "/few-bits"
#define TINY LLMQ_TEST_DATA "/../../data/tiny"
#define HELD_OUT LLMQ_TEST_DATA "/../../data/heldout.txt" /* tiny was not trained on it either */

/* KL divergence of data/tiny in groups of 32, on text of the kind that it was trained on, which nothing saw. The
 * default calibration text; asym -1: the default grid; few tokens and steps, so that it takes seconds. */
static double few_bits(const char *text, int bits, int asym, const char *method, const char *set, bool codes) {
    llmq_quant_params p = params(set);
    p.type = NULL;
    p.tokenizer = NULL;
    p.method = method;
    p.emit = "gptq";
    p.bits = bits;
    p.asym = asym;
    p.group = 32;
    p.calib_tokens = 32768;
    p.calib_ctx = 256;
    p.n_threads = 2;
    p.out = FOLDER;
    p.tune = set != NULL;
    p.tune_codes = codes;
    llmq_quant_result r = quantize(TINY, &p);
    llmq_quant_result_clear(&r);
    double kl = divergence_on(text, FOLDER, TINY, NULL, 256, 16);
    print_message("%d bits, %s%s: KL divergence %.4f\n", bits, method, codes ? ", QAT" : set ? ", tuned" : "", kl);
    return kl;
}

/* What each method is there for. */
static void methods_pay_at_few_bits(void **state) {
    static const char tune[] = "steps=30,batch=2,held=4,judge=1,lr=0.003";
    static const char qat[] = "steps=160,batch=2,held=8,judge=4,lr=0.002";
    static const char blocks[] = "blocks=1,steps=20,batch=2,held=4,judge=1,lr=0.003";
    char *text = NULL;
    size_t len;
    (void)state;
    assert_int_equal(file_read(HELD_OUT, 1 << 24, &text, &len, NULL), LLMQ_OK);
    for (int bits = 2; bits <= 3; bits++) {
        double rounded = few_bits(text, bits, -1, "rtn", NULL, false), gptq = few_bits(text, bits, -1, "gptq", NULL, false);
        assert_true(gptq < 0.75 * rounded);
        assert_true(few_bits(text, bits, -1, "gptq", qat, true) < 0.85 * gptq);
        if (bits == 3) continue;
        assert_true(gptq < 0.9 * few_bits(text, bits, 0, "gptq", NULL, false)); /* why zero points are the default */
        assert_true(few_bits(text, bits, -1, "gptq", tune, false) < 0.93 * gptq);
        assert_true(few_bits(text, bits, -1, "gptq", blocks, false) < 0.96 * gptq);
        assert_true(few_bits(text, bits, -1, "gptq", blocks, true) < 0.9 * gptq);
    }
    mem_free(text);
}

/* Tuning reads back what was written, zero points too. */
static void zero_points_are_read_back(void **state) {
    llmq_quant_params p = params("steps=2,batch=1,held=2,judge=1");
    (void)state;
    p.type = NULL;
    p.tokenizer = NULL;
    p.emit = "gptq";
    p.asym = true;
    p.bits = 4;
    p.group = 32;
    p.calib_tokens = 2048;
    p.calib_ctx = 256;
    p.out = FOLDER;
    llmq_quant_result r = quantize(TINY, &p);
    assert_true(r.tune_before < 0.1);
    llmq_quant_result_clear(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(zero_points_are_read_back),
                                       cmocka_unit_test(methods_pay_at_few_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
