// expect: cast to __local float .* mismatching address spaces
#include <metal_stdlib>
using namespace metal;

kernel void cast_between_spaces(device float *out [[buffer(0)]],
                                constant uint &count [[buffer(1)]],
                                uint t [[thread_position_in_grid]])
{
    threadgroup float *p = (threadgroup float *)out;
    // fixed: device float *p = (device float *)out;
    out[t] = *p;
}
