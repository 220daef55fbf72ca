#define _GNU_SOURCE
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/mem.h"

static llmq_status io_error(llmq_err *err, const char *path, const char *what) {
    return llmq_fail(err, LLMQ_E_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

static llmq_status open_regular(const char *path, int *fd_out, struct stat *st, llmq_err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return io_error(err, path, "open");
    llmq_status status = LLMQ_OK;
    if (fstat(fd, st) != 0)
        status = io_error(err, path, "read");
    else if (S_ISDIR(st->st_mode))
        status = llmq_fail(err, LLMQ_E_IO, "%s: is a folder, not a file", path);
    else if (!S_ISREG(st->st_mode))
        status = llmq_fail(err, LLMQ_E_IO, "%s: is not a regular file", path);
    if (status != LLMQ_OK)
        close(fd);
    else
        *fd_out = fd;
    return status;
}

llmq_status file_map(const char *path, llmq_map *out, llmq_err *err) {
    int fd = -1;
    struct stat st;
    *out = (llmq_map){0};
    LLMQ_TRY(open_regular(path, &fd, &st, err));
    llmq_status status = LLMQ_OK;
    if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            status = io_error(err, path, "map");
        else
            *out = (llmq_map){p, (size_t)st.st_size, (uint64_t)st.st_dev, (uint64_t)st.st_ino};
    }
    close(fd);
    return status;
}

void file_unmap(llmq_map *map) {
    if (map && map->data) munmap((void *)(uintptr_t)map->data, map->size);
    if (map) *map = (llmq_map){0};
}

/* The whole pages inside [p, p+len): a page shared with a neighbour stays. */
static void advise(const llmq_map *map, const void *p, size_t len, int advice, bool inner) {
    uintptr_t base = (uintptr_t)map->data, a = (uintptr_t)p, b = a + len, page = 4096;
    if (!map->data || a < base || b > base + map->size || len == 0) return;
    a = inner ? (a + page - 1) & ~(page - 1) : a & ~(page - 1);
    if (inner && b != base + map->size) b &= ~(page - 1);
    if (b > a) madvise((void *)a, b - a, advice);
}

void file_map_release(const llmq_map *map, const void *p, size_t len) {
    advise(map, p, len, MADV_DONTNEED, true);
}
void file_map_prefetch(const llmq_map *map, const void *p, size_t len) {
    advise(map, p, len, MADV_WILLNEED, false);
}

llmq_status file_read(const char *path, size_t max, char **out, size_t *len_out, llmq_err *err) {
    int fd = -1;
    struct stat st;
    LLMQ_TRY(open_regular(path, &fd, &st, err));
    size_t size = (size_t)st.st_size, got = 0;
    char *buf = NULL;
    llmq_status status = LLMQ_OK;
    if (size > max) {
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: %zu bytes are more than the %zu allowed for such a file", path,
                           size, max);
        goto done;
    }
    buf = mem_alloc(size + 1, 1);
    if (!buf) {
        status = mem_error(err, size, path);
        goto done;
    }
    while (got < size) {
        ssize_t n = read(fd, buf + got, size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = io_error(err, path, "read");
            goto done;
        }
        if (n == 0) break; /* shrank meanwhile */
        got += (size_t)n;
    }
    buf[got] = 0;
    *out = buf;
    if (len_out) *len_out = got;
    buf = NULL;
done:
    mem_free(buf);
    close(fd);
    return status;
}

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

bool file_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool path_join(char *out, size_t cap, const char *dir, const char *name) {
    size_t n = strlen(dir);
    int len = snprintf(out, cap, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    return len >= 0 && (size_t)len < cap;
}

const char *path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool same_inode(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool file_is_same(const char *a, const char *b) {
    const char *base_a = path_base(a), *base_b = path_base(b);
    char dir_a[4096], dir_b[4096];
    if (same_inode(a, b)) return true;
    if (strcmp(base_a, base_b) != 0) return false;
    int n_a = snprintf(dir_a, sizeof dir_a, "%.*s.", (int)(base_a - a), a);
    int n_b = snprintf(dir_b, sizeof dir_b, "%.*s.", (int)(base_b - b), b);
    return (size_t)n_a < sizeof dir_a && (size_t)n_b < sizeof dir_b && same_inode(dir_a, dir_b);
}

/* ---- room on the disk ---- */

llmq_status file_check_space(const char *path, uint64_t bytes, llmq_err *err) {
    struct statvfs fs;
    char dir[4096];
    int n = snprintf(dir, sizeof dir, "%.*s.", (int)(path_base(path) - path), path);
    if (bytes == 0 || n < 0 || (size_t)n >= sizeof dir || statvfs(dir, &fs) != 0)
        return LLMQ_OK; /* cannot tell: the write itself will */
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room >= bytes) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_IO,
                     "%s: needs %.1f MB, the disk has %.1f MB left; free some space or choose another place with -o",
                     path, (double)bytes / 1e6, (double)room / 1e6);
}

static uint64_t disk_bytes(const char *path, int depth) {
    struct stat st;
    if (lstat(path, &st) != 0) return 0;
    uint64_t sum = (uint64_t)st.st_blocks * 512;
    DIR *dir = S_ISDIR(st.st_mode) && depth > 0 ? opendir(path) : NULL;
    for (const struct dirent *e; dir && (e = readdir(dir));) {
        char child[4096];
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") && path_join(child, sizeof child, path, e->d_name))
            sum += disk_bytes(child, depth - 1);
    }
    if (dir) closedir(dir);
    return sum;
}

uint64_t file_disk_bytes(const char *path) {
    return disk_bytes(path, 4);
}

/* ---- outputs ---- */

struct llmq_out {
    int fd;
    char *path, *tmp;
};

static void out_free(llmq_out *out) {
    if (!out) return;
    if (out->fd >= 0) close(out->fd);
    mem_free(out->path);
    mem_free(out->tmp);
    mem_free(out);
}

llmq_status file_check_place(const char *path, llmq_err *err) {
    struct stat st;
    if (lstat(path, &st) != 0 || S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_IO, "%s: is a %s; name a file", path,
                     S_ISLNK(st.st_mode) ? "link" : "device or a pipe");
}

static llmq_status out_create(const char *path, bool force, llmq_out **result, llmq_err *err) {
    *result = NULL;
    LLMQ_TRY(file_check_place(path, err));
    if (!force && file_exists(path))
        return llmq_fail(err, LLMQ_E_EXISTS,
                         "%s: exists already; name another output with -o, or add --force to replace it", path);
    if (file_is_dir(path)) return llmq_fail(err, LLMQ_E_IO, "%s: is a folder; name a file", path);
    llmq_out *out = mem_zalloc(1, sizeof *out);
    size_t len = strlen(path);
    if (!out) return mem_error(err, sizeof *out, "an output file");
    out->fd = -1;
    out->path = mem_strdup(path);
    out->tmp = mem_alloc(len + 5, 1);
    llmq_status status = LLMQ_OK;
    if (!out->path || !out->tmp) {
        status = mem_error(err, len, "an output file");
        goto fail;
    }
    memcpy(out->tmp, path, len);
    memcpy(out->tmp + len, ".tmp", 5);
    *result = out;
    return LLMQ_OK;
fail:
    out_free(out);
    return status;
}

llmq_status out_open(const char *path, bool force, uint64_t bytes, llmq_out **result, llmq_err *err) {
    llmq_out *out;
    LLMQ_TRY(out_create(path, force, &out, err));
    out->fd = open(out->tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    llmq_status status = out->fd < 0 ? io_error(err, out->tmp, "create") : file_check_space(path, bytes, err);
    if (status == LLMQ_OK)
        *result = out;
    else {
        if (out->fd >= 0) unlink(out->tmp);
        out_free(out);
    }
    return status;
}

llmq_status out_reopen(const char *path, bool force, uint64_t bytes, llmq_out **result, llmq_err *err) {
    llmq_out *out;
    struct stat st;
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(out_create(path, force, &out, err));
    out->fd = open(out->tmp, O_RDWR | O_CLOEXEC);
    if (out->fd < 0 || fstat(out->fd, &st) != 0)
        status = io_error(err, out->tmp, "open");
    else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: has %lld bytes, not the %llu that the run left; remove it",
                           out->tmp, (long long)st.st_size, (unsigned long long)bytes);
    if (status == LLMQ_OK)
        *result = out;
    else
        out_free(out);
    return status;
}

llmq_status out_write_at(llmq_out *out, const void *data, size_t len, uint64_t offset, llmq_err *err) {
    const uint8_t *p = data;
    while (len > 0) {
        ssize_t n = pwrite(out->fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error(err, out->tmp, "write");
        p += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return LLMQ_OK;
}

llmq_status out_read_at(const llmq_out *out, void *data, size_t len, uint64_t offset, llmq_err *err) {
    uint8_t *p = data;
    while (len > 0) {
        ssize_t n = pread(out->fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error(err, out->tmp, "read");
        if (n == 0) return llmq_fail(err, LLMQ_E_FORMAT, "%s: ends at byte %llu", out->tmp, (unsigned long long)offset);
        p += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return LLMQ_OK;
}

llmq_status out_sync(const llmq_out *out, llmq_err *err) {
    return fdatasync(out->fd) == 0 ? LLMQ_OK : io_error(err, out->tmp, "sync");
}

static void sync_folder(const char *path) {
    char dir[4096];
    size_t n = (size_t)(path_base(path) - path);
    if (n >= sizeof dir) return;
    memcpy(dir, path, n);
    dir[n] = 0;
    int fd = open(n ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return; /* the file itself is safe; only the new name may be lost in a power cut */
    (void)fsync(fd);
    close(fd);
}

llmq_status out_finish(llmq_out *out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    int fd = out->fd;
    if (fsync(fd) != 0) status = io_error(err, out->tmp, "sync");
    out->fd = -1;
    if (close(fd) != 0 && status == LLMQ_OK) status = io_error(err, out->tmp, "close");
    if (status == LLMQ_OK && rename(out->tmp, out->path) != 0)
        status = io_error(err, out->path, "rename the finished file to");
    if (status == LLMQ_OK)
        sync_folder(out->path);
    else
        unlink(out->tmp);
    out_free(out);
    return status;
}

void out_keep(llmq_out *out) {
    out_free(out);
}

void out_abort(llmq_out *out) {
    if (!out) return;
    unlink(out->tmp);
    out_free(out);
}

llmq_status file_write(const char *path, const void *data, size_t len, llmq_err *err) {
    llmq_out *out = NULL;
    LLMQ_TRY(out_open(path, true, len, &out, err));
    llmq_status status = out_write_at(out, data, len, 0, err);
    if (status == LLMQ_OK) return out_finish(out, err);
    out_abort(out);
    return status;
}
