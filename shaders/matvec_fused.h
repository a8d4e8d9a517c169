// matvec_fused.h: matvec of packed weights together with what comes before and after it, a part of
// matvec.metal, whose head has the shapes, the grid and the order of sums.
//
//   MARLIN_NORMED    x is a hidden row times a norm's weights, not yet divided by the root of its
//                    mean square: y is, as a sum. squares  float [rows, k / 16]: the sums of the
//                    hidden row's squares, 16 columns each
//   MARLIN_GATED     y = activation(x W^T + b) * (x V^T + c), V and c as W and b
//   MARLIN_RESIDUAL  residual += (x W^T + b) * scale;  y = residual * norm;
//                    out squares  float [rows, ceil(n / 16)] of residual
//                    residual  float [rows, n]    norm  float [n]
//
// So that a norm needs no dispatch: who makes a row leaves the sums of its squares, a tile's each,
// and who multiplies it divides by them at the end. Bytes: those of matvec, and of the squares k /
// 4 a row and tile, from the cache. Gated, both matrices take their turn in the same 8 KiB.
#ifndef MARLIN_MATVEC_FUSED_H
#define MARLIN_MATVEC_FUSED_H

// What a threadgroup reads and writes besides x, the weights and y.
struct MatvecFold {
    device const float *squares;
    device float *residual;
    device const float *norm;
    device float *out_squares;
};

// 1 / sqrt(mean + eps) of each row of a threadgroup, a simdgroup a row.
inline void fused_inverses(device const float *squares, constant FusedParams &p, uint first_row,
                           uint rows, uint lane, uint simdgroup, threadgroup float *inverses)
{
    const uint count = p.k / MARLIN_ROW_TILE;
    for (uint m = simdgroup; m < ROWS; m += SIMDGROUPS) {
        if (first_row + m >= rows) break;
        device const float *from = squares + ulong(first_row + m) * count;
        float sum = 0.0f;
        for (uint i = lane; i < count; i += SIMD_THREADS) sum += from[i];
        sum = simd_sum(sum);
        if (lane == 0) inverses[m] = precise::rsqrt(sum / float(p.k) + p.eps);
    }
}

inline float fused_activation(uint which, float x)
{
    return which == MARLIN_GELU ? Gelu::of(x) : Silu::of(x);
}

// Value i of a threadgroup's 16 columns of each row, of the parts in threadgroup memory.
template <typename Weight>
inline float fused_value(threadgroup const float4 *parts, threadgroup const float *inverses,
                         device const float *bias, uint i, uint column)
{
    float sum = matvec_sum<Weight>(parts, i);
    if (FLAGS & MARLIN_NORMED) sum *= inverses[i / 16];
    return FLAGS & MARLIN_OUTPUT_BIAS ? sum + bias[column] : sum;
}

// The residual of one column, whose tile's squares are summed over its 16 lanes.
inline void fused_add(thread const MatvecFold &fold, constant FusedParams &p, device float *y,
                      ulong row, uint column, bool inside, float value)
{
    const ulong at = row * p.n + column;
    float hidden = 0.0f;
    if (inside) {
        hidden = fma(value, p.residual_scale, fold.residual[at]);
        fold.residual[at] = hidden;
        y[at] = hidden * fold.norm[column];
    }
    float square = hidden * hidden;
    square += simd_shuffle_xor(square, ushort(1));
    square += simd_shuffle_xor(square, ushort(2));
    square += simd_shuffle_xor(square, ushort(4));
    square += simd_shuffle_xor(square, ushort(8));
    const uint tiles = (p.n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE;
    if (inside && column % MARLIN_ROW_TILE == 0)
        fold.out_squares[row * tiles + column / MARLIN_ROW_TILE] = square;
}

template <typename Weight>
inline void matvec_fused(device const float *x, MatvecSource from, MatvecSource up,
                         device const float *bias, device const float *up_bias, device float *y,
                         thread const MatvecFold &fold, constant FusedParams &p,
                         constant int32_t *vars, uint2 group, uint lane, uint simdgroup,
                         threadgroup float4 *parts, threadgroup float *inverses)
{
    const uint first_row = group.y * ROWS, threads = SIMDGROUPS * SIMD_THREADS;
    const uint rows = ROWS > 1 ? uint(vars[p.rows_var]) : first_row + 1;
    const uint thread_index = simdgroup * SIMD_THREADS + lane;
    const uint column = group.x * 16 + thread_index % 16;
    if (FLAGS & MARLIN_NORMED)
        fused_inverses(fold.squares, p, first_row, rows, lane, simdgroup, inverses);
    matvec_parts<Weight>(x, from, p.k, rows, group, lane, simdgroup, parts);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Values a thread has: two at most, of 16 rows and 128 threads.
    float gates[2] = {0.0f, 0.0f};
    if (FLAGS & MARLIN_GATED) {
#pragma unroll
        for (uint turn = 0; turn < 2; turn++) {
            const uint i = turn * threads + thread_index;
            if (i >= 16 * ROWS || column >= p.n || first_row + i / 16 >= rows) continue;
            float value = fused_value<Weight>(parts, inverses, bias, i, column);
            gates[turn] = fused_activation(p.activation, value);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        matvec_parts<Weight>(x, up, p.k, rows, group, lane, simdgroup, parts);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        bias = up_bias;
    }
#pragma unroll
    for (uint turn = 0; turn < 2; turn++) {
        const uint i = turn * threads + thread_index, row = first_row + i / 16;
        const bool inside = i < 16 * ROWS && column < p.n && row < rows;
        float value = inside ? fused_value<Weight>(parts, inverses, bias, i, column) : 0.0f;
        if (FLAGS & MARLIN_GATED) value *= gates[turn];
        if (FLAGS & MARLIN_RESIDUAL)
            fused_add(fold, p, y, row, column, inside, value);
        else if (inside)
            y[ulong(row) * p.n + column] = value;
    }
}

inline MatvecSource fused_source(device const void *codes, device const void *scales,
                                 device const void *biases)
{
    MatvecSource from;
    from.codes = (device const uint4 *)codes;
    from.scales = (device const uchar *)scales;
    from.biases = (device const uchar *)biases;
    return from;
}

// Bindings 7 to 9 are V's, or the residual, its norm and its squares.
#define MATVEC_FUSED(kernel_name, Weight)                                                          \
    [[kernel, max_total_threads_per_threadgroup(MATVEC_THREADS)]] void kernel_name(                \
        device const float *x [[buffer(0)]], device const uint4 *codes [[buffer(1)]],              \
        device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],        \
        device const float *bias [[buffer(4)]], device float *y [[buffer(5)]],                     \
        device const float *squares [[buffer(6)]], device float *seventh [[buffer(7)]],            \
        device const float *eighth [[buffer(8)]], device float *ninth [[buffer(9)]],               \
        device const float *up_bias [[buffer(10)]],                                                \
        constant FusedParams &p [[buffer(MARLIN_PARAMS_INDEX)]],                                   \
        constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],                                      \
        uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],     \
        uint simdgroup [[simdgroup_index_in_threadgroup]])                                         \
    {                                                                                              \
        threadgroup float4 parts[MAX_ROWS * MATVEC_SIMDGROUPS * 4];                                \
        threadgroup float inverses[MAX_ROWS];                                                      \
        const MatvecSource from =                                                                  \
            fused_source(codes, scales, Weight::has_bias() ? biases : scales);                     \
        const MatvecSource up =                                                                    \
            fused_source(seventh, eighth, Weight::has_bias() ? ninth : eighth);                    \
        const MatvecFold fold = {squares, seventh, eighth, ninth};                                 \
        matvec_fused<Weight>(x, from, up, bias, up_bias, y, fold, p, vars, group, lane, simdgroup, \
                             parts, inverses);                                                     \
    }

MATVEC_FUSED(matvec_fused_fp4, MatvecFp4)
MATVEC_FUSED(matvec_fused_int4, MatvecInt4)
MATVEC_FUSED(matvec_fused_int8, MatvecInt8)
MATVEC_FUSED(matvec_fused_int5, MatvecInt5)
MATVEC_FUSED(matvec_fused_int6, MatvecInt6)
MATVEC_FUSED(matvec_fused_iq4, MatvecIq4)

#endif
