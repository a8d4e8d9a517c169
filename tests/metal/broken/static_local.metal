// expect: static variables are not supported
#include <metal_stdlib>
using namespace metal;

kernel void static_local(device float *out [[buffer(0)]],
                         constant uint &count [[buffer(1)]],
                         uint t [[thread_position_in_grid]])
{
    static int calls = 0;
    // fixed: int calls = 0;
    out[t] = ++calls;
}
