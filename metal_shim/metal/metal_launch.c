/* metal_launch.c: from a record to what Metal is asked to run: which variant of a kernel, with
 * which function constants, in how many threadgroups. The numbers are shaders/launch.h's. */
#include <string.h>

#include "metal/metal.h"
#include "launch.h"

/* Floats of a row that a unit of silu_mul's grid takes (marlin/device/ops.py). */
#define SILU_FLOATS 1024

typedef struct {
    int32_t threads; /* 0: SIMDGROUPS simdgroups */
    int64_t units[3]; /* of the grid that a threadgroup takes; 0: ROWS */
} launch;

static const launch launches[NUM_KERNELS] = {
#define X(kernel, threads, x, y, z) [KERNEL_##kernel] = {threads, {x, y, z}},
    MARLIN_LAUNCHES(X)
#undef X
};

marlin_call_words marlin_call_of(const marlin_records *records, int32_t index)
{
    marlin_call_words call = {.dispatch = (uint32_t)index};
    for (int i = 0; i < MARLIN_MAX_BINDINGS; i++) {
        int64_t words = records->items[index].bytes[i] / 4;
        call.words[i] = words < UINT32_MAX ? (uint32_t)words : UINT32_MAX;
    }
    return call;
}

/* SIMDGROUPS of a record whose kernel has it. */
static uint32_t simdgroups_of(const marlin_record *record)
{
    return MARLIN_SIMDGROUPS(((const struct LinearParams *)(const void *)record->params)->n);
}

int32_t marlin_launch_threads(const marlin_record *record)
{
    int32_t threads = launches[record->kernel_id].threads;
    return threads ? threads : SIMD_THREADS * (int32_t)simdgroups_of(record);
}

int marlin_check_launch(const marlin_record *record, size_t most, size_t width)
{
    int32_t threads = marlin_launch_threads(record);
    if ((size_t)threads <= most && width == SIMD_THREADS) return MARLIN_OK;
    return marlin_fail(MARLIN_EDEVICE,
                       "kernel %s needs threadgroups of %d threads in simdgroups of %d, this GPU "
                       "runs it with %zu in %zu",
                       record->kernel->name, threads, SIMD_THREADS, most, width);
}

int marlin_num_variants(int32_t kernel_id)
{
    return launches[kernel_id].units[1] == 0 ? NUM_ROWS : 1;
}

void marlin_constants_of(const marlin_record *record, int variant, uint32_t out[NUM_CONSTANTS])
{
    int32_t id = record->kernel_id;
    const void *params = record->params;
    memset(out, 0, NUM_CONSTANTS * sizeof *out);
    if (marlin_num_variants(id) > 1) out[ROWS] = 1u << variant;
    if (!launches[id].threads) out[SIMDGROUPS] = simdgroups_of(record);
    if (id >= KERNEL_embed_f32 && id <= KERNEL_embed_fp4) {
        out[GROUP_SIZE] = ((const struct EmbedParams *)params)->group_size;
        out[FLAGS] = ((const struct EmbedParams *)params)->flags;
    } else if (id >= KERNEL_matvec_f32 && id <= KERNEL_matmul_fp4) {
        out[GROUP_SIZE] = ((const struct LinearParams *)params)->group_size;
        out[FLAGS] = ((const struct LinearParams *)params)->flags;
    } else if (id >= KERNEL_attention && id <= KERNEL_attention_combine) {
        const struct AttentionParams *p = params;
        out[HEAD_DIM] = p->head_dim;
        out[HEADS_PER_KV] = p->num_heads / p->num_kv_heads;
    }
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t tiles_of(uint32_t n) { return ((int64_t)n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE; }

/* The units that a record's parameters and this step's vars ask for. A grid that is recorded larger
 * has nothing to do there. */
static void needed_units(const marlin_record *record, const int32_t *vars, int64_t out[3])
{
    const void *params = record->params;
    int64_t x, y = 1, z = 1;
    int32_t id = record->kernel_id;
    if (id == KERNEL_repack)
        x = tiles_of(((const struct RepackParams *)params)->n);
    else if (id == KERNEL_probe_read || id == KERNEL_probe_dot)
        x = ((const struct ProbeParams *)params)->num_units;
    else
        x = vars[*(const int32_t *)params]; /* rows_var, or tiles_var */
    if (id >= KERNEL_matvec_f32 && id <= KERNEL_matmul_fp4) {
        y = x;
        x = tiles_of(((const struct LinearParams *)params)->n);
    } else if (id == KERNEL_rms_norm) {
        y = ((const struct RmsNormParams *)params)->rows_per_var;
    } else if (id == KERNEL_rope_kv_write) {
        const struct RopeKvParams *p = params;
        y = (int64_t)p->num_heads + 2 * (int64_t)p->num_kv_heads;
    } else if (id == KERNEL_silu_mul) {
        y = (((const struct RowsParams *)params)->dim + SILU_FLOATS - 1) / SILU_FLOATS;
    } else if (id >= KERNEL_attention && id <= KERNEL_attention_combine) {
        const struct AttentionParams *p = params;
        y = id == KERNEL_attention_combine ? p->num_heads : p->num_kv_heads;
        if (id == KERNEL_attention_split) z = vars[p->splits_var];
    }
    out[0] = x, out[1] = y, out[2] = z;
}

int marlin_launch_of(const marlin_records *records, int32_t index, int64_t groups[3])
{
    const marlin_record *record = &records->items[index];
    const launch *how = &launches[record->kernel_id];
    int64_t needed[3];
    needed_units(record, records->vars, needed);
    for (int axis = 0; axis < 3; axis++) {
        groups[axis] = least(marlin_grid_units(records, index, axis), needed[axis]);
        if (groups[axis] <= 0) return -1;
    }
    int variant = 0;
    if (how->units[1] == 0)
        while (variant < NUM_ROWS - 1 && 1 << variant < groups[1]) variant++;
    for (int axis = 0; axis < 3; axis++) {
        int64_t units = how->units[axis] ? how->units[axis] : 1 << variant;
        groups[axis] = (groups[axis] + units - 1) / units;
    }
    return variant;
}
