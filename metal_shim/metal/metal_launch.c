/* metal_launch.c: from a record to what Metal is asked to run: which variant of a kernel, with
 * which function constants, in how many threadgroups. The numbers are kernel_list.h's. */
#include <string.h>

#include "metal/metal.h"

typedef struct {
    int32_t threads;  /* 0: SIMDGROUPS simdgroups */
    int64_t units[3]; /* that a threadgroup takes; 0: ROWS */
    void (*constants)(const void *params, uint32_t *out);
} launch;

static void no_constants(const void *params, uint32_t *out) { (void)params, (void)out; }

static void embed_constants(const void *params, uint32_t *out)
{
    const struct EmbedParams *p = params;
    out[GROUP_SIZE] = p->group_size;
    out[FLAGS] = p->flags;
}

static void linear_constants(const void *params, uint32_t *out)
{
    const struct LinearParams *p = params;
    out[GROUP_SIZE] = p->group_size;
    out[FLAGS] = p->flags;
}

static void attention_constants(const void *params, uint32_t *out)
{
    const struct AttentionParams *p = params;
    out[HEAD_DIM] = p->head_dim;
    out[HEADS_PER_KV] = p->num_heads / p->num_kv_heads;
    out[KV_F32] = p->kv_f32 != 0;
    out[LATENT_DIM] = p->latent_dim;
}

static void latent_constants(const void *params, uint32_t *out)
{
    out[KV_F32] = ((const struct LatentParams *)params)->kv_f32 != 0;
}

static void rope_constants(const void *params, uint32_t *out)
{
    out[KV_F32] = ((const struct RopeKvParams *)params)->kv_f32 != 0;
}

/* Function constants that come from a struct of parameters. */
#define CONSTANTS_OF(params)                                                                       \
    _Generic((const params *)0,                                                                    \
        const struct EmbedParams *: embed_constants,                                               \
        const struct LinearParams *: linear_constants,                                             \
        const struct FusedParams *: linear_constants,                                              \
        const struct ExpertParams *: linear_constants,                                             \
        const struct AttentionParams *: attention_constants,                                       \
        const struct LatentParams *: latent_constants,                                             \
        const struct RopeKvParams *: rope_constants,                                               \
        default: no_constants)

static const launch launches[NUM_KERNELS] = {
#define X(name, check, weight, params, bindings, units, axes, flags, threads, x, y)                \
    [KERNEL_##name] = {threads, {x, y, 1}, CONSTANTS_OF(struct params)},
    MARLIN_KERNELS(X)
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
    const launch *how = &launches[record->kernel_id];
    memset(out, 0, NUM_CONSTANTS * sizeof *out);
    if (marlin_num_variants(record->kernel_id) > 1) out[ROWS] = 1u << variant;
    if (!how->threads) out[SIMDGROUPS] = simdgroups_of(record);
    how->constants(record->params, out);
}

int marlin_launch_of(const marlin_records *records, int32_t index, int64_t groups[3])
{
    const marlin_record *record = &records->items[index];
    const launch *how = &launches[record->kernel_id];
    marlin_units units = marlin_kernel_units(record->kernel_id, record->params, records->vars);
    int variant = 0;
    if (how->units[1] == 0)
        while (variant < NUM_ROWS - 1 && 1 << variant < units.axis[1]) variant++;
    for (int axis = 0; axis < 3; axis++) {
        if (units.axis[axis] <= 0) return -1;
        int64_t size = how->units[axis] ? how->units[axis] : 1 << variant;
        groups[axis] = (units.axis[axis] + size - 1) / size;
    }
    return variant;
}
