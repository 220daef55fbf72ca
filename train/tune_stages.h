/* The two ways of tuning, which tune.c chooses from: the whole model at once, and one layer after the other. */
#ifndef LLMQ_TRAIN_TUNE_STAGES_H
#define LLMQ_TRAIN_TUNE_STAGES_H

#include "train/student.h"

/* What a checkpoint begins with; the student's numbers follow. */
#define TUNE_HEAD_BYTES ((size_t)128)
typedef struct tune_head {
    int64_t whole;       /* the stage under way; 0: block by block */
    int64_t total;       /* steps in all, or of a block; 0: the first one has not told yet how many a time allows */
    int64_t step;        /* whole: done */
    int64_t storing;     /* whole: training is over, the outputs may hold some of it */
    double first, best;  /* whole: KL divergence of held-out windows: before, and the best so far */
    int64_t blocks;      /* layers that are done; the outputs may hold only some of the last one */
    int64_t block_steps; /* of all of them */
    double block_first, block_best; /* sums over them of the error of held-out windows: before, and the best */
} tune_head;

/* _cost: nanoseconds. */
llmq_status tune_whole(const llmq_tune_job *job, const tune_settings *set, llmq_err *err);
llmq_tune_need tune_whole_need(const llmq_tune_job *job, const tune_settings *set);
double tune_whole_cost(const llmq_tune_job *job, const tune_settings *set, const llmq_tune_costs *costs);

llmq_status tune_blocks(const llmq_tune_job *job, const tune_settings *set, llmq_err *err);
llmq_tune_need tune_blocks_need(const llmq_tune_job *job, const tune_settings *set);
double tune_blocks_cost(const llmq_tune_job *job, const tune_settings *set, const llmq_tune_costs *costs);

/* tune_probe.c: measures costs->forward and costs->step. */
llmq_status tune_probe(const llmq_tune_job *job, const tune_settings *set, llmq_tune_costs *costs, llmq_err *err);

/* The i-th of n windows in an order that a fixed stride through all of them makes, round and round. */
int64_t tune_window(int64_t n, int64_t i);
/* Weights of matrices inside layers. */
double tune_layers_size(const llmq_tune_job *job);
/* Steps for so many seconds; judging takes some of the time, at a fourth of a step for the same windows. */
int64_t tune_steps_in(double seconds, double step_seconds, const tune_settings *set);

static inline tune_head *tune_head_of(const llmq_tune_job *job) {
    return job->state;
}
static inline void *tune_numbers_of(const llmq_tune_job *job) {
    return (char *)job->state + TUNE_HEAD_BYTES;
}

#endif
