/* functions.h: exp, log, sine and cosine whose bits are the same on every machine.
 *
 * Those of libm differ from one to the next in the last place. These are series in doubles, of
 * operations that are rounded alike everywhere, with an error of some 1e-13, and are rounded to
 * float once. */
#ifndef MARLIN_FUNCTIONS_H
#define MARLIN_FUNCTIONS_H

#include <math.h>

#include "cpu/simd.h"

INLINE float portable_exp(float value)
{
    static const double terms[11] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                     1.0 / 5040,     1.0 / 720,     1.0 / 120,    1.0 / 24,
                                     1.0 / 6,        0.5,           1.0};
    if (!(value > -104.0f)) return value < 0.0f ? 0.0f : value; /* NaN */
    if (value > 89.0f) return INFINITY;
    double x = value, whole = nearbyint(x * 1.4426950408889634);
    /* ln 2 in two parts, of which the first times a small whole number is exact. */
    double r = x - whole * 6.93147180369123816490e-01 - whole * 1.90821492927058770002e-10;
    double p = terms[0], power;
    for (int i = 1; i < 11; i++) p = p * r + terms[i];
    uint64_t bits = (uint64_t)((int64_t)whole + 1023) << 52;
    memcpy(&power, &bits, sizeof power);
    return (float)((p * r + 1.0) * power);
}

/* Of a positive number that is not subnormal: 2 atanh((m - 1) / (m + 1)), m within sqrt(2) of 1. */
INLINE double log_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&x, &bits, sizeof x);
    if (x > 1.4142135623730951) {
        x *= 0.5;
        exponent++;
    }
    double f = (x - 1.0) / (x + 1.0), square = f * f, sum = 1.0 / 17;
    for (int odd = 15; odd > 0; odd -= 2) sum = sum * square + 1.0 / odd;
    return 2.0 * f * sum + (double)exponent * 0.6931471805599453;
}

/* log(1 + x) of x >= 0, NaN of NaN. */
INLINE float portable_log1p(float value)
{
    double x = value;
    if (!(x < INFINITY)) return value;
    if (x < 1e-4) return (float)(x * (1.0 - x * (0.5 - x * (1.0 / 3))));
    return (float)log_of(1.0 + x);
}

/* Of an angle of at most some millions; NaN of what is not. */
INLINE void portable_sin_cos(float angle, float *sine, float *cosine)
{
    static const double terms[14] = {1.0 / 87178291200,
                                     1.0 / 6227020800,
                                     1.0 / 479001600,
                                     1.0 / 39916800,
                                     1.0 / 3628800,
                                     1.0 / 362880,
                                     1.0 / 40320,
                                     1.0 / 5040,
                                     1.0 / 720,
                                     1.0 / 120,
                                     1.0 / 24,
                                     1.0 / 6,
                                     0.5,
                                     1.0};
    double x = angle;
    if (!(fabs(x) < 1e15)) {
        *sine = *cosine = NAN;
        return;
    }
    double turns = nearbyint(x * 0.6366197723675814);
    /* pi / 2 in two parts, as ln 2 above. */
    double r = x - turns * 1.57079632673412561417e+00 - turns * 6.07710050650619224932e-11;
    double square = -r * r, even = terms[0], odd = terms[1];
    for (int i = 2; i < 14; i += 2) {
        even = even * square + terms[i];
        odd = odd * square + terms[i + 1];
    }
    double s = odd * r, c = even * square + 1.0;
    int64_t quarter = (int64_t)turns & 3;
    double turned_s = quarter & 1 ? c : s, turned_c = quarter & 1 ? s : c;
    *sine = (float)(quarter & 2 ? -turned_s : turned_s);
    *cosine = (float)(quarter == 1 || quarter == 2 ? -turned_c : turned_c);
}

#endif
