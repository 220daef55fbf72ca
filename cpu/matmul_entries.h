/* What AVX2's and NEON's files put in the table; included by them behind peak and round_group (act_q8.h). */
#include "cpu/simd.h"

static void acts_fill(const llmq_worker *worker, llmq_acts *a, llmq_act_form form) {
    if (form == ACT_Q8 || form == ACT_Q8_SPLIT) act_fill_q8(worker, a, form, peak, round_group);
    if (form == ACT_BF16) cpu_fill_bf16(worker, a);
    if (form == ACT_INT8) SIMD_NAME(int8_fill)(worker, a);
    if (form == ACT_Q16) SIMD_NAME(nf4_fill)(worker, a);
}

/* ---- entries */

static llmq_status weight_prepare(llmq_weight *w, const llmq_tensor *t, int flags, llmq_team *team, llmq_err *err) {
    (void)flags; /* without bf16 products there is nothing to gain from PREP_BF16 */
    return cpu_weight_pack(w, t, NULL, team, err);
}

void SIMD_NAME(cpu_fill_matmul)(llmq_backend_ops *ops) {
    ops->weight_prepare = weight_prepare;
    ops->weight_prepare_int8 = int8_pack;
    ops->weight_release = cpu_weight_release;
    ops->acts_bytes = cpu_acts_bytes;
    ops->acts_fill = acts_fill;
    ops->matmul = matmul;
}
