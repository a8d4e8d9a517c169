/* atomic.h: <metal_atomic>. 32-bit types; Metal's only memory order for them is relaxed. */
#pragma once
#include "simd.h"

namespace metal
{

template <class T> struct atomic {
    T v;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

#define MSL_FETCH(space, name, expression)                                                         \
    template <class T> MSL_FN T name(volatile space atomic<T> *p, msl_nodeduce<T> x, memory_order) \
    {                                                                                              \
        return msl_atomic_update(&p->v, [=](T old) {                                               \
            (void)old;                                                                             \
            return T(expression);                                                                  \
        });                                                                                        \
    }
#define MSL_ATOMICS(space)                                                                         \
    template <class T>                                                                             \
    MSL_FN T atomic_load_explicit(volatile const space atomic<T> *p, memory_order)                 \
    {                                                                                              \
        return msl_atomic_load(&p->v);                                                             \
    }                                                                                              \
    template <class T>                                                                             \
    MSL_FN void atomic_store_explicit(volatile space atomic<T> *p, msl_nodeduce<T> x,              \
                                      memory_order)                                                \
    {                                                                                              \
        msl_atomic_store(&p->v, x);                                                                \
    }                                                                                              \
    template <class T>                                                                             \
    MSL_FN bool atomic_compare_exchange_weak_explicit(                                             \
        volatile space atomic<T> *p, T *expected, msl_nodeduce<T> x, memory_order, memory_order)   \
    {                                                                                              \
        return msl_atomic_compare_exchange(&p->v, expected, x);                                    \
    }                                                                                              \
    MSL_FETCH(space, atomic_exchange_explicit, x)                                                  \
    MSL_FETCH(space, atomic_fetch_add_explicit, old + x)                                           \
    MSL_FETCH(space, atomic_fetch_sub_explicit, old - x)                                           \
    MSL_FETCH(space, atomic_fetch_max_explicit, max(old, x))                                       \
    MSL_FETCH(space, atomic_fetch_min_explicit, min(old, x))                                       \
    MSL_FETCH(space, atomic_fetch_and_explicit, old &x)                                            \
    MSL_FETCH(space, atomic_fetch_or_explicit, old | x)                                            \
    MSL_FETCH(space, atomic_fetch_xor_explicit, old ^ x);
#if MSL_CHECK
MSL_ATOMICS(device);
MSL_ATOMICS(threadgroup);
#else
MSL_ATOMICS();
#endif
#undef MSL_ATOMICS
#undef MSL_FETCH

} // namespace metal
