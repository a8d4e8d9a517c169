// expect: vector component access exceeds type
#include <metal_stdlib>
using namespace metal;

kernel void swizzle_beyond_width(device float *out [[buffer(0)]],
                                 constant uint &count [[buffer(1)]],
                                 uint t [[thread_position_in_grid]])
{
    float x = float2(1).z;
    // fixed: float x = float2(1).y;
    out[t] = x;
}
