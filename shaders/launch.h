/* launch.h: how many threads a kernel's threadgroup has, and what share of the recorded grid it
 * takes.
 *
 * X(kernel, threads, x, y, z): a threadgroup of `threads` threads computes x * y * z units of the
 * grid that ops.py records, so that an axis has ceil(grid / units) threadgroups. A 0 on y stands
 * for ROWS, the rows that one threadgroup of matvec_* computes (common.h), 0 threads for SIMDGROUPS
 * simdgroups. One X(...) a line: tests read this file with regular expressions. A kernel's own file
 * says why its numbers are these. */
#ifndef MARLIN_LAUNCH_H
#define MARLIN_LAUNCH_H

/* clang-format off */
#define MARLIN_LAUNCHES(X) \
    X(embed_f32, 128, 1, 1, 1) \
    X(embed_f16, 128, 1, 1, 1) \
    X(embed_bf16, 128, 1, 1, 1) \
    X(embed_int8, 128, 1, 1, 1) \
    X(embed_int4, 128, 1, 1, 1) \
    X(embed_fp4, 128, 1, 1, 1) \
    X(matvec_f32, 256, 1, 0, 1) \
    X(matvec_f16, 256, 1, 0, 1) \
    X(matvec_bf16, 256, 1, 0, 1) \
    X(matvec_int8, 0, 1, 0, 1) \
    X(matvec_int4, 0, 1, 0, 1) \
    X(matvec_fp4, 0, 1, 0, 1) \
    X(matmul_f32, 128, 4, 64, 1) \
    X(matmul_f16, 128, 4, 64, 1) \
    X(matmul_bf16, 128, 4, 64, 1) \
    X(matmul_int8, 128, 4, 64, 1) \
    X(matmul_int4, 128, 4, 64, 1) \
    X(matmul_fp4, 128, 4, 64, 1) \
    X(rms_norm, 256, 1, 8, 1) \
    X(rope_table, 64, 1, 1, 1) \
    X(rope_kv_write, 128, 1, 4, 1) \
    X(silu_mul, 256, 1, 1, 1) \
    X(gather_rows, 256, 1, 1, 1) \
    X(attention, 128, 1, 1, 1) \
    X(attention_split, 128, 1, 1, 1) \
    X(attention_combine, 128, 1, 1, 1) \
    X(penalize, 256, 1, 1, 1) \
    X(sample, 512, 1, 1, 1) \
    X(repack, 256, 1, 1, 1) \
    X(probe_read, 256, 1, 1, 1) \
    X(probe_dot, 256, 1, 1, 1)
/* clang-format on */

/* SIMDGROUPS for a packed matrix of n rows: four once its tiles alone keep a large GPU busy. */
#define MARLIN_SIMDGROUPS(n) ((n) < 8192 ? 8 : 4)

#endif
