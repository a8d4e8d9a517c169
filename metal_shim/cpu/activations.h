/* activations.h: rows of activations as linear kernels of packed weights read them: int8 codes in
 * groups of 32, and what each group's integers are scaled by. kernels_quantize.c writes them. */
#ifndef MARLIN_ACTIVATIONS_H
#define MARLIN_ACTIVATIONS_H

#include "cpu/cpu.h"
#include "cpu/simd.h"

/* Rows of x that share one unpacked group of weights: 8 registers of weights, one accumulator a
 * row. */
#if V_LANES == 16
#define MAX_ROW_BLOCK 16
#elif V_LANES == 8
#define MAX_ROW_BLOCK 4
#else
#define MAX_ROW_BLOCK 8
#endif

/* Of one group of 32 activations: its scale, and scale * the sum of its codes. */
typedef struct {
    float scale;
    float scaled_sum;
} act_group;

/* Where the integer dot product with a group begins, because weight codes are stored unsigned.
 * Apart from act_group, so that int4 does not read it. */
typedef struct {
    int32_t int8;         /* -128 * sum of codes */
    int32_t fp4;          /* -12 * sum */
    int32_t int8_half[2]; /* -128 * sum of each half */
} act_begin;

/* A value that its group of int8 leaves out. */
typedef struct {
    int32_t column;
    float value;
} act_outlier;

/* Quantized rows lie in blocks of MAX_ROW_BLOCK, the last one smaller, and a block group by group,
 * so that groups that are multiplied together are one run of memory. group_place() is where a row's
 * first group lies among all; its next one is block_rows() further on. */
INLINE int64_t block_rows(int64_t rows, int64_t row)
{
    int64_t first = row / MAX_ROW_BLOCK * MAX_ROW_BLOCK;
    return rows - first < MAX_ROW_BLOCK ? rows - first : MAX_ROW_BLOCK;
}

INLINE int64_t group_place(int64_t row, int64_t groups_of_32)
{
    int64_t first = row / MAX_ROW_BLOCK * MAX_ROW_BLOCK;
    return first * groups_of_32 + (row - first);
}

/* Where the parts of `rows` quantized rows are: codes int8 [32], group and begin of every group in
 * their places (plain rows lie one after the other); then the outliers of each row, in the order of
 * their columns, and how many it has. */
typedef struct {
    int8_t *codes;
    act_group *groups;
    act_begin *begins;
    act_outlier *outliers; /* [rows, groups_of_32] */
    int32_t *num_outliers; /* [rows] */
} quantized_rows;

INLINE quantized_rows quantized_rows_at(uint8_t *prepared, int64_t rows, int64_t groups_of_32)
{
    int64_t groups = rows * groups_of_32;
    quantized_rows x = {.codes = (int8_t *)prepared};
    x.groups = (act_group *)(prepared + groups * MARLIN_ACT_GROUP);
    x.begins = (act_begin *)(x.groups + groups);
    x.outliers = (act_outlier *)(x.begins + groups);
    x.num_outliers = (int32_t *)(x.outliers + groups);
    return x;
}

#endif
