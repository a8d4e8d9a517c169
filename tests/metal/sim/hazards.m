/* hazards.m: which dispatches of a concurrent encoder depend on each other. A kernel's argument
 * that is const is read; any other is taken to be read and written, from where it is bound to where
 * its buffer ends, or as far as SIMMETAL_EXTENTS says. */
#import "sim.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of binding `index`; NULL extents: all that is bound. */
static size_t extent_of(const msl_dispatch_info *info, const char *extents, int index)
{
    size_t length = info->buffers[index].length;
    int source, first, count;
    if (!extents || sscanf(extents, "%d:%d:%d", &source, &first, &count) != 3) return length;
    if (index >= count || !info->buffers[source].ptr) return 0;
    const uint32_t *words = (const uint32_t *)((const char *)info->buffers[source].ptr + first);
    size_t bytes = 4 * (size_t)words[index];
    return bytes < length ? bytes : length;
}

static const char *name_of(const sim_command *command)
{
    SimFunction *function = command->pipeline->_function;
    return msl_library_name(function->_library->_library, function->_index);
}

void sim_find_ranges(sim_command *command)
{
    const char *extents = getenv("SIMMETAL_EXTENTS");
    SimFunction *function = command->pipeline->_function;
    msl_library *library = function->_library->_library;
    for (int i = 0; i < msl_kernel_nargs(library, function->_index); i++) {
        int argument[6];
        msl_kernel_arg(library, function->_index, i, argument);
        int index = argument[1];
        if (argument[0] != 0 || command->bytes[index]) continue;
        const uint8_t *begin = command->info.buffers[index].ptr;
        size_t bytes = extent_of(&command->info, extents, index);
        if (bytes == 0) continue;
        command->ranges[command->num_ranges++] =
            (sim_range){begin, begin + bytes, !argument[5], index, name_of(command)};
    }
}

static BOOL conflict(const sim_range *a, const sim_range *b)
{
    return (a->writes || b->writes) && a->begin < b->end && b->begin < a->end;
}

static void check_pair(const sim_command *earlier, size_t earlier_index, const sim_command *later,
                       size_t later_index)
{
    for (int i = 0; i < later->num_ranges; i++)
        for (int j = 0; j < earlier->num_ranges; j++) {
            const sim_range *a = &later->ranges[i], *b = &earlier->ranges[j];
            if (!conflict(a, b)) continue;
            sim_misuse("dispatch %zu (%s) %s buffer %d, which dispatch %zu (%s) %s as buffer %d, "
                       "without a barrier between them",
                       later_index, a->kernel, a->writes ? "writes" : "reads", a->binding,
                       earlier_index, b->kernel, b->writes ? "writes" : "reads", b->binding);
        }
}

void sim_check_hazards(const sim_command *commands, size_t first, size_t count)
{
    for (size_t i = first; i + 1 < count; i++)
        check_pair(&commands[i], i, &commands[count - 1], count - 1);
}

void sim_check_fences(const SimCommandBuffer *earlier, const SimCommandBuffer *later)
{
    for (size_t i = 0; i < later->_num_ranges; i++)
        for (size_t j = 0; j < earlier->_num_ranges; j++) {
            const sim_range *a = &later->_ranges[i], *b = &earlier->_ranges[j];
            if (!conflict(a, b)) continue;
            sim_misuse("a command buffer (%s) %s buffer %d, which one before it (%s) %s as buffer "
                       "%d, without a fence between them",
                       a->kernel, a->writes ? "writes" : "reads", a->binding, b->kernel,
                       b->writes ? "writes" : "reads", b->binding);
        }
}
