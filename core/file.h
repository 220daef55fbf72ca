/* Files: read-only maps, and outputs that appear only when they are whole (PATH.tmp, fsync, rename). */
#ifndef LLMQ_CORE_FILE_H
#define LLMQ_CORE_FILE_H

#include "core/err.h"

typedef struct llmq_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t size;
    uint64_t device, inode; /* which file it is, whatever its name */
} llmq_map;

llmq_status file_map(const char *path, llmq_map *out, llmq_err *err);
void file_unmap(llmq_map *map);                                        /* NULL and zeroed allowed */
void file_map_release(const llmq_map *map, const void *p, size_t len); /* the pages of [p, p+len) may leave memory */
void file_map_prefetch(const llmq_map *map, const void *p, size_t len);

/* The whole of a small file, NUL-terminated, freed by mem_free; more than max bytes is an error. */
llmq_status file_read(const char *path, size_t max, char **out, size_t *len_out, llmq_err *err);
bool file_exists(const char *path);
bool file_is_dir(const char *path);
/* Both exist and are one file, or both name the same entry of the same folder, there or not. */
bool file_is_same(const char *a, const char *b);
/* DIR/NAME into out; false when it does not fit. */
bool path_join(char *out, size_t cap, const char *dir, const char *name);
const char *path_base(const char *path); /* after the last slash */
/* Room for so many more bytes where path lies or will lie; LLMQ_E_IO says what is needed and what there is. */
llmq_status file_check_space(const char *path, uint64_t bytes, llmq_err *err);
/* LLMQ_E_IO for a device, a pipe or a link, whose place a renamed file would take. */
llmq_status file_check_place(const char *path, llmq_err *err);
/* What a file or a folder with all in it takes on the disk now; 0: nothing there. */
uint64_t file_disk_bytes(const char *path);

/* An output file. Writes go to PATH.tmp; finish syncs and renames; abort removes it, keep leaves it for a run that goes
 * on. */
typedef struct llmq_out llmq_out;
/* Refuses an existing PATH unless force (LLMQ_E_EXISTS), and what file_check_place does; checks that `bytes` (0:
 * unknown) fit on the disk. */
llmq_status out_open(const char *path, bool force, uint64_t bytes, llmq_out **out, llmq_err *err);
/* PATH.tmp as out_keep or a killed process left it; its size must be `bytes`, else LLMQ_E_FORMAT. */
llmq_status out_reopen(const char *path, bool force, uint64_t bytes, llmq_out **out, llmq_err *err);
llmq_status out_write_at(llmq_out *out, const void *data, size_t len, uint64_t offset,
                         llmq_err *err); /* any order, any thread */
llmq_status out_read_at(const llmq_out *out, void *data, size_t len, uint64_t offset, llmq_err *err);
llmq_status out_sync(const llmq_out *out, llmq_err *err); /* what was written so far is on the disk */
llmq_status out_finish(llmq_out *out, llmq_err *err);     /* the object is gone afterwards, also on failure */
void out_abort(llmq_out *out);                            /* NULL allowed */
void out_keep(llmq_out *out);                             /* NULL allowed */
/* A small file, whole or not at all, over what is there. */
llmq_status file_write(const char *path, const void *data, size_t len, llmq_err *err);

#endif
