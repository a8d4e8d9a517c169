/* check.h: the check backend. Only declarations matter, nothing runs; address spaces are real. */
#pragma once

namespace metal
{

MSL_FN uint msl_lane_of(const char *, int) { return 0; }
MSL_FN void msl_multiply_add(float &d0, float &d1, float a0, float a1, float b0, float b1, int)
{
    d0 += a0 * b0;
    d1 += a1 * b1;
}
MSL_FN void threadgroup_barrier(mem_flags, thread_scope = thread_scope_threadgroup) {}
MSL_FN void simdgroup_barrier(mem_flags) {}
MSL_FN void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

#define MSL_ATOMIC(space)                                                                          \
    template <class T> MSL_FN T msl_atomic_load(const volatile space T *p) { return *p; }          \
    template <class T> MSL_FN void msl_atomic_store(volatile space T *p, T x) { *p = x; }          \
    template <class T, class F> MSL_FN T msl_atomic_update(volatile space T *p, F f)               \
    {                                                                                              \
        T old = *p;                                                                                \
        *p = f(old);                                                                               \
        return old;                                                                                \
    }                                                                                              \
    template <class T>                                                                             \
    MSL_FN bool msl_atomic_compare_exchange(volatile space T *p, T *expected, T x)                 \
    {                                                                                              \
        if (*p != *expected) return false;                                                         \
        *p = x;                                                                                    \
        return true;                                                                               \
    }
MSL_ATOMIC(device);
MSL_ATOMIC(threadgroup);
#undef MSL_ATOMIC

} // namespace metal

/* The storage's name tells check.py whose bytes it counts. */
#define MSL_TG_DECL(name, ...)                                                                     \
    static threadgroup char MSL_CAT(msl_tg_, name)[sizeof(metal::msl_id<__VA_ARGS__>)];            \
    threadgroup metal::msl_id<__VA_ARGS__> &name =                                                 \
        *(threadgroup metal::msl_id<__VA_ARGS__> *)MSL_CAT(msl_tg_, name)
#define MSL_FUNCTION_CONSTANT(idx, name, ...) extern constant __VA_ARGS__ name
template <class T> constexpr bool is_function_constant_defined(const T &) { return true; }
template <class T> constexpr bool is_function_constant_defined(constant T &) { return true; }
