// expect: must be a pointer or a reference
#include <metal_stdlib>
using namespace metal;

kernel void buffer_by_value(device float *out [[buffer(0)]],
                            uint n [[buffer(1)]])
                            // fixed: constant uint &n [[buffer(1)]])
{
    out[0] = n;
}
