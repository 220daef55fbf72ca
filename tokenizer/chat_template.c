/* Chat templates. Models carry Jinja programs; llmq knows the families that nearly all of them belong to by marks in
 * their text, and renders each family by a few lines of C. Inside a family templates differ in small ways that change
 * tokens (a default system message, a space after [INST], a date): each such variant is a row of the table, told by its
 * own marks.
 *
 * The rows' texts are those of the templates, tests/tokenizer/test_chat_template.c compares with the Jinja2 library. */
#define _POSIX_C_SOURCE 200809L /* localtime_r */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tokenizer/internal.h"

typedef struct text_out {
    char *s;
    size_t len, cap;
    bool failed;
} text_out;

typedef struct render_job {
    const llmq_chat_template *t;
    const chat_message *messages;
    size_t n;
    bool add_assistant;
    const char *bos, *eos;
    int64_t now;
    text_out out;
} render_job;

typedef void render_fn(render_job *job);

enum {
    T_BOS = 1,   /* begins with BOS */
    T_TRIM = 2,  /* contents are stripped of white space */
    T_THINK = 4, /* Qwen3: earlier thoughts are left out, an answer after the last question gets an empty thought */
    T_DATE_FIXED = 8,    /* Llama 3.1: a system block with "26 Jul 2024" */
    T_DATE_TODAY = 16,   /* Llama 3.2: the same with today's date */
    T_SYSTEM_LAST = 32,  /* Mistral: the system message goes before the last user message, not the first */
    T_SYSTEM_BLOCK = 64, /* Mistral v7: [SYSTEM_PROMPT] */
    T_ALWAYS_OPEN = 128, /* Llama 3's first template opens an assistant turn whether asked to or not */
    T_TRIM_ANSWER = 256  /* only the assistant's contents are stripped */
};

struct llmq_chat_template {
    const char *name;
    const char *marks[4]; /* all must occur in the Jinja text; "!x": x must not */
    render_fn *render;
    int flags;
    const char *system;                      /* default system message, NULL: none */
    const char *open, *close, *answer, *end; /* around the contents of user and assistant (mistral, zephyr) */
};

/* ---- text -------------------------------------------------------------------------------------------------------- */

static void put_n(text_out *out, const char *s, size_t len) {
    if (out->failed) return;
    if (out->cap - out->len <= len) {
        size_t cap = (out->len + len + 1) * 2;
        char *grown = mem_grow(out->s, out->len, cap, 1);
        if (!grown) {
            out->failed = true;
            return;
        }
        out->s = grown;
        out->cap = cap;
    }
    memcpy(out->s + out->len, s, len);
    out->len += len;
    out->s[out->len] = 0;
}

static void put(render_job *job, const char *s) {
    put_n(&job->out, s, strlen(s));
}

/* White space as Python's str.strip has it. */
static bool is_python_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static llmq_str trimmed(const char *text) {
    size_t len = strlen(text), n;
    while (len && (n = utf8_char(text, len)) && is_python_space(utf8_codepoint(text, n))) {
        text += n;
        len -= n;
    }
    for (;;) { /* the last character begins at most 4 bytes before the end */
        for (n = 1; n < 4 && n < len && ((uint8_t)text[len - n] & 0xc0) == 0x80; n++) {
        }
        if (!len || utf8_char(text + len - n, n) != n || !is_python_space(utf8_codepoint(text + len - n, n))) break;
        len -= n;
    }
    return (llmq_str){text, len};
}

static void put_content(render_job *job, const char *content, bool trim) {
    llmq_str s = trim ? trimmed(content) : (llmq_str){content, strlen(content)};
    put_n(&job->out, s.s, s.len);
}

static bool is_role(const chat_message *m, const char *role) {
    return !strcmp(m->role, role);
}
static bool flag(const render_job *job, int f) {
    return job->t->flags & f;
}

/* The index of the last user message, n if there is none. */
static size_t last_user(const render_job *job) {
    for (size_t i = job->n; i-- > 0;)
        if (is_role(&job->messages[i], "user")) return i;
    return job->n;
}

/* ---- ChatML ------------------------------------------------------------------------------------------------------ */

/* Qwen3's template takes thoughts out of answers and puts one, maybe empty, before an answer that follows the last
 * question. */
static void put_qwen3_answer(render_job *job, size_t i, size_t last_query) {
    const char *content = job->messages[i].content, *answer = content, *thought = "", *mark;
    size_t n_thought = 0;
    if ((mark = strstr(content, "</think>"))) {
        const char *begin = content, *next;
        while ((next = strstr(begin, "<think>")) && next < mark) begin = next + 7;
        thought = begin;
        n_thought = (size_t)(mark - begin);
        for (next = mark; next; next = strstr(answer, "</think>")) answer = next + 8;
        while (*answer == '\n') answer++;
    }
    while (n_thought && *thought == '\n') thought++, n_thought--;
    while (n_thought && thought[n_thought - 1] == '\n') n_thought--;
    bool after_query = last_query == job->n ? false : i > last_query;
    if (after_query && (i + 1 == job->n || n_thought)) {
        put(job, "<think>\n");
        put_n(&job->out, thought, n_thought);
        put(job, "\n</think>\n\n");
        while (*answer == '\n') answer++;
    }
    put(job, answer);
}

static void render_chatml(render_job *job) {
    size_t last_query = last_user(job);
    if (job->t->system && (!job->n || !is_role(&job->messages[0], "system"))) {
        put(job, "<|im_start|>system\n");
        put(job, job->t->system);
        put(job, "<|im_end|>\n");
    }
    for (size_t i = 0; i < job->n; i++) {
        const chat_message *m = &job->messages[i];
        put(job, "<|im_start|>");
        put(job, m->role);
        put(job, "\n");
        if (flag(job, T_THINK) && is_role(m, "assistant"))
            put_qwen3_answer(job, i, last_query);
        else
            put_content(job, m->content, flag(job, T_TRIM));
        put(job, "<|im_end|>\n");
    }
    if (job->add_assistant) put(job, "<|im_start|>assistant\n");
}

/* ---- Llama ------------------------------------------------------------------------------------------------------- */

static void render_llama2(render_job *job) {
    const char *system = job->n && is_role(&job->messages[0], "system") ? job->messages[0].content : NULL;
    for (size_t i = system ? 1 : 0, first = i; i < job->n; i++) {
        const chat_message *m = &job->messages[i];
        if (is_role(m, "assistant")) {
            put(job, " ");
            put_content(job, m->content, true);
            put(job, " ");
            put(job, job->eos);
            continue;
        }
        put(job, job->bos);
        put(job, "[INST] ");
        if (i == first && system) { /* the whole is stripped: its end is the end of the user's text */
            put(job, "<<SYS>>\n");
            put(job, system);
            put(job, "\n<</SYS>>\n\n");
            const char *s = m->content;
            llmq_str t = trimmed(s);
            put_n(&job->out, s, (size_t)(t.s - s) + t.len);
        } else {
            put_content(job, m->content, true);
        }
        put(job, " [/INST]");
    }
}

static void put_llama3_turn(render_job *job, const char *role) {
    put(job, "<|start_header_id|>");
    put(job, role);
    put(job, "<|end_header_id|>\n\n");
}

/* Llama 3.1 and 3.2 open with a system block in any case. */
static void put_llama31_system(render_job *job, const char *system) {
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    char date[32] = "26 Jul 2024";
    time_t now = (time_t)job->now;
    struct tm tm;
    if (flag(job, T_DATE_TODAY) && localtime_r(&now, &tm))
        snprintf(date, sizeof date, "%02d %s %d", tm.tm_mday, months[tm.tm_mon % 12], tm.tm_year + 1900);
    put_llama3_turn(job, "system");
    put(job, "Cutting Knowledge Date: December 2023\nToday Date: ");
    put(job, date);
    put(job, "\n\n");
    put_content(job, system, true);
    put(job, "<|eot_id|>");
}

static void render_llama3(render_job *job) {
    size_t i = 0;
    if (flag(job, T_DATE_FIXED | T_DATE_TODAY)) {
        if (job->n && is_role(&job->messages[0], "system")) i = 1;
        put_llama31_system(job, i ? job->messages[0].content : "");
    }
    for (; i < job->n; i++) {
        put_llama3_turn(job, job->messages[i].role);
        put_content(job, job->messages[i].content, true);
        put(job, "<|eot_id|>");
    }
    if (job->add_assistant || flag(job, T_ALWAYS_OPEN)) put_llama3_turn(job, "assistant");
}

/* ---- Mistral ----------------------------------------------------------------------------------------------------- */

static void render_mistral(render_job *job) {
    size_t i = 0, first_user = 0;
    const char *system = NULL;
    if (job->n && is_role(&job->messages[0], "system")) system = job->messages[i++].content;
    first_user = i;
    if (flag(job, T_SYSTEM_BLOCK)) {
        if (system) {
            put(job, strchr(job->t->open, ' ') ? "[SYSTEM_PROMPT] " : "[SYSTEM_PROMPT]");
            put(job, system);
            put(job, "[/SYSTEM_PROMPT]");
        }
        system = NULL;
    }
    size_t system_at = flag(job, T_SYSTEM_LAST) ? job->n - 1 : first_user;
    for (; i < job->n; i++) {
        const chat_message *m = &job->messages[i];
        if (is_role(m, "assistant")) {
            put(job, job->t->answer);
            put_content(job, m->content, flag(job, T_TRIM_ANSWER));
            put(job, job->eos);
            put(job, job->t->end);
            continue;
        }
        put(job, job->t->open);
        if (system && i == system_at) {
            put(job, system);
            put(job, "\n\n");
        }
        put(job, m->content);
        put(job, job->t->close);
    }
}

/* ---- Gemma ------------------------------------------------------------------------------------------------------- */

/* The system message goes before the first user message, as in Gemma 3; Gemma 2's own template refuses one. */
static void render_gemma(render_job *job) {
    size_t i = 0;
    const char *system = NULL;
    if (job->n && is_role(&job->messages[0], "system")) system = job->messages[i++].content;
    for (; i < job->n; i++) {
        const chat_message *m = &job->messages[i];
        put(job, "<start_of_turn>");
        put(job, is_role(m, "assistant") ? "model" : m->role);
        put(job, "\n");
        if (system) {
            put(job, system);
            put(job, "\n\n");
            system = NULL;
        }
        put_content(job, m->content, true);
        put(job, "<end_of_turn>\n");
    }
    if (job->add_assistant) put(job, "<start_of_turn>model\n");
}

/* ---- Zephyr, Phi-3 ----------------------------------------------------------------------------------------------- */

static void render_zephyr(render_job *job) {
    for (size_t i = 0; i < job->n; i++) {
        put(job, "<|");
        put(job, job->messages[i].role);
        put(job, "|>\n");
        put(job, job->messages[i].content);
        put(job, job->t->end ? job->t->end : job->eos);
        put(job, "\n");
    }
    if (job->add_assistant)
        put(job, "<|assistant|>\n");
    else if (job->t->end)
        put(job, job->eos);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* clang-format off */
#define CHATML_ROWS(mark, flags, system)                                                                               \
    {"chatml", {"<|im_start|>", mark, "bos_token"}, render_chatml, (flags) | T_BOS, system, 0, 0, 0, 0},               \
    {"chatml", {"<|im_start|>", mark, "!bos_token"}, render_chatml, flags, system, 0, 0, 0, 0}
/* A default system message, as it stands in a template: followed by the end of its turn. */
#define CHATML_DEFAULT(system) CHATML_ROWS(system "<|im_end|>", 0, system)

/* The first row whose marks fit is taken. */
static const llmq_chat_template templates[] = {
    CHATML_DEFAULT("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    CHATML_DEFAULT("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    CHATML_DEFAULT("You are a helpful assistant."),
    CHATML_DEFAULT("You are a helpful assistant"),
    CHATML_ROWS("'</think>' in ", T_THINK, NULL),
    CHATML_ROWS("['content'] | trim", T_TRIM, NULL),
    CHATML_ROWS("['content']|trim", T_TRIM, NULL),
    CHATML_ROWS("<|im_end|>", 0, NULL),

    {"llama3", {"<|start_header_id|>", "Today Date", "strftime_now"}, render_llama3, T_BOS | T_DATE_TODAY, 0, 0, 0, 0, 0},
    {"llama3", {"<|start_header_id|>", "Today Date"}, render_llama3, T_BOS | T_DATE_FIXED, 0, 0, 0, 0, 0},
    {"llama3", {"<|start_header_id|>", "add_generation_prompt"}, render_llama3, T_BOS, 0, 0, 0, 0, 0},
    {"llama3", {"<|start_header_id|>"}, render_llama3, T_BOS | T_ALWAYS_OPEN, 0, 0, 0, 0, 0},

    {"gemma", {"<start_of_turn>"}, render_gemma, T_BOS, 0, 0, 0, 0, 0},

    {"llama2", {"[INST]", "<<SYS>>"}, render_llama2, 0, 0, 0, 0, 0, 0},
    {"mistral", {"[SYSTEM_PROMPT] ", "[INST] "}, render_mistral, T_BOS | T_SYSTEM_BLOCK, 0, "[INST] ", "[/INST]", " ", ""},
    {"mistral", {"[SYSTEM_PROMPT]", "[INST]"}, render_mistral, T_BOS | T_SYSTEM_BLOCK, 0, "[INST]", "[/INST]", "", ""},
    {"mistral", {"\" [INST] \"", "loop.last"}, render_mistral, T_BOS | T_SYSTEM_LAST, 0, " [INST] ", " [/INST]", " ", ""},
    {"mistral", {" [INST] ", " [/INST]"}, render_mistral, T_BOS, 0, " [INST] ", " [/INST]", " ", ""},
    {"mistral", {"[INST] ", " [/INST]", "eos_token + ' '"}, render_mistral, T_BOS, 0, "[INST] ", " [/INST]", "", " "},
    {"mistral", {"[INST] ", " [/INST]"}, render_mistral, T_BOS, 0, "[INST] ", " [/INST]", "", ""},
    {"mistral", {"[INST] ", "|trim + eos_token"}, render_mistral, T_BOS | T_SYSTEM_LAST | T_TRIM_ANSWER, 0, "[INST] ", "[/INST]", " ", ""},
    {"mistral", {"[INST] "}, render_mistral, T_BOS | T_SYSTEM_LAST, 0, "[INST] ", "[/INST]", " ", ""},
    {"mistral", {"[INST]"}, render_mistral, T_BOS | T_SYSTEM_LAST, 0, "[INST]", "[/INST]", "", ""},

    {"phi3", {"<|user|>", "<|assistant|>", "<|end|>", "![gMASK]"}, render_zephyr, 0, 0, 0, 0, 0, "<|end|>"},
    {"zephyr", {"<|user|>", "<|assistant|>", "eos_token", "![gMASK]"}, render_zephyr, 0, 0, 0, 0, 0, 0},
};
/* clang-format on */

static bool has_marks(const llmq_chat_template *t, const char *jinja) {
    for (size_t i = 0; i < 4 && t->marks[i]; i++) {
        bool absent = t->marks[i][0] == '!';
        if (!strstr(jinja, t->marks[i] + absent) != absent) return false;
    }
    return true;
}

const llmq_chat_template *chat_template_detect(const char *jinja) {
    for (size_t i = 0; jinja && i < sizeof templates / sizeof *templates; i++)
        if (has_marks(&templates[i], jinja)) return &templates[i];
    return NULL;
}

const char *chat_template_name(const llmq_chat_template *t) {
    return t->name;
}

llmq_status chat_template_render_at(const llmq_chat_template *t, const chat_message *messages, size_t n,
                                    bool add_assistant, const char *bos, const char *eos, int64_t now, char **out,
                                    bool *has_bos_out, llmq_err *err) {
    render_job job = {.t = t,
                      .messages = messages,
                      .n = n,
                      .add_assistant = add_assistant,
                      .bos = bos ? bos : "",
                      .eos = eos ? eos : "",
                      .now = now};
    put(&job, t->flags & T_BOS ? job.bos : "");
    t->render(&job);
    if (job.out.failed) {
        mem_free(job.out.s);
        return mem_error(err, job.out.len, "a chat");
    }
    *has_bos_out = *job.bos && !strncmp(job.out.s, job.bos, strlen(job.bos));
    *out = job.out.s;
    return LLMQ_OK;
}

llmq_status chat_template_render(const llmq_chat_template *t, const chat_message *messages, size_t n,
                                 bool add_assistant, const char *bos, const char *eos, char **out, bool *has_bos_out,
                                 llmq_err *err) {
    return chat_template_render_at(t, messages, n, add_assistant, bos, eos, (int64_t)time(NULL), out, has_bos_out, err);
}
