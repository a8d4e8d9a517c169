/* cpu.h: the CPU backend. A thread of a threadgroup gives up its turn at a barrier or a SIMD-group
 * function only; rt_abi.h has the runtime behind it. Included by simd.h. */
#pragma once
#include "rt_abi.h"

namespace metal
{

/* What the lanes deposited. An inactive lane's value is undefined: every bit set. */
template <class T> struct msl_values {
    const msl_simdgroup *group;
    uint phase, mask;
    MSL_FN T operator()(uint i) const
    {
        T t;
        if (i < MSL_SIMD_WIDTH && (mask >> i & 1u))
            MSL_COPY_BYTES(&t, group->slot[phase][i], sizeof t);
        else
            __builtin_memset((void *)&t, 0xff, sizeof t);
        return t;
    }
};

struct msl_exchange {
    msl_simdgroup *group;
    uint phase, mask, lane;
};
template <class T> MSL_FN msl_exchange msl_deposit(const T &x, msl_site site)
{
    static_assert(sizeof(T) <= 32, "too wide for a SIMD-group exchange");
    const msl_lane *me = msl_self;
    msl_simdgroup *group = me->sg;
    const uint phase = group->phase & 1u;
    MSL_COPY_BYTES(group->slot[phase][me->lane], &x, sizeof x);
    return {group, phase, msl_rt_arrive(site.op, site.line), me->lane};
}

template <class R, class T, class F> MSL_FN R msl_gather(T x, msl_site site, F f)
{
    const msl_exchange e = msl_deposit(x, site);
    return f(msl_values<T>{e.group, e.phase, e.mask}, e.mask, e.lane);
}

template <class R, class T, class F> MSL_FN R msl_shared(T x, msl_site site, F f)
{
    const msl_exchange e = msl_deposit(x, site);
    R r;
    if (!e.group->done[e.phase]) {
        r = f(msl_values<T>{e.group, e.phase, e.mask}, e.mask);
        MSL_COPY_BYTES(e.group->shared[e.phase], &r, sizeof r);
        e.group->done[e.phase] = 1;
    }
    MSL_COPY_BYTES(&r, e.group->shared[e.phase], sizeof r);
    return r;
}

/* A full SIMD-group is reduced as a tree, as GPUs do; a partial one from its first lane on. */
template <class T, class F> MSL_FN T msl_tree(const msl_values<T> &v, uint mask, F combine)
{
    if (mask == ~0u) {
        T t[16];
        for (uint i = 0; i < 16; ++i) t[i] = combine(v(i), v(i + 16));
        for (int step = 8; step; step >>= 1)
            for (int i = 0; i < step; ++i) t[i] = combine(t[i], t[i + step]);
        return t[0];
    }
    const uint first = (uint)__builtin_ctz(mask);
    T r = v(first);
    for (uint i = first + 1; i < MSL_SIMD_WIDTH; ++i)
        if (mask >> i & 1u) r = combine(r, v(i));
    return r;
}

template <class T, class F>
MSL_FN T msl_prefix(const msl_values<T> &v, uint mask, uint end, T start, F combine)
{
    T r = start;
    for (uint i = 0; i < end; ++i)
        if (mask >> i & 1u) r = combine(r, v(i));
    return r;
}

MSL_FN uint msl_lane_of(const char *, int) { return msl_self->lane; }

struct msl_matrix_parts {
    float a[2], b[2];
};
MSL_FN void msl_multiply_add(float &d0, float &d1, float a0, float a1, float b0, float b1, int line)
{
    const msl_exchange e =
        msl_deposit(msl_matrix_parts{{a0, a1}, {b0, b1}}, {"simdgroup_multiply_accumulate", line});
    /* Both matrices as dense arrays, put together by the first lane that comes back. */
    float *a = (float *)e.group->shared[e.phase], *b = a + 64;
    if (!e.group->done[e.phase]) {
        for (uint lane = 0; lane < MSL_SIMD_WIDTH; ++lane) {
            msl_matrix_parts parts;
            MSL_COPY_BYTES(&parts, e.group->slot[e.phase][lane], sizeof parts);
            const uint at = msl_matrix_row(lane) * 8 + msl_matrix_column(lane);
            MSL_COPY_BYTES(a + at, parts.a, sizeof parts.a);
            MSL_COPY_BYTES(b + at, parts.b, sizeof parts.b);
        }
        e.group->done[e.phase] = 1;
    }
    const uint row = msl_matrix_row(e.lane) * 8, column = msl_matrix_column(e.lane);
    for (uint k = 0; k < 8; ++k) {
        d0 += a[row + k] * b[k * 8 + column];
        d1 += a[row + k] * b[k * 8 + column + 1];
    }
}

MSL_FN void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE())
{
    msl_rt_barrier((int)flags, line);
}
MSL_FN void simdgroup_barrier(mem_flags, int line = __builtin_LINE())
{
    msl_rt_simdgroup_barrier(line);
}
MSL_FN void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Clang reports atomic loads and stores as it does plain ones, exchanges not at all. */
template <class T> MSL_FN T msl_atomic_load(const volatile T *p)
{
    T r{};
    if (MSL_RACES)
        __atomic_compare_exchange((T *)p, &r, &r, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    else
        __atomic_load((const T *)p, &r, __ATOMIC_RELAXED);
    return r;
}
template <class T> MSL_FN void msl_atomic_store(volatile T *p, T x)
{
    T old;
    if (MSL_RACES)
        __atomic_exchange((T *)p, &x, &old, __ATOMIC_RELAXED);
    else
        __atomic_store((T *)p, &x, __ATOMIC_RELAXED);
}
template <class T> MSL_FN bool msl_atomic_compare_exchange(volatile T *p, T *expected, T x)
{
    return __atomic_compare_exchange((T *)p, expected, &x, true, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED);
}
template <class T, class F> MSL_FN T msl_atomic_update(volatile T *p, F f)
{
    T old = msl_atomic_load(p);
    while (!msl_atomic_compare_exchange(p, &old, f(old))) {
    }
    return old;
}

} // namespace metal
using metal::msl_cast;
using metal::msl_make;

#define MSL_TG_DECL(name, ...)                                                                     \
    static char MSL_CAT(msl_key_, name);                                                           \
    metal::msl_id<__VA_ARGS__> &name = *(metal::msl_id<__VA_ARGS__> *)msl_rt_threadgroup(          \
        &MSL_CAT(msl_key_, name), sizeof(metal::msl_id<__VA_ARGS__>),                              \
        alignof(metal::msl_id<__VA_ARGS__>), #name)
/* A function constant is a variable that the runtime sets before the kernel runs. */
#define MSL_FUNCTION_CONSTANT(idx, name, ...)                                                      \
    static __VA_ARGS__ name;                                                                       \
    static unsigned char MSL_CAT(msl_fcdef_, name)
#define is_function_constant_defined(name) (MSL_CAT(msl_fcdef_, name) != 0)

inline void msl_builtin(int id, unsigned v[3])
{
    const msl_lane *me = msl_self;
    const msl_group *g = me->group;
    switch (id) {
#define MSL_AXES(name, expression)                                                                 \
    case name:                                                                                     \
        for (int k = 0; k < 3; ++k) v[k] = expression;                                             \
        break;
        MSL_AXES(MSL_THREAD_POSITION_IN_GRID, g->tg_pos[k] * g->nominal_tpt[k] + me->pos[k]);
        MSL_AXES(MSL_THREADGROUP_POSITION_IN_GRID, g->tg_pos[k]);
        MSL_AXES(MSL_THREAD_POSITION_IN_THREADGROUP, me->pos[k]);
        MSL_AXES(MSL_THREADS_PER_THREADGROUP, g->tpt[k]);
        MSL_AXES(MSL_DISPATCH_THREADS_PER_THREADGROUP, g->nominal_tpt[k]);
        MSL_AXES(MSL_THREADGROUPS_PER_GRID, g->tgs[k]);
        MSL_AXES(MSL_THREADS_PER_GRID, g->grid[k]);
        MSL_AXES(MSL_GRID_SIZE, g->grid[k]);
#undef MSL_AXES
    case MSL_THREAD_INDEX_IN_THREADGROUP: v[0] = me->index; break;
    case MSL_THREAD_INDEX_IN_SIMDGROUP: v[0] = me->lane; break;
    case MSL_SIMDGROUP_INDEX_IN_THREADGROUP: v[0] = me->index / 32; break;
    case MSL_SIMDGROUPS_PER_THREADGROUP: v[0] = g->nsimd; break;
    case MSL_THREADS_PER_SIMDGROUP: v[0] = MSL_SIMD_WIDTH; break;
    case MSL_THREAD_INDEX_IN_QUADGROUP: v[0] = me->index % 4; break;
    case MSL_QUADGROUP_INDEX_IN_THREADGROUP: v[0] = me->index / 4; break;
    }
}
#define MSL_ENTRY
#include "bind.h"
