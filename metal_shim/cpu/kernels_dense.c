/* kernels_dense.c: y = x W^T for weights read in place: float32, float16 or bfloat16, row-major.
 *
 *   x  float [rows, k]     W  [n, k]     y  float [rows, n]     output bias  float [n], optional
 *
 * A sum runs over k in sixteen interleaved lanes, is reduced across them, and then takes the last
 * k % 16 products in order: the same for any number of rows and any instruction set. Unit of work:
 * 16 weight rows, for all rows of x. */
#include "cpu/cpu.h"
#include "cpu/experts.h"
#include "cpu/simd.h"

/* Weight rows and x rows that share their loads: their product by V_PARTS is the number of
 * accumulators. */
#define N_BLOCK (V_LANES == 16 ? 4 : 2)
#define M_BLOCK (V_LANES == 16 ? 4 : V_LANES == 8 ? 3 : 2)

typedef enum { F32, F16, BF16 } dense_kind;

typedef struct {
    const float *x;
    const uint8_t *weights;
    const float *output_bias;
    float *y;
    int64_t n, k;
    int64_t slots_a_row; /* choices that read one row of x */
} dense;

INLINE vf load_weights(dense_kind kind, const uint8_t *weights, int64_t at)
{
    if (kind == F32) return vf_load((const float *)weights + at);
    if (kind == F16) return vf_load_f16((const uint16_t *)weights + at);
    return vf_load_bf16((const uint16_t *)weights + at);
}

INLINE float load_weight(dense_kind kind, const uint8_t *weights, int64_t at)
{
    if (kind == F32) return ((const float *)weights)[at];
    uint16_t half = ((const uint16_t *)weights)[at];
    return kind == F16 ? f32_from_f16(half) : f32_from_bits((uint32_t)half << 16);
}

/* Rows of x and y that are multiplied together. */
typedef struct {
    const float *x[M_BLOCK];
    float *y[M_BLOCK];
} dense_rows;

/* Those from `row` on, of `order` where it is given. */
INLINE dense_rows rows_at(const dense *a, const int32_t *order, int num_rows, int64_t row)
{
    dense_rows found;
    for (int m = 0; m < num_rows; m++) {
        int64_t y_row = order ? order[row + m] : row + m;
        found.x[m] = a->x + (order ? y_row / a->slots_a_row : y_row) * a->k;
        found.y[m] = a->y + y_row * a->n;
    }
    return found;
}

/* num_rows and num_columns are constants where this is called. */
INLINE void dot_block(const dense *a, dense_kind kind, const dense_rows *rows, int num_rows,
                      int num_columns, int64_t column)
{
    vf sums[M_BLOCK][N_BLOCK][V_PARTS];
    for (int m = 0; m < num_rows; m++)
        for (int n = 0; n < num_columns; n++)
            for (int part = 0; part < V_PARTS; part++) sums[m][n][part] = vf_zero();
    int64_t whole = a->k / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16) {
        for (int part = 0; part < V_PARTS; part++) {
            int64_t at = i + part * V_LANES;
            vf x[M_BLOCK];
            for (int m = 0; m < num_rows; m++) x[m] = vf_load(rows->x[m] + at);
            for (int n = 0; n < num_columns; n++) {
                vf w = load_weights(kind, a->weights, (column + n) * a->k + at);
                for (int m = 0; m < num_rows; m++)
                    sums[m][n][part] = vf_fma(x[m], w, sums[m][n][part]);
            }
        }
    }
    for (int m = 0; m < num_rows; m++) {
        for (int n = 0; n < num_columns; n++) {
            float sum = vf_reduce_add(sums[m][n]);
            for (int64_t i = whole; i < a->k; i++)
                sum = fmaf(rows->x[m][i], load_weight(kind, a->weights, (column + n) * a->k + i),
                           sum);
            if (a->output_bias) sum += a->output_bias[column + n];
            rows->y[m][column + n] = sum;
        }
    }
}

INLINE void run_columns(const dense *a, dense_kind kind, const int32_t *order, int num_rows,
                        int64_t row, int64_t begin, int64_t end)
{
    dense_rows rows = rows_at(a, order, num_rows, row);
    int64_t column = begin;
    for (; end - column >= N_BLOCK; column += N_BLOCK)
        dot_block(a, kind, &rows, num_rows, N_BLOCK, column);
    for (; column < end; column++) dot_block(a, kind, &rows, num_rows, 1, column);
}

/* Units [begin, end) for all rows, or for those of `order`. */
INLINE void run_rows(const dense *a, dense_kind kind, const int32_t *order, int64_t rows,
                     int64_t begin, int64_t end)
{
    int64_t first = begin * MARLIN_ROW_TILE;
    int64_t last = end * MARLIN_ROW_TILE < a->n ? end * MARLIN_ROW_TILE : a->n;
    int64_t row = 0;
    for (; rows - row >= M_BLOCK; row += M_BLOCK)
        run_columns(a, kind, order, M_BLOCK, row, first, last);
    for (; row < rows; row++) run_columns(a, kind, order, 1, row, first, last);
}

INLINE dense dense_of(const marlin_call *call, uint32_t n, uint32_t k, uint32_t flags)
{
    return (dense){
        .x = (const float *)call->at[0],
        .weights = call->at[1],
        .output_bias = flags & MARLIN_OUTPUT_BIAS ? (const float *)call->at[4] : NULL,
        .y = (float *)call->at[5],
        .n = n,
        .k = k,
    };
}

INLINE int run_dense(const marlin_call *call, int64_t begin, int64_t end, dense_kind kind)
{
    const struct LinearParams *p = call->params;
    dense a = dense_of(call, p->n, p->k, p->flags);
    run_rows(&a, kind, NULL, call->vars[p->rows_var], begin, end);
    return MARLIN_OK;
}

LINEAR_KERNELS(, f32, run_dense(call, begin, end, F32))
LINEAR_KERNELS(, f16, run_dense(call, begin, end, F16))
LINEAR_KERNELS(, bf16, run_dense(call, begin, end, BF16))

/* The same rows of each expert that was chosen, for the rows of x that chose it. */
INLINE int run_experts(const marlin_call *call, int64_t begin, int64_t end, dense_kind kind)
{
    const struct ExpertParams *p = call->params;
    const dense whole = dense_of(call, p->n, p->k, p->flags);
    int64_t expert_bytes = (int64_t)p->n * p->k * (kind == F32 ? 4 : 2);
    expert_groups groups = groups_of(call);
    for (int64_t g = 0; g < groups.count; g++) {
        expert_group found;
        if (!load_expert_group(&groups, g, &found)) return MARLIN_EDEVICE;
        dense a = whole;
        a.slots_a_row = p->num_slots / p->x_slots;
        a.weights += found.expert * expert_bytes;
        if (a.output_bias) a.output_bias += found.expert * (int64_t)p->n;
        run_rows(&a, kind, found.order, found.rows, begin, end);
    }
    return MARLIN_OK;
}

LINEAR_KERNELS(experts_, f32, run_experts(call, begin, end, F32))
LINEAR_KERNELS(experts_, f16, run_experts(call, begin, end, F16))
LINEAR_KERNELS(experts_, bf16, run_experts(call, begin, end, BF16))
