/* The quantized model, or one layer of it, as the outputs hold it, with the numbers of it that are trained; and the
 * full-precision model that it learns from. Both are sources of weights for the net. */
#ifndef LLMQ_TRAIN_STUDENT_H
#define LLMQ_TRAIN_STUDENT_H

#include "engine/jobs.h"
#include "engine/outputs.h"
#include "train/net.h"
#include "train/tunable.h"
#include "train/tune.h"

/* A norm's gain, as a factor of what it was. */
typedef struct student_gain {
    float *g0, *x, *now; /* [n] found, factors, g0 * x */
    int64_t n;
} student_gain;

/* Numbers of one tensor in the optimizer. g serves for what a journal keeps too: there it holds x, or at the end what x
 * has become. */
typedef struct student_numbers {
    float *x, *g, *m, *v, *best;
    int64_t n;
    double rate; /* of the learning rate */
} student_numbers;

typedef struct student_part {
    llmq_tensor view;    /* of what stays: data NULL for what does not */
    tunable matrix;      /* rows 0: none */
    student_gain gain;   /* n 0: none */
    uint8_t *best_codes; /* where codes are trained; else NULL */
    student_numbers t;   /* n 0: stays */
} student_part;

typedef struct student {
    const llmq_tune_job *job;
    const tune_settings *set;
    size_t first, last;     /* entries of the export that it holds */
    student_part *parts;    /* [last - first] */
    student_part **by_role; /* (n_layer + 1, ROLE_COUNT), the model's own last; NULL: absent */
    float **dense;          /* [ROLE_COUNT] a layer's matrices as floats */
    uint8_t **packed;       /* as dense, as blocks of their types, for the way forward */
    bool has_head;          /* the net has made the head ready */
    int64_t step;           /* of the optimizer: done so far */
    double rate;            /* the schedule's part of all rates, for the next step */
} student;

/* What the numbers of the optimizer take: those that the stored result is made of, and those beside them. */
typedef struct student_room {
    size_t result, rest;
} student_room;
student_room student_need(const llmq_tune_job *job, const tune_settings *set, size_t first, size_t last);
/* The tensors themselves; and one layer made ready for both ways, the largest of those among the entries. */
size_t student_bytes(const llmq_tune_job *job, size_t first, size_t last);
size_t student_layer_bytes(const llmq_tune_job *job, size_t first, size_t last);
/* Numbers to train of a tensor. */
int64_t student_count(const llmq_tune_job *job, size_t index);

/* The optimizer's numbers, as large as student_need says. */
typedef struct student_memory {
    void *result, *rest;
    bool filled; /* they are of an earlier run, not zeros */
} student_memory;

/* A student of n parts, all of them empty, for what fills them itself. It stays to be cleared after a failure. */
llmq_status student_shell(student *s, const llmq_tune_job *job, const tune_settings *set, size_t n, llmq_err *err);
/* Reads entries [first, last) from the outputs. All are borrowed. s stays to be cleared after a failure. */
llmq_status student_open(student *s, const llmq_tune_job *job, const tune_settings *set, size_t first, size_t last,
                         const student_memory *memory, llmq_err *err);
void student_clear(student *s); /* zeroed allowed */

net_wants student_wants(void);
net_source_f32 student_source(student *s);
/* A step by the gradients that the last pass handed over. */
void student_update(student *s);
/* Remembers what it is now, or goes back to what it remembers. */
void student_keep_best(student *s, bool restore);

/* For a journal between two steps: x into the result's memory; and back, with codes by where the weights are, once the
 * memory is as it was. */
void student_save(student *s);
void student_load(student *s);
/* At the end: the best, as it is to be stored, into the result's memory; from there into the outputs, which may hold
 * some of it. */
void student_finish(student *s);
llmq_status student_store(student *s, llmq_err *err);

/* The full-precision model. */
typedef struct teacher {
    llmq_model *model;
    bool keep;             /* what was read stays there for the next pass */
    const float **vectors; /* (n_layer + 1, ROLE_COUNT) as far as they were asked for */
} teacher;
llmq_status teacher_open(teacher *t, llmq_model *model, bool keep, llmq_err *err);
void teacher_clear(teacher *t); /* zeroed allowed */
net_source_f32 teacher_source(teacher *t);
/* The pages of a layer may go. */
void teacher_release(teacher *t, int layer);

/* A net for both, over so many of the calibration's windows at a time. */
llmq_status student_net(const llmq_tune_job *job, int64_t n_windows, bool alone, net_f32 **out, llmq_err *err);
size_t student_net_bytes(const llmq_tune_job *job, int64_t n_windows, bool alone);

#endif
