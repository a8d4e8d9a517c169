/* checks_state.h: what the kernels ask whose sequences have a state, a part of kernel_checks.c,
 * which includes it once. */

/* The runs of each sequence, which are read as vectors, and where they begin: the kernels check
 * each number that they take. */
static void check_runs(marlin_check *c, int runs, int starts, int32_t sequences_var)
{
    need(c, runs, VECTOR_BYTES, 16);
    need_rows(c, starts, sequences_var, 1, 1, 4);
}

static void check_causal_conv(marlin_check *c)
{
    const struct ConvParams *p = params_of(c);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    require(c, p->taps >= 2 && p->taps <= MARLIN_MAX_TAPS, "has taps out of range");
    require(c, p->num_slots >= 1 && p->num_slots <= INT32_MAX, "has a num_slots out of range");
    require(c, p->row_floats <= 4 * MAX_DIM, "has a row_floats out of range");
    if (c->problem) return;
    require(c, p->row_floats >= (p->gated ? 3 : 1) * (int64_t)p->dim,
            "has rows of x that are too short");
    int64_t dim_bytes = 4 * (int64_t)p->dim;
    need(c, 0, 4, 4 * (int64_t)p->row_floats);
    need(c, 1, 4, dim_bytes * p->taps);
    if (p->has_bias) need(c, 2, 4, dim_bytes);
    need(c, 3, 4, dim_bytes * (p->taps - 1) * p->num_slots);
    check_runs(c, 4, 5, p->sequences_var);
    need(c, 6, 4, dim_bytes);
    writes(c, 3);
    writes(c, 6);
}

static void check_delta_rule(marlin_check *c)
{
    const struct DeltaParams *p = params_of(c);
    require(c, p->key_heads >= 1 && p->key_heads <= 4096, "has key_heads out of range");
    require(c, p->value_heads >= 1 && p->value_heads <= 4096, "has value_heads out of range");
    require(c, p->key_dim % 16 == 0 && p->key_dim >= 16 && p->key_dim <= MARLIN_MAX_KEY_DIM,
            "has a key_dim out of range, or no multiple of 16");
    require(c, p->value_dim % 16 == 0 && p->value_dim >= 16 && p->value_dim <= 1024,
            "has a value_dim out of range, or no multiple of 16");
    require(c, p->num_slots >= 1 && p->num_slots <= INT32_MAX, "has a num_slots out of range");
    if (c->problem) return;
    require(c, p->value_heads % p->key_heads == 0,
            "has value_heads that are no multiple of key_heads");
    int64_t values = (int64_t)p->value_heads * p->value_dim;
    need(c, 0, 4, 4 * (2 * (int64_t)p->key_heads * p->key_dim + values));
    for (int i = 1; i <= 4; i++) need(c, i, 4, 4 * (int64_t)p->value_heads);
    /* Slots times bytes of one do not overflow: 2^31 * 2^12 * 2^7 * 2^10 would, so divide. */
    int64_t slot_bytes = 4 * values * p->key_dim;
    if (!c->problem && c->record->bytes[5] / slot_bytes < p->num_slots)
        refuse(c, 5, "is smaller than the parameters ask");
    need(c, 5, 4, 0);
    check_runs(c, 6, 7, p->sequences_var);
    need(c, 8, 4, 4 * values);
    writes(c, 5);
    writes(c, 8);
}

static void check_take_columns(marlin_check *c)
{
    const struct ColumnsParams *p = params_of(c);
    int64_t most = 4 * MAX_DIM, width = p->width;
    require(c, p->x_floats >= 1 && p->x_floats <= most, "has an x_floats out of range");
    require(c, p->y_floats >= 1 && p->y_floats <= most, "has a y_floats out of range");
    require(c, p->pieces >= 1 && p->pieces <= most, "has pieces out of range");
    require(c, width >= 1 && width <= most, "has a width out of range");
    require(c, p->stride <= most && p->start <= most && p->y_start <= most,
            "has columns out of range");
    if (c->problem) return;
    require(c, p->start + (p->pieces - 1) * (int64_t)p->stride + width <= p->x_floats,
            "takes more than a row of x");
    require(c, p->y_start + p->pieces * width <= p->y_floats, "fills more than a row of y");
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, 1, 0, 4 * (int64_t)p->x_floats);
    need_rows(c, 1, p->rows_var, 1, 0, 4 * (int64_t)p->y_floats);
    writes(c, 1);
}
