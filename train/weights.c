#include "train/weights.h"

#include <math.h>
#include <string.h>

#define ALIGN_FLOATS 16
#define PIECE ((int64_t)16384) /* of a sum of squares: fixed, so that it does not depend on the team */

/* ---- the block ---- */

static int64_t padded(int64_t n) {
    return (n + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

static const llmq_tensor *source_of(const llmq_model *model, int64_t layer, int role) {
    if (role == ROLE_ROPE_FREQS) return NULL; /* settings, not parameters */
    return layer == model->hp.n_layer ? model->by_role[role] : model->layer_tensors[layer].by_role[role];
}

static void plan(weights *w) {
    for (int64_t l = 0; l <= w->model->hp.n_layer; l++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            const llmq_tensor *src = source_of(w->model, l, role);
            int32_t *slot = &w->by_role[l * ROLE_COUNT + role];
            *slot = -1;
            if (!src) continue;
            *slot = (int32_t)w->n_tensors;
            weights_tensor *t = &w->tensors[w->n_tensors++];
            *t = (weights_tensor){src, arch_role_is_matrix((llmq_role)role), w->n, tensor_numel(src)};
            w->n += padded(t->n);
        }
}

static llmq_status load(weights *w, llmq_err *err) {
    llmq_source *source = w->model->source;
    for (size_t i = 0; i < w->n_tensors; i++) {
        const weights_tensor *t = &w->tensors[i];
        LLMQ_TRY(source_load(source, t->src, false, err));
        type_to_f32(t->src->type, t->src->data, w->x + t->at, t->n);
        source_release(source, t->src);
    }
    return LLMQ_OK;
}

llmq_status weights_create(weights *w, const llmq_model *model, llmq_team *team, llmq_err *err) {
    size_t cells = (size_t)(model->hp.n_layer + 1) * ROLE_COUNT;
    *w = (weights){.model = model, .team = team};
    w->tensors = mem_alloc(cells, sizeof *w->tensors);
    w->by_role = mem_alloc(cells, sizeof *w->by_role);
    if (!w->tensors || !w->by_role) return mem_error(err, cells * sizeof *w->tensors, "parameters");
    plan(w);
    size_t bytes = (size_t)w->n * sizeof(float);
    float **parts[] = {&w->x, &w->g, &w->m, &w->v};
    for (int i = 0; i < 4; i++) {
        *parts[i] = mem_alloc_big(bytes);
        if (!*parts[i]) return mem_error(err, 4 * bytes, "parameters, gradients and moments");
        memset(*parts[i], 0, bytes);
    }
    w->sums = mem_alloc((size_t)(w->n / PIECE + 1), sizeof *w->sums);
    if (!w->sums) return mem_error(err, (size_t)(w->n / PIECE + 1) * sizeof *w->sums, "parameters");
    return load(w, err);
}

void weights_clear(weights *w) {
    float *parts[] = {w->x, w->g, w->m, w->v};
    for (int i = 0; i < 4; i++)
        if (parts[i]) mem_free_big(parts[i], (size_t)w->n * sizeof(float));
    mem_free(w->sums);
    mem_free(w->tensors);
    mem_free(w->by_role);
    *w = (weights){0};
}

int64_t weights_count(const weights *w) {
    int64_t n = 0;
    for (size_t i = 0; i < w->n_tensors; i++) n += w->tensors[i].n;
    return n;
}

/* layer -1: of the model. NULL: absent. */
static const weights_tensor *find(const weights *w, int layer, int role) {
    int64_t n_layer = w->model->hp.n_layer;
    int32_t at = w->by_role[(layer < 0 ? n_layer : layer) * ROLE_COUNT + role];
    return at < 0 ? NULL : &w->tensors[at];
}

/* ---- for the net ---- */

static llmq_status give(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err) {
    weights *w = user;
    (void)back, (void)err;
    for (int role = 0; role < ROLE_COUNT; role++) {
        const weights_tensor *t = find(w, layer, role);
        if (!t) continue;
        out->of[role] = *t->src;
        out->of[role].type = LLMQ_TYPE_F32;
        out->of[role].bytes = t->n * (int64_t)sizeof(float);
        out->of[role].data = w->x + t->at;
    }
    if (layer < 0 && !out->of[ROLE_OUTPUT].data) out->of[ROLE_OUTPUT] = out->of[ROLE_TOKEN_EMBD];
    return LLMQ_OK;
}

typedef struct take_job {
    weights *w;
    int layer;
    float *const *g;
} take_job;

static void take_worker(const llmq_worker *worker, void *arg) {
    const take_job *j = arg;
    for (int role = 0; role < ROLE_COUNT; role++) {
        const weights_tensor *t = find(j->w, j->layer, role);
        if (role == ROLE_OUTPUT && !t && j->layer < 0) t = find(j->w, -1, ROLE_TOKEN_EMBD); /* tied */
        if (!j->g[role] || !t || role == ROLE_TOKEN_EMBD) continue;
        int64_t begin, end;
        worker_range(worker, t->n, ALIGN_FLOATS, &begin, &end);
        memcpy(j->w->g + t->at + begin, j->g[role] + begin, (size_t)(end - begin) * sizeof(float));
    }
}

/* The embedding's rows by the lookup, onto those by a tied head. Workers share out columns, so each sum is made in the
 * order of the tokens. */
static void scatter_worker(const llmq_worker *worker, void *arg) {
    const take_job *j = arg;
    const weights *w = j->w;
    const weights_tensor *t = find(w, -1, ROLE_TOKEN_EMBD);
    int64_t cols = tensor_cols(t->src), rows = t->n / cols, begin, end;
    float *g = w->g + t->at;
    const float *d = j->g[ROLE_TOKEN_EMBD];
    worker_range(worker, cols, ALIGN_FLOATS, &begin, &end);
    if (begin == end) return;
    if (find(w, -1, ROLE_OUTPUT))
        for (int64_t r = 0; r < rows; r++) memset(g + r * cols + begin, 0, (size_t)(end - begin) * sizeof(float));
    for (int64_t i = 0; i < w->n_tok; i++) {
        float *to = g + w->tokens[i] * cols;
        for (int64_t c = begin; c < end; c++) to[c] += d[i * cols + c];
    }
}

static llmq_status take(void *user, int layer, float *const *g, llmq_err *err) {
    take_job job = {user, layer, g};
    (void)err;
    team_run(job.w->team, layer < 0 && g[ROLE_TOKEN_EMBD] ? scatter_worker : take_worker, &job);
    return LLMQ_OK;
}

net_wants weights_wants(const weights *w) {
    net_wants wants = {{false}};
    for (int role = 0; role < ROLE_COUNT; role++)
        for (int64_t l = 0; l <= w->model->hp.n_layer; l++)
            if (w->by_role[l * ROLE_COUNT + role] >= 0) wants.of[role] = true;
    wants.of[ROLE_OUTPUT] = true; /* tied or not */
    return wants;
}

net_source_f32 weights_source(weights *w) {
    return (net_source_f32){.weights = give, .gradients = take, .wants = weights_wants(w), .user = w};
}

void weights_set_tokens(weights *w, const int32_t *tokens, int64_t n_tok) {
    w->tokens = tokens;
    w->n_tok = n_tok;
}

/* ---- the optimizer ---- */

static void squares_worker(const llmq_worker *worker, void *arg) {
    const weights *w = arg;
    int64_t n_pieces = (w->n + PIECE - 1) / PIECE, begin, end;
    worker_range(worker, n_pieces, 1, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        float sums[ALIGN_FLOATS] = {0};
        int64_t stop = (p + 1) * PIECE < w->n ? (p + 1) * PIECE : w->n;
        for (int64_t i = p * PIECE; i < stop; i += ALIGN_FLOATS)
            for (int k = 0; k < ALIGN_FLOATS; k++) sums[k] += w->g[i + k] * w->g[i + k];
        w->sums[p] = 0;
        for (int k = 0; k < ALIGN_FLOATS; k++) w->sums[p] += (double)sums[k];
    }
}

typedef struct update_job {
    weights *w;
    llmq_adam matrices, vectors;
} update_job;

static void update_worker(const llmq_worker *worker, void *arg) {
    const update_job *j = arg;
    weights *w = j->w;
    for (size_t i = 0; i < w->n_tensors; i++) {
        const weights_tensor *t = &w->tensors[i];
        w->model->ops->adam(worker, t->matrix ? &j->matrices : &j->vectors, w->x + t->at, w->g + t->at, w->m + t->at,
                            w->v + t->at, t->n);
    }
}

double weights_update(weights *w, const adam_settings *s, double lr, int64_t step) {
    double sum = 0;
    team_run(w->team, squares_worker, w);
    for (int64_t p = 0; p < (w->n + PIECE - 1) / PIECE; p++) sum += w->sums[p];
    double length = sqrt(sum);
    update_job job = {w, adam_step(s, lr, step, length, true), adam_step(s, lr, step, length, false)};
    team_run(w->team, update_worker, &job);
    return length;
}

/* ---- back to a file ---- */

llmq_status weights_write(const weights *w, const llmq_export *ex, llmq_outputs *outputs, llmq_err *err) {
    for (size_t i = 0; i < ex->n; i++) {
        const weights_tensor *t = ex->entries[i].src ? find(w, ex->entries[i].layer, ex->entries[i].role) : NULL;
        bool exact;
        LLMQ_TRY(outputs_put_plain(outputs, i, t ? w->x + t->at : NULL, w->team, &exact, NULL, NULL, err));
    }
    return LLMQ_OK;
}
