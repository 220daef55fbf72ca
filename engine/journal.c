#define _GNU_SOURCE
#include "engine/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/hash.h"
#include "core/mem.h"

#define PAGE ((size_t)4096)
#define MAX_SETTINGS ((size_t)1 << 20)
#define FILE_MAGIC 0x4c4e524a514d4c4cu /* "LLMQJRNL" */
#define SLOT_MAGIC 0x544f4c53514d4c4cu /* "LLMQSLOT" */
#define VERSION 1

/* At the beginning of the file, before the settings; filled up to a whole page. */
typedef struct file_head {
    uint64_t magic;
    uint32_t version, settings_len;
    uint64_t checkpoint_bytes;
    uint64_t sum; /* of the fields before it and of the settings */
} file_head;

/* The first page of a slot; the parts follow, one after the other. */
typedef struct slot_head {
    uint64_t magic, sequence;
    int64_t done;
    uint64_t bytes, parts_sum;
    uint64_t sum; /* of the fields before it */
} slot_head;

struct llmq_journal {
    char *path, *settings;
    int fd;
    size_t settings_len, checkpoint_bytes;
    bool matches;
    char why[256];
    uint64_t sequence[2]; /* of the slots that are whole, as far as their heads tell; 0: none */
    void *scratch;
    size_t scratch_bytes;
};

static llmq_status io_error(const llmq_journal *j, const char *what, llmq_err *err) {
    return llmq_fail(err, LLMQ_E_IO, "%s: cannot %s: %s", j->path, what, strerror(errno));
}

/* ---- places ---- */

static size_t slot_bytes(size_t checkpoint_bytes) {
    return PAGE + size_align(checkpoint_bytes, PAGE);
}

static uint64_t slot_at(const llmq_journal *j, int slot) {
    return size_align(sizeof(file_head) + j->settings_len, PAGE) + (size_t)slot * slot_bytes(j->checkpoint_bytes);
}

size_t journal_file_bytes(size_t checkpoint_bytes, size_t scratch_bytes) {
    return PAGE + 2 * slot_bytes(checkpoint_bytes) + size_align(scratch_bytes, PAGE);
}

/* ---- bytes ---- */

static llmq_status write_at(const llmq_journal *j, const void *data, size_t len, uint64_t at, llmq_err *err) {
    for (const uint8_t *p = data; len > 0;) {
        ssize_t n = pwrite(j->fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error(j, "write", err);
        p += n, at += (uint64_t)n, len -= (size_t)n;
    }
    return LLMQ_OK;
}

/* false: the file ends before, or cannot be read. */
static bool read_at(const llmq_journal *j, void *data, size_t len, uint64_t at) {
    for (uint8_t *p = data; len > 0;) {
        ssize_t n = pread(j->fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n, at += (uint64_t)n, len -= (size_t)n;
    }
    return true;
}

static llmq_status sync_file(const llmq_journal *j, llmq_err *err) {
    return fdatasync(j->fd) == 0 ? LLMQ_OK : io_error(j, "sync", err);
}

static uint64_t head_sum(const file_head *head, const char *settings) {
    llmq_hash h;
    hash_init(&h);
    hash_add(&h, head, offsetof(file_head, sum));
    hash_add(&h, settings, head->settings_len);
    return hash_sum(&h);
}

static uint64_t slot_sum(const slot_head *head) {
    return hash_bytes(head, offsetof(slot_head, sum));
}

/* ---- what an older run left ---- */

/* The name of the first line of mine that theirs has not, with both values. */
static void describe_difference(const char *mine, const char *theirs, char *out, size_t cap) {
    for (const char *line = mine; *line;) {
        size_t len = strcspn(line, "\n"), name = strcspn(line, " \n"), other = 0;
        const char *found = theirs;
        while (*found && (strncmp(found, line, name) || (found[name] != ' ' && found[name] != '\n'))) {
            found += strcspn(found, "\n");
            found += *found == '\n';
        }
        other = strcspn(found, "\n");
        if (other != len || strncmp(found, line, len)) {
            size_t skip = name + (line[name] == ' '); /* to the value */
            int n_now = (int)(len - skip), n_before = other > skip ? (int)(other - skip) : 0;
            snprintf(out, cap, "it is of a run with another %.*s", (int)name, line);
            if (n_now < 60 && n_before < 60 && n_before > 0)
                snprintf(out + strlen(out), cap - strlen(out), " (%.*s, now %.*s)", n_before, found + skip, n_now,
                         line + skip);
            return;
        }
        line += len + (line[len] == '\n');
    }
    snprintf(out, cap, "it is of a run with other settings");
}

static void read_slots(llmq_journal *j) {
    for (int i = 0; i < 2; i++) {
        slot_head head;
        if (!read_at(j, &head, sizeof head, slot_at(j, i)) || head.magic != SLOT_MAGIC || head.sum != slot_sum(&head) ||
            head.bytes > j->checkpoint_bytes || head.done < 0 || head.sequence == UINT64_MAX)
            continue;
        j->sequence[i] = head.sequence;
    }
}

static llmq_status read_head(llmq_journal *j, llmq_err *err) {
    struct stat st;
    file_head head;
    if (fstat(j->fd, &st) != 0) return io_error(j, "read", err);
    if (st.st_size == 0) return LLMQ_OK;
    snprintf(j->why, sizeof j->why, "it is damaged");
    if (!read_at(j, &head, sizeof head, 0) || head.magic != FILE_MAGIC) return LLMQ_OK;
    if (head.version != VERSION) {
        snprintf(j->why, sizeof j->why, "it is of another version of llmq");
        return LLMQ_OK;
    }
    if (head.settings_len > MAX_SETTINGS) return LLMQ_OK;
    char *settings = mem_alloc(head.settings_len + 1, 1);
    if (!settings) return mem_error(err, head.settings_len, j->path);
    settings[head.settings_len] = 0;
    if (!read_at(j, settings, head.settings_len, sizeof head) || head.sum != head_sum(&head, settings)) goto done;
    if (head.settings_len != j->settings_len || memcmp(settings, j->settings, j->settings_len))
        describe_difference(j->settings, settings, j->why, sizeof j->why);
    else if (head.checkpoint_bytes == j->checkpoint_bytes) {
        j->why[0] = 0;
        j->matches = true;
        read_slots(j);
    }
done:
    mem_free(settings);
    return LLMQ_OK;
}

/* ---- life ---- */

static llmq_status lock_file(llmq_journal *j, llmq_err *err) {
    for (;;) {
        struct stat mine, named;
        j->fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (j->fd < 0) return io_error(j, "create", err);
        if (fstat(j->fd, &mine) != 0 || !S_ISREG(mine.st_mode))
            return llmq_fail(err, LLMQ_E_IO, "%s: is not a regular file; remove it or choose another -o", j->path);
        if (flock(j->fd, LOCK_EX | LOCK_NB) != 0) {
            if (errno == EINTR) continue;
            if (errno != EWOULDBLOCK) return LLMQ_OK; /* a file system without locks */
            return llmq_fail(err, LLMQ_E_EXISTS,
                             "%s: another llmq is at work on this output; wait for it, or choose another -o", j->path);
        }
        /* The run that had the lock may have removed the file meanwhile: then this lock is of nothing. */
        if (stat(j->path, &named) == 0 && named.st_ino == mine.st_ino && named.st_dev == mine.st_dev) return LLMQ_OK;
        close(j->fd);
        j->fd = -1;
    }
}

llmq_status journal_open(const char *path, const char *settings, size_t checkpoint_bytes, llmq_journal **out,
                         llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_journal *j = mem_zalloc(1, sizeof *j);
    if (!j) return mem_error(err, sizeof *j, path);
    j->fd = -1;
    j->path = mem_strdup(path);
    j->settings = mem_strdup(settings);
    j->settings_len = strlen(settings);
    j->checkpoint_bytes = checkpoint_bytes;
    if (!j->path || !j->settings) LLMQ_TRY_GOTO(mem_error(err, j->settings_len, path));
    if (j->settings_len > MAX_SETTINGS)
        LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_ARG, "%s: the settings are too long to be noted", path));
    LLMQ_TRY_GOTO(lock_file(j, err));
    LLMQ_TRY_GOTO(read_head(j, err));
    *out = j;
    j = NULL;
done:
    journal_close(j, false);
    return status;
}

bool journal_matches(const llmq_journal *j, char *why, size_t cap) {
    if (why) snprintf(why, cap, "%s", j->why);
    return j->matches;
}

void journal_close(llmq_journal *j, bool remove) {
    if (!j) return;
    if (j->scratch) munmap(j->scratch, j->scratch_bytes);
    if (remove && j->fd >= 0) unlink(j->path); /* before the lock goes */
    if (j->fd >= 0) close(j->fd);
    mem_free(j->settings);
    mem_free(j->path);
    mem_free(j);
}

llmq_status journal_start(llmq_journal *j, llmq_err *err) {
    file_head head = {FILE_MAGIC, VERSION, (uint32_t)j->settings_len, j->checkpoint_bytes, 0};
    head.sum = head_sum(&head, j->settings);
    j->sequence[0] = j->sequence[1] = 0;
    j->matches = true;
    if (ftruncate(j->fd, 0) != 0) return io_error(j, "empty", err);
    LLMQ_TRY(write_at(j, &head, sizeof head, 0, err));
    LLMQ_TRY(write_at(j, j->settings, j->settings_len, sizeof head, err));
    return sync_file(j, err);
}

/* ---- checkpoints ---- */

static size_t parts_bytes(const journal_part *parts, size_t n_parts) {
    size_t bytes = 0;
    for (size_t i = 0; i < n_parts; i++) bytes += parts[i].bytes;
    return bytes;
}

int64_t journal_done(const llmq_journal *j) {
    slot_head head;
    int newest = j->sequence[1] > j->sequence[0];
    return j->sequence[newest] && read_at(j, &head, sizeof head, slot_at(j, newest)) ? head.done : -1;
}

typedef enum slot_state { SLOT_LOADED, SLOT_OTHER, SLOT_TORN } slot_state;

/* SLOT_OTHER: its parts are not these. */
static slot_state load_slot(const llmq_journal *j, int slot, const journal_part *parts, size_t n_parts,
                            int64_t *done_out) {
    slot_head head;
    llmq_hash h;
    uint64_t at = slot_at(j, slot) + PAGE;
    if (!read_at(j, &head, sizeof head, slot_at(j, slot))) return SLOT_TORN;
    if (head.bytes != parts_bytes(parts, n_parts)) return SLOT_OTHER;
    hash_init(&h);
    for (size_t i = 0; i < n_parts; at += parts[i++].bytes) {
        if (!read_at(j, parts[i].data, parts[i].bytes, at)) return SLOT_TORN;
        hash_add(&h, parts[i].data, parts[i].bytes);
    }
    *done_out = head.done;
    return hash_sum(&h) == head.parts_sum ? SLOT_LOADED : SLOT_TORN;
}

llmq_status journal_load(llmq_journal *j, const journal_part *parts, size_t n_parts, int64_t *done_out, llmq_err *err) {
    if (parts_bytes(parts, n_parts) > j->checkpoint_bytes)
        return llmq_fail(err, LLMQ_E_ARG, "%s: a checkpoint has %zu bytes at most", j->path, j->checkpoint_bytes);
    int newest = j->sequence[1] > j->sequence[0];
    for (int i = 0; i < 2; i++) {
        int slot = i ? !newest : newest;
        if (!j->sequence[slot]) continue;
        slot_state state = load_slot(j, slot, parts, n_parts, done_out);
        if (state == SLOT_LOADED) return LLMQ_OK;
        if (state == SLOT_TORN) j->sequence[slot] = 0;
    }
    *done_out = -1;
    return LLMQ_OK;
}

llmq_status journal_save(llmq_journal *j, const journal_part *parts, size_t n_parts, int64_t done, llmq_err *err) {
    int older = j->sequence[1] < j->sequence[0];
    slot_head head = {.magic = SLOT_MAGIC, .sequence = j->sequence[!older] + 1, .done = done};
    uint64_t at = slot_at(j, older) + PAGE;
    llmq_hash h;
    hash_init(&h);
    j->sequence[older] = 0;
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].bytes > j->checkpoint_bytes - head.bytes)
            return llmq_fail(err, LLMQ_E_ARG, "%s: the checkpoint is larger than was said", j->path);
        LLMQ_TRY(write_at(j, parts[i].data, parts[i].bytes, at + head.bytes, err));
        hash_add(&h, parts[i].data, parts[i].bytes);
        head.bytes += parts[i].bytes;
    }
    LLMQ_TRY(sync_file(j, err));
    head.parts_sum = hash_sum(&h);
    head.sum = slot_sum(&head);
    LLMQ_TRY(write_at(j, &head, sizeof head, slot_at(j, older), err));
    LLMQ_TRY(sync_file(j, err));
    j->sequence[older] = head.sequence;
    return LLMQ_OK;
}

llmq_status journal_scratch(llmq_journal *j, size_t bytes, void **out, llmq_err *err) {
    uint64_t at = slot_at(j, 2);
    size_t len = size_align(bytes ? bytes : 1, PAGE);
    /* Cut off first: what an older run left there would not be zero. Taken from the disk now, since a full disk would
     * end a write to mapped memory with a signal instead of an error. */
    struct stat st;
    if (fstat(j->fd, &st) != 0 || ((uint64_t)st.st_size > at && ftruncate(j->fd, (off_t)at) != 0))
        return io_error(j, "resize", err);
    errno = posix_fallocate(j->fd, (off_t)at, (off_t)len);
    if (errno)
        return llmq_fail(err, LLMQ_E_IO, "%s: cannot take %.1f MB from the disk: %s", j->path, (double)len / 1e6,
                         strerror(errno));
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, j->fd, (off_t)at);
    if (p == MAP_FAILED) return io_error(j, "map", err);
    j->scratch = p;
    j->scratch_bytes = len;
    *out = p;
    return LLMQ_OK;
}
