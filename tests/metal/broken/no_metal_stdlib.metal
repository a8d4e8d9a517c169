// expect: no <metal_stdlib> is included
// fixed: #include <metal_stdlib>
kernel void no_metal_stdlib(device float *out [[buffer(0)]]) { out[0] = 1; }
