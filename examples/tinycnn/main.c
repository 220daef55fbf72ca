/* tinycnn: trains a small CNN, quantizes it both ways, and prints what that costs and gains. See README.md. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tinycnn.h"

enum { VARIANTS = 3, CALIBRATION = 256 };
static const char *const variant_names[VARIANTS] = {"FP32", "INT8 dynamic", "INT8 static"};
static const char *const observer_names[] = {"minmax", "average", "percentile", "mse", "entropy"};

typedef struct options {
    const char *data, *load, *save;
    int epochs, threads, rounds;
    llmq_observer_kind observer;
    bool json, check;
} options;

static void usage(FILE *out) {
    fputs("usage: tinycnn [options]\n"
          "  --epochs N        of training (12)\n"
          "  --load FILE       weights from --save instead of training\n"
          "  --save FILE       write the f32 weights\n"
          "  --observer KIND   of static quantization: minmax, average, percentile, mse, entropy (mse)\n"
          "  --threads N       0: the physical cores (0)\n"
          "  --rounds N        of each latency (200)\n"
          "  --data FILE       digits.bin\n"
          "  --json            one line of JSON instead of tables\n"
          "  --check           fail unless static INT8 is within 1 point of FP32 and 3.8 times smaller\n",
          out);
}

static void bad_usage(const char *arg) {
    fprintf(stderr, "tinycnn: what is %s?\n", arg);
    usage(stderr);
    exit(2);
}

static int parse_int(const char *arg, const char *value) {
    char *end;
    long n = value ? strtol(value, &end, 10) : -1;
    if (!value || *end || n < 0 || n > 1000000) bad_usage(arg);
    return (int)n;
}

static options parse(int argc, char **argv) {
    options o = {.data = TINYCNN_DATA, .epochs = 12, .rounds = 200, .observer = LLMQ_OBSERVE_MSE};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *next = i + 1 < argc ? argv[i + 1] : NULL;
        int used = 1;
        if (!strcmp(a, "--epochs"))
            o.epochs = parse_int(a, next);
        else if (!strcmp(a, "--threads"))
            o.threads = parse_int(a, next);
        else if (!strcmp(a, "--rounds"))
            o.rounds = parse_int(a, next);
        else if (!strcmp(a, "--load") && next)
            o.load = next;
        else if (!strcmp(a, "--save") && next)
            o.save = next;
        else if (!strcmp(a, "--data") && next)
            o.data = next;
        else if (!strcmp(a, "--observer") && next) {
            int k = 0;
            while (k < 5 && strcmp(next, observer_names[k])) k++;
            if (k == 5) bad_usage(next);
            o.observer = (llmq_observer_kind)k;
        } else {
            used = 0;
            if (!strcmp(a, "--json"))
                o.json = true;
            else if (!strcmp(a, "--check"))
                o.check = true;
            else if (!strcmp(a, "--help"))
                usage(stdout), exit(0);
            else
                bad_usage(a);
        }
        i += used;
    }
    return o;
}

/* ---- the three networks behind one face ---- */

typedef struct nets {
    net_f32 f32;
    net_dynamic dynamic;
    net_static fixed;
    llmq_q8_context *ctx;
} nets;

static void run(const nets *n, int variant, const float *x, int images) {
    if (variant == 0) net_f32_run(&n->f32, n->ctx, x, images);
    if (variant == 1) net_dynamic_run(&n->dynamic, n->ctx, x, images);
    if (variant == 2) net_static_run(&n->fixed, n->ctx, x, images);
}

static int best_class(const nets *n, int variant, int image) {
    int best = 0;
    for (int c = 1; c < CLASSES; c++) {
        int64_t a = image * CLASSES + c, b = image * CLASSES + best;
        bool better = variant == 2   ? n->fixed.out[FC2][a] > n->fixed.out[FC2][b]
                      : variant == 1 ? n->dynamic.out[FC2][a] > n->dynamic.out[FC2][b]
                                     : n->f32.out[FC2][a] > n->f32.out[FC2][b];
        if (better) best = c;
    }
    return best;
}

static double accuracy(const nets *n, int variant, const digits *d) {
    int right = 0;
    for (int i = 0; i < d->n; i += BATCH) {
        int m = d->n - i < BATCH ? d->n - i : BATCH;
        run(n, variant, d->x + i * PIXELS, m);
        for (int k = 0; k < m; k++) right += best_class(n, variant, k) == d->label[i + k];
    }
    return 100.0 * right / d->n;
}

/* Signal over noise of each layer's output, dB: static INT8 against f32, errors of earlier layers included. */
static void signal_to_noise(const nets *n, const digits *d, double *db) {
    double signal[LAYERS] = {0}, noise[LAYERS] = {0};
    for (int i = 0; i < d->n; i += BATCH) {
        int m = d->n - i < BATCH ? d->n - i : BATCH;
        run(n, 0, d->x + i * PIXELS, m);
        run(n, 2, d->x + i * PIXELS, m);
        for (int l = 0; l < LAYERS; l++)
            for (int64_t k = 0; k < m * layer_out[l]; k++) {
                llmq_affine_params p = n->fixed.site[l + 1];
                double x = n->f32.out[l][k], y = (n->fixed.out[l][k] - p.zero_point) * (double)p.scale;
                signal[l] += x * x;
                noise[l] += (x - y) * (x - y);
            }
    }
    for (int l = 0; l < LAYERS; l++) db[l] = 10 * log10(signal[l] / noise[l]);
}

/* ---- latency ---- */

typedef struct latency {
    double median, low, high; /* microseconds; quartiles */
} latency;

static double now_us(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Variants take turns, so that what disturbs the machine disturbs all. A round of one image is 10 runs. */
static void measure(const nets *n, const digits *d, int images, int rounds, latency *out) {
    int runs = images == 1 ? 10 : 1;
    double *took[VARIANTS];
    for (int v = 0; v < VARIANTS; v++) took[v] = allocate((size_t)rounds, sizeof(double));
    for (int r = -rounds / 10; r < rounds; r++) /* the first are to warm up */
        for (int v = 0; v < VARIANTS; v++) {
            double start = now_us();
            for (int k = 0; k < runs; k++) run(n, v, d->x + (r + rounds) * 7 % (d->n - BATCH) * PIXELS, images);
            if (r >= 0) took[v][r] = (now_us() - start) / runs;
        }
    for (int v = 0; v < VARIANTS; v++) {
        qsort(took[v], (size_t)rounds, sizeof(double), by_value);
        out[v] = (latency){took[v][rounds / 2], took[v][rounds / 4], took[v][rounds * 3 / 4]};
        free(took[v]);
    }
}

/* ---- what is printed ---- */

typedef struct results {
    double train_seconds, accuracy[VARIANTS], db[LAYERS];
    int64_t bytes[VARIANTS], packed[VARIANTS];
    latency one[VARIANTS], many[VARIANTS];
    int test_images;
} results;

static void print_tables(const results *r, const nets *n, const options *o) {
    if (!o->load) printf("trained %d epochs in %.1f s\n\n", o->epochs, r->train_seconds);
    printf("%-14s %9s %9s %9s %22s %22s\n", "", "MB", "smaller", "accuracy", "1 image, us", "64 images, us");
    for (int v = 0; v < VARIANTS; v++) {
        char one[64], many[64];
        snprintf(one, sizeof one, "%.1f (%.1f-%.1f)", r->one[v].median, r->one[v].low, r->one[v].high);
        snprintf(many, sizeof many, "%.0f (%.0f-%.0f)", r->many[v].median, r->many[v].low, r->many[v].high);
        printf("%-14s %9.4f %8.2fx %8.2f%% %22s %22s\n", variant_names[v], (double)r->bytes[v] / 1e6,
               (double)r->bytes[0] / (double)r->bytes[v], r->accuracy[v], one, many);
    }
    printf("\nlatencies: median (quartiles). Packed for the kernels: FP32 %.4f MB, dynamic %.4f, static %.4f\n\n",
           (double)r->packed[0] / 1e6, (double)r->packed[1] / 1e6, (double)r->packed[2] / 1e6);
    printf("static INT8, observer %s:\n%-8s %22s %12s %6s %10s\n", observer_names[o->observer], "tensor", "range",
           "scale", "zero", "SQNR");
    for (int s = 0; s < SITES; s++) {
        printf("%-8s %10.4f..%-10.4f %12.8f %6d", s ? layer_names[s - 1] : "input", (double)n->fixed.min[s],
               (double)n->fixed.max[s], (double)n->fixed.site[s].scale, n->fixed.site[s].zero_point);
        if (s) printf(" %7.1f dB", r->db[s - 1]);
        printf("\n");
    }
}

static void print_json(const results *r) {
    printf("{\"test_images\": %d, \"train_seconds\": %.2f, \"variants\": [", r->test_images, r->train_seconds);
    for (int v = 0; v < VARIANTS; v++)
        printf("%s{\"name\": \"%s\", \"bytes\": %lld, \"packed_bytes\": %lld, \"accuracy\": %.4f, \"us_1\": %.3f, "
               "\"us_64\": %.3f}",
               v ? ", " : "", variant_names[v], (long long)r->bytes[v], (long long)r->packed[v], r->accuracy[v],
               r->one[v].median, r->many[v].median);
    printf("], \"sqnr_db\": [%.2f, %.2f, %.2f, %.2f]}\n", r->db[0], r->db[1], r->db[2], r->db[3]);
}

static void sizes(const nets *n, results *r) {
    for (int l = 0; l < LAYERS; l++) {
        r->bytes[0] += 4 * layer_rows[l] * (layer_cols[l] + 1);
        r->packed[0] += llmq_f32_weights_bytes(n->f32.layer[l]);
        r->packed[1] +=
            l <= CONV2 ? llmq_f32_weights_bytes(n->dynamic.conv[l]) : llmq_q8_weights_bytes(n->dynamic.fc[l - FC1]);
        r->packed[2] += llmq_q8_weights_bytes(n->fixed.layer[l]);
    }
    r->bytes[1] = n->dynamic.bytes;
    r->bytes[2] = n->fixed.bytes;
}

static int check(const results *r) {
    double loss = r->accuracy[0] - r->accuracy[2], smaller = (double)r->bytes[0] / (double)r->bytes[2];
    double dynamic = r->accuracy[0] - r->accuracy[1];
    bool ok = r->accuracy[0] >= 97 && loss <= 1 && dynamic <= 1 && smaller >= 3.8 &&
              (double)r->packed[0] / (double)r->packed[2] >= 3.8 && r->db[FC2] >= 20;
    printf("%s: FP32 %.2f %%, static INT8 %.2f points below, dynamic %.2f, %.2f times smaller, logits %.1f dB\n",
           ok ? "check passed" : "CHECK FAILED", r->accuracy[0], loss, dynamic, smaller, r->db[FC2]);
    return ok ? 0 : 1;
}

int main(int argc, char **argv) {
    options o = parse(argc, argv);
    digits train_set, test_set;
    digits_load(o.data, &train_set, &test_set);
    nets n;
    results r = {.test_images = test_set.n};
    llmq_err err;
    must(llmq_q8_context_create(o.threads, &n.ctx, &err), &err);
    weights w = weights_create();
    double start = now_us();
    if (o.load)
        weights_load(&w, o.load);
    else
        train(&w, &train_set, o.epochs, n.ctx);
    r.train_seconds = o.load ? 0 : (now_us() - start) / 1e6;
    if (o.save) weights_save(&w, o.save);

    n.f32 = net_f32_create(&w);
    n.dynamic = net_dynamic_create(&w);
    prepared p = static_prepare(o.observer);
    static_calibrate(&p, &n.f32, n.ctx, &train_set, CALIBRATION);
    n.fixed = static_convert(&w, &p);
    prepared_destroy(&p);

    sizes(&n, &r);
    for (int v = 0; v < VARIANTS; v++) r.accuracy[v] = accuracy(&n, v, &test_set);
    signal_to_noise(&n, &test_set, r.db);
    if (o.rounds > 0) {
        measure(&n, &test_set, 1, o.rounds, r.one);
        measure(&n, &test_set, BATCH, o.rounds, r.many);
    }
    if (o.json)
        print_json(&r);
    else
        print_tables(&r, &n, &o);
    int status = o.check ? check(&r) : 0;

    net_f32_destroy(&n.f32);
    net_dynamic_destroy(&n.dynamic);
    net_static_destroy(&n.fixed);
    llmq_q8_context_destroy(n.ctx);
    for (int l = 0; l < LAYERS; l++) {
        free(w.w[l]);
        free(w.b[l]);
    }
    free(train_set.x), free(train_set.label), free(test_set.x), free(test_set.label);
    return status;
}
