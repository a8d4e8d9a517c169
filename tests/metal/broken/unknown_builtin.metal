// expect: unknown attribute 'thread_position'
#include <metal_stdlib>
using namespace metal;

kernel void unknown_builtin(device float *out [[buffer(0)]],
                            uint t [[thread_position]])
                            // fixed: uint t [[thread_position_in_grid]])
{
    out[t] = 1;
}
