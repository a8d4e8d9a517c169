// expect: use of undeclared identifier 'simd_frobnicate'
#include <metal_stdlib>
using namespace metal;

kernel void unknown_function(device float *out [[buffer(0)]],
                             constant uint &count [[buffer(1)]],
                             uint t [[thread_position_in_grid]])
{
    float x = simd_frobnicate(1.0f);
    // fixed: float x = simd_sum(1.0f);
    out[t] = x;
}
