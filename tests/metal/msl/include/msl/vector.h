/* vector.h: float4 and its kin, packed vectors, array.
 *
 * Off the check backend a vector is a class whose swizzles are members of a union. Rules kept: no
 * implicit conversion between element types, a scalar widens to every component, comparisons give
 * vectors of bool. */
#pragma once
#include "traits.h"

#if MSL_CHECK
#include "vector_check.h"
#else
namespace metal
{

template <class T, int N> struct vec;

/* A swizzle of a vector of N: the same storage, read and written as components I... */
template <class T, int N, int... I> struct msl_swizzle {
    T d[N];
    typedef vec<T, sizeof...(I)> V;
    msl_swizzle() = default;
    msl_swizzle(const msl_swizzle &) = default;
    MSL_FN V value() const
    {
        V r;
        int k = 0;
        ((r[k++] = d[I]), ...);
        return r;
    }
    MSL_FN operator V() const { return value(); }
    MSL_FN T operator[](int i) const { return value()[i]; }
    MSL_FN msl_swizzle &operator=(V x)
    {
        int k = 0;
        ((d[I] = x[k++]), ...);
        return *this;
    }
    MSL_FN msl_swizzle &operator=(const msl_swizzle &o) { return *this = o.value(); }
    MSL_FN msl_swizzle &operator+=(V x) { return *this = value() + x; }
    MSL_FN msl_swizzle &operator-=(V x) { return *this = value() - x; }
    MSL_FN msl_swizzle &operator*=(V x) { return *this = value() * x; }
    MSL_FN msl_swizzle &operator/=(V x) { return *this = value() / x; }
};

/* Width, element type and vector type of a scalar, a vector or a swizzle. */
template <class A> struct msl_facts {
    static constexpr int width = 1;
    typedef A type;
    typedef A value;
};
template <class T, int N> struct msl_facts<vec<T, N>> {
    static constexpr int width = N;
    typedef T type;
    typedef vec<T, N> value;
};
template <class T, int N, int... I> struct msl_facts<msl_swizzle<T, N, I...>> {
    static constexpr int width = sizeof...(I);
    typedef T type;
    typedef vec<T, sizeof...(I)> value;
};
template <class T> struct msl_scalar {
    typedef typename msl_facts<T>::type type;
};

/* NVRTC 13.0 turns memcpy of 16-bit elements into byte stores with a wrong result on an H200. Clang
 * reports no memcpy to a runtime that looks for races. */
#if MSL_CUDA || MSL_RACES
#define MSL_COPY_VECTOR(to, from, n)                                                               \
    for (int i = 0; i < n; ++i) (to)[i] = (from)[i]
#else
#define MSL_COPY_VECTOR(to, from, n) MSL_COPY_BYTES(to, from, sizeof(to))
#endif

#if MSL_RACES
#define MSL_VECTOR_COPY(N_)                                                                        \
    MSL_FN vec(const vec &o) { MSL_COPY_VECTOR(d, o.d, N_); }
#else
#define MSL_VECTOR_COPY(N_) vec(const vec &) = default;
#endif

#define MSL_VECTOR_MEMBERS(N_)                                                                     \
    vec() = default;                                                                               \
    MSL_VECTOR_COPY(N_)                                                                            \
    template <class S, enable_if_t<is_arithmetic<S>::value, int> = 0>                              \
    constexpr MSL_FN vec(S s) : d{}                                                                \
    {                                                                                              \
        for (int i = 0; i < N_; ++i) d[i] = T(s);                                                  \
    }                                                                                              \
    template <class U, enable_if_t<!is_same<U, T>::value, int> = 0>                                \
    explicit MSL_FN vec(const vec<U, N_> &o)                                                       \
    {                                                                                              \
        for (int i = 0; i < N_; ++i) d[i] = T(o[i]);                                               \
    }                                                                                              \
    template <class U, int M, int... I, enable_if_t<sizeof...(I) == N_, int> = 0>                  \
    explicit MSL_FN vec(const msl_swizzle<U, M, I...> &o)                                          \
    {                                                                                              \
        auto v = o.value();                                                                        \
        for (int i = 0; i < N_; ++i) d[i] = T(v[i]);                                               \
    }                                                                                              \
    template <class A, class B, class... R>                                                        \
    constexpr MSL_FN vec(const A &a, const B &b, const R &...rest) : d{}                           \
    {                                                                                              \
        constexpr int given =                                                                      \
            ((msl_facts<A>::width + msl_facts<B>::width) + ... + msl_facts<R>::width);             \
        static_assert(given == N_, "wrong number of components in a vector constructor");          \
        int k = 0;                                                                                 \
        put(k, a);                                                                                 \
        put(k, b);                                                                                 \
        (put(k, rest), ...);                                                                       \
    }                                                                                              \
    template <class A> constexpr MSL_FN void put(int &k, const A &a)                               \
    {                                                                                              \
        if constexpr (msl_facts<A>::width == 1 && is_arithmetic<A>::value)                         \
            d[k++] = T(a);                                                                         \
        else                                                                                       \
            for (int i = 0; i < msl_facts<A>::width; ++i) d[k++] = T(a[i]);                        \
    }                                                                                              \
    MSL_FN vec &operator=(const vec &o)                                                            \
    {                                                                                              \
        MSL_COPY_VECTOR(d, o.d, N_);                                                               \
        return *this;                                                                              \
    }                                                                                              \
    MSL_FN T &operator[](int i) { return d[i]; }                                                   \
    MSL_FN const T &operator[](int i) const { return d[i]; }

#define MSL_S2(N_, a, A, b, B) msl_swizzle<T, N_, A, B> a##b
#define MSL_S3(N_, a, A, b, B, c, C) msl_swizzle<T, N_, A, B, C> a##b##c
#define MSL_S4(a, A, b, B, c, C, e, E) msl_swizzle<T, 4, A, B, C, E> a##b##c##e

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
    union {
        T d[2];
        struct {
            T x, y;
        };
        struct {
            T r, g;
        };
        MSL_S2(2, x, 0, x, 0);
        MSL_S2(2, x, 0, y, 1);
        MSL_S2(2, y, 1, x, 0);
        MSL_S2(2, y, 1, y, 1);
        MSL_S2(2, r, 0, g, 1);
        MSL_S3(2, x, 0, x, 0, x, 0);
        MSL_S3(2, y, 1, y, 1, y, 1);
    };
    MSL_VECTOR_MEMBERS(2)
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
    union {
        T d[3];
        struct {
            T x, y, z;
        };
        struct {
            T r, g, b;
        };
        MSL_S2(3, x, 0, x, 0);
        MSL_S2(3, x, 0, y, 1);
        MSL_S2(3, x, 0, z, 2);
        MSL_S2(3, y, 1, x, 0);
        MSL_S2(3, y, 1, y, 1);
        MSL_S2(3, y, 1, z, 2);
        MSL_S2(3, z, 2, x, 0);
        MSL_S2(3, z, 2, y, 1);
        MSL_S2(3, z, 2, z, 2);
        MSL_S3(3, x, 0, y, 1, z, 2);
        MSL_S3(3, z, 2, y, 1, x, 0);
        MSL_S3(3, x, 0, x, 0, x, 0);
    };
    MSL_VECTOR_MEMBERS(3);
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
    union {
        T d[4];
        struct {
            T x, y, z, w;
        };
        struct {
            T r, g, b, a;
        };
        MSL_S2(4, x, 0, x, 0);
        MSL_S2(4, x, 0, y, 1);
        MSL_S2(4, x, 0, z, 2);
        MSL_S2(4, x, 0, w, 3);
        MSL_S2(4, y, 1, x, 0);
        MSL_S2(4, y, 1, y, 1);
        MSL_S2(4, y, 1, z, 2);
        MSL_S2(4, y, 1, w, 3);
        MSL_S2(4, z, 2, x, 0);
        MSL_S2(4, z, 2, y, 1);
        MSL_S2(4, z, 2, z, 2);
        MSL_S2(4, z, 2, w, 3);
        MSL_S2(4, w, 3, x, 0);
        MSL_S2(4, w, 3, y, 1);
        MSL_S2(4, w, 3, z, 2);
        MSL_S2(4, w, 3, w, 3);
        MSL_S3(4, x, 0, y, 1, z, 2);
        MSL_S3(4, y, 1, z, 2, w, 3);
        MSL_S3(4, z, 2, y, 1, x, 0);
        MSL_S3(4, r, 0, g, 1, b, 2);
        MSL_S4(x, 0, y, 1, z, 2, w, 3);
        MSL_S4(w, 3, z, 2, y, 1, x, 0);
        MSL_S4(z, 2, w, 3, x, 0, y, 1);
        MSL_S4(y, 1, x, 0, w, 3, z, 2);
        MSL_S4(x, 0, x, 0, x, 0, x, 0);
        MSL_S4(y, 1, y, 1, y, 1, y, 1);
        MSL_S4(z, 2, z, 2, z, 2, z, 2);
        MSL_S4(w, 3, w, 3, w, 3, w, 3);
        MSL_S4(x, 0, y, 1, x, 0, y, 1);
        MSL_S4(z, 2, w, 3, z, 2, w, 3);
        MSL_S4(x, 0, z, 2, y, 1, w, 3);
    };
    MSL_VECTOR_MEMBERS(4);
};
#undef MSL_S2
#undef MSL_S3
#undef MSL_S4
#undef MSL_VECTOR_MEMBERS
#undef MSL_COPY_VECTOR

/* The vector that A op B gives: one side at least is a vector, element types are equal. */
template <class A, class B, class = void> struct msl_result {};
template <class A, class B>
struct msl_result<
    A, B,
    enable_if_t<(msl_facts<A>::width > 1) && msl_facts<A>::width == msl_facts<B>::width &&
                is_same<typename msl_facts<A>::type, typename msl_facts<B>::type>::value>> {
    typedef typename msl_facts<A>::value V;
};
template <class A, class B>
struct msl_result<A, B, enable_if_t<(msl_facts<A>::width > 1) && is_arithmetic<B>::value>> {
    typedef typename msl_facts<A>::value V;
};
template <class A, class B>
struct msl_result<A, B, enable_if_t<(msl_facts<B>::width > 1) && is_arithmetic<A>::value>> {
    typedef typename msl_facts<B>::value V;
};

#define MSL_OPERATOR(op)                                                                           \
    template <class A, class B, class V = typename msl_result<A, B>::V>                            \
    MSL_FN V operator op(const A &a, const B &b)                                                   \
    {                                                                                              \
        const V x(a), y(b);                                                                        \
        V r;                                                                                       \
        for (int i = 0; i < msl_facts<V>::width; ++i)                                              \
            r[i] = (typename msl_facts<V>::type)(x[i] op y[i]);                                    \
        return r;                                                                                  \
    }                                                                                              \
    template <class T, int N, class B, class V = typename msl_result<vec<T, N>, B>::V>             \
    MSL_FN vec<T, N> &operator op## = (vec<T, N> & a, const B &b)                                  \
    {                                                                                              \
        return a = a op b;                                                                         \
    }
MSL_OPERATOR(+);
MSL_OPERATOR(-);
MSL_OPERATOR(*);
MSL_OPERATOR(/);
MSL_OPERATOR(%);
MSL_OPERATOR(&);
MSL_OPERATOR(|);
MSL_OPERATOR(^);
MSL_OPERATOR(<<);
MSL_OPERATOR(>>);
#undef MSL_OPERATOR
#define MSL_OPERATOR(op)                                                                           \
    template <class A, class B, class V = typename msl_result<A, B>::V>                            \
    MSL_FN vec<bool, msl_facts<V>::width> operator op(const A &a, const B &b)                      \
    {                                                                                              \
        const V x(a), y(b);                                                                        \
        vec<bool, msl_facts<V>::width> r;                                                          \
        for (int i = 0; i < msl_facts<V>::width; ++i) r[i] = x[i] op y[i];                         \
        return r;                                                                                  \
    }
MSL_OPERATOR(==);
MSL_OPERATOR(!=);
MSL_OPERATOR(<);
MSL_OPERATOR(>);
MSL_OPERATOR(<=);
MSL_OPERATOR(>=);
MSL_OPERATOR(&&);
MSL_OPERATOR(||);
#undef MSL_OPERATOR
#define MSL_OPERATOR(op)                                                                           \
    template <class T, int N> MSL_FN vec<T, N> operator op(const vec<T, N> &a)                     \
    {                                                                                              \
        vec<T, N> r;                                                                               \
        for (int i = 0; i < N; ++i) r[i] = T(op a[i]);                                             \
        return r;                                                                                  \
    }
MSL_OPERATOR(-);
MSL_OPERATOR(~);
MSL_OPERATOR(!);
#undef MSL_OPERATOR

template <class V, class... A> MSL_FN V msl_make(const A &...a) { return V(a...); }

} // namespace metal
#endif

namespace metal
{

template <class T> using msl_scalar_t = typename msl_scalar<T>::type;

/* mslc writes (float4)x as msl_cast<float4>() ->* x: each component converts, no bits are cast. */
template <class V> struct msl_cast {};
template <class V, class A> MSL_CONSTEXPR MSL_FN V operator->*(msl_cast<V>, const A &a)
{
    return msl_make<V>(a);
}

/* packed_float3 and its kin: the alignment of one element. */
template <class T, int N> struct msl_packed {
    T d[N];
#if !MSL_CHECK
    msl_packed() = default;
    template <class S> MSL_FN msl_packed(const vec<S, N> &v)
    {
        for (int i = 0; i < N; ++i) d[i] = T(v[i]);
    }
    MSL_FN operator vec<T, N>() const
    {
        vec<T, N> r;
        for (int i = 0; i < N; ++i) r[i] = d[i];
        return r;
    }
#endif
    MSL_FN T &operator[](int i) { return d[i]; }
    MSL_FN const T &operator[](int i) const { return d[i]; }
};
#if MSL_CHECK /* clang's own vector of 3 has the size of 4 */
#define MSL_PACKED(T, N)                                                                           \
    conditional_t<N == 3, msl_packed<T, 3>, vec<T, N>> __attribute__((aligned(alignof(T))))
#else
#define MSL_PACKED(T, N) msl_packed<T, N>
#endif

template <class T, size_t N> struct array {
    T __v[N];
    MSL_FN T &operator[](size_t i) { return __v[i]; }
    MSL_FN const T &operator[](size_t i) const { return __v[i]; }
    static constexpr MSL_FN size_t size() { return N; }
};

} // namespace metal

#define MSL_NAMED(name, T, N)                                                                      \
    typedef metal::vec<T, N> name##N;                                                              \
    namespace metal                                                                                \
    {                                                                                              \
    typedef MSL_PACKED(T, N) packed_##name##N;                                                     \
    using ::name##N;                                                                               \
    }                                                                                              \
    using metal::packed_##name##N;
#define MSL_NAMES(name, T) MSL_NAMED(name, T, 2) MSL_NAMED(name, T, 3) MSL_NAMED(name, T, 4)
MSL_NAMES(bool, bool);
MSL_NAMES(half, half);
MSL_NAMES(bfloat, bfloat);
#if MSL_CUDA
/* CUDA owns the names float4, uint3, ...: ours take a prefix, and macros once they are declared. */
#define MSL_PREFIXED(T) MSL_NAMES(msl_##T, T)
MSL_FOR_INTEGERS(MSL_PREFIXED);
MSL_PREFIXED(float);
#undef MSL_PREFIXED
#include "cuda_names.h"
#else
#define MSL_NAMED_AS_ITSELF(T) MSL_NAMES(T, T)
MSL_FOR_INTEGERS(MSL_NAMED_AS_ITSELF);
MSL_NAMED_AS_ITSELF(float);
#undef MSL_NAMED_AS_ITSELF
#endif
#undef MSL_NAMES
#undef MSL_NAMED
#undef MSL_PACKED
