/* Passes of one, several and many tokens: workers do the small ops of few each for itself (engine/forward.c). */
#define TINY_WIDE
#define TINY_WIDE_FF 1024
#include "tests/engine/tiny.h"

#include "engine/jobs.h"
#include "tests/isas.h"

#define N_TOKENS 60

static const char path[] = LLMQ_TEST_TMP "/engine_forward.gguf", typed[] = LLMQ_TEST_TMP "/engine_forward_typed.gguf";
static llmq_model *model;

typedef struct seen {
    float logits[N_TOKENS][TINY_VOCAB];
    size_t n;
} seen;

static void note(void *user, size_t pos, const float *logits) {
    seen *x = user;
    assert_int_equal(pos, x->n);
    memcpy(x->logits[x->n++], logits, sizeof *x->logits);
}

static void run(int64_t n_batch, int n_threads, seen *out) {
    llmq_session *s = NULL;
    llmq_err err = {0};
    llmq_session_params p = {.n_batch = n_batch, .n_threads = n_threads, .kv_type = LLMQ_KV_F32};
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = i * 7 % TINY_VOCAB;
    if (llmq_session_create(model, &p, &s, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    out->n = 0;
    assert_int_equal(llmq_session_append_all(s, tokens, N_TOKENS, 0, note, out, NULL), LLMQ_OK);
    assert_int_equal(out->n, N_TOKENS);
    llmq_session_destroy(s);
}

static void write_model(int64_t n_ff) {
    tiny_model t;
    tiny_init(&t);
    meta_set_u32(t.meta, "llama.feed_forward_length", (uint32_t)n_ff, NULL);
    for (size_t i = 0; i < t.n; i++)
        for (int d = 0; d < 2; d++)
            if (t.tensors[i].dims[d] == TINY_FF) {
                t.tensors[i].dims[d] = n_ff;
                t.tensors[i].bytes = t.tensors[i].bytes / TINY_FF * n_ff;
            }
    tiny_write(&t, path, 0);
}

/* Of 256 columns 32 tokens are few, of the hidden layer's 1024 it is 8; of 224 in another model 36. */
static void check_batches(const char *what) {
    static const int64_t batches[] = {2, 9, 36, N_TOKENS};
    static seen alone, x;
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        run(batches[i], 1, &alone);
        for (int always = 0; always < 2; always++) {
            forward_set_alone(always ? 1 << 20 : -1);
            run(batches[i], 3, &x);
            forward_set_alone(-1);
            for (int k = 0; k < N_TOKENS; k++)
                if (memcmp(x.logits[k], alone.logits[k], sizeof x.logits[k]) != 0)
                    fail_msg("%s, %d at a time%s: token %d has other logits with 3 threads than with one", what, (int)batches[i],
                             always ? ", each worker all" : "", k);
        }
    }
}

/* The same bits, however many workers there are and whatever each does for itself. */
static void test_workers_do_not_matter(void **state) {
    (void)state;
    static const int64_t widths[] = {TINY_FF, 224};
    static const char *const types[] = {"f16", "q8_0"};
    for (size_t i = 0; i < 2; i++) {
        write_model(widths[i]);
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            llmq_convert_params p = {.emit = "gguf", .type = types[k], .force = true, .n_threads = 1};
            llmq_convert_result r;
            llmq_err err = {0};
            if (job_convert(path, typed, &p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
            for (int isa = 0; isa < N_ISAS; isa++) {
                const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
                char what[80];
                if (!ops) continue;
                if (model_open_with(typed, NULL, ops, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
                snprintf(what, sizeof what, "%s, n_ff %d, %s", all_isas[isa], (int)widths[i], types[k]);
                check_batches(what);
                model_close(model);
            }
        }
    }
}

/* Nor, but for rounding, how many tokens a pass has. */
static void test_tokens_at_a_time_do_not_matter(void **state) {
    (void)state;
    static seen one, x;
    write_model(TINY_FF);
    assert_int_equal(model_open(path, NULL, &model, NULL), LLMQ_OK);
    run(1, 1, &one);
    for (int64_t n = 2; n <= N_TOKENS; n++) {
        run(n, 3, &x);
        for (int k = 0; k < N_TOKENS; k++)
            for (int v = 0; v < TINY_VOCAB; v++)
                if (!(fabsf(x.logits[k][v] - one.logits[k][v]) < 1e-4f))
                    fail_msg("%d at a time: logit %d of token %d is %g, not %g", (int)n, v, k, x.logits[k][v], one.logits[k][v]);
    }
    model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_workers_do_not_matter), cmocka_unit_test(test_tokens_at_a_time_do_not_matter)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
