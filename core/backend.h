/* The backend interface: one struct of functions. The plain C backend fills every entry and is the oracle; files of AVX2,
 * AVX-VNNI, AVX-512 and AMX, on ARM of NEON and sdot, override what they improve, each over those before it. Nobody
 * includes cpu/: backend_cpu() is the way in.
 *
 * SPMD rule: every op with a worker is called by all workers of a team with the same arguments and divides the work by
 * (id, n); or, if it has no barriers of its own, by each worker as one of one, {0, 1}, for a result of its own. Ops
 * never meet at barriers unless they say so; the caller puts worker_barrier() between an op and its readers. Ops never
 * allocate. For fixed inputs results do not depend on the number of workers.
 *
 * Dims vocabulary: n_tok tokens (rows of an activation matrix, row-major f32, stride = its width unless given),
 * weights [rows, cols] = [output features, input features]. */
#ifndef LLMQ_CORE_BACKEND_H
#define LLMQ_CORE_BACKEND_H

#include "core/affine.h"
#include "core/grid.h"
#include "core/parallel.h"
#include "core/tensor.h"

/* In what form a weight wants its activations. ACT_Q8 is 8 bits in groups for few tokens; for many a backend may have a
 * better form, and for ACT_Q16 too (cpu/matmul_amx.c: tiles of bf16). ACT_DENSE is for rows of F16 and BF16 as stored:
 * the backend's own form for many tokens, nothing for few or exact ones, which are read as x; one buffer takes ACT_BF16
 * and it. ACT_Q8_SPLIT is ACT_Q8 in two parts, in place of it, not beside it: the engine asks for it where ACT_Q8 rounds
 * too much. ACT_Q16 is 16 bits in groups, for weights whose levels 8 bits do not hold (cpu/act16.h). */
typedef enum llmq_act_form {
    ACT_F32,
    ACT_Q8,
    ACT_BF16,
    ACT_INT8,
    ACT_DENSE,
    ACT_Q16,
    ACT_Q8_SPLIT,
    ACT_FORMS
} llmq_act_form;
#define ACT_GROUP 32 /* Q8, Q16: one scale for 32 consecutive inputs */
#define MATMUL_ALIKE 8 /* tokens of a matmul whose results do not depend on the others' number */
#define ACT_WHOLE 8  /* tokens for each worker from which on acts_fill divides whole tokens, by worker_range */

#define INT8_MAX_COLS 65536 /* 128 * 255 times so many stay below 2^31 */

/* A matrix made ready for matmul: a view of native rows, or an interleaved copy made at load (then the native rows are
 * no longer read by matmul). Fields behind `layout` belong to the backend. */
typedef struct llmq_weight {
    llmq_tensor native; /* as stored; data may be NULL after weight_prepare for a repacked weight */
    int64_t rows, cols;
    llmq_act_form act;    /* what matmul reads from llmq_acts, of native rows x itself for few tokens or exact ones;
                           * ACT_Q8 may be changed to ACT_Q8_SPLIT after weight_prepare, */
    llmq_act_range range; /* INT8: in this range */
    const float *bias;    /* [rows] or NULL: added by matmul. Borrowed; set by the engine after weight_prepare */
    const struct llmq_weight *after; /* likewise: whose matmul comes next for a token, or NULL; matmul may fetch it */
    int layout;           /* backend's own */
    void *packed;         /* owned; NULL when native rows are used */
    size_t packed_bytes;
} llmq_weight;

enum {
    PREP_BF16 = 1
}; /* dense weights (F32/F16/BF16) may be rounded to bf16 with f32 accumulation: calibration's forward pass */

/* Activations of n_tok tokens in the forms that somebody asked for. Buffers belong to the caller: acts_bytes tells
 * their size. */
typedef struct llmq_acts {
    int64_t n_tok, cols;
    const float *x; /* (n_tok, cols), always set */
    void *q8;       /* backend's own layout, acts_bytes(ACT_Q8, ...); valid after acts_fill(ACT_Q8). Or ACT_Q8_SPLIT, which
                     * may take twice as much */
    void *bf16;     /* likewise; of ACT_DENSE too */
    void *q16;      /* likewise */
    void *int8;     /* likewise, in `range`, which is set before */
    llmq_act_range range;
    bool exact; /* rows of BF16 as stored: x is not rounded to bf16, though that be faster */
} llmq_acts;

/* One layer's KV cache. Layout is the backend's own: kv_bytes tells the size of K or of V. */
typedef struct llmq_kv {
    void *k, *v;
    int type; /* 0: f16, 1: q8_0 (blocks of 32 along head_dim, which 32 must divide), 2: f32 (exact; may be slow) */
    int64_t n_ctx; /* positions the buffers hold */
    int n_head_kv, head_dim;
} llmq_kv;

typedef struct llmq_attn {
    int n_head, n_head_kv, head_dim;
    float scale;    /* of q.k, usually 1/sqrt(head_dim) */
    int64_t window; /* sliding window: position p sees p-window+1..p; 0: everything before */
    int64_t pos;    /* position of the first of the n_tok queries; key positions 0..pos+n_tok-1 are in the cache */
    int64_t n_tok;
    bool allow_bf16; /* products of many queries may round their inputs to bf16, sums stay f32: calibration. Without it a
                      * backend may do so only where the cache is not of f32 */
    const float *k_new, *v_new; /* of one query, [n_head_kv * head_dim]: position pos is not in the cache, attention
                                 * stores these there as kv_store would. NULL: it is there */
} llmq_attn;

/* One query of several that are independent of each other: at position pos of cache kv, which holds positions 0..pos. */
typedef struct llmq_attn_row {
    const llmq_kv *kv;
    int64_t pos;
} llmq_attn_row;

/* One block of n columns of a slab of rows being rounded. Rows are the vector lanes: every matrix is (columns, lanes)
 * with `lanes` (a multiple of 16) floats a column. For column k in turn, for all lanes: u = e[k] - sum_{j<k} at[k*ldat
 * + j] * e[j];  code = nearest level of (u - offset) / scale;  e[k] = value(code) - w[k] */
typedef struct llmq_round_block {
    int64_t n, lanes;
    const float *at; /* (n, n) below the diagonal */
    int64_t ldat;
    float *e;             /* (n, lanes) in: the target values; out: value - w */
    const float *w;       /* (n, lanes) */
    const float *grids;   /* (groups, 3, lanes): scale, 1/scale (0 where scale is 0), offset */
    const int32_t *group; /* [n] the group of each column */
    const float *levels;  /* n_levels, ascending */
    int n_levels;
    bool uniform;   /* levels are consecutive integers */
    uint8_t *codes; /* (n, lanes) */
} llmq_round_block;

/* One block of n columns (at most REFINE_MAX) of a slab of rows whose codes are already good: the error of each row,
 * e H e' with e = value - w over all columns, is brought down by changing the block's grid and codes, one number after
 * another, each to the best given all others, and only if that is better. Rows are lanes as in llmq_round_block.
 *
 * With refit every group's scale and offset are fitted anew for the codes as they are (and d and dmin of a super-block,
 * which must then be the whole block); with sweep every code follows. h and g are the block's part of H and of e H. */
#define REFINE_MAX 256
typedef struct llmq_refine_block {
    int64_t n, lanes;
    const float *h;    /* (n, n), symmetric */
    const float *ones; /* (groups, n): sums of h over the columns of each group */
    int64_t group_len; /* columns of a group; the last may have fewer */
    llmq_grid_form form;
    int sc_min, sc_max; /* of super-blocks */
    const float *levels;
    int n_levels;
    bool uniform;
    bool refit, sweep;
    float *g, *e, *level;            /* (n, lanes); level: that of each code */
    float *scale, *offset, *sc, *mn; /* (groups, lanes); sc and mn: super-blocks only */
    float *d, *dmin;                 /* [lanes], super-blocks only */
    float *gain;                     /* [lanes] how much e H e' fell is added to it */
} llmq_refine_block;

/* Codes of (a part of) a row in groups of group_len, the last of which may have fewer. */
typedef struct llmq_code_run {
    const uint8_t *codes;
    int64_t n, group_len;
    const float *levels; /* n_levels: consecutive integers if uniform, else 16 at most */
    int n_levels;
    bool uniform;
} llmq_code_run;

/* Attention of training: n_windows windows of n_tok tokens, each causal by itself. q and out (n_windows * n_tok,
 * n_head * head_dim), k and v (n_windows * n_tok, n_head_kv * head_dim). */
typedef struct llmq_causal {
    int n_head, n_head_kv, head_dim;
    float scale;    /* of q.k */
    int64_t window; /* sliding window, 0: none */
    int64_t n_tok, n_windows;
    bool allow_bf16; /* products may round their inputs to bf16, sums stay f32 */
} llmq_causal;

/* Losses of n rows of logits and their gradients. With teacher logits it is the Kullback-Leibler divergence from the
 * teacher's distribution, else cross entropy with labels; all times weight. Rows with a label below 0 do not count
 * (loss and gradient 0). */
typedef struct llmq_loss {
    int64_t n, n_vocab;
    float *z;              /* (n, n_vocab) logits; destroyed */
    const float *teacher;  /* likewise, kept; or NULL */
    const int32_t *labels; /* [n]; with a teacher it may be NULL: all count */
    double weight;
    int64_t slice;  /* dz comes as (slices, n, slice), slice columns each; the last has fewer, and no gaps: short rows
                     * for  the products that follow */
    float *dz;      /* n * n_vocab */
    double *loss;   /* [n] */
    float *scratch; /* (workers, n_vocab), with a teacher */
} llmq_loss;

/* One step of AdamW: with h = g * scale, m += (1 - beta1) (h - m), v += (1 - beta2) (h^2 - v),
 * x = x * keep - rate * m / (sqrt(v * inv) + eps). The bias corrections are in rate and inv. */
typedef struct llmq_adam {
    float beta1, beta2, eps, keep, rate, inv, scale;
} llmq_adam;

typedef struct llmq_backend_ops {
    const char *isa;          /* "c", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"; "neon", "dotprod" */
    const affine_ops *affine; /* 8-bit layers: core/affine.h */

    /* ---- weights. weight_prepare is called outside a region (it may use the team); types it cannot handle:
     * LLMQ_E_UNSUPPORTED. The native data must stay readable unless w->packed was made. flags: PREP_BF16. */
    llmq_status (*weight_prepare)(llmq_weight *w, const llmq_tensor *t, int flags, llmq_team *team, llmq_err *err);
    /* The same for a Q8_0 matrix of at most INT8_MAX_COLS columns whose rows have one scale each (all blocks of a row
     * the same d): inputs are taken as ACT_INT8, one integer sum runs over the whole row. LLMQ_E_UNSUPPORTED: it is no
     * such matrix. NULL: the backend has no such product. */
    llmq_status (*weight_prepare_int8)(llmq_weight *w, const llmq_tensor *t, llmq_act_range range, llmq_team *team,
                                       llmq_err *err);
    void (*weight_release)(llmq_weight *w);

    /* ---- activations */
    size_t (*acts_bytes)(llmq_act_form form, int64_t n_tok, int64_t cols);
    void (*acts_fill)(const llmq_worker *, llmq_acts *a, llmq_act_form form); /* from a->x; no-op for ACT_F32 */

    /* y[t*ldy + r] = sum_c w[r][c] * x[t][c] (+ bias[r]) for all tokens; reads a in the form w->act. Workers write
     * disjoint rows r of y. Independent matmuls on the same acts need no barrier between them. Up to MATMUL_ALIKE tokens
     * each get the bits that they get alone: speculation relies on it. */
    void (*matmul)(const llmq_worker *, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);

    /* ---- the small ops; x, y may be the same buffer where it makes sense (stated) */
    void (*embed)(const llmq_worker *, const llmq_tensor *table, const int32_t *tokens, int64_t n_tok,
                  float *y); /* y (n_tok, cols) */
    /* n_rows vectors of n elements, `stride` floats apart: y = x / sqrt(mean(x^2) + eps) * gain. In place allowed.
     * Workers divide rows; a single row is done by worker 0. */
    void (*rms_norm)(const llmq_worker *, const float *x, const float *gain, float eps, float *y, int64_t n_rows,
                     int64_t n, int64_t stride);
    /* Rotates the first n_rot dims of n_head vectors of head_dim (token stride ldx) in place. cos_sin (n_tok, n_rot/2,
     * 2). neox: pairs (i, i+n_rot/2); otherwise pairs (2i, 2i+1). */
    void (*rope)(const llmq_worker *, float *x, int64_t n_tok, int64_t ldx, int n_head, int head_dim, int n_rot,
                 const float *cos_sin, bool neox);
    void (*add)(const llmq_worker *, float *y, const float *x, int64_t n); /* y += x */
    void (*silu_mul)(const llmq_worker *, const float *gate, const float *up, float *y,
                     int64_t n); /* y = silu(gate)*up; y may be gate */

    /* ---- KV cache and attention */
    size_t (*kv_bytes)(int kv_type, int64_t n_ctx, int n_head_kv, int head_dim); /* bytes of K or of V of one layer */
    /* Stores k, v (n_tok, n_head_kv*head_dim; token stride ldk, ldv) at positions pos.. Workers may each have a copy of
     * k and v. */
    void (*kv_store)(const llmq_worker *, llmq_kv *kv, const float *k, int64_t ldk, const float *v, int64_t ldv,
                     int64_t pos, int64_t n_tok);
    size_t (*attn_scratch_bytes)(const llmq_attn *a, int n_workers); /* a->pos + a->n_tok: the largest that will come */
    /* out (n_tok, n_head*head_dim) = softmax(scale * q k') v, causal, online softmax; grouped queries read each K/V
     * head once. q (n_tok, n_head*head_dim) with token stride ldq. Workers may each have a copy of q, k_new and v_new; a
     * barrier must stand before it even so. Contains barriers of its own if it splits keys: all workers must call. */
    void (*attention)(const llmq_worker *, const llmq_attn *a, const float *q, int64_t ldq, const llmq_kv *kv,
                      float *out, void *scratch);

    /* The same for n_rows queries, each with a cache and a position of its own (a->pos and a->n_tok do not count, k_new
     * is NULL), and each with the bits that attention of that one query gives: the rows of a batch of sessions, or the
     * next tokens of one session, whose keys are then read once for neighbouring rows. Workers may each have a copy of
     * q. Contains barriers: all workers must call. */
    void (*attention_rows)(const llmq_worker *, const llmq_attn *a, const llmq_attn_row *rows, int64_t n_rows,
                           const float *q, int64_t ldq, float *out, void *scratch);
    /* Of attention_rows with at most n_rows rows; a->pos: the largest that will come. */
    size_t (*attn_rows_scratch_bytes)(const llmq_attn *a, int64_t n_rows, int n_workers);
    /* n positions from pos on of one cache to the same places of another of the same type and heads; n_ctx may differ. */
    void (*kv_copy)(const llmq_worker *, llmq_kv *to, const llmq_kv *from, int64_t pos, int64_t n);

    /* ---- quantization. Not SPMD unless it has a worker. */
    /* gram (cols, cols; lower triangle and diagonal filled) += x' x, x (n_tok, cols) finite; tiles are dealt so that
     * workers get about the same area, each accumulated by one worker in token order. allow_q8: inputs may be rounded
     * to 8 bits with a scale for each column of a slice of 256 tokens. sums[cols] (NULL: not wanted) += the columns of
     * x, each in token order. Contains barriers of its own: all workers must call. */
    void (*gram_add)(const llmq_worker *, const float *x, int64_t n_tok, int64_t cols, bool allow_q8, double *sums,
                     float *gram, void *scratch);
    size_t (*gram_scratch_bytes)(int64_t n_tok, int64_t cols); /* enough for fewer of either, too */
    /* Rows of x (n_rows, n) that are not finite become 0 and their bad[row] 1; returns how many. One thread. */
    int64_t (*drop_rows)(float *x, int64_t n_rows, int64_t n, uint8_t *bad);
    /* y[n] = x[n] as bf16 (round to nearest even, the same bits everywhere), and back. One thread. */
    void (*to_bf16)(const float *x, uint16_t *y, int64_t n);
    void (*from_bf16)(const uint16_t *x, float *y, int64_t n);
    /* C (m,n; ldc) -= A (m,k; lda) * B (k,n; ldb), all row-major f32, one thread. */
    void (*gemm_sub)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                     float *c, int64_t ldc);
    /* In place lower Cholesky of the n x n row-major matrix whose lower triangle is given: A = L L'. LLMQ_E_NUMERIC
     * when it is not positive definite (a is then destroyed). One thread unless team is given. */
    llmq_status (*cholesky)(int64_t n, float *a, int64_t lda, llmq_team *team, llmq_err *err);
    /* Rounds one block of columns of a slab of rows with error feedback inside the block (llmq_round_block). One
     * thread. */
    void (*round_block)(const llmq_round_block *b);
    /* Improves one block of columns of a slab of rows (llmq_refine_block). One thread. */
    void (*refine_block)(const llmq_refine_block *b);

    /* ---- training: what gradients need besides matmul and the ops above; sums in f32 */
    /* y (cols, rows; ldy) = x (rows, cols; ldx) transposed. */
    void (*transpose)(const llmq_worker *, const float *x, int64_t rows, int64_t cols, int64_t ldx, float *y,
                      int64_t ldy);
    /* Of y = rms_norm(x), rows without gaps: dx, or with add what is added to it; inv[n_rows] = 1 / rms for
     * rms_gain_back, which adds to dgain [n] (workers divide columns: a barrier in between). */
    void (*rms_norm_back)(const llmq_worker *, const float *x, const float *gain, float eps, const float *dy, float *dx,
                          bool add, float *inv, int64_t n_rows, int64_t n);
    void (*rms_gain_back)(const llmq_worker *, const float *x, const float *inv, const float *dy, float *dgain,
                          int64_t n_rows, int64_t n);
    /* gate and up become their own gradients, dact being that of silu(gate) * up. */
    void (*silu_mul_back)(const llmq_worker *, float *gate, float *up, const float *dact, int64_t n);
    size_t (*causal_scratch_bytes)(const llmq_causal *a, int n_workers); /* for causal and causal_back */
    void (*causal)(const llmq_worker *, const llmq_causal *a, const float *q, const float *k, const float *v,
                   float *out, void *scratch);
    /* dq, dk and dv are set. Probabilities are computed once more: nothing of their size is kept. */
    void (*causal_back)(const llmq_worker *, const llmq_causal *a, const float *q, const float *k, const float *v,
                        const float *dout, float *dq, float *dk, float *dv, void *scratch);
    void (*loss_rows)(const llmq_worker *, const llmq_loss *l); /* workers divide rows */
    /* x, g, m, v [n]; workers divide elements. */
    void (*adam)(const llmq_worker *, const llmq_adam *a, float *x, const float *g, float *m, float *v, int64_t n);
    /* y[k] = scale * level + offset, with scale[g] and offset[g] of k's group. One thread. */
    void (*code_values)(const llmq_code_run *c, const float *scale, const float *offset, float *y);
    /* sums (groups, 2): of a group's g * level, and of its g; g [n]. One thread. */
    void (*code_sums)(const llmq_code_run *c, const float *g, float *sums);
    /* Of y = x w': g (rows, cols), the gradient of w, = dy' x, or with add what is added to it; dy (n_tok, rows), x
     * (n_tok, cols). allow_bf16: inputs may be rounded to bf16. Contains barriers: all workers must call. */
    size_t (*outer_scratch_bytes)(int64_t rows, int64_t cols, int64_t n_tok);
    void (*outer)(const llmq_worker *, const float *dy, int64_t rows, const float *x, int64_t cols, int64_t n_tok,
                  bool add, bool allow_bf16, float *g, void *scratch);

    /* ---- the machine: what bench holds speeds against. One thread each. */
    /* Reads bytes (a multiple of 4096, p aligned to 64) in order, asking for what lies `ahead` bytes further on (0:
     * the processor's own prefetch only). The result means nothing. */
    uint64_t (*probe_read)(const void *p, size_t bytes, size_t ahead);
    /* Rounds of independent products, in registers, by the instruction that multiplies a prompt by quantized weights;
     * returns how many multiply-adds those are. What they add up to means nothing. */
    double (*probe_products)(int64_t rounds, uint64_t *sum_out);
    const char *product; /* the instruction's name */
} llmq_backend_ops;

/* The best CPU backend for this machine; LLMQ_ISA=c|avx2|avxvnni|avx512|avx512bf16|amx (ARM: c|neon|dotprod) limits it. Never
 * NULL. */
const llmq_backend_ops *backend_cpu(void);
/* The backend of one ISA for tests, by one of these names; NULL if this machine or build lacks it. */
const llmq_backend_ops *backend_cpu_isa(const char *isa);
/* Bytes/s that the team reads from a buffer of this size: the fastest pass of a plain loop and of one with prefetch, over
 * large pages and over small ones. 0: no memory. */
double backend_read_bandwidth(const llmq_backend_ops *ops, llmq_team *team, size_t bytes);
/* Multiply-adds/s of the team by ops->product. */
double backend_product_rate(const llmq_backend_ops *ops, llmq_team *team);

#endif
