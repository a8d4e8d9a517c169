// expect: cannot initialize return object
#include <metal_stdlib>
using namespace metal;

inline threadgroup float *return_first(device float *p) { return p; }
// fixed: inline device float *return_first(device float *p) { return p; }

kernel void return_of_another_space(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    out[t] = *return_first(out);
}
