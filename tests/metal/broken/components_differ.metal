// expect: must have the same number of components
#include <metal_stdlib>
using namespace metal;

kernel void components_differ(device float *out [[buffer(0)]], uint t [[thread_position_in_grid]],
                              uint3 g [[threadgroup_position_in_grid]])
                              // fixed: uint g [[threadgroup_position_in_grid]])
{
    out[t] = uint2(g).x;
}
