// expect: mismatching address spaces|reinterpret_cast from
#include <metal_stdlib>
using namespace metal;

kernel void reinterpret_between_spaces(device float *out [[buffer(0)]],
                                       constant uint &count [[buffer(1)]],
                                       uint t [[thread_position_in_grid]])
{
    auto p = reinterpret_cast<threadgroup float *>(out);
    // fixed: auto p = reinterpret_cast<device float *>(out);
    out[t] = *p;
}
