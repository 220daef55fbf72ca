#include "quant/policy.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"

#define MAX_FILE ((size_t)1 << 20) /* bytes of a policy file */

/* Where rows are no multiple of 256, a type of blocks of 32 with at least as many bits takes its place. */
static const struct {
    llmq_type asked, instead;
} fallbacks[] = {
    {LLMQ_TYPE_Q2_K, LLMQ_TYPE_IQ4_NL}, {LLMQ_TYPE_Q3_K, LLMQ_TYPE_IQ4_NL}, {LLMQ_TYPE_IQ4_XS, LLMQ_TYPE_IQ4_NL},
    {LLMQ_TYPE_Q4_K, LLMQ_TYPE_IQ4_NL}, {LLMQ_TYPE_Q5_K, LLMQ_TYPE_Q5_1},   {LLMQ_TYPE_Q6_K, LLMQ_TYPE_Q8_0},
};

/* The best measured type of so many bits, in order: the first whose block divides every row length that 32 divides at
 * all. Four bits: after GPTQ and at the same 4.5 bits a weight, the mean KL divergence from the reference model on
 * held-out text was 0.051 for iq4_nl and 0.085 for q4_0; with rows that 256 divides, 0.036 for iq4_nl and for q4_k
 * alike. */
static const struct {
    int bits;
    llmq_type type;
} defaults[] = {
    {2, LLMQ_TYPE_Q2_K},
    {3, LLMQ_TYPE_Q3_K},
    {4, LLMQ_TYPE_IQ4_NL},
    {8, LLMQ_TYPE_Q8_0},
};

static bool divides(llmq_type type, int64_t cols) {
    return cols % type_info(type)->block_len == 0;
}

void policy_fit_type(llmq_type asked, llmq_type source, int64_t cols, llmq_policy_choice *out) {
    *out = (llmq_policy_choice){.type = asked};
    if (divides(asked, cols)) return;
    out->fallback = true;
    for (size_t i = 0; i < sizeof fallbacks / sizeof *fallbacks; i++)
        if (fallbacks[i].asked == asked) out->type = fallbacks[i].instead;
    if (!divides(out->type, cols)) out->type = source == LLMQ_TYPE_BF16 ? LLMQ_TYPE_BF16 : LLMQ_TYPE_F16;
    snprintf(out->note, sizeof out->note, "rows of %lld are no multiple of %d: %s instead of %s", (long long)cols,
             type_info(asked)->block_len, llmq_type_name(out->type), llmq_type_name(asked));
}

static llmq_type keep_type(const char *keep, size_t *pattern_len) {
    const char *eq = strrchr(keep, '=');
    if (!eq || eq == keep) return LLMQ_TYPE_NONE;
    *pattern_len = (size_t)(eq - keep);
    return llmq_type_from_name(eq + 1);
}

static bool rule_is_sound(const char *rule) {
    size_t len = 0;
    const llmq_type_info *info = type_info(keep_type(rule, &len));
    return info && type_can_encode(info) && len < TENSOR_MAX_NAME;
}

llmq_status policy_check(const llmq_policy *policy, llmq_err *err) {
    for (size_t i = 0; i < policy->n_keep; i++)
        if (!rule_is_sound(policy->keep[i]))
            return llmq_fail(err, LLMQ_E_ARG,
                             "--keep %s: must be PATTERN=TYPE, e.g. 'blk.0.*=q8_0' or '*ffn_down*=f16'",
                             policy->keep[i]);
    return LLMQ_OK;
}

/* The next word of *at, NUL-terminated in place; NULL at the end of the line or at a comment. */
static char *next_word(char **at) {
    char *s = *at;
    while (isspace((unsigned char)*s)) s++;
    if (!*s || *s == '#') return NULL;
    char *word = s;
    while (*s && !isspace((unsigned char)*s)) s++;
    *at = *s ? s + 1 : s;
    *s = 0;
    return word;
}

/* "PATTERN TYPE" to "PATTERN=TYPE" in place. *out: NULL for an empty line. */
static llmq_status parse_line(const char *file, size_t number, char *line, const char **out, llmq_err *err) {
    char *pattern = next_word(&line), *type = pattern ? next_word(&line) : NULL;
    *out = pattern;
    if (!pattern) return LLMQ_OK;
    if (!type || next_word(&line))
        return llmq_fail(err, LLMQ_E_ARG,
                         "%s:%zu: '%.80s': a line is PATTERN TYPE, e.g. '*ffn_down* q6_k'; # begins a comment", file,
                         number, pattern);
    size_t len = strlen(pattern);
    pattern[len] = '=';
    memmove(pattern + len + 1, type, strlen(type) + 1);
    if (rule_is_sound(pattern)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG, "%s:%zu: '%.20s' is no type that llmq writes: q4_0, q5_1, q6_k, q8_0, f16, ...",
                     file, number, pattern + len + 1);
}

static llmq_status parse_file(const char *file, size_t len, llmq_policy_rules *out, llmq_err *err) {
    size_t number = 0;
    if (strlen(out->text) != len)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: holds a zero byte: not a text file of rules", file);
    for (char *line = out->text, *end; line; line = end) {
        end = strchr(line, '\n');
        if (end) *end++ = 0;
        LLMQ_TRY(parse_line(file, ++number, line, &out->rules[out->n], err));
        out->n += out->rules[out->n] != NULL;
    }
    return LLMQ_OK;
}

llmq_status policy_rules_read(const char *const *keep, size_t n_keep, const char *file, llmq_policy_rules *out,
                              llmq_err *err) {
    size_t len = 0, lines = 1;
    *out = (llmq_policy_rules){0};
    if (file) LLMQ_TRY(file_read(file, MAX_FILE, &out->text, &len, err));
    for (size_t i = 0; i < len; i++) lines += out->text[i] == '\n';
    llmq_status status = LLMQ_OK;
    out->rules = mem_alloc(n_keep + lines, sizeof *out->rules);
    if (!out->rules) status = mem_error(err, (n_keep + lines) * sizeof *out->rules, "the policy");
    if (status == LLMQ_OK) {
        for (size_t i = 0; i < n_keep; i++) out->rules[i] = keep[i];
        out->n = out->n_keep = n_keep;
        if (file) status = parse_file(file, len, out, err);
    }
    if (status != LLMQ_OK) policy_rules_clear(out);
    return status;
}

void policy_rules_clear(llmq_policy_rules *rules) {
    mem_free(rules->rules);
    mem_free(rules->text);
    *rules = (llmq_policy_rules){0};
}

static bool keep_matches(const char *keep, const char *name, llmq_type *type_out) {
    char pattern[TENSOR_MAX_NAME];
    size_t len = 0;
    *type_out = keep_type(keep, &len);
    if (len >= sizeof pattern) return false;
    memcpy(pattern, keep, len);
    pattern[len] = 0;
    return fnmatch(pattern, name, 0) == 0;
}

bool policy_keep_matches(const char *keep, const char *name) {
    llmq_type type;
    return keep_matches(keep, name, &type);
}

void policy_choose(const llmq_policy *policy, const char *name, bool inside, llmq_type source, int64_t cols,
                   llmq_policy_choice *out) {
    for (size_t i = 0; i < policy->n_keep; i++) {
        llmq_type type;
        if (keep_matches(policy->keep[i], name, &type)) {
            policy_fit_type(type, source, cols, out);
            out->fixed = true;
            return;
        }
    }
    policy_fit_type(inside ? policy->type : policy->outer, source, cols, out);
}

llmq_status policy_default_type(int bits, const int64_t *cols, size_t n_cols, llmq_type *out, llmq_err *err) {
    if (bits == 0) bits = 4;
    llmq_type last = LLMQ_TYPE_NONE;
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++) {
        if (defaults[i].bits != bits || !type_can_encode(type_info(defaults[i].type))) continue;
        last = defaults[i].type;
        bool fits = true;
        for (size_t k = 0; k < n_cols; k++) fits = fits && (divides(last, cols[k]) || cols[k] % 32 != 0);
        if (fits) break;
    }
    if (last == LLMQ_TYPE_NONE)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--bits %d: llmq has storage types of 2, 3, 4 and 8 bits; --type names one directly", bits);
    *out = last;
    return LLMQ_OK;
}
