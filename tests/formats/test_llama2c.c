/* llama2.c files: v0, v1 and v2 of one tiny model (made by make_formats.py), and a real one. */
#include "support.h"

static void assert_i64(const llmq_source *src, const char *key, int64_t want) {
    int64_t x = -1;
    if (!meta_get_i64(src->meta, key, &x) || x != want) fail_msg("%s is %d", key, (int)x);
}

static void assert_tiny(const char *path, float tolerance) {
    static const struct { const char *name; int k, rows, cols; } parts[] = {
        {"attn_norm", 0, 0, 8}, {"attn_q", 1, 8, 8}, {"attn_k", 2, 4, 8}, {"attn_v", 3, 4, 8}, {"attn_output", 4, 8, 8},
        {"ffn_norm", 5, 0, 8}, {"ffn_gate", 6, 12, 8}, {"ffn_down", 7, 8, 12}, {"ffn_up", 8, 12, 8},
    };
    llmq_source *src = open_ok(path);
    assert_string_equal(src->format->name, "llama2c");
    assert_int_equal(src->naming, NAMING_GGUF);
    assert_int_equal(src->n_tensors, 21);
    assert_string_equal(meta_get_str(src->meta, "general.architecture"), "llama");
    assert_i64(src, "llama.block_count", 2);
    assert_i64(src, "llama.context_length", 6);
    assert_i64(src, "llama.embedding_length", 8);
    assert_i64(src, "llama.feed_forward_length", 12);
    assert_i64(src, "llama.vocab_size", 10);
    assert_i64(src, "llama.attention.head_count", 2);
    assert_i64(src, "llama.attention.head_count_kv", 1);
    assert_i64(src, "llama.rope.dimension_count", 4);
    double x = 0;
    assert_true(meta_get_f64(src->meta, "llama.attention.layer_norm_rms_epsilon", &x) && fabs(x - 1e-5) < 1e-10);
    assert_true(meta_get_f64(src->meta, "llama.rope.freq_base", &x) && x == 10000);
    assert_pattern(source_find(src, "token_embd.weight"), 0, tolerance);
    assert_pattern(source_find(src, "output_norm.weight"), 1, 0);
    assert_pattern(source_find(src, "output.weight"), 2, tolerance);
    for (int layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", layer, parts[i].name);
            const llmq_tensor *t = source_find(src, name);
            assert_pattern(t, 10 * (layer + 1) + parts[i].k, parts[i].rows ? tolerance : 0);
            assert_int_equal(t->n_dims, parts[i].rows ? 2 : 1);
            assert_int_equal(t->dims[0], parts[i].cols);
            assert_int_equal(t->dims[1], parts[i].rows ? parts[i].rows : 1);
        }
    for (size_t i = 0; i < src->n_tensors; i++) source_release(src, &src->tensors[i]);
    source_close(src);
}

static void test_tiny(void **state) {
    (void)state;
    assert_tiny(DATA "tiny-v0.bin", 0);
    assert_tiny(DATA "tiny-v1.bin", 0);
    assert_tiny(DATA "tiny-v2.bin", 2.0f / 127 / 2 + 1e-6f); /* half a step of the largest group */
}

static void test_real(void **state) {
    (void)state;
    llmq_source *src = open_ok(LLMQ_TEST_DATA "/stories260K/stories260K.bin");
    assert_int_equal(src->n_tensors, 2 + 5 * 9);
    assert_null(source_find(src, "output.weight")); /* tied */
    assert_i64(src, "llama.vocab_size", 512);
    assert_i64(src, "llama.context_length", 512);
    const llmq_tensor *down = source_find(src, "blk.4.ffn_down.weight");
    assert_int_equal(down->dims[0], 172);
    assert_int_equal(down->dims[1], 64);
    /* Trained norms are near 1, matrices near 0: a wrong offset would not look like that. */
    for (size_t i = 0; i < src->n_tensors; i++) {
        const llmq_tensor *t = &src->tensors[i];
        float *x = tensor_values(t);
        double sum = 0, square = 0, n = (double)tensor_numel(t);
        for (int64_t j = 0; j < tensor_numel(t); j++) {
            sum += x[j];
            square += (double)x[j] * x[j];
        }
        if (t->n_dims == 1 ? !(sum / n > 0.2 && sum / n < 4) : !(fabs(sum / n) < 0.05 && sqrt(square / n) > 0.02 && sqrt(square / n) < 1))
            fail_msg("%s: mean %g, rms %g", t->name, sum / n, sqrt(square / n));
        mem_free(x);
    }
    char side[4096];
    assert_true(source_side_file(src, "tok512.bin", side, sizeof side));
    source_close(src);
}

static void patched_fails(const char *from, size_t at, int32_t value, llmq_status status, const char *part) {
    char *data, *path = LLMQ_TEST_TMP "/patched.bin";
    size_t len;
    assert_int_equal(file_read(from, 1 << 20, &data, &len, NULL), LLMQ_OK);
    memcpy(data + at, &value, sizeof value);
    write_file(path, data, len);
    mem_free(data);
    open_fails(path, status, part);
}

static void test_header_lies(void **state) {
    (void)state;
    const char *v0 = DATA "tiny-v0.bin", *v1 = DATA "tiny-v1.bin", *v2 = DATA "tiny-v2.bin";
    patched_fails(v0, 0, 16, LLMQ_E_FORMAT, "asks for");
    patched_fails(v0, 0, -8, LLMQ_E_FORMAT, "no model that llmq reads");
    patched_fails(v0, 0, 0x7fffffff, LLMQ_E_FORMAT, "no model that llmq reads");
    patched_fails(v0, 8, 0, LLMQ_E_FORMAT, "no model that llmq reads");
    patched_fails(v0, 12, 3, LLMQ_E_FORMAT, "no model that llmq reads");
    patched_fails(v0, 20, 10, LLMQ_E_FORMAT, "asks for"); /* a shared head */
    patched_fails(v0, 20, INT32_MIN, LLMQ_E_FORMAT, "no model that llmq reads");
    patched_fails(v0, 24, 7, LLMQ_E_FORMAT, "asks for");
    patched_fails(v1, 4, 3, LLMQ_E_UNSUPPORTED, "version 3");
    patched_fails(v1, 8, 0, LLMQ_E_FORMAT, "sizes that no model has");
    patched_fails(v1, 8, 1 << 24, LLMQ_E_FORMAT, "asks for");
    patched_fails(v1, 16, 1024, LLMQ_E_FORMAT, "asks for");
    patched_fails(v1, 36, 1, LLMQ_E_FORMAT, "asks for");
    patched_fails(v2, 37, 3, LLMQ_E_FORMAT, "group size 3");
    patched_fails(v2, 37, 0, LLMQ_E_FORMAT, "group size 0");
    patched_fails(v2, 37, -4, LLMQ_E_FORMAT, "group size -4");
    patched_fails(v2, 37, 8, LLMQ_E_FORMAT, "asks for");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiny), cmocka_unit_test(test_real), cmocka_unit_test(test_header_lies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
