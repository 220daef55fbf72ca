/* The intrinsics of emu512.h get names of their own, so that those of the compiler's header can stay. What is used but
 * missing here does not compile ("target specific option mismatch"). */
#ifndef LLMQ_TESTS_EMU512_NAMES_H
#define LLMQ_TESTS_EMU512_NAMES_H

/* clang-format off */
#undef _mm256_mask_storeu_epi16
#define _mm256_mask_storeu_epi16 emu_mm256_mask_storeu_epi16
#undef _mm256_dpbusd_epi32
#define _mm256_dpbusd_epi32 emu_mm256_dpbusd_epi32
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16 emu_mm256_maskz_loadu_epi16
#undef _mm512_abs_ps
#define _mm512_abs_ps emu_mm512_abs_ps
#undef _mm512_add_epi16
#define _mm512_add_epi16 emu_mm512_add_epi16
#undef _mm512_add_epi32
#define _mm512_add_epi32 emu_mm512_add_epi32
#undef _mm512_add_epi64
#define _mm512_add_epi64 emu_mm512_add_epi64
#undef _mm512_add_epi8
#define _mm512_add_epi8 emu_mm512_add_epi8
#undef _mm512_add_pd
#define _mm512_add_pd emu_mm512_add_pd
#undef _mm512_add_ps
#define _mm512_add_ps emu_mm512_add_ps
#undef _mm512_and_si512
#define _mm512_and_si512 emu_mm512_and_si512
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4 emu_mm512_broadcast_i32x4
#undef _mm512_castpd_ps
#define _mm512_castpd_ps emu_mm512_castpd_ps
#undef _mm512_castps512_ps256
#define _mm512_castps512_ps256 emu_mm512_castps512_ps256
#undef _mm512_castps_pd
#define _mm512_castps_pd emu_mm512_castps_pd
#undef _mm512_castps_si512
#define _mm512_castps_si512 emu_mm512_castps_si512
#undef _mm512_castsi512_ps
#define _mm512_castsi512_ps emu_mm512_castsi512_ps
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask emu_mm512_cmp_ps_mask
#undef _mm512_cmpgt_epi32_mask
#define _mm512_cmpgt_epi32_mask emu_mm512_cmpgt_epi32_mask
#undef _mm512_cmpneq_epi8_mask
#define _mm512_cmpneq_epi8_mask emu_mm512_cmpneq_epi8_mask
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 emu_mm512_cvtepi32_epi8
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps emu_mm512_cvtepi32_ps
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32 emu_mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 emu_mm512_cvtepi8_epi32
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 emu_mm512_cvtepu16_epi32
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh emu_mm512_cvtne2ps_pbh
#undef _mm512_cvtneps_pbh
#define _mm512_cvtneps_pbh emu_mm512_cvtneps_pbh
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emu_mm512_cvtph_ps
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emu_mm512_cvtps_epi32
#undef _mm512_cvtps_pd
#define _mm512_cvtps_pd emu_mm512_cvtps_pd
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emu_mm512_cvtps_ph
#undef _mm512_div_ps
#define _mm512_div_ps emu_mm512_div_ps
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps emu_mm512_dpbf16_ps
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 emu_mm512_dpbusd_epi32
#undef _mm512_dpwssd_epi32
#define _mm512_dpwssd_epi32 emu_mm512_dpwssd_epi32
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emu_mm512_extractf32x8_ps
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps emu_mm512_fmadd_ps
#undef _mm512_fmaddsub_ps
#define _mm512_fmaddsub_ps emu_mm512_fmaddsub_ps
#undef _mm512_fnmadd_ps
#define _mm512_fnmadd_ps emu_mm512_fnmadd_ps
#undef _mm512_load_ps
#define _mm512_load_ps emu_mm512_load_ps
#undef _mm512_load_si512
#define _mm512_load_si512 emu_mm512_load_si512
#undef _mm512_loadu_ps
#define _mm512_loadu_ps emu_mm512_loadu_ps
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 emu_mm512_loadu_si512
#undef _mm512_mask_add_epi32
#define _mm512_mask_add_epi32 emu_mm512_mask_add_epi32
#undef _mm512_mask_blend_epi16
#define _mm512_mask_blend_epi16 emu_mm512_mask_blend_epi16
#undef _mm512_mask_blend_epi32
#define _mm512_mask_blend_epi32 emu_mm512_mask_blend_epi32
#undef _mm512_mask_blend_epi8
#define _mm512_mask_blend_epi8 emu_mm512_mask_blend_epi8
#undef _mm512_mask_mov_ps
#define _mm512_mask_mov_ps emu_mm512_mask_mov_ps
#undef _mm512_mask_storeu_epi32
#define _mm512_mask_storeu_epi32 emu_mm512_mask_storeu_epi32
#undef _mm512_mask_storeu_pd
#define _mm512_mask_storeu_pd emu_mm512_mask_storeu_pd
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps emu_mm512_mask_storeu_ps
#undef _mm512_maskz_div_ps
#define _mm512_maskz_div_ps emu_mm512_maskz_div_ps
#undef _mm512_maskz_loadu_pd
#define _mm512_maskz_loadu_pd emu_mm512_maskz_loadu_pd
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emu_mm512_maskz_loadu_ps
#undef _mm512_maskz_permutexvar_epi8
#define _mm512_maskz_permutexvar_epi8 emu_mm512_maskz_permutexvar_epi8
#undef _mm512_max_epi32
#define _mm512_max_epi32 emu_mm512_max_epi32
#undef _mm512_max_epi64
#define _mm512_max_epi64 emu_mm512_max_epi64
#undef _mm512_max_epu32
#define _mm512_max_epu32 emu_mm512_max_epu32
#undef _mm512_max_ps
#define _mm512_max_ps emu_mm512_max_ps
#undef _mm512_min_epi32
#define _mm512_min_epi32 emu_mm512_min_epi32
#undef _mm512_min_epi64
#define _mm512_min_epi64 emu_mm512_min_epi64
#undef _mm512_min_ps
#define _mm512_min_ps emu_mm512_min_ps
#undef _mm512_movehdup_ps
#define _mm512_movehdup_ps emu_mm512_movehdup_ps
#undef _mm512_moveldup_ps
#define _mm512_moveldup_ps emu_mm512_moveldup_ps
#undef _mm512_mul_epi32
#define _mm512_mul_epi32 emu_mm512_mul_epi32
#undef _mm512_mul_ps
#define _mm512_mul_ps emu_mm512_mul_ps
#undef _mm512_mullo_epi16
#define _mm512_mullo_epi16 emu_mm512_mullo_epi16
#undef _mm512_mullo_epi32
#define _mm512_mullo_epi32 emu_mm512_mullo_epi32
#undef _mm512_or_si512
#define _mm512_or_si512 emu_mm512_or_si512
#undef _mm512_permutex2var_ps
#define _mm512_permutex2var_ps emu_mm512_permutex2var_ps
#undef _mm512_permutexvar_epi16
#define _mm512_permutexvar_epi16 emu_mm512_permutexvar_epi16
#undef _mm512_permutexvar_epi8
#define _mm512_permutexvar_epi8 emu_mm512_permutexvar_epi8
#undef _mm512_reduce_max_epu32
#define _mm512_reduce_max_epu32 emu_mm512_reduce_max_epu32
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps emu_mm512_roundscale_ps
#undef _mm512_scalef_ps
#define _mm512_scalef_ps emu_mm512_scalef_ps
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 emu_mm512_set1_epi32
#undef _mm512_set1_epi64
#define _mm512_set1_epi64 emu_mm512_set1_epi64
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 emu_mm512_set1_epi8
#undef _mm512_set1_ps
#define _mm512_set1_ps emu_mm512_set1_ps
#undef _mm512_set_epi32
#define _mm512_set_epi32 emu_mm512_set_epi32
#undef _mm512_setzero_ps
#define _mm512_setzero_ps emu_mm512_setzero_ps
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 emu_mm512_setzero_si512
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emu_mm512_shuffle_f32x4
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps emu_mm512_shuffle_ps
#undef _mm512_slli_epi16
#define _mm512_slli_epi16 emu_mm512_slli_epi16
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emu_mm512_slli_epi32
#undef _mm512_slli_epi64
#define _mm512_slli_epi64 emu_mm512_slli_epi64
#undef _mm512_sllv_epi32
#define _mm512_sllv_epi32 emu_mm512_sllv_epi32
#undef _mm512_srlv_epi32
#define _mm512_srlv_epi32 emu_mm512_srlv_epi32
#undef _mm512_sllv_epi64
#define _mm512_sllv_epi64 emu_mm512_sllv_epi64
#undef _mm512_sqrt_ps
#define _mm512_sqrt_ps emu_mm512_sqrt_ps
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emu_mm512_srai_epi32
#undef _mm512_srai_epi64
#define _mm512_srai_epi64 emu_mm512_srai_epi64
#undef _mm512_srav_epi32
#define _mm512_srav_epi32 emu_mm512_srav_epi32
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 emu_mm512_srli_epi16
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 emu_mm512_srli_epi32
#undef _mm512_srli_epi64
#define _mm512_srli_epi64 emu_mm512_srli_epi64
#undef _mm512_store_ps
#define _mm512_store_ps emu_mm512_store_ps
#undef _mm512_store_si512
#define _mm512_store_si512 emu_mm512_store_si512
#undef _mm512_storeu_ps
#define _mm512_storeu_ps emu_mm512_storeu_ps
#undef _mm512_storeu_si512
#define _mm512_storeu_si512 emu_mm512_storeu_si512
#undef _mm512_sub_epi32
#define _mm512_sub_epi32 emu_mm512_sub_epi32
#undef _mm512_sub_ps
#define _mm512_sub_ps emu_mm512_sub_ps
#undef _mm512_ternarylogic_epi32
#define _mm512_ternarylogic_epi32 emu_mm512_ternarylogic_epi32
#undef _mm512_test_epi32_mask
#define _mm512_test_epi32_mask emu_mm512_test_epi32_mask
#undef _mm512_unpackhi_pd
#define _mm512_unpackhi_pd emu_mm512_unpackhi_pd
#undef _mm512_unpackhi_ps
#define _mm512_unpackhi_ps emu_mm512_unpackhi_ps
#undef _mm512_unpacklo_pd
#define _mm512_unpacklo_pd emu_mm512_unpacklo_pd
#undef _mm512_unpacklo_ps
#define _mm512_unpacklo_ps emu_mm512_unpacklo_ps
#undef _mm512_xor_si512
#define _mm512_xor_si512 emu_mm512_xor_si512
#undef _mm_dpbusd_epi32
#define _mm_dpbusd_epi32 emu_mm_dpbusd_epi32
#undef _mm_mask_storeu_epi8
#define _mm_mask_storeu_epi8 emu_mm_mask_storeu_epi8
#undef _mm_mask_storeu_ps
#define _mm_mask_storeu_ps emu_mm_mask_storeu_ps
#undef _mm_maskz_loadu_ps
#define _mm_maskz_loadu_ps emu_mm_maskz_loadu_ps
#undef _tile_dpbf16ps
#define _tile_dpbf16ps emu_tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_dpbssd emu_tile_dpbssd
#undef _tile_dpbsud
#define _tile_dpbsud emu_tile_dpbsud
#undef _tile_dpbusd
#define _tile_dpbusd emu_tile_dpbusd
#undef _tile_dpbuud
#define _tile_dpbuud emu_tile_dpbuud
#undef _tile_loadconfig
#define _tile_loadconfig emu_tile_loadconfig
#undef _tile_loadd
#define _tile_loadd emu_tile_loadd
#undef _tile_release
#define _tile_release emu_tile_release
#undef _tile_stored
#define _tile_stored emu_tile_stored
#undef _tile_stream_loadd
#define _tile_stream_loadd emu_tile_stream_loadd
#undef _tile_zero
#define _tile_zero emu_tile_zero
#undef _mm512_set_epi16 /* a macro */
/* clang-format on */

#endif
