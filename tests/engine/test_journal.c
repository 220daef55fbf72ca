/* OUT.journal: whatever moment a run dies in and whatever the file holds, what is loaded is a checkpoint that was
 * saved. */
#define _XOPEN_SOURCE 700
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/mem.h"
#include "engine/journal.h"

#define PATH LLMQ_TEST_TMP "/test.journal"
#define SETTINGS "llmq 1\nmethod gptq\ntype q4_0\n"
enum { BIG = 100000, SMALL = 37, BYTES = BIG + SMALL, PAGE = 4096, SLOT = PAGE + (BYTES + PAGE - 1) / PAGE * PAGE };

static uint8_t big[BIG], small[SMALL];
static const journal_part parts[] = {{big, BIG}, {small, SMALL}};

static void fill(int64_t done) {
    for (size_t i = 0; i < BIG; i++) big[i] = (uint8_t)((size_t)done * 31 + i * 7);
    memset(small, (int)done + 1, SMALL);
}

static bool is_filled(int64_t done) {
    for (size_t i = 0; i < BIG; i++)
        if (big[i] != (uint8_t)((size_t)done * 31 + i * 7)) return false;
    for (size_t i = 0; i < SMALL; i++)
        if (small[i] != (uint8_t)(done + 1)) return false;
    return true;
}

static llmq_journal *open_journal(const char *settings) {
    llmq_journal *j = NULL;
    llmq_err err = {0};
    if (journal_open(PATH, settings, BYTES, &j, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return j;
}

static void save(llmq_journal *j, int64_t done) {
    llmq_err err = {0};
    fill(done);
    if (journal_save(j, parts, 2, done, &err) != LLMQ_OK) fail_msg("%s", err.msg);
}

/* Opens as a second run does: the checkpoint it finds, -1 none, -2 not this run's journal. */
static int64_t found(const char *settings, char *why, size_t cap) {
    llmq_journal *j = open_journal(settings);
    int64_t done = -2;
    if (journal_matches(j, why, cap)) {
        memset(big, 0, BIG);
        memset(small, 0, SMALL);
        assert_int_equal(journal_load(j, parts, 2, &done, NULL), LLMQ_OK);
    }
    journal_close(j, false);
    if (done >= 0) assert_true(is_filled(done));
    return done;
}

static void make(int64_t from, int64_t to) {
    unlink(PATH);
    llmq_journal *j = open_journal(SETTINGS);
    assert_false(journal_matches(j, NULL, 0));
    assert_int_equal(journal_start(j, NULL), LLMQ_OK);
    for (int64_t done = from; done <= to; done++) save(j, done);
    journal_close(j, false);
}

static void poke(off_t at, const void *bytes, size_t n) {
    int fd = open(PATH, O_WRONLY);
    assert_int_equal(pwrite(fd, bytes, n, at), n);
    close(fd);
}

static void the_last_checkpoint_is_found(void **state) {
    (void)state;
    char why[256];
    make(0, -1);
    assert_int_equal(found(SETTINGS, NULL, 0), -1);
    for (int64_t last = 0; last < 4; last++) {
        make(0, last);
        assert_int_equal(found(SETTINGS, why, sizeof why), last);
        assert_string_equal(why, "");
    }
    llmq_journal *j = open_journal(SETTINGS); /* goes on: the numbers of the slots go on, too */
    int64_t done;
    assert_int_equal(journal_load(j, parts, 2, &done, NULL), LLMQ_OK);
    save(j, 4);
    save(j, 5);
    journal_close(j, false);
    assert_int_equal(found(SETTINGS, NULL, 0), 5);
    j = open_journal(SETTINGS);
    assert_int_equal(journal_start(j, NULL), LLMQ_OK); /* --no-resume */
    journal_close(j, false);
    assert_int_equal(found(SETTINGS, NULL, 0), -1);
    j = open_journal(SETTINGS);
    journal_close(j, true);
    assert_false(file_exists(PATH));
}

static void a_torn_slot_leaves_the_other(void **state) {
    (void)state;
    static const char junk[64] = "torn";
    make(0, 3); /* slots hold 2 and 3 */
    poke(PAGE + SLOT + PAGE + BIG / 2, junk, sizeof junk);
    assert_int_equal(found(SETTINGS, NULL, 0), 2);
    make(0, 3);
    poke(PAGE + SLOT, junk, sizeof junk); /* its head */
    assert_int_equal(found(SETTINGS, NULL, 0), 2);
    poke(PAGE + PAGE + BYTES - 1, junk, 1);
    assert_int_equal(found(SETTINGS, NULL, 0), -1);
    make(0, 3);
    assert_int_equal(truncate(PATH, PAGE + SLOT + PAGE + 100), 0);
    assert_int_equal(found(SETTINGS, NULL, 0), 2);
}

/* A later stage saves less and other parts: each stage finds its own, and the newest tells which it is. */
static void stages_have_parts_of_their_own(void **state) {
    int64_t done = 0;
    uint8_t other[500], want[500];
    const journal_part stage = {other, sizeof other};
    (void)state;
    make(1, 4);
    llmq_journal *j = open_journal(SETTINGS);
    assert_true(journal_matches(j, NULL, 0));
    assert_int_equal(journal_done(j), 4);
    memset(want, 77, sizeof want);
    memset(other, 77, sizeof other);
    assert_int_equal(journal_save(j, &stage, 1, 9, NULL), LLMQ_OK);
    journal_close(j, false);
    j = open_journal(SETTINGS);
    assert_true(journal_matches(j, NULL, 0));
    assert_int_equal(journal_done(j), 9);
    assert_int_equal(journal_load(j, parts, 2, &done, NULL), LLMQ_OK);
    assert_int_equal(done, 4); /* the one that was not written over */
    assert_true(is_filled(done));
    memset(other, 0, sizeof other);
    assert_int_equal(journal_load(j, &stage, 1, &done, NULL), LLMQ_OK);
    assert_int_equal(done, 9);
    assert_memory_equal(other, want, sizeof want);
    journal_close(j, true);
}

static void other_settings_are_named(void **state) {
    (void)state;
    char why[256];
    make(0, 1);
    assert_int_equal(found("llmq 1\nmethod gptq\ntype q4_1\n", why, sizeof why), -2);
    assert_string_equal(why, "it is of a run with another type (q4_0, now q4_1)");
    assert_int_equal(found("llmq 2\nmethod gptq\ntype q4_0\n", why, sizeof why), -2);
    assert_non_null(strstr(why, "another llmq"));
    assert_int_equal(found("llmq 1\nmethod gptq\nkeep a=f16\ntype q4_0\n", why, sizeof why), -2);
    assert_non_null(strstr(why, "another keep"));
    assert_int_equal(found("llmq 1\nmethod gptq\n", why, sizeof why), -2);
    assert_string_equal(why, "it is of a run with other settings");
    assert_int_equal(found("llmq 1\nmethod gptq\ntypes q4_0\n", why, sizeof why), -2);
    assert_non_null(strstr(why, "another types"));
    assert_int_equal(found(SETTINGS, NULL, 0), 1);
    llmq_journal *j = NULL; /* other sizes than the settings promise */
    assert_int_equal(journal_open(PATH, SETTINGS, BYTES - 1, &j, NULL), LLMQ_OK);
    assert_false(journal_matches(j, NULL, 0));
    journal_close(j, false);
}

static void hostile_bytes_are_no_journal(void **state) {
    (void)state;
    struct stat st;
    char why[256];
    make(0, 1);
    assert_int_equal(stat(PATH, &st), 0);
    uint8_t *whole = malloc((size_t)st.st_size);
    FILE *f = fopen(PATH, "rb");
    assert_int_equal(fread(whole, 1, (size_t)st.st_size, f), st.st_size);
    fclose(f);
    uint32_t version = 2, huge = UINT32_MAX;
    poke(8, &version, 4);
    assert_int_equal(found(SETTINGS, why, sizeof why), -2);
    assert_non_null(strstr(why, "version"));
    poke(8, whole + 8, 4);
    poke(12, &huge, 4);
    assert_int_equal(found(SETTINGS, why, sizeof why), -2);
    assert_string_equal(why, "it is damaged");
    poke(12, whole + 12, 4);
    for (off_t at = 0; at < 32 + (off_t)strlen(SETTINGS); at++) { /* every bit of the head and the settings counts */
        uint8_t x = whole[at] ^ (uint8_t)(1u << at % 8);
        poke(at, &x, 1);
        assert_int_equal(found(SETTINGS, NULL, 0), -2);
        poke(at, whole + at, 1);
    }
    for (off_t at = PAGE + SLOT; at < PAGE + SLOT + 48; at++) { /* and of a slot's head */
        uint8_t x = whole[at] ^ (uint8_t)(1u << at % 8);
        poke(at, &x, 1);
        assert_int_equal(found(SETTINGS, NULL, 0), 0);
        poke(at, whole + at, 1);
    }
    srand(7);
    for (int i = 0; i < 300; i++) { /* anything at all: found() checks what it is given */
        uint8_t junk[256];
        for (size_t k = 0; k < sizeof junk; k++) junk[k] = (uint8_t)rand();
        off_t at = rand() % (st.st_size - (off_t)sizeof junk);
        poke(at, junk, (size_t)rand() % sizeof junk);
        (void)found(SETTINGS, NULL, 0);
        if (i % 4 == 3) poke(0, whole, (size_t)st.st_size);
    }
    poke(0, whole, (size_t)st.st_size);
    for (off_t size = st.st_size; size >= 0; size -= size > PAGE ? 3001 : 1) {
        assert_int_equal(truncate(PATH, size), 0);
        assert_in_range(found(SETTINGS, NULL, 0) + 2, 0, 3);
    }
    free(whole);
}

static void two_runs_at_once_are_refused(void **state) {
    (void)state;
    llmq_err err = {0};
    llmq_journal *other = NULL;
    unlink(PATH);
    llmq_journal *j = open_journal(SETTINGS);
    assert_int_equal(journal_open(PATH, SETTINGS, BYTES, &other, &err), LLMQ_E_EXISTS);
    assert_non_null(strstr(err.msg, PATH));
    assert_non_null(strstr(err.msg, "another llmq"));
    journal_close(j, false);
    j = open_journal(SETTINGS);
    journal_close(j, true);
    assert_int_not_equal(journal_open("/nonexistent/x.journal", SETTINGS, 1, &j, &err), LLMQ_OK);
    assert_non_null(strstr(err.msg, "/nonexistent/x.journal"));
    assert_int_equal(journal_open(LLMQ_TEST_TMP, SETTINGS, 1, &j, &err), LLMQ_E_IO);
}

/* A child saves without end and is killed. */
static void a_kill_at_any_moment_leaves_a_checkpoint(void **state) {
    (void)state;
    int64_t most = 0;
    long life = 0; /* the child's, in microseconds */
    srand(3);
    /* On a slow disk no save may be done in so short a time: then it doubles until one is. */
    for (int round = 0; round < 25 || (most == 0 && life < 5000000); round++) {
        life = round < 25 ? 1000 + rand() % 30000 : 2 * life;
        make(0, 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            llmq_journal *j;
            int64_t done;
            if (journal_open(PATH, SETTINGS, BYTES, &j, NULL) || journal_load(j, parts, 2, &done, NULL)) _exit(1);
            for (;;) {
                fill(++done);
                if (journal_save(j, parts, 2, done, NULL)) _exit(1);
            }
        }
        nanosleep(&(struct timespec){life / 1000000, life % 1000000 * 1000}, NULL);
        kill(child, SIGKILL);
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFSIGNALED(how));
        int64_t done = found(SETTINGS, NULL, 0); /* checks every byte */
        assert_true(done >= 0);
        most = done > most ? done : most;
    }
    assert_true(most > 0);
}

static void scratch_is_zeroed_and_out_of_the_way(void **state) {
    (void)state;
    make(0, 2);
    for (int run = 0; run < 2; run++) {
        llmq_journal *j = open_journal(SETTINGS);
        void *scratch;
        int64_t done;
        size_t bytes = 123456;
        assert_int_equal(journal_scratch(j, bytes, &scratch, NULL), LLMQ_OK);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(((uint8_t *)scratch)[i], 0);
        memset(scratch, 0xff, bytes);
        assert_int_equal(journal_load(j, parts, 2, &done, NULL), LLMQ_OK);
        assert_int_equal(done, 2 + run);
        assert_true(is_filled(done));
        save(j, done + 1);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(((uint8_t *)scratch)[i], 0xff);
        journal_close(j, false);
        struct stat st;
        assert_int_equal(stat(PATH, &st), 0);
        assert_true((size_t)st.st_size <= journal_file_bytes(BYTES, bytes));
    }
    assert_int_equal(found(SETTINGS, NULL, 0), 4);
}

static void a_failed_allocation_is_reported(void **state) {
    (void)state;
    make(0, 1);
    for (long n = 1;; n++) {
        llmq_journal *j = NULL;
        mem_fail_after(n);
        llmq_status status = journal_open(PATH, SETTINGS, BYTES, &j, NULL);
        mem_fail_after(0);
        if (status == LLMQ_OK) {
            assert_true(n > 3 && journal_matches(j, NULL, 0));
            journal_close(j, true);
            return;
        }
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_checkpoint_is_found),
        cmocka_unit_test(a_torn_slot_leaves_the_other),
        cmocka_unit_test(stages_have_parts_of_their_own),
        cmocka_unit_test(other_settings_are_named),
        cmocka_unit_test(hostile_bytes_are_no_journal),
        cmocka_unit_test(two_runs_at_once_are_refused),
        cmocka_unit_test(a_kill_at_any_moment_leaves_a_checkpoint),
        cmocka_unit_test(scratch_is_zeroed_and_out_of_the_way),
        cmocka_unit_test(a_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
