/* params.h: the parameter structs of every kernel, shared by C and Metal.
 *
 * Only 4-byte fields, in the order that marlin/device/abi.py repeats as numpy dtypes (a test parses
 * this file against them). `*_var` fields are indices into the step's `vars`, which hold what
 * changes from step to step. Shapes are in the kernels' heads; nothing else belongs here. */
#ifndef MARLIN_PARAMS_H
#define MARLIN_PARAMS_H

#ifndef __METAL_VERSION__
#include <stdint.h>
#endif

/* Rows of a packed weight that are interleaved (docs/formats.md). */
#define MARLIN_ROW_TILE 16
/* Activations are quantized to int8 in groups of this many along K. */
#define MARLIN_ACT_GROUP 32
/* Key-cache tokens stored side by side: K is [block, kv_head, block_size / 16, head_dim, 16]. */
#define MARLIN_KEY_TILE 16
/* KV tokens of one softmax partial. Fixed and absolute, so that a result does not depend on how a
 * context was computed: alone, in a batch, in chunks or split over threads. */
#define MARLIN_KV_SPLIT 256
/* Query rows of one sequence that an attention tile may hold. */
#define MARLIN_QUERY_TILE 16

/* Flags of packed and dense weights. */
#define MARLIN_SCALE_F32 1u   /* scales and biases are float32, else float16 */
#define MARLIN_WEIGHT_BIAS 2u /* a bias a group is added to the dequantized weight */
#define MARLIN_OUTPUT_BIAS 4u /* y = x W^T + b */
#define MARLIN_SCALE_BLOCK 8u /* scales and biases are int8 numbers, times a float16 of a block */
#define MARLIN_SCALE_EXP 16u  /* scales are bytes e of 2^(e - 127), 255 of no number; no biases */
#define MARLIN_SCALE_ROW 256u /* scales and biases are int8 numbers, times a bfloat16 of a row */
/* Of matvec_fused_*: what matvec_fused.h says of each. */
#define MARLIN_NORMED 32u
#define MARLIN_GATED 64u
#define MARLIN_RESIDUAL 128u
/* Activations of a gate. */
#define MARLIN_SILU 0u
#define MARLIN_GELU 1u

#define MARLIN_SCALE_FORMS                                                                         \
    (MARLIN_SCALE_F32 | MARLIN_SCALE_BLOCK | MARLIN_SCALE_EXP | MARLIN_SCALE_ROW)

/* Columns of a block, and the bytes of its sixteen float16, or of the sixteen bfloat16 of a tile,
 * which lie before their int8 numbers. */
#define MARLIN_BLOCK_COLUMNS 256
#define MARLIN_BLOCK_STEP_BYTES 32
/* Bytes of `count` scales, or biases, of whole tiles of k columns. */
#define MARLIN_SCALE_BYTES(flags, group, k, count)                                                 \
    ((flags) & MARLIN_SCALE_BLOCK ? (count) + (count) * (group) / (MARLIN_BLOCK_COLUMNS / 2)       \
     : (flags) & MARLIN_SCALE_ROW ? (count) + (count) * (group) / ((k) / 2)                        \
     : (flags) & MARLIN_SCALE_EXP ? (count)                                                        \
                                  : (count) * ((flags) & MARLIN_SCALE_F32 ? 4 : 2))

/* What a router's logits become: shares of all experts, each a number of its own, or shares of the
 * chosen ones. */
#define MARLIN_GATE_SOFTMAX 0u
#define MARLIN_GATE_SIGMOID 1u
#define MARLIN_GATE_CHOSEN 2u
/* What a bias of experts is for: nothing, ranks alone, to which it is added, or weights. */
#define MARLIN_ROUTE_RANKS 1u
#define MARLIN_ROUTE_FACTORS 2u
#define MARLIN_MAX_EXPERTS 1024
#define MARLIN_MAX_SLOTS 128
/* Floats of a row that a unit of silu_mul, its likes and combine_experts takes. */
#define MARLIN_PIECE_FLOATS 1024

/* Taps of a convolution; channels of it that a unit takes. */
#define MARLIN_MAX_TAPS 8
#define MARLIN_CONV_CHANNELS 256
/* Floats of a key of the delta rule, at most; values of a head that a unit takes. */
#define MARLIN_MAX_KEY_DIM 128
#define MARLIN_DELTA_COLUMNS 32

/* Bytes that a unit of probe_read reads, and dot instructions that a unit of probe_dot runs. */
#define MARLIN_PROBE_BYTES 1048576
#define MARLIN_PROBE_DOTS 65536

struct EmbedParams {
    int32_t rows_var;
    uint32_t vocab_size;
    uint32_t dim;
    uint32_t group_size;
    uint32_t flags;
    float scale; /* of every row; 1 changes no bit */
};

struct LinearParams {
    int32_t rows_var;
    uint32_t n;
    uint32_t k;
    uint32_t group_size;
    uint32_t flags;
};

/* Begins as LinearParams does. */
struct FusedParams {
    int32_t rows_var;
    uint32_t n;
    uint32_t k;
    uint32_t group_size;
    uint32_t flags;
    uint32_t activation;  /* MARLIN_SILU, MARLIN_GELU */
    float eps;            /* of the norm that x lacks */
    float residual_scale; /* what is added to the residual is multiplied by this */
};

/* Begins as LinearParams does. */
struct ExpertParams {
    int32_t rows_var;
    uint32_t n; /* of one expert */
    uint32_t k;
    uint32_t group_size;
    uint32_t flags;
    uint32_t num_experts;
    uint32_t num_slots; /* experts that a token chooses */
    uint32_t x_slots;   /* rows of x a token: 1, or num_slots */
};

struct RouteParams {
    int32_t rows_var;
    uint32_t num_experts;
    uint32_t num_slots;
    uint32_t gating; /* MARLIN_GATE_... */
    uint32_t normalizes;
    uint32_t bias;       /* MARLIN_ROUTE_... */
    uint32_t num_groups; /* 1: all experts may be chosen */
    uint32_t kept_groups;
    float scale;
    float epsilon; /* added to the sum that normalizes */
};

struct SortParams {
    int32_t rows_var;
    uint32_t num_experts;
    uint32_t num_slots;
};

struct CombineParams {
    int32_t rows_var;
    uint32_t dim;
    uint32_t num_slots;
    uint32_t adds; /* to what y holds, instead of replacing it */
};

struct RmsNormParams {
    int32_t rows_var;
    uint32_t rows_per_var; /* rows = vars[rows_var] * rows_per_var: 1, or the heads of a q/k norm */
    uint32_t dim;
    uint32_t has_delta;
    uint32_t adds; /* y += the norm, else y = the norm */
    float eps;
    float delta_scale; /* what the delta is multiplied by; 1 changes no bit */
};

struct LayerNormParams {
    int32_t rows_var;
    uint32_t dim;
    uint32_t has_delta;
    float eps;
};

struct RowsParams {
    int32_t rows_var;
    uint32_t dim;
};

struct ScaleParams {
    int32_t rows_var;
    uint32_t dim;
    float scale;
    float cap; /* y = cap * tanh(x * scale / cap); 0: no cap */
};

struct RopeTableParams {
    int32_t rows_var;
    uint32_t half_dim;
    float scale; /* YaRN's attention factor; 1 otherwise */
};

struct RopeKvParams {
    int32_t rows_var;
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t block_size;
    uint32_t num_blocks;
    uint32_t rotary_dim;  /* of a head's first dimensions, those that turn; 0: none */
    uint32_t interleaved; /* pairs are (2i, 2i + 1), else (i, i + rotary_dim / 2) */
    uint32_t has_norms;   /* heads of q and k are normed before they turn, as rms_norm does it */
    float eps;
    uint32_t kv_f32; /* keys and values are kept as float32, else float16 */
};

struct AttentionParams {
    int32_t tiles_var;
    int32_t splits_var; /* attention_split and attention_combine; ignored by attention */
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t block_size;
    uint32_t num_blocks;
    uint32_t table_stride; /* block ids a sequence */
    uint32_t window;       /* tokens a query sees at most; 0: all before it */
    uint32_t max_splits;
    float scale;
    float softcap;        /* scores become softcap * tanh(score / softcap); 0: no cap */
    float position_scale; /* queries are multiplied by 1 + this * ln(1 + position / scale_tokens),
                             the quotient a whole number; 0: they are not */
    uint32_t scale_tokens;
    uint32_t has_sinks;
    uint32_t kv_f32;     /* as RopeKvParams */
    uint32_t latent_dim; /* values are the first so many numbers of the keys, of which a token has
                            one for all heads; 0: they have a cache of their own */
};

/* Of latent attention: see kernels_rows.c. */
struct LatentParams {
    int32_t rows_var;
    uint32_t num_heads;
    uint32_t nope_dim; /* of a head's query, what does not turn, and then what does */
    uint32_t rope_dim;
    uint32_t rank;    /* numbers of a latent */
    uint32_t row_dim; /* of a row of the cache: the latent, what turns, and zeros */
    uint32_t block_size;
    uint32_t num_blocks;
    uint32_t interleaved; /* as RopeKvParams, both */
    uint32_t kv_f32;
    float eps;
};

/* Of a step's sequences, each of which has runs of rows: see kernels_state.c. */
struct ConvParams {
    int32_t sequences_var;
    uint32_t dim;        /* channels */
    uint32_t taps;       /* rows that an output is made of, its own the last */
    uint32_t row_floats; /* of x */
    uint32_t num_slots;  /* states */
    uint32_t gated; /* a row of x is three rows of dim: the first times the third is convolved, and
                       the result is multiplied by the second */
    uint32_t silu;  /* y = silu(the sum) */
    uint32_t has_bias;
};

/* As ConvParams. A head's state is a matrix [key_dim, value_dim]. */
struct DeltaParams {
    int32_t sequences_var;
    uint32_t key_heads; /* each of which value_heads / key_heads heads of values use */
    uint32_t value_heads;
    uint32_t key_dim;
    uint32_t value_dim;
    uint32_t num_slots;
    uint32_t tiled;  /* values' head j uses the keys of j % key_heads, else those of its share */
    uint32_t is_log; /* the decay is -exp of what is stored, else as it is */
};

struct ColumnsParams {
    int32_t rows_var;
    uint32_t x_floats; /* of a row */
    uint32_t y_floats;
    uint32_t pieces; /* of a row of x */
    uint32_t stride; /* floats from one to the next */
    uint32_t start;  /* where the first begins */
    uint32_t width;  /* of a piece */
    uint32_t y_start;
};

struct SampleParams {
    int32_t rows_var;
    uint32_t vocab_size;
};

struct RepackParams {
    uint32_t type; /* of a row of MARLIN_BLOCK_TYPES, its number */
    uint32_t n;
    uint32_t k;
    uint32_t permute_heads; /* heads whose rows are put back from interleaved to half-split RoPE; 0:
                               none */
    float factor;           /* of the whole matrix: multiplies every scale and bias */
};

struct ProbeParams {
    uint32_t num_units;
};

/* One row of the `sample` kernel's input. */
struct SampleRow {
    float temperature;
    float top_p;
    float min_p;
    uint32_t top_k;
    uint32_t seed_low;
    uint32_t seed_high;
    uint32_t position;
    float frequency_penalty;
    float presence_penalty;
    float repetition_penalty;
};

/* One token that `penalize` changes. */
struct PenaltyEntry {
    int32_t token_id;
    int32_t num_outputs; /* occurrences in the output; 0: in the prompt only; -1: bias only */
    float bias;
};

#endif
