/* packed.h: the scales of packed weights (docs/formats.md), for the kernels that multiply integers
 * and those that multiply floats. Knows nothing of codes. */
#ifndef MARLIN_PACKED_H
#define MARLIN_PACKED_H

#include "common/kernels.h"
#include "cpu/simd.h"

/* log2 of the groups of 32 columns that share a scale. */
INLINE int scale_shift_of(uint32_t group_size)
{
    return group_size == 128 ? 2 : group_size == 64 ? 1 : 0;
}

/* log2 of the scales of a block. */
INLINE int block_shift_of(uint32_t group_size)
{
    return group_size == 16 ? 4 : group_size == 32 ? 3 : group_size == 64 ? 2 : 1;
}

/* Of a packed weight's row: its scales, and how many of them make a block. */
typedef struct {
    int64_t scale_groups;
    int block_shift; /* log2 */
    uint32_t flags;  /* MARLIN_SCALE_... */
} scale_form;

INLINE scale_form scale_form_of(const struct LinearParams *p)
{
    return (scale_form){p->k / p->group_size, block_shift_of(p->group_size), p->flags};
}

/* Bytes of the scales, or biases, of a matrix of whole tiles. */
INLINE int64_t scale_bytes_of(const struct LinearParams *p)
{
    int64_t count = (int64_t)p->n * (p->k / p->group_size);
    return MARLIN_SCALE_BYTES(p->flags, p->group_size, p->k, count);
}

/* Exact: a bfloat16 times an int8. */
INLINE vf load_row_scale(int64_t scale_groups, const uint8_t *scales, int64_t tile, int64_t group,
                         int64_t lane)
{
    const uint8_t *p = scales + tile * (MARLIN_BLOCK_STEP_BYTES + scale_groups * MARLIN_ROW_TILE);
    const uint8_t *numbers = p + MARLIN_BLOCK_STEP_BYTES + group * MARLIN_ROW_TILE;
    return vf_mul(vf_load_bf16((const uint16_t *)(const void *)p + lane),
                  vf_load_i8((const int8_t *)numbers + lane));
}

/* Exact: a float16 times an int8. */
INLINE vf load_block_scale(int block_shift, const uint8_t *scales, int64_t at)
{
    int64_t group = at / MARLIN_ROW_TILE, lane = at % MARLIN_ROW_TILE, block = group >> block_shift;
    const uint8_t *p =
        scales + block * MARLIN_BLOCK_STEP_BYTES + (block << block_shift) * MARLIN_ROW_TILE;
    const uint8_t *numbers =
        p + MARLIN_BLOCK_STEP_BYTES + (group - (block << block_shift)) * MARLIN_ROW_TILE;
    return vf_mul(vf_load_f16((const uint16_t *)(const void *)p + lane),
                  vf_load_i8((const int8_t *)numbers + lane));
}

/* Scales or biases of a group of a tile's rows from `lane` on. */
INLINE vf load_scales_at(const scale_form *form, const uint8_t *scales, int64_t tile, int64_t group,
                         int64_t lane)
{
    const uint32_t flags = form->flags;
    int64_t at = (tile * form->scale_groups + group) * MARLIN_ROW_TILE + lane;
    if (flags & MARLIN_SCALE_ROW)
        return load_row_scale(form->scale_groups, scales, tile, group, lane);
    if (flags & MARLIN_SCALE_BLOCK) return load_block_scale(form->block_shift, scales, at);
    if (flags & MARLIN_SCALE_F32) return vf_load((const float *)scales + at);
    if (flags & MARLIN_SCALE_EXP) return vf_load_exponents(scales + at);
    return vf_load_f16((const uint16_t *)scales + at);
}

/* V_LANES columns of a row of y, of which there are `valid` (at least one). */
INLINE void store_columns(float *y, const float *output_bias, int64_t valid, vf sums)
{
    if (valid >= V_LANES) {
        vf_store(y, output_bias ? vf_add(sums, vf_load(output_bias)) : sums);
        return;
    }
    float lanes[V_LANES];
    vf_store(lanes, sums);
    for (int64_t i = 0; i < valid; i++) y[i] = output_bias ? lanes[i] + output_bias[i] : lanes[i];
}

#endif
