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
