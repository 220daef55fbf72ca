#define _GNU_SOURCE /* renameat2 */
#include "core/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/mem.h"

#define MAX_PATH 4096
#define MAX_DEPTH 2 /* OUT/gptq/config.json */

struct llmq_out_folder {
    char *path, *tmp;
    bool force;
    folder_rule rule;
};

static llmq_status io_error(llmq_err *err, const char *path, const char *what) {
    return llmq_fail(err, LLMQ_E_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

static llmq_status not_ours(llmq_err *err, const char *path) {
    return llmq_fail(err, LLMQ_E_EXISTS,
                     "%s: is in the way and nothing that llmq writes there; move it, or choose another name with -o",
                     path);
}

static bool is_dots(const char *name) {
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* Everything below dir: checked (LLMQ_E_EXISTS for what is not ours), or deleted with the folder itself. */
static llmq_status walk(const char *dir, const folder_rule *rule, int depth, bool delete, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    char path[MAX_PATH];
    struct stat st;
    DIR *d = opendir(dir);
    if (!d) return io_error(err, dir, "list the folder");
    for (const struct dirent *e; status == LLMQ_OK && (e = readdir(d)) != NULL;) {
        if (is_dots(e->d_name)) continue;
        if (!path_join(path, sizeof path, dir, e->d_name)) {
            status = llmq_fail(err, LLMQ_E_IO, "%s: the path is too long", dir);
        } else if (lstat(path, &st) != 0) {
            status = io_error(err, path, "look at it");
        } else if ((!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) || (S_ISDIR(st.st_mode) && depth == MAX_DEPTH) ||
                   !rule->is_ours(rule->user, dir, e->d_name, S_ISDIR(st.st_mode))) {
            status = not_ours(err, path);
        } else if (S_ISDIR(st.st_mode)) {
            status = walk(path, rule, depth + 1, delete, err);
        } else if (delete &&unlink(path) != 0) {
            status = io_error(err, path, "delete it");
        }
    }
    closedir(d);
    if (status == LLMQ_OK && delete &&rmdir(dir) != 0) status = io_error(err, dir, "delete the folder");
    return status;
}

llmq_status folder_check(const char *path, const folder_rule *rule, llmq_err *err) {
    struct stat st;
    if (lstat(path, &st) != 0) return LLMQ_OK;
    if (!S_ISDIR(st.st_mode)) return not_ours(err, path);
    return walk(path, rule, 1, false, err);
}

/* All or nothing: a folder with one strange file in it keeps the others too. */
static llmq_status remove_ours(const char *path, const folder_rule *rule, llmq_err *err) {
    LLMQ_TRY(folder_check(path, rule, err));
    return file_exists(path) ? walk(path, rule, 1, true, err) : LLMQ_OK;
}

static void folder_free(llmq_out_folder *f) {
    if (!f) return;
    mem_free(f->path);
    mem_free(f->tmp);
    mem_free(f);
}

static llmq_status prepare(llmq_out_folder *f, bool keep, llmq_err *err) {
    struct stat st;
    if (!f->force && lstat(f->path, &st) == 0)
        return llmq_fail(err, LLMQ_E_EXISTS,
                         "%s: exists already; name another output with -o, or add --force to replace it", f->path);
    LLMQ_TRY(folder_check(f->path, &f->rule, err));
    if (!keep) LLMQ_TRY(remove_ours(f->tmp, &f->rule, err));
    if (mkdir(f->tmp, 0777) != 0 && !(keep && errno == EEXIST)) return io_error(err, f->tmp, "make the folder");
    return LLMQ_OK;
}

llmq_status out_folder_open(const char *path, bool force, bool keep, const folder_rule *rule, llmq_out_folder **out,
                            llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--; /* "out/" works in out.tmp, not in out/.tmp */
    llmq_out_folder *f = mem_zalloc(1, sizeof *f);
    if (!f) return mem_error(err, sizeof *f, "an output folder");
    f->path = mem_alloc(len + 1, 1);
    f->tmp = mem_alloc(len + 5, 1);
    f->force = force;
    f->rule = *rule;
    if (!f->path || !f->tmp) LLMQ_TRY_GOTO(mem_error(err, len, "an output folder"));
    memcpy(f->path, path, len);
    f->path[len] = 0;
    memcpy(f->tmp, path, len);
    memcpy(f->tmp + len, ".tmp", 5);
    LLMQ_TRY_GOTO(prepare(f, keep, err));
    *out = f;
done:
    if (status != LLMQ_OK) folder_free(f);
    return status;
}

const char *out_folder_path(const llmq_out_folder *f) {
    return f->tmp;
}

llmq_status out_folder_add(llmq_out_folder *f, const char *name, llmq_err *err) {
    char path[MAX_PATH];
    if (!path_join(path, sizeof path, f->tmp, name))
        return llmq_fail(err, LLMQ_E_ARG, "%s: the path is too long", f->tmp);
    if (mkdir(path, 0777) != 0 && errno != EEXIST) return io_error(err, path, "make the folder");
    return LLMQ_OK;
}

static void sync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return; /* the files are safe; only their names may be lost in a power cut */
    (void)fsync(fd);
    close(fd);
}

static void sync_tree(const char *tmp) {
    char path[MAX_PATH];
    DIR *d = opendir(tmp);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (!is_dots(e->d_name) && path_join(path, sizeof path, tmp, e->d_name)) sync_path(path);
    if (d) closedir(d);
    sync_path(tmp);
}

/* PATH.tmp becomes PATH; what was there is then called PATH.tmp and deleted. Where the file system cannot exchange two
 * names, the old one is deleted first. */
static llmq_status take_place(const llmq_out_folder *f, llmq_err *err) {
    struct stat st;
    LLMQ_TRY(folder_check(f->path, &f->rule, err)); /* it may have changed since the start */
    if (!f->force && lstat(f->path, &st) == 0)
        return llmq_fail(err, LLMQ_E_EXISTS, "%s: came into being meanwhile; nothing was replaced", f->path);
    if (!file_exists(f->path) || rmdir(f->path) == 0) {
        if (rename(f->tmp, f->path) == 0) return LLMQ_OK;
        return io_error(err, f->path, "rename the finished folder to");
    }
    if (renameat2(AT_FDCWD, f->tmp, AT_FDCWD, f->path, RENAME_EXCHANGE) == 0) return remove_ours(f->tmp, &f->rule, err);
    LLMQ_TRY(remove_ours(f->path, &f->rule, err));
    if (rename(f->tmp, f->path) == 0) return LLMQ_OK;
    return io_error(err, f->path, "rename the finished folder to");
}

llmq_status out_folder_finish(llmq_out_folder *f, llmq_err *err) {
    char parent[MAX_PATH];
    sync_tree(f->tmp);
    llmq_status status = take_place(f, err);
    if (status != LLMQ_OK) {
        out_folder_abort(f, false);
        return status;
    }
    int n = snprintf(parent, sizeof parent, "%.*s.", (int)(path_base(f->path) - f->path), f->path);
    if (n > 0 && (size_t)n < sizeof parent) sync_path(parent);
    folder_free(f);
    return LLMQ_OK;
}

void out_folder_abort(llmq_out_folder *f, bool keep) {
    if (!f) return;
    if (!keep) (void)remove_ours(f->tmp, &f->rule, NULL);
    folder_free(f);
}
