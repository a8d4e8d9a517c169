// experts.metal: which experts a token takes, which rows an expert gets, and the weighted sum of
// what they make of them. The matrices are in matvec.metal and matmul.metal. Small work between
// large: what counts is that each is one launch.
//
// What a token chooses, and how its slots are added up, depends on its own logits alone.
#include <metal_stdlib>

#include "common.h"

using namespace metal;

#define NO_EXPERT 0xffffffffu

// The best that is left of a set shared by a simdgroup: experts lane, lane + 32, ... `taken` has
// bit j of lane + 32 j. Of equals the first; NaN counts as the least. The same in all lanes.
inline uint take_best(threadgroup const float *values, uint first, uint count, thread uint &taken,
                      uint lane)
{
    uint best = NO_EXPERT;
    float most = -INFINITY;
    for (uint j = 0; lane + j * SIMD_THREADS < count; j++) {
        const uint i = lane + j * SIMD_THREADS;
        const float value = isnan(values[first + i]) ? -INFINITY : values[first + i];
        if (taken >> j & 1 || (best != NO_EXPERT && value <= most)) continue;
        best = i;
        most = value;
    }
    const float all = simd_max(most);
    const uint chosen = simd_min(best != NO_EXPERT && most == all ? best : NO_EXPERT);
    if (chosen % SIMD_THREADS == lane) taken |= 1u << chosen / SIMD_THREADS;
    return chosen;
}

// Shares of 1 of `count` values that a simdgroup has in threadgroup memory, in place.
inline void route_softmax(threadgroup float *values, uint count, uint lane)
{
    float most = -INFINITY, sum = 0.0f;
    for (uint i = lane; i < count; i += SIMD_THREADS) most = max(most, values[i]);
    most = simd_max(most);
    for (uint i = lane; i < count; i += SIMD_THREADS) {
        values[i] = exp(values[i] - most);
        sum += values[i];
    }
    sum = simd_sum(sum);
    for (uint i = lane; i < count; i += SIMD_THREADS) values[i] /= sum;
}

// Experts of groups that are not kept rank below all others. A group's rank is the sum of its two
// best.
inline void keep_groups(threadgroup float *ranks, threadgroup float *sums, constant RouteParams &p,
                        uint lane)
{
    const uint size = p.num_experts / p.num_groups;
    for (uint g = 0; g < p.num_groups; g++) {
        uint seen = 0;
        float sum = ranks[g * size + take_best(ranks, g * size, size, seen, lane)];
        if (size > 1) sum += ranks[g * size + take_best(ranks, g * size, size, seen, lane)];
        if (lane == 0) sums[g] = sum;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    uint kept = 0;
    for (uint i = 0; i < p.kept_groups; i++) take_best(sums, 0, p.num_groups, kept, lane);
    for (uint g = 0; g < p.num_groups; g++) {
        const uint mine = g % SIMD_THREADS == lane ? kept >> g / SIMD_THREADS & 1 : 0;
        if (simd_max(mine)) continue;
        for (uint i = lane; i < size; i += SIMD_THREADS) ranks[g * size + i] = -INFINITY;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// route: num_slots experts of each token, the best first, and what each one's output is multiplied
// by.
//
//   logits  float [rows, num_experts]    bias  float [num_experts], optional: added to ranks
//   alone, or what weights are multiplied by
//   ids  int32 [rows, num_slots]         weights  float [rows, num_slots]
//   Grid: (rows). Group: 32 threads, a simdgroup a token. Up to 1024 experts, 8 KiB.
[[kernel]] void route(device const float *logits [[buffer(0)]],
                      device const float *bias [[buffer(1)]], device int32_t *ids [[buffer(2)]],
                      device float *weights [[buffer(3)]],
                      constant RouteParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                      constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float scores[MARLIN_MAX_EXPERTS], ranks[MARLIN_MAX_EXPERTS];
    threadgroup float chosen[MARLIN_MAX_SLOTS], sums[MARLIN_MAX_EXPERTS];
    const uint row = group.x, count = p.num_experts, slots = p.num_slots;
    if (row >= uint(vars[p.rows_var])) return;
    for (uint i = lane; i < count; i += SIMD_THREADS) {
        const float logit = logits[row * count + i];
        scores[i] = p.gating == MARLIN_GATE_SIGMOID ? 1.0f / (1.0f + exp(-logit)) : logit;
    }
    if (p.gating == MARLIN_GATE_SOFTMAX) route_softmax(scores, count, lane);
    for (uint i = lane; i < count; i += SIMD_THREADS)
        ranks[i] = p.bias == MARLIN_ROUTE_RANKS ? scores[i] + bias[i] : scores[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (p.num_groups > 1) keep_groups(ranks, sums, p, lane);
    uint taken = 0;
    for (uint s = 0; s < slots; s++) {
        const uint best = take_best(ranks, 0, count, taken, lane);
        if (lane > 0) continue;
        ids[row * slots + s] = int32_t(best);
        chosen[s] = scores[best];
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (p.gating == MARLIN_GATE_CHOSEN) route_softmax(chosen, slots, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    float sum = p.epsilon;
    for (uint s = 0; s < slots; s++) sum += chosen[s];
    for (uint s = lane; s < slots; s += SIMD_THREADS) {
        const float weight = (p.normalizes ? chosen[s] / sum : chosen[s]) * p.scale;
        const float factor = p.bias == MARLIN_ROUTE_FACTORS ? bias[ids[row * slots + s]] : 1.0f;
        weights[row * slots + s] = weight * factor;
    }
}

// sort_experts: choices by expert, those of one expert in their own order, and each chosen expert's
// run of them.
//
//   ids  int32 [rows, num_slots]    order  int32 [rows * num_slots]: row * num_slots + slot
//   groups  int32 [num_experts, 3]: expert, begin and end in order; zeros after the last one, as
//   far as there can be groups
//   Grid: one threadgroup of 256: a thread looks for the choices of every 256th expert. Bad index:
//   an expert that there is not.
[[kernel]] void sort_experts(device const int32_t *ids [[buffer(0)]],
                             device int32_t *order [[buffer(1)]],
                             device int32_t *groups [[buffer(2)]],
                             constant SortParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                             constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                             constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                             device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
                             uint thread_index [[thread_index_in_threadgroup]])
{
    threadgroup uint counts[MARLIN_MAX_EXPERTS], starts[MARLIN_MAX_EXPERTS];
    const uint choices = uint(vars[p.rows_var]) * p.num_slots, count = p.num_experts;
    for (uint i = thread_index; i < choices; i += THREADS_sort_experts)
        if (uint(ids[i]) >= count) fail(status, call);
    for (uint e = thread_index; e < count; e += THREADS_sort_experts) {
        uint found = 0;
        for (uint i = 0; i < choices; i++) found += uint(ids[i]) == e;
        counts[e] = found;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
        uint used = 0, chosen = 0;
        for (uint e = 0; e < count; e++) {
            starts[e] = used;
            if (counts[e] == 0) continue;
            groups[3 * chosen] = int32_t(e);
            groups[3 * chosen + 1] = int32_t(used);
            used += counts[e];
            groups[3 * chosen + 2] = int32_t(used);
            chosen++;
        }
        for (uint i = 3 * chosen; i < 3 * min(choices, count); i++) groups[i] = 0;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = thread_index; e < count; e += THREADS_sort_experts) {
        uint at = starts[e];
        for (uint i = 0; i < choices; i++)
            if (uint(ids[i]) == e) order[at++] = int32_t(i);
    }
}

// combine_experts: y[r, :] = sum over the slots of weights[r, s] * values[r, s, :], in their order
// (+ y[r, :], where adds)
//
//   values  float [rows, num_slots, dim]    weights  float [rows, num_slots]    y  float [rows,
//   dim] Grid: (rows, ceil(dim / 1024)). Group: 256 threads, 4 floats each, a thread apart.
[[kernel]] void combine_experts(device const float *values [[buffer(0)]],
                                device const float *weights [[buffer(1)]],
                                device float *y [[buffer(2)]],
                                constant CombineParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                                constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                                uint3 group [[threadgroup_position_in_grid]],
                                uint thread_index [[thread_index_in_threadgroup]])
{
    const uint row = group.x, dim = p.dim;
    if (row >= uint(vars[p.rows_var])) return;
    const uint last = min(dim, (group.y + 1) * MARLIN_PIECE_FLOATS);
    device const float *from = values + ulong(row) * p.num_slots * dim;
    for (uint i = group.y * MARLIN_PIECE_FLOATS + thread_index; i < last;
         i += THREADS_combine_experts) {
        float sum = 0.0f;
        for (uint s = 0; s < p.num_slots; s++)
            sum = fma(weights[row * p.num_slots + s], from[s * dim + i], sum);
        device float *to = y + ulong(row) * dim + i;
        *to = p.adds ? *to + sum : sum;
    }
}
