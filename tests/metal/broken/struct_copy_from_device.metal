// expect: struct copied across address spaces
#include <metal_stdlib>
using namespace metal;

struct StructCopyPair {
    float x, y;
};

kernel void struct_copy_from_device(device float *out [[buffer(0)]],
                                    constant uint &count [[buffer(1)]],
                                    uint t [[thread_position_in_grid]])
{
    device StructCopyPair *pairs = (device StructCopyPair *)out;
    StructCopyPair pair = pairs[0];
    // fixed: float pair_x = pairs[0].x;
    out[t] = pairs[0].y;
}
