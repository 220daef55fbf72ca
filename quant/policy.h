/* Which tensor gets which storage type: an ordered table of patterns, then what the type's blocks allow. */
#ifndef LLMQ_QUANT_POLICY_H
#define LLMQ_QUANT_POLICY_H

#include "types/type.h"

typedef struct llmq_policy {
    llmq_type type;          /* every matrix inside the layers */
    llmq_type outer;         /* embedding and output head */
    const char *const *keep; /* n_keep of "PATTERN=TYPE": glob on GGUF names; the first that fits decides */
    size_t n_keep;
} llmq_policy;

typedef struct llmq_policy_choice {
    llmq_type type;
    bool fixed;    /* a rule names this matrix */
    bool fallback; /* not the type that was asked for: note says why */
    char note[120];
} llmq_policy_choice;

/* Rules of the command line, then those of a file, as one ordered table. */
typedef struct llmq_policy_rules {
    const char **rules; /* n of "PATTERN=TYPE" */
    size_t n, n_keep;   /* the first n_keep are the command line's */
    char *text;         /* the file's: its rules point into it */
} llmq_policy_rules;

/* keep is borrowed and checked by policy_check. file (NULL: none) has one rule a line, "PATTERN TYPE"; what follows a #
 * at the beginning of a line or behind a space is a comment. */
llmq_status policy_rules_read(const char *const *keep, size_t n_keep, const char *file, llmq_policy_rules *out,
                              llmq_err *err);
void policy_rules_clear(llmq_policy_rules *rules); /* zeroed allowed */

/* Every keep entry must read PATTERN=TYPE with a type that can be written. */
llmq_status policy_check(const llmq_policy *policy, llmq_err *err);
bool policy_keep_matches(const char *keep, const char *name);
/* The type of a matrix of cols inputs named name (GGUF's). inside: of a layer. source: its type now. */
void policy_choose(const llmq_policy *policy, const char *name, bool inside, llmq_type source, int64_t cols,
                   llmq_policy_choice *out);
/* asked, or the type nearest to it whose blocks divide cols (float types as they are). */
void policy_fit_type(llmq_type asked, llmq_type source, int64_t cols, llmq_policy_choice *out);
/* What "--bits N" means for matrices whose rows have n_cols different lengths cols. */
llmq_status policy_default_type(int bits, const int64_t *cols, size_t n_cols, llmq_type *out, llmq_err *err);

#endif
