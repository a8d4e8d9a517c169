// expect: 'thread_index_in_simdgroup' is a scalar
#include <metal_stdlib>
using namespace metal;

kernel void builtin_vector_for_scalar(device float *out [[buffer(0)]],
                                      uint3 t [[thread_index_in_simdgroup]])
                                      // fixed: uint3 t [[thread_position_in_grid]])
{
    out[t.x] = 1;
}
