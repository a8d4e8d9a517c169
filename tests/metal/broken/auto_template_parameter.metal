// expect: until C\+\+17
#include <metal_stdlib>
using namespace metal;
template <auto N> inline uint added(uint x) { return x + N; }
// fixed: template <uint N> inline uint added(uint x) { return x + N; }
[[kernel]] void auto_template_parameter(device uint *y [[buffer(0)]]) { y[0] = added<3>(y[0]); }
