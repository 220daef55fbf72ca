/* A Hugging Face folder as an output, under Hugging Face names and with its order of rows: of one scheme, matrices
 * inside layers as the scheme's tensors and everything else as F16; or of none, every tensor in one float type. */
#include <string.h>

#include "engine/output.h"
#include "formats/safetensors_write.h"

typedef struct hf_output {
    llmq_output base;
    const llmq_scheme *scheme; /* NULL: none */
    const char *name;
    llmq_outputs_spec outputs; /* the run's */
    llmq_scheme_spec spec;
    char (*token_names)[TENSOR_MAX_NAME]; /* spec's */
    llmq_type plain;                      /* of tensors that are not the scheme's */
    llmq_export *hf;                      /* parallel to base.ex */
    char *dir;
    llmq_st_writer *writer;
    llmq_st_tensor *tensors; /* n_tensors */
    size_t *first;           /* [hf->n + 1]: tensors first[i] .. first[i + 1] - 1 are of entry i */
} hf_output;

/* ---- the directory ---- */

/* Divisors of rope frequencies are a setting there. */
static bool is_written(const llmq_export *hf, size_t i) {
    return hf->entries[i].role != ROLE_ROPE_FREQS;
}

/* Stored as the scheme's members. */
static bool is_split(const hf_output *o, size_t i) {
    return o->scheme && o->hf->entries[i].matrix && o->hf->entries[i].layer >= 0;
}

static int members_of(const hf_output *o, size_t i, llmq_scheme_member members[SCHEME_MAX_MEMBERS]) {
    const llmq_tensor *t = &o->hf->tensors[i];
    llmq_scheme_spec spec = output_matrix_spec(&o->outputs, o->name, o->hf, i);
    return o->scheme->members(&spec, tensor_rows(t), tensor_cols(t), members);
}

static llmq_status add_member(const llmq_tensor *t, const llmq_scheme_member *member, llmq_st_tensor *out,
                              llmq_err *err) {
    size_t stem = strlen(t->name) - strlen(".weight"); /* every matrix's name ends so */
    *out = (llmq_st_tensor){.dtype = member->dtype, .n_dims = member->n_dims, .bytes = member->bytes};
    if (stem + strlen(member->suffix) >= sizeof out->name)
        return llmq_fail(err, LLMQ_E_ARG, "%s: the name is too long", t->name);
    memcpy(out->name, t->name, stem);
    strcpy(out->name + stem, member->suffix);
    memcpy(out->dims, member->dims, sizeof member->dims);
    return LLMQ_OK;
}

static llmq_st_tensor plain_tensor(const llmq_tensor *t) {
    const char *dtype = t->type == LLMQ_TYPE_F32 ? "F32" : t->type == LLMQ_TYPE_BF16 ? "BF16" : "F16";
    llmq_st_tensor out = {.dtype = dtype, .n_dims = t->n_dims, .bytes = t->bytes};
    strcpy(out.name, t->name);
    for (int d = 0; d < t->n_dims; d++) out.dims[d] = t->dims[t->n_dims - 1 - d];
    return out;
}

static llmq_status make_directory(hf_output *o, llmq_err *err) {
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    size_t n = 0, cap = o->hf->n * SCHEME_MAX_MEMBERS;
    o->tensors = mem_alloc(cap, sizeof *o->tensors);
    o->first = mem_alloc(o->hf->n + 1, sizeof *o->first);
    if (!o->tensors || !o->first) return mem_error(err, cap * sizeof *o->tensors, "the output's directory");
    for (size_t i = 0; i < o->hf->n; i++) {
        o->first[i] = n;
        if (!is_written(o->hf, i)) continue;
        if (!is_split(o, i)) {
            o->tensors[n++] = plain_tensor(&o->hf->tensors[i]);
            continue;
        }
        int count = members_of(o, i, members);
        for (int k = 0; k < count; k++) LLMQ_TRY(add_member(&o->hf->tensors[i], &members[k], &o->tensors[n++], err));
    }
    o->first[o->hf->n] = n;
    return LLMQ_OK;
}

static void hf_free(hf_output *o) {
    if (!o) return;
    export_destroy(o->hf);
    mem_free(o->tensors);
    mem_free(o->first);
    mem_free(o->token_names);
    mem_free((void *)(uintptr_t)o->spec.token_names);
    mem_free(o->dir);
    mem_free(o);
}

/* Matrices without a fixed range in a model that has some. */
static llmq_status name_tokens(hf_output *o, llmq_err *err) {
    if (!o->scheme || !o->spec.act_static) return LLMQ_OK;
    const char **names = mem_alloc(o->hf->n, sizeof *names);
    o->spec.token_names = names;
    o->token_names = mem_alloc(o->hf->n, sizeof *o->token_names);
    if (!names || !o->token_names) return mem_error(err, o->hf->n * sizeof *o->token_names, o->name);
    for (size_t i = 0; i < o->hf->n; i++) {
        if (!is_split(o, i) || output_matrix_spec(&o->outputs, o->name, o->hf, i).input.scale > 0) continue;
        size_t n = o->spec.n_token_names++;
        names[n] = strcpy(o->token_names[n], o->hf->tensors[i].name);
        o->token_names[n][strlen(names[n]) - strlen(".weight")] = 0;
    }
    return LLMQ_OK;
}

static llmq_status hf_create(const llmq_outputs_spec *spec, const char *name, const llmq_export *ex, hf_output **out,
                             llmq_err *err) {
    hf_output *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, name);
    o->base.ex = ex;
    o->name = name;
    o->outputs = *spec;
    o->plain = LLMQ_TYPE_F16;
    if (!strcmp(name, "hf")) {
        o->plain = spec->plain;
    } else {
        o->scheme = scheme_find(name);
        o->spec = *output_scheme_spec(spec, name);
        o->base.grid = o->scheme->grid(&o->spec);
    }
    llmq_status status = export_create_hf(ex->model, &o->hf, err);
    for (size_t i = 0; status == LLMQ_OK && i < o->hf->n; i++) status = export_set_type(o->hf, i, o->plain, err);
    if (status == LLMQ_OK) status = name_tokens(o, err);
    if (status == LLMQ_OK) status = make_directory(o, err);
    if (status == LLMQ_OK)
        *out = o;
    else
        hf_free(o);
    return status;
}

/* Scales that are coded over the ends of rows do not survive another order of rows. */
static llmq_status check_order(const hf_output *o, llmq_err *err) {
    const llmq_type_info *grid = o->base.grid;
    for (size_t i = 0; i < o->hf->n; i++)
        if (is_split(o, i) && o->hf->entries[i].interleave &&
            (grid->settle || quantized_crosses_rows(grid, tensor_cols(&o->hf->tensors[i]))))
            return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                             "%s: its rows have to be put in another order for a Hugging Face folder, but --emit %s "
                             "shares scales between rows here (%s); start from the folder that the file was made of",
                             o->base.ex->tensors[i].name, o->scheme->name,
                             grid->settle ? "--double-quant" : "rows that 64 does not divide");
    return LLMQ_OK;
}

llmq_status output_hf_plan_bytes(const llmq_outputs_spec *spec, const char *name, const llmq_export *ex, int64_t *bytes,
                                 llmq_err *err) {
    hf_output *o = NULL;
    LLMQ_TRY(hf_create(spec, name, ex, &o, err));
    llmq_status status = check_order(o, err);
    if (status == LLMQ_OK) status = st_plan_bytes(o->tensors, o->first[o->hf->n], spec->shard_bytes, bytes, err);
    hf_free(o);
    return status;
}

/* ---- matrices ---- */

/* The rows of `from` into the folder's order, or back into the source's. */
static void move_rows(const hf_output *o, size_t index, const llmq_quantized *from, bool back, llmq_quantized *to) {
    size_t n = (size_t)type_blocks(from->type, from->cols), cols = (size_t)from->cols;
    for (int64_t r = 0; r < from->rows; r++) {
        size_t file = (size_t)r, source = (size_t)export_source_row(o->hf, index, r);
        size_t at = back ? source : file, was = back ? file : source;
        memcpy(to->grids + at * n, from->grids + was * n, n * sizeof *to->grids);
        memcpy(to->codes + at * cols, from->codes + was * cols, cols);
    }
}

/* A view of q's rows in the folder's order, where that is another. Freed by quantized_destroy if *own. */
static llmq_status order_rows(const hf_output *o, size_t index, const llmq_quantized *q, const llmq_quantized **out,
                              llmq_quantized **own, llmq_err *err) {
    *out = q;
    *own = NULL;
    if (!o->hf->entries[index].interleave) return LLMQ_OK;
    LLMQ_TRY(quantized_create(q->type, q->rows, q->cols, own, err));
    move_rows(o, index, q, false, *own);
    *out = *own;
    return LLMQ_OK;
}

/* Room for the members of a matrix. */
static llmq_status alloc_members(const hf_output *o, size_t index, llmq_scheme_member members[SCHEME_MAX_MEMBERS],
                                 void *data[SCHEME_MAX_MEMBERS], int *n_out, llmq_err *err) {
    int n = *n_out = members_of(o, index, members);
    for (int k = 0; k < n; k++) {
        data[k] = mem_alloc((size_t)members[k].bytes, 1);
        if (!data[k]) return mem_error(err, (size_t)members[k].bytes, o->hf->tensors[index].name);
    }
    return LLMQ_OK;
}

static llmq_status put_members(hf_output *o, size_t index, const llmq_quantized *q, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    void *data[SCHEME_MAX_MEMBERS] = {NULL};
    int n;
    LLMQ_TRY_GOTO(alloc_members(o, index, members, data, &n, err));
    llmq_scheme_spec spec = output_matrix_spec(&o->outputs, o->name, o->hf, index);
    LLMQ_TRY_GOTO(o->scheme->split(&spec, q, data, err));
    for (int k = 0; k < n; k++)
        LLMQ_TRY_GOTO(st_writer_put(o->writer, o->first[index] + (size_t)k, data[k], (size_t)members[k].bytes, 0, err));
done:
    for (int k = 0; k < SCHEME_MAX_MEMBERS; k++) mem_free(data[k]);
    return status;
}

static llmq_status get_members(hf_output *o, size_t index, llmq_quantized *q, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    void *data[SCHEME_MAX_MEMBERS] = {NULL};
    int n;
    LLMQ_TRY_GOTO(alloc_members(o, index, members, data, &n, err));
    for (int k = 0; k < n; k++)
        LLMQ_TRY_GOTO(st_writer_get(o->writer, o->first[index] + (size_t)k, data[k], (size_t)members[k].bytes, 0, err));
    llmq_scheme_spec spec = output_matrix_spec(&o->outputs, o->name, o->hf, index);
    LLMQ_TRY_GOTO(scheme_join(o->scheme, &spec, o->hf->tensors[index].name, data, q, err));
done:
    for (int k = 0; k < SCHEME_MAX_MEMBERS; k++) mem_free(data[k]);
    return status;
}

static llmq_status get(llmq_output *base, size_t index, llmq_quantized **out, llmq_err *err) {
    hf_output *o = (hf_output *)base;
    const llmq_tensor *t = &o->hf->tensors[index];
    llmq_quantized *q = NULL, *ordered = NULL;
    LLMQ_TRY(quantized_create(base->grid, tensor_rows(t), tensor_cols(t), &q, err));
    llmq_status status = get_members(o, index, q, err);
    if (status == LLMQ_OK && o->hf->entries[index].interleave) {
        status = quantized_create(q->type, q->rows, q->cols, &ordered, err);
        if (status == LLMQ_OK) move_rows(o, index, q, true, ordered);
    }
    if (status == LLMQ_OK && !ordered) {
        *out = q;
        return LLMQ_OK;
    }
    quantized_destroy(q);
    *out = ordered;
    return status;
}

static llmq_status get_plain(llmq_output *base, size_t index, llmq_tensor *out, llmq_err *err) {
    hf_output *o = (hf_output *)base;
    const llmq_tensor *t = &o->hf->tensors[index];
    *out = *t;
    out->data = NULL;
    if (!is_written(o->hf, index)) return LLMQ_OK;
    int64_t rows = o->hf->entries[index].matrix ? tensor_rows(t) : tensor_numel(t);
    size_t row_bytes = (size_t)(t->bytes / rows);
    uint8_t *file = mem_alloc((size_t)t->bytes, 1), *to = mem_alloc((size_t)t->bytes, 1);
    llmq_status status = file && to ? st_writer_get(o->writer, o->first[index], file, (size_t)t->bytes, 0, err)
                                    : mem_error(err, (size_t)t->bytes, t->name);
    for (int64_t r = 0; status == LLMQ_OK && r < rows; r++)
        memcpy(to + (size_t)export_source_row(o->hf, index, r) * row_bytes, file + (size_t)r * row_bytes, row_bytes);
    mem_free(file);
    if (status == LLMQ_OK)
        out->data = to;
    else
        mem_free(to);
    return status;
}

static llmq_status put(llmq_output *base, size_t index, const llmq_quantized *q, llmq_team *team, llmq_err *err) {
    hf_output *o = (hf_output *)base;
    const llmq_quantized *ordered;
    llmq_quantized *own;
    (void)team;
    LLMQ_TRY(order_rows(o, index, q, &ordered, &own, err));
    llmq_status status = put_members(o, index, ordered, err);
    quantized_destroy(own);
    return status;
}

/* ---- the rest ---- */

static llmq_status put_bytes(void *to, size_t index, const void *data, size_t bytes, size_t offset, llmq_err *err) {
    hf_output *o = to;
    return st_writer_put(o->writer, o->first[index], data, bytes, offset, err);
}

static llmq_status put_plain(llmq_output *base, size_t index, const float *values, llmq_team *team, bool *exact_out,
                             export_tick_fn *tick, void *user, llmq_err *err) {
    hf_output *o = (hf_output *)base;
    export_sink sink = {.put = put_bytes, .to = o, .tick = tick, .user = user};
    *exact_out = true;
    if (!is_written(o->hf, index)) return LLMQ_OK;
    if (is_split(o, index))
        return llmq_fail(err, LLMQ_E_ARG, "%s: a matrix inside a layer was not quantized for %s",
                         base->ex->tensors[index].name, o->scheme->name);
    return export_write(o->hf, index, values, &sink, team, exact_out, err);
}

static llmq_status have(llmq_output *base, size_t index, llmq_err *err) {
    hf_output *o = (hf_output *)base;
    for (size_t k = o->first[index]; k < o->first[index + 1]; k++) LLMQ_TRY(st_writer_have(o->writer, k, err));
    return LLMQ_OK;
}

static llmq_status sync_output(llmq_output *base, llmq_err *err) {
    return st_writer_sync(((hf_output *)base)->writer, err);
}

static llmq_status finish(llmq_output *base, int64_t *bytes_out, llmq_err *err) {
    hf_output *o = (hf_output *)base;
    llmq_status status = st_writer_finish(o->writer, bytes_out, err);
    if (status == LLMQ_OK) status = hf_files_write(o->dir, base->ex, o->scheme, &o->spec, o->plain, err);
    hf_free(o);
    return status;
}

static void drop(llmq_output *base, bool keep) {
    hf_output *o = (hf_output *)base;
    st_writer_abort(o->writer, keep);
    hf_free(o);
}

static const llmq_output_kind kind_hf = {.name = "folder",
                                         .put = put,
                                         .put_plain = put_plain,
                                         .get = get,
                                         .get_plain = get_plain,
                                         .have = have,
                                         .sync = sync_output,
                                         .finish = finish,
                                         .drop = drop};

llmq_status output_hf_open(const llmq_outputs_spec *spec, const char *name, const char *dir, const llmq_export *ex,
                           llmq_output **out, llmq_err *err) {
    hf_output *o = NULL;
    LLMQ_TRY(hf_create(spec, name, ex, &o, err));
    o->base.kind = &kind_hf;
    o->dir = mem_strdup(dir);
    llmq_status status = o->dir ? LLMQ_OK : mem_error(err, strlen(dir), dir);
    if (status == LLMQ_OK)
        status = st_writer_open(dir, o->tensors, o->first[o->hf->n], spec->shard_bytes, spec->resume, &o->writer, err);
    if (status == LLMQ_OK)
        *out = &o->base;
    else
        hf_free(o);
    return status;
}
