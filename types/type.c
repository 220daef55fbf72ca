#include "types/type.h"

#include <float.h>
#include <math.h>

#include "types/bits.h"

#define TYPE(id, name) extern const llmq_type_info type_##name;
#include "types/types.def"
#undef TYPE

static const llmq_type_info *const by_id[LLMQ_TYPE_COUNT] = {
#define TYPE(id, name) [LLMQ_TYPE_##id] = &type_##name,
#include "types/types.def"
#undef TYPE
};

static const llmq_type_info *const in_order[] = {
#define TYPE(id, name) &type_##name,
#include "types/types.def"
#undef TYPE
};

const llmq_type_info *type_info(llmq_type type) {
    int id = (int)type;
    return id >= 0 && id < LLMQ_TYPE_COUNT ? by_id[id] : NULL;
}

const llmq_type_info *type_at(size_t index) {
    return index < sizeof in_order / sizeof *in_order ? in_order[index] : NULL;
}

const char *llmq_type_name(llmq_type type) {
    const llmq_type_info *t = type_info(type);
    return t ? t->name : "?";
}

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

llmq_type llmq_type_from_name(const char *name) {
    for (size_t i = 0; name && type_at(i); i++) {
        const char *a = name, *b = type_at(i)->name;
        while (*a && lower(*a) == *b) a++, b++;
        if (!*a && !*b) return type_at(i)->id;
    }
    return LLMQ_TYPE_NONE;
}

int64_t type_row_bytes(llmq_type type, int64_t n) {
    const llmq_type_info *t = type_info(type);
    int64_t bytes;
    if (!t || n < 0 || n % t->block_len) return -1;
    return __builtin_mul_overflow(n / t->block_len, (int64_t)t->block_bytes, &bytes) ? -1 : bytes;
}

/* Index of the level nearest to u; ties to the lower one. u may be infinite, not NaN. The count from the top makes the
 * truncation of the cast round halves down. */
static inline int code_uniform(float u, float top, float span) {
    float down = top - u;
    down = down > 0.0f ? down : 0.0f;
    down = down < span ? down : span;
    return (int)span - (int)(down + 0.5f);
}

static int code_table(const float *levels, int n, float u) {
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (2.0f * u > levels[mid] + levels[mid + 1])
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

uint8_t type_code(const llmq_type_info *t, const llmq_grid *grid, int g, float x) {
    float u = isfinite(x) ? (x - grid->offset[g]) / grid->scale[g] : 0.0f;
    if (isnan(u) || grid->scale[g] == 0.0f) u = 0.0f;
    if (!t->uniform) return (uint8_t)code_table(t->levels, t->n_levels, u);
    return (uint8_t)code_uniform(u, t->levels[t->n_levels - 1], (float)(t->n_levels - 1));
}

static bool all_finite(const float *x, int n) {
    int bad = 0;
    for (int i = 0; i < n; i++) bad |= (f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

/* One group whose weights and grid are finite: the loops that vectorize. */
static void codes_uniform(const float *x, int n, float scale, float offset, float top, float span, uint8_t *codes) {
    for (int i = 0; i < n; i++) codes[i] = (uint8_t)code_uniform((x[i] - offset) / scale, top, span);
}

/* As code_table, by counting the midpoints below, 16 at a time. */
static void codes_table(const float *levels, int n_levels, const float *x, int n, float scale, float offset,
                        uint8_t *codes) {
    for (; n >= 16; n -= 16, x += 16, codes += 16) {
        float u2[16];
        int32_t below[16] = {0};
        for (int i = 0; i < 16; i++) u2[i] = 2.0f * ((x[i] - offset) / scale);
        for (int k = 0; k + 1 < n_levels; k++) {
            float mid2 = levels[k] + levels[k + 1];
            for (int i = 0; i < 16; i++) below[i] += u2[i] > mid2;
        }
        for (int i = 0; i < 16; i++) codes[i] = (uint8_t)below[i];
    }
    for (int i = 0; i < n; i++) codes[i] = (uint8_t)code_table(levels, n_levels, (x[i] - offset) / scale);
}

void type_codes(const llmq_type_info *t, const llmq_grid *grid, const float *x, int64_t n, uint8_t *codes) {
    float top = t->levels[t->n_levels - 1], span = (float)(t->n_levels - 1);
    for (int g = 0; n > 0; g++) {
        int len = n < t->group_len ? (int)n : t->group_len;
        float scale = grid->scale[g], offset = grid->offset[g];
        bool plain = isfinite(scale) && isfinite(offset) && scale != 0.0f && all_finite(x, len);
        if (!plain)
            for (int i = 0; i < len; i++) codes[i] = type_code(t, grid, g, x[i]);
        else if (t->uniform)
            codes_uniform(x, len, scale, offset, top, span, codes);
        else
            codes_table(t->levels, t->n_levels, x, len, scale, offset, codes);
        n -= len, x += len, codes += len;
    }
}

void type_values(const llmq_type_info *t, const llmq_grid *grid, const uint8_t *codes, int64_t n, float *x) {
    int first = (int)t->levels[0];
    for (int g = 0; n > 0; g++) {
        int len = n < t->group_len ? (int)n : t->group_len;
        float scale = grid->scale[g], offset = grid->offset[g];
        if (t->uniform)
            for (int i = 0; i < len; i++) x[i] = scale * (float)(codes[i] + first) + offset;
        else
            for (int i = 0; i < len; i++) x[i] = scale * t->levels[codes[i]] + offset;
        n -= len, x += len, codes += len;
    }
}

void type_to_f32(llmq_type type, const void *src, float *dst, int64_t n) {
    const llmq_type_info *t = type_info(type);
    if (type_is_float(t)) {
        t->to_f32(src, dst, n);
        return;
    }
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    const char *block = src;
    for (int64_t i = 0; i < n; i += t->block_len, block += t->block_bytes) {
        t->unpack(block, &grid, codes);
        type_values(t, &grid, codes, t->block_len, dst + i);
    }
}

llmq_status type_from_f32(llmq_type type, const float *src, const float *importance, void *dst, int64_t n,
                          llmq_err *err) {
    const llmq_type_info *t = type_info(type);
    if (!t || !type_can_encode(t))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "storage type %d: llmq cannot encode it", (int)type);
    if (n < 0 || n % t->block_len)
        return llmq_fail(err, LLMQ_E_ARG, "%s: %lld weights are not a multiple of its block of %d; choose another type",
                         t->name, (long long)n, t->block_len);
    if (type_is_float(t)) {
        t->from_f32(src, dst, n);
        return LLMQ_OK;
    }
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    char *block = dst;
    for (int64_t i = 0; i < n; i += t->block_len, block += t->block_bytes) {
        t->fit(src + i, importance ? importance + i : NULL, &grid);
        type_codes(t, &grid, src + i, t->block_len, codes);
        t->pack(&grid, codes, block);
    }
    return LLMQ_OK;
}
