/* What the tests of products share: weights of every type, what products with them should be, and how far off they may
 * be. */
#ifndef LLMQ_TESTS_CUDA_PRODUCTS_H
#define LLMQ_TESTS_CUDA_PRODUCTS_H

#include "gpu.h"

#include "core/half.h"
#include "types/type.h"

/* A type, and how many columns have one scale (cuda/layout.h). */
typedef struct packing {
    llmq_type type;
    int group;
} packing;

/* Those with codes come first, then some that become f16, and those of f16 levels. */
static const packing packings[] = {
    {LLMQ_TYPE_Q4_0, 0},   {LLMQ_TYPE_Q4_1, 0},   {LLMQ_TYPE_IQ4_NL, 0}, {LLMQ_TYPE_Q8_0, 0},   {LLMQ_TYPE_Q4_K, 0},
    {LLMQ_TYPE_Q6_K, 0},   {LLMQ_TYPE_IQ4_XS, 0}, {LLMQ_TYPE_Q4_0, 64},  {LLMQ_TYPE_Q4_0, 128}, {LLMQ_TYPE_Q4_1, 64},
    {LLMQ_TYPE_Q4_1, 128}, {LLMQ_TYPE_Q5_0, 32},  {LLMQ_TYPE_Q5_0, 64},  {LLMQ_TYPE_Q5_0, 128}, {LLMQ_TYPE_F16, 0},
    {LLMQ_TYPE_F32, 0},    {LLMQ_TYPE_Q5_1, 0},   {LLMQ_TYPE_Q3_K, 0},   {LLMQ_TYPE_NF4, 0},    {LLMQ_TYPE_FP4, 0}};
#define N_PACKINGS (sizeof packings / sizeof *packings)
#define N_QUANTIZED 14

typedef struct problem {
    llmq_type type;
    int group;
    int64_t rows, cols;
    int n_tok;
    uint8_t *native;
    float *x, *bias; /* bias may be NULL */
} problem;

/* exact: scales of one, and inputs that are whole numbers up to 127 with one of 127 in each group: no rounding at all.
 */
static void random_block(const llmq_type_info *info, uint8_t *block, bool exact) {
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    for (int i = 0; i < info->block_bytes; i++) block[i] = (uint8_t)(rng_u32() >> 5);
    info->unpack(block, &grid, codes);
    for (int i = 0; i < info->block_len; i++) codes[i] = (uint8_t)(codes[i] % info->n_levels); /* FP4 has 15 */
    grid.d = grid.scale[0] =
        exact ? 1.0f : f16_to_f32(f32_to_f16(uniform(0.5f, 1.5f) * (rng_u32() & 1 ? 1.0f : -1.0f)));
    grid.dmin = grid.offset[0] = exact ? 2.0f : f16_to_f32(f32_to_f16(uniform(-1.0f, 1.0f)));
    if (exact)
        for (int g = 0; g < TYPE_MAX_GROUPS; g++) grid.sc[g] = (int8_t)(grid.sc[g] & 3);
    info->pack(&grid, codes, block);
}

/* The block at `to` gets the scale and minimum of the one at `from`, and no more than 16 levels from `low` on. */
static inline void join_group(const llmq_type_info *info, const uint8_t *from, int low, uint8_t *to) {
    llmq_grid grid, unused;
    uint8_t codes[TYPE_MAX_BLOCK];
    info->unpack(from, &grid, codes);
    info->unpack(to, &unused, codes);
    for (int i = 0; info->n_levels > 16 && i < info->block_len; i++) codes[i] = (uint8_t)(codes[i] % 16 + low);
    info->pack(&grid, codes, to);
}

/* In each row every `group` columns become one. */
static inline void make_groups(const problem *p, int group) {
    const llmq_type_info *info = type_info(p->type);
    int64_t row_blocks = p->cols / info->block_len, each = group / info->block_len;
    int low = 0;
    for (int64_t b = 0; b < p->rows * row_blocks; b++) {
        const int64_t in_group = b % row_blocks % each;
        if (in_group == 0) low = (int)(rng_u32() % 17);
        join_group(info, p->native + (b - in_group) * info->block_bytes, low, p->native + b * info->block_bytes);
    }
}

static inline problem make_problem(packing k, int64_t rows, int64_t cols, int n_tok, bool bias, bool exact) {
    const llmq_type type = k.type;
    const llmq_type_info *info = type_info(type);
    int64_t bytes = type_row_bytes(type, cols) * rows;
    problem p = {type, k.group, rows, cols, n_tok, malloc((size_t)bytes), NULL, NULL};
    if (type_is_float(info)) {
        float *w = random_floats((size_t)(rows * cols), -1, 1);
        info->from_f32(w, p.native, rows * cols);
        free(w);
    }
    for (int64_t b = 0; !type_is_float(info) && b < bytes; b += info->block_bytes)
        random_block(info, p.native + b, exact);
    if (k.group) make_groups(&p, k.group);
    p.x = random_floats((size_t)(n_tok * cols), -2, 2);
    if (exact)
        for (int64_t i = 0; i < n_tok * cols; i++) p.x[i] = i % 32 == 7 ? 127.0f : (float)((int)(rng_u32() % 15) - 7);
    if (bias) p.bias = random_floats((size_t)rows, -9, 9);
    return p;
}

/* "q4_0", "q4_0 of 128" */
static inline const char *name_of(const problem *p) {
    static char name[32];
    snprintf(name, sizeof name, p->group ? "%s of %d" : "%s", type_info(p->type)->name, p->group);
    return name;
}

static void drop_problem(problem *p) {
    free(p->native), free(p->x), free(p->bias);
}

/* x rounded to f16; rows whose largest magnitude is not from 1/16 to 2^15 as if that were from 2^14 to 2^15. */
static double *rounded_f16(const problem *p) {
    double *x = malloc((size_t)(p->n_tok * p->cols) * sizeof *x);
    for (int64_t t = 0; t < p->n_tok; t++) {
        float largest = 0;
        int exponent, up = 0;
        for (int64_t c = 0; c < p->cols; c++) largest = fmaxf(largest, fabsf(p->x[t * p->cols + c]));
        if (!(largest >= 0.0625f && largest < 32768.0f)) frexpf(largest, &exponent), up = 15 - exponent;
        for (int64_t c = 0; c < p->cols; c++) {
            const double scaled = ldexp((double)p->x[t * p->cols + c], up);
            x[t * p->cols + c] = ldexp((double)f16_to_f32(f32_to_f16((float)scaled)), -up);
        }
    }
    return x;
}

/* Tokens far from what f16 takes, beside ordinary ones; in every third the last column is the largest by far. */
static const float magnitudes[] = {1e5f, 1, 1e30f, 1e-30f, 0.02f, 4e4f, 0, 1e-41f};
#define N_MAGNITUDES ((int)(sizeof magnitudes / sizeof *magnitudes))
static inline void set_magnitudes(problem *p) {
    for (int t = 0; t < p->n_tok; t++)
        for (int64_t c = 0; c < p->cols; c++)
            p->x[t * p->cols + c] *= magnitudes[t % N_MAGNITUDES] * (c % 7 == 3                       ? 1e-4f
                                                                     : c == p->cols - 1 && t % 3 == 0 ? 300.0f
                                                                                                      : 1.0f);
}

static inline bool in_f16_levels(llmq_type type) {
    return type == LLMQ_TYPE_NF4 || type == LLMQ_TYPE_FP4;
}

/* A row of w with its levels rounded to f16 and its scales as they are. */
static void with_f16_levels(const problem *p, int64_t r, float *w) {
    const llmq_type_info *info = type_info(p->type);
    const uint8_t *block = p->native + r * type_row_bytes(p->type, p->cols);
    for (int64_t c = 0; c < p->cols; c += info->block_len, block += info->block_bytes) {
        llmq_grid grid;
        uint8_t codes[TYPE_MAX_BLOCK];
        info->unpack(block, &grid, codes);
        for (int i = 0; i < info->block_len; i++)
            w[c + i] = grid.scale[0] * f16_to_f32(f32_to_f16(info->levels[codes[i]]));
    }
}

/* want and the sum of magnitudes of every product (n_tok, rows), weights as the device has them */
static void reference(const problem *p, const double *x, double *want, double *mag) {
    int64_t row_bytes = type_row_bytes(p->type, p->cols);
    float *w = malloc((size_t)p->cols * sizeof *w);
    for (int64_t r = 0; r < p->rows; r++) {
        type_to_f32(p->type, p->native + r * row_bytes, w, p->cols);
        if (!p->group && cuda_packed_type(p->type) == LLMQ_TYPE_F16)
            for (int64_t c = 0; c < p->cols; c++) w[c] = f16_to_f32(f32_to_f16(w[c]));
        if (in_f16_levels(p->type)) with_f16_levels(p, r, w);
        for (int t = 0; t < p->n_tok; t++) {
            double sum = p->bias ? (double)p->bias[r] : 0, m = fabs(sum);
            for (int64_t c = 0; c < p->cols; c++) {
                sum += (double)w[c] * x[t * p->cols + c];
                m += fabs((double)w[c] * x[t * p->cols + c]);
            }
            want[t * p->rows + r] = sum;
            mag[t * p->rows + r] = m;
        }
    }
    free(w);
}

/* Packed, with the bias, as inputs of kernels. */
static inline cuda_matrix weights_on_gpu(const problem *p) {
    cuda_matrix w = {
        .type = p->group ? p->type : cuda_packed_type(p->type), .group = p->group, .rows = p->rows, .cols = p->cols};
    size_t bytes = cuda_pack_bytes(w.type, w.group, p->rows, p->cols);
    llmq_err err;
    assert_true(bytes > 0);
    void *packed = malloc(bytes);
    if (cuda_pack(p->type, p->group, p->rows, p->cols, p->native, packed, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    w.packed = input_of("weights", packed, bytes);
    free(packed);
    if (p->bias) w.bias = input_of("bias", p->bias, (size_t)p->rows * sizeof(float));
    return w;
}
static inline void drop_weights(const cuda_matrix *w) {
    gpu_free((void *)w->packed), gpu_free((void *)w->bias);
}

#define PAD 3 /* floats between rows of y */

static void compare(const problem *p, const float *y, const double *want, const double *mag, double tol,
                    const char *what) {
    for (int t = 0; t < p->n_tok; t++)
        for (int64_t r = 0; r < p->rows; r++) {
            double error = fabs((double)y[t * (p->rows + PAD) + r] - want[t * p->rows + r]);
            if (!(error <= tol * mag[t * p->rows + r] + 1e-45)) /* the last digit of f32 */
                fail_msg("%s: row %d token %d is %g, expected %g", what, (int)r, t, (double)y[t * (p->rows + PAD) + r],
                         want[t * p->rows + r]);
        }
}

#endif
