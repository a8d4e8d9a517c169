/* cpu.h: what the files of the CPU device share: a resolved call, an instruction set's kernels, the
 * worker pool. */
#ifndef MARLIN_CPU_H
#define MARLIN_CPU_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "common/kernels.h"

/* A dispatch with its buffers resolved. `prepared` is what the kernel's prepare step left for these
 * rows. */
typedef struct {
    const void *params;
    uint8_t *at[MARLIN_MAX_BINDINGS];
    int64_t bytes[MARLIN_MAX_BINDINGS];
    const int32_t *vars;
    uint8_t *prepared;
} marlin_call;

/* Run units [begin, end) of a call. scratch: the worker's own, marlin_scratch_bytes(). Returns
 * MARLIN_OK, or MARLIN_EDEVICE when a value in a buffer points outside another. */
typedef int (*marlin_run)(const marlin_call *call, int64_t begin, int64_t end, uint8_t *scratch);

/* One instruction set's kernels, indexed by id. */
typedef struct {
    const char *name;
    marlin_run run[NUM_KERNELS];
    /* Quantize rows [begin, end) of x float [rows, k] into the layout that linear kernels read. */
    void (*quantize_rows)(const float *x, int64_t k, int64_t begin, int64_t end, uint8_t *prepared,
                          int64_t rows, int is_plain);
} marlin_isa;

int64_t marlin_scratch_bytes(int32_t kernel_id, const void *params);

/* Bytes of `rows` quantized rows of k: int8 codes, then 32 bytes for each group of 32, then 4
 * (kernels_linear.c). */
static inline int64_t marlin_quantized_bytes(int64_t rows, int64_t k)
{
    return rows * (k + k / MARLIN_ACT_GROUP * 32 + 4);
}

/* The worker pool: workers [1, num_threads) are threads, worker 0 is whoever calls
 * marlin_pool_run(). */
typedef struct marlin_pool marlin_pool;
typedef void (*marlin_pool_job)(void *context, int worker);

marlin_pool *marlin_pool_create(int num_threads);
void marlin_pool_destroy(marlin_pool *pool);
int marlin_pool_size(const marlin_pool *pool);
/* Wake the workers on job(context, worker); they start while the caller goes on. */
void marlin_pool_start(marlin_pool *pool, marlin_pool_job job, void *context);
/* Take part as worker 0 and return when every worker has finished. */
void marlin_pool_finish(marlin_pool *pool);
/* All workers meet. Spins briefly, then sleeps; while it spins it calls idle(context, worker),
 * which must return within a microsecond. */
typedef void (*marlin_pool_idle)(void *context, int worker);
void marlin_pool_barrier(marlin_pool *pool, marlin_pool_idle idle, void *context, int worker);

struct marlin_device {
    const marlin_isa *isa;
    marlin_pool *pool;
    marlin_buffers buffers;
    marlin_program *running;
};

#endif
