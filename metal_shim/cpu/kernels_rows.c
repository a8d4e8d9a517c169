/* kernels_rows.c: the row-by-row kernels: embedding, RMS and layer norm, RoPE with the KV write,
 * gates, GELU, scaled rows, row gather. Unit of work: one row (for rms_norm of heads, one head of
 * one token). */
#include <float.h>

#include "cpu/cpu.h"
#include "cpu/functions.h"
#include "cpu/gates.h"
#include "cpu/simd.h"

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
static const float fp4_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
static const float nf4_values[16] = {MARLIN_NF4_VALUES};

/* Scale or bias of a group of a packed weight's row `row`. */
INLINE float load_any(const uint8_t *values, const struct EmbedParams *p, int64_t row,
                      int64_t group)
{
    int64_t tile = row / MARLIN_ROW_TILE, lane = row % MARLIN_ROW_TILE;
    int64_t groups = p->dim / p->group_size;
    int64_t at = (tile * groups + group) * MARLIN_ROW_TILE + lane;
    if (p->flags & MARLIN_SCALE_ROW) {
        values += tile * (MARLIN_BLOCK_STEP_BYTES + groups * MARLIN_ROW_TILE);
        float step = f32_from_bits((uint32_t)((const uint16_t *)values)[lane] << 16);
        values += MARLIN_BLOCK_STEP_BYTES + group * MARLIN_ROW_TILE;
        return step * (float)((const int8_t *)values)[lane];
    }
    if (p->flags & MARLIN_SCALE_F32) return ((const float *)values)[at];
    if (p->flags & MARLIN_SCALE_EXP) return f32_from_exponent(values[at]);
    if (!(p->flags & MARLIN_SCALE_BLOCK)) return f32_from_f16(((const uint16_t *)values)[at]);
    int64_t a_block = MARLIN_BLOCK_COLUMNS / p->group_size * MARLIN_ROW_TILE;
    values += at / a_block * (MARLIN_BLOCK_STEP_BYTES + a_block);
    float step = f32_from_f16(((const uint16_t *)values)[lane]);
    return step * (float)((const int8_t *)values)[MARLIN_BLOCK_STEP_BYTES + at % a_block];
}

/* Code of column i of a row in a tile that begins after `first` columns: a nibble and, one word for
 * as many columns as it has places, what lies above. */
INLINE int nibble_code(const uint8_t *codes, int kind, int64_t first, int64_t lane, int64_t i)
{
    int high_bits = kind == WEIGHT_int5 ? 1 : kind == WEIGHT_int6 ? 2 : 0;
    int64_t together = high_bits ? 32 / high_bits : 8, words = together / 8 + (high_bits > 0);
    int64_t word = (first + i) / together * words, at = i % together;
    const uint8_t *nibbles = codes + ((word + at / 8) * MARLIN_ROW_TILE + lane) * 4;
    int code = nibbles[i % 4] >> (at % 8 / 4 * 4) & 15;
    if (!high_bits) return code;
    const uint8_t *high = codes + ((word + words - 1) * MARLIN_ROW_TILE + lane) * 4;
    return code | (high[i % 4] >> (at / 4 * high_bits) & ((1 << high_bits) - 1)) << 4;
}

/* Column i of row `row` of a packed weight (docs/formats.md). */
INLINE float packed_value(const marlin_call *call, int kind, int64_t row, int64_t i)
{
    const struct EmbedParams *p = call->params;
    int64_t tile = row / MARLIN_ROW_TILE, lane = row % MARLIN_ROW_TILE, k = p->dim;
    float scale = load_any(call->at[2], p, row, i / p->group_size);
    float bias =
        p->flags & MARLIN_WEIGHT_BIAS ? load_any(call->at[3], p, row, i / p->group_size) : 0.0f;
    if (kind == WEIGHT_int8 || kind == WEIGHT_fp8) {
        uint8_t code = call->at[1][((tile * (k / 4) + i / 4) * MARLIN_ROW_TILE + lane) * 4 + i % 4];
        return kind == WEIGHT_fp8 ? scale * f32_from_e4m3(code)
                                  : scale * (float)(code - 128) + bias;
    }
    int code = nibble_code(call->at[1], kind, tile * k, lane, i);
    if (kind == WEIGHT_fp4) return scale * fp4_values[code];
    if (kind == WEIGHT_nf4) return scale * nf4_values[code];
    if (kind == WEIGHT_iq4) return scale * (float)iq4_values[code];
    return scale * (float)(kind == WEIGHT_int6 ? code - 32 : code) + bias;
}

/* y[t, :] = W[token_ids[t], :] * scale
 * token_ids int32 [rows]; W [vocab_size, dim]; y float [rows, dim] */
INLINE int embed(const marlin_call *call, int64_t begin, int64_t end, int kind)
{
    const struct EmbedParams *p = call->params;
    const int32_t *ids = (const int32_t *)call->at[0];
    for (int64_t t = begin; t < end; t++) {
        int64_t row = ids[t];
        if (row < 0 || row >= p->vocab_size) return MARLIN_EDEVICE;
        float *y = (float *)call->at[4] + t * p->dim;
        for (int64_t i = 0; i < p->dim; i++) {
            int64_t at = row * p->dim + i;
            float value;
            if (kind == WEIGHT_f32)
                value = ((const float *)call->at[1])[at];
            else if (kind == WEIGHT_f16)
                value = f32_from_f16(((const uint16_t *)call->at[1])[at]);
            else if (kind == WEIGHT_bf16)
                value = f32_from_bits((uint32_t)((const uint16_t *)call->at[1])[at] << 16);
            else
                value = packed_value(call, kind, row, i);
            y[i] = value * p->scale;
        }
    }
    return MARLIN_OK;
}

#define X(kind, ...)                                                                               \
    KERNEL(embed_##kind)                                                                           \
    {                                                                                              \
        (void)scratch;                                                                             \
        return embed(call, begin, end, WEIGHT_##kind);                                             \
    }
MARLIN_WEIGHT_KINDS(X)
#undef X

/* x += delta * delta_scale (if has_delta);  y = x * rsqrt(mean(x^2) + eps) * w, or += (if adds)
 * x float [rows, dim], in place; delta float [rows, dim]; w float [dim]; y float [rows, dim], may
 * be x */
INLINE void norm_row(const struct RmsNormParams *p, float *x, const float *delta, const float *w,
                     float *y)
{
    int64_t dim = p->dim, whole = dim / 16 * 16;
    vf squares[V_PARTS];
    float tail = 0.0f;
    for (int part = 0; part < V_PARTS; part++) squares[part] = vf_zero();
    for (int64_t i = 0; i < whole; i += 16)
        for (int part = 0; part < V_PARTS; part++) {
            int64_t at = i + part * V_LANES;
            vf v = vf_load(x + at);
            if (delta)
                vf_store(x + at, v = vf_fma(vf_load(delta + at), vf_set1(p->delta_scale), v));
            squares[part] = vf_fma(v, v, squares[part]);
        }
    for (int64_t i = whole; i < dim; i++) {
        if (delta) x[i] = fmaf(delta[i], p->delta_scale, x[i]);
        tail += x[i] * x[i];
    }
    float mean = (vf_reduce_add(squares) + tail) / (float)dim;
    float inverse = 1.0f / sqrtf(mean + p->eps);
    for (int64_t i = 0; i < whole; i += V_LANES) {
        vf norm = vf_mul(vf_mul(vf_load(x + i), vf_set1(inverse)), vf_load(w + i));
        vf_store(y + i, p->adds ? vf_add(vf_load(y + i), norm) : norm);
    }
    for (int64_t i = whole; i < dim; i++) {
        float norm = x[i] * inverse * w[i];
        y[i] = p->adds ? y[i] + norm : norm;
    }
}

KERNEL(rms_norm)
{
    (void)scratch;
    const struct RmsNormParams *p = call->params;
    for (int64_t row = begin; row < end; row++) {
        int64_t at = row * p->dim;
        const float *delta = p->has_delta ? (const float *)call->at[1] + at : NULL;
        norm_row(p, (float *)call->at[0] + at, delta, (const float *)call->at[2],
                 (float *)call->at[3] + at);
    }
    return MARLIN_OK;
}

/* x += delta (if has_delta);  y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b
 * x float [rows, dim], in place; delta float [rows, dim]; w, b float [dim]; y float [rows, dim],
 * may be x */
KERNEL(layer_norm)
{
    (void)scratch;
    const struct LayerNormParams *p = call->params;
    const float *w = (const float *)call->at[2], *b = (const float *)call->at[3];
    int64_t dim = p->dim, whole = dim / 16 * 16;
    for (int64_t row = begin; row < end; row++) {
        float *x = (float *)call->at[0] + row * dim;
        float *y = (float *)call->at[4] + row * dim;
        const float *delta = p->has_delta ? (const float *)call->at[1] + row * dim : NULL;
        vf sums[V_PARTS], squares[V_PARTS];
        float tail = 0.0f;
        for (int part = 0; part < V_PARTS; part++) sums[part] = squares[part] = vf_zero();
        for (int64_t i = 0; i < whole; i += V_LANES) {
            vf v = vf_load(x + i), *sum = sums + i % 16 / V_LANES;
            if (delta) vf_store(x + i, v = vf_add(v, vf_load(delta + i)));
            *sum = vf_add(*sum, v);
        }
        for (int64_t i = whole; i < dim; i++) {
            if (delta) x[i] += delta[i];
            tail += x[i];
        }
        float mean = (vf_reduce_add(sums) + tail) / (float)dim;
        vf mean_v = vf_set1(mean);
        tail = 0.0f;
        for (int64_t i = 0; i < whole; i += V_LANES) {
            vf v = vf_sub(vf_load(x + i), mean_v), *sum = squares + i % 16 / V_LANES;
            *sum = vf_fma(v, v, *sum);
        }
        for (int64_t i = whole; i < dim; i++) tail += (x[i] - mean) * (x[i] - mean);
        float variance = (vf_reduce_add(squares) + tail) / (float)dim;
        float inverse = 1.0f / sqrtf(variance + p->eps);
        vf inverse_v = vf_set1(inverse);
        for (int64_t i = 0; i < whole; i += V_LANES) {
            vf v = vf_mul(vf_sub(vf_load(x + i), mean_v), inverse_v);
            vf_store(y + i, vf_fma(v, vf_load(w + i), vf_load(b + i)));
        }
        for (int64_t i = whole; i < dim; i++) y[i] = fmaf((x[i] - mean) * inverse, w[i], b[i]);
    }
    return MARLIN_OK;
}

/* table[t, 0, :] = cos(position * inv_freq) * scale, table[t, 1, :] = sin(...) * scale
 * positions int32 [rows]; inv_freq float [half_dim]; table float [rows, 2, half_dim] */
KERNEL(rope_table)
{
    (void)scratch;
    const struct RopeTableParams *p = call->params;
    const int32_t *positions = (const int32_t *)call->at[0];
    const float *inv_freq = (const float *)call->at[1];
    for (int64_t t = begin; t < end; t++) {
        float *table = (float *)call->at[2] + t * 2 * p->half_dim;
        for (int64_t i = 0; i < p->half_dim; i++) {
            float angle = (float)positions[t] * inv_freq[i];
            float sine, cosine;
            portable_sin_cos(angle, &sine, &cosine);
            table[i] = cosine * p->scale;
            table[p->half_dim + i] = sine * p->scale;
        }
    }
    return MARLIN_OK;
}

/* The largest number of a half. */
#define MAX_HALF 65504.0f
#define HALF_NAN 0x7e00

/* A stored value is always finite: attention reads what lies behind a context, times 0. */
INLINE void store_kv(int is_f32, uint8_t *cache, int64_t at, float value)
{
    if (!is_f32)
        ((uint16_t *)cache)[at] = f16_from_f32(value);
    else if (isnan(value))
        ((float *)cache)[at] = 0.0f;
    else
        ((float *)cache)[at] = value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value;
}

/* The numbers of a head, at `at` in the cache and every `stride` from there. Returns whether one is
 * beyond what the cache can hold. */
INLINE int write_numbers(int is_f32, const float *x, uint8_t *cache, int64_t at, int64_t stride,
                         int64_t dim)
{
    float most = is_f32 ? FLT_MAX : MAX_HALF;
    int is_beyond = 0;
    for (int64_t i = 0; i < dim; i++) {
        store_kv(is_f32, cache, at + i * stride, x[i]);
        is_beyond |= fabsf(x[i]) > most;
    }
    return is_beyond;
}

static int write_head(const struct RopeKvParams *p, const float *x, uint8_t *cache, int64_t at,
                      int64_t stride)
{
    return p->kv_f32 ? write_numbers(1, x, cache, at, stride, p->head_dim)
                     : write_numbers(0, x, cache, at, stride, p->head_dim);
}

static int has_nan(const float *x, int64_t dim)
{
    int found = 0;
    for (int64_t i = 0; i < dim; i++) found |= isnan(x[i]);
    return found;
}

static void put_nan(uint32_t is_f32, uint8_t *cache, int64_t at)
{
    if (is_f32)
        ((float *)cache)[at] = NAN;
    else
        ((uint16_t *)cache)[at] = HALF_NAN;
}

/* Heads of a row are written by several workers. */
static void mark(int32_t *beyond) { __atomic_store_n(beyond, 1, __ATOMIC_RELAXED); }

INLINE void rotate(float *head, const float *table, const struct RopeKvParams *p)
{
    int64_t half = p->rotary_dim / 2;
    if (p->interleaved) {
        for (int64_t i = 0; i < half; i++) {
            float a = head[2 * i], b = head[2 * i + 1], c = table[i], s = table[half + i];
            head[2 * i] = a * c - b * s;
            head[2 * i + 1] = b * c + a * s;
        }
        return;
    }
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[half + i], c = table[i], s = table[half + i];
        head[i] = a * c - b * s;
        head[half + i] = b * c + a * s;
    }
}

/* Norm the heads of q and k (if has_norms), rotate their first rotary_dim dimensions in place
 * (half-split pairs, as Hugging Face mostly stores them, or neighbours), then write k and v to the
 * cache. A unit is a head: of q, then k, then v.
 *
 *   q float [rows, num_heads, head_dim]    k, v float [rows, num_kv_heads, head_dim]
 *   table float [rows, 2, rotary_dim / 2], not bound where nothing turns
 *   slots int32 [rows]: block * block_size + offset
 *   k_cache half or float [num_blocks, num_kv_heads, block_size / 16, head_dim, 16]
 *   v_cache half or float [num_blocks, num_kv_heads, block_size, head_dim]
 *   norms of q and k float [head_dim], not bound without has_norms
 *   beyond int32 [rows]: becomes 1 where a number was larger than the cache's largest, which is
 *   stored in its place; else it stays
 * A head with a NaN in its k or v has one for its first k, so that what attends to it is none.
 * Without heads of keys only q, table and the norm of q are bound. */
KERNEL(rope_kv_write)
{
    (void)scratch;
    const struct RopeKvParams *p = call->params;
    const struct RmsNormParams norm = {.dim = p->head_dim, .eps = p->eps};
    const int32_t *slots = (const int32_t *)call->at[4];
    int64_t dim = p->head_dim, q_heads = p->num_heads, kv_heads = p->num_kv_heads;
    int32_t *beyond = (int32_t *)call->at[9];
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t t = unit / (q_heads + 2 * kv_heads), head = unit % (q_heads + 2 * kv_heads);
        int64_t kv_head = head < q_heads ? 0 : (head - q_heads) % kv_heads;
        int64_t slot = kv_heads ? slots[t] : 0, kv = t * kv_heads + kv_head;
        int64_t size = kv_heads ? p->block_size : 1;
        if (slot < 0 || (kv_heads && slot >= p->num_blocks * size)) return MARLIN_EDEVICE;
        int64_t block = slot / size, offset = slot % size;
        int64_t base = (block * kv_heads + kv_head) * p->block_size * dim;
        if (head >= q_heads + kv_heads) {
            const float *v = (const float *)call->at[2] + kv * dim;
            if (write_head(p, v, call->at[6], base + offset * dim, 1)) mark(beyond + t);
            continue;
        }
        int is_key = head >= q_heads;
        float *x = (float *)call->at[is_key] + (is_key ? kv : t * q_heads + head) * dim;
        if (p->has_norms) norm_row(&norm, x, NULL, (const float *)call->at[7 + is_key], x);
        rotate(x, (const float *)call->at[3] + t * p->rotary_dim, p);
        if (!is_key) continue;
        int64_t to = base + offset / MARLIN_KEY_TILE * MARLIN_KEY_TILE * dim;
        to += offset % MARLIN_KEY_TILE;
        if (write_head(p, x, call->at[5], to, MARLIN_KEY_TILE)) mark(beyond + t);
        if (!has_nan(x, dim) && !has_nan((const float *)call->at[2] + kv * dim, dim)) continue;
        put_nan(p->kv_f32, call->at[5], to);
    }
    return MARLIN_OK;
}

/* Latent attention: norm a token's latent, rotate what turns of it, and write both to the cache;
 * put the queries that its heads ask it with together in the same order. A unit is a head, or the
 * cache.
 *
 *   absorbed float [rows, num_heads, rank]    q float [rows, num_heads, nope_dim + rope_dim]
 *   kv float [rows, rank + rope_dim]    table, slots, beyond as rope_kv_write's
 *   cache half or float [num_blocks, block_size / 16, row_dim, 16]    norm float [rank]
 *   queries float [rows, num_heads, row_dim], zeros behind what turns
 * A row with a NaN has one for the first number that turns, which is part of no value. */
KERNEL(latent_write)
{
    const struct LatentParams *p = call->params;
    const struct RmsNormParams norm = {.dim = p->rank, .eps = p->eps};
    const struct RopeKvParams turn = {.rotary_dim = p->rope_dim, .interleaved = p->interleaved};
    int64_t values = p->rank, turns = p->rope_dim, used = values + turns, dim = p->row_dim;
    int64_t heads = p->num_heads, q_dim = (int64_t)p->nope_dim + turns;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t t = unit / (heads + 1), head = unit % (heads + 1), slot;
        const float *table = (const float *)call->at[3] + t * turns;
        float *kv = (float *)call->at[2] + t * used, *row = (float *)scratch;
        const float *from = kv + values;
        if (head < heads) {
            int64_t at = t * heads + head;
            row = (float *)call->at[7] + at * dim;
            memcpy(row, (const float *)call->at[0] + at * values, (size_t)values * sizeof *row);
            from = (const float *)call->at[1] + at * q_dim + p->nope_dim;
        } else {
            norm_row(&norm, kv, NULL, (const float *)call->at[6], row);
        }
        memcpy(row + values, from, (size_t)turns * sizeof *row);
        memset(row + used, 0, (size_t)(dim - used) * sizeof *row);
        rotate(row + values, table, &turn);
        if (head < heads) continue;
        slot = ((const int32_t *)call->at[4])[t];
        if (slot < 0 || slot >= (int64_t)p->num_blocks * p->block_size) return MARLIN_EDEVICE;
        int64_t to = slot / MARLIN_KEY_TILE * MARLIN_KEY_TILE * dim + slot % MARLIN_KEY_TILE;
        if (p->kv_f32 ? write_numbers(1, row, call->at[5], to, MARLIN_KEY_TILE, dim)
                      : write_numbers(0, row, call->at[5], to, MARLIN_KEY_TILE, dim))
            mark((int32_t *)call->at[8] + t);
        if (has_nan(row, used)) put_nan(p->kv_f32, call->at[5], to + values * MARLIN_KEY_TILE);
    }
    return MARLIN_OK;
}

INLINE int gated_mul(const marlin_call *call, int64_t begin, int64_t end, activation which)
{
    const struct RowsParams *p = call->params;
    int64_t dim = p->dim;
    const float *gate = (const float *)call->at[0], *up = (const float *)call->at[1];
    float *y = (float *)call->at[2];
    for (int64_t i = begin * dim; i < end * dim; i += dim)
        gated_row(which, gate + i, up + i, y + i, dim);
    return MARLIN_OK;
}

KERNEL(silu_mul)
{
    (void)scratch;
    return gated_mul(call, begin, end, SILU);
}

KERNEL(gelu_mul)
{
    (void)scratch;
    return gated_mul(call, begin, end, GELU);
}

KERNEL(swiglu_mul)
{
    (void)scratch;
    return gated_mul(call, begin, end, SWIGLU);
}

KERNEL(sigmoid_mul)
{
    (void)scratch;
    return gated_mul(call, begin, end, SIGMOID);
}

/* y = x * scale, or cap * tanh(x * scale / cap)     x, y float [rows, dim]; y may be x */
KERNEL(scale_rows)
{
    (void)scratch;
    const struct ScaleParams *p = call->params;
    int64_t dim = p->dim;
    float cap = p->cap > 0.0f ? p->cap : 1.0f, scale = p->scale / cap;
    for (int64_t row = begin; row < end; row++) {
        const float *x = (const float *)call->at[0] + row * dim;
        float *y = (float *)call->at[1] + row * dim;
        for (int64_t i = 0; i < dim; i += V_LANES) {
            float part[V_LANES] = {0};
            size_t count = (size_t)(dim - i < V_LANES ? dim - i : V_LANES);
            memcpy(part, x + i, count * sizeof *part);
            vf value = vf_mul(vf_load(part), vf_set1(scale));
            if (p->cap > 0.0f) value = vf_mul(vf_tanh(value), vf_set1(cap));
            vf_store(part, value);
            memcpy(y + i, part, count * sizeof *part);
        }
    }
    return MARLIN_OK;
}

/* y = x * (1 + erf(x / sqrt(2))) / 2     x, y float [rows, dim]; y may be x
 *
 * As x - x * c / 2 for x >= 0 and x * c / 2 below, where c = erfc(|x| / sqrt(2)) is within 1.5e-7:
 * Abramowitz and Stegun, 7.1.26, whose e^-(x^2 / 2) is taken by vf_exp2 in the tail as well. */
#define ERFC_P 0.231641888f /* 0.3275911 / sqrt(2) */

static const float erfc_terms[5] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f,
                                    0.254829592f};

INLINE vf gelu_of(vf x)
{
    vf positive = vf_max(x, vf_zero()), size = vf_abs(x), one = vf_set1(1.0f);
    vf t = vf_div(one, vf_fma(size, vf_set1(ERFC_P), one));
    vf sum = vf_set1(erfc_terms[0]);
    for (int i = 1; i < 5; i++) sum = vf_fma(sum, t, vf_set1(erfc_terms[i]));
    vf e = vf_exp2(vf_mul(vf_mul(size, size), vf_set1(-0.721347520f)));
    vf half = vf_mul(vf_mul(vf_mul(sum, t), e), vf_mul(size, vf_set1(0.5f)));
    return vf_sub(positive, half);
}

KERNEL(gelu)
{
    (void)scratch;
    const struct RowsParams *p = call->params;
    int64_t dim = p->dim, whole = dim / V_LANES * V_LANES;
    for (int64_t row = begin; row < end; row++) {
        const float *x = (const float *)call->at[0] + row * dim;
        float *y = (float *)call->at[1] + row * dim;
        for (int64_t i = 0; i < whole; i += V_LANES) vf_store(y + i, gelu_of(vf_load(x + i)));
        if (whole == dim) continue;
        float last[V_LANES] = {0};
        memcpy(last, x + whole, (size_t)(dim - whole) * sizeof *last);
        vf_store(last, gelu_of(vf_load(last)));
        memcpy(y + whole, last, (size_t)(dim - whole) * sizeof *last);
    }
    return MARLIN_OK;
}

/* y[r, :] = x[rows[r], :]     rows int32 [rows]; x float [any, dim]; y float [rows, dim] */
KERNEL(gather_rows)
{
    (void)scratch;
    const struct RowsParams *p = call->params;
    const int32_t *rows = (const int32_t *)call->at[0];
    int64_t available = call->bytes[1] / (4 * (int64_t)p->dim);
    for (int64_t r = begin; r < end; r++) {
        if (rows[r] < 0 || rows[r] >= available) return MARLIN_EDEVICE;
        memcpy(call->at[2] + r * p->dim * 4, call->at[1] + rows[r] * (int64_t)p->dim * 4,
               p->dim * 4);
    }
    return MARLIN_OK;
}
