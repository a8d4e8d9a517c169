// expect: program scope variable must reside in constant
#include <metal_stdlib>
using namespace metal;

float program_scope_table[2] = {1, 2};
// fixed: constant float program_scope_table[2] = {1, 2};

kernel void program_scope_variable(device float *out [[buffer(0)]],
                                   constant uint &count [[buffer(1)]],
                                   uint t [[thread_position_in_grid]])
{
    out[t] = program_scope_table[0];
}
