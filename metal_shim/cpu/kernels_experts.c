/* kernels_experts.c: which experts a token takes, which rows an expert gets, and the weighted sum
 * of what they make of them. The matrices are in kernels_linear.c and kernels_dense.c.
 *
 * A choice is a token's row * num_slots + the slot. What a token chooses and how its slots are
 * added up depends on its own logits alone, and so no result depends on the batch. */
#include "cpu/cpu.h"
#include "cpu/functions.h"
#include "cpu/simd.h"

/* Of the values that are not taken, the largest; the first of equals. NaN counts as the least. */
static int32_t take_best(const float *values, int32_t count, uint8_t *taken)
{
    int32_t best = -1;
    for (int32_t i = 0; i < count; i++)
        if (!taken[i] &&
            (best < 0 || values[i] > values[best] || (isnan(values[best]) && !isnan(values[i]))))
            best = i;
    taken[best] = 1;
    return best;
}

/* scores become shares of 1. */
static void softmax(float *scores, int32_t count)
{
    float most = scores[0], sum = 0.0f;
    for (int32_t i = 1; i < count; i++) most = scores[i] > most ? scores[i] : most;
    for (int32_t i = 0; i < count; i++) sum += scores[i] = portable_exp(scores[i] - most);
    for (int32_t i = 0; i < count; i++) scores[i] /= sum;
}

/* Experts of groups that are not kept count as taken. A group's rank is the sum of its two best. */
static void keep_groups(const struct RouteParams *p, const float *ranks, uint8_t *taken)
{
    int32_t groups = (int32_t)p->num_groups, size = (int32_t)p->num_experts / groups;
    float sums[MARLIN_MAX_EXPERTS];
    uint8_t kept[MARLIN_MAX_EXPERTS] = {0}, seen[MARLIN_MAX_EXPERTS];
    for (int32_t g = 0; g < groups; g++) {
        memset(seen, 0, (size_t)size);
        sums[g] = ranks[g * size + take_best(ranks + g * size, size, seen)];
        if (size > 1) sums[g] += ranks[g * size + take_best(ranks + g * size, size, seen)];
    }
    for (uint32_t i = 0; i < p->kept_groups; i++) take_best(sums, groups, kept);
    for (int32_t g = 0; g < groups; g++) memset(taken + g * size, !kept[g], (size_t)size);
}

/* One token: num_slots experts, the best first, and what each one's output is multiplied by. */
static void route_row(const struct RouteParams *p, const float *logits, const float *bias,
                      int32_t *ids, float *weights)
{
    int32_t count = (int32_t)p->num_experts, slots = (int32_t)p->num_slots;
    float scores[MARLIN_MAX_EXPERTS], ranks[MARLIN_MAX_EXPERTS];
    uint8_t taken[MARLIN_MAX_EXPERTS] = {0};
    memcpy(scores, logits, (size_t)count * sizeof *scores);
    if (p->gating == MARLIN_GATE_SOFTMAX) softmax(scores, count);
    if (p->gating == MARLIN_GATE_SIGMOID)
        for (int32_t i = 0; i < count; i++) scores[i] = 1.0f / (1.0f + portable_exp(-scores[i]));
    int ranks_differ = p->bias == MARLIN_ROUTE_RANKS;
    for (int32_t i = 0; i < count; i++) ranks[i] = ranks_differ ? scores[i] + bias[i] : scores[i];
    if (p->num_groups > 1) keep_groups(p, ranks, taken);
    for (int32_t s = 0; s < slots; s++) {
        ids[s] = take_best(ranks, count, taken);
        weights[s] = scores[ids[s]];
    }
    if (p->gating == MARLIN_GATE_CHOSEN) softmax(weights, slots);
    float sum = p->epsilon;
    for (int32_t s = 0; s < slots; s++) sum += weights[s];
    for (int32_t s = 0; s < slots; s++) {
        if (p->normalizes) weights[s] /= sum;
        weights[s] *= p->scale;
        if (p->bias == MARLIN_ROUTE_FACTORS) weights[s] *= bias[ids[s]];
    }
}

/* logits float [rows, num_experts]; bias float [num_experts], added to what is ranked
 * alone, or what weights are multiplied by; ids int32 [rows, num_slots]; weights float [rows,
 * num_slots] */
KERNEL(route)
{
    (void)scratch;
    const struct RouteParams *p = call->params;
    const float *bias = p->bias ? (const float *)call->at[1] : NULL;
    for (int64_t row = begin; row < end; row++)
        route_row(p, (const float *)call->at[0] + row * p->num_experts, bias,
                  (int32_t *)call->at[2] + row * p->num_slots,
                  (float *)call->at[3] + row * p->num_slots);
    return MARLIN_OK;
}

/* ids int32 [rows, num_slots]; order int32 [rows * num_slots]: choices by expert, and those of one
 * expert in their own order; groups int32 [num_experts, 3]: expert, begin and end in order, for
 * each that was chosen, and zeros up to marlin_num_groups(). */
KERNEL(sort_experts)
{
    (void)scratch;
    const struct SortParams *p = call->params;
    const int32_t *ids = (const int32_t *)call->at[0];
    int32_t *order = (int32_t *)call->at[1], *groups = (int32_t *)call->at[2];
    int64_t rows = call->vars[p->rows_var], choices = rows * p->num_slots, chosen = 0;
    int64_t num_groups = marlin_num_groups(rows, p->num_slots, p->num_experts);
    int32_t next[MARLIN_MAX_EXPERTS] = {0}, used = 0;
    if (begin >= end) return MARLIN_OK;
    for (int64_t i = 0; i < choices; i++) {
        if (ids[i] < 0 || ids[i] >= (int32_t)p->num_experts) return MARLIN_EDEVICE;
        next[ids[i]]++;
    }
    for (int32_t expert = 0; expert < (int32_t)p->num_experts; expert++) {
        int32_t count = next[expert];
        next[expert] = used;
        if (count == 0) continue;
        int32_t group[3] = {expert, used, used + count};
        memcpy(groups + 3 * chosen++, group, sizeof group);
        used += count;
    }
    memset(groups + 3 * chosen, 0, (size_t)(num_groups - chosen) * 12);
    for (int64_t i = 0; i < choices; i++) order[next[ids[i]]++] = (int32_t)i;
    return MARLIN_OK;
}

/* y[r, :] = sum over the slots of weights[r, s] * values[r, s, :] (+ y[r, :], where adds)
 *
 * values float [rows, num_slots, dim]; weights float [rows, num_slots]; y float [rows, dim]
 * Units: (row, piece of MARLIN_PIECE_FLOATS). */
KERNEL(combine_experts)
{
    (void)scratch;
    const struct CombineParams *p = call->params;
    int64_t dim = p->dim, pieces = (dim + MARLIN_PIECE_FLOATS - 1) / MARLIN_PIECE_FLOATS;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t row = unit / pieces, i = unit % pieces * MARLIN_PIECE_FLOATS;
        int64_t last = i + MARLIN_PIECE_FLOATS < dim ? i + MARLIN_PIECE_FLOATS : dim;
        const float *values = (const float *)call->at[0] + row * p->num_slots * dim;
        const float *weights = (const float *)call->at[1] + row * p->num_slots;
        float *y = (float *)call->at[2] + row * dim;
        for (; last - i >= V_LANES; i += V_LANES) {
            vf sum = vf_zero();
            for (int64_t s = 0; s < p->num_slots; s++)
                sum = vf_fma(vf_set1(weights[s]), vf_load(values + s * dim + i), sum);
            vf_store(y + i, p->adds ? vf_add(vf_load(y + i), sum) : sum);
        }
        for (; i < last; i++) {
            float sum = 0.0f;
            for (int64_t s = 0; s < p->num_slots; s++)
                sum = fmaf(weights[s], values[s * dim + i], sum);
            y[i] = p->adds ? y[i] + sum : sum;
        }
    }
    return MARLIN_OK;
}
