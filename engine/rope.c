/* Tables of rotary position embedding. Pair j of a head turns by pos * f_j with f_j = base^(-2j / n_rot), changed by:
 *   linear  f_j / factor
 *   llama3  f_j / divisor_j: wavelengths shorter than ctx/high keep their frequency, longer than ctx/low are divided by
 * factor, between them the inverse divisor is interpolated yarn    a mix of f_j and f_j / factor by a ramp between the
 * pairs that turn beta_fast and beta_slow times in the original context; cos and sin are then multiplied by the
 * attention factor Frequencies and angles are computed in double, so tables are good at any position. */
#include <math.h>

#include "engine/model.h"

static const double two_pi = 6.283185307179586476925286766559;

static double pair_frequency(const llmq_hparams *hp, int64_t j) {
    return pow(hp->rope_base, -2.0 * (double)j / (double)hp->n_rot);
}

void rope_llama3_factors(const llmq_hparams *hp, float *out) {
    double ctx = (double)hp->rope_ctx_orig, low = hp->llama3_low, high = hp->llama3_high;
    for (int64_t j = 0; j < hp->n_rot / 2; j++) {
        double wavelength = two_pi / pair_frequency(hp, j), divisor;
        if (wavelength < ctx / high) {
            divisor = 1;
        } else if (wavelength > ctx / low) {
            divisor = hp->rope_factor;
        } else {
            double smooth = (ctx / wavelength - low) / (high - low);
            divisor = 1 / ((1 - smooth) / hp->rope_factor + smooth);
        }
        out[j] = (float)divisor;
    }
}

/* The pair (as a real number) that turns n_turns times in the original context. */
static double yarn_pair(const llmq_hparams *hp, double n_turns) {
    return (double)hp->n_rot * log((double)hp->rope_ctx_orig / (n_turns * two_pi)) / (2 * log(hp->rope_base));
}

static double scaled_frequency(const llmq_model *model, int64_t j) {
    const llmq_hparams *hp = &model->hp;
    double f = pair_frequency(hp, j);
    if (model->freq_factors) f /= (double)model->freq_factors[j];
    if (hp->scaling == ROPE_LINEAR) return f / hp->rope_factor;
    if (hp->scaling != ROPE_YARN) return f;
    double low = fmax(floor(yarn_pair(hp, hp->yarn_beta_fast)), 0);
    double high = fmin(ceil(yarn_pair(hp, hp->yarn_beta_slow)), (double)(hp->n_rot - 1));
    double ramp = fmin(fmax(((double)j - low) / fmax(high - low, 0.001), 0), 1);
    return f / hp->rope_factor * ramp + f * (1 - ramp);
}

void rope_table(const llmq_model *model, int64_t pos, int64_t n, float *out) {
    int64_t n_pairs = model->hp.n_rot / 2;
    double scale = model->hp.rope_attn_factor;
    for (int64_t j = 0; j < n_pairs; j++) {
        double f = scaled_frequency(model, j);
        for (int64_t i = 0; i < n; i++) {
            double angle = (double)(pos + i) * f;
            out[(i * n_pairs + j) * 2] = (float)(scale * cos(angle));
            out[(i * n_pairs + j) * 2 + 1] = (float)(scale * sin(angle));
        }
    }
}
