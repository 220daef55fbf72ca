/* Emulated memory: every buffer knows what of it has been written, what an asynchronous copy owns, and who touched each
 * byte last. Kernels reach it through the pointers of emu/simt.h only, so no access goes unseen. */
#ifndef LLMQ_CUDA_EMU_MEMORY_H
#define LLMQ_CUDA_EMU_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emu/control.h"

namespace emu {

/* A place in a kernel's source. As the last argument of a function, `site at = {}` is the place of the call. */
struct site {
    const char *file;
    int line;
    site(const char *f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

/* Who touched a byte, and when: in which run of a block (runs are numbered through all launches), between which two
 * block barriers (epoch), between which two smaller synchronizations of its thread (clock). run 0: nobody. */
struct stamp {
    uint32_t run = 0, epoch = 0;
    uint16_t thread = 0, clock = 0;
    uint32_t line : 30;
    uint32_t atomic : 1, copied : 1; /* copied: written by cp.async */
    stamp() : line(0), atomic(0), copied(0) {}
};

/* Two readers are kept: whoever writes next can be in step with one of them at most (memory.cpp: remember_reader). */
struct history {
    stamp writer, reader[2];
};

enum state_bits : uint8_t {
    WRITTEN = 1,
    PENDING = 2, /* the destination of a copy that has not been waited for */
    SOURCE = 4   /* times the number of copies in flight that read it */
};

struct buffer {
    std::string name;
    bool shared = false, read_only = false, dead = false;
    uint64_t address = 0; /* as the device sees it: banks, sectors and alignment follow from it */
    size_t bytes = 0;
    uint8_t *data = nullptr;
    std::unique_ptr<uint8_t[]> owner;
    std::vector<uint8_t> state;   /* state_bits of each byte */
    std::vector<history> touched; /* of each byte; none for read-only buffers: nobody can write them */
};

/* Memory of b.bytes, aligned as the device's, that holds a pattern and counts as never written. */
void buffer_memory(buffer &b);

enum class access { read, write, atomic };

/* Checks one access of the running thread and records it; does not return if it is at fault. */
void memory_access(buffer *b, int64_t offset, unsigned size, access kind, site at);

/* Global memory. */
buffer *memory_create(const char *name, size_t bytes);
void memory_destroy(buffer *b);
buffer *memory_find(const void *host); /* the buffer that contains or ends at this byte; NULL */
size_t memory_used();                  /* bytes of all buffers */

/* Shared memory of a block: forget what was in it. */
void shared_reset(buffer *b);

/* cp.async of the running thread (ptx.md 3.1): `size` bytes, of which `filled` come from the source. */
void copy_issue(buffer *to, int64_t to_offset, buffer *from, int64_t from_offset, unsigned size, unsigned filled,
                bool l2_only, site at);
void copy_commit();
void copy_wait(unsigned pending_groups, site at); /* returns with at most so many groups of this thread in flight */
void copy_wait_all(site at);

} // namespace emu

#endif
