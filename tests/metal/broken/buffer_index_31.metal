// expect: buffer index is out of bounds
#include <metal_stdlib>
using namespace metal;

kernel void buffer_index_31(device float *out [[buffer(0)]],
                            device const float *x [[buffer(31)]])
                            // fixed: device const float *x [[buffer(30)]])
{
    out[0] = x[0];
}
