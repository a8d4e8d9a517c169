// expect: 'goto' is not supported
#include <metal_stdlib>
using namespace metal;

kernel void goto_statement(device float *out [[buffer(0)]],
                           constant uint &count [[buffer(1)]],
                           uint t [[thread_position_in_grid]])
{
    out[t] = 1;
    goto end;
    // fixed: return;
    if (count == 0) {
    end:
        return;
    }
    out[t] = 2;
}
