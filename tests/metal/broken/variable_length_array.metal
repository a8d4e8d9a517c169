// expect: variable length array
#include <metal_stdlib>
using namespace metal;

kernel void variable_length_array(device float *out [[buffer(0)]],
                                  constant uint &count [[buffer(1)]],
                                  uint t [[thread_position_in_grid]])
{
    float a[count];
    // fixed: float a[4];
    a[0] = 1;
    out[t] = a[0];
}
