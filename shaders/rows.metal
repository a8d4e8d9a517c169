// rows.metal: the row-by-row kernels: RMS and layer norm, the RoPE table, RoPE with the KV write,
// gates, scaled rows, GELU, row gather. None of them is more than a few operations a byte: what
// counts is that each byte moves once. Rows may begin at any float, so nothing here needs more than
// 4-byte alignment. Rows beyond the step's vars are left alone.
#include <metal_stdlib>

#include "common.h"
#include "gates.h"

using namespace metal;

// The largest finite half; what lies beyond is stored as this.
#define ROW_MAX_HALF 65504.0f
// Floats that a thread takes at a time, and how many of these a thread of rms_norm keeps.
#define ROW_WIDTH 4
#define RMS_KEPT 8

inline float4 row_load(device const float *x) { return float4(x[0], x[1], x[2], x[3]); }

inline void row_store(device float *y, float4 values)
{
    y[0] = values.x;
    y[1] = values.y;
    y[2] = values.z;
    y[3] = values.w;
}

// One row of rms_norm as one of the threads that share it sees it.
struct RmsRow {
    device float *x;
    device const float *delta;
    device const float *w;
    device float *y;
    uint dim;
    uint thread_index; // of this row's threads
    uint threads;
    bool has_delta;
    bool adds;
    float delta_scale;
};

// x += delta * delta_scale over floats [i, i + 4); returns them.
inline float4 rms_add_delta(thread const RmsRow &row, uint i)
{
    float4 values = row_load(row.x + i);
    if (row.has_delta) {
        values = fma(row_load(row.delta + i), float4(row.delta_scale), values);
        row_store(row.x + i, values);
    }
    return values;
}

// Adds the deltas and returns this thread's share of the sum of squares; kept holds its first
// vectors.
inline float rms_squares(thread const RmsRow &row, thread float4 *kept)
{
    float squares = 0.0f;
    uint stride = row.threads * ROW_WIDTH, whole = row.dim / ROW_WIDTH * ROW_WIDTH;
#pragma unroll
    for (uint j = 0; j < RMS_KEPT; j++) {
        uint i = row.thread_index * ROW_WIDTH + j * stride;
        if (i >= whole) break;
        kept[j] = rms_add_delta(row, i);
        squares += dot(kept[j], kept[j]);
    }
    for (uint i = row.thread_index * ROW_WIDTH + RMS_KEPT * stride; i < whole; i += stride) {
        float4 values = rms_add_delta(row, i);
        squares += dot(values, values);
    }
    uint last = whole + row.thread_index;
    if (last < row.dim) {
        float value = row.x[last];
        if (row.has_delta) row.x[last] = value = fma(row.delta[last], row.delta_scale, value);
        squares += value * value;
    }
    return squares;
}

// Floats [i, i + 4) of y become the norm's, or grow by them.
inline void rms_put(thread const RmsRow &row, uint i, float4 norm)
{
    row_store(row.y + i, row.adds ? row_load(row.y + i) + norm : norm);
}

inline void rms_store(thread const RmsRow &row, thread const float4 *kept, float inverse)
{
    uint stride = row.threads * ROW_WIDTH, whole = row.dim / ROW_WIDTH * ROW_WIDTH;
#pragma unroll
    for (uint j = 0; j < RMS_KEPT; j++) {
        uint i = row.thread_index * ROW_WIDTH + j * stride;
        if (i >= whole) break;
        rms_put(row, i, kept[j] * inverse * row_load(row.w + i));
    }
    for (uint i = row.thread_index * ROW_WIDTH + RMS_KEPT * stride; i < whole; i += stride)
        rms_put(row, i, row_load(row.x + i) * inverse * row_load(row.w + i));
    uint last = whole + row.thread_index;
    if (last < row.dim)
        row.y[last] = row.x[last] * inverse * row.w[last] + (row.adds ? row.y[last] : 0.0f);
}

// rms_norm: x += delta * delta_scale (if has_delta);  y = x * rsqrt(mean(x^2) + eps) * w, or += (if
// adds)
//
//   x  float [rows, dim], in place    delta  float [rows, dim]    w  float [dim]
//   y  float [rows, dim], may be x    rows = vars[rows_var] * rows_per_var
//   Grid: (vars[rows_var], rows_per_var). Group: 256 threads take one row where rows_per_var is 1
//   and 8 rows, a simdgroup each, where it is more (the heads of a q or k norm).
//   Bytes: x and w read, y written; with a delta it is read too and x written. 3 operations a
//   float. Rows of up to 8192 (a simdgroup: 1024) floats stay in registers between the sum and y.
[[kernel]] void rms_norm(device float *x [[buffer(0)]], device const float *delta [[buffer(1)]],
                         device const float *w [[buffer(2)]], device float *y [[buffer(3)]],
                         constant RmsNormParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                         constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float scratch[MAX_SIMDGROUPS];
    constexpr uint simdgroups = THREADS_rms_norm / SIMD_THREADS;
    bool alone = p.rows_per_var == 1;
    uint part = group.y * UNITS_Y_rms_norm + (alone ? 0 : simdgroup);
    if (group.x >= uint(vars[p.rows_var]) || part >= p.rows_per_var) return;
    uint at = (group.x * p.rows_per_var + part) * p.dim;
    RmsRow row;
    row.x = x + at;
    row.delta = delta + (p.has_delta ? at : 0);
    row.w = w;
    row.y = y + at;
    row.dim = p.dim;
    row.thread_index = alone ? simdgroup * SIMD_THREADS + lane : lane;
    row.threads = alone ? THREADS_rms_norm : SIMD_THREADS;
    row.has_delta = p.has_delta != 0;
    row.adds = p.adds != 0;
    row.delta_scale = p.delta_scale;
    float4 kept[RMS_KEPT];
    float squares = rms_squares(row, kept);
    float sum =
        alone ? group_sum(squares, scratch, lane, simdgroup, simdgroups) : simd_sum(squares);
    rms_store(row, kept, precise::rsqrt(sum / float(p.dim) + p.eps));
}

// layer_norm: x += delta (if has_delta);  y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b
//
//   x  float [rows, dim], in place    delta  float [rows, dim]    w, b  float [dim]
//   y  float [rows, dim], may be x
//   Grid: (rows). Group: 256 threads a row; each takes the same floats three times, so that none
//   waits for another's. Bytes: x read and y written, w and b read; the sums read x from the cache.
[[kernel]] void layer_norm(device float *x [[buffer(0)]], device const float *delta [[buffer(1)]],
                           device const float *w [[buffer(2)]], device const float *b [[buffer(3)]],
                           device float *y [[buffer(4)]],
                           constant LayerNormParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                           constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float sums[MAX_SIMDGROUPS];
    threadgroup float squares[MAX_SIMDGROUPS];
    if (group.x >= uint(vars[p.rows_var])) return;
    uint at = group.x * p.dim;
    constexpr uint simdgroups = THREADS_layer_norm / SIMD_THREADS;
    float sum = 0.0f;
    for (uint i = thread_index; i < p.dim; i += THREADS_layer_norm) {
        float value = x[at + i];
        if (p.has_delta) x[at + i] = value += delta[at + i];
        sum += value;
    }
    float mean = group_sum(sum, sums, lane, simdgroup, simdgroups) / float(p.dim);
    float square = 0.0f;
    for (uint i = thread_index; i < p.dim; i += THREADS_layer_norm) {
        float value = x[at + i] - mean;
        square = fma(value, value, square);
    }
    float variance = group_sum(square, squares, lane, simdgroup, simdgroups) / float(p.dim);
    float inverse = precise::rsqrt(variance + p.eps);
    for (uint i = thread_index; i < p.dim; i += THREADS_layer_norm)
        y[at + i] = fma((x[at + i] - mean) * inverse, w[i], b[i]);
}

// rope_table: table[t, 0, :] = cos(positions[t] * inv_freq) * scale, table[t, 1, :] = sin(...) *
// scale
//
//   positions  int32 [rows]    inv_freq  float [half_dim]    table  float [rows, 2, half_dim]
//   Grid: (rows). Group: 64 threads a row. Bytes: 12 an angle; angles reach 10^5 radians, which
//   only the precise functions reduce rightly.
[[kernel]] void rope_table(device const int32_t *positions [[buffer(0)]],
                           device const float *inv_freq [[buffer(1)]],
                           device float *table [[buffer(2)]],
                           constant RopeTableParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                           constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]])
{
    if (group.x >= uint(vars[p.rows_var])) return;
    device float *row = table + group.x * 2 * p.half_dim;
    float position = float(positions[group.x]);
    for (uint i = thread_index; i < p.half_dim; i += THREADS_rope_table) {
        float angle = position * inv_freq[i];
        row[i] = precise::cos(angle) * p.scale;
        row[p.half_dim + i] = precise::sin(angle) * p.scale;
    }
}

// The largest number that a cache can hold.
inline float row_max_kv() { return KV_F32 != 0 ? FLT_MAX : ROW_MAX_HALF; }

inline void row_put_kv(device half *cache, ulong at, float x)
{
    if (KV_F32 != 0)
        ((device float *)cache)[at] = x;
    else
        cache[at] = half(x);
}

// Of the numbers that a lane stores: whether one is larger than the cache's largest, or none.
struct RowSeen {
    bool beyond;
    bool nan;
};

// Stores what is nearest to x; out of range the largest, and of NaN 0: but for a key's first number
// the cache holds finite values only, since attention reads what lies behind a context, times 0.
inline void row_store_kv(device half *cache, ulong at, float x, thread RowSeen &seen)
{
    seen.beyond = seen.beyond || fabs(x) > row_max_kv();
    seen.nan = seen.nan || isnan(x);
    row_put_kv(cache, at, isnan(x) ? 0.0f : max(min(x, row_max_kv()), -row_max_kv()));
}

// What a head of q or k is multiplied by before it turns: its norm, weight by weight.
struct RowHeadNorm {
    device const float *w;
    float inverse;
    bool norms;
    float of(float x, uint i) const { return norms ? x * inverse * w[i] : x; }
};

// rope_kv_write: norms the heads of q and k (if has_norms, as rms_norm), rotates their first
// rotary_dim dimensions in place (half-split pairs, as Hugging Face mostly stores them, or
// neighbours) and writes k and v to the cache.
//
//   q  float [rows, num_heads, head_dim]    k, v  float [rows, num_kv_heads, head_dim]
//   table  float [rows, 2, rotary_dim / 2]    slots  int32 [rows]: block * block_size + offset
//   k_cache  half or float [num_blocks, num_kv_heads, block_size / 16, head_dim, 16]
//   v_cache  half or float [num_blocks, num_kv_heads, block_size, head_dim]
//   q_norm, k_norm  float [head_dim], not bound without has_norms
//   beyond  int32 [rows]: becomes 1 where a number was larger than the cache's largest, which is
//   stored in its place; else it stays
//   A head with a NaN in its k or v has one for its first k, so that what attends to it is none
//   either. Without heads of keys only q, table and q_norm are bound.
//   Grid: (rows, num_heads + 2 * num_kv_heads): the heads of q, then k, then v. Group: 128 threads,
//   a simdgroup a head; each lane sums, norms and turns the same dimensions. Bytes a row: q and k
//   read and written, v read twice, the table once, 2 halves or floats written for each of k and v.
//   Bad index: a slot that the cache does not have; its row stays as it is.
[[kernel]] void
rope_kv_write(device float *q [[buffer(0)]], device float *k [[buffer(1)]],
              device const float *v [[buffer(2)]], device const float *table [[buffer(3)]],
              device const int32_t *slots [[buffer(4)]], device half *k_cache [[buffer(5)]],
              device half *v_cache [[buffer(6)]], device const float *q_norm [[buffer(7)]],
              device const float *k_norm [[buffer(8)]], device atomic_uint *beyond [[buffer(9)]],
              constant RopeKvParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
              constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
              constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
              device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
              uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
              uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    uint dim = p.head_dim, pairs = p.rotary_dim / 2, row = group.x;
    uint head = group.y * UNITS_Y_rope_kv_write + simdgroup;
    if (row >= uint(vars[p.rows_var]) || head >= p.num_heads + 2 * p.num_kv_heads) return;
    int32_t slot = p.num_kv_heads > 0 ? slots[row] : 0;
    uint size = p.num_kv_heads > 0 ? p.block_size : 1;
    if (slot < 0 || (p.num_kv_heads > 0 && uint(slot) >= p.num_blocks * size)) {
        fail(status, call);
        return;
    }
    bool is_query = head < p.num_heads;
    bool is_key = !is_query && head < p.num_heads + p.num_kv_heads;
    uint kv_head = is_query ? 0 : (head - p.num_heads) % p.num_kv_heads;
    uint block = uint(slot) / size, offset = uint(slot) % size;
    // Both caches' [block, kv_head] begins here.
    ulong base = (ulong(block) * p.num_kv_heads + kv_head) * p.block_size * dim;
    device const float *beside = v + (row * p.num_kv_heads + kv_head) * dim;
    RowSeen seen = {false, false};
    if (!is_query && !is_key) {
        for (uint i = lane; i < dim; i += SIMD_THREADS)
            row_store_kv(v_cache, base + offset * dim + i, beside[i], seen);
        if (seen.beyond) atomic_store_explicit(beyond + row, 1u, memory_order_relaxed);
        return;
    }
    device float *values = is_query ? q + (row * p.num_heads + head) * dim
                                    : k + (row * p.num_kv_heads + kv_head) * dim;
    ulong to = base + offset / MARLIN_KEY_TILE * MARLIN_KEY_TILE * dim + offset % MARLIN_KEY_TILE;
    device const float *turn = table + row * p.rotary_dim;
    RowHeadNorm norm = {is_query ? q_norm : k_norm, 1.0f, p.has_norms != 0};
    if (norm.norms) {
        float squares = 0.0f;
        for (uint i = lane; i < pairs; i += SIMD_THREADS) {
            float a = values[p.interleaved ? 2 * i : i];
            float b = values[p.interleaved ? 2 * i + 1 : pairs + i];
            squares = fma(a, a, fma(b, b, squares));
        }
        for (uint i = p.rotary_dim + lane; i < dim; i += SIMD_THREADS)
            squares = fma(values[i], values[i], squares);
        norm.inverse = precise::rsqrt(simd_sum(squares) / float(dim) + p.eps);
    }
    for (uint i = lane; i < pairs; i += SIMD_THREADS) {
        uint one = p.interleaved ? 2 * i : i, other = p.interleaved ? 2 * i + 1 : pairs + i;
        float a = norm.of(values[one], one), b = norm.of(values[other], other);
        float c = turn[i], s = turn[pairs + i];
        float low = a * c - b * s, high = b * c + a * s;
        values[one] = low;
        values[other] = high;
        if (is_key) {
            row_store_kv(k_cache, to + one * MARLIN_KEY_TILE, low, seen);
            row_store_kv(k_cache, to + other * MARLIN_KEY_TILE, high, seen);
        }
    }
    if (is_query && !norm.norms) return;
    for (uint i = p.rotary_dim + lane; i < dim; i += SIMD_THREADS) {
        float value = norm.of(values[i], i);
        if (norm.norms) values[i] = value;
        if (is_key) row_store_kv(k_cache, to + i * MARLIN_KEY_TILE, value, seen);
    }
    if (!is_key) return;
    if (seen.beyond) atomic_store_explicit(beyond + row, 1u, memory_order_relaxed);
    for (uint i = lane; i < dim; i += SIMD_THREADS) seen.nan = seen.nan || isnan(beside[i]);
    // Lane 0 has written the first k.
    if (simd_any(seen.nan) && lane == 0) row_put_kv(k_cache, to, NAN);
}

// latent_write: norms a token's latent, rotates what turns of it, and writes both to the cache;
// puts the queries that its heads ask it with together in the same order, zeros behind.
//
//   absorbed  float [rows, num_heads, rank]
//   q  float [rows, num_heads, nope_dim + rope_dim]    kv  float [rows, rank + rope_dim]
//   table, slots, beyond: rope_kv_write's    norm  float [rank]
//   cache  half or float [num_blocks, block_size / 16, row_dim, 16]
//   queries  float [rows, num_heads, row_dim]
//   A row with a NaN has one for the first number that turns, which is part of no value.
//   Grid: (rows, num_heads + 1): the heads of queries, then the cache. Group: 128 threads, a
//   simdgroup a head. Bytes a row: 8 a number of the queries, 4 and 2 (KV_F32: 4) of the latent.
//   Bad index: a slot that the cache does not have; its row stays as it is.
[[kernel]] void
latent_write(device const float *absorbed [[buffer(0)]], device const float *q [[buffer(1)]],
             device const float *kv [[buffer(2)]], device const float *table [[buffer(3)]],
             device const int32_t *slots [[buffer(4)]], device half *cache [[buffer(5)]],
             device const float *norm [[buffer(6)]], device float *queries [[buffer(7)]],
             device atomic_uint *beyond [[buffer(8)]],
             constant LatentParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
             constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
             constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
             device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
             uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
             uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    uint row = group.x, head = group.y * UNITS_Y_latent_write + simdgroup;
    if (row >= uint(vars[p.rows_var]) || head > p.num_heads) return;
    bool is_query = head < p.num_heads;
    uint pairs = p.rope_dim / 2, used = p.rank + p.rope_dim, at = row * p.num_heads + head;
    int32_t slot = is_query ? 0 : slots[row];
    if (slot < 0 || uint(slot) >= p.num_blocks * p.block_size) {
        fail(status, call);
        return;
    }
    device const float *latent = kv + row * used, *turn = table + row * p.rope_dim;
    device const float *from = latent + p.rank;
    device float *to = queries;
    ulong key = ulong(uint(slot) / MARLIN_KEY_TILE) * (MARLIN_KEY_TILE * p.row_dim) +
                uint(slot) % MARLIN_KEY_TILE;
    RowSeen seen = {false, false};
    if (is_query) {
        from = q + at * (p.nope_dim + p.rope_dim) + p.nope_dim;
        to = queries + at * p.row_dim;
        for (uint i = lane; i < p.rank; i += SIMD_THREADS) to[i] = absorbed[at * p.rank + i];
        for (uint i = used + lane; i < p.row_dim; i += SIMD_THREADS) to[i] = 0.0f;
    } else {
        float squares = 0.0f;
        for (uint i = lane; i < p.rank; i += SIMD_THREADS)
            squares = fma(latent[i], latent[i], squares);
        float inverse = precise::rsqrt(simd_sum(squares) / float(p.rank) + p.eps);
        for (uint i = lane; i < p.rank; i += SIMD_THREADS)
            row_store_kv(cache, key + i * MARLIN_KEY_TILE, latent[i] * inverse * norm[i], seen);
        for (uint i = used + lane; i < p.row_dim; i += SIMD_THREADS)
            row_put_kv(cache, key + i * MARLIN_KEY_TILE, 0.0f);
    }
    for (uint i = lane; i < pairs; i += SIMD_THREADS) {
        uint one = p.interleaved ? 2 * i : i, other = p.interleaved ? 2 * i + 1 : pairs + i;
        float a = from[one], b = from[other], c = turn[i], s = turn[pairs + i];
        float low = a * c - b * s, high = b * c + a * s;
        one += p.rank;
        other += p.rank;
        if (is_query) {
            to[one] = low;
            to[other] = high;
        } else {
            row_store_kv(cache, key + one * MARLIN_KEY_TILE, low, seen);
            row_store_kv(cache, key + other * MARLIN_KEY_TILE, high, seen);
        }
    }
    if (is_query) return;
    if (seen.beyond) atomic_store_explicit(beyond + row, 1u, memory_order_relaxed);
    // Lane 0 has written the first number that turns.
    if (simd_any(seen.nan) && lane == 0) row_put_kv(cache, key + p.rank * MARLIN_KEY_TILE, NAN);
}

static_assert(THREADS_swiglu_mul == int(THREADS_silu_mul), "they share a function");
static_assert(THREADS_gelu_mul == int(THREADS_silu_mul), "they share a function");
static_assert(THREADS_sigmoid_mul == int(THREADS_silu_mul), "they share a function");

// silu_mul, gelu_mul, swiglu_mul, sigmoid_mul: y = activation(gate) * up
//
//   gate, up, y  float [rows, dim];  y may be gate or up
//   Grid: (rows, ceil(dim / 1024)). Group: 256 threads, 4 floats each. Bytes: 12 a float.
template <typename Activation>
[[kernel]] void gated_mul(device const float *gate [[buffer(0)]],
                          device const float *up [[buffer(1)]], device float *y [[buffer(2)]],
                          constant RowsParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                          constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]])
{
    uint column = (group.y * THREADS_silu_mul + thread_index) * ROW_WIDTH;
    if (group.x >= uint(vars[p.rows_var]) || column >= p.dim) return;
    uint at = group.x * p.dim + column;
    if (column + ROW_WIDTH <= p.dim) {
        float4 x = row_load(gate + at);
        x = float4(Activation::of(x.x), Activation::of(x.y), Activation::of(x.z),
                   Activation::of(x.w));
        float4 u = row_load(up + at);
        u = float4(Activation::up(u.x), Activation::up(u.y), Activation::up(u.z),
                   Activation::up(u.w));
        row_store(y + at, x * u);
        return;
    }
    for (uint end = at + p.dim - column; at < end; at++)
        y[at] = Activation::of(gate[at]) * Activation::up(up[at]);
}

template [[host_name("silu_mul")]] [[kernel]] decltype(gated_mul<Silu>) gated_mul<Silu>;
template [[host_name("gelu_mul")]] [[kernel]] decltype(gated_mul<Gelu>) gated_mul<Gelu>;
template [[host_name("swiglu_mul")]] [[kernel]] decltype(gated_mul<Swiglu>) gated_mul<Swiglu>;
template [[host_name("sigmoid_mul")]] [[kernel]] decltype(gated_mul<Sigmoid>) gated_mul<Sigmoid>;

// scale_rows: y = x * scale, or cap * tanh(x * scale / cap)
//
//   x, y  float [rows, dim];  y may be x
//   Grid: (rows, ceil(dim / 1024)). Group: 256 threads, 4 floats each. Bytes: 8 a float.
[[kernel]] void scale_rows(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                           constant ScaleParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                           constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]])
{
    uint column = (group.y * THREADS_scale_rows + thread_index) * ROW_WIDTH;
    if (group.x >= uint(vars[p.rows_var])) return;
    ulong row = ulong(group.x) * p.dim;
    float cap = p.cap > 0.0f ? p.cap : 1.0f, scale = p.scale / cap;
    for (uint i = column; i < min(column + ROW_WIDTH, p.dim); i++) {
        float value = x[row + i] * scale;
        y[row + i] = p.cap > 0.0f ? cap * soft_tanh(value) : value;
    }
}

// x * (1 + erf(x / sqrt(2))) / 2, as x - x * c / 2 for x >= 0 and x * c / 2 below, where
// c = erfc(|x| / sqrt(2)) is within 1.5e-7: Abramowitz and Stegun, 7.1.26.
inline float row_gelu(float x)
{
    float size = fabs(x), t = 1.0f / fma(size, 0.231641888f, 1.0f);
    float sum = fma(fma(1.061405429f, t, -1.453152027f), t, 1.421413741f);
    sum = fma(fma(sum, t, -0.284496736f), t, 0.254829592f) * t;
    return max(x, 0.0f) - sum * precise::exp(-0.5f * size * size) * (0.5f * size);
}

// gelu: y = x * (1 + erf(x / sqrt(2))) / 2
//
//   x, y  float [rows, dim];  y may be x
//   Grid: (rows, ceil(dim / 1024)). Group: 256 threads, 4 floats each. Bytes: 8 a float.
[[kernel]] void gelu(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                     constant RowsParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                     constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]])
{
    uint column = (group.y * THREADS_gelu + thread_index) * ROW_WIDTH;
    if (group.x >= uint(vars[p.rows_var]) || column >= p.dim) return;
    uint at = group.x * p.dim, end = min(column + ROW_WIDTH, p.dim);
    for (uint i = column; i < end; i++) y[at + i] = row_gelu(x[at + i]);
}

// gather_rows: y[r, :] = x[rows[r], :]
//
//   rows  int32 [num_rows]    x  float [any, dim]    y  float [num_rows, dim]
//   Grid: (num_rows). Group: 256 threads a row. Bytes: 8 a float. Bad index: a row that x does not
//   have.
[[kernel]] void gather_rows(device const int32_t *rows [[buffer(0)]],
                            device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
                            constant RowsParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                            constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                            constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                            device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint thread_index [[thread_index_in_threadgroup]])
{
    if (group.x >= uint(vars[p.rows_var])) return;
    int32_t row = rows[group.x];
    if (row < 0 || uint(row) >= call.words[1] / p.dim) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    device const float *from = x + uint(row) * p.dim;
    device float *to = y + group.x * p.dim;
    for (uint i = thread_index; i < p.dim; i += THREADS_gather_rows) to[i] = from[i];
}
