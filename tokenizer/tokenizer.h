/* Tokenizers. All of them are built from metadata under GGUF's tokenizer.* keys; tokenizer.json and tokenizer.bin are
 * first turned into those keys, so there is one way in, and a GGUF writer has what it needs. Immutable after creation.
 */
#ifndef LLMQ_TOKENIZER_TOKENIZER_H
#define LLMQ_TOKENIZER_TOKENIZER_H

#include "core/meta.h"

typedef struct llmq_tokenizer llmq_tokenizer;

enum { /* tokenizer.ggml.token_type */
       TOKEN_NORMAL = 1,
       TOKEN_UNKNOWN = 2,
       TOKEN_CONTROL = 3,
       TOKEN_USER_DEFINED = 4,
       TOKEN_UNUSED = 5,
       TOKEN_BYTE = 6
};

/* tokenizer.json (with tokenizer_config.json, generation_config.json, special_tokens_map.json and chat_template.jinja
 * beside it, where there are such) into tokenizer.ggml.* keys and tokenizer.chat_template. n_vocab: config's
 * vocab_size; missing ids become "[PADi]". generation_config's eos list goes to llmq.eos_token_ids (i32 array). A
 * pre-tokenizer that llmq does not know: LLMQ_E_UNSUPPORTED that shows its pattern. */
llmq_status tokenizer_read_hf(const char *dir, int64_t n_vocab, llmq_meta *meta, llmq_err *err);
/* One tokenizer.json file. */
llmq_status tokenizer_read_json(const char *path, int64_t n_vocab, llmq_meta *meta, llmq_err *err);
/* llama2.c's tokenizer.bin (n_vocab 0: to the end of the file). Sets bos 1, eos 2, add_bos, add_space_prefix, byte
 * tokens, and llmq.eos_token_ids = [1, 2]: llama2.c ends a text at BOS. Pieces get U+2581 for spaces as GGUF files have
 * them. */
llmq_status tokenizer_read_bin(const char *path, int64_t n_vocab, llmq_meta *meta, llmq_err *err);

/* A tokenizer from a text (train.c): byte-level BPE after GPT-2's pre-tokenizer, merges by falling count. n_vocab
 * counts everything: 256 bytes, <|endoftext|> (id 0: BOS and EOS; none is put before a text by itself) and what is
 * learned. meta gets the tokenizer.ggml.* keys that tokenizer_create, GGUF files and hf.h want; on an error perhaps
 * some of them. Where the text is too small for n_vocab, there are fewer tokens, and a warning is logged: a model of it
 * takes tokenizer_n_vocab. <|endoftext|> in the text stands between documents and is not learned from. Any bytes are
 * allowed. The same text gives the same tokenizer. LLMQ_E_ARG: an empty text, n_vocab out of 257 .. 2^22. */
llmq_status tokenizer_train(const char *text, size_t len, int64_t n_vocab, llmq_meta *meta, llmq_err *err);

/* tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE by scores), "none" or absent:
 * LLMQ_E_UNSUPPORTED. */
llmq_status tokenizer_create(const llmq_meta *meta, llmq_tokenizer **out, llmq_err *err);
void tokenizer_destroy(llmq_tokenizer *tok);

int64_t tokenizer_n_vocab(const llmq_tokenizer *tok);
const char *tokenizer_describe(const llmq_tokenizer *tok); /* "bpe smollm", "spm" */
int32_t tokenizer_bos(const llmq_tokenizer *tok);          /* -1: none */
bool tokenizer_adds_bos(const llmq_tokenizer *tok);
bool tokenizer_is_end(const llmq_tokenizer *tok,
                      int32_t id); /* eos, eot, eom, llmq.eos_token_ids, and well-known end-of-turn tokens */

/* flags: LLMQ_TOK_BOS, LLMQ_TOK_SPECIAL of llmq.h (values 1, 2). Any bytes are allowed: invalid UTF-8 is encoded by
 * bytes. *out by mem_alloc. Thread-safe. */
llmq_status tokenizer_encode(const llmq_tokenizer *tok, const char *text, size_t len, int flags, int32_t **out,
                             size_t *n_out, llmq_err *err);
/* The bytes of one token (special: "<|im_end|>" too). first: at the start of a text (SentencePiece drops one leading
 * space). */
void tokenizer_token_bytes(const llmq_tokenizer *tok, int32_t id, bool special, const char **bytes, size_t *len);
llmq_status tokenizer_decode(const llmq_tokenizer *tok, const int32_t *ids, size_t n, int flags, char **out,
                             size_t *len_out, llmq_err *err);

/* Streaming: holds back incomplete UTF-8. */
typedef struct llmq_detok llmq_detok;
llmq_detok *detok_create(const llmq_tokenizer *tok); /* NULL when out of memory */
void detok_destroy(llmq_detok *d);
void detok_put(llmq_detok *d, int32_t id, const char **text, size_t *len);
void detok_finish(llmq_detok *d, const char **text, size_t *len);

/* ---- chat templates recognized by their text (chat_template.c): chatml, llama2, llama3, mistral, gemma, zephyr */
typedef struct llmq_chat_template llmq_chat_template;
typedef struct chat_message {
    const char *role, *content;
} chat_message;
const llmq_chat_template *chat_template_detect(const char *jinja); /* NULL: not recognized (or jinja NULL) */
const char *chat_template_name(const llmq_chat_template *t);
/* bos: text of the BOS token or "". *out by mem_alloc. *has_bos_out: the text starts with BOS. Roles that the template
 * lacks (system in gemma) are merged as the template's own text does. */
llmq_status chat_template_render(const llmq_chat_template *t, const chat_message *messages, size_t n,
                                 bool add_assistant, const char *bos, const char *eos, char **out, bool *has_bos_out,
                                 llmq_err *err);

#endif
