// expect: no matching function for call to 'simdgroup_load'
#include <metal_stdlib>
using namespace metal;

kernel void matrix_from_thread_memory(device float *out [[buffer(0)]],
                                      constant uint &count [[buffer(1)]],
                                      uint t [[thread_position_in_grid]])
{
    float values[64] = {1};
    simdgroup_float8x8 m;
    simdgroup_load(m, values, 8);
    // fixed: simdgroup_load(m, out, 8);
    simdgroup_store(m, out, 8);
    out[t] = values[t];
}
