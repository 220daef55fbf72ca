/* train: --tune on a small model: it follows the source better, whatever the grid and the output; the same bytes for
 * any team and after being stopped at any step. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/mem.h"
#include "quantized.h"

#define TINY LLMQ_TEST_DATA "/../../data/tiny"
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
        /* GPTQ leaves 1.4 to 7 % to gain, by the text that the model's bits of each instruction set make. */
        assert_true(r.tune_after < (i == 0 ? 0.995 : 0.98) * r.tune_before);
        if (!(after < (i == 0 ? 1.05 : 0.95) * before)) fail_msg("%s: %.5f, tuned %.5f", types[i], before, after);
        llmq_quant_result_clear(&plain);
        llmq_quant_result_clear(&r);
    }
}

static void bad_steps_are_undone(void **state) {
    static const char *const sets[] = {"steps=4,batch=2,held=2,judge=1,lr=1,warmup=0",
                                       "blocks=1,steps=4,batch=2,held=2,judge=1,lr=1,warmup=0"};
    size_t len, len_plain, data = 150000;
    llmq_quant_params p = params(NULL);
    (void)state;
    p.tune = false;
    llmq_quant_result r = quantize(STORIES, &p);
    llmq_quant_result_clear(&r);
    char *plain = read_out(&len_plain);
    for (int i = 0; i < 2; i++) {
        p = params(sets[i]);
        r = quantize(STORIES, &p);
        assert_true(i ? r.tune_blocks == r.n_layers && r.tune_steps == 0 : r.tune_blocks == 0 && r.tune_steps == 4);
        assert_true(i ? r.block_after == r.block_before : r.tune_after == r.tune_before);
        llmq_quant_result_clear(&r);
        char *tuned = read_out(&len);
        assert_true(len >
                    len_plain / 2); /* metadata differ: the manifest tells of the tuning; weights are at the end */
        assert_true(len > data && len_plain > data);
        assert_memory_equal(tuned + len - data, plain + len_plain - data, data);
        mem_free(tuned);
    }
    mem_free(plain);
}

/* Runs a job in a process of its own: what a job may take depends on what its process holds already, and earlier jobs
 * leave something behind (the sanitizer's quarantine most of all). */
typedef struct job_result {
    llmq_status status;
    int64_t peak, blocks, layers, block_steps, steps;
    char how[240];
    llmq_err err;
} job_result;

static job_result in_own_process(const llmq_quant_params *p) {
    job_result *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        llmq_quant_result r;
        shared->status = llmq_quantize(STORIES, p, &r, &shared->err);
        shared->peak = r.planned_peak_bytes;
        shared->blocks = r.tune_blocks;
        shared->layers = r.n_layers;
        shared->block_steps = r.block_steps;
        shared->steps = r.tune_steps;
        snprintf(shared->how, sizeof shared->how, "%s", r.tune_how);
        _exit(0);
    }
    int how_it_ended = -1;
    assert_int_equal(waitpid(child, &how_it_ended, 0), child);
    assert_true(WIFEXITED(how_it_ended) && WEXITSTATUS(how_it_ended) == 0);
    job_result r = *shared;
    munmap(shared, sizeof *shared);
    return r;
}

static job_result done_in_own_process(const llmq_quant_params *p) {
    job_result r = in_own_process(p);
    if (r.status != LLMQ_OK) fail_msg("%s", r.err.msg);
    return r;
}

/* Where the whole model does not fit, layers are tuned one by one; if that is forbidden, it is refused. */
static void memory_decides(void **state) {
    llmq_quant_params p = params("steps=2,batch=4,held=1,blocks=1");
    (void)state;
    p.plan_only = true;
    job_result by_blocks = done_in_own_process(&p);
    assert_non_null(strstr(by_blocks.how, "blocks=1"));
    p.tune_settings = "steps=2,batch=4,held=1";
    job_result whole = done_in_own_process(&p);
    assert_string_equal(whole.how, "the whole model at once");
    assert_true(by_blocks.peak < whole.peak);
    p.max_ram = (by_blocks.peak + whole.peak) / 2;
    p.plan_only = false;
    job_result r = done_in_own_process(&p);
    assert_non_null(strstr(r.how, "block by block (the whole model at once would take"));
    assert_true(r.blocks == r.layers && r.block_steps == 2 * r.layers && r.steps == 0);
    p.tune_settings = "steps=2,batch=4,held=1,blocks=0";
    r = in_own_process(&p);
    assert_int_equal(r.status, LLMQ_E_ARG);
    if (!strstr(r.err.msg, "without blocks=0")) fail_msg("%s", r.err.msg);
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
    /* limits: the progress at which it is stopped. Block by block a layer takes two passes of 16 windows, 4 steps and 3
     * judgements; with codes the whole model follows. */
    static const struct {
        const char *set;
        int limits[4];
    } cases[] = {{"steps=4,batch=1,held=1,judge=2", {1, 2, 3, 4}},
                 {"steps=4,batch=1,held=1,judge=2,code=0.3", {1, 3}},
                 {"blocks=1,steps=4,batch=1,held=1,judge=2", {1, 60, 80}},
                 {"blocks=1,steps=4,batch=1,held=1,judge=2,code=0.3", {100, 197, 198}}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        llmq_quant_params p = params(cases[i].set);
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
        for (int k = 0; k < 4 && cases[i].limits[k]; k++) {
            int limit = cases[i].limits[k];
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
    for (size_t i = 0; i < 2 * (sizeof cases / sizeof *cases); i++) {
        bool blocks = i % 2;
        llmq_quant_params p = params(blocks ? "steps=8,batch=1,held=2,judge=2,lr=0.003,blocks=1"
                                            : "steps=8,batch=1,held=2,judge=2,lr=0.003");
        llmq_quant_result r;
        p.type = NULL;
        p.method = cases[i / 2].method;
        p.emit = cases[i / 2].emit;
        p.group = cases[i / 2].group;
        p.asym = cases[i / 2].asym;
        p.awq = cases[i / 2].awq;
        p.out = FOLDER;
        r = quantize(STORIES, &p);
        assert_int_equal(blocks ? r.block_steps : r.tune_steps, blocks ? 8 * r.n_layers : 8);
        double before = blocks ? r.block_before : r.tune_before, after = blocks ? r.block_after : r.tune_after;
        if (!(after < before))
            fail_msg("%s by %s, blocks %d: %.6f, tuned %.6f", p.emit, p.method, blocks, before, after);
        llmq_quant_result_clear(&r);
        llmq_model *model = NULL;
        llmq_err err = {0};
        if (llmq_model_open(p.out, NULL, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        llmq_model_close(model);
    }
}

/* 8-bit inputs: the way forward rounds them as inference will, in fixed ranges too, and rows keep their one scale (or
 * the file would not be read again). */
static void int8_follows_better(void **state) {
    double before[LLMQ_INT8_STATIC + 1] = {0};
    (void)state;
    for (int kind = LLMQ_INT8_DYNAMIC; kind <= LLMQ_INT8_STATIC; kind++) {
        llmq_quant_params p = params("steps=8,batch=2,held=3,judge=2,lr=0.0003");
        p.type = NULL;
        p.method = "rtn";
        p.int8 = (llmq_int8)kind;
        p.no_smooth = true; /* there is more to gain */
        p.calib_tokens = 4096;
        p.tokenizer = NULL;
        llmq_quant_result r = quantize(TINY, &p);
        assert_int_equal(r.tune_steps, 8);
        before[kind] = r.tune_before;
        if (!(r.tune_after <= r.tune_before && (kind == LLMQ_INT8_DYNAMIC || r.tune_after < r.tune_before)))
            fail_msg("int8 %d: %.6f, tuned %.6f", kind, r.tune_before, r.tune_after);
        llmq_quant_result_clear(&r);
        llmq_model *model = NULL;
        llmq_err err = {0};
        if (llmq_model_open(OUT, NULL, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        llmq_model_close(model);
    }
    assert_true(before[LLMQ_INT8_STATIC] > before[LLMQ_INT8_DYNAMIC]);
}

static void refusals(void **state) {
    static const struct {
        const char *set, *say;
    } cases[] = {{"steps", "--tune-set"}, {"step=3", "--tune-set"},   {"lr=x", "--tune-set"},
                 {"held=100", "too few"}, {"steps=-1", "--tune-set"}, {"blocks=2", "--tune-set"}};
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
    /* memory_decides comes first: a process that has had a team of threads cannot fork and have another. */
    const struct CMUnitTest tests[] = {cmocka_unit_test(memory_decides),
                                       cmocka_unit_test(it_follows_better),
                                       cmocka_unit_test(bad_steps_are_undone),
                                       cmocka_unit_test(any_team_and_any_stop),
                                       cmocka_unit_test(other_outputs),
                                       cmocka_unit_test(int8_follows_better),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
