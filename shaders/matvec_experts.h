// matvec_experts.h: the part of matvec.metal that multiplies the matrices of a mixture's experts
// for the few rows that chose each, with what that file says of weights; included at its end.

// The tile of one expert for the rows that chose it, ROW_BLOCK of them at a time: the sums of a row
// are those of matvec_packed.
//
//   W  of all experts, one after the other; n % 16 == 0     y, output bias  float [choices, n],
//   [num_experts, n]
//   Grid: n / 16 tiles by ceil(tokens / ROWS) by groups of sort_experts: no expert has more rows
//   than there are tokens. Those past its rows end at once.
template <typename Weight>
inline void matvec_chosen(device const float *x, MatvecSource from, device const float *output_bias,
                          device float *y, constant ExpertParams &p, thread const Chosen &chosen,
                          uint tile, uint lane, uint simdgroup, threadgroup float4 *parts)
{
    const uint k = p.k, n = p.n, block = min(uint(ROWS), uint(ROW_BLOCK));
    const ulong tiles = ulong(chosen.expert) * (n / 16) + tile;
    const ulong scales = tiles * scales_bytes(k);
    from.codes += tiles * (k * Weight::BITS / 8);
    from.scales += scales;
    from.biases += scales;
    for (uint first = 0; first < chosen.count; first += block) {
        ChosenRows rows;
        rows.last = min(chosen.count - first, block) - 1;
        float4 sums[ROW_BLOCK];
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            sums[m] = float4(0.0f);
            if (m < block) rows.at[m] = x_row(chosen, first + min(m, rows.last)) * k;
        }
        multiply_part<Weight>(sums, x, from, k, rows, simdgroup, lane);
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            if (m > rows.last) break;
            float4 sum = quarter_sum(sums[m]);
            if (lane < 4) parts[(m * SIMDGROUPS + simdgroup) * 4 + lane] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        threadgroup const float *part_sums = (threadgroup const float *)parts;
        const uint i = simdgroup * SIMD_THREADS + lane, m = i / 16, column = tile * 16 + i % 16;
        if (m <= rows.last) {
            float sum = 0.0f;
#pragma unroll
            for (uint part = 0; part < SIMDGROUPS; part++)
                sum += part_sums[(m * SIMDGROUPS + part) * 16 + i % 16];
            sum *= Weight::step();
            if (FLAGS & MARLIN_OUTPUT_BIAS) sum += output_bias[chosen.expert * n + column];
            y[ulong(y_row(chosen, first + m)) * n + column] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}

#define MATVEC_EXPERTS(kernel_name, Weight)                                                        \
    [[kernel, max_total_threads_per_threadgroup(MATVEC_THREADS)]] void kernel_name(                \
        device const float *x [[buffer(0)]], device const uint4 *codes [[buffer(1)]],              \
        device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],        \
        device const float *output_bias [[buffer(4)]], device float *y [[buffer(5)]],              \
        device const int32_t *order [[buffer(6)]], device const int32_t *groups [[buffer(7)]],     \
        constant ExpertParams &p [[buffer(MARLIN_PARAMS_INDEX)]],                                  \
        constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],                                      \
        constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],                                   \
        device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],                                \
        uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],     \
        uint simdgroup [[simdgroup_index_in_threadgroup]])                                         \
    {                                                                                              \
        threadgroup float4 parts[ROW_BLOCK * MATVEC_SIMDGROUPS * 4];                               \
        Chosen chosen;                                                                             \
        if (!find_chosen(chosen, order, groups, group.z, group.y * ROWS, ROWS, p, vars, status,    \
                         call))                                                                    \
            return;                                                                                \
        MatvecSource from;                                                                         \
        from.codes = codes;                                                                        \
        from.scales = scales;                                                                      \
        from.biases = Weight::has_bias() ? biases : scales;                                        \
        matvec_chosen<Weight>(x, from, output_bias, y, p, chosen, group.x, lane, simdgroup,        \
                              parts);                                                              \
    }

MATVEC_EXPERTS(matvec_experts_fp4, MatvecFp4)
MATVEC_EXPERTS(matvec_experts_int4, MatvecInt4)
MATVEC_EXPERTS(matvec_experts_int8, MatvecInt8)
MATVEC_EXPERTS(matvec_experts_int5, MatvecInt5)
MATVEC_EXPERTS(matvec_experts_int6, MatvecInt6)
MATVEC_EXPERTS(matvec_experts_iq4, MatvecIq4)
MATVEC_EXPERTS(matvec_experts_fp8, MatvecFp8)
MATVEC_EXPERTS(matvec_experts_nf4, MatvecNf4)

#define EXPERT_ROWS 2

// The same of one expert, for the rows that chose it: a simdgroup takes two of its rows.
template <typename Weight>
inline void matvec_dense_chosen(device const float *x, device const typename Weight::type *weights,
                                device const float *output_bias, device float *y,
                                constant ExpertParams &p, thread const Chosen &chosen, uint tile,
                                uint lane, uint simdgroup)
{
    const uint k = p.k, n = p.n, w_row = tile * 16 + simdgroup * EXPERT_ROWS;
    const uint block = min(uint(ROWS), uint(ROW_BLOCK));
    if (w_row >= n) return;
    ulong offsets[EXPERT_ROWS];
#pragma unroll
    for (uint r = 0; r < EXPERT_ROWS; r++)
        offsets[r] = (ulong(chosen.expert) * n + min(w_row + r, n - 1)) * k;
    for (uint first = 0; first < chosen.count; first += block) {
        ChosenRows rows;
        rows.last = min(chosen.count - first, block) - 1;
        float sums[ROW_BLOCK][EXPERT_ROWS];
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
#pragma unroll
            for (uint r = 0; r < EXPERT_ROWS; r++) sums[m][r] = 0.0f;
            if (m < block) rows.at[m] = x_row(chosen, first + min(m, rows.last)) * k;
        }
        multiply_rows<Weight, ROW_BLOCK, EXPERT_ROWS>(sums, x, weights, offsets, k, block, rows,
                                                      lane);
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            if (m > rows.last) break;
#pragma unroll
            for (uint r = 0; r < EXPERT_ROWS; r++) {
                float sum = simd_sum(sums[m][r]);
                if (lane == r && w_row + r < n) {
                    if (FLAGS & MARLIN_OUTPUT_BIAS)
                        sum += output_bias[chosen.expert * n + w_row + r];
                    y[ulong(y_row(chosen, first + m)) * n + w_row + r] = sum;
                }
            }
        }
    }
}

#define MATVEC_DENSE_EXPERTS(kernel_name, Weight)                                                  \
    [[kernel, max_total_threads_per_threadgroup(MATVEC_THREADS)]] void kernel_name(                \
        device const float *x [[buffer(0)]], device const Weight::type *weights [[buffer(1)]],     \
        device const float *output_bias [[buffer(4)]], device float *y [[buffer(5)]],              \
        device const int32_t *order [[buffer(6)]], device const int32_t *groups [[buffer(7)]],     \
        constant ExpertParams &p [[buffer(MARLIN_PARAMS_INDEX)]],                                  \
        constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],                                      \
        constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],                                   \
        device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],                                \
        uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],     \
        uint simdgroup [[simdgroup_index_in_threadgroup]])                                         \
    {                                                                                              \
        Chosen chosen;                                                                             \
        if (find_chosen(chosen, order, groups, group.z, group.y * ROWS, ROWS, p, vars, status,     \
                        call))                                                                     \
            matvec_dense_chosen<Weight>(x, weights, output_bias, y, p, chosen, group.x, lane,      \
                                        simdgroup);                                                \
    }

MATVEC_DENSE_EXPERTS(matvec_experts_f32, F32Weight)
MATVEC_DENSE_EXPERTS(matvec_experts_f16, F16Weight)
MATVEC_DENSE_EXPERTS(matvec_experts_bf16, Bf16Weight)
