// expect: must be in the device or constant address space
#include <metal_stdlib>
using namespace metal;

kernel void buffer_in_thread_space(device float *out [[buffer(0)]],
                                   thread float *x [[buffer(1)]])
                                   // fixed: device float *x [[buffer(1)]])
{
    out[0] = x[0];
}
