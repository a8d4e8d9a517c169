/* refusals.c: what the device must refuse, so that a caller's bug is an error code and never a
 * crash: records, parameters, ranges, and indices found in buffers. */
#include <stdio.h>
#include <string.h>

#include "cases.h"

/* One case of each kernel and weight: all but linear layers, whose rows make no difference here. */
static bool is_plain(const case_family *family, int variant)
{
    return family->make != make_linear || variant % 4 == 2;
}

/* Whether creating, submitting or running the case gives a negative code and a text. */
static bool is_refused(const test_case *c, marlin_device *device)
{
    uint8_t *results[MAX_BLOCKS];
    int code = run_case(c, device, results);
    if (code == MARLIN_OK) free_results(results);
    return code < 0 && marlin_last_error()[0] != '\0';
}

/* The same, but at creation and with MARLIN_EINVAL. */
static bool is_refused_at_creation(const test_case *c, marlin_device *device)
{
    loaded_case loaded;
    int code = load_case(c, device, &loaded);
    if (code == MARLIN_OK) unload_case(&loaded);
    return code == MARLIN_EINVAL && strncmp(marlin_last_error(), "dispatch ", 9) == 0;
}

typedef void (*binding_change)(test_case *c, marlin_binding *binding);

static void unbind(test_case *c, marlin_binding *b)
{
    (void)c;
    *b = (marlin_binding){0};
}

static void one_byte_short(test_case *c, marlin_binding *b)
{
    (void)c;
    b->bytes--;
}

static void end_past_the_buffer(test_case *c, marlin_binding *b)
{
    (void)c;
    b->offset = 4;
}

static void begin_past_the_buffer(test_case *c, marlin_binding *b)
{
    (void)c;
    b->offset = INT64_MAX - 3;
}

static void begin_before_the_buffer(test_case *c, marlin_binding *b)
{
    (void)c;
    b->offset = -4;
}

static void negative_bytes(test_case *c, marlin_binding *b)
{
    (void)c;
    b->bytes = -1;
}

static void no_such_buffer(test_case *c, marlin_binding *b)
{
    (void)c;
    b->buffer = 1 << 20;
}

static void negative_buffer(test_case *c, marlin_binding *b)
{
    (void)c;
    b->buffer = -1;
}

/* Declared as read though the kernel writes it: barriers would be wrong, and a buffer mapped from a
 * file could not be written at all. */
static void written_undeclared(test_case *c, marlin_binding *b)
{
    (void)c;
    if (b->access & MARLIN_WRITE)
        b->access = MARLIN_READ;
    else
        b->buffer = 1 << 20; /* nothing to see here: refused in any case */
}

static const struct {
    const char *what;
    binding_change change;
    bool at_creation; /* else a kernel may also find out as it runs */
} binding_changes[] = {
    {"is not bound", unbind, false},
    {"is one byte short", one_byte_short, false},
    {"ends past its buffer", end_past_the_buffer, true},
    {"begins past its buffer", begin_past_the_buffer, true},
    {"begins before its buffer", begin_before_the_buffer, true},
    {"has negative bytes", negative_bytes, true},
    {"names no buffer", no_such_buffer, true},
    {"names buffer -1", negative_buffer, true},
    {"is written but declared as read", written_undeclared, true},
};

static void check_bindings(const test_case *c, marlin_device *device)
{
    for (size_t i = 0; i < sizeof binding_changes / sizeof *binding_changes; i++) {
        for (int r = 0; r < c->num_records; r++) {
            for (int slot = 0; slot < c->records[r].num_bindings; slot++) {
                if (!c->records[r].bindings[slot].buffer) continue;
                test_case changed = *c;
                binding_changes[i].change(&changed, &changed.records[r].bindings[slot]);
                bool refused = binding_changes[i].at_creation
                                   ? is_refused_at_creation(&changed, device)
                                   : is_refused(&changed, device);
                check(refused, "%s: refused when binding %d of dispatch %d %s", c->name, slot, r,
                      binding_changes[i].what);
            }
        }
    }
}

/* A binding at every even offset of a larger buffer either runs or is refused; it never makes a
 * kernel read a float at an address that no float may have (the sanitizers watch). */
static void check_alignment(const test_case *c, marlin_device *device)
{
    for (int number = 1; number <= c->num_blocks; number++) {
        for (int shift = 1; shift < 4; shift++) {
            test_case changed = *c;
            block *b = &changed.blocks[number - 1];
            uint8_t data[1 << 16];
            if (b->bytes + shift > (int64_t)sizeof data) continue;
            memset(data, 0, sizeof data);
            memcpy(data + shift, b->data, (size_t)b->bytes);
            *b = (block){.kind = b->kind, .bytes = b->bytes + shift, .data = data};
            for (int r = 0; r < changed.num_records; r++)
                for (int slot = 0; slot < MARLIN_MAX_BINDINGS; slot++)
                    if (changed.records[r].bindings[slot].buffer == number)
                        changed.records[r].bindings[slot].offset = shift;
            uint8_t *results[MAX_BLOCKS];
            int code = run_case(&changed, device, results);
            if (code == MARLIN_OK) free_results(results);
            check(code == MARLIN_OK || code == MARLIN_EINVAL,
                  "%s: block %d moved by %d is refused or runs", c->name, number, shift);
        }
    }
}

static void check_whole_records(const test_case *c, marlin_device *device)
{
    static const struct {
        const char *what;
        size_t offset;
        int32_t value;
    } changes[] = {
        {"kernel 0", offsetof(marlin_dispatch, kernel), 0},
        {"kernel -1", offsetof(marlin_dispatch, kernel), -1},
        {"a kernel past the last", offsetof(marlin_dispatch, kernel), 1000},
        {"no bindings", offsetof(marlin_dispatch, num_bindings), 0},
        {"too many bindings", offsetof(marlin_dispatch, num_bindings), 12},
        {"negative bindings", offsetof(marlin_dispatch, num_bindings), -1},
        {"bindings past a record", offsetof(marlin_dispatch, num_bindings), 13},
        {"no parameters", offsetof(marlin_dispatch, param_bytes), 0},
        {"parameters past a record", offsetof(marlin_dispatch, param_bytes), 65},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        test_case changed = *c;
        memcpy((char *)&changed.records[0] + changes[i].offset, &changes[i].value, 4);
        check(is_refused_at_creation(&changed, device), "%s: refused with %s", c->name,
              changes[i].what);
    }
}

void check_record_refusals(void)
{
    marlin_device *device = open_device("", 2);
    for (int f = 0; f < num_case_families; f++) {
        if (case_families[f].make == make_layer) continue;
        for (int variant = 0; variant < case_families[f].num_variants; variant++) {
            if (!is_plain(&case_families[f], variant)) continue;
            test_case *c = case_families[f].make(variant);
            check_bindings(c, device);
            check_alignment(c, device);
            if (variant == 0 || case_families[f].make == make_linear)
                check_whole_records(c, device);
            free_case(c);
        }
    }
    marlin_device_close(device);
}

/* ---- parameters ---- */

#define FIELD(kernel_params, field) offsetof(struct kernel_params, field)

typedef struct {
    test_case *(*make)(int variant);
    int variant;
    const char *field;
    size_t offset;
    uint32_t value;
} parameter_change;

#define LINEAR(variant, field, value)                                                              \
    {make_linear, variant, #field, FIELD(LinearParams, field), value}
#define EMBED(variant, field, value) {make_embed, variant, #field, FIELD(EmbedParams, field), value}
#define OTHER(make, variant, params, field, value)                                                 \
    {make, variant, #field, FIELD(params, field), (uint32_t)(value)}

/* Linear variants: 2 is int4, 14 fp4, 22 int8, 30 int8 in groups of 16, 50 int4 and 54 int8
 * with scales of blocks, 94 f32. */
static const parameter_change parameter_changes[] = {
    LINEAR(2, rows_var, -1u),
    LINEAR(2, rows_var, MARLIN_MAX_VARS),
    LINEAR(2, n, 0),
    LINEAR(2, n, 33),
    LINEAR(2, n, -1u),
    LINEAR(2, k, 0),
    LINEAR(2, k, 128),
    LINEAR(2, k, 48),
    LINEAR(2, k, -1u),
    LINEAR(2, group_size, 0),
    LINEAR(2, group_size, 48),
    LINEAR(2, group_size, 64), /* of k = 96 */
    LINEAR(2, flags, 0),       /* int4 has a bias */
    LINEAR(2, flags, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_F32),
    LINEAR(2, flags, MARLIN_WEIGHT_BIAS | MARLIN_OUTPUT_BIAS),
    LINEAR(14, flags, MARLIN_WEIGHT_BIAS),
    LINEAR(22, group_size, 8),
    LINEAR(22, flags, MARLIN_WEIGHT_BIAS),
    LINEAR(30, flags, MARLIN_SCALE_F32 | MARLIN_WEIGHT_BIAS | MARLIN_OUTPUT_BIAS),
    LINEAR(38, flags, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_F32),
    LINEAR(42, flags, MARLIN_WEIGHT_BIAS | MARLIN_OUTPUT_BIAS),
    LINEAR(50, flags, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_BLOCK | MARLIN_SCALE_F32),
    LINEAR(50, flags, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_F32),
    LINEAR(50, k, 480), /* no whole blocks */
    LINEAR(54, k, 240),
    LINEAR(58, group_size, 16), /* int5 is not read in them */
    LINEAR(58, flags, MARLIN_SCALE_BLOCK),
    LINEAR(62, flags, MARLIN_SCALE_BLOCK | MARLIN_WEIGHT_BIAS),
    LINEAR(70, group_size, 16), /* nor is iq4 */
    LINEAR(78, flags, MARLIN_SCALE_EXP | MARLIN_SCALE_F32),
    LINEAR(78, flags, MARLIN_SCALE_EXP | MARLIN_SCALE_BLOCK),
    LINEAR(82, group_size, 16), /* nor is fp8 */
    LINEAR(86, flags, MARLIN_SCALE_EXP | MARLIN_WEIGHT_BIAS),
    LINEAR(94, flags, MARLIN_SCALE_ROW | MARLIN_SCALE_F32),
    LINEAR(94, flags, MARLIN_SCALE_ROW | MARLIN_SCALE_BLOCK),
    LINEAR(94, k, 192),
    LINEAR(102, k, 0),
    LINEAR(102, k, 38),
    LINEAR(102, n, 22),
    EMBED(0, rows_var, -1u),
    EMBED(0, vocab_size, 0),
    EMBED(0, vocab_size, 33),
    EMBED(0, dim, 0),
    EMBED(0, dim, 128),
    EMBED(0, group_size, 0),
    EMBED(0, flags, 0),
    EMBED(3, flags, MARLIN_WEIGHT_BIAS),
    EMBED(25, vocab_size, 22),
    EMBED(25, dim, 1u << 31),
    OTHER(make_rms_norm, 0, RmsNormParams, rows_var, 8),
    OTHER(make_rms_norm, 0, RmsNormParams, rows_per_var, 0),
    OTHER(make_rms_norm, 0, RmsNormParams, rows_per_var, 6),
    OTHER(make_rms_norm, 0, RmsNormParams, rows_per_var, -1),
    OTHER(make_rms_norm, 0, RmsNormParams, dim, 0),
    OTHER(make_rms_norm, 0, RmsNormParams, dim, 2),
    OTHER(make_rms_norm, 1, RmsNormParams, has_delta, 1),
    OTHER(make_rms_norm, 1, RmsNormParams, adds, 1),
    OTHER(make_layer_norm, 0, LayerNormParams, rows_var, 8),
    OTHER(make_layer_norm, 0, LayerNormParams, dim, 0),
    OTHER(make_layer_norm, 0, LayerNormParams, dim, 2),
    OTHER(make_layer_norm, 1, LayerNormParams, has_delta, 1),
    OTHER(make_gelu, 0, RowsParams, rows_var, -1),
    OTHER(make_gelu, 0, RowsParams, dim, 0),
    OTHER(make_gelu, 0, RowsParams, dim, 46 * 4),
    OTHER(make_rows, 0, RowsParams, rows_var, -1),
    OTHER(make_rows, 0, RowsParams, dim, 0),
    OTHER(make_rows, 0, RowsParams, dim, 46 * 4),
    OTHER(make_rows, 2, RowsParams, dim, 0),
    OTHER(make_rows, 2, RowsParams, dim, 46 * 4),
    OTHER(make_fused, 0, FusedParams, rows_var, 8),
    OTHER(make_fused, 0, FusedParams, n, 34),
    OTHER(make_fused, 0, FusedParams, k, 192),
    OTHER(make_fused, 0, FusedParams, activation, 2),
    OTHER(make_fused, 0, FusedParams, flags, MARLIN_WEIGHT_BIAS | MARLIN_GATED | MARLIN_RESIDUAL),
    OTHER(make_fused, 1, FusedParams, flags, MARLIN_GATED),
    OTHER(make_fused, 1, FusedParams, flags, MARLIN_RESIDUAL | MARLIN_NORMED),
    OTHER(make_fused, 2, FusedParams, flags,
          MARLIN_SCALE_F32 | MARLIN_OUTPUT_BIAS | MARLIN_RESIDUAL),
    OTHER(make_fused, 3, FusedParams, flags, MARLIN_OUTPUT_BIAS | MARLIN_RESIDUAL),
    OTHER(make_experts, 0, ExpertParams, rows_var, 8),
    OTHER(make_experts, 0, ExpertParams, n, 0),
    OTHER(make_experts, 0, ExpertParams, n, 33),
    OTHER(make_experts, 0, ExpertParams, n, 48),
    OTHER(make_experts, 20, ExpertParams, n, 22),
    OTHER(make_experts, 0, ExpertParams, k, 128),
    OTHER(make_experts, 0, ExpertParams, k, 0),
    OTHER(make_experts, 0, ExpertParams, group_size, 64),
    OTHER(make_experts, 0, ExpertParams, num_experts, 5),
    OTHER(make_experts, 0, ExpertParams, num_experts, 0),
    OTHER(make_experts, 0, ExpertParams, num_experts, 1025),
    OTHER(make_experts, 0, ExpertParams, num_slots, 0),
    OTHER(make_experts, 0, ExpertParams, num_slots, 5),
    OTHER(make_experts, 0, ExpertParams, x_slots, 0),
    OTHER(make_experts, 1, ExpertParams, x_slots, 3),
    OTHER(make_route, 1, RouteParams, rows_var, -1),
    OTHER(make_route, 1, RouteParams, num_experts, 37),
    OTHER(make_route, 1, RouteParams, num_slots, 37),
    OTHER(make_route, 1, RouteParams, num_slots, 13),
    OTHER(make_route, 1, RouteParams, gating, 3),
    OTHER(make_route, 1, RouteParams, num_groups, 5),
    OTHER(make_route, 1, RouteParams, num_groups, 0),
    OTHER(make_route, 1, RouteParams, kept_groups, 0),
    OTHER(make_route, 1, RouteParams, kept_groups, 7),
    OTHER(make_route, 0, RouteParams, bias, 1),
    OTHER(make_route, 1, RouteParams, bias, 3),
    OTHER(make_sort_experts, 0, SortParams, rows_var, 8),
    OTHER(make_sort_experts, 0, SortParams, num_experts, 5),
    OTHER(make_sort_experts, 0, SortParams, num_experts, 0),
    OTHER(make_sort_experts, 0, SortParams, num_slots, 0),
    OTHER(make_combine_experts, 0, CombineParams, rows_var, 8),
    OTHER(make_combine_experts, 0, CombineParams, dim, 0),
    OTHER(make_combine_experts, 0, CombineParams, dim, 46 * 12),
    OTHER(make_combine_experts, 0, CombineParams, num_slots, 0),
    OTHER(make_causal_conv, 0, ConvParams, sequences_var, 8),
    OTHER(make_causal_conv, 0, ConvParams, dim, 0),
    OTHER(make_causal_conv, 0, ConvParams, dim, 302),
    OTHER(make_causal_conv, 0, ConvParams, taps, 1),
    OTHER(make_causal_conv, 0, ConvParams, taps, 5),
    OTHER(make_causal_conv, 0, ConvParams, taps, 9),
    OTHER(make_causal_conv, 0, ConvParams, row_floats, 902),
    OTHER(make_causal_conv, 0, ConvParams, row_floats, 8 * 903),
    OTHER(make_causal_conv, 0, ConvParams, num_slots, 0),
    OTHER(make_causal_conv, 0, ConvParams, num_slots, 4),
    OTHER(make_causal_conv, 0, ConvParams, has_bias, 1),
    OTHER(make_delta_rule, 0, DeltaParams, sequences_var, 8),
    OTHER(make_delta_rule, 0, DeltaParams, key_heads, 0),
    OTHER(make_delta_rule, 0, DeltaParams, key_heads, 3),
    OTHER(make_delta_rule, 0, DeltaParams, value_heads, 0),
    OTHER(make_delta_rule, 0, DeltaParams, value_heads, 6),
    OTHER(make_delta_rule, 0, DeltaParams, value_heads, 4098),
    OTHER(make_delta_rule, 0, DeltaParams, key_dim, 0),
    OTHER(make_delta_rule, 0, DeltaParams, key_dim, 24),
    OTHER(make_delta_rule, 0, DeltaParams, key_dim, 144),
    OTHER(make_delta_rule, 0, DeltaParams, value_dim, 0),
    OTHER(make_delta_rule, 0, DeltaParams, value_dim, 40),
    OTHER(make_delta_rule, 0, DeltaParams, value_dim, 64),
    OTHER(make_delta_rule, 0, DeltaParams, num_slots, 0),
    OTHER(make_delta_rule, 0, DeltaParams, num_slots, 4),
    OTHER(make_take_columns, 0, ColumnsParams, rows_var, 8),
    OTHER(make_take_columns, 0, ColumnsParams, x_floats, 58),
    OTHER(make_take_columns, 0, ColumnsParams, y_floats, 45),
    OTHER(make_take_columns, 0, ColumnsParams, pieces, 0),
    OTHER(make_take_columns, 0, ColumnsParams, pieces, 4),
    OTHER(make_take_columns, 0, ColumnsParams, stride, 26),
    OTHER(make_take_columns, 0, ColumnsParams, start, 17),
    OTHER(make_take_columns, 0, ColumnsParams, width, 0),
    OTHER(make_take_columns, 0, ColumnsParams, width, 15),
    OTHER(make_take_columns, 0, ColumnsParams, y_start, 7),
    OTHER(make_latent_write, 0, LatentParams, rows_var, 8),
    OTHER(make_latent_write, 0, LatentParams, num_heads, 0),
    OTHER(make_latent_write, 0, LatentParams, num_heads, 16),
    OTHER(make_latent_write, 0, LatentParams, nope_dim, 0),
    OTHER(make_latent_write, 0, LatentParams, nope_dim, 40),
    OTHER(make_latent_write, 0, LatentParams, rope_dim, 0),
    OTHER(make_latent_write, 0, LatentParams, rope_dim, 5),
    OTHER(make_latent_write, 0, LatentParams, rope_dim, 12),
    OTHER(make_latent_write, 0, LatentParams, rank, 0),
    OTHER(make_latent_write, 0, LatentParams, rank, 27),
    OTHER(make_latent_write, 0, LatentParams, row_dim, 40),
    OTHER(make_latent_write, 0, LatentParams, row_dim, 48),
    OTHER(make_latent_write, 0, LatentParams, block_size, 24),
    OTHER(make_latent_write, 0, LatentParams, num_blocks, 3),
    OTHER(make_latent_write, 0, LatentParams, kv_f32, 1),
    OTHER(make_attention, 6, AttentionParams, latent_dim, 64),
    OTHER(make_attention, 6, AttentionParams, latent_dim, 40),
    OTHER(make_attention, 6, AttentionParams, latent_dim, 0),
    OTHER(make_rope, 0, RopeTableParams, rows_var, 8),
    OTHER(make_rope, 0, RopeTableParams, half_dim, 0),
    OTHER(make_rope, 0, RopeTableParams, half_dim, 12),
    OTHER(make_rope, 0, RopeTableParams, half_dim, -1),
    OTHER(make_rope, 1, RopeKvParams, rows_var, -2),
    OTHER(make_rope, 1, RopeKvParams, num_heads, 0),
    OTHER(make_rope, 1, RopeKvParams, num_heads, 4),
    OTHER(make_rope, 1, RopeKvParams, num_kv_heads, 0),
    OTHER(make_rope, 1, RopeKvParams, num_kv_heads, 3),
    OTHER(make_rope, 1, RopeKvParams, head_dim, 0),
    OTHER(make_rope, 1, RopeKvParams, head_dim, 40),
    OTHER(make_rope, 1, RopeKvParams, head_dim, 64),
    OTHER(make_rope, 1, RopeKvParams, block_size, 0),
    OTHER(make_rope, 1, RopeKvParams, block_size, 24),
    OTHER(make_rope, 1, RopeKvParams, block_size, 1u << 31),
    OTHER(make_rope, 1, RopeKvParams, num_blocks, 0),
    OTHER(make_rope, 1, RopeKvParams, num_blocks, 4),
    OTHER(make_rope, 1, RopeKvParams, num_blocks, -1),
    OTHER(make_rope, 1, RopeKvParams, rotary_dim, 50),
    OTHER(make_rope, 1, RopeKvParams, rotary_dim, 47),
    OTHER(make_rope, 1, RopeKvParams, has_norms, 1),
    OTHER(make_rope, 1, RopeKvParams, kv_f32, 1), /* the cache is of halves */
    OTHER(make_attention, 0, AttentionParams, softcap, 0xbf800000u),
    OTHER(make_attention, 4, AttentionParams, scale_tokens, 0),
    OTHER(make_attention, 0, AttentionParams, has_sinks, 1),
    OTHER(make_attention, 0, AttentionParams, kv_f32, 1),
    OTHER(make_scale, 0, ScaleParams, rows_var, -1),
    OTHER(make_scale, 0, ScaleParams, dim, 0),
    OTHER(make_scale, 0, ScaleParams, dim, 46 * 4),
    OTHER(make_attention, 0, AttentionParams, tiles_var, 8),
    OTHER(make_attention, 0, AttentionParams, num_heads, 0),
    OTHER(make_attention, 0, AttentionParams, num_heads, 7),
    OTHER(make_attention, 0, AttentionParams, num_kv_heads, 0),
    OTHER(make_attention, 0, AttentionParams, num_kv_heads, 3),
    OTHER(make_attention, 0, AttentionParams, head_dim, 0),
    OTHER(make_attention, 0, AttentionParams, head_dim, 56),
    OTHER(make_attention, 0, AttentionParams, block_size, 0),
    OTHER(make_attention, 0, AttentionParams, block_size, 20),
    OTHER(make_attention, 0, AttentionParams, num_blocks, 0),
    OTHER(make_attention, 0, AttentionParams, num_blocks, 37),
    OTHER(make_attention, 0, AttentionParams, table_stride, 0),
    OTHER(make_attention, 0, AttentionParams, table_stride, 69),
    OTHER(make_attention, 0, AttentionParams, table_stride, -1),
    OTHER(make_attention, 7, AttentionParams, max_splits, 0),
    OTHER(make_attention, 7, AttentionParams, max_splits, 4),
    OTHER(make_attention, 7, AttentionParams, max_splits, -1),
    OTHER(make_attention, 7, AttentionParams, splits_var, -1),
    OTHER(make_attention, 7, AttentionParams, splits_var, 8),
    OTHER(make_mask_logits, 0, SampleParams, rows_var, 8),
    OTHER(make_mask_logits, 0, SampleParams, vocab_size, 0),
    OTHER(make_mask_logits, 0, SampleParams, vocab_size, 4 * 32 + 1),
    OTHER(make_penalize, 0, SampleParams, rows_var, 8),
    OTHER(make_penalize, 0, SampleParams, vocab_size, 0),
    OTHER(make_penalize, 0, SampleParams, vocab_size, 3 * 38),
    OTHER(make_sample, 0, SampleParams, rows_var, -1),
    OTHER(make_sample, 0, SampleParams, vocab_size, 0),
    OTHER(make_sample, 0, SampleParams, vocab_size, 1u << 31),
    OTHER(make_repack, 0, RepackParams, type, 0),
    OTHER(make_repack, 0, RepackParams, type, 4),
    OTHER(make_repack, 0, RepackParams, type, 15),
    OTHER(make_repack, 0, RepackParams, type, -1),
    OTHER(make_repack, 0, RepackParams, type, MARLIN_GGML_Q8_0), /* has no bias */
    OTHER(make_repack, 0, RepackParams, n, 0),
    OTHER(make_repack, 0, RepackParams, n, 33),
    OTHER(make_repack, 0, RepackParams, k, 0),
    OTHER(make_repack, 0, RepackParams, k, 80),
    OTHER(make_repack, 0, RepackParams, k, 128),
    OTHER(make_repack, 0, RepackParams, factor, 0x3f000000), /* 0.5 times a float16 scale */
    OTHER(make_repack, 0, RepackParams, permute_heads, 2),
    OTHER(make_repack, 0, RepackParams, permute_heads, 7),
    OTHER(make_repack, 0, RepackParams, permute_heads, -1),
    OTHER(make_probe, 0, ProbeParams, num_units, 0),
    OTHER(make_probe, 0, ProbeParams, num_units, 3),
    OTHER(make_probe, 1, ProbeParams, num_units, -1),
};

void check_parameter_refusals(void)
{
    marlin_device *device = open_device("", 1);
    for (size_t i = 0; i < sizeof parameter_changes / sizeof *parameter_changes; i++) {
        const parameter_change *change = &parameter_changes[i];
        test_case *c = change->make(change->variant);
        memcpy(c->records[0].params + change->offset, &change->value, 4);
        check(is_refused_at_creation(c, device), "%s: refused with %s %d", c->name, change->field,
              (int)change->value);
        free_case(c);
    }
    marlin_device_close(device);
}
