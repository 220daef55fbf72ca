/* Sessions: what the cache keeps, what overflows, what fails. */
#include "tests/engine/tiny.h"

static const char path[] = LLMQ_TEST_TMP "/engine_session.gguf";
static llmq_model *model;

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

static llmq_session *create(int64_t n_ctx, int n_threads) {
    llmq_session *s = NULL;
    llmq_err err = {0};
    llmq_session_params p = {.n_ctx = n_ctx, .n_threads = n_threads, .kv_type = LLMQ_KV_F32};
    if (llmq_session_create(model, &p, &s, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return s;
}

static void assert_same_logits(const llmq_session *a, const llmq_session *b) {
    const float *x = llmq_session_logits(a), *y = llmq_session_logits(b);
    assert_non_null(x);
    assert_non_null(y);
    for (int i = 0; i < TINY_VOCAB; i++) assert_float_equal(x[i], y[i], 1e-4);
}

static void test_sync_keeps_the_common_prefix(void **state) {
    (void)state;
    const int32_t a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 2, 3, 9, 10}, c[] = {1, 2};
    llmq_session *s = create(16, 2), *fresh = create(16, 1);
    const struct { const int32_t *tokens; size_t n; } turns[] = {{a, 6}, {b, 5}, {b, 5}, {c, 2}, {a, 6}, {a, 1}};
    for (size_t i = 0; i < sizeof turns / sizeof *turns; i++) {
        assert_int_equal(llmq_session_sync(s, turns[i].tokens, turns[i].n, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_n_past(s), turns[i].n);
        llmq_session_truncate(fresh, 0);
        assert_int_equal(llmq_session_append(fresh, turns[i].tokens, turns[i].n, NULL), LLMQ_OK);
        assert_same_logits(s, fresh);
    }
    llmq_session_destroy(s);
    llmq_session_destroy(fresh);
}

static void test_overflow(void **state) {
    (void)state;
    int32_t tokens[40];
    for (int i = 0; i < 40; i++) tokens[i] = 1 + i;
    llmq_session *s = create(16, 1);
    llmq_err err = {0};
    assert_int_equal(llmq_session_sync(s, tokens, 17, &err), LLMQ_E_CONTEXT);
    assert_non_null(strstr(err.msg, "--ctx"));
    assert_int_equal(llmq_session_n_past(s), 0);
    assert_int_equal(llmq_session_append(s, tokens, 10, &err), LLMQ_OK);
    assert_int_equal(llmq_session_append(s, tokens, 7, &err), LLMQ_E_CONTEXT);
    assert_int_equal(llmq_session_n_past(s), 10);
    assert_int_equal(llmq_session_append(s, tokens + 10, 6, &err), LLMQ_OK);
    assert_int_equal(llmq_session_append(s, tokens, 1, &err), LLMQ_E_CONTEXT);
    assert_int_equal(llmq_session_sync(s, tokens, 16, &err), LLMQ_OK); /* fits: all of it is there */
    llmq_session_destroy(s);
}

static void test_bad_arguments(void **state) {
    (void)state;
    llmq_session *s = create(16, 1);
    llmq_err err = {0};
    int32_t token;
    assert_null(llmq_session_logits(s));
    assert_int_equal(llmq_session_sample(s, &token, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_session_append(s, NULL, 0, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_session_append(s, (int32_t[]){TINY_VOCAB}, 1, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_session_append(s, (int32_t[]){-1}, 1, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_session_append(s, (int32_t[]){1, 2}, 2, &err), LLMQ_OK);
    llmq_session_truncate(s, 5); /* nothing to forget */
    assert_non_null(llmq_session_logits(s));
    llmq_session_truncate(s, 1);
    assert_null(llmq_session_logits(s));
    llmq_session_destroy(s);
    const llmq_session_params bad[] = {{.n_ctx = -1}, {.n_ctx = (int64_t)1 << 40}, {.n_batch = -3}, {.kv_type = (llmq_kv_type)9},
                                       {.kv_type = LLMQ_KV_Q8_0}, {.n_threads = 100000}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(llmq_session_create(model, &bad[i], &s, &err), LLMQ_E_ARG);
        assert_null(s);
    }
    llmq_model_params no_weights = {.no_weights = true};
    llmq_model *plan = NULL;
    assert_int_equal(model_open(path, &no_weights, &plan, &err), LLMQ_OK);
    assert_int_equal(llmq_session_create(plan, NULL, &s, &err), LLMQ_E_ARG);
    model_close(plan);
}

typedef struct seen {
    size_t next, n;
    float last[TINY_VOCAB];
} seen;

static void note(void *user, size_t pos, const float *logits) {
    seen *x = user;
    assert_int_equal(pos, x->next++);
    x->n++;
    memcpy(x->last, logits, sizeof x->last);
}

static void test_append_all_from(void **state) {
    (void)state;
    int32_t tokens[40];
    for (int i = 0; i < 40; i++) tokens[i] = 1 + i;
    llmq_session *all = NULL, *plain = create(64, 1);
    assert_int_equal(llmq_session_create(model, &(llmq_session_params){.n_batch = 9, .n_threads = 2, .kv_type = LLMQ_KV_F32}, &all, NULL), LLMQ_OK);
    const size_t froms[] = {0, 1, 8, 9, 10, 26, 27, 39, 40, 1000};
    for (size_t i = 0; i < sizeof froms / sizeof *froms; i++) {
        size_t from = froms[i];
        seen x = {.next = from};
        llmq_session_truncate(all, 0);
        assert_int_equal(llmq_session_append_all(all, tokens, 40, from, note, &x, NULL), LLMQ_OK);
        assert_int_equal(x.n, from < 40 ? 40 - from : 0);
        llmq_session_truncate(plain, 0);
        assert_int_equal(llmq_session_append(plain, tokens, 40, NULL), LLMQ_OK);
        assert_same_logits(all, plain); /* the last position's are ready even if nobody asked for them */
        if (x.n) assert_memory_equal(x.last, llmq_session_logits(all), sizeof x.last);
    }
    llmq_session_destroy(all);
    llmq_session_destroy(plain);
}

/* Token by token, of which only the last gives logits: the others leave the last layer once k and v are stored. */
static void test_passes_of_one_token(void **state) {
    (void)state;
    int32_t tokens[40];
    for (int i = 0; i < 40; i++) tokens[i] = 1 + i;
    llmq_session *whole = create(64, 1);
    assert_int_equal(llmq_session_append(whole, tokens, 40, NULL), LLMQ_OK);
    for (int threads = 1; threads <= 3; threads++) {
        llmq_session_params p = {.n_batch = 1, .n_threads = threads, .kv_type = LLMQ_KV_F32};
        llmq_session *s = NULL;
        assert_int_equal(llmq_session_create(model, &p, &s, NULL), LLMQ_OK);
        assert_int_equal(llmq_session_append(s, tokens, 40, NULL), LLMQ_OK);
        assert_same_logits(s, whole);
        llmq_session_destroy(s);
    }
    llmq_session_destroy(whole);
}

/* While every allocation fails, a running session must not notice. */
static void test_running_allocates_nothing(void **state) {
    (void)state;
    int32_t tokens[20], token = 0;
    for (int i = 0; i < 20; i++) tokens[i] = i;
    llmq_session *s = create(64, 2);
    mem_fail_after(1);
    llmq_status a = llmq_session_append(s, tokens, 20, NULL), b = llmq_session_sample(s, &token, NULL);
    llmq_status c = llmq_session_append(s, &token, 1, NULL), d = llmq_session_sync(s, tokens, 7, NULL);
    mem_fail_after(0);
    assert_int_equal(a, LLMQ_OK);
    assert_int_equal(b, LLMQ_OK);
    assert_int_equal(c, LLMQ_OK);
    assert_int_equal(d, LLMQ_OK);
    llmq_session_destroy(s);
}

/* Whichever allocation fails, opening ends in LLMQ_E_MEMORY (leaks show under ASan). */
static void test_every_allocation_may_fail(void **state) {
    (void)state;
    bool opened = false;
    for (long n = 1; n < 2000 && !opened; n++) {
        llmq_model *m = NULL;
        llmq_session *s = NULL;
        llmq_err err = {0};
        mem_fail_after(n);
        llmq_status status = model_open(path, &(llmq_model_params){.n_threads = 1}, &m, &err);
        if (status == LLMQ_OK) status = llmq_session_create(m, &(llmq_session_params){.n_threads = 1}, &s, &err);
        mem_fail_after(0);
        opened = status == LLMQ_OK;
        if (!opened) {
            if (status != LLMQ_E_MEMORY) fail_msg("allocation %ld: status %d: %s", n, (int)status, err.msg);
            assert_null(s);
        }
        llmq_session_destroy(s);
        model_close(m);
    }
    assert_true(opened);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sync_keeps_the_common_prefix), cmocka_unit_test(test_overflow), cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_append_all_from), cmocka_unit_test(test_passes_of_one_token),
        cmocka_unit_test(test_running_allocates_nothing),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
