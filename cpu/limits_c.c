/* The probes of the machine's limits in plain C: what the compiler makes of them for the baseline. */
#include "cpu/cpu.h"

enum { LANES = 16, PRODUCTS = 1024 };

static uint64_t read_c(const void *p, size_t bytes, size_t ahead) {
    const uint64_t *x = p;
    uint64_t lane[LANES] = {0}, sum = 0;
    for (size_t i = 0; i < bytes / sizeof *x; i += LANES) {
        if (ahead) {
            __builtin_prefetch((const char *)(x + i) + ahead);
            __builtin_prefetch((const char *)(x + i) + ahead + 64);
        }
        for (int j = 0; j < LANES; j++) lane[j] += x[i + j];
    }
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

static double products_c(int64_t rounds, uint64_t *sum_out) {
    int8_t x[PRODUCTS], y[PRODUCTS];
    uint32_t sum = 0; /* wraps */
    for (int i = 0; i < PRODUCTS; i++) x[i] = (int8_t)i, y[i] = (int8_t)(i * 7);
    for (int64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : : "r"(x), "r"(y) : "memory"); /* another round is other work */
        for (int i = 0; i < PRODUCTS; i++) sum += (uint32_t)(x[i] * y[i]);
    }
    *sum_out = sum;
    return (double)rounds * PRODUCTS;
}

void cpu_fill_limits_c(llmq_backend_ops *ops) {
    ops->probe_read = read_c;
    ops->probe_products = products_c;
    ops->product = "8 bits in plain C";
}
