// expect: read-only variable|const-qualified
#include <metal_stdlib>
using namespace metal;

kernel void write_through_constant(device float *out [[buffer(0)]],
                                   constant uint &count [[buffer(1)]],
                                   uint t [[thread_position_in_grid]])
{
    count = 1;
    // fixed: out[1] = 1;
    out[t] = count;
}
