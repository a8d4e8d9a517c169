/* gates.h: the activations that a feed-forward's gate passes, for each instruction set. Knows
 * nothing of who multiplies what. */
#ifndef MARLIN_CPU_GATES_H
#define MARLIN_CPU_GATES_H

#include <string.h>

#include "cpu/simd.h"

/* y = gate * sigmoid(z) * up     gate, up, y float [rows, dim]; y may be gate or up
 *
 * Sigmoid: z = gate, and a 1 stands for gate. SiLU: z = gate. GELU, as its tanh form gives: z = 2
 * sqrt(2 / pi) (gate + 0.044715 gate^3), since (1 + tanh(u)) / 2 = sigmoid(2u). gpt-oss's SwiGLU:
 * z = 1.702 gate, gate being at most 7, and up within 7 of 0, and 1 more. z has the sign of gate.
 */
typedef enum { SILU, GELU, SIGMOID, SWIGLU } activation;

#define GELU_LINEAR 1.59576912f
#define GELU_CUBIC 0.0713548163f
#define SWIGLU_SLOPE 1.702f
#define SWIGLU_LIMIT 7.0f

INLINE vf gate_value(activation which, vf x)
{
    const vf one = vf_set1(1.0f), half = vf_set1(0.5f);
    if (which == SIGMOID) return vf_fma(vf_tanh(vf_mul(x, half)), half, half);
    vf z = x;
    if (which == GELU)
        z = vf_mul(x, vf_fma(vf_mul(x, x), vf_set1(GELU_CUBIC), vf_set1(GELU_LINEAR)));
    if (which == SWIGLU) z = vf_mul(x, vf_set1(SWIGLU_SLOPE));
    /* exp2 of -|z| only, so that it cannot overflow: sigmoid(z) = (z >= 0 ? 1 : e) / (1 + e). */
    vf e = vf_exp2(vf_mul(vf_abs(z), vf_set1(-1.44269504f)));
    /* x * (x >= 0 ? 1 : e) = max(x, 0) - max(-x, 0) * e */
    vf positive = vf_max(x, vf_zero());
    vf scaled = vf_sub(positive, vf_mul(vf_sub(positive, x), e));
    return vf_div(scaled, vf_add(one, e));
}

/* -max(-x, -limit) and the like: vf has no minimum. NaN stays. */
INLINE vf at_most(vf x, float limit)
{
    vf zero = vf_zero();
    return vf_sub(zero, vf_max(vf_set1(-limit), vf_sub(zero, x)));
}

INLINE vf gated(activation which, vf x, vf factor)
{
    if (which == SWIGLU) {
        x = at_most(x, SWIGLU_LIMIT);
        factor = vf_max(vf_set1(-SWIGLU_LIMIT), at_most(factor, SWIGLU_LIMIT));
        factor = vf_add(factor, vf_set1(1.0f));
    }
    return vf_mul(gate_value(which, x), factor);
}

/* y[i] = gated(gate[i], up[i]) of `count` values, the last ones in a register of their own. */
INLINE void gated_row(activation which, const float *gate, const float *up, float *y, int64_t count)
{
    int64_t whole = count / V_LANES * V_LANES;
    for (int64_t i = 0; i < whole; i += V_LANES)
        vf_store(y + i, gated(which, vf_load(gate + i), vf_load(up + i)));
    if (whole == count) return;
    float last[V_LANES] = {0}, factors[V_LANES] = {0};
    size_t bytes = (size_t)(count - whole) * sizeof *last;
    memcpy(last, gate + whole, bytes);
    memcpy(factors, up + whole, bytes);
    vf_store(last, gated(which, vf_load(last), vf_load(factors)));
    memcpy(y + whole, last, bytes);
}

#endif
