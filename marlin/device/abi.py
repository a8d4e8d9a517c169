"""metal_shim/marlin.h and shaders/params.h for Python: record layouts, constants, and the loaded
library.

Owns the ctypes signatures and the numpy dtypes. Knows nothing of what kernels compute.
"""

import ctypes

import numpy as np

from marlin.device.library import library_path as library_path

ABI_VERSION = 10
MAX_BINDINGS = 12
MAX_PARAM_BYTES = 80
MAX_VARS = 8

OK = 0
ENOMEM = -2
ENODEV = -6
READ, WRITE = 1, 2

KV_SPLIT = 256
QUERY_TILE = 16
PROBE_BYTES = 1 << 20
PROBE_DOTS = 1 << 16

DEVICE_KINDS = ("cpu", "metal")
# Instruction sets of the CPU device, of every kind of machine, best first.
INSTRUCTION_SETS = ("avx512", "avx2", "i8mm", "neon", "scalar")
WEIGHT_KINDS = ("f32", "f16", "bf16", "fp4", "int4", "int8", "int5", "int6", "iq4", "fp8", "nf4")
# Those that matvec_fused_* are of: the CPU device multiplies their codes as integers.
FUSED_KINDS = ("fp4", "int4", "int8", "int5", "int6", "iq4")
# Every kernel by name, in the order of shaders/kernel_list.h.
KERNELS = (
    *(f"{op}_{kind}" for op in ("embed", "matvec", "matmul") for kind in WEIGHT_KINDS),
    *(f"{op}_experts_{kind}" for op in ("matvec", "matmul") for kind in WEIGHT_KINDS),
    *(f"matvec_fused_{kind}" for kind in FUSED_KINDS),
    *("route", "sort_experts", "combine_experts"),
    *("rms_norm", "layer_norm", "rope_table", "rope_kv_write", "silu_mul", "gelu_mul"),
    *("swiglu_mul", "sigmoid_mul", "scale_rows", "gelu", "gather_rows"),
    *("attention", "attention_split", "attention_combine", "latent_write", "causal_conv"),
    *("delta_rule", "take_columns"),
    *("mask_logits", "penalize", "sample", "repack", "probe_read", "probe_dot"),
)

MAX_EXPERTS, MAX_SLOTS = 1024, 128
MAX_TAPS, MAX_KEY_DIM = 8, 128
GATE_SOFTMAX, GATE_SIGMOID, GATE_CHOSEN = range(3)
GATES = {"softmax": GATE_SOFTMAX, "sigmoid": GATE_SIGMOID, "chosen": GATE_CHOSEN}
ROUTE_RANKS, ROUTE_FACTORS = 1, 2
ROUTE_BIASES = {"ranks": ROUTE_RANKS, "factors": ROUTE_FACTORS}
SCALE_F32 = 1
SCALE_BLOCK = 8
SCALE_EXP = 16
SCALE_ROW = 256
WEIGHT_BIAS = 2
OUTPUT_BIAS = 4
NORMED, GATED, RESIDUAL = 32, 64, 128
SILU, GELU = 0, 1

BINDING = np.dtype(
    [("buffer", "i4"), ("access", "i4"), ("offset", "i8"), ("bytes", "i8")], align=True
)
DISPATCH = np.dtype(
    [
        ("kernel", "i4"),
        ("barrier", "i4"),
        ("num_bindings", "i4"),
        ("param_bytes", "i4"),
        ("params", "u1", MAX_PARAM_BYTES),
        ("bindings", BINDING, MAX_BINDINGS),
    ],
    align=True,
)


def _params(*groups):
    """A struct of params.h; each group is a type and the fields that have it, in order."""
    return np.dtype([(name, kind) for kind, *names in map(str.split, groups) for name in names])


PARAMS = {
    "EmbedParams": _params("i4 rows_var", "u4 vocab_size dim group_size flags", "f4 scale"),
    "LinearParams": _params("i4 rows_var", "u4 n k group_size flags"),
    "FusedParams": _params(
        "i4 rows_var", "u4 n k group_size flags activation", "f4 eps residual_scale"
    ),
    "ExpertParams": _params("i4 rows_var", "u4 n k group_size flags num_experts num_slots x_slots"),
    "RouteParams": _params(
        "i4 rows_var",
        "u4 num_experts num_slots gating normalizes bias num_groups kept_groups",
        "f4 scale epsilon",
    ),
    "SortParams": _params("i4 rows_var", "u4 num_experts num_slots"),
    "CombineParams": _params("i4 rows_var", "u4 dim num_slots adds"),
    "RmsNormParams": _params(
        "i4 rows_var", "u4 rows_per_var dim has_delta adds", "f4 eps delta_scale"
    ),
    "LayerNormParams": _params("i4 rows_var", "u4 dim has_delta", "f4 eps"),
    "RowsParams": _params("i4 rows_var", "u4 dim"),
    "ScaleParams": _params("i4 rows_var", "u4 dim", "f4 scale cap"),
    "RopeTableParams": _params("i4 rows_var", "u4 half_dim", "f4 scale"),
    "RopeKvParams": _params(
        "i4 rows_var",
        "u4 num_heads num_kv_heads head_dim block_size num_blocks rotary_dim interleaved has_norms",
        "f4 eps",
        "u4 kv_f32",
    ),
    "AttentionParams": _params(
        "i4 tiles_var splits_var",
        "u4 num_heads num_kv_heads head_dim block_size num_blocks table_stride window max_splits",
        "f4 scale softcap position_scale",
        "u4 scale_tokens has_sinks kv_f32 latent_dim",
    ),
    "LatentParams": _params(
        "i4 rows_var",
        "u4 num_heads nope_dim rope_dim rank row_dim block_size num_blocks interleaved kv_f32",
        "f4 eps",
    ),
    "ConvParams": _params(
        "i4 sequences_var", "u4 dim taps row_floats num_slots gated silu has_bias"
    ),
    "DeltaParams": _params(
        "i4 sequences_var", "u4 key_heads value_heads key_dim value_dim num_slots tiled is_log"
    ),
    "ColumnsParams": _params(
        "i4 rows_var", "u4 x_floats y_floats pieces stride start width y_start"
    ),
    "SampleParams": _params("i4 rows_var", "u4 vocab_size"),
    "ProbeParams": _params("u4 num_units"),
    "RepackParams": _params("u4 type n k permute_heads", "f4 factor"),
    "SampleRow": _params(
        "f4 temperature top_p min_p",
        "u4 top_k seed_low seed_high position",
        "f4 frequency_penalty presence_penalty repetition_penalty",
    ),
    "PenaltyEntry": _params("i4 token_id num_outputs", "f4 bias"),
}


class DeviceOptions(ctypes.Structure):
    _fields_ = [("num_threads", ctypes.c_int32), ("isa", ctypes.c_char * 16)]


class DeviceInfo(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 64),
        ("isa", ctypes.c_char * 16),
        ("num_threads", ctypes.c_int32),
        ("page_bytes", ctypes.c_int32),
        ("memory_bytes", ctypes.c_int64),
        ("max_buffer_bytes", ctypes.c_int64),
        ("allocated_bytes", ctypes.c_int64),
        ("mapped_bytes", ctypes.c_int64),
        ("note", ctypes.c_char * 256),
    ]


_POINTER, _BYTES = ctypes.c_void_p, ctypes.c_int64
_OUT, INT32S = ctypes.POINTER(_POINTER), ctypes.POINTER(ctypes.c_int32)
_SIGNATURES = {
    "marlin_abi_version": (ctypes.c_int, []),
    "marlin_last_error": (ctypes.c_char_p, []),
    "marlin_device_open": (ctypes.c_int, [ctypes.POINTER(DeviceOptions), _OUT]),
    "marlin_device_close": (None, [_POINTER]),
    "marlin_device_describe": (ctypes.c_int, [_POINTER, ctypes.POINTER(DeviceInfo)]),
    "marlin_device_keep_resident": (ctypes.c_int, [_POINTER]),
    "marlin_buffer_create": (ctypes.c_int, [_POINTER, _BYTES]),
    "marlin_buffer_map": (ctypes.c_int, [_POINTER, ctypes.c_char_p, _BYTES, _BYTES]),
    "marlin_buffer_wrap": (ctypes.c_int, [_POINTER, _POINTER, _BYTES]),
    "marlin_buffer_contents": (_POINTER, [_POINTER, ctypes.c_int]),
    "marlin_buffer_release": (ctypes.c_int, [_POINTER, ctypes.c_int]),
    "marlin_kernel_find": (ctypes.c_int, [ctypes.c_char_p]),
    "marlin_program_create": (
        ctypes.c_int,
        [_POINTER, _POINTER, ctypes.c_int32, _OUT],
    ),
    "marlin_program_destroy": (None, [_POINTER]),
    "marlin_program_submit": (
        ctypes.c_int,
        [_POINTER, ctypes.c_int32, ctypes.c_int32, INT32S, ctypes.c_int32],
    ),
    "marlin_program_wait": (ctypes.c_int, [_POINTER]),
    "marlin_vocabulary_create": (
        ctypes.c_int,
        [_POINTER, _POINTER, ctypes.c_int32, INT32S, ctypes.c_int32, _OUT],
    ),
    "marlin_vocabulary_destroy": (None, [_POINTER]),
    "marlin_grammar_create": (
        ctypes.c_int,
        [_POINTER, _POINTER, ctypes.c_int32, ctypes.c_int32, _OUT],
    ),
    "marlin_grammar_destroy": (None, [_POINTER]),
    "marlin_grammar_advance": (
        ctypes.c_int32,
        [_POINTER, ctypes.c_int32, _POINTER, _BYTES],
    ),
    "marlin_grammar_accepts": (ctypes.c_int, [_POINTER, ctypes.c_int32]),
    "marlin_grammar_mask": (ctypes.c_int, [_POINTER, ctypes.c_int32, ctypes.c_int32, _POINTER]),
    "marlin_grammar_reset": (None, [_POINTER]),
}


def load_library(path):
    """Load a native library and declare its functions.

    Raises:
        OSError: it is missing or cannot be loaded.
        AttributeError: it lacks a function of marlin.h.
    """
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
