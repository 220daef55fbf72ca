/* Passes of one, several and many tokens: workers do the small ops of few each for itself (engine/forward.c). */
#define TINY_WIDE
#define TINY_WIDE_FF 1024
#include "tests/engine/tiny.h"

#define N_TOKENS 60

static const char path[] = LLMQ_TEST_TMP "/engine_forward.gguf";
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

/* Of 256 columns 32 tokens are few, of the hidden layer's 1024 it is 8; of 200 in another model 40. */
static void check_shape(int64_t n_ff) {
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
    assert_int_equal(model_open(path, NULL, &model, NULL), LLMQ_OK);
    static const int64_t batches[] = {1, 2, 7, 8, 9, 32, 33, 40, 41, N_TOKENS};
    static seen alone, x;
    run(1, 1, &alone);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
        for (int threads = 1; threads <= 4; threads++) {
            run(batches[i], threads, &x);
            for (int k = 0; k < N_TOKENS; k++)
                for (int v = 0; v < TINY_VOCAB; v++)
                    if (!(fabsf(x.logits[k][v] - alone.logits[k][v]) < 1e-4f))
                        fail_msg("n_ff %d, %d at a time, %d threads: logit %d of token %d is %g, not %g", (int)n_ff, (int)batches[i],
                                 threads, v, k, x.logits[k][v], alone.logits[k][v]);
        }
    model_close(model);
}

static void test_however_many_at_a_time(void **state) {
    (void)state;
    check_shape(TINY_FF);
    check_shape(200);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_however_many_at_a_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
