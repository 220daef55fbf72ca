/* train: --tune on a small model: it follows the source better, whatever the grid and the output; the same bytes for
 * any team and after being stopped at any step. */
#include "core/file.h"
#include "core/mem.h"
#include "quantized.h"

#define FOLDER LLMQ_TEST_TMP "/tune-folder"

static char *read_out(size_t *len) {
    char *bytes = NULL;
    assert_int_equal(file_read(OUT, 1 << 24, &bytes, len, NULL), LLMQ_OK);
    return bytes;
}

static double divergence(void) {
    static const char text[] =
        "Once upon a time there was a big dog who liked to run in the park. One day he saw a little girl with a red "
        "ball. She was very happy and said, \"Do you want to play with me?\" The dog wagged his tail and they played "
        "all day long until the sun went down. Then the girl went home to her mom, and the dog slept under a tree.";
    return divergence_on(text, OUT, STORIES, STORIES_TOK, 64, 0);
}

static void it_follows_better(void **state) {
    static const char *const calib[] = {"self"}; /* the kind of text that the model knows */
    static const char *const types[] = {"q4_0", "q4_1", "iq4_nl"};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        llmq_quant_params p = params("steps=24,batch=2,held=2,judge=2,lr=0.0015");
        p.method = i == 0 ? "gptq" : "rtn"; /* more is left to gain after rounding alone */
        p.type = types[i];
        p.calib = calib;
        p.n_calib = 1;
        p.tune = false;
        llmq_quant_result plain = quantize(STORIES, &p);
        double before = divergence();
        p.tune = true;
        llmq_quant_result r = quantize(STORIES, &p);
        double after = divergence();
        assert_int_equal(r.tune_steps, 24);
        assert_true(r.tune_after < 0.98 * r.tune_before);
        if (!(after < (i == 0 ? 1.05 : 0.95) * before)) fail_msg("%s: %.5f, tuned %.5f", types[i], before, after);
        llmq_quant_result_clear(&plain);
        llmq_quant_result_clear(&r);
    }
}

static void bad_steps_are_undone(void **state) {
    llmq_quant_params p = params("steps=4,batch=2,held=2,judge=1,lr=1,warmup=0");
    size_t len, len_plain;
    (void)state;
    llmq_quant_result r = quantize(STORIES, &p);
    assert_true(r.tune_after == r.tune_before);
    llmq_quant_result_clear(&r);
    char *tuned = read_out(&len);
    p.tune = false;
    r = quantize(STORIES, &p);
    llmq_quant_result_clear(&r);
    char *plain = read_out(&len_plain);
    assert_true(len > len_plain / 2); /* metadata differ: the manifest tells of the tuning; weights are at the end */
    size_t data = 150000;
    assert_true(len > data && len_plain > data);
    assert_memory_equal(tuned + len - data, plain + len_plain - data, data);
    mem_free(tuned);
    mem_free(plain);
}

typedef struct stopper {
    int calls, limit;
} stopper;

static bool stop(void *user, double done, double total, const char *what, double left) {
    stopper *s = user;
    (void)done, (void)total, (void)left;
    return strncmp(what, "tuning", 6) != 0 || ++s->calls < s->limit;
}

static void any_team_and_any_stop(void **state) {
    (void)state;
    for (int codes = 0; codes < 2; codes++) {
        llmq_quant_params p =
            params(codes ? "steps=4,batch=1,held=1,judge=2,code=0.3" : "steps=4,batch=1,held=1,judge=2");
        size_t want_len = 0, len;
        char *want = NULL;
        for (int n = 1; n <= 3; n++) {
            p.n_threads = n;
            llmq_quant_result r = quantize(STORIES, &p);
            llmq_quant_result_clear(&r);
            char *got = read_out(&len);
            if (want) {
                assert_int_equal(len, want_len);
                assert_memory_equal(got, want, len);
                mem_free(got);
            } else {
                want = got;
                want_len = len;
            }
        }
        for (int limit = 1; limit <= 4; limit += 1 + codes) {
            stopper s = {.limit = limit};
            llmq_quant_result r;
            llmq_err err = {0};
            p.n_threads = 1 + limit % 3;
            p.progress = stop;
            p.user = &s;
            remove(OUT);
            assert_int_equal(llmq_quantize(STORIES, &p, &r, &err), LLMQ_E_INTERRUPTED);
            assert_true(r.kept && r.kept_layers == r.n_layers);
            p.progress = NULL;
            r = quantize(STORIES, &p);
            assert_int_equal(r.resumed_layers, r.n_layers);
            llmq_quant_result_clear(&r);
            char *got = read_out(&len);
            assert_int_equal(len, want_len);
            assert_memory_equal(got, want, len);
            mem_free(got);
        }
        mem_free(want);
    }
}

/* Folders: what is read back for tuning is what was written, rows in another order too. */
static void other_outputs(void **state) {
    static const struct {
        const char *emit, *method;
        int group;
        bool asym, awq;
    } cases[] = {{"ct", "gptq", -1, false, false},
                 {"ct", "gptq", -1, true, true},
                 {"ct", "rtn", -1, true, false},
                 {"bnb", "nf4", 0, false, false},
                 {"bnb", "fp4", 0, false, false}}; /* blocks over the ends of rows */
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        llmq_quant_params p = params("steps=8,batch=1,held=2,judge=2,lr=0.003");
        llmq_quant_result r;
        p.type = NULL;
        p.method = cases[i].method;
        p.emit = cases[i].emit;
        p.group = cases[i].group;
        p.asym = cases[i].asym;
        p.awq = cases[i].awq;
        p.out = FOLDER;
        r = quantize(STORIES, &p);
        assert_int_equal(r.tune_steps, 8);
        if (!(r.tune_after < r.tune_before))
            fail_msg("%s by %s: %.6f, tuned %.6f", p.emit, p.method, r.tune_before, r.tune_after);
        llmq_quant_result_clear(&r);
        llmq_model *model = NULL;
        llmq_err err = {0};
        if (llmq_model_open(p.out, NULL, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        llmq_model_close(model);
    }
}

static void refusals(void **state) {
    static const struct {
        const char *set, *say;
    } cases[] = {{"steps", "--tune-set"},
                 {"step=3", "--tune-set"},
                 {"lr=x", "--tune-set"},
                 {"held=100", "too few"},
                 {"steps=-1", "--tune-set"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        llmq_quant_params p = params(cases[i].set);
        llmq_quant_result r;
        llmq_err err = {0};
        assert_int_equal(llmq_quantize(STORIES, &p, &r, &err), LLMQ_E_ARG);
        if (!strstr(err.msg, cases[i].say)) fail_msg("%s: %s", cases[i].set, err.msg);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_follows_better), cmocka_unit_test(bad_steps_are_undone),
                                       cmocka_unit_test(any_team_and_any_stop), cmocka_unit_test(other_outputs),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
