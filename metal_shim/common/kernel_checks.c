/* kernel_checks.c: what each kernel asks of its parameters and bindings, on every device. Run by
 * records.c when a program is created, so that kernels can trust their sizes. */
#include <stdbool.h>

#include "common/kernels.h"

#define MAX_DIM (1 << 20)
#define MAX_VOCAB (1 << 24)
/* Packed weights, what they multiply and the KV cache are read in vectors of this many bytes. */
#define VECTOR_BYTES 16

static const void *params_of(const marlin_check *c) { return c->record->params; }

static void refuse(marlin_check *c, int binding, const char *problem)
{
    if (c->problem) return;
    c->problem = problem;
    c->binding = binding;
}

static void require(marlin_check *c, bool holds, const char *problem)
{
    if (!holds) refuse(c, -1, problem);
}

/* The kernel touches the binding. alignment: bytes of the binding's largest element. */
static void need(marlin_check *c, int binding, int alignment, int64_t bytes)
{
    if (c->problem) return;
    c->needed |= 1u << binding;
    if (c->record->bytes[binding] < bytes)
        refuse(c, binding, "is smaller than the parameters ask");
    else if ((uintptr_t)c->record->at[binding] % alignment != 0)
        refuse(c, binding, "begins where its elements cannot be read");
}

/* The kernel writes the binding: barriers must know, and a mapped file cannot be written. */
static void writes(marlin_check *c, int binding)
{
    if (!c->problem && !(c->record->access[binding] & MARLIN_WRITE))
        refuse(c, binding, "is written but not declared so");
}

/* The binding holds row_bytes for each of vars[var] * rows_per_var rows (and `extra` more rows), of
 * elements of 4 bytes. */
static void need_rows(marlin_check *c, int binding, int32_t var, int64_t rows_per_var,
                      int64_t extra, int64_t row_bytes)
{
    if (c->problem) return;
    if (var < 0 || var >= MARLIN_MAX_VARS) {
        refuse(c, -1, "names a var out of range");
        return;
    }
    int64_t rows = (c->record->bytes[binding] / row_bytes - extra) / rows_per_var;
    if (rows < 1)
        refuse(c, binding, "does not hold one row");
    else if (rows < c->limit[var])
        c->limit[var] = rows;
    need(c, binding, 4, 0);
}

/* ---- embedding and linear layers ---- */

typedef struct {
    int bits, group, bias;
} weight_kind;

static const weight_kind weight_kinds[NUM_WEIGHT_KINDS] = {
#define X(kind, bits, group, bias) [WEIGHT_##kind] = {bits, group, bias},
    MARLIN_WEIGHT_KINDS(X)
#undef X
};

/* The weight's values or codes, scales and biases: three bindings from `first` on. */
static void check_weight(marlin_check *c, int first, int64_t n, int64_t k, uint32_t group,
                         uint32_t flags)
{
    const weight_kind *kind = &weight_kinds[c->record->kernel->weight];
    if (kind->group == 0) {
        need(c, first, kind->bits / 8, n * k * kind->bits / 8);
        return;
    }
    require(c, group == 16 || group == 32 || group == 64 || group == 128,
            "has a group size other than 16, 32, 64 or 128");
    require(c, group >= (uint32_t)kind->group, "has a group size that its kind is not read in");
    bool has_bias = flags & MARLIN_WEIGHT_BIAS;
    require(c, has_bias || kind->bias != MARLIN_MUST, "needs a weight bias");
    require(c, !has_bias || kind->bias != MARLIN_NEVER, "has no weight bias");
    if (c->problem) return;
    require(c, k % 32 == 0 && k % group == 0,
            "has a width that is no multiple of 32 and of the group size");
    uint32_t form = flags & MARLIN_SCALE_FORMS;
    require(c, !(form & (form - 1)) && !(form == MARLIN_SCALE_BLOCK && k % MARLIN_BLOCK_COLUMNS),
            "has scales of two forms, or of blocks that do not fill its width");
    int64_t padded = (n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE * MARLIN_ROW_TILE;
    int64_t scale_bytes = MARLIN_SCALE_BYTES(flags, group, k, padded * (k / group));
    need(c, first, VECTOR_BYTES, padded * k * kind->bits / 8);
    for (int i = 1; i <= 1 + has_bias; i++) need(c, first + i, VECTOR_BYTES, scale_bytes);
}

static void check_embed(marlin_check *c)
{
    const struct EmbedParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    require(c, p->vocab_size >= 1 && p->vocab_size <= MAX_VOCAB, "has a vocab_size out of range");
    if (c->problem) return;
    check_weight(c, 1, p->vocab_size, p->dim, p->group_size, p->flags);
    need_rows(c, 0, p->rows_var, 1, 0, 4);
    need_rows(c, 4, p->rows_var, 1, 0, 4 * (int64_t)p->dim);
    writes(c, 4);
}

static void check_linear(marlin_check *c)
{
    const struct LinearParams *p = params_of(c);
    require(c, p->n >= 1 && p->n <= MAX_VOCAB, "has an n out of range");
    require(c, p->k >= 1 && p->k <= MAX_DIM, "has a k out of range");
    if (c->problem) return;
    check_weight(c, 1, p->n, p->k, p->group_size, p->flags);
    if (weight_kinds[c->record->kernel->weight].group > 0 || p->k % 4 == 0)
        need(c, 0, VECTOR_BYTES, 0);
    if (p->flags & MARLIN_OUTPUT_BIAS) need(c, 4, 4, 4 * (int64_t)p->n);
    need_rows(c, 0, p->rows_var, 1, 0, 4 * (int64_t)p->k);
    need_rows(c, 5, p->rows_var, 1, 0, 4 * (int64_t)p->n);
    writes(c, 5);
}

#include "common/checks_experts.h"
#include "common/checks_fused.h"

static void check_rms_norm(marlin_check *c)
{
    const struct RmsNormParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    require(c, p->rows_per_var >= 1 && p->rows_per_var <= 4096, "has a rows_per_var out of range");
    if (c->problem) return;
    int64_t row_bytes = 4 * (int64_t)p->dim;
    need_rows(c, 0, p->rows_var, p->rows_per_var, 0, row_bytes);
    if (p->has_delta) need_rows(c, 1, p->rows_var, p->rows_per_var, 0, row_bytes);
    need(c, 2, 4, row_bytes);
    need_rows(c, 3, p->rows_var, p->rows_per_var, 0, row_bytes);
    if (p->has_delta) writes(c, 0);
    writes(c, 3);
    require(c, !p->adds || c->record->access[3] & MARLIN_READ, "adds to what it does not read");
}

static void check_layer_norm(marlin_check *c)
{
    const struct LayerNormParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    if (c->problem) return;
    int64_t row_bytes = 4 * (int64_t)p->dim;
    need_rows(c, 0, p->rows_var, 1, 0, row_bytes);
    if (p->has_delta) need_rows(c, 1, p->rows_var, 1, 0, row_bytes);
    for (int i = 2; i < 4; i++) need(c, i, 4, row_bytes);
    need_rows(c, 4, p->rows_var, 1, 0, row_bytes);
    if (p->has_delta) writes(c, 0);
    writes(c, 4);
}

static void check_rope_table(marlin_check *c)
{
    const struct RopeTableParams *p = params_of(c);
    require(c, p->half_dim >= 1 && p->half_dim <= 4096, "has a half_dim out of range");
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, 1, 0, 4);
    need(c, 1, 4, 4 * (int64_t)p->half_dim);
    need_rows(c, 2, p->rows_var, 1, 0, 8 * (int64_t)p->half_dim);
    writes(c, 2);
}

static void check_cache(marlin_check *c, int first, int count, uint32_t kv_heads, uint32_t dim,
                        uint32_t block_size, uint32_t num_blocks, uint32_t kv_f32)
{
    require(c, kv_heads >= 1 && kv_heads <= 4096, "has a num_kv_heads out of range");
    require(c, block_size >= 16 && block_size % 16 == 0,
            "has a block_size that is no multiple of 16");
    require(c, num_blocks >= 1, "has no blocks");
    require(c, (uint64_t)num_blocks * block_size <= INT32_MAX,
            "has more slots than an int32 holds");
    if (c->problem) return;
    int64_t bytes = (int64_t)num_blocks * block_size * kv_heads * dim * (kv_f32 ? 4 : 2);
    for (int i = first; i < first + count; i++) need(c, i, VECTOR_BYTES, bytes);
}

static void check_rope_kv_write(marlin_check *c)
{
    const struct RopeKvParams *p = params_of(c);
    bool has_kv = p->num_kv_heads > 0;
    require(c, p->num_heads >= 1 && p->num_heads <= 4096, "has a num_heads out of range");
    require(c, p->head_dim >= 16 && p->head_dim <= 1024 && p->head_dim % 16 == 0,
            "has a head_dim that is no multiple of 16 up to 1024");
    require(c, has_kv || !c->record->bytes[5], "has a cache and no heads for it");
    if (has_kv)
        check_cache(c, 5, 2, p->num_kv_heads, p->head_dim, p->block_size, p->num_blocks, p->kv_f32);
    require(c, p->rotary_dim <= p->head_dim && p->rotary_dim % 2 == 0,
            "has a rotary_dim that is odd or beyond the head");
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, 1, 0, 4 * (int64_t)p->num_heads * p->head_dim);
    for (int i = 1; has_kv && i < 3; i++)
        need_rows(c, i, p->rows_var, 1, 0, 4 * (int64_t)p->num_kv_heads * p->head_dim);
    if (p->rotary_dim) need_rows(c, 3, p->rows_var, 1, 0, 4 * (int64_t)p->rotary_dim);
    for (int i = 7; p->has_norms && i < 8 + has_kv; i++) need(c, i, 4, 4 * (int64_t)p->head_dim);
    for (int i = 4; has_kv && i < 10; i += 5) need_rows(c, i, p->rows_var, 1, 0, 4);
    static const int written[] = {0, 1, 5, 6, 9};
    for (int i = 0; i < (has_kv ? 5 : 1); i++) writes(c, written[i]);
}

static void check_rows(marlin_check *c, int count) /* of equal bindings; the last is written */
{
    const struct RowsParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    if (c->problem) return;
    for (int i = 0; i < count; i++) need_rows(c, i, p->rows_var, 1, 0, 4 * (int64_t)p->dim);
    writes(c, count - 1);
}
static void check_gated_mul(marlin_check *c) { check_rows(c, 3); }
static void check_gelu(marlin_check *c) { check_rows(c, 2); }

static void check_scale_rows(marlin_check *c)
{
    const struct ScaleParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_VOCAB, "has a dim out of range");
    require(c, p->cap >= 0.0f, "has a cap below 0");
    if (c->problem) return;
    for (int i = 0; i < 2; i++) need_rows(c, i, p->rows_var, 1, 0, 4 * (int64_t)p->dim);
    writes(c, 1);
}

static void check_gather_rows(marlin_check *c)
{
    const struct RowsParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, 1, 0, 4);
    need(c, 1, 4, 0); /* the kernel checks each row that it takes */
    need_rows(c, 2, p->rows_var, 1, 0, 4 * (int64_t)p->dim);
    writes(c, 2);
}

/* ---- attention ---- */

#include "common/checks_latent.h"

static void check_attention_params(marlin_check *c)
{
    const struct AttentionParams *p = params_of(c);
    require(c, p->num_kv_heads >= 1 && p->num_kv_heads <= 4096, "has a num_kv_heads out of range");
    require(c, p->num_heads >= 1 && p->num_heads <= 4096, "has a num_heads out of range");
    if (c->problem) return;
    require(c, p->num_heads % p->num_kv_heads == 0,
            "has heads that do not divide into its KV heads");
    require(c, p->head_dim >= 16 && p->head_dim <= 1024 && p->head_dim % 16 == 0,
            "has a head_dim that is no multiple of 16 up to 1024");
    require(c, p->table_stride >= 1 && p->table_stride <= INT32_MAX / 4,
            "has a table_stride out of range");
    require(c, p->latent_dim <= p->head_dim && p->latent_dim % 16 == 0,
            "has a latent_dim that is no multiple of 16 up to its head_dim");
    require(c, p->softcap >= 0.0f, "has a softcap below 0");
    require(c, p->position_scale == 0.0f || p->scale_tokens >= 1, "has no scale_tokens");
    require(c, p->max_splits >= 1 && p->max_splits <= (1 << 20), "has a max_splits out of range");
    for (int i = 3; i < 5; i++) keep_apart(c, 5, i);
}

/* Returns the rows of binding 0: the kernel checks those of the tiles against them. */
static int64_t check_attended(marlin_check *c, int out)
{
    const struct AttentionParams *p = params_of(c);
    check_attention_params(c);
    if (c->problem) return 0;
    int64_t row = 4 * (int64_t)p->num_heads * p->head_dim, rows = c->record->bytes[0] / row;
    check_cache(c, 1, p->latent_dim ? 1 : 2, cached_heads(p), p->head_dim, p->block_size,
                p->num_blocks, p->kv_f32);
    need(c, 0, 4, row);
    need(c, 3, 4, 4 * (int64_t)p->table_stride);
    need_rows(c, 4, p->tiles_var, 1, 0, 16);
    if (p->has_sinks) need(c, 6, 4, 4 * (int64_t)p->num_heads);
    need(c, out, 4, rows * 4 * p->num_heads * output_dim(p));
    writes(c, out);
    return rows;
}

static void check_attention(marlin_check *c) { check_attended(c, 5); }

static int64_t partial_bytes(const struct AttentionParams *p)
{
    return 4 * (int64_t)p->num_heads * p->max_splits * (output_dim(p) + 2);
}

static void limit_splits(marlin_check *c)
{
    const struct AttentionParams *p = params_of(c);
    require(c, p->splits_var >= 0 && p->splits_var < MARLIN_MAX_VARS, "names a var out of range");
    if (!c->problem && c->limit[p->splits_var] > p->max_splits)
        c->limit[p->splits_var] = p->max_splits;
}

static void check_attention_split(marlin_check *c)
{
    int64_t rows = check_attended(c, 7);
    if (c->problem) return;
    need(c, 5, 4, rows * partial_bytes(params_of(c)));
    writes(c, 5);
    limit_splits(c);
}

static void check_attention_combine(marlin_check *c)
{
    const struct AttentionParams *p = params_of(c);
    check_attention_params(c);
    if (c->problem) return;
    need(c, 0, 4, partial_bytes(p));
    need_rows(c, 4, p->tiles_var, 1, 0, 16);
    need(c, 5, 4, c->record->bytes[0] / partial_bytes(p) * 4 * p->num_heads * output_dim(p));
    writes(c, 5);
    if (p->has_sinks) need(c, 6, 4, 4 * (int64_t)p->num_heads);
    limit_splits(c);
}

#include "common/checks_state.h"

/* ---- sampling and repacking ---- */

static void check_vocab(marlin_check *c, int rows_binding)
{
    const struct SampleParams *p = params_of(c);
    require(c, p->vocab_size >= 1 && p->vocab_size <= MAX_VOCAB, "has a vocab_size out of range");
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, 1, 0, 4 * (int64_t)p->vocab_size);
    need_rows(c, rows_binding, p->rows_var, 1, 0, sizeof(struct SampleRow));
}

static void check_mask_logits(marlin_check *c)
{
    const struct SampleParams *p = params_of(c);
    require(c, p->vocab_size >= 1 && p->vocab_size <= MAX_VOCAB, "has a vocab_size out of range");
    if (c->problem) return;
    need(c, 0, 4, 0); /* the kernel checks each row that it takes */
    need_rows(c, 1, p->rows_var, 1, 0, 4 * (((int64_t)p->vocab_size + 31) / 32));
    need_rows(c, 2, p->rows_var, 1, 0, 4);
    writes(c, 0);
}

static void check_penalize(marlin_check *c)
{
    const struct SampleParams *p = params_of(c);
    check_vocab(c, 3);
    need(c, 1, 4, 0); /* the kernel checks each entry that it takes */
    need_rows(c, 2, p->rows_var, 1, 1, 4);
    writes(c, 0);
}

static void check_sample(marlin_check *c)
{
    const struct SampleParams *p = params_of(c);
    check_vocab(c, 1);
    need_rows(c, 2, p->rows_var, 1, 0, 4);
    writes(c, 2);
}

static void check_repack(marlin_check *c)
{
    const struct RepackParams *p = params_of(c);
    struct MarlinBlockType type = marlin_block_type(p->type);
    require(c, type.values > 0, "has a block type that is not known");
    require(c, p->n >= 1 && p->n <= MAX_VOCAB, "has an n out of range");
    require(c, p->k >= 1 && p->k <= MAX_DIM, "has a k out of range");
    if (c->problem) return;
    require(c, p->k % type.values == 0, "has a k that is no multiple of the block");
    require(c, p->factor == 1.0f || type.scale_bytes == 4,
            "has a factor that float16 scales may not hold");
    if (p->permute_heads)
        require(c, p->n % p->permute_heads == 0 && p->n / p->permute_heads % 2 == 0,
                "has rows that heads do not divide");
    if (c->problem) return;
    int64_t padded = ((int64_t)p->n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE * MARLIN_ROW_TILE;
    uint32_t flags = marlin_scale_flags(type);
    int64_t scale_bytes = MARLIN_SCALE_BYTES(flags, type.group, p->k, padded * (p->k / type.group));
    int alignment = flags & MARLIN_SCALE_F32 ? 4 : flags & MARLIN_SCALE_EXP ? 1 : 2;
    need(c, 0, 1, (int64_t)p->n * (p->k / type.values) * type.bytes);
    need(c, 1, 4, padded * p->k * type.bits / 8);
    need(c, 2, alignment, scale_bytes);
    if (type.has_bias)
        need(c, 3, alignment, scale_bytes);
    else
        require(c, c->record->bytes[3] == 0, "has a bias that its block type lacks");
    for (int i = 1; i < (type.has_bias ? 4 : 3); i++) writes(c, i);
}

/* ---- probes ---- */

static void check_probe_dot(marlin_check *c)
{
    const struct ProbeParams *p = params_of(c);
    require(c, p->num_units >= 1, "has no units");
    need(c, 1, 4, 4 * (int64_t)p->num_units);
    writes(c, 1);
}

static void check_probe_read(marlin_check *c)
{
    const struct ProbeParams *p = params_of(c);
    check_probe_dot(c);
    need(c, 0, VECTOR_BYTES, (int64_t)p->num_units * MARLIN_PROBE_BYTES);
}

const marlin_kernel marlin_kernels[NUM_KERNELS] = {
#define X(name, check, weight, params, bindings, units, axes, flags, ...)                          \
    [KERNEL_##name] = {#name, check_##check, WEIGHT_##weight, sizeof(struct params), bindings,     \
                       axes,  flags},
    MARLIN_KERNELS(X)
#undef X
};
