// expect: wrong number of components
#include <metal_stdlib>
using namespace metal;

kernel void vector_of_three_of_four(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    float4 v = float4(1, 2, 3);
    // fixed: float4 v = float4(1, 2, 3, 4);
    out[t] = v.x;
}
