/* Bank conflicts and uncoalesced accesses. Lanes are not in step, so the accesses of a warp are put together by count:
 * the n-th time that each lane passes a line is one access of the warp. */
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>
#include <tuple>

#include "cuda/emu/block.h"

namespace emu {

bool counting;

namespace {
struct place {
    const char *file;
    int line;
    bool shared, write;
    unsigned size;
    bool operator<(const place &o) const {
        return std::tie(line, shared, write, size, file) < std::tie(o.line, o.shared, o.write, o.size, o.file);
    }
};
struct warp_access {
    unsigned mask = 0;
    uint64_t address[32];
};
struct stream {                         /* of one place in one warp */
    int64_t passed[32] = {}, first = 0; /* first: number of the first access still open */
    std::deque<warp_access> open;
};
struct total {
    int64_t accesses = 0, needed = 0, best = 0;
};
} // namespace

static std::map<std::pair<int, place>, stream> streams;
static std::map<place, total> totals;

/* Passes over the 32 banks: lanes of one pass read at most one word of each bank; equal words are read once. Accesses
 * of 8 and 16 bytes take two and four passes at best (ptx.md 7). */
static int bank_passes(const warp_access &a, unsigned size) {
    int lanes_a_pass = size <= 4 ? 32 : 128 / static_cast<int>(size), passes = 0;
    for (int from = 0; from < 32; from += lanes_a_pass) {
        std::set<uint64_t> words[32];
        size_t worst = 0;
        for (int lane = from; lane < from + lanes_a_pass; lane++) {
            if (!(a.mask >> lane & 1)) continue;
            for (uint64_t w = a.address[lane] / 4; w <= (a.address[lane] + size - 1) / 4; w++) {
                words[w % 32].insert(w);
                worst = std::max(worst, words[w % 32].size());
            }
        }
        passes += static_cast<int>(worst);
    }
    return passes;
}

static int best_passes(const warp_access &a, unsigned size) {
    int lanes_a_pass = size <= 4 ? 32 : 128 / static_cast<int>(size), passes = 0;
    for (int from = 0; from < 32; from += lanes_a_pass)
        for (int lane = from; lane < from + lanes_a_pass; lane++)
            if (a.mask >> lane & 1) {
                passes++;
                break;
            }
    return passes;
}

static void sectors(const warp_access &a, unsigned size, int64_t &needed, int64_t &best) {
    std::set<uint64_t> touched, bytes;
    for (int lane = 0; lane < 32; lane++) {
        if (!(a.mask >> lane & 1)) continue;
        for (uint64_t at = a.address[lane]; at < a.address[lane] + size; at++) {
            touched.insert(at / 32);
            bytes.insert(at);
        }
    }
    needed += static_cast<int64_t>(touched.size());
    best += static_cast<int64_t>((bytes.size() + 31) / 32);
}

static void close(const place &p, const warp_access &a) {
    total &t = totals[p];
    t.accesses++;
    if (p.shared) {
        t.needed += bank_passes(a, p.size);
        t.best += best_passes(a, p.size);
    } else {
        sectors(a, p.size, t.needed, t.best);
    }
}

void traffic_note(const buffer *b, uint64_t address, unsigned size, bool write, site at) {
    place p = {at.file, at.line, b->shared, write, size};
    stream &s = streams[{now.running->warp(), p}];
    int lane = now.running->lane();
    int64_t number = s.passed[lane]++;
    while (s.first + static_cast<int64_t>(s.open.size()) <= number) s.open.emplace_back();
    warp_access &a = s.open[static_cast<size_t>(number - s.first)];
    a.mask |= 1u << lane;
    a.address[lane] = address;
    while (!s.open.empty() && s.open.front().mask == 0xffffffffu) {
        close(p, s.open.front());
        s.open.pop_front();
        s.first++;
    }
}

void traffic_note_rows(const uint64_t *rows, int n_rows, site at) {
    total &t = totals[{at.file, at.line, true, false, 16}];
    t.accesses++;
    for (int matrix = 0; matrix < n_rows / 8; matrix++) {
        std::set<uint64_t> words[32];
        size_t worst = 0;
        for (int r = 0; r < 8; r++)
            for (uint64_t w = rows[matrix * 8 + r] / 4; w < rows[matrix * 8 + r] / 4 + 4; w++) {
                words[w % 32].insert(w);
                worst = std::max(worst, words[w % 32].size());
            }
        t.needed += static_cast<int64_t>(worst);
        t.best++;
    }
}

void traffic_flush() {
    for (auto &[key, s] : streams)
        for (const warp_access &a : s.open)
            if (a.mask) close(key.second, a);
    streams.clear();
}

} // namespace emu

void emu_count(bool on) {
    emu::counting = on;
    if (!on) return;
    emu::streams.clear();
    emu::totals.clear();
}

int emu_traffic_list(emu_traffic *out, int most) {
    int n = 0;
    for (auto &[p, t] : emu::totals) {
        if (n == most) break;
        const char *slash = strrchr(p.file, '/');
        out[n] = {{}, p.line, p.shared, p.write, t.accesses, t.needed, t.best};
        snprintf(out[n].file, sizeof out[n].file, "%s", slash ? slash + 1 : p.file);
        n++;
    }
    return n;
}
