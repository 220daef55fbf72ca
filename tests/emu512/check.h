/* What the tests of the emulation share: random operands, formulas of bf16, the end of memory, calls that must fail. */
#ifndef LLMQ_TESTS_EMU512_CHECK_H
#define LLMQ_TESTS_EMU512_CHECK_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */
#include <immintrin.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

typedef union vec {
    __m512 ps;
    __m512d pd;
    __m512i si;
    __m512bh bh;
    __m256 ps256;
    __m256i si256;
    __m256bh bh256;
    __m128 ps128;
    __m128i si128;
    float f[16];
    double d[8];
    int8_t b[64];
    uint8_t ub[64];
    int16_t h[32];
    uint16_t uh[32];
    int32_t i[16];
    uint32_t u[16];
    int64_t q[8];
    uint64_t uq[8];
} vec;

static uint64_t rng_state = 1;
static inline uint32_t rng(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 32);
}

/* Zeros, subnormals, the least normal, ones and ties, the largest, infinities, NaN (quiet; of f16 and bf16 in halves);
 * ends of the integers. */
static const uint32_t special[] = {0,          0x80000000, 1,          0x807fffff, 0x00800000, 0x80800001, 0x3f800000,
                                   0x3f000000, 0xc0200000, 0x3f808000, 0x3f818000, 0x7f7fffff, 0xff7fffff, 0x7f800000,
                                   0xff800000, 0x7fc00000, 0xffc12345, 0x7fffffff, 0xffffffff, 0x00010001, 0x80018001,
                                   0x7f807f80, 0x477fefff, 0x477ff000, 0x33000000, 0x33000001, 0x387fe000};

static inline vec any(void) {
    vec v;
    for (int j = 0; j < 16; j++) {
        uint32_t bits = rng(), pick = rng() >> 8;
        if (pick % 4 == 0) bits = special[pick / 4 % (sizeof special / sizeof *special)];
        if (pick % 4 == 1) bits = (bits & 0x807fffff) | (100 + pick / 4 % 50) << 23; /* floats around 1 */
        v.u[j] = bits;
    }
    for (int j = 0; j < 16; j++) /* signalling NaN: nobody computes with them */
        if (isnan(v.f[j])) v.u[j] |= 0x00400000;
    return v;
}

static inline bool same_bits(const void *a, const void *b, size_t n) {
    return memcmp(a, b, n) == 0;
}
static inline bool same_f(const float *a, const float *b) {
    return (isnan(*a) && isnan(*b)) || same_bits(a, b, 4);
}
static inline bool same_d(const double *a, const double *b) {
    return (isnan(*a) && isnan(*b)) || same_bits(a, b, 8);
}

/* ---- bf16: subnormal numbers count as 0 */

static inline float from_bf16(uint16_t x) {
    vec v = {.u = {(uint32_t)x << 16}};
    return v.f[0];
}
static inline float flush(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

/* ---- memory and faults */

/* The end of memory: what follows it cannot be touched. */
static inline int page_make(void **state) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, page, PROT_NONE) != 0) return -1;
    *state = p + page;
    return 0;
}

/* Does f(what) end the process? */
static inline bool dies(void (*f)(int), int what) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(STDERR_FILENO);
        for (int i = 0; i < 4; i++) signal((int[]){SIGSEGV, SIGBUS, SIGILL, SIGABRT}[i], SIG_DFL); /* cmocka goes on */
        f(what);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#endif
