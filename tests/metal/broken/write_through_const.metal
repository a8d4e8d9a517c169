// expect: read-only variable|const-qualified
#include <metal_stdlib>
using namespace metal;

kernel void write_through_const(device const float *x [[buffer(0)]],
                                device float *y [[buffer(1)]]) { x[0] = *y; }
                                // fixed: device float *y [[buffer(1)]]) { *y = x[0]; }
