/* Folders of NF4 and FP4 opened as models are: matrices whose rows are whole blocks of 64 keep their 4 bits, whatever the
 * blocks of the file; others become floats. */
#include "support.h"

#include <math.h>

#include "core/half.h"
#include "formats/safetensors_write.h"
#include "formats/schemes/scheme.h"

#define DIR LLMQ_TEST_TMP "/bnb-folder"
#define CONFIG "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":64,\"num_hidden_layers\":1,\"num_attention_heads\":2," \
               "\"vocab_size\":32}"

typedef struct folder_case {
    int64_t rows, cols, block;
    bool fp4, nested;
    float scale;    /* of the first block; the others have about 1 */
    llmq_type type; /* what llmq must make of it */
} folder_case;

static const folder_case cases[] = {
    {5, 192, 64, false, false, 1, LLMQ_TYPE_NF4},    {5, 192, 64, true, true, 1, LLMQ_TYPE_FP4},
    {5, 192, 128, true, false, 1, LLMQ_TYPE_FP4}, /* blocks that begin in one row and end in the next */
    {70, 128, 4096, false, true, 1, LLMQ_TYPE_NF4},  {131, 64, 2048, false, false, 0, LLMQ_TYPE_NF4},
    {3, 64, 64, true, false, -2, LLMQ_TYPE_FP4},     {1, 64, 64, false, false, 65000, LLMQ_TYPE_NF4},
    {7, 100, 64, false, false, 1, LLMQ_TYPE_F16},    {9, 96, 64, true, true, 1, LLMQ_TYPE_F16},
    {9, 64, 32, false, false, 1, LLMQ_TYPE_F16},     {3, 64, 64, false, false, 1e5f, LLMQ_TYPE_F32}, /* as GGUF must hold it */
};

static uint32_t next_random(void) {
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static llmq_quantized *random_matrix(const folder_case *c, const llmq_type_info *grid) {
    llmq_quantized *q;
    assert_int_equal(quantized_create(grid, c->rows, c->cols, &q, NULL), LLMQ_OK);
    for (int64_t i = 0; i < quantized_grids(q); i++) {
        memset(&q->grids[i], 0, sizeof q->grids[i]);
        q->grids[i].scale[0] = q->grids[i].d = i ? 0.5f + (float)(next_random() & 0xffff) / 65536 : c->scale;
    }
    if (grid->settle) grid->settle(q);
    for (int64_t i = 0; i < c->rows * c->cols; i++) q->codes[i] = (uint8_t)(next_random() % (uint32_t)grid->n_levels);
    return q;
}

static void write_matrix(const llmq_scheme_spec *spec, const llmq_quantized *q) {
    const llmq_scheme *s = scheme_find("bnb");
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    llmq_st_tensor tensors[SCHEME_MAX_MEMBERS];
    void *data[SCHEME_MAX_MEMBERS];
    llmq_st_writer *st = NULL;
    llmq_err err = {0};
    int n = s->members(spec, q->rows, q->cols, members);
    for (int i = 0; i < n; i++) {
        data[i] = mem_alloc((size_t)members[i].bytes, 1);
        tensors[i] = (llmq_st_tensor){.dtype = members[i].dtype, .n_dims = members[i].n_dims, .bytes = members[i].bytes};
        snprintf(tensors[i].name, sizeof tensors[i].name, "P%s", members[i].suffix);
        for (int d = 0; d < members[i].n_dims; d++) tensors[i].dims[d] = members[i].dims[d];
    }
    if (s->split(spec, q, data, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    mkdir(DIR, 0777);
    if (st_writer_open(DIR, tensors, (size_t)n, 0, false, &st, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (int i = 0; i < n; i++) {
        assert_int_equal(st_writer_put(st, (size_t)i, data[i], (size_t)members[i].bytes, 0, &err), LLMQ_OK);
        mem_free(data[i]);
    }
    if (st_writer_finish(st, NULL, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    json_t *config = json_loads(CONFIG, 0, NULL);
    json_object_set_new(config, "quantization_config", s->config(spec));
    assert_int_equal(json_dump_file(config, DIR "/config.json", 0), 0);
    json_decref(config);
}

static void check(const folder_case *c, const llmq_quantized *q) {
    llmq_source *src = open_ok(DIR);
    const llmq_tensor *t = source_find(src, "P.weight");
    bool rounded = c->type == LLMQ_TYPE_F16;
    assert_non_null(t);
    if (t->type != c->type)
        fail_msg("%d x %d in blocks of %d is %s", (int)c->rows, (int)c->cols, (int)c->block, llmq_type_name(t->type));
    if (t->type == LLMQ_TYPE_NF4 || t->type == LLMQ_TYPE_FP4)
        assert_int_equal(t->bytes * 16, c->rows * c->cols * 9); /* 4.5 bits a weight */
    assert_int_equal(source_exact(src, t), !rounded);
    assert_int_equal(src->quant->n_rounded, rounded);
    assert_int_equal(source_load(src, t, false, NULL), LLMQ_OK);
    float *got = tensor_values(t), *want = mem_alloc((size_t)c->cols, sizeof *want);
    for (int64_t r = 0; r < c->rows; r++) {
        quantized_row_to_f32(q, r, want);
        for (int64_t k = 0; k < c->cols; k++) {
            float w = rounded ? f16_to_f32(f32_to_f16(want[k])) : want[k];
            if (got[r * c->cols + k] != w)
                fail_msg("case %d [%d][%d] is %g, not %g", (int)(c - cases), (int)r, (int)k, (double)got[r * c->cols + k], (double)w);
        }
    }
    mem_free(got);
    mem_free(want);
    source_close(src);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const folder_case *c = &cases[i];
        const llmq_scheme_spec spec = {.bits = 4, .group = c->block, .sym = true, .fp4 = c->fp4, .double_quant = c->nested};
        llmq_quantized *q = random_matrix(c, scheme_find("bnb")->grid(&spec));
        write_matrix(&spec, q);
        check(c, q);
        quantized_destroy(q);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
