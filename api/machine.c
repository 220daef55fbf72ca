/* Public functions about the machine. */
#include "core/backend.h"
#include "llmq.h"

int llmq_cpu_count(void) {
    return cpu_physical_cores();
}
const char *llmq_cpu_isa(void) {
    return backend_cpu()->isa;
}

double llmq_read_bandwidth(int n_threads, size_t bytes) {
    llmq_team *team = NULL;
    if (team_create(n_threads, &team, NULL) != LLMQ_OK) return 0;
    double rate = backend_read_bandwidth(backend_cpu(), team, bytes);
    team_destroy(team);
    return rate;
}

const char *llmq_product_name(void) {
    return backend_cpu()->product;
}

double llmq_product_rate(int n_threads) {
    llmq_team *team = NULL;
    if (team_create(n_threads, &team, NULL) != LLMQ_OK) return 0;
    double rate = backend_product_rate(backend_cpu(), team);
    team_destroy(team);
    return rate;
}
