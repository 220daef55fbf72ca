/* Smoothing and ranges of 8-bit inputs on made-up sites: outliers in a few channels go over into the weights, shared
 * channels share a scale, a shifted input gets a zero point, and no choice is worse than none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"
#include "core/half.h"
#include "core/mem.h"
#include "quant/int8_site.h"

enum { ROWS = 48, COLS = 96, EVEN = 64, ALL = 68 };

static uint64_t rng_state = 11;
static double uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng_state >> 33) / 2147483648.0;
}
static float normal(void) {
    return (float)(sqrt(-2 * log(uniform() + 1e-12)) * cos(6.283185307179586 * uniform()));
}

typedef struct site {
    float w[2][ROWS * COLS], x[ALL * COLS], most[COLS];
    llmq_site_matrix matrices[2];
    llmq_team *team;
    int8_problem p;
} site;

/* Normal numbers; channel 5 and 40 are `outlier` times as large, everything is moved by `shift`. */
static site *make_site(float outlier, float shift, bool fixed) {
    site *s = mem_zalloc(1, sizeof *s);
    assert_int_equal(team_create(2, &s->team, NULL), LLMQ_OK);
    for (int m = 0; m < 2; m++) {
        for (int i = 0; i < ROWS * COLS; i++) s->w[m][i] = normal() * 0.05f;
        s->matrices[m] = (llmq_site_matrix){.w = s->w[m], .n_rows = ROWS};
    }
    for (int t = 0; t < ALL; t++)
        for (int c = 0; c < COLS; c++) {
            float v = (normal() + shift) * (c == 5 || c == 40 ? outlier : 1);
            s->x[t * COLS + c] = v;
            s->most[c] = fmaxf(s->most[c], fabsf(v));
        }
    s->p = (int8_problem){.site = {.matrices = s->matrices, .n_matrices = 2, .cols = COLS, .n_channels = COLS, .ops = backend_cpu(), .team = s->team},
                          .x = s->x, .n_even = EVEN, .n_tok = ALL, .most = s->most, .fixed = fixed};
    return s;
}

static void drop_site(site *s) {
    team_destroy(s->team);
    mem_free(s);
}

static void outliers_move_into_weights(void **state) {
    (void)state;
    for (int fixed = 0; fixed < 2; fixed++) {
        site *s = make_site(60, 0, fixed);
        int8_trial *t;
        int8_smooth_report r;
        float scale[COLS];
        double again, log_mean = 0;
        assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
        assert_int_equal(smooth_scales(&s->p, t, scale, &r, NULL), LLMQ_OK);
        assert_true(r.alpha > 0.3 && r.alpha < 1);
        assert_true(r.after < r.before / 5);
        for (int c = 0; c < COLS; c++) log_mean += log((double)scale[c]) / COLS;
        assert_true(fabs(log_mean) < 1e-5);
        assert_true(scale[5] > 5 * scale[6] && scale[40] > 5 * scale[41]);
        /* The trial is left as the scales make it. */
        assert_int_equal(int8_trial_error(t, (llmq_act_range){0}, &again, NULL), LLMQ_OK);
        assert_true(fixed ? again < 3 * r.after : again == r.after);
        int8_trial_destroy(t);
        drop_site(s);
    }
}

static void no_outliers_no_harm(void **state) {
    (void)state;
    site *s = make_site(1, 0, true);
    int8_trial *t;
    int8_smooth_report r;
    float scale[COLS];
    memset(s->most, 0, sizeof s->most); /* nothing to go by: no scales */
    assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
    assert_int_equal(smooth_scales(&s->p, t, scale, &r, NULL), LLMQ_OK);
    assert_true(r.after <= r.before);
    for (int c = 0; c < COLS; c++) assert_true(scale[c] == 1);
    int8_trial_destroy(t);
    drop_site(s);
}

static void shared_channels_share_a_scale(void **state) {
    (void)state;
    site *s = make_site(60, 0, false);
    int32_t channel[COLS];
    float scale[COLS];
    int8_trial *t;
    int8_smooth_report r;
    for (int c = 0; c < COLS; c++) channel[c] = c / 2;
    s->p.site.channel = channel;
    s->p.site.n_channels = COLS / 2;
    assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
    assert_int_equal(smooth_scales(&s->p, t, scale, &r, NULL), LLMQ_OK);
    assert_true(r.alpha > 0 && r.after < r.before / 2);
    assert_true(scale[2] > 3 * scale[3] && scale[20] > 3 * scale[21]);
    int8_trial_destroy(t);
    drop_site(s);
}

static int8_range_report choose(site *s) {
    int8_trial *t;
    int8_observers *o;
    int8_range_report r;
    assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
    int8_trial_scale(t, NULL);
    assert_int_equal(int8_observers_create(&o, NULL), LLMQ_OK);
    assert_int_equal(int8_observers_add(o, s->x, ALL * COLS, true, NULL), LLMQ_OK);
    assert_int_equal(int8_observers_choose(o, t, 0, &r, NULL), LLMQ_OK);
    int8_observers_destroy(o);
    int8_trial_destroy(t);
    return r;
}

static void a_shift_gets_a_zero_point(void **state) {
    (void)state;
    site *s = make_site(1, 6, true);
    int8_range_report r = choose(s);
    assert_true(r.range.zero < -60); /* most of the range is above 0 */
    assert_true(r.error > 0 && r.error < 1e-3);
    assert_true(r.range.scale == f16_to_f32(f32_to_f16(r.range.scale)));
    drop_site(s);
    s = make_site(1, 0, true);
    r = choose(s);
    assert_true(abs(r.range.zero) < 20);
    float most = 0;
    for (int i = 0; i < ALL * COLS; i++) most = fmaxf(most, fabsf(s->x[i]));
    assert_true(r.max <= most && -r.min <= most && (r.max == most || r.min == -most));
    drop_site(s);
}

/* Of few enormous numbers a range keeps what costs less: here they are a token that would be lost. */
static void the_largest_tokens_count(void **state) {
    (void)state;
    site *s = make_site(1, 0, true);
    double all, common, own;
    int8_trial *t;
    for (int c = 0; c < COLS; c++) s->x[(ALL - 1) * COLS + c] *= 400;
    assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
    int8_trial_scale(t, NULL);
    assert_int_equal(int8_trial_error(t, int8_range_of(1200), &all, NULL), LLMQ_OK);
    assert_int_equal(int8_trial_error(t, int8_range_of(4), &common, NULL), LLMQ_OK);
    assert_int_equal(int8_trial_error(t, (llmq_act_range){0}, &own, NULL), LLMQ_OK);
    assert_true(all > 0.5 && common > 0.5 && own < 0.01); /* one loses the common tokens, the other the large one */
    int8_trial_destroy(t);
    drop_site(s);
}

static double output_square(const site *s, int token) {
    double sum = 0;
    for (int r = 0; r < ROWS; r++) {
        double y = 0;
        for (int c = 0; c < COLS; c++) y += (double)s->w[0][r * COLS + c] * (double)s->x[token * COLS + c];
        sum += y * y;
    }
    return sum;
}

/* With weights an error is the weighted mean over common tokens, and a 32nd of that of all outputs over their squares. */
static void weights_weigh(void **state) {
    (void)state;
    site *s = make_site(1, 0, true);
    float weight[ALL] = {0};
    double base, one, two, all = 0;
    int8_trial *t;
    s->p.weight = weight;
    s->p.site.n_matrices = 1;
    assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
    int8_trial_scale(t, NULL);
    assert_int_equal(int8_trial_error(t, int8_range_of(2), &base, NULL), LLMQ_OK);
    for (int i = 0; i < ALL; i++) {
        weight[i] = 1;
        assert_int_equal(int8_trial_error(t, int8_range_of(2), &one, NULL), LLMQ_OK);
        all += one - base;
        weight[i] = 3;
        assert_int_equal(int8_trial_error(t, int8_range_of(2), &two, NULL), LLMQ_OK);
        if (i < EVEN)
            assert_true(one > base && fabs(two - base - 3 * (one - base)) < 1e-9 * one);
        else
            assert_true(one == base && two == base);
        weight[i] = 0;
    }
    for (int i = 0; i < ALL; i++) weight[i] = 1;
    assert_int_equal(int8_trial_error(t, int8_range_of(2), &two, NULL), LLMQ_OK);
    assert_true(fabs(two - base - all) < 1e-9 * all);
    /* Weighted by their own squares they are what they are without weights. */
    for (int i = 0; i < ALL; i++) weight[i] = (float)(1 / output_square(s, i));
    assert_int_equal(int8_trial_error(t, int8_range_of(2), &one, NULL), LLMQ_OK);
    s->p.weight = NULL;
    assert_int_equal(int8_trial_error(t, int8_range_of(2), &two, NULL), LLMQ_OK);
    assert_true(base > 0 && fabs(two - (one - base) - 32 * base) < 1e-5 * two);
    int8_trial_destroy(t);
    drop_site(s);
}

/* ---- channels */

enum { N = 5000 };

static double cut_loss(const float *x, const float *weight, int64_t stride, double limit) {
    double sum = 0;
    for (int i = 0; i < N; i++) {
        double over = fabs((double)x[i * stride]) - limit;
        sum += (double)weight[i] * (over > 0 ? over * over : limit * limit / (12.0 * 127 * 127));
    }
    return sum;
}

/* Beside the best of a thousand limits, by the numbers themselves. */
static void channels_are_cut_where_it_costs_least(void **state) {
    (void)state;
    enum { WIDE = 70 }; /* more than are counted at a time */
    float *x = mem_alloc((size_t)N * WIDE, sizeof *x), weight[N], cut[WIDE], most[WIDE] = {0};
    for (int i = 0; i < N; i++) {
        weight[i] = i < 2 ? 0.01f : 1; /* two numbers that hardly count, */
        for (int c = 0; c < WIDE; c++) {
            float v = c == 3 ? 0 : c % 3 == 0 ? (float)uniform() - 0.5f : c % 3 == 1 ? normal() : i < 2 ? 40 + normal() : normal(); /* far out */
            x[i * WIDE + c] = v * (float)(1 + c);
            most[c] = fmaxf(most[c], fabsf(x[i * WIDE + c]));
        }
    }
    int8_channels *ch;
    assert_int_equal(int8_channels_create(WIDE, &ch, NULL), LLMQ_OK);
    for (int half = 0; half < 2; half++) int8_channels_find_ends(ch, x + half * (N / 2) * WIDE, N / 2, 0, WIDE);
    for (int part = 0; part < 3; part++) int8_channels_count(ch, x, weight, N, part * WIDE / 3, (part + 1) * WIDE / 3);
    float rms[WIDE];
    int8_channels_cut(ch, cut);
    int8_channels_rms(ch, rms);
    for (int c = 0; c < WIDE; c++) {
        double best = INFINITY;
        assert_true(int8_channels_most(ch)[c] == most[c] && cut[c] <= most[c]);
        assert_true(fmaxf(-int8_channels_low(ch)[c], int8_channels_high(ch)[c]) == most[c]);
        for (int i = 1; i <= 1000 && c != 3; i++) best = fmin(best, cut_loss(x + c, weight, WIDE, i * 0.001 * (double)most[c]));
        double squares = 0, all = 0;
        for (int i = 0; i < N; i++) {
            squares += (double)weight[i] * (double)x[i * WIDE + c] * (double)x[i * WIDE + c];
            all += (double)weight[i];
        }
        assert_true(c == 3 ? rms[c] == 0 : fabs((double)rms[c] - sqrt(squares / all)) < 0.05 * (double)rms[c]);
        if (c == 3) assert_true(cut[c] == 0);
        else if (!(cut_loss(x + c, weight, WIDE, (double)cut[c]) < 1.2 * best)) fail_msg("channel %d: cut at %g of %g loses %.3f of the least", c, (double)cut[c], (double)most[c], cut_loss(x + c, weight, WIDE, (double)cut[c]) / best);
        if (c % 3 == 0) assert_true(cut[c] == most[c]);
        if (c % 3 == 2) assert_true(cut[c] < 0.7f * most[c]);
    }
    int8_channels_destroy(ch);
    mem_free(x);
}

/* Large numbers in a few channels that the sampled tokens do not show: what is largest misleads, where channels are best
 * cut off does not. */
static void rare_numbers_do_not_decide(void **state) {
    (void)state;
    double after[2];
    for (int known = 0; known < 2; known++) {
        rng_state = 5;
        site *s = make_site(20, 0, true);
        float scale[COLS], cut[COLS], limit = 0;
        int8_smooth_report r;
        int8_trial *t;
        for (int c = 0; c < COLS; c++) cut[c] = s->most[c];
        for (int c = 8; c < 30; c++) s->most[c] = 100 + 20 * (float)c;
        if (known) s->p.cut = cut;
        assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
        assert_int_equal(smooth_scales(&s->p, t, scale, &r, NULL), LLMQ_OK);
        for (int c = 0; c < COLS; c++) limit = fmaxf(limit, (known ? cut : s->most)[c] / scale[c]);
        assert_true(r.limit == (double)limit);
        after[known] = r.after;
        int8_trial_destroy(t);
        drop_site(s);
    }
    assert_true(after[1] < 0.5 * after[0]);
}

/* Ranges about a limit: one number that no sampled token has is in the ends, and every observer here goes by them. */
static void a_limit_gives_ranges(void **state) {
    (void)state;
    double error[2];
    for (int given = 0; given < 2; given++) {
        rng_state = 7;
        site *s = make_site(1, 0, true);
        int8_trial *t;
        int8_observers *o;
        int8_range_report r;
        const float far = 500;
        assert_int_equal(int8_trial_create(&s->p, &t, NULL), LLMQ_OK);
        int8_trial_scale(t, NULL);
        assert_int_equal(int8_observers_create(&o, NULL), LLMQ_OK);
        assert_int_equal(int8_observers_add(o, &far, 1, true, NULL), LLMQ_OK);
        assert_int_equal(int8_observers_choose(o, t, given ? 4 : 0, &r, NULL), LLMQ_OK);
        assert_true((strcmp(r.observer, "channels") == 0) == given);
        assert_true(r.max == far && (!given || (r.range.scale < 6.1f / 127.5f && r.range.zero == 0)));
        error[given] = r.error;
        int8_observers_destroy(o);
        int8_trial_destroy(t);
        drop_site(s);
    }
    assert_true(error[1] < 0.01 * error[0]);
}

static void scales_fit_f16(void **state) {
    (void)state;
    for (int i = 0; i < 1000; i++) {
        double x = exp(uniform() * 18 - 9);
        float y = int8_scale_f16(x);
        assert_true((double)y >= x && y == f16_to_f32(f32_to_f16(y)) && ((double)y <= x * 1.001 || y == 0x1p-14f));
    }
    assert_true(int8_scale_f16(0) > 0 && int8_scale_f16(1e9) == 65504.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(outliers_move_into_weights), cmocka_unit_test(no_outliers_no_harm),
                                       cmocka_unit_test(shared_channels_share_a_scale), cmocka_unit_test(a_shift_gets_a_zero_point),
                                       cmocka_unit_test(the_largest_tokens_count), cmocka_unit_test(weights_weigh),
                                       cmocka_unit_test(channels_are_cut_where_it_costs_least), cmocka_unit_test(rare_numbers_do_not_decide),
                                       cmocka_unit_test(a_limit_gives_ranges), cmocka_unit_test(scales_fit_f16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
