/* kernels_repack.c: GGUF blocks into packed tiles (docs/formats.md), losing nothing. Unit: a tile
 * of 16 rows.
 *
 *   source  blocks [n, k / block]     codes, scales, biases: as docs/formats.md and block_types.h
 *
 * Block layouts: ggml-common.h of the GGUF reference implementation. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

typedef struct {
    uint8_t *codes; /* [k], as stored: 0..15 or with 128 added */
    float *scales;  /* [k / group]; of blocks: the int8 numbers */
    float *biases;  /* the same */
} decoded;

INLINE float half_at(const uint8_t *p) { return f32_from_f16((uint16_t)(p[0] | p[1] << 8)); }

/* One block of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0. */
static void decode_32(uint32_t type, const uint8_t *p, uint8_t *codes, float *scale, float *bias)
{
    int has_minimum = type == MARLIN_GGML_Q4_1 || type == MARLIN_GGML_Q5_1;
    int is_5_bit = type == MARLIN_GGML_Q5_0 || type == MARLIN_GGML_Q5_1;
    *scale = half_at(p);
    *bias = has_minimum ? half_at(p + 2) : type == MARLIN_GGML_Q4_0 ? -8.0f * *scale : 0.0f;
    p += has_minimum ? 4 : 2;
    if (type == MARLIN_GGML_Q8_0) {
        for (int i = 0; i < 32; i++) codes[i] = p[i] ^ 128;
        return;
    }
    uint32_t high = 0;
    if (is_5_bit) {
        memcpy(&high, p, 4);
        p += 4;
    }
    for (int i = 0; i < 16; i++) {
        codes[i] = p[i] & 15;
        codes[16 + i] = p[i] >> 4;
    }
    if (!is_5_bit) return;
    int offset = type == MARLIN_GGML_Q5_0 ? 32 - 16 : 0; /* int6 and int5 */
    for (int i = 0; i < 32; i++) codes[i] = (uint8_t)((codes[i] | (high >> i & 1) << 4) + offset);
}

/* Six-bit scale and minimum of sub-block j of a K block. */
static void k_scale(const uint8_t *s, int j, int *scale, int *minimum)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *minimum = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* One block of 256: Q4_K or Q5_K, eight groups of 32. */
static void decode_k(uint32_t type, const uint8_t *p, uint8_t *codes, float *scales, float *biases)
{
    int is_5_bit = type == MARLIN_GGML_Q5_K;
    const uint8_t *high = p + 16, *low = is_5_bit ? p + 48 : p + 16;
    for (int j = 0; j < 8; j++) {
        int scale, minimum;
        k_scale(p + 4, j, &scale, &minimum);
        scales[j] = (float)scale;
        biases[j] = (float)minimum;
        for (int i = 0; i < 32; i++) {
            int byte = low[j / 2 * 32 + i];
            int code = j % 2 ? byte >> 4 : byte & 15;
            if (is_5_bit) code |= (high[i] >> j & 1) << 4;
            codes[j * 32 + i] = (uint8_t)code;
        }
    }
}

/* One block of 256: Q6_K, sixteen groups of 16. */
static void decode_q6_k(const uint8_t *p, uint8_t *codes, float *scales)
{
    for (int j = 0; j < 16; j++) scales[j] = (float)(int8_t)p[192 + j];
    for (int i = 0; i < 256; i++) {
        int part = i / 128, quarter = i % 128 / 32, l = i % 32;
        int low = p[part * 64 + quarter % 2 * 32 + l];
        int high = p[128 + part * 32 + l] >> (2 * quarter) & 3;
        codes[i] = (uint8_t)((quarter < 2 ? low & 15 : low >> 4) | high << 4);
    }
}

/* One block of 32: MXFP4, E2M1 codes and a scale of 2^(e - 127). 255 is no number, 2^-127 a
 * subnormal one. */
static void decode_mxfp4(const uint8_t *p, uint8_t *codes, float *scale)
{
    *scale = f32_from_bits(p[0] == 255 ? 0x7fc00000u : p[0] ? (uint32_t)p[0] << 23 : 0x00400000u);
    for (int i = 0; i < 16; i++) {
        codes[i] = p[1 + i] & 15;
        codes[16 + i] = p[1 + i] >> 4;
    }
}

/* Code i of 256, of two bits: of each half the bits 0-1 of all its 32 bytes, then 2-3, and so on.
 */
INLINE int two_bits(const uint8_t *qs, int i)
{
    return qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

/* One block of 256: Q2_K, sixteen groups of 16. */
static void decode_q2_k(const uint8_t *p, uint8_t *codes, float *scales, float *biases)
{
    for (int j = 0; j < 16; j++) {
        scales[j] = (float)(p[j] & 15);
        biases[j] = (float)(p[j] >> 4);
    }
    for (int i = 0; i < 256; i++) codes[i] = (uint8_t)two_bits(p + 16, i);
}

/* One block of 256: Q3_K, sixteen groups of 16; a code is stored 4 too large. */
static void decode_q3_k(const uint8_t *p, uint8_t *codes, float *scales, float *biases)
{
    const uint8_t *s = p + 96;
    for (int j = 0; j < 16; j++) {
        int scale = (s[j % 8] >> (j / 8 * 4) & 15) | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4;
        scales[j] = (float)(scale - 32);
        biases[j] = 4.0f * scales[j];
    }
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)(two_bits(p + 32, i) | (p[i % 32] >> (i / 32) & 1) << 2);
}

/* 32 nibbles, as in Q4_0: of IQ4_NL and IQ4_XS. */
static void decode_iq4(const uint8_t *qs, uint8_t *codes)
{
    for (int i = 0; i < 16; i++) {
        codes[i] = qs[i] & 15;
        codes[16 + i] = qs[i] >> 4;
    }
}

/* One block of 256: IQ4_XS, eight groups of 32. */
static void decode_iq4_xs(const uint8_t *p, uint8_t *codes, float *scales)
{
    int high = p[2] | p[3] << 8;
    for (int j = 0; j < 8; j++) {
        int scale = (p[4 + j / 2] >> (j % 2 * 4) & 15) | (high >> (2 * j) & 3) << 4;
        scales[j] = (float)(scale - 32);
        decode_iq4(p + 8 + 16 * j, codes + 32 * j);
    }
}

/* A digit of base 3 of a byte, the first one in its highest places: five or four of them. */
INLINE uint8_t third_digit(uint8_t byte, int digit)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (uint8_t)((uint8_t)(byte * powers[digit]) * 3 >> 8);
}

/* One block of 256: TQ1_0, two groups of 128; its last 16 values have four digits a byte. */
static void decode_tq1_0(const uint8_t *p, uint8_t *codes)
{
    for (int i = 0; i < 160; i++) codes[i] = third_digit(p[i % 32], i / 32);
    for (int i = 0; i < 80; i++) codes[160 + i] = third_digit(p[32 + i % 16], i / 16);
    for (int i = 0; i < 16; i++) codes[240 + i] = third_digit(p[48 + i % 4], i / 4);
}

/* One block of TQ1_0, TQ2_0, Q1_0 or Q2_0: codes 0 to 2 (Q2_0: 3) of which 1 is zero. */
static void decode_few(uint32_t type, const uint8_t *p, uint8_t *codes, float *scales,
                       float *biases)
{
    int at = type == MARLIN_GGML_TQ1_0 ? 52 : type == MARLIN_GGML_TQ2_0 ? 64 : 0;
    int groups = at ? 2 : 1;
    for (int j = 0; j < groups; j++) {
        scales[j] = half_at(p + at);
        biases[j] = -scales[j];
    }
    switch (type) {
    case MARLIN_GGML_TQ1_0: decode_tq1_0(p, codes); break;
    case MARLIN_GGML_TQ2_0:
        for (int i = 0; i < 256; i++) codes[i] = (uint8_t)two_bits(p, i);
        break;
    case MARLIN_GGML_Q1_0:
        for (int i = 0; i < 128; i++) codes[i] = (uint8_t)((p[2 + i / 8] >> i % 8 & 1) * 2);
        break;
    case MARLIN_GGML_Q2_0:
        for (int i = 0; i < 64; i++) codes[i] = p[2 + i / 4] >> i % 4 * 2 & 3;
        break;
    }
}

/* One block of 64: NVFP4, four groups of 16, whose scales are E4M3 without a sign; 0x7f is 0. */
static void decode_nvfp4(const uint8_t *p, uint8_t *codes, float *scales)
{
    for (int j = 0; j < 4; j++) {
        uint32_t exponent = p[j] >> 3 & 15, mantissa = p[j] & 7;
        float scale = exponent ? f32_from_bits((exponent + 120) << 23 | mantissa << 20)
                               : (float)mantissa * 0x1p-9f;
        scales[j] = p[j] == 0x7f ? 0.0f : scale;
        for (int i = 0; i < 8; i++) {
            codes[16 * j + i] = p[4 + 8 * j + i] & 15;
            codes[16 * j + 8 + i] = p[4 + 8 * j + i] >> 4;
        }
    }
}

/* What the int8 numbers of a block of 256 are multiplied by, float16 as its file has them: of
 * scales, and of biases with the other sign. */
static void block_steps(uint32_t type, const uint8_t *p, uint16_t steps[2])
{
    int at = type == MARLIN_GGML_Q6_K   ? 208
             : type == MARLIN_GGML_Q3_K ? 108
             : type == MARLIN_GGML_Q2_K ? 80
                                        : 0;
    int bias_at = type == MARLIN_GGML_Q3_K ? at : at + 2;
    memcpy(&steps[0], p + at, 2);
    if (!marlin_block_type(type).has_bias) return;
    memcpy(&steps[1], p + bias_at, 2);
    steps[1] ^= 0x8000;
}

static void decode_block(uint32_t type, const uint8_t *p, uint8_t *codes, float *scales,
                         float *biases)
{
    switch (type) {
    case MARLIN_GGML_Q4_K:
    case MARLIN_GGML_Q5_K: decode_k(type, p, codes, scales, biases); break;
    case MARLIN_GGML_Q6_K: decode_q6_k(p, codes, scales); break;
    case MARLIN_GGML_MXFP4: decode_mxfp4(p, codes, scales); break;
    case MARLIN_GGML_NVFP4: decode_nvfp4(p, codes, scales); break;
    case MARLIN_GGML_Q2_K: decode_q2_k(p, codes, scales, biases); break;
    case MARLIN_GGML_Q3_K: decode_q3_k(p, codes, scales, biases); break;
    case MARLIN_GGML_IQ4_XS: decode_iq4_xs(p, codes, scales); break;
    case MARLIN_GGML_IQ4_NL:
        *scales = half_at(p);
        decode_iq4(p + 2, codes);
        break;
    case MARLIN_GGML_TQ1_0:
    case MARLIN_GGML_TQ2_0:
    case MARLIN_GGML_Q1_0:
    case MARLIN_GGML_Q2_0: decode_few(type, p, codes, scales, biases); break;
    case MARLIN_GGML_Q4_0:
    case MARLIN_GGML_Q4_1:
    case MARLIN_GGML_Q5_0:
    case MARLIN_GGML_Q5_1:
    case MARLIN_GGML_Q8_0: decode_32(type, p, codes, scales, biases); break;
    }
}

/* GGUF's llama rows pair (i, i + 1) of a head for RoPE; the packed rows pair (i, i + head_dim / 2).
 */
static int64_t source_row(const struct RepackParams *p, int64_t row)
{
    if (!p->permute_heads) return row;
    int64_t dim = p->n / p->permute_heads, head = row / dim, i = row % dim;
    return head * dim + i % (dim / 2) * 2 + i / (dim / 2);
}

static void store_scale(uint8_t *to, const struct MarlinBlockType *type, int64_t at, float value)
{
    if (type->scale_bytes == 4)
        ((float *)to)[at] = value;
    else if (type->scale_bytes == 2)
        ((uint16_t *)to)[at] = f16_from_f32(value);
    else if (type->scale_bytes < 0)
        to[at] = (uint8_t)(bits_from_f32(value) >> 23); /* of a power of two */
    else {
        int64_t a_block = type->values / type->group * MARLIN_ROW_TILE;
        to += (at / a_block + 1) * MARLIN_BLOCK_STEP_BYTES + at;
        *to = (uint8_t)(int8_t)value;
    }
}

/* Of block b of a tile's row. */
static void store_steps(const marlin_call *call, const struct MarlinBlockType *type, int64_t b,
                        int64_t lane, const uint16_t steps[2])
{
    int64_t bytes = MARLIN_BLOCK_STEP_BYTES + type->values / type->group * MARLIN_ROW_TILE;
    for (int i = 0; i < (call->bytes[3] ? 2 : 1); i++)
        memcpy(call->at[2 + i] + b * bytes + lane * 2, &steps[i], 2);
}

INLINE uint32_t load_four(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return four;
}

/* Word j of a row: nibbles of eight codes, or what so many bits above them are of as many codes as
 * a word has room for, after these codes' nibbles. */
static uint32_t nibbles_or_above(const uint8_t *codes, uint32_t high_bits, int64_t j)
{
    int64_t together = high_bits ? 32 / high_bits : 8, words = together / 8 + (high_bits > 0);
    codes += j / words * together;
    if (j % words < together / 8) {
        codes += j % words * 8;
        return (load_four(codes) & 0x0f0f0f0fu) | (load_four(codes + 4) & 0x0f0f0f0fu) << 4;
    }
    uint32_t word = 0, mask = (1u << high_bits) - 1u;
    for (uint32_t i = 0; i < together / 4; i++)
        word |= (load_four(codes + 4 * i) >> 4 & mask * 0x01010101u) << i * high_bits;
    return word;
}

static void store_row(const marlin_call *call, const struct MarlinBlockType *type, int64_t row,
                      const decoded *d)
{
    const struct RepackParams *p = call->params;
    int64_t tile = row / MARLIN_ROW_TILE, lane = row % MARLIN_ROW_TILE, k = p->k;
    int64_t words = k * type->bits / 32;
    uint8_t *codes = call->at[1] + (tile * words * MARLIN_ROW_TILE + lane) * 4;
    for (int64_t j = 0; j < words; j++) {
        uint32_t word = type->bits == 8 ? load_four(d->codes + j * 4)
                                        : nibbles_or_above(d->codes, type->bits - 4, j);
        memcpy(codes + j * MARLIN_ROW_TILE * 4, &word, 4);
    }
    int64_t groups = k / type->group;
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = (tile * groups + g) * MARLIN_ROW_TILE + lane;
        store_scale(call->at[2], type, at, d->scales[g] * p->factor);
        if (call->bytes[3]) store_scale(call->at[3], type, at, d->biases[g] * p->factor);
    }
}

/* Rows past n stay as the buffer was created: zero codes and scales. */
KERNEL(repack)
{
    const struct RepackParams *p = call->params;
    const struct MarlinBlockType type = marlin_block_type(p->type);
    decoded row = {.scales = (float *)scratch};
    row.biases = row.scales + p->k / 16;
    row.codes = (uint8_t *)(row.biases + p->k / 16);
    int64_t num_blocks = p->k / type.values, groups = type.values / type.group;
    int64_t last = end * MARLIN_ROW_TILE < (int64_t)p->n ? end * MARLIN_ROW_TILE : (int64_t)p->n;
    for (int64_t n = begin * MARLIN_ROW_TILE; n < last; n++) {
        const uint8_t *source = call->at[0] + source_row(p, n) * num_blocks * type.bytes;
        for (int64_t b = 0; b < num_blocks; b++, source += type.bytes) {
            decode_block(p->type, source, row.codes + b * type.values, row.scales + b * groups,
                         row.biases + b * groups);
            if (type.scale_bytes != 1) continue;
            uint16_t steps[2];
            block_steps(p->type, source, steps);
            store_steps(call, &type, n / MARLIN_ROW_TILE * num_blocks + b, n % MARLIN_ROW_TILE,
                        steps);
        }
        store_row(call, &type, n, &row);
    }
    return MARLIN_OK;
}
