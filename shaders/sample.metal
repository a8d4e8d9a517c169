// sample.metal: from logits to token ids: masks, penalties, then a draw. One threadgroup a row of
// logits.
//
// A draw depends on the row's logits, seed and position alone. A token's weight is its probability
// over the likeliest token's, a float in [0, 1]; weights are added up as integers
// (SAMPLE_FIXED_BITS), so that sums do not depend on the order of threads, and nothing is sorted:
// which tokens are kept is found from a histogram of the weights' bits, which order as the weights
// do.
#include <metal_stdlib>

#include "common.h"

using namespace metal;

// The value as a float32 of its own: a product is not fused with the sum that follows, which would
// round once where the CPU rounds twice.
inline float penalize_rounded(float x)
{
    volatile float stored = x;
    return stored;
}

// mask_logits: logits[rows[r], id] = minus infinity where bit id % 32 of masks[r, id / 32] is 0
//
//   logits  float [any, vocab_size]    masks  uint32 [num_masks, ceil(vocab_size / 32)]
//   rows    int32 [num_masks], no two equal
//   Grid: (num_masks). Group: 256 threads a row. Bytes: vocab_size / 8, and 4 for each bit that is
//   0. Bad index: a row that logits does not have.
[[kernel]] void mask_logits(device float *logits [[buffer(0)]],
                            device const uint32_t *masks [[buffer(1)]],
                            device const int32_t *rows [[buffer(2)]],
                            constant SampleParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                            constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                            constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                            device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint thread_index [[thread_index_in_threadgroup]])
{
    if (group.x >= uint(vars[p.rows_var])) return;
    int32_t row = rows[group.x];
    if (row < 0 || uint(row) >= call.words[0] / p.vocab_size) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    device float *of_row = logits + ulong(row) * p.vocab_size;
    device const uint32_t *mask = masks + ulong(group.x) * ((p.vocab_size + 31) / 32);
    for (uint i = thread_index; i < p.vocab_size; i += THREADS_mask_logits)
        if ((mask[i / 32] >> i % 32 & 1) == 0) of_row[i] = as_type<float>(0xff800000u);
}

// penalize: logits[r, id] changes for the entries [starts[r], starts[r + 1]):
//   seen tokens: positive logits / repetition_penalty, negative * it; outputs: - count * frequency
//   - presence; then + bias.
//
//   logits  float [rows, vocab_size]    entries  PenaltyEntry [any], a token once a row
//   starts  int32 [rows + 1]            settings  SampleRow [rows]
//   Grid: (rows). Group: 256 threads, an entry each at a time. Bytes: 20 an entry. Bad indices: a
//   start outside the entries, a token id outside the vocabulary; the latter leaves other entries
//   applied.
[[kernel]] void penalize(device float *logits [[buffer(0)]],
                         device const PenaltyEntry *entries [[buffer(1)]],
                         device const int32_t *starts [[buffer(2)]],
                         device const SampleRow *settings [[buffer(3)]],
                         constant SampleParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                         constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                         constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                         device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]])
{
    if (group.x >= uint(vars[p.rows_var])) return;
    int32_t begin = starts[group.x], end = starts[group.x + 1];
    uint available = call.words[1] / (sizeof(PenaltyEntry) / 4);
    if (begin < 0 || begin > end || uint(end) > available) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    device float *row = logits + ulong(group.x) * p.vocab_size;
    float repetition = settings[group.x].repetition_penalty;
    float frequency = settings[group.x].frequency_penalty;
    float presence = settings[group.x].presence_penalty;
    for (uint i = uint(begin) + thread_index; i < uint(end); i += THREADS_penalize) {
        int32_t token_id = entries[i].token_id, num_outputs = entries[i].num_outputs;
        if (token_id < 0 || uint(token_id) >= p.vocab_size) {
            fail(status, call);
            continue;
        }
        float x = row[token_id];
        if (num_outputs >= 0)
            x = x > 0.0f ? precise::divide(x, repetition) : penalize_rounded(x * repetition);
        if (num_outputs > 0) x -= penalize_rounded(float(num_outputs) * frequency) + presence;
        row[token_id] = x + entries[i].bias;
    }
}

// ---- the draw ----

#define SAMPLE_SIMDGROUPS (THREADS_sample / SIMD_THREADS)
// A weight of 1 as an integer is 2^38: 2^24 of them, the largest vocabulary, add up to 2^62. What
// is below 2^-38 is never drawn.
#define SAMPLE_FIXED_BITS 38
#define SAMPLE_ONE 0x3f800000u
// sample_order_bits() of minus infinity.
#define SAMPLE_MINUS_INFINITY 0x007fffffu
// In the place of a token's id, for a row without a number above minus infinity.
#define SAMPLE_NO_TOKEN (-1)
// The bits of weights are at most SAMPLE_ONE < 2^30: three levels of 10 bits.
#define SAMPLE_LEVELS 3
#define SAMPLE_LEVEL_BITS 10
#define SAMPLE_BINS (1 << SAMPLE_LEVEL_BITS)
// Weights below the first of these that leaves enough are not looked at again: 2^-7, 2^-14, 2^-24
// and 0.
#define SAMPLE_FLOORS 4

constant uint SAMPLE_WEIGHT_FLOORS[SAMPLE_FLOORS] = {0x3c000000u, 0x38800000u, 0x33800000u, 0u};

// Threadgroup memory of a draw.
struct SampleMemory {
    atomic_uint counts[SAMPLE_BINS];
    atomic_uint masses[2 * SAMPLE_BINS]; // low and high halves
    ulong group_masses[SAMPLE_SIMDGROUPS * SAMPLE_FLOORS];
    uint group_counts[SAMPLE_SIMDGROUPS * SAMPLE_FLOORS];
    ulong found_mass;
    uint found_count;
    uint found_bin;
};

// A row of logits as a thread sees it.
struct SampleDraw {
    device const float *logits;
    threadgroup SampleMemory *memory;
    uint vocab_size;
    uint largest; // sample_order_bits of the largest logit
    float most;   // the largest logit
    float factor; // log2(e) / temperature
    float min_p;
    uint thread_index;
    uint lane;
    uint simdgroup;
};

// The tokens kept: those whose weight's bits are above `bits`, and the first `ties` of those whose
// bits are equal to it. mass: their weights.
struct SampleKept {
    uint bits;
    uint ties;
    ulong mass;
};

// An integer that orders as x does, infinities included; 0 for what is no number.
inline uint sample_order_bits(float x)
{
    uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
    if (bits == 0x80000000u) bits = 0;
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The bits of a token's weight, 2^((logit - largest) * factor), 0 below min_p.
inline uint sample_weight_bits(thread const SampleDraw &d, float logit)
{
    if (sample_order_bits(logit) == d.largest) return d.min_p <= 1.0f ? SAMPLE_ONE : 0;
    float weight = exp2((logit - d.most) * d.factor);
    if (weight > 1.0f) weight = 1.0f; // exp2 may round up; a NaN stays one
    uint bits = as_type<uint>(weight);
    return bits > SAMPLE_ONE || weight < d.min_p ? 0 : bits;
}

inline ulong sample_fixed_weight(uint bits)
{
    uint exponent = bits >> 23, mantissa = (bits & 0x7fffffu) | 0x800000u;
    // mantissa * 2^(exponent - 150 + SAMPLE_FIXED_BITS)
    if (exponent >= 150 - SAMPLE_FIXED_BITS)
        return ulong(mantissa) << (exponent - (150 - SAMPLE_FIXED_BITS));
    uint shift = 150 - SAMPLE_FIXED_BITS - exponent;
    return shift < 24 ? mantissa >> shift : 0;
}

inline ulong sample_join(uint2 halves) { return ulong(halves.y) << 32 | halves.x; }

inline uint2 sample_halves(ulong value) { return uint2(uint(value), uint(value >> 32)); }

inline ulong sample_simd_sum(ulong value)
{
    for (ushort bit = 16; bit > 0; bit /= 2)
        value += sample_join(simd_shuffle_xor(sample_halves(value), bit));
    return value;
}

// Sum over this lane and those below it.
inline ulong sample_simd_prefix(ulong value, uint lane)
{
    for (ushort step = 1; step < SIMD_THREADS; step *= 2) {
        ulong below = sample_join(simd_shuffle_up(sample_halves(value), step));
        if (lane >= step) value += below;
    }
    return value;
}

// The upper 64 bits of a * b.
inline ulong sample_multiply_high(ulong a, ulong b)
{
    ulong a_low = a & 0xffffffffu, a_high = a >> 32, b_low = b & 0xffffffffu, b_high = b >> 32;
    ulong middle = a_high * b_low + (a_low * b_low >> 32);
    ulong other = a_low * b_high + (middle & 0xffffffffu);
    return a_high * b_high + (middle >> 32) + (other >> 32);
}

// SplitMix64's finalizer over seed and position (Steele, Lea, Flood 2014): 53 random bits, the
// upper ones of 64.
inline ulong sample_random_bits(ulong seed, uint position)
{
    ulong z = seed + (ulong(position) + 1) * 0x9e3779b97f4a7c15ul;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ul;
    z = (z ^ z >> 27) * 0x94d049bb133111ebul;
    return (z ^ z >> 31) >> 11 << 11;
}

// The lowest id among the largest logits; d.largest is set.
inline uint sample_find_largest(thread SampleDraw &d)
{
    uint largest = 0, id = 0;
    for (uint i = d.thread_index; i < d.vocab_size; i += THREADS_sample) {
        uint bits = sample_order_bits(d.logits[i]);
        if (bits > largest) {
            largest = bits;
            id = i;
        }
    }
    uint most = simd_max(largest);
    id = simd_min(largest == most ? id : 0xffffffffu);
    if (d.lane == 0) {
        d.memory->group_counts[d.simdgroup] = most;
        d.memory->group_counts[SAMPLE_SIMDGROUPS + d.simdgroup] = id;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    d.largest = 0;
    for (uint g = 0; g < SAMPLE_SIMDGROUPS; g++) {
        uint bits = d.memory->group_counts[g];
        uint of_group = d.memory->group_counts[SAMPLE_SIMDGROUPS + g];
        if (bits > d.largest || (bits == d.largest && of_group < id)) id = of_group;
        d.largest = max(d.largest, bits);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return id;
}

// Counts and masses of the tokens above each of SAMPLE_WEIGHT_FLOORS.
inline void sample_weigh(thread const SampleDraw &d, thread uint *counts, thread ulong *masses)
{
    // Unrolled: with indices that are known beforehand, counts and masses can be registers.
#pragma unroll
    for (uint f = 0; f < SAMPLE_FLOORS; f++) {
        counts[f] = 0;
        masses[f] = 0;
    }
    for (uint i = d.thread_index; i < d.vocab_size; i += THREADS_sample) {
        uint bits = sample_weight_bits(d, d.logits[i]);
        ulong weight = sample_fixed_weight(bits);
#pragma unroll
        for (uint f = 0; f < SAMPLE_FLOORS; f++) {
            if (bits <= SAMPLE_WEIGHT_FLOORS[f]) continue;
            counts[f]++;
            masses[f] += weight;
        }
    }
#pragma unroll
    for (uint f = 0; f < SAMPLE_FLOORS; f++) {
        uint count = simd_sum(counts[f]);
        ulong mass = sample_simd_sum(masses[f]);
        if (d.lane == 0) {
            d.memory->group_counts[f * SAMPLE_SIMDGROUPS + d.simdgroup] = count;
            d.memory->group_masses[f * SAMPLE_SIMDGROUPS + d.simdgroup] = mass;
        }
        counts[f] = 0;
        masses[f] = 0;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (uint f = 0; f < SAMPLE_FLOORS; f++)
        for (uint i = f * SAMPLE_SIMDGROUPS; i < (f + 1) * SAMPLE_SIMDGROUPS; i++) {
            counts[f] += d.memory->group_counts[i];
            masses[f] += d.memory->group_masses[i];
        }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Counts and masses of the tokens above `above` whose weight's bits begin with `prefix`, by the
// next SAMPLE_LEVEL_BITS of the bits.
inline void sample_fill_bins(thread const SampleDraw &d, uint above, uint prefix, uint shift)
{
    threadgroup SampleMemory *m = d.memory;
    for (uint i = d.thread_index; i < SAMPLE_BINS; i += THREADS_sample) {
        atomic_store_explicit(&m->counts[i], 0u, memory_order_relaxed);
        atomic_store_explicit(&m->masses[2 * i], 0u, memory_order_relaxed);
        atomic_store_explicit(&m->masses[2 * i + 1], 0u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = d.thread_index; i < d.vocab_size; i += THREADS_sample) {
        uint bits = sample_weight_bits(d, d.logits[i]);
        if (bits <= above || bits >> shift >> SAMPLE_LEVEL_BITS != prefix) continue;
        uint bin = (bits >> shift) % SAMPLE_BINS;
        uint2 weight = sample_halves(sample_fixed_weight(bits));
        atomic_fetch_add_explicit(&m->counts[bin], 1u, memory_order_relaxed);
        uint low = atomic_fetch_add_explicit(&m->masses[2 * bin], weight.x, memory_order_relaxed);
        uint carry = low + weight.x < low ? 1 : 0;
        atomic_fetch_add_explicit(&m->masses[2 * bin + 1], weight.y + carry, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

inline uint sample_bin_count(threadgroup SampleMemory *m, uint bin)
{
    return atomic_load_explicit(&m->counts[bin], memory_order_relaxed);
}

inline ulong sample_bin_mass(threadgroup SampleMemory *m, uint bin)
{
    return sample_join(uint2(atomic_load_explicit(&m->masses[2 * bin], memory_order_relaxed),
                             atomic_load_explicit(&m->masses[2 * bin + 1], memory_order_relaxed)));
}

// From the highest bin down, the one with which `count` and `mass` reach a limit; found_bin is
// SAMPLE_BINS if none does. found_count and found_mass become what lies above it. For one
// simdgroup.
inline void sample_find_bin(thread const SampleDraw &d, uint count, ulong mass, uint count_limit,
                            ulong mass_limit)
{
    threadgroup SampleMemory *m = d.memory;
    constexpr uint share = SAMPLE_BINS / SIMD_THREADS;
    uint top = SAMPLE_BINS - 1 - d.lane * share, lane_count = 0;
    ulong lane_mass = 0;
    for (uint i = 0; i < share; i++) {
        lane_count += sample_bin_count(m, top - i);
        lane_mass += sample_bin_mass(m, top - i);
    }
    count += simd_prefix_exclusive_sum(lane_count);
    mass += sample_simd_prefix(lane_mass, d.lane) - lane_mass;
    bool reached = count + lane_count >= count_limit || mass + lane_mass >= mass_limit;
    uint first = simd_min(reached ? d.lane : SIMD_THREADS);
    if (first == SIMD_THREADS) {
        if (d.lane == 0) m->found_bin = SAMPLE_BINS;
        return;
    }
    if (d.lane != first) return;
    uint bin = top;
    for (; bin > top - (share - 1); bin--) {
        uint with_count = count + sample_bin_count(m, bin);
        ulong with_mass = mass + sample_bin_mass(m, bin);
        if (with_count >= count_limit || with_mass >= mass_limit) break;
        count = with_count;
        mass = with_mass;
    }
    m->found_bin = bin;
    m->found_count = count;
    m->found_mass = mass;
}

// Keep the heaviest tokens, as few as reach count_limit or mass_limit; among equals, lower ids.
// What does not reach a limit stays as it is. `above`: what is wanted has bits above these. A
// second call narrows what the first kept, if its mass_limit is at most kept.mass.
inline void sample_narrow(thread const SampleDraw &d, thread SampleKept &kept, uint above,
                          uint count_limit, ulong mass_limit)
{
    threadgroup SampleMemory *m = d.memory;
    uint prefix = 0, count = 0;
    ulong mass = 0;
    for (uint level = 1; level <= SAMPLE_LEVELS; level++) {
        sample_fill_bins(d, above, prefix, (SAMPLE_LEVELS - level) * SAMPLE_LEVEL_BITS);
        if (d.simdgroup == 0) sample_find_bin(d, count, mass, count_limit, mass_limit);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (m->found_bin == SAMPLE_BINS) return;
        prefix = prefix << SAMPLE_LEVEL_BITS | m->found_bin;
        count = m->found_count;
        mass = m->found_mass;
    }
    ulong weight = sample_fixed_weight(prefix), needed = count_limit - count;
    uint ties = sample_bin_count(m, prefix % SAMPLE_BINS);
    if (weight != 0) needed = min(needed, (mass_limit - mass - 1) / weight + 1);
    kept.bits = prefix;
    kept.ties = uint(min(needed, ulong(ties)));
    kept.mass = mass + kept.ties * weight;
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The part of [begin, end) in which the running mass of the kept tokens passes `target`: one of as
// many parts as there are simdgroups. target and kept.ties become what is left for that part.
inline void sample_narrow_range(thread const SampleDraw &d, thread SampleKept &kept,
                                thread ulong &target, thread uint &begin, thread uint &end)
{
    uint share = (end - begin + SAMPLE_SIMDGROUPS - 1) / SAMPLE_SIMDGROUPS;
    uint from = begin + d.simdgroup * share, to = min(from + share, end), ties = 0;
    ulong mass = 0, tie_weight = sample_fixed_weight(kept.bits);
    for (uint i = from + d.lane; i < to; i += SIMD_THREADS) {
        uint bits = sample_weight_bits(d, d.logits[i]);
        if (bits > kept.bits) mass += sample_fixed_weight(bits);
        ties += bits == kept.bits ? 1 : 0;
    }
    mass = sample_simd_sum(mass);
    ties = simd_sum(ties);
    if (d.lane == 0) {
        d.memory->group_masses[d.simdgroup] = mass;
        d.memory->group_counts[d.simdgroup] = ties;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint g = 0;
    for (; g < SAMPLE_SIMDGROUPS - 1; g++) {
        uint group_ties = min(d.memory->group_counts[g], kept.ties);
        ulong group_mass = d.memory->group_masses[g] + group_ties * tie_weight;
        if (target < group_mass) break;
        target -= group_mass;
        kept.ties -= group_ties;
    }
    begin = min(begin + g * share, end);
    end = min(begin + share, end);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The first token of [begin, end) at which the running mass of the kept tokens passes `target`;
// the vocabulary's size if none does. For one simdgroup.
inline uint sample_find_token(thread const SampleDraw &d, thread SampleKept &kept, ulong target,
                              uint begin, uint end)
{
    for (uint base = begin; base < end; base += SIMD_THREADS) {
        uint i = base + d.lane;
        uint bits = i < end ? sample_weight_bits(d, d.logits[i]) : 0;
        uint tie = i < end && bits == kept.bits ? 1 : 0;
        uint ties = simd_prefix_inclusive_sum(tie);
        bool is_kept = bits > kept.bits || (tie != 0 && ties <= kept.ties);
        ulong mass = sample_simd_prefix(is_kept ? sample_fixed_weight(bits) : 0, d.lane);
        uint id = simd_min(is_kept && target < mass ? i : d.vocab_size);
        if (id < d.vocab_size) return id;
        target -= sample_join(simd_broadcast(sample_halves(mass), ushort(SIMD_THREADS - 1)));
        kept.ties -= min(kept.ties, simd_sum(tie));
    }
    return d.vocab_size;
}

// Narrow what is kept to top_k and then to a share top_p of what that leaves.
inline SampleKept sample_filter(thread const SampleDraw &d, uint top_k, float top_p)
{
    uint counts[SAMPLE_FLOORS];
    ulong masses[SAMPLE_FLOORS];
    sample_weigh(d, counts, masses);
    SampleKept kept;
    kept.bits = 0;
    kept.ties = 0;
    kept.mass = masses[SAMPLE_FLOORS - 1];
    bool has_top_k = top_k > 0 && top_k < d.vocab_size, has_top_p = top_p < 1.0f;
    // As 64 bits after the point.
    ulong share = has_top_p ? ulong(uint(max(top_p, 0.0f) * 4294967296.0f)) << 32 : 0;
    ulong nucleus = max(sample_multiply_high(kept.mass, share), ulong(1));
    uint f = 0;
    while (f < SAMPLE_FLOORS - 1 && (has_top_k ? counts[f] < top_k : masses[f] < nucleus)) f++;
    uint above = SAMPLE_WEIGHT_FLOORS[f];
    if (has_top_k) {
        sample_narrow(d, kept, above, top_k, ~0ul);
        nucleus = max(sample_multiply_high(kept.mass, share), ulong(1));
    }
    if (has_top_p) sample_narrow(d, kept, above, ~0u, nucleus);
    return kept;
}

// sample: token_ids[r] drawn from logits[r]: temperature, then min_p, then top_k, then top_p;
// temperature 0: the largest, of equals the lowest id; SAMPLE_NO_TOKEN for a row without a number
// above minus infinity.
//
//   logits  float [rows, vocab_size]    settings  SampleRow [rows]    token_ids  int32 [rows]
//   Grid: (rows). Group: 512 threads. 13 KiB of threadgroup memory.
//   Bytes: 4 * vocab_size once for the largest, then once each for the weights, for each of the
//   three levels of top_k and of top_p, and for the draw. Operations: an exponential a token and
//   pass.
//
// A draw is the first token, by id, at which the running weight passes uniform * the weight of all.
// The CPU device does the same, so that the two draw the same token unless that number falls within
// a rounding of the edge between two.
[[kernel, max_total_threads_per_threadgroup(THREADS_sample)]] void
sample(device const float *logits [[buffer(0)]], device const SampleRow *settings [[buffer(1)]],
       device int32_t *token_ids [[buffer(2)]],
       constant SampleParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
       constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
       uint3 group [[threadgroup_position_in_grid]],
       uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
       uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup SampleMemory memory;
    if (group.x >= uint(vars[p.rows_var])) return;
    device const SampleRow &row = settings[group.x];
    SampleDraw d;
    d.logits = logits + ulong(group.x) * p.vocab_size;
    d.memory = &memory;
    d.vocab_size = p.vocab_size;
    d.thread_index = thread_index;
    d.lane = lane;
    d.simdgroup = simdgroup;
    uint largest_id = sample_find_largest(d);
    float temperature = row.temperature;
    if (d.largest <= SAMPLE_MINUS_INFINITY) {
        if (thread_index == 0) token_ids[group.x] = SAMPLE_NO_TOKEN;
        return;
    }
    bool is_greedy = temperature <= 0.0f;
    SampleKept kept;
    if (!is_greedy) {
        d.most = d.logits[largest_id];
        d.factor = 1.44269504f / temperature;
        d.min_p = row.min_p;
        kept = sample_filter(d, row.top_k, row.top_p);
        is_greedy = kept.mass == 0;
    }
    if (is_greedy) {
        if (thread_index == 0) token_ids[group.x] = int32_t(largest_id);
        return;
    }
    ulong seed = ulong(row.seed_high) << 32 | row.seed_low;
    ulong target = sample_multiply_high(sample_random_bits(seed, row.position), kept.mass);
    uint begin = 0, end = p.vocab_size;
    sample_narrow_range(d, kept, target, begin, end);
    sample_narrow_range(d, kept, target, begin, end);
    if (simdgroup != 0) return;
    uint id = sample_find_token(d, kept, target, begin, end);
    if (lane == 0) token_ids[group.x] = int32_t(id < p.vocab_size ? id : largest_id);
}
