/* simd.h: the few vector operations that kernels are written in, once for each instruction set.
 *
 *   V_LANES                float lanes of a vector; 16 % V_LANES == 0
 *   vf, vi                 V_LANES floats; V_LANES int32 or 4 * V_LANES bytes
 *   vi_or_bits(a, b, i, m) a | the bits m of each byte, which b has i - 4 places higher; m 0x10 or
 *                          0x30
 *   vi_dot4(a, u, s)       a[i] + sum over j < 4 of u[4i+j] * s[4i+j]; u unsigned and at most 127,
 * s signed vi_dot4_off(a, u, s)   the same for bytes stored with 128 added: sum of (u - 128) * s,
 * given that a began as vi_begin_off(-128 * sum of s), which an instruction set without u8 x s8
 * ignores vf_store_i8            rounds to nearest even; values are within [-127, 127]
 *   vf_from_e4m3(a, w)     w[i] of byte i of each word, as f32_from_e4m3(), times 2^-8
 *   vf_look_up(a, i, t)    t[the four bits of each word from bit i on]
 *
 *   vf_reduce_add(a)       the sum of sixteen lanes, a[V_PARTS]: with f[i] = lane i + lane i + 8,
 *                          ((f0 + f1) + (f2 + f3)) + ((f4 + f5) + (f6 + f7))
 *
 * Each operation is exact or correctly rounded in every set, and sums over a row run in sixteen
 * lanes whatever V_LANES is, so that every set gives the same bits. */
#ifndef MARLIN_SIMD_H
#define MARLIN_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(MARLIN_ISA_AVX512)
#include "cpu/simd_avx512.h"
#elif defined(MARLIN_ISA_AVX2)
#include "cpu/simd_avx2.h"
#elif defined(MARLIN_ISA_NEON) || defined(MARLIN_ISA_I8MM)
#include "cpu/simd_neon.h"
#else
#include "cpu/simd_scalar.h"
#endif

#define V_PARTS (16 / V_LANES)
#define INLINE static inline __attribute__((always_inline, unused))

#define MARLIN_PASTE2(a, b) a##_##b
#define MARLIN_PASTE(a, b) MARLIN_PASTE2(a, b)
/* The name of a kernel in this build of the file: name_avx512, ... */
#define ISA(name) MARLIN_PASTE(name, MARLIN_ISA_SUFFIX)

/* The head of a kernel: units [begin, end) of call (cpu.h, marlin_run). */
#define KERNEL(name)                                                                               \
    int ISA(name)(const marlin_call *call, int64_t begin, int64_t end, uint8_t *scratch)

/* The kernels of a linear layer, for few rows and for many: a GPU has two, here both are `run`, an
 * expression of call, begin and end. */
#define LINEAR_KERNELS(prefix, kind, run)                                                          \
    static __attribute__((noinline)) int linear_##prefix##kind(const marlin_call *call,            \
                                                               int64_t begin, int64_t end)         \
    {                                                                                              \
        return run;                                                                                \
    }                                                                                              \
    KERNEL(matvec_##prefix##kind)                                                                  \
    {                                                                                              \
        (void)scratch;                                                                             \
        return linear_##prefix##kind(call, begin, end);                                            \
    }                                                                                              \
    KERNEL(matmul_##prefix##kind)                                                                  \
    {                                                                                              \
        (void)scratch;                                                                             \
        return linear_##prefix##kind(call, begin, end);                                            \
    }

INLINE float f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t bits_from_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* 2^(e - 127); 255 is no number, 2^-127 a subnormal one. */
INLINE float f32_from_exponent(uint8_t e)
{
    return f32_from_bits(e == 255 ? 0x7fc00000u : e ? (uint32_t)e << 23 : 0x00400000u);
}

/* IEEE half to float, subnormals kept: scale the mantissa by a power of two instead of shifting it
 * by hand. */
INLINE float f32_from_f16(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    if (magnitude >= 0x0f800000u)
        return f32_from_bits(sign | 0x70000000u | magnitude); /* inf, nan */
    float value =
        f32_from_bits(magnitude) * f32_from_bits(0x77800000u); /* 2^112 moves the exponent's bias */
    return f32_from_bits(sign | bits_from_f32(value));
}

/* E4M3 without its NaN: of a half's exponents it has the upper ones, 8 less. */
INLINE float f32_from_e4m3(uint8_t code)
{
    return f32_from_f16((uint16_t)((code & 127) << 7 | (code & 128) << 8)) * 256.0f;
}

/* Float to IEEE half, round to nearest even; out of range becomes the largest finite half and NaN
 * zero. A stored key or value is always finite: in a masked lane 0 * inf or 0 * NaN would be NaN,
 * and the block may be another request's by then. */
INLINE uint16_t f16_from_f32(float value)
{
    uint32_t bits = bits_from_f32(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return 0;
    if (bits >= 0x477fe000u) return (uint16_t)(sign | 0x7bff);
    if (bits <
        0x38800000u) { /* subnormal half: adding 0.5 leaves the rounded mantissa in the low bits */
        float shifted = f32_from_bits(bits) + 0.5f;
        return (uint16_t)(sign | (bits_from_f32(shifted) - 0x3f000000u));
    }
    bits += 0xfffu + (bits >> 13 & 1);
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

/* 2^x for x <= 0 (0 below -126), within 2 units in the last place; 2^0 is exactly 1, and of NaN it
 * is NaN: x86's maximum is its second operand then.
 * Coefficients of 2^f on [-0.5, 0.5]: Cephes, exp2f. */
INLINE vf vf_exp2(vf x)
{
    vf bounded = vf_max(vf_set1(-127.0f), x);
    vf whole = vf_round(bounded);
    vf f = vf_sub(bounded, whole);
    vf p = vf_set1(1.535336188319500e-4f);
    p = vf_fma(p, f, vf_set1(1.339887440266574e-3f));
    p = vf_fma(p, f, vf_set1(9.618437357674640e-3f));
    p = vf_fma(p, f, vf_set1(5.550332471162809e-2f));
    p = vf_fma(p, f, vf_set1(2.402264791363012e-1f));
    p = vf_fma(p, f, vf_set1(6.931472028550421e-1f));
    p = vf_fma(p, f, vf_set1(1.0f));
    return vf_scale2(p, whole);
}

/* tanh(x) of any x, NaN of NaN, within 1e-7: (1 - e) / (1 + e) with e = exp(-2 |x|), and the sign
 * of x. From 20 on it is 1. */
INLINE vf vf_tanh(vf x)
{
    vf one = vf_set1(1.0f), least = vf_set1(-20.0f);
    x = vf_sub(vf_zero(), vf_max(least, vf_sub(vf_zero(), vf_max(least, x))));
    vf size = vf_abs(x), e = vf_exp2(vf_mul(size, vf_set1(-2.88539008f)));
    vf sign = vf_div(x, vf_max(size, vf_set1(1e-30f)));
    return vf_mul(vf_div(vf_sub(one, e), vf_add(one, e)), sign);
}

#endif
