"""One matrix in each form that other programs store: for each the settings of config.json, the
tensors of the module, and the float32 values that they stand for.

Rows are a multiple of 8 and columns one of 32, so that a model can have such a matrix.
"""

import numpy as np
from foreign_files import (
    AWQ,
    BNB,
    FP8,
    GPTQ,
    bf16,
    bf16_values,
    bit_stream,
    config,
    ct,
    float8,
    golden,
    gptq_parts,
    mlx_affine,
    original_parts,
)

MODELOPT = {"quant_method": "modelopt"}


def _rows(stored, n=16):
    """Whole sets of eight rows of goldens that have 17."""
    return {key: part[:n] if part.ndim == 2 else part for key, part in stored.items()}


def _plain(tensors):
    return {name.removeprefix("m."): tensor for name, tensor in tensors.items()}


def _mlx_affine(bits, group_size):
    values = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    settings = {"quantization": {"group_size": group_size, "bits": bits}}
    return settings, *mlx_affine(values, bits, group_size)


def _mlx(mode, bits, group_size, name):
    stored = _rows(golden(name))
    values = stored.pop("values")
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    return {"quantization": settings}, stored, values


def _ct_zeros():
    """Four bits with zeros and two groups whose order the file says."""
    codes = np.random.default_rng(0).integers(0, 16, (32, 64)).astype(np.uint8)
    zeros, order = codes[:, :2], np.repeat([1, 0], 32)
    parts = {
        "weight_packed": bit_stream(codes, 4).view(np.int32),
        "weight_scale": bf16(np.full((32, 2), 0.01)),
        "weight_zero_point": bit_stream(zeros.T.copy(), 4).T.copy().view(np.int32),
        "weight_g_idx": order.astype(np.int32),
        "weight_shape": np.array([32, 64]),
    }
    values = codes.astype(np.float32) - zeros[:, order]
    return ct("pack-quantized"), parts, bf16_values(np.float32(0.01)) * values


def _ct_packed(bits):
    stored = _rows(golden(f"ct_pack{bits}"))
    values = stored.pop("values")
    return ct("pack-quantized", bits), stored, values


def _ct_integers():
    codes = np.random.default_rng(0).integers(-127, 128, (24, 64)).astype(np.int8)
    parts = {"weight": codes, "weight_zero_point": np.ones((24, 1), np.int8)}
    parts["weight_scale"] = bf16(np.full((24, 1), 0.01))
    values = bf16_values(np.float32(0.01)) * (codes.astype(np.float32) - 1)
    return ct("int-quantized", 8), parts, values


def _nvfp4(settings, weight, scale_2, factor):
    """ModelOpt's numbers under a program's names; the tensor's factor is left out where 1."""
    stored = _rows(golden("modelopt_nvfp4"))
    scales = ("F8_E4M3", stored["weight_scale_e4m3"])
    parts = {weight: stored["weight"], "weight_scale": scales}
    own = stored["weight_scale_2"].reshape(1)
    parts[scale_2] = np.full(1, factor, np.float32) if factor else own
    return settings, parts, stored["values"] / (own if factor else np.float32(1))


def _bitsandbytes(name):
    stored = golden(name)
    parts, values = {"weight": stored.pop("weight")}, stored.pop("values")
    for key, array in stored.items():
        key = key.replace("quant_state__bitsandbytes", "quant_state.bitsandbytes")
        parts[f"weight.{key}"] = np.atleast_1d(array)
    return config(BNB), parts, values


def _fp8(settings, scale, shape):
    weight, values = float8((24, 64))
    parts = {"weight": weight, scale: np.full(shape, 0.3, np.float32)}
    return settings, parts, values * np.float32(0.3)


def _gptq(settings, bits, less, order=None):
    tensors, values = gptq_parts(bits, less, order)
    return config(GPTQ, bits=bits, **settings), _plain(tensors), values


def _golden(settings, name):
    stored = golden(name)
    values = stored.pop("values")
    return settings, stored, values


def _original(layout, rotate=0):
    tensors, values = original_parts(layout, rotate=rotate)
    return {}, _plain(tensors), values


# {name: (function, its arguments)}.
MATRICES = {
    **{f"mlx affine {bits}": (_mlx_affine, bits, 64) for bits in (2, 3, 4, 5, 6, 8)},
    "mlx mxfp4": (_mlx, "mxfp4", 4, 32, "mlx_mxfp4"),
    "mlx nvfp4": (_mlx, "nvfp4", 4, 16, "mlx_nvfp4_global"),
    "mlx mxfp8": (_mlx, "mxfp8", 8, 32, "mlx_mxfp8"),
    "compressed-tensors 4 bits": (_ct_packed, 4),
    "compressed-tensors 8 bits": (_ct_packed, 8),
    "compressed-tensors zeros": (_ct_zeros,),
    "compressed-tensors int-quantized": (_ct_integers,),
    "compressed-tensors nvfp4": (
        *(_nvfp4, ct("nvfp4-pack-quantized"), "weight_packed", "weight_global_scale", 1),
    ),
    "compressed-tensors float-quantized": (
        *(_fp8, ct("float-quantized", 8, type="float"), "weight_scale", (24, 1)),
    ),
    "gptq": (_gptq, {}, 4, 1),
    "gptq v2, 8 bits": (_gptq, {"checkpoint_format": "gptq_v2"}, 8, 0),
    "gptq act-order": (_gptq, {"desc_act": True}, 4, 1, np.repeat([1, 0, 0, 1], 32)),
    "gptq act-order, scattered": (_golden, config(GPTQ, desc_act=True), "gptq4_desc_act_v1"),
    "awq": (_golden, config(AWQ), "awq4"),
    "bitsandbytes": (_bitsandbytes, "bnb_nf4"),
    "bitsandbytes, double": (_bitsandbytes, "bnb_nf4_double"),
    "fp8 blocks": (_fp8, config(FP8), "weight_scale_inv", (1, 1)),
    "fp8 of the tensor": (_fp8, config({"quant_method": "fp8"}), "weight_scale", ()),
    "modelopt nvfp4": (
        *(_nvfp4, config(MODELOPT | {"quant_algo": "NVFP4"}), "weight", "weight_scale_2", None),
    ),
    "modelopt fp8": (_fp8, config(MODELOPT | {"quant_algo": "FP8"}), "weight_scale", ()),
    "original A": (_original, "A"),
    "original B1": (_original, "B1"),
    "original B1, rotated": (_original, "B1", 64),
    "original B2": (_original, "B2"),
}


def matrix(name):
    """(fields of config.json, {part: tensor} of a module, float32 [N, K])."""
    make, *arguments = MATRICES[name]
    return make(*arguments)
