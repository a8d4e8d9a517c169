// expect: no matching function for call to 'reference_across_spaces_set'
#include <metal_stdlib>
using namespace metal;

inline void reference_across_spaces_set(thread float &x) { x = 1; }

kernel void reference_across_spaces(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    float x = 1;
    reference_across_spaces_set(out[t]);
    // fixed: reference_across_spaces_set(x);
    out[0] = x;
}
