// expect: call to 'max' is ambiguous
#include <metal_stdlib>
using namespace metal;

kernel void ambiguous_max(device float *out [[buffer(0)]],
                          constant uint &count [[buffer(1)]],
                          uint t [[thread_position_in_grid]])
{
    uint x = max(t, 1);
    // fixed: uint x = max(t, 1u);
    out[t] = float(x);
}
