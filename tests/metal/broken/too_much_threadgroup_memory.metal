// expect: 40000 bytes of threadgroup memory, the limit is 32768
#include <metal_stdlib>
using namespace metal;

kernel void too_much_threadgroup_memory(device float *out [[buffer(0)]],
                                        constant uint &count [[buffer(1)]],
                                        uint t [[thread_position_in_grid]])
{
    threadgroup float a[5000];
    threadgroup float b[5000];
    // fixed: threadgroup float b[3000];
    a[t] = b[t] = float(t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[t] = a[0] + b[0];
}
