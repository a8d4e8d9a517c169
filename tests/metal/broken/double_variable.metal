// expect: 'double' is not supported
#include <metal_stdlib>
using namespace metal;

kernel void double_variable(device float *out [[buffer(0)]],
                            constant uint &count [[buffer(1)]],
                            uint t [[thread_position_in_grid]])
{
    double x = 1;
    // fixed: float x = 1;
    out[t] = float(x);
}
