// embed.metal: y[t, :] = W[token_ids[t], :] * scale, for a weight of any kind.
//
//   token_ids  int32 [rows]     W  [vocab_size, dim], dense or packed (docs/formats.md)
//   y  float [rows, dim];   packed: dim % 32 == 0
//   A token id outside [0, vocab_size) fails and leaves its row of y as it is.
//
//   Grid: one threadgroup a row. Group: THREADS_embed_* (128): a dim of 1024 is one word a thread
//   in the 4-bit kinds, two in int8, and eight values in the dense ones.
//   Bytes: dim weights read and 4 * dim written a row. A packed row's words lie 64 bytes apart, so
//   that its cache lines bring its 15 neighbours too: 8 to 16 KiB a token and 1024 columns, nothing
//   beside the layers. Operations: one multiply-add a value.
#include <metal_stdlib>

#include "common.h"
#include "weights.h"

using namespace metal;

template <typename Weight>
[[kernel]] void embed_dense(device const int32_t *token_ids [[buffer(0)]],
                            device const typename Weight::type *weights [[buffer(1)]],
                            device float *y [[buffer(4)]],
                            constant EmbedParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                            constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
                            device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint thread_index [[thread_index_in_threadgroup]],
                            uint3 threads [[threads_per_threadgroup]])
{
    const uint id = uint(token_ids[group.x]);
    if (id >= p.vocab_size) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    device const typename Weight::type *row = weights + ulong(id) * p.dim;
    device float *to = y + ulong(group.x) * p.dim;
    for (uint i = thread_index; i < p.dim; i += threads.x) to[i] = Weight::one(row[i]) * p.scale;
}

template <typename Weight>
[[kernel]] void
embed_packed(device const int32_t *token_ids [[buffer(0)]], device const uint *codes [[buffer(1)]],
             device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],
             device float *y [[buffer(4)]], constant EmbedParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
             constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
             device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
             uint3 group [[threadgroup_position_in_grid]],
             uint thread_index [[thread_index_in_threadgroup]],
             uint3 threads [[threads_per_threadgroup]])
{
    const uint id = uint(token_ids[group.x]);
    if (id >= p.vocab_size) {
        if (thread_index == 0) fail(status, call);
        return;
    }
    const uint tile = id / MARLIN_ROW_TILE, row = id % MARLIN_ROW_TILE;
    const uint num_words = p.dim * Weight::BITS / 32, num_groups = p.dim / GROUP_SIZE;
    device const uint *words = codes + ulong(tile) * num_words * MARLIN_ROW_TILE + row;
    device float *to = y + ulong(group.x) * p.dim;
    for (uint j = thread_index; j < p.dim / Weight::COLUMNS; j += threads.x) {
        const uint2 codes_at = Weight::load(words, j * Weight::COLUMNS);
        const uint group_at = j * Weight::COLUMNS / GROUP_SIZE;
        const float scale = scale_at(scales, tile, num_groups, group_at, row);
        const float bias =
            Weight::has_bias() ? scale_at(biases, tile, num_groups, group_at, row) : 0.0f;
        for (uint i = 0; i < Weight::COLUMNS / 4; i++) {
            const uint column = j * Weight::COLUMNS + 4 * i;
            const float4 quad = (scale * Weight::quad(codes_at, column) + bias) * p.scale;
            for (uint c = 0; c < 4; c++) to[column + c] = quad[c];
        }
    }
}

#define EMBED(name, embed, Weight)                                                                 \
    template [[host_name(name)]] [[kernel]] decltype(embed<Weight>) embed<Weight>;

EMBED("embed_f32", embed_dense, F32Weight)
EMBED("embed_f16", embed_dense, F16Weight)
EMBED("embed_bf16", embed_dense, Bf16Weight)
EMBED("embed_int8", embed_packed, Int8Weight)
EMBED("embed_int4", embed_packed, Int4Weight)
EMBED("embed_fp4", embed_packed, Fp4Weight)
EMBED("embed_int5", embed_packed, Int5Weight)
EMBED("embed_int6", embed_packed, Int6Weight)
EMBED("embed_iq4", embed_packed, Iq4Weight)
EMBED("embed_fp8", embed_packed, Fp8Weight)
EMBED("embed_nf4", embed_packed, Nf4Weight)
