#include "report/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"

static bool reserve(report_text *t, size_t more) {
    size_t need = t->len + more + 1;
    if (t->failed) return false;
    if (need <= t->cap) return true;
    size_t cap = need < 2 * t->cap ? 2 * t->cap : need + 4096;
    char *grown = mem_grow(t->s, t->cap, cap, 1);
    if (!grown) {
        t->failed = true;
        return false;
    }
    t->s = grown;
    t->cap = cap;
    return true;
}

void text_add(report_text *t, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    if (n < 0) t->failed = true;
    if (n >= 0 && reserve(t, (size_t)n)) {
        vsnprintf(t->s + t->len, (size_t)n + 1, fmt, again);
        t->len += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

/* Bytes of the UTF-8 character at s, 0 if it is none. */
static int utf8_len(const unsigned char *s) {
    int n = *s < 0x80 ? 1 : *s >= 0xc2 && *s < 0xe0 ? 2 : *s >= 0xe0 && *s < 0xf0 ? 3 : *s >= 0xf0 && *s < 0xf5 ? 4 : 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f)) return 0;
    if ((*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f)) return 0;
    return n;
}

void text_escape(report_text *t, const char *s) {
    static const char *const entities[256] = {
        ['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['"'] = "&quot;", ['\''] = "&#39;"};
    for (const unsigned char *at = (const unsigned char *)(s ? s : ""); *at;) {
        int n = utf8_len(at);
        if (n == 0 || (*at < 0x20 && *at != '\n' && *at != '\t') || *at == 0x7f)
            text_add(t, "\xef\xbf\xbd");
        else if (entities[*at])
            text_add(t, "%s", entities[*at]);
        else
            text_add(t, "%.*s", n, (const char *)at);
        at += n ? n : 1;
    }
}

void text_bytes(report_text *t, double bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    int u = 0;
    while (bytes >= 999.5 && u < 4) bytes /= 1000, u++;
    text_add(t, "%.*f %s", u && bytes < 99.95 ? (bytes < 9.995 ? 2 : 1) : 0, bytes, units[u]);
}
