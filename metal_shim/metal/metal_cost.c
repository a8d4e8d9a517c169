/* metal_cost.c: how long a dispatch takes, estimated from its operations and bytes, in seconds of
 * an M1 with 8 cores. The replay cuts its command buffers by it, and scales it by what they took.
 */
#include "metal/metal.h"

/* What kernels reach on that GPU, which has 2.6e12 and 68e9: low, so that a first step, which
 * nothing has been measured for, is cut too short and not too long. */
#define OPERATIONS_A_SECOND 1.0e12
#define BYTES_A_SECOND 50e9
/* A dispatch behind a barrier (docs/metal.md). */
#define LAUNCH_SECONDS 4e-6
/* Attention's operations take longer than a matrix's: they wait for softmax and for the cache. */
#define ATTENTION_SLOWNESS 2
/* Of a unit of the kernels that nothing here counts: rows of activations. */
#define UNIT_BYTES 32768
/* Passes of a sampler over its logits. */
#define SAMPLE_PASSES 9

typedef struct {
    double operations, bytes;
} cost;

static const double weight_bits[NUM_WEIGHT_KINDS] = {
#define X(kind, bits, group, bias) [WEIGHT_##kind] = bits + (group ? 1 : 0),
    MARLIN_WEIGHT_KINDS(X)
#undef X
};

static double matrix_bytes(const marlin_record *record, double n, double k)
{
    return n * k * weight_bits[record->kernel->weight] / 8;
}

static double least(double a, double b) { return a < b ? a : b; }

static cost cost_of_units(const marlin_record *record, const int32_t *vars)
{
    marlin_units units = marlin_kernel_units(record->kernel_id, record->params, vars);
    double count = (double)units.axis[0] * (double)units.axis[1] * (double)units.axis[2];
    return (cost){.bytes = count * UNIT_BYTES};
}

static cost cost_of_linear(const marlin_record *record, const int32_t *vars)
{
    const struct LinearParams *p = (const void *)record->params;
    double rows = vars[p->rows_var];
    return (cost){2 * rows * p->n * p->k, matrix_bytes(record, p->n, p->k)};
}

static cost cost_of_fused(const marlin_record *record, const int32_t *vars)
{
    const struct FusedParams *p = (const void *)record->params;
    double matrices = p->flags & MARLIN_GATED ? 2 : 1, rows = vars[p->rows_var];
    return (cost){2 * matrices * rows * p->n * p->k, matrices * matrix_bytes(record, p->n, p->k)};
}

static cost cost_of_experts(const marlin_record *record, const int32_t *vars)
{
    const struct ExpertParams *p = (const void *)record->params;
    double chosen = (double)vars[p->rows_var] * p->num_slots;
    return (cost){2 * chosen * p->n * p->k,
                  least(chosen, p->num_experts) * matrix_bytes(record, p->n, p->k)};
}

/* Of a token's key and value in one layer. */
static double token_bytes(const struct AttentionParams *p)
{
    double halves = p->latent_dim ? 1.0 : 2.0 * p->num_kv_heads;
    return (p->kv_f32 ? 4.0 : 2.0) * halves * p->head_dim;
}

static cost cost_of_split(const marlin_record *record, const int32_t *vars)
{
    const struct AttentionParams *p = (const void *)record->params;
    double tokens = (double)vars[p->tiles_var] * vars[p->splits_var] * MARLIN_KV_SPLIT;
    return (cost){4 * tokens * p->num_heads * p->head_dim, tokens * token_bytes(p)};
}

static cost cost_of_logits(const marlin_record *record, const int32_t *vars)
{
    const struct SampleParams *p = (const void *)record->params;
    return (cost){.bytes = 4.0 * SAMPLE_PASSES * vars[p->rows_var] * p->vocab_size};
}

static cost cost_of_repack(const marlin_record *record, const int32_t *vars)
{
    const struct RepackParams *p = (const void *)record->params;
    (void)vars;
    return (cost){.bytes = 2.0 * p->n * p->k};
}

static cost cost_of_probe(const marlin_record *record, const int32_t *vars)
{
    const struct ProbeParams *p = (const void *)record->params;
    (void)vars;
    return (cost){8.0 * p->num_units * MARLIN_PROBE_DOTS,
                  (double)p->num_units * MARLIN_PROBE_BYTES};
}

/* A tile's context is in its buffer, which whoever submits has filled. */
static cost cost_of_tile(const marlin_record *record, int32_t index)
{
    const struct AttentionParams *p = (const void *)record->params;
    const int32_t *tile = (const int32_t *)(const void *)record->at[4] + 4 * (int64_t)index;
    double held = (double)p->table_stride * p->block_size;
    double rows = tile[1] < 1 ? 1 : least(tile[1], MARLIN_QUERY_TILE);
    double seen = tile[3] < 0 ? 1 : least(tile[3] + rows, held);
    if (p->window) seen = least(seen, p->window + rows);
    return (cost){4 * ATTENTION_SLOWNESS * rows * seen * p->num_heads * p->head_dim,
                  seen * token_bytes(p)};
}

static cost cost_of_attention(const marlin_record *record, const int32_t *vars)
{
    const struct AttentionParams *p = (const void *)record->params;
    cost sum = {0, 0};
    for (int32_t i = 0; i < vars[p->tiles_var]; i++) {
        cost tile = cost_of_tile(record, i);
        sum = (cost){sum.operations + tile.operations, sum.bytes + tile.bytes};
    }
    return sum;
}

/* attention_combine alone is neither. */
static cost cost_of_context(const marlin_record *record, const int32_t *vars)
{
    if (record->kernel_id == KERNEL_attention) return cost_of_attention(record, vars);
    if (record->kernel_id == KERNEL_attention_split) return cost_of_split(record, vars);
    return cost_of_units(record, vars);
}

#define COST_OF(params)                                                                            \
    _Generic((const params *)0,                                                                    \
        const struct LinearParams *: cost_of_linear,                                               \
        const struct FusedParams *: cost_of_fused,                                                 \
        const struct ExpertParams *: cost_of_experts,                                              \
        const struct AttentionParams *: cost_of_context,                                           \
        const struct SampleParams *: cost_of_logits,                                               \
        const struct RepackParams *: cost_of_repack,                                               \
        const struct ProbeParams *: cost_of_probe,                                                 \
        default: cost_of_units)

static cost (*const costs[NUM_KERNELS])(const marlin_record *record, const int32_t *vars) = {
#define X(name, check, weight, params, ...) [KERNEL_##name] = COST_OF(struct params),
    MARLIN_KERNELS(X)
#undef X
};

static double seconds_of(cost sum)
{
    double computing = sum.operations / OPERATIONS_A_SECOND, reading = sum.bytes / BYTES_A_SECOND;
    return computing > reading ? computing : reading;
}

double marlin_launch_seconds(const marlin_records *records, int32_t index)
{
    const marlin_record *record = &records->items[index];
    return LAUNCH_SECONDS + seconds_of(costs[record->kernel_id](record, records->vars));
}

int32_t marlin_launch_tiles(const marlin_records *records, int32_t index)
{
    const marlin_record *record = &records->items[index];
    if (record->kernel_id != KERNEL_attention) return 0;
    return records->vars[((const struct AttentionParams *)(const void *)record->params)->tiles_var];
}

double marlin_tile_seconds(const marlin_records *records, int32_t index, int32_t tile)
{
    return seconds_of(cost_of_tile(&records->items[index], tile));
}
