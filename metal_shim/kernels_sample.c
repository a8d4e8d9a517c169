/* kernels_sample.c: from logits to token ids. Unit of work: one row of logits.
 *
 * A draw depends on the row's logits, seed and position alone: no generator state, so a request
 * repeats itself whatever else is in the batch. */
#include <stdlib.h>

#include "cpu.h"
#include "simd.h"

typedef struct {
    float weight;
    int32_t token_id;
} candidate;

/* logits[r, id] changes for the entries [starts[r], starts[r + 1]):
 * seen tokens: positive logits / repetition_penalty, negative * it; outputs: - count * frequency -
 * presence; then + bias.   logits float [rows, vocab]; entries PenaltyEntry [any]; starts int32
 * [rows + 1]; SampleRow [rows] */
KERNEL(penalize)
{
    (void)scratch;
    const struct SampleParams *p = call->params;
    const struct PenaltyEntry *entries = (const struct PenaltyEntry *)call->at[1];
    const int32_t *starts = (const int32_t *)call->at[2];
    int64_t available = call->bytes[1] / (int64_t)sizeof *entries;
    for (int64_t r = begin; r < end; r++) {
        const struct SampleRow *row = (const struct SampleRow *)call->at[3] + r;
        float *logits = (float *)call->at[0] + r * p->vocab_size;
        if (starts[r] < 0 || starts[r] > starts[r + 1] || starts[r + 1] > available)
            return MARLIN_EDEVICE;
        for (int64_t i = starts[r]; i < starts[r + 1]; i++) {
            const struct PenaltyEntry *entry = entries + i;
            if (entry->token_id < 0 || entry->token_id >= (int64_t)p->vocab_size)
                return MARLIN_EDEVICE;
            float x = logits[entry->token_id];
            if (entry->num_outputs >= 0)
                x = x > 0.0f ? x / row->repetition_penalty : x * row->repetition_penalty;
            if (entry->num_outputs > 0)
                x -= (float)entry->num_outputs * row->frequency_penalty + row->presence_penalty;
            logits[entry->token_id] = x + entry->bias;
        }
    }
    return MARLIN_OK;
}

/* The lowest id among the largest logits. */
static int32_t argmax(const float *logits, int64_t count)
{
    int64_t whole = count / V_LANES * V_LANES;
    vf most = vf_set1(-INFINITY);
    for (int64_t i = 0; i < whole; i += V_LANES) most = vf_max(most, vf_load(logits + i));
    float max = vf_reduce_max(most);
    for (int64_t i = whole; i < count; i++)
        if (logits[i] > max) max = logits[i];
    for (int64_t i = 0; i < count; i++)
        if (logits[i] == max) return (int32_t)i;
    return 0;
}

/* SplitMix64's finalizer over seed and position (Steele, Lea, Flood 2014); uniform in [0, 1). */
static double uniform(const struct SampleRow *row)
{
    uint64_t z = (uint64_t)row->seed_high << 32 | row->seed_low;
    z += ((uint64_t)row->position + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static float sum_of(const float *values, int64_t count, float at_least, int64_t *number)
{
    float sum = 0.0f;
    *number = 0;
    for (int64_t begin = 0; begin < count; begin += 256) {
        int64_t end = begin + 256 < count ? begin + 256 : count;
        float part = 0.0f;
        int32_t kept = 0;
        for (int64_t i = begin; i < end; i++) {
            part += values[i] >= at_least ? values[i] : 0.0f;
            kept += values[i] >= at_least;
        }
        sum += part;
        *number += kept;
    }
    return sum;
}

static int by_weight(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return a->token_id < b->token_id ? -1 : 1;
}

static int32_t draw(const candidate *candidates, int64_t count, double target)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        sum += candidates[i].weight;
        if (target < sum) return candidates[i].token_id;
    }
    return candidates[count - 1].token_id;
}

/* Weights relative to the likeliest token's, 2^((logit - max) / temperature * log2 e), 0 below
 * min_p. */
static void relative_weights(const float *logits, int64_t count, const struct SampleRow *row,
                             float *weights)
{
    float max = logits[argmax(logits, count)];
    float factor = 1.44269504f / row->temperature;
    for (int64_t i = 0; i < count; i += V_LANES) {
        float lanes[V_LANES];
        int64_t valid = count - i < V_LANES ? count - i : V_LANES;
        for (int64_t j = 0; j < valid; j++) lanes[j] = logits[i + j] - max;
        for (int64_t j = valid; j < V_LANES; j++) lanes[j] = -INFINITY;
        vf_store(lanes, vf_exp2(vf_mul(vf_load(lanes), vf_set1(factor))));
        for (int64_t j = 0; j < valid; j++)
            weights[i + j] = lanes[j] >= row->min_p ? lanes[j] : 0.0f;
    }
}

static int32_t sample_row(const float *logits, int64_t count, const struct SampleRow *row,
                          uint8_t *scratch)
{
    if (row->temperature <= 0.0f) return argmax(logits, count);
    float *weights = (float *)scratch;
    candidate *candidates = (candidate *)(weights + count);
    relative_weights(logits, count, row, weights);

    int64_t number;
    float total = sum_of(weights, count, 0.0f, &number);
    float wanted = row->top_p < 1.0f ? row->top_p * total : INFINITY;
    int64_t top_k = row->top_k > 0 && row->top_k < count ? row->top_k : count;
    /* The highest of a few thresholds that keeps the whole top k, or without one the whole nucleus:
     * only the tokens above it are sorted. (A nucleus is a share of the top k's mass.) */
    static const float thresholds[] = {0x1p-4f, 0x1p-7f, 0x1p-10f, 0x1p-14f, 0x1p-20f, 0.0f};
    float threshold = 0.0f;
    for (int i = 0; i < 6; i++) {
        threshold = thresholds[i];
        float mass_above = sum_of(weights, count, threshold, &number);
        if (top_k < count ? number >= top_k : mass_above >= wanted) break;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (weights[i] >= threshold && weights[i] > 0.0f)
            candidates[kept++] = (candidate){weights[i], (int32_t)i};
    if (kept == 0) return argmax(logits, count);
    double mass = 0.0;
    if (top_k < count || row->top_p < 1.0f) {
        qsort(candidates, (size_t)kept, sizeof *candidates, by_weight);
        if (kept > top_k) kept = top_k;
        double limit = top_k < count ? 0.0 : total;
        for (int64_t i = 0; top_k < count && i < kept; i++) limit += candidates[i].weight;
        limit *= row->top_p;
        int64_t nucleus = 0;
        while (nucleus < kept && (nucleus == 0 || mass < limit))
            mass += candidates[nucleus++].weight;
        kept = nucleus;
    } else {
        for (int64_t i = 0; i < kept; i++) mass += candidates[i].weight;
    }
    return draw(candidates, kept, uniform(row) * mass);
}

/* token_ids[r] drawn from logits[r]: temperature, then min_p, then top_k, then top_p; temperature
 * 0: the largest. logits float [rows, vocab]; SampleRow [rows]; token_ids int32 [rows] */
KERNEL(sample)
{
    const struct SampleParams *p = call->params;
    for (int64_t r = begin; r < end; r++)
        ((int32_t *)call->at[2])[r] =
            sample_row((const float *)call->at[0] + r * p->vocab_size, p->vocab_size,
                       (const struct SampleRow *)call->at[1] + r, scratch);
    return MARLIN_OK;
}
