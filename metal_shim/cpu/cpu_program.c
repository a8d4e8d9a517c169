/* cpu_program.c: programs of the CPU device: checked when created, walked by the worker pool when
 * submitted.
 *
 * Every worker walks the same list. A dispatch's units are handed out by a shared counter; a
 * barrier is where all workers meet. Dispatches between two barriers overlap. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"

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
    int barrier;
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
    marlin_records records;
    int32_t count;
    item *items;
    item_counter *counters;
    worker_memory *workers;
    uint8_t *shared;   /* quantized rows of steps with many */
    atomic_int failed; /* 1 + the first dispatch that failed */
};

/* ---- creation ---- */

static void add_item(marlin_program *program, int32_t index)
{
    const marlin_record *record = &program->records.items[index];
    item *it = &program->items[index];
    it->kernel = record->kernel;
    it->run = program->device->isa->run[record->kernel_id];
    it->barrier = record->barrier;
    it->owner = -1;
    it->call.params = record->params;
    it->call.vars = program->records.vars;
    memcpy(it->call.at, record->at, sizeof it->call.at);
    memcpy(it->call.bytes, record->bytes, sizeof it->call.bytes);
}

/* Rows of a quantized input for each of its var. */
static int64_t rows_a_token(const item *it)
{
    if (!(it->kernel->flags & EXPERTS)) return 1;
    return ((const struct ExpertParams *)it->call.params)->x_slots;
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
        if (!(it->kernel->flags & QUANTIZES)) continue;
        const struct LinearParams *p = it->call.params;
        it->owner = i;
        for (int32_t j = since_barrier; j < i && it->owner == i; j++) {
            const item *other = &program->items[j];
            const struct LinearParams *q = other->call.params;
            if (other->owner == j && other->call.at[0] == it->call.at[0] && q->k == p->k &&
                q->rows_var == p->rows_var && other->kernel->flags == it->kernel->flags &&
                rows_a_token(other) == rows_a_token(it))
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
        int64_t bytes = marlin_scratch_bytes(program->records.items[i].kernel_id, it->call.params);
        if (bytes > scratch) scratch = bytes;
        if (!(it->kernel->flags & QUANTIZES)) continue;
        bytes = marlin_quantized_bytes(MAX_PRIVATE_ROWS,
                                       ((const struct LinearParams *)it->call.params)->k);
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
    for (int i = 0; program->workers && i < marlin_pool_size(program->device->pool); i++) {
        free(program->workers[i].scratch);
        free(program->workers[i].rows);
    }
    free(program->workers);
    free(program->counters);
    free(program->shared);
    free(program->items);
    marlin_records_close(&program->records);
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
    int code = marlin_records_open(&program->records, device, records, count);
    if (code == MARLIN_OK && !program->items)
        code = marlin_fail(MARLIN_ENOMEM, "no memory for %d dispatches", count);
    for (int32_t i = 0; i < count && code == MARLIN_OK; i++) add_item(program, i);
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

static int64_t share_begin(int64_t units, int share, int num_workers)
{
    return units * share / num_workers;
}

/* While a worker waits it asks for the codes that it will read next, a few cache lines a call:
 * between two matrices the memory would be idle. Which experts will be read is not known yet. */
static void fetch_ahead(void *context, int worker)
{
    marlin_program *program = context;
    worker_memory *memory = &program->workers[worker];
    int num_workers = marlin_pool_size(program->device->pool);
    if (memory->ahead < memory->next) {
        memory->ahead = memory->next;
        while (memory->ahead < program->records.last &&
               (program->items[memory->ahead].kernel->flags & CHOOSES) != QUANTIZES)
            memory->ahead++;
        memory->ahead_line = 0;
    }
    if (memory->ahead >= program->records.last) return;
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
 * the owner may lie before the replay's first dispatch. */
static int is_prepared(const marlin_program *program, int32_t index)
{
    int32_t owner = program->items[index].owner;
    int32_t first = program->records.first;
    for (int32_t i = owner > first ? owner : first; i < index; i++)
        if (program->items[i].owner == owner) return 1;
    return 0;
}

/* Quantize a linear kernel's input, or find it done. Returns where it is. Every worker takes the
 * same branch, so all of them come to the meeting or none does. */
static uint8_t *prepare(marlin_program *program, int32_t index, int worker)
{
    worker_memory *memory = &program->workers[worker];
    item *it = &program->items[index];
    const struct LinearParams *p = it->call.params;
    int64_t rows = it->call.vars[p->rows_var] * rows_a_token(it);
    int is_plain = it->kernel->flags & EXPERTS;
    const float *x = (const float *)it->call.at[0];
    if (rows <= MAX_PRIVATE_ROWS) {
        if (memory->rows_owner != it->owner)
            program->device->isa->quantize_rows(x, p->k, 0, rows, memory->rows, rows, is_plain);
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
                                            rows, is_plain);
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
    if (piece < 1 || program->items[index].kernel->flags & UNEVEN) piece = 1;
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

/* Units that the workers share out: those of the kernel's first axes. 0: nothing is to be done. */
static int64_t shared_units(const marlin_program *program, int32_t index)
{
    const marlin_record *record = &program->records.items[index];
    marlin_units units =
        marlin_kernel_units(record->kernel_id, record->params, program->records.vars);
    int64_t shared = 1;
    for (int axis = 0; axis < 3; axis++) {
        if (units.axis[axis] <= 0) return 0;
        if (axis < record->kernel->axes) shared *= units.axis[axis];
    }
    return shared;
}

static void walk(void *context, int worker)
{
    marlin_program *program = context;
    worker_memory *memory = &program->workers[worker];
    marlin_pool *pool = program->device->pool;
    int num_workers = marlin_pool_size(pool);
    memory->rows_owner = memory->ahead = -1;
    int barrier =
        0; /* asked for since the last meeting, if only by a dispatch with nothing to do */
    for (int32_t i = program->records.first; i < program->records.last; i++) {
        item *it = &program->items[i];
        barrier |= it->barrier && i > program->records.first;
        int64_t units = shared_units(program, i);
        if (units == 0) continue;
        memory->next = i;
        if (barrier) marlin_pool_barrier(pool, fetch_ahead, program, worker);
        barrier = 0;
        memory->next = i + 1;
        marlin_call call = it->call;
        if (it->kernel->flags & QUANTIZES) call.prepared = prepare(program, i, worker);
        for (int j = 0; j < num_workers; j++)
            run_share(program, i, &call, units, (worker + j) % num_workers, memory->scratch);
    }
}

int marlin_program_submit(marlin_program *program, int32_t first, int32_t count,
                          const int32_t *vars, int32_t num_vars)
{
    if (!program) return marlin_fail(MARLIN_EINVAL, "no program");
    if (program->device->running) return marlin_fail(MARLIN_EBUSY, "a replay is in flight");
    int code = marlin_records_select(&program->records, first, count, vars, num_vars);
    if (code != MARLIN_OK) return code;
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
    return marlin_fail_index(&program->records, failed - 1);
}
