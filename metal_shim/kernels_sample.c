/* kernels_sample.c: from logits to token ids. Unit of work: one row of logits.
 *
 * A draw depends on the row's logits, seed and position alone: no generator state, so a request
 * repeats itself whatever else is in the batch. */
#include <stdlib.h>

#include "cpu.h"
#include "simd.h"

/* Candidates at the edge of the nucleus that are sorted; a bisection step costs about as much. */
#define MAX_SORTED 64

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

static int by_weight(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return a->token_id < b->token_id ? -1 : 1;
}

static double mass_of(const candidate *candidates, int64_t count)
{
    double mass = 0.0;
    for (int64_t i = 0; i < count; i++) mass += candidates[i].weight;
    return mass;
}

/* Candidates whose weight is at least `bits` as an integer (positive floats order as integers do).
 */
static int64_t count_from(const candidate *candidates, int64_t count, uint32_t bits, double *mass)
{
    int64_t number = 0;
    *mass = 0.0;
    for (int64_t i = 0; i < count; i++) {
        if (bits_from_f32(candidates[i].weight) < bits) continue;
        *mass += candidates[i].weight;
        number++;
    }
    return number;
}

/* Move the heaviest candidates to the front, as few as reach mass_limit or count_limit, and return
 * how many they are. Only those near the limit are sorted: bisection finds a weight `low` from
 * which there are enough and a weight `high` from which there are not, with few between the two. */
static int64_t keep_heaviest(candidate *candidates, int64_t count, double mass_limit,
                             int64_t count_limit)
{
    uint32_t low = 0, high = bits_from_f32(1.0f) + 1;
    int64_t from_low = count, from_high = 0;
    while (high - low > 1 && from_low - from_high > MAX_SORTED) {
        uint32_t middle = low + (high - low) / 2;
        double mass;
        int64_t number = count_from(candidates, count, middle, &mass);
        if (number >= count_limit || mass >= mass_limit) {
            low = middle;
            from_low = number;
        } else {
            high = middle;
            from_high = number;
        }
    }
    int64_t sure = 0, between;
    for (int64_t i = 0; i < count; i++) {
        if (bits_from_f32(candidates[i].weight) < high) continue;
        candidate heavy = candidates[i];
        candidates[i] = candidates[sure];
        candidates[sure++] = heavy;
    }
    between = sure;
    for (int64_t i = sure; i < count; i++)
        if (bits_from_f32(candidates[i].weight) >= low) candidates[between++] = candidates[i];
    qsort(candidates + sure, (size_t)(between - sure), sizeof *candidates, by_weight);
    double mass = mass_of(candidates, sure);
    int64_t kept = sure;
    while (kept < between && (kept == 0 || (kept < count_limit && mass < mass_limit)))
        mass += candidates[kept++].weight;
    return kept;
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
 * min_p. Returns their sum. */
static float relative_weights(const float *logits, int64_t count, const struct SampleRow *row,
                              float *weights)
{
    vf max = vf_set1(logits[argmax(logits, count)]), min_p = vf_set1(row->min_p);
    vf factor = vf_set1(1.44269504f / row->temperature), total = vf_zero();
    for (int64_t i = 0; i < count; i += V_LANES) {
        float lanes[V_LANES];
        int64_t valid = count - i < V_LANES ? count - i : V_LANES;
        if (valid < V_LANES) {
            for (int64_t j = 0; j < V_LANES; j++) lanes[j] = j < valid ? logits[i + j] : -INFINITY;
        }
        vf x = vf_load(valid < V_LANES ? lanes : logits + i);
        vf weight = vf_keep_from(vf_exp2(vf_mul(vf_sub(x, max), factor)), min_p);
        total = vf_add(total, weight);
        vf_store(valid < V_LANES ? lanes : weights + i, weight);
        for (int64_t j = 0; valid < V_LANES && j < valid; j++) weights[i + j] = lanes[j];
    }
    return vf_reduce_add(total);
}

/* Gather the tokens that may be drawn before they are narrowed to top_k and top_p: those above the
 * highest of a few thresholds that keeps the whole top k, or without one the whole nucleus. */
static int64_t gather(const float *weights, int64_t count, double mass_limit, int64_t count_limit,
                      candidate *candidates)
{
    static const float thresholds[] = {0x1p-7f, 0x1p-14f, 0x1p-24f};
    for (int t = 0;; t++) {
        float threshold = t < 3 ? thresholds[t] : 0.0f;
        int64_t number = 0;
        for (int64_t i = 0; i < count; i++) {
            candidates[number] = (candidate){weights[i], (int32_t)i};
            number += weights[i] > threshold;
        }
        if (t == 3 || number >= count_limit || mass_of(candidates, number) >= mass_limit)
            return number;
    }
}

static int32_t sample_row(const float *logits, int64_t count, const struct SampleRow *row,
                          uint8_t *scratch)
{
    if (row->temperature <= 0.0f) return argmax(logits, count);
    candidate *candidates = (candidate *)scratch;
    float *weights = (float *)(candidates + count + 1);
    float total = relative_weights(logits, count, row, weights);
    int has_top_k = row->top_k > 0 && row->top_k < count, has_top_p = row->top_p < 1.0f;
    int64_t top_k = has_top_k ? row->top_k : INT64_MAX;
    double nucleus = has_top_p && !has_top_k ? (double)row->top_p * total : INFINITY;
    int64_t kept = gather(weights, count, nucleus, top_k, candidates);
    if (kept == 0) return argmax(logits, count);
    if (has_top_k) kept = keep_heaviest(candidates, kept, INFINITY, top_k);
    if (has_top_k && has_top_p) nucleus = row->top_p * mass_of(candidates, kept);
    if (has_top_p) kept = keep_heaviest(candidates, kept, nucleus, INT64_MAX);
    return draw(candidates, kept, uniform(row) * mass_of(candidates, kept));
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
