/* The problem is a knapsack with one choice an item. Its relaxation is solved by the convex hulls of the items' (bytes,
 * loss) points taken in the order of their slopes; the steps below walk that path without building the hulls: of all
 * steps that still fit, the one that saves most loss a byte. What is left of the budget at the end of the path is less
 * than one step, and exchanges between two items use it. */
#include "quant/allocate.h"

#define MAX_EXCHANGES 200

static const llmq_alloc_option *current(const llmq_alloc_item *item) {
    return &item->options[item->chosen];
}

int64_t allocate_bytes(const llmq_alloc_item *items, size_t n_items) {
    int64_t bytes = 0;
    for (size_t i = 0; i < n_items; i++) bytes += current(&items[i])->bytes;
    return bytes;
}

static void choose_smallest(llmq_alloc_item *item) {
    item->chosen = 0;
    for (size_t k = 1; k < item->n; k++) {
        const llmq_alloc_option *o = &item->options[k], *best = current(item);
        if (o->bytes < best->bytes || (o->bytes == best->bytes && o->loss < best->loss)) item->chosen = k;
    }
}

/* One item from its option to a better one: how much loss falls and how many bytes it takes. */
typedef struct alloc_step {
    size_t item, option;
    double gain;
    int64_t bytes;
} alloc_step;

/* a saves more loss a byte than b. Steps that take no bytes come first, the largest of them before the others. */
static bool steeper(const alloc_step *a, const alloc_step *b) {
    if (b->gain <= 0) return true;
    if (a->bytes <= 0 || b->bytes <= 0) return a->bytes <= 0 && (b->bytes > 0 || a->gain > b->gain);
    return a->gain * (double)b->bytes > b->gain * (double)a->bytes;
}

static bool take_step(llmq_alloc_item *items, size_t n_items, int64_t *left) {
    alloc_step best = {.gain = 0};
    for (size_t i = 0; i < n_items; i++) {
        const llmq_alloc_option *now = current(&items[i]);
        for (size_t k = 0; k < items[i].n; k++) {
            const llmq_alloc_option *o = &items[i].options[k];
            alloc_step step = {.item = i, .option = k, .gain = now->loss - o->loss, .bytes = o->bytes - now->bytes};
            if (step.gain > 0 && step.bytes <= *left && steeper(&step, &best)) best = step;
        }
    }
    if (best.gain <= 0) return false;
    items[best.item].chosen = best.option;
    *left -= best.bytes;
    return true;
}

/* The exchange of two items' options that lowers the loss most. */
static bool exchange(llmq_alloc_item *items, size_t n_items, int64_t *left) {
    size_t item[2] = {0}, option[2] = {0};
    double best = 0;
    int64_t bytes = 0;
    for (size_t i = 0; i < n_items; i++) {
        for (size_t k = 0; k < items[i].n; k++) {
            const llmq_alloc_option *a = &items[i].options[k];
            int64_t more = a->bytes - current(&items[i])->bytes;
            double gain = current(&items[i])->loss - a->loss;
            if (gain <= best) continue; /* of the two, one gains: it is a */
            for (size_t j = 0; j < n_items; j++) {
                for (size_t m = 0; j != i && m < items[j].n; m++) {
                    const llmq_alloc_option *b = &items[j].options[m], *now = current(&items[j]);
                    if (gain + now->loss - b->loss <= best || more + b->bytes - now->bytes > *left) continue;
                    best = gain + now->loss - b->loss;
                    bytes = more + b->bytes - now->bytes;
                    item[0] = i, item[1] = j, option[0] = k, option[1] = m;
                }
            }
        }
    }
    if (best <= 0) return false;
    for (int s = 0; s < 2; s++) items[item[s]].chosen = option[s];
    *left -= bytes;
    return true;
}

llmq_status allocate(llmq_alloc_item *items, size_t n_items, int64_t budget) {
    for (size_t i = 0; i < n_items; i++) choose_smallest(&items[i]);
    int64_t left = budget - allocate_bytes(items, n_items);
    if (left < 0) return LLMQ_E_ARG;
    while (take_step(items, n_items, &left)) {
    }
    for (int n = 0; n < MAX_EXCHANGES && exchange(items, n_items, &left); n++) {
    }
    return LLMQ_OK;
}
