/* checks_experts.h: what the kernels of a mixture of experts ask, a part of kernel_checks.c, which
 * includes it once. */

static void check_choices(marlin_check *c, uint32_t num_experts, uint32_t num_slots)
{
    require(c, num_experts >= 1 && num_experts <= MARLIN_MAX_EXPERTS,
            "has a num_experts out of range");
    require(c, num_slots >= 1 && num_slots <= MARLIN_MAX_SLOTS && num_slots <= num_experts,
            "has a num_slots out of range");
}

/* What is written is not what says where: a kernel checks an index once, and reads it again. */
static void keep_apart(marlin_check *c, int written, int index)
{
    const marlin_record *record = c->record;
    uintptr_t to = (uintptr_t)record->at[written], from = (uintptr_t)record->at[index];
    if (to < from + (uintptr_t)record->bytes[index] &&
        from < to + (uintptr_t)record->bytes[written])
        refuse(c, written, "lies over the indices that say where it is written");
}

static void check_experts(marlin_check *c)
{
    const struct ExpertParams *p = params_of(c);
    check_choices(c, p->num_experts, p->num_slots);
    require(c, p->n >= 1 && p->n <= MAX_DIM, "has an n out of range");
    require(c, p->k >= 1 && p->k <= MAX_DIM, "has a k out of range");
    require(c, p->x_slots == 1 || p->x_slots == p->num_slots, "has an x_slots out of range");
    bool is_packed = weight_kinds[c->record->kernel->weight].group > 0;
    require(c, !is_packed || p->n % MARLIN_ROW_TILE == 0,
            "has packed experts whose rows are no multiple of a tile");
    if (c->problem) return;
    check_weight(c, 1, (int64_t)p->num_experts * p->n, p->k, p->group_size, p->flags);
    if (is_packed || p->k % 4 == 0) need(c, 0, VECTOR_BYTES, 0);
    if (p->flags & MARLIN_OUTPUT_BIAS) need(c, 4, 4, 4 * (int64_t)p->num_experts * p->n);
    need_rows(c, 0, p->rows_var, p->x_slots, 0, 4 * (int64_t)p->k);
    need_rows(c, 5, p->rows_var, p->num_slots, 0, 4 * (int64_t)p->n);
    /* The kernel checks each row and each group that it takes. */
    need_rows(c, 6, p->rows_var, p->num_slots, 0, 4);
    need(c, 7, 4, 12 * (int64_t)p->num_experts);
    writes(c, 5);
    for (int i = 6; i < 8; i++) keep_apart(c, 5, i);
}

static void check_route(marlin_check *c)
{
    const struct RouteParams *p = params_of(c);
    check_choices(c, p->num_experts, p->num_slots);
    require(c, p->gating <= MARLIN_GATE_CHOSEN, "has a gating that is not known");
    require(c, p->bias <= MARLIN_ROUTE_FACTORS, "has a use of its bias that is not known");
    if (c->problem) return;
    require(c, p->num_groups >= 1 && p->num_experts % p->num_groups == 0,
            "has experts that do not divide into its groups");
    require(c, p->kept_groups >= 1 && p->kept_groups <= p->num_groups,
            "has a kept_groups out of range");
    if (c->problem) return;
    require(c, p->num_experts / p->num_groups * p->kept_groups >= p->num_slots,
            "keeps fewer experts than it chooses");
    need_rows(c, 0, p->rows_var, 1, 0, 4 * (int64_t)p->num_experts);
    if (p->bias) need(c, 1, 4, 4 * (int64_t)p->num_experts);
    for (int i = 2; i < 4; i++) {
        need_rows(c, i, p->rows_var, p->num_slots, 0, 4);
        writes(c, i);
    }
}

static void check_sort_experts(marlin_check *c)
{
    const struct SortParams *p = params_of(c);
    check_choices(c, p->num_experts, p->num_slots);
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, p->num_slots, 0, 4); /* the kernel checks each choice */
    need_rows(c, 1, p->rows_var, p->num_slots, 0, 4);
    need(c, 2, 4, 12 * (int64_t)p->num_experts);
    for (int i = 1; i < 3; i++) {
        writes(c, i);
        keep_apart(c, i, 0);
    }
}

static void check_combine_experts(marlin_check *c)
{
    const struct CombineParams *p = params_of(c);
    check_choices(c, MARLIN_MAX_EXPERTS, p->num_slots);
    require(c, p->dim >= 1 && p->dim <= MAX_DIM, "has a dim out of range");
    if (c->problem) return;
    need_rows(c, 0, p->rows_var, p->num_slots, 0, 4 * (int64_t)p->dim);
    need_rows(c, 1, p->rows_var, p->num_slots, 0, 4);
    need_rows(c, 2, p->rows_var, 1, 0, 4 * (int64_t)p->dim);
    writes(c, 2);
}
