// expect: no matching function for call to 'space_in_call_first'
#include <metal_stdlib>
using namespace metal;

inline float space_in_call_first(thread const float *p) { return *p; }

kernel void space_in_call(device float *out [[buffer(0)]],
                          constant uint &count [[buffer(1)]],
                          uint t [[thread_position_in_grid]])
{
    float x = 1;
    out[t] = space_in_call_first(out);
    // fixed: out[t] = space_in_call_first(&x);
}
