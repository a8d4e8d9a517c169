// expect: program scope variable must reside in constant
#include <metal_stdlib>
using namespace metal;

constexpr uint program_scope_width = 4;
// fixed: constant constexpr uint program_scope_width = 4;

kernel void program_scope_constexpr(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    out[t] = float(program_scope_width);
}
