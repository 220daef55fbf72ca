/* What a model takes in memory in the kinds of numbers that it can be stored in. */
#include "llmq.h"
#include "types/type.h"

/* A kind of weight by the smallest storage type that llmq has of it, and the cache that usually runs beside: there is
 * none below 8 bits. */
static const struct {
    const char *key, *name, *kv_name;
    llmq_type weight, kv;
} kinds[LLMQ_MEMORY_ROWS] = {
    {"fp32", "FP32", "f32", LLMQ_TYPE_F32, LLMQ_TYPE_F32},    {"fp16", "FP16", "f16", LLMQ_TYPE_F16, LLMQ_TYPE_F16},
    {"int8", "INT8", "q8_0", LLMQ_TYPE_Q8_0, LLMQ_TYPE_Q8_0}, {"int4", "4-bit", "f16", LLMQ_TYPE_Q4_0, LLMQ_TYPE_F16},
    {"int3", "3-bit", "f16", LLMQ_TYPE_Q3_K, LLMQ_TYPE_F16},  {"int2", "2-bit", "f16", LLMQ_TYPE_Q2_K, LLMQ_TYPE_F16}};

static double bits_of(llmq_type type) {
    return 8.0 * (double)type_row_bytes(type, TYPE_MAX_BLOCK) / TYPE_MAX_BLOCK;
}

int64_t llmq_memory_ctx(int64_t n_ctx_train) {
    return n_ctx_train > 0 && n_ctx_train < LLMQ_MEMORY_CTX ? n_ctx_train : LLMQ_MEMORY_CTX;
}

void llmq_memory_table(int64_t n_params, int64_t kv_bytes_per_token, int64_t n_ctx,
                       llmq_memory_row rows[LLMQ_MEMORY_ROWS]) {
    double cached = (double)kv_bytes_per_token * (double)n_ctx / 2;
    for (int i = 0; i < LLMQ_MEMORY_ROWS; i++) {
        double bits = bits_of(kinds[i].weight);
        rows[i] = (llmq_memory_row){.key = kinds[i].key,
                                    .name = kinds[i].name,
                                    .kv_name = kinds[i].kv_name,
                                    .bits = bits,
                                    .weights = (int64_t)((double)n_params * bits / 8),
                                    .kv = (int64_t)(cached * bits_of(kinds[i].kv) / 8)};
    }
}
