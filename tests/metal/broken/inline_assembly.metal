// expect: inline assembly is not supported
#include <metal_stdlib>
using namespace metal;

kernel void inline_assembly(device float *out [[buffer(0)]],
                            constant uint &count [[buffer(1)]],
                            uint t [[thread_position_in_grid]])
{
    asm("nop");
    // fixed: out[t] = 2;
    out[0] = 1;
}
