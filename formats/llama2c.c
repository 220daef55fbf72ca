/* llama2.c's .bin files. All numbers little-endian, all matrices row-major [out, in], q/k rows interleaved as in GGUF.
 *
 * Header: i32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len.
 * v0: the header is the file's first 28 bytes; vocab_size < 0: a head of its own. f32 tensors, each for all layers at
 * once: token_embd, att_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, final_norm, two rope tables (seq_len, head_dim/2),
 * [head]. No magic number: a file is v0 when its size is exactly what the header asks for. v1, v2: u32 0x616b3432, i32
 * version, header, u8 head_is_shared, v2: i32 group_size at byte 37, zeros up to byte 256. v1, f32: att_norms,
 * ffn_norms, final_norm, token_embd, wq, wk, wv, wo, w1, w2, w3 (each for all layers), [head]. v2: the three norms in
 * f32; then for each matrix i8 q[n] and f32 s[n / group_size], w = q * s, groups over the flattened matrix; order
 * token_embd, wq (of all layers), wk, wv, wo, w1, w2, w3, [head].
 *
 * Not in the file: rope base 10000, eps 1e-5 (in the C programs), the tokenizer (tokenizer.bin). v2 is turned into f32
 * at open, since its groups may cross rows. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/source.h"
#include "types/type.h"

#define MAGIC 0x616b3432u
#define HEADER_BYTES 28
#define NEW_HEADER_BYTES 256

typedef struct header {
    int version;
    int64_t dim, hidden, n_layer, n_head, n_head_kv, vocab, seq;
    int64_t kv_dim, head_dim, group;
    bool shared; /* no head of its own */
} header;

/* A kind of tensor: (rows, cols), once or for every layer. rows 0: a vector of cols. */
typedef struct part {
    const char *name; /* "%d" stands for the layer */
    int64_t rows, cols, copies;
} part;

enum { TOKEN_EMBD, ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM, HEAD, PART_COUNT };

static void list_parts(const header *h, part parts[PART_COUNT]) {
    const part list[PART_COUNT] = {
        [TOKEN_EMBD] = {"token_embd.weight", h->vocab, h->dim, 1},
        [ATTN_NORM] = {"blk.%d.attn_norm.weight", 0, h->dim, h->n_layer},
        [WQ] = {"blk.%d.attn_q.weight", h->dim, h->dim, h->n_layer},
        [WK] = {"blk.%d.attn_k.weight", h->kv_dim, h->dim, h->n_layer},
        [WV] = {"blk.%d.attn_v.weight", h->kv_dim, h->dim, h->n_layer},
        [WO] = {"blk.%d.attn_output.weight", h->dim, h->dim, h->n_layer},
        [FFN_NORM] = {"blk.%d.ffn_norm.weight", 0, h->dim, h->n_layer},
        [W1] = {"blk.%d.ffn_gate.weight", h->hidden, h->dim, h->n_layer},
        [W2] = {"blk.%d.ffn_down.weight", h->dim, h->hidden, h->n_layer},
        [W3] = {"blk.%d.ffn_up.weight", h->hidden, h->dim, h->n_layer},
        [FINAL_NORM] = {"output_norm.weight", 0, h->dim, 1},
        [HEAD] = {"output.weight", h->vocab, h->dim, h->shared ? 0 : 1},
    };
    memcpy(parts, list, sizeof list);
}

static int64_t part_numel(const part *p) {
    return (p->rows ? p->rows : 1) * p->cols;
}

/* Small enough that no product below overflows: 2^24 * 2^24 * 2^10 * 4 bytes < 2^61. */
static bool is_plausible(const header *h) {
    const int64_t max = 1 << 24;
    return h->dim >= 1 && h->dim <= max && h->hidden >= 1 && h->hidden <= max && h->n_layer >= 1 &&
           h->n_layer <= 1024 && h->n_head >= 1 && h->n_head_kv >= 1 && h->vocab >= 1 && h->vocab <= max &&
           h->seq >= 1 && h->seq <= max && h->n_head <= h->dim && h->dim % h->n_head == 0 &&
           h->n_head % h->n_head_kv == 0 && h->dim / h->n_head % 2 == 0;
}

static bool parse_ints(const uint8_t *data, header *h) {
    int32_t v[7];
    memcpy(v, data, sizeof v);
    h->shared = v[5] > 0;
    h->dim = v[0];
    h->hidden = v[1];
    h->n_layer = v[2];
    h->n_head = v[3];
    h->n_head_kv = v[4];
    h->vocab = v[5] < 0 ? -(int64_t)v[5] : v[5];
    h->seq = v[6];
    if (!is_plausible(h)) return false;
    h->head_dim = h->dim / h->n_head;
    h->kv_dim = h->head_dim * h->n_head_kv;
    return true;
}

/* Bytes of the whole file. Sums of at most 2^61-ish terms are guarded by the caller's limit on one matrix. */
static bool expected_bytes(const header *h, int64_t *out) {
    part parts[PART_COUNT];
    int64_t sum = h->version == 0 ? HEADER_BYTES + h->seq * h->head_dim * 4 : NEW_HEADER_BYTES;
    list_parts(h, parts);
    for (int i = 0; i < PART_COUNT; i++) {
        int64_t numel = part_numel(&parts[i]), bytes = numel * 4, all;
        if (h->version == 2 && parts[i].rows) bytes = numel + numel / h->group * 4;
        if (!i64_mul(bytes, parts[i].copies, &all) || !i64_add(sum, all, &sum)) return false;
    }
    *out = sum;
    return true;
}

static llmq_status read_header(const char *path, const llmq_map *map, header *h, llmq_err *err) {
    uint32_t magic = 0;
    int32_t version = 0, group = 0;
    int64_t expected = INT64_MAX;
    *h = (header){0};
    if (map->size >= sizeof magic) memcpy(&magic, map->data, sizeof magic);
    bool is_new = magic == MAGIC;
    if (map->size < (is_new ? (size_t)NEW_HEADER_BYTES : (size_t)HEADER_BYTES))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: the file ends inside the llama2.c header: get it again", path);
    if (is_new) memcpy(&version, map->data + 4, sizeof version);
    if (is_new && version != 1 && version != 2)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: llama2.c version %d; llmq reads 0, 1 and 2", path, version);
    h->version = version;
    if (!parse_ints(map->data + (is_new ? 8 : 0), h))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: the llama2.c header has sizes that no model has: the file is damaged",
                         path);
    if (is_new) h->shared = map->data[36] != 0;
    if (version == 2) {
        memcpy(&group, map->data + 37, sizeof group);
        h->group = group;
        if (group < 1 || h->dim % group != 0)
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: llama2.c group size %d does not divide dim %lld: the file is damaged", path, group,
                             (long long)h->dim);
    }
    if (!expected_bytes(h, &expected) || expected != (int64_t)map->size)
        return llmq_fail(
            err, LLMQ_E_FORMAT,
            "%s: has %zu bytes where its llama2.c header asks for %lld: cut off, damaged, or another format", path,
            map->size, (long long)expected);
    return LLMQ_OK;
}

static llmq_status set_metadata(const header *h, llmq_meta *meta, llmq_err *err) {
    const struct {
        const char *key;
        int64_t value;
    } sizes[] = {
        {"llama.block_count", h->n_layer},
        {"llama.context_length", h->seq},
        {"llama.embedding_length", h->dim},
        {"llama.feed_forward_length", h->hidden},
        {"llama.vocab_size", h->vocab},
        {"llama.attention.head_count", h->n_head},
        {"llama.attention.head_count_kv", h->n_head_kv},
        {"llama.attention.key_length", h->head_dim},
        {"llama.attention.value_length", h->head_dim},
        {"llama.rope.dimension_count", h->head_dim},
    };
    LLMQ_TRY(meta_set_str(meta, "general.architecture", "llama", err));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        LLMQ_TRY(meta_set_u32(meta, sizes[i].key, (uint32_t)sizes[i].value, err));
    LLMQ_TRY(meta_set_f32(meta, "llama.attention.layer_norm_rms_epsilon", 1e-5f, err));
    return meta_set_f32(meta, "llama.rope.freq_base", 10000.0f, err);
}

static llmq_status name_part(const char *path, const part *p, int64_t copy, llmq_tensor *t, llmq_err *err) {
    const char *percent = strchr(p->name, '%');
    if (percent)
        snprintf(t->name, sizeof t->name, "%.*s%lld%s", (int)(percent - p->name), p->name, (long long)copy,
                 percent + 2);
    else
        snprintf(t->name, sizeof t->name, "%s", p->name);
    t->type = LLMQ_TYPE_F32;
    t->n_dims = p->rows ? 2 : 1;
    t->dims[0] = p->cols;
    t->dims[1] = p->rows ? p->rows : 1;
    return source_size_tensor(t, path, err);
}

/* Orders of the parts in the file; v0's rope tables come before the head. */
static const int order_v0[PART_COUNT] = {TOKEN_EMBD, ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM, HEAD};
static const int order_new[PART_COUNT] = {ATTN_NORM, FFN_NORM, FINAL_NORM, TOKEN_EMBD, WQ, WK,
                                          WV,        WO,       W1,         W2,         W3, HEAD};

typedef struct owned {
    float *weights;
    size_t bytes;
} owned;

/* All of a v2 file's matrices in f32 behind each other. */
static llmq_status alloc_owned(llmq_source *src, const part *parts, llmq_err *err) {
    int64_t numel = 0;
    for (int i = 0; i < PART_COUNT; i++) numel += parts[i].rows ? part_numel(&parts[i]) * parts[i].copies : 0;
    owned *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, src->path);
    src->owned = o;
    o->bytes = (size_t)numel * sizeof(float); /* at most 4 times the file, whose size was checked */
    o->weights = mem_alloc_big(o->bytes);
    return o->weights ? LLMQ_OK : mem_error(err, o->bytes, src->path);
}

/* i8 q[n], f32 s[n / group] (at any address) to f32; returns the end of the read bytes. */
static const uint8_t *dequantize(const uint8_t *in, float *out, int64_t n, int64_t group) {
    const uint8_t *scales = in + n;
    for (int64_t g = 0; g < n / group; g++) {
        float s;
        memcpy(&s, scales + g * 4, sizeof s);
        for (int64_t i = g * group; i < (g + 1) * group; i++) out[i] = (float)(int8_t)in[i] * s;
    }
    return scales + n / group * 4;
}

static llmq_status add_parts(llmq_source *src, const header *h, const part *parts, const uint8_t *data, llmq_err *err) {
    const int *order = h->version == 0 ? order_v0 : order_new;
    llmq_tensor *t = NULL;
    size_t n = 0;
    float *out = NULL;
    for (int i = 0; i < PART_COUNT; i++) n += (size_t)parts[i].copies;
    LLMQ_TRY(source_add_tensors(src, n, &t, err));
    if (h->version == 2) {
        LLMQ_TRY(alloc_owned(src, parts, err));
        out = ((owned *)src->owned)->weights;
    }
    for (int i = 0; i < PART_COUNT; i++) {
        const part *p = &parts[order[i]];
        if (h->version == 0 && order[i] == HEAD) data += h->seq * h->head_dim * 4; /* the rope tables */
        for (int64_t copy = 0; copy < p->copies; copy++, t++) {
            LLMQ_TRY(name_part(src->path, p, copy, t, err));
            if (h->version == 2 && p->rows) {
                t->data = out;
                data = dequantize(data, out, part_numel(p), h->group);
                out += part_numel(p);
            } else {
                t->data = data;
                data += t->bytes;
            }
        }
    }
    return LLMQ_OK;
}

static llmq_status open_bin(const char *path, llmq_source *src, llmq_err *err) {
    llmq_map map;
    header h;
    part parts[PART_COUNT];
    src->naming = NAMING_GGUF;
    LLMQ_TRY(source_add_map(src, path, &map, err));
    LLMQ_TRY(read_header(path, &map, &h, err));
    LLMQ_TRY(set_metadata(&h, src->meta, err));
    list_parts(&h, parts);
    return add_parts(src, &h, parts, h.version == 0 ? map.data + HEADER_BYTES : map.data + NEW_HEADER_BYTES, err);
}

/* A file with plausible sizes is taken even if its length is wrong: the message about that helps more than "no model".
 */
static bool probe(const char *path) {
    uint8_t start[HEADER_BYTES];
    uint32_t magic;
    header h = {0};
    if (source_peek(path, &magic, sizeof magic, NULL) && magic == MAGIC) return true;
    return source_peek(path, start, sizeof start, NULL) && parse_ints(start, &h);
}

static void close_bin(llmq_source *src) {
    owned *o = src->owned;
    if (!o) return;
    mem_free_big(o->weights, o->bytes);
    mem_free(o);
}

const llmq_format format_llama2c = {.name = "llama2c", .probe = probe, .open = open_bin, .close = close_bin};
