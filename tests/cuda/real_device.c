/* cuda/emu/control.h where there is no emulator: the same tests on a real GPU. It has one order and one way to add. */
#include "cuda/emu/control.h"

bool emu_here(void) {
    return false;
}
void emu_set_order(emu_order order, uint64_t seed) {
    (void)order, (void)seed;
}
void emu_set_tensor_core(emu_tensor_core model) {
    (void)model;
}
void emu_set_memory(size_t bytes) {
    (void)bytes;
}
size_t emu_memory_used(void) {
    return 0;
}
int64_t emu_replays(void) {
    return 0;
}
int64_t emu_products(void) {
    return 0;
}
void emu_fail_product(void) {}
bool emu_take_report(emu_report *out) {
    (void)out;
    return false;
}
void emu_count(bool on) {
    (void)on;
}
int emu_traffic_list(emu_traffic *out, int most) {
    (void)out, (void)most;
    return 0;
}
