// expect: 'new' is not supported
#include <metal_stdlib>
using namespace metal;

kernel void new_expression(device float *out [[buffer(0)]],
                           constant uint &count [[buffer(1)]],
                           uint t [[thread_position_in_grid]])
{
    float x = 1;
    thread float *p = new float;
    // fixed: thread float *p = &x;
    out[t] = *p;
}
