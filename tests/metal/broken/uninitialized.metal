// expect: variable 'x' is uninitialized
#include <metal_stdlib>
using namespace metal;

kernel void uninitialized(device float *out [[buffer(0)]],
                          constant uint &count [[buffer(1)]],
                          uint t [[thread_position_in_grid]])
{
    float x; out[t] = x;
    // fixed: out[t] = 0;
    out[0] = 1;
}
