/* kernels_dense.c: y = x W^T for weights read in place: float32, float16 or bfloat16, row-major.
 *
 *   x  float [rows, k]     W  [n, k]     y  float [rows, n]     output bias  float [n], optional
 *
 * A sum runs over k in V_LANES interleaved parts, is reduced across lanes, and then takes the last
 * k % V_LANES products in order: the same for any number of rows. Unit of work: 16 weight rows, for
 * all rows of x. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

/* Weight rows and x rows that share their loads: their product is the number of accumulators. */
#define N_BLOCK 4
#if V_LANES == 8
#define M_BLOCK 2
#else
#define M_BLOCK 4
#endif

typedef enum { F32, F16, BF16 } dense_kind;

typedef struct {
    const float *x;
    const uint8_t *weights;
    const float *output_bias;
    float *y;
    int64_t n, k;
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

/* num_rows and num_columns are constants where this is called. */
INLINE void dot_block(const dense *a, dense_kind kind, int num_rows, int num_columns, int64_t row,
                      int64_t column)
{
    vf sums[M_BLOCK][N_BLOCK];
    for (int m = 0; m < num_rows; m++)
        for (int n = 0; n < num_columns; n++) sums[m][n] = vf_zero();
    int64_t whole = a->k / V_LANES * V_LANES;
    for (int64_t i = 0; i < whole; i += V_LANES) {
        vf x[M_BLOCK];
        for (int m = 0; m < num_rows; m++) x[m] = vf_load(a->x + (row + m) * a->k + i);
        for (int n = 0; n < num_columns; n++) {
            vf w = load_weights(kind, a->weights, (column + n) * a->k + i);
            for (int m = 0; m < num_rows; m++) sums[m][n] = vf_fma(x[m], w, sums[m][n]);
        }
    }
    for (int m = 0; m < num_rows; m++) {
        for (int n = 0; n < num_columns; n++) {
            float sum = vf_reduce_add(sums[m][n]);
            for (int64_t i = whole; i < a->k; i++)
                sum = fmaf(a->x[(row + m) * a->k + i],
                           load_weight(kind, a->weights, (column + n) * a->k + i), sum);
            if (a->output_bias) sum += a->output_bias[column + n];
            a->y[(row + m) * a->n + column + n] = sum;
        }
    }
}

INLINE void run_columns(const dense *a, dense_kind kind, int num_rows, int64_t row, int64_t begin,
                        int64_t end)
{
    int64_t column = begin;
    for (; end - column >= N_BLOCK; column += N_BLOCK)
        dot_block(a, kind, num_rows, N_BLOCK, row, column);
    for (; column < end; column++) dot_block(a, kind, num_rows, 1, row, column);
}

INLINE int run_dense(const marlin_call *call, int64_t begin, int64_t end, dense_kind kind)
{
    const struct LinearParams *p = call->params;
    dense a = {
        .x = (const float *)call->at[0],
        .weights = call->at[1],
        .output_bias = p->flags & MARLIN_OUTPUT_BIAS ? (const float *)call->at[4] : NULL,
        .y = (float *)call->at[5],
        .n = p->n,
        .k = p->k,
    };
    int64_t rows = call->vars[p->rows_var];
    int64_t first = begin * MARLIN_ROW_TILE;
    int64_t last = end * MARLIN_ROW_TILE < a.n ? end * MARLIN_ROW_TILE : a.n;
    int64_t row = 0;
    for (; rows - row >= M_BLOCK; row += M_BLOCK) run_columns(&a, kind, M_BLOCK, row, first, last);
    for (; row < rows; row++) run_columns(&a, kind, 1, row, first, last);
    return MARLIN_OK;
}

LINEAR_KERNELS(f32, run_dense(call, begin, end, F32))
LINEAR_KERNELS(f16, run_dense(call, begin, end, F16))
LINEAR_KERNELS(bf16, run_dense(call, begin, end, BF16))
