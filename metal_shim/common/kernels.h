/* kernels.h: what every device knows of a kernel, whatever runs it: its id, what a record of it
 * must hold, and the records of a program once they are found sound. */
#ifndef MARLIN_KERNELS_H
#define MARLIN_KERNELS_H

#include <stdint.h>

#include "block_types.h"
#include "common/buffers.h"
#include "kernel_list.h"
#include "params.h"

enum {
    KERNEL_none = 0,
#define X(name, ...) KERNEL_##name,
    MARLIN_KERNELS(X)
#undef X
        NUM_KERNELS
};

/* Kinds of weights (block_types.h). */
enum {
    WEIGHT_none = 0,
#define X(kind, ...) WEIGHT_##kind,
    MARLIN_WEIGHT_KINDS(X)
#undef X
        NUM_WEIGHT_KINDS
};

enum { QUANTIZES = 1, UNEVEN = 2, EXPERTS = 4, CHOOSES = QUANTIZES | EXPERTS };

typedef struct marlin_check marlin_check;

/* A row of kernel_list.h, as far as both devices read it. */
typedef struct {
    const char *name;
    void (*check)(marlin_check *check); /* kernel_checks.c */
    int32_t weight;                     /* WEIGHT_... */
    int32_t param_bytes;
    int32_t num_bindings;
    int32_t axes;
    int32_t flags;
} marlin_kernel;

extern const marlin_kernel marlin_kernels[NUM_KERNELS];

/* Units of work on three axes; where one is 0, nothing is to be done. */
typedef struct {
    int64_t axis[3];
} marlin_units;

/* Groups that sort_experts fills: no more experts are chosen than there are choices. */
static inline int64_t marlin_num_groups(int64_t rows, int64_t num_slots, int64_t num_experts)
{
    return rows * num_slots < num_experts ? rows * num_slots : num_experts;
}

/* Of a kernel with parameters that have passed its check, in a step with these vars. */
marlin_units marlin_kernel_units(int32_t kernel_id, const void *params, const int32_t *vars);

/* A copy of a dispatch whose buffers are held. */
typedef struct {
    const marlin_kernel *kernel;
    int32_t kernel_id;
    int32_t barrier;
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
/* MARLIN_EDEVICE: dispatch `index` met an index that its buffers do not hold. */
int marlin_fail_index(const marlin_records *records, int32_t index);

#endif
