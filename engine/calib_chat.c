/* Calibration text from conversations: a .jsonl file, one {"messages": [{"role", "content"}, ...]} (or the bare list) a
 * line, rendered one after another through the model's own chat template, so that the layers see the tokens of turns.
 */
#include <jansson.h>
#include <string.h>

#include "engine/calib.h"

typedef struct text_buffer {
    char *data;
    size_t len, cap;
} text_buffer;

static llmq_status append(text_buffer *b, const char *s, size_t n, llmq_err *err) {
    if (n >= b->cap - b->len) {
        size_t cap = (b->cap + n + 1) * 2;
        char *grown = mem_grow(b->data, b->len, cap, 1);
        if (!grown) return mem_error(err, cap, "calibration text");
        b->data = grown;
        b->cap = cap;
    }
    memcpy(b->data + b->len, s, n);
    b->len += n;
    b->data[b->len] = 0;
    return LLMQ_OK;
}

static const char *member(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static llmq_status render(const llmq_model *model, const json_t *doc, const char *eos, text_buffer *out,
                          const char *path, size_t line, llmq_err *err) {
    const json_t *list = json_is_array(doc) ? doc : json_object_get(doc, "messages");
    size_t n = json_array_size(list);
    bool has_bos, sound = n > 0;
    char *text = NULL;
    chat_message *messages = mem_zalloc(n + 1, sizeof *messages);
    if (!messages) return mem_error(err, n * sizeof *messages, "calibration text");
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(list, i);
        messages[i] = (chat_message){member(m, "role"), member(m, "content")};
        sound = sound && messages[i].role && messages[i].content;
    }
    llmq_status status =
        sound ? chat_template_render(model->chat, messages, n, false, "", eos, &text, &has_bos, err)
              : llmq_fail(err, LLMQ_E_FORMAT,
                          "--calib %s: line %zu: must be {\"messages\": [{\"role\": ..., \"content\": ...}, ...]}",
                          path, line);
    mem_free(messages);
    if (status == LLMQ_OK) status = append(out, text, strlen(text), err);
    mem_free(text);
    return status;
}

static llmq_status eos_text(const llmq_model *model, char **out, llmq_err *err) {
    int64_t id = -1;
    const char *bytes = "";
    size_t len = 0;
    meta_get_i64(model->meta, "tokenizer.ggml.eos_token_id", &id);
    if (id >= 0 && id < tokenizer_n_vocab(model->tok))
        tokenizer_token_bytes(model->tok, (int32_t)id, true, &bytes, &len);
    *out = mem_zalloc(len + 1, 1);
    if (!*out) return mem_error(err, len + 1, "calibration text");
    memcpy(*out, bytes, len);
    return LLMQ_OK;
}

static bool is_blank(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r') return false;
    return true;
}

llmq_status calib_chat_text(const llmq_model *model, const char *path, const char *jsonl, size_t len, char **out,
                            size_t *len_out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    text_buffer buffer = {0};
    char *eos = NULL;
    if (!model->chat)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "--calib %s: the model has no chat template that llmq recognizes; give plain text", path);
    LLMQ_TRY(eos_text(model, &eos, err));
    LLMQ_TRY_GOTO(append(&buffer, "", 0, err));
    for (size_t begin = 0, line = 1; begin < len; line++) {
        const char *nl = memchr(jsonl + begin, '\n', len - begin);
        size_t end = nl ? (size_t)(nl - jsonl) : len, n = end - begin;
        json_error_t why;
        if (!is_blank(jsonl + begin, n)) {
            json_t *doc = json_loadb(jsonl + begin, n, 0, &why);
            if (!doc)
                LLMQ_TRY_GOTO(
                    llmq_fail(err, LLMQ_E_FORMAT, "--calib %s: line %zu: not JSON: %s", path, line, why.text));
            status = render(model, doc, eos, &buffer, path, line, err);
            json_decref(doc);
            if (status != LLMQ_OK) goto done;
        }
        begin = end + 1;
    }
    *out = buffer.data;
    *len_out = buffer.len;
done:
    mem_free(eos);
    if (status != LLMQ_OK) mem_free(buffer.data);
    return status;
}
