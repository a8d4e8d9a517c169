// expect: pointer type must have explicit address space
#include <metal_stdlib>
using namespace metal;

inline float parameter_first(const float *p) { return *p; }
// fixed: inline float parameter_first(device const float *p) { return *p; }

kernel void parameter_without_space(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    out[t] = parameter_first(out);
}
