// matvec.metal: y = x W^T for few rows of x, a decode step: W is read once, as fast as memory goes.
//
//   x  float [rows, k], 16-byte aligned     y  float [rows, n]     output bias  float [n], optional
//   W  packed (docs/formats.md), codes, scales and biases 16-byte aligned; k % 32 == 0,
//      k % GROUP_SIZE == 0     or dense [n, k], any k, aligned to its elements
//
//   Grid: ceil(n / 16) tiles by ceil(rows / ROWS). Group: 256, eight simdgroups.
//
// Packed: a lane takes four rows of a tile, a quarter, and 16 columns at a time: two loads of 16
// bytes for 4-bit codes. Eight lanes side by side make 128 columns, the simdgroups 1024; the next
// 1024 are loaded before the present ones are multiplied. Eight simdgroups rather than four or two:
// small matrices are bound by the time of a step, large ones lose less. Scales (and biases, times
// the sum of x) are applied once for 16 columns. A simdgroup holds ROW_BLOCK rows of x; with more,
// simdgroups take different rows of the same weights, so close in time that a cache answers.
// Threadgroup memory: 8 KiB.
//
// Dense: a simdgroup takes two rows of W and all rows of x, a lane four columns of every 128.
//
// A row of x is summed in the same order whatever ROWS is: 16 columns of 64 places in turn, over
// the lanes of a simdgroup as a tree, over the simdgroups in order.
#include <metal_stdlib>

#include "common.h"
#include "weights.h"

using namespace metal;

#define MATVEC_THREADS 256
#define MATVEC_SIMDGROUPS 8
// Rows of x that a simdgroup holds: 16 floats a thread, and as many for one step.
#define ROW_BLOCK 4
#define MAX_ROWS 16
// Rows of a dense W that a simdgroup takes.
#define DENSE_ROWS (16 / MATVEC_SIMDGROUPS)
// Columns that a lane takes at a time: 16, so that no step has two scales.
#define STEP_COLUMNS 16
// Lanes of a simdgroup that share a quarter, and steps that a threadgroup takes together.
#define QUARTER_LANES (SIMD_THREADS / 4)
#define STEPS_TOGETHER (MATVEC_SIMDGROUPS * QUARTER_LANES)

static_assert(MATVEC_THREADS == int(THREADS_matvec_fp4), "launch.h and this file agree");

// Loads of whole vectors: by value, so that every compiler keeps them whole.
inline float4 load_floats(device const float *from) { return *(device const float4 *)from; }
inline uint4 load_words(device const uint4 *from) { return *from; }
inline uint2 load_halves(device const uchar *from) { return *(device const uint2 *)from; }

// Two bytes or two nibbles of a word become halves with one mask: bits below an exponent that makes
// the last of them 1.
inline float2 masked_pair(uint word, uint mask, uint exponent)
{
    return float2(as_type<half2>((word & mask) | exponent));
}

// Kinds of packed weights. quad(word, i): columns 4i to 4i + 3 of one row's word, as code + OFFSET
// and without STEP, which a whole sum takes in at its end.
struct MatvecFp4 {
    enum { WORD_COLUMNS = 8, OFFSET = 0 };
    static float step() { return FP4_STEP; }
    static bool has_bias() { return false; }
    static float4 quad(uint word, uint i)
    {
        float2 even = float2(fp4_pair(word >> 4 * i)), odd = float2(fp4_pair(word >> (4 * i + 8)));
        return float4(even.x, odd.x, even.y, odd.y);
    }
};

// A nibble at bits 6 to 9 of a half whose exponent is 16's: code + 16.
struct MatvecInt4 {
    enum { WORD_COLUMNS = 8, OFFSET = 16 };
    static float step() { return 1.0f; }
    static bool has_bias() { return true; }
    static float4 quad(uint word, uint i)
    {
        float2 even = masked_pair(i == 0 ? word << 6 : word << 2, 0x03c003c0u, 0x4c004c00u);
        float2 odd = masked_pair(i == 0 ? word >> 2 : word >> 6, 0x03c003c0u, 0x4c004c00u);
        return float4(even.x, odd.x, even.y, odd.y);
    }
};

// A byte below an exponent of 1024's: 1024 + 128 + code. The difference is exact.
struct MatvecInt8 {
    enum { WORD_COLUMNS = 4, OFFSET = 0 };
    static float step() { return 1.0f; }
    static bool has_bias() { return FLAGS & MARLIN_WEIGHT_BIAS; }
    static float4 quad(uint word, uint)
    {
        float2 even = masked_pair(word, 0x00ff00ffu, 0x64006400u);
        float2 odd = masked_pair(word >> 8, 0x00ff00ffu, 0x64006400u);
        return float4(even.x, odd.x, even.y, odd.y) - 1152.0f;
    }
};

// Where a lane reads its part of a tile, step after step.
struct MatvecSource {
    device const uint4 *codes;
    device const uchar *scales;
    device const uchar *biases;
};

// One step of a lane: 16 columns of four rows, as they lie in memory: what is loaded ahead must not
// be touched before its turn, or the loads are waited for.
template <typename Weight> struct MatvecStep {
    uint4 codes[STEP_COLUMNS / Weight::WORD_COLUMNS];
    uint4 scales; // of four rows: floats, or halves in the first two words
    uint4 biases;
};

// Bytes of the scales of four rows.
inline uint scales_bytes() { return FLAGS & MARLIN_SCALE_F32 ? 16 : 8; }

inline uint4 load_scales(device const uchar *from)
{
    if (FLAGS & MARLIN_SCALE_F32) return load_words((device const uint4 *)from);
    uint2 halves = load_halves(from);
    return uint4(halves.x, halves.y, 0, 0);
}

inline float4 scales_of(uint4 raw)
{
    if (FLAGS & MARLIN_SCALE_F32) return as_type<float4>(raw);
    return float4(float2(as_type<half2>(raw.x)), float2(as_type<half2>(raw.y)));
}

template <typename Weight>
inline void load_step(thread MatvecStep<Weight> &step, thread const MatvecSource &from)
{
#pragma unroll
    for (uint i = 0; i < STEP_COLUMNS / Weight::WORD_COLUMNS; i++)
        step.codes[i] = load_words(from.codes + 4 * i);
    step.scales = load_scales(from.scales);
    if (Weight::has_bias()) step.biases = load_scales(from.biases);
}

// sum + the products of a and b, in order.
inline float dot_add(float4 a, float4 b, float sum)
{
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Adds a step's products with up to ROW_BLOCK rows of x. last: the last of them that exists, whose
// values also stand for those beyond.
template <typename Weight>
inline void multiply_step(thread float4 *sums, thread const MatvecStep<Weight> &step,
                          device const float *x, uint k, uint last)
{
    float4 dots[ROW_BLOCK];
    float totals[ROW_BLOCK];
#pragma unroll
    for (uint m = 0; m < ROW_BLOCK; m++) {
        dots[m] = float4(0.0f);
        totals[m] = 0.0f;
    }
#pragma unroll
    for (uint i = 0; i < STEP_COLUMNS / 4; i++) {
        uint4 words = step.codes[4 * i / Weight::WORD_COLUMNS];
        float4 codes[4];
#pragma unroll
        for (uint r = 0; r < 4; r++)
            codes[r] = Weight::quad(words[r], 4 * i % Weight::WORD_COLUMNS / 4);
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            if (m >= ROWS) break;
            float4 values = load_floats(x + min(m, last) * k + 4 * i);
            if (Weight::has_bias()) totals[m] += (values.x + values.y) + (values.z + values.w);
#pragma unroll
            for (uint r = 0; r < 4; r++) dots[m][r] = dot_add(codes[r], values, dots[m][r]);
        }
    }
    float4 scales = scales_of(step.scales), biases = float4(0.0f);
    if (Weight::has_bias())
        biases = fma(scales, float4(-float(Weight::OFFSET)), scales_of(step.biases));
#pragma unroll
    for (uint m = 0; m < ROW_BLOCK; m++) {
        if (m >= ROWS) break;
        sums[m] = fma(scales, dots[m], sums[m]);
        if (Weight::has_bias()) sums[m] = fma(biases, float4(totals[m]), sums[m]);
    }
}

// To the next step, if it is one of the steps left to read: the last is read again rather than what
// lies behind the tile.
template <typename Weight> inline void advance(thread MatvecSource &from, thread uint &unread)
{
    uint ahead = unread > 1 ? STEPS_TOGETHER : 0;
    from.codes += ahead * (STEP_COLUMNS / Weight::WORD_COLUMNS * 4);
    from.scales += ahead * STEP_COLUMNS / GROUP_SIZE * 4 * scales_bytes();
    from.biases += ahead * STEP_COLUMNS / GROUP_SIZE * 4 * scales_bytes();
    if (unread > 1) unread--;
}

// Sums of one tile over a part of the columns, for up to ROW_BLOCK rows of x that begin at x.
template <typename Weight>
inline void multiply_part(thread float4 *sums, device const float *x, MatvecSource from, uint k,
                          uint last, uint part, uint lane)
{
    uint num_steps = k / STEP_COLUMNS, first = part * QUARTER_LANES + lane / 4;
    uint left = num_steps / STEPS_TOGETHER + (first < num_steps % STEPS_TOGETHER ? 1 : 0);
    if (left == 0) return;
    x += first * STEP_COLUMNS;
    uint at = (first * STEP_COLUMNS / GROUP_SIZE * 4 + lane % 4) * scales_bytes();
    from.codes += first * (STEP_COLUMNS / Weight::WORD_COLUMNS * 4) + lane % 4;
    from.scales += at;
    from.biases += at;
    MatvecStep<Weight> next;
    uint unread = left;
    load_step(next, from);
    do {
        MatvecStep<Weight> step = next;
        advance<Weight>(from, unread);
        load_step(next, from);
        multiply_step(sums, step, x, k, last);
        x += STEPS_TOGETHER * STEP_COLUMNS;
    } while (--left > 0);
}

// The sums of four rows over the lanes that share a quarter, in each of them.
inline float4 quarter_sum(float4 sum)
{
    sum += simd_shuffle_xor(sum, ushort(4));
    sum += simd_shuffle_xor(sum, ushort(8));
    return sum + simd_shuffle_xor(sum, ushort(16));
}

template <typename Weight>
inline void matvec_packed(device const float *x, MatvecSource from, device const float *output_bias,
                          device float *y, constant LinearParams &p, constant int32_t *vars,
                          uint2 group, uint lane, uint simdgroup, threadgroup float4 *parts)
{
    uint first_row = group.y * ROWS, blocks = (ROWS + ROW_BLOCK - 1) / ROW_BLOCK;
    uint rows = ROWS > 1 ? uint(vars[p.rows_var]) : first_row + 1;
    from.codes += ulong(group.x) * (p.k / Weight::WORD_COLUMNS * 4);
    ulong scales = ulong(group.x) * (p.k / GROUP_SIZE * 4 * scales_bytes());
    from.scales += scales;
    from.biases += scales;
    for (uint i = simdgroup; i < MATVEC_SIMDGROUPS * blocks; i += MATVEC_SIMDGROUPS) {
        uint part = i / blocks, block = i % blocks, row = first_row + block * ROW_BLOCK;
        if (row >= rows) continue;
        float4 sums[ROW_BLOCK];
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) sums[m] = float4(0.0f);
        multiply_part<Weight>(sums, x + ulong(row) * p.k, from, p.k, rows - 1 - row, part, lane);
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            if (m >= ROWS) break;
            float4 sum = quarter_sum(sums[m]);
            uint at = (block * ROW_BLOCK + m) * MATVEC_SIMDGROUPS + part;
            if (lane < 4) parts[at * 4 + lane] = sum;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup const float *part_sums = (threadgroup const float *)parts;
    for (uint i = simdgroup * SIMD_THREADS + lane; i < 16 * ROWS; i += MATVEC_THREADS) {
        uint m = i / 16, column = group.x * 16 + i % 16;
        if (column >= p.n || first_row + m >= rows) continue;
        float sum = 0.0f;
        for (uint part = 0; part < MATVEC_SIMDGROUPS; part++)
            sum += part_sums[(m * MATVEC_SIMDGROUPS + part) * 16 + i % 16];
        sum *= Weight::step();
        if (FLAGS & MARLIN_OUTPUT_BIAS) sum += output_bias[column];
        y[ulong(first_row + m) * p.n + column] = sum;
    }
}

#define MATVEC_PACKED(kernel_name, Weight)                                                         \
    [[kernel, max_total_threads_per_threadgroup(MATVEC_THREADS)]] void kernel_name(                \
        device const float *x [[buffer(0)]], device const uint4 *codes [[buffer(1)]],              \
        device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],        \
        device const float *output_bias [[buffer(4)]], device float *y [[buffer(5)]],              \
        constant LinearParams &p [[buffer(MARLIN_PARAMS_INDEX)]],                                  \
        constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],                                      \
        uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],     \
        uint simdgroup [[simdgroup_index_in_threadgroup]])                                         \
    {                                                                                              \
        threadgroup float4 parts[MAX_ROWS * MATVEC_SIMDGROUPS * 4];                                \
        MatvecSource from;                                                                         \
        from.codes = codes;                                                                        \
        from.scales = scales;                                                                      \
        from.biases = Weight::has_bias() ? biases : scales;                                        \
        matvec_packed<Weight>(x, from, output_bias, y, p, vars, group, lane, simdgroup, parts);    \
    }

MATVEC_PACKED(matvec_fp4, MatvecFp4)
MATVEC_PACKED(matvec_int4, MatvecInt4)
MATVEC_PACKED(matvec_int8, MatvecInt8)

// Products of DENSE_ROWS rows of W, at the same columns, with every row of x.
template <typename Weight>
inline void multiply_rows(thread float (&sums)[MAX_ROWS][DENSE_ROWS], device const float *x,
                          device const typename Weight::type *weights,
                          thread const ulong (&rows)[DENSE_ROWS], uint k, uint last, uint lane)
{
#pragma unroll 4
    for (uint column = lane * 4; column < k / 4 * 4; column += SIMD_THREADS * 4) {
        float4 w[DENSE_ROWS];
#pragma unroll
        for (uint r = 0; r < DENSE_ROWS; r++) w[r] = Weight::quad(weights + rows[r] + column);
#pragma unroll
        for (uint m = 0; m < MAX_ROWS; m++) {
            if (m >= ROWS) break;
            device const float *from = x + min(m, last) * k + column;
            float4 values = k % 4 == 0 ? load_floats(from) : F32Weight::quad(from);
#pragma unroll
            for (uint r = 0; r < DENSE_ROWS; r++) sums[m][r] = dot_add(w[r], values, sums[m][r]);
        }
    }
    uint column = k / 4 * 4 + lane;
    if (column >= k) return;
#pragma unroll
    for (uint m = 0; m < MAX_ROWS; m++) {
        if (m >= ROWS) break;
        float value = x[min(m, last) * k + column];
#pragma unroll
        for (uint r = 0; r < DENSE_ROWS; r++)
            sums[m][r] = fma(Weight::one(weights[rows[r] + column]), value, sums[m][r]);
    }
}

template <typename Weight>
inline void matvec_dense(device const float *x, device const typename Weight::type *weights,
                         device const float *output_bias, device float *y, constant LinearParams &p,
                         constant int32_t *vars, uint2 group, uint lane, uint simdgroup)
{
    uint first_row = group.y * ROWS, first = group.x * 16 + simdgroup * DENSE_ROWS;
    uint rows = ROWS > 1 ? uint(vars[p.rows_var]) : first_row + 1;
    if (first >= p.n || first_row >= rows) return;
    ulong offsets[DENSE_ROWS];
    float sums[MAX_ROWS][DENSE_ROWS];
#pragma unroll
    for (uint r = 0; r < DENSE_ROWS; r++) {
        offsets[r] = ulong(min(first + r, p.n - 1)) * p.k;
#pragma unroll
        for (uint m = 0; m < MAX_ROWS; m++) sums[m][r] = 0.0f;
    }
    multiply_rows<Weight>(sums, x + ulong(first_row) * p.k, weights, offsets, p.k,
                          rows - 1 - first_row, lane);
#pragma unroll
    for (uint m = 0; m < MAX_ROWS; m++) {
        if (m >= ROWS || first_row + m >= rows) break;
#pragma unroll
        for (uint r = 0; r < DENSE_ROWS; r++) {
            float sum = simd_sum(sums[m][r]);
            if (lane == r && first + r < p.n) {
                if (FLAGS & MARLIN_OUTPUT_BIAS) sum += output_bias[first + r];
                y[ulong(first_row + m) * p.n + first + r] = sum;
            }
        }
    }
}

#define MATVEC_DENSE(kernel_name, Weight)                                                          \
    [[kernel, max_total_threads_per_threadgroup(MATVEC_THREADS)]] void kernel_name(                \
        device const float *x [[buffer(0)]], device const Weight::type *weights [[buffer(1)]],     \
        device const float *output_bias [[buffer(4)]], device float *y [[buffer(5)]],              \
        constant LinearParams &p [[buffer(MARLIN_PARAMS_INDEX)]],                                  \
        constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],                                      \
        uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],     \
        uint simdgroup [[simdgroup_index_in_threadgroup]])                                         \
    {                                                                                              \
        matvec_dense<Weight>(x, weights, output_bias, y, p, vars, group, lane, simdgroup);         \
    }

MATVEC_DENSE(matvec_f32, F32Weight)
MATVEC_DENSE(matvec_f16, F16Weight)
MATVEC_DENSE(matvec_bf16, Bf16Weight)
