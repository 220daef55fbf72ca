/* The ordered table of rules: --keep before the file, the first match decides, and every bad line is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/mem.h"
#include "quant/policy.h"

#define FILE_NAME LLMQ_TEST_TMP "/policy.txt"

static void write_file(const char *text, size_t len) {
    FILE *f = fopen(FILE_NAME, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    fclose(f);
}

static llmq_status read_rules(const char *text, const char *const *keep, size_t n_keep, llmq_policy_rules *out,
                              llmq_err *err) {
    write_file(text, strlen(text));
    return policy_rules_read(keep, n_keep, FILE_NAME, out, err);
}

static void rules_come_in_order(void **state) {
    (void)state;
    const char *keep[] = {"blk.0.*=f16"};
    llmq_policy_rules rules;
    llmq_err err = {0};
    const char *text = "# the first lines\n\n  blk.*.ffn_down.* Q5_1 # wider\r\n\tblk.0.*\tq8_0\n*=q4_0";
    if (read_rules(text, keep, 1, &rules, &err) == LLMQ_OK) fail_msg("a line with one word was taken");
    assert_non_null(strstr(err.msg, ":5:"));
    text = "# the first lines\n\n  blk.*.ffn_down.* Q5_1 # wider\r\n\tblk.0.*\tq8_0\n*  q4_0";
    if (read_rules(text, keep, 1, &rules, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(rules.n, 4);
    assert_int_equal(rules.n_keep, 1);
    assert_string_equal(rules.rules[1], "blk.*.ffn_down.*=Q5_1");
    assert_string_equal(rules.rules[3], "*=q4_0");
    llmq_policy policy = {.type = LLMQ_TYPE_IQ4_NL, .outer = LLMQ_TYPE_Q8_0, .keep = rules.rules, .n_keep = rules.n};
    assert_int_equal(policy_check(&policy, &err), LLMQ_OK);
    llmq_policy_choice choice;
    policy_choose(&policy, "blk.0.ffn_down.weight", true, LLMQ_TYPE_F32, 64, &choice);
    assert_int_equal(choice.type, LLMQ_TYPE_F16); /* --keep goes before the file */
    assert_true(choice.fixed);
    policy_choose(&policy, "blk.1.ffn_down.weight", true, LLMQ_TYPE_F32, 64, &choice);
    assert_int_equal(choice.type, LLMQ_TYPE_Q5_1);
    policy_choose(&policy, "blk.1.attn_q.weight", true, LLMQ_TYPE_F32, 64, &choice);
    assert_int_equal(choice.type, LLMQ_TYPE_Q4_0);
    policy.n_keep = 1;
    policy_choose(&policy, "blk.1.attn_q.weight", true, LLMQ_TYPE_F32, 64, &choice);
    assert_int_equal(choice.type, LLMQ_TYPE_IQ4_NL);
    assert_false(choice.fixed);
    policy_rules_clear(&rules);
}

static void bad_lines_are_named(void **state) {
    (void)state;
    const struct {
        const char *text, *says;
    } bad[] = {{"blk.* q4_0\nblk.*\n", ":2:"},
               {"blk.* q4_0 q8_0\n", ":1:"},
               {"\n\nblk.* q9_9\n", ":3: 'q9_9'"},
               {"blk.*=q4_0\n", ":1:"},
               {"q4_0\n", ":1:"}};
    llmq_policy_rules rules;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        llmq_err err = {0};
        assert_int_equal(read_rules(bad[i].text, NULL, 0, &rules, &err), LLMQ_E_ARG);
        if (!strstr(err.msg, bad[i].says) || !strstr(err.msg, FILE_NAME)) fail_msg("%zu: %s", i, err.msg);
        assert_null(rules.rules);
    }
    llmq_err err = {0};
    write_file("* q4_0\0", 7);
    assert_int_equal(policy_rules_read(NULL, 0, FILE_NAME, &rules, &err), LLMQ_E_FORMAT);
    assert_int_equal(policy_rules_read(NULL, 0, LLMQ_TEST_TMP "/no-such-policy", &rules, &err), LLMQ_E_IO);
    char text[400];
    memset(text, 'x', sizeof text);
    memcpy(text + sizeof text - 6, " q4_0", 6);
    assert_int_equal(read_rules(text, NULL, 0, &rules, &err), LLMQ_E_ARG);
}

static void empty_files_and_no_memory(void **state) {
    (void)state;
    llmq_policy_rules rules;
    llmq_err err = {0};
    assert_int_equal(read_rules("", NULL, 0, &rules, &err), LLMQ_OK);
    assert_int_equal(rules.n, 0);
    policy_rules_clear(&rules);
    assert_int_equal(policy_rules_read(NULL, 0, NULL, &rules, &err), LLMQ_OK);
    policy_rules_clear(&rules);
    for (long n = 1; n < 3; n++) {
        write_file("* q4_0\n", 7);
        mem_fail_after(n);
        llmq_status status = policy_rules_read(NULL, 0, FILE_NAME, &rules, &err);
        mem_fail_after(0);
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rules_come_in_order), cmocka_unit_test(bad_lines_are_named),
                                       cmocka_unit_test(empty_files_and_no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
