// expect: only 8x8 matrices exist
#include <metal_stdlib>
using namespace metal;

kernel void matrix_of_16(device float *out [[buffer(0)]],
                         constant uint &count [[buffer(1)]],
                         uint t [[thread_position_in_grid]])
{
    simdgroup_matrix<float, 16, 16> m(1.0f);
    // fixed: simdgroup_matrix<float, 8, 8> m(1.0f);
    out[t] = m.thread_elements()[0];
}
