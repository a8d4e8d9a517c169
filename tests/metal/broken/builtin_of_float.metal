// expect: must be of type uint
#include <metal_stdlib>
using namespace metal;

kernel void builtin_of_float(device float *out [[buffer(0)]],
                             float t [[thread_position_in_grid]])
                             // fixed: uint t [[thread_position_in_grid]])
{
    out[uint(t)] = 1;
}
