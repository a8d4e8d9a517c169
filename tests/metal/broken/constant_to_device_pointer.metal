// expect: cannot initialize a variable of type '(const )?__global
#include <metal_stdlib>
using namespace metal;

kernel void constant_to_device_pointer(device float *out [[buffer(0)]],
                                       constant uint &count [[buffer(1)]],
                                       uint t [[thread_position_in_grid]])
{
    device const uint *p = &count;
    // fixed: constant uint *p = &count;
    out[t] = float(*p);
}
