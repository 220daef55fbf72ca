/* Opening a model: container -> tokenizer -> hyper-parameters -> tensors bound by role -> weights made ready. */
#include "engine/model.h"
#include "engine/int8.h"

#include <stdio.h>
#include <string.h>

#include "types/type.h"

/* ---- the tokenizer ---- */

static bool has_prefix(const char *s, const char *prefix) {
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool has_suffix(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

static void drop_tokenizer_keys(llmq_meta *meta) {
    for (size_t i = 0; i < meta_count(meta);) {
        char key[256];
        snprintf(key, sizeof key, "%s", meta_at(meta, i)->key);
        if (has_prefix(key, "tokenizer.") || has_prefix(key, "llmq.eos_token_ids"))
            meta_remove(meta, key);
        else
            i++;
    }
}

static llmq_status copy_tokenizer_keys(const char *path, llmq_meta *meta, llmq_err *err) {
    llmq_source *other = NULL;
    llmq_status status = source_open(path, &other, err);
    if (status != LLMQ_OK) return status;
    for (size_t i = 0; i < meta_count(other->meta); i++) {
        const llmq_meta_value *v = meta_at(other->meta, i);
        if (has_prefix(v->key, "tokenizer.") || has_prefix(v->key, "llmq.eos_token_ids"))
            LLMQ_TRY_GOTO(meta_set_value(meta, NULL, v, err));
    }
done:
    source_close(other);
    return status;
}

/* --tokenizer FILE: what it is shows in its name, a GGUF in its first bytes too. */
static llmq_status read_tokenizer_file(const char *path, int64_t n_vocab, llmq_meta *meta, llmq_err *err) {
    if (!file_exists(path)) return llmq_fail(err, LLMQ_E_IO, "%s: no such tokenizer file or folder", path);
    drop_tokenizer_keys(meta);
    if (file_is_dir(path)) return tokenizer_read_hf(path, n_vocab, meta, err);
    if (has_suffix(path, ".json")) return tokenizer_read_json(path, n_vocab, meta, err);
    if (has_suffix(path, ".gguf")) return copy_tokenizer_keys(path, meta, err);
    llmq_map map = {0};
    LLMQ_TRY(file_map(path, &map, err));
    bool gguf = map.size >= 4 && memcmp(map.data, "GGUF", 4) == 0;
    file_unmap(&map);
    return gguf ? copy_tokenizer_keys(path, meta, err) : tokenizer_read_bin(path, n_vocab, meta, err);
}

/* The tokenizer that lies beside weights which do not carry one. */
static llmq_status read_tokenizer_beside(const llmq_source *src, int64_t n_vocab, llmq_meta *meta, llmq_err *err) {
    char path[4096];
    if (strcmp(src->format->name, "huggingface") == 0) {
        if (source_side_file(src, "tokenizer.json", path, sizeof path)) {
            path[strlen(path) - strlen("/tokenizer.json")] = 0;
            return tokenizer_read_hf(path, n_vocab, meta, err);
        }
    } else if (strcmp(src->format->name, "llama2c") == 0) {
        int dir_len = (int)(path_base(src->path) - src->path);
        int n = snprintf(path, sizeof path, "%.*stokenizer.bin", dir_len, src->path);
        if (n > 0 && (size_t)n < sizeof path && file_exists(path)) return tokenizer_read_bin(path, n_vocab, meta, err);
    }
    return LLMQ_OK;
}

static int64_t declared_vocab(const llmq_meta *meta) {
    const char *arch = meta_get_str(meta, "general.architecture");
    char key[128];
    int64_t n = 0;
    if (arch) meta_get_i64(meta, meta_key(key, "%s.vocab_size", arch), &n);
    return n > 0 && n <= 1 << 24 ? n : 0;
}

/* A tokenizer that llmq does not know is no reason to refuse the model: token ids can still be run. */
static llmq_status load_tokenizer(llmq_model *model, const llmq_model_params *params, llmq_err *err) {
    int64_t n_vocab = declared_vocab(model->meta);
    llmq_err *why = &model->tok_err;
    llmq_status status;
    if (params->tokenizer) {
        LLMQ_TRY(read_tokenizer_file(params->tokenizer, n_vocab, model->meta, err));
        status = LLMQ_OK;
    } else {
        status = meta_find(model->meta, "tokenizer.ggml.model")
                     ? LLMQ_OK
                     : read_tokenizer_beside(model->source, n_vocab, model->meta, why);
    }
    if (status == LLMQ_OK && !meta_find(model->meta, "tokenizer.ggml.model"))
        status = llmq_fail(why, LLMQ_E_UNSUPPORTED,
                           "%s: the model carries no tokenizer; give one with --tokenizer FILE", model->source->path);
    else if (status == LLMQ_OK)
        status = tokenizer_create(model->meta, &model->tok, why);
    model->chat = chat_template_detect(meta_get_str(model->meta, "tokenizer.chat_template"));
    if (status == LLMQ_OK || status == LLMQ_E_UNSUPPORTED) return LLMQ_OK;
    if (err) *err = *why;
    return status;
}

llmq_status model_tokenizer(const llmq_model *model, const llmq_tokenizer **out, llmq_err *err) {
    *out = model->tok;
    if (model->tok) return LLMQ_OK;
    return llmq_fail(err, model->tok_err.status, "%s", model->tok_err.msg);
}

/* ---- binding ---- */

static llmq_status check_tensor(const llmq_model *model, llmq_role role, const llmq_tensor *t, llmq_err *err) {
    const char *path = model->source->path;
    int64_t rows, cols;
    hparams_role_shape(&model->hp, role, &rows, &cols);
    if (tensor_cols(t) != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return llmq_fail(
            err, LLMQ_E_FORMAT,
            "%s: tensor '%s' is %lld x %lld (rows x columns), but the model's settings ask for %lld x %lld; "
            "the file is damaged or its settings are not its own: convert or download the model again",
            path, t->name, (long long)tensor_rows(t), (long long)tensor_cols(t), (long long)rows, (long long)cols);
    if (!type_info(t->type))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: tensor '%s' has a storage type that llmq does not know (%d); convert the model to "
                         "another type, e.g. Q4_0 or Q8_0",
                         path, t->name, (int)t->type);
    int64_t row_bytes = type_row_bytes(t->type, cols);
    if (row_bytes < 0 || t->bytes != row_bytes * rows || !t->data)
        return llmq_fail(
            err, LLMQ_E_FORMAT,
            "%s: tensor '%s' has %lld bytes, which %lld x %lld weights of type %s do not fill; the file is "
            "damaged: download it again",
            path, t->name, (long long)t->bytes, (long long)rows, (long long)cols, llmq_type_name(t->type));
    return LLMQ_OK;
}

static llmq_status bind_rule(llmq_model *model, const llmq_arch_rule *rule, int layer, const llmq_tensor **slot,
                             llmq_err *err) {
    char name[128];
    arch_tensor_name(rule, model->source->naming, layer, name);
    const llmq_tensor *t = source_find(model->source, name);
    if (!t && !rule->optional)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: tensor '%s' is missing; the file is incomplete, or not a model of architecture '%s': "
                         "convert or download the model again",
                         model->source->path, name, model->arch->name);
    if (t) LLMQ_TRY(check_tensor(model, rule->role, t, err));
    *slot = t;
    return LLMQ_OK;
}

/* Some quantizers give every matrix a bias of zeros. */
static bool is_zero(const llmq_tensor *t) {
    const uint8_t *bytes = t->data;
    for (int64_t i = 0; i < t->bytes; i++)
        if (bytes[i]) return false;
    return true;
}

/* A tensor that nobody reads may mean a model that is not what it says. Biases surely change the result: refuse. */
static llmq_status check_unbound(const llmq_model *model, const bool *bound, llmq_err *err) {
    const llmq_source *src = model->source;
    for (size_t i = 0; i < src->n_tensors; i++) {
        const char *name = src->tensors[i].name;
        if (bound[i] || strstr(name, "rotary_emb") || strstr(name, "rope_f") || strstr(name, "attn_rot_embd")) continue;
        if (has_suffix(name, ".bias") && is_zero(&src->tensors[i])) continue;
        if (has_suffix(name, ".bias") && (strstr(name, "blk.") || strstr(name, "layers.")))
            return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                             "%s: tensor '%s': llmq does not run biases there for architecture '%s'", src->path, name,
                             model->arch->name);
        llmq_log(LLMQ_LOG_WARN, "%s: tensor '%s' is not used", src->path, name);
    }
    return LLMQ_OK;
}

static llmq_status bind_tensors(llmq_model *model, llmq_err *err) {
    const llmq_source *src = model->source;
    llmq_status status = LLMQ_OK;
    bool *bound = mem_zalloc(src->n_tensors, sizeof *bound);
    model->layer_tensors = mem_zalloc((size_t)model->hp.n_layer, sizeof *model->layer_tensors);
    if (!bound || !model->layer_tensors) {
        status = mem_error(err, (size_t)model->hp.n_layer * sizeof *model->layer_tensors, "the tensor directory");
        goto done;
    }
    for (const llmq_arch_rule *r = model->arch->rules; r->role != ROLE_COUNT; r++) {
        bool of_model = r->role < ROLE_ATTN_NORM;
        for (int l = 0; l < (of_model ? 1 : model->hp.n_layer); l++) {
            const llmq_tensor **slot = of_model ? &model->by_role[r->role] : &model->layer_tensors[l].by_role[r->role];
            LLMQ_TRY_GOTO(bind_rule(model, r, l, slot, err));
            if (*slot) bound[*slot - src->tensors] = true;
        }
    }
    /* transformers ignores a stored head when embeddings are tied. */
    bool tied = false;
    meta_get_bool(model->meta, "hf.tie_word_embeddings", &tied);
    if (tied)
        model->by_role[ROLE_OUTPUT] = NULL;
    else if (src->naming == NAMING_HF && !model->by_role[ROLE_OUTPUT])
        LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_FORMAT,
                                "%s: tensor 'lm_head.weight' is missing and config.json says tie_word_embeddings: "
                                "false; the folder is incomplete: download it again",
                                src->path));
    LLMQ_TRY_GOTO(check_unbound(model, bound, err));
done:
    mem_free(bound);
    return status;
}

/* ---- making ready ---- */

llmq_status model_load_vector(llmq_model *model, const llmq_tensor *t, int64_t n, const float **out, llmq_err *err) {
    if (tensor_numel(t) != n || !t->data)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: tensor '%s' has %lld elements, not %lld; convert or download the model again",
                         model->source->path, t->name, (long long)tensor_numel(t), (long long)n);
    float *x = arena_alloc(model->arena, size_align((size_t)n * sizeof *x, MEM_ALIGN), MEM_ALIGN);
    if (!x) return mem_error(err, (size_t)n * sizeof *x, t->name);
    type_to_f32(t->type, t->data, x, n);
    *out = x;
    return LLMQ_OK;
}

static llmq_status load_role_vector(llmq_model *model, const llmq_layer_tensors *lt, llmq_role role, const float **out,
                                    llmq_err *err) {
    const llmq_tensor *t = lt->by_role[role];
    if (t) LLMQ_TRY(model_load_vector(model, t, tensor_numel(t), out, err));
    return LLMQ_OK;
}

/* After repacking, the file's own pages are not read again (but for rows of an embedding table): let them go. */
static llmq_status prepare_weight(llmq_model *model, const llmq_tensor *t, llmq_weight *w, llmq_team *team,
                                  llmq_err *err) {
    LLMQ_TRY(source_load(model->source, t, false, err));
    LLMQ_TRY(model->ops->weight_prepare(w, t, 0, team, err));
    if (w->packed) source_release(model->source, t);
    return LLMQ_OK;
}

/* A matrix inside a layer; one that is not of 8-bit rows is multiplied as in any other model. */
static llmq_status prepare_matrix(llmq_model *model, int64_t l, llmq_role role, llmq_weight *w, llmq_team *team,
                                  llmq_err *err) {
    const llmq_tensor *t = model->layer_tensors[l].by_role[role];
    if (!int8_runs(model, t)) return prepare_weight(model, t, w, team, err);
    LLMQ_TRY(source_load(model->source, t, false, err));
    llmq_status status = model->ops->weight_prepare_int8(w, t, int8_input(model, l, role), team, err);
    if (status == LLMQ_E_UNSUPPORTED) return prepare_weight(model, t, w, team, err);
    if (status == LLMQ_OK && w->packed) source_release(model->source, t);
    return status;
}

static llmq_status prepare_layer(llmq_model *model, int64_t l, llmq_team *team, llmq_err *err) {
    const llmq_layer_tensors *lt = &model->layer_tensors[l];
    llmq_layer *layer = &model->layers[l];
    const struct {
        llmq_role role, bias;
        llmq_weight *w;
    } matrices[] = {{ROLE_Q, ROLE_Q_BIAS, &layer->q},      {ROLE_K, ROLE_K_BIAS, &layer->k},
                    {ROLE_V, ROLE_V_BIAS, &layer->v},      {ROLE_O, ROLE_O_BIAS, &layer->o},
                    {ROLE_GATE, ROLE_COUNT, &layer->gate}, {ROLE_UP, ROLE_COUNT, &layer->up},
                    {ROLE_DOWN, ROLE_COUNT, &layer->down}};
    const struct {
        llmq_role role;
        const float **out;
    } vectors[] = {{ROLE_ATTN_NORM, &layer->attn_norm},
                   {ROLE_FFN_NORM, &layer->ffn_norm},
                   {ROLE_Q_NORM, &layer->q_norm},
                   {ROLE_K_NORM, &layer->k_norm}};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        LLMQ_TRY(prepare_matrix(model, l, matrices[i].role, matrices[i].w, team, err));
        if (matrices[i].bias != ROLE_COUNT)
            LLMQ_TRY(load_role_vector(model, lt, matrices[i].bias, &matrices[i].w->bias, err));
    }
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        LLMQ_TRY(load_role_vector(model, lt, vectors[i].role, vectors[i].out, err));
    return LLMQ_OK;
}

/* Which matrix of a token's way comes after which; after the head the next token's first. */
static void chain_weights(llmq_model *model) {
    llmq_weight *last = &model->head;
    for (int64_t l = 0; l < model_cpu_layers(model); l++) {
        llmq_layer *layer = &model->layers[l];
        llmq_weight *way[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
        for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
            last->after = way[i];
            last = way[i];
        }
    }
    last->after = &model->head;
}

static llmq_status prepare_weights(llmq_model *model, int n_threads, llmq_err *err) {
    llmq_team *team = NULL;
    llmq_status status = team_create(n_threads, &team, err);
    if (status != LLMQ_OK) return status;
    model->layers = mem_zalloc((size_t)model->hp.n_layer, sizeof *model->layers);
    if (!model->layers) LLMQ_TRY_GOTO(mem_error(err, (size_t)model->hp.n_layer * sizeof *model->layers, "the layers"));
    for (int64_t l = 0; l < model_cpu_layers(model); l++) LLMQ_TRY_GOTO(prepare_layer(model, l, team, err));
    if (model->on_device) goto done; /* it has the head */
    const llmq_tensor *norm = model->by_role[ROLE_OUTPUT_NORM], *head = model->by_role[ROLE_OUTPUT];
    LLMQ_TRY_GOTO(model_load_vector(model, norm, model->hp.n_embd, &model->output_norm, err));
    LLMQ_TRY_GOTO(prepare_weight(model, head ? head : model->by_role[ROLE_TOKEN_EMBD], &model->head, team, err));
    /* What is rounded here shows in the logits themselves: a third of all that 8 bits cost (docs/numerics.md). */
    if (model->head.act == ACT_Q8) model->head.act = ACT_Q8_SPLIT;
done:
    if (status == LLMQ_OK) chain_weights(model);
    team_destroy(team);
    return status;
}

/* Those are the types that folders' matrices of fractions have in memory. */
static bool takes_q16(const llmq_model *model) {
    for (int64_t l = -1; l < model->hp.n_layer; l++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = l < 0 ? model->by_role[role] : model->layer_tensors[l].by_role[role];
            if (t && type_info(t->type)->in_memory) return true;
        }
    return false;
}

size_t model_q8_bytes(const llmq_model *model, int64_t n_tok, int64_t cols) {
    size_t layers = model->ops->acts_bytes(ACT_Q8, n_tok, cols),
           head = model->ops->acts_bytes(ACT_Q8_SPLIT, n_tok, model->hp.n_embd);
    return layers > head ? layers : head;
}

size_t model_q16_bytes(const llmq_model *model, int64_t n_tok, int64_t cols) {
    return model->q16_inputs ? model->ops->acts_bytes(ACT_Q16, n_tok, cols) : 0;
}

static llmq_status load_freq_factors(llmq_model *model, llmq_err *err) {
    const llmq_tensor *t = model->by_role[ROLE_ROPE_FREQS];
    int64_t n = model->hp.n_rot / 2;
    if (t) {
        LLMQ_TRY(model_load_vector(model, t, n, &model->freq_factors, err));
        for (int64_t j = 0; j < n; j++)
            if (!(model->freq_factors[j] > 0 && model->freq_factors[j] < 1e6f))
                return llmq_fail(
                    err, LLMQ_E_FORMAT,
                    "%s: tensor '%s' has element %lld = %g, must be positive; convert or download the model "
                    "again",
                    model->source->path, t->name, (long long)j, (double)model->freq_factors[j]);
        return LLMQ_OK;
    }
    if (model->hp.scaling != ROPE_LLAMA3) return LLMQ_OK;
    float *factors = arena_alloc(model->arena, (size_t)n * sizeof *factors, MEM_ALIGN);
    if (!factors) return mem_error(err, (size_t)n * sizeof *factors, "RoPE factors");
    rope_llama3_factors(&model->hp, factors);
    model->freq_factors = factors;
    return LLMQ_OK;
}

/* ---- what the model says about itself ---- */

static void count_layer_tensors(const llmq_model *model, llmq_model_info *info, int64_t by_type[LLMQ_TYPE_COUNT]) {
    for (int64_t l = 0; l < model->hp.n_layer; l++)
        for (int role = ROLE_ATTN_NORM; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = model->layer_tensors[l].by_role[role];
            if (!t) continue;
            info->n_params += tensor_numel(t);
            info->weight_bytes += t->bytes;
            info->bytes_per_token += t->bytes;
            if (!arch_role_is_matrix((llmq_role)role)) continue;
            info->matrix_params += tensor_numel(t);
            info->matrix_bytes += t->bytes;
            if (t->type >= 0 && t->type < LLMQ_TYPE_COUNT) by_type[t->type] += tensor_numel(t);
        }
}

static void fill_tensor_info(llmq_model *model) {
    llmq_model_info *info = &model->info;
    const llmq_tensor *embd = model->by_role[ROLE_TOKEN_EMBD], *head = model->by_role[ROLE_OUTPUT];
    int64_t by_type[LLMQ_TYPE_COUNT] = {0};
    count_layer_tensors(model, info, by_type);
    for (int role = 0; role < ROLE_ATTN_NORM; role++) {
        const llmq_tensor *t = model->by_role[role];
        if (!t || role == ROLE_ROPE_FREQS) continue; /* divisors are settings, not parameters */
        info->n_params += tensor_numel(t);
        info->weight_bytes += t->bytes;
    }
    info->tied_head = !head;
    info->bytes_per_token +=
        (head ? head : embd)->bytes + model->by_role[ROLE_OUTPUT_NORM]->bytes + embd->bytes / model->hp.n_vocab;
    info->main_type = LLMQ_TYPE_F32;
    for (int type = 0; type < LLMQ_TYPE_COUNT; type++)
        if (by_type[type] > by_type[info->main_type]) info->main_type = (llmq_type)type;
}

static void fill_info(llmq_model *model) {
    llmq_model_info *info = &model->info;
    const llmq_hparams *hp = &model->hp;
    const char *arch = meta_get_str(model->meta, "general.architecture"),
               *name = meta_get_str(model->meta, "general.name");
    info->path = model->source->path;
    info->container = model->source->format->name;
    info->arch = arch ? arch : "";
    info->name = name ? name : "";
    info->tokenizer = model->tok ? tokenizer_describe(model->tok) : "none";
    info->chat_template = model->chat ? chat_template_name(model->chat) : NULL;
    if (model->source->quant) {
        info->quantization = model->source->quant->text;
        info->n_rounded = model->source->quant->n_rounded;
    }
    info->main_type = LLMQ_TYPE_NONE;
    info->activations = int8_describe(model);
    info->n_vocab = hp->n_vocab ? hp->n_vocab : model->tok ? tokenizer_n_vocab(model->tok) : 0;
    info->n_embd = hp->n_embd;
    info->n_layer = hp->n_layer;
    info->n_head = hp->n_head;
    info->n_head_kv = hp->n_head_kv;
    info->head_dim = hp->head_dim;
    info->n_ff = hp->n_ff;
    info->n_ctx_train = hp->n_ctx_train;
    info->rope_theta = hp->rope_base;
    info->device = model->on_device ? model->device->name : NULL;
    info->n_device_layers = model->n_on_device;
    info->kv_bytes_per_token = 2 * 2 * hp->n_layer * hp->n_head_kv * hp->head_dim;
    if (model->layer_tensors) fill_tensor_info(model);
}

/* ---- open, close ---- */

static llmq_status open_body(llmq_model *model, const llmq_model_params *params, llmq_err *err) {
    const llmq_source *src = model->source;
    const char *name = meta_get_str(src->meta, "general.architecture");
    if (!name)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: metadata key 'general.architecture' is missing; convert or download the model again",
                         src->path);
    model->arch = arch_find(name);
    if (!model->arch) {
        char known[160] = "";
        for (size_t i = 0, at = 0; arch_at(i) && at < sizeof known; i++)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", arch_at(i)->name);
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: architecture '%.60s' is not one that llmq runs (%s)", src->path,
                         name, known);
    }
    char embd_name[128];
    arch_tensor_name(arch_rule(model->arch, ROLE_TOKEN_EMBD), src->naming, 0, embd_name);
    const llmq_tensor *embd = source_find(src, embd_name);
    LLMQ_TRY(hparams_read(src, name, embd ? embd->dims[1] : 0, &model->hp, err));
    model->rope_neox = src->naming == NAMING_HF || model->arch->gguf_neox;
    LLMQ_TRY(bind_tensors(model, err));
    LLMQ_TRY(int8_read(model, err));
    model->q16_inputs = takes_q16(model);
    LLMQ_TRY(load_freq_factors(model, err));
    if (model->tok && tokenizer_n_vocab(model->tok) > model->hp.n_vocab)
        llmq_log(LLMQ_LOG_WARN, "%s: the tokenizer has %lld tokens, the model %lld", src->path,
                 (long long)tokenizer_n_vocab(model->tok), (long long)model->hp.n_vocab);
    if (!params->no_weights && model->device) LLMQ_TRY(device_put(model, params, err));
    if (!params->no_weights) LLMQ_TRY(prepare_weights(model, params->n_threads, err));
    return source_load(model->source, model->by_role[ROLE_TOKEN_EMBD], true, err); /* rows are read from it any time */
}

static llmq_status open_any(const char *path, const llmq_model_params *params, const llmq_backend_ops *ops,
                            const llmq_device_ops *device, llmq_model **out, llmq_err *err) {
    llmq_model_params defaults = {0};
    if (!params) params = &defaults;
    *out = NULL;
    llmq_model *model = mem_zalloc(1, sizeof *model);
    if (!model) return mem_error(err, sizeof *model, "a model");
    llmq_status status = LLMQ_OK;
    model->ops = ops;
    model->device = device;
    model->arena = arena_create();
    if (!model->arena) LLMQ_TRY_GOTO(mem_error(err, 64, "a model"));
    LLMQ_TRY_GOTO(source_open(path, &model->source, err));
    model->meta = model->source->meta;
    LLMQ_TRY_GOTO(load_tokenizer(model, params, err));
    if (!params->vocab_only) LLMQ_TRY_GOTO(open_body(model, params, err));
    fill_info(model);
    if (model->info.n_rounded) llmq_log(LLMQ_LOG_WARN, "%s: %s", path, model->source->quant->note);
    *out = model;
    return LLMQ_OK;
done:
    model_close(model);
    return status;
}

llmq_status model_open(const char *path, const llmq_model_params *params, llmq_model **out, llmq_err *err) {
    const llmq_device_ops *device;
    *out = NULL;
    LLMQ_TRY(device_select(params ? params->device : NULL, &device, err));
    return device ? model_open_on(path, params, device, out, err)
                  : model_open_with(path, params, backend_cpu(), out, err);
}

llmq_status model_open_with(const char *path, const llmq_model_params *params, const llmq_backend_ops *ops,
                            llmq_model **out, llmq_err *err) {
    return open_any(path, params, ops, NULL, out, err);
}

llmq_status model_open_on(const char *path, const llmq_model_params *params, const llmq_device_ops *device,
                          llmq_model **out, llmq_err *err) {
    return open_any(path, params, backend_cpu(), device, out, err);
}

void model_close(llmq_model *model) {
    if (!model) return;
    if (model->on_device) model->device->model_destroy(model->on_device);
    for (int64_t l = 0; model->layers && l < model->hp.n_layer; l++) {
        llmq_layer *layer = &model->layers[l];
        llmq_weight *weights[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
        for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
            if (weights[i]->rows) model->ops->weight_release(weights[i]);
    }
    if (model->head.rows) model->ops->weight_release(&model->head);
    mem_free(model->layers);
    mem_free(model->layer_tensors);
    tokenizer_destroy(model->tok);
    source_close(model->source);
    arena_destroy(model->arena);
    mem_free(model);
}
