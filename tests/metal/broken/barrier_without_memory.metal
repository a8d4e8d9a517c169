// expect: threadgroup_barrier\(mem_none\) orders no memory
#include <metal_stdlib>
using namespace metal;

kernel void barrier_without_memory(device float *out [[buffer(0)]],
                                   constant uint &count [[buffer(1)]],
                                   uint t [[thread_position_in_grid]])
{
    threadgroup float a[32];
    a[t] = 1;
    threadgroup_barrier(mem_flags::mem_none);
    // fixed: threadgroup_barrier(mem_flags::mem_threadgroup);
    out[t] = a[0];
}
