/* traits.h: <metal_type_traits> and <metal_limits>, as far as compute kernels use them. */
#pragma once
#include "scalars.h"

namespace metal
{

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> {
    typedef T type;
};
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class A, class C> struct conditional {
    typedef A type;
};
template <class A, class C> struct conditional<false, A, C> {
    typedef C type;
};
template <bool B, class A, class C> using conditional_t = typename conditional<B, A, C>::type;

template <class T, T V> struct integral_constant {
    static constexpr MSL_CONSTANT T value = V;
    typedef T value_type;
    typedef integral_constant type;
    constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class T> struct remove_cv {
    typedef T type;
};
template <class T> struct remove_cv<const T> {
    typedef T type;
};
template <class T> struct remove_cv<volatile T> {
    typedef T type;
};
template <class T> struct remove_cv<const volatile T> {
    typedef T type;
};
template <class T> struct remove_reference {
    typedef T type;
};
template <class T> struct remove_reference<T &> {
    typedef T type;
};
template <class T> struct remove_reference<T &&> {
    typedef T type;
};
template <class T> struct remove_addrspace {
    typedef T type;
};
#if MSL_CHECK
template <class T> struct remove_addrspace<device T> {
    typedef T type;
};
template <class T> struct remove_addrspace<threadgroup T> {
    typedef T type;
};
template <class T> struct remove_addrspace<constant T> {
    typedef const T type;
};
#endif
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> using remove_reference_t = typename remove_reference<T>::type;
template <class T> using remove_addrspace_t = typename remove_addrspace<T>::type;

template <class T> struct is_pointer : false_type {};
template <class T> struct is_pointer<T *> : true_type {};
template <class T> struct msl_is_floating : false_type {};
template <class T> struct msl_is_integer : false_type {};
#define MSL_IS(what, T)                                                                            \
    template <> struct what<T> : true_type {};
MSL_IS(msl_is_floating, float);
MSL_IS(msl_is_floating, half);
MSL_IS(msl_is_floating, bfloat);
#define MSL_IS_INTEGER(T) MSL_IS(msl_is_integer, T)
MSL_FOR_INTEGERS(MSL_IS_INTEGER);
MSL_IS_INTEGER(bool);
MSL_IS_INTEGER(signed char);
#undef MSL_IS_INTEGER
#undef MSL_IS
template <class T> struct is_floating_point : msl_is_floating<remove_cv_t<T>> {};
template <class T> struct is_integral : msl_is_integer<remove_cv_t<T>> {};
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T> struct is_unsigned : bool_constant<is_integral<T>::value && (T(0) < T(-1))> {};
template <class T> struct is_signed : bool_constant<is_arithmetic<T>::value && (T(-1) < T(0))> {};
template <class A, class B> struct is_base_of : bool_constant<__is_base_of(A, B)> {};

template <class T> T &&msl_declval();
template <class T> void msl_sink(T);
template <class A, class B> struct msl_converts {
    template <class X, class = decltype(msl_sink<B>(msl_declval<X>()))> static char test(int);
    template <class X> static long test(...);
};
template <class A, class B>
struct is_convertible : bool_constant<sizeof(msl_converts<A, B>::template test<A>(0)) == 1> {};

#define MSL_VALUE(name) template <class T> constexpr MSL_CONSTANT bool name##_v = name<T>::value;
MSL_VALUE(is_pointer);
MSL_VALUE(is_floating_point);
MSL_VALUE(is_integral);
MSL_VALUE(is_arithmetic);
MSL_VALUE(is_unsigned);
MSL_VALUE(is_signed);
#undef MSL_VALUE
template <class A, class B> constexpr MSL_CONSTANT bool is_same_v = is_same<A, B>::value;
template <class A, class B> constexpr MSL_CONSTANT bool is_base_of_v = is_base_of<A, B>::value;
template <class A, class B>
constexpr MSL_CONSTANT bool is_convertible_v = is_convertible<A, B>::value;

template <class T> struct make_unsigned {
    typedef T type;
};
#define MSL_UNSIGNED(S, U)                                                                         \
    template <> struct make_unsigned<S> {                                                          \
        typedef U type;                                                                            \
    };
MSL_UNSIGNED(char, uchar);
MSL_UNSIGNED(short, ushort);
MSL_UNSIGNED(int, uint);
MSL_UNSIGNED(long, ulong);
#undef MSL_UNSIGNED
template <class T> using make_unsigned_t = typename make_unsigned<T>::type;

template <class T> using uniform = T;
template <class T> constexpr MSL_FN T make_uniform(T x) { return x; }
template <class T> struct msl_same {
    typedef T type;
};
/* A parameter of this type takes no part in template deduction. */
template <class T> using msl_nodeduce = typename msl_same<T>::type;

/* ------------------------------------------------------------------ numeric_limits */

template <class T> struct numeric_limits;
#define MSL_LIMITS(T, low, high, bits)                                                             \
    template <> struct numeric_limits<T> {                                                         \
        static constexpr MSL_CONSTANT int digits = bits;                                           \
        static constexpr MSL_FN T min() { return low; }                                            \
        static constexpr MSL_FN T lowest() { return low; }                                         \
        static constexpr MSL_FN T max() { return high; }                                           \
    };
MSL_LIMITS(bool, false, true, 1);
MSL_LIMITS(char, -128, 127, 7);
MSL_LIMITS(signed char, -128, 127, 7);
MSL_LIMITS(uchar, 0, 255, 8);
MSL_LIMITS(short, -32768, 32767, 15);
MSL_LIMITS(ushort, 0, 65535, 16);
MSL_LIMITS(int, INT_MIN, INT_MAX, 31);
MSL_LIMITS(uint, 0, UINT_MAX, 32);
MSL_LIMITS(long, -0x7fffffffffffffffL - 1, 0x7fffffffffffffffL, 63);
MSL_LIMITS(ulong, 0, ~0ul, 64);
#undef MSL_LIMITS
/* Of a floating-point type min() is the least normal number. */
#define MSL_LIMITS(T, cx, least, greatest, eps, bits)                                              \
    template <> struct numeric_limits<T> {                                                         \
        static constexpr MSL_CONSTANT int digits = bits;                                           \
        static cx MSL_FN T min() { return T(least); }                                              \
        static cx MSL_FN T max() { return T(greatest); }                                           \
        static cx MSL_FN T lowest() { return T(-greatest); }                                       \
        static cx MSL_FN T epsilon() { return T(eps); }                                            \
        static cx MSL_FN T infinity() { return T(INFINITY); }                                      \
        static cx MSL_FN T quiet_NaN() { return T(NAN); }                                          \
    };
MSL_LIMITS(float, constexpr, FLT_MIN, FLT_MAX, FLT_EPSILON, 24);
MSL_LIMITS(half, MSL_CONSTEXPR, 6.103515625e-05f, 65504.0f, 9.765625e-04f, 11);
MSL_LIMITS(bfloat, MSL_CONSTEXPR, FLT_MIN, 3.3895313892515355e38f, 7.8125e-03f, 8);
#undef MSL_LIMITS

} // namespace metal
