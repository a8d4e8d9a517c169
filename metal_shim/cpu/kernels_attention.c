/* kernels_attention.c: causal attention over a block-table KV cache, for prefill and decode.
 *
 *   q        float [rows, num_heads, head_dim], rotated      out  float, the same
 *   k_cache  half or float [num_blocks, num_kv_heads, block_size / 16, head_dim, 16]
 *   v_cache  half or float [num_blocks, num_kv_heads, block_size, head_dim]
 *   tables   int32 [num_sequences, table_stride], block ids in logical order
 *   tiles    int32 [num_tiles, 4]: first row, rows (<= 16), sequence, position of the first row
 *   sinks    float [num_heads], or not bound: scores that take their share of a head's softmax
 *
 * With a latent_dim, k_cache has one head, whose first latent_dim numbers are the values as well;
 * v_cache is not bound, the query heads are shared out to num_kv_heads, and out is float [rows,
 * num_heads, latent_dim].
 *
 * Scores are q k * scale, or softcap * tanh(q k * scale / softcap). A query at position p sees
 * positions (p - window, p]. A contiguous cache is one block as long as the context. The context is
 * cut into splits of 256 tokens at fixed places. Each gives a softmax partial (max, sum, weighted
 * values), and partials merge in order: `attention` does both for a tile, `attention_split` leaves
 * the partials for `attention_combine`, so that threads can share one long context. The numbers are
 * the same either way, and whatever rows share a tile. */
#include "cpu/cpu.h"
#include "cpu/functions.h"
#include "cpu/simd.h"

#define SPLIT MARLIN_KV_SPLIT
/* Softmax is in powers of two: e^x = 2^(x * LOG2_E). */
#define LOG2_E 1.44269504f
/* Rows of q that share a key tile, and rows x vectors of v that are summed at once: both fit the
 * registers. */
#define Q_BLOCK 8
#define V_BLOCK 4
#define O_BLOCK (V_LANES == 16 ? 6 : 2)

typedef struct {
    const struct AttentionParams *p;
    const uint8_t *k_cache, *v_cache; /* of float where p->kv_f32 */
    const int32_t *table;
    int64_t kv_head;
    int rows;        /* query rows of the tile times query heads of the KV head */
    float *q;        /* [rows, head_dim], scaled by log2(e) * scale */
    int32_t *last;   /* [rows], the last position each row sees */
    float *scores;   /* [rows, SPLIT] */
    int64_t out_dim; /* of a head's output */
    float *partial;  /* [rows, out_dim + 2]: values, max, sum of one split */
    float *merged;   /* [rows, out_dim + 2] */
} attention;

static int64_t output_dim(const struct AttentionParams *p)
{
    return p->latent_dim ? p->latent_dim : p->head_dim;
}

static int64_t scratch_rows(const struct AttentionParams *p)
{
    return (int64_t)MARLIN_QUERY_TILE * (p->num_heads / p->num_kv_heads);
}

static void attention_begin(attention *a, const marlin_call *call, uint8_t *scratch)
{
    const struct AttentionParams *p = call->params;
    int64_t rows = scratch_rows(p), dim = p->head_dim;
    a->p = p;
    a->out_dim = output_dim(p);
    a->k_cache = call->at[1];
    a->v_cache = call->at[2];
    a->q = (float *)scratch;
    a->scores = a->q + rows * dim;
    a->partial = a->scores + rows * SPLIT;
    a->merged = a->partial + rows * (a->out_dim + 2);
    a->last = (int32_t *)(a->merged + rows * (a->out_dim + 2));
}

/* What a query is multiplied by for its position. */
static float query_scale(const struct AttentionParams *p, int64_t position)
{
    if (p->position_scale == 0.0f) return 1.0f;
    return 1.0f + p->position_scale * portable_log1p((float)(position / (int64_t)p->scale_tokens));
}

/* Take tile `tile` for one KV head: its rows, ordered token by token, and where its sequence's
 * blocks are. */
static int load_tile(attention *a, const marlin_call *call, int64_t tile, int64_t kv_head)
{
    const struct AttentionParams *p = a->p;
    const int32_t *t = (const int32_t *)call->at[4] + tile * 4;
    int64_t dim = p->head_dim, heads = p->num_heads / p->num_kv_heads;
    int64_t all_rows = call->bytes[0] / (4 * dim * p->num_heads);
    int64_t sequences = call->bytes[3] / (4 * (int64_t)p->table_stride);
    if (t[0] < 0 || t[1] < 1 || t[1] > MARLIN_QUERY_TILE || t[0] + (int64_t)t[1] > all_rows)
        return 0;
    if (t[2] < 0 || t[2] >= sequences || t[3] < 0) return 0;
    int64_t last = t[3] + (int64_t)t[1] - 1;
    if (last / p->block_size >= p->table_stride) return 0;
    a->table = (const int32_t *)call->at[3] + t[2] * (int64_t)p->table_stride;
    int64_t first_seen = p->window && t[3] >= (int64_t)p->window ? t[3] - p->window + 1 : 0;
    for (int64_t i = first_seen / p->block_size; i <= last / p->block_size; i++)
        if (a->table[i] < 0 || a->table[i] >= (int64_t)p->num_blocks) return 0;
    a->kv_head = kv_head;
    a->rows = (int)(t[1] * heads);
    for (int64_t r = 0; r < a->rows; r++) {
        float scale = p->scale * LOG2_E * query_scale(p, t[3] + r / heads);
        int64_t row = t[0] + r / heads, head = kv_head * heads + r % heads;
        const float *q = (const float *)call->at[0] + (row * p->num_heads + head) * dim;
        for (int64_t i = 0; i < dim; i++) a->q[r * dim + i] = q[i] * scale;
        a->last[r] = (int32_t)(t[3] + r / heads);
    }
    return 1;
}

/* is_f32 is a constant where this and its callers are called. */
INLINE vf load_kv(int is_f32, const uint8_t *cache, int64_t at)
{
    return is_f32 ? vf_load((const float *)cache + at) : vf_load_f16((const uint16_t *)cache + at);
}

/* Offset in either cache of the 16 tokens that begin at position (a multiple of 16). */
INLINE int64_t cache_offset(const attention *a, int64_t position)
{
    const struct AttentionParams *p = a->p;
    int64_t block = a->table[position / p->block_size];
    int64_t head = p->latent_dim ? block : block * p->num_kv_heads + a->kv_head;
    return (head * p->block_size + position % p->block_size) * p->head_dim;
}

/* Scores of num_rows (a constant) rows with the 16 keys at `position`. */
INLINE void score_rows(const attention *a, int is_f32, int num_rows, int row, int64_t position,
                       int64_t column)
{
    int64_t dim = a->p->head_dim;
    const float *q = a->q + row * dim;
    int64_t keys = cache_offset(a, position);
    for (int part = 0; part < V_PARTS; part++) {
        vf sums[Q_BLOCK];
        for (int r = 0; r < num_rows; r++) sums[r] = vf_zero();
        for (int64_t i = 0; i < dim; i++) {
            vf key = load_kv(is_f32, a->k_cache, keys + i * 16 + part * V_LANES);
#pragma GCC unroll 8
            for (int r = 0; r < num_rows; r++)
                sums[r] = vf_fma(vf_set1(q[r * dim + i]), key, sums[r]);
        }
        for (int r = 0; r < num_rows; r++)
            vf_store(a->scores + (row + r) * SPLIT + column + part * V_LANES, sums[r]);
    }
}

INLINE void score_tile(const attention *a, int is_f32, int64_t position, int64_t column)
{
    int row = 0;
    for (; a->rows - row >= Q_BLOCK; row += Q_BLOCK)
        score_rows(a, is_f32, Q_BLOCK, row, position, column);
    for (; a->rows - row >= 3; row += 3) score_rows(a, is_f32, 3, row, position, column);
    for (; row < a->rows; row++) score_rows(a, is_f32, 1, row, position, column);
}

/* Scores of one row become 2^(score - max), 0 where the row may not look; max and sum go to the
 * partial. Of a score that is no number, as a key that was none leaves it, so is all of the row. */
static void softmax_row(const attention *a, int row, int64_t start, int64_t count)
{
    float *s = a->scores + row * SPLIT;
    float *partial = a->partial + row * (a->out_dim + 2);
    int64_t seen = a->last[row] - start + 1;
    int64_t hidden = a->p->window ? a->last[row] - (int64_t)a->p->window + 1 - start : 0;
    if (seen < 0) seen = 0;
    if (a->p->softcap > 0.0f) {
        float cap = a->p->softcap * LOG2_E;
        for (int64_t i = 0; i < count; i += V_LANES)
            vf_store(s + i, vf_mul(vf_set1(cap), vf_tanh(vf_div(vf_load(s + i), vf_set1(cap)))));
    }
    for (int64_t i = seen; i < count; i++) s[i] = -INFINITY;
    for (int64_t i = 0; i < hidden && i < count; i++) s[i] = -INFINITY;
    vf most = vf_set1(-INFINITY);
    for (int64_t i = 0; i < count; i += V_LANES) most = vf_max(most, vf_load(s + i));
    float max = vf_reduce_max(most);
    partial[a->out_dim] = max;
    partial[a->out_dim + 1] = 0.0f;
    if (max == -INFINITY) {
        memset(s, 0, (size_t)count * sizeof *s);
        if ((seen < count ? seen : count) <= (hidden > 0 ? hidden : 0)) return;
        partial[a->out_dim] = 0.0f; /* all that it sees is no number */
        partial[a->out_dim + 1] = NAN;
        return;
    }
    vf sum[V_PARTS];
    for (int part = 0; part < V_PARTS; part++) sum[part] = vf_zero();
    for (int64_t i = 0; i < count; i += 16) {
        for (int part = 0; part < V_PARTS; part++) {
            vf weight = vf_exp2(vf_sub(vf_load(s + i + part * V_LANES), vf_set1(max)));
            vf_store(s + i + part * V_LANES, weight);
            sum[part] = vf_add(sum[part], weight);
        }
    }
    partial[a->out_dim + 1] = vf_reduce_add(sum);
}

/* Values of num_rows rows, num_vectors vectors of the head from `column`: both constants where it
 * is called. */
INLINE void sum_values(const attention *a, int is_f32, int num_rows, int num_vectors, int row,
                       int64_t column, int64_t start, int64_t first, int64_t count)
{
    int64_t dim = a->p->head_dim;
    vf sums[6][V_BLOCK];
    for (int r = 0; r < num_rows; r++)
        for (int v = 0; v < num_vectors; v++) sums[r][v] = vf_zero();
    for (int64_t tile = first; tile < count; tile += 16) {
        int64_t values = cache_offset(a, start + tile) + column;
        const float *weights = a->scores + row * SPLIT + tile;
        for (int64_t t = 0; t < 16; t++) {
            vf value[V_BLOCK];
            for (int v = 0; v < num_vectors; v++)
                value[v] = load_kv(is_f32, a->v_cache, values + t * dim + v * V_LANES);
#pragma GCC unroll 6
            for (int r = 0; r < num_rows; r++) {
                vf weight = vf_set1(weights[r * SPLIT + t]);
#pragma GCC unroll 4
                for (int v = 0; v < num_vectors; v++)
                    sums[r][v] = vf_fma(weight, value[v], sums[r][v]);
            }
        }
    }
    for (int r = 0; r < num_rows; r++)
        for (int v = 0; v < num_vectors; v++)
            vf_store(a->partial + (row + r) * (dim + 2) + column + v * V_LANES, sums[r][v]);
}

INLINE void sum_all_values(const attention *a, int is_f32, int64_t start, int64_t first,
                           int64_t count)
{
    int64_t dim = a->p->head_dim, column = 0;
    for (; dim - column >= V_BLOCK * V_LANES; column += V_BLOCK * V_LANES) {
        int row = 0;
        for (; a->rows - row >= O_BLOCK; row += O_BLOCK)
            sum_values(a, is_f32, O_BLOCK, V_BLOCK, row, column, start, first, count);
        for (; a->rows - row >= 3; row += 3)
            sum_values(a, is_f32, 3, V_BLOCK, row, column, start, first, count);
        for (; row < a->rows; row++)
            sum_values(a, is_f32, 1, V_BLOCK, row, column, start, first, count);
    }
    for (; column < dim; column += V_LANES)
        for (int row = 0; row < a->rows; row++)
            sum_values(a, is_f32, 1, 1, row, column, start, first, count);
}

/* Four columns of num_rows rows (a constant), where values lie as keys do: a lane is a token. */
INLINE void sum_latents(const attention *a, int is_f32, int num_rows, int row, int64_t column,
                        int64_t start, int64_t first, int64_t count)
{
    vf sums[6][4][V_PARTS];
    for (int r = 0; r < num_rows; r++)
        for (int v = 0; v < 4; v++)
            for (int part = 0; part < V_PARTS; part++) sums[r][v][part] = vf_zero();
    for (int64_t tile = first; tile < count; tile += 16) {
        int64_t values = cache_offset(a, start + tile) + column * 16;
        const float *weights = a->scores + row * SPLIT + tile;
        for (int part = 0; part < V_PARTS; part++) {
            vf value[4];
            for (int v = 0; v < 4; v++)
                value[v] = load_kv(is_f32, a->k_cache, values + v * 16 + part * V_LANES);
#pragma GCC unroll 6
            for (int r = 0; r < num_rows; r++) {
                vf weight = vf_load(weights + r * SPLIT + part * V_LANES);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++)
                    sums[r][v][part] = vf_fma(weight, value[v], sums[r][v][part]);
            }
        }
    }
    for (int r = 0; r < num_rows; r++)
        vf_reduce_add4(sums[r], a->partial + (row + r) * (a->out_dim + 2) + column);
}

INLINE void sum_all_latents(const attention *a, int is_f32, int64_t start, int64_t first,
                            int64_t count)
{
    for (int64_t column = 0; column < a->out_dim; column += 4) {
        int row = 0;
        for (; a->rows - row >= O_BLOCK; row += O_BLOCK)
            sum_latents(a, is_f32, O_BLOCK, row, column, start, first, count);
        for (; row < a->rows; row++) sum_latents(a, is_f32, 1, row, column, start, first, count);
    }
}

/* The partial of every row over the tokens [first, count) of a split that some row sees. */
INLINE void attend_tokens(const attention *a, int is_f32, int64_t start, int64_t first,
                          int64_t count)
{
    for (int64_t i = first; i < count; i += 16) score_tile(a, is_f32, start + i, i);
    for (int row = 0; row < a->rows; row++) softmax_row(a, row, start, count);
    if (a->p->latent_dim)
        sum_all_latents(a, is_f32, start, first, count);
    else
        sum_all_values(a, is_f32, start, first, count);
}

/* The partial of every row over one split. */
static void attend_split(const attention *a, int64_t split)
{
    int64_t start = split * SPLIT, first = 0;
    int64_t count = a->last[a->rows - 1] - start + 1;
    count = count > SPLIT ? SPLIT : (count + 15) / 16 * 16;
    if (a->p->window) {
        int64_t hidden = a->last[0] - (int64_t)a->p->window + 1 - start;
        if (hidden > 0) first = hidden / 16 * 16;
    }
    if (first >= count) {
        for (int row = 0; row < a->rows; row++) {
            float *partial = a->partial + row * (a->out_dim + 2);
            memset(partial, 0, (size_t)(a->out_dim + 2) * sizeof *partial);
            partial[a->out_dim] = -INFINITY;
        }
        return;
    }
    if (a->p->kv_f32)
        attend_tokens(a, 1, start, first, count);
    else
        attend_tokens(a, 0, start, first, count);
}

/* merged += partial, both [dim values, max, sum]. */
static void merge(float *merged, const float *partial, int64_t dim)
{
    float old_max = merged[dim], new_max = partial[dim];
    if (new_max == -INFINITY) return;
    float max = old_max > new_max ? old_max : new_max;
    float factors[2 * V_LANES];
    vf_store(factors, old_max == -INFINITY ? vf_zero() : vf_exp2(vf_set1(old_max - max)));
    vf_store(factors + V_LANES, vf_exp2(vf_set1(new_max - max)));
    vf keep = vf_set1(factors[0]), add = vf_set1(factors[V_LANES]);
    for (int64_t i = 0; i < dim; i += V_LANES)
        vf_store(merged + i, vf_fma(vf_load(partial + i), add, vf_mul(vf_load(merged + i), keep)));
    merged[dim] = max;
    merged[dim + 1] = fmaf(partial[dim + 1], factors[V_LANES], merged[dim + 1] * factors[0]);
}

/* What partials of a head are merged into: nothing, or its sink (binding 6). */
static void merge_begin(float *merged, const marlin_call *call, int64_t head)
{
    const struct AttentionParams *p = call->params;
    int64_t dim = output_dim(p);
    memset(merged, 0, (size_t)(dim + 2) * sizeof *merged);
    merged[dim] = -INFINITY;
    if (!p->has_sinks) return;
    merged[dim] = ((const float *)call->at[6])[head] * LOG2_E;
    merged[dim + 1] = 1.0f;
}

static void store_output(const marlin_call *call, int binding, int64_t row, int64_t head,
                         const float *merged)
{
    const struct AttentionParams *p = call->params;
    int64_t dim = output_dim(p);
    float *out = (float *)call->at[binding] + (row * p->num_heads + head) * dim;
    vf inverse = vf_set1(1.0f / merged[dim + 1]);
    for (int64_t i = 0; i < dim; i += V_LANES)
        vf_store(out + i, vf_mul(vf_load(merged + i), inverse));
}

/* Units: (tile, KV head), later tiles first because they see more. */
KERNEL(attention)
{
    const struct AttentionParams *p = call->params;
    int64_t dim = output_dim(p), heads = p->num_heads / p->num_kv_heads,
            tiles = call->vars[p->tiles_var];
    attention a;
    attention_begin(&a, call, scratch);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t tile = tiles - 1 - unit / p->num_kv_heads;
        if (!load_tile(&a, call, tile, unit % p->num_kv_heads)) return MARLIN_EDEVICE;
        for (int r = 0; r < a.rows; r++)
            merge_begin(a.merged + r * (dim + 2), call, a.kv_head * heads + r % heads);
        int64_t hidden = p->window ? a.last[0] - (int64_t)p->window + 1 : 0;
        for (int64_t split = hidden > 0 ? hidden / SPLIT : 0; split * SPLIT <= a.last[a.rows - 1];
             split++) {
            attend_split(&a, split);
            for (int r = 0; r < a.rows; r++)
                merge(a.merged + r * (dim + 2), a.partial + r * (dim + 2), dim);
        }
        int64_t first_row = ((const int32_t *)call->at[4])[tile * 4];
        for (int r = 0; r < a.rows; r++)
            store_output(call, 5, first_row + r / heads, a.kv_head * heads + r % heads,
                         a.merged + r * (dim + 2));
    }
    return MARLIN_OK;
}

/* Units: (tile, KV head, split). Binding 5: float [rows, num_heads, max_splits, head_dim + 2],
 * partials, where there is more than one split; else 7, the output, and 6 is the sinks. */
KERNEL(attention_split)
{
    const struct AttentionParams *p = call->params;
    int64_t dim = output_dim(p), heads = p->num_heads / p->num_kv_heads,
            splits = call->vars[p->splits_var];
    attention a;
    attention_begin(&a, call, scratch);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t split = unit % splits, tile = unit / splits / p->num_kv_heads;
        if (!load_tile(&a, call, tile, unit / splits % p->num_kv_heads)) return MARLIN_EDEVICE;
        if (a.last[a.rows - 1] / SPLIT >= splits) return MARLIN_EDEVICE;
        int64_t hidden = p->window ? a.last[0] - (int64_t)p->window + 1 : 0;
        if (split * SPLIT > a.last[a.rows - 1] || (split + 1) * SPLIT <= hidden) continue;
        attend_split(&a, split);
        int64_t first_row = ((const int32_t *)call->at[4])[tile * 4];
        for (int r = 0; r < a.rows; r++) {
            int64_t head = a.kv_head * heads + r % heads;
            if (splits == 1) {
                float *merged = a.merged + r * (dim + 2);
                merge_begin(merged, call, head);
                merge(merged, a.partial + r * (dim + 2), dim);
                store_output(call, 7, first_row + r / heads, head, merged);
                continue;
            }
            int64_t at = ((first_row + r / heads) * p->num_heads + head) * p->max_splits + split;
            memcpy((float *)call->at[5] + at * (dim + 2), a.partial + r * (dim + 2),
                   (size_t)(dim + 2) * 4);
        }
    }
    return MARLIN_OK;
}

/* Units: tiles. Binding 0 is the partials, 4 the tiles, 5 the output, 6 the sinks. */
KERNEL(attention_combine)
{
    const struct AttentionParams *p = call->params;
    int64_t dim = output_dim(p);
    int64_t all_rows = call->bytes[0] / (4 * (dim + 2) * p->num_heads * p->max_splits);
    float *merged = (float *)scratch;
    for (int64_t unit = begin; unit < end; unit++) {
        int32_t t[4]; /* a copy: what was checked cannot change while out is written */
        memcpy(t, call->at[4] + unit * sizeof t, sizeof t);
        if (t[0] < 0 || t[1] < 1 || t[0] + (int64_t)t[1] > all_rows || t[3] < 0)
            return MARLIN_EDEVICE;
        for (int64_t row = t[0]; row < t[0] + (int64_t)t[1]; row++) {
            int64_t last = t[3] + row - t[0],
                    hidden = p->window ? last - (int64_t)p->window + 1 : 0;
            if (last / SPLIT >= call->vars[p->splits_var]) return MARLIN_EDEVICE;
            for (int64_t head = 0; head < p->num_heads; head++) {
                const float *partials = (const float *)call->at[0] +
                                        (row * p->num_heads + head) * p->max_splits * (dim + 2);
                merge_begin(merged, call, head);
                for (int64_t split = hidden > 0 ? hidden / SPLIT : 0; split * SPLIT <= last;
                     split++)
                    merge(merged, partials + split * (dim + 2), dim);
                store_output(call, 5, row, head, merged);
            }
        }
    }
    return MARLIN_OK;
}
