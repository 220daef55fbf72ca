/* Blocks run one after the other, their threads as fibers that run until they wait. Lanes of a warp are not in step:
 * they meet where the source says so and nowhere else (Volta and later promise no more). */
#include "cuda/emu/block.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace emu {

block now;

/* ---- settings and the fault record */

static emu_order order = EMU_FORWARD;
static uint64_t random_state = 1;
static emu_report report;

static const char *const fault_names[EMU_FAULTS] = {
    "none",         "race",    "bounds",    "misaligned",    "uninitialized", "write to an input",
    "missing wait", "barrier", "warp mask", "diverged warp", "deadlock",      "argument",
    "launch"};

uint64_t random_bits() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

static void copy_text(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from ? from : "?");
}

static const char *short_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void record(emu_fault fault, int number, site at, other_side other, const char *format, va_list args) {
    report = {};
    report.fault = fault;
    copy_text(report.kernel, sizeof report.kernel, now.kernel);
    report.block[0] = static_cast<int>(now.index.x);
    report.block[1] = static_cast<int>(now.index.y);
    report.block[2] = static_cast<int>(now.index.z);
    report.thread = number;
    copy_text(report.file, sizeof report.file, short_name(at.file));
    report.line = at.line;
    report.other_thread = other.thread;
    report.other_line = other.line;
    int used = snprintf(report.text, sizeof report.text,
                        "%s in %.60s, block (%d,%d,%d) thread %d at %s:%d: ", fault_names[fault], report.kernel,
                        report.block[0], report.block[1], report.block[2], number, report.file, at.line);
    vsnprintf(report.text + used, sizeof report.text - static_cast<size_t>(used), format, args);
}

/* A fault in a thread leaves all fibers where they are; nothing in a kernel needs its destructor. */
void stop(emu_fault fault, site at, other_side other, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(fault, now.running->number, at, other, format, args);
    va_end(args);
    fiber_yield(true);
    abort(); /* nobody resumes it */
}

/* The scheduler's own findings, blamed on a thread. */
static void fail_thread(emu_fault fault, const thread &t, const thread *other, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void fail_thread(emu_fault fault, const thread &t, const thread *other, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(fault, t.number, t.at, other ? other_side{other->number, other->at.line} : other_side(), format, args);
    va_end(args);
}

void fail_lane(const warp_lanes &lanes, int lane, emu_fault fault, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(fault, lanes.who[lane]->number, lanes.who[lane]->at, other_side(), format, args);
    va_end(args);
}

static void fail_here(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail_here(const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(EMU_LAUNCH, -1, site("launch", 0), other_side(), format, args);
    va_end(args);
}

void fail_launch(const char *kernel, const char *text) {
    now.kernel = kernel;
    now.index = dim3(0, 0, 0);
    fail_here("%s", text);
}

static bool failed() {
    return report.fault != EMU_NONE;
}

/* ---- waiting */

static void wait_as(waits_for state, site at) {
    thread &t = *now.running;
    t.state = state;
    t.at = at;
    fiber_yield(false);
}

void maybe_yield() {
    if (order == EMU_SHUFFLED && now.running && (random_bits() & 15) == 0) wait_as(waits_for::nothing, now.running->at);
}

/* All that one of them has seen, and what it did itself, has been seen by all of them. */
static void exchange(thread *const *who, int n) {
    std::vector<uint16_t> seen(static_cast<size_t>(now.n_threads), 0);
    for (int i = 0; i < n; i++) {
        if (who[i]->seen_any)
            for (size_t k = 0; k < seen.size(); k++) seen[k] = std::max(seen[k], who[i]->seen[k]);
    }
    for (int i = 0; i < n; i++) {
        auto number = static_cast<size_t>(who[i]->number);
        seen[number] = std::max(seen[number], who[i]->clock);
    }
    for (int i = 0; i < n; i++) {
        who[i]->seen = seen;
        who[i]->seen_any = true;
        who[i]->clock++;
    }
}

static void start_epoch() {
    now.epoch++;
    for (int i = 0; i < now.n_threads; i++) {
        thread &t = *now.threads[static_cast<size_t>(i)];
        t.clock = 1;
        if (t.seen_any) std::fill(t.seen.begin(), t.seen.end(), uint16_t{0});
        t.seen_any = false;
    }
}

/* ---- block barriers */

/* Opens barrier `id` if all that it needs are there. */
static void barrier_try(int id, int count) {
    if (now.at_barrier[id] < (count ? count : now.n_threads - now.n_left) || !now.at_barrier[id]) return;
    std::vector<thread *> there;
    for (int i = 0; i < now.n_threads; i++) {
        thread *t = now.threads[static_cast<size_t>(i)].get();
        if (t->state == waits_for::barrier && t->barrier == id) there.push_back(t);
    }
    thread *first = there[0];
    for (thread *t : there) {
        if (t->barrier_threads != first->barrier_threads)
            return fail_thread(EMU_BARRIER, *t, first, "threads disagree about how many take part in a barrier");
        if (!count && (t->at.line != first->at.line || t->at.file != first->at.file))
            return fail_thread(EMU_BARRIER, *t, first, "the threads of a block wait at different barriers");
    }
    if (!count && now.n_left > 0)
        return fail_thread(EMU_BARRIER, *first, nullptr, "threads of the block have left before this barrier");
    if (count)
        exchange(there.data(), static_cast<int>(there.size()));
    else
        start_epoch();
    for (thread *t : there) t->state = waits_for::nothing;
    now.at_barrier[id] = 0;
}

void barrier_meet(int id, int count, site at) {
    thread &t = *now.running;
    if (id < 0 || id > 15) stop(EMU_ARGUMENT, at, {}, "barriers are 0..15");
    if (count % 32 || count > now.n_threads) stop(EMU_ARGUMENT, at, {}, "a barrier counts whole warps of its block");
    t.barrier = id;
    t.barrier_threads = count;
    t.state = waits_for::barrier;
    t.at = at;
    now.at_barrier[id]++;
    barrier_try(id, count);
    if (t.state != waits_for::nothing || failed()) fiber_yield(false);
}

/* ---- warps */

static thread *lane_of(int warp, int lane) {
    int number = warp * 32 + lane;
    return number < now.n_threads ? now.threads[static_cast<size_t>(number)].get() : nullptr;
}

/* Whether another lane that waits may take part in what t waits for; if it should and does not, it is a fault. */
static bool same_op(const thread &t, const thread &other) {
    if (!(other.mask >> t.lane() & 1)) return false; /* at an earlier one, without this lane */
    if (other.op != t.op || other.at.line != t.at.line || other.at.file != t.at.file)
        fail_thread(EMU_DIVERGED, t, &other, "lanes of one mask are at %s and %s, line %d", t.op->name, other.op->name,
                    other.at.line);
    else if (other.mask != t.mask)
        fail_thread(EMU_MASK, t, &other, "lanes name different masks");
    return !failed();
}

/* Executes the operation that `t` waits for if its lanes are all there. */
static void warp_try(thread &t) {
    unsigned waiting = now.at_op[t.warp()] & t.mask, others = waiting & ~(1u << t.lane());
    if (others && !same_op(t, *lane_of(t.warp(), __builtin_ctz(others)))) return;
    if (t.op->whole_warp && now.gone[t.warp()])
        return fail_thread(EMU_MASK, t, nullptr, "%s needs all 32 lanes, and some have left", t.op->name);
    unsigned alive = t.mask & ~now.gone[t.warp()];
    if (waiting != alive) return; /* some may still come */
    warp_lanes lanes = {alive, {}, {}, t.at};
    thread *who[32];
    int n = 0;
    for (int lane = 0; lane < 32; lane++) {
        if (!(alive >> lane & 1)) continue;
        thread *other = lane_of(t.warp(), lane);
        if (!same_op(t, *other)) return;
        lanes.operands[lane] = other->operands;
        lanes.who[lane] = who[n++] = other;
    }
    if (t.op->execute) t.op->execute(lanes);
    if (failed()) return;
    if (t.op->memory) exchange(who, n);
    for (int i = 0; i < n; i++) who[i]->state = waits_for::nothing;
    now.at_op[t.warp()] &= ~lanes.mask;
}

void warp_meet(const warp_op &op, unsigned mask, void *operands, site at) {
    maybe_yield();
    thread &t = *now.running;
    if (!(mask >> t.lane() & 1)) stop(EMU_MASK, at, {}, "%s: the caller is not in its own mask", op.name);
    t.op = &op;
    t.mask = mask;
    t.operands = operands;
    t.state = waits_for::warp;
    t.at = at;
    now.at_op[t.warp()] |= 1u << t.lane();
    warp_try(t);
    if (t.state != waits_for::nothing || failed()) fiber_yield(false);
}

/* ---- threads and their order */

static void leave(thread &t) {
    if (!t.copies.empty())
        stop(EMU_MISSING_WAIT, t.copies.front().at, {}, "a thread leaves with a cp.async that it never waited for");
    t.state = waits_for::left;
    now.n_left++;
    now.gone[t.warp()] |= 1u << t.lane();
    for (int lane = 0; lane < 32 && now.at_op[t.warp()] && !failed(); lane++) { /* others may have waited for it only */
        thread *other = lane_of(t.warp(), lane);
        if (other && other->state == waits_for::warp && (other->mask >> t.lane() & 1)) warp_try(*other);
    }
    if (!failed()) barrier_try(0, 0);
}

static void thread_main() {
    (*now.body)();
    leave(*now.running);
    fiber_yield(true);
}

static std::vector<int> make_order(int n, bool of_threads) {
    std::vector<int> list(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) list[static_cast<size_t>(i)] = i;
    if (order == EMU_BACKWARD) std::reverse(list.begin(), list.end());
    if (order == EMU_INTERLEAVED && of_threads)
        std::stable_sort(list.begin(), list.end(), [](int a, int b) { return (a & 31) < (b & 31); });
    if (order == EMU_SHUFFLED)
        for (size_t i = list.size(); i > 1; i--) std::swap(list[i - 1], list[random_bits() % i]);
    return list;
}

static void report_deadlock() {
    const thread *culprit = nullptr;
    std::string text = "nobody can run:";
    site last("", -1);
    int listed = 0;
    for (int i = 0; i < now.n_threads; i++) {
        const thread &t = *now.threads[static_cast<size_t>(i)];
        if (t.state == waits_for::left || t.state == waits_for::nothing) continue;
        if (!culprit || (culprit->state == waits_for::barrier && t.state == waits_for::warp)) culprit = &t;
        if ((t.at.line == last.line && t.at.file == last.file) || listed++ == 4) continue;
        last = t.at;
        text += " thread " + std::to_string(t.number) + " waits at " +
                (t.state == waits_for::barrier ? "a barrier" : t.op->name) + ", line " + std::to_string(t.at.line) +
                ";";
    }
    if (culprit) fail_thread(EMU_DEADLOCK, *culprit, nullptr, "%s", text.c_str());
}

static void run_threads() {
    std::vector<int> list = make_order(now.n_threads, true);
    while (now.n_left < now.n_threads && !failed()) {
        bool ran = false;
        if (order == EMU_SHUFFLED) list = make_order(now.n_threads, true);
        for (int number : list) {
            thread &t = *now.threads[static_cast<size_t>(number)];
            if (t.state != waits_for::nothing) continue;
            ran = true;
            now.running = &t;
            fiber_resume(t.stack);
            now.running = nullptr;
            if (failed()) return;
        }
        if (!ran) report_deadlock();
    }
}

/* ---- blocks */

static void start_threads() {
    now.n_threads = static_cast<int>(now.size.x * now.size.y * now.size.z);
    now.n_left = 0;
    now.epoch = 0;
    std::fill(std::begin(now.at_barrier), std::end(now.at_barrier), 0);
    std::fill(std::begin(now.at_op), std::end(now.at_op), 0u);
    for (int warp = 0; warp < 32; warp++) {
        int lanes = std::clamp(now.n_threads - 32 * warp, 0, 32);
        now.gone[warp] = lanes == 32 ? 0 : ~0u << lanes;
    }
    while (static_cast<int>(now.threads.size()) < now.n_threads) {
        now.threads.push_back(std::make_unique<thread>());
        fiber_create(now.threads.back()->stack);
    }
    for (int i = 0; i < now.n_threads; i++) {
        thread &t = *now.threads[static_cast<size_t>(i)];
        auto u = static_cast<unsigned>(i);
        fiber_start(t.stack, thread_main);
        t.index = dim3(u % now.size.x, u / now.size.x % now.size.y, u / now.size.x / now.size.y);
        t.number = i;
        t.state = waits_for::nothing;
        t.clock = 1;
        t.seen.assign(static_cast<size_t>(now.n_threads), 0);
        t.seen_any = false;
        t.copies.clear();
        t.commits = 0;
    }
}

buffer *shared_slice(const void *key, const char *name, size_t bytes, size_t align) {
    std::unique_ptr<buffer> &slot = now.shared[key];
    if (!slot) {
        slot = std::make_unique<buffer>();
        slot->name = name;
        slot->shared = true;
        slot->bytes = bytes;
        buffer_memory(*slot);
    }
    if (std::find(now.shared_live.begin(), now.shared_live.end(), slot.get()) == now.shared_live.end()) {
        now.shared_used = (now.shared_used + align - 1) / align * align;
        slot->address = now.shared_used;
        now.shared_used += bytes;
        now.shared_live.push_back(slot.get());
        shared_reset(slot.get());
        if (now.shared_used > now.shared_limit)
            stop(EMU_LAUNCH, site(), {}, "the block declares more shared memory than there is");
    }
    return slot.get();
}

static void run_block(dim3 index) {
    static uint32_t runs;
    now.index = index;
    now.run = ++runs;
    now.shared_live.clear();
    now.shared_used = (now.dynamic.bytes + 255) / 256 * 256;
    if (now.dynamic.bytes) shared_reset(&now.dynamic);
    start_threads();
    run_threads();
    if (counting) traffic_flush();
}

static constexpr size_t most_static = 48 << 10, most_shared = 99 << 10; /* what every target has (ptx.md 7) */

static std::map<std::string, size_t> allowed; /* by kernel: as the attribute is, for the rest of the process */

void allow_shared(const char *kernel, size_t bytes) {
    if (bytes > most_shared) return fail_launch(kernel, "more dynamic shared memory than every target has");
    allowed[kernel] = bytes;
}

void launch(const char *kernel, dim3 grid, dim3 threads, size_t dynamic_shared, const std::function<void()> &body) {
    if (failed()) return;
    now.kernel = kernel;
    now.index = dim3(0, 0, 0);
    uint64_t count = uint64_t{1} * threads.x * threads.y * threads.z;
    if (count == 0 || count > 1024 || threads.z > 64) return fail_launch(kernel, "a block has 1 to 1024 threads");
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return fail_launch(kernel, "a grid has 1 to 2^31 - 1, 65535, 65535 blocks");
    const auto more = allowed.find(kernel);
    const bool is_allowed = more != allowed.end() && dynamic_shared <= more->second;
    if (dynamic_shared > most_static && !is_allowed)
        return fail_launch(kernel, "more than 48 KB of dynamic shared memory without ALLOW_SHARED");
    now.grid = grid;
    now.size = threads;
    now.body = &body;
    now.shared_limit = is_allowed ? most_shared : most_static;
    now.dynamic.name = "dynamic shared memory";
    now.dynamic.shared = true;
    now.dynamic.bytes = dynamic_shared;
    now.dynamic.touched.clear();
    buffer_memory(now.dynamic);
    int n_blocks = static_cast<int>(grid.x * grid.y * grid.z);
    static uint32_t launches_run = 0;
    now.launch_first_run = launches_run + 1;
    for (int i : make_order(n_blocks, false)) {
        auto u = static_cast<unsigned>(i);
        run_block(dim3(u % grid.x, u / grid.x % grid.y, u / grid.x / grid.y));
        launches_run = now.run;
        if (failed()) break;
    }
}

/* ---- recordings */

static const void *recorded_stream;
static launches queued;

const void *recording_on() {
    return recorded_stream;
}

void record_begin(const void *stream) {
    recorded_stream = stream;
    queued.clear();
}

launches record_end() {
    recorded_stream = nullptr;
    return std::move(queued);
}

void queue(const void *stream, const char *kernel, dim3 grid, dim3 threads, size_t dynamic_shared,
           const std::function<void()> &body) {
    if (!recorded_stream) return launch(kernel, grid, threads, dynamic_shared, body);
    if (stream != recorded_stream) return fail_launch(kernel, "a launch on one stream while another is recorded");
    queued.push_back({kernel, grid, threads, dynamic_shared, body});
}

} // namespace emu

/* ---- control.h */

bool emu_here(void) {
    return true;
}

void emu_set_order(emu_order order, uint64_t seed) {
    emu::order = order;
    emu::random_state = seed * 2 + 1;
}

bool emu_take_report(emu_report *out) {
    bool had = emu::failed();
    if (out) *out = emu::report;
    emu::report = {};
    return had;
}

const char *emu_fault_name(emu_fault fault) {
    return emu::fault_names[fault];
}
