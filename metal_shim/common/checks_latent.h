/* checks_latent.h: what latent attention asks, a part of kernel_checks.c, which includes it once.
 */

/* Of attention, heads of a cache, and numbers of a head's output. */
static uint32_t cached_heads(const struct AttentionParams *p)
{
    return p->latent_dim ? 1 : p->num_kv_heads;
}

static int64_t output_dim(const struct AttentionParams *p)
{
    return p->latent_dim ? p->latent_dim : p->head_dim;
}

static void check_latent_write(marlin_check *c)
{
    const struct LatentParams *p = params_of(c);
    require(c, p->num_heads >= 1 && p->num_heads <= 4096, "has a num_heads out of range");
    check_cache(c, 5, 1, 1, p->row_dim, p->block_size, p->num_blocks, p->kv_f32);
    require(c, p->nope_dim >= 1 && p->nope_dim <= 4096, "has a nope_dim out of range");
    require(c, p->rope_dim >= 2 && p->rope_dim % 2 == 0 && p->rope_dim <= p->row_dim,
            "has a rope_dim that is odd, or none, or beyond a row");
    require(c, p->rank >= 1 && p->rank <= p->row_dim, "has a rank out of range");
    if (c->problem) return;
    require(c, p->rank + p->rope_dim <= p->row_dim, "has more than a row holds");
    int64_t heads = p->num_heads, rank = p->rank, turns = p->rope_dim;
    need_rows(c, 0, p->rows_var, 1, 0, 4 * heads * rank);
    need_rows(c, 1, p->rows_var, 1, 0, 4 * heads * (p->nope_dim + turns));
    need_rows(c, 2, p->rows_var, 1, 0, 4 * (rank + turns));
    need_rows(c, 3, p->rows_var, 1, 0, 4 * turns);
    need(c, 6, 4, 4 * rank);
    need_rows(c, 7, p->rows_var, 1, 0, 4 * heads * p->row_dim);
    for (int i = 4; i < 9; i += 4) need_rows(c, i, p->rows_var, 1, 0, 4);
    static const int written[] = {5, 7, 8};
    for (int i = 0; i < 3; i++) writes(c, written[i]);
}
