/* kernels_float.c: y = x W^T for packed weights of floats (fp8, nf4), one row or many.
 *
 *   x  float [rows, k]              y  float [rows, n]           output bias  float [n], optional
 *   W  codes and scales in tiles of 16 rows (docs/formats.md); k % 32 == 0, k % group_size == 0
 *
 * int8 would not hold what these codes stand for, so x is not quantized: a weight becomes code
 * times scale, and products are summed as floats. A sum never crosses lanes: a row's is that of its
 * even columns and that of its odd ones, each in order, whatever the number of rows: so the weights
 * of some columns may be unpacked once for many rows, whose sums are kept. Unit of work: one tile
 * of 16 weight rows, for all rows of x. */
#include "cpu/cpu.h"
#include "cpu/experts.h"
#include "cpu/packed.h"
#include "cpu/simd.h"

/* Rows of x that share four columns of weights in registers: two accumulators a row. */
#define MAX_ROW_BLOCK (V_LANES == 8 ? 4 : 8)
/* Sixteen registers hold too few sums for that to pay with many rows: weights are unpacked once for
 * KEPT_ROWS, COLUMNS at a time, and lie with the sums in the first cache. KEPT_BLOCK of these rows
 * share a load of weights. */
#define KEEPS_WEIGHTS (V_LANES == 8)
#define KEPT_ROWS 24
#define KEPT_BLOCK 3
#define COLUMNS 128
#define TILE_QUAD_BYTES(kind) (MARLIN_ROW_TILE * 4 * MARLIN_BITS_##kind / 8)

typedef enum { FP8, NF4 } float_kind;

static const float nf4_table[16] = {MARLIN_NF4_VALUES};

typedef struct {
    const float *x;
    const uint8_t *codes;
    const uint8_t *scales;
    const float *output_bias;
    float *y;
    int64_t n, k;
    int64_t slots_a_row; /* choices that read one row of x */
    int scale_shift;     /* log2 of the groups of 32 that share a scale */
    scale_form form;
} packed_floats;

/* Rows of x and y that are multiplied together. */
typedef struct {
    const float *x[KEPT_ROWS];
    float *y[KEPT_ROWS];
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

/* Of a tile's rows from part * V_LANES on, for the 32 columns around `column`. */
INLINE vf load_scale(const packed_floats *a, int64_t tile, int part, int64_t column)
{
    int64_t group = column / MARLIN_ACT_GROUP >> a->scale_shift;
    return load_scales_at(&a->form, a->scales, tile, group, part * V_LANES);
}

INLINE void store_sums(const packed_floats *a, float_kind kind, float *y, int64_t tile, int part,
                       const vf sums[2])
{
    int64_t at = tile * MARLIN_ROW_TILE + part * V_LANES;
    if (at >= a->n) return;
    vf sum = vf_add(sums[0], sums[1]);
    if (kind == FP8) sum = vf_mul(sum, vf_set1(256.0f));
    store_columns(y + at, a->output_bias ? a->output_bias + at : NULL, a->n - at, sum);
}

/* V_LANES columns of y for num_rows (a constant) rows. */
INLINE void dot_rows(const packed_floats *a, float_kind kind, const float_rows *rows, int num_rows,
                     int64_t tile, int part)
{
    const uint8_t *codes = a->codes + tile * a->k / 4 * quad_bytes(kind) + part * V_LANES * 4;
    vf sums[MAX_ROW_BLOCK][2];
    for (int m = 0; m < num_rows; m++) sums[m][0] = sums[m][1] = vf_zero();
    for (int64_t column = 0; column < a->k; column += MARLIN_ACT_GROUP) {
        vf scale = load_scale(a, tile, part, column);
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
    for (int m = 0; m < num_rows; m++) store_sums(a, kind, rows->y[m], tile, part, sums[m]);
}

/* Columns [column, column + count) of a tile, as the numbers that they are. */
INLINE void unpack(const packed_floats *a, float_kind kind, int64_t tile, int64_t column,
                   int64_t count, vf weights[COLUMNS][V_PARTS])
{
    const uint8_t *codes = a->codes + (tile * a->k + column) / 4 * quad_bytes(kind);
    for (int64_t i = 0; i < count; i += 8) {
        for (int part = 0; part < V_PARTS; part++) {
            vf w[8], scale = load_scale(a, tile, part, column + i);
            load_quads(kind, codes + i / 4 * quad_bytes(kind) + part * V_LANES * 4, w);
            for (int c = 0; c < 8; c++) weights[i + c][part] = vf_mul(w[c], scale);
        }
    }
}

/* sums += weights times `count` columns of num_rows (a constant) rows of x. */
INLINE void add_products(vf weights[COLUMNS][V_PARTS], const float *const *x, int64_t column,
                         int64_t count, int num_rows, vf sums[][V_PARTS][2])
{
    vf own[KEPT_BLOCK][V_PARTS][2];
    for (int m = 0; m < num_rows; m++) memcpy(own[m], sums[m], sizeof own[m]);
    for (int64_t i = 0; i < count; i += 2) {
        for (int c = 0; c < 2; c++) {
            for (int m = 0; m < num_rows; m++) {
                vf value = vf_set1(x[m][column + i + c]);
                for (int part = 0; part < V_PARTS; part++)
                    own[m][part][c] = vf_fma(weights[i + c][part], value, own[m][part][c]);
            }
        }
    }
    for (int m = 0; m < num_rows; m++) memcpy(sums[m], own[m], sizeof own[m]);
}

/* A tile's columns of y for up to KEPT_ROWS rows. */
INLINE void dot_kept(const packed_floats *a, float_kind kind, const float_rows *rows, int num_rows,
                     int64_t tile)
{
    vf weights[COLUMNS][V_PARTS], sums[KEPT_ROWS][V_PARTS][2];
    for (int m = 0; m < num_rows; m++)
        for (int part = 0; part < V_PARTS; part++) sums[m][part][0] = sums[m][part][1] = vf_zero();
    for (int64_t column = 0; column < a->k; column += COLUMNS) {
        int64_t count = a->k - column < COLUMNS ? a->k - column : COLUMNS;
        unpack(a, kind, tile, column, count, weights);
        int m = 0;
        for (; num_rows - m >= KEPT_BLOCK; m += KEPT_BLOCK)
            add_products(weights, rows->x + m, column, count, KEPT_BLOCK, sums + m);
        for (; num_rows - m >= 2; m += 2)
            add_products(weights, rows->x + m, column, count, 2, sums + m);
        if (m < num_rows) add_products(weights, rows->x + m, column, count, 1, sums + m);
    }
    for (int m = 0; m < num_rows; m++)
        for (int part = 0; part < V_PARTS; part++)
            store_sums(a, kind, rows->y[m], tile, part, sums[m][part]);
}

/* Units [begin, end) for num_rows (a constant) rows. */
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
    while (KEEPS_WEIGHTS && rows - row > MAX_ROW_BLOCK) {
        int count = rows - row < KEPT_ROWS ? (int)(rows - row) : KEPT_ROWS;
        float_rows kept = rows_at(a, order, count, row);
        for (int64_t tile = begin; tile < end; tile++) dot_kept(a, kind, &kept, count, tile);
        row += count;
    }
    for (; rows - row >= MAX_ROW_BLOCK; row += MAX_ROW_BLOCK)
        run_tiles(a, kind, order, MAX_ROW_BLOCK, row, begin, end);
    for (; MAX_ROW_BLOCK > 4 && rows - row >= 4; row += 4)
        run_tiles(a, kind, order, 4, row, begin, end);
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
        .scale_shift = scale_shift_of(p->group_size),
        .form = scale_form_of(p),
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
    int64_t expert_scales = scale_bytes_of(&one);
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
