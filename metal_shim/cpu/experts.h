/* experts.h: what sort_experts left, as expert kernels of any instruction set read it: the choices
 * of a step in the order of their experts, and each chosen expert's run of them. */
#ifndef MARLIN_EXPERTS_H
#define MARLIN_EXPERTS_H

#include "cpu/cpu.h"

typedef struct {
    const int32_t *order;  /* [choices]: a token's row * num_slots + the slot */
    const int32_t *groups; /* [count, 3]: an expert, where its choices begin and end in order */
    int64_t count, choices, num_experts;
} expert_groups;

typedef struct {
    int64_t expert, rows;
    const int32_t *order; /* [rows] */
} expert_group;

static inline expert_groups groups_of(const marlin_call *call)
{
    const struct ExpertParams *p = call->params;
    int64_t rows = call->vars[p->rows_var];
    return (expert_groups){
        .order = (const int32_t *)call->at[6],
        .groups = (const int32_t *)call->at[7],
        .count = marlin_num_groups(rows, p->num_slots, p->num_experts),
        .choices = rows * p->num_slots,
        .num_experts = p->num_experts,
    };
}

/* Group g; one that ends where it begins, or before, is empty. Returns 0 when it names what is not
 * there. */
static inline int load_expert_group(const expert_groups *groups, int64_t g, expert_group *out)
{
    int32_t expert = groups->groups[3 * g], begin = groups->groups[3 * g + 1],
            end = groups->groups[3 * g + 2];
    *out = (expert_group){0};
    if (begin >= end) return 1;
    if (expert < 0 || expert >= groups->num_experts || begin < 0 || end > groups->choices) return 0;
    *out = (expert_group){expert, end - begin, groups->order + begin};
    for (int32_t i = 0; i < end - begin; i++)
        if (out->order[i] < 0 || out->order[i] >= groups->choices) return 0;
    return 1;
}

#endif
