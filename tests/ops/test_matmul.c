/* Matmul of every ISA against the C oracle, and the oracle against double arithmetic on the dequantized operands: every
 * storage type, odd rows and columns, few and many tokens, teams of 1..3, guarded outputs, bias. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "cpu/cpu.h"
#include "cpu/nf4.h"
#include "tests/isas.h"
#include "types/search.h"
#include "types/type.h"

static uint64_t rng_state = 0x9e3779b97f4a7c15u;

static uint32_t rng(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}
static float uniform(float lo, float hi) {
    return lo + (hi - lo) * (float)(rng() & 0xffffff) / 16777216.0f;
}

static llmq_team *teams[3];

/* Random codes and second-level scales of every value that the type's bits allow; moderate first-level scales. */
static void random_block(const llmq_type_info *info, uint8_t *block) {
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    for (int i = 0; i < info->block_bytes; i++) block[i] = (uint8_t)(rng() >> 5);
    info->unpack(block, &grid, codes);
    for (int i = 0; i < info->block_len; i++)
        if (codes[i] >= info->n_levels) codes[i] = 0; /* FP4 has 15 */
    grid.d = grid.scale[0] = f16_to_f32(f32_to_f16(uniform(0.5f, 1.5f) * (rng() & 1 ? 1.0f : -1.0f)));
    grid.dmin = grid.offset[0] = f16_to_f32(f32_to_f16(uniform(-1.0f, 1.0f)));
    info->pack(&grid, codes, block);
}

/* A weight of the type at an odd address when it may (float types come unaligned from safetensors). */
static llmq_tensor random_tensor(llmq_type type, int64_t rows, int64_t cols, void **buffer_out) {
    const llmq_type_info *info = type_info(type);
    int64_t bytes = type_row_bytes(type, cols) * rows;
    char *buffer = malloc((size_t)bytes + 2);
    char *data = buffer + (type_is_float(info) ? 1 : 0);
    if (type_is_float(info)) {
        for (int64_t i = 0; i < rows * cols; i++) {
            float x = uniform(-1, 1), stored;
            info->from_f32(&x, &stored, 1);
            memcpy(data + i * (bytes / (rows * cols)), &stored, (size_t)(bytes / (rows * cols)));
        }
    } else {
        for (int64_t b = 0; b < bytes / info->block_bytes; b++)
            random_block(info, (uint8_t *)data + b * info->block_bytes);
    }
    *buffer_out = buffer;
    return (llmq_tensor){
        .name = "w", .type = type, .n_dims = 2, .dims = {cols, rows, 1, 1}, .bytes = bytes, .data = data};
}

static float *random_floats(int64_t n, float lo, float hi) {
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = uniform(lo, hi);
    return x;
}

/* ---- one run */

typedef struct run_args {
    const llmq_backend_ops *ops;
    llmq_weight *w;
    llmq_acts *a;
    float *y;
    int64_t ldy;
} run_args;

static void run_worker(const llmq_worker *worker, void *arg) {
    run_args *r = arg;
    r->ops->acts_fill(worker, r->a, r->w->act);
    worker_barrier(worker);
    r->ops->matmul(worker, r->w, r->a, r->y, r->ldy);
}

#define GUARD 7.25e7f
#define PAD 3       /* floats between rows of y, and after the last */
#define EXACT 0x100 /* llmq_acts.exact, among the flags of weight_prepare */
#define SPLIT 0x200 /* inputs of 8 bits in two parts */

/* y (n_tok, rows + PAD), all guards checked. a keeps the filled activations (freed by the caller). */
static float *run(const llmq_backend_ops *ops, const llmq_tensor *t, int flags, const float *bias, const float *x,
                  int64_t n_tok, int n_team, llmq_acts *a) {
    llmq_weight w;
    const llmq_weight as_stored = {.rows = 1, .cols = 1};
    llmq_err err;
    int64_t rows = tensor_rows(t), cols = tensor_cols(t), ldy = rows + PAD;
    assert_int_equal(ops->weight_prepare(&w, t, flags & ~(EXACT | SPLIT), teams[n_team - 1], &err), LLMQ_OK);
    if (flags & SPLIT && w.act == ACT_Q8) w.act = ACT_Q8_SPLIT;
    w.bias = bias;
    w.after = n_tok % 3 == 0 ? NULL : n_tok % 3 == 1 ? &w : &as_stored;
    if (w.packed) w.native.data = NULL; /* as the engine may */
    *a = (llmq_acts){.n_tok = n_tok, .cols = cols, .x = x, .exact = (flags & EXACT) != 0};
    size_t bytes = ops->acts_bytes(w.act, n_tok, cols);
    unsigned char *form = mem_alloc(bytes + 64, 1);
    memset(form, 0xa5, bytes + 64);
    if (w.act == ACT_Q8 || w.act == ACT_Q8_SPLIT) a->q8 = form;
    if (w.act == ACT_Q16) a->q16 = form;
    if (w.act == ACT_BF16 || w.act == ACT_DENSE) a->bf16 = form;
    float *y = malloc((size_t)(n_tok * ldy) * sizeof *y);
    for (int64_t i = 0; i < n_tok * ldy; i++) y[i] = GUARD;
    run_args args = {ops, &w, a, y, ldy};
    team_run(teams[n_team - 1], run_worker, &args);
    for (int64_t i = 0; i < n_tok; i++)
        for (int64_t p = 0; p < PAD; p++) assert_true(y[i * ldy + rows + p] == GUARD);
    for (int i = 0; i < 64; i++) assert_int_equal(form[bytes + (size_t)i], 0xa5);
    ops->weight_release(&w);
    if (!a->q8) mem_free(form);
    return y;
}

/* Largest |y - want| relative to what rounding could make of it: the sum of magnitudes of each product. */
static double worst(const float *y, const double *want, const double *mag, int64_t n_tok, int64_t rows) {
    double w = 0;
    for (int64_t t = 0; t < n_tok; t++) {
        for (int64_t r = 0; r < rows; r++) {
            double e = fabs((double)y[t * (rows + PAD) + r] - want[t * rows + r]) / (mag[t * rows + r] + 1e-30);
            if (!(e <= w)) w = e;
        }
    }
    return w;
}

/* The root mean square of the errors beside that of the sums of magnitudes. */
static double mean_error(const float *y, const double *want, const double *mag, int64_t n_tok, int64_t rows) {
    double num = 0, den = 0;
    for (int64_t t = 0; t < n_tok; t++) {
        for (int64_t r = 0; r < rows; r++) {
            num += pow((double)y[t * (rows + PAD) + r] - want[t * rows + r], 2);
            den += pow(mag[t * rows + r], 2);
        }
    }
    return sqrt(num / den);
}

/* Tiles of bf16 instead of groups of 8 bits (cpu/matmul_amx.c). */
static bool in_tiles(const llmq_backend_ops *ops, int64_t n_tok) {
    return strcmp(ops->isa, "amx") == 0 && n_tok > ACT_FEW;
}
#define BF16_ERROR 0.008    /* of two factors, 2^-9 each, at worst aligned */
#define SPLIT_ERROR 2e-5    /* of inputs in two parts, 2^-17; and what the rests would give each other */
#define Q8_SPLIT_ERROR 2e-4 /* of all results: inputs rounded to 1/226 of 1/226 of the largest of 32 */
/* Of levels of 15 bits and inputs rounded to 1/4424 of the largest of 32 (cpu/nf4.h), half of which, 1.1e-4 of the
 * largest, may be twice as much of their mean magnitude. */
#define Q16_ERROR 4e-4

/* NF4 and FP4 by integers of 16 bits; otherwise their own levels are multiplied with inputs as they are. */
static bool in_16_bits(const llmq_backend_ops *ops, int64_t n_tok) {
    bool wide = strncmp(ops->isa, "avx512", 6) == 0 || strcmp(ops->isa, "amx") == 0;
    return strcmp(ops->isa, "c") != 0 && (wide || n_tok <= MATMUL_ALIKE);
}

/* What rounding may cost besides that of the sums; q8: the reference has inputs as they were rounded. */
static double allowed(const llmq_backend_ops *ops, llmq_type type, bool q8, int64_t n_tok) {
    bool tiles = in_tiles(ops, n_tok);
    if (strncmp(ops->isa, "avx512", 6) == 0 && n_tok > ACT_FEW && (type == LLMQ_TYPE_F16 || type == LLMQ_TYPE_BF16))
        return type == LLMQ_TYPE_BF16 && strcmp(ops->isa, "avx512bf16") == 0 ? BF16_ERROR / 2 : Q16_ERROR;
    if (q8 && tiles) return BF16_ERROR;
    if (type_info(type)->in_memory) return tiles ? BF16_ERROR : in_16_bits(ops, n_tok) ? Q16_ERROR : 1e-6;
    return tiles && !q8 && type != LLMQ_TYPE_F32 ? SPLIT_ERROR : 1e-6;
}

/* Panels of AVX-512 round Q6_K (cpu/layout.h), by half a step and what 8 bits of a fraction cost the largest code, 1/16
 * of a step; at the opposite of the other scale 5/8 more. */
static bool merged(const llmq_backend_ops *ops, llmq_type type, int64_t rows, int64_t n_tok) {
    return rows > ACT_FEW && type == LLMQ_TYPE_Q6_K && !in_tiles(ops, n_tok) &&
           (strncmp(ops->isa, "avx512", 6) == 0 || strcmp(ops->isa, "amx") == 0);
}
#define MERGED_STEPS 1.19

/* The steps of a row's columns, 0 where they are not rounded. */
static void merged_steps(const llmq_tensor *t, int64_t row, float *step) {
    const llmq_type_info *info = type_info(t->type);
    const int64_t blocks = tensor_cols(t) / info->block_len;
    for (int64_t b = 0; b < blocks; b++) {
        llmq_grid grid;
        uint8_t codes[TYPE_MAX_BLOCK];
        info->unpack((const char *)t->data + (row * blocks + b) * info->block_bytes, &grid, codes);
        for (int i = 0; i < info->block_len; i++) {
            float own = grid.scale[i / 16], other = grid.scale[i / 16 ^ 1];
            bool is = t->type == LLMQ_TYPE_Q6_K && (fabsf(own) < fabsf(other) || own == -other);
            step[b * info->block_len + i] = is ? fabsf(other) / LAYOUT_FINER : 0.0f;
        }
    }
}

/* Input c of token i as it was rounded. */
static double rounded(const llmq_acts *a, int parts, int64_t i, int64_t c) {
    const int64_t all = parts * a->n_tok, len = act_block_len(all), first = i * parts / len * len;
    act_block b = act_block_at(a, all, first);
    double x = 0;
    for (int part = 0; part < parts; part++) {
        int64_t g = c / 32 * b.n + part * (b.n / parts) + i - first / parts;
        x += (double)b.group[g].d * b.q[g * 32 + c % 32];
        if (b.outlier_at[g] == c % 32) x += (double)b.outlier[g];
    }
    return x;
}

/* want, mag (n_tok, rows) from dequantized weights; activations as the backend rounded them (Q8), or x itself. */
static void reference(const llmq_tensor *t, const float *bias, const llmq_acts *a, int parts, double *want,
                      double *mag) {
    int64_t rows = tensor_rows(t), cols = tensor_cols(t), row_bytes = type_row_bytes(t->type, cols);
    float *w = malloc((size_t)cols * sizeof *w);
    void *row = malloc((size_t)row_bytes);
    for (int64_t r = 0; r < rows; r++) {
        type_to_f32(t->type, memcpy(row, (const char *)t->data + r * row_bytes, (size_t)row_bytes), w, cols);
        for (int64_t i = 0; i < a->n_tok; i++) {
            double sum = bias ? (double)bias[r] : 0, m = fabs(sum);
            for (int64_t c = 0; c < cols; c++) {
                double x = a->q8 ? rounded(a, parts, i, c) : (double)a->x[i * cols + c];
                sum += (double)w[c] * x;
                m += fabs((double)w[c] * x);
            }
            want[i * rows + r] = sum;
            mag[i * rows + r] = m;
        }
    }
    free(w), free(row);
}

/* mag, with what rounding in panels may add to 1e-6 of it. */
static double *merged_mag(const llmq_tensor *t, const llmq_acts *a, int parts, const double *mag) {
    const int64_t rows = tensor_rows(t), cols = tensor_cols(t);
    double *out = malloc((size_t)(a->n_tok * rows) * sizeof *out);
    float *step = malloc((size_t)cols * sizeof *step);
    for (int64_t r = 0; r < rows; r++) {
        merged_steps(t, r, step);
        for (int64_t i = 0; i < a->n_tok; i++) {
            double sum = 0;
            for (int64_t c = 0; c < cols; c++) sum += (double)step[c] * fabs(rounded(a, parts, i, c));
            out[i * rows + r] = mag[i * rows + r] + MERGED_STEPS * 1e6 * sum;
        }
    }
    free(step);
    return out;
}

/* One product on every ISA and team. Tiles come last: what they are held against differs. flags: 0 or SPLIT. */
static void check_product(llmq_tensor t, const float *x, int64_t n_tok, const float *bias, int flags) {
    const int64_t rows = tensor_rows(&t), cols = tensor_cols(&t);
    const llmq_type type = t.type;
    const int parts = flags & SPLIT ? 2 : 1;
    const llmq_acts plain = {.n_tok = n_tok, .cols = cols, .x = x};
    size_t n = (size_t)(n_tok * rows);
    double *want = malloc(n * sizeof *want), *mag = malloc(n * sizeof *mag);
    llmq_acts first = {.q8 = NULL};
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        float *y1 = NULL;
        for (int team = 1; team <= 3; team++) {
            llmq_acts a;
            float *y = run(ops, &t, flags, bias, x, n_tok, team, &a);
            if (!y1) {
                y1 = y;
                if (isa == 0) {
                    first = a;
                    if (parts == 2) {
                        reference(&t, bias, &plain, 1, want, mag);
                        assert_true(mean_error(y, want, mag, n_tok, rows) < Q8_SPLIT_ERROR);
                    }
                    reference(&t, bias, &a, parts, want, mag);
                } else if (a.q8 && in_tiles(ops, n_tok)) {
                    mem_free(a.q8);
                } else if (a.q8) { /* activations are the same bits everywhere */
                    size_t codes = (size_t)(parts * n_tok * act_groups(cols)) * 32,
                           rest = act_group_offset(parts * n_tok, cols);
                    assert_memory_equal(a.q8, first.q8, codes);
                    assert_memory_equal((char *)a.q8 + rest, (char *)first.q8 + rest,
                                        codes / 32 * (sizeof(act_group) + sizeof(float) + 1));
                    mem_free(a.q8);
                }
                bool tiles = first.q8 && in_tiles(ops, n_tok);
                if (tiles) reference(&t, bias, &plain, 1, want, mag);
                double *more = merged(ops, type, parts * n_tok, n_tok) ? merged_mag(&t, &first, parts, mag) : NULL;
                double e = worst(y, want, more ? more : mag, n_tok, rows);
                free(more);
                if (!(e < allowed(ops, type, first.q8 != NULL, n_tok)))
                    fail_msg("%s %s rows %d cols %d n_tok %d parts %d: error %g", ops->isa, type_info(type)->name,
                             (int)rows, (int)cols, (int)n_tok, parts, e);
            } else {
                assert_memory_equal(y, y1, (size_t)(n_tok * (rows + PAD)) * sizeof *y);
                free(y);
                mem_free(a.q8);
            }
        }
        free(y1);
    }
    mem_free(first.q8);
    free(want), free(mag);
}

static void check_shape(llmq_type type, int64_t rows, int64_t cols, int64_t n_tok, bool with_bias) {
    void *buffer;
    llmq_tensor t = random_tensor(type, rows, cols, &buffer);
    float *x = random_floats(n_tok * cols, -2, 2), *bias = with_bias ? random_floats(rows, -9, 9) : NULL;
    check_product(t, x, n_tok, bias, 0);
    free(buffer), free(x), free(bias);
}

/* Inputs of which some are far larger than the rest of their group. */
static float *floats_with_outliers(int64_t n) {
    float *x = random_floats(n, -1, 1);
    for (int64_t i = rng() % 8; i < n; i += 1 + rng() % 90) x[i] *= uniform(5, 400);
    return x;
}

static void check_outliers(llmq_type type, int64_t rows, int64_t cols, int64_t n_tok, int flags) {
    void *buffer;
    llmq_tensor t = random_tensor(type, rows, cols, &buffer);
    float *x = floats_with_outliers(n_tok * cols), *bias = random_floats(rows, -9, 9);
    check_product(t, x, n_tok, flags ? bias : NULL, flags);
    free(buffer), free(x), free(bias);
}

/* Past ACT_FEW: every width of the last block of ACT_BLOCK, in test_quantized with its 19. */
static const int64_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 20, 33, 70};
#define N_TOKENS (sizeof tokens / sizeof *tokens)

static void test_quantized(void **state) {
    (void)state;
    for (size_t i = 0; type_at(i); i++) {
        const llmq_type_info *info = type_at(i);
        if (type_is_float(info)) continue;
        for (size_t k = 0; k < N_TOKENS; k++) {
            int64_t cols = info->block_len * (1 + (int64_t)rng() % (info->block_len == 32 ? 9 : 3));
            check_shape(info->id, 1 + (int64_t)rng() % 70, cols, tokens[k], k % 2);
            if (info->in_memory) continue;
            check_outliers(info->id, 1 + (int64_t)rng() % 70, cols + 256, tokens[k], 0);
            check_outliers(info->id, 1 + (int64_t)rng() % 70, cols, tokens[k], SPLIT);
        }
        for (int flags = 0; !info->in_memory && flags <= SPLIT; flags += SPLIT) {
            check_outliers(info->id, 33, 4352, 20, flags);
            check_outliers(info->id, 33, 4352, 7, flags); /* several lists of them (cpu/few_avx512.h) */
        }
        /* Several panels of columns: on AVX2; on AVX-512, unevenly divided. */
        check_shape(info->id, 33, info->block_len == 32 ? 1056 : 1280, 19, true);
        check_shape(info->id, 33, info->block_len == 256 ? 4352 : 4160, 19, true);
    }
}

/* All codes at one end, all inputs at +-127: the largest sums that there are (16 bits must hold them on AVX2). */
static void check_largest(const llmq_type_info *info, int code, int64_t n_tok) {
    const int64_t rows = 18, cols = 2 * info->block_len;
    void *buffer;
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    llmq_tensor t = random_tensor(info->id, rows, cols, &buffer);
    for (int64_t b = 0; b < t.bytes / info->block_bytes; b++) {
        uint8_t *block = (uint8_t *)buffer + b * info->block_bytes;
        info->unpack(block, &grid, codes);
        memset(codes, code, (size_t)info->block_len);
        info->pack(&grid, codes, block);
    }
    float *x = random_floats(n_tok * cols, 1, 1);
    const float most = info->in_memory ? 1.5f : 127.0f / 64; /* then d is 1 / 64 */
    for (int64_t i = 0; i < n_tok * cols; i++) x[i] = i / cols % 2 ? -most : most;
    llmq_acts a = {.q8 = NULL};
    float *y = run(backend_cpu_isa("c"), &t, 0, NULL, x, n_tok, 1, &a);
    for (int64_t i = 0; a.q8 && i < n_tok * cols; i++) assert_int_equal(abs(((int8_t *)a.q8)[i]), 127);
    mem_free(a.q8);
    free(y);
    check_product(t, x, n_tok, NULL, 0);
    free(buffer), free(x);
}

/* More rows of inputs than a pass has, and more tiles of weights than take turns, with several panels of columns
 * (cpu/matmul_drive.h). */
static void test_passes(void **state) {
    (void)state;
    check_outliers(LLMQ_TYPE_Q4_0, 150, 1056, 127, 0);
    check_outliers(LLMQ_TYPE_Q2_K, 150, 1280, 127, 0);
    check_outliers(LLMQ_TYPE_Q6_K, 150, 1280, 65, SPLIT);
    check_outliers(LLMQ_TYPE_IQ4_NL, 150, 1056, 127, 0);
}

#if defined(__x86_64__)
/* Right, and the same bits, whether streams are asked for or come alone (cpu/few_avx512.h). */
static void check_streams(llmq_type type, int64_t rows, int64_t cols, int64_t n_tok, int flags) {
    void *buffer;
    llmq_tensor t = random_tensor(type, rows, cols, &buffer);
    float *x = floats_with_outliers(n_tok * cols), *bias = random_floats(rows, -9, 9);
    for (int alone = 0; alone < 2; alone++) {
        cpu_set_streams_alone(alone);
        check_product(t, x, n_tok, bias, flags);
    }
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        float *y[2];
        for (int alone = 0; alone < 2; alone++) {
            llmq_acts a;
            cpu_set_streams_alone(alone);
            y[alone] = run(ops, &t, flags, bias, x, n_tok, 2, &a);
            mem_free(a.q8);
        }
        assert_memory_equal(y[0], y[1], (size_t)(n_tok * (rows + PAD)) * sizeof **y);
        free(y[0]), free(y[1]);
    }
    cpu_set_streams_alone(-1);
    free(buffer), free(x), free(bias);
}

/* So long that where streams come alone one worker, or two, read parts of their rows side by side, three do not; and
 * that two or three share pieces of the end. So short that there are fewer tiles than take turns. With an odd number of
 * groups, and less than a tile at the end. */
static void test_long(void **state) {
    (void)state;
    check_streams(LLMQ_TYPE_Q4_0, 4130, 544, 1, 0);
    check_streams(LLMQ_TYPE_Q4_0, 4130, 544, 9, 0);
    check_streams(LLMQ_TYPE_Q4_K, 4130, 512, 1, 0);
    check_streams(LLMQ_TYPE_Q6_K, 4130, 512, 1, SPLIT);
    check_streams(LLMQ_TYPE_Q8_0, 4130, 288, 8, SPLIT);
    check_streams(LLMQ_TYPE_Q5_0, 90, 96, 3, 0);
    check_streams(LLMQ_TYPE_Q5_K, 90, 512, 1, SPLIT);
}
#endif

static void test_largest(void **state) {
    (void)state;
    for (size_t i = 0; type_at(i); i++) {
        const llmq_type_info *info = type_at(i);
        if (type_is_float(info)) continue;
        for (int64_t n_tok = 1; n_tok <= 19; n_tok += 3) {
            check_largest(info, 0, n_tok);
            check_largest(info, info->n_levels - 1, n_tok);
        }
    }
}

/* Each weight by itself, seen through an input of one column: rounded where it may be, by no more than it may. Scales
 * that are 0, opposites and the ends of what they may be are among them. */
static void check_merged(const llmq_backend_ops *ops, llmq_type type) {
    enum { ROWS = 37, COLS = 512 };
    const llmq_type_info *info = type_info(type);
    void *buffer;
    llmq_acts a;
    llmq_tensor t = random_tensor(type, ROWS, COLS, &buffer);
    for (int64_t b = 0; b < t.bytes / info->block_bytes; b++) {
        llmq_grid grid;
        uint8_t codes[TYPE_MAX_BLOCK], *block = (uint8_t *)buffer + b * info->block_bytes;
        info->unpack(block, &grid, codes);
        grid.sc[b % 8] = 0;
        grid.sc[10] = (int8_t)info->search->sc_min, grid.sc[11] = (int8_t)info->search->sc_max;
        if (type != LLMQ_TYPE_Q2_K) grid.sc[8] = 31, grid.sc[9] = -31;
        info->pack(&grid, codes, block);
    }
    float *x = calloc(COLS * COLS, sizeof *x), step[COLS];
    for (int c = 0; c < COLS; c++) x[c * COLS + c] = c % 2 ? -1 : 1;
    double *want = malloc(COLS * ROWS * sizeof *want), *mag = malloc(COLS * ROWS * sizeof *mag);
    float *y = run(ops, &t, 0, NULL, x, COLS, 2, &a);
    reference(&t, NULL, &a, 1, want, mag);
    int n_rounded = 0;
    double squares = 0;
    for (int r = 0; r < ROWS; r++) {
        merged_steps(&t, r, step);
        for (int c = 0; c < COLS; c++) {
            double e = fabs((double)y[c * (ROWS + PAD) + r] - want[c * ROWS + r]), most = 1e-6 * mag[c * ROWS + r];
            if (!(e <= most + (double)step[c] * MERGED_STEPS))
                fail_msg("%s %s, row %d, column %d: error %g, step %g", ops->isa, info->name, r, c, e, (double)step[c]);
            if (step[c] > 0) n_rounded++, squares += pow(e / (double)step[c], 2);
        }
    }
    if (type == LLMQ_TYPE_Q6_K && !(n_rounded > ROWS * COLS / 3 && squares / n_rounded < 1.1 / 12))
        fail_msg("%d rounded, squares %g", n_rounded, squares);
    mem_free(a.q8);
    free(buffer), free(x), free(y), free(want), free(mag);
}

static void test_merged(void **state) {
    (void)state;
    const llmq_backend_ops *ops = backend_cpu_isa("avx512");
    if (!ops) skip();
    check_merged(ops, LLMQ_TYPE_Q2_K);
    check_merged(ops, LLMQ_TYPE_Q3_K);
    check_merged(ops, LLMQ_TYPE_Q6_K);
}

static void test_float(void **state) {
    (void)state;
    const llmq_type types[] = {LLMQ_TYPE_F32, LLMQ_TYPE_F16, LLMQ_TYPE_BF16};
    const int64_t cols[] = {1, 7, 15, 16, 17, 65, 128, 172, 300};
    for (int i = 0; i < 3; i++)
        for (size_t k = 0; k < N_TOKENS; k++)
            check_shape(types[i], 1 + (int64_t)rng() % 70, cols[rng() % 9], tokens[k], k % 2);
    for (int i = 0; i < 3; i++) check_shape(types[i], 70, 2107, 70, true); /* several blocks of columns and tokens */
}

/* Rows of BF16 whose inputs must not be rounded. */
static void test_exact(void **state) {
    (void)state;
    const int64_t rows = 37, cols = 300, n_tok = 3 * ACT_FEW;
    void *buffer;
    llmq_acts a;
    llmq_tensor t = random_tensor(LLMQ_TYPE_BF16, rows, cols, &buffer);
    float *x = random_floats(n_tok * cols, -2, 2);
    double *want = malloc((size_t)(n_tok * rows) * sizeof *want), *mag = malloc((size_t)(n_tok * rows) * sizeof *mag);
    reference(&t, NULL, &(llmq_acts){.n_tok = n_tok, .cols = cols, .x = x}, 1, want, mag);
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        float *y = run(ops, &t, EXACT, NULL, x, n_tok, 2, &a);
        double e = worst(y, want, mag, n_tok, rows), limit = in_tiles(ops, n_tok) ? SPLIT_ERROR : 1e-6;
        if (!(e < limit)) fail_msg("%s: error %g", ops->isa, e);
        free(y);
    }
    free(want), free(mag), free(x), free(buffer);
}

/* Up to MATMUL_ALIKE tokens get the very bits that each gets alone. */
static void check_alike(const llmq_backend_ops *ops, llmq_type type, int64_t rows, int64_t cols, int flags) {
    void *buffer;
    llmq_acts a;
    llmq_tensor t = random_tensor(type, rows, cols, &buffer);
    float *x = floats_with_outliers(MATMUL_ALIKE * cols), *bias = random_floats(rows, -9, 9), *alone[MATMUL_ALIKE];
    int64_t ldy = rows + PAD;
    for (int i = 0; i < MATMUL_ALIKE; i++) {
        alone[i] = run(ops, &t, flags, bias, x + i * cols, 1, 2, &a);
        mem_free(a.q8);
    }
    for (int64_t n = 2; n <= MATMUL_ALIKE; n++) {
        float *y = run(ops, &t, flags, bias, x, n, 2, &a);
        for (int64_t i = 0; i < n; i++)
            if (memcmp(y + i * ldy, alone[i], (size_t)rows * sizeof *y) != 0)
                fail_msg("%s %s %d x %d: token %d of %d differs from what it is alone", ops->isa, type_info(type)->name,
                         (int)rows, (int)cols, (int)i, (int)n);
        mem_free(a.q8);
        free(y);
    }
    for (int i = 0; i < MATMUL_ALIKE; i++) free(alone[i]);
    free(buffer), free(x), free(bias);
}

static void test_alike(void **state) {
    (void)state;
    for (size_t i = 0; type_at(i); i++) {
        const llmq_type_info *info = type_at(i);
        for (int isa = 0; isa < N_ISAS; isa++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
            if (!ops) continue;
            check_alike(ops, info->id, 37, type_is_float(info) ? 301 : info->block_len == 32 ? 160 : 512, 0);
            check_alike(ops, info->id, 50, type_is_float(info) ? 2107 : 1280, 0);
            if (!type_is_float(info) && !info->in_memory) check_alike(ops, info->id, 37, 512, SPLIT);
        }
    }
}

/* Up to ACT_FEW tokens get the very bits of AVX-512, by vectors or by tiles of bytes (cpu/few_amx.c), which take split
 * inputs from 5 tokens on. */
static void test_few_as_avx512(void **state) {
    (void)state;
    const llmq_backend_ops *ops[] = {backend_cpu_isa("avx512bf16"), backend_cpu_isa("amx")};
    for (size_t i = 0; ops[1] && type_at(i); i++) {
        for (int64_t n = 4; n <= ACT_FEW; n++) {
            const llmq_type_info *info = type_at(i);
            int64_t rows = n % 2 ? 37 : 48, cols = n % 3 == 0 ? 1280 : n % 3 == 1 && info->block_len <= 32 ? 160 : 512;
            void *buffer;
            llmq_tensor t = random_tensor(info->id, rows, cols, &buffer);
            float *x = floats_with_outliers(n * cols), *bias = random_floats(rows, -9, 9), *y[2];
            static const int flags[] = {0, PREP_BF16, SPLIT};
            for (int f = 0; f < 3; f++) {
                for (int k = 0; k < 2; k++) {
                    llmq_acts a;
                    y[k] = run(ops[k], &t, flags[f], n % 2 ? bias : NULL, x, n, 2, &a);
                    mem_free(a.q8);
                }
                if (memcmp(y[0], y[1], (size_t)(n * (rows + PAD)) * sizeof **y) != 0)
                    fail_msg("%s %d x %d: %d tokens differ from AVX-512", info->name, (int)rows, (int)cols, (int)n);
                free(y[0]), free(y[1]);
            }
            free(x), free(bias), free(buffer);
        }
    }
}

/* Rounding activations to 8 bits may cost what it costs and no more: of an output, the squared step of 1 / 127 over 12,
 * times the mean square of a weight, times COLS; outliers add nothing. */
static void check_activation_error(float outlier) {
    enum { ROWS = 32, COLS = 1024, TOK = 4 };
    void *buffer;
    llmq_acts a;
    llmq_tensor t = random_tensor(LLMQ_TYPE_Q4_0, ROWS, COLS, &buffer);
    float *x = random_floats(TOK * COLS, -1, 1);
    for (int i = 5; i < TOK * COLS; i += 320) x[i] = outlier;
    double want[TOK * ROWS], mag[TOK * ROWS], num = 0, den = 0;
    float *y = run(backend_cpu_isa("c"), &t, 0, NULL, x, TOK, 1, &a);
    llmq_acts exact = {.n_tok = TOK, .cols = COLS, .x = x};
    reference(&t, NULL, &exact, 1, want, mag);
    for (int i = 0; i < TOK; i++) {
        for (int r = 0; r < ROWS; r++) {
            num += pow((double)y[i * (ROWS + PAD) + r] - want[i * ROWS + r], 2);
            den += pow(want[i * ROWS + r], 2);
        }
    }
    assert_true(num / (TOK * ROWS) < 2e-4 * COLS && num > 0);
    mem_free(a.q8);
    free(y), free(x), free(buffer);
}

static void test_activation_error(void **state) {
    (void)state;
    check_activation_error(1);
    check_activation_error(100);
}

/* Which inputs count as outliers, and what is left of their groups. */
static void test_outliers(void **state) {
    (void)state;
    enum { COLS = 1000, GROUPS = 32 };
    float x[COLS];
    for (int i = 0; i < COLS; i++) x[i] = i % 32 == 7 ? 1.0f : 0.5f;
    x[3 * 32 + 20] = -9;               /* far above what is usual, 1.4 or so */
    x[4 * 32 + 1] = x[4 * 32 + 2] = 9; /* two of them: to take one out would gain nothing */
    x[5 * 32 + 31] = 2;                /* below the bound: 3 are gained where its square is 3.7 */
    x[6 * 32 + 31] = 2.5f;             /* just above it, 5.25 */
    x[31 * 32 + 2] = 50;               /* in the last group, of 8 */
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        llmq_acts a = {.n_tok = 1, .cols = COLS, .x = x, .q8 = mem_alloc(ops->acts_bytes(ACT_Q8, 1, COLS), 1)};
        ops->acts_fill(&(llmq_worker){0, 1, teams[0]}, &a, ACT_Q8);
        act_block b = act_block_at(&a, 1, 0);
        for (int g = 0; g < GROUPS; g++) {
            int want = g == 3 ? 20 : g == 6 ? 31 : g == 31 ? 2 : ACT_NO_OUTLIER;
            float largest = g == 4 ? 9 : g == 5 ? 2 : 1, least = largest / 127.0f;
            assert_int_equal(b.outlier_at[g], want);
            assert_true(b.outlier[g] == (g == 3 ? -9.0f : g == 6 ? 2.5f : g == 31 ? 50.0f : 0.0f));
            assert_true(b.group[g].d >= least && b.group[g].d < least * 1.126f);
            int32_t sum[2] = {0};
            for (int i = 0; i < 32; i++) {
                float held = b.group[g].d * (float)b.q[g * 32 + i],
                      in = g * 32 + i < COLS && i != want ? x[g * 32 + i] : 0;
                assert_true(fabsf(held - in) <= 0.501f * b.group[g].d);
                sum[i / 16] += b.q[g * 32 + i];
            }
            assert_int_equal(b.group[g].start, -128 * (sum[0] + sum[1]));
            assert_true(b.group[g].sum[0] == sum[0] && b.group[g].sum[1] == sum[1]);
        }
        mem_free(a.q8);
    }
}

/* A scale that is not finite, or a weight in floats, shows in every result of its row, and in no other. */
static void check_damaged(const llmq_backend_ops *ops, const llmq_type_info *info, int64_t n_tok, float scale) {
    enum { ROWS = 37, AT = 21 };
    void *buffer;
    llmq_acts a;
    const int64_t cols = info->block_len <= 32 ? 96 : 512;
    llmq_tensor t = random_tensor(info->id, ROWS, cols, &buffer);
    uint8_t codes[TYPE_MAX_BLOCK], *block = (uint8_t *)t.data + AT * type_row_bytes(info->id, cols);
    if (type_is_float(info)) {
        if (info->id == LLMQ_TYPE_F32) memcpy(block, &scale, 4);
        const uint16_t half = info->id == LLMQ_TYPE_F16 ? f32_to_f16(scale) : f32_to_bf16(scale);
        if (info->id != LLMQ_TYPE_F32) memcpy(block, &half, 2);
    } else {
        llmq_grid grid;
        info->unpack(block, &grid, codes);
        grid.d = grid.scale[0] = scale;
        info->pack(&grid, codes, block);
    }
    float *x = random_floats(n_tok * cols, -1, 1), *y = run(ops, &t, 0, NULL, x, n_tok, 1, &a);
    for (int64_t i = 0; i < n_tok; i++)
        for (int r = 0; r < ROWS; r++)
            if (isfinite(y[i * (ROWS + PAD) + r]) == (r == AT))
                fail_msg("%s %s, %d tokens: row %d is %g", ops->isa, info->name, (int)n_tok, r,
                         (double)y[i * (ROWS + PAD) + r]);
    mem_free(a.q8);
    free(y), free(x), free(buffer);
}

/* Where a weight's scale is 0 its codes count for nothing, whatever the inputs. */
static void check_no_scale(const llmq_backend_ops *ops, const llmq_type_info *info, int64_t n_tok) {
    enum { ROWS = 37 };
    void *buffer;
    llmq_acts a;
    const int64_t cols = info->block_len == 32 ? 96 : 512;
    llmq_tensor t = random_tensor(info->id, ROWS, cols, &buffer);
    for (int64_t i = 0; i < t.bytes / info->block_bytes; i++) {
        llmq_grid grid;
        uint8_t codes[TYPE_MAX_BLOCK], *block = (uint8_t *)buffer + i * info->block_bytes;
        info->unpack(block, &grid, codes);
        grid.d = grid.scale[0] = grid.dmin = grid.offset[0] = 0;
        info->pack(&grid, codes, block);
    }
    float *x = floats_with_outliers(n_tok * cols), *y = run(ops, &t, 0, NULL, x, n_tok, 1, &a);
    for (int64_t i = 0; i < n_tok; i++)
        for (int r = 0; r < ROWS; r++)
            if (y[i * (ROWS + PAD) + r] != 0)
                fail_msg("%s %s: %g", ops->isa, info->name, (double)y[i * (ROWS + PAD) + r]);
    mem_free(a.q8);
    free(y), free(x), free(buffer);
}

static void test_scales(void **state) {
    (void)state;
    for (size_t i = 0; type_at(i); i++)
        for (int isa = 0; isa < N_ISAS; isa++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
            if (!ops || type_at(i)->in_memory) continue;
            for (int64_t n_tok = 3; n_tok <= 20; n_tok += 17) { /* few, many */
                check_damaged(ops, type_at(i), n_tok, NAN);
                check_damaged(ops, type_at(i), n_tok, INFINITY);
                if (!type_is_float(type_at(i))) check_no_scale(ops, type_at(i), n_tok);
            }
        }
}

/* Of NF4 or FP4, from the formula of their blocks; rounded: with levels as the kernels' integers have them. */
static void block_reference(const llmq_tensor *t, const float *x, int64_t n_tok, bool rounded, double *want,
                            double *mag) {
    const llmq_type_info *info = type_info(t->type);
    int64_t rows = tensor_rows(t), cols = tensor_cols(t), n_blocks = cols / QK_NF4;
    memset(want, 0, (size_t)(n_tok * rows) * sizeof *want);
    memset(mag, 0, (size_t)(n_tok * rows) * sizeof *mag);
    for (int64_t b = 0; b < rows * n_blocks; b++) {
        llmq_grid grid;
        uint8_t codes[QK_NF4];
        info->unpack((const block_nf4 *)t->data + b, &grid, codes);
        for (int64_t i = 0; i < QK_NF4; i++) {
            double level = (double)info->levels[codes[i]];
            if (rounded) level = rint(level * LEVEL16_ONE) / LEVEL16_ONE;
            for (int64_t k = 0; k < n_tok; k++) {
                double p = (double)grid.scale[0] * level * (double)x[k * cols + b % n_blocks * QK_NF4 + i];
                want[k * rows + b / n_blocks] += p;
                mag[k * rows + b / n_blocks] += fabs(p);
            }
        }
    }
}

/* Where nothing is rounded but levels, products of 16 bits give the sums of their integers. */
static void test_nf4_integers(void **state) {
    (void)state;
    enum { ROWS = 37, COLS = 832 };
    const llmq_type types[] = {LLMQ_TYPE_NF4, LLMQ_TYPE_FP4};
    for (int i = 0; i < 2 * (int)N_TOKENS * N_ISAS; i++) {
        llmq_type type = types[i % 2];
        int64_t n_tok = tokens[(size_t)(i / 2) % N_TOKENS];
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i / 2 / (int)N_TOKENS]);
        if (!ops || in_tiles(ops, n_tok)) continue;
        void *buffer;
        llmq_acts a;
        llmq_tensor t = random_tensor(type, ROWS, COLS, &buffer);
        float *x = random_floats(n_tok * COLS, -ACT16_MAX, ACT16_MAX);
        double *want = malloc((size_t)(n_tok * ROWS) * sizeof *want),
               *mag = malloc((size_t)(n_tok * ROWS) * sizeof *mag);
        for (int64_t k = 0; k < n_tok * COLS; k++) x[k] = k % 32 == k / 32 % 32 ? ACT16_MAX : rintf(x[k]);
        float *y = run(ops, &t, 0, NULL, x, n_tok, 2, &a);
        block_reference(&t, x, n_tok, in_16_bits(ops, n_tok), want, mag);
        double e = worst(y, want, mag, n_tok, ROWS);
        if (!(e < 1e-6)) fail_msg("%s %s n_tok %d: error %g", ops->isa, type_info(type)->name, (int)n_tok, e);
        free(buffer), free(x), free(y), free(want), free(mag);
    }
}

/* All that is rounded on the way costs less than weights in F16 would. */
static void test_nf4_error(void **state) {
    (void)state;
    enum { ROWS = 64, COLS = 1024, TOK = 8 };
    for (int isa = 1; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        void *buffer;
        llmq_acts a;
        llmq_tensor t = random_tensor(LLMQ_TYPE_NF4, ROWS, COLS, &buffer);
        float *x = random_floats(TOK * COLS, -1, 1), w[COLS], *y = run(ops, &t, 0, NULL, x, TOK, 1, &a);
        double want[TOK * ROWS], mag[TOK * ROWS], ours = 0, halves = 0;
        block_reference(&t, x, TOK, false, want, mag);
        for (int r = 0; r < ROWS; r++) {
            type_to_f32(t.type, (const block_nf4 *)t.data + r * COLS / QK_NF4, w, COLS);
            for (int k = 0; k < TOK; k++) {
                double sum = 0;
                for (int c = 0; c < COLS; c++) sum += (double)f16_to_f32(f32_to_f16(w[c])) * (double)x[k * COLS + c];
                halves += pow(sum - want[k * ROWS + r], 2);
                ours += pow((double)y[k * (ROWS + PAD) + r] - want[k * ROWS + r], 2);
            }
        }
        if (!(ours > 0 && ours < halves)) fail_msg("%s: %g, in F16 %g", ops->isa, sqrt(ours), sqrt(halves));
        free(buffer), free(x), free(y);
    }
}

static void test_bf16(void **state) {
    (void)state;
    const llmq_type types[] = {LLMQ_TYPE_F32, LLMQ_TYPE_F16, LLMQ_TYPE_BF16};
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        for (int i = 0; i < 18; i++) {
            int64_t rows = 1 + (int64_t)rng() % 70, cols = 1 + (int64_t)rng() % 600,
                    n_tok = tokens[(size_t)i % N_TOKENS];
            void *buffer;
            llmq_tensor t = random_tensor(types[i % 3], rows, cols, &buffer);
            float *x = random_floats(n_tok * cols, -2, 2), *bias = random_floats(rows, -1, 1), *y1 = NULL;
            double *want = malloc((size_t)(n_tok * rows) * sizeof *want),
                   *mag = malloc((size_t)(n_tok * rows) * sizeof *mag);
            for (int team = 1; team <= 3; team++) {
                llmq_acts a;
                float *y = run(ops, &t, PREP_BF16, bias, x, n_tok, team, &a);
                a.q8 = NULL;
                reference(&t, bias, &a, 1, want, mag);
                assert_true(worst(y, want, mag, n_tok, rows) < BF16_ERROR);
                if (y1) assert_memory_equal(y, y1, (size_t)(n_tok * (rows + PAD)) * sizeof *y);
                if (!y1)
                    y1 = y;
                else
                    free(y);
            }
            free(y1), free(buffer), free(x), free(bias), free(want), free(mag);
        }
    }
}

/* Zero, tiny, huge and non-finite activations. */
static void check_odd(const llmq_backend_ops *ops, llmq_type type, int n_tok, int flags) {
    enum { ROWS = 20, COLS = 256 };
    void *buffer;
    llmq_tensor t = random_tensor(type, ROWS, COLS, &buffer);
    float *x = random_floats(18 * COLS, -1, 1);
    for (int c = 0; c < COLS; c++) {
        x[c] = 0;
        x[COLS + c] *= 1e-38f;
        x[2 * COLS + c] *= 1e30f;
    }
    x[3 * COLS + 40] = NAN;
    x[4 * COLS + 3] = INFINITY;
    x[5 * COLS] = -INFINITY;
    x[5 * COLS + 1] = NAN;
    llmq_acts a;
    float *y = run(ops, &t, flags, NULL, x, n_tok, 1, &a);
    bool floats = type_info(type)->in_memory && !in_16_bits(ops, n_tok);
    for (int r = 0; r < ROWS; r++) {
        assert_true(y[r] == 0);
        assert_true(floats ? fabsf(y[ROWS + PAD + r]) < 1e-36f : y[ROWS + PAD + r] == 0);
        assert_true(isfinite(y[2 * (ROWS + PAD) + r]));
        for (int k = 3; k < 6; k++) assert_false(isfinite(y[k * (ROWS + PAD) + r]));
    }
    mem_free(a.q8);
    free(y), free(x), free(buffer);
}

/* A pass of rows, and more, whose every group is an outlier in itself. */
static void check_all_damaged(const llmq_backend_ops *ops, llmq_type type) {
    enum { ROWS = 20, COLS = 1536, TOK = 125 };
    void *buffer;
    llmq_acts a;
    llmq_tensor t = random_tensor(type, ROWS, COLS, &buffer);
    float *x = random_floats(TOK * COLS, -1, 1);
    for (int i = 0; i < TOK * COLS; i++) x[i] = NAN;
    float *y = run(ops, &t, 0, NULL, x, TOK, 1, &a);
    for (int k = 0; k < TOK; k++)
        for (int r = 0; r < ROWS; r++) assert_false(isfinite(y[k * (ROWS + PAD) + r]));
    mem_free(a.q8);
    free(y), free(x), free(buffer);
}

static void test_odd_activations(void **state) {
    (void)state;
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        for (int n_tok = 6; n_tok <= 18; n_tok += 6) {
            check_odd(ops, LLMQ_TYPE_Q8_0, n_tok, 0);
            check_odd(ops, LLMQ_TYPE_Q8_0, n_tok, SPLIT);
            check_odd(ops, LLMQ_TYPE_NF4, n_tok, 0);
            check_odd(ops, LLMQ_TYPE_Q4_0, n_tok, 0);
            check_odd(ops, LLMQ_TYPE_Q2_K, n_tok, 0);
            check_odd(ops, LLMQ_TYPE_Q6_K, n_tok, 0);
        }
        check_all_damaged(ops, LLMQ_TYPE_Q2_K);
        check_all_damaged(ops, LLMQ_TYPE_IQ4_NL);
    }
}

static void test_refusals(void **state) {
    (void)state;
    void *buffer;
    llmq_tensor good = random_tensor(LLMQ_TYPE_Q4_0, 20, 64, &buffer), t;
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        llmq_weight w;
        llmq_err err;
        if (!ops) continue;
        t = good;
        t.dims[0] = 65;
        assert_int_equal(ops->weight_prepare(&w, &t, 0, teams[0], &err), LLMQ_E_FORMAT);
        t = good;
        t.bytes--;
        assert_int_equal(ops->weight_prepare(&w, &t, 0, teams[0], &err), LLMQ_E_FORMAT);
        t = good;
        t.type = (llmq_type)29;
        assert_int_equal(ops->weight_prepare(&w, &t, 0, teams[0], &err), LLMQ_E_UNSUPPORTED);
        if (isa == 0) continue;
        mem_fail_after(1);
        llmq_status status = ops->weight_prepare(&w, &good, 0, teams[0], &err);
        mem_fail_after(0);
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
    free(buffer);
}

/* A packed weight may not be much larger than the file's. */
static void test_packed_size(void **state) {
    (void)state;
    for (size_t i = 0; type_at(i); i++) {
        const llmq_type_info *info = type_at(i);
        llmq_weight w;
        llmq_err err;
        void *buffer;
        if (type_is_float(info)) continue;
        llmq_tensor t = random_tensor(info->id, 64, 1024, &buffer);
        for (int isa = 1; isa < N_ISAS; isa++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
            if (!ops) continue;
            assert_int_equal(ops->weight_prepare(&w, &t, 0, teams[1], &err), LLMQ_OK);
            assert_true((double)w.packed_bytes <= 1.2 * (double)t.bytes);
            ops->weight_release(&w);
            ops->weight_release(&w); /* a released weight may be released again */
        }
        free(buffer);
    }
}

static int setup(void **state) {
    (void)state;
    isas_say();
    for (int i = 0; i < 3; i++)
        if (team_create(i + 1, &teams[i], NULL) != LLMQ_OK) return -1;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) team_destroy(teams[i]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_float),
        cmocka_unit_test(test_activation_error),
        cmocka_unit_test(test_outliers),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_odd_activations),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_packed_size),
        cmocka_unit_test(test_alike),
        cmocka_unit_test(test_few_as_avx512),
        cmocka_unit_test(test_nf4_integers),
        cmocka_unit_test(test_nf4_error),
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_merged),
#if defined(__x86_64__)
        cmocka_unit_test(test_long),
#endif
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
