// attention.metal: attention for prefill: a tile's whole context in one threadgroup. Shapes and bad
// indices: attention.h.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>

#include "attention.h"

using namespace metal;

#define PREFILL_SIMDGROUPS (THREADS_attention / SIMD_THREADS)
// A simdgroup takes 8 queries, a matrix's rows, and goes through its context 64 tokens at a time.
#define PREFILL_MATRIX 8
#define PREFILL_CHUNK 64
#define PREFILL_TILES (PREFILL_CHUNK / MARLIN_KEY_TILE)
// Columns of q kept in threadgroup memory, and of the output kept in registers: a wider head is
// taken in parts, its scores computed once for every part of the output.
#define PREFILL_Q_COLUMNS 128
#define PREFILL_OUT_COLUMNS 256
#define PREFILL_OUT_MATRICES (PREFILL_OUT_COLUMNS / PREFILL_MATRIX)
// Rows of threadgroup memory are 4 floats longer, so that a column's rows lie in different banks.
#define PREFILL_Q_STRIDE (PREFILL_Q_COLUMNS + 4)
#define PREFILL_SCORE_STRIDE (PREFILL_CHUNK + 4)

// Eight queries of a tile as their simdgroup sees them. Lanes 4 r to 4 r + 3 own query
// r's softmax.
struct PrefillQueries {
    uint first; // of the tile's queries
    uint kv_head;
    uint position; // of this lane's query
    uint begin;    // the eight see some of [begin, end)
    uint end;
    uint lane;
    float2 begun;                // this lane's query's softmax before any token: attention_begin()
    threadgroup float *q;        // [8, PREFILL_Q_STRIDE]
    threadgroup float *scores;   // [8, PREFILL_SCORE_STRIDE]
    threadgroup float *diagonal; // [8, 8], 0 off the diagonal
};

// An 8x8 matrix of a cache, whose rows (or columns, if turned) begin `stride` numbers apart.
inline simdgroup_float8x8 prefill_load(device const half *cache, ulong at, uint stride,
                                       bool turned = false)
{
    simdgroup_float8x8 wide;
    if (KV_F32 != 0) {
        simdgroup_load(wide, (device const float *)cache + at, stride, 0, turned);
        return wide;
    }
    simdgroup_half8x8 narrow;
    simdgroup_load(narrow, cache + at, stride, 0, turned);
    wide.thread_elements()[0] = float(narrow.thread_elements()[0]);
    wide.thread_elements()[1] = float(narrow.thread_elements()[1]);
    return wide;
}

// Columns [begin, begin + columns) of the eight queries, scaled; 0 beyond the last query.
inline void prefill_stage_queries(thread const PrefillQueries &s, thread const AttentionTile &tile,
                                  constant AttentionParams &p, device const float *q, uint begin,
                                  uint columns)
{
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint r = 0; r < PREFILL_MATRIX; r++) {
        bool used = s.first + r < tile.num_queries;
        device const float *from =
            q + (used ? attention_query_offset(p, tile, s.kv_head, s.first + r) + begin : 0);
        float scale = attention_scale(p, tile.position + (s.first + r) / HEADS_PER_KV);
        for (uint i = s.lane; i < columns; i += SIMD_THREADS)
            s.q[r * PREFILL_Q_STRIDE + i] = used ? from[i] * scale : 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Offset in either cache of the key tile at a position.
inline ulong prefill_tile_offset(thread const PrefillQueries &s, thread const AttentionTile &tile,
                                 constant AttentionParams &p, uint position)
{
    uint block = uint(tile.table[position / p.block_size]);
    return ulong(attention_cache_tile(p, block, s.kv_head, position)) *
           (MARLIN_KEY_TILE * HEAD_DIM);
}

inline bool prefill_is_seen(thread const PrefillQueries &s, uint position)
{
    return position < s.end && position + MARLIN_KEY_TILE > s.begin;
}

// Scores of the eight queries with a chunk's tokens; those of key tiles that none sees
// stay as they are.
inline void prefill_score(thread const PrefillQueries &s, thread const AttentionTile &tile,
                          constant AttentionParams &p, device const float *q,
                          device const half *k_cache, uint start)
{
    simdgroup_float8x8 sums[PREFILL_TILES][2];
    ulong keys[PREFILL_TILES];
#pragma unroll
    for (uint t = 0; t < PREFILL_TILES; t++) {
        sums[t][0] = sums[t][1] =
            make_filled_simdgroup_matrix<float, PREFILL_MATRIX, PREFILL_MATRIX>(0.0f);
        uint position = start + t * MARLIN_KEY_TILE;
        keys[t] = prefill_is_seen(s, position) ? prefill_tile_offset(s, tile, p, position) : 0;
    }
    for (uint begin = 0; begin < HEAD_DIM; begin += PREFILL_Q_COLUMNS) {
        uint columns = min(uint(PREFILL_Q_COLUMNS), HEAD_DIM - begin);
        if (HEAD_DIM > PREFILL_Q_COLUMNS) prefill_stage_queries(s, tile, p, q, begin, columns);
        for (uint i = 0; i < columns; i += PREFILL_MATRIX) {
            simdgroup_float8x8 queries;
            simdgroup_load(queries, s.q + i, PREFILL_Q_STRIDE);
#pragma unroll
            for (uint t = 0; t < PREFILL_TILES; t++) {
                if (!prefill_is_seen(s, start + t * MARLIN_KEY_TILE)) continue;
                for (uint part = 0; part < 2; part++) {
                    ulong at = keys[t] + (begin + i) * MARLIN_KEY_TILE + part * PREFILL_MATRIX;
                    simdgroup_multiply_accumulate(sums[t][part], queries,
                                                  prefill_load(k_cache, at, MARLIN_KEY_TILE),
                                                  sums[t][part]);
                }
            }
        }
    }
#pragma unroll
    for (uint t = 0; t < PREFILL_TILES; t++) {
        if (!prefill_is_seen(s, start + t * MARLIN_KEY_TILE)) continue;
        for (uint part = 0; part < 2; part++)
            simdgroup_store(sums[t][part], s.scores + t * MARLIN_KEY_TILE + part * PREFILL_MATRIX,
                            PREFILL_SCORE_STRIDE);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Scores become 2^(score - most); most and sum are this lane's query's so far. Returns the factor
// by which what was summed before must be multiplied.
inline float prefill_softmax(thread const PrefillQueries &s, constant AttentionParams &p,
                             uint start, thread float &most, thread float &sum)
{
    threadgroup float *scores = s.scores + s.lane / 4 * PREFILL_SCORE_STRIDE + s.lane % 4;
    uint position = start + s.lane % 4;
    float chunk_most = most, chunk_sum = 0.0f;
    for (uint i = 0; i < PREFILL_CHUNK; i += 4) {
        if (!attention_sees(p, s.position, position + i)) continue;
        scores[i] = attention_score(p, scores[i]);
        chunk_most = max(chunk_most, scores[i]);
    }
    chunk_most = max(chunk_most, simd_shuffle_xor(chunk_most, ushort(1)));
    chunk_most = max(chunk_most, simd_shuffle_xor(chunk_most, ushort(2)));
    for (uint i = 0; i < PREFILL_CHUNK; i += 4) {
        bool seen = attention_sees(p, s.position, position + i);
        float weight = seen ? exp2(scores[i] - chunk_most) : 0.0f;
        scores[i] = weight;
        chunk_sum += weight;
    }
    chunk_sum += simd_shuffle_xor(chunk_sum, ushort(1));
    chunk_sum += simd_shuffle_xor(chunk_sum, ushort(2));
    float factor = exp2(most - chunk_most);
    most = chunk_most;
    sum = sum * factor + chunk_sum;
    return factor;
}

// Rows of `out` times their query's factor.
inline void prefill_scale_rows(thread const PrefillQueries &s, thread simdgroup_float8x8 *out,
                               uint columns, float factor)
{
    if (s.lane % 4 == 0) s.diagonal[s.lane / 4 * (PREFILL_MATRIX + 1)] = factor;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 diagonal;
    simdgroup_load(diagonal, s.diagonal, PREFILL_MATRIX);
#pragma unroll
    for (uint i = 0; i < PREFILL_OUT_MATRICES; i++) {
        if (i * PREFILL_MATRIX < columns) {
            simdgroup_float8x8 scaled;
            simdgroup_multiply(scaled, diagonal, out[i]);
            out[i] = scaled;
        }
    }
}

// out += weights times the values of a chunk, columns [column, column + columns).
inline void prefill_add_values(thread const PrefillQueries &s, thread const AttentionTile &tile,
                               constant AttentionParams &p, device const half *v_cache, uint start,
                               uint column, uint columns, thread simdgroup_float8x8 *out)
{
    for (uint t = 0; t < PREFILL_CHUNK; t += MARLIN_KEY_TILE) {
        if (!prefill_is_seen(s, start + t)) continue;
        ulong values = prefill_tile_offset(s, tile, p, start + t);
        for (uint part = 0; part < MARLIN_KEY_TILE; part += PREFILL_MATRIX) {
            simdgroup_float8x8 weights;
            simdgroup_load(weights, s.scores + t + part, PREFILL_SCORE_STRIDE);
#pragma unroll
            for (uint i = 0; i < PREFILL_OUT_MATRICES; i++) {
                if (i * PREFILL_MATRIX < columns) {
                    // Where keys are the values, a token is a column.
                    bool turned = LATENT_DIM != 0;
                    uint first = column + i * PREFILL_MATRIX;
                    ulong at = values +
                               (turned ? first * MARLIN_KEY_TILE + part : part * HEAD_DIM + first);
                    uint stride = turned ? MARLIN_KEY_TILE : HEAD_DIM;
                    simdgroup_multiply_accumulate(
                        out[i], weights, prefill_load(v_cache, at, stride, turned), out[i]);
                }
            }
        }
    }
}

// Eight rows of the output, by way of the scores' memory, PREFILL_CHUNK columns at a time.
inline void prefill_store_rows(thread const PrefillQueries &s, thread const AttentionTile &tile,
                               constant AttentionParams &p, device float *to, uint column,
                               uint columns, float inverse, thread const simdgroup_float8x8 *out)
{
#pragma unroll
    for (uint part = 0; part < PREFILL_OUT_COLUMNS; part += PREFILL_CHUNK) {
        if (part >= columns) break;
        simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
        for (uint i = 0; i < PREFILL_CHUNK; i += PREFILL_MATRIX)
            if (part + i < columns)
                simdgroup_store(out[(part + i) / PREFILL_MATRIX], s.scores + i,
                                PREFILL_SCORE_STRIDE);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint r = 0; r < PREFILL_MATRIX; r++) {
            float factor = simd_broadcast(inverse, ushort(r * 4));
            if (s.first + r >= tile.num_queries) continue;
            uint at = attention_query(p, tile, s.kv_head, s.first + r) * OUT_DIM + column + part;
            for (uint i = s.lane; i < min(uint(PREFILL_CHUNK), columns - part); i += SIMD_THREADS)
                to[at + i] = s.scores[r * PREFILL_SCORE_STRIDE + i] * factor;
        }
    }
}

inline void prefill_attend(thread const PrefillQueries &s, thread const AttentionTile &tile,
                           constant AttentionParams &p, device const float *q,
                           device const half *k_cache, device const half *v_cache, device float *to)
{
    if (HEAD_DIM <= PREFILL_Q_COLUMNS) prefill_stage_queries(s, tile, p, q, 0, HEAD_DIM);
    for (uint column = 0; column < OUT_DIM; column += PREFILL_OUT_COLUMNS) {
        uint columns = min(uint(PREFILL_OUT_COLUMNS), OUT_DIM - column);
        simdgroup_float8x8 out[PREFILL_OUT_MATRICES];
#pragma unroll
        for (uint i = 0; i < PREFILL_OUT_MATRICES; i++)
            out[i] = make_filled_simdgroup_matrix<float, PREFILL_MATRIX, PREFILL_MATRIX>(0.0f);
        float most = s.begun.x, sum = s.begun.y;
        for (uint start = s.begin / PREFILL_CHUNK * PREFILL_CHUNK; start < s.end;
             start += PREFILL_CHUNK) {
            prefill_score(s, tile, p, q, k_cache, start);
            float factor = prefill_softmax(s, p, start, most, sum);
            // A factor of 1 leaves every bit as it is.
            bool changed = simd_any(factor != 1.0f);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            if (changed) prefill_scale_rows(s, out, columns, factor);
            prefill_add_values(s, tile, p, v_cache, start, column, columns, out);
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        prefill_store_rows(s, tile, p, to, column, columns, 1.0f / sum, out);
    }
}

// attention: what attention_split and attention_combine do together, for tiles of many rows.
//
//   Grid: (tiles, num_kv_heads), later tiles first because they see more. Group: 128 threads; each
//   simdgroup takes 8 queries at a time and needs no other. 27 KiB of threadgroup memory.
//   Bytes: 4 * head_dim (KV_F32: 8) a token and 8 queries, from the cache that the simdgroups
//   share. Operations: 4 * head_dim a token and query, in 8x8 matrices of floats.
[[kernel]] void
attention(device const float *q [[buffer(0)]], device const half *k_cache [[buffer(1)]],
          device const half *v_cache [[buffer(2)]], device const int32_t *tables [[buffer(3)]],
          device const int32_t *tiles [[buffer(4)]], device float *out [[buffer(5)]],
          device const float *sinks [[buffer(6)]],
          constant AttentionParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
          constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
          constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
          device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
          uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
          uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup float q_memory[PREFILL_SIMDGROUPS][PREFILL_MATRIX * PREFILL_Q_STRIDE];
    threadgroup float score_memory[PREFILL_SIMDGROUPS][PREFILL_MATRIX * PREFILL_SCORE_STRIDE];
    threadgroup float diagonals[PREFILL_SIMDGROUPS][PREFILL_MATRIX * PREFILL_MATRIX];
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
    if (simd_any(bad)) {
        if (lane == 0) fail(status, call);
        return;
    }
    PrefillQueries s;
    s.kv_head = group.y;
    s.lane = lane;
    s.q = q_memory[simdgroup];
    s.scores = score_memory[simdgroup];
    s.diagonal = diagonals[simdgroup];
    for (uint i = lane; i < PREFILL_MATRIX * PREFILL_MATRIX; i += SIMD_THREADS)
        s.diagonal[i] = 0.0f;
    for (s.first = simdgroup * PREFILL_MATRIX; s.first < tile.num_queries;
         s.first += PREFILL_SIMDGROUPS * PREFILL_MATRIX) {
        uint last_query = min(s.first + PREFILL_MATRIX, tile.num_queries) - 1;
        uint query = min(s.first + lane / 4, last_query);
        s.position = tile.position + query / HEADS_PER_KV;
        s.begun = attention_begin(p, sinks, s.kv_head * HEADS_PER_KV + query % HEADS_PER_KV);
        s.begin = attention_first_seen(p, tile.position + s.first / HEADS_PER_KV);
        s.end = tile.position + last_query / HEADS_PER_KV + 1;
        prefill_attend(s, tile, p, q, k_cache, LATENT_DIM != 0 ? k_cache : v_cache, out);
    }
}
