// expect: reference type must have explicit address space
#include <metal_stdlib>
using namespace metal;

kernel void reference_without_space(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    float x = 1;
    const float &p = x;
    // fixed: thread const float &p = x;
    out[t] = p;
}
