/* Mixed bits: budgets are obeyed, rules are kept, choices do not depend on threads, measurements mean what they say. */
#define _XOPEN_SOURCE 700
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "engine/jobs.h"
#include "engine/sensitivity.h"

#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"
#define OUT LLMQ_TEST_TMP "/mixed.gguf"

static llmq_quant_params stories(void) {
    llmq_quant_params p;
    llmq_quant_params_default(&p);
    p.tokenizer = STORIES_TOK;
    p.calib_tokens = 512;
    p.calib_ctx = 128;
    p.out = OUT;
    p.force = true;
    p.n_threads = 1;
    return p;
}

static llmq_quant_result run_ok(const llmq_quant_params *p) {
    llmq_err err = {0};
    llmq_quant_result r;
    if (job_quantize(STORIES, p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return r;
}

static double expected(const llmq_quant_result *r) {
    double sum = 0;
    for (size_t i = 0; i < r->n_rows; i++) sum += r->rows[i].expected_kl > 0 ? r->rows[i].expected_kl : 0;
    return sum;
}

static void budgets_are_obeyed(void **state) {
    (void)state;
    double last = 1e9;
    for (int step = 0; step < 2; step++) {
        llmq_quant_params p = stories();
        struct stat st;
        p.target_bytes = 245000 + step * 12000;
        llmq_quant_result r = run_ok(&p);
        assert_int_equal(stat(OUT, &st), 0);
        assert_int_equal(st.st_size, r.out_bytes);
        assert_true(r.out_bytes <= p.target_bytes);
        assert_true(r.out_bytes > p.target_bytes * 97 / 100); /* and nearly used up */
        assert_true(expected(&r) < last);
        last = expected(&r);
        assert_true(r.stage_seconds[LLMQ_STAGE_CHOOSE] > 0);
        llmq_quant_result_clear(&r);
    }
    for (int step = 0; step < 2; step++) {
        llmq_quant_params p = stories();
        p.method = step ? "gptq" : "rtn";
        p.target_bpw = 7.2 + step * 0.5;
        p.plan_only = true;
        llmq_quant_result r = run_ok(&p);
        assert_true(r.bits_per_weight <= p.target_bpw && r.bits_per_weight > p.target_bpw - 0.1);
        llmq_quant_result_clear(&r);
    }
}

static void rules_are_kept(void **state) {
    (void)state;
    const char *keep[] = {"blk.0.*=f16", "token_embd*=q4_0"};
    llmq_quant_params p = stories();
    p.keep = keep;
    p.n_keep = 2;
    p.target_bpw = 8.7;
    p.plan_only = true;
    llmq_quant_result r = run_ok(&p);
    bool kinds[LLMQ_TYPE_COUNT] = {0};
    int n_kinds = 0;
    for (size_t i = 0; i < r.n_rows; i++) {
        const llmq_quant_row *row = &r.rows[i];
        if (row->cols > 1 && row->rows > 1 && row->layer == 0) assert_int_equal(row->to, LLMQ_TYPE_F16);
        if (!strcmp(row->role, "token_embd")) assert_int_equal(row->to, LLMQ_TYPE_Q4_0);
        assert_int_equal(row->expected_kl >= 0, row->rows > 1 && row->layer > 0 && row->cols % 32 == 0);
        if (row->expected_kl >= 0) n_kinds += !kinds[row->to], kinds[row->to] = true;
    }
    assert_true(n_kinds > 1);
    llmq_quant_result_clear(&r);
}

static void same_choice_for_any_threads(void **state) {
    (void)state;
    llmq_quant_result r[2];
    for (int i = 0; i < 2; i++) {
        llmq_quant_params p = stories();
        p.target_bpw = 7.5;
        p.plan_only = true;
        p.n_threads = i ? 3 : 1;
        r[i] = run_ok(&p);
    }
    for (size_t i = 0; i < r[0].n_rows; i++) {
        assert_int_equal(r[0].rows[i].to, r[1].rows[i].to);
        assert_true(r[0].rows[i].expected_kl == r[1].rows[i].expected_kl);
    }
    for (int i = 0; i < 2; i++) llmq_quant_result_clear(&r[i]);
}

static void the_impossible_is_refused(void **state) {
    (void)state;
    llmq_quant_result r;
    llmq_err err;
    llmq_quant_params p = stories();
    p.plan_only = true;
    p.target_bytes = 1000;
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_ARG);
    long long least = 0;
    const char *at = strstr(err.msg, "possible has ");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "possible has %lld", &least), 1);
    p.target_bytes = least - 1;
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_ARG);
    p.target_bytes = least; /* the size it names is possible */
    r = run_ok(&p);
    assert_true(r.out_bytes <= least && r.out_bytes > least - 1024); /* the manifest's length is not known before */
    llmq_quant_result_clear(&r);
    p.target_bytes = 0;
    p.target_bpw = 1;
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "--target-bpw"));
    p.target_bytes = 5;
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_ARG);
    p.target_bytes = 0;
    p.type = "q4_0";
    assert_int_equal(job_quantize(STORIES, &p, &r, &err), LLMQ_E_ARG);
}

/* ---- the measurements ---- */

static bool go_on(void *user, const llmq_calib_work *done) {
    *(double *)user += done->of[CALIB_WEIGHTS] + done->of[CALIB_GRAM];
    return true;
}

/* More bits cost less, and all losses are finite. */
static void losses_are_sound(void **state) {
    (void)state;
    llmq_err err = {0};
    llmq_model *model;
    llmq_export *ex;
    llmq_team *team;
    llmq_calib calib;
    double macs = 0;
    llmq_model_params open = {.tokenizer = STORIES_TOK, .no_weights = true};
    assert_int_equal(model_open(STORIES, &open, &model, &err), LLMQ_OK);
    assert_int_equal(export_create(model, &ex, &err), LLMQ_OK);
    assert_int_equal(team_create(2, &team, &err), LLMQ_OK);
    assert_int_equal(calib_load(model, NULL, 0, 512, 64, NULL, &calib, &err), LLMQ_OK);
    bool *free_ = mem_zalloc(ex->n, sizeof *free_);
    double *loss = mem_zalloc(ex->n * LLMQ_TYPE_COUNT, sizeof *loss);
    for (size_t i = 0; i < ex->n; i++) free_[i] = ex->entries[i].matrix && i != 3;
    const llmq_sensitivity_job job = {
        .model = model, .ex = ex, .team = team, .calib = &calib, .open = free_, .feedback = true, .act_order = true, .tick = go_on, .user = &macs};
    if (sensitivity_measure(&job, loss, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_true(macs > 0);
    for (size_t i = 0; i < ex->n; i++) {
        const double *l = loss + i * LLMQ_TYPE_COUNT;
        for (int t = 0; t < LLMQ_TYPE_COUNT; t++) {
            assert_int_equal(l[t] >= 0, free_[i] && sensitivity_is_candidate(ex, i, (llmq_type)t));
            assert_true(isfinite(l[t]));
        }
        if (!free_[i] || l[LLMQ_TYPE_Q4_0] < 0) continue;
        assert_true(l[LLMQ_TYPE_Q8_0] < l[LLMQ_TYPE_Q5_0] / 10);
        assert_true(l[LLMQ_TYPE_Q5_0] < l[LLMQ_TYPE_Q4_0] / 2);
    }
    mem_free(loss);
    mem_free(free_);
    calib_clear(&calib);
    team_destroy(team);
    export_destroy(ex);
    model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(budgets_are_obeyed), cmocka_unit_test(rules_are_kept),
                                       cmocka_unit_test(same_choice_for_any_threads),
                                       cmocka_unit_test(the_impossible_is_refused),
                                       cmocka_unit_test(losses_are_sound)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
