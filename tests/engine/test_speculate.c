/* Speculation: the same tokens and the same logits, bit for bit, as sampling one by one; the distribution against exact
 * enumeration; what it leaves in the cache. */
#include "tests/engine/tiny.h"

#include "engine/speculate.h"
#include "tests/isas.h"

static const char path[] = LLMQ_TEST_TMP "/engine_speculate.gguf",
                  other_path[] = LLMQ_TEST_TMP "/engine_speculate2.gguf";

static int setup(void **state) {
    (void)state;
    tiny_model t;
    tiny_init(&t);
    tiny_write(&t, path, 0);
    tiny_init(&t); /* the same shape, other weights: it guesses right now and then */
    tiny_write(&t, other_path, 0.9f);
    return 0;
}

static llmq_model *open_isa(const char *file, const char *isa) {
    llmq_model *model = NULL;
    llmq_err err = {0};
    llmq_model_params p = {.tokenizer = strstr(file, "stories") ? LLMQ_TEST_DATA "/stories260K/tok512.bin" : NULL};
    if (model_open_with(file, &p, backend_cpu_isa(isa), &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return model;
}

static llmq_session *create(llmq_model *model, int64_t n_ctx, llmq_kv_type kv_type) {
    llmq_session *s = NULL;
    llmq_err err = {0};
    if (llmq_session_create(model, &(llmq_session_params){.n_ctx = n_ctx, .n_threads = 1, .kv_type = kv_type}, &s,
                            &err))
        fail_msg("%s", err.msg);
    return s;
}

static void speculate(llmq_session *s, bool lookup, llmq_model *draft, int n_guess) {
    llmq_err err = {0};
    if (llmq_session_set_speculation(s, &(llmq_speculation_params){lookup, draft, n_guess}, &err))
        fail_msg("%s", err.msg);
    s->spec->always = true;
}

static void test_lookup(void **state) {
    (void)state;
    int32_t out[8];
    const int32_t nothing[] = {1, 2, 3, 4}, one[] = {7, 7}, two[] = {1, 2, 3, 9, 2, 3, 8, 1, 2, 3},
                  late[] = {5, 6, 5, 8, 5};
    assert_int_equal(speculation_lookup(nothing, 4, 3, out), 0);
    assert_int_equal(speculation_lookup(nothing, 1, 3, out), 0);
    assert_int_equal(speculation_lookup(one, 2, 3, out), 1); /* goes on with its own guesses */
    assert_int_equal(out[0], 7);
    assert_int_equal(out[2], 7);
    assert_int_equal(speculation_lookup(two, 10, 4, out), 3); /* the longest, not the latest */
    assert_memory_equal(out, ((int32_t[]){9, 2, 3, 8}), 4 * sizeof *out);
    assert_int_equal(speculation_lookup(late, 5, 4, out), 1); /* of equals the latest */
    assert_memory_equal(out, ((int32_t[]){8, 5, 8, 5}), 4 * sizeof *out);
    int32_t round[60];
    for (int i = 0; i < 60; i++) round[i] = i % 3;
    assert_int_equal(speculation_lookup(round, 60, 7, out), 16);
    for (int i = 0; i < 7; i++) assert_int_equal(out[i], i % 3);
}

/* ---- the same tokens, the same bits */

enum { GENERATED = 60 };

/* What sampling and appending in turn gives; last: the logits after all of it. */
static void one_by_one(llmq_session *s, const int32_t *prompt, size_t n, const llmq_sampler_params *sampler,
                       int32_t *out, float *last) {
    llmq_session_set_sampler(s, sampler);
    llmq_session_truncate(s, 0); /* the prompt's keys and values by one pass, in every run */
    assert_int_equal(llmq_session_sync(s, prompt, n, NULL), LLMQ_OK);
    for (int i = 0; i < GENERATED; i++) {
        assert_int_equal(llmq_session_sample(s, &out[i], NULL), LLMQ_OK);
        if (i < GENERATED - 1) assert_int_equal(llmq_session_append(s, &out[i], 1, NULL), LLMQ_OK);
    }
    memcpy(last, llmq_session_logits(s), (size_t)s->model->hp.n_vocab * sizeof *last);
}

static void check_same(const char *file, const char *isa, llmq_session *s, const int32_t *prompt, size_t n,
                       const llmq_sampler_params *sampler, const int32_t *want, const float *last) {
    int32_t token;
    llmq_session_set_sampler(s, sampler);
    llmq_session_truncate(s, 0);
    assert_int_equal(llmq_session_sync(s, prompt, n, NULL), LLMQ_OK);
    for (int i = 0; i < GENERATED; i++) {
        assert_int_equal(llmq_session_next(s, &token, NULL), LLMQ_OK);
        if (token != want[i])
            fail_msg("%s, %s, temperature %g: token %d is %d, not %d", file, isa, (double)sampler->temperature, i,
                     token, want[i]);
        assert_int_equal(llmq_session_n_past(s), n + (size_t)i);
    }
    if (memcmp(llmq_session_logits(s), last, (size_t)s->model->hp.n_vocab * sizeof *last) != 0)
        fail_msg("%s, %s, temperature %g: the last logits differ", file, isa, (double)sampler->temperature);
}

static void check_model(const char *file, const char *isa, llmq_kv_type kv_type, const char *draft_file) {
    llmq_model *model = open_isa(file, isa), *draft = open_isa(draft_file, isa);
    const llmq_sampler_params samplers[] = {{.temperature = 0, .repeat_penalty = 1},
                                            {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 5},
                                            {.temperature = 0.7f,
                                             .top_k = 20,
                                             .top_p = 0.95f,
                                             .min_p = 0.02f,
                                             .repeat_penalty = 1.2f,
                                             .repeat_last_n = 16,
                                             .seed = 6}};
    int32_t prompt[24], want[GENERATED];
    size_t n = sizeof prompt / sizeof *prompt;
    for (size_t i = 0; i < n; i++) prompt[i] = (int32_t)(i % 9 * 37 % (size_t)model->hp.n_vocab);
    float *last = malloc((size_t)model->hp.n_vocab * sizeof *last);
    int64_t n_ctx = (int64_t)n + GENERATED; /* full in the end: guesses have to fit */
    llmq_session *plain = create(model, n_ctx, kv_type), *s = create(model, n_ctx, kv_type);
    llmq_speculation_stats lookup, all;
    for (size_t i = 0; i < sizeof samplers / sizeof *samplers; i++) {
        one_by_one(plain, prompt, n, &samplers[i], want, last);
        for (int n_guess = 2; n_guess < SPEC_ROWS; n_guess += 5) {
            assert_int_equal(llmq_session_set_speculation(s, NULL, NULL), LLMQ_OK);
            check_same(file, isa, s, prompt, n, &samplers[i], want, last);
            speculate(s, true, NULL, n_guess);
            check_same(file, isa, s, prompt, n, &samplers[i], want, last);
            llmq_session_get_speculation_stats(s, &lookup);
            speculate(s, n_guess == 2, draft, n_guess);
            check_same(file, isa, s, prompt, n, &samplers[i], want, last);
            llmq_session_get_speculation_stats(s, &all);
            assert_int_equal(all.tokens, GENERATED);
            assert_true(lookup.guessed > 0 && all.guessed > 0);
            assert_int_equal(all.passes + all.accepted, GENERATED - 1);             /* the last token is not run */
            assert_int_equal(llmq_session_set_speculation(s, NULL, NULL), LLMQ_OK); /* the last logits outlive it */
            assert_memory_equal(llmq_session_logits(s), last, (size_t)model->hp.n_vocab * sizeof *last);
        }
    }
    assert_int_equal(llmq_session_set_speculation(s, &(llmq_speculation_params){.lookup = true, .draft = draft}, NULL),
                     LLMQ_OK);
    check_same(file, isa, s, prompt, n, &samplers[2], want, last); /* as many guesses as pay */
    llmq_session_destroy(plain);
    llmq_session_destroy(s);
    llmq_model_close(model);
    llmq_model_close(draft);
    free(last);
}

static void test_same_tokens(void **state) {
    (void)state;
    static const char stories[] = LLMQ_TEST_DATA "/stories260K/stories260K.bin",
                      shipped[] = LLMQ_TEST_DATA "/../../data/tiny", mistral[] = LLMQ_TEST_DATA "/goldens/mistral",
                      qwen3[] = LLMQ_TEST_DATA "/goldens/qwen3";
    for (int i = 0; i < N_ISAS; i++) {
        if (!backend_cpu_isa(all_isas[i])) continue;
        check_model(path, all_isas[i], LLMQ_KV_F16, other_path);
        check_model(mistral, all_isas[i], LLMQ_KV_F32, mistral); /* a sliding window */
        if (i == 0) continue;                                    /* plain C takes seconds for the others */
        check_model(qwen3, all_isas[i], LLMQ_KV_F16, qwen3);
        check_model(stories, all_isas[i], LLMQ_KV_F16, stories);
        check_model(shipped, all_isas[i], LLMQ_KV_F16, shipped);
        check_model(shipped, all_isas[i], LLMQ_KV_Q8_0, shipped);
    }
}

/* ---- the distribution */

enum { LENGTH = 3, CHOICES = 4, OUTCOMES = CHOICES * CHOICES * CHOICES, DRAWS = 4000 };

/* The most probable tokens at this position and their probabilities under `sampler` (top_k CHOICES and a temperature).
 */
static void choices(const float *logits, int64_t n_vocab, double temperature, int32_t *ids, double *p) {
    double sum = 0;
    for (int c = 0; c < CHOICES; c++) {
        ids[c] = -1;
        for (int32_t i = 0; i < n_vocab; i++) {
            bool taken = false;
            for (int d = 0; d < c; d++) taken = taken || ids[d] == i;
            if (!taken && (ids[c] < 0 || logits[i] > logits[ids[c]])) ids[c] = i;
        }
        sum += p[c] = exp((double)(logits[ids[c]] - logits[ids[0]]) / temperature);
    }
    for (int c = 0; c < CHOICES; c++) p[c] /= sum;
}

/* Probabilities of all continuations of LENGTH tokens, and the ids of each. */
static void enumerate(llmq_model *model, const int32_t *prompt, size_t n, double temperature, double *p,
                      int32_t (*ids)[LENGTH]) {
    llmq_session *s = create(model, 64, LLMQ_KV_F32);
    int32_t text[64];
    memcpy(text, prompt, n * sizeof *text);
    for (int o = 0; o < OUTCOMES; o++) {
        p[o] = 1;
        for (int i = 0, rest = o; i < LENGTH; i++, rest /= CHOICES) {
            int32_t best[CHOICES];
            double q[CHOICES];
            assert_int_equal(llmq_session_sync(s, text, n + (size_t)i, NULL), LLMQ_OK);
            choices(llmq_session_logits(s), model->hp.n_vocab, temperature, best, q);
            ids[o][i] = text[n + (size_t)i] = best[rest % CHOICES];
            p[o] *= q[rest % CHOICES];
        }
    }
    llmq_session_destroy(s);
}

/* Does one of the two most probable tokens after text[n] equal `token`? */
static bool likely(llmq_session *s, const int32_t *text, size_t n, int32_t token) {
    int32_t best[CHOICES];
    double q[CHOICES];
    assert_int_equal(llmq_session_sync(s, text, n, NULL), LLMQ_OK);
    choices(llmq_session_logits(s), TINY_VOCAB, 3, best, q);
    return token == best[0] || token == best[1];
}

/* 3 9 x y 3 9: after x, lookup guesses y. Sets x and y so that both are likely there. */
static void choose_guess(llmq_model *model, int32_t *prompt) {
    llmq_session *s = create(model, 64, LLMQ_KV_F32);
    for (int32_t pair = 0; pair < TINY_VOCAB * TINY_VOCAB; pair++) {
        int32_t text[7] = {3, 9, pair / TINY_VOCAB, pair % TINY_VOCAB, 3, 9, pair / TINY_VOCAB};
        if (!likely(s, text, 6, text[2]) || !likely(s, text, 7, text[3])) continue;
        memcpy(prompt, text, 6 * sizeof *prompt);
        llmq_session_destroy(s);
        return;
    }
    fail_msg("no such prompt");
}

static double chi_square(const double *p, const int *count) {
    double x = 0;
    for (int o = 0; o < OUTCOMES; o++) {
        double expected = p[o] * DRAWS;
        x += (count[o] - expected) * (count[o] - expected) / expected;
    }
    return x;
}

static void test_distribution(void **state) {
    (void)state;
    llmq_model *model = open_isa(path, "c"), *draft = open_isa(other_path, "c");
    int32_t prompt[6];
    size_t n = sizeof prompt / sizeof *prompt;
    choose_guess(model, prompt);
    double p[OUTCOMES], sum = 0;
    int32_t ids[OUTCOMES][LENGTH];
    enumerate(model, prompt, n, 3, p, ids);
    for (int o = 0; o < OUTCOMES; o++) {
        sum += p[o];
        assert_true(p[o] * DRAWS > 5); /* or the statistic would not be one */
    }
    assert_true(fabs(sum - 1) < 1e-9);
    for (int kind = 0; kind < 2; kind++) {
        llmq_session *s = create(model, 64, LLMQ_KV_F32);
        int count[OUTCOMES] = {0};
        speculate(s, kind == 0, kind ? draft : NULL, 3);
        for (int d = 0; d < DRAWS; d++) {
            int32_t text[LENGTH];
            llmq_session_set_sampler(
                s, &(llmq_sampler_params){
                       .temperature = 3, .top_k = CHOICES, .top_p = 1, .repeat_penalty = 1, .seed = (uint64_t)d});
            assert_int_equal(llmq_session_sync(s, prompt, n, NULL), LLMQ_OK);
            for (int i = 0; i < LENGTH; i++) assert_int_equal(llmq_session_next(s, &text[i], NULL), LLMQ_OK);
            int o = 0;
            while (o < OUTCOMES && memcmp(ids[o], text, sizeof text)) o++;
            assert_true(o < OUTCOMES);
            count[o]++;
        }
        llmq_speculation_stats stats;
        llmq_session_get_speculation_stats(s, &stats);
        if (stats.accepted < DRAWS / 20 || stats.guessed < stats.accepted + DRAWS / 20) /* both are to happen often */
            fail_msg("%lld of %lld guesses were right", (long long)stats.accepted, (long long)stats.guessed);
        double x = chi_square(p, count), freedom = OUTCOMES - 1;
        if (x > freedom + 4 * sqrt(2 * freedom))
            fail_msg("%s: chi square %.1f at %g", kind ? "draft" : "lookup", x, freedom);
        count[0] += DRAWS / 20; /* the statistic sees one outcome of 64 that comes too often */
        assert_true(chi_square(p, count) > 2 * freedom);
        llmq_session_destroy(s);
    }
    llmq_model_close(model);
    llmq_model_close(draft);
}

/* ---- the cache, errors, memory */

/* Whatever is done between two calls, the session holds what it says. */
static void test_leaving(void **state) {
    (void)state;
    llmq_model *model = open_isa(path, "c");
    llmq_session *s = create(model, 64, LLMQ_KV_F32), *fresh = create(model, 64, LLMQ_KV_F32);
    const int32_t prompt[] = {1, 2, 3, 1, 2, 3, 1, 2, 3}, then[] = {1, 2, 3, 7, 8};
    for (int way = 0; way < 4; way++)
        for (int steps = 1; steps < 6; steps++) {
            int32_t text[64], token;
            size_t n = 9;
            memcpy(text, prompt, sizeof prompt);
            speculate(s, true, NULL, 5);
            llmq_session_set_sampler(s, &(llmq_sampler_params){.temperature = 0, .repeat_penalty = 1});
            assert_int_equal(llmq_session_sync(s, prompt, n, NULL), LLMQ_OK);
            for (int i = 0; i < steps; i++) {
                assert_int_equal(llmq_session_next(s, &token, NULL), LLMQ_OK);
                text[n + (size_t)i] = token;
            }
            size_t held = n + (size_t)steps - 1;
            assert_int_equal(llmq_session_n_past(s), held);
            if (way == 0) { /* the token given is not in the cache: append runs others after what is */
                assert_int_equal(llmq_session_append(s, then, 2, NULL), LLMQ_OK);
                memcpy(text + held, then, 2 * sizeof *then);
                held += 2;
            } else if (way == 1) {
                memcpy(text, then, sizeof then);
                held = 5;
                assert_int_equal(llmq_session_sync(s, text, held, NULL), LLMQ_OK);
            } else if (way == 2) {
                held = 4;
                llmq_session_truncate(s, 3);
                assert_int_equal(llmq_session_append(s, text + 3, 1, NULL), LLMQ_OK);
            } else { /* the same position again */
                assert_int_equal(llmq_session_sample(s, &token, NULL), LLMQ_OK);
                assert_int_equal(token, text[held]);
            }
            assert_int_equal(llmq_session_n_past(s), held);
            assert_int_equal(llmq_session_sync(fresh, text, held, NULL), LLMQ_OK);
            for (int i = 0; i < TINY_VOCAB; i++)
                assert_float_equal(llmq_session_logits(s)[i], llmq_session_logits(fresh)[i], 1e-4);
        }
    llmq_session_destroy(s);
    llmq_session_destroy(fresh);
    llmq_model_close(model);
}

/* On and off in the middle of a text. */
static void test_switching(void **state) {
    (void)state;
    llmq_model *model = open_isa(path, "c"), *draft = open_isa(other_path, "c");
    const llmq_sampler_params sampler = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 8};
    const int32_t prompt[] = {1, 2, 3, 1, 2, 3};
    int32_t want[GENERATED], token;
    float last[TINY_VOCAB];
    llmq_session *plain = create(model, 80, LLMQ_KV_F32), *s = create(model, 80, LLMQ_KV_F32);
    one_by_one(plain, prompt, 6, &sampler, want, last);
    llmq_session_set_sampler(s, &sampler);
    assert_int_equal(llmq_session_sync(s, prompt, 6, NULL), LLMQ_OK);
    for (int i = 0; i < GENERATED; i++) {
        if (i % 6 == 1) speculate(s, i % 4 == 1, i % 4 == 1 ? NULL : draft, 5);
        if (i % 6 == 4) assert_int_equal(llmq_session_set_speculation(s, NULL, NULL), LLMQ_OK);
        assert_non_null(llmq_session_logits(s));
        assert_int_equal(llmq_session_next(s, &token, NULL), LLMQ_OK);
        assert_int_equal(token, want[i]);
    }
    assert_int_equal(llmq_session_set_speculation(s, NULL, NULL), LLMQ_OK);
    assert_memory_equal(llmq_session_logits(s), last, sizeof last);
    llmq_session_destroy(plain);
    llmq_session_destroy(s);
    llmq_model_close(model);
    llmq_model_close(draft);
}

static void test_full_context(void **state) {
    (void)state;
    llmq_model *model = open_isa(path, "c");
    const int32_t prompt[] = {1, 2, 1, 2, 1, 2};
    for (int lookup = 0; lookup < 2; lookup++) {
        llmq_session *s = create(model, 16, LLMQ_KV_F32);
        llmq_err err = {0};
        int32_t token;
        if (lookup) speculate(s, true, NULL, 7);
        llmq_session_set_sampler(s, &(llmq_sampler_params){.temperature = 0, .repeat_penalty = 1});
        assert_int_equal(llmq_session_sync(s, prompt, 6, NULL), LLMQ_OK);
        for (int i = 0; i < 11; i++) assert_int_equal(llmq_session_next(s, &token, &err), LLMQ_OK);
        assert_int_equal(llmq_session_n_past(s), 16);
        for (int i = 0; i < 2; i++) assert_int_equal(llmq_session_next(s, &token, &err), LLMQ_E_CONTEXT);
        assert_int_equal(llmq_session_n_past(s), 16);
        llmq_session_truncate(s, 15);
        assert_int_equal(llmq_session_next(s, &token, &err), LLMQ_E_ARG); /* nothing to sample from */
        llmq_session_destroy(s);
    }
    llmq_model_close(model);
}

static void test_refusals(void **state) {
    (void)state;
    llmq_model *model = open_isa(path, "c"), *stories = open_isa(LLMQ_TEST_DATA "/stories260K/stories260K.bin", "c");
    llmq_model *shipped = open_isa(LLMQ_TEST_DATA "/../../data/tiny", "c"), *bare = NULL;
    llmq_session *s = create(model, 32, LLMQ_KV_F32), *t = create(shipped, 32, LLMQ_KV_F32);
    llmq_err err = {0};
    assert_int_equal(llmq_session_set_speculation(s, &(llmq_speculation_params){true, NULL, 8}, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_session_set_speculation(s, &(llmq_speculation_params){true, NULL, -1}, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_session_set_speculation(s, &(llmq_speculation_params){false, stories, 0}, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "vocabulary"));
    assert_int_equal(llmq_session_set_speculation(t, &(llmq_speculation_params){false, stories, 0}, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_model_open(path, &(llmq_model_params){.no_weights = true}, &bare, NULL), LLMQ_OK);
    assert_int_equal(llmq_session_set_speculation(s, &(llmq_speculation_params){false, bare, 0}, &err), LLMQ_E_ARG);
    assert_null(s->spec);
    llmq_session_destroy(s);
    llmq_session_destroy(t);
    llmq_model_close(model);
    llmq_model_close(stories);
    llmq_model_close(shipped);
    llmq_model_close(bare);
}

static void test_memory(void **state) {
    (void)state;
    llmq_model *model = open_isa(path, "c"), *draft = open_isa(other_path, "c");
    llmq_session *s = create(model, 64, LLMQ_KV_F32);
    const int32_t prompt[] = {1, 2, 3, 1, 2, 3};
    int32_t token;
    llmq_status status = LLMQ_E_MEMORY;
    for (long n = 1; status == LLMQ_E_MEMORY; n++) {
        assert_true(n < 1000);
        mem_fail_after(n);
        status = llmq_session_set_speculation(s, &(llmq_speculation_params){true, draft, 0}, NULL);
        mem_fail_after(0);
        assert_true(status == LLMQ_OK ? s->spec != NULL : s->spec == NULL);
    }
    assert_int_equal(status, LLMQ_OK);
    s->spec->always = true;
    assert_int_equal(llmq_session_sync(s, prompt, 6, NULL), LLMQ_OK);
    mem_fail_after(1); /* running allocates nothing */
    for (int i = 0; !status && i < 40; i++) status = llmq_session_next(s, &token, NULL);
    mem_fail_after(0);
    assert_int_equal(status, LLMQ_OK);
    llmq_session_destroy(s);
    llmq_model_close(model);
    llmq_model_close(draft);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup),   cmocka_unit_test(test_same_tokens), cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_leaving),  cmocka_unit_test(test_switching),   cmocka_unit_test(test_full_context),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
