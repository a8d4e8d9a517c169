/* scalars.h: half and bfloat.
 *
 * half is the compiler's _Float16 where there is one. Elsewhere both are classes that round after
 * every operation: float is exact enough that a product or sum of two halves rounds once. */
#pragma once
#include "config.h"

#if !MSL_CUDA
typedef _Float16 half;
#else
struct half {
    ushort bits;
    half() = default;
#define MSL_FROM(S)                                                                                \
    MSL_FN half(S s) : bits(rounded((float)s)) {}
    MSL_FOR_INTEGERS(MSL_FROM);
    MSL_FROM(float);
    MSL_FROM(double);
    MSL_FROM(bool);
#undef MSL_FROM
    static MSL_FN ushort rounded(float f)
    {
        ushort r;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f));
        return r;
    }
    MSL_FN operator float() const
    {
        float r;
        asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
        return r;
    }
    MSL_FN half &operator+=(half o) { return *this = half((float)*this + (float)o); }
    MSL_FN half &operator-=(half o) { return *this = half((float)*this - (float)o); }
    MSL_FN half &operator*=(half o) { return *this = half((float)*this * (float)o); }
    MSL_FN half &operator/=(half o) { return *this = half((float)*this / (float)o); }
};
/* Only of two halves: anything else converts to float, as in Metal. */
template <class A, class B> struct msl_two_halves {};
template <> struct msl_two_halves<half, half> {
    typedef half type;
};
#define MSL_OPERATOR(op)                                                                           \
    template <class A, class B> MSL_FN typename msl_two_halves<A, B>::type operator op(A a, B b)   \
    {                                                                                              \
        return half((float)a op(float) b);                                                         \
    }
MSL_OPERATOR(+);
MSL_OPERATOR(-);
MSL_OPERATOR(*);
MSL_OPERATOR(/);
#undef MSL_OPERATOR
MSL_FN half operator-(half a) { return half(-(float)a); }
#endif

#if MSL_CHECK
typedef __bf16 bfloat;
#else
struct bfloat {
    ushort bits;
    bfloat() = default;
    /* Never implicit from another floating-point type. */
#define MSL_FROM(S)                                                                                \
    MSL_CONSTEXPR MSL_FN explicit bfloat(S s) : bits(rounded((float)s)) {}
    MSL_FROM(float);
    MSL_FROM(double);
    MSL_FROM(half);
#undef MSL_FROM
#define MSL_FROM(S)                                                                                \
    MSL_CONSTEXPR MSL_FN bfloat(S s) : bits(rounded((float)s)) {}
    MSL_FOR_INTEGERS(MSL_FROM);
    MSL_FROM(bool);
#undef MSL_FROM
#if MSL_CUDA
    template <class To, class From> static MSL_FN To bits_of(From f)
    {
        To t;
        memcpy(&t, &f, sizeof t);
        return t;
    }
#else
    template <class To, class From> static constexpr MSL_FN To bits_of(From f)
    {
        return __builtin_bit_cast(To, f);
    }
#endif
    /* To nearest, ties to even; a NaN stays one. */
    static MSL_CONSTEXPR MSL_FN ushort rounded(float f)
    {
        const uint u = bits_of<uint>(f);
        if ((u & 0x7fffffffu) > 0x7f800000u) return ushort((u >> 16) | 0x40u);
        return ushort((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
    MSL_CONSTEXPR MSL_FN operator float() const { return bits_of<float>((uint)bits << 16); }
#define MSL_ASSIGN(op)                                                                             \
    MSL_CONSTEXPR MSL_FN bfloat &operator op## = (bfloat o)                                        \
    {                                                                                              \
        return *this = bfloat((float)*this op(float) o);                                           \
    }
    MSL_ASSIGN(+);
    MSL_ASSIGN(-);
    MSL_ASSIGN(*);
    MSL_ASSIGN(/);
#undef MSL_ASSIGN
};
/* bfloat with a bfloat or an integer is a bfloat; with a float, everything is float. */
template <class A, class B> struct msl_bfloat_result {};
template <> struct msl_bfloat_result<bfloat, bfloat> {
    typedef bfloat type;
};
#define MSL_WITH(S)                                                                                \
    template <> struct msl_bfloat_result<bfloat, S> {                                              \
        typedef bfloat type;                                                                       \
    };                                                                                             \
    template <> struct msl_bfloat_result<S, bfloat> {                                              \
        typedef bfloat type;                                                                       \
    };
MSL_FOR_INTEGERS(MSL_WITH);
MSL_WITH(bool);
#undef MSL_WITH
#define MSL_OPERATOR(op)                                                                           \
    template <class A, class B>                                                                    \
    MSL_CONSTEXPR MSL_FN typename msl_bfloat_result<A, B>::type operator op(A a, B b)              \
    {                                                                                              \
        return bfloat((float)a op(float) b);                                                       \
    }
MSL_OPERATOR(+);
MSL_OPERATOR(-);
MSL_OPERATOR(*);
MSL_OPERATOR(/);
#undef MSL_OPERATOR
MSL_CONSTEXPR MSL_FN bfloat operator-(bfloat a) { return bfloat(-(float)a); }
#endif

namespace metal
{
using ::bfloat;
using ::half;
using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;
} // namespace metal
