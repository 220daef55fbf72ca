/* The emulator's bodies of ptx.cuh. */
#ifndef LLMQ_CUDA_EMU_PTX_H
#define LLMQ_CUDA_EMU_PTX_H

#include "cuda/emu/simt.h"

/* ---- tensor_core.cpp */

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SITE);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SITE);
void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SITE);
void mma_s8_k16(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b SITE);
void ldmatrix_x4(uint32_t (&r)[4], sptr<const void> row SITE);
void ldmatrix_x4_trans(uint32_t (&r)[4], sptr<const void> row SITE);

/* ---- copies and loads */

inline void cp_async_16(sptr<void> to, gptr<const void> from, unsigned filled = 16 SITE) {
    emu::copy_issue(to.b, to.offset, from.b, from.offset, 16, filled, true, at);
}
inline void cp_async_commit() {
    emu::copy_commit();
}
template <int PENDING> void cp_async_wait(SITE_ONLY) {
    emu::copy_wait(PENDING, at);
}

/* The non-coherent path: what is read so may not be written in the same launch, so it has to be an input. */
template <class T> T load_once(gptr<const T> p SITE) {
    if (p.b && !p.b->read_only && !p.b->touched.empty())
        for (size_t i = 0; i < sizeof(T); i++) {
            size_t byte = static_cast<size_t>(p.offset) + i;
            if (byte < p.b->bytes && p.b->touched[byte].writer.run >= emu::now.launch_first_run)
                emu::stop(EMU_RACE, at, {}, "a load through the read-only path of what this launch writes");
        }
    return emu::load<T>(p.b, p.offset, at);
}

/* ---- bits: scalar.cpp */

uint32_t emu_lop3(int table, uint32_t a, uint32_t b, uint32_t c);
template <int TABLE> uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    return emu_lop3(TABLE, a, b, c);
}
uint32_t prmt(uint32_t a, uint32_t b, uint32_t s);
int32_t dp4a_s8(uint32_t a, uint32_t b, int32_t c);
int32_t dp4a_u8(uint32_t a, uint32_t b, int32_t c);

/* ---- half precision: scalar.cpp */

uint32_t h2_sub(uint32_t a, uint32_t b);
uint32_t h2_mul(uint32_t a, uint32_t b);
uint32_t h2_fma(uint32_t a, uint32_t b, uint32_t c);
uint32_t h2_from_floats(float low, float high);
uint32_t b2_from_floats(float low, float high);
float h_to_float(uint16_t h);

#endif
