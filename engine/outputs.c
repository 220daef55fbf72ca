/* The outputs of one run: every call goes to all of them. One output is the file or the folder OUT itself; several lie
 * in folders of their names in OUT, which appears when all of them are whole. */
#include "engine/outputs.h"

#include <stdio.h>
#include <string.h>

#include "core/folder.h"
#include "engine/jobs.h"
#include "engine/output.h"
#include "types/affine.h"

static const char *const names[OUTPUTS_MAX] = {"gguf", "gptq", "awq", "ct", "bnb", "hf"};

struct llmq_outputs {
    llmq_output *list[OUTPUTS_MAX];
    size_t n;
    llmq_out_folder *folder; /* OUT, unless that is a file */
};

/* ---- the list ---- */

/* The next name of "a,b,c" as one of names, NULL past the end; *len 0: an unknown one, which *at then points to. */
static const char *next_name(const char **at, size_t *len) {
    if (!**at) return NULL;
    *len = strcspn(*at, ",");
    for (size_t i = 0; i < OUTPUTS_MAX; i++)
        if (strlen(names[i]) == *len && !strncmp(names[i], *at, *len)) {
            *at += *len + ((*at)[*len] == ',');
            return names[i];
        }
    *len = 0;
    return names[0];
}

llmq_status outputs_check_emit(const char *emit, llmq_err *err) {
    const char *at = emit ? emit : "gguf", *name;
    unsigned seen = 0;
    size_t len;
    if (!*at) return llmq_fail(err, LLMQ_E_ARG, "--emit: it takes a list of gguf, gptq, awq, ct and bnb");
    while ((name = next_name(&at, &len)) != NULL) {
        unsigned bit = 0;
        if (!len)
            return llmq_fail(err, LLMQ_E_ARG, "--emit: '%.*s' is not known: gguf, gptq, awq, ct and bnb are",
                             (int)strcspn(at, ","), at);
        for (size_t i = 0; i < OUTPUTS_MAX; i++) bit |= name == names[i] ? 1u << i : 0;
        if (!strcmp(name, "hf"))
            return llmq_fail(err, LLMQ_E_ARG,
                             "--emit hf: a folder of plain floats; llmq convert --emit hf makes one, by itself");
        if (seen & bit) return llmq_fail(err, LLMQ_E_ARG, "--emit: %s is there twice", name);
        seen |= bit;
        if (strcmp(name, "gguf") && !scheme_find(name))
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--emit: %s comes later", name);
    }
    return LLMQ_OK;
}

/* The i-th output's name, NULL past the end. */
static const char *output_at(const llmq_outputs_spec *spec, size_t i) {
    const char *at = spec->emit ? spec->emit : "gguf", *name = NULL;
    size_t len;
    for (size_t k = 0; k <= i; k++) name = next_name(&at, &len);
    return name;
}

bool outputs_emits(const llmq_outputs_spec *spec, const char *name) {
    const char *one;
    for (size_t i = 0; (one = output_at(spec, i)) != NULL; i++)
        if (!strcmp(one, name)) return true;
    return false;
}

size_t outputs_count(const llmq_outputs_spec *spec) {
    size_t n = 0;
    while (output_at(spec, n)) n++;
    return n;
}

bool outputs_have_integer(const llmq_outputs_spec *spec) {
    return spec->integer.act_quant || outputs_emits(spec, "gptq") || outputs_emits(spec, "awq") ||
           outputs_emits(spec, "ct");
}

bool outputs_have_folder(const llmq_outputs_spec *spec) {
    return outputs_emits(spec, "gptq") || outputs_emits(spec, "awq") || outputs_emits(spec, "ct") ||
           outputs_emits(spec, "bnb");
}

const char *outputs_first(const llmq_outputs_spec *spec) {
    return output_at(spec, 0);
}

llmq_type outputs_integer_type(const llmq_scheme_spec *integer) {
    if (integer->bits == 4) return integer->sym ? LLMQ_TYPE_Q4_0 : LLMQ_TYPE_Q4_1;
    return integer->bits == 8 && integer->sym ? LLMQ_TYPE_Q8_0 : LLMQ_TYPE_NONE;
}

const llmq_scheme_spec *output_scheme_spec(const llmq_outputs_spec *spec, const char *name) {
    return !strcmp(name, "bnb") ? &spec->bnb : &spec->integer;
}

llmq_scheme_spec output_matrix_spec(const llmq_outputs_spec *spec, const char *name, const llmq_export *ex,
                                    size_t index) {
    llmq_scheme_spec s = *output_scheme_spec(spec, name);
    const llmq_export_entry *entry = &ex->entries[index];
    if (s.act_static) s.input = spec->inputs[entry->layer * SITE_COUNT + arch_rule(ex->model->arch, entry->role)->site];
    return s;
}

/* ---- grids and sizes ---- */

static const llmq_type_info *grid_of(const llmq_outputs_spec *spec, const char *name, const llmq_export *ex,
                                     size_t index) {
    if (strcmp(name, "gguf") != 0) return scheme_find(name)->grid(output_scheme_spec(spec, name));
    if (!outputs_have_integer(spec)) return type_info(ex->tensors[index].type);
    return type_affine(spec->integer.bits, spec->integer.group, spec->integer.sym);
}

const llmq_type_info *outputs_grid(const llmq_outputs_spec *spec, const llmq_export *ex, size_t index, size_t k) {
    const llmq_type_info *found[OUTPUTS_MAX];
    const char *name;
    size_t n = 0;
    for (size_t i = 0; (name = output_at(spec, i)) != NULL; i++) {
        const llmq_type_info *grid = grid_of(spec, name, ex, index);
        bool known = false;
        for (size_t j = 0; j < n; j++) known = known || found[j] == grid;
        if (!known) found[n++] = grid;
    }
    return k < n ? found[k] : NULL;
}

static bool is_inside(const llmq_export *ex, size_t index) {
    return ex->entries[index].matrix && ex->entries[index].layer >= 0;
}

llmq_status outputs_check(const llmq_outputs_spec *spec, const llmq_export *ex, llmq_err *err) {
    const char *name;
    for (size_t i = 0; (name = output_at(spec, i)) != NULL; i++) {
        if (!strcmp(name, "gguf")) continue;
        const llmq_scheme *scheme = scheme_find(name);
        const llmq_scheme_spec *s = output_scheme_spec(spec, name);
        if (!scheme->grid(s))
            return llmq_fail(err, LLMQ_E_ARG, "--emit %s: %d bits in groups of %lld is no grid that llmq has", name,
                             s->bits, (long long)s->group);
        for (size_t k = 0; k < ex->n; k++)
            if (is_inside(ex, k))
                LLMQ_TRY(scheme->check(s, ex->tensors[k].name, tensor_rows(&ex->tensors[k]),
                                       tensor_cols(&ex->tensors[k]), err));
    }
    return LLMQ_OK;
}

int64_t outputs_tensor_bytes(const llmq_outputs_spec *spec, const llmq_export *ex, size_t index) {
    const llmq_tensor *t = &ex->tensors[index];
    const char *name = outputs_first(spec);
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    int64_t bytes = 0;
    if (!strcmp(name, "gguf")) return t->bytes;
    if (!is_inside(ex, index)) return tensor_numel(t) * 2;
    llmq_scheme_spec own = output_matrix_spec(spec, name, ex, index);
    int n = scheme_find(name)->members(&own, tensor_rows(t), tensor_cols(t), members);
    for (int i = 0; i < n; i++) bytes += members[i].bytes;
    return bytes;
}

llmq_status outputs_plan_bytes(const llmq_outputs_spec *spec, const llmq_export *ex, int64_t *bytes, llmq_err *err) {
    const char *name;
    *bytes = 0;
    for (size_t i = 0; (name = output_at(spec, i)) != NULL; i++) {
        int64_t one;
        if (!strcmp(name, "gguf"))
            LLMQ_TRY(gguf_plan_bytes(ex->meta, ex->tensors, ex->n, &one, err));
        else
            LLMQ_TRY(output_hf_plan_bytes(spec, name, ex, &one, err));
        *bytes += one;
    }
    return LLMQ_OK;
}

/* ---- what lies at OUT ---- */

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && !strcmp(s + n - k, suffix);
}

/* The config.json of a quantized model, or of one that llmq wrote: no one's original weights. */
static bool is_written_folder(const char *dir) {
    char path[4096], *text = NULL;
    size_t len;
    if (!path_join(path, sizeof path, dir, "config.json") || !file_exists(path)) return false;
    if (file_read(path, (size_t)16 << 20, &text, &len, NULL) != LLMQ_OK) return false;
    bool found = strstr(text, "\"quantization_config\"") || strstr(text, "\"" HF_FILES_MARK "\"");
    mem_free(text);
    return found;
}

static bool in_work_folder(const char *dir) {
    const char *tmp = strstr(dir, ".tmp");
    while (tmp && tmp[4] && tmp[4] != '/') tmp = strstr(tmp + 1, ".tmp");
    return tmp != NULL;
}

static bool is_ours(const void *user, const char *dir, const char *name, bool is_folder) {
    const llmq_source *source = user;
    char path[4096], plain[256];
    if (!path_join(path, sizeof path, dir, name) || source_has_file(source, path)) return false;
    for (size_t i = 0; is_folder && i < OUTPUTS_MAX; i++)
        if (!strcmp(names[i], name)) return true;
    if (is_folder || strlen(name) >= sizeof plain) return false;
    strcpy(plain, name);
    if (ends_with(plain, ".tmp")) plain[strlen(plain) - 4] = 0;
    if (ends_with(plain, ".gguf")) return ends_with(dir, "/gguf");
    return hf_files_has(plain) && (in_work_folder(dir) || is_written_folder(dir));
}

static folder_rule rule_of(const llmq_source *source) {
    return (folder_rule){.is_ours = is_ours, .user = source};
}

static bool is_one_file(const llmq_outputs_spec *spec) {
    return outputs_count(spec) == 1 && outputs_emits(spec, "gguf");
}

llmq_status outputs_check_path(const llmq_outputs_spec *spec, const llmq_source *source, bool replace, llmq_err *err) {
    if (is_one_file(spec)) return job_check_output(source, spec->out, "-o", replace, err);
    folder_rule rule = rule_of(source);
    char tmp[4096];
    size_t len = strlen(spec->out);
    while (len > 1 && spec->out[len - 1] == '/') len--;
    if ((size_t)snprintf(tmp, sizeof tmp, "%.*s.tmp", (int)len, spec->out) >= sizeof tmp)
        return llmq_fail(err, LLMQ_E_ARG, "-o: the path is too long");
    if (file_is_same(spec->out, source->path) || source_has_file(source, spec->out) || file_is_same(tmp, source->path))
        return llmq_fail(err, LLMQ_E_ARG, "%s belongs to the source itself; give another name with -o", spec->out);
    if (!file_exists(spec->out)) return LLMQ_OK;
    if (!replace)
        return llmq_fail(err, LLMQ_E_EXISTS, "%s is there already; give --force to replace it, or another name with -o",
                         spec->out);
    return folder_check(spec->out, &rule, err);
}

/* ---- writing ---- */

static llmq_status open_one(llmq_outputs *o, const llmq_outputs_spec *spec, const char *name, const llmq_export *ex,
                            llmq_err *err) {
    char dir[4096], file[4096];
    llmq_outputs_spec inner = *spec;
    bool several = outputs_count(spec) > 1;
    if (!o->folder) return output_gguf_open(spec, spec->out, ex, &o->list[o->n], err);
    const char *work = out_folder_path(o->folder);
    if (several) LLMQ_TRY(out_folder_add(o->folder, name, err));
    if (!path_join(dir, sizeof dir, work, several ? name : "") ||
        (spec->gguf_name && !path_join(file, sizeof file, dir, spec->gguf_name)))
        return llmq_fail(err, LLMQ_E_ARG, "-o: the path is too long");
    if (strcmp(name, "gguf") != 0) return output_hf_open(spec, name, several ? dir : work, ex, &o->list[o->n], err);
    inner.force = true; /* OUT itself has been asked about */
    return output_gguf_open(&inner, file, ex, &o->list[o->n], err);
}

llmq_status outputs_open(const llmq_outputs_spec *spec, const llmq_export *ex, llmq_outputs **out, llmq_err *err) {
    const char *name;
    llmq_status status = LLMQ_OK;
    folder_rule rule = rule_of(ex->model->source);
    llmq_outputs *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, spec->out);
    if (!is_one_file(spec))
        LLMQ_TRY_GOTO(out_folder_open(spec->out, spec->force, spec->resume, &rule, &o->folder, err));
    for (size_t i = 0; (name = output_at(spec, i)) != NULL; i++) {
        LLMQ_TRY_GOTO(open_one(o, spec, name, ex, err));
        o->n++;
    }
    *out = o;
done:
    if (status != LLMQ_OK) outputs_abort(o, spec->resume);
    return status;
}

llmq_status outputs_put(llmq_outputs *o, size_t index, const llmq_quantized *q, llmq_team *team, llmq_err *err) {
    for (size_t i = 0; i < o->n; i++) {
        llmq_output *output = o->list[i];
        const llmq_type_info *grid = output->grid ? output->grid : type_info(output->ex->tensors[index].type);
        if (grid == q->type) LLMQ_TRY(output->kind->put(output, index, q, team, err));
    }
    return LLMQ_OK;
}

llmq_status outputs_put_plain(llmq_outputs *o, size_t index, const float *values, llmq_team *team, bool *exact_out,
                              export_tick_fn *tick, void *user, llmq_err *err) {
    *exact_out = true;
    for (size_t i = 0; i < o->n; i++) {
        bool exact;
        LLMQ_TRY(o->list[i]->kind->put_plain(o->list[i], index, values, team, &exact, i ? NULL : tick, user, err));
        *exact_out = *exact_out && exact;
    }
    return LLMQ_OK;
}

llmq_status outputs_get(llmq_outputs *o, size_t index, llmq_quantized **out, llmq_err *err) {
    size_t i = 0;
    while (i + 1 < o->n && !strcmp(o->list[i]->kind->name, "gguf") && o->list[i]->grid) i++; /* repacked there */
    return o->list[i]->kind->get(o->list[i], index, out, err);
}

llmq_status outputs_get_plain(llmq_outputs *o, size_t index, llmq_tensor *out, llmq_err *err) {
    return o->list[0]->kind->get_plain(o->list[0], index, out, err);
}

llmq_status outputs_have(llmq_outputs *o, size_t index, llmq_err *err) {
    for (size_t i = 0; i < o->n; i++) LLMQ_TRY(o->list[i]->kind->have(o->list[i], index, err));
    return LLMQ_OK;
}

llmq_status outputs_sync(llmq_outputs *o, llmq_err *err) {
    for (size_t i = 0; i < o->n; i++) LLMQ_TRY(o->list[i]->kind->sync(o->list[i], err));
    return LLMQ_OK;
}

llmq_status outputs_finish(llmq_outputs *o, int64_t *bytes_out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    *bytes_out = 0;
    for (size_t i = 0; i < o->n; i++) {
        int64_t bytes = 0;
        llmq_output *output = o->list[i];
        if (status == LLMQ_OK)
            status = output->kind->finish(output, &bytes, err);
        else
            output->kind->drop(output, false);
        *bytes_out += bytes;
    }
    if (o->folder && status == LLMQ_OK)
        status = out_folder_finish(o->folder, err);
    else
        out_folder_abort(o->folder, false);
    mem_free(o);
    return status;
}

void outputs_abort(llmq_outputs *o, bool keep) {
    if (!o) return;
    for (size_t i = 0; i < o->n; i++) o->list[i]->kind->drop(o->list[i], keep);
    out_folder_abort(o->folder, keep);
    mem_free(o);
}
