/* kernels_table.c: one instruction set's kernels by id. Compiled once for each set. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

#define MARLIN_TEXT2(name) #name
#define MARLIN_TEXT(name) MARLIN_TEXT2(name)

KERNEL(embed_f32);
KERNEL(embed_f16);
KERNEL(embed_bf16);
KERNEL(embed_int8);
KERNEL(embed_int4);
KERNEL(embed_fp4);
KERNEL(linear_f32);
KERNEL(linear_f16);
KERNEL(linear_bf16);
KERNEL(linear_int8);
KERNEL(linear_int4);
KERNEL(linear_fp4);
KERNEL(rms_norm);
KERNEL(rope_table);
KERNEL(rope_kv_write);
KERNEL(silu_mul);
KERNEL(gather_rows);
KERNEL(attention);
KERNEL(attention_split);
KERNEL(attention_combine);
KERNEL(penalize);
KERNEL(sample);
KERNEL(repack);
KERNEL(probe_read);
KERNEL(probe_dot);

void ISA(quantize_rows)(const float *x, int64_t k, int64_t begin, int64_t end, uint8_t *prepared,
                        int64_t rows);

extern const marlin_isa ISA(marlin_isa);

#define ENTRY(name) [KERNEL_##name] = ISA(name)
/* One and many rows are the same function here; a GPU has two kernels for them. */
#define LINEAR(weight)                                                                             \
    [KERNEL_matvec_##weight] = ISA(linear_##weight), [KERNEL_matmul_##weight] = ISA(linear_##weight)

const marlin_isa ISA(marlin_isa) = {
    .name = MARLIN_TEXT(MARLIN_ISA_SUFFIX),
    .run =
        {
            ENTRY(embed_f32),
            ENTRY(embed_f16),
            ENTRY(embed_bf16),
            ENTRY(embed_int8),
            ENTRY(embed_int4),
            ENTRY(embed_fp4),
            LINEAR(f32),
            LINEAR(f16),
            LINEAR(bf16),
            LINEAR(int8),
            LINEAR(int4),
            LINEAR(fp4),
            ENTRY(rms_norm),
            ENTRY(rope_table),
            ENTRY(rope_kv_write),
            ENTRY(silu_mul),
            ENTRY(gather_rows),
            ENTRY(attention),
            ENTRY(attention_split),
            ENTRY(attention_combine),
            ENTRY(penalize),
            ENTRY(sample),
            ENTRY(repack),
            ENTRY(probe_read),
            ENTRY(probe_dot),
        },
    .quantize_rows = ISA(quantize_rows),
};
