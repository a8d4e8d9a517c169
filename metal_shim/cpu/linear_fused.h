/* linear_fused.h: linear layers of packed weights together with what comes before and after them, a
 * part of kernels_linear.c, which includes it once. Shapes: shaders/matvec_fused.h.
 *
 * Unit of work: one tile of 16 weight rows, for all rows of x. Gates are those of the kernels in
 * gates.h, to the bit. */

/* Columns of a tile for a block of rows that have been multiplied. */
typedef struct {
    const marlin_call *call;
    int64_t column, valid; /* the first, and how many of 16 there are */
} fused_tile;

static float fused_inverse(const marlin_call *call, int64_t row)
{
    const struct FusedParams *p = call->params;
    int64_t count = p->k / MARLIN_ROW_TILE;
    const float *squares = (const float *)call->at[6] + row * count;
    float sum = 0.0f;
    for (int64_t i = 0; i < count; i++) sum += squares[i];
    return 1.0f / sqrtf(sum / (float)p->k + p->eps);
}

/* values: of a row, sums of products without their bias. */
static void fused_norm(const fused_tile *t, int64_t row, int bias_binding, float *values)
{
    const struct FusedParams *p = t->call->params;
    float inverse = fused_inverse(t->call, row);
    for (int64_t i = 0; i < t->valid; i++) values[i] *= inverse;
    if (!(p->flags & MARLIN_OUTPUT_BIAS)) return;
    const float *bias = (const float *)t->call->at[bias_binding] + t->column;
    for (int64_t i = 0; i < t->valid; i++) values[i] += bias[i];
}

INLINE void fused_gate(const fused_tile *t, float *y, const float *up)
{
    const struct FusedParams *p = t->call->params;
    gated_row(p->activation == MARLIN_GELU ? GELU : SILU, y, up, y, t->valid);
}

static void fused_add(const fused_tile *t, int64_t row, float *y)
{
    const struct FusedParams *p = t->call->params;
    float *residual = (float *)t->call->at[7] + row * p->n + t->column, squares = 0.0f;
    const float *norm = (const float *)t->call->at[8] + t->column;
    int64_t tiles = (p->n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE;
    for (int64_t i = 0; i < t->valid; i++) {
        residual[i] = fmaf(y[i], p->residual_scale, residual[i]);
        squares = fmaf(residual[i], residual[i], squares);
        y[i] = residual[i] * norm[i];
    }
    ((float *)t->call->at[9])[row * tiles + t->column / MARLIN_ROW_TILE] = squares;
}

/* A matrix of a call whose codes, scales and biases are bound from `first` on. */
INLINE linear fused_matrix(const marlin_call *call, int first, int bias_binding)
{
    const struct FusedParams *p = call->params;
    const struct LinearParams one = {p->rows_var, p->n, p->k, p->group_size, p->flags};
    linear a = linear_of(call, &one, call->vars[p->rows_var]);
    a.codes = call->at[first];
    a.scales = call->at[first + 1];
    a.biases = p->flags & MARLIN_WEIGHT_BIAS ? call->at[first + 2] : NULL;
    int adds = p->flags & MARLIN_OUTPUT_BIAS && !(p->flags & MARLIN_NORMED);
    a.output_bias = adds ? (const float *)call->at[bias_binding] : NULL;
    return a;
}

static int run_fused(const marlin_call *call, int64_t begin, int64_t end, run_kind *run)
{
    const struct FusedParams *p = call->params;
    linear a = fused_matrix(call, 1, 4), up = fused_matrix(call, 7, 10);
    float values[MAX_ROW_BLOCK * MARLIN_ROW_TILE];
    int gated = (p->flags & MARLIN_GATED) != 0, normed = (p->flags & MARLIN_NORMED) != 0;
    up.y = values;
    up.y_stride = MARLIN_ROW_TILE;
    for (int64_t tile = begin; tile < end; tile++) {
        fused_tile t = {call, tile * MARLIN_ROW_TILE, p->n - tile * MARLIN_ROW_TILE};
        if (t.valid > MARLIN_ROW_TILE) t.valid = MARLIN_ROW_TILE;
        up.y_column = t.column;
        for (int64_t row = 0, last; row < a.rows; row = last) {
            last = row + MAX_ROW_BLOCK < a.rows ? row + MAX_ROW_BLOCK : a.rows;
            up.y_row = row;
            run(&a, row, last, tile, tile + 1);
            if (gated) run(&up, row, last, tile, tile + 1);
            for (int64_t m = row; m < last; m++) {
                float *y = a.y + m * a.n + t.column;
                float *other = values + (m - row) * MARLIN_ROW_TILE;
                if (normed) fused_norm(&t, m, 4, y);
                if (normed && gated) fused_norm(&t, m, 10, other);
                if (gated) fused_gate(&t, y, other);
                if (p->flags & MARLIN_RESIDUAL) fused_add(&t, m, y);
            }
        }
    }
    return MARLIN_OK;
}

#define FUSED_KERNEL(kind, run)                                                                    \
    KERNEL(matvec_fused_##kind)                                                                    \
    {                                                                                              \
        (void)scratch;                                                                             \
        return run;                                                                                \
    }

FUSED_KERNEL(fp4, run_fused(call, begin, end, RUN_EITHER(call, FP4)))
FUSED_KERNEL(int4, run_fused(call, begin, end, RUN_EITHER(call, INT4)))
FUSED_KERNEL(int8, run_fused(call, begin, end, RUN_EITHER(call, INT8)))
FUSED_KERNEL(int5, run_fused(call, begin, end, run_INT5))
FUSED_KERNEL(int6, run_fused(call, begin, end, RUN_EITHER(call, INT6)))
FUSED_KERNEL(iq4, run_fused(call, begin, end, run_IQ4))
