/* Gradients of the small ops, written plainly for one type of number: REAL and the names GRAD(x) are the includer's.
 * The C backend makes floats of them (the oracle of the vector kernels), train/ doubles (the check by finite
 * differences). Shapes and meaning are those of core/backend.h's training ops. */
#include <math.h>
#include <string.h>

static inline void GRAD(norm_rows)(const REAL *x, const REAL *gain, double eps, REAL *y, int64_t n_rows, int64_t n) {
    for (int64_t r = 0; r < n_rows; r++, x += n, y += n) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
        double inv = 1.0 / sqrt(sum / (double)n + eps);
        for (int64_t i = 0; i < n; i++) y[i] = (REAL)(x[i] * inv * gain[i]);
    }
}

/* With u = dy * gain: dx = inv * u - x * inv^3 * (u.x) / n. */
static inline void GRAD(norm_rows_back)(const REAL *x, const REAL *gain, double eps, const REAL *dy, REAL *dx, bool add,
                                        REAL *inv, int64_t n_rows, int64_t n) {
    for (int64_t r = 0; r < n_rows; r++, x += n, dy += n, dx += n) {
        double sum = 0, dot = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += (double)x[i] * x[i];
            dot += (double)dy[i] * gain[i] * x[i];
        }
        double s = 1.0 / sqrt(sum / (double)n + eps), c = s * s * s * dot / (double)n;
        for (int64_t i = 0; i < n; i++) {
            REAL d = (REAL)(s * dy[i] * gain[i] - c * x[i]);
            dx[i] = add ? dx[i] + d : d;
        }
        inv[r] = (REAL)s;
    }
}

/* Columns [begin, end). */
static inline void GRAD(gain_cols_back)(const REAL *x, const REAL *inv, const REAL *dy, REAL *dgain, int64_t n_rows,
                                        int64_t n, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t i = begin; i < end; i++) dgain[i] += dy[r * n + i] * x[r * n + i] * inv[r];
}

static inline void GRAD(silu_mul_n_back)(REAL *gate, REAL *up, const REAL *dact, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double g = gate[i], s = 1.0 / (1.0 + exp(-g)), u = up[i];
        up[i] = (REAL)(dact[i] * g * s);
        gate[i] = (REAL)(dact[i] * u * s * (1.0 + g * (1.0 - s)));
    }
}

/* One row of the gradient of a matrix; dy with stride `rows` from token to token. */
static inline void GRAD(outer_row)(const REAL *dy, int64_t rows, const REAL *x, int64_t cols, int64_t n_tok, bool add,
                                   REAL *g) {
    for (int64_t c = 0; c < cols && !add; c++) g[c] = 0;
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t c = 0; c < cols; c++) g[c] += dy[t * rows] * x[t * cols + c];
}

/* ---- causal attention ---- */

/* Probabilities of query i (a row of head_dim) over keys [first, i], into p[first..i]. */
static inline int64_t GRAD(causal_row)(const llmq_causal *a, const REAL *q, const REAL *k, int64_t i, REAL *p) {
    int64_t ldk = a->n_head_kv * (int64_t)a->head_dim;
    int64_t first = a->window > 0 && i + 1 > a->window ? i + 1 - a->window : 0;
    double top = -INFINITY, sum = 0;
    for (int64_t j = first; j <= i; j++) {
        double s = 0;
        for (int d = 0; d < a->head_dim; d++) s += (double)q[d] * k[j * ldk + d];
        p[j] = (REAL)(s * a->scale);
        top = p[j] > top ? p[j] : top;
    }
    for (int64_t j = first; j <= i; j++) sum += p[j] = (REAL)exp(p[j] - top);
    for (int64_t j = first; j <= i; j++) p[j] = (REAL)(p[j] / sum);
    return first;
}

/* One head of one window: q, k, v and out begin there. p [n_tok]. */
static inline void GRAD(causal_head)(const llmq_causal *a, const REAL *q, const REAL *k, const REAL *v, REAL *out,
                                     REAL *p) {
    int64_t ldq = a->n_head * (int64_t)a->head_dim, ldk = a->n_head_kv * (int64_t)a->head_dim;
    for (int64_t i = 0; i < a->n_tok; i++) {
        int64_t first = GRAD(causal_row)(a, q + i * ldq, k, i, p);
        for (int d = 0; d < a->head_dim; d++) {
            double s = 0;
            for (int64_t j = first; j <= i; j++) s += (double)p[j] * v[j * ldk + d];
            out[i * ldq + d] = (REAL)s;
        }
    }
}

/* The same backwards: dq is set, dk and dv are added to. p [2 * n_tok]. */
static inline void GRAD(causal_head_back)(const llmq_causal *a, const REAL *q, const REAL *k, const REAL *v,
                                          const REAL *dout, REAL *dq, REAL *dk, REAL *dv, REAL *p) {
    int64_t ldq = a->n_head * (int64_t)a->head_dim, ldk = a->n_head_kv * (int64_t)a->head_dim;
    REAL *dp = p + a->n_tok;
    for (int64_t i = 0; i < a->n_tok; i++) {
        const REAL *g = dout + i * ldq;
        int64_t first = GRAD(causal_row)(a, q + i * ldq, k, i, p);
        double mean = 0;
        for (int64_t j = first; j <= i; j++) {
            double s = 0;
            for (int d = 0; d < a->head_dim; d++) s += (double)g[d] * v[j * ldk + d];
            dp[j] = (REAL)s;
            mean += s * p[j];
        }
        for (int d = 0; d < a->head_dim; d++) dq[i * ldq + d] = 0;
        for (int64_t j = first; j <= i; j++) {
            REAL ds = (REAL)(p[j] * (dp[j] - mean) * a->scale);
            for (int d = 0; d < a->head_dim; d++) {
                dv[j * ldk + d] += p[j] * g[d];
                dk[j * ldk + d] += ds * q[i * ldq + d];
                dq[i * ldq + d] += ds * k[j * ldk + d];
            }
        }
    }
}

/* ---- losses ---- */

/* Row r of n_rows, each of n logits; z and teacher are that row, dz is of all rows, in slices (llmq_loss). */
static inline double GRAD(loss_row)(const REAL *z, const REAL *teacher, int32_t label, int64_t n, double weight,
                                    int64_t slice, int64_t r, int64_t n_rows, REAL *dz) {
    double top = -INFINITY, sum = 0, t_top = -INFINITY, t_sum = 0, loss = 0;
    for (int64_t i = 0; i < n; i++) {
        top = z[i] > top ? z[i] : top;
        if (teacher) t_top = teacher[i] > t_top ? teacher[i] : t_top;
    }
    for (int64_t i = 0; i < n; i++) {
        sum += exp(z[i] - top);
        if (teacher) t_sum += exp(teacher[i] - t_top);
    }
    for (int64_t i = 0; i < n; i++) {
        double p = exp(z[i] - top) / sum, want = i == label;
        if (teacher) {
            want = exp(teacher[i] - t_top) / t_sum;
            loss += want * ((teacher[i] - t_top - log(t_sum)) - (z[i] - top - log(sum)));
        } else if (i == label) {
            loss = -(z[i] - top - log(sum));
        }
        int64_t begin = i / slice * slice, len = n - begin < slice ? n - begin : slice;
        dz[begin * n_rows + r * len + i - begin] = (REAL)(weight * (p - want));
    }
    return weight * loss;
}
