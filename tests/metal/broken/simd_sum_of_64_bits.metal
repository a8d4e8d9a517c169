// expect: SIMD-group functions take
#include <metal_stdlib>
using namespace metal;

kernel void simd_sum_of_64_bits(device float *out [[buffer(0)]],
                                constant uint &count [[buffer(1)]],
                                uint t [[thread_position_in_grid]])
{
    ulong x = simd_sum(ulong(t));
    // fixed: uint x = simd_sum(t);
    out[t] = float(x);
}
