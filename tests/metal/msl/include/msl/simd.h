/* simd.h: memory flags, SIMD-group and quad-group functions.
 *
 * The backend (cpu.h, cuda.h, check.h) supplies barriers and, for a trivially copyable T,
 *   msl_gather<R>(x, site, f)  every active lane deposits x; f(values, mask, lane) gives its R
 *   msl_shared<R>(x, site, f)  the same, but f(values, mask) runs once and all lanes get its R */
#pragma once
#include "math.h"

namespace metal
{

enum class mem_flags {
    mem_none = 0,
    mem_device = 1,
    mem_threadgroup = 2,
    mem_texture = 4,
    mem_threadgroup_imageblock = 8
};
MSL_FN constexpr mem_flags operator|(mem_flags a, mem_flags b)
{
    return mem_flags((int)a | (int)b);
}
enum memory_order { memory_order_relaxed = 0, memory_order_seq_cst = 5 };
enum thread_scope {
    thread_scope_thread,
    thread_scope_simdgroup,
    thread_scope_threadgroup,
    thread_scope_device
};

/* Where a rendezvous stands in the source: lanes that meet must agree on it. */
struct msl_site {
    const char *op;
    int line;
};
template <class T> using msl_id = T;

/* simdgroup_matrix: lane l holds row R(l), columns C(l) and C(l) + 1, the layout that Apple's GPUs
 * show through thread_elements(). */
MSL_FN constexpr uint msl_matrix_row(uint lane) { return ((lane >> 4) << 2) | ((lane >> 1) & 3u); }
MSL_FN constexpr uint msl_matrix_column(uint lane)
{
    return (((lane >> 3) & 1u) << 2) | ((lane & 1u) << 1);
}

} // namespace metal

#if MSL_CPU
#include "cpu.h"
#elif MSL_CUDA
#include "cuda.h"
#else
#include "check.h"
#endif

namespace metal
{

template <class T> struct msl_simd_type {
    typedef msl_scalar_t<T> S;
    static constexpr MSL_CONSTANT bool value = is_arithmetic<S>::value &&
                                               !is_same<S, bool>::value &&
                                               !is_same<S, bfloat>::value && sizeof(S) <= 4;
};
#define MSL_LINE int line = __builtin_LINE()
#define MSL_SIMD template <class T> MSL_FN T
#define MSL_REQUIRE                                                                                \
    static_assert(msl_simd_type<T>::value, "SIMD-group functions take 8-, 16- and 32-bit scalars " \
                                           "and vectors, not bool, bfloat or 64-bit types")

/* MSL_REDUCE: every lane gets the same value. MSL_LANE: each gets its own. */
#if MSL_CHECK
#define MSL_REDUCE(name, operation)                                                                \
    MSL_SIMD name(T x, MSL_LINE)                                                                   \
    {                                                                                              \
        MSL_REQUIRE;                                                                               \
        return x;                                                                                  \
    }
#define MSL_LANE(name, parameters, expression)                                                     \
    MSL_SIMD name parameters                                                                       \
    {                                                                                              \
        MSL_REQUIRE;                                                                               \
        return x;                                                                                  \
    }
#define MSL_VOTE(name, R, parameters, expression)                                                  \
    MSL_FN R name parameters { return R(1); }
#else
#define MSL_REDUCE(name, operation)                                                                \
    MSL_SIMD name(T x, MSL_LINE)                                                                   \
    {                                                                                              \
        MSL_REQUIRE;                                                                               \
        auto combine = [](T a, T b) { return T(operation); };                                      \
        return msl_shared<T>(x, msl_site{#name, line}, [=](const auto &v, uint mask) {             \
            return msl_tree(v, mask, combine);                                                     \
        });                                                                                        \
    }
#define MSL_LANE(name, parameters, expression)                                                     \
    MSL_SIMD name parameters                                                                       \
    {                                                                                              \
        MSL_REQUIRE;                                                                               \
        return msl_gather<T>(x, msl_site{#name, line},                                             \
                             [=](const auto &v, uint mask, uint lane) -> T {                       \
                                 (void)mask, (void)lane;                                           \
                                 return expression;                                                \
                             });                                                                   \
    }
#define MSL_VOTE(name, R, parameters, expression)                                                  \
    MSL_FN R name parameters                                                                       \
    {                                                                                              \
        return R(msl_gather<uint>(p, msl_site{#name, line},                                        \
                                  [](const auto &v, uint mask, uint lane) -> uint {                \
                                      (void)v, (void)mask, (void)lane;                             \
                                      return expression;                                           \
                                  }));                                                             \
    }
/* Bits of the active lanes whose value is not 0. */
template <class V> MSL_FN uint msl_ballot(const V &v, uint mask)
{
    uint bits = 0;
    for (uint i = 0; i < 32; ++i)
        if ((mask >> i & 1u) && v(i)) bits |= 1u << i;
    return bits;
}
template <class V, class T> MSL_FN T msl_sum_before(const V &v, uint mask, uint end, T zero)
{
    return msl_prefix(v, mask, end, zero, [](T a, T b) { return T(a + b); });
}
template <class V, class T> MSL_FN T msl_product_before(const V &v, uint mask, uint end, T one)
{
    return msl_prefix(v, mask, end, one, [](T a, T b) { return T(a * b); });
}
#endif

MSL_REDUCE(simd_sum, a + b);
MSL_REDUCE(simd_product, a *b);
MSL_REDUCE(simd_max, max(a, b));
MSL_REDUCE(simd_min, min(a, b));
MSL_REDUCE(simd_and, a &b);
MSL_REDUCE(simd_or, a | b);
MSL_REDUCE(simd_xor, a ^ b);

/* A shuffle from beyond the SIMD-group keeps the lane's own value. */
MSL_LANE(simd_shuffle, (T x, ushort i, MSL_LINE), v(i));
MSL_LANE(simd_shuffle_xor, (T x, ushort m, MSL_LINE), v(lane ^ m));
MSL_LANE(simd_shuffle_down, (T x, ushort d, MSL_LINE), v(lane + d < 32 ? lane + d : lane));
MSL_LANE(simd_shuffle_up, (T x, ushort d, MSL_LINE), v(lane >= d ? lane - d : lane));
MSL_LANE(simd_shuffle_rotate_down, (T x, ushort d, MSL_LINE), v((lane + d) & 31u));
MSL_LANE(simd_shuffle_rotate_up, (T x, ushort d, MSL_LINE), v((lane - d) & 31u));
MSL_LANE(simd_broadcast, (T x, ushort i, MSL_LINE), v(i));
MSL_LANE(simd_broadcast_first, (T x, MSL_LINE), v(ctz(mask)));
MSL_LANE(simd_prefix_inclusive_sum, (T x, MSL_LINE), msl_sum_before(v, mask, lane + 1, T(0)));
MSL_LANE(simd_prefix_exclusive_sum, (T x, MSL_LINE), msl_sum_before(v, mask, lane, T(0)));
MSL_LANE(simd_prefix_inclusive_product, (T x, MSL_LINE),
         msl_product_before(v, mask, lane + 1, T(1)))
MSL_LANE(simd_prefix_exclusive_product, (T x, MSL_LINE), msl_product_before(v, mask, lane, T(1)));

/* A value for what falls off the SIMD-group, or off each part of `m` lanes. */
#if !MSL_CHECK
template <class V, class T>
MSL_FN T msl_or_fill(const V &v, bool inside, uint from, uint own, T fill)
{
    const T read = v(inside ? from : own); /* every lane reads: on a GPU it is a shuffle */
    return inside ? read : fill;
}
#endif
MSL_LANE(simd_shuffle_and_fill_down, (T x, T fill, ushort d, MSL_LINE),
         msl_or_fill(v, lane + d < 32, lane + d, lane, fill))
MSL_LANE(simd_shuffle_and_fill_up, (T x, T fill, ushort d, MSL_LINE),
         msl_or_fill(v, lane >= d, lane - d, lane, fill))
MSL_LANE(simd_shuffle_and_fill_down, (T x, T fill, ushort d, ushort m, MSL_LINE),
         msl_or_fill(v, lane % m + d < m, lane + d, lane, fill))
MSL_LANE(simd_shuffle_and_fill_up, (T x, T fill, ushort d, ushort m, MSL_LINE),
         msl_or_fill(v, lane % m >= d, lane - d, lane, fill))

#if !MSL_CHECK
template <class T, class V> MSL_FN T msl_quad_sum(const V &v, uint lane)
{
    const uint first = lane & ~3u;
    return T(T(v(first) + v(first + 1)) + T(v(first + 2) + v(first + 3)));
}
#endif
MSL_LANE(quad_shuffle_xor, (T x, ushort m, MSL_LINE), v(lane ^ (m & 3u)));
MSL_LANE(quad_broadcast, (T x, ushort i, MSL_LINE), v((lane & ~3u) | i));
MSL_LANE(quad_shuffle, (T x, ushort i, MSL_LINE), v((lane & ~3u) | i));
MSL_LANE(quad_sum, (T x, MSL_LINE), msl_quad_sum<T>(v, lane));

struct simd_vote {
    typedef ulong vote_t;
    vote_t bits;
    explicit MSL_FN simd_vote(vote_t b) : bits(b) {}
    explicit MSL_FN operator vote_t() const { return bits; }
    MSL_FN bool all() const { return bits == 0xffffffffu; }
    MSL_FN bool any() const { return bits != 0; }
};
MSL_VOTE(simd_ballot, simd_vote, (bool p, MSL_LINE), msl_ballot(v, mask));
MSL_VOTE(simd_all, bool, (bool p, MSL_LINE), msl_ballot(v, mask) == mask);
MSL_VOTE(simd_any, bool, (bool p, MSL_LINE), msl_ballot(v, mask) != 0);
/* `p` only gives the exchange something to carry. */
MSL_VOTE(simd_active_threads_mask, simd_vote, (MSL_LINE, bool p = false), mask);
MSL_VOTE(simd_is_first, bool, (MSL_LINE, bool p = false), lane == ctz(mask));

#undef MSL_REDUCE
#undef MSL_LANE
#undef MSL_VOTE
#undef MSL_SIMD
#undef MSL_REQUIRE

} // namespace metal
