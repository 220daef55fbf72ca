/* Checks of every access: bounds, alignment, contents, and races by happens-before.
 *
 * Two accesses of different threads, at least one a write and not both atomic, need a barrier between them, whatever
 * order they happened to run in. Each thread has a clock that __syncwarp and named barriers advance; their participants
 * take over from each other what they have seen (vector clocks). __syncthreads starts an epoch in which all has been
 * seen. Blocks of one launch never see each other. */
#include "cuda/emu/memory.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "cuda/emu/block.h"

namespace emu {

static const char *name_of(access kind) {
    return kind == access::read ? "read" : kind == access::write ? "write" : "atomic operation";
}

/* ---- buffers */

static constexpr uint8_t pattern = 0xff;             /* NaN in every float format */
static std::map<uint64_t, buffer *> registry;        /* by host address */
static std::vector<std::unique_ptr<buffer>> created; /* for ever: pointers that outlive their buffer are recognized */

void buffer_memory(buffer &b) {
    b.owner = std::make_unique<uint8_t[]>(b.bytes + 256);
    auto address = reinterpret_cast<uintptr_t>(b.owner.get());
    b.data = b.owner.get() + (256 - address % 256) % 256;
    memset(b.data, pattern, b.bytes);
    b.state.assign(b.bytes, 0);
}

buffer *memory_create(const char *name, size_t bytes) {
    static uint64_t next_address = uint64_t{1} << 32;
    created.push_back(std::make_unique<buffer>());
    buffer *b = created.back().get();
    b->name = name;
    b->bytes = bytes;
    buffer_memory(*b);
    b->address = next_address;
    next_address += (bytes / 256 + 2) * 256;
    registry[reinterpret_cast<uint64_t>(b->data)] = b;
    return b;
}

void memory_destroy(buffer *b) {
    registry.erase(reinterpret_cast<uint64_t>(b->data));
    b->data = nullptr;
    b->owner.reset();
    b->dead = true;
    b->state = {};
    b->touched = {};
}

buffer *memory_find(const void *host) {
    auto address = reinterpret_cast<uint64_t>(host);
    auto after = registry.upper_bound(address);
    if (after == registry.begin()) return nullptr;
    buffer *b = std::prev(after)->second;
    return address - reinterpret_cast<uint64_t>(b->data) <= b->bytes ? b : nullptr;
}

size_t memory_used() {
    size_t sum = 0;
    for (const auto &entry : registry) sum += entry.second->bytes;
    return sum;
}

void shared_reset(buffer *b) {
    memset(b->data, pattern, b->bytes);
    std::fill(b->state.begin(), b->state.end(), uint8_t{0});
}

/* ---- races */

/* Files by a small number, so that a stamp can say where in 30 bits: 10 of file, 20 of line. */
static const char *files[1024];
static unsigned n_files;

static uint32_t line_of(site at) {
    static unsigned last;
    if (last >= n_files || files[last] != at.file) {
        for (last = 0; last < n_files && files[last] != at.file; last++) {
        }
        if (last == n_files && n_files < 1023) files[n_files++] = at.file;
    }
    return last << 20 | (static_cast<uint32_t>(at.line) & 0xfffff);
}

static stamp stamp_now(access kind, site at, bool copied) {
    stamp s;
    s.run = now.run;
    s.epoch = now.epoch;
    s.thread = static_cast<uint16_t>(now.running->number);
    s.clock = now.running->clock;
    s.line = line_of(at);
    s.atomic = kind == access::atomic;
    s.copied = copied;
    return s;
}

/* Did what s says happen before anything that the running thread does now? */
static bool before_now(const buffer *b, const stamp &s) {
    if (s.run != now.run) return b->shared || s.run < now.launch_first_run;
    if (s.epoch < now.epoch || s.thread == now.running->number) return true;
    return now.running->seen[s.thread] >= s.clock;
}

[[noreturn]] static void fail_race(const buffer *b, int64_t byte, access kind, site at, const stamp &s, bool wrote) {
    bool other_block = s.run != now.run;
    int other_line = static_cast<int>(s.line & 0xfffff);
    const char *other_file = files[s.line >> 20] ? files[s.line >> 20] : "?";
    const char *cure = other_block ? "blocks of one launch are not ordered: use another launch"
                       : s.copied  ? "a finished cp.async is seen by its own thread only: barrier after the wait"
                                   : "no barrier lies between them";
    stop(EMU_RACE, at, {s.thread, other_line}, "%s of byte %lld of %s races with the %s of thread %d%s at %s:%d; %s",
         name_of(kind), static_cast<long long>(byte), b->name.c_str(),
         s.atomic ? "atomic operation"
         : wrote  ? "write"
                  : "read",
         s.thread, other_block ? " of another block" : "", other_file, other_line, cure);
}

static bool same_warp(const stamp &a, const stamp &b) {
    return a.run == b.run && a.thread / 32 == b.thread / 32;
}

/* Two slots: readers that the new one has seen give way. Of three or more, two of different warps stay, since a writer
 * can be in step with one warp only (unless a named barrier joins some warps: then a race may stay unseen). */
static void remember_reader(const buffer *b, history &h, const stamp &s) {
    for (stamp &slot : h.reader) {
        if (slot.run == 0 || (slot.run == s.run && slot.thread == s.thread) || before_now(b, slot)) {
            slot = s;
            return;
        }
    }
    if (same_warp(h.reader[0], h.reader[1]) && !same_warp(h.reader[0], s)) h.reader[1] = s;
}

static void track(buffer *b, int64_t offset, unsigned size, access kind, site at, bool copied) {
    if (b->touched.empty()) b->touched.resize(b->bytes);
    stamp s = stamp_now(kind, at, copied);
    for (int64_t i = offset; i < offset + size; i++) {
        history &h = b->touched[static_cast<size_t>(i)];
        if (h.writer.run && !(s.atomic && h.writer.atomic) && !before_now(b, h.writer))
            fail_race(b, i, kind, at, h.writer, true);
        if (kind == access::read) {
            remember_reader(b, h, s);
            continue;
        }
        for (const stamp &reader : h.reader)
            if (reader.run && !before_now(b, reader)) fail_race(b, i, kind, at, reader, false);
        h.writer = s;
        h.reader[0] = h.reader[1] = stamp();
    }
}

/* ---- one access */

static void check_place(const buffer *b, int64_t offset, unsigned size, access kind, site at) {
    if (!b) stop(EMU_BOUNDS, at, {}, "%s through a null pointer", name_of(kind));
    if (b->dead) stop(EMU_BOUNDS, at, {}, "%s of %s, which has been freed", name_of(kind), b->name.c_str());
    if (offset < 0 || static_cast<uint64_t>(offset) + size > b->bytes)
        stop(EMU_BOUNDS, at, {}, "%s of %u bytes at byte %lld of %s, which has %zu", name_of(kind), size,
             static_cast<long long>(offset), b->name.c_str(), b->bytes);
    if ((b->address + static_cast<uint64_t>(offset)) % size)
        stop(EMU_MISALIGNED, at, {}, "%s of %u bytes at byte %lld of %s: not a multiple of its size", name_of(kind),
             size, static_cast<long long>(offset), b->name.c_str());
}

/* All states of [offset, +size) together, by or and by and. */
static void states(const buffer *b, int64_t offset, unsigned size, uint8_t &any, uint8_t &all) {
    any = 0, all = 0xff;
    for (unsigned i = 0; i < size; i++) {
        any |= b->state[static_cast<size_t>(offset) + i];
        all &= b->state[static_cast<size_t>(offset) + i];
    }
}

/* The usual case, a word at a time. */
static bool all_written(const buffer *b, int64_t offset, unsigned size) {
    static const uint8_t written[16] = {WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN,
                                        WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN, WRITTEN};
    return memcmp(b->state.data() + offset, written, size) == 0;
}

static void check_contents(const buffer *b, int64_t offset, unsigned size, access kind, site at) {
    if (all_written(b, offset, size) && (kind == access::read || !b->read_only)) return;
    uint8_t any, all;
    states(b, offset, size, any, all);
    auto byte = static_cast<long long>(offset);
    if (any & PENDING)
        stop(EMU_MISSING_WAIT, at, {},
             "%s of byte %lld of %s, where a cp.async is in flight: no cp_async_wait covers it", name_of(kind), byte,
             b->name.c_str());
    if (kind != access::read && any >= SOURCE)
        stop(EMU_MISSING_WAIT, at, {}, "%s of byte %lld of %s, which a cp.async in flight is still reading",
             name_of(kind), byte, b->name.c_str());
    if (kind != access::write && !(all & WRITTEN))
        stop(EMU_UNINITIALIZED, at, {}, "%s of %u bytes at byte %lld of %s, which nobody has written", name_of(kind),
             size, byte, b->name.c_str());
    if (kind != access::read && b->read_only)
        stop(EMU_READ_ONLY, at, {}, "%s of byte %lld of %s, which is an input", name_of(kind), byte, b->name.c_str());
}

static void mark(buffer *b, int64_t offset, unsigned size, uint8_t set, uint8_t clear) {
    for (unsigned i = 0; i < size; i++) {
        uint8_t &s = b->state[static_cast<size_t>(offset) + i];
        s = static_cast<uint8_t>((s & ~clear) | set);
    }
}

/* Copies that read these bytes: one more, or one less. */
static void count_sources(buffer *b, int64_t offset, unsigned size, int by) {
    for (unsigned i = 0; i < size; i++) b->state[static_cast<size_t>(offset) + i] += static_cast<uint8_t>(by * SOURCE);
}

void memory_access(buffer *b, int64_t offset, unsigned size, access kind, site at) {
    maybe_yield();
    check_place(b, offset, size, kind, at);
    check_contents(b, offset, size, kind, at);
    if (!b->read_only) track(b, offset, size, kind, at, false);
    if (kind != access::read) mark(b, offset, size, WRITTEN, 0);
    if (counting) traffic_note(b, b->address + static_cast<uint64_t>(offset), size, kind != access::read, at);
}

/* ---- cp.async
 * The source is read as late as possible, when the copy is waited for; until then both ends are out of bounds for
 * everybody, so that what an early copy would have done cannot be told from it. */

void copy_issue(buffer *to, int64_t to_offset, buffer *from, int64_t from_offset, unsigned size, unsigned filled,
                bool l2_only, site at) {
    maybe_yield();
    if (l2_only && size != 16) stop(EMU_ARGUMENT, at, {}, "cp.async.cg copies 16 bytes");
    if (filled > size) stop(EMU_ARGUMENT, at, {}, "cp.async of %u bytes out of %u", filled, size);
    check_place(to, to_offset, size, access::write, at);
    check_contents(to, to_offset, size, access::write, at);
    track(to, to_offset, size, access::write, at, true);
    memset(to->data + to_offset, pattern, size);
    mark(to, to_offset, size, PENDING, 0);
    /* Nobody documents that the pointer of an empty copy is not followed: it has to be good for a byte. */
    unsigned reach = filled ? filled : 1;
    if (!from) stop(EMU_BOUNDS, at, {}, "cp.async from a null pointer");
    if ((from->address + static_cast<uint64_t>(from_offset)) % size)
        stop(EMU_MISALIGNED, at, {}, "cp.async of %u bytes from byte %lld of %s: not a multiple of its size", size,
             static_cast<long long>(from_offset), from->name.c_str());
    for (unsigned i = 0; i < reach; i++) check_place(from, from_offset + i, 1, access::read, at);
    for (unsigned i = 0; i < filled; i++) check_contents(from, from_offset + i, 1, access::read, at);
    if (!from->read_only && filled) {
        track(from, from_offset, filled, access::read, at, false);
        count_sources(from, from_offset, filled, 1);
    }
    if (counting) {
        traffic_note(from, from->address + static_cast<uint64_t>(from_offset), size, false, at);
        traffic_note(to, to->address + static_cast<uint64_t>(to_offset), size, true, at);
    }
    now.running->copies.push_back({to, from, to_offset, from_offset, size, filled, now.running->commits, at});
}

void copy_commit() {
    now.running->commits++;
}

static void copy_finish(const copy &c, site at) {
    memcpy(c.to->data + c.to_offset, c.from->data + c.from_offset, c.filled);
    memset(c.to->data + c.to_offset + c.filled, 0, c.size - c.filled);
    mark(c.to, c.to_offset, c.size, WRITTEN, PENDING);
    if (!c.from->read_only && c.filled) count_sources(c.from, c.from_offset, c.filled, -1);
    track(c.to, c.to_offset, c.size, access::write, at, true); /* from now on for the owner, after a barrier for all */
}

void copy_wait(unsigned pending_groups, site) {
    thread &t = *now.running;
    while (!t.copies.empty() && t.copies.front().group + static_cast<int>(pending_groups) < t.commits) {
        copy_finish(t.copies.front(), t.copies.front().at);
        t.copies.pop_front();
    }
}

void copy_wait_all(site at) {
    copy_commit();
    copy_wait(0, at);
}

} // namespace emu
