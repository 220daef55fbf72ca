/* Calibration text that the model writes itself: likely by the model's own sessions, the same for any threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "engine/calib.h"
#include "engine/jobs.h"
#include "engine/session.h"

#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"
#define OUT LLMQ_TEST_TMP "/self.gguf"
enum { CTX = 32, WINDOWS = 17 }; /* more windows than grow at a time */

static llmq_model *open_stories(void) {
    llmq_model *model;
    llmq_model_params params = {.tokenizer = STORIES_TOK};
    assert_int_equal(model_open(STORIES, &params, &model, NULL), LLMQ_OK);
    return model;
}

static void write_text(const llmq_model *model, int n_threads, uint64_t seed, llmq_calib *out) {
    llmq_err err = {0};
    llmq_calib_self self = {.seed = seed};
    const char *files[] = {"self"};
    assert_int_equal(team_create(n_threads, &self.team, NULL), LLMQ_OK);
    if (calib_load(model, files, 1, CTX * WINDOWS, CTX, &self, out, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(out->n_windows, WINDOWS);
    team_destroy(self.team);
}

typedef struct surprise {
    const int32_t *tokens;
    int64_t n_vocab;
    double sum;
    int n;
} surprise;

static void score(void *user, size_t i, const float *logits) {
    surprise *s = user;
    double sum = 0;
    if (i < 2 || i + 1 >= CTX || s->tokens[i] <= 2) return; /* what begins a window or a text is not the model's */
    for (int64_t v = 0; v < s->n_vocab; v++) sum += exp((double)logits[v]);
    s->sum += log(sum) - (double)logits[s->tokens[i + 1]];
    s->n++;
}

static double mean_surprise(llmq_model *model, const llmq_calib *calib) {
    llmq_session *session;
    llmq_session_params params;
    surprise s = {.n_vocab = model->hp.n_vocab};
    llmq_session_params_default(&params);
    params.n_threads = 1;
    assert_int_equal(llmq_session_create(model, &params, &session, NULL), LLMQ_OK);
    for (int w = 0; w < WINDOWS; w++) {
        s.tokens = calib->tokens + w * CTX;
        llmq_session_truncate(session, 0);
        assert_int_equal(llmq_session_append_all(session, s.tokens, CTX, 0, score, &s, NULL), LLMQ_OK);
    }
    llmq_session_destroy(session);
    return s.sum / s.n;
}

static void the_model_writes_likely_text(void **state) {
    (void)state;
    llmq_model *model = open_stories();
    llmq_calib a, b;
    write_text(model, 1, 5, &a);
    int seen[512] = {0}, distinct = 0, second = 0;
    for (int i = 0; i < CTX * WINDOWS; i++) {
        assert_in_range(a.tokens[i], 0, 511);
        distinct += !seen[a.tokens[i]]++;
    }
    for (int w = 0; w < WINDOWS; w++) {
        assert_int_equal(a.tokens[w * CTX], 1);
        for (int v = 0; v < w; v++) assert_memory_not_equal(a.tokens + v * CTX, a.tokens + w * CTX, CTX * 4);
        second += a.tokens[w * CTX + 1] != a.tokens[1];
    }
    assert_true(distinct > 80 && second > 5);
    double own =
        mean_surprise(model, &a); /* about the model's entropy; a wrong pass would give log 512 = 6.2 or more */
    if (!(own > 0.5 && own < 2.5)) fail_msg("%g nats a token", own);
    write_text(model, 2, 5, &b);
    assert_memory_equal(a.tokens, b.tokens, CTX * WINDOWS * sizeof *a.tokens);
    calib_clear(&b);
    write_text(model, 1, 6, &b);
    assert_memory_not_equal(a.tokens, b.tokens, CTX * WINDOWS * sizeof *a.tokens);
    calib_clear(&a);
    calib_clear(&b);
    model_close(model);
}

static void it_mixes_with_files(void **state) {
    (void)state;
    const char *files[] = {"self:1", LLMQ_TEST_TMP "/self.txt:3"};
    FILE *f = fopen(LLMQ_TEST_TMP "/self.txt", "w");
    assert_non_null(f);
    for (int i = 0; i < 400; i++) fprintf(f, "Once upon a time there was a dog with %d bones.\n", i);
    fclose(f);
    llmq_quant_params p = {.method = "gptq",
                           .type = "q4_0",
                           .act_order = -1,
                           .damp = -1,
                           .calib = files,
                           .n_calib = 2,
                           .calib_tokens = 16 * 64,
                           .calib_ctx = 64,
                           .out = OUT,
                           .force = true,
                           .n_threads = 2,
                           .tokenizer = STORIES_TOK};
    llmq_quant_result r;
    llmq_err err = {0};
    if (job_quantize(STORIES, &p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(r.calib_tokens, 16 * 64);
    assert_true(r.mean_error > 0 && r.mean_error < r.mean_rtn_error);
    mem_free(r.rows);
    llmq_model *model = open_stories();
    llmq_calib calib;
    llmq_calib_self self = {.plan_only = true};
    assert_int_equal(calib_self_tokens(files, 2, 16 * 64), 4 * 64);
    assert_int_equal(calib_load(model, files, 2, 16 * 64, 64, &self, &calib, NULL), LLMQ_OK);
    assert_int_equal(calib.n_windows, 16);
    for (int w = 0; w < 16; w++) /* a plan's own windows are zeros: every fourth one, not the first four */
        assert_int_equal(calib.tokens[w * 64 + 5] == 0, w % 4 == 1);
    calib_clear(&calib);
    assert_int_equal(calib_load(model, files, 2, 16 * 64, 64, NULL, &calib, NULL), LLMQ_E_UNSUPPORTED);
    model_close(model);
}

static void the_default_text_is_one_of_several(void **state) {
    (void)state;
    const char *files[] = {"default:3", "self"};
    llmq_model *model = open_stories();
    llmq_calib both, alone;
    llmq_calib_self self = {.plan_only = true};
    assert_int_equal(calib_self_tokens(files, 2, 16 * 64), 4 * 64);
    assert_int_equal(calib_load(model, files, 2, 16 * 64, 64, &self, &both, NULL), LLMQ_OK);
    assert_int_equal(calib_load(model, NULL, 0, 12 * 64, 64, NULL, &alone, NULL), LLMQ_OK);
    for (int w = 0, read = 0; w < 16; w++) {
        if (both.tokens[w * 64 + 5] == 0) continue; /* the model's own: every fourth one */
        assert_memory_equal(both.tokens + w * 64, alone.tokens + read++ * 64, 64 * sizeof(int32_t));
        assert_int_equal(read - 1, w - (w + 1) / 4);
    }
    calib_clear(&both);
    calib_clear(&alone);
    model_close(model);
}

static bool stop(void *user, double n) {
    (void)n;
    return --*(int *)user > 0;
}

static void it_can_be_stopped_and_run_out_of_memory(void **state) {
    (void)state;
    const char *files[] = {"self"};
    int ticks = 3;
    llmq_model *model = open_stories();
    llmq_calib calib;
    llmq_calib_self self = {.tick = stop, .user = &ticks};
    assert_int_equal(team_create(2, &self.team, NULL), LLMQ_OK);
    assert_int_equal(calib_load(model, files, 1, 64, 16, &self, &calib, NULL), LLMQ_E_INTERRUPTED);
    assert_null(calib.tokens);
    self.tick = NULL;
    for (long n = 1;; n += 1 + n / 3) {
        mem_fail_after(n);
        llmq_status status = calib_load(model, files, 1, 16, 8, &self, &calib, NULL);
        mem_fail_after(0);
        if (status == LLMQ_OK) break;
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
    calib_clear(&calib);
    team_destroy(self.team);
    model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_model_writes_likely_text),
        cmocka_unit_test(it_mixes_with_files),
        cmocka_unit_test(the_default_text_is_one_of_several),
        cmocka_unit_test(it_can_be_stopped_and_run_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
