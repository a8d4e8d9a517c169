// expect: virtual functions are not supported
#include <metal_stdlib>
using namespace metal;

struct VirtualBase { virtual float f() { return 1; } };
// fixed: struct VirtualBase { float f() { return 1; } };

kernel void virtual_function(device float *out [[buffer(0)]],
                             constant uint &count [[buffer(1)]],
                             uint t [[thread_position_in_grid]])
{
    VirtualBase base; out[t] = base.f();
}
