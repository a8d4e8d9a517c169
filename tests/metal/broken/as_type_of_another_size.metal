// expect: as_type: sizes differ
#include <metal_stdlib>
using namespace metal;

kernel void as_type_of_another_size(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    float x = as_type<float>(ushort(1));
    // fixed: float x = as_type<float>(uint(1));
    out[t] = x;
}
