// expect: namespace std is not available
#include <metal_stdlib>
using namespace metal;

kernel void namespace_std(device float *out [[buffer(0)]],
                          constant uint &count [[buffer(1)]],
                          uint t [[thread_position_in_grid]])
{
    float x = std::sqrt(2.0f);
    // fixed: float x = metal::sqrt(2.0f);
    out[t] = x;
}
