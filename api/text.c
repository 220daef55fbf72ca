/* Public functions about text: thin wrappers around tokenizer/. */
#include <string.h>

#include "engine/model.h"

llmq_status llmq_encode(const llmq_model *model, const char *text, size_t len, int flags, int32_t **out, size_t *n_out,
                        llmq_err *err) {
    const llmq_tokenizer *tok;
    LLMQ_TRY(model_tokenizer(model, &tok, err));
    return tokenizer_encode(tok, text, len, flags, out, n_out, err);
}

llmq_status llmq_decode(const llmq_model *model, const int32_t *ids, size_t n, int flags, char **out, size_t *len_out,
                        llmq_err *err) {
    const llmq_tokenizer *tok;
    LLMQ_TRY(model_tokenizer(model, &tok, err));
    return tokenizer_decode(tok, ids, n, flags, out, len_out, err);
}

void llmq_free(void *p) {
    mem_free(p);
}

struct llmq_stream {
    llmq_detok *detok;
};

llmq_status llmq_stream_create(const llmq_model *model, llmq_stream **out, llmq_err *err) {
    const llmq_tokenizer *tok;
    *out = NULL;
    LLMQ_TRY(model_tokenizer(model, &tok, err));
    llmq_stream *stream = mem_zalloc(1, sizeof *stream);
    if (stream) stream->detok = detok_create(tok);
    if (!stream || !stream->detok) {
        mem_free(stream);
        return mem_error(err, sizeof *stream, "a text stream");
    }
    *out = stream;
    return LLMQ_OK;
}

void llmq_stream_destroy(llmq_stream *stream) {
    if (!stream) return;
    detok_destroy(stream->detok);
    mem_free(stream);
}

void llmq_stream_put(llmq_stream *stream, int32_t id, const char **text, size_t *len) {
    detok_put(stream->detok, id, text, len);
}
void llmq_stream_finish(llmq_stream *stream, const char **text, size_t *len) {
    detok_finish(stream->detok, text, len);
}

bool llmq_model_is_end(const llmq_model *model, int32_t id) {
    return model->tok && tokenizer_is_end(model->tok, id);
}

/* The text of a special token, "" for none. *out by mem_alloc. */
static llmq_status special_text(const llmq_model *model, int64_t id, char **out, llmq_err *err) {
    const char *bytes = "";
    size_t len = 0;
    if (model->tok && id >= 0 && id < tokenizer_n_vocab(model->tok))
        tokenizer_token_bytes(model->tok, (int32_t)id, true, &bytes, &len);
    *out = mem_alloc(len + 1, 1);
    if (!*out) return mem_error(err, len + 1, "a chat prompt");
    memcpy(*out, bytes, len);
    (*out)[len] = 0;
    return LLMQ_OK;
}

llmq_status llmq_chat_render(const llmq_model *model, const llmq_message *messages, size_t n, bool add_assistant,
                             char **out, bool *recognized_out, bool *has_bos_out, llmq_err *err) {
    *out = NULL;
    *recognized_out = model->chat != NULL;
    *has_bos_out = false;
    if (n == 0) return llmq_fail(err, LLMQ_E_ARG, "no messages to render");
    if (!model->chat) {
        *out = mem_strdup(messages[n - 1].content);
        return *out ? LLMQ_OK : mem_error(err, strlen(messages[n - 1].content), "a chat prompt");
    }
    int64_t eos_id = -1;
    meta_get_i64(model->meta, "tokenizer.ggml.eos_token_id", &eos_id);
    char *bos = NULL, *eos = NULL;
    llmq_status status = LLMQ_OK;
    chat_message *copies = mem_alloc(n, sizeof *copies);
    if (!copies) LLMQ_TRY_GOTO(mem_error(err, n * sizeof *copies, "a chat prompt"));
    for (size_t i = 0; i < n; i++) copies[i] = (chat_message){messages[i].role, messages[i].content};
    LLMQ_TRY_GOTO(special_text(model, model->tok ? tokenizer_bos(model->tok) : -1, &bos, err));
    LLMQ_TRY_GOTO(special_text(model, eos_id, &eos, err));
    status = chat_template_render(model->chat, copies, n, add_assistant, bos, eos, out, has_bos_out, err);
done:
    mem_free(copies);
    mem_free(bos);
    mem_free(eos);
    return status;
}
