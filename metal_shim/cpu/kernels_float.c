/* kernels_float.c: y = x W^T for packed weights of floats (fp8, nf4), one row or many.
 *
 *   x  float [rows, k]              y  float [rows, n]           output bias  float [n], optional
 *   W  codes and scales in tiles of 16 rows (docs/formats.md); k % 32 == 0, k % group_size == 0
 *
 * int8 would not hold what these codes stand for, so x is not quantized: a weight becomes code
 * times scale, and products are summed as floats. A sum never crosses lanes: a row's is that of its
 * even columns and that of its odd ones, each in order, whatever the number of rows. Unit of work:
 * one tile of 16 weight rows, for all rows of x. */
#include "cpu/cpu.h"
#include "cpu/experts.h"
#include "cpu/packed.h"
#include "cpu/simd.h"

/* Rows of x that share four columns of weights: two accumulators a row. */
#if V_LANES == 8
#define MAX_ROW_BLOCK 4
#else
#define MAX_ROW_BLOCK 8
#endif
#define TILE_QUAD_BYTES(kind) (MARLIN_ROW_TILE * 4 * MARLIN_BITS_##kind / 8)

typedef enum { FP8, NF4 } float_kind;

static const float nf4_table[16] = {MARLIN_NF4_VALUES};

typedef struct {
    const float *x;
    const uint8_t *codes;
    const uint8_t *scales;
    const float *output_bias;
    float *y;
    int64_t n, k, scale_groups;
    int64_t slots_a_row; /* choices that read one row of x */
    int scale_shift;     /* log2 of the groups of 32 that share a scale */
    int block_shift;     /* log2 of the scales of a block */
    uint32_t flags;
} packed_floats;

/* Rows of x and y that are multiplied together. */
typedef struct {
    const float *x[MAX_ROW_BLOCK];
    float *y[MAX_ROW_BLOCK];
} float_rows;

/* Those from `row` on, of `order` where it is given. */
INLINE float_rows rows_at(const packed_floats *a, const int32_t *order, int num_rows, int64_t row)
{
    float_rows found;
    for (int m = 0; m < num_rows; m++) {
        int64_t y_row = order ? order[row + m] : row + m;
        found.x[m] = a->x + (order ? y_row / a->slots_a_row : y_row) * a->k;
        found.y[m] = a->y + y_row * a->n;
    }
    return found;
}

INLINE int64_t quad_bytes(float_kind kind)
{
    return kind == FP8 ? TILE_QUAD_BYTES(fp8) : TILE_QUAD_BYTES(nf4);
}

/* Columns 4i .. 4i + 3 of V_LANES rows, for even i; fp8 is 2^-8 of what it stands for. */
INLINE void load_quads(float_kind kind, const uint8_t *p, vf w[8])
{
    if (kind == FP8) {
        vf_from_e4m3(vi_load(p), w);
        vf_from_e4m3(vi_load(p + 64), w + 4);
        return;
    }
    vi words = vi_load(p);
    for (int i = 0; i < 8; i++) w[i] = vf_look_up(words, i % 4 * 8 + i / 4 * 4, nf4_table);
}

/* V_LANES columns of y for num_rows (a constant) rows. */
INLINE void dot_rows(const packed_floats *a, float_kind kind, const float_rows *rows, int num_rows,
                     int64_t tile, int part)
{
    const uint8_t *codes = a->codes + tile * a->k / 4 * quad_bytes(kind) + part * V_LANES * 4;
    vf sums[MAX_ROW_BLOCK][2];
    for (int m = 0; m < num_rows; m++) sums[m][0] = sums[m][1] = vf_zero();
    for (int64_t column = 0; column < a->k; column += MARLIN_ACT_GROUP) {
        int64_t group = tile * a->scale_groups + (column / MARLIN_ACT_GROUP >> a->scale_shift);
        vf scale = load_scales_at(a->flags, a->block_shift, a->scales,
                                  group * MARLIN_ROW_TILE + part * V_LANES);
        for (int64_t i = column; i < column + MARLIN_ACT_GROUP; i += 8) {
            vf w[8];
            load_quads(kind, codes + i / 4 * quad_bytes(kind), w);
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++) {
                vf weight = vf_mul(w[c], scale);
#pragma GCC unroll 8
                for (int m = 0; m < num_rows; m++)
                    sums[m][c % 2] = vf_fma(weight, vf_set1(rows->x[m][i + c]), sums[m][c % 2]);
            }
        }
    }
    int64_t at = tile * MARLIN_ROW_TILE + part * V_LANES;
    for (int m = 0; m < num_rows; m++) {
        vf sum = vf_add(sums[m][0], sums[m][1]);
        if (kind == FP8) sum = vf_mul(sum, vf_set1(256.0f));
        store_columns(rows->y[m] + at, a->output_bias ? a->output_bias + at : NULL, a->n - at, sum);
    }
}

INLINE void run_tiles(const packed_floats *a, float_kind kind, const int32_t *order, int num_rows,
                      int64_t row, int64_t begin, int64_t end)
{
    float_rows rows = rows_at(a, order, num_rows, row);
    for (int64_t tile = begin; tile < end; tile++)
        for (int part = 0; part < V_PARTS; part++)
            if (tile * MARLIN_ROW_TILE + part * V_LANES < a->n)
                dot_rows(a, kind, &rows, num_rows, tile, part);
}

/* Units [begin, end) for all rows, or for those of `order`. */
INLINE void run_rows(const packed_floats *a, float_kind kind, const int32_t *order, int64_t rows,
                     int64_t begin, int64_t end)
{
    int64_t row = 0;
    for (; rows - row >= MAX_ROW_BLOCK; row += MAX_ROW_BLOCK)
        run_tiles(a, kind, order, MAX_ROW_BLOCK, row, begin, end);
#if MAX_ROW_BLOCK > 4
    for (; rows - row >= 4; row += 4) run_tiles(a, kind, order, 4, row, begin, end);
#endif
    for (; rows - row >= 2; row += 2) run_tiles(a, kind, order, 2, row, begin, end);
    if (row < rows) run_tiles(a, kind, order, 1, row, begin, end);
}

INLINE packed_floats packed_of(const marlin_call *call, const struct LinearParams *p)
{
    return (packed_floats){
        .x = (const float *)call->at[0],
        .codes = call->at[1],
        .scales = call->at[2],
        .output_bias = p->flags & MARLIN_OUTPUT_BIAS ? (const float *)call->at[4] : NULL,
        .y = (float *)call->at[5],
        .n = p->n,
        .k = p->k,
        .scale_groups = p->k / p->group_size,
        .scale_shift = scale_shift_of(p->group_size),
        .block_shift = block_shift_of(p->group_size),
        .flags = p->flags,
    };
}

INLINE int run_floats(const marlin_call *call, int64_t begin, int64_t end, float_kind kind)
{
    const struct LinearParams *p = call->params;
    packed_floats a = packed_of(call, p);
    run_rows(&a, kind, NULL, call->vars[p->rows_var], begin, end);
    return MARLIN_OK;
}

LINEAR_KERNELS(, fp8, run_floats(call, begin, end, FP8))
LINEAR_KERNELS(, nf4, run_floats(call, begin, end, NF4))

/* The same tiles of each expert that was chosen, for the rows that chose it. */
INLINE int run_experts(const marlin_call *call, int64_t begin, int64_t end, float_kind kind)
{
    const struct ExpertParams *p = call->params;
    const struct LinearParams one = {p->rows_var, p->n, p->k, p->group_size, p->flags};
    const packed_floats whole = packed_of(call, &one);
    int64_t expert_codes = (int64_t)p->n * p->k / 64 * quad_bytes(kind);
    int64_t expert_scales = MARLIN_SCALE_BYTES(p->flags, p->group_size, p->n * whole.scale_groups);
    expert_groups groups = groups_of(call);
    for (int64_t g = 0; g < groups.count; g++) {
        expert_group found;
        if (!load_expert_group(&groups, g, &found)) return MARLIN_EDEVICE;
        packed_floats a = whole;
        a.slots_a_row = p->num_slots / p->x_slots;
        a.codes += found.expert * expert_codes;
        a.scales += found.expert * expert_scales;
        if (a.output_bias) a.output_bias += found.expert * (int64_t)p->n;
        run_rows(&a, kind, found.order, found.rows, begin, end);
    }
    return MARLIN_OK;
}

LINEAR_KERNELS(experts_, fp8, run_experts(call, begin, end, FP8))
LINEAR_KERNELS(experts_, nf4, run_experts(call, begin, end, NF4))
