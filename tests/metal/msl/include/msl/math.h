/* math.h: <metal_math>, <metal_integer>, <metal_relational>, <metal_geometric>, <metal_pack>: the
 * part that compute kernels use.
 *
 * float goes through the compiler's builtin, half through float (rounded once), a vector component
 * by component. precise:: and fast:: are the same functions: results are those of precise math. */
#pragma once
#include "vector.h"

namespace metal
{

template <class To, class From> MSL_CONSTEXPR MSL_FN To as_type(From f)
{
    static_assert(sizeof(To) == sizeof(From), "as_type: sizes differ");
#if !MSL_CUDA
    if constexpr (__is_trivially_copyable(To) && __is_trivially_copyable(From))
        return __builtin_bit_cast(To, f);
    else
#endif
    {
        To t;
        MSL_COPY_BYTES(&t, &f, sizeof t);
        return t;
    }
}

/* ------------------------------------------------------------------ lifting to vectors */

#define MSL_EACH(call)                                                                             \
    {                                                                                              \
        vec<T, N> r;                                                                               \
        for (int i = 0; i < N; ++i) r[i] = call;                                                   \
        return r;                                                                                  \
    }
#define MSL_VECTOR_1(name)                                                                         \
    template <class T, int N>                                                                      \
    MSL_FN vec<T, N> name(vec<T, N> a) MSL_EACH(name((T)a[i])) MSL_SWIZZLE_1(name)
#define MSL_VECTOR_2(name)                                                                         \
    template <class T, int N>                                                                      \
    MSL_FN vec<T, N> name(vec<T, N> a, msl_nodeduce<vec<T, N>> b)                                  \
        MSL_EACH(name((T)a[i], (T)b[i])) template <class S, class T, int N,                        \
                                                   enable_if_t<is_arithmetic<S>::value, int> = 0>  \
        MSL_FN vec<T, N> name(S a, vec<T, N> b)                                                    \
    {                                                                                              \
        return name(msl_make<vec<T, N>>(a), b);                                                    \
    }                                                                                              \
    MSL_SWIZZLE_2(name)
#define MSL_VECTOR_3(name)                                                                         \
    template <class T, int N>                                                                      \
    MSL_FN vec<T, N> name(vec<T, N> a, msl_nodeduce<vec<T, N>> b, msl_nodeduce<vec<T, N>> c)       \
        MSL_EACH(name((T)a[i], (T)b[i], (T)c[i])) MSL_SWIZZLE_3(name)

/* A swizzle as the first argument: templates do not convert it. Clang's own vectors need none. */
#if MSL_CHECK
#define MSL_SWIZZLE_1(name)
#define MSL_SWIZZLE_2(name)
#define MSL_SWIZZLE_3(name)
#else
#define MSL_SWIZZLED template <class T, int N, int... I, class V = vec<T, sizeof...(I)>> MSL_FN V
#define MSL_SWIZZLE_1(name)                                                                        \
    MSL_SWIZZLED name(const msl_swizzle<T, N, I...> &a) { return name(a.value()); }
#define MSL_SWIZZLE_2(name)                                                                        \
    MSL_SWIZZLED name(const msl_swizzle<T, N, I...> &a, msl_nodeduce<V> b)                         \
    {                                                                                              \
        return name(a.value(), b);                                                                 \
    }
#define MSL_SWIZZLE_3(name)                                                                        \
    MSL_SWIZZLED name(const msl_swizzle<T, N, I...> &a, msl_nodeduce<V> b, msl_nodeduce<V> c)      \
    {                                                                                              \
        return name(a.value(), b, c);                                                              \
    }
#endif

/* ------------------------------------------------------------------ floating point */

#define MSL_FLOAT_1(name, expression)                                                              \
    MSL_FN float name(float x) { return expression; }                                              \
    MSL_FN half name(half h)                                                                       \
    {                                                                                              \
        const float x = (float)h;                                                                  \
        return (half)(expression);                                                                 \
    }                                                                                              \
    MSL_VECTOR_1(name)
#define MSL_FLOAT_2(name, expression)                                                              \
    MSL_FN float name(float x, float y) { return expression; }                                     \
    MSL_FN half name(half hx, half hy)                                                             \
    {                                                                                              \
        const float x = (float)hx, y = (float)hy;                                                  \
        return (half)(expression);                                                                 \
    }                                                                                              \
    MSL_VECTOR_2(name)

#define MSL_FLOAT_FUNCTIONS                                                                        \
    MSL_FLOAT_1(acos, MSL_MATH(acosf)(x))                                                          \
    MSL_FLOAT_1(acosh, MSL_MATH(acoshf)(x))                                                        \
    MSL_FLOAT_1(asin, MSL_MATH(asinf)(x))                                                          \
    MSL_FLOAT_1(asinh, MSL_MATH(asinhf)(x))                                                        \
    MSL_FLOAT_1(atan, MSL_MATH(atanf)(x))                                                          \
    MSL_FLOAT_1(atanh, MSL_MATH(atanhf)(x))                                                        \
    MSL_FLOAT_1(ceil, MSL_MATH(ceilf)(x))                                                          \
    MSL_FLOAT_1(cos, MSL_MATH(cosf)(x))                                                            \
    MSL_FLOAT_1(cosh, MSL_MATH(coshf)(x))                                                          \
    MSL_FLOAT_1(cospi, MSL_MATH(cosf)(M_PI_F * x))                                                 \
    MSL_FLOAT_1(exp, MSL_MATH(expf)(x))                                                            \
    MSL_FLOAT_1(exp10, MSL_MATH(powf)(10.0f, x))                                                   \
    MSL_FLOAT_1(exp2, MSL_MATH(exp2f)(x))                                                          \
    MSL_FLOAT_1(fabs, MSL_MATH(fabsf)(x))                                                          \
    MSL_FLOAT_1(floor, MSL_MATH(floorf)(x))                                                        \
    MSL_FLOAT_1(fract, x - MSL_MATH(floorf)(x))                                                    \
    MSL_FLOAT_1(log, MSL_MATH(logf)(x))                                                            \
    MSL_FLOAT_1(log10, MSL_MATH(log10f)(x))                                                        \
    MSL_FLOAT_1(log2, MSL_MATH(log2f)(x))                                                          \
    MSL_FLOAT_1(rint, MSL_MATH(rintf)(x))                                                          \
    MSL_FLOAT_1(round, MSL_MATH(roundf)(x))                                                        \
    MSL_FLOAT_1(rsqrt, 1.0f / MSL_MATH(sqrtf)(x))                                                  \
    MSL_FLOAT_1(sin, MSL_MATH(sinf)(x))                                                            \
    MSL_FLOAT_1(sinh, MSL_MATH(sinhf)(x))                                                          \
    MSL_FLOAT_1(sinpi, MSL_MATH(sinf)(M_PI_F * x))                                                 \
    MSL_FLOAT_1(sqrt, MSL_MATH(sqrtf)(x))                                                          \
    MSL_FLOAT_1(tan, MSL_MATH(tanf)(x))                                                            \
    MSL_FLOAT_1(tanh, MSL_MATH(tanhf)(x))                                                          \
    MSL_FLOAT_1(tanpi, MSL_MATH(tanf)(M_PI_F * x))                                                 \
    MSL_FLOAT_1(trunc, MSL_MATH(truncf)(x))                                                        \
    MSL_FLOAT_2(atan2, MSL_MATH(atan2f)(x, y))                                                     \
    MSL_FLOAT_2(copysign, MSL_MATH(copysignf)(x, y))                                               \
    MSL_FLOAT_2(divide, x / y)                                                                     \
    MSL_FLOAT_2(fdim, MSL_MATH(fdimf)(x, y))                                                       \
    MSL_FLOAT_2(fmax, MSL_MATH(fmaxf)(x, y))                                                       \
    MSL_FLOAT_2(fmin, MSL_MATH(fminf)(x, y))                                                       \
    MSL_FLOAT_2(fmod, MSL_MATH(fmodf)(x, y))                                                       \
    MSL_FLOAT_2(pow, MSL_MATH(powf)(x, y))                                                         \
    MSL_FLOAT_2(powr, MSL_MATH(powf)(x, y));
MSL_FLOAT_FUNCTIONS
namespace precise
{
MSL_FLOAT_FUNCTIONS
}
namespace fast
{
MSL_FLOAT_FUNCTIONS
}
#undef MSL_FLOAT_FUNCTIONS

MSL_FLOAT_1(abs, MSL_MATH(fabsf)(x));
MSL_FLOAT_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f);
MSL_FLOAT_1(saturate, MSL_MATH(fminf)(MSL_MATH(fmaxf)(x, 0.0f), 1.0f));
MSL_FLOAT_2(max, MSL_MATH(fmaxf)(x, y));
MSL_FLOAT_2(min, MSL_MATH(fminf)(x, y));
MSL_FLOAT_2(step, y < x ? 0.0f : 1.0f);
MSL_FLOAT_2(nextafter, MSL_MATH(nextafterf)(x, y));
#undef MSL_FLOAT_1
#undef MSL_FLOAT_2

MSL_FN float ldexp(float x, int e) { return MSL_MATH(ldexpf)(x, e); }
MSL_FN half ldexp(half x, int e) { return (half)MSL_MATH(ldexpf)((float)x, e); }
MSL_FN float frexp(float x, int &e) { return MSL_MATH(frexpf)(x, &e); }
MSL_FN float modf(float x, float &whole) { return MSL_MATH(modff)(x, &whole); }
MSL_FN float fma(float a, float b, float c) { return MSL_MATH(fmaf)(a, b, c); }
MSL_FN half fma(half a, half b, half c)
{
    return (half)MSL_MATH(fma)((double)(float)a, (double)(float)b, (double)(float)c);
}
MSL_VECTOR_3(fma)
#define MSL_THREE(S)                                                                               \
    MSL_FN S max3(S a, S b, S c) { return max(a, max(b, c)); }                                     \
    MSL_FN S min3(S a, S b, S c) { return min(a, min(b, c)); }                                     \
    MSL_FN S median3(S a, S b, S c) { return max(min(a, b), min(max(a, b), c)); }                  \
    MSL_FN S fmax3(S a, S b, S c) { return max3(a, b, c); }                                        \
    MSL_FN S fmin3(S a, S b, S c) { return min3(a, b, c); }                                        \
    MSL_FN S fmedian3(S a, S b, S c) { return median3(a, b, c); }                                  \
    MSL_FN S mix(S a, S b, S t) { return a + (b - a) * t; }                                        \
    MSL_FN S clamp(S x, S low, S high) { return min(max(x, low), high); }
MSL_THREE(float);
MSL_THREE(half);
#undef MSL_THREE
MSL_VECTOR_3(mix)

/* ------------------------------------------------------------------ integers */

/* One overload a type: a mixed call such as max(uint, int) is ambiguous, as with Apple's headers.
 */
#define MSL_INTEGER(T)                                                                             \
    MSL_FN T max(T a, T b) { return a > b ? a : b; }                                               \
    MSL_FN T min(T a, T b) { return a < b ? a : b; }                                               \
    MSL_FN T clamp(T x, T low, T high) { return x < low ? low : x > high ? high : x; }             \
    MSL_FN T abs(T x) { return T(x < T(0) ? T(0) - x : x); }                                       \
    MSL_FN T absdiff(T a, T b) { return T(a > b ? a - b : b - a); }
MSL_FOR_INTEGERS(MSL_INTEGER);
#undef MSL_INTEGER
MSL_VECTOR_3(clamp)

namespace precise
{
using metal::abs;
using metal::clamp;
using metal::fma;
using metal::ldexp;
using metal::max;
using metal::min;
using metal::saturate;
} // namespace precise
namespace fast
{
using metal::abs;
using metal::clamp;
using metal::fma;
using metal::ldexp;
using metal::max;
using metal::min;
using metal::saturate;
} // namespace fast

/* Every integer counts its own bits: popcount(uchar) <= 8, clz(ushort(1)) == 15. */
template <class T> MSL_FN T msl_popcount(T x)
{
    int n = 0;
    for (uint i = 0; i < sizeof(T) * 8; ++i) n += (int)((x >> i) & 1);
    return T(n);
}
template <class T> MSL_FN T msl_clz(T x)
{
    int n = 0;
    for (int i = (int)sizeof(T) * 8 - 1; i >= 0 && !((x >> i) & 1); --i) ++n;
    return T(n);
}
template <class T> MSL_FN T msl_ctz(T x)
{
    int n = 0;
    for (int i = 0; i < (int)sizeof(T) * 8 && !((x >> i) & 1); ++i) ++n;
    return T(n);
}
template <class T> MSL_FN T msl_reverse_bits(T x)
{
    T r = 0;
    for (uint i = 0; i < sizeof(T) * 8; ++i) r = T((r << 1) | ((x >> i) & 1));
    return r;
}
#define MSL_BITS(T)                                                                                \
    MSL_FN T popcount(T x) { return msl_popcount(x); }                                             \
    MSL_FN T clz(T x) { return msl_clz(x); }                                                       \
    MSL_FN T ctz(T x) { return msl_ctz(x); }                                                       \
    MSL_FN T reverse_bits(T x) { return msl_reverse_bits(x); }
MSL_BITS(char);
MSL_BITS(uchar);
MSL_BITS(short);
MSL_BITS(ushort);
MSL_BITS(long);
#if MSL_CUDA
MSL_BITS(ulong) MSL_FN uint popcount(uint x) { return (uint)__popc(x); }
MSL_FN uint clz(uint x) { return (uint)__clz(x); }
MSL_FN uint ctz(uint x) { return x ? (uint)__ffs(x) - 1 : 32u; }
MSL_FN uint reverse_bits(uint x) { return __brev(x); }
#else
MSL_FN uint popcount(uint x) { return (uint)__builtin_popcount(x); }
MSL_FN ulong popcount(ulong x) { return (ulong)__builtin_popcountl(x); }
MSL_FN uint clz(uint x) { return x ? (uint)__builtin_clz(x) : 32u; }
MSL_FN ulong clz(ulong x) { return x ? (ulong)__builtin_clzl(x) : 64u; }
MSL_FN uint ctz(uint x) { return x ? (uint)__builtin_ctz(x) : 32u; }
MSL_FN ulong ctz(ulong x) { return x ? (ulong)__builtin_ctzl(x) : 64u; }
MSL_FN uint reverse_bits(uint x) { return msl_reverse_bits(x); }
MSL_FN ulong reverse_bits(ulong x) { return msl_reverse_bits(x); }
#endif
MSL_FN int popcount(int x) { return (int)popcount((uint)x); }
MSL_FN int clz(int x) { return (int)clz((uint)x); }
MSL_FN int ctz(int x) { return (int)ctz((uint)x); }
MSL_FN int reverse_bits(int x) { return (int)reverse_bits((uint)x); }
#undef MSL_BITS
MSL_VECTOR_1(popcount)
MSL_FN uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
MSL_FN int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
template <class T> MSL_FN T rotate(T v, T n)
{
    constexpr T width = sizeof(T) * 8;
    n &= width - 1;
    return n ? T((v << n) | (v >> (width - n))) : v;
}
template <class T> MSL_FN T extract_bits(T x, uint offset, uint bits)
{
    const T mask = bits >= sizeof(T) * 8 ? ~T(0) : T((T(1) << bits) - 1);
    return bits == 0 ? T(0) : T((x >> offset) & mask);
}

/* ------------------------------------------------------------------ relational */

MSL_FN bool isnan(float x) { return x != x; }
MSL_FN bool isnan(half x) { return (float)x != (float)x; }
MSL_FN bool isinf(float x) { return MSL_MATH(fabsf)(x) == INFINITY; }
MSL_FN bool isinf(half x) { return isinf((float)x); }
template <class T> MSL_FN bool isfinite(T x) { return !isnan(x) && !isinf(x); }
MSL_FN bool signbit(float x) { return as_type<uint>(x) >> 31; }
#define MSL_SELECT(T)                                                                              \
    MSL_FN T select(T a, T b, bool c) { return c ? b : a; }
MSL_FOR_INTEGERS(MSL_SELECT);
MSL_SELECT(bool);
MSL_SELECT(half);
MSL_SELECT(float);
#undef MSL_SELECT
#if MSL_CHECK /* comparing clang's vectors gives integers where Metal has bool */
#define MSL_OF_CONDITION class B,
#define MSL_CONDITION vec<B, N>
#else
#define MSL_OF_CONDITION
#define MSL_CONDITION vec<bool, N>
#endif
template <class T, MSL_OF_CONDITION int N>
MSL_FN vec<T, N> select(vec<T, N> a, msl_nodeduce<vec<T, N>> b, MSL_CONDITION c)
    MSL_EACH(c[i] ? b[i] : a[i]) template <MSL_OF_CONDITION int N>
    MSL_FN bool any(MSL_CONDITION v)
{
    bool r = false;
    for (int i = 0; i < N; ++i) r = r || v[i];
    return r;
}
template <MSL_OF_CONDITION int N> MSL_FN bool all(MSL_CONDITION v)
{
    bool r = true;
    for (int i = 0; i < N; ++i) r = r && v[i];
    return r;
}
MSL_FN bool any(bool v) { return v; }
MSL_FN bool all(bool v) { return v; }
#undef MSL_OF_CONDITION
#undef MSL_CONDITION

/* ------------------------------------------------------------------ geometric, pack */

template <class T, int N> MSL_FN T dot(vec<T, N> a, msl_nodeduce<vec<T, N>> b)
{
    T s = T(a[0] * b[0]);
    for (int i = 1; i < N; ++i) s = T(s + a[i] * b[i]);
    return s;
}
#if !MSL_CHECK
template <class T, int N, int... I>
MSL_FN T dot(const msl_swizzle<T, N, I...> &a, msl_nodeduce<vec<T, sizeof...(I)>> b)
{
    return dot(a.value(), b);
}
#endif
template <class T, int N> MSL_FN T length_squared(vec<T, N> a) { return dot(a, a); }
template <class T, int N> MSL_FN T length(vec<T, N> a) { return sqrt(dot(a, a)); }

MSL_FN uint pack_float_to_snorm4x8(float4 v)
{
    uint r = 0;
    for (int i = 0; i < 4; ++i)
        r |= ((uint)(int)rint(clamp((float)v[i], -1.0f, 1.0f) * 127.0f) & 255u) << (8 * i);
    return r;
}
MSL_FN float4 unpack_unorm4x8_to_float(uint u)
{
    float4 r = 0;
    for (int i = 0; i < 4; ++i) r[i] = (float)((u >> (8 * i)) & 255u) / 255.0f;
    return r;
}
MSL_FN float4 unpack_snorm4x8_to_float(uint u)
{
    float4 r = 0;
    for (int i = 0; i < 4; ++i) r[i] = max((float)(char)((u >> (8 * i)) & 255u) / 127.0f, -1.0f);
    return r;
}

#undef MSL_EACH
#undef MSL_VECTOR_1
#undef MSL_VECTOR_2
#undef MSL_VECTOR_3
#undef MSL_SWIZZLE_1
#undef MSL_SWIZZLE_2
#undef MSL_SWIZZLE_3
#undef MSL_SWIZZLED

} // namespace metal
using metal::as_type;
