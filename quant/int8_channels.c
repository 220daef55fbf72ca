/* What each channel of a site's input holds over all calibration tokens: its ends, a histogram of its magnitudes, and
 * from that where it is best cut off. */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "quant/int8_site.h"

#define BINS 128     /* the upper ones: 16 powers of two; all below count in the lowest */
#define BIN_SHIFT 20 /* of a float's bits: eight bins to a power of two */
#define CUTS 104     /* bins from the top whose upper ends are tried: 13 powers of two */
#define TOKENS 64    /* at a time, so that the histograms of COLUMNS stay in the L1 cache */
#define COLUMNS 32

struct int8_channels {
    int64_t cols;
    float *low, *high, *most; /* [cols] */
    float *histogram;         /* (cols, BINS) sums of weights */
};

size_t int8_channels_bytes(int64_t cols) {
    return (size_t)cols * (BINS + 3) * sizeof(float);
}

llmq_status int8_channels_create(int64_t cols, int8_channels **out, llmq_err *err) {
    int8_channels *c = mem_zalloc(1, sizeof *c);
    if (!c) return mem_error(err, sizeof *c, "the channels of an input");
    c->cols = cols;
    c->low = mem_zalloc((size_t)cols * (BINS + 3), sizeof *c->low);
    if (!c->low) {
        mem_free(c);
        return mem_error(err, int8_channels_bytes(cols), "the channels of an input");
    }
    c->high = c->low + cols;
    c->most = c->high + cols;
    c->histogram = c->most + cols;
    *out = c;
    return LLMQ_OK;
}

void int8_channels_destroy(int8_channels *c) {
    if (c) mem_free(c->low);
    mem_free(c);
}

const float *int8_channels_low(const int8_channels *c) {
    return c->low;
}
const float *int8_channels_high(const int8_channels *c) {
    return c->high;
}
const float *int8_channels_most(const int8_channels *c) {
    return c->most;
}

void int8_channels_find_ends(int8_channels *c, const float *x, int64_t n, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = begin; k < end; k++) {
            float v = x[i * c->cols + k];
            c->low[k] = v < c->low[k] ? v : c->low[k];
            c->high[k] = v > c->high[k] ? v : c->high[k];
        }
    for (int64_t k = begin; k < end; k++) c->most[k] = fmaxf(-c->low[k], c->high[k]);
}

static uint32_t bin_of(float magnitude) {
    uint32_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    return bits >> BIN_SHIFT;
}

static float bin_begin(uint32_t bin) {
    uint32_t bits = bin << BIN_SHIFT;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Of the channel's histogram. */
static uint32_t first_bin(const int8_channels *c, int64_t k) {
    uint32_t top = bin_of(c->most[k]);
    return top > BINS - 1 ? top - (BINS - 1) : 0;
}

static void count(int8_channels *c, const float *x, const float *weight, int64_t n, int64_t begin, int64_t end) {
    uint32_t first[COLUMNS]; /* bin number 0 of each column */
    for (int64_t k = begin; k < end; k++) first[k - begin] = first_bin(c, k);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = begin; k < end; k++) {
            uint32_t bin = bin_of(fabsf(x[i * c->cols + k]));
            bin = bin > first[k - begin] ? bin - first[k - begin] : 0;
            c->histogram[k * BINS + (bin < BINS ? bin : BINS - 1)] += weight[i];
        }
}

void int8_channels_count(int8_channels *c, const float *x, const float *weight, int64_t n, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; i += TOKENS)
        for (int64_t k = begin; k < end; k += COLUMNS)
            count(c, x + i * c->cols, weight + i, n - i < TOKENS ? n - i : TOKENS, k,
                  end - k < COLUMNS ? end : k + COLUMNS);
}

/* The middles of a channel's bins. */
static void bin_middles(const int8_channels *c, int64_t k, float *middle) {
    uint32_t first = first_bin(c, k);
    for (uint32_t b = 0; b < BINS; b++) middle[b] = 0.5f * (bin_begin(first + b) + bin_begin(first + b + 1));
}

/* Of a symmetric range of 8 bits up to a limit: the squared error of what is cut off, numbers standing in the middle of
 * their bins from `begin` on, and of rounding all the rest. all: the sum of the histogram. */
static double cut_error(const float *histogram, const float *middle, int begin, double limit, double all) {
    double error = 0;
    for (int b = begin; b < BINS; b++) {
        double over = (double)middle[b] - limit;
        if (over > 0) error += over * over * (double)histogram[b];
    }
    return error + all * limit * limit / (12.0 * 127 * 127);
}

static float cut_channel(const int8_channels *c, int64_t k) {
    const float *histogram = c->histogram + k * BINS;
    float middle[BINS], best = c->most[k];
    double all = 0;
    bin_middles(c, k, middle);
    for (int b = 0; b < BINS; b++) all += (double)histogram[b];
    double least = cut_error(histogram, middle, BINS - 1, (double)best, all);
    for (int b = BINS - CUTS; b < BINS; b++) { /* between two middles lies the end of a bin */
        float limit = 0.5f * (middle[b - 1] + middle[b]);
        double error = cut_error(histogram, middle, b, (double)limit, all);
        if (error < least && limit < c->most[k]) best = limit, least = error;
    }
    return best;
}

void int8_channels_cut(const int8_channels *c, float *cut) {
    for (int64_t k = 0; k < c->cols; k++) cut[k] = c->most[k] > 0 ? cut_channel(c, k) : 0;
}

void int8_channels_rms(const int8_channels *c, float *rms) {
    float middle[BINS];
    for (int64_t k = 0; k < c->cols; k++) {
        double sum = 0, all = 0;
        bin_middles(c, k, middle);
        for (int b = 0; b < BINS; b++) {
            sum += (double)c->histogram[k * BINS + b] * (double)middle[b] * (double)middle[b];
            all += (double)c->histogram[k * BINS + b];
        }
        rms[k] = all > 0 && c->most[k] > 0 ? (float)sqrt(sum / all) : 0;
    }
}
