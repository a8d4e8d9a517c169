/* kernels_state.c: layers that keep a state of a sequence, of fixed size, instead of its tokens.
 *
 * A step's sequence s has the runs [starts[s], starts[s + 1]) of
 *   runs  int32 [any, 4]: its first row, how many rows, the slot that holds the state before them
 *   (-1: the sequence begins there), and the slot that gets the state after them
 * in order: a run may begin with what the one before it left. A state is written once a run, so
 * that what comes of a row does not depend on where runs are cut. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

typedef struct {
    int32_t first, count, source, slot;
} run_of_rows;

/* Copy run `at`; 0 where a number points outside of what there is. A copy, because a record may
 * bind the runs where the kernel writes: what was checked is what is used. */
static int take_run(const marlin_call *call, int64_t at, int64_t rows, int64_t num_slots,
                    run_of_rows *run)
{
    if (at < 0 || at >= call->bytes[4] / (int64_t)sizeof *run) return 0;
    memcpy(run, (const run_of_rows *)call->at[4] + at, sizeof *run);
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
        if (p->silu) sum /= 1.0f + expf(-sum);
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
        if (!take_run(call, at, rows, p->num_slots, &run)) return 0;
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
