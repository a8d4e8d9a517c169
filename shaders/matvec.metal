// matvec.metal: y = x W^T for few rows of x, a decode step: W is read once, as fast as memory goes.
//
//   x  float [rows, k], 16-byte aligned     y  float [rows, n]     output bias  float [n], optional
//   W  packed (docs/formats.md), codes, scales and biases 16-byte aligned; k % 32 == 0,
//      k % GROUP_SIZE == 0     or dense [n, k], any k, aligned to its elements
//
//   Grid: ceil(n / 16) tiles by ceil(rows / ROWS). Group: up to eight simdgroups: packed,
//   kernel_list.h says how many for this n; dense, eight.
//
// Packed: a lane takes four rows of a tile, a quarter, and 16 columns at a time: two loads of 16
// bytes for 4-bit codes. Eight lanes side by side make 128 columns, the simdgroups up to 1024. Two
// steps take turns: one is loaded while the other is multiplied. Where there are many tiles, few
// simdgroups share one, so that each has more steps to overlap; where there are few tiles, many.
// Scales (and biases, times the sum of x) are applied once for 16 columns. A simdgroup holds
// ROW_BLOCK rows of x; with more, simdgroups take different rows of the same weights, so close in
// time that a cache answers. Threadgroup memory: 8 KiB.
//
// Operations for a 4-bit weight and one row of x: 0.6 (int4) or 1.4 (fp4) to decode it, one to make
// it a float, one multiply-add, 0.3 (fp4) or 0.9 (int4) for loads, scales, sums and addresses.
//
// Dense: a lane takes four columns of every 128; a simdgroup two rows of W and all rows of x, or,
// of more than four, four rows of W and half of them, so that a load of x serves four rows.
//
// A row of x is summed in the same order whatever ROWS is: 16 columns of its lane in turn, over the
// lanes of a simdgroup as a tree, over the simdgroups in order.
#include <metal_stdlib>

#include "common.h"
#include "experts.h"
#include "gates.h"
#include "weights.h"

using namespace metal;

#define MATVEC_THREADS 256
#define MATVEC_SIMDGROUPS 8
// Rows of x that a simdgroup holds: 16 floats a thread, and as many for one step.
#define ROW_BLOCK 4
#define MAX_ROWS 16
// Columns that a lane takes at a time: 16, so that no step has two scales.
#define STEP_COLUMNS 16
// Lanes of a simdgroup that share a quarter.
#define QUARTER_LANES (SIMD_THREADS / 4)

static_assert(MATVEC_THREADS == int(THREADS_matvec_f32) &&
                  MATVEC_SIMDGROUPS >= MARLIN_SIMDGROUPS(0),
              "kernel_list.h and this file agree");

// Loads of whole vectors: by value, so that every compiler keeps them whole.
inline float4 load_floats(device const float *from) { return *(device const float4 *)from; }
inline uint4 load_words(device const uint4 *from) { return *from; }
inline uint2 load_halves(device const uchar *from) { return *(device const uint2 *)from; }

// The halves at bits 0 and 16.
inline float2 half_pair(uint bits) { return float2(as_type<half2>(bits)); }

// Four columns of which i and 2 + i lie in one word.
inline float4 half_quad(uint first, uint second)
{
    const float2 even = half_pair(first), odd = half_pair(second);
    return float4(even.x, odd.x, even.y, odd.y);
}

// Kinds of packed weights. decode(): WORD_COLUMNS columns by four, of a word and the one with what
// lies above, which has them from quad `place` on. They come without step(), which a
// whole sum takes in at its end; int4's second four are 16 times too large, which matched() makes
// up for in x. Shifts are few, since Apple GPUs are slow at them: int4's codes are masked where
// they lie, as halves without exponent: denormal, which those GPUs keep.
struct MatvecFp4 {
    enum { BITS = MARLIN_BITS_fp4, WORD_COLUMNS = 8 };
    static float step() { return FP4_STEP; }
    static bool has_bias() { return false; }
    static float4 matched(float4 x, uint) { return x; }

    // E2M1 is a half's sign, two exponent bits and a mantissa bit: of a nibble at bit 8 or 12, bit
    // 3 belongs on bit 15 and bits 0 to 2 on 9 to 11. The upper nibbles have bit 3 in place
    // already. The lower ones, n at bit 8, take n * 0x12, n << 9 plus n << 12, so that bit 3 is
    // also added to bits 12 to 14; it carries into bit 15 if all bits of n are set. Hence n is
    // inverted before and the product after: then only 0 does, and becomes -0. Two ways, so that no
    // one kind of operation holds up the others.
    static void decode(uint2 words, uint, thread float4 *quads)
    {
        const uint word = words.x;
        const uint low = (~word & 0x0f0f0f0fu) * 0x12u;
        const uint high = (word & 0xe0808080u) | (word >> 3 & 0x1f7f7f7fu);
        quads[0] = half_quad(~(low << 8) & 0x8e008e00u, ~low & 0x8e008e00u);
        quads[1] = half_quad(high << 8 & 0x8e008e00u, high & 0x8e008e00u);
    }
};

struct MatvecInt4 {
    enum { BITS = MARLIN_BITS_int4, WORD_COLUMNS = 8 };
    static float step() { return 16777216.0f; }
    static bool has_bias() { return true; }
    static float4 matched(float4 x, uint quad) { return quad == 0 ? x : x * 0.0625f; }

    static void decode(uint2 words, uint, thread float4 *quads)
    {
        const uint word = words.x, odd = word >> 8;
        quads[0] = half_quad(word & 0x000f000fu, odd & 0x000f000fu);
        quads[1] = half_quad(word & 0x00f000f0u, odd & 0x00f000f0u);
    }
};

// Bytes below an exponent of 1024's: 1024 + a byte. The difference to 1024 + zero is exact in a
// half.
inline float4 byte_quad(uint bytes, half zero)
{
    const uint exponent = 0x64006400u, pairs = 0x00ff00ffu;
    const half2 none = half2(1024.0h + zero);
    const float2 even = float2(as_type<half2>((bytes & pairs) | exponent) - none);
    const float2 odd = float2(as_type<half2>((bytes >> 8 & pairs) | exponent) - none);
    return float4(even.x, odd.x, even.y, odd.y);
}

struct MatvecInt8 {
    enum { BITS = MARLIN_BITS_int8, WORD_COLUMNS = 4 };
    static float step() { return 1.0f; }
    static bool has_bias() { return FLAGS & MARLIN_WEIGHT_BIAS; }
    static float4 matched(float4 x, uint) { return x; }

    static void decode(uint2 words, uint, thread float4 *quads)
    {
        quads[0] = byte_quad(words.x, 128.0h);
    }
};

struct MatvecInt5 {
    enum { BITS = MARLIN_BITS_int5, WORD_COLUMNS = 8 };
    static float step() { return 1.0f; }
    static bool has_bias() { return true; }
    static float4 matched(float4 x, uint) { return x; }

    static void decode(uint2 words, uint place, thread float4 *quads)
    {
#pragma unroll
        for (uint q = 0; q < 2; q++)
            quads[q] = byte_quad(int5_bytes(words.x, q, words.y, place + q), 0.0h);
    }
};

struct MatvecInt6 {
    enum { BITS = MARLIN_BITS_int6, WORD_COLUMNS = 8 };
    static float step() { return 1.0f; }
    static bool has_bias() { return false; }
    static float4 matched(float4 x, uint) { return x; }

    static void decode(uint2 words, uint place, thread float4 *quads)
    {
#pragma unroll
        for (uint q = 0; q < 2; q++)
            quads[q] = byte_quad(int6_bytes(words.x, q, words.y, place + q), 32.0h);
    }
};

struct MatvecIq4 {
    enum { BITS = MARLIN_BITS_iq4, WORD_COLUMNS = 8 };
    static float step() { return 1.0f; }
    static bool has_bias() { return false; }
    static float4 matched(float4 x, uint) { return x; }

    static void decode(uint2 words, uint, thread float4 *quads)
    {
        quads[0] = iq4_low(words.x);
        quads[1] = iq4_low(words.x >> 4);
    }
};

struct MatvecFp8 {
    enum { BITS = MARLIN_BITS_fp8, WORD_COLUMNS = 4 };
    static float step() { return FP8_STEP; }
    static bool has_bias() { return false; }
    static float4 matched(float4 x, uint) { return x; }
    static void decode(uint2 words, uint, thread float4 *quads) { quads[0] = fp8_codes(words.x); }
};

struct MatvecNf4 {
    enum { BITS = MARLIN_BITS_nf4, WORD_COLUMNS = 8 };
    static float step() { return 1.0f; }
    static bool has_bias() { return false; }
    static float4 matched(float4 x, uint) { return x; }

    static void decode(uint2 words, uint, thread float4 *quads)
    {
        quads[0] = nf4_low(words.x);
        quads[1] = nf4_low(words.x >> 4);
    }
};

// Where a lane reads its part of a tile, step after step.
struct MatvecSource {
    device const uint4 *codes;
    device const uchar *scales; // of a block or a row: its step
    device const uchar *biases;
    uint numbers; // bytes from there to the int8 numbers
    uint place;   // of the lane's first quad in a word that more steps share
};

// One step of a lane: 16 columns of four rows, as they lie in memory: what is loaded ahead must not
// be touched before its turn, or the loads are waited for.
template <typename Weight> struct MatvecStep {
    uint4 codes[(Weight::BITS + 1) / 2];
    // Of four rows: floats, halves or bfloat16 in the first two words and int8 in the third, or
    // exponents in the first.
    uint4 scales;
    uint4 biases;
    uint place;
};

// Bytes of the scales of `columns` of a tile, which are all that it has, or whole blocks.
inline ulong scales_bytes(ulong columns)
{
    return MARLIN_SCALE_BYTES(FLAGS, GROUP_SIZE, columns, columns / GROUP_SIZE * MARLIN_ROW_TILE);
}

inline uint4 load_scales(device const uchar *from, uint numbers)
{
    if (FLAGS & MARLIN_SCALE_F32) return load_words((device const uint4 *)from);
    if (FLAGS & MARLIN_SCALE_EXP) return uint4(*(device const uint *)from, 0, 0, 0);
    uint2 halves = load_halves(from);
    if (FLAGS & (MARLIN_SCALE_BLOCK | MARLIN_SCALE_ROW))
        return uint4(halves.x, halves.y, *(device const uint *)(from + numbers), 0);
    return uint4(halves.x, halves.y, 0, 0);
}

inline float4 scales_of(uint4 raw)
{
    if (FLAGS & MARLIN_SCALE_F32) return as_type<float4>(raw);
    if (FLAGS & MARLIN_SCALE_EXP) {
        const uchar4 e = as_type<uchar4>(raw.x);
        return float4(power_of(e.x), power_of(e.y), power_of(e.z), power_of(e.w));
    }
    if (FLAGS & MARLIN_SCALE_ROW) {
        const uint4 steps = uint4(raw.x << 16, raw.x, raw.y << 16, raw.y) & 0xffff0000u;
        return as_type<float4>(steps) * float4(as_type<char4>(raw.z));
    }
    const float4 halves = float4(half_pair(raw.x), half_pair(raw.y));
    return FLAGS & MARLIN_SCALE_BLOCK ? halves * float4(as_type<char4>(raw.z)) : halves;
}

// Words of a row before step `first` of a lane. Two steps of five bits share their last word.
template <typename Weight> inline uint words_before(uint first)
{
    return Weight::BITS == 5 ? first / 2 * 5 + first % 2 * 2 : first * (Weight::BITS / 2);
}

// Word i of a step, from its first one on.
template <typename Weight> inline uint word_of(uint i, uint place)
{
    return Weight::BITS == 5 && i == 2 ? 4 - place / 2 : i;
}

template <typename Weight>
inline void load_step(thread MatvecStep<Weight> &step, thread const MatvecSource &from)
{
#pragma unroll
    for (uint i = 0; i < (Weight::BITS + 1) / 2; i++)
        step.codes[i] = load_words(from.codes + 4 * word_of<Weight>(i, from.place));
    step.place = from.place;
    step.scales = load_scales(from.scales, from.numbers);
    if (Weight::has_bias()) step.biases = load_scales(from.biases, from.numbers);
}

// sum + the products of a and b, in order.
inline float dot_add(float4 a, float4 b, float sum)
{
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Where the rows that a simdgroup multiplies lie in x, from its first one, or from x itself; `last`
// is the last that exists, whose values also stand for those beyond.
struct NextRows {
    uint last;
};

struct ChosenRows {
    uint last;
    uint at[ROW_BLOCK];
};

inline uint row_at(thread const NextRows &rows, uint m, uint k) { return min(m, rows.last) * k; }
inline uint row_at(thread const ChosenRows &rows, uint m, uint) { return rows.at[m]; }
// Whether a row need not be multiplied. Experts have few rows, and often one.
inline bool is_beyond(thread const NextRows &, uint) { return false; }
inline bool is_beyond(thread const ChosenRows &rows, uint m) { return m > rows.last; }

// Adds a step's products with up to ROW_BLOCK rows of x.
template <typename Weight, typename Rows>
inline void multiply_step(thread float4 *sums, thread const MatvecStep<Weight> &step,
                          device const float *x, uint k, thread const Rows &rows)
{
    float4 dots[ROW_BLOCK];
    float totals[ROW_BLOCK];
#pragma unroll
    for (uint m = 0; m < ROW_BLOCK; m++) {
        dots[m] = float4(0.0f);
        totals[m] = 0.0f;
    }
#pragma unroll
    for (uint i = 0; i < STEP_COLUMNS; i += Weight::WORD_COLUMNS) {
        float4 codes[4][Weight::WORD_COLUMNS / 4];
#pragma unroll
        for (uint r = 0; r < 4; r++)
            Weight::decode(uint2(step.codes[i / Weight::WORD_COLUMNS][r],
                                 step.codes[(Weight::BITS + 1) / 2 - 1][r]),
                           step.place + i / 4, codes[r]);
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            if (m >= ROWS || is_beyond(rows, m)) break;
#pragma unroll
            for (uint q = 0; q < Weight::WORD_COLUMNS / 4; q++) {
                float4 quad = load_floats(x + row_at(rows, m, k) + i + 4 * q);
                if (Weight::has_bias()) totals[m] += (quad.x + quad.y) + (quad.z + quad.w);
                quad = Weight::matched(quad, q);
#pragma unroll
                for (uint r = 0; r < 4; r++) dots[m][r] = dot_add(codes[r][q], quad, dots[m][r]);
            }
        }
    }
    float4 scales = scales_of(step.scales), biases = float4(0.0f);
    if (Weight::has_bias()) biases = scales_of(step.biases);
#pragma unroll
    for (uint m = 0; m < ROW_BLOCK; m++) {
        if (m >= ROWS) break;
        sums[m] = fma(scales, dots[m], sums[m]);
        if (Weight::has_bias()) sums[m] = fma(biases, float4(totals[m] / Weight::step()), sums[m]);
    }
}

// To the next step of a lane.
template <typename Weight> inline void advance(thread MatvecSource &from)
{
    const uint together = SIMDGROUPS * QUARTER_LANES;
    from.codes += words_before<Weight>(together) * 4;
    if (FLAGS & MARLIN_SCALE_ROW) {
        from.numbers += together * STEP_COLUMNS / GROUP_SIZE * MARLIN_ROW_TILE;
        return;
    }
    from.scales += scales_bytes(together * STEP_COLUMNS);
    from.biases += scales_bytes(together * STEP_COLUMNS);
}

// Where the scales of a quarter's four rows begin for a lane's first columns. Its next ones are
// whole blocks further on; those of rows have one step for all.
inline ulong first_scales(thread MatvecSource &from, uint column, uint quarter)
{
    from.numbers = 0;
    if (!(FLAGS & (MARLIN_SCALE_BLOCK | MARLIN_SCALE_ROW)))
        return ulong(column / GROUP_SIZE * 4 + quarter) * (FLAGS & MARLIN_SCALE_F32   ? 16
                                                           : FLAGS & MARLIN_SCALE_EXP ? 4
                                                                                      : 8);
    const uint rest = FLAGS & MARLIN_SCALE_ROW ? column : column % MARLIN_BLOCK_COLUMNS;
    from.numbers = MARLIN_BLOCK_STEP_BYTES + rest / GROUP_SIZE * MARLIN_ROW_TILE - 4 * quarter;
    return (FLAGS & MARLIN_SCALE_ROW ? 0 : scales_bytes(column - rest)) + 8 * quarter;
}

// Sums of one tile over a part of the columns, for up to ROW_BLOCK rows of x that begin at x. Each
// load is behind a condition of its own: compilers move others down to where they are used.
template <typename Weight, typename Rows>
inline void multiply_part(thread float4 *sums, device const float *x, MatvecSource from, uint k,
                          thread const Rows &rows, uint part, uint lane)
{
    const uint num_steps = k / STEP_COLUMNS, together = SIMDGROUPS * QUARTER_LANES;
    const uint first = part * QUARTER_LANES + lane / 4;
    uint left = num_steps / together + (first < num_steps % together ? 1 : 0);
    if (left == 0) return;
    x += first * STEP_COLUMNS;
    from.codes += words_before<Weight>(first) * 4 + lane % 4;
    from.place = Weight::BITS == 5 ? first % 2 * 4 : 0;
    const ulong at = first_scales(from, first * STEP_COLUMNS, lane % 4);
    from.scales += at;
    from.biases += at;
    MatvecStep<Weight> even, odd;
    load_step(even, from);
    while (true) {
        advance<Weight>(from);
        if (left > 1) load_step(odd, from);
        multiply_step(sums, even, x, k, rows);
        if (left <= 1) break;
        x += together * STEP_COLUMNS;
        advance<Weight>(from);
        if (left > 2) load_step(even, from);
        multiply_step(sums, odd, x, k, rows);
        if (left <= 2) break;
        x += together * STEP_COLUMNS;
        left -= 2;
    }
}

// The sums of four rows over the lanes that share a quarter, in each of them.
inline float4 quarter_sum(float4 sum)
{
    sum += simd_shuffle_xor(sum, ushort(4));
    sum += simd_shuffle_xor(sum, ushort(8));
    return sum + simd_shuffle_xor(sum, ushort(16));
}

// The parts of a tile's sums that each simdgroup has, of all the threadgroup's rows.
template <typename Weight>
inline void matvec_parts(device const float *x, MatvecSource from, uint k, uint rows, uint2 group,
                         uint lane, uint simdgroup, threadgroup float4 *parts)
{
    const uint blocks = (ROWS + ROW_BLOCK - 1) / ROW_BLOCK, first_row = group.y * ROWS;
    from.codes += ulong(group.x) * (k * Weight::BITS / 8);
    const ulong scales = ulong(group.x) * scales_bytes(k);
    from.scales += scales;
    from.biases += scales;
    for (uint turn = 0; turn < blocks; turn++) {
        uint i = turn * SIMDGROUPS + simdgroup;
        uint part = i / blocks, block = i % blocks, row = first_row + block * ROW_BLOCK;
        if (ROWS > 1 && row >= rows) continue;
        float4 sums[ROW_BLOCK];
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) sums[m] = float4(0.0f);
        const NextRows next = {rows - 1 - row};
        multiply_part<Weight>(sums, x + ulong(row) * k, from, k, next, part, lane);
#pragma unroll
        for (uint m = 0; m < ROW_BLOCK; m++) {
            if (m >= ROWS) break;
            float4 sum = quarter_sum(sums[m]);
            uint at = (block * ROW_BLOCK + m) * SIMDGROUPS + part;
            if (lane < 4) parts[at * 4 + lane] = sum;
        }
    }
}

// Value i of 16 columns of each row: its parts in the order of the simdgroups.
template <typename Weight> inline float matvec_sum(threadgroup const float4 *parts, uint i)
{
    threadgroup const float *part_sums = (threadgroup const float *)parts;
    float sum = 0.0f;
#pragma unroll
    for (uint part = 0; part < SIMDGROUPS; part++)
        sum += part_sums[(i / 16 * SIMDGROUPS + part) * 16 + i % 16];
    return sum * Weight::step();
}

template <typename Weight>
inline void matvec_packed(device const float *x, MatvecSource from, device const float *output_bias,
                          device float *y, constant LinearParams &p, constant int32_t *vars,
                          uint2 group, uint lane, uint simdgroup, threadgroup float4 *parts)
{
    const uint n = p.n, first_row = group.y * ROWS;
    const uint rows = ROWS > 1 ? uint(vars[p.rows_var]) : first_row + 1;
    matvec_parts<Weight>(x, from, p.k, rows, group, lane, simdgroup, parts);
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (uint first = 0; first < 16 * ROWS; first += SIMDGROUPS * SIMD_THREADS) {
        uint i = first + simdgroup * SIMD_THREADS + lane;
        uint m = i / 16, column = group.x * 16 + i % 16;
        if (i >= 16 * ROWS || column >= n || first_row + m >= rows) continue;
        float sum = matvec_sum<Weight>(parts, i);
        if (FLAGS & MARLIN_OUTPUT_BIAS) sum += output_bias[column];
        y[ulong(first_row + m) * n + column] = sum;
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
MATVEC_PACKED(matvec_int5, MatvecInt5)
MATVEC_PACKED(matvec_int6, MatvecInt6)
MATVEC_PACKED(matvec_iq4, MatvecIq4)
MATVEC_PACKED(matvec_fp8, MatvecFp8)
MATVEC_PACKED(matvec_nf4, MatvecNf4)

// Products of W_ROWS rows of W, at the same columns, with up to X_ROWS rows of x, num_x of them.
template <typename Weight, uint X_ROWS, uint W_ROWS, typename Rows>
inline void multiply_rows(thread float (&sums)[X_ROWS][W_ROWS], device const float *x,
                          device const typename Weight::type *weights,
                          thread const ulong (&offsets)[W_ROWS], uint k, uint num_x,
                          thread const Rows &rows, uint lane)
{
#pragma unroll 4
    for (uint column = lane * 4; column < k / 4 * 4; column += SIMD_THREADS * 4) {
        float4 w[W_ROWS];
#pragma unroll
        for (uint r = 0; r < W_ROWS; r++) w[r] = Weight::quad(weights + offsets[r] + column);
#pragma unroll
        for (uint m = 0; m < X_ROWS; m++) {
            if (m >= num_x || is_beyond(rows, m)) break;
            device const float *from = x + row_at(rows, m, k) + column;
            float4 values = k % 4 == 0 ? load_floats(from) : F32Weight::quad(from);
#pragma unroll
            for (uint r = 0; r < W_ROWS; r++) sums[m][r] = dot_add(w[r], values, sums[m][r]);
        }
    }
    uint column = k / 4 * 4 + lane;
    if (column >= k) return;
#pragma unroll
    for (uint m = 0; m < X_ROWS; m++) {
        if (m >= num_x || is_beyond(rows, m)) break;
        float value = x[row_at(rows, m, k) + column];
#pragma unroll
        for (uint r = 0; r < W_ROWS; r++)
            sums[m][r] = fma(Weight::one(weights[offsets[r] + column]), value, sums[m][r]);
    }
}

// Each simdgroup of a tile: W_ROWS rows of W with num_x rows of x.
template <typename Weight, uint X_ROWS, uint W_ROWS>
inline void matvec_dense(device const float *x, device const typename Weight::type *weights,
                         device const float *output_bias, device float *y, constant LinearParams &p,
                         constant int32_t *vars, uint2 group, uint lane, uint simdgroup, uint num_x)
{
    const uint k = p.k, n = p.n, parts = 16 / W_ROWS;
    uint first = group.x * 16 + simdgroup % parts * W_ROWS;
    uint first_row = group.y * ROWS + simdgroup / parts * num_x;
    uint rows = ROWS > 1 ? uint(vars[p.rows_var]) : first_row + 1;
    if (first >= n || first_row >= rows) return;
    ulong offsets[W_ROWS];
    float sums[X_ROWS][W_ROWS];
#pragma unroll
    for (uint r = 0; r < W_ROWS; r++) {
        offsets[r] = ulong(min(first + r, n - 1)) * k;
#pragma unroll
        for (uint m = 0; m < X_ROWS; m++) sums[m][r] = 0.0f;
    }
    const NextRows next = {rows - 1 - first_row};
    multiply_rows<Weight, X_ROWS, W_ROWS>(sums, x + ulong(first_row) * k, weights, offsets, k,
                                          num_x, next, lane);
#pragma unroll
    for (uint m = 0; m < X_ROWS; m++) {
        if (m >= num_x || first_row + m >= rows) break;
#pragma unroll
        for (uint r = 0; r < W_ROWS; r++) {
            float sum = simd_sum(sums[m][r]);
            if (lane == r && first + r < n) {
                if (FLAGS & MARLIN_OUTPUT_BIAS) sum += output_bias[first + r];
                y[ulong(first_row + m) * n + first + r] = sum;
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
        if (ROWS > 4)                                                                              \
            matvec_dense<Weight, MAX_ROWS / 2, 4>(x, weights, output_bias, y, p, vars, group,      \
                                                  lane, simdgroup, ROWS / 2);                      \
        else                                                                                       \
            matvec_dense<Weight, 4, 2>(x, weights, output_bias, y, p, vars, group, lane,           \
                                       simdgroup, ROWS);                                           \
    }

MATVEC_DENSE(matvec_f32, F32Weight)
MATVEC_DENSE(matvec_f16, F16Weight)
MATVEC_DENSE(matvec_bf16, Bf16Weight)

#include "matvec_experts.h"
#include "matvec_fused.h"
