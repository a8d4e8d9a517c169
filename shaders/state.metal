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

// Rows of a head's state that a thread of delta_rule holds, for its column.
#define DELTA_PARTS 4
#define DELTA_ROWS (MARLIN_MAX_KEY_DIM / DELTA_PARTS)
static_assert(THREADS_delta_rule == DELTA_PARTS * MARLIN_DELTA_COLUMNS &&
                  THREADS_delta_rule == MARLIN_MAX_KEY_DIM,
              "a thread a part of a column, and a thread a float of a key");

// What all threads of delta_rule share: a row's key and query of unit length, 0 behind them.
struct DeltaRow {
    float key[MARLIN_MAX_KEY_DIM], query[MARLIN_MAX_KEY_DIM];
    float scratch[2][MAX_SIMDGROUPS];
};

// The sum over the four neighbours that hold a column.
inline float column_sum(float value)
{
    value += simd_shuffle_xor(value, 1);
    return value + simd_shuffle_xor(value, 2);
}

inline float delta_softplus(float x) { return x > 20.0f ? x : log(1.0f + exp(x)); }

// One row: S = keep S + key (x) d, d = rate (v - keep S^T key); returns S^T query.
inline float delta_step(thread float *state, threadgroup const DeltaRow &row, uint part, float v,
                        float keep, float rate)
{
    float sum = 0.0f;
    for (uint i = 0; i < DELTA_ROWS; i++) sum = fma(state[i], row.key[i * DELTA_PARTS + part], sum);
    const float change = rate * (v - keep * column_sum(sum));
    sum = 0.0f;
    for (uint i = 0; i < DELTA_ROWS; i++) {
        state[i] = fma(row.key[i * DELTA_PARTS + part], change, keep * state[i]);
        sum = fma(state[i], row.query[i * DELTA_PARTS + part], sum);
    }
    return column_sum(sum);
}

// delta_rule: of each head of values, over a sequence's rows: its state S is multiplied by
// exp(decay * softplus(a + shift)); then S += key (x) d, d = sigmoid(b) (v - S^T key); y = S^T
// query
//
//   x  float [rows, keys of query | of key | values], whose keys are brought to unit length, and
//   queries to key_dim^-1/2    a, b  float [rows, value_heads]    decay, shift  float [value_heads]
//   states  float [num_slots, value_heads, key_dim, value_dim]    runs, starts  as above
//   y  float [rows, value_heads, value_dim]
//   Grid: (sequences, value_heads * ceil(value_dim / 32)). Group: 128 threads: four neighbours hold
//   a column, each every fourth row of it, in registers over a whole run; columns do not meet.
//   Bytes: a state read and written a run.
//   Bad index: a run outside of runs, or with a row or slot that there is not.
[[kernel]] void delta_rule(
    device const float *x [[buffer(0)]], device const float *a [[buffer(1)]],
    device const float *b [[buffer(2)]], device const float *decay [[buffer(3)]],
    device const float *shift [[buffer(4)]], device float *states [[buffer(5)]],
    device const int4 *runs [[buffer(6)]], device const int32_t *starts [[buffer(7)]],
    device float *y [[buffer(8)]], constant DeltaParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
    constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
    constant MarlinCall &call [[buffer(MARLIN_CALL_INDEX)]],
    device atomic_uint *status [[buffer(MARLIN_STATUS_INDEX)]],
    uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]])
{
    threadgroup DeltaRow row;
    threadgroup int4 shared_run;
    if (group.x >= uint(vars[p.sequences_var])) return;
    const uint of_head = (p.value_dim + MARLIN_DELTA_COLUMNS - 1) / MARLIN_DELTA_COLUMNS;
    const uint head = group.y / of_head, part = thread_index % DELTA_PARTS;
    const uint column = group.y % of_head * MARLIN_DELTA_COLUMNS + thread_index / DELTA_PARTS;
    const uint key_head = p.tiled ? head % p.key_heads : head / (p.value_heads / p.key_heads);
    const uint keys = p.key_heads * p.key_dim, values = p.value_heads * p.value_dim;
    const bool is_there = column < p.value_dim, is_key = thread_index < p.key_dim;
    const float rule = p.is_log ? -exp(decay[head]) : decay[head];
    const uint rows = min(min(call.words[0] / (2 * keys + values), call.words[8] / values),
                          min(call.words[1], call.words[2]) / p.value_heads);
    for (int32_t at = starts[group.x]; at < starts[group.x + 1]; at++) {
        // Read once, by one: a record may bind the runs where other threads write.
        if (thread_index == 0)
            shared_run = at >= 0 && uint(at) < call.words[6] / 4 ? runs[at] : int4(0);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const int4 run = shared_run;
        if (!is_run(run, rows, p.num_slots)) {
            if (thread_index == 0) fail(status, call);
            return;
        }
        float state[DELTA_ROWS];
        for (uint i = 0; i < DELTA_ROWS; i++) {
            const uint k = i * DELTA_PARTS + part;
            const ulong of = (ulong(run.z) * p.value_heads + head) * p.key_dim + k;
            const bool is_kept = is_there && k < p.key_dim && run.z >= 0;
            state[i] = is_kept ? states[of * p.value_dim + column] : 0.0f;
        }
        // What a row leaves in threadgroup memory is written again behind group_sum()'s barriers.
        for (uint t = uint(run.x); t < uint(run.x + run.y); t++) {
            device const float *of_row = x + ulong(t) * (2 * keys + values);
            const uint key = key_head * p.key_dim + thread_index;
            const float q = is_key ? of_row[key] : 0.0f, k = is_key ? of_row[keys + key] : 0.0f;
            const uint groups = THREADS_delta_rule / SIMD_THREADS;
            const float q_sum = group_sum(q * q, row.scratch[0], lane, simdgroup, groups);
            const float k_sum = group_sum(k * k, row.scratch[1], lane, simdgroup, groups);
            row.query[thread_index] = q * (rsqrt(float(p.key_dim)) * rsqrt(q_sum + 1e-6f));
            row.key[thread_index] = k * rsqrt(k_sum + 1e-6f);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const ulong gate = ulong(t) * p.value_heads + head;
            const float keep = exp(rule * delta_softplus(a[gate] + shift[head]));
            const float rate = 1.0f / (1.0f + exp(-b[gate]));
            const uint at_value = head * p.value_dim + column;
            const float v = is_there ? of_row[2 * keys + at_value] : 0.0f;
            const float out = delta_step(state, row, part, v, keep, rate);
            if (is_there && part == 0) y[ulong(t) * values + at_value] = out;
        }
        // The next run may begin with it: each thread reads where it wrote.
        for (uint i = 0; i < DELTA_ROWS; i++) {
            const uint k = i * DELTA_PARTS + part;
            const ulong of = (ulong(run.w) * p.value_heads + head) * p.key_dim + k;
            if (is_there && k < p.key_dim) states[of * p.value_dim + column] = state[i];
        }
    }
}

// take_columns: y[t, y_start + g * width + i] = x[t, start + g * stride + i], for g < pieces, i <
// width
//
//   x  float [rows, x_floats]    y  float [rows, y_floats]
//   Grid: (rows). Group: 256 threads. Bytes: 8 a float that is taken.
[[kernel]] void take_columns(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                             constant ColumnsParams &p [[buffer(MARLIN_PARAMS_INDEX)]],
                             constant int32_t *vars [[buffer(MARLIN_VARS_INDEX)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint thread_index [[thread_index_in_threadgroup]])
{
    if (group.x >= uint(vars[p.rows_var])) return;
    device const float *from = x + ulong(group.x) * p.x_floats + p.start;
    device float *to = y + ulong(group.x) * p.y_floats + p.y_start;
    for (uint i = thread_index; i < p.pieces * p.width; i += THREADS_take_columns)
        to[i] = from[i / p.width * p.stride + i % p.width];
}
