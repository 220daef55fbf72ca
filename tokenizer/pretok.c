/* Pre-tokenizers: byte-level BPE never merges across the pieces that these patterns cut a text into. A row is a
 * sequence of steps; each step cuts every piece of the step before at the matches of its pattern, and what lies between
 * matches stays a piece ("Split" with behavior "Isolated" in tokenizer.json). Patterns are written as they stand in
 * tokenizer.json files, so that the same table serves to recognize them.
 *
 * PCRE2 agrees with the regular expressions of Hugging Face's library but for \s: under UCP it also takes U+180E. So \s
 * and \S are replaced by the characters of Unicode's White_Space before the pattern is compiled. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdio.h>
#include <string.h>

#include "tokenizer/internal.h"

/* clang-format off */
#define WHITE_SPACE "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER_LOWER(tail)                                                                                              \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" tail                   \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" tail
#define WORDS(digits)                                                                                                  \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define DIGIT "\\p{N}"
#define LLAMA3 WORDS("\\p{N}{1,3}")
#define QWEN2 WORDS("\\p{N}")
#define QWEN35                                                                                                         \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"        \
                 "|\\s+(?!\\S)|\\s+"
#define TEKKEN UPPER_LOWER("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT4O UPPER_LOWER(CONTRACTIONS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define DEEPSEEK3                                                                                                      \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"                    \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CJK "[\xe4\xb8\x80-\xe9\xbe\xa5\xe3\x81\x80-\xe3\x82\x9f\xe3\x82\xa0-\xe3\x83\xbf]+" /* U+4E00-9FA5 3040-309F 30A0-30FF */
#define BAILING                                                                                                        \
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
#define SEED_CODER                                                                                                     \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
/* clang-format on */
/* ASCII punctuation is \p{P} and nine symbols. */
#define PUNCTUATION "[\\p{P}\\$\\+<=>\\^~\\|]+"

const char PRETOK_GPT2_PATTERN[] = GPT2, PRETOK_DIGITS_PATTERN[] = DIGIT;

struct pretok_row {
    const char *name;
    const char *steps[PRETOK_MAX_STEPS];
    pretok_traits traits; /* nfc, ignore_merges, add_bos */
};

/* clang-format off */
/* Of rows with the same steps and traits the first gives its name to a tokenizer.json. */
static const struct pretok_row rows[] = {
    {"gpt-2", {GPT2}, {0, 0, 0}},
    {"llama-bpe", {LLAMA3}, {0, 1, 1}},
    {"qwen2", {QWEN2}, {1, 0, 0}},
    {"smollm", {DIGIT, GPT2}, {0, 0, 0}},
    {"qwen35", {QWEN35}, {1, 0, 0}},
    {"dbrx", {LLAMA3}, {0, 0, 0}},
    {"deepseek-r1-qwen", {QWEN2}, {0, 0, 0}},
    {"tekken", {TEKKEN}, {0, 1, 1}},
    {"gpt-4o", {GPT4O}, {0, 0, 0}},
    {"deepseek-v3", {"\\p{N}{1,3}", CJK, DEEPSEEK3}, {0, 0, 0}},
    {"bailingmoe", {BAILING}, {0, 0, 0}},
    {"seed-coder", {SEED_CODER}, {0, 0, 0}},
    {"default", {PUNCTUATION, GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, {0, 0, 0}},

    {"llama3", {LLAMA3}, {0, 1, 1}},
    {"llama-v3", {LLAMA3}, {0, 1, 1}},
    {"falcon3", {LLAMA3}, {0, 1, 1}},
    {"falcon-h1", {LLAMA3}, {0, 1, 1}},
    {"pixtral", {LLAMA3}, {0, 1, 1}},
    {"midm-2.0", {LLAMA3}, {0, 1, 1}},
    {"lfm2", {LLAMA3}, {0, 1, 1}},
    {"jina-v5-nano", {LLAMA3}, {0, 1, 1}},
    {"smaug-bpe", {LLAMA3}, {0, 0, 0}},
    {"chatglm-bpe", {LLAMA3}, {0, 0, 0}},
    {"glm4", {LLAMA3}, {0, 0, 0}},
    {"glm5", {LLAMA3}, {0, 0, 0}},
    {"kormo", {QWEN2}, {0, 0, 0}},
    {"f2llmv2", {QWEN2}, {0, 0, 0}},
    {"megrez", {QWEN2}, {0, 0, 0}},
    {"stablelm2", {QWEN2}, {0, 0, 0}},
    {"hunyuan", {QWEN2}, {0, 0, 0}},
    {"solar-open", {QWEN2}, {0, 0, 0}},
    {"grok-2", {QWEN2}, {0, 0, 0}},
    {"starcoder", {DIGIT, GPT2}, {0, 0, 0}},
    {"refact", {DIGIT, GPT2}, {0, 0, 0}},
    {"command-r", {DIGIT, GPT2}, {0, 0, 0}},
    {"codeshell", {DIGIT, GPT2}, {0, 0, 0}},
    {"exaone", {DIGIT, GPT2}, {0, 0, 0}},
    {"minerva-7b", {DIGIT, GPT2}, {0, 0, 0}},
    {"mellum2", {DIGIT, GPT2}, {0, 0, 0}},
    {"phi-2", {GPT2}, {0, 0, 0}},
    {"jina-es", {GPT2}, {0, 0, 0}},
    {"jina-de", {GPT2}, {0, 0, 0}},
    {"jina-v1-en", {GPT2}, {0, 0, 0}},
    {"jina-v2-es", {GPT2}, {0, 0, 0}},
    {"jina-v2-de", {GPT2}, {0, 0, 0}},
    {"jina-v2-code", {GPT2}, {0, 0, 0}},
    {"roberta-bpe", {GPT2}, {0, 0, 0}},
    {"gigachat", {GPT2}, {0, 0, 0}},
    {"a.x-4.0", {GPT2}, {0, 0, 0}},
    {"mellum", {GPT2}, {0, 0, 0}},
    {"modern-bert", {GPT2}, {0, 0, 0}},
    {"exaone4", {GPT2}, {0, 0, 0}},
    {"mpt", {GPT2}, {0, 0, 0}},
    {"olmo", {GPT2}, {0, 0, 0}},
    {"jais", {GPT2}, {0, 0, 0}},
    {"trillion", {GPT2}, {0, 0, 0}},
    {"granite-docling", {GPT2}, {0, 0, 0}},
    {"llama4", {GPT4O}, {0, 0, 0}},
    {"kanana2", {GPT4O}, {0, 0, 0}},
    {"minimax-m2", {GPT4O}, {0, 0, 0}},
    {"hunyuan-dense", {"\\p{N}{1,3}", CJK, DEEPSEEK3}, {0, 0, 0}},
    {"joyai-llm", {"\\p{N}{1,3}", CJK, DEEPSEEK3}, {0, 0, 0}},
    {"bailingmoe2", {BAILING}, {0, 0, 0}},
    {"llada-moe", {BAILING}, {0, 0, 0}},
};
/* clang-format on */

const struct pretok_row *pretok_find(const char *name) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strcmp(rows[i].name, name)) return &rows[i];
    return NULL;
}

pretok_traits pretok_row_traits(const struct pretok_row *row) {
    return row->traits;
}

const char *pretok_row_step(const struct pretok_row *row, size_t i) {
    return i < PRETOK_MAX_STEPS ? row->steps[i] : NULL;
}

/* Equal patterns; a raw CR or LF in theirs is the escape in ours. */
static bool same_pattern(const char *ours, const char *theirs) {
    for (; *theirs; theirs++) {
        if (*theirs == '\r' || *theirs == '\n') {
            if (ours[0] != '\\' || ours[1] != (*theirs == '\r' ? 'r' : 'n')) return false;
            ours += 2;
        } else if (*ours++ != *theirs) {
            return false;
        }
    }
    return !*ours;
}

static bool same_steps(const struct pretok_row *row, const char *const *patterns, size_t n) {
    for (size_t i = 0; i < PRETOK_MAX_STEPS; i++) {
        if (!row->steps[i] || i >= n) return !row->steps[i] && i >= n;
        if (!same_pattern(row->steps[i], patterns[i])) return false;
    }
    return n <= PRETOK_MAX_STEPS;
}

const char *pretok_detect(const char *const *patterns, size_t n, pretok_traits want) {
    const char *second_best = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!same_steps(&rows[i], patterns, n)) continue;
        if (rows[i].traits.nfc == want.nfc && rows[i].traits.ignore_merges == want.ignore_merges) return rows[i].name;
        if (!second_best) second_best = rows[i].name;
    }
    return second_best;
}

struct tok_pretok {
    pcre2_code *steps[PRETOK_MAX_STEPS];
    size_t n_steps;
    bool jit;
};

/* \s and \S spelled out. out holds cap bytes. */
static bool spell_out_spaces(const char *pattern, char *out, size_t cap) {
    bool in_class = false;
    size_t n = 0;
    for (const char *p = pattern; *p; p++) {
        char one[3] = {*p, 0, 0};
        const char *put = one;
        if (*p == '\\' && p[1]) {
            one[1] = *++p;
            if (*p == 's') put = in_class ? WHITE_SPACE : "[" WHITE_SPACE "]";
            if (*p == 'S') put = "[^" WHITE_SPACE "]"; /* never in a class in our table */
        } else if (*p == '[') {
            in_class = true;
        } else if (*p == ']') {
            in_class = false;
        }
        size_t len = strlen(put);
        if (n + len >= cap) return false;
        memcpy(out + n, put, len);
        n += len;
    }
    out[n] = 0;
    return true;
}

static llmq_status compile_step(tok_pretok *pretok, const char *pattern, llmq_err *err) {
    char spelled[4096];
    int code = 0;
    PCRE2_SIZE at = 0;
    if (!spell_out_spaces(pattern, spelled, sizeof spelled))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "pre-tokenizer pattern '%.200s' is too long", pattern);
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)spelled, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!re) {
        if (code == PCRE2_ERROR_HEAP_FAILED) return mem_error(err, 0, "a pre-tokenizer");
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "PCRE2 cannot compile pre-tokenizer pattern '%.200s' (error %d at %zu)", pattern, code, at);
    }
    pretok->steps[pretok->n_steps++] = re;
    if (pcre2_jit_compile(re, PCRE2_JIT_COMPLETE)) pretok->jit = false;
    return LLMQ_OK;
}

llmq_status pretok_create(const struct pretok_row *row, tok_pretok **out, llmq_err *err) {
    tok_pretok *pretok = mem_zalloc(1, sizeof *pretok);
    if (!pretok) return mem_error(err, sizeof *pretok, "a pre-tokenizer");
    pretok->jit = true;
    for (size_t i = 0; i < PRETOK_MAX_STEPS && row->steps[i]; i++) {
        llmq_status status = compile_step(pretok, row->steps[i], err);
        if (status) {
            pretok_destroy(pretok);
            return status;
        }
    }
    *out = pretok;
    return LLMQ_OK;
}

void pretok_destroy(tok_pretok *pretok) {
    if (!pretok) return;
    for (size_t i = 0; i < pretok->n_steps; i++) pcre2_code_free(pretok->steps[i]);
    mem_free(pretok);
}

typedef struct splitter {
    const tok_pretok *pretok;
    pcre2_match_data *match[PRETOK_MAX_STEPS];
    pretok_fn *fn;
    void *arg;
} splitter;

/* The next match of a step at or after `from`. JIT code needs a machine stack of fixed size only for nested groups;
 * where it is too small the interpreter, which takes heap memory, answers. */
static int next_match(const splitter *s, size_t step, const char *text, size_t len, size_t from) {
    pcre2_code *re = s->pretok->steps[step];
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (s->pretok->jit) rc = pcre2_jit_match(re, (PCRE2_SPTR)text, len, from, 0, s->match[step], NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(re, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->match[step], NULL);
    return rc;
}

static llmq_status split_step(const splitter *s, size_t step, const char *text, size_t len, llmq_err *err) {
    if (step == s->pretok->n_steps) return s->fn(s->arg, text, len, err);
    size_t pos = 0;
    while (pos < len) {
        int rc = next_match(s, step, text, len, pos);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0)
            return llmq_fail(err, LLMQ_E_MEMORY, "splitting a text of %zu bytes failed (PCRE2 error %d)", len, rc);
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(s->match[step]);
        if (at[1] <= at[0]) break; /* no pattern of ours matches nothing */
        if (at[0] > pos) LLMQ_TRY(split_step(s, step + 1, text + pos, at[0] - pos, err));
        LLMQ_TRY(split_step(s, step + 1, text + at[0], at[1] - at[0], err));
        pos = at[1];
    }
    return pos < len ? split_step(s, step + 1, text + pos, len - pos, err) : LLMQ_OK;
}

llmq_status pretok_split(const tok_pretok *pretok, const char *text, size_t len, pretok_fn *fn, void *arg,
                         llmq_err *err) {
    splitter s = {.pretok = pretok, .fn = fn, .arg = arg};
    llmq_status status = LLMQ_OK;
    for (size_t i = 0; i < pretok->n_steps; i++) {
        s.match[i] = pcre2_match_data_create(1, NULL);
        if (!s.match[i]) {
            status = mem_error(err, 0, "splitting a text");
            goto done;
        }
    }
    status = split_step(&s, 0, text, len, err);
done:
    for (size_t i = 0; i < pretok->n_steps; i++) pcre2_match_data_free(s.match[i]);
    return status;
}
