/* kernel_cases.c: programs of one kernel with odd shapes: embedding, linear layers, row kernels,
 * repacking, probes. Attention and sampling are in sequence_cases.c. */
#include <stdio.h>
#include <string.h>

#include "cases.h"

/* n: 1, below, at and past a tile of 16. k: one group or more, and for dense weights no multiple
 * of any vector. Every group size, scale type, bias. Packed shapes come first. */
static const weight_shape weights[] = {
    {"int4", 17, 96, 32, MARLIN_WEIGHT_BIAS},
    {"int4", 40, 128, 64, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_F32 | MARLIN_OUTPUT_BIAS},
    {"int4", 1, 256, 128, MARLIN_WEIGHT_BIAS},
    {"fp4", 19, 96, 32, 0},
    {"fp4", 33, 256, 128, MARLIN_OUTPUT_BIAS | MARLIN_SCALE_F32},
    {"int8", 23, 96, 32, 0},
    {"int8", 5, 128, 64, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_F32},
    {"int8", 31, 256, 16, MARLIN_SCALE_F32 | MARLIN_OUTPUT_BIAS},
    {"int8", 16, 128, 128, MARLIN_OUTPUT_BIAS},
    {"int8", 9, 64, 16, MARLIN_WEIGHT_BIAS},
    {"fp4", 20, 96, 16, MARLIN_OUTPUT_BIAS},
    {"int4", 35, 64, 16, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_F32},
    {"int4", 18, 512, 32, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_BLOCK},
    {"int8", 20, 256, 16, MARLIN_SCALE_BLOCK},
    {"int5", 19, 256, 32, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_BLOCK},
    {"int6", 21, 512, 16, MARLIN_SCALE_BLOCK},
    {"int6", 17, 96, 32, MARLIN_OUTPUT_BIAS},
    {"iq4", 18, 256, 32, MARLIN_SCALE_BLOCK},
    {"iq4", 16, 128, 64, 0},
    {"fp4", 25, 160, 32, MARLIN_SCALE_EXP},
    {"fp8", 19, 256, 128, MARLIN_SCALE_F32},
    {"fp8", 33, 96, 32, MARLIN_SCALE_EXP | MARLIN_OUTPUT_BIAS},
    {"nf4", 17, 192, 64, MARLIN_SCALE_F32},
    {"iq4", 19, 160, 32, MARLIN_SCALE_ROW | MARLIN_OUTPUT_BIAS},
    {"int4", 33, 96, 32, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_ROW},
    {"f32", 21, 37, 0, MARLIN_OUTPUT_BIAS},
    {"f16", 3, 1, 0, 0},
    {"f16", 20, 100, 0, MARLIN_OUTPUT_BIAS},
    {"bf16", 18, 99, 0, 0},
};
#define NUM_PACKED 25
#define NUM_WEIGHTS (int)(sizeof weights / sizeof *weights)
/* One row, a pair, and counts that take every block of rows a set has: 16, 8, 4, 2, 1. */
static const int row_counts[] = {1, 2, 7, 19};
#define NUM_ROW_COUNTS 4

static int bits_of(const char *kind)
{
#define X(name, bits, ...)                                                                         \
    if (!strcmp(kind, #name)) return bits;
    MARLIN_WEIGHT_KINDS(X)
#undef X
    return 0;
}

/* Random int8 numbers after the steps of each block or tile, which are finite. */
static int add_stepped_scales(test_case *c, const weight_shape *w, int64_t count)
{
    int64_t bytes = MARLIN_SCALE_BYTES(w->flags, w->group, w->k, count);
    int number = add_random_bytes(c, bytes);
    uint8_t *p = c->blocks[number - 1].data;
    int64_t columns = w->flags & MARLIN_SCALE_ROW ? w->k : MARLIN_BLOCK_COLUMNS;
    int64_t stride = MARLIN_BLOCK_STEP_BYTES + columns / w->group * MARLIN_ROW_TILE;
    for (int64_t at = 0; at < bytes; at += stride)
        for (int i = 1; i < MARLIN_BLOCK_STEP_BYTES; i += 2) p[at + i] &= 0xaf;
    return number;
}

/* Exponents of ordinary numbers. */
static int add_exponents(test_case *c, int64_t count)
{
    int number = add_random_bytes(c, count);
    uint8_t *p = c->blocks[number - 1].data;
    for (int64_t i = 0; i < count; i++) p[i] = (uint8_t)(118 + p[i] % 12);
    return number;
}

void add_weight(test_case *c, marlin_dispatch *record, const weight_shape *w)
{
    if (!w->group) {
        bool is_f32 = w->weight[1] == '3';
        int values = is_f32 ? add_floats(c, INPUT, w->n * w->k, -1.0f, 1.0f)
                            : add_halves(c, INPUT, w->n * w->k);
        bind(c, record, 1, values, MARLIN_READ);
        return;
    }
    int bits = bits_of(w->weight);
    int64_t padded = (w->n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE * MARLIN_ROW_TILE;
    bind(c, record, 1, add_random_bytes(c, padded * w->k * bits / 8), MARLIN_READ);
    int num_scales = w->flags & MARLIN_WEIGHT_BIAS ? 2 : 1;
    for (int i = 0; i < num_scales; i++) {
        int64_t count = padded * (w->k / w->group);
        const uint32_t stepped = MARLIN_SCALE_BLOCK | MARLIN_SCALE_ROW;
        int scales = w->flags & stepped            ? add_stepped_scales(c, w, count)
                     : w->flags & MARLIN_SCALE_EXP ? add_exponents(c, count)
                     : w->flags & MARLIN_SCALE_F32 ? add_floats(c, INPUT, count, -0.1f, 0.1f)
                                                   : add_halves(c, INPUT, count);
        bind(c, record, 2 + i, scales, MARLIN_READ);
    }
}

marlin_dispatch *add_linear(test_case *c, const weight_shape *w, int rows_var, int rows, int x,
                            int y)
{
    struct LinearParams p = {
        .rows_var = rows_var, .n = w->n, .k = w->k, .group_size = w->group, .flags = w->flags};
    char kernel[32];
    snprintf(kernel, sizeof kernel, "%s_%s", rows > 1 ? "matmul" : "matvec", w->weight);
    marlin_dispatch *record = add_record(c, kernel, &p, sizeof p, 6);
    bind(c, record, 0, x, MARLIN_READ);
    add_weight(c, record, w);
    if (w->flags & MARLIN_OUTPUT_BIAS)
        bind(c, record, 4, add_floats(c, INPUT, w->n, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 5, y, MARLIN_WRITE);
    return record;
}

/* Activations whose best int8 codes are known: whole numbers with a 127 in each group of 32, each
 * moved by `off` up or down, times 2^-7. With off = 0 int8 holds them exactly, and every set gets
 * the same scale to the bit; 1/8 is too little for another step to fit better, and is lost only by
 * rounding to nearest. */
static int add_activations(test_case *c, int64_t count, float off)
{
    int number = add_floats(c, INPUT, count, 0.0f, 1.0f);
    float *x = (float *)c->blocks[number - 1].data;
    for (int64_t i = 0; i < count; i++) {
        float code = (float)((int)(next_random(c) % 253) - 126);
        x[i] = (code + (next_random(c) % 2 ? off : -off)) * 0x1p-7f;
    }
    for (int64_t i = 0; i < count; i += MARLIN_ACT_GROUP)
        x[i + (int64_t)(next_random(c) % MARLIN_ACT_GROUP)] = -127 * 0x1p-7f;
    return number;
}

/* Each shape with each number of rows, packed ones with activations that int8 holds exactly; then
 * packed ones again with activations that it rounds. */
test_case *make_linear(int variant)
{
    int shape = variant / NUM_ROW_COUNTS, rows = row_counts[variant % NUM_ROW_COUNTS];
    bool exact = shape < NUM_PACKED;
    const weight_shape *w = &weights[shape % NUM_WEIGHTS];
    test_case *c = new_case(100 + variant, "linear_%s n=%d k=%d group=%d rows=%d%s", w->weight,
                            w->n, w->k, w->group, rows, exact ? " exact x" : "");
    int x = w->group ? add_activations(c, rows * w->k, exact ? 0.0f : 0.125f)
                     : add_floats(c, INPUT, rows * w->k, -1.5f, 1.0f);
    int y = add_bytes(c, exact ? EXACT : SUMMED, 4 * rows * w->n);
    add_linear(c, w, 2, rows, x, y);
    c->vars[2] = rows;
    return c;
}

/* A layer of one packed shape of each kind: gated after a norm, added to a residual, only normed,
 * only gated. */
test_case *make_fused(int variant)
{
    static const struct {
        int shape;
        uint32_t flags, activation;
    } forms[] = {
        {0, MARLIN_GATED | MARLIN_NORMED, MARLIN_SILU},
        {3, MARLIN_RESIDUAL, 0},
        {7, MARLIN_NORMED, 0},
        {10, MARLIN_GATED, MARLIN_GELU},
        {14, MARLIN_RESIDUAL | MARLIN_NORMED, 0},
        {16, MARLIN_GATED | MARLIN_NORMED, MARLIN_GELU},
        {17, MARLIN_RESIDUAL, 0},
    };
    int rows = row_counts[variant % NUM_ROW_COUNTS];
    weight_shape w = weights[forms[variant].shape];
    uint32_t fused = forms[variant].flags;
    test_case *c = new_case(3000 + variant, "fused_%s n=%d k=%d flags=%u rows=%d", w.weight, w.n,
                            w.k, fused, rows);
    struct FusedParams p = {.rows_var = 2,
                            .n = w.n,
                            .k = w.k,
                            .group_size = w.group,
                            .flags = w.flags | fused,
                            .activation = forms[variant].activation,
                            .eps = 1e-5f,
                            .residual_scale = 0.5f};
    char kernel[32];
    snprintf(kernel, sizeof kernel, "matvec_fused_%s", w.weight);
    marlin_dispatch *record = add_record(c, kernel, &p, sizeof p, 11);
    bind(c, record, 0, add_activations(c, rows * w.k, 0.0f), MARLIN_READ);
    add_weight(c, record, &w);
    for (int i = 4; i < 11; i += 6)
        if (w.flags & MARLIN_OUTPUT_BIAS && (i == 4 || fused & MARLIN_GATED))
            bind(c, record, i, add_floats(c, INPUT, w.n, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 5, add_bytes(c, SUMMED, 4 * rows * w.n), MARLIN_WRITE);
    int tiles = w.k / MARLIN_ROW_TILE, padded = (w.n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE;
    if (fused & MARLIN_NORMED)
        bind(c, record, 6, add_floats(c, INPUT, rows * tiles, 0.0f, 2.0f), MARLIN_READ);
    if (fused & MARLIN_GATED)
        for (int i = 7; i < 10; i++) record->bindings[i] = record->bindings[i - 6];
    if (fused & MARLIN_RESIDUAL) {
        bind(c, record, 7, add_floats(c, SUMMED, rows * w.n, -9.0f, 9.0f),
             MARLIN_READ | MARLIN_WRITE);
        bind(c, record, 8, add_floats(c, INPUT, w.n, -1.0f, 1.0f), MARLIN_READ);
        bind(c, record, 9, add_bytes(c, SUMMED, 4 * rows * padded), MARLIN_WRITE);
    }
    c->vars[2] = rows;
    return c;
}

test_case *make_embed(int variant)
{
    const weight_shape *w = &weights[variant];
    int rows = 3;
    test_case *c = new_case(200 + variant, "embed_%s vocab=%d dim=%d group=%d", w->weight, w->n,
                            w->k, w->group);
    struct EmbedParams p = {.rows_var = 0,
                            .vocab_size = w->n,
                            .dim = w->k,
                            .group_size = w->group,
                            .flags = w->flags,
                            .scale = 1.25f};
    char kernel[32];
    snprintf(kernel, sizeof kernel, "embed_%s", w->weight);
    marlin_dispatch *record = add_record(c, kernel, &p, sizeof p, 5);
    int32_t token_ids[] = {w->n - 1, 0, w->n / 2};
    bind(c, record, 0, add_integers(c, rows, token_ids), MARLIN_READ);
    add_weight(c, record, w);
    bind(c, record, 4, add_bytes(c, EXACT, 4 * rows * w->k), MARLIN_WRITE);
    c->vars[0] = rows;
    return c;
}

/* Dims below, at and past the vectors; with a delta, whose sum goes back into x; heads of a norm.
 */
test_case *make_rms_norm(int variant)
{
    static const int dims[] = {1, 16, 37, 103, 37}, deltas[] = {1, 0, 0, 1, 1};
    static const int heads[] = {1, 3, 1, 2, 1};
    bool adds = variant == 4;
    int dim = dims[variant], rows = 5;
    test_case *c = new_case(300 + variant, "rms_norm dim=%d delta=%d rows_per_var=%d", dim,
                            deltas[variant], heads[variant]);
    struct RmsNormParams p = {.rows_var = 1,
                              .rows_per_var = heads[variant],
                              .dim = dim,
                              .has_delta = deltas[variant],
                              .adds = adds,
                              .eps = 1e-5f,
                              .delta_scale = adds ? 0.25f : 1.0f};
    marlin_dispatch *record = add_record(c, "rms_norm", &p, sizeof p, 4);
    int count = rows * heads[variant] * dim;
    int x = add_floats(c, p.has_delta ? EXACT : INPUT, count, -2.0f, 2.0f);
    bind(c, record, 0, x, p.has_delta ? MARLIN_READ | MARLIN_WRITE : MARLIN_READ);
    if (p.has_delta) bind(c, record, 1, add_floats(c, INPUT, count, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 2, add_floats(c, INPUT, dim, 0.5f, 1.5f), MARLIN_READ);
    int y = adds ? add_floats(c, SUMMED, count, -1.0f, 1.0f) : add_bytes(c, SUMMED, 4 * count);
    bind(c, record, 3, y, adds ? MARLIN_READ | MARLIN_WRITE : MARLIN_WRITE);
    c->vars[1] = rows;
    return c;
}

/* Dims below, at and past the vectors, with a delta and without. */
test_case *make_layer_norm(int variant)
{
    static const int dims[] = {1, 16, 103}, deltas[] = {1, 0, 1};
    int dim = dims[variant], rows = 5, count = rows * dim;
    test_case *c = new_case(350 + variant, "layer_norm dim=%d delta=%d", dim, deltas[variant]);
    struct LayerNormParams p = {
        .rows_var = 1, .dim = dim, .has_delta = deltas[variant], .eps = 1e-5f};
    marlin_dispatch *record = add_record(c, "layer_norm", &p, sizeof p, 5);
    int x = add_floats(c, p.has_delta ? EXACT : INPUT, count, -2.0f, 2.0f);
    bind(c, record, 0, x, p.has_delta ? MARLIN_READ | MARLIN_WRITE : MARLIN_READ);
    if (p.has_delta) bind(c, record, 1, add_floats(c, INPUT, count, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 2, add_floats(c, INPUT, dim, 0.5f, 1.5f), MARLIN_READ);
    bind(c, record, 3, add_floats(c, INPUT, dim, -0.5f, 0.5f), MARLIN_READ);
    bind(c, record, 4, add_bytes(c, SUMMED, 4 * count), MARLIN_WRITE);
    c->vars[1] = rows;
    return c;
}

/* gelu, and in place. */
test_case *make_gelu(int variant)
{
    int dim = 45, rows = 4;
    struct RowsParams p = {.rows_var = 3, .dim = dim};
    test_case *c = new_case(475 + variant, "gelu%s", variant ? " in place" : "");
    marlin_dispatch *record = add_record(c, "gelu", &p, sizeof p, 2);
    int x = add_floats(c, variant ? SUMMED : INPUT, rows * dim, -8.0f, 8.0f);
    bind(c, record, 0, x, MARLIN_READ);
    bind(c, record, 1, variant ? x : add_bytes(c, SUMMED, 4 * rows * dim), MARLIN_WRITE);
    c->vars[3] = rows;
    return c;
}

/* Capped and not, in place and not. */
test_case *make_scale(int variant)
{
    int dim = 45, rows = 4;
    struct ScaleParams p = {.rows_var = 3, .dim = dim, .scale = 0.5f, .cap = variant ? 3.0f : 0.0f};
    test_case *c = new_case(450 + variant, "scale_rows cap=%g", (double)p.cap);
    marlin_dispatch *record = add_record(c, "scale_rows", &p, sizeof p, 2);
    c->vars[3] = rows;
    int x = add_floats(c, variant ? SUMMED : INPUT, rows * dim, -20.0f, 20.0f);
    bind(c, record, 0, x, MARLIN_READ);
    bind(c, record, 1, variant ? x : add_bytes(c, EXACT, 4 * rows * dim), MARLIN_WRITE);
    return c;
}

/* silu_mul, silu_mul in place, gather_rows, gelu_mul, sigmoid_mul. */
test_case *make_rows(int variant)
{
    int dim = 45, rows = 4;
    struct RowsParams p = {.rows_var = 3, .dim = dim};
    static const char *const kernels[] = {"silu_mul", "silu_mul", "gather_rows", "gelu_mul",
                                          "sigmoid_mul"};
    const char *kernel = kernels[variant];
    test_case *c = new_case(400 + variant, "%s%s", kernel, variant == 1 ? " in place" : "");
    marlin_dispatch *record = add_record(c, kernel, &p, sizeof p, 3);
    c->vars[3] = rows;
    if (variant == 2) {
        int32_t chosen[] = {6, 0, 3, 3};
        bind(c, record, 0, add_integers(c, rows, chosen), MARLIN_READ);
        bind(c, record, 1, add_floats(c, INPUT, 7 * dim, -1.0f, 1.0f), MARLIN_READ);
        bind(c, record, 2, add_bytes(c, EXACT, 4 * rows * dim), MARLIN_WRITE);
        return c;
    }
    /* The last dim % lanes values take the C library's expf() instead of the vector one. */
    int gate = add_floats(c, variant == 1 ? SUMMED : INPUT, rows * dim, -20.0f, 20.0f);
    int y = variant == 1 ? gate : add_bytes(c, SUMMED, 4 * rows * dim);
    bind(c, record, 0, gate, MARLIN_READ);
    bind(c, record, 1, add_floats(c, INPUT, rows * dim, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 2, y, MARLIN_WRITE);
    return c;
}

typedef struct {
    const char *name;
    uint32_t type;
    int values, bytes, bits, group, scale_bytes;
    bool has_bias;
} ggml_type;

static const ggml_type types[] = {
#define X(type, number, values, bytes, kind, group, scale_bytes, bias)                             \
    {#type, number, values, bytes, MARLIN_BITS_##kind, group, scale_bytes, bias},
    MARLIN_BLOCK_TYPES(X)
#undef X
};
#define NUM_TYPES (int)(sizeof types / sizeof *types)

/* Random blocks whose float16 scales, the first or the last two in a block, are finite. */
static int add_ggml_blocks(test_case *c, const ggml_type *type, int64_t count)
{
    int number = add_random_bytes(c, count * type->bytes);
    for (int64_t i = 0; i < count; i++) {
        uint8_t *p = c->blocks[number - 1].data + i * type->bytes;
        p[0] &= 0xbf; /* MXFP4's whole scale */
        p[1] &= 0xbf;
        p[3] &= 0xbf;
        p[type->bytes - 1] &= 0xbf;
        p[type->bytes - 3] &= 0xbf;
    }
    return number;
}

/* Variants past the types permute rows of heads. */
test_case *make_repack(int variant)
{
    const ggml_type *type = &types[variant % NUM_TYPES];
    int heads = variant >= NUM_TYPES ? 3 : 0, n = heads ? 18 : 21,
        k = type->values * (heads ? 1 : 3);
    test_case *c = new_case(500 + variant, "repack %s n=%d k=%d heads=%d", type->name, n, k, heads);
    struct RepackParams p = {.type = type->type,
                             .n = n,
                             .k = k,
                             .permute_heads = heads,
                             .factor = heads && type->scale_bytes == 4 ? 0.3f : 1.0f};
    marlin_dispatch *record = add_record(c, "repack", &p, sizeof p, 4);
    uint32_t flags = marlin_scale_flags(marlin_block_type(type->type));
    int64_t padded = 32, scales = padded * (k / type->group);
    int64_t scale_bytes = MARLIN_SCALE_BYTES(flags, type->group, k, scales);
    bind(c, record, 0, add_ggml_blocks(c, type, (int64_t)n * (k / type->values)), MARLIN_READ);
    bind(c, record, 1, add_bytes(c, EXACT, padded * k * type->bits / 8), MARLIN_WRITE);
    bind(c, record, 2, add_bytes(c, EXACT, scale_bytes), MARLIN_WRITE);
    if (type->has_bias) bind(c, record, 3, add_bytes(c, EXACT, scale_bytes), MARLIN_WRITE);
    return c;
}

test_case *make_probe(int variant)
{
    const char *kernel = variant ? "probe_dot" : "probe_read";
    struct ProbeParams p = {.num_units = 2};
    test_case *c = new_case(600 + variant, "%s", kernel);
    marlin_dispatch *record = add_record(c, kernel, &p, sizeof p, 2);
    if (!variant) bind(c, record, 0, add_random_bytes(c, 2 * MARLIN_PROBE_BYTES), MARLIN_READ);
    bind(c, record, 1, add_bytes(c, EXACT, 8), MARLIN_WRITE);
    return c;
}

const case_family case_families[] = {
    {make_linear, (NUM_WEIGHTS + NUM_PACKED) * NUM_ROW_COUNTS},
    {make_fused, 7},
    {make_embed, NUM_WEIGHTS},
    {make_rms_norm, 5},
    {make_layer_norm, 3},
    {make_rows, 5},
    {make_scale, 2},
    {make_gelu, 2},
    {make_repack, 2 * NUM_TYPES},
    {make_probe, 2},
    {make_rope, 6},
    {make_attention, 2 * FIRST_SPLIT_ATTENTION},
    {make_mask_logits, 1},
    {make_penalize, 1},
    {make_sample, 3},
    {make_experts, 26},
    {make_route, 3},
    {make_sort_experts, 1},
    {make_combine_experts, 2},
    {make_causal_conv, 2},
    {make_delta_rule, 2},
    {make_take_columns, 1},
    {make_latent_write, 2},
    {make_layer, 2},
};
const int num_case_families = (int)(sizeof case_families / sizeof *case_families);
