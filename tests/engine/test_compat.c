/* inspect --for: small folders and GGUF files, each with one thing that an engine minds. */
#define _XOPEN_SOURCE 700
#include "tests/engine/tiny.h"

#include <jansson.h>
#include <sys/stat.h>

#define DIR LLMQ_TEST_TMP "/compat"
#define FILE_NAME LLMQ_TEST_TMP "/compat.gguf"

static void write_bytes(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
}

/* "NAME DTYPE DIM DIM;..." to a safetensors file without data: only directories are read. */
static void write_weights(const char *spec, bool with_format) {
    char copy[4096], *save = NULL;
    uint8_t file[16384];
    snprintf(copy, sizeof copy, "%s", spec);
    json_t *root = json_object();
    if (with_format) json_object_set_new(root, "__metadata__", json_pack("{s:s}", "format", "pt"));
    for (char *t = strtok_r(copy, ";", &save); t; t = strtok_r(NULL, ";", &save)) {
        char name[128], dtype[16];
        long long a = 0, b = 0;
        int n = sscanf(t, "%127s %15s %lld %lld", name, dtype, &a, &b);
        assert_in_range(n, 3, 4);
        json_t *shape = n == 4 ? json_pack("[I, I]", (json_int_t)a, (json_int_t)b) : json_pack("[I]", (json_int_t)a);
        json_object_set_new(root, name, json_pack("{s:s, s:o, s:[i, i]}", "dtype", dtype, "shape", shape, "data_offsets", 0, 0));
    }
    char *text = json_dumps(root, 0);
    uint64_t n = strlen(text);
    assert_true(n + 8 < sizeof file);
    memcpy(file, &n, 8);
    memcpy(file + 8, text, n);
    write_bytes(DIR "/model.safetensors", file, n + 8);
    free(text);
    json_decref(root);
}

static llmq_compat_report check(const char *path, const char *engines) {
    llmq_compat_report r;
    llmq_err err = {0};
    if (llmq_compat_check(path, engines, &r, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return r;
}

static llmq_compat_verdict verdict(const llmq_compat_report *r, const char *engine) {
    for (size_t i = 0; i < r->n_engines; i++)
        if (!strcmp(r->engines[i].name, engine)) return r->engines[i].verdict;
    fail_msg("%s was not asked", engine);
    return 0;
}

static bool finds(const llmq_compat_report *r, const char *engine, llmq_compat_verdict v, const char *word) {
    for (size_t i = 0; i < r->n_findings; i++) {
        const llmq_compat_finding *f = &r->findings[i];
        if (!strcmp(f->engine, engine) && f->verdict == v && (strstr(f->field, word) || strstr(f->reason, word))) {
            assert_true(strlen(f->cure) > 3 && strlen(f->reason) > 3);
            return true;
        }
    }
    return false;
}

#define HEAD "\"architectures\": [\"LlamaForCausalLM\"], \"torch_dtype\": \"float16\""
#define GPTQ_BUT(more) "{" HEAD ", \"quantization_config\": {\"quant_method\": \"gptq\", " more "}}"
#define GPTQ GPTQ_BUT("\"bits\": 4, \"group_size\": 128, \"desc_act\": false, \"sym\": true")
#define AWQ_BUT(more) "{" HEAD ", \"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 128, " more "}}"
#define CT_BUT(more, format)                                                                                           \
    "{" HEAD ", \"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": \"" format              \
    "\", \"config_groups\": {\"group_0\": {\"weights\": {" more "}}}}}"
#define CT CT_BUT("\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"group\", \"group_size\": 128", "pack-quantized")
#define BNB_BUT(storage)                                                                                               \
    "{" HEAD ", \"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, "                \
    "\"bnb_4bit_quant_storage\": \"" storage "\"}}"
#define P "model.layers.0.self_attn."
#define GPTQ_MATRIX(p, words, groups, cols) p ".qweight I32 " words " 256;" p ".scales F16 " groups " 256;" p ".qzeros I32 " groups " 32;" p ".g_idx I32 " cols ";"
#define GPTQ_QKV GPTQ_MATRIX(P "q_proj", "32", "2", "256") GPTQ_MATRIX(P "k_proj", "32", "2", "256") GPTQ_MATRIX(P "v_proj", "32", "2", "256")
#define PLAIN P "q_proj.weight F16 256 256;" P "k_proj.weight F16 256 256"

/* What each folder is told, in the words of the finding. "" for a verdict of loads or warns alone. */
static const struct {
    const char *what, *config, *weights, *engine;
    llmq_compat_verdict verdict; /* of the engine */
    const char *word;            /* in a finding of that verdict */
} folders[] = {
    {"plain", "{" HEAD "}", PLAIN, "vllm", LLMQ_COMPAT_LOADS, ""},
    {"plain", "{" HEAD "}", PLAIN, "transformers", LLMQ_COMPAT_LOADS, ""},
    {"plain", "{" HEAD "}", PLAIN, "sglang", LLMQ_COMPAT_LOADS, ""},
    {"plain", "{" HEAD "}", PLAIN, "llama.cpp", LLMQ_COMPAT_WARNS, "GGUF only"},
    {"rows", "{" HEAD "}", "a.weight F16 64 576", "llama.cpp", LLMQ_COMPAT_WARNS, "rows of 576"},
    {"no architectures", "{\"a\": 1}", PLAIN, "vllm", LLMQ_COMPAT_REFUSES, "architectures"},
    {"tied twice", "{" HEAD ", \"tie_word_embeddings\": true}", PLAIN ";lm_head.weight F16 9 9", "sglang", LLMQ_COMPAT_REFUSES, "tied"},
    {"tied twice", "{" HEAD ", \"tie_word_embeddings\": true}", PLAIN ";lm_head.weight F16 9 9", "vllm", LLMQ_COMPAT_WARNS, "tied"},
    {"gptq", GPTQ, GPTQ_QKV, "vllm", LLMQ_COMPAT_LOADS, ""},
    {"gptq", GPTQ, GPTQ_QKV, "sglang", LLMQ_COMPAT_LOADS, ""},
    {"gptq", GPTQ, GPTQ_QKV, "transformers", LLMQ_COMPAT_WARNS, "gptqmodel"},
    {"gptq", GPTQ, GPTQ_QKV, "llama.cpp", LLMQ_COMPAT_WARNS, "back into float"},
    {"asymmetric", GPTQ_BUT("\"bits\": 4, \"group_size\": 128, \"desc_act\": false, \"sym\": false"), GPTQ_QKV, "vllm", LLMQ_COMPAT_REFUSES, ".sym"},
    {"3 bits", GPTQ_BUT("\"bits\": 3, \"group_size\": 128, \"desc_act\": false, \"sym\": true"), "", "vllm", LLMQ_COMPAT_REFUSES, "3 bits"},
    {"3 bits", GPTQ_BUT("\"bits\": 3, \"group_size\": 128, \"desc_act\": false, \"sym\": true"), "", "llama.cpp", LLMQ_COMPAT_REFUSES, "3-bit"},
    {"group", GPTQ_BUT("\"bits\": 4, \"group_size\": 48, \"desc_act\": false, \"sym\": true"), "", "vllm", LLMQ_COMPAT_REFUSES, "groups of 48"},
    {"rows as groups", GPTQ_BUT("\"bits\": 4, \"group_size\": -1, \"desc_act\": false, \"sym\": true"), GPTQ_MATRIX("a", "32", "1", "256"), "vllm", LLMQ_COMPAT_LOADS, ""},
    {"no sym", GPTQ_BUT("\"bits\": 4, \"group_size\": 128, \"desc_act\": false"), "", "vllm", LLMQ_COMPAT_REFUSES, "'sym'"},
    {"desc_act", GPTQ_BUT("\"bits\": 4, \"group_size\": 128, \"desc_act\": true, \"sym\": true"), GPTQ_QKV, "vllm", LLMQ_COMPAT_WARNS, "desc_act"},
    {"v2", GPTQ_BUT("\"bits\": 4, \"group_size\": 128, \"desc_act\": false, \"sym\": true, \"checkpoint_format\": \"gptq_v2\""), GPTQ_QKV, "vllm", LLMQ_COMPAT_WARNS, "!!!!"},
    {"planar", GPTQ_BUT("\"bits\": 4, \"group_size\": 128, \"desc_act\": false, \"sym\": true, \"checkpoint_format\": \"gptq_p\""), GPTQ_QKV, "sglang", LLMQ_COMPAT_REFUSES, "'gptq_p'"},
    {"576 = 4.5 groups", GPTQ, GPTQ_MATRIX("a", "72", "5", "576"), "vllm", LLMQ_COMPAT_REFUSES, "rows of 576, groups of 128"},
    {"no g_idx", GPTQ, "a.qweight I32 32 256;a.scales F16 2 256", "llama.cpp", LLMQ_COMPAT_REFUSES, ".g_idx"},
    {"head", GPTQ, GPTQ_QKV GPTQ_MATRIX("lm_head", "32", "2", "256"), "vllm", LLMQ_COMPAT_REFUSES, "lm_head"},
    {"fused", GPTQ, GPTQ_MATRIX(P "q_proj", "32", "2", "256") P "k_proj.weight F16 256 256", "vllm", LLMQ_COMPAT_REFUSES, "self_attn.k_proj"},
    {"fused groups", GPTQ, GPTQ_MATRIX("x.mlp.gate_proj", "32", "2", "256") GPTQ_MATRIX("x.mlp.up_proj", "32", "4", "256"), "sglang", LLMQ_COMPAT_REFUSES, "mlp.up_proj"},
    {"awq", AWQ_BUT("\"version\": \"gemm\", \"zero_point\": true"), "a.qweight I32 256 32;a.scales F16 2 256", "vllm", LLMQ_COMPAT_LOADS, ""},
    {"awq", AWQ_BUT("\"version\": \"gemm\", \"zero_point\": true"), "a.qweight I32 256 32;a.scales F16 2 256", "llama.cpp", LLMQ_COMPAT_REFUSES, "NotImplementedError"},
    {"awq 576", AWQ_BUT("\"version\": \"gemm\", \"zero_point\": true"), "a.qweight I32 576 32;a.scales F16 4 256", "sglang", LLMQ_COMPAT_REFUSES, "rows of 576"},
    {"awq gemv", AWQ_BUT("\"version\": \"gemv\", \"zero_point\": true"), "", "transformers", LLMQ_COMPAT_REFUSES, "'gemv'"},
    {"awq zeros", AWQ_BUT("\"version\": \"gemm\", \"zero_point\": false"), "", "vllm", LLMQ_COMPAT_WARNS, "zero_point"},
    {"ct", CT, "a.weight_packed I32 256 32;a.weight_scale F16 256 2", "vllm", LLMQ_COMPAT_LOADS, ""},
    {"ct", CT, "a.weight_packed I32 256 32;a.weight_scale F16 256 2", "sglang", LLMQ_COMPAT_LOADS, ""},
    {"ct", CT, "a.weight_packed I32 256 32;a.weight_scale F16 256 2", "transformers", LLMQ_COMPAT_WARNS, "compressed-tensors"},
    {"ct 576", CT, "a.weight_packed I32 256 72;a.weight_scale F16 256 5", "vllm", LLMQ_COMPAT_REFUSES, "rows of 576"},
    {"ct g_idx", CT, "a.weight_packed I32 256 32;a.weight_g_idx I32 256", "llama.cpp", LLMQ_COMPAT_REFUSES, "a.weight_g_idx"},
    {"ct head", CT, "lm_head.weight_packed I32 256 32", "vllm", LLMQ_COMPAT_REFUSES, "lm_head"},
    {"ct asymmetric", CT_BUT("\"num_bits\": 4, \"symmetric\": false, \"strategy\": \"group\", \"group_size\": 128", "pack-quantized"), "", "sglang", LLMQ_COMPAT_REFUSES, "asymmetric"},
    {"ct channel", CT_BUT("\"num_bits\": 4, \"symmetric\": true, \"strategy\": \"channel\"", "pack-quantized"), "", "llama.cpp", LLMQ_COMPAT_REFUSES, "'channel'"},
    {"ct channel", CT_BUT("\"num_bits\": 8, \"symmetric\": true, \"strategy\": \"channel\"", "int-quantized"), "", "llama.cpp", LLMQ_COMPAT_WARNS, "GGUF only"},
    {"ct format", CT_BUT("\"num_bits\": 4", "marlin-24"), "", "vllm", LLMQ_COMPAT_REFUSES, "'marlin-24'"},
    {"bnb", BNB_BUT("uint8"), "a.weight U8 64 1;a.weight.quant_state.bitsandbytes__nf4 U8 9", "transformers", LLMQ_COMPAT_WARNS, "bitsandbytes"},
    {"bnb", BNB_BUT("uint8"), "a.weight U8 64 1;a.weight.quant_state.bitsandbytes__nf4 U8 9", "llama.cpp", LLMQ_COMPAT_REFUSES, "NotImplementedError"},
    {"bnb storage", BNB_BUT("bfloat16"), "", "vllm", LLMQ_COMPAT_REFUSES, "uint8"},
    {"bnb state", BNB_BUT("uint8"), "a.weight U8 64 1", "transformers", LLMQ_COMPAT_REFUSES, "quant_state"},
    {"unknown", "{" HEAD ", \"quantization_config\": {\"quant_method\": \"no\\u0007vel\"}}", PLAIN, "vllm", LLMQ_COMPAT_REFUSES, "'no?vel'"},
};

static void folders_are_judged(void **state) {
    (void)state;
    mkdir(DIR, 0777);
    write_bytes(DIR "/tokenizer.json", "{}", 2);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        write_bytes(DIR "/config.json", folders[i].config, strlen(folders[i].config));
        write_weights(folders[i].weights, true);
        llmq_compat_report r = check(DIR, NULL);
        if (verdict(&r, folders[i].engine) != folders[i].verdict)
            fail_msg("%s: %s %s", folders[i].what, folders[i].engine, llmq_compat_verdict_name(verdict(&r, folders[i].engine)));
        if (folders[i].verdict != LLMQ_COMPAT_LOADS && !finds(&r, folders[i].engine, folders[i].verdict, folders[i].word))
            fail_msg("%s: %s: nothing about '%s'", folders[i].what, folders[i].engine, folders[i].word);
        llmq_compat_report_clear(&r);
    }
}

static void folders_lack_files(void **state) {
    (void)state;
    mkdir(DIR, 0777);
    write_bytes(DIR "/config.json", "{" HEAD "}", sizeof "{" HEAD "}" - 1);
    write_weights(PLAIN, false);
    remove(DIR "/tokenizer.json");
    llmq_compat_report r = check(DIR "/model.safetensors", "transformers,vllm,transformers");
    assert_int_equal(r.n_engines, 2);
    assert_true(finds(&r, "transformers", LLMQ_COMPAT_WARNS, "tokenizer"));
    assert_true(finds(&r, "transformers", LLMQ_COMPAT_WARNS, "format"));
    assert_true(finds(&r, "vllm", LLMQ_COMPAT_WARNS, "tokenizer"));
    llmq_compat_report_clear(&r);
    llmq_err err;
    assert_int_equal(llmq_compat_check(DIR, "vllm,ollama", &r, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "ollama"));
    assert_int_equal(llmq_compat_check(DIR, "", &r, &err), LLMQ_E_ARG);
    assert_int_equal(llmq_compat_check(DIR "/none", NULL, &r, &err), LLMQ_E_IO);
    /* damaged headers are one clear error */
    const char *bad[] = {"{\"a\": {\"dtype\": \"F16\"}}", "{\"a\": {\"shape\": [1]}}", "{\"a\": 3}", "[1]", "{\"a\": {\"dtype\": \"F16\", \"shape\": [-1]}}",
                         "{\"a\": {\"dtype\": \"F16\", \"shape\": [\"x\"]}}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char file[256];
        uint64_t n = strlen(bad[i]);
        memcpy(file, &n, 8);
        memcpy(file + 8, bad[i], n);
        write_bytes(DIR "/model.safetensors", file, n + 8);
        if (llmq_compat_check(DIR, NULL, &r, &err) != LLMQ_E_FORMAT) fail_msg("%s was taken", bad[i]);
        write_bytes(DIR "/model.safetensors", file, n + 7);
        assert_int_equal(llmq_compat_check(DIR, NULL, &r, &err), LLMQ_E_FORMAT);
    }
    write_bytes(DIR "/model.safetensors", "short", 5);
    assert_int_equal(llmq_compat_check(DIR, NULL, &r, &err), LLMQ_E_FORMAT);
    remove(DIR "/model.safetensors");
    assert_int_equal(llmq_compat_check(DIR, NULL, &r, &err), LLMQ_E_FORMAT);
}

/* ---- GGUF ---- */

static void sound_vocabulary(tiny_model *t) {
    llmq_str tokens[TINY_VOCAB];
    for (int i = 0; i < TINY_VOCAB; i++) tokens[i] = (llmq_str){"a", 1};
    tiny_init(t);
    meta_set_str(t->meta, "tokenizer.ggml.model", "gpt2", NULL);
    meta_set_str(t->meta, "tokenizer.ggml.pre", "smollm", NULL);
    meta_set_strs(t->meta, "tokenizer.ggml.tokens", tokens, TINY_VOCAB, NULL);
    meta_set_strs(t->meta, "tokenizer.ggml.merges", tokens, 1, NULL);
    meta_set_u32(t->meta, "tokenizer.ggml.bos_token_id", 1, NULL);
    meta_set_u32(t->meta, "tokenizer.ggml.eos_token_id", 2, NULL);
}

static void gguf_says(tiny_model *t, llmq_compat_verdict v, const char *word) {
    tiny_write(t, FILE_NAME, 0);
    llmq_compat_report r = check(FILE_NAME, NULL);
    assert_int_equal(verdict(&r, "vllm"), LLMQ_COMPAT_REFUSES);
    if (verdict(&r, "llama.cpp") != v) fail_msg("%s: %s", word, llmq_compat_verdict_name(verdict(&r, "llama.cpp")));
    if (v != LLMQ_COMPAT_LOADS && !finds(&r, "llama.cpp", v, word)) fail_msg("nothing about %s", word);
    llmq_compat_report_clear(&r);
}

static void gguf_files_are_judged(void **state) {
    (void)state;
    tiny_model t;
    llmq_str few[2] = {{"a", 1}, {"b", 1}};
    sound_vocabulary(&t);
    gguf_says(&t, LLMQ_COMPAT_LOADS, "");
    sound_vocabulary(&t);
    meta_set_str(t.meta, "tokenizer.ggml.pre", "my-own", NULL);
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "'my-own'");
    sound_vocabulary(&t);
    meta_remove(t.meta, "tokenizer.ggml.pre");
    gguf_says(&t, LLMQ_COMPAT_WARNS, "default");
    sound_vocabulary(&t);
    meta_remove(t.meta, "tokenizer.ggml.merges");
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "merges");
    sound_vocabulary(&t);
    meta_remove(t.meta, "tokenizer.ggml.eos_token_id");
    gguf_says(&t, LLMQ_COMPAT_WARNS, "eos_token_id");
    sound_vocabulary(&t);
    meta_set_strs(t.meta, "tokenizer.ggml.tokens", few, 2, NULL);
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "2 tokens, 48 rows");
    sound_vocabulary(&t);
    meta_remove(t.meta, "tokenizer.ggml.tokens");
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "vocabulary");
    sound_vocabulary(&t);
    meta_set_str(t.meta, "tokenizer.ggml.model", "mine", NULL);
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "'mine'");
    tiny_init(&t);
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "the key is missing");
    tiny_init(&t);
    meta_set_str(t.meta, "tokenizer.ggml.model", "none", NULL);
    gguf_says(&t, LLMQ_COMPAT_WARNS, "no tokenizer");
    sound_vocabulary(&t);
    meta_remove(t.meta, "llama.context_length");
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "llama.context_length");
    sound_vocabulary(&t);
    meta_set_u32(t.meta, "llama.rope.dimension_count", 4, NULL);
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "rope.dimension_count");
    sound_vocabulary(&t);
    meta_set_str(t.meta, "general.architecture", "novel", NULL);
    gguf_says(&t, LLMQ_COMPAT_REFUSES, "'novel'");
}

static void llama2c_is_refused_by_all(void **state) {
    (void)state;
    llmq_compat_report r = check(LLMQ_TEST_DATA "/stories260K/stories260K.bin", NULL);
    for (size_t i = 0; i < r.n_engines; i++) assert_int_equal(r.engines[i].verdict, LLMQ_COMPAT_REFUSES);
    assert_int_equal(r.n_engines, 4);
    llmq_compat_report_clear(&r);
}

static void memory_runs_out_cleanly(void **state) {
    (void)state;
    mkdir(DIR, 0777);
    write_bytes(DIR "/config.json", GPTQ, sizeof GPTQ - 1);
    write_weights(GPTQ_QKV, true);
    llmq_compat_report r;
    llmq_err err;
    llmq_status status = LLMQ_E_MEMORY;
    for (long n = 1; status != LLMQ_OK && n < 50; n++) {
        mem_fail_after(n);
        status = llmq_compat_check(DIR, NULL, &r, &err);
        mem_fail_after(0);
        if (status != LLMQ_OK) assert_int_equal(status, LLMQ_E_MEMORY);
    }
    assert_int_equal(status, LLMQ_OK);
    llmq_compat_report_clear(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(folders_are_judged), cmocka_unit_test(folders_lack_files),
                                       cmocka_unit_test(gguf_files_are_judged),
                                       cmocka_unit_test(llama2c_is_refused_by_all),
                                       cmocka_unit_test(memory_runs_out_cleanly)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
