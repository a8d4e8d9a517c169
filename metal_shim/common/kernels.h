/* kernels.h: what every device knows of a kernel, whatever runs it: its id, what a record of it
 * must hold, and the records of a program once they are found sound. */
#ifndef MARLIN_KERNELS_H
#define MARLIN_KERNELS_H

#include <stdint.h>

#include "common/buffers.h"
#include "params.h"

/* Every kernel, once: X(identifier). Ids are positions in this list, from 1. */
#define MARLIN_KERNELS(X)                                                                          \
    X(embed_f32)                                                                                   \
    X(embed_f16)                                                                                   \
    X(embed_bf16)                                                                                  \
    X(embed_int8)                                                                                  \
    X(embed_int4)                                                                                  \
    X(embed_fp4)                                                                                   \
    X(matvec_f32)                                                                                  \
    X(matvec_f16) X(matvec_bf16) X(matvec_int8) X(matvec_int4) X(matvec_fp4) X(matmul_f32)         \
        X(matmul_f16) X(matmul_bf16) X(matmul_int8) X(matmul_int4) X(matmul_fp4) X(rms_norm)       \
            X(rope_table) X(rope_kv_write) X(silu_mul) X(gather_rows) X(attention)                 \
                X(attention_split) X(attention_combine) X(penalize) X(sample) X(repack)            \
                    X(probe_read) X(probe_dot)

enum {
    KERNEL_none = 0,
#define X(name) KERNEL_##name,
    MARLIN_KERNELS(X)
#undef X
        NUM_KERNELS
};

typedef struct marlin_check marlin_check;

typedef struct {
    const char *name;
    int32_t param_bytes;
    int32_t num_bindings;
    void (*check)(marlin_check *check); /* kernel_checks.c */
} marlin_kernel;

extern const marlin_kernel marlin_kernels[NUM_KERNELS];

/* A copy of a dispatch whose buffers are held. */
typedef struct {
    const marlin_kernel *kernel;
    int32_t kernel_id;
    int32_t barrier;
    int32_t grid_value[3], grid_var[3];
    _Alignas(8) uint8_t params[MARLIN_MAX_PARAM_BYTES];
    int32_t buffer[MARLIN_MAX_BINDINGS]; /* id, or 0: not bound */
    int32_t access[MARLIN_MAX_BINDINGS];
    int64_t offset[MARLIN_MAX_BINDINGS]; /* in its buffer */
    int64_t bytes[MARLIN_MAX_BINDINGS];
    uint8_t *at[MARLIN_MAX_BINDINGS]; /* host address */
    uint32_t needed;                  /* bit i: the kernel touches binding i */
} marlin_record;

/* What a kernel's check reads, and what it finds. */
struct marlin_check {
    const marlin_record *record;
    int64_t limit[MARLIN_MAX_VARS]; /* vars[v] may be at most limit[v] */
    uint32_t needed;                /* the record's */
    const char *problem;            /* NULL: the record is sound */
    int binding;                    /* the binding at fault, or -1 */
};

/* A program's records and the replay that was last asked for. */
typedef struct {
    marlin_device *device;
    marlin_record *items;
    int32_t count;
    int64_t limit[MARLIN_MAX_VARS];
    int32_t vars[MARLIN_MAX_VARS];
    int32_t first, last; /* dispatches [first, last) */
} marlin_records;

/* Check `count` dispatches, keep copies and hold their buffers. A negative code: call close all the
 * same. */
int marlin_records_open(marlin_records *records, marlin_device *device,
                        const marlin_dispatch *dispatches, int32_t count);
void marlin_records_close(marlin_records *records);
/* Check and keep what marlin_program_submit() was given. */
int marlin_records_select(marlin_records *records, int32_t first, int32_t count,
                          const int32_t *vars, int32_t num_vars);
/* Units along an axis in this replay; any axis without one: the dispatch is skipped. */
int64_t marlin_grid_units(const marlin_records *records, int32_t index, int axis);
int marlin_grid_is_empty(const marlin_records *records, int32_t index);
/* MARLIN_EDEVICE: dispatch `index` met an index that its buffers do not hold. */
int marlin_fail_index(const marlin_records *records, int32_t index);

#endif
