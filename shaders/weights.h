// weights.h: packed weights (docs/formats.md) into floats: words of codes, scales, biases. Knows
// nothing of who multiplies them.
//
// A word is one row's: nibbles of 8 columns, 4 columns of int8, or what lies above the nibbles of
// 32 columns (int5) or 16 (int6). Codes come without scale and bias:
//   fp4    scale * fp4_low(word)     columns 0-3; fp4_high(word): columns 4-7
//   int4   scale * int4_low(word) + bias
//   int8   scale * int8_codes(word) (+ bias, where FLAGS has MARLIN_WEIGHT_BIAS)
//   fp8    scale * fp8_codes(word) * FP8_STEP
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

// What the sixteen codes of iq4 stand for.
constant float IQ4_VALUES[16] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
                                 1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f};

constant float NF4_VALUES[16] = {MARLIN_NF4_VALUES};

// Of the nibbles at the low end of each byte.
inline float4 nf4_low(uint word)
{
    return float4(NF4_VALUES[word & 15], NF4_VALUES[word >> 8 & 15], NF4_VALUES[word >> 16 & 15],
                  NF4_VALUES[word >> 24 & 15]);
}

// Four E4M3 bytes times 2^-8: a half has one exponent bit more, below the sign. Subnormal ones are
// denormal halves, as of fp4.
inline float4 fp8_codes(uint word)
{
    const uint even = (word << 7 & 0x3f803f80u) | (word << 8 & 0x80008000u);
    const uint odd = (word >> 1 & 0x3f803f80u) | (word & 0x80008000u);
    const float2 first = float2(as_type<half2>(even)), second = float2(as_type<half2>(odd));
    return float4(first.x, second.x, first.y, second.y);
}

// What fp8_codes() leaves out.
constant float FP8_STEP = 256.0f;

// Of the nibbles at the low end of each byte.
inline float4 iq4_low(uint word)
{
    return float4(IQ4_VALUES[word & 15], IQ4_VALUES[word >> 8 & 15], IQ4_VALUES[word >> 16 & 15],
                  IQ4_VALUES[word >> 24 & 15]);
}

// The four codes of 5 and of 6 bits of quad i of a word of nibbles and of quad j of one of what
// lies above, a byte each.
inline uint int5_bytes(uint word, uint i, uint high, uint j)
{
    return (word >> 4 * i & 0x0f0f0f0fu) | (high >> j & 0x01010101u) << 4;
}

inline uint int6_bytes(uint word, uint i, uint high, uint j)
{
    return (word >> 4 * i & 0x0f0f0f0fu) | (high >> 2 * j & 0x03030303u) << 4;
}

// The kinds, for templates. BITS: of a code. COLUMNS: of a word that is loaded: load(words,
// column): the word of a row that has a column, and the one of what lies above; words are
// MARLIN_ROW_TILE apart. quad(words, column): as codes, this and the next three columns.
// has_bias(): whether a bias a group is added.
struct Fp4Weight {
    enum { BITS = MARLIN_BITS_fp4, COLUMNS = 8 };
    static bool has_bias() { return false; }
    static uint2 load(device const uint *words, uint column)
    {
        return uint2(words[column / 8 * MARLIN_ROW_TILE], 0);
    }
    static float4 quad(uint2 words, uint column) { return fp4_low(words.x >> column % 8); }
};

struct Int4Weight {
    enum { BITS = MARLIN_BITS_int4, COLUMNS = 8 };
    static bool has_bias() { return true; }
    static uint2 load(device const uint *words, uint column)
    {
        return Fp4Weight::load(words, column);
    }
    static float4 quad(uint2 words, uint column) { return int4_low(words.x >> column % 8); }
};

struct Iq4Weight {
    enum { BITS = MARLIN_BITS_iq4, COLUMNS = 8 };
    static bool has_bias() { return false; }
    static uint2 load(device const uint *words, uint column)
    {
        return Fp4Weight::load(words, column);
    }
    static float4 quad(uint2 words, uint column) { return iq4_low(words.x >> column % 8); }
};

struct Nf4Weight {
    enum { BITS = MARLIN_BITS_nf4, COLUMNS = 8 };
    static bool has_bias() { return false; }
    static uint2 load(device const uint *words, uint column)
    {
        return Fp4Weight::load(words, column);
    }
    static float4 quad(uint2 words, uint column) { return nf4_low(words.x >> column % 8); }
};

struct Int5Weight {
    enum { BITS = MARLIN_BITS_int5, COLUMNS = 8 };
    static bool has_bias() { return true; }
    static uint2 load(device const uint *words, uint column)
    {
        words += column / 32 * 5 * MARLIN_ROW_TILE;
        return uint2(words[column % 32 / 8 * MARLIN_ROW_TILE], words[4 * MARLIN_ROW_TILE]);
    }
    static float4 quad(uint2 words, uint column)
    {
        const uint bytes = int5_bytes(words.x, column / 4 % 2, words.y, column / 4 % 8);
        return float4(as_type<uchar4>(bytes));
    }
};

struct Int6Weight {
    enum { BITS = MARLIN_BITS_int6, COLUMNS = 8 };
    static bool has_bias() { return false; }
    static uint2 load(device const uint *words, uint column)
    {
        words += column / 16 * 3 * MARLIN_ROW_TILE;
        return uint2(words[column % 16 / 8 * MARLIN_ROW_TILE], words[2 * MARLIN_ROW_TILE]);
    }
    static float4 quad(uint2 words, uint column)
    {
        const uint bytes = int6_bytes(words.x, column / 4 % 2, words.y, column / 4 % 4);
        return float4(as_type<uchar4>(bytes)) - 32.0f;
    }
};

struct Int8Weight {
    enum { BITS = MARLIN_BITS_int8, COLUMNS = 4 };
    static bool has_bias() { return FLAGS & MARLIN_WEIGHT_BIAS; }
    static uint2 load(device const uint *words, uint column)
    {
        return uint2(words[column / 4 * MARLIN_ROW_TILE], 0);
    }
    static float4 quad(uint2 words, uint) { return int8_codes(words.x); }
};

struct Fp8Weight {
    enum { BITS = MARLIN_BITS_fp8, COLUMNS = 4 };
    static bool has_bias() { return false; }
    static uint2 load(device const uint *words, uint column)
    {
        return Int8Weight::load(words, column);
    }
    static float4 quad(uint2 words, uint) { return fp8_codes(words.x) * FP8_STEP; }
};

// A scale or bias of a row of a tile whose rows have num_groups of them: float32, float16, an
// exponent, or an int8 times a float16 of its block or a bfloat16 of its row.
inline float scale_at(device const uchar *scales, uint tile, uint num_groups, uint group, uint row)
{
    const uint at = (tile * num_groups + group) * MARLIN_ROW_TILE + row;
    if (FLAGS & MARLIN_SCALE_ROW) {
        scales += ulong(tile) * (MARLIN_BLOCK_STEP_BYTES + num_groups * MARLIN_ROW_TILE);
        const uint bits = ((device const ushort *)scales)[row];
        scales += MARLIN_BLOCK_STEP_BYTES + group * MARLIN_ROW_TILE;
        return as_type<float>(bits << 16) * float(as_type<char>(scales[row]));
    }
    if (FLAGS & MARLIN_SCALE_F32) return ((device const float *)scales)[at];
    if (FLAGS & MARLIN_SCALE_EXP) return power_of(scales[at]);
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
