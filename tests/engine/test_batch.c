/* Batches: each session computes what it computes alone; shared prefixes; errors leave everything as it was. */
#include "tests/engine/tiny.h"

#include "engine/batch.h"
#include "tests/isas.h"

static const char path[] = LLMQ_TEST_TMP "/engine_batch.gguf";
static llmq_model *model;
enum { N = 5, N_CTX = 48 };
static const llmq_session_params params = {.n_ctx = N_CTX, .n_threads = 1, .kv_type = LLMQ_KV_F16};

static int setup(void **state) {
    (void)state;
    model = tiny_open(path);
    return model ? 0 : 1;
}

static int teardown(void **state) {
    (void)state;
    model_close(model);
    return 0;
}

static llmq_batch *create_with(llmq_model *m, int n_threads, int64_t n, llmq_session **sessions) {
    llmq_batch *b = NULL;
    llmq_err err = {0};
    llmq_session_params p = params;
    p.n_threads = n_threads;
    if (llmq_batch_create(m, n, &p, &b, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (int64_t i = 0; i < n; i++) assert_non_null(sessions[i] = llmq_batch_session(b, i));
    assert_null(llmq_batch_session(b, n));
    assert_null(llmq_batch_session(b, -1));
    return b;
}

static llmq_batch *create(llmq_model *m, int64_t n, llmq_session **sessions) {
    return create_with(m, params.n_threads, n, sessions);
}

static void sampler_of(llmq_session *s, size_t i) {
    llmq_session_set_sampler(s, &(llmq_sampler_params){.temperature = i % 2 ? 1 : 0, .top_p = 1, .repeat_penalty = 1, .seed = i});
}

/* Prompts of different lengths; sessions that come and go. */
static void check_workers_against_alone(llmq_model *m, int n_threads) {
    llmq_session *sessions[N], *alone[N], *some[N];
    llmq_batch *b = create_with(m, n_threads, N, sessions);
    int32_t prompt[16], token[N], want;
    int64_t n_vocab = m->hp.n_vocab;
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j < 16; j++) prompt[j] = (int32_t)((i * 7 + j * (i + 1)) % (size_t)n_vocab);
        assert_int_equal(llmq_session_create(m, &params, &alone[i], NULL), LLMQ_OK);
        sampler_of(alone[i], i), sampler_of(sessions[i], i);
        assert_int_equal(llmq_session_sync(alone[i], prompt, 1 + 3 * i, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_sync(sessions[i], prompt, 1 + 3 * i, NULL), LLMQ_OK);
    }
    for (int step = 0; step < 20; step++) {
        size_t n = 0, at[N];
        for (size_t i = 0; i < N; i++)
            if ((step + (int)i) % 4) at[n] = i, some[n++] = sessions[i];
        assert_int_equal(llmq_batch_next(b, some, token, n, NULL), LLMQ_OK);
        for (size_t k = 0; k < n; k++) {
            assert_int_equal(llmq_session_next(alone[at[k]], &want, NULL), LLMQ_OK);
            assert_int_equal(token[k], want);
            assert_int_equal(llmq_session_n_past(some[k]), llmq_session_n_past(alone[at[k]]));
        }
        for (size_t i = 0; i < N; i++)
            assert_memory_equal(llmq_session_logits(sessions[i]), llmq_session_logits(alone[i]), (size_t)n_vocab * sizeof(float));
    }
    /* The sessions one by one, and tokens that are given. */
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(llmq_session_next(sessions[i], &token[i], NULL), LLMQ_OK);
        assert_int_equal(llmq_session_next(alone[i], &want, NULL), LLMQ_OK);
        assert_int_equal(token[i], want);
        assert_int_equal(llmq_session_append(alone[i], &token[i], 1, NULL), LLMQ_OK);
    }
    assert_int_equal(llmq_batch_append(b, sessions, token, N, NULL), LLMQ_OK);
    for (size_t i = 0; i < N; i++) {
        assert_memory_equal(llmq_session_logits(sessions[i]), llmq_session_logits(alone[i]), (size_t)n_vocab * sizeof(float));
        llmq_session_destroy(sessions[i]); /* the batch's: left alone */
        llmq_session_destroy(alone[i]);
    }
    assert_int_equal(llmq_batch_append(b, sessions, token, N, NULL), LLMQ_OK);
    llmq_batch_destroy(b);
}

/* One worker; three, each of which does the small ops of few tokens for itself, or which share them. */
static void check_against_alone(llmq_model *m) {
    check_workers_against_alone(m, 1);
    check_workers_against_alone(m, 3);
    forward_set_alone(0);
    check_workers_against_alone(m, 3);
    forward_set_alone(-1);
}

static void test_alone(void **state) {
    (void)state;
    check_against_alone(model);
    for (int i = 0; i < N_ISAS; i++) {
        llmq_model *m = NULL;
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        if (!ops) continue;
        assert_int_equal(model_open_with(LLMQ_TEST_DATA "/../../data/tiny", NULL, ops, &m, NULL), LLMQ_OK);
        check_against_alone(m);
        model_close(m);
    }
}

/* More rows than matmul promises the same bits for. */
static void test_many(void **state) {
    (void)state;
    enum { MANY = 20 };
    llmq_session *sessions[MANY], *alone = NULL;
    llmq_batch *b = create(model, MANY, sessions);
    int32_t tokens[MANY];
    assert_int_equal(llmq_session_create(model, &params, &alone, NULL), LLMQ_OK);
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < MANY; i++) tokens[i] = (i * 3 + step * 5) % TINY_VOCAB;
        assert_int_equal(llmq_batch_append(b, sessions, tokens, MANY, NULL), LLMQ_OK);
    }
    for (int i = 0; i < MANY; i++) {
        llmq_session_truncate(alone, 0);
        for (int step = 0; step < 3; step++)
            assert_int_equal(llmq_session_append(alone, (int32_t[]){(i * 3 + step * 5) % TINY_VOCAB}, 1, NULL), LLMQ_OK);
        for (int j = 0; j < TINY_VOCAB; j++)
            assert_float_equal(llmq_session_logits(sessions[i])[j], llmq_session_logits(alone)[j], 2e-3);
    }
    llmq_session_destroy(alone);
    llmq_batch_destroy(b);
}

static void test_shared_prefix(void **state) {
    (void)state;
    llmq_session *sessions[3], *alone = NULL;
    llmq_batch *b = create(model, 3, sessions);
    int32_t text[30], other[30];
    for (int i = 0; i < 30; i++) text[i] = other[i] = i;
    for (int i = 20; i < 30; i++) other[i] = i + 7;
    assert_int_equal(llmq_session_create(model, &params, &alone, NULL), LLMQ_OK);
    assert_int_equal(llmq_session_sync(sessions[0], text, 30, NULL), LLMQ_OK);
    assert_int_equal(llmq_session_sync(sessions[2], text, 5, NULL), LLMQ_OK);
    /* What is shared is copied, not computed: a mark in the source shows up. */
    uint16_t *mark = (uint16_t *)sessions[0]->cache.kv[1].v + 13 * TINY_DIM, kept = *mark;
    assert_int_equal(batch_share_prefix(sessions[1], other, 29, NULL), LLMQ_OK);
    assert_int_equal(sessions[1]->n_past, 20);
    assert_int_equal(((uint16_t *)sessions[1]->cache.kv[1].v)[13 * TINY_DIM], kept);
    llmq_session_truncate(sessions[1], 0);
    assert_int_equal(batch_share_prefix(sessions[1], other, 19, NULL), LLMQ_OK);
    assert_int_equal(sessions[1]->n_past, 19);
    llmq_session_truncate(sessions[1], 0);
    assert_int_equal(batch_share_prefix(sessions[1], other, 7, NULL), LLMQ_OK);
    assert_int_equal(sessions[1]->n_past, 0); /* too few to be worth it */
    for (int i = 1; i < 3; i++) {
        assert_int_equal(llmq_session_sync(sessions[i], other, 30, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_n_past(sessions[i]), 30);
        llmq_session_truncate(alone, 0);
        assert_int_equal(llmq_session_append(alone, other, 30, NULL), LLMQ_OK);
        for (int j = 0; j < TINY_VOCAB; j++)
            assert_float_equal(llmq_session_logits(sessions[i])[j], llmq_session_logits(alone)[j], 2e-3);
    }
    /* The mark: a session that took the prefix sees it, one that computed its own does not. */
    *mark = 0x7c00; /* infinity */
    llmq_session_truncate(sessions[1], 0);
    llmq_session_truncate(sessions[2], 0);
    assert_int_equal(llmq_session_sync(sessions[1], text, 30, NULL), LLMQ_OK);
    bool odd = false;
    for (int j = 0; j < TINY_VOCAB; j++) odd = odd || !isfinite(llmq_session_logits(sessions[1])[j]);
    assert_true(odd);
    llmq_session_destroy(alone);
    llmq_batch_destroy(b);
}

static void test_refusals(void **state) {
    (void)state;
    llmq_session *sessions[3], *stranger = NULL;
    llmq_batch *b = create(model, 3, sessions), *none = NULL;
    llmq_err err = {0};
    int32_t text[N_CTX], tokens[4] = {1, 2, 3, 4};
    for (int i = 0; i < N_CTX; i++) text[i] = i;
    assert_int_equal(llmq_session_create(model, &params, &stranger, NULL), LLMQ_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(llmq_session_sync(sessions[i], text, 4, NULL), LLMQ_OK);
    assert_int_equal(llmq_batch_append(b, sessions, tokens, 0, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_batch_append(b, (llmq_session *[]){sessions[0], sessions[1], sessions[0]}, tokens, 3, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_batch_append(b, (llmq_session *[]){sessions[0], stranger}, tokens, 2, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_batch_append(b, (llmq_session *[]){sessions[0], NULL}, tokens, 2, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_batch_append(b, (llmq_session *[]){sessions[0], sessions[1], sessions[2], sessions[0]}, tokens, 4, &err),
                     LLMQ_E_ARG);
    tokens[1] = TINY_VOCAB;
    assert_int_equal(llmq_batch_append(b, sessions, tokens, 3, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "session 1 of the pass"));
    tokens[1] = 2;
    assert_int_equal(llmq_session_sync(sessions[2], text, N_CTX, NULL), LLMQ_OK);
    assert_int_equal(llmq_batch_append(b, sessions, tokens, 3, &err), LLMQ_E_CONTEXT);
    assert_non_null(strstr(err.msg, "session 2 of the pass"));
    for (int i = 0; i < 2; i++) assert_int_equal(llmq_session_n_past(sessions[i]), 4);
    assert_int_equal(llmq_batch_next(b, sessions, tokens, 3, &err), LLMQ_OK); /* samples; runs nothing yet */
    assert_int_equal(llmq_batch_next(b, sessions, tokens, 3, &err), LLMQ_E_CONTEXT);
    assert_int_equal(llmq_session_n_past(sessions[0]), 4);
    assert_int_equal(llmq_batch_next(b, sessions, tokens, 2, &err), LLMQ_OK);
    assert_int_equal(llmq_session_n_past(sessions[0]), 5);
    assert_int_equal(llmq_batch_create(model, 0, NULL, &none, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_batch_create(model, 1 << 20, NULL, &none, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_batch_create(model, 2, &(llmq_session_params){.n_ctx = -1}, &none, &err), LLMQ_E_ARG);
    assert_null(none);
    llmq_session_destroy(stranger);
    llmq_batch_destroy(b);
    llmq_batch_destroy(NULL);
}

static void test_memory(void **state) {
    (void)state;
    llmq_batch *b = NULL;
    llmq_session *sessions[2];
    int32_t text[] = {1, 2, 3}, tokens[2];
    llmq_status status = LLMQ_E_MEMORY;
    for (long n = 1; status == LLMQ_E_MEMORY; n++) {
        assert_true(n < 1000);
        mem_fail_after(n);
        status = llmq_batch_create(model, 2, &(llmq_session_params){.n_threads = 1}, &b, NULL);
        mem_fail_after(0);
        assert_true((status == LLMQ_OK) == (b != NULL));
    }
    assert_int_equal(status, LLMQ_OK);
    for (int i = 0; i < 2; i++) sessions[i] = llmq_batch_session(b, i);
    mem_fail_after(1); /* running allocates nothing */
    for (int i = 0; i < 2 && !status; i++) status = llmq_session_sync(sessions[i], text, 3, NULL);
    for (int i = 0; i < 5 && !status; i++) status = llmq_batch_next(b, sessions, tokens, 2, NULL);
    mem_fail_after(0);
    assert_int_equal(status, LLMQ_OK);
    llmq_batch_destroy(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),    cmocka_unit_test(test_many),   cmocka_unit_test(test_shared_prefix),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
