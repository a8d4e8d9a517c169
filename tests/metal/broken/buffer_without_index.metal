// expect: 'x' has no attribute such as \[\[buffer
#include <metal_stdlib>
using namespace metal;

kernel void buffer_without_index(device float *out [[buffer(0)]],
                                 device const float *x)
                                 // fixed: device const float *x [[buffer(1)]])
{
    out[0] = x[0];
}
