/* records.c: the records of a program: checked and copied when it is created, and the range and
 * vars of a replay when it is submitted. Runs nothing. */
#include <stdlib.h>
#include <string.h>

#include "common/kernels.h"

int marlin_kernel_find(const char *name)
{
    for (int i = 1; name && i < NUM_KERNELS; i++)
        if (strcmp(marlin_kernels[i].name, name) == 0) return i;
    return marlin_fail(MARLIN_EINVAL, "no kernel is named %.64s", name ? name : "(null)");
}

static int hold_buffers(marlin_records *records, int index, const marlin_dispatch *dispatch)
{
    marlin_record *record = &records->items[index];
    const char *name = record->kernel->name;
    for (int i = 0; i < dispatch->num_bindings; i++) {
        const marlin_binding *b = &dispatch->bindings[i];
        record->access[i] = b->access;
        if (b->buffer == 0) continue;
        marlin_buffer *buffer = marlin_buffer_get(records->device, b->buffer);
        if (!buffer)
            return marlin_fail(MARLIN_EINVAL,
                               "dispatch %d (%s): binding %d names buffer %d, which does not exist",
                               index, name, i, b->buffer);
        if (b->offset < 0 || b->bytes < 0 || b->offset > buffer->bytes ||
            b->bytes > buffer->bytes - b->offset)
            return marlin_fail(
                MARLIN_EINVAL,
                "dispatch %d (%s): binding %d, [%lld, +%lld), leaves buffer %d of %lld bytes",
                index, name, i, (long long)b->offset, (long long)b->bytes, b->buffer,
                (long long)buffer->bytes);
        if ((b->access & MARLIN_WRITE) && !buffer->writable)
            return marlin_fail(MARLIN_EINVAL,
                               "dispatch %d (%s): binding %d writes buffer %d, which is read-only",
                               index, name, i, b->buffer);
        record->buffer[i] = b->buffer;
        record->offset[i] = b->offset;
        record->bytes[i] = b->bytes;
        record->at[i] = buffer->memory + b->offset;
        buffer->holds++;
    }
    return MARLIN_OK;
}

/* The kernel's own check; the record's limits are the program's from here on. */
static int check_record(marlin_records *records, int index)
{
    marlin_record *record = &records->items[index];
    marlin_check check = {.record = record, .binding = -1};
    memcpy(check.limit, records->limit, sizeof check.limit);
    record->kernel->check(&check);
    if (check.problem && check.binding >= 0)
        return marlin_fail(MARLIN_EINVAL, "dispatch %d (%s): binding %d (%lld bytes) %s", index,
                           record->kernel->name, check.binding,
                           (long long)record->bytes[check.binding], check.problem);
    if (check.problem)
        return marlin_fail(MARLIN_EINVAL, "dispatch %d (%s): %s", index, record->kernel->name,
                           check.problem);
    memcpy(records->limit, check.limit, sizeof records->limit);
    record->needed = check.needed;
    return MARLIN_OK;
}

static int add_record(marlin_records *records, int index, const marlin_dispatch *dispatch)
{
    marlin_record *record = &records->items[index];
    if (dispatch->kernel < 1 || dispatch->kernel >= NUM_KERNELS)
        return marlin_fail(MARLIN_EINVAL, "dispatch %d: kernel id %d does not exist", index,
                           dispatch->kernel);
    const marlin_kernel *kernel = &marlin_kernels[dispatch->kernel];
    record->kernel = kernel;
    record->kernel_id = dispatch->kernel;
    record->barrier = dispatch->barrier != 0;
    memcpy(record->params, dispatch->params, sizeof record->params);
    if (dispatch->num_bindings != kernel->num_bindings ||
        dispatch->param_bytes != kernel->param_bytes)
        return marlin_fail(
            MARLIN_EINVAL,
            "dispatch %d (%s): has %d bindings and %d parameter bytes, not %d and %d", index,
            kernel->name, dispatch->num_bindings, dispatch->param_bytes, kernel->num_bindings,
            kernel->param_bytes);
    int code = hold_buffers(records, index, dispatch);
    return code == MARLIN_OK ? check_record(records, index) : code;
}

int marlin_records_open(marlin_records *records, marlin_device *device,
                        const marlin_dispatch *dispatches, int32_t count)
{
    *records = (marlin_records){.device = device, .count = count};
    for (int i = 0; i < MARLIN_MAX_VARS; i++) records->limit[i] = INT32_MAX;
    records->items = calloc((size_t)count, sizeof *records->items);
    if (!records->items) return marlin_fail(MARLIN_ENOMEM, "no memory for %d dispatches", count);
    int code = MARLIN_OK;
    for (int32_t i = 0; i < count && code == MARLIN_OK; i++)
        code = add_record(records, i, &dispatches[i]);
    return code;
}

void marlin_records_close(marlin_records *records)
{
    for (int32_t i = 0; records->items && i < records->count; i++)
        for (int j = 0; j < MARLIN_MAX_BINDINGS; j++)
            if (records->items[i].buffer[j])
                marlin_buffer_unhold(records->device, records->items[i].buffer[j]);
    free(records->items);
    records->items = NULL;
}

int marlin_records_select(marlin_records *records, int32_t first, int32_t count,
                          const int32_t *vars, int32_t num_vars)
{
    if (first < 0 || count < 1 || first > records->count - count)
        return marlin_fail(MARLIN_EINVAL, "dispatches [%d, +%d) are not in a program of %d", first,
                           count, records->count);
    if (num_vars < 0 || num_vars > MARLIN_MAX_VARS || (num_vars > 0 && !vars))
        return marlin_fail(MARLIN_EINVAL, "%d vars, at most %d", num_vars, MARLIN_MAX_VARS);
    for (int32_t i = 0; i < num_vars; i++)
        if (vars[i] < 0 || vars[i] > records->limit[i])
            return marlin_fail(MARLIN_EINVAL, "vars[%d] is %d, the bound buffers hold 0 to %lld", i,
                               vars[i], (long long)records->limit[i]);
    memset(records->vars, 0, sizeof records->vars);
    if (num_vars > 0) memcpy(records->vars, vars, (size_t)num_vars * sizeof *vars);
    records->first = first;
    records->last = first + count;
    return MARLIN_OK;
}

int marlin_fail_index(const marlin_records *records, int32_t index)
{
    return marlin_fail(MARLIN_EDEVICE,
                       "dispatch %d (%s): an index in a buffer points outside what it indexes",
                       index, records->items[index].kernel->name);
}
