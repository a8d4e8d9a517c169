/* kernels_quantize.c: activations become int8 in groups of 32, for linear kernels of packed
 * weights.
 *
 * A value that exceeds four times every other one of its group is left out, an outlier, and stays a
 * float, so that the others keep their bits. Sums run in sixteen lanes in every instruction set. */
#include "cpu/activations.h"
#include "cpu/cpu.h"
#include "cpu/simd.h"

/* A group whose largest value is below this is taken as zero: its inverse step would not be finite.
 */
#define SMALLEST_ACTIVATION 1e-30f

/* Of its group's largest value: what every other one lies below, if that one is an outlier. */
#define OUTLIER_SHARE 0.25f

/* Steps tried for a group: its largest value becomes one of these codes. */
static const float levels[4] = {127.0f, 125.3f, 123.7f, 122.1f};

/* Of the steps tried, the inverse of the one that rounds the group with the least squared error:
 * the error in steps, squared, over the level, squared. NaN if a value is not finite. */
INLINE float choose_step(const float *x, float amax)
{
    vf errors[4][V_PARTS];
    for (int j = 0; j < 4; j++)
        for (int part = 0; part < V_PARTS; part++) errors[j][part] = vf_zero();
    for (int i = 0; i < MARLIN_ACT_GROUP; i += V_LANES) {
        vf value = vf_load(x + i);
        for (int j = 0; j < 4; j++) {
            vf error = vf_fraction(vf_mul(value, vf_set1(levels[j] / amax)));
            vf *sum = &errors[j][i % 16 / V_LANES];
            *sum = vf_fma(error, error, *sum);
        }
    }
    float sums[4];
    vf_reduce_add4(errors, sums);
    int best = 0;
    for (int j = 1; j < 4; j++)
        if (sums[j] * (levels[best] * levels[best]) < sums[best] * (levels[j] * levels[j]))
            best = j;
    return isfinite(sums[0]) ? levels[best] / amax : NAN;
}

/* A group of zeros, or of what cannot be quantized: then every product with it is NaN, as a float
 * product would be. */
static void quantize_constant(float value, int8_t *codes, act_group *group, act_begin *begin)
{
    memset(codes, 0, MARLIN_ACT_GROUP);
    *group = (act_group){value, value};
    memset(begin, 0, sizeof *begin);
}

INLINE float largest_of(const float *x)
{
    vf largest = vf_zero();
    for (int i = 0; i < MARLIN_ACT_GROUP; i += V_LANES)
        largest = vf_max(largest, vf_abs(vf_load(x + i)));
    return vf_reduce_max(largest);
}

/* Whether only the largest value reaches OUTLIER_SHARE of itself. */
INLINE int has_outlier(const float *x, float amax)
{
    vf least = vf_set1(amax * OUTLIER_SHARE);
    int count = 0;
    for (int i = 0; i < MARLIN_ACT_GROUP; i += V_LANES)
        count += vf_count_from(vf_abs(vf_load(x + i)), least);
    return count == 1 && amax > SMALLEST_ACTIVATION && isfinite(amax);
}

/* x without its outlier, whose column is returned. */
static int leave_out(const float *x, float amax, float *rest)
{
    int column = 0;
    for (int i = 0; i < MARLIN_ACT_GROUP; i++)
        if (fabsf(x[i]) == amax) column = i;
    memcpy(rest, x, MARLIN_ACT_GROUP * sizeof *rest);
    rest[column] = 0.0f;
    return column;
}

/* Codes q of 32 values x, and the scale that fits them best, x.q / q.q. */
INLINE void quantize_group(const float *x, float amax, int8_t *codes, act_group *group,
                           act_begin *begin)
{
    if (!(amax > SMALLEST_ACTIVATION)) {
        float sum = 0.0f; /* the largest of values with a NaN among them may be any of them */
        for (int i = 0; i < MARLIN_ACT_GROUP; i++) sum += x[i];
        quantize_constant(isnan(sum) ? NAN : 0.0f, codes, group, begin);
        return;
    }
    float step = choose_step(x, amax);
    if (isnan(step)) {
        quantize_constant(NAN, codes, group, begin);
        return;
    }
    vf inverse = vf_set1(step);
    /* q of the first half, q of the second, x.q, q.q */
    vf parts[4][V_PARTS];
    for (int j = 0; j < 4; j++)
        for (int part = 0; part < V_PARTS; part++) parts[j][part] = vf_zero();
    for (int i = 0; i < MARLIN_ACT_GROUP; i += V_LANES) {
        vf value = vf_load(x + i), code = vf_round(vf_mul(value, inverse));
        int part = i % 16 / V_LANES;
        vf_store_i8(codes + i, code);
        parts[i / 16][part] = vf_add(parts[i / 16][part], code);
        parts[2][part] = vf_fma(value, code, parts[2][part]);
        parts[3][part] = vf_fma(code, code, parts[3][part]);
    }
    float sums[4];
    vf_reduce_add4(parts, sums);
    int32_t half[2] = {(int32_t)sums[0], (int32_t)sums[1]};
    float scale = sums[2] / sums[3];
    *group = (act_group){scale, scale * (sums[0] + sums[1])};
    *begin = (act_begin){
        -128 * (half[0] + half[1]), -12 * (half[0] + half[1]), {-128 * half[0], -128 * half[1]}};
}

void ISA(quantize_rows)(const float *x, int64_t k, int64_t begin, int64_t end, uint8_t *prepared,
                        int64_t rows, int is_plain)
{
    int64_t groups_of_32 = k / MARLIN_ACT_GROUP;
    quantized_rows to = quantized_rows_at(prepared, rows, groups_of_32);
    for (int64_t row = begin; row < end; row++) {
        int64_t at = is_plain ? row * groups_of_32 : group_place(row, groups_of_32);
        int64_t step = is_plain ? 1 : block_rows(rows, row);
        act_outlier *first = to.outliers + row * groups_of_32, *next = first;
        for (int64_t g = 0; g < groups_of_32; g++, at += step) {
            const float *values = x + row * k + g * MARLIN_ACT_GROUP;
            float rest[MARLIN_ACT_GROUP], amax = largest_of(values);
            if (has_outlier(values, amax)) {
                int column = leave_out(values, amax, rest);
                *next++ = (act_outlier){(int32_t)(g * MARLIN_ACT_GROUP + column), values[column]};
                values = rest;
                amax = largest_of(rest);
            }
            quantize_group(values, amax, to.codes + at * MARLIN_ACT_GROUP, &to.groups[at],
                           &to.begins[at]);
        }
        to.num_outliers[row] = (int32_t)(next - first);
    }
}
