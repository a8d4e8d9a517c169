/* kernels_probe.c: what the machine can do at best: the denominators of `metal-marlin bench`. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

/* out[unit] = a sum over one piece of x, so that every byte is read.
 * x uint8 [any], in pieces of PROBE_BYTES; out int32 [pieces] */
KERNEL(probe_read)
{
    (void)scratch;
    for (int64_t unit = begin; unit < end; unit++) {
        const uint8_t *x = call->at[0] + unit * MARLIN_PROBE_BYTES;
        uint64_t sums[8] = {0};
        for (int64_t i = 0; i < MARLIN_PROBE_BYTES; i += 64)
            for (int j = 0; j < 8; j++) {
                uint64_t word;
                memcpy(&word, x + i + 8 * j, 8);
                sums[j] += word;
            }
        uint64_t sum = 0;
        for (int j = 0; j < 8; j++) sum += sums[j];
        ((int32_t *)call->at[1])[unit] = (int32_t)sum;
    }
    return MARLIN_OK;
}

/* MARLIN_PROBE_DOTS dot instructions a unit, on registers alone: 8 * V_LANES operations each.
 * out int32 [units], so that the work is not dropped. */
KERNEL(probe_dot)
{
    (void)scratch;
    for (int64_t unit = begin; unit < end; unit++) {
        vi sums[8], x = vi_set1(0x01020304 + (int32_t)unit), w = vi_set1(0x05060708);
        for (int j = 0; j < 8; j++) sums[j] = vi_set1(j);
        for (int64_t i = 0; i < MARLIN_PROBE_DOTS; i += 8) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) sums[j] = vi_dot4(sums[j], w, x);
        }
        float lanes[V_LANES], total = 0.0f;
        for (int j = 0; j < 8; j++) {
            vf_store(lanes, vf_from_i32(sums[j]));
            total += lanes[0];
        }
        ((float *)call->at[1])[unit] = total;
    }
    return MARLIN_OK;
}
