// expect: 'vector' file not found
#include <metal_stdlib>
using namespace metal;

#include <vector>
// fixed: #include <metal_math>

kernel void standard_header(device float *out [[buffer(0)]],
                            constant uint &count [[buffer(1)]],
                            uint t [[thread_position_in_grid]])
{
    out[t] = 1;
}
