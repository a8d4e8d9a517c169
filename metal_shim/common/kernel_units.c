/* kernel_units.c: how much work a dispatch is, on three axes that mean the same to every device.
 * How a device cuts them into threads is its own (kernel_list.h). */
#include "common/kernels.h"

static int64_t ceiling(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Of the parameters p and the step's vars, each as kernel_list.h names it. */
#define UNITS_rows {vars[p->rows_var], 1, 1}
#define UNITS_row_parts {vars[p->rows_var], p->rows_per_var, 1}
#define UNITS_row_heads {vars[p->rows_var], p->num_heads + 2 * p->num_kv_heads, 1}
#define UNITS_latent_heads {vars[p->rows_var], p->num_heads + 1, 1}
#define UNITS_row_pieces {vars[p->rows_var], ceiling(p->dim, MARLIN_PIECE_FLOATS), 1}
#define UNITS_linear {ceiling(p->n, MARLIN_ROW_TILE), vars[p->rows_var], 1}
#define UNITS_experts                                                                              \
    {ceiling(p->n, MARLIN_ROW_TILE), vars[p->rows_var],                                            \
     marlin_num_groups(vars[p->rows_var], p->num_slots, p->num_experts)}
#define UNITS_once {vars[p->rows_var] > 0, 1, 1}
#define UNITS_kv_heads {vars[p->tiles_var], p->num_kv_heads, 1}
/* One split is a softmax of its own: attention_split has done with it. */
#define UNITS_merges {vars[p->splits_var] == 1 ? 0 : vars[p->tiles_var], p->num_heads, 1}
#define UNITS_splits {vars[p->tiles_var], p->num_kv_heads, vars[p->splits_var]}
#define UNITS_channels {vars[p->sequences_var], ceiling(p->dim, MARLIN_CONV_CHANNELS), 1}
#define UNITS_value_pieces                                                                         \
    {vars[p->sequences_var], p->value_heads * ceiling(p->value_dim, MARLIN_DELTA_COLUMNS), 1}
#define UNITS_repack_tiles {ceiling(p->n, MARLIN_ROW_TILE), 1, 1}
#define UNITS_probes {p->num_units, 1, 1}

marlin_units marlin_kernel_units(int32_t kernel_id, const void *params, const int32_t *vars)
{
    switch (kernel_id) {
#define X(name, check, weight, struct_name, bindings, units, ...)                                  \
    case KERNEL_##name: {                                                                          \
        const struct struct_name *p = params;                                                      \
        return (marlin_units){UNITS_##units};                                                      \
    }
        MARLIN_KERNELS(X)
#undef X
    }
    return (marlin_units){{0, 0, 0}};
}
