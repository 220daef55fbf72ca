#define DOTPROD 0
#include "cpu/int8_neon.h"

void int8_fill_neon(const llmq_worker *worker, llmq_acts *a) {
    fill_tokens(worker, a);
}
