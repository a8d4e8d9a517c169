// expect: a function constant must not be initialized
#include <metal_stdlib>
using namespace metal;

constant uint FUNCTION_CONSTANT_ROWS [[function_constant(0)]] = 3;
// fixed: constant uint FUNCTION_CONSTANT_ROWS [[function_constant(0)]];

kernel void function_constant_initialized(device float *out [[buffer(0)]],
                                          constant uint &count [[buffer(1)]],
                                          uint t [[thread_position_in_grid]])
{
    out[t] = float(FUNCTION_CONSTANT_ROWS);
}
