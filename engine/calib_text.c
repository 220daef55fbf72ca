/* The default calibration text is linked into the library, so that a bare binary has it: data/calibration.txt, whose
 * sources and licences data/README.md names. LLMQ_CALIBRATION_TEXT is its path at build time. */
#include "engine/calib.h"

__asm__(".pushsection .rodata\n"
        ".hidden llmq_calibration_begin\n"
        ".global llmq_calibration_begin\n"
        "llmq_calibration_begin:\n"
        ".incbin \"" LLMQ_CALIBRATION_TEXT "\"\n"
        ".hidden llmq_calibration_end\n"
        ".global llmq_calibration_end\n"
        "llmq_calibration_end:\n"
        ".byte 0\n"
        ".popsection\n");

extern const char llmq_calibration_begin[] __attribute__((visibility("hidden")));
extern const char llmq_calibration_end[] __attribute__((visibility("hidden")));

const char *calib_default_text(size_t *len_out) {
    *len_out = (size_t)(llmq_calibration_end - llmq_calibration_begin);
    return llmq_calibration_begin;
}
