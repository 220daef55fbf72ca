/* config.json from metadata under GGUF's keys: the way back from hfconfig_read (format.h). */
#ifndef LLMQ_FORMATS_HFCONFIG_H
#define LLMQ_FORMATS_HFCONFIG_H

#include <jansson.h>

#include "core/meta.h"

/* What metadata do not say but tensors do. */
typedef struct hfconfig_facts {
    bool tied;             /* no head of its own */
    bool qkv_bias, o_bias; /* layers have them */
    const float *divisors; /* [n_rot / 2] of rope frequencies (rope_freqs.weight), or NULL */
} hfconfig_facts;

/* LLMQ_E_UNSUPPORTED: config.json of that architecture cannot say it. *out by json_decref. */
llmq_status hfconfig_make(const llmq_meta *meta, const hfconfig_facts *facts, json_t **out, llmq_err *err);

#endif
