/* Intel's tile registers (AMX), written from its description of the instructions: part of emu512.h.
 *
 * What is stricter than the hardware: a configuration begins at row 0, and every fault says what it is and aborts.
 * Loads and stores touch the rows and bytes that the configuration names and nothing else, so that AddressSanitizer
 * sees what those are: the real ones are out of its sight. */
#ifndef LLMQ_TESTS_TILES_H
#define LLMQ_TESTS_TILES_H

enum { EMU_TILES = 8, EMU_TILE_ROWS = 16, EMU_TILE_BYTES = 64 };

/* What is too long to be inlined in every kernel. */
#define EMU_CALL static __attribute__((noinline, unused))

typedef struct emu_config { /* as memory has it */
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} emu_config;

typedef struct emu_tiles {
    emu_config config; /* palette 0: there is none */
    _Alignas(64) uint8_t tile[EMU_TILES][EMU_TILE_ROWS][EMU_TILE_BYTES];
} emu_tiles;

/* Those of the thread, the same in every kernel's file. */
__attribute__((weak)) _Thread_local emu_tiles emu_tmm;

EMU_CALL __attribute__((noreturn)) void emu_tile_fault(int n, const char *what) {
    fprintf(stderr, "emu512: tile %d: %s\n", n, what);
    abort();
}

/* ---- configuration */

EMU_CALL void _tile_loadconfig(const void *from) {
    emu_config c;
    memcpy(&c, from, sizeof c);
    memset(&emu_tmm, 0, sizeof emu_tmm);
    if (c.palette > 1) emu_tile_fault(0, "a configuration of a palette that is not 1");
    if (c.palette == 0) return;
    if (c.start) emu_tile_fault(0, "a configuration that does not begin at row 0");
    for (int i = 0; i < 14; i++)
        if (c.reserved[i]) emu_tile_fault(0, "a configuration whose reserved bytes are not 0");
    for (int n = 0; n < 16; n++) {
        if (n >= EMU_TILES && (c.rows[n] || c.bytes[n])) emu_tile_fault(n, "configured, and there are only eight");
        if (c.rows[n] > EMU_TILE_ROWS) emu_tile_fault(n, "configured with more than 16 rows");
        if (c.bytes[n] > EMU_TILE_BYTES) emu_tile_fault(n, "configured with more than 64 bytes a row");
        if (!c.rows[n] != !c.bytes[n]) emu_tile_fault(n, "configured with rows of no bytes, or with bytes of no row");
    }
    emu_tmm.config = c;
}
EMU_CALL void _tile_release(void) {
    memset(&emu_tmm, 0, sizeof emu_tmm);
}

/* A tile that may be used. */
EMU uint8_t (*emu_tile(int n))[EMU_TILE_BYTES] {
    if (!emu_tmm.config.palette) emu_tile_fault(n, "used without a configuration");
    if (n < 0 || n >= EMU_TILES) emu_tile_fault(n, "there are only eight");
    if (!emu_tmm.config.rows[n]) emu_tile_fault(n, "used, and the configuration leaves it out");
    return emu_tmm.tile[n];
}

/* ---- memory */

EMU_CALL void _tile_zero(int n) {
    memset(emu_tile(n), 0, sizeof emu_tmm.tile[n]);
}
EMU_CALL void _tile_loadd(int n, const void *from, int64_t stride) {
    uint8_t(*row)[EMU_TILE_BYTES] = emu_tile(n);
    _tile_zero(n);
    for (int r = 0; r < emu_tmm.config.rows[n]; r++)
        memcpy(row[r], (const char *)from + r * stride, emu_tmm.config.bytes[n]);
}
/* Another hint for the caches. */
EMU_CALL void _tile_stream_loadd(int n, const void *from, int64_t stride) {
    _tile_loadd(n, from, stride);
}
EMU_CALL void _tile_stored(int n, void *to, int64_t stride) {
    uint8_t(*row)[EMU_TILE_BYTES] = emu_tile(n);
    for (int r = 0; r < emu_tmm.config.rows[n]; r++) memcpy((char *)to + r * stride, row[r], emu_tmm.config.bytes[n]);
}

/* ---- products: sums (m rows, n words) += a (m, k words) b (k, n words). A word of b is several factors of one column
 */

EMU void emu_tile_check(int sum, int a, int b) {
    const emu_config *c = &emu_tmm.config;
    emu_tile(sum), emu_tile(a), emu_tile(b);
    if (sum == a || sum == b || a == b) emu_tile_fault(sum, "a product of tiles that are not three");
    if (c->bytes[sum] % 4 || c->bytes[a] % 4) emu_tile_fault(sum, "a product of rows that are no whole words");
    if (c->rows[sum] != c->rows[a] || c->bytes[sum] != c->bytes[b] || c->bytes[a] != 4 * c->rows[b])
        emu_tile_fault(sum, "a product of tiles whose shapes do not fit each other");
}

/* Row r of tile n as two vectors; what is behind the configured bytes is 0, whatever was computed there. */
EMU void emu_row_load(int n, int r, emu512 *v) {
    memcpy(v, emu_tmm.tile[n][r], sizeof *v);
}
EMU void emu_row_store(int n, int r, const emu512 *v) {
    memcpy(emu_tmm.tile[n][r], v, emu_tmm.config.bytes[n]);
}

/* The sums of the even factors and those of the odd ones are kept apart to the end. Subnormal inputs and results are 0
 * and rounding is to nearest even, whatever the thread has set: the processor is told so, and the compiler that all
 * of it lies in between. */
EMU_CALL void _tile_dpbf16ps(int sum, int a, int b) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    unsigned before = _mm_getcsr();
    emu_tile_check(sum, a, b);
    _mm_setcsr(_MM_MASK_MASK | _MM_FLUSH_ZERO_ON | 0x40 /* inputs too */);
    __asm__ volatile("" : : : "memory");
    for (int m = 0; m < emu_tmm.config.rows[sum]; m++) {
        emu512 even = {.si = {0}}, odd = {.si = {0}}, x, y, s;
        emu_row_load(a, m, &x);
        for (int k = 0; k < emu_tmm.config.rows[b]; k++) {
            __m256 x0 = (__m256)_mm256_set1_epi32((int)(x.u[k] << 16)),
                   x1 = (__m256)_mm256_set1_epi32((int)(x.u[k] & 0xffff0000));
            emu_row_load(b, k, &y);
            for (int h = 0; h < 2; h++) {
                even.hf[h] = _mm256_fmadd_ps(x0, (__m256)_mm256_slli_epi32(y.hi[h], 16), even.hf[h]);
                odd.hf[h] = _mm256_fmadd_ps(x1, (__m256)_mm256_and_si256(y.hi[h], high), odd.hf[h]);
            }
        }
        emu_row_load(sum, m, &s);
        for (int h = 0; h < 2; h++) s.hf[h] = _mm256_add_ps(s.hf[h], _mm256_add_ps(even.hf[h], odd.hf[h]));
        emu_row_store(sum, m, &s);
    }
    __asm__ volatile("" : : : "memory");
    _mm_setcsr(before);
}

/* Four products of bytes a word, each signed or not; sums wrap. */
EMU void emu_tile_bytes(int sum, int a, int b, bool a_signed, bool b_signed) {
    emu_tile_check(sum, a, b);
    for (int m = 0; m < emu_tmm.config.rows[sum]; m++) {
        emu512 x, y, s;
        emu_row_load(a, m, &x);
        emu_row_load(sum, m, &s);
        for (int k = 0; k < emu_tmm.config.rows[b]; k++) {
            emu_row_load(b, k, &y);
            for (int h = 0; h < 2; h++)
                s.hi[h] = emu_dot4(s.hi[h], _mm256_set1_epi32(x.i[k]), y.hi[h], a_signed, b_signed);
        }
        emu_row_store(sum, m, &s);
    }
}
EMU_CALL void _tile_dpbssd(int sum, int a, int b) {
    emu_tile_bytes(sum, a, b, true, true);
}
EMU_CALL void _tile_dpbsud(int sum, int a, int b) {
    emu_tile_bytes(sum, a, b, true, false);
}
EMU_CALL void _tile_dpbusd(int sum, int a, int b) {
    emu_tile_bytes(sum, a, b, false, true);
}
EMU_CALL void _tile_dpbuud(int sum, int a, int b) {
    emu_tile_bytes(sum, a, b, false, false);
}

#endif
