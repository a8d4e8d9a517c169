// state.metal: layers that keep a state of a sequence, of fixed size, instead of its tokens.
//
// A step's sequence s has the runs [starts[s], starts[s + 1]) of
//   runs  int4 [any]: its first row, how many rows, the slot that holds the state before them
//   (-1: the sequence begins there), and the slot that gets the state after them
// in order: a run may begin with what the one before it left. A state is written once a run, so
// that what comes of a row does not depend on where runs are cut.
#include <metal_stdlib>

#include "common.h"

using namespace metal;

// Whether a run's numbers point into what there is.
inline bool is_run(int4 run, uint rows, uint num_slots)
{
    return run.x >= 0 && run.y >= 1 && uint(run.x) <= rows && uint(run.y) <= rows - uint(run.x) &&
           run.z >= -1 && run.z < int(num_slots) && run.w >= 0 && run.w < int(num_slots);
}

// The last rows of one channel, oldest first: as many as there can be, the last `taps` of them
// used.
struct ConvChannel {
    float w[MARLIN_MAX_TAPS], rows[MARLIN_MAX_TAPS], bias;
};

inline void conv_rows(thread ConvChannel &c, constant ConvParams &p, device const float *x,
                      device float *y, int4 run, uint channel)
{
    for (uint row = uint(run.x); row < uint(run.x + run.y); row++) {
        device const float *at = x + ulong(row) * p.row_floats + channel;
        for (uint k = 0; k + 1 < MARLIN_MAX_TAPS; k++) c.rows[k] = c.rows[k + 1];
        c.rows[MARLIN_MAX_TAPS - 1] = p.gated ? at[0] * at[2 * p.dim] : at[0];
        float sum = c.bias;
        for (uint k = 0; k < MARLIN_MAX_TAPS; k++) sum += c.w[k] * c.rows[k];
        if (p.silu) sum /= 1.0f + exp(-sum);
        y[ulong(row) * p.dim + channel] = p.gated ? sum * at[p.dim] : sum;
    }
}

// causal_conv: y[t] = sum of w[:, k] * v[t - taps + 1 + k] (+ bias), where v is x or a product of
// its parts, and a sequence's rows before its run come from its state
//
//   x  float [rows, row_floats]    w  float [dim, taps]    bias  float [dim], optional
//   states  float [num_slots, taps - 1, dim], oldest row first    runs, starts  as above
//   y  float [rows, dim]
//   Grid: (sequences, ceil(dim / 256)). Group: 256 threads, a channel each, which nobody else
//   touches: rows in a row are read side by side. Bytes: 8 to 20 a row and channel.
//   Bad index: a run outside of runs, or with a row or slot that there is not.
[[kernel]] void
causal_conv(device const float *x [[buffer(0)]], device const float *w [[buffer(1)]],
            device const float *bias [[buffer(2)]], device float *states [[buffer(3)]],
            device const int4 *runs [[buffer(4)]], device const int32_t *starts [[buffer(5)]],
            device float *y [[buffer(6)]], constant ConvParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
            constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
            constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
            device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
            uint3 group [[threadgroup_position_in_grid]],
            uint thread_index [[thread_index_in_threadgroup]])
{
    const uint channel = group.y * THREADS_causal_conv + thread_index;
    if (group.x >= uint(vars[p.sequences_var]) || channel >= p.dim) return;
    const uint rows = min(call.words[0] / p.row_floats, call.words[6] / p.dim);
    const uint first = MARLIN_MAX_TAPS - p.taps;
    ConvChannel c;
    c.bias = p.has_bias ? bias[channel] : 0.0f;
    for (uint k = 0; k < MARLIN_MAX_TAPS; k++)
        c.w[k] = k < first ? 0.0f : w[channel * p.taps + k - first];
    for (int32_t at = starts[group.x]; at < starts[group.x + 1]; at++) {
        // Read once: a record may bind the runs where other threads write. No rows are no run.
        const bool is_there = at >= 0 && uint(at) < call.words[4] / 4;
        const int4 run = is_there ? runs[at] : int4(0);
        if (!is_run(run, rows, p.num_slots)) {
            if (thread_index == 0) fail(status, call);
            return;
        }
        for (uint k = 0; k < MARLIN_MAX_TAPS; k++) {
            const ulong row = ulong(run.z) * (p.taps - 1) + k - first - 1;
            c.rows[k] = k > first && run.z >= 0 ? states[row * p.dim + channel] : 0.0f;
        }
        conv_rows(c, p, x, y, run, channel);
        for (uint k = first + 1; k < MARLIN_MAX_TAPS; k++)
            states[(ulong(run.w) * (p.taps - 1) + k - first - 1) * p.dim + channel] = c.rows[k];
    }
}
