/* races.cpp: the happens-before of one dispatch: barriers order a threadgroup, simdgroup_barrier a
 * SIMD-group, nothing orders two threadgroups. */
#include "races.h"
#include "rt_abi.h"
#include "worker.h"

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

/* Memory that threads share: threadgroup variables and bound buffers; not their stacks. */
bool Worker::is_shared(uintptr_t address, bool *in_arena, const char **name,
                       uintptr_t *offset) const
{
    const uintptr_t arena = (uintptr_t)arena_;
    for (uint32_t i = 0; i < variable_count_; ++i) {
        const Variable &variable = variables_[i];
        *offset = address - arena - variable.offset;
        *name = variable.name;
        *in_arena = true;
        if (address >= arena + variable.offset && *offset < variable.size) return true;
    }
    *in_arena = false;
    for (int i = 0; i < kernel_->nargs; ++i) {
        const msl_arg &arg = kernel_->args[i];
        if (arg.kind != MSL_ARG_BUFFER || arg.is_const) continue;
        const msl_binding &bound = info_->buffers[arg.index];
        *offset = address - (uintptr_t)bound.ptr;
        *name = arg.name;
        if (address >= (uintptr_t)bound.ptr && *offset < bound.length) return true;
    }
    return false;
}

void Worker::touched(const void *memory, uint32_t size, bool writes)
{
    const msl_lane *me = msl_self;
    bool in_arena, wrote;
    const char *name;
    uintptr_t offset, byte;
    if (!me || !is_shared((uintptr_t)memory, &in_arena, &name, &offset)) return;
    Toucher who;
    who.group = groups_run_;
    who.thread = me->index;
    who.barriers = in_arena ? threadgroup_barriers_ : device_barriers_;
    who.simd_barriers = simd_barriers_[me->index / MSL_SIMD_WIDTH];
    RaceTable &races = in_arena ? threadgroup_races_ : device_races_;
    const Toucher *other = races.touch((uintptr_t)memory, size, writes, who, &byte, &wrote);
    if (!other) return;
    fail("race: thread %u %s byte %zu of %s, which thread %u%s %s with no barrier between",
         me->index, writes ? "writes" : "reads", (size_t)(offset + byte - (uintptr_t)memory), name,
         other->thread, other->group == who.group ? "" : " of another threadgroup",
         wrote ? "wrote" : "read");
    wait(msl_self); /* for good */
}

} // namespace msl_rt

/* Called before every load and store of a library built with races=True. */
#define MSL_TRACE(size)                                                                            \
    extern "C" void __sanitizer_cov_load##size(const void *address)                                \
    {                                                                                              \
        msl_rt::current_worker->touched(address, size, false);                                     \
    }                                                                                              \
    extern "C" void __sanitizer_cov_store##size(const void *address)                               \
    {                                                                                              \
        msl_rt::current_worker->touched(address, size, true);                                      \
    }
MSL_TRACE(1) MSL_TRACE(2) MSL_TRACE(4) MSL_TRACE(8) MSL_TRACE(16)
