/* sequence_cases.c: programs of the kernels that know of sequences: RoPE and the KV write,
 * attention over a block table, penalties, sampling; and a whole layer. Single kernels are in
 * kernel_cases.c. */
#include <math.h>
#include <string.h>

#include "cases.h"

/* rope_table, then rope_kv_write with one row and with several. */
test_case *make_rope(int variant)
{
    if (variant == 0) {
        test_case *c = new_case(700, "rope_table half_dim=11");
        struct RopeTableParams p = {.rows_var = 4, .half_dim = 11, .scale = 1.25f};
        marlin_dispatch *record = add_record(c, "rope_table", &p, sizeof p, 3);
        bind(c, record, 0, add_integers(c, 3, (int32_t[]){0, 7, 1000003}), MARLIN_READ);
        bind(c, record, 1, add_floats(c, INPUT, 11, 0.0f, 1.0f), MARLIN_READ);
        bind(c, record, 2, add_bytes(c, EXACT, 3 * 22 * 4), MARLIN_WRITE);
        c->vars[4] = 3;
        return c;
    }
    /* All of a head, neighbours of a part of it, and nothing of it turns; normed before; a cache of
     * floats. */
    int rows = variant == 1 ? 1 : 4, heads = 3, kv_heads = 2, dim = 48;
    int rotary_dim = variant == 3 ? 22 : variant == 4 ? 0 : dim, has_norms = variant == 3;
    bool kv_f32 = variant == 5;
    test_case *c = new_case(700 + variant, "rope_kv_write rows=%d rotary_dim=%d kv_f32=%d", rows,
                            rotary_dim, kv_f32);
    struct RopeKvParams p = {.rows_var = 0,
                             .num_heads = heads,
                             .num_kv_heads = kv_heads,
                             .head_dim = dim,
                             .block_size = 16,
                             .num_blocks = 3,
                             .rotary_dim = rotary_dim,
                             .interleaved = variant == 3,
                             .has_norms = has_norms,
                             .eps = 1e-3f,
                             .kv_f32 = kv_f32};
    marlin_dispatch *record = add_record(c, "rope_kv_write", &p, sizeof p, 10);
    int access = MARLIN_READ | MARLIN_WRITE;
    block_kind turned = has_norms ? SUMMED : EXACT;
    bind(c, record, 0, add_floats(c, turned, rows * heads * dim, -1.0f, 1.0f), access);
    bind(c, record, 1, add_floats(c, turned, rows * kv_heads * dim, -1e-4f, 1e-4f), access);
    /* Past the largest half, 65504: stored values are never infinite. */
    bind(c, record, 2, add_floats(c, INPUT, rows * kv_heads * dim, -9e4f, 9e4f), MARLIN_READ);
    if (rotary_dim)
        bind(c, record, 3, add_floats(c, INPUT, rows * rotary_dim, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 4, add_integers(c, rows, (int32_t[]){47, 0, 20, 17}), MARLIN_READ);
    /* Sums of another order may round to another half. */
    block_kind keys = has_norms ? SCRATCH : EXACT;
    for (int i = 5; i < 7; i++) {
        int values = 3 * 16 * kv_heads * dim;
        block_kind kind = i == 5 ? keys : EXACT;
        int cache = kv_f32 ? add_floats(c, kind, values, -1.0f, 1.0f) : add_halves(c, kind, values);
        bind(c, record, i, cache, MARLIN_WRITE);
    }
    for (int i = 7; has_norms && i < 9; i++)
        bind(c, record, i, add_floats(c, INPUT, dim, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 9, add_bytes(c, EXACT, rows * 4), MARLIN_READ | MARLIN_WRITE);
    c->vars[0] = rows;
    return c;
}

typedef struct {
    int heads, kv_heads, dim, block_size, window;
    float softcap, position_scale;
    int has_sinks, kv_f32, latent;
} attention_shape;

/* Heads of one vector and of several, one to eight query heads a KV head, a window shorter and one
 * longer than a split, and a contiguous cache: one block as long as the context; a cap of scores,
 * and queries that grow with their position; sinks; the second one's cache is of floats, and the
 * last one's keys are its values. */
static const attention_shape attention_shapes[FIRST_SPLIT_ATTENTION] = {
    {6, 2, 48, 16, 0, 0.0f, 0.0f, 0, 0, 0},   {4, 4, 80, 32, 40, 0.0f, 0.0f, 0, 1, 0},
    {8, 1, 16, 16, 300, 0.0f, 0.0f, 0, 0, 0}, {2, 1, 64, 544, 0, 0.0f, 0.0f, 0, 0, 0},
    {3, 1, 48, 16, 0, 1.5f, 0.5f, 0, 0, 0},   {4, 2, 48, 16, 40, 0.0f, 0.0f, 1, 0, 0},
    {6, 2, 48, 16, 0, 0.0f, 0.0f, 0, 0, 32},
};

/* The caches at bindings 1 and 2, and the tables at 3: two sequences, of 530 and 17 tokens, whose
 * blocks lie backwards in the cache. Entries past a sequence's end are no blocks. */
static void add_context(test_case *c, marlin_dispatch *record, struct AttentionParams *p)
{
    int block_size = p->block_size;
    int num_blocks[] = {(530 + block_size - 1) / block_size, (17 + block_size - 1) / block_size};
    p->table_stride = num_blocks[0];
    p->num_blocks = num_blocks[0] + num_blocks[1];
    p->max_splits = (p->table_stride * block_size + MARLIN_KV_SPLIT - 1) / MARLIN_KV_SPLIT;
    int32_t table[2 * 64], next = p->num_blocks;
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < num_blocks[0]; i++)
            table[s * num_blocks[0] + i] = i < num_blocks[s] ? --next : -1;
    int64_t values = (int64_t)p->num_blocks * block_size * p->head_dim;
    if (!p->latent_dim) values *= p->num_kv_heads;
    for (int i = 1; i < (p->latent_dim ? 2 : 3); i++) {
        int cache =
            p->kv_f32 ? add_floats(c, INPUT, values, -1.0f, 1.0f) : add_halves(c, INPUT, values);
        bind(c, record, i, cache, MARLIN_READ);
    }
    bind(c, record, 3, add_integers(c, 2 * num_blocks[0], table), MARLIN_READ);
}

/* A prefill tile that crosses from one split into the next, a decode tile, and a short tile. */
test_case *make_attention(int variant)
{
    const attention_shape *s = &attention_shapes[variant % FIRST_SPLIT_ATTENTION];
    bool is_split = variant >= FIRST_SPLIT_ATTENTION;
    int rows = 24, values = rows * s->heads * s->dim, out_dim = s->latent ? s->latent : s->dim;
    test_case *c = new_case(800 + variant % FIRST_SPLIT_ATTENTION,
                            "%s heads=%d/%d dim=%d block_size=%d window=%d",
                            is_split ? "attention_split" : "attention", s->heads, s->kv_heads,
                            s->dim, s->block_size, s->window);
    struct AttentionParams p = {.tiles_var = 1,
                                .splits_var = 3,
                                .num_heads = s->heads,
                                .num_kv_heads = s->kv_heads,
                                .head_dim = s->dim,
                                .block_size = s->block_size,
                                .window = s->window,
                                .scale = 0.2f,
                                .softcap = s->softcap,
                                .position_scale = s->position_scale,
                                .scale_tokens = 8,
                                .has_sinks = s->has_sinks,
                                .kv_f32 = s->kv_f32,
                                .latent_dim = s->latent};
    marlin_dispatch *record =
        add_record(c, is_split ? "attention_split" : "attention", &p, sizeof p, is_split ? 8 : 7);
    bind(c, record, 0, add_floats(c, INPUT, values, -1.0f, 1.0f), MARLIN_READ);
    add_context(c, record, &p);
    memcpy(record->params, &p, sizeof p);
    int tiles = add_integers(c, 12, (int32_t[]){0, 16, 0, 250, 16, 1, 0, 529, 17, 7, 1, 10});
    bind(c, record, 4, tiles, MARLIN_READ);
    int out = add_bytes(c, SUMMED, 4 * rows * s->heads * out_dim);
    bind(c, record, 5, out, MARLIN_WRITE);
    c->vars[1] = 3;
    c->vars[3] = 3;
    int sinks = s->has_sinks ? add_floats(c, INPUT, s->heads, -3.0f, 3.0f) : 0;
    if (!is_split) {
        if (sinks) bind(c, record, 6, sinks, MARLIN_READ);
        return c;
    }
    int64_t partials = (int64_t)rows * s->heads * p.max_splits * (out_dim + 2);
    int partial = add_bytes(c, SUMMED, 4 * partials);
    bind(c, record, 5, partial, MARLIN_WRITE);
    if (sinks) bind(c, record, 6, sinks, MARLIN_READ);
    bind(c, record, 7, out, MARLIN_WRITE);
    record = add_record(c, "attention_combine", &p, sizeof p, 7);
    bind(c, record, 0, partial, MARLIN_READ);
    bind(c, record, 4, tiles, MARLIN_READ);
    bind(c, record, 5, out, MARLIN_WRITE);
    if (sinks) bind(c, record, 6, sinks, MARLIN_READ);
    return c;
}

test_case *make_penalize(int variant)
{
    int vocab = 37, rows = 3;
    test_case *c = new_case(900 + variant, "penalize vocab=%d", vocab);
    struct SampleParams p = {.rows_var = 0, .vocab_size = vocab};
    static const struct PenaltyEntry entries[] = {
        {36, 2, 0.5f}, {0, 0, 0.0f}, {3, -1, -100.0f}, {3, 1, 0.0f}, {12, 9, 1.0f}};
    struct SampleRow sample_rows[3] = {
        {.repetition_penalty = 1.5f},
        {.repetition_penalty = 1.0f},
        {.repetition_penalty = 1.1f, .frequency_penalty = 0.3f, .presence_penalty = -0.7f}};
    marlin_dispatch *record = add_record(c, "penalize", &p, sizeof p, 4);
    int logits = add_floats(c, EXACT, rows * vocab, -5.0f, 5.0f);
    bind(c, record, 0, logits, MARLIN_READ | MARLIN_WRITE);
    int number = add_bytes(c, INPUT, sizeof entries);
    memcpy(c->blocks[number - 1].data, entries, sizeof entries);
    bind(c, record, 1, number, MARLIN_READ);
    bind(c, record, 2, add_integers(c, 4, (int32_t[]){0, 2, 2, 5}), MARLIN_READ);
    number = add_bytes(c, INPUT, sizeof sample_rows);
    memcpy(c->blocks[number - 1].data, sample_rows, sizeof sample_rows);
    bind(c, record, 3, number, MARLIN_READ);
    c->vars[0] = rows;
    return c;
}

/* Two masks of three rows, over a vocabulary that ends within a word. */
test_case *make_mask_logits(int variant)
{
    int vocab = 37, rows = 3, masks = 2;
    test_case *c = new_case(905 + variant, "mask_logits vocab=%d", vocab);
    struct SampleParams p = {.rows_var = 0, .vocab_size = vocab};
    marlin_dispatch *record = add_record(c, "mask_logits", &p, sizeof p, 3);
    int logits = add_floats(c, EXACT, rows * vocab, -5.0f, 5.0f);
    bind(c, record, 0, logits, MARLIN_READ | MARLIN_WRITE);
    bind(c, record, 1, add_integers(c, 4, (int32_t[]){-2, 31, -1, 16}), MARLIN_READ);
    bind(c, record, 2, add_integers(c, 2, (int32_t[]){2, 0}), MARLIN_READ);
    c->vars[0] = masks;
    return c;
}

/* Every way to narrow a distribution, over a vocabulary of no round size, over a tiny one, and over
 * one in which every third logit, and in the first two rows each, is not a number. */
test_case *make_sample(int variant)
{
    int vocab = variant == 1 ? 3 : 1009, rows = 7;
    test_case *c = new_case(910 + variant, "sample vocab=%d", vocab);
    struct SampleParams p = {.rows_var = 0, .vocab_size = vocab};
    struct SampleRow sample_rows[7] = {
        {.temperature = 0.0f, .top_p = 1.0f},
        {.temperature = 1.0f, .top_p = 1.0f},
        {.temperature = 0.8f, .top_p = 0.9f},
        {.temperature = 1.5f, .top_p = 1.0f, .top_k = 5},
        {.temperature = 0.7f, .top_p = 0.5f, .top_k = 2000},
        {.temperature = 2.0f, .top_p = 1.0f, .min_p = 0.05f},
        {.temperature = 1e-6f, .top_p = 0.1f, .min_p = 0.9f, .top_k = 1},
    };
    for (int i = 0; i < rows; i++) sample_rows[i].position = sample_rows[i].seed_low = i;
    marlin_dispatch *record = add_record(c, "sample", &p, sizeof p, 3);
    int number = add_floats(c, INPUT, rows * vocab, -8.0f, 8.0f);
    float *logits = (float *)c->blocks[number - 1].data;
    for (int i = 0; variant == 2 && i < rows * vocab; i++)
        if (i < 2 * vocab || i % 3 == 0) logits[i] = NAN;
    bind(c, record, 0, number, MARLIN_READ);
    number = add_bytes(c, INPUT, sizeof sample_rows);
    memcpy(c->blocks[number - 1].data, sample_rows, sizeof sample_rows);
    bind(c, record, 1, number, MARLIN_READ);
    bind(c, record, 2, add_bytes(c, EXACT, 4 * rows), MARLIN_WRITE);
    c->vars[0] = rows;
    return c;
}

/* ---- a layer ---- */

enum { HIDDEN = 96, HEADS = 3, HEAD_DIM = 32, FFN = 160, VOCAB = 50, BLOCK_SIZE = 16 };

typedef struct {
    test_case *c;
    int rows;
    int h, delta, y, q, k, v, table, tables, tiles, k_cache, v_cache;
} layer;

static int activations(layer *l, block_kind kind, int dim)
{
    return add_bytes(l->c, kind, 4 * l->rows * dim);
}

static void add_norm(layer *l, bool has_delta)
{
    struct RmsNormParams p = {.rows_var = 0,
                              .rows_per_var = 1,
                              .dim = HIDDEN,
                              .has_delta = has_delta,
                              .eps = 1e-5f,
                              .delta_scale = 1.0f};
    marlin_dispatch *record = add_record(l->c, "rms_norm", &p, sizeof p, 4);
    bind(l->c, record, 0, l->h, has_delta ? MARLIN_READ | MARLIN_WRITE : MARLIN_READ);
    if (has_delta) bind(l->c, record, 1, l->delta, MARLIN_READ);
    bind(l->c, record, 2, add_floats(l->c, INPUT, HIDDEN, 0.5f, 1.5f), MARLIN_READ);
    bind(l->c, record, 3, l->y, MARLIN_WRITE);
}

static void add_inputs(layer *l, const int32_t *positions, const int32_t *slots, int *slot_block)
{
    test_case *c = l->c;
    struct EmbedParams embed = {.rows_var = 0, .vocab_size = VOCAB, .dim = HIDDEN, .scale = 1.0f};
    marlin_dispatch *record = add_record(c, "embed_f16", &embed, sizeof embed, 5);
    int32_t token_ids[] = {49, 0, 7, 7, 31, 8};
    bind(c, record, 0, add_integers(c, l->rows, token_ids), MARLIN_READ);
    bind(c, record, 1, add_halves(c, INPUT, VOCAB * HIDDEN), MARLIN_READ);
    bind(c, record, 4, l->h, MARLIN_WRITE);
    struct RopeTableParams rope = {.rows_var = 0, .half_dim = HEAD_DIM / 2, .scale = 1.0f};
    record = add_record(c, "rope_table", &rope, sizeof rope, 3);
    record->barrier = 0;
    bind(c, record, 0, add_integers(c, l->rows, positions), MARLIN_READ);
    bind(c, record, 1, add_floats(c, INPUT, HEAD_DIM / 2, 0.0f, 1.0f), MARLIN_READ);
    bind(c, record, 2, l->table, MARLIN_WRITE);
    *slot_block = add_integers(c, l->rows, slots);
}

static void add_attention(layer *l, int slots, int out)
{
    test_case *c = l->c;
    struct RopeKvParams write = {.rows_var = 0,
                                 .num_heads = HEADS,
                                 .num_kv_heads = 1,
                                 .head_dim = HEAD_DIM,
                                 .block_size = BLOCK_SIZE,
                                 .num_blocks = 4,
                                 .rotary_dim = HEAD_DIM};
    marlin_dispatch *record = add_record(c, "rope_kv_write", &write, sizeof write, 10);
    bind(c, record, 0, l->q, MARLIN_READ | MARLIN_WRITE);
    bind(c, record, 1, l->k, MARLIN_READ | MARLIN_WRITE);
    bind(c, record, 2, l->v, MARLIN_READ);
    bind(c, record, 3, l->table, MARLIN_READ);
    bind(c, record, 4, slots, MARLIN_READ);
    bind(c, record, 5, l->k_cache, MARLIN_WRITE);
    bind(c, record, 6, l->v_cache, MARLIN_WRITE);
    bind(c, record, 9, activations(l, EXACT, 1), MARLIN_READ | MARLIN_WRITE);
    struct AttentionParams p = {.tiles_var = 1,
                                .num_heads = HEADS,
                                .num_kv_heads = 1,
                                .head_dim = HEAD_DIM,
                                .block_size = BLOCK_SIZE,
                                .num_blocks = 4,
                                .table_stride = 2,
                                .max_splits = 1,
                                .scale = 0.17f};
    record = add_record(c, "attention", &p, sizeof p, 7);
    int inputs[] = {l->q, l->k_cache, l->v_cache, l->tables, l->tiles};
    for (int i = 0; i < 5; i++) bind(c, record, i, inputs[i], MARLIN_READ);
    bind(c, record, 5, out, MARLIN_WRITE);
}

static void add_feed_forward(layer *l)
{
    test_case *c = l->c;
    static const weight_shape gate_weight = {"fp4", FFN, HIDDEN, 32, 0},
                              up_weight = {"int4", FFN, HIDDEN, 32, MARLIN_WEIGHT_BIAS},
                              down_weight = {"int8", HIDDEN, FFN, 32, 0};
    int gate = activations(l, SCRATCH, FFN), up = activations(l, SCRATCH, FFN);
    add_linear(c, &gate_weight, 0, l->rows, l->y, gate);
    add_linear(c, &up_weight, 0, l->rows, l->y, up)->barrier = 0;
    struct RowsParams p = {.rows_var = 0, .dim = FFN};
    marlin_dispatch *record = add_record(c, "silu_mul", &p, sizeof p, 3);
    bind(c, record, 0, gate, MARLIN_READ);
    bind(c, record, 1, up, MARLIN_READ);
    bind(c, record, 2, gate, MARLIN_WRITE);
    add_linear(c, &down_weight, 0, l->rows, gate, l->delta);
}

static void add_logits(layer *l, int32_t last_of_first, int32_t last_of_second)
{
    test_case *c = l->c;
    struct RowsParams gather = {.rows_var = 2, .dim = HIDDEN};
    marlin_dispatch *record = add_record(c, "gather_rows", &gather, sizeof gather, 3);
    int chosen = add_bytes(c, SCRATCH, 2 * HIDDEN * 4);
    bind(c, record, 0, add_integers(c, 2, (int32_t[]){last_of_first, last_of_second}), MARLIN_READ);
    bind(c, record, 1, l->y, MARLIN_READ);
    bind(c, record, 2, chosen, MARLIN_WRITE);
    static const weight_shape head = {"f32", VOCAB, HIDDEN, 0, 0};
    int logits = add_bytes(c, QUANTIZED, 2 * VOCAB * 4);
    add_linear(c, &head, 2, 2, chosen, logits);
    struct SampleParams p = {.rows_var = 2, .vocab_size = VOCAB};
    struct SampleRow rows[2] = {{.temperature = 0.0f, .top_p = 1.0f},
                                {.temperature = 1.0f, .top_p = 0.9f, .seed_high = 5}};
    record = add_record(c, "sample", &p, sizeof p, 3);
    int number = add_bytes(c, INPUT, sizeof rows);
    memcpy(c->blocks[number - 1].data, rows, sizeof rows);
    bind(c, record, 0, logits, MARLIN_READ);
    bind(c, record, 1, number, MARLIN_READ);
    bind(c, record, 2, add_bytes(c, SCRATCH, 8), MARLIN_WRITE);
}

/* A layer of a Llama model for two sequences: several new tokens each, where workers share the
 * quantized rows of an input, or one each, where every worker quantizes for itself. */
test_case *make_layer(int variant)
{
    static const int32_t tiles[2][8] = {{0, 4, 0, 0, 4, 2, 1, 15}, {0, 1, 0, 20, 1, 1, 1, 3}};
    static const int32_t positions[2][6] = {{0, 1, 2, 3, 15, 16}, {20, 3}};
    static const int32_t slots[2][6] = {{32, 33, 34, 35, 63, 16}, {4, 51}};
    static const weight_shape q_weight = {"int4", HEADS * HEAD_DIM, HIDDEN, 32, MARLIN_WEIGHT_BIAS},
                              k_weight = {"int8", HEAD_DIM, HIDDEN, 32, 0},
                              v_weight = {"fp4", HEAD_DIM, HIDDEN, 32, 0},
                              o_weight = {"int4", HIDDEN, HIDDEN, 32, MARLIN_WEIGHT_BIAS};
    layer l = {.rows = variant ? 2 : 6};
    test_case *c = l.c = new_case(950 + variant, "layer rows=%d", l.rows);
    l.h = activations(&l, QUANTIZED, HIDDEN);
    l.delta = activations(&l, QUANTIZED, HIDDEN);
    l.y = activations(&l, SCRATCH, HIDDEN);
    l.q = activations(&l, SCRATCH, HEADS * HEAD_DIM);
    l.k = activations(&l, SCRATCH, HEAD_DIM);
    l.v = activations(&l, SCRATCH, HEAD_DIM);
    l.table = activations(&l, EXACT, HEAD_DIM);
    l.k_cache = add_halves(c, SCRATCH, 4 * BLOCK_SIZE * HEAD_DIM);
    l.v_cache = add_halves(c, SCRATCH, 4 * BLOCK_SIZE * HEAD_DIM);
    l.tables = add_integers(c, 4, (int32_t[]){2, 0, 3, 1});
    l.tiles = add_integers(c, 8, tiles[variant]);
    int slot_block, attended = activations(&l, SCRATCH, HEADS * HEAD_DIM);
    add_inputs(&l, positions[variant], slots[variant], &slot_block);
    add_norm(&l, false);
    add_linear(c, &q_weight, 0, l.rows, l.y, l.q);
    add_linear(c, &k_weight, 0, l.rows, l.y, l.k)->barrier = 0;
    add_linear(c, &v_weight, 0, l.rows, l.y, l.v)->barrier = 0;
    add_attention(&l, slot_block, attended);
    add_linear(c, &o_weight, 0, l.rows, attended, l.delta);
    add_norm(&l, true);
    add_feed_forward(&l);
    add_norm(&l, true);
    add_logits(&l, variant ? 0 : 3, l.rows - 1);
    c->vars[0] = l.rows;
    c->vars[1] = c->vars[2] = 2;
    return c;
}

/* A convolution of two sequences, of which one leaves a state behind on the way; gated, and with a
 * bias and SiLU. */
test_case *make_causal_conv(int variant)
{
    enum { DIM = 301, TAPS = 4, SLOTS = 3 };
    static const int32_t runs[] = {0, 2, -1, 2, 2, 1, 0, 1, 3, 4, 1, 0}, starts[] = {0, 1, 3};
    int rows = 7, row_floats = variant ? DIM : 3 * DIM;
    struct ConvParams p = {.sequences_var = 2,
                           .dim = DIM,
                           .taps = TAPS,
                           .row_floats = row_floats,
                           .num_slots = SLOTS,
                           .gated = !variant,
                           .silu = variant,
                           .has_bias = variant};
    test_case *c = new_case(2000 + variant, "causal_conv %s", variant ? "silu" : "gated");
    marlin_dispatch *record = add_record(c, "causal_conv", &p, sizeof p, 7);
    bind(c, record, 0, add_floats(c, INPUT, rows * row_floats, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 1, add_floats(c, INPUT, DIM * TAPS, -1.0f, 1.0f), MARLIN_READ);
    if (variant) bind(c, record, 2, add_floats(c, INPUT, DIM, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 3, add_floats(c, SUMMED, SLOTS * (TAPS - 1) * DIM, -1.0f, 1.0f),
         MARLIN_READ | MARLIN_WRITE);
    bind(c, record, 4, add_integers(c, 12, runs), MARLIN_READ);
    bind(c, record, 5, add_integers(c, 3, starts), MARLIN_READ);
    bind(c, record, 6, add_bytes(c, SUMMED, 4 * rows * DIM), MARLIN_WRITE);
    c->vars[2] = 2;
    return c;
}

/* A delta rule over the same kind of runs; values' heads share keys, or take turns. */
test_case *make_delta_rule(int variant)
{
    enum { KEYS = 2, VALUES = 4, KEY_DIM = 32, VALUE_DIM = 48, SLOTS = 3, ROWS = 7 };
    static const int32_t runs[] = {0, 2, -1, 2, 2, 1, 0, 1, 3, 4, 1, 0}, starts[] = {0, 1, 3};
    struct DeltaParams p = {.sequences_var = 2,
                            .key_heads = KEYS,
                            .value_heads = VALUES,
                            .key_dim = KEY_DIM,
                            .value_dim = VALUE_DIM,
                            .num_slots = SLOTS,
                            .tiled = variant,
                            .is_log = 1};
    test_case *c = new_case(2100 + variant, "delta_rule %s", variant ? "tiled" : "shared");
    marlin_dispatch *record = add_record(c, "delta_rule", &p, sizeof p, 9);
    static const int sizes[] = {ROWS * (2 * KEYS * KEY_DIM + VALUES * VALUE_DIM), ROWS * VALUES,
                                ROWS * VALUES, VALUES, VALUES};
    for (int i = 0; i < 5; i++)
        bind(c, record, i, add_floats(c, INPUT, sizes[i], -1.0f, 1.0f), MARLIN_READ);
    int floats = SLOTS * VALUES * KEY_DIM * VALUE_DIM;
    bind(c, record, 5, add_floats(c, SUMMED, floats, -1.0f, 1.0f), MARLIN_READ | MARLIN_WRITE);
    bind(c, record, 6, add_integers(c, 12, runs), MARLIN_READ);
    bind(c, record, 7, add_integers(c, 3, starts), MARLIN_READ);
    bind(c, record, 8, add_bytes(c, SUMMED, 4 * ROWS * VALUES * VALUE_DIM), MARLIN_WRITE);
    c->vars[2] = 2;
    return c;
}

test_case *make_take_columns(int variant)
{
    struct ColumnsParams p = {.rows_var = 2,
                              .x_floats = 70,
                              .y_floats = 48,
                              .pieces = 3,
                              .stride = 20,
                              .start = 5,
                              .width = 14,
                              .y_start = 4};
    test_case *c = new_case(2200 + variant, "take_columns");
    marlin_dispatch *record = add_record(c, "take_columns", &p, sizeof p, 2);
    bind(c, record, 0, add_floats(c, INPUT, 3 * 70, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 1, add_floats(c, SUMMED, 3 * 48, -1.0f, 1.0f), MARLIN_WRITE);
    c->vars[2] = 3;
    return c;
}

/* A row of a latent cache that ends with zeros, of halves and of floats. */
test_case *make_latent_write(int variant)
{
    enum { ROWS = 3, QUERIES = 5, RANK = 22, NOPE = 7, ROPE = 6, ROW = 32 };
    struct LatentParams p = {.rows_var = 2,
                             .num_heads = QUERIES,
                             .nope_dim = NOPE,
                             .rope_dim = ROPE,
                             .rank = RANK,
                             .row_dim = ROW,
                             .block_size = 16,
                             .num_blocks = 2,
                             .interleaved = !variant,
                             .kv_f32 = variant,
                             .eps = 1e-3f};
    test_case *c = new_case(2300 + variant, "latent_write kv_f32=%d", variant);
    marlin_dispatch *record = add_record(c, "latent_write", &p, sizeof p, 9);
    static const int sizes[] = {ROWS * QUERIES * RANK, ROWS * QUERIES * (NOPE + ROPE),
                                ROWS * (RANK + ROPE), ROWS * ROPE};
    for (int i = 0; i < 4; i++)
        bind(c, record, i, add_floats(c, INPUT, sizes[i], -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 4, add_integers(c, ROWS, (int32_t[]){31, 0, 17}), MARLIN_READ);
    /* Sums of another order may round to another half. */
    int cache = variant ? add_floats(c, SUMMED, 2 * 16 * ROW, -1.0f, 1.0f)
                        : add_halves(c, SCRATCH, 2 * 16 * ROW);
    bind(c, record, 5, cache, MARLIN_WRITE);
    bind(c, record, 6, add_floats(c, INPUT, RANK, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 7, add_bytes(c, EXACT, 4 * ROWS * QUERIES * ROW), MARLIN_WRITE);
    bind(c, record, 8, add_bytes(c, EXACT, 4 * ROWS), MARLIN_READ | MARLIN_WRITE);
    c->vars[2] = ROWS;
    return c;
}
