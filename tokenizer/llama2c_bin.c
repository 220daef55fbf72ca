/* llama2.c's tokenizer.bin: u32 longest piece, then for each id f32 score, i32 length, bytes. Nothing says how many
 * there are, nor what they are: id 0 is <unk>, 1 "\n<s>\n", 2 "\n</s>\n", 3..258 the texts "<0x00>".."<0xFF>" of the
 * byte tokens, the rest pieces of SentencePiece with plain spaces. */
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "tokenizer/internal.h"

#define MAX_TOKENS (1 << 22)

typedef struct bin_vocab {
    llmq_arena *arena;
    llmq_str *tokens; /* (n) */
    float *scores;
    int32_t *types;
    size_t n, cap;
} bin_vocab;

static llmq_status grow(bin_vocab *v, llmq_err *err) {
    size_t cap = v->cap ? v->cap * 2 : 1024;
    llmq_str *tokens = mem_grow(v->tokens, v->n, cap, sizeof *tokens);
    if (tokens) v->tokens = tokens;
    float *scores = mem_grow(v->scores, v->n, cap, sizeof *scores);
    if (scores) v->scores = scores;
    int32_t *types = mem_grow(v->types, v->n, cap, sizeof *types);
    if (types) v->types = types;
    if (!tokens || !scores || !types) return mem_error(err, cap * 24, "a vocabulary");
    v->cap = cap;
    return LLMQ_OK;
}

/* The piece as GGUF files have it: U+2581 for spaces, and the control tokens without their newlines. */
static llmq_status add(bin_vocab *v, const char *s, size_t len, float score, llmq_err *err) {
    static const char *const names[] = {"<unk>", "<s>", "</s>"};
    if (v->n == v->cap) LLMQ_TRY(grow(v, err));
    char byte_text[8];
    int32_t type = TOKEN_NORMAL;
    if (v->n < 3) {
        type = v->n ? TOKEN_CONTROL : TOKEN_UNKNOWN;
        s = names[v->n];
        len = strlen(s);
    } else if (v->n < 259) {
        snprintf(byte_text, sizeof byte_text, "<0x%02X>", (unsigned)(v->n - 3));
        if (len == 6 && !memcmp(s, byte_text, 6)) type = TOKEN_BYTE;
    }
    char *out = arena_alloc(v->arena, len * 3 + 1, 1);
    if (!out) return mem_error(err, len * 3, "a vocabulary");
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        bool space = s[i] == ' ';
        memcpy(out + n, space ? SPM_SPACE : s + i, space ? 3 : 1);
        n += space ? 3 : 1;
    }
    out[n] = 0;
    v->tokens[v->n] = (llmq_str){out, n};
    v->scores[v->n] = score;
    v->types[v->n++] = type;
    return LLMQ_OK;
}

static llmq_status parse(const llmq_map *map, const char *path, size_t n_vocab, bin_vocab *v, llmq_err *err) {
    size_t pos = 4;
    if (map->size < 4) return llmq_fail(err, LLMQ_E_FORMAT, "%s: %zu bytes are no tokenizer.bin", path, map->size);
    while (n_vocab ? v->n < n_vocab : pos < map->size) {
        float score;
        int32_t len;
        if (map->size - pos < 8)
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: the file ends after %zu tokens%s; is it cut short, or the tokenizer of "
                             "another model?",
                             path, v->n, n_vocab ? ", fewer than the model has" : "");
        memcpy(&score, map->data + pos, 4);
        memcpy(&len, map->data + pos + 4, 4);
        pos += 8;
        if (len < 0 || (size_t)len > map->size - pos)
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: token %zu claims %d bytes, %zu are left in the file; it is cut short or "
                             "no tokenizer.bin",
                             path, v->n, len, map->size - pos);
        if (score != score || v->n == MAX_TOKENS)
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: token %zu: this is no tokenizer.bin", path, v->n);
        LLMQ_TRY(add(v, (const char *)map->data + pos, (size_t)len, score, err));
        pos += (size_t)len;
    }
    if (pos != map->size)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: %zu bytes follow the %zu tokens of the model; it is the tokenizer of another "
                         "model",
                         path, map->size - pos, v->n);
    if (v->n < 3) return llmq_fail(err, LLMQ_E_FORMAT, "%s: only %zu tokens", path, v->n);
    return LLMQ_OK;
}

static llmq_status to_meta(const bin_vocab *v, llmq_meta *meta, llmq_err *err) {
    static const int32_t ends[] = {1, 2};
    LLMQ_TRY(meta_set_str(meta, "tokenizer.ggml.model", "llama", err));
    LLMQ_TRY(meta_set_str(meta, "tokenizer.ggml.pre", "default", err));
    LLMQ_TRY(meta_set_strs(meta, "tokenizer.ggml.tokens", v->tokens, v->n, err));
    LLMQ_TRY(meta_set_array(meta, "tokenizer.ggml.scores", META_F32, v->scores, v->n, err));
    LLMQ_TRY(meta_set_array(meta, "tokenizer.ggml.token_type", META_I32, v->types, v->n, err));
    LLMQ_TRY(meta_set_u32(meta, "tokenizer.ggml.bos_token_id", 1, err));
    LLMQ_TRY(meta_set_u32(meta, "tokenizer.ggml.eos_token_id", 2, err));
    LLMQ_TRY(meta_set_u32(meta, "tokenizer.ggml.unknown_token_id", 0, err));
    LLMQ_TRY(meta_set_bool(meta, "tokenizer.ggml.add_bos_token", true, err));
    LLMQ_TRY(meta_set_bool(meta, "tokenizer.ggml.add_eos_token", false, err));
    LLMQ_TRY(meta_set_bool(meta, "tokenizer.ggml.add_space_prefix", true, err));
    return meta_set_array(meta, "llmq.eos_token_ids", META_I32, ends, 2, err);
}

llmq_status tokenizer_read_bin(const char *path, int64_t n_vocab, llmq_meta *meta, llmq_err *err) {
    llmq_map map = {0};
    bin_vocab v = {0};
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(file_map(path, &map, err));
    v.arena = arena_create();
    if (!v.arena) {
        status = mem_error(err, 0, "a vocabulary");
        goto done;
    }
    LLMQ_TRY_GOTO(parse(&map, path, n_vocab > 0 ? (size_t)n_vocab : 0, &v, err));
    LLMQ_TRY_GOTO(to_meta(&v, meta, err));
done:
    mem_free(v.types);
    mem_free(v.scores);
    mem_free(v.tokens);
    arena_destroy(v.arena);
    file_unmap(&map);
    return status;
}
