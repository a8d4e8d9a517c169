// expect: must be a pointer into the threadgroup address space
#include <metal_stdlib>
using namespace metal;

kernel void threadgroup_slot_on_device(device float *out [[buffer(0)]],
                                       device float *x [[threadgroup(0)]])
                                       // fixed: threadgroup float *x [[threadgroup(0)]])
{
    x[0] = 1;
    out[0] = x[0];
}
