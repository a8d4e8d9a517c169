// experts.h: what sort_experts left, as the kernels of experts' matrices read it. A choice is a
// token's row * num_slots + the slot; `order` has them by expert, `groups` an expert and where its
// choices begin and end, for each that was chosen. Knows nothing of weights.
#ifndef MARLIN_EXPERTS_H
#define MARLIN_EXPERTS_H

#include "common.h"

// Rows of x and y that lie one after the other, from `first`.
struct Neighbours {
    uint first;
};

// Rows that chose one expert: choices [0, count) of `order`. slots_a_row: choices that read one row
// of x.
struct Chosen {
    device const int32_t *order;
    uint count;
    uint slots_a_row;
    uint expert;
};

inline uint x_row(thread const Neighbours &rows, uint r) { return rows.first + r; }
inline uint y_row(thread const Neighbours &rows, uint r) { return rows.first + r; }
inline uint x_row(thread const Chosen &rows, uint r)
{
    return uint(rows.order[r]) / rows.slots_a_row;
}
inline uint y_row(thread const Chosen &rows, uint r) { return uint(rows.order[r]); }

// The rows of a group from `first` on, at most `most`; a group that ends where it begins, or
// before, has none. False: there are none, or the group names what is not there, which is noted.
// The same in all threads of a threadgroup.
inline bool find_chosen(thread Chosen &rows, device const int32_t *order,
                        device const int32_t *groups, uint group, uint first, uint most,
                        constant ExpertParams &p, constant int32_t *vars,
                        device atomic_uint *status, constant MarlinCall &call)
{
    const uint choices = uint(vars[p.rows_var]) * p.num_slots;
    const uint expert = uint(groups[3 * group]);
    const int32_t begin = groups[3 * group + 1], end = groups[3 * group + 2];
    if (begin >= end || first >= uint(end - begin)) return false;
    bool is_sound = expert < p.num_experts && begin >= 0 && uint(end) <= choices;
    rows.order = order + (is_sound ? uint(begin) + first : 0);
    rows.count = is_sound ? min(uint(end - begin) - first, most) : 0;
    rows.slots_a_row = p.num_slots / p.x_slots;
    rows.expert = expert;
    for (uint r = 0; r < rows.count; r++) is_sound &= uint(rows.order[r]) < choices;
    if (!is_sound) fail(status, call);
    return is_sound;
}

#endif
