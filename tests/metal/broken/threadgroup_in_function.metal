// expect: can only be declared in a kernel function
#include <metal_stdlib>
using namespace metal;

inline float scratch_f(uint t) { threadgroup float s[4]; s[t] = 1; return s[0]; }
// fixed: inline float scratch_f(uint t) { float s[4] = {}; return s[t]; }

kernel void threadgroup_in_function(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    out[t] = scratch_f(0);
}
