// common.h: what every kernel shares: its fixed arguments, the function constants, sums over a
// group of threads. Knows nothing of weights or of any one kernel.
//
// A kernel's bindings are buffers 0 to 11 in the order of marlin/device/ops.py; then come the
// buffers below. A binding that a dispatch leaves out is a small dummy buffer.
#ifndef MARLIN_COMMON_H
#define MARLIN_COMMON_H

#include <metal_stdlib>

#include "block_types.h"
#include "kernel_list.h"
#include "params.h"

using namespace metal;

#define MARLIN_PARAMS_INDEX 12 // constant XParams &
#define MARLIN_VARS_INDEX 13   // constant int32_t *, the step's vars
#define MARLIN_CALL_INDEX 14   // constant MarlinCall &
#define MARLIN_STATUS_INDEX 15 // device atomic_uint *, 0xffffffff when a replay begins

// Threads of a simdgroup: 32 on every Apple GPU.
#define SIMD_THREADS 32
// Simdgroups that a threadgroup can have: 1024 threads.
#define MAX_SIMDGROUPS 32

struct MarlinCall {
    uint32_t dispatch;  // index in the program
    uint32_t words[12]; // each binding's bytes / 4
};

// Pipelines are made for each value that a program uses.
constant uint ROWS [[function_constant(0)]];         // matvec_*: rows a threadgroup computes
constant uint GROUP_SIZE [[function_constant(1)]];   // EmbedParams, LinearParams
constant uint FLAGS [[function_constant(2)]];        // EmbedParams, LinearParams
constant uint HEAD_DIM [[function_constant(3)]];     // AttentionParams
constant uint HEADS_PER_KV [[function_constant(4)]]; // AttentionParams: num_heads / num_kv_heads
constant uint SIMDGROUPS [[function_constant(5)]];   // matvec_* of packed weights: of a threadgroup
constant uint KV_F32 [[function_constant(6)]];       // RopeKvParams and its likes
constant uint LATENT_DIM [[function_constant(7)]];   // AttentionParams

// THREADS_<kernel>, UNITS_X_<kernel> and UNITS_Y_<kernel>: the kernel's row of kernel_list.h.
enum {
#define X(name, check, weight, params, bindings, units, axes, flags, threads, x, y)                \
    THREADS_##name = threads, UNITS_X_##name = x, UNITS_Y_##name = y,
    MARLIN_KERNELS(X)
#undef X
};

// An index in a buffer points outside another: the replay ends with MARLIN_EDEVICE, naming the
// first dispatch that failed. The caller must not use the index.
inline void fail(device atomic_uint *status, constant MarlinCall &call)
{
    atomic_fetch_min_explicit(status, call.dispatch, memory_order_relaxed);
}

// 2^(e - 127), E8M0: 255 is no number, 2^-127 a subnormal one.
inline float power_of(uint e)
{
    return as_type<float>(e == 255 ? 0x7fc00000u : e ? e << 23 : 0x00400000u);
}

// tanh(x), as (1 - e) / (1 + e) with e = exp(-2 |x|), which cannot overflow.
inline float soft_tanh(float x)
{
    float e = exp(-2.0f * fabs(x)), size = (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -size : size;
}

// Sum over the threadgroup, the same value in every thread. scratch: MAX_SIMDGROUPS floats, to be
// used again after a barrier only. Uniform control flow.
inline float group_sum(float value, threadgroup float *scratch, uint lane, uint simdgroup,
                       uint num_simdgroups)
{
    value = simd_sum(value);
    if (lane == 0) scratch[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < num_simdgroups ? scratch[lane] : 0.0f);
}

#endif
