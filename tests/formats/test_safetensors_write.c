/* Folders that llmq writes against files of the safetensors library, and read back. */
#include "formats/safetensors_write.h"

#include "support.h"

#define DIR LLMQ_TEST_TMP "/st"

/* The tensors of tests/data/formats/single, in the order of a model. */
static const llmq_st_tensor golden[] = {
    {"model.embed_tokens.weight", "BF16", 2, {12, 8}, 192},
    {"model.norm.weight", "F32", 1, {8}, 32},
    {"model.layers.0.mlp.down_proj.weight", "F16", 2, {8, 16}, 256},
    {"model.layers.0.input_layernorm.weight", "BF16", 1, {8}, 16},
};
#define N_GOLDEN (sizeof golden / sizeof *golden)

static void fresh(void) {
    assert_int_equal(system("rm -rf " DIR " && mkdir -p " DIR), 0);
    copy_file(DATA "single/config.json", DIR "/config.json");
}

static void assert_same_file(const char *a, const char *b) {
    char *x, *y;
    size_t n, m;
    assert_int_equal(file_read(a, 1 << 24, &x, &n, NULL), LLMQ_OK);
    assert_int_equal(file_read(b, 1 << 24, &y, &m, NULL), LLMQ_OK);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    mem_free(x);
    mem_free(y);
}

static void write_golden(int64_t shard_bytes, int64_t *bytes) {
    llmq_st_writer *w = NULL;
    llmq_err err = {0};
    llmq_source *src = open_ok(DATA "single");
    if (st_writer_open(DIR, golden, N_GOLDEN, shard_bytes, false, &w, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (size_t i = N_GOLDEN; i-- > 0;) {
        const llmq_tensor *t = source_find(src, golden[i].name);
        size_t half = (size_t)t->bytes / 2;
        const uint8_t *data = t->data;
        assert_int_equal(st_writer_put(w, i, data + half, (size_t)t->bytes - half, half, NULL), LLMQ_OK);
        assert_int_equal(st_writer_put(w, i, data, half, 0, NULL), LLMQ_OK);
    }
    assert_false(file_exists(DIR "/model.safetensors"));
    if (st_writer_finish(w, bytes, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    source_close(src);
}

static void one_file_is_the_librarys(void **state) {
    (void)state;
    int64_t bytes, planned;
    fresh();
    write_golden(0, &bytes);
    assert_same_file(DIR "/model.safetensors", DATA "single/model.safetensors");
    assert_int_equal(st_plan_bytes(golden, N_GOLDEN, 0, &planned, NULL), LLMQ_OK);
    assert_int_equal(bytes, planned);
    assert_int_equal(bytes, 880);
}

static void shards_are_whole_models(void **state) {
    (void)state;
    int64_t bytes;
    struct stat st;
    for (int64_t limit = 1; limit < 1500; limit += 83) {
        fresh();
        write_golden(limit, &bytes);
        llmq_source *src = open_ok(DIR);
        assert_int_equal(src->n_tensors, N_GOLDEN);
        assert_int_equal(src->file_bytes, bytes);
        for (int k = 0; k < (int)N_GOLDEN; k++) assert_pattern(source_find(src, golden[k].name), k, 0);
        size_t n = src->n_maps;
        for (size_t k = 0; n > 1 && k < n; k++) {
            char path[512];
            snprintf(path, sizeof path, DIR "/model-%05zu-of-%05zu.safetensors", k + 1, n);
            assert_int_equal(stat(path, &st), 0);
            if (limit >= 600) assert_true(st.st_size <= limit); /* the largest tensor with its header is smaller */
        }
        assert_int_equal(file_exists(DIR "/model.safetensors.index.json"), n > 1);
        if (limit == 1) assert_int_equal(n, N_GOLDEN);
        if (limit > 1400) assert_int_equal(n, 1);
        source_close(src);
    }
}

static void another_run_goes_on(void **state) {
    (void)state;
    llmq_st_writer *w = NULL;
    int64_t bytes;
    llmq_source *src = open_ok(DATA "single");
    fresh();
    assert_int_equal(st_writer_open(DIR, golden, N_GOLDEN, 0, true, &w, NULL), LLMQ_E_IO); /* nothing to go on with */
    assert_int_equal(st_writer_open(DIR, golden, N_GOLDEN, 0, false, &w, NULL), LLMQ_OK);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(st_writer_put(w, i, source_find(src, golden[i].name)->data, (size_t)golden[i].bytes, 0, NULL), LLMQ_OK);
    assert_int_equal(st_writer_sync(w, NULL), LLMQ_OK);
    st_writer_abort(w, true);
    assert_int_equal(st_writer_open(DIR, golden, N_GOLDEN - 1, 0, true, &w, NULL), LLMQ_E_FORMAT); /* another directory */
    assert_int_equal(st_writer_open(DIR, golden, N_GOLDEN, 0, true, &w, NULL), LLMQ_OK);
    for (size_t i = 0; i < N_GOLDEN; i++) {
        if (i < 2)
            assert_int_equal(st_writer_have(w, i, NULL), LLMQ_OK);
        else
            assert_int_equal(st_writer_put(w, i, source_find(src, golden[i].name)->data, (size_t)golden[i].bytes, 0, NULL), LLMQ_OK);
    }
    assert_int_equal(st_writer_finish(w, &bytes, NULL), LLMQ_OK);
    assert_same_file(DIR "/model.safetensors", DATA "single/model.safetensors");
    source_close(src);
}

static void open_fails_with(const llmq_st_tensor *t, size_t n, const char *says) {
    llmq_st_writer *w = NULL;
    llmq_err err = {0};
    assert_int_equal(st_writer_open(DIR, t, n, 0, false, &w, &err), LLMQ_E_ARG);
    if (!strstr(err.msg, says)) fail_msg("\"%s\" lacks \"%s\"", err.msg, says);
    assert_false(file_exists(DIR "/model.safetensors.tmp"));
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    llmq_st_writer *w = NULL;
    llmq_err err = {0};
    const llmq_st_tensor twice[] = {{"a", "I32", 1, {2}, 8}, {"a", "F16", 1, {2}, 4}, {"a", "I32", 1, {2}, 8}};
    const llmq_st_tensor bad[] = {{"a\"", "I32", 1, {2}, 8}, {"a", "F17", 1, {2}, 8}, {"a", "I32", 2, {2, 2}, 8}, {"", "U8", 1, {1}, 1}};
    fresh();
    open_fails_with(twice, 3, "twice");
    open_fails_with(bad, 1, "cannot be written");
    open_fails_with(bad + 1, 1, "dtype F17");
    open_fails_with(bad + 2, 1, "do not fit its shape");
    open_fails_with(bad + 3, 1, "cannot be written");
    assert_int_equal(st_writer_open(DIR, golden, N_GOLDEN, 0, false, &w, NULL), LLMQ_OK);
    assert_int_equal(st_writer_put(w, N_GOLDEN, "", 0, 0, NULL), LLMQ_E_ARG);
    assert_int_equal(st_writer_put(w, 1, "12345678", 8, 25, NULL), LLMQ_E_ARG);
    assert_int_equal(st_writer_put(w, 1, "12345678", 8, 0, NULL), LLMQ_OK);
    assert_int_equal(st_writer_finish(w, NULL, &err), LLMQ_E_ARG); /* three and a half tensors are missing */
    assert_non_null(strstr(err.msg, "model.embed_tokens.weight was written: byte 0 of 192"));
    assert_false(file_exists(DIR "/model.safetensors") || file_exists(DIR "/model.safetensors.tmp"));
}

static void running_out_of_memory_leaves_nothing(void **state) {
    (void)state;
    int64_t bytes;
    fresh();
    for (long n = 1; n < 100; n++) {
        llmq_st_writer *w = NULL;
        mem_fail_after(n);
        llmq_status status = st_writer_open(DIR, golden, N_GOLDEN, 300, false, &w, NULL);
        mem_fail_after(0);
        if (status == LLMQ_OK) {
            st_writer_abort(w, false);
            assert_true(n > 5);
            break;
        }
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
    assert_int_equal(st_plan_bytes(golden, 0, 0, &bytes, NULL), LLMQ_OK);
    assert_false(file_exists(DIR "/model-00001-of-00004.safetensors.tmp"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_file_is_the_librarys),
        cmocka_unit_test(shards_are_whole_models),
        cmocka_unit_test(another_run_goes_on),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(running_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
