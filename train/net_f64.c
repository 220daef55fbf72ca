/* The decoder in plain doubles on one thread: what the fast one is checked by. */
#include "train/net.h"

#define REAL double
#define GRAD(name) name##_f64
#include "core/grad_plain.h"

#define NET(name) name##_f64
typedef net_f64 this_net;
typedef net_source_f64 this_source;
typedef net_weights_f64 this_weights;

typedef const double *math_view;
typedef struct math_matrix {
    const double *w, *bias;
    int64_t rows, cols;
} math_matrix;
typedef struct math_ctx {
    double *p, *inv; /* [2 * n_tok], [rows of a norm] */
} math_ctx;

static void math_sync(const llmq_worker *w) {
    (void)w;
}
static void math_run(math_ctx *m, team_fn *fn, void *arg) {
    (void)m;
    fn(&(llmq_worker){0, 1, NULL}, arg);
}

static llmq_status math_begin(math_ctx *m, const net_shape *s, bool exact, const llmq_backend_ops *ops, llmq_team *team,
                              llmq_arena *arena, llmq_err *err) {
    size_t p = 2 * (size_t)s->n_tok, inv = (size_t)(s->n_windows * s->n_tok * (s->hp.n_head + 1));
    (void)exact, (void)ops, (void)team;
    m->p = arena_alloc(arena, p * sizeof *m->p, MEM_ALIGN);
    m->inv = arena_alloc(arena, inv * sizeof *m->inv, MEM_ALIGN);
    return m->p && m->inv ? LLMQ_OK : mem_error(err, (p + inv) * sizeof *m->p, "gradients");
}

static size_t math_need(const net_shape *s, const llmq_backend_ops *ops, int n_workers) {
    (void)ops, (void)n_workers;
    return (size_t)(s->n_tok * 2 + s->n_windows * s->n_tok * (s->hp.n_head + 1)) * sizeof(double);
}

static bool math_is_there(const math_view *v) {
    return *v != NULL;
}
static const double *math_vector(const math_view *v) {
    return *v;
}
static llmq_status math_ready(math_ctx *m, const this_weights *weights, llmq_role role, int64_t rows, int64_t cols,
                              const double *bias, bool forward, bool back, int64_t slice, math_matrix *out,
                              llmq_err *err) {
    (void)m, (void)forward, (void)back, (void)slice, (void)err;
    *out = (math_matrix){weights->of[role], bias, rows, cols};
    return LLMQ_OK;
}
static void math_release(math_ctx *m, math_matrix *x) {
    (void)m;
    *x = (math_matrix){0};
}

static void math_embed(const llmq_worker *w, math_ctx *m, const math_view *table, const int32_t *tokens, int64_t n,
                       int64_t cols, double *y) {
    (void)w, (void)m;
    for (int64_t t = 0; t < n; t++) memcpy(y + t * cols, *table + tokens[t] * cols, (size_t)cols * sizeof *y);
}

static void math_linears(const llmq_worker *w, math_ctx *m, int n_mats, const math_matrix *const *mats, const double *x,
                         int64_t n_tok, double *const *y) {
    (void)w, (void)m;
    for (int i = 0; i < n_mats; i++)
        for (int64_t t = 0; t < n_tok; t++)
            for (int64_t r = 0; r < mats[i]->rows; r++) {
                const double *row = mats[i]->w + r * mats[i]->cols;
                double sum = mats[i]->bias ? mats[i]->bias[r] : 0;
                for (int64_t c = 0; c < mats[i]->cols; c++) sum += row[c] * x[t * mats[i]->cols + c];
                y[i][t * mats[i]->rows + r] = sum;
            }
}

static void math_linears_back(const llmq_worker *w, math_ctx *m, int n_mats, const math_matrix *const *mats,
                              double *const *dy, int64_t n_tok, double *dx) {
    (void)w, (void)m;
    memset(dx, 0, (size_t)(n_tok * mats[0]->cols) * sizeof *dx);
    for (int i = 0; i < n_mats; i++)
        for (int64_t t = 0; t < n_tok; t++)
            for (int64_t r = 0; r < mats[i]->rows; r++)
                for (int64_t c = 0; c < mats[i]->cols; c++)
                    dx[t * mats[i]->cols + c] += dy[i][t * mats[i]->rows + r] * mats[i]->w[r * mats[i]->cols + c];
}
/* The doubles come in one slice. */
static int64_t math_slice(int64_t n_vocab) {
    return n_vocab;
}
static void math_head_back(const llmq_worker *w, math_ctx *m, const math_matrix *head, double *dz, int64_t n_tok,
                           double *dx) {
    math_linears_back(w, m, 1, &head, &dz, n_tok, dx);
}

static void math_outer(const llmq_worker *w, math_ctx *m, const double *dy, int64_t rows, const double *x, int64_t cols,
                       int64_t n_tok, bool add, double *g) {
    (void)w, (void)m;
    for (int64_t r = 0; r < rows; r++) outer_row_f64(dy + r, rows, x, cols, n_tok, add, g + r * cols);
}

static void math_norm(const llmq_worker *w, math_ctx *m, const double *x, const double *gain, float eps, double *y,
                      int64_t n_rows, int64_t n) {
    (void)w, (void)m;
    norm_rows_f64(x, gain, eps, y, n_rows, n);
}
static void math_norm_back(const llmq_worker *w, math_ctx *m, const double *x, const double *gain, float eps,
                           const double *dy, double *dx, bool add, double *dgain, int64_t n_rows, int64_t n) {
    (void)w;
    norm_rows_back_f64(x, gain, eps, dy, dx, add, m->inv, n_rows, n);
    if (dgain) gain_cols_back_f64(x, m->inv, dy, dgain, n_rows, n, 0, n);
}

static void math_rope(const llmq_worker *w, math_ctx *m, double *x, int64_t n_tok, int n_head, int head_dim, int n_rot,
                      const float *table, bool neox) {
    (void)w, (void)m;
    for (int64_t t = 0; t < n_tok; t++, table += n_rot)
        for (int h = 0; h < n_head; h++, x += head_dim)
            for (int i = 0; i < n_rot / 2; i++) {
                double *a = x + (neox ? i : 2 * i), *b = x + (neox ? i + n_rot / 2 : 2 * i + 1), c = table[2 * i],
                       s = table[2 * i + 1], u = *a, v = *b;
                *a = u * c - v * s;
                *b = v * c + u * s;
            }
}

static void math_causal(const llmq_worker *w, math_ctx *m, const llmq_causal *a, const double *q, const double *k,
                        const double *v, double *out) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd;
    (void)w;
    for (int64_t win = 0; win < a->n_windows; win++)
        for (int64_t h = 0; h < a->n_head; h++) {
            int64_t at = win * a->n_tok * ldq + h * hd,
                    from = win * a->n_tok * ldk + h / (a->n_head / a->n_head_kv) * hd;
            causal_head_f64(a, q + at, k + from, v + from, out + at, m->p);
        }
}
static void math_causal_back(const llmq_worker *w, math_ctx *m, const llmq_causal *a, const double *q, const double *k,
                             const double *v, const double *dout, double *dq, double *dk, double *dv) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd;
    (void)w;
    memset(dk, 0, (size_t)(a->n_windows * a->n_tok * ldk) * sizeof *dk);
    memset(dv, 0, (size_t)(a->n_windows * a->n_tok * ldk) * sizeof *dv);
    for (int64_t win = 0; win < a->n_windows; win++)
        for (int64_t h = 0; h < a->n_head; h++) {
            int64_t at = win * a->n_tok * ldq + h * hd,
                    from = win * a->n_tok * ldk + h / (a->n_head / a->n_head_kv) * hd;
            causal_head_back_f64(a, q + at, k + from, v + from, dout + at, dq + at, dk + from, dv + from, m->p);
        }
}

static void math_silu_mul(const llmq_worker *w, math_ctx *m, const double *gate, const double *up, double *y,
                          int64_t n) {
    (void)w, (void)m;
    for (int64_t i = 0; i < n; i++) y[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
}
static void math_silu_mul_back(const llmq_worker *w, math_ctx *m, double *gate, double *up, const double *dact,
                               int64_t n) {
    (void)w, (void)m;
    silu_mul_n_back_f64(gate, up, dact, n);
}
static void math_loss(const llmq_worker *w, math_ctx *m, double *z, const double *teacher, const int32_t *labels,
                      int64_t n, int64_t n_vocab, double weight, double *dz, double *loss) {
    (void)w, (void)m;
    for (int64_t r = 0; r < n; r++) {
        int32_t label = labels ? labels[r] : 0;
        loss[r] = loss_row_f64(z + r * n_vocab, teacher ? teacher + r * n_vocab : NULL, label < 0 ? 0 : label, n_vocab,
                               label < 0 ? 0 : weight, n_vocab, r, n, dz);
    }
}

#include "train/net_impl.h"
