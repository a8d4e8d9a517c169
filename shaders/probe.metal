// probe.metal: what the machine can do at best: the denominators of `metal-marlin bench`.
//
//   probe_read  out[unit] = the sum of one piece of x's words, so that every byte is read
//               x  uint32 [num_units, MARLIN_PROBE_BYTES / 4], 16-byte aligned
//   probe_dot   MARLIN_PROBE_DOTS multiply-adds of floats a thread, on registers alone
//   out  int32 (probe_read), float (probe_dot) [num_units]
//
//   Grid: one threadgroup a unit. Group: THREADS_probe_* (256).
//   probe_read: MARLIN_PROBE_BYTES a unit and next to no operations. A simdgroup's load is 512
//   neighbouring bytes; a thread has four loads under way.
//   probe_dot: no bytes; 2 * MARLIN_PROBE_DOTS * THREADS_probe_dot operations a unit, a multiply
//   and an add being one each. Eight chains a thread hide a multiply-add's latency. Matrices of 8
//   by 8 floats are multiplied on the same lanes at the same rate at best (to be confirmed on a
//   Mac), so this is matmul's peak too.
#include <metal_stdlib>

#include "common.h"

using namespace metal;

#define PROBE_LOADS 4
#define PROBE_CHAINS 8

[[kernel]] void probe_read(device const uint4 *x [[buffer(0)]], device uint *out [[buffer(1)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint num_simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup uint sums_of_simdgroups[MAX_SIMDGROUPS];
    const uint num_loads = MARLIN_PROBE_BYTES / sizeof(uint4);
    device const uint4 *piece = x + ulong(group.x) * num_loads + thread_index;
    uint4 sums[PROBE_LOADS] = {uint4(0), uint4(0), uint4(0), uint4(0)};
    for (uint i = 0; i < num_loads; i += PROBE_LOADS * THREADS_probe_read)
        for (uint j = 0; j < PROBE_LOADS; j++) sums[j] += piece[i + j * THREADS_probe_read];
    const uint4 four = sums[0] + sums[1] + sums[2] + sums[3];
    const uint sum = simd_sum(four.x + four.y + four.z + four.w);
    if (lane == 0) sums_of_simdgroups[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint total = simd_sum(lane < num_simdgroups ? sums_of_simdgroups[lane] : 0);
    if (thread_index == 0) out[group.x] = total;
}

[[kernel]] void probe_dot(device float *out [[buffer(1)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint num_simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float scratch[MAX_SIMDGROUPS];
    // Below 1, so that the chains stay finite; from the grid, so that nothing is known beforehand.
    const float x = 1.0f / float(2 + thread_index + group.x);
    float sums[PROBE_CHAINS];
    for (uint j = 0; j < PROBE_CHAINS; j++) sums[j] = 0.0f;
    for (uint i = 0; i < MARLIN_PROBE_DOTS; i += PROBE_CHAINS)
        for (uint j = 0; j < PROBE_CHAINS; j++) sums[j] = fma(sums[j], x, float(j + 1));
    float sum = 0.0f;
    for (uint j = 0; j < PROBE_CHAINS; j++) sum += sums[j];
    const float total = group_sum(sum, scratch, lane, simdgroup, num_simdgroups);
    if (thread_index == 0) out[group.x] = total;
}
