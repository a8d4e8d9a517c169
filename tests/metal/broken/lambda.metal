// expect: lambda expressions are not supported
#include <metal_stdlib>
using namespace metal;

kernel void lambda(device float *out [[buffer(0)]],
                   constant uint &count [[buffer(1)]],
                   uint t [[thread_position_in_grid]])
{
    auto f = [=](float x) { return x + 1; };
    // fixed: float y = out[t] + 1;
    out[t] = 2;
}
