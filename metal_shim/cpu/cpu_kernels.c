/* cpu_kernels.c: how the CPU device divides each kernel's work, and the memory that a worker needs
 * for it. The same for every instruction set. */
#include "cpu/cpu.h"

static int64_t units_linear(const marlin_call *call)
{
    const struct LinearParams *p = call->params;
    return ((int64_t)p->n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE;
}

/* Every parameter struct of a row kernel begins with its rows_var. */
static int64_t units_rows(const marlin_call *call)
{
    return call->vars[*(const int32_t *)call->params];
}

static int64_t units_rms_norm(const marlin_call *call)
{
    const struct RmsNormParams *p = call->params;
    return (int64_t)call->vars[p->rows_var] * p->rows_per_var;
}

static int64_t units_attention(const marlin_call *call)
{
    const struct AttentionParams *p = call->params;
    return (int64_t)call->vars[p->tiles_var] * p->num_kv_heads;
}

static int64_t units_attention_split(const marlin_call *call)
{
    const struct AttentionParams *p = call->params;
    return units_attention(call) * call->vars[p->splits_var];
}

static int64_t units_attention_combine(const marlin_call *call)
{
    const struct AttentionParams *p = call->params;
    return call->vars[p->tiles_var];
}

static int64_t scratch_attention(const marlin_call *call)
{
    const struct AttentionParams *p = call->params;
    int64_t rows = (int64_t)MARLIN_QUERY_TILE * (p->num_heads / p->num_kv_heads);
    return rows * (p->head_dim + MARLIN_KV_SPLIT + 2 * ((int64_t)p->head_dim + 2) + 1) * 4;
}

static int64_t scratch_sample(const marlin_call *call)
{
    const struct SampleParams *p = call->params;
    return 12 * (((int64_t)p->vocab_size + 15) / 16 * 16);
}

static int64_t units_repack(const marlin_call *call)
{
    const struct RepackParams *p = call->params;
    return ((int64_t)p->n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE;
}

static int64_t scratch_repack(const marlin_call *call)
{
    const struct RepackParams *p = call->params;
    return (int64_t)p->k / 16 * 8 + p->k;
}

static int64_t units_probe(const marlin_call *call)
{
    return ((const struct ProbeParams *)call->params)->num_units;
}

#define EMBED(weight) [KERNEL_embed_##weight] = {units_rows, NULL, 0, 0}
#define LINEAR(weight, quantizes)                                                                  \
    [KERNEL_matvec_##weight] = {units_linear, NULL, quantizes, 0},                                 \
    [KERNEL_matmul_##weight] = {units_linear, NULL, quantizes, 0}
#define OTHER(name, units, scratch) [KERNEL_##name] = {units, scratch, 0, 0}

const marlin_work marlin_works[NUM_KERNELS] = {
    EMBED(f32),
    EMBED(f16),
    EMBED(bf16),
    EMBED(int8),
    EMBED(int4),
    EMBED(fp4),
    LINEAR(f32, 0),
    LINEAR(f16, 0),
    LINEAR(bf16, 0),
    LINEAR(int8, 1),
    LINEAR(int4, 1),
    LINEAR(fp4, 1),
    OTHER(rms_norm, units_rms_norm, NULL),
    OTHER(rope_table, units_rows, NULL),
    OTHER(rope_kv_write, units_rows, NULL),
    OTHER(silu_mul, units_rows, NULL),
    OTHER(gather_rows, units_rows, NULL),
    [KERNEL_attention] = {units_attention, scratch_attention, 0, 1},
    [KERNEL_attention_split] = {units_attention_split, scratch_attention, 0, 1},
    OTHER(attention_combine, units_attention_combine, scratch_attention),
    OTHER(penalize, units_rows, NULL),
    OTHER(sample, units_rows, scratch_sample),
    OTHER(repack, units_repack, scratch_repack),
    OTHER(probe_read, units_probe, NULL),
    OTHER(probe_dot, units_probe, NULL),
};
