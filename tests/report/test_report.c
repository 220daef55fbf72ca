/* The page is well-formed, tells what the result holds, and lets nothing of a file become markup. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/mem.h"
#include "report/report.h"
#include "report/text.h"

/* Every tag is closed in order; attributes and text hold no bare < or >. */
static void assert_well_formed(const char *page) {
    static const char *const empty[] = {"meta", "!DOCTYPE", NULL};
    char open[64][24];
    int depth = 0;
    for (const char *at = strchr(page, '<'); at; at = strchr(at, '<')) {
        char name[24];
        bool closing = at[1] == '/';
        if (sscanf(at + 1 + closing, "%23[A-Za-z0-9!]", name) != 1) fail_msg("a bare < before '%.40s'", at);
        const char *end = at;
        for (bool quoted = false; *end && (quoted || *end != '>'); end++) quoted ^= *end == '"';
        assert_int_equal(*end, '>');
        at = end;
        if (closing) {
            if (depth == 0 || strcmp(open[depth - 1], name) != 0) fail_msg("</%s> closes %s", name, depth ? open[depth - 1] : "nothing");
            depth--;
            continue;
        }
        bool is_empty = end[-1] == '/';
        for (int i = 0; empty[i]; i++) is_empty |= !strcmp(empty[i], name);
        if (is_empty) continue;
        assert_true(depth < 64);
        strcpy(open[depth++], name);
    }
    assert_int_equal(depth, 0);
}

static llmq_quant_row row(const char *name, const char *role, int layer, double error, double rtn) {
    llmq_quant_row r = {.from = LLMQ_TYPE_F16, .to = LLMQ_TYPE_IQ4_NL, .method = "gptq", .rows = 64, .cols = 32, .bytes = 1152, .error = error, .rtn_error = rtn,
                        .layer = layer, .role = role, .site = "qkv", .n_tokens = 4000 + layer, .expected_kl = -1};
    snprintf(r.name, sizeof r.name, "%s", name);
    return r;
}

static char *make_page(llmq_quant_result *r, const char *source, const char *settings, const char *command) {
    llmq_quant_params p;
    llmq_quant_params_default(&p);
    p.command = command;
    const llmq_report_facts facts = {.source = source, .params = &p, .result = r, .settings = settings};
    char *page = NULL;
    size_t len = 0;
    llmq_err err = {0};
    if (report_html(&facts, &page, &len, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(strlen(page), len);
    assert_well_formed(page);
    return page;
}

static void holds(const char *page, const char *text) {
    if (!strstr(page, text)) fail_msg("the page does not hold '%s'", text);
}

static void tells_the_result(void **state) {
    (void)state;
    llmq_quant_row rows[3] = {row("blk.0.attn_q.weight", "attn_q", 0, 0.0123, 0.0456), row("blk.1.attn_q.weight", "attn_q", 1, 0.00789, 0.0333),
                              row("token_embd.weight", "token_embd", -1, -1, -1)};
    rows[2].to = LLMQ_TYPE_Q8_0;
    rows[1].fallback = true;
    strcpy(rows[1].note, "rows of 576");
    llmq_quant_result r = {.out = "/somewhere/model.gguf", .rows = rows, .n_rows = 3, .f32_bytes = 538100000, .f16_bytes = 269050000, .out_bytes = 91700000,
                           .bits_per_weight = 5.333, .matrix_bits_per_weight = 4.5, .mean_error = 0.01, .mean_rtn_error = 0.04, .calib_tokens = 65536,
                           .dropped_tokens = 17, .seconds = 12.5, .stage_seconds = {[LLMQ_STAGE_SOLVE] = 7.25}};
    char *page = make_page(&r, "/models/ref", "method \"gptq\"\ndamp 0.01\n", "llmq quantize ref");
    const char *wanted[] = {"model.gguf", "538 MB", "91.7 MB", "5.333", "4.500", "iq4_nl", "q8_0", "65536", "17 were left out", "7.25 s", "solving",
                            "rows of 576", "0.0123", "0.0456", "llmq quantize ref", "&quot;gptq&quot;", "<polyline class=\"own\"", "4001", "/models/ref"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) holds(page, wanted[i]);
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "http"));
    assert_null(strstr(page, "nan"));
    mem_free(page);
}

static void ranges_are_drawn(void **state) {
    (void)state;
    llmq_quant_input inputs[3] = {
        {.layer = 0, .site = "qkv", .min = -3.5f, .max = 4.25f, .scale = 0.03125f, .zero = 5, .observer = "mse", .alpha = 0.55, .error = 0.0012, .macs = 900},
        {.layer = 0, .site = "down", .kept = true, .min = -800, .max = 17, .scale = 3, .observer = "min-max", .error = 0.3, .macs = 100},
        {.layer = 1, .site = "qkv", .scale = 0.1f, .observer = "entropy"}};
    strcpy(inputs[1].note, "outliers: <b>");
    llmq_quant_result r = {.mean_error = -1, .mean_rtn_error = -1, .inputs = inputs, .n_inputs = 3};
    char *page = make_page(&r, NULL, NULL, NULL);
    const char *wanted[] = {"Inputs of 8 bits", "90.00 %", "outliers: &lt;b&gt;", "inputs of gate_up", "seen -3.5 to 4.25, 8 bits cover -4.156 to 3.812 (mse, with a zero point)",
                            "kept in higher precision", "<rect class=\"covered\"", "<rect class=\"kept\"", "0.55"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) holds(page, wanted[i]);
    assert_null(strstr(page, "nan"));
    mem_free(page);
    for (int i = 0; i < 3; i++) inputs[i].scale = 0;
    page = make_page(&r, NULL, NULL, NULL);
    holds(page, "Each token has a scale of its own");
    mem_free(page);
}

static void nothing_becomes_markup(void **state) {
    (void)state;
    llmq_quant_row rows[1] = {row("<script>alert('1')</script>", "attn_q", 0, 0.1, 0.2)};
    strcpy(rows[0].note, "\"><img src=x onerror=y>\x1b[31m\xff");
    llmq_quant_result r = {.out = "</title><b>&.gguf", .rows = rows, .n_rows = 1, .mean_error = -1, .mean_rtn_error = -1, .calib_tokens = 1};
    char *page = make_page(&r, "a\"b<c>", "x <i>\ny\n\n</table> z", "<&'\">");
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "<b>"));
    assert_null(strstr(page, "<i>"));
    assert_null(strchr(page, '\x1b'));
    assert_null(strchr(page, '\xff'));
    holds(page, "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;");
    holds(page, "&lt;&amp;&#39;&quot;&gt;");
    mem_free(page);
}

static void odd_results_make_pages(void **state) {
    (void)state;
    llmq_quant_row rows[2] = {row("a", "attn_q", 0, 0, 0), row("b", "ffn_up", 0, 1e-9, 1e-9)};
    llmq_quant_result r = {.rows = rows, .n_rows = 0, .mean_error = -1, .mean_rtn_error = -1};
    char *page = make_page(&r, NULL, NULL, NULL);
    holds(page, "No layer was measured");
    mem_free(page);
    r.n_rows = 2; /* one layer, one value: an axis all the same */
    page = make_page(&r, NULL, "", NULL);
    holds(page, "<polyline");
    assert_null(strstr(page, "nan"));
    assert_null(strstr(page, "inf"));
    mem_free(page);
    llmq_status status = LLMQ_E_MEMORY;
    for (long n = 1; n < 8; n++) {
        llmq_quant_params p;
        llmq_quant_params_default(&p);
        const llmq_report_facts facts = {.params = &p, .result = &r};
        size_t len;
        mem_fail_after(n);
        status = report_html(&facts, &page, &len, NULL);
        mem_fail_after(0);
        if (status == LLMQ_OK)
            mem_free(page);
        else
            assert_int_equal(status, LLMQ_E_MEMORY);
    }
    assert_int_equal(status, LLMQ_OK);
}

static void text_is_escaped(void **state) {
    (void)state;
    const struct {
        const char *in, *out;
    } cases[] = {{"a<b", "a&lt;b"}, {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"}, {"\xc3", "\xef\xbf\xbd"},
                 {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"}, {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, {"a\x01\x7f", "a\xef\xbf\xbd\xef\xbf\xbd"}, {"", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        report_text t = {0};
        text_escape(&t, cases[i].in);
        assert_string_equal(t.s ? t.s : "", cases[i].out);
        mem_free(t.s);
    }
    const struct {
        double bytes;
        const char *out;
    } sizes[] = {{0, "0 B"}, {999, "999 B"}, {1000, "1.00 kB"}, {91700000, "91.7 MB"}, {999999, "1.00 MB"}, {140e9, "140 GB"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        report_text t = {0};
        text_bytes(&t, sizes[i].bytes);
        assert_string_equal(t.s, sizes[i].out);
        mem_free(t.s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tells_the_result), cmocka_unit_test(ranges_are_drawn), cmocka_unit_test(nothing_becomes_markup),
                                       cmocka_unit_test(odd_results_make_pages), cmocka_unit_test(text_is_escaped)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
