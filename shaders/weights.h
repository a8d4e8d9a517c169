// weights.h: packed weights (docs/formats.md) into floats: words of codes, scales, biases. Knows
// nothing of who multiplies them.
//
// A word is one row's: 8 columns of fp4 and int4, 4 columns of int8. Codes come without scale and
// bias:
//   fp4    scale * fp4_low(word)     columns 0-3; fp4_high(word): columns 4-7
//   int4   scale * int4_low(word) + bias
//   int8   scale * int8_codes(word) (+ bias, where FLAGS has MARLIN_WEIGHT_BIAS)
#ifndef MARLIN_WEIGHTS_H
#define MARLIN_WEIGHTS_H

#include "common.h"

// The nibbles at bits 0 and 16 as E2M1, times 2^-14: exponent and mantissa are put where half has
// the lowest exponent bits and the highest mantissa bit. 0.5 is then a denormal half, which Apple
// GPUs keep (MLX decodes fp4 so).
inline half2 fp4_pair(uint word)
{
    return as_type<half2>((word & 0x00070007u) << 9 | (word & 0x00080008u) << 12);
}

// What fp4_pair() leaves out.
constant float FP4_STEP = 16384.0f;

inline float4 fp4_low(uint word)
{
    const float2 even = float2(fp4_pair(word)), odd = float2(fp4_pair(word >> 8));
    return float4(even.x, odd.x, even.y, odd.y) * FP4_STEP;
}

inline float4 fp4_high(uint word) { return fp4_low(word >> 4); }

inline float4 int4_low(uint word) { return float4(as_type<uchar4>(word & 0x0f0f0f0fu)); }

inline float4 int4_high(uint word) { return float4(as_type<uchar4>(word >> 4 & 0x0f0f0f0fu)); }

inline float4 int8_codes(uint word) { return float4(as_type<uchar4>(word)) - 128.0f; }

// The three kinds, for templates. COLUMNS: of a word. quad(word, i): columns 4i to 4i + 3 as codes.
// has_bias(): whether a bias a group is added.
struct Fp4Weight {
    enum { COLUMNS = 32 / MARLIN_BITS_fp4 };
    static bool has_bias() { return false; }
    static float4 quad(uint word, uint i) { return fp4_low(word >> 4 * i); }
};

struct Int4Weight {
    enum { COLUMNS = 32 / MARLIN_BITS_int4 };
    static bool has_bias() { return true; }
    static float4 quad(uint word, uint i) { return int4_low(word >> 4 * i); }
};

struct Int8Weight {
    enum { COLUMNS = 32 / MARLIN_BITS_int8 };
    static bool has_bias() { return FLAGS & MARLIN_WEIGHT_BIAS; }
    static float4 quad(uint word, uint) { return int8_codes(word); }
};

// Value `at` of scales or biases: float32, float16, or an int8 times a float16 of its block.
inline float scale_at(device const uchar *scales, uint at)
{
    if (FLAGS & MARLIN_SCALE_F32) return ((device const float *)scales)[at];
    if (FLAGS & MARLIN_SCALE_BLOCK) {
        const uint a_block = MARLIN_BLOCK_COLUMNS / GROUP_SIZE * MARLIN_ROW_TILE;
        scales += ulong(at / a_block) * (MARLIN_BLOCK_STEP_BYTES + a_block);
        const float number = float(as_type<char>(scales[MARLIN_BLOCK_STEP_BYTES + at % a_block]));
        return float(((device const half *)scales)[at % MARLIN_ROW_TILE]) * number;
    }
    return float(((device const half *)scales)[at]);
}

// Dense weights. Rows may begin at any element, so quads are no wider loads than their elements.
struct F32Weight {
    typedef float type;
    static float one(float weight) { return weight; }
    static float4 quad(device const float *w) { return float4(w[0], w[1], w[2], w[3]); }
};

struct F16Weight {
    typedef half type;
    static float one(half weight) { return float(weight); }
    static float4 quad(device const half *w) { return float4(half4(w[0], w[1], w[2], w[3])); }
};

// Bfloat16 as its bits, the upper half of a float's.
struct Bf16Weight {
    typedef ushort type;
    static float one(ushort weight) { return as_type<float>(uint(weight) << 16); }
    static float4 quad(device const ushort *w)
    {
        return as_type<float4>(uint4(w[0], w[1], w[2], w[3]) << 16);
    }
};

#endif
