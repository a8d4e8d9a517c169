// attention.metal: attention for prefill: a tile's whole context in one threadgroup, whose
// simdgroups share the keys and values of each of its chunks. Shapes and bad indices: attention.h.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>

#include "attention.h"

using namespace metal;

#define PREFILL_THREADS 256
#define PREFILL_SIMDGROUPS (PREFILL_THREADS / SIMD_THREADS)
#define PREFILL_MATRIX 8
// A simdgroup takes 8 queries, a matrix's rows, and a threadgroup this many at a time.
#define PREFILL_QUERIES (PREFILL_SIMDGROUPS * PREFILL_MATRIX)
// Columns of keys or values in threadgroup memory, of a chunk of tokens: wider ones, floats and
// latents come 16 tokens at a time.
#define PREFILL_COLUMNS 128
#define PREFILL_HOLDS_ROWS (HEAD_DIM <= PREFILL_COLUMNS && LATENT_DIM == 0)
#define PREFILL_CHUNK (PREFILL_HOLDS_ROWS && KV_F32 == 0 ? 32 : MARLIN_KEY_TILE)
#define PREFILL_MATRICES (PREFILL_COLUMNS / PREFILL_MATRIX)
// Columns of the output kept in registers: a wider one is taken in parts, its scores computed once
// for each. So are queries of up to PREFILL_COLUMNS; wider ones are read again for each tile.
#define PREFILL_OUT_COLUMNS 256
#define PREFILL_OUT_MATRICES (PREFILL_OUT_COLUMNS / PREFILL_MATRIX)
// In threadgroup memory keys lie as [tokens / 16, columns, 16] and values as [tokens, columns],
// their rows 8 numbers longer, so that those of a matrix lie in different banks.
#define PREFILL_KEY_STRIDE (MARLIN_KEY_TILE + 8)
#define PREFILL_VALUE_STRIDE (PREFILL_COLUMNS + 8)
#define PREFILL_VECTORS (2 * PREFILL_COLUMNS * PREFILL_KEY_STRIDE / 8) // keys need more
// Numbers of a cache in 16 bytes.
#define PREFILL_VECTOR (KV_F32 != 0 ? 4 : 8)

static_assert(PREFILL_THREADS == int(THREADS_attention), "kernel_list.h and this file agree");

// Eight queries of a tile as a lane of their simdgroup sees them. It holds the numbers `column` and
// `column` + 1 of row `row` of a matrix: MLX's kernels, which every Apple GPU runs, rest on that
// place of thread_elements(), and no document has it. Four lanes have a row.
struct PrefillQueries {
    device const float *q; // this lane's query, at its columns
    float scale;           // that it is multiplied by
    bool used;             // false beyond the tile's last query
    uint query;            // attention_query() of it
    uint kv_head;
    uint position; // of this lane's query
    uint begin;    // the eight see some of [begin, end)
    uint end;
    uint all_begin; // and those of the threadgroup some of this
    uint all_end;
    uint row;
    uint column;
    uint thread_index;
    float2 begun;            // this lane's query's softmax before any token: attention_begin()
    threadgroup uint4 *keys; // of a chunk, PREFILL_COLUMNS at a time
    threadgroup uint4 *values;
};

// Offset in either cache of the key tile at a position.
inline ulong prefill_tile_offset(thread const PrefillQueries &s, thread const AttentionTile &tile,
                                 constant AttentionParams &p, uint position)
{
    uint block = uint(tile.table[position / p.block_size]);
    return ulong(attention_cache_tile(p, block, s.kv_head, position)) *
           (MARLIN_KEY_TILE * HEAD_DIM);
}

// Whether a key tile has tokens of [begin, end).
inline bool prefill_is_seen(uint begin, uint end, uint position)
{
    return position < end && position + MARLIN_KEY_TILE > begin;
}

// Columns [first, first + columns) of a chunk's keys, by all threads.
inline void prefill_stage_keys(thread const PrefillQueries &s, thread const AttentionTile &tile,
                               constant AttentionParams &p, device const half *cache,
                               threadgroup uint4 *to, uint start, uint first, uint columns)
{
    const uint row_vectors = MARLIN_KEY_TILE / PREFILL_VECTOR;
#pragma unroll
    for (uint t = 0; t < PREFILL_CHUNK; t += MARLIN_KEY_TILE) {
        if (!prefill_is_seen(s.all_begin, s.all_end, start + t)) continue;
        ulong at = prefill_tile_offset(s, tile, p, start + t) + first * MARLIN_KEY_TILE;
        device const uint4 *from = (device const uint4 *)cache + at / PREFILL_VECTOR;
        for (uint i = s.thread_index; i < columns * row_vectors; i += PREFILL_THREADS) {
            uint row = t / MARLIN_KEY_TILE * PREFILL_COLUMNS + i / row_vectors;
            to[row * (PREFILL_KEY_STRIDE / PREFILL_VECTOR) + i % row_vectors] = from[i];
        }
    }
}

// The same of values.
inline void prefill_stage_values(thread const PrefillQueries &s, thread const AttentionTile &tile,
                                 constant AttentionParams &p, device const half *cache,
                                 threadgroup uint4 *to, uint start, uint first, uint columns)
{
    const uint row_vectors = columns / PREFILL_VECTOR;
#pragma unroll
    for (uint t = 0; t < PREFILL_CHUNK; t += MARLIN_KEY_TILE) {
        if (!prefill_is_seen(s.all_begin, s.all_end, start + t)) continue;
        ulong at = prefill_tile_offset(s, tile, p, start + t) + first;
        device const uint4 *from = (device const uint4 *)cache + at / PREFILL_VECTOR;
        for (uint i = s.thread_index; i < MARLIN_KEY_TILE * row_vectors; i += PREFILL_THREADS) {
            uint row = i / row_vectors, vector = i % row_vectors;
            to[(t + row) * (PREFILL_VALUE_STRIDE / PREFILL_VECTOR) + vector] =
                from[row * (HEAD_DIM / PREFILL_VECTOR) + vector];
        }
    }
}

// sum += a times a matrix in threadgroup memory, from number `at` on.
inline void prefill_multiply(thread simdgroup_float8x8 &sum, simdgroup_float8x8 a,
                             threadgroup const uint4 *from, uint at, uint stride, bool turned)
{
    simdgroup_float8x8 wide;
    if (KV_F32 != 0) {
        simdgroup_load(wide, (threadgroup const float *)from + at, stride, 0, turned);
    } else {
        simdgroup_half8x8 narrow;
        simdgroup_load(narrow, (threadgroup const half *)from + at, stride, 0, turned);
        wide.thread_elements()[0] = float(narrow.thread_elements()[0]);
        wide.thread_elements()[1] = float(narrow.thread_elements()[1]);
    }
    simdgroup_multiply_accumulate(sum, a, wide, sum);
}

// Columns [column, column + 8) of the eight queries, scaled; 0 beyond the last query.
inline simdgroup_float8x8 prefill_query(thread const PrefillQueries &s, uint column)
{
    simdgroup_float8x8 found;
    found.thread_elements()[0] = s.used ? s.q[column] * s.scale : 0.0f;
    found.thread_elements()[1] = s.used ? s.q[column + 1] * s.scale : 0.0f;
    return found;
}

// Scores of the eight queries with tile t of a chunk, of columns [first, first + columns).
inline void prefill_score(thread const PrefillQueries &s, uint t, uint first, uint columns,
                          thread const simdgroup_float8x8 *queries, thread simdgroup_float8x8 *sums)
{
#pragma unroll
    for (uint i = 0; i < PREFILL_MATRICES; i++) {
        uint column = i * PREFILL_MATRIX;
        if (column >= columns) break;
        simdgroup_float8x8 query =
            HEAD_DIM <= PREFILL_COLUMNS ? queries[i] : prefill_query(s, first + column);
        uint at = (t / MARLIN_KEY_TILE * PREFILL_COLUMNS + column) * PREFILL_KEY_STRIDE;
#pragma unroll
        for (uint half_tile = 0; half_tile < 2; half_tile++)
            prefill_multiply(sums[half_tile], query, s.keys, at + half_tile * PREFILL_MATRIX,
                             PREFILL_KEY_STRIDE, false);
    }
}

// Scores become 2^(score - most); most and sum are this lane's query's so far. Returns the factor
// by which what was summed before must be multiplied.
inline float prefill_softmax(thread const PrefillQueries &s, constant AttentionParams &p,
                             uint position, thread simdgroup_float8x8 *sums, thread float &most,
                             thread float &sum)
{
    float scores[4], tile_most = most, tile_sum = 0.0f;
    bool seen[4];
#pragma unroll
    for (uint i = 0; i < 4; i++) {
        seen[i] =
            attention_sees(p, s.position, position + i / 2 * PREFILL_MATRIX + s.column + i % 2);
        scores[i] = attention_score(p, sums[i / 2].thread_elements()[i % 2]);
        if (seen[i]) tile_most = max(tile_most, scores[i]);
    }
    tile_most = max(tile_most, simd_shuffle_xor(tile_most, ushort(1)));
    tile_most = max(tile_most, simd_shuffle_xor(tile_most, ushort(8)));
#pragma unroll
    for (uint i = 0; i < 4; i++) {
        float weight = seen[i] ? exp2(scores[i] - tile_most) : 0.0f;
        sums[i / 2].thread_elements()[i % 2] = weight;
        tile_sum += weight;
    }
    tile_sum += simd_shuffle_xor(tile_sum, ushort(1));
    tile_sum += simd_shuffle_xor(tile_sum, ushort(8));
    float factor = exp2(most - tile_most);
    most = tile_most;
    sum = fma(sum, factor, tile_sum);
    return factor;
}

// out += weights times the values of tile t of a chunk, columns [part, part + 128) of the
// `columns` that out has.
inline void prefill_add_values(thread const PrefillQueries &s, uint t, uint part, uint columns,
                               thread const simdgroup_float8x8 *weights,
                               thread simdgroup_float8x8 *out)
{
    // Where keys are the values, a token is a column.
    const bool turned = LATENT_DIM != 0;
#pragma unroll
    for (uint half_tile = 0; half_tile < 2; half_tile++) {
#pragma unroll
        for (uint i = 0; i < PREFILL_MATRICES; i++) {
            uint column = i * PREFILL_MATRIX;
            if (part + column >= columns) break;
            uint token = t + half_tile * PREFILL_MATRIX;
            uint at = turned ? column * PREFILL_KEY_STRIDE + token
                             : token * PREFILL_VALUE_STRIDE + column;
            prefill_multiply(out[part / PREFILL_MATRIX + i], weights[half_tile], s.values, at,
                             turned ? PREFILL_KEY_STRIDE : PREFILL_VALUE_STRIDE, turned);
        }
    }
}

// Rows of `out` times their query's factor.
inline void prefill_scale_rows(thread simdgroup_float8x8 *out, uint columns, float factor)
{
#pragma unroll
    for (uint i = 0; i < PREFILL_OUT_MATRICES; i++) {
        if (i * PREFILL_MATRIX >= columns) break;
        out[i].thread_elements()[0] *= factor;
        out[i].thread_elements()[1] *= factor;
    }
}

// What all threads do for a chunk's keys from column `first` on, and for the values with them where
// they fit.
inline void prefill_stage(thread const PrefillQueries &s, thread const AttentionTile &tile,
                          constant AttentionParams &p, device const half *k_cache,
                          device const half *v_cache, uint start, uint first)
{
    threadgroup_barrier(mem_flags::mem_threadgroup);
    prefill_stage_keys(s, tile, p, k_cache, s.keys, start, first,
                       min(uint(PREFILL_COLUMNS), HEAD_DIM - first));
    if (PREFILL_HOLDS_ROWS) prefill_stage_values(s, tile, p, v_cache, s.values, start, 0, HEAD_DIM);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The same for columns of the values that did not fit.
inline void prefill_stage_part(thread const PrefillQueries &s, thread const AttentionTile &tile,
                               constant AttentionParams &p, device const half *k_cache,
                               device const half *v_cache, uint start, uint column)
{
    uint columns = min(uint(PREFILL_COLUMNS), OUT_DIM - column);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (LATENT_DIM != 0)
        prefill_stage_keys(s, tile, p, k_cache, s.values, start, column, columns);
    else
        prefill_stage_values(s, tile, p, v_cache, s.values, start, column, columns);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The output of the eight queries, columns [column, column + columns).
inline void prefill_attend(thread const PrefillQueries &s, thread const AttentionTile &tile,
                           constant AttentionParams &p, device const half *k_cache,
                           device const half *v_cache, thread const simdgroup_float8x8 *queries,
                           uint column, uint columns, device float *to)
{
    simdgroup_float8x8 out[PREFILL_OUT_MATRICES], sums[2];
#pragma unroll
    for (uint i = 0; i < PREFILL_OUT_MATRICES; i++)
        out[i] = make_filled_simdgroup_matrix<float, PREFILL_MATRIX, PREFILL_MATRIX>(0.0f);
    float most = s.begun.x, sum = s.begun.y;
    for (uint start = s.all_begin / PREFILL_CHUNK * PREFILL_CHUNK; start < s.all_end;
         start += PREFILL_CHUNK) {
        for (uint t = 0; t < PREFILL_CHUNK; t += MARLIN_KEY_TILE) {
            bool seen = prefill_is_seen(s.begin, s.end, start + t);
            sums[0] = sums[1] =
                make_filled_simdgroup_matrix<float, PREFILL_MATRIX, PREFILL_MATRIX>(0.0f);
            for (uint first = 0; first < HEAD_DIM; first += PREFILL_COLUMNS) {
                if (t == 0) prefill_stage(s, tile, p, k_cache, v_cache, start, first);
                if (seen)
                    prefill_score(s, t, first, min(uint(PREFILL_COLUMNS), HEAD_DIM - first),
                                  queries, sums);
            }
            if (seen) {
                float factor = prefill_softmax(s, p, start + t, sums, most, sum);
                // A factor of 1 leaves every bit as it is.
                if (simd_any(factor != 1.0f)) prefill_scale_rows(out, columns, factor);
            }
#pragma unroll
            for (uint part = 0; part < PREFILL_OUT_COLUMNS; part += PREFILL_COLUMNS) {
                if (part >= columns) break;
                if (!PREFILL_HOLDS_ROWS)
                    prefill_stage_part(s, tile, p, k_cache, v_cache, start, column + part);
                if (seen) prefill_add_values(s, t, part, columns, sums, out);
            }
        }
    }
    if (!s.used) return;
    float inverse = 1.0f / sum;
#pragma unroll
    for (uint i = 0; i < PREFILL_OUT_MATRICES; i++) {
        if (i * PREFILL_MATRIX >= columns) break;
        to[column + i * PREFILL_MATRIX] = out[i].thread_elements()[0] * inverse;
        to[column + i * PREFILL_MATRIX + 1] = out[i].thread_elements()[1] * inverse;
    }
}

// The next eight queries of each simdgroup.
inline void prefill_find(thread PrefillQueries &s, thread const AttentionTile &tile,
                         constant AttentionParams &p, device const float *q,
                         device const float *sinks, uint all_first)
{
    uint all_last = min(all_first + PREFILL_QUERIES, tile.num_queries) - 1;
    uint first = all_first + s.thread_index / SIMD_THREADS * PREFILL_MATRIX;
    uint last = min(first + PREFILL_MATRIX - 1, all_last), query = min(first + s.row, last);
    s.used = first + s.row <= all_last;
    s.query = attention_query(p, tile, s.kv_head, query);
    s.q = q + s.query * HEAD_DIM + s.column;
    s.position = tile.position + query / HEADS_PER_KV;
    s.scale = attention_scale(p, s.position);
    s.begun = attention_begin(p, sinks, s.kv_head * HEADS_PER_KV + query % HEADS_PER_KV);
    s.all_begin = attention_first_seen(p, tile.position + all_first / HEADS_PER_KV);
    s.all_end = tile.position + all_last / HEADS_PER_KV + 1;
    s.begin = attention_first_seen(p, tile.position + first / HEADS_PER_KV);
    s.end = first <= all_last ? tile.position + last / HEADS_PER_KV + 1 : 0;
}

// attention: what attention_split and attention_combine do together, for tiles of many rows.
//
//   Grid: (tiles, num_kv_heads), later tiles first because they see more. Group: 256 threads; each
//   simdgroup takes 8 queries at a time. 24 KiB of threadgroup memory. Bytes: 4 * head_dim (KV_F32:
//   8) a token and 64 queries. Operations: 4 * head_dim a token and query, in 8x8 matrices of
//   floats.
[[kernel, max_total_threads_per_threadgroup(PREFILL_THREADS)]] void
attention(device const float *q [[buffer(0)]], device const half *k_cache [[buffer(1)]],
          device const half *v_cache [[buffer(2)]], device const int32_t *tables [[buffer(3)]],
          device const int32_t *tiles [[buffer(4)]], device float *out [[buffer(5)]],
          device const float *sinks [[buffer(6)]],
          constant AttentionParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
          constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
          constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
          device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
          uint3 group [[threadgroup_position_in_grid]],
          uint thread_index [[thread_index_in_threadgroup]],
          uint lane [[thread_index_in_simdgroup]])
{
    threadgroup uint4 keys[PREFILL_VECTORS], values[PREFILL_VECTORS];
    uint num_tiles = uint(vars[p.tiles_var]);
    if (group.x >= num_tiles || group.y >= p.num_kv_heads) return;
    AttentionTile tile;
    bool bad = !attention_tile(tiles, tables, p, call, num_tiles - 1 - group.x, tile);
    if (!bad) {
        uint end = tile.last / p.block_size + 1;
        for (uint i = attention_first_seen(p, tile.position) / p.block_size + lane; i < end;
             i += SIMD_THREADS)
            bad = bad || !attention_is_block(p, tile.table[i]);
    }
    // Every simdgroup checks all blocks and comes to the same answer.
    if (simd_any(bad)) {
        if (lane == 0) fail(status, call);
        return;
    }
    PrefillQueries s;
    s.kv_head = group.y;
    s.thread_index = thread_index;
    s.row = lane / 16 * 4 + lane / 2 % 4;
    s.column = lane / 8 % 2 * 4 + lane % 2 * 2;
    s.keys = keys;
    s.values = values;
    for (uint first = 0; first < tile.num_queries; first += PREFILL_QUERIES) {
        prefill_find(s, tile, p, q, sinks, first);
        simdgroup_float8x8 queries[PREFILL_MATRICES];
#pragma unroll
        for (uint i = 0; i < PREFILL_MATRICES; i++)
            if (HEAD_DIM <= PREFILL_COLUMNS && i * PREFILL_MATRIX < HEAD_DIM)
                queries[i] = prefill_query(s, i * PREFILL_MATRIX);
        device float *to = out + s.query * OUT_DIM + s.column;
        for (uint column = 0; column < OUT_DIM; column += PREFILL_OUT_COLUMNS)
            prefill_attend(s, tile, p, k_cache, v_cache, queries, column,
                           min(uint(PREFILL_OUT_COLUMNS), OUT_DIM - column), to);
    }
}
