/* kernels_state.c: layers that keep a state of a sequence, of fixed size, instead of its tokens.
 *
 * A step's sequence s has the runs [starts[s], starts[s + 1]) of
 *   runs  int32 [any, 4]: its first row, how many rows, the slot that holds the state before them
 *   (-1: the sequence begins there), and the slot that gets the state after them
 * in order: a run may begin with what the one before it left. A state is written once a run, so
 * that what comes of a row does not depend on where runs are cut. */
#include "cpu/cpu.h"
#include "cpu/functions.h"
#include "cpu/simd.h"

typedef struct {
    int32_t first, count, source, slot;
} run_of_rows;

/* Copy run `at` of those bound at `binding`; 0 where a number points outside of what there is. A
 * copy, because a record may bind the runs where the kernel writes: what was checked is what is
 * used. */
static int take_run(const marlin_call *call, int binding, int64_t at, int64_t rows,
                    int64_t num_slots, run_of_rows *run)
{
    if (at < 0 || at >= call->bytes[binding] / (int64_t)sizeof *run) return 0;
    memcpy(run, (const run_of_rows *)call->at[binding] + at, sizeof *run);
    if (run->first < 0 || run->count < 1 || run->first + (int64_t)run->count > rows) return 0;
    if (run->source < -1 || run->source >= num_slots) return 0;
    return run->slot >= 0 && run->slot < num_slots;
}

/* The last rows that were convolved, of a piece of the channels: oldest first. */
typedef struct {
    float rows[MARLIN_MAX_TAPS][MARLIN_CONV_CHANNELS];
    float weights[MARLIN_MAX_TAPS][MARLIN_CONV_CHANNELS];
    float *at[MARLIN_MAX_TAPS];
    int64_t first, count; /* channels */
} conv_piece;

static void load_state(const marlin_call *call, conv_piece *c, int64_t source)
{
    const struct ConvParams *p = call->params;
    for (int64_t k = 0; k + 1 < p->taps; k++) {
        const float *from =
            (const float *)call->at[3] + (source * (p->taps - 1) + k) * p->dim + c->first;
        for (int64_t i = 0; i < c->count; i++) c->at[k][i] = source < 0 ? 0.0f : from[i];
    }
}

static void store_state(const marlin_call *call, const conv_piece *c, int64_t slot)
{
    const struct ConvParams *p = call->params;
    for (int64_t k = 0; k + 1 < p->taps; k++) {
        float *to = (float *)call->at[3] + (slot * (p->taps - 1) + k) * p->dim + c->first;
        memcpy(to, c->at[k], (size_t)c->count * sizeof *to);
    }
}

static void conv_row(const marlin_call *call, conv_piece *c, int64_t row)
{
    const struct ConvParams *p = call->params;
    int64_t dim = p->dim, last = p->taps - 1;
    const float *x = (const float *)call->at[0] + row * p->row_floats + c->first;
    const float *bias = p->has_bias ? (const float *)call->at[2] + c->first : NULL;
    float *y = (float *)call->at[6] + row * dim + c->first, *newest = c->at[last];
    for (int64_t i = 0; i < c->count; i++) newest[i] = p->gated ? x[i] * x[2 * dim + i] : x[i];
    for (int64_t i = 0; i < c->count; i++) {
        float sum = bias ? bias[i] : 0.0f;
        for (int64_t k = 0; k <= last; k++) sum += c->weights[k][i] * c->at[k][i];
        if (p->silu) sum /= 1.0f + portable_exp(-sum);
        y[i] = p->gated ? sum * x[dim + i] : sum;
    }
    float *oldest = c->at[0];
    for (int64_t k = 0; k < last; k++) c->at[k] = c->at[k + 1];
    c->at[last] = oldest;
}

static int conv_sequence(const marlin_call *call, int64_t sequence, conv_piece *c)
{
    const struct ConvParams *p = call->params;
    int64_t rows = call->bytes[0] / (4 * (int64_t)p->row_floats);
    int64_t rows_of_y = call->bytes[6] / (4 * (int64_t)p->dim);
    const int32_t *starts = (const int32_t *)call->at[5] + sequence;
    if (rows > rows_of_y) rows = rows_of_y;
    for (int64_t at = starts[0]; at < starts[1]; at++) {
        run_of_rows run;
        if (!take_run(call, 4, at, rows, p->num_slots, &run)) return 0;
        load_state(call, c, run.source);
        for (int64_t row = 0; row < run.count; row++) conv_row(call, c, run.first + row);
        store_state(call, c, run.slot);
    }
    return 1;
}

/* y[t] = sum of w[:, k] * v[t - taps + 1 + k] (+ bias), where v is x or a product of its parts, and
 * a sequence's rows before its run come from its state
 * x float [rows, row_floats]; w float [dim, taps]; bias float [dim]; states float
 * [num_slots, taps - 1, dim], oldest row first; runs and starts as above; y float [rows, dim] */
KERNEL(causal_conv)
{
    (void)scratch;
    const struct ConvParams *p = call->params;
    const float *w = (const float *)call->at[1];
    int64_t pieces = (p->dim + MARLIN_CONV_CHANNELS - 1) / MARLIN_CONV_CHANNELS;
    for (int64_t unit = begin; unit < end; unit++) {
        conv_piece c;
        c.first = unit % pieces * MARLIN_CONV_CHANNELS;
        c.count = p->dim - c.first;
        if (c.count > MARLIN_CONV_CHANNELS) c.count = MARLIN_CONV_CHANNELS;
        for (int64_t k = 0; k < p->taps; k++) {
            c.at[k] = c.rows[k];
            for (int64_t i = 0; i < c.count; i++) c.weights[k][i] = w[(c.first + i) * p->taps + k];
        }
        if (!conv_sequence(call, unit / pieces, &c)) return MARLIN_EDEVICE;
    }
    return MARLIN_OK;
}

/* ---- the gated delta rule ---- */

/* Some columns of one head's state: no sum crosses them. */
typedef struct {
    int64_t head, key_head, first, count;
    float decay, shift;
    float *state, *key, *query; /* [key_dim, MARLIN_DELTA_COLUMNS], [key_dim], [key_dim] */
} delta_piece;

/* to = x * scale / |x|, the sum of squares in an order that no instruction set changes. */
static void unit_length(const float *x, int64_t count, float scale, float *to)
{
    float parts[16] = {0};
    for (int64_t i = 0; i < count; i++) parts[i % 16] += x[i] * x[i];
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    scale *= 1.0f / sqrtf(parts[0] + 1e-6f);
    for (int64_t i = 0; i < count; i++) to[i] = x[i] * scale;
}

static float softplus(float x) { return x > 20.0f ? x : portable_log1p(portable_exp(x)); }

/* Four sums, of every fourth row, so that none waits for the one before it. */
INLINE vf sum_of_four(const vf sums[4])
{
    return vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3]));
}

/* One row of the columns [at, at + V_LANES): S = keep S + key (x) d, d = rate (v - keep S^T key),
 * y = S^T query. */
INLINE void delta_columns(const delta_piece *d, int64_t key_dim, const float *v, float *y,
                          float keep, float rate)
{
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, kept = vf_set1(keep);
    for (int64_t i = 0; i < key_dim; i += 4)
        for (int j = 0; j < 4; j++) {
            vf s = vf_load(d->state + (i + j) * MARLIN_DELTA_COLUMNS);
            sums[j] = vf_fma(s, vf_set1(d->key[i + j]), sums[j]);
        }
    vf change = vf_sub(vf_load(v), vf_mul(kept, sum_of_four(sums)));
    change = vf_mul(vf_set1(rate), change);
    for (int j = 0; j < 4; j++) sums[j] = vf_zero();
    for (int64_t i = 0; i < key_dim; i += 4)
        for (int j = 0; j < 4; j++) {
            float *at = d->state + (i + j) * MARLIN_DELTA_COLUMNS;
            vf s = vf_fma(vf_set1(d->key[i + j]), change, vf_mul(kept, vf_load(at)));
            vf_store(at, s);
            sums[j] = vf_fma(s, vf_set1(d->query[i + j]), sums[j]);
        }
    vf_store(y, sum_of_four(sums));
}

static void delta_row(const marlin_call *call, delta_piece *d, int64_t row)
{
    const struct DeltaParams *p = call->params;
    int64_t keys = (int64_t)p->key_heads * p->key_dim, values = p->value_heads * p->value_dim;
    const float *x = (const float *)call->at[0] + row * (2 * keys + values);
    int64_t at = row * p->value_heads + d->head, key = d->key_head * p->key_dim;
    float a = ((const float *)call->at[1])[at], b = ((const float *)call->at[2])[at];
    float keep = portable_exp(d->decay * softplus(a + d->shift)),
          rate = 1.0f / (1.0f + portable_exp(-b));
    unit_length(x + key, p->key_dim, 1.0f / sqrtf((float)p->key_dim), d->query);
    unit_length(x + keys + key, p->key_dim, 1.0f, d->key);
    int64_t column = d->head * p->value_dim + d->first;
    const float *v = x + 2 * keys + column;
    float *y = (float *)call->at[8] + row * values + column;
    delta_piece part = *d;
    for (int64_t c = 0; c < d->count; c += V_LANES, part.state += V_LANES)
        delta_columns(&part, p->key_dim, v + c, y + c, keep, rate);
}

/* Copy a piece of slot `slot` to or from the scratch. */
static void move_state(const marlin_call *call, const delta_piece *d, int64_t slot, int stores)
{
    const struct DeltaParams *p = call->params;
    int64_t head = slot * p->value_heads + d->head;
    float *at = (float *)call->at[5] + head * p->key_dim * p->value_dim + d->first;
    for (int64_t i = 0; i < p->key_dim; i++, at += p->value_dim) {
        float *piece = d->state + i * MARLIN_DELTA_COLUMNS;
        size_t bytes = (size_t)d->count * sizeof *at;
        if (stores)
            memcpy(at, piece, bytes);
        else
            memcpy(piece, at, bytes);
    }
}

static int delta_sequence(const marlin_call *call, int64_t sequence, delta_piece *d)
{
    const struct DeltaParams *p = call->params;
    int64_t values = 4 * (int64_t)p->value_heads * p->value_dim, heads = 4 * p->value_heads;
    int64_t row_bytes[] = {8 * (int64_t)p->key_heads * p->key_dim + values, heads, heads, values};
    static const int bound[] = {0, 1, 2, 8};
    int64_t rows = INT32_MAX;
    for (int i = 0; i < 4; i++) {
        int64_t held = call->bytes[bound[i]] / row_bytes[i];
        if (held < rows) rows = held;
    }
    const int32_t *starts = (const int32_t *)call->at[7] + sequence;
    for (int64_t at = starts[0]; at < starts[1]; at++) {
        run_of_rows run;
        if (!take_run(call, 6, at, rows, p->num_slots, &run)) return 0;
        if (run.source < 0)
            memset(d->state, 0, (size_t)p->key_dim * MARLIN_DELTA_COLUMNS * sizeof *d->state);
        else
            move_state(call, d, run.source, 0);
        for (int64_t row = 0; row < run.count; row++) delta_row(call, d, run.first + row);
        move_state(call, d, run.slot, 1);
    }
    return 1;
}

/* Of each head of values, over a sequence's rows: its state S is multiplied by
 * exp(decay * softplus(a + shift)); then S += key (x) d, d = sigmoid(b) (v - S^T key); y = S^T
 * query x float [rows, keys of query | of key | values], whose keys are brought to unit length, and
 * queries to key_dim^-1/2; a, b float [rows, value_heads]; decay, shift float [value_heads]; states
 * float [num_slots, value_heads, key_dim, value_dim]; runs and starts as above; y float
 * [rows, value_heads, value_dim] */
KERNEL(delta_rule)
{
    const struct DeltaParams *p = call->params;
    int64_t of_head = (p->value_dim + MARLIN_DELTA_COLUMNS - 1) / MARLIN_DELTA_COLUMNS;
    int64_t pieces = of_head * p->value_heads;
    delta_piece d = {.state = (float *)scratch};
    d.key = d.state + (int64_t)p->key_dim * MARLIN_DELTA_COLUMNS;
    d.query = d.key + p->key_dim;
    for (int64_t unit = begin; unit < end; unit++) {
        d.head = unit % pieces / of_head;
        d.key_head = p->tiled ? d.head % p->key_heads : d.head / (p->value_heads / p->key_heads);
        d.first = unit % of_head * MARLIN_DELTA_COLUMNS;
        d.count = p->value_dim - d.first;
        if (d.count > MARLIN_DELTA_COLUMNS) d.count = MARLIN_DELTA_COLUMNS;
        d.decay = ((const float *)call->at[3])[d.head];
        if (p->is_log) d.decay = -portable_exp(d.decay);
        d.shift = ((const float *)call->at[4])[d.head];
        if (!delta_sequence(call, unit / pieces, &d)) return MARLIN_EDEVICE;
    }
    return MARLIN_OK;
}

/* y[t, y_start + g * width + i] = x[t, start + g * stride + i], for g < pieces, i < width
 * x float [rows, x_floats]; y float [rows, y_floats] */
KERNEL(take_columns)
{
    (void)scratch;
    const struct ColumnsParams *p = call->params;
    for (int64_t row = begin; row < end; row++) {
        const float *x = (const float *)call->at[0] + row * p->x_floats + p->start;
        float *y = (float *)call->at[1] + row * p->y_floats + p->y_start;
        for (int64_t piece = 0; piece < p->pieces; piece++)
            memmove(y + piece * p->width, x + piece * p->stride, p->width * sizeof *y);
    }
    return MARLIN_OK;
}
