// repack.metal: GGUF blocks into packed tiles (docs/formats.md), losing nothing.
//
//   source  blocks [n, k / block]     codes, scales, biases: as docs/formats.md and block_types.h
//   Rows past n stay as the buffer was created: zero codes and scales.
//
//   Grid: one threadgroup a tile of 16 rows. Group: THREADS_repack (256), of which sixteen
//   neighbours write the sixteen rows' words of the same columns, 64 bytes.
//   Bytes: the source twice (a 4-bit byte holds two distant columns), the packed weight once.
//   Blocks begin at any byte, so that each byte is read alone. Operations: about ten a value. Runs
//   once, when a model is opened.
//
// Block layouts: ggml-common.h of the GGUF reference implementation.
#include <metal_stdlib>

#include "common.h"

using namespace metal;

inline bool repack_has_minimum(uint type)
{
    return type == MARLIN_GGML_Q4_1 || type == MARLIN_GGML_Q5_1;
}

inline uint repack_nibble(uint byte, bool is_high) { return is_high ? byte >> 4 : byte & 15; }

inline float repack_half(device const uchar *p)
{
    return float(as_type<half>(ushort(p[0] | p[1] << 8)));
}

// Code i of a block of 32, as stored: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
inline uint repack_code_32(uint type, device const uchar *block, uint i)
{
    device const uchar *p = block + (repack_has_minimum(type) ? 4 : 2);
    if (type == MARLIN_GGML_Q8_0) return p[i] ^ 128;
    if (type == MARLIN_GGML_Q4_0 || type == MARLIN_GGML_Q4_1)
        return repack_nibble(p[i % 16], i >= 16);
    const uint fifth = p[i / 8] >> i % 8 & 1;
    const uint code = repack_nibble(p[4 + i % 16], i >= 16) | fifth << 4;
    return code + (type == MARLIN_GGML_Q5_0 ? 32 - 16 : 0); // int6 and int5
}

// Code i of a block of 256, Q4_K or Q5_K.
inline uint repack_code_k(uint type, device const uchar *block, uint i)
{
    const uint group = i / 32, at = i % 32;
    device const uchar *low = block + (type == MARLIN_GGML_Q5_K ? 48 : 16);
    const uint code = repack_nibble(low[group / 2 * 32 + at], group % 2);
    if (type == MARLIN_GGML_Q4_K) return code;
    const uint fifth = block[16 + at] >> group & 1;
    return code | fifth << 4;
}

// Code i of a block of 256, Q6_K.
inline uint repack_code_q6_k(device const uchar *block, uint i)
{
    const uint part = i / 128, quarter = i % 128 / 32, at = i % 32;
    const uint low = block[part * 64 + quarter % 2 * 32 + at];
    const uint high = block[128 + part * 32 + at] >> 2 * quarter & 3;
    return repack_nibble(low, quarter >= 2) | high << 4;
}

// Code i of a block of 256, of two bits: of each half the bits 0-1 of all its 32 bytes, then 2-3.
inline uint repack_two_bits(device const uchar *qs, uint i)
{
    return qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

// A digit of base 3 of a byte, the first one in its highest places.
inline uint repack_third(uint byte, uint digit)
{
    const uint powers[5] = {1, 3, 9, 27, 81};
    return ((byte * powers[digit] & 255) * 3) >> 8;
}

// Code i of a block of 256, TQ1_0: five digits a byte, four in the last four bytes.
inline uint repack_code_tq1_0(device const uchar *p, uint i)
{
    if (i < 160) return repack_third(p[i % 32], i / 32);
    if (i < 240) return repack_third(p[32 + (i - 160) % 16], (i - 160) / 16);
    return repack_third(p[48 + (i - 240) % 4], (i - 240) / 4);
}

inline uint repack_code(uint type, device const uchar *block, uint i)
{
    switch (type) {
    case MARLIN_GGML_Q4_K:
    case MARLIN_GGML_Q5_K: return repack_code_k(type, block, i);
    case MARLIN_GGML_Q6_K: return repack_code_q6_k(block, i);
    case MARLIN_GGML_MXFP4: return repack_nibble(block[1 + i % 16], i >= 16);
    case MARLIN_GGML_NVFP4: return repack_nibble(block[4 + i / 16 * 8 + i % 8], i % 16 >= 8);
    case MARLIN_GGML_IQ4_NL: return repack_nibble(block[2 + i % 16], i >= 16);
    case MARLIN_GGML_IQ4_XS: return repack_nibble(block[8 + i / 32 * 16 + i % 16], i % 32 >= 16);
    case MARLIN_GGML_Q2_K: return repack_two_bits(block + 16, i);
    case MARLIN_GGML_Q3_K:
        return repack_two_bits(block + 32, i) | (block[i % 32] >> (i / 32) & 1) << 2;
    case MARLIN_GGML_TQ1_0: return repack_code_tq1_0(block, i);
    case MARLIN_GGML_TQ2_0: return repack_two_bits(block, i);
    case MARLIN_GGML_Q1_0: return (block[2 + i / 8] >> i % 8 & 1) * 2;
    case MARLIN_GGML_Q2_0: return block[2 + i / 4] >> i % 4 * 2 & 3;
    default: return repack_code_32(type, block, i);
    }
}

// (scale, bias) of group g of a block of 256, Q4_K or Q5_K, as numbers of six bits.
inline float2 repack_scale_k(device const uchar *block, uint g)
{
    device const uchar *s = block + 4;
    uint scale, minimum;
    if (g < 4) {
        scale = s[g] & 63;
        minimum = s[g + 4] & 63;
    } else {
        scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        minimum = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
    return float2(float(scale), float(minimum));
}

// Six bits of which the lower four and the upper two lie apart, less 32.
inline float repack_six_bits(uint low, uint high)
{
    return float(int((low & 15) | (high & 3) << 4) - 32);
}

inline float repack_scale_q3_k(device const uchar *block, uint g)
{
    device const uchar *s = block + 96;
    const uint low = s[g % 8] >> (g / 8 * 4), high = s[8 + g % 4] >> (g / 4 * 2);
    return repack_six_bits(low, high);
}

inline float repack_scale_iq4_xs(device const uchar *block, uint g)
{
    const uint low = block[4 + g / 2] >> (g % 2 * 4), high = block[2 + g / 4] >> (g % 4 * 2);
    return repack_six_bits(low, high);
}

// E4M3 without a sign; 0x7f is 0.
inline float repack_e4m3(uint bits)
{
    const uint exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 0x7f) return 0.0f;
    return exponent ? as_type<float>((exponent + 120) << 23 | mantissa << 20)
                    : float(mantissa) / 512.0f;
}

// The scale, less which a code's value is, for which code 1 is zero.
inline float2 repack_around_one(device const uchar *d)
{
    return float2(repack_half(d), -repack_half(d));
}

// (scale, bias) of group g of a block; of blocks of 256, what repack_steps() multiply.
inline float2 repack_scale(uint type, device const uchar *block, uint g)
{
    switch (type) {
    case MARLIN_GGML_Q4_K:
    case MARLIN_GGML_Q5_K: return repack_scale_k(block, g);
    case MARLIN_GGML_Q6_K: return float2(float(as_type<char>(block[192 + g])), 0.0f);
    case MARLIN_GGML_MXFP4: return float2(power_of(block[0]), 0.0f);
    case MARLIN_GGML_NVFP4: return float2(repack_e4m3(block[g]), 0.0f);
    case MARLIN_GGML_IQ4_XS: return float2(repack_scale_iq4_xs(block, g), 0.0f);
    case MARLIN_GGML_Q2_K: return float2(float(block[g] & 15), float(block[g] >> 4));
    case MARLIN_GGML_Q3_K: return float2(1.0f, 4.0f) * repack_scale_q3_k(block, g);
    case MARLIN_GGML_TQ1_0: return repack_around_one(block + 52);
    case MARLIN_GGML_TQ2_0: return repack_around_one(block + 64);
    case MARLIN_GGML_Q1_0:
    case MARLIN_GGML_Q2_0: return repack_around_one(block);
    case MARLIN_GGML_Q4_0: return float2(repack_half(block), -8.0f * repack_half(block));
    default:
        return float2(repack_half(block), repack_has_minimum(type) ? repack_half(block + 2) : 0.0f);
    }
}

// GGUF's llama rows pair (i, i + 1) of a head for RoPE; the packed rows pair (i, i + head_dim / 2).
inline uint repack_source_row(constant RepackParams &p, uint row)
{
    if (!p.permute_heads) return row;
    const uint dim = p.n / p.permute_heads, head = row / dim, i = row % dim;
    return head * dim + i % (dim / 2) * 2 + i / (dim / 2);
}

// What the int8 numbers of a block of 256 are multiplied by, float16 as its file has them: of
// scales, and of biases with the other sign.
inline ushort2 repack_steps(uint type, device const uchar *block)
{
    const uint at = type == MARLIN_GGML_Q6_K   ? 208
                    : type == MARLIN_GGML_Q3_K ? 108
                    : type == MARLIN_GGML_Q2_K ? 80
                                               : 0;
    device const uchar *d = block + at, *e = type == MARLIN_GGML_Q3_K ? d : d + 2;
    return ushort2(ushort(d[0] | d[1] << 8), ushort((e[0] | e[1] << 8) ^ 0x8000));
}

inline void repack_store(device uchar *to, MarlinBlockType type, uint at, float value)
{
    if (type.scale_bytes == 4) {
        ((device float *)to)[at] = value;
    } else if (type.scale_bytes == 2) {
        ((device half *)to)[at] = half(value);
    } else if (type.scale_bytes < 0) {
        to[at] = uchar(as_type<uint>(value) >> 23); // of a power of two
    } else {
        const uint a_block = type.values / type.group * MARLIN_ROW_TILE;
        to[ulong(at / a_block + 1) * MARLIN_BLOCK_STEP_BYTES + at] = uchar(int(value));
    }
}

// Word j of a row: bytes of four codes, nibbles of eight, or what lies above the nibbles, a bit or
// two, of as many codes as it has room for, after their nibbles.
inline uint repack_word(uint number, MarlinBlockType type, device const uchar *blocks, uint j)
{
    const uint above = type.bits % 4, columns = type.bits == 8 ? 4 : 8;
    const uint together = above ? 32 / above : columns, nibbles = together / columns;
    const uint in_turn = above ? nibbles + 1 : 1, at = j % in_turn;
    const bool is_above = at == nibbles;
    const uint column = j / in_turn * together + (is_above ? 0 : at * columns);
    device const uchar *block = blocks + column / type.values * type.bytes;
    uint word = 0;
    for (uint c = 0; c < (is_above ? together : columns); c++) {
        const uint code = repack_code(number, block, column % type.values + c);
        const uint part = is_above ? code >> 4 : type.bits == 8 ? code : code & 15;
        word |= part << (8 * (c % 4) + (is_above ? above : 4) * (c / 4));
    }
    return word;
}

[[kernel]] void repack(device const uchar *source [[buffer(0)]], device uint *codes [[buffer(1)]],
                       device uchar *scales [[buffer(2)]], device uchar *biases [[buffer(3)]],
                       constant RepackParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                       constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                       uint3 group [[threadgroup_position_in_grid]],
                       uint thread_index [[thread_index_in_threadgroup]],
                       uint3 threads [[threads_per_threadgroup]])
{
    // A thread keeps its row: the threads of a group are a multiple of the rows of a tile.
    const uint lane = thread_index % MARLIN_ROW_TILE;
    const uint tile = group.x, row = tile * MARLIN_ROW_TILE + lane;
    if (row >= p.n) return;
    const uint first = thread_index / MARLIN_ROW_TILE, stride = threads.x / MARLIN_ROW_TILE;
    const MarlinBlockType type = marlin_block_type(p.type);
    device const uchar *blocks =
        source + ulong(repack_source_row(p, row)) * (p.k / type.values) * type.bytes;

    const uint num_words = p.k * type.bits / 32;
    device uint *words = codes + ulong(tile) * num_words * MARLIN_ROW_TILE + lane;
    for (uint j = first; j < num_words; j += stride)
        words[j * MARLIN_ROW_TILE] = repack_word(p.type, type, blocks, j);

    const uint num_groups = p.k / type.group;
    for (uint g = first; g < num_groups; g += stride) {
        const uint column = g * type.group;
        device const uchar *block = blocks + column / type.values * type.bytes;
        float2 value = repack_scale(p.type, block, column % type.values / type.group);
        // A product with 1 could lose the smallest power of two, a denormal float.
        if (p.factor != 1.0f) value *= p.factor;
        const uint at = (tile * num_groups + g) * MARLIN_ROW_TILE + lane;
        repack_store(scales, type, at, value.x);
        if (call.words[3]) repack_store(biases, type, at, value.y);
    }
    if (type.scale_bytes != 1) return;

    const uint num_blocks = p.k / type.values;
    const uint block_bytes = MARLIN_BLOCK_STEP_BYTES + type.values / type.group * MARLIN_ROW_TILE;
    for (uint b = first; b < num_blocks; b += stride) {
        const ushort2 steps = repack_steps(p.type, blocks + ulong(b) * type.bytes);
        const ulong at = ulong(tile * num_blocks + b) * block_bytes;
        ((device ushort *)(scales + at))[lane] = steps.x;
        if (call.words[3]) ((device ushort *)(biases + at))[lane] = steps.y;
    }
}
