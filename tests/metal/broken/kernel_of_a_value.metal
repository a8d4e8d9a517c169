// expect: kernel 'kernel_of_a_value' must return void
#include <metal_stdlib>
using namespace metal;

kernel float kernel_of_a_value(device float *out [[buffer(0)]])
// fixed: kernel void kernel_of_a_value(device float *out [[buffer(0)]])
{
    if (out[0] > 1) out[0] = 2;
    return 1;
    // fixed: return;
}
