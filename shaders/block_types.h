/* block_types.h: the kinds of weights that kernels read, in C and in Metal; marlin/weights/kinds.py
 * says the same, held together by a test. One row a line.
 *
 * MARLIN_WEIGHT_KINDS: X(kind, bits, group, bias)
 *   bits   of a value or a code
 *   group  the least columns that may share a scale; 0: dense, without scales
 *   bias   whether a bias a group comes with the scales: MARLIN_NEVER, MARLIN_MAY or MARLIN_MUST */
#ifndef MARLIN_BLOCK_TYPES_H
#define MARLIN_BLOCK_TYPES_H

#define MARLIN_NEVER 0
#define MARLIN_MAY 1
#define MARLIN_MUST 2

/* clang-format off */
#define MARLIN_WEIGHT_KINDS(X) \
    X(f32,  32,  0, MARLIN_NEVER) \
    X(f16,  16,  0, MARLIN_NEVER) \
    X(bf16, 16,  0, MARLIN_NEVER) \
    X(int8,  8, 16, MARLIN_MAY) \
    X(int4,  4, 32, MARLIN_MUST) \
    X(fp4,   4, 32, MARLIN_NEVER)
/* clang-format on */

#endif
