// expect: cannot initialize a variable of type 'float \*' with
#include <metal_stdlib>
using namespace metal;

kernel void device_to_thread_pointer(device float *out [[buffer(0)]],
                                     constant uint &count [[buffer(1)]],
                                     uint t [[thread_position_in_grid]])
{
    thread float *p = out;
    // fixed: device float *p = out;
    out[t] = *p;
}
