/* config.h: which backend reads a .metal file, and how it spells what Metal's own compiler knows.
 *
 *   MSL_CPU    (default) runs on the CPU runtime, SIMT by fibers; clang
 *   MSL_CHECK  is never run: real address spaces and builtin vectors; clang
 *   MSL_CUDA   the same source as a CUDA device program; NVRTC
 *
 * Owns address-space words, fixed-width integers and the macros of <metal_limits> and <metal_math>.
 */
#pragma once

#if !defined(MSL_CPU) && !defined(MSL_CHECK) && !defined(MSL_CUDA)
#define MSL_CPU 1
#endif

/* CUDA spells its own attributes with these words: there mslc takes them out of the source. */
#if MSL_CHECK
#define device __attribute__((opencl_global))
#define constant const __attribute__((opencl_constant))
#define threadgroup __attribute__((opencl_local))
#elif MSL_CPU
#define device
#define constant const
#define threadgroup
#endif
#if !MSL_CUDA
#define thread
#define kernel
#endif

/* What a static data member at program scope lives in. */
#if MSL_CHECK
#define MSL_CONSTANT constant
#else
#define MSL_CONSTANT const
#endif

#define METAL_FUNC inline __attribute__((always_inline))
#define MSL_CAT2(a, b) a##b
#define MSL_CAT(a, b) MSL_CAT2(a, b)

#if MSL_CUDA
#define MSL_CONSTEXPR
#define MSL_FN __device__ __forceinline__
#define MSL_COPY_BYTES(to, from, n) memcpy(to, from, n)
#define MSL_MATH(f) ::f
#else
#define MSL_CONSTEXPR constexpr
#define MSL_FN inline __attribute__((always_inline))
#define MSL_COPY_BYTES(to, from, n) __builtin_memcpy((void *)(to), (const void *)(from), n)
#define MSL_MATH(f) __builtin_##f
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong; /* 64 bits in Metal and on Linux */

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef ulong uintptr_t;
typedef decltype((char *)0 - (char *)0) ptrdiff_t;
#if !MSL_CUDA
typedef decltype(sizeof(0)) size_t;
#endif

/* Every integer and floating-point scalar but half, bfloat, float and bool, for X-macros. */
#define MSL_FOR_INTEGERS(X) X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong)

#if MSL_CUDA
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#else
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#endif
#define HUGE_VALF INFINITY
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define MAXHALF (half(65504.0f))
#define HALF_MAX (half(65504.0f))
#define M_PI_F 3.14159274f
#define M_PI_2_F 1.57079637f
#define M_1_PI_F 0.318309873f
#define M_E_F 2.71828183f
#define M_LN2_F 0.693147181f
#define M_LN10_F 2.30258512f
#define M_LOG2E_F 1.44269502f
#define M_LOG10E_F 0.434294492f
#define M_SQRT2_F 1.41421354f
#define M_SQRT1_2_F 0.707106769f
#define CHAR_BIT 8
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295u
