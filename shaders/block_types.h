/* block_types.h: the kinds of weights that kernels read, and the GGUF blocks that become them, for
 * C and Metal. marlin/weights/kinds.py and block_types.py say the same, held together by a test.
 * One row a line. */
#ifndef MARLIN_BLOCK_TYPES_H
#define MARLIN_BLOCK_TYPES_H

#include "params.h"

#define MARLIN_NEVER 0
#define MARLIN_MAY 1
#define MARLIN_MUST 2

/* X(kind, bits, group, bias)
 *
 *   bits   of a value or a code
 *   group  the fewest columns that may share a scale; 0: dense, without scales
 *   bias   whether a bias a group comes with the scales
 *
 * X(type, number, values, bytes, kind, group, scale_bytes, bias)
 *
 *   number         ggml's own (ggml.h, enum ggml_type)
 *   values, bytes  of a block
 *   kind           what it becomes: so many columns a scale, bytes of a scale (1: of a block, -1:
 *                  an exponent), with a bias or not
 */
/* clang-format off */
#define MARLIN_WEIGHT_KINDS(X) \
    X(f32,  32,  0, MARLIN_NEVER) \
    X(f16,  16,  0, MARLIN_NEVER) \
    X(bf16, 16,  0, MARLIN_NEVER) \
    X(fp4,   4, 16, MARLIN_NEVER) \
    X(int4,  4, 16, MARLIN_MUST) \
    X(int8,  8, 16, MARLIN_MAY) \
    X(int5,  5, 32, MARLIN_MUST) \
    X(int6,  6, 16, MARLIN_NEVER) \
    X(iq4,   4, 32, MARLIN_NEVER) \
    X(fp8,   8, 32, MARLIN_NEVER) \
    X(nf4,   4, 32, MARLIN_NEVER)

#define MARLIN_BLOCK_TYPES(X) \
    X(Q4_0,   2,  32,  18,  int4, 32,  2, 1) \
    X(Q4_1,   3,  32,  20,  int4, 32,  2, 1) \
    X(Q5_0,   6,  32,  22,  int6, 32,  2, 0) \
    X(Q5_1,   7,  32,  24,  int5, 32,  2, 1) \
    X(Q8_0,   8,  32,  34,  int8, 32,  2, 0) \
    X(Q2_K,   10, 256, 84,  int4, 16,  1, 1) \
    X(Q3_K,   11, 256, 110, int4, 16,  1, 1) \
    X(Q4_K,   12, 256, 144, int4, 32,  1, 1) \
    X(Q5_K,   13, 256, 176, int5, 32,  1, 1) \
    X(Q6_K,   14, 256, 210, int6, 16,  1, 0) \
    X(IQ4_NL, 20, 32,  18,  iq4,  32,  2, 0) \
    X(IQ4_XS, 23, 256, 136, iq4,  32,  1, 0) \
    X(TQ1_0,  34, 256, 54,  int4, 128, 2, 1) \
    X(TQ2_0,  35, 256, 66,  int4, 128, 2, 1) \
    X(MXFP4,  39, 32,  17,  fp4,  32,  -1, 0) \
    X(NVFP4,  40, 64,  36,  fp4,  16,  4, 0) \
    X(Q1_0,   41, 128, 18,  int4, 128, 2, 1) \
    X(Q2_0,   42, 64,  18,  int4, 64,  2, 1)
/* clang-format on */

/* What the codes of nf4 stand for: quantiles of a normal distribution, of which the largest is 1
 * (Dettmers et al., "QLoRA", appendix E). */
#define MARLIN_NF4_VALUES                                                                          \
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,                      \
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,                 \
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,    \
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f

enum {
#define X(kind, bits, ...) MARLIN_BITS_##kind = bits,
    MARLIN_WEIGHT_KINDS(X)
#undef X
};

enum {
#define X(type, number, ...) MARLIN_GGML_##type = number,
    MARLIN_BLOCK_TYPES(X)
#undef X
};

/* A row of MARLIN_BLOCK_TYPES; bits are its kind's. */
struct MarlinBlockType {
    uint32_t values, bytes, bits, group, has_bias;
    int32_t scale_bytes;
};

/* Of a type's number; all 0: there is no such row. */
static inline struct MarlinBlockType marlin_block_type(uint32_t number)
{
    struct MarlinBlockType found = {0, 0, 0, 0, 0, 0};
    switch (number) {
#define X(type, number, values, bytes, kind, group, scale_bytes, bias)                             \
    case MARLIN_GGML_##type: {                                                                     \
        struct MarlinBlockType row = {                                                             \
            values, bytes, MARLIN_BITS_##kind, group, bias, scale_bytes};                          \
        found = row;                                                                               \
        break;                                                                                     \
    }
        MARLIN_BLOCK_TYPES(X)
#undef X
    default: break;
    }
    return found;
}

/* MARLIN_SCALE_... of what a row becomes. */
static inline uint32_t marlin_scale_flags(struct MarlinBlockType type)
{
    return type.scale_bytes == 4   ? MARLIN_SCALE_F32
           : type.scale_bytes == 1 ? MARLIN_SCALE_BLOCK
           : type.scale_bytes < 0  ? MARLIN_SCALE_EXP
                                   : 0;
}

#endif
