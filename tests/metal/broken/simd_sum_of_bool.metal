// expect: SIMD-group functions take
#include <metal_stdlib>
using namespace metal;

kernel void simd_sum_of_bool(device float *out [[buffer(0)]],
                             constant uint &count [[buffer(1)]],
                             uint t [[thread_position_in_grid]])
{
    bool x = simd_sum(t > 1);
    // fixed: bool x = simd_any(t > 1);
    out[t] = x;
}
