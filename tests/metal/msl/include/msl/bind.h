/* bind.h: from a kernel's C++ signature and the attributes that mslc read to a table of arguments
 * and a function that runs one thread. Included by cpu.h and cuda.h, which define msl_builtin. */
#pragma once

namespace msl
{

template <class... A> struct list {};
template <class F> struct signature;
template <class... A> struct signature<void (*)(A...)> {
    typedef list<A...> params;
    static constexpr int n = sizeof...(A);
};

template <class T> struct pointee {
    static constexpr unsigned size = sizeof(T), align = alignof(T);
};
template <> struct pointee<void> {
    static constexpr unsigned size = 1, align = 1;
};
template <> struct pointee<const void> : pointee<void> {};
template <class T> struct const_value {
    static constexpr int value = 0;
};
template <class T> struct const_value<const T> {
    static constexpr int value = 1;
};

/* By value: a builtin such as uint3 tid [[thread_position_in_grid]]. */
template <class A> struct param {
    static constexpr unsigned size = sizeof(A), align = alignof(A);
    static constexpr int is_reference = 0, is_const = 1;
    static MSL_FN A get(const msl_arg &arg, void *const *)
    {
        unsigned v[3] = {0, 0, 0};
        msl_builtin(arg.index, v);
        return convert((A *)0, v);
    }
    template <class T> static MSL_FN T convert(T *, const unsigned *v) { return T(v[0]); }
    template <class T, int N>
    static MSL_FN metal::vec<T, N> convert(metal::vec<T, N> *, const unsigned *v)
    {
        metal::vec<T, N> r;
        for (int i = 0; i < N; ++i) r[i] = T(v[i]);
        return r;
    }
};
template <class T> struct param<T *> : pointee<T> {
    static constexpr int is_reference = 0, is_const = const_value<T>::value;
    static MSL_FN T *get(const msl_arg &, void *const *p) { return (T *)*p; }
};
template <class T> struct param<T &> : pointee<T> {
    static constexpr int is_reference = 1, is_const = const_value<T>::value;
    static MSL_FN T &get(const msl_arg &, void *const *p) { return *(T *)*p; }
};

/* What mslc read of a parameter. */
struct attr {
    int kind, index;
    const char *name;
    int optional;
};
template <int... I> struct ints {};
template <int N, int... I> struct iota : iota<N - 1, N - 1, I...> {};
template <int... I> struct iota<0, I...> {
    typedef ints<I...> type;
};

template <class Fn, Fn F, const attr *At, class P, class I> struct bind_parameters;
template <class Fn, Fn F, const attr *At, class... A, int... I>
struct bind_parameters<Fn, F, At, list<A...>, ints<I...>> {
    static constexpr msl_arg table[sizeof...(A) + 1] = {
        {At[I].kind, At[I].index, At[I].name, param<A>::size, param<A>::align,
         param<A>::is_reference, param<A>::is_const, At[I].optional}...,
        {}};
    static MSL_ENTRY void entry(void *const *args) { F(param<A>::get(table[I], args + I)...); }
};
template <class Fn, Fn F, const attr *At>
using bind = bind_parameters<Fn, F, At, typename signature<Fn>::params,
                             typename iota<signature<Fn>::n>::type>;

} // namespace msl
