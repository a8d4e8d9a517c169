/* kernels_sample.c: from logits to token ids. Unit of work: one row of logits.
 *
 * A draw depends on the row's logits, seed and position alone: no generator state, so a request
 * repeats itself whatever else is in the batch. */
#include <stdlib.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"

/* Candidates at the edge of the nucleus that are sorted; a bisection step costs about as much. */
#define MAX_SORTED 64
/* Weights that are summed in float before the sum goes on in double. */
#define BLOCK 4096
/* The least that counts as a weight: 0 is what was filtered out. */
#define SMALLEST_WEIGHT 1e-45f
/* In the place of a token's id, for a row that has none to draw. */
#define NO_TOKEN -1

typedef struct {
    float weight;
    int32_t token_id;
} candidate;

/* logits[rows[r], id] = minus infinity where bit id % 32 of masks[r, id / 32] is 0.
 * logits float [any, vocab]; masks uint32 [rows, ceil(vocab / 32)]; rows int32 [rows], no two equal
 */
KERNEL(mask_logits)
{
    (void)scratch;
    const struct SampleParams *p = call->params;
    const int32_t *rows = (const int32_t *)call->at[2];
    int64_t vocab_size = p->vocab_size, words = (vocab_size + 31) / 32;
    int64_t available = call->bytes[0] / (4 * vocab_size);
    for (int64_t r = begin; r < end; r++) {
        if (rows[r] < 0 || rows[r] >= available) return MARLIN_EDEVICE;
        float *logits = (float *)call->at[0] + rows[r] * vocab_size;
        const uint32_t *mask = (const uint32_t *)call->at[1] + r * words;
        for (int64_t w = 0; w < words; w++) {
            if (mask[w] == UINT32_MAX) continue;
            int64_t last = (w + 1) * 32 < vocab_size ? (w + 1) * 32 : vocab_size;
            for (int64_t i = w * 32; i < last; i++)
                if (!(mask[w] >> i % 32 & 1)) logits[i] = -INFINITY;
        }
    }
    return MARLIN_OK;
}

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

/* The lowest id among the largest logits, NaNs aside; NO_TOKEN if none is above minus infinity. */
static int32_t argmax(const float *logits, int64_t count)
{
    int64_t whole = count / V_LANES * V_LANES;
    vf most = vf_set1(-INFINITY);
    /* Of a number and a NaN, x86 takes the second operand and ARM the NaN. */
    for (int64_t i = 0; i < whole; i += V_LANES) most = vf_max(vf_load(logits + i), most);
    float max = vf_reduce_max(most);
    if (isnan(max)) {
        whole = 0;
        max = -INFINITY;
    }
    for (int64_t i = whole; i < count; i++)
        if (logits[i] > max) max = logits[i];
    if (max > -INFINITY)
        for (int64_t i = 0; i < count; i++)
            if (logits[i] == max) return (int32_t)i;
    return NO_TOKEN;
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

/* Weights lie in whole vectors, whatever the instruction set. */
static int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

static int by_weight(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return a->token_id < b->token_id ? -1 : 1;
}

/* How many weights there are from a bound up, and their sum. */
typedef struct {
    int64_t number;
    double mass;
} tally;

/* Weights [begin, end) of at least `least`; both ends are multiples of 16. The sum runs in 16 lanes
 * whatever the instruction set, so that every set draws the same. */
static tally tally_block(const float *weights, int64_t begin, int64_t end, float least)
{
    vf from = vf_set1(least), sums[V_PARTS];
    tally found = {0, 0.0};
    for (int part = 0; part < V_PARTS; part++) sums[part] = vf_zero();
    for (int64_t i = begin; i < end; i += 16) {
        for (int part = 0; part < V_PARTS; part++) {
            vf weight = vf_load(weights + i + part * V_LANES);
            sums[part] = vf_add(sums[part], vf_keep_from(weight, from));
            found.number += vf_count_from(weight, from);
        }
    }
    float lanes[16];
    for (int part = 0; part < V_PARTS; part++) vf_store(lanes + part * V_LANES, sums[part]);
    for (int i = 0; i < 16; i++) found.mass += lanes[i];
    return found;
}

static int64_t block_end(int64_t begin, int64_t count)
{
    return begin + BLOCK < count ? begin + BLOCK : count;
}

static tally tally_from(const float *weights, int64_t count, float least)
{
    tally all = {0, 0.0};
    for (int64_t i = 0; i < count; i += BLOCK) {
        tally block = tally_block(weights, i, block_end(i, count), least);
        all.number += block.number;
        all.mass += block.mass;
    }
    return all;
}

/* The weights in [low, high), heaviest first, the lower id first among equals. */
static int64_t sort_between(const float *weights, int64_t count, float low, float high,
                            candidate *between)
{
    int64_t number = 0;
    for (int64_t i = 0; i < count; i += V_LANES) {
        vf weight = vf_load(weights + i);
        if (vf_count_from(weight, vf_set1(low)) == vf_count_from(weight, vf_set1(high))) continue;
        for (int64_t j = i; j < i + V_LANES; j++)
            if (weights[j] >= low && weights[j] < high)
                between[number++] = (candidate){weights[j], (int32_t)j};
    }
    qsort(between, (size_t)number, sizeof *between, by_weight);
    return number;
}

/* Put all weights to 0 but the heaviest, as few as reach mass_limit or count_limit. Only those near
 * the limit are sorted: bisection (positive floats order as their bits do) finds a weight `low`
 * from which there are enough and a weight `high` from which there are not, with few between the
 * two. */
static void keep_heaviest(float *weights, int64_t count, double mass_limit, int64_t count_limit,
                          candidate *between)
{
    uint32_t low = 1, high = bits_from_f32(1.0f) + 1;
    tally from_low = tally_from(weights, count, f32_from_bits(low)), from_high = {0, 0.0};
    while (high - low > 1 && from_low.number - from_high.number > MAX_SORTED) {
        uint32_t middle = low + (high - low) / 2;
        tally found = tally_from(weights, count, f32_from_bits(middle));
        if (found.number >= count_limit || found.mass >= mass_limit) {
            low = middle;
            from_low = found;
        } else {
            high = middle;
            from_high = found;
        }
    }
    vf sure = vf_set1(f32_from_bits(high));
    int64_t number = sort_between(weights, count, f32_from_bits(low), f32_from_bits(high), between);
    for (int64_t i = 0; i < count; i += V_LANES)
        vf_store(weights + i, vf_keep_from(vf_load(weights + i), sure));
    tally kept = from_high;
    for (int64_t i = 0; i < number; i++) {
        if (kept.number > 0 && (kept.number >= count_limit || kept.mass >= mass_limit)) break;
        weights[between[i].token_id] = between[i].weight;
        kept.mass += between[i].weight;
        kept.number++;
    }
}

/* The token at which the sum of the weights, in the order of the ids, passes `share` of the whole;
 * -1 when there is no weight. */
static int32_t draw(const float *weights, int64_t count, double share)
{
    double target = share * tally_from(weights, count, SMALLEST_WEIGHT).mass, sum = 0.0;
    int32_t last = -1;
    for (int64_t i = 0; i < count; i += BLOCK) {
        int64_t end = block_end(i, count);
        double after = sum + tally_block(weights, i, end, SMALLEST_WEIGHT).mass;
        if (after == sum) continue;
        if (target >= after && end < count) {
            sum = after;
            continue;
        }
        for (int64_t j = i; j < end; j++) {
            if (!(weights[j] >= SMALLEST_WEIGHT)) continue;
            last = (int32_t)j;
            sum += weights[j];
            if (target < sum) return last;
        }
        return last;
    }
    return last;
}

/* Weights relative to the likeliest token's, 2^((logit - max) / temperature * log2 e), 0 below
 * min_p, and 0 from `count` up to a multiple of 16. */
static void relative_weights(const float *logits, int64_t count, float largest,
                             const struct SampleRow *row, float *weights)
{
    vf max = vf_set1(largest), min_p = vf_set1(row->min_p);
    vf factor = vf_set1(1.44269504f / row->temperature);
    for (int64_t i = 0; i < padded(count); i += V_LANES) {
        float lanes[V_LANES];
        for (int64_t j = 0; i + V_LANES > count && j < V_LANES; j++)
            lanes[j] = i + j < count ? logits[i + j] : -INFINITY;
        vf x = vf_load(i + V_LANES > count ? lanes : logits + i);
        vf_store(weights + i, vf_keep_from(vf_exp2(vf_mul(vf_sub(x, max), factor)), min_p));
    }
    for (int64_t i = count; i < padded(count); i++) weights[i] = 0.0f;
}

static int32_t sample_row(const float *logits, int64_t vocab_size, const struct SampleRow *row,
                          uint8_t *scratch)
{
    int32_t likeliest = argmax(logits, vocab_size);
    if (row->temperature <= 0.0f || likeliest == NO_TOKEN) return likeliest;
    int64_t count = padded(vocab_size);
    float *weights = (float *)scratch;
    candidate *between = (candidate *)(weights + count);
    relative_weights(logits, vocab_size, logits[likeliest], row, weights);
    if (row->top_k > 0 && row->top_k < vocab_size)
        keep_heaviest(weights, count, INFINITY, row->top_k, between);
    if (row->top_p < 1.0f) {
        double nucleus = row->top_p * tally_from(weights, count, SMALLEST_WEIGHT).mass;
        keep_heaviest(weights, count, nucleus, INT64_MAX, between);
    }
    int32_t drawn = draw(weights, count, uniform(row));
    return drawn < 0 ? likeliest : drawn;
}

/* token_ids[r] drawn from logits[r]: temperature, then min_p, then top_k, then top_p; temperature
 * 0: the largest. NO_TOKEN for a row without a number above minus infinity.
 * logits float [rows, vocab]; SampleRow [rows]; token_ids int32 [rows] */
KERNEL(sample)
{
    const struct SampleParams *p = call->params;
    for (int64_t r = begin; r < end; r++)
        ((int32_t *)call->at[2])[r] =
            sample_row((const float *)call->at[0] + r * p->vocab_size, p->vocab_size,
                       (const struct SampleRow *)call->at[1] + r, scratch);
    return MARLIN_OK;
}
