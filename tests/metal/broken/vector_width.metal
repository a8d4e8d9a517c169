// expect: cannot initialize a variable of type 'float3'
#include <metal_stdlib>
using namespace metal;

kernel void vector_width(device float *out [[buffer(0)]],
                         constant uint &count [[buffer(1)]],
                         uint t [[thread_position_in_grid]])
{
    float3 v = float4(1).xy;
    // fixed: float3 v = float4(1).xyz;
    out[t] = v.x;
}
