/* cpu.h: what the files of the CPU device share: the kernel table, a resolved call, a worker's own
 * memory. */
#ifndef MARLIN_CPU_H
#define MARLIN_CPU_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "marlin.h"
#include "params.h"

/* Every kernel, once: X(identifier). Ids are positions in this list, from 1. */
#define MARLIN_KERNELS(X)                                                                          \
    X(embed_f32)                                                                                   \
    X(embed_f16)                                                                                   \
    X(embed_bf16)                                                                                  \
    X(embed_int8)                                                                                  \
    X(embed_int4)                                                                                  \
    X(embed_fp4) X(matvec_f32) X(matvec_f16) X(matvec_bf16) X(matvec_int8) X(matvec_int4)          \
        X(matvec_fp4) X(matmul_f32) X(matmul_f16) X(matmul_bf16) X(matmul_int8) X(matmul_int4)     \
            X(matmul_fp4) X(rms_norm) X(rope_table) X(rope_kv_write) X(silu_mul) X(gather_rows)    \
                X(attention) X(attention_split) X(attention_combine) X(penalize) X(sample)         \
                    X(repack) X(probe_read) X(probe_dot)

enum {
    KERNEL_none = 0,
#define X(name) KERNEL_##name,
    MARLIN_KERNELS(X)
#undef X
        NUM_KERNELS
};

/* A dispatch with its buffers resolved. `prepared` is what the kernel's prepare step left for these
 * rows. */
typedef struct {
    const void *params;
    uint8_t *at[MARLIN_MAX_BINDINGS];
    int64_t bytes[MARLIN_MAX_BINDINGS];
    const int32_t *vars;
    uint8_t *prepared;
} marlin_call;

/* Run units [begin, end) of a call. scratch: the worker's own, as many bytes as the kernel's
 * `scratch` asked. Returns MARLIN_OK, or MARLIN_EDEVICE when a value in a buffer points outside
 * another. */
typedef int (*marlin_run)(const marlin_call *call, int64_t begin, int64_t end, uint8_t *scratch);

/* One instruction set's kernels, indexed by id. */
typedef struct {
    const char *name;
    marlin_run run[NUM_KERNELS];
    /* Quantize rows [begin, end) of x float [rows, k] into the layout that linear kernels read. */
    void (*quantize_rows)(const float *x, int64_t k, int64_t begin, int64_t end, uint8_t *prepared,
                          int64_t rows);
} marlin_isa;

/* Row limits gathered while a program is checked: vars[v] may be at most limit[v]. */
typedef struct {
    const marlin_call *call;
    const marlin_binding *bindings; /* of the record */
    int64_t limit[MARLIN_MAX_VARS];
    const char *problem; /* NULL: the call is sound */
    int binding;         /* the binding at fault, or -1 */
} marlin_check;

/* What the walker must know of a kernel, the same for every instruction set. */
typedef struct {
    const char *name;
    int32_t param_bytes;
    int32_t num_bindings;
    void (*check)(marlin_check *check);
    int64_t (*units)(const marlin_call *call);
    int64_t (*scratch)(const marlin_call *call); /* bytes a worker, or NULL */
    int quantizes; /* 1: binding 0 is quantized first (LinearParams) */
} marlin_kernel;

extern const marlin_kernel marlin_kernels[NUM_KERNELS];

/* Bytes of `rows` quantized rows of k: int8 codes, then 24 bytes for each group of 32
 * (kernels_linear.c). */
static inline int64_t marlin_quantized_bytes(int64_t rows, int64_t k)
{
    return rows * (k + k / MARLIN_ACT_GROUP * 24);
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

/* Device and buffer access for the program file. */
typedef struct {
    uint8_t *memory;
    int64_t bytes;
    void *mapping; /* what to unmap, or NULL for wrapped memory */
    size_t mapping_bytes;
    int32_t holds; /* the caller's and each program's; 0: free slot */
    int8_t writable;
    int8_t released; /* the caller gave it up: the id is no longer valid for new programs */
    int8_t from_file;
} marlin_buffer;

struct marlin_device {
    const marlin_isa *isa;
    marlin_pool *pool;
    marlin_buffer *buffers; /* index 0 unused */
    int32_t num_buffers;
    int64_t allocated_bytes;
    int64_t mapped_bytes;
    marlin_program *running;
};

int marlin_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
marlin_buffer *marlin_buffer_get(marlin_device *device, int id);
void marlin_buffer_unhold(marlin_device *device, int id);

#endif
