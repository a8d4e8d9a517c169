// expect: non-void function does not return a value
#include <metal_stdlib>
using namespace metal;

inline float missing_return_f(uint n) { if (n > 1) return 1; }
// fixed: inline float missing_return_f(uint n) { return float(n); }

kernel void missing_return(device float *out [[buffer(0)]],
                           constant uint &count [[buffer(1)]],
                           uint t [[thread_position_in_grid]])
{
    out[t] = missing_return_f(count);
}
