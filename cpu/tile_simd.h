/* The register tile of every f32 product: TILE_M rows times vectors of columns, all sums in registers. */
#ifndef LLMQ_CPU_TILE_SIMD_H
#define LLMQ_CPU_TILE_SIMD_H

#include "cpu/simd.h"

#define TILE_M 6
#if VF_N == 16
#define TILE_NV 4 /* 24 sums, 4 columns and a broadcast: 29 of 32 registers */
#else
#define TILE_NV 2 /* 12 sums, 2 columns and a broadcast: 15 of 16 registers */
#endif
#define TILE_N (TILE_NV * VF_N)

/* acc[i][j] += sum over l < k of a[i * a_row + l * a_k] * b[l * ldb + j-th vector], i < m, j < nv; l ascending.
 * m and nv are constants where this is inlined. */
SIMD_FN void tile_fma(int m, int nv, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, int64_t ldb,
                      vf acc[][4]) {
    for (int64_t l = 0; l < k; l++) {
        vf col[4];
        UNROLL_FOR(j, nv) col[j] = vf_load(b + l * ldb + j * VF_N);
        UNROLL_FOR(i, m) {
            vf x = vf_set1(a[i * a_row + l * a_k]);
            UNROLL_FOR(j, nv) acc[i][j] = vf_fma(x, col[j], acc[i][j]);
        }
    }
}

#endif
