// attention_split.metal: attention for decode: partials of each split of a context, then their sum.
// Shapes and bad indices: attention.h.
#include <metal_stdlib>

#include "attention.h"

using namespace metal;

#define SPLIT_THREADS 256
#define SPLIT_SIMDGROUPS (SPLIT_THREADS / SIMD_THREADS)
// Tokens that a simdgroup scores: a lane takes 8 of one key tile and an eighth of the columns, so
// that 16 lanes read 256 bytes in a row.
#define SPLIT_SIMD_TOKENS (MARLIN_KV_SPLIT / SPLIT_SIMDGROUPS)
// Floats of q in threadgroup memory, before the scores, 8 queries of each token; and of all that
// memory, which then holds 8 sums of two queries a thread.
#define SPLIT_Q_FLOATS 1024
#define SPLIT_FLOATS (2 * 8 * SPLIT_THREADS)

static_assert(SPLIT_THREADS == int(THREADS_attention_split), "kernel_list.h and this file agree");
static_assert(SPLIT_Q_FLOATS + 8 * MARLIN_KV_SPLIT <= SPLIT_FLOATS, "q and scores fit");

// A split as its threadgroup sees it.
struct SplitTask {
    uint start; // its first position
    uint first; // the tokens [first, count) of it are seen by some query; first % 16 == 0
    uint count;
    uint kv_head;
    uint thread_index;
    uint lane;
    uint simdgroup;
    threadgroup float *q;      // [head_dim or a part of it, Q]; later the sums of values
    threadgroup float *scores; // [256, Q]
    threadgroup uint *cache_tiles;
    threadgroup float2 *factors; // [Q]: split_alone's
    bool alone;                  // the step has one split: out is [rows, num_heads, head_dim]
};

// q columns [begin, begin + columns) of Q queries, scaled, columns first; 0 beyond the last query.
template <uint Q>
inline void split_load_queries(thread const SplitTask &s, thread const AttentionTile &tile,
                               constant AttentionParams &p, device const float *q, uint query,
                               uint begin, uint columns)
{
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = s.thread_index; i < Q * columns; i += SPLIT_THREADS) {
        uint r = i / columns, column = i % columns;
        float value = 0.0f;
        if (query + r < tile.num_queries)
            value = q[attention_query_offset(p, tile, s.kv_head, query + r) + begin + column];
        s.q[column * Q + r] =
            value * attention_scale(p, tile.position + (query + r) / HEADS_PER_KV);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Eight numbers of a cache, from `at`, a multiple of 8.
struct SplitEight {
    float4 low, high;
};

inline float4 split_half_floats(uint low, uint high)
{
    half2 a = as_type<half2>(low), b = as_type<half2>(high);
    return float4(float(a.x), float(a.y), float(b.x), float(b.y));
}

inline SplitEight split_load(device const half *cache, ulong at)
{
    if (KV_F32 != 0) {
        device const float4 *from = (device const float4 *)((device const float *)cache + at);
        return {from[0], from[1]};
    }
    uint4 raw = *(device const uint4 *)(cache + at);
    return {split_half_floats(raw.x, raw.y), split_half_floats(raw.z, raw.w)};
}

// Sum of a and b over lanes that differ in `bit`; the lane whose bit is set gets b's, the other
// a's.
template <typename V> inline V split_share_sum(V a, V b, uint lane, ushort bit)
{
    bool upper = (lane & bit) != 0;
    V keep = upper ? b : a, send = upper ? a : b;
    return keep + simd_shuffle_xor(send, bit);
}

// sums[r] += values * factors[r], 8 values for Q queries.
template <uint Q>
inline void split_add(thread float4 *low, thread float4 *high, SplitEight values,
                      threadgroup const float *factors)
{
#pragma unroll
    for (uint r = 0; r < Q; r += 4) {
        float4 four = *(threadgroup const float4 *)(factors + r);
#pragma unroll
        for (uint j = 0; j < 4; j++) {
            low[r + j] = fma(float4(four[j]), values.low, low[r + j]);
            high[r + j] = fma(float4(four[j]), values.high, high[r + j]);
        }
    }
}

// scores[token, r] of Q queries, ATTENTION_UNSEEN where a query does not look.
template <uint Q>
inline void split_score(thread const SplitTask &s, thread const AttentionTile &tile,
                        constant AttentionParams &p, device const float *q,
                        device const half *k_cache, uint query)
{
    constexpr uint q_columns = SPLIT_Q_FLOATS / Q;
    // Lane: key tile of 2, column of 8, half of a key tile.
    uint key_tile = s.simdgroup * (SPLIT_SIMD_TOKENS / MARLIN_KEY_TILE) + s.lane / 16;
    uint column = s.lane / 2 % 8, token_half = s.lane % 2;
    bool seen = key_tile * MARLIN_KEY_TILE >= s.first && key_tile * MARLIN_KEY_TILE < s.count;
    float4 low[Q], high[Q];
#pragma unroll
    for (uint r = 0; r < Q; r++) low[r] = high[r] = float4(0.0f);
    for (uint begin = 0; begin < HEAD_DIM; begin += q_columns) {
        uint columns = min(q_columns, HEAD_DIM - begin);
        split_load_queries<Q>(s, tile, p, q, query, begin, columns);
        if (!seen) continue;
        ulong keys = ulong(s.cache_tiles[key_tile]) * (MARLIN_KEY_TILE * HEAD_DIM) +
                     (begin + column) * MARLIN_KEY_TILE + token_half * 8;
#pragma unroll 8
        for (uint i = 0; i < columns; i += 8) {
            SplitEight eight = split_load(k_cache, keys + i * MARLIN_KEY_TILE);
            split_add<Q>(low, high, eight, s.q + (i + column) * Q);
        }
    }
    // What a lane ends with is the token of its column's number.
    uint token = key_tile * MARLIN_KEY_TILE + token_half * 8 + column;
#pragma unroll
    for (uint r = 0; r < Q; r++) {
        float4 four = split_share_sum(low[r], high[r], s.lane, ushort(8));
        float2 two =
            split_share_sum(float2(four.x, four.y), float2(four.z, four.w), s.lane, ushort(4));
        float score = split_share_sum(two.x, two.y, s.lane, ushort(2));
        uint position = tile.position + min(query + r, tile.num_queries - 1) / HEADS_PER_KV;
        s.scores[token * Q + r] = attention_sees(p, position, s.start + token)
                                      ? attention_score(p, score)
                                      : ATTENTION_UNSEEN;
    }
}

// What the values of an only split are multiplied by, and then divided by: the numbers, to the bit,
// that attention_combine has for a row with one split in a step with more.
inline float2 split_alone(constant AttentionParams &p, device const float *sinks, uint head,
                          float most, float sum)
{
    float2 begun = attention_begin(p, sinks, head);
    float all = max(begun.x, most), factor = exp2(most - all);
    return float2(factor, fma(begun.y, exp2(begun.x - all), factor * sum));
}

// Scores become 2^(score - max); max and sum go to the partials, [max_splits, OUT_DIM + 2] of a
// query, beginning at out.
template <uint Q>
inline void split_softmax(thread const SplitTask &s, thread const AttentionTile &tile,
                          constant AttentionParams &p, device const float *sinks, device float *out,
                          uint query)
{
    for (uint r = s.simdgroup; r < Q; r += SPLIT_SIMDGROUPS) {
        float scores[MARLIN_KV_SPLIT / SIMD_THREADS];
        float most = ATTENTION_UNSEEN, sum = 0.0f;
#pragma unroll
        for (uint i = 0; i < MARLIN_KV_SPLIT / SIMD_THREADS; i++) {
            scores[i] = s.scores[(i * SIMD_THREADS + s.lane) * Q + r];
            most = max(most, scores[i]);
        }
        most = simd_max(most);
#pragma unroll
        for (uint i = 0; i < MARLIN_KV_SPLIT / SIMD_THREADS; i++) {
            // Of a score that is no number, so is the weight.
            float weight = scores[i] < ATTENTION_SEEN ? 0.0f : exp2(scores[i] - most);
            s.scores[(i * SIMD_THREADS + s.lane) * Q + r] = weight;
            sum += weight;
        }
        sum = simd_sum(sum);
        if (s.lane != 0 || query + r >= tile.num_queries) continue;
        uint of = attention_query(p, tile, s.kv_head, query + r);
        if (s.alone) {
            s.factors[r] = split_alone(p, sinks, of % p.num_heads, most, sum);
            continue;
        }
        device float *partial = out + ulong(of) * p.max_splits * (OUT_DIM + 2);
        partial[OUT_DIM] = most;
        partial[OUT_DIM + 1] = sum;
    }
}

// One number of a query's output, or of its partial.
inline void split_put(thread const SplitTask &s, thread const AttentionTile &tile,
                      constant AttentionParams &p, device float *out, uint query, uint column,
                      float sum, float2 factor)
{
    ulong of = attention_query(p, tile, s.kv_head, query);
    if (s.alone)
        out[of * OUT_DIM + column] = fma(factor.x, sum, 0.0f) / factor.y;
    else
        out[of * p.max_splits * (OUT_DIM + 2) + column] = sum;
}

// Values of Q queries weighted by the scores. A thread takes 8 columns of every T-th token; the T
// sums of a column then meet in threadgroup memory, two queries at a time.
template <uint Q>
inline void split_sum_values(thread const SplitTask &s, thread const AttentionTile &tile,
                             constant AttentionParams &p, device const half *v_cache,
                             device float *out, uint query)
{
    uint octets = HEAD_DIM / 8, groups = SPLIT_THREADS / octets;
    uint group = s.thread_index / octets, column = s.thread_index % octets * 8;
    float4 low[Q], high[Q];
#pragma unroll
    for (uint r = 0; r < Q; r++) low[r] = high[r] = float4(0.0f);
    // Token t belongs to group t % groups, wherever the window begins.
    uint token = s.first + (group + groups - s.first % groups) % groups;
    if (group >= groups) token = s.count;
#pragma unroll 8
    for (; token < s.count; token += groups) {
        ulong at = column + token % MARLIN_KEY_TILE * HEAD_DIM +
                   ulong(s.cache_tiles[token / MARLIN_KEY_TILE]) * (MARLIN_KEY_TILE * HEAD_DIM);
        split_add<Q>(low, high, split_load(v_cache, at), s.scores + token * Q);
    }
    threadgroup float *sums = s.q; // [2, groups, HEAD_DIM]
#pragma unroll
    for (uint r = 0; r < Q; r += 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (group < groups) {
            threadgroup float4 *to = (threadgroup float4 *)(sums + group * HEAD_DIM + column);
            to[0] = low[r];
            to[1] = high[r];
            to += groups * HEAD_DIM / 4;
            to[0] = low[r + 1];
            to[1] = high[r + 1];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = s.thread_index; i < 2 * HEAD_DIM; i += SPLIT_THREADS) {
            uint which = i / HEAD_DIM, at = i % HEAD_DIM, of = query + r + which;
            if (of >= tile.num_queries) continue;
            float sum = 0.0f;
            for (uint g = 0; g < groups; g++) sum += sums[(which * groups + g) * HEAD_DIM + at];
            split_put(s, tile, p, out, of, at, sum, s.factors[r + which]);
        }
    }
}

// The same where keys are the values, too. A thread takes whole columns, two at a time, and a
// column's tokens lie together.
template <uint Q>
inline void split_sum_latents(thread const SplitTask &s, thread const AttentionTile &tile,
                              constant AttentionParams &p, device const half *k_cache,
                              device float *out, uint query)
{
    for (uint first = s.thread_index; first < LATENT_DIM; first += 2 * SPLIT_THREADS) {
        float4 sums[2][Q / 4];
#pragma unroll
        for (uint c = 0; c < 2; c++)
            for (uint r = 0; r < Q / 4; r++) sums[c][r] = float4(0.0f);
        for (uint token = s.first; token < s.count; token += 8) {
            ulong tokens =
                ulong(s.cache_tiles[token / MARLIN_KEY_TILE]) * (MARLIN_KEY_TILE * HEAD_DIM) +
                token % MARLIN_KEY_TILE;
            SplitEight values[2];
#pragma unroll
            for (uint c = 0; c < 2; c++) {
                uint column = min(first + c * SPLIT_THREADS, LATENT_DIM - 1);
                values[c] = split_load(k_cache, tokens + column * MARLIN_KEY_TILE);
            }
#pragma unroll
            for (uint t = 0; t < 8; t++) {
#pragma unroll
                for (uint r = 0; r < Q / 4; r++) {
                    float4 weights =
                        *(threadgroup const float4 *)(s.scores + (token + t) * Q + 4 * r);
#pragma unroll
                    for (uint c = 0; c < 2; c++) {
                        float value = t < 4 ? values[c].low[t] : values[c].high[t - 4];
                        sums[c][r] = fma(weights, float4(value), sums[c][r]);
                    }
                }
            }
        }
#pragma unroll
        for (uint c = 0; c < 2; c++)
            for (uint r = 0; r < Q && query + r < tile.num_queries; r++)
                if (first + c * SPLIT_THREADS < LATENT_DIM)
                    split_put(s, tile, p, out, query + r, first + c * SPLIT_THREADS,
                              sums[c][r / 4][r % 4], s.factors[r]);
    }
}

template <uint Q>
inline void split_attend(thread const SplitTask &s, thread const AttentionTile &tile,
                         constant AttentionParams &p, device const float *q,
                         device const half *k_cache, device const half *v_cache,
                         device const float *sinks, device float *out)
{
    for (uint query = 0; query < tile.num_queries; query += Q) {
        split_score<Q>(s, tile, p, q, k_cache, query);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        split_softmax<Q>(s, tile, p, sinks, out, query);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (LATENT_DIM != 0)
            split_sum_latents<Q>(s, tile, p, k_cache, out, query);
        else
            split_sum_values<Q>(s, tile, p, v_cache, out, query);
    }
}

// attention_split: softmax partials of a tile over one split of its context; where a step has only
// one, what attention_combine makes of it.
//
//   partials  float [rows, num_heads, max_splits, head_dim + 2]: values, max, sum; splits that a
//   tile does not see are left as they are, and all of them where there is one
//   sinks  float [num_heads], not bound without has_sinks    out  float [rows, num_heads, head_dim]
//   Grid: (tiles, num_kv_heads, splits). Group: 256 threads. 17 KiB of threadgroup memory.
//   Bytes: 4 * head_dim (KV_F32: 8) a token of the split, read once for every 4 queries (8 where a
//   KV head has more than 4 heads); a decode step has one row a tile, so once. Operations: 4 *
//   head_dim a token and query.
[[kernel, max_total_threads_per_threadgroup(SPLIT_THREADS)]] void attention_split(
    device const float *q [[buffer(0)]], device const half *k_cache [[buffer(1)]],
    device const half *v_cache [[buffer(2)]], device const int32_t *tables [[buffer(3)]],
    device const int32_t *tiles [[buffer(4)]], device float *partials [[buffer(5)]],
    device const float *sinks [[buffer(6)]], device float *out [[buffer(7)]],
    constant AttentionParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
    constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
    constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
    device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
    uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float4 memory[SPLIT_FLOATS / 4];
    threadgroup uint cache_tiles[MARLIN_KV_SPLIT / MARLIN_KEY_TILE];
    threadgroup float2 factors[8];
    uint num_splits = uint(vars[p.splits_var]);
    if (group.x >= uint(vars[p.tiles_var]) || group.y >= p.num_kv_heads || group.z >= num_splits)
        return;
    AttentionTile tile;
    if (!attention_tile(tiles, tables, p, call, group.x, tile) ||
        tile.last / MARLIN_KV_SPLIT >= num_splits) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    uint start = group.z * MARLIN_KV_SPLIT, seen = attention_first_seen(p, tile.position);
    if (start > tile.last || start + MARLIN_KV_SPLIT <= seen) return;
    SplitTask s;
    s.start = start;
    s.first = seen > start ? (seen - start) / MARLIN_KEY_TILE * MARLIN_KEY_TILE : 0;
    s.count = min(uint(MARLIN_KV_SPLIT), tile.last + 1 - start);
    s.kv_head = group.y;
    s.thread_index = thread_index;
    s.lane = lane;
    s.simdgroup = simdgroup;
    s.q = (threadgroup float *)memory;
    s.scores = s.q + SPLIT_Q_FLOATS;
    s.cache_tiles = cache_tiles;
    s.factors = factors;
    s.alone = num_splits == 1;
    // Every simdgroup checks all key tiles and comes to the same answer.
    bool bad = false;
    if (lane * MARLIN_KEY_TILE >= s.first && lane * MARLIN_KEY_TILE < s.count) {
        uint position = start + lane * MARLIN_KEY_TILE;
        int32_t block = tile.table[position / p.block_size];
        bad = !attention_is_block(p, block);
        if (simdgroup == 0)
            cache_tiles[lane] = attention_cache_tile(p, uint(block), s.kv_head, position);
    }
    if (simd_any(bad)) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    device float *to = s.alone ? out : partials + group.z * (OUT_DIM + 2);
    if (HEADS_PER_KV > 4)
        split_attend<8>(s, tile, p, q, k_cache, v_cache, sinks, to);
    else
        split_attend<4>(s, tile, p, q, k_cache, v_cache, sinks, to);
}

// attention_combine: merges the partials of a tile's rows for one head, in the order of the splits.
//
//   partials  float [rows, num_heads, max_splits, head_dim + 2]    out  float [rows, num_heads,
//   head_dim];  bindings 1 to 3 are not bound
//   Grid: (tiles, num_heads). Group: 128 threads, one column each at a time. Bytes: 4 * head_dim
//   for each split, and as many for out.
[[kernel]] void attention_combine(device const float *partials [[buffer(0)]],
                                  device const int32_t *tiles [[buffer(4)]],
                                  device float *out [[buffer(5)]],
                                  device const float *sinks [[buffer(6)]],
                                  constant AttentionParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                                  constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                                  constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                                  device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
                                  uint3 group [[threadgroup_position_in_grid]],
                                  uint thread_index [[thread_index_in_threadgroup]],
                                  uint lane [[thread_index_in_simdgroup]])
{
    if (group.x >= uint(vars[p.tiles_var]) || group.y >= p.num_heads) return;
    uint stride = OUT_DIM + 2;
    int32_t first_row = tiles[group.x * 4], rows = tiles[group.x * 4 + 1];
    int32_t position = tiles[group.x * 4 + 3];
    ulong all_rows = call.words[0] / (ulong(stride) * p.num_heads * p.max_splits);
    bool bad = first_row < 0 || rows < 1 || position < 0 ||
               ulong(uint(first_row)) + ulong(uint(rows)) > all_rows;
    if (bad || (uint(position) + uint(rows) - 1) / MARLIN_KV_SPLIT >= uint(vars[p.splits_var])) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    for (uint r = 0; r < uint(rows); r++) {
        uint query = (uint(first_row) + r) * p.num_heads + group.y, at = uint(position) + r;
        uint begin = attention_first_seen(p, at) / MARLIN_KV_SPLIT, end = at / MARLIN_KV_SPLIT + 1;
        device const float *partial = partials + ulong(query) * p.max_splits * stride;
        float2 begun = attention_begin(p, sinks, group.y);
        float most = begun.x;
        for (uint split = begin + lane; split < end; split += SIMD_THREADS)
            most = max(most, partial[split * stride + OUT_DIM]);
        most = simd_max(most);
        for (uint first = 0; first < OUT_DIM; first += THREADS_attention_combine) {
            uint column = min(first + thread_index, OUT_DIM - 1);
            float value = 0.0f, sum = begun.y * exp2(begun.x - most);
            for (uint split = begin; split < end; split += SIMD_THREADS) {
                // Lane: one split. Then every lane: its column of all of them, in order.
                device const float *from = partial + min(split + lane, end - 1) * stride;
                float factor = split + lane < end ? exp2(from[OUT_DIM] - most) : 0.0f;
                sum += simd_sum(factor * from[OUT_DIM + 1]);
                from = partial + split * stride + column;
#pragma unroll 8
                for (uint i = 0; i < min(uint(SIMD_THREADS), end - split); i++)
                    value = fma(simd_shuffle(factor, ushort(i)), from[i * stride], value);
            }
            if (first + thread_index < OUT_DIM) out[query * OUT_DIM + column] = value / sum;
        }
    }
}
