/* Which device a model is opened on, and what of the model goes there. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "engine/model.h"

#ifdef LLMQ_HAVE_CUDA
extern const llmq_device_ops cuda_device_ops;
#endif

/* "cuda" or "cuda:N", N at most 99; -1 for anything else. */
static int cuda_index(const char *spec) {
    char *end;
    if (strcmp(spec, "cuda") == 0) return 0;
    if (strncmp(spec, "cuda:", 5) != 0 || spec[5] < '0' || spec[5] > '9') return -1;
    long n = strtol(spec + 5, &end, 10);
    return *end == '\0' && n <= 99 ? (int)n : -1;
}

/* "auto" is the CPU: no GPU has run the kernels yet (docs/cuda.md), so nobody gets them without asking. */
llmq_status device_select(const char *spec, const llmq_device_ops **out, llmq_err *err) {
    *out = NULL;
    if (!spec || strcmp(spec, "cpu") == 0 || strcmp(spec, "auto") == 0) return LLMQ_OK;
    int index = cuda_index(spec);
    if (index < 0) return llmq_fail(err, LLMQ_E_ARG, "--device '%.40s': it takes cpu, auto, cuda or cuda:N", spec);
#ifdef LLMQ_HAVE_CUDA
    LLMQ_TRY(cuda_device_ops.open(index, err));
    *out = &cuda_device_ops;
    return LLMQ_OK;
#else
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "--device %.40s: this llmq was built without CUDA; build it where nvcc is (docs/cuda.md), or use "
                     "--device cpu",
                     spec);
#endif
}

/* ---- what goes there */

static llmq_status load_rows(void *user, const llmq_tensor *t, llmq_err *err) {
    return source_load(user, t, false, err);
}

static void release_rows(void *user, const llmq_tensor *t) {
    source_release(user, t);
}

/* Norms and biases of a layer as f32; its matrices where the source has them. */
static llmq_status describe_layer(llmq_model *model, int64_t l, llmq_device_layer *out, llmq_err *err) {
    const llmq_tensor *const *by_role = model->layer_tensors[l].by_role;
    const struct {
        llmq_role role;
        const float **out;
    } vectors[] = {{ROLE_ATTN_NORM, &out->attn_norm}, {ROLE_FFN_NORM, &out->ffn_norm}, {ROLE_Q_NORM, &out->q_norm},
                   {ROLE_K_NORM, &out->k_norm},       {ROLE_Q_BIAS, &out->q.bias},     {ROLE_K_BIAS, &out->k.bias},
                   {ROLE_V_BIAS, &out->v.bias},       {ROLE_O_BIAS, &out->o.bias}};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const llmq_tensor *t = by_role[vectors[i].role];
        if (t) LLMQ_TRY(model_load_vector(model, t, tensor_numel(t), vectors[i].out, err));
    }
    out->q.w = by_role[ROLE_Q], out->k.w = by_role[ROLE_K], out->v.w = by_role[ROLE_V], out->o.w = by_role[ROLE_O];
    out->gate.w = by_role[ROLE_GATE], out->up.w = by_role[ROLE_UP], out->down.w = by_role[ROLE_DOWN];
    return LLMQ_OK;
}

static llmq_device_desc describe(const llmq_model *model, const llmq_device_layer *layers) {
    const llmq_hparams *hp = &model->hp;
    const llmq_tensor *embd = model->by_role[ROLE_TOKEN_EMBD], *head = model->by_role[ROLE_OUTPUT];
    return (llmq_device_desc){.n_vocab = hp->n_vocab,
                              .n_embd = hp->n_embd,
                              .n_layer = hp->n_layer,
                              .n_head = hp->n_head,
                              .n_head_kv = hp->n_head_kv,
                              .head_dim = hp->head_dim,
                              .n_ff = hp->n_ff,
                              .n_rot = hp->n_rot,
                              .window = hp->window,
                              .eps = hp->eps,
                              .rope_neox = model->rope_neox,
                              .embd = embd,
                              .head = head ? head : embd,
                              .output_norm = model->output_norm,
                              .layers = layers,
                              .load = load_rows,
                              .release = release_rows,
                              .user = model->source};
}

/* So many of the last layers as were asked for, or as fit beside a session of usual length. */
static llmq_status count_layers(const llmq_model *model, const llmq_device_desc *d, const llmq_model_params *params,
                                int64_t *out, llmq_err *err) {
    int64_t n_layer = d->n_layer, asked = params->gpu_layers, n_ctx = params->n_ctx;
    if (asked < 0) return llmq_fail(err, LLMQ_E_ARG, "gpu_layers %lld: must be 0 or more", (long long)asked);
    *out = asked < n_layer ? asked : n_layer;
    if (asked > 0) return LLMQ_OK;
    if (n_ctx < 1) n_ctx = SESSION_CTX_USUAL;
    if (n_ctx > model->hp.n_ctx_train && !params->n_ctx) n_ctx = model->hp.n_ctx_train;
    LLMQ_TRY(model->device->fit(d, n_ctx, n_ctx < SESSION_BATCH_USUAL ? n_ctx : SESSION_BATCH_USUAL, out, err));
    if (*out > 0) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_MEMORY,
                     "%s: not one layer fits into the free memory of %s with a context of %lld tokens; give a smaller "
                     "--ctx, a model of fewer bits, or --device cpu",
                     model->source->path, model->device->name, (long long)n_ctx);
}

llmq_status device_put(llmq_model *model, const llmq_model_params *params, llmq_err *err) {
    const llmq_hparams *hp = &model->hp;
    llmq_device_layer *layers = mem_zalloc((size_t)hp->n_layer, sizeof *layers);
    if (!layers) return mem_error(err, (size_t)hp->n_layer * sizeof *layers, "the layers");
    llmq_status status = LLMQ_OK;
    int64_t n = 0;
    LLMQ_TRY_GOTO(model_load_vector(model, model->by_role[ROLE_OUTPUT_NORM], hp->n_embd, &model->output_norm, err));
    for (int64_t l = 0; l < hp->n_layer; l++) LLMQ_TRY_GOTO(describe_layer(model, l, &layers[l], err));
    llmq_device_desc d = describe(model, layers);
    LLMQ_TRY_GOTO(count_layers(model, &d, params, &n, err));
    if (n < hp->n_layer) {
        d.embd = NULL;
        llmq_log(LLMQ_LOG_NOTE, "%lld of %lld layers are on %s, the others on the CPU", (long long)n,
                 (long long)hp->n_layer, model->device->name);
    }
    d.layers += hp->n_layer - n;
    d.n_threads = params->n_threads;
    d.n_layer = n;
    LLMQ_TRY_GOTO(model->device->model_create(&d, &model->on_device, err));
    model->n_on_device = n;
done:
    mem_free(layers);
    return status;
}
