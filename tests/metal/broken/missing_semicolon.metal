// expect: expected ';'
#include <metal_stdlib>
using namespace metal;

kernel void missing_semicolon(device float *out [[buffer(0)]],
                              constant uint &count [[buffer(1)]],
                              uint t [[thread_position_in_grid]])
{
    out[t] = 1
    // fixed: out[t] = 1;
    out[0] = 2;
}
