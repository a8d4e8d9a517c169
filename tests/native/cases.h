/* cases.h: every kernel's test cases, and the checks made with them. */
#ifndef MARLIN_TEST_CASES_H
#define MARLIN_TEST_CASES_H

#include "harness.h"

typedef struct {
    test_case *(*make)(int variant);
    int num_variants;
} case_family;

extern const case_family case_families[];
extern const int num_case_families;

typedef struct {
    const char *weight; /* "int4", "f16", ... as in the kernels' names */
    int n, k, group;    /* group: 0 for dense weights */
    uint32_t flags;
} weight_shape;

/* Weights at bindings 1 to 3, where embed and the linear kernels have them. */
void add_weight(test_case *c, marlin_dispatch *record, const weight_shape *w);
/* y = x W^T with random weights: the new record. x and y are blocks. */
marlin_dispatch *add_linear(test_case *c, const weight_shape *w, int rows_var, int rows, int x,
                            int y);

/* Variants of a maker are numbered from 0; the counts are in case_families. */
test_case *make_linear(int variant);
test_case *make_fused(int variant);
test_case *make_embed(int variant);
test_case *make_rms_norm(int variant);
test_case *make_layer_norm(int variant);
test_case *make_gelu(int variant);
test_case *make_rows(int variant);
test_case *make_scale(int variant);
test_case *make_repack(int variant);
test_case *make_probe(int variant);
test_case *make_rope(int variant);
test_case *make_attention(int variant);
test_case *make_mask_logits(int variant);
test_case *make_penalize(int variant);
test_case *make_sample(int variant);
test_case *make_experts(int variant);
test_case *make_route(int variant);
test_case *make_sort_experts(int variant);
test_case *make_combine_experts(int variant);
test_case *make_causal_conv(int variant);
test_case *make_delta_rule(int variant);
test_case *make_latent_write(int variant);
test_case *make_take_columns(int variant);
test_case *make_layer(int variant);

/* Variants of make_attention() from here on are attention_split and attention_combine. */
#define FIRST_SPLIT_ATTENTION 7

void check_kernels(void);
void check_replays(void);
void check_record_refusals(void);
void check_parameter_refusals(void);
void check_submit_refusals(void);
void check_index_errors(void);
void check_devices(void);
void check_grammars(void);
void check_shortages(void);
/* scratch_file: a path that may be written and is removed again. */
void check_buffers(const char *scratch_file);

#endif
