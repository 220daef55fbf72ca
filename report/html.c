/* The page: what was made of what, its sizes and types, where the errors are, what was seen, how long it took. */
#include <string.h>

#include "core/mem.h"
#include "report/page.h"

static const char style[] =
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1c2430;--dim:#5b6675;--line:#d9dee5;--own:#0b6bcb;--rtn:#8a6d1f;"
    "--bar:#0b6bcb;--warn:#a33}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#14181f;--fg:#e4e8ee;--dim:#9aa5b4;--line:#313945;--own:#63b0ff;"
    "--rtn:#d9b44a;--bar:#63b0ff;--warn:#ff8d85}}\n"
    "body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;"
    "padding:0 "
    "1rem}h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px "
    "solid var(--line)}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;padding:.2rem .6rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top;"
    "overflow-wrap:anywhere}th.n,td.n{text-align:right;overflow-wrap:normal;white-space:nowrap}thead "
    "th,caption{color:var(--dim);font-weight:500;"
    "text-align:left}.bar{height:.8rem;background:var(--bar);border-radius:2px;min-width:1px}"
    "td.w{width:30%}code,pre{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere;white-space:pre-wrap}"
    ".warn{color:var(--warn)}.dim,.legend{color:var(--dim)}summary{cursor:pointer}.wide{overflow-x:auto}"
    "svg.curves{width:100%;height:auto}svg text{fill:var(--fg);font:11px system-ui,sans-serif}svg "
    ".tick{fill:var(--dim);font-size:10px}svg .head{font-weight:600;font-size:12px}.grid{stroke:var(--line);"
    "stroke-width:1}.own,.rtn{fill:none;stroke:var(--own);stroke-width:1.8}.rtn{stroke:var(--rtn);stroke-dasharray:5 "
    "3}.dot,.covered{fill:var(--own)}.kept{fill:var(--warn)}.seen{stroke:var(--fg);stroke-width:1.2}\n";

static void add_row(report_text *t, const char *name, int digits, double value, const char *unit) {
    text_add(t, "<tr><th scope=\"row\">%s</th><td>%.*f %s</td></tr>\n", name, digits, value, unit);
}

static void add_bytes(report_text *t, const char *name, int64_t bytes) {
    text_add(t, "<tr><th scope=\"row\">%s</th><td>", name);
    text_bytes(t, (double)bytes);
    text_add(t, "</td></tr>\n");
}

static void add_summary(report_text *t, const llmq_report_facts *f) {
    const llmq_quant_result *r = f->result;
    text_add(t, "<h1>");
    text_escape(t, r->out[0] ? path_base(r->out) : "Plan");
    text_add(t, "</h1>\n<p class=\"dim\">%s by llmq %s, from <code>", f->params->plan_only ? "Planned" : "Made",
             llmq_version());
    text_escape(t, f->source);
    text_add(t, "</code></p>\n<table><tbody>\n");
    text_add(t, "<tr><th scope=\"row\">method</th><td>%s%s</td></tr>\n", f->params->awq ? "awq, then " : "",
             f->params->method);
    add_row(t, "bits per weight", 3, r->bits_per_weight, "all tensors counted");
    add_row(t, "inside the layers", 3, r->matrix_bits_per_weight, "bits per weight");
    if (r->mean_error >= 0) add_row(t, "mean error of a layer", 5, r->mean_error, "relative");
    if (r->mean_rtn_error >= 0) add_row(t, "by plain rounding", 5, r->mean_rtn_error, "relative");
    if (!f->params->plan_only) add_row(t, "time", 1, r->seconds, "s");
    add_row(t, "planned time", 1, r->planned_seconds, "s");
    if (!f->params->plan_only) add_bytes(t, "peak memory", r->peak_bytes);
    add_bytes(t, "planned memory", r->planned_peak_bytes);
    text_add(t, "</tbody></table>\n");
}

static void add_bar(report_text *t, const char *name, double value, double most, bool seconds) {
    text_add(t, "<tr><th scope=\"row\">%s</th><td class=\"n\">", name);
    if (seconds)
        text_add(t, "%.2f s", value);
    else
        text_bytes(t, value);
    text_add(t, "</td><td class=\"w\"><div class=\"bar\" style=\"width:%.1f%%\"></div></td></tr>\n",
             most > 0 ? 100 * value / most : 0);
}

static void add_memory_row(report_text *t, const char *name, double bits, double weights, double kv,
                           const char *kv_name, double most) {
    text_add(t, "<tr><th scope=\"row\">%s</th><td class=\"n\">%.4g</td><td class=\"n\">", name, bits);
    text_bytes(t, weights);
    text_add(t, "</td><td class=\"n\">");
    text_bytes(t, kv);
    text_add(t, " (%s)</td><td class=\"n\">", kv_name);
    text_bytes(t, weights + kv);
    text_add(t, "</td><td class=\"w\"><div class=\"bar\" style=\"width:%.1f%%\"></div></td></tr>\n",
             most > 0 ? 100 * (weights + kv) / most : 0);
}

/* The last line is measured: the tensors of the first output, as they lie in it. */
static void add_sizes(report_text *t, const llmq_report_facts *f) {
    const llmq_quant_result *r = f->result;
    llmq_memory_row rows[LLMQ_MEMORY_ROWS];
    double bytes = 0, kv = (double)r->kv_bytes_per_token * (double)r->memory_ctx;
    llmq_memory_table(r->f32_bytes / 4, r->kv_bytes_per_token, r->memory_ctx, rows);
    for (size_t i = 0; i < r->n_rows; i++) bytes += (double)r->rows[i].bytes;
    double most = (double)rows[0].weights + (double)rows[0].kv;
    text_add(
        t,
        "<h2>Sizes</h2>\n<table><thead><tr><th scope=\"col\">memory</th><th scope=\"col\" class=\"n\">bits</th><th "
        "scope=\"col\" class=\"n\">weights</th><th scope=\"col\" class=\"n\">KV cache at %lld</th><th "
        "scope=\"col\" class=\"n\">both</th><td></td></tr></thead><tbody>\n",
        (long long)r->memory_ctx);
    for (int i = 0; i < LLMQ_MEMORY_ROWS; i++)
        add_memory_row(t, rows[i].name, rows[i].bits, (double)rows[i].weights, (double)rows[i].kv, rows[i].kv_name,
                       most);
    add_memory_row(t, "this file", r->bits_per_weight, bytes, kv, "f16", most);
    text_add(t, "</tbody></table>\n<p>%s: ", r->n_outputs > 1 ? "All outputs" : "The whole file");
    text_bytes(t, (double)r->out_bytes);
    text_add(t, ".</p>\n");
}

static void add_types(report_text *t, const llmq_quant_result *r) {
    text_add(t, "<h2>Types</h2>\n<table><thead><tr><th scope=\"col\">type</th><th scope=\"col\" "
                "class=\"n\">tensors</th><th scope=\"col\" class=\"n\">weights</th><th scope=\"col\" "
                "class=\"n\">bytes</th><th scope=\"col\" class=\"n\">bits</th></tr></thead><tbody>\n");
    for (int type = 0; type < LLMQ_TYPE_COUNT; type++) {
        int64_t n = 0, weights = 0, bytes = 0;
        for (size_t i = 0; i < r->n_rows; i++) {
            if ((int)r->rows[i].to != type) continue;
            n++;
            weights += r->rows[i].rows * r->rows[i].cols;
            bytes += r->rows[i].bytes;
        }
        if (!n) continue;
        text_add(t, "<tr><th scope=\"row\">%s</th><td class=\"n\">%lld</td><td class=\"n\">%lld</td><td class=\"n\">",
                 llmq_type_name((llmq_type)type), (long long)n, (long long)weights);
        text_bytes(t, (double)bytes);
        text_add(t, "</td><td class=\"n\">%.3f</td></tr>\n", weights ? 8.0 * (double)bytes / (double)weights : 0);
    }
    text_add(t, "</tbody></table>\n");
}

static void add_calibration(report_text *t, const llmq_quant_result *r) {
    static const char *const sites[] = {"qkv", "o", "gate_up", "down"};
    text_add(t, "<h2>Calibration</h2>\n");
    if (r->calib_tokens <= 0) {
        text_add(t, "<p>None: the method needs no data.</p>\n");
        return;
    }
    text_add(t, "<p>%lld tokens; %lld were left out somewhere for numbers that are not finite.</p>\n",
             (long long)r->calib_tokens, (long long)r->dropped_tokens);
    text_add(t, "<table><thead><tr><th scope=\"col\">inputs of</th><th scope=\"col\" class=\"n\">tokens seen, "
                "fewest</th><th scope=\"col\" class=\"n\">most</th></tr></thead><tbody>\n");
    for (size_t s = 0; s < sizeof sites / sizeof *sites; s++) {
        int64_t least = INT64_MAX, most = 0;
        for (size_t i = 0; i < r->n_rows; i++) {
            const llmq_quant_row *row = &r->rows[i];
            if (!row->site || strcmp(row->site, sites[s]) != 0 || row->n_tokens <= 0) continue;
            if (row->n_tokens < least) least = row->n_tokens;
            if (row->n_tokens > most) most = row->n_tokens;
        }
        if (most)
            text_add(t, "<tr><th scope=\"row\">%s</th><td class=\"n\">%lld</td><td class=\"n\">%lld</td></tr>\n",
                     sites[s], (long long)least, (long long)most);
    }
    text_add(t, "</tbody></table>\n");
}

static void add_times(report_text *t, const llmq_quant_result *r) {
    double most = 0;
    for (int s = 0; s < LLMQ_STAGE_COUNT; s++) most = r->stage_seconds[s] > most ? r->stage_seconds[s] : most;
    text_add(t, "<h2>Time</h2>\n<table><thead><tr><th scope=\"col\">stage</th><th scope=\"col\" "
                "class=\"n\">seconds</th><td></td></tr></thead><tbody>\n");
    for (int s = 0; s < LLMQ_STAGE_COUNT; s++)
        if (r->stage_seconds[s] > 0)
            add_bar(t, llmq_quant_stage_name((llmq_quant_stage)s), r->stage_seconds[s], most, true);
    text_add(t, "</tbody></table>\n");
}

static void add_notes(report_text *t, const llmq_quant_result *r) {
    text_add(t, "<h2>Warnings</h2>\n");
    size_t n = 0;
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        if (!row->fallback && !row->note[0]) continue;
        if (!n++) text_add(t, "<ul>\n");
        text_add(t, "<li%s><code>", row->fallback ? " class=\"warn\"" : "");
        text_escape(t, row->name);
        text_add(t, "</code> (%s, %s): ", llmq_type_name(row->to), row->method);
        text_escape(t, row->note);
        text_add(t, "</li>\n");
    }
    text_add(t, n ? "</ul>\n" : "<p>None: every tensor is as it was asked for.</p>\n");
}

static void add_error(report_text *t, double error) {
    if (error < 0)
        text_add(t, "<td class=\"n\">&#8211;</td>");
    else
        text_add(t, "<td class=\"n\">%.3g</td>", error);
}

static void add_tensors(report_text *t, const llmq_quant_result *r) {
    text_add(t,
             "<h2>Tensors</h2>\n<details><summary>%zu tensors</summary><div class=\"wide\"><table><thead><tr><th "
             "scope=\"col\">name</th><th scope=\"col\">from</th><th scope=\"col\">to</th><th "
             "scope=\"col\">method</th><th scope=\"col\" class=\"n\">rows</th><th scope=\"col\" "
             "class=\"n\">cols</th><th scope=\"col\" class=\"n\">bytes</th><th scope=\"col\" "
             "class=\"n\">error</th><th scope=\"col\" class=\"n\">plain rounding's</th></tr></thead><tbody>\n",
             r->n_rows);
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        text_add(t, "<tr><th scope=\"row\">");
        text_escape(t, row->name);
        text_add(t,
                 "</th><td>%s</td><td>%s</td><td>%s</td><td class=\"n\">%lld</td><td class=\"n\">%lld</td><td "
                 "class=\"n\">%lld</td>",
                 llmq_type_name(row->from), llmq_type_name(row->to), row->method, (long long)row->rows,
                 (long long)row->cols, (long long)row->bytes);
        add_error(t, row->error);
        add_error(t, row->rtn_error);
        text_add(t, "</tr>\n");
    }
    text_add(t, "</tbody></table></div></details>\n");
}

/* NAME VALUE lines as a table. */
static void add_settings(report_text *t, const llmq_report_facts *f) {
    text_add(t, "<h2>Settings</h2>\n");
    if (f->params->command) {
        text_add(t, "<pre>");
        text_escape(t, f->params->command);
        text_add(t, "</pre>\n");
    }
    if (!f->settings || !*f->settings) return;
    text_add(t, "<table><tbody>\n");
    for (const char *at = f->settings; *at;) {
        char line[1024];
        size_t n = strcspn(at, "\n"), kept = n < sizeof line ? n : sizeof line - 1;
        memcpy(line, at, kept);
        line[kept] = 0;
        char *space = strchr(line, ' ');
        if (space) *space = 0;
        text_add(t, "<tr><th scope=\"row\">");
        text_escape(t, line);
        text_add(t, "</th><td><code>");
        text_escape(t, space ? space + 1 : "");
        text_add(t, "</code></td></tr>\n");
        at += n + (at[n] == '\n');
    }
    text_add(t, "</tbody></table>\n");
}

llmq_status report_html(const llmq_report_facts *facts, char **out, size_t *len_out, llmq_err *err) {
    report_text t = {0};
    text_add(&t, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
                 "content=\"width=device-width,initial-scale=1\">\n<title>");
    text_escape(&t, facts->result->out[0] ? path_base(facts->result->out) : "llmq plan");
    text_add(&t, "</title>\n<style>\n%s</style></head>\n<body>\n", style);
    add_summary(&t, facts);
    add_sizes(&t, facts);
    add_types(&t, facts->result);
    text_add(&t, "<h2>Errors by layer</h2>\n");
    page_curves(&t, facts);
    text_add(&t, "\n");
    page_ranges(&t, facts);
    add_notes(&t, facts->result);
    add_calibration(&t, facts->result);
    add_times(&t, facts->result);
    add_settings(&t, facts);
    add_tensors(&t, facts->result);
    text_add(&t, "</body></html>\n");
    if (t.failed) {
        mem_free(t.s);
        return mem_error(err, t.cap, "the report");
    }
    *out = t.s;
    *len_out = t.len;
    return LLMQ_OK;
}

llmq_status report_html_write(const llmq_report_facts *facts, llmq_out *out, llmq_err *err) {
    char *page = NULL;
    size_t len = 0;
    llmq_status status = report_html(facts, &page, &len, err);
    if (status == LLMQ_OK) status = out_write_at(out, page, len, 0, err);
    mem_free(page);
    if (status != LLMQ_OK) {
        out_abort(out);
        return status;
    }
    return out_finish(out, err);
}
