// Kernels that test_runtime.py runs: positions, barriers, SIMD-group functions, atomics, constants.
#include <metal_stdlib>
using namespace metal;

constant uint SCALE [[function_constant(0)]];
constant bool NEGATE [[function_constant(1)]];

// out[i] = the values of thread i, in the order of the parameters.
kernel void positions(device uint *out [[buffer(0)]],
                      uint3 in_grid [[thread_position_in_grid]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint3 in_group [[thread_position_in_threadgroup]],
                      uint3 threads [[threads_per_threadgroup]],
                      uint3 groups [[threadgroups_per_grid]],
                      uint3 grid [[threads_per_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint simdgroups [[simdgroups_per_threadgroup]])
{
    const uint place = in_grid.x + grid.x * (in_grid.y + grid.y * in_grid.z);
    const uint values[12] = {group.x,   group.y,  in_group.x, in_group.y, threads.x, threads.y,
                             groups.x,  groups.y, index,      lane,       simdgroup, simdgroups};
    for (uint i = 0; i < 12; ++i)
        out[12 * place + i] = values[i];
}

// Every thread reads what the thread opposite it wrote.
kernel void reverse_in_threadgroup(device const float *x [[buffer(0)]],
                                   device float *y [[buffer(1)]],
                                   uint t [[thread_index_in_threadgroup]],
                                   uint group [[threadgroup_position_in_grid]],
                                   uint threads [[threads_per_threadgroup]])
{
    threadgroup float shared[256];
    shared[t] = x[group * threads + t];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[group * threads + t] = shared[threads - 1 - t];
}

// Sums over a threadgroup by halves; `shared` has a float for each thread.
kernel void sum_in_threadgroup(device const float *x [[buffer(0)]],
                               device float *y [[buffer(1)]],
                               threadgroup float *shared [[threadgroup(0)]],
                               uint t [[thread_index_in_threadgroup]],
                               uint group [[threadgroup_position_in_grid]],
                               uint threads [[threads_per_threadgroup]])
{
    shared[t] = x[group * threads + t];
    for (uint half_of = threads / 2; half_of > 0; half_of /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t < half_of) shared[t] += shared[t + half_of];
    }
    if (t == 0) y[group] = shared[0];
}

// One row of `out` for each function, a column for each thread.
kernel void simd_functions(device const int *x [[buffer(0)]],
                           device int *out [[buffer(1)]],
                           uint t [[thread_position_in_grid]],
                           uint n [[threads_per_grid]])
{
    const int v = x[t];
    out[0 * n + t] = simd_sum(v);
    out[1 * n + t] = simd_max(v);
    out[2 * n + t] = simd_min(v);
    out[3 * n + t] = simd_shuffle_xor(v, 5);
    out[4 * n + t] = simd_shuffle_down(v, 3);
    out[5 * n + t] = simd_shuffle_up(v, 3);
    out[6 * n + t] = simd_broadcast(v, 7);
    out[7 * n + t] = simd_broadcast_first(v);
    out[8 * n + t] = simd_prefix_exclusive_sum(v);
    out[9 * n + t] = simd_prefix_inclusive_sum(v);
    out[10 * n + t] = int(ulong(simd_ballot(v > 0)) & 0x7fffffff);
    out[11 * n + t] = simd_all(v > -1000);
    out[12 * n + t] = simd_any(v > 1000);
    out[13 * n + t] = quad_sum(v);
    out[14 * n + t] = simd_shuffle_and_fill_down(v, -1, 2);
}

kernel void count_in_bins(device const uint *bin [[buffer(0)]],
                          device atomic_uint *counts [[buffer(1)]],
                          device atomic_uint *least [[buffer(2)]],
                          uint t [[thread_position_in_grid]])
{
    atomic_fetch_add_explicit(&counts[bin[t]], 1u, memory_order_relaxed);
    atomic_fetch_min_explicit(least, bin[t], memory_order_relaxed);
}

kernel void scale(device float *x [[buffer(0)]], uint t [[thread_position_in_grid]])
{
    x[t] *= is_function_constant_defined(SCALE) ? float(SCALE) : 1.0f;
    if (NEGATE) x[t] = -x[t];
}

// One row of `out` for each conversion; out[i] are bits.
kernel void conversions(device const float *x [[buffer(0)]],
                        device uint *out [[buffer(1)]],
                        uint t [[thread_position_in_grid]],
                        uint n [[threads_per_grid]])
{
    const half h = half(x[t]);
    out[0 * n + t] = as_type<ushort>(h);
    out[1 * n + t] = as_type<ushort>(bfloat(x[t]));
    out[2 * n + t] = as_type<ushort>(h * h + h);
    const float4 v = float4(x[t], 1, half2(2, 3));
    const half4 narrow = (half4)v.wzyx;
    out[3 * n + t] = as_type<uint>(dot(float4(narrow), float4(1, 10, 100, 1000)));
    out[4 * n + t] = as_type<uint>(uchar4(uint4(1, 2, 3, t)));
}
