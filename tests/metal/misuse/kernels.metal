// kernels.metal: what program.m runs: a reader and writer of floats, with a parameter and a
// function constant.
#include <metal_stdlib>

using namespace metal;

struct Params {
    float scale;
    float offset;
};

constant uint TIMES [[function_constant(0)]];

kernel void scale(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                  constant Params &p [[buffer(2)]], uint i [[thread_position_in_grid]])
{
    y[i] = x[i] * p.scale * float(TIMES) + p.offset;
}
