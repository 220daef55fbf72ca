/* Loss and gradients of a model on given windows, for scripts/check_gradients.py: dump_gradients MODEL TEACHER BATCH
 * OUT.
 *
 * TEACHER: a model of the same shape (Kullback-Leibler divergence), or - (cross entropy with the labels). BATCH: int32
 * n_windows, n_tok, the tokens and the labels of all windows, label < 0: the row does not count; the loss is the mean
 * of those that do. OUT: records of an int32 length, a name, an int64 count, and so many doubles. Names are
 * KIND/loss and KIND/TENSOR, the gradients in the shape of the tensor; kinds are f32 (exact), bf16 and f64. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/net.h"
#include "types/type.h"

enum { F32, BF16, F64, N_KINDS };
static const char *const kind_names[N_KINDS] = {"f32", "bf16", "f64"};

/* A model's numbers; layer n_layer is the model itself. */
typedef struct weights {
    struct job *job;
    llmq_model *model;
    float *(*f32)[ROLE_COUNT];
    double *(*f64)[ROLE_COUNT];
} weights;

typedef struct job {
    weights student, teacher;
    llmq_arena *arena;
    llmq_team *team;
    int32_t n_windows, n_tok;
    int32_t *tokens, *labels;
    double *(*g)[ROLE_COUNT]; /* gradients, by the student's layers */
    FILE *out;
} job;

static void *room(job *j, size_t bytes) {
    void *p = arena_alloc(j->arena, bytes, MEM_ALIGN);
    if (!p) exit(3);
    return p;
}

static const llmq_tensor *tensor_of(const llmq_model *m, int64_t layer, int role) {
    return layer == m->hp.n_layer ? m->by_role[role] : m->layer_tensors[layer].by_role[role];
}

/* The same, but that a tied head is the embedding. */
static const llmq_tensor *read_from(const llmq_model *m, int64_t layer, int role) {
    const llmq_tensor *t = tensor_of(m, layer, role);
    return t || role != ROLE_OUTPUT || layer < m->hp.n_layer ? t : m->by_role[ROLE_TOKEN_EMBD];
}

static llmq_status load(job *j, weights *w, const char *path, llmq_err *err) {
    llmq_model_params params = {.n_threads = 1, .no_weights = true};
    w->job = j;
    LLMQ_TRY(model_open(path, &params, &w->model, err));
    size_t n_layers = (size_t)w->model->hp.n_layer + 1;
    w->f32 = room(j, n_layers * sizeof *w->f32);
    w->f64 = room(j, n_layers * sizeof *w->f64);
    for (size_t l = 0; l < n_layers; l++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = tensor_of(w->model, (int64_t)l, role);
            w->f32[l][role] = NULL;
            w->f64[l][role] = NULL;
            if (!t) continue;
            size_t n = (size_t)tensor_numel(t);
            w->f32[l][role] = room(j, n * sizeof(float));
            w->f64[l][role] = room(j, n * sizeof(double));
            LLMQ_TRY(source_load(w->model->source, t, false, err));
            type_to_f32(t->type, t->data, w->f32[l][role], (int64_t)n);
            for (size_t i = 0; i < n; i++) w->f64[l][role][i] = w->f32[l][role][i];
        }
    float **own = w->f32[n_layers - 1];
    double **own64 = w->f64[n_layers - 1];
    if (!own[ROLE_OUTPUT]) own[ROLE_OUTPUT] = own[ROLE_TOKEN_EMBD], own64[ROLE_OUTPUT] = own64[ROLE_TOKEN_EMBD];
    return LLMQ_OK;
}

/* ---- what a net asks for; user is the weights ---- */

static llmq_status give_f32(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err) {
    const weights *w = user;
    int64_t l = layer < 0 ? w->model->hp.n_layer : layer;
    (void)back, (void)err;
    for (int role = 0; role < ROLE_COUNT; role++) {
        const llmq_tensor *t = read_from(w->model, l, role);
        if (!t) continue;
        out->of[role] = *t;
        out->of[role].type = LLMQ_TYPE_F32;
        out->of[role].bytes = tensor_numel(t) * (int64_t)sizeof(float);
        out->of[role].data = w->f32[l][role];
    }
    return LLMQ_OK;
}
static llmq_status give_f64(void *user, int layer, bool back, net_weights_f64 *out, llmq_err *err) {
    const weights *w = user;
    (void)back, (void)err;
    for (int role = 0; role < ROLE_COUNT; role++)
        out->of[role] = w->f64[layer < 0 ? w->model->hp.n_layer : layer][role];
    return LLMQ_OK;
}

/* Adds up, since a tied head's gradient comes in two parts, and the embedding's as rows of tokens. */
#define TAKE(name, type)                                                                                               \
    static llmq_status name(void *user, int layer, type *const *g, llmq_err *err) {                                    \
        const weights *w = user;                                                                                       \
        const job *j = w->job;                                                                                         \
        const llmq_model *m = w->model;                                                                                \
        int64_t l = layer < 0 ? m->hp.n_layer : layer, e = m->hp.n_embd;                                               \
        (void)err;                                                                                                     \
        for (int role = 0; role < ROLE_COUNT; role++) {                                                                \
            bool tied = role == ROLE_OUTPUT && !m->by_role[ROLE_OUTPUT];                                               \
            double *to = j->g[l][tied ? ROLE_TOKEN_EMBD : role];                                                       \
            if (!g[role] || !to) continue;                                                                             \
            int64_t n = role == ROLE_TOKEN_EMBD ? 0 : tensor_numel(read_from(m, l, role));                             \
            for (int64_t i = 0; i < n; i++) to[i] += g[role][i];                                                       \
            for (int64_t i = 0; role == ROLE_TOKEN_EMBD && i < j->n_windows * j->n_tok; i++)                           \
                for (int64_t c = 0; c < e; c++) to[j->tokens[i] * e + c] += g[role][i * e + c];                        \
        }                                                                                                              \
        return LLMQ_OK;                                                                                                \
    }
TAKE(take_f32, float)
TAKE(take_f64, double)

/* ---- one kind of numbers ---- */

static llmq_status step_f32(job *j, const net_shape *shape, const net_loss *what, bool exact, double *loss,
                            llmq_err *err) {
    net_f32 *net = NULL;
    llmq_status status = LLMQ_OK;
    net_source_f32 source = {.weights = give_f32, .gradients = take_f32, .user = &j->student},
                   teacher = {.weights = give_f32, .user = &j->teacher};
    memset(&source.wants, true, sizeof source.wants);
    LLMQ_TRY(net_create_f32(shape, &source.wants, what->teacher, exact, backend_cpu(), j->team, &net, err));
    if (what->teacher) LLMQ_TRY_GOTO(net_teach_f32(net, &teacher, j->tokens, err));
    LLMQ_TRY_GOTO(net_step_f32(net, &source, j->tokens, what, true, loss, err));
done:
    net_destroy_f32(net);
    return status;
}

static llmq_status step_f64(job *j, const net_shape *shape, const net_loss *what, double *loss, llmq_err *err) {
    net_f64 *net = NULL;
    llmq_status status = LLMQ_OK;
    net_source_f64 source = {.weights = give_f64, .gradients = take_f64, .user = &j->student},
                   teacher = {.weights = give_f64, .user = &j->teacher};
    memset(&source.wants, true, sizeof source.wants);
    LLMQ_TRY(net_create_f64(shape, &source.wants, what->teacher, true, NULL, NULL, &net, err));
    if (what->teacher) LLMQ_TRY_GOTO(net_teach_f64(net, &teacher, j->tokens, err));
    LLMQ_TRY_GOTO(net_step_f64(net, &source, j->tokens, what, true, loss, err));
done:
    net_destroy_f64(net);
    return status;
}

static void put(const job *j, const char *kind, const char *name, const double *x, int64_t n) {
    char full[TENSOR_MAX_NAME + 16];
    int32_t len = (int32_t)snprintf(full, sizeof full, "%s/%s", kind, name);
    fwrite(&len, sizeof len, 1, j->out);
    fwrite(full, 1, (size_t)len, j->out);
    fwrite(&n, sizeof n, 1, j->out);
    fwrite(x, sizeof *x, (size_t)n, j->out);
}

static llmq_status run_kind(job *j, int kind, llmq_err *err) {
    const llmq_model *m = j->student.model;
    int64_t n_layers = m->hp.n_layer + 1, n = (int64_t)j->n_windows * j->n_tok, counting = 0;
    float *rope = room(j, (size_t)(j->n_tok * m->hp.n_rot) * sizeof *rope);
    double loss;
    rope_table(m, 0, j->n_tok, rope);
    for (int64_t i = 0; i < n; i++) counting += j->labels[i] >= 0;
    /* both ways to come back through a layer: from what was kept, and computing it once more */
    size_t keep = kind == F64 ? (size_t)1 << 30 : 0;
    net_shape shape = {.hp = m->hp,
                       .neox = m->rope_neox,
                       .n_windows = j->n_windows,
                       .n_tok = j->n_tok,
                       .rope = rope,
                       .keep_bytes = keep};
    net_loss what = {j->teacher.model != NULL, j->labels, 1.0 / (double)counting};
    for (int64_t l = 0; l < n_layers; l++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = tensor_of(m, l, role);
            j->g[l][role] = NULL;
            if (!t || role == ROLE_ROPE_FREQS) continue;
            size_t bytes = (size_t)tensor_numel(t) * sizeof(double);
            j->g[l][role] = room(j, bytes);
            memset(j->g[l][role], 0, bytes);
        }
    LLMQ_TRY(kind == F64 ? step_f64(j, &shape, &what, &loss, err)
                         : step_f32(j, &shape, &what, kind == F32, &loss, err));
    put(j, kind_names[kind], "loss", &loss, 1);
    for (int64_t l = 0; l < n_layers; l++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = tensor_of(m, l, role);
            if (j->g[l][role]) put(j, kind_names[kind], t->name, j->g[l][role], tensor_numel(t));
        }
    return LLMQ_OK;
}

static llmq_status read_batch(job *j, const char *path, llmq_err *err) {
    FILE *f = fopen(path, "rb");
    int64_t n = 0;
    bool ok = f && fread(&j->n_windows, 4, 1, f) == 1 && fread(&j->n_tok, 4, 1, f) == 1;
    ok = ok && j->n_windows > 0 && j->n_tok > 0 && j->n_tok <= j->student.model->hp.n_ctx_train;
    if (ok) {
        n = (int64_t)j->n_windows * j->n_tok;
        j->tokens = room(j, 2 * (size_t)n * sizeof *j->tokens);
        j->labels = j->tokens + n;
        ok = fread(j->tokens, 4, 2 * (size_t)n, f) == 2 * (size_t)n;
    }
    for (int64_t i = 0; ok && i < n; i++) ok = j->tokens[i] >= 0 && j->tokens[i] < j->student.model->hp.n_vocab;
    for (int64_t i = 0; ok && i < n; i++) ok = j->labels[i] < j->student.model->hp.n_vocab;
    if (f) fclose(f);
    return ok ? LLMQ_OK : llmq_fail(err, LLMQ_E_ARG, "%s is not a batch for this model", path);
}

static llmq_status run(job *j, char **argv, llmq_err *err) {
    LLMQ_TRY(team_create(2, &j->team, err));
    LLMQ_TRY(load(j, &j->student, argv[1], err));
    if (strcmp(argv[2], "-") != 0) LLMQ_TRY(load(j, &j->teacher, argv[2], err));
    LLMQ_TRY(read_batch(j, argv[3], err));
    j->g = room(j, (size_t)(j->student.model->hp.n_layer + 1) * sizeof *j->g);
    j->out = fopen(argv[4], "wb");
    if (!j->out) return llmq_fail(err, LLMQ_E_IO, "%s cannot be written", argv[4]);
    for (int kind = 0; kind < N_KINDS; kind++) LLMQ_TRY(run_kind(j, kind, err));
    return LLMQ_OK;
}

int main(int argc, char **argv) {
    job j = {.arena = arena_create()};
    llmq_err err = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: dump_gradients MODEL TEACHER|- BATCH OUT\n");
        return 2;
    }
    llmq_status status = run(&j, argv, &err);
    if (status != LLMQ_OK) fprintf(stderr, "dump_gradients: %s\n", err.msg);
    if (j.out && fclose(j.out) != 0) status = LLMQ_E_IO;
    model_close(j.student.model);
    model_close(j.teacher.model);
    team_destroy(j.team);
    arena_destroy(j.arena);
    return status == LLMQ_OK ? 0 : 1;
}
