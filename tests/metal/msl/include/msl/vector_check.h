/* vector_check.h: vectors of the check backend, clang's own, so that the compiler itself judges
 * conversions, widths and swizzles. Included by vector.h.
 *
 * They have no constructors: float4(...) is a macro there (check_ctors.h) that calls msl_make. */
#pragma once
#include "traits.h"

namespace metal
{

template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <class T> struct msl_scalar {
    typedef T type;
};
template <class T, int N> struct msl_scalar<vec<T, N>> {
    typedef T type;
};
template <class T> struct msl_width {
    static constexpr MSL_CONSTANT int value = 1;
};
template <class T, int N> struct msl_width<vec<T, N>> {
    static constexpr MSL_CONSTANT int value = N;
};

/* Through float: clang does not cast half to bfloat or back. */
template <class S, class A> constexpr MSL_FN S msl_component(A a)
{
    if constexpr (is_floating_point<S>::value && is_floating_point<A>::value)
        return (S)(float)a;
    else
        return (S)a;
}
template <class V, int I> constexpr MSL_FN void msl_fill(V &) {}
template <class V, int I, class A, class... R> constexpr MSL_FN void msl_fill(V &v, A a, R... rest)
{
    typedef typename msl_scalar<V>::type S;
    if constexpr (msl_width<A>::value == 1)
        v[I] = msl_component<S>(a);
    else
        for (int k = 0; k < msl_width<A>::value; ++k)
            v[I + k] = msl_component<S>((typename msl_scalar<A>::type)a[k]);
    msl_fill<V, I + msl_width<A>::value>(v, rest...);
}

/* V(args...): one value for every component, a vector of the same width, or components. Any other
 * type is constructed as it is. */
template <class V> constexpr MSL_FN V msl_make() { return V{}; }
template <class V, class A, class... R> constexpr MSL_FN V msl_make(A a, R... rest)
{
    constexpr int width = msl_width<V>::value;
    if constexpr (width == 1 && sizeof...(R) == 0) {
        return (V)a;
    } else if constexpr (width == 1) {
        return V(a, rest...);
    } else if constexpr (sizeof...(R) == 0 && msl_width<A>::value == 1) {
        return (V)msl_component<typename msl_scalar<V>::type>(a);
    } else {
        constexpr int given = (msl_width<A>::value + ... + msl_width<R>::value);
        static_assert(sizeof...(R) != 0 || given == width, "vector width mismatch");
        static_assert(given == width, "wrong number of components in a vector constructor");
        V v{};
        msl_fill<V, 0>(v, a, rest...);
        return v;
    }
}

} // namespace metal
