/* kernels_linear.c: y = x W^T for packed weights of integers (fp4, int4, int5, …), one row or many.
 *
 *   x  float [rows, k]              y  float [rows, n]           output bias  float [n], optional
 *   W  codes, scales, biases in tiles of 16 rows (docs/formats.md);
 *   k % 32 == 0, k % group_size == 0
 *
 * Each x row is quantized to int8 in groups of 32; a value that exceeds four times every other one
 * of its group stays a float, an outlier, so that the others keep their bits. A register holds 4
 * columns of each of V_LANES weight rows, so a sum never crosses lanes; a row's float sum runs over
 * its groups in order, then over its outliers, whatever the number of rows, and so a result does
 * not depend on the batch. Unit of work: one tile of 16 weight rows, for all rows of x. */
#include "cpu/activations.h"
#include "cpu/cpu.h"
#include "cpu/experts.h"
#include "cpu/gates.h"
#include "cpu/packed.h"
#include "cpu/simd.h"

/* IQ4's sixteen numbers, 128 added. */
static const uint8_t iq4_table[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                      129, 141, 153, 166, 181, 197, 217, 241};

/* 2 * e2m1 + 12 for each fp4 code: unsigned, as the dot product wants it. */
static const uint8_t fp4_table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* Those from FP4_G16: two halves of a group, each of 16 columns, have their scales. */
typedef enum {
    FP4,
    INT4,
    INT5,
    INT6,
    IQ4,
    INT8,
    FP4_G16,
    INT4_G16,
    INT6_G16 = FP4_G16 + INT6,
    INT8_G16 = FP4_G16 + INT8
} weight_kind;

INLINE int has_halves(weight_kind kind) { return kind >= FP4_G16; }

INLINE weight_kind codes_of(weight_kind kind)
{
    return has_halves(kind) ? (weight_kind)(kind - FP4_G16) : kind;
}

typedef struct {
    const uint8_t *codes;
    const uint8_t *scales;
    const uint8_t *biases;
    const float *output_bias;
    float *y; /* of row y_row, from column y_column on; a row is y_stride further on */
    int64_t y_row, y_column, y_stride;
    int64_t rows, n, groups_of_32;
    int64_t slots_a_row; /* choices that read one row of x */
    int scale_shift;     /* log2 of the groups of 32 that share a scale */
    scale_form form;
    quantized_rows x;
} linear;

/* Rows that are multiplied together, if they are not neighbours but chose one expert: where the
 * groups of each begin, one after the other, and its row of y. */
typedef struct {
    int64_t place[MAX_ROW_BLOCK];
    int64_t x_row[MAX_ROW_BLOCK];
    int64_t y_row[MAX_ROW_BLOCK];
} chosen_rows;

/* Whether codes are bytes with 128 added. */
INLINE int is_off(weight_kind kind) { return codes_of(kind) == INT8 || kind == IQ4; }

INLINE int bits_of(weight_kind kind)
{
    return codes_of(kind) == INT8 ? 8 : codes_of(kind) == INT6 ? 6 : kind == INT5 ? 5 : 4;
}

/* Columns 4i .. 4i + 3 of V_LANES rows, of the 32 columns of a group. */
INLINE vi load_quad(weight_kind kind, const uint8_t *p, int i)
{
    if (codes_of(kind) == INT8) return vi_load(p + 64 * i);
    vi word = vi_load(p + 64 * (codes_of(kind) == INT6 ? i / 2 + i / 4 : i / 2));
    word = i % 2 ? vi_high_nibbles(word) : vi_low_nibbles(word);
    if (codes_of(kind) == FP4) return vi_lookup(word, fp4_table);
    if (kind == IQ4) return vi_lookup(word, iq4_table);
    /* What lies above the nibbles: a bit of each of 32 columns, or two of each of 16. */
    if (kind == INT5) return vi_or_bits(word, vi_load(p + 64 * 4), i, 0x10);
    if (codes_of(kind) == INT6)
        return vi_or_bits(word, vi_load(p + 64 * (i / 4 * 3 + 2)), i % 4 * 2, 0x30);
    return word;
}

INLINE void load_group(weight_kind kind, const uint8_t *p, vi w[8])
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) w[i] = load_quad(kind, p, i);
}

INLINE int64_t group_bytes_of(weight_kind kind)
{
    return MARLIN_ROW_TILE * MARLIN_ACT_GROUP / 8 * bits_of(kind);
}

INLINE int32_t load_four(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return four;
}

/* The sum of the codes of one half of a group of activations. */
INLINE int32_t half_sum(const act_begin *begin, int half) { return begin->int8_half[half] / -128; }

/* Integer dot product of quads [first, last) of a group with one x row. */
INLINE vi dot_quads(weight_kind kind, const vi w[8], const int8_t *x, const act_begin *begin,
                    int first, int last)
{
    vi sum = vi_set1(0);
    if (kind == FP4) sum = vi_set1(begin->fp4);
    if (kind == FP4_G16) sum = vi_set1(-12 * half_sum(begin, first / 4));
    if (kind == INT6) sum = vi_set1(begin->int8 / 4);
    if (kind == INT6_G16) sum = vi_set1(begin->int8_half[first / 4] / 4);
    if (kind == INT8 || kind == IQ4) sum = vi_begin_off(begin->int8);
    if (kind == INT8_G16) sum = vi_begin_off(begin->int8_half[first / 4]);
    for (int i = first; i < last; i++) {
        vi quad = vi_set1(load_four(x + 4 * i));
        sum = is_off(kind) ? vi_dot4_off(sum, w[i], quad) : vi_dot4(sum, w[i], quad);
    }
    return sum;
}

INLINE vf load_scale(const linear *a, weight_kind kind, const uint8_t *scales, int64_t tile,
                     int64_t group, int64_t lane)
{
    vf scale = load_scales_at(&a->form, scales, tile, group, lane);
    return codes_of(kind) == FP4 ? vf_mul(scale, vf_set1(0.5f)) : scale;
}

INLINE void store_rows(const linear *a, int64_t row, const chosen_rows *chosen, int num_rows,
                       int64_t column, const vf *sums)
{
    int64_t valid = a->n - column;
    for (int m = 0; m < num_rows; m++) {
        int64_t y_row = (chosen ? chosen->y_row[m] : row + m) - a->y_row;
        float *y = a->y + y_row * a->y_stride + column - a->y_column;
        store_columns(y, a->output_bias ? a->output_bias + column : NULL, valid, sums[m]);
    }
}

/* Scales and biases of one group of V_LANES weight rows; [1] is of a second half. */
typedef struct {
    vf scale[2], bias[2];
    int has_bias;
} group_scales;

INLINE int has_biases(const linear *a, weight_kind kind)
{
    return codes_of(kind) == INT4 || kind == INT5 || (codes_of(kind) == INT8 && a->biases);
}

INLINE group_scales load_scales(const linear *a, weight_kind kind, int64_t tile, int64_t g,
                                int64_t lane)
{
    int64_t group = has_halves(kind) ? g * 2 : g >> a->scale_shift;
    group_scales found = {
        .scale = {load_scale(a, kind, a->scales, tile, group, lane), vf_zero()},
        .bias = {vf_zero(), vf_zero()},
        .has_bias = has_biases(a, kind),
    };
    if (has_halves(kind)) found.scale[1] = load_scale(a, kind, a->scales, tile, group + 1, lane);
    if (!found.has_bias) return found;
    found.bias[0] = load_scale(a, kind, a->biases, tile, group, lane);
    if (has_halves(kind)) found.bias[1] = load_scale(a, kind, a->biases, tile, group + 1, lane);
    return found;
}

/* What one group adds to a row's sum. dots: of the group, or of each half. */
INLINE vf add_group(weight_kind kind, const group_scales *s, const act_group *group,
                    const act_begin *begin, const vi dots[2], vf sum)
{
    vf x_scale = vf_set1(group->scale);
    sum = vf_fma(vf_from_i32(dots[0]), vf_mul(s->scale[0], x_scale), sum);
    if (has_halves(kind)) sum = vf_fma(vf_from_i32(dots[1]), vf_mul(s->scale[1], x_scale), sum);
    if (!s->has_bias) return sum;
    if (!has_halves(kind)) return vf_fma(s->bias[0], vf_set1(group->scaled_sum), sum);
    for (int i = 0; i < 2; i++)
        sum = vf_fma(s->bias[i], vf_set1(group->scale * (float)half_sum(begin, i)), sum);
    return sum;
}

/* Where row m has group `at`: neighbours have theirs side by side, and `at` is the first row's. */
INLINE int64_t place_of(const chosen_rows *chosen, int m, int64_t at)
{
    return chosen ? chosen->place[m] + at : at + m;
}

/* One group of num_rows rows of x. */
INLINE void add_rows(const linear *a, weight_kind kind, const chosen_rows *chosen, int num_rows,
                     const vi w[8], const group_scales *s, int64_t at, vf *sums)
{
#pragma GCC unroll 16
    for (int m = 0; m < num_rows; m++) {
        int64_t place = place_of(chosen, m, at);
        const int8_t *x = a->x.codes + place * MARLIN_ACT_GROUP;
        const act_begin *begin = a->x.begins + place;
        vi dots[2];
        dots[0] = dot_quads(kind, w, x, begin, 0, has_halves(kind) ? 4 : 8);
        if (has_halves(kind)) dots[1] = dot_quads(kind, w, x, begin, 4, 8);
        sums[m] = add_group(kind, s, a->x.groups + place, begin, dots, sums[m]);
    }
}

#if defined(MARLIN_ISA_I8MM)
/* Columns 8i .. 8i + 7 of weight rows 0 and 1 (pairs[2i]) and of rows 2 and 3 (pairs[2i + 1]). */
INLINE void pair_weights(weight_kind kind, const vi w[8], vi pairs[8])
{
    for (int i = 0; i < 8; i += 2) {
        vi left = is_off(kind) ? vi_remove_off(w[i]) : w[i];
        vi right = is_off(kind) ? vi_remove_off(w[i + 1]) : w[i + 1];
        pairs[i] = vi_zip_low(left, right);
        pairs[i + 1] = vi_zip_high(left, right);
    }
}

/* Integer dot products of the groups x[0] and x[1]. */
INLINE void dot_pair(const vi pairs[8], const int8_t *const x[2], int first, int last, vi dots[2])
{
    vi low = vi_set1(0), high = vi_set1(0);
    for (int i = first; i < last; i += 2) {
        vi columns = vi_load_halves(x[0] + 4 * i, x[1] + 4 * i);
        low = vi_mmla(low, pairs[i], columns);
        high = vi_mmla(high, pairs[i + 1], columns);
    }
    dots[0] = vi_even(low, high);
    dots[1] = vi_odd(low, high);
}

/* add_rows() for an even number of rows: the same integers, summed in the same order. */
INLINE void add_row_pairs(const linear *a, weight_kind kind, const chosen_rows *chosen,
                          int num_rows, const vi w[8], const group_scales *s, int64_t at, vf *sums)
{
    vi pairs[8];
    pair_weights(kind, w, pairs);
#pragma GCC unroll 8
    for (int m = 0; m < num_rows; m += 2) {
        int64_t places[2] = {place_of(chosen, m, at), place_of(chosen, m + 1, at)};
        const int8_t *x[2] = {a->x.codes + places[0] * MARLIN_ACT_GROUP,
                              a->x.codes + places[1] * MARLIN_ACT_GROUP};
        vi halves[2][2];
        dot_pair(pairs, x, 0, has_halves(kind) ? 4 : 8, halves[0]);
        if (has_halves(kind)) dot_pair(pairs, x, 4, 8, halves[1]);
        for (int i = 0; i < 2; i++) {
            const act_begin *begin = a->x.begins + places[i];
            vi dots[2] = {halves[0][i], has_halves(kind) ? halves[1][i] : vi_set1(0)};
            if (kind == FP4) dots[0] = vi_add(dots[0], vi_set1(begin->fp4));
            if (kind == INT6) dots[0] = vi_add(dots[0], vi_set1(begin->int8 / 4));
            for (int half = 0; kind == INT6_G16 && half < 2; half++)
                dots[half] = vi_add(dots[half], vi_set1(begin->int8_half[half] / 4));
            for (int half = 0; kind == FP4_G16 && half < 2; half++)
                dots[half] = vi_add(dots[half], vi_set1(-12 * half_sum(begin, half)));
            sums[m + i] = add_group(kind, s, a->x.groups + places[i], begin, dots, sums[m + i]);
        }
    }
}
#endif

/* What outlier `o` adds to a row's sum, its weights being those of a group whose codes are 1 in its
 * column and 0 elsewhere. codes: of the tile's part. */
INLINE vf add_outlier(const linear *a, weight_kind kind, const uint8_t *codes, int64_t tile,
                      int64_t lane, const act_outlier *o, vf sum)
{
    int64_t g = o->column / MARLIN_ACT_GROUP;
    int column = o->column % MARLIN_ACT_GROUP;
    vi w = load_quad(kind, codes + g * group_bytes_of(kind), column / 4);
    vi one = vi_set1(1 << column % 4 * 8), dot = vi_set1(0);
    if (codes_of(kind) == FP4) dot = vi_set1(-12);
    if (codes_of(kind) == INT6) dot = vi_set1(-32);
    if (is_off(kind))
        dot = vi_dot4_off(vi_begin_off(-128), w, one);
    else
        dot = vi_dot4(dot, w, one);
    int64_t group = has_halves(kind) ? g * 2 + column / 16 : g >> a->scale_shift;
    vf value = vf_set1(o->value), scale = load_scale(a, kind, a->scales, tile, group, lane);
    sum = vf_fma(vf_from_i32(dot), vf_mul(scale, value), sum);
    if (!has_biases(a, kind)) return sum;
    return vf_fma(load_scale(a, kind, a->biases, tile, group, lane), value, sum);
}

/* V_LANES columns of y for num_rows (a constant) rows: those from `row`, or those chosen. */
INLINE void dot_rows(const linear *a, weight_kind kind, const chosen_rows *chosen, int num_rows,
                     int64_t row, int64_t tile, int part, int has_outliers)
{
    const int64_t group_bytes = group_bytes_of(kind);
    const uint8_t *codes = a->codes + tile * a->groups_of_32 * group_bytes + part * V_LANES * 4;
    int64_t at = chosen ? 0 : group_place(row, a->groups_of_32);
    int64_t step = chosen ? 1 : block_rows(a->rows, row);
    vf sums[MAX_ROW_BLOCK];
    for (int m = 0; m < num_rows; m++) sums[m] = vf_zero();

    for (int64_t g = 0; g < a->groups_of_32; g++, at += step) {
        vi w[8];
        load_group(kind, codes + g * group_bytes, w);
        group_scales s = load_scales(a, kind, tile, g, part * V_LANES);
#if defined(MARLIN_ISA_I8MM)
        if (num_rows > 1) {
            add_row_pairs(a, kind, chosen, num_rows, w, &s, at, sums);
            continue;
        }
#endif
        add_rows(a, kind, chosen, num_rows, w, &s, at, sums);
    }
    if (!has_outliers) {
        store_rows(a, row, chosen, num_rows, tile * 16 + part * V_LANES, sums);
        return;
    }
    vf wholes[MAX_ROW_BLOCK]; /* in memory, so that sums stay in registers */
    for (int m = 0; m < num_rows; m++) wholes[m] = sums[m];
#pragma GCC unroll 1
    for (int m = 0; m < num_rows; m++) {
        int64_t x_row = chosen ? chosen->x_row[m] : row + m;
        const act_outlier *o = a->x.outliers + x_row * a->groups_of_32;
        for (int i = 0; i < a->x.num_outliers[x_row]; i++)
            wholes[m] = add_outlier(a, kind, codes, tile, part * V_LANES, o + i, wholes[m]);
    }
    store_rows(a, row, chosen, num_rows, tile * 16 + part * V_LANES, wholes);
}

/* order: of the rows that chose this expert; NULL: they are neighbours. */
INLINE void run_tiles(const linear *a, weight_kind kind, const int32_t *order, int num_rows,
                      int64_t row, int64_t begin, int64_t end)
{
    chosen_rows found, *chosen = order ? &found : NULL;
    int has_outliers = 0;
    for (int m = 0; m < num_rows; m++) {
        int64_t x_row = order ? order[row + m] / a->slots_a_row : row + m;
        has_outliers |= a->x.num_outliers[x_row];
        if (!order) continue;
        found.y_row[m] = order[row + m];
        found.x_row[m] = x_row;
        found.place[m] = x_row * a->groups_of_32;
    }
    for (int64_t tile = begin; tile < end; tile++)
        for (int part = 0; part < V_PARTS; part++)
            if (tile * 16 + part * V_LANES < a->n)
                dot_rows(a, kind, chosen, num_rows, row, tile, part, has_outliers);
}

/* Rows [row, rows): neighbours from a whole number of MAX_ROW_BLOCK on. */
INLINE void run_rows(const linear *a, weight_kind kind, const int32_t *order, int64_t row,
                     int64_t rows, int64_t begin, int64_t end)
{
    for (; rows - row >= MAX_ROW_BLOCK; row += MAX_ROW_BLOCK)
        run_tiles(a, kind, order, MAX_ROW_BLOCK, row, begin, end);
#if MAX_ROW_BLOCK > 8
    for (; rows - row >= 8; row += 8) run_tiles(a, kind, order, 8, row, begin, end);
#endif
#if MAX_ROW_BLOCK > 4
    for (; rows - row >= 4; row += 4) run_tiles(a, kind, order, 4, row, begin, end);
#endif
    for (; rows - row >= 2; row += 2) run_tiles(a, kind, order, 2, row, begin, end);
    if (row < rows) run_tiles(a, kind, order, 1, row, begin, end);
}

/* rows: of x, quantized. */
INLINE linear linear_of(const marlin_call *call, const struct LinearParams *p, int64_t rows)
{
    return (linear){
        .codes = call->at[1],
        .scales = call->at[2],
        .biases = p->flags & MARLIN_WEIGHT_BIAS ? call->at[3] : NULL,
        .output_bias = p->flags & MARLIN_OUTPUT_BIAS ? (const float *)call->at[4] : NULL,
        .y = (float *)call->at[5],
        .y_stride = p->n,
        .rows = rows,
        .n = p->n,
        .groups_of_32 = p->k / MARLIN_ACT_GROUP,
        .scale_shift = scale_shift_of(p->group_size),
        .form = scale_form_of(p),
        .x = quantized_rows_at(call->prepared, rows, p->k / MARLIN_ACT_GROUP),
    };
}

/* A kind's run_rows() for neighbours, compiled once for plain layers and fused ones. */
typedef void run_kind(const linear *a, int64_t row, int64_t rows, int64_t begin, int64_t end);
#define RUN_KIND(kind)                                                                             \
    static __attribute__((noinline)) void run_##kind(const linear *a, int64_t row, int64_t rows,   \
                                                     int64_t begin, int64_t end)                   \
    {                                                                                              \
        run_rows(a, kind, NULL, row, rows, begin, end);                                            \
    }
RUN_KIND(FP4)
RUN_KIND(FP4_G16)
RUN_KIND(INT4)
RUN_KIND(INT4_G16)
RUN_KIND(INT8)
RUN_KIND(INT8_G16)
RUN_KIND(INT5)
RUN_KIND(INT6)
RUN_KIND(INT6_G16)
RUN_KIND(IQ4)

/* Of a kind with groups of 16 too: that of a call's. */
#define RUN_EITHER(call, kind)                                                                     \
    (((const struct LinearParams *)(call)->params)->group_size == 16 ? run_##kind##_G16            \
                                                                     : run_##kind)

static int run_linear(const marlin_call *call, int64_t begin, int64_t end, run_kind *run)
{
    const struct LinearParams *p = call->params;
    linear a = linear_of(call, p, call->vars[p->rows_var]);
    run(&a, 0, a.rows, begin, end);
    return MARLIN_OK;
}

LINEAR_KERNELS(, fp4, run_linear(call, begin, end, RUN_EITHER(call, FP4)))
LINEAR_KERNELS(, int4, run_linear(call, begin, end, RUN_EITHER(call, INT4)))
LINEAR_KERNELS(, int8, run_linear(call, begin, end, RUN_EITHER(call, INT8)))
LINEAR_KERNELS(, int5, run_linear(call, begin, end, run_INT5))
LINEAR_KERNELS(, int6, run_linear(call, begin, end, RUN_EITHER(call, INT6)))
LINEAR_KERNELS(, iq4, run_linear(call, begin, end, run_IQ4))

/* The same tiles of each expert that was chosen, for the rows that chose it. */
INLINE int run_experts(const marlin_call *call, int64_t begin, int64_t end, weight_kind kind)
{
    const struct ExpertParams *p = call->params;
    const struct LinearParams one = {p->rows_var, p->n, p->k, p->group_size, p->flags};
    const linear whole = linear_of(call, &one, call->vars[p->rows_var] * (int64_t)p->x_slots);
    int64_t expert_codes = (int64_t)p->n * p->k * bits_of(kind) / 8;
    int64_t expert_scales = scale_bytes_of(&one);
    expert_groups groups = groups_of(call);
    for (int64_t g = 0; g < groups.count; g++) {
        expert_group found;
        if (!load_expert_group(&groups, g, &found)) return MARLIN_EDEVICE;
        linear a = whole;
        a.slots_a_row = p->num_slots / p->x_slots;
        a.codes += found.expert * expert_codes;
        a.scales += found.expert * expert_scales;
        if (a.biases) a.biases += found.expert * expert_scales;
        if (a.output_bias) a.output_bias += found.expert * (int64_t)p->n;
        run_rows(&a, kind, found.order, 0, found.rows, begin, end);
    }
    return MARLIN_OK;
}

INLINE int run_either_experts(const marlin_call *call, int64_t begin, int64_t end, weight_kind kind)
{
    const struct ExpertParams *p = call->params;
    if (p->group_size == 16) return run_experts(call, begin, end, (weight_kind)(kind + FP4_G16));
    return run_experts(call, begin, end, kind);
}

LINEAR_KERNELS(experts_, fp4, run_either_experts(call, begin, end, FP4))
LINEAR_KERNELS(experts_, int4, run_either_experts(call, begin, end, INT4))
LINEAR_KERNELS(experts_, int8, run_either_experts(call, begin, end, INT8))
LINEAR_KERNELS(experts_, int5, run_experts(call, begin, end, INT5))
LINEAR_KERNELS(experts_, int6, run_either_experts(call, begin, end, INT6))
LINEAR_KERNELS(experts_, iq4, run_experts(call, begin, end, IQ4))

#include "cpu/linear_fused.h"
