// expect: no matching function for call to 'atomic_fetch_add_explicit'
#include <metal_stdlib>
using namespace metal;

kernel void atomic_on_plain_uint(device float *out [[buffer(0)]],
                                 constant uint &count [[buffer(1)]],
                                 uint t [[thread_position_in_grid]])
{
    atomic_fetch_add_explicit((device uint *)out, 1u, memory_order_relaxed);
    // fixed: atomic_fetch_add_explicit((device atomic_uint *)out, 1u, memory_order_relaxed);
    (void)t;
}
