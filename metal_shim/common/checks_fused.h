/* checks_fused.h: what linear layers fused with a norm, a gate or a residual ask of their
 * parameters and bindings, a part of kernel_checks.c, which includes it once. Shapes:
 * shaders/matvec_fused.h. */

static void check_fused(marlin_check *c)
{
    const struct FusedParams *p = params_of(c);
    check_linear(c); /* of LinearParams, as which these begin */
    uint32_t both = MARLIN_GATED | MARLIN_RESIDUAL;
    require(c, (p->flags & both) != both, "is a gate and a residual at once");
    require(c, p->activation <= MARLIN_GELU, "has an activation that is not known");
    if (c->problem) return;
    int64_t row_bytes = 4 * (int64_t)p->n;
    if (p->flags & MARLIN_NORMED)
        need_rows(c, 6, p->rows_var, 1, 0, 4 * (int64_t)(p->k / MARLIN_ROW_TILE));
    if (p->flags & MARLIN_GATED) {
        check_weight(c, 7, p->n, p->k, p->group_size, p->flags);
        if (p->flags & MARLIN_OUTPUT_BIAS) need(c, 10, 4, row_bytes);
    }
    if (!(p->flags & MARLIN_RESIDUAL)) return;
    need_rows(c, 7, p->rows_var, 1, 0, row_bytes);
    need(c, 8, 4, row_bytes);
    need_rows(c, 9, p->rows_var, 1, 0,
              4 * (((int64_t)p->n + MARLIN_ROW_TILE - 1) / MARLIN_ROW_TILE));
    writes(c, 7);
    writes(c, 9);
    require(c, c->record->access[7] & MARLIN_READ, "adds to what it does not read");
}
