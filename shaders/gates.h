// gates.h: the activations that a feed-forward's gate passes, one value at a time. Knows nothing of
// who multiplies what.
#ifndef MARLIN_GATES_H
#define MARLIN_GATES_H

#include <metal_stdlib>

using namespace metal;

// x * sigmoid(z), with exp of -|z| only, so that it cannot overflow: sigmoid(z) = (z >= 0 ? 1 : e)
// / (1 + e). z has the sign of x.
inline float row_gate(float x, float z)
{
    float e = exp(-fabs(z));
    return (x >= 0.0f ? x : x * e) / (1.0f + e);
}

struct Silu {
    static float of(float x) { return row_gate(x, x); }
    static float up(float x) { return x; }
};

// As its tanh form gives: (1 + tanh(u)) / 2 = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct Gelu {
    static float of(float x) { return row_gate(x, x * fma(x * x, 0.0713548163f, 1.59576912f)); }
    static float up(float x) { return x; }
};

struct Sigmoid {
    static float of(float x) { return (x >= 0.0f ? 1.0f : exp(x)) / (1.0f + exp(-fabs(x))); }
    static float up(float x) { return x; }
};

// gpt-oss's: the gate is at most 7, and up is within 7 of 0, and 1 more.
struct Swiglu {
    static float of(float x)
    {
        x = x > 7.0f ? 7.0f : x;
        return row_gate(x, 1.702f * x);
    }
    static float up(float x)
    {
        x = x > 7.0f ? 7.0f : x;
        return (x < -7.0f ? -7.0f : x) + 1.0f;
    }
};

#endif
