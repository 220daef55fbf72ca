/* Attention of rows that are independent of each other; included by attention_simd.h. Neighbouring rows of one cache
 * form a run: its keys are streamed once for all of them, in the steps and splits of a single row, so that a row's bits
 * do not depend on its neighbours. All runs' items are shared out at once, then all splits are merged: one barrier. */

#define ATTN_RUN_MOST 64 /* rows (queries times heads of the group) of a run: attn_rows has room for them */

typedef struct attn_rows_call {
    const llmq_attn *a;
    const llmq_attn_row *rows;
    int64_t n_rows;
    const float *q;
    int64_t ldq;
    float *out, *parts;
} attn_rows_call;

/* A run of n rows from `row` on; call.plan is that of one row but for the number of queries. */
typedef struct attn_run {
    int64_t row, n, n_items;
    llmq_attn attn;
    attn_call call;
} attn_run;

static llmq_attn attn_single(const llmq_attn *a, int64_t pos) {
    llmq_attn one = *a;
    one.pos = pos;
    one.n_tok = 1;
    return one;
}

static attn_plan attn_single_plan(const llmq_attn *a, int64_t pos) {
    llmq_attn one = attn_single(a, pos);
    return attn_plan_make(&one);
}

/* With a window every row begins at another key, and its steps lie elsewhere: it stays alone. */
static int64_t run_length(const attn_rows_call *c, int64_t row) {
    const llmq_attn_row *first = c->rows + row;
    attn_plan plan = attn_single_plan(c->a, first->pos);
    int64_t n = 1;
    while (c->a->window == 0 && row + n < c->n_rows && (n + 1) * plan.ratio <= ATTN_RUN_MOST &&
           first[n].kv == first->kv && first[n].pos == first->pos + n &&
           attn_single_plan(c->a, first[n].pos).split == plan.split)
        n++;
    return n;
}

/* The run after `run` (zeroed: the first); false when there is none. */
static bool next_run(const attn_rows_call *c, attn_run *run) {
    int64_t row = run->row + run->n;
    if (row >= c->n_rows) return false;
    const attn_call *before = &run->call;
    float *parts = c->parts;
    if (row > 0)
        parts = before->parts +
                (before->plan.n_splits > 1 ? before->plan.n_splits * run->n * c->a->n_head * before->plan.part_len : 0);
    run->row = row;
    run->n = run_length(c, row);
    run->attn = *c->a;
    run->attn.pos = c->rows[row].pos;
    run->attn.n_tok = run->n;
    run->call = (attn_call){.a = &run->attn,
                            .kv = c->rows[row].kv,
                            .plan = attn_single_plan(c->a, c->rows[row].pos + run->n - 1),
                            .q = c->q + row * c->ldq,
                            .ldq = c->ldq,
                            .out = c->out + row * c->a->n_head * c->a->head_dim,
                            .parts = parts};
    run->call.plan.q_block = run->n;
    run->n_items = c->a->n_head_kv * run->call.plan.n_splits;
    return true;
}

static void rows_items(const llmq_worker *w, const attn_rows_call *c, const attn_space *sp) {
    int64_t begin, end, total = 0, base = 0;
    for (attn_run run = {0}; next_run(c, &run);) total += run.n_items;
    worker_range(w, total, 1, &begin, &end);
    for (attn_run run = {0}; next_run(c, &run); base += run.n_items) {
        int64_t from = begin > base ? begin - base : 0, to = end - base < run.n_items ? end - base : run.n_items;
        attn_item it;
        for (int64_t index = from; index < to; index++)
            if (item_make(&run.call, index, &it)) attend_few(&run.call, &it, sp);
    }
}

static void rows_merge(const llmq_worker *w, const attn_rows_call *c) {
    int64_t begin, end, heads = c->a->n_head;
    bool any = false;
    for (attn_run run = {0}; next_run(c, &run);) any = any || run.call.plan.n_splits > 1;
    if (!any) return;
    worker_barrier(w);
    worker_range(w, c->n_rows * heads, 1, &begin, &end);
    for (attn_run run = {0}; next_run(c, &run);) {
        if (run.call.plan.n_splits == 1) continue;
        int64_t base = run.row * heads, from = begin > base ? begin - base : 0,
                to = end - base < run.n * heads ? end - base : run.n * heads;
        for (int64_t index = from; index < to; index++) merge_row(&run.call, index);
    }
}

static void attention_rows_simd(const llmq_worker *w, const llmq_attn *a, const llmq_attn_row *rows, int64_t n_rows,
                                const float *q, int64_t ldq, float *out, void *scratch) {
    if (a->head_dim % 16 != 0) {
        attention_rows_c(w, a, rows, n_rows, q, ldq, out, scratch);
        return;
    }
    int64_t own = attn_worker_len(a), ratio = a->n_head / a->n_head_kv;
    for (int64_t i = 0; ratio > ATTN_FEW && i < n_rows;
         i++) { /* so many heads share keys that one row is worth tiles */
        llmq_attn one = attn_single(a, rows[i].pos);
        if (i > 0) worker_barrier(w);
        attention_simd(w, &one, q + i * ldq, ldq, rows[i].kv, out + i * a->n_head * a->head_dim, scratch);
    }
    if (ratio > ATTN_FEW) return;
    attn_rows_call c = {a, rows, n_rows, q, ldq, out, (float *)scratch + own * w->n};
    attn_space sp = space_make(a, (float *)scratch + own * w->id);
    rows_items(w, &c, &sp);
    rows_merge(w, &c);
}

static size_t attn_rows_scratch_simd(const llmq_attn *a, int64_t n_rows, int n_workers) {
    if (a->head_dim % 16 != 0) return attention_rows_scratch_c(a, n_rows, n_workers);
    llmq_attn one = attn_single(a, a->pos);
    int64_t splits = attn_div_up(a->pos + 1, ATTN_FEW_SPLIT);
    if (splits > ATTN_FEW_SPLITS) splits = ATTN_FEW_SPLITS;
    size_t parts = (size_t)(n_rows * splits * a->n_head) * (size_t)(a->head_dim + ATTN_PART_EXTRA);
    size_t rows = sizeof(float) * ((size_t)(attn_worker_len(a) * n_workers) + parts);
    size_t alone = attn_scratch_simd(&one, n_workers);
    return rows > alone ? rows : alone;
}
