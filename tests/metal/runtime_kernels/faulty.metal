// Each kernel compiles and is wrong at run time; 64 threads in one threadgroup.
#include <metal_stdlib>
using namespace metal;

// Reads what another thread writes, no barrier between.
kernel void no_barrier(device const float *x [[buffer(0)]],
                       device float *y [[buffer(1)]],
                       uint t [[thread_index_in_threadgroup]])
{
    threadgroup float shared[64];
    shared[t] = x[t];
    y[t] = shared[63 - t];
}

// The next round overwrites what this one reads: a second barrier is missing.
kernel void one_barrier_of_two(device const float *x [[buffer(0)]],
                               device float *y [[buffer(1)]],
                               uint t [[thread_index_in_threadgroup]])
{
    threadgroup float shared[64];
    float sum = 0;
    for (int round = 1; round < 5; ++round) {
        shared[t] = x[t] * float(round);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += shared[(t + 1) % 64];
    }
    y[t] = sum;
}

// Two threads write one element of device memory.
kernel void two_writers(device float *y [[buffer(1)]], uint t [[thread_index_in_threadgroup]])
{
    y[t / 2] = float(t);
}

// The barrier orders device memory, and what is shared lies elsewhere.
kernel void barrier_for_device_memory(device float *y [[buffer(1)]],
                                      uint t [[thread_index_in_threadgroup]])
{
    threadgroup float shared[64];
    shared[t] = float(t);
    threadgroup_barrier(mem_flags::mem_device);
    y[t] = shared[63 - t];
}

kernel void barrier_in_a_branch(device float *y [[buffer(1)]],
                                uint t [[thread_index_in_threadgroup]])
{
    if (t < 40) threadgroup_barrier(mem_flags::mem_device);
    y[t] = 1;
}

kernel void two_barriers_for_one(device float *y [[buffer(1)]],
                                 uint t [[thread_index_in_threadgroup]])
{
    if (t < 32) {
        threadgroup_barrier(mem_flags::mem_device);
    } else {
        threadgroup_barrier(mem_flags::mem_device);
    }
    y[t] = 1;
}

kernel void divergent_sum(device float *y [[buffer(1)]],
                          uint t [[thread_index_in_threadgroup]])
{
    float v = float(t);
    if (t & 1) {
        v = simd_sum(v);
    } else {
        v = simd_max(v);
    }
    y[t] = v;
}

kernel void half_of_a_simdgroup(device float *y [[buffer(1)]],
                                uint t [[thread_index_in_threadgroup]])
{
    if (t % 32 < 16) y[t] = simd_sum(1.0f);
    threadgroup_barrier(mem_flags::mem_device);
}

kernel void never_written(device float *y [[buffer(1)]], uint t [[thread_index_in_threadgroup]])
{
    threadgroup float shared[64];
    if (t < 32) shared[t] = float(t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[t] = shared[t];
}

kernel void beyond_a_buffer(device const float *x [[buffer(0)]],
                            device float *y [[buffer(1)]],
                            uint t [[thread_index_in_threadgroup]])
{
    y[t] = x[t + 1];
}

kernel void beyond_threadgroup_memory(device float *y [[buffer(1)]],
                                      uint t [[thread_index_in_threadgroup]])
{
    threadgroup float shared[64];
    shared[t + 1] = float(t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[t] = shared[t];
}

kernel void too_much_memory(device float *y [[buffer(1)]],
                            uint t [[thread_index_in_threadgroup]])
{
    threadgroup float a[6000];
    threadgroup float b[6000];
    a[t] = b[t] = 1;
    y[t] = a[t];
}

kernel void reads_a_reference(device float *y [[buffer(1)]], constant uint2 &n [[buffer(2)]])
{
    y[0] = float(n.y);
}

[[max_total_threads_per_threadgroup(32)]] kernel void few_threads(device float *y [[buffer(1)]])
{
    y[0] = 1;
}
