// expect: 't' has no attribute
#include <metal_stdlib>
using namespace metal;

kernel void parameter_without_attribute(device float *out [[buffer(0)]],
                                        uint t)
                                        // fixed: uint t [[thread_position_in_grid]])
{
    out[t] = 1;
}
