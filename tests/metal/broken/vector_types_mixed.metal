// expect: cannot convert between vector
#include <metal_stdlib>
using namespace metal;

kernel void vector_types_mixed(device float *out [[buffer(0)]],
                               constant uint &count [[buffer(1)]],
                               uint t [[thread_position_in_grid]])
{
    float4 v = float4(1) * half4(1);
    // fixed: float4 v = float4(1) * float4(half4(1));
    out[t] = v.x;
}
