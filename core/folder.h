/* Output folders that appear whole or not at all: files are made in PATH.tmp/, which then takes the name PATH. With
 * force it takes the place of a folder that is there, but only of one that holds nothing but what such an output
 * writes: a folder of something else is never deleted. */
#ifndef LLMQ_CORE_FOLDER_H
#define LLMQ_CORE_FOLDER_H

#include "core/err.h"

typedef struct llmq_out_folder llmq_out_folder;

/* Whether an output writes DIR/name; dir is the full path of the folder that it lies in. */
typedef struct folder_rule {
    bool (*is_ours)(const void *user, const char *dir, const char *name, bool is_folder);
    const void *user;
} folder_rule;

/* LLMQ_OK if path is absent, or a folder that may be replaced: empty or all ours, without links. */
llmq_status folder_check(const char *path, const folder_rule *rule, llmq_err *err);

/* Makes PATH.tmp/; what an earlier run left of it goes if it is ours, or stays with keep (to go on with it). PATH
 * existing without force is LLMQ_E_EXISTS. */
llmq_status out_folder_open(const char *path, bool force, bool keep, const folder_rule *rule, llmq_out_folder **out,
                            llmq_err *err);
const char *out_folder_path(const llmq_out_folder *f); /* of PATH.tmp */
/* A folder in PATH.tmp. */
llmq_status out_folder_add(llmq_out_folder *f, const char *name, llmq_err *err);
/* Syncs and renames; f is gone afterwards, also on failure (and PATH.tmp with it). */
llmq_status out_folder_finish(llmq_out_folder *f, llmq_err *err);
void out_folder_abort(llmq_out_folder *f, bool keep); /* NULL allowed; keep: PATH.tmp stays */

#endif
