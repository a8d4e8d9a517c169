// expect: buffer index 0 is used more than once
#include <metal_stdlib>
using namespace metal;

kernel void buffer_index_twice(device float *out [[buffer(0)]],
                               device const float *x [[buffer(0)]])
                               // fixed: device const float *x [[buffer(1)]])
{
    out[0] = x[0];
}
