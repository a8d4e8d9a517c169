/* expert_cases.c: programs of one kernel of a mixture of experts, with odd shapes. */
#include <stdio.h>

#include "cases.h"

/* Six tokens that choose two of four experts, of which nobody chooses the third: rows for every
 * block that a set has but the largest. */
enum { ROWS = 6, SLOTS = 2, EXPERTS = 4, CHOICES = ROWS * SLOTS };
static const int32_t ids[CHOICES] = {0, 1, 0, 3, 3, 0, 1, 0, 0, 3, 0, 1};
static const int32_t order[CHOICES] = {0, 2, 5, 7, 8, 10, 1, 6, 11, 3, 4, 9};
static const int32_t groups[3 * EXPERTS] = {0, 0, 6, 1, 6, 9, 3, 9, 12, 0, 0, 0};

static const weight_shape weights[] = {
    {"int4", 32, 96, 32, MARLIN_WEIGHT_BIAS},
    {"fp4", 16, 128, 64, MARLIN_OUTPUT_BIAS | MARLIN_SCALE_F32},
    {"fp4", 32, 96, 32, MARLIN_SCALE_EXP | MARLIN_OUTPUT_BIAS},
    {"int8", 16, 96, 32, 0},
    {"int8", 48, 64, 16, MARLIN_SCALE_F32 | MARLIN_OUTPUT_BIAS},
    {"int5", 16, 256, 32, MARLIN_WEIGHT_BIAS | MARLIN_SCALE_BLOCK},
    {"int6", 32, 256, 16, MARLIN_SCALE_BLOCK | MARLIN_OUTPUT_BIAS},
    {"iq4", 16, 64, 32, 0},
    {"fp8", 32, 96, 32, MARLIN_SCALE_F32 | MARLIN_OUTPUT_BIAS},
    {"nf4", 16, 128, 64, MARLIN_SCALE_F32},
    {"f32", 21, 37, 0, MARLIN_OUTPUT_BIAS},
    {"f16", 3, 20, 0, 0},
    {"bf16", 18, 36, 0, 0},
};

/* Even variants read a row of x a token, odd ones a row a choice. */
test_case *make_experts(int variant)
{
    const weight_shape *w = &weights[variant / 2];
    int x_slots = variant % 2 ? SLOTS : 1, x_rows = ROWS * x_slots;
    test_case *c = new_case(1600 + variant, "experts_%s n=%d k=%d group=%d x_slots=%d", w->weight,
                            w->n, w->k, w->group, x_slots);
    struct ExpertParams p = {.rows_var = 1,
                             .n = w->n,
                             .k = w->k,
                             .group_size = w->group,
                             .flags = w->flags,
                             .num_experts = EXPERTS,
                             .num_slots = SLOTS,
                             .x_slots = x_slots};
    char kernel[32];
    snprintf(kernel, sizeof kernel, "%s_experts_%s", variant % 2 ? "matmul" : "matvec", w->weight);
    marlin_dispatch *record = add_record(c, kernel, &p, sizeof p, 8);
    weight_shape all = *w;
    all.n *= EXPERTS;
    bind(c, record, 0, add_floats(c, INPUT, (int64_t)x_rows * w->k, -1.5f, 1.0f), MARLIN_READ);
    add_weight(c, record, &all);
    if (w->flags & MARLIN_OUTPUT_BIAS)
        bind(c, record, 4, add_floats(c, INPUT, all.n, -1.0f, 1.0f), MARLIN_READ);
    block_kind near = w->group ? QUANTIZED : SUMMED;
    bind(c, record, 5, add_bytes(c, near, 4 * CHOICES * (int64_t)w->n), MARLIN_WRITE);
    bind(c, record, 6, add_integers(c, CHOICES, order), MARLIN_READ);
    bind(c, record, 7, add_integers(c, 3 * EXPERTS, groups), MARLIN_READ);
    c->vars[1] = ROWS;
    return c;
}

/* All three gates; the second with groups and corrected ranks, the third with factors. */
test_case *make_route(int variant)
{
    bool has_groups = variant == 1;
    struct RouteParams p = {.num_experts = 36,
                            .num_slots = 3,
                            .gating = variant,
                            .normalizes = variant < 2,
                            .bias = variant,
                            .num_groups = has_groups ? 6 : 1,
                            .kept_groups = has_groups ? 2 : 1,
                            .scale = 2.5f};
    test_case *c = new_case(1700 + variant, "route, gate %d", variant);
    marlin_dispatch *record = add_record(c, "route", &p, sizeof p, 4);
    bind(c, record, 0, add_floats(c, INPUT, ROWS * 36, -3.0f, 3.0f), MARLIN_READ);
    if (variant) bind(c, record, 1, add_floats(c, INPUT, 36, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 2, add_bytes(c, EXACT, 4 * ROWS * 3), MARLIN_WRITE);
    bind(c, record, 3, add_bytes(c, SUMMED, 4 * ROWS * 3), MARLIN_WRITE);
    c->vars[0] = ROWS;
    return c;
}

test_case *make_sort_experts(int variant)
{
    struct SortParams p = {.num_experts = EXPERTS, .num_slots = SLOTS};
    test_case *c = new_case(1800 + variant, "sort_experts");
    marlin_dispatch *record = add_record(c, "sort_experts", &p, sizeof p, 3);
    bind(c, record, 0, add_integers(c, CHOICES, ids), MARLIN_READ);
    bind(c, record, 1, add_bytes(c, EXACT, 4 * CHOICES), MARLIN_WRITE);
    bind(c, record, 2, add_bytes(c, EXACT, 12 * EXPERTS), MARLIN_WRITE);
    c->vars[0] = ROWS;
    return c;
}

/* Of one piece and of two; the second adds to what is there. */
test_case *make_combine_experts(int variant)
{
    int dim = variant ? 1061 : 45;
    struct CombineParams p = {.dim = dim, .num_slots = SLOTS, .adds = variant};
    test_case *c = new_case(1900 + variant, "combine_experts dim=%d", dim);
    marlin_dispatch *record = add_record(c, "combine_experts", &p, sizeof p, 3);
    bind(c, record, 0, add_floats(c, INPUT, (int64_t)CHOICES * dim, -1.0f, 1.0f), MARLIN_READ);
    bind(c, record, 1, add_floats(c, INPUT, CHOICES, 0.0f, 1.0f), MARLIN_READ);
    int y = variant ? add_floats(c, EXACT, (int64_t)ROWS * dim, -1.0f, 1.0f)
                    : add_bytes(c, EXACT, 4 * ROWS * (int64_t)dim);
    bind(c, record, 2, y, MARLIN_READ | MARLIN_WRITE);
    c->vars[0] = ROWS;
    return c;
}
