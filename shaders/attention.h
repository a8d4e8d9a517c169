// attention.h: what the attention kernels share: a tile and its checks, places in the cache.
//
//   q        float [rows, num_heads, head_dim], rotated      out  float, the same
//   k_cache  half [num_blocks, num_kv_heads, block_size / 16, head_dim, 16], 16-byte aligned
//   v_cache  half [num_blocks, num_kv_heads, block_size, head_dim], 16-byte aligned; where KV_F32
//            is set both are float
//   With a LATENT_DIM k_cache has one head, whose first LATENT_DIM numbers are the values as well,
//   v_cache is not bound, and the query heads are shared out to num_kv_heads.
//   tables   int32 [num_sequences, table_stride], block ids in logical order
//   tiles    int32 [num_tiles, 4]: first row, rows (<= 16), sequence, position of the first row
//   sinks    float [num_heads], or not bound: scores that take their share of a head's softmax
//
// Scores are q k * scale, or softcap * tanh(q k * scale / softcap), and a query may be multiplied
// for its position, too. A query at position p sees positions (p - window, p]. The query heads of a
// KV head share its keys and values: a tile's rows times these heads are its "queries", token by
// token, and each kernel takes a few of them together. What a query gets does not depend on which
// queries share its tile: sums run over tokens in an order that their absolute positions fix.
//
// Bad indices: a tile outside q, the tables or its own table; a block id outside the cache, among
// those that the tile sees; a context of more splits than the step has.
#ifndef MARLIN_ATTENTION_H
#define MARLIN_ATTENTION_H

#include <metal_stdlib>

#include "common.h"

using namespace metal;

// Softmax in powers of two: e^x = 2^(x * ATTENTION_LOG2_E).
#define ATTENTION_LOG2_E 1.44269504f
// The score of a token that a query does not see: far below any other, and finite, so that the
// difference of two of them is a number. What is seen is above ATTENTION_SEEN.
#define ATTENTION_UNSEEN -3.0e38f
#define ATTENTION_SEEN -1.5e38f

// Of a head's output.
#define OUT_DIM (LATENT_DIM != 0 ? LATENT_DIM : HEAD_DIM)

// One tile, checked.
struct AttentionTile {
    uint first_row;
    uint num_queries; // rows * HEADS_PER_KV
    uint position;    // of the first row
    uint last;        // position of the last row
    device const int32_t *table;
};

// The first position that a query at `position` sees.
inline uint attention_first_seen(constant AttentionParams &p, uint position)
{
    return p.window != 0 && position >= p.window ? position - p.window + 1 : 0;
}

inline bool attention_sees(constant AttentionParams &p, uint query_position, uint position)
{
    return position <= query_position && position >= attention_first_seen(p, query_position);
}

// What q of a position is multiplied by: scores are in powers of two.
inline float attention_scale(constant AttentionParams &p, uint position)
{
    float scale = p.scale * ATTENTION_LOG2_E;
    if (p.position_scale == 0.0f) return scale;
    return scale * (1.0f + p.position_scale * log(1.0f + float(position / p.scale_tokens)));
}

// A score of a query so scaled, capped where there is a cap.
inline float attention_score(constant AttentionParams &p, float score)
{
    if (p.softcap == 0.0f) return score;
    float cap = p.softcap * ATTENTION_LOG2_E;
    return cap * soft_tanh(score / cap);
}

// Where a head's softmax begins: the largest score so far, and the sum of the weights.
inline float2 attention_begin(constant AttentionParams &p, device const float *sinks, uint head)
{
    if (p.has_sinks == 0) return float2(ATTENTION_UNSEEN, 0.0f);
    return float2(max(sinks[head] * ATTENTION_LOG2_E, ATTENTION_UNSEEN), 1.0f);
}

// False: the tile points outside q (binding 0), the tables (binding 3) or its own table.
inline bool attention_tile(device const int32_t *tiles, device const int32_t *tables,
                           constant AttentionParams &p, constant MarlinCall &call, uint index,
                           thread AttentionTile &tile)
{
    device const int32_t *from = tiles + index * 4;
    int32_t first_row = from[0], rows = from[1], sequence = from[2], position = from[3];
    if (first_row < 0 || rows < 1 || rows > MARLIN_QUERY_TILE || sequence < 0 || position < 0)
        return false;
    if (uint(first_row) + uint(rows) > call.words[0] / (p.num_heads * HEAD_DIM)) return false;
    if (uint(sequence) >= call.words[3] / p.table_stride) return false;
    tile.first_row = uint(first_row);
    tile.num_queries = uint(rows) * HEADS_PER_KV;
    tile.position = uint(position);
    tile.last = uint(position) + uint(rows) - 1;
    tile.table = tables + uint(sequence) * p.table_stride;
    return tile.last / p.block_size < p.table_stride;
}

inline bool attention_is_block(constant AttentionParams &p, int32_t block)
{
    return block >= 0 && uint(block) < p.num_blocks;
}

// Where in either cache the 16 tokens of a position (a multiple of 16) begin, in units of 16 tokens
// of one KV head: 32 bits of these are 2 TiB of cache.
inline uint attention_cache_tile(constant AttentionParams &p, uint block, uint kv_head,
                                 uint position)
{
    uint head = LATENT_DIM != 0 ? block : block * p.num_kv_heads + kv_head;
    return head * (p.block_size / MARLIN_KEY_TILE) + position % p.block_size / MARLIN_KEY_TILE;
}

// Heads before query `query` of a tile in q or out.
inline uint attention_query(constant AttentionParams &p, thread const AttentionTile &tile,
                            uint kv_head, uint query)
{
    uint row = tile.first_row + query / HEADS_PER_KV;
    return row * p.num_heads + kv_head * HEADS_PER_KV + query % HEADS_PER_KV;
}

// Floats before it in q.
inline uint attention_query_offset(constant AttentionParams &p, thread const AttentionTile &tile,
                                   uint kv_head, uint query)
{
    return attention_query(p, tile, kv_head, query) * HEAD_DIM;
}

#endif
