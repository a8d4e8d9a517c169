/* kernel_list.h: every kernel, one row each: ids, tables, declarations, checks and Metal launches
 * follow from it, in C and in Metal; Python is tested against it. One row a line, in columns: tests
 * read it.
 *
 * X(name, check, weight, params, bindings, units, axes, flags, threads, x, y)
 *
 *   name      <op>_<weight kind>, the name of its Metal function and of its CPU functions
 *   check     what a record must hold: check_<check>() of kernel_checks.c
 *   weight    the kind of weight that it reads (block_types.h), or none
 *   params    its struct in params.h
 *   bindings  how many, in the order of marlin/device/ops.py
 *   units     how its work is counted on three axes: UNITS_<units> of kernel_units.c
 *   axes      of these, the CPU device shares out the first; a worker takes all of the others
 *   flags     QUANTIZES: the CPU device quantizes binding 0 first (LinearParams); UNEVEN: units
 *             differ widely in cost, and it hands them out one at a time; EXPERTS: of a mixture
 *             (ExpertParams); CHOOSES: EXPERTS and QUANTIZES, row by row
 *   threads   of a threadgroup; 0: SIMDGROUPS simdgroups, as MARLIN_SIMDGROUPS says
 *   x, y      units that a threadgroup takes, so that an axis has ceil(units / x) threadgroups; a 0
 *             on y stands for ROWS, the rows that a threadgroup of matvec_* computes (common.h),
 * and the third axis has a threadgroup a unit. A kernel's own file says why these are its numbers.
 */
#ifndef MARLIN_KERNEL_LIST_H
#define MARLIN_KERNEL_LIST_H

/* clang-format off */
#define MARLIN_KERNELS(X) \
    X(embed_f32,   embed,  f32,  EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_f16,   embed,  f16,  EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_bf16,  embed,  bf16, EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_fp4,   embed,  fp4,  EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_int4,  embed,  int4, EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_int8,  embed,  int8, EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_int5,  embed,  int5, EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_int6,  embed,  int6, EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_iq4,   embed,  iq4,  EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_fp8,   embed,  fp8,  EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(embed_nf4,   embed,  nf4,  EmbedParams,  5, rows,   1, 0,         128, 1,  1) \
    X(matvec_f32,  linear, f32,  LinearParams, 6, linear, 1, 0,         256, 1,  0) \
    X(matvec_f16,  linear, f16,  LinearParams, 6, linear, 1, 0,         256, 1,  0) \
    X(matvec_bf16, linear, bf16, LinearParams, 6, linear, 1, 0,         256, 1,  0) \
    X(matvec_fp4,  linear, fp4,  LinearParams, 6, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_int4, linear, int4, LinearParams, 6, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_int8, linear, int8, LinearParams, 6, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_int5, linear, int5, LinearParams, 6, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_int6, linear, int6, LinearParams, 6, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_iq4,  linear, iq4,  LinearParams, 6, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_fp8,  linear, fp8,  LinearParams, 6, linear, 1, 0,   0, 1,  0) \
    X(matvec_nf4,  linear, nf4,  LinearParams, 6, linear, 1, 0,   0, 1,  0) \
    X(matmul_f32,  linear, f32,  LinearParams, 6, linear, 1, 0,         128, 4, 64) \
    X(matmul_f16,  linear, f16,  LinearParams, 6, linear, 1, 0,         128, 4, 64) \
    X(matmul_bf16, linear, bf16, LinearParams, 6, linear, 1, 0,         128, 4, 64) \
    X(matmul_fp4,  linear, fp4,  LinearParams, 6, linear, 1, QUANTIZES, 128, 4, 64) \
    X(matmul_int4, linear, int4, LinearParams, 6, linear, 1, QUANTIZES, 128, 4, 64) \
    X(matmul_int8, linear, int8, LinearParams, 6, linear, 1, QUANTIZES, 128, 4, 64) \
    X(matmul_int5, linear, int5, LinearParams, 6, linear, 1, QUANTIZES, 128, 4, 64) \
    X(matmul_int6, linear, int6, LinearParams, 6, linear, 1, QUANTIZES, 128, 4, 64) \
    X(matmul_iq4,  linear, iq4,  LinearParams, 6, linear, 1, QUANTIZES, 128, 4, 64) \
    X(matmul_fp8,  linear, fp8,  LinearParams, 6, linear, 1, 0, 128, 4, 64) \
    X(matmul_nf4,  linear, nf4,  LinearParams, 6, linear, 1, 0, 128, 4, 64) \
    X(matvec_experts_f32,  experts, f32,  ExpertParams, 8, experts, 1, EXPERTS,  256, 1,  0) \
    X(matvec_experts_f16,  experts, f16,  ExpertParams, 8, experts, 1, EXPERTS,  256, 1,  0) \
    X(matvec_experts_bf16, experts, bf16, ExpertParams, 8, experts, 1, EXPERTS,  256, 1,  0) \
    X(matvec_experts_fp4,  experts, fp4,  ExpertParams, 8, experts, 1, CHOOSES,    0, 1,  0) \
    X(matvec_experts_int4, experts, int4, ExpertParams, 8, experts, 1, CHOOSES,    0, 1,  0) \
    X(matvec_experts_int8, experts, int8, ExpertParams, 8, experts, 1, CHOOSES,    0, 1,  0) \
    X(matvec_experts_int5, experts, int5, ExpertParams, 8, experts, 1, CHOOSES,    0, 1,  0) \
    X(matvec_experts_int6, experts, int6, ExpertParams, 8, experts, 1, CHOOSES,    0, 1,  0) \
    X(matvec_experts_iq4,  experts, iq4,  ExpertParams, 8, experts, 1, CHOOSES,    0, 1,  0) \
    X(matvec_experts_fp8,  experts, fp8,  ExpertParams, 8, experts, 1, EXPERTS,    0, 1,  0) \
    X(matvec_experts_nf4,  experts, nf4,  ExpertParams, 8, experts, 1, EXPERTS,    0, 1,  0) \
    X(matmul_experts_f32,  experts, f32,  ExpertParams, 8, experts, 1, EXPERTS,  128, 4, 64) \
    X(matmul_experts_f16,  experts, f16,  ExpertParams, 8, experts, 1, EXPERTS,  128, 4, 64) \
    X(matmul_experts_bf16, experts, bf16, ExpertParams, 8, experts, 1, EXPERTS,  128, 4, 64) \
    X(matmul_experts_fp4,  experts, fp4,  ExpertParams, 8, experts, 1, CHOOSES,  128, 4, 64) \
    X(matmul_experts_int4, experts, int4, ExpertParams, 8, experts, 1, CHOOSES,  128, 4, 64) \
    X(matmul_experts_int8, experts, int8, ExpertParams, 8, experts, 1, CHOOSES,  128, 4, 64) \
    X(matmul_experts_int5, experts, int5, ExpertParams, 8, experts, 1, CHOOSES,  128, 4, 64) \
    X(matmul_experts_int6, experts, int6, ExpertParams, 8, experts, 1, CHOOSES,  128, 4, 64) \
    X(matmul_experts_iq4,  experts, iq4,  ExpertParams, 8, experts, 1, CHOOSES,  128, 4, 64) \
    X(matmul_experts_fp8,  experts, fp8,  ExpertParams, 8, experts, 1, EXPERTS,  128, 4, 64) \
    X(matmul_experts_nf4,  experts, nf4,  ExpertParams, 8, experts, 1, EXPERTS,  128, 4, 64) \
    X(matvec_fused_fp4,  fused, fp4,  FusedParams, 11, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_fused_int4, fused, int4, FusedParams, 11, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_fused_int8, fused, int8, FusedParams, 11, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_fused_int5, fused, int5, FusedParams, 11, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_fused_int6, fused, int6, FusedParams, 11, linear, 1, QUANTIZES,   0, 1,  0) \
    X(matvec_fused_iq4,  fused, iq4,  FusedParams, 11, linear, 1, QUANTIZES,   0, 1,  0) \
    X(route,           route,           none, RouteParams,   4, rows,       1, 0,  32, 1, 1) \
    X(sort_experts,    sort_experts,    none, SortParams,    3, once,       1, 0, 256, 1, 1) \
    X(combine_experts, combine_experts, none, CombineParams, 3, row_pieces, 2, 0, 256, 1, 1) \
    X(rms_norm,      rms_norm,      none, RmsNormParams,   4, row_parts,    2, 0, 256, 1, 8) \
    X(layer_norm,    layer_norm,    none, LayerNormParams, 5, rows,         1, 0, 256, 1, 1) \
    X(rope_table,    rope_table,    none, RopeTableParams, 3, rows,         1, 0,  64, 1, 1) \
    X(rope_kv_write, rope_kv_write, none, RopeKvParams,   10, row_heads,    2, 0, 128, 1, 4) \
    X(silu_mul,      gated_mul,     none, RowsParams,      3, row_pieces,   1, 0, 256, 1, 1) \
    X(gelu_mul,      gated_mul,     none, RowsParams,      3, row_pieces,   1, 0, 256, 1, 1) \
    X(swiglu_mul,    gated_mul,     none, RowsParams,      3, row_pieces,   1, 0, 256, 1, 1) \
    X(sigmoid_mul,   gated_mul,     none, RowsParams,      3, row_pieces,   1, 0, 256, 1, 1) \
    X(scale_rows,    scale_rows,    none, ScaleParams,     2, row_pieces,   1, 0, 256, 1, 1) \
    X(gelu,          gelu,          none, RowsParams,      2, row_pieces,   1, 0, 256, 1, 1) \
    X(gather_rows,   gather_rows,   none, RowsParams,      3, rows,         1, 0, 256, 1, 1) \
    X(attention,       attention,       none, AttentionParams, 7, kv_heads, 2, UNEVEN, 256, 1, 1) \
    X(attention_split, attention_split, none, AttentionParams, 8, splits,   3, UNEVEN, 256, 1, 1) \
    X(attention_combine, attention_combine, none, AttentionParams, 7, merges, 1, 0, 128, 1, 1) \
    X(latent_write,  latent_write,  none, LatentParams,   9, latent_heads, 2, 0,   128, 1, 4) \
    X(causal_conv,   causal_conv,   none, ConvParams,      7, channels, 2, 0,      256, 1, 1) \
    X(delta_rule,    delta_rule,    none, DeltaParams,     9, value_pieces, 2, UNEVEN, 128, 1, 1) \
    X(take_columns,  take_columns,  none, ColumnsParams,   2, rows,     1, 0,      256, 1, 1) \
    X(mask_logits,   mask_logits,   none, SampleParams,    3, rows,         1, 0, 256, 1, 1) \
    X(penalize,      penalize,      none, SampleParams,    4, rows,         1, 0, 256, 1, 1) \
    X(sample,        sample,        none, SampleParams,    3, rows,         1, 0, 512, 1, 1) \
    X(repack,        repack,        none, RepackParams,    4, repack_tiles, 1, 0, 256, 1, 1) \
    X(probe_read,    probe_read,    none, ProbeParams,     2, probes,       1, 0, 256, 1, 1) \
    X(probe_dot,     probe_dot,     none, ProbeParams,     2, probes,       1, 0, 256, 1, 1)
/* clang-format on */

/* SIMDGROUPS for a packed matrix of n rows: four once its tiles alone keep a large GPU busy. */
#define MARLIN_SIMDGROUPS(n) ((n) < 8192 ? 8 : 4)

#endif
