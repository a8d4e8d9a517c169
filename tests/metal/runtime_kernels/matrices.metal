// simdgroup_matrix, as test_runtime.py runs it: one SIMD-group a tile of 8 x 8.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// c [m, n] = a [m, k] b [k, n], tiles of 8; b is stored transposed, [n, k].
template <typename T>
kernel void multiply(device const T *a [[buffer(0)]],
                     device const T *b [[buffer(1)]],
                     device float *c [[buffer(2)]],
                     constant uint2 &size [[buffer(3)]],
                     uint2 tile [[threadgroup_position_in_grid]])
{
    const uint k = size.x, n = size.y;
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint i = 0; i < k; i += 8) {
        simdgroup_matrix<T, 8, 8> left, right;
        simdgroup_load(left, a, k, ulong2(i, 8 * tile.y));
        simdgroup_load(right, b + 8 * tile.x * k + i, k, 0, true);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, c, n, ulong2(8 * tile.x, 8 * tile.y));
}
template [[host_name("multiply_float")]] kernel void
multiply<float>(device const float *,
                device const float *,
                device float *,
                constant uint2 &,
                uint2);
template [[host_name("multiply_half")]] kernel void
multiply<half>(device const half *,
                device const half *,
                device float *,
                constant uint2 &,
                uint2);

// y = x transposed, 8 x 8, by way of threadgroup memory.
kernel void transpose(device const half *x [[buffer(0)]], device half *y [[buffer(1)]])
{
    threadgroup half shared[64];
    simdgroup_half8x8 m;
    simdgroup_load(m, x);
    simdgroup_store(m, shared, 8, 0, true);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(m, shared);
    simdgroup_store(m, y);
}

// out[t] = the elements of thread t: Apple's layout over the lanes.
kernel void layout(device const float *x [[buffer(0)]],
                   device float2 *out [[buffer(1)]],
                   uint t [[thread_index_in_simdgroup]])
{
    simdgroup_float8x8 m;
    simdgroup_load(m, x);
    out[t] = m.thread_elements();
}
