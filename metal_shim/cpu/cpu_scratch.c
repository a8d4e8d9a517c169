/* cpu_scratch.c: the memory that a worker needs for a kernel, the same for every instruction set.
 */
#include "cpu/cpu.h"

static int64_t attention_bytes(const struct AttentionParams *p)
{
    int64_t rows = (int64_t)MARLIN_QUERY_TILE * (p->num_heads / p->num_kv_heads);
    int64_t values = p->latent_dim ? p->latent_dim : p->head_dim;
    return rows * (p->head_dim + MARLIN_KV_SPLIT + 2 * (values + 2) + 1) * 4;
}

static int64_t sample_bytes(const struct SampleParams *p)
{
    return 12 * (((int64_t)p->vocab_size + 15) / 16 * 16);
}

static int64_t repack_bytes(const struct RepackParams *p) { return (int64_t)p->k / 16 * 8 + p->k; }

/* Of a head: its piece of the state, and a row's key and query. */
static int64_t delta_bytes(const struct DeltaParams *p)
{
    return (int64_t)p->key_dim * (MARLIN_DELTA_COLUMNS + 2) * 4;
}

static int64_t latent_bytes(const struct LatentParams *p) { return 4 * (int64_t)p->row_dim; }

int64_t marlin_scratch_bytes(int32_t kernel_id, const void *params)
{
    switch (kernel_id) {
    case KERNEL_attention:
    case KERNEL_attention_split:
    case KERNEL_attention_combine: return attention_bytes(params);
    case KERNEL_sample: return sample_bytes(params);
    case KERNEL_delta_rule: return delta_bytes(params);
    case KERNEL_latent_write: return latent_bytes(params);
    case KERNEL_repack: return repack_bytes(params);
    default: return 0;
    }
}
