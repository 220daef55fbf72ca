/* config.json to metadata: the defaults of transformers' config classes, both forms of rope settings, what is refused. */
#include "support.h"

#define PATH LLMQ_TEST_TMP "/config.json"
#define SIZES                                                                                                                            \
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":4,\"num_attention_heads\":8,\"vocab_size\":100"

static llmq_status read_config(const char *json, llmq_meta *meta, llmq_err *err) {
    write_file(PATH, json, strlen(json));
    return hfconfig_read(PATH, meta, err);
}

static llmq_meta *read_ok(const char *json) {
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    if (read_config(json, meta, &err) != LLMQ_OK) fail_msg("%s: %s", json, err.msg);
    return meta;
}

/* "key=value key=value -absent", numbers within 1e-6. */
static void expect(const char *json, const char *expected) {
    llmq_meta *meta = read_ok(json);
    char list[2048];
    snprintf(list, sizeof list, "%s", expected);
    for (char *word = strtok(list, " "); word; word = strtok(NULL, " ")) {
        char *value = strchr(word, '=');
        if (*word == '-') {
            if (meta_find(meta, word + 1)) fail_msg("%s: %s should not be set", json, word + 1);
            continue;
        }
        *value++ = 0;
        double x = NAN, want = 0;
        bool flag = false;
        const char *s = meta_get_str(meta, word);
        if (s) {
            if (strcmp(s, value)) fail_msg("%s: %s is %s, not %s", json, word, s, value);
        } else if (meta_get_bool(meta, word, &flag)) {
            if (flag != (*value == 't')) fail_msg("%s: %s is %d", json, word, flag);
        } else {
            want = strtod(value, NULL);
            if (!meta_get_f64(meta, word, &x) || fabs(x - want) > 1e-6 * fabs(want)) fail_msg("%s: %s is %g, not %s", json, word, x, value);
        }
    }
    meta_destroy(meta);
}

static void refuse(const char *json, llmq_status status, const char *part) {
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    llmq_status got = read_config(json, meta, &err);
    if (got != status || !strstr(err.msg, part) || !strstr(err.msg, "config.json"))
        fail_msg("%s: status %d, \"%s\"; expected %d, \"%s\"", json, got, err.msg, status, part);
    meta_destroy(meta);
}

static void test_defaults(void **state) {
    (void)state;
    expect("{\"model_type\":\"llama\"," SIZES "}",
           "general.architecture=llama hf.model_type=llama llama.block_count=4 llama.context_length=2048 llama.embedding_length=64 "
           "llama.feed_forward_length=128 llama.vocab_size=100 llama.attention.head_count=8 llama.attention.head_count_kv=8 "
           "llama.attention.key_length=8 llama.attention.value_length=8 llama.attention.layer_norm_rms_epsilon=1e-6 "
           "llama.rope.freq_base=10000 llama.rope.dimension_count=8 hf.tie_word_embeddings=false -llama.attention.sliding_window "
           "-llama.rope.scaling.type -tokenizer.ggml.bos_token_id -tokenizer.ggml.eos_token_id -llmq.eos_token_ids");
    expect("{\"model_type\":\"mistral\"," SIZES "}",
           "general.architecture=llama hf.model_type=mistral llama.context_length=131072 llama.attention.head_count_kv=8 "
           "llama.attention.sliding_window=4096 llama.rope.freq_base=10000");
    refuse("{\"model_type\":\"qwen2\"," SIZES "}", LLMQ_E_FORMAT, "not a multiple of num_key_value_heads 32"); /* the class's default */
    expect("{\"model_type\":\"qwen2\",\"num_key_value_heads\":2," SIZES "}",
           "general.architecture=qwen2 qwen2.context_length=32768 qwen2.attention.head_count_kv=2 qwen2.attention.key_length=8 "
           "-qwen2.attention.sliding_window");
    expect("{\"model_type\":\"qwen3\",\"num_key_value_heads\":null," SIZES "}",
           "general.architecture=qwen3 qwen3.attention.head_count_kv=8 qwen3.attention.key_length=128 qwen3.rope.dimension_count=128");
    expect("{\"model_type\":\"qwen3\",\"num_key_value_heads\":4,\"head_dim\":32," SIZES "}",
           "qwen3.attention.head_count_kv=4 qwen3.attention.key_length=32");
}

static void test_given(void **state) {
    (void)state;
    expect("{\"model_type\":\"llama\",\"num_key_value_heads\":2,\"head_dim\":16,\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-5,"
           "\"rope_theta\":500000,\"tie_word_embeddings\":true,\"bos_token_id\":1,\"eos_token_id\":[2,7,9],\"torch_dtype\":\"bfloat16\","
           "\"rope_scaling\":null,\"hidden_act\":\"silu\",\"attention_bias\":true,\"mlp_bias\":false," SIZES "}",
           "llama.attention.head_count_kv=2 llama.attention.key_length=16 llama.context_length=8192 "
           "llama.attention.layer_norm_rms_epsilon=1e-5 llama.rope.freq_base=500000 hf.tie_word_embeddings=true "
           "tokenizer.ggml.bos_token_id=1 tokenizer.ggml.eos_token_id=2");
    llmq_meta *meta = read_ok("{\"model_type\":\"llama\",\"eos_token_id\":[2,7,9]," SIZES "}");
    const llmq_meta_value *v = meta_find(meta, "llmq.eos_token_ids");
    assert_non_null(v);
    assert_int_equal(v->arr.n, 3);
    assert_memory_equal(v->arr.data, ((const int32_t[]){2, 7, 9}), 12);
    meta_destroy(meta);
    expect("{\"model_type\":\"llama\",\"eos_token_id\":[5],\"bos_token_id\":null," SIZES "}",
           "tokenizer.ggml.eos_token_id=5 -llmq.eos_token_ids -tokenizer.ggml.bos_token_id");
    expect("{\"model_type\":\"llama\",\"head_dim\":null,\"bos_token_id\":-1," SIZES "}", "llama.attention.key_length=8 -tokenizer.ggml.bos_token_id");
}

static void test_windows(void **state) {
    (void)state;
    const char *none2 = "-qwen2.attention.sliding_window", *nonem = "-llama.attention.sliding_window";
    expect("{\"model_type\":\"mistral\",\"sliding_window\":null," SIZES "}", nonem);
    expect("{\"model_type\":\"mistral\",\"sliding_window\":512," SIZES "}", "llama.attention.sliding_window=512");
    expect("{\"model_type\":\"llama\",\"sliding_window\":512," SIZES "}", nonem);
#define QWEN "{\"model_type\":\"qwen2\",\"num_key_value_heads\":2," SIZES ",\"sliding_window\":256"
    expect(QWEN ",\"use_sliding_window\":false}", none2);
    expect(QWEN ",\"use_sliding_window\":true}", none2); /* from layer 28 on, and there are 4 */
    expect(QWEN ",\"use_sliding_window\":true,\"max_window_layers\":0}", "qwen2.attention.sliding_window=256");
    expect(QWEN ",\"use_sliding_window\":true,\"max_window_layers\":4}", none2);
    refuse(QWEN ",\"use_sliding_window\":true,\"max_window_layers\":3}", LLMQ_E_UNSUPPORTED, "only 1 of 4 layers");
#define FULL "\"full_attention\""
#define SLIDING "\"sliding_attention\""
    expect(QWEN ",\"use_sliding_window\":true,\"layer_types\":[" FULL "," FULL "," FULL "," FULL "]}", none2);
    expect(QWEN ",\"use_sliding_window\":true,\"layer_types\":[" SLIDING "," SLIDING "," SLIDING "," SLIDING "]}", "qwen2.attention.sliding_window=256");
    refuse(QWEN ",\"use_sliding_window\":true,\"layer_types\":[" SLIDING "," FULL "," SLIDING "," SLIDING "]}", LLMQ_E_UNSUPPORTED, "only 3 of 4");
    refuse(QWEN ",\"use_sliding_window\":true,\"layer_types\":[" FULL "]}", LLMQ_E_FORMAT, "must list 4 layers");
    refuse(QWEN ",\"use_sliding_window\":true,\"layer_types\":[" FULL "," FULL "," FULL ",\"mamba\"]}", LLMQ_E_UNSUPPORTED, "mamba");
}

static void test_rope(void **state) {
    (void)state;
#define LLAMA "{\"model_type\":\"llama\",\"max_position_embeddings\":32768," SIZES
    expect(LLAMA ",\"rope_parameters\":{\"rope_theta\":250000.0,\"rope_type\":\"default\"}}", "llama.rope.freq_base=250000 -llama.rope.scaling.type");
    expect(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}", "llama.rope.scaling.type=linear llama.rope.scaling.factor=4");
    expect(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                 "\"original_max_position_embeddings\":8192},\"rope_theta\":500000.0}",
           "llama.rope.freq_base=500000 llama.rope.scaling.type=llama3 llama.rope.scaling.factor=8 llama.rope.scaling.low_freq_factor=1 "
           "llama.rope.scaling.high_freq_factor=4 llama.rope.scaling.original_context_length=8192");
    expect(LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":32.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                 "\"original_max_position_embeddings\":8192,\"rope_theta\":500000.0}}",
           "llama.rope.freq_base=500000 llama.rope.scaling.type=llama3 llama.rope.scaling.factor=32");
    expect(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":8192}}",
           "llama.rope.scaling.type=yarn llama.rope.scaling.factor=4 llama.rope.scaling.original_context_length=8192 "
           "llama.rope.scaling.yarn_beta_fast=32 llama.rope.scaling.yarn_beta_slow=1 -llama.rope.scaling.attn_factor");
    /* The factor follows from the lengths; attention_factor 1 is 1 / (0.1 ln 4 + 1) in GGUF's terms. */
    expect(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"attention_factor\":1.0,\"beta_fast\":16,\"original_max_position_embeddings\":8192}}",
           "llama.rope.scaling.factor=4 llama.rope.scaling.yarn_beta_fast=16 llama.rope.scaling.attn_factor=0.8782488562");
    /* get_mscale(4, 0.707) / get_mscale(4, 1.414) = 1.0980117 / 1.1960234, over 1.1386294 */
    expect(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"mscale\":0.707,\"mscale_all_dim\":1.414,\"original_max_position_embeddings\":8192}}",
           "llama.rope.scaling.attn_factor=0.80627889");
    refuse(LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", LLMQ_E_UNSUPPORTED, "dynamic");
    refuse(LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", LLMQ_E_FORMAT, "has no factor");
    refuse(LLAMA ",\"rope_scaling\":[1]}", LLMQ_E_FORMAT, "must be an object");
    refuse(LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}}", LLMQ_E_FORMAT, "above low");
    expect(LLAMA ",\"partial_rotary_factor\":0.5}", "llama.rope.dimension_count=4");
    /* numbers beyond 64 bits, which transformers writes for "no limit", in keys that say nothing here */
    expect(LLAMA ",\"partial_rotary_factor\":0.5,\"max_length\":1000000000000000019884624838656}",
           "llama.rope.dimension_count=4");
}

static void test_refusals(void **state) {
    (void)state;
    refuse("{\"model_type\":\"gpt2\"}", LLMQ_E_UNSUPPORTED, "llama, mistral, qwen2, qwen3");
    refuse("{}", LLMQ_E_FORMAT, "no model_type");
    refuse("", LLMQ_E_FORMAT, "not valid JSON");
    refuse("{\"model_type\":\"llama\",\"model_type\":\"llama\"}", LLMQ_E_FORMAT, "duplicate");
    refuse("{\"model_type\":\"llama\",\"hidden_act\":\"gelu\"," SIZES "}", LLMQ_E_UNSUPPORTED, "gelu");
    refuse("{\"model_type\":\"llama\",\"mlp_bias\":true," SIZES "}", LLMQ_E_UNSUPPORTED, "mlp_bias");
    refuse("{\"model_type\":\"llama\",\"hidden_size\":64}", LLMQ_E_FORMAT, "num_hidden_layers is missing");
    refuse("{\"model_type\":\"llama\",\"num_key_value_heads\":3," SIZES "}", LLMQ_E_FORMAT, "not a multiple of num_key_value_heads 3");
    refuse("{\"model_type\":\"llama\",\"num_key_value_heads\":0," SIZES "}", LLMQ_E_FORMAT, "num_key_value_heads must be");
    refuse("{\"model_type\":\"llama\",\"head_dim\":7," SIZES "}", LLMQ_E_FORMAT, "must be even");
    refuse("{\"model_type\":\"llama\",\"hidden_size\":60,\"intermediate_size\":1,\"num_hidden_layers\":1,\"num_attention_heads\":8,\"vocab_size\":1}",
           LLMQ_E_FORMAT, "not a multiple of num_attention_heads");
    refuse("{\"model_type\":\"llama\",\"hidden_size\":\"64\"}", LLMQ_E_FORMAT, "");
    refuse("{\"model_type\":\"llama\",\"rms_norm_eps\":\"tiny\"," SIZES "}", LLMQ_E_FORMAT, "rms_norm_eps must be a number");
    refuse("{\"model_type\":\"llama\",\"tie_word_embeddings\":1," SIZES "}", LLMQ_E_FORMAT, "true or false");
    refuse("{\"model_type\":\"llama\",\"eos_token_id\":\"</s>\"," SIZES "}", LLMQ_E_FORMAT, "eos_token_id must be");
    refuse("{\"model_type\":\"llama\",\"num_hidden_layers\":1e9,\"hidden_size\":64}", LLMQ_E_FORMAT, "num_hidden_layers must be");
    assert_int_equal(hfconfig_read(LLMQ_TEST_TMP "/absent.json", NULL, NULL), LLMQ_E_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_given), cmocka_unit_test(test_windows),
        cmocka_unit_test(test_rope), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
