/* Few tokens of NF4 and FP4, two at a time; included by the files of AVX2 and NEON behind level_table and gemv_tile,
 * out[t] = 16 rows of the tile times tokens t0 .. t0+nt of the block. */

static void gemv1(const nf4_tile_block *w, int64_t n_blocks, const level_bytes *table, act16_block b, int t0,
                  float out[2][16]) {
    gemv_tile(1, w, n_blocks, table, b, t0, out);
}
static void gemv2(const nf4_tile_block *w, int64_t n_blocks, const level_bytes *table, act16_block b, int t0,
                  float out[2][16]) {
    gemv_tile(2, w, n_blocks, table, b, t0, out);
}

void SIMD_NAME(nf4_few)(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t n_blocks = w->cols / QK_NF4, begin, end;
    level_bytes table = level_table(w->native.type);
    act16_block b = act16_block_at(a, a->q16, 0);
    for (worker_share s = worker_share_begin(worker, w->rows, 16); worker_share_next(&s, &begin, &end);) {
        for (int64_t r = begin; r < end; r += 16) {
            int64_t n_rows = w->rows - r < 16 ? w->rows - r : 16;
            for (int t0 = 0; t0 < b.n; t0 += 2) {
                int nt = b.n - t0 < 2 ? b.n - t0 : 2;
                float out[2][16];
                (nt == 2 ? gemv2 : gemv1)(nf4_tile(w, r), n_blocks, &table, b, t0, out);
                for (int t = 0; t < nt; t++) {
                    float *to = y + (t0 + t) * ldy + r;
                    for (int64_t i = 0; i < n_rows; i++) to[i] = out[t][i] + (w->bias ? w->bias[r + i] : 0.0f);
                }
            }
        }
    }
}
