/* OUT.journal: how far a long run has come, so that the same command goes on after a kill at any moment.
 *
 * The file holds the run's settings and two slots. A checkpoint overwrites the older slot and has its own checksum, so
 * whatever moment the process dies in, the other slot is whole. Behind them lies room that a run may map instead of
 * memory; it means nothing to a later run. The file is locked while a run has it open. Its bytes are untrusted: what
 * does not fit is as good as no journal. */
#ifndef LLMQ_ENGINE_JOURNAL_H
#define LLMQ_ENGINE_JOURNAL_H

#include "core/err.h"

typedef struct llmq_journal llmq_journal;

typedef struct journal_part { /* a piece of a checkpoint; no copy is made of it */
    void *data;
    size_t bytes;
} journal_part;

/* Opens or creates the file and locks it; another run has it: LLMQ_E_EXISTS. settings: lines "NAME VALUE\n" of all that
 * decides about the bytes of the result; copied. checkpoint_bytes: the largest sum of parts that will be saved. */
llmq_status journal_open(const char *path, const char *settings, size_t checkpoint_bytes, llmq_journal **out,
                         llmq_err *err);
/* The file was left by a run with these settings. Else why (may be NULL): "" when there was none, or the reason. */
bool journal_matches(const llmq_journal *j, char *why, size_t cap);
/* What was given to journal_save with the last checkpoint, which tells its parts; -1: there is none. */
int64_t journal_done(const llmq_journal *j);
/* The last whole checkpoint with parts of these sizes into them. *done_out: as journal_done, -1 when there is none (the
 * parts are then undefined). */
llmq_status journal_load(llmq_journal *j, const journal_part *parts, size_t n_parts, int64_t *done_out, llmq_err *err);
/* Forgets what was there: from now on the file tells of a run with these settings that has no checkpoint. */
llmq_status journal_start(llmq_journal *j, llmq_err *err);
/* On the disk when it returns. After a failure the checkpoint before it still counts. */
llmq_status journal_save(llmq_journal *j, const journal_part *parts, size_t n_parts, int64_t done, llmq_err *err);
/* Zeroed memory that the file stands behind: the system may write it out instead of keeping it. Belongs to the journal;
 * asked for once. The room is taken from the disk now. */
llmq_status journal_scratch(llmq_journal *j, size_t bytes, void **out, llmq_err *err);
size_t journal_file_bytes(size_t checkpoint_bytes, size_t scratch_bytes); /* at most, but for the settings */
void journal_close(llmq_journal *j, bool remove);                         /* NULL allowed */

#endif
