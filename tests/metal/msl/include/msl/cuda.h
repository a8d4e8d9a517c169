/* cuda.h: the CUDA backend. A SIMD-group is a warp, a threadgroup a block. For NVRTC with
 * --default-device; included by simd.h.
 *
 * Every kernel takes one msl_launch by value: addresses by Metal's buffer slot, offsets into
 * dynamic shared memory by threadgroup slot. Of one slot, MSL_CONSTANT_SLOT, the content itself:
 * CUDA's own constant memory.
 *
 * MSL_BLOCKS: threadgroups that a multiprocessor must have room for at once, which limits a
 * kernel's registers; Metal's language has no word for it. */
#pragma once

#include "args.h"

#ifndef MSL_CONSTANT_SLOT
#define MSL_CONSTANT_SLOT -1
#endif

#ifdef MSL_BLOCKS
#define MSL_LAUNCH_BOUNDS(threads) __launch_bounds__(threads, MSL_BLOCKS)
#else
#define MSL_LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#endif

struct msl_launch {
    void *buffer[31];
    unsigned tg_offset[31];
    unsigned grid[3];
    unsigned content[16];
};

namespace metal
{

MSL_FN uint msl_thread()
{
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}

template <class T> MSL_FN T msl_shuffle(uint mask, T x, uint lane)
{
    constexpr int words = (sizeof(T) + 3) / 4;
    uint w[words] = {0};
    memcpy(w, &x, sizeof x);
    for (int k = 0; k < words; ++k) w[k] = __shfl_sync(mask, w[k], (int)(lane & 31u));
    memcpy(&x, w, sizeof x);
    return x;
}
template <class T> struct msl_values {
    T x;
    uint mask;
    MSL_FN T operator()(uint lane) const { return msl_shuffle(mask, x, lane); }
};
template <class R, class T, class F> MSL_FN R msl_gather(T x, msl_site, F f)
{
    const uint mask = __activemask();
    return f(msl_values<T>{x, mask}, mask, msl_thread() & 31u);
}
template <class R, class T, class F> MSL_FN R msl_shared(T x, msl_site, F f)
{
    const uint mask = __activemask();
    return f(msl_values<T>{x, mask}, mask);
}
template <class T, class F> MSL_FN T msl_tree(const msl_values<T> &v, uint mask, F combine)
{
    T r = v.x;
    if (mask == ~0u) {
        for (uint step = 16; step; step >>= 1)
            r = combine(r, msl_shuffle(mask, r, (msl_thread() & 31u) ^ step));
        return r;
    }
    r = v(__ffs(mask) - 1);
    for (uint i = __ffs(mask); i < 32; ++i)
        if (mask >> i & 1u) r = combine(r, v(i));
    return r;
}
/* Every lane reads every value, whether it counts it or not: a shuffle is a meeting. */
template <class T, class F>
MSL_FN T msl_prefix(const msl_values<T> &v, uint mask, uint end, T start, F combine)
{
    T r = start;
    for (uint i = 0; i < 32; ++i) {
        if (!(mask >> i & 1u)) continue;
        const T x = v(i);
        if (i < end) r = combine(r, x);
    }
    return r;
}

MSL_FN uint msl_lane_of(const char *, int) { return msl_thread() & 31u; }

/* The lane that holds element (row, column) of a simdgroup_matrix. */
MSL_FN uint msl_matrix_lane(uint row, uint column)
{
    return ((row >> 2) << 4) | ((row & 3u) << 1) | ((column >> 2) << 3) | ((column >> 1) & 1u);
}
MSL_FN void msl_multiply_add(float &d0, float &d1, float a0, float a1, float b0, float b1, int)
{
    const uint lane = msl_thread() & 31u;
    const uint row = msl_matrix_row(lane), column = msl_matrix_column(lane);
    for (uint k = 0; k < 8; ++k) {
        const float a = __shfl_sync(~0u, k & 1u ? a1 : a0, msl_matrix_lane(row, k));
        const uint from = msl_matrix_lane(k, column);
        d0 += a * __shfl_sync(~0u, b0, from);
        d1 += a * __shfl_sync(~0u, b1, from);
    }
}

MSL_FN void threadgroup_barrier(mem_flags flags)
{
    if ((int)flags & (int)mem_flags::mem_device) __threadfence_block();
    __syncthreads();
}
MSL_FN void simdgroup_barrier(mem_flags) { __syncwarp(); }
MSL_FN void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device)
{
    __threadfence();
}

template <class T> MSL_FN T msl_atomic_load(const volatile T *p) { return *p; }
template <class T> MSL_FN void msl_atomic_store(volatile T *p, T x) { *p = x; }
template <class T> MSL_FN bool msl_atomic_compare_exchange(volatile T *p, T *expected, T x)
{
    static_assert(sizeof(T) == 4, "32-bit atomics");
    uint want, to;
    memcpy(&want, expected, 4);
    memcpy(&to, &x, 4);
    const uint got = atomicCAS((uint *)p, want, to);
    memcpy(expected, &got, 4);
    return got == want;
}
template <class T, class F> MSL_FN T msl_atomic_update(volatile T *p, F f)
{
    T old = *p;
    while (!msl_atomic_compare_exchange(p, &old, f(old))) {
    }
    return old;
}

} // namespace metal
using metal::msl_cast;
using metal::msl_make;

#define MSL_TG_DECL(name, ...) __shared__ metal::msl_id<__VA_ARGS__> name
/* -D MSL_FC_<index>=value specialises a kernel, as a Metal pipeline does. */
#define MSL_FUNCTION_CONSTANT(idx, name, ...)                                                      \
    static constexpr __VA_ARGS__ name = MSL_CAT(MSL_FC_, idx);                                     \
    static constexpr bool MSL_CAT(msl_fcdef_, name) = true
#define is_function_constant_defined(name) (MSL_CAT(msl_fcdef_, name))

/* The grid in threads, set by the host before a ragged launch: CUDA knows whole blocks only. */
__constant__ unsigned msl_grid_threads[3];

MSL_FN void msl_builtin(int id, unsigned v[3])
{
    const unsigned t[3] = {threadIdx.x, threadIdx.y, threadIdx.z};
    const unsigned b[3] = {blockIdx.x, blockIdx.y, blockIdx.z};
    const unsigned threads[3] = {blockDim.x, blockDim.y, blockDim.z};
    const unsigned blocks[3] = {gridDim.x, gridDim.y, gridDim.z};
    const unsigned index = metal::msl_thread(), all = threads[0] * threads[1] * threads[2];
    switch (id) {
#define MSL_AXES(name, expression)                                                                 \
    case name:                                                                                     \
        for (int k = 0; k < 3; ++k) v[k] = expression;                                             \
        break;
        MSL_AXES(MSL_THREAD_POSITION_IN_GRID, b[k] * threads[k] + t[k]);
        MSL_AXES(MSL_THREADGROUP_POSITION_IN_GRID, b[k]);
        MSL_AXES(MSL_THREAD_POSITION_IN_THREADGROUP, t[k]);
        MSL_AXES(MSL_THREADS_PER_THREADGROUP, threads[k]);
        MSL_AXES(MSL_DISPATCH_THREADS_PER_THREADGROUP, threads[k]);
        MSL_AXES(MSL_THREADGROUPS_PER_GRID, blocks[k]);
        MSL_AXES(MSL_THREADS_PER_GRID, msl_grid_threads[k]);
        MSL_AXES(MSL_GRID_SIZE, msl_grid_threads[k]);
#undef MSL_AXES
    case MSL_THREAD_INDEX_IN_THREADGROUP: v[0] = index; break;
    case MSL_THREAD_INDEX_IN_SIMDGROUP: v[0] = index & 31u; break;
    case MSL_SIMDGROUP_INDEX_IN_THREADGROUP: v[0] = index >> 5; break;
    case MSL_SIMDGROUPS_PER_THREADGROUP: v[0] = (all + 31u) >> 5; break;
    case MSL_THREADS_PER_SIMDGROUP: v[0] = 32; break;
    case MSL_THREAD_INDEX_IN_QUADGROUP: v[0] = index & 3u; break;
    case MSL_QUADGROUP_INDEX_IN_THREADGROUP: v[0] = index >> 2; break;
    }
}
#define MSL_ENTRY MSL_FN
#include "bind.h"
