// expect: kernel template 'never' is never instantiated
#include <metal_stdlib>
using namespace metal;

template <typename T> kernel void never(device T *out [[buffer(0)]])
// fixed: kernel void never(device float *out [[buffer(0)]])
{
    out[0] = 1;
}
