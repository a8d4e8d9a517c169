// matmul.metal: y = x W^T for many rows of x, a prefill: tiles of y on the matrix units.
//
//   x  float [rows, k]     W  [n, k], dense or packed (docs/formats.md)     y  float [rows, n]
//   output bias  float [n], optional;   packed: k % 32 == 0, k % GROUP_SIZE == 0; dense: any k
//
//   Grid: ceil(n / 64) by ceil(rows / 64) threadgroups, one for each 64 by 64 tile of y.
//   Group: 128, four simdgroups in two rows and two columns. Each sums a 32 by 32 quarter in 16
//   matrices of 8 by 8: 32 floats a thread, and 8 matrices loaded for 16 multiplied. Those whose
//   rows lie past the end multiply nothing, so up to 32 rows cost half a tile.
//   Threadgroup memory: 64 rows of x and 64 of W, 32 columns at a time, 18 KiB. Rows are 36 floats
//   apart, so that neither the stores of four columns nor the loads of 8 by 8 matrices, W's
//   transposed, meet in a bank. The tile of y leaves through the same memory.
//
//   Bytes: W once for each 64 rows, x once for each 64 columns. A step of 32 columns is 8 KiB of x,
//   1 to 8 KiB of W and 256 Kop, at least 16 operations a byte, most from the caches.
//   Operations: 2 * rows * n * k. A weight is decoded once a tile, three or four operations beside
//   the 128 that it takes part in.
//
//   Floats throughout: an activation may be larger than a half. Halves would take half the
//   threadgroup memory and registers, and a step's largest activation to scale x by; to be measured
//   on a Mac, with 32 rows, and with two steps' tiles in turn.
//
//   A row's sum runs over k in order, eight columns at a time, whatever the number of rows.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "common.h"
#include "experts.h"
#include "weights.h"

using namespace metal;

#define MATMUL_THREADS 128
// Of a tile: rows of x, rows of W, columns of both in one step.
#define MATMUL_ROWS 64
#define MATMUL_COLUMNS 64
#define MATMUL_STEP 32
// Floats from row to row in threadgroup memory: of x and W, of y.
#define MATMUL_STRIDE (MATMUL_STEP + 4)
#define MATMUL_Y_STRIDE (MATMUL_COLUMNS + 4)
// 8 by 8 matrices along a side of a simdgroup's quarter.
#define MATMUL_SIDE 4

static_assert(MATMUL_ROWS * MATMUL_Y_STRIDE <= (MATMUL_ROWS + MATMUL_COLUMNS) * MATMUL_STRIDE,
              "the tile of y fits where x and W lie");

// What a threadgroup fills its tiles from.
struct MatmulWeight {
    device const uchar *data;
    device const uchar *scales;
    device const uchar *biases;
    uint n;
    uint k;
    uint row; // first of the tile
};

inline void matmul_store(threadgroup float *to, uint row, uint column, float4 values)
{
    *(threadgroup float4 *)(to + row * MATMUL_STRIDE + column) = values;
}

// Columns [column, column + MATMUL_STEP) of up to 64 rows of a dense matrix, zeros past its ends.
template <typename Weight, typename Rows>
inline void matmul_load_dense(device const typename Weight::type *values_at,
                              thread const Rows &rows, uint num_rows, uint k, uint column,
                              threadgroup float *to, uint thread_index)
{
    for (uint i = thread_index; i < MATMUL_ROWS * MATMUL_STEP / 4; i += MATMUL_THREADS) {
        const uint row = i / (MATMUL_STEP / 4), quad = i % (MATMUL_STEP / 4) * 4;
        const uint left = row < num_rows && column + quad < k ? k - column - quad : 0;
        const ulong first = ulong(x_row(rows, left > 0 ? row : 0)) * k;
        device const typename Weight::type *at = values_at + first + column + quad;
        float4 values = float4(0.0f);
        if (left >= 4) {
            values = Weight::quad(at);
        } else {
            if (left > 0) values.x = Weight::one(at[0]);
            if (left > 1) values.y = Weight::one(at[1]);
            if (left > 2) values.z = Weight::one(at[2]);
        }
        matmul_store(to, row, quad, values);
    }
}

// How W comes into threadgroup memory: in place, or decoded from words. Neighbouring threads take
// the same columns of the sixteen rows that lie side by side.
template <typename Weight> struct DenseTile {
    enum { BITS = 8 * sizeof(typename Weight::type), IS_PACKED = 0 };
    static void load(thread const MatmulWeight &w, uint column, threadgroup float *to,
                     uint thread_index)
    {
        typedef typename Weight::type type;
        const Neighbours rows = {w.row};
        matmul_load_dense<Weight>((device const type *)w.data, rows, w.n - w.row, w.k, column, to,
                                  thread_index);
    }
};

template <typename Weight> struct PackedTile {
    enum { BITS = Weight::BITS, IS_PACKED = 1 };
    static void load(thread const MatmulWeight &w, uint column, threadgroup float *to,
                     uint thread_index)
    {
        const uint words = MATMUL_STEP / Weight::COLUMNS; // of a row, in this step
        const uint num_words = w.k * Weight::BITS / 32, num_groups = w.k / GROUP_SIZE;
        for (uint i = thread_index; i < MATMUL_COLUMNS * words; i += MATMUL_THREADS) {
            const uint lane = i % MARLIN_ROW_TILE, j = i / MARLIN_ROW_TILE % words;
            const uint row = i / (MARLIN_ROW_TILE * words) * MARLIN_ROW_TILE;
            const uint first = column + j * Weight::COLUMNS;
            uint2 codes = uint2(0);
            float scale = 0.0f, bias = 0.0f;
            if (w.row + row < w.n) {
                const uint tile = (w.row + row) / MARLIN_ROW_TILE;
                const ulong words_at = ulong(tile) * num_words * MARLIN_ROW_TILE + lane;
                codes = Weight::load((device const uint *)w.data + words_at, first);
                const uint group = first / GROUP_SIZE;
                scale = scale_at(w.scales, tile, num_groups, group, lane);
                if (Weight::has_bias()) bias = scale_at(w.biases, tile, num_groups, group, lane);
            }
            for (uint q = 0; q < Weight::COLUMNS / 4; q++)
                matmul_store(to, row + lane, j * Weight::COLUMNS + 4 * q,
                             scale * Weight::quad(codes, first + 4 * q) + bias);
        }
    }
};

// One step of a simdgroup's quarter: x and w are its first rows. Unrolled, so that the matrices
// stay in registers.
inline void matmul_step(thread simdgroup_float8x8 (&sums)[MATMUL_SIDE][MATMUL_SIDE],
                        threadgroup const float *x, threadgroup const float *w)
{
    for (uint column = 0; column < MATMUL_STEP; column += 8) {
        simdgroup_float8x8 rows[MATMUL_SIDE], columns[MATMUL_SIDE];
#pragma unroll
        for (uint i = 0; i < MATMUL_SIDE; i++)
            simdgroup_load(rows[i], x + 8 * i * MATMUL_STRIDE + column, MATMUL_STRIDE);
#pragma unroll
        for (uint j = 0; j < MATMUL_SIDE; j++)
            simdgroup_load(columns[j], w + 8 * j * MATMUL_STRIDE + column, MATMUL_STRIDE,
                           ulong2(0, 0), true);
#pragma unroll
        for (uint i = 0; i < MATMUL_SIDE; i++)
#pragma unroll
            for (uint j = 0; j < MATMUL_SIDE; j++)
                simdgroup_multiply_accumulate(sums[i][j], rows[i], columns[j], sums[i][j]);
    }
}

// A tile of y: num_rows rows of x, from `column` of the weight's rows on.
template <typename Tile, typename Rows>
inline void matmul_tile(device const float *x, thread const MatmulWeight &weight,
                        device const float *output_bias, device float *y, thread const Rows &rows,
                        uint num_rows, threadgroup float *tiles, uint thread_index, uint simdgroup)
{
    threadgroup float *x_tile = tiles, *w_tile = tiles + MATMUL_ROWS * MATMUL_STRIDE;
    const uint column = weight.row;
    const uint num_columns = min(weight.n - column, uint(MATMUL_COLUMNS));
    // Where this simdgroup's quarter begins in the tile of y.
    const uint quarter_row = simdgroup / 2 * 8 * MATMUL_SIDE;
    const uint quarter_column = simdgroup % 2 * 8 * MATMUL_SIDE;
    const bool has_work = quarter_row < num_rows && quarter_column < num_columns;
    simdgroup_float8x8 sums[MATMUL_SIDE][MATMUL_SIDE];
#pragma unroll
    for (uint i = 0; i < MATMUL_SIDE; i++)
#pragma unroll
        for (uint j = 0; j < MATMUL_SIDE; j++)
            sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < weight.k; k += MATMUL_STEP) {
        matmul_load_dense<F32Weight>(x, rows, num_rows, weight.k, k, x_tile, thread_index);
        Tile::load(weight, k, w_tile, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (has_work)
            matmul_step(sums, x_tile + quarter_row * MATMUL_STRIDE,
                        w_tile + quarter_column * MATMUL_STRIDE);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

#pragma unroll
    for (uint i = 0; i < MATMUL_SIDE; i++)
#pragma unroll
        for (uint j = 0; j < MATMUL_SIDE; j++)
            simdgroup_store(sums[i][j],
                            tiles + (quarter_row + 8 * i) * MATMUL_Y_STRIDE + quarter_column +
                                8 * j,
                            MATMUL_Y_STRIDE);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = thread_index; i < num_rows * MATMUL_COLUMNS; i += MATMUL_THREADS) {
        const uint r = i / MATMUL_COLUMNS, c = i % MATMUL_COLUMNS;
        if (c >= num_columns) continue;
        const float bias = FLAGS & MARLIN_OUTPUT_BIAS ? output_bias[column + c] : 0.0f;
        y[ulong(y_row(rows, r)) * weight.n + column + c] = tiles[r * MATMUL_Y_STRIDE + c] + bias;
    }
}

template <typename Tile>
[[kernel, max_total_threads_per_threadgroup(MATMUL_THREADS)]] void
matmul(device const float *x [[buffer(0)]], device const uchar *data [[buffer(1)]],
       device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],
       device const float *output_bias [[buffer(4)]], device float *y [[buffer(5)]],
       constant LinearParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
       constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
       uint3 group [[threadgroup_position_in_grid]],
       uint thread_index [[thread_index_in_threadgroup]],
       uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float4 memory[(MATMUL_ROWS + MATMUL_COLUMNS) * MATMUL_STRIDE / 4];
    const Neighbours rows = {group.y * MATMUL_ROWS};
    const uint num_rows = min(uint(vars[p.rows_var]) - rows.first, uint(MATMUL_ROWS));
    const MatmulWeight weight = {data, scales, biases, p.n, p.k, group.x * MATMUL_COLUMNS};
    matmul_tile<Tile>(x, weight, output_bias, y, rows, num_rows, (threadgroup float *)memory,
                      thread_index, simdgroup);
}

// The same of one expert, for the rows that chose it.
//
//   W  of all experts, one after the other: data, scales and biases of each have as many bytes
//   Grid: ceil(n / 64) by ceil(tokens / 64) by groups of sort_experts: no expert has more rows than
//   there are tokens. Those past its rows end at once.
template <typename Tile>
[[kernel, max_total_threads_per_threadgroup(MATMUL_THREADS)]] void matmul_experts(
    device const float *x [[buffer(0)]], device const uchar *data [[buffer(1)]],
    device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],
    device const float *output_bias [[buffer(4)]], device float *y [[buffer(5)]],
    device const int32_t *order [[buffer(6)]], device const int32_t *groups [[buffer(7)]],
    constant ExpertParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
    constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
    constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
    device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
    uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float4 memory[(MATMUL_ROWS + MATMUL_COLUMNS) * MATMUL_STRIDE / 4];
    Chosen rows;
    if (!find_chosen(rows, order, groups, group.z, group.y * MATMUL_ROWS, MATMUL_ROWS, p, vars,
                     status, call))
        return;
    const ulong values = ulong(rows.expert) * p.n * p.k;
    MatmulWeight weight = {data, scales, biases, p.n, p.k, group.x * MATMUL_COLUMNS};
    weight.data += values * Tile::BITS / 8;
    if (Tile::IS_PACKED) {
        const ulong scale_at = MARLIN_SCALE_BYTES(FLAGS, GROUP_SIZE, p.k, values / GROUP_SIZE);
        weight.scales += scale_at;
        weight.biases += scale_at;
    }
    if (FLAGS & MARLIN_OUTPUT_BIAS) output_bias += rows.expert * p.n;
    matmul_tile<Tile>(x, weight, output_bias, y, rows, rows.count, (threadgroup float *)memory,
                      thread_index, simdgroup);
}

#define MATMUL(name, Tile) MATMUL_OF(name, Tile, matmul)
#define MATMUL_OF(name, Tile, function)                                                            \
    static_assert(THREADS_##name == MATMUL_THREADS && UNITS_Y_##name == MATMUL_ROWS &&             \
                      UNITS_X_##name * MARLIN_ROW_TILE == MATMUL_COLUMNS,                          \
                  "kernel_list.h says otherwise");                                                 \
    template [[host_name(#name)]] [[kernel]] decltype(function<Tile>) function<Tile>;

MATMUL(matmul_f32, DenseTile<F32Weight>)
MATMUL(matmul_f16, DenseTile<F16Weight>)
MATMUL(matmul_bf16, DenseTile<Bf16Weight>)
MATMUL(matmul_int8, PackedTile<Int8Weight>)
MATMUL(matmul_int4, PackedTile<Int4Weight>)
MATMUL(matmul_fp4, PackedTile<Fp4Weight>)
MATMUL(matmul_int5, PackedTile<Int5Weight>)
MATMUL(matmul_int6, PackedTile<Int6Weight>)
MATMUL(matmul_iq4, PackedTile<Iq4Weight>)
MATMUL(matmul_fp8, PackedTile<Fp8Weight>)
MATMUL(matmul_nf4, PackedTile<Nf4Weight>)
MATMUL_OF(matmul_experts_f32, DenseTile<F32Weight>, matmul_experts)
MATMUL_OF(matmul_experts_f16, DenseTile<F16Weight>, matmul_experts)
MATMUL_OF(matmul_experts_bf16, DenseTile<Bf16Weight>, matmul_experts)
MATMUL_OF(matmul_experts_int8, PackedTile<Int8Weight>, matmul_experts)
MATMUL_OF(matmul_experts_int4, PackedTile<Int4Weight>, matmul_experts)
MATMUL_OF(matmul_experts_fp4, PackedTile<Fp4Weight>, matmul_experts)
MATMUL_OF(matmul_experts_int5, PackedTile<Int5Weight>, matmul_experts)
MATMUL_OF(matmul_experts_int6, PackedTile<Int6Weight>, matmul_experts)
MATMUL_OF(matmul_experts_iq4, PackedTile<Iq4Weight>, matmul_experts)
MATMUL_OF(matmul_experts_fp8, PackedTile<Fp8Weight>, matmul_experts)
MATMUL_OF(matmul_experts_nf4, PackedTile<Nf4Weight>, matmul_experts)
