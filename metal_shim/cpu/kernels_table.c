/* kernels_table.c: one instruction set's kernels by id. Compiled once for each set. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

#define MARLIN_TEXT2(name) #name
#define MARLIN_TEXT(name) MARLIN_TEXT2(name)

#define X(name, ...) KERNEL(name);
MARLIN_KERNELS(X)
#undef X

void ISA(quantize_rows)(const float *x, int64_t k, int64_t begin, int64_t end, uint8_t *prepared,
                        int64_t rows, int is_plain);

extern const marlin_isa ISA(marlin_isa);

const marlin_isa ISA(marlin_isa) = {
    .name = MARLIN_TEXT(MARLIN_ISA_SUFFIX),
    .run =
        {
#define X(name, ...) [KERNEL_##name] = ISA(name),
            MARLIN_KERNELS(X)
#undef X
        },
    .quantize_rows = ISA(quantize_rows),
};
