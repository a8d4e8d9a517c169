// expect: two kernels have the host name 'two_a'
#include <metal_stdlib>
using namespace metal;

template <typename T> kernel void two(device T *out [[buffer(0)]])
{
    out[0] = T(1);
}
template [[host_name("two_a")]] kernel void two<float>(device float *out [[buffer(0)]]);
template [[host_name("two_a")]] kernel void two<half>(device half *out [[buffer(0)]]);
// fixed: template [[host_name("two_b")]] kernel void two<half>(device half *out [[buffer(0)]]);
