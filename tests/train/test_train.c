/* train: the whole job on a small text: it learns, the same bytes come out for any number of threads and however often
 * the run is stopped, training on goes on, and what makes no sense is an error that says so. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/file.h"
#include "engine/model.h"
#include "llmq_train.h"
#include "train/corpus.h"
#include "train/random.h"
#include "train/weights.h"

#define ROOT LLMQ_TEST_TMP "/train"
#define OUT ROOT "/out"
#define TEXT ROOT "/text.txt"
#define QWEN2 LLMQ_TEST_DATA "/goldens/qwen2"
#define STORIES LLMQ_TEST_DATA "/stories260K/stories260K.bin"
#define STORIES_TOK LLMQ_TEST_DATA "/stories260K/tok512.bin"

static const char *const texts[] = {TEXT};

/* Sentences whose words depend on each other: who decides what is done, and that where. */
static void write_text(const char *path, int n) {
    static const char *const who[] = {"The baker", "A sailor", "My aunt", "The old dog", "Our teacher", "One pilot"};
    static const char *const does[] = {"bakes bread", "mends a sail", "reads letters",
                                       "chases cats", "counts stars", "checks maps"};
    static const char *const where[] = {"in the kitchen",  "on the deck",   "by the window",
                                        "across the yard", "at the school", "over the sea"};
    static const char *const when[] = {"at dawn", "every Monday", "after supper", "when it rains"};
    random_state r = random_begin(7, 0);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) {
        int k = (int)(random_next(&r) % 6);
        fprintf(f, "%s %s %s %s. ", who[k], does[k], where[k], when[random_next(&r) % 4]);
    }
    fclose(f);
}

static int fresh(void **state) {
    (void)state;
    mkdir(LLMQ_TEST_TMP, 0777);
    if (system("rm -rf " ROOT " && mkdir " ROOT)) return -1;
    write_text(TEXT, 600);
    return 0;
}

static llmq_train_params params_of(int64_t steps) {
    llmq_train_params p;
    llmq_train_params_default(&p);
    p.n_layer = 2;
    p.n_embd = 32;
    p.n_head = 4;
    p.n_head_kv = 2;
    p.n_vocab = 320;
    p.n_ctx = 32;
    p.batch = 4;
    p.steps = steps;
    p.out = OUT;
    p.n_threads = 1;
    return p;
}

static llmq_train_result train_ok(const llmq_train_params *p) {
    llmq_train_result r;
    llmq_err err = {0};
    if (llmq_train(texts, 1, p, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_false(file_exists(OUT ".tmp"));
    assert_false(file_exists(OUT ".tmp.gguf"));
    assert_false(file_exists(OUT ".journal"));
    return r;
}

static double last(const llmq_train_result *r) {
    return r->points[r->n_points - 1].held_out;
}

static void it_learns(void **state) {
    (void)state;
    llmq_train_params p = params_of(120);
    p.n_threads = 2;
    p.lr = 0.01;
    llmq_train_result r = train_ok(&p);
    assert_true(r.n_points >= 21 && r.points[0].step == 0 && r.points[r.n_points - 1].step == 120);
    assert_true(r.points[0].held_out > 0.95 * log((double)r.n_vocab));
    assert_true(r.unigram > 2 && r.unigram < r.points[0].held_out);
    /* The text has log 6 + log 4 nats a sentence of about twenty tokens; single tokens' counts know nothing of that. */
    if (!(last(&r) < 0.3 * r.unigram)) fail_msg("held-out loss %.3f where counts give %.3f", last(&r), r.unigram);

    /* llmq's own perplexity of the written folder agrees. */
    llmq_model *model;
    llmq_ppl_result ppl;
    llmq_ppl_params params;
    llmq_err err = {0};
    char *text;
    size_t len;
    llmq_ppl_params_default(&params);
    params.n_ctx = 32;
    params.full = true;
    assert_int_equal(corpus_read(texts, 1, &text, &len, NULL), LLMQ_OK);
    if (llmq_model_open(OUT, NULL, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(llmq_perplexity(model, NULL, text + len * 19 / 20, len - len * 19 / 20, &params, &ppl, &err),
                     LLMQ_OK);
    assert_true(fabs(log(ppl.ppl) - last(&r)) < 0.25);
    llmq_model_close(model);
    mem_free(text);
}

static void assert_same(const char *a, const char *b) {
    char command[512];
    snprintf(command, sizeof command, "diff -r %s %s", a, b);
    assert_int_equal(system(command), 0);
}

static void any_team_gives_the_same_bytes(void **state) {
    (void)state;
    static const char *const outs[] = {ROOT "/one", ROOT "/two", ROOT "/three"};
    llmq_train_params p = params_of(7);
    p.type = "f32";
    for (int n = 1; n <= 3; n++) {
        p.n_threads = n;
        p.out = outs[n - 1];
        train_ok(&p);
    }
    assert_same(outs[0], outs[1]);
    assert_same(outs[0], outs[2]);
    p.out = OUT;
    p.seed = 1;
    train_ok(&p);
    assert_int_not_equal(system("cmp -s " OUT "/model.safetensors " ROOT "/one/model.safetensors"), 0);
}

static int stop_after, calls;
static bool stops(void *user, double done, double total, const char *what, double left) {
    (void)user, (void)done, (void)total, (void)left;
    return strncmp(what, "step", 4) != 0 || ++calls < stop_after;
}

static void a_stopped_run_goes_on(void **state) {
    (void)state;
    llmq_train_params p = params_of(9), undisturbed;
    llmq_train_result r;
    llmq_err err = {0};
    undisturbed = p;
    undisturbed.out = ROOT "/whole";
    train_ok(&undisturbed);
    p.progress = stops;
    for (int stop = 0; stop < 3; stop++) { /* after steps 2, 4, 6 */
        stop_after = 2;
        calls = 0;
        p.n_threads = 1 + stop;
        assert_int_equal(llmq_train(texts, 1, &p, &r, &err), LLMQ_E_INTERRUPTED);
        assert_true(r.kept && r.steps == 2 * (stop + 1) && r.resumed_steps == 2 * stop);
        assert_true(file_exists(OUT ".journal") && !file_exists(OUT));
    }
    p.progress = NULL;
    r = train_ok(&p);
    assert_true(r.resumed_steps == 6 && r.steps == 9);
    assert_same(OUT, ROOT "/whole");

    /* Other settings start anew. */
    assert_int_equal(system("rm -r " OUT), 0);
    p.progress = stops;
    calls = 0;
    assert_int_equal(llmq_train(texts, 1, &p, &r, &err), LLMQ_E_INTERRUPTED);
    p.progress = NULL;
    p.lr = 0.001;
    r = train_ok(&p);
    assert_int_equal(r.resumed_steps, 0);
}

/* What a killed process leaves: the journal as it was at some moment. */
static bool copies(void *user, double done, double total, const char *what, double left) {
    (void)user, (void)done, (void)total, (void)left;
    if (strncmp(what, "step", 4) == 0 && ++calls == 6) assert_int_equal(system("cp " OUT ".journal " ROOT "/at6"), 0);
    return true;
}

static void a_killed_run_goes_on(void **state) {
    (void)state;
    llmq_train_params p = params_of(9);
    setenv("LLMQ_CHECKPOINTS", "all", 1);
    p.progress = copies;
    calls = 0;
    train_ok(&p);
    unsetenv("LLMQ_CHECKPOINTS");
    assert_int_equal(system("mv " OUT " " ROOT "/whole && cp " ROOT "/at6 " OUT ".journal"), 0);
    p.progress = NULL;
    llmq_train_result r = train_ok(&p);
    assert_int_equal(r.resumed_steps, 5);
    assert_same(OUT, ROOT "/whole");
    /* A torn one does not count. */
    assert_int_equal(system("rm -r " OUT " && cp " ROOT "/at6 " OUT ".journal && truncate -s 5000 " OUT ".journal"), 0);
    r = train_ok(&p);
    assert_int_equal(r.resumed_steps, 0);
    assert_same(OUT, ROOT "/whole");
}

static void training_goes_on(void **state) {
    (void)state;
    llmq_train_params p = params_of(40);
    p.lr = 0.01;
    p.type = "f32";
    p.out = ROOT "/first";
    llmq_train_result first = train_ok(&p), second;
    p = (llmq_train_params){.from = ROOT "/first",
                            .n_ctx = 32,
                            .batch = 4,
                            .steps = 40,
                            .lr = 0.005,
                            .type = "f32",
                            .out = OUT,
                            .n_threads = 2};
    second = train_ok(&p);
    /* A file has the rows of q and k in another order than a new model, so attention sums in another one, and an input
     * next to the middle of two bf16 may be rounded the other way. */
    assert_true(fabs(second.points[0].held_out - last(&first)) < 1e-4);
    assert_true(last(&second) < last(&first) - 0.1);
    /* A model of another container, with a SentencePiece tokenizer. */
    p = (llmq_train_params){.from = STORIES,
                            .tokenizer = STORIES_TOK,
                            .n_ctx = 32,
                            .batch = 4,
                            .steps = 30,
                            .lr = 0.002,
                            .out = OUT,
                            .force = true,
                            .n_threads = 2};
    second = train_ok(&p);
    if (!(last(&second) < second.points[0].held_out - 0.2))
        fail_msg("%.3f, then %.3f", second.points[0].held_out, last(&second));
    llmq_model *m;
    llmq_err err = {0};
    if (llmq_model_open(OUT, NULL, &m, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    llmq_model_close(m);
    /* No step at all: the weights are what they were. */
    p = (llmq_train_params){
        .from = ROOT "/first", .n_ctx = 32, .steps = 0, .type = "f32", .out = OUT, .force = true, .n_threads = 1};
    train_ok(&p);
    assert_int_equal(system("cmp " OUT "/model.safetensors " ROOT "/first/model.safetensors"), 0);
}

/* Tensors of every shape of model find their gradients: biases, norms of heads, heads that are tied or not. */
static void every_tensor_learns(void **state) {
    (void)state;
    static const char *const models[] = {"llama", "llama-tied", "llama-bias", "mistral", "qwen2", "qwen3"};
    enum { CTX = 24, WINDOWS = 2, N = CTX * WINDOWS };
    static const adam_settings adam = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1};
    llmq_model_params open = {.n_threads = 1, .no_weights = true};
    llmq_team *team;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
        char path[256];
        llmq_model *model;
        weights w = {0};
        net_f32 *net;
        int32_t tokens[N], labels[N];
        float rope[CTX * 256];
        double first = 0, loss = 0;
        snprintf(path, sizeof path, LLMQ_TEST_DATA "/goldens/%s", models[k]);
        assert_int_equal(model_open(path, &open, &model, NULL), LLMQ_OK);
        assert_int_equal(weights_create(&w, model, team, NULL), LLMQ_OK);
        assert_true(model->hp.n_rot <= 256 && weights_count(&w) == model->info.n_params);
        rope_table(model, 0, CTX, rope);
        net_shape shape = {.hp = model->hp, .neox = model->rope_neox, .n_windows = WINDOWS, .n_tok = CTX, .rope = rope};
        net_wants wants = weights_wants(&w);
        assert_int_equal(net_create_f32(&shape, &wants, false, false, model->ops, team, &net, NULL), LLMQ_OK);
        for (int i = 0; i < N; i++) tokens[i] = i * 37 % 190, labels[i] = (i + 1) * 37 % 190;
        net_source_f32 source = weights_source(&w);
        net_loss what = {.labels = labels, .weight = 1.0 / N};
        weights_set_tokens(&w, tokens, N);
        for (int step = 1; step <= 30; step++) {
            assert_int_equal(net_step_f32(net, &source, tokens, &what, true, &loss, NULL), LLMQ_OK);
            if (step == 1) {
                first = loss;
                for (size_t i = 0; i < w.n_tensors; i++) {
                    double sum = 0;
                    for (int64_t j = 0; j < w.tensors[i].n; j++) sum += fabs((double)w.g[w.tensors[i].at + j]);
                    if (!(sum > 0)) fail_msg("%s: %s has no gradient", models[k], w.tensors[i].src->name);
                }
            }
            weights_update(&w, &adam, 0.01, step);
        }
        if (!(loss < 0.5 * first)) fail_msg("%s: loss %.3f, then %.3f", models[k], first, loss);
        net_destroy_f32(net);
        weights_clear(&w);
        model_close(model);
    }
    team_destroy(team);
}

static void fails(const llmq_train_params *p, llmq_status status, const char *says) {
    llmq_train_result r;
    llmq_err err = {0};
    llmq_status got = llmq_train(texts, 1, p, &r, &err);
    if (got != status || !strstr(err.msg, says))
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, err.msg, status, says);
    assert_false(file_exists(OUT ".tmp") || file_exists(OUT ".tmp.gguf") || file_exists(OUT ".journal"));
}

static void what_makes_no_sense_is_refused(void **state) {
    (void)state;
    llmq_train_params p = params_of(1);
    p.n_head = 3;
    fails(&p, LLMQ_E_ARG, "--heads 3");
    p = params_of(1), p.n_head_kv = 3;
    fails(&p, LLMQ_E_ARG, "--kv-heads 3");
    p = params_of(1), p.n_vocab = 100;
    fails(&p, LLMQ_E_ARG, "--vocab 100");
    p = params_of(1), p.n_ctx = 20000;
    fails(&p, LLMQ_E_ARG, "smaller --ctx");
    p = params_of(1), p.type = "q4_0";
    fails(&p, LLMQ_E_ARG, "--type q4_0");
    p = params_of(1), p.from = QWEN2;
    fails(&p, LLMQ_E_ARG, "--layers");
    p = (llmq_train_params){.from = ROOT "/nothing", .out = OUT};
    fails(&p, LLMQ_E_IO, "nothing");
    p = (llmq_train_params){.from = STORIES, .tokenizer = STORIES_TOK, .n_ctx = 65536, .out = OUT};
    fails(&p, LLMQ_E_ARG, "--ctx 65536");
    p = params_of(3), p.lr = 1; /* a step of one in every weight */
    p.steps = 200;
    llmq_train_result r;
    llmq_err err = {0};
    llmq_status got = llmq_train(texts, 1, &p, &r, &err);
    assert_true(got == LLMQ_OK || got == LLMQ_E_NUMERIC);
    assert_int_equal(system("rm -rf " OUT " && mkdir " OUT " && touch " OUT "/mine"), 0);
    p = params_of(1);
    fails(&p, LLMQ_E_EXISTS, "--force");
    p.force = true;
    fails(&p, LLMQ_E_EXISTS, "in the way");
    assert_true(file_exists(OUT "/mine"));
    p.out = ROOT "/no/such/folder";
    fails(&p, LLMQ_E_IO, "no/such");
}

/* Every window of an epoch comes once, and the next epoch has another order. */
static void windows_come_once(void **state) {
    (void)state;
    int32_t tokens[1000];
    corpus c = {.tokens = tokens, .n = 900, .n_held = 100, .ctx = 16, .n_windows = 55, .seed = 3, .epoch = -1};
    c.order = mem_alloc(55, sizeof *c.order);
    for (int i = 0; i < 1000; i++) tokens[i] = i;
    int differ = 0;
    int32_t first[55];
    for (int epoch = 0; epoch < 3; epoch++) {
        bool seen[55] = {false};
        for (int i = 0; i < 55; i++) {
            int32_t at = *corpus_window(&c, epoch * 55 + i), k = (int32_t)((at - c.shift) / 16);
            assert_true(at >= 0 && at + 17 <= 900 && (at - c.shift) % 16 == 0 && !seen[k]);
            seen[k] = true;
            if (epoch)
                differ += first[i] != at;
            else
                first[i] = at;
        }
    }
    assert_true(differ > 80);
    mem_free(c.order);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_come_once),
        cmocka_unit_test(every_tensor_learns),
        cmocka_unit_test_setup(it_learns, fresh),
        cmocka_unit_test_setup(any_team_gives_the_same_bytes, fresh),
        cmocka_unit_test_setup(a_stopped_run_goes_on, fresh),
        cmocka_unit_test_setup(a_killed_run_goes_on, fresh),
        cmocka_unit_test_setup(training_goes_on, fresh),
        cmocka_unit_test_setup(what_makes_no_sense_is_refused, fresh),
    };
    return cmocka_run_group_tests_name("train", tests, NULL, NULL);
}
