// expect: recursion is not supported
#include <metal_stdlib>
using namespace metal;

inline uint recursion_f(uint n) { return n < 2 ? 1 : n * recursion_f(n - 1); }
// fixed: inline uint recursion_f(uint n) { return n < 2 ? 1 : n; }

kernel void recursion(device float *out [[buffer(0)]],
                      constant uint &count [[buffer(1)]],
                      uint t [[thread_position_in_grid]])
{
    out[t] = float(recursion_f(count));
}
