/* races.cpp: the happens-before of one dispatch: barriers order a threadgroup, simdgroup_barrier a
 * SIMD-group, nothing orders two threadgroups. */
#include "races.h"
#include "rt_abi.h"

namespace msl_rt
{

bool Toucher::before(const Toucher &later) const
{
    if (group == 0) return true;
    if (group != later.group) return false;
    if (thread == later.thread || barriers != later.barriers) return true;
    const bool same_simdgroup = thread / MSL_SIMD_WIDTH == later.thread / MSL_SIMD_WIDTH;
    return same_simdgroup && simd_barriers != later.simd_barriers;
}

bool RaceTable::read_before(const Byte &byte, const Toucher &who)
{
    const Toucher &reader = byte.reader;
    if (!byte.more_readers || reader.group != who.group || reader.barriers != who.barriers)
        return reader.before(who);
    const bool same_simdgroup = reader.thread / MSL_SIMD_WIDTH == who.thread / MSL_SIMD_WIDTH;
    return same_simdgroup && !byte.more_simdgroups && reader.simd_barriers != who.simd_barriers;
}

const Toucher *RaceTable::touch(uintptr_t address, uint32_t size, bool writes, const Toucher &who,
                                uintptr_t *at, bool *wrote)
{
    for (uintptr_t here = address; here < address + size; ++here) {
        Byte &byte = bytes_[here];
        *at = here;
        *wrote = !byte.writer.before(who);
        if (*wrote) return &byte.writer;
        if (writes) {
            if (!read_before(byte, who)) return &byte.reader;
            byte.writer = who;
            continue;
        }
        if (byte.reader.before(who)) {
            byte.more_readers = byte.more_simdgroups = false;
        } else {
            byte.more_readers = true;
            byte.more_simdgroups |=
                byte.reader.group != who.group ||
                byte.reader.thread / MSL_SIMD_WIDTH != who.thread / MSL_SIMD_WIDTH;
        }
        byte.reader = who;
    }
    return nullptr;
}

} // namespace msl_rt
