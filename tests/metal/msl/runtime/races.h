/* races.h: which threads touched which byte, and whether a barrier lies between two that may not
 * both.
 *
 * Fed by a library that was built with races=True (build.py): clang then calls the runtime before
 * every load and store. Knows addresses and times; whose memory it is is the worker's knowledge.
 * Atomic updates are not seen, and so are no races. */
#pragma once

#include <cstdint>
#include <unordered_map>

namespace msl_rt
{

/* Who, and after how many barriers: of the memory's own kind, and of the SIMD-group. */
struct Toucher {
    uint32_t group = 0; /* 0: nobody yet */
    uint32_t thread = 0;
    uint32_t barriers = 0, simd_barriers = 0;

    bool before(const Toucher &later) const;
};

class RaceTable
{
  public:
    void clear() { bytes_.clear(); }

    /* Note that `who` reads or writes [address, address + size). The thread that did so before
     * without a barrier between, else null; `byte` and `wrote` say which byte and what it did. */
    const Toucher *touch(uintptr_t address, uint32_t size, bool writes, const Toucher &who,
                         uintptr_t *byte, bool *wrote);

  private:
    struct Byte {
        Toucher writer, reader;
        bool more_readers = false;    /* since `reader`'s last barrier */
        bool more_simdgroups = false; /* and from another SIMD-group */
    };
    static bool read_before(const Byte &byte, const Toucher &who);

    std::unordered_map<uintptr_t, Byte> bytes_;
};

} // namespace msl_rt
