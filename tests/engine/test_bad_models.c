/* Files that are not what they claim to be end in one clear error, never in a crash. */
#include "tests/engine/tiny.h"

static const char path[] = LLMQ_TEST_TMP "/engine_bad.gguf";

typedef enum change_kind { INT, FLOAT, STRING, ARRAY, REMOVE, DROP, ROWS, COLS, ADD, RANGES } change_kind;

typedef struct change {
    change_kind kind;
    const char *name; /* key or tensor */
    double x;
    const char *text;
    llmq_status status;
    const char *words; /* that the message must have */
} change;

static const change changes[] = {
    {STRING, "general.architecture", 0, "mamba", LLMQ_E_UNSUPPORTED, "mamba"},
    {REMOVE, "llama.block_count", 0, NULL, LLMQ_E_FORMAT, "llama.block_count"},
    {INT, "llama.block_count", 0, NULL, LLMQ_E_FORMAT, "llama.block_count"},
    {INT, "llama.block_count", 4000000000.0, NULL, LLMQ_E_FORMAT, "llama.block_count"},
    {INT, "llama.block_count", 3, NULL, LLMQ_E_FORMAT, "blk.2.attn_norm.weight"},
    {STRING, "llama.block_count", 0, "two", LLMQ_E_FORMAT, "not an integer"},
    {REMOVE, "llama.context_length", 0, NULL, LLMQ_E_FORMAT, "llama.context_length"},
    {INT, "llama.embedding_length", 0, NULL, LLMQ_E_FORMAT, "llama.embedding_length"},
    {INT, "llama.embedding_length", 64, NULL, LLMQ_E_FORMAT, "token_embd.weight"},
    {INT, "llama.embedding_length", 33, NULL, LLMQ_E_FORMAT, "not a multiple"},
    {INT, "llama.feed_forward_length", 65, NULL, LLMQ_E_FORMAT, "ffn_gate"},
    {INT, "llama.attention.head_count", 0, NULL, LLMQ_E_FORMAT, "head_count"},
    {INT, "llama.attention.head_count", 3, NULL, LLMQ_E_FORMAT, "head_count"},
    {INT, "llama.attention.head_count_kv", 0, NULL, LLMQ_E_FORMAT, "head_count_kv"},
    {INT, "llama.attention.head_count_kv", 3, NULL, LLMQ_E_FORMAT, "head_count_kv"},
    {INT, "llama.attention.head_count_kv", 4, NULL, LLMQ_E_FORMAT, "attn_k"},
    {ARRAY, "llama.attention.head_count", 0, NULL, LLMQ_E_UNSUPPORTED, "layer to layer"},
    {INT, "llama.attention.key_length", 7, NULL, LLMQ_E_FORMAT, "even"},
    {INT, "llama.attention.value_length", 16, NULL, LLMQ_E_UNSUPPORTED, "value_length"},
    {INT, "llama.rope.dimension_count", 16, NULL, LLMQ_E_FORMAT, "dimension_count"},
    {INT, "llama.rope.dimension_count", 3, NULL, LLMQ_E_FORMAT, "even"},
    {FLOAT, "llama.rope.freq_base", 0, NULL, LLMQ_E_FORMAT, "freq_base"},
    {FLOAT, "llama.rope.freq_base", NAN, NULL, LLMQ_E_FORMAT, "freq_base"},
    {FLOAT, "llama.attention.layer_norm_rms_epsilon", -1, NULL, LLMQ_E_FORMAT, "epsilon"},
    {FLOAT, "llama.attention.layer_norm_rms_epsilon", INFINITY, NULL, LLMQ_E_FORMAT, "epsilon"},
    {REMOVE, "llama.attention.layer_norm_rms_epsilon", 0, NULL, LLMQ_E_FORMAT, "epsilon"},
    {STRING, "llama.rope.scaling.type", 0, "longrope", LLMQ_E_UNSUPPORTED, "longrope"},
    {FLOAT, "llama.rope.scaling.factor", -2, NULL, LLMQ_E_FORMAT, "factor"},
    {INT, "llama.expert_count", 8, NULL, LLMQ_E_UNSUPPORTED, "mixture of experts"},
    {FLOAT, "llama.logit_scale", 0.5, NULL, LLMQ_E_UNSUPPORTED, "logit_scale"},
    {INT, "llama.vocab_size", 47, NULL, LLMQ_E_FORMAT, "token_embd.weight"},
    {INT, "llama.vocab_size", 0, NULL, LLMQ_E_FORMAT, "vocab_size"},
    {DROP, "token_embd.weight", 0, NULL, LLMQ_E_FORMAT, "token_embd.weight"},
    {DROP, "output_norm.weight", 0, NULL, LLMQ_E_FORMAT, "output_norm.weight"},
    {DROP, "blk.1.ffn_down.weight", 0, NULL, LLMQ_E_FORMAT, "blk.1.ffn_down.weight"},
    {ROWS, "blk.0.attn_v.weight", 8, NULL, LLMQ_E_FORMAT, "blk.0.attn_v.weight"},
    {COLS, "blk.1.attn_output.weight", 24, NULL, LLMQ_E_FORMAT, "blk.1.attn_output.weight"},
    {COLS, "blk.0.ffn_norm.weight", 31, NULL, LLMQ_E_FORMAT, "blk.0.ffn_norm.weight"},
    {ADD, "rope_freqs.weight", 3, NULL, LLMQ_E_FORMAT, "rope_freqs.weight"},
    {ADD, "blk.0.ffn_up.bias", TINY_FF, NULL, LLMQ_E_UNSUPPORTED, "blk.0.ffn_up.bias"},
    {ADD, "blk.0.attn_q.bias", 3, NULL, LLMQ_E_FORMAT, "blk.0.attn_q.bias"},
    {STRING, "llmq.int8.activations", 0, "magic", LLMQ_E_UNSUPPORTED, "magic"},
    {STRING, "llmq.int8.activations", 0, "static", LLMQ_E_FORMAT, "llmq.int8.input_scale"},
    {RANGES, "short", 0.5, NULL, LLMQ_E_FORMAT, "8 numbers"},
    {RANGES, "NaN", NAN, NULL, LLMQ_E_FORMAT, "cannot be"},
    {RANGES, "negative", -1, NULL, LLMQ_E_FORMAT, "cannot be"},
    {RANGES, "zero", 128, NULL, LLMQ_E_FORMAT, "zero 128"},
};

/* Static INT8 whose ranges are wrong: the last scale, or a zero point of 128, or one too few. */
static void apply_ranges(tiny_model *t, const change *c) {
    enum { N = 4 * TINY_LAYERS };
    float scales[N];
    int32_t zeros[N] = {0};
    bool zero = !strcmp(c->name, "zero");
    size_t n = strcmp(c->name, "short") ? N : N - 1;
    for (int i = 0; i < N; i++) scales[i] = 0.5f;
    if (zero) zeros[N - 1] = (int32_t)c->x;
    else scales[N - 1] = (float)c->x;
    meta_set_str(t->meta, "llmq.int8.activations", "static", NULL);
    meta_set_array(t->meta, "llmq.int8.input_scale", META_F32, scales, n, NULL);
    meta_set_array(t->meta, "llmq.int8.input_zero", META_I32, zeros, n, NULL);
}

static void apply(tiny_model *t, const change *c) {
    const int32_t two[2] = {4, 4};
    switch (c->kind) {
    case INT: meta_set_u32(t->meta, c->name, (uint32_t)c->x, NULL); break;
    case FLOAT: meta_set_f32(t->meta, c->name, (float)c->x, NULL); break;
    case STRING: meta_set_str(t->meta, c->name, c->text, NULL); break;
    case ARRAY: meta_set_array(t->meta, c->name, META_I32, two, 2, NULL); break;
    case REMOVE: meta_remove(t->meta, c->name); break;
    case DROP: tiny_drop(t, c->name); break;
    case ROWS: tiny_find(t, c->name)->dims[1] = (int64_t)c->x; break;
    case COLS: tiny_find(t, c->name)->dims[0] = (int64_t)c->x; break;
    case ADD: tiny_add(t, c->name, (int64_t)c->x, 1); break;
    case RANGES: apply_ranges(t, c); break;
    }
}

static void test_each_change_is_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const change *c = &changes[i];
        tiny_model t;
        tiny_init(&t);
        apply(&t, c);
        tiny_write(&t, path, 0);
        llmq_model *model = NULL;
        llmq_err err = {0};
        llmq_status status = model_open(path, NULL, &model, &err);
        if (status != c->status || !strstr(err.msg, c->words) || !strstr(err.msg, "engine_bad.gguf") || model)
            fail_msg("change %zu (%s): status %d, message: %s", i, c->name, (int)status, err.msg);
    }
}

static void test_unchanged_runs(void **state) {
    (void)state;
    tiny_model t;
    tiny_init(&t);
    tiny_write(&t, path, 0);
    llmq_err err = {0};
    llmq_model *model = NULL;
    llmq_session *s = NULL;
    if (model_open(path, NULL, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_true(model->info.tied_head);
    assert_int_equal(model->info.kv_bytes_per_token, 2 * 2 * TINY_LAYERS * TINY_KV_HEADS * TINY_DIM);
    int64_t matrices = TINY_LAYERS * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64);
    assert_int_equal(model->info.matrix_params, matrices);
    assert_int_equal(model->info.n_params, matrices + TINY_VOCAB * TINY_EMBD + (2 * TINY_LAYERS + 1) * TINY_EMBD);
    assert_int_equal(model->info.main_type, LLMQ_TYPE_F32);
    assert_int_equal(llmq_session_create(model, NULL, &s, &err), LLMQ_OK);
    assert_int_equal(llmq_session_n_ctx(s), 64);
    assert_int_equal(llmq_session_append(s, (int32_t[]){1, 2, 3}, 3, &err), LLMQ_OK);
    int32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(llmq_encode(model, "hi", 2, 0, &ids, &n, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "--tokenizer"));
    llmq_session_destroy(s);
    model_close(model);
}

/* A NaN in the weights is not sampled from. */
static void test_nan_is_reported(void **state) {
    (void)state;
    tiny_model t;
    tiny_init(&t);
    tiny_write(&t, path, NAN);
    llmq_err err = {0};
    llmq_model *model = NULL;
    llmq_session *s = NULL;
    assert_int_equal(model_open(path, NULL, &model, &err), LLMQ_OK);
    assert_int_equal(llmq_session_create(model, NULL, &s, &err), LLMQ_OK);
    assert_int_equal(llmq_session_append(s, (int32_t[]){1, 2, 3}, 3, &err), LLMQ_OK);
    int32_t token;
    assert_int_equal(llmq_session_sample(s, &token, &err), LLMQ_E_NUMERIC);
    llmq_session_destroy(s);
    model_close(model);
}

/* rope_freqs.weight divides frequencies; a linear factor in the metadata has the same effect when all divisors are equal. */
static void test_rope_freqs(void **state) {
    (void)state;
    float tables[3][4 * TINY_DIM];
    for (int i = 0; i < 3; i++) {
        tiny_model t;
        tiny_init(&t);
        if (i == 1) meta_set_f32(t.meta, "llama.rope.scaling.factor", 1.0f, NULL);
        if (i == 2) tiny_add(&t, "rope_freqs.weight", TINY_DIM / 2, 1);
        tiny_write(&t, path, i == 2 ? 4.0f : 0);
        llmq_model *model = NULL;
        llmq_err err = {0};
        if (model_open(path, NULL, &model, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        rope_table(model, 5, 4, tables[i]);
        model_close(model);
    }
    assert_memory_equal(tables[0], tables[1], sizeof tables[0]);
    /* pair 0 turns 4 times slower, the others as before (their divisors are 1) */
    assert_float_equal(tables[0][0], cosf(5), 1e-6);
    assert_float_equal(tables[2][0], cosf(5.0f / 4), 1e-6);
    assert_memory_equal(tables[0] + 2, tables[2] + 2, (TINY_DIM - 2) * sizeof(float));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unchanged_runs),
        cmocka_unit_test(test_each_change_is_refused),
        cmocka_unit_test(test_nan_is_reported),
        cmocka_unit_test(test_rope_freqs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
