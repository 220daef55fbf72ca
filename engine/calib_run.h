/* The calibration tokens on their way through the model, all of them at once, from the input of one group of matrices
 * (a site) to the next. Each weight is multiplied once over the tokens: a pass starts with the weights that the last
 * site's solving gave and ends with the next site's inputs and their Gram matrix. */
#ifndef LLMQ_ENGINE_CALIB_RUN_H
#define LLMQ_ENGINE_CALIB_RUN_H

#include "core/device.h"
#include "engine/calib.h"

typedef struct llmq_calib_run llmq_calib_run;

/* What a pass does, by kinds that take different times: multiply-adds of weights, of attention and of Gram matrices,
 * and floats made ready between them (norms, activations, other forms, sums). */
typedef enum calib_kind { CALIB_WEIGHTS, CALIB_ATTENTION, CALIB_GRAM, CALIB_FLOATS, CALIB_KINDS } calib_kind;
/* So much of each kind; or the seconds that it took. */
typedef struct llmq_calib_work {
    double of[CALIB_KINDS];
} llmq_calib_work;
/* Of one token on its way to a site, in windows of ctx; gram: the site's Gram matrix is summed. */
llmq_calib_work calib_site_work(const llmq_hparams *hp, int64_t ctx, llmq_site_id site, bool gram);

/* After each piece of a pass: what was just done. false stops (LLMQ_E_INTERRUPTED). */
typedef bool calib_tick_fn(void *user, const llmq_calib_work *done);

/* model: opened, possibly with no_weights; its arena grows by norms and biases. All are borrowed. Embeds the tokens. */
llmq_status calib_run_create(llmq_model *model, const llmq_calib *calib, llmq_team *team, calib_tick_fn *tick,
                             void *user, llmq_calib_run **out, llmq_err *err);
/* The same in memory that is cut otherwise; the results are the same bits. */
typedef struct llmq_calib_memory {
    int64_t chunk;          /* tokens that pass a matrix at a time: a calib_run_chunk, 0: the default */
    void *hidden, *mid;     /* zeroed and as large as calib_run_need says, borrowed; NULL: the run's own */
    llmq_calib_run *lender; /* its buffers of a chunk are used: its windows and chunks are no smaller, and it is not in
                             * a pass when this run is; NULL: the run's own */
} llmq_calib_memory;
llmq_status calib_run_create_in(const llmq_calib_memory *memory, llmq_model *model, const llmq_calib *calib,
                                llmq_team *team, calib_tick_fn *tick, void *user, llmq_calib_run **out, llmq_err *err);
/* The default chunk, halved so often; 0: it cannot be. */
int64_t calib_run_chunk(const llmq_calib *calib, int halvings);
typedef struct llmq_calib_need { /* bytes */
    size_t hidden, mid, bad;     /* of all tokens */
    size_t chunk;                /* of those in a pass */
} llmq_calib_need;
llmq_calib_need calib_run_need(llmq_model *model, const llmq_calib *calib, int64_t chunk, int n_workers);
void calib_run_destroy(llmq_calib_run *run); /* NULL allowed */

/* Before the passes of a layer. */
llmq_status calib_run_layer(llmq_calib_run *run, int layer, llmq_err *err);
/* The weight of a role (made ready by ops->weight_prepare; its bias is set here). Borrowed until the end of the layer.
 */
void calib_run_weight(llmq_calib_run *run, llmq_role role, llmq_weight *w);
/* A norm's gain or a bias of the layer in place of the source's; before the weights. Borrowed until the end of the
 * layer.
 */
void calib_run_vector(llmq_calib_run *run, llmq_role role, const float *values);
/* The residual stream of a window becomes that of another run's window; both runs at the beginning of a layer. */
void calib_run_copy_window(llmq_calib_run *to, int64_t to_window, const llmq_calib_run *from, int64_t from_window);
/* Passes run the first n windows only. */
void calib_run_limit(llmq_calib_run *run, int64_t n_windows);
/* After the pass that ended at site: one window more runs, a copy of the first as it is now, and to the end of the
 * layer it reads w in place of the role's weight. One window a role; w as in calib_run_weight; the run was created with
 * room for it. Returns the window. */
int64_t calib_run_fork(llmq_calib_run *run, llmq_site_id site, llmq_role role, llmq_weight *w);
/* Sites in order, then SITE_COUNT for what follows the last one. gram (cols, cols): zeroed, then filled in its lower
 * triangle; NULL: only the tokens move on. *n_tokens_out: tokens that count in it, the others were not finite. */
llmq_status calib_run_site(llmq_calib_run *run, llmq_site_id site, float *gram, int64_t *n_tokens_out, llmq_err *err);
/* After the pass to a site, and for those behind o and down still after the one that follows: the inputs (n, cols) of
 * its matrices of tokens [begin, begin + n). Rows that are not finite are zero, and their tokens left out from then on.
 * Several threads may read different tokens. */
void calib_run_inputs(llmq_calib_run *run, llmq_site_id site, int64_t begin, int64_t n, float *to);
/* Of the Gram matrices of later passes (docs/quantization.md): how often more they count the mean of the inputs, and
 * whether inputs may be rounded to 8 bits. 0 and true as created. */
void calib_run_statistics(llmq_calib_run *run, double mean, bool allow_q8);
/* Gram matrices of later passes are summed there, beside the passes, of inputs in bf16; NULL: here. Borrowed. */
void calib_run_device(llmq_calib_run *run, llmq_device_solver *device);
/* (tokens, n_embd) the residual stream as it is now; borrowed. */
float *calib_run_hidden(llmq_calib_run *run);
/* What is carried from layer to layer: the residual stream and which tokens were left out; borrowed. Between the layers
 * it is all there is, so a run that goes on elsewhere needs no more. calib_run_settled: it is now what the last
 * finished layer left (a layer that began and has not added to the stream yet may begin again). */
void calib_run_state(llmq_calib_run *run, void **hidden, size_t *hidden_bytes, void **bad, size_t *bad_bytes);
size_t calib_run_state_bytes(const llmq_hparams *hp, size_t n_tokens); /* the sum of both */
bool calib_run_settled(const llmq_calib_run *run);
void calib_run_restart(llmq_calib_run *run); /* back to the embeddings, as created */
/* Seconds so far. */
llmq_calib_work calib_run_spent(const llmq_calib_run *run);
/* Tokens that were left out somewhere. */
int64_t calib_run_dropped(const llmq_calib_run *run);

/* Inputs of a site's matrices. */
int64_t calib_site_cols(const llmq_hparams *hp, llmq_site_id site);

#endif
