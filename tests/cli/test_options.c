/* The option table: sizes, suggestions, and every kind of value with its refusals. The program's sources are no
 * library, so the file under test is included. */
// clang-format off: cmocka wants these before it
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
// clang-format on

#include "cli/options.c"

static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t bytes;
    } good[] = {{"0", 0},       {"4096", 4096},   {"2GiB", 2147483648},   {"1.5 GB", 1500000000},
                {"64k", 65536}, {"3MB", 3000000}, {"1TiB", 1099511627776}};
    static const char *const bad[] = {"", "GB", "-1", "2XB", "2GiBs", "1e30", "nan", "inf", "12 34"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t got = -7;
        assert_true(opt_parse_size(good[i].text, &got));
        assert_int_equal(got, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t got = -7;
        assert_false(opt_parse_size(bad[i], &got));
        assert_int_equal(got, -7);
    }
}

static void test_distance(void **state) {
    (void)state;
    assert_int_equal(opt_distance("--temp", "--temp"), 0);
    assert_int_equal(opt_distance("--tmep", "--temp"), 2);
    assert_int_equal(opt_distance("", "abc"), 3);
    assert_int_equal(opt_distance("kitten", "sitting"), 3);
    char longer[200];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_true(opt_distance(longer, "--temp") > 4);
}

typedef struct values {
    int flag, choice;
    int64_t n, bytes;
    double x;
    const char *text;
    cli_ints list;
    cli_texts texts;
} values;

static const opt_def defs[] = {
    OPT_ROW_FLAG("--flag", "-f", values, flag, 3, ""),
    OPT_ROW_FLAG("--no-flag", NULL, values, flag, 0, ""),
    OPT_ROW_INT("--n", "-n", "N", values, n, -1, 100, ""),
    {.kind = OPT_SIZE, .name = "--bytes", .arg = "SIZE", .offset = offsetof(values, bytes), .help = ""},
    OPT_ROW_REAL("--x", NULL, "X", values, x, 0, 2, ""),
    OPT_ROW_TEXT("--text", NULL, "TEXT", values, text, ""),
    OPT_ROW_ENUM("--choice", NULL, values, choice, "f16|q8_0|q8", ""),
    OPT_ROW_INTS("--list", NULL, "N,...", values, list, 0, 9, ""),
    OPT_ROW_TEXTS("--also", NULL, "TEXT", values, texts, ""),
    OPT_ROW_LATER("--later", "not yet"),
    OPT_ROW_END,
};
static const cli_command command = {.name = "test", .usage = "", .summary = "", .about = ""};

/* The arguments, separated by spaces, after the command's name. stderr is not looked at here: tests/cli/test_cli.sh
 * does. */
static int parse(const char *line, values *v, const char **model) {
    static char buffer[512];
    char *argv[32] = {"test"};
    int argc = 1;
    snprintf(buffer, sizeof buffer, "%s", line);
    for (char *p = strtok(buffer, " "); p && argc < 31; p = strtok(NULL, " ")) argv[argc++] = p;
    opt_set set = {defs, v};
    return opt_parse(&command, &set, 1, argc, argv, model);
}

static void test_values(void **state) {
    (void)state;
    values v = {.n = 7};
    const char *model;
    assert_int_equal(
        parse("-f m --n -1 --bytes 2k --x 1.5 --text -- --choice q8 --list 1,5,9 --also a --also=b", &v, &model),
        CLI_GO_ON);
    assert_string_equal(model, "m");
    assert_int_equal(v.flag, 3);
    assert_int_equal(v.n, -1);
    assert_int_equal(v.bytes, 2048);
    assert_true(v.x == 1.5);
    assert_string_equal(v.text, "--");
    assert_int_equal(v.choice, 2);
    assert_int_equal(v.list.n, 3);
    assert_int_equal(v.list.v[1], 5);
    assert_int_equal(v.texts.n, 2);
    assert_string_equal(v.texts.v[1], "b");
    assert_int_equal(parse("--list 3 --no-flag --n=5 -- -m", &v, &model), CLI_GO_ON);
    assert_string_equal(model, "-m");
    assert_int_equal(v.list.n, 1);
    assert_int_equal(v.flag, 0);
    assert_int_equal(v.n, 5);
    free(v.list.v);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "a b",
                                      "m --n 101",
                                      "m --n -2",
                                      "m --n 1x",
                                      "m --n 99999999999999999999",
                                      "m --n",
                                      "m --bytes 2q",
                                      "m --x nan",
                                      "m --x 2.1",
                                      "m --choice q",
                                      "m --choice q8_",
                                      "m --list 1,,2",
                                      "m --list 1,",
                                      "m --list 1,10",
                                      "m --later",
                                      "m --later=3",
                                      "m --unknown",
                                      "m --flag=1",
                                      "m -fn",
                                      "m --"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        values v = {0};
        const char *model;
        int want = strcmp(bad[i], "m --") == 0 ? CLI_GO_ON : 2;
        if (parse(bad[i], &v, &model) != want) fail_msg("'%s' is not answered by %d", bad[i], want);
        free(v.list.v);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_distance),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
