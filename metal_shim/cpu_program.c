/* cpu_program.c: programs of the CPU device: checked when created, walked by the worker pool when
 * submitted.
 *
 * Every worker walks the same list. A dispatch's units are handed out by a shared counter; a
 * barrier is where all workers meet. Dispatches between two barriers overlap. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

/* Up to this many rows each worker quantizes a linear kernel's input for itself, which is cheaper
 * than meeting. */
#define MAX_PRIVATE_ROWS 2
/* Cache lines that a waiting worker fetches of the next matrix: a quarter of a 1 MiB second-level
 * cache at most. */
#define MAX_LINES_AHEAD 4096
#define LINES_A_CALL 4
/* Hand out a dispatch in about this many pieces a worker: enough to even out a core that is slow
 * just now. */
#define PIECES_A_WORKER 8

typedef struct {
    const marlin_kernel *kernel;
    marlin_run run;
    marlin_call call;
    uint8_t params[MARLIN_MAX_PARAM_BYTES];
    int barrier;
    int32_t grid_value[3], grid_var[3];
    int32_t owner;    /* the dispatch that quantizes the same input, at or before this one; -1: none
                         does */
    int64_t prepared; /* where in the shared area its quantized rows begin */
} item;

/* One for each worker and dispatch. A worker takes pieces of its own share of the units from the
 * front, so that it reads weights in a row, and then helps the others with theirs. */
typedef struct {
    _Alignas(64) atomic_llong next; /* next unit of this worker's share */
    atomic_llong next_row;          /* worker 0's: next row to quantize */
} item_counter;

typedef struct {
    uint8_t *scratch;
    uint8_t *rows;      /* privately quantized rows */
    int32_t rows_owner; /* whose they are in this replay; -1: nobody's */
    int32_t next;       /* the dispatch after the one at hand */
    int32_t ahead;      /* the linear dispatch whose weights are being fetched ahead of time */
    int64_t ahead_line; /* how far into this worker's share of them, in cache lines */
} worker_memory;

struct marlin_program {
    marlin_device *device;
    int32_t count;
    item *items;
    item_counter *counters;
    worker_memory *workers;
    uint8_t *shared; /* quantized rows of steps with many */
    int32_t *buffers;
    int32_t num_buffers;
    int64_t limit[MARLIN_MAX_VARS];
    int32_t vars[MARLIN_MAX_VARS];
    int32_t first, last;
    atomic_int failed; /* 1 + the first dispatch that failed */
};

/* ---- creation ---- */

static int bind(marlin_program *program, int index, const marlin_dispatch *record)
{
    item *it = &program->items[index];
    for (int i = 0; i < record->num_bindings; i++) {
        const marlin_binding *b = &record->bindings[i];
        if (b->buffer == 0) continue;
        marlin_buffer *buffer = marlin_buffer_get(program->device, b->buffer);
        if (!buffer)
            return marlin_fail(MARLIN_EINVAL,
                               "dispatch %d (%s): binding %d names buffer %d, which does not exist",
                               index, it->kernel->name, i, b->buffer);
        if (b->offset < 0 || b->bytes < 0 || b->offset > buffer->bytes ||
            b->bytes > buffer->bytes - b->offset)
            return marlin_fail(
                MARLIN_EINVAL,
                "dispatch %d (%s): binding %d, [%lld, +%lld), leaves buffer %d of %lld bytes",
                index, it->kernel->name, i, (long long)b->offset, (long long)b->bytes, b->buffer,
                (long long)buffer->bytes);
        if ((b->access & MARLIN_WRITE) && !buffer->writable)
            return marlin_fail(MARLIN_EINVAL,
                               "dispatch %d (%s): binding %d writes buffer %d, which is read-only",
                               index, it->kernel->name, i, b->buffer);
        it->call.at[i] = buffer->memory + b->offset;
        it->call.bytes[i] = b->bytes;
        buffer->holds++;
        program->buffers[program->num_buffers++] = b->buffer;
    }
    return MARLIN_OK;
}

static int add_item(marlin_program *program, int index, const marlin_dispatch *record)
{
    item *it = &program->items[index];
    if (record->kernel < 1 || record->kernel >= NUM_KERNELS)
        return marlin_fail(MARLIN_EINVAL, "dispatch %d: kernel id %d does not exist", index,
                           record->kernel);
    it->kernel = &marlin_kernels[record->kernel];
    it->run = program->device->isa->run[record->kernel];
    it->barrier = record->barrier != 0;
    it->owner = -1;
    memcpy(it->params, record->params, sizeof it->params);
    memcpy(it->grid_value, record->grid_value, sizeof it->grid_value);
    memcpy(it->grid_var, record->grid_var, sizeof it->grid_var);
    for (int axis = 0; axis < 3; axis++)
        if (it->grid_value[axis] < (it->grid_var[axis] < 0 ? 0 : 1) ||
            it->grid_var[axis] >= MARLIN_MAX_VARS)
            return marlin_fail(MARLIN_EINVAL, "dispatch %d (%s): grid axis %d is out of range",
                               index, it->kernel->name, axis);
    if (record->num_bindings != it->kernel->num_bindings ||
        record->param_bytes != it->kernel->param_bytes)
        return marlin_fail(
            MARLIN_EINVAL,
            "dispatch %d (%s): has %d bindings and %d parameter bytes, not %d and %d", index,
            it->kernel->name, record->num_bindings, record->param_bytes, it->kernel->num_bindings,
            it->kernel->param_bytes);
    int code = bind(program, index, record);
    if (code != MARLIN_OK) return code;
    it->call.params = it->params;
    it->call.vars = program->vars;
    marlin_check check = {.call = &it->call, .bindings = record->bindings, .binding = -1};
    memcpy(check.limit, program->limit, sizeof check.limit);
    it->kernel->check(&check);
    if (check.problem && check.binding >= 0)
        return marlin_fail(MARLIN_EINVAL, "dispatch %d (%s): binding %d (%lld bytes) %s", index,
                           it->kernel->name, check.binding,
                           (long long)it->call.bytes[check.binding], check.problem);
    if (check.problem)
        return marlin_fail(MARLIN_EINVAL, "dispatch %d (%s): %s", index, it->kernel->name,
                           check.problem);
    memcpy(program->limit, check.limit, sizeof program->limit);
    return MARLIN_OK;
}

/* Find who quantizes each linear input, and lay out the shared area: inputs between two barriers
 * side by side. */
static int64_t plan_prepared(marlin_program *program)
{
    int64_t used = 0, most = 0;
    int32_t since_barrier = 0;
    for (int32_t i = 0; i < program->count; i++) {
        item *it = &program->items[i];
        if (it->barrier) {
            since_barrier = i;
            used = 0;
        }
        if (!it->kernel->quantizes) continue;
        const struct LinearParams *p = (const struct LinearParams *)it->params;
        it->owner = i;
        for (int32_t j = since_barrier; j < i && it->owner == i; j++) {
            const item *other = &program->items[j];
            const struct LinearParams *q = (const struct LinearParams *)other->params;
            if (other->owner == j && other->call.at[0] == it->call.at[0] && q->k == p->k &&
                q->rows_var == p->rows_var)
                it->owner = j;
        }
        it->prepared = program->items[it->owner].prepared;
        if (it->owner != i) continue;
        it->prepared = used;
        int64_t rows = it->call.bytes[0] / (4 * (int64_t)p->k);
        used += (marlin_quantized_bytes(rows, p->k) + 63) / 64 * 64;
        if (used > most) most = used;
    }
    return most;
}

static void *aligned_memory(int64_t bytes)
{
    return aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64);
}

static int allocate_workers(marlin_program *program)
{
    int64_t scratch = 0, rows = 0, shared = plan_prepared(program);
    int num_workers = marlin_pool_size(program->device->pool);
    for (int32_t i = 0; i < program->count; i++) {
        const item *it = &program->items[i];
        int64_t bytes = it->kernel->scratch ? it->kernel->scratch(&it->call) : 0;
        if (bytes > scratch) scratch = bytes;
        if (!it->kernel->quantizes) continue;
        bytes =
            marlin_quantized_bytes(MAX_PRIVATE_ROWS, ((const struct LinearParams *)it->params)->k);
        if (bytes > rows) rows = bytes;
    }
    program->counters =
        aligned_memory(program->count * num_workers * (int64_t)sizeof *program->counters);
    program->workers = calloc((size_t)num_workers, sizeof *program->workers);
    program->shared = aligned_memory(shared);
    if (!program->counters || !program->workers || !program->shared) return MARLIN_ENOMEM;
    for (int i = 0; i < num_workers; i++) {
        program->workers[i].scratch = aligned_memory(scratch);
        program->workers[i].rows = aligned_memory(rows);
        if (!program->workers[i].scratch || !program->workers[i].rows) return MARLIN_ENOMEM;
    }
    return MARLIN_OK;
}

void marlin_program_destroy(marlin_program *program)
{
    if (!program) return;
    if (program->device->running == program) marlin_program_wait(program);
    for (int32_t i = 0; i < program->num_buffers; i++)
        marlin_buffer_unhold(program->device, program->buffers[i]);
    for (int i = 0; program->workers && i < marlin_pool_size(program->device->pool); i++) {
        free(program->workers[i].scratch);
        free(program->workers[i].rows);
    }
    free(program->workers);
    free(program->counters);
    free(program->shared);
    free(program->buffers);
    free(program->items);
    free(program);
}

int marlin_program_create(marlin_device *device, const marlin_dispatch *records, int32_t count,
                          marlin_program **out)
{
    if (!device || !records || !out || count < 1)
        return marlin_fail(MARLIN_EINVAL, "a program needs dispatches");
    marlin_program *program = calloc(1, sizeof *program);
    if (!program) return marlin_fail(MARLIN_ENOMEM, "no memory for a program");
    program->device = device;
    program->count = count;
    program->items = calloc((size_t)count, sizeof *program->items);
    program->buffers = calloc((size_t)count * MARLIN_MAX_BINDINGS, sizeof *program->buffers);
    for (int i = 0; i < MARLIN_MAX_VARS; i++) program->limit[i] = INT32_MAX;
    int code = MARLIN_OK;
    if (!program->items || !program->buffers)
        code = marlin_fail(MARLIN_ENOMEM, "no memory for %d dispatches", count);
    for (int32_t i = 0; i < count && code == MARLIN_OK; i++)
        code = add_item(program, i, &records[i]);
    if (code == MARLIN_OK && allocate_workers(program) != MARLIN_OK)
        code =
            marlin_fail(MARLIN_ENOMEM, "no memory for the scratch space of %d dispatches", count);
    if (code != MARLIN_OK) {
        marlin_program_destroy(program);
        return code;
    }
    *out = program;
    return MARLIN_OK;
}

/* ---- replay ---- */

static int grid_is_empty(const item *it)
{
    for (int axis = 0; axis < 3; axis++) {
        int32_t var = it->grid_var[axis];
        if ((var < 0 ? it->grid_value[axis] : it->call.vars[var]) <= 0) return 1;
    }
    return 0;
}

static int64_t share_begin(int64_t units, int share, int num_workers)
{
    return units * share / num_workers;
}

/* While a worker waits it asks for the codes that it will read next, a few cache lines a call:
 * between two matrices the memory would be idle. */
static void fetch_ahead(void *context, int worker)
{
    marlin_program *program = context;
    worker_memory *memory = &program->workers[worker];
    int num_workers = marlin_pool_size(program->device->pool);
    if (memory->ahead < memory->next) {
        memory->ahead = memory->next;
        while (memory->ahead < program->last && !program->items[memory->ahead].kernel->quantizes)
            memory->ahead++;
        memory->ahead_line = 0;
    }
    if (memory->ahead >= program->last) return;
    const marlin_call *call = &program->items[memory->ahead].call;
    int64_t lines = call->bytes[1] / 64;
    int64_t first = share_begin(lines, worker, num_workers),
            last = share_begin(lines, worker + 1, num_workers);
    if (last > first + MAX_LINES_AHEAD) last = first + MAX_LINES_AHEAD;
    for (int i = 0; i < LINES_A_CALL && first + memory->ahead_line < last;
         i++, memory->ahead_line++)
        __builtin_prefetch(call->at[1] + (first + memory->ahead_line) * 64, 0, 2);
}

/* Whether a dispatch of this replay, before `index`, has quantized its input to the shared area:
 * the owner may lie before the replay's first dispatch, or be skipped for an empty grid. */
static int is_prepared(const marlin_program *program, int32_t index)
{
    int32_t owner = program->items[index].owner;
    for (int32_t i = owner > program->first ? owner : program->first; i < index; i++)
        if (program->items[i].owner == owner && !grid_is_empty(&program->items[i])) return 1;
    return 0;
}

/* Quantize a linear kernel's input, or find it done. Returns where it is. Every worker takes the
 * same branch, so all of them come to the meeting or none does. */
static uint8_t *prepare(marlin_program *program, int32_t index, int worker)
{
    worker_memory *memory = &program->workers[worker];
    item *it = &program->items[index];
    const struct LinearParams *p = (const struct LinearParams *)it->params;
    int64_t rows = it->call.vars[p->rows_var];
    const float *x = (const float *)it->call.at[0];
    if (rows <= MAX_PRIVATE_ROWS) {
        if (memory->rows_owner != it->owner)
            program->device->isa->quantize_rows(x, p->k, 0, rows, memory->rows, rows);
        memory->rows_owner = it->owner;
        return memory->rows;
    }
    uint8_t *shared = program->shared + it->prepared;
    if (is_prepared(program, index)) return shared;
    int num_workers = marlin_pool_size(program->device->pool);
    atomic_llong *next_row = &program->counters[index * num_workers].next_row;
    for (;;) {
        int64_t row = atomic_fetch_add(next_row, 8);
        if (row >= rows) break;
        program->device->isa->quantize_rows(x, p->k, row, row + 8 < rows ? row + 8 : rows, shared,
                                            rows);
    }
    marlin_pool_barrier(program->device->pool, fetch_ahead, program, worker);
    return shared;
}

/* Run what is left of one worker's share. */
static void run_share(marlin_program *program, int32_t index, const marlin_call *call,
                      int64_t units, int share, uint8_t *scratch)
{
    int num_workers = marlin_pool_size(program->device->pool);
    int64_t first = share_begin(units, share, num_workers),
            last = share_begin(units, share + 1, num_workers);
    int64_t piece = (last - first) / PIECES_A_WORKER;
    if (piece < 1) piece = 1;
    atomic_llong *next = &program->counters[index * num_workers + share].next;
    for (;;) {
        int64_t begin = first + atomic_fetch_add_explicit(next, piece, memory_order_relaxed);
        if (begin >= last || atomic_load_explicit(&program->failed, memory_order_relaxed)) return;
        int64_t end = begin + piece < last ? begin + piece : last;
        int none = 0;
        if (program->items[index].run(call, begin, end, scratch) != MARLIN_OK)
            atomic_compare_exchange_strong(&program->failed, &none, index + 1);
    }
}

static void walk(void *context, int worker)
{
    marlin_program *program = context;
    worker_memory *memory = &program->workers[worker];
    marlin_pool *pool = program->device->pool;
    int num_workers = marlin_pool_size(pool);
    memory->rows_owner = memory->ahead = -1;
    for (int32_t i = program->first; i < program->last; i++) {
        item *it = &program->items[i];
        memory->next = i;
        if (it->barrier && i > program->first)
            marlin_pool_barrier(pool, fetch_ahead, program, worker);
        memory->next = i + 1;
        if (grid_is_empty(it)) continue;
        marlin_call call = it->call;
        if (it->kernel->quantizes) call.prepared = prepare(program, i, worker);
        int64_t units = it->kernel->units(&call);
        for (int j = 0; j < num_workers; j++)
            run_share(program, i, &call, units, (worker + j) % num_workers, memory->scratch);
    }
}

int marlin_program_submit(marlin_program *program, int32_t first, int32_t count,
                          const int32_t *vars, int32_t num_vars)
{
    if (!program) return marlin_fail(MARLIN_EINVAL, "no program");
    if (program->device->running) return marlin_fail(MARLIN_EBUSY, "a replay is in flight");
    if (first < 0 || count < 1 || first > program->count - count)
        return marlin_fail(MARLIN_EINVAL, "dispatches [%d, +%d) are not in a program of %d", first,
                           count, program->count);
    if (num_vars < 0 || num_vars > MARLIN_MAX_VARS || (num_vars > 0 && !vars))
        return marlin_fail(MARLIN_EINVAL, "%d vars, at most %d", num_vars, MARLIN_MAX_VARS);
    for (int32_t i = 0; i < num_vars; i++)
        if (vars[i] < 0 || vars[i] > program->limit[i])
            return marlin_fail(MARLIN_EINVAL, "vars[%d] is %d, the bound buffers hold 0 to %lld", i,
                               vars[i], (long long)program->limit[i]);
    memset(program->vars, 0, sizeof program->vars);
    if (num_vars > 0) memcpy(program->vars, vars, (size_t)num_vars * sizeof *vars);
    program->first = first;
    program->last = first + count;
    atomic_store(&program->failed, 0);
    size_t num_workers = (size_t)marlin_pool_size(program->device->pool);
    memset(program->counters + first * num_workers, 0,
           count * num_workers * sizeof *program->counters);
    program->device->running = program;
    marlin_pool_start(program->device->pool, walk, program);
    return MARLIN_OK;
}

int marlin_program_wait(marlin_program *program)
{
    if (!program || program->device->running != program)
        return marlin_fail(MARLIN_EINVAL, "this program has no replay in flight");
    marlin_pool_finish(program->device->pool);
    program->device->running = NULL;
    int failed = atomic_load(&program->failed);
    if (failed == 0) return MARLIN_OK;
    return marlin_fail(MARLIN_EDEVICE,
                       "dispatch %d (%s): an index in a buffer points outside what it indexes",
                       failed - 1, program->items[failed - 1].kernel->name);
}
