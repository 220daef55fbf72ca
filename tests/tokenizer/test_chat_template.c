/* Chat templates against renderings by the Jinja2 library (tests/data/make_template_data.py). */
#include "tests/tokenizer/meta_text.h"

#include <jansson.h>

#include "tokenizer/internal.h"

#define NOON 1768478400 /* 2026-01-15 12:00 UTC, the clock of the goldens */

static json_t *goldens;

static int load(void **state) {
    (void)state;
    size_t len;
    char *text = data_read("tokenizers/templates.json", &len);
    goldens = json_loads(text, 0, NULL);
    free(text);
    return json_is_array(goldens) ? 0 : -1;
}

static int unload(void **state) {
    (void)state;
    json_decref(goldens);
    return 0;
}

static const char *family_of(const char *name) {
    static const char *const families[][2] = {
        {"chatml", "chatml"},      {"smollm2", "chatml"},  {"qwen", "chatml"},       {"Qwen", "chatml"},
        {"hermes", "chatml"},      {"LFM2", "chatml"},     {"llama2", "llama2"},     {"llama3", "llama3"},
        {"meta-llama", "llama3"},  {"mistral", "mistral"}, {"Mistral", "mistral"},   {"gemma", "gemma"},
        {"google-gemma", "gemma"}, {"zephyr", "zephyr"},   {"microsoft-Phi", "phi3"}};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (!strncmp(name, families[i][0], strlen(families[i][0]))) return families[i][1];
    return "?";
}

static char *render(const llmq_chat_template *t, const json_t *item, bool *has_bos) {
    chat_message messages[8];
    json_t *m;
    size_t i, n = 0;
    json_array_foreach(json_object_get(item, "messages"), i, m) messages[n++] =
        (chat_message){json_string_value(json_object_get(m, "role")), json_string_value(json_object_get(m, "content"))};
    char *out = NULL;
    bool add = json_is_true(json_object_get(item, "add_generation_prompt"));
    assert_int_equal(chat_template_render_at(t, messages, n, add, "<s>", "</s>", NOON, &out, has_bos, NULL), LLMQ_OK);
    return out;
}

static void test_goldens(void **state) {
    (void)state;
    json_t *golden, *item;
    size_t i, j, n = 0;
    json_array_foreach(goldens, i, golden) {
        const char *name = json_string_value(json_object_get(golden, "name"));
        const llmq_chat_template *t = chat_template_detect(json_string_value(json_object_get(golden, "template")));
        if (!t) fail_msg("%s is not recognized", name);
        assert_string_equal(chat_template_name(t), family_of(name));
        json_array_foreach(json_object_get(golden, "cases"), j, item) {
            const char *expected = json_string_value(json_object_get(item, "expected"));
            bool has_bos = false;
            char *out = render(t, item, &has_bos);
            /* Mistral Small's own default system message is long and has a date in it; llmq leaves it out. */
            bool shortened = strstr(name, "Mistral-Small") && strstr(expected, "You are Mistral Small 3");
            if (!shortened && strcmp(out, expected))
                fail_msg("%s, case %zu:\n%s\ninstead of\n%s", name, j, out, expected);
            assert_int_equal(has_bos, !strncmp(expected, "<s>", 3));
            n += !shortened;
            mem_free(out);
        }
    }
    assert_true(n > 120);
}

static void test_not_recognized(void **state) {
    (void)state;
    assert_null(chat_template_detect(NULL));
    assert_null(chat_template_detect(""));
    assert_null(chat_template_detect("{{ messages[0].content }}"));
    assert_null(
        chat_template_detect("[gMASK]<sop>{% for m in messages %}<|user|><|assistant|>{{ eos_token }}{% endfor %}"));
}

/* No messages, and a system message alone, must not read past the array. */
static void test_few_messages(void **state) {
    (void)state;
    json_t *golden;
    size_t i;
    const chat_message system = {"system", "x"};
    json_array_foreach(goldens, i, golden) {
        const llmq_chat_template *t = chat_template_detect(json_string_value(json_object_get(golden, "template")));
        for (size_t n = 0; n < 2; n++) {
            char *out = NULL;
            bool has_bos = true;
            assert_int_equal(chat_template_render(t, &system, n, true, "", "", &out, &has_bos, NULL), LLMQ_OK);
            assert_non_null(out);
            assert_false(has_bos);
            mem_free(out);
        }
    }
}

static void test_out_of_memory(void **state) {
    (void)state;
    const chat_message m = {"user", "x"};
    char *out = NULL;
    bool has_bos;
    const llmq_chat_template *t =
        chat_template_detect(json_string_value(json_object_get(json_array_get(goldens, 0), "template")));
    assert_non_null(t);
    mem_fail_after(1);
    llmq_status status = chat_template_render(t, &m, 1, true, "", "", &out, &has_bos, NULL);
    mem_fail_after(0);
    assert_int_equal(status, LLMQ_E_MEMORY);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens), cmocka_unit_test(test_not_recognized),
                                       cmocka_unit_test(test_few_messages), cmocka_unit_test(test_out_of_memory)};
    setenv("TZ", "UTC", 1);
    return cmocka_run_group_tests(tests, load, unload);
}
