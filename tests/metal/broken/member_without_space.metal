// expect: pointer type must have explicit address space
#include <metal_stdlib>
using namespace metal;

struct MemberView { float *data; };
// fixed: struct MemberView { device float *data; };

kernel void member_without_space(device float *out [[buffer(0)]],
                                 constant uint &count [[buffer(1)]],
                                 uint t [[thread_position_in_grid]])
{
    MemberView view = {out}; out[t] = view.data[0];
}
