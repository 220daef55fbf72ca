/* Output folders: whole or absent, and never over something that is not ours. */
#define _GNU_SOURCE /* symlink */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/folder.h"

#define ROOT LLMQ_TEST_TMP "/folders"
#define OUT ROOT "/out"

static bool is_ours(const void *user, const char *dir, const char *name, bool is_folder) {
    (void)user, (void)dir;
    return is_folder ? !strcmp(name, "part") : !strcmp(name, "a") || !strcmp(name, "b");
}

static const folder_rule rule = {.is_ours = is_ours};

static void put(const char *path) {
    assert_int_equal(file_write(path, "x", 1, NULL), LLMQ_OK);
}

static int fresh(void **state) {
    (void)state;
    mkdir(LLMQ_TEST_TMP, 0777);
    return system("rm -rf " ROOT) || mkdir(ROOT, 0777);
}

static llmq_out_folder *open_ok(bool force, bool keep) {
    llmq_out_folder *f = NULL;
    llmq_err err = {0};
    if (out_folder_open(OUT, force, keep, &rule, &f, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_string_equal(out_folder_path(f), OUT ".tmp");
    return f;
}

static void open_fails(bool force, const char *says) {
    llmq_out_folder *f = NULL;
    llmq_err err = {0};
    assert_int_equal(out_folder_open(OUT, force, false, &rule, &f, &err), LLMQ_E_EXISTS);
    if (!strstr(err.msg, says)) fail_msg("\"%s\" lacks \"%s\"", err.msg, says);
}

static void appears_whole(void **state) {
    (void)state;
    llmq_out_folder *f = open_ok(false, false);
    put(OUT ".tmp/a");
    assert_int_equal(out_folder_add(f, "part", NULL), LLMQ_OK);
    put(OUT ".tmp/part/b");
    assert_false(file_exists(OUT));
    assert_int_equal(out_folder_finish(f, NULL), LLMQ_OK);
    assert_true(file_exists(OUT "/a") && file_exists(OUT "/part/b"));
    assert_false(file_exists(OUT ".tmp"));
    open_fails(false, "exists already");
}

static void replaces_its_own(void **state) {
    (void)state;
    assert_int_equal(mkdir(OUT, 0777), 0);
    put(OUT "/b");
    llmq_out_folder *f = open_ok(true, false);
    put(OUT ".tmp/a");
    assert_true(file_exists(OUT "/b"));
    assert_int_equal(out_folder_finish(f, NULL), LLMQ_OK);
    assert_true(file_exists(OUT "/a"));
    assert_false(file_exists(OUT "/b"));
    assert_false(file_exists(OUT ".tmp"));
}

static void keeps_what_is_not_ours(void **state) {
    (void)state;
    assert_int_equal(mkdir(OUT, 0777), 0);
    put(OUT "/a");
    put(OUT "/thesis");
    open_fails(true, "out/thesis: is in the way");
    assert_true(file_exists(OUT "/a") && file_exists(OUT "/thesis"));
    unlink(OUT "/thesis");
    assert_int_equal(symlink("/", OUT "/b"), 0); /* its name is ours, what it is is not */
    open_fails(true, "out/b: is in the way");
    unlink(OUT "/b");
    assert_int_equal(mkdir(OUT "/part", 0777), 0);
    assert_int_equal(mkdir(OUT "/part/part", 0777), 0);
    open_fails(true, "part/part: is in the way");
    assert_int_equal(system("rm -rf " OUT "; : > " OUT), 0);
    open_fails(true, "out: is in the way"); /* a file is no folder */
    /* What appears during the run is not deleted either. */
    unlink(OUT);
    llmq_out_folder *f = open_ok(false, false);
    assert_int_equal(mkdir(OUT, 0777), 0);
    assert_int_equal(out_folder_finish(f, NULL), LLMQ_E_EXISTS);
    assert_true(file_exists(OUT));
}

static void work_folder_is_cleaned_or_kept(void **state) {
    (void)state;
    llmq_out_folder *f = open_ok(false, false);
    put(OUT ".tmp/a");
    out_folder_abort(f, true);
    assert_true(file_exists(OUT ".tmp/a"));
    f = open_ok(false, true);
    assert_true(file_exists(OUT ".tmp/a"));
    out_folder_abort(f, true);
    f = open_ok(false, false);
    assert_false(file_exists(OUT ".tmp/a"));
    out_folder_abort(f, false);
    assert_false(file_exists(OUT ".tmp"));
    assert_int_equal(mkdir(OUT ".tmp", 0777), 0);
    put(OUT ".tmp/notes");
    open_fails(false, "out.tmp/notes: is in the way");
    assert_true(file_exists(OUT ".tmp/notes"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(appears_whole, fresh),
        cmocka_unit_test_setup(replaces_its_own, fresh),
        cmocka_unit_test_setup(keeps_what_is_not_ours, fresh),
        cmocka_unit_test_setup(work_folder_is_cleaned_or_kept, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
