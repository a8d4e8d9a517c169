// expect: must be unsigned 16 or 32 bit
#include <metal_stdlib>
using namespace metal;

kernel void builtin_signed(device float *out [[buffer(0)]],
                           int t [[thread_position_in_grid]])
                           // fixed: uint t [[thread_position_in_grid]])
{
    out[t] = 1;
}
