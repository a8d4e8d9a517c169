// expect: implicit conversion|no viable conversion|cannot initialize
#include <metal_stdlib>
using namespace metal;

kernel void float_to_bfloat(device float *out [[buffer(0)]],
                            constant uint &count [[buffer(1)]],
                            uint t [[thread_position_in_grid]])
{
    bfloat x = out[t];
    // fixed: bfloat x = bfloat(out[t]);
    out[t] = float(x);
}
