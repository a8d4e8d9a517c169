// expect: simdgroup_matrix of half, bfloat or float
#include <metal_stdlib>
using namespace metal;

kernel void matrix_of_int(device float *out [[buffer(0)]],
                          constant uint &count [[buffer(1)]],
                          uint t [[thread_position_in_grid]])
{
    simdgroup_matrix<int, 8, 8> m;
    // fixed: simdgroup_matrix<half, 8, 8> m(1.0h);
    out[t] = float(m.thread_elements()[0]);
}
