// expect: cannot initialize a variable of type 'float4'
#include <metal_stdlib>
using namespace metal;

kernel void vector_of_another_type(device float *out [[buffer(0)]],
                                   constant uint &count [[buffer(1)]],
                                   uint t [[thread_position_in_grid]])
{
    float4 v = half4(1);
    // fixed: float4 v = float4(half4(1));
    out[t] = v.x;
}
