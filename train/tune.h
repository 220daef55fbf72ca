/* Training what a quantization job has written: scales, minimums and norms, so that the model's next-token
 * distributions follow those of the full-precision one (KL divergence); codes stay. The idea of EfficientQAT's last
 * stage (Chen et al. 2024), with the full-precision model as the teacher. */
#ifndef LLMQ_TRAIN_TUNE_H
#define LLMQ_TRAIN_TUNE_H

#include "engine/jobs.h"

typedef struct tune_settings {
    int64_t steps, batch;     /* batch: windows of a step */
    double lr, warmup, floor; /* warmup: steps; floor: of the rate at the end */
    double code_lr;           /* of codes, in levels; 0: they stay */
    double norm_lr;           /* of norms, times lr */
    int64_t held_out;         /* windows that judge, taken from the end */
    int64_t judge;            /* times that they judge while training, the end counted */
    double minutes;           /* in place of steps; 0: none */
    int64_t blocks;           /* 1: block by block, 0: the whole model, -1: as memory allows */
} tune_settings;

/* The defaults, for training codes too if `codes`, of a layer alone if `blocks`, but for what the list names:
 * "steps=30,lr=0.001"; NULL: none.
 */
llmq_status tune_settings_parse(const char *list, bool codes, bool blocks, tune_settings *s, llmq_err *err);

/* Never leaves a worse model by the held-out windows: it goes back to the best that it has seen. Static. */
const llmq_tuner *tune_tuner(void);

#endif
